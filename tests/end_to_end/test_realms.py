"""Two device lines on one daemon, each on its own host and under its own root; a client holds one root only.

"A laptop must never authenticate as a pacemaker": what proves who a device is in one realm proves nothing in another.
"""

import functools
import shutil
import ssl
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat

from certs.demo_pki import DemoPki
from tests.end_to_end import clients, scep_wire, wire
from tests.helpers.daemon import CommandRefused, Daemon, eventually, running_daemon

# Every libc resolves this to 127.0.0.1 (inet_aton's hexadecimal form), and TLS takes it for a name: a host for a client
# that can't be told an address. Nothing on this machine has to be changed for it.
STRONGSWAN_HOST = "0x7f000001"
HOSTS = {"default": "localhost", "alpha": "alpha.example", "beta": "beta.example"}


@dataclass(frozen=True, slots=True)
class Credential:
    """A certificate and its key, as files."""

    certificate: Path
    key: Path


@dataclass(frozen=True, slots=True)
class Realms:
    """A daemon with the realms alpha and beta beside default, and the root of each."""

    daemon: Daemon
    roots: dict[str, Path]
    folder: Path

    def ask(self, request: bytes, *, host: str, trusting: str, showing: Credential | None = None) -> wire.Answer:
        """Send `request` to a host as a client that holds one realm's root alone."""
        tls = wire.context(
            self.roots[trusting],
            certificate=showing.certificate if showing else None,
            key=showing.key if showing else None,
        )
        return wire.exchange(self.daemon.https_port, tls, request, host=HOSTS[host])

    def enroll(
        self,
        realm: str,
        device: str,
        *,
        secret: str | None = None,
        showing: Credential | None = None,
        operation: str = "simpleenroll",
        key: ec.EllipticCurvePrivateKey | None = None,
    ) -> wire.Answer:
        """Ask a realm, on its host and by its label, for a certificate."""
        request = wire.enroll_request(
            wire.body_of(wire.csr(key or new_key(), device)),
            path=f"/.well-known/est/{realm}/{operation}",
            authorization=None if secret is None else wire.basic(device, secret),
            host=HOSTS[realm],
        )
        return self.ask(request, host=realm, trusting=realm, showing=showing)

    def add_device(self, realm: str, name: str, *arguments: str) -> str:
        """Register a device, and return its secret."""
        answer = self.daemon.ask("device", "add", name, "--realm", realm, *arguments)
        assert answer["realm"] == realm
        secret: str = answer["secret"]
        return secret

    def enrolled(self, realm: str, name: str) -> Credential:
        """Register and enroll a device, and return its certificate."""
        key = new_key()
        answer = self.enroll(realm, name, secret=self.add_device(realm, name), key=key)
        credential = Credential(self.folder / f"{realm}-{name}.pem", self.folder / f"{realm}-{name}.key")
        credential.certificate.write_bytes(answer.certificate.public_bytes(Encoding.PEM))
        credential.key.write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
        return credential

    def code(self, answer: wire.Answer) -> tuple[int, str]:
        """The status of a refusal, and the code that the operator reads."""
        return answer.status, self.daemon.explain(answer.request_id)["code"]


def new_key() -> ec.EllipticCurvePrivateKey:
    return ec.generate_private_key(ec.SECP256R1())


def get(path: str, host: str) -> bytes:
    return f"GET {path} HTTP/1.1\r\nHost: {HOSTS[host]}\r\n\r\n".encode()


@pytest.fixture(scope="module")
def realms(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Realms]:
    folder = tmp_path_factory.mktemp("realms")
    with running_daemon(folder) as daemon:
        made = Realms(daemon, {"default": daemon.root}, folder)
        for realm, hosts in {"alpha": (HOSTS["alpha"],), "beta": (HOSTS["beta"], STRONGSWAN_HOST)}.items():
            daemon.ask("realm", "add", realm, *(word for host in hosts for word in ("--host", host)))
            made.roots[realm], _ = daemon.write_anchors(realm, folder)
            eventually(functools.partial(served, made, realm), what=f"the running daemon serves {realm}")
        yield made


def served(realms: Realms, realm: str) -> bool | None:
    try:
        answer = realms.ask(get(f"/.well-known/est/{realm}/cacerts", realm), host=realm, trusting=realm)
    except ssl.SSLCertVerificationError:
        return None  # the shared host's certificate still
    return True if answer.status == 200 else None


@pytest.mark.foreign
@pytest.mark.parametrize("realm", ["alpha", "beta"])
def test_curl_enrolls_in_a_realm_holding_only_that_realms_root(
    realms: Realms, realm: str, tmp_path: Path, new_name: Callable[[], str]
) -> None:
    clients.needs("curl", "openssl")
    name = new_name()
    port = realms.daemon.https_port
    (tmp_path / ".curlrc").write_text(f"resolve = {HOSTS[realm]}:{port}:127.0.0.1\n")
    shutil.copy(realms.roots[realm], tmp_path / "root.pem")
    settings = {
        "CURL_HOME": str(tmp_path),
        "EST": f"https://{HOSTS[realm]}:{port}/.well-known/est/{realm}",
        "NAME": name,
        "SECRET": realms.add_device(realm, name),
    }
    for script in ("cacerts", "enroll", "renew", "rekey"):
        clients.interop(f"curl-openssl/{script}.sh", cwd=tmp_path, settings=settings)
    rows = realms.daemon.certificates_of(name)
    assert [(row["realm"], row["device"]) for row in rows] == [(realm, name)] * 3


@pytest.mark.foreign
@pytest.mark.parametrize("labelled", [False, True], ids=["by-host", "by-label"])
def test_strongswan_enrolls_in_a_realm_holding_only_that_realms_root(
    realms: Realms, tmp_path: Path, new_name: Callable[[], str], *, labelled: bool
) -> None:
    clients.needs("pki")
    name = new_name()
    shutil.copy(realms.roots["beta"], tmp_path / "root.pem")
    server = f"https://{STRONGSWAN_HOST}:{realms.daemon.https_port}"
    settings = {"NAME": name, "SECRET": realms.add_device("beta", name)}
    for script, operation in (("estca", "cacerts"), ("enroll", "simpleenroll"), ("renew", "simplereenroll")):
        # 5.9.8 has no --label and puts the path of --url before its own: as a query, its own does no harm.
        url = f"{server}/.well-known/est/beta/{operation}?" if labelled else server
        clients.interop(f"strongswan/{script}.sh", cwd=tmp_path, settings={**settings, "SERVER": url})
    assert [row["realm"] for row in realms.daemon.certificates_of(name)] == ["beta", "beta"]


@pytest.mark.parametrize(("host", "trusting"), [("alpha", "beta"), ("beta", "alpha"), ("default", "alpha")])
def test_a_client_of_one_realm_can_not_verify_the_host_of_another(realms: Realms, host: str, trusting: str) -> None:
    with pytest.raises(ssl.SSLCertVerificationError):
        realms.ask(get(f"/.well-known/est/{host}/cacerts", host), host=host, trusting=trusting)
    assert realms.ask(get(f"/.well-known/est/{host}/cacerts", host), host=host, trusting=host).status == 200


def test_the_roots_of_two_realms_have_nothing_in_common(realms: Realms) -> None:
    roots = [x509.load_pem_x509_certificate(path.read_bytes()) for path in realms.roots.values()]
    assert len({root.subject for root in roots}) == 3
    assert len({root.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo) for root in roots}) == 3


def test_a_secret_of_one_realm_is_worth_nothing_in_another(realms: Realms, new_name: Callable[[], str]) -> None:
    name = new_name()
    secret = realms.add_device("alpha", name)
    realms.add_device("beta", name)  # the same name is a device there too
    answer = realms.enroll("beta", name, secret=secret)
    assert realms.code(answer) == (401, "secret_unknown")
    assert realms.daemon.certificates_of(name) == []
    assert realms.enroll("alpha", name, secret=secret).status == 200  # the twin


def test_a_certificate_of_one_realm_is_worth_nothing_in_another(realms: Realms, new_name: Callable[[], str]) -> None:
    name = new_name()
    credential = realms.enrolled("alpha", name)
    realms.add_device("beta", name)
    for operation in ("simpleenroll", "simplereenroll"):
        answer = realms.enroll("beta", name, showing=credential, operation=operation)
        assert realms.code(answer) == (401, "certificate_unknown")
    assert [row["realm"] for row in realms.daemon.certificates_of(name)] == ["alpha"]
    assert realms.enroll("alpha", name, showing=credential, operation="simplereenroll").status == 200  # the twin


def test_an_idevid_trusted_in_one_realm_is_worth_nothing_in_another(
    realms: Realms, pki: DemoPki, new_name: Callable[[], str]
) -> None:
    name = new_name()
    idevid = pki.acme.make_device(name, f"AC-{name}")
    realms.daemon.ask("trust", "add", "--realm", "alpha", "--for", "idevid", str(pki.acme.root))
    realms.add_device("alpha", name, "--serial-number", idevid.serial_number, "--manufacturer", pki.acme.name)
    realms.add_device("beta", name)
    credential = Credential(idevid.chain, idevid.key)
    assert realms.code(realms.enroll("beta", name, showing=credential)) == (401, "certificate_unknown")
    assert realms.enroll("alpha", name, showing=credential).status == 200  # the twin


@pytest.mark.parametrize("label", ["gamma", "alpha.gamma", "ALPHA", "alpha/", "al%70ha%2f", "cacerts", "..%2falpha"])
def test_an_unknown_label_is_not_found_and_never_falls_back(realms: Realms, label: str) -> None:
    answer = realms.ask(get(f"/.well-known/est/{label}/cacerts", "default"), host="default", trusting="default")
    assert answer.status == 404


@pytest.mark.parametrize("label", ["default", "beta", "alpha"])
def test_a_realms_own_host_serves_its_own_label_only(realms: Realms, label: str) -> None:
    answer = realms.ask(get(f"/.well-known/est/{label}/cacerts", "alpha"), host="alpha", trusting="alpha")
    if label == "alpha":
        assert answer.status == 200
    else:
        assert realms.code(answer) == (404, "realm_not_here")


@pytest.mark.parametrize("label", ["default", "alpha", "beta"])
def test_the_shared_host_serves_every_label(realms: Realms, label: str) -> None:
    path = f"/.well-known/est/{label}/cacerts"
    assert realms.ask(get(path, "default"), host="default", trusting="default").status == 200


# --- under one root, said explicitly ---------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def sibling(realms: Realms) -> str:
    """A realm under the root of alpha, which its clients hold, made while the daemon runs."""
    HOSTS["sibling"] = "sibling.example"
    made = realms.daemon.ask("realm", "add", "sibling", "--root-of", "alpha", "--host", HOSTS["sibling"])
    assert made["root"] == "alpha-root-1"
    realms.roots["sibling"] = realms.roots["alpha"]
    eventually(functools.partial(served, realms, "sibling"), what="the running daemon serves it")
    return "sibling"


@pytest.mark.foreign
def test_a_client_that_holds_the_shared_root_enrolls_in_either_realm(
    realms: Realms, sibling: str, new_name: Callable[[], str], tmp_path: Path
) -> None:
    clients.needs("openssl")
    _, chain = realms.daemon.write_anchors(sibling, tmp_path)
    root, *issuing = x509.load_pem_x509_certificates(chain.read_bytes())
    assert root == x509.load_pem_x509_certificate(realms.roots["alpha"].read_bytes())
    assert [each.issuer for each in issuing] == [root.subject, root.subject]
    name = new_name()
    credential = realms.enrolled(sibling, name)
    said = clients.run(
        "openssl",
        "verify",
        "-CAfile",
        str(realms.roots["alpha"]),
        "-untrusted",
        str(chain),
        str(credential.certificate),
        cwd=tmp_path,
    )
    assert said.stdout.endswith(b": OK\n")
    again = realms.enroll(sibling, name, showing=credential, operation="simplereenroll")
    assert again.status == 200


def test_case_37_a_certificate_under_the_same_root_is_worth_nothing_in_the_other_realm(
    realms: Realms, sibling: str, new_name: Callable[[], str]
) -> None:
    name = new_name()
    held = {realm: realms.enrolled(realm, name) for realm in ("alpha", sibling)}
    for realm, other in (("alpha", sibling), (sibling, "alpha")):
        for operation in ("simpleenroll", "simplereenroll"):
            answer = realms.enroll(other, name, showing=held[realm], operation=operation)
            assert realms.code(answer) == (401, "certificate_unknown")
        assert realms.enroll(realm, name, showing=held[realm], operation="simplereenroll").status == 200, "the twin"


def test_scep_under_a_shared_root_ends_in_it(realms: Realms, sibling: str, new_name: Callable[[], str]) -> None:
    port, path, name = realms.daemon.http_port, f"/scep/{sibling}", new_name()
    ra = scep_wire.ra_of(port, path)
    key = rsa.generate_private_key(65537, 2048)
    secret = realms.add_device(sibling, name)
    reply = scep_wire.post(port, scep_wire.enroll_message(ra, key, name, secret), path)
    issued = scep_wire.issued_in(reply, key)
    chain = realms.daemon.command("ca", "list", "--realm", sibling)
    assert issued.issuer.rfc4514_string() in {row["subject"] for row in chain}
    foreign = scep_wire.post(
        port,
        scep_wire.enroll_message(
            scep_wire.ra_of(port, "/scep/alpha"), key, name, None, signer=(key, issued.public_bytes(Encoding.DER))
        ),
        "/scep/alpha",
    )
    assert realms.daemon.explain(scep_wire.told_in(foreign))["code"] == "certificate_unknown"


def test_a_retired_realm_serves_nobody_until_it_resumes(
    realms: Realms, sibling: str, new_name: Callable[[], str]
) -> None:
    name = new_name()
    credential = realms.enrolled(sibling, name)
    with pytest.raises(CommandRefused) as refused:
        realms.daemon.ask("realm", "retire", "alpha")
    assert refused.value.code == "realm_shares_root"
    assert realms.daemon.ask("realm", "retire", sibling)["state"] == "retired"
    for operation in ("simpleenroll", "simplereenroll"):
        assert realms.enroll(sibling, name, showing=credential, operation=operation).status == 404
    for label in (sibling, "alpha", "default"):
        path = f"/.well-known/est/{label}/cacerts"
        assert realms.ask(get(path, sibling), host=sibling, trusting=sibling).status == 404
    crl = wire.exchange_plainly(
        realms.daemon.http_port, f"GET /pki/{sibling}-ec-1/0.crl HTTP/1.1\r\nHost: localhost\r\n\r\n".encode()
    )
    assert crl.status == 200
    assert realms.daemon.ask("realm", "resume", sibling)["state"] == "active"
    assert realms.enroll(sibling, name, showing=credential, operation="simplereenroll").status == 200
