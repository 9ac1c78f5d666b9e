"""A TLS server with a tiny line protocol inside, or with HTTP, on either event loop."""

import asyncio
import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, cast

import pytest
from aiohttp import web

from enrolld.http_server import HttpLimits, Listener, serve_tls
from enrolld.tls import Select, ServerContext, TlsLimits, TlsPeer, TlsServer, TlsTransport
from tests.helpers.daemon import eventually
from tests.helpers.tls_clock import AheadLoop
from tests.helpers.tls_pki import (
    LOOPS,
    Events,
    LoopThread,
    TlsPki,
    connect,
    listening_socket,
    loop_thread,
    read_all,
    tls_pki,
)
from tests.helpers.tls_wire import Taps

CLOCKED = pytest.mark.parametrize("loop", ["ahead"], indirect=True)
"""Only on the loop whose clock the test puts forward."""


class Lines(asyncio.Protocol):
    """Answers each line: "big N" with N bytes, "close" with a farewell, "GET" as HTTP does, any other with its length.

    An end of stream is answered with "bye".
    """

    def __init__(self, served: "Served") -> None:
        self._served = served
        self._buffer = bytearray()
        self._transport: asyncio.Transport

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        self._served.transports.put(transport)
        self._served.peers.put(transport.get_extra_info("tls"))

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        while b"\n" in self._buffer:
            line, _, rest = bytes(self._buffer).partition(b"\n")
            self._buffer = bytearray(rest)
            self._answer(line)

    def eof_received(self) -> bool:
        self._transport.write(b"bye\n")
        self._transport.close()
        return True

    def pause_writing(self) -> None:
        self._served.pauses.put("pause")

    def resume_writing(self) -> None:
        self._served.pauses.put("resume")

    def connection_lost(self, exc: Exception | None) -> None:
        self._served.lost.put(exc)

    def _answer(self, line: bytes) -> None:
        command, _, argument = line.partition(b" ")
        if command == b"big":
            self._transport.write(bytes(int(argument)))
        elif command == b"pieces":
            self._transport.writelines([b"head", b"-", bytes(int(argument)), b"tail"])
        elif command == b"GET":
            self._transport.write(b"HTTP/1.1 200 OK\r\nContent-Length: 7\r\nConnection: close\r\n\r\nserved\n")
            self._transport.close()
        elif command == b"close":
            self._transport.write(b"farewell\n")
            self._transport.close()
        else:
            self._transport.write(b"%d\n" % len(line))


@dataclass
class Served:
    """A running server, and what it reported."""

    port: int
    loop: LoopThread
    refusals: Events
    peers: Events
    lost: Events
    pauses: Events
    transports: Events
    server: TlsServer
    taps: Taps = field(default_factory=Taps)

    def serve_an_honest_line(self, pki: TlsPki) -> None:
        """What was sent to the same loop before has been read when this is over."""
        with pki.client(pki.device).wrap_socket(connect(self.port), server_hostname="localhost") as sock:
            sock.sendall(b"12345\n")
            assert sock.recv(100) == b"5\n"
        assert self.next_peer().chain == pki.device.der_chain

    def await_connections(self, count: int) -> None:
        """Until that many are alive, those in a handshake included."""
        eventually(lambda: len(self.server.connections) == count or None, what=f"{count} connections are alive")

    def next_peer(self) -> TlsPeer:
        peer = self.peers.next()
        assert isinstance(peer, TlsPeer)
        return peer

    def next_transport(self) -> TlsTransport:
        transport = self.transports.next()
        assert isinstance(transport, TlsTransport)
        return transport


Serve = Callable[..., Served]


@pytest.fixture(scope="session")
def pki() -> TlsPki:
    return tls_pki()


@pytest.fixture(scope="session")
def asking(pki: TlsPki) -> ServerContext:
    """The server's context that asks for a client certificate."""
    return ServerContext(pki.server.chain, pki.server.key, ask_client_certificate=True)


@pytest.fixture(autouse=True)
def nothing_is_logged() -> Iterator[None]:
    """Whatever a peer does, it is no failure of ours: no warning, no traceback, from any library."""
    seen: list[str] = []
    watch = logging.Handler(logging.WARNING)
    watch.emit = lambda record: seen.append(f"{record.getMessage()} {record.exc_info}")  # type: ignore[method-assign]
    logging.getLogger().addHandler(watch)
    yield
    logging.getLogger().removeHandler(watch)
    assert seen == []


@pytest.fixture(params=sorted(LOOPS))
def loop(request: pytest.FixtureRequest) -> Iterator[LoopThread]:
    with loop_thread(request.param, {**LOOPS, "ahead": AheadLoop}) as thread:
        yield thread


@pytest.fixture
def serve(loop: LoopThread, asking: ServerContext) -> Iterator[Serve]:
    listeners: list[tuple[asyncio.Server, TlsServer]] = []

    def start(
        select: Select = lambda _name: asking,
        limits: TlsLimits | None = None,
        answer: bytes = b"",
        *,
        tapped: bool = False,
    ) -> Served:
        sock = listening_socket()
        refusals = Events()

        def on_refused(reason: str, _peername: Any) -> None:
            refusals.put(reason)

        def make_inner() -> Lines:
            return Lines(served)

        server = TlsServer(make_inner, select, limits=limits, on_refused=on_refused, plaintext_answer=answer)
        port = sock.getsockname()[1]
        served = Served(port, loop, refusals, Events(), Events(), Events(), Events(), server)

        async def listen() -> asyncio.Server:
            factory = served.taps.factory(server) if tapped else server
            return await asyncio.get_running_loop().create_server(factory, sock=sock)

        listeners.append((loop.run(listen()), server))
        return served

    yield start

    async def stop(listener: asyncio.Server, server: TlsServer) -> None:
        listener.close()
        server.abort()
        await server.wait_closed()

    for listener, server in listeners:
        loop.run(stop(listener, server))


@dataclass
class Site:
    """A running HTTP application over TLS, and what was reported."""

    port: int
    loop: LoopThread
    refusals: Events
    asked: Events
    peers: Events
    listener: Listener

    def open_connections(self) -> int:
        """Connections whose handshake is finished and that are not gone."""
        return self.loop.call(lambda: len(self.listener.connections))

    def await_open(self, count: int) -> None:
        """Until that many are open."""
        eventually(lambda: self.open_connections() == count or None, what=f"{count} connections are open")

    def serve_an_honest_request(self, pki: TlsPki) -> None:
        """What was sent to the same loop before has been read when this is over."""
        with pki.client(pki.device).wrap_socket(connect(self.port), server_hostname="localhost") as sock:
            sock.sendall(b"POST /echo HTTP/1.1\r\n" + LAST + b"Content-Length: 5\r\n\r\nhello")
            assert read_all(sock).endswith(b"\r\n\r\nhello")
        assert self.peers.next().chain == pki.device.der_chain
        assert self.asked.next() == "/echo"

    def waiting_to_be_read(self) -> int:
        """Bytes of answers that peers have not taken."""

        def count() -> int:
            transports = [one.transport for one in self.listener.connections]
            return sum(transport.get_write_buffer_size() for transport in transports if transport is not None)

        return self.loop.call(count)


ServeHttp = Callable[..., Site]

HOST = b"Host: localhost\r\n"
HEAD = b"POST /echo HTTP/1.1\r\n" + HOST
LAST = HOST + b"Connection: close\r\n"
BIG = 20_000_000
"""Bytes of the answer to /big: more than any buffer between the two holds."""


@pytest.fixture
def serve_http(loop: LoopThread, asking: ServerContext) -> Iterator[ServeHttp]:
    """POST /echo answers the body, GET /big answers BIG bytes, GET / a line."""
    running: list[tuple[web.AppRunner, Listener]] = []

    def start(http_limits: HttpLimits | None = None, tls_limits: TlsLimits | None = None) -> Site:
        refusals, asked, peers = Events(), Events(), Events()

        async def echo(request: web.Request) -> web.Response:
            note(request)
            return web.Response(body=await request.read())

        async def root(request: web.Request) -> web.Response:
            note(request)
            return web.Response(text="served by HTTP\n")

        async def big(request: web.Request) -> web.Response:
            note(request)
            return web.Response(body=bytes(BIG))

        def note(request: web.Request) -> None:
            asked.put(request.path)
            assert request.transport is not None
            peers.put(request.transport.get_extra_info("tls"))

        def on_refused(reason: str, _peer: str, _request_id: str) -> None:
            refusals.put(reason)

        async def listen() -> tuple[web.AppRunner, Listener]:
            app = web.Application()
            app.router.add_post("/echo", echo)
            app.router.add_get("/echo", echo)
            app.router.add_get("/", root)
            app.router.add_get("/big", big)
            runner = web.AppRunner(app)
            await runner.setup()
            listener = await serve_tls(
                runner,
                sock,
                lambda _name: asking,
                tls_limits=tls_limits,
                http_limits=http_limits,
                on_refused=on_refused,
            )
            return runner, listener

        sock = listening_socket()
        port = sock.getsockname()[1]
        runner, listener = loop.run(listen())
        running.append((runner, listener))
        return Site(port, loop, refusals, asked, peers, listener)

    yield start

    async def stop(runner: web.AppRunner, listener: Listener) -> None:
        await listener.close(0)
        await runner.cleanup()

    for runner, listener in running:
        loop.run(stop(runner, listener))
