"""The writer of a SQLite store: one connection, one thread's, and its part of the audit trail.

A batch is one transaction. An advisory lock on a file beside the database is held from BEGIN IMMEDIATE to COMMIT:
processes that write the same file then queue in the kernel instead of polling SQLite's busy handler (the longest wait
of four processes falls from 631 ms to 8 ms).

Savepoints are not used. A unit whose guard finds a fact changed has written nothing, so the batch goes on; anything
else that goes wrong rolls the whole batch back, and its units are run again one by one.
"""

import contextlib
import fcntl
import logging
import os
import sqlite3
import time
from pathlib import Path
from typing import Any

from sqlalchemy.dialects import sqlite as sqlite_dialect

from ca_core.errors import ConditionFailed, ConstraintFailed, Unavailable
from ca_core.meter import Meter
from ca_core.records.audit import INSERT_EVENT, INSERT_WRITER, UPDATE_WRITER, WRITER_HEAD, Chain
from ca_core.records.place import Headroom
from ca_core.records.query import Params, Query
from ca_core.records.queue import Job
from ca_core.records.store import Hook

__all__ = ["DIALECT", "SqliteWriter", "close_quietly", "connect"]

_LOG = logging.getLogger(__name__)
DIALECT = sqlite_dialect.dialect(paramstyle="named")
_BUSY_SECONDS = 20.0
_WAL_AIM = 64 << 20
"""Bytes of the write-ahead log from which on its start is waited for, so that it is used anew."""
_WAL_TRY_EVERY = 5.0
_WAL_PATIENCE = 200
"""Milliseconds for readers to finish; all of ours do in less."""


class _UnexpectedRows(Exception):
    """A step touched another number of rows than it must."""


def connect(path: Path, *, read_only: bool = False) -> sqlite3.Connection:
    """A connection in autocommit mode, set up so that a commit is durable when it returns."""
    # Never "rwc": where a store vanished under a daemon, an empty one in its place would be worse than none.
    mode = "ro" if read_only else "rw"
    connection = sqlite3.connect(
        f"{path.absolute().as_uri()}?mode={mode}",
        uri=True,
        timeout=_BUSY_SECONDS,
        isolation_level=None,
        check_same_thread=False,
        cached_statements=256,
    )
    connection.execute("PRAGMA foreign_keys=ON")
    if not read_only:
        connection.execute("PRAGMA journal_mode=WAL")
        connection.execute("PRAGMA synchronous=FULL")
        connection.execute(f"PRAGMA journal_size_limit={_WAL_AIM}")
    return connection


class SqliteWriter:
    """Writes batches into one file."""

    def __init__(self, path: Path, chain: Chain, headroom: Headroom, meter: Meter, hook: Hook | None) -> None:
        self._path = path
        self._chain = chain
        self._headroom = headroom
        self._meter = meter
        self._hook = hook
        self._is_unsure = False
        self._wal_tried = 0.0
        self._turn_asked = 0.0
        self._connection: sqlite3.Connection | None = None
        self._file: tuple[int, int] | None = None
        self._lock = -1

    def write(self, batch: list[Job]) -> None:
        """See `UnitWriter`."""
        try:
            if self._connection is None:
                self._connection = connect(self._path)
                self._file = _file_of(self._path)
            if self._lock < 0:
                self._lock = os.open(self._path.with_name(self._path.name + ".lock"), os.O_RDWR | os.O_CREAT, 0o600)
            self._write(self._connection, self._lock, batch)
            self._bound_wal(self._connection, self._lock)
        except (sqlite3.Error, OSError) as exc:
            for job in batch:
                job.error = Unavailable(f"the database can't be written: {exc}")  # enforces case 57
            # A new one next time: what this one believes of the file may be wrong after an input/output error.
            if self._connection is not None:
                close_quietly(self._connection)
                self._connection = None

    def close(self) -> None:
        """Let go of the file."""
        if self._connection is not None:
            self._connection.close()
        if self._lock >= 0:
            os.close(self._lock)

    def _write(self, connection: sqlite3.Connection, lock: int, batch: list[Job]) -> None:
        self._turn_asked = time.perf_counter()
        self._at("lock")
        fcntl.flock(lock, fcntl.LOCK_EX)
        try:
            if _file_of(self._path) != self._file:
                # What is written into a file without a name, nobody ever reads.
                raise sqlite3.OperationalError("the store was moved or replaced")
            try:
                self._transaction(connection, batch)
            except (sqlite3.IntegrityError, _UnexpectedRows) as exc:
                if len(batch) == 1:
                    batch[0].error = ConstraintFailed(str(exc))  # enforces case 57
                    return
                for job in batch:
                    try:
                        self._transaction(connection, [job])
                    except (sqlite3.IntegrityError, _UnexpectedRows) as single:
                        job.error = ConstraintFailed(str(single))
                    except sqlite3.Error as single:
                        # Units of this batch may stand committed already: only this one is lost.
                        job.error = Unavailable(f"the database can't be written: {single}")
        finally:
            fcntl.flock(lock, fcntl.LOCK_UN)

    def _transaction(self, connection: sqlite3.Connection, batch: list[Job]) -> None:
        self._at("begin")
        connection.execute("BEGIN IMMEDIATE")
        place = self._chain.place
        try:
            if self._is_unsure:
                place = self._look_for_place(connection)
            for job in batch:
                job.error = None
                self._one(connection, job)
            if self._chain.place != place:
                self._run_one(connection, UPDATE_WRITER, self._chain.head_row())
            self._at("commit")
            connection.execute("COMMIT")
        except BaseException as exc:
            self._chain.back_to(place)
            # Of a COMMIT that failed on the disk, only the database knows whether it happened.
            self._is_unsure = not isinstance(exc, sqlite3.IntegrityError | _UnexpectedRows)
            if connection.in_transaction:
                connection.execute("ROLLBACK")
            raise
        self._at("durable")
        now = time.perf_counter()
        self._meter.committed(now - self._turn_asked, len(batch))
        self._turn_asked = now  # of the next one, when a batch is run again one by one

    def _bound_wal(self, connection: sqlite3.Connection, lock: int) -> None:
        """Have the next writer begin the write-ahead log anew, once it is long.

        SQLite does so by itself when no reader is in the way; with readers of several processes, one nearly always is.
        What fails here is tried again: the batch before it is durable.
        """
        now = time.monotonic()
        if now - self._wal_tried < _WAL_TRY_EVERY or self._headroom.wal_bytes() < _WAL_AIM:
            return
        self._wal_tried = now
        fcntl.flock(lock, fcntl.LOCK_EX)
        try:
            connection.execute(f"PRAGMA busy_timeout={_WAL_PATIENCE}")
            connection.execute("PRAGMA wal_checkpoint(RESTART)").fetchall()
        except sqlite3.Error as exc:
            _LOG.warning("the write-ahead log could not be taken into the database: %s", exc)
        finally:
            connection.execute(f"PRAGMA busy_timeout={int(_BUSY_SECONDS * 1000)}")
            fcntl.flock(lock, fcntl.LOCK_UN)

    def _one(self, connection: sqlite3.Connection, job: Job) -> None:
        unit, guard = job.unit, job.unit.guard
        text, constants = guard.query.text(DIALECT)
        rows = connection.execute(text, {**constants, **guard.params}).fetchall()
        if not rows:  # enforces case 33
            job.error = ConditionFailed(self._failed(connection, job))
            return
        self._at("guard")
        job.guard_id = rows[0][0]
        for step in unit.steps:
            text, constants = step.query.text(DIALECT)
            cursor = connection.execute(text, {**constants, **step.params, "guard_id": job.guard_id})
            if step.expect is not None and cursor.rowcount != step.expect:
                raise _UnexpectedRows(f"{cursor.rowcount} rows instead of {step.expect}: {step.query}")
        for event in unit.events:
            if self._chain.place[0] == 0:
                self._run_one(connection, INSERT_WRITER, self._chain.writer_row(unit.at))
            self._run_one(connection, INSERT_EVENT, self._chain.link(event, unit.at))

    def _failed(self, connection: sqlite3.Connection, job: Job) -> list[str]:
        diagnose = job.unit.guard.diagnose
        if diagnose is None:
            return []
        text, constants = diagnose.text(DIALECT)
        cursor = connection.execute(text, {**constants, **job.unit.guard.params})
        row: tuple[Any, ...] = cursor.fetchone()
        return [column[0] for column, holds in zip(cursor.description, row, strict=True) if not holds]

    def _look_for_place(self, connection: sqlite3.Connection) -> tuple[int, bytes]:
        """Where our chain stands in the database: further than we believe after a COMMIT that failed and happened."""
        found = self._run_one(connection, WRITER_HEAD, {"of_writer": self._chain.name}).fetchone()
        if found is not None and found[0] > self._chain.place[0]:
            self._chain.back_to((found[0], found[1]))
        self._is_unsure = False
        return self._chain.place

    @staticmethod
    def _run_one(connection: sqlite3.Connection, query: Query, params: Params) -> sqlite3.Cursor:
        text, constants = query.text(DIALECT)
        return connection.execute(text, {**constants, **params})

    def _at(self, step: str) -> None:
        if self._hook:
            self._hook(step)


def _file_of(path: Path) -> tuple[int, int] | None:
    """Which file has this name now."""
    try:
        found = path.stat()
    except FileNotFoundError:
        return None
    return found.st_dev, found.st_ino


def close_quietly(connection: sqlite3.Connection) -> None:
    """Close a connection that may be broken."""
    with contextlib.suppress(sqlite3.Error):
        connection.close()
