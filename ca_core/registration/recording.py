"""What is kept of each request that gets nothing new: an attempt, a count, and an event of who proved who it is."""

import time

from ca_core.csr import ParsedCsr
from ca_core.errors import Refusal
from ca_core.limits import Rates
from ca_core.meter import Meter
from ca_core.model import Call, Clock, Issued, Requester, format_serial
from ca_core.records.audit import AuditEvent
from ca_core.records.times import to_ms
from ca_core.registration.attempts import Attempts, attempt_row, transaction_details
from ca_core.registration.realm import Realm, Resolved

__all__ = ["Recorder"]

_AUDIT_SAME_REFUSAL = 60.0
_NO_JUNK = frozenset({"credentials_missing", "device_paused"})
"""How honest clients begin: they are asked for a credential, and send it then. And what a pause answers: each refusal
before it was counted, and a paused device that goes on asking must not shut out its neighbours behind one address.
"""


class Recorder:
    """Records, behind the answer."""

    def __init__(self, attempts: Attempts, meter: Meter, rates: Rates, clock: Clock) -> None:
        self._attempts = attempts
        self._meter = meter
        self._rates = rates
        self._clock = clock
        self._audited: dict[tuple[int, str], float] = {}

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
        who = refusal.device
        if requester is not None and requester.proves_device:
            who = requester.device.id, requester.device.name
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
            device_id=requester.device.id if requester and requester.proves_device else None,
            outcome="error",
            code="internal_error",
            detail=reason,
            key=csr.key if csr else None,
            signature_hash=csr.signature_hash if csr else None,
        )
        self._attempts.record(row, at)

    def waits(self, realm: Realm, requester: Requester, csr: ParsedCsr, call: Call) -> None:
        """Record a request that waits for approval."""
        at = to_ms(self._clock())
        row = attempt_row(
            call,
            at,
            realm_id=realm.id,
            device_id=requester.device.id if requester.proves_device else None,
            outcome="pending",
            detail="waits for approval",
            key=csr.key,
            signature_hash=csr.signature_hash,
        )
        self._attempts.record(row, at, tolerating=(realm.id, call))

    def given_again(
        self, realm: Realm, device_id: int, call: Call, issued: Issued, detail: str, csr: ParsedCsr | None = None
    ) -> None:
        """Record a request that was answered with a certificate from before; `detail` says why."""
        at = to_ms(self._clock())
        row = attempt_row(
            call,
            at,
            realm_id=realm.id,
            device_id=device_id,
            outcome="issued",
            detail=detail,
            serial=format_serial(issued.serial),
            key=csr.key if csr else None,
            signature_hash=csr.signature_hash if csr else None,
        )
        self._attempts.record(row, at, tolerating=(realm.id, call))

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
