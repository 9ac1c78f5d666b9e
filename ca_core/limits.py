"""How often something may be done for one source or one device, at a bounded price, and how often it is told."""

import functools
import ipaddress
import logging
import math
import time
from collections import OrderedDict
from collections.abc import Callable, Hashable
from dataclasses import dataclass

from ca_core.errors import TooMany

_MANY = 4096
_DOUBTS = 5  # refusals in a minute, with no certificate between them, after which a source goes last
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

    def is_empty(self, key: Hashable) -> bool:
        """Whether `take` would find nothing now."""
        found = self._kept.get(key)
        return found is not None and found[0] + (self._clock() - found[1]) * self._rate < 1

    def give_back(self, key: Hashable) -> None:
        """Undo one `take`."""
        if key in self._kept:
            tokens, filled = self._kept[key]
            self._kept[key] = (min(self._burst, tokens + 1), filled)

    def forget(self, key: Hashable) -> None:
        """Begin anew with this key."""
        self._kept.pop(key, None)

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


@dataclass(frozen=True, slots=True)
class RateLimits:
    """How much somebody may have; the numbers may also come at once. `is_trusted` addresses are free of the last."""

    per_device: int
    """Certificates for one device, in an hour; the same one given again does not count."""
    per_credential: int
    """Certificates that are got with one secret or certificate, in an hour."""
    refusals_per_source: int
    """Refusals of peers that prove nothing, from one source, in a minute."""
    is_trusted: Callable[[str], bool]


class Rates:
    """Counts certificates by device and credential, and refusals by source. Each process counts for itself."""

    def __init__(self, limits: RateLimits | None, clock: Callable[[], float] = time.monotonic) -> None:
        self._limits = limits
        if limits is None:
            return
        self._devices = Buckets(rate=limits.per_device / 3600, burst=limits.per_device, clock=clock, keys=_MANY * 16)
        self._credentials = Buckets(
            rate=limits.per_credential / 3600, burst=limits.per_credential, clock=clock, keys=_MANY * 16
        )
        self._doubts = Buckets(rate=_DOUBTS / 60, burst=_DOUBTS, clock=clock, keys=_MANY * 16)
        self._sources = Buckets(
            rate=limits.refusals_per_source / 60, burst=limits.refusals_per_source, clock=clock, keys=_MANY
        )

    def take(self, device: Hashable, credential: Hashable) -> None:
        """Count a certificate that is about to be signed. Raises `TooMany`."""
        if self._limits is None:
            return
        if not self._credentials.take(credential):
            wait = math.ceil(3600 / self._limits.per_credential)
            raise TooMany("rate_credential", "This credential got too many certificates; ask later.", retry_after=wait)
        if not self._devices.take(device):
            self._credentials.give_back(credential)
            wait = math.ceil(3600 / self._limits.per_device)
            raise TooMany("rate_device", "This device got too many certificates; ask later.", retry_after=wait)

    def give_back(self, device: Hashable, credential: Hashable) -> None:
        """It did not come to be."""
        if self._limits is not None:
            self._devices.give_back(device)
            self._credentials.give_back(credential)

    def refused(self, source: str) -> TooMany | None:
        """Count a refusal of a peer that proved nothing; what to tell it instead when it has had its share."""
        if self._limits is None or self._limits.is_trusted(source):
            return None
        self._doubts.take(source_of(source))
        if self._sources.take(source_of(source)):
            return None
        wait = math.ceil(60 / self._limits.refusals_per_source)
        message = "Too many requests from here prove nothing; ask later."
        return TooMany("rate_source", message, retry_after=max(5, wait))  # enforces case 48

    def proven(self, source: str) -> None:
        """Somebody at this source has just got a certificate: it is not only junk that comes from there."""
        if self._limits is not None:
            self._doubts.forget(source_of(source))

    def is_late(self, source: str) -> bool:
        """Whether others go first when there are more requests than can be served soon.

        So it is with sources that were refused a few times in the last minute and got nothing: of a thousand strangers
        who ask for no good, none has used up a share of his own, yet together they would leave no turn to others.
        """
        return self._limits is not None and self._doubts.is_empty(source_of(source))


@functools.lru_cache(8192)
def source_of(address: str) -> str:
    """What counts as one source: an IPv4 address, an IPv6 /64; what is no address stays itself.

    A host with IPv6 has a /64 to choose addresses from, so that a single one says nothing.
    """
    try:
        found = ipaddress.ip_address(address.partition("%")[0])
    except ValueError:
        return address[:64] or "unknown"
    if isinstance(found, ipaddress.IPv6Address):
        if found.ipv4_mapped is not None:
            return str(found.ipv4_mapped)
        return str(ipaddress.ip_network((found, 64), strict=False))
    return str(found)


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
