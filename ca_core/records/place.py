"""Where an embedded store may lie: not on a network file system, and with room for what follows.

SQLite's write-ahead log is shared memory between processes of one machine, and its locks are only as good as the file
system's. On a network file system two machines, or one with a lost connection, would damage the store.
"""

import os
import time
from collections.abc import Callable
from pathlib import Path

from ca_core.errors import OperatorError

__all__ = ["Headroom", "file_system_of", "refuse_network"]

RESERVE = 0.05
"""Share of the file system that is kept free: with less, nothing more is issued."""
LARGEST_RESERVE = 2 << 30
"""Bytes; a twentieth of a large disk would be more than what a CA needs to say that it stops."""
WAL_BOUND = 1 << 30
"""Bytes of the write-ahead log beyond which nothing more is issued."""

_LOOK_EVERY = 0.2  # seconds
_NETWORK = frozenset(
    {
        *(
            "9p",
            "afs",
            "beegfs",
            "ceph",
            "cifs",
            "coda",
            "davfs",
            "glusterfs",
            "gpfs",
            "lustre",
            "ncpfs",
            "nfs",
            "nfs4",
        ),
        *("orangefs", "smb2", "smb3", "smbfs"),
        *("fuse.ceph", "fuse.ceph-fuse", "fuse.davfs2", "fuse.gcsfuse", "fuse.glusterfs", "fuse.juicefs", "fuse.mfs"),
        *("fuse.rclone", "fuse.s3fs", "fuse.smbnetfs", "fuse.sshfs", "fuse.vmhgfs-fuse", "gfs2", "ocfs2", "vboxsf"),
    }
)


class Headroom:
    """Whether there is room for more certificates. It looks at the disk a few times a second, however often asked."""

    def __init__(self, path: Path, clock: Callable[[], float] = time.monotonic) -> None:
        self._path = path
        self._wal = path.with_name(path.name + "-wal")
        self._clock = clock
        self._looked = -_LOOK_EVERY
        self._found: str | None = None

    def shortage(self) -> str | None:
        """Why nothing more may be issued, in words for the operator; None while there is room."""
        now = self._clock()
        if now - self._looked >= _LOOK_EVERY:
            self._looked = now
            self._found = self._look()
        return self._found

    def free_ratio(self) -> float:
        """Share of the file system that this user may still fill, 0 to 1."""
        found = os.statvfs(self._path)
        return found.f_bavail / found.f_blocks if found.f_blocks else 1.0

    def wal_bytes(self) -> int:
        """Size of the write-ahead log."""
        try:
            return self._wal.stat().st_size
        except FileNotFoundError:
            return 0

    def _look(self) -> str | None:
        try:
            found = os.statvfs(self._path)
            wal = self.wal_bytes()
        except OSError as exc:
            return f"the store at {self._path} can't be looked at: {exc.strerror}"
        total, free = found.f_blocks * found.f_frsize, found.f_bavail * found.f_frsize
        if free < min(total * RESERVE, LARGEST_RESERVE):  # enforces case 58
            return (
                f"the disk under {self._path} is nearly full ({free >> 20} MiB are free): make room, and issuing "
                "goes on by itself"
            )
        if wal > WAL_BOUND:  # enforces case 58
            return (
                f"the write-ahead log of {self._path} has grown to {wal >> 20} MiB, because another program keeps "
                f"reading the store ('fuser {self._path}' names it): end that program, and issuing goes on by itself"
            )
        return None


def refuse_network(path: Path) -> None:
    """Raise `OperatorError` when the store at `path` would lie on a network file system."""
    try:
        mounts = Path("/proc/self/mountinfo").read_text("utf-8", "surrogateescape")
    except OSError:
        return  # not Linux: the operator is trusted to know
    kind = file_system_of(path, mounts)
    if kind in _NETWORK:
        raise OperatorError(
            "store_on_network",
            f"{path} lies on a network file system ({kind}), where SQLite's locks do not hold.",
            "Put the directory (--dir) or the store (--store sqlite:///PATH) on a local disk.",
        )


def file_system_of(path: Path, mountinfo: str) -> str | None:
    """The type of the file system that holds `path`, from the text of /proc/self/mountinfo (see proc(5))."""
    place = path.resolve()
    found: tuple[int, str] | None = None
    for line in mountinfo.splitlines():
        before, separator, after = line.partition(" - ")
        fields = before.split(" ")
        if not separator or len(fields) < 5:
            continue
        # The kernel writes space, tab, newline and backslash in octal.
        point = fields[4]
        for escaped, plain in (("\\040", " "), ("\\011", "\t"), ("\\012", "\n"), ("\\134", "\\")):
            point = point.replace(escaped, plain)
        # Of two mounts at one point the later one counts.
        if place.is_relative_to(point) and (found is None or len(point) >= found[0]):
            found = (len(point), after.split(" ")[0])
    return found[1] if found else None
