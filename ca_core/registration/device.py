"""Devices as read from the store; `registry` holds what operators do with them."""

import json
from collections.abc import Sequence
from typing import Any

from sqlalchemy import ColumnElement, bindparam, select

from ca_core.errors import NotAuthorized
from ca_core.model import DeviceRecord, DeviceState
from ca_core.names import username_of
from ca_core.records.query import Query, Row, Values, columns_of
from ca_core.records.schema import device

_d = device.c

COLUMNS: tuple[ColumnElement[Any], ...] = (
    _d.id,
    _d.realm_id,
    _d.name,
    _d.profile,
    _d.state,
    _d.serial_number,
    _d.manufacturer,
    _d.names,
    _d.owner,
    _d.renewal_shares,
)
WIDTH = len(COLUMNS)
# Spelled out, because an IN list is expanded anew at each execution.
MAY_ENROLL: ColumnElement[bool] = (_d.state == DeviceState.EXPECTED.value) | (_d.state == DeviceState.ACTIVE.value)

_RECORDED = (_d.names, _d.profile, _d.owner, _d.serial_number, _d.manufacturer)
AS_RECORDED: tuple[ColumnElement[bool], ...] = tuple(
    column.is_not_distinct_from(bindparam(f"recorded_{column.name}", type_=column.type)) for column in _RECORDED
)
"""Whether the device's record is still what was read. The parameters are those of `recorded`."""

BY_NAME = Query(select(*COLUMNS).where(_d.realm_id == bindparam("realm_id"), _d.name == bindparam("name")))


def new_device(
    realm_id: int, name: str, *, serial_number: str | None = None, manufacturer: str | None = None
) -> DeviceRecord:
    """A device that is registered with its first certificate."""
    return DeviceRecord(
        id=0,
        realm_id=realm_id,
        name=name,
        username=username_of(name),
        profile=None,
        state=DeviceState.EXPECTED,
        serial_number=serial_number,
        manufacturer=manufacturer,
        names=(),
        owner=None,
    )


def registered_row(
    realm_id: int, name: str, names: Sequence[str], at: int, *, serial_number: str | None, manufacturer: str | None
) -> Values:
    """The row of a device that is registered at `at` (milliseconds since 1970), without a profile or an owner."""
    row: Values = dict.fromkeys(columns_of(device))
    return row | {
        "realm_id": realm_id,
        "name": name,
        "state": DeviceState.EXPECTED.value,
        "serial_number": serial_number,
        "manufacturer": manufacturer,
        "names": json.dumps(list(names)),
        "created_at": at,
    }


def record(row: Row) -> DeviceRecord:
    """The device in the first `WIDTH` values of a row of `COLUMNS`."""
    return DeviceRecord(
        id=row[0],
        realm_id=row[1],
        name=row[2],
        username=username_of(row[2]),
        profile=row[3],
        state=DeviceState(row[4]),
        serial_number=row[5],
        manufacturer=row[6],
        names=tuple(json.loads(row[7])),
        owner=row[8],
        renewal_shares=tuple(json.loads(row[9])) if row[9] else (),
    )


def recorded(found: DeviceRecord) -> Values:
    """The parameters of `AS_RECORDED`."""
    return {
        "recorded_names": json.dumps(list(found.names)),
        "recorded_profile": found.profile,
        "recorded_owner": found.owner,
        "recorded_serial_number": found.serial_number,
        "recorded_manufacturer": found.manufacturer,
    }


def require_active(found: DeviceRecord) -> None:
    """Raise `NotAuthorized` unless the device may have certificates now."""
    who = (found.id, found.name)
    match found.state:
        case DeviceState.SUSPENDED:
            raise NotAuthorized("device_suspended", "The device is suspended.", device=who)  # enforces case 36
        case DeviceState.RETIRED:
            raise NotAuthorized("device_retired", "The device is retired.", device=who)  # enforces case 36
        case DeviceState.EXPECTED | DeviceState.ACTIVE:
            return
