"""What happens in a worker, as numbers: told by the core, the listeners and the periodic jobs."""

import time
from collections.abc import Callable

from enrolld.metrics import catalogue as metrics
from enrolld.metrics.counts import Counts
from enrolld.tls import TlsPeer

__all__ = ["WorkerMeter"]


class WorkerMeter:
    """The core's `Meter`, and more of the same for the daemon. `clock` gives seconds since 1970."""

    def __init__(self, counts: Counts, clock: Callable[[], float] = time.time) -> None:
        self.counts = counts
        self._clock = clock

    # For the core: ca_core.meter

    def signed(self, backend: str, seconds: float) -> None:
        """A CA's key has signed."""
        self.counts.observe(metrics.SIGN_SECONDS, seconds, backend)

    def committed(self, seconds: float, units: int) -> None:
        """A transaction is durable."""
        self.counts.observe(metrics.COMMIT_SECONDS, seconds)
        self.counts.observe(metrics.COMMIT_UNITS, units)

    def refused(self, realm: str, protocol: str, code: str) -> None:
        """A request was refused, or a connection before it became one."""
        self.counts.add(metrics.REFUSALS, realm, protocol, code)
        if protocol == "http" and code in metrics.FAILED_HANDSHAKES:
            self.counts.add(metrics.HANDSHAKES, "", "", "failed")

    # For the listeners

    def requested(self, realm: str, protocol: str, operation: str, outcome: str, seconds: float) -> None:
        """A request was answered; `outcome` is issued, pending, refused, error or served."""
        self.counts.add(metrics.REQUESTS, realm, protocol, operation, outcome)
        self.counts.observe(metrics.REQUEST_SECONDS, seconds, protocol, operation)

    def shook_hands(self, peer: TlsPeer) -> None:
        """A TLS handshake came to a good end."""
        self.counts.add(metrics.HANDSHAKES, peer.version, peer.group or "", "ok")

    # For the webhooks

    def delivered(self, realm: str, outcome: str) -> None:
        """A realm's webhook was asked."""
        self.counts.add(metrics.WEBHOOK_DELIVERIES, realm, outcome)

    # For the jobs

    def job_done(self, job: str) -> None:
        """A periodic job came to a good end."""
        self.counts.set(metrics.JOB_SUCCESS, self._clock(), job)

    def job_failed(self, job: str) -> None:
        """A periodic job failed."""
        self.counts.add(metrics.JOB_FAILURES, job)

    def lease(self, *, is_held: bool) -> None:
        """Whether this worker does the periodic work."""
        self.counts.set(metrics.LEASE_HELD, float(is_held), "chores")
