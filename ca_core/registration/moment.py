"""The time that a decision goes by, and the doubt about it before a refusal leaves.

A device takes a refusal for final, and time may have been its reason: a certificate that looks expired, a secret that
looks too old. A clock can be set at any moment, also while a request is being decided; so a decision reads it once, and
what it read is held against the store's clock, and against the time that has really passed since.
"""

import datetime as dt
import time
from dataclasses import dataclass

from sqlalchemy import ColumnElement, case, func, select

from ca_core.errors import Unavailable
from ca_core.model import Clock
from ca_core.records.query import Query
from ca_core.records.schema import audit, audit_head, clock_step
from ca_core.records.store import CLOCK_LEEWAY, Store
from ca_core.records.times import to_ms

__all__ = ["LEEWAY_MS", "NEWEST_EVENT", "Moment", "Watch", "is_behind"]

_h = audit_head.c
_right = audit.alias("right").c


def _accepted(column: ColumnElement[int]) -> ColumnElement[int]:
    """A fact of the last step back that an operator has accepted; NULL without one."""
    return select(column).order_by(clock_step.c.id.desc()).limit(1).scalar_subquery()


_LAST = select(func.max(audit.c.at)).scalar_subquery()
_BEFORE_STEP = select(func.max(_right.at)).where(_right.at < _accepted(clock_step.c.first_at)).scalar_subquery()
# Years later the right time comes to the events of the wrong clock. Which are younger the heads tell, by their numbers.
_HEAD_SINCE_STEP = (
    select(_h.at).where(_h.number > _accepted(clock_step.c.head)).order_by(_h.number.desc()).limit(1).scalar_subquery()
)
NEWEST_EVENT = select(
    case(
        (
            func.coalesce(_accepted(clock_step.c.newest_at), -1) >= _LAST,
            case(
                (func.coalesce(_HEAD_SINCE_STEP, -1) > func.coalesce(_BEFORE_STEP, -1), _HEAD_SINCE_STEP),
                else_=_BEFORE_STEP,
            ),
        ),
        else_=_LAST,
    )
)
"""The time of the store's newest audit event, in milliseconds since 1970; NULL when there is none.

Once an operator has accepted that the clock had stood in the future, what it wrote then counts no more.
"""

_NEWEST_EVENT = Query(NEWEST_EVENT)
LEEWAY_MS = round(CLOCK_LEEWAY * 1000)


@dataclass(frozen=True, slots=True)
class Moment:
    """What the clock said (`at`), and when it was asked (`read`, of the clock that nobody can set, in seconds)."""

    at: dt.datetime
    read: float


class Watch:
    """Reads the clock for decisions, and doubts it."""

    def __init__(self, store: Store, clock: Clock) -> None:
        self._store = store
        self._clock = clock

    def look(self) -> Moment:
        """The time, read once for a whole decision."""
        return Moment(self._clock(), time.monotonic())

    async def doubt(self, moment: Moment) -> None:
        """Before a refusal that was decided by `moment` leaves.

        Raises `Unavailable` when the clock is wrong, which this node may not have noticed yet, or was set since.
        """
        self._see_that_it_was_not_set(moment)
        drift = await self._store.measure_drift()
        if abs(drift) > CLOCK_LEEWAY:  # enforces case 61
            raise Unavailable(f"this machine's clock is {abs(drift):.0f} s from the database's: set the clock")
        self._see_that_it_was_not_set(moment)

    def _see_that_it_was_not_set(self, moment: Moment) -> None:
        set_by = (self._clock() - moment.at).total_seconds() - (time.monotonic() - moment.read)
        if abs(set_by) > CLOCK_LEEWAY:  # enforces case 61
            raise Unavailable(f"this machine's clock was set by {set_by:.0f} s while the request was decided")

    async def is_ahead(self, not_before: int) -> bool:
        """Whether what is valid from `not_before` on (milliseconds since 1970) was made by a clock in the future.

        Not while this one may be the wrong one.
        """
        return not_before > to_ms(self._clock()) and not await self.is_behind()

    async def is_behind(self) -> bool:
        """Whether the clock stands more than a minute before the store's newest event; nothing is issued then."""
        row = await self._store.first(_NEWEST_EVENT)
        return row is not None and is_behind(self._clock(), row[0])


def is_behind(now: dt.datetime, newest_event: int | None) -> bool:
    """Whether `now` stands more than a minute before the store's newest event (None: there is none)."""
    return newest_event is not None and to_ms(now) < newest_event - LEEWAY_MS
