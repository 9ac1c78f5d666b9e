"""TLS contexts by server name, made when the core's certificates change and never per connection."""

from collections.abc import Sequence
from typing import Protocol

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric.types import PrivateKeyTypes

from ca_core.errors import CoreError
from enrolld.tls import ServerContext

__all__ = ["Certificates", "Contexts"]

_MANY = 1000


class Identity(Protocol):
    """A server certificate of the core."""

    @property
    def chain(self) -> Sequence[bytes]:
        """DER, leaf first."""

    @property
    def private_key(self) -> PrivateKeyTypes:
        """Of the leaf."""

    @property
    def ask_client_certificate(self) -> bool:
        """Whether clients of this host are asked for theirs."""

    @property
    def fingerprint(self) -> bytes:
        """SHA-256 of the leaf."""


class Certificates(Protocol):
    """The server certificates that the core holds."""

    def select(self, server_name: str | None) -> Identity:
        """The one for this name."""


class Contexts:
    """Picks the context that serves a name."""

    def __init__(self, certificates: Certificates) -> None:
        self._certificates = certificates
        self._made: dict[tuple[bytes, bool], ServerContext] = {}

    def __call__(self, server_name: str | None) -> ServerContext:
        """The context for `server_name`, None without SNI."""
        try:
            identity = self._certificates.select(server_name)
        except CoreError as exc:
            raise LookupError(str(exc)) from exc  # a node whose keys are sealed: the handshake ends with an alert
        key = (identity.fingerprint, identity.ask_client_certificate)
        context = self._made.get(key)
        if context is None:
            if len(self._made) >= _MANY:  # those of renewed certificates pile up over years
                self._made.clear()
            context = self._made[key] = ServerContext(
                [x509.load_der_x509_certificate(der) for der in identity.chain],
                identity.private_key,
                ask_client_certificate=identity.ask_client_certificate,
            )
        return context
