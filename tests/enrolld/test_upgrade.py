"""`enrolld upgrade`: a store of the version before keeps all it has, and a copy of it stays behind."""

import contextlib
import json
import os
import sqlite3
from pathlib import Path

import pytest

from ca_core.records import opening, sqlite_file
from enrolld import running
from enrolld.cli import main
from tests.helpers.earlier import take_back


@pytest.fixture
def directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Path:
    """A CA with a device, whose store is of the first revision."""
    for name in [name for name in os.environ if name.startswith(("ENROLLD_", "CREDENTIALS_DIRECTORY"))]:
        monkeypatch.delenv(name)
    directory = tmp_path / "enrolld"
    assert main(["--dir", str(directory), "init"]) == 0
    assert main(["--dir", str(directory), "device", "add", "old-1"]) == 0
    take_back(directory / "enrolld.db", "0001")
    capsys.readouterr()
    return directory


def ask(directory: Path, capsys: pytest.CaptureFixture[str], *arguments: str, status: int = 0) -> dict[str, str]:
    assert main(["--dir", str(directory), *arguments, "--json"]) == status
    answer: dict[str, str] = json.loads(capsys.readouterr().out)
    return answer


def columns(database: Path, table: str) -> list[str]:
    with contextlib.closing(sqlite3.connect(database)) as connection:
        return [row[1] for row in connection.execute(f"PRAGMA table_info({table})")]


def test_an_outdated_store_is_refused_with_the_command_that_helps(
    directory: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    refusal = ask(directory, capsys, "device", "show", "old-1", status=1)
    assert refusal["error"] == "store_outdated"
    assert "enrolld upgrade" in refusal["remedy"]


def test_an_upgraded_store_keeps_what_it_has_and_leaves_a_copy_of_before(
    directory: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    done = ask(directory, capsys, "upgrade")
    assert (done["from"], done["to"]) == ("0001", opening.HEAD)
    copy = Path(done["copy"])
    assert copy.stat().st_mode & 0o777 == 0o600
    assert "transaction_id" not in columns(copy, "certificate")
    assert "transaction_id" in columns(directory / "enrolld.db", "certificate")
    assert ask(directory, capsys, "device", "show", "old-1")["device"] == "old-1"
    assert ask(directory, capsys, "upgrade")["copy"] is None  # nothing more to do


def test_nothing_is_upgraded_under_a_running_daemon(directory: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with running.locked(directory):
        assert ask(directory, capsys, "upgrade", status=1)["error"] == "already_running"
    assert columns(directory / "enrolld.db", "tolerance_use") == []
    assert columns(directory / "enrolld.db", "tally") == []
    ask(directory, capsys, "upgrade")  # the twin


def test_an_upgrade_never_overwrites_a_copy(directory: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (directory / "enrolld.db.0001").write_bytes(b"mine")
    assert ask(directory, capsys, "upgrade", status=1)["error"] == "copy_exists"
    assert (directory / "enrolld.db.0001").read_bytes() == b"mine"
    assert "transaction_id" not in columns(directory / "enrolld.db", "certificate")


def test_an_upgrade_that_was_interrupted_is_finished_by_the_next(
    directory: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patched:
        patched.setattr(sqlite_file, "_migrate", lambda _: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            opening.upgrade_store(f"sqlite:///{directory / 'enrolld.db'}")
    assert columns(directory / "enrolld.db", "tally") == []
    done = ask(directory, capsys, "upgrade")
    assert Path(done["copy"]).name == "enrolld.db.0001"
    assert columns(directory / "enrolld.db", "tally") != []


@pytest.mark.parametrize("revision", ["9999", ""])
def test_a_store_of_another_version_is_left_alone(
    directory: Path, capsys: pytest.CaptureFixture[str], revision: str
) -> None:
    with contextlib.closing(sqlite3.connect(directory / "enrolld.db")) as connection, connection:
        connection.execute("UPDATE alembic_version SET version_num = ?", (revision,))
    assert ask(directory, capsys, "upgrade", status=1)["error"] == "store_revision"
    assert list(directory.glob("enrolld.db.0*")) == []
