"""A protocol factory that knows its connections: plain TCP, and the base of the TLS one."""

import asyncio
from collections.abc import Callable

from enrolld.tls.limits import StreamLimits
from enrolld.tls.stream import IsProxy, OnRefused, StreamTransport, Watch


class StreamServer:
    """A protocol factory for loop.create_server that knows which of its connections are alive."""

    def __init__(
        self,
        make_inner: Callable[[], asyncio.Protocol],
        *,
        limits: StreamLimits | None = None,
        on_refused: OnRefused | None = None,
        is_proxy: IsProxy | None = None,
        watch: Watch | None = None,
    ) -> None:
        self._is_proxy = is_proxy
        self._watch = watch
        self._make_inner = make_inner
        self._stream_limits = StreamLimits() if limits is None else limits
        self._on_refused = on_refused
        self._all_closed: asyncio.Future[None] | None = None
        self.connections: set[StreamTransport] = set()
        """Every connection that is not closed, those in a handshake included."""

    def __call__(self) -> StreamTransport:
        """The transport of one accepted connection."""
        transport = self._make_transport()
        self.connections.add(transport)
        return transport

    async def wait_closed(self) -> None:
        """Wait until no connection is left."""
        while self.connections:
            if self._all_closed is None:
                self._all_closed = asyncio.get_running_loop().create_future()
            await asyncio.shield(self._all_closed)

    def abort(self) -> None:
        """Cut every connection."""
        for transport in list(self.connections):
            transport.abort()

    def _make_transport(self) -> StreamTransport:
        return StreamTransport(
            self._make_inner,
            self._stream_limits,
            on_refused=self._on_refused,
            on_closed=self._forget,
            is_proxy=self._is_proxy,
            watch=self._watch,
        )

    def _forget(self, transport: StreamTransport) -> None:
        self.connections.discard(transport)
        if not self.connections and self._all_closed is not None:
            self._all_closed.set_result(None)
            self._all_closed = None
