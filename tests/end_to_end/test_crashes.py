"""Workers, the supervisor alone, or everything is killed again and again while clients enroll (attack case 56).

Clients of both protocols ask by secret, renew, and compete with two keys for one secret. Whoever is cut off asks again
with the same key and secret. Between kills nobody tidies up: `serve` is started again on the same directory and ports,
and nothing else. Then the store is held against every certificate that ever reached a client.
"""

import contextlib
import json
import os
import random
import socket
import time
import urllib.request
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from cryptography import x509

from ca_core.core import Core
from tests.end_to_end import wire
from tests.end_to_end.fleet import ACTOR, Fleet
from tests.helpers.daemon import eventually
from tests.helpers.ledger import violations
from tests.helpers.mortal import Mortal, is_alive

LONG = os.environ.get("ENROLLD_LONG") == "1"
KILLS = int(os.environ.get("ENROLLD_KILLS", "1000" if LONG else "12"))
SEED = int(os.environ.get("ENROLLD_SEED", "0")) or random.SystemRandom().randrange(2**32)
WORKERS = 2
DECK = ["a worker"] * 5 + ["the supervisor"] * 3 + ["everything"] * 2 + ["a starting supervisor"] * 2  # twelve kills
MOST_ANSWERS_BETWEEN = 12
LONGEST_MOMENT = 0.05  # seconds after an answer at which a kill comes
START_SECONDS = 1.2  # within which a starting supervisor is killed
MOST_LOST = 25  # tries of one client for one certificate
ASKED_AGAIN = 60
REVOKED = 100


class Killer:
    """Kills by chance, and starts again what does not come back by itself."""

    def __init__(self, mortal: Mortal, fleet: Fleet, seed: int) -> None:
        self._mortal = mortal
        self._fleet = fleet
        self._chance = random.Random(seed)
        self.kills: Counter[str] = Counter()
        self.slowest_to_leave = 0.0

    def run(self, count: int) -> None:
        """So many kills, each after clients have had some answers since the one before."""
        deck = [DECK[number % len(DECK)] for number in range(count)]
        self._chance.shuffle(deck)
        for card in deck:
            self._fleet.wait_for_answers(self._chance.randint(1, MOST_ANSWERS_BETWEEN))
            time.sleep(self._chance.uniform(0, LONGEST_MOMENT))  # the moment is chance; nothing is waited for
            self._kill(card)
            self.kills[card] += 1
            if self.kills.total() % 100 == 0:
                print(f"{self.kills.total()} kills; {self._fleet.summary()}", flush=True)

    def _kill(self, card: str) -> None:
        mortal = self._mortal
        if card == "a worker":
            workers = eventually(lambda: sorted(mortal.workers()) or None, what="there is a worker", seconds=60)
            mortal.kill_worker(self._chance.choice(workers))
            return
        left = mortal.kill_supervisor() if card == "the supervisor" else mortal.kill_everything()
        if card == "a starting supervisor":
            mortal.wait_until_gone(left)
            mortal.begin()
            time.sleep(self._chance.uniform(0, START_SECONDS))  # chance again
            left = mortal.kill_supervisor()
        began = time.monotonic()
        if self._chance.random() < 0.5:
            mortal.wait_until_gone(left)
            self.slowest_to_leave = max(self.slowest_to_leave, time.monotonic() - began)
        mortal.start()
        mortal.wait_until_gone(left)


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Mortal]:
    with living(tmp_path_factory.mktemp("mortal")) as made:
        yield made


@pytest.fixture
def mortal(shared: Mortal) -> Mortal:
    """A daemon that serves, whatever the test before did to it."""
    if not is_alive(shared.pid):
        shared.start()
    return shared


@contextlib.contextmanager
def living(folder: Path) -> Iterator[Mortal]:
    made = Mortal(folder, workers=WORKERS)
    try:
        yield made
    finally:
        made.stop()


# Once in some ten thousand connections that are reset in their handshake, Python's ssl forgets to close its socket.
@pytest.mark.filterwarnings("ignore:Exception ignored in. <ssl.SSLSocket:pytest.PytestUnraisableExceptionWarning")
@pytest.mark.timeout(3 * 3600 if LONG else 600)
def test_case_56_however_often_it_is_killed_no_certificate_is_lost_and_no_client_is_stranded(tmp_path: Path) -> None:
    print(f"seed {SEED}")
    with living(tmp_path) as mortal:
        storm(mortal)


def storm(mortal: Mortal) -> None:
    began = time.monotonic()
    fleet = Fleet(mortal.daemon, SEED)
    killer = Killer(mortal, fleet, SEED)
    with fleet.enrolling():
        killer.run(KILLS)
    took = time.monotonic() - began

    won = fleet.ask_again(ASKED_AGAIN)
    assert violations(mortal.store, fleet.enrollments) == []
    assert won > 0, "nobody competed"
    assert not any(one.put_off for one in fleet.enrollments), "who is served is not put off"
    revoke_some(mortal, sorted({der for one in fleet.enrollments for der in one.received}))

    lost = Counter(one.lost for one in fleet.enrollments)
    print(f"{dict(killer.kills)} in {took:.0f} s, {mortal.starts} starts; {fleet.summary()}")
    print(f"tries lost: {dict(sorted(lost.items()))}; workers left within {killer.slowest_to_leave:.1f} s")
    assert killer.kills.total() == KILLS
    assert set(killer.kills) == set(DECK)
    assert max(lost) <= MOST_LOST
    assert sum(count for tries, count in lost.items() if tries) > KILLS / 4, "the kills met nobody"


def revoke_some(mortal: Mortal, certificates: list[bytes]) -> None:
    """What clients hold can be revoked, and the CRLs say so."""
    chosen = random.Random(SEED).sample(certificates, min(REVOKED, len(certificates)))
    serials = {x509.load_der_x509_certificate(der).serial_number for der in chosen}

    async def revoke(core: Core) -> None:
        for serial in serials:
            await core.certificates.revoke(format(serial, "x"), actor=ACTOR)

    mortal.daemon.inspect(revoke)

    def published() -> bool | None:
        revoked = set()
        for issuer in ("default-ec-1", "default-rsa-1"):
            url = f"http://127.0.0.1:{mortal.daemon.http_port}/pki/{issuer}/0.crl"
            with urllib.request.urlopen(url, timeout=10) as answer:
                revoked |= {entry.serial_number for entry in x509.load_der_x509_crl(answer.read())}
        return True if serials <= revoked else None

    eventually(published, what="every revoked certificate is on a CRL", seconds=60)


@contextlib.contextmanager
def at_rest(mortal: Mortal) -> Iterator[None]:
    assert len(mortal.workers()) == WORKERS
    yield


@contextlib.contextmanager
def with_idle_connections(mortal: Mortal, more: bytes = b"") -> Iterator[None]:
    """So many clients that each worker has some, all of which were answered once."""
    tls = wire.context(mortal.daemon.root)
    with contextlib.ExitStack() as stack:
        for _ in range(4 * WORKERS):
            plain = socket.create_connection(("127.0.0.1", mortal.daemon.https_port), timeout=30)
            connection = stack.enter_context(tls.wrap_socket(stack.enter_context(plain), server_hostname="localhost"))
            connection.sendall(b"GET /.well-known/est/cacerts HTTP/1.1\r\nHost: localhost\r\n\r\n")
            assert wire.read_answer(connection).status == 200
            connection.sendall(more)
        yield


@contextlib.contextmanager
def in_the_middle_of_requests(mortal: Mortal) -> Iterator[None]:
    with with_idle_connections(mortal, b"GET /.well-known/est/cace"):
        yield


@contextlib.contextmanager
def while_it_starts(mortal: Mortal) -> Iterator[None]:
    mortal.wait_until_gone(mortal.kill_everything())
    mortal.begin()
    eventually(lambda: True if len(mortal.workers()) == WORKERS else None, what="it has begun to start its workers")
    yield


State = Callable[[Mortal], contextlib.AbstractContextManager[None]]


@pytest.mark.parametrize("state", [at_rest, with_idle_connections, while_it_starts], ids=lambda state: state.__name__)
def test_workers_leave_soon_when_their_supervisor_is_killed_alone(mortal: Mortal, state: State) -> None:
    with state(mortal):
        mortal.wait_until_gone(mortal.kill_supervisor())
        assert mortal.daemon.ask("status")["running"] is False
        for port in (mortal.daemon.https_port, mortal.daemon.http_port):
            with socket.socket() as probe:
                probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                probe.bind(("127.0.0.1", port))


@pytest.mark.parametrize(
    "state",
    [at_rest, with_idle_connections, in_the_middle_of_requests, while_it_starts],
    ids=lambda state: state.__name__,
)
def test_serve_started_right_after_its_supervisor_was_killed_alone_serves(mortal: Mortal, state: State) -> None:
    with state(mortal):
        before = mortal.pid
        left = mortal.kill_supervisor()
        mortal.start()
        assert mortal.daemon.ask("status")["serve"]["pid"] == mortal.pid != before
    mortal.wait_until_gone(left)


def test_serve_starts_on_what_is_left_when_everything_was_killed(mortal: Mortal) -> None:
    before = mortal.pid
    mortal.wait_until_gone(mortal.kill_everything())
    run = mortal.directory / "run"
    assert json.loads((run / "serve.json").read_text())["pid"] == before
    assert (run / "lock").read_text() == f"{before}\n"
    assert mortal.store.with_name("enrolld.db-wal").stat().st_size > 0
    mortal.start()
    assert mortal.daemon.ask("status")["serve"]["pid"] == mortal.pid


def test_a_process_that_stays_is_found_out(mortal: Mortal) -> None:
    """The twin: a worker whose supervisor lives does not leave."""
    with pytest.raises(AssertionError, match="have left"):
        mortal.wait_until_gone(mortal.workers(), seconds=0.3)
