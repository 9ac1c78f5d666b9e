"""Nodes are killed and their clocks set, PostgreSQL is restarted, killed, cut off and its disk filled; clients go on.

Clients of both protocols enroll, renew and compete for secrets through the balancer, and who is cut off or put off asks
again with the same key and secret. What a service manager does is done, and no more: what ended is started again.
Afterwards the store is held against every certificate that ever reached a client.
"""

import contextlib
import os
import random
import signal
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric import ec, rsa

from tests.end_to_end import scep_wire
from tests.end_to_end.fleet import Fleet
from tests.end_to_end.retrying import Est, Scep, ask_until_answered
from tests.end_to_end.test_crashes import revoke_some
from tests.helpers.daemon import eventually, run_enrolld
from tests.helpers.disks import SmallDisk
from tests.helpers.ledger import Enrollment, violations
from tests.helpers.mortal import is_alive
from tests.helpers.nodes import Node, Nodes, running_nodes
from tests.helpers.postgres import Postgres, postgres_on_small_disk

pytestmark = pytest.mark.foreign

LONG = os.environ.get("ENROLLD_LONG") == "1"
SEED = int(os.environ.get("ENROLLD_SEED", "0")) or random.SystemRandom().randrange(2**32)
DISK = 512 << 20
WORKERS = 2
PATIENCE = 240.0  # of a client, for one certificate
ANSWERS = 6  # that clients have, at most, between one act and the next
LONGEST_MOMENT = 0.2
DAY = 86_400
ASKED_AGAIN = 60
RECOVERED_SECONDS = 90.0
STARTS = 10


class Chaos:
    """The acts, each of which ends when what it broke is whole again, or has been started again."""

    def __init__(self, nodes: Nodes, postgres: Postgres, disk: SmallDisk, seed: int) -> None:
        self._nodes = nodes
        self._postgres = postgres
        self._disk = disk
        self._chance = random.Random(seed)
        self.done: Counter[str] = Counter()
        self.kills = 0
        self.started_again = 0
        self.slowest_recovery = 0.0
        self.acts: dict[str, Callable[[], None]] = {
            "a worker is killed": self._kill_worker,
            "a supervisor is killed": self._kill_supervisor,
            "a node is killed": self._kill_node,
            "both nodes are killed": self._kill_both,
            "a node is frozen": self._freeze,
            "postgres is restarted": self._postgres_restarts,
            "postgres is killed": self._postgres_dies,
            "postgres is frozen": self._freeze_postgres,
            "connections are cut": self._cut,
            "the disk is full": self._fill,
            "a clock is set forward": lambda: self._set_clock(1),
            "a clock is set back": lambda: self._set_clock(-1),
            "a node is killed while postgres is away": self._kill_without_store,
        }

    def run(self, count: int, wait_for_answers: Callable[[int], None]) -> None:
        """So many acts, in an order of chance, all kinds as often; clients have answers between any two."""
        names = list(self.acts)
        deck = [names[number % len(names)] for number in range(count)]
        self._chance.shuffle(deck)
        for name in deck:
            began = time.monotonic()
            wait_for_answers(self._chance.randint(1, ANSWERS))
            self.slowest_recovery = max(self.slowest_recovery, time.monotonic() - began)
            time.sleep(self._chance.uniform(0, LONGEST_MOMENT))  # the moment is chance; nothing is waited for
            self.acts[name]()
            self.done[name] += 1
            print(f"{self.done.total()}: {name}, {time.monotonic() - began:.1f} s", flush=True)

    def _some_node(self) -> Node:
        return self._chance.choice(list(self._nodes))

    def _start(self, node: Node) -> None:
        """Start a node as its systemd unit does: once more after a second, when workers left behind have its port."""
        for _ in range(STARTS - 1):
            try:
                return node.start()
            except AssertionError as exc:
                if "another program listens" not in str(exc):
                    raise
                self.started_again += 1
                time.sleep(1)
        return node.start()

    def _kill_worker(self) -> None:
        node = self._some_node()
        workers = eventually(lambda: sorted(node.workers()) or None, what="there is a worker", seconds=60)
        node.kill_worker(self._chance.choice(workers))
        self.kills += 1

    def _kill_supervisor(self) -> None:
        node = self._some_node()
        left = node.kill_supervisor()
        self.kills += 1
        self._start(node)
        node.wait_until_gone(left, seconds=60)

    def _kill_node(self) -> None:
        node = self._some_node()
        node.kill_everything()
        self.kills += 1
        self._start(node)

    def _kill_both(self) -> None:
        for node in self._nodes:
            node.kill_everything()
            self.kills += 1
        for node in self._nodes:
            node.begin()
        for node in self._nodes:
            node.wait_until_started()

    def _freeze(self) -> None:
        """As a machine that is paused: what it holds in the database, it goes on holding."""
        node = self._some_node()
        frozen = [node.pid, *node.workers()]
        for pid in frozen:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGSTOP)
        time.sleep(self._how_long())
        for pid in frozen:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGCONT)

    def _freeze_postgres(self) -> None:
        with self._postgres.frozen():
            time.sleep(self._how_long())

    def _how_long(self) -> float:
        """Seconds of being frozen: now and then longer than anybody waits for an answer."""
        return self._chance.uniform(20, 40) if LONG and self._chance.random() < 0.2 else self._chance.uniform(0.5, 3)

    def _postgres_restarts(self) -> None:
        self._postgres.restart("immediate")

    def _postgres_dies(self) -> None:
        self._postgres.kill()
        self.kills += 1
        time.sleep(self._chance.uniform(0, 1))
        self._postgres.start()

    def _cut(self) -> None:
        for _ in range(self._chance.randint(1, 4)):
            self._postgres.cut_connections(DATABASE)
            time.sleep(self._chance.uniform(0, 0.2))

    def _fill(self) -> None:
        full = self._said_full()
        self._disk.leave(0)
        try:
            eventually(lambda: self._said_full() > full or None, what="PostgreSQL has met the end of its disk")
            time.sleep(self._chance.uniform(0, 2))
        finally:
            self._disk.leave(DISK // 2)
            self._revive()

    def _said_full(self) -> int:
        return self._postgres.log.read_text(errors="replace").count("No space left on device")

    def _revive(self) -> None:
        """PostgreSQL ends when it can't write its log; it is started again, as its service would be."""

        def up() -> bool | None:
            if not is_alive(self._postgres.pid):
                self._postgres.start()
            return self._postgres.is_up() or None

        eventually(up, what="PostgreSQL is there again", seconds=60)

    def _set_clock(self, direction: int) -> None:
        node = self._some_node()
        assert node.clock is not None
        node.clock.set(direction * self._chance.choice([90, 3600, DAY, 400 * DAY]))
        try:
            assert "clock" in " ".join(node.wait_until_not_ready(seconds=60))
        finally:
            node.clock.set(0)

    def _kill_without_store(self) -> None:
        node = self._some_node()
        self._postgres.stop("immediate")
        node.kill_everything()
        self.kills += 1
        time.sleep(self._chance.uniform(0, 1))
        self._postgres.start()
        self._start(node)


DATABASE = "chaos"
KINDS = 13
ACTS = int(os.environ.get("ENROLLD_KILLS", "600" if LONG else str(KINDS)))


@contextlib.contextmanager
def everything(folder: Path) -> Iterator[tuple[Nodes, Postgres, SmallDisk]]:
    """Two nodes with clocks of their own, on a PostgreSQL that keeps what it committed, on a disk that can be full."""
    with (
        postgres_on_small_disk(DISK, settings={"wal_recycle": "off"}) as (postgres, disk),
        running_nodes(folder, postgres.create(DATABASE), workers=WORKERS, clocks=True) as nodes,
    ):
        yield nodes, postgres, disk


# Once in some ten thousand connections that are reset in their handshake, Python's ssl forgets to close its socket.
@pytest.mark.filterwarnings("ignore:Exception ignored in. <ssl.SSLSocket:pytest.PytestUnraisableExceptionWarning")
@pytest.mark.timeout(3 * 3600 if LONG else 900)
def test_whatever_fails_no_certificate_is_lost_no_secret_serves_twice_and_it_serves_again_by_itself(
    tmp_path: Path,
) -> None:
    print(f"seed {SEED}")
    with everything(tmp_path) as (nodes, postgres, disk):
        began = time.monotonic()
        fleet = Fleet(nodes.daemon, SEED, patience=PATIENCE)
        chaos = Chaos(nodes, postgres, disk, SEED)
        with fleet.enrolling():
            chaos.run(ACTS, fleet.wait_for_answers)
        took = time.monotonic() - began

        serves_again(nodes)
        won = fleet.ask_again(ASKED_AGAIN)
        found = violations(nodes.store_url, fleet.enrollments)
        assert found == [], "\n".join(why(nodes, found))
        the_trail_verifies(nodes)
        the_indexes_are_sound(postgres)
        assert won > 0, "nobody competed"
        held = {der for one in fleet.enrollments for der in one.received}
        revoke_some(nodes.members[0], sorted(held))
        for node in nodes:
            assert postgres.password not in node.log()

        print(
            f"{dict(chaos.done)} in {took:.0f} s, {chaos.kills} kills, {sum(n.starts for n in nodes)} starts of nodes"
        )
        print(f"{fleet.summary()}; slowest to answer after an act {chaos.slowest_recovery:.1f} s")
        lost, put_off = sum(one.lost for one in fleet.enrollments), sum(one.put_off for one in fleet.enrollments)
        print(f"tries lost: {lost}, put off: {put_off}, not heard: {sum(one.not_heard for one in fleet.enrollments)}")
        assert chaos.done.total() == ACTS >= KINDS
        assert set(chaos.done) == set(chaos.acts)
        assert chaos.kills >= ACTS // 3, "too few were killed"
        assert len(held) >= 3 * ACTS, "too few were enrolled"
        assert lost + put_off >= ACTS // 3, "the acts met nobody"


def why(nodes: Nodes, found: list[str]) -> Iterator[str]:
    """What the store says of the devices that something is wrong with, for whoever reads the failure."""
    for device in {sentence.split()[0] for sentence in found}:
        done = run_enrolld(nodes.members[0].directory, "device", "why", device)
        yield done.stdout.decode() or done.stderr.decode()


def serves_again(nodes: Nodes) -> None:
    """Both nodes are ready, the balancer knows it, and each issues by both protocols to new devices."""
    assert nodes.balancer is not None
    for node in nodes:
        node.wait_until_ready(seconds=RECOVERED_SECONDS)
    nodes.balancer.wait_until_ready("node-1", "node-2")
    names = [f"afterwards-{number}" for number in range(2 * len(nodes.members))]
    added = [nodes.daemon.ask("device", "add", name) for name in names]
    for node, by_est, by_scep in zip(nodes, added[::2], added[1::2], strict=True):
        daemon = node.daemon
        key = ec.generate_private_key(ec.SECP256R1())
        wanted = Est(daemon.https_port, daemon.root).by_secret(key, by_est["device"], by_est["secret"])
        assert_served(ask_until_answered(wanted, patience=30))
        rsa_key = rsa.generate_private_key(65537, 2048)
        scep = Scep(daemon.http_port, scep_wire.ra_of(daemon.http_port))
        assert_served(ask_until_answered(scep.by_secret(rsa_key, by_scep["device"], by_scep["secret"]), patience=30))


def assert_served(one: Enrollment) -> None:
    assert len(one.received) == 1, one


def the_trail_verifies(nodes: Nodes) -> None:
    done = run_enrolld(nodes.members[0].directory, "audit", "verify", "--json")
    assert done.returncode == 0, done.stdout.decode() + done.stderr.decode()


def the_indexes_are_sound(postgres: Postgres) -> None:
    """Each index has every row of its table, as PostgreSQL's own check sees it."""
    postgres.psql("CREATE EXTENSION IF NOT EXISTS amcheck", database=DATABASE)
    checked = postgres.psql(
        "SELECT count(bt_index_check(c.oid, true)::text) FROM pg_class c JOIN pg_am m ON m.oid = c.relam"
        " WHERE c.relkind = 'i' AND m.amname = 'btree' AND c.relnamespace = 'public'::regnamespace",
        database=DATABASE,
    )
    assert checked[0][0] > 20
