"""Case 51, in number: thousands of idle connections, slow peers at each stage, and peers that never read.

An honest client beside them enrolls within a second, and the worker's memory stays bounded. The figures are printed;
`make long` has the full numbers.
"""

import contextlib
import os
import sqlite3
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric import ec

from ca_core.authority.crl import encode_entry
from ca_core.records.times import utc_now
from tests.end_to_end import wire
from tests.helpers.crowd import Job
from tests.helpers.daemon import Daemon, eventually, running_daemon
from tests.helpers.processes import resident, worker_of

LONG = os.environ.get("ENROLLD_LONG") == "1"
IDLE, SLOW, DEAF = (10_000, 1_000, 100) if LONG else (1_000, 120, 30)
REVOKED = 200_000 if LONG else 40_000
LARGE = "/pki/default-ec-1/0.crl"
MAX_IDLE_BYTES = 64 * 1024
"""Memory of the worker for one idle TLS connection."""


@dataclass(frozen=True)
class Figures:
    """What an honest client met."""

    seconds: list[float]
    memory: int

    def __str__(self) -> str:
        middle, most = statistics.median(self.seconds), max(self.seconds)
        return f"median {middle * 1000:.0f} ms, longest {most * 1000:.0f} ms, worker {self.memory >> 20} MiB"


class Honest:
    """Devices that enroll, each once."""

    def __init__(self, daemon: Daemon, count: int) -> None:
        self.daemon = daemon
        self.context = wire.context(daemon.root)
        self.requests = []
        with daemon.core() as core:
            import asyncio

            for number in range(count):
                name = f"honest-{number}"
                secret = asyncio.run(core.devices.add("default", name, actor="test")).secret
                body = wire.body_of(wire.csr(ec.generate_private_key(ec.SECP256R1()), name))
                self.requests.append(wire.enroll_request(body, authorization=wire.basic(name, secret)))

    def enroll(self, count: int = 10) -> Figures:
        seconds = []
        for _ in range(count):
            request = self.requests.pop()
            since = time.perf_counter()
            answer = wire.exchange(self.daemon.https_port, self.context, request)
            seconds.append(time.perf_counter() - since)
            assert answer.status == 200, answer
        return Figures(seconds, resident(worker_of(self.daemon)))


@contextlib.contextmanager
def crowd(*jobs: Job) -> Iterator[list["subprocess.Popen[str]"]]:
    """The processes of these jobs, once all their connections are there."""
    processes = [
        subprocess.Popen(
            [sys.executable, "-m", "tests.helpers.crowd", job.text()],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for job in jobs
    ]
    try:
        for process in processes:
            assert process.stdout is not None
            assert process.stdout.readline().startswith("ready ")
        yield processes
    finally:
        for process in processes:
            process.kill()
            process.wait()
            for stream in (process.stdin, process.stdout):
                if stream is not None:
                    with contextlib.suppress(BrokenPipeError):
                        stream.close()


def alive(processes: list["subprocess.Popen[str]"]) -> int:
    """How many connections the server still holds."""
    count = 0
    for process in processes:
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write("?\n")
        process.stdin.flush()
        count += int(process.stdout.readline().split()[1])
    return count


@pytest.fixture(scope="module")
def daemon(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemon]:
    with running_daemon(tmp_path_factory.mktemp("crowds"), settings="[limits]\ntrusted = []\n") as running:
        revoke_many(running, REVOKED)
        yield running


def revoke_many(daemon: Daemon, count: int) -> None:
    """A large CRL, as years of revocations leave it: rows that copy a certificate, and a publication."""
    handed = daemon.ask("device", "add", "pattern")
    body = wire.body_of(wire.csr(ec.generate_private_key(ec.SECP256R1()), "pattern"))
    request = wire.enroll_request(body, authorization=wire.basic("pattern", handed["secret"]))
    assert wire.exchange(daemon.https_port, wire.context(daemon.root), request).status == 200
    with contextlib.closing(sqlite3.connect(daemon.directory / "enrolld.db", timeout=60)) as store, store:
        names = [row[1] for row in store.execute("PRAGMA table_info(certificate)")]
        changed = {"id": "NULL", "serial": "?", "crl_entry": "?", "fingerprint": "?", "status": "'revoked'"}
        changed |= {"revoked_at": "issued_at", "reason": "'superseded'", "request_key": "NULL"}
        values = ", ".join(changed.get(name, name) for name in names)
        now = utc_now()
        store.executemany(
            f"INSERT INTO certificate SELECT {values} FROM certificate WHERE kind = 'device' AND id = "  # noqa: S608
            "(SELECT min(id) FROM certificate WHERE kind = 'device')",
            (
                (f"{number:x}", encode_entry(number, now, "superseded"), number.to_bytes(32, "big"))
                for number in range(1 << 150, (1 << 150) + count)
            ),
        )
        store.execute("UPDATE issuer SET revocations = revocations + ? WHERE name = 'default-ec-1'", (count,))
    daemon.ask("crl", "publish", "default-ec-1")


def job(daemon: Daemon, **counts: int) -> Job:
    sources = [f"127.0.{third}.{last}" for third in range(2, 12) for last in range(1, 11)]
    return Job(daemon.https_port, daemon.http_port, str(daemon.root), LARGE, sources, **counts)


def test_case_51_an_honest_client_enrolls_within_a_second_beside_thousands_who_do_not_behave(daemon: Daemon) -> None:
    honest = Honest(daemon, 50)
    alone = honest.enroll()
    with contextlib.ExitStack() as stack:
        deaf = stack.enter_context(crowd(job(daemon, deaf=DEAF)))
        before_answers = alone.memory
        not_reading = honest.enroll()
        each = SLOW // 4
        slow = {"slow_handshakes": each, "slow_heads": each, "slow_bodies": each, "slow_answers": each}
        stack.enter_context(crowd(job(daemon, **slow)))
        beside_slow = honest.enroll()
        idle = stack.enter_context(crowd(job(daemon, idle=IDLE // 2), job(daemon, idle=IDLE // 2)))
        beside_all = honest.enroll()
        still = alive(idle)
    assert deaf
    for what, figures in (
        ("alone", alone),
        (f"beside {DEAF} that never read a CRL of {REVOKED} entries", not_reading),
        (f"beside {SLOW} slow ones as well", beside_slow),
        (f"beside {IDLE} idle TLS connections as well ({still} of them open at the end)", beside_all),
    ):
        print(f"an honest client {what}: {figures}")
    for figures in (not_reading, beside_slow, beside_all):
        assert sorted(figures.seconds)[-2] < 1.0, f"of ten, more than one had to wait: {figures}"
    assert still > IDLE * 9 // 10, "the idle ones were there"
    # One copy of the CRL, and what the sockets of those who don't read hold.
    assert not_reading.memory - before_answers < (32 << 20) + DEAF * (256 << 10)
    assert beside_slow.memory - not_reading.memory < SLOW * 2 * MAX_IDLE_BYTES
    assert beside_all.memory - beside_slow.memory < IDLE * MAX_IDLE_BYTES
    assert honest.enroll().seconds


def test_what_a_crowd_took_is_given_back(daemon: Daemon) -> None:
    """Connections that have ended leave no objects: descriptors are back, and the next crowd costs no more memory."""
    worker = worker_of(daemon)
    open_files = Path(f"/proc/{worker}/fd")
    before = len(list(open_files.iterdir()))
    figures = []
    for _ in range(3):
        with crowd(job(daemon, idle=IDLE // 4)):
            figures.append(resident(worker))
        eventually(lambda: len(list(open_files.iterdir())) <= before + 8 or None, what="descriptors are given back")
    print(f"memory with {IDLE // 4} connections, three times: {[figure >> 20 for figure in figures]} MiB")
    assert figures[2] - figures[1] < IDLE // 4 * 16 * 1024
