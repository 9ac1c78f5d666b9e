"""What an HTTP connection may cost, and what is said to a peer whose request can't be served as it came.

The words are fixed: neither the parser's text nor the peer's own bytes ever go back.
"""

from dataclasses import dataclass

from aiohttp import http_exceptions, web

from enrolld.request_id import new_request_id

REQUEST_ID_HEADER = "X-Request-Id"
_REQUEST_ID = web.RequestKey("request_id", str)

LOGGED = web.RequestKey("logged", bool)
"""Set by whoever has written the request's line, so that its refusal is not logged and counted twice."""


@dataclass(frozen=True, slots=True)
class HttpLimits:
    """What one HTTP connection may cost. Times are in seconds, sizes in bytes."""

    head_timeout: float = 10.0
    """From the open connection, later from a head's first byte, to the end of the head."""

    body_timeout: float = 30.0
    """From the end of the head to the end of the body."""

    idle_timeout: float = 30.0
    """Between a response and the next request's first byte."""

    max_line_size: int = 32 * 1024
    """Length of the request target; SCEP carries whole messages in it."""

    max_field_size: int = 8190
    """Length of one header field."""

    max_fields: int = 64
    max_head_size: int = 64 * 1024


class HttpRefusedError(web.RequestPayloadError):
    """A request that cannot be served as it came; raised out of `request.read()` when its body breaks."""

    def __init__(self, status: int, reason: str, sentence: str) -> None:
        super().__init__(sentence)
        self.status = status
        self.reason = reason
        self.sentence = sentence


def request_id_of(request: web.BaseRequest) -> str:
    """The request's id; the same one whenever it is asked for."""
    if _REQUEST_ID not in request:
        request[_REQUEST_ID] = new_request_id()
    return request[_REQUEST_ID]


def refusal_of(exc: BaseException, limits: HttpLimits) -> HttpRefusedError:
    """What a parser's exception means; never its text, which may hold the peer's bytes."""
    if isinstance(exc, HttpRefusedError):
        return exc
    if isinstance(exc, http_exceptions.LineTooLong) and exc.args[1:2] == (limits.max_line_size,):
        return HttpRefusedError(414, "http_target_too_long", "The request target is too long.")
    text = str(getattr(exc, "message", ""))
    for kind, start, status, reason, sentence in _PARSER_REFUSALS:
        if isinstance(exc, kind) and text.startswith(start):
            return HttpRefusedError(status, reason, sentence)
    return HttpRefusedError(400, "http_malformed", "This is not a well-formed HTTP request.")


_PARSER_REFUSALS: tuple[tuple[type[Exception], str, int, str, str], ...] = (
    (http_exceptions.LineTooLong, "", 431, "http_field_too_long", "A header field is too long."),
    (http_exceptions.BadHttpMessage, "Too many headers", 431, "http_too_many_fields", "There are too many headers."),
    (http_exceptions.BadHttpMessage, "Missing 'Host'", 400, "http_no_host", "The request has no Host header."),
    (http_exceptions.BadHttpMethod, "Received HTTPS", 400, "http_got_tls", "This is TLS where HTTP was expected."),
)


def description_of(exc: BaseException) -> str:
    """The parser's own words, without the bytes it quotes: a header may hold a password."""
    words, quote, _bytes = str(getattr(exc, "message", "")).partition(":\n\n")
    return words if quote else type(exc).__name__


OWN_WORDS = {
    404: ("http_not_found", "There is nothing at this address."),
    405: ("http_method_not_allowed", "This address does not take this method."),
    413: ("http_body_too_large", "The body is too large."),
    417: ("http_expectation_failed", "The Expect header asks for something unknown."),
}

ALWAYS_REWORDED = (413, 417)  # aiohttp quotes sizes, and the peer's header


def plain_answer(status: int, sentence: str, request_id: str) -> web.Response:
    """One sentence and its request id, as text/plain."""
    return web.Response(
        status=status, text=f"{sentence} (request {request_id})\n", headers={REQUEST_ID_HEADER: request_id}
    )
