"""The unit that makes an issued certificate durable: the row, the spent secret, the attempt and the audit event.

Its guard repeats every fact that the decision stood on; see `conditions`.
"""

import datetime as dt
import hashlib
from dataclasses import dataclass

from sqlalchemy import ColumnElement, bindparam

from ca_core.authority.issuance import SignedCertificate
from ca_core.authority.issuer import Issuer
from ca_core.authority.record import certificate_row
from ca_core.csr import ParsedCsr
from ca_core.model import Call, Means, Requester, format_serial
from ca_core.records.audit import AuditEvent
from ca_core.records.query import Query, Values
from ca_core.records.schema import certificate, device, device_secret
from ca_core.records.schema import request as request_table
from ca_core.records.times import to_ms
from ca_core.records.unit import Guard, Step, Unit
from ca_core.registration.attempts import INSERT as INSERT_ATTEMPT
from ca_core.registration.attempts import PRUNE_DEVICE, attempt_row, touched_device, transaction_details
from ca_core.registration.ceiling import admitted_steps, admitted_touches, day_of, share_of_unproven
from ca_core.registration.conditions import guard_of
from ca_core.registration.device import MAY_ENROLL, recorded
from ca_core.registration.examined import Examined
from ca_core.registration.name_keys import looked_up, own_name
from ca_core.registration.name_rows import chosen_values, held_steps, held_touches, room_for
from ca_core.registration.names_carried import keys_beside
from ca_core.registration.names_held import Beside, names_beside, standing
from ca_core.registration.newcomer import (
    CERTIFICATE,
    FIRST_ATTEMPT,
    GRANTED,
    added_event,
    newcomer_row,
    newcomer_touches,
)
from ca_core.registration.pending import touched_request
from ca_core.registration.realm import Realm
from ca_core.registration.renewal import expected, learned
from ca_core.registration.request_ends import end_unproven
from ca_core.registration.tolerances import tolerance_steps, tolerance_touches

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


def _seen(device_id: ColumnElement[int]) -> Query:
    return Query(
        device.update()
        .where(device.c.realm_id == bindparam("of_realm"), device.c.id == device_id, MAY_ENROLL)
        .values(
            state="active",
            last_seen_at=bindparam("seen_at"),
            not_after=bindparam("not_after"),
            expected_renewal_at=bindparam("expected_renewal_at"),
            overdue_at=bindparam("overdue_at"),
            renewal_shares=bindparam("renewal_shares"),
        )
    )


_SEEN, _SEEN_FIRST = _seen(bindparam("of_device")), _seen(bindparam("guard_id"))
_REPLACE = Query(
    certificate.update()
    .where(certificate.c.realm_id == bindparam("of_realm"), certificate.c.id == bindparam("of_certificate"))
    .values(replaced_by_id=bindparam("guard_id"))
)
_GRANTED = Query(
    request_table.update()
    .where(request_table.c.realm_id == bindparam("of_realm"), request_table.c.id == bindparam("of_request"))
    .values(state="issued", certificate_id=bindparam("guard_id"))
)


@dataclass(frozen=True, slots=True)
class Decision:
    """A request that was granted, and the facts that it was granted on.

    `retry_since` is in milliseconds since 1970; `pending_id` is the request that an operator has approved.
    """

    realm: Realm
    requester: Requester
    csr: ParsedCsr
    call: Call
    profile: str
    issuer: Issuer
    signed: SignedCertificate
    request_key: bytes
    retry_since: int
    examined: Examined
    now: dt.datetime
    pending_id: int | None = None

    @property
    def ceiling(self) -> int:
        """How many first certificates the realm gives on a day; 0 where that is not limited, or this is none."""
        return self.realm.document.admission.bounded("ceiling") if self.requester.certificate is None else 0

    @property
    def share(self) -> int:
        """How many of them may be such as prove nothing."""
        return share_of_unproven(self.realm, self.ceiling)

    @property
    def beside(self) -> Beside:
        """The names that the certificate has beside those of the device's record."""
        plan = self.signed.plan
        again = standing(self.examined, self.requester.certificate, to_ms(self.now))
        return names_beside(plan.subject, plan.names, self.requester.device, self.examined.common, again)

    @property
    def narrowing(self) -> tuple[str, ...]:
        """The conditions that the realm's ways add."""
        requester = self.requester
        asked = (
            (requester.means is Means.SECRET and requester.credential_key is not None, "credential_key_not_blocked"),
            (requester.needs_approval, "request_approved"),
            (self.ceiling > 0, "below_ceiling"),
            (requester.names_itself and self.share < self.ceiling, "below_share"),
            (requester.names_itself and "secret" in self.realm.proofs, "device_without_secret"),
            (requester.names_itself, "device_not_enrolled"),
        )
        return tuple(name for is_asked, name in asked if is_asked)


def issued_unit(decision: Decision) -> Unit:
    """All that is written when a certificate is issued; for a newcomer also the device, whose row is the guard's."""
    realm, requester, csr, call = decision.realm, decision.requester, decision.csr, decision.call
    device_id, own, secret, is_new = (
        requester.device.id,
        requester.certificate,
        requester.secret,
        requester.device.is_new,
    )
    at, serial, beside = to_ms(decision.now), format_serial(decision.signed.serial), decision.beside
    # What a newcomer is called is looked up also where its certificate does not say it: its row will have it.
    named = [own_name(requester.device.name)] if is_new else []
    sought = looked_up([*beside.chosen, *named])
    insert, diagnose = guard_of(requester.means, decision.narrowing, room_for(sought), is_new=is_new)
    row = certificate_row(
        decision.signed,
        realm_id=realm.id,
        issuer_id=decision.issuer.id,
        kind="device",
        profile=decision.profile,
        device_id=device_id,
        protocol=call.protocol,
        key=csr.key,
        spki_sha256=csr.spki_sha256,
        at=at,
    )
    row["request_key"] = decision.request_key
    row["name_keys"] = keys_beside(decision.signed.plan.subject, decision.signed.plan.names)
    row["renews_id"] = own.id if own else None
    row["request_id"] = call.request_id
    row["transaction_id"] = call.transaction_id
    # Beyond the row: what the conditions compare with.
    compared: Values = {
        **realm.facts,
        **recorded(requester.device),
        "issuer_der": decision.issuer.der,
        "credential_key": requester.credential_key,
        "secret_id": secret.id if secret else None,
        "retry_since": decision.retry_since,
        "of_manufacturer": requester.device.manufacturer,
        "of_serial_number": requester.device.serial_number,
        "transaction_since": to_ms(decision.now - realm.document.retry),
        "pending_id": decision.pending_id,
        "ceiling": decision.ceiling,
        "share": decision.share,
        "day": day_of(decision.now),
        **chosen_values(sought),
    }
    plan, fingerprint = decision.signed.plan, hashlib.sha256(decision.signed.der).digest()
    shares = learned(requester.device.renewal_shares, own, decision.now)
    seen: Values = {"of_realm": realm.id, "seen_at": at, **expected(shares, plan.not_before, plan.not_after)}
    attempt = attempt_row(
        call,
        at,
        realm_id=realm.id,
        device_id=device_id,
        outcome="issued",
        detail=f"dropped: {', '.join(decision.examined.dropped)}" if decision.examined.dropped else "",
        serial=serial,
        key=csr.key,
        signature_hash=csr.signature_hash,
    )
    if is_new:
        steps = [Step(CERTIFICATE, row), Step(_SEEN_FIRST, seen), Step(FIRST_ATTEMPT, attempt)]
    else:
        steps = [
            Step(_SEEN, seen | {"of_device": device_id}),
            Step(INSERT_ATTEMPT, attempt),
            Step(PRUNE_DEVICE, {"realm_id": realm.id, "device_id": device_id}, expect=None),
        ]
    if secret is not None:
        spent: Values = {"spent_at": at, "spent_key": csr.spki_sha256, "spent_names": csr.names_hash}
        steps.append(Step(_SPEND, {"of_realm": realm.id, "of_secret": secret.id} | spent))
    if own is not None:
        steps.append(Step(_REPLACE, {"of_realm": realm.id, "of_certificate": own.id}))
    if decision.pending_id is not None:
        granted: Values = {"of_realm": realm.id, "of_request": decision.pending_id}
        steps.append(Step(GRANTED, granted | {"fingerprint": fingerprint}) if is_new else Step(_GRANTED, granted))
    if is_new and realm.takes_strangers:
        # Who else asked in this name was not this device.
        steps.append(end_unproven(realm.id, requester.device.name, at))
    if decision.ceiling:
        steps += admitted_steps(realm.id, decision.now, is_unproven=requester.names_itself)
    steps += held_steps(realm.id, device_id, beside.held, fingerprint)
    steps += tolerance_steps(realm.id, call, at)
    # What the conditions look at belongs to the device or to a key, or is changed by units that run alone.
    keys = {csr.spki_sha256, requester.credential_key or csr.spki_sha256}
    touches = tolerance_touches(realm.id, call) | held_touches(realm.id, (*sought, *beside.repeated))
    touches |= {f"key:{key.hex()}" for key in keys}
    touches |= newcomer_touches(realm, requester) if is_new else {touched_device(device_id)}
    if decision.pending_id is not None:
        touches |= {touched_request(decision.pending_id)}
    if decision.ceiling:
        touches |= admitted_touches(realm.id)
    events: tuple[AuditEvent, ...] = (_event(decision, serial),)
    if not is_new:
        return Unit(Guard(insert, row | compared, diagnose), at, tuple(steps), events, touches)
    guarded = row | newcomer_row(realm, requester, at) | compared
    events = (added_event(realm, requester, call.request_id), *events)
    return Unit(Guard(insert, guarded, diagnose), at, tuple(steps), events, touches)


def _event(decision: Decision, serial: str) -> AuditEvent:
    requester = decision.requester
    # A secret is named by its row: its hash has no business in a trail that is shown to others.
    secret = requester.secret
    credential = f"secret {secret.id}" if secret else f"certificate {requester.credential.hex()}"
    if requester.means in (Means.CHALLENGE, Means.OPEN, Means.APPROVAL):
        credential = f"key {decision.csr.spki_sha256.hex()}"
    return AuditEvent(
        "certificate.issued",
        f"device:{requester.device.name}",
        realm=decision.realm.name,
        device=requester.device.name,
        serial=serial,
        request_id=decision.call.request_id,
        details={
            "credential": credential,
            "dropped": list(decision.examined.dropped),
            "fingerprint": hashlib.sha256(decision.signed.der).hexdigest(),
            "issuer": decision.issuer.name,
            "means": Means(requester.means).value,
            "operation": decision.call.operation,
            "profile": decision.profile,
            "realm_version": decision.realm.version,
            "source": decision.call.source,
            **transaction_details(decision.call),
            **({"secret_exposed": True} if secret and requester.evidence.is_exposed else {}),
        },
    )
