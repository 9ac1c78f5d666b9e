"""Killing a worker at a chosen system call, with strace attached to one of its two threads.

A worker has a thread that turns the event loop and serves, and a thread that writes the store. strace counts the calls
of one thread and sends SIGKILL at the entry of the n-th: that call is not carried out any more.
"""

import contextlib
import os
import re
import signal
import subprocess
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.helpers.daemon import eventually
from tests.helpers.mortal import Mortal

__all__ = ["LOOP", "WRITER", "Call", "Place", "Strace", "attachable", "attached", "fresh_worker"]

LOOP, WRITER = "loop", "writer"

_PATIENCE = 60.0
_CALL = re.compile(r"(?:(?P<tid>\d+) +)?(?P<name>\w+)\((?P<arguments>.*)")
# libuv's io_uring_enter is not among them: it tells epoll which sockets to watch, and moves nothing.
_MOVES_DATA = (
    "write,writev,pwrite64,pwritev,pwritev2,sendto,sendmsg,sendmmsg,sendfile,splice,copy_file_range,"
    "fsync,fdatasync,sync_file_range,msync,ftruncate,rename,unlink,flock"
)


@dataclass(frozen=True, slots=True)
class Place:
    """A worker, and the ids of its threads."""

    pid: int
    writer: int

    def thread(self, role: str) -> int:
        """The id of one thread."""
        return self.pid if role == LOOP else self.writer


@dataclass(frozen=True, slots=True)
class Call:
    """One call that began: whose thread's, its name, and its arguments as strace shows them."""

    role: str
    name: str
    arguments: str


@dataclass(frozen=True, slots=True)
class Strace:
    """A running strace on threads of one worker, and its output."""

    process: "subprocess.Popen[bytes]"
    output: Path
    place: Place
    role: str | None

    def calls(self) -> list[Call]:
        """Every call that began, in order."""
        found = [_CALL.match(line) for line in self.output.read_text(errors="replace").splitlines()]
        return [Call(self._role(one["tid"]), one["name"], one["arguments"]) for one in found if one is not None]

    def wait_for_the_kill(self) -> bool:
        """Wait for strace to end with its thread: whether it saw SIGKILL."""
        self.process.wait(_PATIENCE)
        return "+++ killed by SIGKILL +++" in self.output.read_text(errors="replace")

    def _role(self, tid: str | None) -> str:
        if tid is None:  # strace names the thread only when it watches several
            assert self.role is not None
            return self.role
        return LOOP if int(tid) == self.place.pid else WRITER


def attachable() -> Sequence[str]:
    """What a daemon is started by, so that strace may look into it: enrolld forbids that to all but root.

    Whoever makes a user namespace is root to the processes in it. Where that is not allowed, the test is skipped.
    """
    if os.geteuid() == 0:
        return ()
    wrapper = ("unshare", "--user", "--map-current-user")
    if subprocess.run([*wrapper, "true"], stderr=subprocess.DEVNULL, check=False).returncode != 0:
        pytest.skip("strace may not look into enrolld here: that takes root, or user namespaces")
    return wrapper


@contextlib.contextmanager
def attached(
    place: Place, role: str | None, output: Path, *, inject: str = "", only: Path | None = None
) -> Iterator[Strace]:
    """strace on one thread of a worker, or on both (`role` None); `inject` as it takes it, on calls of file `only`."""
    targets = [place.pid, place.writer] if role is None else [place.thread(role)]
    said = output.with_suffix(".said")
    with said.open("wb") as sink:
        process = subprocess.Popen(
            [
                *("strace", "--decode-fds=all", f"--output={output}", f"--trace={_MOVES_DATA}"),
                *(f"--attach={tid}" for tid in targets),
                *([f"--inject={inject}"] if inject else []),
                *([f"--trace-path={only}"] if only is not None else []),
            ],
            stdin=subprocess.DEVNULL,
            stdout=sink,
            stderr=sink,
        )
    try:
        eventually(lambda: _has_attached(process, said, len(targets)), what="strace is attached")
        yield Strace(process, output, place, role)
    finally:
        with contextlib.suppress(ProcessLookupError):
            process.send_signal(signal.SIGINT)  # lets go of a thread that lives
        process.wait(_PATIENCE)


def _has_attached(process: "subprocess.Popen[bytes]", said: Path, count: int) -> bool | None:
    text = said.read_text(errors="replace")
    assert process.poll() is None, text
    return True if text.count(" attached") >= count else None


def fresh_worker(mortal: Mortal) -> Place:
    """The one worker, once it serves and has looked after its first chores."""

    def found() -> Place | None:
        pids = mortal.workers()
        if len(pids) != 1:
            return None
        (pid,) = pids
        if f"(process {pid})" not in mortal.output.read_text(errors="replace"):
            return None
        with contextlib.suppress(FileNotFoundError):
            others = {int(task.name) for task in Path(f"/proc/{pid}/task").iterdir()} - {pid}
            return Place(pid, others.pop()) if len(others) == 1 else None
        return None

    return eventually(found, what="a worker serves, with a thread that writes", seconds=_PATIENCE)
