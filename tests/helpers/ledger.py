"""What clients asked for and got, held against the store: what must be true however often the daemon was killed.

`violations` returns one sentence for each thing that is wrong. It reads the database with nothing of enrolld's own, so
that what it finds is what is there: SQLite's as a file, PostgreSQL's tables copied to one in memory, without any of the
constraints that the store has.
"""

import contextlib
import hashlib
import sqlite3
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import psycopg
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

__all__ = ["Enrollment", "read_store", "spki_of", "violations"]


@dataclass(slots=True)
class Enrollment:
    """One certificate that one client wants, for one key: by a secret, or as a renewal (`secret` None)."""

    device: str
    spki: bytes
    secret: str | None
    received: list[bytes] = field(default_factory=list)  # DER, of every answer that carried one
    refused: bool = False
    told: str = ""  # with the refusal
    lost: int = 0  # tries that were cut
    not_heard: int = 0  # tries that met nobody
    put_off: int = 0  # tries that were told to come again
    strange: list[str] = field(default_factory=list)  # answers that are neither a certificate nor a refusal

    @property
    def selector(self) -> str:
        """What the store finds the secret by."""
        return (self.secret or "").partition(".")[0]


def spki_of(certificate: x509.Certificate) -> bytes:
    """The SubjectPublicKeyInfo, DER."""
    return certificate.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)


_TABLES = ("certificate", "device_secret", "audit", "writer")
"""What the searches read."""


@contextlib.contextmanager
def read_store(store: Path | str) -> Iterator[sqlite3.Connection]:
    """The database, for reading alone: a file of SQLite, or what the URL of a PostgreSQL leads to."""
    if isinstance(store, Path):
        url = f"{store.absolute().as_uri()}?mode=ro"
        with contextlib.closing(sqlite3.connect(url, uri=True, timeout=30)) as opened:
            yield opened
        return
    with contextlib.closing(sqlite3.connect(":memory:")) as copied:
        _copy_tables(store, copied)
        yield copied


def _copy_tables(url: str, into: sqlite3.Connection) -> None:
    with psycopg.connect(url) as source:
        source.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ READ ONLY")
        source.execute("SET enable_indexscan = off")  # what is in the table, whatever an index says
        source.execute("SET enable_indexonlyscan = off")
        source.execute("SET enable_bitmapscan = off")
        for table in _TABLES:
            cursor = source.execute(f"SELECT * FROM {table}".encode())  # noqa: S608  # of the names above
            columns = [column.name for column in cursor.description or ()]
            into.execute(f"CREATE TABLE {table} ({', '.join(columns)})")
            places = ", ".join("?" * len(columns))
            into.executemany(f"INSERT INTO {table} VALUES ({places})", cursor)  # noqa: S608  # as above
    into.execute("CREATE INDEX of_certificate ON certificate (serial)")
    into.execute("CREATE INDEX of_audit ON audit (serial)")
    into.execute("CREATE INDEX of_secret ON device_secret (certificate_id)")
    into.execute("CREATE INDEX of_key ON device_secret (selector)")
    into.execute("CREATE INDEX of_id ON certificate (id)")


def violations(store: Path | str, enrollments: Sequence[Enrollment]) -> list[str]:
    """What is wrong, one sentence each. Empty when all is well. `store` is a file, or the URL of a PostgreSQL."""
    with read_store(store) as connection:
        return [
            *_held(connection, enrollments),
            *_answered(enrollments),
            *_shared(connection, enrollments),
            *_unique(connection),
            *_spent(connection),
            *_audited(connection),
            *_unbroken(connection),
            *(_sound(connection) if isinstance(store, Path) else ()),
        ]


def _held(connection: sqlite3.Connection, enrollments: Sequence[Enrollment]) -> Iterator[str]:
    """Every certificate that a client holds is in the store, byte for byte, and active."""
    for der in {der for one in enrollments for der in one.received}:
        serial = format(x509.load_der_x509_certificate(der).serial_number, "x")
        rows = connection.execute("SELECT der, status FROM certificate WHERE serial = ?", (serial,)).fetchall()
        if not rows:
            yield f"a client holds {serial}, which is not in the store"
        elif [row[0] for row in rows] != [der]:
            yield f"a client holds {serial}, which the store has with other bytes"
        elif rows[0][1] != "valid":
            yield f"a client holds {serial}, which is {rows[0][1]}"


def _answered(enrollments: Sequence[Enrollment]) -> Iterator[str]:
    """Every client ended with one certificate, for the key that it asked for; one that was refused had a rival."""
    for one in enrollments:
        if one.refused and one.received:
            yield f"{one.device} was refused what it had got"
        if not one.refused and not one.received:
            yield f"{one.device} retried and ended without a certificate"
        if one.refused and one.secret is None:
            yield f"{one.device} was refused a renewal" + (f": {one.told}" if one.told else "")
        if len(set(one.received)) > 1:
            yield f"{one.device} got {len(set(one.received))} certificates for one request"
        if any(spki_of(x509.load_der_x509_certificate(der)) != one.spki for der in one.received):
            yield f"{one.device} got a certificate for another key"
        if one.strange:
            yield f"{one.device} was answered {', '.join(sorted(set(one.strange)))}"


def _shared(connection: sqlite3.Connection, enrollments: Sequence[Enrollment]) -> Iterator[str]:
    """Of those who used the same secret, one key won, and the store says the same."""
    by_secret: defaultdict[str, list[Enrollment]] = defaultdict(list)
    for one in enrollments:
        if one.secret is not None:
            by_secret[one.selector].append(one)
    for selector, those in by_secret.items():
        name = those[0].device
        winners = {one.spki: one for one in those if one.received}
        if len(winners) > 1:
            yield f"a secret of {name} served {len(winners)} keys"
        if not winners:
            yield f"a secret of {name} served nobody"
        row = connection.execute(
            "SELECT s.spent_key, c.der FROM device_secret s LEFT JOIN certificate c ON c.id = s.certificate_id"
            " WHERE s.selector = ?",
            (selector,),
        ).fetchone()
        for spki, one in winners.items():
            if row is None or row[0] != hashlib.sha256(spki).digest() or row[1] != one.received[0]:
                yield f"a secret of {name} is not bound to what it served"


_UNIQUE = {
    # 159 random bits: two of different issuers would be as wrong as two of one.
    "serial {} was given {} times": """
        SELECT serial, count(*) FROM certificate GROUP BY serial HAVING count(*) > 1""",
}

_SPENT = {
    "secret {} is spent for a certificate that is not there, or has another key or device": """
        SELECT s.id FROM device_secret s LEFT JOIN certificate c ON c.id = s.certificate_id
        WHERE (s.spent_at IS NOT NULL OR s.certificate_id IS NOT NULL OR s.spent_key IS NOT NULL) AND (c.id IS NULL
            OR s.spent_at IS NULL OR c.spki_sha256 IS NOT s.spent_key OR c.device_id IS NOT s.device_id)""",
    "certificate {} stands on {} secrets, and renews nothing": """
        SELECT c.serial, count(s.id) FROM certificate c LEFT JOIN device_secret s ON s.certificate_id = c.id
        WHERE c.kind = 'device' AND c.renews_id IS NULL GROUP BY c.id HAVING count(s.id) != 1""",
    "{} was issued {} certificates": """
        SELECT json_extract(details, '$.credential') AS credential, count(*) FROM audit
        WHERE action = 'certificate.issued' AND credential LIKE 'secret %' GROUP BY credential HAVING count(*) > 1""",
    "certificate row {} was renewed {} times": """
        SELECT renews_id, count(*) FROM certificate WHERE renews_id IS NOT NULL GROUP BY renews_id
        HAVING count(*) > 1""",
    "certificate row {} is renewed, and does not say by which": """
        SELECT o.id FROM certificate n JOIN certificate o ON o.id = n.renews_id WHERE o.replaced_by_id IS NOT n.id""",
}

_AUDITED = {
    "{} certificate {} has {} audit events": """
        SELECT c.kind, c.serial, count(a.action) FROM certificate c LEFT JOIN audit a ON a.serial = c.serial
            AND a.action = CASE c.kind WHEN 'device' THEN '' ELSE c.kind || '_' END || 'certificate.issued'
        WHERE c.kind != 'ca' GROUP BY c.id HAVING count(a.action) != 1""",
    "CA certificate {} has no audit event": """
        SELECT c.serial FROM certificate c WHERE c.kind = 'ca' AND NOT EXISTS (
            SELECT 1 FROM audit a, json_each(a.details, '$.issuers') named
            WHERE a.action = 'realm.added' AND named.value = lower(hex(c.fingerprint)))""",
    "the audit event of {} is of a certificate that is not in the store": """
        SELECT a.serial FROM audit a LEFT JOIN certificate c ON c.serial = a.serial
        WHERE a.action LIKE '%certificate.issued' AND c.id IS NULL""",
    "the audit event of {} tells of another certificate": """
        SELECT a.serial FROM audit a JOIN certificate c ON c.serial = a.serial WHERE a.action = 'certificate.issued'
            AND json_extract(a.details, '$.fingerprint') IS NOT lower(hex(c.fingerprint))""",
}

_UNBROKEN = {
    # A transaction that is rolled back, or dies with its process, gives its numbers back: there is no gap by design.
    "the audit trail of writer {} has {} events, numbered {} to {}": """
        SELECT writer, count(*), min(sequence), max(sequence) FROM audit GROUP BY writer
        HAVING min(sequence) != 1 OR max(sequence) != count(*)""",
    "writer {} stands in the list, and wrote nothing": """
        SELECT name FROM writer WHERE name NOT IN (SELECT writer FROM audit)""",
}


def _unique(connection: sqlite3.Connection) -> Iterator[str]:
    """No serial was given twice."""
    return _found(connection, _UNIQUE)


def _spent(connection: sqlite3.Connection) -> Iterator[str]:
    """No secret served two keys, and none is spent for nothing."""
    return _found(connection, _SPENT)


def _audited(connection: sqlite3.Connection) -> Iterator[str]:
    """Every certificate has one audit event, and every such event a certificate."""
    return _found(connection, _AUDITED)


def _unbroken(connection: sqlite3.Connection) -> Iterator[str]:
    """No writer's numbers have a gap."""
    return _found(connection, _UNBROKEN)


def _sound(connection: sqlite3.Connection) -> Iterator[str]:
    """The file is a sound database."""
    for (row,) in connection.execute("PRAGMA integrity_check").fetchall():
        if row != "ok":
            yield f"integrity: {row}"
    for row in connection.execute("PRAGMA foreign_key_check").fetchall():
        yield f"{row[0]} row {row[1]} points at a row of {row[2]} that is not there"


def _found(connection: sqlite3.Connection, searches: dict[str, str]) -> Iterator[str]:
    for sentence, query in searches.items():
        for row in connection.execute(query).fetchall():
            yield sentence.format(*row)
