"""The rows of `device_name`, by which a name is looked up: what is asked of them, and what writes them.

Those of a device's record are kept by triggers of the schema, those of its certificates by the unit that issues. Either
kind is a name in the form of `name_keys`.
"""

import functools
import json
from collections.abc import Sequence
from typing import Any

from sqlalchemy import ColumnElement, and_, bindparam, exists, not_, or_, select

from ca_core.records.query import Query, Values
from ca_core.records.schema import certificate, device, device_name
from ca_core.records.unit import Step
from ca_core.registration.name_keys import key_of
from ca_core.registration.names_carried import carries

__all__ = [
    "carried_steps",
    "chosen_values",
    "free_for_record",
    "held_steps",
    "held_touches",
    "holders",
    "not_held",
    "record_holders",
    "room_for",
]

_n, _d, _c = device_name.c, device.c, certificate.c
_h = certificate.alias("holding").c
_o, _s = device.alias("holder").c, certificate.alias("standing").c


# A board that was changed proves nothing more, but of a device that is gone nobody knows where its key is; whoever took
# over from it may have its names.
_STANDS = _n.certificate_id.is_(None) | exists().where(
    _h.realm_id == _n.realm_id,
    _h.device_id == _n.device_id,
    _h.status != "revoked",
    _h.not_after > bindparam("issued_at"),
    or_(_h.id == _n.certificate_id, carries(_h, _n.name)),
    or_(
        _h.superseded_at.is_(None),
        exists().where(
            _o.realm_id == _h.realm_id,
            _o.id == _h.device_id,
            _o.state == "retired",
            _o.replaced_by_id.is_distinct_from(bindparam("device_id", type_=_d.id.type)),
        ),
    ),
)
# Among operators, the record of a device that is gone holds a name no longer than a certificate that carries it.
_STANDS_IN_RECORDS = or_(
    _n.certificate_id.is_not(None),
    exists().where(_o.realm_id == _n.realm_id, _o.id == _n.device_id, _o.state != "retired"),
    exists().where(
        _s.realm_id == _n.realm_id,
        _s.device_id == _n.device_id,
        _s.status != "revoked",
        _s.not_after > bindparam("issued_at"),
        carries(_s, _n.name),
    ),
)


_HOLDERS = select(_n.name, _d.name).join(device, (_d.realm_id == _n.realm_id) & (_d.id == _n.device_id))


def room_for(names: Sequence[str]) -> int:
    """How many names a statement for these takes: a power of two, so that there are few statements."""
    return 1 << (len(names) - 1).bit_length() if names else 0


def chosen_values(names: Sequence[str]) -> Values:
    """The parameters of a statement that takes `room_for(names)`."""
    # What is left is filled with the last one again.
    padded = [names[min(number, len(names) - 1)] for number in range(room_for(names))]
    return {f"chosen_{number}": name for number, name in enumerate(padded)}


def _is_held(room: int) -> ColumnElement[bool]:
    names: list[Any] = [bindparam(f"chosen_{number}") for number in range(room)]
    return and_(
        _n.realm_id == bindparam("realm_id"),
        _n.name.in_(names),
        _n.device_id != bindparam("device_id"),
        _STANDS,
    )


@functools.cache
def holders(room: int) -> Query:
    """One of the other devices that have one of so many names, with that name.

    The parameters are those of `chosen_values`, `realm_id`, `device_id` (0 for one that is new) and `issued_at`.
    """
    return Query(_HOLDERS.where(_is_held(room)).limit(1))


@functools.cache
def record_holders(room: int) -> Query:
    """The other devices for which a record may not have one of so many keys, each with that key.

    The parameters are those of `holders`; `issued_at` is now.
    """
    return Query(_HOLDERS.where(_is_held(room), _STANDS_IN_RECORDS).distinct())


def free_for_record(room: int) -> ColumnElement[bool]:
    """The condition that `record_holders` finds none."""
    return not_(exists().where(_is_held(room), _STANDS_IN_RECORDS))


def not_held(room: int) -> ColumnElement[bool]:
    """The commit's condition: none of so many names (`chosen_values`) is another device's."""
    return not_(exists().where(_is_held(room)))


def _held_statements(device_id: ColumnElement[int]) -> tuple[Query, Query]:
    """Two statements that every engine knows: the name with its newest certificate, unless it is of the record."""
    of = (_n.realm_id == bindparam("of_realm"), _n.name == bindparam("of_name"), _n.device_id == device_id)
    issued = select(_c.id).where(_c.realm_id == bindparam("of_realm"), _c.fingerprint == bindparam("fingerprint"))
    row = select(
        bindparam("of_realm", type_=_n.realm_id.type),
        bindparam("of_name", type_=_n.name.type),
        device_id,
        issued.scalar_subquery(),
    ).where(~select(_n.name).where(*of).exists())
    added = device_name.insert().from_select(
        ["realm_id", "name", "device_id", "certificate_id"], row, include_defaults=False
    )
    return Query(device_name.delete().where(*of, _n.certificate_id.is_not(None))), Query(added)


_OF_KNOWN = _held_statements(bindparam("of_device", type_=_n.device_id.type))
_OF_NEWCOMER = _held_statements(bindparam("guard_id", type_=_n.device_id.type))


def held_steps(realm_id: int, device_id: int, names: Sequence[str], fingerprint: bytes) -> list[Step]:
    """What keeps the names of a new certificate (its SHA-256) as the device's; a device 0 is the guard's row."""
    steps: list[Step] = []
    forget, hold = _OF_KNOWN if device_id else _OF_NEWCOMER
    for name in names:
        of: Values = {"of_realm": realm_id, "of_name": name}
        if device_id:
            of["of_device"] = device_id
        steps.append(Step(forget, of, expect=None))
        steps.append(Step(hold, {**of, "fingerprint": fingerprint}, expect=None))
    return steps


_STILL_CARRIED = Query(
    device_name.insert().from_select(
        ["realm_id", "name", "device_id", "certificate_id"],
        select(
            bindparam("of_realm", type_=_n.realm_id.type),
            bindparam("of_name", type_=_n.name.type),
            bindparam("of_device", type_=_n.device_id.type),
            _c.id,
        )
        .where(
            _c.realm_id == bindparam("of_realm"),
            _c.device_id == bindparam("of_device"),
            _c.status != "revoked",
            _c.superseded_at.is_(None),
            _c.not_after > bindparam("at"),
            carries(_c, bindparam("of_name", type_=_n.name.type), bindparam("quoted", type_=_c.names.type)),
            ~select(_n.name)
            .where(
                _n.realm_id == bindparam("of_realm"),
                _n.name == bindparam("of_name"),
                _n.device_id == bindparam("of_device"),
            )
            .exists(),
        )
        .order_by(_c.id.desc())
        .limit(1),
        include_defaults=False,
    )
)


def carried_steps(realm_id: int, device_id: int, names: Sequence[str], at: int) -> list[Step]:
    """What keeps names that were taken out of a record as the device's while a certificate of it still carries them."""
    of: Values = {"of_realm": realm_id, "of_device": device_id, "at": at}
    return [
        Step(_STILL_CARRIED, {**of, "of_name": key_of(name), "quoted": json.dumps(name)}, expect=None) for name in names
    ]


def held_touches(realm_id: int, names: Sequence[str]) -> frozenset[str]:
    """What those steps touch (`Unit.touches`): of two devices that choose one name, the second finds the first's."""
    return frozenset(f"name:{realm_id}:{name}" for name in names)
