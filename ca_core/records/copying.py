"""Moving an installation from a SQLite file to a PostgreSQL database: every row as it is, in one transaction."""

import contextlib
import fcntl
import os
import sqlite3
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psycopg
from psycopg import errors, sql
from sqlalchemy import BigInteger, Integer, LargeBinary, String, Table

from ca_core.errors import OperatorError, Unavailable
from ca_core.records import postgres_database, sqlite_file
from ca_core.records.postgres_link import clean, connect, conninfo_of, sentence, without_password
from ca_core.records.schema import attempt, lease, metadata
from ca_core.records.sqlite_writer import connect as connect_sqlite

__all__ = ["copy_to_postgres"]

_PAGE = 500
_LEFT_OUT = frozenset({lease.name})  # who does the periodic work is settled anew


def copy_to_postgres(source: Path, target: str, progress: Callable[[int, int], None]) -> dict[str, int]:
    """Copy the store at `source` into the empty database `target`, and set the file aside as `*.copied`.

    `progress` is told how many rows are copied, and of how many. Returns the number of rows of each table. Nothing
    writes into the file meanwhile. Raises `OperatorError`, `Unavailable`; both stores are then as they were, but that
    the database may be set up and empty.
    """
    sqlite_file.check(source)
    # A daemon that served the file by mistake would be a second CA of the same names.
    kept = source.with_name(source.name + ".copied")
    with postgres_database.setting_up(target), _moved(source, kept) as reading:
        postgres_database.create(target, for_copy=True)
        try:
            with contextlib.closing(connect(conninfo_of(target, "copy"))) as writing:
                writing.execute("SET statement_timeout = 0")
                writing.execute("BEGIN")
                counts = _copy_all(reading, writing, target, progress)
                writing.execute(postgres_database.UNMARK)
                writing.execute("COMMIT")
        except (errors.DataError, errors.IntegrityError) as exc:
            raise OperatorError(
                "store_copy_refused",
                f"the database refuses a row of {source}: {sentence(exc)}",
                "'enrolld check' and 'enrolld audit verify' may tell what is wrong with it",
            ) from exc
        except psycopg.Error as exc:
            raise Unavailable(f"the copy to {without_password(target)} failed: {sentence(exc)}") from exc
        except sqlite3.Error as exc:
            raise Unavailable(f"can't read the database {source}: {exc}") from exc
    return counts


@contextlib.contextmanager
def _moved(source: Path, kept: Path) -> Iterator[sqlite3.Connection]:
    """A connection that reads, while nobody writes; when the block ends well, the file is whole and named `kept`.

    The lock is held until then: a command that waited for it finds the file gone, and writes nothing.
    """
    lock = os.open(source.with_name(source.name + ".lock"), os.O_RDWR | os.O_CREAT, 0o600)
    connection = connect_sqlite(source)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX)
        connection.execute("BEGIN IMMEDIATE")
        yield connection
        connection.execute("ROLLBACK")
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()
        connection.close()
        source.rename(kept)
        for left in ("-wal", "-shm"):
            source.with_name(source.name + left).unlink(missing_ok=True)
    finally:
        connection.close()
        os.close(lock)


def _copy_all(
    reading: sqlite3.Connection,
    writing: psycopg.Connection[Any],
    target: str,
    progress: Callable[[int, int], None],
) -> dict[str, int]:
    if (writing.execute("SELECT count(*) FROM realm").fetchone() or (0,))[0]:
        raise OperatorError(
            "store_not_empty",
            f"the database {without_password(target)} holds an installation already",
            "copy into an empty database; if it holds this installation, of a copy cut off at its very end, see that "
            "it has everything ('enrolld audit verify') and rename the file yourself",
        )
    tables = [table for table in metadata.sorted_tables if table.name not in _LEFT_OUT]
    wanted = {table.name: _count(reading, table) for table in tables}
    total, done = sum(wanted.values()), 0
    counts: dict[str, int] = {}
    for table in tables:
        # The counts come along as they are: the triggers would count every row once more.
        _alter(writing, table, "DISABLE TRIGGER USER")
    for table in tables:
        for copied in _copy(reading, writing, table):
            progress(done + copied, total)
            counts[table.name] = copied
        done += counts[table.name]
        found = writing.execute(sql.SQL("SELECT count(*) FROM {}").format(sql.Identifier(table.name))).fetchone()
        if found is None or found[0] != wanted[table.name]:
            raise Unavailable(f"of {wanted[table.name]} rows of {table.name}, {found and found[0]} arrived")
    for table in tables:
        _alter(writing, table, "ENABLE TRIGGER USER")
        if "id" in table.c:
            writing.execute(
                sql.SQL(
                    "SELECT setval(pg_get_serial_sequence({name}, 'id'), max(id)) FROM {table} HAVING max(id) > 0"
                ).format(name=sql.Literal(table.name), table=sql.Identifier(table.name))
            )
    return counts


def _alter(writing: psycopg.Connection[Any], table: Table, what: str) -> None:
    writing.execute(sql.SQL("ALTER TABLE {} ").format(sql.Identifier(table.name)) + sql.SQL(what))


def _count(reading: sqlite3.Connection, table: Table) -> int:
    return int(reading.execute(f"SELECT count(*) FROM {table.name}").fetchone()[0])  # noqa: S608  # a name of the schema


def _copy(reading: sqlite3.Connection, writing: psycopg.Connection[Any], table: Table) -> Iterator[int]:
    """Copy a table in one statement, so that rows may refer to later ones; yields how many rows are there so far."""
    names = [column.name for column in table.columns]
    order = ", ".join(column.name for column in table.primary_key.columns)
    rows = reading.execute(f"SELECT {', '.join(names)} FROM {table.name} ORDER BY {order}")  # noqa: S608  # likewise
    statement = sql.SQL("COPY {} ({}) FROM STDIN (FORMAT BINARY)").format(
        sql.Identifier(table.name), sql.SQL(", ").join(map(sql.Identifier, names))
    )
    copied = 0
    with psycopg.Cursor(writing) as cursor, cursor.copy(statement) as copy:
        copy.set_types([_type_of(table, name) for name in names])
        while page := rows.fetchmany(_PAGE):
            for row in page:
                copy.write_row([_fitted(table, name, value) for name, value in zip(names, row, strict=True)])
            copied += len(page)
            yield copied
    yield copied


def _type_of(table: Table, name: str) -> str:
    kind = table.c[name].type
    if isinstance(kind, BigInteger):
        return "int8"
    if isinstance(kind, Integer):
        return "int4"
    return "bytea" if isinstance(kind, LargeBinary) else "text"


def _fitted(table: Table, name: str, value: object) -> object:
    if not isinstance(value, str):
        return value
    kind = table.c[name].type
    # SQLite keeps any length. What was attempted is told to people; everything else must arrive as it is.
    if table is attempt and isinstance(kind, String) and kind.length is not None:
        value = value[: kind.length]
    return clean(value)
