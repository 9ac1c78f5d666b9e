"""What the server knows about its peer is what the peer knows about itself."""

import contextlib
import ssl
from collections.abc import Iterator

import pytest
from cryptography.hazmat.primitives.asymmetric import rsa
from OpenSSL import SSL

from tests.enrolld.tls.conftest import Serve
from tests.helpers.tls_pki import Identity, TlsPki, connect, issue

VERSIONS = pytest.mark.parametrize(
    "version", [pytest.param(SSL.TLS1_2_VERSION, id="tls12"), pytest.param(SSL.TLS1_3_VERSION, id="tls13")]
)


@contextlib.contextmanager
def openssl_client(port: int, version: int, device: Identity | None = None) -> Iterator[SSL.Connection]:
    """A client that sends exactly the chain it is given, and can tell its own Finished and exporter."""
    context = SSL.Context(SSL.TLS_CLIENT_METHOD)
    context.set_min_proto_version(version)
    context.set_max_proto_version(version)
    if device is not None:
        context.use_certificate(device.certificate)
        context.use_privatekey(device.key)
        for certificate in device.chain[1:]:
            context.add_extra_chain_cert(certificate)
    with connect(port) as tcp:
        tcp.settimeout(None)  # pyOpenSSL reads the descriptor itself, and a timeout makes that non-blocking
        client = SSL.Connection(context, tcp)
        client.set_connect_state()
        client.do_handshake()
        yield client


@VERSIONS
def test_the_chain_is_handed_on_as_it_was_sent(serve: Serve, pki: TlsPki, version: int) -> None:
    stranger = issue("Stranger", is_ca=True)
    cases = {
        "leaf alone": (pki.device.certificate,),
        "leaf and its sub-CA": pki.device.chain,
        "with the root": (*pki.device.chain, pki.root.certificate),
        "out of order": (pki.device.certificate, pki.root.certificate, pki.sub_ca.certificate),
        "with a stranger": (pki.device.certificate, stranger.certificate),
        "ten": (pki.device.certificate, *[pki.sub_ca.certificate] * 9),
    }
    served = serve()
    for chain in cases.values():
        device = Identity(chain, pki.device.key)
        with openssl_client(served.port, version, device):
            assert served.next_peer().chain == device.der_chain


@VERSIONS
def test_a_certificate_that_no_anchor_knows_is_accepted_for_others_to_judge(
    serve: Serve, pki: TlsPki, version: int
) -> None:
    expired_or_not = issue("self-signed")
    small = issue("small key", pki.sub_ca, key=rsa.generate_private_key(65537, 2048))
    served = serve()
    for device in (expired_or_not, small):
        with openssl_client(served.port, version, device):
            assert served.next_peer().chain == device.der_chain


@VERSIONS
def test_no_certificate_is_an_empty_chain(serve: Serve, version: int) -> None:
    served = serve()
    with openssl_client(served.port, version):
        assert served.next_peer().chain == ()


def test_tls_unique_on_tls12_is_what_a_stock_client_computes(serve: Serve, pki: TlsPki) -> None:
    served = serve()
    for device in (None, pki.device):
        context = pki.client(device, version=ssl.TLSVersion.TLSv1_2)
        with context.wrap_socket(connect(served.port), server_hostname="localhost") as sock:
            peer = served.next_peer()
            assert peer.tls_unique == sock.get_channel_binding("tls-unique")
            assert peer.tls_unique is not None
            assert len(peer.tls_unique) == 12
            assert peer.tls_exporter is None


def test_tls_exporter_on_tls13_is_what_the_client_exports(serve: Serve, pki: TlsPki) -> None:
    served = serve()
    with openssl_client(served.port, SSL.TLS1_3_VERSION, pki.device) as client:
        peer = served.next_peer()
        # RFC 9266 2: label "EXPORTER-Channel-Binding", empty context, 32 bytes
        assert peer.tls_exporter == client.export_keying_material(b"EXPORTER-Channel-Binding", 32, b"")
        assert peer.tls_unique is None


def test_two_connections_have_different_bindings(serve: Serve) -> None:
    served = serve()
    for version in (SSL.TLS1_2_VERSION, SSL.TLS1_3_VERSION):
        for _ in range(2):
            with openssl_client(served.port, version):
                pass
    peers = [served.next_peer() for _ in range(4)]
    assert len({peer.tls_unique or peer.tls_exporter for peer in peers}) == 4


def test_a_client_that_offers_post_quantum_key_exchange_gets_it(serve: Serve) -> None:
    served = serve()
    with openssl_client(served.port, SSL.TLS1_3_VERSION) as client:
        assert served.next_peer().group == client.get_group_name() == "X25519MLKEM768"


# X25519 is what curl brings by itself; not every build of the ssl module can be told to offer it alone.
@pytest.mark.parametrize("curve", ["prime256v1", "secp384r1"])
def test_a_client_of_one_classical_group_is_served(serve: Serve, pki: TlsPki, curve: str) -> None:
    served = serve()
    context = pki.client()
    context.set_ecdh_curve(curve)
    with context.wrap_socket(connect(served.port), server_hostname="localhost"):
        group = served.next_peer().group
    assert group is not None
    assert group.lower() in {"secp256r1", "prime256v1", "secp384r1"}
