"""Whose name is whose: what a device gets beyond its own record is no server's name, and no other device's.

What a profile gives to many alike, fixed text say, is nobody's. What a certificate has that is renewed while it stands
may be repeated, as RFC 7030 4.2.2 wants it: nobody else can have got it meanwhile.

Another device has the names of its record, its own name, and those of its certificates while these are neither revoked
nor over. All stand in `device_name`, by which a name is looked up: those of the record by triggers, those of
certificates, with the newest that has them, by the unit that issues.
"""

import contextlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from cryptography import x509
from cryptography.x509.oid import NameOID
from sqlalchemy import and_, bindparam, exists, func, or_, select

from ca_core.authority.issuer import Issuer
from ca_core.errors import ConditionFailed, NotAuthorized, OperatorError
from ca_core.model import DeviceRecord, OwnCertificate
from ca_core.records.query import Query, Values
from ca_core.records.schema import certificate, device
from ca_core.records.store import Store
from ca_core.records.times import to_ms
from ca_core.registration.examined import Examined, Named
from ca_core.registration.name_keys import key_of, keys_of_subject, looked_up, own_name
from ca_core.registration.name_rows import chosen_values, holders, room_for
from ca_core.registration.realm import Realm, Realms
from ca_core.registration.template import canonical_name

__all__ = [
    "Beside",
    "check_names",
    "check_not_of_ca",
    "holder_of_serial",
    "is_unknown",
    "names_beside",
    "server_names",
    "standing",
]

_d, _c = device.c, certificate.c
# The database folds both, each in its own way; X.520 tells no cases of a serial number apart.
_BY_SERIAL = Query(
    select(_d.name)
    .where(
        _d.realm_id == bindparam("realm_id"),
        _d.serial_number.is_not(None),
        func.lower(_d.serial_number).in_(
            [func.lower(bindparam(name, type_=_d.serial_number.type)) for name in ("as_told", "folded")]
        ),
        _d.id != bindparam("device_id", type_=_d.id.type),
        or_(
            _d.state != "retired",
            and_(
                _d.replaced_by_id.is_distinct_from(bindparam("device_id", type_=_d.id.type)),
                exists().where(
                    _c.realm_id == _d.realm_id,
                    _c.device_id == _d.id,
                    _c.status != "revoked",
                    _c.not_after > bindparam("at"),
                ),
            ),
        ),
    )
    .limit(1)
)


@dataclass(frozen=True, slots=True)
class Beside:
    """The names of a certificate beside those of the device's record, as `device_name` has them.

    `chosen` are to be the device's alone; `repeated` are so already; `common` are those that no device has a say in.
    """

    chosen: tuple[str, ...]
    repeated: tuple[str, ...]
    common: tuple[str, ...]

    @property
    def held(self) -> tuple[str, ...]:
        """What is the device's as long as the certificate stands."""
        return (*self.chosen, *self.repeated)


def names_beside(
    subject: x509.Name, names: Sequence[str], asking: DeviceRecord, common: Named, repeated: Named
) -> Beside:
    """The names of a certificate with this subject and these alternative names: of them are `common`, `repeated`."""
    own = set(looked_up([*(() if asking.is_new else [own_name(asking.name)]), *map(key_of, asking.names)]))
    found: dict[str, dict[str, None]] = {"chosen": {}, "repeated": {}, "common": {}}

    def put(of: x509.NameAttribute[str] | str, keys: Iterable[str]) -> None:
        found["common" if of in common else "repeated" if of in repeated else "chosen"].update(dict.fromkeys(keys))

    for each, keys in keys_of_subject(subject):
        if keys[0] not in own:
            put(each, keys)
    for name in names:
        put(name, [key_of(name)])
    chosen, again, shared = (tuple(key for key in keys if key not in own) for keys in found.values())
    return Beside(chosen, again, shared)


def standing(examined: Examined, own: OwnCertificate | None, now: int) -> Named:
    """What is repeated of a certificate that has not ended; what had ended, others may have got since."""
    return examined.repeated if own is not None and to_ms(own.not_after) > now else frozenset()


async def server_names(realms: Realms) -> frozenset[str]:
    """The keys of all names that this server has."""
    names = [*(f"DNS:{host}" for host in await realms.all_hosts()), *await realms.own_names()]
    return frozenset(looked_up(map(key_of, names)))


async def check_names(
    store: Store, examined: Examined, asking: DeviceRecord, own: OwnCertificate | None, realms: Realms, now: int
) -> None:
    """No name beside the record may be a server's or another device's, whatever made it: a template or the request.

    Nor is a serial number of the subject one by which another device is known here, of any manufacturer. `own` is the
    certificate that is renewed; `now` is in milliseconds since 1970. Raises `NotAuthorized`, and `ConditionFailed` when
    a newcomer is known by now.
    """
    repeated = standing(examined, own, now)
    await _check_serial_numbers(store, examined.subject, asking, repeated, now)
    beside = names_beside(examined.subject, examined.names, asking, examined.common, repeated)
    chosen, others = looked_up(beside.chosen), looked_up((*beside.repeated, *beside.common))
    if not chosen and not others:
        return
    if taken := await server_names(realms) & {*chosen, *others}:  # enforces case 29
        raise NotAuthorized(
            "name_of_server", "The certificate would have a name of this server.", detail=_shown(min(taken))
        )
    holder = await holder_of(store, asking.realm_id, chosen, asking.id, now) if chosen else None
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


async def _check_serial_numbers(
    store: Store, subject: x509.Name, asking: DeviceRecord, repeated: Named, now: int
) -> None:
    """What is registered later is no fault of a certificate that was there before, so the commit does not repeat it."""
    own = _folded(asking.serial_number or "")
    for each in subject.get_attributes_for_oid(NameOID.SERIAL_NUMBER):
        number = str(each.value)
        if each in repeated or (own and _folded(number) == own):
            continue
        holder = await holder_of_serial(store, asking.realm_id, number, asking.id, now)
        if holder is not None:  # enforces case 29
            raise NotAuthorized(
                "name_of_other_device",
                "The certificate would have the serial number of another device.",
                detail=f"{_shown(number)}, of device {holder}",
            )


async def holder_of_serial(store: Store, realm_id: int, number: str, device_id: int, now: int) -> str | None:
    """Another device that has the serial number, of whatever manufacturer and in whatever case and spaces.

    One that is retired has it while a certificate of it stands, unless this device took over from it.
    """
    folded = " ".join(number.split())
    of: Values = {"realm_id": realm_id, "as_told": number, "folded": folded, "device_id": device_id, "at": now}
    row = await store.first(_BY_SERIAL, **of)
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
        # Nobody who comes by himself is the cluster that all others are said to be of.
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
