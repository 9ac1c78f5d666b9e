"""The ground of the matrix: the realms of an installation anew, with their rules, and with nothing of their keys.

Copied are the documents. New are the CAs, the manufacturers in the place of the trusted ones, and the challenges: what
is one and the same in two realms is one and the same here. Only what would stop a run is left out: ceilings of a day,
and how many requests may wait.
"""

import datetime as dt
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import msgspec
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from ca_core.authority.issuer import Issuers
from ca_core.authority.kinds import ROOT
from ca_core.authority.plan import CertificatePlan, validity
from ca_core.core import Core
from ca_core.errors import OperatorError
from ca_core.matrix.cells import Relation, Report
from ca_core.matrix.manufacturer import Authority, Manufacturers, is_issued_by
from ca_core.names import DEFAULT_REALM
from ca_core.registration.admission.challenge import hash_challenge, new_challenge
from ca_core.registration.document import RealmDocument
from ca_core.registration.profile_document import ProfileDocument
from ca_core.registration.realm import Realm
from ca_core.registration.sample import is_for_few

__all__ = ["ACTOR", "Ground", "Place", "Policy", "read_policy"]

ACTOR = "check:matrix"
_ANY_NUMBER = 10_000


@dataclass(frozen=True, slots=True)
class Policy:
    """What is copied: the documents of all active realms, and what the certificates of their CAs are, by their DER.

    `roots` says whose root a realm stands under, for those that have none of their own.
    """

    documents: tuple[RealmDocument, ...]
    authorities: dict[bytes, tuple[str, str]] = field(default_factory=dict)
    """(realm, family)"""
    roots: dict[str, str] = field(default_factory=dict)


async def read_policy(core: Core) -> Policy:
    """The policy of an installation, of which nothing else is read."""
    realms = [found for found in (await core.realms.current()).values() if found.state == "active"]
    issuers = await core.issuers.list()
    owners = {row.issuer: row.realm for row in issuers}
    rows = [row for row in await core.realms.list() if row.state == "active"]
    # The root of a realm that is retired, and so not copied, is that of the first realm under it.
    heirs = {owners[row.root]: row.realm for row in reversed(rows)} | {row.realm: row.realm for row in rows}
    roots = {row.realm: heirs[owners[row.root]] for row in rows if heirs[owners[row.root]] != row.realm}
    authorities: dict[bytes, tuple[str, str]] = {}
    for issuer in issuers:
        der = await core.issuers.certificate(issuer.issuer)
        if der is not None:
            realm = heirs.get(issuer.realm, issuer.realm) if issuer.family == ROOT else issuer.realm
            authorities[der] = realm, issuer.family
    return Policy(tuple(found.document for found in realms), authorities, roots)


@dataclass(frozen=True)
class Place:
    """One realm of the ground. `anchors` are those that devices are made under, by their names in its document."""

    realm: Realm
    anchors: dict[str, Authority]
    challenge: str | None
    issuing: tuple[x509.Certificate, ...]

    @property
    def name(self) -> str:
        """The realm's name."""
        return self.realm.name

    def profile(self, protocol: str) -> ProfileDocument:
        """The profile by which it answers a request of that protocol that names none."""
        document = self.realm.document
        name = document.scep.profile if protocol == "scep" and document.speaks_scep else document.est.profile
        return document.profiles[name]

    def is_for_few(self, protocol: str) -> bool:
        """Whether that profile has a name which not all devices of a run can have."""
        return is_for_few(self.profile(protocol))

    @property
    def wants_serial_number(self) -> bool:
        """Whether its certificates say what only a device with a factory identity has."""
        profiles = self.realm.document.profiles.values()
        texts = (str((profile.subject, profile.names)) for profile in profiles)
        return any("{device.serial_number" in text or "{device.manufacturer" in text for text in texts)

    @property
    def trusted(self) -> list[x509.Certificate]:
        """The anchors' certificates."""
        return [anchor.certificate for anchor in self.anchors.values()]

    def issuer_of(self, der: bytes) -> x509.Certificate | None:
        """The realm's CA certificate that issued this one."""
        certificate = x509.load_der_x509_certificate(der)
        return next((each for each in self.issuing if is_issued_by(certificate, each)), None)

    def accepts(self, chain: tuple[bytes, ...]) -> bool:
        """Whether the chain ends in something that the realm trusts, whatever else it lacks."""
        return any(is_issued_by(each, anchor) for each in _loaded(chain) for anchor in self.trusted)


class Ground:
    """The realms, and the core that they are in. `relations` are those that can be played on it."""

    def __init__(self, core: Core, places: dict[str, Place], relations: tuple[Relation, ...]) -> None:
        self.core = core
        self.places = places
        self.relations = relations
        self.now = core.config.clock()
        self._crossed: dict[tuple[bytes, str], x509.Certificate] = {}

    @classmethod
    async def make(
        cls,
        core: Core,
        policy: Policy,
        report: Report,
        advance: Callable[[int], object] = lambda _: None,
        *,
        under_one_root: bool = False,
    ) -> "Ground":
        """Make the realms of a policy in a core whose store may be thrown away; those that can't be are skipped.

        They have roots as those of the policy have, or all stand `under_one_root`, that of the default realm.
        """
        now = core.config.clock()
        for document in policy.documents:
            if document.name not in await core.realms.current():
                root_of = DEFAULT_REALM if under_one_root else policy.roots.get(document.name)
                await core.realms.add(document.name, root_of=root_of, actor=ACTOR)
            advance(1)
        own = await _own_authorities(core)
        given = {der: own[key] for der, key in policy.authorities.items() if key in own}
        manufacturers = Manufacturers(_anchors(policy.documents), now, given)
        challenges: dict[str, str] = {}
        places: dict[str, Place] = {}
        for document in policy.documents:
            try:
                await _apply(core, _copied(document, manufacturers, challenges))
            except OperatorError as exc:
                report.skip(f"its document is not valid: {exc.message}", home=document.name)
                continue
            challenge = document.admission.challenge
            places[document.name] = Place(
                realm=(await core.realms.current())[document.name],
                anchors={a.name: manufacturers.stand_in(a.certificate()) for a in document.trust if a.for_ == "idevid"},
                challenge=None if challenge is None else challenges[challenge],
                issuing=tuple(ca.certificate for (realm, _), ca in own.items() if realm == document.name),
            )
        others = tuple(relation for relation in Relation if relation is not Relation.SAME_ROOT)
        return cls(core, places, (Relation.SAME_ROOT,) if under_one_root else others)

    async def crossed(self, certificate: x509.Certificate, away: Place) -> x509.Certificate:
        """A CA's certificate for the same name and key, signed by the root of another realm."""
        key = certificate.public_bytes(Encoding.DER), away.name
        if key not in self._crossed:
            root = (await Issuers(self.core.store).of_realm(away.realm.id, away.realm.edition))[0]
            not_before, not_after = validity(self.now, dt.timedelta(days=30), root.not_after)
            plan = CertificatePlan(
                subject=certificate.subject,
                public_key=certificate.public_key(),  # type: ignore[arg-type]  # a CA's, which is of a kind that it takes
                not_before=not_before,
                not_after=not_after,
                ca=True,
                path_length=0,
            )
            signed = await self.core.issuance.issue(plan, root, self.core.config.public_url)
            self._crossed[key] = signed.certificate
        return self._crossed[key]


def _anchors(documents: tuple[RealmDocument, ...]) -> Iterator[x509.Certificate]:
    for document in documents:
        for anchor in document.trust:
            yield anchor.certificate()


async def _own_authorities(core: Core) -> dict[tuple[str, str], Authority]:
    """The CAs of the ground by realm and family, without their keys."""
    found: dict[tuple[str, str], Authority] = {}
    for row in await core.issuers.list():
        der = await core.issuers.certificate(row.issuer)
        if der is not None:
            found[row.realm, row.family] = Authority(x509.load_der_x509_certificate(der), None)
    return found


def _copied(document: RealmDocument, manufacturers: Manufacturers, challenges: dict[str, str]) -> RealmDocument:
    admission = document.admission
    if admission.challenge is not None:
        text = challenges.setdefault(admission.challenge, new_challenge())
        admission = msgspec.structs.replace(admission, challenge=hash_challenge(text))
    admission = msgspec.structs.replace(admission, ceiling=0, pending_most=_ANY_NUMBER, pending_per_source=_ANY_NUMBER)
    trust = tuple(
        msgspec.structs.replace(
            anchor, pem=manufacturers.stand_in(anchor.certificate()).certificate.public_bytes(Encoding.PEM).decode()
        )
        for anchor in document.trust
    )
    return msgspec.structs.replace(document, admission=admission, trust=trust)


async def _apply(core: Core, document: RealmDocument) -> None:
    found = await core.realms.get(document.name)
    if found.document != document:
        await core.realms.replace(found, document, "realm.applied", {}, ACTOR)


def _loaded(chain: tuple[bytes, ...]) -> list[x509.Certificate]:
    return [x509.load_der_x509_certificate(der) for der in chain]
