"""A core to test with: made once per process, copied for each test, with a clock that stands until it is set."""

import asyncio
import contextlib
import datetime as dt
import itertools
import json
import shutil
import sqlite3
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from sqlalchemy import literal, select

from ca_core.authority.sealing import UnlockKey
from ca_core.core import Core, CoreConfig
from ca_core.csr import ParsedCsr
from ca_core.errors import Refusal
from ca_core.model import Call, Evidence, Issued, Operation, Refused, format_serial
from ca_core.records.query import Query
from ca_core.records.store import Hook
from ca_core.records.unit import Guard, Unit
from tests.helpers.bad_csr import PrivateKey as PrivateKey  # for whoever has an `Enrolled`
from tests.helpers.bad_csr import good_csr
from tests.helpers.postgres import Postgres

START = dt.datetime(2026, 11, 22, 12, tzinfo=dt.UTC)
PUBLIC_URL = "http://pki.example.com"
OTHER_URL = "http://other-pki.example.com:8080"
OTHER_HOST = "other.example.com"
CALL = Call("test-0001", "est", "simpleenroll", "192.0.2.1")
ME = "operator:test"
_numbers = itertools.count(1)


class SetClock:
    """A clock that stands until it is set."""

    def __init__(self, now: dt.datetime = START) -> None:
        self.now = now

    def __call__(self) -> dt.datetime:
        return self.now

    def forward(self, **units: float) -> None:
        self.now += dt.timedelta(**units)


@dataclass(frozen=True)
class Installation:
    """One installation: the realms `default` and `other`, the second with a host and URL of its own.

    Its store is a SQLite file in its folder, or a `database` of `postgres`.
    """

    directory: Path
    clock: SetClock
    postgres: Postgres | None = None
    database: str = ""

    @property
    def store_url(self) -> str:
        if self.postgres is not None:
            return self.postgres.url(self.database)
        return f"sqlite:///{self.directory}/enrolld.db"

    @property
    def unlock_key(self) -> Path:
        return self.directory / "keys" / "unlock"

    def config(self, *, sealed: bool = False, demo: bool = False, hook: Hook | None = None) -> CoreConfig:
        key = None if sealed else UnlockKey.load(self.unlock_key)
        return CoreConfig(self.store_url, key, PUBLIC_URL, demo=demo, clock=self.clock, hook=hook)

    def open(self, *, sealed: bool = False, demo: bool = False, hook: Hook | None = None) -> Core:
        return Core.open(self.config(sealed=sealed, demo=demo, hook=hook))

    def copy_to(self, directory: Path) -> "Installation":
        shutil.copytree(self.directory, directory)
        if self.postgres is None:
            return Installation(directory, SetClock())
        name = f"copy_{next(_numbers)}"
        self.postgres.copy(self.database, name)
        return Installation(directory, SetClock(), self.postgres, name)

    def drop(self) -> None:
        """Let go of the database; the folder is the test's."""
        if self.postgres is not None:
            self.postgres.drop(self.database)

    def sql(self, statement: str, *values: object) -> list[tuple[Any, ...]]:
        """What somebody with the database could do or see. `?` stands for a value, with either engine."""
        if self.postgres is not None:
            text = statement.replace("%", "%%").replace("?", "%s") if values else statement
            return self.postgres.psql(text, *values, database=self.database)
        connection = sqlite3.connect(self.directory / "enrolld.db", isolation_level=None)
        try:
            return connection.execute(statement, values).fetchall()
        finally:
            connection.close()

    def refuse(self, act: str, table: str, reason: str) -> None:
        """Have the database refuse every `INSERT` or `UPDATE` (the act) on a table, until `allow`."""
        if self.postgres is None:
            self.sql(f"CREATE TRIGGER no_{table} BEFORE {act} ON {table} BEGIN SELECT RAISE(ABORT, '{reason}'); END")
            return
        body = f"BEGIN RAISE EXCEPTION '{reason}'; END"
        self.sql(f"CREATE FUNCTION no_{table}() RETURNS trigger LANGUAGE plpgsql AS $$ {body} $$")
        self.sql(f"CREATE TRIGGER no_{table} BEFORE {act} ON {table} FOR EACH ROW EXECUTE FUNCTION no_{table}()")

    def allow(self, table: str) -> None:
        """Undo that."""
        self.sql(f"DROP TRIGGER no_{table}" + ("" if self.postgres is None else f" ON {table}"))

    def dump(self) -> bytes:
        """All that is kept, as somebody with the store's files would find it."""
        if self.postgres is None:
            return b"".join(path.read_bytes() for path in self.directory.rglob("enrolld.db*"))
        found: list[bytes] = []
        for (table,) in self.sql("SELECT tablename FROM pg_tables WHERE schemaname = 'public'"):
            for row in self.sql(f"SELECT * FROM {table}"):  # noqa: S608  # a name of the schema
                found += [value if isinstance(value, bytes) else str(value).encode() for value in row]
        return b"\n".join(found)

    def columns(self, table: str) -> list[str]:
        """The names of a table's columns, in their order."""
        if self.postgres is None:
            return [row[1] for row in self.sql(f"PRAGMA table_info({table})")]
        rows = self.sql(
            "SELECT column_name FROM information_schema.columns WHERE table_name = ? ORDER BY ordinal_position", table
        )
        return [row[0] for row in rows]

    def triggers(self) -> set[str]:
        """The names of all triggers of ours."""
        if self.postgres is None:
            return {row[0] for row in self.sql("SELECT name FROM sqlite_master WHERE type = 'trigger'")}
        return {row[0] for row in self.sql("SELECT tgname FROM pg_trigger WHERE NOT tgisinternal")}

    def sql_many(self, statement: str, rows: Sequence[tuple[object, ...]]) -> None:
        """One statement for many rows, in one transaction."""
        if self.postgres is not None:
            text: Any = statement.replace("%", "%%").replace("?", "%s")
            with contextlib.closing(self.postgres.connect(self.database)) as link, link.transaction():
                link.cursor().executemany(text, rows)
            return
        with contextlib.closing(sqlite3.connect(self.directory / "enrolld.db")) as connection, connection:
            connection.executemany(statement, rows)

    def events(self, action: str) -> list[dict[str, Any]]:
        """The details of all audit events of one kind, oldest first."""
        # The clock stands, and several writers number each for itself: what came first, the transactions tell.
        first = "at, writer, sequence" if self.postgres is None else "xmin::text::bigint, writer, sequence"
        rows = self.sql(f"SELECT details FROM audit WHERE action = ? ORDER BY {first}", action)  # noqa: S608  # as above
        return [json.loads(row[0]) for row in rows]


def make_installation(directory: Path, postgres: Postgres | None = None, *, root_of: str | None = None) -> Installation:
    """A new installation at `START`, on SQLite or on a new database of `postgres`.

    `other` has a root of its own, or stands under the one of the realm `root_of`.
    """
    made = Installation(directory, SetClock(), postgres, f"made_{next(_numbers)}")
    if postgres is not None:
        postgres.create(made.database)
    UnlockKey.generate(made.unlock_key)

    async def create() -> None:
        core = await Core.create(made.config())
        try:
            await core.realms.add("other", hosts=[OTHER_HOST], public_url=OTHER_URL, root_of=root_of, actor=ME)
            await core.ra_certificates.ensure()
            await core.crls.publish(only_due=True)
        finally:
            core.close()

    asyncio.run(create())
    return made


@dataclass(frozen=True)
class Enrolled:
    """A device that has a certificate."""

    name: str
    secret: str
    key: PrivateKey
    certificate: bytes
    serial: str

    @property
    def evidence(self) -> Evidence:
        return Evidence(chain=(self.certificate,))

    @property
    def x509(self) -> x509.Certificate:
        return x509.load_der_x509_certificate(self.certificate)


def new_key() -> ec.EllipticCurvePrivateKey:
    return ec.generate_private_key(ec.SECP256R1())


def csr_of(key: PrivateKey, common_name: str | None = "sensor", **options: Any) -> ParsedCsr:
    return ParsedCsr.parse(good_csr(key, common_name, **options))


async def ask(
    core: Core,
    evidence: Evidence,
    csr: ParsedCsr,
    *,
    operation: Operation = Operation.ENROLL,
    label: str | None = None,
    host: str | None = None,
) -> Issued:
    """Ask for a certificate as the protocols do; a refusal is raised."""
    resolved = await core.realms.resolve("est", label, host)
    requester = await core.registration.authenticate(resolved, evidence, csr)
    outcome = await core.registration.enroll(resolved, requester, csr, operation, CALL)
    if isinstance(outcome, Refused):
        raise outcome.refusal
    assert isinstance(outcome, Issued)
    return outcome


async def code_of(core: Core, evidence: Evidence, csr: ParsedCsr, **options: Any) -> str:
    """The code that a request is refused with; `issued` when it is not."""
    try:
        await ask(core, evidence, csr, **options)
    except Refusal as refusal:
        return refusal.code
    return "issued"


async def enrolled(
    core: Core, name: str = "sensor", *, realm: str = "default", key: PrivateKey | None = None, **options: Any
) -> Enrolled:
    """A new device with its first certificate."""
    own = key or new_key()
    handed = await core.devices.add(realm, name, actor=ME, **options)
    label = None if realm == "default" else realm
    issued = await ask(core, Evidence(username="", secret=handed.secret), csr_of(own, name), label=label)
    return Enrolled(name, handed.secret, own, issued.certificate, format_serial(issued.serial))


_NOTHING = Query(select(literal(1)))


async def written(core: Core) -> None:
    """Wait until all is written that was submitted before: by a unit that runs alone, and after them."""
    await core.store.commit(Unit(Guard(_NOTHING, {}), 0))


async def edit_realm(core: Core, name: str, old: str, new: str) -> None:
    """Change one place of a realm's document, as an operator does."""
    text = await core.realms.export(name)
    assert text.count(old) == 1
    await core.realms.apply(text.replace(old, new), actor=ME)
