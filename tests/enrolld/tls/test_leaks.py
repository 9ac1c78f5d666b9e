"""Thousands of connections of every kind leave nothing behind: no object, no native memory, no descriptor.

Long form, 100,000 connections on each loop: ENROLLD_LONG=1.
"""

import asyncio
import contextlib
import ctypes
import gc
import itertools
import os
import ssl
import sys
from array import array
from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import astuple, dataclass, fields

import pytest

from enrolld.tls import ServerContext, StreamReason, TlsServer
from tests.enrolld.tls.conftest import Lines, Served
from tests.enrolld.tls.test_handshake import TLS12, TLS13
from tests.helpers.tls_pki import Events, Identity, LoopThread, TlsPki, listening_socket
from tests.helpers.tls_wire import APPLICATION_DATA, MemoryClient, Taps, Wire, record, wire

CONNECTIONS = 100_800 if os.environ.get("ENROLLD_LONG") == "1" else 1_800
ROUNDS = 12
WARM_UP, SEVERAL = 5, 3
AT_ONCE = 8

LIBC = ctypes.CDLL(None)


class Mallinfo(ctypes.Structure):
    """What glibc's mallinfo2 answers."""

    _fields_ = [
        (name, ctypes.c_size_t)
        for name in (
            "arena",
            "ordblks",
            "smblks",
            "hblks",
            "hblkhd",
            "usmblks",
            "fsmblks",
            "uordblks",
            "fordblks",
            "keep",
        )
    ]


LIBC.mallinfo2.restype = Mallinfo


@dataclass(frozen=True)
class Footprint:
    """What this process holds."""

    blocks: int
    """Of Python's own allocator: each small object is one."""

    native: int
    """Bytes of malloc that are in use: OpenSSL's, and Python's large objects."""

    descriptors: int

    @classmethod
    def now(cls) -> "Footprint":
        gc.collect()
        heap = LIBC.mallinfo2()
        return cls(sys.getallocatedblocks(), heap.uordblks + heap.hblkhd, len(os.listdir("/proc/self/fd")))


class Crowd:
    """Clients of every kind, and how often each came."""

    def __init__(self, pki: TlsPki, port: int, taps: Taps) -> None:
        greedy = Identity((pki.device.certificate, *[pki.sub_ca.certificate] * 10), pki.device.key)
        self._contexts = {version: pki.client(pki.device, version=version) for version in (TLS12, TLS13)}
        self._greedy = pki.client(greedy)
        self._distrustful = pki.client(trusts_server=False)
        self._port, self._taps = port, taps
        self._sources = itertools.cycle(f"127.0.0.{last}" for last in range(1, 201))  # each has its own ports
        self.came: Counter[str] = Counter()
        self._kinds: dict[str, Callable[[Wire], Awaitable[None]]] = {
            "asks-on-tls12": lambda line: self._ask(line, TLS12),
            "asks-on-tls13": lambda line: self._ask(line, TLS13),
            "half-closes": self._half_close,
            "is-told-farewell": self._be_told_farewell,
            "breaks-a-record": self._break_a_record,
            "leaves-in-a-session": self._leave_in_a_session,
            "leaves-in-the-handshake": self._leave_in_the_handshake,
            "says-nothing": self._say_nothing,
            "is-no-tls": self._be_no_tls,
            "wants-another-name": self._want_another_name,
            "sends-a-long-chain": self._send_a_long_chain,
            "does-not-trust-us": self._distrust,
        }

    async def come(self, count: int) -> None:
        """That many connections, kind after kind, some at a time."""
        kinds = itertools.islice(itertools.cycle(self._kinds.items()), count)

        async def some() -> None:
            for name, kind in kinds:
                async with wire(self._port, self._taps, next(self._sources)) as line:
                    with contextlib.suppress(ConnectionError):
                        await kind(line)
                self.came[name] += 1

        await asyncio.gather(*(some() for _ in range(AT_ONCE)))

    async def _open(self, line: Wire, context: ssl.SSLContext, name: str = "localhost") -> MemoryClient:
        client = MemoryClient(context, name)
        await line.send(client.flight())
        while not client.is_connected:
            if not (data := await line.receive()):
                raise ConnectionResetError
            client.take(data)
            if flight := client.flight():
                await line.send(flight)
        return client

    async def _ask(self, line: Wire, version: ssl.TLSVersion) -> None:
        client = await self._open(line, self._contexts[version])
        client.write(b"big 20000\n")
        await line.send(client.flight())
        answer = b""
        while len(answer) < 20000:
            client.take(await line.receive())
            answer += client.plaintext()
        client.end()
        await line.send(client.flight())

    async def _half_close(self, line: Wire) -> None:
        client = await self._open(line, self._contexts[TLS13])
        line.end()
        while data := await line.receive():
            client.take(data)
        assert client.plaintext() == b"bye\n"

    async def _be_told_farewell(self, line: Wire) -> None:
        client = await self._open(line, self._contexts[TLS12])
        client.write(b"close\n")
        await line.send(client.flight())
        while await line.receive():
            pass

    async def _break_a_record(self, line: Wire) -> None:
        await self._open(line, self._contexts[TLS13])
        await line.send(record(APPLICATION_DATA, bytes(32)))

    async def _leave_in_a_session(self, line: Wire) -> None:
        client = await self._open(line, self._contexts[TLS13])
        client.write(b"no line")
        await line.send(client.flight())

    async def _leave_in_the_handshake(self, line: Wire) -> None:
        await line.send(MemoryClient(self._contexts[TLS13]).flight())

    async def _say_nothing(self, line: Wire) -> None:
        """Leave at once."""

    async def _be_no_tls(self, line: Wire) -> None:
        await line.send(b"GET / HTTP/1.1\r\n\r\n")

    async def _want_another_name(self, line: Wire) -> None:
        with contextlib.suppress(ssl.SSLError):
            await self._open(line, self._contexts[TLS12], "nobody.example")

    async def _send_a_long_chain(self, line: Wire) -> None:
        with contextlib.suppress(ssl.SSLError):
            await self._open(line, self._greedy)

    async def _distrust(self, line: Wire) -> None:
        client = MemoryClient(self._distrustful)
        await line.send(client.flight())
        try:
            client.take(await line.receive())
            client.flight()
        except ssl.SSLCertVerificationError:
            await line.send(client.alert())


REASONS = {
    "breaks-a-record": StreamReason.PROTOCOL_ERROR,
    "leaves-in-the-handshake": StreamReason.CLOSED_EARLY,
    "is-no-tls": StreamReason.NOT_TLS,
    "wants-another-name": StreamReason.UNKNOWN_NAME,
    "sends-a-long-chain": StreamReason.CHAIN_TOO_LONG,
    "does-not-trust-us": StreamReason.SERVER_NOT_TRUSTED,
}


class Forgetful(Events):
    """Keeps nothing: these tests are about what is kept."""

    def put(self, item: object, block: bool = True, timeout: float | None = None) -> None:
        del item, block, timeout


def growth(
    loop: LoopThread, pki: TlsPki, asking: ServerContext, count: int, on_open: Callable[[], object] = lambda: None
) -> Footprint:
    """What a thousand connections of all kinds leave behind, found when `count` have come and gone."""
    sock = listening_socket()
    refused: Counter[str] = Counter()

    def make_inner() -> Lines:
        on_open()
        return Lines(served)

    def on_refused(reason: StreamReason, _peername: object) -> None:
        refused[reason] += 1

    server = TlsServer(make_inner, lambda name: {"localhost": asking}[name or ""], on_refused=on_refused)
    forget = Forgetful()
    served = Served(sock.getsockname()[1], loop, forget, forget, forget, forget, forget, server)
    crowd = Crowd(pki, served.port, served.taps)
    footprints = [array("q", bytes(8 * ROUNDS)) for _ in fields(Footprint)]  # holding them takes no new memory

    async def listen() -> asyncio.Server:
        return await asyncio.get_running_loop().create_server(served.taps.factory(server), sock=sock)

    async def some_come(size: int) -> None:
        await crowd.come(size)
        await server.wait_closed()

    listener = loop.run(listen())
    a_round = count // ROUNDS
    for index in range(ROUNDS):
        for start in range(0, a_round, 500):
            loop.run(some_come(min(500, a_round - start)))
        footprint = loop.call(Footprint.now)
        for counts, number in zip(footprints, astuple(footprint), strict=True):
            counts[index] = number
        assert server.connections == set()
    loop.call(listener.close)
    assert sum(crowd.came.values()) == a_round * ROUNDS == count
    assert refused == {reason: crowd.came[kind] for kind, reason in REASONS.items()}
    # Some rounds warm up. What comes and goes only adds, so the least of several is the truth, early and late.
    thousands = a_round * (ROUNDS - WARM_UP - SEVERAL) / 1000

    def risen(counts: "array[int]") -> int:
        return round((min(counts[-SEVERAL:]) - min(counts[WARM_UP : WARM_UP + SEVERAL])) / thousands)

    return Footprint(*(risen(counts) for counts in footprints))


def is_a_leak(found: Footprint) -> bool:
    """One object, or 32 bytes, that connections of a single one of the twelve kinds leave behind is more than this."""
    return found.blocks > 50 or found.native > 2500 or found.descriptors > 1


def test_connections_of_every_kind_leave_nothing_behind(loop: LoopThread, pki: TlsPki, asking: ServerContext) -> None:
    assert CONNECTIONS >= 1_800
    # A leak shows whenever one looks; what the interpreter does once for itself does not.
    found: list[Footprint] = []
    while not found or (is_a_leak(found[-1]) and len(found) < 3):
        found.append(growth(loop, pki, asking, CONNECTIONS))
    print(f"of {CONNECTIONS} connections each thousand left behind {found}")
    assert not is_a_leak(found[-1]), found


@pytest.mark.parametrize("loop", ["uvloop"], indirect=True)
@pytest.mark.parametrize("what", ["an-object", "native-memory", "a-descriptor"])
def test_a_planted_leak_is_found(loop: LoopThread, pki: TlsPki, asking: ServerContext, what: str) -> None:
    kept: list[object] = []
    native: list[int] = []
    descriptors: list[int] = []
    LIBC.malloc.restype = ctypes.c_void_p
    LIBC.free.argtypes = [ctypes.c_void_p]
    plant: dict[str, Callable[[], object]] = {
        "an-object": lambda: kept.append(object()),
        "native-memory": lambda: native.append(LIBC.malloc(64)),
        "a-descriptor": lambda: descriptors.append(os.open(os.devnull, os.O_RDONLY)),
    }
    try:
        found = growth(loop, pki, asking, 480, plant[what])
    finally:
        for address in native:
            LIBC.free(address)
        for descriptor in descriptors:
            os.close(descriptor)
    opens = 6 / 12  # the kinds that finish their handshake
    grew = {"an-object": found.blocks, "native-memory": found.native / 64, "a-descriptor": found.descriptors}[what]
    assert is_a_leak(found)
    assert grew > 0.8 * opens * 1000
