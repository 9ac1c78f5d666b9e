"""A trail to tamper with, and those who tamper: what somebody who can write the database may do to it."""

import asyncio
import hashlib
import json
import secrets
from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

from ca_core.records.audit import CHAINED, ORIGIN, AuditEvent, Chain, hash_of, origin_of
from ca_core.records.audit_heads import FIRST, digest_of
from ca_core.records.query import Params, Query, Values, insert_into
from ca_core.records.schema import lease
from ca_core.records.store import Store
from ca_core.records.times import from_ms, to_ms
from ca_core.records.unit import Guard, Unit
from ca_core.rows import Verdict
from tests.helpers.core import START, Installation

_ANY = Query(insert_into(lease).returning(lease.c.name))


def act(action: str = "test.done", *, at: int = to_ms(START), **of: Any) -> Unit:
    """A unit that writes one event."""
    row: Values = {"name": f"act-{secrets.token_hex(8)}", "holder": "x", "until_at": 0}
    return Unit(Guard(_ANY, row), at, events=(AuditEvent(action, "operator:test", **of),))


async def write(store: Store, count: int, **of: Any) -> None:
    """So many events, some of which share a commit."""
    await asyncio.gather(*(store.commit(act(details={"number": number}, **of)) for number in range(count)))


@dataclass(frozen=True)
class Trail:
    """Two writers of an installation, in the order of their names: the first with 8 events, the second with 3.

    Event N is dated N seconds after 1970 began. Head 1, dated second 6, covers 5 of the first and all of the second;
    head 2, dated second 8, covers 7 of the first.
    """

    installation: Installation
    first: str
    second: str
    digests: tuple[str, ...]

    def sql(self, statement: str, *values: object) -> list[tuple[Any, ...]]:
        return self.installation.sql(statement, *values)

    def free(self) -> None:
        """Have the database check no references any more, as its owner may."""
        if self.installation.postgres is not None:
            self.sql("ALTER TABLE audit DROP CONSTRAINT fk_audit_writer")

    def hash(self, sequence: int) -> bytes:
        """The hash of an event of the first writer."""
        [(found,)] = self.sql("SELECT hash FROM audit WHERE writer = ? AND sequence = ?", self.first, sequence)
        return bytes(found)

    def origin(self, name: str) -> bytes:
        """What stands before a writer's first event, by its row."""
        [row] = self.sql(f"SELECT {', '.join(ORIGIN)} FROM writer WHERE name = ?", name)  # noqa: S608  # names of columns
        return origin_of(dict(zip(ORIGIN, row, strict=True)))

    def hash_anew(self) -> None:
        """Give the first writer a chain that fits what now stands in its row and its events."""
        columns = ", ".join(CHAINED)
        events = self.sql(f"SELECT {columns} FROM audit WHERE writer = ? ORDER BY sequence", self.first)  # noqa: S608  # names of columns
        digest = self.origin(self.first)
        for event in events:
            row = dict(zip(CHAINED, event, strict=True))
            digest = hash_of(digest, row)
            self.sql("UPDATE audit SET hash = ? WHERE writer = ? AND sequence = ?", digest, self.first, row["sequence"])
        self.sql("UPDATE writer SET hash = ?, sequence = ? WHERE name = ?", digest, len(events), self.first)

    def head_anew(self) -> None:
        """Make the heads anew, so that they fit the hashes that now stand there."""
        previous = FIRST
        for number, at, document in self.sql("SELECT number, at, document FROM audit_head ORDER BY number"):
            points = []
            for name, sequence, _ in json.loads(document):
                [(digest,)] = self.sql("SELECT hash FROM audit WHERE writer = ? AND sequence = ?", name, sequence)
                points.append([name, sequence, bytes(digest).hex()])
            document = json.dumps(points, separators=(",", ":"))
            digest = digest_of(previous, number, at, document)
            self.sql(
                "UPDATE audit_head SET document = ?, previous = ?, digest = ? WHERE number = ?",
                document,
                previous,
                digest,
                number,
            )
            previous = digest

    def verify(self, kept: Collection[str] = ()) -> Verdict:
        """What `audit verify` finds."""

        async def ask() -> Verdict:
            core = self.installation.open()
            try:
                return await core.audit.verify(kept)
            finally:
                core.close()

        return asyncio.run(ask())


def made_trail(installation: Installation) -> Trail:
    """Write it, as the store's writers do: of those, a store may have several."""
    installation.sql("DELETE FROM audit")
    installation.sql("DELETE FROM writer")
    one, two = sorted((Chain("test", "1"), Chain("test", "1")), key=lambda chain: chain.name)
    for chain in (one, two):
        installation.sql(*_insert("writer", chain.writer_row(1000)))
    _append(installation, one, 5, realm="default", device="d-1")
    _append(installation, two, 3, realm="other", device="d-2")
    digests = head(installation, 6000)
    _append(installation, one, 2, realm="default", device="d-1")
    digests += head(installation, 8000)
    _append(installation, one, 1, realm="default", device="d-1")
    return Trail(installation, one.name, two.name, digests)


def _append(installation: Installation, chain: Chain, count: int, **of: str) -> None:
    for _ in range(count):
        number = chain.place[0] + 1
        event = AuditEvent(f"test.{number}", "operator:test", details={"number": number, "sent": "\x1b\u202e"}, **of)
        installation.sql(*_insert("audit", chain.link(event, 1000 * number)))
    _end(installation, chain)


def one_event(installation: Installation, at: int) -> str:
    """Have a new writer write one event, of this time. Returns its name."""
    chain = Chain("test", "1")
    installation.sql(*_insert("writer", chain.writer_row(at)))
    installation.sql(*_insert("audit", chain.link(AuditEvent("test.added", "operator:test"), at)))
    _end(installation, chain)
    return chain.name


def _end(installation: Installation, chain: Chain) -> None:
    end = chain.head_row()
    installation.sql(
        "UPDATE writer SET sequence = ?, hash = ? WHERE name = ?", end["sequence"], end["hash"], chain.name
    )


def _insert(table: str, row: Params) -> tuple[Any, ...]:
    statement = f"INSERT INTO {table} ({', '.join(row)}) VALUES ({', '.join('?' * len(row))})"  # noqa: S608  # names of columns
    return (statement, *row.values())


def head(installation: Installation, at: int) -> tuple[str, ...]:
    """Have the common heads made at this time that cover what none covers. Returns their digests."""

    async def make() -> tuple[str, ...]:
        core = installation.open()
        try:
            return tuple(head.digest for head in await core.audit.make_heads())
        finally:
            core.close()

    now = installation.clock.now
    installation.clock.now = from_ms(at)
    try:
        return asyncio.run(make())
    finally:
        installation.clock.now = now


def independently_hashed(event: dict[str, Any], previous: str) -> str:
    """The hash of an exported event, by the words of the README alone."""
    text = json.dumps(event, sort_keys=True, separators=(",", ":"), ensure_ascii=True)
    return hashlib.sha256(bytes.fromhex(previous) + text.encode("ascii")).hexdigest()
