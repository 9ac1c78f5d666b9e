"""The PostgreSQL that other tests stand on (`tests.helpers.postgres`) does what they ask of it."""

import contextlib
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import psycopg
import pytest

from tests.helpers.mortal import is_alive
from tests.helpers.postgres import ROLE, Postgres, postgres_on_small_disk, running_postgres

pytestmark = pytest.mark.foreign

SMALL = 160 << 20


@pytest.fixture(scope="module")
def cluster() -> Iterator[Postgres]:
    """One that may be killed."""
    with running_postgres() as running:
        yield running


def rows_in(url: str) -> int:
    with psycopg.connect(url) as connection:
        row = connection.execute("SELECT count(*) FROM kept").fetchone()
    assert row is not None
    return int(row[0])


def with_a_row(url: str) -> psycopg.Connection[tuple[object, ...]]:
    """An open connection that has committed a row, and has written another without committing it."""
    connection = psycopg.connect(url)
    connection.execute("CREATE TABLE kept (id integer)")
    connection.execute("INSERT INTO kept VALUES (1)")
    connection.commit()
    connection.execute("INSERT INTO kept VALUES (2)")
    return connection


def test_each_test_has_an_empty_database_of_its_own(postgres: Postgres, database: str) -> None:
    assert postgres.is_up()
    with psycopg.connect(database) as connection:
        assert connection.execute("SELECT current_user").fetchone() == (ROLE,)
        assert connection.execute("SELECT count(*) FROM pg_tables WHERE schemaname = 'public'").fetchone() == (0,)
        connection.execute("CREATE TABLE mine (id integer)")


def test_the_role_of_the_url_is_no_superuser_and_needs_its_password(cluster: Postgres) -> None:
    url = cluster.create("guarded")
    assert cluster.psql("SELECT rolsuper FROM pg_roles WHERE rolname = %s", ROLE) == [(False,)]
    for reached in (url, cluster.url("guarded", over_socket=True)):
        assert cluster.password in reached
        with pytest.raises(psycopg.OperationalError, match="password authentication failed"):
            psycopg.connect(reached.replace(cluster.password, "wrong"))
        psycopg.connect(reached).close()  # the twin


ENDS: dict[str, Callable[[Postgres], None]] = {
    "fast": lambda cluster: cluster.stop("fast"),
    "immediate": lambda cluster: cluster.stop("immediate"),
    "killed": Postgres.kill,
}


@pytest.mark.parametrize("end", ENDS)
def test_what_was_committed_is_there_after_each_kind_of_end(cluster: Postgres, end: str) -> None:
    connection = with_a_row(url := cluster.create(f"after_{end}"))
    before = cluster.pid
    children = [int(pid) for pid in Path(f"/proc/{before}/task/{before}/children").read_text().split()]
    ENDS[end](cluster)
    assert not cluster.is_up()
    assert not any(map(is_alive, [before, *children]))
    with pytest.raises(psycopg.OperationalError):
        connection.execute("SELECT 1")
    connection.close()
    cluster.start()
    assert cluster.pid != before
    assert rows_in(url) == 1


@pytest.mark.parametrize("mode", ["fast", "immediate"])
def test_it_restarts_on_its_port(cluster: Postgres, mode: str) -> None:
    url = cluster.create(f"restarted_{mode}")
    before = cluster.pid
    cluster.restart(mode)
    assert cluster.pid != before
    psycopg.connect(url).close()


def test_connections_are_cut_and_those_of_another_database_only_if_asked_for(cluster: Postgres) -> None:
    first, second = (psycopg.connect(cluster.create(f"cut_{name}")) for name in ("first", "second"))
    assert cluster.cut_connections("cut_first") == 1
    with pytest.raises(psycopg.OperationalError):
        first.execute("SELECT 1")
    second.execute("SELECT 1")
    second.commit()
    assert cluster.cut_connections() == 1
    with pytest.raises(psycopg.OperationalError):
        second.execute("SELECT 1")
    first.close()
    second.close()


def test_while_it_is_frozen_nobody_is_answered_and_nobody_is_cut(cluster: Postgres) -> None:
    with contextlib.closing(psycopg.connect(cluster.create("frozen"), autocommit=True)) as connection:
        answered = threading.Event()

        def ask() -> None:
            connection.execute("SELECT 1")
            answered.set()

        asking = threading.Thread(target=ask)
        with cluster.frozen():
            asking.start()
            assert not answered.wait(0.3)
        asking.join(20)
        assert answered.is_set()


def test_a_database_is_copied_and_dropped_though_somebody_uses_it(cluster: Postgres) -> None:
    with_a_row(cluster.create("template")).close()
    url = cluster.copy("template", "copied")
    assert rows_in(url) == 1
    user = psycopg.connect(url)
    cluster.drop("copied")
    cluster.drop("copied")
    user.close()
    with pytest.raises(psycopg.OperationalError, match="does not exist"):
        psycopg.connect(url)
    assert rows_in(cluster.url("template")) == 1


def test_nothing_is_left_of_it_when_its_test_fails() -> None:
    seen: list[Postgres] = []
    with contextlib.suppress(ZeroDivisionError), running_postgres(fsync=False) as running:
        seen.append(running)
        assert running.log.parent.stat().st_mode & 0o077 == 0
        raise ZeroDivisionError
    (ended,) = seen
    assert not is_alive(ended.pid)
    assert not ended.log.parent.exists()


def test_on_a_small_disk_that_is_full_it_refuses_and_recovers() -> None:
    with postgres_on_small_disk(SMALL) as (running, disk):
        url = running.create("crammed")
        with psycopg.connect(url) as connection:
            connection.execute("CREATE TABLE kept AS SELECT 1 AS id")
        disk.leave(0)
        with pytest.raises(psycopg.Error), psycopg.connect(url) as connection:
            connection.execute("INSERT INTO kept SELECT generate_series(1, 2000000)")
        disk.leave(SMALL // 2)
        if not running.is_up():
            running.restart()
        assert rows_in(url) == 1
