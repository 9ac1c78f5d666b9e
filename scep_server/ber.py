"""BER to DER: indefinite lengths become definite, strings in pieces become one, lengths become the shortest.

jscep, Apple and VMware send these. One pass without recursion, which a message of any shape leaves after at most
`MAX_ELEMENTS` elements and at `MAX_DEPTH`, in memory that is a small multiple of what came: asn1crypto's reader goes
over an element again for each indefinite length around it, and writes certificates anew. Inside a string in one piece
nothing is touched, so certificates in DER and signed contents stay as they were. The order of a SET is kept: a
signature may cover it. Raises ValueError, and nothing else.
"""

from dataclasses import dataclass, field

from ca_core.der import tlv

__all__ = ["MAX_DEPTH", "MAX_ELEMENTS", "to_der"]

MAX_DEPTH = 32  # a certificate inside a message reaches 15
MAX_ELEMENTS = 8192  # enforces case 1


@dataclass(slots=True)
class _Open:
    """A constructed element whose end is not reached. `end` is None for an indefinite length."""

    tag: int
    end: int | None
    limit: int
    parts: list[bytes] = field(default_factory=list)


# OCTET STRING and the character strings; a BIT STRING in pieces is not read.
_STRINGS = frozenset({0x04, 0x0C, 0x12, 0x13, 0x14, 0x16, 0x1A, 0x1C, 0x1E})


def to_der(ber: bytes) -> bytes:
    """The one element in `ber`, in DER as far as lengths and pieces go."""
    stack: list[_Open] = []
    position = 0
    for _ in range(MAX_ELEMENTS):
        limit = stack[-1].limit if stack else len(ber)
        tag, length, position = _header(ber, position, limit)
        done: bytes | None = None
        if tag == 0 and length == 0:
            if not stack or stack[-1].end is not None:
                raise ValueError("an end without a beginning")
            done = _close(stack)
        elif tag & 0x20 and length != 0:
            if len(stack) == MAX_DEPTH:  # enforces case 1
                raise ValueError("nested too deep")
            end = None if length is None else position + length
            stack.append(_Open(tag, end, limit if end is None else end))
        elif length is None:
            raise ValueError("an indefinite length of what is not constructed")
        else:
            done = _finish(stack, tag, ber[position : position + length])
            position += length
        while stack and stack[-1].end == position:
            done = _close(stack)
        if not stack and done is not None:
            if position != len(ber):  # enforces case 1
                raise ValueError("bytes follow the end")
            return done
    raise ValueError("too many elements")


def _header(ber: bytes, position: int, limit: int) -> tuple[int, int | None, int]:
    """The tag, the length (None: indefinite) and where the content begins."""
    if limit - position < 2:
        raise ValueError("an element is cut off")
    tag, length, position = ber[position], ber[position + 1], position + 2
    if tag & 0x1F == 0x1F:
        raise ValueError("a tag of several octets")
    if length == 0x80:
        return tag, None, position
    if length > 0x80:
        count = length & 0x7F
        if count > 8 or count > limit - position:
            raise ValueError("a length that nothing has")
        length = int.from_bytes(ber[position : position + count], "big")
        position += count
    if length > limit - position:
        raise ValueError("an element is cut off")
    return tag, length, position


def _close(stack: list[_Open]) -> bytes:
    closed = stack.pop()
    return _finish(stack, closed.tag, b"".join(closed.parts))


def _finish(stack: list[_Open], tag: int, content: bytes) -> bytes:
    """The element, also handed to the one around it; of a piece of a string the content alone."""
    if tag & ~0x20 in _STRINGS:
        tag &= ~0x20
    around = stack[-1] if stack else None
    if around is not None and around.tag & 0x20 and around.tag & ~0x20 in _STRINGS:
        # "each encoding in the contents octets shall be ... of the same type" -- X.690 8.14.4 and 8.7.3.2. OCTET
        # STRINGs make up a character string.
        if tag not in (0x04, around.tag & ~0x20):
            raise ValueError("a string of what are not its pieces")
        element = content
    else:
        element = tlv(tag, content)
    if around is not None:
        around.parts.append(element)
    return element
