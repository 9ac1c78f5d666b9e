"""A PostgreSQL database as a store: whether it is one, of which revision, and how it is set up and upgraded."""

import contextlib
import time
from collections.abc import Iterator
from typing import Any

import psycopg
from psycopg.conninfo import conninfo_to_dict
from sqlalchemy import URL

from ca_core.errors import OperatorError, Unavailable
from ca_core.records.migrating import EARLIER, migrate, refuse_revision
from ca_core.records.postgres_link import check_server, connect, conninfo_of, lock_number, sentence, without_password

__all__ = ["check", "create", "exists", "setting_up", "upgrade"]

_SET_UP = lock_number("set up")
_SET_UP_SECONDS = 120
_TRIES = 5
_MARK = "INSERT INTO lease (name, holder, until_at) VALUES ('store copy', '', 0) ON CONFLICT DO NOTHING"
_MARKED = "SELECT 1 FROM lease WHERE name = 'store copy'"
UNMARK = "DELETE FROM lease WHERE name = 'store copy'"
"""The end of a copy, in its own transaction."""
_REMEDY = "back the database up, and run 'enrolld upgrade' on one node"


def exists(url: str) -> bool:
    """Whether there is an installation: a schema, and a realm in it. Raises `OperatorError`, `Unavailable`."""
    with _connected(url) as connection:
        if _revision(connection) is None:
            return False
        row = connection.execute("SELECT EXISTS (SELECT 1 FROM realm)").fetchone()
        return bool(row and row[0])


def check(url: str) -> str | None:
    """Raise `OperatorError` unless the database is a store of this version's revision.

    Returns why its commits might not last, None when they do.
    """
    with _connected(url) as connection:
        weakness = check_server(connection)
        found = _revision(connection)
    if found is None:
        raise OperatorError(
            "store_missing",
            f"the database {without_password(url)} is no store yet",
            "set it up with 'enrolld init' or 'enrolld serve --init'",
        )
    refuse_revision(found, _REMEDY)
    return weakness


@contextlib.contextmanager
def setting_up(url: str) -> Iterator[None]:
    """Keep every other node from setting the database up, for as long. Raises `OperatorError`, `Unavailable`."""
    with _connected(url) as connection:
        connection.execute(f"SET lock_timeout = '{_SET_UP_SECONDS}s'")
        try:
            connection.execute(f"SELECT pg_advisory_lock({_SET_UP})")
        except psycopg.errors.LockNotAvailable as exc:
            raise OperatorError(
                "store_busy",
                f"another node has been setting this database up for {_SET_UP_SECONDS} s",
                "look at that node, or end its connection: SELECT * FROM pg_stat_activity WHERE application_name LIKE"
                " 'enrolld%'",
            ) from exc
        yield


def create(url: str, *, for_copy: bool = False) -> None:
    """Set up an empty database. Raises `OperatorError`, `Unavailable`; one of an earlier revision is refused.

    With `for_copy` it is marked: until a copy is whole in it, nobody else makes a CA there.
    """
    with _connected(url) as connection:
        check_server(connection)
        found = _revision(connection)
        if found is None:
            _refuse_strangers(connection, url)
        elif not for_copy and connection.execute(_MARKED).fetchone():
            raise OperatorError(
                "store_copy_unfinished",
                f"a copy into the database {without_password(url)} was cut off",
                "run 'enrolld store copy' again where the SQLite file is; to begin without it, make the database anew",
            )
    if found is not None:
        refuse_revision(found, _REMEDY)
    else:
        _migrate(url)
    if for_copy:
        with _connected(url) as connection:
            connection.execute(_MARK)


def upgrade(url: str) -> str:
    """Bring the store to this version's revision, while nodes of the version before may go on. Returns what it had.

    Raises `OperatorError`, `Unavailable`; the store is then as it was.
    """
    with setting_up(url), _connected(url) as connection:
        check_server(connection)
        found = _revision(connection)
        if found is None:
            check(url)  # which says what is wrong
        if found in EARLIER:
            _migrate(url)
        else:
            refuse_revision(found)
    return str(found)


def _migrate(url: str) -> None:
    # In a query's form, as a URL's own encodes what a conninfo holds otherwise than SQLAlchemy would.
    given = URL.create("postgresql+psycopg", query=_query(url)).render_as_string(hide_password=False)
    for tried in range(1, _TRIES + 1):
        try:
            migrate(given)
            return
        except (OperatorError, Unavailable):
            raise
        except Exception as exc:
            is_locked = isinstance(getattr(exc, "orig", None), psycopg.errors.LockNotAvailable)
            if is_locked and tried < _TRIES:
                time.sleep(tried)  # those whom the wait held up go first
                continue
            if is_locked:
                raise OperatorError(
                    "store_busy",
                    "somebody has held a table of the database for long, and an upgrade would hold up every node",
                    "end it, and try again: SELECT pid, query FROM pg_stat_activity WHERE xact_start IS NOT NULL",
                ) from exc
            raise Unavailable(f"the database could not be set up or upgraded: {sentence(exc)}") from exc


def _query(url: str) -> dict[str, str]:
    found = conninfo_to_dict(conninfo_of(url, "setup"))
    # While a statement waits for a table, everybody who comes later waits behind it.
    found["options"] = f"{found.get('options') or ''} -c lock_timeout=3s".strip()
    return {name: str(value) for name, value in found.items() if value is not None}


@contextlib.contextmanager
def _connected(url: str) -> Iterator[psycopg.Connection[Any]]:
    try:
        with contextlib.closing(connect(conninfo_of(url, "setup"))) as connection:
            yield connection
    except psycopg.Error as exc:
        said = sentence(exc)
        # A server that answers "FATAL" has refused; one that is starting will not for long.
        is_refusal = "FATAL" in said and "the database system is" not in said
        raise OperatorError(
            "store_refused" if is_refusal else "store_unreachable",
            f"the database {without_password(url)} can't be used: {said}",
            "see that the database is there, that this user may connect to it and owns it"
            if is_refusal
            else "see that the server runs, and that it can be reached from here",
        ) from exc


def _revision(connection: psycopg.Connection[Any]) -> str | None:
    row = connection.execute("SELECT to_regclass('alembic_version') IS NOT NULL").fetchone()
    if row is None or not row[0]:
        return None
    row = connection.execute("SELECT version_num FROM alembic_version").fetchone()
    return str(row[0]) if row else None


def _refuse_strangers(connection: psycopg.Connection[Any], url: str) -> None:
    row = connection.execute(
        "SELECT count(*) FROM pg_class WHERE relkind = 'r' AND relnamespace = current_schema()::regnamespace"
    ).fetchone()
    if row and row[0]:
        raise OperatorError(
            "store_not_empty",
            f"the database {without_password(url)} holds tables, and they are not enrolld's",
            "make a database of its own: createdb --encoding UTF8 --template template0 enrolld",
        )
