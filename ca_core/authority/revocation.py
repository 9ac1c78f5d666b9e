"""Revocation: one unit that marks the certificate, keeps its CRL entry, and stops renewal at once."""

import datetime as dt

from sqlalchemy import bindparam, select

from ca_core.authority.crl import REASONS, encode_entry
from ca_core.errors import OperatorError
from ca_core.records.audit import AuditEvent
from ca_core.records.query import Query, Values
from ca_core.records.schema import certificate, issuer, key_block
from ca_core.records.times import to_ms
from ca_core.records.unit import Guard, Step, Unit

HOLD = "certificateHold"
_c = certificate.c

_revoked = (
    certificate.update()
    .where(
        _c.realm_id == bindparam("of_realm"),
        _c.id == bindparam("of_id"),
        (_c.kind == "device") | (_c.kind == "ra"),
        _c.status != "revoked",
        _c.status != bindparam("new_status"),  # a hold on top of a hold is no news either
    )
    .values(
        status=bindparam("new_status"),
        revoked_at=bindparam("revoked_at"),
        reason=bindparam("reason"),
        crl_entry=bindparam("crl_entry"),
    )
)
_REVOKE = Query(_revoked.returning(_c.id))
_REVOKE_TOO = Query(_revoked)
_COUNT = Query(
    issuer.update().where(issuer.c.id == bindparam("issuer_id")).values(revocations=issuer.c.revocations + 1)
)
_BLOCKED = select(key_block.c.spki_sha256).where(key_block.c.spki_sha256 == bindparam("blocked_key"))
_BLOCK = Query(
    key_block.insert().from_select(
        ["spki_sha256", "reason", "created_at"],
        select(
            bindparam("blocked_key", type_=key_block.c.spki_sha256.type),
            bindparam("block_reason", type_=key_block.c.reason.type),
            bindparam("blocked_at", type_=key_block.c.created_at.type),
        ).where(~_BLOCKED.exists()),
    )
)


def parse_reason(text: str) -> str:
    """A reason spelled as RFC 5280 5.3.1 does. Raises `OperatorError`."""
    for reason in REASONS:
        if reason.lower() == text.lower():
            return reason
    raise OperatorError(
        "reason_invalid", f"'{ascii(text[:40])[1:-1]}' is not a revocation reason", f"use one of: {', '.join(REASONS)}"
    )


def revocation_unit(
    *,
    realm_id: int,
    realm: str,
    certificate_id: int,
    issuer_id: int,
    serial: str,
    spki_sha256: bytes,
    device: str | None,
    reason: str,
    now: dt.datetime,
    actor: str,
) -> Unit:
    """The unit that revokes one device certificate; its guard fails when the certificate is revoked already."""
    now = now.replace(microsecond=0)
    params = _mark(realm_id, certificate_id, serial, reason, now)
    steps = _after(issuer_id, spki_sha256, reason, to_ms(now))
    event = AuditEvent(
        "certificate.revoked", actor, realm=realm, device=device, serial=serial, details={"reason": reason}
    )
    return Unit(Guard(_REVOKE, params), to_ms(now), steps, (event,))


def revocation_steps(
    *,
    realm_id: int,
    certificate_id: int,
    issuer_id: int,
    serial: str,
    spki_sha256: bytes,
    reason: str,
    now: dt.datetime,
) -> tuple[Step, ...]:
    """The same as a part of another unit, which runs alone and whose guard sees that none of it is revoked already."""
    now = now.replace(microsecond=0)
    mark = Step(_REVOKE_TOO, _mark(realm_id, certificate_id, serial, reason, now))
    return (mark, *_after(issuer_id, spki_sha256, reason, to_ms(now)))


def _mark(realm_id: int, certificate_id: int, serial: str, reason: str, now: dt.datetime) -> Values:
    return {
        "of_realm": realm_id,
        "of_id": certificate_id,
        "new_status": "hold" if reason == HOLD else "revoked",
        "revoked_at": to_ms(now),
        "reason": reason,
        "crl_entry": encode_entry(int(serial, 16), now, reason),
    }


def _after(issuer_id: int, spki_sha256: bytes, reason: str, at: int) -> tuple[Step, ...]:
    count = Step(_COUNT, {"issuer_id": issuer_id})
    if reason != "keyCompromise":
        return (count,)
    return count, Step(_BLOCK, {"blocked_key": spki_sha256, "block_reason": reason, "blocked_at": at}, expect=None)
