"""Whose name is whose: what a device gets beyond its own record is no server's name, and no other device's.

What a profile gives to many alike, fixed text say, is nobody's, though it may be no name of another device's record.

Another device has the names of its record, its own name, and those of its certificates while these are neither revoked
nor over. All stand in `device_name`, by which a name is looked up: those of the record by triggers, those of
certificates, with the newest that has them, by the unit that issues.
"""

import contextlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from cryptography import x509
from cryptography.x509.oid import NameOID
from sqlalchemy import bindparam, func, select

from ca_core.authority.issuer import Issuer
from ca_core.errors import ConditionFailed, NotAuthorized, OperatorError
from ca_core.model import DeviceRecord
from ca_core.records.query import Query
from ca_core.records.schema import device
from ca_core.records.store import Store
from ca_core.registration.examined import Common, Examined
from ca_core.registration.name_keys import key_of, keys_of_subject, looked_up, own_name
from ca_core.registration.name_rows import chosen_values, common_values, holders, recorded_holders, room_for
from ca_core.registration.realm import Realm, Realms
from ca_core.registration.template import canonical_name

__all__ = ["Beside", "check_names", "check_not_of_ca", "holder_of_serial", "is_unknown", "names_beside", "server_names"]

_d = device.c
# The database folds both, each in its own way; X.520 tells no cases of a serial number apart.
_BY_SERIAL = Query(
    select(_d.name)
    .where(
        _d.realm_id == bindparam("realm_id"),
        _d.serial_number.is_not(None),
        func.lower(_d.serial_number).in_(
            [func.lower(bindparam(name, type_=_d.serial_number.type)) for name in ("as_told", "folded")]
        ),
        _d.id != bindparam("device_id"),
    )
    .limit(1)
)


@dataclass(frozen=True, slots=True)
class Beside:
    """The names of a certificate beside those of the device's record, as `device_name` has them.

    `chosen` are the device's alone; `common` are those that no device has a say in.
    """

    chosen: tuple[str, ...]
    common: tuple[str, ...]


def names_beside(subject: x509.Name, names: Sequence[str], asking: DeviceRecord, common: Common) -> Beside:
    """The names of a certificate with this subject and these alternative names; of them are `common`."""
    own = set(looked_up([*(() if asking.is_new else [own_name(asking.name)]), *map(key_of, asking.names)]))
    chosen: dict[str, None] = {}
    shared: dict[str, None] = {}
    for each, keys in keys_of_subject(subject):
        if keys[0] not in own:
            (shared if each in common else chosen).update(dict.fromkeys(keys))
    for name in names:
        (shared if name in common else chosen)[key_of(name)] = None
    return Beside(tuple(key for key in chosen if key not in own), tuple(key for key in shared if key not in own))


async def server_names(realms: Realms) -> frozenset[str]:
    """The keys of all names that this server has."""
    names = [*(f"DNS:{host}" for host in await realms.all_hosts()), *await realms.own_names()]
    return frozenset(looked_up(map(key_of, names)))


async def check_names(store: Store, examined: Examined, asking: DeviceRecord, realms: Realms, now: int) -> None:
    """No name beside the record may be a server's or another device's, whatever made it: a template or the request.

    Nor is a serial number of the subject one by which another device is known here, of any manufacturer. `now` is in
    milliseconds since 1970. Raises `NotAuthorized`, and `ConditionFailed` when a newcomer is known by now.
    """
    await _check_serial_numbers(store, examined.subject, asking)
    beside = names_beside(examined.subject, examined.names, asking, examined.common)
    chosen, common = looked_up(beside.chosen), looked_up(beside.common)
    if not chosen and not common:
        return
    if taken := await server_names(realms) & {*chosen, *common}:  # enforces case 29
        raise NotAuthorized(
            "name_of_server", "The certificate would have a name of this server.", detail=_shown(min(taken))
        )
    holder = await holder_of(store, asking.realm_id, chosen, asking.id, now) if chosen else None
    if holder is None and common:
        row = await store.first(
            recorded_holders(room_for(common)), realm_id=asking.realm_id, device_id=asking.id, **common_values(common)
        )
        holder = (row[0], row[1]) if row else None
    if holder is not None:  # enforces case 29
        name, whose = holder
        if asking.is_new and whose == asking.name:
            raise ConditionFailed(["device_is_new"])  # registered since it was looked for
        raise NotAuthorized(
            "name_of_other_device",
            "The certificate would have the name of another device.",
            detail=f"{_shown(name)}, of device {whose}",
        )


def check_not_of_ca(subject: x509.Name, issuers: Iterable[Issuer]) -> None:
    """No device has the subject of one of its realm's CAs, in whatever spelling. Raises `NotAuthorized`."""
    found = _as_compared(subject)
    for issuer in issuers:
        # "The DN MUST be unique for each subject entity certified by the one CA as defined by the issuer field."
        # -- RFC 5280 4.1.2.6
        if found == _as_compared(issuer.certificate.subject):  # enforces case 29
            raise NotAuthorized(
                "name_of_ca", "The certificate would have the subject of a CA.", detail=f"that of {issuer.name}"
            )


def _as_compared(subject: x509.Name) -> tuple[frozenset[tuple[x509.ObjectIdentifier, str]], ...]:
    return tuple(frozenset((each.oid, own_name(str(each.value))) for each in rdn) for rdn in subject.rdns)


async def _check_serial_numbers(store: Store, subject: x509.Name, asking: DeviceRecord) -> None:
    """What is registered later is no fault of a certificate that was there before, so the commit does not repeat it."""
    own = _folded(asking.serial_number or "")
    for each in subject.get_attributes_for_oid(NameOID.SERIAL_NUMBER):
        number = str(each.value)
        if own and _folded(number) == own:
            continue
        holder = await holder_of_serial(store, asking.realm_id, number, asking.id)
        if holder is not None:  # enforces case 29
            raise NotAuthorized(
                "name_of_other_device",
                "The certificate would have the serial number of another device.",
                detail=f"{_shown(number)}, of device {holder}",
            )


async def holder_of_serial(store: Store, realm_id: int, number: str, device_id: int) -> str | None:
    """Another device that has the serial number, of whatever manufacturer and in whatever case and spaces."""
    row = await store.first(
        _BY_SERIAL, realm_id=realm_id, as_told=number, folded=" ".join(number.split()), device_id=device_id
    )
    return str(row[0]) if row else None


def _folded(number: str) -> str:
    return " ".join(number.split()).casefold()


async def is_unknown(store: Store, realm: Realm, name: str, now: int) -> bool:
    """Whether a device of this name is still a newcomer; False when it was registered since it was looked for.

    It takes no name that another device has, in whatever case or place, nor one that a profile gives to all. `now` is
    in milliseconds since 1970. Raises `NotAuthorized`.
    """
    sought = looked_up([own_name(name)])
    holder = await holder_of(store, realm.id, sought, 0, now)
    if holder is not None and holder[1] == name:
        return False
    if holder is not None:
        raise NotAuthorized(
            "device_name_taken", "Another device has this name.", detail=f"a name of device {holder[1]}"
        )
    if not _fixed_keys(realm).isdisjoint(sought):  # enforces case 29
        # Else one stranger could end a whole profile: what all have may be no name of a device's record.
        raise NotAuthorized(
            "device_name_taken", "A profile gives this name to every device.", detail=f"fixed text, {_shown(name)}"
        )
    return True


def _fixed_keys(realm: Realm) -> frozenset[str]:
    """The keys of the names that a profile of the realm gives to every device."""
    found: set[str] = set()
    for profile in realm.document.profiles.values():
        subject = [(attribute, template.text_in(realm.name)) for attribute, template in profile.rules.subject]
        fixed = [attribute.of(text) for attribute, text in subject if text and attribute.fault(text) is None]
        found.update(key for _, keys in keys_of_subject(x509.Name(fixed)) for key in keys)
        for template in profile.rules.names:
            text = template.value.text_in(realm.name) if template.kind else None
            if text:
                with contextlib.suppress(OperatorError):  # what can't be issued
                    found.add(key_of(canonical_name(f"{template.kind}:{text}")))
    return frozenset(found)


async def holder_of(
    store: Store, realm_id: int, names: Sequence[str], device_id: int, now: int
) -> tuple[str, str] | None:
    """One of the names that another device has, and that device's name."""
    params = chosen_values(names)
    row = await store.first(holders(room_for(names)), realm_id=realm_id, device_id=device_id, issued_at=now, **params)
    return (row[0], row[1]) if row else None


def _shown(name: str) -> str:
    return ascii(name.removeprefix("DNS:"))
