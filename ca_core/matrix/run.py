"""Runs the matrix: for each ordered pair of realms, each kind of credential by each operation, and its twin at home."""

from collections.abc import Callable
from dataclasses import dataclass

from ca_core.matrix.admin import Operator
from ca_core.matrix.cells import Kind, Relation, Report
from ca_core.matrix.credentials import Credentials, way_for
from ca_core.matrix.ground import Ground, Place
from ca_core.matrix.play import Play

__all__ = ["Size", "chosen_pairs", "run"]


@dataclass(frozen=True, slots=True)
class Size:
    """How much of it. At most `pairs` ordered pairs are tried, spread over all realms.

    `thorough` plays relations also with credentials to which they mean nothing, such as a secret and a cross-signed CA.
    """

    pairs: int = 90
    thorough: bool = False
    relations: tuple[Relation, ...] = tuple(Relation)
    protocols: tuple[str, ...] = ("est", "scep")

    def steps(self, realms: int) -> int:
        """How often `advance` will be told of something done, for so many realms, over both grounds."""
        kinds = len(Kind) - 1
        return realms * (kinds * len(self.relations) * len(self.protocols) + len(self.relations))


async def run(
    ground: Ground,
    credentials: Credentials,
    report: Report,
    size: Size = Size(),
    advance: Callable[[int], object] = lambda _: None,
) -> Report:
    """Play every cell of it that the ground is made for; what is found is added to the report."""
    for place in ground.places.values():
        _say_gaps(place, report)
    chosen = chosen_pairs(list(ground.places.values()), size.pairs)
    every = len(ground.places) * (len(ground.places) - 1)
    report.pairs = sum(len(aways) for aways in chosen.values())
    if report.pairs < every:
        report.skip(f"{every - report.pairs} of {every} pairs of realms were not tried: they are too many")
    for name, aways in chosen.items():
        home = ground.places[name]
        for relation in (each for each in size.relations if each in ground.relations):
            for kind in Kind:
                if kind is Kind.ADMIN:
                    await Operator(credentials, report).play(home, aways, relation, thorough=size.thorough)
                    advance(1)
                    continue
                for protocol in size.protocols:
                    play = Play(credentials, report, home, kind, relation, protocol)
                    await play.run(aways, thorough=size.thorough)
                    advance(1)
    return report


def chosen_pairs(places: list[Place], most: int) -> dict[str, list[Place]]:
    """To whom each realm's credentials are shown: to all, or to so many that no realm is left out.

    Those go first that trust what it trusts, or have its challenge.
    """
    count = len(places)
    each = count - 1 if count * (count - 1) <= most else max(1, most // count)
    chosen: dict[str, list[Place]] = {}
    for index, home in enumerate(places):
        others = [places[(index + step) % count] for step in range(1, count)]
        others.sort(key=lambda away: not _have_something_in_common(home, away))
        chosen[home.name] = others[:each]
    return chosen


def _have_something_in_common(home: Place, away: Place) -> bool:
    keys = [anchor.public_key() for anchor in home.trusted]
    if any(anchor.public_key() in keys for anchor in away.trusted):
        return True
    return home.challenge is not None and home.challenge == away.challenge


def _say_gaps(place: Place, report: Report) -> None:
    """What of a realm the matrix says nothing about."""
    open_ways = [way for way in place.realm.ways if way.proofs == {"open"} and not way.webhook and not way.approval]
    if open_ways:
        report.skip("its way 'open' lets in whoever asks: there is nothing to show elsewhere", home=place.name)
    if not place.realm.document.speaks_scep:
        report.skip("it does not speak SCEP", home=place.name)
    if "idevid" in place.realm.proofs and way_for(place, Kind.IDEVID) is None:
        whom = "no manufacturer" if not place.anchors else "no manufacturer but CAs of realms here"
        report.skip(f"it trusts {whom}, so no factory identity was shown", home=place.name, kind=Kind.IDEVID)
