"""The audit trail as a file: JSON Lines that can be verified anywhere, without the store that they come from.

First a line that says what the file is, then the common heads, then each writer's events followed by the writer, and
a line that ends it. `event` in an event's line is what its hash covers, so that a script can verify it as well.
"""

import json
from collections.abc import AsyncIterator, Callable, Collection, Iterator
from typing import Annotated, Any, BinaryIO

import msgspec

from ca_core.errors import OperatorError
from ca_core.records.audit import CHAINED
from ca_core.records.audit_heads import Head
from ca_core.records.audit_trail import EventRecord, Filter, Trail, WriterRecord
from ca_core.records.audit_verify import Verifier
from ca_core.records.query import Value
from ca_core.rows import Verdict

FORMAT = 1
_LONGEST_LINE = 16 << 20

_Number = Annotated[int, msgspec.Meta(ge=-(1 << 63), le=(1 << 63) - 1)]
_Hex = Annotated[str, msgspec.Meta(pattern="^[0-9a-f]{64}$")]


class _Line(msgspec.Struct, tag_field="kind", kw_only=True):
    """Base of the lines that are read; further fields may come with later versions."""


class _Begin(_Line, tag="export", kw_only=True):
    format: int
    filter: dict[str, str | int]


class _Head(_Line, tag="head", kw_only=True):
    number: _Number
    at: _Number
    document: str
    previous: _Hex
    digest: _Hex


class _Event(_Line, tag="event", kw_only=True):
    event: dict[str, _Number | str | float | None]
    previous: _Hex | None
    hash: _Hex | None


class _Writer(_Line, tag="writer", kw_only=True):
    name: str
    process: str
    host: str
    pid: _Number
    version: str
    started_at: _Number
    sequence: _Number
    hash: _Hex | None


class _End(_Line, tag="end", kw_only=True):
    events: _Number
    writers: _Number
    heads: _Number


_decode = msgspec.json.Decoder(_Begin | _Head | _Event | _Writer | _End).decode


async def export_lines(
    trail: Trail, chosen: Filter, *, version: str, revision: str, exported_at: str
) -> AsyncIterator[str]:
    """The file, line by line, without ends of lines. Raises `Unavailable`."""
    given = chosen.given()
    begin = {"format": FORMAT, "enrolld": version, "revision": revision, "exported_at": exported_at, "filter": given}
    yield _line("export", begin)
    events = writers = heads = 0
    async for head in trail.heads(since=chosen.since):
        heads += 1
        digests = {"previous": _hex(head.previous), "digest": _hex(head.digest)}
        yield _line("head", {"number": head.number, "at": head.at, "document": head.document, **digests})
    name: Value = None
    sequence: Value = 0
    before: bytes | None = None
    async for record in trail.some(chosen) if given else trail.all():
        if isinstance(record, WriterRecord):
            writers += 1
            yield _line("writer", _of_writer(record))
            continue
        events += 1
        if not given:
            if record.row["writer"] != name:
                name, sequence, before = record.row["writer"], 0, None
            is_next = isinstance(sequence, int) and record.row["sequence"] == sequence + 1
            if is_next and record.previous is None:
                record = EventRecord(record.row, record.hash, before)
            sequence, before = record.row["sequence"], record.hash
        values = {"event": record.row, "previous": _hex(record.previous), "hash": _hex(record.hash)}
        yield _line("event", values)
    yield _line("end", {"events": events, "writers": writers, "heads": heads})


def verify_file(file: BinaryIO, kept: Collection[str] = (), advance: Callable[[int], object] | None = None) -> Verdict:
    """Verify an exported trail; `advance` is told how many bytes were read. Raises `OperatorError` for another file."""
    first = file.readline(_LONGEST_LINE)
    given = _beginning(first).filter
    reading = _Reading(Verifier(kept, is_whole=not given, from_head="since" in given))
    number, read = 1, len(first)
    while line := file.readline(_LONGEST_LINE):
        number += 1
        read += len(line)
        reading.take(number, line)
        if advance is not None and number % 1000 == 0:
            advance(read)
            read = 0
    if advance is not None:
        advance(read)
    return reading.finish()


class _Reading:
    """Hands the lines of a file to a verifier, and sees that they are whole and in their order."""

    def __init__(self, verifier: Verifier) -> None:
        self._verifier = verifier
        self._events = self._writers = self._heads = 0
        self._end: _End | None = None

    def take(self, number: int, text: bytes) -> None:
        """The next line."""
        try:
            line = _decode(text)
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
            line = None
        match line:
            case _ if self._end is not None:
                self._broken(number, "stands behind the end")
            case _Head() if self._events or self._writers:
                self._broken(number, "is a head behind events")
            case _Head():
                self._heads += 1
                digests = bytes.fromhex(line.previous), bytes.fromhex(line.digest)
                self._verifier.head(Head(line.number, line.at, line.document, *digests))
            case _Event() if set(line.event) == set(CHAINED):
                self._events += 1
                self._verifier.event(EventRecord(dict(line.event), _bytes(line.hash), _bytes(line.previous)))  # type: ignore[arg-type]  # a float, which no event has, gives another hash
            case _Writer():
                self._writers += 1
                values = {name: getattr(line, name) for name in line.__struct_fields__}
                self._verifier.writer(WriterRecord(**{**values, "hash": _bytes(line.hash), "headed": None}))
            case _End():
                self._end = line
            case _:
                self._broken(number, "is none of an exported trail")

    def finish(self) -> Verdict:
        """There is no further line."""
        end = self._end
        if end is None:
            self._verifier.broken("file_cut", "the file ends before the line that says it is the last")
        elif (end.events, end.writers, end.heads) != (self._events, self._writers, self._heads):
            held = f"{self._events} events, {self._writers} writers and {self._heads} heads"
            said = f"{end.events}, {end.writers} and {end.heads}"
            self._verifier.broken("file_cut", f"the file holds {held}; by its last line {said}")
        return self._verifier.finish()

    def _broken(self, number: int, what: str) -> None:
        self._verifier.broken("file_malformed", f"line {number} of the file {what}")


def _beginning(text: bytes) -> _Begin:
    try:
        line = _decode(text)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        line = None
    if not isinstance(line, _Begin):
        raise OperatorError(
            "export_invalid", "the file is no exported audit trail", "give one that 'enrolld audit export' made"
        )
    if line.format > FORMAT:
        raise OperatorError(
            "export_newer", f"the file is of format {line.format}", "verify it with the version that made it"
        )
    return line


def _of_writer(record: WriterRecord) -> dict[str, Any]:
    names: Iterator[str] = (name for name in record.__slots__ if name != "headed")
    return {name: getattr(record, name) for name in names} | {"hash": _hex(record.hash)}


def _line(kind: str, values: dict[str, Any]) -> str:
    # ASCII: nothing that a peer sent reaches a terminal as it is. What is of no kind that JSON has, nobody of us wrote.
    return json.dumps({"kind": kind, **values}, separators=(",", ":"), ensure_ascii=True, default=repr)


def _hex(value: bytes | None) -> str | None:
    return value.hex() if isinstance(value, bytes) else value


def _bytes(value: str | None) -> bytes | None:
    return bytes.fromhex(value) if value is not None else None
