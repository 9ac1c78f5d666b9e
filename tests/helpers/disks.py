"""A small disk of a test's own (a tmpfs), to be filled; and faults of the one that is there, by strace."""

import contextlib
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.end_to_end.clients import in_ci, needs
from tests.helpers.daemon import Daemon, eventually
from tests.helpers.processes import worker_of

__all__ = ["SmallDisk", "failing", "small_disk"]


class SmallDisk:
    """A mounted tmpfs of `size` bytes."""

    def __init__(self, root: Path, size: int) -> None:
        self.root = root
        self.size = size
        self._ballast = root / "ballast"

    @property
    def free(self) -> int:
        """Bytes that can still be written."""
        found = os.statvfs(self.root)
        return found.f_bavail * found.f_frsize

    def leave(self, free: int) -> None:
        """Fill it, until so many bytes are free (as near as pages allow), or take away from what fills it."""
        have = self._ballast.stat().st_size if self._ballast.exists() else 0
        wanted = max(0, have + self.free - free)
        with self._ballast.open("ab") as file:
            if wanted < have:
                file.truncate(wanted)
                return
            with contextlib.suppress(OSError):  # another writer was faster with the last page
                os.posix_fallocate(file.fileno(), have, wanted - have)
        if free == 0:
            self._take_the_rest()

    def _take_the_rest(self) -> None:
        with self._ballast.open("ab", buffering=0) as file, contextlib.suppress(OSError):
            while True:
                file.write(bytes(4096))


@contextlib.contextmanager
def small_disk(root: Path, size: int) -> Iterator[SmallDisk]:
    """Mount a tmpfs at `root`; skip the test where nothing may be mounted."""
    root.mkdir(parents=True, exist_ok=True)
    done = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={size},mode=0700", "tmpfs", str(root)], capture_output=True, check=False
    )
    if done.returncode:
        reason = f"a tmpfs can't be mounted: {done.stderr.decode(errors='replace').strip()}"
        if in_ci():
            pytest.fail(reason)
        pytest.skip(reason)
    try:
        yield SmallDisk(root, size)
    finally:
        subprocess.run(["umount", "--lazy", str(root)], check=True)


@contextlib.contextmanager
def failing(daemon: Daemon, call: str, error: str, folder: Path) -> Iterator[Path]:
    """Every `call` (such as fdatasync) of the daemon's worker fails with `error` (such as EIO) while this lasts.

    The file that is yielded shows the calls that did.
    """
    needs("strace")
    trace = folder / f"{call}.trace"
    command = ["strace", "-f", "-e", f"trace={call}", "-e", f"inject={call}:error={error}", "-o", str(trace)]
    with (folder / "strace.log").open("wb") as log:
        strace = subprocess.Popen([*command, "-p", str(worker_of(daemon))], stdout=log, stderr=subprocess.STDOUT)
    try:
        eventually(
            lambda: True if b"attached" in (folder / "strace.log").read_bytes() else None, what="strace is attached"
        )
        yield trace
    finally:
        strace.terminate()
        strace.wait(20)
