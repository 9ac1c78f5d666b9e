"""A real PostgreSQL of the tests' own: on loopback and a unix socket, with a password, started, cut, killed at will.

Any cluster that runs on this machine already is left alone. PostgreSQL refuses to run as root: where the tests do, it
runs as `postgres`, or as `nobody`.
"""

import contextlib
import os
import pwd
import secrets
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import psycopg

from tests.end_to_end.clients import needs
from tests.helpers.daemon import eventually
from tests.helpers.disks import SmallDisk, small_disk
from tests.helpers.mortal import free_ports, is_alive

__all__ = ["ROLE", "Postgres", "postgres_on_small_disk", "running_postgres"]

ROLE = "enrolld"
"""The role that `url` names: it owns the databases that are made here, and is no superuser."""

_SUPERUSER = "postgres"
_INSTALLED = Path("/usr/lib/postgresql")
_START_SECONDS = 60.0
_STOP_SECONDS = 30.0
_STOPPING = {"smart": signal.SIGTERM, "fast": signal.SIGINT, "immediate": signal.SIGQUIT}
_SETTINGS = {
    "listen_addresses": "127.0.0.1",
    "shared_buffers": "16MB",
    "min_wal_size": "4MB",
    "max_wal_size": "32MB",
    "max_connections": "100",
    "jit": "off",
    "log_line_prefix": "%m [%p] %q%u@%d ",
}


class Postgres:
    """One cluster. `start` makes it when it is first called; `close` ends it and removes what it wrote."""

    def __init__(
        self, *, fsync: bool = True, data: Path | None = None, settings: Mapping[str, str] | None = None
    ) -> None:
        """Nothing runs yet.

        `fsync` False is for tests in which no disk and no machine fails. `data` is a folder, such as a small disk, that
        is given to PostgreSQL to keep its files in; it must be reachable for another user than root. `settings` stand
        in its configuration.
        """
        needs("postgresql")
        self._user = _user()
        self._programs = _newest()
        self._password = secrets.token_urlsafe(18)
        # The path of a socket is short, and that of a test's folder belongs to root alone.
        self._folder = Path(tempfile.mkdtemp(prefix="pg-", dir="/tmp"))
        self._data = (data or self._folder) / "cluster"
        self._settings = {**_SETTINGS, "fsync": "on" if fsync else "off", **(settings or {})}
        self._process: subprocess.Popen[bytes] | None = None
        self._kept: psycopg.Connection[tuple[Any, ...]] | None = None
        self.log = self._folder / "log"
        (self.port,) = free_ports(1)
        for given in (self._folder, self._data.parent):
            if self._user is not None:
                os.chown(given, self._user.pw_uid, self._user.pw_gid)

    def url(self, database: str, *, over_socket: bool = False) -> str:
        """What `--store` takes: the role `enrolld`, its password, and the database."""
        if over_socket:
            return f"postgresql://{ROLE}:{self._password}@/{database}?host={self._folder}&port={self.port}"
        return f"postgresql://{ROLE}:{self._password}@127.0.0.1:{self.port}/{database}"

    @property
    def password(self) -> str:
        """What must never stand in a log."""
        return self._password

    def start(self) -> None:
        """Start it, and wait until it answers. It recovers by itself from however it ended."""
        if not self._data.exists():
            self._make()
        self._spawn()
        self._wait_until_up()

    def stop(self, mode: str = "fast") -> None:
        """End it: `smart` waits for clients, `fast` ends their transactions, `immediate` leaves recovery to `start`."""
        process = self._process
        if process is None or process.poll() is not None:
            return
        self._let_go()
        process.send_signal(_STOPPING[mode])
        try:
            process.wait(_STOP_SECONDS)
        except subprocess.TimeoutExpired:
            self.kill()
            raise AssertionError(f"PostgreSQL did not end within {_STOP_SECONDS:g} s: {self._last_words()}") from None

    def restart(self, mode: str = "immediate") -> None:
        """Stop and start."""
        self.stop(mode)
        self.start()

    def kill(self) -> None:
        """SIGKILL for all of its processes, as a machine that loses its power; none is left when this returns."""
        process = self._process
        if process is None or process.poll() is not None:
            return
        process.send_signal(signal.SIGSTOP)  # so that it makes no more of them
        children = self._children()
        process.kill()
        for pid in children:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        process.wait()
        eventually(lambda: None if any(map(is_alive, children)) else True, what="PostgreSQL's processes are gone")

    @contextlib.contextmanager
    def frozen(self) -> Iterator[None]:
        """Nothing of it moves while this lasts, and every connection stays: as a machine that hangs."""
        stopped = [self.pid]
        os.kill(self.pid, signal.SIGSTOP)
        try:
            for pid in self._children():
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGSTOP)
                    stopped.append(pid)
            yield
        finally:
            for pid in reversed(stopped):
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGCONT)

    def close(self) -> None:
        """End it however it is, and remove its files."""
        self._let_go()
        try:
            with contextlib.suppress(AssertionError):  # it was killed then, which is an end as well
                self.stop("immediate")
        finally:
            shutil.rmtree(self._data, ignore_errors=True)
            shutil.rmtree(self._folder, ignore_errors=True)

    def is_up(self) -> bool:
        """Whether it takes connections just now."""
        try:
            self.connect("postgres").close()
        except psycopg.OperationalError:
            return False
        return True

    @property
    def pid(self) -> int:
        """The process id of the postmaster, whose children are the backends."""
        assert self._process is not None, "it was never started"
        return self._process.pid

    def create(self, database: str) -> str:
        """Make an empty database of the role `enrolld`; its URL."""
        self._administer(f'CREATE DATABASE "{database}" OWNER {ROLE}')
        return self.url(database)

    def copy(self, template: str, new: str) -> str:
        """Make a database that is a copy of another, to which nobody may be connected; its URL."""
        # Through its log, as PostgreSQL 15 does it unless told otherwise, a small database costs twice as much.
        strategy = " STRATEGY file_copy" if _version(self._programs) >= 15 else ""
        self._administer(f'CREATE DATABASE "{new}" TEMPLATE "{template}" OWNER {ROLE}{strategy}')
        return self.url(new)

    def drop(self, database: str) -> None:
        """Remove a database, whoever is connected to it; no error when there is none."""
        self._administer(f'DROP DATABASE IF EXISTS "{database}" WITH (FORCE)')

    def cut_connections(self, database: str | None = None) -> int:
        """End every connection of clients, or those to one database: how many there were."""
        ours = [self._kept.info.backend_pid] if self._kept is not None and not self._kept.closed else []
        (row,) = self.psql(
            "SELECT count(*) FILTER (WHERE pg_terminate_backend(pid)) FROM pg_stat_activity"
            " WHERE backend_type = 'client backend' AND pid != pg_backend_pid() AND pid != ALL(%s)"
            " AND datname = coalesce(%s, datname)",
            ours,
            database,
        )
        return int(row[0])

    def psql(self, sql: str, *values: object, database: str = "postgres") -> list[tuple[Any, ...]]:
        """Run one statement as the superuser, in a transaction of its own: its rows, none for what returns none."""
        with contextlib.closing(self.connect(database)) as connection:
            done = connection.execute(sql, values or None)
            return done.fetchall() if done.description is not None else []

    def connect(self, database: str) -> psycopg.Connection[tuple[Any, ...]]:
        """A connection of the superuser, each statement of which is a transaction."""
        return psycopg.connect(
            host="127.0.0.1",
            port=self.port,
            user=_SUPERUSER,
            password=self._password,
            dbname=database,
            connect_timeout=10,
            autocommit=True,
        )

    def _administer(self, sql: str) -> None:
        """Run a statement on a connection that is kept: beside what most tests do, making one costs much."""
        if self._kept is not None:
            try:
                self._kept.execute(cast(Any, sql))
            except psycopg.OperationalError:
                self._let_go()  # it was killed, and restarted since
            else:
                return
        self._kept = self.connect("postgres")
        self._kept.execute(cast(Any, sql))

    def _let_go(self) -> None:
        if self._kept is not None:
            self._kept.close()
        self._kept = None

    def _children(self) -> list[int]:
        return [int(pid) for pid in Path(f"/proc/{self.pid}/task/{self.pid}/children").read_text().split()]

    def _wait_until_up(self) -> None:
        process = self._process

        def answers() -> bool | None:
            assert process is not None
            assert process.poll() is None, f"PostgreSQL ended with {process.returncode}: {self._last_words()}"
            return self.is_up() or None

        eventually(answers, what="PostgreSQL answers", seconds=_START_SECONDS)

    def _make(self) -> None:
        password = self._folder / "password"
        password.write_text(self._password)
        if self._user is not None:
            os.chown(password, self._user.pw_uid, self._user.pw_gid)
        command = ["initdb", "--pgdata", str(self._data), "--username", _SUPERUSER, "--pwfile", str(password)]
        self._run(*command, "--auth=scram-sha-256", "--encoding=UTF8", "--locale=C", "--wal-segsize=1", "--no-sync")
        password.unlink()
        settings = {**self._settings, "port": str(self.port), "unix_socket_directories": str(self._folder)}
        with (self._data / "postgresql.conf").open("a") as file:
            file.writelines(f"{name} = '{value}'\n" for name, value in settings.items())
        self._spawn()
        self._wait_until_up()
        self.psql(f"CREATE ROLE {ROLE} LOGIN PASSWORD '{self._password}'")
        self.stop()

    def _spawn(self) -> None:
        assert self._process is None or self._process.poll() is not None, "it runs already"
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(
                [str(self._programs / "postgres"), "-D", str(self._data)],
                cwd=self._folder,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env=_environment(),
                # A group of its own: an interrupt at the terminal is for the tests, which then end it.
                start_new_session=True,
                **self._as_user(),
            )

    def _run(self, program: str, *arguments: str) -> None:
        done = subprocess.run(
            [str(self._programs / program), *arguments],
            cwd=self._folder,
            capture_output=True,
            timeout=120,
            check=False,
            env=_environment(),
            **self._as_user(),
        )
        assert done.returncode == 0, f"{program}: {(done.stdout + done.stderr).decode(errors='replace')}"

    def _as_user(self) -> dict[str, Any]:
        if self._user is None:
            return {}
        return {"user": self._user.pw_uid, "group": self._user.pw_gid, "extra_groups": cast(Sequence[int], ())}

    def _last_words(self) -> str:
        return self.log.read_text(errors="replace")[-2000:]


@contextlib.contextmanager
def running_postgres(
    *, fsync: bool = True, data: Path | None = None, settings: Mapping[str, str] | None = None
) -> Iterator[Postgres]:
    """A cluster that runs until the block ends, whatever happens in it."""
    made = Postgres(fsync=fsync, data=data, settings=settings)
    try:
        made.start()
        yield made
    finally:
        made.close()


@contextlib.contextmanager
def postgres_on_small_disk(
    size: int, *, settings: Mapping[str, str] | None = None
) -> Iterator[tuple[Postgres, SmallDisk]]:
    """A cluster whose files, but for its log, are on a disk of `size` bytes that holds nothing else."""
    with tempfile.TemporaryDirectory(prefix="disk-", dir="/tmp") as name:
        Path(name).chmod(0o711)  # it may be another user's, who passes through
        with small_disk(Path(name) / "disk", size) as disk, running_postgres(data=disk.root, settings=settings) as made:
            yield made, disk


def _user() -> pwd.struct_passwd | None:
    """Whom it runs as: None is whoever runs the tests."""
    if os.geteuid():
        return None
    with contextlib.suppress(KeyError):
        return pwd.getpwnam("postgres")
    return pwd.getpwnam("nobody")


def _newest() -> Path:
    """The programs of the newest version that is installed."""
    found = [path.parent for path in _INSTALLED.glob("*/bin/postgres")]
    assert found, f"no PostgreSQL server in {_INSTALLED}"
    return max(found, key=_version)


def _version(programs: Path) -> float:
    return float(programs.parent.name)


def _environment() -> dict[str, str]:
    """Nothing of ours: a PG* variable would point it elsewhere."""
    return {"PATH": os.environ["PATH"], "LC_ALL": "C", "TZ": "UTC"}
