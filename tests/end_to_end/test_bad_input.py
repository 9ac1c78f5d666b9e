"""Whatever is wrong gets its 4xx with one true sentence and a request id; nothing is issued, and the server goes on.

A table of cases, over real sockets and verified TLS. Each has a twin that differs in nothing but the fault, and passes:
it is asked right after, so that it shows at the same time that the daemon still serves. The reason is compared, as the
operator reads it (`enrolld explain REQUEST-ID`), and not only the status.
"""

import base64
import datetime as dt
import gzip
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from ca_core.rows import CertificateRow
from certs.demo_pki import DemoPki, IDevId
from tests.end_to_end import wire
from tests.helpers import bad_csr
from tests.helpers.daemon import Daemon, eventually

SENTENCE = re.compile(r"[A-Z][\x20-\x7e]+\. \(request [0-9a-z-]+\)\n")


@dataclass(frozen=True, slots=True)
class Ask:
    """A request, and what the client shows in TLS."""

    request: bytes
    certificate: Path | None = None
    key: Path | None = None


class Floor:
    """What a case stands on: the daemon, a new device with its secret and key, and the demo PKI."""

    def __init__(self, daemon: Daemon, pki: DemoPki, folder: Path, name: str) -> None:
        self.daemon = daemon
        self.pki = pki
        self.folder = folder
        self.name = name
        self.key = ec.generate_private_key(ec.SECP256R1())
        self.secret = self.registered(name)
        self.authorization = wire.basic(name, self.secret)

    def registered(self, name: str, serial_number: str | None = None, manufacturer: str | None = None) -> str:
        """Register a device, and return its secret."""
        handed = self.daemon.inspect(
            lambda core: core.devices.add(
                "default", name, serial_number=serial_number, manufacturer=manufacturer, actor="test"
            )
        )
        return handed.secret

    def certificates(self) -> list[CertificateRow]:
        """What `cert list` shows of the device."""
        return list(self.daemon.inspect(lambda core: core.certificates.list(device=self.name, limit=100)))

    def csr(self) -> bytes:
        return wire.csr(self.key, self.name)

    def good(self) -> Ask:
        """What every case is one fault away from."""
        return self.body(wire.body_of(self.csr()))

    def body(self, body: bytes, **headers: str) -> Ask:
        """The good request with another body, and perhaps other headers."""
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        return Ask(wire.enroll_request(body, authorization=self.authorization, headers=named))

    def der(self, der: bytes) -> Ask:
        return self.body(wire.body_of(der))

    def authorized(self, authorization: str | None) -> Ask:
        """The good request with other credentials."""
        return Ask(wire.enroll_request(wire.body_of(self.csr()), authorization=authorization))

    def showing(self, certificate: Path, key: Path, operation: str = "simpleenroll") -> Ask:
        """The good request, with a client certificate instead of the secret."""
        path = f"/.well-known/est/{operation}"
        return Ask(wire.enroll_request(wire.body_of(self.csr()), path=path), certificate, key)

    def ask(self, ask: Ask) -> wire.Answer:
        tls = wire.context(self.daemon.root, certificate=ask.certificate, key=ask.key)
        return wire.exchange(self.daemon.https_port, tls, ask.request)

    def enrolled(self) -> tuple[Path, Path]:
        """Enroll the device, and return its certificate and key as files."""
        return self.write_own(self.ask(self.good()).certificate)

    def write_own(self, certificate: x509.Certificate) -> tuple[Path, Path]:
        """Write a certificate of the device's key, and the key."""
        files = self.folder / "own.pem", self.folder / "own.key"
        files[0].write_bytes(certificate.public_bytes(Encoding.PEM))
        files[1].write_bytes(self.key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
        return files

    def idevid(self, idevid: IDevId) -> None:
        """From here on, the device is one that is known by a factory identity."""
        anchors = self.daemon.inspect(lambda core: core.trust.list("default"))
        if self.pki.acme.name not in {anchor.name for anchor in anchors}:
            self.daemon.ask("trust", "add", "--for", "idevid", str(self.pki.acme.root))
        self.name = f"{self.name}-factory"
        self.registered(self.name, idevid.serial_number, self.pki.acme.name)

    def assert_refused(self, ask: Ask, status: int, code: str) -> None:
        """Ask, and hold all that a refusal promises."""
        before = self.certificates()
        answer = self.ask(ask)
        assert answer.status == status, answer.text
        assert answer.headers["content-type"].startswith("text/plain")
        assert SENTENCE.fullmatch(answer.text), f"not one plain sentence: {answer.text!r}"
        assert len(answer.text) < 400
        assert answer.headers.get("server", "enrolld") == "enrolld"  # no version
        if status == 401:
            assert answer.headers["www-authenticate"].startswith("Basic realm=")
        explained = self.daemon.explain(answer.request_id)
        assert explained["code"] == code, explained
        assert explained["outcome"] == "refused"
        assert explained["remedy"]
        assert self.certificates() == before

    def assert_granted(self, ask: Ask) -> None:
        """Ask the twin."""
        certificate = self.ask(ask).certificate
        serial = format(certificate.serial_number, "x")
        assert [row.status for row in self.certificates() if row.serial == serial] == ["valid"]


@pytest.fixture
def floor(daemon: Daemon, pki: DemoPki, tmp_path: Path, new_name: Callable[[], str]) -> Floor:
    return Floor(daemon, pki, tmp_path, new_name())


# --- the body and the CSR in it: the twin is the good request ---------------------------------------------------------


def chunked(*chunks: bytes, tail: bytes = b"0\r\n\r\n") -> bytes:
    return b"".join(f"{len(chunk):x}\r\n".encode() + chunk + b"\r\n" for chunk in chunks) + tail


def sent_chunked(floor: Floor, body: bytes) -> Ask:
    """The good request's head, without a Content-Length, and a body as it is."""
    head, _, _ = floor.good().request.partition(b"\r\n\r\n")
    lines = [line for line in head.split(b"\r\n") if not line.lower().startswith(b"content-length")]
    return Ask(b"\r\n".join([*lines, b"Transfer-Encoding: chunked"]) + b"\r\n\r\n" + body)


def asking_for(floor: Floor, *extensions: bytes) -> Ask:
    request = bad_csr.extension_request(*extensions)
    return floor.der(bad_csr.make_csr(floor.key, bad_csr.name(floor.name), request))


Fault = Callable[[Floor], Ask]

BODIES: list[tuple[str, Fault, int, str]] = [
    ("not-base64", lambda floor: floor.body(b"this is {not} base64!\n"), 400, "not_base64"),
    ("base64-without-its-padding", lambda floor: floor.body(b"AAAAA"), 400, "not_base64"),
    ("empty", lambda floor: floor.body(b""), 400, "body_empty"),
    ("not-der", lambda floor: floor.body(base64.b64encode(b"hello, world")), 400, "not_pkcs10"),
    ("not-pkcs10", lambda floor: floor.der(a_certificate(floor)), 400, "not_pkcs10"),
    ("truncated", lambda floor: floor.der(floor.csr()[:-1]), 400, "not_pkcs10"),
    ("trailing-bytes", lambda floor: floor.der(floor.csr() + b"\0\0"), 400, "trailing_data"),
    ("over-64-kib", lambda floor: floor.body(b"A" * (64 * 1024 + 1)), 413, "body_too_large"),
    ("chunked-over-the-cap", lambda floor: sent_chunked(floor, chunked(*[b"A" * 1024] * 65)), 413, "body_too_large"),
    (
        "gzip",
        lambda floor: floor.body(gzip.compress(wire.body_of(floor.csr())), Content_Encoding="gzip"),
        415,
        "content_coding_unsupported",
    ),
    (
        "another-content-type",
        lambda floor: floor.body(wire.body_of(floor.csr()), Content_Type="application/json"),
        415,
        "content_type_wrong",
    ),
    ("broken-signature", lambda floor: floor.der(broken_signature(floor)), 400, "csr_signature_bad"),
    ("rsa-1024", lambda floor: keyed(floor, bad_csr.rsa_key(1024)), 400, "key_too_small"),
    ("rsa-exponent-3", lambda floor: keyed(floor, bad_csr.rsa_key(2048, 3)), 400, "key_exponent"),
    ("point-off-curve", lambda floor: floor.der(off_curve(floor)), 400, "key_invalid"),
    ("ca-true", lambda floor: asking_for(floor, ca_true()), 403, "ca_requested"),
    ("key-cert-sign", lambda floor: asking_for(floor, key_cert_sign()), 403, "ca_requested"),
    ("ocsp-signing", lambda floor: asking_for(floor, purpose("1.3.6.1.5.5.7.3.9")), 403, "extension_not_allowed"),
    ("any-purpose", lambda floor: asking_for(floor, purpose("2.5.29.37.0")), 403, "extension_not_allowed"),
    (
        "duplicate-extension",
        lambda floor: asking_for(floor, bad_csr.san(bad_csr.dns("a")), bad_csr.san(bad_csr.dns("b"))),
        400,
        "csr_duplicate_extension",
    ),
    ("nul-in-the-name", lambda floor: named(floor, f"{floor.name}\0.example.com"), 400, "csr_name_malformed"),
    ("newline-in-the-name", lambda floor: named(floor, f"{floor.name}\nlevel=error"), 400, "csr_name_malformed"),
    (
        "nul-in-a-dns-name",
        lambda floor: asking_for(floor, bad_csr.san(bad_csr.dns(b"good.example\0.evil.example"))),
        400,
        "csr_name_malformed",
    ),
    ("another-devices-name", lambda floor: named(floor, another_device(floor)), 403, "subject_mismatch"),
    ("no-devices-name", lambda floor: named(floor, "nobody"), 403, "subject_mismatch"),
]


def a_certificate(floor: Floor) -> bytes:
    return x509.load_pem_x509_certificate(floor.daemon.root.read_bytes()).public_bytes(Encoding.DER)


def broken_signature(floor: Floor) -> bytes:
    return bad_csr.make_csr(floor.key, bad_csr.name(floor.name), break_signature=True)


def keyed(floor: Floor, key: bad_csr.PrivateKey) -> Ask:
    return floor.der(bad_csr.good_csr(key, floor.name))


def off_curve(floor: Floor) -> bytes:
    spki = bytearray(bad_csr.spki_of(floor.key))
    spki[-1] ^= 1
    return bad_csr.make_csr(floor.key, bad_csr.name(floor.name), spki=bytes(spki))


def named(floor: Floor, common_name: str) -> Ask:
    return floor.der(bad_csr.make_csr(floor.key, bad_csr.name(common_name)))


def another_device(floor: Floor) -> str:
    """The name of a device that is registered as well."""
    other = f"{floor.name}-neighbour"
    floor.registered(other)
    return other


def ca_true() -> bytes:
    return bad_csr.extension(bad_csr.BASIC_CONSTRAINTS, bad_csr.sequence(bad_csr.bool_true()), critical=True)


def key_cert_sign() -> bytes:
    return bad_csr.extension(bad_csr.KEY_USAGE, b"\x03\x02\x02\x04", critical=True)


def purpose(oid: str) -> bytes:
    return bad_csr.extension(bad_csr.EXTENDED_KEY_USAGE, bad_csr.sequence(bad_csr.oid(oid)))


@pytest.mark.parametrize(("fault", "status", "code"), [pytest.param(*case, id=name) for name, *case in BODIES])
def test_a_bad_body_is_refused_and_the_good_one_still_serves(
    floor: Floor, fault: Fault, status: int, code: str
) -> None:
    floor.assert_refused(fault(floor), status, code)
    floor.assert_granted(floor.good())


def test_a_good_body_may_be_chunked(floor: Floor) -> None:
    body = wire.body_of(floor.csr())
    floor.assert_granted(sent_chunked(floor, chunked(body[:100], body[100:])))


def test_a_name_that_is_not_in_the_devices_record_is_never_issued(floor: Floor) -> None:
    # design 4: the default realm drops what else a CSR asks for, and audits it
    certificate = floor.ask(asking_for(floor, bad_csr.san(bad_csr.dns("elsewhere.example")))).certificate
    assert b"elsewhere" not in certificate.public_bytes(Encoding.DER)
    (row,) = floor.certificates()
    assert row.names == []


def test_client_purposes_may_be_asked_for(floor: Floor) -> None:
    floor.assert_granted(asking_for(floor, purpose(ExtendedKeyUsageOID.CLIENT_AUTH.dotted_string)))


@pytest.mark.parametrize("bits", [2048, 3072])
def test_a_strong_rsa_key_is_good(floor: Floor, bits: int) -> None:
    floor.assert_granted(keyed(floor, rsa.generate_private_key(65537, bits)))


def test_every_hand_made_bad_csr_is_refused_over_the_wire(
    own_daemon: Daemon, pki: DemoPki, tmp_path: Path, new_name: Callable[[], str]
) -> None:
    floor = Floor(own_daemon, pki, tmp_path, new_name())
    for case, der, _ in bad_csr.BAD_CSRS:
        answer = floor.ask(floor.der(der))
        assert 400 <= answer.status < 500, case
        assert SENTENCE.fullmatch(answer.text), case
    assert own_daemon.command("cert", "list") == []
    floor.assert_granted(floor.good())


# --- secrets ----------------------------------------------------------------------------------------------------------


def wrong_secret(floor: Floor) -> Ask:
    replacement = "b" if floor.secret[-1] == "a" else "a"
    return floor.authorized(wire.basic(floor.name, floor.secret[:-1] + replacement))


def unknown_secret(floor: Floor) -> Ask:
    selector, dot, secret = floor.secret.partition(".")
    return floor.authorized(wire.basic(floor.name, selector[::-1] + dot + secret))


SECRETS: list[tuple[str, Fault, str]] = [
    ("no-credentials", lambda floor: floor.authorized(None), "credentials_missing"),
    ("not-base64", lambda floor: floor.authorized("Basic ***"), "credentials_malformed"),
    ("another-scheme", lambda floor: floor.authorized("Bearer abc"), "credentials_malformed"),
    ("wrong", wrong_secret, "secret_wrong"),
    ("unknown", unknown_secret, "secret_unknown"),
    ("empty", lambda floor: floor.authorized(wire.basic(floor.name, "")), "secret_unknown"),
    ("of-another-user", lambda floor: floor.authorized(wire.basic("somebody", floor.secret)), "secret_other_user"),
]


@pytest.mark.parametrize(("fault", "code"), [pytest.param(*case, id=name) for name, *case in SECRETS])
def test_a_bad_secret_is_refused_and_the_right_one_still_serves(floor: Floor, fault: Fault, code: str) -> None:
    floor.assert_refused(fault(floor), 401, code)
    floor.assert_granted(floor.good())


def test_a_secret_needs_no_user_name(floor: Floor) -> None:
    floor.assert_granted(floor.authorized(wire.basic("", floor.secret)))


def test_a_used_secret_is_refused_for_another_key(floor: Floor) -> None:
    floor.assert_granted(floor.good())
    floor.key = ec.generate_private_key(ec.SECP256R1())
    floor.assert_refused(floor.good(), 401, "secret_spent")


def test_an_expired_secret_is_refused(floor: Floor) -> None:
    floor.secret = floor.daemon.ask("device", "secret", floor.name, "--expires", "1s")["secret"]
    expires = dt.datetime.now(dt.UTC) + dt.timedelta(seconds=1.5)
    floor.authorization = wire.basic(floor.name, floor.secret)
    eventually(lambda: True if dt.datetime.now(dt.UTC) > expires else None, what="the secret's end")
    floor.assert_refused(floor.good(), 401, "secret_expired")
    floor.secret = floor.daemon.ask("device", "secret", floor.name, "--expires", "1h")["secret"]
    floor.authorization = wire.basic(floor.name, floor.secret)
    floor.assert_granted(floor.good())  # the twin


def test_a_replaced_secret_is_refused(floor: Floor) -> None:
    newer = floor.daemon.ask("device", "secret", floor.name)["secret"]
    floor.assert_refused(floor.good(), 401, "secret_void")
    floor.authorization = wire.basic(floor.name, newer)
    floor.assert_granted(floor.good())  # the twin


def test_every_bad_secret_is_told_the_same(floor: Floor) -> None:
    """Unknown, wrong, of another user, spent, replaced: whoever guesses learns nothing from the answer."""
    answers = [floor.ask(fault(floor)) for fault in (wrong_secret, unknown_secret, SECRETS[-1][1])]
    floor.assert_granted(floor.good())
    floor.key = ec.generate_private_key(ec.SECP256R1())
    answers.append(floor.ask(floor.good()))
    floor.daemon.ask("device", "secret", floor.name)
    answers.append(floor.ask(floor.good()))
    assert {answer.status for answer in answers} == {401}
    assert len({answer.text.replace(answer.request_id, "ID") for answer in answers}) == 1
    assert len({tuple(sorted({**answer.headers, "x-request-id": "", "date": ""}.items())) for answer in answers}) == 1


def test_a_suspended_device_is_refused_until_it_is_resumed(floor: Floor) -> None:
    floor.daemon.ask("device", "suspend", floor.name)
    floor.assert_refused(floor.good(), 403, "device_suspended")
    floor.daemon.ask("device", "resume", floor.name)
    floor.assert_granted(floor.good())  # the twin


# --- certificates -----------------------------------------------------------------------------------------------------


def test_a_certificate_of_another_ca_is_refused(floor: Floor) -> None:
    own, key = floor.enrolled()
    floor.assert_refused(
        floor.showing(*twin_of_another_ca(floor), operation="simplereenroll"), 401, "certificate_unknown"
    )
    floor.assert_granted(floor.showing(own, key, "simplereenroll"))  # the twin


def twin_of_another_ca(floor: Floor) -> tuple[Path, Path]:
    """A certificate with every name and number of the device's own, signed by a CA that calls itself as ours does."""
    own = x509.load_pem_x509_certificate((floor.folder / "own.pem").read_bytes())
    forger = ec.generate_private_key(ec.SECP256R1())
    forged = x509.CertificateBuilder(
        own.issuer,
        own.subject,
        floor.key.public_key(),
        own.serial_number,
        own.not_valid_before_utc,
        own.not_valid_after_utc,
        list(own.extensions),
    ).sign(forger, hashes.SHA256())
    path = floor.folder / "forged.pem"
    path.write_bytes(forged.public_bytes(Encoding.PEM))
    return path, floor.folder / "own.key"


def test_a_self_signed_certificate_is_refused(floor: Floor) -> None:
    now = dt.datetime.now(dt.UTC)
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, floor.name)])
    builder = x509.CertificateBuilder(name, name, floor.key.public_key(), 1, now, now + dt.timedelta(days=1))
    certificate, key = floor.folder / "self.pem", floor.folder / "self.key"
    certificate.write_bytes(builder.sign(floor.key, hashes.SHA256()).public_bytes(Encoding.PEM))
    key.write_bytes(floor.key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    floor.assert_refused(floor.showing(certificate, key), 401, "certificate_unknown")
    floor.assert_granted(floor.good())  # the twin


def test_a_revoked_certificate_is_refused(floor: Floor) -> None:
    own, key = floor.enrolled()
    renewal = floor.showing(own, key, "simplereenroll")
    floor.assert_granted(renewal)  # the twin
    serial = x509.load_pem_x509_certificate(own.read_bytes()).serial_number
    floor.daemon.ask("cert", "revoke", format(serial, "x"), "--reason", "keyCompromise")
    floor.assert_refused(renewal, 401, "certificate_revoked")


def test_an_expired_certificate_is_refused(floor: Floor) -> None:
    realm = f"brief-{floor.name}"
    floor.daemon.ask("realm", "add", realm)
    document = floor.daemon.text("realm", "export", realm)
    brief = floor.folder / "realm.toml"
    brief.write_text(re.sub(r'^validity = "[^"]*"$', 'validity = "10s"', document, flags=re.MULTILINE))
    floor.daemon.ask("realm", "apply", str(brief))
    secret = floor.daemon.ask("device", "add", floor.name, "--realm", realm)["secret"]

    def asking(operation: str, authorization: str | None = None) -> bytes:
        path = f"/.well-known/est/{realm}/{operation}"
        return wire.enroll_request(wire.body_of(floor.csr()), path=path, authorization=authorization)

    certificate = floor.ask(Ask(asking("simpleenroll", wire.basic(floor.name, secret)))).certificate
    own, key = floor.write_own(certificate)
    renewal = Ask(asking("simplereenroll"), own, key)
    floor.assert_granted(renewal)  # the twin
    end = certificate.not_valid_after_utc
    eventually(lambda: True if dt.datetime.now(dt.UTC) > end + dt.timedelta(seconds=1) else None, what="its end")
    floor.assert_refused(renewal, 401, "certificate_expired")


def test_a_certificate_with_which_nothing_was_enrolled_can_not_renew(floor: Floor, pki: DemoPki) -> None:
    idevid = pki.acme.make_device(floor.name, f"AC-{floor.name}")
    floor.idevid(idevid)
    floor.assert_refused(
        floor.showing(idevid.chain, idevid.key, "simplereenroll"), 403, "reenroll_needs_own_certificate"
    )
    floor.assert_granted(floor.showing(idevid.chain, idevid.key))  # the twin


def test_a_renewal_for_another_name_is_refused(floor: Floor) -> None:
    own, key = floor.enrolled()
    body = wire.body_of(wire.csr(floor.key, another_device(floor)))
    ask = Ask(wire.enroll_request(body, path="/.well-known/est/simplereenroll"), own, key)
    floor.assert_refused(ask, 400, "renewal_subject_mismatch")
    floor.assert_granted(floor.showing(own, key, "simplereenroll"))  # the twin


def test_an_idevid_without_its_sub_ca_is_refused(floor: Floor, pki: DemoPki) -> None:
    idevid = pki.acme.make_device(floor.name, f"AC-{floor.name}")
    floor.idevid(idevid)
    floor.assert_refused(floor.showing(idevid.certificate, idevid.key), 401, "chain_incomplete")
    floor.assert_granted(floor.showing(idevid.chain, idevid.key))  # the twin


def test_an_own_certificate_needs_no_chain(floor: Floor) -> None:
    own, key = floor.enrolled()
    assert own.read_text().count("BEGIN CERTIFICATE") == 1
    floor.assert_granted(floor.showing(own, key, "simplereenroll"))


def test_an_expired_idevid_is_refused(floor: Floor, pki: DemoPki) -> None:
    yesterday = dt.datetime.now(dt.UTC) - dt.timedelta(days=1)
    expired = pki.acme.make_device(
        f"{floor.name}-old", f"AC-{floor.name}", not_before=yesterday - dt.timedelta(days=9), not_after=yesterday
    )
    lasting = pki.acme.make_device(f"{floor.name}-new", f"AC-{floor.name}")
    floor.idevid(expired)
    floor.assert_refused(floor.showing(expired.chain, expired.key), 401, "certificate_expired")
    floor.assert_granted(floor.showing(lasting.chain, lasting.key))  # the twin


def test_an_idevid_for_servers_only_is_refused(floor: Floor, pki: DemoPki) -> None:
    serial = f"AC-{floor.name}"
    server = pki.acme.make_device(f"{floor.name}-server", serial, purposes=[ExtendedKeyUsageOID.SERVER_AUTH])
    client = pki.acme.make_device(f"{floor.name}-client", serial, purposes=[ExtendedKeyUsageOID.CLIENT_AUTH])
    floor.idevid(server)
    floor.assert_refused(floor.showing(server.chain, server.key), 401, "certificate_not_for_clients")
    floor.assert_granted(floor.showing(client.chain, client.key))  # the twin


def test_a_lookalike_manufacturers_device_is_refused(floor: Floor, pki: DemoPki) -> None:
    serial = f"AC-{floor.name}"
    impostor = pki.lookalike.make_device(floor.name, serial)
    genuine = pki.acme.make_device(floor.name, serial)
    floor.idevid(genuine)
    # its issuer has the name of the anchor's child, and the signature shows that it is not
    floor.assert_refused(floor.showing(impostor.chain, impostor.key), 401, "chain_invalid")
    floor.assert_granted(floor.showing(genuine.chain, genuine.key))  # the twin


def test_an_unregistered_device_of_a_trusted_manufacturer_is_refused(floor: Floor, pki: DemoPki) -> None:
    registered = pki.acme.make_device(f"{floor.name}-1", f"AC-{floor.name}-1")
    stranger = pki.acme.make_device(f"{floor.name}-2", f"AC-{floor.name}-2")
    floor.idevid(registered)
    floor.assert_refused(floor.showing(stranger.chain, stranger.key), 403, "device_unknown")
    floor.assert_granted(floor.showing(registered.chain, registered.key))  # the twin


# --- HTTP -------------------------------------------------------------------------------------------------------------


def long_request_line(floor: Floor) -> Ask:
    return Ask(floor.good().request.replace(b"/simpleenroll", b"/simpleenroll?" + b"a" * 100_000, 1))


def long_header(floor: Floor) -> Ask:
    return Ask(floor.good().request.replace(b"\r\n", b"\r\nX-Long: " + b"a" * 100_000 + b"\r\n", 1))


def two_lengths(floor: Floor) -> Ask:
    return Ask(floor.good().request.replace(b"\r\nContent-Length:", b"\r\nContent-Length: 3\r\nContent-Length:", 1))


def many_headers(floor: Floor) -> Ask:
    extra = b"".join(b"\r\nX-%d: 1" % number for number in range(100))
    return Ask(floor.good().request.replace(b"\r\nContent-Length", extra + b"\r\nContent-Length", 1))


def length_and_chunks(floor: Floor) -> Ask:
    request = sent_chunked(floor, chunked(wire.body_of(floor.csr()))).request
    return Ask(request.replace(b"\r\nTransfer-Encoding", b"\r\nContent-Length: 5\r\nTransfer-Encoding", 1))


HTTP: list[tuple[str, Fault, int, str]] = [
    ("request-line-of-100-kb", long_request_line, 414, "http_target_too_long"),
    ("header-of-100-kb", long_header, 431, "http_field_too_long"),
    ("100-headers", many_headers, 431, "http_too_many_fields"),
    (
        "no-host",
        lambda floor: Ask(floor.good().request.replace(b"Host: localhost\r\n", b"", 1)),
        400,
        "http_no_host",
    ),
    ("two-content-lengths", two_lengths, 400, "http_malformed"),
    ("length-and-chunks", length_and_chunks, 400, "http_malformed"),
    ("a-chunk-that-lies", lambda floor: sent_chunked(floor, b"5\r\nAAAAAAAAAA\r\n0\r\n\r\n"), 400, "http_malformed"),
    ("a-chunk-of-no-number", lambda floor: sent_chunked(floor, b"zz\r\nAA\r\n0\r\n\r\n"), 400, "http_malformed"),
    ("not-http", lambda _floor: Ask(b"hello, is this EST?\r\n\r\n"), 400, "http_malformed"),
]


@pytest.mark.parametrize(("fault", "status", "code"), [pytest.param(*case, id=name) for name, *case in HTTP])
def test_bad_http_is_refused_and_the_good_request_still_serves(
    floor: Floor, fault: Fault, status: int, code: str
) -> None:
    floor.assert_refused(fault(floor), status, code)
    floor.assert_granted(floor.good())


@pytest.mark.parametrize(
    ("path", "method", "status", "code"),
    [
        pytest.param("/.well-known/est/simpleenroll", "GET", 405, "method_not_allowed", id="get-of-simpleenroll"),
        pytest.param("/.well-known/est/cacerts", "POST", 405, "method_not_allowed", id="post-of-cacerts"),
        pytest.param("/.well-known/est/simplerenroll", "POST", 404, "operation_unknown", id="unknown-operation"),
        pytest.param("/.well-known/est/nowhere/simpleenroll", "POST", 404, "realm_unknown", id="unknown-label"),
    ],
)
def test_what_is_not_served_is_refused_by_name(floor: Floor, path: str, method: str, status: int, code: str) -> None:
    request = wire.enroll_request(wire.body_of(floor.csr()), path=path, authorization=floor.authorization)
    if method == "GET":
        request = f"GET {path} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode()
    floor.assert_refused(Ask(request), status, code)
    floor.assert_granted(floor.good())


def test_est_over_plain_http_is_not_served(floor: Floor) -> None:
    # RFC 7030 3.3: "EST ... MUST use HTTPS"
    answer = wire.exchange_plainly(floor.daemon.http_port, floor.good().request)
    assert answer.status in {403, 404}
    assert floor.certificates() == []
    floor.assert_granted(floor.good())
