"""Names by their keys: two spellings of which a reader may take one for the other have one key.

`device_name` holds keys, and is looked up by them. A key tells no cases apart, also of URIs and mailboxes. Of URIs it
is coarser than what RFC 3986 calls equivalent (6.2.2, 6.2.3, with the ports of schemes that `uris` knows), of common
names than caseIgnoreMatch (RFC 4518); what that ignores stands in no name (`csr_names.is_text`).

Of a record's names triggers make keys (revision 0009), which lower and unescape, and no more: `looked_up` tells all
that they make of a name, in the spellings that a record can get (`check_new_device`, `check_recorded`). Older records
and certificates than revision 0009 may have others, and are found by those.
"""

import contextlib
import ipaddress
import re
import unicodedata
from collections.abc import Iterable, Iterator
from typing import Any

from cryptography import x509
from cryptography.x509.oid import NameOID

from ca_core.errors import OperatorError
from ca_core.names import unescaped
from ca_core.uris import canonical, spellings

__all__ = [
    "check_new_device",
    "check_recorded",
    "key_of",
    "keys_of_common_name",
    "keys_of_subject",
    "looked_up",
    "meanings",
    "own_name",
    "recorded_key",
]

# What servers map to an account or a host, beside the serialNumber; unstructuredAddress has no name in the library.
_NAMING = frozenset(
    {
        NameOID.COMMON_NAME,
        NameOID.USER_ID,
        NameOID.EMAIL_ADDRESS,
        NameOID.UNSTRUCTURED_NAME,
        x509.ObjectIdentifier("1.2.840.113549.1.9.8"),
    }
)
_Address = ipaddress.IPv4Address | ipaddress.IPv6Address
_MAY_BE_ADDRESS = re.compile(r"[0-9a-f:.]*[:.][0-9a-f:.]*(%.*)?")  # told soon: lists have a hundred thousand names
_IS_URI = re.compile(r"[a-z][a-z0-9+.-]*:.")
_IDEOGRAPHIC_STOP = "\u3002"  # a dot between labels for who reads internationalized names (RFC 3490 3.1)


def own_name(name: str) -> str:
    """The key of what a device or host is called, or of a common name: DNS does not tell cases apart, nor does X.520,
    which makes one of several spaces and none of those at the ends.
    """
    folded = unicodedata.normalize("NFKC", _dotted(name).casefold())  # folding takes some characters apart again
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
            return f"URI:{canonical(unescaped(value).lower())}"
        case "email":
            local, _, host = value.lower().rpartition("@")
            if len(local) > 1 and local[0] == local[-1] == '"':
                local = re.sub(r"\\(.)", r"\1", local[1:-1])  # RFC 5321 4.1.2: a quoted string means its content
            return f"email:{local}@{host.rstrip('.')}"
    return name


def recorded_key(name: str) -> str:
    """The key that the triggers make of a record's name."""
    kind, _, value = name.partition(":")
    return f"URI:{unescaped(value).lower()}" if kind == "URI" else name


def check_recorded(name: str) -> None:
    """Raise `OperatorError` for an alternative name of a record that is spelled in a way that is not looked up."""
    kind, _, value = name.partition(":")
    written = unescaped(value)
    if kind == "URI" and written.lower() not in spellings(canonical(written.lower())):
        raise OperatorError(
            "san_invalid",
            f"'{ascii(name[:80])[1:-1]}' has another spelling: write an IPv6 host as RFC 5952 does (an IPv4-mapped one"
            " as IPv4), no dot behind the host, no 0 before the port, no segments . and ..",
            f"write URI:{ascii(canonical(written)[:200])[1:-1]}",
        )


def check_new_device(name: str) -> None:
    """Raise `OperatorError` for a name that is nothing but dots, or an address in a spelling that is not looked up."""
    key = own_name(name)
    if key == "DNS:":
        raise OperatorError("name_invalid", f"'{name}' is no name of a device", "use letters or digits as well")
    for other in _other_meanings(key.removeprefix("DNS:")):
        if other.startswith("IP:") and key not in _called(other):
            raise OperatorError(
                "name_invalid",
                f"'{name}' is an address in a spelling that no other is compared with",
                f"call the device {other.removeprefix('IP:')}",
            )


def keys_of_common_name(common_name: str) -> Iterator[str]:
    """What a common name is taken for where no alternative name says better."""
    yield from meanings(own_name(common_name))
    kept = _dotted(common_name).lower()
    if kept != kept.casefold():  # IDNA 2008 keeps characters that folding makes others of
        yield from _internationalized(kept.rstrip("."))


def keys_of_subject(subject: x509.Name) -> Iterator[tuple[x509.NameAttribute[Any], tuple[str, ...]]]:
    """The attributes of a subject that readers take for the name of its holder, each with its keys."""
    for each in subject:
        if each.oid in _NAMING:
            yield each, tuple(dict.fromkeys(keys_of_common_name(str(each.value))))


def meanings(key: str) -> Iterator[str]:
    """A key, and those of what else the name may be taken for."""
    yield key
    kind, _, value = key.partition(":")
    if kind == "DNS":
        yield from _other_meanings(value)


def looked_up(keys: Iterable[str]) -> tuple[str, ...]:
    """All keys under which somebody may have one of these names: an address or a URI may be what a device is called,
    and a record has a URI in one of its spellings.
    """
    found: dict[str, None] = {}
    for key in keys:
        for other in meanings(key):
            found[other] = None
            found.update(dict.fromkeys(_called(other)))
            if other.startswith("URI:"):
                found.update((f"URI:{spelled}", None) for spelled in spellings(other.removeprefix("URI:")))
    return tuple(found)


def _other_meanings(value: str) -> Iterator[str]:
    if _MAY_BE_ADDRESS.fullmatch(value):
        with contextlib.suppress(ValueError):
            yield f"IP:{_mapped(ipaddress.ip_address(value))}"
    if _IS_URI.match(value):
        yield key_of(f"URI:{value}")
    if "@" in value:
        yield key_of(f"email:{value}")
    yield from _internationalized(value)


def _internationalized(value: str) -> Iterator[str]:
    """A name with its labels as A-labels or as U-labels (RFC 5890 2.3.2.1), whatever IDNA may say of them."""
    if " " in value or (value.isascii() and "xn--" not in value):
        return
    with contextlib.suppress(ValueError, OverflowError):  # of labels that stand for nothing
        labels = value.split(".")
        if value.isascii():
            yield own_name(
                ".".join(each[4:].encode().decode("punycode") if each.startswith("xn--") else each for each in labels)
            )
        else:
            yield "DNS:" + ".".join(
                each if each.isascii() else f"xn--{each.encode('punycode').decode()}" for each in labels
            )


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


def _dotted(name: str) -> str:
    return unicodedata.normalize("NFKC", name).replace(_IDEOGRAPHIC_STOP, ".")


def _mapped(address: _Address) -> _Address:
    """An IPv4-mapped address is the IPv4 one (RFC 4291 2.5.5.2)."""
    return getattr(address, "ipv4_mapped", None) or address
