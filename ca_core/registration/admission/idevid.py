"""Admission by IDevID (IEEE 802.1AR): a certificate that the manufacturer put into the device.

The chain is judged against the realm's own anchors; what it proves is (manufacturer, serial number), where the
manufacturer is the name of the anchor that the chain ends in.
"""

import datetime as dt
from dataclasses import dataclass

from asn1crypto import core as asn1
from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID
from sqlalchemy import bindparam, select

from ca_core.errors import BadKey, NotAuthenticated, NotAuthorized, OperatorError
from ca_core.model import DeviceRecord
from ca_core.names import parse_device_name
from ca_core.public_key import WEAKNESSES, check_public_key
from ca_core.records.query import Query
from ca_core.records.schema import device
from ca_core.records.store import Store
from ca_core.records.times import to_ms
from ca_core.registration.admission.chain import verified_anchor
from ca_core.registration.device import BY_NAME, COLUMNS, new_device, record
from ca_core.registration.name_keys import check_new_device
from ca_core.registration.names_held import holder_of_serial, is_unknown
from ca_core.registration.realm import Realm

_d = device.c
_BY_IDENTITY = Query(
    select(*COLUMNS).where(
        _d.realm_id == bindparam("realm_id"),
        _d.manufacturer == bindparam("manufacturer"),
        _d.serial_number == bindparam("serial_number"),
    )
)

_HARDWARE_MODULE_NAME = x509.ObjectIdentifier("1.3.6.1.5.5.7.8.4")  # RFC 4108 5
_HARDWARE = "hw:"


@dataclass(frozen=True, slots=True)
class Identity:
    """What an IDevID proves. `manufacturer` is the name of a trust entry of the realm."""

    manufacturer: str
    serial_number: str


async def admit_by_idevid(store: Store, realm: Realm, chain: tuple[bytes, ...], now: dt.datetime) -> DeviceRecord:
    """The device that the chain proves, which may be new where the realm admits any of a trusted manufacturer.

    Raises `NotAuthenticated`, `NotAuthorized`.
    """
    identity = verify_idevid(realm, chain, now)
    row = await store.first(
        _BY_IDENTITY,
        realm_id=realm.id,
        manufacturer=identity.manufacturer,
        serial_number=identity.serial_number,
    )
    if row is None and realm.document.admission.idevid == "trusted":
        return await _newcomer(store, realm, identity, now)
    if row is None:
        shown = ascii(f"{identity.manufacturer} {identity.serial_number}")
        raise NotAuthorized(  # enforces case 40
            "device_unknown", "This device is not registered here.", detail=f"IDevID {shown}"
        )
    return record(row)


async def _newcomer(store: Store, realm: Realm, identity: Identity, now: dt.datetime) -> DeviceRecord:
    """A device that nobody has registered: it is called by its serial number, which is all that is proven of it."""
    shown = ascii(f"{identity.manufacturer} {identity.serial_number}")
    try:
        name = parse_device_name(identity.serial_number)
        is_new = await is_unknown(store, realm, name, to_ms(now))
        if is_new:
            check_new_device(name)
    except OperatorError as exc:
        raise NotAuthorized(
            "device_unnamed", "This device can't be registered by its serial number.", detail=f"IDevID {shown}"
        ) from exc
    if is_new:
        holder = await holder_of_serial(store, realm.id, identity.serial_number, 0, to_ms(now))
        if holder is not None and holder != name:
            # A number proves its device under the manufacturer alone that it is registered with.
            raise NotAuthorized(  # enforces case 40
                "device_name_taken",
                "Another device has this serial number.",
                detail=f"IDevID {shown}, device {holder}",
            )
        return new_device(realm.id, name, serial_number=identity.serial_number, manufacturer=identity.manufacturer)
    row = await store.first(BY_NAME, realm_id=realm.id, name=name)
    known = record(row) if row is not None else None
    proven = (identity.manufacturer, identity.serial_number)
    if known is not None and (known.manufacturer, known.serial_number) == proven:
        return known  # a device that asks twice at once was registered since it was looked for
    # Another manufacturer's serial number, or a device that was registered by hand: who is who, nobody has said.
    raise NotAuthorized(  # enforces case 40
        "device_name_taken", "Another device has this name.", detail=f"IDevID {shown}, device {name}"
    )


def verify_idevid(realm: Realm, chain: tuple[bytes, ...], now: dt.datetime) -> Identity:
    """Judge a chain (DER, leaf first) against the realm's IDevID anchors. Raises `NotAuthenticated`."""
    if not realm.anchors:
        raise NotAuthenticated("certificate_unknown", "The client certificate is not known here.")
    try:
        return _verify(realm, chain, now)
    except BadKey as exc:
        # That a factory made a fleet of keys that anybody can factor is worth its own word.
        code = exc.code if exc.code in WEAKNESSES else "chain_invalid"
        raise NotAuthenticated(code, "The client certificate's key is not accepted.", detail=exc.message) from exc
    except UnsupportedAlgorithm as exc:
        raise NotAuthenticated("chain_invalid", "The client certificate's key is not accepted.") from exc
    except (
        # Whatever the parser thinks of what a stranger sent, and of each of its parts when they are first looked at.
        ValueError,
        TypeError,
        x509.InvalidVersion,
        x509.DuplicateExtension,
        x509.UnsupportedGeneralNameType,
    ) as exc:
        raise NotAuthenticated(
            "certificate_malformed", "The client certificate can't be read.", detail=ascii(str(exc))[:300]
        ) from exc


def _verify(realm: Realm, chain: tuple[bytes, ...], now: dt.datetime) -> Identity:
    certificates = [x509.load_der_x509_certificate(der) for der in chain]
    leaf = certificates[0]
    extensions = leaf.extensions
    check_public_key(leaf.public_key())  # enforces case 19
    anchor = verified_anchor(realm, leaf, certificates[1:], now)
    if "idevid" not in realm.proofs:
        raise NotAuthenticated("idevid_not_admitted", "Factory certificates are not accepted here.")
    if not _for_clients(extensions):  # enforces case 41
        raise NotAuthenticated("certificate_not_for_clients", "The client certificate is not made for clients.")
    serial_number = _serial_number(leaf, extensions)
    if serial_number is None:
        raise NotAuthenticated("idevid_without_serial", "The client certificate carries no single serial number.")
    return Identity(anchor.name, serial_number)


def serial_number_of(leaf: x509.Certificate) -> str | None:
    """The serial number that an IDevID proves, as `Identity` has it; None without a single one."""
    return _serial_number(leaf, leaf.extensions)


def _for_clients(extensions: x509.Extensions) -> bool:
    for extension in extensions:
        value = extension.value
        if isinstance(value, x509.BasicConstraints) and value.ca:
            return False
        if isinstance(value, x509.KeyUsage) and not value.digital_signature:
            return False
        if isinstance(value, x509.ExtendedKeyUsage) and not (
            {ExtendedKeyUsageOID.CLIENT_AUTH, ExtendedKeyUsageOID.ANY_EXTENDED_KEY_USAGE} & set(value)
        ):
            return False
    return True


def _serial_number(leaf: x509.Certificate, extensions: x509.Extensions) -> str | None:
    """The subject's serialNumber (IEEE 802.1AR 8.6), else what a hardwareModuleName says as `hw:TYPE:HEX`.

    "hwSerialNum" is unique only among the modules of one hwType (RFC 4108 5), so both make the identity, in a form that
    no subject's serialNumber can take.
    """
    found = leaf.subject.get_attributes_for_oid(NameOID.SERIAL_NUMBER)
    if found:
        # Two would be two identities.
        text = str(found[0].value) if len(found) == 1 else ""
        return None if text.startswith(_HARDWARE) else text or None
    try:
        names = extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except x509.ExtensionNotFound:
        return None
    modules = [n for n in names if isinstance(n, x509.OtherName) and n.type_id == _HARDWARE_MODULE_NAME]
    return _hardware_serial(modules[0].value) if len(modules) == 1 else None


class _HardwareModuleName(asn1.Sequence):  # type: ignore[misc]  # asn1crypto carries no types
    _fields = [("hwType", asn1.ObjectIdentifier), ("hwSerialNum", asn1.OctetString)]  # noqa: RUF012  # asn1crypto's way


def _hardware_serial(value: bytes) -> str | None:
    try:
        module = _HardwareModuleName.load(value, strict=True)
        serial = bytes(module["hwSerialNum"].native)
    except (ValueError, TypeError):
        return None
    return f"{_HARDWARE}{module['hwType'].dotted}:{serial.hex()}" if serial else None
