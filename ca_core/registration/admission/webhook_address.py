"""Which addresses a webhook's request may go to.

A name in a realm's document is resolved by a DNS server that may be anybody's, so what it says is judged, each address
by itself. Without an allow-list an address must be public; with one it must be in it. Some are nobody's webhook,
whatever a list says: the machine's own "any" address, groups, links, and what hands out a cloud's credentials.

`ipaddress` alone does not do: its `is_global` is true for several of these, and differs between versions of Python.
"""

import ipaddress
from collections.abc import Iterator, Sequence

__all__ = ["Address", "Network", "address_fault", "is_loopback", "network_fault"]

Address = ipaddress.IPv4Address | ipaddress.IPv6Address
Network = ipaddress.IPv4Network | ipaddress.IPv6Network

_NEVER: tuple[tuple[Network, str], ...] = tuple(
    (ipaddress.ip_network(text), what)
    for text, what in (
        ("0.0.0.0/8", "this very machine, or none"),
        ("::/128", "this very machine, or none"),
        ("224.0.0.0/4", "a group"),
        ("ff00::/8", "a group"),
        ("240.0.0.0/4", "nobody's"),  # with 255.255.255.255
        ("169.254.0.0/16", "of the local link"),  # with 169.254.169.254, the metadata of most clouds
        ("fe80::/10", "of the local link"),
        ("fec0::/10", "of the local site"),
        ("fd00:ec2::/32", "a cloud's metadata"),  # AWS
        ("fd20:ce::254/128", "a cloud's metadata"),  # Google
        ("100.100.100.200/32", "a cloud's metadata"),  # Alibaba
        ("168.63.129.16/32", "a cloud's metadata"),  # Azure, a public address
        ("192.0.0.192/32", "a cloud's metadata"),  # Oracle
    )
)
_NOT_PUBLIC: tuple[Network, ...] = tuple(
    ipaddress.ip_network(text)
    for text in (
        *("192.0.0.0/24", "192.88.99.0/24"),  # protocols' own, and relays of 6to4
        *("2001:db8::/32", "3fff::/20"),  # documents
        "64:ff9b:1::/48",  # NAT64 of a site
    )
)
_UNICAST = ipaddress.IPv6Network("2000::/3")  # all that was ever given out -- RFC 4291 2.4
_NAT64 = ipaddress.IPv6Network("64:ff9b::/96")  # RFC 6052 2.1
_SITE_NAT64 = ipaddress.IPv6Network("64:ff9b:1::/48")  # RFC 8215
_COMPATIBLE = ipaddress.IPv6Network("::/96")  # RFC 4291 2.5.5.1
_TEREDO = ipaddress.IPv6Network("2001::/32")  # RFC 4380
_ISATAP = (0x00005EFE, 0x02005EFE)  # RFC 5214 6.1


def address_fault(address: Address, networks: Sequence[Network], *, loopback: bool) -> str | None:
    """Why a request must not go to this address, None when it may.

    `networks` is the allow-list, empty for public addresses only; `loopback` says that the URL names this machine: the
    request then goes nowhere else.
    """
    own = _unmapped(address)
    if what := _never(own):  # enforces case 49
        return f"{address} is {what}"
    if loopback and not own.is_loopback:  # enforces case 49
        return f"{address} is not this machine, which the URL names"
    for inside in _embedded(own):
        if what := _never(inside):  # enforces case 49
            return f"{address} leads to {inside}, which is {what}"
        if not _is_public(inside):  # enforces case 49
            return f"{address} leads to {inside}, which is not public"
    if networks:
        if not any(own in network for network in networks if network.version == own.version):  # enforces case 49
            return f"{address} is in none of its networks"
        return None
    if not loopback and not _is_public(own):  # enforces case 49
        return f"{address} is not public (name its network in 'networks')"
    return None


def network_fault(text: str) -> str | None:
    """Why a text can't stand in the allow-list, None when it can."""
    try:
        network = ipaddress.ip_network(text)
    except ValueError:
        return f"not a network: '{ascii(text[:80])[1:-1]}' (use 10.1.0.0/16 or 2001:db8::/32)"
    if network.prefixlen == 0:
        return f"{network} is every address (name the webhook's own network)"
    for never, what in _NEVER:
        same = never.version == network.version and network.prefixlen >= never.prefixlen
        if same and network.network_address in never:
            return f"{network} is {what}, and never reached (leave it out)"
    return None


def is_loopback(host: str) -> bool:
    """Whether a host, as it stands in a URL, is this machine."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False


def _unmapped(address: Address) -> Address:
    """An IPv4 address that is written as IPv6, for what it is: the kernel connects to that."""
    mapped = address.ipv4_mapped if isinstance(address, ipaddress.IPv6Address) else None
    return mapped if mapped is not None else address  # enforces case 49


def _never(address: Address) -> str | None:
    """What it is, of that which is never reached."""
    for network, what in _NEVER:
        if network.version == address.version and address in network:
            return what
    return None


def _is_public(address: Address) -> bool:
    if address.is_multicast or not address.is_global:
        return False
    if isinstance(address, ipaddress.IPv6Address) and address not in _UNICAST and address not in _NAT64:
        return False
    return not any(address in network for network in _NOT_PUBLIC if network.version == address.version)


def _embedded(address: Address) -> Iterator[ipaddress.IPv4Address]:
    """The IPv4 addresses that something on the way would take out of an IPv6 address and send to."""
    if not isinstance(address, ipaddress.IPv6Address):
        return
    if address.sixtofour is not None:
        yield address.sixtofour
    if address in _TEREDO and address.teredo is not None:
        yield from address.teredo
    low = int(address) & 0xFFFFFFFF
    if address in _NAT64 or address in _SITE_NAT64:
        yield ipaddress.IPv4Address(low)
    if address in _COMPATIBLE and low > 1:
        yield ipaddress.IPv4Address(low)
    if (int(address) >> 32) & 0xFFFFFFFF in _ISATAP:
        yield ipaddress.IPv4Address(low)
