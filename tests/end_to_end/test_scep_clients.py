"""Stock SCEP clients, as `interop` says to use them, against a real enrolld: strongSwan's pki, scepclient, certmonger.

Each knows a part of the protocol only: scepclient asks in SHA-1 and single DES, certmonger by GET and renews with
PKCSReq, strongSwan by POST without a Content-Type. Every certificate passes `openssl verify` and stands in `cert list`.
"""

import json
import shutil
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat, load_pem_private_key

from tests.end_to_end import clients
from tests.helpers.daemon import Daemon, eventually

pytestmark = pytest.mark.foreign

KEPT = ("device.key", "device.pem")
PASTED = [pytest.param(False, id="script"), pytest.param(True, id="pasted")]


@dataclass(frozen=True, slots=True)
class Client:
    """A client: what it needs, its recipes, the listener that they go to, and whether it renews with a new key."""

    needs: tuple[str, ...]
    enroll: str
    renew: str
    prepare: str | None = None
    listener: str = "http"
    rekeys: bool = True


STRONGSWAN = Client(
    needs=("pki", "pki over HTTP", "openssl"),
    prepare="strongswan/scepca.sh",
    enroll="strongswan/scep-enroll.sh",
    renew="strongswan/scep-renew.sh",
)
SCEPCLIENT = Client(
    needs=("scepclient", "openssl"),
    enroll="scepclient/enroll.sh",
    renew="scepclient/renew.sh",
    listener="https",
    rekeys=False,
)
CERTMONGER = Client(
    needs=("certmonger", "openssl"),
    prepare="certmonger/add-ca.sh",
    enroll="certmonger/enroll.sh",
    renew="certmonger/renew.sh",
)
CLIENTS = {"strongswan": STRONGSWAN, "scepclient": SCEPCLIENT, "certmonger": CERTMONGER}
every_client = pytest.mark.parametrize("client", [pytest.param(client, id=name) for name, client in CLIENTS.items()])


class Bench:
    """A folder in which a client's recipes run, for one new device."""

    def __init__(self, daemon: Daemon, folder: Path, name: str, settings: dict[str, str]) -> None:
        self.daemon = daemon
        self.folder = folder
        self.name = name
        self.settings = {**settings, "NAME": name}
        shutil.copy(daemon.root, folder / "root.pem")
        shutil.copy(daemon.ca, folder / "ca.pem")

    def run(
        self, script: str, *, check: bool = True, pasted: bool = False, **settings: str
    ) -> subprocess.CompletedProcess[bytes]:
        return clients.interop(
            script, cwd=self.folder, settings={**self.settings, **settings}, check=check, pasted=pasted
        )

    def refused(self, script: str, *, pasted: bool = False, **settings: str) -> None:
        assert self.run(script, check=False, pasted=pasted, **settings).returncode != 0

    def kept(self) -> dict[str, bytes]:
        return {name: (self.folder / name).read_bytes() for name in KEPT}

    def verified(self, *, protocol: str = "scep", realm: str = "default") -> x509.Certificate:
        """Read device.pem: verified by the root, of the device's name alone and of device.key, and in `cert list`."""
        clients.run(
            *("openssl", "verify", "-x509_strict", "-purpose", "sslclient", "-CAfile", "root.pem"),
            *("-untrusted", "ca.pem", "device.pem"),
            cwd=self.folder,
        )
        certificate = x509.load_pem_x509_certificate((self.folder / "device.pem").read_bytes())
        assert certificate.subject.rfc4514_string() == f"CN={self.name}"
        key = load_pem_private_key((self.folder / "device.key").read_bytes(), None)
        assert spki(certificate) == key.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
        rows = {row["serial"]: row for row in self.daemon.certificates_of(self.name)}
        row = rows[format(certificate.serial_number, "x")]
        assert (row["status"], row["realm"], row["protocol"]) == ("valid", realm, protocol)
        return certificate

    def why(self) -> tuple[str, str]:
        """The code and sentence of the device's last attempt."""
        newest = self.daemon.ask("device", "why", self.name)["timeline"][0]
        assert newest["protocol"] == "scep"
        return newest["code"], newest["message"]


def spki(certificate: x509.Certificate) -> bytes:
    return certificate.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)


@pytest.fixture
def certmonger() -> Iterator[dict[str, str]]:
    clients.needs("certmonger")
    with clients.running_certmonger() as settings:
        yield settings


NewBench = Callable[[Client, Daemon], Bench]


@pytest.fixture
def new_bench(request: pytest.FixtureRequest, tmp_path: Path, new_name: Callable[[], str]) -> NewBench:
    """Make a bench for a client: a new device with a secret, and what the client needs to know of the CA."""

    def make(client: Client, daemon: Daemon) -> Bench:
        clients.needs(*client.needs)
        added = daemon.ask("device", "add", new_name())
        port = daemon.https_port if client.listener == "https" else daemon.http_port
        settings = {"SCEP": f"{client.listener}://localhost:{port}/scep", "SECRET": added["secret"]}
        if client is CERTMONGER:
            settings |= request.getfixturevalue("certmonger")
        bench = Bench(daemon, tmp_path, added["device"], settings)
        if client.prepare:
            bench.run(client.prepare)
        return bench

    return make


# --- every client ----------------------------------------------------------------------------------------------------


@every_client
def test_a_device_enrolls_by_its_secret_and_renews_by_its_certificate(
    client: Client, daemon: Daemon, new_bench: NewBench
) -> None:
    bench = new_bench(client, daemon)
    bench.run(client.enroll)
    first = bench.verified()
    assert (bench.folder / "device.key").stat().st_mode & 0o077 == 0
    bench.run(client.renew)
    second = bench.verified()
    assert second.serial_number != first.serial_number
    assert (spki(second) != spki(first)) is client.rekeys
    bench.run(client.renew)  # and the new one is as good as the first
    bench.verified()


@every_client
def test_the_secret_stays_in_no_file_of_the_folder(client: Client, daemon: Daemon, new_bench: NewBench) -> None:
    bench = new_bench(client, daemon)
    bench.run(client.enroll)
    bench.verified()
    secret = bench.settings["SECRET"].encode()
    assert [path.name for path in bench.folder.iterdir() if secret in path.read_bytes()] == []


@every_client
def test_a_wrong_secret_gets_no_certificate(client: Client, daemon: Daemon, new_bench: NewBench) -> None:
    bench = new_bench(client, daemon)
    selector, _, secret = bench.settings["SECRET"].partition(".")
    logged = len(refusals(daemon))
    bench.refused(client.enroll, SECRET=f"{selector}.{secret[::-1]}")
    refusal = daemon.explain(refused_since(daemon, logged))
    assert (refusal["code"], refusal["message"]) == ("secret_wrong", "The credentials are not accepted.")
    assert (refusal["protocol"], refusal["detail"]) == ("scep", f"device {bench.name}")
    assert daemon.certificates_of(bench.name) == []
    assert not (bench.folder / "device.pem").exists()
    bench.run(client.enroll)  # the twin
    bench.verified()


@every_client
@pytest.mark.parametrize("pasted", PASTED)
@pytest.mark.parametrize("what", ["renew", "enroll"])
def test_a_refused_recipe_leaves_the_old_key_and_certificate_as_they_were(
    client: Client, daemon: Daemon, new_bench: NewBench, what: str, pasted: bool
) -> None:
    bench = new_bench(client, daemon)
    bench.run(client.enroll)
    before = bench.kept()
    bench.settings["SECRET"] = daemon.ask("device", "secret", bench.name)["secret"]
    daemon.ask("device", "suspend", bench.name)
    recipe = client.enroll if what == "enroll" else client.renew
    bench.refused(recipe, pasted=pasted)
    assert bench.why() == ("device_suspended", "The device is suspended.")
    assert bench.kept() == before

    daemon.ask("device", "resume", bench.name)  # the twin
    if what == "enroll":
        bench.run(client.renew)  # the old certificate is as good as before
    bench.run(recipe, pasted=pasted)
    bench.verified()
    assert bench.kept()["device.pem"] != before["device.pem"]
    assert (bench.kept()["device.key"] != before["device.key"]) is (client.rekeys or what == "enroll")


@every_client
def test_a_revoked_certificate_renews_no_more_and_a_new_secret_lets_the_device_in(
    client: Client, daemon: Daemon, new_bench: NewBench
) -> None:
    bench = new_bench(client, daemon)
    bench.run(client.enroll)
    bench.run(client.renew)  # the twin
    serial = format(bench.verified().serial_number, "x")
    daemon.ask("cert", "revoke", serial, "--reason", "superseded")
    bench.refused(client.renew)
    assert bench.why()[0] == "certificate_revoked"
    bench.settings["SECRET"] = daemon.ask("device", "secret", bench.name)["secret"]
    bench.run(client.enroll)
    bench.verified()


@every_client
def test_a_server_of_another_root_is_not_believed(
    client: Client, daemon: Daemon, new_bench: NewBench, tmp_path: Path
) -> None:
    bench = new_bench(client, daemon)
    logged = len(refusals(daemon))
    shutil.copy(bench.folder / "root.pem", tmp_path / "good.pem")
    ra = tmp_path / "ra.pem"
    ra.unlink(missing_ok=True)
    another_certificate(tmp_path, "Another Root", "root.pem")
    bench.refused(client.prepare or client.enroll)
    assert not ra.exists()
    assert not (tmp_path / "device.pem").exists()
    assert len(refusals(daemon)) == logged  # nothing was asked of which a secret could be read
    shutil.copy(tmp_path / "good.pem", tmp_path / "root.pem")  # the twin
    if client.prepare:
        bench.run(client.prepare)
    bench.run(client.enroll)
    bench.verified()


# --- one client ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "client", [pytest.param(STRONGSWAN, id="strongswan"), pytest.param(CERTMONGER, id="certmonger")]
)
def test_another_devices_certificate_is_not_taken_for_the_ra(
    client: Client, daemon: Daemon, new_bench: NewBench
) -> None:
    """It has the same root, and keyEncipherment; over plain HTTP anybody who holds one could show it."""
    bench = new_bench(client, daemon)
    bench.run(client.enroll)
    before = (bench.folder / "ra.pem").read_bytes()
    (bench.folder / "shown.pem").write_bytes(
        (bench.folder / "device.pem").read_bytes() + (bench.folder / "ca.pem").read_bytes()
    )
    assert client.prepare
    recipe = (clients.INTEROP / client.prepare).read_text().partition("# --- recipe\n")[2]
    stand_in = (
        "pki() { cp device.pem fetched-ra.pem; cp scep-ca.pem fetched-1.pem; }\n"
        if client is STRONGSWAN
        else "scep_submit() { cat shown.pem; }\n"
    )
    shown = recipe.replace(clients.SCEP_SUBMIT, "scep_submit")
    settings = "".join(f"export {name}='{value}'\n" for name, value in bench.settings.items())
    done = clients.run("sh", "-c", settings + stand_in + shown, cwd=bench.folder, check=False)
    assert done.returncode != 0
    assert b"unsuitable certificate purpose" in done.stderr
    assert (bench.folder / "ra.pem").read_bytes() == before


def test_scepca_writes_the_ra_and_the_issuing_ca(daemon: Daemon, new_bench: NewBench) -> None:
    bench = new_bench(STRONGSWAN, daemon)
    (issuing,) = x509.load_pem_x509_certificates((bench.folder / "scep-ca.pem").read_bytes())
    assert issuing in x509.load_pem_x509_certificates(daemon.ca.read_bytes())
    (ra,) = x509.load_pem_x509_certificates((bench.folder / "ra.pem").read_bytes())
    ra.verify_directly_issued_by(issuing)


def test_a_certificate_of_another_ca_replaces_nothing(daemon: Daemon, new_bench: NewBench) -> None:
    bench = new_bench(STRONGSWAN, daemon)
    bench.run(STRONGSWAN.enroll)
    before = bench.kept()
    another_certificate(bench.folder, bench.name, "another.pem")
    recipe = (clients.INTEROP / STRONGSWAN.renew).read_text().partition("# --- recipe\n")[2]
    # A pki that gets whatever certificate lies there, in place of what the server would have issued.
    stand_in = 'pki() { if [ "$1" = --scep ]; then cat another.pem; else command pki "$@"; fi; }\n'
    settings = [f"{name}='{value}'\n" for name, value in bench.settings.items()]
    done = clients.run("sh", "-c", "".join([*settings, stand_in, recipe]), cwd=bench.folder, check=False)
    assert done.returncode != 0
    assert b"untrusted" in done.stdout + done.stderr
    assert bench.kept() == before


@pytest.mark.parametrize(
    "client", [pytest.param(STRONGSWAN, id="strongswan"), pytest.param(SCEPCLIENT, id="scepclient")]
)
@pytest.mark.parametrize("what", ["renew", "enroll"])
def test_when_nobody_answers_nothing_is_replaced(
    client: Client, daemon: Daemon, new_bench: NewBench, what: str
) -> None:
    bench = new_bench(client, daemon)
    bench.run(client.enroll)
    before = bench.kept()
    recipe = client.enroll if what == "enroll" else client.renew
    bench.refused(recipe, pasted=True, SCEP=f"{client.listener}://localhost:1/scep")
    assert bench.kept() == before


def test_scepclients_single_des_is_read_only_where_the_realm_allows_it(
    own_daemon: Daemon, new_bench: NewBench, tmp_path: Path
) -> None:
    bench = new_bench(SCEPCLIENT, own_daemon)
    document = own_daemon.text("realm", "export", "default")
    assert "read_des = true" in document
    strict = tmp_path / "default.toml"
    strict.write_text(document.replace("read_des = true", "read_des = false"))
    own_daemon.ask("realm", "apply", str(strict))
    logged = len(refusals(own_daemon))
    eventually(lambda: rejected_by(bench, SCEPCLIENT), what="the new version of the realm is in force")
    refusal = own_daemon.explain(refused_since(own_daemon, logged))
    assert refusal["code"] == "scep_cipher_unsupported"
    strict.write_text(document)
    own_daemon.ask("realm", "apply", str(strict))  # the twin
    bench.settings["SECRET"] = own_daemon.ask("device", "secret", bench.name)["secret"]
    eventually(lambda: not rejected_by(bench, SCEPCLIENT) or None, what="the realm is as it was")
    bench.verified()


@pytest.mark.parametrize(
    "client", [pytest.param(STRONGSWAN, id="strongswan"), pytest.param(CERTMONGER, id="certmonger")]
)
def test_a_label_reaches_its_realm(client: Client, own_daemon: Daemon, new_bench: NewBench, tmp_path: Path) -> None:
    bench = new_bench(client, own_daemon)
    own_daemon.ask("realm", "add", "cameras", "--host", "cameras.example.com")
    added = own_daemon.ask("device", "add", "cam-1", "--realm", "cameras")
    root, chain = own_daemon.write_anchors("cameras", tmp_path)
    at_default = bench.settings["SCEP"]
    bench.name = "cam-1"
    bench.settings |= {"NAME": "cam-1", "SECRET": added["secret"]}
    shutil.copy(root, tmp_path / "root.pem")
    shutil.copy(chain, tmp_path / "ca.pem")
    assert client.prepare
    for twin in (at_default, f"{at_default}/default"):
        bench.refused(client.prepare, SCEP=twin)  # that of another realm, whose root is another
    bench.settings["SCEP"] = f"{at_default}/cameras"
    bench.run(client.prepare)
    bench.run(client.enroll)
    bench.verified(realm="cameras")
    bench.settings["SCEP"] += "/pkiclient.exe"
    bench.run(client.renew)
    bench.verified(realm="cameras")


# --- SCEP and EST ----------------------------------------------------------------------------------------------------


def test_what_was_enrolled_by_scep_renews_by_est_and_goes_on_by_scep(daemon: Daemon, new_bench: NewBench) -> None:
    clients.needs("curl")
    bench = new_bench(STRONGSWAN, daemon)
    bench.settings["EST"] = f"https://localhost:{daemon.https_port}/.well-known/est"
    bench.run(STRONGSWAN.enroll)
    first = bench.verified()
    bench.run("curl-openssl/renew.sh")
    second = bench.verified(protocol="est")
    assert spki(second) == spki(first)
    bench.run(STRONGSWAN.renew)  # the issuer of what it is shown is now the one of the EST profile
    third = bench.verified()
    assert spki(third) != spki(second)
    bench.run("curl-openssl/rekey.sh")  # to a P-256 key, with which SCEP has nothing to do
    fourth = bench.verified(protocol="est")
    assert not isinstance(fourth.public_key(), rsa.RSAPublicKey)
    before = bench.kept()
    bench.refused(STRONGSWAN.renew)
    assert bench.kept() == before


def test_what_was_enrolled_by_est_with_an_rsa_key_renews_by_scep(daemon: Daemon, new_bench: NewBench) -> None:
    clients.needs("curl")
    bench = new_bench(STRONGSWAN, daemon)
    bench.settings["EST"] = f"https://localhost:{daemon.https_port}/.well-known/est"
    clients.run("openssl", "genpkey", "-algorithm", "RSA", "-out", "new.key", cwd=bench.folder)
    bench.run("curl-openssl/enroll.sh")
    first = bench.verified(protocol="est")
    bench.run(STRONGSWAN.renew)
    second = bench.verified()
    assert spki(second) != spki(first)
    bench.run("curl-openssl/renew.sh")
    bench.verified(protocol="est")


# --- helpers ---------------------------------------------------------------------------------------------------------


def refusals(daemon: Daemon) -> list[str]:
    """The request ids of the refusals of PKIOperation that stand in the log."""
    found = []
    for line in daemon.output.read_text().splitlines():
        if line.startswith("{") and '"event.code"' in line:
            entry = json.loads(line)
            if entry.get("url.path", "").startswith("/scep"):
                found.append(entry["enrolld.request_id"])
    return found


def refused_since(daemon: Daemon, count: int) -> str:
    """The request id of the one refusal that came after `count` of them, though the client may have asked again."""
    return eventually(lambda: next(iter(refusals(daemon)[count:]), None), what="the refusal is in the log")


def rejected_by(bench: Bench, client: Client) -> bool | None:
    """True when the client is refused; None when it gets a certificate."""
    return True if bench.run(client.enroll, check=False).returncode else None


def another_certificate(folder: Path, common_name: str, file: str) -> None:
    clients.run(
        *("openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes"),
        *("-subj", f"/CN={common_name}", "-keyout", "another.key", "-out", file),
        cwd=folder,
    )
