"""Requests that wait for an operator: found again when they are asked again, and decided once.

A request is the same when the same requester asks with the same key for the same names, whatever CSR that is written
in: a CSR that is bound to its TLS session is another one each time. It is kept with what proved who asked, so that it
can be judged anew when it is granted, by the rules of that day.
"""

import base64
import datetime as dt
import hashlib
import json
from dataclasses import dataclass
from typing import Any

from sqlalchemy import bindparam, func, select

from ca_core.csr import ParsedCsr
from ca_core.errors import ConditionFailed, NotAuthorized, TooMany
from ca_core.limits import source_of
from ca_core.model import Call, Evidence, Means, Pending, Recalled, Requester
from ca_core.names import parse_duration
from ca_core.records.audit import AuditEvent
from ca_core.records.query import Query, Row, Values
from ca_core.records.schema import request as request_table
from ca_core.records.store import Store
from ca_core.records.times import from_ms, to_ms
from ca_core.records.unit import Guard, Step, Unit, guarded_insert
from ca_core.registration.attempts import transaction_details
from ca_core.registration.realm import SAME_ACTIVE, Realm

__all__ = ["PendingRequest", "Pendings", "end_requests", "rejected", "request_identity", "touched_request"]

_SUBJECT = 2000
_KEPT_MS = 30 * 86_400_000
"""How long an expired request is still shown."""
_q = request_table.c
_open = request_table.alias("open").c
_same = request_table.alias("same").c
_OPEN = (
    _open.realm_id == bindparam("realm_id"),
    _open.state == "pending",
    _open.expires_at > bindparam("requested_at"),
)
_COLUMNS = (
    _q.id,
    _q.state,
    _q.expires_at,
    _q.reason,
    _q.csr,
    _q.evidence,
    _q.operation,
    _q.request_id,
    _q.device,
)
_BY_IDENTITY = Query(
    select(*_COLUMNS)
    .where(_q.realm_id == bindparam("realm_id"), _q.request_key == bindparam("request_key"))
    .order_by(_q.id.desc())
    .limit(1)
)
_REJECTED = Query(
    select(*_COLUMNS)
    .where(_q.realm_id == bindparam("realm_id"), _q.spki_sha256 == bindparam("spki_sha256"), _q.state == "rejected")
    .order_by(_q.id.desc())
    .limit(1)
)
_BY_TRANSACTION = Query(
    select(*_COLUMNS)
    .where(
        _q.realm_id == bindparam("realm_id"),
        _q.transaction_id == bindparam("transaction_id"),
        _q.signer_key == bindparam("signer_key"),
    )
    .order_by(_q.id.desc())
    .limit(1)
)
_END = Query(
    request_table.update()
    .where(
        _q.realm_id == bindparam("of_realm"),
        _q.device == bindparam("of_device"),
        (_q.state == "pending") | (_q.state == "approved"),
        _q.expires_at > bindparam("at"),
    )
    .values(expires_at=bindparam("at"))
)
# What nobody decided is forgotten in the end; what was rejected stays, since it is why the key is refused.
_FORGET = Query(
    request_table.delete().where(
        _q.realm_id == bindparam("of_realm"), _q.state == "pending", _q.expires_at < bindparam("forgotten")
    )
)
_ADD, _ADD_WHY = guarded_insert(
    request_table,
    {
        "realm_version": SAME_ACTIVE,
        "realm_has_room": select(func.count()).where(*_OPEN).scalar_subquery() < bindparam("most"),
        "source_has_room": select(func.count())
        .where(*_OPEN, _open.source_of == bindparam("source_of"))
        .scalar_subquery()
        < bindparam("most_of_source"),
        # Of two that arrive at once, one finds the other's.
        "not_asked_before": ~select(_same.id)
        .where(
            _same.realm_id == bindparam("realm_id"),
            _same.request_key == bindparam("request_key"),
            (_same.state == "pending") | (_same.state == "approved"),
            _same.expires_at > bindparam("requested_at"),
        )
        .exists(),
    },
)


@dataclass(frozen=True, slots=True)
class PendingRequest:
    """A request as it was kept. `state` is pending, approved, rejected, expired or issued."""

    id: int
    state: str
    reason: str | None
    csr: bytes
    evidence: Evidence
    operation: str
    request_id: str
    device: str


def request_identity(requester: Requester, csr: ParsedCsr, profile: str) -> bytes:
    """What makes two requests the same one: who asks for which profile, the key and the names, within a realm.

    What an operator has approved for one profile is nothing that another gives.
    """
    parts = (
        profile.encode(),
        requester.means.value.encode(),
        requester.device.name.encode(),
        requester.credential,
        csr.spki_sha256,
        csr.names_hash,
    )
    return hashlib.sha256(b"".join(len(part).to_bytes(4, "big") + part for part in parts)).digest()


def end_requests(realm_id: int, device: str, at: int) -> Step:
    """The step that ends what waits or is approved in a device's name: it is not the device any more that was meant."""
    return Step(_END, {"of_realm": realm_id, "of_device": device, "at": at}, expect=None)


class Pendings:
    """Keeps requests until they are decided."""

    def __init__(self, store: Store) -> None:
        self._store = store

    async def find(
        self, realm: Realm, requester: Requester, csr: ParsedCsr, profile: str, now: dt.datetime
    ) -> PendingRequest | None:
        """One of that key that was rejected, else the newest of the same requester, profile, key and names."""
        row = await self._store.first(_REJECTED, realm_id=realm.id, spki_sha256=csr.spki_sha256)
        if row is None:
            identity = request_identity(requester, csr, profile)
            row = await self._store.first(_BY_IDENTITY, realm_id=realm.id, request_key=identity)
        return _found(row, now) if row else None

    async def of_transaction(
        self, realm: Realm, transaction_id: str, signer_key: bytes, now: dt.datetime
    ) -> PendingRequest | None:
        """The newest request of a transaction, for the key (SHA-256) that began it."""
        row = await self._store.first(
            _BY_TRANSACTION, realm_id=realm.id, transaction_id=transaction_id, signer_key=signer_key
        )
        return _found(row, now) if row else None

    async def keep(
        self,
        realm: Realm,
        requester: Requester,
        csr: ParsedCsr,
        profile: str,
        operation: str,
        call: Call,
        now: dt.datetime,
    ) -> None:
        """Keep a new request. Raises `TooMany` when too many wait, `ConditionFailed` when something has changed."""
        admission = realm.document.admission
        _check_no_secret(requester, csr)
        at = to_ms(now)
        row: Values = {
            "realm_id": realm.id,
            "device": requester.device.name,
            "profile": profile,
            "protocol": call.protocol,
            "operation": operation,
            "means": requester.means.value,
            "subject": _shown(csr.subject.rfc4514_string()),
            "names": json.dumps(csr.san),
            "key": csr.key,
            "request_key": request_identity(requester, csr, profile),
            "spki_sha256": csr.spki_sha256,
            "signer_key": requester.credential_key or csr.spki_sha256,
            "csr": csr.der,
            "evidence": _written(realm, requester),
            "source": call.source,
            "source_of": source_of(call.source),
            "request_id": call.request_id,
            "transaction_id": call.transaction_id,
            "state": "pending",
            "requested_at": at,
            "expires_at": to_ms(now + parse_duration(admission.pending_lifetime)),
            "decided_at": None,
            "decided_by": None,
            "reason": None,
            "certificate_id": None,
        }
        compared: Values = {
            **realm.facts,
            "most": admission.pending_most,
            "most_of_source": admission.pending_per_source,
        }
        event = AuditEvent(
            "request.pending",
            f"{'device' if requester.proves_device else 'unproven'}:{requester.device.name}",
            realm=realm.name,
            device=requester.device.name,
            request_id=call.request_id,
            details={
                "means": requester.means.value,
                "profile": profile,
                "key_sha256": csr.spki_sha256.hex(),
                "source": call.source,
                **transaction_details(call),
            },
        )
        try:
            forget = Step(_FORGET, {"of_realm": realm.id, "forgotten": at - _KEPT_MS}, expect=None)
            await self._store.commit(Unit(Guard(_ADD, row | compared, _ADD_WHY), at, (forget,), (event,)))
        except ConditionFailed as exc:
            if {"realm_has_room", "source_has_room"} & set(exc.conditions):
                whose = "of this realm" if "realm_has_room" in exc.conditions else f"from {source_of(call.source)}"
                raise TooMany(
                    "requests_too_many",
                    "Too many requests wait for approval; ask later.",
                    retry_after=600,
                    detail=f"requests {whose} wait already",
                ) from exc
            raise

    @staticmethod
    def wait(realm: Realm) -> Pending:
        """What a requester who waits is told."""
        return Pending(round(parse_duration(realm.document.admission.pending_retry).total_seconds()))


def _check_no_secret(requester: Requester, csr: ParsedCsr) -> None:
    """A request is kept and shown: its names must not hold the secret that came with it."""
    secret = requester.evidence.secret
    if secret and (secret in csr.subject.rfc4514_string() or any(secret in name for name in csr.san)):
        raise NotAuthorized("csr_holds_secret", "A name in the request holds its secret.")


def _shown(subject: str) -> str:
    """A subject as an operator may see it: escaped, and if it is not whole, that is said."""
    text = subject.encode("unicode_escape").decode()
    return text if len(text) <= _SUBJECT else f"{text[:_SUBJECT]}... (cut; {len(text)} characters)"


def touched_request(pending_id: int) -> str:
    """The request among what a unit touches (`Unit.touches`)."""
    return f"request:{pending_id}"


def rejected(found: PendingRequest) -> NotAuthorized:
    """What a requester is told whom an operator has turned down."""
    return NotAuthorized(
        "request_rejected", "The request was rejected.", detail=found.reason or f"request {found.request_id}"
    )


def _found(row: Row, now: dt.datetime) -> PendingRequest:
    state = "expired" if row[1] in ("pending", "approved") and from_ms(row[2]) <= now else row[1]
    return PendingRequest(row[0], state, row[3], row[4], _read(row[5]), row[6], row[7], row[8])


def _written(realm: Realm, requester: Requester) -> str:
    """The evidence as JSON, with what a secret proved in place of the secret."""
    evidence = requester.evidence
    kept: dict[str, Any] = {"chain": [base64.b64encode(der).decode() for der in evidence.chain]}
    if evidence.is_exposed:
        kept["is_exposed"] = True
    if requester.secret is not None:
        kept["secret_id"] = requester.secret.id
    elif requester.means is Means.CHALLENGE or (evidence.secret is not None and "challenge" in realm.proofs):
        kept["challenge"] = realm.document.admission.challenge
    return json.dumps(kept)


def _read(text: str) -> Evidence:
    kept = json.loads(text)
    recalled = None
    if "secret_id" in kept or "challenge" in kept:
        recalled = Recalled(kept.get("secret_id"), kept.get("challenge"))
    return Evidence(
        tuple(base64.b64decode(der) for der in kept["chain"]),
        None,
        None,
        is_exposed=kept.get("is_exposed", False),
        recalled=recalled,
    )
