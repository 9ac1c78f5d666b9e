"""What a peer may send once the handshake is over, beside data: little, and nothing of it changes who it is."""

import contextlib
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from OpenSSL import SSL

from enrolld.tls import StreamReason, TlsLimits
from tests.end_to_end.clients import needs
from tests.enrolld.tls.conftest import Serve
from tests.enrolld.tls.test_handshake import TLS12, TLS13
from tests.helpers.tls_forge import (
    CERTIFICATE,
    CLIENT_HELLO,
    KEY_UPDATE,
    NEW_SESSION_TICKET,
    Forger,
    forger,
    handshake_message,
)
from tests.helpers.tls_pki import TlsPki, read_until_closed
from tests.helpers.tls_programs import Asked, gnutls, s_client
from tests.helpers.tls_wire import ALERT, APPLICATION_DATA, CHANGE_CIPHER_SPEC, HANDSHAKE, record, records

OPENSSL12, OPENSSL13 = SSL.TLS1_2_VERSION, SSL.TLS1_3_VERSION
EITHER = pytest.mark.parametrize("version", [pytest.param(OPENSSL12, id="tls12"), pytest.param(OPENSSL13, id="tls13")])
Forgery = Callable[[Forger], list[bytes]]
WARNING = b"\x01\x5a"  # user_canceled


def line(forger: Forger) -> bytes:
    return forger.record(APPLICATION_DATA, b"12345\n")


def receive_record(forger: Forger) -> tuple[int, bytes]:
    """The next record, still encrypted."""
    header = receive(forger, 5)
    return header[0], receive(forger, int.from_bytes(header[3:], "big"))


def receive(forger: Forger, size: int) -> bytes:
    data = b""
    while len(data) < size:
        data += forger.tcp.recv(size - len(data))
    return data


@EITHER
@pytest.mark.parametrize(
    "forge",
    [
        pytest.param(lambda _: [record(APPLICATION_DATA, b"12345\n")], id="data-in-clear"),
        pytest.param(lambda f: [f.record(APPLICATION_DATA, bytes(16384 + 1))], id="a-record-too-large"),
        pytest.param(lambda f: [f.record(99, b"12345\n")], id="an-unknown-content-type"),
        pytest.param(lambda f: [f.record(24, b"\x01\x40\x00")], id="a-heartbeat"),
        pytest.param(lambda f: [f.record(CHANGE_CIPHER_SPEC, b"\x01")], id="change-cipher-spec"),
        pytest.param(lambda f: [f.record(APPLICATION_DATA, b"") for _ in range(100)], id="empty-records-without-end"),
        pytest.param(lambda f: [f.record(HANDSHAKE, handshake_message(CERTIFICATE, bytes(8000)))], id="a-certificate"),
        pytest.param(
            lambda f: [f.record(HANDSHAKE, handshake_message(NEW_SESSION_TICKET, bytes(80)))], id="a-session-ticket"
        ),
        pytest.param(lambda f: [f.record(HANDSHAKE, handshake_message(KEY_UPDATE, b"\x02"))], id="a-wrong-key-update"),
        pytest.param(lambda f: [line(f)[:-1] + b"\0"], id="a-wrong-tag"),
        pytest.param(lambda f: [line(f), line(f)][1:], id="a-record-left-out"),
        pytest.param(lambda f: [line(f)] * 2, id="a-record-sent-twice"),
    ],
)
def test_what_tls_does_not_allow_ends_the_session_with_an_alert(serve: Serve, version: int, forge: Forgery) -> None:
    served = serve()
    with forger(served.port, version) as forged:
        served.next_peer()
        for piece in forge(forged):
            forged.tcp.sendall(piece)
        last = records(read_until_closed(forged.tcp))[-1]
        # An alert is the last word; on TLS 1.3 it is hidden in application data: two bytes, the type and a tag.
        assert (last[0], len(last[1])) == ((ALERT, 8 + 2 + 16) if version == OPENSSL12 else (APPLICATION_DATA, 19))
    assert served.refusals.next() == StreamReason.PROTOCOL_ERROR
    assert served.lost.next() is None
    assert served.refusals.none_waits()


@EITHER
@pytest.mark.parametrize(
    "forge",
    [
        pytest.param(lambda _: [], id="twin-a-line-alone"),
        pytest.param(lambda f: [f.record(APPLICATION_DATA, b"") for _ in range(20)], id="some-empty-records"),
        pytest.param(lambda f: [f.record(ALERT, WARNING)], id="a-warning"),
    ],
)
def test_what_tls_allows_is_passed_over_and_the_next_line_served(serve: Serve, version: int, forge: Forgery) -> None:
    served = serve()
    with forger(served.port, version) as forged:
        for piece in [*forge(forged), line(forged)]:
            forged.tcp.sendall(piece)
        await_answer(forged, version)
    assert served.refusals.none_waits()


def await_answer(forged: Forger, version: int) -> None:
    """Until a record comes that is as long as the answer "5" with its line end; tickets and warnings are not."""
    length = 8 + 2 + 16 if version == OPENSSL12 else 2 + 1 + 16
    kind = size = 0
    while (kind, size) != (APPLICATION_DATA, length):
        kind, content = receive_record(forged)
        size = len(content)


@EITHER
def test_renegotiation_is_declined_on_tls12_and_unknown_on_tls13(serve: Serve, version: int) -> None:
    served = serve()
    with forger(served.port, version) as forged:
        forged.tcp.sendall(forged.record(HANDSHAKE, handshake_message(CLIENT_HELLO, bytes(40))))
        if version == OPENSSL12:
            assert receive_record(forged)[0] == ALERT  # no_renegotiation, a warning
            forged.tcp.sendall(line(forged))
            await_answer(forged, version)
        else:
            read_until_closed(forged.tcp)
            assert served.refusals.next() == StreamReason.PROTOCOL_ERROR
    served.next_peer()
    assert served.peers.none_waits()
    assert served.refusals.none_waits()


@pytest.mark.parametrize(
    "wants_one", [pytest.param(False, id="of-its-own"), pytest.param(True, id="and-asks-for-ours")]
)
def test_a_key_update_changes_the_key_and_nothing_else(serve: Serve, wants_one: bool) -> None:
    served = serve()
    with forger(served.port, OPENSSL13) as forged:
        for _ in range(3):
            forged.tcp.sendall(forged.key_update(wants_one=wants_one) + line(forged))
            await_answer(forged, OPENSSL13)
    served.next_peer()
    assert served.peers.none_waits()
    assert served.refusals.none_waits()


def questions(forged: Forger, version: int, count: int) -> bytes:
    """Records that OpenSSL answers by itself: attempts to renegotiate, or wishes for a new key."""
    if version == OPENSSL12:
        return b"".join(forged.record(HANDSHAKE, handshake_message(CLIENT_HELLO)) for _ in range(count))
    return b"".join(forged.key_update(wants_one=True) for _ in range(count))


@EITHER
def test_a_peer_that_makes_tls_itself_answer_without_end_is_cut(serve: Serve, version: int) -> None:
    served = serve(limits=TlsLimits(shutdown_timeout=0.05))
    with forger(served.port, version) as forged:
        served.next_peer()
        transport = served.next_transport()
        pinned = 0
        with contextlib.suppress(ConnectionError):
            for _ in range(150):
                forged.tcp.sendall(questions(forged, version, 2000))  # and reads nothing
                pinned = max(pinned, served.loop.call(transport.get_write_buffer_size))
        assert pinned <= 256 * 1024
        assert served.refusals.next() == StreamReason.PROTOCOL_ERROR


@EITHER
def test_warnings_without_end_are_no_end_of_stream(serve: Serve, version: int) -> None:
    served = serve()
    with forger(served.port, version) as forged:
        for _ in range(20):
            forged.tcp.sendall(forged.record(ALERT, b"\x01\x5a"))
        assert served.refusals.next() == StreamReason.PROTOCOL_ERROR
        read_until_closed(forged.tcp)


# Programs


@pytest.mark.foreign
def test_openssl_is_told_that_there_is_no_renegotiation(serve: Serve, pki: TlsPki, tmp_path: Path) -> None:
    needs("openssl")
    served = serve()
    command = s_client(Asked(served.port, TLS12, pki.device), pki, tmp_path)
    command.remove("-ign_eof")  # which would not know the command R
    done = subprocess.run(command, input=b"R\n", capture_output=True, timeout=30, check=False)
    assert b"RENEGOTIATING" in done.stdout + done.stderr
    assert b"no renegotiation" in done.stderr
    assert served.next_peer().chain == pki.device.der_chain
    served.lost.next()
    assert served.peers.none_waits()


@pytest.mark.foreign
def test_gnutls_is_told_so_as_often_as_it_tries(serve: Serve, pki: TlsPki, tmp_path: Path) -> None:
    needs("gnutls-cli")
    served = serve()
    command = gnutls(Asked(served.port, TLS12, pki.device), pki, tmp_path)
    done = subprocess.run([*command, "--rehandshake"], input=b"GET /\n", capture_output=True, timeout=30, check=False)
    assert done.returncode != 0
    assert b"Received alert [100]: No renegotiation is allowed" in done.stdout
    assert b"served" not in done.stdout
    assert served.next_peer().chain == pki.device.der_chain
    served.lost.next()
    assert served.peers.none_waits()


@pytest.mark.foreign
def test_what_gnutls_calls_a_rehandshake_on_tls13_is_a_key_update_and_served(
    serve: Serve, pki: TlsPki, tmp_path: Path
) -> None:
    needs("gnutls-cli")
    served = serve()
    command = gnutls(Asked(served.port, TLS13, pki.device), pki, tmp_path)
    done = subprocess.run([*command, "--rehandshake"], input=b"GET /\n", capture_output=True, timeout=30, check=True)
    assert b"ReHandshake was completed" in done.stdout
    assert b"served\n" in done.stdout
    assert served.next_peer().chain == pki.device.der_chain
    assert served.peers.none_waits()
