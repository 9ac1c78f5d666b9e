"""One writer of a PostgreSQL store: a connection, a thread's, and its own part of the audit trail.

A batch is one transaction (`postgres_transaction`) of five round trips: locks and guards, time, steps and events, the
chain's end, COMMIT. Here is what happens when it does not come to its end.
"""

import contextlib
import logging
import random
import time
from collections.abc import Callable
from typing import Any

import psycopg
from psycopg import errors

from ca_core.errors import ConstraintFailed, Unavailable
from ca_core.meter import Meter
from ca_core.model import Clock
from ca_core.records.audit import WRITER_HEAD, Chain
from ca_core.records.postgres_link import connect, sentence, unreachable
from ca_core.records.postgres_transaction import ClockWrong, Transaction, UnexpectedRows, run
from ca_core.records.postgres_watch import Watch
from ca_core.records.queue import Job
from ca_core.records.store import Hook

__all__ = ["Writer"]

_LOG = logging.getLogger(__name__)
_FROZEN = 8.0
"""Seconds that a transaction of another process may wait for that process, while somebody needs what it holds."""
_PATIENCE = 20.0
"""Seconds for which a batch that lost its database tries to find it again."""
_CONFLICTS = 8
"""How often a batch that the database rolled back for another's sake is run again."""
_SHARDS = 255
_SHARD_CLASS = 0x656E7264
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


class _OutcomeUnknown(Exception):
    """The connection died during COMMIT; `place` is where the chain stood before the batch."""

    def __init__(self, place: tuple[int, bytes]) -> None:
        super().__init__()
        self.place = place


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
        self._drop()

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
            except ClockWrong as exc:
                return self._without(batch, exc.jobs, Unavailable(str(exc)))
            except (errors.IntegrityError, errors.DataError, errors.RaiseException, UnexpectedRows) as exc:
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
            self._statements().write(connection, batch)
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

    def _statements(self) -> Transaction:
        return Transaction(self._chain, self._watch, self._clock, self._at)

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
                self._begin_anew()
        return self._connection

    def _begin_anew(self) -> None:
        """After a server came back without its last commits: a standby that was behind, or an old backup."""
        _LOG.error("the database lacks audit events that it had: its trail goes on under another writer")
        self._chain = self._new_chain()

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
        row = run(self._connection, WRITER_HEAD, {"of_writer": self._chain.name}).fetchone()
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
                    self._statements().lock(self._connection, batch)
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
            self._begin_anew()
        return False

    def _at(self, step: str) -> None:
        if self._hook:
            self._hook(step)


def _is_lost(exc: psycopg.Error, connection: _Connection) -> bool:
    """Whether the connection is gone, or the server said that it ends it (classes 08 and 57P, 25P03)."""
    state = exc.sqlstate or ""
    return connection.closed or state.startswith(("08", "57P")) or state == "25P03"
