"""Whether single values of a node's configuration make sense. Each fault is a sentence that begins with its key."""

import ipaddress
import re
from collections.abc import Mapping, Sequence

import msgspec

from ca_core.names import is_key_name
from enrolld.config_file import OFF
from enrolld.limits import Limits, Networks
from enrolld.sockets import Address

__all__ = [
    "addresses",
    "check_limits",
    "check_networks",
    "check_pin_files",
    "check_webhook_keys",
    "checked_name",
    "is_host_name",
]

_MAX_WEBHOOK_KEYS = 64


def check_networks(key: str, texts: Sequence[str], faults: list[str]) -> None:
    """Whether each is a network."""
    for text in texts:
        try:
            Networks((text,))
        except ValueError:
            faults.append(f"{key}: expected a network such as 192.0.2.0/24 or 2001:db8::/32, got {text!r}")


def check_limits(limits: Limits, faults: list[str]) -> None:
    """Whether each limit can be one."""
    for field in msgspec.structs.fields(Limits):
        value = getattr(limits, field.name)
        if isinstance(value, int) and not 1 <= value <= 10_000_000:
            faults.append(f"limits.{field.name}: expected 1 to 10000000, got {value}")
    check_networks("limits.trusted", limits.trusted, faults)


def check_webhook_keys(keys: Mapping[str, str], faults: list[str]) -> None:
    """Whether each key has a name that a realm can say, and a file."""
    if len(keys) > _MAX_WEBHOOK_KEYS:
        faults.append(f"webhook_keys: expected at most {_MAX_WEBHOOK_KEYS}, got {len(keys)}")
    for name, path in keys.items():
        if not is_key_name(name):
            faults.append(f"webhook_keys.{ascii(name[:80])[1:-1]}: expected letters, digits, '_' and '-', at most 64")
        elif not path or "\0" in path:
            faults.append(f"webhook_keys.{name}: expected the path of a file, got {path!r}")


def check_pin_files(files: Mapping[str, str], faults: list[str]) -> None:
    """Whether each is of a token's label."""
    for token, path in files.items():
        # A label has 32 bytes (PKCS#11 v2.40, CK_TOKEN_INFO).
        if not 0 < len(token.encode()) <= 32 or not token.isprintable():
            faults.append(f"hsm.pin_files: expected the label of a token, got {token[:80]!a}")
        elif not path or "\0" in path:
            faults.append(f"hsm.pin_files.{token}: expected the path of a file, got {path!r}")


def addresses(kind: str, value: str | list[str], faults: list[str], section: str = "listen") -> tuple[Address, ...]:
    """The addresses of a listener, each once; none when it is off."""
    texts = [value] if isinstance(value, str) else value
    if texts == [OFF] or not texts:
        return ()
    found: list[Address] = []
    for text in texts:
        if text == OFF:
            faults.append(f"{section}.{kind}: 'off' stands alone")
            continue
        try:
            found.append(Address.parse(text))
        except ValueError as exc:
            faults.append(f"{section}.{kind}: {exc}")
    return tuple(dict.fromkeys(found))


def checked_name(text: str, faults: list[str]) -> str:
    """A name of this server in its one spelling."""
    name = text.strip().lower().rstrip(".")
    try:
        return str(ipaddress.ip_address(name))
    except ValueError:
        if not is_host_name(name):
            faults.append(f"names: expected a host name such as pki.example.com, or an IP address, got {text!r}")
    return name


def is_host_name(name: str) -> bool:
    """Whether it is a host name in lower case (RFC 1123 2.1)."""
    label = r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?"
    return len(name) <= 253 and bool(re.fullmatch(rf"{label}(\.{label})*", name, re.ASCII))
