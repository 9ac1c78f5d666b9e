"""SCEP: transactions, and how often a tolerance was used"""

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("certificate", sa.Column("transaction_id", sa.Text(), nullable=True))
    op.create_index(
        "ix_certificate_transaction",
        "certificate",
        ["realm_id", "transaction_id"],
        unique=False,
        sqlite_where=sa.text("transaction_id IS NOT NULL"),
        postgresql_where=sa.text("transaction_id IS NOT NULL"),
    )
    op.add_column("attempt", sa.Column("transaction_id", sa.Text(), nullable=True))
    op.create_table(
        "tolerance_use",
        sa.Column("realm_id", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), nullable=False),
        sa.Column("name", sa.String(length=32), nullable=False),
        sa.Column("uses", sa.BigInteger(), nullable=False),
        sa.Column("last_at", sa.BigInteger(), nullable=False),
        sa.ForeignKeyConstraint(["realm_id"], ["realm.id"], name=op.f("fk_tolerance_use_realm_id")),
        sa.PrimaryKeyConstraint("realm_id", "name", name=op.f("pk_tolerance_use")),
    )
