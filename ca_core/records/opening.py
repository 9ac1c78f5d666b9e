"""Opening and making stores by URL.

`sqlite:///PATH` is the embedded default, `postgresql://...` what several nodes share. A store carries the revision of
its schema; a daemon opens only the revision that it was built for. What speaks PostgreSQL is imported when it is asked
for: every command would start later by it.
"""

import contextlib
from collections.abc import Iterator
from pathlib import Path

from ca_core.errors import OperatorError
from ca_core.meter import NO_METER, Meter
from ca_core.model import Clock
from ca_core.records import sqlite_file
from ca_core.records.migrating import EARLIER, HEAD
from ca_core.records.sqlite import SqliteStore
from ca_core.records.store import Hook, Store

__all__ = [
    "EARLIER",
    "HEAD",
    "create_store",
    "exists",
    "is_shared",
    "open_store",
    "setting_up",
    "shown",
    "sqlite_path",
    "upgrade_store",
]

_SQLITE = "sqlite:///"
_POSTGRES = ("postgresql://", "postgres://")


def is_shared(url: str) -> bool:
    """Whether the store is one that several nodes may share."""
    return url.startswith(_POSTGRES)


def sqlite_path(url: str) -> Path:
    """The file of a `sqlite:///PATH` URL. Raises `OperatorError` for any other."""
    if not url.startswith(_SQLITE) or len(url) == len(_SQLITE):
        scheme = url.split(":", 1)[0]
        raise OperatorError(
            "store_unsupported",
            f"there are no stores at '{scheme}:'",
            "use sqlite:///PATH, such as sqlite:////var/lib/enrolld/enrolld.db, or postgresql://USER@HOST/DATABASE",
        )
    return Path(url.removeprefix(_SQLITE))


def shown(url: str) -> str:
    """The URL without a password, for whoever looks."""
    if not is_shared(url):
        return url
    from ca_core.records.postgres_link import without_password

    return without_password(url)


def exists(url: str) -> bool:
    """Whether there is a store at `url`. Raises `OperatorError`, `Unavailable` when a server can't be asked."""
    if not is_shared(url):
        return sqlite_path(url).is_file()
    from ca_core.records import postgres_database

    return postgres_database.exists(url)


@contextlib.contextmanager
def setting_up(url: str) -> Iterator[None]:
    """Be the only one of all nodes to look whether there is a store, and to make it."""
    if not is_shared(url):
        yield
        return
    from ca_core.records import postgres_database

    with postgres_database.setting_up(url):
        yield


def open_store(
    url: str,
    *,
    process: str,
    version: str,
    hook: Hook | None = None,
    meter: Meter = NO_METER,
    clock: Clock | None = None,
) -> Store:
    """Open an existing store of this version's revision. Raises `OperatorError`, `Unavailable`.

    By `clock` a store that several nodes share judges whether the times that a unit bears are of its commit.
    """
    if not is_shared(url):
        path = sqlite_path(url)
        sqlite_file.check(path)
        return SqliteStore(path, process=process, version=version, hook=hook, meter=meter)
    from ca_core.records import postgres_database
    from ca_core.records.postgres import PostgresStore

    weakness = postgres_database.check(url)
    return PostgresStore(url, process=process, version=version, hook=hook, meter=meter, weakness=weakness, clock=clock)


def create_store(url: str) -> None:
    """Make the store at `url`, or bring it to this version's revision. Raises `OperatorError`, `Unavailable`.

    A PostgreSQL store of an earlier revision is refused: other nodes may be working with it.
    """
    if not is_shared(url):
        sqlite_file.create(sqlite_path(url))
        return
    from ca_core.records import postgres_database

    postgres_database.create(url)


def upgrade_store(url: str) -> tuple[str, Path | None]:
    """Bring the store at `url` to this version's revision: the one that it had, and where it lies as it was before.

    The path is None when there was nothing to do, and always for PostgreSQL, whose backups are its operator's. Raises
    `OperatorError`, `Unavailable`; the store is then as it was.
    """
    if not is_shared(url):
        return sqlite_file.upgrade(sqlite_path(url))
    from ca_core.records import postgres_database

    return postgres_database.upgrade(url), None
