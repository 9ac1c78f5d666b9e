"""Where TCP segments and TLS records begin and end is nobody's business: any cut makes the same conversation."""

import itertools
import os
import ssl
from collections.abc import Callable, Iterator

import pytest

from tests.enrolld.tls.conftest import Serve, Served
from tests.enrolld.tls.test_handshake import TLS12, TLS13, VERSIONS
from tests.helpers.tls_pki import TlsPki, connect
from tests.helpers.tls_wire import (
    HANDSHAKE,
    Cut,
    MemoryClient,
    Wire,
    cut_at,
    cut_in_pieces,
    record,
    records,
    wire,
)

LONG = os.environ.get("ENROLLD_LONG") == "1"
TURN = 50  # conversations that the loop's thread has between two looks at the clock


def whole(data: bytes) -> list[bytes]:
    return [data]


async def converse(served: Served, context: ssl.SSLContext, cut: Cut, reframe: Callable[[bytes], bytes]) -> int:
    """A handshake and a line, with every flight reframed, then cut; answers the length of the longest so treated."""
    longest = pieces = 0
    client = MemoryClient(context)

    async def send(line: Wire) -> None:
        nonlocal longest, pieces
        if flight := client.flight():
            parts = cut(reframe(flight))
            if parts != [flight]:
                longest = max(longest, len(flight))
            pieces += len(parts)
            await line.send(*parts)

    async with wire(served.port, served.taps) as line:
        await send(line)
        while not client.is_connected:
            client.take(await line.receive())
            await send(line)
        client.write(b"12345\n")
        await send(line)
        answer = b""
        while not answer:
            client.take(await line.receive())
            answer = client.plaintext()
        assert answer == b"5\n"
        assert line.tap.reads == pieces  # no two of them came together
    return longest


def converse_at_every_position(
    served: Served, pki: TlsPki, version: ssl.TLSVersion, case: Callable[[int], tuple[Cut, Callable[[bytes], bytes]]]
) -> int:
    """One conversation for each position up to the longest flight; on the stock loop, unless it is long, for some."""
    context = pki.client(pki.device, version=version)
    step = 1 if LONG or "uvloop" in type(served.loop.loop).__module__ else 7
    longest = 0
    positions = iter(range(1, 100_000, step))

    async def some() -> int:
        nonlocal longest
        for position in itertools.islice(positions, TURN):
            cut, reframe = case(position)
            longest = max(longest, await converse(served, context, cut, reframe))
            if position > longest:
                break
        return position

    while served.loop.run(some()) <= longest:
        pass
    count = 0
    while not served.peers.none_waits():
        assert served.next_peer().chain == pki.device.der_chain
        count += 1
    assert served.refusals.none_waits()
    assert count >= longest // step
    return longest


@VERSIONS
def test_a_segment_may_end_after_any_byte_of_handshake_and_request(
    serve: Serve, pki: TlsPki, version: ssl.TLSVersion
) -> None:
    served = serve(tapped=True)
    longest = converse_at_every_position(served, pki, version, lambda position: (cut_at(position), bytes))
    assert longest > 900  # with the client's chain


@VERSIONS
def test_a_record_may_end_after_any_byte_of_a_handshake_message(
    serve: Serve, pki: TlsPki, version: ssl.TLSVersion
) -> None:
    served = serve(tapped=True)
    converse_at_every_position(served, pki, version, lambda position: (whole, in_other_records(cut_at(position))))


@VERSIONS
@pytest.mark.parametrize("size", [1, 2, 3, 4, 5, 6, 100, 900])
def test_segments_may_be_of_any_size(serve: Serve, pki: TlsPki, version: ssl.TLSVersion, size: int) -> None:
    served = serve(tapped=True)
    context = pki.client(pki.device, version=version)
    assert served.loop.run(converse(served, context, cut_in_pieces(size), bytes)) > 900
    assert served.next_peer().chain == pki.device.der_chain


@VERSIONS
@pytest.mark.parametrize("size", [1, 2, 3, 4, 5, 100])
def test_handshake_records_may_be_of_any_size(serve: Serve, pki: TlsPki, version: ssl.TLSVersion, size: int) -> None:
    served = serve(tapped=True)
    context = pki.client(pki.device, version=version)
    for cut in (whole, cut_in_pieces(7)):
        served.loop.run(converse(served, context, cut, in_other_records(cut_in_pieces(size))))
        assert served.next_peer().chain == pki.device.der_chain


def test_several_handshake_messages_may_share_a_record(serve: Serve, pki: TlsPki) -> None:
    served = serve(tapped=True)
    context = pki.client(pki.device, version=TLS12)
    joined = []

    def join(flight: bytes) -> bytes:
        parts = records(flight)
        messages = [fragment for kind, fragment in clear_part(parts)]
        joined.append(len(messages))
        rest = parts[len(messages) :]
        together = record(HANDSHAKE, b"".join(messages)) if messages else b""
        return together + b"".join(record(*part) for part in rest)

    served.loop.run(converse(served, context, whole, join))
    assert joined[1] == 3  # Certificate, ClientKeyExchange, CertificateVerify
    assert served.next_peer().chain == pki.device.der_chain


@VERSIONS
def test_requests_that_come_together_are_answered_wherever_they_are_cut(
    serve: Serve, pki: TlsPki, version: ssl.TLSVersion
) -> None:
    served = serve(tapped=True)

    async def scenario() -> int:
        client = MemoryClient(pki.client(version=version))
        async with wire(served.port, served.taps) as line:
            await line.send(client.flight())
            while not client.is_connected:
                client.take(await line.receive())
                await line.send(*whole_or_nothing(client.flight()))
            position = size = 0
            while position <= size:
                for text in (b"a\n", b"bb\ncc", b"c\n", b"dddd\n"):
                    client.write(text)
                flight = client.flight()
                position, size = position + 1, len(flight)
                await line.send(*cut_at(position)(flight))
                answer = b""
                while len(answer) < 8:
                    client.take(await line.receive())
                    answer += client.plaintext()
                assert answer == b"1\n2\n3\n4\n"
        return position

    assert served.loop.run(scenario()) > 100


@VERSIONS
def test_records_of_one_byte_make_the_same_line(serve: Serve, pki: TlsPki, version: ssl.TLSVersion) -> None:
    served = serve()
    with pki.client(version=version).wrap_socket(connect(served.port), server_hostname="localhost") as sock:
        for byte in b"x" * 1000 + b"\n":
            sock.sendall(bytes([byte]))
        assert sock.recv(100) == b"1000\n"


def test_the_clients_finished_its_requests_and_its_end_may_come_in_one_segment(serve: Serve, pki: TlsPki) -> None:
    served = serve(tapped=True)

    async def scenario() -> bytes:
        client = MemoryClient(pki.client(pki.device, version=TLS13))
        async with wire(served.port, served.taps) as line:
            await line.send(client.flight())
            while not client.is_connected:
                client.take(await line.receive())
                last = client.flight()
            for _ in range(100):
                client.write(b"12345\n")
            client.end()
            last += client.flight()
            await line.send(last)
            assert line.tap.reads == 2
            line.end()
            while received := await line.receive():
                client.take(received)
            return client.plaintext()

    assert served.loop.run(scenario()) == b"5\n" * 100 + b"bye\n"
    assert served.next_peer().chain == pki.device.der_chain


# How a flight becomes other records


def in_other_records(cut: Cut) -> Callable[[bytes], bytes]:
    """Each handshake record that is not encrypted is sent as several."""

    def reframe(flight: bytes) -> bytes:
        parts = records(flight)
        clear = clear_part(parts)
        spread = b"".join(record(HANDSHAKE, piece) for _, fragment in clear for piece in cut(fragment))
        return spread + b"".join(record(*part) for part in parts[len(clear) :])

    return reframe


def clear_part(parts: list[tuple[int, bytes]]) -> list[tuple[int, bytes]]:
    """The handshake records before ChangeCipherSpec, or before anything else."""

    def leading() -> Iterator[tuple[int, bytes]]:
        for part in parts:
            if part[0] != HANDSHAKE:
                return
            yield part

    return list(leading())


def whole_or_nothing(data: bytes) -> list[bytes]:
    return [data] if data else []
