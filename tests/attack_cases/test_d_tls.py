"""Section D, who asks: headers that claim it, and the TLS session that it must come in. Each beside its twin."""

import asyncio
import base64
import contextlib
import ssl
import urllib.parse
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from aiohttp import web
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from OpenSSL import SSL

from ca_core.core import Core
from ca_core.model import TlsPeer
from est_server.app import make_app
from tests.attack_cases.field import BAD_REQUEST, EST, Field, scep_post
from tests.attack_cases.talk import PATIENCE, Heard, connected, hear, talk
from tests.end_to_end import wire
from tests.helpers import bad_csr
from tests.helpers.core import ME, new_key
from tests.helpers.daemon import Daemon

# --- 42 ---------------------------------------------------------------------------------------------------------------


def _pem(certificate: x509.Certificate) -> str:
    return certificate.public_bytes(Encoding.PEM).decode()


def _rfc_9440(certificate: x509.Certificate) -> str:
    return f":{base64.b64encode(certificate.public_bytes(Encoding.DER)).decode()}:"


HEADERS: dict[str, Callable[[x509.Certificate], list[tuple[str, str]]]] = {
    "Client-Cert": lambda victim: [("Client-Cert", _rfc_9440(victim))],
    "with-chain": lambda victim: [("Client-Cert", _rfc_9440(victim)), ("Client-Cert-Chain", _rfc_9440(victim))],
    "twice": lambda victim: [("Client-Cert", _rfc_9440(victim))] * 2,
    "two-cases": lambda victim: [("client-cert", _rfc_9440(victim)), ("CLIENT-CERT", _rfc_9440(victim))],
    "underscore": lambda victim: [("Client_Cert", _rfc_9440(victim))],
    "nginx": lambda victim: [
        ("X-SSL-Client-Cert", urllib.parse.quote(_pem(victim))),
        ("X-SSL-Client-Verify", "SUCCESS"),
        ("X-SSL-Client-S-DN", victim.subject.rfc4514_string()),
    ],
    "envoy": lambda victim: [("X-Forwarded-Client-Cert", f'Cert="{urllib.parse.quote(_pem(victim))}"')],
    "cgi": lambda victim: [("SSL_CLIENT_CERT", _pem(victim).replace("\n", " ")), ("SSL_CLIENT_VERIFY", "SUCCESS")],
    "rewritten": lambda victim: [
        ("X-Forwarded-Proto", "https"),
        ("X-Forwarded-For", "192.0.2.7"),
        ("Forwarded", "for=192.0.2.7;proto=https"),
        ("X-Remote-User", "sensor"),
        ("Client-Cert", _rfc_9440(victim)),
    ],
}


def _reenroll(csr: bytes, headers: list[tuple[str, str]]) -> bytes:
    bare = wire.enroll_request(wire.body_of(csr), path="/.well-known/est/simplereenroll")
    added = "".join(f"{name}: {value}\r\n" for name, value in headers).encode()
    return bare.replace(b"\r\n\r\n", b"\r\n" + added + b"\r\n", 1)


def _with_certificate(field: Field, certificate: x509.Certificate, folder: Path) -> ssl.SSLContext:
    chain, key = folder / "own.pem", folder / "own.key"
    chain.write_text(_pem(certificate))
    key.write_bytes(field.key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    return wire.context(field.daemon.root, certificate=chain, key=key)


@pytest.mark.parametrize("case", HEADERS)
def test_case_42_a_header_that_claims_a_certificate_is_not_believed(
    field: Field, fields: Iterator[Field], tmp_path: Path, case: str
) -> None:
    victim = next(fields)
    named = HEADERS[case](victim.assert_served(protocol=EST))
    theft = field.csr(subject=bad_csr.name(victim.name))
    alone = field.est(_reenroll(theft, named))
    field.assert_refused(alone, 401, "credentials_missing")
    assert field.attempt(alone.only.request_id).source == field.source
    field.assert_refused(field.http(_reenroll(theft, named)), 404, "http_not_found")
    by_scep = field.message(bad_csr.make_csr(field.rsa_key, bad_csr.name(victim.name)))
    added = "".join(f"{name}: {value}\r\n" for name, value in named).encode()
    post = scep_post(by_scep).replace(b"\r\n\r\n", b"\r\n" + added + b"\r\n", 1)
    field.assert_failed(field.http(post), "credentials_missing", BAD_REQUEST)

    own = field.assert_served(protocol=EST)
    tls = _with_certificate(field, own, tmp_path)

    def beside(csr: bytes) -> Heard:
        asked = _reenroll(csr, named)
        return talk(field.daemon.https_port, asked, tls=tls, source=field.source, answers=1, seconds=PATIENCE)

    field.assert_refused(beside(theft), 400, "renewal_subject_mismatch")
    renewed = beside(field.csr()).only.certificate
    assert renewed.subject == own.subject, "who asks is who shows a certificate in TLS"
    assert (victim.certificates(), field.certificates()) == (1, 2)


# --- 43 ---------------------------------------------------------------------------------------------------------------


def test_case_43_a_password_in_the_clear_gets_nothing(field: Field) -> None:
    asked = field.enroll_request(wire.body_of(field.csr()))
    field.assert_refused(field.http(asked), 404, "http_not_found")
    assert field.certificates() == 0
    assert field.est(asked).only.status == 200, "the twin"


async def test_case_43_est_without_tls_is_not_served_wherever_it_is_mounted(core: Core) -> None:
    """Whoever mounts it on a plain listener gets nothing either."""
    secret = (await core.devices.add("default", "sensor", actor=ME)).secret
    key = new_key()
    asked = wire.enroll_request(
        wire.body_of(bad_csr.make_csr(key, bad_csr.name("sensor"))), authorization=wire.basic("sensor", secret)
    )
    for peer, status, words in ((None, 404, "EST is served over HTTPS only."), (TlsPeer("TLSv1.3"), 200, "MII")):
        app = make_app(core, peer=lambda _, peer=peer: peer, new_request_id=lambda: "id-1")  # type: ignore[misc]
        runner = web.AppRunner(app, access_log=None)
        await runner.setup()
        try:
            await web.TCPSite(runner, "127.0.0.1", 0).start()
            answer = await asyncio.to_thread(wire.exchange_plainly, runner.addresses[0][1], asked)
        finally:
            await runner.cleanup()
        assert (answer.status, answer.text[: len(words)]) == (status, words)


def _client(version: ssl.TLSVersion, field: Field) -> ssl.SSLContext:
    context = wire.context(field.daemon.root)
    context.minimum_version = context.maximum_version = version
    return context


@pytest.mark.filterwarnings("ignore:ssl.TLSVersion:DeprecationWarning")
@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1, ssl.TLSVersion.TLSv1_1], ids=["1.0", "1.1"])
def test_case_43_tls_before_1_2_is_not_spoken(field: Field, version: ssl.TLSVersion) -> None:
    old = _client(version, field)
    old.set_ciphers("ALL:@SECLEVEL=0")
    with pytest.raises(ssl.SSLError) as caught, connected(field.daemon.https_port, tls=old, source=field.source):
        pass
    assert caught.value.reason == "TLSV1_ALERT_PROTOCOL_VERSION"
    with connected(field.daemon.https_port, tls=_client(ssl.TLSVersion.TLSv1_2, field), source=field.source) as twin:
        assert isinstance(twin, ssl.SSLSocket)
        assert twin.version() == "TLSv1.2"


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3], ids=["1.2", "1.3"])
def test_case_43_no_session_is_taken_up_again_in_which_data_could_come_early(
    field: Field, version: ssl.TLSVersion
) -> None:
    """Early data of real clients is in tests/enrolld/tls/test_resumption."""
    tls, session = _client(version, field), None
    for _ in range(2):
        with (
            connected(field.daemon.https_port, source=field.source) as plain,
            tls.wrap_socket(plain, server_hostname="localhost", session=session) as connection,
        ):
            connection.sendall(field.enroll_request(wire.body_of(field.csr())))
            assert hear(connection, answers=1).only.status == 200, "the twin: after a whole handshake it is served"
            assert not connection.session_reused
            session = connection.session
            if version is ssl.TLSVersion.TLSv1_2:  # of 1.3, the library says so of every session
                assert session is not None
                assert not session.has_ticket


@contextlib.contextmanager
def openssl(field: Field, version: int) -> Iterator[SSL.Connection]:
    """A client that can renegotiate, and tell its exporter; the server is verified."""
    context = SSL.Context(SSL.TLS_CLIENT_METHOD)
    context.set_min_proto_version(version)
    context.set_max_proto_version(version)
    context.load_verify_locations(str(field.daemon.root))
    context.set_verify(SSL.VERIFY_PEER)
    with connected(field.daemon.https_port, source=field.source) as plain:
        plain.settimeout(None)  # pyOpenSSL reads the descriptor itself
        client = SSL.Connection(context, plain)
        client.set_connect_state()
        client.set_tlsext_host_name(b"localhost")
        client.set_verify(SSL.VERIFY_PEER)
        client.do_handshake()
        yield client


def test_case_43_there_is_no_second_handshake_in_a_connection(field: Field) -> None:
    with openssl(field, SSL.TLS1_2_VERSION) as client:
        client.renegotiate()
        with pytest.raises(SSL.Error, match="no renegotiation"):
            client.do_handshake()
    field.assert_served(protocol=EST)


@pytest.fixture(scope="session")
def bound(daemon: Daemon) -> str:
    """A realm that demands the link to the TLS session."""
    daemon.command("realm", "add", "bound")
    text = daemon.inspect(lambda core: core.realms.export("bound"))
    required = text.replace('channel_binding = "optional"', 'channel_binding = "required"')
    assert required != text
    daemon.inspect(lambda core: core.realms.apply(required, actor="test"))
    return "bound"


def _linked(field: Field, name: str, link: bytes | None, *, secret: str, label: str) -> bytes:
    attributes = [] if link is None else [bad_csr.challenge(base64.b64encode(link).decode())]
    csr = bad_csr.make_csr(field.key, bad_csr.name(name), *attributes)
    path = f"/.well-known/est/{label}simpleenroll"
    return wire.enroll_request(wire.body_of(csr), path=path, authorization=wire.basic(name, secret))


def test_case_43_a_csr_that_was_made_for_another_tls_1_2_session_is_refused(field: Field) -> None:
    tls = _client(ssl.TLSVersion.TLSv1_2, field)
    with connected(field.daemon.https_port, tls=tls, source=field.source) as other:
        assert isinstance(other, ssl.SSLSocket)
        link = other.get_channel_binding("tls-unique")
    for is_own, code in ((False, "channel_binding_mismatch"), (True, "")):
        with connected(field.daemon.https_port, tls=tls, source=field.source) as connection:
            assert isinstance(connection, ssl.SSLSocket)
            said = connection.get_channel_binding("tls-unique") if is_own else link
            connection.sendall(_linked(field, field.name, said, secret=field.secret, label=""))
            heard = hear(connection, answers=1)
            if code:
                field.assert_refused(heard, 400, code)
            else:
                assert heard.only.status == 200, "the twin"


def _exported(client: SSL.Connection) -> bytes:
    return client.export_keying_material(b"EXPORTER-Channel-Binding", 32, b"")  # RFC 9266 2


def test_case_43_a_line_that_demands_the_link_refuses_another_session_s_and_none(field: Field, bound: str) -> None:
    secret = field.daemon.inspect(lambda core: core.devices.add(bound, field.name, actor="test")).secret
    with openssl(field, SSL.TLS1_3_VERSION) as other:
        link = _exported(other)
    for said, code in ((link, "channel_binding_mismatch"), (None, "channel_binding_missing"), (b"own", "")):
        with openssl(field, SSL.TLS1_3_VERSION) as client:
            sent = _exported(client) if said == b"own" else said
            client.sendall(_linked(field, field.name, sent, secret=secret, label=f"{bound}/"))
            received = b""
            while b"\r\n\r\n" not in received or b"\n" not in received.partition(b"\r\n\r\n")[2]:
                received += client.recv(65536)
        head, _, body = received.partition(b"\r\n\r\n")
        assert head.split(b" ")[1] == (b"400" if code else b"200"), body
        if code:
            assert field.attempt(wire.request_id_in(body.decode())).code == code
    assert field.certificates() == 1
