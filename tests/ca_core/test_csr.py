"""PKCS#10 requests: what is read from good ones, and for what the bad ones are refused."""

import ast
import dataclasses
import hashlib
import inspect
import os
import random
import warnings
from collections.abc import Callable

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ed25519, mldsa, padding
from hypothesis import HealthCheck, given, note, seed, settings
from hypothesis import strategies as st

from ca_core import csr as csr_module
from ca_core import csr_names, csr_parts, csr_signature
from ca_core import public_key as public_key_module
from ca_core.codes import CODES
from ca_core.csr import MAX_DER, MAX_NAMES, ParsedCsr
from ca_core.csr_names import canonical_san, canonical_subject, is_text
from ca_core.errors import BadKey, MalformedRequest, PopFailed, Refusal, TooLarge
from tests.helpers import bad_csr as make
from tests.helpers.bad_csr import (
    BAD_CSRS,
    PrivateKey,
    bit_string,
    ec_key,
    good_csr,
    make_csr,
    name,
    rdn,
    rsa_key,
    spki_of,
    utf8,
)

SEED = int(os.environ.get("ENROLLD_FUZZ_SEED", "0")) or random.SystemRandom().randrange(2**32)

# Each sentence that a peer may read, with the cases of `BAD_CSRS` that it is true for.
SENTENCES: list[tuple[type[Refusal], str, str]] = [
    (MalformedRequest, "The body is not a PKCS#10 request in DER.",
     ("empty text truncated-by-one truncated-in-half one-byte ber-indefinite-length length-of-4-gib "
      "length-of-126-octets nested-4000-deep long-form-of-a-short-length certificate-like-sequence version-huge "
      "version-negative attributes-left-out attribute-without-set attribute-that-is-null cn-bmp-of-odd-length "
      "cn-bmp-lone-surrogate")),
    (MalformedRequest, "Bytes follow the end of the PKCS#10 request.", "trailing-byte two-requests"),
    (TooLarge, "The PKCS#10 request is longer than 16384 bytes.", "larger-than-16-kib"),
    (MalformedRequest, "The PKCS#10 request is not of version 1 (the integer 0).", "version-2"),
    (MalformedRequest, "The CSR asks for the extension 2.5.29.17 twice.", "duplicate-extension"),
    (MalformedRequest, "The CSR must hold one value of extensionRequest.",
     "two-extension-requests extension-request-with-two-values extension-request-without-value"),
    (MalformedRequest, "The CSR's extensionRequest is empty.", "extension-request-without-extensions"),
    (MalformedRequest, "The CSR's subjectAltName is empty.", "empty-san"),
    (MalformedRequest, "The CSR's extensionRequest can't be read.",
     ("extension-request-of-a-string empty-eku san-of-garbage san-followed-by-garbage san-of-five-octets-ip "
      "basic-constraints-of-a-string empty-key-usage dns-latin-1")),
    (MalformedRequest, "An iPAddress in the CSR is not the address of a host.", "san-of-a-network"),
    (MalformedRequest, "An attribute of the CSR has no value.", "empty-attribute-set"),
    (MalformedRequest, "The CSR must hold one value of challengePassword.",
     "challenge-empty-set challenge-of-two-values challenge-twice"),
    (MalformedRequest, "The CSR's challengePassword is not a string.", "challenge-integer challenge-sequence"),
    (MalformedRequest, "The CSR's challengePassword is longer than 255 bytes.", "challenge-of-256-bytes"),
    (MalformedRequest, "The CSR's challengePassword holds characters that its type can't hold.",
     "challenge-not-utf8 challenge-printable-not-ascii"),
    (MalformedRequest, "The CSR's estIdentityLinking is not a string.", "identity-linking-integer"),
    (MalformedRequest, "The CSR's common name (CN) is not of 1 to 64 bytes.", "cn-of-65 cn-empty"),
    (MalformedRequest, "A value in the CSR's subject is longer than 255 characters.",
     "cn-of-5000 organization-of-300"),
    (MalformedRequest, "The CSR's subject holds control or formatting characters.",
     ("cn-with-nul cn-with-newline cn-with-escape cn-with-delete cn-with-c1-control cn-right-to-left-override "
      "cn-zero-width-space cn-variation-selector cn-hangul-filler cn-line-separator organization-with-newline")),
    (MalformedRequest, "The CSR's subject can't be read.", "cn-not-utf8 cn-integer cn-bit-string empty-rdn"),
    (MalformedRequest, "The CSR's subject has two common names (CN).", "two-cns"),
    (MalformedRequest, "The CSR's common name (CN) shares its RDN with another value.",
     "two-cns-in-one-rdn multi-valued-rdn"),
    (MalformedRequest, "A dNSName in the CSR is not a host name.",
     ("dns-with-nul dns-with-newline dns-with-escape dns-not-ascii dns-right-to-left dns-star dns-wildcard "
      "dns-embedded-space dns-empty dns-empty-label dns-trailing-dot dns-leading-hyphen dns-label-of-64 dns-of-255 "
      "dns-invalid-punycode dns-punycode-of-a-control dns-punycode-of-an-invisible")),
    (MalformedRequest, "A uniformResourceIdentifier in the CSR is not a URI.",
     "uri-with-space uri-with-newline uri-without-scheme"),
    (MalformedRequest, "An rfc822Name in the CSR is not a mailbox.", "email-with-nul"),
    (MalformedRequest, "A directoryName in the CSR holds control characters.", "dirname-with-newline"),
    (MalformedRequest, "The CSR asks for a kind of name that can't be read.", "san-x400-address"),
    (MalformedRequest, "The CSR asks for 101 names; at most 100 are read.", "sans-101"),
    (MalformedRequest, "The CSR asks for 600 names; at most 100 are read.", "sans-600"),
    (BadKey, "The RSA key has 1024 bits, less than the 2048 it needs.", "rsa-1024"),
    (BadKey, "The RSA key has 15 bits, less than the 2048 it needs.", "rsa-15-bit"),
    (BadKey, "The RSA key has 2047 bits, less than the 2048 it needs.", "rsa-2047"),
    (BadKey, "The RSA key has 4097 bits, more than the 4096 accepted here.", "rsa-4097"),
    (BadKey, "The RSA key has 16384 bits, more than the 4096 accepted here.", "rsa-16384"),
    (BadKey, "The RSA key's modulus is even.", "rsa-even-modulus"),
    (BadKey, "The RSA key's public exponent is not 65537.",
     "rsa-exponent-3 rsa-exponent-1 rsa-exponent-even rsa-exponent-huge"),
    (BadKey, "The public key is not a valid key.",
     ("rsa-negative-modulus rsa-zero-modulus rsa-key-of-garbage ec-point-off-curve ec-point-at-infinity "
      "ed25519-of-31-octets ml-dsa-cut-off")),
    (BadKey, "The RSA key's modulus has a small prime factor.", "rsa-small-factor"),
    (BadKey, "The RSA key was made by a broken generator (ROCA, CVE-2017-15361).", "rsa-roca"),
    (BadKey, "The RSA key's primes are so close together that anybody finds them.", "rsa-close-primes"),
    (BadKey, "The Ed25519 key is a point of small order.", "ed25519-identity"),
    (BadKey, "The public key is restricted to RSASSA-PSS, which is not accepted here.", "rsa-pss-only-key"),
    (BadKey, "The public key is not on a curve that is named as P-256, P-384 or P-521.",
     "ec-explicit-curve ec-p192 ec-secp256k1"),
    (BadKey, "The public key is of a kind that is not accepted here.", "ed448 unknown-key-algorithm"),
    (PopFailed, "The CSR is not signed with its own key.",
     "signature-over-other-bytes signed-by-another-key signature-is-garbage sha-1-and-broken md5-rsa-and-broken"),
    (PopFailed, "The CSR's signature is of a kind that its key can't make.", "signed-by-another-kind"),
    (PopFailed, "The CSR's signature algorithm is not one that is known here.", "signature-algorithm-unknown"),
    (PopFailed, "The CSR is signed with SHA-1, which is not allowed.", "sha-1 sha-1-rsa"),
    (PopFailed, "The CSR is signed with MD5, which is not allowed.", "md5-rsa"),
]  # fmt: skip
EXPECTED = {case: (kind, sentence) for kind, sentence, cases in SENTENCES for case in cases.split()}


@pytest.mark.parametrize(("case", "der", "code"), [pytest.param(*row, id=row[0]) for row in BAD_CSRS])
def test_bad_request_is_refused_for_its_own_reason(case: str, der: bytes, code: str) -> None:
    with pytest.raises(Refusal) as caught:
        ParsedCsr.parse(der)
    assert (caught.value.code, type(caught.value), caught.value.message) == (code, *EXPECTED[case])


KINDS: dict[str, tuple[Callable[[], PrivateKey], str, str]] = {
    # kind: (how it is made, how it is described, the hash of its signatures)
    "rsa-2048": (rsa_key, "RSA 2048", "sha256"),
    "p-256": (ec_key, "EC P-256", "sha256"),
    "ed25519": (ed25519.Ed25519PrivateKey.generate, "Ed25519", "sha512"),
    "ml-dsa-44": (mldsa.MLDSA44PrivateKey.generate, "ML-DSA-44", "shake256"),
    "ml-dsa-65": (mldsa.MLDSA65PrivateKey.generate, "ML-DSA-65", "shake256"),
    "ml-dsa-87": (mldsa.MLDSA87PrivateKey.generate, "ML-DSA-87", "shake256"),
}


@pytest.mark.parametrize("kind", KINDS)
def test_case_18_each_kind_of_key_must_have_signed_its_request(kind: str) -> None:
    make_key, described, hash_name = KINDS[kind]
    key, another = make_key(), make_key()
    for bad in (
        make_csr(key, name("device-1"), break_signature=True),
        make_csr(another, name("device-1"), spki=spki_of(key)) if another is not key else good_csr(key)[:-4] + b"none",
    ):
        with pytest.raises(PopFailed) as caught:
            ParsedCsr.parse(bad)
        assert (caught.value.code, caught.value.message) == (
            "csr_signature_bad",
            "The CSR is not signed with its own key.",
        )
    csr = ParsedCsr.parse(make_csr(key, name("device-1")))
    assert (csr.key, csr.signature_hash, csr.public_key) == (described, hash_name, key.public_key())


@pytest.mark.parametrize("kind", KINDS)
def test_signature_of_another_kind_than_the_key_proves_nothing(kind: str) -> None:
    key = KINDS[kind][0]()
    for other in KINDS:
        if other != kind:
            with pytest.raises(PopFailed) as caught:
                ParsedCsr.parse(make_csr(KINDS[other][0](), name("device-1"), spki=spki_of(key)))
            assert caught.value.message == "The CSR's signature is of a kind that its key can't make."


def test_every_bad_request_has_its_sentence() -> None:
    assert [case for case, _, _ in BAD_CSRS] == list(dict.fromkeys(case for case, _, _ in BAD_CSRS))
    assert set(EXPECTED) == {case for case, _, _ in BAD_CSRS}


def test_every_code_that_the_csr_reader_raises_is_reached() -> None:
    raised = {
        node.value
        for module in (csr_module, csr_names, csr_parts, csr_signature, public_key_module)
        for node in ast.walk(ast.parse(inspect.getsource(module)))
        if isinstance(node, ast.Constant) and node.value in CODES
    }
    # Debian's keys are known by a list alone (tests/ca_core/test_weak_keys.py).
    assert raised == {code for _, _, code in BAD_CSRS} | {"key_debian"}


def asking(*extensions: bytes) -> bytes:
    return make_csr(ec_key(), name("device-1"), make.extension_request(*extensions))


def with_subject(*rdns: bytes, cn: str | bytes | None = "device-1") -> bytes:
    return make_csr(ec_key(), name(cn, *rdns))


def with_attributes(*attributes: bytes) -> bytes:
    return make_csr(ec_key(), name("device-1"), *attributes)


def padded_to(size: int) -> bytes:
    """A good request of exactly this many bytes, filled up with an attribute that nobody knows."""
    key = rsa_key()  # whose signatures, unlike ECDSA's, have one length
    short = make_csr(key, name("device-1"), make.attribute("1.2.3.4", make.octets(b"x" * 10000)))
    der = make_csr(key, name("device-1"), make.attribute("1.2.3.4", make.octets(b"x" * (10000 + size - len(short)))))
    assert len(der) == size
    return der


TWO_ATTRIBUTES = [make.extension_request(make.san(make.dns("a"))), make.challenge("x")]

# The twins: what lies on the good side of each limit.
GOOD_CSRS: dict[str, Callable[[], bytes]] = {
    "p-256": lambda: good_csr(ec_key()),
    "p-384": lambda: good_csr(ec_key("secp384r1")),
    "p-521": lambda: good_csr(ec_key("secp521r1")),
    "p-384-signing-with-sha-384": lambda: good_csr(ec_key("secp384r1"), signature_hash="sha384"),
    "rsa-2048": lambda: good_csr(rsa_key(2048)),
    "rsa-3072": lambda: good_csr(rsa_key(3072)),
    "rsa-4096": lambda: good_csr(rsa_key(4096)),
    "empty-subject": lambda: good_csr(cn=None),
    "cn-of-64": lambda: good_csr(cn="x" * 64),
    "cn-not-ascii": lambda: good_csr(cn="Gerät 1 (東京)"),
    "cn-with-comma": lambda: good_csr(cn="a,CN=b"),
    "cn-bmp-string": lambda: with_subject(cn=make.tlv(0x1E, "device-1".encode("utf-16-be"))),
    "organization-of-255": lambda: with_subject(make.rdn((make.ORGANIZATION, make.utf8("x" * 255)))),
    "organization-with-wide-space": lambda: with_subject(make.rdn((make.ORGANIZATION, make.utf8("東京\u3000支店")))),
    "country-of-three-letters": lambda: with_subject(make.rdn((make.COUNTRY, make.printable("USA")))),
    "two-organizations": lambda: with_subject(*[make.rdn((make.ORGANIZATION, make.utf8("x")))] * 2),
    "sans-100": lambda: good_csr(sans=[f"d{n}.example.com" for n in range(MAX_NAMES)]),
    "dns-label-of-63": lambda: good_csr(sans=["a" * 63]),
    "dns-of-253": lambda: good_csr(sans=[".".join(["a" * 50] * 4 + ["a" * 49])]),
    "dns-with-underscore": lambda: good_csr(sans=["_device_1.example.com"]),
    "dns-punycode": lambda: good_csr(sans=["xn--gert-loa.example.com"]),
    "dns-digits": lambda: good_csr(sans=["1.example.com"]),
    "uri": lambda: asking(make.san(make.tlv(0x86, b"urn:dev:mac:0024befffe804ff1"))),
    "email": lambda: asking(make.san(make.tlv(0x81, b"device@example.com"))),
    "dirname": lambda: asking(make.san(make.tlv(0xA4, name("x" * 65)))),
    "one-extended-key-usage": lambda: asking(
        make.extension(make.EXTENDED_KEY_USAGE, make.sequence(make.oid("1.3.6.1.5.5.7.3.2")))
    ),
    "unknown-extension": lambda: asking(make.extension("1.2.3.4", b"\xff\xa4")),
    "unknown-attribute": lambda: with_attributes(make.attribute("1.2.3.4", make.utf8("a"), make.integer(1))),
    "challenge-of-255": lambda: good_csr(challenge_password="x" * 255),
    "attributes-out-of-order": lambda: with_attributes(*sorted(TWO_ATTRIBUTES, reverse=True)),
    "challenge-and-extension-request": lambda: good_csr(sans=["a"], challenge_password="x"),
    "compressed-point": lambda: make_csr(
        ec_key(),
        name("device-1"),
        spki=make.ec_spki(
            "1.2.840.10045.3.1.7",
            ec_key().public_key().public_bytes(serialization.Encoding.X962, serialization.PublicFormat.CompressedPoint),
        ),
    ),
    "of-16-kib": lambda: padded_to(MAX_DER),
}


@pytest.mark.parametrize("case", GOOD_CSRS)
def test_request_on_the_good_side_of_a_limit_is_read(case: str) -> None:
    der = GOOD_CSRS[case]()
    assert ParsedCsr.parse(der).der == der


def test_one_byte_more_than_16_kib_is_too_large() -> None:
    with pytest.raises(TooLarge, match=r"^The PKCS#10 request is longer than 16384 bytes\.$"):
        ParsedCsr.parse(padded_to(MAX_DER + 1))


def test_everything_that_the_request_says_is_read() -> None:
    usage = make.extension(make.KEY_USAGE, make.tlv(0x03, b"\x05\xa0"), critical=True)
    names = make.san(
        make.dns("B.Example.com"),
        make.dns("a.example.com"),
        make.dns("b.example.COM"),
        make.tlv(0x87, bytes([10, 0, 0, 7])),
        make.tlv(0x87, bytes(15) + b"\1"),
        make.tlv(0x86, b"urn:x:y"),
        make.tlv(0x81, b"d@example.com"),
        make.tlv(0xA0, make.oid("1.3.6.1.4.1.311.20.2.3"), make.tlv(0xA0, make.utf8("admin@example.com"))),
        make.tlv(0x88, make.oid("1.2.3.4")[2:]),
        make.tlv(0xA4, name("x")),
    )
    purposes = make.extension(
        make.EXTENDED_KEY_USAGE, make.sequence(make.oid("1.3.6.1.5.5.7.3.2"), make.oid("2.5.29.37.0"))
    )
    der = make_csr(
        ec_key(),
        name("device-1", make.rdn((make.ORGANIZATION, make.printable("Example, Inc.")))),
        make.challenge("secret"),
        make.attribute(make.IDENTITY_LINKING, make.utf8("link")),
        make.extension_request(usage, names, purposes),
    )
    csr = ParsedCsr.parse(der)
    assert csr.common_name == "device-1"
    assert [(a.oid.dotted_string, a.value) for a in csr.subject] == [
        ("2.5.4.3", "device-1"),
        ("2.5.4.10", "Example, Inc."),
    ]
    assert csr.san == (
        "DNS:a.example.com",
        "DNS:b.example.com",
        "IP:10.0.0.7",
        "IP:::1",
        "URI:urn:x:y",
        "dir:CN=x",
        "email:d@example.com",
        "other:1.3.6.1.4.1.311.20.2.3",
        "rid:1.2.3.4",
    )
    assert csr.extended_key_usages == ("1.3.6.1.5.5.7.3.2", "2.5.29.37.0")
    assert (csr.challenge_password, csr.identity_linking) == ("secret", "link")
    assert (csr.key, csr.signature_hash, csr.ca_requested) == ("EC P-256", "sha256", False)
    assert csr.public_key == ec_key().public_key()
    assert csr.spki == make.spki_of(ec_key())
    assert csr.spki_sha256 == hashlib.sha256(csr.spki).digest()


def test_attributes_out_of_order_are_read_all_the_same() -> None:
    in_order, reverse = (
        ParsedCsr.parse(with_attributes(*attributes))
        for attributes in (sorted(TWO_ATTRIBUTES), sorted(TWO_ATTRIBUTES, reverse=True))
    )
    assert in_order.der != reverse.der
    for csr in (in_order, reverse):
        assert (csr.san, csr.challenge_password) == (("DNS:a",), "x")


def test_attributes_out_of_order_are_under_the_signature_as_sent() -> None:
    swapped = with_attributes(*sorted(TWO_ATTRIBUTES)).replace(
        b"".join(sorted(TWO_ATTRIBUTES)), b"".join(sorted(TWO_ATTRIBUTES, reverse=True))
    )
    with pytest.raises(PopFailed, match=r"^The CSR is not signed with its own key\.$"):
        ParsedCsr.parse(swapped)


@pytest.mark.parametrize(
    ("value", "text"),
    [
        pytest.param(make.printable("abc="), "abc=", id="printable"),
        pytest.param(make.utf8("äbc"), "äbc", id="utf8"),
        pytest.param(make.ia5(b"abc_"), "abc_", id="ia5"),
        pytest.param(make.tlv(0x14, b"\xe4bc"), "äbc", id="t61"),
        pytest.param(make.printable(""), "", id="empty"),
    ],
)
def test_challenge_password_is_carried_in_any_string_type(value: bytes, text: str) -> None:
    assert ParsedCsr.parse(with_attributes(make.challenge(value))).challenge_password == text


def test_request_without_challenge_password_has_none() -> None:
    assert ParsedCsr.parse(good_csr()).challenge_password is None


def test_challenge_password_is_not_shown() -> None:
    assert "hunter2" not in repr(ParsedCsr.parse(good_csr(challenge_password="hunter2")))


@pytest.mark.parametrize(
    ("extension", "asked"),
    [
        pytest.param(make.extension(make.BASIC_CONSTRAINTS, make.sequence(make.bool_true())), True, id="ca-true"),
        pytest.param(make.extension(make.BASIC_CONSTRAINTS, make.sequence()), False, id="ca-false"),
        pytest.param(make.extension(make.KEY_USAGE, make.tlv(0x03, b"\x02\x04")), True, id="key-cert-sign"),
        pytest.param(make.extension(make.KEY_USAGE, make.tlv(0x03, b"\x01\x02")), True, id="crl-sign"),
        pytest.param(make.extension(make.KEY_USAGE, make.tlv(0x03, b"\x07\x80")), False, id="digital-signature"),
    ],
)
def test_asking_for_a_ca_certificate_is_seen(extension: bytes, asked: bool) -> None:
    assert ParsedCsr.parse(asking(extension)).ca_requested is asked


def test_the_same_key_in_a_compressed_point_has_the_same_hash() -> None:
    plain, compressed = ParsedCsr.parse(good_csr()), ParsedCsr.parse(GOOD_CSRS["compressed-point"]())
    assert plain.spki_sha256 == compressed.spki_sha256


def test_names_hash_is_the_same_for_the_same_names() -> None:
    one = make_csr(
        ec_key(), name("device-1"), make.extension_request(make.san(make.dns("a"), make.dns("b.example.com")))
    )
    other = make_csr(
        rsa_key(),
        name(make.printable("device-1")),
        make.challenge("x"),
        make.extension_request(make.san(make.dns("B.example.com"), make.dns("A"))),
    )
    assert ParsedCsr.parse(one).names_hash == ParsedCsr.parse(other).names_hash


@pytest.mark.parametrize(
    "other",
    [
        pytest.param(lambda: good_csr(cn="device-2", sans=["a"]), id="other-cn"),
        pytest.param(lambda: good_csr(cn="device-1", sans=["b"]), id="other-san"),
        pytest.param(lambda: good_csr(cn="device-1"), id="no-san"),
        pytest.param(lambda: good_csr(cn=None, sans=["a"]), id="no-subject"),
        pytest.param(lambda: good_csr(cn="device-1", sans=["a", "b"]), id="more-names"),
    ],
)
def test_names_hash_differs_for_other_names(other: Callable[[], bytes]) -> None:
    assert ParsedCsr.parse(other()).names_hash != ParsedCsr.parse(good_csr(sans=["a"])).names_hash


def test_canonical_subject_tells_apart_what_only_looks_alike() -> None:
    def subject(*pairs: tuple[x509.ObjectIdentifier, str]) -> bytes:
        return canonical_subject(x509.Name([x509.NameAttribute(kind, value) for kind, value in pairs]))

    cn, organization = x509.NameOID.COMMON_NAME, x509.NameOID.ORGANIZATION_NAME
    assert subject((cn, "a"), (organization, "b")) != subject((organization, "b"), (cn, "a"))
    assert subject((cn, "a+12.5.4.10=1:b")) != subject((cn, "a"), (organization, "b"))


def test_canonical_san_reads_the_names_of_a_certificate_alike() -> None:
    of_certificate = x509.SubjectAlternativeName([x509.DNSName("B.example.com"), x509.DNSName("a.example.com")])
    csr = ParsedCsr.parse(good_csr(sans=["a.example.com", "b.example.com"]))
    assert canonical_san(of_certificate) == csr.san


def test_rsa_pss_signature_is_proof_of_possession() -> None:
    builder = x509.CertificateSigningRequestBuilder(x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "d")]))
    pss = padding.PSS(mgf=padding.MGF1(hashes.SHA256()), salt_length=32)
    der = builder.sign(rsa_key(), hashes.SHA256(), rsa_padding=pss).public_bytes(serialization.Encoding.DER)
    assert ParsedCsr.parse(der).key == "RSA 2048"


def test_reading_leaves_the_warning_filters_as_they_were() -> None:
    before = list(warnings.filters)
    for case in ("dirname", "country-of-three-letters", "p-256"):
        ParsedCsr.parse(GOOD_CSRS[case]())
    assert list(warnings.filters) == before


FUZZ_BASE = [
    good_csr(sans=["a.example.com"], challenge_password="abc"),
    asking(
        make.san(make.tlv(0xA4, name("x")), make.tlv(0x87, b"\1\2\3\4"), make.tlv(0xA0, make.oid("1.2.3"), b"\xa0\0")),
        make.extension(make.BASIC_CONSTRAINTS, make.sequence(make.bool_true())),
    ),
    good_csr(rsa_key(), sans=["a"]),
    *(der for _, der, _ in BAD_CSRS if 0 < len(der) <= 2048),
]


def read(der: bytes) -> ParsedCsr | Refusal:
    try:
        return ParsedCsr.parse(der)
    except Refusal as refusal:
        return refusal


@seed(SEED)
@settings(max_examples=1500, deadline=None, database=None, suppress_health_check=list(HealthCheck))
@given(
    base=st.sampled_from(FUZZ_BASE),
    edits=st.lists(st.tuples(st.integers(0, 2**16), st.integers(0, 255), st.integers(0, 3)), min_size=1, max_size=4),
)
def test_any_mutation_is_read_or_refused(base: bytes, edits: list[tuple[int, int, int]]) -> None:
    der = bytearray(base)
    for position, value, kind in edits:
        at = position % (len(der) + 1)
        if kind == 0:
            der[at : at + 1] = bytes([value])
        elif kind == 1:
            der[at:at] = bytes([value])
        elif kind == 2:
            del der[at : at + 1 + value % 8]
        else:
            der[at : at + 1] = bytes([der[at] ^ (1 << value % 8)]) if at < len(der) else b""
    note(f"ENROLLD_FUZZ_SEED={SEED}")
    outcome = read(bytes(der))
    assert outcome.message.isprintable() if isinstance(outcome, Refusal) else outcome.der == der


@seed(SEED)
@settings(max_examples=500, deadline=None, database=None)
@given(der=st.binary(max_size=300))
def test_any_bytes_are_refused(der: bytes) -> None:
    note(f"ENROLLD_FUZZ_SEED={SEED}")
    with pytest.raises(Refusal):
        ParsedCsr.parse(der)


@seed(SEED)
@settings(max_examples=800, deadline=None, database=None, suppress_health_check=list(HealthCheck))
@given(
    value=st.binary(max_size=40),
    kind=st.sampled_from(
        [make.SAN, make.KEY_USAGE, make.BASIC_CONSTRAINTS, make.EXTENDED_KEY_USAGE, "2.5.29.35", "2.5.29.31",
         "2.5.29.32", "2.5.29.30", "1.3.6.1.5.5.7.1.1", "1.3.6.1.5.5.7.1.24", "1.3.6.1.4.1.311.20.2"]
    ),
    general_name=st.integers(0x80, 0xA8),
    wrapped=st.booleans(),
)  # fmt: skip
def test_any_extension_in_a_well_signed_request_is_read_or_refused(
    value: bytes, kind: str, general_name: int, wrapped: bool
) -> None:
    note(f"ENROLLD_FUZZ_SEED={SEED}")
    content = make.sequence(make.tlv(general_name, value)) if wrapped else value
    outcome = read(asking(make.extension(kind, content)))
    if isinstance(outcome, Refusal):
        assert outcome.code in ("csr_extension_malformed", "csr_name_malformed")
    else:
        assert all(text.isprintable() for text in outcome.san)


@seed(SEED)
@settings(max_examples=500, deadline=None, database=None)
@given(value=st.binary(max_size=80), tag=st.sampled_from([0x0C, 0x13, 0x14, 0x16, 0x1C, 0x1E, 0x03, 0x12, 0x02]),
       kind=st.sampled_from(["2.5.4.3", "2.5.4.6", "2.5.4.5", "2.5.4.45", "1.2.3"]))  # fmt: skip
def test_any_subject_in_a_well_signed_request_is_read_or_refused(value: bytes, tag: int, kind: str) -> None:
    note(f"ENROLLD_FUZZ_SEED={SEED}")
    outcome = read(make_csr(ec_key(), make.sequence(make.rdn((kind, make.tlv(tag, value))))))
    if isinstance(outcome, Refusal):
        assert outcome.code in ("csr_name_malformed", "not_pkcs10")
    else:
        assert outcome.common_name is None or outcome.common_name.isprintable()


def test_an_attribute_that_stands_in_an_rdn_as_text_and_as_bits_is_read() -> None:
    """It was compared as text with bytes: anybody could have a 500 for it."""
    identifier = "2.5.4.45"  # x500UniqueIdentifier
    subject = name("device-1", rdn((identifier, bit_string(b"\x01")), (identifier, utf8("one"))))
    assert ParsedCsr.parse(make_csr(ec_key(), subject)).common_name == "device-1"


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("sans", [(), ("a.example.com",)], ids=["no-names", "names"])
def test_case_47_a_request_is_kept_without_its_secrets_and_is_the_same_when_it_is_recalled(
    kind: str, sans: tuple[str, ...]
) -> None:
    asked = [make.challenge("one-time-secret"), make.attribute(make.IDENTITY_LINKING, utf8("another-secret"))]
    if sans:
        asked.append(make.extension_request(make.san(*map(make.dns, sans))))
    parsed = ParsedCsr.parse(make_csr(KINDS[kind][0](), name("device-1"), *sorted(asked)))
    assert (parsed.challenge_password, parsed.identity_linking) == ("one-time-secret", "another-secret")
    kept = parsed.kept_form
    assert b"secret" not in kept
    recalled = ParsedCsr.recall(kept)
    without = dataclasses.replace(parsed, der=kept, challenge_password=None, identity_linking=None)
    assert told(recalled) == told(without)
    assert recalled.kept_form == kept
    with pytest.raises(PopFailed) as caught:
        ParsedCsr.parse(kept)
    assert caught.value.code == "csr_signature_bad"


def told(csr: ParsedCsr) -> dict[str, object]:
    return {each.name: getattr(csr, each.name) for each in dataclasses.fields(csr) if each.name != "public_key"}


def test_a_request_that_is_recalled_is_judged_by_the_rules_of_now() -> None:
    kept = ParsedCsr.parse(good_csr(rsa_key(), signature_hash="sha1"), allow_sha1=True).kept_form
    assert ParsedCsr.recall(kept, allow_sha1=True).signature_hash == "sha1"
    with pytest.raises(PopFailed) as caught:
        ParsedCsr.recall(kept)
    assert caught.value.code == "csr_signature_weak"
    with pytest.raises(MalformedRequest):
        ParsedCsr.recall(kept[:-1])


@pytest.mark.parametrize(
    "character",
    [
        "\u034f",
        "\u115f",
        "\u1160",
        "\u17b4",
        "\u17b5",
        "\u1806",
        "\u180b",
        "\u180f",
        "\u2800",
        "\u3164",
        "\ufe00",
        "\ufe0f",
        "\uffa0",
        "\ufff0",
        "\ufff8",
        "\ufffc",
        "\ufffd",
        "\U0001d159",
        "\U000e0000",
        "\U000e0100",
        "\U000e01ef",
        "\U000e0fff",
        "\u00ad",
        "\u200b",
        "\u2060",
        "\ufeff",
        "\u202e",
        "\u2028",
        "\x00",
        "\x7f",
        "\x9f",
        "\u0378",
        "\ue000",
    ],
    ids=ascii,
)
def test_what_is_shown_as_nothing_is_no_text(character: str) -> None:
    assert not is_text(f"pump{character}")
    assert not is_text(character)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "pump",
        "a b",
        "M\u00fcller & S\u00f6hne",
        "Mu\u0308ller",
        "\u30ab\u30e1\u30e9\u3000\uff11",
        "\ud55c\uad6d",
        "\u1112\u1161\u11ab",
        "\u0a95",
        "\u00a0",
        "\u2801",
        "\U0001f4f7",
        "\ufdfd",
    ],
    ids=ascii,
)
def test_twin_what_is_shown_is_text(text: str) -> None:
    assert is_text(text)
