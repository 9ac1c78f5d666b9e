"""Public keys that can be worked with: RSA of 2048 to 4096 bits with the usual exponent, the NIST prime curves, Ed25519
and ML-DSA (FIPS 204). Which of these a device may have is its profile's to say.

The libraries load far more than that (RSA of 15 or 16384 bits, even moduli, secp256k1), so the floor is here, and with
it the look for RSA keys that anybody can factor. It is the one gate that every key of a device passes, before any
expensive operation with it. Accepts a SubjectPublicKeyInfo or a loaded key; refuses with `BadKey`, whose code says why.
"""

from hashlib import sha256

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, mldsa, rsa
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat, load_der_public_key

from ca_core.errors import BadKey
from ca_core.weak_keys import MAX_BITS, find_weakness

__all__ = [
    "WEAKNESSES",
    "MlDsaPublicKey",
    "PublicKey",
    "check_authority_key",
    "check_factors",
    "check_public_key",
    "describe_key",
    "encode_spki",
    "key_kind",
    "load_public_key",
    "spki_sha256",
]

MlDsaPublicKey = mldsa.MLDSA44PublicKey | mldsa.MLDSA65PublicKey | mldsa.MLDSA87PublicKey
PublicKey = rsa.RSAPublicKey | ec.EllipticCurvePublicKey | ed25519.Ed25519PublicKey | MlDsaPublicKey

RSA_MIN_BITS = 2048
RSA_MAX_BITS = 4096
RSA_EXPONENT = 65537
CURVES = {"secp256r1": "P-256", "secp384r1": "P-384", "secp521r1": "P-521"}
WEAKNESSES = {
    "key_small_factor": "The RSA key's modulus has a small prime factor.",
    "key_roca": "The RSA key was made by a broken generator (ROCA, CVE-2017-15361).",
    "key_close_primes": "The RSA key's primes are so close together that anybody finds them.",
    "key_debian": "The RSA key was made by a broken generator (Debian's of 2008, CVE-2008-0166).",
}
"""What a peer is told of each weakness that `find_weakness` knows."""


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
    # enforces case 17
    if isinstance(key, ec.EllipticCurvePublicKey) and not any(oid in spki[:_PARAMETERS_END] for oid in _NAMED_CURVES):
        # "implicitCurve and specifiedCurve MUST NOT be used in PKIX." -- RFC 5480 2.1.1
        raise BadKey("key_type", "The public key is not on a curve that is named as P-256, P-384 or P-521.")
    # "The public key MUST be rejected if any other value is included in the first octet." -- RFC 5480 2.2
    # The compressed form is shorter, and the uncompressed one has one encoding.
    # enforces case 17
    if isinstance(key, ec.EllipticCurvePublicKey) and len(spki) >= len(encode_spki(key)) and spki != encode_spki(key):
        raise BadKey("key_invalid", "The EC key's point is in the hybrid form.")
    return check_public_key(key)


def check_public_key(key: object) -> PublicKey:
    """The same key, if it is strong enough and of a kind that devices may have."""
    if isinstance(key, ec.EllipticCurvePublicKey):
        if key.curve.name not in CURVES:  # enforces case 17
            raise BadKey("key_type", f"Keys on the curve {key.curve.name} are not accepted here.")
        return key
    if isinstance(key, ed25519.Ed25519PublicKey):
        # Whoever knows the curve signs for these, so that a proof of possession would prove nothing.
        if _without_sign(key) in _SMALL_ORDER:  # enforces case 17
            raise BadKey("key_invalid", "The Ed25519 key is a point of small order.")
        return key
    if isinstance(key, MlDsaPublicKey):
        return key
    if not isinstance(key, rsa.RSAPublicKey):
        raise BadKey("key_type", "The public key is of a kind that is not accepted here.", detail=type(key).__name__)
    bits = key.key_size
    if bits < RSA_MIN_BITS:  # enforces case 15
        raise BadKey("key_too_small", f"The RSA key has {bits} bits, less than the {RSA_MIN_BITS} it needs.")
    if bits > RSA_MAX_BITS:  # enforces case 15
        raise BadKey("key_too_large", f"The RSA key has {bits} bits, more than the {RSA_MAX_BITS} accepted here.")
    numbers = key.public_numbers()
    if numbers.e != RSA_EXPONENT:  # enforces case 15
        raise BadKey("key_exponent", f"The RSA key's public exponent is not {RSA_EXPONENT}.")
    if numbers.n % 2 == 0:  # enforces case 15
        raise BadKey("key_invalid", "The RSA key's modulus is even.")
    check_factors(key)
    return key


def check_authority_key(key: object) -> None:
    """Raise `BadKey` when a CA's key that somebody else made is not one to hang trust on; kinds are not judged here.

    Other CAs may have larger keys and other exponents than devices.
    """
    if isinstance(key, rsa.RSAPublicKey):
        bits = key.key_size
        if bits < RSA_MIN_BITS:
            raise BadKey("key_too_small", f"The RSA key has {bits} bits, less than the {RSA_MIN_BITS} it needs.")
        if bits > MAX_BITS:
            raise BadKey("key_too_large", f"The RSA key has {bits} bits, more than the {MAX_BITS} that are looked at.")
        check_factors(key)


def describe_key(key: PublicKey) -> str:
    """How an operator reads it: `RSA 2048`, `EC P-256`, `Ed25519`, `ML-DSA-65`."""
    if isinstance(key, rsa.RSAPublicKey):
        return f"RSA {key.key_size}"
    if isinstance(key, ec.EllipticCurvePublicKey):
        return f"EC {CURVES.get(key.curve.name, key.curve.name)}"
    if isinstance(key, ed25519.Ed25519PublicKey):
        return "Ed25519"
    if isinstance(key, mldsa.MLDSA44PublicKey):
        return "ML-DSA-44"
    return "ML-DSA-65" if isinstance(key, mldsa.MLDSA65PublicKey) else "ML-DSA-87"


def key_kind(key: PublicKey) -> str:
    """The one word for what kind of key it is: `rsa-2048`, `p-256`, `ed25519`, `ml-dsa-65`.

    RSA is named by its exact size (`rsa-2056`), so that a list of names means what it says.
    """
    return describe_key(key).lower().removeprefix("ec ").replace(" ", "-")


def encode_spki(key: PublicKey) -> bytes:
    """The one SubjectPublicKeyInfo of this key, however it was written (a compressed point, absent parameters)."""
    return key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)


def spki_sha256(key: PublicKey) -> bytes:
    """What identifies a key anywhere in enrolld: SHA-256 of `encode_spki`."""
    return sha256(encode_spki(key)).digest()


def check_factors(key: object) -> None:
    """Raise `BadKey` when it is an RSA key that anybody can factor; nothing else of it is judged."""
    if isinstance(key, rsa.RSAPublicKey) and key.key_size <= MAX_BITS:
        weakness = find_weakness(key.public_numbers().n)
        if weakness is not None:  # enforces case 16
            raise BadKey(weakness, WEAKNESSES[weakness])


_RSA_ENCRYPTION = bytes.fromhex("06092a864886f70d010101")  # 1.2.840.113549.1.1.1
_ALGORITHM_END = 24  # the AlgorithmIdentifier's OID ends before this octet: two headers of at most 4, then 11

_NAMED_CURVES = (
    bytes.fromhex("06082a8648ce3d030107"),  # 1.2.840.10045.3.1.7, P-256
    bytes.fromhex("06052b81040022"),  # 1.3.132.0.34, P-384
    bytes.fromhex("06052b81040023"),  # 1.3.132.0.35, P-521
)
_PARAMETERS_END = 32  # two headers of at most 4, the algorithm's OID of 9, the curve's of at most 10

_ED25519_PRIME = 2**255 - 19
_SMALL_ORDER_8 = 0x7A03AC9277FDC74EC6CC392CFA53202A0F67100D760B3CBA4FD84D3D706A17C7
_SMALL_ORDER = frozenset(
    (0, 1, _SMALL_ORDER_8, _ED25519_PRIME - _SMALL_ORDER_8, _ED25519_PRIME - 1, _ED25519_PRIME, _ED25519_PRIME + 1)
)
"""y of the points whose order divides 8, also where it is written as y + p."""


def _without_sign(key: ed25519.Ed25519PublicKey) -> int:
    """The point's y as it was sent, without the bit for the sign of x."""
    return int.from_bytes(key.public_bytes_raw(), "little") & (2**255 - 1)
