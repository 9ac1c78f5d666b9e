"""A chain of hashes for every writer of the audit trail, and common heads over them"""

import hashlib
import json
from collections.abc import Iterator
from typing import Any

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None

_PAGE = 2000
_COLUMNS = (
    "writer",
    "sequence",
    "format",
    "at",
    "action",
    "actor",
    "realm",
    "device",
    "serial",
    "request_id",
    "details",
)
_AUDIT = sa.table("audit", *(sa.column(name) for name in _COLUMNS), sa.column("hash", sa.LargeBinary))
_ORIGIN = ("name", "process", "host", "pid", "version", "started_at")
_WRITER = sa.table(
    "writer",
    sa.column("name", sa.String),
    *(sa.column(name) for name in _ORIGIN[1:]),
    sa.column("sequence", sa.BigInteger),
    sa.column("hash", sa.LargeBinary),
)


def upgrade() -> None:
    # Plain ADD COLUMN: batch mode would copy the tables, and lose the trigger that counts events. A version before
    # this one can go on writing: what it leaves out has a default or may be NULL.
    op.add_column("writer", sa.Column("sequence", sa.BigInteger(), nullable=False, server_default=sa.text("0")))
    op.add_column("writer", sa.Column("hash", sa.LargeBinary(), nullable=True))
    op.add_column("writer", sa.Column("headed", sa.BigInteger(), nullable=False, server_default=sa.text("0")))
    op.add_column("audit", sa.Column("hash", sa.LargeBinary(), nullable=True))
    op.create_table(
        "audit_head",
        sa.Column("number", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("at", sa.BigInteger(), nullable=False),
        sa.Column("document", sa.Text(), nullable=False),
        sa.Column("previous", sa.LargeBinary(), nullable=False),
        sa.Column("digest", sa.LargeBinary(), nullable=False),
        sa.PrimaryKeyConstraint("number", name=op.f("pk_audit_head")),
    )
    _chain(op.get_bind())
    op.create_index(
        "ix_writer_news",
        "writer",
        ["name"],
        unique=False,
        sqlite_where=sa.text("sequence <> headed"),
        postgresql_where=sa.text("sequence <> headed"),
    )


def _chain(connection: sa.Connection) -> None:
    """Link the events that are there, as of this revision: `ca_core.records.audit` may come to do it otherwise."""
    link = (
        _AUDIT.update()
        .where(_AUDIT.c.writer == sa.bindparam("of_writer"), _AUDIT.c.sequence == sa.bindparam("of_sequence"))
        .values(hash=sa.bindparam("digest"))
    )
    close = (
        _WRITER.update()
        .where(_WRITER.c.name == sa.bindparam("of_writer"))
        .values(sequence=sa.bindparam("last"), hash=sa.bindparam("digest"))
    )
    name: str | None = None
    last, digest = 0, b""
    for page in _pages(connection):
        links: list[dict[str, Any]] = []
        closed: list[dict[str, Any]] = []
        origins = _origins(connection, page[0]["writer"], page[-1]["writer"])
        for row in page:
            if row["writer"] != name:
                if name is not None:
                    closed.append({"of_writer": name, "last": last, "digest": digest})
                name = str(row["writer"])
                digest = origins.get(name, b"")
            digest = _hash(digest, row)
            last = int(row["sequence"])
            links.append({"of_writer": name, "of_sequence": last, "digest": digest})
        connection.execute(link, links)
        if closed:
            connection.execute(close, closed)
    if name is not None:
        connection.execute(close, [{"of_writer": name, "last": last, "digest": digest}])


def _origins(connection: sa.Connection, first: str, last: str) -> dict[str, bytes]:
    """What stands before the first events of the writers from `first` to `last`."""
    rows = sa.select(*(_WRITER.c[name] for name in _ORIGIN)).where(_WRITER.c.name.between(first, last))
    return {row.name: _hash(b"enrolld audit writer ", dict(row._mapping)) for row in connection.execute(rows)}


def _hash(previous: bytes, row: dict[str, Any]) -> bytes:
    canonical = json.dumps(row, sort_keys=True, separators=(",", ":"), ensure_ascii=True)
    return hashlib.sha256(previous + canonical.encode("ascii")).digest()


def _pages(connection: sa.Connection) -> Iterator[list[dict[str, Any]]]:
    """All events by writer and number, a few at a time: a million need little memory."""
    key = sa.tuple_(_AUDIT.c.writer, _AUDIT.c.sequence)
    rows = sa.select(*(_AUDIT.c[name] for name in _COLUMNS)).order_by(_AUDIT.c.writer, _AUDIT.c.sequence).limit(_PAGE)
    after: tuple[Any, Any] | None = None
    while True:
        query = rows if after is None else rows.where(key > sa.tuple_(sa.literal(after[0]), sa.literal(after[1])))
        page = [dict(row._mapping) for row in connection.execute(query)]
        if page:
            yield page
        if len(page) < _PAGE:
            return
        after = (page[-1]["writer"], page[-1]["sequence"])
