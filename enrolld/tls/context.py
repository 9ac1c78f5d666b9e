"""Server contexts: a certificate, its key, and the rules that every connection shares.

Contexts are made when certificates change, never per connection; connections pick one by server name.
"""

import warnings
from collections.abc import Callable, Sequence

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric.types import PrivateKeyTypes
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from OpenSSL import SSL, crypto

from enrolld.tls.limits import StreamReason, TlsRefusedError

_TLS12_CIPHERS = b"ECDHE+AESGCM:ECDHE+CHACHA20:ECDHE+AESCCM:!AESCCM8"
_ALPN = (b"http/1.1", b"http/1.0")  # `curl --http1.0` offers only the second; h2 is never taken

# OpenSSL builds and checks a chain from whatever the peer sent before it asks us, with up to one signature check per
# certificate and issuer keys of any size. Admission judges the chain later, against the realm's anchors, so that work
# is wasted on honest peers and a gift to hostile ones. Any depth below -1 makes OpenSSL stop at the leaf (-1 itself
# means "unset"). A test holds it: an issuer's key of any size costs nothing.
_LEAF_ONLY = -2

# SSL_MODE_NO_AUTO_CHAIN, which pyOpenSSL does not name: else OpenSSL looks for our own chain in each handshake.
_NO_AUTO_CHAIN = 0x8


class ServerContext:
    """One server identity: certificate chain, private key, and whether a client certificate is asked for.

    `chain` is PEM, or certificates, leaf first. Raises ValueError when the chain is empty or unreadable, or when the
    key is not the leaf's.
    """

    __slots__ = ("ask_client_certificate", "certificate", "ssl_context")

    def __init__(
        self,
        chain: bytes | Sequence[x509.Certificate],
        private_key: PrivateKeyTypes,
        *,
        ask_client_certificate: bool,
    ) -> None:
        certificates = x509.load_pem_x509_certificates(chain) if isinstance(chain, bytes) else list(chain)
        if not certificates:
            raise ValueError("a server needs a certificate")
        if certificates[0].public_key() != private_key.public_key():
            raise ValueError("the private key is not the key of the first certificate")
        context = new_context()
        try:
            context.use_certificate(certificates[0])
            for certificate in certificates[1:]:
                context.add_extra_chain_cert(certificate)
            _use_private_key(context, private_key)
        except SSL.Error as exc:
            raise ValueError(f"OpenSSL does not take this certificate and key: {exc}") from exc
        self.certificate = certificates[0]
        self.ask_client_certificate = ask_client_certificate
        self.ssl_context = context


Select = Callable[[str | None], ServerContext]
"""From the server name a peer asks for (lower case; None without SNI) to the context that serves it.

Called once per connection, in the handshake. LookupError refuses the connection.
"""


def new_context() -> SSL.Context:
    """A context with everything but a certificate."""
    context = SSL.Context(SSL.TLS_SERVER_METHOD)
    # "TLS 1.0 and 1.1 MUST NOT be used" -- RFC 8996
    context.set_min_proto_version(SSL.TLS1_2_VERSION)
    context.set_cipher_list(_TLS12_CIPHERS)
    # Groups stay OpenSSL's own: X25519MLKEM768, X25519, P-256, X448, P-384, P-521, in that order.
    context.set_options(SSL.OP_NO_COMPRESSION | SSL.OP_NO_RENEGOTIATION | SSL.OP_NO_TICKET)  # enforces case 43
    # Without tickets OpenSSL would still resume from its cache, and a resumed session has lost the peer's chain.
    context.set_session_cache_mode(SSL.SESS_CACHE_OFF)
    context.set_mode(SSL.MODE_RELEASE_BUFFERS | _NO_AUTO_CHAIN)  # an idle connection gives back 34 KiB
    context.set_verify_depth(_LEAF_ONLY)
    context.set_alpn_select_callback(_choose_alpn)
    return context


def _use_private_key(context: SSL.Context, private_key: PrivateKeyTypes) -> None:
    try:
        context.use_privatekey(private_key)  # type: ignore[arg-type]  # what it can't take raises TypeError
    except TypeError:
        # pyOpenSSL has no conversion for ML-DSA keys, but OpenSSL reads their PKCS#8.
        der = private_key.private_bytes(Encoding.DER, PrivateFormat.PKCS8, NoEncryption())
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)
            context.use_privatekey(crypto.load_privatekey(crypto.FILETYPE_ASN1, der))


def _choose_alpn(_connection: SSL.Connection, offered: list[bytes]) -> bytes:
    for protocol in _ALPN:
        if protocol in offered:
            return protocol
    # "the server SHALL respond with a fatal 'no_application_protocol' alert" -- RFC 7301 3.2. An exception here makes
    # OpenSSL do that, and comes out of do_handshake.
    raise TlsRefusedError(StreamReason.NO_SHARED_ALPN)
