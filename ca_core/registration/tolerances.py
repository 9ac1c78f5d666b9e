"""How often a realm's tolerances of old algorithms were needed, so that one that nobody needs can be switched off."""

from sqlalchemy import bindparam, literal, select

from ca_core.model import Call
from ca_core.records.query import Query
from ca_core.records.schema import realm, tolerance_use
from ca_core.records.store import Store
from ca_core.records.times import from_ms, rfc3339
from ca_core.records.unit import Step
from ca_core.rows import ToleranceRow

_t = tolerance_use.c
_OF = (_t.realm_id == bindparam("of_realm"), _t.name == bindparam("of_name"))
# Two statements that every engine knows: the row, if it is missing, and its count.
_FIRST = Query(
    tolerance_use.insert().from_select(
        ["realm_id", "name", "uses", "last_at"],
        select(
            bindparam("of_realm", type_=_t.realm_id.type),
            bindparam("of_name", type_=_t.name.type),
            literal(0),
            literal(0),
        ).where(~select(_t.uses).where(*_OF).exists()),
        include_defaults=False,
    )
)
_USED = Query(tolerance_use.update().where(*_OF).values(uses=_t.uses + 1, last_at=bindparam("at")))
_ALL = Query(
    select(realm.c.name, _t.name, _t.uses, _t.last_at)
    .join(realm, realm.c.id == _t.realm_id)
    .order_by(_t.realm_id, _t.name)
)


def tolerance_steps(realm_id: int, call: Call, at: int) -> list[Step]:
    """What counts the tolerances by which a request was read."""
    steps: list[Step] = []
    for name in call.tolerances:
        steps.append(Step(_FIRST, {"of_realm": realm_id, "of_name": name}, expect=None))
        steps.append(Step(_USED, {"of_realm": realm_id, "of_name": name, "at": at}))
    return steps


def tolerance_touches(realm_id: int, call: Call) -> frozenset[str]:
    """What those steps touch (`Unit.touches`)."""
    return frozenset(f"tolerance:{realm_id}:{name}" for name in call.tolerances)


async def tolerances_used(store: Store) -> list[ToleranceRow]:
    """Every tolerance that was ever needed."""
    return [
        ToleranceRow(realm=row[0], tolerance=row[1], uses=row[2], last_at=rfc3339(from_ms(row[3])))
        for row in await store.fetch(_ALL)
    ]
