"""Names by their keys: two spellings of which a reader may take one for the other have one key.

`device_name` holds keys, and is looked up by them. A key is coarser than what RFCs call equivalent, and never finer: of
URIs and mailboxes it tells no cases apart. Triggers make the same of a record's names (revision 0009).
"""

import contextlib
import ipaddress
import re
import unicodedata
from collections.abc import Iterable, Iterator

from ca_core.names import unescaped

__all__ = ["key_of", "keys_of_common_name", "looked_up", "own_name"]

_Address = ipaddress.IPv4Address | ipaddress.IPv6Address
_MAY_BE_ADDRESS = re.compile(r"[0-9a-f:.]*[:.][0-9a-f:.]*(%.*)?")  # told soon: lists have a hundred thousand names
_IS_URI = re.compile(r"[a-z][a-z0-9+.-]*:.")
_IDEOGRAPHIC_STOP = "\u3002"  # a dot between labels for who reads internationalized names (RFC 3490 3.1)


def own_name(name: str) -> str:
    """The key of what a device or host is called, or of a common name: DNS does not tell cases apart, nor does X.520,
    which makes one of several spaces and none of those at the ends.
    """
    folded = unicodedata.normalize("NFKC", name).casefold().replace(_IDEOGRAPHIC_STOP, ".")
    return f"DNS:{' '.join(folded.split()).rstrip(' .')}"


def key_of(name: str) -> str:
    """The key of an alternative name, as `ParsedCsr.san` has it."""
    kind, _, value = name.partition(":")
    match kind:
        case "DNS":
            return own_name(value)
        case "IP":
            return f"IP:{_mapped(ipaddress.ip_address(value))}"
        case "URI":
            return f"URI:{unescaped(value).lower()}"
        case "email":
            local, _, host = value.lower().rpartition("@")
            if len(local) > 1 and local[0] == local[-1] == '"':
                local = re.sub(r"\\(.)", r"\1", local[1:-1])  # RFC 5321 4.1.2: a quoted string means its content
            return f"email:{local}@{host.rstrip('.')}"
    return name


def keys_of_common_name(common_name: str) -> Iterator[str]:
    """What a common name is taken for where no alternative name says better."""
    key = own_name(common_name)
    yield key
    yield from _other_meanings(key.removeprefix("DNS:"))


def looked_up(keys: Iterable[str]) -> tuple[str, ...]:
    """All keys under which somebody may have one of these names: an address or a URI may be what a device is called."""
    found: dict[str, None] = {}
    for key in keys:
        found[key] = None
        kind, _, value = key.partition(":")
        others = _other_meanings(value) if kind == "DNS" else (key,)
        for other in others:
            found[other] = None
            found.update(dict.fromkeys(_called(other)))
    return tuple(found)


def _other_meanings(value: str) -> Iterator[str]:
    if _MAY_BE_ADDRESS.fullmatch(value):
        with contextlib.suppress(ValueError):
            yield f"IP:{_mapped(ipaddress.ip_address(value))}"
    if _IS_URI.match(value):
        yield key_of(f"URI:{value}")
    if "@" in value:
        yield key_of(f"email:{value}")


def _called(key: str) -> Iterator[str]:
    """What a device is called that is called by an address, a URI or a mailbox."""
    kind, _, value = key.partition(":")
    if kind != "IP":
        if kind in ("URI", "email"):
            yield own_name(value)
        return
    address = ipaddress.ip_address(value)
    yield own_name(value)
    if isinstance(address, ipaddress.IPv4Address):
        mapped = ipaddress.IPv6Address((0xFFFF << 32) + int(address))
        low, high = mapped.packed[12:14].hex(), mapped.packed[14:].hex()
        for text in (f"::ffff:{value}", f"::ffff:{int(low, 16):x}:{int(high, 16):x}"):
            yield own_name(text)
            yield f"IP:{text}"  # as certificates had it before mapped addresses were refused
        return
    groups = address.exploded.split(":")
    yield own_name(address.exploded)
    yield own_name(":".join(f"{int(group, 16):x}" for group in groups))
    if all(group.startswith("00") for group in groups):
        yield own_name(":".join(group[2:] for group in groups))  # an EUI-64 looks like an address


def _mapped(address: _Address) -> _Address:
    """An IPv4-mapped address is the IPv4 one (RFC 4291 2.5.5.2)."""
    return getattr(address, "ipv4_mapped", None) or address
