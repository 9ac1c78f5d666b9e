"""`enrolld store copy`: from a SQLite file to PostgreSQL, and what is refused on the way."""

import json
import os
import pty
import select
import subprocess
import time
from pathlib import Path

import pytest

from enrolld import running
from enrolld.cli import main
from tests.helpers.daemon import ENROLLD
from tests.helpers.postgres import Postgres


@pytest.fixture
def directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Path:
    """A CA with a device, on SQLite."""
    for name in [name for name in os.environ if name.startswith(("ENROLLD_", "CREDENTIALS_DIRECTORY", "PG"))]:
        monkeypatch.delenv(name)
    directory = tmp_path / "enrolld"
    assert main(["--dir", str(directory), "init"]) == 0
    assert main(["--dir", str(directory), "device", "add", "old-1"]) == 0
    capsys.readouterr()
    return directory


@pytest.fixture
def target(postgres: Postgres, database: str, monkeypatch: pytest.MonkeyPatch) -> str:
    """An empty database, whose password comes by the environment."""
    monkeypatch.setenv("PGPASSWORD", postgres.password)
    return database.replace(f":{postgres.password}@", "@")


def ask(directory: Path, capsys: pytest.CaptureFixture[str], *arguments: str, status: int = 0) -> dict[str, object]:
    assert main(["--dir", str(directory), *arguments, "--json"]) == status
    answer: dict[str, object] = json.loads(capsys.readouterr().out)
    return answer


def test_the_installation_goes_on_in_the_database(
    directory: Path, target: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    done = ask(directory, capsys, "store", "copy", target)
    assert done["to"] == target
    assert done["kept"] == str(directory / "enrolld.db.copied")
    assert ask(directory, capsys, "device", "show", "old-1", status=1)["error"] == "no_store"
    monkeypatch.setenv("ENROLLD_STORE", target)
    assert ask(directory, capsys, "device", "show", "old-1")["device"] == "old-1"
    assert ask(directory, capsys, "device", "add", "new-1")["device"] == "new-1"
    assert ask(directory, capsys, "status")["store"] == target


@pytest.mark.parametrize("command", [("init",), ("serve", "--init"), ("serve",)], ids=" ".join)
def test_nobody_makes_a_new_ca_where_the_records_were_moved_away(
    directory: Path, target: str, capsys: pytest.CaptureFixture[str], command: tuple[str, ...]
) -> None:
    ask(directory, capsys, "store", "copy", target)
    refusal = ask(directory, capsys, *command, *(("--https", "127.0.0.1:0") if command[0] == "serve" else ()), status=1)
    assert refusal["error"] == "store_moved"
    assert "[store] url" in str(refusal["remedy"])
    assert not (directory / "enrolld.db").exists()
    (directory / "enrolld.db.copied").rename(directory / "enrolld.db")
    assert ask(directory, capsys, "device", "show", "old-1")["device"] == "old-1"  # the way back


def test_a_person_is_told_what_to_do_next(directory: Path, target: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--dir", str(directory), "store", "copy", target]) == 0
    told = capsys.readouterr().err
    assert f'url = "{target}"' in told
    assert "the same unlock key" in told


def test_on_a_terminal_a_bar_shows_how_far_it_is(directory: Path, target: str) -> None:
    """On a terminal of its own, as a person would see it."""
    ours, theirs = pty.openpty()
    command = [str(ENROLLD), "--dir", str(directory), "store", "copy", target]
    with subprocess.Popen(command, stdin=theirs, stdout=subprocess.DEVNULL, stderr=theirs) as process:
        os.close(theirs)
        shown = b""
        until = time.monotonic() + 60
        while time.monotonic() < until and select.select([ours], [], [], 60)[0]:
            try:
                shown += os.read(ours, 4096)
            except OSError:  # the other end is closed
                break
        assert process.wait(60) == 0, shown.decode(errors="replace")
    os.close(ours)
    assert b"rows" in shown
    assert b"100%" in shown


def test_nothing_is_copied_under_a_running_daemon(
    directory: Path, target: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with running.locked(directory):
        assert ask(directory, capsys, "store", "copy", target, status=1)["error"] == "already_running"
    ask(directory, capsys, "store", "copy", target)  # the twin


@pytest.mark.parametrize(
    ("to", "code"),
    [
        pytest.param("postgresql://enrolld:hush@127.0.0.1/x", "password_exposed", id="password-in-the-arguments"),
        pytest.param("postgresql://127.0.0.1/x?password=hush", "password_exposed", id="password-as-an-option"),
        pytest.param("sqlite:////tmp/other.db", "store_copy_target", id="to-a-file"),
        pytest.param("postgresql://127.0.0.1:1/x", "store_unreachable", id="no-server-there"),
    ],
)
def test_a_copy_that_can_not_be_made_changes_nothing(
    directory: Path, capsys: pytest.CaptureFixture[str], to: str, code: str
) -> None:
    answer = ask(directory, capsys, "store", "copy", to, status=1)
    assert answer["error"] == code
    assert "hush" not in json.dumps(answer)
    assert ask(directory, capsys, "device", "show", "old-1")["device"] == "old-1"


def test_only_a_file_can_be_copied(
    directory: Path, target: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    ask(directory, capsys, "store", "copy", target)
    monkeypatch.setenv("ENROLLD_STORE", target)
    assert ask(directory, capsys, "store", "copy", target, status=1)["error"] == "store_copy_source"


def test_a_password_among_the_arguments_is_refused_with_every_command(
    directory: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    answer = ask(directory, capsys, "--store", "postgresql://me:hush@127.0.0.1/x", "status", status=2)
    assert answer["error"] == "usage"
    assert "a password among the arguments" in str(answer["message"])
    assert "hush" not in json.dumps(answer)
