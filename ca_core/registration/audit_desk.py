"""The audit trail for operators: listed, verified, exported; and its common heads, for the periodic work."""

import datetime as dt
import json
import re
from collections.abc import AsyncIterator, Callable, Collection
from typing import Any

from ca_core.errors import OperatorError
from ca_core.model import Clock
from ca_core.names import parse_duration, parse_serial
from ca_core.records.audit_export import export_lines
from ca_core.records.audit_heads import Heads
from ca_core.records.audit_trail import EventRecord, Filter, Trail, shown_time
from ca_core.records.audit_verify import Verifier
from ca_core.records.migrating import HEAD
from ca_core.records.store import Store
from ca_core.records.times import rfc3339, to_ms
from ca_core.registration.realm import Realms
from ca_core.rows import AuditRow, HeadRow, Verdict

_SPAN = re.compile(r"[0-9]+[smhd]", re.ASCII)
_TELL_EVERY = 1000


class AuditDesk:
    """The trail of one store; `version` is this program's."""

    def __init__(self, store: Store, realms: Realms, clock: Clock, version: str) -> None:
        self._trail = Trail(store)
        self._heads = Heads(store, clock)
        self._realms = realms
        self._clock = clock
        self._version = version

    async def make_heads(self) -> list[HeadRow]:
        """Have common heads cover what none covers yet: those just made. Raises `Unavailable`."""
        made = await self._heads.make()
        return [HeadRow(number=head.number, at=shown_time(head.at), digest=head.digest.hex()) for head in made]

    async def total(self) -> int:
        """About how many events there are, without counting them."""
        return await self._trail.total()

    async def verify(self, kept: Collection[str] = (), advance: Callable[[int], object] | None = None) -> Verdict:
        """Verify all of the trail; `kept` are digests of heads that were kept elsewhere, in lower-case hex.

        `advance` is told how many events were read. Raises `Unavailable`.
        """
        verifier = Verifier(kept)
        told = 0
        last: int | None = None
        async for head in self._trail.heads():
            verifier.head(head)
            last = head.number
        async for record in self._trail.all():
            if not isinstance(record, EventRecord):
                verifier.writer(record)
                continue
            verifier.event(record)
            if advance is not None and verifier.events - told >= _TELL_EVERY:
                advance(verifier.events - told)
                told = verifier.events
        if advance is not None:
            advance(verifier.events - told)
        async for head in self._trail.heads(after=last):
            verifier.head(head)
        return verifier.finish()

    async def export(
        self, *, realm: str | None = None, device: str | None = None, since: str | None = None
    ) -> AsyncIterator[str]:
        """The trail, or the chosen part of it, as the lines of a file that verifies offline. Raises `OperatorError`."""
        chosen = await self._filter(realm, device, since)
        now = rfc3339(self._clock())
        async for line in export_lines(self._trail, chosen, version=self._version, revision=HEAD, exported_at=now):
            yield line

    async def list(
        self,
        *,
        realm: str | None = None,
        device: str | None = None,
        action: str | None = None,
        serial: str | None = None,
        request_id: str | None = None,
        since: str | None = None,
        limit: int,
        after: str | None = None,
    ) -> list[AuditRow]:
        """Events in order of time, from after the row with the id `after`. Raises `OperatorError`."""
        number = parse_serial(serial) if serial is not None else None
        chosen = await self._filter(realm, device, since, action=action, serial=number, request_id=request_id)
        return [_row(id_, event) for id_, event in await self._trail.list(chosen, limit=limit, after=after)]

    async def _filter(self, realm: str | None, device: str | None, since: str | None, **more: str | None) -> Filter:
        if realm is not None:
            await self._realms.get(realm)
        start = to_ms(_parse_since(since, self._clock())) if since is not None else None
        return Filter(realm=realm, device=device, since=start, **more)


def _parse_since(text: str, now: dt.datetime) -> dt.datetime:
    """A duration before `now`, or an RFC 3339 time."""
    if _SPAN.fullmatch(text):
        return now - parse_duration(text)
    try:
        moment = dt.datetime.fromisoformat(text.upper())
    except ValueError:
        moment = None
    if moment is None or moment.tzinfo is None or not 1 < moment.year < 9999:
        raise OperatorError(
            "time_invalid", f"'{ascii(text[:80])[1:-1]}' is not a time", "use 30m, 12h, 7d or 2026-01-31T12:00:00Z"
        )
    return moment.astimezone(dt.UTC)


def _row(id_: str, event: EventRecord) -> AuditRow:
    row: dict[str, Any] = dict(event.row)
    try:
        details = json.loads(row["details"])
    except (TypeError, ValueError, RecursionError):
        details = row["details"]
    row |= {"id": id_, "at": shown_time(row["at"]), "details": details}
    del row["format"]
    return AuditRow(**row, hash=event.hash.hex() if isinstance(event.hash, bytes) else event.hash)
