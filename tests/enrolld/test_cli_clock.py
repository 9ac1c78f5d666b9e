"""`enrolld clock` as an operator types it, on a store that a clock in the future wrote into."""

import asyncio
import datetime as dt
import os
import pty
import shutil
import subprocess
from pathlib import Path

import pytest

from ca_core.authority.sealing import UnlockKey
from ca_core.core import Core, CoreConfig
from enrolld.cli import main
from tests.enrolld.test_cli_device import ENROLLD
from tests.enrolld.test_cli_store import Shell

AHEAD = dt.timedelta(days=3650)


def written_by(directory: Path, ahead: dt.timedelta) -> None:
    """Have somebody whose clock is ahead register a device and publish the CRLs."""

    async def work() -> None:
        key = UnlockKey.load(directory / "keys" / "unlock")
        url = f"sqlite:///{directory}/enrolld.db"
        config = CoreConfig(url, key, "http://localhost", demo=False, clock=lambda: dt.datetime.now(dt.UTC) + ahead)
        core = Core.open(config)
        try:
            await core.devices.add("default", "of-the-future", actor="operator:test")
            await core.crls.publish()
        finally:
            core.close()

    asyncio.run(work())


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("cli") / "enrolld"
    assert main(["--dir", str(directory), "init", "--name", "pki.example.com"]) == 0
    written_by(directory, AHEAD)
    return directory


@pytest.fixture
def shell(made: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Shell:
    for name in [name for name in os.environ if name.startswith(("ENROLLD_", "CREDENTIALS_DIRECTORY"))]:
        monkeypatch.delenv(name)
    return Shell(Path(shutil.copytree(made, tmp_path / "enrolld")), capsys)


def test_what_is_dated_later_is_shown_with_the_next_command(shell: Shell) -> None:
    said, err = shell("clock", "show")
    assert "open secrets dated later  1" in said
    assert 'clock accept --reason "..."' in err
    assert {each["code"] for each in shell.ask("check", status=3)["findings"]} == {"clock_behind", "crl_ahead"}
    assert "enrolld clock show" in shell("check", status=3)[0]
    state = shell.ask("clock", "show")
    assert set(state) == {
        "clock",
        "database_clock",
        "newest_event",
        "behind",
        "off",
        "events",
        "certificates",
        "secrets",
        "crls",
        "accepted",
    }
    assert (state["behind"], state["off"], state["database_clock"], state["accepted"]) == (True, False, None, None)


def test_a_clock_is_accepted_and_the_crls_are_dated_back_by_a_command_of_their_own(shell: Shell) -> None:
    assert shell.refusal("crl", "publish", "--redate") == "clock_behind"
    _, err = shell("clock", "accept", "--reason", "a dead battery", "--yes")
    for following in ("crl publish --redate", "device secret NAME"):
        assert following in err
    state = shell.ask("clock", "show")
    assert (state["behind"], state["accepted"]["back_from"][:3]) == (False, "203")
    assert {each["code"] for each in shell.ask("check", status=3)["findings"]} == {"crl_ahead"}
    crls = shell.rows("crl", "publish", "--redate")
    assert {row["issuer"] for row in crls} == set(state["crls"])
    assert {row["this_update"][:10] for row in crls} == {state["clock"][:10]}
    assert "No CRL is dated later" in shell("crl", "publish", "--redate")[1]
    assert shell.ask("check") == {"ok": True, "findings": []}
    assert shell.ask("audit", "verify")["ok"]
    assert shell.refusal("clock", "accept", "--reason", "again", "--yes") == "clock_not_behind"


def test_a_reason_and_somebody_who_knows_the_date_are_wanted(shell: Shell, monkeypatch: pytest.MonkeyPatch) -> None:
    assert shell.ask("clock", "accept", "--yes", status=2)["error"] == "usage"
    with open(os.devnull) as nobody:
        monkeypatch.setattr("sys.stdin", nobody)
        assert shell.ask("clock", "accept", "--reason", "a dead battery", status=2)["error"] == "usage"
    assert shell.refusal("clock", "accept", "--reason", " ", "--yes") == "reason_missing"
    assert shell.ask("clock", "show")["behind"]


@pytest.mark.parametrize(
    ("date", "status"),
    [pytest.param(dt.timedelta(0), 0, id="right"), pytest.param(dt.timedelta(days=1), 1, id="another")],
)
def test_on_a_terminal_the_date_is_asked_for(shell: Shell, date: dt.timedelta, status: int) -> None:
    ours, theirs = pty.openpty()
    with open(ours, "wb", buffering=0) as terminal:
        command = [ENROLLD, "--dir", str(shell.directory), "clock", "accept", "--reason", "a dead battery"]
        asked = subprocess.Popen(command, stdin=theirs, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        os.close(theirs)
        terminal.write(f"{(dt.datetime.now(dt.UTC) + date):%Y-%m-%d}\n".encode())
        said, err = asked.communicate(timeout=60)
    assert asked.returncode == status, said + err
    assert "Today's date (UTC), from another clock than this one" in err
    assert shell.ask("clock", "show")["behind"] is (status == 1)
