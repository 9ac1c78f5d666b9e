"""Common heads: once a minute, one digest over the ends of all writers' chains.

A chain alone shows what was changed inside it, but not that it was cut short, or made anew by somebody who can write
the database. A head covers the last event of every writer with news, and the head before it; whoever has kept one
digest elsewhere can prove everything up to it. It is told to the log for that reason.
"""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass

from sqlalchemy import Select, bindparam, select

from ca_core.errors import ConditionFailed, ConstraintFailed
from ca_core.model import Clock
from ca_core.records.query import Params, Query, Row, columns_of, values_of
from ca_core.records.schema import audit_head, writer
from ca_core.records.store import Store
from ca_core.records.times import to_ms
from ca_core.records.unit import Guard, Step, Unit

FIRST = hashlib.sha256(b"enrolld audit heads").digest()
"""What stands before the first head in the place of a digest."""

MOST_WRITERS = 1000
"""That one head covers; those that are left get the next one at once. `audit_verify` takes a head of fewer for one that
left nothing, so this number stays."""
_MOST_HEADS = 100
"""That are made at a time: a store just upgraded may have had a hundred thousand writers."""

_h, _w = audit_head.c, writer.c
_LAST = Query(select(_h.number, _h.digest).order_by(_h.number.desc()).limit(1))
_NEWS = Query(
    select(_w.name, _w.sequence, _w.hash)
    .where(_w.sequence != _w.headed)
    .order_by(_w.name)
    .limit(bindparam("limit", type_=_w.sequence.type))
)
_later = audit_head.alias("later")
_row: Select[tuple[object, ...]] = select(*values_of(audit_head)).where(
    ~select(_later.c.number).where(_later.c.number >= bindparam("number", type_=_h.number.type)).exists()
)
_MAKE = Query(
    audit_head.insert().from_select(columns_of(audit_head), _row, include_defaults=False).returning(_h.number)
)
_COVER = Query(
    writer.update()
    .where(_w.name == bindparam("of_writer"), _w.headed < bindparam("covered", type_=_w.headed.type))
    .values(headed=bindparam("covered", type_=_w.headed.type))
)


@dataclass(frozen=True, slots=True)
class Head:
    """A common head. `document` is JSON: `[[writer, sequence, hash], ...]`; `at` is in milliseconds since 1970."""

    number: int
    at: int
    document: str
    previous: bytes
    digest: bytes


class Heads:
    """Makes the common heads. Whoever calls holds the lease for it; without one a head is still made only once."""

    def __init__(self, store: Store, clock: Clock) -> None:
        self._store = store
        self._clock = clock

    async def make(self) -> list[Head]:
        """Cover what no head covers yet: the heads just made, oldest first. Raises `Unavailable`."""
        made: list[Head] = []
        while len(made) < _MOST_HEADS and (news := await self._store.fetch(_NEWS, limit=MOST_WRITERS)):
            head = await self._next(news)
            try:
                await self._store.commit(Unit(_guard(head), head.at, _steps(news)))
            except (ConditionFailed, ConstraintFailed):
                break  # another has just made this one
            made.append(head)
        return made

    async def _next(self, news: Sequence[Row]) -> Head:
        last = await self._store.first(_LAST)
        number, previous = (last[0] + 1, last[1]) if last else (1, FIRST)
        at = to_ms(self._clock())
        points = [[name, sequence, (digest or b"").hex()] for name, sequence, digest in news]
        document = json.dumps(points, separators=(",", ":"), ensure_ascii=True)
        return Head(number, at, document, previous, digest_of(previous, number, at, document))


def digest_of(previous: bytes, number: int, at: int, document: str) -> bytes:
    """A head's digest: SHA-256 of the digest before it and the canonical JSON of its number, time and document."""
    values = {"at": at, "document": document, "number": number}
    canonical = json.dumps(values, sort_keys=True, separators=(",", ":"), ensure_ascii=True)
    return hashlib.sha256(previous + canonical.encode("ascii")).digest()


def _guard(head: Head) -> Guard:
    row: Params = {name: getattr(head, name) for name in columns_of(audit_head)}
    return Guard(_MAKE, row)


def _steps(news: Sequence[Row]) -> tuple[Step, ...]:
    return tuple(Step(_COVER, {"of_writer": name, "covered": sequence}, expect=None) for name, sequence, _ in news)
