"""What would become of a request that waits, were it approved and asked for again now.

By a rehearsal: the door itself decides, on what the store has kept of the request, and stops where it would sign.
"""

import datetime as dt

from cryptography import x509

from ca_core.csr import ParsedCsr
from ca_core.errors import InternalError, NotAuthorized, Refusal, TooMany
from ca_core.model import Call, Clock, Operation, Pending, Refused, Requester
from ca_core.names import parse_duration
from ca_core.records.store import Store
from ca_core.records.times import rfc3339
from ca_core.registration.pending import Pendings
from ca_core.registration.profile import choose_profile
from ca_core.registration.realm import Resolved, is_retired
from ca_core.registration.rehearsal import Rehearsal, WouldIssue
from ca_core.rows import Outlook, RequestRow

__all__ = ["foretell"]


async def foretell(store: Store, row: RequestRow, clock: Clock, *, public_url: str, demo: bool) -> Outlook:
    """The outlook of a request that is pending or approved."""
    waiting = await Pendings(store).by_id(int(row.id), clock())
    if waiting is None:
        return Outlook(outcome="unknown", message="the request is gone", warnings=[])
    rehearsal = Rehearsal(store, None, clock=clock, public_url=public_url, demo=demo, approving=waiting)
    resolved: Resolved | None = None
    requester: Requester | None = None
    realm = await rehearsal.realms.get(row.realm)
    if realm.state != "active":
        retired = is_retired(realm)
        message = f"{retired.message}, and serves nobody"
        return Outlook(
            outcome="refused",
            code=retired.code,
            message=message,
            remedy=retired.remedy,
            warnings=[f"it would be refused now: {message}"],
        )
    try:
        resolved = await rehearsal.realms.resolve(row.protocol, row.realm, None)
        csr = ParsedCsr.recall(waiting.csr, allow_sha1=resolved.realm.document.scep.allow_sha1)
        requester = await rehearsal.registration.authenticate(resolved, waiting.evidence, csr)
        call = Call(
            row.request_id,
            "scep" if row.protocol == "scep" else "est",
            waiting.operation,
            row.source,
            transaction_id=waiting.transaction_id,
        )
        outcome = await rehearsal.registration.enroll(resolved, requester, csr, Operation(waiting.operation), call)
    except WouldIssue as found:
        return _issued(found, csr, requester, resolved, clock())
    except Refusal as refusal:
        return _refused(refusal)
    except InternalError as exc:
        return Outlook(outcome="unknown", message=str(exc), warnings=[f"what would be issued is not known: {exc}"])
    if isinstance(outcome, Refused):
        return _refused(outcome.refusal)
    if isinstance(outcome, Pending):
        return _refused(NotAuthorized("request_outdated", "The device, its name or its profile has changed since."))
    message = "it would be answered with a certificate that was issued already"
    return Outlook(outcome="unknown", message=message, warnings=[message])


def _issued(
    found: WouldIssue, csr: ParsedCsr, requester: Requester | None, resolved: Resolved | None, now: dt.datetime
) -> Outlook:
    plan = found.plan
    warnings: list[str] = []
    if requester is not None and resolved is not None:
        until = now + parse_duration(resolved.realm.document.admission.pending_lifetime)
        warnings += _ending(requester, until)
        if requester.is_unproven and not requester.device.is_new:
            warnings.append(f"{requester.device.name} is registered, and nothing proves that it asks: compare the key")
        if jitter := choose_profile(resolved, requester.device).document.jitter:
            warnings.append(f"by the profile's jitter it may end up to {jitter} earlier")
        if requester.asks_webhook:
            warnings.append("the realm's webhook is asked as well: it may take names away, shorten it, or refuse")
    return Outlook(
        outcome="issued",
        issuer=found.issuer,
        subject=plan.subject.rfc4514_string(),
        names=list(plan.names),
        not_after=rfc3339(plan.not_after),
        dropped=_dropped(found, csr),
        warnings=warnings,
    )


def _dropped(found: WouldIssue, csr: ParsedCsr) -> list[str]:
    """What the request asks for and would not get, in words."""
    given = {(one.oid, one.value) for one in found.plan.subject}
    left = [
        f"subject {ascii(one.rfc4514_attribute_name)[1:-1][:40]}"
        for one in csr.subject
        if (one.oid, one.value) not in given
    ]
    return list(dict.fromkeys([*left, *(f"SAN {name}" for name in csr.san if name not in found.plan.names)]))


def _ending(requester: Requester, until: dt.datetime) -> list[str]:
    """What proves the asker, and ends before an approval would."""
    ends: list[tuple[str, dt.datetime]] = []
    if requester.secret is not None and requester.secret.spent_at is None:
        ends.append(("secret", requester.secret.expires_at))
    if requester.evidence.chain:
        leaf = x509.load_der_x509_certificate(requester.evidence.chain[0])
        ends.append(("certificate", leaf.not_valid_after_utc))
    return [
        f"the device must ask again before {rfc3339(end)}, when the {what} ends that proved who it is"
        for what, end in ends
        if end < until
    ]


def _refused(refusal: Refusal) -> Outlook:
    """A refusal that passes by itself is no more than a warning."""
    detail = f" ({refusal.detail})" if refusal.detail else ""
    message = f"{refusal.message.removesuffix('.')}{detail}"
    is_passing = isinstance(refusal, TooMany)
    return Outlook(
        outcome="later" if is_passing else "refused",
        code=refusal.code,
        message=message,
        remedy=refusal.remedy,
        warnings=[f"it would be refused now: {message}"],
    )
