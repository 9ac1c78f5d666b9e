"""One transaction on PostgreSQL: its locks, the guards of its units, and what follows them.

The locks are taken before anything is read, all in one order: units that touch nothing in common run at the same time
in many writers of many nodes, any other unit runs alone. So nobody changes what a guard has found until the commit, at
READ COMMITTED, where nothing has to be tried again for having met a stranger's page.
"""

import time
from collections.abc import Callable, Mapping
from typing import Any

import psycopg

from ca_core.errors import ConditionFailed
from ca_core.model import Clock
from ca_core.records import times
from ca_core.records.audit import INSERT_EVENT, INSERT_WRITER, UPDATE_WRITER, Chain
from ca_core.records.postgres_link import NOW, lock_number, numbered, parameters
from ca_core.records.postgres_watch import Watch
from ca_core.records.query import Query, Value
from ca_core.records.queue import Job

__all__ = ["ClockWrong", "Transaction", "UnexpectedRows", "run"]

_OLDEST, _NEWEST = 120_000, 1_000
"""How long before the commit, and after it, an event may be dated, in milliseconds."""
_GATE = lock_number("gate")
_SHARE_GATE = f"SELECT pg_advisory_xact_lock_shared({_GATE})"
_OWN_GATE = f"SELECT pg_advisory_xact_lock({_GATE})"
_LOCK = "SELECT count(pg_advisory_xact_lock(number)) FROM unnest($1::bigint[]) AS number"

_Connection = psycopg.Connection[tuple[Any, ...]]
_Cursor = psycopg.Cursor[tuple[Any, ...]]


class UnexpectedRows(Exception):
    """A step touched another number of rows than it must."""


class ClockWrong(Exception):
    """This machine's clock is not the database's, or was not when these were made."""

    def __init__(self, why: str, jobs: list[Job]) -> None:
        super().__init__(why)
        self.jobs = jobs


class Transaction:
    """Of one batch, over one connection. `at` is told the steps that tests hold it at; `clock` is the node's."""

    def __init__(self, chain: Chain, watch: Watch, clock: Clock | None, at: Callable[[str], None]) -> None:
        self._chain = chain
        self._place = chain.place
        self._watch = watch
        self._clock = clock
        self._at = at
        self._looked = 0.0
        self._now: tuple[int, int] | None = None
        """What the clock said before and after it was compared with the database's, in milliseconds since 1970."""

    def write(self, connection: _Connection, batch: list[Job]) -> None:
        """All but the COMMIT. Raises `ClockWrong`, `UnexpectedRows`, psycopg.Error."""
        if batch[0].unit.touches is None:
            self._alone(connection, batch)
        else:
            self._together(connection, batch)

    def _together(self, connection: _Connection, batch: list[Job]) -> None:
        """Units that touch nothing in common: all guards at once, then all that follows them."""
        self._at("begin")
        with connection.pipeline():
            self.lock(connection, batch)
            guards = [run(connection, job.unit.guard.query, job.unit.guard.params) for job in batch]
        self._look_at_clock(connection)
        following: list[Job] = []
        failed: list[Job] = []
        for job, cursor in zip(batch, guards, strict=True):
            row = cursor.fetchone()
            if row is None:
                failed.append(job)
            else:
                job.guard_id = row[0]
                following.append(job)
        self._judge_clock(following)
        self._at("guard")
        with connection.pipeline():
            reasons = [self._diagnose(connection, job) for job in failed]
            counted = [one for job in following for one in self._steps(connection, job)]
            self._events(connection, following)
        self._end_events(connection)
        for job, reason in zip(failed, reasons, strict=True):
            job.error = _condition_failed(reason)
        for cursor, query, expected in counted:
            _check_rows(cursor, query, expected)

    def _alone(self, connection: _Connection, batch: list[Job]) -> None:
        """Units that may touch anything, one after another."""
        self._at("begin")
        with connection.pipeline():
            self.lock(connection, batch)
        self._look_at_clock(connection)
        done: list[Job] = []
        for job in batch:
            row = run(connection, job.unit.guard.query, job.unit.guard.params).fetchone()
            if row is None:
                job.error = _condition_failed(self._diagnose(connection, job))
                continue
            self._judge_clock([job])
            self._at("guard")
            job.guard_id = row[0]
            with connection.pipeline():
                counted = list(self._steps(connection, job))
            for cursor, query, expected in counted:
                _check_rows(cursor, query, expected)
            done.append(job)
        with connection.pipeline():
            self._events(connection, done)
        self._end_events(connection)

    def lock(self, connection: _Connection, batch: list[Job]) -> None:
        """Begin the transaction, and take all that its units touch before anything is read."""
        connection.execute("BEGIN ISOLATION LEVEL READ COMMITTED")
        if batch[0].unit.touches is None:
            connection.execute(_OWN_GATE)
        else:
            connection.execute(_SHARE_GATE)
            connection.execute(_LOCK, [_lock_numbers(batch)])

    def _look_at_clock(self, connection: _Connection) -> None:
        # By itself: a pipeline does not arm the server's `idle_in_transaction_session_timeout`, what follows it does.
        asked = time.monotonic()
        row = connection.execute(NOW, binary=True).fetchone()
        self._looked = time.monotonic()
        before = self._clock() if self._clock is not None else None
        if row is not None:
            self._watch.measured(row[0], self._looked - asked)
        if self._clock is not None and before is not None:
            readings = sorted((times.to_ms(before), times.to_ms(self._clock())))
            self._now = readings[0], readings[1]

    def _judge_clock(self, jobs: list[Job]) -> None:
        """Raise `ClockWrong` for units whose events bear a time that may be wrong."""
        timely = [job for job in jobs if job.unit.events]
        if not timely:
            return
        if (trouble := self._watch.clock_trouble()) is not None:
            raise ClockWrong(trouble, timely)
        # The clock may have been wrong when a unit was decided, and set right since; or be wrong since it was compared.
        if self._now is not None:
            since = round((time.monotonic() - self._looked) * 1000)
            earliest, latest = (reading + since for reading in self._now)
            if strange := [job for job in timely if not latest - _OLDEST <= job.unit.at <= earliest + _NEWEST]:
                raise ClockWrong("this machine's clock was set while a record was made: ask again", strange)

    def _steps(self, connection: _Connection, job: Job) -> list[tuple[_Cursor, Query, int | None]]:
        guard_id = {"guard_id": job.guard_id}
        return [
            (run(connection, step.query, {**step.params, **guard_id}), step.query, step.expect)
            for step in job.unit.steps
        ]

    def _events(self, connection: _Connection, jobs: list[Job]) -> None:
        for job in jobs:
            for event in job.unit.events:
                if not self._chain.place[0]:
                    run(connection, INSERT_WRITER, self._chain.writer_row(job.unit.at))
                run(connection, INSERT_EVENT, self._chain.link(event, job.unit.at))

    def _end_events(self, connection: _Connection) -> None:
        """Say where the chain ends now; again by itself, see `_look_at_clock`."""
        if self._chain.place != self._place:
            run(connection, UPDATE_WRITER, self._chain.head_row())
        else:
            connection.execute("SELECT 1")

    def _diagnose(self, connection: _Connection, job: Job) -> _Cursor | None:
        diagnose = job.unit.guard.diagnose
        return run(connection, diagnose, job.unit.guard.params) if diagnose is not None else None


def run(connection: _Connection, query: Query, params: Mapping[str, Value]) -> _Cursor:
    """Execute a statement; its answer is read in binary."""
    text, names = numbered(query)
    return connection.execute(text, parameters(names, params), binary=True)


def _lock_numbers(batch: list[Job]) -> list[int]:
    """What the units of a batch touch, in the one order in which everybody takes it."""
    return sorted({lock_number(name) for job in batch for name in job.unit.touches or ()})


def _condition_failed(cursor: _Cursor | None) -> ConditionFailed:
    if cursor is None:
        return ConditionFailed([])
    row = cursor.fetchone() or ()
    names = [column.name for column in cursor.description or ()]
    return ConditionFailed([name for name, holds in zip(names, row, strict=True) if not holds])


def _check_rows(cursor: _Cursor, query: Query, expected: int | None) -> None:
    if expected is not None and cursor.rowcount != expected:
        raise UnexpectedRows(f"{cursor.rowcount} rows instead of {expected}: {query}")
