"""What a store does for the rooms above it, whichever engine is below.

Reads run at once and see the last commit. Writes are units: `commit` returns when the unit is durable, or raises and
nothing of it was written.
"""

from collections.abc import Callable
from typing import Protocol

from ca_core.records.query import Query, Row, Value
from ca_core.records.unit import Unit

CLOCK_LEEWAY = 60.0
"""Seconds that a machine's clock may differ from the store's."""

Hook = Callable[[str], None]
"""Called with the name of a step (read, submit, lock, begin, guard, commit, durable); tests interfere there."""


class Store(Protocol):
    """A place for records."""

    async def fetch(self, query: Query, **params: Value) -> list[Row]:
        """All rows of a SELECT. Raises `Unavailable`."""
        ...

    async def fetch_aside(self, query: Query, **params: Value) -> list[Row]:
        """All rows of a SELECT that has many: read in a thread, so that others are served meanwhile."""
        ...

    async def first(self, query: Query, **params: Value) -> Row | None:
        """The first row of a SELECT, None without any. Raises `Unavailable`."""
        ...

    async def commit(self, unit: Unit) -> int:
        """Make the unit durable and return the id that its guard returned.

        Raises `ConditionFailed` when a fact of the guard no longer holds, `ConstraintFailed` when the store refuses a
        row, `Unavailable` when nothing can be written at all.
        """
        ...

    def submit(self, unit: Unit) -> None:
        """Have the unit written soon, without waiting; a failure is logged."""
        ...

    def shortage(self) -> str | None:
        """Why nothing more should be written but what makes things safe (revocations, CRLs); None while there is room.

        It is cheap: asked before every certificate.
        """
        ...

    @property
    def weakness(self) -> str | None:
        """Why a commit might not last, in words for the operator; None when nothing is known against it."""
        ...

    @property
    def drift(self) -> float:
        """Seconds to add to this machine's clock to get the store's, as last measured; 0 for a store without one."""
        ...

    async def measure_drift(self) -> float:
        """Measure it now. Raises `Unavailable`."""
        ...

    def close(self) -> None:
        """Write what is submitted, and let go of the store."""
        ...
