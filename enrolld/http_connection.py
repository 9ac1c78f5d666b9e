"""One HTTP connection on aiohttp's parser: deadlines that know what they wait for, caps, refusals that tell nothing.

aiohttp parses and routes. It is driven through internals of its own (`_ErrInfo`, `_messages`, `_handle_request`,
`_prepare_hook`), because nothing public answers a request that can't be parsed: hence the pinned version, and tests
that hold each behaviour.
"""

import asyncio
import functools
import logging
import time
from collections.abc import Awaitable, Callable
from typing import Any, Protocol, cast

from aiohttp import hdrs, http_exceptions, web
from aiohttp.http import HttpVersion10, HttpVersion11
from aiohttp.streams import EMPTY_PAYLOAD, StreamReader
from aiohttp.web_protocol import RequestHandler, _ErrInfo

from enrolld.http_bodies import OpenBodies
from enrolld.http_refusal import (
    ALWAYS_REWORDED,
    LOGGED,
    OWN_WORDS,
    REQUEST_ID_HEADER,
    HttpLimits,
    HttpRefusedError,
    description_of,
    plain_answer,
    refusal_of,
    request_id_of,
)

_log = logging.getLogger("enrolld.http")

_NEVER = 7 * 86400.0  # seconds; aiohttp's own keep-alive timer knows nothing of a head that has begun
_PIPELINE = 4  # requests that may wait behind the one in hand; no device pipelines, and each may pin a body
_DRAINED_BODY = 64 * 1024  # a body up to here is read to keep the connection; a longer one ends it


class Owner(Protocol):
    """The listener that a connection belongs to."""

    limits: HttpLimits
    connections: "set[HttpConnection]"
    is_draining: bool
    bodies: OpenBodies

    def refused(self, reason: str, peer: str, request_id: str, detail: str = "", *, is_logged: bool = False) -> None:
        """Log one line, unless that was done, and tell whoever counts."""
        ...


class HttpRequest(web.Request):
    """aiohttp's request, whose responses carry no banner."""

    async def _prepare_hook(self, response: web.StreamResponse) -> None:
        await super()._prepare_hook(response)
        response.headers.pop(hdrs.SERVER, None)

    def answer_in_http_1_1(self) -> None:
        """For a request whose version is unknown or is none of ours."""
        self._version = HttpVersion11
        self._cache.pop("version", None)  # aiohttp keeps what `version` once said


class HttpConnection(RequestHandler):
    """aiohttp's connection, with deadlines that know what they wait for and refusals that tell nothing."""

    __slots__ = (
        "_answered",
        "_busy_since",
        "_deadline",
        "_head_size",
        "_is_broken",
        "_limits",
        "_listener",
        "_open_payload",
        "_peer",
        "_peer_is_done",
    )

    def __init__(self, manager: web.Server, listener: Owner) -> None:
        limits = listener.limits
        super().__init__(
            manager,
            loop=asyncio.get_running_loop(),
            keepalive_timeout=_NEVER,
            tcp_keepalive=False,
            logger=_log,
            access_log=cast(logging.Logger, None),  # aiohttp: "if access_log"
            max_line_size=limits.max_line_size,
            max_headers=limits.max_fields,  # enforces case 51
            max_field_size=limits.max_field_size,
            lingering_time=limits.body_timeout,
            auto_decompress=False,
        )
        make_request: Callable[..., web.BaseRequest] = manager.request_factory
        self._request_factory = functools.partial(make_request, _cls=HttpRequest)
        self._max_msg_queue_size = _PIPELINE
        self._msg_queue_resume_size = _PIPELINE // 2
        self._limits = limits
        self._listener = listener
        self._peer = ""
        self._answered = 0
        self._busy_since: float | None = None
        self._head_size = 0  # bytes of a head that is not complete
        self._open_payload: StreamReader | None = None  # the body that is still coming in
        self._is_broken = False  # what comes in has no meaning any more
        self._peer_is_done = False
        self._deadline: asyncio.TimerHandle | None = None  # of the head, the body or the idle time: never two at once

    # The transport's calls

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """The connection is open; its first head is due."""
        self._peer = peer_text(transport.get_extra_info("peername"))
        self._listener.connections.add(self)
        self._expect(self._limits.head_timeout, self._head_is_late)  # enforces case 51
        super().connection_made(transport)

    def connection_lost(self, exc: BaseException | None) -> None:
        """The connection is gone."""
        self._expect_nothing()
        self._listener.bodies.end(self)
        self._listener.connections.discard(self)
        self._open_payload = None
        super().connection_lost(exc)
        # aiohttp's task may wake up only now, to a request that came together with the peer's reset.
        self._request_factory = _nobody_is_there

    def data_received(self, data: bytes) -> None:
        """Bytes of requests."""
        if self._is_broken or self.transport is None or self.transport.is_closing():
            return
        heads = self._request_count
        super().data_received(data)
        if self._request_count != heads:
            if heads == self._answered:
                self._busy_since = time.monotonic()
            self._head_ended(len(data))
        elif self._open_payload is not None:
            if self._open_payload.is_eof():
                self._body_ended()
            else:
                self._listener.bodies.grow(self, len(data), self._give_up_body)
        elif self._head_size or data.strip(b"\r\n"):  # libest sends a stray CRLF after its body
            self._head_grew(len(data))

    def eof_received(self) -> bool:  # type: ignore[override]  # True keeps the connection for the answer
        """The peer sends no more; what it asked is still answered."""
        self._peer_is_done = True
        if self._open_payload is not None:
            self._break_body(HttpRefusedError(400, "http_body_truncated", "The body is shorter than announced."))
        return self._in_hand() > 0  # enforces case 51

    @property
    def busy_since(self) -> float | None:
        """When (`time.monotonic`) it began to serve what it serves now; None while nothing is in hand."""
        return self._busy_since if self._in_hand() else None

    @property
    def waits_for_body(self) -> bool:
        """Whether it waits for the rest of a body."""
        return self._open_payload is not None

    @property
    def has_answered(self) -> bool:
        """Whether it has served a request already."""
        return self._answered > 0

    # What is expected next

    def _head_grew(self, size: int) -> None:
        if not self._head_size:
            self._expect(self._limits.head_timeout, self._head_is_late)  # enforces case 51
        self._head_size += size
        if self._head_size > self._limits.max_head_size:  # enforces case 51
            self._refuse_head(HttpRefusedError(431, "http_head_too_large", "The request's head is too large."))

    def _head_ended(self, size: int) -> None:
        self._head_size = 0
        self._expect_nothing()
        if self._open_payload is not None and self._open_payload.is_eof():
            self._open_payload = None  # its end came together with this head
        message, payload = self._messages[-1]
        if isinstance(message, _ErrInfo):
            self._is_broken = True
            if self._open_payload is not None:
                # The parser broke inside a body: its handler waits for that body, and answers.
                self._messages.pop()
                self._request_count -= 1
                self._break_body(refusal_of(message.exc, self._limits))
        elif not payload.is_eof():
            self._open_payload = payload
            self._listener.bodies.grow(self, size, self._give_up_body)
            self._expect(self._limits.body_timeout, self._body_is_late)  # enforces case 51

    def _body_ended(self) -> None:
        self._listener.bodies.end(self)
        self._open_payload = None
        self._expect_nothing()
        self._expect_next_head()

    def _expect_next_head(self) -> None:
        if not self._in_hand() and not self._head_size and self._open_payload is None:
            self._expect(self._limits.idle_timeout, self.force_close)  # enforces case 51

    def _head_is_late(self) -> None:
        if self._head_size:
            self._refuse_head(HttpRefusedError(408, "http_head_timeout", "The request took too long to arrive."))
        else:
            self.force_close()

    def _body_is_late(self) -> None:
        self._break_body(HttpRefusedError(408, "http_body_timeout", "The body took too long to arrive."))

    def _give_up_body(self) -> None:
        self._break_body(HttpRefusedError(503, "bodies_in_all", "Too much is being sent; ask again later."))

    def _refuse_head(self, refusal: HttpRefusedError) -> None:
        """Answer a request of which there is only a part of the head."""
        self._is_broken = True
        self._request_count += 1  # as for a whole head: it is in hand until it is answered
        self._messages.append((_ErrInfo(refusal.status, refusal, refusal.sentence), EMPTY_PAYLOAD))
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    def _break_body(self, refusal: HttpRefusedError) -> None:
        """Let the handler's `request.read()` raise `refusal`; after its answer, just close."""
        self._is_broken = True
        self._listener.bodies.end(self)
        payload, self._open_payload = self._open_payload, None
        self._expect_nothing()
        if payload is None:
            return
        if self._in_hand():
            self._lingering_time = 0.0  # there is nothing more to read
            payload.set_exception(refusal)
        else:
            payload.feed_eof()  # aiohttp reads the rest to keep the connection, and must stop that
            self.force_close()

    def _in_hand(self) -> int:
        """Requests that have arrived, at least their heads, and are not answered."""
        return self._request_count - self._answered

    def _expect(self, seconds: float, otherwise: Callable[[], None]) -> None:
        self._expect_nothing()
        self._deadline = self._loop.call_later(seconds, otherwise)

    def _expect_nothing(self) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None

    # Answers

    async def start(self) -> None:
        """Serve the connection's requests."""
        if self._manager is not None:  # else the connection was lost before this task began
            await super().start()

    def drain(self) -> None:
        """Close as soon as nothing is in hand. A connection that has not asked yet may ask once."""
        if self._answered and not self._in_hand() and not self._head_size:
            self.force_close()

    async def _handle_request(
        self,
        request: web.BaseRequest,
        start_time: float | None,
        request_handler: Callable[[web.BaseRequest], Awaitable[web.StreamResponse]],
    ) -> tuple[web.StreamResponse, bool]:
        if request.version not in (HttpVersion10, HttpVersion11):
            refusal = HttpRefusedError(505, "http_version_unsupported", "This server speaks HTTP/1.1.")
            request_handler = self._make_error_handler(_ErrInfo(refusal.status, refusal, refusal.sentence))
        try:
            result = await super()._handle_request(request, start_time, request_handler)
        finally:
            self._answered += 1
        if self._peer_is_done and not self._in_hand():
            self.close()
        self._expect_next_head()
        return result

    async def finish_response(
        self, request: web.BaseRequest, resp: object, start_time: float | None
    ) -> tuple[web.StreamResponse, bool]:
        """Send the response; where aiohttp made it up, in our words."""
        if not isinstance(resp, web.StreamResponse):
            resp = self.handle_error(request, 500, TypeError(f"a handler returned {type(resp).__name__}"))
        if not resp.prepared:
            if isinstance(resp, web.HTTPException) and REQUEST_ID_HEADER not in resp.headers:
                self._reword(request, resp)
            if self._must_close(request):  # enforces case 50
                resp.force_close()
        return await super().finish_response(request, resp, start_time)

    def handle_error(
        self,
        request: web.BaseRequest,
        status: int = 500,
        exc: BaseException | None = None,
        message: str | None = None,
    ) -> web.StreamResponse:
        """The answer to a request that cannot be parsed, or whose handler failed."""
        del message  # aiohttp's text quotes the peer
        request_id = request_id_of(request)
        if isinstance(exc, (http_exceptions.HttpProcessingError, HttpRefusedError)):
            refusal = refusal_of(exc, self._limits)
            # aiohttp's stand-in for a request that it could not parse says HTTP/1.0, and its method is "UNKNOWN".
            if isinstance(request, HttpRequest) and (request.method == "UNKNOWN" or refusal.status == 505):
                request.answer_in_http_1_1()
            self._listener.refused(refusal.reason, self._peer, request_id, description_of(exc))
            answer = plain_answer(refusal.status, refusal.sentence, request_id)
        else:
            if self.transport is not None:  # else the peer left, which is no failure
                _log.error("a request of %s failed (request %s)", self._peer, request_id, exc_info=exc)
            answer = plain_answer(500 if status != 504 else 504, "Something went wrong here.", request_id)
        if request.writer.output_size > 0:
            raise ConnectionError("the response has begun; it can only be cut")
        answer.force_close()
        return answer

    def _reword(self, request: web.BaseRequest, answer: web.HTTPException) -> None:
        """Replace the text that aiohttp gives its own refusals, and count them."""
        is_default = answer.text == f"{answer.status}: {answer.reason}"
        if answer.status in OWN_WORDS and (is_default or answer.status in ALWAYS_REWORDED):
            request_id = request_id_of(request)
            reason, sentence = OWN_WORDS[answer.status]
            self._listener.refused(reason, self._peer, request_id, is_logged=LOGGED in request)
            answer.text = f"{sentence} (request {request_id})\n"
            answer.headers[REQUEST_ID_HEADER] = request_id

    def _must_close(self, request: web.BaseRequest) -> bool:
        coding = request.headers.get(hdrs.TRANSFER_ENCODING)
        if coding is not None and (  # enforces case 50
            request.version == HttpVersion10
            or coding.strip().lower() != "chunked"
            or hdrs.CONTENT_LENGTH in request.headers
        ):
            # "MUST treat the message as if the framing is faulty [...] and close the connection after processing the
            # message." -- RFC 9112 6.1; what was sent behind such a body means nothing either.
            self._is_broken = True
            return True
        if self._open_payload is not None:
            length = request.content_length
            if length is None or length > _DRAINED_BODY:
                self._lingering_time = 0.0  # the transport lingers, with bounds
                return True
        is_last = self._in_hand() <= 1
        return is_last and (self._is_broken or self._listener.is_draining or self._peer_is_done)


def _nobody_is_there(*_: object) -> web.BaseRequest:
    raise asyncio.CancelledError


def peer_text(peername: Any) -> str:
    """A peer's address for logs: "192.0.2.1:4711", "[2001:db8::1]:4711", or "local" on a unix socket."""
    if not isinstance(peername, tuple) or len(peername) < 2:
        return "local"
    host, port = peername[:2]
    return f"[{host}]:{port}" if ":" in str(host) else f"{host}:{port}"


def host_of(peer: str) -> str:
    """The address alone in what `peer_text` made."""
    return peer.rpartition(":")[0].strip("[]") or peer
