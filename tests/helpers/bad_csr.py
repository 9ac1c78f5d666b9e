"""Hand-made PKCS#10 requests: good ones in any shape, and every kind of bad one with the code it must be refused with.

DER is put together byte by byte, because no library writes what these need. The certification request is always signed
correctly by its own key unless the case is about the signature, so that a case fails for its own reason only.
"""

import functools
from collections.abc import Sequence

from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed448, ed25519, mldsa, padding, rsa

__all__ = [
    "BAD_CSRS",
    "CHALLENGE_PASSWORD",
    "IDENTITY_LINKING",
    "PrivateKey",
    "attribute",
    "bit_string",
    "bool_true",
    "challenge",
    "dns",
    "ec_key",
    "ec_spki",
    "ed25519_spki",
    "extension",
    "extension_request",
    "good_csr",
    "ia5",
    "integer",
    "make_csr",
    "name",
    "null",
    "octets",
    "oid",
    "printable",
    "rdn",
    "rsa_key",
    "rsa_spki",
    "san",
    "sequence",
    "set_of",
    "spki_of",
    "tlv",
    "utf8",
]

MlDsaPrivateKey = mldsa.MLDSA44PrivateKey | mldsa.MLDSA65PrivateKey | mldsa.MLDSA87PrivateKey
PrivateKey = (
    ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey | ed25519.Ed25519PrivateKey | ed448.Ed448PrivateKey | MlDsaPrivateKey
)

COMMON_NAME = "2.5.4.3"
ORGANIZATION = "2.5.4.10"
COUNTRY = "2.5.4.6"
SAN = "2.5.29.17"
KEY_USAGE = "2.5.29.15"
BASIC_CONSTRAINTS = "2.5.29.19"
EXTENDED_KEY_USAGE = "2.5.29.37"
EXTENSION_REQUEST = "1.2.840.113549.1.9.14"
CHALLENGE_PASSWORD = "1.2.840.113549.1.9.7"
IDENTITY_LINKING = "1.2.840.113549.1.9.16.2.58"

# --- DER -------------------------------------------------------------------------------------------------------------


def tlv(tag: int, *content: bytes) -> bytes:
    """One tag, length, value with a definite minimal length."""
    body = b"".join(content)
    if len(body) < 0x80:
        return bytes((tag, len(body))) + body
    size = len(body).to_bytes((len(body).bit_length() + 7) // 8, "big")
    return bytes((tag, 0x80 | len(size))) + size + body


def sequence(*content: bytes) -> bytes:
    return tlv(0x30, *content)


def set_of(*content: bytes) -> bytes:
    return tlv(0x31, *sorted(content))


def integer(value: int) -> bytes:
    return tlv(0x02, value.to_bytes(value.bit_length() // 8 + 1, "big", signed=True))


def bit_string(content: bytes) -> bytes:
    return tlv(0x03, b"\0", content)


def octets(*content: bytes) -> bytes:
    return tlv(0x04, *content)


def null() -> bytes:
    return b"\x05\x00"


def bool_true() -> bytes:
    return b"\x01\x01\xff"


def utf8(text: str) -> bytes:
    return tlv(0x0C, text.encode())


def printable(text: str) -> bytes:
    return tlv(0x13, text.encode("ascii"))


def ia5(content: bytes) -> bytes:
    return tlv(0x16, content)


def oid(dotted: str) -> bytes:
    first, second, *rest = (int(arc) for arc in dotted.split("."))
    out = bytearray()
    for arc in (first * 40 + second, *rest):
        septets = [arc & 0x7F]
        while arc := arc >> 7:
            septets.append(0x80 | (arc & 0x7F))
        out += bytes(reversed(septets))
    return tlv(0x06, bytes(out))


# --- PKCS#10 ---------------------------------------------------------------------------------------------------------


def rdn(*pairs: tuple[str, bytes]) -> bytes:
    """One RelativeDistinguishedName; more than one pair makes it multi-valued."""
    return set_of(*(sequence(oid(kind), value) for kind, value in pairs))


def name(cn: str | bytes | None, *more: bytes) -> bytes:
    """A subject with this CN (bytes: a ready-made string TLV), and further RDNs after it."""
    if cn is None:
        return sequence(*more)
    return sequence(rdn((COMMON_NAME, utf8(cn) if isinstance(cn, str) else cn)), *more)


def attribute(kind: str, *values: bytes) -> bytes:
    return sequence(oid(kind), set_of(*values))


def challenge(value: bytes | str) -> bytes:
    return attribute(CHALLENGE_PASSWORD, printable(value) if isinstance(value, str) else value)


def extension(kind: str, value: bytes, *, critical: bool = False) -> bytes:
    return sequence(oid(kind), bool_true() if critical else b"", octets(value))


def extension_request(*extensions: bytes) -> bytes:
    return attribute(EXTENSION_REQUEST, sequence(*extensions))


def dns(value: str | bytes) -> bytes:
    """A GeneralName of kind dNSName."""
    return tlv(0x82, value.encode() if isinstance(value, str) else value)


def san(*general_names: bytes) -> bytes:
    return extension(SAN, sequence(*general_names))


def spki_of(key: PrivateKey) -> bytes:
    return key.public_key().public_bytes(serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)


def rsa_spki(modulus: int, exponent: int) -> bytes:
    """The SubjectPublicKeyInfo of any two numbers, whether or not they make a key."""
    return sequence(
        sequence(oid("1.2.840.113549.1.1.1"), null()), bit_string(sequence(integer(modulus), integer(exponent)))
    )


def ec_spki(curve: str, point: bytes) -> bytes:
    return sequence(sequence(oid("1.2.840.10045.2.1"), oid(curve)), bit_string(point))


def ed25519_spki(point: int) -> bytes:
    """The SubjectPublicKeyInfo of a point that is written as this number: y, and in the highest bit the sign of x."""
    return sequence(sequence(oid("1.3.101.112")), bit_string(point.to_bytes(32, "little")))


_ECDSA_OIDS = {"sha1": "1.2.840.10045.4.1", "sha256": "1.2.840.10045.4.3.2", "sha384": "1.2.840.10045.4.3.3"}
_RSA_OIDS = {
    "md5": "1.2.840.113549.1.1.4",
    "sha1": "1.2.840.113549.1.1.5",
    "sha256": "1.2.840.113549.1.1.11",
    "sha384": "1.2.840.113549.1.1.12",
}
_HASHES: dict[str, hashes.HashAlgorithm] = {
    "md5": hashes.MD5(),  # noqa: S303  # it must be refused
    "sha1": hashes.SHA1(),  # noqa: S303  # it must be refused
    "sha256": hashes.SHA256(),
    "sha384": hashes.SHA384(),
}


def _sign(key: PrivateKey, message: bytes, hash_name: str) -> tuple[bytes, bytes]:
    """AlgorithmIdentifier and signature."""
    if isinstance(key, ec.EllipticCurvePrivateKey):
        return sequence(oid(_ECDSA_OIDS[hash_name])), key.sign(message, ec.ECDSA(_HASHES[hash_name]))
    if isinstance(key, rsa.RSAPrivateKey):
        signature = key.sign(message, padding.PKCS1v15(), _HASHES[hash_name])
        return sequence(oid(_RSA_OIDS[hash_name]), null()), signature
    algorithm = next(number for kind, number in _OWN_OIDS if isinstance(key, kind))
    return sequence(oid(algorithm)), key.sign(message)


_OWN_OIDS: tuple[tuple[type, str], ...] = (
    (ed25519.Ed25519PrivateKey, "1.3.101.112"),
    (ed448.Ed448PrivateKey, "1.3.101.113"),
    (mldsa.MLDSA44PrivateKey, "2.16.840.1.101.3.4.3.17"),
    (mldsa.MLDSA65PrivateKey, "2.16.840.1.101.3.4.3.18"),
    (mldsa.MLDSA87PrivateKey, "2.16.840.1.101.3.4.3.19"),
)


def make_csr(
    key: PrivateKey,
    subject: bytes,
    *attributes: bytes,
    spki: bytes | None = None,
    version: bytes | None = None,
    signature_hash: str = "sha256",
    break_signature: bool = False,
    no_attributes_field: bool = False,
) -> bytes:
    """A CertificationRequest of exactly these parts, signed by `key`."""
    body = sequence(
        integer(0) if version is None else version,
        subject,
        spki_of(key) if spki is None else spki,
        b"" if no_attributes_field else tlv(0xA0, *attributes),
    )
    algorithm, signature = _sign(key, body + (b"not this" if break_signature else b""), signature_hash)
    return sequence(body, algorithm, bit_string(signature))


def good_csr(
    key: PrivateKey | None = None,
    cn: str | None = "device-1",
    *,
    sans: Sequence[str] = (),
    challenge_password: str | None = None,
    signature_hash: str = "sha256",
) -> bytes:
    """A request that must pass: this CN, dNSNames and challengePassword, signed with SHA-256 by a P-256 key."""
    attributes = []
    if challenge_password is not None:
        attributes.append(challenge(challenge_password))
    if sans:
        attributes.append(extension_request(san(*map(dns, sans))))
    return make_csr(key or ec_key(), name(cn), *sorted(attributes), signature_hash=signature_hash)


@functools.cache
def ec_key(curve: str = "secp256r1") -> ec.EllipticCurvePrivateKey:
    """One key per curve, made once per process."""
    curves: dict[str, ec.EllipticCurve] = {
        "secp256r1": ec.SECP256R1(),
        "secp384r1": ec.SECP384R1(),
        "secp521r1": ec.SECP521R1(),
        "secp256k1": ec.SECP256K1(),
    }
    return ec.generate_private_key(curves[curve])


@functools.cache
def rsa_key(bits: int = 2048, exponent: int = 65537) -> rsa.RSAPrivateKey:
    """One key per size and exponent, made once per process."""
    return rsa.generate_private_key(3 if exponent == 3 else 65537, bits)


# --- the bad ones ----------------------------------------------------------------------------------------------------

_P192_POINT = bytes.fromhex(
    "04188da80eb03090f67cbf20eb43a18800f4ff0afd82ff101207192b95ffc8da78631011ed6b24cdd573f977a11e794811"
)
_P256_PRIME = 2**256 - 2**224 + 2**192 + 2**96 - 1
_P256_WRITTEN_OUT = sequence(
    integer(1),
    sequence(oid("1.2.840.10045.1.1"), integer(_P256_PRIME)),
    sequence(
        octets((_P256_PRIME - 3).to_bytes(32, "big")),
        octets(bytes.fromhex("5ac635d8aa3a93e7b3ebbd55769886bc651d06b0cc53b0f63bce3c3e27d2604b")),
    ),
    octets(
        bytes.fromhex("046b17d1f2e12c4247f8bce6e563a440f277037d812deb33a0f4a13945d898c296")
        + bytes.fromhex("4fe342e2fe1a7f9b8ee7eb4a7c0f9e162bce33576b315ececbb6406837bf51f5")
    ),
    integer(0xFFFFFFFF00000000FFFFFFFFFFFFFFFFBCE6FAADA7179E84F3B9CAC2FC632551),
    integer(1),
)
_MODULUS = int.from_bytes(bytes.fromhex("c5") + bytes(range(1, 256)), "big") | 1
_POWER = 65537**150  # of 2401 bits; RSALib's moduli are such powers modulo each small prime
_MIDDLE = (1 << 1024) + 29  # between two factors without small ones
_EMPTY_SAN = extension(SAN, sequence())
_EMPTY_EKU = extension(EXTENDED_KEY_USAGE, sequence())


def _nested(depth: int) -> bytes:
    der = b""
    for _ in range(depth):
        der = sequence(der)
    return der


def _indefinite(der: bytes) -> bytes:
    content = der[4:] if der[1] == 0x82 else der[3:]
    return b"\x30\x80" + content + b"\0\0"


def _cases() -> list[tuple[str, bytes, str]]:
    key = ec_key()
    good = good_csr(key)
    other = ec_key("secp384r1")

    def csr(cn: str | bytes | None, *attributes: bytes) -> bytes:
        return make_csr(key, name(cn), *attributes)

    def asking(*extensions: bytes) -> bytes:
        return csr("device-1", extension_request(*extensions))

    def named(value: str | bytes) -> bytes:
        return asking(san(dns(value)))

    def keyed(spki: bytes) -> bytes:
        return make_csr(key, name("device-1"), spki=spki)

    point = bytearray(spki_of(key))
    point[-1] ^= 1
    explicit_curve = sequence(sequence(oid("1.2.840.10045.2.1"), _P256_WRITTEN_OUT), bit_string(spki_of(key)[-65:]))
    return [
        # the bytes
        ("empty", b"", "not_pkcs10"),
        ("text", b"hello, world", "not_pkcs10"),
        ("truncated-by-one", good[:-1], "not_pkcs10"),
        ("truncated-in-half", good[: len(good) // 2], "not_pkcs10"),
        ("one-byte", b"\x30", "not_pkcs10"),
        ("trailing-byte", good + b"\0", "trailing_data"),
        ("two-requests", good + good, "trailing_data"),
        ("ber-indefinite-length", _indefinite(good), "not_pkcs10"),
        ("length-of-4-gib", b"\x30\x84\xff\xff\xff\xff" + good, "not_pkcs10"),
        ("length-of-126-octets", b"\x30\xfe" + b"\xff" * 126, "not_pkcs10"),
        ("nested-4000-deep", _nested(4000), "not_pkcs10"),
        ("long-form-of-a-short-length", b"\x30\x83\x00" + good[2:], "not_pkcs10"),
        ("certificate-like-sequence", sequence(sequence(integer(1)), sequence(oid("1.2.3")), bit_string(b"x")),
         "not_pkcs10"),
        ("larger-than-16-kib", csr("device-1", challenge("x" * 17000)), "body_too_large"),
        ("version-2", make_csr(key, name("device-1"), version=integer(1)), "csr_version"),
        ("version-huge", make_csr(key, name("device-1"), version=integer(2**64)), "not_pkcs10"),
        ("version-negative", make_csr(key, name("device-1"), version=b"\x02\x01\xff"), "not_pkcs10"),
        ("attributes-left-out", make_csr(key, name("device-1"), no_attributes_field=True), "not_pkcs10"),
        # attributes and extensions
        ("duplicate-extension", asking(san(dns("a")), san(dns("b"))), "csr_duplicate_extension"),
        ("two-extension-requests", csr("device-1", extension_request(san(dns("a"))), extension_request(san(dns("b")))),
         "csr_extension_malformed"),
        ("extension-request-with-two-values",
         csr("device-1", attribute(EXTENSION_REQUEST, sequence(san(dns("a"))), sequence(san(dns("b"))))),
         "csr_extension_malformed"),
        ("extension-request-without-value", csr("device-1", attribute(EXTENSION_REQUEST)), "csr_extension_malformed"),
        ("extension-request-without-extensions", csr("device-1", extension_request()), "csr_extension_malformed"),
        ("extension-request-of-a-string", csr("device-1", attribute(EXTENSION_REQUEST, utf8("x"))),
         "csr_extension_malformed"),
        ("empty-eku", asking(_EMPTY_EKU), "csr_extension_malformed"),
        ("empty-san", asking(_EMPTY_SAN), "csr_extension_malformed"),
        ("san-of-garbage", asking(extension(SAN, b"\xff\xff")), "csr_extension_malformed"),
        ("san-followed-by-garbage", asking(extension(SAN, sequence(dns("a")) + b"\0")), "csr_extension_malformed"),
        ("san-of-five-octets-ip", asking(san(tlv(0x87, b"\1\2\3\4\5"))), "csr_extension_malformed"),
        ("san-of-a-network", asking(san(tlv(0x87, b"\x0a\0\0\0\xff\0\0\0"))), "csr_extension_malformed"),
        ("basic-constraints-of-a-string", asking(extension(BASIC_CONSTRAINTS, utf8("CA"))), "csr_extension_malformed"),
        ("empty-key-usage", asking(extension(KEY_USAGE, b"")), "csr_extension_malformed"),
        ("empty-attribute-set", csr("device-1", attribute("1.2.3.4")), "csr_attribute_malformed"),
        ("attribute-without-set", csr("device-1", sequence(oid("1.2.3.4"))), "not_pkcs10"),
        ("attribute-that-is-null", csr("device-1", null()), "not_pkcs10"),
        ("challenge-empty-set", csr("device-1", attribute(CHALLENGE_PASSWORD)), "csr_attribute_malformed"),
        ("challenge-of-two-values", csr("device-1", attribute(CHALLENGE_PASSWORD, printable("a"), printable("b"))),
         "csr_attribute_malformed"),
        ("challenge-twice", csr("device-1", challenge("a"), challenge("b")), "csr_attribute_malformed"),
        ("challenge-integer", csr("device-1", challenge(integer(1))), "csr_attribute_malformed"),
        ("challenge-sequence", csr("device-1", challenge(sequence())), "csr_attribute_malformed"),
        ("challenge-of-256-bytes", csr("device-1", challenge("x" * 256)), "csr_attribute_malformed"),
        ("challenge-not-utf8", csr("device-1", challenge(tlv(0x0C, b"\xff\xfe"))), "csr_attribute_malformed"),
        ("challenge-printable-not-ascii", csr("device-1", challenge(tlv(0x13, b"\xe9"))), "csr_attribute_malformed"),
        ("identity-linking-integer", csr("device-1", attribute(IDENTITY_LINKING, integer(1))),
         "csr_attribute_malformed"),
        # names
        ("cn-of-65", csr("x" * 65), "csr_name_malformed"),
        ("cn-of-5000", csr("x" * 5000), "csr_name_malformed"),
        ("cn-empty", csr(""), "csr_name_malformed"),
        ("cn-with-nul", csr("device-1\0.example.com"), "csr_name_malformed"),
        ("cn-with-newline", csr("device-1\nlevel=error"), "csr_name_malformed"),
        ("cn-with-escape", csr("\x1b[31mdevice-1"), "csr_name_malformed"),
        ("cn-with-delete", csr("device-1\x7f"), "csr_name_malformed"),
        ("cn-with-c1-control", csr("device-1\x9b"), "csr_name_malformed"),
        ("cn-right-to-left-override", csr("device\u202e1-"), "csr_name_malformed"),
        ("cn-zero-width-space", csr("dev\u200bice-1"), "csr_name_malformed"),
        ("cn-variation-selector", csr("device-1\ufe0f"), "csr_name_malformed"),
        ("cn-hangul-filler", csr("device-1\u3164"), "csr_name_malformed"),
        ("cn-line-separator", csr("dev\u2028ice-1"), "csr_name_malformed"),
        ("cn-not-utf8", csr(tlv(0x0C, b"\xff\xfe")), "csr_name_malformed"),
        ("cn-integer", csr(integer(7)), "csr_name_malformed"),
        ("cn-bit-string", csr(bit_string(b"x")), "csr_name_malformed"),
        ("cn-bmp-of-odd-length", csr(tlv(0x1E, b"\0a\0")), "not_pkcs10"),
        ("cn-bmp-lone-surrogate", csr(tlv(0x1E, b"\xd8\0")), "not_pkcs10"),
        ("two-cns", make_csr(key, name("device-1", rdn((COMMON_NAME, utf8("device-2"))))), "csr_name_malformed"),
        ("two-cns-in-one-rdn",
         make_csr(key, sequence(rdn((COMMON_NAME, utf8("device-1")), (COMMON_NAME, utf8("device-2"))))),
         "csr_name_malformed"),
        ("multi-valued-rdn",
         make_csr(key, sequence(rdn((COMMON_NAME, utf8("device-1")), (ORGANIZATION, utf8("Example"))))),
         "csr_name_malformed"),
        ("empty-rdn", make_csr(key, sequence(tlv(0x31))), "csr_name_malformed"),
        ("organization-with-newline", make_csr(key, name("device-1", rdn((ORGANIZATION, utf8("a\nb"))))),
         "csr_name_malformed"),
        ("organization-of-300", make_csr(key, name("device-1", rdn((ORGANIZATION, utf8("x" * 300))))),
         "csr_name_malformed"),
        ("dns-with-nul", named(b"good.example.com\0.evil.example.com"), "csr_name_malformed"),
        ("dns-with-newline", named(b"a\nb"), "csr_name_malformed"),
        ("dns-with-escape", named(b"\x1b[2Ja"), "csr_name_malformed"),
        ("dns-not-ascii", named("caf\u00e9.example.com"), "csr_name_malformed"),
        ("dns-latin-1", named(b"caf\xe9.example.com"), "csr_extension_malformed"),
        ("dns-right-to-left", named("a\u202eb"), "csr_name_malformed"),
        ("dns-star", named("*"), "csr_name_malformed"),
        ("dns-wildcard", named("*.example.com"), "csr_name_malformed"),
        ("dns-embedded-space", named("a b.example.com"), "csr_name_malformed"),
        ("dns-empty", named(""), "csr_name_malformed"),
        ("dns-empty-label", named("a..example.com"), "csr_name_malformed"),
        ("dns-trailing-dot", named("a.example.com."), "csr_name_malformed"),
        ("dns-leading-hyphen", named("-a.example.com"), "csr_name_malformed"),
        ("dns-label-of-64", named("a" * 64), "csr_name_malformed"),
        ("dns-of-255", named(".".join(["a" * 50] * 5)), "csr_name_malformed"),
        ("dns-invalid-punycode", named("xn--\u005f\u005f\u005f.example.com"), "csr_name_malformed"),
        ("dns-punycode-of-a-control", named("xn--" + "a\u202e".encode("punycode").decode()), "csr_name_malformed"),
        ("dns-punycode-of-an-invisible", named("xn--" + "a\ufe0f".encode("punycode").decode()), "csr_name_malformed"),
        ("uri-with-space", asking(san(tlv(0x86, b"http://a b/"))), "csr_name_malformed"),
        ("uri-with-newline", asking(san(tlv(0x86, b"http://a/\r\nx"))), "csr_name_malformed"),
        ("uri-without-scheme", asking(san(tlv(0x86, b"device"))), "csr_name_malformed"),
        ("email-with-nul", asking(san(tlv(0x81, b"a\0@example.com"))), "csr_name_malformed"),
        ("dirname-with-newline", asking(san(tlv(0xA4, name("a\nb")))), "csr_name_malformed"),
        ("san-x400-address", asking(san(tlv(0xA3, sequence()))), "csr_name_malformed"),
        ("sans-101", asking(san(*(dns(f"d{n}.example.com") for n in range(101)))), "csr_too_many_names"),
        ("sans-600", asking(san(*(dns(f"d{n}.example.com") for n in range(600)))), "csr_too_many_names"),
        # the key
        ("rsa-1024", good_csr(rsa_key(1024)), "key_too_small"),
        ("rsa-15-bit", keyed(rsa_spki(32767, 3)), "key_too_small"),
        ("rsa-2047", keyed(rsa_spki(_MODULUS >> 1 | 1, 65537)), "key_too_small"),
        ("rsa-4097", keyed(rsa_spki(1 << 4096 | 1, 65537)), "key_too_large"),
        ("rsa-16384", keyed(rsa_spki(1 << 16383 | 1, 65537)), "key_too_large"),
        ("rsa-even-modulus", keyed(rsa_spki(_MODULUS - 1, 65537)), "key_invalid"),
        ("rsa-negative-modulus", keyed(rsa_spki(-_MODULUS, 65537)), "key_invalid"),
        ("rsa-zero-modulus", keyed(rsa_spki(0, 65537)), "key_invalid"),
        ("rsa-small-factor", keyed(rsa_spki(_POWER * 3, 65537)), "key_small_factor"),
        ("rsa-roca", keyed(rsa_spki(_POWER, 65537)), "key_roca"),
        ("rsa-close-primes", keyed(rsa_spki(_MIDDLE**2 - 4, 65537)), "key_close_primes"),
        ("rsa-exponent-3", good_csr(rsa_key(2048, 3)), "key_exponent"),
        ("rsa-exponent-1", keyed(rsa_spki(_MODULUS, 1)), "key_exponent"),
        ("rsa-exponent-even", keyed(rsa_spki(_MODULUS, 65536)), "key_exponent"),
        ("rsa-exponent-huge", keyed(rsa_spki(_MODULUS, 2**2000 + 1)), "key_exponent"),
        ("rsa-pss-only-key",
         keyed(sequence(sequence(oid("1.2.840.113549.1.1.10")), rsa_spki(_MODULUS, 65537)[19:])),
         "key_type"),
        ("rsa-key-of-garbage", keyed(sequence(sequence(oid("1.2.840.113549.1.1.1"), null()), bit_string(b"\xff"))),
         "key_invalid"),
        ("ec-point-off-curve", keyed(bytes(point)), "key_invalid"),
        ("ec-point-at-infinity", keyed(ec_spki("1.2.840.10045.3.1.7", b"\0")), "key_invalid"),
        ("ec-explicit-curve", keyed(explicit_curve), "key_type"),
        ("ec-p192", keyed(ec_spki("1.2.840.10045.3.1.1", _P192_POINT)), "key_type"),
        ("ec-secp256k1", good_csr(ec_key("secp256k1")), "key_type"),
        ("ed448", make_csr(ed448.Ed448PrivateKey.generate(), name("device-1")), "key_type"),
        ("ed25519-identity", keyed(ed25519_spki(1)), "key_invalid"),
        ("ed25519-of-31-octets", keyed(sequence(sequence(oid("1.3.101.112")), bit_string(bytes(31)))), "key_invalid"),
        ("ml-dsa-cut-off", keyed(sequence(sequence(oid("2.16.840.1.101.3.4.3.18")), bit_string(bytes(1951)))),
         "key_invalid"),
        ("unknown-key-algorithm", keyed(sequence(sequence(oid("1.2.3.4")), bit_string(b"key"))), "key_type"),
        # the signature
        ("signature-over-other-bytes", make_csr(key, name("device-1"), break_signature=True), "csr_signature_bad"),
        ("signed-by-another-key", make_csr(other, name("device-1"), spki=spki_of(key)), "csr_signature_bad"),
        ("signed-by-another-kind", make_csr(rsa_key(), name("device-1"), spki=spki_of(key)), "csr_signature_bad"),
        ("signature-is-garbage", good[:-8] + bytes(8), "csr_signature_bad"),
        ("signature-algorithm-unknown", good.replace(oid("1.2.840.10045.4.3.2"), oid("1.2.840.10045.4.3.9")),
         "csr_signature_bad"),
        ("sha-1", good_csr(key, signature_hash="sha1"), "csr_signature_weak"),
        ("sha-1-rsa", good_csr(rsa_key(), signature_hash="sha1"), "csr_signature_weak"),
        ("md5-rsa", good_csr(rsa_key(), signature_hash="md5"), "csr_signature_weak"),
        ("sha-1-and-broken", make_csr(key, name("device-1"), signature_hash="sha1", break_signature=True),
         "csr_signature_bad"),
        ("md5-rsa-and-broken", make_csr(rsa_key(), name("device-1"), signature_hash="md5", break_signature=True),
         "csr_signature_bad"),
    ]  # fmt: skip


BAD_CSRS: list[tuple[str, bytes, str]] = _cases()
"""(id, DER, the code it must be refused with)."""
