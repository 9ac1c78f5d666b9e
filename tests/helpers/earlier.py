"""Stores of earlier revisions, made of one of today by taking away what came later."""

import contextlib
import runpy
import sqlite3
from pathlib import Path

from ca_core.records import migrating

__all__ = ["take_back"]

_REVISIONS = Path(migrating.__file__).with_name("migrations") / "versions"
_TRIGGERS = ("device", "certificate", "device_secret")
_TO_0009 = "DROP TABLE clock_step;"
_TO_0008 = """
DROP TRIGGER device_name_insert;
DROP TRIGGER device_name_update;
DROP TABLE device_name;
DROP INDEX ix_request_expires;
DROP INDEX ix_device_serial_number;
ALTER TABLE admitted DROP COLUMN unproven;
ALTER TABLE certificate DROP COLUMN name_keys;
"""
_TO_0007 = "ALTER TABLE issuer DROP COLUMN shared_root_id;"
_TO_0006 = """
DROP TABLE request;
DROP TABLE admitted;
"""
_TO_0005 = """
DROP INDEX ix_device_state;
DROP INDEX ix_device_overdue;
DROP INDEX ix_device_not_after;
DROP INDEX ix_audit_device;
DROP TABLE device_import;
DROP TABLE device_import_row;
ALTER TABLE device DROP COLUMN not_after;
ALTER TABLE device DROP COLUMN expected_renewal_at;
ALTER TABLE device DROP COLUMN overdue_at;
ALTER TABLE device DROP COLUMN renewal_shares;
ALTER TABLE device DROP COLUMN import_id;
ALTER TABLE device DROP COLUMN replaced_by_id;
ALTER TABLE certificate DROP COLUMN superseded_at;
ALTER TABLE attempt DROP COLUMN claimed;
ALTER TABLE attempt DROP COLUMN claimed_serial;
ALTER TABLE attempt DROP COLUMN key_sha256;
"""
_TO_0003 = """
DROP TABLE audit_head;
DROP INDEX ix_writer_news;
ALTER TABLE writer DROP COLUMN sequence;
ALTER TABLE writer DROP COLUMN hash;
ALTER TABLE writer DROP COLUMN headed;
ALTER TABLE audit DROP COLUMN hash;
"""
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


def _to_0004() -> str:
    """The tally without shards, and the triggers that kept it."""
    tally = runpy.run_path(str(_REVISIONS / "0003_tally.py"))
    names = [f"tally_{table}_{event}" for table in _TRIGGERS for event in ("insert", "update", "delete")]
    drop = "".join(f"DROP TRIGGER {name};" for name in [*names, "tally_audit_insert"])
    keep = """
    CREATE TABLE tally_old (kind VARCHAR(16) NOT NULL, realm_id INTEGER NOT NULL, issuer_id INTEGER NOT NULL,
        state VARCHAR(40) NOT NULL, total BIGINT NOT NULL,
        CONSTRAINT pk_tally PRIMARY KEY (kind, realm_id, issuer_id, state));
    INSERT INTO tally_old SELECT kind, realm_id, issuer_id, state, total FROM tally;
    DROP TABLE tally;
    ALTER TABLE tally_old RENAME TO tally;
    """
    return drop + keep + "".join(f"{made};" for counted in tally["_ALL"] for made in tally["_triggers"](counted))


_BACK = {
    "0009": _TO_0009,
    "0008": _TO_0008,
    "0007": _TO_0007,
    "0006": _TO_0006,
    "0005": _TO_0005,
    "0004": _to_0004(),
    "0003": _TO_0003,
    "0002": _TO_0002,
    "0001": _TO_0001,
}


def take_back(database: Path, revision: str) -> None:
    """Make the store one of this revision."""
    with contextlib.closing(sqlite3.connect(database)) as connection:
        for step, statements in _BACK.items():
            connection.executescript(statements)
            if step == revision:
                break
        connection.execute("UPDATE alembic_version SET version_num = ?", (revision,))
        connection.commit()
