"""The one door: every certificate for a device passes `Registration.enroll`.

A request is decided on facts as read, signed in memory, and committed together with the spent secret, the audit event
and the attempt while each of those facts still holds. When one of them does not, the signed bytes are dropped and the
request is decided again on the facts as they are now; so a race ends in the same answer as a queue.
"""

import datetime as dt
import logging

from ca_core.authority.issuance import Issuance
from ca_core.authority.issuer import Issuers
from ca_core.csr import ParsedCsr
from ca_core.errors import (
    ConditionFailed,
    ConstraintFailed,
    InternalError,
    NotAuthorized,
    Refusal,
    TooMany,
    Unavailable,
)
from ca_core.limits import Rates
from ca_core.meter import NO_METER, Meter
from ca_core.model import (
    Call,
    Clock,
    Evidence,
    Issued,
    Operation,
    Pending,
    Refused,
    Requester,
)
from ca_core.records.store import Store
from ca_core.records.times import to_ms
from ca_core.registration.admission.webhook import Webhook
from ca_core.registration.attempts import Attempts
from ca_core.registration.ceiling import check_ceiling
from ca_core.registration.examination import examine
from ca_core.registration.examined import Applicant
from ca_core.registration.facts import check_facts, check_not_enrolled, check_transaction
from ca_core.registration.issued import Decision, issued_unit
from ca_core.registration.moment import Watch
from ca_core.registration.names_held import check_names, check_not_of_ca
from ca_core.registration.narrowing import Narrowing
from ca_core.registration.pause import Pauses, who_asks
from ca_core.registration.pending import PendingRequest, Pendings, rejected
from ca_core.registration.poll import poll_transaction
from ca_core.registration.profile import CHANCE, Chance, choose_issuer, choose_profile, make_plan
from ca_core.registration.realm import Realms, Resolved
from ca_core.registration.recording import Recorder
from ca_core.registration.request_identity import request_identity
from ca_core.registration.requester import authenticate, claim_of
from ca_core.registration.retransmission import asked_before, request_key, served_by, transacted_before

_LOG = logging.getLogger(__name__)
_TRIES = 5
_KEPT_IN_MEMORY = frozenset({"realm_version", "issuer_active"})


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
        webhook: Webhook | None = None,
        pendings: Pendings | None = None,
        chance: Chance = CHANCE,
    ) -> None:
        self._chance = chance
        self._rates = rates or Rates(None)
        self._store = store
        self._realms = realms
        self._issuers = issuers
        self._issuance = issuance
        self._recorder = Recorder(attempts, meter, self._rates, clock)
        self._watch = Watch(store, clock)
        self._pendings = pendings or Pendings(store)
        self._pauses = Pauses()
        self._webhook = webhook
        self._public_url = public_url
        self._demo = demo

    async def authenticate(self, resolved: Resolved, evidence: Evidence, csr: ParsedCsr) -> Requester:
        """Who is asking. Raises `NotAuthenticated`, `NotAuthorized`, `Unavailable`; see `requester.authenticate`."""
        moment, who = self._watch.look(), who_asks(resolved, evidence, csr)
        self._pauses.check(who, resolved.realm.edition)
        try:
            return await authenticate(self._store, resolved.realm, evidence, csr, moment.at)
        except Refusal as refusal:
            refusal.claim = claim_of(evidence, csr)
            await self._watch.doubt(moment)
            self._pauses.refused(who, refusal.code, resolved.realm.edition)
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
            self._recorder.failed(call, resolved, str(exc), requester=requester, csr=csr)
            exc.recorded = True
            raise

    async def _decided(
        self, resolved: Resolved, requester: Requester, csr: ParsedCsr, operation: Operation, call: Call
    ) -> Issued | Pending | Refused:
        """Decided on facts that held until the commit, as often as that takes."""
        narrowing = Narrowing(self._webhook)
        try:
            for tried in range(1, _TRIES + 1):
                moment = self._watch.look()
                try:
                    return await self._decide(resolved, requester, csr, operation, call, moment.at, narrowing)
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
            if not isinstance(refusal, TooMany):
                who = who_asks(resolved, requester.evidence, csr)
                self._pauses.refused(who, refusal.code, resolved.realm.edition)
            return Refused(self._recorder.refused(refusal, call, resolved, requester=requester, csr=csr))

    async def poll(
        self, resolved: Resolved, transaction_id: str, signer_key: bytes, call: Call
    ) -> Issued | Pending | Refused:
        """What has become of a transaction, for the key (SHA-256) that began it: its certificate once there is one."""
        moment = self._watch.look()
        try:
            waiting = await self._pendings.of_transaction(resolved.realm, transaction_id, signer_key, moment.at)
            if waiting is not None and waiting.state != "issued":
                return await self._again(resolved, waiting, call)
            device, issued = await poll_transaction(self._store, resolved.realm, transaction_id, signer_key, moment.at)
        except Refusal as refusal:
            await self._watch.doubt(moment)
            return Refused(self._recorder.refused(refusal, call, resolved))
        self._recorder.given_again(
            resolved.realm, device.id, call, issued, "the transaction's certificate, asked for again"
        )
        return issued

    def refused(
        self, refusal: Refusal, call: Call, resolved: Resolved | None, *, csr: ParsedCsr | None = None
    ) -> Refusal:
        """Record a refusal that was raised before `enroll`; see `Recorder.refused`. Returns what to tell."""
        return self._recorder.refused(refusal, call, resolved, csr=csr)

    def failed(self, call: Call, resolved: Resolved | None, reason: str) -> None:
        """Record a request that failed by our own fault before `enroll`; see `Recorder.failed`."""
        self._recorder.failed(call, resolved, reason)

    async def _again(self, resolved: Resolved, waiting: PendingRequest, call: Call) -> Issued | Pending | Refused:
        """A request that waits, decided again by the rules of now, with what the store has kept of it."""
        allow_sha1 = resolved.realm.document.scep.allow_sha1
        csr = ParsedCsr.recall(waiting.csr, allow_sha1=allow_sha1)
        requester = await self.authenticate(resolved, waiting.evidence, csr)
        return await self.enroll(resolved, requester, csr, Operation(waiting.operation), call)

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
        narrowing: Narrowing,
    ) -> Issued | Pending:
        realm, document = resolved.realm, resolved.realm.document
        # (1) What may it have? Refusals leave here.
        profile = choose_profile(resolved, requester.device)
        examined = examine(profile.document, realm, Applicant.of(requester), csr, operation)
        examined.require()
        issuers = await self._issuers.of_realm(realm.id, realm.edition)
        check_not_of_ca(examined.subject, issuers)
        own = requester.certificate
        await check_names(self._store, examined, requester.device, own, self._realms, to_ms(now))
        if (shortage := self._store.shortage()) is not None:  # enforces case 58
            raise Unavailable(shortage)
        await check_facts(self._store, csr, requester.realm_id, requester.device.id, now)
        await check_transaction(self._store, requester, csr, call, now - document.retry)
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
        if before is not None:  # enforces case 35
            detail = "the same request again: answered with the same certificate"
            self._recorder.given_again(realm, requester.device.id, call, before, detail, csr)
            return before
        # (3) Is it more than what was proven? An operator and a ceiling have a say in first certificates.
        if requester.names_itself:
            await check_not_enrolled(self._store, requester)
        if requester.certificate is None:
            await check_ceiling(self._store, realm, now, is_unproven=requester.names_itself)
        pending_id: int | None = None
        if requester.needs_approval:
            identity = request_identity(requester, csr, profile, examined)
            waiting = await self._pendings.find(realm, csr, identity, now)
            if waiting is None or waiting.state not in ("approved", "rejected"):
                if waiting is None or waiting.state != "pending":
                    await self._pendings.keep(realm, requester, csr, profile.name, identity, operation.value, call, now)
                self._recorder.waits(realm, requester, csr, call)
                return self._pendings.wait(realm)
            if waiting.state == "rejected":
                raise rejected(waiting)
            pending_id = waiting.id
        # (4) Sign in memory; nobody has it yet.
        issuer = choose_issuer(profile, issuers)
        plan = make_plan(profile.document, examined, csr, issuer.not_after, now, demo=self._demo, chance=self._chance)
        if requester.asks_webhook:
            plan = await narrowing.narrowed(plan, realm, profile.name, requester, csr, operation, call, now)
        # Only now: a copy of an old message, which anybody may send again, uses up nothing of the device's.
        device = requester.device
        rated = (device.id or (realm.id, device.name), _credential_of(requester))
        self._rates.take(*rated)
        try:
            signed = await self._issuance.issue(plan, issuer, document.public_url or self._public_url)
            # (5) Commit, on the condition that all of it still holds.
            decision = Decision(
                realm,
                requester,
                csr,
                call,
                profile.name,
                issuer,
                signed,
                key,
                retry_since,
                examined,
                now,
                pending_id,
            )
            await self._store.commit(issued_unit(decision))  # enforces case 56
        except BaseException:
            self._rates.give_back(*rated)
            raise
        self._rates.proven(call.source)
        self._pauses.served(who_asks(resolved, requester.evidence, csr))
        # (6) Only now may it leave.
        return Issued(signed.der, signed.serial)


def _credential_of(requester: Requester) -> tuple[str, bytes]:
    """What was shown, so that each is counted by itself."""
    return requester.means.value, requester.credential
