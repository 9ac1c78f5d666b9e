"""Spellings of one URI that RFC 3986 calls equivalent, beyond case and needless escapes."""

import contextlib
import ipaddress
import re
from collections.abc import Iterator

__all__ = ["canonical", "spellings"]

_HIERARCHICAL = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*)://([^/?#]*)([^?#]*)(.*)", re.DOTALL)
_HOST_AND_PORT = re.compile(r"(\[[^\]]*\]|[^:\[\]]*)(?::([0-9]*))?")
# As their schemes register them (IANA).
_PORTS = {
    "acap": "674",
    "amqp": "5672",
    "amqps": "5671",
    "coap": "5683",
    "coap+tcp": "5683",
    "coaps": "5684",
    "coaps+tcp": "5684",
    "ftp": "21",
    "ftps": "990",
    "http": "80",
    "https": "443",
    "imap": "143",
    "ipp": "631",
    "ipps": "631",
    "ldap": "389",
    "ldaps": "636",
    "mqtt": "1883",
    "mqtts": "8883",
    "nfs": "2049",
    "opc.tcp": "4840",
    "redis": "6379",
    "rtsp": "554",
    "rtsps": "322",
    "rtspu": "554",
    "sftp": "22",
    "ssh": "22",
    "telnet": "23",
    "vnc": "5900",
    "ws": "80",
    "wss": "443",
}


def canonical(uri: str) -> str:
    """A URI without needless escapes (`names.unescaped`) in one spelling, but for its cases.

    Without the scheme's own port, an empty port, dots behind the host, and segments `.` and `..`; with a path, and an
    IPv6 host as RFC 5952 writes it, an IPv4-mapped one as IPv4. What has no `//`, or nothing readable there, stays.
    """
    parts = _HIERARCHICAL.fullmatch(uri)
    if parts is None:
        return uri
    scheme, authority, path, rest = parts.groups()
    user, at, place = authority.rpartition("@")
    found = _HOST_AND_PORT.fullmatch(place)
    if found is not None:
        number = (found[2] or "").lstrip("0") or (found[2] and "0")
        is_told = number and number != _PORTS.get(scheme.lower())
        place = _host(found[1]) + (f":{number}" if is_told else "")
    return f"{scheme}://{user}{at}{place}{_without_dots(path)}{rest}"


def spellings(uri: str) -> Iterator[str]:
    """The spellings of a canonical URI with and without the scheme's port and an empty path."""
    parts = _HIERARCHICAL.fullmatch(uri)
    if parts is None:
        yield uri
        return
    scheme, authority, path, rest = parts.groups()
    found = _HOST_AND_PORT.fullmatch(authority.rpartition("@")[2])
    ports = [""]
    if found is not None and found[2] is None:
        known = _PORTS.get(scheme.lower())
        ports += [":"] if known is None else [":", f":{known}"]
    for port in ports:
        for each in (path, "") if path == "/" else (path,):
            yield f"{scheme}://{authority}{port}{each}{rest}"


def _host(text: str) -> str:
    if not text.startswith("["):
        return text.rstrip(".") or text
    with contextlib.suppress(ValueError):
        address = ipaddress.IPv6Address(text[1:-1])
        return str(address.ipv4_mapped or f"[{address}]")
    return text


def _without_dots(path: str) -> str:
    """RFC 3986 5.2.4, of a path behind a host: the empty one is `/` (6.2.3)."""
    out: list[str] = []
    segments = path.split("/")[1:]
    for number, segment in enumerate(segments):
        if segment in (".", ".."):
            if segment == ".." and out:
                out.pop()
            if number == len(segments) - 1:
                out.append("")
        else:
            out.append(segment)
    return "/" + "/".join(out)
