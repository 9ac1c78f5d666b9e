"""PostgreSQL as a store: what several writers may do at once, and what a lost connection may and may not undo."""

import asyncio
import contextlib
import datetime as dt
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from cryptography import x509
from sqlalchemy import bindparam, func, select

from ca_core.core import Core
from ca_core.csr import ParsedCsr
from ca_core.errors import ConstraintFailed, OperatorError, Unavailable
from ca_core.model import Clock, Evidence
from ca_core.records import postgres_database, postgres_link, postgres_watch, postgres_writer, queue, times
from ca_core.records.audit import AuditEvent
from ca_core.records.leases import Leases
from ca_core.records.opening import create_store, open_store, shown, upgrade_store
from ca_core.records.query import Query, Values, insert_into
from ca_core.records.queue import BATCH, Job
from ca_core.records.schema import audit, realm, writer
from ca_core.records.store import Hook, Store
from ca_core.records.unit import Guard, Unit
from tests.end_to_end.clients import needs
from tests.helpers.cable import Cable, laid_cable
from tests.helpers.core import ME, Installation, ask, code_of, csr_of, edit_realm, enrolled, new_key
from tests.helpers.kept import load
from tests.helpers.postgres import Postgres

_ADD = Query(insert_into(realm).returning(realm.c.id))
_NAMES = Query(select(realm.c.name).order_by(realm.c.name))
_FIND = Query(select(realm.c.id).where(realm.c.name == bindparam("name")))
_EVENTS = Query(select(audit.c.action, audit.c.writer, audit.c.sequence).order_by(audit.c.action))
_WRITERS = Query(select(func.count()).select_from(writer))


def row(name: str) -> Values:
    return {"name": name, "state": "active", "version": 1, "created_at": 1}


def add(name: str, *touches: str, event: bool = True) -> Unit:
    """A unit that touches what it says; nothing said: it runs alone."""
    events = (AuditEvent(f"added.{name}", "t"),) if event else ()
    return Unit(Guard(_ADD, row(name)), 1, (), events, frozenset(touches) if touches else None)


@pytest.fixture
def url(database: str) -> str:
    create_store(database)
    return database


@pytest.fixture
def store(url: str) -> Iterator[Store]:
    with opened(url) as found:
        yield found


@contextlib.contextmanager
def opened(url: str, hook: Hook | None = None, clock: Clock | None = None) -> Iterator[Store]:
    found = open_store(url, process="test", version="1", hook=hook, clock=clock)
    try:
        yield found
    finally:
        found.close()


async def names(store: Store) -> list[str]:
    return [name for (name,) in await store.fetch(_NAMES)]


async def actions(store: Store) -> list[str]:
    return [action for action, _, _ in await store.fetch(_EVENTS)]


class Held:
    """A hook that holds a writer at a step, until it is let go."""

    def __init__(self, step: str) -> None:
        self._step = step
        self.reached, self._go_on = threading.Event(), threading.Event()

    def __call__(self, step: str) -> None:
        if step == self._step:
            self.reached.set()
            assert self._go_on.wait(20)

    def let_go(self) -> None:
        self._go_on.set()

    def hold(self) -> None:
        """From now on, again."""
        self._go_on.clear()
        self.reached.clear()


# --- who may write at the same time ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("first", "second", "is_held_up"),
    [
        pytest.param(("device:1",), ("device:2",), False, id="two-devices"),
        pytest.param(("device:1",), ("device:1",), True, id="one-device"),
        pytest.param(("device:1", "key:a"), ("device:2", "key:a"), True, id="one-key-of-two-devices"),
        pytest.param(("device:1",), (), True, id="one-that-may-touch-anything-after-one-that-says-what"),
        pytest.param((), ("device:1",), True, id="one-that-says-what-after-one-that-may-touch-anything"),
        pytest.param((), (), True, id="two-that-may-touch-anything"),
    ],
)
async def test_units_of_two_nodes_run_at_the_same_time_when_they_touch_nothing_in_common(
    url: str, first: tuple[str, ...], second: tuple[str, ...], is_held_up: bool
) -> None:
    held = Held("commit")
    with opened(url, held) as one, opened(url) as two:
        slow = asyncio.ensure_future(one.commit(add("slow", *first)))
        assert await asyncio.to_thread(held.reached.wait, 20)
        quick = asyncio.ensure_future(two.commit(add("quick", *second)))
        done, _ = await asyncio.wait({quick}, timeout=1.0 if is_held_up else 20.0)
        assert bool(done) is not is_held_up
        held.let_go()
        await asyncio.gather(slow, quick)
        assert await names(two) == ["quick", "slow"]


async def test_one_store_makes_a_batch_while_another_waits_for_the_disk(url: str) -> None:
    committing: list[threading.Event] = [threading.Event(), threading.Event()]

    def hook(step: str) -> None:
        if step == "commit":
            # Neither commits before both want to.
            next(event for event in committing if not event.is_set()).set()
            assert committing[1].wait(20)

    with opened(url, hook) as store:
        first = asyncio.ensure_future(store.commit(add("a", "device:1")))
        assert await asyncio.to_thread(committing[0].wait, 20)
        await asyncio.gather(first, store.commit(add("b", "device:2")))
        assert len({name for _, name, _ in await store.fetch(_EVENTS)}) == 2, "each writer has a chain of its own"


@pytest.mark.parametrize(
    ("in_flight", "waiting", "chosen"),
    [
        pytest.param([], ["a", "b", "c"], [0, 1, 2], id="all-that-touch-nothing-in-common"),
        pytest.param([], ["a", "a", "b"], [0, 2], id="one-that-has-to-wait-holds-up-nobody-else"),
        pytest.param([], ["ab", "bc", "d"], [0, 2], id="overlaps"),
        pytest.param([], ["ab", "bc", "cd"], [0], id="nothing-overtakes-what-it-touches-in-common"),
        pytest.param([], ["a", "", "b"], [0], id="nothing-overtakes-one-that-runs-alone"),
        pytest.param([], ["", "", "a"], [0, 1], id="those-that-run-alone-one-after-another"),
        pytest.param(["a"], ["a", "b"], [1], id="beside-what-another-writer-writes"),
        pytest.param(["a"], ["", "b"], [], id="one-that-runs-alone-waits-for-the-other-writer"),
        pytest.param([""], ["b"], [], id="and-the-others-wait-for-it"),
    ],
)
def test_a_batch_is_what_can_run_now_and_waits_longest(
    in_flight: list[str], waiting: list[str], chosen: list[int]
) -> None:
    writing = [Job(add("written", *touched), None) for touched in in_flight]
    jobs = [Job(add(str(number), *touched), None) for number, touched in enumerate(waiting)]
    waiting_jobs = deque(jobs)
    assert queue.disjoint(waiting_jobs, writing) == [jobs[number] for number in chosen]
    assert list(waiting_jobs) == [job for number, job in enumerate(jobs) if number not in chosen]


def test_a_batch_has_a_bounded_size() -> None:
    waiting = deque(Job(add(f"r{number}", f"device:{number}"), None) for number in range(BATCH + 10))
    assert len(queue.disjoint(waiting, [])) == BATCH
    assert [job.unit.guard.params["name"] for job in waiting] == [f"r{BATCH + number}" for number in range(10)]


# --- lost connections ------------------------------------------------------------------------------------------------


@pytest.fixture
def cable(postgres: Postgres) -> Iterator[Cable]:
    with laid_cable(postgres.port) as laid:
        yield laid


def through(cable: Cable, postgres: Postgres, url: str) -> str:
    return url.replace(f":{postgres.port}/", f":{cable.port}/") + "?sslmode=disable&gssencmode=disable"


@pytest.mark.parametrize("touches", [("device:1",), ()], ids=["beside-others", "alone"])
@pytest.mark.parametrize("how", ["message lost", "answer lost", "message late"])
async def test_a_commit_whose_answer_is_lost_is_looked_up_and_happens_once(
    postgres: Postgres, cable: Cable, url: str, how: str, touches: tuple[str, ...]
) -> None:
    with opened(through(cable, postgres, url)) as store:
        await store.commit(add("before", "device:1"))
        cable.cut = how  # type: ignore[assignment]  # of the table above
        committing = asyncio.ensure_future(store.commit(add("one", *touches)))
        assert await asyncio.to_thread(cable.has_cut.wait, 20)
        if how == "message late":
            done, _ = await asyncio.wait({committing}, timeout=1.0)
            assert not done, "what became of it is not decided while its transaction lives"
            cable.release()
        guard_id = await committing
        assert cable.cuts == 1
        assert (await store.first(_FIND, name="one")) == (guard_id,)
        await store.commit(add("after", "device:1"))
        assert await actions(store) == ["added.after", "added.before", "added.one"]
        assert await store.fetch(_WRITERS) in ([(1,)], [(2,)])


@pytest.mark.parametrize("engine", ["postgresql"], indirect=True)
async def test_a_secret_whose_commit_got_no_answer_serves_one_certificate(
    postgres: Postgres, cable: Cable, installation: Installation
) -> None:
    """Signed once: what is answered is the certificate that stands in the store."""
    core = Core.open(replace(installation.config(), store_url=through(cable, postgres, installation.store_url)))
    try:
        handed = await core.devices.add("default", "d-1", actor=ME)
        cable.cut = "answer lost"
        issued = await ask(core, Evidence(username="", secret=handed.secret), csr_of(new_key(), "d-1"))
        assert cable.cuts == 1
        assert installation.sql("SELECT der FROM certificate WHERE kind = 'device'") == [(issued.certificate,)]
        assert len(installation.events("certificate.issued")) == 1
        assert (await core.audit.verify()).findings == []
    finally:
        core.close()


@pytest.mark.parametrize("step", ["lock", "guard", "commit"])
async def test_a_connection_that_is_cut_before_the_commit_costs_time_alone(
    postgres: Postgres, url: str, step: str
) -> None:
    cut: list[int] = []
    name = url.rpartition("/")[2]

    def hook(at: str) -> None:
        if at == step and not cut:
            cut.append(postgres.cut_connections(name))

    with opened(url, hook) as store:
        await store.fetch(_NAMES)
        await asyncio.gather(*(store.commit(add(f"r{number}", f"device:{number}")) for number in range(5)))
        assert sum(cut) >= 1
        assert await names(store) == [f"r{number}" for number in range(5)]
        assert len(await actions(store)) == 5


async def test_what_reads_does_not_notice_that_the_server_was_restarted(postgres: Postgres, store: Store) -> None:
    assert await names(store) == []
    postgres.restart("fast")
    assert await names(store) == []
    await store.commit(add("one"))
    assert await names(store) == ["one"]


async def test_without_its_database_a_store_refuses_and_comes_back_by_itself(
    postgres: Postgres, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(postgres_writer, "_PATIENCE", 0.5)
    await store.commit(add("one", "device:1"))
    postgres.stop("immediate")
    try:
        with pytest.raises(Unavailable, match="can't be used"):
            await store.commit(add("two", "device:1"))
        with pytest.raises(Unavailable, match="can't be used"):
            await store.fetch(_NAMES)
    finally:
        postgres.start()
    await store.commit(add("three", "device:1"))
    assert await names(store) == ["one", "three"]
    assert await actions(store) == ["added.one", "added.three"]


# --- what the database refuses ---------------------------------------------------------------------------------------


def _fail(postgres: Postgres, url: str, state: str, times: int) -> Callable[[], int]:
    """The next inserts into `realm` fail with that SQLSTATE, so often. Returns how often one was tried."""
    name = url.rpartition("/")[2]
    fail = f"RAISE EXCEPTION 'on purpose' USING ERRCODE = '{state}'"
    body = f"IF nextval('tries') <= {times} THEN {fail}; END IF; RETURN NEW;"
    postgres.psql("CREATE SEQUENCE tries; GRANT ALL ON tries TO public", database=name)
    postgres.psql(f"CREATE FUNCTION fail() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN {body} END $$", database=name)
    postgres.psql("CREATE TRIGGER fail BEFORE INSERT ON realm FOR EACH ROW EXECUTE FUNCTION fail()", database=name)
    return lambda: int(postgres.psql("SELECT last_value FROM tries", database=name)[0][0])


@pytest.mark.parametrize("state", ["40001", "40P01"])
async def test_a_transaction_that_gave_way_to_another_is_run_again(postgres: Postgres, url: str, state: str) -> None:
    tried = _fail(postgres, url, state, 3)
    with opened(url) as store:
        await store.commit(add("one"))
        assert await actions(store) == ["added.one"]
    assert tried() == 4


async def test_one_that_always_has_to_give_way_is_given_up(
    postgres: Postgres, url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(postgres_writer, "_CONFLICTS", 3)
    tried = _fail(postgres, url, "40001", 1000)
    with opened(url) as store, pytest.raises(Unavailable, match="on purpose"):
        await store.commit(add("one"))
    assert tried() == 4


async def test_case_58_a_database_without_room_stops_issuing_and_goes_on_by_itself(
    postgres: Postgres, url: str
) -> None:
    _fail(postgres, url, "53100", 1)
    with opened(url) as store:
        assert store.shortage() is None
        with pytest.raises(Unavailable, match="on purpose"):
            await store.commit(add("one"))
        assert "no room" in (store.shortage() or "")
        await store.commit(add("two"))
        await asyncio.sleep(1.1)
        assert store.shortage() is None
        assert await names(store) == ["two"]


async def test_case_57_a_batch_in_which_one_unit_is_refused_loses_that_one_alone(postgres: Postgres, url: str) -> None:
    name = url.rpartition("/")[2]
    postgres.psql("ALTER TABLE realm ADD CONSTRAINT no_bad CHECK (name <> 'bad')", database=name)
    with opened(url) as store:
        units = [add(given, f"device:{given}") for given in ("a", "b", "bad", "c")]
        results = await asyncio.gather(*(store.commit(unit) for unit in units), return_exceptions=True)
        assert [isinstance(result, ConstraintFailed) for result in results] == [False, False, True, False]
        assert await names(store) == ["a", "b", "c"]
        assert await actions(store) == ["added.a", "added.b", "added.c"]


async def test_a_lock_that_nobody_gives_back_is_waited_for_a_bounded_time(
    url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(postgres_link.SETTINGS, "lock_timeout", "300ms")
    monkeypatch.setattr(postgres_link, "SETTLE", "SELECT set_config('lock_timeout', '300ms', false)")
    held = Held("commit")
    with opened(url, held) as one, opened(url) as two:
        slow = asyncio.ensure_future(one.commit(add("slow", "device:1")))
        assert await asyncio.to_thread(held.reached.wait, 20)
        with pytest.raises(Unavailable, match="lock timeout"):
            await two.commit(add("quick", "device:1"))
        held.let_go()
        await slow
        await two.commit(add("quick", "device:1"))


# --- clocks ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("ahead", [61.0, -61.0, 86_400.0], ids=["ahead", "behind", "a-day"])
async def test_case_61_a_node_with_another_time_than_the_database_writes_nothing_that_bears_one(
    store: Store, monkeypatch: pytest.MonkeyPatch, ahead: float
) -> None:
    await store.commit(add("before"))
    monkeypatch.setattr(times, "unix_now", lambda: time.time() + ahead)
    for touches in ((), ("device:1",)):
        with pytest.raises(
            Unavailable, match=f"{abs(ahead):.0f} s {'after' if ahead > 0 else 'before'} the database's"
        ):
            await store.commit(add("wrong", *touches))
    assert "set the clock" in (store.shortage() or "")
    results = await asyncio.gather(
        store.commit(add("lease", "lease:x", event=False)),
        store.commit(add("wrong", "device:1")),
        return_exceptions=True,
    )
    assert [isinstance(result, Unavailable) for result in results] == [False, True], "a lease bears no time"
    monkeypatch.setattr(times, "unix_now", time.time)
    await store.commit(add("after"))
    assert store.shortage() is None
    assert await actions(store) == ["added.after", "added.before"]


async def test_a_clock_that_is_off_by_less_than_a_minute_is_good_enough(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(times, "unix_now", lambda: time.time() + 55)
    await store.commit(add("one"))
    assert -56 < store.drift < -54
    assert store.shortage() is None


@pytest.mark.parametrize("touches", [(), ("device:1",)], ids=["alone", "together"])
@pytest.mark.parametrize("readings", [0, 1], ids=["before-it-is-read", "after-it-was-read"])
async def test_case_61_a_clock_that_is_set_while_it_is_compared_dates_nothing(
    url: str, monkeypatch: pytest.MonkeyPatch, readings: int, touches: tuple[str, ...]
) -> None:
    """Found by chaos: a certificate from a year on, since the clock was right when the database was asked."""
    clock = _Leaping(readings)
    monkeypatch.setattr(times, "unix_now", clock.seconds)
    with opened(url, clock=clock) as store:
        await store.commit(replace(add("before", *touches), at=times.to_ms(clock())))  # the twin: nobody sets it
        clock.leap()
        with pytest.raises(Unavailable, match=r"set the clock|was set while"):
            await store.commit(replace(add("wrong", *touches), at=times.to_ms(clock.after)))
        assert await actions(store) == ["added.before"]


class _Leaping:
    """A clock that is right for some readings after `leap`, and a year ahead from then on."""

    def __init__(self, readings: int) -> None:
        self._readings = readings
        self._left: int | None = None

    def __call__(self) -> dt.datetime:
        return dt.datetime.fromtimestamp(self.seconds(), dt.UTC)

    @property
    def after(self) -> dt.datetime:
        """What it says when it has leapt."""
        return dt.datetime.fromtimestamp(time.time() + 365 * 86_400, dt.UTC)

    def seconds(self) -> float:
        if self._left is None:
            return time.time()
        self._left -= 1
        return time.time() if self._left >= 0 else self.after.timestamp()

    def leap(self) -> None:
        self._left = self._readings


# --- what is sent ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "kept"),
    [
        pytest.param("a\0b", "a\ufffdb", id="nul"),
        pytest.param("a\ud800", "a?", id="half-a-pair"),
        pytest.param("\U0010ffff", "\U0010ffff", id="far-away"),
        pytest.param("'; DROP TABLE realm; --", "'; DROP TABLE realm; --", id="sql"),
        pytest.param("%s$1", "%s$1", id="placeholders"),
        pytest.param("Jürgen", "Jürgen", id="umlaut"),
    ],
)
async def test_text_of_a_hostile_peer_is_kept_or_replaced_and_never_an_error(
    store: Store, text: str, kept: str
) -> None:
    assert await store.fetch(_FIND, name=text) == []
    await store.commit(add(text))
    assert await names(store) == [kept]
    assert await store.fetch(_FIND, name=text) == await store.fetch(_FIND, name=kept) != []


async def test_commits_wait_for_the_disk_also_where_the_role_says_otherwise(postgres: Postgres, url: str) -> None:
    name = url.rpartition("/")[2]
    postgres.psql(f'ALTER ROLE enrolld IN DATABASE "{name}" SET synchronous_commit = off')
    connection = postgres_link.connect(postgres_link.conninfo_of(url, "test"))
    try:
        assert connection.execute("SHOW synchronous_commit").fetchone() == ("on",)
    finally:
        connection.close()


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("postgresql://me:hush@host/db", "postgresql://me:***@host/db"),
        ("postgresql://me@host/db", "postgresql://me@host/db"),
        ("postgresql://host/db?password=hush&sslmode=require", "postgresql://host/db?password=***&sslmode=require"),
        ("postgresql://me:p%40x:y@[::1]:5432/db", "postgresql://me:***@[::1]:5432/db"),
        ("postgresql://me:hu#sh?!/[x]@host/db", "postgresql://me:***@host/db"),
        ("postgresql://me:hu@sh@host/db", "postgresql://me:***@host/db"),
        ("postgresql://me@[::1]:5432/db", "postgresql://me@[::1]:5432/db"),
        ("postgresql://host:5432/db?user=me&password=hu@sh", "postgresql://host:5432/db?user=me&password=***"),
        ("sqlite:////var/lib/x.db", "sqlite:////var/lib/x.db"),
    ],
)
def test_a_password_is_never_shown(url: str, expected: str) -> None:
    assert shown(url) == expected


# --- setting up ------------------------------------------------------------------------------------------------------


async def test_two_nodes_that_set_up_one_database_at_once_make_it_once(database: str) -> None:
    from ca_core.records.opening import exists, setting_up

    made: list[bool] = []

    def set_up() -> None:
        with setting_up(database):
            made.append(not exists(database))
            create_store(database)

    await asyncio.gather(*(asyncio.to_thread(set_up) for _ in range(4)))
    assert made == [True] * 4, "a schema alone is no installation"


def test_a_database_with_tables_of_somebody_else_is_left_alone(postgres: Postgres, database: str) -> None:
    name = database.rpartition("/")[2]
    postgres.psql("CREATE TABLE theirs (x int)", database=name)
    with pytest.raises(OperatorError) as caught:
        create_store(database)
    assert caught.value.code == "store_not_empty"
    assert postgres.psql("SELECT tablename FROM pg_tables WHERE schemaname = 'public'", database=name) == [("theirs",)]


@pytest.mark.parametrize(
    ("revision", "code"), [("0004", "store_outdated"), ("9999", "store_revision")], ids=["older", "newer"]
)
def test_a_schema_of_another_version_is_refused_and_left_as_it_is(
    postgres: Postgres, url: str, revision: str, code: str
) -> None:
    name = url.rpartition("/")[2]
    postgres.psql("UPDATE alembic_version SET version_num = %s", revision, database=name)
    for act in (create_store, lambda given: open_store(given, process="test", version="1").close()):
        with pytest.raises(OperatorError) as caught:
            act(url)
        assert caught.value.code == code
    assert postgres.psql("SELECT version_num FROM alembic_version", database=name) == [(revision,)]


def test_a_database_that_is_not_in_unicode_is_refused(postgres: Postgres, database: str) -> None:
    postgres.psql("CREATE DATABASE latin OWNER enrolld ENCODING 'LATIN1' TEMPLATE template0")
    try:
        with pytest.raises(OperatorError) as caught:
            create_store(postgres.url("latin"))
        assert caught.value.code == "store_encoding"
    finally:
        postgres.drop("latin")
    create_store(database)


@pytest.mark.parametrize(
    "url",
    ["postgresql://enrolld:hush-hush@127.0.0.1:1/x", "postgresql://127.0.0.1:1/x?password=hush-hush"],
    ids=["as-user", "as-option"],
)
def test_a_server_that_does_not_answer_is_told_without_the_password(url: str) -> None:
    needs("postgresql")
    with pytest.raises(OperatorError) as caught:
        open_store(url, process="test", version="1")
    assert caught.value.code == "store_unreachable"
    assert "hush-hush" not in f"{caught.value.message} {caught.value.remedy}"


async def test_a_node_that_joins_needs_the_database_and_the_unlock_key_alone(installation: Installation) -> None:
    core, other = installation.open(), installation.open()
    try:
        device = await enrolled(core, "d-1")
        assert await code_of(other, device.evidence, csr_of(new_key(), "d-1")) == "issued"
        await core.certificates.revoke(device.serial, actor=ME)
        assert await code_of(other, device.evidence, csr_of(new_key(), "d-1")) == "certificate_revoked"
    finally:
        core.close()
        other.close()


@pytest.mark.parametrize("engine", ["postgresql"], indirect=True)
@pytest.mark.parametrize(
    ("ahead", "refused"),
    [(86_400.0 * 1000, "certificate_expired"), (-86_400.0, "certificate_not_yet_valid")],
    ids=["ahead", "behind"],
)
async def test_case_61_what_a_wrong_clock_would_refuse_is_to_be_asked_again_instead(
    installation: Installation, monkeypatch: pytest.MonkeyPatch, ahead: float, refused: str
) -> None:
    """A device takes a refusal for final; found by chaos, before the node had looked at the database's clock."""
    core = installation.open()
    try:
        device = await enrolled(core, "d-1")
        installation.clock.forward(seconds=ahead)
        assert await code_of(core, device.evidence, csr_of(new_key(), "d-1")) == refused, "the twin: the time is right"
        monkeypatch.setattr(times, "unix_now", lambda: time.time() + ahead)
        assert "set the clock" in await outcome(core, device.evidence, csr_of(new_key(), "d-1"))
    finally:
        core.close()


async def outcome(core: Core, evidence: Evidence, csr: ParsedCsr) -> str:
    """`code_of`, or why the device is to ask again."""
    try:
        return await code_of(core, evidence, csr)
    except Unavailable as exc:
        return str(exc)


# --- another database in the place of the one that was there ---------------------------------------------------------


@pytest.mark.parametrize("engine", ["postgresql"], indirect=True)
async def test_a_database_made_anew_under_a_running_node_is_not_issued_for_with_the_old_ca(
    postgres: Postgres, installation: Installation
) -> None:
    old = installation.open()
    try:
        await enrolled(old, "d-1")
        postgres.drop(installation.database)
        postgres.create(installation.database)
        new = await Core.create(installation.config())
        try:
            handed = await new.devices.add("default", "d-2", actor=ME)
            issued = await ask(old, Evidence(username="", secret=handed.secret), csr_of(new_key(), "d-2"))
            ca = [x509.load_der_x509_certificate(der) for der in await new.issuers.export("default")]
            certificate = x509.load_der_x509_certificate(issued.certificate)
            certificate.verify_directly_issued_by(next(one for one in ca if one.subject == certificate.issuer))
        finally:
            new.close()
    finally:
        old.close()


@pytest.mark.parametrize("engine", ["postgresql"], indirect=True)
async def test_a_version_that_a_failover_lost_is_not_taken_for_the_one_made_in_its_place(
    postgres: Postgres, installation: Installation
) -> None:
    copy = "before_the_failover"
    postgres.copy(installation.database, copy)
    one, other = installation.open(), installation.open()
    try:
        await edit_realm(one, "default", 'retry_window = "24h"', 'retry_window = "23h"')
        handed = await one.devices.add("default", "d-1", actor=ME)
        assert await code_of(one, Evidence(username="", secret=handed.secret), csr_of(new_key(), "d-1")) == "issued"
        postgres.drop(installation.database)
        postgres.copy(copy, installation.database)
        installation.clock.forward(seconds=5)
        await edit_realm(other, "default", "secret = true", "secret = false")
        handed = await other.devices.add("default", "d-1", actor=ME)
        asked = [
            code_of(node, Evidence(username="", secret=handed.secret), csr_of(new_key(), "d-1"))
            for node in (one, other)
        ]
        assert await asyncio.gather(*asked) == ["secret_not_admitted"] * 2
    finally:
        one.close()
        other.close()
        postgres.drop(copy)


@pytest.mark.parametrize("encoding", ["LATIN1", "SQL_ASCII"])
async def test_text_is_read_as_it_was_written_whatever_encoding_the_role_asks_for(
    postgres: Postgres, url: str, encoding: str
) -> None:
    postgres.psql(f"ALTER ROLE enrolld IN DATABASE \"{url.rpartition('/')[2]}\" SET client_encoding = '{encoding}'")
    with opened(url) as store:
        await store.commit(add("Jürgen"))
        assert await names(store) == ["Jürgen"]


@pytest.mark.parametrize("password", ["Geh/heim", "Geh@heim", "Geheim%", "Geh heim", "Geh:@heim", "[Geheim"])
def test_a_password_that_was_not_encoded_is_in_no_error(password: str) -> None:
    needs("postgresql")
    with pytest.raises(OperatorError) as caught:
        open_store(f"postgresql://me:{password}@127.0.0.1:1/db?connect_timeout=2", process="test", version="1")
    told = f"{caught.value.message} {caught.value.remedy}"
    assert "Geh" not in told
    assert "heim" not in told


async def test_a_schema_without_a_ca_is_no_installation_yet(url: str) -> None:
    """So it is where setting up was cut off: the next one finishes it, and makes the unlock key."""
    from ca_core.records.opening import exists

    assert not exists(url)
    create_store(url)
    with opened(url) as store:
        await store.commit(add("default"))
    assert exists(url)


async def test_a_lease_that_a_wrong_clock_took_for_hours_is_free_again(store: Store) -> None:
    now = dt.datetime.now(dt.UTC)
    wrong, right = Leases(store, lambda: now + dt.timedelta(hours=1)), Leases(store, lambda: now)
    assert await right.hold("chores", 10)
    assert await wrong.hold("chores", 10), "it is an hour later there"
    assert await right.hold("chores", 10), "nobody holds anything for an hour"
    assert not await Leases(store, lambda: now).hold("chores", 10), "the twin"


async def test_a_store_is_closed_in_bounded_time_whatever_its_database_does(
    url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(queue, "_CLOSING_SECONDS", 0.5)
    held = Held("commit")
    store = open_store(url, process="test", version="1", hook=held)
    store.submit(add("one"))
    assert await asyncio.to_thread(held.reached.wait, 20)
    await asyncio.wait_for(asyncio.to_thread(store.close), 15)
    held.let_go()


# --- who stands still ------------------------------------------------------------------------------------------------


def _settle_with(monkeypatch: pytest.MonkeyPatch, **settings: str) -> None:
    values = {**postgres_link.SETTINGS, **settings}
    monkeypatch.setattr(
        postgres_link, "SETTLE", "SELECT " + ", ".join(f"set_config('{n}', '{v}', false)" for n, v in values.items())
    )


@pytest.mark.parametrize("touches", [("device:1",), ()], ids=["beside-others", "alone"])
@pytest.mark.parametrize("by", ["the server", "whoever waits"])
async def test_a_node_that_stands_still_in_a_transaction_holds_up_nobody_for_long(
    url: str, monkeypatch: pytest.MonkeyPatch, by: str, touches: tuple[str, ...]
) -> None:
    """Frozen, stopped or swapped out, it would keep its locks; what it had not committed it commits again, or not."""
    if by == "the server":
        _settle_with(monkeypatch, idle_in_transaction_session_timeout="500ms")
    else:
        _settle_with(monkeypatch, idle_in_transaction_session_timeout="0", lock_timeout="300ms")
        monkeypatch.setattr(postgres_writer, "_FROZEN", 0.2)
    held = Held("guard")
    with opened(url, held) as frozen, opened(url) as other:
        slow = asyncio.ensure_future(frozen.commit(add("slow", *touches)))
        assert await asyncio.to_thread(held.reached.wait, 20)
        await other.commit(add("quick"))
        assert await names(other) == ["quick"]
        held.let_go()
        await slow
        assert await names(other) == ["quick", "slow"]
        assert sorted(await actions(other)) == ["added.quick", "added.slow"]


async def test_a_database_that_does_not_commit_is_a_shortage_until_it_does(
    url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(postgres_watch, "_SLOW", 0.3)
    held = Held("commit")
    with opened(url, held) as store:
        committing = asyncio.ensure_future(store.commit(add("one", "device:1")))
        assert await asyncio.to_thread(held.reached.wait, 20)
        assert store.shortage() is None
        await asyncio.sleep(0.5)
        assert "has not committed" in (store.shortage() or "")
        held.let_go()
        await committing
        assert store.shortage() is None


@pytest.mark.parametrize("engine", ["postgresql"], indirect=True)
async def test_case_61_what_was_decided_by_a_wrong_clock_is_not_written_when_it_was_set_right_since(
    installation: Installation,
) -> None:
    """One event from the future would stop every node until then; found by chaos."""
    held = Held("lock")
    core = installation.open(hook=held)
    try:
        held.let_go()
        handed = await core.devices.add("default", "d-1", actor=ME)
        held.hold()
        installation.clock.forward(hours=1)
        asking = asyncio.ensure_future(ask(core, Evidence(username="", secret=handed.secret), csr_of(new_key(), "d-1")))
        assert await asyncio.to_thread(held.reached.wait, 20)
        installation.clock.forward(hours=-1)
        held.let_go()
        with pytest.raises(Unavailable, match="clock was set while"):
            await asking
        assert installation.events("certificate.issued") == []
        assert await code_of(core, Evidence(username="", secret=handed.secret), csr_of(new_key(), "d-1")) == "issued"
    finally:
        core.close()


async def test_nobody_makes_a_ca_where_a_copy_was_cut_off(database: str) -> None:
    postgres_database.create(database, for_copy=True)
    with pytest.raises(OperatorError) as caught:
        create_store(database)
    assert caught.value.code == "store_copy_unfinished"
    postgres_database.create(database, for_copy=True)  # the twin: the copy itself, once more


async def test_an_upgrade_that_would_hold_up_every_node_gives_way(
    postgres: Postgres, database: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A dump that reads a table is enough: whoever comes after the waiting ALTER TABLE waits as well."""
    monkeypatch.setattr(postgres_database, "_TRIES", 1)
    load("0005", tmp_path / "kept", postgres, database.rpartition("/")[2])
    connection = postgres_link.connect(postgres_link.conninfo_of(database, "dump"))
    try:
        connection.execute("SET idle_in_transaction_session_timeout = 0; ")
        connection.execute("BEGIN")
        connection.execute("SELECT count(*) FROM device")
        with pytest.raises(OperatorError) as caught:
            await asyncio.to_thread(upgrade_store, database)
        assert caught.value.code == "store_busy"
        connection.execute("ROLLBACK")
        assert upgrade_store(database) == ("0005", None)
    finally:
        connection.close()
    open_store(database, process="test", version="1").close()


# --- what two nodes may not do at once -------------------------------------------------------------------------------


@pytest.mark.parametrize("engine", ["postgresql"], indirect=True)
async def test_one_key_of_two_devices_at_two_nodes_at_once_gets_one_certificate(installation: Installation) -> None:
    """The key, not only the device, is what such units touch: each is held between its guard and its commit."""
    hooks = [Held("guard"), Held("guard")]
    nodes = [installation.open(hook=hook) for hook in hooks]
    try:
        for hook in hooks:
            hook.let_go()
        handed = [await nodes[0].devices.add("default", name, actor=ME) for name in ("d-1", "d-2")]
        for hook in hooks:
            hook.hold()
        key = new_key()
        asking = [
            asyncio.ensure_future(code_of(node, Evidence(username="", secret=one.secret), csr_of(key, f"d-{number}")))
            for number, (node, one) in enumerate(zip(nodes, handed, strict=True), 1)
        ]
        await asyncio.to_thread(hooks[0].reached.wait, 1.5)
        await asyncio.to_thread(hooks[1].reached.wait, 1.5)
        for hook in hooks:
            hook.let_go()
        assert sorted(await asyncio.gather(*asking)) == ["issued", "key_of_other_device"]
        assert installation.sql("SELECT count(*) FROM certificate WHERE kind = 'device'") == [(1,)]
    finally:
        for node in nodes:
            node.close()


async def test_units_with_several_names_never_wait_for_each_other_in_a_circle(
    url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All take their locks in one order; otherwise PostgreSQL would find a deadlock and undo one of them."""
    monkeypatch.setattr(postgres_writer, "_CONFLICTS", 0)
    with opened(url) as one, opened(url) as two:
        units = [
            (node, add(f"{number}-{start}", *(f"key:{(start + step) % 5}" for step in range(4))))
            for number in range(40)
            for start, node in enumerate((one, two, one, two, one))
        ]
        await asyncio.gather(*(node.commit(unit) for node, unit in units))
        assert len(await names(one)) == 200


async def test_each_connection_that_writes_counts_for_itself(postgres: Postgres, url: str) -> None:
    """Or they would all queue for the one row that counts."""
    name = url.rpartition("/")[2]
    held = Held("commit")
    with opened(url, held) as one, opened(url) as two:
        slow = asyncio.ensure_future(one.commit(add("a", "device:1")))
        assert await asyncio.to_thread(held.reached.wait, 20)
        await two.commit(add("b", "device:2"))
        held.let_go()
        await slow
        shards = postgres.psql("SELECT DISTINCT shard FROM tally WHERE kind = 'audit'", database=name)
        assert len(shards) == 2
        assert (0,) not in shards


@pytest.mark.parametrize("engine", ["postgresql"], indirect=True)
async def test_a_server_that_lost_its_last_commits_is_noticed_and_the_trail_stays_whole(
    postgres: Postgres, installation: Installation, caplog: pytest.LogCaptureFixture
) -> None:
    core = installation.open()
    try:
        await core.devices.add("default", "d-1", actor=ME)
        postgres.cut_connections(installation.database)
        postgres.copy(installation.database, "earlier")
        await core.devices.add("default", "d-2", actor=ME)
        postgres.drop(installation.database)
        postgres.copy("earlier", installation.database)
        postgres.drop("earlier")
        await core.devices.add("default", "d-3", actor=ME)
        assert "lacks audit events that it had" in caplog.text
        verdict = await core.audit.verify()
        assert verdict.findings == []
        assert [row.device for row in await core.devices.list(limit=10)] == ["d-1", "d-3"]
    finally:
        core.close()


async def test_what_one_process_submits_is_written_in_its_order(url: str) -> None:
    """A refusal that was told is in the store before the act that follows it."""
    with opened(url) as store:
        for number in range(60):
            store.submit(add(f"{number:02}-before", f"source:{number % 7}"))
            await store.commit(add(f"{number:02}-then"))
            assert (await names(store))[-2:] == [f"{number:02}-before", f"{number:02}-then"]
