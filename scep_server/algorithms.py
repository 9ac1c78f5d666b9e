"""The algorithms that a request may use, and how its signature is verified. Refuses with BadAlg and BadMessageCheck.

SHA-1 is read because old routers sign with nothing else; whether a realm takes such a request is for the operations to
say. MD5 never is: "MUST NOT" (RFC 8894 2.9).
"""

from collections.abc import Callable

from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa
from cryptography.hazmat.primitives.serialization import load_der_public_key

from scep_server import oids
from scep_server.cms import read_pss
from scep_server.cms_values import Algorithm
from scep_server.errors import BadAlg

__all__ = ["Digest", "SignerKey", "digest_of", "load_signer_key", "verifier"]

Digest = hashes.SHA1 | hashes.SHA224 | hashes.SHA256 | hashes.SHA384 | hashes.SHA512
SignerKey = rsa.RSAPublicKey | ec.EllipticCurvePublicKey
Verify = Callable[[SignerKey, bytes, bytes], bool]

RSA_MIN_BITS = 1024
RSA_MAX_BITS = 8192
RSA_MAX_EXPONENT_BITS = 33  # 65537 is usual, 3 and 2^32+1 exist; a long one makes verifying as slow as signing
CURVES = frozenset({"secp256r1", "secp384r1", "secp521r1"})

DIGESTS: dict[str, Digest] = {
    oids.SHA1: hashes.SHA1(),  # noqa: S303  # read, and answered with it only to a client that knows no better
    oids.SHA224: hashes.SHA224(),
    oids.SHA256: hashes.SHA256(),
    oids.SHA384: hashes.SHA384(),
    oids.SHA512: hashes.SHA512(),
}
_RSA = {
    oids.SHA1_WITH_RSA: "sha1",
    oids.SHA1_WITH_RSA_OIW: "sha1",
    oids.SHA224_WITH_RSA: "sha224",
    oids.SHA256_WITH_RSA: "sha256",
    oids.SHA384_WITH_RSA: "sha384",
    oids.SHA512_WITH_RSA: "sha512",
}
_ECDSA = {
    oids.ECDSA_WITH_SHA1: "sha1",
    oids.ECDSA_WITH_SHA224: "sha224",
    oids.ECDSA_WITH_SHA256: "sha256",
    oids.ECDSA_WITH_SHA384: "sha384",
    oids.ECDSA_WITH_SHA512: "sha512",
}


def digest_of(algorithm: Algorithm) -> Digest:
    """The hash of a digestAlgorithm."""
    if (digest := DIGESTS.get(algorithm.oid)) is None:
        raise BadAlg("scep_digest_unsupported", "The message's digest is not SHA-1 or SHA-2.", detail=algorithm.oid)
    return digest


def load_signer_key(spki: bytes) -> SignerKey:
    """The key that signs a message, if it is of a kind and size that may be worked with."""
    try:
        key = load_der_public_key(spki)
    except (ValueError, TypeError, UnsupportedAlgorithm) as exc:
        raise BadAlg("scep_signer_key", "The signer's public key can't be used.", detail=str(exc)) from exc
    if isinstance(key, rsa.RSAPublicKey):
        numbers = key.public_numbers()
        if not RSA_MIN_BITS <= key.key_size <= RSA_MAX_BITS:
            raise BadAlg("scep_signer_key", f"The signer's RSA key is not of {RSA_MIN_BITS} to {RSA_MAX_BITS} bits.")
        if numbers.e.bit_length() > RSA_MAX_EXPONENT_BITS or numbers.n % 2 == 0:
            raise BadAlg("scep_signer_key", "The signer's RSA key has an exponent or a modulus that no key has.")
        return key
    if isinstance(key, ec.EllipticCurvePublicKey) and key.curve.name in CURVES:
        return key
    raise BadAlg("scep_signer_key", "The signer's public key is neither RSA nor on P-256, P-384 or P-521.")


def verifier(algorithm: Algorithm, digest: Digest) -> Verify:
    """What verifies this signatureAlgorithm: (key, signature, what is signed) to whether it holds."""
    rsa_padding: padding.AsymmetricPadding = padding.PKCS1v15()
    named = digest.name
    if algorithm.oid == oids.RSASSA_PSS:
        rsa_padding, named = _pss(algorithm.parameters)
    elif algorithm.oid in _RSA:
        named = _RSA[algorithm.oid]
    elif algorithm.oid in _ECDSA:
        named = _ECDSA[algorithm.oid]
    elif algorithm.oid != oids.RSA_ENCRYPTION:
        raise BadAlg(
            "scep_signature_unsupported", "The message's signature algorithm is not known.", detail=algorithm.oid
        )
    if named != digest.name:
        raise BadAlg("scep_signature_unsupported", "The message's digest and its signature name two hashes.")
    by_curve = algorithm.oid in _ECDSA

    def verify(key: SignerKey, signature: bytes, signed: bytes) -> bool:
        try:
            if isinstance(key, rsa.RSAPublicKey) and not by_curve:
                key.verify(signature, signed, rsa_padding, digest)
            elif isinstance(key, ec.EllipticCurvePublicKey) and by_curve:
                key.verify(signature, signed, ec.ECDSA(digest))
            else:
                return False
        except InvalidSignature:
            return False
        except UnsupportedAlgorithm as exc:  # a crypto policy of the host
            raise BadAlg(
                "scep_signature_unsupported", "The message's signature can't be verified on this host.", detail=str(exc)
            ) from exc
        except ValueError:  # a key too small for PSS with this digest and salt
            return False
        return True

    return verify


def _pss(parameters: bytes) -> tuple[padding.PSS, str]:
    try:
        read = read_pss(parameters)
    except ValueError as exc:
        raise BadAlg("scep_signature_unsupported", "The parameters of RSASSA-PSS can't be read.") from exc
    if read.digest not in DIGESTS or read.mask_digest not in DIGESTS:
        raise BadAlg("scep_signature_unsupported", "The hashes of RSASSA-PSS are not SHA-1 or SHA-2.")
    return padding.PSS(padding.MGF1(DIGESTS[read.mask_digest]), read.salt_length), DIGESTS[read.digest].name
