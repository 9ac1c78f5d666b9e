"""Reading from PostgreSQL in an event loop: one connection on which many questions are on their way at a time.

Answers come in the order of the questions (libpq's pipeline mode, each question a transaction of its own), so that
nobody waits for a free connection. It stands on libpq as psycopg hands it out: through psycopg's own connections a
question costs five times as much CPU, which with six questions per certificate was half the cost of all the rest.
"""

import asyncio
import contextlib
import struct
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any

import psycopg
from psycopg import AsyncConnection, pq

from ca_core.records.postgres_link import SETTLE
from ca_core.records.query import Row, Value

__all__ = ["Reader"]

_INT8, _TEXT, _BYTEA = 20, 25, 17
_MOST_PREPARED = 400
_pack_int8 = struct.Struct("!q").pack


def _integer(data: bytes) -> int:
    return int.from_bytes(data, "big", signed=True)


_READ: dict[int, Callable[[bytes], Any]] = {
    16: lambda data: data == b"\1",  # bool
    _BYTEA: bytes,
    _INT8: _integer,
    21: _integer,  # int2
    23: _integer,  # int4
    _TEXT: lambda data: data.decode(),
    701: lambda data: struct.unpack("!d", data)[0],  # float8
    1043: lambda data: data.decode(),  # varchar
}
"""By PostgreSQL's number of the type: what its binary form says."""


class Reader:
    """A connection that reads. Whatever goes wrong with it ends it, and all questions that wait."""

    def __init__(self, connection: AsyncConnection[Any]) -> None:
        self._connection = connection
        self._pgconn = connection.pgconn
        self._loop = asyncio.get_running_loop()
        self._waiting: deque[asyncio.Future[list[Row]]] = deque()
        self._answer: list[pq.abc.PGresult] = []
        self._prepared: dict[tuple[str, tuple[int, ...]], bytes] = {}
        self._flushes = False
        self._writes = False
        self.is_closed = False
        self._met_error = False
        self._socket = self._pgconn.socket
        self._pgconn.nonblocking = 1
        self._pgconn.enter_pipeline_mode()
        self._loop.add_reader(self._socket, self._readable)

    @classmethod
    async def connect(cls, text: str) -> "Reader":
        """Connect. Raises psycopg.Error."""
        connection = await AsyncConnection.connect(text, autocommit=True)
        try:
            await connection.execute(SETTLE)
            return cls(connection)
        except BaseException:
            connection.pgconn.finish()
            raise

    @property
    def is_spent(self) -> bool:
        """Whether another one should take over: it is closed, met an error, or has prepared as much as it should."""
        return self.is_closed or self._met_error or len(self._prepared) >= _MOST_PREPARED

    async def ask(self, text: str, values: Sequence[Value]) -> list[Row]:
        """The rows of a SELECT with numbered parameters. Raises psycopg.Error."""
        types = tuple(_type_of(value) for value in values)
        data = [_bytes_of(value) for value in values]
        future: asyncio.Future[list[Row]] = self._loop.create_future()
        try:
            name = self._prepared.get((text, types))
            if name is None:
                name = self._prepared[text, types] = b"r%d" % len(self._prepared)
                self._pgconn.send_prepare(name, text.encode(), types)
            self._pgconn.send_query_prepared(name, data, [1] * len(data), 1)
            self._pgconn.pipeline_sync()
        except psycopg.Error as exc:
            self._fail(exc)
            raise
        self._waiting.append(future)
        if not self._flushes:
            # Once for all that is asked in this turn of the loop.
            self._flushes = True
            self._loop.call_soon(self._flush)
        return await future

    def retire(self) -> None:
        """Answer what was asked, and then let go of the connection; nobody asks it any more."""
        if self._waiting:
            self._waiting[-1].add_done_callback(lambda _: self.close())
        else:
            self.close()

    def close(self) -> None:
        """Let go of the connection, whether its loop still runs or not."""
        self._fail(psycopg.OperationalError("the connection was closed"))

    def _fail(self, exc: psycopg.Error) -> None:
        if self.is_closed:
            return
        self.is_closed = True
        if not self._loop.is_closed():
            self._loop.remove_reader(self._socket)
            self._loop.remove_writer(self._socket)
            for future in self._waiting:
                if not future.done():
                    future.set_exception(exc)
        self._waiting.clear()
        self._pgconn.finish()

    def _flush(self) -> None:
        self._flushes = False
        if self.is_closed:
            return
        try:
            is_left = self._pgconn.flush() == 1
        except psycopg.Error as exc:
            self._fail(exc)
            return
        if is_left != self._writes:
            self._writes = is_left
            if is_left:
                self._loop.add_writer(self._socket, self._flush)
            else:
                self._loop.remove_writer(self._socket)

    def _readable(self) -> None:
        try:
            self._pgconn.consume_input()
            while self._waiting and not self._pgconn.is_busy():
                result = self._pgconn.get_result()
                if result is None:
                    continue  # the end of one statement; what follows is another's, or the end of the question
                if result.status == pq.ExecStatus.PIPELINE_SYNC:
                    future, answer = self._waiting.popleft(), self._answer
                    self._answer = []
                    self._settle(future, answer)
                else:
                    self._answer.append(result)
        except psycopg.Error as exc:
            self._fail(exc)

    def _settle(self, future: "asyncio.Future[list[Row]]", answer: list[pq.abc.PGresult]) -> None:
        error: psycopg.Error | None = None
        for result in answer:
            if result.status == pq.ExecStatus.FATAL_ERROR:
                error = psycopg.errors.error_from_result(result)
                break
        rows: list[Row] = []
        try:
            rows = _rows(answer[-1]) if error is None else rows
        except (LookupError, ValueError, struct.error) as exc:
            error = psycopg.NotSupportedError(f"an answer of a kind that nothing here reads: {exc}")
        if error is not None:
            self._met_error = True  # a statement may count as prepared that the server refused
        if not future.done():  # else nobody waits any more
            if error is None:
                future.set_result(rows)
            else:
                future.set_exception(error)
        if error is not None and (error.sqlstate or "").startswith("57P"):
            self._fail(error)  # the server said that it ends the connection


def _rows(result: pq.abc.PGresult) -> list[Row]:
    read = [_READ[result.ftype(column)] for column in range(result.nfields)]
    get = result.get_value
    rows: list[Row] = []
    for number in range(result.ntuples):
        values = [get(number, column) for column in range(len(read))]
        rows.append(tuple(None if data is None else of(data) for of, data in zip(read, values, strict=True)))
    return rows


def _type_of(value: Value) -> int:
    if isinstance(value, int):
        return _INT8
    if isinstance(value, str):
        return _TEXT
    return _BYTEA if isinstance(value, bytes) else 0


def _bytes_of(value: Value) -> bytes | None:
    if isinstance(value, int):
        with contextlib.suppress(struct.error):
            return _pack_int8(value)
        raise psycopg.DataError("an integer of more than 64 bits")
    return value.encode() if isinstance(value, str) else value
