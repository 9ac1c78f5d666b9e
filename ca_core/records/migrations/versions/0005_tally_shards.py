"""A tally that many writers keep at once, and the triggers of PostgreSQL"""

from typing import NamedTuple

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None

# A row that counts is written by every unit of its kind, and stays locked until the writer's commit: with one row, all
# writers of all nodes would queue. Each connection that writes therefore has a shard of its own (the setting
# `enrolld.shard`, which PostgreSQL keeps per connection); the count is the sum. SQLite, which has one writer at a time,
# knows shard 0 alone.


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
_INTO = "INSERT INTO tally (kind, realm_id, issuer_id, state, shard, total)"
_SHARDS = {"sqlite": "0", "postgresql": "COALESCE(NULLIF(current_setting('enrolld.shard', true), ''), '0')::integer"}


def _values(counted: _Counted, row: str) -> str:
    return f"'{counted.kind}', {counted.realm}, {counted.issuer}, {counted.state}".format(row)


def _add(counted: _Counted, row: str, number: int, shard: str) -> str:
    conflict = f"ON CONFLICT (kind, realm_id, issuer_id, state, shard) DO UPDATE SET total = tally.total + ({number})"
    return f"{_INTO} VALUES ({_values(counted, row)}, {shard}, {number}) {conflict};"


class _Trigger(NamedTuple):
    name: str
    event: str
    when: str
    body: str


def _triggers(counted: _Counted, shard: str) -> list[_Trigger]:
    new, old = counted.which.format("NEW."), counted.which.format("OLD.")
    found = [_Trigger("insert", "INSERT", new, _add(counted, "NEW.", 1, shard))]
    if counted.columns:
        moved = _add(counted, "OLD.", -1, shard) + " " + _add(counted, "NEW.", 1, shard)
        differs = f"({counted.state.format('NEW.')}) <> ({counted.state.format('OLD.')})"
        changed = f"{new} AND {differs}" if new else differs
        found.append(_Trigger("update", f"UPDATE OF {counted.columns}", changed, moved))
        found.append(_Trigger("delete", "DELETE", old, _add(counted, "OLD.", -1, shard)))
    return found


def _make_trigger(table: str, trigger: _Trigger, dialect: str) -> None:
    name = f"tally_{table}_{trigger.name}"
    condition = f" WHEN ({trigger.when})" if trigger.when else ""
    begin = f"CREATE TRIGGER {name} AFTER {trigger.event} ON {table} FOR EACH ROW{condition}"
    if dialect == "sqlite":
        op.execute(f"{begin} BEGIN {trigger.body} END")
        return
    op.execute(
        f"CREATE FUNCTION {name}() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN {trigger.body} RETURN NULL; END $$"
    )
    op.execute(f"{begin} EXECUTE FUNCTION {name}()")


def upgrade() -> None:
    dialect = op.get_bind().dialect.name
    if dialect == "sqlite":
        for counted in _ALL:
            for trigger in _triggers(counted, ""):
                op.execute(f"DROP TRIGGER tally_{counted.table}_{trigger.name}")
    op.create_table(
        "tally_sharded",
        sa.Column("kind", sa.String(length=16), nullable=False),
        sa.Column("realm_id", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), nullable=False),
        sa.Column("issuer_id", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), nullable=False),
        sa.Column("state", sa.String(length=40), nullable=False),
        sa.Column("shard", sa.Integer(), nullable=False),
        sa.Column("total", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("kind", "realm_id", "issuer_id", "state", "shard", name="pk_tally_sharded"),
    )
    op.execute(
        "INSERT INTO tally_sharded (kind, realm_id, issuer_id, state, shard, total)"
        " SELECT kind, realm_id, issuer_id, state, 0, total FROM tally"
    )
    op.drop_table("tally")
    op.rename_table("tally_sharded", "tally")
    if dialect != "sqlite":
        op.execute("ALTER INDEX pk_tally_sharded RENAME TO pk_tally")
    for counted in _ALL:
        for trigger in _triggers(counted, _SHARDS[dialect]):
            _make_trigger(counted.table, trigger, dialect)
