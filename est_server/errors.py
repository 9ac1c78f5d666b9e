"""How EST tells what went wrong: one table, and one short text for every answer that is not a success."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from ca_core.errors import (
    BadKey,
    InternalError,
    MalformedRequest,
    NotAuthenticated,
    NotAuthorized,
    NotFound,
    Overloaded,
    PopFailed,
    Refusal,
    TooLarge,
    TooMany,
    UnsupportedMedia,
)

__all__ = ["HTTP_STATUS", "Answer", "failure", "refusal_answer", "text_answer"]

# "The server MUST answer with a suitable 4xx or 5xx HTTP [RFC2616] error code when a problem occurs." -- RFC 7030 4.2.3
HTTP_STATUS: Mapping[type[Refusal] | str, int] = {
    MalformedRequest: 400,
    BadKey: 400,
    PopFailed: 400,
    NotAuthenticated: 401,
    NotAuthorized: 403,
    NotFound: 404,
    TooLarge: 413,
    UnsupportedMedia: 415,
    TooMany: 429,
    # A code that is more exact than its class.
    "method_not_allowed": 405,
    "http_body_timeout": 408,
    "bodies_in_all": 503,
}
RETRY_AFTER = 60
"""Seconds after which to ask again when nothing can be issued now."""


@dataclass(frozen=True, slots=True)
class Answer:
    """A response as EST means it; `app` puts it on the wire.

    `base64` marks a body of base64, as RFC 7030 calls it. `code` is why it is a refusal, for the log; empty otherwise.
    `outcome` is issued or pending where somebody asked for a certificate.
    """

    status: int
    body: bytes = b""
    content_type: str | None = None
    base64: bool = False
    headers: Mapping[str, str] = field(default_factory=dict)
    code: str = ""
    outcome: str = ""


def refusal_answer(
    refusal: Refusal, request_id: str, *, realm: str | None = None, takes_passwords: bool = True, allow: str = ""
) -> Answer:
    """What the requester is told: the refusal's sentence.

    `realm` is the one it was addressed to, if that is known, and `takes_passwords` whether it takes any: one that takes
    none asks for none.
    """
    status = HTTP_STATUS.get(refusal.code) or HTTP_STATUS[type(refusal)]
    headers: dict[str, str] = {}
    if status == 401 and not takes_passwords:
        status = 403
    if status == 401:
        # "Servers that wish to use Basic and Digest authentication reject the HTTP request using the HTTP-defined
        # WWW-Authenticate response-header" -- RFC 7030 3.2.3
        headers["WWW-Authenticate"] = f'Basic realm="{realm or "enrolld"}"'
    elif status == 405:
        headers["Allow"] = allow
    elif isinstance(refusal, TooMany):
        headers["Retry-After"] = str(refusal.retry_after)
    return text_answer(status, refusal.message, request_id, headers, code=refusal.code)


def failure(error: Exception, request_id: str) -> Answer:
    """What a peer is told about our own fault: nothing of it, only what to do."""
    if isinstance(error, Overloaded):
        again = {"Retry-After": str(error.retry_after)}
        return text_answer(503, "Too many requests come in; ask again later.", request_id, again, code="overloaded")
    if isinstance(error, InternalError):
        return text_answer(
            503, "Nothing can be issued at the moment; ask again later.", request_id, {"Retry-After": str(RETRY_AFTER)}
        )
    return text_answer(500, "The server failed; its operator can find out why.", request_id)


def text_answer(
    status: int, message: str, request_id: str, headers: Mapping[str, str] | None = None, *, code: str = ""
) -> Answer:
    """One true sentence for a human, with the id under which the operator finds the request."""
    # "If the content-type is not set, the response data MUST be a plaintext human-readable error message containing
    # explanatory information describing why the request was rejected" -- RFC 7030 4.2.3
    body = f"{message} (request {request_id})\n".encode("ascii", "backslashreplace")
    return Answer(status, body, "text/plain", headers=headers or {}, code=code)
