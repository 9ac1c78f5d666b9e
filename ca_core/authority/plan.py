"""A certificate before it is signed: exactly what will be in it."""

import datetime as dt
import ipaddress
from dataclasses import dataclass

from cryptography import x509
from cryptography.x509.oid import ExtendedKeyUsageOID, ObjectIdentifier

from ca_core.errors import Unavailable
from ca_core.public_key import PublicKey

CLIENT_AUTH = ExtendedKeyUsageOID.CLIENT_AUTH
SERVER_AUTH = ExtendedKeyUsageOID.SERVER_AUTH


@dataclass(frozen=True, slots=True)
class Policy:
    """A certificate policy (RFC 5280 4.2.1.4); `cps` is the URI of its practice statement."""

    oid: ObjectIdentifier
    cps: str | None = None


@dataclass(frozen=True, slots=True)
class OwnExtension:
    """An extension of a profile's own making; `der` is its value."""

    oid: ObjectIdentifier
    critical: bool
    der: bytes


@dataclass(frozen=True, slots=True)
class CertificatePlan:
    """What a certificate will say.

    `names` are SANs in canonical text (`DNS:x`, `IP:x`, `URI:x`, `email:x`); validity is inclusive at both ends, in
    whole seconds; `path_length` is None for anything but a CA. `key_usage` are bits by their names in RFC 5280 4.2.1.3;
    None is what the key's kind and `key_encipherment` say.
    """

    subject: x509.Name
    public_key: PublicKey
    not_before: dt.datetime
    not_after: dt.datetime
    names: tuple[str, ...] = ()
    extended_key_usage: tuple[ObjectIdentifier, ...] = ()
    key_encipherment: bool = False
    ca: bool = False
    path_length: int | None = None
    key_usage: tuple[str, ...] | None = None
    policies: tuple[Policy, ...] = ()
    own: tuple[OwnExtension, ...] = ()


def general_name(text: str) -> x509.GeneralName:
    """The SAN that a canonical text names."""
    kind, _, value = text.partition(":")
    match kind:
        case "DNS":
            return x509.DNSName(value)
        case "IP":
            return x509.IPAddress(ipaddress.ip_address(value))
        case "URI":
            return x509.UniformResourceIdentifier(value)
        case "email":
            return x509.RFC822Name(value)
    raise ValueError(f"not a name that certificates carry: {text!r}")


def validity(now: dt.datetime, length: dt.timedelta, latest: dt.datetime) -> tuple[dt.datetime, dt.datetime]:
    """notBefore and notAfter of a certificate that is valid for `length`, never beyond `latest`.

    Raises `Unavailable` when `latest`, the issuer's own notAfter, is past.
    """
    if latest <= now:  # enforces case 61
        raise Unavailable(f"the issuer expired {latest:%Y-%m-%dT%H:%M:%SZ}: nothing can be issued under it")
    not_before = (now - dt.timedelta(minutes=5)).replace(microsecond=0)  # devices boot with slow clocks
    # notAfter itself is still valid (RFC 5280 4.1.2.5): give one second back.
    not_after = (now + length - dt.timedelta(seconds=1)).replace(microsecond=0)
    not_after = min(not_after, latest)  # enforces case 27
    return not_before, not_after
