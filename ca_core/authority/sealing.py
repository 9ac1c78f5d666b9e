"""Sealing private keys with the unlock key.

A software key lies in the store as PKCS#8 encrypted under the unlock key (PBES2, RFC 8018), which
`openssl pkey -passin file:keys/unlock` can open as well: no form of our own stands between an operator and a key.
"""

import os
import secrets
from pathlib import Path
from typing import cast

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, mldsa, rsa
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    PrivateFormat,
    load_der_private_key,
)

from ca_core.authority.closed_file import read_closed
from ca_core.authority.guessable import why_guessable
from ca_core.errors import OperatorError, SealingFailed

MlDsaPrivateKey = mldsa.MLDSA44PrivateKey | mldsa.MLDSA65PrivateKey | mldsa.MLDSA87PrivateKey
PrivateKey = rsa.RSAPrivateKey | ec.EllipticCurvePrivateKey | ed25519.Ed25519PrivateKey | MlDsaPrivateKey


class UnlockKey:
    """The passphrase of the store's private keys. It never shows itself."""

    __slots__ = ("_value",)

    def __init__(self, value: bytes) -> None:
        if len(value) < 16:  # enforces case 73
            raise OperatorError(
                "unlock_key_short", "the unlock key has less than 16 bytes", "restore the file that 'init' made"
            )
        reason = why_guessable(value)
        if reason is not None:  # enforces case 74
            raise OperatorError(
                "unlock_key_guessable",
                f"the unlock key {reason}",
                "'init' makes one of 32 random bytes; a store that was sealed with this one is as open as it is",
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
        return cls(read_closed(path, "unlock_key", "the unlock key", "ENROLLD_UNLOCK_FILE"))

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
