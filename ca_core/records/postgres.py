"""PostgreSQL: the store of several nodes, and all that they share.

Reads run in the event loop, all on one connection and at once (`postgres_reader`); writes are group commits of two
writers (`postgres_writer`). A database that goes away fails what needs it, and is found again by itself.
"""

import asyncio
import time

import psycopg

from ca_core.errors import Unavailable
from ca_core.meter import NO_METER, Meter
from ca_core.model import Clock
from ca_core.records.audit import Chain
from ca_core.records.postgres_link import NOW, conninfo_of, numbered, parameters, unreachable
from ca_core.records.postgres_reader import Reader
from ca_core.records.postgres_watch import Watch
from ca_core.records.postgres_writer import Writer
from ca_core.records.query import Query, Row, Value
from ca_core.records.queue import UnitQueue, disjoint
from ca_core.records.store import Hook
from ca_core.records.unit import Unit

__all__ = ["PostgresStore"]

_WRITERS = 2  # one batch is made while another waits for the disk
_READ_SECONDS = 10.0
_CRL_SECONDS = 120.0
_COMMIT_SECONDS = 30.0


class _Line:
    """The connection that reads for one event loop."""

    def __init__(self) -> None:
        self.reader: Reader | None = None
        self.connecting = asyncio.Lock()

    def close(self) -> None:
        """Let go of it, whether its loop still runs or not."""
        if self.reader is not None:
            self.reader.close()


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
        clock: Clock | None = None,
    ) -> None:
        self.weakness = weakness
        self._text = conninfo_of(url, process)
        self._hook = hook
        self._watch = Watch()
        self._lines: dict[asyncio.AbstractEventLoop, _Line] = {}
        self._queue = UnitQueue(
            lambda: Writer(self._text, lambda: Chain(process, version), self._watch, meter, hook, clock),
            writers=_WRITERS,
            choose=disjoint,
        )

    # --- reading ---------------------------------------------------------------------------------------------------

    async def fetch(self, query: Query, **params: Value) -> list[Row]:
        """All rows of a SELECT."""
        text, names = numbered(query)
        rows = await self._read(text, parameters(names, params))
        if self._hook:
            self._hook("read")
        return rows

    async def fetch_aside(self, query: Query, **params: Value) -> list[Row]:
        """All rows of a SELECT that has many, on a connection of its own: the others' answers don't wait behind it."""
        text, names = numbered(query)
        values = parameters(names, params)
        try:
            async with asyncio.timeout(_CRL_SECONDS):
                reader = await Reader.connect(self._text)
                try:
                    return await reader.ask(text, values)
                finally:
                    reader.close()
        except TimeoutError as exc:
            raise Unavailable(f"the database does not answer within {_CRL_SECONDS:.0f} s") from exc
        except psycopg.Error as exc:
            raise unreachable(exc) from exc

    async def first(self, query: Query, **params: Value) -> Row | None:
        """The first row of a SELECT, None without any."""
        rows = await self.fetch(query, **params)
        return rows[0] if rows else None

    async def measure_drift(self) -> float:
        """See `Store`."""
        asked = time.monotonic()
        rows = await self._read(NOW, [])
        self._watch.measured(rows[0][0], time.monotonic() - asked)
        return self._watch.drift

    async def _read(self, text: str, values: list[Value]) -> list[Row]:
        reader: Reader | None = None
        try:
            async with asyncio.timeout(_READ_SECONDS):
                reader = await self._reader()
                try:
                    return await reader.ask(text, values)
                except psycopg.OperationalError:
                    if not reader.is_spent:
                        raise
                # It died, perhaps long since; what only reads is asked once more.
                reader = await self._reader()
                return await reader.ask(text, values)
        except TimeoutError as exc:
            if reader is not None:
                reader.close()  # whoever else waits for it finds another
            raise Unavailable(f"the database does not answer within {_READ_SECONDS:.0f} s") from exc
        except psycopg.Error as exc:
            raise unreachable(exc) from exc

    async def _reader(self) -> Reader:
        """The loop's connection; connections can't be handed from one loop to another."""
        loop = asyncio.get_running_loop()
        line = self._lines.get(loop)
        if line is None:
            self._forget_closed_loops()
            line = self._lines[loop] = _Line()
        async with line.connecting:
            if line.reader is None or line.reader.is_spent:
                old, line.reader = line.reader, await Reader.connect(self._text)
                if old is not None:
                    old.retire()
            return line.reader

    def _forget_closed_loops(self) -> None:
        for loop in [known for known in self._lines if known.is_closed()]:
            self._lines.pop(loop).close()

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
        for line in self._lines.values():
            line.close()
        self._lines.clear()
