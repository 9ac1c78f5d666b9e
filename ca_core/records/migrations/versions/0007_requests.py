"""Requests that wait for an operator, and how many devices a realm admitted on a day"""

import sqlalchemy as sa
from alembic import op

revision = "0007"
down_revision = "0006"
branch_labels = None
depends_on = None


def _id() -> sa.types.TypeEngine[int]:
    return sa.BigInteger().with_variant(sa.Integer(), "sqlite")


def upgrade() -> None:
    op.create_table(
        "request",
        sa.Column("id", _id(), nullable=False),
        sa.Column("realm_id", _id(), nullable=False),
        sa.Column("device", sa.String(length=64), nullable=False),
        sa.Column("profile", sa.String(length=31), nullable=False),
        sa.Column("protocol", sa.String(length=8), nullable=False),
        sa.Column("operation", sa.String(length=24), nullable=False),
        sa.Column("means", sa.String(length=16), nullable=False),
        sa.Column("subject", sa.Text(), nullable=False),
        sa.Column("names", sa.Text(), nullable=False),
        sa.Column("key", sa.String(length=32), nullable=False),
        sa.Column("request_key", sa.LargeBinary(), nullable=False),
        sa.Column("spki_sha256", sa.LargeBinary(), nullable=False),
        sa.Column("signer_key", sa.LargeBinary(), nullable=False),
        sa.Column("csr", sa.LargeBinary(), nullable=False),
        sa.Column("evidence", sa.Text(), nullable=False),
        sa.Column("source", sa.Text(), nullable=False),
        sa.Column("source_of", sa.Text(), nullable=False),
        sa.Column("request_id", sa.String(length=16), nullable=False),
        sa.Column("transaction_id", sa.Text(), nullable=True),
        sa.Column("state", sa.String(length=16), nullable=False),
        sa.Column("requested_at", sa.BigInteger(), nullable=False),
        sa.Column("expires_at", sa.BigInteger(), nullable=False),
        sa.Column("decided_at", sa.BigInteger(), nullable=True),
        sa.Column("decided_by", sa.Text(), nullable=True),
        sa.Column("reason", sa.Text(), nullable=True),
        sa.Column("certificate_id", _id(), nullable=True),
        sa.ForeignKeyConstraint(["realm_id"], ["realm.id"], name=op.f("fk_request_realm_id")),
        sa.ForeignKeyConstraint(
            ["realm_id", "certificate_id"],
            ["certificate.realm_id", "certificate.id"],
            name=op.f("fk_request_realm_id_certificate_id"),
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_request")),
    )
    op.create_index(op.f("ix_request_realm_id_request_key"), "request", ["realm_id", "request_key"], unique=False)
    op.create_index(op.f("ix_request_realm_id_spki_sha256"), "request", ["realm_id", "spki_sha256"], unique=False)
    op.create_index(
        "ix_request_transaction",
        "request",
        ["realm_id", "transaction_id"],
        unique=False,
        sqlite_where=sa.text("transaction_id IS NOT NULL"),
        postgresql_where=sa.text("transaction_id IS NOT NULL"),
    )
    op.create_index(
        "ix_request_open",
        "request",
        ["realm_id", "source_of"],
        unique=False,
        sqlite_where=sa.text("state = 'pending'"),
        postgresql_where=sa.text("state = 'pending'"),
    )
    op.create_table(
        "admitted",
        sa.Column("realm_id", _id(), nullable=False),
        sa.Column("day", sa.BigInteger(), nullable=False),
        sa.Column("total", sa.BigInteger(), nullable=False),
        sa.ForeignKeyConstraint(["realm_id"], ["realm.id"], name=op.f("fk_admitted_realm_id")),
        sa.PrimaryKeyConstraint("realm_id", "day", name=op.f("pk_admitted")),
    )
