"""What a requester may have: from the profile, the device's record and the CSR to a plan.

Issued names are proven names: the subject is the device's own, SANs come from its record, and what the CSR asks beyond
that is refused or dropped, and told to the audit trail.
"""

import datetime as dt
from dataclasses import dataclass

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.x509.oid import NameOID

from ca_core.authority.issuer import Issuer, newest_active
from ca_core.authority.plan import CertificatePlan, validity
from ca_core.csr import ParsedCsr, canonical_san, canonical_subject
from ca_core.errors import BadKey, InternalError, MalformedRequest, NotAuthorized
from ca_core.model import DeviceRecord, Means, Operation, Requester
from ca_core.public_key import key_kind
from ca_core.registration.document import EXTENDED_KEY_USAGES, ProfileDocument
from ca_core.registration.realm import Resolved

DEMO_LENGTH = dt.timedelta(days=7)


@dataclass(frozen=True, slots=True)
class Profile:
    """A profile of a realm, chosen for one request."""

    name: str
    document: ProfileDocument


def choose_profile(resolved: Resolved, device: DeviceRecord) -> Profile:
    """The device's own profile, else the realm's for the protocol; a label may name that one and no other.

    Which kind of certificate a device gets is the operator's to say (`device add --profile`), never the device's.
    Raises `NotAuthorized`.
    """
    document = resolved.realm.document
    name = device.profile or resolved.default_profile
    if resolved.profile is not None and name != resolved.profile:
        raise NotAuthorized("profile_not_allowed", "The device is not entitled to this profile.")
    if name not in document.profiles:
        raise NotAuthorized("profile_not_allowed", "The device's profile does not exist any more.")
    profile = Profile(name, document.profiles[name])
    if resolved.family is not None and profile.document.issuer != resolved.family:
        raise NotAuthorized(
            "profile_not_for_protocol",
            "The device's profile can't be had by this protocol.",
            detail=f"profile {name} is under the issuer {profile.document.issuer}, not {resolved.family}",
        )
    return profile


def choose_issuer(profile: Profile, issuers: tuple[Issuer, ...]) -> Issuer:
    """The newest active issuer of the profile's family. Raises `InternalError`."""
    chosen = newest_active(issuers, profile.document.issuer)
    if chosen is None:
        raise InternalError(f"no active issuer of family {profile.document.issuer} for profile {profile.name}")
    return chosen


def check_asked(profile: Profile, requester: Requester, csr: ParsedCsr, operation: Operation) -> tuple[str, ...]:
    """Judge what the CSR asks for; returns what is dropped, in words.

    Raises `NotAuthorized`, `MalformedRequest`, `BadKey`.
    """
    device = requester.device
    _check_kind(profile, csr)
    if csr.ca_requested:
        raise NotAuthorized("ca_requested", "The request asks for a CA certificate.")
    allowed = {EXTENDED_KEY_USAGES[usage].dotted_string for usage in profile.document.extended_key_usages}
    foreign = set(csr.extended_key_usages) - allowed
    if foreign:
        raise NotAuthorized(
            "extension_not_allowed",
            "The request asks for an extended key usage that the profile does not give.",
            detail=ascii(", ".join(sorted(foreign)))[:300],
        )
    if operation is Operation.REENROLL:
        _check_renewal(requester, csr)
    if operation is Operation.RENEW and requester.means is Means.SECRET:
        raise NotAuthorized("renewal_needs_certificate", "A renewal must be signed with a valid certificate.")
    if csr.common_name is not None and csr.common_name != device.name:  # enforces case 9
        raise NotAuthorized(
            "subject_mismatch",
            "The request's subject is not the name of this device.",
            detail=f"asked CN {_shown(csr.common_name, requester)[:100]}, device {device.name}",
        )
    own = requester.certificate
    # enforces case 21
    if own is not None and profile.document.rekey == "required" and own.spki_sha256 == csr.spki_sha256:
        raise BadKey("rekey_required", "A renewal needs a new key.")
    others = sorted({a.rfc4514_attribute_name for a in csr.subject if a.oid != NameOID.COMMON_NAME})
    names = sorted(set(csr.san) - set(device.names))
    dropped = [f"subject {ascii(name)[1:-1][:40]}" for name in others]
    return (*dropped, *(f"SAN {_shown(name, requester)[1:-1][:100]}" for name in names))


def _check_kind(profile: Profile, csr: ParsedCsr) -> None:
    kind = key_kind(csr.public_key)
    if not profile.document.allows_key(kind):
        detail = f"{kind}; the profile allows {', '.join(profile.document.keys)}"
        raise BadKey("key_not_allowed", "A key of this kind is not allowed here.", detail=detail)


def _shown(asked: str, requester: Requester) -> str:
    """What was asked for, for the record, unless somebody put the secret there."""
    secret = requester.evidence.secret
    return ascii(asked.replace(secret, "(the secret)") if secret else asked)


def _check_renewal(requester: Requester, csr: ParsedCsr) -> None:
    own = requester.certificate
    if own is None:
        raise NotAuthorized(
            "reenroll_needs_own_certificate", "Renewal needs the certificate that is to be renewed as credential."
        )
    renewed = x509.load_der_x509_certificate(own.der)
    # "The request Subject field and SubjectAltName extension MUST be identical to the corresponding fields in the
    # certificate being renewed/rekeyed." -- RFC 7030 4.2.2
    if canonical_subject(csr.subject) != canonical_subject(renewed.subject):
        raise MalformedRequest("renewal_subject_mismatch", "The request's subject is not that of the certificate.")
    try:
        names = renewed.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except x509.ExtensionNotFound:
        has: tuple[str, ...] = ()
    else:
        has = canonical_san(names)
    # Old clients copy the subject only, so a renewal without any SAN is served; its names come from the record.
    if csr.san and csr.san != has:
        raise MalformedRequest("renewal_san_mismatch", "The request's alternative names are not the certificate's.")


def make_plan(
    profile: Profile, device: DeviceRecord, csr: ParsedCsr, issuer: Issuer, now: dt.datetime, *, demo: bool
) -> CertificatePlan:
    """Exactly what the certificate will say."""
    length = min(profile.document.length, DEMO_LENGTH) if demo else profile.document.length
    not_before, not_after = validity(now, length, issuer.not_after)
    return CertificatePlan(
        subject=x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, device.name)]),
        public_key=csr.public_key,
        not_before=not_before,
        not_after=not_after,
        names=device.names,  # enforces case 10
        extended_key_usage=tuple(EXTENDED_KEY_USAGES[usage] for usage in profile.document.extended_key_usages),
        key_encipherment=isinstance(csr.public_key, rsa.RSAPublicKey),
    )
