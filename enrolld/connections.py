"""Too many connections: which of them goes.

Those that wait for their own peers go before a newcomer is turned away: for the rest of a handshake, a head, a body, or
for nothing at all. Whoever fills the house with connections fills it with his own, and they go first: the oldest of the
source that has the most, then the oldest of all. What is being served stays, for as long as that takes an honest peer.

A connection that came a moment ago is left alone, unless its source has many more than the newcomer's: else a fleet
that comes at once would keep cutting off its own beginnings, and nobody would get anywhere. One that has not even said
ClientHello has a shorter moment, for that is the first thing that comes.
"""

import time
from collections import OrderedDict
from collections.abc import Callable, Iterator
from itertools import islice
from typing import NamedTuple

from ca_core.limits import source_of
from enrolld.board import Seat
from enrolld.http_connection import HttpConnection
from enrolld.limits import Limits, Networks
from enrolld.tls import StreamReason, StreamTransport

__all__ = ["Connections"]

_PATIENCE = 2.0  # seconds that an honest peer may take for its next step when the house is full
_HELLO_PATIENCE = 0.5  # and for its ClientHello, which is one flight away
_LONGEST_SERVED = 10.0  # seconds for a whole request and its answer, from when on a full house may cut it
_MANY_MORE = 2
_LEEWAY = 1.1
_LOOKED_AT = 64  # connections of one source, before the search goes on with the next
_SOURCES_LOOKED_AT = 16
_OLDEST_LOOKED_AT = 256


class _Candidate(NamedTuple):
    """A connection that could go, when it came, and how many its source has."""

    transport: StreamTransport
    since: float
    held: int


class _Crowd:
    """Connections by source, and the sources by how many they have: each step takes the same time, however many."""

    def __init__(self) -> None:
        self._by_age: OrderedDict[StreamTransport, tuple[str, float]] = OrderedDict()
        self._of_source: dict[str, OrderedDict[StreamTransport, float]] = {}
        self._by_count: dict[int, OrderedDict[str, None]] = {}
        self.size = 0

    def add(self, source: str, transport: StreamTransport, now: float) -> None:
        """One more, the newest of its source."""
        of_source = self._of_source.setdefault(source, OrderedDict())
        of_source[transport] = now
        self._by_age[transport] = source, now
        self._move(source, len(of_source) - 1, len(of_source))
        self.size += 1

    def remove(self, source: str, transport: StreamTransport) -> None:
        """One less; nothing happens when it is not there."""
        of_source = self._of_source.get(source)
        if of_source is None or transport not in of_source:
            return
        del of_source[transport], self._by_age[transport]
        self._move(source, len(of_source) + 1, len(of_source))
        if not of_source:
            del self._of_source[source]
        self.size -= 1

    def count(self, source: str) -> int:
        """How many this source has."""
        return len(self._of_source.get(source, ()))

    def of(self, source: str) -> Iterator[_Candidate]:
        """The oldest of this source."""
        found: dict[StreamTransport, float] = self._of_source.get(source, OrderedDict())
        for transport, since in list(islice(found.items(), _LOOKED_AT)):
            yield _Candidate(transport, since, len(found))

    def oldest(self) -> Iterator[_Candidate]:
        """The oldest of all sources."""
        for transport, (source, since) in list(islice(self._by_age.items(), _OLDEST_LOOKED_AT)):
            yield _Candidate(transport, since, self.count(source))

    def heaviest_first(self) -> Iterator[_Candidate]:
        """The oldest of the source that has the most, then of the next; after a few, the oldest of all."""
        sources = (source for count in sorted(self._by_count, reverse=True) for source in self._by_count[count])
        for source in list(islice(sources, _SOURCES_LOOKED_AT)):
            yield from self.of(source)
        yield from self.oldest()

    def _move(self, source: str, before: int, after: int) -> None:
        if before:
            at = self._by_count[before]
            del at[source]
            if not at:
                del self._by_count[before]
        if after:
            self._by_count.setdefault(after, OrderedDict())[source] = None


class Connections:
    """The connections of one worker, on all its listeners; a `Watch` for their streams.

    `own_limit` is what this process has file descriptors for.
    """

    def __init__(self, limits: Limits, seat: Seat, own_limit: int, clock: Callable[[], float] = time.monotonic) -> None:
        self._limits = limits
        self._seat = seat
        self._own_limit = own_limit
        self._clock = clock
        self._trusted = Networks(limits.trusted)
        self._all = _Crowd()
        self._opening = _Crowd()

    @property
    def open(self) -> int:
        """Connections of this worker."""
        return self._all.size

    @property
    def handshakes(self) -> int:
        """Those of them whose handshake has not ended."""
        return self._opening.size

    def made(self, transport: StreamTransport) -> None:
        """See `Watch`."""
        address = _address(transport)
        source = source_of(address)
        total, of_source = self._seat.enter(source)
        now = self._clock()
        self._all.add(source, transport, now)
        self._opening.add(source, transport, now)
        limits = self._limits
        if of_source > limits.connections_per_source and not self._trusted.has(address):
            self._cut_one(self._all.of(source), StreamReason.TOO_MANY_OF_SOURCE, transport, self._all.count(source))
        if self._opening.size > limits.handshakes:
            mine = self._opening.count(source)
            if not self._cut_one(self._opening.heaviest_first(), StreamReason.TOO_MANY_HANDSHAKES, transport, mine):
                transport.cut(StreamReason.TOO_MANY_HANDSHAKES)
                return
        if total > limits.connections or self._all.size > self._own_limit:
            mine = self._all.count(source)
            was_cut = self._cut_one(self._all.heaviest_first(), StreamReason.TOO_MANY_CONNECTIONS, transport, mine)
            # None here waits for its peer. Elsewhere some may, so a few more are let in.
            if not was_cut and (total > limits.connections * _LEEWAY or self._all.size > self._own_limit):
                transport.cut(StreamReason.TOO_MANY_CONNECTIONS)

    def opened(self, transport: StreamTransport) -> None:
        """See `Watch`."""
        self._opening.remove(source_of(_address(transport)), transport)

    def lost(self, transport: StreamTransport) -> None:
        """See `Watch`."""
        source = source_of(_address(transport))
        self._all.remove(source, transport)
        self._opening.remove(source, transport)
        self._seat.leave(source)

    def _cut_one(
        self, candidates: Iterator[_Candidate], reason: StreamReason, newcomer: StreamTransport, mine: int
    ) -> bool:
        """Cut the first that may go for the `newcomer`, whose source has `mine`. False when none may."""
        for candidate in candidates:
            transport = candidate.transport
            if transport is newcomer or transport.is_cut:
                continue
            if self._may_go(candidate, is_of_many=candidate.held > _MANY_MORE * mine):
                transport.cut(reason)  # enforces case 51
                return True
        return False

    def _may_go(self, candidate: _Candidate, *, is_of_many: bool) -> bool:
        now = self._clock()
        protocol = candidate.transport.get_protocol()
        if candidate.transport.is_opening or not isinstance(protocol, HttpConnection):
            patience = _HELLO_PATIENCE if candidate.transport.is_silent else _PATIENCE
            return is_of_many or now - candidate.since > patience
        since = protocol.busy_since
        if since is None:  # an idle keep-alive goes at once; one that has not asked yet, when it takes its time
            return is_of_many or protocol.has_answered or now - candidate.since > _PATIENCE
        if protocol.waits_for_body:
            return is_of_many or now - since > _PATIENCE
        return now - since > _LONGEST_SERVED


def _address(transport: StreamTransport) -> str:
    peername = transport.peername
    return str(peername[0]) if isinstance(peername, tuple) and peername else "local"
