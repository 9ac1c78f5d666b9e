"""What the matrix is made of, and what came of it."""

from dataclasses import dataclass, field
from enum import StrEnum

from ca_core.rows import Row

__all__ = [
    "ADMIN_OPERATIONS",
    "FEW",
    "OF_FEW",
    "OPERATIONS",
    "Cell",
    "Finding",
    "Kind",
    "Relation",
    "Report",
    "Skipped",
    "Wire",
]


class Kind(StrEnum):
    """What is shown. Where a way of the home realm takes several proofs, all of them are."""

    IDEVID = "idevid"
    OWN_CERTIFICATE = "own_certificate"
    SECRET = "secret"  # noqa: S105  # the name of a kind, not a secret
    CHALLENGE = "challenge"
    APPROVAL = "approval"
    WEBHOOK = "webhook"
    ADMIN = "admin"


class Relation(StrEnum):
    """What the two realms have in common, beside being two realms."""

    UNRELATED = "unrelated"
    SAME_ROOT = "same_root"
    """Their CAs stand under one root. Its realms are made so for the run, on a ground of their own."""
    SAME_ANCHOR = "same_anchor"
    """Both trust one manufacturer."""
    EQUAL_NAMES = "equal_names"
    """A device of the same name and serial number is registered in the other realm."""
    CROSS_SIGNED = "cross_signed"
    """The manufacturer's CA is cross-signed by one that the other realm trusts, or the realm's CA by the other's."""
    SAME_KEY = "same_key"
    """The same key is certified in the other realm, for a device of another name."""


class Wire(StrEnum):
    """How it is asked, by the protocols' own words; `CERT_POLL` asks for a transaction of the home realm."""

    SIMPLEENROLL = "simpleenroll"
    SIMPLEREENROLL = "simplereenroll"
    PKCS_REQ = "PKCSReq"
    RENEWAL_REQ = "RenewalReq"
    CERT_POLL = "CertPoll"


OPERATIONS: dict[str, tuple[Wire, ...]] = {
    "est": (Wire.SIMPLEENROLL, Wire.SIMPLEREENROLL),
    "scep": (Wire.PKCS_REQ, Wire.RENEWAL_REQ, Wire.CERT_POLL),
}
"""The operations of each protocol."""
OF_FEW = frozenset({"name_of_other_device", "device_exists", "import_faults", "device_not_expected", "device_enrolled"})
"""What is told when a device has the name already that the profile gives to another: all of them are refusals."""
FEW = "its profile gives a name that few devices can have, and others had it already"
ADMIN_OPERATIONS = ("cert revoke", "device suspend", "device secret", "list", "request approve")
"""What an operator does with the other realm's name and this one's devices, serials and ids."""


@dataclass(frozen=True, slots=True)
class Cell:
    """One cell: a credential of `home`, shown to `away`."""

    home: str
    away: str
    relation: Relation
    credential: Kind
    operation: str

    def __str__(self) -> str:
        return f"{self.credential} of {self.home}, {self.operation} in {self.away} ({self.relation})"


class Finding(Row, frozen=True, kw_only=True):
    """A cell that is not as it should be. `asked_in` is the realm that answered; codes are those of refusals, `issued`
    and `pending` among them."""

    home: str
    away: str
    relation: str
    credential: str
    operation: str
    asked_in: str
    expected: str
    got: str


class Skipped(Row, frozen=True, kw_only=True):
    """What could not be proven, and why. `away` and `credential` are None where it is all of them."""

    home: str | None
    away: str | None
    credential: str | None
    reason: str


@dataclass(slots=True)
class Report:
    """What came of it. `cells` are those whose credential has worked in its own realm; `pairs` are ordered.

    `answers` are all codes that a cell was answered with.
    """

    pairs: int = 0
    cells: set[Cell] = field(default_factory=set)
    failures: list[Finding] = field(default_factory=list)
    skipped: list[Skipped] = field(default_factory=list)
    answers: dict[Cell, set[str]] = field(default_factory=dict)
    _known: set[Row] = field(default_factory=set)

    def skip(self, reason: str, *, home: str | None = None, away: str | None = None, kind: Kind | None = None) -> None:
        """Say once that something can't be proven."""
        found = Skipped(home=home, away=away, credential=str(kind) if kind is not None else None, reason=reason)
        if self._is_news(found):
            self.skipped.append(found)

    def compare(self, cell: Cell, asked_in: str, expected: frozenset[str], got: str) -> None:
        """Keep the cell as a finding when it is not as it should be."""
        self.answers.setdefault(cell, set()).add(got)
        if got not in expected:
            found = Finding(
                home=cell.home,
                away=cell.away,
                relation=str(cell.relation),
                credential=str(cell.credential),
                operation=str(cell.operation),
                asked_in=asked_in,
                expected=" or ".join(sorted(expected)),
                got=got,
            )
            if self._is_news(found):
                self.failures.append(found)

    def _is_news(self, found: Row) -> bool:
        is_news = found not in self._known
        self._known.add(found)
        return is_news
