"""Bytes in both directions: fragments, ends of stream, and peers that do not read."""

import asyncio
import contextlib
import gc
import socket
import ssl
import struct
import weakref

import pytest
from OpenSSL import SSL

from enrolld.tls import StreamReason, StreamServer, StreamTransport, TlsLimits
from tests.enrolld.tls.conftest import Serve, Served
from tests.enrolld.tls.test_handshake import VERSIONS
from tests.enrolld.tls.test_peer import VERSIONS as OPENSSL_VERSIONS
from tests.enrolld.tls.test_peer import openssl_client
from tests.helpers.tls_pki import Events, LoopThread, TlsPki, connect, listening_socket, read_until_closed


def tls_over_memory(pki: TlsPki, version: ssl.TLSVersion) -> tuple[ssl.SSLObject, ssl.MemoryBIO, ssl.MemoryBIO]:
    """A stock client whose records the test carries to the server itself."""
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    context = pki.client(pki.device, version=version)
    return context.wrap_bio(incoming, outgoing, server_hostname="localhost"), incoming, outgoing


@VERSIONS
def test_records_may_come_byte_by_byte(serve: Serve, pki: TlsPki, version: ssl.TLSVersion) -> None:
    served = serve()
    client, incoming, outgoing = tls_over_memory(pki, version)
    with connect(served.port) as tcp:
        tcp.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

        def send_in_bytes() -> None:
            for byte in outgoing.read():
                tcp.send(bytes([byte]))

        while True:
            try:
                client.do_handshake()
                break
            except ssl.SSLWantReadError:
                send_in_bytes()
                incoming.write(tcp.recv(65536))
        client.write(b"hello\n")
        send_in_bytes()
        assert served.next_peer().chain == pki.device.der_chain
        answer = b""
        while not answer:
            incoming.write(tcp.recv(65536))
            with contextlib.suppress(ssl.SSLWantReadError):
                answer = client.read(100)
        assert answer == b"5\n"


@VERSIONS
def test_the_last_flight_and_several_records_may_come_in_one_segment(
    serve: Serve, pki: TlsPki, version: ssl.TLSVersion
) -> None:
    served = serve()
    client, incoming, outgoing = tls_over_memory(pki, version)
    with connect(served.port) as tcp:
        while True:
            try:
                client.do_handshake()
                break
            except ssl.SSLWantReadError:
                tcp.sendall(outgoing.read())
                incoming.write(tcp.recv(65536))
        for line in (b"a\n", b"bb\n", b"cc", b"c\n"):
            client.write(line)
        tcp.sendall(outgoing.read())  # on TLS 1.3 with the client's Finished
        answer = b""
        while len(answer) < 6:
            with contextlib.suppress(ssl.SSLWantReadError):
                answer += client.read(100)
                continue
            incoming.write(tcp.recv(65536))
        assert answer == b"1\n2\n3\n"


@OPENSSL_VERSIONS
@pytest.mark.parametrize("end", ["close_notify", "fin", "both"])
def test_a_peer_that_half_closes_gets_its_answer(serve: Serve, version: int, end: str) -> None:
    served = serve()
    with openssl_client(served.port, version) as client:
        client.send(b"12345\n")
        if end != "fin":
            client.shutdown()
        if end != "close_notify":
            client.sock_shutdown(socket.SHUT_WR)
        answer = b""
        with contextlib.suppress(SSL.ZeroReturnError):  # the server's close_notify; a torn connection raises another
            while True:
                answer += client.recv(100)
        assert answer == b"5\nbye\n"
    assert served.lost.next() is None


@VERSIONS
def test_our_close_sends_what_waits_then_close_notify(serve: Serve, pki: TlsPki, version: ssl.TLSVersion) -> None:
    served = serve()
    context = pki.client(version=version)
    with context.wrap_socket(connect(served.port), server_hostname="localhost", suppress_ragged_eofs=False) as sock:
        sock.sendall(b"big 3000000\nclose\n")
        size = 0
        tail = b""
        while chunk := sock.recv(65536):
            size += len(chunk)
            tail = (tail + chunk)[-9:]
    assert (size, tail) == (3_000_009, b"farewell\n")


def test_small_pieces_leave_in_one_record(serve: Serve, pki: TlsPki) -> None:
    served = serve()
    client, incoming, outgoing = tls_over_memory(pki, ssl.TLSVersion.TLSv1_2)
    with connect(served.port) as tcp:
        while True:
            try:
                client.do_handshake()
                break
            except ssl.SSLWantReadError:
                tcp.sendall(outgoing.read())
                incoming.write(tcp.recv(65536))
        client.write(b"pieces 5000\n")
        tcp.sendall(outgoing.read())
        received = tcp.recv(65536)
        while len(received) < 5 + struct.unpack(">H", received[3:5])[0]:
            received += tcp.recv(65536)
        assert len(received) == 5 + struct.unpack(">H", received[3:5])[0]
        incoming.write(received)
        assert client.read(10000) == b"head-" + bytes(5000) + b"tail"


def test_a_peer_that_never_reads_pins_little_and_is_cut(serve: Serve, pki: TlsPki) -> None:
    served = serve(limits=TlsLimits(write_timeout=0.2))
    size = 50_000_000
    with pki.client().wrap_socket(connect(served.port), server_hostname="localhost") as sock:
        transport = served.next_transport()
        sock.sendall(b"big %d\n" % size)
        assert served.pauses.next() == "pause"
        raw = served.loop.call(lambda: transport._raw)  # what is encrypted is held there
        assert raw is not None
        assert served.loop.call(raw.get_write_buffer_size) <= 256 * 1024
        assert served.loop.call(transport.get_write_buffer_size) <= size
        assert served.refusals.next() == StreamReason.WRITE_STALLED
        assert served.lost.next() is None


def test_a_reader_that_reads_late_gets_everything(serve: Serve, pki: TlsPki) -> None:
    served = serve()
    with pki.client().wrap_socket(connect(served.port), server_hostname="localhost") as sock:
        sock.sendall(b"big 20000000\n")
        assert served.pauses.next() == "pause"
        size = 0
        while size < 20_000_000:
            size += len(sock.recv(65536))
        assert size == 20_000_000
        assert served.pauses.next() == "resume"
    assert served.refusals.none_waits()


def test_paused_reading_holds_data_back_and_loses_none(serve: Serve, pki: TlsPki) -> None:
    served = serve()
    with pki.client().wrap_socket(connect(served.port), server_hostname="localhost") as sock:
        transport = served.next_transport()
        served.loop.call(transport.pause_reading)
        sock.sendall(b"x" * 100_000 + b"\n")
        assert not served.loop.call(transport.is_reading)
        served.loop.call(transport.resume_reading)
        assert sock.recv(100) == b"100000\n"


def test_a_record_with_a_wrong_mac_ends_the_session_with_an_alert(serve: Serve, pki: TlsPki) -> None:
    served = serve()
    tcp = connect(served.port)
    with pki.client().wrap_socket(tcp, server_hostname="localhost") as sock:
        served.next_peer()
        socket.socket.sendall(sock, b"\x17\x03\x03\x00\x20" + bytes(32))
        with pytest.raises(ssl.SSLError, match=r"(?i)bad.record.mac"):
            sock.recv(100)
    assert served.refusals.next() == StreamReason.PROTOCOL_ERROR


def test_a_farewell_survives_a_peer_that_goes_on_sending(serve: Serve, pki: TlsPki) -> None:
    served = serve()
    with pki.client().wrap_socket(connect(served.port), server_hostname="localhost") as sock:
        sock.sendall(b"close\n" + b"y" * 2_000_000)
        assert sock.recv(100) == b"farewell\n"
        assert sock.recv(100) == b""


def test_a_peer_that_sends_without_end_after_our_close_is_cut(serve: Serve, pki: TlsPki) -> None:
    served = serve(limits=TlsLimits(max_discarded_bytes=100_000, shutdown_timeout=3600))
    with pki.client().wrap_socket(connect(served.port), server_hostname="localhost") as sock:
        sock.sendall(b"close\n")
        assert sock.recv(100) == b"farewell\n"
        with contextlib.suppress(ConnectionError, ssl.SSLError):
            while True:
                sock.sendall(b"y" * 10_000)
    assert served.lost.next() is None


def test_a_peer_that_stays_after_our_close_is_cut_in_time(serve: Serve, pki: TlsPki) -> None:
    served = serve(limits=TlsLimits(shutdown_timeout=0.05))
    with pki.client().wrap_socket(connect(served.port), server_hostname="localhost") as sock:
        sock.sendall(b"close\n")
        assert served.lost.next() is None


def test_a_closed_connection_leaves_nothing_behind(serve: Serve, pki: TlsPki) -> None:
    served = serve()

    def one() -> weakref.ref[object]:
        with pki.client(pki.device).wrap_socket(connect(served.port), server_hostname="localhost") as sock:
            sock.sendall(b"12345\n")
            sock.recv(100)
            transport = served.next_transport()
            return weakref.ref(transport._engine._connection)

    gc.disable()
    try:
        connection = one()
        served.lost.next()
        served.loop.call(lambda: None)  # the loop's own references of this turn
        assert connection() is None
    finally:
        gc.enable()
    assert served.server.connections == set()


def test_connections_share_the_server_context(serve: Serve, pki: TlsPki) -> None:
    served: Served = serve()
    contexts = set()
    for _ in range(3):
        with pki.client().wrap_socket(connect(served.port), server_hostname="localhost"):
            transport = served.next_transport()
            contexts.add(id(transport._engine._connection.get_context()))
    assert len(contexts) == 1


def test_abort_cuts_every_connection(serve: Serve, pki: TlsPki) -> None:
    served = serve()
    with pki.client().wrap_socket(connect(served.port), server_hostname="localhost"), connect(served.port) as quiet:
        served.next_peer()
        served.loop.call(served.server.abort)
        served.loop.run(served.server.wait_closed())
        assert read_until_closed(quiet) == b""
    assert served.server.connections == set()


def test_closing_a_connection_that_the_peer_has_reset_is_quiet(loop: LoopThread) -> None:
    events = Events()

    class Deaf(asyncio.Protocol):
        def connection_made(self, transport: asyncio.BaseTransport) -> None:
            assert isinstance(transport, StreamTransport)
            transport.pause_reading()  # so that only our own close can meet the reset
            events.put(transport)

        def connection_lost(self, exc: Exception | None) -> None:
            events.put(exc)

    sock = listening_socket()
    port = sock.getsockname()[1]
    server = StreamServer(Deaf)

    async def listen() -> asyncio.Server:
        return await asyncio.get_running_loop().create_server(server, sock=sock)

    listener = loop.run(listen())
    with connect(port) as client:
        transport = events.next()
        client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    loop.call(transport.close)
    events.next()
    loop.run(server.wait_closed())
    loop.call(listener.close)
