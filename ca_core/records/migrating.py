"""The revisions of the schema, and the way from one to the next."""

import logging
import warnings
from pathlib import Path

from ca_core.errors import OperatorError

__all__ = ["EARLIER", "HEAD", "migrate", "refuse_revision"]

HEAD = "0010"
"""The revision of the schema that this version speaks."""
EARLIER = ("0001", "0002", "0003", "0004", "0005", "0006", "0007", "0008", "0009")
"""Those that can be brought up to it."""


def refuse_revision(found: str | None, remedy: str = "stop the daemon and run 'enrolld upgrade'") -> None:
    """Raise `OperatorError` unless a store of the revision `found` can be worked with as it is.

    `remedy` is for one of an earlier revision.
    """
    if found == HEAD:
        return
    if found in EARLIER:
        raise OperatorError(
            "store_outdated", f"the store is of revision {found}, and this version needs {HEAD}", remedy
        )
    relation = "newer than" if found is not None and found > HEAD else "not"
    raise OperatorError(
        "store_revision",
        f"the store is of revision {found or 'none'}, {relation} what this version knows ({HEAD})",
        "use the version of enrolld that brought it there, or a newer one",
    )


def migrate(url: str) -> None:
    """Bring the database at `url` (SQLAlchemy's form) to `HEAD`, each revision in a transaction of its own."""
    # Alembic is slow to import, and only the commands that make or upgrade a store need it.
    from alembic import command
    from alembic.config import Config

    logging.getLogger("alembic").setLevel(logging.WARNING)
    config = Config()
    config.set_main_option("script_location", str(Path(__file__).with_name("migrations")))
    config.set_main_option("path_separator", "os")
    config.attributes["url"] = url
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        command.upgrade(config, "head")
