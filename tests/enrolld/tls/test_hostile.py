"""What a certificate message may cost."""

import contextlib
import gc
import os
import ssl
import weakref
from collections import Counter

import pytest
from OpenSSL import SSL, crypto

from enrolld.tls import ServerContext, StreamReason
from enrolld.tls.context import new_context
from tests.enrolld.tls.conftest import Serve, Served
from tests.enrolld.tls.test_handshake import TLS12
from tests.enrolld.tls.test_handshake import VERSIONS as STOCK_VERSIONS
from tests.enrolld.tls.test_peer import VERSIONS, openssl_client
from tests.helpers.tls_pki import Identity, TlsPki, connect, huge_rsa_key, issue, read_until_closed, tls_pki
from tests.helpers.tls_stages import stopped_at
from tests.helpers.tls_wire import MemoryClient, wire

LONG = os.environ.get("ENROLLD_LONG") == "1"
P256 = b"\x06\x08\x2a\x86\x48\xce\x3d\x03\x01\x07"  # as a certificate names the curve of its key
NO_CURVE = P256[:-1] + b"\x7f"


def attempt(served: Served, version: int, device: Identity) -> None:
    """Connect and read to the end; on TLS 1.3 a client learns of a refusal only there."""
    with contextlib.suppress(SSL.Error), openssl_client(served.port, version, device) as client:
        while client.recv(1000):
            pass


def long_chains() -> dict[str, Identity]:
    pki = tls_pki()
    fillers = {
        "eleven": [pki.sub_ca.certificate] * 10,
        "two-hundred-of-one-name": [issue("Test Sub-CA", is_ca=True).certificate for _ in range(199)],
        "few-but-over-64-kib": [issue("fat", pki.root, is_ca=True, padding=24_000).certificate] * 3,
        "over-100-kib": [issue("fat", pki.root, is_ca=True, padding=24_000).certificate] * 5,
    }
    return {name: Identity((pki.device.certificate, *rest), pki.device.key) for name, rest in fillers.items()}


@VERSIONS
@pytest.mark.parametrize("device", [pytest.param(device, id=name) for name, device in long_chains().items()])
def test_a_chain_over_the_caps_is_refused(serve: Serve, pki: TlsPki, version: int, device: Identity) -> None:
    served = serve()
    attempt(served, version, device)
    assert served.refusals.next() == StreamReason.CHAIN_TOO_LONG
    assert served.peers.none_waits()
    with openssl_client(served.port, version, pki.device):
        assert served.next_peer().chain == pki.device.der_chain


@VERSIONS
@pytest.mark.parametrize(
    ("bits", "reason"),
    [
        pytest.param(16384, StreamReason.KEY_TOO_LARGE, id="16384"),
        pytest.param(8200, StreamReason.KEY_TOO_LARGE, id="just-over"),
        pytest.param(8192, StreamReason.BAD_CERTIFICATE, id="twin-8192-comes-as-far-as-its-signature"),
    ],
)
def test_an_rsa_key_over_8192_bits_is_refused_before_any_work_with_it(
    serve: Serve, pki: TlsPki, version: int, bits: int, reason: StreamReason
) -> None:
    served = serve()
    attempt(served, version, issue("huge", pki.sub_ca, key=huge_rsa_key(bits)))
    assert served.refusals.next() == reason
    assert served.peers.none_waits()


def test_openssl_builds_no_chain_from_what_a_client_sent(pki: TlsPki) -> None:
    huge_ca = issue("Huge CA", pki.root, is_ca=True, key=huge_rsa_key(16384))
    device = issue("device", huge_ca)
    depths = []

    def see(_connection: SSL.Connection, _certificate: crypto.X509, _error: int, depth: int, _ok: int) -> bool:
        depths.append(depth)
        return True

    context = new_context()
    context.use_certificate(pki.server.certificate)
    context.use_privatekey(pki.server.key)
    context.set_verify(SSL.VERIFY_PEER, see)
    client_context = SSL.Context(SSL.TLS_CLIENT_METHOD)
    client_context.use_certificate(device.certificate)
    client_context.use_privatekey(device.key)
    client_context.add_extra_chain_cert(huge_ca.certificate)
    server, client = SSL.Connection(context, None), SSL.Connection(client_context, None)
    server.set_accept_state()
    client.set_connect_state()
    for _ in range(3):
        for one, other in ((client, server), (server, client)):
            with contextlib.suppress(SSL.WantReadError):
                one.do_handshake()
            with contextlib.suppress(SSL.WantReadError):
                other.bio_write(one.bio_read(1 << 20))
    assert len(server.get_peer_cert_chain(as_cryptography=True) or ()) == 1  # without the leaf
    assert set(depths) == {0}


def test_endless_handshake_bytes_are_cut(serve: Serve) -> None:
    served = serve()
    with connect(served.port) as sock:
        with contextlib.suppress(ConnectionError):
            # A ClientHello of 16 MiB, in fragments of one record each.
            body = b"\x01\xff\xff\xff" + bytes(16380)
            for _ in range(40):
                sock.sendall(b"\x16\x03\x01\x40\x00" + body)
                body = bytes(16384)
        read_until_closed(sock)
    assert served.refusals.next() in {
        StreamReason.HANDSHAKE_TOO_LARGE,
        StreamReason.HANDSHAKE_FAILED,
        StreamReason.CHAIN_TOO_LONG,
    }


def test_a_certificate_whose_key_cannot_be_read_is_refused_and_costs_no_other_connection(
    serve: Serve, pki: TlsPki, asking: ServerContext
) -> None:
    served = serve(lambda name: {"localhost": asking}[name or ""])
    context = pki.client(pki.device, version=TLS12)
    for _ in range(3):
        with stopped_at(served.port, context, (1, 0)) as stopped:
            stopped.sock.sendall(stopped.rest.replace(P256, NO_CURVE, 1))
            read_until_closed(stopped.sock)
        assert served.refusals.next() == StreamReason.BAD_CERTIFICATE
    # The errors of those three, once kept in the context that all begin with, were given to these.
    for _ in range(3):
        with stopped_at(served.port, context, (0, 0.5)) as stopped:
            stopped.go_on()
            assert served.next_peer().chain == pki.device.der_chain
    with pytest.raises(ssl.SSLError):
        pki.client().wrap_socket(connect(served.port), server_hostname="nobody.example")
    assert served.refusals.next() == StreamReason.UNKNOWN_NAME
    assert served.refusals.none_waits()


def test_a_certificate_whose_key_cannot_be_read_leaves_nothing_behind(serve: Serve, pki: TlsPki) -> None:
    served = serve()
    with stopped_at(served.port, pki.client(pki.device, version=TLS12), (1, 0)) as stopped:
        (transport,) = served.server.connections
        connection = weakref.ref(transport._engine._connection)  # type: ignore[attr-defined]
        del transport
        stopped.sock.sendall(stopped.rest.replace(P256, NO_CURVE, 1))
        read_until_closed(stopped.sock)
    served.refusals.next()
    served.loop.run(served.server.wait_closed())
    gc.collect()
    assert connection() is None


@STOCK_VERSIONS
def test_a_handshake_with_any_one_byte_changed_is_refused_and_nobody_fails(
    serve: Serve, pki: TlsPki, version: ssl.TLSVersion
) -> None:
    served = serve(tapped=True)
    context = pki.client(pki.device, version=version)
    step = 1 if LONG else 7
    reasons: Counter[StreamReason] = Counter()

    async def attempt(flight_number: int, position: int) -> bool:
        """A handshake with that byte changed, and no more; false when the flight is not as long as that."""
        client = MemoryClient(context)
        async with wire(served.port, served.taps) as line:
            flight = client.flight()
            for _ in range(flight_number):
                await line.send(flight)
                flight = b""
                while not flight:
                    client.take(await line.receive())
                    flight = client.flight()
            if position >= len(flight):
                return False
            await line.send(flight[:position] + bytes([flight[position] ^ 0xFF]) + flight[position + 1 :])
            with contextlib.suppress(OSError):
                line.end()
                while await line.receive():
                    pass
        return True

    async def attempts(flight_number: int) -> int:
        position = 0
        while await attempt(flight_number, position):
            await served.server.wait_closed()
            reasons[served.refusals.get_nowait()] += 1
            position += step
        await served.server.wait_closed()
        if flight_number:
            assert served.refusals.get_nowait() == StreamReason.CLOSED_EARLY  # the one that found the end
        return position

    for flight_number in (0, 1):
        assert served.loop.run(attempts(flight_number)) > 150
    assert set(reasons) <= {
        StreamReason.BAD_CERTIFICATE,
        StreamReason.CHAIN_TOO_LONG,  # a length that says so
        StreamReason.CLOSED_EARLY,  # a length that says that more is to come
        StreamReason.HANDSHAKE_FAILED,
        StreamReason.NO_SHARED_ALPN,
        StreamReason.NO_SHARED_CIPHER,
        StreamReason.NOT_TLS,
        StreamReason.PEER_ALERT,
        StreamReason.SERVER_NOT_TRUSTED,
        StreamReason.UNKNOWN_NAME,
        StreamReason.VERSION_UNSUPPORTED,
    }
    assert served.refusals.none_waits()


def test_a_certificate_that_is_not_der_is_called_so(serve: Serve, pki: TlsPki) -> None:
    served = serve()
    with stopped_at(served.port, pki.client(pki.device, version=TLS12), (1, 0)) as stopped:
        der = pki.device.der_chain[0]
        assert der in stopped.rest
        stopped.sock.sendall(stopped.rest.replace(der, b"\xff" + der[1:], 1))
        assert served.refusals.next() == StreamReason.BAD_CERTIFICATE
