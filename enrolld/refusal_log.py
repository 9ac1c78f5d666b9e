"""How refusals are logged: a line for each, at a limited rate, and beyond it sums, so that junk can't fill a disk.

Each source prefix (IPv4 /24, IPv6 /64) has a bucket of lines, and all of them together have a larger one. What finds
its bucket empty is counted by prefix, realm and reason, and told once a minute. Every worker counts for itself.
"""

import functools
import ipaddress
import logging
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass

__all__ = ["RefusalLimits", "RefusalLog", "prefix_of"]

_LOG = logging.getLogger(__name__)

_V4_PREFIX, _V6_PREFIX = 24, 64


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


@dataclass(slots=True)
class _Bucket:
    tokens: float
    filled: float

    def take(self, now: float, burst: float, rate: float) -> bool:
        self.tokens = min(burst, self.tokens + (now - self.filled) * rate)
        self.filled = now
        if self.tokens < 1:
            return False
        self.tokens -= 1
        return True


class RefusalLog:
    """Decides which refusals get a line of their own, and tells the sums of the others."""

    def __init__(self, limits: RefusalLimits | None = None, clock: Callable[[], float] = time.monotonic) -> None:
        self._limits = limits or RefusalLimits()
        self._clock = clock
        self._all = _Bucket(self._limits.total_burst, clock())
        self._buckets: OrderedDict[str, _Bucket] = OrderedDict()
        self._sums: dict[tuple[str, str, str], int] = {}
        self._beyond = 0  # refusals that found no place among the sums
        self._since = 0.0  # when the first of the sums began

    def admits(self, source: str, realm: str, reason: str) -> bool:
        """Whether this refusal's line is to be written; if not, it is counted."""
        now = self._clock()
        self.tell_due()
        prefix = prefix_of(source)
        limits = self._limits
        if self._bucket(prefix, now).take(now, limits.burst, limits.rate) and self._all.take(
            now, limits.total_burst, limits.total_rate
        ):
            return True
        if not self._sums and not self._beyond:
            self._since = now
        key = (prefix, realm, reason)
        if key in self._sums or len(self._sums) < limits.sums:
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

    def _bucket(self, prefix: str, now: float) -> _Bucket:
        bucket = self._buckets.get(prefix)
        if bucket is None:
            if len(self._buckets) >= self._limits.prefixes:
                self._buckets.popitem(last=False)
            bucket = self._buckets[prefix] = _Bucket(self._limits.burst, now)
        else:
            self._buckets.move_to_end(prefix)
        return bucket


@functools.lru_cache(4096)
def prefix_of(source: str) -> str:
    """The network that an address counts with, such as "192.0.2.0/24"; what is no address ("local") stays itself."""
    try:
        address = ipaddress.ip_address(source.partition("%")[0])
    except ValueError:
        return source[:64] or "unknown"
    if isinstance(address, ipaddress.IPv6Address):
        if address.ipv4_mapped is None:
            return str(ipaddress.ip_network((address, _V6_PREFIX), strict=False))
        address = address.ipv4_mapped
    return str(ipaddress.ip_network((address, _V4_PREFIX), strict=False))


def _tell(count: int, what: str, ecs: dict[str, str]) -> None:
    requests = "1 more request" if count == 1 else f"{count} more requests"
    fields = {"event.action": "refusals", "event.outcome": "failure", "enrolld.count": count, **ecs}
    _LOG.info("refused %s %s", requests, what, extra={"ecs": fields})
