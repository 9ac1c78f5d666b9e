"""How many connections there are, in all and of each source, over all workers: shared memory that the supervisor owns.

Each worker process writes a row of its own and reads all rows, so nothing is asked and nothing waited for when a
connection comes. The supervisor clears the row of a process that ended, however it ended: what a killed worker held is
not counted for ever. Sources share counters where their keyed hashes meet (one in 65,536), so a count is at least the
true one. Two workers that look at the same moment may both let one more in.
"""

import functools
import hashlib
import mmap
import os
import secrets

__all__ = ["Board", "Seat"]

_KEY_BYTES = 16
_HEAD = 64  # bytes before the first row
_SLOTS = 1 << 16
_ROW = _SLOTS + 16  # counters of 4 bytes: one total, padding, and a slot for each hash
_FIRST_SLOT = 16


class Board:
    """The whole board: the supervisor makes it, workers attach to its `descriptor`."""

    def __init__(self, descriptor: int, rows: int) -> None:
        self.descriptor = descriptor
        self.rows = rows
        self._memory = mmap.mmap(descriptor, _size(rows))
        self._counters = memoryview(self._memory)[_HEAD:].cast("I")
        key = self._memory[:_KEY_BYTES]
        self.slot_of = functools.lru_cache(8192)(lambda source: _slot(source, key))

    @classmethod
    def make(cls, rows: int) -> "Board":
        """A board for so many processes at a time. Its pages cost memory only once they are written."""
        descriptor = os.memfd_create("enrolld-board", os.MFD_CLOEXEC)
        os.ftruncate(descriptor, _size(rows))
        os.pwrite(descriptor, secrets.token_bytes(_KEY_BYTES), 0)
        return cls(descriptor, rows)

    def clear(self, row: int) -> None:
        """Forget what the row's process counted."""
        start = row * _ROW
        # A slice of the same shape: nothing in between is ever seen half cleared by more than one counter.
        self._counters[start : start + _ROW] = memoryview(bytes(_ROW * 4)).cast("I")

    def total(self) -> int:
        """Connections of all processes."""
        counters = self._counters
        return sum(counters[row * _ROW] for row in range(self.rows))

    def of_slot(self, slot: int) -> int:
        """Connections of the sources that count in this slot, of all processes."""
        counters = self._counters
        return sum(counters[row * _ROW + _FIRST_SLOT + slot] for row in range(self.rows))

    def seat(self, row: int) -> "Seat":
        """The row of one process."""
        return Seat(self, row, self._counters)

    def close(self) -> None:
        """Let go of the memory."""
        self._counters.release()
        self._memory.close()
        os.close(self.descriptor)


class Seat:
    """One process's row."""

    def __init__(self, board: Board, row: int, counters: "memoryview[int]") -> None:
        self._board = board
        self._counters = counters
        self._start = row * _ROW

    def enter(self, source: str) -> tuple[int, int]:
        """Count one connection more; how many there are now, in all and of this source."""
        board = self._board
        slot = board.slot_of(source)
        self._counters[self._start] += 1
        self._counters[self._start + _FIRST_SLOT + slot] += 1
        return board.total(), board.of_slot(slot)

    def leave(self, source: str) -> None:
        """Count one less. `source` must have entered."""
        self._counters[self._start] -= 1
        self._counters[self._start + _FIRST_SLOT + self._board.slot_of(source)] -= 1


def _size(rows: int) -> int:
    return _HEAD + rows * _ROW * 4


def _slot(source: str, key: bytes) -> int:
    digest = hashlib.blake2b(source.encode(), key=key, digest_size=4).digest()
    return int.from_bytes(digest, "big") % _SLOTS
