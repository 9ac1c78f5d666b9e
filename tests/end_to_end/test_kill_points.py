"""A worker is killed at every system call by which an enrollment leaves a trace, in turn (attack case 56).

strace counts the calls of one thread and kills at the entry of the n-th, which is then not made, for n = 1, 2, ...
until an enrollment has no n-th. So each kill stands between two calls; the one behind the last is made otherwise. Every
time the client asks again with the same key and secret. Answers leave by `write`: uvloop makes no `sendto`, and a test
holds that no call is made that is not in the table.
"""

import contextlib
import os
import signal
import sqlite3
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric import ec, rsa

from ca_core.core import Core
from ca_core.rows import HandedSecret
from tests.end_to_end import clients, scep_wire
from tests.end_to_end.retrying import Est, Scep, Wanted, ask_once, ask_until_answered
from tests.helpers.daemon import eventually
from tests.helpers.kill_points import LOOP, WRITER, Call, Place, attachable, attached, fresh_worker
from tests.helpers.ledger import Enrollment, read_store, violations
from tests.helpers.mortal import Mortal

pytestmark = pytest.mark.foreign

EST, SCEP = "est", "scep"
KILLS_IN_A_ROW = 3  # the supervisor doubles its pause after each; a new process in the place begins with the shortest
TRIES = 5  # how often a chore of the worker may come between
FRAMES = 1100  # when its log has 1000 pages, SQLite copies it into the database

# By thread and name: how many an enrollment makes at least.
CALLS = [
    pytest.param(LOOP, "write", {EST: 4, SCEP: 2}, id="answers"),  # the handshake's two, a line in the log, the answer
    pytest.param(WRITER, "flock", {EST: 2, SCEP: 2}, id="lock"),
    pytest.param(WRITER, "pwrite64", {EST: 24, SCEP: 24}, id="log"),
    pytest.param(WRITER, "fdatasync", {EST: 1, SCEP: 1}, id="sync"),
    pytest.param(WRITER, "write", {EST: 1, SCEP: 1}, id="wakes-the-loop"),
]


class Victim:
    """A daemon whose one worker is killed again and again, and a client of one protocol."""

    def __init__(self, folder: Path, protocol: str) -> None:
        self.protocol = protocol
        self.mortal = Mortal(folder, workers=1, wrapper=attachable())
        self.enrollments: list[Enrollment] = []
        self._traces = (folder / f"trace-{number}" for number in range(10_000))
        self._kills = 0
        daemon = self.mortal.daemon
        self._est = Est(daemon.https_port, daemon.root)
        self._scep = Scep(daemon.http_port, scep_wire.ra_of(daemon.http_port))
        self._rsa_key = rsa.generate_private_key(65537, 2048)
        self._operator(lambda core: core.devices.add("default", SCEP, actor="test"))

    def wanted(self) -> Wanted:
        """Another certificate, by a secret that nobody has used."""
        if self.protocol == EST:
            name = f"device-{len(self.enrollments)}"
            secret = self._operator(lambda core: core.devices.add("default", name, actor="test")).secret
            wanted = self._est.by_secret(ec.generate_private_key(ec.SECP256R1()), name, secret)
        else:  # RSA keys take long to make, so this is one device with a new secret each time
            secret = self._operator(lambda core: core.devices.secret("default", SCEP, actor="test")).secret
            wanted = self._scep.by_secret(self._rsa_key, SCEP, secret)
        self.enrollments.append(wanted.enrollment)
        return wanted

    def worker(self) -> Place:
        """A worker in a place whose pause is short."""
        if self._kills >= KILLS_IN_A_ROW:
            self._kills = 0
            before = self._count("SIGUSR2: every worker is a new process")
            os.kill(self.mortal.pid, signal.SIGUSR2)
            eventually(
                lambda: self._count("SIGUSR2: every worker is a new process") > before or None,
                what="the worker is replaced",
                seconds=60,
            )
        return fresh_worker(self.mortal)

    def trace(self) -> Path:
        """A file for strace to write."""
        return next(self._traces)

    def calls_of_one_enrollment(self) -> list[Call]:
        """What a worker does, from the connection to the answer, when it is left in peace."""
        for _ in range(TRIES):
            copy_the_log(self.mortal.store)
            wanted = self.wanted()
            with attached(self.worker(), None, self.trace()) as strace:
                assert ask_once(wanted)
                calls = eventually(lambda: up_to_the_answer(strace.calls()), what="strace has seen the answer")
            if is_undisturbed(calls):
                return calls
        raise AssertionError("a chore came between each time")

    def kill(self, role: str, call: str, number: int, *, stored: bool, copying: bool = False) -> bool:
        """Kill at the entry of this call of an enrollment. False when it was answered before it made so many.

        Then what must be: the record is in the store or not, as said, and the next try is answered with it. With
        `copying` the enrollment copies the log into the database, and only calls on that file are counted.
        """
        store = self.mortal.store
        for _ in range(TRIES):
            copy_the_log(store)
            wanted, place = self.wanted(), self.worker()
            content: list[str] = []
            if copying:
                lengthen_the_log(store)
                content = content_of(store)
            inject = f"{call}:signal=KILL:when={number}"
            with attached(place, role, self.trace(), inject=inject, only=store if copying else None) as strace:
                if ask_once(wanted):
                    return False
                assert strace.wait_for_the_kill(), f"the answer to {call} {number} was lost, and nobody was killed"
            calls = strace.calls()
            assert [one.name for one in calls].count(call) == number
            if copying:
                # Calls on that file do not tell whose transaction it was, but a chore's leaves its rows behind.
                sound = bool(self.stored(wanted.enrollment)) or content_of(store) == content
            else:
                sound = is_undisturbed(calls)
            self.was_killed(wanted, stored=stored if sound else None, when=f"{role} {call} {number}")
            if sound:
                return True
        raise AssertionError("a chore came between each time")

    def was_killed(self, wanted: Wanted, *, stored: bool | None, when: str) -> None:
        """After a kill: what the store has, and that the client gets its certificate with the next try."""
        self._kills += 1
        enrollment = wanted.enrollment
        before, lost = self.stored(enrollment), enrollment.lost
        ask_until_answered(wanted)
        if stored is not None:
            assert len(before) == stored, f"killed at {when}: {len(before)} certificates in the store"
        # The supervisor keeps the socket, so that the next try waits in its queue for the next worker.
        assert (enrollment.lost, enrollment.not_heard, enrollment.strange) == (lost, 0, []), when
        assert len(set(enrollment.received)) == 1, when
        assert not before or before == enrollment.received[:1], f"{when}: one was stored, and another one came"

    def stored(self, enrollment: Enrollment) -> list[bytes]:
        """The certificates that the store has for a secret."""
        query = "SELECT c.der FROM device_secret s JOIN certificate c ON c.id = s.certificate_id WHERE s.selector = ?"
        with read_store(self.mortal.store) as connection:
            return [row[0] for row in connection.execute(query, (enrollment.selector,))]

    def _count(self, sentence: str) -> int:
        return self.mortal.output.read_text(errors="replace").count(sentence)

    def _operator(self, act: Callable[[Core], Awaitable[HandedSecret]]) -> HandedSecret:
        return self.mortal.daemon.inspect(act)


def is_undisturbed(calls: list[Call]) -> bool:
    """Whether they are of one transaction from its beginning, and of one connection: no chore, no earlier client.

    And nothing but the transaction is synced; a log that begins anew has a head (32 bytes) that is synced first.
    """
    by_writer = [one.name == "flock" and "LOCK_EX" in one.arguments for one in calls if one.role == WRITER]
    connections = {one.arguments.partition("<TCP:")[2].partition(">,")[0] for one in calls if "<TCP:" in one.arguments}
    begins_a_log = any(", 32, 0)" in one.arguments for one in calls if one.name == "pwrite64")
    return sum(by_writer[:1]) == sum(by_writer) == bool(by_writer) and len(connections) <= 1 and not begins_a_log


def up_to_the_answer(calls: list[Call]) -> list[Call] | None:
    """The calls as far as the first that sends something to the client after the record was synced."""
    syncs = [place for place, one in enumerate(calls) if one.name == "fdatasync"]
    for place, one in enumerate(calls):
        if syncs and place > syncs[0] and one.role == LOOP and "<TCP:" in one.arguments:
            return calls[: place + 1]
    return None


@pytest.fixture(scope="module", params=[EST, SCEP])
def victim(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Victim]:
    clients.needs("strace")
    made = Victim(tmp_path_factory.mktemp("victim"), request.param)
    try:
        yield made
    finally:
        made.mortal.stop()
    assert violations(made.mortal.store, made.enrollments) == []


def test_every_call_of_an_enrollment_is_one_at_which_it_is_killed(victim: Victim) -> None:
    calls = victim.calls_of_one_enrollment()
    assert {(one.role, one.name) for one in calls} == {one.values[:2] for one in CALLS}


@pytest.mark.parametrize(("role", "call", "at_least"), CALLS)
def test_killed_at_any_call_a_client_that_asks_again_gets_the_one_certificate(
    victim: Victim, role: str, call: str, at_least: dict[str, int]
) -> None:
    names = [(one.role, one.name) for one in victim.calls_of_one_enrollment()]
    last_page = max(place for place, name in enumerate(names) if name == (WRITER, "pwrite64"))
    places = [place for place, name in enumerate(names) if name == (role, call)]
    is_stored = [call != "pwrite64" and place > last_page for place in places]
    # How many pages a transaction writes differs, but never is a record there without the last of them.
    kills = 0
    while victim.kill(role, call, kills + 1, stored=is_stored[min(kills, len(places) - 1)]):
        kills += 1
    print(f"{victim.protocol}: killed at each of {kills} {call} of the {role}")
    assert kills >= at_least[victim.protocol]


def test_killed_right_behind_the_answer_the_client_holds_what_is_in_the_store(victim: Victim) -> None:
    answer = sum(1 for one in victim.calls_of_one_enrollment() if (one.role, one.name) == (LOOP, "write"))
    wanted = victim.wanted()
    place = victim.worker()
    with attached(place, LOOP, victim.trace(), inject=f"write:delay_exit=2000000:when={answer}") as strace:
        assert ask_once(wanted)
        victim.mortal.kill_worker(place.pid)  # it stands behind its write, and does nothing more
        assert strace.wait_for_the_kill()
    assert [one.name for one in strace.calls()].count("write") == answer
    victim.was_killed(wanted, stored=True, when="the answer's end")


@pytest.mark.parametrize(
    ("call", "numbers"),
    [pytest.param("pwrite64", (1, 2, 4, 8), id="pages"), pytest.param("fdatasync", (1,), id="sync")],
)
def test_killed_while_the_log_is_copied_into_the_database_nothing_is_lost(
    victim: Victim, call: str, numbers: tuple[int, ...]
) -> None:
    for number in numbers:
        tries = (victim.kill(WRITER, call, number, stored=True, copying=True) for _ in range(TRIES))
        assert any(tries), f"no enrollment made {number} {call} on the database"  # or a chore has copied it


def lengthen_the_log(store: Path) -> None:
    """Write a row over and over with what it holds, so that the next commit of anybody copies the log."""
    with contextlib.closing(sqlite3.connect(store, isolation_level=None, timeout=60)) as connection:
        connection.execute("PRAGMA wal_autocheckpoint=0")
        connection.execute("PRAGMA synchronous=OFF")
        for _ in range(FRAMES):
            connection.execute("UPDATE realm SET name = name")


def content_of(store: Path) -> list[str]:
    """All rows of all tables."""
    with read_store(store) as connection:
        return list(connection.iterdump())


def copy_the_log(store: Path) -> None:
    """Have what is in the log in the database, so that no enrollment of the next few does it."""
    with contextlib.closing(sqlite3.connect(store, isolation_level=None, timeout=60)) as connection:
        connection.execute("PRAGMA wal_checkpoint(PASSIVE)")


def test_a_kill_that_does_not_happen_is_found_out(victim: Victim) -> None:
    """The twin: nobody is killed at a call that no enrollment makes."""
    assert not victim.kill(WRITER, "fdatasync", 100, stored=True)
    with pytest.raises(AssertionError, match="0 certificates in the store"):
        victim.kill(WRITER, "pwrite64", 1, stored=True)
