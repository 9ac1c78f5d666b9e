"""What holds a store against what clients got (`tests.helpers.ledger`) finds every kind of violation, planted here."""

import asyncio
import contextlib
import sqlite3
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import psycopg
import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from ca_core.core import Core
from ca_core.model import Operation
from tests.helpers.core import Enrolled, Installation, ask, csr_of, enrolled, new_key
from tests.helpers.ledger import Enrollment, spki_of, violations


@dataclass(slots=True)
class Scene:
    """A store without any violation, and the clients of it: two that enrolled, a rival of the first, a renewal."""

    store: Path
    first: Enrollment
    second: Enrollment
    rival: Enrollment
    renewal: Enrollment

    @property
    def enrollments(self) -> list[Enrollment]:
        return [self.first, self.second, self.rival, self.renewal]

    def sql(self, statement: str, *values: object) -> None:
        with contextlib.closing(sqlite3.connect(self.store, isolation_level=None)) as connection:
            assert connection.execute(statement, values).rowcount != 0, "nothing was planted"

    def empty_page(self, index: str) -> None:
        """Take every entry out of the page of a small index, behind SQLite's back."""
        with contextlib.closing(sqlite3.connect(self.store, isolation_level=None)) as connection:
            connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
            (size,) = connection.execute("PRAGMA page_size").fetchone()
            (page,) = connection.execute("SELECT rootpage FROM sqlite_master WHERE name = ?", (index,)).fetchone()
        with self.store.open("r+b") as file:
            file.seek((page - 1) * size)
            assert file.read(1) == b"\x0a", "the index has more than one page"
            file.write(b"\0\0\0\0" + size.to_bytes(2, "big") + b"\0")


@pytest.fixture
def scene(installation: Installation) -> Scene:
    async def make(core: Core) -> Scene:
        first, second = await enrolled(core, "first"), await enrolled(core, "second")
        newer = new_key()
        renewed = await ask(core, second.evidence, csr_of(newer, "second"), operation=Operation.REENROLL)
        newer_spki = newer.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
        return Scene(
            installation.directory / "enrolld.db",
            _enrollment(first),
            _enrollment(second),
            Enrollment("first", b"another key", first.secret, refused=True, lost=1),
            Enrollment("second", newer_spki, None, received=[renewed.certificate, renewed.certificate]),
        )

    core = installation.open()
    try:
        return asyncio.run(make(core))
    finally:
        core.close()


def _enrollment(one: Enrolled) -> Enrollment:
    return Enrollment(one.name, spki_of(one.x509), one.secret, received=[one.certificate])


def _serial(one: Enrollment) -> str:
    return format(x509.load_der_x509_certificate(one.received[0]).serial_number, "x")


def _refuse(one: Enrollment) -> None:
    one.received.clear()
    one.refused = True


Plant = Callable[[Scene], object]
PLANTS: dict[str, tuple[Plant, str]] = {
    "a-certificate-is-lost": (
        lambda it: it.sql("DELETE FROM certificate WHERE serial = ?", _serial(it.first)),
        "a client holds {first}, which is not in the store",
    ),
    "a-certificate-has-other-bytes": (
        lambda it: it.sql(
            "UPDATE certificate SET der = CAST(der || x'00' AS BLOB) WHERE serial = ?", _serial(it.first)
        ),
        "a client holds {first}, which the store has with other bytes",
    ),
    "a-certificate-is-not-active": (
        lambda it: it.sql("UPDATE certificate SET status = 'revoked' WHERE serial = ?", _serial(it.first)),
        "a client holds {first}, which is revoked",
    ),
    "a-client-ends-with-nothing": (
        lambda it: it.second.received.clear(),
        "second retried and ended without a certificate",
    ),
    "a-client-gets-two": (
        lambda it: it.second.received.append(it.renewal.received[0]),
        "second got 2 certificates for one request",
    ),
    "a-client-gets-one-for-another-key": (
        lambda it: it.renewal.received.append(it.first.received[0]),
        "second got a certificate for another key",
    ),
    "a-renewal-is-refused": (
        lambda it: _refuse(it.renewal),
        "second was refused a renewal",
    ),
    "a-winner-is-refused-later": (
        lambda it: setattr(it.first, "refused", True),
        "first was refused what it had got",
    ),
    "an-answer-is-an-error": (
        lambda it: it.first.strange.append("HTTP 500"),
        "first was answered HTTP 500",
    ),
    "a-secret-serves-two-keys": (
        lambda it: it.rival.received.append(it.renewal.received[0]),
        "a secret of first served 2 keys",
    ),
    "a-secret-serves-nobody": (
        lambda it: _refuse(it.first),
        "a secret of first served nobody",
    ),
    "a-secret-is-bound-to-another-key": (
        lambda it: it.sql("UPDATE device_secret SET spent_key = zeroblob(32) WHERE selector = ?", it.first.selector),
        "a secret of first is not bound to what it served",
    ),
    "a-serial-is-given-twice": (
        lambda it: it.sql(
            "UPDATE certificate SET serial = ? WHERE id = (SELECT max(id) FROM certificate WHERE kind = 'ra')",
            _serial(it.first),
        ),
        "serial {first} was given 2 times",
    ),
    "a-secret-is-spent-for-nothing": (
        lambda it: it.sql("UPDATE device_secret SET certificate_id = NULL WHERE selector = ?", it.first.selector),
        "is spent for a certificate that is not there, or has another key or device",
    ),
    "a-secret-is-not-spent": (
        lambda it: it.sql(
            "UPDATE device_secret SET spent_at = NULL, spent_key = NULL, certificate_id = NULL WHERE selector = ?",
            it.first.selector,
        ),
        "certificate {first} stands on 0 secrets, and renews nothing",
    ),
    "a-certificate-stands-on-two-secrets": (
        lambda it: it.sql("UPDATE device_secret SET certificate_id = (SELECT min(certificate_id) FROM device_secret)"),
        "certificate {first} stands on 2 secrets, and renews nothing",
    ),
    "a-secret-is-audited-twice": (
        lambda it: it.sql(
            "UPDATE audit SET details = (SELECT max(details) FROM audit WHERE action = 'certificate.issued')"
        ),
        "was issued",
    ),
    "a-renewal-is-made-twice": (
        lambda it: it.sql("UPDATE certificate SET renews_id = (SELECT max(renews_id) FROM certificate)"),
        "was renewed",
    ),
    "a-renewed-certificate-does-not-say-so": (
        lambda it: it.sql("UPDATE certificate SET replaced_by_id = NULL"),
        "is renewed, and does not say by which",
    ),
    "an-event-is-lost": (
        lambda it: it.sql("DELETE FROM audit WHERE serial = ?", _serial(it.first)),
        "device certificate {first} has 0 audit events",
    ),
    "an-event-of-the-server-is-lost": (
        lambda it: it.sql("DELETE FROM audit WHERE action = 'ra_certificate.issued'"),
        "has 0 audit events",
    ),
    "an-event-of-a-ca-is-lost": (
        lambda it: it.sql("DELETE FROM audit WHERE action = 'realm.added'"),
        "has no audit event",
    ),
    "an-event-is-doubled": (
        lambda it: it.sql(
            "UPDATE audit SET action = 'certificate.issued', serial = ? WHERE action = 'device.added'",
            _serial(it.first),
        ),
        "device certificate {first} has 3 audit events",
    ),
    "an-event-is-of-nothing": (
        lambda it: it.sql("UPDATE audit SET serial = 'abc' WHERE serial = ?", _serial(it.first)),
        "the audit event of abc is of a certificate that is not in the store",
    ),
    "an-event-is-of-another": (
        lambda it: it.sql(
            "UPDATE audit SET details = json_set(details, '$.fingerprint', 'ab') WHERE serial = ?", _serial(it.first)
        ),
        "the audit event of {first} tells of another certificate",
    ),
    "a-trail-has-a-gap": (
        lambda it: it.sql("DELETE FROM audit WHERE action = 'device.added' AND device = 'second'"),
        "the audit trail of writer",
    ),
    "a-trail-has-lost-its-beginning": (
        lambda it: it.sql("DELETE FROM audit WHERE action = 'device.added' AND device = 'first'"),
        "the audit trail of writer",
    ),
    "a-writer-wrote-nothing": (
        lambda it: it.sql(
            "INSERT INTO writer (name, process, host, pid, version, started_at)"
            " VALUES ('nobody', 'worker-1', 'host', 1, '0', 0)"
        ),
        "writer nobody stands in the list, and wrote nothing",
    ),
    "a-page-is-lost": (
        lambda it: it.empty_page("ix_certificate_serial"),
        "integrity: ",
    ),
    "a-row-points-at-nothing": (
        lambda it: it.sql("DELETE FROM device WHERE name = 'second'"),
        "points at a row of device that is not there",
    ),
}


def test_a_store_that_has_what_clients_hold_is_without_fault(scene: Scene) -> None:
    assert violations(scene.store, scene.enrollments) == []


@pytest.mark.parametrize(("plant", "sentence"), PLANTS.values(), ids=PLANTS)
def test_a_violation_is_found_out(scene: Scene, plant: Plant, sentence: str) -> None:
    expected = sentence.format(first=_serial(scene.first))
    plant(scene)
    found = violations(scene.store, scene.enrollments)
    assert [one for one in found if expected in one], found


WITHIN = {"integrity: ", "points at a row of device that is not there"}
"""What PostgreSQL itself sees to, and no copy of its tables shows."""
COPIED = {name: case for name, case in PLANTS.items() if case[1] not in WITHIN}
_TYPES: dict[type, str] = {bytes: "bytea", int: "bigint", str: "text", type(None): "text"}


def copy_to_postgres(store: Path, url: str) -> None:
    """The tables, as they are, with types and without constraints."""
    with contextlib.closing(sqlite3.connect(store)) as source, psycopg.connect(url) as target:
        for table in ("certificate", "device_secret", "audit", "writer"):
            cursor = source.execute(f"SELECT * FROM {table}")  # noqa: S608  # of the names above
            names = [column[0] for column in cursor.description]
            rows = cursor.fetchall()
            kinds = [next((type(row[n]) for row in rows if row[n] is not None), str) for n in range(len(names))]
            columns = ", ".join(f"{name} {_TYPES[kind]}" for name, kind in zip(names, kinds, strict=True))
            target.execute(f"CREATE TABLE {table} ({columns})".encode())
            places = ", ".join(["%s"] * len(names))
            target.cursor().executemany(f"INSERT INTO {table} VALUES ({places})".encode(), rows)  # noqa: S608


@pytest.mark.foreign
def test_the_same_store_on_postgresql_is_without_fault(scene: Scene, database: str) -> None:
    copy_to_postgres(scene.store, database)
    assert violations(database, scene.enrollments) == []


@pytest.mark.foreign
@pytest.mark.parametrize(("plant", "sentence"), COPIED.values(), ids=COPIED)
def test_a_violation_is_found_out_on_postgresql(scene: Scene, database: str, plant: Plant, sentence: str) -> None:
    expected = sentence.format(first=_serial(scene.first))
    plant(scene)
    copy_to_postgres(scene.store, database)
    found = violations(database, scene.enrollments)
    assert [one for one in found if expected in one], found
