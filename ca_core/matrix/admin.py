"""What an operator does in one realm reaches nothing of another, whatever name, serial or id he gives."""

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, replace

from cryptography import x509

from ca_core.errors import OperatorError
from ca_core.matrix.cells import ADMIN_OPERATIONS, OF_FEW, Cell, Kind, Relation, Report, Wire
from ca_core.matrix.credentials import Credentials
from ca_core.matrix.ground import ACTOR, Place
from ca_core.model import format_serial

__all__ = ["Operator"]

APART = "apart"
"""It was done to what the other realm has of that name, and to nothing else."""
_TOUCHED, _DONE = "touched", "done"
_ENROLL = Wire.SIMPLEENROLL
_MEANINGFUL = (Relation.UNRELATED, Relation.SAME_ROOT, Relation.EQUAL_NAMES)
_REVOKE, _SUSPEND, _SECRET, _LIST, _APPROVE = ADMIN_OPERATIONS


@dataclass(frozen=True, slots=True)
class _Target:
    """A device of the home realm, and its certificate's serial number."""

    id: str
    name: str
    number: str
    certificate: str


class Operator:
    """Names another realm, and this one's devices."""

    def __init__(self, credentials: Credentials, report: Report) -> None:
        self._made = credentials
        self._core = credentials.ground.core
        self._report = report

    async def play(self, home: Place, aways: Sequence[Place], relation: Relation, *, thorough: bool) -> None:
        """Every act of an operator against each of `aways`, and then at home."""
        if relation not in _MEANINGFUL and not thorough:
            return
        name, serial = self._made.new_name(home, "est")
        first = await self._made.first(home, name, serial, self._made.new_key(home, "est"), _ENROLL)
        if first is None or first.certificate is None:
            self._report.skip(
                "no device of it could be made for an operator to act on", home=home.name, kind=Kind.ADMIN
            )
            return
        certificate = format_serial(x509.load_der_x509_certificate(first.certificate).serial_number)
        target = _Target((await self._core.devices.show(home.name, name)).id, name, serial, certificate)
        secret = (await self._core.devices.secret(home.name, name, actor=ACTOR)).secret
        cells: set[Cell] = set()
        for away in aways:
            cells |= await self._against(home, away, relation, target)
        got = await self._at_home(home, target, secret)
        if got == _DONE:
            self._report.cells |= cells
        elif aways:
            cell = Cell(
                home.name, aways[0].name, relation, Kind.ADMIN, _SECRET if got.startswith("secret") else _REVOKE
            )
            self._report.compare(cell, home.name, frozenset({_DONE}), got)

    async def _against(self, home: Place, away: Place, relation: Relation, target: _Target) -> set[Cell]:
        core, name = self._core, target.name
        has_same = relation is Relation.EQUAL_NAMES
        if has_same:
            await self._made.have_equal(away, name)
        acts: dict[str, tuple[str, Callable[[], Awaitable[object]]]] = {
            _REVOKE: (
                "certificate_unknown",
                lambda: core.certificates.revoke(target.certificate, reason="superseded", realm=away.name, actor=ACTOR),
            ),
            _SUSPEND: ("device_unknown", lambda: core.devices.suspend(away.name, name, actor=ACTOR)),
            _SECRET: ("device_unknown", lambda: core.devices.secret(away.name, name, actor=ACTOR)),
        }
        done: set[Cell] = set()
        for operation, (refusal, act) in acts.items():
            expected = APART if has_same and operation != _REVOKE else refusal
            before = await self._state(home, target)
            try:
                await act()
                got = APART
            except OperatorError as exc:
                got = exc.code
            if await self._state(home, target) != before:
                got = _TOUCHED
            done.add(self._compare(home, away, relation, operation, expected, got))
        listed = await self._listed(away, target)
        done.add(self._compare(home, away, relation, _LIST, "absent", "listed" if listed else "absent"))
        if (decided := await self._decide(home, away)) is not None:
            done.add(self._compare(home, away, relation, _APPROVE, APART, decided))
        return done

    def _compare(self, home: Place, away: Place, relation: Relation, operation: str, expected: str, got: str) -> Cell:
        cell = Cell(home.name, away.name, relation, Kind.ADMIN, operation)
        self._report.compare(cell, away.name, frozenset({expected}), got)
        return cell

    async def _state(self, home: Place, target: _Target) -> tuple[object, ...]:
        """All that an act could have changed at home."""
        device = await self._core.devices.show(home.name, target.name)
        certificate = await self._core.certificates.find(target.certificate, realm=home.name)
        why = await self._core.devices.why(home.name, target.name)
        return device.state, certificate.status, why.sentence

    async def _listed(self, away: Place, target: _Target) -> bool:
        """Whether a list of the other realm shows the device or its certificate."""
        rows = await self._core.certificates.list(realm=away.name, device=target.name, limit=10)
        just_before = str(int(target.id) - 1)
        devices = await self._core.devices.list(away.name, limit=1, after=just_before)
        return any(row.serial == target.certificate for row in rows) or any(row.id == target.id for row in devices)

    async def _decide(self, home: Place, away: Place) -> str | None:
        """Both realms are asked for one name and key, and one of the two requests is decided; None where none waits."""
        if not all(place.realm.bare_way is not None and place.realm.bare_way.approval for place in (home, away)):
            return None
        name, serial = self._made.new_name(home, "est")
        shown = self._made.shown(home, "est", name, serial, self._made.new_key(home, "est"))
        for place in (home, away):
            await self._made.door.ask(place.name, shown, _ENROLL)
        await self._made.approve(home, shown)
        got = await self._made.door.ask(away.name, shown, _ENROLL)
        if got.code in OF_FEW and away.is_for_few("est"):
            return None
        return APART if got.code == "pending" else got.code

    async def _at_home(self, home: Place, target: _Target, secret: str) -> str:
        """The twin: the same acts, in the realm that the device is of, whose secret is still good until then."""
        core, name = self._core, target.name
        if any(way.proofs == {"secret"} and not way.approval for way in home.realm.ways):
            asking = self._made.shown(home, "est", name, target.number, self._made.new_key(home, "est"))
            used = await self._made.door.ask(home.name, replace(asking, secret=secret), _ENROLL)
            if used.code != "issued":
                return used.code
        try:
            await core.devices.secret(home.name, name, actor=ACTOR)
            await core.devices.suspend(home.name, name, actor=ACTOR)
            await core.devices.resume(home.name, name, actor=ACTOR)
            is_listed = await self._listed(home, target)
            await core.certificates.revoke(target.certificate, reason="superseded", realm=home.name, actor=ACTOR)
        except OperatorError as exc:
            return exc.code
        return _DONE if is_listed else "absent"
