"""What a worker does: its listeners, which application answers where, and one log line for each request.

https serves EST, http what is published, both of them SCEP, admin health and metrics. None serves another's addresses.
"""

import asyncio
import contextlib
import logging
import resource
import signal
import socket
import time
from collections.abc import Awaitable, Callable, Mapping
from typing import TYPE_CHECKING, Any

from aiohttp import web
from aiohttp.typedefs import Middleware

from ca_core.errors import CoreError, MalformedRequest
from ca_core.model import Call, TlsPeer
from ca_core.records.opening import is_shared
from enrolld import health, log, process, publication
from enrolld.board import Board
from enrolld.chores import Chores
from enrolld.connections import Connections
from enrolld.contexts import Contexts
from enrolld.http_bodies import OpenBodies
from enrolld.http_refusal import LOGGED, OWN_WORDS
from enrolld.http_server import Listener, host_of, request_id_of, serve_plain, serve_tls
from enrolld.limits import Limits, Networks
from enrolld.metrics import catalogue as metrics
from enrolld.metrics import exposition
from enrolld.metrics.counts import Counts, Key, Numbers
from enrolld.metrics.handshakes import CountedHandshakes
from enrolld.metrics.link import Link
from enrolld.metrics.meter import WorkerMeter
from enrolld.process import Ready, WorkerSettings
from enrolld.refusal_log import RefusalLog
from enrolld.request_fields import GONE, Requested, connection_fields, operation_of, outcome_of, protocol_of
from enrolld.request_id import new_request_id
from enrolld.tls import Select
from est_server.app import LOG_FIELDS as EST_FIELDS
from est_server.app import make_app
from scep_server.app import LOG_FIELDS as SCEP_FIELDS
from scep_server.app import Scep, is_scep_path

if TYPE_CHECKING:
    from ca_core.core import Core

__all__ = ["Serving", "request_logger", "run", "serve"]

_LOG = logging.getLogger(__name__)
_DRAIN_SECONDS = 15.0
_ADMIN_CONNECTIONS = 64
_OTHER_DESCRIPTORS = 64 + _ADMIN_CONNECTIONS  # the store, its log, sockets that listen, and what is opened now and then
_MAX_PUBLIC_BODY = 1024  # nothing is ever sent to what only publishes


async def run(core: "Core", settings: WorkerSettings, channel: socket.socket, link: Link | None = None) -> None:
    """Serve until SIGTERM, or until the supervisor's end of `channel` closes.

    `link` says there what was counted; without one the worker counts all the same.
    """
    link = link or Link(Counts(), settings.number)
    meter = WorkerMeter(link.counts)
    loop = asyncio.get_running_loop()
    stop = asyncio.Event()
    loop.add_signal_handler(signal.SIGTERM, stop.set)
    select = Contexts(core.server_certificates)
    try:
        await core.server_certificates.refresh()
        core.server_certificates.select(None)  # what can't be served is found out here, not by the first client
    except CoreError as exc:
        if not is_shared(settings.store_url):
            raise
        # Of several nodes: it says on /readyz what it lacks, publishes what needs no key, and is not sent any device.
        _LOG.error("this node is not ready: %s", exc)
    refusals = RefusalLog()
    serving = await serve(core, settings, select, refusals, meter, link.totals)
    link.readers.append(lambda counts: _measure(counts, serving, core))
    chores = asyncio.create_task(Chores(core, settings.names, refusals, meter=meter).run())
    with contextlib.suppress(ConnectionError):  # the supervisor is gone already, which the link finds out
        process.send(channel, Ready())
    process.outlive_the_supervisor()  # from here on there may be requests to finish
    await link.open(channel)
    talking = asyncio.create_task(link.run())
    talking.add_done_callback(lambda _: stop.set())  # it ends when the supervisor is gone
    try:
        await stop.wait()
    finally:
        chores.cancel()
        # Together: the ports are for whoever comes next, however long a chore that waits for its store takes to end.
        await asyncio.gather(serving.close(_DRAIN_SECONDS), asyncio.gather(chores, return_exceptions=True))
        refusals.tell()
        talking.cancel()
        await asyncio.gather(talking, return_exceptions=True)


class Serving:
    """The listeners of one worker."""

    def __init__(self) -> None:
        self.listeners: list[Listener] = []
        self.connections: Connections | None = None
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


async def serve(
    core: "Core",
    settings: WorkerSettings,
    select: Select,
    refusals: RefusalLog,
    meter: WorkerMeter,
    totals: Callable[[], Awaitable[Mapping[Key, Numbers]]],
) -> Serving:
    """Begin to serve on every inherited socket; `totals` are the sums of all workers for /metrics."""

    def record(reason: str, peer: str, request_id: str) -> None:
        """Keep what was refused before it was a request, so that `explain` finds it."""
        call = Call(request_id, "http", "connection", host_of(peer))
        core.registration.refused(MalformedRequest(reason, "Refused before it was a request."), call, None)

    serving = Serving()
    connections = serving.connections = watch_connections(settings)
    few = Limits(connections=_ADMIN_CONNECTIONS, handshakes=_ADMIN_CONNECTIONS)
    admin_connections = Connections(few, Board.make(1).seat(0), _ADMIN_CONNECTIONS)
    proxies = Networks(settings.proxies)
    bodies = OpenBodies()
    scep = scep_first(Scep(core, peer=_peer, new_request_id=new_request_id))
    runners: dict[str, web.AppRunner] = {}
    for inherited in settings.sockets:
        kind = inherited.kind
        if kind not in runners:
            app = _APPLICATIONS[kind](core)
            if kind != "admin":
                # whoever watches health asks every few seconds, and needs no log of it
                app.middlewares.insert(0, request_logger(refusals, meter, "est" if kind == "https" else "http"))
                app.middlewares.append(scep)
            else:
                exposition.add_routes(app, core, settings.version, totals)
            runners[kind] = await serving.set_up(app)
        sock = socket.socket(fileno=inherited.descriptor)
        sock.setblocking(False)
        is_proxy = proxies.has if inherited.proxied else None
        # Whoever watches health must get in when the house is full, so it has a small one of its own.
        watch = connections if kind != "admin" else admin_connections
        if kind == "https":
            listener = await serve_tls(
                runners[kind],
                sock,
                select,
                on_refused=record,
                refusals=refusals,
                is_proxy=is_proxy,
                bodies=bodies,
                watch=CountedHandshakes(meter, watch),
            )
        else:
            listener = await serve_plain(
                runners[kind], sock, on_refused=record, refusals=refusals, is_proxy=is_proxy, bodies=bodies, watch=watch
            )
        serving.listeners.append(listener)
    return serving


def _measure(counts: Counts, serving: "Serving", core: "Core") -> None:
    """What waits and is open in this worker, for whoever asks for metrics."""
    connections = serving.connections
    if connections is not None:
        counts.set(metrics.CONNECTIONS, connections.open)
        counts.set(metrics.HANDSHAKES_OPEN, connections.handshakes)
    counts.set(metrics.REQUESTS_WAITING, core.gate.waiting)
    counts.add(metrics.OVERLOADED, amount=core.gate.take_refused())


def watch_connections(settings: WorkerSettings) -> Connections:
    """Counts this worker's connections on the board that all workers share."""
    found = settings.board
    board = Board(found.descriptor, found.rows) if found else Board.make(1)
    descriptors = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    own_limit = settings.limits.connections if descriptors < 0 else max(16, descriptors - _OTHER_DESCRIPTORS)
    return Connections(settings.limits, board.seat(found.row if found else 0), own_limit)


def request_logger(refusals: RefusalLog, meter: Requested | None = None, protocol: str = "http") -> Middleware:
    """One line per request, with the ECS fields that a protocol puts under its `LOG_FIELDS` into its response.

    Of refusals only those have a line that `refusals` admits; `meter` is told of all. `protocol` is that of what is
    not SCEP.
    """

    @web.middleware
    async def log_requests(
        request: web.Request, handler: Callable[[web.Request], Awaitable[web.StreamResponse]]
    ) -> web.StreamResponse:
        started = time.monotonic()
        status, request_id = 500, ""
        fields: dict[str, Any] = {}
        try:
            response = await handler(request)
            status, fields = response.status, response.get(EST_FIELDS) or response.get(SCEP_FIELDS) or {}
            request_id = response.headers.get("X-Request-Id", "")
        except web.HTTPException as exc:
            status = exc.status
            fields = {"event.code": OWN_WORDS[status][0]} if status in OWN_WORDS else {}
            raise
        except (ConnectionError, asyncio.CancelledError):
            status = GONE
            raise
        finally:
            request[LOGGED] = True
            client = request.remote or ""
            code = str(fields.get("event.code", status))
            is_refusal = status >= 400 or "event.code" in fields  # a CertRep FAILURE is a 200
            realm, seconds = str(fields.get("enrolld.realm", "")), time.monotonic() - started
            if meter is not None:
                outcome, operation = outcome_of(status, fields), operation_of(request, fields)
                meter.requested(realm, protocol_of(request, protocol), operation, outcome, seconds)
            if not is_refusal or refusals.admits(client, realm, code):
                log.request(
                    request_id=request_id or request_id_of(request),
                    client=client,
                    method=request.method,
                    path=request.path,
                    status=status,
                    is_refusal=is_refusal,
                    seconds=seconds,
                    fields=connection_fields(request) | fields,
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
