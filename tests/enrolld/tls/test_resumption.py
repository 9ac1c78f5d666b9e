"""No session ever resumes, whoever asks and however: a resumed session has lost its peer's chain."""

import contextlib
import re
import ssl
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.end_to_end.clients import needs
from tests.enrolld.tls.conftest import Serve
from tests.enrolld.tls.test_handshake import TLS12, TLS13, VERSIONS
from tests.helpers.daemon import eventually
from tests.helpers.tls_pki import TlsPki, connect
from tests.helpers.tls_programs import PROGRAMS, REQUEST, Asked, ResumingServer, s_client
from tests.helpers.tls_wire import HANDSHAKE, MemoryClient, records

TICKETS = pytest.mark.parametrize("tickets", [pytest.param(True, id="ticket"), pytest.param(False, id="session-id")])


def session_of(
    port: int, context: ssl.SSLContext, session: ssl.SSLSession | None = None
) -> tuple[ssl.SSLSession | None, bool | None]:
    """One request: the session as it is at its end, and whether it was resumed."""
    with context.wrap_socket(connect(port), server_hostname="localhost", session=session) as sock:
        sock.sendall(REQUEST)
        while sock.recv(65536):
            pass
        return sock.session, sock.session_reused


@VERSIONS
@TICKETS
def test_a_session_of_another_server_with_the_same_key_is_not_resumed(
    serve: Serve, pki: TlsPki, version: ssl.TLSVersion, tickets: bool
) -> None:
    served = serve()
    context = pki.client(pki.device, version=version)
    with ResumingServer(pki, tickets=tickets) as other:
        session, _ = session_of(other.port, context)
        is_resumed = session_of(other.port, context, session)[1]  # the twin: it is good where it is from
    if not tickets and not is_resumed:
        pytest.skip("this Python's ssl keeps no sessions without tickets, so that there is none to offer")
    assert is_resumed is True
    for _ in range(3):
        assert session_of(served.port, context, session)[1] is False
        assert served.next_peer().chain == pki.device.der_chain
    assert served.refusals.none_waits()


@VERSIONS
def test_our_own_session_is_not_resumed_however_often_it_is_offered(
    serve: Serve, pki: TlsPki, version: ssl.TLSVersion
) -> None:
    served = serve()
    context = pki.client(pki.device, version=version)
    session = None
    for _ in range(5):
        session, is_resumed = session_of(served.port, context, session)
        assert is_resumed is False
        assert served.next_peer().chain == pki.device.der_chain


@pytest.mark.parametrize("tickets", [True, False])
def test_on_tls12_nothing_that_could_be_resumed_is_handed_out(serve: Serve, pki: TlsPki, tickets: bool) -> None:
    served = serve()
    context = pki.client(version=TLS12)
    if not tickets:
        context.options |= ssl.OP_NO_TICKET
    session, _ = session_of(served.port, context)
    assert session is not None
    assert (session.id, session.has_ticket) == (b"", False)


@VERSIONS
def test_the_server_hello_takes_up_no_session(serve: Serve, pki: TlsPki, version: ssl.TLSVersion) -> None:
    served = serve()
    context = pki.client(version=version)
    with ResumingServer(pki, tickets=True) as other:
        session, _ = session_of(other.port, context)
    client = MemoryClient(context, session=session)
    with connect(served.port) as sock:
        sock.sendall(client.flight())
        received = sock.recv(65536)
    _, hello = records(received)[0]
    assert (
        hello[0] == 2
    )  # ServerHello: type, length, version, random, session id, cipher suite, compression, extensions
    session_id = hello[39 : 39 + hello[38]]
    extensions = extension_types(hello[39 + hello[38] + 3 :])
    if version is TLS12:
        assert session_id == b""
        assert 35 not in extensions  # session_ticket (RFC 5077)
        assert records(received)[0][0] == HANDSHAKE
    else:
        assert 41 not in extensions  # pre_shared_key (RFC 8446 4.2.11)
        assert 51 in extensions  # key_share: a full handshake


def extension_types(block: bytes) -> set[int]:
    types, rest = set(), block[2 : 2 + int.from_bytes(block[:2], "big")]
    while rest:
        types.add(int.from_bytes(rest[:2], "big"))
        rest = rest[4 + int.from_bytes(rest[2:4], "big") :]
    return types


# Programs


@pytest.mark.foreign
@VERSIONS
@pytest.mark.parametrize("name", PROGRAMS)
def test_no_client_resumes_here_though_it_does_elsewhere(
    serve: Serve, pki: TlsPki, tmp_path: Path, name: str, version: ssl.TLSVersion
) -> None:
    program = PROGRAMS[name]
    needs(program.needs)
    served = serve()
    with ResumingServer(pki, tickets=True) as other:
        for port, resumed in ((other.port, [False, True]), (served.port, None)):
            folder = tmp_path / str(port)
            folder.mkdir()
            asked = Asked(port, version, pki.device, resumes=True)
            words = b""
            for _ in range(2 if name == "openssl" else 1):
                done = program.run(asked, pki, folder)
                assert done.returncode == 0, done.stderr
                words += done.stdout
            if resumed:
                assert other.resumed == resumed
            assert bool(re.search(rb"Reused, TLS|This is a resumed session", words)) == bool(resumed and name != "curl")
    assert served.next_peer().chain == served.next_peer().chain == pki.device.der_chain
    assert served.refusals.none_waits()


@pytest.mark.foreign
@VERSIONS
def test_openssl_reconnects_without_resuming(
    serve: Serve, pki: TlsPki, tmp_path: Path, version: ssl.TLSVersion
) -> None:
    needs("openssl")
    served = serve()
    command = s_client(Asked(served.port, version, pki.device), pki, tmp_path)
    command.remove("-ign_eof")
    done = subprocess.run([*command, "-reconnect"], input=b"Q\n", capture_output=True, timeout=30, check=False)
    assert b"Reused" not in done.stdout
    assert [served.next_peer().chain for _ in range(6)] == [pki.device.der_chain] * 6


@pytest.mark.foreign
def test_an_external_pre_shared_key_is_ignored_on_tls13(serve: Serve, pki: TlsPki, tmp_path: Path) -> None:
    needs("openssl")
    served = serve()
    command = s_client(Asked(served.port, TLS13, pki.device), pki, tmp_path)
    psk = ["-psk_identity", "device", "-psk", "00112233445566778899aabbccddeeff"]
    done = subprocess.run([*command, *psk], input=REQUEST, capture_output=True, timeout=30, check=True)
    assert b"New, TLSv1.3" in done.stdout
    assert b"served\n" in done.stdout
    assert served.next_peer().chain == pki.device.der_chain


@pytest.mark.foreign
def test_early_data_is_rejected_and_never_read(serve: Serve, pki: TlsPki, tmp_path: Path) -> None:
    needs("openssl")
    served = serve()
    early = tmp_path / "early"
    early.write_bytes(b"early\n")
    with early_data_server(pki, tmp_path) as port:
        keep = s_client(Asked(port, TLS13, resumes=True), pki, tmp_path)
        keep.remove("-ign_eof")  # which would not know the command Q
        with subprocess.Popen(keep, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL) as client:
            try:
                eventually(lambda: (tmp_path / "session.pem").exists() or None, what="a session is there")
                client.communicate(b"Q\n", timeout=10)
            finally:
                client.kill()
        use = [*s_client(Asked(port, TLS13, resumes=True), pki, tmp_path), "-early_data", str(early)]
        use.remove("-ign_eof")
        twin = subprocess.run(use, input=b"Q\n", capture_output=True, timeout=30, check=True)
        assert b"Early data was accepted" in twin.stdout
    command = s_client(Asked(served.port, TLS13, pki.device, resumes=True), pki, tmp_path)
    done = subprocess.run(
        [*command, "-early_data", str(early)], input=REQUEST, capture_output=True, timeout=30, check=True
    )
    assert b"Early data was rejected" in done.stdout
    assert b"5\n" not in done.stdout.splitlines(keepends=True)  # what a line of five bytes is answered with
    assert b"served\n" in done.stdout
    assert served.next_peer().chain == pki.device.der_chain
    assert served.refusals.none_waits()


@contextlib.contextmanager
def early_data_server(pki: TlsPki, folder: Path) -> Iterator[int]:
    """`openssl s_server`, which takes early data."""
    certificate = str(pki.server.write(folder / "server.pem"))
    command = ["openssl", "s_server", "-accept", "127.0.0.1:0", "-cert", certificate, "-key", certificate]
    process = subprocess.Popen([*command, "-early_data", "-tls1_3"], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    try:
        assert process.stdout is not None
        for line in process.stdout:
            if found := re.match(rb"ACCEPT .*:(\d+)", line):
                yield int(found[1])
                break
    finally:
        process.terminate()
        process.communicate(timeout=10)
