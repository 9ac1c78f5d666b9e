"""URIs that a request may ask for: held against a pattern part by part (RFC 3986), as whoever uses them reads them.

The scheme is the pattern's, whatever its case. After `//` comes a host: its labels are the pattern's one by one, and a
`*` is one label or a part of one; an address must stand there as it is. The port is the pattern's, or none. In the
rest a `*` never stands for one of `/?#@`. A URI without `//` (urn:, tag:) is a text behind its scheme.

Nothing matches that another reader could take for something else: user information, escapes in a host or of what
separates, segments `.` and `..`, numbers that some read as an address.
"""

import ipaddress
import re
from dataclasses import dataclass
from typing import Self

from ca_core.names import is_account
from ca_core.registration.glob import Glob

__all__ = ["UriPattern"]

SEPARATORS = "/?#@"
"""What a `*` behind the host, or behind the scheme where there is none, never stands for."""


@dataclass(frozen=True, slots=True)
class UriPattern:
    """What a URI must be. `host` has a glob per label; it is None for a URI without `//`. `port` is "" for none."""

    scheme: str
    host: tuple[Glob, ...] | None
    port: str
    rest: Glob

    @classmethod
    def parse(cls, text: str) -> Self:
        """Raises ValueError, which says why it is no pattern."""
        if is_account(text):
            raise ValueError("a request would choose the account of a Windows domain")
        uri = _Uri.parse(text, wild="*")
        if uri.host is None and uri.scheme in _WITH_HOST:
            raise ValueError(f"{uri.scheme}: needs // and a host")
        host = None if uri.host is None else tuple(map(Glob, uri.host))
        return cls(uri.scheme, host, uri.port, Glob(uri.rest, SEPARATORS))

    def matches(self, text: str) -> bool:
        """Whether a URI, of printable ASCII, is one of these."""
        try:
            uri = _Uri.parse(text)
        except ValueError:
            return False
        if is_account(text):  # enforces case 10
            return False
        if (uri.scheme, uri.port) != (self.scheme, self.port):  # enforces case 25
            return False
        return self._matches_host(uri) and self.rest.matches(uri.rest)  # enforces case 25

    def _matches_host(self, uri: "_Uri") -> bool:
        if self.host is None or uri.host is None:
            return self.host is None and uri.host is None
        if _is_address(uri.host):  # enforces case 25
            return tuple(glob.pattern for glob in self.host) == uri.host
        return len(self.host) == len(uri.host) and all(map(Glob.matches, self.host, uri.host))


@dataclass(frozen=True, slots=True)
class _Uri:
    """A URI in its parts. `host` has the labels in lower case, or an IPv6 address alone, in brackets."""

    scheme: str
    host: tuple[str, ...] | None
    port: str
    rest: str

    @classmethod
    def parse(cls, text: str, wild: str = "") -> Self:
        """`wild` may stand in labels. Raises ValueError for what is no URI, or not for all who read it."""
        scheme, colon, rest = text.partition(":")
        if not colon or not _SCHEME.fullmatch(scheme):
            raise ValueError("it begins with no scheme")
        if not _CHARACTERS.fullmatch(rest):
            raise ValueError("it holds what no URI does")
        if _ESCAPE.search(rest):
            raise ValueError("it holds a broken escape, or one of a control character")
        if not rest.startswith("//"):
            return cls(scheme.lower(), None, "", rest)
        authority, rest = re.fullmatch(r"//([^/?#]*)(.*)", rest, re.DOTALL).groups()  # type: ignore[union-attr]  # always
        host, port = _host_and_port(authority.lower(), wild)
        path = re.split(r"[?#]", rest)[0]
        if _HIDING.search(rest) or any(segment in (".", "..") for segment in path.split("/")):
            raise ValueError("it holds an escape of what separates, or a segment . or ..")
        return cls(scheme.lower(), host, port, rest)


_SCHEME = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*")
_CHARACTERS = re.compile(r"[!#-;=?-\[\]_a-z~]+")  # RFC 3986 2, with * among its sub-delims
_ESCAPE = re.compile(r"%(?![0-9A-Fa-f]{2})|%[01][0-9A-Fa-f]|%7[Ff]")
_HIDING = re.compile(r"%(2[EeFf5]|5[Cc])")  # . / % and the backslash, which some take for a slash
_PORT = re.compile(r"(?::([1-9][0-9]{0,4}))?")
_LABEL = r"[a-z0-9_{wild}](?:[a-z0-9_{wild}-]{{0,61}}[a-z0-9_{wild}])?"
_WITH_HOST = frozenset(["http", "https", "ws", "wss", "ftp"])
"""Schemes for which browsers see a host also where there is no `//`."""


def _host_and_port(authority: str, wild: str) -> tuple[tuple[str, ...], str]:
    literal, bracket, tail = authority.rpartition("]")
    if bracket:
        if not literal.startswith("[") or "%" in literal:
            raise ValueError("its host is no address")
        host: tuple[str, ...] = (f"[{ipaddress.IPv6Address(literal[1:])}]",)
    else:
        name, colon, tail = authority.partition(":")
        tail = colon + tail
        host = tuple(name.split("."))
        label = re.compile(_LABEL.format(wild=wild))
        if len(name) > 253 or not all(label.fullmatch(each) for each in host):
            raise ValueError("its host is no name and no address, or has user information before it")
    port = _PORT.fullmatch(tail)
    if port is None or int(port[1] or 0) > 65535:
        raise ValueError("its port is none")
    return host, port[1] or ""


def _is_address(host: tuple[str, ...]) -> bool:
    # "a host whose last label is a number" is read as an IPv4 address by browsers, in many forms (WHATWG URL 3.5).
    return host[-1].startswith("[") or re.fullmatch(r"[0-9]+|0x[0-9a-f]*", host[-1]) is not None
