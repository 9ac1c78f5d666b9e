"""One credential of one realm, shown to others before and after it is used at home.

Before: nothing of it is spent, approved or remembered yet. After: a retransmission is remembered, a request approved, a
webhook has allowed it; all of that at home alone. Between the two stands the twin: it succeeds in its own realm, also
after the others have seen it.
"""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, field

from ca_core.errors import OperatorError
from ca_core.matrix.cells import FEW, OF_FEW, OPERATIONS, Cell, Kind, Relation, Report, Wire
from ca_core.matrix.credentials import Credentials, Factory, factory_for, way_for
from ca_core.matrix.door import Outcome, Shown
from ca_core.matrix.expected import expected_away
from ca_core.matrix.ground import Place
from ca_core.registration.admission.ways import Way

__all__ = ["Play"]

ITS_OWN = "its own"
"""The other realm's own certificate, for the same key and transaction."""
_CHAINS_MATTER = (Relation.SAME_ROOT, Relation.SAME_ANCHOR, Relation.CROSS_SIGNED)
_OF_BARE = {"pending", "key_of_other_device"}
"""What is expected where nobody proves anything, and an operator looks at whoever comes."""
_BY_PROFILE = ("profile_", "csr_", "names_", "key_", "extension_", "certificate_not_for_clients")
"""How codes begin that say nothing of the credential: the realm's profiles want something else of such a device."""


@dataclass(frozen=True, slots=True)
class _Against:
    """Another realm, what it is shown, and its own certificate of the same key where it has one."""

    place: Place
    shown: Shown
    own: bytes | None = field(default=None, repr=False)


class Play:
    """A kind of credential of the realm `home`, by the operations of one protocol."""

    def __init__(
        self, credentials: Credentials, report: Report, home: Place, kind: Kind, relation: Relation, protocol: str
    ) -> None:
        self._credentials = credentials
        self._door = credentials.door
        self._report = report
        self._home = home
        self._kind = kind
        self._relation = relation
        self._operations = OPERATIONS[protocol]
        self._protocol = protocol
        self._first = self._operations[0]
        self._cells: set[Cell] = set()

    async def run(self, aways: Sequence[Place], *, thorough: bool) -> None:
        """Show it to each of `aways`, if the realm admits such a credential and the relation can be made."""
        way = way_for(self._home, self._kind)
        if way is None or not self._speaks(self._home):
            return
        aways = [away for away in aways if self._speaks(away)]
        has_chain = self._kind is Kind.OWN_CERTIFICATE or "idevid" in way.proofs
        if not has_chain and self._relation in _CHAINS_MATTER and not thorough:
            return
        if "idevid" not in way.proofs:
            if self._relation is Relation.SAME_ANCHOR and not thorough:
                return
            await self._play(way, None, aways)
            return
        groups: dict[tuple[str, int], tuple[Factory, list[Place]]] = {}
        for away in aways:
            factory = factory_for(self._home, away, self._relation)
            if factory is not None:
                groups.setdefault((factory.trusted_as, id(factory.authority)), (factory, []))[1].append(away)
        for factory, group in groups.values():
            await self._play(way, factory, group)

    def _speaks(self, place: Place) -> bool:
        return self._first is Wire.SIMPLEENROLL or place.realm.document.speaks_scep

    async def _play(self, way: Way, factory: Factory | None, aways: Sequence[Place]) -> None:
        if not aways:
            return
        made, home = self._credentials, self._home
        made.settle()
        name, serial = made.new_name(home, self._protocol)
        asking = made.shown(home, self._protocol, name, serial, made.new_key(home, self._protocol))
        try:
            shown = await made.make(home, way, asking, serial, factory)
        except OperatorError as exc:
            self._at_home(aways[0], self._first, Outcome(exc.code))
            return
        needs_approval = way.approval
        if self._kind is Kind.OWN_CERTIFICATE:
            got = await made.granted(home, shown, self._first)
            if not self._at_home(aways[0], self._first, got) or got.certificate is None:
                return
            shown, needs_approval, factory = await made.own(home, self._protocol, shown, got.certificate), False, None
        found = await asyncio.gather(*(self._against(away, shown, serial, factory) for away in aways))
        others = [one for one in found if one is not None]
        if not others:
            return
        # (1) Nobody has seen it yet.
        await self._knock(others, [each for each in self._operations if each is not Wire.CERT_POLL])
        # (2) At home it waits for an operator, or is admitted at once.
        outcome = await self._door.ask(home.name, shown, self._first)
        if needs_approval:
            if not self._at_home(aways[0], self._first, outcome, "pending"):
                return
            if Wire.CERT_POLL in self._operations:
                await self._knock(others, [Wire.CERT_POLL])
            await made.approve(home, shown)
            # What is approved and not used yet is of use to nobody else.
            await self._knock(others, self._operations)
            asked = Wire.CERT_POLL if Wire.CERT_POLL in self._operations else self._first
            outcome = await self._door.ask(home.name, shown, asked)
        if not self._at_home(aways[0], self._first, outcome):
            return
        # (3) It is spent, approved, allowed and remembered, at home.
        await self._knock(others, self._operations)
        # (4) And it still does there what it may.
        more = [Wire.CERT_POLL] if Wire.CERT_POLL in self._operations else []
        if self._kind is Kind.OWN_CERTIFICATE:
            more.append(Wire.SIMPLEREENROLL if self._first is Wire.SIMPLEENROLL else Wire.RENEWAL_REQ)
        for operation in more:
            if not self._at_home(aways[0], operation, await self._door.ask(home.name, shown, operation)):
                return
        self._report.cells |= self._cells

    async def _against(self, away: Place, shown: Shown, serial: str, factory: Factory | None) -> _Against | None:
        """What stands in the other realm so that the two are so related."""
        made = self._credentials
        if self._relation is Relation.EQUAL_NAMES:
            anchors = [name for name, anchor in away.anchors.items() if anchor.key is not None]
            if factory is not None:
                alike = factory.authority.certificate.subject
                anchors.sort(key=lambda name: away.anchors[name].certificate.subject != alike)
            await made.have_equal(away, shown.device, serial, anchors[0] if anchors else None)
        if self._relation is Relation.CROSS_SIGNED:
            return _Against(away, await made.crossed(self._home, away, shown, factory))
        if self._relation is Relation.SAME_KEY:
            other, number = made.new_name(away, self._protocol)
            got = await made.first(away, other, number, shown.signer, self._first)
            if got is None or got.certificate is None:
                code = "it has no way" if got is None else got.code
                self._report.skip(f"the same key could not be certified there: {code}", away=away.name)
                return None
            return _Against(away, shown, got.certificate)
        return _Against(away, shown)

    async def _knock(self, others: Sequence[_Against], operations: Sequence[Wire]) -> None:
        for other in others:
            for operation in operations:
                expected = self._expected(other, operation)
                if expected is None:
                    self._report.skip(
                        "who proves nothing is let in there without an operator's word",
                        home=self._home.name,
                        away=other.place.name,
                        kind=self._kind,
                    )
                    continue
                outcome = await self._door.ask(other.place.name, other.shown, operation)
                code = outcome.code
                if outcome.certificate is not None and outcome.certificate == other.own:
                    code = ITS_OWN
                if self._is_by_profile(other.place, code) and expected & _OF_BARE:
                    expected |= {code}  # there its request would not even wait: it is made for its own realm
                cell = self._cell(other.place, operation)
                self._report.compare(cell, other.place.name, expected, code)
                self._cells.add(cell)

    def _expected(self, other: _Against, operation: Wire) -> frozenset[str] | None:
        if operation is Wire.CERT_POLL and other.own is not None and other.shown.chain_key in (None, other.shown.key):
            return frozenset({ITS_OWN})
        trusts_any = other.place.realm.document.admission.idevid == "trusted"
        if (
            self._relation is Relation.CROSS_SIGNED
            and trusts_any
            and other.shown.secret is None
            and self._kind is not Kind.OWN_CERTIFICATE
        ):
            # Whom it trusts has vouched for the other's CA, and any device of his is welcome.
            return None
        expected = expected_away(other.place, other.shown, operation)
        if expected == frozenset({"pending"}) and other.own is not None:
            return frozenset({"key_of_other_device"})
        return expected

    def _at_home(self, away: Place, operation: Wire, got: Outcome, expected: str = "issued") -> bool:
        """Whether the twin is as it should be; if not, nothing is proven by it."""
        if got.code == expected:
            return True
        if not self._is_by_profile(self._home, got.code):
            self._report.compare(self._cell(away, operation), self._home.name, frozenset({expected}), got.code)
        else:
            reason = f"in its own realm it gets no certificate either: {got.code}"
            if got.code in OF_FEW:
                reason = FEW
            self._report.skip(reason, home=self._home.name, kind=self._kind)
        return False

    def _is_by_profile(self, place: Place, code: str) -> bool:
        return code.startswith(_BY_PROFILE) or (code in OF_FEW and place.is_for_few(self._protocol))

    def _cell(self, away: Place, operation: Wire) -> Cell:
        return Cell(self._home.name, away.name, self._relation, self._kind, operation.value)
