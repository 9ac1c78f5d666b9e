"""What one request is, for its line in the log and for metrics: ECS names, and words of closed sets."""

from collections.abc import Mapping
from typing import Any, Protocol

from aiohttp import web
from cryptography import x509

from enrolld.tls import TlsPeer
from scep_server.app import is_scep_path

__all__ = ["Requested", "connection_fields", "operation_of", "outcome_of", "protocol_of"]


class Requested(Protocol):
    """Told of every request that was answered."""

    def requested(self, realm: str, protocol: str, operation: str, outcome: str, seconds: float) -> None:
        """See `enrolld.metrics.meter`."""
        ...


def connection_fields(request: web.Request) -> dict[str, Any]:
    """What the TLS connection says; the certificate that a client has shown is named, judged or not."""
    tls: TlsPeer | None = request.transport.get_extra_info("tls") if request.transport is not None else None
    if tls is None:
        return {}
    found = {"tls.version": tls.version, "tls.cipher": tls.cipher}
    if tls.chain and (serial := _serial_of(tls.chain[0])):
        found["tls.client.x509.serial_number"] = serial
    return found


def _serial_of(der: bytes) -> str | None:
    """In upper-case hex, as ECS wants it; commands take it in any case."""
    try:
        serial = x509.load_der_x509_certificate(der).serial_number
    except ValueError:  # it is refused for that elsewhere
        return None
    return format(serial, "X") if 0 < serial < 1 << 168 else None


def protocol_of(request: web.Request, otherwise: str) -> str:
    """The protocol that a request's address belongs to; `otherwise` is that of what is not SCEP on its listener."""
    return "scep" if is_scep_path(request.raw_path) else otherwise


def operation_of(request: web.Request, fields: Mapping[str, Any]) -> str:
    """The operation, as the protocol's handler named it, or else the route that was taken."""
    return str(fields.get("enrolld.operation") or request.match_info.route.name or "unknown")


GONE = 499
"""Logged in place of a status where the peer left before there was an answer, as nginx does."""


def outcome_of(status: int, fields: Mapping[str, Any]) -> str:
    """`issued`, `pending`, `refused`, `overloaded`, `error` by our fault, `gone`, or `served` what anybody may have."""
    if status == GONE:
        return "gone"
    if fields.get("event.code") in ("overloaded", "bodies_in_all"):
        return "overloaded"
    if status >= 500:
        return "error"
    if status >= 400 or "event.code" in fields:  # a CertRep FAILURE is a 200
        return "refused"
    return str(fields.get("enrolld.outcome", "served"))
