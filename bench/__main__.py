"""`make bench`: enrollments per second and server CPU per enrollment, and where the CPU goes.

simpleenroll over new mTLS connections, with IDevIDs and keys of P-256 and of RSA-2048. Each certificate is durable when
it is answered. CPU is what the worker process used (all its threads), so it does not depend on what else runs here;
enrollments per second do, and the load client shares the machine.
"""

import argparse
import asyncio
import base64
import io
import os
import pstats
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import msgspec
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import NameOID

from bench.load import Client, Job, Result
from certs.demo_pki import IDevId, Manufacturer, make_manufacturer
from tests.helpers.daemon import Daemon, running_daemon

PrivateKey = ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey
DEVICES = 10
TICK = os.sysconf("SC_CLK_TCK")


def main() -> int:
    """Measure, and print a table and a profile per kind of key."""
    parser = argparse.ArgumentParser(prog="bench", description=__doc__)
    parser.add_argument("--count", type=int, default=2000, help="enrollments with P-256 (a tenth of it with RSA-2048)")
    parser.add_argument("--threads", type=int, default=8, help="connections at a time")
    parser.add_argument("--no-profile", action="store_true", help="measure only")
    options = parser.parse_args()
    rows: list[tuple[str, ...]] = [("key", "enrollments", "per second", "CPU ms each", "p50 ms", "p99 ms")]
    profiles: list[str] = []
    with tempfile.TemporaryDirectory(prefix="enrolld-bench-") as name:
        folder = Path(name)
        for kind, count in (("P-256", options.count), ("RSA-2048", max(DEVICES, options.count // 10))):
            print(f"making {count} requests with {kind} keys ...", file=sys.stderr, flush=True)
            here = folder / kind
            here.mkdir()
            manufacturer = make_manufacturer("Bench Devices", here / "manufacturer")
            with running_daemon(here) as daemon:
                clients = _clients(daemon, manufacturer, kind, count)
                worker = _only_child(daemon.process.pid)
                before = _cpu_seconds(worker)
                result = _load(daemon.https_port, daemon.root, clients, options.threads, here)
                cpu = _cpu_seconds(worker) - before
            rows.append(_row(kind, result, cpu))
            if not options.no_profile:
                profiles.append(_profile(kind, here, manufacturer, count // 2, options.threads))
    for row in rows:
        print("  ".join(cell.rjust(12) for cell in row))
    print("\nsimpleenroll, a new mTLS connection each, SQLite, one worker; every certificate durable when answered.")
    for text in profiles:
        print(text)
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


def _clients(daemon: Daemon, manufacturer: Manufacturer, kind: str, count: int) -> list[Client]:
    daemon.ask("trust", "add", "--realm", "default", "--name", manufacturer.name, str(manufacturer.root))
    clients: list[Client] = []
    new_key = _key_maker(kind)
    for number in range(DEVICES):
        name = f"bench-{number}"
        idevid = manufacturer.make_device(name, f"SN-{number}", rsa_key=kind == "RSA-2048")
        with daemon.core() as core:
            asyncio.run(
                core.devices.add(
                    "default", name, serial_number=idevid.serial_number, manufacturer=manufacturer.name, actor="bench"
                )
            )
        clients.append(_client(idevid, name, new_key, count // DEVICES))
    return clients


def _client(idevid: IDevId, name: str, new_key: Callable[[], PrivateKey], count: int) -> Client:
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    requests = []
    for _ in range(count):
        csr = x509.CertificateSigningRequestBuilder().subject_name(subject).sign(new_key(), hashes.SHA256())
        requests.append(base64.b64encode(csr.public_bytes(Encoding.DER)).decode())
    return Client(str(idevid.chain), str(idevid.key), requests)


def _key_maker(kind: str) -> Callable[[], PrivateKey]:
    if kind == "P-256":
        return lambda: ec.generate_private_key(ec.SECP256R1())
    return lambda: rsa.generate_private_key(65537, 2048)


def _load(port: int, root: Path, clients: list[Client], threads: int, folder: Path) -> Result:
    job = folder / "job.json"
    path = "/.well-known/est/simpleenroll"
    job.write_bytes(msgspec.json.encode(Job("localhost", port, str(root), path, threads, clients)))
    done = subprocess.run([sys.executable, "-m", "bench.load", str(job)], stdout=subprocess.PIPE, check=True)
    return msgspec.json.decode(done.stdout, type=Result)


def _profile(kind: str, folder: Path, manufacturer: Manufacturer, count: int, threads: int) -> str:
    statistics = folder / "statistics"
    arguments = [sys.executable, "-m", "bench.profiled", str(folder / "enrolld"), str(statistics)]
    server = subprocess.Popen(arguments, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    try:
        assert server.stdout is not None
        port = int(server.stdout.readline())
        new_key = _key_maker(kind)
        clients = [
            _client(IDevId(manufacturer.folder / f"bench-{n}", f"SN-{n}"), f"bench-{n}", new_key, count // DEVICES)
            for n in range(DEVICES)
        ]
        result = _load(port, folder / "default-root.pem", clients, threads, folder)
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


def _cpu_seconds(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / TICK


if __name__ == "__main__":
    sys.exit(main())
