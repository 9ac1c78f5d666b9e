"""`enrolld device import|list|show|set|why|replace|retire` as an operator types them, on a real store."""

import contextlib
import csv
import hashlib
import json
import os
import pty
import shutil
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from enrolld.cli import main
from tests.end_to_end.clients import needs
from tests.enrolld.test_cli_store import Shell, enroll

ENROLLD = str(Path(sys.executable).with_name("enrolld"))
MANY = 1200


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("cli") / "enrolld"
    assert main(["--dir", str(directory), "init", "--name", "pki.example.com"]) == 0
    return directory


@pytest.fixture
def shell(made: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Shell:
    for name in [name for name in os.environ if name.startswith(("ENROLLD_", "CREDENTIALS_DIRECTORY"))]:
        monkeypatch.delenv(name)
    return Shell(Path(shutil.copytree(made, tmp_path / "enrolld")), capsys)


@pytest.fixture
def listed(tmp_path: Path) -> Path:
    """A list of two devices."""
    path = tmp_path / "devices.csv"
    path.write_bytes(b"name,owner\r\npump-1,line 7\r\nAA:BB,\r\n")
    return path


def secrets_of(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


# --- import ----------------------------------------------------------------------------------------------------------


def test_a_list_is_imported_and_its_secrets_are_for_the_owner_alone(shell: Shell, listed: Path, tmp_path: Path) -> None:
    out = tmp_path / "secrets.csv"
    done = shell.ask("device", "import", str(listed), "--secrets", str(out))
    digest = hashlib.sha256(listed.read_bytes()).hexdigest()
    assert done == {
        "realm": "default",
        "file": "devices.csv",
        "sha256": digest,
        "devices": 2,
        "secrets": str(out),
        "planned": False,
    }
    assert out.stat().st_mode & 0o777 == 0o600
    rows = secrets_of(out)
    assert [(row["device"], row["username"], row["realm"]) for row in rows] == [
        ("pump-1", "pump-1", "default"),
        ("AA:BB", "AA-BB", "default"),
    ]
    enroll(shell.directory, "pump-1", rows[0]["secret"])
    assert [row["device"] for row in shell.rows("device", "list", "--state", "expected")] == ["AA:BB"]
    shown, _ = shell("device", "show", "pump-1")
    assert "device.imported" in shown
    assert "certificate.issued" in shown
    assert [act["act"] for act in shell.ask("device", "show", "pump-1")["history"]] == [
        "certificate.issued",
        "device.imported",
    ]


def test_without_a_file_for_them_no_secrets_are_made(shell: Shell, listed: Path) -> None:
    out, err = shell("device", "import", str(listed))
    assert "devices  2" in out
    assert "device list --state expected" in err
    assert "it has no usable secret" in shell("device", "why", "pump-1")[0]


def test_a_faulty_list_names_every_line_and_changes_nothing(shell: Shell, tmp_path: Path) -> None:
    path, out = tmp_path / "bad.csv", tmp_path / "secrets.csv"
    path.write_text("name,profile\npump-1,\npump 2,gold\npump-1,\npump-3,nope\n")
    answer = shell.ask("device", "import", str(path), "--secrets", str(out), status=1)
    assert answer["error"] == "import_faults"
    assert answer["message"] == "3 lines are wrong, and nothing was imported"
    assert [(fault["line"], fault["column"], fault["code"]) for fault in answer["faults"]] == [
        (3, "name", "name_invalid"),
        (3, "profile", "profile_unknown"),
        (4, "name", "device_exists"),
        (5, "profile", "profile_unknown"),
    ]
    assert not out.exists()
    assert shell.rows("device", "list") == []
    said, err = shell("device", "import", str(path), status=1)
    assert said == ""
    assert f"{path}, line 3, name: 'pump 2' can't be the name of a device" in err
    assert "3 lines are wrong" in err


def test_a_person_is_told_the_first_faults_and_json_all(shell: Shell, tmp_path: Path) -> None:
    path = tmp_path / "bad.csv"
    path.write_text("name\n" + "a b\n" * 500)
    _, err = shell("device", "import", str(path), status=1)
    assert err.count("can't be the name of a device") == 20
    assert "and 480 more; --json lists all" in err
    assert len(shell.ask("device", "import", str(path), status=1)["faults"]) == 500


def test_a_plan_tells_and_writes_nothing(shell: Shell, listed: Path, tmp_path: Path) -> None:
    out = tmp_path / "secrets.csv"
    _, err = shell("device", "import", str(listed), "--plan", "--secrets", str(out))
    assert "is sound: 2 devices would be registered in realm default" in err
    assert not out.exists()
    assert shell.rows("device", "list") == []


@pytest.mark.parametrize("what", ["file", "link", "dangling-link"])
def test_secrets_never_take_the_place_of_another_file(shell: Shell, listed: Path, tmp_path: Path, what: str) -> None:
    out, other = tmp_path / "secrets.csv", tmp_path / "other"
    if what != "dangling-link":
        other.write_text("precious")
    if what == "file":
        other.rename(out)
    else:
        out.symlink_to(other)
    assert shell.refusal("device", "import", str(listed), "--secrets", str(out)) == "file_exists"
    assert shell.rows("device", "list") == []
    assert what == "dangling-link" or out.read_text() == "precious"
    assert what != "dangling-link" or not other.exists()


def test_secrets_that_can_not_be_written_import_nothing(shell: Shell, listed: Path) -> None:
    assert shell.refusal("device", "import", str(listed), "--secrets", "/nowhere/secrets.csv") == "secrets_unwritable"
    assert shell.refusal("device", "import", str(listed), "--secrets", "/dev/full") == "file_exists"
    assert shell.rows("device", "list") == []


def test_a_file_that_is_not_there_or_not_readable_is_a_wrong_call(shell: Shell, tmp_path: Path) -> None:
    assert shell.ask("device", "import", str(tmp_path / "none.csv"), status=2)["error"] == "usage"
    assert shell.ask("device", "import", str(tmp_path), status=2)["error"] == "usage"
    assert shell.refusal("device", "import", "/dev/zero") == "input_unreadable"


def test_secrets_go_to_another_program_and_to_no_terminal(shell: Shell, listed: Path) -> None:
    assert shell.ask("device", "import", str(listed), "--secrets", "-", status=2)["error"] == "usage"
    command = [ENROLLD, "--dir", str(shell.directory), "device", "import", str(listed), "--secrets", "-"]
    ours, theirs = pty.openpty()
    done = subprocess.run(command, stdout=theirs, stderr=subprocess.PIPE, text=True, check=False, timeout=60)
    os.close(theirs)
    os.close(ours)
    assert done.returncode == 1
    assert "Secrets on a terminal" in done.stderr
    assert shell.rows("device", "list") == []
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60)
    rows = list(csv.DictReader(done.stdout.splitlines()))
    assert [row["device"] for row in rows] == ["pump-1", "AA:BB"]
    enroll(shell.directory, "pump-1", rows[0]["secret"])


def test_a_reader_of_secrets_that_goes_away_ends_the_import(shell: Shell, tmp_path: Path) -> None:
    path = tmp_path / "many.csv"
    path.write_text("name\n" + "".join(f"d-{number}\n" for number in range(MANY)))
    command = [ENROLLD, "--dir", str(shell.directory), "device", "import", str(path), "--secrets", "-"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as running:
        assert running.stdout is not None
        running.stdout.close()
        assert running.wait(60) == 141
    assert shell.rows("device", "list") == []


def test_progress_is_for_a_terminal_alone(shell: Shell, listed: Path) -> None:
    command = [ENROLLD, "--dir", str(shell.directory), "device", "import", str(listed), "--plan"]
    ours, theirs = pty.openpty()
    environ = {**os.environ, "TERM": "xterm", "COLUMNS": "80"}
    subprocess.run(command, stdout=subprocess.DEVNULL, stderr=theirs, env=environ, check=True, timeout=60)
    os.close(theirs)
    said = os.read(ours, 65536).decode()
    os.close(ours)
    assert "Importing" in said
    assert "100%" in said
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60)
    assert "Importing" not in done.stderr
    assert done.stdout == ""


@contextlib.contextmanager
def database(directory: Path) -> Iterator[sqlite3.Connection]:
    with contextlib.closing(sqlite3.connect(directory / "enrolld.db")) as connection:
        yield connection


def _selectors(directory: Path) -> set[str]:
    with database(directory) as connection:
        return {row[0] for row in connection.execute("SELECT selector FROM device_secret")}


@pytest.mark.foreign
@pytest.mark.parametrize("call", ["fsync", "fdatasync"])  # of the file of secrets, and of the database
def test_a_crash_at_any_sync_leaves_nothing_or_all_and_no_secret_is_lost(made: Path, tmp_path: Path, call: str) -> None:
    needs("strace")
    path = tmp_path / "many.csv"
    path.write_text("name\n" + "".join(f"d-{number}\n" for number in range(MANY)))
    found: list[int] = []
    for moment in range(1, 40):  # of each thread
        directory = Path(shutil.copytree(made, tmp_path / f"crash-{moment}"))
        out = tmp_path / f"secrets-{moment}.csv"
        kill = f"inject={call}:signal=KILL:when={moment}"
        command = ["strace", "-f", "-o", "/dev/null", "-e", f"trace={call}", "-e", kill]
        command += [ENROLLD, "--dir", str(directory), "device", "import", str(path), "--secrets", str(out)]
        done = subprocess.run(command, capture_output=True, check=False, timeout=120)
        selectors = _selectors(directory)
        found.append(len(selectors))
        assert len(selectors) in (0, MANY), moment
        if selectors:
            assert {row["secret"].partition(".")[0] for row in secrets_of(out)} == selectors
        with database(directory) as connection:
            assert connection.execute("SELECT count(*) FROM device").fetchone() == (len(selectors),)
        if not selectors:
            again = [ENROLLD, "--dir", str(directory), "--json", "device", "import", str(path)]
            subprocess.run(again, capture_output=True, check=True, timeout=120)
        if done.returncode == 0:
            break
    assert found[0] == 0
    assert found[-1] == MANY
    assert found.count(0) > 1
    assert found == sorted(found)


# --- lists, and what becomes of devices ------------------------------------------------------------------------------


def test_lists_are_of_one_kind(shell: Shell) -> None:
    shell("device", "add", "pump-1")
    assert shell.ask("device", "list", "--overdue", "--state", "active", status=2)["error"] == "usage"
    assert shell.refusal("device", "list", "--expiring", "soon") == "duration_invalid"
    assert shell.rows("device", "list", "--overdue") == []
    assert shell("device", "list", "--overdue")[1].strip() == "No such devices."
    (row,) = shell.rows("device", "list", "--state", "expected")
    assert (row["overdue"], row["expected_renewal_at"], row["not_after"], row["replaced_by"]) == (
        False,
        None,
        None,
        None,
    )


def test_expiring_and_overdue_devices_are_listed(shell: Shell) -> None:
    for name in ("pump-1", "pump-2"):
        enroll(shell.directory, name, shell.ask("device", "add", name)["secret"])
    assert [row["device"] for row in shell.rows("device", "list", "--expiring", "91d", "--limit", "1")] == ["pump-1"]
    assert shell.rows("device", "list", "--expiring", "1d") == []
    with database(shell.directory) as connection, connection:
        connection.execute("UPDATE device SET last_seen_at = 1, overdue_at = 2 WHERE name = 'pump-2'")
    (row,) = shell.rows("device", "list", "--overdue")
    assert (row["device"], row["overdue"]) == ("pump-2", True)
    assert "overdue" in shell("device", "list")[0]
    assert shell("device", "why", "pump-2")[0].startswith("It has not been seen since 1970-01-01T00:00:00Z; its")


def test_a_device_is_retired_and_its_certificates_revoked_in_one_act(shell: Shell) -> None:
    serial = enroll(shell.directory, "pump-1", shell.ask("device", "add", "pump-1")["secret"])
    done = shell.ask("device", "retire", "pump-1", "--revoke", "cessationOfOperation")
    assert (done["state"], done["superseded"], done["revoked"], done["published"]) == ("retired", 1, [serial], True)
    assert shell.ask("cert", "show", serial)["reason"] == "cessationOfOperation"
    assert shell.refusal("device", "retire", "pump-1") == "device_retired"
    assert shell.ask("device", "why", "pump-1")["sentence"] == "It is retired."
    acts = [act["act"] for act in shell.ask("device", "show", "pump-1")["history"]]
    assert set(acts) == {"device.added", "certificate.issued", "certificate.revoked", "device.retired"}


def test_a_device_goes_on_with_another_board(shell: Shell) -> None:
    serial = enroll(shell.directory, "pump-1", shell.ask("device", "add", "pump-1")["secret"])
    done = shell.ask("device", "replace", "pump-1")
    assert (done["state"], done["superseded"], done["revoked"]) == ("expected", 1, [])
    assert "published" not in done
    assert shell.ask("cert", "show", serial)["status"] == "valid"
    assert "It was replaced at" in shell("device", "why", "pump-1")[0]
    _, err = shell("device", "replace", "pump-1")
    assert "device secret pump-1" in err
    enroll(shell.directory, "pump-1", shell.ask("device", "secret", "pump-1")["secret"])
    assert shell("device", "why", "pump-1")[0].startswith("All is well")


def test_a_device_is_replaced_by_another(shell: Shell) -> None:
    shell("device", "add", "old", "--owner", "line 7")
    shell("device", "add", "new")
    assert shell.ask("device", "replace", "old", "--by", "new", "--serial-number", "1", status=2)["error"] == "usage"
    done = shell.ask("device", "replace", "old", "--by", "new")
    assert (done["state"], done["replaced_by"]) == ("retired", "new")
    assert shell.ask("device", "show", "new")["owner"] == "line 7"


# --- set -------------------------------------------------------------------------------------------------------------


def test_what_is_recorded_of_a_device_is_changed_and_told(shell: Shell) -> None:
    shell("device", "add", "pump-1", "--owner", "line 7")
    done = shell.ask("device", "set", "pump-1", "--owner", "line 8", "--san", "DNS:pump-1.example.com")
    assert (done["owner"], done["names"], done["carried_by"]) == ("line 8", ["DNS:pump-1.example.com"], [])
    assert done["changed"] == {"owner": ["line 7", "line 8"], "names": [[], ["DNS:pump-1.example.com"]]}
    _, err = shell("device", "set", "pump-1", "--owner", "", "--no-san")
    assert "owner: line 8 -> -" in err
    assert "cert list --device pump-1" in err
    shown, _ = shell("device", "show", "pump-1")
    assert "device.changed" in shown
    assert "names: DNS:pump-1.example.com -> -, owner: line 8 -> -" in shown
    assert "Nothing of that is new." in shell("device", "set", "pump-1", "--no-san")[1]


def test_whoever_takes_a_name_away_is_told_what_still_carries_it(shell: Shell) -> None:
    handed = shell.ask("device", "add", "pump-1", "--san", "DNS:gate.example.com")
    serial = enroll(shell.directory, "pump-1", handed["secret"])
    _, err = shell("device", "set", "pump-1", "--no-san")
    assert f"cert revoke {serial} --reason superseded" in err
    assert "cert list --device pump-1" in err
    shell("device", "set", "pump-1", "--san", "DNS:gate.example.com")
    assert shell.ask("device", "set", "pump-1", "--no-san")["carried_by"] == [serial]
    assert shell.ask("cert", "show", serial)["status"] == "valid"


@pytest.mark.parametrize(
    "options", [[], ["--san", "DNS:a.example", "--no-san"], ["--realm", "default"]], ids=["nothing", "both", "realm"]
)
def test_set_wants_something_to_change(shell: Shell, options: list[str]) -> None:
    shell("device", "add", "pump-1")
    assert shell.ask("device", "set", "pump-1", *options, status=2)["error"] == "usage"


def test_what_a_device_may_not_have_is_refused(shell: Shell) -> None:
    shell("device", "add", "pump-1")
    shell("device", "add", "pump-2", "--san", "DNS:gate.example.com")
    assert shell.refusal("device", "set", "pump-1", "--san", "DNS:gate.example.com") == "name_of_other_device"
    assert shell.refusal("device", "set", "pump-1", "--profile", "nope") == "profile_unknown"
    assert shell.refusal("device", "set", "pump-3", "--owner", "me") == "device_unknown"
    assert shell.ask("device", "show", "pump-1")["names"] == []


# --- why -------------------------------------------------------------------------------------------------------------


def test_unknown_callers_are_told_of_by_what_they_showed(shell: Shell) -> None:
    with database(shell.directory) as connection, connection:
        insert = (
            "INSERT INTO attempt (at, request_id, source, protocol, operation, outcome, code, claimed, claimed_serial,"
            " key_sha256) VALUES (1000, 'abcd-2345', '192.0.2.9', 'est', 'simpleenroll', 'refused', 'secret_unknown',"
            " 'pump-9', 'AC-9', ?)"
        )
        connection.execute(insert, (b"\x09" * 32,))
    for options in (
        [],
        ["--source", "192.0.2.9"],
        ["--key", "09" * 32],
        ["--key", ":".join(["09"] * 32)],
        ["--serial", "AC-9"],
        ["--source", "192.0.2.9", "--serial", "AC-9"],
    ):
        answer = shell.ask("device", "why", "--unknown", *options)
        assert [row["request_id"] for row in answer["timeline"]] == ["abcd-2345"], options
    assert shell.ask("device", "why", "--unknown", "--source", "192.0.2.8")["timeline"] == []
    said, _ = shell("device", "why", "pump-9")
    assert said.startswith(
        "No device 'pump-9' is registered. An unknown caller with the name 'pump-9' was refused once,"
    )
    assert "abcd-2345" in said
    assert shell.refusal("device", "why", "pump-8") == "device_unknown"
    assert shell.refusal("device", "why", "--unknown", "--key", "09") == "key_invalid"


@pytest.mark.parametrize("arguments", [[], ["pump-1", "--source", "192.0.2.9"]], ids=["nothing", "source-of-a-device"])
def test_why_wants_a_device_or_unknown_callers(shell: Shell, arguments: list[str]) -> None:
    assert shell.ask("device", "why", *arguments, status=2)["error"] == "usage"


def test_every_row_is_the_contract(shell: Shell) -> None:
    shell("device", "add", "pump-1")
    (row,) = shell.rows("device", "list")
    fields: set[str] = {"id", "device", "realm", "profile", "state", "serial_number", "manufacturer", "names", "owner"}
    fields |= {"created_at", "last_seen_at", "not_after", "expected_renewal_at", "overdue", "replaced_by"}
    assert set(row) == fields
    shown: dict[str, Any] = json.loads(json.dumps(shell.ask("device", "show", "pump-1")))
    assert set(shown) == fields | {"history"}
    assert set(shown["history"][0]) == {"at", "act", "actor", "serial", "details"}
