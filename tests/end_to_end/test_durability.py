"""No certificate leaves before its record is durable (design 3.1), read off the order of system calls.

The daemon runs under strace from its first instruction. Every sync is made 30 ms longer, so that an answer that did not
wait for it would stand before its end in the trace.
"""

import socket
import ssl
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding

from ca_core.core import Core
from tests.end_to_end import clients, wire
from tests.helpers import syscalls
from tests.helpers.daemon import Daemon, running_daemon

pytestmark = pytest.mark.foreign

ONE_BY_ONE = 3
AT_ONCE = 20
SYNC_DELAY = 30_000  # microseconds

STRACE = (
    *("strace", "--follow-forks", "--seccomp-bpf", "--decode-fds=all", "--strings-in-hex=all", "--string-limit=5000"),
    "--trace=fdatasync,fsync,pwrite64,pwritev,write,writev,sendto,sendmsg,read,readv,recvfrom,recvmsg",
    f"--inject=fdatasync,fsync:delay_exit={SYNC_DELAY}",
)


@dataclass(frozen=True, slots=True)
class Enrolled:
    """A certificate, and the client's port of the connection that it came over."""

    port: int
    certificate: x509.Certificate

    @property
    def needles(self) -> Sequence[bytes]:
        """Parts of the certificate; a page of the store that holds its row holds one of them whole."""
        der = self.certificate.public_bytes(Encoding.DER)
        serial = self.certificate.serial_number.to_bytes(20, "big").lstrip(b"\0")
        return serial, der[:48], der[-48:], self.certificate.fingerprint(hashes.SHA256())


@dataclass(frozen=True, slots=True)
class Trace:
    """What strace saw, and what the clients got."""

    text: str
    enrolled: Sequence[Enrolled]

    @property
    def certificates(self) -> dict[int, Sequence[bytes]]:
        return {one.port: one.needles for one in self.enrolled}


@pytest.fixture(scope="module")
def trace(tmp_path_factory: pytest.TempPathFactory) -> Trace:
    clients.needs("strace")
    folder = tmp_path_factory.mktemp("traced")
    output = folder / "trace"
    with running_daemon(folder, wrapper=[*STRACE, f"--output={output}"]) as daemon:
        secrets = add_devices(daemon, ONE_BY_ONE + AT_ONCE)
        names = list(secrets)
        enrolled = [enroll(daemon, name, secrets[name]) for name in names[:ONE_BY_ONE]]
        with ThreadPoolExecutor(AT_ONCE) as pool:
            enrolled += pool.map(lambda name: enroll(daemon, name, secrets[name]), names[ONE_BY_ONE:])
    return Trace(output.read_text(encoding="latin-1"), enrolled)


def add_devices(daemon: Daemon, count: int) -> dict[str, str]:
    async def add(core: Core) -> dict[str, str]:
        names = [f"traced-{number}" for number in range(count)]
        return {name: (await core.devices.add("default", name, actor="test")).secret for name in names}

    return daemon.inspect(add)


def enroll(daemon: Daemon, name: str, secret: str) -> Enrolled:
    """Enroll on a connection of its own, in TLS 1.2, whose record types strace can read."""
    body = wire.body_of(wire.csr(ec.generate_private_key(ec.SECP256R1()), name))
    tls = wire.context(daemon.root)
    tls.maximum_version = ssl.TLSVersion.TLSv1_2
    with (
        socket.create_connection(("127.0.0.1", daemon.https_port), timeout=60) as plain,
        tls.wrap_socket(plain, server_hostname="localhost") as connection,
    ):
        port: int = connection.getsockname()[1]
        connection.sendall(wire.enroll_request(body, authorization=wire.basic(name, secret)))
        return Enrolled(port, wire.read_answer(connection).certificate)


def test_case_56_no_answer_with_a_certificate_is_written_before_the_sync_that_covers_it(trace: Trace) -> None:
    calls = syscalls.read_trace(trace.text)
    assert len(trace.certificates) == ONE_BY_ONE + AT_ONCE
    assert syscalls.answers_written(calls) >= len(trace.certificates)
    assert syscalls.undurable_answers(calls, trace.certificates) == []


def test_connections_at_once_share_a_sync(trace: Trace) -> None:
    calls = syscalls.read_trace(trace.text)
    last_alone = syscalls.request_and_answer(calls, trace.enrolled[ONE_BY_ONE - 1].port)[1]
    last = max(syscalls.request_and_answer(calls, one.port)[1].began for one in trace.enrolled)
    shared = [call for call in syscalls.syncs_of_the_store(calls) if last_alone.ended < call.began < last]
    assert 0 < len(shared) < AT_ONCE


def test_a_sync_that_ends_after_the_answer_is_found_out(trace: Trace) -> None:
    """The twin: the same trace, in which every sync ends after all answers."""
    lines = trace.text.splitlines()
    kept = [line for line in lines if "sync" not in line]
    moved = [line for line in lines if "sync" in line]
    wrong = syscalls.undurable_answers(syscalls.read_trace("\n".join([*kept, *moved])), trace.certificates)
    assert len(wrong) == len(trace.certificates)
    assert all("no sync since its row" in sentence for sentence in wrong)


def test_a_row_that_is_never_stored_is_found_out(trace: Trace) -> None:
    one = trace.enrolled[0]
    needles = ["".join(f"\\x{byte:02x}" for byte in needle) for needle in one.needles]
    without = [
        line
        for line in trace.text.splitlines()
        if "pwrite" not in line or not any(needle in line for needle in needles)
    ]
    assert len(without) < len(trace.text.splitlines())
    wrong = syscalls.undurable_answers(syscalls.read_trace("\n".join(without)), {one.port: one.needles})
    assert wrong == [f"port {one.port}: its certificate was never written to the store"]
