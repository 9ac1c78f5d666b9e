"""The one door: every certificate for a device passes `Registration.enroll`.

A request is decided on facts as read, signed in memory, and committed together with the spent secret, the audit event
and the attempt while each of those facts still holds. When one of them does not, the signed bytes are dropped and the
request is decided again on the facts as they are now; so a race ends in the same answer as a queue.
"""

import datetime as dt
import hashlib
import logging
import time

from sqlalchemy import bindparam, func, select

from ca_core.authority.issuance import Issuance, SignedCertificate
from ca_core.authority.issuer import Issuer, Issuers
from ca_core.authority.record import certificate_row
from ca_core.csr import ParsedCsr
from ca_core.errors import (
    BadKey,
    ConditionFailed,
    ConstraintFailed,
    NotAuthenticated,
    NotAuthorized,
    Refusal,
    Unavailable,
)
from ca_core.model import (
    Call,
    Clock,
    Evidence,
    Issued,
    Means,
    Operation,
    Pending,
    Refused,
    Requester,
    Serial,
    format_serial,
)
from ca_core.records.audit import AuditEvent
from ca_core.records.query import Query, Values
from ca_core.records.schema import audit, certificate, device, device_secret, key_block
from ca_core.records.store import Store
from ca_core.records.times import to_ms
from ca_core.records.unit import Guard, Step, Unit
from ca_core.registration.attempts import INSERT as INSERT_ATTEMPT
from ca_core.registration.attempts import PRUNE_DEVICE, Attempts, attempt_row
from ca_core.registration.conditions import GUARDS
from ca_core.registration.device import MAY_ENROLL
from ca_core.registration.profile import check_asked, choose_issuer, choose_profile, make_plan
from ca_core.registration.realm import Realms, Resolved
from ca_core.registration.requester import authenticate

_LOG = logging.getLogger(__name__)
_TRIES = 5
_AUDIT_SAME_REFUSAL = 60.0

_CLOCK_LEEWAY_MS = 60_000

_c = certificate.c
_NEWEST_EVENT = Query(select(func.max(audit.c.at)))
_BLOCKED = Query(select(key_block.c.reason).where(key_block.c.spki_sha256 == bindparam("spki_sha256")))
_OTHERS_KEY = Query(
    select(_c.id)
    .where(
        _c.realm_id == bindparam("realm_id"),
        _c.spki_sha256 == bindparam("spki_sha256"),
        (_c.device_id != bindparam("device_id")) | _c.device_id.is_(None),
    )
    .limit(1)
)
_ANSWERED = Query(
    select(_c.der, _c.serial)
    .where(
        _c.realm_id == bindparam("realm_id"),
        _c.request_key == bindparam("request_key"),
        _c.status == "valid",
        _c.replaced_by_id.is_(None),
        _c.issued_at > bindparam("retry_since"),
        _c.not_after > bindparam("now"),
    )
    .order_by(_c.id.desc())
    .limit(1)
)
_SERVED = Query(
    select(_c.der, _c.serial).where(
        _c.realm_id == bindparam("realm_id"),
        _c.id == bindparam("certificate_id"),
        _c.status == "valid",
        _c.replaced_by_id.is_(None),
        _c.not_after > bindparam("now"),
    )
)
_SPEND = Query(
    device_secret.update()
    .where(
        device_secret.c.realm_id == bindparam("of_realm"),
        device_secret.c.id == bindparam("of_secret"),
        device_secret.c.spent_at.is_(None),
    )
    .values(
        spent_at=bindparam("spent_at"),
        spent_key=bindparam("spent_key"),
        spent_names=bindparam("spent_names"),
        certificate_id=bindparam("guard_id"),
    )
)
_SEEN = Query(
    device.update()
    .where(
        device.c.realm_id == bindparam("of_realm"),
        device.c.id == bindparam("of_device"),
        MAY_ENROLL,
    )
    .values(state="active", last_seen_at=bindparam("seen_at"))
)
_REPLACE = Query(
    certificate.update()
    .where(_c.realm_id == bindparam("of_realm"), _c.id == bindparam("of_certificate"))
    .values(replaced_by_id=bindparam("guard_id"))
)


class Registration:
    """Decides who gets what. `demo` limits every certificate to seven days; `public_url` is the node's own."""

    def __init__(
        self,
        store: Store,
        realms: Realms,
        issuers: Issuers,
        issuance: Issuance,
        attempts: Attempts,
        *,
        clock: Clock,
        public_url: str,
        demo: bool,
    ) -> None:
        self._store = store
        self._realms = realms
        self._issuers = issuers
        self._issuance = issuance
        self._attempts = attempts
        self._clock = clock
        self._public_url = public_url
        self._demo = demo
        self._audited: dict[tuple[int, str], float] = {}

    async def authenticate(self, resolved: Resolved, evidence: Evidence, csr: ParsedCsr) -> Requester:
        """Who is asking. Raises `NotAuthenticated`, `NotAuthorized`; see `requester.authenticate`."""
        return await authenticate(self._store, resolved.realm, evidence, csr, self._clock())

    async def enroll(
        self, resolved: Resolved, requester: Requester, csr: ParsedCsr, operation: Operation, call: Call
    ) -> Issued | Pending | Refused:
        """Decide, sign and record. Whatever is answered stands in the store first, refusals in the attempts.

        Raises `InternalError` when nothing could be decided; nothing was issued then.
        """
        try:
            for attempt in range(1, _TRIES + 1):
                try:
                    return await self._decide(resolved, requester, csr, operation, call)
                except ConditionFailed as exc:
                    _LOG.info("request %s is decided again: %s", call.request_id, exc)
                except ConstraintFailed as exc:
                    if attempt == _TRIES:
                        raise Unavailable(f"the store keeps refusing a certificate: {exc}") from exc
                    _LOG.warning("request %s is decided again: %s", call.request_id, exc)
                resolved = await self._realms.again(resolved)
                requester = await self.authenticate(resolved, requester.evidence, csr)
            raise NotAuthorized("changed_meanwhile", "What the request stands on keeps changing; ask again.")
        except Refusal as refusal:
            self.refused(refusal, call, resolved, requester=requester, csr=csr)
            return Refused(refusal)

    def refused(
        self,
        refusal: Refusal,
        call: Call,
        resolved: Resolved | None,
        *,
        requester: Requester | None = None,
        csr: ParsedCsr | None = None,
    ) -> None:
        """Record a refusal, behind the answer. Only one of a requester who proved who it is reaches the audit trail."""
        at = to_ms(self._clock())
        realm = resolved.realm if resolved else None
        row = attempt_row(
            call,
            at,
            realm_id=realm.id if realm else None,
            device_id=requester.device.id if requester else None,
            outcome="refused",
            refusal=refusal,
            key=csr.key if csr else None,
            signature_hash=csr.signature_hash if csr else None,
        )
        if requester is None or realm is None:
            self._attempts.unknown(row, at)
            return
        insert, params, prune = self._attempts.of_device(row)
        events: tuple[AuditEvent, ...] = ()
        if self._is_news(requester.device.id, refusal.code):
            events = (
                AuditEvent(
                    "request.refused",
                    f"device:{requester.device.name}",
                    realm=realm.name,
                    device=requester.device.name,
                    request_id=call.request_id,
                    details={
                        "code": refusal.code,
                        "detail": refusal.detail,
                        "means": requester.means.value,
                        "operation": call.operation,
                        "source": call.source,
                    },
                ),
            )
        self._store.submit(Unit(Guard(insert, params), at, (prune,), events))

    async def _decide(
        self, resolved: Resolved, requester: Requester, csr: ParsedCsr, operation: Operation, call: Call
    ) -> Issued:
        now = self._clock()
        await self._check_clock(now)
        realm, document = resolved.realm, resolved.realm.document
        # (1) What may it have? Refusals leave here.
        profile = choose_profile(resolved, requester.device)
        dropped = check_asked(profile, requester, csr, operation)
        await self._check_key(realm.id, requester, csr)
        # (2) Was it asked before? Only after all that could refuse it.
        key = _request_key(resolved, profile.name, operation, requester, csr)
        # A renewal is keyed by the certificate that it renews, so it is the same one however late it comes.
        retry_since = 0 if requester.certificate else to_ms(now - document.retry)
        answered = await self._answered(realm.id, requester, csr, key, retry_since, to_ms(now))
        if answered is not None:
            self._answered_again(resolved, requester, csr, call, answered)
            return answered
        # (3) Sign in memory; nobody has it yet.
        issuer = choose_issuer(profile, await self._issuers.of_realm(realm.id, realm.version))
        plan = make_plan(profile, requester.device, csr, issuer, now, demo=self._demo)
        signed = await self._issuance.issue(plan, issuer, document.public_url or self._public_url)
        # (4) Commit, on the condition that all of it still holds.
        unit = self._unit(resolved, requester, csr, call, profile.name, issuer, signed, key, now, retry_since, dropped)
        await self._store.commit(unit)
        # (5) Only now may it leave.
        return Issued(signed.der, signed.serial)

    async def _check_clock(self, now: dt.datetime) -> None:
        row = await self._store.first(_NEWEST_EVENT)
        if row is not None and row[0] is not None and to_ms(now) < row[0] - _CLOCK_LEEWAY_MS:
            raise Unavailable("this machine's clock stands before the store's newest event: set the clock")

    async def _check_key(self, realm_id: int, requester: Requester, csr: ParsedCsr) -> None:
        if await self._store.first(_BLOCKED, spki_sha256=csr.spki_sha256) is not None:
            raise BadKey("key_blocked", "The key is blocked.")
        others = await self._store.first(
            _OTHERS_KEY, realm_id=realm_id, spki_sha256=csr.spki_sha256, device_id=requester.device.id
        )
        if others is not None:
            raise BadKey("key_of_other_device", "The key belongs to another device.")

    async def _answered(
        self, realm_id: int, requester: Requester, csr: ParsedCsr, key: bytes, retry_since: int, now: int
    ) -> Issued | None:
        secret = requester.secret
        if secret is None:
            row = await self._store.first(
                _ANSWERED, realm_id=realm_id, request_key=key, retry_since=retry_since, now=now
            )
            return Issued(row[0], Serial(int(row[1], 16)), again=True) if row else None
        if secret.spent_at is None:
            return None
        if secret.spent_names != csr.names_hash:
            raise NotAuthorized("retry_other_names", "The secret was used for other names.")
        row = await self._store.first(_SERVED, realm_id=realm_id, certificate_id=secret.certificate_id, now=now)
        if row is None:
            raise NotAuthenticated(
                "secret_spent",
                "The credentials are not accepted.",
                detail=f"device {requester.device.name}; its certificate was revoked or replaced since",
            )
        return Issued(row[0], Serial(int(row[1], 16)), again=True)

    def _answered_again(
        self, resolved: Resolved, requester: Requester, csr: ParsedCsr, call: Call, answered: Issued
    ) -> None:
        at = to_ms(self._clock())
        row = attempt_row(
            call,
            at,
            realm_id=resolved.realm.id,
            device_id=requester.device.id,
            outcome="issued",
            detail="the same request again: answered with the same certificate",
            serial=format_serial(answered.serial),
            key=csr.key,
            signature_hash=csr.signature_hash,
        )
        insert, params, prune = self._attempts.of_device(row)
        self._store.submit(Unit(Guard(insert, params), at, (prune,)))

    def _unit(
        self,
        resolved: Resolved,
        requester: Requester,
        csr: ParsedCsr,
        call: Call,
        profile: str,
        issuer: Issuer,
        signed: SignedCertificate,
        key: bytes,
        now: dt.datetime,
        retry_since: int,
        dropped: tuple[str, ...],
    ) -> Unit:
        realm, who, at, serial = resolved.realm, requester.device, to_ms(now), format_serial(signed.serial)
        own, secret = requester.certificate, requester.secret
        insert, diagnose = GUARDS[requester.means]
        row: Values = certificate_row(
            signed,
            realm_id=realm.id,
            issuer_id=issuer.id,
            kind="device",
            profile=profile,
            device_id=who.id,
            protocol=call.protocol,
            key=csr.key,
            spki_sha256=csr.spki_sha256,
            at=at,
        ) | {
            "request_key": key,
            "renews_id": own.id if own else None,
            "request_id": call.request_id,
            # beyond the row: what the conditions compare with
            "realm_version": realm.version,
            "secret_id": secret.id if secret else None,
            "retry_since": retry_since,
        }
        steps = [Step(_SEEN, {"of_realm": realm.id, "of_device": who.id, "seen_at": at})]
        if secret is not None:
            spent: Values = {"spent_at": at, "spent_key": csr.spki_sha256, "spent_names": csr.names_hash}
            steps.append(Step(_SPEND, {"of_realm": realm.id, "of_secret": secret.id} | spent))
        if own is not None:
            steps.append(Step(_REPLACE, {"of_realm": realm.id, "of_certificate": own.id}))
        attempted = attempt_row(
            call,
            at,
            realm_id=realm.id,
            device_id=who.id,
            outcome="issued",
            detail=f"dropped: {', '.join(dropped)}" if dropped else "",
            serial=serial,
            key=csr.key,
            signature_hash=csr.signature_hash,
        )
        steps.append(Step(INSERT_ATTEMPT, attempted))
        steps.append(Step(PRUNE_DEVICE, {"realm_id": realm.id, "device_id": who.id}, expect=None))
        event = AuditEvent(
            "certificate.issued",
            f"device:{who.name}",
            realm=realm.name,
            device=who.name,
            serial=serial,
            request_id=call.request_id,
            details={
                "dropped": list(dropped),
                "fingerprint": hashlib.sha256(signed.der).hexdigest(),
                "issuer": issuer.name,
                "means": requester.means.value,
                "credential": requester.credential.hex()
                if requester.means is not Means.SECRET
                else str(secret and secret.id),
                "operation": call.operation,
                "profile": profile,
                "realm_version": realm.version,
                "source": call.source,
            },
        )
        return Unit(Guard(insert, row, diagnose), at, tuple(steps), (event,))

    def _is_news(self, device_id: int, code: str) -> bool:
        """False while the same refusal of the same device was audited within the last minute: a device that retries a
        doomed request must not grow the trail without bound."""
        now = time.monotonic()
        last = self._audited.get((device_id, code))
        if last is not None and now - last < _AUDIT_SAME_REFUSAL:
            return False
        if len(self._audited) > 10_000:
            self._audited.clear()
        self._audited[device_id, code] = now
        return True


def _request_key(resolved: Resolved, profile: str, operation: Operation, requester: Requester, csr: ParsedCsr) -> bytes:
    """What makes two requests the same one: realm and version, profile, operation, credential, key and names."""
    parts = (
        str(resolved.realm.id).encode(),
        str(resolved.realm.version).encode(),
        profile.encode(),
        operation.value.encode(),
        requester.credential,
        csr.spki_sha256,
        csr.names_hash,
    )
    return hashlib.sha256(b"".join(len(part).to_bytes(4, "big") + part for part in parts)).digest()
