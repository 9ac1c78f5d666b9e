"""Token buckets by key: how often something may be done for one source or one device, at a bounded price."""

import ipaddress
from collections import OrderedDict
from collections.abc import Callable, Hashable

_MANY = 4096


class Buckets:
    """`burst` at once, then `rate` a second, for each key by itself.

    The 4,096 keys that were used last are remembered; a forgotten one starts anew. `clock` counts seconds and never
    goes back.
    """

    def __init__(self, *, rate: float, burst: float, clock: Callable[[], float]) -> None:
        self._rate = rate
        self._burst = burst
        self._clock = clock
        self._kept: OrderedDict[Hashable, tuple[float, float]] = OrderedDict()

    def take(self, key: Hashable) -> bool:
        """Take a token of `key`. False when there is none."""
        now = self._clock()
        tokens, filled = self._kept.pop(key, (self._burst, now))
        tokens = min(self._burst, tokens + (now - filled) * self._rate)
        allowed = tokens >= 1
        self._kept[key] = (tokens - 1 if allowed else tokens, now)
        if len(self._kept) > _MANY:
            self._kept.popitem(last=False)
        return allowed


def source_prefix(address: str) -> str:
    """The network that an address is counted with: /24 of IPv4, /64 of IPv6; anything else as it is."""
    try:
        found = ipaddress.ip_address(address)
    except ValueError:
        return address
    mapped = found.ipv4_mapped if isinstance(found, ipaddress.IPv6Address) else None
    found = mapped or found
    return str(ipaddress.ip_network((found, 24 if found.version == 4 else 64), strict=False))
