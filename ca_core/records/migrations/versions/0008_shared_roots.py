"""Realms under the root of another one"""

from alembic import op

revision = "0008"
down_revision = "0007"
branch_labels = None
depends_on = None


def upgrade() -> None:
    kind = "INTEGER" if op.get_bind().dialect.name == "sqlite" else "BIGINT"
    # As text: SQLite takes a reference with a new column, and Alembic would add it afterwards, which SQLite can't.
    refers = "CONSTRAINT fk_issuer_shared_root_id REFERENCES issuer (id)"
    op.execute(f"ALTER TABLE issuer ADD COLUMN shared_root_id {kind} {refers}")
