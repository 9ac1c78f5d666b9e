"""What of a list of devices is there twice: in the list, or in the list and among the devices of the realm."""

import hashlib
import json
from collections.abc import Iterator, Sequence
from typing import Any

from sqlalchemy import bindparam, select

from ca_core.records.query import Query, Value
from ca_core.records.schema import device
from ca_core.records.store import Store
from ca_core.registration.allow_list import Entry
from ca_core.registration.import_rows import batched
from ca_core.registration.name_keys import key_of, looked_up, meanings, own_name
from ca_core.registration.names_recorded import names_of_others
from ca_core.registration.realm import Realm
from ca_core.rows import ImportFault

LOOKED_UP = 100
"""At most so many at a time."""
_KEYS = 256

_d = device.c
_names: list[Any] = [bindparam(f"name_{number}") for number in range(LOOKED_UP)]
_NAMES = Query(select(_d.name).where(_d.realm_id == bindparam("realm_id"), _d.name.in_(_names)))
_numbers: list[Any] = [bindparam(f"serial_{number}") for number in range(LOOKED_UP)]
_IDENTITIES = Query(
    select(_d.serial_number, _d.name).where(
        _d.realm_id == bindparam("realm_id"),
        _d.manufacturer == bindparam("manufacturer"),
        _d.serial_number.in_(_numbers),
    )
)


class Duplicates:
    """Of one list for one realm. Names and identities of the list are kept as hashes, each with its line."""

    def __init__(self, store: Store, found: Realm, servers: frozenset[str], now: int) -> None:
        """`servers` are the keys of this server's names, `now` is in milliseconds since 1970."""
        self._store = store
        self._found = found
        self._servers = servers
        self._now = now
        self._lines: dict[bytes, int] = {}

    async def faults(self, entries: Sequence[Entry]) -> list[ImportFault]:
        """What of the next entries, at most `LOOKED_UP`, was there before."""
        faults = [fault for entry in entries for fault in self._repeated(entry)]
        return faults + await self._taken(entries) + await self._of_others(entries)

    def _repeated(self, entry: Entry) -> Iterator[ImportFault]:
        """What of an entry was there before."""
        of = {"name": entry.name}
        if entry.serial_number is not None:
            of["serial_number"] = f"{entry.manufacturer}\0{entry.serial_number}"
        for column, value in of.items():
            before = self._lines.setdefault(_hashed(column, value), entry.line)
            if before != entry.line:
                yield _duplicate(entry, column, f"line {before} has the same")
        for key, (column, shown) in _keys_of(entry).items():
            if key in self._servers:  # enforces case 29
                yield _fault(entry, column, "name_of_server", f"{shown} is a name of this server")
            before = min(self._lines.setdefault(_hashed("key", each), entry.line) for each in meanings(key))
            # The same name twice is told above.
            if before != entry.line and (column == "san" or self._line_of_name(entry) == entry.line):
                yield _fault(entry, column, "name_of_other_device", f"line {before} has {shown}")

    def _line_of_name(self, entry: Entry) -> int:
        return self._lines[_hashed("name", entry.name)]

    async def _of_others(self, entries: Sequence[Entry]) -> list[ImportFault]:
        """Those whose names are of devices that are there."""
        wanted: dict[str, list[tuple[Entry, str, str]]] = {}
        for entry in entries:
            for key, (column, shown) in _keys_of(entry).items():
                for sought in looked_up([key]):
                    wanted.setdefault(sought, []).append((entry, column, shown))
        faults: list[ImportFault] = []
        for keys in batched(wanted, _KEYS):
            for key, holder in await names_of_others(self._store, self._found.id, 0, keys, self._now):
                for entry, column, shown in wanted[key]:
                    if holder != entry.name:  # else its name said so
                        said = f"{shown} is a name of device {holder}, or of a certificate of it"
                        faults.append(_fault(entry, column, "name_of_other_device", said))
        return list(dict.fromkeys(faults))

    async def _taken(self, entries: Sequence[Entry]) -> list[ImportFault]:
        """Those that are devices already."""
        faults: list[ImportFault] = []
        if not entries:
            return faults
        by_name = {entry.name: entry for entry in entries}
        names = _filled("name", list(by_name))
        for (name,) in await self._store.fetch(_NAMES, realm_id=self._found.id, **names):
            faults.append(_duplicate(by_name[name], "name", f"there is a device '{name}' in realm {self._found.name}"))
        for manufacturer in sorted({entry.manufacturer for entry in entries if entry.manufacturer is not None}):
            by_number = {e.serial_number or "": e for e in entries if e.manufacturer == manufacturer}
            numbers = _filled("serial", list(by_number))
            rows = await self._store.fetch(_IDENTITIES, realm_id=self._found.id, manufacturer=manufacturer, **numbers)
            for number, name in rows:
                if by_number[number].name != name:  # else its name said so
                    said = f"device {name} has this manufacturer and serial number"
                    faults.append(_duplicate(by_number[number], "serial_number", said))
        return faults


def _hashed(column: str, value: str) -> bytes:
    return hashlib.blake2b(f"{column}\0{value}".encode(), digest_size=12).digest()


def _keys_of(entry: Entry) -> dict[str, tuple[str, str]]:
    """The keys of an entry's names, each with its column and how the list has it."""
    names: list[str] = json.loads(entry.names)
    return {key_of(name): ("san", name) for name in names} | {own_name(entry.name): ("name", entry.name)}


def _filled(prefix: str, values: Sequence[str]) -> dict[str, Value]:
    """Exactly as many parameters as the statement has."""
    padded = [*values, *[values[-1]] * (LOOKED_UP - len(values))]
    return {f"{prefix}_{number}": value for number, value in enumerate(padded)}


def _duplicate(entry: Entry, column: str, message: str) -> ImportFault:
    return _fault(entry, column, "device_exists" if column == "name" else "identity_taken", message)


def _fault(entry: Entry, column: str, code: str, message: str) -> ImportFault:
    return ImportFault(line=entry.line, column=column, code=code, message=message, remedy="leave the line out")
