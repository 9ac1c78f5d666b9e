"""Devices: import of lists, expected renewals, replacement, and what unknown callers claim"""

import sqlalchemy as sa
from alembic import op

revision = "0006"
down_revision = "0005"
branch_labels = None
depends_on = None

_ID = sa.BigInteger().with_variant(sa.Integer(), "sqlite")
_COLUMNS = (
    ("device", sa.Column("not_after", sa.BigInteger())),
    ("device", sa.Column("expected_renewal_at", sa.BigInteger())),
    ("device", sa.Column("overdue_at", sa.BigInteger())),
    ("device", sa.Column("renewal_shares", sa.String(length=40))),
    ("device", sa.Column("import_id", _ID)),
    ("device", sa.Column("replaced_by_id", _ID)),
    ("certificate", sa.Column("superseded_at", sa.BigInteger())),
    ("attempt", sa.Column("claimed", sa.String(length=64))),
    ("attempt", sa.Column("claimed_serial", sa.String(length=64))),
    ("attempt", sa.Column("key_sha256", sa.LargeBinary())),
)
_MAY_BE_OVERDUE = "state = 'active' AND last_seen_at < overdue_at"
_IS_OPERATORS_ACT = "device IS NOT NULL AND (substr(action, 1, 7) = 'device.' OR action = 'secret.made')"
_INDEXES = (
    ("ix_device_state", "device", ["realm_id", "state", "id"], None),
    ("ix_device_overdue", "device", ["realm_id", "overdue_at", "id"], _MAY_BE_OVERDUE),
    ("ix_device_not_after", "device", ["realm_id", "not_after", "id"], "not_after IS NOT NULL"),
    ("ix_audit_device", "audit", ["realm", "device", "at"], _IS_OPERATORS_ACT),
)
# Once: what is expected of those that have a certificate, by the shares that are assumed of everybody (two thirds of a
# certificate's life, and a twentieth of leeway). A node of the version before leaves these columns as they are.
_NEWEST = (
    "(SELECT c.id FROM certificate c WHERE c.realm_id = device.realm_id AND c.device_id = device.id"
    " ORDER BY c.id DESC LIMIT 1)"
)
_EXPECT = """
UPDATE device SET (not_after, expected_renewal_at, overdue_at) = (
    SELECT c.not_after,
        c.not_before + (c.not_after - c.not_before) / 1000 * 667,
        c.not_before + (c.not_after - c.not_before) / 1000 * 717
    FROM certificate c WHERE c.id = {newest} AND c.status = 'valid'
) WHERE state IN ('active', 'suspended')
"""


# PostgreSQL keeps every version of a row until the transaction's end, and looks through them all to find the last: with
# a trigger for each row, an import of 100,000 devices would change one row of the tally as often, in quadratic time.
_COUNT_ADDED = """
CREATE FUNCTION tally_{table}_insert_all() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
    INSERT INTO tally (kind, realm_id, issuer_id, state, shard, total)
    SELECT '{kind}', realm_id, 0, {state},
        COALESCE(NULLIF(current_setting('enrolld.shard', true), ''), '0')::integer, count(*)
    FROM added GROUP BY realm_id, {state}
    ON CONFLICT (kind, realm_id, issuer_id, state, shard) DO UPDATE SET total = tally.total + excluded.total;
    RETURN NULL;
END $$;
DROP TRIGGER tally_{table}_insert ON {table};
DROP FUNCTION tally_{table}_insert();
CREATE TRIGGER tally_{table}_insert AFTER INSERT ON {table} REFERENCING NEW TABLE AS added
    FOR EACH STATEMENT EXECUTE FUNCTION tally_{table}_insert_all()
"""
_OPEN = "CASE WHEN voided_at IS NOT NULL THEN 'void' WHEN spent_at IS NOT NULL THEN 'spent' ELSE 'open' END"
_COUNTED = (("device", "device", "state"), ("device_secret", "secret", _OPEN))


def upgrade() -> None:
    if op.get_bind().dialect.name != "sqlite":
        for table, kind, state in _COUNTED:
            op.execute(_COUNT_ADDED.format(table=table, kind=kind, state=state))
    for table, column in _COLUMNS:
        op.add_column(table, column)
    op.create_table(
        "device_import",
        sa.Column("id", _ID, nullable=False),
        sa.Column("realm_id", _ID, nullable=False),
        sa.Column("batch", sa.String(length=16), nullable=False),
        sa.Column("created_at", sa.BigInteger(), nullable=False),
        sa.Column("actor", sa.Text(), nullable=False),
        sa.Column("file_sha256", sa.LargeBinary(), nullable=False),
        sa.Column("devices", sa.BigInteger(), nullable=False),
        sa.ForeignKeyConstraint(["realm_id"], ["realm.id"], name="fk_device_import_realm_id"),
        sa.PrimaryKeyConstraint("id", name="pk_device_import"),
        sa.UniqueConstraint("batch", name="uq_device_import_batch"),
    )
    op.create_table(
        "device_import_row",
        sa.Column("batch", sa.String(length=16), nullable=False),
        sa.Column("number", sa.BigInteger(), nullable=False),
        sa.Column("staged_at", sa.BigInteger(), nullable=False),
        sa.Column("name", sa.String(length=64), nullable=False),
        sa.Column("profile", sa.String(length=31)),
        sa.Column("serial_number", sa.Text()),
        sa.Column("manufacturer", sa.Text()),
        sa.Column("names", sa.Text(), nullable=False),
        sa.Column("owner", sa.Text()),
        sa.Column("selector", sa.String(length=16)),
        sa.Column("hash", sa.LargeBinary()),
        sa.Column("expires_at", sa.BigInteger()),
        sa.PrimaryKeyConstraint("batch", "number", name="pk_device_import_row"),
    )
    op.execute(_EXPECT.format(newest=_NEWEST))
    for name, table, columns, condition in _INDEXES:
        where = sa.text(condition) if condition is not None else None
        op.create_index(name, table, columns, sqlite_where=where, postgresql_where=where)
