"""What may be said of a device when it is registered, one by one or by a list, and the row of its secret."""

import datetime as dt
from collections.abc import Iterable

from ca_core.errors import OperatorError
from ca_core.names import parse_duration, parse_moment, parse_san
from ca_core.records.query import Values
from ca_core.records.times import to_ms
from ca_core.registration.name_keys import check_recorded
from ca_core.registration.realm import Realm

LONGEST_OWNER = 256
"""In characters."""
MOST_SANS = 100
"""The most alternative names of a device's record."""


def check_profile(found: Realm, profile: str | None) -> None:
    """Raise `OperatorError` unless the realm has the profile."""
    if profile is not None and profile not in found.document.profiles:
        known = ", ".join(found.document.profiles)
        shown = ascii(profile[:40])[1:-1]
        raise OperatorError("profile_unknown", f"realm {found.name} has no profile '{shown}'", f"there are: {known}")


def check_owner(owner: str | None) -> str | None:
    """Who answers for a device; None for nobody. Raises `OperatorError`."""
    if owner is not None and len(owner) > LONGEST_OWNER:
        raise OperatorError("owner_invalid", f"the owner is longer than {LONGEST_OWNER} characters", "say it shorter")
    if owner is not None and not owner.isprintable():
        raise OperatorError("owner_invalid", "the owner holds characters that can't be shown", "leave them out")
    if owner and not owner.strip():
        raise OperatorError("owner_invalid", "the owner is nothing but blanks", "say who it is, or leave it out")
    return owner


def parse_sans(sans: Iterable[str]) -> list[str]:
    """The alternative names of a record, canonical, sorted, each once. Raises `OperatorError`."""
    names = sorted({parse_san(san) for san in sans})
    for name in names:
        check_recorded(name)
    if len(names) > MOST_SANS:
        raise OperatorError(
            "too_many_names", f"{len(names)} names, and a device has up to {MOST_SANS}", "leave some of them out"
        )
    return names


def check_identity(found: Realm, serial_number: str | None, manufacturer: str | None) -> str | None:
    """The manufacturer of a factory identity, which may be the realm's only one. Raises `OperatorError`."""
    trusted = [anchor.name for anchor in found.document.trust if anchor.for_ == "idevid"]
    if manufacturer is not None and serial_number is None:
        raise OperatorError("identity_incomplete", "a manufacturer without a serial number", "give the serial number")
    if serial_number is None:
        return None
    if not serial_number or len(serial_number) > 64 or not serial_number.isprintable():
        raise OperatorError("identity_invalid", "that is not a serial number", "use the IDevID's subject serialNumber")
    if manufacturer is None:
        # Two manufacturers may give the same number, so a serial number alone is an identity only under one anchor.
        if len(trusted) == 1:
            return trusted[0]
        raise OperatorError(
            "identity_incomplete",
            "a serial number needs its manufacturer",
            f"name its manufacturer, one of: {', '.join(trusted) or 'none yet; see enrolld trust add'}",
        )
    if manufacturer not in trusted:
        raise OperatorError(
            "manufacturer_unknown",
            f"realm {found.name} trusts no manufacturer '{ascii(manufacturer[:64])[1:-1]}'",
            f"use one of: {', '.join(trusted) or 'none yet; see enrolld trust add'}",
        )
    return manufacturer


def secret_expiry(found: Realm, expires: str | None, now: dt.datetime) -> dt.datetime:
    """When a secret made now ends: as given, else as the realm says. Raises `OperatorError`."""
    if expires is None:
        return now + parse_duration(found.document.secret_lifetime)
    return parse_moment(expires, now)


def secret_row(realm_id: int, selector: str, digest: bytes, at: int, until: dt.datetime) -> Values:
    """The row of a new secret, but for its device."""
    return {
        "realm_id": realm_id,
        "selector": selector,
        "hash": digest,
        "created_at": at,
        "expires_at": to_ms(until),
        "spent_at": None,
        "spent_key": None,
        "spent_names": None,
        "certificate_id": None,
        "voided_at": None,
    }
