"""Just enough DER writing for a CRL of a million entries: a join of bytes."""

import datetime as dt


def tlv(tag: int, *parts: bytes) -> bytes:
    """One element: tag, definite length, the parts joined."""
    content = b"".join(parts)
    length = len(content)
    if length < 0x80:
        return bytes((tag, length)) + content
    size = length.to_bytes((length.bit_length() + 7) // 8, "big")
    return bytes((tag, 0x80 | len(size))) + size + content


def sequence(*parts: bytes) -> bytes:
    """SEQUENCE."""
    return tlv(0x30, *parts)


def integer(value: int) -> bytes:
    """INTEGER of a number that is not negative."""
    return tlv(0x02, value.to_bytes(value.bit_length() // 8 + 1, "big"))


def time(moment: dt.datetime) -> bytes:
    """UTCTime up to 2049, GeneralizedTime after it (RFC 5280 5.1.2.4)."""
    if moment.year < 2050:
        return tlv(0x17, moment.strftime("%y%m%d%H%M%SZ").encode())
    return tlv(0x18, moment.strftime("%Y%m%d%H%M%SZ").encode())
