"""Requests that wait for an operator: found again when they are asked again, and decided once.

A request is the same when the same requester asks with the same key for the same certificate (`request_identity`),
whatever CSR that is written in: a CSR that is bound to its TLS session is another one each time. It is kept with what
proved who asked, so that it can be judged anew when it is granted, by the rules of that day.
"""

import base64
import datetime as dt
import json
from dataclasses import dataclass
from typing import Any

from sqlalchemy import bindparam, select

from ca_core.csr import ParsedCsr
from ca_core.errors import ConditionFailed, NotAuthorized
from ca_core.limits import source_of
from ca_core.model import Call, Evidence, Means, Pending, Recalled, Requester
from ca_core.names import parse_duration
from ca_core.records.audit import AuditEvent
from ca_core.records.query import Query, Row, Values
from ca_core.records.schema import request as request_table
from ca_core.records.store import Store
from ca_core.records.times import from_ms, to_ms
from ca_core.records.unit import Guard, Unit
from ca_core.registration.admission.secret import holds_secret
from ca_core.registration.attempts import transaction_details
from ca_core.registration.pending_room import ADD, ADD_WHY, no_room, room
from ca_core.registration.realm import Realm
from ca_core.registration.request_ends import end_outdated

__all__ = ["PendingRequest", "Pendings", "rejected", "touched_name", "touched_request"]

_SUBJECT = 2000
_q = request_table.c
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
    _q.transaction_id,
)
_BY_IDENTITY = Query(
    select(*_COLUMNS)
    .where(_q.realm_id == bindparam("realm_id"), _q.request_key == bindparam("request_key"))
    .order_by(_q.id.desc())
    .limit(1)
)
_BY_ID = Query(select(*_COLUMNS).where(_q.id == bindparam("id")))
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


@dataclass(frozen=True, slots=True)
class PendingRequest:
    """A request as it was kept. `state` is pending, approved, rejected, expired or issued."""

    id: int
    state: str
    reason: str | None
    csr: bytes
    """As `ParsedCsr.recall` takes it."""
    evidence: Evidence
    operation: str
    request_id: str
    device: str
    transaction_id: str | None


class Pendings:
    """Keeps requests until they are decided."""

    def __init__(self, store: Store) -> None:
        self._store = store

    async def find(self, realm: Realm, csr: ParsedCsr, identity: bytes, now: dt.datetime) -> PendingRequest | None:
        """One of that key that was rejected, else the newest of the same identity (`request_identity`)."""
        row = await self._store.first(_REJECTED, realm_id=realm.id, spki_sha256=csr.spki_sha256)
        if row is None:
            row = await self._store.first(_BY_IDENTITY, realm_id=realm.id, request_key=identity)
        return _found(row, now) if row else None

    async def by_id(self, request_id: int, now: dt.datetime) -> PendingRequest | None:
        """One by the id of its row."""
        row = await self._store.first(_BY_ID, id=request_id)
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
        identity: bytes,
        operation: str,
        call: Call,
        now: dt.datetime,
    ) -> None:
        """Keep a new request; one for what the certificate would have said before ends.

        Raises `TooMany` when too many wait, `NotAuthorized` for another key's transaction, `ConditionFailed` when
        something has changed.
        """
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
            "request_key": identity,
            "spki_sha256": csr.spki_sha256,
            "signer_key": requester.credential_key or csr.spki_sha256,
            "csr": csr.kept_form,
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
            await self._store.commit(
                Unit(Guard(ADD, row | room(realm, requester), ADD_WHY), at, (end_outdated(row),), (event,))
            )
        except ConditionFailed as exc:
            raise no_room(exc, call) from exc  # enforces case 35

    @staticmethod
    def wait(realm: Realm) -> Pending:
        """What a requester who waits is told."""
        return Pending(round(parse_duration(realm.document.admission.pending_retry).total_seconds()))


def _check_no_secret(requester: Requester, csr: ParsedCsr) -> None:
    """A request is kept and shown: its names must not hold the secret that came with it."""
    secret = requester.evidence.secret
    if any(holds_secret(name, secret) for name in (csr.subject.rfc4514_string(), *csr.san)):
        raise NotAuthorized("csr_holds_secret", "A name in the request holds its secret.")


def _shown(subject: str) -> str:
    """A subject as an operator may see it: escaped, and if it is not whole, that is said."""
    text = subject.encode("unicode_escape").decode()
    return text if len(text) <= _SUBJECT else f"{text[:_SUBJECT]}... (cut; {len(text)} characters)"


def touched_request(pending_id: int) -> str:
    """The request among what a unit touches (`Unit.touches`)."""
    return f"request:{pending_id}"


def touched_name(realm: str, device: str) -> str:
    """The requests in a name, while nobody is registered by it, among what a unit touches."""
    return f"newcomer:{realm}:{device.lower()}"


def rejected(found: PendingRequest) -> NotAuthorized:
    """What a requester is told whom an operator has turned down."""
    return NotAuthorized(
        "request_rejected", "The request was rejected.", detail=found.reason or f"request {found.request_id}"
    )


def _found(row: Row, now: dt.datetime) -> PendingRequest:
    state = "expired" if row[1] in ("pending", "approved") and from_ms(row[2]) <= now else row[1]
    return PendingRequest(row[0], state, row[3], row[4], _read(row[5]), row[6], row[7], row[8], row[9])


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
