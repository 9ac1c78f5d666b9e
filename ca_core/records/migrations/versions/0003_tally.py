"""Kept counts of devices, certificates, secrets and audit events"""

from typing import NamedTuple

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None

# Triggers, and not steps of each unit: what a row was before an update only the database knows, and no later act can
# forget to count. A batch that is rolled back takes its counts along. PostgreSQL, which no version with this revision
# spoke, gets its triggers in 0005. A later revision that rebuilds one of these tables (batch mode, which copies and
# drops it) drops its triggers as well, and must make them anew: a test sees to that.


class _Counted(NamedTuple):
    """How the rows of a table count; `{0}` stands for NEW., OLD. or nothing."""

    table: str
    kind: str
    realm: str
    issuer: str
    state: str
    columns: str
    """What the state is made of; empty when rows are only ever added."""
    which: str
    """Which rows count; empty for all."""


_OPEN = "CASE WHEN {0}voided_at IS NOT NULL THEN 'void' WHEN {0}spent_at IS NOT NULL THEN 'spent' ELSE 'open' END"
_ALL = (
    _Counted("device", "device", "{0}realm_id", "0", "{0}state", "state", ""),
    _Counted(
        "certificate",
        "certificate",
        "{0}realm_id",
        "COALESCE({0}issuer_id, 0)",
        "{0}status",
        "status",
        "{0}kind = 'device'",
    ),
    _Counted("device_secret", "secret", "{0}realm_id", "0", _OPEN, "spent_at, voided_at", ""),
    _Counted("audit", "audit", "0", "0", "{0}action", "", ""),
)
_INTO = "INSERT INTO tally (kind, realm_id, issuer_id, state, total)"


def _values(counted: _Counted, row: str) -> str:
    return f"'{counted.kind}', {counted.realm}, {counted.issuer}, {counted.state}".format(row)


def _add(counted: _Counted, row: str, number: int) -> str:
    conflict = f"ON CONFLICT (kind, realm_id, issuer_id, state) DO UPDATE SET total = tally.total + ({number})"
    return f"{_INTO} VALUES ({_values(counted, row)}, {number}) {conflict};"


def _trigger(counted: _Counted, name: str, event: str, when: str, *body: str) -> str:
    table, condition = counted.table, f" WHEN {when}" if when else ""
    body_text = " ".join(body)
    return f"CREATE TRIGGER tally_{table}_{name} AFTER {event} ON {table} FOR EACH ROW{condition} BEGIN {body_text} END"


def _triggers(counted: _Counted) -> list[str]:
    new, old = counted.which.format("NEW."), counted.which.format("OLD.")
    found = [_trigger(counted, "insert", "INSERT", new, _add(counted, "NEW.", 1))]
    if counted.columns:
        moved = (_add(counted, "OLD.", -1), _add(counted, "NEW.", 1))
        differs = f"({counted.state.format('NEW.')}) <> ({counted.state.format('OLD.')})"
        changed = f"{new} AND {differs}" if new else differs
        found.append(_trigger(counted, "update", f"UPDATE OF {counted.columns}", changed, *moved))
        found.append(_trigger(counted, "delete", "DELETE", old, _add(counted, "OLD.", -1)))
    return found


def upgrade() -> None:
    op.create_table(
        "tally",
        sa.Column("kind", sa.String(length=16), nullable=False),
        sa.Column("realm_id", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), nullable=False),
        sa.Column("issuer_id", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), nullable=False),
        sa.Column("state", sa.String(length=40), nullable=False),
        sa.Column("total", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("kind", "realm_id", "issuer_id", "state", name=op.f("pk_tally")),
    )
    for counted in _ALL:
        where = f" WHERE {counted.which.format('')}" if counted.which else ""
        rows = f"SELECT {_values(counted, '')}, COUNT(*) FROM {counted.table}{where} GROUP BY 1, 2, 3, 4"  # noqa: S608  # all of it stands above
        op.execute(f"{_INTO} {rows}")
        for trigger in _triggers(counted) if op.get_bind().dialect.name == "sqlite" else ():
            op.execute(trigger)
