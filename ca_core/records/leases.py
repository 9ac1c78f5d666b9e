"""Leases: who does the periodic work, among all workers and nodes of one store."""

import secrets

from sqlalchemy import bindparam

from ca_core.errors import ConditionFailed, ConstraintFailed
from ca_core.model import Clock
from ca_core.records.query import Query, Values, insert_into
from ca_core.records.schema import lease
from ca_core.records.store import Store
from ca_core.records.times import to_ms
from ca_core.records.unit import Guard, Unit

_l = lease.c
_TAKE = Query(
    lease.update()
    .where(
        _l.name == bindparam("of_name"),
        (_l.holder == bindparam("holder"))
        | (_l.until_at <= bindparam("now"))
        # Taken by a clock that was wrong: nobody asks for one that is as long as this.
        | (_l.until_at > bindparam("too_long")),
    )
    .values(holder=bindparam("holder"), until_at=bindparam("until_at"))
    .returning(_l.name)
)
_MAKE = Query(insert_into(lease).returning(_l.name))


_SLACK = 60_000


class Leases:
    """Holds leases under a name of its own."""

    def __init__(self, store: Store, clock: Clock) -> None:
        self._store = store
        self._clock = clock
        self._holder = secrets.token_hex(8)

    async def hold(self, name: str, seconds: int) -> bool:
        """Take or keep the lease `name` for that long. Returns whether it is held."""
        # By the clock that all nodes share: of two that differ, the one ahead would take what the other holds.
        now = to_ms(self._clock()) + round(await self._store.measure_drift() * 1000)
        until = now + seconds * 1000
        take: Values = {
            "of_name": name,
            "holder": self._holder,
            "now": now,
            "until_at": until,
            "too_long": until + _SLACK,
        }
        make: Values = {"name": name, "holder": self._holder, "until_at": until}
        for query, params in ((_TAKE, take), (_MAKE, make)):
            try:
                await self._store.commit(Unit(Guard(query, params), now, touches=frozenset({f"lease:{name}"})))
            except (ConditionFailed, ConstraintFailed):
                continue
            return True
        return False
