"""HTTP for the daemon: aiohttp applications over TLS or plain TCP, on sockets that are already bound."""

import asyncio
import logging
import socket
from collections.abc import Callable
from typing import Any

from aiohttp import web

from enrolld.http_bodies import OpenBodies
from enrolld.http_connection import HttpConnection, host_of, peer_text
from enrolld.http_refusal import HttpLimits, HttpRefusedError, request_id_of
from enrolld.refusal_log import RefusalLog
from enrolld.request_id import new_request_id
from enrolld.tls import IsProxy, Select, StreamLimits, StreamReason, StreamServer, TlsLimits, TlsServer, Watch

__all__ = [
    "HttpLimits",
    "HttpRefusedError",
    "Listener",
    "OnRefused",
    "host_of",
    "request_id_of",
    "serve_plain",
    "serve_tls",
]

OnRefused = Callable[[str, str, str], None]
"""Told of every refusal before a handler's: a stable reason code, the peer as "address:port", the request id."""

_log = logging.getLogger("enrolld.http")

_BACKLOG = 1024

_HTTPS_ONLY_TEXT = b"This port speaks HTTPS only.\n"
_HTTPS_ONLY = (
    b"HTTP/1.1 400 Bad Request\r\nContent-Type: text/plain; charset=utf-8\r\nContent-Length: %d\r\n"
    b"Connection: close\r\n\r\n%b" % (len(_HTTPS_ONLY_TEXT), _HTTPS_ONLY_TEXT)
)


async def serve_tls(
    runner: web.AppRunner,
    sock: socket.socket,
    select: Select,
    *,
    tls_limits: TlsLimits | None = None,
    http_limits: HttpLimits | None = None,
    on_refused: OnRefused | None = None,
    refusals: RefusalLog | None = None,
    is_proxy: IsProxy | None = None,
    watch: Watch | None = None,
    bodies: OpenBodies | None = None,
) -> "Listener":
    """Serve the application over TLS. `runner` has been set up; `sock` is bound, and from now on the listener's.

    `request.transport.get_extra_info("tls")` is the TlsPeer, and `request.scheme` is "https".
    `refusals` limits the lines that refusals may write. With `is_proxy` the listener stands behind balancers: it takes
    connections from those alone, each with a PROXY header. `watch` counts connections and cuts what is too much;
    `bodies` bounds what unfinished bodies hold, over all listeners that share it.
    """
    listener = Listener(runner, http_limits, on_refused, refusals, bodies)
    streams = TlsServer(
        listener.make_connection,
        select,
        limits=tls_limits,
        on_refused=listener.stream_refused,
        plaintext_answer=_HTTPS_ONLY,
        is_proxy=is_proxy,
        watch=watch,
    )
    await listener.start(streams, sock)
    return listener


async def serve_plain(
    runner: web.AppRunner,
    sock: socket.socket,
    *,
    stream_limits: StreamLimits | None = None,
    http_limits: HttpLimits | None = None,
    on_refused: OnRefused | None = None,
    refusals: RefusalLog | None = None,
    is_proxy: IsProxy | None = None,
    watch: Watch | None = None,
    bodies: OpenBodies | None = None,
) -> "Listener":
    """Serve the application over plain TCP; otherwise as serve_tls."""
    listener = Listener(runner, http_limits, on_refused, refusals, bodies)
    streams = StreamServer(
        listener.make_connection,
        limits=stream_limits,
        on_refused=listener.stream_refused,
        is_proxy=is_proxy,
        watch=watch,
    )
    await listener.start(streams, sock)
    return listener


class Listener:
    """One listening socket and its connections; made by serve_tls and serve_plain."""

    def __init__(
        self,
        runner: web.AppRunner,
        limits: HttpLimits | None,
        on_refused: OnRefused | None,
        refusals: RefusalLog | None,
        bodies: OpenBodies | None = None,
    ) -> None:
        if runner.server is None:
            raise RuntimeError("the runner has not been set up")
        self._manager = runner.server
        self._on_refused = on_refused
        self._refusals = RefusalLog() if refusals is None else refusals
        self._streams: StreamServer | None = None
        self._server: asyncio.Server | None = None
        self.limits = HttpLimits() if limits is None else limits
        self.connections: set[HttpConnection] = set()
        self.is_draining = False
        self.bodies = OpenBodies() if bodies is None else bodies

    async def start(self, streams: StreamServer, sock: socket.socket) -> None:
        """Begin to accept."""
        self._streams = streams
        loop = asyncio.get_running_loop()
        self._server = await loop.create_server(streams, sock=sock, backlog=_BACKLOG)

    async def close(self, drain_timeout: float) -> None:
        """Accept no more, let requests in flight finish, and cut after `drain_timeout` seconds what is left."""
        self.is_draining = True
        if self._server is not None:
            self._server.close()
        for connection in list(self.connections):
            connection.drain()
        if self._streams is None:
            return
        try:
            async with asyncio.timeout(drain_timeout):
                await self._streams.wait_closed()
        except TimeoutError:
            self._streams.abort()
            await self._streams.wait_closed()

    def make_connection(self) -> "HttpConnection":
        """The protocol of one open connection."""
        return HttpConnection(self._manager, self)

    def stream_refused(self, reason: StreamReason, peername: Any) -> None:
        """A connection was refused or cut below HTTP."""
        self.refused(reason.value, peer_text(peername), new_request_id())

    def refused(self, reason: str, peer: str, request_id: str, detail: str = "", *, is_logged: bool = False) -> None:
        """Log one line, unless that was done or the source has had its share, and tell whoever counts."""
        if not is_logged and self._refusals.admits(host_of(peer), "", reason):
            _log.info("refused %s: %s%s (request %s)", peer, reason, f" {detail[:200]!a}" if detail else "", request_id)
        if self._on_refused is not None:
            self._on_refused(reason, peer, request_id)
