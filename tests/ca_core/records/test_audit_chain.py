"""Writing the audit trail: every writer's chain is whole, whatever became of its batches, and heads are made once."""

import asyncio
import contextlib
import hashlib
import json
import multiprocessing
import sqlite3
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from ca_core.core import Core
from ca_core.errors import ConstraintFailed, OperatorError, Unavailable
from ca_core.records import audit_heads, audit_trail, sqlite_writer
from ca_core.records.audit import CHAINED, AuditEvent, Chain, hash_of, origin_of
from ca_core.records.audit_heads import FIRST, digest_of
from ca_core.records.audit_trail import Filter
from ca_core.records.migrating import EARLIER
from ca_core.records.opening import create_store, open_store, upgrade_store
from ca_core.records.sqlite import SqliteStore
from ca_core.records.times import from_ms, to_ms
from ca_core.records.unit import Unit
from ca_core.rows import Verdict
from tests.helpers.audit import act, write
from tests.helpers.core import Installation, enrolled
from tests.helpers.earlier import take_back


async def _assert_whole(core: Core, events: int) -> Verdict:
    verdict = await core.audit.verify()
    assert verdict.findings == []
    assert verdict.events == events
    return verdict


# --- the chain itself ------------------------------------------------------------------------------------------------


def test_a_chain_numbers_its_events_and_each_hash_covers_the_one_before() -> None:
    chain = Chain("test", "1")
    assert chain.place == (0, b"")
    written = chain.writer_row(5)
    origin = {name: written[name] for name in ("name", "process", "host", "pid", "version", "started_at")}
    assert set(written) - set(origin) == {"sequence", "hash", "headed"}, "which change"
    text = json.dumps(origin, sort_keys=True, separators=(",", ":"))
    before = hashlib.sha256(b"enrolld audit writer " + text.encode("ascii")).digest()
    for sequence in (1, 2, 3):
        row = dict(chain.link(AuditEvent("a", "b", details={"z": 1, "a": "\u202e"}), 7))
        digest = row.pop("hash")
        text = json.dumps(row, sort_keys=True, separators=(",", ":"))
        assert set(row) == set(CHAINED)
        assert row["sequence"] == sequence
        assert digest == hashlib.sha256(before + text.encode("ascii")).digest()
        assert chain.place == (sequence, digest)
        assert chain.head_row() == {"of_writer": chain.name, "sequence": sequence, "hash": digest}
        before = digest


def test_a_chain_that_goes_back_links_the_next_event_where_it_stood() -> None:
    chain = Chain("test", "1")
    chain.writer_row(7)
    chain.link(AuditEvent("a", "b"), 7)
    place = chain.place
    lost = chain.link(AuditEvent("lost", "b"), 7)
    chain.back_to(place)
    again = chain.link(AuditEvent("kept", "b"), 7)
    assert (lost["sequence"], again["sequence"]) == (2, 2)
    assert again["hash"] == hash_of(place[1], {name: again[name] for name in CHAINED})


def test_a_chain_that_goes_back_to_its_beginning_follows_from_the_row_that_is_made_anew() -> None:
    chain = Chain("test", "1")
    place = chain.place
    chain.writer_row(5)
    lost = chain.link(AuditEvent("a", "b"), 7)
    chain.back_to(place)
    row = chain.writer_row(6)
    again = chain.link(AuditEvent("a", "b"), 7)
    assert again["sequence"] == 1
    assert again["hash"] == hash_of(origin_of(row), {name: again[name] for name in CHAINED})
    assert again["hash"] != lost["hash"]


def test_two_chains_have_nothing_in_common() -> None:
    one, two = Chain("test", "1"), Chain("test", "1")
    assert one.name != two.name
    assert origin_of(one.writer_row(1)) != origin_of(two.writer_row(1))
    assert len(one.name) == 16


# --- batches ---------------------------------------------------------------------------------------------------------


async def test_a_batch_that_is_rolled_back_leaves_no_gap(core: Core) -> None:
    had = (await core.audit.verify()).events
    spoiled = act("spoiled")
    units = [act("good") for _ in range(20)]
    await core.store.commit(spoiled)
    units.insert(7, Unit(spoiled.guard, spoiled.at, events=spoiled.events))  # whose guard writes a row that is there
    results = await asyncio.gather(*(core.store.commit(unit) for unit in units), return_exceptions=True)
    assert [type(result) is ConstraintFailed for result in results] == [False] * 7 + [True] + [False] * 13
    await _assert_whole(core, had + 21)


async def test_a_writer_whose_first_batch_was_rolled_back_stands_in_no_list(core: Core) -> None:
    had = await core.audit.verify()
    unit = act()
    await core.store.commit(unit)
    other = core.open(core.config)
    try:
        with pytest.raises(ConstraintFailed):
            await other.store.commit(Unit(unit.guard, unit.at - 1, events=unit.events))
        assert (await core.audit.verify()).writers == had.writers + 1
        await write(other.store, 3)
    finally:
        other.close()
    assert (await _assert_whole(core, had.events + 4)).writers == had.writers + 2


class _Faltering:
    """A connection whose COMMIT fails, after it happened or before."""

    def __init__(self, real: sqlite3.Connection, failures: list[bool]) -> None:
        self._real = real
        self._failures = failures

    def execute(self, statement: str, *values: Any) -> sqlite3.Cursor:
        if statement == "COMMIT" and self._failures:
            if self._failures.pop():
                self._real.execute(statement)
            raise sqlite3.OperationalError("disk I/O error")
        return self._real.execute(statement, *values)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._real, name)


@pytest.mark.parametrize("happened", [pytest.param(True, id="it-happened"), pytest.param(False, id="it-did-not")])
@pytest.mark.parametrize("earlier", [pytest.param(0, id="first-batch"), pytest.param(2, id="later-batch")])
async def test_after_a_commit_that_failed_the_chain_goes_on_where_the_database_stands(
    template: Installation, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, happened: bool, earlier: int
) -> None:
    core = template.copy_to(tmp_path / "data").open()
    had = (await core.audit.verify()).events
    failures: list[bool] = []
    connect: Callable[..., Any] = sqlite_writer.connect
    monkeypatch.setattr(sqlite_writer, "connect", lambda path: _Faltering(connect(path), failures))
    await write(core.store, earlier)
    failures.append(happened)
    with pytest.raises(Unavailable, match="disk I/O error"):
        await core.store.commit(act())
    await write(core.store, 3)
    assert failures == []
    await _assert_whole(core, had + earlier + happened + 3)
    core.close()


# --- many writers ----------------------------------------------------------------------------------------------------


def _process(url: str, rounds: int) -> None:
    store = open_store(url, process="test", version="1")
    asyncio.run(write(store, rounds))
    store.close()


async def test_many_processes_and_threads_write_whole_chains_while_heads_are_made(
    core: Core, second: Core, installation: Installation
) -> None:
    had = await core.audit.verify()
    context = multiprocessing.get_context("spawn")
    url = installation.store_url
    processes = [context.Process(target=_process, args=(url, 60)) for _ in range(2)]
    for process in processes:
        process.start()
    stores = [open_store(url, process="test", version="1") for _ in range(3)]
    threads = [asyncio.to_thread(asyncio.run, write(store, 60)) for store in stores]

    async def make_heads(of: Core) -> int:
        made = 0
        while any(process.is_alive() for process in processes):
            made += len(await of.audit.make_heads())
            await asyncio.sleep(0.01)
        return made + len(await of.audit.make_heads())

    makers = asyncio.gather(make_heads(core), make_heads(second))
    await asyncio.gather(*threads)
    made = await makers
    for process in processes:
        process.join(60)
        assert process.exitcode == 0
    for store in stores:
        store.close()
    await core.audit.make_heads()
    verdict = await _assert_whole(core, had.events + 5 * 60)
    assert verdict.writers >= had.writers + 5, "a store has one writer or several"
    assert verdict.uncovered == 0
    assert verdict.heads >= sum(made) > 0


async def test_a_trail_that_is_written_meanwhile_is_verified_as_far_as_it_was_read(
    core: Core, second: Core, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(audit_trail, "PAGE", 3)
    await write(core.store, 40)
    page, turns, going = audit_trail.Trail._page, asyncio.Semaphore(1), True

    async def read(*arguments: Any, **given: Any) -> Any:
        turns.release()
        return await page(*arguments, **given)

    async def keep_writing() -> None:
        # One act for each page of three that is read: who writes faster than anybody reads is never caught up with.
        while going:
            await turns.acquire()
            await second.store.commit(act())
            await second.audit.make_heads()

    monkeypatch.setattr(audit_trail.Trail, "_page", read)
    writing = asyncio.ensure_future(keep_writing())
    verdicts = [await core.audit.verify() for _ in range(5)]
    going = False
    turns.release()
    await writing
    assert [verdict.findings for verdict in verdicts] == [[]] * 5
    assert verdicts[0].events < verdicts[-1].events, "it was written meanwhile"
    assert verdicts[0].heads < verdicts[-1].heads


# --- heads -----------------------------------------------------------------------------------------------------------


async def test_a_head_covers_the_end_of_every_writer_with_news_and_the_head_before_it(
    core: Core, second: Core, installation: Installation
) -> None:
    await core.audit.make_heads()
    await write(core.store, 3)
    await write(second.store, 2)
    news = installation.sql("SELECT name, sequence, hash FROM writer WHERE sequence <> headed ORDER BY name")
    assert sum(sequence for _, sequence, _ in news) == 5
    [made] = await core.audit.make_heads()
    [(number, at, document, previous, digest)] = installation.sql(
        "SELECT number, at, document, previous, digest FROM audit_head WHERE number = ?", made.number
    )
    assert at == to_ms(installation.clock())
    assert json.loads(document) == [[name, sequence, bytes(end).hex()] for name, sequence, end in news]
    assert bytes(digest).hex() == made.digest
    assert bytes(digest) == digest_of(bytes(previous), number, at, document)
    assert number == 2
    [(first,)] = installation.sql("SELECT digest FROM audit_head WHERE number = 1")
    assert bytes(previous) == bytes(first)


async def test_without_news_no_head_is_made(core: Core, installation: Installation) -> None:
    assert len(await core.audit.make_heads()) == 1
    assert await core.audit.make_heads() == []
    await write(core.store, 1)
    assert [head.number for head in await core.audit.make_heads()] == [2]
    assert installation.sql("SELECT count(*) FROM writer WHERE sequence <> headed") == [(0,)]


async def test_a_head_writes_no_event(core: Core) -> None:
    events = (await core.audit.verify()).events
    await core.audit.make_heads()
    await _assert_whole(core, events)


async def test_the_first_head_follows_from_what_every_trail_begins_with(core: Core, installation: Installation) -> None:
    await core.audit.make_heads()
    [(previous,)] = installation.sql("SELECT previous FROM audit_head WHERE number = 1")
    assert bytes(previous) == FIRST == hashlib.sha256(b"enrolld audit heads").digest()


async def test_two_that_make_the_same_head_make_it_once(core: Core, second: Core) -> None:
    await write(core.store, 1)
    made = await asyncio.gather(*(of.audit.make_heads() for of in (core, second) for _ in range(3)))
    numbers = [head.number for heads in made for head in heads]
    assert sorted(numbers) == sorted(set(numbers)), "whoever came late made none"
    assert (await core.audit.verify()).uncovered == 0


async def test_many_writers_get_as_many_heads_as_they_need(
    core: Core, installation: Installation, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(audit_heads, "MOST_WRITERS", 2)
    stores = [core.open(core.config) for _ in range(5)]
    for each in stores:
        await write(each.store, 1)
        each.close()
    installation.clock.forward(hours=1)
    assert len(await core.audit.make_heads()) >= 3
    verdict = await core.audit.verify()
    assert (verdict.uncovered, verdict.findings) == (0, []), "no event is late that had to wait for a head with room"


# --- reading in order of time ----------------------------------------------------------------------------------------


@pytest.fixture
async def timed(core: Core, second: Core, installation: Installation) -> Core:
    """Events at times that do not rise with their numbers, some at the same."""
    now = installation.clock.now
    for number, at in enumerate((3000, 1000, 2000, 2000, 2000, 1000)):
        installation.clock.now = from_ms(at)
        store = (core if number % 2 else second).store
        await store.commit(
            act(f"test.{number}", at=at, realm="default", device=f"d-{number % 2}", serial=f"{number:x}a")
        )
    installation.clock.now = now
    return core


async def _pages(core: Core, size: int, **chosen: Any) -> list[str]:
    """The actions of all pages, with a limit of `size`."""
    found: list[str] = []
    after: str | None = None
    while rows := await core.audit.list(limit=size, after=after, **chosen):
        found += [row.action for row in rows]
        after = rows[-1].id
    return found


@pytest.mark.parametrize("size", [1, 2, 3, 4, 100])
async def test_a_list_is_in_order_of_time_and_pages_lose_and_repeat_nothing(timed: Core, size: int) -> None:
    found = [action for action in await _pages(timed, size) if action.startswith("test.")]
    times = [{"0": 3, "1": 1, "5": 1}.get(action[-1], 2) for action in found]
    assert times == [1, 1, 2, 2, 2, 3]
    assert len(set(found)) == 6


async def test_pages_go_on_after_whatever_somebody_put_there(timed: Core, installation: Installation) -> None:
    row = "INSERT INTO writer (name, process, host, pid, version, started_at) VALUES (?, 'x', 'x', 1, 'x', 1)"
    event = (
        "INSERT INTO audit (writer, sequence, format, at, action, actor, details) VALUES (?, ?, 1, ?, 'put', 'x', '{}')"
    )
    lowest = -(1 << 63) + 1
    for name, sequence, at in (("", lowest, lowest), ("a-\n-b", -2, -lowest)):
        installation.sql(row, name)
        for number in (sequence, sequence + 1):
            installation.sql(event, name, number, at)
    found = await _pages(timed, 1)
    assert found[:2] == found[-2:] == ["put", "put"]
    assert found.count("put") == 4


@pytest.mark.parametrize("after", [f"{1 << 63}-0123456789abcdef-1", f"1-0123456789abcdef-{1 << 63}"])
async def test_an_id_that_no_row_can_have_is_refused(core: Core, after: str) -> None:
    with pytest.raises(OperatorError) as refused:
        await core.audit.list(limit=1, after=after)
    assert refused.value.code == "after_invalid"


@pytest.mark.parametrize(
    ("chosen", "actions"),
    [
        pytest.param({"device": "d-1"}, {"test.1", "test.3", "test.5"}, id="device"),
        pytest.param({"action": "test.4"}, {"test.4"}, id="action"),
        pytest.param({"serial": "03:0A"}, set(), id="serial-of-none"),
        pytest.param({"serial": "3A"}, {"test.3"}, id="serial-in-any-form"),
        pytest.param({"realm": "default", "device": "d-0"}, {"test.0", "test.2", "test.4"}, id="both-of-two"),
        pytest.param({"realm": "other", "device": "d-0"}, set(), id="one-of-two"),
        pytest.param({"since": "1970-01-01T00:00:03Z", "device": "d-0"}, {"test.0"}, id="since-a-time"),
        pytest.param({"since": "12h", "device": "d-0"}, set(), id="since-a-duration"),
        pytest.param({"since": "25000d", "device": "d-0"}, {"test.0", "test.2", "test.4"}, id="since-long-ago"),
    ],
)
async def test_a_list_shows_what_was_asked_for(timed: Core, chosen: dict[str, str], actions: set[str]) -> None:
    assert set(await _pages(timed, 2, **chosen)) == actions


async def test_a_request_is_found_by_its_id(core: Core) -> None:
    await enrolled(core)
    rows = await core.audit.list(request_id="test-0001", limit=10)
    assert [row.action for row in rows] == ["certificate.issued"]
    assert (rows[0].device, rows[0].actor) == ("sensor", "device:sensor")
    assert isinstance(rows[0].details, dict)


async def test_pages_go_on_by_key_also_on_ten_million_rows(template: Installation, tmp_path: Path) -> None:
    """What SQLite makes of the statements: no scan, and no sorting but of what happened at one instant."""
    installation = template.copy_to(tmp_path / "data")
    core = installation.open()
    store = core.store
    assert isinstance(store, SqliteStore)
    trail = audit_trail.Trail(store)
    await trail.list(Filter(since=1), limit=1)
    await trail.list(Filter(), limit=1)
    first, further = audit_trail._LISTS[()]
    since = audit_trail._LISTS[("since",)][0]
    core.close()
    for query, used in (
        (first, "SCAN audit USING INDEX ix_audit_at"),
        (further, "SEARCH audit USING INDEX ix_audit_at (at>?)"),
        (since, "SEARCH audit USING INDEX ix_audit_at (at>?)"),
        (audit_trail._EVENTS[0], "SCAN audit USING INDEX sqlite_autoindex_audit_1"),
        (audit_trail._EVENTS[1], "SEARCH audit USING INDEX sqlite_autoindex_audit_1 ((writer,sequence)>(?,?))"),
        (audit_heads._NEWS, "SCAN writer USING INDEX ix_writer_news"),
    ):
        text, constants = query.text(sqlite_writer.DIALECT)
        names = ("after_at", "after_writer", "after_sequence", "limit", "since")
        connection = sqlite3.connect(installation.directory / "enrolld.db")
        plan = connection.execute(f"EXPLAIN QUERY PLAN {text}", {**constants, **dict.fromkeys(names, 1)}).fetchall()
        connection.close()
        assert plan[0][3] == used, plan


# --- a store of an earlier revision ----------------------------------------------------------------------------------


@pytest.mark.parametrize("revision", [revision for revision in EARLIER if revision < "0004"])
@pytest.mark.parametrize("page", [1, 3, 2000])
async def test_an_upgraded_store_has_the_chain_that_it_would_have_had(
    template: Installation, tmp_path: Path, revision: str, page: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    installation = template.copy_to(tmp_path / "data")
    core = installation.open()
    await enrolled(core)
    other = installation.open()
    await other.devices.add("default", "d-1", actor="\x1b\u202e")
    other.close()
    had = (await core.audit.verify()).events
    core.close()
    everything = "SELECT writer, sequence, hash FROM audit ORDER BY writer, sequence"
    ends = "SELECT name, sequence, hash, headed FROM writer ORDER BY name"
    before, ended = installation.sql(everything), installation.sql(ends)
    take_back(installation.directory / "enrolld.db", revision)
    paged = _with_pages_of(page, monkeypatch)
    upgrade_store(installation.store_url)
    assert paged == ["0004"]
    assert installation.sql(everything) == before
    assert installation.sql(ends) == ended
    core = installation.open()
    try:
        await write(core.store, 2)
        installation.clock.forward(days=400)
        await core.audit.make_heads()
        assert (await _assert_whole(core, had + 2)).uncovered == 0
    finally:
        core.close()


def _with_pages_of(page: int, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Alembic loads a revision from its file, so that the page is set in what it loads. Returns what was."""
    from alembic.util import pyfiles

    load = pyfiles.load_module_py
    found: list[str] = []

    def loaded(name: str, path: Any) -> Any:
        module = load(name, path)
        if "_PAGE" in vars(module):
            vars(module)["_PAGE"] = page
            found.append(module.revision)
        return module

    monkeypatch.setattr(pyfiles, "load_module_py", loaded)
    return found


# --- a long trail ----------------------------------------------------------------------------------------------------

_MANY = 100_000
_CEILING = 24 << 20
_VERIFY = """
import asyncio, resource, sys
from ca_core.core import Core, CoreConfig

def highest():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << 10

async def verify():
    core = Core.open(CoreConfig(sys.argv[1], None, "http://localhost", demo=False))
    await core.audit.list(limit=1)
    before = highest()
    verdict = await core.audit.verify()
    core.close()
    print(verdict.ok, verdict.events, verdict.writers, verdict.heads, verdict.uncovered, highest() - before)

asyncio.run(verify())
"""


def test_a_hundred_thousand_events_are_verified_in_little_memory(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/enrolld.db"
    create_store(url)
    _fill(tmp_path / "enrolld.db")
    done = subprocess.run([sys.executable, "-c", _VERIFY, url], capture_output=True, text=True, check=True, timeout=300)
    *found, grown = done.stdout.split()
    assert found == ["True", str(_MANY), "10", "1000", "0"]
    assert (tmp_path / "enrolld.db").stat().st_size > 2 * _CEILING
    assert int(grown) < _CEILING, f"{int(grown) >> 20} MiB"


def _fill(database: Path) -> None:
    """Ten writers that wrote by turns, and a head after each hundred events."""
    chains = [Chain("test", "1") for _ in range(10)]
    writers = [chain.writer_row(1) for chain in chains]
    heads: list[tuple[Any, ...]] = []

    def events() -> Iterator[list[Any]]:
        for number in range(_MANY):
            chain = chains[number // 100 % 10]
            event = AuditEvent("made", "device:d", "default", "d", "ab", "id", {"number": number, "text": "x" * 400})
            yield list(chain.link(event, number).values())
            if number % 100 == 99:
                before = heads[-1][-1] if heads else FIRST
                document = json.dumps([[chain.name, chain.place[0], chain.place[1].hex()]], separators=(",", ":"))
                digest = digest_of(before, len(heads) + 1, number, document)
                heads.append((len(heads) + 1, number, document, before, digest))

    with contextlib.closing(sqlite3.connect(database)) as connection, connection:
        connection.executemany(_insert("audit", [*CHAINED, "hash"]), events())
        for chain, writer in zip(chains, writers, strict=True):
            end = chain.place
            row = {**writer, "sequence": end[0], "hash": end[1], "headed": end[0]}
            connection.execute(_insert("writer", list(row)), list(row.values()))
        connection.executemany(_insert("audit_head", ["number", "at", "document", "previous", "digest"]), heads)


def _insert(table: str, columns: list[str]) -> str:
    return f"INSERT INTO {table} ({', '.join(columns)}) VALUES ({', '.join('?' * len(columns))})"  # noqa: S608  # of above
