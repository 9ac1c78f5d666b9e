"""A PIN that its token refused is not tried again at the next start: restarts would lock the token.

DIR/run/hsm-pin-refused holds a MAC of that PIN under the unlock key, so that it tells nobody the PIN.
"""

import contextlib
import hmac
import os
from pathlib import Path

from ca_core.authority.pin import HsmSettings, Pin
from ca_core.authority.sealing import UnlockKey
from ca_core.errors import OperatorError

__all__ = ["forget", "refuse_again", "remember"]


def refuse_again(directory: Path, key: UnlockKey | None, hsm: HsmSettings | None) -> None:
    """Raise OperatorError when a token has refused one of these PINs at an earlier start."""
    if key is None or hsm is None:
        return
    path = _path(directory)
    try:
        kept = path.read_bytes()
    except OSError:
        return
    if any(hmac.compare_digest(kept, _mac(key, pin)) for pin in hsm.all_pins()):  # enforces case 76
        raise OperatorError(
            "hsm_pin_wrong",
            "A token refused this PIN at an earlier start, so it is not tried again: a few wrong ones lock a token.",
            f"Write the right PIN into the file. If it is right by now, delete {path}.",
        )


def remember(directory: Path, key: UnlockKey | None, pin: Pin | None) -> None:
    """A token has just refused this PIN."""
    if key is None or pin is None:
        return
    path = _path(directory)
    with contextlib.suppress(OSError):
        path.parent.mkdir(mode=0o700, exist_ok=True)
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW, 0o600)
        with os.fdopen(descriptor, "wb") as file:
            file.write(_mac(key, pin))


def forget(directory: Path) -> None:
    """Every PIN is taken."""
    _path(directory).unlink(missing_ok=True)


def _path(directory: Path) -> Path:
    return directory / "run" / "hsm-pin-refused"


def _mac(key: UnlockKey, pin: Pin) -> bytes:
    return hmac.digest(key.to_bytes(), b"enrolld HSM PIN " + pin.reveal().encode(), "sha256")
