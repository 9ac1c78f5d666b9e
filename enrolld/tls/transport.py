"""TLS on top of the stream: the handshake with its deadline, and records in both directions."""

import asyncio
from collections.abc import Callable
from typing import Any

from enrolld.tls.context import Select
from enrolld.tls.engine import RECORD_SIZE, TlsEngine
from enrolld.tls.limits import StreamReason, TlsLimits, TlsRefusedError
from enrolld.tls.peer import TlsPeer
from enrolld.tls.server import StreamServer
from enrolld.tls.stream import IsProxy, OnRefused, State, StreamTransport, Watch

_HANDSHAKE_RECORD = 0x16  # RFC 8446 5.1: ContentType handshake

# About 130 answers in a connection's life. Without a bound, a peer that asks and never reads would pin them all.
_MAX_ANSWERED = 4096


class TlsTransport(StreamTransport):
    """A TLS connection over a TCP transport.

    get_extra_info("tls") is the TlsPeer; "sslcontext" is true, which is how aiohttp knows https; every other name is
    the TCP transport's.
    """

    __slots__ = ("_answered", "_engine", "_peer", "_plaintext_answer", "_tls_limits")

    piece_size = RECORD_SIZE

    def __init__(
        self,
        make_inner: Callable[[], asyncio.Protocol],
        limits: TlsLimits,
        select: Select,
        *,
        on_refused: OnRefused | None,
        on_closed: Callable[[StreamTransport], None],
        plaintext_answer: bytes,
        is_proxy: IsProxy | None = None,
        watch: Watch | None = None,
    ) -> None:
        super().__init__(make_inner, limits, on_refused=on_refused, on_closed=on_closed, is_proxy=is_proxy, watch=watch)
        self._tls_limits = limits
        self._plaintext_answer = plaintext_answer
        self._engine = TlsEngine(select, limits)
        self._peer: TlsPeer | None = None
        self._answered = 0  # bytes

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        """See the class."""
        if name == "tls":
            return default if self._peer is None else self._peer
        if name == "sslcontext":
            return True
        return super().get_extra_info(name, default)

    @property
    def is_silent(self) -> bool:
        """Whether there is no whole ClientHello yet."""
        return self._state is State.OPENING and self._engine.context is None

    def connection_lost(self, exc: Exception | None) -> None:
        """The TCP connection is gone."""
        if self._state is State.OPENING and exc is not None:
            self._report_early_close()
        self._engine.dispose()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Ciphertext from the peer."""
        if len(data) <= RECORD_SIZE:
            super().data_received(data)
            return
        # In slices, because OpenSSL's buffer grows to the largest one and never shrinks.
        view = memoryview(data)
        for start in range(0, len(data), RECORD_SIZE):
            super().data_received(view[start : start + RECORD_SIZE])  # type: ignore[arg-type]  # kept, fed, dropped

    def eof_received(self) -> bool:
        """The peer's FIN. True keeps the TCP connection for the answer."""
        if self._state is State.OPENING:
            self._report_early_close()
        return super().eof_received()

    # Handshake

    def _begin(self) -> None:
        self._start_timer(self._tls_limits.handshake_timeout, self._give_up_handshake)  # enforces case 51

    def _go_on_with_handshake(self, piece: bytes | memoryview) -> None:
        if not self._engine.received and piece[0] != _HANDSHAKE_RECORD:
            if self._raw is not None and self._plaintext_answer and chr(piece[0]).isupper():  # an HTTP method
                self._raw.write(self._plaintext_answer)
            raise TlsRefusedError(StreamReason.NOT_TLS)
        self._engine.feed(piece)
        try:
            is_finished = self._engine.handshake()
        except TlsRefusedError:
            raise
        except Exception as exc:
            self._loop.call_exception_handler({"message": "the TLS context selector failed", "exception": exc})
            raise TlsRefusedError(StreamReason.HANDSHAKE_FAILED) from exc
        self._send_output()
        if is_finished:
            self._cancel_timer()
            self._peer = self._engine.peer
            self._open()

    def _give_up_handshake(self) -> None:
        self._report(StreamReason.HANDSHAKE_TIMEOUT)
        self._state = State.LINGERING
        self.abort()

    def _report_early_close(self) -> None:
        if self._engine.received:  # a peer that says nothing at all is a port check
            self._report(StreamReason.CLOSED_EARLY)

    # Records

    def _take_unread(self) -> None:
        """Feed the session, as long as somebody wants what comes out."""
        try:
            while self._unread and not self._read_is_paused and not self._peer_has_finished:
                piece = self._unread.popleft()
                if self._state is State.OPENING:
                    self._go_on_with_handshake(piece)
                else:
                    self._engine.feed(piece)
                self._deliver()
        except TlsRefusedError as exc:
            self._refuse(exc.reason)
        if self._state not in (State.OPENING, State.OPEN):
            self._unread.clear()

    def _read_on(self) -> None:
        try:
            self._deliver()  # what OpenSSL still holds
        except TlsRefusedError as exc:
            self._refuse(exc.reason)
        super()._read_on()

    def _deliver(self) -> None:
        engine = self._engine
        while self.is_reading():
            plaintext = engine.read()
            if plaintext is None:
                self._send_answer()
                break
            if not plaintext:
                self._finish_reading()
                break
            if self._inner is not None:
                self._inner.data_received(plaintext)

    def _send_answer(self) -> None:
        """What OpenSSL itself answers: to a KeyUpdate, or to an attempt to renegotiate."""
        ciphertext = self._engine.output()
        if ciphertext:
            self._answered += len(ciphertext)
            if self._answered > _MAX_ANSWERED:
                raise TlsRefusedError(StreamReason.PROTOCOL_ERROR)
            super()._send(ciphertext)

    def _send(self, piece: bytes | memoryview) -> None:
        try:
            self._engine.write(piece)
        except TlsRefusedError as exc:
            self._refuse(exc.reason)
        else:
            self._send_output()

    def _send_output(self) -> None:
        ciphertext = self._engine.output()
        if ciphertext:
            super()._send(ciphertext)

    def _say_last_word(self) -> None:
        self._engine.close_notify()
        self._send_output()

    def _refuse(self, reason: StreamReason) -> None:
        """The session cannot go on; OpenSSL's alert, if it made one, goes out before the end of stream."""
        if not self._peer_has_finished:  # one that left cannot be refused
            self._report(reason)
        self._backlog.clear()
        self._send_output()
        self._say_goodbye()


class TlsServer(StreamServer):
    """A protocol factory for loop.create_server: `await loop.create_server(TlsServer(...), sock=sock)`.

    `make_inner` makes the protocol that sees plaintext, once a handshake is finished. `select` picks the context of
    each connection, so contexts can be exchanged at any time. `plaintext_answer` is sent to a peer that opens with
    plain HTTP. With `is_proxy` every connection begins with a PROXY header, from those alone; `watch` counts.
    """

    def __init__(
        self,
        make_inner: Callable[[], asyncio.Protocol],
        select: Select,
        *,
        limits: TlsLimits | None = None,
        on_refused: OnRefused | None = None,
        plaintext_answer: bytes = b"",
        is_proxy: IsProxy | None = None,
        watch: Watch | None = None,
    ) -> None:
        self._limits = TlsLimits() if limits is None else limits
        super().__init__(make_inner, limits=self._limits, on_refused=on_refused, is_proxy=is_proxy, watch=watch)
        self._select = select
        self._plaintext_answer = plaintext_answer

    def _make_transport(self) -> StreamTransport:
        return TlsTransport(
            self._make_inner,
            self._limits,
            self._select,
            on_refused=self._on_refused,
            on_closed=self._forget,
            plaintext_answer=self._plaintext_answer,
            is_proxy=self._is_proxy,
            watch=self._watch,
        )
