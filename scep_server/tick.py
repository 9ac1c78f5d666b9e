"""When a refusal leaves: a fixed time after its request came, so that how long it took tells nothing (RFC 3218 2.3).

The event loop's own timers won't do: they count whole milliseconds from when the work ended, and so carry its end on.
"""

import asyncio
import contextlib
import heapq
import itertools
import threading
import time

__all__ = ["SECONDS", "Tick"]

SECONDS = 0.02  # many times what a refusal costs


class Tick:
    """A thread that sleeps while nobody waits, and wakes each who waits at his time."""

    def __init__(self, seconds: float = SECONDS) -> None:
        self._seconds = seconds
        self._changed = threading.Condition()
        self._waiting: list[tuple[float, int, asyncio.Future[None]]] = []
        self._numbers = itertools.count()
        self._thread: threading.Thread | None = None

    async def wait(self, since: float) -> None:
        """Return one tick after `since`, a `time.monotonic()`; or two or more, when the work took that long."""
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        ticks = 1 + max(0, int((time.monotonic() - since) / self._seconds))
        with self._changed:
            heapq.heappush(self._waiting, (since + ticks * self._seconds, next(self._numbers), future))
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="enrolld-tick", daemon=True)
                self._thread.start()
            self._changed.notify()
        await future

    def _run(self) -> None:
        while True:
            future = self._next()
            with contextlib.suppress(RuntimeError):  # its loop is closed
                future.get_loop().call_soon_threadsafe(_let_go, future)

    def _next(self) -> asyncio.Future[None]:
        with self._changed:
            while True:
                left = self._waiting[0][0] - time.monotonic() if self._waiting else None
                if left is not None and left <= 0:
                    return heapq.heappop(self._waiting)[2]
                self._changed.wait(left)


def _let_go(future: asyncio.Future[None]) -> None:
    if not future.done():
        future.set_result(None)
