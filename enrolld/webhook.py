"""Asks a realm's webhook over HTTP: one POST, whose address is judged before anything is sent.

Each call looks its name up once, judges every address that comes, and connects to one of those and to nothing else, so
that a name server can't show one address to the judge and another to the socket. TLS is verified for the name all the
same. No redirect, proxy, cookie, compression or connection of an earlier call is used.

The looking-up, the connection, the handshake and the answer share one deadline. A webhook that is dead ties up its own
realm's turns and nobody else's.
"""

import asyncio
import contextlib
import errno
import ipaddress
import socket
import ssl
import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from functools import lru_cache

import aiohttp
from aiohttp.abc import AbstractResolver, ResolveResult
from yarl import URL

from ca_core.errors import NotAuthorized, Overloaded, Unavailable
from ca_core.registration.admission.webhook import (
    MAX_ANSWER,
    Question,
    Verdict,
    WebhookDocument,
    check_narrows,
    encode_question,
    read_verdict,
    webhook_refusal,
)
from ca_core.registration.admission.webhook_address import Address, address_fault
from enrolld.lookups import Lookup, Lookups, look_up
from enrolld.webhook_keys import WebhookKey

__all__ = ["WebhookClient"]

_OK = 200
_REDIRECTS = range(300, 400)
_JSON = "application/json"
_RETRY_AFTER = 10


class WebhookClient:
    """The `Webhook` of a worker. One event loop's own.

    Of all realms, `in_all` requests may be here, fewer than a worker has in hand (`ca_core.gate`: 64), so that realms
    without a webhook are served beside dead ones. Of each realm, `at_once` calls are under way and `waiting` others
    wait for their turn, all of them within their own timeout. `delivered` is told the realm and the outcome of each
    call: `allowed`, or what is left of the code without `webhook_`, or `overloaded`. `clock` gives seconds since 1970.
    """

    def __init__(
        self,
        keys: Mapping[str, WebhookKey],
        *,
        delivered: Callable[[str, str], None] | None = None,
        lookup: Lookup | None = None,
        clock: Callable[[], float] = time.time,
        at_once: int = 16,
        waiting: int = 8,
        in_all: int = 40,
    ) -> None:
        self._keys = keys
        self._delivered = delivered or (lambda *_: None)
        self._clock = clock
        self._lookups = Lookups(lookup or look_up)
        self._here = 0
        self._in_all = in_all
        self._at_once = at_once
        self._waiting = waiting
        self._turns: dict[str, _Turns] = {}

    async def ask(self, document: WebhookDocument, question: Question) -> Verdict:
        """The verdict, which allows, and narrows or leaves as it is.

        Raises `NotAuthorized` when it refuses (`webhook_refused`) or fails (`webhook_timeout` and the like),
        `Unavailable` when this node has no key of that name or no descriptor left, `Overloaded` when too many wait for
        this webhook.
        """
        key = self._keys.get(document.key)
        if key is None:
            raise Unavailable(
                f"the webhook of realm {question.realm} needs the key '{document.key}', which is not in [webhook_keys] "
                "of this node's enrolld.toml"
            )
        try:
            verdict = await self._ask(document, question, key)
        except NotAuthorized as exc:
            self._delivered(question.realm, exc.code.removeprefix("webhook_"))
            raise
        except Overloaded:
            self._delivered(question.realm, "overloaded")
            raise
        self._delivered(question.realm, "allowed")
        return verdict

    async def _ask(self, document: WebhookDocument, question: Question, key: WebhookKey) -> Verdict:
        turns = self._turns.setdefault(question.realm, _Turns(self._at_once, self._waiting))
        has_turn = False
        # Of all realms together, so that dead webhooks never hold all of a worker's places.
        if self._here >= self._in_all:
            raise Overloaded("too many wait for webhooks", retry_after=_RETRY_AFTER)
        self._here += 1
        try:
            async with asyncio.timeout(document.seconds), turns.take():
                has_turn = True
                addresses = await self._resolve(document)
                body = await self._deliver(document, question, key, addresses)
        except TimeoutError as exc:
            if not has_turn:
                raise Overloaded("too many wait for the webhook", retry_after=_RETRY_AFTER) from exc
            raise webhook_refusal("webhook_timeout", f"no answer within {document.timeout}") from exc
        finally:
            self._here -= 1
        verdict = read_verdict(body)
        check_narrows(verdict, question)
        return verdict

    async def _resolve(self, document: WebhookDocument) -> list[Address]:
        """The addresses of the URL's host, every one of which may be reached."""
        try:
            found = [ipaddress.ip_address(document.host)]
        except ValueError:
            try:
                texts = await self._lookups.of(document.host, document.port)
            except (OSError, UnicodeError) as exc:
                raise webhook_refusal("webhook_unreachable", f"{document.host} has no address: {exc}") from exc
            found = [ipaddress.ip_address(text.partition("%")[0]) for text in dict.fromkeys(texts)]
        if not found:
            raise webhook_refusal("webhook_unreachable", f"{document.host} has no address")
        for address in found:
            # One that must not be among them shows that whoever answers for the name is not to be trusted with it.
            if fault := address_fault(address, document.allowed, loopback=document.is_loopback):  # enforces case 49
                raise webhook_refusal("webhook_address", f"{document.host}: {fault}")
        return found

    async def _deliver(
        self, document: WebhookDocument, question: Question, key: WebhookKey, addresses: Sequence[Address]
    ) -> bytes:
        """The body of the answer."""
        body = encode_question(question)
        timestamp = str(int(self._clock()))
        signature = key.sign(timestamp, body)
        headers = {
            "Accept": _JSON,
            "Accept-Encoding": "identity",
            "Content-Type": _JSON,
            "User-Agent": "enrolld",
            "Enrolld-Request-Id": question.request_id,
            "Enrolld-Timestamp": timestamp,
            "Enrolld-Signature": signature,
        }
        try:
            async with (
                _session(document, addresses) as session,
                session.post(
                    URL(document.url, encoded=True),
                    data=body,
                    headers=headers,
                    allow_redirects=False,
                    timeout=aiohttp.ClientTimeout(),
                ) as response,
            ):
                answer = await _read(response)
                signed = response.headers.get("Enrolld-Signature", "")
        except _TLS as exc:
            raise webhook_refusal("webhook_tls", _told(exc)) from exc
        except (aiohttp.ClientPayloadError, aiohttp.ClientResponseError) as exc:
            raise webhook_refusal("webhook_malformed", f"it does not speak HTTP: {type(exc).__name__}") from exc
        except (aiohttp.ClientConnectionError, OSError) as exc:
            if getattr(exc, "errno", None) in _OURS:
                raise Unavailable(f"the webhook of realm {question.realm} can't be asked: {_told(exc)}") from exc
            raise webhook_refusal("webhook_unreachable", _told(exc)) from exc
        # What the peer of a loopback port says is otherwise believed, whoever that is.
        if document.signed_answer and not key.has_signed(signed, signature.partition("=")[2], answer):
            raise webhook_refusal("webhook_unsigned", "signed otherwise" if signed else "not signed")
        return answer


_OURS = (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM)  # this machine's want, and no fault of the webhook's
_TLS = (aiohttp.ClientConnectorSSLError, aiohttp.ClientConnectorCertificateError, ssl.SSLError)


def _session(document: WebhookDocument, addresses: Sequence[Address]) -> aiohttp.ClientSession:
    """A session for one call: nothing of it is left for another."""
    judged = frozenset(addresses)

    def make_socket(about: tuple[int, int, int, str, tuple[object, ...]]) -> socket.socket:
        if ipaddress.ip_address(str(about[4][0])) not in judged:  # enforces case 49
            raise OSError(f"{about[4][0]} was not judged")
        return socket.socket(about[0], about[1], about[2])

    connector = aiohttp.TCPConnector(
        resolver=_Pinned(addresses),
        use_dns_cache=False,
        force_close=True,
        socket_factory=make_socket,
        ssl=_tls_context(document.ca_pem) if document.url.startswith("https:") else True,
    )
    return aiohttp.ClientSession(
        connector=connector,
        cookie_jar=aiohttp.DummyCookieJar(),
        trust_env=False,  # no proxy, no password of a .netrc
        auto_decompress=False,
        read_bufsize=MAX_ANSWER,
        max_line_size=4096,
        max_field_size=4096,
        max_headers=64,
    )


async def _read(response: aiohttp.ClientResponse) -> bytes:
    """The body of an answer that may be a verdict."""
    if response.status in _REDIRECTS:
        raise webhook_refusal("webhook_redirect", f"status {response.status}")
    if response.status != _OK:
        raise webhook_refusal("webhook_status", f"status {response.status}")
    if response.content_type != _JSON or len(response.headers.getall("Content-Type", [])) != 1:
        raise webhook_refusal("webhook_malformed", "the answer is not application/json")
    if response.headers.get("Content-Encoding", "identity") != "identity":
        raise webhook_refusal("webhook_malformed", "the answer has a Content-Encoding, which nobody asked for")
    answer = bytearray()
    while part := await response.content.read(MAX_ANSWER + 1 - len(answer)):
        answer += part
        if len(answer) > MAX_ANSWER:  # enforces case 49
            raise webhook_refusal("webhook_too_large", f"the answer has more than {MAX_ANSWER} bytes")
    return bytes(answer)


@lru_cache(64)
def _tls_context(ca_pem: str) -> ssl.SSLContext:
    """Verifies a server for its name, by these CAs or the system's."""
    # Not `create_default_context`: that writes session keys where SSLKEYLOGFILE says.
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.hostname_checks_common_name = False
    context.set_alpn_protocols(["http/1.1"])
    if ca_pem:
        context.load_verify_locations(cadata=ca_pem)
    else:
        context.load_default_certs()
    return context


class _Pinned(AbstractResolver):
    """Says what was found out and judged before, and asks nobody."""

    def __init__(self, addresses: Sequence[Address]) -> None:
        self._addresses = addresses

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_INET
    ) -> list[ResolveResult]:
        """The judged addresses."""
        del family
        return [
            ResolveResult(
                hostname=host,
                host=str(address),
                port=port,
                family=socket.AF_INET if address.version == 4 else socket.AF_INET6,
                proto=socket.IPPROTO_TCP,
                flags=socket.AI_NUMERICHOST,
            )
            for address in self._addresses
        ]

    async def close(self) -> None:
        """Nothing."""


class _Turns:
    """Turns at one webhook."""

    def __init__(self, at_once: int, waiting: int) -> None:
        self._places = asyncio.Semaphore(at_once)
        self._room = at_once + waiting
        self._here = 0

    @contextlib.asynccontextmanager
    async def take(self) -> AsyncIterator[None]:
        """Wait for a turn and have it. Raises `Overloaded` when too many wait."""
        if self._here >= self._room:
            raise Overloaded("too many wait for the webhook", retry_after=_RETRY_AFTER)
        self._here += 1
        try:
            async with self._places:
                yield
        finally:
            self._here -= 1


def _told(exc: BaseException) -> str:
    """What went wrong, for the operator: printable and bounded."""
    text = f"{type(exc).__name__}: {exc}"
    return "".join(char if char.isprintable() else ascii(char)[1:-1] for char in text[:200])
