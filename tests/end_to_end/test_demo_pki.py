"""The demo PKI is what it says: what openssl makes of its chains, and what stands in its certificates."""

import stat
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding, load_pem_private_key
from cryptography.x509.oid import NameOID

from certs.demo_pki import HARDWARE_MODULE_NAME, NO_EXPIRATION, DemoPki, IDevId, main
from tests.end_to_end import clients

GOOD = ["sensor", "gateway", "controller", "camera", "router"]


def load(device: IDevId) -> x509.Certificate:
    return x509.load_pem_x509_certificate(device.certificate.read_bytes())


def openssl_says(device: IDevId, root: Path, folder: Path, *options: str) -> str:
    sub_ca = device.folder.parent / "sub-ca.pem"
    trust: list[str | Path] = ["-CAfile", root, "-untrusted", sub_ca]
    done = clients.run(
        "openssl", "verify", "-x509_strict", *options, *trust, device.certificate, cwd=folder, check=False
    )
    return (done.stdout + done.stderr).decode()


@pytest.mark.foreign
@pytest.mark.parametrize("name", GOOD)
def test_openssl_verifies_a_devices_chain(pki: DemoPki, name: str, tmp_path: Path) -> None:
    clients.needs("openssl")
    device: IDevId = getattr(pki, name)
    assert ": OK" in openssl_says(device, device.folder.parent / "root.pem", tmp_path, "-purpose", "sslclient")


@pytest.mark.foreign
def test_openssl_refuses_what_is_to_be_refused(pki: DemoPki, tmp_path: Path) -> None:
    clients.needs("openssl")
    root = pki.acme.root
    assert "certificate has expired" in openssl_says(pki.expired, root, tmp_path)
    assert "unsuitable certificate purpose" in openssl_says(pki.server_only, root, tmp_path, "-purpose", "sslclient")
    assert "unable to get local issuer certificate" in openssl_says(pki.impostor, root, tmp_path)


@pytest.mark.parametrize("name", GOOD)
def test_an_idevid_has_a_serial_number_and_no_end(pki: DemoPki, name: str) -> None:
    device: IDevId = getattr(pki, name)
    certificate = load(device)
    (serial,) = certificate.subject.get_attributes_for_oid(NameOID.SERIAL_NUMBER)
    assert serial.value == device.serial_number
    assert certificate.not_valid_after_utc == NO_EXPIRATION
    assert b"99991231235959Z" in certificate.public_bytes(Encoding.DER)


def test_one_device_names_its_hardware_module(pki: DemoPki) -> None:
    names = load(pki.controller).extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    (name,) = names.get_values_for_type(x509.OtherName)
    assert name.type_id == HARDWARE_MODULE_NAME
    # RFC 4108 5: SEQUENCE { hwType 2.999.1, hwSerialNum "SE-000417" }
    assert name.value == bytes.fromhex("3010 0603883701 0409") + b"SE-000417"


def test_the_impostor_repeats_every_name_of_the_genuine_device(pki: DemoPki) -> None:
    genuine, impostor = load(pki.sensor), load(pki.impostor)
    assert impostor.subject == genuine.subject
    assert impostor.issuer == genuine.issuer
    assert impostor.public_key() != genuine.public_key()


def test_a_chain_is_the_device_and_its_sub_ca_and_a_key_is_its_owners_alone(pki: DemoPki) -> None:
    leaf, sub_ca = x509.load_pem_x509_certificates(pki.sensor.chain.read_bytes())
    assert leaf == load(pki.sensor)
    leaf.verify_directly_issued_by(sub_ca)
    assert stat.S_IMODE(pki.sensor.key.stat().st_mode) == 0o600
    key = load_pem_private_key(pki.sensor.key.read_bytes(), None)
    assert key.public_key() == leaf.public_key()


def test_the_script_says_what_it_made(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(tmp_path / "demo")]) == 0
    said = capsys.readouterr().out
    assert str(tmp_path / "demo" / "acme-devices" / "root.pem") in said
    assert "AC-1001" in said
    assert "GX-2002" in said
