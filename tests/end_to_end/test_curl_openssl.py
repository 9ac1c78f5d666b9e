"""curl and openssl, as `interop/curl-openssl` says to use them, against a real enrolld.

Every connection is verified against the realm's root alone. Every certificate passes `openssl verify` (the recipes run
it, and so does `verified`), and stands in `cert list`.
"""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from cryptography.x509.oid import AuthorityInformationAccessOID

from certs.demo_pki import DemoPki, IDevId
from tests.end_to_end import clients
from tests.end_to_end.wire import request_id_in
from tests.helpers.daemon import Daemon

pytestmark = pytest.mark.foreign

EST = "/.well-known/est"
SUSPENDED = ("device_suspended", "The device is suspended.")


@pytest.fixture(autouse=True)
def _clients() -> None:
    clients.needs("curl", "openssl")


class Bench:
    """A folder in which recipes run, for one device and one realm's label."""

    def __init__(self, daemon: Daemon, folder: Path, name: str, secret: str) -> None:
        self.daemon = daemon
        self.folder = folder
        self.name = name
        self.settings = {
            "EST": f"https://localhost:{daemon.https_port}{EST}",
            "NAME": name,
            "SECRET": secret,
        }
        shutil.copy(daemon.root, folder / "root.pem")

    def recipe(self, script: str, **settings: str) -> None:
        clients.interop(f"curl-openssl/{script}.sh", cwd=self.folder, settings={**self.settings, **settings})

    def refused(self, script: str, **settings: str) -> str:
        """Run a recipe that must fail, and return the sentence that the server answered with."""
        done = clients.interop(
            f"curl-openssl/{script}.sh", cwd=self.folder, settings={**self.settings, **settings}, check=False
        )
        assert done.returncode != 0
        return (self.folder / "answer").read_text()

    def verified(self) -> x509.Certificate:
        """Read device.pem, after openssl has verified it against the root, and cert list has shown it."""
        clients.run(
            *("openssl", "verify", "-x509_strict", "-purpose", "sslclient"),
            *("-CAfile", "root.pem", "-untrusted", "ca.pem", "device.pem"),
            cwd=self.folder,
        )
        certificate = x509.load_pem_x509_certificate((self.folder / "device.pem").read_bytes())
        row = self.row_of(certificate)
        assert row["status"] == "valid"
        assert row["device"] == self.name
        assert row["realm"] == "default"
        assert row["protocol"] == "est"
        return certificate

    def row_of(self, certificate: x509.Certificate) -> dict[str, Any]:
        serial = format(certificate.serial_number, "x")
        (row,) = [row for row in self.daemon.certificates_of(self.name) if row["serial"] == serial]
        return row


@pytest.fixture
def bench(daemon: Daemon, tmp_path: Path, new_name: Callable[[], str]) -> Bench:
    """A new device with a secret."""
    added = daemon.ask("device", "add", new_name())
    return Bench(daemon, tmp_path, added["username"], added["secret"])


def subject_public_key(certificate: x509.Certificate) -> bytes:
    return certificate.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)


def test_cacerts_are_the_root_and_every_issuing_ca(bench: Bench) -> None:
    bench.recipe("cacerts")
    served = x509.load_pem_x509_certificates((bench.folder / "ca.pem").read_bytes())
    exported = x509.load_pem_x509_certificates(bench.daemon.ca.read_bytes())
    assert set(served) == set(exported)
    assert len(served) == len(exported) >= 2
    (root,) = x509.load_pem_x509_certificates(bench.daemon.root.read_bytes())
    assert root.subject == root.issuer
    assert root in served


def test_a_device_enrolls_by_its_secret(bench: Bench) -> None:
    bench.recipe("cacerts")
    bench.recipe("enroll")
    certificate = bench.verified()
    assert certificate.subject.rfc4514_string() == f"CN={bench.name}"


def test_a_device_renews_with_the_same_key(bench: Bench) -> None:
    bench.recipe("cacerts")
    bench.recipe("enroll")
    first = bench.verified()
    bench.recipe("renew")
    second = bench.verified()
    assert second.serial_number != first.serial_number
    assert subject_public_key(second) == subject_public_key(first)
    assert second.subject == first.subject


def test_a_device_renews_with_a_new_key(bench: Bench) -> None:
    bench.recipe("cacerts")
    bench.recipe("enroll")
    first = bench.verified()
    bench.recipe("rekey")
    second = bench.verified()
    assert subject_public_key(second) != subject_public_key(first)
    assert second.subject == first.subject
    bench.recipe("renew")  # and the new one is as good as the first
    bench.verified()


@pytest.mark.parametrize("device", ["sensor", "gateway", "controller", "camera", "router"])
def test_a_registered_device_enrolls_by_its_idevid(
    daemon: Daemon, pki: DemoPki, tmp_path: Path, new_name: Callable[[], str], device: str
) -> None:
    idevid: IDevId = getattr(pki, device)
    manufacturer = pki.acme if device in {"sensor", "gateway", "controller"} else pki.globex
    trust_manufacturer(daemon, manufacturer.root, manufacturer.name)
    name = new_name()
    daemon.ask(*("device", "add", name, "--serial-number", idevid.serial_number, "--manufacturer", manufacturer.name))
    bench = Bench(daemon, tmp_path, name, secret="")
    bench.recipe("cacerts")
    bench.recipe("enroll-idevid", IDEVID=str(idevid.folder))
    certificate = bench.verified()
    assert certificate.subject.rfc4514_string() == f"CN={name}"
    bench.recipe("renew")  # from here on by its own certificate
    bench.verified()


@pytest.mark.parametrize("pasted", [pytest.param(False, id="script"), pytest.param(True, id="pasted")])
@pytest.mark.parametrize("script", ["renew", "rekey", "enroll", "enroll-idevid"])
def test_a_refused_recipe_leaves_the_old_key_and_certificate_as_they_were(
    own_daemon: Daemon, tmp_path: Path, pki: DemoPki, script: str, pasted: bool
) -> None:
    trust_manufacturer(own_daemon, pki.acme.root, pki.acme.name)
    identity = ("--serial-number", pki.sensor.serial_number, "--manufacturer", pki.acme.name)
    added = own_daemon.ask("device", "add", "sensor-17", *identity)
    bench = Bench(own_daemon, tmp_path, "sensor-17", added["secret"])
    bench.settings["IDEVID"] = str(pki.sensor.folder)
    bench.recipe("cacerts")
    bench.recipe("enroll")
    before = {name: (bench.folder / name).read_bytes() for name in ("device.key", "device.pem", "ca.pem")}
    bench.settings["SECRET"] = bench.daemon.ask("device", "secret", bench.name)["secret"]
    bench.daemon.ask("device", "suspend", bench.name)
    (bench.folder / "answer").write_text("of an earlier request")

    done = clients.interop(
        f"curl-openssl/{script}.sh", cwd=bench.folder, settings=bench.settings, check=False, pasted=pasted
    )
    assert done.returncode != 0
    sentence = done.stdout.decode()
    refusal = bench.daemon.explain(request_id_in(sentence))
    assert (refusal["code"], refusal["message"]) == SUSPENDED
    assert sentence.startswith(refusal["message"])
    assert {name: (bench.folder / name).read_bytes() for name in before} == before

    bench.daemon.ask("device", "resume", bench.name)  # the twin
    clients.interop(f"curl-openssl/{script}.sh", cwd=bench.folder, settings=bench.settings, pasted=pasted)
    bench.verified()
    assert (bench.folder / "device.pem").read_bytes() != before["device.pem"]
    assert ((bench.folder / "device.key").read_bytes() != before["device.key"]) is (script != "renew")


def test_when_nobody_answers_nothing_is_replaced_either(bench: Bench) -> None:
    bench.recipe("cacerts")
    bench.recipe("enroll")
    before = {name: (bench.folder / name).read_bytes() for name in ("device.key", "device.pem", "ca.pem")}
    bench.settings["EST"] = "https://localhost:1/.well-known/est"
    for script in ("cacerts", "renew", "rekey", "enroll"):
        done = clients.interop(
            f"curl-openssl/{script}.sh", cwd=bench.folder, settings=bench.settings, check=False, pasted=True
        )
        assert done.returncode != 0
        assert b"curl: (7)" in done.stderr
    assert {name: (bench.folder / name).read_bytes() for name in before} == before


def test_the_crl_named_in_the_certificate_lists_a_revoked_one_and_it_can_renew_no_more(bench: Bench) -> None:
    bench.recipe("cacerts")
    bench.recipe("enroll")
    bench.recipe("renew")  # the twin: before it is revoked, the certificate renews
    certificate = bench.verified()

    before = fetch_crl(bench, certificate)
    assert before.get_revoked_certificate_by_serial_number(certificate.serial_number) is None

    answer = bench.daemon.ask("cert", "revoke", format(certificate.serial_number, "x"), "--reason", "keyCompromise")
    assert answer["published"] is True
    after = fetch_crl(bench, certificate)
    entry = after.get_revoked_certificate_by_serial_number(certificate.serial_number)
    assert entry is not None
    reason = entry.extensions.get_extension_for_class(x509.CRLReason).value.reason
    assert reason is x509.ReasonFlags.key_compromise
    assert crl_number(after) > crl_number(before)
    checked = clients.run(
        *("openssl", "verify", "-crl_check", "-CAfile", "root.pem", "-untrusted", "ca.pem"),
        *("-CRLfile", "crl.pem", "device.pem"),
        cwd=bench.folder,
        check=False,
    )
    assert b"certificate revoked" in checked.stderr
    assert bench.row_of(certificate)["status"] == "revoked"

    sentence = bench.refused("renew")
    refusal = bench.daemon.explain(request_id_in(sentence))
    assert refusal["code"] == "certificate_revoked"


def test_a_new_issuers_crl_is_published_empty(own_daemon: Daemon, tmp_path: Path) -> None:
    added = own_daemon.ask("device", "add", "first")
    bench = Bench(own_daemon, tmp_path, "first", added["secret"])
    bench.recipe("cacerts")
    bench.recipe("enroll")
    assert len(fetch_crl(bench, bench.verified())) == 0


def test_the_issuer_named_in_the_certificate_is_served_over_plain_http(bench: Bench) -> None:
    bench.recipe("cacerts")
    bench.recipe("enroll")
    certificate = bench.verified()
    access = certificate.extensions.get_extension_for_class(x509.AuthorityInformationAccess).value
    (url,) = [
        description.access_location.value
        for description in access
        if description.access_method == AuthorityInformationAccessOID.CA_ISSUERS
    ]
    fetch(bench, url, "issuer.cer")
    issuer = x509.load_der_x509_certificate((bench.folder / "issuer.cer").read_bytes())
    certificate.verify_directly_issued_by(issuer)


def trust_manufacturer(daemon: Daemon, root: Path, name: str) -> None:
    """Trust it in the default realm, unless a test of this process has done so."""
    if name not in {row["name"] for row in daemon.command("trust", "list", "--realm", "default")}:
        daemon.ask("trust", "add", "--realm", "default", "--for", "idevid", str(root))


def fetch(bench: Bench, url: str, file: str) -> None:
    assert url.startswith("http://")
    clients.run("curl", "--silent", "--show-error", "--fail", "--output", file, url, cwd=bench.folder)


def fetch_crl(bench: Bench, certificate: x509.Certificate) -> x509.CertificateRevocationList:
    """Fetch the CRL at the URL in the certificate, and have openssl verify it."""
    (point,) = certificate.extensions.get_extension_for_class(x509.CRLDistributionPoints).value
    assert point.full_name
    (name,) = point.full_name
    fetch(bench, name.value, "crl.der")
    verified = clients.run(
        *("openssl", "crl", "-inform", "DER", "-in", "crl.der", "-out", "crl.pem", "-CAfile", "ca.pem"),
        cwd=bench.folder,
    )
    assert b"verify OK" in verified.stderr
    return x509.load_der_x509_crl((bench.folder / "crl.der").read_bytes())


def crl_number(crl: x509.CertificateRevocationList) -> int:
    return crl.extensions.get_extension_for_class(x509.CRLNumber).value.crl_number
