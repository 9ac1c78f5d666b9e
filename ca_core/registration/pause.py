"""Devices that ask again and again for what they are refused: they are told to wait, ever longer.

Half of what a large installation is asked comes from clients that will never succeed. Each costs a handshake whatever
is done, but no signature, no query and no record. A pause belongs to who asked with which key, so that nobody can have
another one's device paused; it ends by itself, when the realm has a new version, and when the process ends.
"""

import hashlib
import time
from collections import OrderedDict
from collections.abc import Callable, Hashable
from dataclasses import dataclass

from ca_core.csr import ParsedCsr
from ca_core.errors import TooMany
from ca_core.model import Evidence
from ca_core.registration.realm import Resolved

_FREE = 30
"""Refusals of one kind that cost nothing."""
_SHORTEST, _LONGEST = 15.0, 600.0
_FORGET = 3600.0
_MANY = 50_000


@dataclass(slots=True)
class _Doomed:
    code: str
    edition: tuple[int, int]
    refusals: int
    last: float
    until: float


class Pauses:
    """Counts refusals by who asked. Each process counts for itself."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._doomed: OrderedDict[Hashable, _Doomed] = OrderedDict()

    def check(self, who: Hashable | None, edition: tuple[int, int]) -> None:
        """Raise `TooMany` while `who` is paused in the realm's `edition`; nobody (None) is never."""
        found = self._doomed.get(who)
        if found is None:
            return
        now = self._clock()
        if found.edition != edition or now - found.last > _FORGET:
            del self._doomed[who]
        elif now < found.until:  # enforces case 71
            raise TooMany(
                "device_paused",
                "The same request was refused many times; ask later.",
                retry_after=max(1, round(found.until - now)),
                detail=f"refused {found.refusals} times: {found.code}",
            )

    def refused(self, who: Hashable | None, code: str, edition: tuple[int, int]) -> None:
        """Count a refusal."""
        if who is None:
            return
        now = self._clock()
        found = self._doomed.get(who)
        if found is None or found.code != code or found.edition != edition or now - found.last > _FORGET:
            found = self._doomed[who] = _Doomed(code, edition, 0, now, now)
            if len(self._doomed) > _MANY:
                self._doomed.popitem(last=False)
        self._doomed.move_to_end(who)
        found.refusals += 1
        found.last = now
        beyond = found.refusals - _FREE
        if beyond >= 0:
            found.until = now + min(_SHORTEST * 2.0 ** min(beyond, 16), _LONGEST)

    def served(self, who: Hashable | None) -> None:
        """It was served: all is forgotten."""
        self._doomed.pop(who, None)


def who_asks(resolved: Resolved, evidence: Evidence, csr: ParsedCsr) -> Hashable | None:
    """Who asks for what, so that nobody else is counted under it; None for who offers nothing, as clients begin."""
    if not evidence.chain and evidence.secret is None:
        return None
    shown = hashlib.sha256(evidence.chain[0] if evidence.chain else b"")
    shown.update((evidence.secret or "").encode())
    return resolved.realm.id, shown.digest(), csr.spki_sha256, csr.names_hash
