"""A worker: `python -m enrolld.worker DESCRIPTOR`, started by the supervisor, never by hand.

It learns all it needs from the socket that it inherits, opens the core, serves the inherited listeners, and leaves when
it is told (SIGTERM) or when the supervisor's end of that socket closes, however the supervisor died. This module is the
edge of the process and imports the rest when its log works, so that whatever goes wrong is a line there.
"""

import logging
import os
import socket
import sys
import threading
from collections.abc import Sequence

from ca_core.errors import CoreError, OperatorError
from enrolld import faults, log, process
from enrolld.process import Failed, WorkerSettings

__all__ = ["main"]

_LOG = logging.getLogger(__name__)


def main(arguments: Sequence[str]) -> int:
    """Serve until told to stop; the exit status is for the supervisor's log."""
    process.harden()  # enforces case 73
    process.die_with_the_supervisor()
    with socket.socket(fileno=int(arguments[0])) as channel:
        return _live(channel)


def _live(channel: socket.socket) -> int:
    try:
        settings = process.receive(channel)
    except EOFError:
        return 0
    if process.is_alone(channel):  # it was killed before it could take this worker along
        return 0
    log.setup(settings.log, f"worker-{settings.number}")
    threading.excepthook = _thread_died
    try:
        _work(settings, channel)
    except OperatorError as exc:
        return _give_up(channel, Failed(*faults.fault_of(exc)))
    except CoreError as exc:
        _LOG.exception("the core can't be opened")
        return _give_up(channel, Failed(*faults.fault_of(exc)))
    except Exception as exc:  # noqa: BLE001  # the edge of the process: the log is the only place left to tell
        _LOG.critical("the worker ends", exc_info=True)
        what = f"{type(exc).__name__}: {exc}"
        return _give_up(channel, Failed("worker_failed", f"A worker can't work: {what}", "Its log says where."))
    return 0


def _work(settings: WorkerSettings, channel: socket.socket) -> None:
    import uvloop

    from ca_core.authority.pin import HsmSettings, Pin
    from ca_core.authority.sealing import UnlockKey
    from ca_core.core import Core, CoreConfig
    from ca_core.limits import RateLimits
    from enrolld.limits import Networks
    from enrolld.metrics.counts import Counts
    from enrolld.metrics.link import Link, last_words
    from enrolld.metrics.meter import WorkerMeter
    from enrolld.serving import run
    from enrolld.webhook import WebhookClient
    from enrolld.webhook_keys import WebhookKey

    link = Link(Counts(), settings.number)
    meter = WorkerMeter(link.counts)
    pin = Pin(settings.hsm_pin) if settings.hsm_pin is not None else None
    pins = {token: Pin(value) for token, value in settings.hsm_pins.items()}
    hsm = HsmSettings(settings.hsm_module, pin, pins)
    keys = {name: WebhookKey(value) for name, value in settings.webhook_keys.items()}
    core = Core.open(
        CoreConfig(
            store_url=settings.store_url,
            unlock_key=UnlockKey(settings.unlock_key) if settings.unlock_key is not None else None,
            public_url=settings.public_url,
            demo=settings.demo,
            process=f"worker-{settings.number}",
            meter=meter,
            rates=RateLimits(
                per_device=settings.limits.certificates_per_device,
                per_credential=settings.limits.certificates_per_credential,
                refusals_per_source=settings.limits.refusals_per_source,
                is_trusted=Networks(settings.limits.trusted).has,
            ),
            waiting=settings.limits.waiting,
            webhook=WebhookClient(keys, delivered=meter.delivered),
            hsm=hsm if hsm.all_pins() else None,
        )
    )
    try:
        uvloop.run(run(core, settings, channel, link))
    finally:
        core.close()
    if link.is_whole:
        last_words(link.counts, channel)


def _thread_died(args: threading.ExceptHookArgs) -> None:
    """End at once: a worker without its writer thread would accept requests and answer none. Another one starts."""
    _LOG.critical("the thread %s died", args.thread.name if args.thread else "?", exc_info=args.exc_value)
    logging.shutdown()
    os._exit(1)


def _give_up(channel: socket.socket, failed: Failed) -> int:
    try:
        channel.setblocking(True)
        process.send(channel, failed)
    except OSError:  # the supervisor is gone, or is not listening any more
        pass
    return 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
