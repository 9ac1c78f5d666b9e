"""Keys of every kind over real EST: enrolled where the profile allows them, renewed by their own certificate, and
refused everywhere else.

Ed25519 comes from Debian's openssl and curl; of ML-DSA those know nothing yet, so there the client is cryptography with
the OpenSSL that it brings.
"""

import shutil
import socket
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, mldsa, rsa
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from OpenSSL import SSL, crypto

from tests.end_to_end import clients, wire
from tests.end_to_end.conftest import OFTEN
from tests.helpers import bad_csr
from tests.helpers.core import edit_realm
from tests.helpers.daemon import Daemon, running_daemon

ENROLL, REENROLL = "/.well-known/est/simpleenroll", "/.well-known/est/simplereenroll"
MODERN = ("ed25519", "ml-dsa-44", "ml-dsa-65", "ml-dsa-87")
MAKE: dict[str, Callable[[], bad_csr.PrivateKey]] = {
    "rsa-2048": lambda: rsa.generate_private_key(65537, 2048),
    "p-256": lambda: ec.generate_private_key(ec.SECP256R1()),
    "ed25519": ed25519.Ed25519PrivateKey.generate,
    "ml-dsa-44": mldsa.MLDSA44PrivateKey.generate,
    "ml-dsa-65": mldsa.MLDSA65PrivateKey.generate,
    "ml-dsa-87": mldsa.MLDSA87PrivateKey.generate,
}
PROFILES = "".join(
    f'[profiles.modern-{family}]\nissuer = "{family}"\nkeys = {list(MODERN)!r}\n\n'.replace("'", '"')
    for family in ("ec", "rsa")
)


@pytest.fixture(scope="module")
def modern(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemon]:
    """A daemon whose realm has, under each issuer, a profile for the kinds of keys that others do not allow."""
    with running_daemon(tmp_path_factory.mktemp("modern"), settings=OFTEN) as daemon:
        daemon.inspect(lambda core: edit_realm(core, "default", "[profiles.scep]", f"{PROFILES}[profiles.scep]"))
        yield daemon


@dataclass(slots=True)
class Device:
    """A registered device and the key that it made."""

    daemon: Daemon
    name: str
    secret: str
    key: bad_csr.PrivateKey

    def ask(self, path: str, *, showing: x509.Certificate | None = None, **bent: object) -> wire.Answer:
        """One request over TLS 1.3, with the secret or with a certificate; the server verified by the root alone."""
        csr = bad_csr.make_csr(self.key, bad_csr.name(self.name), **bent)  # type: ignore[arg-type]  # any of its options
        login = None if showing else wire.basic(self.name, self.secret)
        request = wire.enroll_request(wire.body_of(csr), path=path, authorization=login)
        context = SSL.Context(SSL.TLS_CLIENT_METHOD)
        context.load_verify_locations(str(self.daemon.root))
        context.set_verify(SSL.VERIFY_PEER)
        if showing is not None:
            context.use_certificate(showing)
            use_key(context, self.key)
        with socket.create_connection(("127.0.0.1", self.daemon.https_port), timeout=30) as plain:
            plain.settimeout(None)  # pyOpenSSL wants a socket that blocks
            connection = SSL.Connection(context, plain)
            connection.set_tlsext_host_name(b"localhost")
            connection.set_connect_state()
            connection.do_handshake()
            assert connection.get_protocol_version_name() == "TLSv1.3"
            connection.sendall(request)
            return wire.read_answer(connection)  # type: ignore[arg-type]  # it has the recv of a socket

    def verified(self, answer: wire.Answer) -> x509.Certificate:
        """The certificate in the answer: signed down from the root, for this key, and with no usage but its own."""
        assert answer.status == 200, answer.body
        certificate = answer.certificate
        (root,) = x509.load_pem_x509_certificates(self.daemon.root.read_bytes())
        issuers = x509.load_pem_x509_certificates(self.daemon.ca.read_bytes())[1:]
        (issuer,) = [each for each in issuers if each.subject == certificate.issuer]
        certificate.verify_directly_issued_by(issuer)
        issuer.verify_directly_issued_by(root)
        assert certificate.public_key() == self.key.public_key()
        usage = certificate.extensions.get_extension_for_class(x509.KeyUsage).value
        assert usage.digital_signature
        is_rsa = isinstance(self.key, rsa.RSAPrivateKey)
        assert usage == x509.KeyUsage(True, False, is_rsa, False, False, False, False, False, False)
        return certificate


def use_key(context: SSL.Context, key: bad_csr.PrivateKey) -> None:
    """pyOpenSSL converts no ML-DSA keys, but reads their PKCS#8."""
    der = key.private_bytes(Encoding.DER, PrivateFormat.PKCS8, NoEncryption())
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        context.use_privatekey(crypto.load_privatekey(crypto.FILETYPE_ASN1, der))


@pytest.fixture
def device_of(modern: Daemon, new_name: Callable[[], str]) -> Callable[[str, str | None], Device]:
    """Register a device with a profile, and make its key of a kind."""

    def make(kind: str, profile: str | None) -> Device:
        options = [] if profile is None else ["--profile", profile]
        added = modern.ask("device", "add", new_name(), *options)
        return Device(modern, added["username"], added["secret"], MAKE[kind]())

    return make


DeviceOf = Callable[[str, str | None], Device]
DESCRIBED = {"ed25519": "Ed25519", "ml-dsa-44": "ML-DSA-44", "ml-dsa-65": "ML-DSA-65", "ml-dsa-87": "ML-DSA-87"}


@pytest.mark.parametrize("family", ["ec", "rsa"])
@pytest.mark.parametrize("kind", MODERN)
def test_device_with_a_modern_key_enrolls_and_renews_under_an_issuer_of_today(
    device_of: DeviceOf, kind: str, family: str
) -> None:
    device = device_of(kind, f"modern-{family}")
    certificate = device.verified(device.ask(ENROLL))
    again = device.verified(device.ask(REENROLL, showing=certificate))
    assert again.serial_number != certificate.serial_number
    rows = device.daemon.certificates_of(device.name)
    assert [row["key"] for row in rows] == [DESCRIBED[kind]] * 2
    assert {row["issuer"] for row in rows} == {f"default-{family}-1"}


@pytest.mark.parametrize("kind", MODERN)
def test_modern_key_is_refused_where_the_profile_does_not_name_it(device_of: DeviceOf, kind: str) -> None:
    device = device_of(kind, None)
    answer = device.ask(ENROLL)
    assert (answer.status, "A key of this kind is not allowed here." in answer.text) == (400, True)
    told = device.daemon.explain(wire.request_id_in(answer.text))
    assert told["code"] == "key_not_allowed"
    assert told["detail"].startswith(f"{kind}; the profile allows ")
    device.key = MAKE["p-256"]()
    device.verified(device.ask(ENROLL))


def test_key_of_today_is_refused_where_the_profile_does_not_name_it(device_of: DeviceOf) -> None:
    device = device_of("rsa-2048", "modern-rsa")
    answer = device.ask(ENROLL)
    assert device.daemon.explain(wire.request_id_in(answer.text))["code"] == "key_not_allowed"
    device.key = MAKE["ed25519"]()
    device.verified(device.ask(ENROLL))


@pytest.mark.parametrize("kind", MODERN)
def test_modern_key_must_have_signed_its_request(device_of: DeviceOf, kind: str) -> None:
    device = device_of(kind, "modern-ec")
    answer = device.ask(ENROLL, break_signature=True)
    assert device.daemon.explain(wire.request_id_in(answer.text))["code"] == "csr_signature_bad"
    device.verified(device.ask(ENROLL))


@pytest.mark.foreign
def test_openssl_and_curl_enroll_and_renew_with_an_ed25519_key(
    modern: Daemon, tmp_path: Path, new_name: Callable[[], str]
) -> None:
    clients.needs("curl", "openssl")
    added = modern.ask("device", "add", new_name(), "--profile", "modern-ec")
    settings = {
        "EST": f"https://localhost:{modern.https_port}/.well-known/est",
        "NAME": added["username"],
        "SECRET": added["secret"],
    }
    shutil.copy(modern.root, tmp_path / "root.pem")
    clients.run("openssl", "genpkey", "-algorithm", "ED25519", "-out", "new.key", cwd=tmp_path)
    for script in ("cacerts", "enroll", "renew"):
        clients.interop(f"curl-openssl/{script}.sh", cwd=tmp_path, settings=settings)
        if script != "cacerts":
            clients.run(
                *("openssl", "verify", "-x509_strict", "-purpose", "sslclient"),
                *("-CAfile", "root.pem", "-untrusted", "ca.pem", "device.pem"),
                cwd=tmp_path,
            )
    assert [row["key"] for row in modern.certificates_of(added["username"])] == ["Ed25519", "Ed25519"]
