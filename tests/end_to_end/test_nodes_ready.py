"""Who is ready: a node without the unlock key, or with a wrong clock, issues nothing, refuses nobody, and says why."""

import asyncio
import contextlib
import random
import secrets
import threading
import time
import urllib.request
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec, rsa

from tests.end_to_end import scep_wire, two_nodes
from tests.end_to_end.retrying import Est, Scep, Wanted, ask_once, ask_until_answered
from tests.end_to_end.two_nodes import Asker
from tests.helpers.balancer import Balancer
from tests.helpers.daemon import eventually
from tests.helpers.nodes import Node, Nodes, running_nodes
from tests.helpers.postgres import Postgres, running_postgres

pytestmark = pytest.mark.foreign

DAY = 86_400
JUMPS = 25

nodes = two_nodes.nodes


@contextlib.contextmanager
def balanced(folder: Path, *members: Node) -> Iterator[Balancer]:
    """A balancer of one test alone."""
    made = Balancer(folder, [node.ports for node in members])
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


def test_a_clock_that_jumps_and_is_right_again_leaves_nothing_from_the_future(
    postgres: Postgres, tmp_path: Path
) -> None:
    """What was decided while it was wrong is not committed afterwards: such an event would stop every node."""
    seed = random.SystemRandom().randrange(2**32)
    print(f"seed {seed}")
    chance = random.Random(seed)
    url = postgres.create("jumps")
    with running_nodes(tmp_path, url, count=1, clocks=True) as nodes:
        node, stop, failures = nodes[0], threading.Event(), list[BaseException]()
        assert node.clock is not None
        answered: Counter[int] = Counter()

        def ask() -> None:
            try:
                with node.daemon.core() as core, asyncio.Runner() as runner:
                    device = Asker(nodes, "jumps")
                    while not stop.is_set():
                        device.secret = runner.run(core.devices.secret("default", device.name, actor="test")).secret
                        answered[device.ask(node.daemon.https_port).status] += 1
            except BaseException as exc:
                failures.append(exc)

        threads = [threading.Thread(target=ask) for _ in range(6)]
        for thread in threads:
            thread.start()
        try:
            for _ in range(JUMPS):
                assert from_the_future(postgres, "jumps") == []
                had = answered[200]
                eventually(lambda: True if failures or answered[200] > had else None, what="it issues")  # noqa: B023
                node.clock.set(3600)
                time.sleep(chance.uniform(0, 0.3))  # the moment is chance
                node.clock.set(0)
        finally:
            stop.set()
            for thread in threads:
                thread.join()
        assert failures == []
        node.wait_until_ready()
        assert from_the_future(postgres, "jumps") == []
        assert answered[200] > JUMPS
    postgres.drop("jumps")


def from_the_future(postgres: Postgres, database: str) -> list[tuple[object, ...]]:
    """Events that bear a time more than a minute after the database's."""
    with contextlib.closing(postgres.connect(database)) as store:
        late = "SELECT action, at FROM audit WHERE at > 1000 * (extract(epoch FROM now()) + 60)"
        return list(store.execute(late).fetchall())


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
