"""`enrolld check --matrix`: over the rules of an installation, and over nothing else of it."""

import asyncio
import json
import os
import pty
import signal
import socket
import stat
import subprocess
import sys
import time
from pathlib import Path

import pytest

from enrolld.cli import main
from tests.helpers import factory
from tests.helpers.admission import admit_by
from tests.helpers.core import ME, Installation

ENROLLD = str(Path(sys.executable).with_name("enrolld"))
_TABLES = ("realm", "realm_version", "sealed_key", "certificate", "device", "device_secret", "request", "attempt")


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where throw-away folders are made."""
    made = tmp_path / "tmp"
    made.mkdir()
    monkeypatch.setenv("TMPDIR", str(made))
    monkeypatch.setattr("tempfile.tempdir", None)
    return made


def prepare(installation: Installation, *, idevid: str = "registered", webhook: str | None = None) -> None:
    """Both realms trust one manufacturer; `other` may ask a webhook."""

    async def change() -> None:
        core = installation.open()
        try:
            anchor = factory.root()
            for realm in ("default", "other"):
                await core.trust.add(realm, anchor.pem, name="acme", actor=ME)
                await admit_by(core, "secret", "idevid", realm=realm, idevid=idevid)
            if webhook is not None:
                settings = {"webhook": {"url": webhook, "key": "hooks"}}
                await admit_by(core, "secret + webhook", realm="other", **settings)
        finally:
            core.close()

    asyncio.run(change())


def test_the_matrix_of_an_installation_passes_and_shows_its_size(
    installation: Installation, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    prepare(installation)
    installation.unlock_key.unlink()  # none of its keys is needed
    before = {table: installation.sql(f"SELECT * FROM {table}") for table in (*_TABLES, "audit")}  # noqa: S608
    assert main(["--dir", str(installation.directory), "check", "--matrix", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert list(told) == ["cells", "pairs", "failures", "skipped"]
    assert told["cells"] >= 90
    assert (told["pairs"], told["failures"], told["skipped"]) == (2, [], [])
    assert {table: installation.sql(f"SELECT * FROM {table}") for table in before} == before  # noqa: S608
    assert list(folder.iterdir()) == []
    assert main(["--dir", str(installation.directory), "check", "--matrix"]) == 0
    assert "every credential works in its own realm, and in no other" in capsys.readouterr().out


def test_realms_that_are_not_apart_are_findings_with_the_cell(
    installation: Installation, capsys: pytest.CaptureFixture[str]
) -> None:
    prepare(installation, idevid="trusted")
    assert main(["--dir", str(installation.directory), "--json", "check", "--matrix"]) == 3
    told = json.loads(capsys.readouterr().out)
    assert {
        "home": "default",
        "away": "other",
        "relation": "same_anchor",
        "credential": "idevid",
        "operation": "simpleenroll",
        "asked_in": "other",
        "expected": "device_unknown",
        "got": "issued",
    } in told["failures"]
    assert main(["--dir", str(installation.directory), "check", "--matrix"]) == 3
    said = capsys.readouterr().out
    assert (
        "error: idevid of realm default, simpleenroll in realm other (default -> other, same_anchor): "
        "expected device_unknown, got issued\n"
    ) in said
    assert "these realms are not apart" in said


def test_no_webhook_is_asked(installation: Installation, capsys: pytest.CaptureFixture[str]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        prepare(installation, webhook=f"http://127.0.0.1:{server.getsockname()[1]}/ask")
        assert main(["--dir", str(installation.directory), "--json", "check", "--matrix"]) == 0
        server.setblocking(False)
        with pytest.raises(BlockingIOError):
            server.accept()
    assert json.loads(capsys.readouterr().out)["cells"] > 50


def test_one_realm_alone_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--dir", str(tmp_path / "d"), "init"]) == 0
    capsys.readouterr()
    assert main(["--dir", str(tmp_path / "d"), "check", "--matrix"]) == 0
    assert "There are no two realms to compare." in capsys.readouterr().out


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP], ids=lambda value: value.name)
def test_whoever_ends_it_leaves_nothing_behind(installation: Installation, folder: Path, number: int) -> None:
    prepare(installation)
    before = signal.signal(signal.SIGHUP, signal.SIG_DFL)  # where the tests run under nohup, it would be ignored
    process = subprocess.Popen(
        [ENROLLD, "--dir", str(installation.directory), "check", "--matrix"],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
    )
    signal.signal(signal.SIGHUP, before)
    end = time.monotonic() + 60
    while not (made := list(folder.glob("enrolld-matrix-*/matrix.db"))):
        assert process.poll() is None
        assert time.monotonic() < end
        time.sleep(0.002)
    assert stat.S_IMODE(made[0].parent.stat().st_mode) == 0o700
    assert stat.S_IMODE(made[0].stat().st_mode) == 0o600
    process.send_signal(number)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 130
    assert said == b"enrolld: Interrupted.\n"
    assert list(folder.iterdir()) == []


def test_a_terminal_sees_how_far_it_is(installation: Installation) -> None:
    prepare(installation)
    ours, theirs = pty.openpty()
    done = subprocess.run(
        [ENROLLD, "--dir", str(installation.directory), "check", "--matrix"],
        stdout=subprocess.PIPE,
        stderr=theirs,
        timeout=120,
        check=False,
    )
    os.close(theirs)
    said = os.read(ours, 65536).decode()
    os.close(ours)
    assert done.returncode == 0
    assert said.startswith("\rProving") or "Proving" in said
    assert b"Proving" not in done.stdout


def test_without_a_store_it_is_refused_as_any_other_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--dir", str(tmp_path / "nowhere"), "--json", "check", "--matrix"]) == 1
    assert json.loads(capsys.readouterr().out)["error"] == "no_store"
