"""How SCEP answers over HTTP: with a CertRep once there is a transaction, with one sentence of text before."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from ca_core.errors import InternalError, Overloaded, Refusal, TooMany
from ca_core.model import Call
from scep_server.errors import HTTP_STATUS

__all__ = ["CA_CERT_CHAIN", "PKI_MESSAGE", "RA_CERT", "Answer", "failure", "refusal_answer", "text_answer"]

PKI_MESSAGE = "application/x-pki-message"
RA_CERT = "application/x-x509-ca-ra-cert"
CA_CERT_CHAIN = "application/x-x509-ca-ra-cert-chain"  # of a draft; certmonger asks for it
RETRY_AFTER = 60


@dataclass(frozen=True, slots=True)
class Answer:
    """A response. `code` is why it is a refusal, and `call` what the message said of itself: both for the log.

    `outcome` is issued or pending where somebody asked for a certificate.
    """

    status: int
    body: bytes
    content_type: str
    headers: Mapping[str, str] = field(default_factory=dict)
    code: str = ""
    call: Call | None = None
    outcome: str = ""


def text_answer(
    status: int, message: str, request_id: str, headers: Mapping[str, str] | None = None, *, code: str = ""
) -> Answer:
    """One true sentence for a human, with the id under which the operator finds the request."""
    body = f"{message} (request {request_id})\n".encode("ascii", "backslashreplace")
    return Answer(status, body, "text/plain", headers or {}, code=code)


def refusal_answer(refusal: Refusal, request_id: str, allow: str = "") -> Answer:
    """What is told where no transaction is known; `allow` goes with a 405."""
    status = HTTP_STATUS.get(refusal.code)
    if status is None:
        status = next(found for kind in type(refusal).__mro__ if (found := HTTP_STATUS.get(kind)))
    headers = {"Allow": allow} if allow else {}
    if isinstance(refusal, TooMany):
        headers["Retry-After"] = str(refusal.retry_after)
    return text_answer(status, refusal.message, request_id, headers, code=refusal.code)


def failure(error: Exception, request_id: str) -> Answer:
    """What a peer is told about our own fault: nothing of it, only what to do."""
    if isinstance(error, Overloaded):
        again = {"Retry-After": str(error.retry_after)}
        return text_answer(503, "Too many requests come in; ask again later.", request_id, again, code="overloaded")
    if isinstance(error, InternalError):
        again = {"Retry-After": str(RETRY_AFTER)}
        return text_answer(503, "Nothing can be issued at the moment; ask again later.", request_id, again)
    return text_answer(500, "The server failed; its operator can find out why.", request_id)
