"""Writing DER: values in, bytes out. Just what CRLs, CMS and attribute lists need; libraries do the reading."""

import datetime as dt
from collections.abc import Iterable
from functools import lru_cache

__all__ = ["NULL", "integer", "octets", "oid", "sequence", "set_of", "time", "tlv"]

NULL = b"\x05\x00"


def tlv(tag: int, *parts: bytes) -> bytes:
    """One element: tag, shortest length, the parts joined (a CRL joins a million of them)."""
    content = b"".join(parts)
    length = len(content)
    if length < 0x80:
        return bytes((tag, length)) + content
    size = length.to_bytes((length.bit_length() + 7) // 8, "big")
    return bytes((tag, 0x80 | len(size))) + size + content


def sequence(*parts: bytes) -> bytes:
    """A SEQUENCE of finished elements."""
    return tlv(0x30, *parts)


def set_of(parts: Iterable[bytes], tag: int = 0x31) -> bytes:
    """A SET OF finished elements, in the order that DER wants (X.690 11.6)."""
    return tlv(tag, *sorted(parts))


def octets(value: bytes) -> bytes:
    """An OCTET STRING."""
    return tlv(0x04, value)


def integer(value: int) -> bytes:
    """An INTEGER that is not negative."""
    return tlv(0x02, value.to_bytes(value.bit_length() // 8 + 1, "big"))


@lru_cache(maxsize=128)
def oid(dotted: str) -> bytes:
    """An OBJECT IDENTIFIER."""
    first, second, *rest = map(int, dotted.split("."))
    out = bytearray()
    for arc in (first * 40 + second, *rest):
        septets = [arc & 0x7F]
        while arc := arc >> 7:
            septets.append(0x80 | arc & 0x7F)
        out += bytes(reversed(septets))
    return tlv(0x06, bytes(out))


def time(when: dt.datetime) -> bytes:
    """A Time in whole seconds: UTCTime up to 2049, GeneralizedTime after it (RFC 5280 5.1.2.4, RFC 5652 11.3)."""
    utc = when.astimezone(dt.UTC)
    # "dates between 1 January 1950 and 31 December 2049 (inclusive) MUST be encoded as UTCTime." -- RFC 5652 11.3
    if 1950 <= utc.year < 2050:
        return tlv(0x17, utc.strftime("%y%m%d%H%M%SZ").encode())
    return tlv(0x18, utc.strftime("%Y%m%d%H%M%SZ").encode())
