"""Certificates of a manufacturer, with any flaw that a test wants: names, purposes, constraints, hashes, times."""

import datetime as dt
from collections.abc import Sequence
from dataclasses import dataclass

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import NameOID

from tests.helpers.bad_csr import bit_string, null, oid, sequence

PrivateKey = ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey
ORGANIZATION = "Acme Devices"
START = dt.datetime(2026, 1, 1, tzinfo=dt.UTC)
END = dt.datetime(2056, 1, 1, tzinfo=dt.UTC)
NO_EXPIRATION = dt.datetime(9999, 12, 31, 23, 59, 59, tzinfo=dt.UTC)


@dataclass(frozen=True)
class Made:
    """A certificate, what stands above it (nearest first), and its key."""

    certificate: x509.Certificate
    key: PrivateKey
    above: "tuple[Made, ...]" = ()

    @property
    def der(self) -> bytes:
        return self.certificate.public_bytes(Encoding.DER)

    @property
    def pem(self) -> bytes:
        return self.certificate.public_bytes(Encoding.PEM)

    @property
    def chain(self) -> tuple[bytes, ...]:
        """As a TLS client sends it: without the root."""
        return (self.der, *(made.der for made in self.above[:-1]))


def subject(
    common_name: str, *, organization: str | None = ORGANIZATION, serial_numbers: Sequence[str] = ()
) -> x509.Name:
    return x509.Name(
        [
            *([x509.NameAttribute(NameOID.ORGANIZATION_NAME, organization)] if organization else []),
            x509.NameAttribute(NameOID.COMMON_NAME, common_name),
            *(x509.NameAttribute(NameOID.SERIAL_NUMBER, number) for number in serial_numbers),
        ]
    )


def key_usage(*, sign: bool = False, certify: bool = False) -> x509.KeyUsage:
    return x509.KeyUsage(sign, False, False, False, False, certify, certify, False, False)


def make(
    name: x509.Name,
    by: Made | None = None,
    *,
    ca: bool | None = False,
    path_length: int | None = None,
    usage: x509.KeyUsage | None = None,
    purposes: Sequence[x509.ObjectIdentifier] = (),
    san: Sequence[x509.GeneralName] = (),
    permitted: Sequence[x509.GeneralName] = (),
    extra: Sequence[tuple[x509.ExtensionType, bool]] = (),
    not_before: dt.datetime = START,
    not_after: dt.datetime = END,
    key: PrivateKey | None = None,
) -> Made:
    """A certificate; `ca` None leaves basicConstraints out."""
    own = key or ec.generate_private_key(ec.SECP256R1())
    signer = by.key if by else own
    builder = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(by.certificate.subject if by else name)
        .public_key(own.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(not_before)
        .not_valid_after(not_after)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(own.public_key()), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(signer.public_key()), critical=False)
    )
    if ca is not None:
        builder = builder.add_extension(x509.BasicConstraints(ca, path_length if ca else None), critical=True)
    if usage is not None:
        builder = builder.add_extension(usage, critical=True)
    if purposes:
        builder = builder.add_extension(x509.ExtendedKeyUsage(purposes), critical=False)
    if san:
        builder = builder.add_extension(x509.SubjectAlternativeName(san), critical=False)
    if permitted:
        builder = builder.add_extension(x509.NameConstraints(permitted, None), critical=True)
    for extension, critical in extra:
        builder = builder.add_extension(extension, critical)
    certificate = builder.sign(signer, hashes.SHA256())
    return Made(certificate, own, (by, *by.above) if by else ())


def root(name: str = "Acme Devices Root CA", *, path_length: int | None = 1, organization: str = ORGANIZATION) -> Made:
    return make(
        subject(name, organization=organization), ca=True, path_length=path_length, usage=key_usage(certify=True)
    )


def sub_ca(by: Made, name: str = "Acme Devices Factory CA 1", *, path_length: int | None = 0) -> Made:
    return make(subject(name), by, ca=True, path_length=path_length, usage=key_usage(certify=True))


def idevid(by: Made, serial_number: str = "AC-1", *, not_after: dt.datetime = NO_EXPIRATION) -> Made:
    """An IDevID as IEEE 802.1AR wants it: serialNumber in the subject, no well-defined expiration."""
    return make(subject("sensor", serial_numbers=[serial_number]), by, usage=key_usage(sign=True), not_after=not_after)


def weakly_signed(made: Made, by: Made, digest: hashes.MD5 | hashes.SHA1) -> Made:
    """The same certificate with a correct signature over MD5 or SHA-1, which libraries don't make any more."""
    if not isinstance(by.key, rsa.RSAPrivateKey):
        raise TypeError("only RSA has both")
    old = bytes.fromhex("300d06092a864886f70d01010b0500")
    algorithm = sequence(oid("1.2.840.113549.1.1.4" if digest.name == "md5" else "1.2.840.113549.1.1.5"), null())
    signed = made.certificate.tbs_certificate_bytes.replace(old, algorithm)
    signature = by.key.sign(signed, padding.PKCS1v15(), digest)
    return Made(
        x509.load_der_x509_certificate(sequence(signed, algorithm, bit_string(signature))), made.key, made.above
    )
