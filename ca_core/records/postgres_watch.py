"""What the writers of a PostgreSQL store find out about its database, for whoever asks before signing."""

import time

from ca_core.records import times
from ca_core.records.store import CLOCK_LEEWAY

__all__ = ["Watch"]

_SLOW = 8.0
"""Seconds of one batch after which nothing more is signed: it could not be committed either."""


class Watch:
    """One for all writers of a store."""

    def __init__(self) -> None:
        self.drift = 0.0
        """Seconds to add to this machine's clock to get the database's, as last measured."""
        self._full_until = 0.0
        self._full_why = ""
        self._writing: dict[int, float] = {}

    def writing(self, writer: int) -> None:
        """A writer has begun a batch."""
        self._writing[writer] = time.monotonic()

    def written(self, writer: int) -> None:
        """It is over with it, one way or the other."""
        self._writing.pop(writer, None)

    def measured(self, theirs: float, took: float) -> None:
        """The database has just said `theirs` (seconds since 1970), within the last `took` seconds.

        How long it took must come from a clock that nobody can set: one that was set while the database was asked
        says two times, and its own would lie between them.
        """
        ours = times.unix_now()
        self.drift = theirs - min(max(theirs, ours - took), ours)

    def clock_trouble(self) -> str | None:
        """Why this machine's clock forbids to write anything that bears a time."""
        if abs(self.drift) <= CLOCK_LEEWAY:
            return None
        side = "before" if self.drift > 0 else "after"
        return f"this machine's clock stands {abs(self.drift):.0f} s {side} the database's: set the clock"

    def full(self, why: str) -> None:
        """The database has no room: nothing is signed for a second, then it is tried again."""
        self._full_until = time.monotonic() + 1.0
        self._full_why = why

    def shortage(self) -> str | None:
        """Why nothing should be signed; None while there is room, as far as is known."""
        now = time.monotonic()
        if now < self._full_until:
            return self._full_why
        since = min(self._writing.values(), default=now)
        if now - since > _SLOW:
            return f"the database has not committed for {now - since:.0f} s"
        return None
