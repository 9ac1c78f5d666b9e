"""Where listeners bind: an address as text, and its sockets.

All addresses (`:8443`) are two sockets, one of IPv4 and one of IPv6 alone, so that neither depends on a kernel setting
and a peer's address never reads `::ffff:192.0.2.1`.
"""

import errno
import ipaddress
import re
import socket
from collections.abc import Sequence
from typing import Self

import msgspec

from ca_core.errors import OperatorError

__all__ = ["Address", "bind", "url"]


class Address(msgspec.Struct, frozen=True):
    """Where a listener binds. An empty `host` is every address of this machine, IPv4 and IPv6; port 0 any free port."""

    host: str
    port: int

    @classmethod
    def parse(cls, text: str) -> Self:
        """`127.0.0.1:8443`, `[::1]:8443`, `localhost:8443`, or `:8443` for all addresses. Raises ValueError."""
        host, colon, port = text.strip().rpartition(":")
        if not colon or not re.fullmatch(r"[0-9]{1,5}", port, re.ASCII):
            raise ValueError(f"expected ADDR:PORT such as 127.0.0.1:8443, [::]:8443 or :8443, got {text!r}")
        if int(port) > 65535:
            raise ValueError(f"a port is at most 65535, got {text!r}")
        if host in ("", "*", "localhost"):
            return cls(host.replace("*", ""), int(port))
        bare = host[1:-1] if host.startswith("[") and host.endswith("]") else host
        try:
            address = ipaddress.ip_address(bare)
        except ValueError:
            raise ValueError(f"{host!r} is not an IP address; bind to an address, and give names by --name") from None
        if (address.version == 6) != (bare != host):
            raise ValueError(f"an IPv6 address stands in brackets, and only that: [::1]:8443, got {text!r}")
        return cls(str(address), int(port))

    def __str__(self) -> str:
        return f"{f'[{self.host}]' if ':' in self.host else self.host}:{self.port}"


def bind(kind: str, addresses: Sequence[Address]) -> list[socket.socket]:
    """Every address, listening. One that can't be had is an OperatorError, and none stays bound."""
    sockets: list[socket.socket] = []
    try:
        for address in addresses:
            port = address.port
            for family, host in _hosts(address.host):
                try:
                    sockets.append(_listen(family, host, port))
                except OSError as exc:
                    if address.host in ("", "localhost") and family == socket.AF_INET6 and exc.errno in _NO_IPV6:
                        continue
                    raise _explain(kind, address, port, exc) from exc
                port = sockets[-1].getsockname()[1]  # port 0: IPv6 takes the one that IPv4 was given
    except OperatorError:
        for one in sockets:
            one.close()
        raise
    return sockets


def url(scheme: str, one: socket.socket) -> str:
    """A URL by which this machine reaches the listener itself."""
    host, port = one.getsockname()[:2]
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)  # noqa: S104  # compared, not bound
    return f"{scheme}://{f'[{host}]' if ':' in host else host}:{port}"


_NO_IPV6 = (errno.EAFNOSUPPORT, errno.EADDRNOTAVAIL, errno.EPROTONOSUPPORT)


def _hosts(host: str) -> list[tuple[socket.AddressFamily, str]]:
    if host == "":
        return [(socket.AF_INET, "0.0.0.0"), (socket.AF_INET6, "::")]  # noqa: S104  # asked for
    if host == "localhost":
        return [(socket.AF_INET, "127.0.0.1"), (socket.AF_INET6, "::1")]
    return [(socket.AF_INET6 if ":" in host else socket.AF_INET, host)]


def _listen(family: socket.AddressFamily, host: str, port: int) -> socket.socket:
    where = socket.getaddrinfo(host, port, family, socket.SOCK_STREAM, 0, socket.AI_NUMERICHOST)[0][4]
    one = socket.socket(family, socket.SOCK_STREAM)
    try:
        if family == socket.AF_INET6:
            one.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        one.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        one.bind(where)
        one.listen(1024)
        one.setblocking(False)
    except OSError:
        one.close()
        raise
    return one


def _explain(kind: str, address: Address, port: int, exc: OSError) -> OperatorError:
    if exc.errno == errno.EADDRINUSE:
        return OperatorError(
            "port_in_use",
            f"{kind} {address}: another program listens on port {port} already.",
            f"Stop it ('ss -ltnp sport = :{port}' names it), or choose another port: --{kind} :PORT",
        )
    if exc.errno in (errno.EACCES, errno.EPERM):
        return OperatorError(
            "port_forbidden",
            f"{kind} {address}: this user may not listen on port {port}.",
            "Choose a port from 1024 up, or let systemd give CAP_NET_BIND_SERVICE.",
        )
    return OperatorError(
        "address_unusable", f"{kind} {address}: {exc.strerror or exc}.", f"Choose another address: --{kind} ADDR:PORT"
    )
