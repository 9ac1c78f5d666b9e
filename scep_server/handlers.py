"""From an HTTP request to an operation: methods, the message of a GET and of a POST, and their limits."""

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass

from aiohttp import web
from aiohttp.http_exceptions import PayloadEncodingError

from ca_core.codes import CODES
from ca_core.errors import MalformedRequest, NotFound, UnsupportedMedia
from scep_server.answer import Answer
from scep_server.errors import Unusable
from scep_server.exchange import Exchange, Turns
from scep_server.message import MAX_MESSAGE
from scep_server.operations import pki_operation
from scep_server.published import get_ca_caps, get_ca_cert, get_ca_cert_chain, get_next_ca_cert
from scep_server.query import Query, decode_message

__all__ = ["Served", "find", "pki_message"]


@dataclass(frozen=True, slots=True)
class Served:
    """An operation's name, its methods, and what answers; `answer` is None for what takes a message."""

    name: str
    methods: tuple[str, ...]
    answer: Callable[[Exchange], Awaitable[Answer]] | None = None


_GET = ("GET", "HEAD")
OPERATIONS: Mapping[str, Served] = {
    served.name: served
    for served in (
        Served("GetCACaps", _GET, get_ca_caps),
        Served("GetCACert", _GET, get_ca_cert),
        Served("GetCACertChain", _GET, get_ca_cert_chain),
        Served("GetNextCACert", _GET, get_next_ca_cert),
        Served("PKIOperation", ("GET", "POST")),
    )
}


def find(query: Query, method: str) -> Served:
    """The operation that is asked for; a POST that names none is a PKIOperation. Raises `NotFound`."""
    name = query.operation
    if name is None and method == "POST":
        name = "PKIOperation"
    if (served := OPERATIONS.get(name or "")) is None:
        raise NotFound("scep_operation_unknown", "No such SCEP operation.")
    return served


async def pki_message(exchange: Exchange, request: web.Request, query: Query, turns: Turns) -> Answer:
    """PKIOperation by GET or POST. The Content-Type says nothing: clients send any, or none."""
    data = await _read_body(request) if request.method == "POST" else b""
    await turns.enter(exchange.call.source)  # not before: a slow body takes nobody's turn
    try:
        return await pki_operation(exchange, data or decode_message(query.message))
    finally:
        turns.leave()


async def _read_body(request: web.Request) -> bytes:
    if request.headers.get("Content-Encoding", "identity").strip().lower() not in ("", "identity"):  # enforces case 12
        raise UnsupportedMedia("content_coding_unsupported", "A body with a Content-Encoding is not read here.")
    if request.headers.get("Transfer-Encoding", "chunked").strip().lower() != "chunked":  # enforces case 12
        raise UnsupportedMedia("content_coding_unsupported", "A body with this Transfer-Encoding is not read here.")
    too_large = Unusable("scep_too_large", f"The message is longer than {MAX_MESSAGE} bytes.")
    if (request.content_length or 0) > MAX_MESSAGE:  # enforces case 12
        raise too_large
    body = bytearray()
    try:
        while chunk := await request.content.readany():
            body += chunk
            del chunk  # else it is held a second time while the rest is waited for
            if len(body) > MAX_MESSAGE:  # enforces case 13
                raise too_large
    except (web.RequestPayloadError, PayloadEncodingError, OSError) as exc:
        reason = getattr(exc, "reason", None)  # what the connection knows: too slow, or too short
        code = reason if isinstance(reason, str) and reason in CODES else "http_malformed"
        raise MalformedRequest(code, "The body did not arrive whole.", detail=str(exc)) from exc
    return bytes(body)
