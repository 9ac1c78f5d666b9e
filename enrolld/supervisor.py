"""The parent of the workers: binds every socket once, hands them out, and brings back workers that die.

(1) take the lock of the directory; (2) bind; (3) open or make the store, and the server certificates; (4) start the
workers; (5) when all are ready, write `serve.json` and say so; (6) wait. It serves nothing itself, so that nothing a
peer sends ever reaches it.
"""

import asyncio
import logging
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, field
from typing import Any

from ca_core.errors import OperatorError
from enrolld import process
from enrolld.process import Failed, SocketSettings, WorkerSettings

__all__ = ["Supervisor"]

_LOG = logging.getLogger(__name__)

_START_SECONDS = 60.0
_DRAIN_SECONDS = 20.0
_FIRST_PAUSE = 0.1
_LONGEST_PAUSE = 10.0
_STEADY_SECONDS = 30.0
"""A worker that lived this long was sound: its successor starts at once."""


@dataclass(slots=True)
class _Worker:
    """One place among the workers, and the process that fills it now."""

    number: int
    child: subprocess.Popen[bytes] | None = None
    channel: asyncio.StreamReader | None = None
    writer: asyncio.StreamWriter | None = None
    pause: float = _FIRST_PAUSE
    started: float = field(default_factory=time.monotonic)


class Supervisor:
    """Keeps `count` workers alive over `sockets` until it is told to stop."""

    def __init__(self, settings: Callable[[int, tuple[SocketSettings, ...]], WorkerSettings], count: int) -> None:
        self._settings = settings
        self._stop = asyncio.Event()
        self._hurry = asyncio.Event()
        self._workers = [_Worker(number) for number in range(1, count + 1)]

    async def run(
        self, sockets: list[tuple[str, socket.socket]], ready: Callable[[], None], stopping: Callable[[], None]
    ) -> None:
        """Serve until SIGTERM or SIGINT. Raises OperatorError when the workers can't start.

        `ready` is called once all workers accept, `stopping` before they are told to end.
        """
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._stop_now)
        loop.add_signal_handler(signal.SIGHUP, _LOG.info, "SIGHUP: there is nothing to reload yet; restart instead")
        keepers: list[asyncio.Task[None]] = []
        try:
            if not await self._until_stopped(self._start_all(sockets)):
                return
            ready()
            keepers = [asyncio.create_task(self._keep(worker, sockets)) for worker in self._workers]
            await self._stop.wait()
        finally:
            stopping()
            for keeper in keepers:
                keeper.cancel()
            await asyncio.gather(*keepers, return_exceptions=True)
            await self._drain(sockets)

    def _stop_now(self) -> None:
        if self._stop.is_set():
            self._hurry.set()  # asked twice: do not wait for anybody
        self._stop.set()

    async def _until_stopped(self, starting: Coroutine[None, None, None]) -> bool:
        """Await `starting`, unless told to stop before: then False."""
        work = asyncio.create_task(starting)
        stop = asyncio.create_task(self._stop.wait())
        both: list[asyncio.Task[Any]] = [work, stop]
        await asyncio.wait(both, return_when=asyncio.FIRST_COMPLETED)
        stop.cancel()
        if not work.done():
            work.cancel()
            await asyncio.wait([work])
            return False
        work.result()
        return True

    async def _start_all(self, sockets: list[tuple[str, socket.socket]]) -> None:
        starts = [asyncio.create_task(self._start(worker, sockets)) for worker in self._workers]
        try:
            await asyncio.gather(*starts)
        finally:
            for start in starts:
                start.cancel()
            await asyncio.gather(*starts, return_exceptions=True)

    async def _start(self, worker: _Worker, sockets: list[tuple[str, socket.socket]]) -> None:
        """Start the process and wait for its answer. Raises OperatorError when it can't serve."""
        ours, theirs = socket.socketpair()
        inherited = tuple(SocketSettings(kind, one.fileno()) for kind, one in sockets)
        # A terminal sends SIGINT to the whole group, but draining is the supervisor's to order: the mask is inherited.
        before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGHUP})
        try:
            worker.child = subprocess.Popen(  # noqa: ASYNC220, S603  # our own interpreter and module; no wait
                # -P: a file in the current directory never stands in for a module.
                [sys.executable, "-P", "-m", "enrolld.worker", str(theirs.fileno())],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                pass_fds=[theirs.fileno(), *(one.fileno() for _, one in sockets)],
            )
        except OSError as exc:
            ours.close()
            raise OperatorError(
                "worker_failed",
                f"A worker can't be started: {exc.strerror}.",
                "Look at the limits of processes and memory.",
            ) from exc
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
            theirs.close()
        worker.started = time.monotonic()
        process.send(ours, self._settings(worker.number, inherited))  # far below a socket's buffer: it never blocks
        worker.channel, worker.writer = await asyncio.open_unix_connection(sock=ours)
        try:
            async with asyncio.timeout(_START_SECONDS):
                head = await worker.channel.readexactly(4)
                answer = process.decode_answer(head + await worker.channel.readexactly(int.from_bytes(head, "big")))
        except (TimeoutError, asyncio.IncompleteReadError, ConnectionError) as exc:
            slow = isinstance(exc, TimeoutError)
            status = await self._end(worker, at_once=True)
            how = f"is not ready after {_START_SECONDS:.0f} s" if slow else f"ended at its start ({_ending(status)})"
            raise OperatorError("worker_failed", f"Worker {worker.number} {how}.", "Its log says why.") from exc
        if isinstance(answer, Failed):
            await self._end(worker, at_once=True)
            raise OperatorError(answer.error, answer.message, answer.remedy)
        _LOG.info("worker %d is ready (process %d)", worker.number, worker.child.pid)

    async def _keep(self, worker: _Worker, sockets: list[tuple[str, socket.socket]]) -> None:
        """Replace the worker whenever it ends; the longer a series of early deaths, the longer the pause."""
        while True:
            if worker.channel is not None:
                await worker.channel.read()  # the end of the stream is the end of the process
                lived = time.monotonic() - worker.started
                status = await self._end(worker, at_once=False)
                worker.pause = _FIRST_PAUSE if lived > _STEADY_SECONDS else min(worker.pause * 2, _LONGEST_PAUSE)
                _LOG.error("worker %d ended (%s); another starts", worker.number, _ending(status))
            await asyncio.sleep(worker.pause)
            try:
                await self._start(worker, sockets)
            except OperatorError as exc:
                worker.channel = None
                worker.pause = min(worker.pause * 2, _LONGEST_PAUSE)
                _LOG.error(
                    "worker %d: %s %s Trying again in %.1f s", worker.number, exc.message, exc.remedy, worker.pause
                )

    async def _drain(self, sockets: list[tuple[str, socket.socket]]) -> None:
        """Have every worker finish what it serves, then end it."""
        for _, one in sockets:
            one.close()
        for worker in self._workers:
            if worker.child is not None and worker.child.poll() is None:
                worker.child.terminate()
        await asyncio.gather(*(self._end(worker, at_once=False, patience=_DRAIN_SECONDS) for worker in self._workers))

    async def _end(self, worker: _Worker, *, at_once: bool, patience: float = 2.0) -> int:
        """Wait for the process, help it along when it lingers, and return its status."""
        child = worker.child
        if child is None:
            return 0
        ended = asyncio.create_task(asyncio.to_thread(child.wait))
        if not at_once:
            hurry = asyncio.create_task(self._hurry.wait())
            await asyncio.wait([ended, hurry], timeout=patience, return_when=asyncio.FIRST_COMPLETED)
            hurry.cancel()
        if child.poll() is None:
            if not at_once:
                _LOG.warning("worker %d does not end; it is killed", worker.number)
            child.kill()
        status = await ended
        if worker.writer is not None:
            worker.writer.close()
        worker.child = worker.channel = worker.writer = None
        return status


def _ending(status: int) -> str:
    if status >= 0:
        return f"exit status {status}"
    try:
        return f"signal {signal.Signals(-status).name}"
    except ValueError:
        return f"signal {-status}"
