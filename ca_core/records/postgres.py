"""PostgreSQL: the store of several nodes, and all that they share.

Reads run in the event loop, each on a connection of a small pool and at once; writes are group commits of two writers
(see `postgres_writer`). A database that goes away fails what needs it, and is found again by itself.
"""

import asyncio
from typing import Any

import psycopg
from psycopg import AsyncConnection, AsyncRawCursor

from ca_core.errors import Unavailable
from ca_core.meter import NO_METER, Meter
from ca_core.records import times
from ca_core.records.audit import Chain
from ca_core.records.postgres_link import SETTLE, conninfo_of, numbered, parameters, prepare, unreachable
from ca_core.records.postgres_writer import Watch, Writer, disjoint
from ca_core.records.query import Query, Row, Value
from ca_core.records.queue import UnitQueue
from ca_core.records.store import Hook
from ca_core.records.unit import Unit

__all__ = ["PostgresStore"]

_WRITERS = 2  # one batch is made while another waits for the disk
_READERS = 4
_READ_SECONDS = 10.0
_CRL_SECONDS = 120.0
_COMMIT_SECONDS = 60.0
_NOW = "SELECT extract(epoch FROM clock_timestamp())::float8"

_Reader = AsyncConnection[tuple[Any, ...]]


class _Readers:
    """Connections that read, of one event loop: connections can't be handed from one to another."""

    def __init__(self) -> None:
        self.idle: list[_Reader] = []
        self.room = asyncio.Semaphore(_READERS)

    def close(self) -> None:
        """Let go of them, whether their loop still runs or not."""
        for connection in self.idle:
            connection.pgconn.finish()


class PostgresStore:
    """A `Store` in a PostgreSQL database. `process` and `version` stand in the audit trail's list of writers."""

    def __init__(
        self,
        url: str,
        *,
        process: str,
        version: str,
        hook: Hook | None = None,
        meter: Meter = NO_METER,
        weakness: str | None = None,
    ) -> None:
        self.weakness = weakness
        self._text = conninfo_of(url, process)
        self._hook = hook
        self._watch = Watch()
        self._readers: dict[asyncio.AbstractEventLoop, _Readers] = {}
        self._queue = UnitQueue(
            lambda: Writer(self._text, lambda: Chain(process, version), self._watch, meter, hook),
            writers=_WRITERS,
            choose=disjoint,
        )

    # --- reading ---------------------------------------------------------------------------------------------------

    async def fetch(self, query: Query, **params: Value) -> list[Row]:
        """All rows of a SELECT."""
        text, names = numbered(query)
        rows = await self._read(text, parameters(names, params), _READ_SECONDS)
        if self._hook:
            self._hook("read")
        return rows

    async def fetch_aside(self, query: Query, **params: Value) -> list[Row]:
        """All rows of a SELECT that has many: the wait for them keeps nobody else waiting."""
        text, names = numbered(query)
        return await self._read(text, parameters(names, params), _CRL_SECONDS)

    async def first(self, query: Query, **params: Value) -> Row | None:
        """The first row of a SELECT, None without any."""
        rows = await self.fetch(query, **params)
        return rows[0] if rows else None

    async def measure_drift(self) -> float:
        """See `Store`."""
        before = times.unix_now()
        rows = await self._read(_NOW, [], _READ_SECONDS)
        self._watch.measured(rows[0][0], before, times.unix_now())
        return self._watch.drift

    async def _read(self, text: str, values: list[Value], seconds: float) -> list[Row]:
        loop = asyncio.get_running_loop()
        readers = self._readers.get(loop)
        if readers is None:
            self._forget_closed_loops()
            readers = self._readers[loop] = _Readers()
        try:
            async with asyncio.timeout(seconds), readers.room:
                while readers.idle:
                    connection = readers.idle.pop()
                    try:
                        return await self._ask(readers, connection, text, values)
                    except psycopg.OperationalError:
                        continue  # it died since it was last used; what only reads is asked again
                return await self._ask(readers, await self._connect(), text, values)
        except TimeoutError as exc:
            raise Unavailable(f"the database does not answer within {seconds:.0f} s") from exc
        except psycopg.Error as exc:
            raise unreachable(exc) from exc

    def _forget_closed_loops(self) -> None:
        for loop in [known for known in self._readers if known.is_closed()]:
            self._readers.pop(loop).close()

    async def _ask(self, readers: _Readers, connection: _Reader, text: str, values: list[Value]) -> list[Row]:
        try:
            cursor = await connection.execute(text, values, binary=True)
            rows: list[Row] = await cursor.fetchall()
        except BaseException:
            connection.pgconn.finish()  # whatever it was in the middle of, nobody waits for that any more
            raise
        readers.idle.append(connection)
        return rows

    async def _connect(self) -> _Reader:
        connection = await AsyncConnection.connect(self._text, autocommit=True, cursor_factory=AsyncRawCursor)
        try:
            prepare(connection)
            await connection.execute(SETTLE)
        except BaseException:
            connection.pgconn.finish()
            raise
        return connection

    # --- writing ---------------------------------------------------------------------------------------------------

    async def commit(self, unit: Unit) -> int:
        """Make the unit durable and return the id that its guard returned."""
        if self._hook:
            self._hook("submit")
        try:
            async with asyncio.timeout(_COMMIT_SECONDS):
                return await self._queue.commit(unit)
        except TimeoutError as exc:
            raise Unavailable(f"the database does not commit within {_COMMIT_SECONDS:.0f} s") from exc

    def submit(self, unit: Unit) -> None:
        """Have the unit written soon, without waiting; a failure is logged."""
        self._queue.submit(unit)

    def shortage(self) -> str | None:
        """See `Store`: a database that said a moment ago that it has no room, or another time than this machine."""
        return self._watch.shortage() or self._watch.clock_trouble()

    @property
    def drift(self) -> float:
        """See `Store`."""
        return self._watch.drift

    def close(self) -> None:
        """Write what is submitted, and let go of the database."""
        self._queue.close()
        for readers in self._readers.values():
            readers.close()
        self._readers.clear()
