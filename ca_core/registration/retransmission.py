"""Retransmissions: the same request again gets the same certificate.

Looked up after authentication and after everything that could refuse the request, never instead of them. A certificate
that was revoked or replaced, has expired or is not valid yet, or could renew nothing any more is never the answer.
"""

import hashlib
from typing import Any

from sqlalchemy import ColumnElement, and_, bindparam, not_, select
from sqlalchemy.sql.base import ReadOnlyColumnCollection

from ca_core.csr import ParsedCsr
from ca_core.errors import NotAuthenticated, NotAuthorized
from ca_core.model import Issued, Operation, Requester, SecretRecord, Serial
from ca_core.records.query import Query, Row, Values
from ca_core.records.schema import certificate
from ca_core.records.store import Store
from ca_core.registration.admission.own_certificate import newer_is_revoked
from ca_core.registration.realm import Resolved

_c = certificate.c


def is_answer(columns: ReadOnlyColumnCollection[str, Any], now: ColumnElement[int]) -> ColumnElement[bool]:
    """Whether a certificate may still be the answer to the request that it was issued for."""
    return and_(
        columns.status == "valid",
        columns.replaced_by_id.is_(None),
        columns.superseded_at.is_(None),
        # What a clock in the future has dated helps no device before its time.
        columns.not_before <= now,
        columns.not_after > now,
        not_(newer_is_revoked(columns.realm_id, columns.device_id, columns.id)),
    )


_USABLE = is_answer(_c, bindparam("now"))
_ASKED_BEFORE = Query(
    select(_c.der, _c.serial)
    .where(
        _c.realm_id == bindparam("realm_id"),
        _c.request_key == bindparam("request_key"),
        _c.issued_at > bindparam("retry_since"),
        _USABLE,
    )
    .order_by(_c.id.desc())
    .limit(1)
)
_SERVED = Query(
    select(_c.der, _c.serial).where(_c.realm_id == bindparam("realm_id"), _c.id == bindparam("certificate_id"), _USABLE)
)


_OF_TRANSACTION = (
    _c.realm_id == bindparam("realm_id"),
    _c.device_id == bindparam("device_id"),
    _c.transaction_id == bindparam("transaction_id"),
    _c.spki_sha256 == bindparam("spki_sha256"),
)
_RENEWALS = Query(
    select(_c.request_key).where(*_OF_TRANSACTION, _c.renews_id == bindparam("renews_id")).order_by(_c.id).limit(20)
)
_ANY = Query(select(_c.id).where(*_OF_TRANSACTION).limit(1))
_NEWEST = Query(select(_c.der, _c.serial).where(*_OF_TRANSACTION, _USABLE).order_by(_c.id.desc()).limit(1))


def request_key(
    resolved: Resolved,
    profile: str,
    operation: Operation,
    requester: Requester,
    csr: ParsedCsr,
    transaction_id: str | None = None,
) -> bytes:
    """What makes two requests the same: realm and version, profile, operation, credential, key, names.

    Where the peer names its transaction, that stands in place of the version: such a request may be anybody's copy of
    an old one, and a change of the realm must not make it a new one.
    """
    parts = (
        str(resolved.realm.id).encode(),
        str(resolved.realm.version).encode() if transaction_id is None else b"",
        profile.encode(),
        operation.value.encode(),
        requester.credential,
        csr.spki_sha256,
        csr.names_hash,
        *([transaction_id.encode()] if transaction_id is not None else ()),
    )
    return hashlib.sha256(b"".join(len(part).to_bytes(4, "big") + part for part in parts)).digest()


async def asked_before(store: Store, realm_id: int, key: bytes, *, retry_since: int, now: int) -> Issued | None:
    """The certificate that answered this very request since `retry_since` (both in milliseconds since 1970)."""
    row = await store.first(_ASKED_BEFORE, realm_id=realm_id, request_key=key, retry_since=retry_since, now=now)
    return _again(row) if row else None


async def transacted_before(
    store: Store, requester: Requester, csr: ParsedCsr, transaction_id: str, key: bytes, *, now: int
) -> Issued | None:
    """What the transaction has led to already, None when it is new. `key` is the `request_key`.

    A message that is signed but not bound to a connection can be sent again by anybody who saw it, however late. It
    gets what it got then, or what the device got since in the same transaction with the same key (clients name a
    transaction after their key); never anything new. Raises `NotAuthorized`.
    """
    of: Values = {
        "realm_id": requester.realm_id,
        "device_id": requester.device.id,
        "transaction_id": transaction_id,
        "spki_sha256": csr.spki_sha256,
    }
    if requester.certificate is not None:
        renewals = await store.fetch(_RENEWALS, **of, renews_id=requester.certificate.id)
        if renewals and all(row[0] != key for row in renewals):
            raise NotAuthorized("transaction_of_other_request", "The transaction was one for another request.")
    else:
        # A factory identity lasts, and so would a copy of what it once signed: with it, a key is certified once.
        renewals = await store.fetch(_ANY, **of)
    if not renewals:
        return None
    row = await store.first(_NEWEST, **of, now=now)
    if row is None:
        raise NotAuthorized("transaction_over", "The transaction is over.")
    return _again(row)


async def served_by(store: Store, requester: Requester, secret: SecretRecord, csr: ParsedCsr, *, now: int) -> Issued:
    """What a spent secret was spent for; its key and retry window are judged already.

    Raises `NotAuthorized` for other names, `NotAuthenticated` when there is nothing to give any more.
    """
    if secret.spent_names != csr.names_hash:
        raise NotAuthorized("retry_other_names", "The secret was used for other names.")
    row = await store.first(_SERVED, realm_id=requester.realm_id, certificate_id=secret.certificate_id, now=now)
    if row is None:
        raise NotAuthenticated(
            "secret_spent",
            "The credentials are not accepted.",
            detail=f"device {requester.device.name}; its certificate was revoked, replaced or has expired since",
            device=(requester.device.id, requester.device.name),
        )
    return _again(row)


def _again(row: Row) -> Issued:
    return Issued(row[0], Serial(int(row[1], 16)), again=True)
