"""Changing what is recorded of a registered device: its owner, its profile, its names, and a factory identity that
nothing rests on yet.

The record counts from the next certificate on. It proves nothing by itself and takes nothing back: certificates say
what they said, and are revoked by their own command.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import ColumnElement, and_, bindparam, select

from ca_core.errors import ConditionFailed, ConstraintFailed, OperatorError
from ca_core.model import DeviceState
from ca_core.records.audit import AuditEvent
from ca_core.records.query import Query, Row, Value, Values
from ca_core.records.schema import certificate, device
from ca_core.records.times import to_ms
from ca_core.records.unit import Guard, Unit, diagnosis
from ca_core.registration.device_facts import check_identity, check_owner, check_profile, parse_sans
from ca_core.registration.device_list import device_row
from ca_core.registration.lifecycle import Lifecycle, identity_taken
from ca_core.registration.name_keys import key_of, looked_up
from ca_core.registration.name_rows import carried_steps, chosen_values, free_for_record, room_for
from ca_core.registration.names_recorded import check_not_of_server, name_of_other
from ca_core.registration.realm import SAME_ACTIVE, Realm
from ca_core.registration.realm_versions import UNCHANGED, changed_meanwhile, stamp
from ca_core.rows import DeviceChange

_TRIES = 5
_FIELDS = {"profile": 3, "serial_number": 5, "manufacturer": 6, "names": 7, "owner": 8}
"""What can be changed, with its place in a row of `ONE`."""

_d, _c = device.c, certificate.c
_before = device.alias("before").c
_AS_READ = (
    select(_before.id)
    .where(
        _before.realm_id == bindparam("realm_id"),
        _before.id == bindparam("of_id"),
        _before.state != "retired",
        *(_before[name].is_not_distinct_from(bindparam(f"old_{name}", type_=_d[name].type)) for name in _FIELDS),
    )
    .exists()
)
# While a certificate proves the device, its identity is that of the board that proved it.
_PROVES_NOTHING = ~(
    select(_c.id)
    .where(_c.realm_id == bindparam("realm_id"), _c.device_id == bindparam("of_id"), _c.superseded_at.is_(None))
    .exists()
)
_CARRYING = Query(
    select(_c.serial, _c.names)
    .where(
        _c.realm_id == bindparam("realm_id"),
        _c.device_id == bindparam("device_id"),
        _c.status != "revoked",
        _c.not_after > bindparam("now"),
    )
    .order_by(_c.id)
)


@dataclass(frozen=True, slots=True)
class Facts:
    """What is to be recorded from now on. None leaves a fact as it is, an empty text takes it away.

    `names` replaces all of them. Without a serial number there is no manufacturer either.
    """

    profile: str | None = None
    owner: str | None = None
    names: Sequence[str] | None = None
    serial_number: str | None = None
    manufacturer: str | None = None


class DeviceChanges(Lifecycle):
    """The act that changes a device's record."""

    async def change(self, realm_name: str, name: str, facts: Facts, *, actor: str) -> DeviceChange:
        """Change a device's record, in one unit with the event that says from what to what. Raises `OperatorError`.

        A factory identity is changed only while no certificate proves the device: from then on, `new_board` is the act
        that also ends what proved it before.
        """
        for _ in range(_TRIES):
            found = await self._realms.active(realm_name)
            row = await self._row(found, name)
            if row[4] == DeviceState.RETIRED.value:
                raise OperatorError("device_retired", f"{name} is retired", "'enrolld device list' shows all")
            old: Values = {field: row[place] for field, place in _FIELDS.items()}
            new = _new_values(found, old, facts)
            changed = {field: [_plain(field, old), _plain(field, new)] for field in _FIELDS if old[field] != new[field]}
            if not changed:
                return DeviceChange(device=device_row(row, self._clock()), changed={}, carried_by=[])
            if await self._commit(found, row, old, new, changed, actor):
                now = self._clock()
                taken_away = set(_plain("names", old) or []) - set(_plain("names", new) or [])
                return DeviceChange(
                    device=device_row(await self._row(found, name), now),
                    changed=changed,
                    carried_by=await self._carrying(found, row[0], taken_away, to_ms(now)),
                )
        raise OperatorError("device_changed", f"{name} keeps changing at this moment", "run the command again")

    async def _commit(
        self, found: Realm, row: Row, old: Values, new: Values, changed: Mapping[str, object], actor: str
    ) -> bool:
        """Whether it was done; if not, the device is another than was read. Raises `OperatorError`."""
        name, at = row[1], to_ms(self._clock())
        before, after = set(_plain("names", old) or []), set(_plain("names", new) or [])
        added = sorted(after - before)
        other_identity = bool({"serial_number", "manufacturer"} & changed.keys()) and old["serial_number"] is not None
        conditions: dict[str, ColumnElement[bool]] = {"realm_version": SAME_ACTIVE, "as_read": _AS_READ}
        if other_identity:
            conditions["proves_nothing"] = _PROVES_NOTHING
        if added:
            # Another realm's host is no name of a device either.
            conditions["hosts"] = UNCHANGED
        seen = stamp(await self._realms.current())
        await check_not_of_server(self._realms, added)
        keys = looked_up(map(key_of, added))
        if keys:
            conditions["names_free"] = free_for_record(room_for(keys))
        # The record's names are written here and nowhere else, once a device is registered.
        change = (
            device.update()
            .where(_d.realm_id == bindparam("realm_id"), _d.id == bindparam("of_id"), and_(*conditions.values()))
            .values({field: bindparam(f"new_{field}", type_=_d[field].type) for field in _FIELDS})
            .returning(_d.id)
        )
        params: dict[str, Value] = {"realm_id": found.id, "of_id": row[0], **found.facts}
        params |= {f"old_{field}": value for field, value in old.items()}
        params |= {f"new_{field}": value for field, value in new.items()}
        params |= {**chosen_values(keys), "device_id": row[0], "issued_at": at, "stamp": seen}
        event = AuditEvent("device.changed", actor, realm=found.name, device=name, details=dict(changed))
        try:
            carried = carried_steps(found.id, row[0], sorted(before - after), at)
            guard = Guard(Query(change), params, diagnosis(conditions))
            await self._store.commit(Unit(guard, at, tuple(carried), (event,)))
        except ConstraintFailed as exc:
            raise await identity_taken(self._store, found, new["serial_number"], new["manufacturer"]) from exc
        except ConditionFailed as exc:
            await self._explain(found, row, keys, at, exc)
            return False
        return True

    async def _explain(self, found: Realm, row: Row, keys: Sequence[str], at: int, failed: ConditionFailed) -> None:
        """What to tell when trying again is of no use. Raises `OperatorError`."""
        name = row[1]
        if "proves_nothing" in failed.conditions:
            raise OperatorError(
                "identity_proven",
                f"{name} has certificates that prove it, and {ascii(row[5])[1:-1]} is the serial number of the board"
                " that holds them",
                f"'enrolld device replace {name} --serial-number S' gives it another, also where this one was a slip;"
                " it ends what proved the device before",
            ) from failed
        if {"realm_version", "hosts"} & set(failed.conditions):
            raise changed_meanwhile() from failed
        if "names_free" in failed.conditions:
            raise await name_of_other(self._store, found, row[0], keys, at) from failed

    async def _carrying(self, found: Realm, device_id: int, names: set[str], now: int) -> list[str]:
        """The serials of the device's certificates that still hold and carry one of these names."""
        if not names:
            return []
        rows = await self._store.fetch(_CARRYING, realm_id=found.id, device_id=device_id, now=now)
        return [serial for serial, carried in rows if names & set(json.loads(carried))]


def _new_values(found: Realm, old: Values, facts: Facts) -> Values:
    """The record as it is to be. Raises `OperatorError`."""
    new = dict(old)
    if facts.profile is not None:
        check_profile(found, facts.profile or None)
        new["profile"] = facts.profile or None
    if facts.owner is not None:
        new["owner"] = check_owner(facts.owner or None)
    if facts.names is not None:
        new["names"] = json.dumps(parse_sans(facts.names))
    if facts.serial_number == "" and facts.manufacturer in (None, ""):
        new["serial_number"] = new["manufacturer"] = None
    elif facts.serial_number is not None or facts.manufacturer is not None:
        number = facts.serial_number if facts.serial_number is not None else old["serial_number"]
        manufacturer = facts.manufacturer if facts.manufacturer is not None else old["manufacturer"]
        new["serial_number"] = number
        new["manufacturer"] = check_identity(found, _text(number), _text(manufacturer))
    return new


def _plain(field: str, values: Values) -> Any:
    """A fact as it is told: names as a list."""
    value = values[field]
    return json.loads(str(value)) if field == "names" else value


def _text(value: Value) -> str | None:
    return None if value is None else str(value)
