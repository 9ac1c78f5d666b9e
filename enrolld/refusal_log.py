"""How refusals are logged: a line for each, at a limited rate, and beyond it sums, so that junk can't fill a disk.

Each source prefix (IPv4 /24, IPv6 /64) has a bucket of lines, and all of them together have a larger one. What finds
its bucket empty is counted by prefix, realm and reason, and told once a minute. Every worker counts for itself.
"""

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass

from ca_core.limits import Buckets, source_prefix

__all__ = ["RefusalLimits", "RefusalLog"]

_LOG = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class RefusalLimits:
    """How many lines refusals may cost. A rate is lines per second, a burst what may come at once."""

    burst: float = 50.0
    rate: float = 5.0

    total_burst: float = 500.0
    total_rate: float = 50.0
    """Of all sources together: an IPv6 network has more prefixes than anybody can hold."""

    prefixes: int = 4096
    """How many buckets are held; the one that was asked longest ago goes first."""

    sums: int = 1024
    """How many sums are held; what comes beyond them is added up in one."""

    sum_lines: int = 20
    """How many sums are told at a time, the largest first; the rest is added up in one line."""

    sum_seconds: float = 60.0


class RefusalLog:
    """Decides which refusals get a line of their own, and tells the sums of the others."""

    def __init__(self, limits: RefusalLimits | None = None, clock: Callable[[], float] = time.monotonic) -> None:
        self._limits = limits or RefusalLimits()
        self._clock = clock
        found = self._limits
        self._sources = Buckets(rate=found.rate, burst=found.burst, clock=clock, keys=found.prefixes)
        self._all = Buckets(rate=found.total_rate, burst=found.total_burst, clock=clock)
        self._sums: dict[tuple[str, str, str], int] = {}
        self._beyond = 0  # refusals that found no place among the sums
        self._since = 0.0  # when the first of the sums began

    def admits(self, source: str, realm: str, reason: str) -> bool:
        """Whether this refusal's line is to be written; if not, it is counted."""
        now = self._clock()
        self.tell_due()
        prefix = source_prefix(source)
        if self._sources.take(prefix) and self._all.take("all"):
            return True
        if not self._sums and not self._beyond:
            self._since = now
        key = (prefix, realm, reason)
        if key in self._sums or len(self._sums) < self._limits.sums:
            self._sums[key] = self._sums.get(key, 0) + 1
        else:
            self._beyond += 1
        return False

    def tell_due(self) -> None:
        """Write the sums when the minute that they are of is over."""
        if (self._sums or self._beyond) and self._clock() - self._since >= self._limits.sum_seconds:
            self.tell()

    def tell(self) -> None:
        """Write the sums, and begin anew."""
        sums, beyond = self._sums, self._beyond
        self._sums, self._beyond = {}, 0
        ordered = sorted(sums.items(), key=lambda item: (-item[1], item[0]))
        for (prefix, realm, reason), count in ordered[: self._limits.sum_lines]:
            where = f" by realm {realm}" if realm else ""
            ecs = {"source.address": prefix, "event.code": reason, **({"enrolld.realm": realm} if realm else {})}
            _tell(count, f"from {prefix}{where}: {reason}", ecs)
        rest = ordered[self._limits.sum_lines :]
        if count := beyond + sum(each for _, each in rest):
            _tell(count, "from other sources or for other reasons", {})


def _tell(count: int, what: str, ecs: dict[str, str]) -> None:
    requests = "1 more request" if count == 1 else f"{count} more requests"
    fields = {"event.action": "refusals", "event.outcome": "failure", "enrolld.count": count, **ecs}
    _LOG.info("refused %s %s", requests, what, extra={"ecs": fields})
