"""What becomes of time and memory as a store grows: 1 and 2 workers, the first 1,000 enrollments and those after many.

simpleenroll over new mTLS connections with P-256, by the IDevIDs of many devices; each certificate durable when it is
answered. Memory is what a worker holds (resident), CPU what all workers used.
"""

import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

from bench.load import Client, Job, Result
from bench.machine import cpu_seconds, csr, load
from certs.demo_pki import make_manufacturer
from tests.helpers.daemon import Daemon, running_daemon
from tests.helpers.processes import resident

__all__ = ["HEAD", "measure"]

DEVICES = 500
MEASURED = 1_000
CHUNK = 10_000
HEAD = ("workers", "certificates", "per second", "CPU ms each", "p50 ms", "p99 ms", "MiB a worker", "store MiB")

NO_LIMITS = "[limits]\ncertificates_per_device = 10000000\ncertificates_per_credential = 10000000\n"


@dataclass
class Growing:
    """A daemon that is filled."""

    daemon: Daemon
    workers: list[int]
    makes: "_Requests"
    folder: Path
    threads: int
    certificates: int = 0

    def enroll(self, count: int) -> tuple[Result, float]:
        """So many enrollments; what the load saw, and the CPU that the workers used."""
        clients = self.makes.clients(count)
        before = sum(map(cpu_seconds, self.workers))
        job = Job(
            "localhost",
            [self.daemon.https_port],
            str(self.daemon.root),
            "/.well-known/est/simpleenroll",
            "application/pkcs10",
            self.threads,
            clients,
        )
        result = load(self.folder, job)
        if result.failed:
            raise SystemExit(f"{len(result.failed)} or more failed: {result.failed}")
        self.certificates += result.issued
        return result, sum(map(cpu_seconds, self.workers)) - before

    def row(self, result: Result, cpu: float) -> tuple[str, ...]:
        """A line of the table."""
        times = result.milliseconds
        store = sum(path.stat().st_size for path in self.daemon.directory.glob("enrolld.db*"))
        return (
            str(len(self.workers)),
            str(self.certificates),
            f"{result.issued / result.seconds:.0f}",
            f"{cpu / result.issued * 1000:.2f}",
            f"{times[len(times) // 2]:.1f}",
            f"{times[len(times) * 99 // 100]:.1f}",
            str(max(map(resident, self.workers)) >> 20),
            str(store >> 20),
        )


def measure(workers: int, total: int, threads: int) -> list[tuple[str, ...]]:
    """Two lines: the first 1,000, and the last 1,000 of `total`."""
    with tempfile.TemporaryDirectory(prefix="enrolld-bench-") as name:
        folder = Path(name)
        (folder / "enrolld").mkdir(mode=0o700)
        (folder / "enrolld" / "enrolld.toml").write_text(NO_LIMITS)
        with running_daemon(folder, serve_arguments=("--workers", str(workers))) as daemon:
            makes = _Requests(daemon, folder)
            growing = Growing(daemon, _children(daemon.process.pid, workers), makes, folder, threads)
            rows = [growing.row(*growing.enroll(MEASURED))]
            while growing.certificates + MEASURED < total:
                growing.enroll(min(CHUNK, total - growing.certificates - MEASURED))
                done = f"{workers} workers: {growing.certificates} of {total} certificates"
                print(done, file=sys.stderr, flush=True)
            if total > MEASURED:
                rows.append(growing.row(*growing.enroll(MEASURED)))
    return rows


class _Requests:
    """The devices and their requests."""

    def __init__(self, daemon: Daemon, folder: Path) -> None:
        import asyncio

        maker = make_manufacturer("Bench Devices", folder / "manufacturer")
        daemon.ask("trust", "add", "--realm", "default", "--name", maker.name, str(maker.root))
        self._idevids = [maker.make_device(f"bench-{n}", f"SN-{n}") for n in range(DEVICES)]
        with daemon.core() as core:

            async def add() -> None:
                for number, idevid in enumerate(self._idevids):
                    await core.devices.add(
                        "default",
                        f"bench-{number}",
                        serial_number=idevid.serial_number,
                        manufacturer=maker.name,
                        actor="bench",
                    )

            asyncio.run(add())

    def clients(self, count: int) -> list[Client]:
        """Each device with its share of `count` requests."""
        share = max(1, count // DEVICES)
        return [
            Client(str(idevid.chain), str(idevid.key), [csr(f"bench-{number}") for _ in range(share)])
            for number, idevid in enumerate(self._idevids)
        ]


def _children(pid: int, count: int) -> list[int]:
    found = [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    if len(found) != count:
        raise SystemExit(f"the daemon has {len(found)} workers, not {count}")
    return found
