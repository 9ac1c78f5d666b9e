"""TLS handshakes that came to a good end, counted beside whatever else watches the connections."""

from enrolld.metrics.meter import WorkerMeter
from enrolld.tls import StreamTransport, TlsPeer, Watch

__all__ = ["CountedHandshakes"]


class CountedHandshakes:
    """A `Watch` that counts, and passes everything on."""

    def __init__(self, meter: WorkerMeter, inner: Watch | None) -> None:
        self._meter = meter
        self._inner = inner

    def made(self, transport: StreamTransport) -> None:
        """See `Watch`."""
        if self._inner is not None:
            self._inner.made(transport)

    def opened(self, transport: StreamTransport) -> None:
        """See `Watch`."""
        peer = transport.get_extra_info("tls")
        if isinstance(peer, TlsPeer):
            self._meter.shook_hands(peer)
        if self._inner is not None:
            self._inner.opened(transport)

    def lost(self, transport: StreamTransport) -> None:
        """See `Watch`."""
        if self._inner is not None:
            self._inner.lost(transport)
