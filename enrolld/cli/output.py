"""What a command says: JSON, or aligned text, coloured on a terminal.

Names come from devices and operators, so that whatever could move a cursor or turn text around is shown escaped. JSON
is ASCII, and therefore the same in every locale and harmless in a terminal.
"""

import datetime as dt
import io
import json
import os
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence

import msgspec

__all__ = [
    "Column",
    "complain",
    "details",
    "emit_json",
    "plain",
    "prepare_streams",
    "printable",
    "raw",
    "refuse",
    "table",
    "words",
]

Row = Mapping[str, object]
Column = tuple[str, str | Callable[[Row], object]]

_BOLD, _RED, _GREEN, _YELLOW, _PLAIN = "\x1b[1m", "\x1b[31m", "\x1b[32m", "\x1b[33m", "\x1b[0m"
_COLOURS = {
    **dict.fromkeys(("active", "valid", "issued"), _GREEN),
    **dict.fromkeys(("suspended", "pending", "hold"), _YELLOW),
    **dict.fromkeys(("revoked", "refused", "expired", "error"), _RED),
}


def prepare_streams() -> None:
    """A character that the locale lacks is shown escaped instead of ending the command."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def plain(row: object) -> dict[str, object]:
    """A row of the core as a dictionary of JSON's own kinds."""
    values = msgspec.to_builtins(row)
    if not isinstance(values, dict):
        raise TypeError(f"{type(row).__name__} is no object")
    return values


def emit_json(value: object) -> None:
    """One object on a line of stdout."""
    sys.stdout.write(json.dumps(msgspec.to_builtins(value), separators=(",", ":")) + "\n")


def raw(text: str) -> None:
    """Text that is meant for another program, such as PEM or TOML."""
    sys.stdout.write(text if text.endswith("\n") else text + "\n")


def printable(value: object) -> str:
    """A value in one line of a terminal, with whatever can't be shown escaped."""
    if value is None or value == "" or value == []:
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, list | tuple):
        return ", ".join(printable(item) for item in value)
    if isinstance(value, dt.datetime):
        value = value.astimezone(dt.UTC).isoformat(timespec="seconds").replace("+00:00", "Z")
    return "".join(char if char.isprintable() else char.encode("unicode_escape").decode("ascii") for char in str(value))


def details(pairs: Iterable[tuple[str, object]]) -> None:
    """One thing, a line per property."""
    shown = [(name, printable(value)) for name, value in pairs]
    width = max(len(name) for name, _ in shown)
    for name, value in shown:
        sys.stdout.write(f"{name:<{width}}  {value}\n")


def table(rows: Sequence[Row], columns: Sequence[Column]) -> None:
    """Many things, a line each, aligned. Nothing is folded or cut: what is shown can be copied."""
    cells = [[printable(row.get(key) if isinstance(key, str) else key(row)) for _, key in columns] for row in rows]
    lines = [[header.upper() for header, _ in columns], *cells]
    widths = [max(len(line[i]) for line in lines) for i in range(len(columns) - 1)] + [0]
    coloured = _colour(sys.stdout)
    for number, line in enumerate(lines):
        shown = [cell.ljust(width) for cell, width in zip(line, widths, strict=True)]
        if coloured:
            style = [_BOLD if number == 0 else _COLOURS.get(cell, "") for cell in line]
            shown = [f"{mark}{cell}{_PLAIN}" if mark else cell for mark, cell in zip(style, shown, strict=True)]
        sys.stdout.write("  ".join(shown) + "\n")


def words(text: str) -> None:
    """A sentence for a person, on stderr."""
    sys.stderr.write(text.rstrip("\n") + "\n")


def refuse(code: str, message: str, remedy: str, *, as_json: bool) -> None:
    """Say what was refused and what to do instead."""
    if as_json:
        emit_json({"error": code, "message": message, "remedy": remedy})
    else:
        complain(message, remedy)


def complain(message: str, remedy: str, *, to_stderr_only: bool = False) -> None:
    """A refusal for a person: what, and in the next line what to do."""
    if not to_stderr_only:
        sys.stdout.flush()
    label = f"{_RED}enrolld:{_PLAIN}" if _colour(sys.stderr) else "enrolld:"
    words(f"{label} {_lines(message)}" + (f"\n  {_lines(remedy)}" if remedy else ""))


def _lines(text: str) -> str:
    return "\n  ".join(printable(line) for line in text.splitlines())


def _colour(stream: io.TextIOBase | object) -> bool:
    return bool(getattr(stream, "isatty", bool)()) and not os.environ.get("NO_COLOR")
