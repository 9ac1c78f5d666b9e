"""Throw-away manufacturers in the place of those that realms trust, and the devices that they make.

What the trusted certificates have to do with each other stays as it is: the same key stays the same key, and who stands
above whom stays above it. Names are copied; keys are new, and nobody keeps them.
"""

import datetime as dt
from collections.abc import Iterable
from dataclasses import dataclass, field

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.asymmetric.types import CertificatePublicKeyTypes
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from cryptography.x509.oid import NameOID

__all__ = ["Authority", "DeviceKey", "Manufacturers", "cross_signed", "is_issued_by", "make_idevid"]

DeviceKey = ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey
_LONG = dt.timedelta(days=3650)
_BEFORE = dt.timedelta(days=1)


@dataclass(frozen=True, slots=True)
class Authority:
    """A CA that may be trusted. Without a key (a realm's own CA) it makes no devices."""

    certificate: x509.Certificate
    key: ec.EllipticCurvePrivateKey | None = field(repr=False)


class Manufacturers:
    """Makes one CA for each of the `originals`, when it is asked for. `given` ones stand for some, by their DER."""

    def __init__(
        self, originals: Iterable[x509.Certificate], now: dt.datetime, given: dict[bytes, Authority] | None = None
    ) -> None:
        self._originals = list(originals)
        self._now = now
        self._made = dict(given or {})
        self._keys: dict[bytes, ec.EllipticCurvePrivateKey] = {}

    def stand_in(self, original: x509.Certificate) -> Authority:
        """The CA in its place."""
        der = original.public_bytes(Encoding.DER)
        if der not in self._made:
            above = next((each for each in self._originals if each != original and is_issued_by(original, each)), None)
            by = self.stand_in(above) if above is not None else None
            spki = original.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
            key = self._keys.setdefault(spki, ec.generate_private_key(ec.SECP256R1()))
            made = _ca(original.subject, key, by if by is not None and by.key is not None else None, self._now)
            self._made[der] = Authority(made, key)
        return self._made[der]


def cross_signed(certificate: x509.Certificate, by: Authority, now: dt.datetime) -> x509.Certificate:
    """A CA's certificate for the same name and key, signed by another one."""
    return _sign(_ca_builder(certificate.subject, certificate.public_key()), by, now)


def make_idevid(by: Authority, serial_number: str, key: DeviceKey, now: dt.datetime) -> x509.Certificate:
    """A device's factory identity (IEEE 802.1AR 8): serialNumber in the subject, good for signing."""
    name = x509.Name([x509.NameAttribute(NameOID.SERIAL_NUMBER, serial_number)])
    usage = x509.KeyUsage(True, False, False, False, False, False, False, False, False)
    return _sign(_builder(name, key.public_key()).add_extension(usage, critical=True), by, now)


def is_issued_by(certificate: x509.Certificate, authority: x509.Certificate) -> bool:
    """Whether the one was signed by the other, also by its name."""
    try:
        certificate.verify_directly_issued_by(authority)
    except (ValueError, TypeError, InvalidSignature, UnsupportedAlgorithm):
        return False
    return True


def _ca(
    subject: x509.Name, key: ec.EllipticCurvePrivateKey, by: Authority | None, now: dt.datetime
) -> x509.Certificate:
    builder = _ca_builder(subject, key.public_key())
    if by is not None:
        return _sign(builder, by, now)
    return _dated(builder.issuer_name(subject), now).sign(key, hashes.SHA256())


def _ca_builder(subject: x509.Name, key: CertificatePublicKeyTypes) -> x509.CertificateBuilder:
    usage = x509.KeyUsage(False, False, False, False, False, True, True, False, False)
    return (
        _builder(subject, key)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .add_extension(usage, critical=True)
    )


def _builder(subject: x509.Name, key: CertificatePublicKeyTypes) -> x509.CertificateBuilder:
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .public_key(key)
        .serial_number(x509.random_serial_number())
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key), critical=False)
    )


def _sign(builder: x509.CertificateBuilder, by: Authority, now: dt.datetime) -> x509.Certificate:
    if by.key is None:
        raise ValueError("a CA without its key signs nothing")
    return _dated(builder.issuer_name(by.certificate.subject), now).sign(by.key, hashes.SHA256())


def _dated(builder: x509.CertificateBuilder, now: dt.datetime) -> x509.CertificateBuilder:
    return builder.not_valid_before(now - _BEFORE).not_valid_after(now + _LONG)
