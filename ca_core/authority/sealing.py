"""Sealing private keys with the unlock key.

A software key lies in the store as PKCS#8 encrypted under the unlock key (PBES2, RFC 8018), which
`openssl pkey -passin file:keys/unlock` can open as well: no form of our own stands between an operator and a key.
"""

import os
import secrets
import stat
from pathlib import Path
from typing import cast

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    PrivateFormat,
    load_der_private_key,
)

from ca_core.errors import OperatorError, SealingFailed

PrivateKey = rsa.RSAPrivateKey | ec.EllipticCurvePrivateKey


def read_guarded_file(path: Path, what: str, code: str, remedy: str) -> bytes:
    """What a file holds that nobody else can read or replace, without white space around it; at most 4 KiB.

    Raises `OperatorError`, in whose message the file is `what`, with a code that begins as given; `remedy` is that of a
    file which can't be opened.
    """
    try:
        # O_NONBLOCK: a named pipe must not stop the start, it is refused below.
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK)  # enforces case 73
    except OSError as exc:
        raise OperatorError(f"{code}_missing", f"can't read the {what} {path}: {exc.strerror}", remedy) from exc
    try:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):  # enforces case 73
            raise OperatorError(f"{code}_missing", f"{path} is not a file", f"name the {what}'s file")
        if status.st_uid not in (os.geteuid(), 0):  # enforces case 73
            raise OperatorError(
                f"{code}_owner",
                f"{path} belongs to another user",
                f"chown it to the user that runs enrolld: {path}",
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


class UnlockKey:
    """The passphrase of the store's private keys. It never shows itself."""

    __slots__ = ("_value",)

    def __init__(self, value: bytes) -> None:
        if len(value) < 16:  # enforces case 73
            raise OperatorError(
                "unlock_key_short", "the unlock key has less than 16 bytes", "restore the file that 'init' made"
            )
        self._value = value

    def __repr__(self) -> str:
        return "UnlockKey(...)"

    @classmethod
    def generate(cls, path: Path) -> "UnlockKey":
        """Write a new unlock key (32 random bytes, as hex) to `path`, which must not exist, with mode 0600."""
        text = secrets.token_hex(32).encode()
        try:
            path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600)  # enforces case 73
            with os.fdopen(descriptor, "wb") as file:
                file.write(text + b"\n")
                file.flush()
                os.fsync(file.fileno())
        except OSError as exc:
            raise OperatorError(
                "unlock_key_unwritable", f"can't make the unlock key {path}: {exc.strerror}", "look at the directory"
            ) from exc
        return cls(text)

    @classmethod
    def load(cls, path: Path) -> "UnlockKey":
        """Read the unlock key from a file that nobody else can read. Raises `OperatorError`."""
        remedy = "a symlink is refused; name the file itself with ENROLLD_UNLOCK_FILE"
        return cls(read_guarded_file(path, "unlock key", "unlock_key", remedy))

    def to_bytes(self) -> bytes:
        """The passphrase, to be handed to a worker through a pipe."""
        return self._value

    def seal(self, key: PrivateKey) -> bytes:
        """The key as encrypted PKCS#8, DER."""
        return key.private_bytes(Encoding.DER, PrivateFormat.PKCS8, BestAvailableEncryption(self._value))

    def unseal(self, pkcs8: bytes, name: str) -> PrivateKey:
        """Open what `seal` made. Raises `SealingFailed`, naming the key `name`."""
        try:
            return cast(PrivateKey, load_der_private_key(pkcs8, self._value))
        except (ValueError, TypeError, UnsupportedAlgorithm) as exc:
            raise SealingFailed(f"the key {name} does not open with this unlock key") from exc
