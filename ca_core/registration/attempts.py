"""Recent attempts: what devices and unknown callers asked, and why it was refused. A bounded table.

Each device keeps its last twenty, each unknown source its last twenty, and all unknown callers together ten thousand.
Refusals are written at a limited rate, behind the answer: junk costs a counter, not a commit, and one noisy source does
not keep the others from being explained.
"""

import random
import time
from dataclasses import dataclass, fields
from typing import Any

from sqlalchemy import ColumnElement, bindparam, func, select

from ca_core.codes import CODES
from ca_core.errors import OperatorError, Refusal
from ca_core.limits import Buckets, source_prefix
from ca_core.model import Call
from ca_core.records.audit import AuditEvent
from ca_core.records.query import Params, Query, Row, Values, insert_into
from ca_core.records.schema import attempt, device, realm
from ca_core.records.store import Store
from ca_core.records.times import from_ms, rfc3339
from ca_core.records.unit import Guard, Step, Unit
from ca_core.registration.tolerances import tolerance_steps, tolerance_touches
from ca_core.rows import AttemptRow

KEEP = 20
KEEP_UNKNOWN = 10_000

_a = attempt.c
_LENGTHS = {column.name: getattr(column.type, "length", None) for column in attempt.columns}
_INSERT = Query(insert_into(attempt).returning(_a.id))
INSERT = Query(insert_into(attempt))
PRUNE_DEVICE = Query(
    attempt.delete().where(
        _a.realm_id == bindparam("realm_id"),
        _a.device_id == bindparam("device_id"),
        _a.id
        <= select(_a.id)
        .where(_a.realm_id == bindparam("realm_id"), _a.device_id == bindparam("device_id"))
        .order_by(_a.id.desc())
        .limit(1)
        .offset(KEEP)
        .scalar_subquery(),
    )
)
_PRUNE_SOURCE = Query(
    attempt.delete().where(
        _a.device_id.is_(None),
        _a.source == bindparam("source"),
        _a.id
        <= select(_a.id)
        .where(_a.device_id.is_(None), _a.source == bindparam("source"))
        .order_by(_a.id.desc())
        .limit(1)
        .offset(KEEP)
        .scalar_subquery(),
    )
)
_PRUNE_UNKNOWN = Query(
    attempt.delete().where(
        _a.device_id.is_(None),
        _a.id
        <= select(_a.id)
        .where(_a.device_id.is_(None))
        .order_by(_a.id.desc())
        .limit(1)
        .offset(KEEP_UNKNOWN)
        .scalar_subquery(),
    )
)
_COLUMNS = (
    _a.id,
    _a.at,
    _a.request_id,
    realm.c.name,
    device.c.name,
    _a.source,
    _a.protocol,
    _a.operation,
    _a.outcome,
    _a.code,
    _a.message,
    _a.detail,
    _a.serial,
    _a.key,
    _a.signature_hash,
    _a.tls,
    _a.transaction_id,
    _a.claimed,
    _a.claimed_serial,
    _a.key_sha256,
)
_FROM = attempt.outerjoin(realm, realm.c.id == _a.realm_id).outerjoin(device, device.c.id == _a.device_id)
_BY_REQUEST = Query(
    select(*_COLUMNS).select_from(_FROM).where(_a.request_id == bindparam("request_id")).order_by(_a.id.desc()).limit(1)
)
_OF_DEVICE = Query(
    select(*_COLUMNS)
    .select_from(_FROM)
    .where(_a.realm_id == bindparam("realm_id"), _a.device_id == bindparam("device_id"))
    .order_by(_a.at.desc(), _a.id.desc())  # two writers may number them in another order
    .limit(bindparam("limit"))
)
# Bounded by what is kept of unknown callers, whose index it reads through.
_UNKNOWN_CONDITIONS: dict[str, ColumnElement[bool]] = {
    "name": _a.claimed == bindparam("name"),
    "source": _a.source == bindparam("source"),
    "key": _a.key_sha256 == bindparam("key"),
    "serial": (_a.claimed_serial == bindparam("serial")) | (_a.claimed_serial == bindparam("serial_hex")),
    "transaction_id": _a.transaction_id == bindparam("transaction_id"),
}
_UNKNOWN: dict[tuple[str, ...], Query] = {}
_SEEN = Query(
    device.update()
    .where(
        device.c.realm_id == bindparam("realm_id"),
        device.c.id == bindparam("device_id"),
        func.coalesce(device.c.last_seen_at, 0) < bindparam("at"),
    )
    .values(last_seen_at=bindparam("at"))
)
_COUNT = Query(select(func.count()).select_from(attempt))


def attempt_row(
    call: Call,
    at: int,
    *,
    realm_id: int | None,
    device_id: int | None,
    outcome: str,
    refusal: Refusal | None = None,
    code: str | None = None,
    detail: str = "",
    serial: str | None = None,
    key: str | None = None,
    signature_hash: str | None = None,
) -> Params:
    """The row of one attempt: `at` in milliseconds since 1970, outcome issued, pending, refused or error.

    What a refused caller claimed is kept only where no device is known.
    """
    claim = refusal.claim if refusal is not None and device_id is None else None
    row: Values = {
        "at": at,
        "request_id": call.request_id,
        "realm_id": realm_id,
        "device_id": device_id,
        "source": call.source,
        "protocol": call.protocol,
        "operation": call.operation,
        "outcome": outcome,
        "code": refusal.code if refusal else code,
        "message": refusal.message if refusal else None,
        "detail": ((refusal.detail if refusal else "") or detail)[:500] or None,
        "serial": serial,
        "key": key,
        "signature_hash": signature_hash,
        "tls": call.tls_version,
        "transaction_id": call.transaction_id,
        "claimed": claim.name if claim else None,
        "claimed_serial": claim.serial if claim else None,
        "key_sha256": claim.key_sha256 if claim else None,
    }
    # A peer may have said more than a column holds, and what is told to people need not be whole.
    return {name: value[: _LENGTHS[name]] if isinstance(value, str) else value for name, value in row.items()}


def touched_device(device_id: object) -> str:
    """The device among what a unit touches (`Unit.touches`)."""
    return f"device:{device_id}"


def transaction_details(call: Call) -> dict[str, Any]:
    """What an audit event says of the peer's transaction, if its protocol has such, and of the tolerances it needed."""
    found: dict[str, Any] = {}
    if call.transaction_id is not None:
        found["transaction_id"] = call.transaction_id
    if call.tolerances:
        found["tolerances"] = list(call.tolerances)
    return found


@dataclass(frozen=True, slots=True)
class Asked:
    """What is known of an unknown caller: all that is given has to match.

    `name` is who it said it was (user name or CN), `key` the SHA-256 of the key in its CSR, `serial` the IDevID's
    serialNumber as text, or the number of a certificate that has none, in hex.
    """

    name: str | None = None
    source: str | None = None
    key: bytes | None = None
    serial: str | None = None
    transaction_id: str | None = None

    def params(self) -> Values:
        """What is given, as parameters of the query."""
        found: Values = {field.name: getattr(self, field.name) for field in fields(self)}
        if self.serial is not None:
            found["serial_hex"] = self.serial.lower().replace(":", "").lstrip("0")
        return {name: value for name, value in found.items() if value is not None}

    def words(self) -> str:
        """What is given, for a sentence."""
        words = {"name": "the name", "source": "the address", "serial": "the serial number"}
        words |= {"key": "the key", "transaction_id": "the transaction"}
        shown = {name: value.hex() if isinstance(value, bytes) else str(value) for name, value in self.params().items()}
        return " and ".join(f"{words[name]} '{ascii(shown[name][:64])[1:-1]}'" for name in words if name in shown)


class Attempts:
    """Writes and reads attempts."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._sources = Buckets(rate=2.0, burst=50.0, clock=time.monotonic)
        self._devices = Buckets(rate=1.0, burst=50.0, clock=time.monotonic)
        self._all = Buckets(rate=50.0, burst=400.0, clock=time.monotonic)
        self.dropped = 0

    def record(
        self, row: Params, at: int, events: tuple[AuditEvent, ...] = (), tolerating: tuple[int, Call] | None = None
    ) -> None:
        """Have an attempt written behind the answer, with what goes with it; beyond the rate it is only counted.

        `tolerating` counts the tolerances by which a call to a realm (its id) was read. While room is short nothing is
        written: what is left is for revocations and CRLs.
        """
        if self._store.shortage() is not None:
            self.dropped += 1
            return
        if row["device_id"] is None:
            allowed = self._sources.take(source_prefix(str(row["source"]))) and self._all.take("unknown")
            steps = [Step(_PRUNE_SOURCE, {"source": row["source"]}, expect=None)]
            touches: frozenset[str] | None = frozenset({f"source:{row['source']!s}"})
            if random.random() < 0.01:  # noqa: S311  # spreads a slow clean-up, decides nothing
                steps.append(Step(_PRUNE_UNKNOWN, {}, expect=None))
                touches = None
        else:
            allowed = self._devices.take(row["device_id"])
            steps = [Step(PRUNE_DEVICE, _owner(row), expect=None), Step(_SEEN, _owner(row) | {"at": at}, expect=None)]
            touches = frozenset({touched_device(row["device_id"])})
        if not allowed:
            self.dropped += 1
            return
        if tolerating is not None:
            steps += tolerance_steps(*tolerating, at)
            touches = touches and touches | tolerance_touches(*tolerating)
        self._store.submit(Unit(Guard(_INSERT, row), at, tuple(steps), events, touches))

    async def explain(self, request_id: str) -> AttemptRow:
        """The attempt with this request id. Raises `OperatorError`."""
        row = await self._store.first(_BY_REQUEST, request_id=request_id.strip().lower())
        if row is None:
            raise OperatorError(
                "request_unknown",
                f"no attempt with the request id '{ascii(request_id[:40])[1:-1]}' is kept",
                "attempts are kept for the last requests of each device and source; look into the log",
            )
        return _attempt(row)

    async def list_of_device(self, realm_id: int, device_id: int, limit: int = KEEP) -> list[AttemptRow]:
        """The device's attempts, newest first."""
        rows = await self._store.fetch(_OF_DEVICE, realm_id=realm_id, device_id=device_id, limit=limit)
        return [_attempt(row) for row in rows]

    async def list_unknown(self, asked: "Asked", limit: int = KEEP) -> list[AttemptRow]:
        """The attempts of callers that are no known device and match all of `asked`, newest first."""
        params = asked.params()
        given = tuple(name for name in _UNKNOWN_CONDITIONS if name in params)
        query = _UNKNOWN.get(given)
        if query is None:
            chosen = select(*_COLUMNS).select_from(_FROM).where(_a.device_id.is_(None))
            chosen = chosen.where(*(_UNKNOWN_CONDITIONS[name] for name in given))
            query = _UNKNOWN[given] = Query(chosen.order_by(_a.id.desc()).limit(bindparam("limit")))
        return [_attempt(row) for row in await self._store.fetch(query, limit=limit, **params)]

    async def count(self) -> int:
        """How many attempts are kept."""
        row = await self._store.first(_COUNT)
        return int(row[0]) if row else 0


def _owner(row: Params) -> Values:
    return {"realm_id": row["realm_id"], "device_id": row["device_id"]}


def _attempt(row: Row) -> AttemptRow:
    return AttemptRow(
        id=str(row[0]),
        at=rfc3339(from_ms(row[1])),
        request_id=row[2],
        realm=row[3],
        device=row[4],
        source=row[5],
        protocol=row[6],
        operation=row[7],
        outcome=row[8],
        code=row[9],
        message=row[10],
        detail=row[11],
        remedy=CODES.get(row[9]) if row[9] else None,
        serial=row[12],
        key=row[13],
        signature_hash=row[14],
        tls=row[15],
        transaction_id=row[16],
        claimed=row[17],
        claimed_serial=row[18],
        key_sha256=row[19].hex() if row[19] is not None else None,
    )
