"""SQLite against PostgreSQL, one node and two: the same load, and what it costs enrolld and the database.

EST with P-256 by the IDevIDs of many devices, and SCEP with RSA-2048 by secrets, each over a new connection; two nodes
are asked in turn, without a balancer. Each node has one worker; every certificate is durable when it is answered, also
PostgreSQL's (fsync). CPU is that of all workers, and of all of PostgreSQL's processes.
"""

import contextlib
import secrets
import sys
import tempfile
from pathlib import Path

from bench import growth
from bench.machine import cpu_seconds, cpu_with_ended_children
from bench.makers import Est, Scep, work_off
from tests.helpers.nodes import Node
from tests.helpers.postgres import Postgres, running_postgres

__all__ = ["HEAD", "measure"]

DEVICES = 200
HEAD = ("load", "store", "nodes", "enrollments", "per second", "CPU ms each", "and PostgreSQL", "p50 ms", "p99 ms")
_LOADS = {"EST P-256": 1, "SCEP RSA-2048": 10}
"""And what its count is divided by."""


def measure(count: int, threads: int) -> list[tuple[str, ...]]:
    """A line for each load, store and number of nodes; `count` are the enrollments with P-256."""
    rows = []
    for kind, divisor in _LOADS.items():
        for nodes in (0, 1, 2):
            rows.append(_measure_one(kind, nodes, max(DEVICES, count // divisor), threads))
            print(*rows[-1], file=sys.stderr, flush=True)
    return rows


def _measure_one(kind: str, on_postgres: int, count: int, threads: int) -> tuple[str, ...]:
    """So many nodes on PostgreSQL; 0 is one on SQLite."""
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="enrolld-bench-")))
        postgres = stack.enter_context(running_postgres()) if on_postgres else None
        url = postgres.create("bench") if postgres is not None else f"sqlite:///{folder / 'enrolld.db'}"
        key = secrets.token_bytes(32)
        nodes = []
        for number in range(on_postgres or 1):
            nodes.append(Node(folder / str(number), url, unlock_key=key, settings=growth.NO_LIMITS))
            stack.callback(nodes[-1].end)
        make = Scep(folder) if kind.startswith("SCEP") else Est(folder, kind, DEVICES)
        first = nodes[0].daemon
        make.prepare(first)
        clients = make.clients(count)
        workers = [worker for node in nodes for worker in node.workers()]
        assert len(workers) == len(nodes)
        ports = [
            node.daemon.http_port if make.listener == "http" else node.daemon.https_port  # asked in turn
            for node in nodes
        ]
        before, its_before = sum(map(cpu_seconds, workers)), _cpu_of(postgres)
        result = work_off(ports, make, first.root, clients, threads)
        cpu, its_cpu = sum(map(cpu_seconds, workers)) - before, _cpu_of(postgres) - its_before
    if result.failed:
        raise SystemExit(f"{kind}: {len(result.failed)} or more failed: {result.failed}")
    times = result.milliseconds
    return (
        kind,
        "PostgreSQL" if postgres is not None else "SQLite",
        str(len(nodes)),
        str(result.issued),
        f"{result.issued / result.seconds:.0f}",
        f"{cpu / result.issued * 1000:.2f}",
        f"{its_cpu / result.issued * 1000:.2f}" if postgres is not None else "",
        f"{times[len(times) // 2]:.1f}",
        f"{times[len(times) * 99 // 100]:.1f}",
    )


def _cpu_of(postgres: Postgres | None) -> float:
    """CPU time of all of PostgreSQL's processes so far, also of those that have ended."""
    if postgres is None:
        return 0.0
    children = Path(f"/proc/{postgres.pid}/task/{postgres.pid}/children").read_text().split()
    return cpu_with_ended_children(postgres.pid) + sum(cpu_seconds(int(child)) for child in children)
