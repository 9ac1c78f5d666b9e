"""Group commit: units that wait for a writer, and the answers to whoever waits for them.

Writers are threads. Each takes the units that wait, up to 64, writes them in one transaction, and all of them are
answered after its commit: fifty requests share one wait for the disk.
"""

import asyncio
import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from ca_core.errors import CoreError, InternalError, Unavailable
from ca_core.records.unit import Unit

__all__ = ["BATCH", "Job", "UnitQueue", "UnitWriter", "disjoint", "first_come"]

_LOG = logging.getLogger(__name__)
_CLOSING_SECONDS = 10.0
BATCH = 64
"""The most units in one transaction."""
_LOOK_AT = 256
"""How many that wait are looked at for one that can run beside the others."""


@dataclass(slots=True, eq=False)
class Job:
    """A unit on its way: a writer leaves either the guard's id or an error in it."""

    unit: Unit
    future: "asyncio.Future[int] | None"
    guard_id: int = 0
    error: CoreError | None = None


class UnitWriter(Protocol):
    """What a thread of the queue writes with."""

    def write(self, batch: list[Job]) -> None:
        """Write a batch; what went wrong with a unit is left in its job. It raises nothing but bugs."""
        ...

    def close(self) -> None:
        """Let go of the connection."""
        ...


def first_come(waiting: deque[Job], in_flight: Sequence[Job]) -> list[Job]:  # noqa: ARG001  # of one writer
    """The next batch, where a transaction may hold any units: those that wait longest."""
    return [waiting.popleft() for _ in range(min(BATCH, len(waiting)))]


def disjoint(waiting: deque[Job], in_flight: Sequence[Job]) -> list[Job]:
    """The next batch where units run beside others: those that wait longest and touch nothing of what is `in_flight`.

    Nothing overtakes what it has a name in common with, nor a unit that runs alone; such units make batches of their
    own. Empty when all that wait have to wait longer.
    """
    if any(job.unit.touches is None for job in in_flight):
        return []
    if waiting and waiting[0].unit.touches is None:
        alone: list[Job] = []
        while not in_flight and waiting and len(alone) < BATCH and waiting[0].unit.touches is None:
            alone.append(waiting.popleft())
        return alone
    taken = {name for job in in_flight for name in job.unit.touches or ()}
    batch: list[Job] = []
    left: list[Job] = []
    while waiting and len(batch) < BATCH and len(left) < _LOOK_AT and (touches := waiting[0].unit.touches) is not None:
        job = waiting.popleft()
        (batch if taken.isdisjoint(touches) else left).append(job)
        taken |= touches
    waiting.extendleft(reversed(left))
    return batch


class UnitQueue:
    """Hands units to writers, each in a thread of its own that begins with the first unit."""

    def __init__(
        self,
        new_writer: Callable[[], UnitWriter],
        *,
        writers: int = 1,
        choose: Callable[[deque[Job], Sequence[Job]], list[Job]] = first_come,
    ) -> None:
        self._new_writer = new_writer
        self._writers = writers
        self._choose = choose
        self._jobs: deque[Job] = deque()
        self._in_flight: list[Job] = []
        self._wake = threading.Condition()
        self._idle = 0
        self._closing = False
        self._threads: list[threading.Thread] = []

    async def commit(self, unit: Unit) -> int:
        """Wait until the unit is durable; the id that its guard returned. See `Store.commit`."""
        future: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        # Of a caller that went away, nobody else asks what became of it.
        future.add_done_callback(lambda done: done.cancelled() or done.exception())
        self._put(Job(unit, future))
        # A caller that goes away does not undo the unit: it stays queued and is written.
        return await asyncio.shield(future)

    def submit(self, unit: Unit) -> None:
        """Have the unit written soon, without waiting; a failure is logged."""
        self._put(Job(unit, None))

    def close(self) -> None:
        """Write what is queued, and end the threads; one that its database keeps waiting is left behind."""
        with self._wake:
            self._closing = True
            self._wake.notify_all()
        until = time.monotonic() + _CLOSING_SECONDS
        for thread in self._threads:
            thread.join(max(0.0, until - time.monotonic()))
            if thread.is_alive():
                _LOG.error("what was to be written last may not be: the store does not answer")

    def _put(self, job: Job) -> None:
        with self._wake:
            if self._closing:
                raise Unavailable("the store is closed")
            self._jobs.append(job)
            if not self._idle and len(self._threads) < self._writers:
                thread = threading.Thread(target=self._run, name="enrolld-writer", daemon=True)
                self._threads.append(thread)
                thread.start()
            self._wake.notify()

    def _run(self) -> None:
        writer = self._new_writer()
        while batch := self._take():
            try:
                writer.write(batch)
            except Exception:  # noqa: BLE001  # the thread's edge: a bug must fail its batch, never leave callers waiting
                _LOG.exception("the writer met a fault of its own")
                for job in batch:
                    job.error = InternalError("the store met a fault of its own")
            self._over(batch)
            _answer(batch)
        writer.close()

    def _take(self) -> list[Job]:
        with self._wake:
            self._idle += 1
            while True:
                batch = self._choose(self._jobs, self._in_flight) if self._jobs else []
                if batch or (self._closing and not self._jobs):
                    self._idle -= 1
                    self._in_flight += batch
                    return batch
                self._wake.wait()

    def _over(self, batch: list[Job]) -> None:
        """What had to wait for this batch need not any more."""
        with self._wake:
            self._in_flight = [job for job in self._in_flight if job not in batch]
            self._wake.notify_all()


def _answer(batch: list[Job]) -> None:
    waiting: dict[asyncio.AbstractEventLoop, list[Job]] = {}
    for job in batch:
        if job.future is not None:
            waiting.setdefault(job.future.get_loop(), []).append(job)
        elif job.error is not None:
            _LOG.warning("a record could not be written: %s", job.error)
    for loop, jobs in waiting.items():
        try:
            # One wake-up for the whole batch.
            loop.call_soon_threadsafe(_resolve, jobs)
        except RuntimeError:
            _LOG.warning("%d answers came after their event loop was closed", len(jobs))


def _resolve(jobs: list[Job]) -> None:
    for job in jobs:
        future = job.future
        if future is None or future.done():
            continue
        if job.error is not None:
            future.set_exception(job.error)
        else:
            future.set_result(job.guard_id)
