"""EST on aiohttp: from a request's path to an operation, and from an answer to the wire.

`/.well-known/est/<operation>` and `/.well-known/est/<label>/<operation>`, one trailing slash tolerated. The path is
read from the request line as it was sent and decoded once: whatever is more than two plain segments (dots, encoded
slashes, empty segments, an absolute URI) is not found, and nothing falls back to another realm.
"""

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass

from aiohttp import web

from ca_core.errors import NotFound, Overloaded, Refusal, SealingFailed, Unavailable
from ca_core.limits import Buckets
from ca_core.model import Call, TlsPeer
from ca_core.names import decode_segment
from ca_core.registration.realm import Resolved
from est_server.errors import Answer, failure, refusal_answer
from est_server.handlers import MAX_BODY, NOT_SERVED, OPERATIONS, Core, Exchange, Served

__all__ = ["LOG_FIELDS", "make_app"]

log = logging.getLogger(__name__)

LOG_FIELDS: web.ResponseKey[dict[str, str]] = web.ResponseKey("log_fields", dict)
"""What each response carries for the access log and for metrics, by ECS names: `event.code` of a refusal,
`enrolld.realm`, `enrolld.operation`, `enrolld.outcome` (issued, pending), and what is proven of who asked.
"""

# "The EST server MUST support the use of the path-prefix of "/.well-known/" as defined in [RFC5785] and the registered
# name of "est"." -- RFC 7030 3.2.2
PREFIX = "/.well-known/est/"


def make_app(
    core: Core, *, peer: Callable[[web.Request], TlsPeer | None], new_request_id: Callable[[], str]
) -> web.Application:
    """An application that serves EST and answers 404 to everything else, alone or mounted at `/.well-known/est`.

    `peer` is the other end of the request's TLS connection, None when there is no TLS; `new_request_id` makes the id
    that stands in the answer and in every record of the request.
    """
    app = web.Application(client_max_size=MAX_BODY)
    complaints = Buckets(rate=0.5, burst=20, clock=time.monotonic)
    app.router.add_route("*", r"/{path:[\s\S]*}", _Endpoint(core, peer, new_request_id, complaints).serve)
    return app


@dataclass(frozen=True, slots=True)
class _Endpoint:
    core: Core
    peer: Callable[[web.Request], TlsPeer | None]
    new_request_id: Callable[[], str]
    complaints: Buckets

    async def serve(self, request: web.Request) -> web.Response:
        """Answer one request, whatever happens."""
        request_id = self.new_request_id()
        tls = self.peer(request)
        label, operation = _read_path(request.raw_path)
        call = Call(
            request_id=request_id,
            protocol="est",
            operation=operation if operation in OPERATIONS or operation in NOT_SERVED else "unknown",
            source=request.remote or "",
            tls_version=tls.version if tls else None,
        )
        resolved: Resolved | None = None
        allow = ""
        told: dict[str, str] = {}
        try:
            served = _find(operation)
            if tls is None:  # enforces case 43
                # "HTTPS MUST be used." -- RFC 7030 3.3
                raise NotFound("operation_not_served", "EST is served over HTTPS only.")
            resolved = await self.core.realms.resolve("est", label, tls.server_name)
            if request.method not in served.methods:
                allow = ", ".join(served.methods)
                raise NotFound("method_not_allowed", f"This operation takes {served.methods[0]} only.")
            wrap = "User-Agent" in request.headers  # strongSwan, which needs one line, sends none
            answer = await served.handle(Exchange(request, self.core, resolved, tls, call, wrap, told))
        except Refusal as refusal:
            if refusal.device is not None:
                told["enrolld.device"] = refusal.device[1]
            answered = self.core.registration.refused(refusal, call, resolved)
            answer = refusal_answer(
                answered,
                request_id,
                realm=resolved.realm.name if resolved else None,
                takes_passwords=resolved is None or resolved.realm.asks_for_password,
                allow=allow,
            )
        except Overloaded as error:  # nothing is recorded: there is too much to do already
            answer = failure(error, request_id)
        except Exception as error:
            # A full disk must not be filled up by saying so.
            if self.complaints.take(type(error).__name__):
                ecs = {"enrolld.request_id": request_id}
                if isinstance(error, Unavailable | SealingFailed):  # no bug, and needs no stack
                    log.error("request failed: %s", error, extra={"ecs": ecs})
                else:
                    log.exception("request failed", extra={"ecs": ecs})
            if not getattr(error, "recorded", False):
                self.core.registration.failed(call, resolved, type(error).__name__)
            answer = failure(error, request_id)
        response = _response(answer, request_id)
        fields = {
            "event.code": answer.code,
            "enrolld.realm": resolved.realm.name if resolved else "",
            "enrolld.operation": call.operation,
            "enrolld.outcome": answer.outcome,
            **told,
        }
        response[LOG_FIELDS] = {name: value for name, value in fields.items() if value}
        return response


def _find(operation: str) -> Served:
    if operation in NOT_SERVED:
        raise NotFound("operation_not_served", "This optional operation is not served.")
    if (served := OPERATIONS.get(operation)) is None:
        raise NotFound("operation_unknown", "No such EST operation.")
    return served


def _read_path(target: str) -> tuple[str | None, str]:
    """Label (None without any) and operation in a request target; the operation is empty when it is no EST path."""
    path = target.partition("?")[0]
    if not path.startswith(PREFIX):
        return None, ""
    segments = [decode_segment(segment) for segment in path.removeprefix(PREFIX).removesuffix("/").split("/")]
    # "An EST server MAY provide service for multiple CAs as indicated by an OPTIONAL additional path segment between
    # the registered application name and the operation path." -- RFC 7030 3.2.2
    if len(segments) == 1 and segments[0]:
        return None, segments[0]
    if len(segments) == 2 and segments[0] and segments[1]:
        return segments[0], segments[1]
    return None, ""


def _response(answer: Answer, request_id: str) -> web.Response:
    """The answer as every known client can read it.

    Names in title case (libest compares them so), an exact Content-Length, no chunks, and a head far under the 1,000
    bytes that strongSwan and others hold.
    """
    headers = {"Server": "enrolld", "X-Request-Id": request_id}
    if answer.content_type is not None:
        headers["Content-Type"] = answer.content_type
    if answer.base64:
        # Without it, BouncyCastle and est-client-python take the base64 for DER, although RFC 8951 has removed it.
        headers["Content-Transfer-Encoding"] = "base64"
    headers.update(answer.headers)
    return web.Response(status=answer.status, body=answer.body or None, headers=headers)
