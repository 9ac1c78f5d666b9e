"""What a worker does: its listeners, which application answers where, and one log line for each request.

https serves EST, http what is published, both of them SCEP, admin the worker's health. None serves another's addresses.
"""

import asyncio
import signal
import socket
import time
from collections.abc import Awaitable, Callable, Mapping
from typing import TYPE_CHECKING, Any

from aiohttp import web
from aiohttp.typedefs import Middleware

from ca_core.errors import MalformedRequest
from ca_core.model import Call, TlsPeer
from enrolld import health, log, process, publication
from enrolld.chores import Chores
from enrolld.contexts import Contexts
from enrolld.http_refusal import LOGGED, OWN_WORDS
from enrolld.http_server import Listener, host_of, request_id_of, serve_plain, serve_tls
from enrolld.process import Ready, WorkerSettings
from enrolld.refusal_log import RefusalLog
from enrolld.request_id import new_request_id
from enrolld.tls import Select
from est_server.app import LOG_FIELDS as EST_FIELDS
from est_server.app import make_app
from scep_server.app import LOG_FIELDS as SCEP_FIELDS
from scep_server.app import Scep, is_scep_path

if TYPE_CHECKING:
    from ca_core.core import Core

__all__ = ["Serving", "request_logger", "run", "serve"]

_DRAIN_SECONDS = 15.0
_MAX_PUBLIC_BODY = 1024  # nothing is ever sent to what only publishes


async def run(core: "Core", settings: WorkerSettings, channel: socket.socket) -> None:
    """Serve until SIGTERM, or until the supervisor's end of `channel` closes."""
    loop = asyncio.get_running_loop()
    stop = asyncio.Event()
    loop.add_signal_handler(signal.SIGTERM, stop.set)
    await core.server_certificates.refresh()
    select = Contexts(core.server_certificates)
    select(None)  # what can't be served is found out here, not by the first client
    refusals = RefusalLog()
    serving = await serve(core, settings, select, refusals)
    chores = asyncio.create_task(Chores(core, settings.names, refusals).run())
    process.send(channel, Ready())
    channel.setblocking(False)
    # Nothing more is ever sent to us: readable means that the supervisor is gone.
    loop.add_reader(channel.fileno(), stop.set)
    try:
        await stop.wait()
    finally:
        loop.remove_reader(channel.fileno())
        chores.cancel()
        await asyncio.gather(chores, return_exceptions=True)
        await serving.close(_DRAIN_SECONDS)
        refusals.tell()


class Serving:
    """The listeners of one worker."""

    def __init__(self) -> None:
        self.listeners: list[Listener] = []
        self._runners: list[web.AppRunner] = []

    async def set_up(self, app: web.Application) -> web.AppRunner:
        """A runner of the application, set up."""
        runner = web.AppRunner(app, handle_signals=False, access_log=None)
        await runner.setup()
        self._runners.append(runner)
        return runner

    async def close(self, drain_seconds: float) -> None:
        """Accept no more, and let what is in flight finish."""
        await asyncio.gather(*(listener.close(drain_seconds) for listener in self.listeners))
        await asyncio.gather(*(runner.cleanup() for runner in self._runners))


async def serve(core: "Core", settings: WorkerSettings, select: Select, refusals: RefusalLog) -> Serving:
    """Begin to serve on every inherited socket."""

    def record(reason: str, peer: str, request_id: str) -> None:
        """Keep what was refused before it was a request, so that `explain` finds it."""
        call = Call(request_id, "http", "connection", host_of(peer))
        core.registration.refused(MalformedRequest(reason, "Refused before it was a request."), call, None)

    serving = Serving()
    scep = scep_first(Scep(core, peer=_peer, new_request_id=new_request_id))
    runners: dict[str, web.AppRunner] = {}
    for inherited in settings.sockets:
        kind = inherited.kind
        if kind not in runners:
            app = _APPLICATIONS[kind](core)
            if kind != "admin":
                # whoever watches health asks every few seconds, and needs no log of it
                app.middlewares.insert(0, request_logger(refusals))
                app.middlewares.append(scep)
            runners[kind] = await serving.set_up(app)
        sock = socket.socket(fileno=inherited.descriptor)
        sock.setblocking(False)
        if kind == "https":
            serving.listeners.append(await serve_tls(runners[kind], sock, select, on_refused=record, refusals=refusals))
        else:
            serving.listeners.append(await serve_plain(runners[kind], sock, on_refused=record, refusals=refusals))
    return serving


def request_logger(refusals: RefusalLog) -> Middleware:
    """One line per request, with the ECS fields that a protocol puts under its `LOG_FIELDS` into its response.

    Of refusals only those have a line that `refusals` admits.
    """

    @web.middleware
    async def log_requests(
        request: web.Request, handler: Callable[[web.Request], Awaitable[web.StreamResponse]]
    ) -> web.StreamResponse:
        started = time.monotonic()
        status, request_id = 500, ""
        fields: Mapping[str, Any] = {}
        try:
            response = await handler(request)
            status, fields = response.status, response.get(EST_FIELDS) or response.get(SCEP_FIELDS) or {}
            request_id = response.headers.get("X-Request-Id", "")
        except web.HTTPException as exc:
            status = exc.status
            fields = {"event.code": OWN_WORDS[status][0]} if status in OWN_WORDS else {}
            raise
        finally:
            request[LOGGED] = True
            client = request.remote or ""
            code = str(fields.get("event.code", status))
            is_refusal = status >= 400 or "event.code" in fields  # a CertRep FAILURE is a 200
            if not is_refusal or refusals.admits(client, str(fields.get("enrolld.realm", "")), code):
                tls = request.transport.get_extra_info("tls") if request.transport is not None else None
                log.request(
                    request_id=request_id or request_id_of(request),
                    client=client,
                    method=request.method,
                    path=request.path,
                    status=status,
                    is_refusal=is_refusal,
                    seconds=time.monotonic() - started,
                    fields={"tls.version": tls.version, "tls.cipher": tls.cipher, **fields} if tls else fields,
                )
        return response

    return log_requests


def scep_first(scep: Scep) -> Middleware:
    """SCEP's addresses, which are the same on every listener, before those of the application."""

    @web.middleware
    async def serve_scep(
        request: web.Request, handler: Callable[[web.Request], Awaitable[web.StreamResponse]]
    ) -> web.StreamResponse:
        return await scep.serve(request) if is_scep_path(request.raw_path) else await handler(request)

    return serve_scep


def _est(core: "Core") -> web.Application:
    return make_app(core, peer=_peer, new_request_id=new_request_id)


def _published(core: "Core") -> web.Application:
    app = web.Application(client_max_size=_MAX_PUBLIC_BODY)
    publication.add_routes(app, core)
    return app


def _admin(core: "Core") -> web.Application:
    app = web.Application(client_max_size=_MAX_PUBLIC_BODY)
    health.add_routes(app, core)
    return app


_APPLICATIONS: dict[str, Callable[[Any], web.Application]] = {"https": _est, "http": _published, "admin": _admin}


def _peer(request: web.Request) -> TlsPeer | None:
    if request.transport is None:
        raise ConnectionResetError("the peer left")
    tls = request.transport.get_extra_info("tls")
    if tls is None:
        return None
    return TlsPeer(tls.version, tls.chain, tls.tls_unique, tls.tls_exporter, tls.server_name)
