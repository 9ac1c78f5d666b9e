"""Whether a signature of a CA's signer holds, whatever kind its key is of."""

from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa

from ca_core.authority.keys import Signer

__all__ = ["verify"]


def verify(signer: Signer, signature: bytes, data: bytes) -> None:
    """Raise `InvalidSignature` unless it is the signer's over `data`."""
    key, digest = signer.public_key, signer.digest
    if isinstance(key, rsa.RSAPublicKey):
        assert digest is not None
        key.verify(signature, data, padding.PKCS1v15(), digest)
    elif isinstance(key, ec.EllipticCurvePublicKey):
        assert digest is not None
        key.verify(signature, data, ec.ECDSA(digest))
    else:
        assert digest is None
        key.verify(signature, data)
