"""SQLite: the embedded store of one node, with group commit in a writer thread (see `sqlite_writer`)."""

import asyncio
import contextlib
import sqlite3
from pathlib import Path

from ca_core.errors import Unavailable
from ca_core.meter import NO_METER, Meter
from ca_core.records.audit import Chain
from ca_core.records.place import Headroom
from ca_core.records.query import Query, Row, Value
from ca_core.records.queue import UnitQueue
from ca_core.records.sqlite_writer import DIALECT, SqliteWriter, close_quietly, connect
from ca_core.records.store import Hook
from ca_core.records.unit import Unit

__all__ = ["SqliteStore", "connect"]


class SqliteStore:
    """A `Store` in one SQLite file. `process` (serve, cli) and `version` stand in the audit trail's list of writers."""

    def __init__(
        self, path: Path, *, process: str, version: str, hook: Hook | None = None, meter: Meter = NO_METER
    ) -> None:
        self.path = path
        self._hook = hook
        self.headroom = Headroom(path)
        self._queue = UnitQueue(lambda: SqliteWriter(path, Chain(process, version), self.headroom, meter, hook))
        try:
            self._reader = connect(path, read_only=True)
        except sqlite3.Error as exc:
            raise Unavailable(f"can't open the database {path}: {exc}") from exc

    # --- reading ---------------------------------------------------------------------------------------------------

    async def fetch(self, query: Query, **params: Value) -> list[Row]:
        """All rows of a SELECT."""
        text, constants = query.text(DIALECT)
        try:
            rows: list[Row] = self._reader.execute(text, {**constants, **params}).fetchall()
        except sqlite3.Error as exc:
            self._read_anew()
            raise Unavailable(f"the database can't be read: {exc}") from exc
        if self._hook:
            self._hook("read")
        return rows

    async def fetch_aside(self, query: Query, **params: Value) -> list[Row]:
        """All rows of a SELECT that has many, read by a connection of its own."""
        text, constants = query.text(DIALECT)

        def read() -> list[Row]:
            connection = connect(self.path, read_only=True)
            try:
                return connection.execute(text, {**constants, **params}).fetchall()
            finally:
                connection.close()

        try:
            return await asyncio.to_thread(read)
        except sqlite3.Error as exc:
            raise Unavailable(f"the database can't be read: {exc}") from exc

    async def first(self, query: Query, **params: Value) -> Row | None:
        """The first row of a SELECT, None without any."""
        rows = await self.fetch(query, **params)
        return rows[0] if rows else None

    def _read_anew(self) -> None:
        """A new connection: after an input/output error the old one may never recover. When there is none, it stays."""
        with contextlib.suppress(sqlite3.Error):
            fresh = connect(self.path, read_only=True)
            close_quietly(self._reader)
            self._reader = fresh

    # --- writing ---------------------------------------------------------------------------------------------------

    async def commit(self, unit: Unit) -> int:
        """Make the unit durable and return the id that its guard returned."""
        if self._hook:
            self._hook("submit")
        return await self._queue.commit(unit)

    def submit(self, unit: Unit) -> None:
        """Have the unit written soon, without waiting; a failure is logged."""
        self._queue.submit(unit)

    @property
    def weakness(self) -> str | None:
        """See `Store`: every connection that writes is set up to wait for the disk."""
        return None

    @property
    def drift(self) -> float:
        """See `Store`: the file has no clock of its own."""
        return 0.0

    async def measure_drift(self) -> float:
        """See `Store`."""
        return 0.0

    def shortage(self) -> str | None:
        """See `Store`: a disk that is nearly full, or a write-ahead log that another program keeps from ending."""
        return self.headroom.shortage()

    def close(self) -> None:
        """Write what is submitted, and let go of the file."""
        self._queue.close()
        self._reader.close()
