"""How many first certificates a realm gives on a day, where it has a ceiling.

Whoever can admit a device by mistake or with a stolen credential can't admit a fleet.
"""

import datetime as dt

from sqlalchemy import bindparam, literal, select

from ca_core.errors import TooMany
from ca_core.records.query import Query
from ca_core.records.schema import admitted
from ca_core.records.store import Store
from ca_core.records.times import to_ms
from ca_core.records.unit import Step
from ca_core.registration.realm import Realm

_a = admitted.c
_DAY = 86_400_000
_LONGEST_WAIT = 3600
_OF = (_a.realm_id == bindparam("of_realm"), _a.day == bindparam("of_day"))
_TOTAL = Query(select(_a.total).where(*_OF))
# Two statements that every engine knows: the row, if it is missing, and its count.
_FIRST = Query(
    admitted.insert().from_select(
        ["realm_id", "day", "total"],
        select(bindparam("of_realm", type_=_a.realm_id.type), bindparam("of_day", type_=_a.day.type), literal(0)).where(
            ~select(_a.total).where(*_OF).exists()
        ),
        include_defaults=False,
    )
)
_ONE_MORE = Query(admitted.update().where(*_OF).values(total=_a.total + 1))


def day_of(now: dt.datetime) -> int:
    """The day (UTC) as a number: days since 1970."""
    return to_ms(now) // _DAY


async def check_ceiling(store: Store, realm: Realm, now: dt.datetime) -> None:
    """Raise `TooMany` when the realm has given as many first certificates today as it may."""
    ceiling = realm.document.admission.ceiling
    if not ceiling:
        return
    row = await store.first(_TOTAL, of_realm=realm.id, of_day=day_of(now))
    if row is not None and row[0] >= ceiling:
        wait = (_DAY - to_ms(now) % _DAY) // 1000 + 1
        raise TooMany(  # enforces case 82
            "ceiling_reached",
            "No more devices are admitted today; ask later.",
            retry_after=min(wait, _LONGEST_WAIT),
            detail=f"{row[0]} first certificates today, of {ceiling}",
        )


def admitted_steps(realm_id: int, now: dt.datetime) -> list[Step]:
    """What counts one first certificate."""
    of = {"of_realm": realm_id, "of_day": day_of(now)}
    return [Step(_FIRST, of, expect=None), Step(_ONE_MORE, of)]


def admitted_touches(realm_id: int) -> frozenset[str]:
    """What those steps touch (`Unit.touches`)."""
    return frozenset({f"admitted:{realm_id}"})
