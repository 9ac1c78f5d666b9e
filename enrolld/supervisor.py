"""The parent of the workers: binds every socket once, hands them out, and brings back workers that die.

(1) take the lock of the directory; (2) bind; (3) open or make the store, and the server certificates; (4) start the
workers; (5) when all are ready, write `serve.json` and say so; (6) wait. It serves nothing itself, so that nothing a
peer sends ever reaches it.

SIGTERM and SIGINT drain and end. SIGHUP has the configuration read again: new workers take it, all of them or none, and
only then do the old ones leave. SIGUSR2 replaces the workers one by one by new processes of the same configuration. The
sockets stay open throughout, so that no connection that waits in their queues is lost.
"""

import asyncio
import logging
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable, Coroutine
from dataclasses import dataclass, field
from typing import Any

from ca_core.errors import OperatorError
from enrolld import process
from enrolld.board import Board
from enrolld.metrics.catalogue import RELOADS, WORKER_RESTARTS
from enrolld.metrics.messages import read_frame
from enrolld.metrics.sums import Sums
from enrolld.notify import notify, watchdog_seconds
from enrolld.process import BoardSettings, Failed, SocketSettings, WorkerSettings

__all__ = ["Reload", "Settings", "Supervisor"]

_LOG = logging.getLogger(__name__)

Settings = Callable[[int, tuple[SocketSettings, ...], BoardSettings], WorkerSettings]
"""What a worker, by its number, the sockets it inherits and its place on the board, is told."""
Sockets = list[tuple[str, socket.socket]]
Reload = Callable[[], Awaitable[tuple[Settings, Callable[[], Awaitable[None]]]]]

_START_SECONDS = 60.0
_DRAIN_SECONDS = 20.0
_LAST_WORDS_SECONDS = 1.0  # what a process that has ended left in its socket
_FIRST_PAUSE = 0.1
_LONGEST_PAUSE = 10.0
_STEADY_SECONDS = 30.0
"""A worker that lived this long was sound: its successor starts at once."""


@dataclass(slots=True)
class _Worker:
    """One place among the workers, and the process that fills it now."""

    number: int
    child: subprocess.Popen[bytes] | None = None
    row: int = -1
    """Its row of the board while it runs."""
    channel: asyncio.StreamReader | None = None
    writer: asyncio.StreamWriter | None = None
    followed: asyncio.Task[None] | None = None
    """Hears what the process says, and ends with it."""
    pause: float = _FIRST_PAUSE
    started: float = field(default_factory=time.monotonic)


class Supervisor:
    """Keeps `count` workers alive over `sockets` until it is told to stop."""

    def __init__(self, settings: Settings, count: int) -> None:
        self._settings = settings
        self._stop = asyncio.Event()
        self._hurry = asyncio.Event()
        self._workers = [_Worker(number) for number in range(1, count + 1)]
        self._board = Board.make(2 * count)  # while workers are replaced, the old ones finish beside the new
        self._free_rows = list(range(2 * count))
        self._keepers: dict[int, asyncio.Task[None]] = {}
        self._sums = Sums()
        self._orders: asyncio.Queue[signal.Signals] = asyncio.Queue()
        self._waiting_orders: set[signal.Signals] = set()

    async def run(
        self,
        sockets: Sockets,
        ready: Callable[[], None],
        stopping: Callable[[], None],
        reload: Reload,
    ) -> None:
        """Serve until SIGTERM or SIGINT. Raises OperatorError when the workers can't start.

        `ready` is called once all workers accept, `stopping` before they are told to end. `reload` reads the
        configuration again: the settings of new workers, and what to do once these serve. It raises OperatorError.
        """
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._stop_now)
        for order in (signal.SIGHUP, signal.SIGUSR2):
            loop.add_signal_handler(order, self._order, order)
        orders: asyncio.Task[None] | None = None
        try:
            if not await self._until_stopped(self._start_all(self._workers, self._settings, sockets)):
                return
            ready()
            notify("READY=1", f"STATUS={len(self._workers)} workers serve")
            for worker in self._workers:
                self._watch(worker, sockets)
            orders = asyncio.create_task(self._obey(sockets, reload))
            await self._until_told_to_stop()
        finally:
            notify("STOPPING=1")
            stopping()
            if orders is not None:
                orders.cancel()
                await asyncio.gather(orders, return_exceptions=True)
            for keeper in self._keepers.values():
                keeper.cancel()
            await asyncio.gather(*self._keepers.values(), return_exceptions=True)
            for _, one in sockets:
                one.close()
            await self._drain(self._workers)
            self._board.close()

    def _order(self, order: signal.Signals) -> None:
        """Have it carried out after what is carried out now; one that waits already stands for all of its kind."""
        if order not in self._waiting_orders:
            self._waiting_orders.add(order)
            self._orders.put_nowait(order)

    async def _obey(self, sockets: Sockets, reload: Reload) -> None:
        """Carry out what signals order, one after the other."""
        while True:
            order = await self._orders.get()
            self._waiting_orders.discard(order)
            notify("RELOADING=1", f"MONOTONIC_USEC={time.monotonic_ns() // 1000}")
            try:
                if order == signal.SIGUSR2:
                    for number in [worker.number for worker in self._workers]:
                        await self._replace([number], self._settings, sockets)
                    _LOG.info("SIGUSR2: every worker is a new process")
                else:
                    settings, adopted = await reload()
                    await self._replace([worker.number for worker in self._workers], settings, sockets)
                    await adopted()
                    self._sums.own.add(RELOADS, "ok")
                    _LOG.info("SIGHUP: the configuration was read again, and every worker has it")
            except OperatorError as exc:
                self._not_carried_out(order)
                _LOG.error("%s: it was not carried out. %s %s", order.name, exc.message, exc.remedy)
            except Exception:  # noqa: BLE001  # a bug here must not end a daemon that serves
                self._not_carried_out(order)
                _LOG.exception("%s: it was not carried out", order.name)
            finally:
                notify("READY=1")

    def _not_carried_out(self, order: signal.Signals) -> None:
        if order == signal.SIGHUP:
            self._sums.own.add(RELOADS, "failed")

    async def _replace(self, numbers: list[int], settings: Settings, sockets: Sockets) -> None:
        """New processes in these places, all or none; the old ones leave when the new ones serve."""
        fresh = [_Worker(number) for number in numbers]
        try:
            await self._start_all(fresh, settings, sockets)
        except BaseException:
            await asyncio.gather(*(self._end(worker, at_once=True) for worker in fresh))
            raise
        old = [worker for worker in self._workers if worker.number in numbers]
        keepers = [self._keepers.pop(worker.number) for worker in old]
        for keeper in keepers:
            keeper.cancel()
        await asyncio.gather(*keepers, return_exceptions=True)
        self._workers = sorted(
            [*(worker for worker in self._workers if worker not in old), *fresh], key=lambda worker: worker.number
        )
        self._settings = settings  # before the old ones are waited for: one of the new may die meanwhile
        for worker in fresh:
            self._watch(worker, sockets)
        await self._drain(old)

    def _watch(self, worker: _Worker, sockets: Sockets) -> None:
        self._keepers[worker.number] = asyncio.create_task(self._keep(worker, sockets))

    async def _until_told_to_stop(self) -> None:
        """And meanwhile tell the service manager that this loop turns, if it wants to know."""
        every = watchdog_seconds()
        while not self._stop.is_set():
            try:
                async with asyncio.timeout(every):
                    await self._stop.wait()
            except TimeoutError:
                notify("WATCHDOG=1")

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

    async def _start_all(self, workers: list[_Worker], settings: Settings, sockets: Sockets) -> None:
        starts = [asyncio.create_task(self._start(worker, settings, sockets)) for worker in workers]
        try:
            await asyncio.gather(*starts)
        finally:
            for start in starts:
                start.cancel()
            await asyncio.gather(*starts, return_exceptions=True)

    async def _start(self, worker: _Worker, settings: Settings, sockets: Sockets) -> None:
        """Start the process and wait for its answer. Raises OperatorError when it can't serve."""
        try:
            ours, theirs = socket.socketpair()
        except OSError as exc:
            raise _unstartable(exc) from exc
        inherited = tuple(
            SocketSettings(kind.removeprefix("proxy-"), one.fileno(), kind.startswith("proxy-"))
            for kind, one in sockets
        )
        # A terminal sends SIGINT to the whole group, but draining is the supervisor's to order: the mask is inherited.
        before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGHUP, signal.SIGUSR2})
        worker.row = self._free_rows.pop()
        try:
            worker.child = subprocess.Popen(  # noqa: ASYNC220, S603  # our own interpreter and module; no wait
                # -P: a file in the current directory never stands in for a module.
                [sys.executable, "-P", "-m", "enrolld.worker", str(theirs.fileno())],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                pass_fds=[theirs.fileno(), self._board.descriptor, *(one.fileno() for _, one in sockets)],
            )
        except OSError as exc:
            ours.close()
            self._leave_row(worker)
            raise _unstartable(exc) from exc
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
            theirs.close()
        worker.started = time.monotonic()
        board = BoardSettings(self._board.descriptor, self._board.rows, worker.row)
        try:
            # Far below a socket's buffer: it never blocks.
            process.send(ours, settings(worker.number, inherited, board))
            worker.channel, worker.writer = await asyncio.open_unix_connection(sock=ours)
            async with asyncio.timeout(_START_SECONDS):
                answer = process.decode_answer(await read_frame(worker.channel))
        except (TimeoutError, EOFError, OSError, ValueError) as exc:
            if worker.writer is None:
                ours.close()
            slow = isinstance(exc, TimeoutError)
            status = await self._end(worker, at_once=True)
            how = f"is not ready after {_START_SECONDS:.0f} s" if slow else f"ended at its start ({_ending(status)})"
            raise OperatorError("worker_failed", f"Worker {worker.number} {how}.", "Its log says why.") from exc
        if isinstance(answer, Failed):
            await self._end(worker, at_once=True)
            raise OperatorError(answer.error, answer.message, answer.remedy)
        name = f"worker {worker.number}"
        worker.followed = asyncio.create_task(self._sums.follow(name, worker.channel, worker.writer))
        _LOG.info("worker %d is ready (process %d)", worker.number, worker.child.pid)

    async def _keep(self, worker: _Worker, sockets: Sockets) -> None:
        """Replace the worker whenever it ends; the longer a series of early deaths, the longer the pause."""
        while True:
            try:
                if worker.followed is not None:
                    await asyncio.wait([worker.followed])  # the end of the stream is the end of the process
                    self._sums.own.add(WORKER_RESTARTS)
                    lived = time.monotonic() - worker.started
                    status = await self._end(worker, at_once=False)
                    worker.pause = _FIRST_PAUSE if lived > _STEADY_SECONDS else min(worker.pause * 2, _LONGEST_PAUSE)
                    _LOG.error("worker %d ended (%s); another starts", worker.number, _ending(status))
                await asyncio.sleep(worker.pause)
                await self._end(worker, at_once=True)  # of a start that went wrong half-way
                await self._start(worker, self._settings, sockets)
            except Exception as exc:  # noqa: BLE001  # whatever it is, the place must not stay empty
                worker.pause = min(worker.pause * 2, _LONGEST_PAUSE)
                words = f"{exc.message} {exc.remedy}" if isinstance(exc, OperatorError) else f"{exc!r}."
                _LOG.error("worker %d: %s Trying again in %.1f s", worker.number, words, worker.pause)
                if worker.followed is not None:
                    worker.followed.cancel()
                    worker.followed = None

    async def _drain(self, workers: list[_Worker]) -> None:
        """Have these workers finish what they serve, then end them."""
        for worker in workers:
            if worker.child is not None and worker.child.poll() is None:
                worker.child.terminate()
        await asyncio.gather(*(self._end(worker, at_once=False, patience=_DRAIN_SECONDS) for worker in workers))

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
        if worker.followed is not None:
            await asyncio.wait([worker.followed], timeout=_LAST_WORDS_SECONDS)
            worker.followed.cancel()
        if worker.writer is not None:
            worker.writer.close()
        worker.child = worker.channel = worker.writer = worker.followed = None
        self._leave_row(worker)
        return status

    def _leave_row(self, worker: _Worker) -> None:
        """What the process counted is over with it."""
        if worker.row >= 0:
            self._board.clear(worker.row)
            self._free_rows.append(worker.row)
            worker.row = -1


def _unstartable(exc: OSError) -> OperatorError:
    return OperatorError(
        "worker_failed",
        f"A worker can't be started: {exc.strerror}.",
        "Look at the limits of processes, descriptors and memory.",
    )


def _ending(status: int) -> str:
    if status >= 0:
        return f"exit status {status}"
    try:
        return f"signal {signal.Signals(-status).name}"
    except ValueError:
        return f"signal {-status}"
