"""The device registry: what operators do with devices and their secrets."""

import datetime as dt
import json
from collections.abc import Sequence

from sqlalchemy import bindparam, case, select

from ca_core.errors import ConditionFailed, ConstraintFailed, OperatorError
from ca_core.model import Clock, DeviceState
from ca_core.names import parse_after, parse_device_name, parse_duration, parse_moment, parse_san, username_of
from ca_core.records.audit import AuditEvent
from ca_core.records.query import Query, Row, Values, insert_into
from ca_core.records.schema import certificate, device, device_secret, realm
from ca_core.records.store import Store
from ca_core.records.times import from_ms, rfc3339, to_ms
from ca_core.records.unit import Guard, Step, Unit, guarded_insert
from ca_core.registration.admission.secret import new_secret
from ca_core.registration.attempts import Attempts
from ca_core.registration.device import MAY_ENROLL
from ca_core.registration.realm import SAME_ACTIVE, Realm, Realms
from ca_core.registration.why import sentence
from ca_core.rows import DeviceRow, HandedSecret, Why

_d, _s, _c = device.c, device_secret.c, certificate.c
_COLUMNS = (
    _d.id,
    _d.name,
    realm.c.name,
    _d.profile,
    _d.state,
    _d.serial_number,
    _d.manufacturer,
    _d.names,
    _d.owner,
    _d.created_at,
    _d.last_seen_at,
)
_FROM = device.join(realm, realm.c.id == _d.realm_id)
_ONE = Query(
    select(*_COLUMNS).select_from(_FROM).where(_d.realm_id == bindparam("realm_id"), _d.name == bindparam("name"))
)
_LIST = Query(
    select(*_COLUMNS).select_from(_FROM).where(_d.id > bindparam("after")).order_by(_d.id).limit(bindparam("limit"))
)
_LIST_REALM = Query(
    select(*_COLUMNS)
    .select_from(_FROM)
    .where(_d.realm_id == bindparam("realm_id"), _d.id > bindparam("after"))
    .order_by(_d.id)
    .limit(bindparam("limit"))
)
_ADD, _ADD_WHY = guarded_insert(
    device,
    {"realm_version": SAME_ACTIVE},
)
_ADD_SECRET = Query(insert_into(device_secret).values(device_id=bindparam("guard_id")))
_SET_STATE = Query(
    device.update()
    .where(
        _d.realm_id == bindparam("of_realm"),
        _d.name == bindparam("of_name"),
        MAY_ENROLL,
    )
    .values(state="suspended")
    .returning(_d.id)
)
_HAS_CERTIFICATE = select(_c.id).where(_c.realm_id == _d.realm_id, _c.device_id == _d.id).exists()
_RESUME = Query(
    device.update()
    .where(_d.realm_id == bindparam("of_realm"), _d.name == bindparam("of_name"), _d.state == "suspended")
    .values(state=case((_HAS_CERTIFICATE, "active"), else_="expected"))
    .returning(_d.id)
)
_TOUCH = Query(
    # The guard of a new secret: the device is there, and may enroll at all.
    device.update()
    .where(_d.realm_id == bindparam("of_realm"), _d.name == bindparam("of_name"), _d.state != "retired")
    .values(owner=_d.owner)
    .returning(_d.id)
)
_VOID = Query(
    device_secret.update()
    .where(_s.realm_id == bindparam("of_realm"), _s.device_id == bindparam("guard_id"), _s.voided_at.is_(None))
    .values(voided_at=bindparam("now"))
)
_LAST_CERTIFICATE = Query(
    select(_c.serial, _c.not_after, _c.status)
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


class Devices:
    """Registers devices, hands out secrets, suspends and resumes."""

    def __init__(self, store: Store, realms: Realms, attempts: Attempts, clock: Clock) -> None:
        self._store = store
        self._realms = realms
        self._attempts = attempts
        self._clock = clock

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
        found = await self._realms.get(realm_name)
        parse_device_name(name)
        names = sorted({parse_san(san) for san in sans})
        _check_profile(found, profile)
        manufacturer = _manufacturer(found, serial_number, manufacturer)
        now = self._clock()
        until = _expiry(found, expires, now)
        text, selector, digest = new_secret()
        at = to_ms(now)
        row: Values = {
            "realm_id": found.id,
            "name": name,
            "profile": profile,
            "state": DeviceState.EXPECTED.value,
            "serial_number": serial_number,
            "manufacturer": manufacturer,
            "names": json.dumps(names),
            "owner": owner,
            "created_at": at,
            "last_seen_at": None,
            **found.facts,
        }
        event = AuditEvent(
            "device.added",
            actor,
            realm=found.name,
            device=name,
            details={"profile": profile, "serial_number": serial_number, "manufacturer": manufacturer, "names": names},
        )
        secret = Step(_ADD_SECRET, _secret_row(found.id, selector, digest, at, until))
        try:
            await self._store.commit(Unit(Guard(_ADD, row, _ADD_WHY), at, (secret,), (event,)))
        except ConditionFailed as exc:
            raise OperatorError(
                "realm_changed", "the realm was changed at this moment", "run the command again"
            ) from exc
        except ConstraintFailed as exc:
            raise await self._exists(found, name) from exc
        return _handed(found, name, profile, text, until)

    async def secret(self, realm_name: str, name: str, *, expires: str | None = None, actor: str) -> HandedSecret:
        """Make a new secret for a device; every older one of it is void from now on. Raises `OperatorError`."""
        found = await self._realms.get(realm_name)
        row = await self._row(found, name)
        now = self._clock()
        until = _expiry(found, expires, now)
        text, selector, digest = new_secret()
        at = to_ms(now)
        steps = (
            Step(_VOID, {"of_realm": found.id, "now": at}, expect=None),
            Step(_ADD_SECRET, _secret_row(found.id, selector, digest, at, until)),
        )
        event = AuditEvent("secret.made", actor, realm=found.name, device=name, details={"expires": rfc3339(until)})
        guard = Guard(_TOUCH, {"of_realm": found.id, "of_name": name})
        try:
            await self._store.commit(Unit(guard, at, steps, (event,)))
        except ConditionFailed as exc:
            raise OperatorError("device_retired", f"{name} is retired", "add it anew under another name") from exc
        return _handed(found, name, row[3], text, until)

    async def list(self, realm_name: str | None = None, *, limit: int, after: str | None = None) -> list[DeviceRow]:
        """Devices in the order they were added, from after the row with the id `after`."""
        start = parse_after(after)
        if realm_name is None:
            rows = await self._store.fetch(_LIST, after=start, limit=limit)
        else:
            found = await self._realms.get(realm_name)
            rows = await self._store.fetch(_LIST_REALM, realm_id=found.id, after=start, limit=limit)
        return [_device(row) for row in rows]

    async def show(self, realm_name: str, name: str) -> DeviceRow:
        """One device. Raises `OperatorError`."""
        return _device(await self._row(await self._realms.get(realm_name), name))

    async def suspend(self, realm_name: str, name: str, *, actor: str) -> DeviceRow:
        """Stop all enrollment of a device: when this returns, nothing more is issued to it. Raises `OperatorError`."""
        return await self._change(realm_name, name, _SET_STATE, "device.suspended", actor)

    async def resume(self, realm_name: str, name: str, *, actor: str) -> DeviceRow:
        """Let a suspended device enroll again. Raises `OperatorError`."""
        return await self._change(realm_name, name, _RESUME, "device.resumed", actor)

    async def why(self, realm_name: str, name: str) -> Why:
        """Where the device stands, in a sentence, and its last attempts. Raises `OperatorError`."""
        found = await self._realms.get(realm_name)
        row = await self._row(found, name)
        shown = _device(row)
        attempts = await self._attempts.list_of_device(found.id, row[0])
        last = await self._store.first(_LAST_CERTIFICATE, realm_id=found.id, device_id=row[0])
        open_secret = await self._store.first(_OPEN_SECRET, realm_id=found.id, device_id=row[0])
        said = sentence(shown, attempts, last, open_secret, self._clock())
        return Why(device=name, realm=found.name, state=shown.state, sentence=said, timeline=attempts)

    async def _change(self, realm_name: str, name: str, query: Query, action: str, actor: str) -> DeviceRow:
        found = await self._realms.get(realm_name)
        before = _device(await self._row(found, name))
        event = AuditEvent(action, actor, realm=found.name, device=name)
        guard = Guard(query, {"of_realm": found.id, "of_name": name})
        try:
            await self._store.commit(Unit(guard, to_ms(self._clock()), (), (event,)))
        except ConditionFailed as exc:
            raise OperatorError(
                "device_state", f"{name} is {before.state}", "'enrolld device show' tells its state"
            ) from exc
        return _device(await self._row(found, name))

    async def _row(self, found: Realm, name: str) -> Row:
        row = await self._store.first(_ONE, realm_id=found.id, name=name)
        if row is None:
            shown = ascii(name[:64])[1:-1]
            raise OperatorError(
                "device_unknown",
                f"there is no device '{shown}' in realm {found.name}",
                f"'enrolld device add {shown} --realm {found.name}' adds it",
            )
        return row

    async def _exists(self, found: Realm, name: str) -> OperatorError:
        if await self._store.first(_ONE, realm_id=found.id, name=name) is not None:
            return OperatorError(
                "device_exists",
                f"there is a device '{name}' in realm {found.name}",
                "make a secret with 'device secret'",
            )
        return OperatorError(
            "identity_taken",
            f"another device of realm {found.name} has this manufacturer and serial number",
            "'enrolld device list' shows which",
        )


def _secret_row(realm_id: int, selector: str, digest: bytes, at: int, until: dt.datetime) -> Values:
    return {
        "realm_id": realm_id,
        "selector": selector,
        "hash": digest,
        "created_at": at,
        "expires_at": to_ms(until),
        "spent_at": None,
        "spent_key": None,
        "spent_names": None,
        "certificate_id": None,
        "voided_at": None,
    }


def _handed(found: Realm, name: str, profile: str | None, text: str, until: dt.datetime) -> HandedSecret:
    return HandedSecret(
        device=name,
        realm=found.name,
        profile=profile or found.document.est.profile,
        username=username_of(name),
        secret=text,
        expires=rfc3339(until),
    )


def _expiry(found: Realm, expires: str | None, now: dt.datetime) -> dt.datetime:
    if expires is None:
        return now + parse_duration(found.document.secret_lifetime)
    return parse_moment(expires, now)


def _check_profile(found: Realm, profile: str | None) -> None:
    if profile is not None and profile not in found.document.profiles:
        known = ", ".join(found.document.profiles)
        shown = ascii(profile[:40])[1:-1]
        raise OperatorError("profile_unknown", f"realm {found.name} has no profile '{shown}'", f"there are: {known}")


def _manufacturer(found: Realm, serial_number: str | None, manufacturer: str | None) -> str | None:
    trusted = [anchor.name for anchor in found.document.trust if anchor.for_ == "idevid"]
    if manufacturer is not None and serial_number is None:
        raise OperatorError("identity_incomplete", "a manufacturer without a serial number", "add --serial-number S")
    if serial_number is None:
        return None
    if not serial_number or len(serial_number) > 64 or not serial_number.isprintable():
        raise OperatorError("identity_invalid", "that is not a serial number", "use the IDevID's subject serialNumber")
    if manufacturer is None:
        # Two manufacturers may give the same number, so a serial number alone is an identity only under one anchor.
        if len(trusted) == 1:
            return trusted[0]
        raise OperatorError(
            "identity_incomplete",
            "a serial number needs its manufacturer",
            f"add --manufacturer, one of: {', '.join(trusted) or 'none yet; see enrolld trust add'}",
        )
    if manufacturer not in trusted:
        raise OperatorError(
            "manufacturer_unknown",
            f"realm {found.name} trusts no manufacturer '{ascii(manufacturer[:64])[1:-1]}'",
            f"use one of: {', '.join(trusted) or 'none yet; see enrolld trust add'}",
        )
    return manufacturer


def _device(row: Row) -> DeviceRow:
    return DeviceRow(
        id=str(row[0]),
        device=row[1],
        realm=row[2],
        profile=row[3],
        state=row[4],
        serial_number=row[5],
        manufacturer=row[6],
        names=json.loads(row[7]),
        owner=row[8],
        created_at=rfc3339(from_ms(row[9])),
        last_seen_at=rfc3339(from_ms(row[10])) if row[10] is not None else None,
    )
