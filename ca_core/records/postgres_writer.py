"""One writer of a PostgreSQL store: a connection, a thread's, and its own part of the audit trail.

A batch is one transaction of five round trips: locks and guards, time, steps and events, the chain's end, COMMIT. The
locks are taken before anything is read, all in one order: units that touch nothing in common run at the same time in
many writers of many nodes, any other unit runs alone. So nobody changes what a guard has found until the commit, at
READ COMMITTED, where nothing has to be tried again for having met a stranger's page.
"""

import contextlib
import logging
import random
import time
from collections import deque
from collections.abc import Callable, Mapping
from typing import Any

import psycopg
from psycopg import errors

from ca_core.errors import ConditionFailed, ConstraintFailed, Unavailable
from ca_core.meter import Meter
from ca_core.model import Clock
from ca_core.records import times
from ca_core.records.audit import INSERT_EVENT, INSERT_WRITER, UPDATE_WRITER, WRITER_HEAD, Chain
from ca_core.records.postgres_link import connect, lock_number, numbered, parameters, sentence, unreachable
from ca_core.records.query import Query, Value
from ca_core.records.queue import BATCH, Job
from ca_core.records.store import CLOCK_LEEWAY, Hook

__all__ = ["Watch", "Writer", "disjoint"]

_LOG = logging.getLogger(__name__)
_FROZEN = 8.0
"""Seconds that a transaction of another process may wait for that process, while somebody needs what it holds."""
_SLOW = 8.0
"""Seconds of one batch after which nothing more is signed: it could not be committed either."""
_PATIENCE = 20.0
"""Seconds for which a batch that lost its database tries to find it again."""
_CONFLICTS = 8
"""How often a batch that the database rolled back for another's sake is run again."""
_OLDEST, _NEWEST = 120_000, 1_000
"""How long before the commit, and after it, an event may be dated, in milliseconds."""
_LOOK_AT = 256
_SHARDS = 255
_SHARD_CLASS = 0x656E7264
_GATE = lock_number("gate")
_SHARE_GATE = f"SELECT pg_advisory_xact_lock_shared({_GATE})"
_OWN_GATE = f"SELECT pg_advisory_xact_lock({_GATE})"
_LOCK = "SELECT count(pg_advisory_xact_lock(number)) FROM unnest($1::bigint[]) AS number"
_NOW = "SELECT extract(epoch FROM clock_timestamp())::float8"
_END_FROZEN = (
    "SELECT application_name, coalesce(client_addr::text, 'local'), pg_terminate_backend(pid) FROM pg_stat_activity"
    " WHERE datname = current_database() AND usename = current_user AND pid <> pg_backend_pid()"
    " AND application_name LIKE 'enrolld %' AND application_name NOT IN ('enrolld copy', 'enrolld setup')"
    " AND wait_event = 'ClientRead' AND xact_start IS NOT NULL"
    " AND state_change < clock_timestamp() - make_interval(secs => $1)"
)
_SHARD = (
    f"SELECT set_config('enrolld.shard', number::text, false) FROM generate_series(1, {_SHARDS}) AS number"  # noqa: S608  # numbers of ours
    f" WHERE pg_try_advisory_lock({_SHARD_CLASS}, number) LIMIT 1"
)

_Connection = psycopg.Connection[tuple[Any, ...]]
_Cursor = psycopg.Cursor[tuple[Any, ...]]


class Watch:
    """What the writers of a store find out about its database, for whoever asks before signing."""

    def __init__(self) -> None:
        self.drift = 0.0
        """Seconds to add to this machine's clock to get the database's, as last measured."""
        self._full_until = 0.0
        self._full_why = ""
        self._writing: dict[int, float] = {}

    def writing(self, writer: int) -> None:
        """A writer has begun a batch."""
        self._writing[writer] = time.monotonic()

    def written(self, writer: int) -> None:
        """It is over with it, one way or the other."""
        self._writing.pop(writer, None)

    def measured(self, theirs: float, before: float, after: float) -> None:
        """The database said `theirs` between two looks at this machine's clock (seconds since 1970)."""
        self.drift = theirs - min(max(theirs, before), after)

    def clock_trouble(self) -> str | None:
        """Why this machine's clock forbids to write anything that bears a time."""
        if abs(self.drift) <= CLOCK_LEEWAY:
            return None
        side = "before" if self.drift > 0 else "after"
        return f"this machine's clock stands {abs(self.drift):.0f} s {side} the database's: set the clock"

    def full(self, why: str) -> None:
        """The database has no room: nothing is signed for a second, then it is tried again."""
        self._full_until = time.monotonic() + 1.0
        self._full_why = why

    def shortage(self) -> str | None:
        """Why nothing should be signed; None while there is room, as far as is known."""
        now = time.monotonic()
        if now < self._full_until:
            return self._full_why
        since = min(self._writing.values(), default=now)
        if now - since > _SLOW:
            return f"the database has not committed for {now - since:.0f} s"
        return None


class _UnexpectedRows(Exception):
    """A step touched another number of rows than it must."""


class _ClockWrong(Exception):
    """This machine's clock is not the database's, or was not when these were made."""

    def __init__(self, why: str, jobs: list[Job]) -> None:
        super().__init__(why)
        self.jobs = jobs


class _OutcomeUnknown(Exception):
    """The connection died during COMMIT; `place` is where the chain stood before the batch."""

    def __init__(self, place: tuple[int, bytes]) -> None:
        super().__init__()
        self.place = place


def disjoint(waiting: deque[Job]) -> list[Job]:
    """The next batch: the unit that waits longest, and others that can run beside it.

    A unit that runs alone is joined by the others of its kind that stand next to it.
    """
    batch = [waiting.popleft()]
    touched = batch[0].unit.touches
    if touched is None:
        while waiting and len(batch) < BATCH and waiting[0].unit.touches is None:
            batch.append(waiting.popleft())
        return batch
    taken = set(touched)
    left: list[Job] = []
    for _ in range(min(_LOOK_AT, len(waiting))):
        job = waiting.popleft()
        touches = job.unit.touches
        if touches is None or len(batch) == BATCH or not taken.isdisjoint(touches):
            left.append(job)
        else:
            taken |= touches
            batch.append(job)
    waiting.extendleft(reversed(left))
    return batch


class Writer:
    """Writes batches, each in one transaction, and again when that is safe and of use."""

    def __init__(
        self,
        text: str,
        new_chain: Callable[[], Chain],
        watch: Watch,
        meter: Meter,
        hook: Hook | None,
        clock: Clock | None = None,
    ) -> None:
        self._text = text
        self._clock = clock
        self._new_chain = new_chain
        self._chain = new_chain()
        self._watch = watch
        self._meter = meter
        self._hook = hook
        self._connection: _Connection | None = None
        self._is_down = False
        self._is_stale = False

    def close(self) -> None:
        """Let go of the connection."""
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def write(self, batch: list[Job]) -> None:
        """See `UnitWriter`."""
        self._watch.writing(id(self))
        try:
            self._write_all(batch)
        finally:
            self._watch.written(id(self))

    def _write_all(self, batch: list[Job]) -> None:
        if not self._write(batch):
            # Something in it surprised the database, which undid all of it: one by one, the others are not held up.
            for job in batch:
                if not self._write([job]):
                    job.error = job.error or Unavailable("the database keeps rolling a record back")

    def _write(self, batch: list[Job]) -> bool:
        """Write it in one transaction; False when its units should be tried one by one, or, of one, not again."""
        patience = time.monotonic() + (0.0 if self._is_down else _PATIENCE)
        conflicts = 0
        has_ended_frozen = False
        while True:
            for job in batch:
                job.error = None
            try:
                connection = self._connected()
                self._transaction(connection, batch)
            except _OutcomeUnknown as exc:
                if self._is_settled(batch, exc.place, patience):
                    return True
            except _ClockWrong as exc:
                return self._without(batch, exc.jobs, Unavailable(str(exc)))
            except (errors.IntegrityError, errors.DataError, errors.RaiseException, _UnexpectedRows) as exc:
                if len(batch) == 1:
                    batch[0].error = ConstraintFailed(sentence(exc))  # enforces case 57
                return len(batch) == 1
            except (errors.SerializationFailure, errors.DeadlockDetected) as exc:
                conflicts += 1
                if conflicts > _CONFLICTS:
                    return self._all_failed(batch, unreachable(exc))
                time.sleep(random.uniform(0, 0.01 * 2**conflicts))  # noqa: S311  # keeps two from meeting again
            except errors.LockNotAvailable as exc:
                if has_ended_frozen:
                    return self._all_failed(batch, unreachable(exc))
                has_ended_frozen = True
                self._end_frozen()
            except (errors.DiskFull, errors.OutOfMemory) as exc:
                # Of memory, it may be the table of locks that many large batches filled together.
                if isinstance(exc, errors.OutOfMemory) and len(batch) > 1:
                    return False
                self._watch.full(f"the database has no room: {sentence(exc)}")  # enforces case 58
                return self._all_failed(batch, unreachable(exc))
            except psycopg.Error as exc:
                was_lost = self._connection is None or _is_lost(exc, self._connection)
                self._drop()
                if not was_lost and len(batch) > 1:
                    return False  # whatever one of them met, the others need not
                if not was_lost:  # a server that may not be written, no permission
                    return self._all_failed(batch, unreachable(exc))
                # Nothing was committed: every condition is repeated by the next transaction.
                if time.monotonic() >= patience:
                    self._is_down = True
                    return self._all_failed(batch, unreachable(exc))
                time.sleep(0.1)
            else:
                return True

    def _all_failed(self, batch: list[Job], error: Unavailable) -> bool:
        for job in batch:
            job.error = error
        return True

    def _without(self, batch: list[Job], refused: list[Job], error: Unavailable) -> bool:
        """The others go on: what bears no time, or another."""
        others = [job for job in batch if job not in refused]
        for job in refused:
            job.error = error
        return not others or self._write(others)

    # --- the transaction --------------------------------------------------------------------------------------------

    def _transaction(self, connection: _Connection, batch: list[Job]) -> None:
        began = time.perf_counter()
        place = self._chain.place
        try:
            self._at("lock")
            if batch[0].unit.touches is None:
                self._alone(connection, batch)
            else:
                self._together(connection, batch)
        except BaseException:
            self._chain.back_to(place)
            self._roll_back(connection)
            raise
        self._at("commit")
        try:
            self._commit(connection)
        except BaseException as exc:
            if isinstance(exc, psycopg.Error) and _is_lost(exc, connection):
                raise _OutcomeUnknown(place) from exc  # the chain keeps its new place: that is what is looked for
            self._chain.back_to(place)
            self._roll_back(connection)
            raise
        self._at("durable")
        self._is_down = False
        self._meter.committed(time.perf_counter() - began, len(batch))

    def _together(self, connection: _Connection, batch: list[Job]) -> None:
        """Units that touch nothing in common: all guards at once, then all that follows them."""
        self._at("begin")
        with connection.pipeline():
            self._lock(connection, batch)
            guards = [self._run(connection, job.unit.guard.query, job.unit.guard.params) for job in batch]
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
            self._lock(connection, batch)
        self._look_at_clock(connection)
        done: list[Job] = []
        for job in batch:
            row = self._run(connection, job.unit.guard.query, job.unit.guard.params).fetchone()
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

    def _lock(self, connection: _Connection, batch: list[Job]) -> None:
        """Begin the transaction, and take all that its units touch before anything is read."""
        connection.execute("BEGIN ISOLATION LEVEL READ COMMITTED")
        if batch[0].unit.touches is None:
            connection.execute(_OWN_GATE)
        else:
            connection.execute(_SHARE_GATE)
            connection.execute(_LOCK, [_lock_numbers(batch)])

    def _look_at_clock(self, connection: _Connection) -> None:
        # By itself: a pipeline does not arm the server's `idle_in_transaction_session_timeout`, what follows it does.
        asked = times.unix_now()
        row = connection.execute(_NOW, binary=True).fetchone()
        if row is not None:
            self._watch.measured(row[0], asked, times.unix_now())

    def _judge_clock(self, jobs: list[Job]) -> None:
        """Raise `_ClockWrong` for units whose events bear a time that may be wrong."""
        timely = [job for job in jobs if job.unit.events]
        if not timely:
            return
        if (trouble := self._watch.clock_trouble()) is not None:
            raise _ClockWrong(trouble, timely)
        # The clock may have been wrong when a unit was decided, and set right since.
        if self._clock is not None:
            now = times.to_ms(self._clock())
            if strange := [job for job in timely if not now - _OLDEST <= job.unit.at <= now + _NEWEST]:
                raise _ClockWrong("this machine's clock was set while a record was made: ask again", strange)

    def _steps(self, connection: _Connection, job: Job) -> list[tuple[_Cursor, Query, int | None]]:
        guard_id = {"guard_id": job.guard_id}
        return [
            (self._run(connection, step.query, {**step.params, **guard_id}), step.query, step.expect)
            for step in job.unit.steps
        ]

    def _events(self, connection: _Connection, jobs: list[Job]) -> None:
        for job in jobs:
            for event in job.unit.events:
                if not self._chain.place[0]:
                    self._run(connection, INSERT_WRITER, self._chain.writer_row(job.unit.at))
                self._run(connection, INSERT_EVENT, self._chain.link(event, job.unit.at))

    def _end_events(self, connection: _Connection) -> None:
        """Say where the chain ends now; again by itself, see `_look_at_clock`."""
        if self._chain.place[0]:
            self._run(connection, UPDATE_WRITER, self._chain.head_row())
        else:
            connection.execute("SELECT 1")

    def _diagnose(self, connection: _Connection, job: Job) -> _Cursor | None:
        diagnose = job.unit.guard.diagnose
        return self._run(connection, diagnose, job.unit.guard.params) if diagnose is not None else None

    def _run(self, connection: _Connection, query: Query, params: Mapping[str, Value]) -> _Cursor:
        text, names = numbered(query)
        return connection.execute(text, parameters(names, params), binary=True)

    def _commit(self, connection: _Connection) -> None:
        cursor = connection.execute("COMMIT")
        if cursor.statusmessage != "COMMIT":
            raise errors.TransactionRollback(f"the database answered {cursor.statusmessage}")

    def _roll_back(self, connection: _Connection) -> None:
        # Not used again: the driver takes for prepared what the server skipped after the statement that failed.
        self._is_stale = True
        with contextlib.suppress(psycopg.Error):
            if not connection.closed:
                connection.execute("ROLLBACK")

    # --- the connection ---------------------------------------------------------------------------------------------

    def _connected(self) -> _Connection:
        if self._is_stale:
            self._drop()
        if self._connection is None:
            self._connection = connect(self._text)
            self._connection.execute(_SHARD)
            if self._chain.place[0] and self._kept() != self._chain.place:
                # A server that came back without its last commits: a standby that was behind, or an old backup.
                _LOG.error("the database lacks audit events that it had: its trail goes on under another writer")
                self._chain = self._new_chain()
        return self._connection

    def _end_frozen(self) -> None:
        """End transactions of nodes that stand still, whose locks nobody would ever give back.

        They wait for their node and not the other way round: nothing of them is lost but what was not committed.
        """
        with contextlib.suppress(psycopg.Error):
            ended = self._connected().execute(_END_FROZEN, [_FROZEN]).fetchall()
            if ended:
                _LOG.error("%d transactions of processes that stand still were ended: %s", len(ended), ended)

    def _drop(self) -> None:
        self._is_stale = False
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def _kept(self) -> tuple[int, bytes] | None:
        """The last event of ours that the store has."""
        if self._connection is None:
            return None
        row = self._run(self._connection, WRITER_HEAD, {"of_writer": self._chain.name}).fetchone()
        return (row[0], row[1]) if row is not None else None

    def _is_settled(self, batch: list[Job], before: tuple[int, bytes], patience: float) -> bool:
        """What became of a batch whose COMMIT got no answer: True when its jobs hold the outcome.

        False: it was surely not committed, and may be run again.
        """
        wanted = self._chain.place
        while True:
            self._drop()
            try:
                self._connection = connect(self._text)
                self._connection.execute(_SHARD)
                # That transaction, if it lives, holds these locks until it has ended one way or the other.
                with self._connection.pipeline():
                    self._lock(self._connection, batch)
                kept = self._kept()
                self._connection.execute("ROLLBACK")
                break
            except psycopg.Error as exc:
                if time.monotonic() < patience:
                    time.sleep(0.1)
                    continue
                self._drop()
                self._is_down = True
                self._chain = self._new_chain()  # whatever became of the old one's last events, it stays whole
                _LOG.error("whether %d records were written is not known: %s", len(batch), sentence(exc))
                return self._all_failed(batch, unreachable(exc))
        if wanted != before and kept == wanted:
            return True
        # Units without an event leave no trace to look for; run twice (an attempt, a lease), they do no harm.
        if kept == before or (kept is None and not before[0]):
            self._chain.back_to(before)
        else:
            _LOG.error("the database lacks audit events that it had: its trail goes on under another writer")
            self._chain = self._new_chain()
        return False

    def _at(self, step: str) -> None:
        if self._hook:
            self._hook(step)


def _is_lost(exc: psycopg.Error, connection: _Connection) -> bool:
    """Whether the connection is gone, or the server said that it ends it (classes 08 and 57P, 25P03)."""
    state = exc.sqlstate or ""
    return connection.closed or state.startswith(("08", "57P")) or state == "25P03"


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
        raise _UnexpectedRows(f"{cursor.rowcount} rows instead of {expected}: {query}")
