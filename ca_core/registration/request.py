"""The one door: every certificate for a device passes `Registration.enroll`.

A request is decided on facts as read, signed in memory, and committed together with the spent secret, the audit event
and the attempt while each of those facts still holds. When one of them does not, the signed bytes are dropped and the
request is decided again on the facts as they are now; so a race ends in the same answer as a queue.
"""

import datetime as dt
import logging
import time

from sqlalchemy import bindparam, select

from ca_core.authority.issuance import Issuance
from ca_core.authority.issuer import Issuers
from ca_core.csr import ParsedCsr
from ca_core.errors import BadKey, ConditionFailed, ConstraintFailed, InternalError, NotAuthorized, Refusal, Unavailable
from ca_core.limits import Rates
from ca_core.meter import NO_METER, Meter
from ca_core.model import Call, Clock, Evidence, Issued, Operation, Pending, Refused, Requester, format_serial
from ca_core.records.audit import AuditEvent
from ca_core.records.query import Query
from ca_core.records.schema import certificate
from ca_core.records.store import Store
from ca_core.records.times import to_ms
from ca_core.registration.attempts import Attempts, attempt_row, transaction_details
from ca_core.registration.issued import Decision, issued_unit
from ca_core.registration.moment import NEWEST_EVENT, Watch, is_behind
from ca_core.registration.poll import poll_transaction
from ca_core.registration.profile import check_asked, choose_issuer, choose_profile, make_plan
from ca_core.registration.realm import Realms, Resolved
from ca_core.registration.requester import BLOCKED_KEY, authenticate, claim_of
from ca_core.registration.retransmission import asked_before, request_key, served_by, transacted_before

_LOG = logging.getLogger(__name__)
_TRIES = 5
_AUDIT_SAME_REFUSAL = 60.0
_KEPT_IN_MEMORY = frozenset({"realm_version", "issuer_active"})
_NO_JUNK = frozenset({"credentials_missing"})
"""How honest clients begin: they are asked for a credential, and send it then."""

_c = certificate.c
_OTHERS_KEY = (
    select(_c.id)
    .where(
        _c.realm_id == bindparam("realm_id"),
        _c.spki_sha256 == bindparam("spki_sha256"),
        (_c.device_id != bindparam("device_id")) | _c.device_id.is_(None),
    )
    .limit(1)
)
_TRANSACTED = Query(
    select(_c.id)
    .where(
        _c.realm_id == bindparam("realm_id"),
        _c.transaction_id == bindparam("transaction_id"),
        _c.device_id == bindparam("device_id"),
        _c.spki_sha256 != bindparam("spki_sha256"),
        _c.issued_at > bindparam("since"),
    )
    .limit(1)
)
# In one statement, because taking SQLite's read lock costs more than looking up a row.
_FACTS = Query(select(NEWEST_EVENT.scalar_subquery(), BLOCKED_KEY.scalar_subquery(), _OTHERS_KEY.scalar_subquery()))


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
        meter: Meter = NO_METER,
        rates: Rates | None = None,
    ) -> None:
        self._rates = rates or Rates(None)
        self._store = store
        self._meter = meter
        self._realms = realms
        self._issuers = issuers
        self._issuance = issuance
        self._attempts = attempts
        self._clock = clock
        self._watch = Watch(store, clock)
        self._public_url = public_url
        self._demo = demo
        self._audited: dict[tuple[int, str], float] = {}

    async def authenticate(self, resolved: Resolved, evidence: Evidence, csr: ParsedCsr) -> Requester:
        """Who is asking. Raises `NotAuthenticated`, `NotAuthorized`, `Unavailable`; see `requester.authenticate`."""
        moment = self._watch.look()
        try:
            return await authenticate(self._store, resolved.realm, evidence, csr, moment.at)
        except Refusal as refusal:
            refusal.claim = claim_of(evidence, csr)
            await self._watch.doubt(moment)
            raise

    async def enroll(
        self, resolved: Resolved, requester: Requester, csr: ParsedCsr, operation: Operation, call: Call
    ) -> Issued | Pending | Refused:
        """Decide, sign and record. Whatever is answered stands in the store first, refusals in the attempts.

        Raises `InternalError` when nothing could be decided; nothing was issued then.
        """
        try:
            return await self._decided(resolved, requester, csr, operation, call)
        except InternalError as exc:
            self.failed(call, resolved, str(exc), requester=requester, csr=csr)
            exc.recorded = True
            raise

    async def _decided(
        self, resolved: Resolved, requester: Requester, csr: ParsedCsr, operation: Operation, call: Call
    ) -> Issued | Pending | Refused:
        """Decided on facts that held until the commit, as often as that takes."""
        try:
            for tried in range(1, _TRIES + 1):
                moment = self._watch.look()
                try:
                    return await self._decide(resolved, requester, csr, operation, call, moment.at)
                except ConditionFailed as exc:
                    _LOG.info("request %s is decided again: %s", call.request_id, exc)
                    if not _KEPT_IN_MEMORY.isdisjoint(exc.conditions):
                        self._realms.forget()
                        self._issuers.forget()
                except ConstraintFailed as exc:
                    if tried == _TRIES:  # enforces case 57
                        raise Unavailable(f"the store keeps refusing a certificate: {exc}") from exc
                    _LOG.warning("request %s is decided again: %s", call.request_id, exc)
                resolved = await self._realms.again(resolved)
                requester = await self.authenticate(resolved, requester.evidence, csr)
            raise NotAuthorized("changed_meanwhile", "What the request stands on keeps changing; ask again.")
        except Refusal as refusal:
            await self._watch.doubt(moment)
            return Refused(self.refused(refusal, call, resolved, requester=requester, csr=csr))

    async def poll(self, resolved: Resolved, transaction_id: str, signer_key: bytes, call: Call) -> Issued | Refused:
        """The certificate of a transaction that is over, for the key (SHA-256) that began it."""
        moment = self._watch.look()
        try:
            device, issued = await poll_transaction(self._store, resolved.realm, transaction_id, signer_key, moment.at)
        except Refusal as refusal:
            await self._watch.doubt(moment)
            return Refused(self.refused(refusal, call, resolved))
        at = to_ms(self._clock())
        detail = "the transaction's certificate, asked for again"
        row = attempt_row(
            call,
            at,
            realm_id=resolved.realm.id,
            device_id=device.id,
            outcome="issued",
            detail=detail,
            serial=format_serial(issued.serial),
        )
        self._attempts.record(row, at, tolerating=(resolved.realm.id, call))
        return issued

    def refused(
        self,
        refusal: Refusal,
        call: Call,
        resolved: Resolved | None,
        *,
        requester: Requester | None = None,
        csr: ParsedCsr | None = None,
    ) -> Refusal:
        """Record a refusal, behind the answer. Only one of a requester who proved who it is reaches the audit trail.

        Returns what to tell: the refusal, or `TooMany` when the source had more than its share of them.
        """
        at = to_ms(self._clock())
        realm = resolved.realm if resolved else None
        self._meter.refused(realm.name if realm else "", call.protocol, refusal.code)
        who = (requester.device.id, requester.device.name) if requester else refusal.device
        row = attempt_row(
            call,
            at,
            realm_id=realm.id if realm else None,
            device_id=who[0] if who else None,
            outcome="refused",
            refusal=refusal,
            key=csr.key if csr else None,
            signature_hash=csr.signature_hash if csr else None,
        )
        events: tuple[AuditEvent, ...] = ()
        if who is not None and realm is not None and self._is_news(who[0], refusal.code):
            events = (_refused_event(refusal, call, realm.name, who[1], requester),)
        self._attempts.record(row, at, events, (realm.id, call) if realm is not None else None)
        if who is not None or refusal.code in _NO_JUNK:
            return refusal
        return self._rates.refused(call.source) or refusal

    def failed(
        self,
        call: Call,
        resolved: Resolved | None,
        reason: str,
        *,
        requester: Requester | None = None,
        csr: ParsedCsr | None = None,
    ) -> None:
        """Record a request that failed by our own fault; `reason` is for the operator alone."""
        at = to_ms(self._clock())
        row = attempt_row(
            call,
            at,
            realm_id=resolved.realm.id if resolved else None,
            device_id=requester.device.id if requester else None,
            outcome="error",
            code="internal_error",
            detail=reason,
            key=csr.key if csr else None,
            signature_hash=csr.signature_hash if csr else None,
        )
        self._attempts.record(row, at)

    async def clock_is_behind(self) -> bool:
        """Whether the clock stands more than a minute before the store's newest event; nothing is issued then."""
        return await self._watch.is_behind()

    async def _decide(
        self,
        resolved: Resolved,
        requester: Requester,
        csr: ParsedCsr,
        operation: Operation,
        call: Call,
        now: dt.datetime,
    ) -> Issued:
        realm, document = resolved.realm, resolved.realm.document
        # (1) What may it have? Refusals leave here.
        profile = choose_profile(resolved, requester.device)
        dropped = check_asked(profile, requester, csr, operation)
        await self._check_facts(now, requester, csr, call, document.retry)
        # (2) Was it asked before?
        key = request_key(resolved, profile.name, operation, requester, csr, call.transaction_id)
        # A renewal is keyed by the certificate that it renews, so it is the same one however late it comes.
        retry_since = 0 if requester.certificate else to_ms(now - document.retry)
        before: Issued | None = None
        if requester.secret is None and call.transaction_id is not None:
            before = await transacted_before(self._store, requester, csr, call.transaction_id, key, now=to_ms(now))
        elif requester.secret is None:
            before = await asked_before(self._store, realm.id, key, retry_since=retry_since, now=to_ms(now))
        elif requester.secret.spent_at is not None:
            before = await served_by(self._store, requester, requester.secret, csr, now=to_ms(now))
        if before is not None:
            self._record_again(resolved, requester, csr, call, before)
            return before
        # (3) Sign in memory; nobody has it yet.
        issuer = choose_issuer(profile, await self._issuers.of_realm(realm.id, realm.edition))
        plan = make_plan(profile, requester.device, csr, issuer, now, demo=self._demo)
        # Only now: a copy of an old message, which anybody may send again, uses up nothing of the device's.
        rated = (requester.device.id, _credential_of(requester))
        self._rates.take(*rated)
        try:
            signed = await self._issuance.issue(plan, issuer, document.public_url or self._public_url)
            # (4) Commit, on the condition that all of it still holds.
            decision = Decision(
                realm, requester, csr, call, profile.name, issuer, signed, key, retry_since, dropped, now
            )
            await self._store.commit(issued_unit(decision))  # enforces case 56
        except BaseException:
            self._rates.give_back(*rated)
            raise
        self._rates.proven(call.source)
        # (5) Only now may it leave.
        return Issued(signed.der, signed.serial)

    async def _check_facts(
        self, now: dt.datetime, requester: Requester, csr: ParsedCsr, call: Call, retry: dt.timedelta
    ) -> None:
        if (shortage := self._store.shortage()) is not None:  # enforces case 58
            raise Unavailable(shortage)
        row = await self._store.first(
            _FACTS, spki_sha256=csr.spki_sha256, realm_id=requester.realm_id, device_id=requester.device.id
        )
        newest_event, blocked, others_certificate = row or (None, None, None)
        if is_behind(now, newest_event):  # enforces case 61
            raise Unavailable("this machine's clock stands before the store's newest event: set the clock")
        if blocked is not None:
            raise BadKey("key_blocked", "The key is blocked.")
        if others_certificate is not None:
            raise BadKey("key_of_other_device", "The key belongs to another device.")
        # A spent secret asks for what it was spent for, in whichever transaction.
        again = requester.secret is not None and requester.secret.spent_at is not None
        if (
            call.transaction_id is not None
            and not again
            and await self._store.first(
                _TRANSACTED,
                realm_id=requester.realm_id,
                transaction_id=call.transaction_id,
                device_id=requester.device.id,
                spki_sha256=csr.spki_sha256,
                since=to_ms(now - retry),
            )
        ):
            raise NotAuthorized("transaction_of_other_key", "The transaction was one for another key.")

    def _record_again(
        self, resolved: Resolved, requester: Requester, csr: ParsedCsr, call: Call, before: Issued
    ) -> None:
        at = to_ms(self._clock())
        row = attempt_row(
            call,
            at,
            realm_id=resolved.realm.id,
            device_id=requester.device.id,
            outcome="issued",
            detail="the same request again: answered with the same certificate",
            serial=format_serial(before.serial),
            key=csr.key,
            signature_hash=csr.signature_hash,
        )
        self._attempts.record(row, at, tolerating=(resolved.realm.id, call))

    def _is_news(self, device_id: int, code: str) -> bool:
        """False while the same refusal of the same device was audited within the last minute.

        A device that retries a doomed request must not grow the trail without bound; its attempts are kept anyway.
        """
        now = time.monotonic()
        last = self._audited.get((device_id, code))
        if last is not None and now - last < _AUDIT_SAME_REFUSAL:
            return False
        if len(self._audited) > 10_000:
            self._audited.clear()
        self._audited[device_id, code] = now
        return True


def _credential_of(requester: Requester) -> tuple[str, bytes]:
    """What was shown, so that each is counted by itself."""
    return requester.means.value, requester.credential


def _refused_event(refusal: Refusal, call: Call, realm: str, device: str, requester: Requester | None) -> AuditEvent:
    return AuditEvent(
        "request.refused",
        f"device:{device}",
        realm=realm,
        device=device,
        request_id=call.request_id,
        details={
            "code": refusal.code,
            "detail": refusal.detail,
            "means": requester.means.value if requester else None,
            "operation": call.operation,
            "source": call.source,
            **transaction_details(call),
            **({"secret_exposed": True} if requester and requester.secret and requester.evidence.is_exposed else {}),
        },
    )
