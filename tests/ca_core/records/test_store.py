"""The store: units are all or nothing, share commits, and are refused by the facts that changed; on both engines."""

import asyncio
import multiprocessing
import sqlite3
import threading
import warnings
from collections.abc import Iterator
from pathlib import Path

import pytest
from sqlalchemy import bindparam, func, select

from ca_core.errors import ConditionFailed, ConstraintFailed, InternalError, OperatorError, Unavailable
from ca_core.records import sqlite_file
from ca_core.records.audit import AuditEvent
from ca_core.records.opening import create_store, open_store
from ca_core.records.query import Query, Values, insert_into
from ca_core.records.schema import audit, key_block, lease, realm, writer
from ca_core.records.store import Hook, Store
from ca_core.records.unit import Guard, Step, Unit, guarded_insert
from tests.end_to_end.clients import needs

_ADD = Query(insert_into(realm).returning(realm.c.id))
_BLOCK = Query(insert_into(key_block))
_COUNT = Query(select(func.count()).select_from(realm))
_BLOCKS = Query(select(func.count()).select_from(key_block))
_NAMES = Query(select(realm.c.name).order_by(realm.c.id))
_FEW = Query(realm.update().where(realm.c.name == bindparam("of_name")).values(state="retired"))
_ONLY_IF, _ONLY_IF_WHY = guarded_insert(
    realm,
    {
        "no_block": ~select(key_block.c.spki_sha256).exists(),
        "name_is_short": func.length(bindparam("name", type_=realm.c.name.type)) < 6,
    },
)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "enrolld.db"


@pytest.fixture(params=["sqlite", "postgresql"])
def url(request: pytest.FixtureRequest, path: Path) -> str:
    """A store that is set up, and nobody's yet."""
    found = f"sqlite:///{path}"
    if request.param == "postgresql":
        needs("postgresql")
        found = request.getfixturevalue("database")
    create_store(found)
    return found


@pytest.fixture
def store(url: str) -> Iterator[Store]:
    opened = opened_at(url)
    yield opened
    opened.close()


def opened_at(url: str, hook: Hook | None = None) -> Store:
    return open_store(url, process="test", version="1", hook=hook)


def made(path: Path) -> Store:
    create_store(f"sqlite:///{path}")
    return opened_at(f"sqlite:///{path}")


def row(name: str) -> Values:
    return {"name": name, "state": "active", "version": 1, "created_at": 1}


def add(name: str, *steps: Step, events: tuple[AuditEvent, ...] = ()) -> Unit:
    return Unit(Guard(_ADD, row(name)), 1, steps, events)


def block(key: bytes, expect: int | None = 1) -> Step:
    return Step(_BLOCK, {"spki_sha256": key, "reason": "x", "created_at": 1}, expect)


async def count(store: Store, query: Query = _COUNT) -> int:
    found = await store.first(query)
    assert found is not None
    return int(found[0])


async def test_a_unit_is_readable_once_its_commit_returned(store: Store) -> None:
    assert await store.commit(add("one")) == 1
    assert await store.fetch(_NAMES) == [("one",)]


async def test_waiting_units_share_one_commit_and_a_refused_one_does_not_disturb_the_others(url: str) -> None:
    steps: list[str] = []
    store = opened_at(url, steps.append)
    try:
        await store.commit(add("first"))
        steps.clear()
        units = [add(f"realm-{i}") for i in range(30)]
        units.insert(7, Unit(Guard(_ONLY_IF, row("too-long"), _ONLY_IF_WHY), 1))
        results = await asyncio.gather(*(store.commit(unit) for unit in units), return_exceptions=True)
    finally:
        store.close()
    assert [type(r) for r in results] == [int] * 7 + [ConditionFailed] + [int] * 23
    assert steps.count("commit") <= 3  # PostgreSQL has two writers


@pytest.mark.parametrize(
    ("name", "blocked", "failed"),
    [
        pytest.param("ok", False, None, id="all-hold"),
        pytest.param("much-too-long", False, ("name_is_short",), id="one-fails"),
        pytest.param("ok", True, ("no_block",), id="the-other-fails"),
        pytest.param("much-too-long", True, ("no_block", "name_is_short"), id="both-fail"),
    ],
)
async def test_a_guard_writes_its_row_only_while_its_conditions_hold_and_names_those_that_do_not(
    store: Store, name: str, blocked: bool, failed: tuple[str, ...] | None
) -> None:
    if blocked:
        await store.commit(add("first", block(b"k")))
    before = await count(store)
    unit = Unit(Guard(_ONLY_IF, row(name), _ONLY_IF_WHY), 1, (block(b"other"),), (AuditEvent("x", "y"),))
    if failed is None:
        await store.commit(unit)
        assert await count(store) == before + 1
        return
    with pytest.raises(ConditionFailed) as caught:
        await store.commit(unit)
    assert caught.value.conditions == failed
    assert await count(store) == before
    assert await count(store, _BLOCKS) == int(blocked)
    assert await count(store, Query(select(func.count()).select_from(audit))) == 0


@pytest.mark.parametrize(
    "spoiled",
    [
        pytest.param(add("one"), id="unique-name-taken"),
        pytest.param(add("new", block(b"k"), block(b"k")), id="later-step-violates-a-constraint"),
        pytest.param(add("new", Step(_FEW, {"of_name": "nobody"})), id="later-step-touches-no-row"),
    ],
)
async def test_a_surprise_rolls_back_its_unit_alone_and_wholly(store: Store, spoiled: Unit) -> None:
    await store.commit(add("one"))
    good = [add(f"good-{i}", events=(AuditEvent("made", "t"),)) for i in range(5)]
    results = await asyncio.gather(
        *(store.commit(unit) for unit in [*good[:3], spoiled, *good[3:]]), return_exceptions=True
    )
    assert [isinstance(r, ConstraintFailed) for r in results] == [False] * 3 + [True] + [False] * 2
    assert [name for (name,) in await store.fetch(_NAMES)] == ["one", *(f"good-{i}" for i in range(5))]
    assert await count(store, _BLOCKS) == 0
    events = await store.fetch(Query(select(audit.c.writer, audit.c.sequence)))
    written = {name: sorted(sequence for owner, sequence in events if owner == name) for name, _ in events}
    assert len(events) == 5
    assert all(found == list(range(1, len(found) + 1)) for found in written.values()), "a rolled-back batch left a gap"


async def test_audit_rows_carry_writer_sequence_and_format(store: Store) -> None:
    event = AuditEvent("made", "operator:me", realm="one", details={"b": 1, "a": "\n"})
    await store.commit(add("one", events=(event, event)))
    rows = await store.fetch(Query(select(audit.c.writer, audit.c.sequence, audit.c.format, audit.c.details)))
    assert [row[1:] for row in rows] == [(1, 1, '{"a":"\\n","b":1}'), (2, 1, '{"a":"\\n","b":1}')]
    [(name, process)] = await store.fetch(Query(select(writer.c.name, writer.c.process)))
    assert (rows[0][0], process) == (name, "test")


async def test_submitted_units_are_written_before_the_store_is_closed(url: str) -> None:
    store = opened_at(url)
    for i in range(100):
        store.submit(add(f"r{i}"))
    store.close()
    again = opened_at(url)
    assert await count(again) == 100
    again.close()
    with pytest.raises(Unavailable, match="closed"):
        store.submit(add("late"))


async def test_a_caller_that_goes_away_does_not_undo_its_unit(url: str) -> None:
    reached, go_on = threading.Event(), threading.Event()

    def hook(step: str) -> None:
        if step == "begin":
            reached.set()
            assert go_on.wait(10)

    store = opened_at(url, hook)
    try:
        task = asyncio.ensure_future(store.commit(add("one")))
        await asyncio.to_thread(reached.wait, 10)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        go_on.set()
        await store.commit(add("two"))
        assert [name for (name,) in await store.fetch(_NAMES)] == ["one", "two"]
    finally:
        go_on.set()
        store.close()


async def test_a_fault_of_the_writer_itself_fails_the_unit_and_not_the_store(store: Store) -> None:
    broken = Unit(Guard(Query(select(bindparam("missing"))), {}), 1)
    with pytest.raises(InternalError):
        await store.commit(broken)
    await store.commit(add("one"))
    assert await count(store) == 1


async def test_a_database_that_refuses_to_write_fails_the_unit_and_recovers_by_itself(path: Path) -> None:
    store = made(path)
    await store.commit(add("one"))
    other = sqlite3.connect(path)
    other.execute("CREATE TRIGGER no BEFORE INSERT ON realm BEGIN SELECT RAISE(ABORT, 'disk is full'); END")
    other.commit()
    with pytest.raises(ConstraintFailed, match="disk is full"):
        await store.commit(add("two"))
    other.execute("DROP TRIGGER no")
    other.commit()
    other.close()
    await store.commit(add("three"))
    assert [name for (name,) in await store.fetch(_NAMES)] == ["one", "three"]
    store.close()


def _write_many(url: str, prefix: str, rounds: int) -> None:
    store = opened_at(url)

    async def write() -> None:
        for i in range(rounds):
            await store.commit(add(f"{prefix}{i}", events=(AuditEvent("made", prefix),)))

    asyncio.run(write())
    store.close()


async def test_several_processes_write_one_store_without_losing_or_refusing_anything(url: str) -> None:
    context = multiprocessing.get_context("spawn")
    processes = [context.Process(target=_write_many, args=(url, p, 50)) for p in "abc"]
    for process in processes:
        process.start()
    for process in processes:
        await asyncio.to_thread(process.join, 120)
        assert process.exitcode == 0
    store = opened_at(url)
    assert await count(store) == 150
    events = await count(store, Query(select(func.count()).select_from(audit)))
    places = Query(select(writer.c.name, writer.c.sequence).order_by(writer.c.name))
    written = await store.fetch(places)
    store.close()
    assert events == 150
    assert sum(sequence for _, sequence in written) == 150, "each writer counts its own events without a gap"


def test_every_commit_waits_for_the_disk(path: Path) -> None:
    made(path).close()
    from ca_core.records.sqlite import connect

    connection = connect(path)
    assert connection.execute("PRAGMA synchronous").fetchone() == (2,), "FULL: an fdatasync per commit"
    assert connection.execute("PRAGMA journal_mode").fetchone() == ("wal",)
    connection.close()


def test_only_the_owner_can_read_the_database(path: Path) -> None:
    made(path).close()
    assert path.stat().st_mode & 0o777 == 0o600


def test_the_migrations_make_exactly_the_schema(path: Path) -> None:
    from alembic.autogenerate import compare_metadata
    from alembic.migration import MigrationContext
    from sqlalchemy import create_engine, text
    from sqlalchemy.schema import CreateIndex

    from ca_core.records.schema import device, metadata

    create_store(f"sqlite:///{path}")
    engine = create_engine(f"sqlite:///{path}")
    with engine.connect() as connection:
        with warnings.catch_warnings():
            # It is compared as text instead.
            warnings.filterwarnings("ignore", ".*ix_device_serial_number")
            assert compare_metadata(MigrationContext.configure(connection), metadata) == []
        [index] = [index for index in device.indexes if index.name == "ix_device_serial_number"]
        [made] = connection.execute(text("SELECT sql FROM sqlite_master WHERE name = :name"), {"name": index.name})
        assert made[0] == str(CreateIndex(index).compile(engine))
    engine.dispose()


@pytest.mark.parametrize(
    ("url", "code"),
    [
        pytest.param("mysql://localhost/x", "store_unsupported", id="another-engine"),
        pytest.param("postgresql://127.0.0.1:1/x?connect_timeout=2", "store_unreachable", id="no-server"),
        pytest.param("postgresql://127.0.0.1:1/x?colour=blue", "store_url", id="no-such-option"),
        pytest.param("sqlite:///", "store_unsupported", id="no-path"),
        pytest.param("sqlite:////nowhere/at/all.db", "store_missing", id="no-file"),
    ],
)
def test_a_store_that_cannot_be_opened_says_why(url: str, code: str) -> None:
    with pytest.raises(OperatorError) as caught:
        open_store(url, process="test", version="1")
    assert caught.value.code == code


def test_a_store_of_another_revision_is_refused(path: Path) -> None:
    made(path).close()
    connection = sqlite3.connect(path)
    connection.execute("UPDATE alembic_version SET version_num='9999'")
    connection.commit()
    connection.close()
    with pytest.raises(OperatorError) as caught:
        open_store(f"sqlite:///{path}", process="test", version="1")
    assert caught.value.code == "store_revision"


def test_an_interrupted_making_of_a_store_leaves_nothing_half_made(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def die(_: Path) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(sqlite_file, "_migrate", die)
    with pytest.raises(KeyboardInterrupt):
        create_store(f"sqlite:///{path}")
    assert not path.exists()
    monkeypatch.undo()
    made(path).close()


async def test_leases_are_held_by_one_and_pass_on_when_they_lapse(store: Store) -> None:
    import datetime as dt

    from ca_core.records.leases import Leases

    now = [dt.datetime(2026, 11, 22, tzinfo=dt.UTC)]
    one, two = Leases(store, lambda: now[0]), Leases(store, lambda: now[0])
    assert await one.hold("crl", 10)
    assert not await two.hold("crl", 10)
    assert await one.hold("crl", 10), "the holder keeps it"
    now[0] += dt.timedelta(seconds=11)
    assert await two.hold("crl", 10)
    assert not await one.hold("crl", 10)
    [(holders,)] = await store.fetch(Query(select(func.count()).select_from(lease)))
    assert holders == 1
