"""Realms whose CA keys are not the usual ones, as the command line makes them, over TLS verified by their roots."""

import functools
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from OpenSSL import SSL

from ca_core.public_key import PublicKey
from tests.end_to_end import wire
from tests.helpers.daemon import CommandRefused, Daemon, eventually, run_enrolld, running_daemon

KINDS = {
    "lattice": ("root=ml-dsa-65", "ec=ml-dsa-44"),
    "edwards": ("root=ed25519", "ec=ed25519"),
    "large": ("ec=p-521",),
}


@pytest.fixture(scope="module")
def daemon(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemon]:
    with running_daemon(tmp_path_factory.mktemp("kinds")) as running:
        for realm, keys in KINDS.items():
            options = [word for key in keys for word in ("--kind", key)]
            running.ask("realm", "add", realm, "--host", f"{realm}.example", *options)
        yield running


def exchange(daemon: Daemon, root: Path, host: str, request: bytes) -> wire.Answer:
    """One request by a client that has OpenSSL 3.5 or later, which the `cryptography` package brings."""
    context = SSL.Context(SSL.TLS_CLIENT_METHOD)
    context.load_verify_locations(str(root))
    context.set_verify(SSL.VERIFY_PEER | SSL.VERIFY_FAIL_IF_NO_PEER_CERT)
    with socket.create_connection(("127.0.0.1", daemon.https_port), timeout=30) as plain:
        plain.settimeout(None)  # pyOpenSSL wants a socket that blocks
        connection = SSL.Connection(context, plain)
        connection.set_tlsext_host_name(host.encode())
        connection.set_connect_state()
        connection.do_handshake()
        connection.sendall(request)
        return wire.read_answer(connection)  # type: ignore[arg-type]  # it has the recv of a socket


@pytest.mark.parametrize("realm", KINDS)
def test_a_device_that_knows_only_the_root_enrolls_and_verifies_server_certificate_and_crl(
    daemon: Daemon, tmp_path: Path, realm: str
) -> None:
    root, chain = daemon.write_anchors(realm, tmp_path)
    host = f"{realm}.example"
    secret = daemon.ask("device", "add", "sensor", "--realm", realm)["secret"]
    key = ec.generate_private_key(ec.SECP256R1())
    request = wire.enroll_request(
        wire.body_of(wire.csr(key, "sensor")),
        path=f"/.well-known/est/{realm}/simpleenroll",
        authorization=wire.basic("sensor", secret),
        host=host,
    )
    answer = eventually(functools.partial(tried, daemon, root, host, request), what=f"{host} is served")
    top, issuer, _ = x509.load_pem_x509_certificates(chain.read_bytes())
    answer.certificate.verify_directly_issued_by(issuer)
    issuer.verify_directly_issued_by(top)
    with socket.create_connection(("127.0.0.1", daemon.http_port), timeout=30) as plain:
        plain.sendall(f"GET /pki/{realm}-ec-1/0.crl HTTP/1.1\r\nHost: {host}\r\n\r\n".encode())
        crl = x509.load_der_x509_crl(wire.read_answer(plain).body)
    public_key = issuer.public_key()
    assert isinstance(public_key, PublicKey)
    assert crl.is_signature_valid(public_key)


def tried(daemon: Daemon, root: Path, host: str, request: bytes) -> wire.Answer | None:
    try:
        return exchange(daemon, root, host, request)
    except SSL.Error:  # until the daemon has made the host's certificate, it shows that of the shared host
        return None


def test_another_root_of_the_same_kind_verifies_nothing(daemon: Daemon, tmp_path: Path) -> None:
    root, _ = daemon.write_anchors("edwards", tmp_path)
    with pytest.raises(SSL.Error, match="certificate verify failed"):
        exchange(daemon, root, "lattice.example", b"GET / HTTP/1.1\r\nHost: lattice.example\r\n\r\n")


def test_who_can_not_use_a_kind_is_told_when_the_realm_is_made(daemon: Daemon) -> None:
    done = run_enrolld(daemon.directory, "realm", "add", "told", "--kind", "root=ml-dsa-87")
    assert done.returncode == 0
    assert b"SCEP is off in this realm" in done.stderr
    assert b"OpenSSL 3.5 or later" in done.stderr
    keys = {row["issuer"]: row["key"] for row in daemon.command("ca", "list") if row["realm"] == "told"}
    assert keys == {"told-root-1": "ML-DSA-87", "told-ec-1": "EC P-256", "told-rsa-1": "RSA 2048"}


@pytest.mark.parametrize("key", ["rsa=ml-dsa-65", "root=dsa-1024", "est=p-256", "p-256", "="])
def test_a_kind_that_a_ca_can_not_have_is_refused(daemon: Daemon, key: str) -> None:
    with pytest.raises(CommandRefused) as refused:
        daemon.ask("realm", "add", "never", "--kind", key)
    assert refused.value.code == "key_kind_invalid"
    assert refused.value.remedy
