"""What an operation works with: the parts of the core that SCEP needs, and one request to a known realm."""

import datetime as dt
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from ca_core.csr import ParsedCsr
from ca_core.errors import Refusal
from ca_core.model import Call, Evidence, Issued, Operation, Pending, RaKey, Refused, Requester
from ca_core.registration.document import ScepDocument
from ca_core.registration.realm import Resolved
from scep_server.seen import SeenKeys
from scep_server.tick import Tick

__all__ = ["Core", "Exchange", "Ra", "Realms", "Registration", "ServedCore", "Turns"]


class Ra(Protocol):
    """A realm's RA, as `ca_core.registration.ra.RaIdentity`."""

    @property
    def certificate(self) -> bytes:
        """What clients encrypt to."""
        ...

    @property
    def earlier(self) -> Sequence[bytes]:
        """What they encrypted to before."""
        ...

    @property
    def issuers(self) -> Sequence[bytes]:
        """The CA certificates above it."""
        ...

    @property
    def key(self) -> RaKey:
        """The key of them all."""
        ...


class Realms(Protocol):
    """Finds the realm that a label means."""

    async def resolve(self, protocol: str, label: str | None, server_name: str | None) -> Resolved:
        """Raises `NotFound`."""
        ...


class Registration(Protocol):
    """The RA, which decides."""

    async def authenticate(self, resolved: Resolved, evidence: Evidence, csr: ParsedCsr) -> Requester:
        """Who is asking."""
        ...

    async def enroll(
        self, resolved: Resolved, requester: Requester, csr: ParsedCsr, operation: Operation, call: Call
    ) -> Issued | Pending | Refused:
        """Decide, sign and record."""
        ...

    async def poll(
        self, resolved: Resolved, transaction_id: str, signer_key: bytes, call: Call
    ) -> Issued | Pending | Refused:
        """What became of a transaction."""
        ...

    def refused(
        self, refusal: Refusal, call: Call, resolved: Resolved | None, *, csr: ParsedCsr | None = None
    ) -> Refusal:
        """Record a refusal. Returns what to tell: it, or `TooMany`."""
        ...

    def failed(self, call: Call, resolved: Resolved | None, reason: str) -> None:
        """Record a fault of our own."""
        ...


class Turns(Protocol):
    """The queue before the work that costs."""

    async def enter(self, source: str) -> None:
        """Wait for a turn, and call `leave` then; `Overloaded` when there is none soon."""
        ...

    def leave(self) -> None:
        """The turn is over."""
        ...


class Core(Protocol):
    """What SCEP needs of the core."""

    @property
    def realms(self) -> Realms:
        """The realms."""
        ...

    @property
    def registration(self) -> Registration:
        """The RA's decisions."""
        ...

    async def ra(self, resolved: Resolved) -> Ra:
        """The RA's certificate and key. Raises `InternalError`."""
        ...


class ServedCore(Core, Turns, Protocol):
    """What SCEP needs of the core where it is served, and not only explained."""


@dataclass(frozen=True, slots=True)
class Exchange:
    """One request to a known realm.

    `tick` is when refusals leave, None for at once; `seen` are the envelopes opened so far, None to remember none;
    `told` takes what is proven of who asks, by its name in the log.
    """

    core: Core
    resolved: Resolved
    call: Call
    clock: Callable[[], dt.datetime] = field(repr=False)
    tick: Tick | None = field(default=None, repr=False)
    seen: SeenKeys | None = field(default=None, repr=False)
    told: dict[str, str] = field(default_factory=dict)

    @property
    def scep(self) -> ScepDocument:
        """How the realm speaks SCEP."""
        return self.resolved.realm.document.scep
