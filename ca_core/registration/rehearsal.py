"""What would be decided about a request now: by the rooms that decide, over a store that takes no writes.

Nothing of the decision is written a second time here. `Registration` itself runs, with a pen that stops where it would
sign, and with attempts that are forgotten; so what is foretold can't drift away from what is done.
"""

import datetime as dt
from dataclasses import dataclass, field, replace

from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import padding
from sqlalchemy import select

from ca_core.authority.hsm import Hsm
from ca_core.authority.issuance import Issuance, SignedCertificate
from ca_core.authority.issuer import Issuer, Issuers
from ca_core.authority.plan import CertificatePlan
from ca_core.authority.sealing import UnlockKey
from ca_core.csr import ParsedCsr
from ca_core.errors import InternalError, SealingFailed, Unavailable
from ca_core.model import Call, Clock, RaKey
from ca_core.public_key import PublicKey
from ca_core.records.audit import AuditEvent
from ca_core.records.query import Params, Query, Row, Value
from ca_core.records.schema import certificate
from ca_core.records.schema import realm as realm_table
from ca_core.records.store import Store
from ca_core.records.unit import Unit
from ca_core.registration.admission.webhook import Question, Verdict, WebhookDocument
from ca_core.registration.attempts import Attempts
from ca_core.registration.pending import PendingRequest, Pendings
from ca_core.registration.ra import RaCertificates, RaIdentity
from ca_core.registration.realm import Realm, Realms, Resolved
from ca_core.registration.request import Registration

__all__ = ["KeyLocked", "KnownCertificate", "Rehearsal", "WouldIssue"]

_RA_CERTIFICATES = Query(
    select(realm_table.c.name, certificate.c.der)
    .join(realm_table, realm_table.c.id == certificate.c.realm_id)
    .where(certificate.c.kind == "ra")
    .order_by(certificate.c.id.desc())
)


class WouldIssue(Exception):
    """Nothing is left but to sign. `issuer` is the issuer's name, `plan` exactly what the certificate would say."""

    def __init__(self, issuer: str, plan: CertificatePlan) -> None:
        super().__init__(f"{issuer} would sign")
        self.issuer = issuer
        self.plan = plan


class KeyLocked(InternalError):
    """An RA's key is needed and can't be opened here. `reason` is what kept it shut."""

    def __init__(self, reason: InternalError) -> None:
        super().__init__(str(reason))
        self.reason = reason


@dataclass(frozen=True, slots=True)
class KnownCertificate:
    """A certificate of ours that a client may have encrypted to; `whose` in an operator's words."""

    whose: str
    certificate: bytes = field(repr=False)


class Rehearsal:
    """What a protocol needs of the core, as `Core` has it, but nothing is signed, recorded, spent or counted.

    A request that waits, `approving`, is taken for approved. What would be issued is raised as `WouldIssue`; using an
    RA's key that can't be opened raises `KeyLocked`.
    """

    def __init__(
        self,
        store: Store,
        unlock_key: UnlockKey | None,
        *,
        clock: Clock,
        public_url: str,
        demo: bool,
        hsm: Hsm | None = None,
        approving: PendingRequest | None = None,
    ) -> None:
        reading = _ReadOnly(store)
        pen = _Pen(reading, unlock_key, hsm=hsm)
        self._store = reading
        self._issuers = Issuers(reading)
        self.realms = Realms(reading)
        self.registration = Registration(
            reading,
            self.realms,
            self._issuers,
            pen,
            _Forgotten(reading),
            clock=clock,
            public_url=public_url,
            demo=demo,
            webhook=_Unasked(),
            pendings=_Unkept(reading, approving),
            chance=lambda: 0.0,  # the latest end
        )
        self._ra_certificates = RaCertificates(reading, self.realms, self._issuers, pen, clock, public_url)

    async def ra(self, resolved: Resolved) -> RaIdentity:
        """The realm's RA, also when its key can't be opened. Raises `Unavailable` while the realm has none."""
        return await self._ra_certificates.of_realm(resolved.realm)

    async def known_certificates(self) -> list[KnownCertificate]:
        """Every RA certificate of every realm, also those that are not used any more, and every CA certificate."""
        names = {realm.id: realm.name for realm in (await self.realms.current()).values()}
        used = {der for ra in self._ra_certificates.all().values() for der in (ra.certificate, *ra.earlier)}
        found: list[KnownCertificate] = []
        for realm, certificate_der in await self._store.fetch(_RA_CERTIFICATES):
            state = "" if certificate_der in used else ", by a certificate that is not used any more"
            found.append(KnownCertificate(f"the RA of realm {realm}{state}", certificate_der))
        for ca in await self._issuers.all():
            found.append(
                KnownCertificate(f"the CA {ca.name} of realm {names[ca.realm_id]}, which opens nothing", ca.der)
            )
        return found


class _ReadOnly:
    """A store that is only read. What would write is a fault of ours, and says so."""

    def __init__(self, store: Store) -> None:
        self._store = store

    async def fetch(self, query: Query, **params: Value) -> list[Row]:
        return await self._store.fetch(query, **params)

    async def fetch_aside(self, query: Query, **params: Value) -> list[Row]:
        return await self._store.fetch_aside(query, **params)

    async def first(self, query: Query, **params: Value) -> Row | None:
        return await self._store.first(query, **params)

    async def commit(self, unit: Unit) -> int:
        raise InternalError(f"a rehearsal writes nothing: {unit.guard.query}")

    def submit(self, unit: Unit) -> None:
        raise InternalError(f"a rehearsal writes nothing: {unit.guard.query}")

    def shortage(self) -> str | None:
        return None  # a rehearsal needs no room

    @property
    def weakness(self) -> str | None:
        return self._store.weakness

    @property
    def drift(self) -> float:
        return self._store.drift

    async def measure_drift(self) -> float:
        return await self._store.measure_drift()

    def close(self) -> None:
        """It is another's to close."""


class _Unkept(Pendings):
    """Requests that nobody keeps; one may be taken for approved."""

    def __init__(self, store: Store, approving: PendingRequest | None) -> None:
        super().__init__(store)
        self._approving = approving

    async def find(self, realm: Realm, csr: ParsedCsr, identity: bytes, now: dt.datetime) -> PendingRequest | None:
        found = await super().find(realm, csr, identity, now)
        if found is not None and self._approving is not None and found.id == self._approving.id:
            return replace(found, state="approved")
        return found

    async def keep(self, *_: object) -> None:
        """It would wait."""


class _Unasked:
    """A webhook that leaves everything as it is."""

    async def ask(self, document: WebhookDocument, question: Question) -> Verdict:  # noqa: ARG002  # as it is called
        return Verdict(allow=True)


class _Pen(Issuance):
    """Stops where it would sign, and lends RA keys that may be shut."""

    async def issue(self, plan: CertificatePlan, issuer: Issuer, public_url: str) -> SignedCertificate:  # noqa: ARG002  # as it is called
        raise WouldIssue(issuer.name, plan)

    async def ra_key(self, name: str, public_key: PublicKey) -> RaKey:
        try:
            return await super().ra_key(name, public_key)
        except (SealingFailed, Unavailable) as reason:
            return _ShutKey(reason)


class _ShutKey:
    """An RA's key that can't be opened."""

    def __init__(self, reason: InternalError) -> None:
        self._reason = reason

    async def unwrap(self, encrypted_key: bytes, algorithm: padding.AsymmetricPadding) -> bytes:  # noqa: ARG002  # as it is called
        raise KeyLocked(self._reason)

    async def sign(self, data: bytes, digest: hashes.HashAlgorithm) -> bytes:  # noqa: ARG002  # as it is called
        raise KeyLocked(self._reason)


class _Forgotten(Attempts):
    """Attempts that nobody keeps."""

    def record(
        self, row: Params, at: int, events: tuple[AuditEvent, ...] = (), tolerating: tuple[int, Call] | None = None
    ) -> None:
        """It never happened."""
