"""What operators do about a clock that once stood in the future.

What was written then is dated later than now, so that every right clock stands "before the newest event" and nothing is
issued (`moment`). An operator who knows what time it is accepts that time went back: from then on, only what was
written since tells how late it is. Nothing that was written changes.
"""

from cryptography import x509
from sqlalchemy import func, select
from sqlalchemy.sql import bindparam

from ca_core.errors import ConditionFailed, OperatorError
from ca_core.model import Clock
from ca_core.records.audit import CLOCK_ACCEPTED, AuditEvent
from ca_core.records.query import Query, Values
from ca_core.records.schema import audit, audit_head, certificate, clock_step, crl, device_secret, issuer, realm_version
from ca_core.records.store import CLOCK_LEEWAY, Store
from ca_core.records.times import from_ms, rfc3339, to_ms
from ca_core.records.unit import Guard, Unit, guarded_insert
from ca_core.registration.desks import CrlDesk
from ca_core.registration.moment import LEEWAY_MS, NEWEST_EVENT, is_behind
from ca_core.rows import ClockState, ClockStep, CrlRow

_TRIES = 5

_a, _c, _s, _k, _i, _t = audit.c, certificate.c, device_secret.c, crl.c, issuer.c, clock_step.c
_NEWEST_EVENT = Query(NEWEST_EVENT)
_FUTURE = Query(select(func.min(_a.at), func.max(_a.at), func.count()).where(_a.at > bindparam("at")))
_HEAD = Query(select(func.max(audit_head.c.number)))
_LAST_STEP = Query(select(_t.accepted_at, _t.newest_at).order_by(_t.id.desc()).limit(1))
_CERTIFICATES = Query(
    select(func.count())
    .select_from(certificate)
    .where(_c.not_before > bindparam("at"), _c.kind == "device", _c.status != "revoked")
)
_SECRETS = Query(
    select(func.count())
    .select_from(device_secret)
    .where(_s.created_at > bindparam("at"), _s.spent_at.is_(None), _s.voided_at.is_(None))
)
_CRLS = Query(
    select(_i.name, _i.der, _k.this_update_at)
    .select_from(issuer.join(crl, _k.issuer_id == _i.id))
    .where(_k.this_update_at > bindparam("at"))
    .order_by(_i.name)
)
_OLDEST = Query(select(func.min(_a.at), select(func.min(realm_version.c.created_at)).scalar_subquery()))
_ISSUERS = Query(select(_i.der))
_ACCEPT, _ACCEPT_WHY = guarded_insert(
    clock_step,
    {"newest_event": NEWEST_EVENT.scalar_subquery() == bindparam("judged", type_=_a.at.type)},
)


class ClockDesk:
    """The clocks of one store. `is_shared`: its database has a clock of its own."""

    def __init__(self, store: Store, clock: Clock, crls: CrlDesk, *, is_shared: bool) -> None:
        self._store = store
        self._clock = clock
        self._crls = crls
        self._is_shared = is_shared

    async def show(self) -> ClockState:
        """This machine's clock beside the others, and what is dated later than it. Raises `Unavailable`."""
        drift = await self._store.measure_drift()
        now = self._clock()
        later = to_ms(now) + LEEWAY_MS
        newest = await self._first(_NEWEST_EVENT)
        future = await self._store.first(_FUTURE, at=later) or (None, None, 0)
        step = await self._store.first(_LAST_STEP)
        return ClockState(
            clock=rfc3339(now),
            database_clock=rfc3339(from_ms(to_ms(now) + round(drift * 1000))) if self._is_shared else None,
            newest_event=rfc3339(from_ms(newest)) if newest is not None else None,
            behind=is_behind(now, newest),
            off=abs(drift) > CLOCK_LEEWAY,
            events=future[2],
            certificates=await self._first(_CERTIFICATES, at=later) or 0,
            secrets=await self._first(_SECRETS, at=later) or 0,
            crls=await self._crls_ahead(later),
            accepted=ClockStep(at=rfc3339(from_ms(step[0])), back_from=rfc3339(from_ms(step[1]))) if step else None,
        )

    async def accept(self, *, reason: str, actor: str) -> ClockState:
        """Accept that this machine's clock is right, and that what is dated later was written by a wrong one.

        Raises `OperatorError` when the clock is not behind, when the database disagrees with it, or when it stands
        before the store was made.
        """
        if not reason.strip():
            raise OperatorError("reason_missing", "there is no reason", "say why the clock stood in the future")
        for _ in range(_TRIES):
            await self._refuse_a_wrong_clock()
            now = self._clock()
            at = to_ms(now)
            judged = await self._first(_NEWEST_EVENT)
            if judged is None or not is_behind(now, judged):
                raise OperatorError(
                    "clock_not_behind",
                    "this machine's clock does not stand before the store's newest event",
                    "there is nothing to accept; 'enrolld check' tells why nothing is issued, if so",
                )
            await self._refuse_before_the_beginning(at)
            first, newest, _ = await self._store.first(_FUTURE, at=at + LEEWAY_MS) or (None, None, 0)
            row: Values = {
                "accepted_at": at,
                # The newest may be a head, whose events are not dated like it.
                "first_at": min(judged, first if first is not None else judged),
                "newest_at": max(judged, newest if newest is not None else judged),
                "head": await self._first(_HEAD) or 0,
            }
            event = AuditEvent(CLOCK_ACCEPTED, actor, details=_told(row, reason))
            guard = Guard(_ACCEPT, row | {"judged": judged}, _ACCEPT_WHY)
            try:
                await self._store.commit(Unit(guard, at, (), (event,)))
            except ConditionFailed:
                continue  # somebody else has accepted it, or a clock in the future goes on writing
            return await self.show()
        raise OperatorError(
            "clock_unsteady",
            "events dated in the future keep coming",
            "set the clock of the node that writes them first; 'enrolld audit list --since TIME' shows its writer",
        )

    async def redate_crls(self, issuer: str | None = None, *, actor: str) -> list[CrlRow]:
        """Publish anew, dated now, the CRLs that a clock in the future has dated.

        This alone lets thisUpdate go back; their numbers go on. Raises `OperatorError` while it is not clear what time
        it is, and as `CrlDesk.publish`.
        """
        await self._refuse_a_wrong_clock()
        if is_behind(self._clock(), await self._first(_NEWEST_EVENT)):
            raise OperatorError(
                "clock_behind",
                "this machine's clock stands before the store's newest event",
                "see 'enrolld clock show', and accept the clock first if it is right",
            )
        return await self._crls.publish(issuer, redate=True, actor=actor)

    async def _refuse_a_wrong_clock(self) -> None:
        drift = await self._store.measure_drift()
        if abs(drift) > CLOCK_LEEWAY:
            raise OperatorError(
                "clock_off",
                f"this machine's clock stands {abs(drift):.0f} s {'before' if drift > 0 else 'after'} the database's",
                "set both clocks first: which of them is right, enrolld can't know",
            )

    async def _crls_ahead(self, later: int) -> list[str]:
        """The issuers of CRLs dated later that can be dated back: none is older than its issuer."""
        rows = await self._store.fetch(_CRLS, at=later)
        ahead = [name for name, der, at in rows if at > _made_at(der) + LEEWAY_MS]
        return list(dict.fromkeys(ahead))

    async def _refuse_before_the_beginning(self, at: int) -> None:
        """Of each kind of record the oldest: a later one may be the wrong clock's."""
        oldest = [moment for moment in await self._store.first(_OLDEST) or () if moment is not None]
        certificates = [_made_at(row[0]) for row in await self._store.fetch(_ISSUERS)]
        oldest += [min(certificates)] if certificates else []
        beginning = max(oldest, default=at)
        if at + LEEWAY_MS < beginning:
            raise OperatorError(
                "clock_too_early",
                f"this machine's clock stands at {rfc3339(from_ms(at))}, and this CA was made at"
                f" {rfc3339(from_ms(beginning))}",
                "set this machine's clock; if it is right, the CA was made by a wrong one, and is valid nowhere yet:"
                " make a new one in another directory",
            )

    async def _first(self, query: Query, **params: int) -> int | None:
        row = await self._store.first(query, **params)
        return row[0] if row is not None else None


def _made_at(der: bytes) -> int:
    """A CA certificate's notBefore, in milliseconds since 1970."""
    return to_ms(x509.load_der_x509_certificate(der).not_valid_before_utc)


def _told(row: Values, reason: str) -> dict[str, object]:
    """What the event says: for people in words, for `audit_verify` in the numbers that it compares."""
    newest, now = (from_ms(int(row[name] or 0)) for name in ("newest_at", "accepted_at"))
    return {
        "from": rfc3339(newest),
        "to": rfc3339(now),
        "reason": reason[:500],
        "first_at": row["first_at"],
        "newest_at": row["newest_at"],
        "head": row["head"],
    }
