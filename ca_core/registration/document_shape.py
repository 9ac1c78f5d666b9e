"""The shape of a document: which keys there are, and of what kind a value is. Every fault is told at once.

What does not fit is left out, so that the rest can be looked at for its sense in the same run.
"""

import difflib
import re
from collections.abc import Mapping
from types import UnionType
from typing import Any, get_args, get_origin, get_type_hints

import msgspec

__all__ = ["MOST_ENTRIES", "MOST_FAULTS", "shaped", "text_fault"]

MOST_ENTRIES = 100
"""The most entries of a list, and the most keys of a table."""
MOST_FAULTS = 100
"""As many are told; nobody mends more in one go."""
LONGEST_DOCUMENT = 512 * 1024
"""In characters."""
_DEEPEST = 16
"""The most brackets within one another, and the most dots in one key; a document needs five and three."""

_MOST_DIGITS = 100
_LEFT_OUT = object()

# Strings and comments are passed over; a string that is not closed goes to the end of the text, or of its line.
_TOKEN = re.compile(
    r"""
    \"{3} (?:\\.|[^\\])*? (?:\"{3}|\Z)  |  '{3} .*? (?:'{3}|\Z)
    | \" (?:\\.|[^"\\\n])*+ \"?  |  ' [^'\n]*+ '?  |  \# [^\n]*+
    | [][{}.,=\n]  |  [0-9_]++
    """,
    re.DOTALL | re.VERBOSE,
)


def text_fault(text: str) -> str | None:
    """Why a text is not read at all, told before anything has parsed it; None when it may be."""
    if len(text) > LONGEST_DOCUMENT:
        return f"the document: it is longer than {LONGEST_DOCUMENT // 1024} KiB (no realm needs that)"
    depth = dots = 0
    for found in _TOKEN.finditer(text):
        part = found[0]
        depth += (part in "[{") - (part in "]}")
        dots = dots + 1 if part == "." else 0 if part in ",=\n" else dots
        said = None
        if depth > _DEEPEST:
            said = f"more than {_DEEPEST} brackets within one another"
        elif dots > _DEEPEST:
            said = f"more than {_DEEPEST} dots in one key"
        elif len(part) > _MOST_DIGITS and part[0] in "0123456789_":
            said = f"a number of more than {_MOST_DIGITS} digits"
        if said is not None:
            return f"line {text.count(chr(10), 0, found.start()) + 1}: {said}"
    return None


def shaped(raw: Any, kind: type[msgspec.Struct]) -> tuple[dict[str, Any], list[str]]:
    """What of `raw` has the shape of a struct, and a sentence with the path of each key that has not."""
    faults: list[str] = []
    found = _shaped(raw, kind, "", faults)
    return ({} if found is _LEFT_OUT else found), faults


def _shaped(raw: Any, kind: Any, path: str, faults: list[str]) -> Any:
    kind = _without_none(kind)
    origin = get_origin(kind)
    if origin in (tuple, dict) and isinstance(raw, list | dict) and len(raw) > MOST_ENTRIES:
        faults.append(f"{path}: more than {MOST_ENTRIES} entries")
        return _LEFT_OUT
    if origin is tuple and isinstance(raw, list):
        inner = get_args(kind)[0]
        items = [_shaped(value, inner, f"{path}[{index}]", faults) for index, value in enumerate(raw)]
        # Without one of them, the others would be told with another's number.
        return _LEFT_OUT if _LEFT_OUT in items else items
    if origin is dict and isinstance(raw, dict):
        inner = get_args(kind)[1]
        return _kept({key: _shaped(value, inner, _below(path, key), faults) for key, value in raw.items()})
    if isinstance(kind, type) and issubclass(kind, msgspec.Struct) and isinstance(raw, dict):
        return _struct(raw, kind, path, faults)
    return _converted(raw, kind, path, faults)


def _struct(raw: dict[str, Any], kind: type[msgspec.Struct], path: str, faults: list[str]) -> Any:
    hints = get_type_hints(kind)
    known = {field.encode_name: hints[field.name] for field in msgspec.structs.fields(kind)}
    found: dict[str, Any] = {}
    if len(raw) > MOST_ENTRIES:
        faults.append(f"{path or 'the document'}: more than {MOST_ENTRIES} keys (known are: {', '.join(known)})")
        raw = {key: value for key, value in raw.items() if key in known}
    for key, value in raw.items():
        if key in known:
            found[key] = _shaped(value, known[key], _below(path, key), faults)
            continue
        if len(faults) > MOST_FAULTS:
            continue
        near = difflib.get_close_matches(key, known, n=1)
        hint = f"did you mean '{near[0]}'?" if near else f"known are: {', '.join(known)}"
        faults.append(f"{_below(path, key)}: unknown key ({hint})")
    needed = [field.encode_name for field in msgspec.structs.fields(kind) if field.required]
    missing = [name for name in needed if name not in found]
    faults += [f"{_below(path, name)}: is missing" for name in missing]
    found = _kept(found)
    # The document as a whole is looked at all the same, as one that has no name yet.
    return found if not path or all(name in found for name in needed) else _LEFT_OUT


def _converted(raw: Any, kind: Any, path: str, faults: list[str]) -> Any:
    try:
        msgspec.convert(raw, kind)
    except msgspec.ValidationError as exc:
        text = re.sub(r" - at `\$([^`]*)`", r" at \1", str(exc)).replace("`", "'")
        faults.append(f"{path or 'the document'}: {text[:1].lower()}{text[1:]}")
        return _LEFT_OUT
    return raw


def _kept(values: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in values.items() if value is not _LEFT_OUT}


def _without_none(kind: Any) -> Any:
    if not isinstance(kind, UnionType):
        return kind
    inner = [each for each in get_args(kind) if each is not type(None)]
    return inner[0] if len(inner) == 1 else kind


def _below(path: str, key: str) -> str:
    shown = ascii(key[:80])[1:-1]
    return f"{path}.{shown}" if path else shown
