"""Names of this server that a device has: whoever has one could be taken for the server.

No device gets a name that the server has. A name that a device has becomes no host of a realm either; what became one
all the same, by the names of the server itself or before this was so, is told by `check`.
"""

import functools
import json
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from sqlalchemy import BigInteger, ColumnElement, bindparam, cast, func, select

from ca_core.errors import OperatorError
from ca_core.records.query import Query, Values
from ca_core.records.schema import certificate, device, device_name
from ca_core.records.store import Store
from ca_core.registration.name_keys import key_of, keys_of_common_name, looked_up
from ca_core.registration.name_rows import chosen_values, room_for
from ca_core.registration.names_recorded import names_of_others
from ca_core.registration.realm import Realm

__all__ = ["NONE_NEW", "NewHosts", "free_hosts", "held_by_devices", "how_to_free", "same_holders"]

_n, _d, _c = device_name.c, device.c, certificate.c
# Another device may have the names of a board that was replaced, whose certificates prove nothing here any more; to who
# looks for a server they still do.
_SUPERSEDED = Query(
    select(_d.name, _c.names, _c.subject)
    .join(certificate, (_c.realm_id == _d.realm_id) & (_c.device_id == _d.id))
    .where(
        _d.realm_id == bindparam("realm_id"),
        _c.superseded_at.is_not(None),
        _c.status != "revoked",
        _c.not_after > bindparam("now"),
    )
)
_AT_ONCE = 128


@dataclass(frozen=True, slots=True)
class NewHosts:
    """The keys of hosts that a realm is to have from now on, and who had rows of them when it was looked."""

    keys: tuple[str, ...] = ()
    rows: int = 0

    @property
    def room(self) -> int:
        """That of `same_holders`."""
        return room_for(self.keys)

    @property
    def values(self) -> Values:
        """The parameters of `same_holders`."""
        return {**chosen_values(self.keys), "holders": self.rows} if self.keys else {}


NONE_NEW = NewHosts()


def _rows(room: int) -> ColumnElement[int]:
    # A name that is certified anew has the row of a newer certificate; what was revoked or retired does not come back.
    names: list[Any] = [bindparam(f"chosen_{number}") for number in range(room)]
    number = func.coalesce(func.sum(func.coalesce(_n.certificate_id, 0) + 1), 0)
    return select(cast(number, BigInteger)).where(_n.name.in_(names)).scalar_subquery()


@functools.cache
def _count(room: int) -> Query:
    return Query(select(_rows(room)))


def same_holders(room: int) -> dict[str, ColumnElement[bool]]:
    """The commit's condition: no device has got one of so many keys since `free_hosts` looked. None for no keys."""
    return {"hosts_free": _rows(room) == bindparam("holders")} if room else {}


async def held_by_devices(
    store: Store, realms: Mapping[str, Realm], names: Collection[str], now: int
) -> list[tuple[str, str, str]]:
    """Which of these names (as `DNS:a.example`) devices of any realm have: the name, the device, its realm.

    By their records, what they are called, or certificates that hold; `now` is in milliseconds since 1970.
    """
    whose = {key: name for name in sorted(names) for key in looked_up([key_of(name)])}
    keys = tuple(whose)
    found: dict[tuple[str, str, str], None] = {}
    for realm in realms.values():
        for first in range(0, len(keys), _AT_ONCE):
            for key, holder in await names_of_others(store, realm.id, 0, keys[first : first + _AT_ONCE], now):
                found[whose[key], holder, realm.name] = None
        for holder, carried, subject in await store.fetch(_SUPERSEDED, realm_id=realm.id, now=now):
            for key in {*map(key_of, json.loads(carried)), *_called(subject)} & whose.keys():
                found[whose[key], holder, realm.name] = None
    return list(found)


def _called(subject: str) -> Iterator[str]:
    for part in subject.split(","):
        if part[:3].upper() == "CN=":
            yield from keys_of_common_name(part[3:])


async def free_hosts(store: Store, realms: Mapping[str, Realm], hosts: Collection[str], now: int) -> NewHosts:
    """What the commit is to repeat of hosts that no device has. Raises `OperatorError` when one has."""
    if not hosts:
        return NONE_NEW
    names = [f"DNS:{host}" for host in sorted(hosts)]
    keys = looked_up(map(key_of, names))
    row = await store.first(_count(room_for(keys)), **chosen_values(keys))
    for name, holder, realm in await held_by_devices(store, realms, names, now):
        raise OperatorError(
            "host_of_device",
            f"the host {name.removeprefix('DNS:')} is a name of device {holder} in realm {realm}, which could be taken"
            " for this server",
            how_to_free(holder, realm),
        )
    return NewHosts(keys, int(row[0]) if row else 0)


def how_to_free(holder: str, realm: str) -> str:
    """What an operator does about such a device."""
    return (
        f"take it from there ('enrolld device set {holder} --realm {realm}' with other --san, or --no-san; 'enrolld"
        " device retire' where the device is called so, or its realm is retired), and revoke its certificate; or use"
        " another name"
    )
