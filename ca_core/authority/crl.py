"""CRLs: built from the encoded entries that revoked certificates keep in their rows, numbered and stored.

A revocation counts up `issuer.revocations`; a CRL remembers the count that it covers. So "is it published?" is a
comparison of two numbers, and two nodes that publish at once make two CRLs with two numbers, or one of them yields.
"""

import asyncio
import datetime as dt
from collections.abc import Iterable
from dataclasses import dataclass

from cryptography import x509
from sqlalchemy import bindparam, func, not_, select
from sqlalchemy.sql import exists

from ca_core import der
from ca_core.authority.issuance import Issuance, signature_algorithm_key
from ca_core.authority.issuer import Issuer, Issuers
from ca_core.errors import ConditionFailed, ConstraintFailed
from ca_core.model import Clock
from ca_core.records.audit import AuditEvent
from ca_core.records.query import Query, Values, columns_of, values_of
from ca_core.records.schema import certificate, crl
from ca_core.records.schema import issuer as issuer_table
from ca_core.records.store import CLOCK_LEEWAY, Store
from ca_core.records.times import from_ms, rfc3339, to_ms
from ca_core.records.unit import Guard, Step, Unit

LIFETIME = dt.timedelta(days=7)
REFRESH = dt.timedelta(days=1)
"""A CRL without news is made anew after this long, so that a caching relying party never meets an expired one."""

_KEEP_EXPIRED = dt.timedelta(days=30)

REASONS = {
    "unspecified": 0,
    "keyCompromise": 1,
    "cACompromise": 2,
    "affiliationChanged": 3,
    "superseded": 4,
    "cessationOfOperation": 5,
    "certificateHold": 6,
    "privilegeWithdrawn": 9,
    "aACompromise": 10,
}
"""RFC 5280 5.3.1; removeFromCRL is no reason that anybody gives."""

_ALGORITHM = {
    # RSA has NULL parameters (RFC 4055 5), ECDSA none (RFC 5758 3.2).
    ("rsa", "sha256"): bytes.fromhex("300d06092a864886f70d01010b0500"),
    ("ec", "sha256"): bytes.fromhex("300a06082a8648ce3d040302"),
    ("ec", "sha384"): bytes.fromhex("300a06082a8648ce3d040303"),
    ("ec", "sha512"): bytes.fromhex("300a06082a8648ce3d040304"),
    # "the parameters component MUST be absent": RFC 8410 3, RFC 9881 2
    ("ed25519", ""): bytes.fromhex("300506032b6570"),
    ("ml-dsa-44", ""): bytes.fromhex("300b0609608648016503040311"),
    ("ml-dsa-65", ""): bytes.fromhex("300b0609608648016503040312"),
    ("ml-dsa-87", ""): bytes.fromhex("300b0609608648016503040313"),
}

_k, _i, _e = crl.c, issuer_table.c, certificate.c
_NEWEST = Query(
    select(_k.number, _k.this_update_at, _k.next_update_at, _k.revocations, _k.entries)
    .where(_k.issuer_id == bindparam("issuer_id"))
    .order_by(_k.number.desc())
    .limit(1)
)
_DER = Query(select(_k.der).where(_k.issuer_id == bindparam("issuer_id"), _k.number == bindparam("number")))
_ENTRIES = Query(
    select(_e.crl_entry)
    .where(
        _e.issuer_id == bindparam("issuer_id"),
        _e.crl_entry.is_not(None),
        # "An entry MUST NOT be removed from the CRL until it appears on one regularly scheduled CRL issued beyond the
        # revoked certificate's validity period." -- RFC 5280 3.3; also one that was revoked after it had expired.
        (_e.not_after >= bindparam("since")) | (_e.revoked_at >= bindparam("since")),
    )
    .order_by(_e.id)
)
_REVOCATIONS = Query(select(_i.revocations).where(_i.id == bindparam("issuer_id")))
_OLDER = Query(crl.delete().where(_k.issuer_id == bindparam("issuer_id"), _k.number < bindparam("number") - 1))
_INSERT = Query(
    crl.insert()
    .from_select(
        columns_of(crl),
        select(*values_of(crl)).where(
            not_(
                exists().where(
                    _k.issuer_id == bindparam("issuer_id"),
                    (_k.number >= bindparam("number")) | (_k.this_update_at > bindparam("this_update_at")),
                )
            )
        ),
    )
    .returning(_k.number)
)
# The same but for the time: an operator's act, after which none with a later time is kept.
_INSERT_REDATED = Query(
    crl.insert()
    .from_select(
        columns_of(crl),
        select(*values_of(crl)).where(
            not_(exists().where(_k.issuer_id == bindparam("issuer_id"), _k.number >= bindparam("number")))
        ),
    )
    .returning(_k.number)
)
_ALL_OLDER = Query(crl.delete().where(_k.issuer_id == bindparam("issuer_id"), _k.number < bindparam("number")))
_COVERED = Query(select(func.max(_k.revocations)).where(_k.issuer_id == bindparam("issuer_id")))


@dataclass(frozen=True, slots=True)
class Crl:
    """A CRL as stored. `revocations` is the issuer's count that it covers; `entries` how many certificates it lists."""

    number: int
    this_update: dt.datetime
    next_update: dt.datetime
    revocations: int
    entries: int


def encode_entry(serial: int, revoked_at: dt.datetime, reason: str) -> bytes:
    """One entry of revokedCertificates (RFC 5280 5.1), DER."""
    code = REASONS[reason]
    parts = [der.integer(serial), der.time(revoked_at)]
    if code:
        # "the reason code CRL entry extension SHOULD be absent instead of using the unspecified (0) reasonCode value"
        # -- RFC 5280 5.3.1
        value = der.tlv(0x0A, bytes((code,)))
        parts.append(der.sequence(der.sequence(b"\x06\x03\x55\x1d\x15", der.tlv(0x04, value))))
    return der.sequence(*parts)


def encode_tbs(
    issuer: Issuer, number: int, this_update: dt.datetime, next_update: dt.datetime, entries: Iterable[bytes]
) -> bytes:
    """TBSCertList, version 2, with authorityKeyIdentifier and cRLNumber (RFC 5280 5.1.2)."""
    identifier = issuer.certificate.extensions.get_extension_for_class(x509.SubjectKeyIdentifier).value.digest
    listed = b"".join(entries)
    key_identifier = der.sequence(der.tlv(0x80, identifier))
    extensions = der.sequence(
        der.sequence(b"\x06\x03\x55\x1d\x23", der.tlv(0x04, key_identifier)),
        der.sequence(b"\x06\x03\x55\x1d\x14", der.tlv(0x04, der.integer(number))),
    )
    return der.sequence(
        der.integer(1),
        _ALGORITHM[signature_algorithm_key(issuer)],
        issuer.certificate.subject.public_bytes(),
        der.time(this_update),
        der.time(next_update),
        # "When there are no revoked certificates, the revoked certificates list MUST be absent." -- RFC 5280 5.1.2.6
        der.sequence(listed) if listed else b"",
        der.tlv(0xA0, extensions),
    )


class Crls:
    """Makes and reads CRLs."""

    def __init__(self, store: Store, issuers: Issuers, issuance: Issuance, clock: Clock) -> None:
        self._store = store
        self._issuers = issuers
        self._issuance = issuance
        self._clock = clock
        self._read: dict[int, tuple[int, bytes]] = {}  # of each issuer, the number and DER that was asked for last

    async def latest(self, issuer: Issuer) -> Crl | None:
        """The issuer's newest CRL, without its bytes."""
        row = await self._store.first(_NEWEST, issuer_id=issuer.id)
        if row is None:
            return None
        return Crl(row[0], from_ms(row[1]), from_ms(row[2]), row[3], row[4])

    async def der(self, issuer: Issuer) -> bytes | None:
        """The newest CRL, DER. Whoever asks for the same one gets the same object: a large one is held once."""
        newest = await self.latest(issuer)
        if newest is None:
            return None
        number, der = self._read.get(issuer.id, (0, b""))
        if number != newest.number:
            row = await self._store.first(_DER, issuer_id=issuer.id, number=newest.number)
            if row is None:  # two newer ones were made since, and this one went
                return await self.der(issuer)
            der = row[0]
            self._read[issuer.id] = newest.number, der
        return der

    async def is_due(self, issuer: Issuer) -> bool:
        """Whether a revocation is missing from the newest CRL, or the CRL is a day old."""
        newest = await self.latest(issuer)
        count = await self._count(issuer)
        return newest is None or newest.revocations < count or self._clock() >= newest.this_update + REFRESH

    async def is_ahead(self, issuer: Issuer) -> bool:
        """Whether the newest CRL is dated later than now, by more than clocks may differ."""
        newest = await self.latest(issuer)
        now = max(self._clock(), issuer.certificate.not_valid_before_utc)  # as `publish` would date it
        return newest is not None and newest.this_update > now + dt.timedelta(seconds=CLOCK_LEEWAY)

    async def covers(self, issuer_id: int, sequence: int) -> bool:
        """Whether a published CRL holds the issuer's revocation number `sequence`."""
        row = await self._store.first(_COVERED, issuer_id=issuer_id)
        return row is not None and row[0] is not None and row[0] >= sequence

    async def publish(self, issuer: Issuer, *, actor: str, redate: bool = False) -> Crl:
        """Sign and store the next CRL. Returns the newest one when another node was faster.

        With `redate` its thisUpdate is now, also when that goes back: the newest was made by a clock in the future. It
        is never before the issuer's notBefore.
        Raises `Unavailable`, `SealingFailed`.
        """
        for _ in range(8):
            newest = await self.latest(issuer)
            # The count first: what is revoked between the two reads is then listed, and counted by the next CRL.
            revocations = await self._count(issuer)
            now = self._clock().replace(microsecond=0)
            # A clock set back never makes a CRL that looks older than the one before it.
            this_update = max(now, newest.this_update) if newest and not redate else now  # enforces case 61
            # None is older than its issuer, not even one of a clock that stands before that.
            this_update = max(this_update, issuer.certificate.not_valid_before_utc)
            # Counted from the last CRL: while none was made, nothing is forgotten.
            since = to_ms(min(now, newest.this_update) - _KEEP_EXPIRED) if newest else 0
            rows = await self._store.fetch_aside(_ENTRIES, issuer_id=issuer.id, since=since)
            number = newest.number + 1 if newest else 1
            tbs = await asyncio.to_thread(
                encode_tbs, issuer, number, this_update, this_update + LIFETIME, [row[0] for row in rows]
            )
            signature = await self._issuance.sign_crl(issuer, tbs)
            made = der.sequence(tbs, _ALGORITHM[signature_algorithm_key(issuer)], der.tlv(0x03, b"\0", signature))
            fresh = Crl(number, this_update, this_update + LIFETIME, revocations, len(rows))
            try:
                await self._store.commit(self._unit(issuer, fresh, made, actor, newest if redate else None))
            except (ConditionFailed, ConstraintFailed):
                continue  # another node took this number
            return fresh
        newest = await self.latest(issuer)
        if newest is None:
            raise ConditionFailed(["crl_number"])
        return newest

    def _unit(self, issuer: Issuer, fresh: Crl, made: bytes, actor: str, redated: Crl | None) -> Unit:
        params: Values = {
            "issuer_id": issuer.id,
            "number": fresh.number,
            "this_update_at": to_ms(fresh.this_update),
            "next_update_at": to_ms(fresh.next_update),
            "revocations": fresh.revocations,
            "entries": fresh.entries,
            "der": made,
        }
        details = {"issuer": issuer.name, "number": fresh.number, "entries": fresh.entries}
        if redated is not None:
            details["redated_from"] = rfc3339(redated.this_update)
        older = Step(_OLDER if redated is None else _ALL_OLDER, {"issuer_id": issuer.id, "number": fresh.number}, None)
        return Unit(
            Guard(_INSERT if redated is None else _INSERT_REDATED, params),
            at=to_ms(self._clock()),
            steps=(older,),
            events=(AuditEvent("crl.published", actor, details=details),),
        )

    async def _count(self, issuer: Issuer) -> int:
        row = await self._store.first(_REVOCATIONS, issuer_id=issuer.id)
        return int(row[0]) if row else 0
