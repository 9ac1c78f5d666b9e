"""Two nodes on one PostgreSQL behind HAProxy: stock clients, one secret at both, a realm edited at one, who is ready.

The balancer runs with `interop/haproxy/haproxy.cfg` itself.
"""

import asyncio
import contextlib
import json
import os
import re
import secrets
import socket
import threading
import time
import urllib.request
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec, rsa

from tests.end_to_end import (
    clients,
    scep_wire,
    test_curl_openssl,
    test_scep_clients,
    test_strongswan,
    wire,
)
from tests.end_to_end.retrying import Est, Scep, Wanted, ask_once, ask_until_answered
from tests.end_to_end.test_one_secret import Connection, certificate_in, scep_request
from tests.helpers.daemon import eventually, run_enrolld
from tests.helpers.mortal import is_alive
from tests.helpers.nodes import Balancer, Node, Nodes, running_nodes
from tests.helpers.postgres import Postgres, running_postgres

pytestmark = pytest.mark.foreign

LONG = os.environ.get("ENROLLD_LONG") == "1"
ROUNDS = 1000 if LONG else 60
EDITS = 100 if LONG else 12
MOST_RENEWALS = 6
DAY = 86_400

certmonger = test_scep_clients.certmonger
new_bench = test_scep_clients.new_bench


@pytest.fixture(scope="module")
def nodes(tmp_path_factory: pytest.TempPathFactory, postgres: Postgres) -> Iterator[Nodes]:
    with running_nodes(tmp_path_factory.mktemp("nodes"), postgres.create("nodes")) as running:
        yield running


@pytest.fixture
def balancer(nodes: Nodes) -> Balancer:
    """The balancer, with both nodes behind it."""
    assert nodes.balancer is not None
    nodes.balancer.wait_until_ready("node-1", "node-2")
    return nodes.balancer


# --- stock clients through the balancer ------------------------------------------------------------------------------


def curl(nodes: Nodes, folder: Path, name: str, _: test_scep_clients.NewBench) -> "Stock":
    clients.needs("curl", "openssl")
    added = nodes.daemon.ask("device", "add", name)
    bench = test_curl_openssl.Bench(nodes.daemon, folder, added["username"], added["secret"])
    bench.recipe("cacerts")
    return Stock(bench.name, lambda: bench.recipe("enroll"), lambda: bench.recipe("rekey"), bench.verified)


def strongswan(nodes: Nodes, folder: Path, name: str, _: test_scep_clients.NewBench) -> "Stock":
    clients.needs("pki", "openssl")
    bench = test_strongswan.Bench(nodes.daemon, folder, name)
    bench.recipe("estca")
    return Stock(bench.name, lambda: bench.recipe("enroll"), lambda: bench.recipe("renew"), bench.verified)


def by_scep(client: test_scep_clients.Client) -> "Maker":
    def make(nodes: Nodes, _: Path, __: str, new_bench: test_scep_clients.NewBench) -> Stock:
        bench = new_bench(client, nodes.daemon)
        return Stock(bench.name, lambda: bench.run(client.enroll), lambda: bench.run(client.renew), bench.verified)

    return make


class Stock:
    """A stock client with a new device."""

    def __init__(
        self, name: str, enroll: Callable[[], object], renew: Callable[[], object], verified: Callable[[], object]
    ) -> None:
        self.name = name
        self.enroll, self.renew, self.verified = enroll, renew, verified


Maker = Callable[[Nodes, Path, str, test_scep_clients.NewBench], Stock]
STOCK: dict[str, Maker] = {
    "est-curl": curl,
    "est-strongswan": strongswan,
    "scep-strongswan": by_scep(test_scep_clients.STRONGSWAN),
    "scep-scepclient": by_scep(test_scep_clients.SCEPCLIENT),
    "scep-certmonger": by_scep(test_scep_clients.CERTMONGER),
}


def issuers_of(nodes: Nodes, device: str) -> set[str]:
    """The nodes whose log says that they issued for a device."""
    return {node.folder.name for node in nodes for line in node.issued() if line.get("enrolld.device") == device}


def writers_of(nodes: Nodes, device: str) -> set[str]:
    """Who wrote of these certificates in the audit trail: a worker of each node has a chain of its own."""
    rows = nodes.daemon.command("audit", "list", "--device", device, "--action", "certificate.issued")
    return {row["writer"] for row in rows}


@pytest.mark.parametrize("client", STOCK)
def test_a_stock_client_enrolls_and_renews_through_the_balancer_and_both_nodes_did_part_of_it(
    nodes: Nodes,
    balancer: Balancer,
    tmp_path: Path,
    new_name: Callable[[], str],
    new_bench: test_scep_clients.NewBench,
    client: str,
) -> None:
    stock = STOCK[client](nodes, tmp_path, f"nodes-{new_name()}", new_bench)
    stock.enroll()
    stock.verified()
    for renewals in range(1, MOST_RENEWALS + 1):
        stock.renew()
        stock.verified()
        if issuers_of(nodes, stock.name) == {"node-1", "node-2"}:
            break
        if renewals % 2:  # a recipe that makes two connections would have the same node each time
            for port in (balancer.https_port, balancer.http_port):
                socket.create_connection(("127.0.0.1", port), timeout=10).close()
    assert issuers_of(nodes, stock.name) == {"node-1", "node-2"}
    assert len(writers_of(nodes, stock.name)) == 2


def test_the_log_has_the_address_of_the_device_and_not_that_of_the_balancer(nodes: Nodes, balancer: Balancer) -> None:
    device = Asker(nodes, "addressed")
    answer = device.ask(balancer.https_port, source="127.0.0.77")
    assert answer.status == 200
    assert client_of(nodes, answer.headers["x-request-id"]) == "127.0.0.77"

    with socket.create_connection(("127.0.0.1", balancer.http_port), 10, ("127.0.0.78", 0)) as plain:
        plain.sendall(b"GET /pki/nothing.cer HTTP/1.1\r\nHost: localhost\r\n\r\n")
        refused = wire.read_answer(plain)
    assert client_of(nodes, refused.request_id) == "127.0.0.78"


def client_of(nodes: Nodes, request_id: str) -> str:
    """The address that the log has of who sent a request."""

    def found() -> str | None:
        lines = [line for node in nodes for line in node.log_lines() if line.get("enrolld.request_id") == request_id]
        return str(lines[0]["client.ip"]) if lines else None

    return eventually(found, what=f"request {request_id} is in a log")


def test_what_certificates_name_is_fetched_through_the_balancer(nodes: Nodes, balancer: Balancer) -> None:
    certificate = Asker(nodes, "with-a-crl").ask(nodes[1].daemon.https_port).certificate
    (point,) = certificate.extensions.get_extension_for_class(x509.CRLDistributionPoints).value
    assert point.full_name
    url = point.full_name[0].value
    assert url.startswith(f"http://localhost:{balancer.http_port}/pki/")
    nodes[0].daemon.ask("cert", "revoke", f"{certificate.serial_number:x}", "--reason", "keyCompromise")
    for _ in range(4):  # both nodes publish it
        with urllib.request.urlopen(url, timeout=10) as answer:  # noqa: S310  # http, as seen above
            crl = x509.load_der_x509_crl(answer.read())
        assert crl.get_revoked_certificate_by_serial_number(certificate.serial_number) is not None


class Asker:
    """A device that asks any node, by EST."""

    def __init__(self, nodes: Nodes, name: str) -> None:
        self.nodes = nodes
        self.name = f"{name}-{secrets.token_hex(3)}"
        self.secret = nodes.daemon.inspect(lambda core: core.devices.add("default", self.name, actor="test")).secret
        self.key = ec.generate_private_key(ec.SECP256R1())

    def ask(self, port: int, *, source: str = "127.0.0.1") -> wire.Answer:
        request = wire.enroll_request(
            wire.body_of(wire.csr(self.key, self.name)), authorization=wire.basic(self.name, self.secret)
        )
        with socket.create_connection(("127.0.0.1", port), 30, (source, 0)) as plain:
            tls = wire.context(self.nodes.daemon.root)
            with tls.wrap_socket(plain, server_hostname="localhost") as connection:
                connection.sendall(request)
                return wire.read_answer(connection)

    def is_refused_by(self, node: Node) -> None:
        """Ask the node itself; whatever it does, nothing is issued."""
        with contextlib.suppress(OSError):
            answer = self.ask(node.daemon.https_port)
            assert answer.status == 503, answer
        assert self.nodes.daemon.certificates_of(self.name) == []


# --- one secret ------------------------------------------------------------------------------------------------------

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


# --- a realm edited at one node --------------------------------------------------------------------------------------


def days_of(certificate: x509.Certificate) -> int:
    return round((certificate.not_valid_after_utc - certificate.not_valid_before_utc).total_seconds() / DAY)


def test_a_realm_edited_at_one_node_is_live_at_both_at_once(nodes: Nodes, tmp_path: Path) -> None:
    """Devices renew at both nodes without pause: what is sent once an edit's command returned is of the new version."""
    seen: list[tuple[str, float, int]] = []  # node, when it was sent, days
    failures: list[BaseException] = []
    stop = threading.Event()

    def ask_on(node: Node, device: Asker) -> None:
        try:
            with node.daemon.core() as core, asyncio.Runner() as runner:
                while not stop.is_set():
                    device.secret = runner.run(core.devices.secret("default", device.name, actor="test")).secret
                    sent = time.monotonic()
                    answer = device.ask(node.daemon.https_port)
                    seen.append((node.folder.name, sent, days_of(answer.certificate)))
        except BaseException as exc:
            failures.append(exc)

    document = nodes.daemon.text("realm", "export", "default")
    head, device_profile = document.split("[profiles.device]")
    assert device_profile.count('validity = "90d"') == 2
    threads = [threading.Thread(target=ask_on, args=(node, Asker(nodes, "edited"))) for node in nodes]
    live: list[tuple[float, int]] = []  # since when at the latest, days
    for thread in threads:
        thread.start()
    try:
        for number in range(EDITS):
            days = 30 + number
            edited = device_profile.replace('validity = "90d"', f'validity = "{days}d"', 1)
            (tmp_path / "default.toml").write_text(f"{head}[profiles.device]{edited}")
            editor = nodes[number % 2]
            editor.daemon.ask("realm", "apply", str(tmp_path / "default.toml"))
            live.append((time.monotonic(), days))
            had = len(seen)
            for node in nodes:
                assert days_of(Asker(nodes, "at-once").ask(node.daemon.https_port).certificate) == days
            eventually(lambda: True if failures or len(seen) >= had + 4 else None, what="both go on renewing")  # noqa: B023
    finally:
        stop.set()
        for thread in threads:
            thread.join()
        (tmp_path / "default.toml").write_text(document)
        nodes.daemon.ask("realm", "apply", str(tmp_path / "default.toml"))
    if failures:
        raise failures[0]
    for name, sent, days in seen:
        due = [of for since, of in live if since <= sent]
        assert not due or days >= due[-1], f"{name} issued for {days} days, sent after the edit to {due[-1]} returned"
    assert {name for name, sent, _ in seen if sent >= live[0][0]} == {"node-1", "node-2"}
    assert len(live) == EDITS


# --- who is ready ----------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def balanced(folder: Path, *members: Node) -> Iterator[Balancer]:
    """A balancer of one test alone."""
    made = Balancer(folder, members)
    try:
        yield made
    finally:
        made.stop()


def is_sent_nothing(nodes: Nodes, folder: Path, node: Node) -> None:
    """A balancer over the first node and this one sends this one nothing, and devices notice nothing of it."""
    with balanced(folder, nodes[0], node) as made:
        for backend in ("https-ready", "http-ready"):
            made.wait_until_ready("node-1", backend=backend)
        before = made.sent()
        for number in range(4):
            assert Asker(nodes, f"passes-by-{number}").ask(made.https_port).status == 200
        after = made.sent()
    assert after["node-2"] == before["node-2"]
    assert after["node-1"] == before["node-1"] + 4


def is_ready_and_issues(nodes: Nodes, node: Node) -> None:
    node.wait_until_ready()
    answer = Asker(nodes, "served").ask(node.daemon.https_port)
    assert answer.status == 200, answer


UNLOCK_KEYS: dict[str, tuple[Callable[[], bytes | None], str]] = {
    "none": (lambda: None, "unlock key"),
    "another": (lambda: secrets.token_bytes(32), "unlock key"),
}


@pytest.mark.parametrize("which", UNLOCK_KEYS)
def test_a_node_without_the_unlock_key_is_not_ready_and_says_so(nodes: Nodes, tmp_path: Path, which: str) -> None:
    make, words = UNLOCK_KEYS[which]
    node = nodes.add(unlock_key=make())
    reasons = node.wait_until_not_ready()
    assert [reason for reason in reasons if words in reason], reasons
    Asker(nodes, "locked-out").is_refused_by(node)
    is_sent_nothing(nodes, tmp_path, node)

    # What is published needs no key; where no node can issue, the balancer still finds who has it.
    with balanced(tmp_path, node) as alone:
        for backend, found in {"https-ready": (), "http-ready": (), "http-running": ("node-1",)}.items():
            alone.wait_until_ready(*found, backend=backend)
        with urllib.request.urlopen(f"http://127.0.0.1:{alone.http_port}/pki/default-ec-1/0.crl", timeout=10) as answer:
            x509.load_der_x509_crl(answer.read())

    nodes.give_key_to(node)  # the twin
    is_ready_and_issues(nodes, node)


CLOCKS = {"a day ahead": DAY, "a day behind": -DAY, "90 seconds behind": -90, "90 seconds ahead": 90}


@pytest.mark.parametrize("case", CLOCKS)
def test_a_node_whose_clock_is_wrong_is_not_ready_and_says_so(nodes: Nodes, tmp_path: Path, case: str) -> None:
    node = nodes.add(unlock_key=nodes.unlock_key, clock_seconds=CLOCKS[case])
    reasons = node.wait_until_not_ready()
    assert [reason for reason in reasons if "clock" in reason], reasons
    Asker(nodes, "too-early").is_refused_by(node)
    is_sent_nothing(nodes, tmp_path, node)
    assert [good.readiness() for good in nodes] == [(200, [])] * 2, "what it did has harmed the others"

    assert node.clock is not None
    node.clock.set(20 if CLOCKS[case] > 0 else -20)  # the twin: some seconds are no fault
    is_ready_and_issues(nodes, node)


@pytest.mark.parametrize("seconds", [DAY, -DAY], ids=["forward", "back"])
def test_a_clock_that_is_set_while_the_node_runs_stops_it_until_it_is_right_again(nodes: Nodes, seconds: int) -> None:
    node = nodes.add(unlock_key=nodes.unlock_key, clock_seconds=0)
    assert node.clock is not None
    is_ready_and_issues(nodes, node)
    for _ in range(2):
        node.clock.set(seconds)
        assert "clock" in " ".join(node.wait_until_not_ready())
        Asker(nodes, "set-wrong").is_refused_by(node)
        node.clock.set(0)
        is_ready_and_issues(nodes, node)
    assert [good.readiness() for good in nodes] == [(200, [])] * 2


WRONG_TIMES = {"not yet valid": -2 * DAY, "expired": 400 * DAY}


@pytest.mark.parametrize("case", WRONG_TIMES)
@pytest.mark.parametrize("protocol", ["est", "scep"])
def test_a_clock_that_is_wrong_refuses_nobody_whose_credential_is_valid(nodes: Nodes, protocol: str, case: str) -> None:
    """What such a node takes for expired may be fresh: devices are told to come again, from the first request on."""
    node = nodes.add(unlock_key=nodes.unlock_key, clock_seconds=0)
    assert node.clock is not None
    node.wait_until_ready()
    first, other = (Asker(nodes, f"{protocol}-{word}") for word in ("renews", "enrolls"))
    renewal, enrollment = wanted_of(node, protocol, first, other)
    for wanted in (renewal, enrollment):
        node.clock.set(WRONG_TIMES[case])
        for _ in range(3):
            assert not ask_once(wanted), wanted.enrollment  # neither a certificate nor a refusal
        node.wait_until_not_ready()
        assert not ask_once(wanted), wanted.enrollment
        assert wanted.enrollment.put_off == 4, wanted.enrollment
        node.clock.set(0)
        node.wait_until_ready()
        assert len(ask_until_answered(wanted).received) == 1  # the twin


def wanted_of(node: Node, protocol: str, first: Asker, other: Asker) -> tuple[Wanted, Wanted]:
    """A renewal of one device, by the certificate that it gets here, and the first certificate of another."""
    daemon = node.daemon
    if protocol == "est":
        est = Est(daemon.https_port, daemon.root)
        enrolled = ask_until_answered(est.by_secret(first.key, first.name, first.secret))
        newer = ec.generate_private_key(ec.SECP256R1())
        renewal = est.renewal(newer, first.name, enrolled.received[0], first.key)
        return renewal, est.by_secret(other.key, other.name, other.secret)
    scep = Scep(daemon.http_port, scep_wire.ra_of(daemon.http_port))
    keys = [rsa.generate_private_key(65537, 2048) for _ in range(3)]
    enrolled = ask_until_answered(scep.by_secret(keys[0], first.name, first.secret))
    by_certificate = scep.renewal(keys[1], first.name, enrolled.received[0], keys[0])
    return by_certificate, scep.by_secret(keys[2], other.name, other.secret)


# --- starting, stopping, and what is told ----------------------------------------------------------------------------


def test_two_nodes_started_at_the_same_moment_on_an_empty_database_have_one_ca(
    postgres: Postgres, tmp_path: Path
) -> None:
    for number in range(2):
        url = postgres.create(f"empty_{number}")
        key = secrets.token_bytes(32)
        started: list[Node] = []
        try:
            for name in ("node-1", "node-2"):
                started.append(Node(tmp_path / str(number) / name, url, unlock_key=key, waits=False))
            for node in started:
                node.wait_until_serving()
                node.wait_until_ready()
            assert len({node.daemon.addresses["ca_fingerprint_sha256"] for node in started}) == 1
            assert len({node.daemon.ca.read_text() for node in started}) == 1
            assert [row["realm"] for row in started[0].daemon.command("realm", "list")] == ["default"]
            with contextlib.closing(postgres.connect(f"empty_{number}")) as store:
                roots = store.execute("SELECT count(*) FROM audit WHERE action = 'realm.added'").fetchone()
            assert roots == (1,)
        finally:
            for node in started:
                node.stop()
        postgres.drop(f"empty_{number}")


def test_a_node_that_is_stopped_costs_no_device_a_request(nodes: Nodes, balancer: Balancer) -> None:
    """Devices ask once, through the balancer, while a node is stopped and started again: each is answered."""
    stop = threading.Event()
    failures: list[BaseException] = []
    answered: Counter[int] = Counter()

    def ask() -> None:
        try:
            device = Asker(nodes, "undisturbed")
            assert device.ask(balancer.https_port).status == 200
            while not stop.is_set():  # the same one again: a retransmission, on whichever node
                answered[device.ask(balancer.https_port).status] += 1
        except BaseException as exc:
            failures.append(exc)

    threads = [threading.Thread(target=ask) for _ in range(4)]
    for thread in threads:
        thread.start()
    node = nodes[1]
    try:
        before = answered.total()
        eventually(lambda: True if failures or answered.total() > before + 40 else None, what="they are answered")
        node.end()
        before = answered.total()
        eventually(lambda: True if failures or answered.total() > before + 40 else None, what="they go on")
        node.start()
        balancer.wait_until_ready("node-1", "node-2")
    finally:
        stop.set()
        for thread in threads:
            thread.join()
        if not is_alive(node.pid):
            node.start()
    if failures:
        raise failures[0]
    assert set(answered) == {200}


def test_while_the_database_is_away_crls_are_published_and_it_all_comes_back_by_itself(tmp_path: Path) -> None:
    with (
        running_postgres(fsync=False) as cluster,
        running_nodes(tmp_path, cluster.create("away"), count=1) as nodes,
    ):
        assert nodes.balancer is not None
        crl = f"http://127.0.0.1:{nodes.balancer.http_port}/pki/default-ec-1/0.crl"
        device = Asker(nodes, "patient")
        with urllib.request.urlopen(crl, timeout=10) as answer:  # and has it from now on
            before = answer.read()
        cluster.stop("immediate")
        assert nodes[0].wait_until_not_ready()
        answer_of_the_node = device.ask(nodes[0].daemon.https_port)
        assert (answer_of_the_node.status, answer_of_the_node.headers["retry-after"]) == (503, "60")
        nodes.balancer.wait_until_ready()
        nodes.balancer.wait_until_ready("node-1", backend="http-running")
        with urllib.request.urlopen(crl, timeout=10) as answer:
            assert answer.read() == before
        with pytest.raises((OSError, AssertionError)):
            device.ask(nodes.balancer.https_port)
        cluster.start()
        nodes.balancer.wait_until_ready("node-1")
        assert device.ask(nodes.balancer.https_port).status == 200


def test_the_trail_that_both_nodes_wrote_verifies(nodes: Nodes) -> None:
    Asker(nodes, "on-record").ask(nodes[0].daemon.https_port)
    Asker(nodes, "on-record").ask(nodes[1].daemon.https_port)
    done = run_enrolld(nodes[1].directory, "audit", "verify", "--json")
    assert done.returncode == 0, done.stdout.decode() + done.stderr.decode()
    assert json.loads(done.stdout)["findings"] == []


def test_the_password_of_the_store_stands_in_no_log_and_no_answer(nodes: Nodes, postgres: Postgres) -> None:
    told = [nodes.daemon.text("status"), nodes.daemon.text("status", "--json")]
    told += [run_enrolld(nodes[0].directory, "check").stdout.decode()]
    told += [node.log() for node in [*nodes, *nodes.others]]
    told += [(node.directory / "run" / "serve.json").read_text() for node in nodes]
    told += [json.dumps(nodes.daemon.command("audit", "list", "--limit", "1000"))]
    for text in told:
        assert postgres.password not in text
    assert re.search(r"postgresql://\S*127\.0\.0\.1", told[0]), "where the store is, is no secret"
