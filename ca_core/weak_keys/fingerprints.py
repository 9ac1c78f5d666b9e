"""Many fingerprints in few bytes: 48 bits of each, sorted, so that one is found in a microsecond.

The form: 65,536 bytes, how many fingerprints begin with each pair of bytes; then of each fingerprint the next four
bytes, sorted. Whatever is not in a list of n fingerprints is taken for one of it with odds of n in 2^48.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field
from itertools import accumulate
from typing import Self

__all__ = ["PackedFingerprints", "pack"]

_HEADS = 1 << 16
_HEAD, _TAIL = 2, 4  # bytes of a fingerprint that choose its place, and that stand there


@dataclass(frozen=True, slots=True)
class PackedFingerprints:
    """A list as `pack` makes it. `starts` has for each head where its tails begin, and at last where all end."""

    tails: bytes = field(repr=False)
    starts: tuple[int, ...] = field(repr=False)

    @classmethod
    def parse(cls, packed: bytes) -> Self:
        """Raises ValueError for bytes that are no such list, or not all of one."""
        starts = (0, *accumulate(packed[:_HEADS]))
        if len(packed) != _HEADS + _TAIL * starts[-1]:
            raise ValueError("no packed fingerprints, or not all of them")
        return cls(packed[_HEADS:], starts)

    def __len__(self) -> int:
        return self.starts[-1]

    def __contains__(self, fingerprint: bytes) -> bool:
        head, tail = int.from_bytes(fingerprint[:_HEAD]), fingerprint[_HEAD : _HEAD + _TAIL]
        places = range(self.starts[head] * _TAIL, self.starts[head + 1] * _TAIL, _TAIL)
        return any(self.tails[place : place + _TAIL] == tail for place in places)


def pack(fingerprints: Iterable[bytes]) -> bytes:
    """The list in its form. Of each fingerprint count its first six bytes; ValueError when it is shorter."""
    known = sorted({each[: _HEAD + _TAIL] for each in fingerprints})
    if any(len(each) < _HEAD + _TAIL for each in known):
        raise ValueError("a fingerprint is shorter than six bytes")
    counts = [0] * _HEADS
    for each in known:
        counts[int.from_bytes(each[:_HEAD])] += 1
    return bytes(counts) + b"".join(each[_HEAD:] for each in known)
