"""Attack cases 1 to 13: what can't be read, or must not be, is refused by its reason, and the honest twin is served.

Both protocols see the same requests: EST in its body, SCEP in the envelope of a pkiMessage. The depth is elsewhere
(tests/ca_core/test_csr.py, tests/scep_server); here each case has its number, a real daemon, and the reason compared.
"""

import base64
import gzip
import importlib.metadata
import json
import subprocess
import sys
import zlib
from collections.abc import Callable

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import NameOID

from tests.attack_cases.field import BAD_MESSAGE_CHECK, BAD_REQUEST, EST, SCEP, Field, scep_post, workers
from tests.attack_cases.talk import PATIENCE, connected, hear
from tests.end_to_end import wire
from tests.helpers import bad_csr
from tests.helpers.bad_csr import (
    COMMON_NAME,
    EXTENDED_KEY_USAGE,
    ORGANIZATION,
    SAN,
    attribute,
    challenge,
    dns,
    extension,
    extension_request,
    ia5,
    integer,
    name,
    octets,
    oid,
    rdn,
    san,
    sequence,
    tlv,
    utf8,
)
from tests.scep_server.client import SIGNED, content_info, make_certificate, to_ber

Bend = Callable[[Field, str], bytes]
"""Makes the bad CSR of a field for a protocol."""

protocols = pytest.mark.parametrize("protocol", [EST, SCEP])


def bent(*cases: tuple[str, Bend, str]) -> pytest.MarkDecorator:
    """A table of (id, bend, code)."""
    return pytest.mark.parametrize(("bend", "code"), [pytest.param(bend, code, id=case) for case, bend, code in cases])


def asking(*extensions: bytes) -> Bend:
    """The honest CSR, with an extensionRequest."""
    return lambda field, protocol: field.csr(extension_request(*extensions), protocol=protocol)


def having(*attributes: bytes) -> Bend:
    """The honest CSR, with more attributes."""
    return lambda field, protocol: field.csr(*attributes, protocol=protocol)


def called(make: Callable[[str], bytes]) -> Bend:
    """The honest CSR with a subject made of the device's name."""
    return lambda field, protocol: field.csr(protocol=protocol, subject=make(field.name_in(protocol)))


def holds(certificate: x509.Certificate, *forbidden: bytes) -> list[bytes]:
    """Which of these stand in the certificate."""
    der = certificate.public_bytes(Encoding.DER)
    return [each for each in forbidden if each in der]


def names_in(certificate: x509.Certificate) -> list[x509.GeneralName]:
    """The subject alternative names, none where there is no such extension."""
    return [
        name
        for extension in certificate.extensions
        if isinstance(extension.value, x509.SubjectAlternativeName)
        for name in extension.value
    ]


# --- 1 ----------------------------------------------------------------------------------------------------------------


def nested(depth: int) -> bytes:
    der = b""
    for _ in range(depth):
        der = sequence(der)
    return der


def indefinite(der: bytes) -> bytes:
    """The same with an indefinite length outside, which is BER."""
    return b"\x30\x80" + der[4:] + b"\0\0"


def sent(bend: Callable[[bytes], bytes]) -> Bend:
    """The honest CSR's bytes, bent."""
    return lambda field, protocol: bend(field.csr(protocol=protocol))


@protocols
@pytest.mark.parametrize(
    ("bend", "code", "in_scep"),
    [
        # What is no SEQUENCE to its end is, in an envelope, what a wrong key makes: nobody is told the difference.
        pytest.param(sent(lambda der: der[:-1]), "not_pkcs10", "scep_envelope_bad", id="truncated"),
        pytest.param(sent(lambda der: der[:150]), "not_pkcs10", "scep_envelope_bad", id="cut-in-half"),
        pytest.param(sent(lambda der: der + b"\0"), "trailing_data", "scep_envelope_bad", id="trailing-byte"),
        pytest.param(
            sent(lambda der: b"\x30\x85\1\0\0\0\0" + der), "not_pkcs10", "scep_envelope_bad", id="length-2-to-the-32"
        ),
        pytest.param(sent(indefinite), "not_pkcs10", "not_pkcs10", id="ber-indefinite-length"),
        pytest.param(sent(lambda _der: nested(3500)), "not_pkcs10", "not_pkcs10", id="nested-3500-deep"),
    ],
)
def test_case_01_a_request_that_is_not_der_is_refused(
    field: Field, protocol: str, bend: Bend, code: str, in_scep: str
) -> None:
    expected = code if protocol == EST else in_scep
    field.assert_csr_refused(bend(field, protocol), protocol, expected, fail_info=BAD_MESSAGE_CHECK)
    field.assert_served(protocol=protocol)


def test_case_01_twenty_thousand_nested_sequences_are_refused(field: Field) -> None:
    deep = b"\x30\x80" * 20_000 + b"\0\0" * 20_000  # BER, since in DER they would be over every cap
    field.assert_refused(field.est(field.enroll_request(wire.body_of(deep))), 413, "body_too_large")
    field.assert_refused(field.scep(deep), 400, "scep_not_cms")
    field.assert_served()


def pieces(content: bytes, depth: int) -> bytes:
    """An OCTET STRING in BER, in a piece in a piece, so many deep."""
    made = octets(content)
    for _ in range(depth):
        made = b"\x24\x80" + made + b"\0\0"
    return made


def in_pieces(message: bytes, depth: int) -> bytes:
    """The pkiMessage with its content in pieces. What is signed are the content's octets, so that it still holds."""
    at = message.index(bytes.fromhex("06092a864886f70d010701")) + 11  # id-data, in encapContentInfo
    tagged = whole(message, at)
    assert tagged[:1] == b"\xa0"
    string = whole(message, at + header(message, at))
    content = string[header(string, 0) :]
    inner = bytes.fromhex("06092a864886f70d010701") + b"\xa0\x80" + pieces(content, depth) + b"\0\0"
    start = at - 11 - header_before(message, at - 11)
    rest = message[at + len(tagged) :]
    opened = message[:start]
    # the three elements around it (ContentInfo, [0], SignedData) get an indefinite length each
    signed_at = opened.index(bytes.fromhex("06092a864886f70d010702")) + 11
    body_at = signed_at + header(message, signed_at)
    inside = body_at + header(message, body_at)
    return b"".join(
        (
            b"\x30\x80" + bytes.fromhex("06092a864886f70d010702") + b"\xa0\x80\x30\x80",
            opened[inside:],
            b"\x30\x80" + inner + b"\0\0",
            rest,
            b"\0\0" * 3,
        )
    )


def header(der: bytes, at: int) -> int:
    """How long tag and length are."""
    return 2 + (der[at + 1] & 0x7F if der[at + 1] & 0x80 else 0)


def header_before(der: bytes, at: int) -> int:
    """The same of the element whose content begins here."""
    return next(size for size in (4, 3, 2) if der[at - size] == 0x30 and header(der, at - size) == size)


def whole(der: bytes, at: int) -> bytes:
    size = der[at + 1]
    length = int.from_bytes(der[at + 2 : at + 2 + (size & 0x7F)], "big") if size & 0x80 else size
    return der[at : at + header(der, at) + length]


def test_case_01_a_message_in_pieces_within_pieces_is_read_to_a_depth_only(field: Field) -> None:
    message = field.message(field.csr(protocol=SCEP))
    field.certificate_in(field.scep(in_pieces(message, 4)), SCEP)  # the twin: the same, four deep
    field.assert_refused(field.scep(in_pieces(message, 60)), 400, "scep_not_cms")


def test_case_01_a_message_in_too_many_pieces_is_refused(field: Field) -> None:
    message = field.message(field.csr(protocol=SCEP), certificates=padded_bag(field))
    field.certificate_in(field.scep(to_ber(message, 100)), SCEP)  # the twin: the same, in larger pieces
    field.assert_refused(field.scep(to_ber(message, 1)), 400, "scep_not_cms")


def padded_bag(field: Field) -> list[bytes]:
    own = make_certificate(field.rsa_key.public_key())
    # A certificate of no meaning with a long OCTET STRING in it, so that its pieces can be many.
    return [own, sequence(sequence(integer(1)), octets(b"x" * 12_000))]


def test_case_01_bytes_after_a_message_are_refused(field: Field) -> None:
    message = field.message(field.csr(protocol=SCEP))
    field.assert_refused(field.scep(message + b"\0"), 400, "scep_not_cms")
    field.assert_refused(field.scep(message[:-1]), 400, "scep_not_cms")
    field.certificate_in(field.scep(message), SCEP)  # the twin


# --- 2 ----------------------------------------------------------------------------------------------------------------


@protocols
@bent(
    ("extended-key-usage", asking(extension(EXTENDED_KEY_USAGE, sequence())), "csr_extension_malformed"),
    ("subject-alternative-name", asking(extension(SAN, sequence())), "csr_extension_malformed"),
    ("extension-request", having(extension_request()), "csr_extension_malformed"),
    ("extension-requests-values", having(attribute(bad_csr.EXTENSION_REQUEST)), "csr_extension_malformed"),
    ("attributes-values", having(attribute("1.2.3.4")), "csr_attribute_malformed"),
)
def test_case_02_an_empty_sequence_where_one_element_is_assumed_is_refused(
    field: Field, protocol: str, bend: Bend, code: str
) -> None:
    field.assert_csr_refused(bend(field, protocol), protocol, code)
    twin = field.csr(extension_request(san(dns("a.example"))), attribute("1.2.3.4", utf8("x")), protocol=protocol)
    field.assert_served(twin, protocol)


# --- 3 ----------------------------------------------------------------------------------------------------------------

ONLY_THE_OID = bytes.fromhex("300b06092a864886f70d010702")
"""A ContentInfo of the type SignedData without any content: 13 bytes that ended cryptography 41.0.5."""

ALIVE = """
import contextlib, sys
from cryptography.hazmat.primitives.serialization import pkcs7
from ca_core.csr import ParsedCsr
from ca_core.errors import Refusal
from scep_server.cms import read_certificate, read_enveloped, read_signed
from scep_server.message import open_request
data = bytes.fromhex(sys.argv[1])
for read in (pkcs7.load_der_pkcs7_certificates, ParsedCsr.parse, read_signed, read_enveloped, read_certificate,
             open_request):
    try:
        read(data)
    except (ValueError, Refusal) as refused:
        print(read.__name__, type(refused).__name__)
    else:
        print(read.__name__, "read it")
print("alive")
"""


def test_case_03_a_signed_data_that_is_only_its_oid_ends_no_process() -> None:
    assert len(ONLY_THE_OID) == 13
    done = subprocess.run(
        [sys.executable, "-c", ALIVE, ONLY_THE_OID.hex()], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, f"ended with {done.returncode}: {done.stderr}"
    said = done.stdout.splitlines()
    assert said[-1] == "alive"
    assert len(said) == 7
    assert "read it" not in done.stdout
    assert tuple(map(int, importlib.metadata.version("cryptography").split(".")[:3])) > (41, 0, 5)


def test_case_03_the_worker_that_is_sent_one_goes_on(field: Field) -> None:
    before = workers(field.daemon)
    field.assert_refused(field.est(field.enroll_request(wire.body_of(ONLY_THE_OID))), 400, "not_pkcs10")
    field.assert_refused(field.scep(ONLY_THE_OID), 400, "scep_not_cms")
    field.assert_failed(
        field.scep(field.request(b"", content=ONLY_THE_OID).encode()), "scep_not_enveloped", BAD_REQUEST
    )
    field.assert_csr_refused(ONLY_THE_OID, SCEP, "not_pkcs10", fail_info=BAD_MESSAGE_CHECK)
    field.assert_refused(field.scep(content_info(SIGNED, sequence())), 400, "scep_not_cms")
    assert workers(field.daemon) == before, "a worker died"
    field.assert_served()


# --- 4 ----------------------------------------------------------------------------------------------------------------


@protocols
@bent(
    ("in-one-request", asking(san(dns("a.example")), san(dns("b.example"))), "csr_duplicate_extension"),
    (
        "in-two-requests",
        having(extension_request(san(dns("a.example"))), extension_request(san(dns("b.example")))),
        "csr_extension_malformed",
    ),
)
def test_case_04_an_extension_that_is_asked_for_twice_is_refused(
    field: Field, protocol: str, bend: Bend, code: str
) -> None:
    field.assert_csr_refused(bend(field, protocol), protocol, code)
    field.assert_served(asking(san(dns("a.example"), dns("b.example")))(field, protocol), protocol)


# --- 5, 6, 7 ----------------------------------------------------------------------------------------------------------

BAD_NAME = "csr_name_malformed"


def dns_name(value: str | bytes) -> Bend:
    return asking(san(dns(value)))


@protocols
@bent(
    ("common-name", called(lambda own: name(f"{own}\0.evil.example")), BAD_NAME),
    ("common-name-ends-in-one", called(lambda own: name(f"{own}\0")), BAD_NAME),
    ("organization", called(lambda own: name(own, rdn((ORGANIZATION, utf8("a\0b"))))), BAD_NAME),
    ("dns-name", dns_name(b"good.example\0.evil.example"), BAD_NAME),
    ("rfc822-name", asking(san(tlv(0x81, b"a@good.example\0.evil.example"))), BAD_NAME),
    ("uri", asking(san(tlv(0x86, b"urn:a\0b"))), BAD_NAME),
)
def test_case_05_a_nul_in_a_name_is_refused(field: Field, protocol: str, bend: Bend, code: str) -> None:
    line = field.assert_csr_refused(bend(field, protocol), protocol, code)
    assert "evil" not in json.dumps(line)
    twin = field.csr(extension_request(san(dns("good.example"), tlv(0x86, b"urn:a:b"))), protocol=protocol)
    field.assert_served(twin, protocol)


@protocols
@bent(
    ("utf-8", dns_name("caf\u00e9.example"), BAD_NAME),
    ("latin-1", dns_name(b"caf\xe9.example"), "csr_extension_malformed"),
    ("punycode-of-nothing", dns_name("xn--\u005f\u005f\u005f.example"), BAD_NAME),
    ("punycode-of-ascii", dns_name("xn--abc-.example"), BAD_NAME),
    ("punycode-of-a-control", dns_name("xn--" + "a\u202e".encode("punycode").decode() + ".example"), BAD_NAME),
    ("trailing-dot", dns_name("a.example."), BAD_NAME),
    ("wildcard", dns_name("*.example.com"), BAD_NAME),
    ("only-a-star", dns_name("*"), BAD_NAME),
    ("star-and-dot", dns_name("*."), BAD_NAME),
    ("embedded-space", dns_name("a b.example"), BAD_NAME),
    ("empty-label", dns_name("a..example"), BAD_NAME),
)
def test_case_06_what_is_no_host_name_is_refused_as_a_dns_name(
    field: Field, protocol: str, bend: Bend, code: str
) -> None:
    field.assert_csr_refused(bend(field, protocol), protocol, code)
    # The twins: upper case is the same name, and a label of IDNA in its one spelling is a name.
    label = "b\u00fccher".encode("idna").decode()
    field.assert_served(asking(san(dns("A.EXAMPLE"), dns(f"{label}.example")))(field, protocol), protocol)


@protocols
@bent(
    ("newline", called(lambda own: name(f"{own}\nlevel=error")), BAD_NAME),
    ("carriage-return", called(lambda own: name(f"{own}\r")), BAD_NAME),
    ("escape", called(lambda own: name(f"\x1b[31m{own}")), BAD_NAME),
    ("right-to-left-override", called(lambda own: name(f"\u202e{own}")), BAD_NAME),
    ("line-separator", called(lambda own: name(own, rdn((ORGANIZATION, utf8("a\u2028b"))))), BAD_NAME),
    ("newline-in-the-organization", called(lambda own: name(own, rdn((ORGANIZATION, utf8("a\nb"))))), BAD_NAME),
    ("newline-in-a-directory-name", asking(san(tlv(0xA4, name("a\nlevel=error")))), BAD_NAME),
)
def test_case_07_what_could_forge_a_log_line_is_refused_and_logged_in_one_line(
    field: Field, protocol: str, bend: Bend, code: str
) -> None:
    line = field.assert_csr_refused(bend(field, protocol), protocol, code)
    assert "level=error" not in json.dumps(line)
    field.assert_served(asking(san(tlv(0xA4, name("a, level=error"))))(field, protocol), protocol)


def test_case_07_a_path_and_a_user_name_reach_the_log_escaped(field: Field) -> None:
    forged = '\n{"log.level":"error"}\x1b[2J'
    for authorization in (wire.basic(forged, field.secret), wire.basic(field.name + forged, "no.secret")):
        request = wire.enroll_request(
            wire.body_of(field.csr()), path="/.well-known/est/simpleenroll", authorization=authorization
        )
        heard = field.est(request)
        assert heard.only.status == 401
        field.line(heard.only.request_id)
    for path in (b"%0a%1b%5b2J", b"%1b%5b2J", b"%e2%80%ae"):
        heard = field.est(b"GET /.well-known/est/" + path + b"/cacerts?%0d%0a HTTP/1.1\r\nHost: localhost\r\n\r\n")
        field.assert_refused(heard, 404, "realm_unknown")
    field.assert_served()


# --- 8 ----------------------------------------------------------------------------------------------------------------


def challenged(text: str) -> Bend:
    """The honest CSR, with this challengePassword and no other."""
    return lambda field, protocol: bad_csr.make_csr(
        field.key if protocol == EST else field.rsa_key, name(field.name_in(protocol)), challenge(text)
    )


MANY = [dns(f"d{number}") for number in range(2000)]


@protocols
@bent(
    ("common-name-of-5000", called(lambda own: name(own.ljust(5000, "x"))), BAD_NAME),
    ("common-name-of-65", called(lambda own: name(own.ljust(65, "x"))), BAD_NAME),
    ("organization-of-256", called(lambda own: name(own, rdn((ORGANIZATION, utf8("x" * 256))))), BAD_NAME),
    (
        "subject-of-101-parts",
        called(lambda own: name(own, *(rdn((ORGANIZATION, utf8("x"))) for _ in range(100)))),
        "csr_too_many_names",
    ),
    ("2000-names", asking(san(*MANY)), "csr_too_many_names"),
    ("challenge-of-256", challenged("x" * 256), "csr_attribute_malformed"),
    (
        "33-attributes",
        having(*(attribute(f"1.2.3.{number}", utf8("x")) for number in range(33))),
        "csr_attribute_malformed",
    ),
)
def test_case_08_what_is_longer_than_anything_honest_is_refused(
    field: Field, protocol: str, bend: Bend, code: str
) -> None:
    field.assert_csr_refused(bend(field, protocol), protocol, code)
    most = name(field.name_in(protocol), *(rdn((ORGANIZATION, utf8("x" * 255))) for _ in range(20)))
    twin = field.csr(
        extension_request(san(*MANY[:100])),
        *(attribute(f"1.2.3.{number}", utf8("x")) for number in range(30)),
        protocol=protocol,
        subject=most,
    )
    field.assert_served(twin, protocol)


@pytest.mark.parametrize("size", [17_000, 100_000])
def test_case_08_a_request_over_16_kib_is_refused(field: Field, size: int) -> None:
    long = field.csr(attribute("1.2.3.4", octets(b"x" * size)))
    code, words = "body_too_large", "PKCS#10" if size < 40_000 else "body"
    field.assert_refused(field.est(field.enroll_request(wire.body_of(long))), 413, code, words=words)
    field.assert_refused(field.est(field.enroll_request(wire.body_of(field.csr(challenge("x" * size))))), 413, code)
    in_scep = field.csr(attribute("1.2.3.4", octets(b"x" * size)), protocol=SCEP)
    field.assert_failed(field.scep(field.message(in_scep)), "scep_too_large", BAD_REQUEST)
    twin = field.csr(attribute("1.2.3.4", octets(b"x" * 15_000)))
    field.assert_served(twin, EST)
    field.assert_served(field.csr(attribute("1.2.3.4", octets(b"x" * 15_000)), protocol=SCEP), SCEP)


# --- 9, 10, 11: what the certificate says -----------------------------------------------------------------------------


@protocols
@bent(
    ("two-common-names", called(lambda own: name(own, rdn((COMMON_NAME, utf8("other"))))), BAD_NAME),
    ("two-the-other-way", called(lambda own: name("other", rdn((COMMON_NAME, utf8(own))))), BAD_NAME),
    (
        "two-in-one-rdn",
        called(lambda own: sequence(rdn((COMMON_NAME, utf8(own)), (COMMON_NAME, utf8("other"))))),
        BAD_NAME,
    ),
    (
        "common-name-in-a-multi-valued-rdn",
        called(lambda own: sequence(rdn((COMMON_NAME, utf8(own)), (ORGANIZATION, utf8("Example"))))),
        BAD_NAME,
    ),
)
def test_case_09_a_subject_that_could_be_two_names_is_refused(
    field: Field, protocol: str, bend: Bend, code: str
) -> None:
    field.assert_csr_refused(bend(field, protocol), protocol, code)
    field.assert_served(protocol=protocol)


@protocols
def test_case_09_the_identity_is_the_one_in_der_and_never_a_split_string(field: Field, protocol: str) -> None:
    other = "someone-else"
    field.registered(f"{field.name}-{other}")
    for text in (f"{field.name_in(protocol)},CN={other}", f"{other},CN={field.name_in(protocol)}"):
        csr = field.csr(protocol=protocol, subject=name(text))
        status = 403 if protocol == EST else 0
        field.assert_csr_refused(csr, protocol, "subject_mismatch", status=status, fail_info=BAD_REQUEST)
    # The twin: what looks like another CN is a value of the organization, and of no certificate.
    subject = name(field.name_in(protocol), rdn((ORGANIZATION, utf8(f"x,CN={other}\\,+CN={other}"))))
    certificate = field.assert_served(field.csr(protocol=protocol, subject=subject), protocol)
    assert [value.value for value in certificate.subject] == [field.name_in(protocol)]
    assert certificate.subject.get_attributes_for_oid(NameOID.COMMON_NAME)[0].value == field.name_in(protocol)
    (row,) = field.daemon.inspect(lambda core: core.certificates.list(device=field.name_in(protocol), limit=9))
    assert row.subject == f"CN={field.name_in(protocol)}"


UPN = tlv(0xA0, oid("1.3.6.1.4.1.311.20.2.3"), tlv(0xA0, utf8("administrator@victim.example")))
SID = extension("1.3.6.1.4.1.311.25.2", sequence(tlv(0xA0, oid("1.3.6.1.4.1.311.25.2.1"), tlv(0xA0, octets(b"S-1-5")))))
FOREIGN_NAMES = [
    pytest.param(san(tlv(0xA0, oid("1.2.3.4"), tlv(0xA0, utf8("victim")))), id="other-name"),
    pytest.param(san(UPN), id="upn"),
    pytest.param(san(tlv(0x81, b"root@victim.example")), id="rfc822-name"),
    pytest.param(san(tlv(0x86, b"spiffe://victim.example/root")), id="uri"),
    pytest.param(san(dns("victim.example")), id="dns-name"),
    pytest.param(san(tlv(0x87, b"\xc0\x00\x02\x07")), id="ip-address"),
    pytest.param(san(tlv(0xA4, name("victim"))), id="directory-name"),
    pytest.param(san(tlv(0x88, bytes([0x2A, 3, 4]))), id="registered-id"),
    pytest.param(SID, id="sid-extension"),
]


@protocols
@pytest.mark.parametrize("foreign", FOREIGN_NAMES)
def test_case_10_a_name_that_no_profile_gives_never_reaches_a_certificate(
    field: Field, protocol: str, foreign: bytes
) -> None:
    certificate = field.assert_served(field.csr(extension_request(foreign), protocol=protocol), protocol)
    assert not holds(certificate, b"victim", b"\xc0\x00\x02\x07", b"S-1-5", bytes([0x88, 3, 0x2A, 3, 4]))
    assert names_in(certificate) == []
    assert {found.oid.dotted_string for found in certificate.extensions} <= ISSUED
    (row,) = field.daemon.inspect(lambda core: core.certificates.list(device=field.name_in(protocol), limit=9))
    assert row.names == []


ISSUED = {"2.5.29.14", "2.5.29.15", "2.5.29.19", "2.5.29.31", "2.5.29.35", "2.5.29.37", "1.3.6.1.5.5.7.1.1"}


@protocols
def test_case_10_a_certificate_has_the_names_of_the_devices_record_whatever_is_asked(
    field: Field, protocol: str
) -> None:
    handed = f"{field.name}-with-a-name"
    own = f"{handed}.example"
    secret = field.registered(handed, sans=[f"DNS:{own}"])
    asked = extension_request(san(dns("victim.example"), dns(own)))
    if protocol == EST:
        csr = bad_csr.make_csr(field.key, name(handed), asked)
        field.authorization = wire.basic(handed, secret)
    else:
        csr = bad_csr.make_csr(field.rsa_key, name(handed), *sorted([asked, challenge(secret)]))
    certificate = field.assert_served(csr, protocol)
    assert names_in(certificate) == [x509.DNSName(own)]


@protocols
@pytest.mark.parametrize(
    ("version", "code"),
    [
        pytest.param(integer(1), "csr_version", id="2"),
        pytest.param(integer(2), "csr_version", id="3"),
        pytest.param(integer(2**64), "not_pkcs10", id="huge"),
        pytest.param(b"\x02\x01\xff", "not_pkcs10", id="negative"),
    ],
)
def test_case_11_another_version_than_the_one_is_refused(
    field: Field, protocol: str, version: bytes, code: str
) -> None:
    field.assert_csr_refused(field.csr(protocol=protocol, version=version), protocol, code)
    field.assert_served(field.csr(protocol=protocol, version=integer(0)), protocol)


@protocols
def test_case_11_unknown_attributes_are_kept_out_of_the_certificate(field: Field, protocol: str) -> None:
    unknown = [
        attribute("1.2.3.4", utf8("victim")),
        attribute("1.2.3.5", utf8("victim-1"), utf8("victim-2")),
        attribute("1.2.840.113549.1.9.2", ia5(b"victim")),  # unstructuredName
        attribute("1.2.840.113549.1.9.14", sequence(extension("1.2.3.6", utf8("victim")))),
    ]
    certificate = field.assert_served(field.csr(*unknown, protocol=protocol), protocol)
    assert not holds(certificate, b"victim")
    assert {found.oid.dotted_string for found in certificate.extensions} <= ISSUED


# --- 12, 13: the body -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("bend", "status", "code"),
    [
        pytest.param(lambda _text: b"\r\n" * 30_000, 400, "body_empty", id="line-flood"),
        pytest.param(lambda _text: b" " * 60_000, 400, "body_empty", id="white-space-alone"),
        pytest.param(lambda text: text.rstrip(b"=\n")[:-1], 400, "not_base64", id="missing-padding"),
        pytest.param(lambda text: text[:100] + b"=" + text[100:], 400, "not_base64", id="padding-in-the-middle"),
        pytest.param(lambda text: text + b"\0", 400, "not_base64", id="nul"),
        pytest.param(lambda text: text + b" " * 70_000, 413, "body_too_large", id="white-space-over-the-cap"),
    ],
)
def test_case_12_base64_that_is_none_is_refused(
    field: Field, bend: Callable[[bytes], bytes], status: int, code: str
) -> None:
    good = base64.b64encode(field.csr())
    field.assert_refused(field.est(field.enroll_request(bend(good))), status, code)
    # The twin: white space anywhere is as good as none.
    spread = b"\r\n".join(good[start : start + 1] for start in range(len(good))) + b"\n" * 1000
    field.certificate_in(field.est(field.enroll_request(spread)), EST)


@pytest.mark.parametrize(
    "rest",
    [
        pytest.param(1, id="two-are-due"),
        pytest.param(2, id="one-is-due"),
        pytest.param(0, id="none-is-due"),
    ],
)
def test_case_12_more_padding_than_is_due_is_refused(field: Field, rest: int) -> None:
    csr = field.csr()
    while len(csr) % 3 != rest:  # a signature is a byte longer or shorter
        csr = field.csr()
    good = base64.b64encode(csr)
    for more in (b"=", b"==", b"====", b"=" * 30_000):
        field.assert_refused(field.est(field.enroll_request(good + more)), 400, "not_base64")
    field.certificate_in(field.est(field.enroll_request(good)), EST)


@pytest.mark.parametrize("length", ["1073741824", "9223372036854775807", "65537"])
def test_case_12_a_body_that_is_announced_too_long_is_refused_before_it_comes(field: Field, length: str) -> None:
    heard = field.est(field.enroll_request(b"", Content_Length=length))
    field.assert_refused(heard, 413, "body_too_large")
    if length != "65537":
        field.assert_refused(field.scep(b"", Content_Length=length), 413, "scep_too_large")
    field.assert_refused(field.scep(b"", Content_Length="131073"), 413, "scep_too_large")
    field.assert_served()


@pytest.mark.parametrize(
    ("coding", "compress"),
    [
        pytest.param("gzip", gzip.compress, id="gzip"),
        pytest.param("x-gzip", gzip.compress, id="x-gzip"),
        pytest.param("deflate", zlib.compress, id="deflate"),
        pytest.param("br", lambda body: body, id="br"),
        pytest.param("gzip, identity", gzip.compress, id="gzip-and-identity"),
    ],
)
def test_case_12_a_compressed_body_is_never_decoded(
    field: Field, coding: str, compress: Callable[[bytes], bytes]
) -> None:
    bomb = compress(b"\n" * 50_000_000) if coding != "br" else b"x"
    body = wire.body_of(field.csr())
    message = field.message(field.csr(protocol=SCEP))
    for sent in (compress(body), bomb):
        heard = field.est(field.enroll_request(sent, Content_Encoding=coding))
        field.assert_refused(heard, 415, "content_coding_unsupported")
    for sent in (compress(message), bomb):
        heard = field.scep(sent, Content_Encoding=coding)
        field.assert_refused(heard, 415, "content_coding_unsupported")
    twin = field.est(field.enroll_request(body, Content_Encoding="identity"))
    field.certificate_in(twin, EST)
    field.certificate_in(field.scep(message, Content_Encoding="identity"), SCEP)


def test_case_12_a_body_in_a_transfer_coding_that_compresses_is_not_read(field: Field) -> None:
    for coding in ("gzip, chunked", "deflate, chunked", "x, chunked"):
        for head, ask in (
            (head_of(field.enroll_request(b"")), field.est),
            (head_of(scep_post(b"")), field.http),
        ):
            bent_head = head.replace(b": chunked", f": {coding}".encode())
            packed = chunked(gzip.compress(wire.body_of(field.csr()))) + b"0\r\n\r\n"
            field.assert_refused(ask(bent_head + packed), 415, "content_coding_unsupported")
    good = field.est(head_of(field.enroll_request(b"")) + chunked(wire.body_of(field.csr())) + b"0\r\n\r\n")
    field.certificate_in(good, EST)


def chunked(*chunks: bytes) -> bytes:
    return b"".join(b"%x\r\n%b\r\n" % (len(chunk), chunk) for chunk in chunks)


def head_of(request: bytes) -> bytes:
    """The head of a request, with a chunked body to come."""
    head, _, _ = request.partition(b"\r\n\r\n")
    lines = [line for line in head.split(b"\r\n") if not line.lower().startswith(b"content-length")]
    return b"\r\n".join([*lines, b"Transfer-Encoding: chunked"]) + b"\r\n\r\n"


@protocols
def test_case_13_a_chunked_body_is_refused_at_the_cap_and_not_at_its_end(field: Field, protocol: str) -> None:
    if protocol == EST:
        port, tls, head = field.daemon.https_port, field.tls, head_of(field.enroll_request(b""))
        code, words, cap = "body_too_large", "The body", 64 * 1024
    else:
        port, tls, head = field.daemon.http_port, None, head_of(scep_post(b""))
        code, words, cap = "scep_too_large", "The message", 128 * 1024
    with connected(port, tls=tls, source=field.source) as connection:
        # One chunk more than may be, and no last chunk: who waits for the end waits for ever.
        connection.sendall(head + chunked(*[b"A" * 8192] * (cap // 8192), b"A"))
        heard = hear(connection, answers=1, seconds=PATIENCE)
    assert heard.answers, "a body over the cap is read on"
    field.assert_refused(heard, 413, code, words=words)
    # The twins: chunked as well, and at the cap.
    if protocol == EST:
        body = wire.body_of(field.csr())
        body += b"\n" * (cap - len(body))
        good = field.est(head + chunked(*(body[at : at + 8192] for at in range(0, cap, 8192))) + b"0\r\n\r\n")
    else:
        message = field.message(field.csr(protocol=SCEP))
        good = field.http(head + chunked(message[:1000], message[1000:]) + b"0\r\n\r\n")
    field.certificate_in(good, protocol)
