"""The figures of an installation: what `status` and metrics say of it, read from a few small rows and never counted.

Numbers of devices, certificates, secrets and audit events come from the `tally`, which the store keeps in the
transactions that change them. Times are seconds since 1970.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import product

from sqlalchemy import BigInteger, cast, func, select

from ca_core.authority.kinds import ROOT
from ca_core.model import Clock, DeviceState
from ca_core.records.query import Query
from ca_core.records.schema import crl, issuer, realm, tally, tolerance_use
from ca_core.records.store import Store
from ca_core.records.times import to_ms
from ca_core.registration.moment import NEWEST_EVENT

__all__ = ["CERTIFICATE_STATES", "SECRET_STATES", "CrlFigures", "Figures", "read_figures"]

CERTIFICATE_STATES = ("valid", "hold", "revoked")
"""Disjoint. `valid` is not revoked: time alone changes no row, so that expired ones are among them."""

SECRET_STATES = ("open", "spent", "void")
"""Disjoint. `open` is neither used nor replaced by a newer one; it may have expired."""

_k, _t = crl.c, tally.c
_newest = crl.alias("newest").c
_TALLY = Query(
    select(_t.kind, _t.realm_id, _t.issuer_id, _t.state, cast(func.sum(_t.total), BigInteger)).group_by(
        _t.kind, _t.realm_id, _t.issuer_id, _t.state
    )
)
_REALMS = Query(select(realm.c.id, realm.c.name).order_by(realm.c.id))
_ISSUERS = Query(select(issuer.c.id, issuer.c.name, issuer.c.realm_id, issuer.c.family, issuer.c.not_after))
# Without the list itself, which may be megabytes.
_CRLS = Query(
    select(_k.issuer_id, _k.this_update_at, _k.next_update_at, _k.entries).where(
        _k.number == select(func.max(_newest.number)).where(_newest.issuer_id == _k.issuer_id).scalar_subquery()
    )
)
_TOLERANCES = Query(select(tolerance_use.c.realm_id, tolerance_use.c.name, tolerance_use.c.uses))
_NEWEST_EVENT = Query(NEWEST_EVENT)


@dataclass(frozen=True, slots=True)
class CrlFigures:
    """An issuer's newest CRL: when it was made, when the next one is promised, how many certificates it lists."""

    published: float
    next_update: float
    entries: int


@dataclass(frozen=True, slots=True)
class Figures:
    """All of them. The keys are names of realms and issuers, which configuration bounds, and words of ours."""

    devices: Mapping[tuple[str, str], int]
    """By realm and state; every state is there."""
    certificates: Mapping[tuple[str, str, str], int]
    """Of devices, by realm, issuer and state; every state is there for every issuer but the roots."""
    secrets: Mapping[tuple[str, str], int]
    """By realm and state; every state is there."""
    audit_events: Mapping[str, int]
    """By action: all that were ever written, by whatever process."""
    tolerances: Mapping[tuple[str, str], int]
    """By realm and tolerance: how often one was needed."""
    issuers: Mapping[tuple[str, str, str], float]
    """When a CA certificate ends, by realm, issuer and role (root, issuing)."""
    crls: Mapping[str, CrlFigures]
    """By issuer."""
    clock_behind: float
    """How many seconds this machine's clock stands before the newest audit event; 0 when it does not."""
    clock_drift: float
    """Seconds to add to this machine's clock to get the store's; 0 for a store without one of its own."""


async def read_figures(store: Store, clock: Clock) -> Figures:
    """The figures as the store has them now. Raises `Unavailable`."""
    # What is referred to comes last: a realm that is made meanwhile is then known.
    newest = await store.first(_NEWEST_EVENT)
    tolerances, lists, tallied = [await store.fetch(query) for query in (_TOLERANCES, _CRLS, _TALLY)]
    issuers = {row[0]: row for row in await store.fetch(_ISSUERS)}
    realms: dict[int, str] = {row[0]: row[1] for row in await store.fetch(_REALMS)}
    devices = dict.fromkeys(product(realms.values(), (state.value for state in DeviceState)), 0)
    issuing = [(realms[row[2]], row[1]) for row in issuers.values() if row[3] != ROOT]
    certificates = {(*names, state): 0 for names in issuing for state in CERTIFICATE_STATES}
    secrets = dict.fromkeys(product(realms.values(), SECRET_STATES), 0)
    events: dict[str, int] = {}
    for kind, realm_id, issuer_id, state, total in tallied:
        match kind:
            case "device":
                devices[realms[realm_id], state] = total
            case "certificate":
                certificates[realms[realm_id], issuers[issuer_id][1], state] = total
            case "secret":
                secrets[realms[realm_id], state] = total
            case "audit":
                events[state] = total
    return Figures(
        devices,
        certificates,
        secrets,
        events,
        tolerances={(realms[row[0]], row[1]): row[2] for row in tolerances},
        issuers={(realms[row[2]], row[1], _role(row[3])): row[4] / 1000 for row in issuers.values()},
        crls={issuers[row[0]][1]: CrlFigures(row[1] / 1000, row[2] / 1000, row[3]) for row in lists},
        clock_behind=max(0, newest[0] - to_ms(clock())) / 1000 if newest and newest[0] is not None else 0.0,
        clock_drift=store.drift,
    )


def _role(family: str) -> str:
    return "root" if family == ROOT else "issuing"
