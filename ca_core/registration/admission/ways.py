"""Which proofs, and which conditions beyond them, let a device have its first certificate in a realm.

A **proof** says who asks: a one-time secret, a factory identity (IDevID), the realm's static challenge; or `open`:
nobody proves anything. A **condition** only narrows: a webhook, an operator's approval. A **way** takes all that it
names, such as `idevid + webhook`; a realm has any of its ways. An approval may stand alone, since an operator looks at
the device; a webhook may not.
"""

import re
from dataclasses import dataclass
from typing import Literal

import msgspec

from ca_core.errors import OperatorError
from ca_core.names import parse_duration
from ca_core.registration.admission.webhook import WebhookDocument, webhook_faults

__all__ = ["AdmissionDocument", "Way", "admission_faults"]

PROOFS = ("secret", "idevid", "challenge", "open")
CONDITIONS = ("webhook", "approval")
_HASH = re.compile(r"sha256:[0-9a-f]{64}")
_LONGEST_GRACE_DAYS = 366
_BOUNDS = {"ceiling": (0, 1_000_000_000), "pending_most": (1, 10_000), "pending_per_source": (1, 10_000)}
"""The least and the most of each number. Whoever has a request kept counts those that wait while nobody else writes."""


class AdmissionDocument(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Who may have a certificate of the realm.

    `ways` are the ways to a first certificate, any of them; without it, `secret` and `idevid` are ways of their own.
    `idevid` is `registered` (devices that are in the list), `trusted` (any device of a trusted manufacturer, which is
    registered when it comes) or `off`. `expired_grace` lets a certificate renew so long after its end. `challenge` is
    what the static challenge is known by, `sha256:` and hex; `open` must be set for a way that proves nothing.
    `ceiling` is how many first certificates there may be on a day (UTC), up to 1,000,000,000, or 0 for any number. A
    request that waits for approval ends after `pending_lifetime`, and is asked for again every `pending_retry`; at most
    `pending_most` wait, and `pending_per_source` of one address or proven device (1 to 10,000 each). Those that
    prove nothing have half of `ceiling` and `pending_most`, where others prove who they are. `webhook` is whom a way
    with a webhook asks.
    """

    secret: bool = True
    idevid: Literal["registered", "trusted", "off"] = "registered"
    own_certificate: bool = True
    ways: tuple[str, ...] = ()
    expired_grace: str | None = None
    challenge: str | None = None
    open: bool = False
    ceiling: int = 0
    pending_lifetime: str = "7d"
    pending_retry: str = "60s"
    pending_most: int = 1000
    pending_per_source: int = 20
    webhook: WebhookDocument | None = None

    def bounded(self, key: str) -> int:
        """One of the numbers, as it counts: what the store keeps of old may be larger than any that is applied now."""
        return min(int(getattr(self, key)), _BOUNDS[key][1])

    @property
    def all_ways(self) -> tuple["Way", ...]:
        """The ways, in the order in which they are tried."""
        if self.ways:
            return tuple(parse_way(text) for text in self.ways)
        derived = ((self.secret, "secret"), (self.idevid != "off", "idevid"))
        return tuple(parse_way(name) for is_on, name in derived if is_on)


@dataclass(frozen=True, slots=True)
class Way:
    """What one way takes. `proofs` may be empty where an operator approves."""

    proofs: frozenset[str]
    webhook: bool
    approval: bool

    def __str__(self) -> str:
        parts = [name for name in PROOFS if name in self.proofs]
        parts += [name for name, is_on in (("webhook", self.webhook), ("approval", self.approval)) if is_on]
        return " + ".join(parts)


def parse_way(text: str) -> Way:
    """`secret`, `idevid + webhook`, ... Raises `OperatorError`."""
    parts = [part.strip() for part in text.split("+")]
    known = ", ".join((*PROOFS, *CONDITIONS))
    for part in parts:
        if part not in PROOFS and part not in CONDITIONS:
            raise OperatorError("way_invalid", f"'{ascii(part[:40])[1:-1]}' proves nothing known", f"use {known}")
    if len(set(parts)) != len(parts):
        raise OperatorError("way_invalid", f"'{text}' names something twice", "name each once")
    proofs = frozenset(part for part in parts if part in PROOFS)
    if "open" in proofs and len(proofs) > 1:
        raise OperatorError("way_invalid", f"'{text}' proves something, and is not open", "leave out 'open'")
    if "challenge" in proofs and "secret" in proofs:
        # A request carries one challengePassword, or one Basic password.
        raise OperatorError("way_invalid", "a request carries a secret or a challenge, not both", "use one of them")
    if not proofs and "approval" not in parts:
        # A webhook is asked about who proved who it is; it can't say who that is.
        raise OperatorError("way_invalid", "a webhook only narrows what is proven", f"add one of {', '.join(PROOFS)}")
    return Way(proofs, "webhook" in parts, "approval" in parts)


def admission_faults(admission: AdmissionDocument) -> list[str]:
    """What is wrong with it, one sentence each, by its key."""
    faults: list[str] = []
    ways: list[Way] = []
    for index, text in enumerate(admission.ways):
        try:
            way = parse_way(text)
        except OperatorError as exc:
            faults.append(f"admission.ways[{index}]: {exc.message} ({exc.remedy})")
            continue
        if way in ways:
            faults.append(f"admission.ways[{index}]: '{way}' stands twice (once is enough)")
        ways.append(way)
    # Of those that can be read; whether none of them is open, one that can't be read would have to say.
    faults += _way_faults(admission, tuple(ways) if admission.ways else admission.all_ways, some=bool(faults))
    if admission.webhook is not None:
        faults += webhook_faults(admission.webhook, "admission.webhook")
    if admission.challenge is not None and _HASH.fullmatch(admission.challenge) is None:
        faults.append("admission.challenge: not the hash of a challenge ('enrolld realm challenge' makes one)")
    for key in ("expired_grace", "pending_lifetime", "pending_retry"):
        text = getattr(admission, key)
        try:
            length = parse_duration(text) if text is not None else None
        except OperatorError as exc:
            faults.append(f"admission.{key}: {exc.message} ({exc.remedy})")
            continue
        if key == "expired_grace" and length is not None and length.days > _LONGEST_GRACE_DAYS:
            faults.append(f"admission.expired_grace: longer than a year (use at most {_LONGEST_GRACE_DAYS}d)")
    for key, (least, most) in _BOUNDS.items():
        if not least <= getattr(admission, key) <= most:
            faults.append(f"admission.{key}: expected a whole number of {least} to {most}")
    return faults


def _way_faults(admission: AdmissionDocument, ways: tuple[Way, ...], *, some: bool) -> list[str]:
    faults: list[str] = []
    used = frozenset().union(*(way.proofs for way in ways))
    if "open" in used and not admission.open:  # enforces case 31
        faults.append(
            "admission.ways: 'open' gives a certificate to anyone (set 'admission.open = true' if that is meant)"
        )
    if admission.open and "open" not in used and not some:
        faults.append("admission.open: is set, but no way is open (leave it out)")
    if (
        Way(frozenset({"open"}), webhook=False, approval=False) in ways
        and "idevid" in used
        and admission.idevid == "trusted"
    ):
        # Nobody knows beforehand which names they would bring.
        faults.append(
            "admission.ways: 'open' beside idevid = \"trusted\" lets anyone take the name of a device before it comes"
            " (use idevid = \"registered\", or 'approval' in place of 'open')"
        )
    if "challenge" in used and admission.challenge is None:  # enforces case 31
        faults.append("admission.challenge: there is none yet ('enrolld realm challenge' makes one)")
    if admission.ways and "idevid" in used and admission.idevid == "off":
        faults.append("admission.idevid: is off, but a way takes it (use 'registered' or 'trusted')")
    if admission.ways and "secret" in used and not admission.secret:
        faults.append("admission.secret: is off, but a way takes it (leave 'secret' out)")
    if any(way.webhook for way in ways) and admission.webhook is None:
        faults.append("admission.webhook: a way takes a webhook, and there is none (add its url)")
    return faults
