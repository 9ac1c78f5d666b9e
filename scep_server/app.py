"""SCEP on aiohttp, over http and https: paths, operations, and an answer whatever happens.

`/scep` and `/scep/<label>`, each also with `/pkiclient.exe`, and what routers and NDES call it. What is none of these
is not found, and nothing falls back to another realm. A CA identifier in `message=` is passed over: each client puts
something else there, and which realm is meant the path says.
"""

import datetime as dt
import logging
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace

from aiohttp import web

from ca_core.errors import NotFound, Overloaded, Refusal, SealingFailed, Unavailable
from ca_core.limits import Buckets
from ca_core.model import Call, TlsPeer
from ca_core.records.times import utc_now
from ca_core.registration.realm import Resolved
from scep_server.answer import Answer, failure, refusal_answer
from scep_server.exchange import Exchange, ServedCore
from scep_server.handlers import find, pki_message
from scep_server.query import Query, is_scep_path, read_label, read_query
from scep_server.seen import SeenKeys
from scep_server.tick import Tick

__all__ = ["LOG_FIELDS", "Scep", "is_scep_path"]

log = logging.getLogger(__name__)

LOG_FIELDS: web.ResponseKey[dict[str, str]] = web.ResponseKey("scep_log_fields", dict)
"""What each response carries for the access log and for metrics, by ECS names: `event.code` of a refusal, realm,
operation, transaction, `enrolld.outcome` (issued, pending), and what is proven of who asked.
"""


@dataclass(slots=True)
class _Progress:
    """How far a request has come, for whatever it fails at."""

    call: Call
    resolved: Resolved | None = None
    allow: str = ""
    told: dict[str, str] = field(default_factory=dict)


class Scep:
    """Answers every request whose path `is_scep_path`.

    `peer` is the other end of the request's TLS connection, None without TLS; `new_request_id` makes the id that stands
    in the answer and in every record of the request.
    """

    def __init__(
        self,
        core: ServedCore,
        *,
        peer: Callable[[web.Request], TlsPeer | None],
        new_request_id: Callable[[], str],
        clock: Callable[[], dt.datetime] = utc_now,
        tick: Tick | None = None,
    ) -> None:
        self._core = core
        self._peer = peer
        self._new_request_id = new_request_id
        self._clock = clock
        self._tick = tick or Tick()
        self._seen = SeenKeys()
        self._complaints = Buckets(rate=0.5, burst=20, clock=time.monotonic)

    async def serve(self, request: web.Request) -> web.Response:
        """Answer one request, whatever happens."""
        request_id = self._new_request_id()
        tls = self._peer(request)
        query = read_query(request.raw_path)
        call = Call(
            request_id=request_id,
            protocol="scep",
            operation="unknown",
            source=request.remote or "",
            tls_version=tls.version if tls else None,
        )
        progress = _Progress(call)
        try:
            answer = await self._answer(request, query, tls, progress)
        except Refusal as refusal:
            # Not kept under a name: its traceback refers to this frame, and with it to the body, until a collection.
            answer = refusal_answer(
                self._core.registration.refused(refusal, progress.call, progress.resolved), request_id, progress.allow
            )
        except Overloaded as error:  # nothing is recorded: there is too much to do already
            answer = failure(error, request_id)
        except Exception as error:
            # A full disk must not be filled up by saying so.
            if self._complaints.take(type(error).__name__):
                ecs = {"enrolld.request_id": request_id}
                if isinstance(error, Unavailable | SealingFailed):  # no bug, and needs no stack
                    log.error("request failed: %s", error, extra={"ecs": ecs})
                else:
                    log.exception("request failed", extra={"ecs": ecs})
            if not getattr(error, "recorded", False):
                self._core.registration.failed(progress.call, progress.resolved, type(error).__name__)
            answer = failure(error, request_id)
        return _response(answer, request_id, progress)

    async def _answer(self, request: web.Request, query: Query, tls: TlsPeer | None, progress: _Progress) -> Answer:
        is_served, label = read_label(request.raw_path)
        if not is_served:
            raise NotFound("http_not_found", "There is nothing at this address.")
        server_name = tls.server_name if tls else _host(request)  # enforces case 52
        progress.resolved = await self._core.realms.resolve("scep", label, server_name)
        served = find(query, request.method)
        progress.call = replace(progress.call, operation=served.name)
        if request.method not in served.methods:
            progress.allow = ", ".join(served.methods)
            raise NotFound("method_not_allowed", f"This operation takes {' or '.join(served.methods)} only.")
        exchange = Exchange(
            self._core, progress.resolved, progress.call, self._clock, self._tick, self._seen, progress.told
        )
        if served.answer is None:
            return await pki_message(exchange, request, query, self._core)
        return await served.answer(exchange)


def _host(request: web.Request) -> str | None:
    """The host that the request names, in lower case and without its port: over plain HTTP, nothing else tells."""
    name = request.headers.get("Host", "").strip().lower()
    host, colon, port = name.rpartition(":")
    if colon and port.isdigit():
        name = host
    return name.removesuffix(".") or None


def _response(answer: Answer, request_id: str, progress: _Progress) -> web.Response:
    headers = {
        "Server": "enrolld",
        "X-Request-Id": request_id,
        "Content-Type": answer.content_type,
        "Cache-Control": "no-store",
        **answer.headers,
    }
    response = web.Response(status=answer.status, body=answer.body, headers=headers)
    call = answer.call or progress.call
    fields = {
        "event.code": answer.code,
        "enrolld.realm": progress.resolved.realm.name if progress.resolved else "",
        "enrolld.operation": call.operation,
        "enrolld.transaction_id": call.transaction_id or "",
        "enrolld.outcome": answer.outcome,
        **progress.told,
    }
    response[LOG_FIELDS] = {name: value for name, value in fields.items() if value}
    return response
