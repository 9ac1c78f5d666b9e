"""A demo PKI, made whenever it is wanted: two manufacturers and the devices that left their factories.

    python -m certs.demo_pki DIR

writes, for each manufacturer, `root.pem`, `sub-ca.pem` and one folder per device with `cert.pem` (the IDevID),
`chain.pem` (the IDevID and its sub-CA, what a TLS client presents) and `key.pem` (0600). The shape is that of
IEEE 802.1AR: the subject carries the serialNumber, notAfter is 99991231235959Z ("no well-defined expiration",
RFC 5280 4.1.2.5), and one device names its secure element by a hardwareModuleName (RFC 4108 5).

Beside them stand three that must be refused: an IDevID that has expired, one whose EKU is for servers only, and one of
a look-alike manufacturer, which repeats every name of the first one and has keys of its own. Nothing of this is kept in
git.
"""

import argparse
import datetime as dt
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID, ObjectIdentifier

__all__ = ["NO_EXPIRATION", "DemoPki", "IDevId", "Manufacturer", "make_demo_pki", "make_manufacturer"]

NO_EXPIRATION = dt.datetime(9999, 12, 31, 23, 59, 59, tzinfo=dt.UTC)
HARDWARE_MODULE_NAME = ObjectIdentifier("1.3.6.1.5.5.7.8.4")
EXAMPLE_HARDWARE_TYPE = "2.999.1"  # 2.999 is the arc that is set aside for examples

PrivateKey = ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey


@dataclass(frozen=True, slots=True)
class IDevId:
    """One device as it left the factory: where its files are, and the serialNumber in its subject."""

    folder: Path
    serial_number: str

    @property
    def certificate(self) -> Path:
        """The IDevID alone."""
        return self.folder / "cert.pem"

    @property
    def chain(self) -> Path:
        """The IDevID and the sub-CA that signed it, the order in which TLS sends them."""
        return self.folder / "chain.pem"

    @property
    def key(self) -> Path:
        """The private key, PKCS#8, unencrypted, 0600."""
        return self.folder / "key.pem"


@dataclass(frozen=True, slots=True)
class Manufacturer:
    """A manufacturer: `root` is the file an operator gives to `enrolld trust add`."""

    name: str
    folder: Path
    sub_ca_certificate: x509.Certificate
    sub_ca_key: ec.EllipticCurvePrivateKey

    @property
    def root(self) -> Path:
        """The trust anchor."""
        return self.folder / "root.pem"

    @property
    def sub_ca(self) -> Path:
        """The intermediate that signs devices."""
        return self.folder / "sub-ca.pem"

    def make_device(
        self,
        name: str,
        serial_number: str,
        *,
        rsa_key: bool = False,
        hardware_serial: bytes | None = None,
        purposes: Sequence[ObjectIdentifier] = (),
        not_before: dt.datetime | None = None,
        not_after: dt.datetime = NO_EXPIRATION,
    ) -> IDevId:
        """Make one device's key and IDevID, and write them under the manufacturer's folder."""
        key: PrivateKey = rsa.generate_private_key(65537, 2048) if rsa_key else ec.generate_private_key(ec.SECP256R1())
        builder = (
            x509.CertificateBuilder()
            .subject_name(
                x509.Name(
                    [
                        x509.NameAttribute(NameOID.ORGANIZATION_NAME, self.name),
                        x509.NameAttribute(NameOID.COMMON_NAME, name),
                        x509.NameAttribute(NameOID.SERIAL_NUMBER, serial_number),
                    ]
                )
            )
            .issuer_name(self.sub_ca_certificate.subject)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(not_before or _made_at())
            .not_valid_after(not_after)
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(_key_usage(digital_signature=True, key_encipherment=rsa_key), critical=True)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
            .add_extension(_issued_by(self.sub_ca_key), critical=False)
        )
        if purposes:
            builder = builder.add_extension(x509.ExtendedKeyUsage(purposes), critical=False)
        if hardware_serial is not None:
            other_name = x509.OtherName(
                HARDWARE_MODULE_NAME, _hardware_module_name(EXAMPLE_HARDWARE_TYPE, hardware_serial)
            )
            builder = builder.add_extension(x509.SubjectAlternativeName([other_name]), critical=False)
        certificate = _pem(builder.sign(self.sub_ca_key, hashes.SHA256()))
        device = IDevId(self.folder / name, serial_number)
        device.folder.mkdir(parents=True, exist_ok=True)
        _write(device.certificate, certificate)
        _write(device.chain, certificate + _pem(self.sub_ca_certificate))
        _write(
            device.key,
            key.private_bytes(
                serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
            ),
            private=True,
        )
        return device


@dataclass(frozen=True, slots=True)
class DemoPki:
    """Everything that `make_demo_pki` made."""

    acme: Manufacturer
    globex: Manufacturer
    lookalike: Manufacturer
    sensor: IDevId
    gateway: IDevId
    controller: IDevId
    camera: IDevId
    router: IDevId
    expired: IDevId
    server_only: IDevId
    impostor: IDevId


def make_demo_pki(directory: Path) -> DemoPki:
    """Make the demo PKI in `directory`, which is created; keys already there are replaced."""
    acme = make_manufacturer("Acme Devices", directory / "acme-devices")
    globex = make_manufacturer("Globex Networks", directory / "globex-networks")
    lookalike = make_manufacturer("Acme Devices", directory / "lookalike")
    made_at = _made_at()
    return DemoPki(
        acme=acme,
        globex=globex,
        lookalike=lookalike,
        sensor=acme.make_device("sensor", "AC-1001"),
        gateway=acme.make_device("gateway", "AC-1002", rsa_key=True),
        controller=acme.make_device("controller", "AC-1003", hardware_serial=b"SE-000417"),
        camera=globex.make_device("camera", "GX-2001"),
        router=globex.make_device("router", "GX-2002", rsa_key=True),
        expired=acme.make_device(
            "expired",
            "AC-1004",
            not_before=made_at - dt.timedelta(days=30),
            not_after=made_at - dt.timedelta(days=1),
        ),
        server_only=acme.make_device("server-only", "AC-1005", purposes=[ExtendedKeyUsageOID.SERVER_AUTH]),
        impostor=lookalike.make_device("sensor", "AC-1001"),
    )


def make_manufacturer(name: str, folder: Path) -> Manufacturer:
    """Make a manufacturer's root and sub-CA (P-256, 30 years), and write their certificates to `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    root_key = ec.generate_private_key(ec.SECP256R1())
    root = _certify_ca(f"{name} Root CA", name, root_key, signer=root_key, issuer=None, path_length=1)
    sub_ca_key = ec.generate_private_key(ec.SECP256R1())
    sub_ca = _certify_ca(f"{name} Factory CA 1", name, sub_ca_key, signer=root_key, issuer=root, path_length=0)
    manufacturer = Manufacturer(name, folder, sub_ca, sub_ca_key)
    _write(manufacturer.root, _pem(root))
    _write(manufacturer.sub_ca, _pem(sub_ca))
    return manufacturer


def main(arguments: Sequence[str] | None = None) -> int:
    """Make the demo PKI in the folder named on the command line, and say what to do with it."""
    parser = argparse.ArgumentParser(prog="python -m certs.demo_pki", description="Make a demo PKI.")
    parser.add_argument("directory", type=Path, help="where to write it; created if absent")
    pki = make_demo_pki(parser.parse_args(arguments).directory)
    for manufacturer in (pki.acme, pki.globex):
        print(f"{manufacturer.name}: trust {manufacturer.root}")
    for device in (pki.sensor, pki.gateway, pki.controller, pki.camera, pki.router):
        print(f"  serialNumber {device.serial_number}: {device.chain} and key.pem")
    print(f"to be refused: {pki.expired.folder}, {pki.server_only.folder}, {pki.lookalike.folder}")
    return 0


def _certify_ca(
    common_name: str,
    organization: str,
    key: ec.EllipticCurvePrivateKey,
    *,
    signer: ec.EllipticCurvePrivateKey,
    issuer: x509.Certificate | None,
    path_length: int,
) -> x509.Certificate:
    subject = x509.Name(
        [
            x509.NameAttribute(NameOID.ORGANIZATION_NAME, organization),
            x509.NameAttribute(NameOID.COMMON_NAME, common_name),
        ]
    )
    made_at = _made_at()
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer.subject if issuer else subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(made_at - dt.timedelta(days=365))
        .not_valid_after(made_at + dt.timedelta(days=365 * 30))
        .add_extension(x509.BasicConstraints(ca=True, path_length=path_length), critical=True)
        .add_extension(_key_usage(key_cert_sign=True), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .add_extension(_issued_by(signer), critical=False)
        .sign(signer, hashes.SHA256())
    )


def _made_at() -> dt.datetime:
    """Yesterday: a factory comes before the field, also by a clock that is a little slow."""
    return dt.datetime.now(dt.UTC).replace(microsecond=0) - dt.timedelta(days=1)


def _issued_by(signer: ec.EllipticCurvePrivateKey) -> x509.AuthorityKeyIdentifier:
    return x509.AuthorityKeyIdentifier.from_issuer_public_key(signer.public_key())


def _key_usage(
    *, digital_signature: bool = False, key_encipherment: bool = False, key_cert_sign: bool = False
) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=digital_signature,
        content_commitment=False,
        key_encipherment=key_encipherment,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=key_cert_sign,
        crl_sign=key_cert_sign,
        encipher_only=False,
        decipher_only=False,
    )


def _hardware_module_name(hardware_type: str, serial: bytes) -> bytes:
    """RFC 4108 5: HardwareModuleName ::= SEQUENCE { hwType OBJECT IDENTIFIER, hwSerialNum OCTET STRING }."""
    first, second, *rest = (int(arc) for arc in hardware_type.split("."))
    oid = b"".join(_base128(arc) for arc in (first * 40 + second, *rest))
    return _tlv(0x30, _tlv(0x06, oid) + _tlv(0x04, serial))


def _base128(value: int) -> bytes:
    groups = [value & 0x7F]
    while value := value >> 7:
        groups.append(0x80 | value & 0x7F)
    return bytes(reversed(groups))


def _tlv(tag: int, content: bytes) -> bytes:
    if len(content) > 127:
        raise ValueError("the short form of a DER length ends at 127")
    return bytes((tag, len(content))) + content


def _pem(certificate: x509.Certificate) -> bytes:
    return certificate.public_bytes(serialization.Encoding.PEM)


def _write(path: Path, content: bytes, *, private: bool = False) -> None:
    path.unlink(missing_ok=True)  # a key that others could read must not keep its mode
    with open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600 if private else 0o644), "wb") as file:
        file.write(content)


if __name__ == "__main__":
    sys.exit(main())
