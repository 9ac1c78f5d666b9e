"""One secret used at two nodes at the same moment: one certificate, whichever key and protocol was faster."""

import asyncio
import contextlib
import os
from collections import Counter
from collections.abc import AsyncIterator

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec, rsa

from tests.end_to_end import scep_wire, two_nodes, wire
from tests.end_to_end.test_one_secret import Connection, certificate_in, scep_request
from tests.helpers.nodes import Node, Nodes

pytestmark = pytest.mark.foreign

LONG = os.environ.get("ENROLLD_LONG") == "1"
ROUNDS = 1000 if LONG else 60

nodes = two_nodes.nodes

Protocol = str
PAIRS = {"est-est": ("est", "est"), "est-scep": ("est", "scep"), "scep-scep": ("scep", "scep")}


class Rival:
    """One of two that use a secret at the same moment: a connection that stays, to one node, and a key of its own."""

    def __init__(self, node: Node, protocol: Protocol, name: str, ra: bytes) -> None:
        self.node, self.protocol, self.name, self._ra = node, protocol, name, ra
        self._ec, self._rsa = ec.generate_private_key(ec.SECP256R1()), rsa.generate_private_key(65537, 2048)
        self._connection: Connection | None = None

    def takes_the_key_of(self, other: "Rival") -> None:
        self._ec, self._rsa = other._ec, other._rsa

    async def connect(self) -> None:
        daemon = self.node.daemon
        is_est = self.protocol == "est"
        tls = wire.context(daemon.root) if is_est else None
        self._connection = await Connection.open(daemon.https_port if is_est else daemon.http_port, tls)

    async def close(self) -> None:
        if self._connection is not None:
            await self._connection.close()

    def request(self, secret: str) -> bytes:
        """The bytes, ready to go."""
        if self.protocol == "scep":
            return scep_request(scep_wire.enroll_message(self._ra, self._rsa, self.name, secret))
        body = wire.body_of(wire.csr(self._ec, self.name))
        return wire.enroll_request(body, authorization=wire.basic(self.name, secret))

    async def ask(self, request: bytes) -> x509.Certificate | None:
        """The certificate; None when it is refused."""
        assert self._connection is not None
        status, body = await self._connection.ask(request)
        if self.protocol == "scep":
            assert status == 200, f"{status} {body!r}"
            if scep_wire.failed(body):
                return None
            assert scep_wire.succeeded(body)
            return scep_wire.issued_in(body, self._rsa)
        assert status in (200, 401), f"{status} {body!r}"
        return certificate_in(body) if status == 200 else None


@contextlib.asynccontextmanager
async def rivals(nodes: Nodes, name: str, protocols: tuple[Protocol, Protocol]) -> AsyncIterator[tuple[Rival, Rival]]:
    """One at each node."""
    ra = scep_wire.ra_of(nodes[0].daemon.http_port)
    first, second = (Rival(node, protocol, name, ra) for node, protocol in zip(nodes, protocols, strict=True))
    await first.connect()
    await second.connect()
    try:
        yield first, second
    finally:
        await first.close()
        await second.close()


@pytest.mark.parametrize("pair", PAIRS)
@pytest.mark.timeout(3600 if LONG else 600)
async def test_one_secret_at_two_nodes_at_once_gets_one_certificate(nodes: Nodes, pair: str) -> None:
    name = f"contended-{pair}"
    nodes.daemon.ask("device", "add", name)
    received: list[x509.Certificate] = []
    winners: Counter[str] = Counter()
    rounds = -(-ROUNDS // len(PAIRS))
    with nodes.daemon.core() as core:
        async with rivals(nodes, name, PAIRS[pair]) as both:
            for number in range(rounds):
                secret = (await core.devices.secret("default", name, actor="test")).secret
                order = both if number % 2 else both[::-1]  # who is first to send takes turns
                requests = [rival.request(secret) for rival in order]
                answers = await asyncio.gather(*map(Rival.ask, order, requests))
                served = [rival for rival, answer in zip(order, answers, strict=True) if answer is not None]
                assert len(served) == 1, f"round {number}: {len(served)} certificates for one secret"
                received += [answer for answer in answers if answer is not None]
                winners[served[0].node.folder.name] += 1
    print(f"won: {dict(winners)}")
    assert len(received) == rounds >= 20
    rows = nodes.daemon.command("cert", "list", "--device", name, "--limit", str(2 * rounds))
    assert sorted(row["serial"] for row in rows) == sorted(f"{one.serial_number:x}" for one in received)
    assert set(winners) == {"node-1", "node-2"}, "one node won every round: the other was never in time"


@pytest.mark.parametrize("protocol", ["est", "scep"])
@pytest.mark.timeout(3600 if LONG else 600)
async def test_one_key_that_asks_two_nodes_at_once_gets_the_same_certificate_twice(nodes: Nodes, protocol: str) -> None:
    name = f"asks-twice-{protocol}"
    nodes.daemon.ask("device", "add", name)
    rounds = ROUNDS // 4
    serials: set[int] = set()
    with nodes.daemon.core() as core:
        async with rivals(nodes, name, (protocol, protocol)) as (first, second):
            second.takes_the_key_of(first)
            for number in range(rounds):
                secret = (await core.devices.secret("default", name, actor="test")).secret
                requests = [first.request(secret), second.request(secret)]
                answers = await asyncio.gather(first.ask(requests[0]), second.ask(requests[1]))
                assert None not in answers, f"round {number}: refused what is its own"
                assert answers[0] == answers[1], f"round {number}: two certificates"
                serials |= {answer.serial_number for answer in answers if answer is not None}
    assert len(serials) == rounds >= 15
    assert len(nodes.daemon.command("cert", "list", "--device", name, "--limit", str(2 * rounds))) == rounds
