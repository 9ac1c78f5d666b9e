"""A TLS client in memory whose bytes a test carries to the server as it likes, and TLS records taken apart."""

import asyncio
import contextlib
import socket
import ssl
import struct
from collections.abc import AsyncIterator, Callable

CHANGE_CIPHER_SPEC, ALERT, HANDSHAKE, APPLICATION_DATA = 20, 21, 22, 23
"""Content types (RFC 8446 5.1)."""

Cut = Callable[[bytes], list[bytes]]
"""How bytes are taken apart: a flight for TCP, a message for records."""


class MemoryClient:
    """A stock client without a socket: what it wants to send comes out of `flight`, what arrived goes into `take`."""

    def __init__(
        self,
        context: ssl.SSLContext,
        name: str | None = "localhost",
        session: ssl.SSLSession | None = None,
    ) -> None:
        self._incoming, self._outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        self.tls = context.wrap_bio(self._incoming, self._outgoing, server_hostname=name, session=session)
        self.is_connected = False

    def flight(self) -> bytes:
        """The next bytes for the server; empty when it is the server's turn or nothing is left to say."""
        if not self.is_connected:
            with contextlib.suppress(ssl.SSLWantReadError):
                self.tls.do_handshake()
                self.is_connected = True
        return self._outgoing.read()

    def alert(self) -> bytes:
        """What a handshake that failed here has to say."""
        return self._outgoing.read()

    def take(self, data: bytes) -> None:
        """What came from the server; b"" is its FIN."""
        if data:
            self._incoming.write(data)
        else:
            self._incoming.write_eof()

    def write(self, plaintext: bytes) -> None:
        """Put plaintext into a record of its own, for the next flight."""
        self.tls.write(plaintext)

    def end(self) -> None:
        """Put a close_notify into the next flight."""
        with contextlib.suppress(ssl.SSLWantReadError, ssl.SSLSyscallError):
            self.tls.unwrap()

    def plaintext(self) -> bytes:
        """What can be read now."""
        parts = []
        with contextlib.suppress(ssl.SSLWantReadError, ssl.SSLZeroReturnError, ssl.SSLEOFError):
            while part := self.tls.read(65536):
                parts.append(part)
        return b"".join(parts)


class Tap(asyncio.Protocol):
    """Stands between a TCP connection and the server's side of it, and knows what the server has read."""

    def __init__(self, inside: asyncio.Protocol, taps: "Taps") -> None:
        self._inside = inside
        self._taps = taps
        self._waiting: tuple[int, asyncio.Future[None]] | None = None
        self.seen = 0
        self.reads = 0
        self.is_lost = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._taps.add(transport.get_extra_info("peername"), self)
        self._inside.connection_made(transport)

    def data_received(self, data: bytes) -> None:
        self.seen += len(data)
        self.reads += 1
        self._inside.data_received(data)
        self._wake()

    def eof_received(self) -> bool | None:
        return self._inside.eof_received()

    def pause_writing(self) -> None:
        self._inside.pause_writing()

    def resume_writing(self) -> None:
        self._inside.resume_writing()

    def connection_lost(self, exc: Exception | None) -> None:
        self.is_lost = True
        self._inside.connection_lost(exc)
        self._wake()

    async def until_seen(self, size: int) -> None:
        """Until the server has read that many bytes, or has cut the connection."""
        if self.seen < size and not self.is_lost:
            future = asyncio.get_running_loop().create_future()
            self._waiting = (size, future)
            await future

    def _wake(self) -> None:
        if self._waiting is not None and (self.is_lost or self.seen >= self._waiting[0]):
            waiting, self._waiting = self._waiting, None
            waiting[1].set_result(None)


class Taps:
    """The taps of one listener, by the client's address."""

    def __init__(self) -> None:
        self._taps: dict[tuple[str, int], asyncio.Future[Tap]] = {}

    def factory(self, make: Callable[[], asyncio.Protocol]) -> Callable[[], Tap]:
        """A protocol factory that puts a tap in front of each connection."""
        return lambda: Tap(make(), self)

    def add(self, address: tuple[str, int], tap: Tap) -> None:
        self._future(address).set_result(tap)

    async def take(self, address: tuple[str, int]) -> Tap:
        """The tap of the connection from that address, once it is accepted."""
        tap = await self._future(address)
        del self._taps[address]
        return tap

    def _future(self, address: tuple[str, int]) -> asyncio.Future[Tap]:
        if address not in self._taps:
            self._taps[address] = asyncio.get_running_loop().create_future()
        return self._taps[address]


class Wire:
    """A TCP client in the server's own loop: each piece has been read there before the next one leaves."""

    def __init__(self, sock: socket.socket, tap: Tap) -> None:
        self._sock = sock
        self._sent = 0
        self.tap = tap

    async def send(self, *pieces: bytes) -> None:
        """Send the pieces, each a segment that the server reads by itself."""
        loop = asyncio.get_running_loop()
        for piece in pieces:
            await loop.sock_sendall(self._sock, piece)
            self._sent += len(piece)
            await self.tap.until_seen(self._sent)

    async def receive(self) -> bytes:
        """What the server sent; b"" is its FIN."""
        return await asyncio.get_running_loop().sock_recv(self._sock, 65536)

    def end(self) -> None:
        """Send a FIN."""
        self._sock.shutdown(socket.SHUT_WR)


@contextlib.asynccontextmanager
async def wire(port: int, taps: Taps, source: str = "127.0.0.1") -> AsyncIterator[Wire]:
    """Connect to a server of this loop whose connections are tapped; close at the end."""
    loop = asyncio.get_running_loop()
    with socket.socket() as sock:
        sock.setblocking(False)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        sock.bind((source, 0))
        await loop.sock_connect(sock, ("127.0.0.1", port))
        yield Wire(sock, await taps.take(sock.getsockname()))


def records(data: bytes) -> list[tuple[int, bytes]]:
    """The records in `data`, as content type and fragment."""
    found = []
    while data:
        kind, length = data[0], struct.unpack(">H", data[3:5])[0]
        assert len(data) >= 5 + length
        found.append((kind, data[5 : 5 + length]))
        data = data[5 + length :]
    return found


def record(kind: int, fragment: bytes) -> bytes:
    """A record of that content type."""
    return bytes([kind]) + b"\x03\x03" + struct.pack(">H", len(fragment)) + fragment


def cut_at(position: int) -> Cut:
    """In two, after that many bytes, if there are more."""
    return lambda data: [part for part in (data[:position], data[position:]) if part]


def cut_in_pieces(size: int) -> Cut:
    """In pieces of that many bytes."""
    return lambda data: [data[start : start + size] for start in range(0, len(data), size)]


def reset(sock: socket.socket) -> None:
    """Close with a TCP reset."""
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    sock.close()
