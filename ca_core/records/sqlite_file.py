"""The file of an embedded store: whether it is there, of which revision, and how it is made and upgraded."""

import filecmp
import os
import sqlite3
from pathlib import Path

from ca_core.errors import OperatorError, Unavailable
from ca_core.records.migrating import EARLIER, HEAD, migrate, refuse_revision
from ca_core.records.place import refuse_network
from ca_core.records.sqlite_writer import connect

__all__ = ["check", "create", "upgrade"]


def check(path: Path) -> None:
    """Raise `OperatorError` or `Unavailable` unless there is a store of this version's revision."""
    if not path.is_file():
        raise OperatorError("store_missing", f"there is no store at {path}", "make one with 'enrolld init'")
    refuse_network(path)
    refuse_revision(_revision(path))


def create(path: Path) -> None:
    """Make the store, or bring it to this version's revision. Raises `OperatorError`, `Unavailable`."""
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


def upgrade(path: Path) -> tuple[str, Path | None]:
    """Bring the store to this version's revision: the one that it had, and where it lies as it was before.

    The copy is None when there was nothing to do. Raises `OperatorError`, `Unavailable`; the store is then as it was.
    """
    if not path.is_file():
        raise OperatorError("store_missing", f"there is no store at {path}", "make one with 'enrolld init'")
    found = _revision(path)
    if found == HEAD:
        return HEAD, None
    if found not in EARLIER:
        refuse_revision(found)
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
    connect(path).close()  # WAL from the first page on
    migrate(f"sqlite:///{path}")
