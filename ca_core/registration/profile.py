"""What a requester may have: which profile and issuer are its, and from what was examined to a plan."""

import datetime as dt
from collections.abc import Callable
from dataclasses import dataclass
from random import SystemRandom

from cryptography.hazmat.primitives.asymmetric import rsa

from ca_core.authority.issuer import Issuer, newest_active
from ca_core.authority.plan import CertificatePlan, validity
from ca_core.csr import ParsedCsr
from ca_core.errors import InternalError, NotAuthorized
from ca_core.model import DeviceRecord
from ca_core.public_key import key_kind
from ca_core.registration.examined import Examined
from ca_core.registration.profile_document import ProfileDocument, usages_for
from ca_core.registration.realm import Resolved

__all__ = ["CHANCE", "DEMO_LENGTH", "Chance", "Profile", "choose_issuer", "choose_profile", "make_plan"]

DEMO_LENGTH = dt.timedelta(days=7)
Chance = Callable[[], float]
"""A random number from 0 up to, and without, 1."""
CHANCE: Chance = SystemRandom().random


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


def make_plan(
    profile: ProfileDocument,
    examined: Examined,
    csr: ParsedCsr,
    latest: dt.datetime,
    now: dt.datetime,
    *,
    demo: bool,
    chance: Chance,
) -> CertificatePlan:
    """Exactly what the certificate will say. It ends at `latest` at the latest. Raises `Unavailable`."""
    length = min(profile.length, DEMO_LENGTH) if demo else profile.length
    not_before, not_after = validity(now, length, latest)
    rules = profile.rules
    if rules.jitter:
        most = min(rules.jitter, (not_after - now) / 2)  # enforces case 27
        not_after = (not_after - most * chance()).replace(microsecond=0)
    return CertificatePlan(
        subject=examined.subject,
        public_key=csr.public_key,
        not_before=not_before,
        not_after=not_after,
        names=examined.names,  # enforces case 10
        extended_key_usage=rules.extended_key_usages,
        key_encipherment=isinstance(csr.public_key, rsa.RSAPublicKey),
        key_usage=None if profile.key_usage is None else usages_for(profile.key_usage, key_kind(csr.public_key)),
        policies=rules.policies,
        own=rules.own,
    )
