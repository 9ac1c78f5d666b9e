"""Looks up the addresses of hosts without keeping anybody else waiting."""

import asyncio
import contextlib
import socket
import threading
from collections.abc import Callable, Sequence

__all__ = ["Lookup", "Lookups", "look_up"]

Lookup = Callable[[str, int], Sequence[str]]
"""The addresses of a host, as text, for a port. It may block. Raises OSError."""


def look_up(host: str, port: int) -> list[str]:
    """The addresses of a host by this machine's resolver. It blocks. Raises OSError."""
    return [str(found[4][0]) for found in socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)]


class Lookups:
    """Looks hosts up in threads of its own, one for each host at a time. One event loop's own.

    A resolver may block for half a minute. In the threads that everything else shares it would keep everything else
    waiting; these are as many as there are hosts that are asked for, and the process ends without them.
    """

    def __init__(self, lookup: Lookup = look_up) -> None:
        self._lookup = lookup
        self._under_way: dict[tuple[str, int], asyncio.Future[Sequence[str]]] = {}

    async def of(self, host: str, port: int) -> Sequence[str]:
        """The addresses. Who comes while the host is looked up gets what is found then. Raises OSError."""
        place = (host, port)
        found = self._under_way.get(place)
        if found is None:
            loop = asyncio.get_running_loop()
            found = self._under_way[place] = loop.create_future()
            found.add_done_callback(lambda done: self._end(place, done))
            thread = threading.Thread(target=self._run, args=(loop, found, place), name="lookup", daemon=True)
            try:
                thread.start()
            except RuntimeError as exc:
                found.set_exception(OSError(f"no thread to look it up: {exc}"))
        # One who gives up does not take the answer from the others.
        return await asyncio.shield(found)

    def _run(
        self, loop: asyncio.AbstractEventLoop, found: asyncio.Future[Sequence[str]], place: tuple[str, int]
    ) -> None:
        with contextlib.suppress(RuntimeError):  # the loop has ended
            try:
                addresses = self._lookup(*place)
            except Exception as exc:  # noqa: BLE001  # whoever waits is told, whatever it was
                loop.call_soon_threadsafe(_fail, found, exc)
            else:
                loop.call_soon_threadsafe(_succeed, found, addresses)

    def _end(self, place: tuple[str, int], done: asyncio.Future[Sequence[str]]) -> None:
        self._under_way.pop(place, None)
        if not done.cancelled():
            done.exception()  # nobody may wait any more


def _fail(found: asyncio.Future[Sequence[str]], exc: Exception) -> None:
    if not found.done():
        found.set_exception(exc)


def _succeed(found: asyncio.Future[Sequence[str]], addresses: Sequence[str]) -> None:
    if not found.done():
        found.set_result(addresses)
