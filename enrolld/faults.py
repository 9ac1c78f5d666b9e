"""What went wrong, as an operator is told it: a stable code, a sentence, and what to do about it.

The core's own failures are for its log; here they get words. A remedy is true wherever it is read, also inside `check`.
"""

from typing import NamedTuple

from ca_core.errors import (
    HsmUnfit,
    InternalError,
    IssuerUnfit,
    OperatorError,
    Refusal,
    SealingFailed,
    SignerUnavailable,
    Unavailable,
)

__all__ = ["Fault", "fault_of"]

_GIVE_THE_KEY = (
    "Give the unlock key that this store was made with, by ENROLLD_UNLOCK_FILE=PATH or the systemd credential "
    "enrolld-unlock; if this is that key, restore a backup of the store."
)
_LOOK_AT_THE_STORE = (
    "Look at the disk under the store (space, permissions), or at the database server and its log, and try again; if "
    "the database is damaged, restore a backup of it."
)
_REMEDIES = {
    # The core speaks of commands that come with later versions.
    "store_revision": "Nothing is wrong with it: use the version of enrolld that brought it there, or a newer one.",
}


class Fault(NamedTuple):
    """One thing that went wrong."""

    code: str
    message: str
    remedy: str


def fault_of(exc: Exception) -> Fault:
    """The words for any exception, also for one that no command foresaw."""
    if isinstance(exc, OperatorError | Refusal):
        return Fault(exc.code, exc.message, _REMEDIES.get(exc.code, exc.remedy))
    if isinstance(exc, IssuerUnfit):
        return Fault(
            exc.code, f"The CA can't sign: {_line(exc)}.", "Restore the certificate, or a backup of the store."
        )
    if isinstance(exc, HsmUnfit):
        return Fault(exc.code, f"A key in the HSM can't be used: {_line(exc)}.", exc.remedy)
    if isinstance(exc, SealingFailed):
        return Fault("unlock_key_wrong", f"The CA can't sign: {_line(exc)}.", _GIVE_THE_KEY)
    if isinstance(exc, SignerUnavailable):
        return Fault(
            "hsm_unavailable",
            f"A key in the HSM can't be used now: {_line(exc)}.",
            "Look at the HSM and the way to it, and try again; a running daemon does that by itself.",
        )
    if isinstance(exc, Unavailable):
        return Fault("unavailable", f"It can't be done now: {_line(exc)}.", _LOOK_AT_THE_STORE)
    if type(exc).__module__.partition(".")[0] in ("sqlalchemy", "sqlite3"):
        cause = getattr(exc, "orig", None) or exc
        return Fault("store_failed", f"The store can't be used: {_line(cause)}.", _LOOK_AT_THE_STORE)
    if isinstance(exc, OSError):
        where = f" ({exc.filename})" if exc.filename else ""
        sentence = f"The system refused: {exc.strerror or exc}{where}."
        return Fault("system", sentence, "Look at permissions and disk space.")
    if isinstance(exc, InternalError):
        return Fault(
            "internal",
            f"It can't be done now: {_line(exc)}.",
            "The daemon's log may say more; if not, please report it.",
        )
    what = f"{type(exc).__name__}: {_line(exc)}" if str(exc) else type(exc).__name__
    return Fault(
        "internal",
        f"This should not happen: {what}.",
        "Please report it; with ENROLLD_DEBUG=1 in the environment the command shows where.",
    )


def _line(exc: object) -> str:
    return str(exc).partition("\n")[0].rstrip(".")
