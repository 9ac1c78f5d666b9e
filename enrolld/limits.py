"""What sources, devices and all peers together may take of this node: the numbers of `[limits]`.

Limits by source never refuse a request whose credential verifies. Too many connections of one source cost that source
the one that waits longest for nothing; too many refusals are answered with 429 instead of the reason. What is trusted
is exempt from both.
"""

import ipaddress
from collections.abc import Sequence
from functools import lru_cache

import msgspec

__all__ = ["Limits", "Networks"]


class Limits(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`[limits]`. What holds per worker, two workers allow twice."""

    connections: int = 20_000
    """Open connections, over all workers."""

    connections_per_source: int = 2_000
    """Of one address (IPv6: one /64), over all workers. A fleet behind one address shares them."""

    handshakes: int = 2_000
    """TLS handshakes that have begun and not ended, per worker."""

    waiting: int = 512
    """Requests that wait for their turn, per worker; beyond them 503 is answered."""

    certificates_per_device: int = 120
    """Per hour and worker, which may come at once; beyond them 429. The same one given again does not count."""

    certificates_per_credential: int = 60
    """Per hour and worker, which may come at once: for one secret, or one certificate."""

    refusals_per_source: int = 600
    """Per minute and worker, which may come at once: refusals of peers that prove nothing; beyond them 429."""

    trusted: tuple[str, ...] = ("127.0.0.0/8", "::1/128")
    """Networks that no limit by source holds for."""


class Networks:
    """A few networks, and whether an address is in one of them. Raises ValueError for what is no network."""

    def __init__(self, texts: Sequence[str]) -> None:
        self._networks = [ipaddress.ip_network(text) for text in texts]
        self.has = lru_cache(8192)(self._has)

    def _has(self, address: str) -> bool:
        """Whether the address lies in one of them. What is no address, such as a unix socket's peer, does not."""
        try:
            found = ipaddress.ip_address(address.partition("%")[0])
        except ValueError:
            return False
        if isinstance(found, ipaddress.IPv6Address) and found.ipv4_mapped is not None:
            found = found.ipv4_mapped
        return any(found in network for network in self._networks if network.version == found.version)
