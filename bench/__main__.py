"""`make bench`: enrollments per second and server CPU per enrollment, and where the CPU goes.

simpleenroll over new mTLS connections, with IDevIDs and keys of P-256 and of RSA-2048; PKCSReq over new connections, by
secret, with RSA-2048 for RA, issuer and device. Each certificate is durable when it is answered. CPU is what the worker
process used (all its threads), so it does not depend on what else runs here; enrollments per second do, and the load
client shares the machine.
"""

import argparse
import io
import pstats
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from bench import growth, stores
from bench.load import Result
from bench.machine import cpu_seconds
from bench.makers import DEVICES, Est, Scep, work_off
from tests.helpers.daemon import running_daemon


def main() -> int:
    """Measure, and print a table and a profile per kind of key."""
    parser = argparse.ArgumentParser(prog="bench", description=__doc__)
    parser.add_argument("--count", type=int, default=2000, help="enrollments with P-256 (a tenth of it with RSA-2048)")
    parser.add_argument("--threads", type=int, default=8, help="connections at a time")
    parser.add_argument("--total", type=int, default=100_000, help="certificates that the growing store ends with")
    parser.add_argument("--no-stores", action="store_true", help="leave out SQLite against PostgreSQL")
    parser.add_argument("--only-stores", action="store_true", help="SQLite against PostgreSQL, and nothing else")
    parser.add_argument("--no-growth", action="store_true", help="leave the growing store out, which takes ten minutes")
    parser.add_argument("--no-profile", action="store_true", help="measure only")
    options = parser.parse_args()
    if not options.only_stores:
        _measure_protocols(options)
    if options.only_stores or not options.no_stores:
        print("\nSQLite against PostgreSQL, nodes of one worker, asked in turn:\n")
        _print([stores.HEAD, *stores.measure(options.count, options.threads)], 13)
    if not (options.only_stores or options.no_growth):
        grown: list[tuple[str, ...]] = [growth.HEAD]
        for workers in (1, 2):
            grown.extend(growth.measure(workers, options.total, options.threads))
        print("\nA store that grows (EST P-256, figures of 1,000 enrollments each):\n")
        _print(grown, 12)
    return 0


def _print(rows: list[tuple[str, ...]], width: int) -> None:
    for row in rows:
        print("  ".join(cell.rjust(width) for cell in row))


def _measure_protocols(options: argparse.Namespace) -> None:
    rows: list[tuple[str, ...]] = [("what", "enrollments", "per second", "CPU ms each", "p50 ms", "p99 ms")]
    profiles: list[str] = []
    with tempfile.TemporaryDirectory(prefix="enrolld-bench-") as name:
        for kind in ("EST P-256", "EST RSA-2048", "SCEP RSA-2048"):
            count = options.count if kind.endswith("P-256") else max(DEVICES, options.count // 10)
            print(f"making {count} requests for {kind} ...", file=sys.stderr, flush=True)
            here = Path(name) / kind.replace(" ", "-")
            (here / "enrolld").mkdir(parents=True, mode=0o700)
            (here / "enrolld" / "enrolld.toml").write_text(growth.NO_LIMITS)
            make = Scep(here) if kind.startswith("SCEP") else Est(here, kind)
            with running_daemon(here) as daemon:
                make.prepare(daemon)
                clients = make.clients(count)
                worker = _only_child(daemon.process.pid)
                before = cpu_seconds(worker)
                port = daemon.http_port if make.listener == "http" else daemon.https_port
                result = work_off([port], make, daemon.root, clients, options.threads)
                cpu = cpu_seconds(worker) - before
            rows.append(_row(kind, result, cpu))
            if not options.no_profile:
                profiles.append(_profile(kind, make, count // 2, options.threads))
    _print(rows, 13)
    print("\nA new connection each (EST: mTLS), SQLite, one worker; every certificate durable when answered.")
    for text in profiles:
        print(text)


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


def _profile(kind: str, make: Est | Scep, count: int, threads: int) -> str:
    statistics = make.folder / "statistics"
    directory = make.folder / "enrolld"
    arguments = [sys.executable, "-m", "bench.profiled", str(directory), str(statistics), make.listener]
    clients = make.clients(count)
    server = subprocess.Popen(arguments, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    try:
        assert server.stdout is not None
        port = int(server.stdout.readline())
        result = work_off([port], make, make.folder / "default-root.pem", clients, threads)
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
