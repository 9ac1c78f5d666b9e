"""What a profile writes in its own words: OIDs, extended key usages, policies, extensions. All raise `OperatorError`.

What would make a device's certificate a CA's, a responder's or an enrollment server's, or would give it power over
others in a Windows domain, is refused here.
"""

import base64
import re
from collections.abc import Callable

from asn1crypto import parser
from cryptography.x509.oid import ExtendedKeyUsageOID, ExtensionOID, ObjectIdentifier

from ca_core import der
from ca_core.authority.plan import OwnExtension, Policy
from ca_core.csr import SID_EXTENSION
from ca_core.errors import OperatorError

__all__ = [
    "EXTENDED_KEY_USAGES",
    "EXTENSION_TYPES",
    "PRINTABLE",
    "extension_of",
    "parse_extended_key_usage",
    "parse_oid",
    "policy_of",
]

EXTENDED_KEY_USAGES = {
    "clientAuth": ExtendedKeyUsageOID.CLIENT_AUTH,
    "serverAuth": ExtendedKeyUsageOID.SERVER_AUTH,
    "ipsecIKE": ExtendedKeyUsageOID.IPSEC_IKE,
    "emailProtection": ExtendedKeyUsageOID.EMAIL_PROTECTION,
    "smartcardLogon": ExtendedKeyUsageOID.SMARTCARD_LOGON,
    "eapOverLAN": ObjectIdentifier("1.3.6.1.5.5.7.3.14"),  # RFC 4334
}
_REFUSED_USAGES = {
    "2.5.29.37.0": ("anyExtendedKeyUsage", "it would mean any purpose, also those of a CA"),
    "1.3.6.1.5.5.7.3.3": ("codeSigning", "a device signs no code"),
    "1.3.6.1.5.5.7.3.8": ("timeStamping", "a device is no time stamp authority"),
    "1.3.6.1.5.5.7.3.9": ("OCSPSigning", "the device could answer for every certificate of its CA"),
    # "id-kp-cmcRA" tells EST clients that this is their server -- RFC 7030 3.6.1; the two others are its kin.
    "1.3.6.1.5.5.7.3.27": ("cmcCA", "the device could act as a CA"),
    "1.3.6.1.5.5.7.3.28": ("cmcRA", "EST clients would take the device for their server"),
    "1.3.6.1.5.5.7.3.29": ("cmcArchive", "the device could act as a key archive"),
    "1.3.6.1.5.5.7.3.32": ("cmKGA", "the device could make the keys of others"),  # RFC 9480 4.1
    "1.3.6.1.5.5.7.3.10": ("dvcs", "the device could vouch for what others signed"),  # RFC 3029
    "1.3.6.1.5.5.7.3.15": ("scvpServer", "the device could vouch for any chain"),  # RFC 5055
    "1.3.6.1.4.1.11129.2.4.4": ("certificateTransparency", "the device could sign precertificates"),
    "1.3.6.1.5.2.3.5": ("pkinitKDC", "Kerberos clients would take the device for their domain controller"),  # RFC 4556
    # Microsoft's: what Windows and AD CS let a holder do to others. Names are those of its certificate templates.
    "1.3.6.1.4.1.311.10.12.1": ("anyApplicationPolicy", "it would mean any purpose, also those of a CA"),
    "1.3.6.1.4.1.311.20.2.1": ("enrollmentAgent", "the device could enroll in the name of any user"),
    "1.3.6.1.4.1.311.21.5": ("caExchange", "others would encrypt their private keys to the device"),
    "1.3.6.1.4.1.311.21.6": ("keyRecoveryAgent", "the device could recover the private keys of others"),
    "1.3.6.1.4.1.311.10.3.11": ("keyRecovery", "the device could recover the private keys of others"),
    "1.3.6.1.4.1.311.10.3.4.1": ("efsRecovery", "the device could decrypt the files of others"),
    "1.3.6.1.4.1.311.67.1.2": ("bitLockerRecovery", "the device could decrypt the disks of others"),
    "1.3.6.1.4.1.311.10.3.1": ("trustListSigning", "the device could say which CAs are trusted"),
    "1.3.6.1.4.1.311.10.3.9": ("rootListSigning", "the device could say which CAs are trusted"),
    "1.3.6.1.4.1.311.20.1": ("autoEnrollTrustList", "the device could say where others enroll"),
    "1.3.6.1.4.1.311.10.3.10": ("qualifiedSubordination", "the device could certify CAs"),
    "1.3.6.1.4.1.311.10.3.2": ("msTimeStamping", "a device is no time stamp authority"),
    "1.3.6.1.4.1.311.2.1.21": ("msCodeIndividual", "a device signs no code"),
    "1.3.6.1.4.1.311.2.1.22": ("msCodeCommercial", "a device signs no code"),
    "1.3.6.1.4.1.311.61.1.1": ("kernelModeCodeSigning", "a device signs no code"),
}
_NOT_USAGES = ("keyCertSign", "cRLSign")
PRINTABLE = re.compile(r"[A-Za-z0-9 '()+,./:=?-]*")
"""What a PrintableString holds."""

_OID = re.compile(r"[0-2](\.(0|[1-9][0-9]{0,9})){2,19}")

_KEPT_ARCS = (
    "2.5.29.",  # RFC 5280's own: enrolld sets them or leaves them out
    "1.3.6.1.5.5.7.1.",  # its access descriptions, and what else PKIX put there
    "1.3.6.1.5.5.7.48.",  # OCSP, whose id-pkix-ocsp-nocheck marks a responder
    "1.3.6.1.4.1.11129.2.4.",  # certificate transparency
    "2.16.840.1.113730.1.",  # Netscape, whose certificate type has bits for CAs
)
_REFUSED_EXTENSIONS = {
    # MS-WCCE 2.2.2.7.7.4: a domain controller takes the certificate for that account's, whatever its names say.
    SID_EXTENSION: "a Windows domain would take the device for any account",
    "1.3.6.1.4.1.311.25.1": "a Windows domain would take the device for a domain controller",
    "1.3.6.1.4.1.311.20.2": "it names a template, by which Windows knows CAs, agents and domain controllers",
    # Windows reads it as it reads extendedKeyUsage, and sooner (CVE-2024-49019).
    "1.3.6.1.4.1.311.21.10": "a second extended key usage, which nothing here looks into",
    "1.3.6.1.4.1.311.21.11": "it maps policies, as a CA's certificate does",
    "1.3.6.1.4.1.311.21.12": "it constrains policies, as a CA's certificate does",
    "1.3.6.1.4.1.311.21.1": "it tells the version of a CA's key",
}
_KEPT = frozenset(oid.dotted_string for oid in vars(ExtensionOID).values() if isinstance(oid, ObjectIdentifier))


def parse_oid(text: str) -> ObjectIdentifier:
    """A dotted OID."""
    if len(text) <= 100 and _OID.fullmatch(text):
        try:
            return ObjectIdentifier(text)
        except ValueError:
            pass
    raise OperatorError("oid_invalid", f"'{ascii(text[:80])[1:-1]}' is no OID", "write it as 1.3.6.1.4.1.99999.1")


def parse_extended_key_usage(text: str) -> ObjectIdentifier:
    """By its name or OID."""
    refused = dict(_REFUSED_USAGES.values())
    refused |= dict.fromkeys(_NOT_USAGES, "only a CA has it")
    oid = EXTENDED_KEY_USAGES.get(text)
    if oid is None and text[:1].isdigit():
        oid = parse_oid(text)
        if oid.dotted_string in _REFUSED_USAGES:
            text = _REFUSED_USAGES[oid.dotted_string][0]
    if text in refused:  # enforces case 23
        raise OperatorError("usage_refused", f"'{text}' is given to no device: {refused[text]}", "leave it out")
    if oid is None:
        known = ", ".join(EXTENDED_KEY_USAGES)
        shown = ascii(text[:40])[1:-1]
        raise OperatorError("usage_unknown", f"'{shown}' is not known", f"use: {known}, or a dotted OID")
    return oid


def policy_of(oid: str, cps: str | None) -> Policy:
    """A certificate policy, and the URI of its practice statement."""
    if cps is not None and not _CPS.fullmatch(cps):
        raise OperatorError("cps_invalid", f"'{ascii(cps[:80])[1:-1]}' is no URI", "use https://example.com/cps")
    return Policy(parse_oid(oid), cps)


_CPS = re.compile(r"https?://[!-~]{1,200}")


def extension_of(oid: str, kind: str, value: str, critical: bool) -> OwnExtension:
    """An extension of the profile's own making. `kind` is one of `EXTENSION_TYPES`; der is base64, octets are hex."""
    parsed = parse_oid(oid)
    dotted = parsed.dotted_string
    if dotted.startswith(_KEPT_ARCS) or dotted in _KEPT:  # enforces case 22
        raise OperatorError(
            "extension_kept", f"the extension {dotted} is enrolld's own to set", "use the key that is made for it"
        )
    if dotted in _REFUSED_EXTENSIONS:  # enforces case 10
        why = _REFUSED_EXTENSIONS[dotted]
        raise OperatorError("extension_refused", f"the extension {dotted} is given to no device: {why}", "leave it out")
    try:
        encoded = _ENCODERS[kind](value)
    except (ValueError, KeyError) as exc:
        raise OperatorError(
            "extension_invalid",
            f"the value of {dotted} is not of type '{ascii(kind[:20])[1:-1]}'",
            f"use one of: {', '.join(EXTENSION_TYPES)}; der is base64, octets are hex",
        ) from exc
    if len(encoded) > 4096:
        raise OperatorError("extension_invalid", f"the value of {dotted} is longer than 4096 bytes", "make it shorter")
    return OwnExtension(parsed, critical, encoded)


def _der(text: str) -> bytes:
    value = base64.b64decode(text, validate=True)
    parser.parse(value, strict=True)
    return value


def _boolean(text: str) -> bytes:
    return der.tlv(0x01, {"true": b"\xff", "false": b"\x00"}[text])


def _null(text: str) -> bytes:
    if text:
        raise ValueError("NULL has no value")
    return der.NULL


def _integer(text: str) -> bytes:
    if not re.fullmatch(r"0|[1-9][0-9]{0,60}", text):
        raise ValueError("no whole number")
    return der.integer(int(text))


def _printable(text: str) -> bytes:
    if not PRINTABLE.fullmatch(text):
        raise ValueError("not of a PrintableString's characters")
    return der.tlv(0x13, text.encode())


_ENCODERS: dict[str, Callable[[str], bytes]] = {
    "der": _der,
    "utf8": lambda text: der.tlv(0x0C, text.encode()),
    "ia5": lambda text: der.tlv(0x16, text.encode("ascii")),
    "printable": _printable,
    "integer": _integer,
    "boolean": _boolean,
    "octets": lambda text: der.octets(bytes.fromhex(text)),
    "null": _null,
}
EXTENSION_TYPES = tuple(_ENCODERS)
