"""What operators do with requests that wait: look at them, approve or reject them."""

import datetime as dt
import json

import msgspec
from sqlalchemy import ColumnElement, Select, and_, bindparam, select

from ca_core.errors import ConditionFailed, OperatorError
from ca_core.model import Clock
from ca_core.names import parse_after
from ca_core.records.audit import AuditEvent
from ca_core.records.query import Query, Row, Values
from ca_core.records.schema import device, realm
from ca_core.records.schema import request as request_table
from ca_core.records.store import Store
from ca_core.records.times import from_ms, rfc3339, to_ms
from ca_core.records.unit import Guard, Step, Unit
from ca_core.registration.foretelling import foretell
from ca_core.registration.pending import touched_name, touched_request
from ca_core.registration.realm import Realms
from ca_core.rows import RequestRow

FORGOTTEN_AT_ONCE = 1000
KEPT = dt.timedelta(days=90)
"""How long a request is kept after its end."""
STATES = ("pending", "approved", "rejected", "expired", "issued")

_q = request_table.c
_COLUMNS = (
    _q.id,
    realm.c.name,
    _q.profile,
    _q.device,
    _q.subject,
    _q.protocol,
    _q.state,
    _q.requested_at,
    _q.expires_at,
    _q.means,
    _q.key,
    _q.spki_sha256,
    _q.source,
    _q.request_id,
    _q.decided_at,
    _q.decided_by,
    _q.reason,
    device.c.state,
    _q.names,
)
_SELECT: Select[tuple[object, ...]] = select(*_COLUMNS).select_from(
    request_table.join(realm, realm.c.id == _q.realm_id).outerjoin(
        device, (device.c.realm_id == _q.realm_id) & (device.c.name == _q.device)
    )
)
_UNDECIDED = (_q.state == "pending") | (_q.state == "approved")
_FILTERS: dict[str, ColumnElement[bool]] = {
    "realm_id": _q.realm_id == bindparam("realm_id"),
    "state": (_q.state == bindparam("state")) & ((_q.expires_at > bindparam("now")) | ~_UNDECIDED),
    "expired": _UNDECIDED & (_q.expires_at <= bindparam("now")),
}
_LISTS: dict[tuple[str, ...], Query] = {}
_ONE = Query(_SELECT.where(_q.id == bindparam("id")))
_DECIDE = Query(
    request_table.update()
    .where(
        _q.id == bindparam("of_id"),
        # An approval that nobody has used yet can be taken back.
        (_q.state == "pending")
        | and_(_q.state == "approved", bindparam("decision", type_=_q.state.type) == "rejected"),
        _q.expires_at > bindparam("now"),
    )
    .values(
        state=bindparam("decision", type_=_q.state.type),
        decided_at=bindparam("now"),
        decided_by=bindparam("actor"),
        reason=bindparam("why"),
        # An approval must not run out while the device is away for as long as it may be.
        expires_at=_q.expires_at - _q.requested_at + bindparam("now"),
    )
    .returning(_q.id)
)
_SHOWN = 5
_o = request_table.alias("other").c
_OTHERS = Query(
    select(_o.id)
    .where(
        _q.id == bindparam("id"),
        _o.realm_id == _q.realm_id,
        _o.device == _q.device,
        _o.id != _q.id,
        (_o.state == "pending") | (_o.state == "approved"),
        _o.expires_at > bindparam("now"),
    )
    .order_by(_o.id)
    .limit(_SHOWN + 1)
)
_OLD = _q.expires_at < bindparam("before")
_ANY_OLD = Query(select(_q.id).where(_OLD).limit(1))
_FORGET = Query(
    request_table.delete().where(_q.id.in_(select(_q.id).where(_OLD).order_by(_q.expires_at).limit(bindparam("most"))))
)


class RequestDesk:
    """Lists and decides requests."""

    def __init__(self, store: Store, realms: Realms, clock: Clock, *, public_url: str, demo: bool) -> None:
        self._store = store
        self._realms = realms
        self._clock = clock
        self._public_url = public_url
        self._demo = demo

    async def list(
        self, realm_name: str | None = None, state: str | None = None, *, limit: int, after: str | None = None
    ) -> list[RequestRow]:
        """Requests in the order in which they came, from after the row with the id `after`."""
        now = to_ms(self._clock())
        params: Values = {"after": parse_after(after), "limit": limit}
        names: list[str] = []
        if realm_name is not None:
            names.append("realm_id")
            params["realm_id"] = (await self._realms.get(realm_name)).id
        if state == "expired":
            names.append("expired")
            params["now"] = now
        elif state is not None:
            names.append("state")
            params |= {"state": state, "now": now}
        key = tuple(names)
        if key not in _LISTS:
            wanted = _SELECT.where(_q.id > bindparam("after"), *(_FILTERS[name] for name in key))
            _LISTS[key] = Query(wanted.order_by(_q.id).limit(bindparam("limit")))
        return [_row(row, now) for row in await self._store.fetch(_LISTS[key], **params)]

    async def show(self, request_id: str) -> RequestRow:
        """One request, with what would be issued while nothing is. Raises `OperatorError`."""
        found = await self._one(request_id)
        if found.state not in ("pending", "approved"):
            return found
        outlook = await foretell(self._store, found, self._clock, public_url=self._public_url, demo=self._demo)
        if others := await self._store.fetch(_OTHERS, id=int(found.id), now=to_ms(self._clock())):
            ids = ", ".join(str(row[0]) for row in others[:_SHOWN]) + (" and more" if len(others) > _SHOWN else "")
            warning = f"others ask in the name of {found.device} as well: see request {ids}"
            outlook = msgspec.structs.replace(outlook, warnings=[*outlook.warnings, warning])
        return msgspec.structs.replace(found, outlook=outlook)

    async def _one(self, request_id: str) -> RequestRow:
        number = int(request_id) if request_id.isascii() and request_id.isdecimal() and len(request_id) < 19 else -1
        row = await self._store.first(_ONE, id=number)
        if row is None:
            raise OperatorError(
                "request_unknown",
                f"there is no request '{ascii(request_id[:40])[1:-1]}'",
                "'enrolld request list' shows them, with their ids",
            )
        return _row(row, to_ms(self._clock()))

    async def approve(self, request_id: str, *, actor: str) -> RequestRow:
        """Let a request have its certificate, when its device asks again. Raises `OperatorError`.

        What could not be granted is not approved. What `outlook.warnings` says may keep the device from it later.
        """
        found = await self.show(request_id)
        outlook = found.outlook
        if found.state == "pending" and outlook is not None and outlook.outcome == "refused":
            raise OperatorError(
                "request_not_grantable",
                f"request {found.id} would be refused all the same: {outlook.message}",
                outlook.remedy or "",
            )
        return await self._decide(request_id, "approved", None, actor)

    async def reject(self, request_id: str, *, reason: str | None = None, actor: str) -> RequestRow:
        """Turn a request down: the same key is refused as long as the request is kept.

        One that is approved, too, until it is granted. Raises `OperatorError`.
        """
        return await self._decide(request_id, "rejected", reason, actor)

    async def forget_old(self) -> bool:
        """Forget some of what ended long ago, however it ended; a key that was rejected may then ask anew.

        Returns whether there was anything. The daemon's periodic work.
        """
        before = to_ms(self._clock() - KEPT)
        if await self._store.first(_ANY_OLD, before=before) is None:
            return False
        step = Step(_FORGET, {"before": before, "most": FORGOTTEN_AT_ONCE}, expect=None)
        # What ended is decided by nobody, so nothing else touches it.
        touches = frozenset({"requests:ended"})
        await self._store.commit(Unit(Guard(_ANY_OLD, {"before": before}), 0, (step,), (), touches))
        return True

    async def _decide(self, request_id: str, decision: str, why: str | None, actor: str) -> RequestRow:
        found = await self._one(request_id)
        at = to_ms(self._clock())
        guard = Guard(_DECIDE, {"of_id": int(found.id), "now": at, "decision": decision, "actor": actor, "why": why})
        event = AuditEvent(
            f"request.{decision}",
            actor,
            realm=found.realm,
            device=found.device,
            request_id=found.request_id,
            details={"key_sha256": found.key_sha256, "means": found.means, "reason": why},
        )
        touches = frozenset({touched_request(int(found.id)), touched_name(found.realm, found.device)})
        try:
            await self._store.commit(Unit(guard, at, (), (event,), touches))
        except ConditionFailed as exc:
            now = await self._one(request_id)
            raise OperatorError(
                "request_decided",
                f"request {found.id} is {now.state}",
                "one that is pending can be approved or rejected, one that is approved can still be rejected",
            ) from exc
        return await self.show(request_id)


def _row(row: Row, now: int) -> RequestRow:
    is_over = row[6] in ("pending", "approved") and row[8] <= now
    return RequestRow(
        id=str(row[0]),
        realm=row[1],
        profile=row[2],
        device=row[3],
        subject=row[4],
        names=json.loads(row[18]),
        protocol=row[5],
        state="expired" if is_over else row[6],
        requested_at=rfc3339(from_ms(row[7])),
        expires=rfc3339(from_ms(row[8])),
        means=row[9],
        key=row[10],
        key_sha256=row[11].hex(),
        source=row[12],
        request_id=row[13],
        decided_at=rfc3339(from_ms(row[14])) if row[14] is not None else None,
        decided_by=row[15],
        reason=row[16],
        device_state=row[17],
    )
