"""How Alembic reaches the store: the URL comes in the configuration's attributes."""

from alembic import context
from sqlalchemy import create_engine, pool

from ca_core.records.schema import metadata


def run() -> None:
    """Run the revisions that the store lacks, each in a transaction of its own."""
    engine = create_engine(context.config.attributes["url"], poolclass=pool.NullPool)
    with engine.connect() as connection:
        context.configure(
            connection=connection,
            target_metadata=metadata,
            render_as_batch=True,
            transaction_per_migration=True,
        )
        with context.begin_transaction():
            context.run_migrations()
    engine.dispose()


run()
