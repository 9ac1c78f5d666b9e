"""What a realm would make of a CSR, field by field, by the rooms that decide. Nothing is signed, spent or recorded.

Who asks is not judged here, because a CSR alone proves nothing: it is told what the device would get once it has. Only
the certificate that a renewal would be shown by is judged.
"""

import datetime as dt
from collections.abc import Iterator
from dataclasses import dataclass, replace

from sqlalchemy import bindparam, select

from ca_core.authority.issuer import Issuers
from ca_core.authority.plan import CertificatePlan
from ca_core.csr import ParsedCsr
from ca_core.errors import NotFound, OperatorError, Refusal
from ca_core.model import Clock, DeviceRecord, DeviceState, Means, Operation, OwnCertificate
from ca_core.names import parse_device_name
from ca_core.public_key import key_kind
from ca_core.records.query import Query
from ca_core.records.schema import device
from ca_core.records.store import Store
from ca_core.records.times import to_ms
from ca_core.registration.admission.own_certificate import find_own_certificate
from ca_core.registration.device import COLUMNS, record, require_active
from ca_core.registration.examination import examine
from ca_core.registration.examined import Applicant, Examined
from ca_core.registration.facts import check_facts
from ca_core.registration.names_held import check_names, check_not_of_ca
from ca_core.registration.profile import Profile, choose_issuer, choose_profile, make_plan
from ca_core.registration.profile_document import usages_for
from ca_core.registration.realm import Realm, Realms, Resolved
from ca_core.registration.requester import judge_shown

__all__ = ["CsrExplanation", "ExplainedField", "explain_csr"]

_ONE = Query(select(*COLUMNS).where(device.c.realm_id == bindparam("realm_id"), device.c.name == bindparam("name")))


@dataclass(frozen=True, slots=True)
class ExplainedField:
    """One line of the decision. `outcome` is given, left_out, dropped, refused or, for what was only read, read."""

    field: str
    outcome: str
    value: str
    source: str = ""
    code: str | None = None
    message: str | None = None
    remedy: str | None = None


@dataclass(frozen=True, slots=True)
class CsrExplanation:
    """All lines, and the first reason to refuse. `device` is None where the CSR can't be read and names none.

    `renews` is the serial number, in hex, of the certificate that would be shown; None for a first one.
    """

    realm: str
    profile: str | None
    device: str | None
    is_registered: bool
    fields: tuple[ExplainedField, ...]
    code: str | None
    renews: str | None = None

    @property
    def sentence(self) -> str:
        """The verdict."""
        if self.code is not None:
            return f"It would be refused: {self.code}."
        if self.renews is not None:
            return f"It would be issued to this device, once it shows its certificate {self.renews}."
        if not self.is_registered:
            return "It would be issued to a device like that, once it is registered and proves who it is."
        return "It would be issued to this device, once it proves who it is."


async def explain_csr(
    store: Store,
    realms: Realms,
    der: bytes,
    *,
    realm: str,
    profile: str | None,
    name: str | None,
    clock: Clock,
    demo: bool,
    renews: bytes | None = None,
) -> CsrExplanation:
    """What realm `realm` would make of a PKCS#10 request of the device `name`, by default the one in its CN.

    `renews` is the SHA-256 of the certificate that it renews, whose device then is the one that asks. Raises
    `OperatorError` for a realm, profile or certificate that is not there.
    """
    found = await realms.get(realm)
    if profile is not None and profile not in found.document.profiles:
        shown, known_ones = ascii(profile[:40])[1:-1], ", ".join(found.document.profiles)
        raise OperatorError("profile_unknown", f"realm {realm} has no profile '{shown}'", f"there are: {known_ones}")
    shown_by = await _shown_by(store, found, renews) if renews is not None else None
    try:
        tolerant = found.document.speaks_scep and found.document.scep.allow_sha1
        csr = ParsedCsr.parse(der, allow_sha1=tolerant)
    except Refusal as refusal:
        lines = (_refused("csr", "", "", refusal),)
        return CsrExplanation(realm, profile, name, False, lines, refusal.code, _serial(shown_by))
    if shown_by is not None:
        device_shown, own = shown_by
        return await _Explaining(store, realms, found, csr, device_shown, True, clock(), demo=demo, own=own).run(
            profile
        )
    row = await store.first(_ONE, realm_id=found.id, name=name or csr.common_name or "")
    known = record(row) if row else _stand_in(found, name or csr.common_name)
    return await _Explaining(store, realms, found, csr, known, row is not None, clock(), demo=demo).run(profile)


async def _shown_by(store: Store, realm: Realm, fingerprint: bytes) -> tuple[DeviceRecord, OwnCertificate]:
    found = await find_own_certificate(store, realm, fingerprint)
    if found is None:
        message = f"realm {realm.name} has issued no such certificate to a device"
        raise OperatorError("certificate_unknown", message, f"'enrolld cert list --realm {realm.name}' shows them")
    return found


def _serial(shown_by: tuple[DeviceRecord, OwnCertificate] | None) -> str | None:
    return f"{shown_by[1].serial:x}" if shown_by is not None else None


def _stand_in(found: Realm, name: str | None) -> DeviceRecord:
    """A device that nobody has registered, with nothing but its name."""
    try:
        shown = parse_device_name(name or "new-device")
    except OperatorError:
        shown = "new-device"
    return DeviceRecord(0, found.id, shown, shown, None, DeviceState.EXPECTED, None, None, (), None)


class _Explaining:
    def __init__(
        self,
        store: Store,
        realms: Realms,
        realm: Realm,
        csr: ParsedCsr,
        known: DeviceRecord,
        is_registered: bool,
        now: dt.datetime,
        *,
        demo: bool,
        own: OwnCertificate | None = None,
    ) -> None:
        self._own = own
        self._by_scep = False
        self._store = store
        self._realms = realms
        self._realm = realm
        self._csr = csr
        self._device = known
        self._is_registered = is_registered
        self._now = now
        self._demo = demo
        self._fields: list[ExplainedField] = []
        self._code: str | None = None

    async def run(self, wanted: str | None) -> CsrExplanation:
        csr, known = self._csr, self._device
        only_scep = ", which is read in SCEP alone" if csr.signature_hash == "sha1" else ""
        if self._realm.state != "active":
            retired = NotFound("realm_retired", "The realm is retired, and serves nobody.")
            self._refuse("realm", self._realm.name, "", retired)
        self._tell("csr", "read", f"{csr.key}, signed by its own key with {csr.signature_hash}{only_scep}")
        who = f"{known.name}, {known.state.value}" if self._is_registered else f"{known.name}, not registered"
        self._tell("device", "read", who)
        await self._judge_own()
        try:
            require_active(known)
        except Refusal as refusal:
            self._refuse("device", who, "", refusal)
        profile = self._profile(wanted)
        if profile is not None:
            await self._decide(profile)
        return CsrExplanation(
            realm=self._realm.name,
            profile=profile.name if profile else wanted,
            device=known.name,
            is_registered=self._is_registered,
            fields=tuple(self._fields),
            code=self._code,
            renews=f"{self._own.serial:x}" if self._own is not None else None,
        )

    async def _judge_own(self) -> None:
        """What the door says of the certificate that is shown, before anything else."""
        own = self._own
        if own is None:
            return
        what = f"{own.serial:x}, until {own.not_after:%Y-%m-%dT%H:%M:%SZ}"
        try:
            await judge_shown(self._store, self._realm, self._device, own, self._now)
        except Refusal as refusal:
            self._refuse("renews", what, "", refusal)
        else:
            self._tell("renews", "read", what)

    def _profile(self, wanted: str | None) -> Profile | None:
        document = self._realm.document
        # What would be for a device that has this profile is asked, unless the device has another one.
        known = self._device if self._is_registered else replace(self._device, profile=wanted)
        likely = self._own.profile if wanted is None and self._own is not None else wanted
        by_scep = self._by_scep = document.speaks_scep and likely == document.scep.profile
        default = document.scep.profile if by_scep else document.est.profile
        resolved = Resolved(self._realm, wanted, "scep" if by_scep else "est", default, "rsa" if by_scep else None)
        try:
            profile = choose_profile(resolved, known)
        except Refusal as refusal:
            self._refuse("profile", wanted or known.profile or "", "", refusal)
            return Profile(wanted, document.profiles[wanted]) if wanted in document.profiles else None
        self._tell("profile", "read", f"{profile.name}, under the issuer family {profile.document.issuer}")
        return profile

    async def _decide(self, profile: Profile) -> None:
        document = profile.document
        before = self._code
        # The strongest proof that a device with such a record can give.
        means = Means.IDEVID if self._device.serial_number and document.rules.wants_idevid else Means.SECRET
        operation = Operation.ENROLL
        if self._own is not None:
            means = Means.OWN_CERTIFICATE
            # A SCEP client may leave names out, an EST client must repeat them.
            operation = Operation.RENEW if self._by_scep else Operation.REENROLL
        applicant = Applicant(self._device, means, self._own, secret=self._csr.challenge_password or None)
        examined = examine(document, self._realm, applicant, self._csr, operation)
        for each in examined.fields:
            if each.refusal is not None:
                self._refuse(each.field, each.value, each.source, each.refusal)
            else:
                self._tell(each.field, each.outcome, each.value, each.source)
        told = [each.refusal for each in examined.fields]
        rest = [refusal for refusal in examined.refusals if refusal not in told]
        key = key_kind(self._csr.public_key)
        of_key = [refusal for refusal in rest if refusal.code == "key_not_allowed"]
        try:
            await check_facts(self._store, self._csr, self._realm.id, self._device.id, self._now)
        except Refusal as exc:
            of_key.append(exc)
        try:
            issuers = await Issuers(self._store).of_realm(self._realm.id, self._realm.edition)
            check_not_of_ca(examined.subject, issuers)
            await check_names(self._store, examined, self._device, self._own, self._realms, to_ms(self._now))
        except Refusal as exc:
            self._refuse("names", "", "", exc)
        for refusal in of_key:
            self._refuse("key", key, "csr", refusal)
        if not of_key:
            self._tell("key", "given", key, "csr")
        for refusal in rest:
            if refusal not in of_key:
                self._refuse("request", "", "", refusal)
        if before is None and examined.refusals:
            self._code = examined.refusals[0].code  # the one that the door would tell
        await self._rest(profile, examined)

    async def _rest(self, profile: Profile, examined: Examined) -> None:
        """What the profile alone decides."""
        issuers = await Issuers(self._store).of_realm(self._realm.id, self._realm.edition)
        issuer = choose_issuer(profile, issuers)
        plan = make_plan(
            profile.document, examined, self._csr, issuer.not_after, self._now, demo=self._demo, chance=lambda: 0.0
        )
        self._tell("issuer", "given", issuer.name, "profile")
        self._tell("validity", "given", _validity(profile, plan), "profile")
        for name, value in _purposes(profile, plan, self._csr):
            self._tell(name, "given", value, "profile")

    def _tell(self, field: str, outcome: str, value: str, source: str = "") -> None:
        self._fields.append(ExplainedField(field, outcome, value, source))

    def _refuse(self, field: str, value: str, source: str, refusal: Refusal) -> None:
        self._code = self._code or refusal.code
        self._fields.append(_refused(field, value, source, refusal))


def _refused(field: str, value: str, source: str, refusal: Refusal) -> ExplainedField:
    detail = f" ({refusal.detail})" if refusal.detail else ""
    message = f"{refusal.message.removesuffix('.')}{detail}"
    return ExplainedField(field, "refused", value, source, refusal.code, message, refusal.remedy)


def _validity(profile: Profile, plan: CertificatePlan) -> str:
    jitter = f", or up to {profile.document.jitter} earlier" if profile.document.jitter else ""
    return f"until {plan.not_after:%Y-%m-%dT%H:%M:%SZ}{jitter}"


def _purposes(profile: Profile, plan: CertificatePlan, csr: ParsedCsr) -> Iterator[tuple[str, str]]:
    yield "key usage", ", ".join(usages_for(profile.document.key_usage, key_kind(csr.public_key)))
    yield "extended key usage", ", ".join(profile.document.extended_key_usages)
    for policy in plan.policies:
        yield "policy", policy.oid.dotted_string
    for own in plan.own:
        yield "extension", f"{own.oid.dotted_string}{', critical' if own.critical else ''}"
