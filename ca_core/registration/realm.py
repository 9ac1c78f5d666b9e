"""Realms as the rooms see them: the document in force, found by label and host."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Literal

from cryptography import x509
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.x509.verification import Store as AnchorStore
from sqlalchemy import BigInteger, bindparam, cast, func, select

from ca_core.errors import NotFound, OperatorError
from ca_core.names import DEFAULT_REALM, parse_label
from ca_core.records.query import Query
from ca_core.records.schema import realm as realm_table
from ca_core.records.schema import realm_version, server_certificate
from ca_core.records.store import Store
from ca_core.registration.admission.ways import Way
from ca_core.registration.document import RealmDocument, TrustDocument, from_json

_r, _v = realm_table.c, realm_version.c
_IN_FORCE = realm_table.join(realm_version, (_v.realm_id == _r.id) & (_v.version == _r.version))
# With the time that each version was made: a database that lost its last commits gives the same numbers anew.
_STAMP = Query(
    select(
        func.count(),
        func.coalesce(func.sum(_r.version), 0),
        cast(func.coalesce(func.sum(_v.created_at), 0), BigInteger),
    ).select_from(_IN_FORCE)
)
_ALL = Query(
    select(_r.id, _r.name, _r.state, _r.version, _v.created_at, _v.document).select_from(_IN_FORCE).order_by(_r.id)
)

_OWN_NAMES = Query(select(server_certificate.c.names).where(server_certificate.c.host == "*"))

_NO_REALM = "There is no such realm here."

SAME_VERSION = (
    select(_r.id)
    .select_from(_IN_FORCE)
    .where(
        _r.id == bindparam("realm_id"),
        _r.version == bindparam("realm_version"),
        _v.created_at == bindparam("realm_made_at"),
    )
    .exists()
)
"""A condition of commits: the realm is still at the version that was read. Its parameters are `Realm.facts`."""
SAME_ACTIVE = SAME_VERSION & select(_r.id).where(_r.id == bindparam("realm_id"), _r.state == "active").exists()
"""The same, and the realm is not retired."""


@dataclass(frozen=True)
class Realm:
    """A device line at one version of its document."""

    id: int
    name: str
    state: Literal["active", "retired"]
    version: int
    made_at: int
    """When this version was made, in milliseconds since 1970."""
    document: RealmDocument = field(repr=False)

    @property
    def edition(self) -> tuple[int, int]:
        """What tells one version of this realm from every other."""
        return self.version, self.made_at

    @property
    def facts(self) -> dict[str, int]:
        """The parameters of `SAME_VERSION`."""
        return {"realm_version": self.version, "realm_made_at": self.made_at}

    @cached_property
    def ways(self) -> tuple[Way, ...]:
        """The ways to a first certificate, in the order in which they are tried."""
        return self.document.admission.all_ways

    @cached_property
    def bare_way(self) -> Way | None:
        """The way of who proves nothing, where there is one: an operator looks at it, or the realm is open."""
        return next((way for way in self.ways if way.proofs <= {"open"}), None)

    @cached_property
    def takes_strangers(self) -> bool:
        """Whether an operator lets in who proves to be no single device, so that such requests may wait."""
        return any(way.approval and way.proofs.isdisjoint({"secret", "idevid"}) for way in self.ways)

    @property
    def asks_for_password(self) -> bool:
        """Whether who shows nothing may still have a secret, and sends it only when asked, as stock EST clients do."""
        return bool({"secret", "challenge"} & self.proofs)

    @cached_property
    def proofs(self) -> frozenset[str]:
        """What any of them takes."""
        return frozenset().union(*(way.proofs for way in self.ways))

    @cached_property
    def anchors(self) -> dict[bytes, TrustDocument]:
        """The IDevID trust anchors by SHA-256 of their DER."""
        return {_fingerprint(a.certificate()): a for a in self.document.trust if a.for_ == "idevid"}

    @cached_property
    def anchor_certificates(self) -> list[x509.Certificate]:
        """The IDevID trust anchors."""
        return [anchor.certificate() for anchor in self.anchors.values()]

    @cached_property
    def anchor_stores(self) -> dict[bytes, AnchorStore]:
        """Each IDevID trust anchor alone, for path validation, by SHA-256 of its DER."""
        return {_fingerprint(anchor): AnchorStore([anchor]) for anchor in self.anchor_certificates}


@dataclass(frozen=True, slots=True)
class Resolved:
    """Where a request is addressed to: a realm, and the profile that its label names, if it names one.

    `default_profile` is for a device without one of its own; `family`, if any, is the only issuer family whose
    certificates the protocol's clients can use.
    """

    realm: Realm
    profile: str | None
    protocol: str
    default_profile: str
    family: str | None


class Realms:
    """Finds realms. All are kept in memory; each use asks the store whether a newer version exists."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._stamp: tuple[int, ...] = ()
        self._by_name: dict[str, Realm] = {}
        self._by_host: dict[str, Realm] = {}

    async def current(self) -> dict[str, Realm]:
        """All realms by name, as the store has them now."""
        row = await self._store.first(_STAMP)
        stamp = tuple(int(part) for part in row) if row else (0,)
        if stamp != self._stamp:
            by_name: dict[str, Realm] = {}
            for row_id, name, state, version, made_at, document in await self._store.fetch(_ALL):
                known = self._by_name.get(name)
                if known is not None and (known.id, known.edition) == (row_id, (version, made_at)):
                    by_name[name] = known
                else:
                    by_name[name] = Realm(row_id, name, state, version, made_at, from_json(document))
            self._by_name = by_name
            # A retired realm's too: its devices are told that there is nothing, and nobody else's are served there.
            self._by_host = {host: realm for realm in by_name.values() for host in realm.document.hosts}
            self._stamp = stamp
        return self._by_name

    async def own_names(self) -> set[str]:
        """The names of the shared host, as its certificate has them."""
        row = await self._store.first(_OWN_NAMES)
        return set(json.loads(row[0])) if row else set()

    async def all_hosts(self) -> frozenset[str]:
        """The host names of all realms."""
        return frozenset(host for realm in (await self.current()).values() for host in realm.document.hosts)

    def forget(self) -> None:
        """Read all of them again at the next use."""
        self._stamp = ()
        self._by_name = {}

    async def get(self, name: str) -> Realm:
        """The realm of an operator's command. Raises `OperatorError`."""
        return named(await self.current(), name)

    async def active(self, name: str) -> Realm:
        """The same, where devices are to be let in. Raises `OperatorError`, also of a realm that is retired."""
        found = await self.get(name)
        if found.state != "active":
            raise is_retired(found)
        return found

    async def resolve(self, protocol: str, label: str | None, server_name: str | None) -> Resolved:
        """The realm and profile that a label means on the host `server_name` (the TLS SNI, None on the shared host).

        A realm's own host serves that realm alone, also without a label. Raises `NotFound`; nothing falls back to
        another realm.
        """
        realms = await self.current()
        host_realm = self._by_host.get(server_name) if server_name else None
        if label is None:
            realm, profile = host_realm or realms.get(DEFAULT_REALM), None
        else:
            try:
                name, profile = parse_label(label)
            except OperatorError:
                raise _unknown() from None
            realm = realms.get(name)
        resolved = _resolved(realm, profile, protocol)
        if host_realm is not None and resolved.realm.id != host_realm.id:  # enforces case 52
            raise NotFound("realm_not_here", "This host serves another realm.")
        return resolved

    async def again(self, resolved: Resolved) -> Resolved:
        """The same address at the version in force now. Raises `NotFound` when it is gone."""
        return _resolved((await self.current()).get(resolved.realm.name), resolved.profile, resolved.protocol)


def named(realms: Mapping[str, Realm], name: str) -> Realm:
    """The realm of an operator's command, of those that were read. Raises `OperatorError`."""
    if name not in realms:
        known = ", ".join(realms) or "none"
        raise OperatorError("realm_unknown", f"there is no realm '{ascii(name[:64])[1:-1]}'", f"there are: {known}")
    return realms[name]


def is_retired(found: Realm) -> OperatorError:
    """What an operator is told of a realm that is retired."""
    return OperatorError(
        "realm_retired", f"realm {found.name} is retired", f"'enrolld realm resume {found.name}' undoes it"
    )


def _resolved(realm: Realm | None, profile: str | None, protocol: str) -> Resolved:
    if realm is None:  # enforces case 38
        raise _unknown()
    if realm.state != "active":  # enforces case 38
        # The peer is told what it would be told of no realm at all; the code is the operator's.
        raise NotFound("realm_retired", _NO_REALM, detail=f"realm {realm.name} is retired")
    document = realm.document
    if profile is not None and profile not in document.profiles:  # enforces case 38
        raise _unknown()
    if protocol == "est":
        return Resolved(realm, profile, protocol, document.est.profile, None)
    if protocol == "scep" and document.speaks_scep:
        return Resolved(realm, profile, protocol, document.scep.profile, "rsa")
    raise NotFound("protocol_not_served", "This protocol is not served here.")


def _unknown() -> NotFound:
    return NotFound("realm_unknown", _NO_REALM)


def _fingerprint(certificate: x509.Certificate) -> bytes:
    return certificate.fingerprint(SHA256())
