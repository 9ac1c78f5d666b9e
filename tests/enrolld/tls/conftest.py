"""A TLS server with a tiny line protocol inside, on either event loop."""

import asyncio
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, cast

import pytest

from enrolld.tls import Select, ServerContext, TlsLimits, TlsPeer, TlsServer, TlsTransport
from tests.helpers.tls_pki import LOOPS, Events, LoopThread, TlsPki, listening_socket, loop_thread, tls_pki


class Lines(asyncio.Protocol):
    """Answers each line: "big N" with N bytes, "close" with a farewell, any other with its length.

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


@pytest.fixture(params=sorted(LOOPS))
def loop(request: pytest.FixtureRequest) -> Iterator[LoopThread]:
    with loop_thread(request.param) as thread:
        yield thread


@pytest.fixture
def serve(loop: LoopThread, asking: ServerContext) -> Iterator[Serve]:
    listeners: list[tuple[asyncio.Server, TlsServer]] = []

    def start(select: Select = lambda _name: asking, limits: TlsLimits | None = None, answer: bytes = b"") -> Served:
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
            return await asyncio.get_running_loop().create_server(server, sock=sock)

        listeners.append((loop.run(listen()), server))
        return served

    yield start

    async def stop(listener: asyncio.Server, server: TlsServer) -> None:
        listener.close()
        server.abort()
        await server.wait_closed()

    for listener, server in listeners:
        loop.run(stop(listener, server))
