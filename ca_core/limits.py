"""How often something may be done for one source or one device, at a bounded price, and how often it is told."""

import functools
import ipaddress
import logging
from collections import OrderedDict
from collections.abc import Callable, Hashable

_MANY = 4096
_V4_PREFIX, _V6_PREFIX = 24, 64


class Buckets:
    """`burst` at once, then `rate` a second, for each key by itself.

    The `keys` that were used last are remembered; a forgotten one starts anew. `clock` counts seconds and never
    goes back.
    """

    def __init__(self, *, rate: float, burst: float, clock: Callable[[], float], keys: int = _MANY) -> None:
        self._rate = rate
        self._burst = burst
        self._clock = clock
        self._keys = keys
        self._kept: OrderedDict[Hashable, tuple[float, float]] = OrderedDict()

    def __len__(self) -> int:
        """How many keys are remembered."""
        return len(self._kept)

    def take(self, key: Hashable) -> bool:
        """Take a token of `key`. False when there is none."""
        now = self._clock()
        tokens, filled = self._kept.pop(key, (self._burst, now))
        tokens = min(self._burst, tokens + (now - filled) * self._rate)
        allowed = tokens >= 1
        self._kept[key] = (tokens - 1 if allowed else tokens, now)
        if len(self._kept) > self._keys:
            self._kept.popitem(last=False)
        return allowed


@functools.lru_cache(4096)
def source_prefix(source: str) -> str:
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


class Complaints:
    """What is wrong, each told once in the life of a process: it is looked at every few seconds."""

    def __init__(self, log: logging.Logger) -> None:
        self._log = log
        self._told: set[str] = set()

    def tell(self, what: str) -> None:
        """Log it as an error, unless that was done."""
        if what not in self._told:
            self._told.add(what)
            self._log.error("%s", what)
