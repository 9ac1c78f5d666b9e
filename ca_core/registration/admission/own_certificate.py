"""Admission by a certificate that this realm issued to a device.

The presented certificate must be the stored one, byte for byte: its SHA-256 finds the row. That makes chain building
unnecessary (stock clients send the leaf alone), and a twin with the same names or serial worthless.
"""

import datetime as dt

from cryptography import x509
from cryptography.x509.oid import ExtendedKeyUsageOID
from sqlalchemy import ColumnElement, bindparam, case, select

from ca_core.errors import BadKey, NotAuthenticated
from ca_core.model import DeviceRecord, OwnCertificate, Serial
from ca_core.names import parse_duration
from ca_core.public_key import check_factors
from ca_core.records.query import Query
from ca_core.records.schema import certificate, device
from ca_core.records.store import Store
from ca_core.records.times import from_ms, rfc3339
from ca_core.registration.device import COLUMNS, WIDTH, record
from ca_core.registration.realm import Realm

_c = certificate.c
_newer = certificate.alias("newer").c


def newer_is_revoked(
    realm_id: ColumnElement[int], device_id: ColumnElement[int], certificate_id: ColumnElement[int]
) -> ColumnElement[bool]:
    """Whether the device has a later certificate than this one, and that was revoked or is held."""
    return (
        select(_newer.id)
        .where(
            _newer.realm_id == realm_id,
            _newer.device_id == device_id,
            _newer.id > certificate_id,
            _newer.status != "valid",
        )
        .exists()
    )


_BY_FINGERPRINT = Query(
    select(
        *COLUMNS,
        _c.id,
        _c.serial,
        _c.fingerprint,
        _c.spki_sha256,
        _c.der,
        _c.not_before,
        _c.not_after,
        _c.status,
        _c.profile,
        case((newer_is_revoked(_c.realm_id, _c.device_id, _c.id), 1), else_=0),
        _c.superseded_at,
        _c.replaced_by_id,
    )
    .join(device, (device.c.realm_id == _c.realm_id) & (device.c.id == _c.device_id))
    .where(
        _c.realm_id == bindparam("realm_id"),
        _c.fingerprint == bindparam("fingerprint"),
        _c.kind == "device",
    )
)


async def find_own_certificate(
    store: Store, realm: Realm, fingerprint: bytes
) -> tuple[DeviceRecord, OwnCertificate] | None:
    """The device certificate of this realm with that SHA-256, and its device; not judged."""
    row = await store.first(_BY_FINGERPRINT, realm_id=realm.id, fingerprint=fingerprint)
    if row is None:
        return None
    own = OwnCertificate(
        id=row[WIDTH],
        serial=Serial(int(row[WIDTH + 1], 16)),
        fingerprint=row[WIDTH + 2],
        spki_sha256=row[WIDTH + 3],
        der=row[WIDTH + 4],
        not_before=from_ms(row[WIDTH + 5]),
        not_after=from_ms(row[WIDTH + 6]),
        status=row[WIDTH + 7],
        profile=row[WIDTH + 8],
        newer_is_revoked=bool(row[WIDTH + 9]),
        is_superseded=row[WIDTH + 10] is not None,
        is_renewed=row[WIDTH + 11] is not None,
    )
    return record(row), own


def judge_own_certificate(realm: Realm, device: DeviceRecord, own: OwnCertificate, now: dt.datetime) -> None:
    """Raise `NotAuthenticated` unless the certificate proves its device now."""
    named = f"certificate {own.serial:x}"
    who = (device.id, device.name)
    if not realm.document.admission.own_certificate:
        raise NotAuthenticated(
            "certificate_unknown", "The client certificate is not accepted here.", detail=named, device=who
        )
    if own.status != "valid":  # enforces case 36
        raise NotAuthenticated("certificate_revoked", "The client certificate is revoked.", detail=named, device=who)
    if own.is_superseded:  # enforces case 36
        raise NotAuthenticated(
            "certificate_superseded", "The client certificate is not accepted any more.", detail=named, device=who
        )
    if own.newer_is_revoked:  # enforces case 36
        # What was revoked is the device's identity; the certificate before it must not bring it back.
        raise NotAuthenticated(
            "newer_certificate_revoked", "A newer certificate of this device is revoked.", detail=named, device=who
        )
    if now < own.not_before:
        raise NotAuthenticated(
            "certificate_not_yet_valid", "The client certificate is not valid yet.", detail=named, device=who
        )
    grace = realm.document.admission.expired_grace
    if now > own.not_after + (parse_duration(grace) if grace is not None else dt.timedelta(0)):  # enforces case 36
        raise NotAuthenticated(
            "certificate_expired",
            "The client certificate has expired.",
            detail=f"{named}, {rfc3339(own.not_after)}",
            device=who,
        )
    certificate = x509.load_der_x509_certificate(own.der)
    try:
        # From before the weakness was looked for, or known.
        check_factors(certificate.public_key())  # enforces case 19
    except BadKey as exc:
        raise NotAuthenticated(
            exc.code, "The client certificate's key is not accepted.", detail=f"{named}: {exc.message}", device=who
        ) from exc
    usage = _extended_key_usage(certificate)
    if usage is not None and ExtendedKeyUsageOID.CLIENT_AUTH not in usage:  # enforces case 41
        raise NotAuthenticated(
            "certificate_not_for_clients", "The client certificate is not made for clients.", detail=named, device=who
        )


def _extended_key_usage(certificate: x509.Certificate) -> x509.ExtendedKeyUsage | None:
    try:
        return certificate.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
    except x509.ExtensionNotFound:
        return None
