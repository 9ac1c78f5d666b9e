"""RA certificates: what SCEP clients encrypt their requests to and know the answers by; no CA's key ever decrypts.

Each realm that speaks SCEP has one, RSA-2048 under its rsa issuer, in the store so that all workers and nodes answer
alike. It is infrastructure (`kind` ra): no device's, and so never accepted as one's own. It is renewed with the same
key, and requests to the certificate before are opened all the same: clients keep what they once fetched.
"""

import datetime as dt
import logging
from dataclasses import dataclass, field
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.x509.oid import NameOID
from sqlalchemy import ColumnElement, and_, bindparam, exists, func, not_, select
from sqlalchemy.sql.base import ReadOnlyColumnCollection

from ca_core.authority.ceremony import key_step
from ca_core.authority.issuance import Issuance
from ca_core.authority.issuer import Issuer, Issuers, newest_active
from ca_core.authority.new_key import InToken
from ca_core.authority.plan import CertificatePlan, validity
from ca_core.authority.record import certificate_row
from ca_core.errors import ConditionFailed, InternalError, SealingFailed, Unavailable
from ca_core.limits import Complaints
from ca_core.model import Clock, RaKey, format_serial
from ca_core.public_key import describe_key, spki_sha256
from ca_core.records.audit import AuditEvent
from ca_core.records.query import Query, Row
from ca_core.records.schema import certificate, issuer, sealed_key
from ca_core.records.store import Store
from ca_core.records.times import from_ms, to_ms
from ca_core.records.unit import Guard, Unit, guarded_insert
from ca_core.registration.moment import Watch
from ca_core.registration.realm import SAME_VERSION, Realm, Realms

_LOG = logging.getLogger(__name__)

LIFETIME = dt.timedelta(days=730)
RENEW_BEFORE = dt.timedelta(days=180)
_WORTHWHILE = dt.timedelta(days=1)
_KEPT_CERTIFICATES = 4

_c = certificate.c
_newer = certificate.alias("newer").c
_revoked = certificate.alias("revoked").c
_parents = issuer.alias("parent")
_parent = _parents.c


def _in_use(columns: ReadOnlyColumnCollection[str, Any]) -> ColumnElement[bool]:
    """Whether it is an RA certificate that may be used.

    A revoked one takes its key along: whoever has that reads what is sent to the others of it.
    """
    revoked = exists().where(
        _revoked.realm_id == columns.realm_id,
        _revoked.spki_sha256 == columns.spki_sha256,
        _revoked.status != "valid",
    )
    return and_(columns.kind == "ra", columns.status == "valid", not_(revoked))


_KEPT = Query(
    select(_c.realm_id, _c.id, _c.der, _c.not_after, issuer.c.der, sealed_key.c.name, _parent.der, _c.not_before)
    .join(issuer, (issuer.c.realm_id == _c.realm_id) & (issuer.c.id == _c.issuer_id))
    .join(_parents, _parent.id == func.coalesce(issuer.c.parent_id, issuer.c.shared_root_id))
    .join(sealed_key, (sealed_key.c.spki_sha256 == _c.spki_sha256) & (sealed_key.c.purpose == "ra"))
    .where(_in_use(_c))
    .order_by(_c.id.desc())
)
# Of two nodes that find the same certificate due, one makes it: none may be newer than the one that was found due.
_NEWER = (
    select(_newer.id)
    .where(_newer.realm_id == bindparam("realm_id"), _newer.id > bindparam("found_id"), _in_use(_newer))
    .exists()
)
_INSERT, _INSERT_WHY = guarded_insert(certificate, {"realm_version": SAME_VERSION, "still_due": ~_NEWER})


@dataclass(frozen=True, slots=True)
class RaIdentity:
    """A realm's RA: its certificate, those before it that clients may still know, and the key of them all.

    `issuers` are the CA certificates above it, DER, issuing CA first.
    """

    certificate: bytes = field(repr=False)
    earlier: tuple[bytes, ...] = field(repr=False)
    issuers: tuple[bytes, ...] = field(repr=False)
    key: RaKey = field(repr=False)
    not_after: dt.datetime


class RaCertificates:
    """Issues, renews and finds RA certificates."""

    def __init__(
        self, store: Store, realms: Realms, issuers: Issuers, issuance: Issuance, clock: Clock, public_url: str
    ) -> None:
        self._store = store
        self._realms = realms
        self._issuers = issuers
        self._issuance = issuance
        self._clock = clock
        self._watch = Watch(store, clock)
        self._public_url = public_url
        self._shown: dict[int, RaIdentity] = {}
        self._complaints = Complaints(_LOG)

    async def ensure(self) -> None:
        """Issue what is missing or due. A realm whose keys can't be opened does not keep the others from theirs."""
        kept = _by_realm(await self._store.fetch(_KEPT))
        for found in (await self._realms.current()).values():
            if found.state == "active" and found.document.speaks_scep:
                try:
                    await self._renew(found, kept.get(found.id, []))
                except InternalError as exc:
                    self._complaints.tell(f"no RA certificate for realm {found.name}: {exc}")
        await self.refresh()

    async def prove(self) -> None:
        """See that the RA keys in a HSM can be used. Raises `HsmUnfit`, `Unavailable`."""
        realms = {found.id: found for found in (await self._realms.current()).values()}
        for realm_id, rows in _by_realm(await self._store.fetch(_KEPT)).items():
            found = realms.get(realm_id)
            if found is not None and found.state == "active" and found.document.speaks_scep:
                await self._issuance.prove_ra_key(rows[0][5], _public_key(rows[0][2]))

    async def refresh(self) -> None:
        """Read the certificates again."""
        shown: dict[int, RaIdentity] = {}
        for realm_id, rows in _by_realm(await self._store.fetch(_KEPT)).items():
            newest = rows[0]
            known = self._shown.get(realm_id)
            if known is not None and known.certificate == newest[2]:
                shown[realm_id] = known
                continue
            try:
                key = await self._issuance.ra_key(newest[5], _public_key(newest[2]))
            except (SealingFailed, Unavailable) as exc:
                self._complaints.tell(f"the RA key {newest[5]} can't be used: {exc}")
                continue
            earlier = tuple(row[2] for row in rows[1:_KEPT_CERTIFICATES] if row[5] == newest[5])
            issuers = (newest[4], newest[6])
            shown[realm_id] = RaIdentity(newest[2], earlier, issuers, key, from_ms(newest[3]))
        self._shown = shown

    async def of_realm(self, realm: Realm) -> RaIdentity:
        """The realm's RA. Raises `Unavailable` while it has none."""
        if realm.id not in self._shown:
            await self.refresh()
        found = self._shown.get(realm.id)
        if found is None:
            raise Unavailable(f"realm {realm.name} has no RA certificate; the running 'enrolld serve' makes it")
        return found

    def all(self) -> dict[int, RaIdentity]:
        """What is shown, by the realm's id."""
        return dict(self._shown)

    async def _renew(self, found: Realm, rows: list[Row]) -> None:
        now = self._clock()
        issuers = await self._issuers.of_realm(found.id, found.edition)
        chosen = newest_active(issuers, "rsa")
        if chosen is None:
            raise InternalError("there is no active rsa issuer")
        if rows and not await self._watch.is_ahead(rows[0][7]):
            until = from_ms(rows[0][3])
            # The issuer itself may end: a new certificate would last no longer.
            gains = min(now + LIFETIME, chosen.not_after) > until + _WORTHWHILE
            if until - now > RENEW_BEFORE or not gains:
                return
        await self._make(found, chosen, rows[0] if rows else None, now)

    async def _make(self, found: Realm, chosen: Issuer, row: Row | None, now: dt.datetime) -> None:
        new = await self._issuance.new_key("rsa-2048", await self._place(found, chosen)) if row is None else None
        public_key = new.public_key if new is not None else _public_key(row[2] if row else b"")
        not_before, not_after = validity(now, LIFETIME, chosen.not_after)
        names = [
            x509.NameAttribute(NameOID.ORGANIZATION_NAME, "enrolld"),
            x509.NameAttribute(NameOID.COMMON_NAME, f"{found.name} SCEP RA"),
        ]
        plan = CertificatePlan(
            subject=x509.Name(names),
            public_key=public_key,
            not_before=not_before,
            not_after=not_after,
            # "the keyUsage extension in the CA certificate MUST indicate that it is valid for digitalSignature and
            # keyEncipherment" -- RFC 8894 2.1.2
            key_encipherment=True,
        )
        signed = await self._issuance.issue(plan, chosen, found.document.public_url or self._public_url)
        at, serial = to_ms(now), format_serial(signed.serial)
        values = certificate_row(
            signed,
            realm_id=found.id,
            issuer_id=chosen.id,
            kind="ra",
            profile=None,
            device_id=None,
            protocol="local",
            key=describe_key(public_key),
            spki_sha256=spki_sha256(public_key),
            at=at,
        ) | {**found.facts, "found_id": row[1] if row else 0}
        steps = (key_step(f"ra-{serial}", "ra", new, at),) if new is not None else ()
        event = AuditEvent(
            "ra_certificate.issued",
            "enrolld",
            realm=found.name,
            serial=serial,
            details={"issuer": chosen.name, "new_key": new is not None},
        )
        try:
            await self._store.commit(Unit(Guard(_INSERT, values, _INSERT_WHY), at, steps, (event,)))
        except ConditionFailed:
            if new is not None:
                await self._issuance.discard([new])
            return  # another node made it, or the realm has changed: the next round looks again

    async def _place(self, found: Realm, chosen: Issuer) -> InToken | None:
        """An RA's key is made where the key of the issuer above it is."""
        token = await self._issuance.token_of(chosen)
        return InToken(token, f"{found.name}-ra", decrypts=True) if token is not None else None


def _by_realm(rows: list[Row]) -> dict[int, list[Row]]:
    found: dict[int, list[Row]] = {}
    for row in rows:
        found.setdefault(row[0], []).append(row)
    return found


def _public_key(der: bytes) -> rsa.RSAPublicKey:
    key = x509.load_der_x509_certificate(der).public_key()
    if not isinstance(key, rsa.RSAPublicKey):
        raise InternalError("an RA certificate's key is not RSA")
    return key
