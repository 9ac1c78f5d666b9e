"""The daemon's processes: which they are, and what they hold."""

from pathlib import Path

from tests.helpers.daemon import Daemon

__all__ = ["resident", "worker_of"]


def worker_of(daemon: Daemon) -> int:
    """The process id of a worker of the daemon."""
    supervisor = daemon.process.pid
    return int(Path(f"/proc/{supervisor}/task/{supervisor}/children").read_text().split()[0])


def resident(pid: int) -> int:
    """Resident bytes of a process."""
    (line,) = [line for line in Path(f"/proc/{pid}/status").read_text().splitlines() if line.startswith("VmRSS")]
    return int(line.split()[1]) * 1024
