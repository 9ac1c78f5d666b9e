"""Steps back of the clock that an operator has accepted, and requests that wait without their secrets"""

import sqlalchemy as sa
from alembic import op

from ca_core.csr_parts import without_secrets

revision = "0010"
down_revision = "0009"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "clock_step",
        sa.Column("id", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), nullable=False),
        sa.Column("accepted_at", sa.BigInteger(), nullable=False),
        sa.Column("first_at", sa.BigInteger(), nullable=False),
        sa.Column("newest_at", sa.BigInteger(), nullable=False),
        sa.Column("head", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_clock_step")),
    )
    # A SCEP request as it came holds the one-time secret, or the realm's challenge.
    request = sa.table("request", sa.column("id"), sa.column("csr"))
    bind = op.get_bind()
    for number, csr in bind.execute(sa.select(request.c.id, request.c.csr)).all():
        bind.execute(sa.update(request).where(request.c.id == number).values(csr=without_secrets(bytes(csr))))
