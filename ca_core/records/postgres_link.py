"""Connections to PostgreSQL: how they are made, what is sent over them, and what their errors mean."""

import hashlib
import re
from collections.abc import Iterable, Mapping
from typing import Any

import psycopg
from psycopg import conninfo
from psycopg.types.numeric import Int8BinaryDumper
from psycopg.types.string import BytesBinaryDumper
from sqlalchemy import types
from sqlalchemy.dialects.postgresql.psycopg import PGDialect_psycopg

from ca_core.errors import OperatorError, Unavailable
from ca_core.records.query import Query, Value

__all__ = [
    "NOW",
    "check_server",
    "clean",
    "connect",
    "lock_number",
    "numbered",
    "parameters",
    "sentence",
    "without_password",
]

NOW = "SELECT extract(epoch FROM clock_timestamp())::float8"
"""The database's clock, in seconds since 1970."""
_OLDEST = 14
_ENCODED = "In a password, write @ as %40, / as %2f, : as %3a, # as %23, ? as %3f and % as %25."
_DEFAULTS: dict[str, str | int] = {
    "connect_timeout": 5,
    # A server that vanished is noticed in half a minute, not in the two hours that the kernel would take.
    "keepalives_idle": 10,
    "keepalives_interval": 5,
    "keepalives_count": 3,
    "tcp_user_timeout": 20_000,
    # With several servers in the URL, the one that can be written.
    "target_session_attrs": "read-write",
}
SETTINGS = {
    # The server drops a transaction whose client vanished, and with it the locks that others wait for.
    "idle_in_transaction_session_timeout": "5s",
    "client_connection_check_interval": "2s",
    "tcp_keepalives_idle": "10",
    "tcp_keepalives_interval": "5",
    "tcp_keepalives_count": "3",
    "lock_timeout": "10s",
    "statement_timeout": "120s",
    "DateStyle": "ISO",
}


class _Bytes(types.LargeBinary):
    render_bind_cast = True  # a NULL among bytes would be taken for text


class _Dialect(PGDialect_psycopg):
    def __init__(self) -> None:
        super().__init__(paramstyle="numeric_dollar")  # type: ignore[no-untyped-call]

    supports_statement_cache = True
    colspecs = {**PGDialect_psycopg.colspecs, types.LargeBinary: _Bytes}  # noqa: RUF012  # the base class's way


DIALECT = _Dialect()


def numbered(query: Query) -> tuple[str, tuple[tuple[str, Any], ...]]:
    """The statement's text with `$1`, `$2`, and the name and constant of each."""
    return query.numbered(DIALECT)


def parameters(names: Iterable[tuple[str, Any]], params: Mapping[str, Value]) -> list[Value]:
    """The values of numbered parameters. Raises KeyError for one that nobody gave."""
    found: list[Value] = []
    for name, constant in names:
        value = params[name] if constant is None or name in params else constant
        found.append(clean(value) if isinstance(value, str) else value)
    return found


def clean(text: str) -> str:
    """Text as PostgreSQL can hold it: NUL and halves of surrogate pairs, which only a hostile peer sends, replaced."""
    if "\0" in text:
        text = text.replace("\0", "\ufffd")
    return text if text.isascii() else text.encode("utf-8", "replace").decode()


def conninfo_of(url: str, process: str) -> str:
    """What libpq is given for the URL. Raises `OperatorError`."""
    try:
        given = conninfo.conninfo_to_dict(url)
    except psycopg.ProgrammingError as exc:
        raise OperatorError(
            "store_url",
            # libpq quotes what it could not read, which may be a part of the password.
            "the store's URL is not one of PostgreSQL: " + re.sub(r'"[^"]*"', '"..."', sentence(exc)),
            f"use postgresql://USER@HOST:PORT/DATABASE; libpq's options may follow a question mark. {_ENCODED}",
        ) from exc
    for part in ("host", "port", "dbname", "user"):
        if "@" in str(given.get(part, "")):
            raise OperatorError("store_url", f"the store's URL has an @ in its {part}", _ENCODED)
    if re.fullmatch(r"[0-9,]*", str(given.get("port", ""))) is None:
        raise OperatorError("store_url", "the store's URL has a port that is no number", _ENCODED)
    settings: dict[str, Any] = {**_DEFAULTS, "application_name": f"enrolld {process}", **given}
    settings["client_encoding"] = "UTF8"  # whatever a role or the environment says: it is what text is read as
    return conninfo.make_conninfo(**settings)


def connect(text: str) -> psycopg.Connection[tuple[Any, ...]]:
    """A connection in autocommit mode whose commits are durable when they return. Raises psycopg.Error."""
    connection = psycopg.connect(text, autocommit=True, cursor_factory=psycopg.RawCursor)
    try:
        prepare(connection)
        _settle(connection)
    except BaseException:
        connection.close()
        raise
    return connection


def prepare(connection: psycopg.Connection[Any]) -> None:
    """How values travel, and how soon a statement is prepared on the server."""
    # One type for all numbers: a statement is prepared anew for each combination of types.
    connection.adapters.register_dumper(int, Int8BinaryDumper)
    connection.adapters.register_dumper(bytes, BytesBinaryDumper)
    connection.prepare_threshold = 2
    connection.prepared_max = 400


SETTLE = "SELECT " + ", ".join(f"set_config('{name}', '{value}', false)" for name, value in SETTINGS.items())


def _settle(connection: psycopg.Connection[Any]) -> None:
    connection.execute(SETTLE)
    # A server, database or role may have it off, which would answer before a certificate is durable.
    connection.execute(
        "SELECT set_config('synchronous_commit', 'on', false) WHERE current_setting('synchronous_commit') = 'off'"
    )


def check_server(connection: psycopg.Connection[Any]) -> str | None:
    """Why commits on this server might not last, None when they do. Raises `OperatorError` where it can't be used."""
    version = connection.info.server_version // 10_000
    if version < _OLDEST:
        raise OperatorError(
            "store_version", f"the database server is PostgreSQL {version}", f"use PostgreSQL {_OLDEST} or newer"
        )
    row = connection.execute(
        "SELECT current_setting('server_encoding'), current_setting('fsync'), current_setting('full_page_writes')"
    ).fetchone()
    encoding, fsync, pages = row or ("", "", "")
    if encoding != "UTF8":
        raise OperatorError(
            "store_encoding",
            f"the database's encoding is {encoding}",
            "make it with: createdb --encoding UTF8 --template template0",
        )
    if "off" in (fsync, pages):
        off = "fsync" if fsync == "off" else "full_page_writes"
        return f"the database server runs with {off} off, so that a crash of its machine would lose certificates"
    return None


def lock_number(name: str) -> int:
    """The number by which PostgreSQL knows an advisory lock of ours."""
    digest = hashlib.blake2b(name.encode("utf-8", "replace"), digest_size=8, person=b"enrolld").digest()
    return int.from_bytes(digest, "big", signed=True)


def sentence(exc: BaseException) -> str:
    """What the database said, in one line."""
    return re.sub(r"\s+", " ", str(exc)).strip()[:300] or type(exc).__name__


def unreachable(exc: BaseException) -> Unavailable:
    """The database can't be used; the reason is for the operator."""
    return Unavailable(f"the database can't be used: {sentence(exc)}")


def without_password(url: str) -> str:
    """The URL as it may be shown."""
    # Up to the last @, whatever stands before it: rather too much than a part of a password that was not encoded.
    masked = re.sub(r"(?i)\b((?:ssl)?password)=[^&]*", r"\1=***", url)
    return re.sub(r"(://[^:@/]*:).*@", r"\1***@", masked, flags=re.DOTALL)
