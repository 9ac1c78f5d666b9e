"""The queue before the work that costs: a few requests are worked on, some wait, and the rest are told to come again.

Who waits is taken in turn by source, so that a crowd behind one address waits for itself. Sources of which nothing but
refusals is known are taken last; one in eight is theirs all the same, so that a device behind their address is served.

A long queue is worked off from its new end: whoever has waited long is about to be told to come again, and taking
turns in order would make everybody wait that long and serve nobody in time.
"""

import asyncio
import random
from collections import OrderedDict, deque

from ca_core.errors import Overloaded

__all__ = ["Gate"]

_TURNS = 8
_LONG = 32  # waiting requests from which on the newest go first


class Gate:
    """Lets `at_once` in, keeps `waiting` others for at most `patience` seconds. One event loop's own.

    A request that finds no place, or waits too long, raises `Overloaded`. When the queue is full, the oldest of the
    longest line yields to a newcomer. Who is sent away at once hears it `hold` seconds later: a crowd that asks again
    as soon as it is answered would else keep the process busy with sending it away.
    """

    def __init__(self, *, at_once: int = 64, waiting: int = 512, patience: float = 2.0, hold: float = 1.0) -> None:
        self._at_once = at_once
        self._waiting = waiting
        self._patience = patience
        self._hold = hold
        self._inside = 0
        self._queued = 0
        self._turn = 0
        # By how soon they are taken (0 first), then by source, in the order of their turns.
        self._lines: tuple[OrderedDict[str, deque[_Waiter]], ...] = (OrderedDict(), OrderedDict())
        self.refused = 0
        """How many were told to come again, since it was last taken."""

    @property
    def waiting(self) -> int:
        """How many wait now."""
        return self._queued

    @property
    def inside(self) -> int:
        """How many are worked on now."""
        return self._inside

    def take_refused(self) -> int:
        """How many were told to come again since this was last asked."""
        refused, self.refused = self.refused, 0
        return refused

    async def enter(self, source: str, *, late: bool = False) -> None:
        """Wait for a place. Who was let in calls `leave`, whatever happens. Raises `Overloaded`."""
        if self._inside < self._at_once and not self._queued:
            self._inside += 1
            return
        line = self._lines[late]
        if self._queued >= self._waiting and not self._make_room(late=late):
            await asyncio.sleep(self._hold)
            self._refuse()
        loop = asyncio.get_running_loop()
        waiter: _Waiter = loop.create_future()
        if source not in line:
            line[source] = deque()
            line.move_to_end(source, last=self._queued < _LONG)
        line[source].append(waiter)
        self._queued += 1
        timer = loop.call_later(self._patience, _give_up, waiter)
        try:
            await waiter
        except asyncio.CancelledError:
            if waiter.done() and not waiter.cancelled() and waiter.exception() is None:
                self.leave()  # let in, and gone at the same moment
            else:
                self._drop(line, source, waiter)
            raise
        except _GiveUp as told:
            self._drop(line, source, waiter)
            if told.at_once:
                await asyncio.sleep(self._hold)
            self._refuse()
        finally:
            timer.cancel()

    def leave(self) -> None:
        """Make a place for the next."""
        self._inside -= 1
        while self._inside < self._at_once and (waiter := self._next()) is not None:
            self._inside += 1
            waiter.set_result(None)

    def _next(self) -> "_Waiter | None":
        """Whose turn it is. Its place in the queue is gone then."""
        self._turn = (self._turn + 1) % _TURNS
        order = self._lines if self._turn else reversed(self._lines)
        for line in order:
            while line:
                source, waiters = next(iter(line.items()))
                waiter = waiters.pop() if len(waiters) >= _LONG else waiters.popleft()
                self._queued -= 1
                if waiters:
                    line.move_to_end(source)
                else:
                    del line[source]
                if not waiter.done():
                    return waiter
        return None

    def _make_room(self, *, late: bool) -> bool:
        """Have the oldest of the longest line give up. False when none may: prompt ones do not yield to a late one."""
        candidates = [line for line in self._lines[late:] if line]
        if not candidates:
            return False
        line = candidates[-1]  # the late ones, if there are any
        source = max(line, key=lambda name: len(line[name]))
        waiter = line[source][0]
        self._drop(line, source, waiter)
        if not waiter.done():
            waiter.set_exception(_GiveUp(at_once=True))
        return True

    def _drop(self, line: "OrderedDict[str, deque[_Waiter]]", source: str, waiter: "_Waiter") -> None:
        waiters = line.get(source)
        if waiters is None or waiter not in waiters:
            return
        waiters.remove(waiter)
        self._queued -= 1
        if not waiters:
            del line[source]

    def _refuse(self) -> None:
        self.refused += 1
        # Spread, so that those who were sent away do not all come back at once.
        raise Overloaded("more requests wait than can be served soon", retry_after=random.randint(5, 30))  # noqa: S311


_Waiter = asyncio.Future[None]


class _GiveUp(Exception):
    """No place was found in time, or `at_once`: somebody else took it."""

    def __init__(self, *, at_once: bool) -> None:
        super().__init__()
        self.at_once = at_once


def _give_up(waiter: _Waiter) -> None:
    if not waiter.done():
        waiter.set_exception(_GiveUp(at_once=False))
