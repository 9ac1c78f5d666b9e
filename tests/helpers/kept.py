"""Stores of released versions, kept as SQL so that every later version is tested from them.

`python -m tests.helpers.kept` writes those of the present revision; do that once, when a version is released, and never
again for a revision that is there.
"""

import asyncio
import base64
import contextlib
import json
import sqlite3
import subprocess
import tempfile
from pathlib import Path
from types import SimpleNamespace
from unittest import mock

import psycopg
from cryptography.hazmat.primitives import serialization

from ca_core.core import Core
from ca_core.records import audit
from ca_core.records.migrating import HEAD
from tests.helpers.core import (
    ME,
    Installation,
    PrivateKey,
    SetClock,
    ask,
    code_of,
    csr_of,
    enrolled,
    make_installation,
    new_key,
)
from tests.helpers.postgres import Postgres, running_postgres

FIXTURES = Path(__file__).parents[1] / "ca_core" / "records" / "fixtures"
REVISIONS = sorted(path.name.removesuffix(".json") for path in FIXTURES.glob("*.json"))


def load(revision: str, folder: Path, postgres: Postgres | None, database: str = "") -> Installation:
    """The kept store as an installation under `folder`: in a SQLite file, or in the empty `database` of `postgres`."""
    folder.mkdir(mode=0o700)
    (folder / "keys").mkdir(mode=0o700)
    key = folder / "keys" / "unlock"
    key.touch(0o600)
    key.write_bytes(base64.b64decode(facts(revision)["unlock"]))
    if postgres is None:
        with contextlib.closing(sqlite3.connect(folder / "enrolld.db")) as connection:
            connection.executescript((FIXTURES / f"{revision}.sqlite.sql").read_text())
        return Installation(folder, SetClock())
    with contextlib.closing(psycopg.connect(postgres.url(database), autocommit=True)) as owner:
        owner.execute((FIXTURES / f"{revision}.postgresql.sql").read_bytes())
    return Installation(folder, SetClock(), postgres, database)


def facts(revision: str) -> dict[str, str]:
    """What else is known of it: the unlock key, and what some of its devices hold (base64)."""
    kept: dict[str, str] = json.loads((FIXTURES / f"{revision}.json").read_text())
    return kept


def key_of(text: str) -> PrivateKey:
    """A device's key."""
    key = serialization.load_der_private_key(base64.b64decode(text), None)
    assert isinstance(key, PrivateKey)
    return key


async def _live(core: Core) -> dict[str, str]:
    """A bit of everything that a store holds."""
    one = await enrolled(core, "d-1")
    two = await enrolled(core, "d-2", realm="other")
    await enrolled(core, "d-3")
    assert await code_of(core, one.evidence, csr_of(new_key(), "d-2")) != "issued"
    renewed = await ask(core, one.evidence, csr_of(one.key, "d-1"))
    await core.certificates.revoke(two.serial, reason="keyCompromise", actor=ME)
    await core.devices.suspend("default", "d-3", actor=ME)
    handed = await core.devices.add("default", "d-4", actor=ME)
    await core.crls.publish(only_due=True)
    await core.leases.hold("chores", 10)
    await core.audit.make_heads()
    der = one.key.private_bytes(
        serialization.Encoding.DER, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    return {
        "d-1 key": base64.b64encode(der).decode(),
        "d-1 certificate": base64.b64encode(renewed.certificate).decode(),
        "d-2 certificate": base64.b64encode(two.certificate).decode(),
        "d-4 secret": handed.secret,
    }


def _keep() -> None:
    FIXTURES.mkdir(exist_ok=True)
    if (FIXTURES / f"{HEAD}.json").exists():
        raise SystemExit(f"revision {HEAD} is kept already")
    with (
        tempfile.TemporaryDirectory() as name,
        running_postgres() as postgres,
        # Of the machine where it is made, nothing: the first events' hashes cover this.
        mock.patch.object(audit, "socket", SimpleNamespace(gethostname=lambda: "pki.example.com")),
        mock.patch.object(audit, "os", SimpleNamespace(getpid=lambda: 1)),
    ):
        made = make_installation(Path(name) / "made", postgres)

        async def live() -> dict[str, str]:
            core = made.open()
            try:
                return await _live(core)
            finally:
                core.close()

        held = asyncio.run(live())
        dumped = subprocess.run(
            ["pg_dump", "--inserts", "--no-owner", "--no-privileges", made.store_url],
            stdout=subprocess.PIPE,
            check=True,
            text=True,
        ).stdout
        lines = [line for line in dumped.splitlines() if not line.startswith(("--", "\\")) and line]
        (FIXTURES / f"{HEAD}.postgresql.sql").write_text("\n".join(lines) + "\n")
        unlock = base64.b64encode(made.unlock_key.read_bytes()).decode()
        embedded = Installation(Path(name) / "embedded", SetClock())
        embedded.directory.mkdir()
        _copy(made, embedded)
        with contextlib.closing(sqlite3.connect(embedded.directory / "enrolld.db")) as connection:
            (FIXTURES / f"{HEAD}.sqlite.sql").write_text("\n".join(connection.iterdump()) + "\n")
        (FIXTURES / f"{HEAD}.json").write_text(json.dumps({"unlock": unlock, **held}, indent=2) + "\n")


def _copy(source: Installation, target: Installation) -> None:
    """The same rows in a SQLite file."""
    from ca_core.records.opening import create_store
    from ca_core.records.schema import metadata

    create_store(target.store_url)
    with contextlib.closing(sqlite3.connect(target.directory / "enrolld.db")) as connection, connection:
        # Which would count every row once more.
        triggers = connection.execute("SELECT name, sql FROM sqlite_master WHERE type = 'trigger'").fetchall()
        for trigger, _ in triggers:
            connection.execute(f"DROP TRIGGER {trigger}")
        for table in metadata.sorted_tables:
            columns = [column.name for column in table.columns]
            rows = source.sql(f"SELECT {', '.join(columns)} FROM {table.name}")  # noqa: S608  # names of the schema
            marks = ", ".join("?" * len(columns))
            connection.executemany(
                f"INSERT INTO {table.name} ({', '.join(columns)}) VALUES ({marks})",  # noqa: S608  # likewise
                rows,
            )
        for _, sql in triggers:
            connection.execute(sql)


if __name__ == "__main__":
    _keep()
