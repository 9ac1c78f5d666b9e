"""What is negotiated, what is refused, and that the refusal says why."""

import shutil
import socket
import ssl
import subprocess
from collections.abc import Callable
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import ec, ed448, ed25519, mldsa, rsa
from OpenSSL import SSL

from enrolld.tls import ServerContext, StreamReason, TlsLimits
from tests.enrolld.tls.conftest import Serve, Served
from tests.helpers.tls_pki import TlsPki, connect, issue, read_all, read_until_closed

TLS12, TLS13 = ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3
VERSIONS = pytest.mark.parametrize("version", [pytest.param(TLS12, id="tls12"), pytest.param(TLS13, id="tls13")])


def wrapped(served: Served, context: ssl.SSLContext, name: str | None = "localhost") -> ssl.SSLSocket:
    context.check_hostname = name is not None
    return context.wrap_socket(connect(served.port), server_hostname=name)


def blocking(tcp: socket.socket) -> socket.socket:
    """As pyOpenSSL needs it: it reads the descriptor itself, and a timeout makes that non-blocking."""
    tcp.settimeout(None)
    return tcp


def ask(sock: ssl.SSLSocket, line: bytes = b"12345") -> bytes:
    sock.sendall(line + b"\n")
    return sock.recv(100)


@VERSIONS
def test_both_supported_versions_are_served(serve: Serve, pki: TlsPki, version: ssl.TLSVersion) -> None:
    served = serve()
    with wrapped(served, pki.client(version=version)) as sock:
        assert ask(sock) == b"5\n"
        peer = served.next_peer()
        cipher = sock.cipher()
        assert cipher is not None
        assert (peer.version, peer.cipher) == (sock.version(), cipher[0])


@pytest.mark.foreign
@pytest.mark.skipif(shutil.which("openssl") is None, reason="openssl is not installed")
@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        pytest.param(["-tls1"], StreamReason.VERSION_UNSUPPORTED, id="tls10"),
        pytest.param(["-tls1_1"], StreamReason.VERSION_UNSUPPORTED, id="tls11"),
        pytest.param(["-tls1_2", "-cipher", "AES128-SHA"], StreamReason.NO_SHARED_CIPHER, id="rsa-key-exchange-cbc"),
        pytest.param(["-tls1_2", "-cipher", "ECDHE-ECDSA-AES128-SHA"], StreamReason.NO_SHARED_CIPHER, id="cbc-sha1"),
        pytest.param(["-tls1_2", "-cipher", "aNULL"], StreamReason.NO_SHARED_CIPHER, id="anonymous"),
        pytest.param(["-tls1_2", "-cipher", "eNULL"], StreamReason.NO_SHARED_CIPHER, id="null"),
        pytest.param(["-tls1_2", "-psk", "00", "-cipher", "PSK"], StreamReason.NO_SHARED_CIPHER, id="psk"),
        pytest.param(["-alpn", "h2"], StreamReason.NO_SHARED_ALPN, id="h2-only"),
        pytest.param(["-verify_return_error"], StreamReason.SERVER_NOT_TRUSTED, id="client-without-our-root"),
        pytest.param(["-tls1_2"], None, id="twin-tls12"),
        pytest.param(["-tls1_3"], None, id="twin-tls13"),
        pytest.param(["-alpn", "h2,http/1.1"], None, id="twin-alpn"),
        pytest.param(["-tls1_2", "-cipher", "ECDHE-ECDSA-AES128-GCM-SHA256"], None, id="twin-aead"),
    ],
)
def test_weak_or_foreign_offers_of_openssl_are_refused_by_name(
    serve: Serve, arguments: list[str], reason: StreamReason | None
) -> None:
    served = serve()
    seclevel = "DEFAULT@SECLEVEL=0" if "-cipher" not in arguments else f"{arguments[arguments.index('-cipher') + 1]}"
    if "-cipher" in arguments:
        arguments[arguments.index("-cipher") + 1] = f"{seclevel}:@SECLEVEL=0"
    else:
        arguments = [*arguments, "-cipher", seclevel]
    done = subprocess.run(
        ["openssl", "s_client", "-connect", f"127.0.0.1:{served.port}", *arguments],
        input=b"12345\n",
        capture_output=True,
        timeout=30,
        check=False,
    )
    if reason is None:
        assert done.returncode == 0
        served.next_peer()
        assert served.refusals.none_waits()
    else:
        assert served.refusals.next() == reason
        assert served.peers.none_waits()


@pytest.mark.parametrize(
    ("offered", "chosen"),
    [
        pytest.param(["http/1.1"], "http/1.1", id="http11"),
        pytest.param(["h2", "http/1.0", "http/1.1"], "http/1.1", id="the-one-we-speak"),
        pytest.param(["http/1.0"], "http/1.0", id="http10-as-curl-offers-it"),
        pytest.param([], None, id="no-alpn"),
    ],
)
def test_alpn_settles_on_http(serve: Serve, pki: TlsPki, offered: list[str], chosen: str | None) -> None:
    served = serve()
    with wrapped(served, pki.client(alpn=offered)) as sock:
        assert sock.selected_alpn_protocol() == chosen


@VERSIONS
def test_the_server_name_picks_the_certificate_and_whether_one_is_asked_for(
    serve: Serve, pki: TlsPki, asking: ServerContext, version: ssl.TLSVersion
) -> None:
    quiet = ServerContext(pki.other_server.pem_chain, pki.other_server.key, ask_client_certificate=False)
    names: list[str | None] = []

    def select(name: str | None) -> ServerContext:
        names.append(name)
        return quiet if name == "other.example" else asking

    served = serve(select)
    for name, certificate, chain in (
        ("localhost", pki.server.der_chain[0], pki.device.der_chain),
        ("OTHER.example", pki.other_server.der_chain[0], ()),
    ):
        context = pki.client(pki.device, version=version)
        with wrapped(served, context, name) as sock:
            assert sock.getpeercert(binary_form=True) == certificate
            peer = served.next_peer()
            assert (peer.server_name, peer.chain) == (name.lower(), chain)
    with wrapped(served, pki.client(version=version), None):
        assert served.next_peer().server_name is None
    assert names == ["localhost", "other.example", None]


def test_a_context_exchanged_at_run_time_serves_the_next_connection(
    serve: Serve, pki: TlsPki, asking: ServerContext
) -> None:
    current = [asking]
    served = serve(lambda _name: current[0])
    renewed = issue("server", pki.root, hosts=["localhost"])
    with wrapped(served, pki.client()) as before:
        current[0] = ServerContext(renewed.chain, renewed.key, ask_client_certificate=True)
        with wrapped(served, pki.client()) as after:
            assert before.getpeercert() != after.getpeercert()
            assert ask(before) == ask(after) == b"5\n"


def test_a_name_that_no_context_serves_is_refused(serve: Serve, pki: TlsPki, asking: ServerContext) -> None:
    served = serve(lambda name: {"localhost": asking}[name or ""])
    with pytest.raises(ssl.SSLError, match=r"(?i)alert"):
        wrapped(served, pki.client(), "nobody.example")
    assert served.refusals.next() == StreamReason.UNKNOWN_NAME
    with wrapped(served, pki.client()):
        served.next_peer()


def test_a_selector_that_fails_ends_its_connection_only_and_is_reported_to_the_loop(
    serve: Serve, pki: TlsPki, asking: ServerContext
) -> None:
    def select(name: str | None) -> ServerContext:
        if name != "localhost":
            raise RuntimeError("a bug")
        return asking

    served = serve(select)
    with pytest.raises((ssl.SSLError, OSError)):
        wrapped(served, pki.client(), "bug.example")
    assert served.refusals.next() == StreamReason.HANDSHAKE_FAILED
    with wrapped(served, pki.client()):
        served.next_peer()
    complaints = served.loop.complaints
    assert [str(complaint.get("exception")) for complaint in complaints] == ["a bug"]
    complaints.clear()


@VERSIONS
def test_the_certificate_request_names_no_ca(serve: Serve, version: ssl.TLSVersion) -> None:
    served = serve()
    context = SSL.Context(SSL.TLS_CLIENT_METHOD)
    context.set_max_proto_version(SSL.TLS1_2_VERSION if version is TLS12 else SSL.TLS1_3_VERSION)
    with connect(served.port) as tcp:
        client = SSL.Connection(context, blocking(tcp))
        client.set_connect_state()
        client.do_handshake()
        assert client.get_client_ca_list(as_cryptography=True) == []


@VERSIONS
def test_no_session_is_resumed(serve: Serve, pki: TlsPki, version: ssl.TLSVersion) -> None:
    served = serve()
    context = pki.client(pki.device, version=version)
    with wrapped(served, context) as first:
        ask(first)  # reads what comes after the handshake, tickets included
        session = first.session
    tcp = connect(served.port)
    with context.wrap_socket(tcp, server_hostname="localhost", session=session) as second:
        ask(second)
        assert not second.session_reused
    assert served.next_peer().chain == served.next_peer().chain == pki.device.der_chain


def test_renegotiation_is_refused(serve: Serve) -> None:
    served = serve()
    context = SSL.Context(SSL.TLS_CLIENT_METHOD)
    context.set_max_proto_version(SSL.TLS1_2_VERSION)
    with connect(served.port) as tcp:
        client = SSL.Connection(context, blocking(tcp))
        client.set_connect_state()
        client.do_handshake()
        first_finished = client.get_finished()
        client.renegotiate()
        with pytest.raises(SSL.Error, match="no renegotiation"):
            client.do_handshake()
        assert served.next_peer().tls_unique == first_finished
    assert served.peers.none_waits()


@pytest.mark.parametrize(
    "key",
    [
        pytest.param(lambda: ec.generate_private_key(ec.SECP384R1()), id="p384"),
        pytest.param(lambda: ec.generate_private_key(ec.SECP256R1()), id="p256"),
    ],
)
def test_a_key_that_is_not_the_certificates_is_refused(
    pki: TlsPki, key: Callable[[], ec.EllipticCurvePrivateKey]
) -> None:
    with pytest.raises(ValueError, match="not the key of the first certificate"):
        ServerContext(pki.server.chain, key(), ask_client_certificate=True)


@pytest.mark.parametrize(
    "make_key",
    [
        pytest.param(lambda: rsa.generate_private_key(65537, 2048), id="rsa"),
        pytest.param(lambda: ec.generate_private_key(ec.SECP384R1()), id="p384"),
        pytest.param(ed25519.Ed25519PrivateKey.generate, id="ed25519"),
        pytest.param(ed448.Ed448PrivateKey.generate, id="ed448"),
        pytest.param(mldsa.MLDSA65PrivateKey.generate, id="ml-dsa-65"),
    ],
)
def test_the_servers_key_may_be_of_any_kind(serve: Serve, pki: TlsPki, make_key: Callable[[], Any]) -> None:
    server = issue("server", pki.root, hosts=["localhost"], key=make_key())
    own = ServerContext(server.chain, server.key, ask_client_certificate=True)
    served = serve(lambda _name: own)
    context = SSL.Context(SSL.TLS_CLIENT_METHOD)
    context.load_verify_locations(str(pki.root_file))
    context.set_verify(SSL.VERIFY_PEER)
    with connect(served.port) as tcp:
        client = SSL.Connection(context, blocking(tcp))
        client.set_connect_state()
        client.do_handshake()
        assert client.get_peer_certificate(as_cryptography=True) == server.certificate
        client.send(b"12345\n")
        assert client.recv(100) == b"5\n"


def test_plain_http_is_answered_in_plain_words(serve: Serve) -> None:
    served = serve(answer=b"only TLS here\n")
    with connect(served.port) as sock:
        sock.sendall(b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n")
        assert read_all(sock) == b"only TLS here\n"
    assert served.refusals.next() == StreamReason.NOT_TLS


def test_bytes_that_are_neither_tls_nor_http_are_answered_with_silence(serve: Serve) -> None:
    served = serve(answer=b"only TLS here\n")
    with connect(served.port) as sock:
        sock.sendall(b"\x00\x01\x02")
        assert read_all(sock) == b""
    assert served.refusals.next() == StreamReason.NOT_TLS


def test_a_handshake_that_takes_too_long_is_cut(serve: Serve) -> None:
    served = serve(limits=TlsLimits(handshake_timeout=0.05))
    with connect(served.port) as sock:
        sock.sendall(b"\x16\x03\x01")
        read_until_closed(sock)
    assert served.refusals.next() == StreamReason.HANDSHAKE_TIMEOUT


def test_a_peer_that_hangs_up_in_the_handshake_is_reported(serve: Serve) -> None:
    served = serve()
    with connect(served.port) as sock:
        sock.sendall(b"\x16\x03\x01")
    assert served.refusals.next() == StreamReason.CLOSED_EARLY


def test_a_peer_that_says_nothing_at_all_is_no_refusal(serve: Serve, pki: TlsPki) -> None:
    served = serve()
    connect(served.port).close()
    with wrapped(served, pki.client()):
        served.next_peer()
    assert served.refusals.none_waits()
