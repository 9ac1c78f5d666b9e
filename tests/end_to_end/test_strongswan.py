"""strongSwan's pki 5.9.8 (Debian 12), as `interop/strongswan` says to use it, against a real enrolld.

It speaks TLS 1.2 with SNI, sends no User-Agent, and reads neither wrapped base64 nor a head over 1 KiB.
"""

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from tests.end_to_end import clients
from tests.helpers.daemon import Daemon

pytestmark = pytest.mark.foreign


@pytest.fixture(autouse=True)
def _clients() -> None:
    clients.needs("pki", "openssl")


class Bench:
    """A folder in which recipes run, for one new device."""

    def __init__(self, daemon: Daemon, folder: Path, name: str) -> None:
        added = daemon.ask("device", "add", name)
        self.daemon = daemon
        self.folder = folder
        self.name = name
        self.settings = {
            "SERVER": f"https://localhost:{daemon.https_port}",
            "NAME": added["username"],
            "SECRET": added["secret"],
        }
        shutil.copy(daemon.root, folder / "root.pem")

    def recipe(self, script: str, **settings: str) -> None:
        clients.interop(f"strongswan/{script}.sh", cwd=self.folder, settings={**self.settings, **settings})

    def refused(self, script: str, **settings: str) -> str:
        done = clients.interop(
            f"strongswan/{script}.sh", cwd=self.folder, settings={**self.settings, **settings}, check=False
        )
        assert done.returncode != 0
        return done.stderr.decode()

    def verified(self) -> x509.Certificate:
        """Read device.pem, after openssl has verified it against the root, and cert list has shown it."""
        clients.run(
            *("openssl", "verify", "-x509_strict", "-purpose", "sslclient", "-CAfile", "root.pem"),
            *("-untrusted", self.daemon.ca, "device.pem"),
            cwd=self.folder,
        )
        certificate = x509.load_pem_x509_certificate((self.folder / "device.pem").read_bytes())
        rows = {row["serial"]: row for row in self.daemon.certificates_of(self.name)}
        row = rows[format(certificate.serial_number, "x")]
        assert (row["status"], row["realm"], row["protocol"]) == ("valid", "default", "est")
        return certificate


@pytest.fixture
def bench(daemon: Daemon, tmp_path: Path, new_name: Callable[[], str]) -> Bench:
    return Bench(daemon, tmp_path, new_name())


def test_estca_writes_the_root_and_every_issuing_ca(bench: Bench) -> None:
    bench.recipe("estca")
    fetched = {x509.load_pem_x509_certificate(file.read_bytes()) for file in bench.folder.glob("est*.pem")}
    assert fetched == set(x509.load_pem_x509_certificates(bench.daemon.ca.read_bytes()))


def test_estca_is_refused_by_the_client_when_the_server_is_of_another_root(bench: Bench, tmp_path: Path) -> None:
    clients.run(
        *("openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes"),
        *("-subj", "/CN=Another Root", "-keyout", "another.key", "-out", "root.pem"),
        cwd=tmp_path,
    )
    assert "TLS" in bench.refused("estca")


def test_a_device_enrolls_by_its_secret_and_renews_by_its_certificate(bench: Bench) -> None:
    bench.recipe("estca")
    bench.recipe("enroll")
    first = bench.verified()
    assert first.subject.rfc4514_string() == f"CN={bench.name}"
    bench.recipe("renew")
    second = bench.verified()
    assert second.subject == first.subject
    assert spki(second) != spki(first)


def test_a_wrong_secret_gets_no_certificate(bench: Bench) -> None:
    bench.recipe("estca")
    selector, _, secret = bench.settings["SECRET"].partition(".")
    wrong = f"{selector}.{secret[::-1]}"
    assert "HTTP 401" in bench.refused("enroll", SECRET=wrong)
    assert bench.daemon.certificates_of(bench.name) == []
    bench.recipe("enroll")  # the twin
    bench.verified()


def test_a_revoked_certificate_renews_no_more(bench: Bench) -> None:
    bench.recipe("estca")
    bench.recipe("enroll")
    bench.recipe("renew")  # the twin
    serial = format(bench.verified().serial_number, "x")
    bench.daemon.ask("cert", "revoke", serial, "--reason", "superseded")
    assert "HTTP 40" in bench.refused("renew")


@pytest.mark.parametrize("pasted", [pytest.param(False, id="script"), pytest.param(True, id="pasted")])
@pytest.mark.parametrize("script", ["renew", "enroll"])
def test_a_refused_recipe_leaves_the_old_key_and_certificate_as_they_were(
    bench: Bench, script: str, pasted: bool
) -> None:
    bench.recipe("estca")
    bench.recipe("enroll")
    before = {name: (bench.folder / name).read_bytes() for name in ("device.key", "device.pem")}
    bench.settings["SECRET"] = bench.daemon.ask("device", "secret", bench.name)["secret"]
    bench.daemon.ask("device", "suspend", bench.name)
    done = clients.interop(
        f"strongswan/{script}.sh", cwd=bench.folder, settings=bench.settings, check=False, pasted=pasted
    )
    assert done.returncode != 0
    assert b"HTTP 403" in done.stderr
    why = bench.daemon.ask("device", "why", bench.name)["timeline"][0]
    assert (why["code"], why["message"]) == ("device_suspended", "The device is suspended.")
    assert {name: (bench.folder / name).read_bytes() for name in before} == before
    assert not (bench.folder / "login").exists()  # the secret lies nowhere

    bench.daemon.ask("device", "resume", bench.name)  # the twin
    clients.interop(f"strongswan/{script}.sh", cwd=bench.folder, settings=bench.settings, pasted=pasted)
    bench.verified()
    for name, content in before.items():
        assert (bench.folder / name).read_bytes() != content
    assert (bench.folder / "device.key").stat().st_mode & 0o077 == 0
    assert not (bench.folder / "login").exists()


def test_a_certificate_of_another_ca_replaces_nothing(bench: Bench) -> None:
    bench.recipe("estca")
    bench.recipe("enroll")
    before = {name: (bench.folder / name).read_bytes() for name in ("device.key", "device.pem")}
    # A pki that gets whatever certificate lies there, in place of what the server would have issued.
    clients.run(
        *("openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes"),
        *("-subj", f"/CN={bench.name}", "-keyout", "another.key", "-out", "another.pem"),
        cwd=bench.folder,
    )
    recipe = (clients.INTEROP / "strongswan" / "renew.sh").read_text().partition("# --- recipe\n")[2]
    stand_in = 'pki() { if [ "$1" = --est ]; then cat another.pem; else command pki "$@"; fi; }\n'
    settings = [f"{name}='{value}'\n" for name, value in bench.settings.items()]
    done = clients.run("sh", "-c", "".join([*settings, stand_in, recipe]), cwd=bench.folder, check=False)
    assert done.returncode != 0
    assert b"untrusted" in done.stdout + done.stderr
    assert {name: (bench.folder / name).read_bytes() for name in before} == before


def test_a_label_reaches_its_realm_though_this_client_has_no_option_for_it(bench: Bench) -> None:
    # 5.9.8 writes the path of --url before /.well-known; as a query, what it adds does no harm.
    bench.settings["SERVER"] += "/.well-known/est/default/cacerts?"
    bench.recipe("estca")
    assert (bench.folder / "est-1.pem").exists()


def spki(certificate: x509.Certificate) -> bytes:
    return certificate.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
