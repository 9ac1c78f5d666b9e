"""One server-side TLS session over bytes: no socket, no clock, no event loop.

Ciphertext goes in with `feed` and comes out with `output`; plaintext goes in with `write` and comes out with `read`.
The client's certificate is not judged here; what is judged is what it may cost.
"""

import functools
from typing import Any

from OpenSSL import SSL, crypto

from enrolld.tls.context import Select, ServerContext, new_context
from enrolld.tls.limits import HANDSHAKE_OVERHEAD, StreamReason, TlsLimits, TlsRefusedError
from enrolld.tls.peer import TlsPeer, describe_peer, sent_chain

RECORD_SIZE = 16 * 1024
"""The most plaintext that one TLS record carries (RFC 8446 5.1)."""

_READ_SIZE = 2 * RECORD_SIZE


class TlsEngine:
    """A session from ClientHello to close_notify. `handshake` must have returned True before `read` or `write`."""

    __slots__ = (
        "_connection",
        "_failure",
        "_key_is_checked",
        "_limits",
        "_refusal",
        "_select",
        "context",
        "peer",
        "received",
        "server_name",
    )

    def __init__(self, select: Select, limits: TlsLimits) -> None:
        connection = SSL.Connection(_base_context(), None)
        connection.set_accept_state()
        connection.set_app_data(self)  # a cycle; finish() and dispose() break it
        self._connection = connection
        self._limits = limits
        self._select: Select | None = select
        self.received = 0
        self._refusal: StreamReason | None = None
        self._failure: Exception | None = None
        self._key_is_checked = False
        self.server_name: str | None = None
        self.context: ServerContext | None = None
        self.peer: TlsPeer | None = None

    def feed(self, ciphertext: bytes | memoryview) -> None:
        """Take bytes from the network; at most a record's worth at a time keeps OpenSSL's buffer small."""
        if self.peer is None:
            self.received += len(ciphertext)
        self._connection.bio_write(ciphertext)

    def handshake(self) -> bool:
        """Go on with the handshake: True when it is finished, and `peer` is known from then on.

        Raises TlsRefusedError, and whatever `select` raised apart from LookupError.
        """
        try:
            self._connection.do_handshake()
        except SSL.WantReadError:
            # OpenSSL itself ends a Certificate message of 100 KiB, with an alert; this ends anything else.
            if self.received > 2 * (self._limits.max_chain_bytes + HANDSHAKE_OVERHEAD):
                raise TlsRefusedError(StreamReason.HANDSHAKE_TOO_LARGE) from None
            return False
        except SSL.Error as exc:
            if self._failure is not None:
                raise self._failure from None
            raise TlsRefusedError(self._refusal or _reason_of(exc)) from exc
        self._finish()
        return True

    def read(self) -> bytes | None:
        """The next plaintext; b"" is the peer's end of stream, and None means that more ciphertext is needed."""
        try:
            return self._connection.recv(RECORD_SIZE)
        except SSL.WantReadError:
            return None
        except SSL.ZeroReturnError:
            return b""
        except SSL.Error as exc:
            text = _text_of(exc)
            if not text or ("alert" in text and "too many warn alerts" not in text):
                # The peer's own fatal alert. strongSwan says close_notify in this way, for which OpenSSL has no text.
                return b""
            raise TlsRefusedError(StreamReason.PROTOCOL_ERROR) from exc

    def write(self, plaintext: bytes | memoryview) -> None:
        """Encrypt one record: at most RECORD_SIZE bytes."""
        try:
            self._connection.send(plaintext)
        except SSL.Error as exc:
            raise TlsRefusedError(StreamReason.PROTOCOL_ERROR) from exc

    def output(self) -> bytes:
        """All ciphertext that waits for the network; empty when there is none."""
        pieces: list[bytes] = []
        try:
            while True:
                piece = self._connection.bio_read(_READ_SIZE)
                if len(piece) < _READ_SIZE and not pieces:
                    return piece
                pieces.append(piece)
        except SSL.WantReadError:
            return b"".join(pieces)

    def close_notify(self) -> None:
        """Say that we will send no more."""
        try:
            self._connection.shutdown()
        except SSL.Error:
            return  # a session that failed has said so with another alert

    def dispose(self) -> None:
        """Let go of everything that refers back here."""
        self._connection.set_app_data(None)
        self._select = None

    def _finish(self) -> None:
        context = self.context
        chain = sent_chain(self._connection) if context is not None and context.ask_client_certificate else ()
        limits = self._limits
        if len(chain) > limits.max_chain_certificates or sum(map(len, chain)) > limits.max_chain_bytes:
            raise TlsRefusedError(StreamReason.CHAIN_TOO_LONG)
        self.peer = describe_peer(self._connection, chain, self.server_name)
        self.dispose()

    def choose_context(self) -> None:
        """Called back by OpenSSL with the ClientHello, and again with the one that answers a HelloRetryRequest."""
        if self.context is not None or self._select is None:
            return
        name = self._connection.get_servername()
        self.server_name = None if name is None else name.decode("ascii", "backslashreplace").lower()
        try:
            context = self._select(self.server_name)
        except LookupError:
            # The base context has no certificate, so the handshake now ends with an alert.
            self._refusal = StreamReason.UNKNOWN_NAME
        except Exception as exc:  # noqa: BLE001  # may not cross OpenSSL's C frames; handshake() raises it
            self._failure = exc
        else:
            self.context = context
            self._connection.set_context(context.ssl_context)
            if not context.ask_client_certificate:
                self._connection.set_verify(SSL.VERIFY_NONE)

    def accept_certificate(self, leaf: crypto.X509) -> bool:
        """Called back by OpenSSL, a few times, after the Certificate message and before CertificateVerify."""
        if not self._key_is_checked:
            self._key_is_checked = True
            if self.received > self._limits.max_chain_bytes + HANDSHAKE_OVERHEAD:
                self._refusal = StreamReason.CHAIN_TOO_LONG
            else:
                try:
                    key = leaf.get_pubkey()
                except crypto.Error:
                    # Broken, or of a kind that OpenSSL does not know. pyOpenSSL would keep what is raised here in the
                    # context that all connections share, and raise it out of another one.
                    self._refusal = StreamReason.BAD_CERTIFICATE
                else:
                    if key.type() in _RSA_TYPES and key.bits() > self._limits.max_rsa_bits:
                        self._refusal = StreamReason.KEY_TOO_LARGE
        return self._refusal is None


_RSA_TYPES = frozenset({crypto.TYPE_RSA, 912})  # 912 is OpenSSL's NID of id-RSASSA-PSS


@functools.cache
def _base_context() -> SSL.Context:
    """Where every connection starts; the ClientHello's name then picks the ServerContext."""
    context = new_context()
    context.set_tlsext_servername_callback(_on_client_hello)
    # CertificateRequest is sent without CA names: a device's chain is judged per realm, and names leak the realms.
    context.set_verify(SSL.VERIFY_PEER, _on_certificate)
    return context


def _on_client_hello(connection: SSL.Connection) -> None:
    _engine_of(connection).choose_context()


def _on_certificate(connection: SSL.Connection, leaf: crypto.X509, _error: int, _depth: int, _ok: int) -> bool:
    return _engine_of(connection).accept_certificate(leaf)


def _engine_of(connection: SSL.Connection) -> TlsEngine:
    engine: Any = connection.get_app_data()
    if not isinstance(engine, TlsEngine):
        raise TypeError("a connection without its engine")
    return engine


def _text_of(error: SSL.Error) -> str:
    details = error.args[0] if error.args else ()
    return " ".join(str(detail[-1]) for detail in details) if isinstance(details, list) else str(details)


def _reason_of(error: SSL.Error) -> StreamReason:
    text = _text_of(error)
    for part, reason in _REASONS:
        if part in text:
            return reason
    return StreamReason.HANDSHAKE_FAILED


# The texts are OpenSSL's; the first that occurs decides.
_REASONS = (
    ("alert unknown ca", StreamReason.SERVER_NOT_TRUSTED),
    ("alert bad certificate", StreamReason.SERVER_NOT_TRUSTED),
    ("alert certificate unknown", StreamReason.SERVER_NOT_TRUSTED),
    ("alert certificate expired", StreamReason.SERVER_NOT_TRUSTED),
    ("alert unsupported certificate", StreamReason.SERVER_NOT_TRUSTED),
    ("alert", StreamReason.PEER_ALERT),
    ("unsupported protocol", StreamReason.VERSION_UNSUPPORTED),
    ("wrong version number", StreamReason.VERSION_UNSUPPORTED),
    ("version too low", StreamReason.VERSION_UNSUPPORTED),
    ("no shared cipher", StreamReason.NO_SHARED_CIPHER),
    ("excessive message size", StreamReason.CHAIN_TOO_LONG),
    ("bad signature", StreamReason.BAD_CERTIFICATE),
    ("nested asn1 error", StreamReason.BAD_CERTIFICATE),
)
