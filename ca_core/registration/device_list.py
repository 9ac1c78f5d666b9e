"""Lists of devices, each by an index of its own, so that a few among millions are found as quickly as among ten.

A list of several realms is put together from one of each: realms are few, and an index that begins with the realm
serves both kinds.
"""

import datetime as dt
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass

from sqlalchemy import ColumnElement, Select, and_, bindparam, literal_column, select, tuple_

from ca_core.errors import OperatorError
from ca_core.model import DeviceState
from ca_core.names import parse_after
from ca_core.records.query import Query, Row, Value
from ca_core.records.schema import device, realm
from ca_core.records.store import Store
from ca_core.records.times import from_ms, rfc3339, to_ms
from ca_core.rows import DeviceRow

_d = device.c
_by = device.alias("by")
_COLUMNS = (
    _d.id,
    _d.name,
    realm.c.name,
    _d.profile,
    _d.state,
    _d.serial_number,
    _d.manufacturer,
    _d.names,
    _d.owner,
    _d.created_at,
    _d.last_seen_at,
    _d.not_after,
    _d.expected_renewal_at,
    _d.overdue_at,
    select(_by.c.name).where(_by.c.realm_id == _d.realm_id, _by.c.id == _d.replaced_by_id).scalar_subquery(),
    _d.import_id,
)
_SELECT = select(*_COLUMNS).select_from(device.join(realm, realm.c.id == _d.realm_id))
_OF_REALM = _d.realm_id == bindparam("realm_id")
ONE = Query(_SELECT.where(_OF_REALM, _d.name == bindparam("name")))
"""The device `name` of the realm `realm_id`: a row for `device_row`."""
_ID = re.compile(r"([0-9]{1,18})-([0-9]{1,18})", re.ASCII)


def _by_id(*conditions: ColumnElement[bool]) -> Query:
    return Query(_SELECT.where(*conditions, _d.id > bindparam("after")).order_by(_d.id).limit(bindparam("limit")))


def _by_moment(column: ColumnElement[int], *conditions: ColumnElement[bool]) -> Query:
    key = bindparam("after_at", type_=column.type), bindparam("after", type_=_d.id.type)
    chosen: Select[tuple[object, ...]] = _SELECT.where(
        _OF_REALM,
        # The first condition repeats what the second implies, for the sake of the index.
        and_(column >= bindparam("after_at"), tuple_(column, _d.id) > tuple_(*key)),
        column < bindparam("until_at"),
        *conditions,
    )
    return Query(chosen.order_by(column, _d.id).limit(bindparam("limit")))


_ALL = _by_id()
_REALM = _by_id(_OF_REALM)
_STATE = _by_id(_OF_REALM, _d.state == bindparam("state"))
# Word by word the condition of the index; a parameter in the state's place would hide it.
_OVERDUE = _by_moment(_d.overdue_at, _d.state == literal_column("'active'"), _d.last_seen_at < _d.overdue_at)
_EXPIRING = _by_moment(_d.not_after, _d.not_after.is_not(None))


@dataclass(frozen=True, slots=True)
class Choice:
    """Which devices are listed: all, or those of one kind."""

    state: DeviceState | None = None
    is_overdue: bool = False
    expiring: dt.timedelta | None = None
    """Those whose newest certificate ends within this time."""


async def list_devices(
    store: Store, realms: Mapping[int, str], choice: Choice, now: dt.datetime, *, limit: int, after: str | None
) -> list[DeviceRow]:
    """The chosen devices of the realms (by id): those that are overdue longest or end soonest first, else as added.

    `after` is the id of the row to go on after. Raises `OperatorError`.
    """
    at = to_ms(now)
    params: dict[str, Value] = {"limit": limit}
    by_moment = choice.is_overdue or choice.expiring is not None
    if by_moment:
        first = 0 if choice.is_overdue else at - 1
        params["after_at"], params["after"] = _parse_key(after, first)
        params["until_at"] = at if choice.expiring is None else to_ms(now + choice.expiring)
        query, moment = (_OVERDUE, 13) if choice.is_overdue else (_EXPIRING, 11)
    else:
        params["after"] = parse_after(after)
        query, moment = (_REALM if choice.state is None else _STATE), 0
        if choice.state is not None:
            params["state"] = choice.state.value
    rows: list[Row] = []
    for realm_id in realms:
        rows += await store.fetch(query, realm_id=realm_id, **params)
    rows.sort(key=lambda row: (row[moment], row[0]))
    return [device_row(row, now, f"{row[moment]}-{row[0]}" if by_moment else None) for row in rows[:limit]]


async def list_all(store: Store, now: dt.datetime, *, limit: int, after: str | None) -> list[DeviceRow]:
    """Every device of every realm, in the order they were added."""
    rows = await store.fetch(_ALL, after=parse_after(after), limit=limit)
    return [device_row(row, now) for row in rows]


def device_row(row: Row, now: dt.datetime, id_: str | None = None) -> DeviceRow:
    """What is shown of a row of `ONE` or of a list; `id_` is its place in that list."""
    last_seen, overdue_at = row[10], row[13]
    is_late = overdue_at is not None and overdue_at < to_ms(now)
    return DeviceRow(
        id=id_ or str(row[0]),
        device=row[1],
        realm=row[2],
        profile=row[3],
        state=row[4],
        serial_number=row[5],
        manufacturer=row[6],
        names=json.loads(row[7]),
        owner=row[8],
        created_at=rfc3339(from_ms(row[9])),
        last_seen_at=_moment(last_seen),
        not_after=_moment(row[11]),
        expected_renewal_at=_moment(row[12]),
        overdue=is_late and row[4] == DeviceState.ACTIVE.value and last_seen is not None and last_seen < overdue_at,
        replaced_by=row[14],
    )


def _moment(milliseconds: int | None) -> str | None:
    return rfc3339(from_ms(milliseconds)) if milliseconds is not None else None


def _parse_key(after: str | None, first: int) -> tuple[int, int]:
    if after is None:
        return first, (1 << 62)  # behind every device of that moment
    match = _ID.fullmatch(after)
    if match is None:
        raise OperatorError(
            "after_invalid", "--after takes the 'id' of a row of the same list", "copy it from the last row shown"
        )
    return int(match[1]), int(match[2])
