"""Reading the audit trail: in order of time for people, and chain by chain to verify or export it.

Nothing holds a transaction open, so that a trail of ten million events can be read beside a daemon that writes it:
pages go on by key, heads are read before the events that they cover, and a writer's end after its events.
"""

import re
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, fields
from typing import Any

from sqlalchemy import BigInteger, ColumnElement, and_, bindparam, cast, func, or_, select, tuple_

from ca_core.errors import OperatorError
from ca_core.records.audit import CHAINED, CLOCK_ACCEPTED, ORIGIN, origin_of
from ca_core.records.audit_heads import Head
from ca_core.records.query import Query, Row, Value, Values
from ca_core.records.schema import audit, audit_head, writer
from ca_core.records.store import Store
from ca_core.records.times import from_ms, rfc3339

PAGE = 2000
HEADS_PAGE = 200

_a, _w, _h = audit.c, writer.c, audit_head.c
_ID = re.compile(r"(-?[0-9]{1,19})-(.{0,64}?)-(-?[0-9]{1,19})", re.ASCII | re.DOTALL)


@dataclass(frozen=True, slots=True)
class EventRecord:
    """One event: the columns that its hash covers, and its hash.

    `previous` is the hash of the writer's event before it, or what stands before the first; None when that is not there
    (or not known: see `Trail.all`).
    """

    row: Values
    hash: bytes | None
    previous: bytes | None = None


@dataclass(frozen=True, slots=True)
class WriterRecord:
    """Where a writer's chain ends by its own row, after its events. `headed` is how many events heads cover."""

    name: str
    process: str
    host: str
    pid: int
    version: str
    started_at: int
    sequence: int
    hash: bytes | None
    headed: int | None


@dataclass(frozen=True, slots=True)
class Filter:
    """Which events are meant; `since` in milliseconds since 1970. None stands for all."""

    realm: str | None = None
    device: str | None = None
    action: str | None = None
    serial: str | None = None
    request_id: str | None = None
    since: int | None = None

    def given(self) -> Values:
        """What is asked of events, by name."""
        named: Values = {field.name: getattr(self, field.name) for field in fields(self)}
        return {name: value for name, value in named.items() if value is not None}


_CONDITIONS: dict[str, ColumnElement[bool]] = {
    "realm": _a.realm == bindparam("realm"),
    "device": _a.device == bindparam("device"),
    "action": _a.action == bindparam("action"),
    "serial": _a.serial == bindparam("serial"),
    "request_id": _a.request_id == bindparam("request_id"),
    "since": _a.at >= bindparam("since"),
}
_CHAIN_KEY = tuple_(_a.writer, _a.sequence) > tuple_(
    bindparam("after_writer", type_=_a.writer.type), bindparam("after_sequence", type_=_a.sequence.type)
)
# The first condition repeats what the second implies, for the sake of the index on `at`.
_TIME_KEY = and_(
    _a.at >= bindparam("after_at"),
    tuple_(_a.at, _a.writer, _a.sequence)
    > tuple_(
        bindparam("after_at", type_=_a.at.type),
        bindparam("after_writer", type_=_a.writer.type),
        bindparam("after_sequence", type_=_a.sequence.type),
    ),
)
_COLUMNS = (*(_a[name] for name in CHAINED), _a.hash)
_LIMIT = bindparam("limit", type_=_a.sequence.type)
_IN_CHAINS = select(*_COLUMNS).order_by(_a.writer, _a.sequence).limit(_LIMIT)
# A trail is read without the condition at first: no name and no number is so low that it stands before the beginning.
_EVENTS = Query(_IN_CHAINS), Query(_IN_CHAINS.where(_CHAIN_KEY))
_REST = Query(_IN_CHAINS.where(_CHAIN_KEY, _a.writer == bindparam("of_writer"), _a.sequence <= bindparam("up_to")))
_before = audit.alias("event_before")
_WITH_PREVIOUS = _IN_CHAINS.add_columns(_before.c.hash).outerjoin(
    _before, and_(_before.c.writer == _a.writer, _before.c.sequence == _a.sequence - 1)
)
_WRITER_COLUMNS = [_w[field.name] for field in fields(WriterRecord)]
_FROM_WRITER = select(*_WRITER_COLUMNS).where(_w.name >= bindparam("since_name")).order_by(_w.name).limit(_LIMIT)
_WRITERS = Query(_FROM_WRITER)
_WRITERS_BEFORE = Query(_FROM_WRITER.where(_w.name < bindparam("before_name")))
_WRITER = Query(select(*_WRITER_COLUMNS).where(_w.name == bindparam("of_writer")))
_IN_ORDER = select(*(_h[field.name] for field in fields(Head))).order_by(_h.number).limit(_LIMIT)
_AFTER, _SINCE = _h.number > bindparam("after_number"), _h.at >= bindparam("since")
_HEADS = {
    (False, False): Query(_IN_ORDER),
    (True, False): Query(_IN_ORDER.where(_AFTER)),
    (False, True): Query(_IN_ORDER.where(_SINCE)),
    (True, True): Query(_IN_ORDER.where(_AFTER, _SINCE)),
}
_TOTAL = Query(select(cast(func.sum(_w.sequence), BigInteger)))
_LISTS: dict[tuple[str, ...], tuple[Query, Query]] = {}
_EXPORTS: dict[tuple[str, ...], tuple[Query, Query]] = {}


class Trail:
    """The trail of one store."""

    def __init__(self, store: Store) -> None:
        self._store = store

    async def list(self, chosen: Filter, *, limit: int, after: str | None = None) -> list[tuple[str, EventRecord]]:
        """Events in order of time, each with the id that `after` takes. Raises `OperatorError` for a wrong one."""
        given = chosen.given()
        names = tuple(given)
        if names not in _LISTS:
            wanted = select(*_COLUMNS).where(*(_CONDITIONS[name] for name in names))
            ordered = wanted.order_by(_a.at, _a.writer, _a.sequence).limit(_LIMIT)
            _LISTS[names] = Query(ordered), Query(ordered.where(_TIME_KEY))
        first, further = _LISTS[names]
        params: Values = {**given, "limit": limit}
        if after is not None:
            params |= _place_of(after)
        rows = await self._store.fetch_aside(first if after is None else further, **params)
        found = [_event(row) for row in rows]
        return [("-".join(str(event.row[name]) for name in ("at", "writer", "sequence")), event) for event in found]

    async def total(self) -> int:
        """About how many events there are, without counting them."""
        row = await self._store.first(_TOTAL)
        return int(row[0] or 0) if row else 0

    async def heads(self, *, after: int | None = None, since: int | None = None) -> AsyncIterator[Head]:
        """The common heads with a number above `after` that were made at `since` or later, in their order."""
        while True:
            given: Values = {"after_number": after, "since": since}
            params = {name: value for name, value in given.items() if value is not None}
            query = _HEADS[after is not None, since is not None]
            page = await self._store.fetch_aside(query, **params, limit=HEADS_PAGE)
            for row in page:
                yield Head(*row)
            if len(page) < HEADS_PAGE:
                return
            after = page[-1][0]

    async def all(self) -> AsyncIterator[EventRecord | WriterRecord]:
        """Every writer's events in their order, followed by its row; `previous` is given of its event 1 alone.

        What has no writer's row comes without one. Of events that are written meanwhile it gives those that the
        writer's row then covers.
        """
        place: tuple[Value, Value] | None = None
        since: Value = ""
        while True:
            # A writer's row that is read after its events covers at least those.
            page = await self._page(_EVENTS, place)
            groups: dict[Value, list[Row]] = {}
            for row in page:
                groups.setdefault(row[0], []).append(row)
            unfinished = page[-1][0] if len(page) == PAGE else None
            async for found in self._writers(since, unfinished):
                last = place[1] if place is not None and found.name == place[0] else None
                for row in groups.pop(found.name, []):
                    yield _event(row, _before_first(row, found))
                    last = row[1]
                async for row in self._rest(found.name, last, _number(found.sequence)):
                    yield _event(row, _before_first(row, found))
                yield found
            for name, rows in groups.items():
                begun = [found async for found in self._writer(name)] if any(row[1] == 1 for row in rows) else []
                for row in rows:
                    yield _event(row, _before_first(row, *begun))
            if unfinished is None:
                return
            place, since = (page[-1][0], page[-1][1]), unfinished

    async def some(self, chosen: Filter) -> AsyncIterator[EventRecord | WriterRecord]:
        """The chosen events of each writer in their order, with `previous`, followed by the writer's row.

        Accepted steps back of the clock are always among them, unless `since` leaves them out.
        """
        given = chosen.given()
        names = tuple(given)
        if names not in _EXPORTS:
            asked = and_(*(_CONDITIONS[name] for name in names))
            # Without it, what was written since an accepted step back of the clock would look like added history.
            wanted = _WITH_PREVIOUS.where(asked if "since" in given else or_(asked, _a.action == CLOCK_ACCEPTED))
            _EXPORTS[names] = Query(wanted), Query(wanted.where(_CHAIN_KEY))
        place: tuple[Value, Value] | None = None
        while True:
            page = await self._page(_EXPORTS[names], place, **given)
            for row in page:
                if place is not None and place[0] != row[0]:
                    async for found in self._writer(place[0]):
                        yield found
                begun = [found async for found in self._writer(row[0])] if row[1] == 1 else []
                yield _event(row, _before_first(row, *begun) if begun else row[-1])
                place = (row[0], row[1])
            if len(page) < PAGE:
                break
        if place is not None:
            async for found in self._writer(place[0]):
                yield found

    async def _page(
        self, queries: tuple[Query, Query], place: tuple[Value, Value] | None, **given: Value
    ) -> Sequence[Row]:
        """The next events of all chains, after the one at `place`."""
        if place is None:
            return await self._store.fetch_aside(queries[0], **given, limit=PAGE)
        key: Values = {"after_writer": place[0], "after_sequence": place[1]}
        return await self._store.fetch_aside(queries[1], **given, **key, limit=PAGE)

    async def _writers(self, since: Value, before: Value) -> AsyncIterator[WriterRecord]:
        """The writers from the name `since` on, and before `before` unless that is None."""
        query = _WRITERS if before is None else _WRITERS_BEFORE
        known: Value = None
        while True:
            params: Values = {"since_name": since, "limit": PAGE + 1}  # of which the first may be known
            if before is not None:
                params["before_name"] = before
            page = await self._store.fetch(query, **params)
            for row in page:
                if row[0] != known:
                    yield WriterRecord(*row)
            if len(page) <= PAGE:
                return
            since = known = page[-1][0]

    async def _writer(self, name: Value) -> AsyncIterator[WriterRecord]:
        for row in await self._store.fetch(_WRITER, of_writer=name):
            yield WriterRecord(*row)

    async def _rest(self, name: str, last: Value, up_to: int) -> AsyncIterator[Row]:
        """What a writer has written since its events were read, up to the one numbered `last`."""
        last = 0 if last is None else last
        while not isinstance(last, int) or last < up_to:
            page = await self._store.fetch(
                _REST, of_writer=name, after_writer=name, after_sequence=last, up_to=up_to, limit=PAGE
            )
            for row in page:
                yield row
            if len(page) < PAGE:
                return
            last = page[-1][1]


def shown_time(at: object) -> str:
    """The column `at` as RFC 3339; as it stands where somebody has put another kind of value there."""
    try:
        return rfc3339(from_ms(at))  # type: ignore[arg-type]  # SQLite keeps any kind in any column
    except (TypeError, OverflowError):
        return str(at)


def _event(row: Sequence[Any], previous: bytes | None = None) -> EventRecord:
    count = len(CHAINED)
    return EventRecord(dict(zip(CHAINED, row[:count], strict=True)), row[count], previous)


def _before_first(row: Row, writer: WriterRecord | None = None) -> bytes | None:
    """What stands before a writer's event 1; None before another, and where the writer's row can't be read."""
    if row[1] != 1 or writer is None:
        return None
    try:
        return origin_of({name: getattr(writer, name) for name in ORIGIN})
    except (TypeError, ValueError):
        return None


def _number(value: object) -> int:
    """A count as the store has it; 0 for what somebody put in its place."""
    return value if isinstance(value, int) else 0


def _place_of(after: str) -> Values:
    found = _ID.fullmatch(after)
    if found is None or any(abs(int(number)) >= 1 << 63 for number in found.group(1, 3)):
        raise OperatorError("after_invalid", "--after takes the 'id' of a row", "copy it from the last row shown")
    return {"after_at": int(found[1]), "after_writer": found[2], "after_sequence": int(found[3])}
