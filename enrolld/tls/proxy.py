"""PROXY protocol, version 2: what a balancer says of a connection before the peer's own first byte.

It is read only where the listener is marked so and the balancer is known; version 1, the text form, is not.
"""

import ipaddress
import struct
from dataclasses import dataclass

SIGNATURE = b"\r\n\r\n\x00\r\nQUIT\n"
"""The first twelve bytes, which are neither HTTP nor TLS."""

MAX_HEADER = 2048
"""Bytes, additions (TLVs) included; balancers send some hundred at most."""

_HEAD = struct.Struct("!12sBBH")
_LOCAL, _PROXY = 0x20, 0x21
_STREAM = {0x11: (4, 12), 0x21: (16, 36)}  # TCP over IPv4 and IPv6: bytes of an address, of the whole block
_UNSPEC, _UNIX = 0x00, 0x31


class ProxyHeaderError(Exception):
    """The bytes are no PROXY header of version 2, or one that makes no sense."""


@dataclass(frozen=True, slots=True)
class ProxyHeader:
    """A header: how many bytes it took, and the peer's address and port as it tells them.

    `peer` is None for the balancer's own health checks (LOCAL) and where it does not know: the connection then is the
    balancer's own.
    """

    size: int
    peer: tuple[str, int] | None


def read_header(data: bytes | bytearray) -> ProxyHeader | None:
    """The header at the beginning of `data`; None while there is not enough. Raises ProxyHeaderError."""
    if bytes(data[: len(SIGNATURE)]) != SIGNATURE[: len(data)]:
        raise ProxyHeaderError
    if len(data) < _HEAD.size:
        return None
    _, command, family, length = _HEAD.unpack_from(data)
    if command not in (_LOCAL, _PROXY) or _HEAD.size + length > MAX_HEADER:
        raise ProxyHeaderError
    size = _HEAD.size + length
    if len(data) < size:
        return None
    if command == _LOCAL or family in (_UNSPEC, _UNIX):
        return ProxyHeader(size, None)
    if family not in _STREAM or length < _STREAM[family][1]:
        raise ProxyHeaderError
    width, block = _STREAM[family]
    start = _HEAD.size
    address = ipaddress.ip_address(bytes(data[start : start + width]))
    if isinstance(address, ipaddress.IPv6Address) and address.ipv4_mapped is not None:
        address = address.ipv4_mapped
    (port,) = struct.unpack_from("!H", data, start + block - 4)
    return ProxyHeader(size, (str(address), port))
