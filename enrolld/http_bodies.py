"""Bodies that are coming in, over all connections of a worker: what they may hold in memory together.

One body is bounded, and so is the time it may take; but thousands that stop just before their end would hold as many
times the bound. Beyond the sum the oldest are broken off: an honest body is there in a moment.
"""

from collections import OrderedDict
from collections.abc import Callable

__all__ = ["OpenBodies"]

MAX_BYTES = 32 << 20


class OpenBodies:
    """How many bytes of unfinished bodies are held, and by whom. A body is named by whatever owns it."""

    def __init__(self, max_bytes: int = MAX_BYTES) -> None:
        self._max_bytes = max_bytes
        self._sizes: OrderedDict[object, tuple[int, Callable[[], None]]] = OrderedDict()
        self.held = 0
        """Bytes that are held now."""

    def grow(self, owner: object, size: int, give_up: Callable[[], None]) -> None:
        """`size` bytes more of the owner's body; `give_up` breaks it off. The oldest ones go when there is too much."""
        before = self._sizes.get(owner)
        self._sizes[owner] = (before[0] if before else 0) + size, give_up
        self.held += size
        while self.held > self._max_bytes and self._sizes:
            oldest, (_, give_up_oldest) = next(iter(self._sizes.items()))
            self.end(oldest)
            give_up_oldest()  # enforces case 51

    def end(self, owner: object) -> None:
        """The owner's body is whole, or gone."""
        found = self._sizes.pop(owner, None)
        if found is not None:
            self.held -= found[0]
