"""Moving an installation to PostgreSQL: everything that was there is there, and it goes on."""

import asyncio
from collections.abc import Callable
from concurrent.futures import Future
from pathlib import Path

import pytest

from ca_core.errors import OperatorError, Unavailable
from ca_core.model import Call, Evidence
from ca_core.records.copying import copy_to_postgres
from ca_core.records.opening import HEAD, create_store
from ca_core.records.schema import metadata
from ca_core.rows import DeviceRow
from tests.helpers.core import ME, Installation, ask, code_of, csr_of, enrolled, new_key
from tests.helpers.postgres import Postgres


@pytest.fixture
def source(template: Installation, tmp_path: Path) -> Installation:
    """An installation on SQLite."""
    return template.copy_to(tmp_path / "source")


@pytest.fixture
def moved(source: Installation, postgres: Postgres, database: str) -> Callable[[], Installation]:
    """Copies it, and gives the installation as it is on PostgreSQL."""

    def move() -> Installation:
        copy_to_postgres(source.directory / "enrolld.db", database, lambda _done, _total: None)
        return Installation(source.directory, source.clock, postgres, database.rpartition("/")[2])

    return move


def _rows(installation: Installation, table: str) -> list[tuple[object, ...]]:
    columns = ", ".join(sorted(installation.columns(table)))
    rows = installation.sql(f"SELECT {columns} FROM {table}")  # noqa: S608  # names of the schema
    return sorted((tuple(map(_plain, row)) for row in rows), key=repr)


def _plain(value: object) -> object:
    return bytes(value) if isinstance(value, memoryview) else value


async def test_every_row_is_there_and_the_fleet_goes_on(
    source: Installation, moved: Callable[[], Installation]
) -> None:
    core = source.open()
    one = await enrolled(core, "d-1")
    two = await enrolled(core, "d-2", realm="other")
    renewed = await ask(core, one.evidence, csr_of(new_key(), "d-1"))
    await core.certificates.revoke(two.serial, actor=ME)
    assert await code_of(core, two.evidence, csr_of(new_key(), "d-2"), label="other") == "certificate_revoked"
    open_secret = (await core.devices.add("default", "d-3", actor=ME)).secret
    await core.audit.make_heads()
    status = await core.status()
    core.close()
    tables = [name for name in metadata.tables if name != "lease"]
    before = {table: _rows(source, table) for table in tables}

    target = moved()
    assert {table: _rows(target, table) for table in tables} == before
    core = target.open()
    try:
        after = await core.status()
        assert (after.realms, after.crls) == (status.realms, status.crls)
        verdict = await core.audit.verify()
        assert verdict.findings == []
        assert await code_of(core, Evidence(chain=(renewed.certificate,)), csr_of(new_key(), "d-1")) == "issued"
        assert await code_of(core, two.evidence, csr_of(new_key(), "d-2"), label="other") == "certificate_revoked"
        assert await code_of(core, Evidence(username="", secret=open_secret), csr_of(new_key(), "d-3")) == "issued"
        assert (await core.status()).realms[0].certificates == {"valid": 4}, "the kept counts go on"
        await core.realms.add("third", actor=ME)
    finally:
        core.close()


async def test_the_file_is_kept_under_another_name_so_that_nobody_serves_it(
    source: Installation, moved: Callable[[], Installation]
) -> None:
    moved()
    assert not (source.directory / "enrolld.db").exists()
    assert (source.directory / "enrolld.db.copied").is_file()
    with pytest.raises(OperatorError) as caught:
        source.open()
    assert caught.value.code == "store_missing"


async def test_a_database_that_holds_an_installation_is_left_alone(
    source: Installation, shared_template: Installation
) -> None:
    taken = shared_template.copy_to(source.directory / "taken")
    before = taken.sql("SELECT count(*) FROM audit")
    with pytest.raises(OperatorError) as caught:
        copy_to_postgres(source.directory / "enrolld.db", taken.store_url, lambda _done, _total: None)
    assert caught.value.code == "store_not_empty"
    assert taken.sql("SELECT count(*) FROM audit") == before
    source.open().close()
    taken.drop()


async def test_an_interrupted_copy_leaves_the_file_and_an_empty_database_and_can_be_run_again(
    source: Installation, moved: Callable[[], Installation], postgres: Postgres, database: str
) -> None:
    def interrupt(done: int, total: int) -> None:
        if done > total // 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        copy_to_postgres(source.directory / "enrolld.db", database, interrupt)
    name = database.rpartition("/")[2]
    assert postgres.psql("SELECT count(*) FROM realm", database=name) == [(0,)]
    source.open().close()
    core = moved().open()
    assert await core.realms.list()
    core.close()


async def test_a_database_that_goes_away_in_the_middle_loses_nothing(
    source: Installation, postgres: Postgres, database: str
) -> None:
    name = database.rpartition("/")[2]

    def cut(done: int, total: int) -> None:
        if done > total // 2:
            postgres.cut_connections(name)

    with pytest.raises(Unavailable, match="failed"):
        copy_to_postgres(source.directory / "enrolld.db", database, cut)
    source.open().close()
    assert postgres.psql("SELECT count(*) FROM realm", database=name) == [(0,)]


async def test_what_sqlite_kept_and_postgresql_can_t_is_made_to_fit_where_it_only_tells(
    source: Installation, moved: Callable[[], Installation]
) -> None:
    core = source.open()
    call = Call("r" * 40, "est", "o" * 60, "192.0.2.1\0x")
    core.registration.failed(call, None, "it failed")
    core.close()
    target = moved()
    assert target.sql("SELECT request_id, operation, source FROM attempt") == [("r" * 16, "o" * 24, "192.0.2.1\ufffdx")]


async def test_nobody_writes_into_the_file_while_it_is_copied(source: Installation, database: str) -> None:
    import sqlite3

    refused: list[str] = []

    def write(_done: int, _total: int) -> None:
        other = sqlite3.connect(source.directory / "enrolld.db", timeout=0.1)
        try:
            other.execute("UPDATE device SET owner = 'me'")
        except sqlite3.OperationalError as exc:
            refused.append(str(exc))
        finally:
            other.close()

    copy_to_postgres(source.directory / "enrolld.db", database, write)
    assert set(refused) == {"database is locked"}


async def test_the_progress_ends_at_the_number_of_rows(source: Installation, database: str) -> None:
    told: list[tuple[int, int]] = []
    counts = copy_to_postgres(source.directory / "enrolld.db", database, lambda *given: told.append(given))
    assert told[-1] == (sum(counts.values()), sum(counts.values()))
    assert [done for done, _ in told] == sorted(done for done, _ in told)


async def test_a_file_of_an_earlier_revision_is_refused_until_it_is_upgraded(
    source: Installation, database: str
) -> None:
    source.sql("UPDATE alembic_version SET version_num = '0003'")
    with pytest.raises(OperatorError) as caught:
        copy_to_postgres(source.directory / "enrolld.db", database, lambda _done, _total: None)
    assert caught.value.code == "store_outdated"
    source.sql("UPDATE alembic_version SET version_num = ?", HEAD)
    copy_to_postgres(source.directory / "enrolld.db", database, lambda _done, _total: None)
    create_store(database)


async def test_what_stands_in_the_write_ahead_log_alone_is_copied_as_well(
    source: Installation, moved: Callable[[], Installation]
) -> None:
    core = source.open()
    await core.devices.add("default", "d-1", actor=ME)
    assert (source.directory / "enrolld.db-wal").stat().st_size
    assert moved().sql("SELECT name FROM device") == [("d-1",)]
    core.close()


async def test_an_act_that_waits_while_the_store_is_moved_is_refused_and_never_lost(
    source: Installation, database: str
) -> None:
    """Whoever was told that a certificate is revoked must find it revoked."""
    core = source.open()
    await core.devices.add("default", "d-1", actor=ME)  # its connection is open
    waiting: list[Future[DeviceRow]] = []
    loop = asyncio.get_running_loop()

    def suspend(_done: int, _total: int) -> None:
        if not waiting:
            waiting.append(asyncio.run_coroutine_threadsafe(core.devices.suspend("default", "d-1", actor=ME), loop))

    await asyncio.to_thread(copy_to_postgres, source.directory / "enrolld.db", database, suspend)
    with pytest.raises(Unavailable, match="moved or replaced"):
        await asyncio.wrap_future(waiting[0])
    core.close()
    assert not list(source.directory.glob("enrolld.db-*"))
