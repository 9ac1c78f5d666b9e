"""A TCP connection with manners: what HTTP sees as its transport, with TLS on top or without.

One object stands between two others. Towards the TCP transport it is a Protocol; towards the inner protocol (HTTP) it
is a Transport. Its life is a line: opening (a handshake), open, flushing (closed by us, data still waits), lingering
(our end of stream is out; the peer's bytes are read and thrown away until it closes, so that no TCP reset overtakes
the last answer), closed.
"""

import asyncio
import enum
from collections import deque
from collections.abc import Callable, Iterable
from typing import Any, Protocol, cast

from enrolld.tls.limits import StreamLimits, StreamReason
from enrolld.tls.proxy import ProxyHeader, ProxyHeaderError, read_header

OnRefused = Callable[[StreamReason, Any], None]
"""Told of every connection that is refused or cut, with the peer's address as get_extra_info("peername") gives it."""


IsProxy = Callable[[str], bool]
"""Whether a balancer speaks from this address."""


class Watch(Protocol):
    """Whoever counts connections and cuts those that are too many, by `StreamTransport.cut`."""

    def made(self, transport: "StreamTransport") -> None:
        """A connection is there, and its peer's address is known."""
        ...

    def opened(self, transport: "StreamTransport") -> None:
        """Its handshake is over."""
        ...

    def lost(self, transport: "StreamTransport") -> None:
        """It is gone."""
        ...


class State(enum.Enum):
    """Where a connection is in its life."""

    OPENING = enum.auto()
    OPEN = enum.auto()
    FLUSHING = enum.auto()
    LINGERING = enum.auto()
    CLOSED = enum.auto()


class StreamTransport(asyncio.Transport, asyncio.Protocol):
    """A plain TCP connection, and the base of the TLS one.

    A peer that half-closes still gets its answer when the inner protocol's eof_received returns True; else its end of
    stream closes the connection. A peer that does not read pins the TCP transport's buffer (64 KiB) and references to
    what was written, and is cut after `write_timeout` without progress.
    """

    __slots__ = (
        "_backlog",
        "_discarded",
        "_inner",
        "_inner_is_paused",
        "_is_proxy",
        "_limits",
        "_loop",
        "_make_inner",
        "_on_closed",
        "_on_refused",
        "_peer_has_finished",
        "_proxy_header",
        "_raw",
        "_raw_is_full",
        "_read_is_paused",
        "_state",
        "_tcp_eof",
        "_timer",
        "_unread",
        "_watch",
        "_watched",
        "_written",
        "peername",
    )

    piece_size = 64 * 1024
    """What is handed to the TCP transport at once."""

    def __init__(
        self,
        make_inner: Callable[[], asyncio.Protocol],
        limits: StreamLimits,
        *,
        on_refused: OnRefused | None,
        on_closed: Callable[["StreamTransport"], None],
        is_proxy: IsProxy | None = None,
        watch: Watch | None = None,
    ) -> None:
        super().__init__()
        self._is_proxy = is_proxy
        self._watch = watch
        self._watched = False
        self.peername: Any = None
        """As get_extra_info("peername"), and still so when the connection is gone; None before it is admitted."""
        self._proxy_header: bytearray | None = None  # what came of a PROXY header that is not complete
        self._make_inner = make_inner
        self._limits = limits
        self._on_refused = on_refused
        self._on_closed = on_closed
        self._loop = asyncio.get_running_loop()
        self._raw: asyncio.Transport | None = None
        self._inner: asyncio.Protocol | None = None
        self._state = State.OPENING
        self._backlog: deque[bytes | memoryview] = deque()  # plaintext that waits for room in the TCP transport
        self._unread: deque[bytes | memoryview] = deque()  # the peer's bytes that wait for the inner protocol
        self._raw_is_full = False
        self._read_is_paused = False
        self._inner_is_paused = False
        self._peer_has_finished = False
        self._tcp_eof = False
        self._discarded = 0
        self._written = 0  # bytes handed to the TCP transport
        self._timer: asyncio.TimerHandle | None = None  # handshake, then write stall, then linger: never two at once

    # Towards the inner protocol: asyncio.Transport

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        """What the TCP transport knows: "peername" (or a balancer told), "sockname", "socket"."""
        if name == "peername" and self.peername is not None:
            return self.peername
        return default if self._raw is None else self._raw.get_extra_info(name, default)

    def set_protocol(self, protocol: asyncio.BaseProtocol) -> None:
        """Replace the inner protocol."""
        self._inner = cast(asyncio.Protocol, protocol)

    def get_protocol(self) -> asyncio.BaseProtocol:
        """The inner protocol; before the connection is open, the connection itself."""
        return self if self._inner is None else self._inner

    @property
    def is_opening(self) -> bool:
        """Whether its handshake is still going on."""
        return self._state is State.OPENING

    @property
    def is_silent(self) -> bool:
        """Whether the peer has not begun its handshake, or not said whom it wants."""
        return self._state is State.OPENING

    @property
    def is_cut(self) -> bool:
        """Whether its TCP connection is closed, or about to be."""
        return self._raw is None or self._raw.is_closing()

    def cut(self, reason: StreamReason) -> None:
        """Close at once, because there are too many, and report why."""
        if self._state is not State.CLOSED and self._raw is not None and not self._raw.is_closing():
            self._report(reason)
            if self._state is State.OPENING:
                self._state = State.LINGERING  # lest the end be reported once more
            self.abort()

    def is_closing(self) -> bool:
        """Whether `write` is ignored: closed by us, or cut."""
        return self._state is not State.OPEN

    def is_reading(self) -> bool:
        """Whether the inner protocol gets data."""
        return self._state is State.OPEN and not self._read_is_paused

    def pause_reading(self) -> None:
        """Give the inner protocol no more data; the peer is held back by TCP."""
        if self.is_reading() and self._raw is not None:
            self._read_is_paused = True
            self._raw.pause_reading()

    def resume_reading(self) -> None:
        """Undo pause_reading."""
        if self._state is State.OPEN and self._read_is_paused:
            self._read_is_paused = False
            self._loop.call_soon(self._read_on)

    def write(self, data: bytes | bytearray | memoryview) -> None:
        """Send data; what does not fit into the TCP transport's buffer waits, unencrypted and by reference."""
        if self._state is not State.OPEN or not data:
            return
        piece = data if isinstance(data, bytes) else bytes(data)
        if self._backlog or self._raw_is_full or len(piece) > self.piece_size:
            self._backlog.append(piece)
            self._write_backlog()
        else:
            self._send(piece)

    def writelines(self, list_of_data: Iterable[bytes | bytearray | memoryview]) -> None:
        """Send the pieces one after another, in as few records as they fit."""
        if self._state is State.OPEN:
            self._backlog.extend(piece if isinstance(piece, bytes) else bytes(piece) for piece in list_of_data if piece)
            self._write_backlog()

    def write_eof(self) -> None:
        """Not supported: HTTP closes instead."""
        raise NotImplementedError

    def can_write_eof(self) -> bool:
        """Always False."""
        return False

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        """The TCP transport's water marks, in bytes as they go over the wire."""
        if self._raw is not None:
            self._raw.set_write_buffer_limits(high, low)

    def get_write_buffer_limits(self) -> tuple[int, int]:
        """The TCP transport's (low, high) water marks."""
        return (0, 0) if self._raw is None else self._raw.get_write_buffer_limits()

    def get_write_buffer_size(self) -> int:
        """Bytes that have not left this process."""
        return sum(map(len, self._backlog)) + (0 if self._raw is None else self._raw.get_write_buffer_size())

    def close(self) -> None:
        """Send what waits, then the end of stream, then close; a peer that does not take it is cut."""
        if self._state is State.OPENING:
            self.abort()
        elif self._state is State.OPEN:
            self._state = State.FLUSHING
            if not self._backlog:
                self._say_goodbye()

    def abort(self) -> None:
        """Close at once; data that waits is lost."""
        if self._raw is not None:
            self._raw.abort()

    # Towards the TCP transport: asyncio.Protocol

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """The TCP connection is there."""
        self._raw = cast(asyncio.Transport, transport)  # uvloop's is one in all but its class
        if self._is_proxy is None:
            self._admit()
            return
        peername = transport.get_extra_info("peername")
        # A unix socket's peer is whoever may open its path.
        if isinstance(peername, tuple) and peername and not self._is_proxy(str(peername[0])):
            self.cut(StreamReason.PROXY_UNKNOWN)
            return
        self._proxy_header = bytearray()
        self._start_timer(self._limits.proxy_header_timeout, self._cut_late_proxy)

    def connection_lost(self, exc: Exception | None) -> None:
        """The TCP connection is gone."""
        self._cancel_timer()
        self._state = State.CLOSED
        self._backlog.clear()
        self._unread.clear()
        inner, self._inner, self._raw = self._inner, None, None
        self._on_closed(self)
        if self._watch is not None and self._watched:
            self._watch.lost(self)
        if inner is not None:
            inner.connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Bytes from the peer."""
        if self._proxy_header is not None:
            data = self._read_proxy_header(data)
            if not data:
                return
        if self._state in (State.OPENING, State.OPEN) and not self._peer_has_finished:
            self._unread.append(data)
            self._take_unread()
            return
        self._discarded += len(data)
        if self._discarded > self._limits.max_discarded_bytes:
            self.abort()

    def eof_received(self) -> bool:
        """The peer's FIN. True keeps the TCP connection for the answer."""
        self._tcp_eof = True
        if self._state is State.OPEN:
            if not self._unread:
                self._finish_reading()
            return True
        return self._state is State.FLUSHING

    def pause_writing(self) -> None:
        """The TCP transport's buffer is over its high-water mark."""
        self._raw_is_full = True
        if self._state in (State.OPEN, State.FLUSHING):
            # enforces case 51
            self._start_timer(self._limits.write_timeout, self._check_progress, self._taken_by_tcp())
            if not self._inner_is_paused and self._inner is not None:
                self._inner_is_paused = True
                self._inner.pause_writing()

    def resume_writing(self) -> None:
        """The TCP transport's buffer is under its low-water mark."""
        self._raw_is_full = False
        if self._state in (State.OPEN, State.FLUSHING):
            self._cancel_timer()
            self._write_backlog()
        if not self._raw_is_full and not self._backlog and self._inner_is_paused:
            self._inner_is_paused = False
            if self._inner is not None:
                self._inner.resume_writing()

    # PROXY protocol

    def _cut_late_proxy(self) -> None:
        """The balancer took too long to say for whom it connects."""
        self.cut(StreamReason.PROXY_HEADER_TIMEOUT)

    def _read_proxy_header(self, data: bytes) -> bytes:
        """Take the header off the front; what follows it is the peer's."""
        buffer = self._proxy_header
        if buffer is None:
            return data
        buffer += data
        header: ProxyHeader | None = None
        try:
            header = read_header(buffer)
        except ProxyHeaderError:
            self.cut(StreamReason.PROXY_HEADER_BAD)
            return b""
        if header is None:
            return b""
        self._proxy_header = None
        self._cancel_timer()
        self.peername = header.peer  # None: the balancer speaks for itself
        self._admit()
        return bytes(buffer[header.size :])

    def _admit(self) -> None:
        """Begin, unless there are too many already."""
        if self.peername is None and self._raw is not None:
            self.peername = self._raw.get_extra_info("peername")
        if self._watch is not None:
            self._watched = True
            self._watch.made(self)
        if self._raw is not None and not self._raw.is_closing():
            self._begin()

    # What TLS does otherwise

    def _begin(self) -> None:
        self._open()

    def _take_unread(self) -> None:
        """Hand the peer's bytes on, as long as the inner protocol wants them."""
        while self._unread and self.is_reading() and self._inner is not None:
            self._inner.data_received(bytes(self._unread.popleft()))

    def _send(self, piece: bytes | memoryview) -> None:
        if self._raw is not None and not self._raw.is_closing():
            self._written += len(piece)
            self._raw.write(piece)

    def _say_last_word(self) -> None:
        """What is sent before the end of stream."""

    # Common

    def _open(self) -> None:
        self._state = State.OPEN
        if self._watch is not None:
            self._watch.opened(self)
        self._inner = self._make_inner()
        self._inner.connection_made(self)

    def _read_on(self) -> None:
        """The inner protocol wants data again: first what waits here, then the network."""
        self._take_unread()
        if self.is_reading() and self._raw is not None:
            if self._tcp_eof:
                self._finish_reading()
            else:
                self._raw.resume_reading()

    def _finish_reading(self) -> None:
        """The peer's end of stream, TLS's or TCP's, whichever comes first."""
        if self._peer_has_finished:
            return
        self._peer_has_finished = True
        if self._inner is None or not self._inner.eof_received():
            self.close()

    def _report(self, reason: StreamReason) -> None:
        if self._on_refused is not None:
            self._on_refused(reason, self.get_extra_info("peername"))

    def _write_backlog(self) -> None:
        """Send what waits, one full piece after another, until the TCP transport has enough."""
        backlog = self._backlog
        while backlog and not self._raw_is_full and self._state in (State.OPEN, State.FLUSHING):
            if self._raw is None or self._raw.is_closing():  # the peer has gone; connection_lost is on its way
                backlog.clear()
                return
            self._send(_take(backlog, self.piece_size))
        if not backlog and self._state is State.FLUSHING:
            self._say_goodbye()

    def _taken_by_tcp(self) -> int:
        """Bytes that have left this process so far."""
        return self._written - (0 if self._raw is None else self._raw.get_write_buffer_size())

    def _check_progress(self, taken_before: int) -> None:
        taken = self._taken_by_tcp()
        if taken > taken_before:
            self._start_timer(self._limits.write_timeout, self._check_progress, taken)
        else:
            self._report(StreamReason.WRITE_STALLED)
            self.abort()

    def _say_goodbye(self) -> None:
        self._cancel_timer()
        self._state = State.LINGERING
        raw = self._raw
        if raw is None or raw.is_closing():
            return
        self._say_last_word()
        self._start_timer(self._limits.shutdown_timeout, self._stop_lingering, self._taken_by_tcp())
        if self._tcp_eof:
            raw.close()
            return
        try:
            raw.write_eof()
        except OSError:  # the peer has reset the connection, and the event loop has not seen it yet
            self.abort()
        else:
            raw.resume_reading()

    def _stop_lingering(self, taken_before: int) -> None:
        taken = self._taken_by_tcp()
        if taken > taken_before and self._raw is not None and self._raw.get_write_buffer_size():
            self._start_timer(self._limits.write_timeout, self._stop_lingering, taken)  # a slow reader that reads
        else:
            self.abort()

    def _start_timer(self, seconds: float, callback: Callable[..., None], *args: int) -> None:
        self._cancel_timer()
        self._timer = self._loop.call_later(seconds, callback, *args)

    def _cancel_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None


def _take(pieces: deque[bytes | memoryview], size: int) -> bytes | memoryview:
    """Up to `size` bytes off the front; without a copy when one piece has them."""
    first = pieces.popleft()
    if len(first) > size:
        view = memoryview(first)
        pieces.appendleft(view[size:])
        return view[:size]
    if len(first) == size or not pieces:
        return first
    taken = bytearray(first)
    while pieces and len(taken) < size:
        piece = memoryview(pieces.popleft())
        room = size - len(taken)
        taken += piece[:room]
        if len(piece) > room:
            pieces.appendleft(piece[room:])
    return bytes(taken)
