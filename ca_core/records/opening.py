"""Opening and making stores by URL.

`sqlite:///PATH` is the embedded default. A store carries the revision of its schema; a daemon opens only the revision
that it was built for, and `create` brings an older one up to it.
"""

import filecmp
import logging
import os
import sqlite3
import warnings
from pathlib import Path

from ca_core.errors import OperatorError, Unavailable
from ca_core.meter import NO_METER, Meter
from ca_core.records.place import refuse_network
from ca_core.records.sqlite import SqliteStore, connect
from ca_core.records.store import Hook, Store

HEAD = "0003"
"""The revision of the schema that this version speaks."""
EARLIER = ("0001", "0002")
"""Those that can be brought up to it."""

_PREFIX = "sqlite:///"


def sqlite_path(url: str) -> Path:
    """The file of a `sqlite:///PATH` URL. Raises `OperatorError` for any other."""
    if not url.startswith(_PREFIX) or len(url) == len(_PREFIX):
        scheme = url.split(":", 1)[0]
        raise OperatorError(
            "store_unsupported",
            f"a store at '{scheme}:' is not supported by this version",
            "use sqlite:///PATH, such as sqlite:////var/lib/enrolld/enrolld.db",
        )
    return Path(url.removeprefix(_PREFIX))


def exists(url: str) -> bool:
    """Whether there is a store at `url`."""
    return sqlite_path(url).is_file()


def open_store(url: str, *, process: str, version: str, hook: Hook | None = None, meter: Meter = NO_METER) -> Store:
    """Open an existing store of this version's revision. Raises `OperatorError`, `Unavailable`."""
    path = sqlite_path(url)
    if not path.is_file():
        raise OperatorError("store_missing", f"there is no store at {path}", "make one with 'enrolld init'")
    refuse_network(path)
    found = _revision(path)
    if found != HEAD:
        is_older = found in EARLIER
        raise OperatorError(
            "store_outdated" if is_older else "store_revision",
            f"the store is of revision {found or 'none'}, this version needs {HEAD}",
            "stop the daemon and run 'enrolld upgrade'"
            if is_older
            else "use the version of enrolld that this store was made with",
        )
    return SqliteStore(path, process=process, version=version, hook=hook, meter=meter)


def create_store(url: str) -> None:
    """Make the store at `url`, or bring it to this version's revision. Raises `OperatorError`, `Unavailable`."""
    path = sqlite_path(url)
    refuse_network(path)
    if path.exists() and _revision(path) == HEAD:
        return
    # A new database is made beside its place and moved there whole: an interrupted `init` leaves nothing half-made.
    making = path if path.exists() else path.with_name(path.name + ".new")
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        if making is not path:
            making.unlink(missing_ok=True)
            # SQLite gives its -wal and -shm files the mode of the database.
            os.close(os.open(making, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600))
        _migrate(making)
        if making is not path:
            making.rename(path)
    except OSError as exc:
        raise OperatorError("store_unwritable", f"can't make {path}: {exc.strerror}", "choose another --dir") from exc


def upgrade_store(url: str) -> tuple[str, Path | None]:
    """Bring the store at `url` to this version's revision: the one that it had, and where it lies as it was before.

    The copy is None when there was nothing to do. Raises `OperatorError`, `Unavailable`; the store is then as it was.
    """
    path = sqlite_path(url)
    if not path.is_file():
        raise OperatorError("store_missing", f"there is no store at {path}", "make one with 'enrolld init'")
    found = _revision(path)
    if found == HEAD:
        return HEAD, None
    if found not in EARLIER:
        open_store(url, process="cli", version="").close()  # which says what is wrong
    copy = path.with_name(f"{path.name}.{found}")
    try:
        # Made beside its place and moved there whole: an upgrade that was interrupted can be run again.
        making = path.with_name(f"{copy.name}.new")
        making.unlink(missing_ok=True)
        os.close(os.open(making, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600))
        source, target = connect(path, read_only=True), sqlite3.connect(making)
        try:
            source.backup(target)
        finally:
            source.close()
            target.close()
        if copy.exists() and not filecmp.cmp(making, copy, shallow=False):
            making.unlink()
            raise FileExistsError
        with making.open("rb") as file:
            os.fsync(file.fileno())
        making.rename(copy)
        _migrate(path)
    except FileExistsError as exc:
        raise OperatorError(
            "copy_exists", f"there is a copy from an earlier upgrade at {copy}", "move it to another place"
        ) from exc
    except (OSError, sqlite3.Error) as exc:
        path.with_name(f"{copy.name}.new").unlink(missing_ok=True)
        raise Unavailable(f"can't copy the database {path}: {exc}") from exc
    return str(found), copy


def _revision(path: Path) -> str | None:
    try:
        connection = connect(path, read_only=True)
        try:
            known = connection.execute("SELECT 1 FROM sqlite_master WHERE name='alembic_version'").fetchone()
            row = connection.execute("SELECT version_num FROM alembic_version").fetchone() if known else None
        finally:
            connection.close()
    except sqlite3.Error as exc:
        raise Unavailable(f"can't read the database {path}: {exc}") from exc
    return str(row[0]) if row else None


def _migrate(path: Path) -> None:
    # Alembic is slow to import, and only the commands that make or upgrade a store need it.
    from alembic import command
    from alembic.config import Config

    connect(path).close()  # WAL from the first page on
    logging.getLogger("alembic").setLevel(logging.WARNING)
    config = Config()
    config.set_main_option("script_location", str(Path(__file__).with_name("migrations")))
    config.set_main_option("path_separator", "os")
    config.attributes["url"] = f"sqlite:///{path}"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        command.upgrade(config, "head")
