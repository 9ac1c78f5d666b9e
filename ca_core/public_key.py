"""Public keys that devices may bring: RSA of 2048 to 4096 bits with the usual exponent, and the NIST prime curves.

The libraries load far more than that (RSA of 15 or 16384 bits, even moduli, secp256k1), so the floor is here. It is
checked before any expensive operation with the key. Accepts a SubjectPublicKeyInfo or a loaded key; refuses with
`BadKey`, whose code says why.
"""

from hashlib import sha256

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat, load_der_public_key

from ca_core.errors import BadKey

__all__ = ["PublicKey", "check_public_key", "describe_key", "encode_spki", "load_public_key", "spki_sha256"]

PublicKey = rsa.RSAPublicKey | ec.EllipticCurvePublicKey

RSA_MIN_BITS = 2048
RSA_MAX_BITS = 4096
RSA_EXPONENT = 65537
CURVES = {"secp256r1": "P-256", "secp384r1": "P-384", "secp521r1": "P-521"}


def load_public_key(spki: bytes) -> PublicKey:
    """The key in a SubjectPublicKeyInfo, which passes `check_public_key`."""
    try:
        key = load_der_public_key(spki)
    except UnsupportedAlgorithm as exc:
        raise BadKey("key_type", "The public key is of a kind that is not accepted here.", detail=str(exc)) from exc
    except (ValueError, TypeError) as exc:
        # The library refuses the exponents 1 and 2n by itself, and says so in these words.
        if str(exc).startswith("e must be"):
            raise BadKey("key_exponent", f"The RSA key's public exponent is not {RSA_EXPONENT}.") from exc
        raise BadKey("key_invalid", "The public key is not a valid key.", detail=str(exc)) from exc
    if isinstance(key, rsa.RSAPublicKey) and _RSA_ENCRYPTION not in spki[:_ALGORITHM_END]:
        # A certificate would say rsaEncryption, and the private key, tied to PSS, would not fit it.
        raise BadKey("key_type", "The public key is restricted to RSASSA-PSS, which is not accepted here.")
    if isinstance(key, ec.EllipticCurvePublicKey) and not any(oid in spki[:_PARAMETERS_END] for oid in _NAMED_CURVES):
        # "implicitCurve and specifiedCurve MUST NOT be used in PKIX." -- RFC 5480 2.1.1
        raise BadKey("key_type", "The public key is not on a curve that is named as P-256, P-384 or P-521.")
    return check_public_key(key)


def check_public_key(key: object) -> PublicKey:
    """The same key, if it is strong enough and of a kind that devices may have."""
    if isinstance(key, ec.EllipticCurvePublicKey):
        if key.curve.name not in CURVES:
            raise BadKey("key_type", f"Keys on the curve {key.curve.name} are not accepted here.")
        return key
    if not isinstance(key, rsa.RSAPublicKey):
        raise BadKey("key_type", "The public key is of a kind that is not accepted here.", detail=type(key).__name__)
    bits = key.key_size
    if bits < RSA_MIN_BITS:
        raise BadKey("key_too_small", f"The RSA key has {bits} bits, less than the {RSA_MIN_BITS} it needs.")
    if bits > RSA_MAX_BITS:
        raise BadKey("key_too_large", f"The RSA key has {bits} bits, more than the {RSA_MAX_BITS} accepted here.")
    numbers = key.public_numbers()
    if numbers.e != RSA_EXPONENT:
        raise BadKey("key_exponent", f"The RSA key's public exponent is not {RSA_EXPONENT}.")
    if numbers.n % 2 == 0:
        raise BadKey("key_invalid", "The RSA key's modulus is even.")
    return key


def describe_key(key: PublicKey) -> str:
    """How an operator reads it: `RSA 2048`, `EC P-256`."""
    if isinstance(key, rsa.RSAPublicKey):
        return f"RSA {key.key_size}"
    return f"EC {CURVES.get(key.curve.name, key.curve.name)}"


def encode_spki(key: PublicKey) -> bytes:
    """The one SubjectPublicKeyInfo of this key, however it was written (a compressed point, absent parameters)."""
    return key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)


def spki_sha256(key: PublicKey) -> bytes:
    """What identifies a key anywhere in enrolld: SHA-256 of `encode_spki`."""
    return sha256(encode_spki(key)).digest()


_RSA_ENCRYPTION = bytes.fromhex("06092a864886f70d010101")  # 1.2.840.113549.1.1.1
_ALGORITHM_END = 24  # the AlgorithmIdentifier's OID ends before this octet: two headers of at most 4, then 11

_NAMED_CURVES = (
    bytes.fromhex("06082a8648ce3d030107"),  # 1.2.840.10045.3.1.7, P-256
    bytes.fromhex("06052b81040022"),  # 1.3.132.0.34, P-384
    bytes.fromhex("06052b81040023"),  # 1.3.132.0.35, P-521
)
_PARAMETERS_END = 32  # two headers of at most 4, the algorithm's OID of 9, the curve's of at most 10
