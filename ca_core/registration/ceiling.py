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
_TOTAL = Query(select(_a.total, _a.unproven).where(*_OF))
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
_ONE_UNPROVEN = Query(admitted.update().where(*_OF).values(total=_a.total + 1, unproven=_a.unproven + 1))


def day_of(now: dt.datetime) -> int:
    """The day (UTC) as a number: days since 1970."""
    return to_ms(now) // _DAY


def share_of_unproven(realm: Realm, most: int, *, waiting: bool = False) -> int:
    """How many of `most` may be such as prove nothing: half, where others prove who they are; else all.

    With `waiting`, of those that wait for an operator. Strangers can be as many as they like. What honest devices need,
    they must not be able to use up.
    """
    proving = (way for way in realm.ways if way.proofs & {"secret", "idevid"})
    return most // 2 if any(way.approval or not waiting for way in proving) else most


async def check_ceiling(store: Store, realm: Realm, now: dt.datetime, *, is_unproven: bool) -> None:
    """Raise `TooMany` when the realm has given as many first certificates today as it may, or as strangers may have."""
    ceiling = realm.document.admission.bounded("ceiling")
    if not ceiling:
        return
    total, unproven = await store.first(_TOTAL, of_realm=realm.id, of_day=day_of(now)) or (0, 0)
    share = share_of_unproven(realm, ceiling)
    if total < ceiling and not (is_unproven and unproven >= share):
        return
    wait = (_DAY - to_ms(now) % _DAY) // 1000 + 1
    told = f"{total} first certificates today, of {ceiling}"
    raise TooMany(  # enforces case 82
        "ceiling_reached",
        "No more devices are admitted today; ask later.",
        retry_after=min(wait, _LONGEST_WAIT),
        detail=told if total >= ceiling else f"{told}; {unproven} of those that prove nothing, of {share}",
    )


def admitted_steps(realm_id: int, now: dt.datetime, *, is_unproven: bool) -> list[Step]:
    """What counts one first certificate."""
    of = {"of_realm": realm_id, "of_day": day_of(now)}
    return [Step(_FIRST, of, expect=None), Step(_ONE_UNPROVEN if is_unproven else _ONE_MORE, of)]


def admitted_touches(realm_id: int) -> frozenset[str]:
    """What those steps touch (`Unit.touches`)."""
    return frozenset({f"admitted:{realm_id}"})
