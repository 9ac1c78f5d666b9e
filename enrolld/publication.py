"""What every relying party may fetch over plain HTTP: CA certificates and CRLs (RFC 5280 4.2.1.13, RFC 4387).

Only bytes that are in the store already are sent: nobody can make the CA sign by asking. Everything else is 404.
"""

import hashlib
from collections.abc import Awaitable, Callable
from typing import Protocol

from aiohttp import web

from ca_core.errors import Unavailable

__all__ = ["Published", "add_routes"]

Fetch = Callable[[str], Awaitable[bytes | None]]

_CERTIFICATE = "application/pkix-cert"  # RFC 2585 4.1: DER
_CRL = "application/pkix-crl"
_MAX_NAME = 80
_PIECE = 64 * 1024
_LATER = "5"  # seconds


class _Crls(Protocol):
    async def latest(self, issuer: str) -> bytes | None: ...


class _Issuers(Protocol):
    async def certificate(self, issuer: str) -> bytes | None: ...


class Published(Protocol):
    """The part of the core that is published."""

    @property
    def crls(self) -> _Crls:
        """The signed lists."""

    @property
    def issuers(self) -> _Issuers:
        """The CA certificates."""


def add_routes(app: web.Application, core: Published) -> None:
    """`/pki/<issuer>.cer` and `/pki/<issuer>/0.crl`; shard 0 until there are more."""
    shown = _Shown()

    async def certificate(request: web.Request) -> web.StreamResponse:
        return await _answer(request, core.issuers.certificate, _CERTIFICATE, "public, max-age=3600", shown)

    async def crl(request: web.Request) -> web.StreamResponse:
        # no-cache lets a proxy keep the list but makes it ask whether there is a newer: a revocation counts at once.
        return await _answer(request, core.crls.latest, _CRL, "no-cache", shown)

    app.router.add_get("/pki/{issuer:[a-z0-9-]+}.cer", certificate, name="certificate")
    app.router.add_get("/pki/{issuer:[a-z0-9-]+}/0.crl", crl, name="crl")


class _Shown:
    """What was shown last, with its entity tag. A large CRL is the same object from request to request: hashed once."""

    def __init__(self) -> None:
        self._kept: dict[str, tuple[bytes, str]] = {}

    def last(self, path: str) -> bytes | None:
        """What was at `path` when it was asked for last."""
        kept = self._kept.get(path)
        return kept[0] if kept is not None else None

    def tag(self, path: str, body: bytes) -> str:
        """The strong tag of what is at `path`, which is one that exists."""
        kept = self._kept.get(path)
        if kept is None or kept[0] is not body:
            kept = self._kept[path] = body, f'"{hashlib.sha256(body).hexdigest()[:32]}"'
        return kept[1]


async def _answer(
    request: web.Request, fetch: Fetch, media_type: str, caching: str, shown: _Shown
) -> web.StreamResponse:
    issuer = request.match_info["issuer"]
    path = f"{media_type} {issuer}"
    try:
        der = await fetch(issuer) if len(issuer) <= _MAX_NAME else None
    except Unavailable:
        # While the store is away, relying parties get what they would have got before: a CRL says itself how long.
        der = shown.last(path)
        if der is None:
            raise web.HTTPServiceUnavailable(headers={"Retry-After": _LATER}) from None
    if der is None:
        raise web.HTTPNotFound
    tag = shown.tag(path, der)
    headers = {"ETag": tag, "Cache-Control": caching}
    if tag in request.headers.get("If-None-Match", ""):
        return web.Response(status=304, headers=headers)
    if len(der) <= _PIECE:
        return web.Response(body=der, content_type=media_type, headers=headers)
    return await _send_large(request, der, media_type, headers)


async def _send_large(
    request: web.Request, body: bytes, media_type: str, headers: dict[str, str]
) -> web.StreamResponse:
    """A piece at a time, as the peer takes them: one that doesn't read holds a piece, and no copy of the whole."""
    response = web.StreamResponse(headers=headers)
    response.content_type = media_type
    response.content_length = len(body)
    await response.prepare(request)
    if request.method != "HEAD":
        view = memoryview(body)
        for start in range(0, len(view), _PIECE):
            await response.write(view[start : start + _PIECE])
    await response.write_eof()
    return response
