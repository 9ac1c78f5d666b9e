"""A worker's end of the socket pair: it pushes what it counts, and asks for the sums of all when it is scraped."""

import asyncio
import contextlib
import logging
import os
import socket
import time
from collections.abc import Callable

from enrolld.metrics.catalogue import WORKER_CPU, WORKER_FDS, WORKER_MEMORY
from enrolld.metrics.counts import Counts, Key, Numbers
from enrolld.metrics.messages import Ask, Counted, Tell, from_supervisor, pack, portions, read_frame

__all__ = ["Link", "last_words"]

_LOG = logging.getLogger(__name__)

_PUSH_EVERY = 1.0
_ANSWER_SECONDS = 3.0
_FLUSH_SECONDS = 1.0
_PAGE = os.sysconf("SC_PAGE_SIZE")


class Link:
    """What a worker says to the supervisor and hears of it. `number` is the worker's place."""

    def __init__(self, counts: Counts, number: int) -> None:
        self.counts = counts
        self._number = str(number)
        self._cpu = 0.0
        self.readers: list[Callable[[Counts], None]] = [self._measure]
        """Called whenever the numbers are asked for, to `set` the gauges that are looked at and not counted."""
        self._reader: asyncio.StreamReader | None = None
        self._writer: asyncio.StreamWriter | None = None
        self._asked = 0
        self._heard: list[tuple[Key, Numbers]] = []
        self._answer: asyncio.Future[dict[Key, Numbers]] | None = None
        self._turn = asyncio.Lock()
        self.is_whole = False
        """Whether all that was sent is sent in full, so that more may follow on the same socket."""

    async def open(self, channel: socket.socket) -> None:
        """Talk over `channel` from now on; the socket stays the caller's."""
        self._reader, self._writer = await asyncio.open_unix_connection(sock=channel.dup())

    async def run(self) -> None:
        """Push and listen until the supervisor's end closes. It must be open."""
        if self._reader is None:
            raise RuntimeError("the link is not open")
        pushing = asyncio.create_task(self._push_regularly())
        try:
            while (frame := await read_frame(self._reader)) is not None:
                message = from_supervisor(frame)
                if isinstance(message, Tell):
                    self._push(message.round)
                elif self._answer is not None and message.number == self._asked:
                    self._heard += ((series.key, series.numbers) for series in message.series)
                    if message.is_last and not self._answer.done():
                        self._answer.set_result(dict(self._heard))
        except ValueError:
            _LOG.exception("the supervisor is not understood, so this worker leaves")
        finally:
            pushing.cancel()
            await asyncio.gather(pushing, return_exceptions=True)
            await self._close()

    async def totals(self) -> dict[Key, Numbers]:
        """The sums of all workers. Raises TimeoutError when the supervisor does not answer."""
        async with self._turn:
            if self._writer is None or self._writer.is_closing():
                raise TimeoutError
            self._asked += 1
            self._heard = []
            self._answer = asyncio.get_running_loop().create_future()
            self._writer.write(pack(Ask(self._asked)))
            async with asyncio.timeout(_ANSWER_SECONDS):
                return await self._answer

    def _measure(self, counts: Counts) -> None:
        """What the process itself takes."""
        cpu = time.process_time()
        counts.add(WORKER_CPU, self._number, amount=cpu - self._cpu)
        self._cpu = cpu
        with contextlib.suppress(OSError):  # another system than Linux
            with open("/proc/self/statm", "rb") as file:
                pages = int(file.read().split()[1])
            counts.set(WORKER_MEMORY, pages * _PAGE, self._number)
            counts.set(WORKER_FDS, len(os.listdir("/proc/self/fd")), self._number)

    async def _push_regularly(self) -> None:
        while True:
            await asyncio.sleep(_PUSH_EVERY)
            self._push(0)
            if self._writer is not None:
                await self._writer.drain()

    def _push(self, number: int) -> None:
        if self._writer is None or self._writer.is_closing():
            return
        if number:
            for read in self.readers:
                read(self.counts)
        for portion, is_last in portions(self.counts.changed()):
            if portion or number:
                self._writer.write(pack(Counted(portion, number if is_last else 0)))

    async def _close(self) -> None:
        if self._writer is None:
            return
        self._writer.close()
        with contextlib.suppress(TimeoutError, ConnectionError):
            async with asyncio.timeout(_FLUSH_SECONDS):
                await self._writer.wait_closed()
                self.is_whole = True


def last_words(counts: Counts, channel: socket.socket) -> None:
    """Say what was counted since the last push, when the event loop has ended and nothing is counted any more."""
    try:
        channel.settimeout(_FLUSH_SECONDS)
        for portion, _ in portions(counts.changed()):
            channel.sendall(pack(Counted(portion)))
    except OSError:
        _LOG.debug("the supervisor does not listen any more")
