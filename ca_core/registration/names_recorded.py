"""What an operator may write into a device's record: no name of this server, and none that another device has."""

from collections.abc import Sequence

from ca_core.errors import OperatorError
from ca_core.records.store import Store
from ca_core.registration.name_keys import key_of, looked_up
from ca_core.registration.name_rows import chosen_values, record_holders, room_for
from ca_core.registration.names_held import server_names
from ca_core.registration.realm import Realm, Realms

__all__ = ["check_not_of_server", "keys_of_record", "name_of_other", "names_of_others"]


async def check_not_of_server(realms: Realms, names: Sequence[str]) -> None:
    """Raises `OperatorError` for an alternative name that is one of this server."""
    if not names:
        return
    servers = await server_names(realms)
    for name in names:
        if key_of(name) in servers:  # enforces case 29
            raise OperatorError(
                "name_of_server",
                f"{name} is a name of this server",
                "leave it out: whoever has it could be taken for the server",
            )


async def names_of_others(
    store: Store, realm_id: int, device_id: int, keys: Sequence[str], now: int
) -> list[tuple[str, str]]:
    """Which of these keys (`looked_up`) other devices have, and what these are called.

    A device 0 is new; `now` is in milliseconds since 1970.
    """
    holders = record_holders(room_for(keys))
    rows = await store.fetch(holders, realm_id=realm_id, device_id=device_id, issued_at=now, **chosen_values(keys))
    return [(row[0], row[1]) for row in rows]


async def name_of_other(store: Store, found: Realm, device_id: int, keys: Sequence[str], now: int) -> OperatorError:
    """The error that names who has one of the keys."""
    rows = await names_of_others(store, found.id, device_id, keys, now)
    key, holder = rows[0] if rows else ("the name", "another device")
    return OperatorError(
        "name_of_other_device",
        f"{ascii(key)[1:-1]} is a name of {holder} in realm {found.name}, or of a certificate of it",
        f"take it from there first ('enrolld device set {holder}' with other --san, or --no-san), or retire {holder}"
        " if it is gone, and revoke its certificate",
    )


def keys_of_record(name: str, names: Sequence[str]) -> tuple[str, ...]:
    """All keys under which another device could have what this one is called, or one of its alternative names."""
    return looked_up([key_of(f"DNS:{name}"), *map(key_of, names)])
