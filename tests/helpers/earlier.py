"""Stores of earlier revisions, made of one of today by taking away what came later."""

import contextlib
import sqlite3
from pathlib import Path

__all__ = ["take_back"]

_TRIGGERS = ("device", "certificate", "device_secret")
_TO_0002 = (
    "".join(f"DROP TRIGGER tally_{table}_{event};" for table in _TRIGGERS for event in ("insert", "update", "delete"))
    + "DROP TRIGGER tally_audit_insert; DROP TABLE tally;"
)
_TO_0001 = """
DROP TABLE tolerance_use;
DROP INDEX ix_certificate_transaction;
ALTER TABLE certificate DROP COLUMN transaction_id;
ALTER TABLE attempt DROP COLUMN transaction_id;
"""
_STEPS = {"0002": _TO_0002, "0001": _TO_0002 + _TO_0001}


def take_back(database: Path, revision: str) -> None:
    """Make the store one of this revision."""
    with contextlib.closing(sqlite3.connect(database)) as connection:
        connection.executescript(
            f"{_STEPS[revision]} UPDATE alembic_version SET version_num = '{revision}';"  # noqa: S608  # of above
        )
