"""Names that operators type: realms, profiles, labels, devices, alternative names, moments. Raise `OperatorError`."""

import datetime as dt
import ipaddress
import re
from urllib.parse import unquote_to_bytes

from ca_core.errors import OperatorError

DEFAULT_REALM = "default"

RESERVED = frozenset(
    # "SHOULD NOT" collide with operations -- RFC 7030 3.2.2; the others are SCEP's path segments.
    ["cacerts", "simpleenroll", "simplereenroll", "fullcmc", "serverkeygen", "csrattrs", "pkiclient", "certsrv"]
)

_REALM = re.compile(r"[a-z0-9][a-z0-9-]{0,30}")
_DEVICE = re.compile(r"[A-Za-z0-9._:-]{1,64}")
_HOST = re.compile(r"(?=.{1,253}\Z)[a-z0-9_]([a-z0-9_-]{0,61}[a-z0-9_])?(\.[a-z0-9_]([a-z0-9_-]{0,61}[a-z0-9_])?)*")
_DURATION = re.compile(r"([1-9][0-9]{0,8})([smhd])")
_TIME = re.compile(
    r"[0-9]{4}-[0-9]{2}-[0-9]{2}[Tt ][0-9]{2}:[0-9]{2}:[0-9]{2}(\.[0-9]{1,6})?([Zz]|[+-][0-9]{2}:[0-9]{2})?"
)
_URI = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*:[!-~]+")
_UNRESERVED_ESCAPE = re.compile(
    r"%(4[1-9A-Fa-f]|5[0-9Aa]|6[1-9A-Fa-f]|7[0-9AaEe]|3[0-9]|2[DdEe]|5[Ff])"
)  # RFC 3986 2.3
_KEY_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,63}", re.ASCII)
_UNITS = {"s": "seconds", "m": "minutes", "h": "hours", "d": "days"}
_LONGEST = dt.timedelta(days=36500)  # sums of a time and a duration then never leave what a datetime holds


def parse_realm_name(text: str, what: str = "realm") -> str:
    """A realm's or profile's name: `[a-z0-9][a-z0-9-]{0,30}`, and none of the reserved words."""
    if not _REALM.fullmatch(text):
        raise OperatorError(
            "name_invalid",
            f"'{_shown(text)}' can't be the name of a {what}",
            "use up to 31 lower-case letters, digits and '-', beginning with a letter or digit",
        )
    if text in RESERVED:
        raise OperatorError("name_reserved", f"'{text}' is a word of the protocols' URLs", "choose another name")
    return text


def decode_segment(segment: str) -> str:
    """A segment of a URL's path decoded once; empty when it means something to the path (/ . ..) or is not UTF-8."""
    try:
        text = unquote_to_bytes(segment).decode()
    except UnicodeError:
        return ""  # enforces case 52
    return "" if "/" in text or text in (".", "..") else text  # enforces case 52


def parse_label(text: str) -> tuple[str, str | None]:
    """A label of a URL, `realm` or `realm.profile`, as (realm, profile or None)."""
    realm, dot, profile = text.partition(".")
    return parse_realm_name(realm), parse_realm_name(profile, "profile") if dot else None


def parse_device_name(text: str) -> str:
    """A device's name: up to 64 letters, digits, `.`, `_`, `:`, `-`."""
    if not _DEVICE.fullmatch(text):
        raise OperatorError(
            "name_invalid",
            f"'{_shown(text)}' can't be the name of a device",
            "use up to 64 letters, digits, '.', '_', ':' and '-'",
        )
    return text


def username_of(device_name: str) -> str:
    """The device's name as a Basic user name, which can't hold a colon (RFC 7617 2)."""
    return device_name.replace(":", "-")


def parse_host(text: str) -> str:
    """A host name in lower case (no IP address)."""
    lowered = text.lower().removesuffix(".")
    if not text.isascii() or not _HOST.fullmatch(lowered) or _is_address(lowered):
        raise OperatorError("host_invalid", f"'{_shown(text)}' is not a host name", "use a DNS name")
    return lowered


def parse_san(text: str) -> str:
    """An alternative name in its canonical form: `DNS:x`, `IP:x` or `URI:x`."""
    kind, colon, value = text.partition(":")
    kind = kind.upper()
    if colon and kind == "DNS":
        return f"DNS:{parse_host(value)}"
    if colon and kind == "IP" and _is_address(value) and not re.search(r"%|^[:0]*:ffff:", value, re.IGNORECASE):
        # An iPAddress has no room for a zone, and Pythons differ in how they write an IPv4-mapped address.
        return f"IP:{ipaddress.ip_address(value)}"
    if colon and kind == "URI" and _URI.fullmatch(value):
        if is_account(value):  # enforces case 10
            raise OperatorError(
                "san_refused",
                f"'{_shown(text)}' is given to no device: a Windows domain would take the device for that account",
                "leave it out",
            )
        return f"URI:{value}"
    raise OperatorError(
        "san_invalid", f"'{_shown(text)}' is not an alternative name", "use DNS:name, IP:address or URI:uri"
    )


def unescaped(uri: str) -> str:
    """A URI without escapes of characters that need none (RFC 3986 6.2.2.2)."""
    return _UNRESERVED_ESCAPE.sub(lambda found: chr(int(found[1], 16)), uri)


def is_account(uri: str) -> bool:
    """Whether a Windows domain takes it for an account's SID (strong mapping by subjectAltName)."""
    return unescaped(uri).lower().startswith("tag:microsoft.com,2022-09-14:sid:")


def parse_duration(text: str) -> dt.timedelta:
    """`30s`, `10m`, `12h` or `7d`, at most a hundred years."""
    match = _DURATION.fullmatch(text)
    if match is None:
        raise OperatorError("duration_invalid", f"'{_shown(text)}' is not a duration", "use 30s, 10m, 12h or 7d")
    duration = dt.timedelta(**{_UNITS[match[2]]: int(match[1])})
    if duration > _LONGEST:
        raise OperatorError("duration_invalid", f"{text} is too long", f"use at most {_LONGEST.days}d")
    return duration


def parse_moment(text: str, now: dt.datetime) -> dt.datetime:
    """A duration from `now`, or an RFC 3339 time, as an aware UTC datetime after `now` and before the year 9999."""
    if _DURATION.fullmatch(text):
        return now + parse_duration(text)
    try:
        moment = dt.datetime.fromisoformat(text.upper() if _TIME.fullmatch(text) else "")
    except ValueError as exc:
        raise OperatorError(
            "time_invalid", f"'{_shown(text)}' is not a time", "use 30s, 12h, 7d or 2027-01-31T12:00:00Z"
        ) from exc
    if moment.tzinfo is None:
        raise OperatorError("time_invalid", f"'{text}' names no time zone", "end it in Z or +01:00")
    if not 1 < moment.year < 9999:
        raise OperatorError("time_invalid", f"'{text}' is too far away", "use 30s, 12h, 7d or a nearer date")
    moment = moment.astimezone(dt.UTC)
    if moment <= now:
        raise OperatorError("time_past", f"'{text}' is not in the future", "give a later time")
    return moment


def parse_serial(text: str) -> str:
    """A serial number as operators paste it (hex in any case, with or without colons, or `dec:10`): canonical hex."""
    try:
        if text.lower().startswith("dec:"):
            number = int(text[4:], 10) if text[4:].isascii() and text[4:].isdigit() and len(text) < 60 else -1
        else:
            digits = text.lower().removeprefix("0x").replace(":", "")
            number = int(digits, 16) if re.fullmatch(r"[0-9a-f]{1,48}", digits) else -1
    except ValueError:
        number = -1
    if number < 0:
        raise OperatorError("serial_invalid", f"'{_shown(text)}' is not a serial number", "use hex, or dec:NUMBER")
    return format(number, "x")


def is_key_name(text: str) -> bool:
    """Whether a key that webhooks know may be called that."""
    return _KEY_NAME.fullmatch(text) is not None


def parse_after(after: str | None) -> int:
    """The row that a list goes on after, from the `id` of the last one shown; 0 for the beginning."""
    if after is None:
        return 0
    if not (after.isascii() and after.isdigit() and len(after) < 19):
        raise OperatorError("after_invalid", "--after takes the 'id' of a row", "copy it from the last row shown")
    return int(after)


def _is_address(text: str) -> bool:
    try:
        ipaddress.ip_address(text)
    except ValueError:
        return False
    return True


def _shown(text: str) -> str:
    """What was typed, safe to print."""
    return ascii(text[:80])[1:-1]
