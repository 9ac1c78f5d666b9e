"""How a connection may end: said, half said, not said, or torn, at every stage; and what is told of it."""

import socket
import ssl
from collections.abc import Callable

import pytest

from enrolld.tls import StreamReason
from tests.enrolld.tls.conftest import HEAD, LAST, Serve, ServeHttp
from tests.enrolld.tls.test_handshake import VERSIONS
from tests.helpers.daemon import eventually
from tests.helpers.tls_pki import TlsPki, connect, read_until_closed
from tests.helpers.tls_stages import NOTHING, STAGES, Stage, stopped_at
from tests.helpers.tls_wire import ALERT, MemoryClient, record, reset

End = Callable[[socket.socket], None]


def half_close(sock: socket.socket) -> None:
    sock.shutdown(socket.SHUT_WR)
    read_until_closed(sock)


ENDS = pytest.mark.parametrize(
    "end",
    [
        pytest.param(socket.socket.close, id="close"),
        pytest.param(half_close, id="half-close"),
        pytest.param(reset, id="reset"),
    ],
)


# Handshake


@VERSIONS
@STAGES
@ENDS
def test_a_handshake_that_its_peer_ends_is_reported_as_closed_early_unless_it_never_began(
    serve: Serve, pki: TlsPki, version: ssl.TLSVersion, stage: Stage, end: End
) -> None:
    served = serve()
    with stopped_at(served.port, pki.client(pki.device, version=version), stage) as stopped:
        served.await_connections(1)
        served.serve_an_honest_line(pki)  # what was sent before has been read by then
        end(stopped.sock)
    served.await_connections(0)
    if stage != NOTHING:
        assert served.refusals.next() == StreamReason.CLOSED_EARLY
    assert served.refusals.none_waits()
    assert served.peers.none_waits()
    served.serve_an_honest_line(pki)


@VERSIONS
@pytest.mark.parametrize(
    ("alert", "reason"),
    [
        pytest.param(b"\x02\x30", StreamReason.SERVER_NOT_TRUSTED, id="unknown-ca"),
        pytest.param(b"\x02\x2a", StreamReason.SERVER_NOT_TRUSTED, id="bad-certificate"),
        pytest.param(b"\x02\x2d", StreamReason.SERVER_NOT_TRUSTED, id="certificate-expired"),
        pytest.param(b"\x02\x28", StreamReason.PEER_ALERT, id="handshake-failure"),
        pytest.param(b"\x02\x50", StreamReason.PEER_ALERT, id="internal-error"),
    ],
)
def test_a_fatal_alert_in_the_handshake_is_reported_for_what_it_says(
    serve: Serve, pki: TlsPki, version: ssl.TLSVersion, alert: bytes, reason: StreamReason
) -> None:
    served = serve()
    with stopped_at(served.port, pki.client(version=version), (1, 0)) as stopped:
        stopped.sock.sendall(record(ALERT, alert))
        assert served.refusals.next() == reason
        read_until_closed(stopped.sock)
    served.await_connections(0)
    assert served.refusals.none_waits()


# After it


@VERSIONS
@pytest.mark.parametrize("said", [pytest.param(b"", id="idle"), pytest.param(b"123", id="in-a-line")])
@pytest.mark.parametrize(
    ("end", "answer"),
    [
        pytest.param("close_notify", b"bye\n", id="close-notify"),
        pytest.param("fin", b"bye\n", id="fin-without-close-notify"),
        pytest.param("reset", None, id="reset"),
    ],
)
def test_an_open_connection_that_its_peer_ends_is_no_refusal(
    serve: Serve, pki: TlsPki, version: ssl.TLSVersion, said: bytes, end: str, answer: bytes | None
) -> None:
    served = serve()
    client = MemoryClient(pki.client(version=version))
    with connect(served.port) as sock:
        finish_handshake(client, sock)
        served.next_peer()
        if said:
            client.write(said)
        if end == "close_notify":
            client.end()
        sock.sendall(client.flight())
        if end == "reset":
            served.serve_an_honest_line(pki)
            reset(sock)
        else:
            if end == "fin":
                sock.shutdown(socket.SHUT_WR)
            client.take(read_until_closed(sock))
            assert client.plaintext() == answer
    served.await_connections(0)
    served.lost.next()
    assert served.refusals.none_waits()


@VERSIONS
def test_a_reset_while_an_answer_waits_is_no_refusal(serve: Serve, pki: TlsPki, version: ssl.TLSVersion) -> None:
    served = serve()
    tcp = connect(served.port)
    with pki.client(version=version).wrap_socket(tcp, server_hostname="localhost") as sock:
        sock.sendall(b"big 20000000\n")
        assert served.pauses.next() == "pause"
        reset_under_tls(sock)
    served.lost.next()
    served.await_connections(0)
    assert served.refusals.none_waits()


@VERSIONS
def test_a_reset_after_our_farewell_is_no_refusal(serve: Serve, pki: TlsPki, version: ssl.TLSVersion) -> None:
    served = serve()
    tcp = connect(served.port)
    with pki.client(version=version).wrap_socket(tcp, server_hostname="localhost") as sock:
        sock.sendall(b"close\n")
        assert sock.recv(100) == b"farewell\n"
        reset_under_tls(sock)
    served.lost.next()
    served.await_connections(0)
    assert served.refusals.none_waits()


# In HTTP


@VERSIONS
@pytest.mark.parametrize("end", ["close_notify", "fin", "both"])
@pytest.mark.parametrize(
    ("sent", "status", "reason"),
    [
        pytest.param(b"", None, None, id="before-a-request"),
        pytest.param(HEAD, None, None, id="in-the-head"),
        pytest.param(HEAD + b"Content-Length: 5\r\n\r\nhel", b"400", "http_body_truncated", id="in-the-body"),
        pytest.param(HEAD + b"Content-Length: 5\r\n\r\nhello", b"200", None, id="after-the-request"),
    ],
)
def test_a_half_close_is_answered_as_far_as_the_request_came(
    serve_http: ServeHttp,
    pki: TlsPki,
    version: ssl.TLSVersion,
    end: str,
    sent: bytes,
    status: bytes | None,
    reason: str | None,
) -> None:
    site = serve_http()
    client = MemoryClient(pki.client(version=version))
    with connect(site.port) as sock:
        finish_handshake(client, sock)
        if sent:
            client.write(sent)
        if end != "fin":
            client.end()
        sock.sendall(client.flight())
        if end != "close_notify":
            sock.shutdown(socket.SHUT_WR)
        client.take(read_until_closed(sock))
        assert client.plaintext()[:13] == (b"HTTP/1.1 %b " % status if status else b"")
        if reason:
            assert site.refusals.next() == reason
    site.await_open(0)
    assert site.refusals.none_waits()


@VERSIONS
@pytest.mark.parametrize(
    ("sent", "asks"),
    [
        pytest.param(b"", False, id="before-a-request"),
        pytest.param(HEAD, False, id="in-the-head"),
        pytest.param(HEAD + b"Content-Length: 5\r\n\r\nhel", True, id="in-the-body"),
        pytest.param(b"GET /big HTTP/1.1\r\n" + LAST + b"\r\n", True, id="in-the-answer"),
    ],
)
def test_a_reset_at_any_stage_of_a_request_is_no_refusal(
    serve_http: ServeHttp, pki: TlsPki, version: ssl.TLSVersion, sent: bytes, asks: bool
) -> None:
    site = serve_http()
    with pki.client(version=version).wrap_socket(connect(site.port), server_hostname="localhost") as sock:
        site.await_open(1)
        if sent:
            sock.sendall(sent)
        if asks:
            site.asked.next()
            site.peers.next()
        if b"/big" in sent:
            eventually(lambda: site.waiting_to_be_read() or None, what="the answer waits for the peer")
        site.serve_an_honest_request(pki)
        reset_under_tls(sock)
    site.await_open(0)
    assert site.refusals.none_waits()
    site.serve_an_honest_request(pki)


def finish_handshake(client: MemoryClient, sock: socket.socket) -> None:
    sock.sendall(client.flight())
    while not client.is_connected:
        client.take(sock.recv(65536))
        sock.sendall(client.flight())


def reset_under_tls(sock: ssl.SSLSocket) -> None:
    """A reset in the middle of a session."""
    reset(socket.socket(fileno=sock.detach()))
