"""What AMWA BCP-003-03 (v1.0) wants of an EST server, asked of the example realm as it stands in interop/profiles.

Quoted is what the server must do; the requests are those of a node as the same document describes it.
"""

import functools
import ssl
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from certs.demo_pki import DemoPki, IDevId
from tests.end_to_end import wire
from tests.helpers.daemon import Daemon, eventually, running_daemon

DOCUMENT = Path(__file__).parents[2] / "interop" / "profiles" / "nmos-bcp-003-03.toml"
HOST = "est.nmos.example.com"
NodeKey = ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey


def new_key(kind: str) -> NodeKey:
    return rsa.generate_private_key(65537, 2048) if kind == "rsa" else ec.generate_private_key(ec.SECP256R1())


@dataclass(frozen=True)
class Network:
    """A daemon with the example's realm, the realm's root, and a node that its maker has given an IDevID."""

    daemon: Daemon
    root: Path
    folder: Path

    def ask(self, request: bytes, certificate: Path | None = None, key: Path | None = None) -> wire.Answer:
        tls = wire.context(self.root, certificate=certificate, key=key)
        return wire.exchange(self.daemon.https_port, tls, request, host=HOST)

    def enroll(
        self, name: str, key: NodeKey, shown: tuple[Path, Path] | None, *, renewing: x509.Certificate | None = None
    ) -> wire.Answer:
        # "The CSR MUST contain a Common Name and Subject Alternative Names that are resolvable via DNS" and "SHOULD
        # populate the serialNumber attribute".
        subject = [x509.NameAttribute(NameOID.COMMON_NAME, name), x509.NameAttribute(NameOID.SERIAL_NUMBER, "GX-9")]
        # "...MUST generate a new key pair and CSR matching the TLS certificate it is being used to replace."
        asked = x509.Name(subject) if renewing is None else renewing.subject
        builder = x509.CertificateSigningRequestBuilder().subject_name(asked)
        builder = builder.add_extension(x509.SubjectAlternativeName([x509.DNSName(name)]), critical=False)
        csr = builder.sign(key, hashes.SHA256()).public_bytes(Encoding.DER)
        # "If the 'api_selector' key is not present in the TXT record, the EST Client MUST NOT append anything to the
        # well-known EST path."
        operation = "simpleenroll" if renewing is None else "simplereenroll"
        request = wire.enroll_request(wire.body_of(csr), path=f"/.well-known/est/{operation}", host=HOST)
        return self.ask(request, *(shown or (None, None)))

    def keep(self, certificate: x509.Certificate, key: NodeKey) -> tuple[Path, Path]:
        name = self.folder / f"{certificate.serial_number:x}"
        name.with_suffix(".pem").write_bytes(certificate.public_bytes(Encoding.PEM))
        name.with_suffix(".key").write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
        return name.with_suffix(".pem"), name.with_suffix(".key")


@pytest.fixture(scope="module")
def network(tmp_path_factory: pytest.TempPathFactory, pki: DemoPki) -> Iterator[Network]:
    folder = tmp_path_factory.mktemp("nmos")
    with running_daemon(folder) as daemon:
        daemon.ask("realm", "add", "nmos")
        daemon.ask("realm", "apply", str(DOCUMENT))
        # "The EST Server MUST provide a method to load multiple trusted Root CAs"
        for maker in (pki.globex, pki.acme):
            daemon.ask("trust", "add", "--realm", "nmos", "--for", "idevid", str(maker.root))
        root, _ = daemon.write_anchors("nmos", folder)
        made = Network(daemon, root, folder)
        get = f"GET /.well-known/est/cacerts HTTP/1.1\r\nHost: {HOST}\r\n\r\n".encode()

        def served() -> bool | None:
            try:
                return True if made.ask(get).status == 200 else None
            except ssl.SSLCertVerificationError:
                return None

        eventually(functools.partial(served), what="the realm's host is served")
        yield made


def node_of(network: Network, pki: DemoPki, name: str) -> IDevId:
    made = pki.globex.make_device(name, f"GX-{name}")
    words = ("--serial-number", made.serial_number, "--manufacturer", pki.globex.name)
    network.daemon.ask("device", "add", name, "--realm", "nmos", *words)
    return made


def test_a_node_gets_a_certificate_for_each_kind_of_key_and_each_renews_by_itself(
    network: Network, pki: DemoPki, new_name: Callable[[], str]
) -> None:
    name = f"{new_name()}.nmos.example.com"
    node = node_of(network, pki, name)
    held: dict[str, tuple[Path, Path]] = {}
    for kind in ("ec", "rsa"):
        key = new_key(kind)
        answer = network.enroll(name, key, (node.chain, node.key))
        assert answer.status == 200
        certificate = answer.certificate
        # "...MUST return a TLS Certificate with the Extended Key Usage set for both TLS Server Authentication and TLS
        # Client Authentication"
        usages = certificate.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
        assert set(usages) == {ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH}
        # BCP-003-01: "The Subject Alternate Name field SHOULD contain the Common Name (CN)"
        names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        assert names.get_values_for_type(x509.DNSName) == [name]
        assert certificate.subject.get_attributes_for_oid(NameOID.COMMON_NAME)[0].value == name
        serials = certificate.subject.get_attributes_for_oid(NameOID.SERIAL_NUMBER)
        assert [each.value for each in serials] == [node.serial_number], "what is proven, not what the CSR says"
        held[kind] = network.keep(certificate, key)
    for kind, shown in held.items():
        renewing = x509.load_pem_x509_certificate(shown[0].read_bytes())
        assert network.enroll(name, new_key(kind), shown, renewing=renewing).status == 200
    rows = network.daemon.certificates_of(name)
    assert sorted(row["key"] for row in rows) == ["EC P-256", "EC P-256", "RSA 2048", "RSA 2048"]
    assert {row["status"] for row in rows} == {"valid"}


def test_no_password_is_asked_for_and_who_shows_nothing_waits_for_an_operator(
    network: Network, new_name: Callable[[], str]
) -> None:
    name, key = f"{new_name()}.nmos.example.com", new_key("ec")
    answer = network.enroll(name, key, None)
    # "during manual authentication the EST Server MUST respond with HTTP 202 and the response MUST include a
    # Retry-After header"
    assert answer.status == 202
    assert int(answer.headers["retry-after"]) > 0
    # "The EST Server MUST NOT request HTTP-based client authentication"
    assert "www-authenticate" not in answer.headers
    (row,) = [row for row in network.daemon.command("request", "list", "--realm", "nmos") if row["device"] == name]
    network.daemon.ask("request", "approve", row["id"])
    assert network.enroll(name, key, None).status == 200


def test_a_manufacturer_s_certificate_that_is_not_trusted_gets_nothing_and_no_question_for_a_password(
    network: Network, pki: DemoPki, new_name: Callable[[], str]
) -> None:
    name = f"{new_name()}.nmos.example.com"
    foreign = pki.lookalike.make_device(name, f"GX-{name}")
    answer = network.enroll(name, new_key("ec"), (foreign.chain, foreign.key))
    assert (answer.status, "www-authenticate" in answer.headers) == (403, False)
    assert network.daemon.explain(answer.request_id)["code"] == "chain_invalid"
