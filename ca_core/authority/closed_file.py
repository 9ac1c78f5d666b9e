"""Reading a file that holds a secret: the unlock key, or the PIN of a HSM. Whatever others could read or replace is
refused."""

import os
import stat
from pathlib import Path

from ca_core.errors import OperatorError


def read_closed(path: Path, code: str, what: str, variable: str) -> bytes:
    """What a file holds that nobody else can read, without the space around it, at most 4096 bytes.

    Raises `OperatorError`, whose codes begin with `code`; `what` names the content in its sentences, and `variable` is
    what names the file.
    """
    try:
        # O_NONBLOCK: a named pipe must not stop the start, it is refused below.
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK)  # enforces case 73
    except OSError as exc:
        raise OperatorError(
            f"{code}_missing",
            f"can't read {what} {path}: {exc.strerror}",
            f"a symlink is refused; name the file itself with {variable}",
        ) from exc
    try:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):  # enforces case 73
            raise OperatorError(f"{code}_missing", f"{path} is not a file", f"name the file of {what}")
        if status.st_uid not in (os.geteuid(), 0):  # enforces case 73
            raise OperatorError(
                f"{code}_owner", f"{path} belongs to another user", f"chown it to the user that runs enrolld: {path}"
            )
        if status.st_mode & (stat.S_IRWXG | stat.S_IRWXO):  # enforces case 73
            raise OperatorError(f"{code}_permissions", f"{path} can be read by others", f"run 'chmod 600 {path}'")
        folder = os.stat(path.absolute().parent).st_mode
        if folder & stat.S_IWOTH and not folder & stat.S_ISVTX:  # enforces case 73
            raise OperatorError(
                f"{code}_permissions",
                f"anybody can put another file in the place of {path}",
                f"run 'chmod o-w {path.parent}'",
            )
        return os.read(descriptor, 4096).strip()
    finally:
        os.close(descriptor)
