"""What a peer may cost, and the words for refusing it."""

from dataclasses import dataclass
from enum import StrEnum


class StreamReason(StrEnum):
    """Why a connection was refused or cut: stable codes, fit for logs and metric labels."""

    NOT_TLS = "tls_not_tls"
    """The first byte was no TLS handshake; often plain HTTP sent to the HTTPS port."""

    CLOSED_EARLY = "tls_closed_early"
    """The peer hung up in the middle of the handshake without saying why."""

    HANDSHAKE_TIMEOUT = "tls_handshake_timeout"
    HANDSHAKE_TOO_LARGE = "tls_handshake_too_large"
    HANDSHAKE_FAILED = "tls_handshake_failed"
    """OpenSSL refused the handshake for a reason that has no code of its own here."""

    VERSION_UNSUPPORTED = "tls_version_unsupported"
    """The peer speaks neither TLS 1.2 nor TLS 1.3."""

    NO_SHARED_CIPHER = "tls_no_shared_cipher"
    NO_SHARED_ALPN = "tls_no_shared_alpn"
    """The peer offered application protocols, and http/1.1 was not one of them (RFC 7301 3.2)."""

    UNKNOWN_NAME = "tls_unknown_name"
    """The selector knows no context for the server name that the peer asked for."""

    SERVER_NOT_TRUSTED = "tls_server_not_trusted"
    """The peer refused *our* certificate: it lacks the root, or the name does not match."""

    PEER_ALERT = "tls_peer_alert"
    """The peer ended the handshake with another alert."""

    BAD_CERTIFICATE = "tls_bad_certificate"
    """A certificate that is not DER, or a CertificateVerify that its key did not make."""

    CHAIN_TOO_LONG = "tls_chain_too_long"
    KEY_TOO_LARGE = "tls_key_too_large"

    PROTOCOL_ERROR = "tls_protocol_error"
    """A record after the handshake that TLS does not allow, such as a wrong MAC."""

    WRITE_STALLED = "write_stalled"
    """The peer did not read the answer."""

    PROXY_UNKNOWN = "proxy_unknown"
    """Somebody who is no balancer of ours connected where only balancers do."""

    PROXY_HEADER_BAD = "proxy_header_bad"
    """The balancer did not begin with a PROXY header of version 2."""

    PROXY_HEADER_TIMEOUT = "proxy_header_timeout"

    TOO_MANY_CONNECTIONS = "connections_in_all"
    """There were too many connections, and this one waited for nothing."""

    TOO_MANY_OF_SOURCE = "connections_of_source"
    """Its source had too many connections, and this one waited for nothing."""

    TOO_MANY_HANDSHAKES = "handshakes_in_all"
    """There were too many TLS handshakes at a time, and this one was the oldest."""


class TlsRefusedError(Exception):
    """The session is over, for `reason`; what OpenSSL still has to send is the alert that says so."""

    def __init__(self, reason: StreamReason) -> None:
        super().__init__(reason)
        self.reason = reason


@dataclass(frozen=True, slots=True)
class StreamLimits:
    """What one connection may cost. Times are in seconds, sizes in bytes unless the name says otherwise."""

    write_timeout: float = 30.0
    """For this long not one byte of an answer may be stuck; a slow reader that reads is left alone."""

    shutdown_timeout: float = 3.0
    """From our end of stream to the peer's; then the connection is dropped."""

    proxy_header_timeout: float = 5.0
    """From the accepted TCP connection to the end of the balancer's PROXY header."""

    max_discarded_bytes: int = 16 * 1024 * 1024
    """What is read and thrown away after our close, so that the last answer is not lost to a TCP reset."""


@dataclass(frozen=True, slots=True)
class TlsLimits(StreamLimits):
    """What one TLS connection may cost."""

    handshake_timeout: float = 10.0
    """From the accepted TCP connection to the peer's Finished."""

    max_chain_certificates: int = 10
    max_chain_bytes: int = 64 * 1024
    """Sum of the DER lengths of all certificates that the peer sent."""

    max_rsa_bits: int = 8192


HANDSHAKE_OVERHEAD = 32 * 1024
"""Room for ClientHello, key exchange and signature beside the chain; ML-KEM and ML-DSA need a few KiB each."""
