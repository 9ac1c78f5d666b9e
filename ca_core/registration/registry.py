"""The device registry: registering devices, handing out their secrets, listing them and telling how they fare."""

import datetime as dt
import functools
from collections.abc import Sequence

from sqlalchemy import bindparam, select

from ca_core.errors import ConditionFailed, ConstraintFailed, OperatorError
from ca_core.model import Clock
from ca_core.names import parse_device_name, username_of
from ca_core.records.audit import AuditEvent
from ca_core.records.query import Query, insert_into
from ca_core.records.schema import certificate, device, device_secret
from ca_core.records.store import Store
from ca_core.records.times import rfc3339, to_ms
from ca_core.records.unit import Guard, Step, Unit, guarded_insert
from ca_core.registration.admission.secret import new_secret
from ca_core.registration.attempts import Asked, Attempts
from ca_core.registration.certificates import Certificates
from ca_core.registration.device import registered_row
from ca_core.registration.device_change import DeviceChanges
from ca_core.registration.device_facts import (
    check_identity,
    check_owner,
    check_profile,
    parse_sans,
    secret_expiry,
    secret_row,
)
from ca_core.registration.device_list import ONE, Choice, device_row, list_all, list_devices
from ca_core.registration.history import history
from ca_core.registration.lifecycle import VOID_SECRETS, identity_taken
from ca_core.registration.name_keys import check_new_device
from ca_core.registration.name_rows import chosen_values, free_for_record, room_for
from ca_core.registration.names_recorded import check_not_of_server, keys_of_record, name_of_other
from ca_core.registration.realm import SAME_ACTIVE, Realm, Realms
from ca_core.registration.realm_versions import UNCHANGED, changed_meanwhile, stamp
from ca_core.registration.request_ends import end_by_secret, end_unproven
from ca_core.registration.why import sentence, sentence_of_unknown
from ca_core.rows import ActRow, DeviceRow, HandedSecret, Why

_d, _s, _c = device.c, device_secret.c, certificate.c
_ADD_SECRET = Query(insert_into(device_secret).values(device_id=bindparam("guard_id")))
_TOUCH = Query(
    # The guard of a new secret: the device is there, and may enroll at all.
    device.update()
    .where(_d.realm_id == bindparam("of_realm"), _d.name == bindparam("of_name"), _d.state != "retired")
    .values(owner=_d.owner)
    .returning(_d.id)
)
_LAST_CERTIFICATE = Query(
    select(_c.serial, _c.not_after, _c.status, _c.superseded_at)
    .where(_c.realm_id == bindparam("realm_id"), _c.device_id == bindparam("device_id"))
    .order_by(_c.id.desc())
    .limit(1)
)
_OPEN_SECRET = Query(
    select(_s.expires_at)
    .where(
        _s.realm_id == bindparam("realm_id"),
        _s.device_id == bindparam("device_id"),
        _s.spent_at.is_(None),
        _s.voided_at.is_(None),
    )
    .order_by(_s.id.desc())
    .limit(1)
)


@functools.cache
def _add(room: int) -> tuple[Query, Query]:
    return guarded_insert(
        device, {"realm_version": SAME_ACTIVE, "hosts": UNCHANGED, "names_free": free_for_record(room)}
    )


class Devices(DeviceChanges):
    """All that operators do with devices, one at a time; `device_import` takes many at once."""

    def __init__(
        self, store: Store, realms: Realms, certificates: Certificates, attempts: Attempts, clock: Clock
    ) -> None:
        super().__init__(store, realms, certificates, clock)
        self._attempts = attempts

    async def add(
        self,
        realm_name: str,
        name: str,
        *,
        profile: str | None = None,
        serial_number: str | None = None,
        manufacturer: str | None = None,
        sans: Sequence[str] = (),
        owner: str | None = None,
        expires: str | None = None,
        actor: str,
    ) -> HandedSecret:
        """Register a device and make its first secret. Raises `OperatorError`."""
        seen = stamp(await self._realms.current())
        found = await self._realms.active(realm_name)
        check_new_device(parse_device_name(name))
        names = parse_sans(sans)
        check_owner(owner)
        check_profile(found, profile)
        manufacturer = check_identity(found, serial_number, manufacturer)
        now = self._clock()
        until = secret_expiry(found, expires, now)
        text, selector, digest = new_secret()
        at = to_ms(now)
        row = registered_row(found.id, name, names, at, serial_number=serial_number, manufacturer=manufacturer)
        await check_not_of_server(self._realms, [f"DNS:{name}", *names])
        keys = keys_of_record(name, names)
        row |= {"profile": profile, "owner": owner, **found.facts}
        row |= {**chosen_values(keys), "device_id": 0, "issued_at": at, "stamp": seen}
        add, why = _add(room_for(keys))
        event = AuditEvent(
            "device.added",
            actor,
            realm=found.name,
            device=name,
            details={"profile": profile, "serial_number": serial_number, "manufacturer": manufacturer, "names": names},
        )
        secret = Step(_ADD_SECRET, secret_row(found.id, selector, digest, at, until))
        ended = end_unproven(found.id, name, at)  # whoever asked in this name before was not this device
        try:
            await self._store.commit(Unit(Guard(add, row, why), at, (secret, ended), (event,)))
        except ConditionFailed as exc:
            if "names_free" in exc.conditions:
                if await self._store.first(ONE, realm_id=found.id, name=name) is not None:
                    raise await self._exists(found, name, serial_number, manufacturer) from exc
                raise await name_of_other(self._store, found, 0, keys, at) from exc
            raise changed_meanwhile() from exc
        except ConstraintFailed as exc:
            raise await self._exists(found, name, serial_number, manufacturer) from exc
        return _handed(found, name, profile, text, until)

    async def secret(self, realm_name: str, name: str, *, expires: str | None = None, actor: str) -> HandedSecret:
        """Make a new secret for a device; every older one of it is void from now on. Raises `OperatorError`."""
        found = await self._realms.active(realm_name)
        row = await self._row(found, name)
        now = self._clock()
        until = secret_expiry(found, expires, now)
        text, selector, digest = new_secret()
        at = to_ms(now)
        steps = (
            Step(VOID_SECRETS, {"of_realm": found.id, "now": at}, expect=None),
            Step(_ADD_SECRET, secret_row(found.id, selector, digest, at, until)),
            end_by_secret(found.id, name, at),
        )
        event = AuditEvent("secret.made", actor, realm=found.name, device=name, details={"expires": rfc3339(until)})
        guard = Guard(_TOUCH, {"of_realm": found.id, "of_name": name})
        try:
            await self._store.commit(Unit(guard, at, steps, (event,)))
        except ConditionFailed as exc:
            raise OperatorError("device_retired", f"{name} is retired", "add it anew under another name") from exc
        return _handed(found, name, row[3], text, until)

    async def list(
        self,
        realm_name: str | None = None,
        *,
        choice: Choice = Choice(),  # noqa: B008  # frozen
        limit: int,
        after: str | None = None,
    ) -> list[DeviceRow]:
        """Devices from after the row `after` (an id); `list_devices` tells their order. Raises `OperatorError`."""
        now = self._clock()
        if realm_name is None and choice == Choice():
            return await list_all(self._store, now, limit=limit, after=after)
        if realm_name is None:
            realms = {found.id: name for name, found in (await self._realms.current()).items()}
        else:
            realms = {(await self._realms.get(realm_name)).id: realm_name}
        return await list_devices(self._store, realms, choice, now, limit=limit, after=after)

    async def show(self, realm_name: str, name: str) -> DeviceRow:
        """One device. Raises `OperatorError`."""
        return device_row(await self._row(await self._realms.get(realm_name), name), self._clock())

    async def history(self, realm_name: str, name: str) -> Sequence[ActRow]:
        """What was done with the device and what it got, newest first. Raises `OperatorError`."""
        found = await self._realms.get(realm_name)
        row = await self._row(found, name)
        return await history(self._store, found, row[0], name, row[15])

    async def why(self, realm_name: str, name: str) -> Why:
        """Where the device stands, in a sentence, and its last attempts.

        Of a name that nobody registered: what callers asked who claimed it. Raises `OperatorError` when none did.
        """
        found = await self._realms.get(realm_name)
        row = await self._store.first(ONE, realm_id=found.id, name=name)
        if row is None:
            asked = await self._attempts.list_unknown(Asked(name=name))
            if not asked:
                await self._row(found, name)
            shown = ascii(name[:64])[1:-1]
            said = f"No device '{shown}' is registered. {sentence_of_unknown(asked, Asked(name=name).words())}"
            return Why(device=name, realm=None, state="unknown", sentence=said, timeline=asked)
        now = self._clock()
        device_now = device_row(row, now)
        attempts = await self._attempts.list_of_device(found.id, row[0])
        last = await self._store.first(_LAST_CERTIFICATE, realm_id=found.id, device_id=row[0])
        open_secret = await self._store.first(_OPEN_SECRET, realm_id=found.id, device_id=row[0])
        said = sentence(device_now, attempts, last, open_secret, now)
        return Why(device=name, realm=found.name, state=device_now.state, sentence=said, timeline=attempts)

    async def why_unknown(self, asked: Asked) -> Why:
        """What callers asked who are no known device, found by what they showed, or the last ones of all."""
        attempts = await self._attempts.list_unknown(asked)
        said = sentence_of_unknown(attempts, asked.words())
        return Why(device=asked.name, realm=None, state="unknown", sentence=said, timeline=attempts)

    async def _exists(
        self, found: Realm, name: str, serial_number: str | None, manufacturer: str | None
    ) -> OperatorError:
        if await self._store.first(ONE, realm_id=found.id, name=name) is not None:
            return OperatorError(
                "device_exists",
                f"there is a device '{name}' in realm {found.name}",
                "make a secret with 'device secret'",
            )
        return await identity_taken(self._store, found, serial_number, manufacturer)


def _handed(found: Realm, name: str, profile: str | None, text: str, until: dt.datetime) -> HandedSecret:
    return HandedSecret(
        device=name,
        realm=found.name,
        profile=profile or found.document.est.profile,
        username=username_of(name),
        secret=text,
        expires=rfc3339(until),
    )
