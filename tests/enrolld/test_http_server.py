"""HTTP on real sockets, plain and TLS: what is refused and in which words, deadlines, ends of stream, draining."""

import asyncio
import base64
import gc
import http.client
import logging
import re
import shutil
import socket
import ssl
import struct
import subprocess
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from aiohttp import web
from cryptography.hazmat.primitives.serialization import Encoding, pkcs7

from enrolld.http_connection import HttpConnection
from enrolld.http_server import HttpLimits, Listener, request_id_of, serve_plain, serve_tls
from enrolld.request_id import new_request_id
from enrolld.tls import ServerContext, StreamLimits
from tests.helpers.tls_pki import (
    LOOPS,
    Events,
    LoopThread,
    TlsPki,
    connect,
    listening_socket,
    loop_thread,
    read_all,
    read_until_closed,
    tls_pki,
)

REQUEST_ID = re.compile(r"[2-9a-z]{4}-[2-9a-z]{4}")
HOST = b"Host: localhost\r\n"
LAST = HOST + b"Connection: close\r\n"


@dataclass(frozen=True)
class Answer:
    """A response as it was on the wire; header names in the case they came in."""

    version: str
    status: int
    headers: dict[str, str]
    body: bytes

    @classmethod
    def parse(cls, raw: bytes) -> "Answer":
        head, _, body = raw.partition(b"\r\n\r\n")
        assert len(head) < 1000
        lines = head.decode("ascii").split("\r\n")
        version, status, _reason = lines[0].split(" ", 2)
        headers = dict(line.split(": ", 1) for line in lines[1:])
        assert "Server" not in headers
        assert "Transfer-Encoding" not in headers
        assert all(name == name.title() for name in headers)
        return cls(version, int(status), headers, body)

    def assert_refused(self, status: int) -> str:
        """A fixed sentence, with an id in it that is in the header too; answers the sentence."""
        assert self.status == status
        assert self.headers["Content-Type"] == "text/plain; charset=utf-8"
        assert int(self.headers["Content-Length"]) == len(self.body)
        request_id = self.headers["X-Request-Id"]
        assert REQUEST_ID.fullmatch(request_id)
        sentence, _, rest = self.body.decode("ascii").partition(" (request ")
        assert rest == f"{request_id})\n"
        return sentence


@dataclass
class Site:
    """A running application behind one plain and one TLS listener."""

    loop: LoopThread
    plain: int
    tls: int
    refusals: Events
    events: Events
    release: asyncio.Event
    listeners: list[Listener]
    failures: list[str]
    """What was logged as our own fault; a test that wants one takes it away."""

    def ask(self, request: bytes) -> Answer:
        with connect(self.plain) as sock:
            sock.sendall(request)
            return Answer.parse(read_all(sock))

    def next_refusal(self) -> str:
        reason, peer, request_id = self.refusals.next()
        assert re.fullmatch(r"127\.0\.0\.1:\d+", peer)
        assert REQUEST_ID.fullmatch(request_id)
        return str(reason)


def open_connection(site: Site, pki: TlsPki, port: str) -> socket.socket:
    """A connection to one of the two listeners, by name."""
    tcp = connect(site.tls if port == "tls" else site.plain)
    return pki.client().wrap_socket(tcp, server_hostname="localhost") if port == "tls" else tcp


def await_open_body(site: Site) -> None:
    """Until the server has read a head whose body is incomplete."""
    while not any(site.loop.call(lambda: [one._open_payload for one in site.listeners[0].connections])):
        pass


def make_app(events: Events, release: asyncio.Event) -> web.Application:
    async def echo(request: web.Request) -> web.Response:
        body = await request.read()
        return web.Response(body=body, content_type="application/octet-stream", headers={"X-Scheme": request.scheme})

    async def cacerts(_request: web.Request) -> web.Response:
        der = pkcs7.serialize_certificates([tls_pki().root.certificate], Encoding.DER)
        headers = {"Content-Type": "application/pkcs7-mime", "Content-Transfer-Encoding": "base64"}
        return web.Response(body=base64.b64encode(der), headers=headers)

    async def boom(_request: web.Request) -> web.Response:
        raise ValueError("an inner secret")

    async def nothing(_request: web.Request) -> web.Response:
        return None  # type: ignore[return-value]  # the mistake that the test is about

    async def slow(_request: web.Request) -> web.Response:
        events.put("in hand")
        await release.wait()
        return web.Response(text="slow but sure")

    async def big(_request: web.Request) -> web.Response:
        return web.Response(body=bytes(20_000_000))

    async def unread(_request: web.Request) -> web.Response:
        return web.Response(text="not read")

    async def forbidden(_request: web.Request) -> web.Response:
        raise web.HTTPForbidden(text="the application's own words")

    async def name(request: web.Request) -> web.Response:
        assert request_id_of(request) == request_id_of(request)
        return web.Response(text=request_id_of(request))

    app = web.Application(client_max_size=64 * 1024)
    for path, handler in {
        "/echo": echo,
        "/boom": boom,
        "/nothing": nothing,
        "/slow": slow,
        "/big": big,
        "/unread": unread,
        "/forbidden": forbidden,
        "/name": name,
        "/.well-known/est/cacerts": cacerts,
    }.items():
        app.router.add_post(path, handler)
        app.router.add_get(path, handler)
    return app


LIMITS = HttpLimits(max_line_size=4096, max_fields=20)


@pytest.fixture(scope="session")
def pki() -> TlsPki:
    return tls_pki()


@pytest.fixture
def limits() -> HttpLimits:
    return LIMITS


@pytest.fixture
def stream_limits() -> StreamLimits:
    return StreamLimits()


@pytest.fixture(params=sorted(LOOPS))
def site(
    request: pytest.FixtureRequest, pki: TlsPki, limits: HttpLimits, stream_limits: StreamLimits
) -> Iterator[Site]:
    context = ServerContext(pki.server.chain, pki.server.key, ask_client_certificate=True)
    refusals, events = Events(), Events()

    def on_refused(reason: str, peer: str, request_id: str) -> None:
        refusals.put((reason, peer, request_id))

    async def start() -> tuple[web.AppRunner, asyncio.Event, list[Listener], list[int]]:
        release = asyncio.Event()
        runner = web.AppRunner(make_app(events, release))
        await runner.setup()
        sockets = [listening_socket(), listening_socket()]
        listeners = [
            await serve_plain(
                runner, sockets[0], stream_limits=stream_limits, http_limits=limits, on_refused=on_refused
            ),
            await serve_tls(runner, sockets[1], lambda _name: context, http_limits=limits, on_refused=on_refused),
        ]
        return runner, release, listeners, [sock.getsockname()[1] for sock in sockets]

    async def stop() -> None:
        release.set()  # lets go of handlers that a test left waiting
        for listener in listeners:
            await listener.close(0)
        await runner.cleanup()

    with loop_thread(request.param) as loop:
        runner, release, listeners, (plain, tls) = loop.run(start())
        failures: list[str] = []
        watch = logging.Handler(logging.WARNING)
        watch.emit = lambda record: failures.append(record.getMessage())  # type: ignore[method-assign]  # a short class
        logging.getLogger("enrolld.http").addHandler(watch)
        yield Site(loop, plain, tls, refusals, events, release, listeners, failures)
        loop.run(stop())
        logging.getLogger("enrolld.http").removeHandler(watch)
    assert failures == []


# Refusals


def chunked(*chunks: bytes) -> bytes:
    return b"POST /echo HTTP/1.1\r\n" + LAST + b"Transfer-Encoding: chunked\r\n\r\n" + b"".join(chunks)


MALFORMED = "This is not a well-formed HTTP request."


@pytest.mark.parametrize(
    ("request_bytes", "status", "reason"),
    [
        pytest.param(b"\x00\x01\x02\r\n\r\n", 400, "http_malformed", id="binary"),
        pytest.param(b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", 400, "http_got_tls", id="tls-client-hello"),
        pytest.param(b"SECRET /echo HTTP/1.1\r\n" + LAST + b"\r\n", 400, "http_malformed", id="unknown-method"),
        pytest.param(b"GET /echo\r\n\r\n", 505, "http_version_unsupported", id="http-0.9"),
        pytest.param(b"GET /echo HTTP/9.9\r\n" + LAST + b"\r\n", 400, "http_malformed", id="http-9.9"),
        pytest.param(b"GET /echo HTTP/2.0\r\n" + LAST + b"\r\n", 505, "http_version_unsupported", id="http-2.0"),
        pytest.param(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 400, "http_malformed", id="h2-preface"),
        pytest.param(b"GET /a b HTTP/1.1\r\n" + LAST + b"\r\n", 400, "http_malformed", id="space-in-target"),
        pytest.param(b"GET /echo HTTP/1.1\r\n\r\n", 400, "http_no_host", id="no-host"),
        pytest.param(b"GET /echo HTTP/1.1\r\n" + LAST + HOST + b"\r\n", 400, "http_malformed", id="two-hosts"),
        pytest.param(b"GET /echo HTTP/1.1\r\n" + LAST + b"SECRET\r\n\r\n", 400, "http_malformed", id="no-colon"),
        pytest.param(b"GET /echo HTTP/1.1\r\n" + LAST + b"A : SECRET\r\n\r\n", 400, "http_malformed", id="space-colon"),
        pytest.param(b"GET /echo HTTP/1.1\r\n" + LAST + b"A: SECRET\x00\r\n\r\n", 400, "http_malformed", id="nul"),
        pytest.param(b"GET /echo HTTP/1.1\r\n" + LAST + b"A: b\r\n SECRET\r\n\r\n", 400, "http_malformed", id="folded"),
        pytest.param(
            b"GET /echo HTTP/1.1\r\n" + LAST + b"A: b\rSECRET: c\r\n\r\n", 400, "http_malformed", id="bare-cr"
        ),
        pytest.param(
            b"POST /echo HTTP/1.1\r\n" + LAST + b"Content-Length: 3\r\nContent-Length: 3\r\n\r\nabc",
            400,
            "http_malformed",
            id="two-content-lengths",
        ),
        pytest.param(
            b"POST /echo HTTP/1.1\r\n" + LAST + b"Content-Length: -3\r\n\r\nabc", 400, "http_malformed", id="negative"
        ),
        pytest.param(
            b"POST /echo HTTP/1.1\r\n" + LAST + b"Content-Length: +3\r\n\r\nabc", 400, "http_malformed", id="plus"
        ),
        pytest.param(
            b"POST /echo HTTP/1.1\r\n" + LAST + b"Content-Length: 99999999999999999999999\r\n\r\nabc",
            400,
            "http_malformed",
            id="length-over-64-bits",
        ),
        pytest.param(
            chunked(b"3\r\nabc\r\n0\r\n\r\n").replace(b"\r\n\r\n", b"\r\nContent-Length: 3\r\n\r\n", 1),
            400,
            "http_malformed",
            id="content-length-and-chunked",
        ),
        pytest.param(
            chunked(b"3\r\nabc\r\n0\r\n\r\n").replace(b": chunked", b": chunked, identity"),
            400,
            "http_malformed",
            id="chunked-is-not-last",
        ),
        pytest.param(
            chunked(b"3\r\nabc\r\n0\r\n\r\n").replace(b": chunked", b": xchunked"),
            400,
            "http_malformed",
            id="unknown-transfer-coding",
        ),
        pytest.param(chunked(b"SECRET\r\n"), 400, "http_malformed", id="chunk-size-no-hex"),
        pytest.param(chunked(b"3\r\nabcSECRET\r\n0\r\n\r\n"), 400, "http_malformed", id="chunk-longer-than-it-says"),
        pytest.param(chunked(b"3\nabc\n0\n\n"), 400, "http_malformed", id="chunks-with-bare-lf"),
        pytest.param(chunked(b"ffffffffffffffffff\r\nabc"), 400, "http_malformed", id="chunk-size-over-64-bits"),
        pytest.param(b"GET /" + b"a" * 5000 + b" HTTP/1.1\r\n\r\n", 414, "http_target_too_long", id="line"),
        pytest.param(
            b"GET / HTTP/1.1\r\n" + LAST + b"A: " + b"a" * 9000 + b"\r\n\r\n", 431, "http_field_too_long", id="field"
        ),
        pytest.param(
            b"GET / HTTP/1.1\r\n" + LAST + b"A: b\r\n" * 30 + b"\r\n", 431, "http_too_many_fields", id="fields"
        ),
        pytest.param(b"GET /nowhere HTTP/1.1\r\n" + LAST + b"\r\n", 404, "http_not_found", id="unknown-path"),
        pytest.param(b"PUT /echo HTTP/1.1\r\n" + LAST + b"\r\n", 405, "http_method_not_allowed", id="method"),
        pytest.param(
            b"POST /echo HTTP/1.1\r\n" + LAST + b"Expect: SECRET\r\n\r\n", 417, "http_expectation_failed", id="expect"
        ),
    ],
)
def test_what_http_forbids_is_refused_in_a_fixed_sentence(
    site: Site, caplog: pytest.LogCaptureFixture, request_bytes: bytes, status: int, reason: str
) -> None:
    caplog.set_level(logging.INFO)
    answer = site.ask(request_bytes)
    sentence = answer.assert_refused(status)
    assert (sentence == MALFORMED) == (reason == "http_malformed")
    assert answer.version == "HTTP/1.1"
    assert site.next_refusal() == reason
    assert site.refusals.none_waits()
    (record,) = [record for record in caplog.records if record.name == "enrolld.http"]
    assert record.levelno == logging.INFO
    assert record.exc_info is None
    line = record.getMessage()
    assert reason in line
    assert answer.headers["X-Request-Id"] in line
    assert "SECRET" not in line + answer.body.decode()
    assert line.isprintable()


@pytest.mark.parametrize(
    ("request_bytes", "body"),
    [
        pytest.param(b"GET /echo HTTP/1.1\r\n" + LAST + b"\r\n", b"", id="get"),
        pytest.param(b"\r\nGET /echo HTTP/1.1\r\n" + LAST + b"\r\n", b"", id="leading-crlf"),
        pytest.param(b"POST /echo HTTP/1.1\r\n" + LAST + b"Content-Length: 3\r\n\r\nabc", b"abc", id="content-length"),
        pytest.param(b"POST /echo HTTP/1.1\r\n" + LAST + b"Content-Length: 3\r\n\r\nabc\r\n", b"abc", id="libest-crlf"),
        pytest.param(chunked(b"3\r\nabc\r\n", b"2;x=y\r\nde\r\n", b"0\r\n\r\n"), b"abcde", id="chunked"),
        pytest.param(b"GET /echo?" + b"a" * 4000 + b" HTTP/1.1\r\n" + LAST + b"\r\n", b"", id="long-target"),
        pytest.param(b"GET /echo HTTP/1.1\r\n" + LAST + b"A: b\r\n" * 17 + b"\r\n", b"", id="many-fields"),
        pytest.param(b"GET http://localhost/echo HTTP/1.1\r\n" + LAST + b"\r\n", b"", id="absolute-form"),
        pytest.param(
            b"POST /echo HTTP/1.1\r\n" + LAST + b"Content-Encoding: gzip\r\nContent-Length: 3\r\n\r\n\x1f\x8b\x08",
            b"\x1f\x8b\x08",
            id="gzip-is-handed-on-as-it-is",
        ),
    ],
)
def test_the_twins_that_http_allows_are_served(site: Site, request_bytes: bytes, body: bytes) -> None:
    answer = site.ask(request_bytes)
    assert (answer.version, answer.status, answer.body) == ("HTTP/1.1", 200, body)
    assert answer.headers["Connection"] == "close"
    assert answer.headers["Content-Length"] == str(len(body))
    assert site.refusals.none_waits()


@pytest.mark.parametrize(
    ("framing", "size", "status"),
    [
        pytest.param("length", 64 * 1024, 200, id="length-at-the-cap"),
        pytest.param("length", 64 * 1024 + 1, 413, id="length-one-over"),
        pytest.param("length", 5_000_000, 413, id="length-far-over"),
        pytest.param("chunked", 64 * 1024, 200, id="chunked-at-the-cap"),
        pytest.param("chunked", 64 * 1024 + 1, 413, id="chunked-one-over"),
        pytest.param("chunked", 5_000_000, 413, id="chunked-far-over"),
    ],
)
def test_the_body_cap_holds_for_both_framings_and_its_answer_arrives(
    site: Site, pki: TlsPki, framing: str, size: int, status: int
) -> None:
    head = b"POST /echo HTTP/1.1\r\n" + LAST
    if framing == "length":
        request = head + b"Content-Length: %d\r\n\r\n" % size + bytes(size)
    else:
        chunks = [b"%x\r\n%b\r\n" % (len(part), part) for part in (bytes(10_000),) * (size // 10_000)]
        rest = size % 10_000
        request = head + b"Transfer-Encoding: chunked\r\n\r\n" + b"".join(chunks)
        request += (b"%x\r\n%b\r\n" % (rest, bytes(rest)) if rest else b"") + b"0\r\n\r\n"
    for port in ("plain", "tls"):
        with open_connection(site, pki, port) as sock:
            sock.sendall(request)  # all of it, before a look at the answer
            answer = Answer.parse(read_all(sock))
        assert answer.status == status
        if status == 413:
            assert answer.assert_refused(413) == "The body is too large."
            assert site.next_refusal() == "http_body_too_large"


@pytest.mark.parametrize(("path", "status"), [("/boom", 500), ("/nothing", 500)])
def test_a_handler_that_fails_tells_the_log_and_not_the_peer(
    site: Site, caplog: pytest.LogCaptureFixture, path: str, status: int
) -> None:
    answer = site.ask(b"GET " + path.encode() + b" HTTP/1.1\r\n" + HOST + b"\r\n")
    assert answer.assert_refused(status) == "Something went wrong here."
    (record,) = [record for record in caplog.records if record.levelno == logging.ERROR]
    assert record.name == "enrolld.http"
    assert record.exc_info is not None
    assert answer.headers["X-Request-Id"] in record.getMessage()
    assert site.refusals.none_waits()
    assert site.failures == [record.getMessage()]
    site.failures.clear()


def test_the_applications_own_refusal_keeps_its_words(site: Site) -> None:
    answer = site.ask(b"GET /forbidden HTTP/1.1\r\n" + LAST + b"\r\n")
    assert (answer.status, answer.body) == (403, b"the application's own words")


def test_a_request_has_one_id(site: Site) -> None:
    assert REQUEST_ID.fullmatch(site.ask(b"GET /name HTTP/1.1\r\n" + LAST + b"\r\n").body.decode())


def test_request_ids_are_short_speakable_and_differ() -> None:
    ids = {new_request_id() for _ in range(1000)}
    assert len(ids) == 1000
    assert all(REQUEST_ID.fullmatch(one) for one in ids)
    assert not set("".join(ids)) & set("01oliuv")


# Versions and connections


@pytest.mark.parametrize(
    ("version", "connection", "stays_open"),
    [
        pytest.param("1.0", None, False, id="http10"),
        pytest.param("1.0", "keep-alive", True, id="http10-keep-alive"),
        pytest.param("1.1", None, True, id="http11"),
        pytest.param("1.1", "close", False, id="http11-close"),
    ],
)
def test_the_version_is_echoed_and_connection_is_honoured(
    site: Site, version: str, connection: str | None, stays_open: bool
) -> None:
    request = f"POST /echo HTTP/{version}\r\nHost: localhost\r\nContent-Length: 3\r\n"
    request += f"Connection: {connection}\r\n\r\nabc" if connection else "\r\nabc"
    with connect(site.plain) as sock:
        sock.sendall(request.encode() + b"\r\n")  # with libest's stray CRLF
        if stays_open:
            sock.sendall(b"GET /echo HTTP/1.1\r\n" + LAST + b"\r\n")
        first, *second = re.split(rb"(?=HTTP/1\.)", read_all(sock))[1:]
    answer = Answer.parse(first)
    assert (answer.version, answer.body) == (f"HTTP/{version}", b"abc")
    assert len(second) == stays_open


def test_tls_says_https_and_closes_cleanly(site: Site, pki: TlsPki) -> None:
    context = pki.client(pki.device)
    with context.wrap_socket(connect(site.tls), server_hostname="localhost", suppress_ragged_eofs=False) as sock:
        sock.sendall(b"GET /echo HTTP/1.1\r\n" + LAST + b"\r\n")
        answer = Answer.parse(read_all(sock))
    assert answer.headers["X-Scheme"] == "https"
    assert site.ask(b"GET /echo HTTP/1.1\r\n" + LAST + b"\r\n").headers["X-Scheme"] == "http"


def test_plain_http_on_the_tls_port_is_told_so(site: Site) -> None:
    with connect(site.tls) as sock:
        sock.sendall(b"GET /echo HTTP/1.1\r\n" + HOST + b"\r\n")
        answer = Answer.parse(read_all(sock))
    assert (answer.status, answer.body) == (400, b"This port speaks HTTPS only.\n")
    assert site.next_refusal() == "tls_not_tls"


def test_head_and_body_leave_in_one_tls_record(site: Site, pki: TlsPki) -> None:
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    client = pki.client(version=ssl.TLSVersion.TLSv1_2).wrap_bio(incoming, outgoing, server_hostname="localhost")
    with connect(site.tls) as tcp:
        while True:
            try:
                client.do_handshake()
                break
            except ssl.SSLWantReadError:
                tcp.sendall(outgoing.read())
                incoming.write(tcp.recv(65536))
        client.write(b"POST /echo HTTP/1.1\r\n" + LAST + b"Content-Length: 9000\r\n\r\n" + bytes(9000))
        tcp.sendall(outgoing.read())
        raw = read_all(tcp)
    kinds = []
    while raw:
        kinds.append(raw[0])
        raw = raw[5 + int.from_bytes(raw[3:5], "big") :]
    assert kinds == [23, 21]  # application data once, then the close_notify alert


@pytest.mark.parametrize("port", ["plain", "tls"])
def test_a_client_that_half_closes_gets_its_answer(site: Site, pki: TlsPki, port: str) -> None:
    with open_connection(site, pki, port) as sock:
        sock.sendall(b"GET /slow HTTP/1.1\r\n" + HOST + b"\r\n")
        assert site.events.next() == "in hand"
        socket.socket.shutdown(sock, socket.SHUT_WR)
        site.loop.call(site.release.set)
        assert Answer.parse(read_all(sock)).body == b"slow but sure"


def test_a_body_that_ends_early_is_refused(site: Site) -> None:
    with connect(site.plain) as sock:
        sock.sendall(b"POST /echo HTTP/1.1\r\n" + HOST + b"Content-Length: 30\r\n\r\nabc")
        sock.shutdown(socket.SHUT_WR)
        answer = Answer.parse(read_all(sock))
    assert answer.assert_refused(400) == "The body is shorter than announced."
    assert site.next_refusal() == "http_body_truncated"


@pytest.mark.parametrize(
    ("framing", "rest"),
    [
        pytest.param(b"3\r\nabc\r\n", b"SECRET\r\n", id="size-no-hex"),
        pytest.param(b"3\r\nabc", b"SECRET\r\n", id="longer-than-it-says"),
    ],
)
def test_a_body_that_breaks_while_its_handler_waits_is_refused(site: Site, framing: bytes, rest: bytes) -> None:
    with connect(site.plain) as sock:
        sock.sendall(b"POST /echo HTTP/1.1\r\n" + HOST + b"Transfer-Encoding: chunked\r\n\r\n" + framing)
        await_open_body(site)
        sock.sendall(rest)
        answer = Answer.parse(read_all(sock))
    assert answer.assert_refused(400) == MALFORMED
    assert site.next_refusal() == "http_malformed"
    assert site.refusals.none_waits()


def test_a_peer_that_leaves_in_the_middle_is_no_failure(site: Site) -> None:
    with connect(site.plain) as sock:
        sock.sendall(b"POST /echo HTTP/1.1\r\n" + HOST + b"Content-Length: 30\r\n\r\nabc")
        await_open_body(site)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))  # a reset, no end of stream
    site.loop.run(site.listeners[0].close(10))
    assert site.failures == []


def test_a_connection_that_is_lost_in_the_turn_it_was_made_is_no_failure(site: Site) -> None:
    class Nowhere(asyncio.Transport):
        def close(self) -> None:
            """Already."""

    def flash() -> None:
        connection = site.listeners[0].make_connection()
        connection.connection_made(Nowhere())
        connection.connection_lost(None)

    site.loop.call(flash)
    site.loop.run(asyncio.sleep(0))
    gc.collect()  # an exception that nobody retrieved is told then


def test_a_request_that_comes_together_with_its_peer_s_reset_is_no_failure(site: Site) -> None:
    class Nowhere(asyncio.Transport):
        def is_closing(self) -> bool:
            return False

        def close(self) -> None:
            """Already."""

    def made() -> HttpConnection:
        connection = site.listeners[0].make_connection()
        connection.connection_made(Nowhere())
        return connection

    def asked_and_lost(connection: HttpConnection) -> None:
        connection.data_received(b"GET /cacerts HTTP/1.1\r\n" + HOST + b"\r\n")
        connection.connection_lost(ConnectionResetError())

    connection = site.loop.call(made)
    site.loop.run(asyncio.sleep(0.01))  # until it waits for a request
    site.loop.call(asked_and_lost, connection)
    site.loop.run(asyncio.sleep(0.01))
    del connection
    gc.collect()  # an exception that nobody retrieved is told then
    assert site.failures == []


def test_a_body_that_nobody_read_ends_with_the_connection_unless_it_is_short(site: Site) -> None:
    for size, stays in ((1000, True), (5_000_000, False)):
        with connect(site.plain) as sock:
            sock.sendall(b"POST /unread HTTP/1.1\r\n" + HOST + b"Content-Length: %d\r\n\r\n" % size)
            answer = Answer.parse(sock.recv(1000))
            assert answer.body == b"not read"
            assert (answer.headers.get("Connection") != "close") == stays
            sock.sendall(bytes(size))
            if stays:
                sock.sendall(b"GET /echo HTTP/1.1\r\n" + LAST + b"\r\n")
                assert Answer.parse(read_all(sock)).status == 200


def test_pipelined_requests_are_answered_in_order(site: Site) -> None:
    requests = [b"POST /echo HTTP/1.1\r\n" + HOST + b"Content-Length: 1\r\n\r\n%d" % n for n in range(9)]
    with connect(site.plain) as sock:
        sock.sendall(b"".join(requests))
        sock.shutdown(socket.SHUT_WR)
        assert re.findall(rb"\r\n\r\n(\d)", read_all(sock)) == [b"%d" % n for n in range(9)]


def test_a_body_may_end_together_with_the_next_head_and_the_end_of_stream(site: Site) -> None:
    with connect(site.plain) as sock:
        sock.sendall(b"POST /slow HTTP/1.1\r\n" + HOST + b"Content-Length: 6\r\n\r\nabc")
        await_open_body(site)
        sock.sendall(b"defPOST /echo HTTP/1.1\r\n" + HOST + b"Content-Length: 3\r\n\r\nghi")
        sock.shutdown(socket.SHUT_WR)
        site.loop.call(site.release.set)
        answers = read_all(sock)
    assert re.findall(rb"\r\n\r\n([a-z ]+)", answers) == [b"slow but sure", b"ghi"]


def test_a_body_may_end_together_with_garbage(site: Site) -> None:
    with connect(site.plain) as sock:
        sock.sendall(b"POST /echo HTTP/1.1\r\n" + HOST + b"Content-Length: 6\r\n\r\nabc")
        await_open_body(site)
        sock.sendall(b"def\x00\x00\r\n\r\n")
        first, second = re.split(rb"(?=HTTP/1\.)", read_all(sock))[1:]
    assert Answer.parse(first).body == b"abcdef"
    assert Answer.parse(second).assert_refused(400) == MALFORMED


def test_a_body_that_ends_early_after_its_answer_is_no_failure(site: Site) -> None:
    with connect(site.plain) as sock:
        sock.sendall(b"POST /unread HTTP/1.1\r\n" + HOST + b"Content-Length: 1000\r\n\r\nabc")
        assert Answer.parse(sock.recv(1000)).body == b"not read"
        sock.shutdown(socket.SHUT_WR)
        assert read_all(sock) == b""
    site.loop.run(site.listeners[0].close(10))
    assert site.failures == []


# Deadlines


@pytest.mark.parametrize("limits", [HttpLimits(head_timeout=0.1)], ids=[""])
def test_a_head_that_takes_too_long_is_refused(site: Site, pki: TlsPki) -> None:
    for port in ("plain", "tls"):
        with open_connection(site, pki, port) as sock:
            sock.sendall(b"GET /echo HTTP/1.1\r\nHost: ")
            answer = Answer.parse(read_all(sock))
        assert answer.assert_refused(408) == "The request took too long to arrive."
        assert site.next_refusal() == "http_head_timeout"


@pytest.mark.parametrize("limits", [HttpLimits(head_timeout=0.1)], ids=[""])
def test_a_connection_that_asks_nothing_is_closed_in_silence(site: Site) -> None:
    with connect(site.plain) as sock:
        assert read_all(sock) == b""
    assert site.refusals.none_waits()


@pytest.mark.parametrize("limits", [HttpLimits(body_timeout=0.1)], ids=[""])
@pytest.mark.parametrize(
    "framing", [b"Content-Length: 30\r\n\r\nabc", b"Transfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n"]
)
def test_a_body_that_takes_too_long_is_refused(site: Site, framing: bytes) -> None:
    answer = site.ask(b"POST /echo HTTP/1.1\r\n" + HOST + framing)
    assert answer.assert_refused(408) == "The body took too long to arrive."
    assert site.next_refusal() == "http_body_timeout"


@pytest.mark.parametrize("limits", [HttpLimits(idle_timeout=0.1)], ids=[""])
def test_an_idle_connection_is_closed(site: Site) -> None:
    answer = site.ask(b"GET /echo HTTP/1.1\r\n" + HOST + b"\r\n")
    assert answer.status == 200
    assert "Connection" not in answer.headers


@pytest.mark.parametrize("limits", [HttpLimits(idle_timeout=5, head_timeout=3600)], ids=[""])
def test_a_head_that_has_begun_is_not_idle(site: Site) -> None:
    with connect(site.plain) as sock:
        sock.sendall(b"GET /echo HTTP/1.1\r\n" + HOST + b"\r\n")
        assert b"200 OK" in sock.recv(1000)
        sock.sendall(b"GET /echo HTTP/1.1\r\n")
        (connection,) = site.listeners[0].connections
        while not site.loop.call(lambda: connection._head_size):
            assert site.listeners[0].connections, "closed as idle before the head's first byte was seen"
        deadline = connection._deadline
        assert deadline is not None
        assert deadline.when() - site.loop.loop.time() > 1000
        sock.sendall(LAST + b"\r\n")
        assert Answer.parse(read_all(sock)).status == 200


@pytest.mark.parametrize("limits", [HttpLimits(max_head_size=3000)], ids=[""])
def test_a_head_may_not_grow_without_end(site: Site) -> None:
    with connect(site.plain) as sock:
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        sock.sendall(b"GET /echo HTTP/1.1\r\n" + HOST)
        for _ in range(50):
            sock.sendall(b"A: " + b"a" * 100 + b"\r\n")
        answer = Answer.parse(read_until_closed(sock))
    answer.assert_refused(431)
    assert site.next_refusal() in {"http_head_too_large", "http_too_many_fields"}


@pytest.mark.parametrize("stream_limits", [StreamLimits(write_timeout=0.2)], ids=[""])
def test_a_client_that_does_not_read_is_cut(site: Site) -> None:
    with connect(site.plain) as sock:
        sock.sendall(b"GET /big HTTP/1.1\r\n" + HOST + b"\r\n")
        assert site.next_refusal() == "write_stalled"
        assert len(read_until_closed(sock)) < 20_000_000


# Draining


def test_draining_finishes_what_is_in_hand_and_closes_what_is_idle(site: Site) -> None:
    idle, busy, late = (connect(site.plain) for _ in range(3))
    with idle, busy, late:
        idle.sendall(b"GET /echo HTTP/1.1\r\n" + HOST + b"\r\n")
        assert b"200 OK" in idle.recv(1000)
        busy.sendall(b"GET /slow HTTP/1.1\r\n" + HOST + b"\r\n")
        assert site.events.next() == "in hand"
        done = threading.Thread(target=site.loop.run, args=(site.listeners[0].close(10),))
        done.start()
        assert read_all(idle) == b""
        with pytest.raises(ConnectionRefusedError):
            connect(site.plain)
        site.loop.call(site.release.set)
        answer = Answer.parse(read_all(busy))
        assert (answer.body, answer.headers["Connection"]) == (b"slow but sure", "close")
        late.sendall(b"GET /echo HTTP/1.1\r\n" + HOST + b"\r\n")  # connected before the drain, and asks once
        assert Answer.parse(read_all(late)).headers["Connection"] == "close"
    done.join(timeout=10)
    assert not done.is_alive()


def test_draining_cuts_at_its_deadline(site: Site) -> None:
    with connect(site.plain) as busy:
        busy.sendall(b"GET /slow HTTP/1.1\r\n" + HOST + b"\r\n")
        assert site.events.next() == "in hand"
        site.loop.run(site.listeners[0].close(0.05))
        assert read_until_closed(busy) == b""


# Foreign clients


@pytest.mark.foreign
@pytest.mark.skipif(shutil.which("curl") is None, reason="curl is not installed")
@pytest.mark.parametrize("version", ["--http1.0", "--http1.1", "--http2"])
def test_curl_is_served(site: Site, pki: TlsPki, version: str) -> None:
    device = pki.device.write(pki.folder / "device.pem")
    url = f"https://localhost:{site.tls}/echo"
    done = subprocess.run(
        ["curl", "-sSi", version, "--cacert", pki.root_file, "--cert", device, "--data-binary", "abc", url],
        capture_output=True,
        timeout=30,
        check=True,
    )
    assert Answer.parse(done.stdout).body == b"abc"


@pytest.mark.foreign
@pytest.mark.skipif(shutil.which("pki") is None, reason="strongSwan's pki is not installed")
def test_strongswan_is_served_and_its_fatal_close_notify_is_no_refusal(site: Site, pki: TlsPki, tmp_path: Path) -> None:
    url = f"https://localhost:{site.tls}"
    command = ["pki", "--estca", "--url", url, "--cacert", str(pki.root_file), "--caout", str(tmp_path / "ca")]
    done = subprocess.run(command, capture_output=True, timeout=30, check=False)
    if b"invalid operation" in done.stderr:
        pytest.skip("this strongSwan's pki has no EST client (it came with 5.9.8)")
    assert (tmp_path / "ca.der").read_bytes() == pki.root.der_chain[0]
    site.loop.run(site.listeners[1].close(10))
    assert site.refusals.none_waits()


def test_the_standard_librarys_client_is_served(site: Site, pki: TlsPki) -> None:
    connection = http.client.HTTPSConnection("localhost", site.tls, context=pki.client(pki.device), timeout=10)
    for body in (b"one", b"two"):
        connection.request("POST", "/echo", body=body)
        assert connection.getresponse().read() == body
    connection.close()
