"""The supervisor's part: it adds up what its workers count, and what those that have ended had counted.

It takes nothing on trust. Whatever a worker says is decoded into numbers of known metrics with labels of closed sets,
or the channel to that worker ends, which ends the worker: another one is started.
"""

import asyncio
import contextlib
import itertools
import logging

from enrolld.metrics.catalogue import WORKERS
from enrolld.metrics.counts import Counts, Key, Numbers, Series, left_by, merged, vetted
from enrolld.metrics.messages import Ask, Counted, Tell, Totals, from_worker, pack, portions, read_frame

__all__ = ["Sums"]

_LOG = logging.getLogger(__name__)

_ANSWER_SECONDS = 0.5
"""For so long a scrape waits for workers; of one that is stuck, what it said last is counted."""

_UNANSWERED = 4
"""So many questions a worker that is stuck finds when it wakes up."""

_MAX_SERIES = 100_000


class _Followed:
    """One worker's process, as far as it has told what it counted."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer
        self.numbers: dict[Key, Numbers] = {}
        self.waiting: dict[int, asyncio.Event] = {}
        self.unanswered = 0
        self.answering: asyncio.Task[None] | None = None

    def tell(self, number: int) -> asyncio.Event:
        """Have it say what has changed. The event is set when it did, or when it can't any more."""
        told = asyncio.Event()
        if self.writer.is_closing():
            told.set()
        else:
            if self.unanswered < _UNANSWERED:
                self.unanswered += 1
                self.writer.write(pack(Tell(number)))
            self.waiting[number] = told
        return told

    def take(self, message: Counted) -> None:
        """Keep what it says. Raises ValueError."""
        self.numbers |= vetted(message.series)
        if len(self.numbers) > _MAX_SERIES:
            raise ValueError("it has more series than any configuration implies")
        if message.round:
            self.unanswered = 0
        for number in [number for number in self.waiting if number <= message.round]:
            self.waiting.pop(number).set()


class Sums:
    """What all workers have counted. `own` are the supervisor's own numbers."""

    def __init__(self) -> None:
        self.own = Counts()
        self._followed: set[_Followed] = set()
        self._gone: dict[Key, Numbers] = {}
        self._rounds = itertools.count(1)

    async def follow(self, name: str, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Take what one worker says, until its end. It raises nothing: a worker that talks nonsense is left alone."""
        one = _Followed(reader, writer)
        self._followed.add(one)
        try:
            while (frame := await read_frame(reader)) is not None:
                self._heard(one, from_worker(frame))
        except ValueError as exc:
            _LOG.error("%s is not believed any more, and has to leave: %s", name, exc)
        except Exception:  # noqa: BLE001  # a bug here must not end the supervisor
            _LOG.exception("%s can't be followed any more", name)
        finally:
            self._leave(one)
            if one.answering is not None:
                one.answering.cancel()
            writer.close()

    async def fresh(self) -> dict[Key, Numbers]:
        """The sums, with what each living worker says now; waits for none of them longer than half a second."""
        number = next(self._rounds)
        told = [asyncio.create_task(one.tell(number).wait()) for one in self._followed]
        if told:
            _, late = await asyncio.wait(told, timeout=_ANSWER_SECONDS)
            for task in late:
                task.cancel()
            for one in self._followed:
                one.waiting.pop(number, None)
        self.own.set(WORKERS, len(self._followed))
        return merged([self.own.all(), *(one.numbers for one in self._followed)], self._gone)

    def _heard(self, one: _Followed, message: Counted | Ask) -> None:
        if isinstance(message, Counted):
            one.take(message)
        elif one.answering is None or one.answering.done():  # else it asks faster than it can be answered
            one.answering = asyncio.create_task(self._answer(one, message.number))

    async def _answer(self, one: _Followed, number: int) -> None:
        series = [Series(*key, numbers) for key, numbers in (await self.fresh()).items()]
        with contextlib.suppress(ConnectionError):  # it has left without waiting for the answer
            for portion, is_last in portions(series):
                one.writer.write(pack(Totals(number, portion, is_last)))
                await one.writer.drain()

    def _leave(self, one: _Followed) -> None:
        self._followed.discard(one)
        for told in one.waiting.values():
            told.set()
        gone = merged([left_by(one.numbers)], self._gone)
        if len(gone) > _MAX_SERIES:
            _LOG.error("what the worker had counted is lost: there are more series than any configuration implies")
            return
        self._gone = gone
