"""The admin listener: /healthz says that this worker runs, /readyz that it can issue. Metrics come beside them."""

import asyncio
import logging
from typing import TYPE_CHECKING

from aiohttp import web

from ca_core.errors import CoreError, Unavailable

if TYPE_CHECKING:
    from ca_core.core import Core

__all__ = ["add_routes"]

_LOG = logging.getLogger(__name__)
_PATIENCE = 5.0


def add_routes(app: web.Application, core: "Core") -> None:
    """`/healthz` and `/readyz`."""
    told: list[str] = []

    async def healthz(_: web.Request) -> web.Response:
        return web.json_response({"status": "ok"}, headers=_NOT_KEPT)

    async def readyz(_: web.Request) -> web.Response:
        reasons = await _reasons(core)
        if reasons != told:
            # Once, and once when it is over: whoever watches asks every second.
            if reasons:
                _LOG.error("this worker is not ready: %s", "; ".join(reasons))
            else:
                _LOG.info("this worker is ready again")
            told[:] = reasons
        answer = {"status": "not ready", "reasons": reasons} if reasons else {"status": "ready"}
        return web.json_response(answer, status=503 if reasons else 200, headers=_NOT_KEPT)

    app.router.add_get("/healthz", healthz)
    app.router.add_get("/readyz", readyz)


_NOT_KEPT = {"Cache-Control": "no-store"}


async def _reasons(core: "Core") -> list[str]:
    """Why nothing can be issued now; empty when all is well. Nothing here names what a stranger should not know."""
    reasons: list[str] = []
    try:
        async with asyncio.timeout(_PATIENCE):
            if (locked := await core.issuance.unlock_trouble()) is not None:
                return [locked]  # whatever else there is follows from that
            if await core.clock_is_off():
                reasons.append("this machine's clock stands more than a minute from the store's: set the clock")
            elif core.store.shortage() is not None:
                reasons.append("the store has no room, or does not commit; the log says why")
            if await core.clock_is_behind():
                reasons.append("this machine's clock stands before the store's newest event")
        core.server_certificates.select(None)
    except TimeoutError:
        reasons.append("the store does not answer")
    except CoreError as exc:
        _LOG.debug("not ready: %s", exc)
        away = isinstance(exc, Unavailable)
        reasons.append("the store can't be reached" if away else "the store can't be used; the log says why")
    return reasons
