"""The EST operations: each takes an exchange and gives an answer. Everything that refuses does so by raising.

An enrollment passes, in this order: some credential at all, the headers of the body, the body, the CSR, who asks, the
link to the TLS session, and then the core, which decides.
"""

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Protocol

from aiohttp import web
from aiohttp.http_exceptions import PayloadEncodingError

from ca_core.codes import CODES
from ca_core.csr import ParsedCsr
from ca_core.errors import MalformedRequest, Refusal, TooLarge
from ca_core.model import Call, Evidence, Issued, Operation, Pending, Refused, Requester, TlsPeer
from ca_core.registration.realm import Resolved
from ca_core.registration.requester import proven
from est_server.attributes import needs_channel_binding, wanted_attributes
from est_server.authentication import check_channel_binding, read_evidence
from est_server.codec import (
    CERTS_ONLY,
    CSRATTRS,
    PKCS7,
    check_media,
    decode_request_body,
    encode_body,
    encode_ca_certificates,
    encode_certs_only,
    encode_csrattrs,
)
from est_server.errors import Answer, refusal_answer, text_answer

__all__ = ["MAX_BODY", "NOT_SERVED", "OPERATIONS", "Core", "Exchange", "Realms", "Registration", "Served"]

MAX_BODY = 64 * 1024  # enforces case 13


class Realms(Protocol):
    """Finds the realm that a label means."""

    async def resolve(self, protocol: str, label: str | None, server_name: str | None) -> Resolved:
        """The realm and profile; NotFound for any other label."""
        ...


class Registration(Protocol):
    """Decides who gets what."""

    async def authenticate(self, resolved: Resolved, evidence: Evidence, csr: ParsedCsr) -> Requester:
        """Who asks; NotAuthenticated or NotAuthorized."""
        ...

    async def enroll(
        self, resolved: Resolved, requester: Requester, csr: ParsedCsr, operation: Operation, call: Call
    ) -> Issued | Pending | Refused:
        """The outcome, already recorded."""
        ...

    def refused(self, refusal: Refusal, call: Call, resolved: Resolved | None) -> Refusal:
        """Record a refusal that was raised before `enroll`. Returns what to tell: it, or `TooMany`."""
        ...

    def failed(self, call: Call, resolved: Resolved | None, reason: str) -> None:
        """Record a request that failed by our own fault."""
        ...


class Core(Protocol):
    """What EST needs of the CA core."""

    @property
    def realms(self) -> Realms:
        """The realms."""
        ...

    @property
    def registration(self) -> Registration:
        """The RA."""
        ...

    async def enter(self, source: str) -> None:
        """Wait for a turn at what costs, and call `leave` then; `Overloaded` when there is none soon."""
        ...

    def leave(self) -> None:
        """The turn is over."""
        ...

    async def ca_certificates(self, resolved: Resolved) -> list[bytes]:
        """The CA certificates of a realm, DER, root first."""
        ...


@dataclass(frozen=True, slots=True)
class Exchange:
    """One request to a known realm. `wrap` says whether base64 for this client has line breaks.

    `told` takes what is proven of who asks, by its name in the log.
    """

    request: web.Request
    core: Core
    resolved: Resolved
    peer: TlsPeer
    call: Call
    wrap: bool
    told: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Served:
    """An operation and the methods it takes."""

    methods: tuple[str, ...]
    handle: Callable[[Exchange], Awaitable[Answer]]


async def ca_certificates(exchange: Exchange) -> Answer:
    """GET /cacerts. Needs no credential."""
    # "The EST server SHOULD NOT require client authentication or authorization to reply to this request."
    # -- RFC 7030 4.1.2
    certificates = await exchange.core.ca_certificates(exchange.resolved)
    body = encode_ca_certificates(tuple(certificates), wrap=exchange.wrap)
    return Answer(200, body, PKCS7, base64=True)


async def csr_attributes(exchange: Exchange) -> Answer:
    """GET /csrattrs. Needs no credential."""
    wanted = wanted_attributes(exchange.resolved)
    if not wanted:
        # "An HTTP response code of 204 or 404 indicates that a CSR Attributes Response is not available."
        # -- RFC 7030 4.5.2
        return Answer(204)
    body = encode_body(encode_csrattrs(wanted), wrap=exchange.wrap)
    return Answer(200, body, CSRATTRS, base64=True)


async def simple_enroll(exchange: Exchange) -> Answer:
    """POST /simpleenroll."""
    return await _enroll(exchange, Operation.ENROLL)


async def simple_reenroll(exchange: Exchange) -> Answer:
    """POST /simplereenroll."""
    return await _enroll(exchange, Operation.REENROLL)


OPERATIONS: Mapping[str, Served] = {
    "cacerts": Served(("GET", "HEAD"), ca_certificates),
    "csrattrs": Served(("GET", "HEAD"), csr_attributes),
    "simpleenroll": Served(("POST",), simple_enroll),
    "simplereenroll": Served(("POST",), simple_reenroll),
}
NOT_SERVED = frozenset({"fullcmc", "serverkeygen"})
"""The optional operations; clients read 404 as not implemented (RFC 7030 4.3.2)."""


async def _enroll(exchange: Exchange, operation: Operation) -> Answer:
    headers, resolved = exchange.request.headers, exchange.resolved
    registration = exchange.core.registration
    authorization = headers.getall("Authorization", ())
    may_be_bare = resolved.realm.bare_way is not None and not resolved.realm.asks_for_password
    evidence = read_evidence(exchange.peer, authorization, may_be_bare=may_be_bare)
    check_media(headers.get("Content-Type"), headers.get("Content-Encoding"), headers.get("Transfer-Encoding"))
    body = await _read_body(exchange.request)
    await exchange.core.enter(exchange.call.source)  # not before: a slow body takes nobody's turn
    try:
        csr = ParsedCsr.parse(decode_request_body(body))
        requester = await registration.authenticate(resolved, evidence, csr)
        exchange.told.update(proven(resolved, requester, csr))
        check_channel_binding(csr, exchange.peer, required=needs_channel_binding(resolved))
        outcome = await registration.enroll(resolved, requester, csr, operation, exchange.call)
    finally:
        exchange.core.leave()
    return _outcome_answer(outcome, exchange)


def _outcome_answer(outcome: Issued | Pending | Refused, exchange: Exchange) -> Answer:
    request_id = exchange.call.request_id
    if isinstance(outcome, Refused):
        realm = exchange.resolved.realm
        return refusal_answer(outcome.refusal, request_id, realm=realm.name, takes_passwords=realm.asks_for_password)
    if isinstance(outcome, Pending):
        # "The server MUST include a Retry-After header as defined for HTTP 503 responses." -- RFC 7030 4.2.3
        retry = {"Retry-After": str(outcome.retry_after)}
        answer = text_answer(202, "The request waits for approval; send it again later.", request_id, retry)
        return replace(answer, outcome="pending")
    # "A successful response MUST be a certs-only CMC Simple PKI Response, as defined in [RFC5272], containing only the
    # certificate that was issued." -- RFC 7030 4.2.3
    body = encode_body(encode_certs_only([outcome.certificate]), wrap=exchange.wrap)
    return Answer(200, body, CERTS_ONLY, base64=True, outcome="issued")


async def _read_body(request: web.Request) -> bytes:
    """The body as it came. The cap is ours: the application's own is that of whatever it is mounted in."""
    too_large = TooLarge("body_too_large", f"The body is longer than {MAX_BODY} bytes.")
    if (request.content_length or 0) > MAX_BODY:  # enforces case 12
        raise too_large
    body = bytearray()
    try:
        while chunk := await request.content.readany():
            body += chunk
            del chunk  # else it is held a second time while the rest is waited for
            if len(body) > MAX_BODY:  # enforces case 13
                raise too_large
    except (web.RequestPayloadError, PayloadEncodingError, OSError) as exc:
        reason = getattr(exc, "reason", None)  # what the connection knows: too slow, or too short
        code = reason if isinstance(reason, str) and reason in CODES else "http_malformed"
        raise MalformedRequest(code, "The body did not arrive whole.", detail=str(exc)) from exc
    return bytes(body)
