"""What becomes of a registered device: suspended, resumed, replaced, retired.

A device is neither its key nor its board. When those change, what proved it before proves it no more: secrets are void
and certificates superseded, in the one transaction that also says so. A superseded certificate renews nothing; for
those who only check a CRL it stays valid until it ends or is revoked as well.
"""

import datetime as dt
from collections.abc import Sequence
from dataclasses import dataclass

from sqlalchemy import ColumnElement, bindparam, case, func, null, select

from ca_core.authority.revocation import parse_reason, revocation_steps
from ca_core.errors import ConditionFailed, ConstraintFailed, OperatorError
from ca_core.model import Clock, DeviceState
from ca_core.records.audit import AuditEvent
from ca_core.records.query import Query, Row, Values
from ca_core.records.schema import certificate, device, device_secret, issuer
from ca_core.records.store import Store
from ca_core.records.times import to_ms
from ca_core.records.unit import Guard, Step, Unit
from ca_core.registration.certificates import Certificates
from ca_core.registration.device import MAY_ENROLL
from ca_core.registration.device_facts import check_identity
from ca_core.registration.device_list import ONE, device_row
from ca_core.registration.realm import Realm, Realms
from ca_core.registration.renewal import NONE_EXPECTED
from ca_core.registration.request_ends import end_requests
from ca_core.rows import DeviceRow, Replacement

_TRIES = 5

_d, _s, _c = device.c, device_secret.c, certificate.c
_THIS = (_d.realm_id == bindparam("of_realm"), _d.name == bindparam("of_name"))
_PROVES = (_c.realm_id == _d.realm_id, _c.device_id == _d.id, _c.superseded_at.is_(None))
_SUSPEND = Query(device.update().where(*_THIS, MAY_ENROLL).values(state="suspended").returning(_d.id))
_RESUME = Query(
    device.update()
    .where(*_THIS, _d.state == "suspended")
    .values(state=case((select(_c.id).where(*_PROVES).exists(), "active"), else_="expected"))
    .returning(_d.id)
)
VOID_SECRETS = Query(
    device_secret.update()
    .where(_s.realm_id == bindparam("of_realm"), _s.device_id == bindparam("guard_id"), _s.voided_at.is_(None))
    .values(voided_at=bindparam("now"))
)
_SUPERSEDE = Query(
    certificate.update()
    .where(_c.realm_id == bindparam("of_realm"), _c.device_id == bindparam("guard_id"), _c.superseded_at.is_(None))
    .values(superseded_at=bindparam("now"))
)
_CERTIFICATES = Query(
    select(_c.id, _c.issuer_id, _c.serial, _c.spki_sha256, _c.status, _c.not_after, issuer.c.name)
    .join(issuer, (issuer.c.realm_id == _c.realm_id) & (issuer.c.id == _c.issuer_id))
    .where(
        _c.realm_id == bindparam("realm_id"),
        _c.device_id == bindparam("device_id"),
        _c.superseded_at.is_(None) | (_c.status != "revoked"),
    )
    .order_by(_c.id)
)
# That nothing was issued or revoked since its certificates were listed: how many there are, and how many still stand.
_NOTHING_NEW: tuple[ColumnElement[bool], ...] = (
    select(func.count()).select_from(certificate).where(_c.realm_id == _d.realm_id, _c.device_id == _d.id)
    .scalar_subquery() == bindparam("certificates"),
    select(func.count()).select_from(certificate)
    .where(_c.realm_id == _d.realm_id, _c.device_id == _d.id, _c.status != "revoked")
    .scalar_subquery() == bindparam("standing"),
)  # fmt: skip
_COUNTS = Query(
    select(func.count(), func.count(case((_c.status != "revoked", 1)))).where(
        _c.realm_id == bindparam("realm_id"), _c.device_id == bindparam("device_id")
    )
)
_retired = {**NONE_EXPECTED, "state": DeviceState.RETIRED.value}
_RETIRE = Query(
    device.update()
    .where(*_THIS, _d.state != "retired", *_NOTHING_NEW)
    .values(**_retired, replaced_by_id=bindparam("by_id"))
    .returning(_d.id)
)
# A suspended one stays so: somebody had a reason, and it is lifted by `resume` alone.
_NEW_BOARD = Query(
    device.update()
    .where(*_THIS, _d.state != "retired", *_NOTHING_NEW)
    .values(
        **NONE_EXPECTED,
        state=case((_d.state == "active", "expected"), else_=_d.state),
        serial_number=bindparam("new_serial_number"),
        manufacturer=bindparam("new_manufacturer"),
        renewal_shares=null(),
    )
    .returning(_d.id)
)
_BY_IDENTITY = Query(
    select(_d.name, _d.state).where(
        _d.realm_id == bindparam("realm_id"),
        _d.manufacturer == bindparam("manufacturer"),
        _d.serial_number == bindparam("serial_number"),
    )
)
_INHERIT = Query(
    device.update()
    .where(_d.realm_id == bindparam("of_realm"), _d.id == bindparam("by_id"), _d.state != "retired")
    .values(
        owner=func.coalesce(_d.owner, bindparam("owner", type_=_d.owner.type)),
        profile=func.coalesce(_d.profile, bindparam("profile", type_=_d.profile.type)),
        names=case((_d.names == "[]", bindparam("names", type_=_d.names.type)), else_=_d.names),
    )
)
# Of a row of devices, each of which took over from the one before, the last one has what the first had.
_PASS_ON = Query(
    device.update()
    .where(_d.realm_id == bindparam("of_realm"), _d.replaced_by_id == bindparam("guard_id"))
    .values(replaced_by_id=bindparam("by_id"))
)


@dataclass(frozen=True, slots=True)
class _Held:
    """The certificates that a device has when it is to lose them: `counts` of all and of those that are not revoked,
    and rows of `_CERTIFICATES`.
    """

    counts: tuple[int, int]
    certificates: Sequence[Row]


class Lifecycle:
    """The acts on a device that is registered. Each raises `OperatorError` for one that is not."""

    def __init__(self, store: Store, realms: Realms, certificates: Certificates, clock: Clock) -> None:
        self._store = store
        self._certificates = certificates
        self._realms = realms
        self._clock = clock

    async def suspend(self, realm_name: str, name: str, *, actor: str) -> DeviceRow:
        """Stop all enrollment of a device: when this returns, nothing more is issued to it. Raises `OperatorError`."""
        return await self._change(realm_name, name, _SUSPEND, "device.suspended", actor)

    async def resume(self, realm_name: str, name: str, *, actor: str) -> DeviceRow:
        """Let a suspended device enroll again. Raises `OperatorError`."""
        return await self._change(realm_name, name, _RESUME, "device.resumed", actor)

    async def retire(self, realm_name: str, name: str, *, revoke: str | None = None, actor: str) -> Replacement:
        """End a device for good; with a reason to `revoke`, its certificates too, in the same transaction."""
        found = await self._realms.get(realm_name)
        reason = parse_reason(revoke) if revoke is not None else None
        event = AuditEvent("device.retired", actor, realm=found.name, device=name, details={"revoked": reason})
        return await self._supersede(found, name, _RETIRE, {"by_id": None}, (), (event,), reason, actor)

    async def new_board(
        self,
        realm_name: str,
        name: str,
        *,
        serial_number: str | None = None,
        manufacturer: str | None = None,
        revoke: bool = False,
        actor: str,
    ) -> Replacement:
        """The device goes on with another board, or re-imaged: what proved it before proves it no more.

        Without a serial number its factory identity stays the same. A key that it had may come again.
        """
        found = await self._realms.get(realm_name)
        row = await self._row(found, name)
        if serial_number is None and manufacturer is None:
            serial_number, manufacturer = row[5], row[6]
        elif serial_number is not None:
            manufacturer = check_identity(found, serial_number, manufacturer or row[6])
        else:
            manufacturer = check_identity(found, row[5], manufacturer)
            serial_number = row[5]
        changed: Values = {"new_serial_number": serial_number, "new_manufacturer": manufacturer}
        details = {
            "serial_number": [row[5], serial_number],
            "manufacturer": [row[6], manufacturer],
            "revoked": "superseded" if revoke else None,
        }
        event = AuditEvent("device.replaced", actor, realm=found.name, device=name, details=details)
        reason = "superseded" if revoke else None
        try:
            return await self._supersede(found, name, _NEW_BOARD, changed, (), (event,), reason, actor)
        except ConstraintFailed as exc:
            raise await identity_taken(self._store, found, serial_number, manufacturer) from exc

    async def replace_by(self, realm_name: str, name: str, by: str, *, revoke: bool = False, actor: str) -> Replacement:
        """Another registered device takes over: this one is retired.

        The other gets its owner, profile and alternative names where it has none of its own. What this one had taken
        over from is then said to be replaced by the other, too.
        """
        found = await self._realms.get(realm_name)
        if name == by:
            raise OperatorError(
                "replacement_is_same", f"{name} can't take over from itself", "leave --by out for a changed board"
            )
        old, new = await self._row(found, name), await self._row(found, by)
        if new[4] == DeviceState.RETIRED.value:
            raise OperatorError("device_retired", f"{by} is retired", "name a device that is not")
        inherited: Values = {"owner": old[8], "profile": old[3], "names": old[7]}
        steps = (
            Step(_INHERIT, {"of_realm": found.id, "by_id": new[0], **inherited}),
            Step(_PASS_ON, {"of_realm": found.id, "by_id": new[0]}, expect=None),
        )
        reason = "superseded" if revoke else None
        events = (
            AuditEvent("device.replaced", actor, realm=found.name, device=name, details={"by": by, "revoked": reason}),
            AuditEvent("device.took_over", actor, realm=found.name, device=by, details={"from": name}),
        )
        try:
            return await self._supersede(found, name, _RETIRE, {"by_id": new[0]}, steps, events, reason, actor)
        except ConstraintFailed as exc:
            raise OperatorError("device_retired", f"{by} was retired at this moment", "name another device") from exc

    async def _supersede(
        self,
        found: Realm,
        name: str,
        guard: Query,
        changed: Values,
        steps: Sequence[Step],
        events: tuple[AuditEvent, ...],
        reason: str | None,
        actor: str,
    ) -> Replacement:
        for _ in range(_TRIES):
            row = await self._row(found, name)
            if row[4] == DeviceState.RETIRED.value:
                raise OperatorError("device_retired", f"{name} is retired", "'enrolld device list' shows all")
            held = await self._held(found, row[0])
            now = self._clock()
            at = to_ms(now)
            standing = [one for one in held.certificates if one[4] != "revoked" and one[5] > at] if reason else []
            params: Values = {"of_realm": found.id, "of_name": name, **changed}
            params |= {"certificates": held.counts[0], "standing": held.counts[1]}
            all_steps = [
                Step(VOID_SECRETS, {"of_realm": found.id, "now": at}, expect=None),
                end_requests(found.id, name, at),
                Step(_SUPERSEDE, {"of_realm": found.id, "now": at}, expect=None),
                *steps,
                *(step for one in standing for step in _revoking(found, one, reason or "", now)),
            ]
            revoked = tuple(
                AuditEvent(
                    "certificate.revoked",
                    actor,
                    realm=found.name,
                    device=name,
                    serial=one[2],
                    details={"reason": reason},
                )
                for one in standing
            )
            try:
                await self._store.commit(Unit(Guard(guard, params), at, tuple(all_steps), (*events, *revoked)))
            except ConditionFailed:
                continue  # it enrolled at this moment, or a certificate of it was revoked
            superseded = sum(1 for one in held.certificates if one[4] == "valid" and one[5] > at)
            return Replacement(
                device=device_row(await self._row(found, name), now),
                superseded=superseded,
                revocations=[await self._certificates.revocation(one[0]) for one in standing],
            )
        raise OperatorError("device_changed", f"{name} keeps changing at this moment", "run the command again")

    async def _held(self, found: Realm, device_id: int) -> _Held:
        counts = await self._store.first(_COUNTS, realm_id=found.id, device_id=device_id) or (0, 0)
        rows = await self._store.fetch(_CERTIFICATES, realm_id=found.id, device_id=device_id)
        return _Held((int(counts[0]), int(counts[1])), rows)

    async def _change(self, realm_name: str, name: str, query: Query, action: str, actor: str) -> DeviceRow:
        found = await self._realms.get(realm_name)
        before = await self._row(found, name)
        event = AuditEvent(action, actor, realm=found.name, device=name)
        guard = Guard(query, {"of_realm": found.id, "of_name": name})
        now = self._clock()
        try:
            await self._store.commit(Unit(guard, to_ms(now), (), (event,)))
        except ConditionFailed as exc:
            raise OperatorError(
                "device_state", f"{name} is {before[4]}", "'enrolld device show' tells its state"
            ) from exc
        return device_row(await self._row(found, name), now)

    async def _row(self, found: Realm, name: str) -> Row:
        row = await self._store.first(ONE, realm_id=found.id, name=name)
        if row is None:
            shown = ascii(name[:64])[1:-1]
            raise OperatorError(
                "device_unknown",
                f"there is no device '{shown}' in realm {found.name}",
                f"'enrolld device add {shown} --realm {found.name}' adds it",
            )
        return row


async def identity_taken(store: Store, found: Realm, serial_number: object, manufacturer: object) -> OperatorError:
    """The error that names the device which has the factory identity."""
    row = await store.first(
        _BY_IDENTITY, realm_id=found.id, serial_number=str(serial_number), manufacturer=str(manufacturer)
    )
    holder, state = row or ("another device", "")
    has = f"{holder} in realm {found.name} has this manufacturer and serial number"
    if state == DeviceState.RETIRED.value:
        return OperatorError(
            "identity_taken",
            f"{has}, and is retired",
            "it keeps them, so that its board does not come back by itself; let the board enroll by a secret"
            " ('enrolld device secret'), without a serial number in the record",
        )
    return OperatorError(
        "identity_taken",
        has,
        f"take them from there first: 'enrolld device set {holder}' with --serial-number '', or once it has enrolled"
        f" 'enrolld device replace {holder}' with the --serial-number of its new board",
    )


def _revoking(found: Realm, row: Row, reason: str, now: dt.datetime) -> Sequence[Step]:
    return revocation_steps(
        realm_id=found.id,
        certificate_id=row[0],
        issuer_id=row[1],
        serial=row[2],
        spki_sha256=row[3],
        reason=reason,
        now=now,
    )
