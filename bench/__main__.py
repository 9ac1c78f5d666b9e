"""`make bench`: enrollments per second and server CPU per enrollment, and where the CPU goes.

simpleenroll over new mTLS connections, with IDevIDs and keys of P-256 and of RSA-2048; PKCSReq over new connections, by
secret, with RSA-2048 for RA, issuer and device. Each certificate is durable when it is answered. CPU is what the worker
process used (all its threads), so it does not depend on what else runs here; enrollments per second do, and the load
client shares the machine.
"""

import argparse
import asyncio
import base64
import io
import itertools
import pstats
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from bench import growth
from bench.load import PKI_MESSAGE, Client, Job, Result
from bench.machine import cpu_seconds, csr, load, rsa_key
from bench.scep import pkcs_req
from ca_core.authority.sealing import UnlockKey
from ca_core.core import Core, CoreConfig
from certs.demo_pki import IDevId, make_manufacturer
from tests.helpers.daemon import Daemon, running_daemon

DEVICES = 10


def main() -> int:
    """Measure, and print a table and a profile per kind of key."""
    parser = argparse.ArgumentParser(prog="bench", description=__doc__)
    parser.add_argument("--count", type=int, default=2000, help="enrollments with P-256 (a tenth of it with RSA-2048)")
    parser.add_argument("--threads", type=int, default=8, help="connections at a time")
    parser.add_argument("--total", type=int, default=100_000, help="certificates that the growing store ends with")
    parser.add_argument("--no-growth", action="store_true", help="leave the growing store out, which takes ten minutes")
    parser.add_argument("--no-profile", action="store_true", help="measure only")
    options = parser.parse_args()
    rows: list[tuple[str, ...]] = [("what", "enrollments", "per second", "CPU ms each", "p50 ms", "p99 ms")]
    profiles: list[str] = []
    with tempfile.TemporaryDirectory(prefix="enrolld-bench-") as name:
        for kind in ("EST P-256", "EST RSA-2048", "SCEP RSA-2048"):
            count = options.count if kind.endswith("P-256") else max(DEVICES, options.count // 10)
            print(f"making {count} requests for {kind} ...", file=sys.stderr, flush=True)
            here = Path(name) / kind.replace(" ", "-")
            (here / "enrolld").mkdir(parents=True, mode=0o700)
            (here / "enrolld" / "enrolld.toml").write_text(growth.NO_LIMITS)
            make = _Scep(here) if kind.startswith("SCEP") else _Est(here, kind)
            with running_daemon(here) as daemon:
                make.prepare(daemon)
                clients = make.clients(daemon.directory, count)
                worker = _only_child(daemon.process.pid)
                before = cpu_seconds(worker)
                port = daemon.http_port if make.listener == "http" else daemon.https_port
                result = _load(port, make, daemon.root, clients, options.threads)
                cpu = cpu_seconds(worker) - before
            rows.append(_row(kind, result, cpu))
            if not options.no_profile:
                profiles.append(_profile(kind, make, count // 2, options.threads))
    for row in rows:
        print("  ".join(cell.rjust(13) for cell in row))
    print("\nA new connection each (EST: mTLS), SQLite, one worker; every certificate durable when answered.")
    for text in profiles:
        print(text)
    if not options.no_growth:
        grown: list[tuple[str, ...]] = [growth.HEAD]
        for workers in (1, 2):
            grown.extend(growth.measure(workers, options.total, options.threads))
        print("\nA store that grows (EST P-256, figures of 1,000 enrollments each):\n")
        for row in grown:
            print("  ".join(cell.rjust(12) for cell in row))
    return 0


def _row(kind: str, result: Result, cpu: float) -> tuple[str, ...]:
    if result.failed:
        raise SystemExit(f"{kind}: {len(result.failed)} or more failed: {result.failed}")
    times = result.milliseconds
    return (
        kind,
        str(result.issued),
        f"{result.issued / result.seconds:.0f}",
        f"{cpu / result.issued * 1000:.2f}",
        f"{times[len(times) // 2]:.1f}",
        f"{times[len(times) * 99 // 100]:.1f}",
    )


class _Est:
    """simpleenroll by IDevID, with keys of one kind."""

    listener = "https"
    path = "/.well-known/est/simpleenroll"
    content_type = "application/pkcs10"

    def __init__(self, folder: Path, kind: str) -> None:
        self.folder = folder
        self._is_rsa = kind.endswith("RSA-2048")
        self._manufacturer = make_manufacturer("Bench Devices", folder / "manufacturer")

    def prepare(self, daemon: Daemon) -> None:
        """Have the manufacturer trusted and its devices registered."""
        maker = self._manufacturer
        daemon.ask("trust", "add", "--realm", "default", "--name", maker.name, str(maker.root))
        for number in range(DEVICES):
            name = f"bench-{number}"
            serial_number = maker.make_device(name, f"SN-{number}", rsa_key=self._is_rsa).serial_number
            with daemon.core() as core:
                adding = core.devices.add(
                    "default", name, serial_number=serial_number, manufacturer=maker.name, actor="bench"
                )
                asyncio.run(adding)

    def clients(self, directory: Path, count: int) -> list[Client]:  # noqa: ARG002  # as `_Scep`
        """The devices, each with its share of requests."""
        found = []
        for number in range(DEVICES):
            idevid = IDevId(self._manufacturer.folder / f"bench-{number}", f"SN-{number}")
            requests = [csr(f"bench-{number}", is_rsa=self._is_rsa) for _ in range(count // DEVICES)]
            found.append(Client(str(idevid.chain), str(idevid.key), requests))
        return found


class _Scep:
    """PKCSReq by secret, a new device each."""

    listener = "http"
    path = "/scep?operation=PKIOperation"
    content_type = PKI_MESSAGE

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._numbers = itertools.count()

    def prepare(self, daemon: Daemon) -> None:
        """Nothing but the daemon is needed."""

    def clients(self, directory: Path, count: int) -> list[Client]:
        """One client that speaks for all devices."""
        return [Client("", "", asyncio.run(self._requests(directory, count)))]

    async def _requests(self, directory: Path, count: int) -> list[str]:
        url = f"sqlite:///{directory / 'enrolld.db'}"
        key = UnlockKey.load(directory / "keys" / "unlock")
        core = Core.open(CoreConfig(url, key, "http://localhost:8080", demo=True, process="bench"))
        try:
            ra = (await core.ra(await core.realms.resolve("scep", None, None))).certificate
            requests = []
            for _ in range(count):
                name = f"bench-scep-{next(self._numbers)}"
                handed = await core.devices.add("default", name, actor="bench")
                requests.append(base64.b64encode(pkcs_req(ra, name, handed.secret, rsa_key)).decode())
            return requests
        finally:
            core.close()


def _load(port: int, make: _Est | _Scep, root: Path, clients: list[Client], threads: int) -> Result:
    return load(make.folder, Job("localhost", port, str(root), make.path, make.content_type, threads, clients))


def _profile(kind: str, make: _Est | _Scep, count: int, threads: int) -> str:
    statistics = make.folder / "statistics"
    directory = make.folder / "enrolld"
    arguments = [sys.executable, "-m", "bench.profiled", str(directory), str(statistics), make.listener]
    clients = make.clients(directory, count)
    server = subprocess.Popen(arguments, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    try:
        assert server.stdout is not None
        port = int(server.stdout.readline())
        result = _load(port, make, make.folder / "default-root.pem", clients, threads)
    finally:
        server.send_signal(signal.SIGTERM)
        server.wait(30)
    text = io.StringIO()
    pstats.Stats(str(statistics), stream=text).strip_dirs().sort_stats("tottime").print_stats(25)
    lines = text.getvalue().splitlines()
    start = next(number for number, line in enumerate(lines) if "ncalls" in line)
    head = f"\n{kind}: where the worker's event loop spends its time, over {result.issued} enrollments"
    return "\n".join([head, *lines[start:]]).rstrip()


def _only_child(pid: int) -> int:
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline:
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
        if len(children) == 1:
            return int(children[0])
    raise SystemExit("the daemon has not one worker")


if __name__ == "__main__":
    sys.exit(main())
