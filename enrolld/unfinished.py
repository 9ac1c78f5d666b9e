"""A CA that was to be made in a HSM's token, and was not yet: nothing makes it elsewhere without being told.

DIR/run/hsm-token holds the token's label from before `init --hsm` makes anything until all is made.
"""

from pathlib import Path

from ca_core.errors import OperatorError

__all__ = ["begin", "finish", "refuse"]


def begin(directory: Path, token: str | None) -> None:
    """The CA is being made: in a token, or on purpose in none."""
    finish(directory)
    if token is not None:
        _path(directory).write_text(token, "utf-8")


def finish(directory: Path) -> None:
    """It is made."""
    _path(directory).unlink(missing_ok=True)


def refuse(directory: Path) -> None:
    """Raise OperatorError when a CA that is still to be made was meant for a token."""
    try:
        token = _path(directory).read_text("utf-8")
    except FileNotFoundError:
        return
    shown = ascii(token[:40])[1:-1]
    raise OperatorError(
        "init_unfinished",
        f"The CA in {directory} was to be made in the HSM's token {shown}, and that was not finished.",
        f"Run 'enrolld --dir {directory} init' again, with --hsm TOKEN, or without it for keys in the store.",
    )


def _path(directory: Path) -> Path:
    return directory / "run" / "hsm-token"
