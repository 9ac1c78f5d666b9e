"""What a webhook leaves of a plan: all of it, or less."""

import dataclasses
import datetime as dt
import hashlib

from cryptography import x509

from ca_core.authority.plan import CertificatePlan
from ca_core.csr import ParsedCsr
from ca_core.errors import Unavailable
from ca_core.model import Call, Means, Operation, Requester
from ca_core.registration.admission.idevid import serial_number_of
from ca_core.registration.admission.webhook import Idevid, Question, Verdict, Webhook, webhook_refusal
from ca_core.registration.realm import Realm

__all__ = ["Narrowing"]

_SECOND = dt.timedelta(seconds=1)


class Narrowing:
    """Asks the realm's webhook about one request, once for each thing that it could be given."""

    def __init__(self, webhook: Webhook | None) -> None:
        self._webhook = webhook
        self._asked: dict[Question, Verdict] = {}

    async def narrowed(
        self,
        plan: CertificatePlan,
        realm: Realm,
        profile: str,
        requester: Requester,
        csr: ParsedCsr,
        operation: Operation,
        call: Call,
        now: dt.datetime,
    ) -> CertificatePlan:
        """The plan as the webhook leaves it. Raises `NotAuthorized`, `Unavailable`; see `Webhook.ask`."""
        document = realm.document.admission.webhook
        if self._webhook is None or document is None:
            raise Unavailable("the realm asks a webhook, and this process has none to ask")
        question = Question(
            request_id=call.request_id,
            realm=realm.name,
            profile=profile,
            protocol=call.protocol,
            operation=operation,
            device=requester.device.name,
            subject=csr.subject.rfc4514_string(),
            asked=csr.san,
            names=plan.names,
            validity=_offered(plan, now),
            key_kind=csr.key,
            key_sha256=csr.spki_sha256.hex(),
            source=call.source,
            means=_means(requester),
            idevid=_idevid(requester),
        )
        verdict = self._asked.get(question)
        if verdict is None:
            verdict = self._asked[question] = await self._webhook.ask(document, question)
        names = plan.names if verdict.names is None else tuple(name for name in plan.names if name in verdict.names)
        if not names and not list(plan.subject):
            raise webhook_refusal("webhook_refused", "it left no name at all")
        not_after = plan.not_after
        if verdict.validity is not None:
            not_after = min(not_after, (now + verdict.validity - _SECOND).replace(microsecond=0))
        return dataclasses.replace(plan, names=names, not_after=not_after)


def _offered(plan: CertificatePlan, now: dt.datetime) -> dt.timedelta:
    """For how long from now, in whole seconds."""
    return plan.not_after + _SECOND - now.replace(microsecond=0)


def _means(requester: Requester) -> tuple[Means, ...]:
    """All that was proven."""
    is_both = requester.means is Means.SECRET and requester.credential_key is not None
    return (Means.SECRET, Means.IDEVID) if is_both else (requester.means,)


def _idevid(requester: Requester) -> Idevid | None:
    if Means.IDEVID not in _means(requester):
        return None
    der = requester.evidence.chain[0]
    leaf = x509.load_der_x509_certificate(der)
    serial_number = serial_number_of(leaf) or ""
    return Idevid(leaf.issuer.rfc4514_string(), serial_number, hashlib.sha256(der).hexdigest())
