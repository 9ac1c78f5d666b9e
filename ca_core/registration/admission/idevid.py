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
from cryptography.x509.verification import Criticality, ExtensionPolicy, PolicyBuilder, VerificationError
from sqlalchemy import bindparam, select

from ca_core.errors import BadKey, NotAuthenticated, NotAuthorized
from ca_core.model import DeviceRecord
from ca_core.public_key import check_public_key
from ca_core.records.query import Query
from ca_core.records.schema import device
from ca_core.records.store import Store
from ca_core.registration.device import COLUMNS, record
from ca_core.registration.realm import Realm

_d = device.c
_BY_IDENTITY = Query(
    select(*COLUMNS).where(
        _d.realm_id == bindparam("realm_id"),
        _d.manufacturer == bindparam("manufacturer"),
        _d.serial_number == bindparam("serial_number"),
    )
)

_MAX_DEPTH = 5
_HARDWARE_MODULE_NAME = x509.ObjectIdentifier("1.3.6.1.5.5.7.8.4")  # RFC 4108 5


def _may_certify(_: object, __: object, usage: x509.KeyUsage | None) -> None:
    # "If a key usage extension is present, verify that the keyCertSign bit is set." -- RFC 5280 6.1.4 (n)
    if usage is not None and not usage.key_cert_sign:
        raise ValueError("a CA's keyUsage does not allow it to sign certificates")


_CA_POLICY = (
    ExtensionPolicy.permit_all()
    .require_present(x509.BasicConstraints, Criticality.AGNOSTIC, None)
    .may_be_present(x509.KeyUsage, Criticality.AGNOSTIC, _may_certify)
)
_EE_POLICY = ExtensionPolicy.permit_all()


@dataclass(frozen=True, slots=True)
class Identity:
    """What an IDevID proves. `manufacturer` is the name of a trust entry of the realm."""

    manufacturer: str
    serial_number: str


async def admit_by_idevid(store: Store, realm: Realm, chain: tuple[bytes, ...], now: dt.datetime) -> DeviceRecord:
    """The registered device that the chain proves. Raises `NotAuthenticated`, `NotAuthorized`."""
    identity = verify_idevid(realm, chain, now)
    row = await store.first(
        _BY_IDENTITY,
        realm_id=realm.id,
        manufacturer=identity.manufacturer,
        serial_number=identity.serial_number,
    )
    if row is None:
        shown = ascii(f"{identity.manufacturer} {identity.serial_number}")
        raise NotAuthorized("device_unknown", "This device is not registered here.", detail=f"IDevID {shown}")
    return record(row)


def verify_idevid(realm: Realm, chain: tuple[bytes, ...], now: dt.datetime) -> Identity:
    """Judge a chain (DER, leaf first) against the realm's IDevID anchors. Raises `NotAuthenticated`."""
    if not realm.anchors:
        raise _unknown()
    try:
        certificates = [x509.load_der_x509_certificate(der) for der in chain]
        leaf, sent = certificates[0], certificates[1:]
        leaf_extensions = leaf.extensions
        check_public_key(leaf.public_key())
    except (BadKey, UnsupportedAlgorithm) as exc:
        raise NotAuthenticated("chain_invalid", "The client certificate's key is not accepted.") from exc
    except (
        ValueError,
        TypeError,
        x509.InvalidVersion,
        x509.DuplicateExtension,
        x509.UnsupportedGeneralNameType,
    ) as exc:
        raise NotAuthenticated("certificate_malformed", "The client certificate can't be read.") from exc
    anchor = _path(realm, leaf, sent, now)
    if realm.document.admission.idevid == "off":
        raise NotAuthenticated("idevid_not_admitted", "Factory certificates are not accepted here.")
    if not _for_clients(leaf_extensions):
        raise NotAuthenticated("certificate_not_for_clients", "The client certificate is not made for clients.")
    serial_number = _serial_number(leaf, leaf_extensions)
    if serial_number is None:
        raise NotAuthenticated("idevid_without_serial", "The client certificate carries no serial number.")
    return Identity(anchor, serial_number)


def _path(realm: Realm, leaf: x509.Certificate, sent: list[x509.Certificate], now: dt.datetime) -> str:
    if now < leaf.not_valid_before_utc:
        raise NotAuthenticated("certificate_not_yet_valid", "The client certificate is not valid yet.")
    if now > leaf.not_valid_after_utc:
        raise NotAuthenticated("certificate_expired", "The client certificate has expired.")
    verifier = (
        PolicyBuilder()
        .store(realm.anchor_store)
        .time(now)
        .max_chain_depth(_MAX_DEPTH)
        .extension_policies(ca_policy=_CA_POLICY, ee_policy=_EE_POLICY)
        .build_client_verifier()
    )
    try:
        verified = verifier.verify(leaf, sent)
    except VerificationError as exc:
        raise _why_no_path(realm, leaf, sent, exc) from exc
    from cryptography.hazmat.primitives.hashes import SHA256

    return realm.anchors[verified.chain[-1].fingerprint(SHA256())].name


def _why_no_path(
    realm: Realm, leaf: x509.Certificate, sent: list[x509.Certificate], exc: VerificationError
) -> NotAuthenticated:
    subjects = {certificate.subject for certificate in (*sent, *realm.anchor_certificates)}
    organizations = {_organization(anchor.subject) for anchor in realm.anchor_certificates} - {None}
    if leaf.issuer not in subjects:
        # The issuer was not sent. Whether it belongs under an anchor can only be guessed by its organization.
        if _organization(leaf.issuer) in organizations:
            return NotAuthenticated(
                "chain_incomplete",
                "The client certificate came without the CA certificates between it and its manufacturer's root.",
            )
        return _unknown()
    top = sent[-1] if sent else leaf
    if any(anchor.subject in {leaf.issuer, top.issuer, top.subject} for anchor in realm.anchor_certificates):
        detail = ascii(str(exc))[:300]
        return NotAuthenticated("chain_invalid", "The client certificate's chain is not valid.", detail=detail)
    return _unknown()


def _unknown() -> NotAuthenticated:
    return NotAuthenticated("certificate_unknown", "The client certificate is not known here.")


def _organization(name: x509.Name) -> str | None:
    found = name.get_attributes_for_oid(NameOID.ORGANIZATION_NAME)
    return str(found[0].value) if found else None


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
    """The subject's serialNumber (IEEE 802.1AR 8.6), else hwSerialNum of a hardwareModuleName (RFC 4108 5)."""
    found = leaf.subject.get_attributes_for_oid(NameOID.SERIAL_NUMBER)
    if found:
        # Two would be two identities.
        return str(found[0].value) or None if len(found) == 1 else None
    try:
        names = extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except x509.ExtensionNotFound:
        return None
    modules = [n for n in names if isinstance(n, x509.OtherName) and n.type_id == _HARDWARE_MODULE_NAME]
    if len(modules) != 1:
        return None
    return _hardware_serial(modules[0].value)


class _HardwareModuleName(asn1.Sequence):  # type: ignore[misc]  # asn1crypto carries no types
    _fields = [("hwType", asn1.ObjectIdentifier), ("hwSerialNum", asn1.OctetString)]  # noqa: RUF012  # asn1crypto's way


def _hardware_serial(value: bytes) -> str | None:
    try:
        serial = bytes(_HardwareModuleName.load(value, strict=True)["hwSerialNum"].native)
    except (ValueError, TypeError):
        return None
    # Manufacturers put either text or raw bytes there; an operator types the one as it is, the other in hex.
    text = serial.decode("ascii", "replace")
    return (text if text.isprintable() and text.isascii() else serial.hex()) or None
