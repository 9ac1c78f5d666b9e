"""What happened with a device: what operators did with it, from the audit trail, and the certificates that it got."""

import json
from typing import Any

from sqlalchemy import bindparam, select, text

from ca_core.records.query import Query, Row
from ca_core.records.schema import IS_OPERATORS_ACT, audit, certificate, device_import, issuer
from ca_core.records.store import Store
from ca_core.records.times import from_ms, rfc3339
from ca_core.registration.realm import Realm
from ca_core.rows import ActRow

KEEP = 50

_a, _c, _i = audit.c, certificate.c, device_import.c
_ACTS = Query(
    select(_a.at, _a.action, _a.actor, _a.serial, _a.details)
    .where(text(IS_OPERATORS_ACT), _a.realm == bindparam("realm"), _a.device == bindparam("device"))
    .order_by(_a.at.desc())
    .limit(KEEP)
)
_CERTIFICATES = Query(
    select(_c.issued_at, _c.renews_id, _c.serial, _c.protocol, _c.key, issuer.c.name, _c.revoked_at, _c.reason)
    .join(issuer, (issuer.c.realm_id == _c.realm_id) & (issuer.c.id == _c.issuer_id))
    .where(_c.realm_id == bindparam("realm_id"), _c.device_id == bindparam("device_id"))
    .order_by(_c.id.desc())
    .limit(KEEP)
)
_IMPORT = Query(select(_i.created_at, _i.actor, _i.file_sha256).where(_i.id == bindparam("import_id")))


async def history(store: Store, realm: Realm, device_id: int, name: str, import_id: int | None) -> list[ActRow]:
    """The last acts, newest first: at most fifty of operators, and those about its last fifty certificates."""
    found: list[tuple[int, ActRow]] = []
    for at, action, actor, serial, details in await store.fetch(_ACTS, realm=realm.name, device=name):
        found.append(_act(at, action, actor, serial, _json(details)))
    for row in await store.fetch(_CERTIFICATES, realm_id=realm.id, device_id=device_id):
        found += _of_certificate(row, name)
    if import_id is not None:
        for at, actor, digest in await store.fetch(_IMPORT, import_id=import_id):
            found.append(_act(at, "device.imported", actor, None, {"file_sha256": digest.hex()}))
    found.sort(key=lambda pair: pair[0], reverse=True)
    return [row for _, row in found]


def _of_certificate(row: Row, name: str) -> list[tuple[int, ActRow]]:
    issued_at, renews_id, serial, protocol, key, issuer_name, revoked_at, reason = row
    act = "certificate.issued" if renews_id is None else "certificate.renewed"
    details = {"protocol": protocol, "key": key, "issuer": issuer_name}
    found = [_act(issued_at, act, f"device:{name}", serial, details)]
    if revoked_at is not None:
        found.append(_act(revoked_at, "certificate.revoked", None, serial, {"reason": reason}))
    return found


def _act(at: int, act: str, actor: str | None, serial: str | None, details: Any) -> tuple[int, ActRow]:
    return at, ActRow(at=rfc3339(from_ms(at)), act=act, actor=actor, serial=serial, details=details)


def _json(details: str) -> Any:
    try:
        return json.loads(details)
    except (TypeError, ValueError, RecursionError):
        return details
