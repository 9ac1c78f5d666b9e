"""Whose name is whose: what a device gets beyond its own record is no server's name, and no other device's.

Another device has the names of its record, its own name, and those of its certificates while these are neither revoked
nor over. All stand in `device_name`, by which a name is looked up: those of the record by triggers, those of
certificates, with the newest that has them, by the unit that issues.
"""

import functools
import json
from collections.abc import Sequence
from typing import Any

from cryptography import x509
from cryptography.x509.oid import NameOID
from sqlalchemy import ColumnElement, and_, bindparam, exists, func, not_, or_, select

from ca_core.errors import ConditionFailed, NotAuthorized
from ca_core.model import DeviceRecord
from ca_core.records.query import Query, Values
from ca_core.records.schema import certificate, device, device_name
from ca_core.records.store import Store
from ca_core.records.unit import Step
from ca_core.registration.name_keys import key_of, keys_of_common_name, looked_up, own_name
from ca_core.registration.realm import Realms

__all__ = [
    "carried_steps",
    "check_names",
    "chosen_names",
    "chosen_values",
    "free_for_record",
    "held_steps",
    "held_touches",
    "is_unknown",
    "not_held",
    "record_holders",
    "room_for",
    "server_names",
]

_n, _d, _c = device_name.c, device.c, certificate.c
_h = certificate.alias("holding").c
_o, _s = device.alias("holder").c, certificate.alias("standing").c


def _carries(of: Any, quoted: Any, key: Any) -> ColumnElement[bool]:
    """Whether a certificate has a name: names are told apart by the quotes of their JSON, a common name by commas."""
    names, subject = func.lower(of.names), func.lower("," + of.subject + ",")
    common_name = ",cn=" + func.substr(key, len("DNS:") + 1) + ","
    return or_(
        func.replace(names, func.lower(quoted), "") != names,
        and_(func.substr(key, 1, 4) == "DNS:", func.replace(subject, func.lower(common_name), "") != subject),
    )


# A board that was changed proves nothing more, but of a device that is gone nobody knows where its key is; whoever took
# over from it may have its names.
_STANDS = _n.certificate_id.is_(None) | exists().where(
    _h.realm_id == _n.realm_id,
    _h.device_id == _n.device_id,
    _h.status != "revoked",
    _h.not_after > bindparam("issued_at"),
    or_(_h.id == _n.certificate_id, _carries(_h, '"' + _n.name + '"', _n.name)),
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
        _carries(_s, '"' + _n.name + '"', _n.name),
    ),
)
_BY_SERIAL = Query(
    select(_d.name).where(
        _d.realm_id == bindparam("realm_id"),
        _d.manufacturer == bindparam("manufacturer"),
        _d.serial_number == bindparam("serial_number"),
        _d.id != bindparam("device_id"),
    )
)


def chosen_names(subject: x509.Name, names: Sequence[str], asking: DeviceRecord) -> tuple[str, ...]:
    """The names that a certificate would have beside those of the device's record, as `device_name` has them."""
    own = set(looked_up([*(() if asking.is_new else [own_name(asking.name)]), *map(key_of, asking.names)]))
    found: dict[str, None] = {}
    for each in subject.get_attributes_for_oid(NameOID.COMMON_NAME):
        if own_name(str(each.value)) not in own:
            found.update(dict.fromkeys(keys_of_common_name(str(each.value))))
    found.update(dict.fromkeys(map(key_of, names)))
    return tuple(name for name in found if name not in own)


async def server_names(realms: Realms) -> frozenset[str]:
    """The keys of all names that this server has."""
    names = [*(f"DNS:{host}" for host in await realms.all_hosts()), *await realms.own_names()]
    return frozenset(looked_up(map(key_of, names)))


async def check_names(
    store: Store, subject: x509.Name, names: Sequence[str], asking: DeviceRecord, realms: Realms, now: int
) -> None:
    """No name beside the record may be a server's or another device's, whatever made it: a template or the request.

    Nor is a serial number of the subject one by which a trusted manufacturer's device is known here. `now` is in
    milliseconds since 1970. Raises `NotAuthorized`, and `ConditionFailed` when a newcomer is known by now.
    """
    await _check_serial_numbers(store, subject, asking, realms)
    chosen = looked_up(chosen_names(subject, names, asking))
    if not chosen:
        return
    if taken := await server_names(realms) & set(chosen):  # enforces case 29
        raise NotAuthorized(
            "name_of_server", "The certificate would have a name of this server.", detail=_shown(min(taken))
        )
    holder = await holder_of(store, asking.realm_id, chosen, asking.id, now)
    if holder is not None:  # enforces case 29
        name, whose = holder
        if asking.is_new and whose == asking.name:
            raise ConditionFailed(["device_is_new"])  # registered since it was looked for
        raise NotAuthorized(
            "name_of_other_device",
            "The certificate would have the name of another device.",
            detail=f"{_shown(name)}, of device {whose}",
        )


async def _check_serial_numbers(store: Store, subject: x509.Name, asking: DeviceRecord, realms: Realms) -> None:
    """What is registered later is no fault of a certificate that was there before, so the commit does not repeat it."""
    numbers = {str(each.value) for each in subject.get_attributes_for_oid(NameOID.SERIAL_NUMBER)}
    numbers.discard(asking.serial_number or "")
    if not numbers:
        return
    realm = next(found for found in (await realms.current()).values() if found.id == asking.realm_id)
    for number in numbers:
        for manufacturer in sorted({anchor.name for anchor in realm.anchors.values()}):
            row = await store.first(
                _BY_SERIAL, realm_id=realm.id, manufacturer=manufacturer, serial_number=number, device_id=asking.id
            )
            if row is not None:  # enforces case 29
                raise NotAuthorized(
                    "name_of_other_device",
                    "The certificate would have the serial number of another device.",
                    detail=f"{_shown(number)}, of device {row[0]}",
                )


async def is_unknown(store: Store, realm_id: int, name: str, now: int) -> bool:
    """Whether a device of this name is still a newcomer; False when it was registered since it was looked for.

    It takes no name that another device has, in whatever case or place. `now` is in milliseconds since 1970. Raises
    `NotAuthorized`.
    """
    holder = await holder_of(store, realm_id, looked_up([own_name(name)]), 0, now)
    if holder is not None and holder[1] == name:
        return False
    if holder is not None:
        raise NotAuthorized(
            "device_name_taken", "Another device has this name.", detail=f"a name of device {holder[1]}"
        )
    return True


async def holder_of(
    store: Store, realm_id: int, names: Sequence[str], device_id: int, now: int
) -> tuple[str, str] | None:
    """One of the names that another device has, and that device's name."""
    params = chosen_values(names)
    row = await store.first(_holders(room_for(names)), realm_id=realm_id, device_id=device_id, issued_at=now, **params)
    return (row[0], row[1]) if row else None


def _shown(name: str) -> str:
    return ascii(name.removeprefix("DNS:"))


# --- statements ------------------------------------------------------------------------------------------------------


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
def _holders(room: int) -> Query:
    joined = select(_n.name, _d.name).join(device, (_d.realm_id == _n.realm_id) & (_d.id == _n.device_id))
    return Query(joined.where(_is_held(room)).limit(1))


@functools.cache
def record_holders(room: int) -> Query:
    """The other devices for which a record may not have one of so many keys, each with that key.

    The parameters are those of `chosen_values`, `realm_id`, `device_id` (0 for a device that is new) and `issued_at`,
    which is now.
    """
    joined = select(_n.name, _d.name).join(device, (_d.realm_id == _n.realm_id) & (_d.id == _n.device_id))
    return Query(joined.where(_is_held(room), _STANDS_IN_RECORDS).distinct())


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
            _carries(_c, bindparam("quoted", type_=_c.names.type), bindparam("of_name", type_=_n.name.type)),
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
