"""A peer that stops, wherever it stops, is cut when its time is over, and keeps nobody else from being served."""

import contextlib
import socket
import ssl
from collections.abc import Iterator

import pytest

from enrolld.http_server import HttpLimits
from enrolld.tls import StreamReason, TlsLimits
from tests.enrolld.tls.conftest import BIG, CLOCKED, HEAD, HOST, LAST, Serve, ServeHttp, Site
from tests.enrolld.tls.test_handshake import VERSIONS
from tests.helpers.daemon import eventually
from tests.helpers.tls_clock import advance, advance_until
from tests.helpers.tls_pki import TlsPki, connect, read_until_closed
from tests.helpers.tls_stages import ALL_STAGES, NOTHING, STAGES, Stage, stopped_at


def all_of(sock: socket.socket) -> bytes:
    """Everything until the server's end of stream, or its cut."""
    data = bytearray()
    with contextlib.suppress(ConnectionError, ssl.SSLError):
        while chunk := sock.recv(65536):
            data += chunk
    return bytes(data)


# Handshake


@CLOCKED
@VERSIONS
@STAGES
def test_a_handshake_that_stops_is_cut_at_its_deadline_and_not_before(
    serve: Serve, pki: TlsPki, version: ssl.TLSVersion, stage: Stage
) -> None:
    served = serve(limits=TlsLimits(handshake_timeout=10))
    with stopped_at(served.port, pki.client(pki.device, version=version), stage) as stopped:
        served.await_connections(1)
        advance(served.loop, 9)
        assert served.refusals.none_waits()
        served.serve_an_honest_line(pki)
        advance(served.loop, 2)
        assert served.refusals.next() == StreamReason.HANDSHAKE_TIMEOUT
        read_until_closed(stopped.sock)
    served.await_connections(0)
    assert served.refusals.none_waits()
    assert served.peers.none_waits()


@CLOCKED
@VERSIONS
@STAGES
def test_a_handshake_that_goes_on_before_its_deadline_is_served_long_after_it(
    serve: Serve, pki: TlsPki, version: ssl.TLSVersion, stage: Stage
) -> None:
    served = serve(limits=TlsLimits(handshake_timeout=10))
    with stopped_at(served.port, pki.client(pki.device, version=version), stage) as stopped:
        served.await_connections(1)
        advance(served.loop, 9)
        stopped.go_on()
        assert served.next_peer().chain == pki.device.der_chain
        advance(served.loop, 1000)
        assert stopped.ask(b"12345\n") == b"5\n"
    assert served.refusals.none_waits()


@CLOCKED
@VERSIONS
def test_bytes_that_drip_do_not_put_the_deadline_off(serve: Serve, pki: TlsPki, version: ssl.TLSVersion) -> None:
    served = serve(limits=TlsLimits(handshake_timeout=10))
    with stopped_at(served.port, pki.client(version=version), NOTHING) as stopped:
        served.await_connections(1)
        for second in range(10):
            assert served.refusals.none_waits()
            stopped.sock.sendall(stopped.rest[second : second + 1])
            advance(served.loop, 1)
        assert served.refusals.next() == StreamReason.HANDSHAKE_TIMEOUT
        read_until_closed(stopped.sock)


@VERSIONS
def test_peers_that_stop_at_every_stage_at_once_are_all_cut_by_the_real_clock(
    serve: Serve, pki: TlsPki, version: ssl.TLSVersion
) -> None:
    served = serve(limits=TlsLimits(handshake_timeout=0.5))
    context = pki.client(pki.device, version=version)
    stages = 5 * list(ALL_STAGES.values())
    with contextlib.ExitStack() as stack:
        stopped = [stack.enter_context(stopped_at(served.port, context, stage)) for stage in stages]
        served.serve_an_honest_line(pki)
        for one in stopped:
            read_until_closed(one.sock)
        assert [served.refusals.next() for _ in stages] == [StreamReason.HANDSHAKE_TIMEOUT] * len(stages)
        served.serve_an_honest_line(pki)
    assert served.refusals.none_waits()


# Head, body and answer


HTTP_LIMITS = HttpLimits(head_timeout=10, body_timeout=20, idle_timeout=30)


@CLOCKED
@VERSIONS
@pytest.mark.parametrize(
    ("sent", "asks", "seconds", "status", "reason"),
    [
        pytest.param(b"", False, 10, None, None, id="no-head"),
        pytest.param(b"P", False, 10, b"408", "http_head_timeout", id="first-byte-of-the-head"),
        pytest.param(HEAD + b"\r", False, 10, b"408", "http_head_timeout", id="head-but-its-last-byte"),
        pytest.param(HEAD + b"Content-Length: 5\r\n\r\n", True, 20, b"408", "http_body_timeout", id="no-body"),
        pytest.param(HEAD + b"Content-Length: 5\r\n\r\nhell", True, 20, b"408", "http_body_timeout", id="most-of-body"),
        pytest.param(
            HEAD + b"Transfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n",
            True,
            20,
            b"408",
            "http_body_timeout",
            id="chunked-but-its-end",
        ),
        pytest.param(HEAD + b"Content-Length: 5\r\n\r\nhello", True, 30, b"200", None, id="whole-then-idle"),
        pytest.param(
            b"POST /echo HTTP/1.1\r\n" + LAST + b"Content-Length: 5\r\n\r\nhello",
            True,
            0,
            b"200",
            None,
            id="twin-whole",
        ),
    ],
)
def test_a_request_that_stops_is_answered_and_cut_at_its_deadline(
    serve_http: ServeHttp,
    pki: TlsPki,
    version: ssl.TLSVersion,
    sent: bytes,
    asks: bool,
    seconds: int,
    status: bytes | None,
    reason: str | None,
) -> None:
    site = serve_http(http_limits=HTTP_LIMITS)
    with pki.client(pki.device, version=version).wrap_socket(connect(site.port), server_hostname="localhost") as sock:
        site.await_open(1)
        sock.sendall(sent)
        if asks:
            assert site.asked.next() == "/echo"
            assert site.peers.next().chain == pki.device.der_chain
        received = b""
        if status == b"200":
            received = sock.recv(65536)
        if seconds:
            site.serve_an_honest_request(pki)  # and what was sent before has been read by then
            advance(site.loop, seconds - 1)
            assert site.refusals.none_waits()
            assert site.open_connections() == 1
            site.serve_an_honest_request(pki)
            advance(site.loop, 2)
        received += all_of(sock)
        assert received[:13] == (b"HTTP/1.1 %b " % status if status else b"")
        if reason:
            assert site.refusals.next() == reason
    site.await_open(0)
    assert site.refusals.none_waits()


@CLOCKED
@VERSIONS
@pytest.mark.parametrize("read_first", [pytest.param(0, id="none-of-it"), pytest.param(1_000_000, id="a-part-of-it")])
def test_an_answer_that_is_not_read_on_is_cut_after_the_write_timeout(
    serve_http: ServeHttp, pki: TlsPki, version: ssl.TLSVersion, read_first: int
) -> None:
    site = serve_http(tls_limits=TlsLimits(write_timeout=10))
    with asking_for_much(site, pki, version) as sock:
        left = read_first
        while left > 0:
            left -= len(sock.recv(65536))
        assert 9 <= advance_until(site.loop, site.refusals, at_most=40) <= 31
        assert site.refusals.next() == StreamReason.WRITE_STALLED
        site.serve_an_honest_request(pki)
        assert len(all_of(sock)) < BIG
    site.await_open(0)
    assert site.refusals.none_waits()


@CLOCKED
@VERSIONS
def test_an_answer_that_is_read_slowly_but_steadily_arrives_whole(
    serve_http: ServeHttp, pki: TlsPki, version: ssl.TLSVersion
) -> None:
    site = serve_http(tls_limits=TlsLimits(write_timeout=10))
    with asking_for_much(site, pki, version) as sock:
        size = pauses = 0
        waiting = site.waiting_to_be_read()

        def has_got_on() -> bool | None:
            return site.waiting_to_be_read() in range(max(waiting, 1)) or None

        while chunk := sock.recv(65536):
            size += len(chunk)
            if size // 5_000_000 > pauses:
                pauses += 1
                eventually(has_got_on, what="the server has written what there was room for")
                waiting = site.waiting_to_be_read()
                advance(site.loop, 9)
        assert size > BIG
        assert pauses >= 4
    assert site.refusals.none_waits()


@contextlib.contextmanager
def asking_for_much(site: Site, pki: TlsPki, version: ssl.TLSVersion) -> Iterator[ssl.SSLSocket]:
    """A connection on which a large answer has begun and waits to be read."""
    tcp = connect(site.port)
    with pki.client(pki.device, version=version).wrap_socket(tcp, server_hostname="localhost") as sock:
        sock.sendall(b"GET /big HTTP/1.1\r\n" + LAST + b"\r\n")
        assert site.asked.next() == "/big"
        site.peers.next()
        eventually(lambda: site.waiting_to_be_read() or None, what="the answer waits for the peer")
        yield sock


@CLOCKED
@VERSIONS
def test_a_peer_that_stays_after_the_last_answer_is_cut_in_silence(
    serve_http: ServeHttp, pki: TlsPki, version: ssl.TLSVersion
) -> None:
    site = serve_http(tls_limits=TlsLimits(shutdown_timeout=3))
    with pki.client(version=version).wrap_socket(connect(site.port), server_hostname="localhost") as sock:
        sock.sendall(b"GET /echo HTTP/1.1\r\n" + LAST + b"\r\n")
        assert all_of(sock).startswith(b"HTTP/1.1 200 ")
        advance(site.loop, 2)
        site.await_open(1)
        advance(site.loop, 2)
        site.await_open(0)
    assert site.refusals.none_waits()


def test_requests_that_stop_at_every_stage_at_once_are_all_cut_by_the_real_clock(
    serve_http: ServeHttp, pki: TlsPki
) -> None:
    site = serve_http(
        http_limits=HttpLimits(head_timeout=0.5, body_timeout=0.5, idle_timeout=0.5),
        tls_limits=TlsLimits(write_timeout=0.5, shutdown_timeout=0.5),
    )
    stages = {
        b"": None,
        HEAD: "http_head_timeout",
        HEAD + b"Content-Length: 5\r\n\r\nhell": "http_body_timeout",
        b"GET /echo HTTP/1.1\r\n" + HOST + b"\r\n": None,
        b"GET /big HTTP/1.1\r\n" + LAST + b"\r\n": "write_stalled",
    }
    context = pki.client(pki.device)
    with contextlib.ExitStack() as stack:
        for sent in stages:
            sock = stack.enter_context(context.wrap_socket(connect(site.port), server_hostname="localhost"))
            sock.sendall(sent)
        expected = sorted(reason for reason in stages.values() if reason)
        assert sorted(site.refusals.next() for _ in expected) == expected
        site.await_open(0)
    assert site.refusals.none_waits()
