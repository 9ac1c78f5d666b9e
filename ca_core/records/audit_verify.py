"""Verifying the audit trail: is it what was written, all of it and nothing else?

The verifier is handed the heads in their order, then each writer's events in their order followed by the writer's own
row, from the store or from an export. It needs little memory however long the trail is: what the heads say of each
writer lies in a temporary database until the writer's events come.
"""

import json
import re
import sqlite3
from collections.abc import Collection, Iterator
from typing import NamedTuple

from ca_core.records import audit_heads
from ca_core.records.audit import CLOCK_ACCEPTED, ORIGIN, hash_of, origin_of
from ca_core.records.audit_heads import FIRST, Head, digest_of
from ca_core.records.audit_trail import EventRecord, WriterRecord, shown_time
from ca_core.records.query import Value
from ca_core.rows import AuditFinding, HeadRow, Verdict

MOST_FINDINGS = 100
"""That are told one by one; the others are counted."""
LATE = 5 * 60_000
"""Milliseconds that an event may be older than a head made before it: longer than units wait and clocks may differ."""
_MOST_HELD = 100
"""First events without a hash that wait for the writer's row."""

_NAME = re.compile(r"[0-9a-f]{16}", re.ASCII)
_SCRATCH = """
CREATE TABLE point (writer, sequence, hash, head, after, after_at);
CREATE TABLE seen (writer PRIMARY KEY) WITHOUT ROWID;
CREATE TABLE claim (writer PRIMARY KEY, covered) WITHOUT ROWID;
CREATE TABLE floor (number INTEGER PRIMARY KEY, at);
CREATE TABLE late (writer, sequence, at, head);
CREATE TABLE accepted (writer, sequence, at, actor, first_at, newest_at, head);
BEGIN;
"""
# Each late event with the last head before it whose time counts: not one that was made by a clock in the future, which
# an operator has accepted to be gone back on since.
_LATE_EVENTS = """
SELECT late.writer, late.sequence, late.at, floor.number FROM late JOIN floor ON floor.number = (
    SELECT number FROM floor AS before WHERE number <= late.head AND NOT EXISTS (
        SELECT 1 FROM accepted WHERE before.number <= head AND before.at BETWEEN first_at AND newest_at
    ) ORDER BY number DESC LIMIT 1
) WHERE late.at < floor.at - ? ORDER BY late.rowid
"""
_STEPS_TOLD = 10


class _Point(NamedTuple):
    """That a head covers an event of a writer. `after` is the number of the head before it, made at `after_at`."""

    sequence: int
    hash: bytes
    head: int
    after: int | None
    after_at: int | None


class Verifier:
    """Takes a trail piece by piece, and says in the end what is wrong with it.

    `kept` are digests of heads that were kept elsewhere, in lower-case hex. `is_whole` says whether all events and
    heads are handed over, `from_head` that the first head need not be number 1.
    """

    def __init__(self, kept: Collection[str] = (), *, is_whole: bool = True, from_head: bool = False) -> None:
        self._kept = set(kept)
        self._given = len(self._kept)
        self._kept_up_to: int | None = None
        self._is_whole = is_whole
        self._from_head = from_head
        self._findings: list[AuditFinding] = []
        self._found = 0
        self._events = self._writers = self._heads = self._uncovered = self._unlinked = 0
        self._last_head: Head | None = None
        self._newest_head: Head | None = None
        # The head after which came what is not covered yet, and when that was made.
        self._after: tuple[int, int] | tuple[None, None] = (None, None)
        # A database without a name is a temporary file of SQLite's own.
        self._scratch = sqlite3.connect("", isolation_level=None)
        self._scratch.executescript(_SCRATCH)
        self._has_events = False
        self._name: str | None = None
        self._row: WriterRecord | None = None
        self._last = self._covered = 0
        self._hash: bytes | None = None
        self._held: list[EventRecord] = []
        self._points: Iterator[_Point] = iter(())
        self._point: _Point | None = None

    @property
    def events(self) -> int:
        """How many events were handed over."""
        return self._events

    # --- heads -----------------------------------------------------------------------------------------------------

    def head(self, head: Head) -> None:
        """The next common head. One that comes after events was made meanwhile, and its events are not compared."""
        self._turn_to(None)
        if (_number(head.number) or 0) < 1:
            self._fault("head_order", f"a head is numbered {head.number!r}")
            return
        is_right = self._is_next(head)
        points: list[tuple[str, int, bytes]] = []
        try:
            if digest_of(head.previous, head.number, head.at, head.document) != head.digest:
                self._fault("head_changed", f"head {head.number} is not what was made", head=head.number)
                is_right = False
            points = list(_points_of(head.document))
        except (TypeError, ValueError, RecursionError):
            self._fault("head_changed", f"head {head.number} can't be read", head=head.number)
            is_right = False
        self._newest_head = head
        if is_right and head.digest.hex() in self._kept:
            self._kept.discard(head.digest.hex())
            self._kept_up_to = head.number
        if self._has_events:
            self._scratch.executemany("DELETE FROM claim WHERE writer = ? AND covered <= ?", (p[:2] for p in points))
            return
        self._heads += 1
        self._last_head = head
        rows = ((*point, head.number, *self._after) for point in points)
        self._scratch.executemany("INSERT INTO point VALUES (?, ?, ?, ?, ?, ?)", rows)
        # A full head may have left news that is older than itself to the next one.
        if is_right and _number(head.at) is not None and len(points) < audit_heads.MOST_WRITERS:
            self._after = (head.number, head.at)
            self._scratch.execute("INSERT OR IGNORE INTO floor VALUES (?, ?)", self._after)

    def _is_next(self, head: Head) -> bool:
        last, number = self._newest_head, head.number
        if last is None and self._from_head:
            return True
        if last is None and number != 1:
            self._fault("head_missing", f"the heads before {number} are missing", head=number)
        elif last is None and head.previous != FIRST:
            self._fault("head_order", "head 1 does not begin the heads", head=1)
        elif last is None:
            return True
        elif number <= last.number:
            self._fault("head_order", f"head {number} stands after head {last.number}", head=number)
        elif number > last.number + 1:
            self._fault("head_missing", f"the heads between {last.number} and {number} are missing", head=number)
        elif head.previous != last.digest:
            self._fault("head_order", f"head {number} does not follow from head {last.number}", head=number)
        else:
            return True
        return False

    # --- events ----------------------------------------------------------------------------------------------------

    def event(self, event: EventRecord) -> None:
        """The next event of a writer, or the first of another."""
        name, sequence = _text(event.row["writer"]), event.row["sequence"]
        if name != self._name or self._row is not None:
            self._turn_to(name)
        self._events += 1
        if not isinstance(sequence, int) or sequence < 1:
            self._fault("event_order", f"an event is numbered {sequence!r}")
            return
        if sequence <= self._last:
            self._fault("event_order", f"an event numbered {sequence} stands after event {self._last}")
            return
        if self._hash is None and sequence == self._last + 1 == len(self._held) + 1 <= _MOST_HELD:
            self._held.append(event)
            self._hash = event.hash
        else:
            self._hash = self._judge(event, sequence, self._previous_of(event, sequence))
        self._last = sequence
        if event.row["action"] == CLOCK_ACCEPTED:
            self._accept(event)
        self._compare(sequence, event.row["at"])

    def _judge(self, event: EventRecord, sequence: int, previous: bytes | None) -> bytes | None:
        """Fault an event that does not follow from `previous`, if that is known. Returns what the next follows from."""
        try:
            expected = hash_of(previous, event.row) if previous is not None else event.hash
        except (TypeError, ValueError):
            expected = b""
        before = f"event {sequence - 1}" if sequence > 1 else "the writer's row"
        if event.hash is None:
            self._fault("event_unhashed", f"event {sequence} has no hash", sequence)
            return expected
        if event.hash != expected:
            what = "the hash before it" if sequence > 1 else before
            self._fault("event_changed", f"event {sequence} is not what was written, or {what} is not", sequence)
        elif event.previous not in (None, previous):
            self._fault("event_changed", f"event {sequence} is said to follow from another than {before}", sequence)
        # One fault is told once: what follows is measured against the hash that stands there.
        return event.hash

    def _judge_held(self, row: WriterRecord | None) -> None:
        """Judge the first event, which follows from the writer's row, and what had to wait with it."""
        previous: bytes | None = None
        if row is not None:
            try:
                previous = origin_of({name: getattr(row, name) for name in ORIGIN})
            except (TypeError, ValueError):
                previous = b""
        for sequence, event in enumerate(self._held, 1):
            previous = self._judge(event, sequence, event.previous if previous is None else previous)
        self._held.clear()

    def _previous_of(self, event: EventRecord, sequence: int) -> bytes | None:
        """The hash that the event must follow from; None where that can't be known."""
        if sequence == self._last + 1 and self._hash is not None:
            return self._hash
        if sequence > self._last + 1 and self._is_whole:
            self._missing(self._last + 1, sequence - 1)
        else:
            self._unlinked += 1
        return event.previous

    def _turn_to(self, name: str | None) -> None:
        """What came was the last of one writer, and the first of another follows."""
        if self._name is not None:
            self._close()
        self._name = name
        self._row = self._hash = None
        self._last = self._covered = 0
        self._points = iter(())
        if name is not None:
            if not _NAME.fullmatch(name):
                self._fault("writer_name", "its name is not 16 digits of hex, as all names of writers are")
            self._points = self._points_of_writer(name)
        self._point = next(self._points, None)

    def _points_of_writer(self, name: str) -> Iterator[_Point]:
        if not self._has_events:
            self._scratch.execute("CREATE INDEX point_of ON point (writer, sequence)")
            self._has_events = True
        try:
            self._scratch.execute("INSERT INTO seen VALUES (?)", (name,))
        except sqlite3.IntegrityError:
            self._fault("event_order", "its events do not stand in one place")
            return iter(())
        columns = ", ".join(_Point._fields)
        found = self._scratch.execute(f"SELECT {columns} FROM point WHERE writer = ? ORDER BY sequence, head", (name,))  # noqa: S608  # names of columns
        return map(_Point._make, found)

    def _compare(self, sequence: int, at: Value) -> None:
        """Hold the event against the head that covered it first, and those that end with it."""
        while self._point is not None and self._point.sequence < sequence:
            self._pass_point()
        after, after_at = (self._point.after, self._point.after_at) if self._point is not None else self._after
        # A part that begins with a time lacks heads that may have covered its first events.
        if isinstance(at, int) and after_at is not None and at < after_at - LATE and not self._from_head:
            # Told in the end: the event by which an operator has accepted that may come yet.
            self._scratch.execute("INSERT INTO late VALUES (?, ?, ?, ?)", (self._name, sequence, at, after))
        while self._point is not None and self._point.sequence == sequence:
            if self._hash is not None and self._point.hash != self._hash:
                words = f"event {sequence}, or one before it, is not the one that head {self._point.head} covers"
                self._fault("head_contradicted", words, sequence, self._point.head)
            self._pass_point()

    def _accept(self, event: EventRecord) -> None:
        """An operator has accepted that the clock went back."""
        try:
            told = json.loads(str(event.row["details"]))
            numbers = [told[name] for name in ("first_at", "newest_at", "head")]
        except (ValueError, TypeError, KeyError, RecursionError):
            numbers = []
        if len(numbers) == 3 and all(isinstance(number, int) and abs(number) < 1 << 63 for number in numbers):
            row = (self._name, self._last, event.row["at"], _text(event.row["actor"]), *numbers)
            self._scratch.execute("INSERT INTO accepted VALUES (?, ?, ?, ?, ?, ?, ?)", row)

    def _pass_point(self) -> None:
        if self._point is not None:
            self._covered = self._point.sequence
        self._point = next(self._points, None)

    def writer(self, row: WriterRecord) -> None:
        """The row of the writer whose events have all come, or of one without any."""
        name = _text(row.name)
        if name != self._name or self._row is not None:
            self._turn_to(name)
        self._row = row
        self._writers += 1
        self._judge_held(row)
        end = _number(row.sequence)
        if end is None:
            self._fault("writer_changed", f"by its row it has written {row.sequence!r} events")
        elif end < self._last:
            words = f"its row ends the chain with event {end}, and there is an event {self._last}"
            self._fault("writer_changed", words, self._last)
        elif end > self._last and self._is_whole:
            self._missing(self._last + 1, end)
        elif end == self._last != 0 and row.hash != self._hash:
            self._fault("writer_changed", f"its row has another hash than event {self._last}", self._last)

    def _close(self) -> None:
        """Nothing more comes of this writer: what is left of the heads' points has no event."""
        if self._row is None:
            self._fault("writer_missing", "its row in the list of writers is missing")
            self._judge_held(None)
        if not self._is_whole:
            return
        told = (_number(self._row.sequence) or 0) if self._row is not None else 0
        highest = self._covered
        while self._point is not None:
            highest, _, head, *_ = self._point
            if highest > told:
                words = f"event {highest}, which head {head} covers, is missing"
                self._fault("event_missing", words, highest, head)
            self._point = next(self._points, None)
        self._uncovered += self._last - self._covered
        claimed = self._row.headed if self._row is not None else None
        if claimed is None or claimed == highest:
            return
        if (_number(claimed) or 0) > highest:
            # Perhaps by a head that was made since the heads were read.
            self._scratch.execute("INSERT OR IGNORE INTO claim VALUES (?, ?)", (self._name, claimed))
        else:
            self._fault("writer_changed", f"by its row heads cover {claimed!r} of its events, and they cover {highest}")

    # --- the end ---------------------------------------------------------------------------------------------------

    def broken(self, code: str, message: str) -> None:
        """What is wrong with the file that the trail comes from."""
        self._tell(code, message, None, None, None)

    def finish(self) -> Verdict:
        """That was all: the verdict."""
        self._turn_to(None)
        if self._is_whole:
            unseen = "SELECT writer, max(sequence), max(head) FROM point WHERE writer NOT IN seen GROUP BY writer"
            for name, sequence, head in self._scratch.execute(unseen):
                words = f"the writer and all its events are missing, of which head {head} covers {sequence}"
                self._tell("writer_missing", words, name, sequence, head)
            for name, covered in self._scratch.execute("SELECT writer, covered FROM claim"):
                words = f"by its row a head covers event {covered}, and that head is missing"
                self._tell("head_missing", words, name, covered, None)
        for writer, sequence, at, number in self._scratch.execute(_LATE_EVENTS, (LATE,)):
            words = f"event {sequence} is dated {shown_time(at)}, before head {number}, and came after it"
            why = "somebody added history, or a command ran on a machine with a wrong clock"
            self._tell("event_late", f"{words}: {why}", writer, sequence, number)
        limits = self._limits()
        if not self._from_head:
            for digest in sorted(self._kept):
                self._fault("head_unknown", f"the head {digest}, which was kept elsewhere, is not among the heads")
        self._scratch.close()
        last = self._last_head
        return Verdict(
            ok=not self._found,
            events=self._events,
            writers=self._writers,
            heads=self._heads,
            last_head=HeadRow(number=last.number, at=shown_time(last.at), digest=_hex(last.digest)) if last else None,
            uncovered=self._uncovered,
            kept_given=self._given,
            kept_found=self._given - len(self._kept),
            kept_up_to=self._kept_up_to,
            findings=self._findings,
            findings_total=self._found,
            limits=limits,
        )

    def _limits(self) -> list[str]:
        limits: list[str] = []
        if not self._is_whole:
            limits.append("This is a part of the trail: that no other event is missing can't be seen in it.")
        if self._unlinked and not self._is_whole:
            what = f"{self._unlinked} events follow from events that are not in it"
            limits.append(f"{what}; their place in the chains was not verified.")
        if self._from_head and self._kept:
            what = f"{len(self._kept)} of the heads that were kept elsewhere are not in it"
            limits.append(f"{what}; they may be older than it begins.")
        steps = "SELECT writer, sequence, at, actor, newest_at FROM accepted ORDER BY rowid LIMIT ?"
        for writer, sequence, at, actor, newest in self._scratch.execute(steps, (_STEPS_TOLD,)):
            step = f"{ascii(actor[:80])[1:-1]} has accepted that the clock went back from {shown_time(newest)}"
            limits.append(
                f"At {shown_time(at)} {step} (event {sequence} of {writer}): what is dated so is not in order."
            )
        return limits

    def _missing(self, first: int, last: int) -> None:
        words = f"event {first} is missing" if first == last else f"the events {first} to {last} are missing"
        self._fault("event_missing", words, first)

    def _fault(self, code: str, message: str, sequence: int | None = None, head: int | None = None) -> None:
        self._tell(code, message, self._name, sequence, head)

    def _tell(self, code: str, message: str, writer: str | None, sequence: int | None, head: int | None) -> None:
        self._found += 1
        if len(self._findings) < MOST_FINDINGS:
            self._findings.append(
                AuditFinding(code=code, writer=writer, sequence=sequence, head=head, message=message[:500])
            )


def _points_of(document: str) -> Iterator[tuple[str, int, bytes]]:
    """What a head covers: writer, number of its event, hash. Raises `TypeError`, `ValueError`."""
    for name, sequence, digest in json.loads(document):
        if not isinstance(name, str) or not isinstance(sequence, int) or abs(sequence) >= 1 << 63:
            raise ValueError(name)
        name.encode()  # JSON can hold half of a surrogate pair, and nothing else can
        yield name, sequence, bytes.fromhex(digest)


def _number(value: object) -> int | None:
    """A number as the store has it; None for what somebody put in its place (SQLite keeps any kind in any column)."""
    return value if isinstance(value, int) else None


def _text(name: object) -> str:
    """A writer's name, whatever was put in its place, as text that can be written anywhere."""
    return str(name).encode(errors="backslashreplace").decode()


def _hex(digest: object) -> str:
    return digest.hex() if isinstance(digest, bytes) else ascii(digest)
