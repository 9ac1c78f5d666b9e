"""Credentials of a realm: devices that are registered, given what a way of the realm takes, and admitted by it."""

import io
import itertools
import secrets
from collections.abc import Callable
from dataclasses import dataclass, replace

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import Encoding

from ca_core.errors import OperatorError
from ca_core.matrix.cells import Kind, Relation, Wire
from ca_core.matrix.door import Door, Outcome, Shown, protocol_of
from ca_core.matrix.ground import ACTOR, Ground, Place
from ca_core.matrix.manufacturer import Authority, DeviceKey, cross_signed, is_issued_by, make_idevid
from ca_core.registration.admission.ways import Way
from ca_core.registration.sample import asked_name, sample_names, sample_subject

__all__ = ["Credentials", "Factory", "factory_for", "way_for"]

_PROOFS = {Kind.SECRET: "secret", Kind.IDEVID: "idevid", Kind.CHALLENGE: "challenge"}
_CURVES = {"p-256": ec.SECP256R1(), "p-384": ec.SECP384R1(), "p-521": ec.SECP521R1()}
_PAGE = 500


@dataclass(frozen=True, slots=True)
class Factory:
    """Where a device is made: under `authority`, which realm `home` trusts as `trusted_as`, or what stands above it."""

    trusted_as: str
    authority: Authority
    above: tuple[bytes, ...] = ()


def way_for(place: Place, kind: Kind) -> Way | None:
    """The way of a realm by which such a credential is shown, the plainest first; None when it admits none.

    Own certificates and what an operator acts on begin by any way.
    """
    if kind is Kind.OWN_CERTIFICATE and not place.realm.document.admission.own_certificate:
        return None
    match kind:
        case Kind.SECRET | Kind.IDEVID | Kind.CHALLENGE:
            ways = [way for way in place.realm.ways if _PROOFS[kind] in way.proofs]
        case Kind.WEBHOOK:
            ways = [way for way in place.realm.ways if way.webhook]
        case Kind.APPROVAL:
            ways = [way for way in place.realm.ways if way.approval]
        case _:
            ways = list(place.realm.ways)
    usable = [way for way in ways if "idevid" not in way.proofs or any(a.key for a in place.anchors.values())]
    return min(usable, key=lambda way: (way.approval + way.webhook, len(way.proofs)), default=None)


def factory_for(home: Place, away: Place, relation: Relation) -> Factory | None:
    """Where a device of `home` is made so that the two realms stand in that relation; None when they don't."""
    made = {name: anchor for name, anchor in home.anchors.items() if anchor.key is not None}
    if relation is Relation.SAME_ANCHOR:
        return _common(made, away)
    foreign = {name: anchor for name, anchor in made.items() if not _stands_under(anchor.certificate, away)}
    names = {each.subject for each in away.trusted}
    # Another manufacturer's CA of the very same name is the harder one to tell apart.
    alike = {name: anchor for name, anchor in foreign.items() if anchor.certificate.subject in names}
    chosen = alike if alike and relation is Relation.EQUAL_NAMES else foreign
    for name, anchor in chosen.items():
        return Factory(name, anchor)
    return None


def _common(made: dict[str, Authority], away: Place) -> Factory | None:
    for name, anchor in made.items():
        for other in away.anchors.values():
            if _is_same(anchor.certificate, other.certificate):
                return Factory(name, anchor)
            if is_issued_by(anchor.certificate, other.certificate):
                return Factory(name, anchor, (anchor.certificate.public_bytes(Encoding.DER),))
            if other.key is not None and is_issued_by(other.certificate, anchor.certificate):
                return Factory(name, other, (other.certificate.public_bytes(Encoding.DER),))
    return None


def _stands_under(certificate: x509.Certificate, away: Place) -> bool:
    return any(_is_same(certificate, anchor) or is_issued_by(certificate, anchor) for anchor in away.trusted)


def _is_same(one: x509.Certificate, other: x509.Certificate) -> bool:
    return one.subject == other.subject and one.public_key() == other.public_key()


class Credentials:
    """Makes them, and has them admitted where they belong. `new_key` makes the keys of devices."""

    def __init__(
        self,
        ground: Ground,
        door: Door,
        new_key: Callable[[], DeviceKey] | None = None,
    ) -> None:
        self.ground = ground
        self.door = door
        self._new_key = new_key
        self._core = ground.core
        self._numbers = itertools.count(1)
        self._mark = secrets.token_hex(4)  # a ground may be played on more than once
        self._decided = self._settled = 0

    def new_key(self, place: Place, protocol: str) -> DeviceKey:
        """A key of a kind that the realm's profile for that protocol takes."""
        if self._new_key is not None:
            return self._new_key()
        kinds = place.profile(protocol).keys
        for kind, curve in _CURVES.items():
            if kind in kinds:
                return ec.generate_private_key(curve)
        sizes = [int(kind.removeprefix("rsa-")) for kind in kinds if kind.startswith("rsa-")]
        if "rsa" in kinds or sizes:
            return rsa.generate_private_key(65537, 2048 if "rsa" in kinds else min(sizes))
        return ec.generate_private_key(ec.SECP256R1())  # which is refused, and that is told

    def new_name(self, place: Place, protocol: str) -> tuple[str, str]:
        """A device's name and serial number that nobody had before, and its profile takes.

        Mostly they are the same: a device that registers itself is called by its serial number.
        """
        number = f"MX-{self._mark}-{next(self._numbers)}"
        asked = asked_name(place.profile(protocol), number.lower())
        return asked or number, number

    def shown(self, place: Place, protocol: str, name: str, serial: str, key: DeviceKey) -> Shown:
        """A request for what the realm's profile takes from requests."""
        profile, fill = place.profile(protocol), serial.lower()
        counted = int(serial.rpartition("-")[2])
        names = sample_names(profile, fill, counted, of_many=True)
        return Shown(name, key, subject=sample_subject(profile, fill, name), names=names)

    async def register(self, place: Place, name: str, serial: str | None = None, anchor: str | None = None) -> str:
        """Register a device, with what a certificate of the realm wants to know of it; returns its secret."""
        if anchor is None and place.wants_serial_number:
            anchor, serial = next(iter(place.anchors), None), serial or name
        handed = await self._core.devices.add(
            place.name,
            name,
            serial_number=serial if anchor is not None else None,
            manufacturer=anchor,
            owner="matrix",  # that is also a label of a host
            expires="1d",
            actor=ACTOR,
        )
        return handed.secret

    async def have_equal(self, place: Place, name: str, serial: str | None = None, anchor: str | None = None) -> None:
        """See that the realm has a device of this name; where names are few, it may have it already."""
        try:
            await self.register(place, name, serial, anchor)
        except OperatorError as exc:
            if exc.code != "device_exists":
                raise

    async def register_bare(self, place: Place, name: str) -> None:
        """Register a device that has nothing of its own to show: one that has is not admitted by less."""
        await self._core.device_import.run(place.name, io.BytesIO(f"name\n{name}\n".encode()), "matrix", actor=ACTOR)

    async def make(self, place: Place, way: Way, shown: Shown, serial: str, factory: Factory | None) -> Shown:
        """All that a way takes, for a device that is registered unless it proves nothing."""
        secret: str | None = None
        if way.proofs == {"challenge"}:
            await self.register_bare(place, shown.device)
        elif not way.proofs <= {"open"}:
            secret = await self.register(place, shown.device, serial, factory.trusted_as if factory else None)
        if "idevid" in way.proofs and factory is not None:
            leaf = make_idevid(factory.authority, serial, shown.key, self.ground.now).public_bytes(Encoding.DER)
            shown = replace(shown, chain=(leaf, *factory.above), chain_key=shown.key)
        if "secret" in way.proofs:
            return replace(shown, secret=secret)
        return replace(shown, secret=place.challenge) if "challenge" in way.proofs else shown

    async def own(self, place: Place, protocol: str, shown: Shown, certificate: bytes) -> Shown:
        """The certificate that a device has got, shown for another key, with the CA's above it."""
        issuer = place.issuer_of(certificate)
        above = () if issuer is None else (issuer.public_bytes(Encoding.DER),)
        got = x509.load_der_x509_certificate(certificate)
        # "The request Subject field and SubjectAltName extension MUST be identical to the corresponding fields in the
        # certificate being renewed/rekeyed." -- RFC 7030 4.2.2
        try:
            names = got.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        except x509.ExtensionNotFound:
            names = None
        key = self.new_key(place, protocol)
        return Shown(shown.device, key, (certificate, *above), shown.key, subject=got.subject, names=names)

    async def crossed(self, home: Place, away: Place, shown: Shown, factory: Factory | None) -> Shown:
        """The same credential, under a CA that something of the other realm has signed as well."""
        if not shown.chain:
            return shown
        leaf = shown.chain[0]
        if factory is None:
            issuer = home.issuer_of(leaf)
            above = None if issuer is None else await self.ground.crossed(issuer, away)
        else:
            by = next((anchor for anchor in away.anchors.values() if anchor.key is not None), None)
            above = None if by is None else cross_signed(factory.authority.certificate, by, self.ground.now)
        return shown if above is None else replace(shown, chain=(leaf, above.public_bytes(Encoding.DER)))

    async def first(self, place: Place, name: str, serial: str, key: DeviceKey, operation: Wire) -> Outcome | None:
        """The first certificate of a new device, by whichever way; None when the realm has none to try."""
        way = way_for(place, Kind.ADMIN)
        if way is None:
            return None
        anchors = {n: anchor for n, anchor in place.anchors.items() if anchor.key is not None}
        factory = next((Factory(n, anchor) for n, anchor in anchors.items()), None) if "idevid" in way.proofs else None
        asking = self.shown(place, protocol_of(operation), name, serial, key)
        try:
            shown = await self.make(place, way, asking, serial, factory)
        except OperatorError as exc:
            return Outcome(exc.code)
        return await self.granted(place, shown, operation)

    async def granted(self, place: Place, shown: Shown, operation: Wire) -> Outcome:
        """Ask, have an operator approve it where one must, and ask again."""
        outcome = await self.door.ask(place.name, shown, operation)
        if outcome.code != "pending":
            return outcome
        await self.approve(place, shown)
        return await self.door.ask(place.name, shown, operation)

    async def approve(self, place: Place, shown: Shown) -> None:
        """Approve the request of a device that waits."""
        request_id = await self.waiting(place, shown)
        if request_id is not None:
            await self._core.requests.approve(request_id, actor=ACTOR)
            self._decided = max(self._decided, int(request_id))

    def settle(self) -> None:
        """Whatever waits from now on is newer than what was approved."""
        self._settled = self._decided

    async def waiting(self, place: Place, shown: Shown) -> str | None:
        """The id of the request of a device that waits."""
        after: str | None = str(self._settled) if self._settled else None
        while True:
            rows = await self._core.requests.list(place.name, "pending", limit=_PAGE, after=after)
            for row in rows:
                if row.device == shown.device:
                    return row.id
            if len(rows) < _PAGE:
                return None
            after = rows[-1].id
