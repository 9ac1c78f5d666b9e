"""Proof of possession: whether a request is signed with the key that is in it (RFC 2986 4.2)."""

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, padding, rsa
from cryptography.x509.oid import SignatureAlgorithmOID

from ca_core.errors import PopFailed
from ca_core.public_key import MlDsaPublicKey, PublicKey, key_kind

__all__ = ["check_signature", "hash_of_signature"]

_WEAK_HASHES = {"md5": "MD5", "sha1": "SHA-1"}
_WEAK_PARAMETERS: dict[x509.ObjectIdentifier, padding.PKCS1v15 | ec.ECDSA] = {  # cryptography gives None for these
    SignatureAlgorithmOID.RSA_WITH_MD5: padding.PKCS1v15(),
    SignatureAlgorithmOID.RSA_WITH_SHA1: padding.PKCS1v15(),
    SignatureAlgorithmOID.ECDSA_WITH_SHA1: ec.ECDSA(hashes.SHA1()),  # noqa: S303  # to say so, or where it is allowed
}


_OWN_ALGORITHMS: dict[x509.ObjectIdentifier, tuple[str, str]] = {
    SignatureAlgorithmOID.ED25519: ("ed25519", "sha512"),  # RFC 8032 5.1
    SignatureAlgorithmOID.ML_DSA_44: ("ml-dsa-44", "shake256"),  # FIPS 204
    SignatureAlgorithmOID.ML_DSA_65: ("ml-dsa-65", "shake256"),
    SignatureAlgorithmOID.ML_DSA_87: ("ml-dsa-87", "shake256"),
}
"""What leaves no choice: the one kind of key that makes such a signature, and the hash inside."""


def check_signature(csr: x509.CertificateSigningRequest, signed: bytes, key: PublicKey, *, allow_sha1: bool) -> str:
    """The name of the hash. Verified by hand: cryptography calls a correct SHA-1 signature invalid."""
    try:
        # "The signed enrollment request provides a signature-based proof-of-possession." -- RFC 7030 3.4
        hash_name = _verify(csr, signed, key)
    except InvalidSignature as exc:
        raise PopFailed("csr_signature_bad", "The CSR is not signed with its own key.") from exc
    except (UnsupportedAlgorithm, ValueError, TypeError) as exc:
        raise PopFailed(
            "csr_signature_bad", "The CSR's signature algorithm is not one that is known here.", detail=str(exc)
        ) from exc
    return _allowed(hash_name, allow_sha1=allow_sha1)


def hash_of_signature(csr: x509.CertificateSigningRequest, key: PublicKey, *, allow_sha1: bool) -> str:
    """The name of the hash of a signature that was verified before. PopFailed when it is not allowed any more."""
    if isinstance(key, ed25519.Ed25519PublicKey | MlDsaPublicKey):
        return _OWN_ALGORITHMS[csr.signature_algorithm_oid][1]
    algorithm = csr.signature_hash_algorithm
    return _allowed(algorithm.name if algorithm is not None else "", allow_sha1=allow_sha1)


def _allowed(hash_name: str, *, allow_sha1: bool) -> str:
    if hash_name in _WEAK_HASHES and not (allow_sha1 and hash_name == "sha1"):
        raise PopFailed(
            "csr_signature_weak", f"The CSR is signed with {_WEAK_HASHES[hash_name]}, which is not allowed."
        )
    return hash_name


def _verify(csr: x509.CertificateSigningRequest, signed: bytes, key: PublicKey) -> str:
    oid = csr.signature_algorithm_oid
    if isinstance(key, ed25519.Ed25519PublicKey | MlDsaPublicKey):
        kind, hash_name = _OWN_ALGORITHMS.get(oid, ("", ""))
        if kind == key_kind(key):
            key.verify(csr.signature, signed)  # enforces case 18
            return hash_name
    else:
        parameters = csr.signature_algorithm_parameters or _WEAK_PARAMETERS.get(oid)
        hash_algorithm = csr.signature_hash_algorithm
        if hash_algorithm is None:
            pass
        elif isinstance(key, ec.EllipticCurvePublicKey) and isinstance(parameters, ec.ECDSA):
            key.verify(csr.signature, signed, parameters)  # enforces case 18
            return hash_algorithm.name
        elif isinstance(key, rsa.RSAPublicKey) and isinstance(parameters, padding.PKCS1v15 | padding.PSS):
            key.verify(csr.signature, signed, parameters, hash_algorithm)  # enforces case 18
            return hash_algorithm.name
    raise PopFailed("csr_signature_bad", "The CSR's signature is of a kind that its key can't make.")
