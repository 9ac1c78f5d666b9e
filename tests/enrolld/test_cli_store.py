"""The commands on a real store: what they answer, in JSON and for a person, and what they refuse."""

import asyncio
import contextlib
import datetime as dt
import json
import os
import shutil
import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from ca_core.authority.sealing import UnlockKey
from ca_core.core import Core, CoreConfig
from ca_core.csr import ParsedCsr
from ca_core.model import Call, Evidence, Issued, Operation
from enrolld.cli import main, output
from tests.helpers.daemon import run_enrolld

Json = dict[str, Any]
REQUEST_ID = "abcd-2345"


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A CA as `init` makes it."""
    directory = tmp_path_factory.mktemp("cli") / "enrolld"
    assert main(["--dir", str(directory), "init", "--name", "pki.example.com"]) == 0
    return directory


class Shell:
    """Runs commands on one directory."""

    def __init__(self, directory: Path, capsys: pytest.CaptureFixture[str]) -> None:
        self.directory = directory
        self._capsys = capsys

    def __call__(self, *arguments: str, status: int = 0) -> tuple[str, str]:
        """What a command says to a person: stdout and stderr."""
        self._capsys.readouterr()
        found = main(["--dir", str(self.directory), *arguments])
        said = self._capsys.readouterr()
        assert found == status, said
        assert "Traceback" not in said.err
        return said.out, said.err

    def rows(self, *arguments: str) -> list[Json]:
        """The JSON Lines of a list."""
        return [json.loads(line) for line in self(*arguments, "--json")[0].splitlines()]

    def ask(self, *arguments: str, status: int = 0) -> Json:
        """The one object of a command."""
        (line,) = self(*arguments, "--json", status=status)[0].splitlines()
        answer: Json = json.loads(line)
        return answer

    def refusal(self, *arguments: str) -> str:
        """The code of a refusal, whose shape is checked."""
        answer = self.ask(*arguments, status=1)
        assert set(answer) == {"error", "message", "remedy"}
        assert answer["message"]
        assert answer["remedy"]
        code: str = answer["error"]
        return code


@pytest.fixture
def shell(made: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Shell:
    """A copy of the made CA, so that no test sees another's."""
    for name in [name for name in os.environ if name.startswith(("ENROLLD_", "CREDENTIALS_DIRECTORY"))]:
        monkeypatch.delenv(name)
    return Shell(Path(shutil.copytree(made, tmp_path / "enrolld")), capsys)


def enroll(directory: Path, device: str, secret: str) -> str:
    """Enroll a device as a protocol would, and return its certificate's serial."""

    async def work() -> str:
        key = UnlockKey.load(directory / "keys" / "unlock")
        core = Core.open(CoreConfig(f"sqlite:///{directory}/enrolld.db", key, "http://localhost", demo=False))
        try:
            name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, device)])
            private = ec.generate_private_key(ec.SECP256R1())
            signed = x509.CertificateSigningRequestBuilder().subject_name(name).sign(private, hashes.SHA256())
            csr = ParsedCsr.parse(signed.public_bytes(serialization.Encoding.DER))
            resolved = await core.realms.resolve("est", None, None)
            requester = await core.registration.authenticate(resolved, Evidence(username=device, secret=secret), csr)
            call = Call(REQUEST_ID, "est", "simpleenroll", "192.0.2.1")
            issued = await core.registration.enroll(resolved, requester, csr, Operation.ENROLL, call)
            assert isinstance(issued, Issued)
            return format(issued.serial, "x")
        finally:
            core.close()

    return asyncio.run(work())


def test_init_makes_what_only_the_owner_can_read(shell: Shell) -> None:
    for path in (shell.directory / "keys", shell.directory / "keys" / "unlock", shell.directory / "enrolld.db"):
        assert path.stat().st_mode & 0o077 == 0, path
    assert 'names = ["pki.example.com"]' in (shell.directory / "enrolld.toml").read_text()


def test_init_does_not_touch_a_ca_that_is_there(shell: Shell) -> None:
    before = (shell.directory / "keys" / "unlock").read_bytes()
    assert shell.refusal("init") == "already_initialized"
    assert (shell.directory / "keys" / "unlock").read_bytes() == before


def test_init_answers_what_it_made(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    answer = Shell(tmp_path / "new", capsys).ask("init")
    assert answer["dir"] == str(tmp_path / "new")
    assert (answer["realm"], answer["names"], answer["demo"]) == ("default", [], True)
    assert answer["public_url"] == "http://localhost:8080"
    assert answer["unlock_key"] == str(tmp_path / "new" / "keys" / "unlock")
    assert (
        Shell(tmp_path / "new", capsys).ask("ca", "export")["root_fingerprint_sha256"]
        == answer["ca_fingerprint_sha256"]
    )


def test_device_add_and_secret_answer_the_contract(shell: Shell) -> None:
    fields = {"device", "realm", "profile", "username", "secret", "expires"}
    added = shell.ask("device", "add", "cam:1", "--owner", "me", "--san", "DNS:Cam.Example", "--expires", "12h")
    assert set(added) == fields
    assert (added["device"], added["realm"], added["username"]) == ("cam:1", "default", "cam-1")
    again = shell.ask("device", "secret", "cam:1")
    assert set(again) == fields
    assert again["secret"] != added["secret"]
    assert shell.refusal("device", "add", "cam-2", "--owner", "me\x1b[2J") == "owner_invalid"
    with contextlib.closing(sqlite3.connect(shell.directory / "enrolld.db")) as connection, connection:
        connection.execute("UPDATE device SET owner = ?", ("me\x1b[2J",))  # as one of old may be
    shown = shell("device", "show", "cam:1")[0]
    assert "me\\x1b[2J" in shown
    assert "DNS:cam.example" in shown


def test_a_secret_is_shown_once_and_on_stdout_alone(shell: Shell) -> None:
    out, err = shell("device", "add", "cam-1")
    secret = next(line.split()[1] for line in out.splitlines() if line.startswith("secret"))
    assert secret not in err
    assert "device why cam-1" in err
    for command in (["show", "cam-1"], ["list"], ["why", "cam-1"]):
        assert secret.partition(".")[2] not in "".join(shell("device", *command))


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        pytest.param(["device", "add", "a b"], "name_invalid", id="device-name"),
        pytest.param(["device", "add", "x", "--realm", "nope"], "realm_unknown", id="realm"),
        pytest.param(["device", "add", "x", "--profile", "nope"], "profile_unknown", id="profile"),
        pytest.param(["device", "add", "x", "--expires", "soon"], "time_invalid", id="expires"),
        pytest.param(["device", "add", "x", "--san", "email:x"], "san_invalid", id="san"),
        pytest.param(["device", "show", "nope"], "device_unknown", id="show"),
        pytest.param(["device", "why", "nope"], "device_unknown", id="why"),
        pytest.param(["device", "secret", "nope"], "device_unknown", id="secret"),
        pytest.param(["device", "suspend", "nope"], "device_unknown", id="suspend"),
        pytest.param(["cert", "show", "0a"], "certificate_unknown", id="cert-show"),
        pytest.param(["cert", "show", "zz"], "serial_invalid", id="cert-serial"),
        pytest.param(["cert", "revoke", "0a", "--reason", "superseded"], "certificate_unknown", id="cert-revoke"),
        pytest.param(["cert", "list", "--after", "x"], "after_invalid", id="after"),
        pytest.param(["ca", "list", "--after", "x"], "after_invalid", id="after-in-a-short-list"),
        pytest.param(["ca", "export", "--realm", "nope"], "realm_unknown", id="ca-export"),
        pytest.param(["crl", "publish", "nope"], "issuer_unknown", id="crl-publish"),
        pytest.param(["realm", "add", "Default"], "name_invalid", id="realm-name"),
        pytest.param(["realm", "add", "cacerts"], "name_reserved", id="realm-reserved"),
        pytest.param(["realm", "show", "nope"], "realm_unknown", id="realm-show"),
        pytest.param(["trust", "remove", "nope"], "trust_unknown", id="trust-remove"),
        pytest.param(["explain", "nope-nope"], "request_unknown", id="explain"),
    ],
)
def test_what_is_not_there_or_not_right_is_refused(shell: Shell, arguments: list[str], code: str) -> None:
    assert shell.refusal(*arguments) == code


def test_a_list_goes_on_after_a_row(shell: Shell) -> None:
    for name in ("a", "b", "c"):
        shell("device", "add", name)
    first = shell.rows("device", "list", "--limit", "2")
    rest = shell.rows("device", "list", "--limit", "2", "--after", first[-1]["id"])
    assert [row["device"] for row in first + rest] == ["a", "b", "c"]
    out, err = shell("device", "list", "--limit", "2")
    assert len(out.splitlines()) == 3
    assert err == f"Showing 2; for more: --after {first[-1]['id']}\n"
    assert shell("device", "list", "--limit", "3")[1] == ""


def test_short_lists_page_as_well(shell: Shell) -> None:
    everything = shell.rows("ca", "list")
    assert len(everything) == 3
    paged = shell.rows("ca", "list", "--limit", "1")
    while more := shell.rows("ca", "list", "--limit", "1", "--after", paged[-1]["id"]):
        paged += more
    assert paged == everything


def test_an_empty_list_is_nothing_in_json_and_a_hint_for_a_person(shell: Shell) -> None:
    assert shell.rows("device", "list") == []
    assert "enrolld device add NAME" in shell("device", "list")[1]


def test_an_enrolled_device_is_listed_explained_and_revoked(shell: Shell) -> None:
    secret = shell.ask("device", "add", "cam-1")["secret"]
    serial = enroll(shell.directory, "cam-1", secret)
    (row,) = shell.rows("cert", "list", "--device", "cam-1", "--status", "valid")
    assert set(row) == {
        "id", "serial", "issuer", "realm", "profile", "device", "subject", "names", "not_before", "not_after", "status",
        "revoked_at", "reason", "fingerprint_sha256", "key", "protocol",
    }  # fmt: skip
    assert row["serial"] == serial
    shown = shell.ask("cert", "show", ":".join(serial[i : i + 2] for i in range(0, 40, 2)).upper())
    certificate = x509.load_pem_x509_certificate(shown.pop("pem").encode())
    assert (shown, format(certificate.serial_number, "x")) == (row, serial)
    assert shell("cert", "show", f"dec:{int(serial, 16)}", "--pem")[0].startswith("-----BEGIN CERTIFICATE-----\n")

    why = shell.ask("device", "why", "cam-1")
    assert serial in why["sentence"]
    assert shell.ask("explain", REQUEST_ID)["serial"] == serial

    revoked = shell.ask("cert", "revoke", serial, "--reason", "keyCompromise")
    assert (revoked["status"], revoked["reason"], revoked["published"]) == ("revoked", "keyCompromise", True)
    assert next(row["entries"] for row in shell.rows("crl", "list") if row["issuer"] == revoked["issuer"]) == 1
    assert shell.refusal("cert", "revoke", serial, "--reason", "superseded") == "certificate_revoked"
    assert shell.rows("cert", "list", "--status", "valid") == []


def test_a_revocation_holds_although_its_crl_has_to_wait_for_the_key(shell: Shell) -> None:
    serial = enroll(shell.directory, "cam-1", shell.ask("device", "add", "cam-1")["secret"])
    key = (shell.directory / "keys" / "unlock").rename(shell.directory / "keys" / "elsewhere")
    revoked = shell.ask("cert", "revoke", serial, "--reason", "superseded", "--wait", "0")
    assert (revoked["status"], revoked["published"]) == ("revoked", False)
    assert shell.refusal("crl", "publish") == "unlock_key_missing"
    key.rename(shell.directory / "keys" / "unlock")
    rows = shell.rows("crl", "publish", revoked["issuer"])
    assert [(row["issuer"], row["entries"]) for row in rows] == [(revoked["issuer"], 1)]


@pytest.mark.parametrize(
    ("spoil", "code"),
    [
        pytest.param(lambda path: path.chmod(0o640), "unlock_key_permissions", id="readable-by-others"),
        pytest.param(lambda path: path.write_text("short"), "unlock_key_short", id="too-short"),
        pytest.param(lambda path: path.unlink(), "unlock_key_missing", id="gone"),
        pytest.param(
            lambda path: path.rename(path.with_name("real")).with_name("unlock").symlink_to("real"),
            "unlock_key_missing",
            id="symlink",
        ),
    ],
)
def test_a_bad_unlock_key_is_refused_and_a_good_one_elsewhere_is_taken(
    shell: Shell, spoil: Callable[[Path], object], code: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = shell.directory / "keys" / "unlock"
    good = shutil.copy2(path, tmp_path / "good")
    spoil(path)
    assert shell.refusal("crl", "publish") == code
    monkeypatch.setenv("ENROLLD_UNLOCK_FILE", str(good))
    assert len(shell.rows("crl", "publish")) == 3
    monkeypatch.delenv("ENROLLD_UNLOCK_FILE")
    credentials = tmp_path / "credentials"
    credentials.mkdir()
    shutil.copy(good, credentials / "enrolld-unlock")
    (credentials / "enrolld-unlock").chmod(0o440)  # as systemd leaves it, with an ACL
    monkeypatch.setenv("CREDENTIALS_DIRECTORY", str(credentials))
    assert len(shell.rows("crl", "publish")) == 3


def test_a_realm_is_made_exported_changed_and_applied(shell: Shell, tmp_path: Path) -> None:
    made = shell.ask("realm", "add", "cams", "--host", "cams.example.com")
    assert (made["realm"], made["hosts"], made["version"]) == ("cams", ["cams.example.com"], 1)
    document = shell("realm", "export", "cams")[0]
    assert shell.ask("realm", "export", "cams") == {"realm": "cams", "document": document}
    changed = tmp_path / "cams.toml"
    changed.write_text(document.replace("cams.example.com", "cameras.example.com"))
    assert shell.ask("realm", "apply", str(changed))["version"] == 2
    assert shell.ask("realm", "show", "cams")["hosts"] == ["cameras.example.com"]
    changed.write_text(document + "\n[profilez]\n")
    assert "profilez" in shell.ask("realm", "apply", str(changed), status=1)["message"]
    assert shell.ask("realm", "show", "cams")["version"] == 2
    assert [row["realm"] for row in shell.rows("realm", "list")] == ["default", "cams"]


def test_a_document_that_is_no_text_is_refused(shell: Shell, tmp_path: Path) -> None:
    (tmp_path / "x.toml").write_bytes(b"\xff\xfe")
    assert shell.refusal("realm", "apply", str(tmp_path / "x.toml")) == "document_invalid"


@pytest.mark.parametrize("character", ["x", "\U0001f600"], ids=["one-byte", "four-bytes"])
def test_a_document_that_is_too_long_is_refused_and_never_cut(shell: Shell, tmp_path: Path, character: str) -> None:
    path = tmp_path / "x.toml"
    document = shell.ask("realm", "export", "default")["document"]
    for count in (600_000, 3_000_000):
        path.write_text(f"{document}# {character * count}\n")
        assert "longer than 512 KiB" in shell.ask("realm", "apply", str(path), status=1)["message"]
    path.write_text(f"{document}# {character * 500_000}\nzzz = 1\n")
    assert "zzz" in shell.ask("realm", "apply", str(path), status=1)["message"], "the twin: it is read to its end"


def test_a_manufacturer_is_trusted_listed_and_removed(shell: Shell, tmp_path: Path) -> None:
    (tmp_path / "acme.pem").write_bytes(self_signed_ca("Acme"))
    added = shell.ask("trust", "add", str(tmp_path / "acme.pem"))
    assert (added["name"], added["for"], added["realm"]) == ("Acme", "idevid", "default")
    assert shell.rows("trust", "list") == [added]
    assert shell.ask("trust", "remove", "Acme")["removed"] is True
    assert shell.rows("trust", "list") == []


def test_a_manufacturer_takes_over_registered_devices_only_by_a_name_that_is_given(
    shell: Shell, tmp_path: Path
) -> None:
    for name in ("acme.pem", "lookalike.pem"):
        (tmp_path / name).write_bytes(self_signed_ca("Acme"))
    assert "speaks from now on" not in shell("trust", "add", str(tmp_path / "acme.pem"))[1]
    shell.ask("device", "add", "sensor", "--serial-number", "AC-1")
    shell.ask("trust", "remove", "Acme")
    assert shell.refusal("trust", "add", str(tmp_path / "lookalike.pem")) == "trust_name_used"
    told = shell("trust", "add", str(tmp_path / "lookalike.pem"), "--name", "Acme")[1]
    assert "It speaks from now on for the device that is registered under this name." in told
    assert [row["devices"] for row in shell.rows("trust", "list")] == [1]


def test_ca_export_prints_pem_with_the_root_first(shell: Shell) -> None:
    certificates = x509.load_pem_x509_certificates(shell("ca", "export")[0].encode())
    assert certificates[0].issuer == certificates[0].subject
    assert {certificate.issuer for certificate in certificates} == {certificates[0].subject}
    fingerprints = [row["fingerprint_sha256"] for row in shell.rows("ca", "list")]
    assert [certificate.fingerprint(hashes.SHA256()).hex() for certificate in certificates] == fingerprints


def test_check_ends_with_3_when_there_is_something_to_mend(shell: Shell, monkeypatch: pytest.MonkeyPatch) -> None:
    assert shell.ask("check")["ok"] is True
    monkeypatch.setenv("ENROLLD_WORKER", "2")
    shell.directory.chmod(0o750)
    found = shell.ask("check", status=3)
    assert [(finding["code"], finding["remedy"]) for finding in found["findings"]] == [
        ("variable_unknown", "Did you mean ENROLLD_WORKERS?"),
        ("directory_open", f"chmod 700 {shell.directory}"),
    ]
    assert "ENROLLD_WORKER is set" in shell("check", status=3)[0]


def test_a_failure_of_our_own_is_shown_and_explained(shell: Shell) -> None:
    enroll(shell.directory, "cam-1", shell.ask("device", "add", "cam-1")["secret"])
    with contextlib.closing(sqlite3.connect(shell.directory / "enrolld.db")) as connection, connection:
        connection.execute(
            "UPDATE attempt SET outcome = 'error', code = 'internal_error', message = NULL, detail = 'a full disk'"
        )
    explained = shell.ask("explain", REQUEST_ID)
    assert (explained["outcome"], explained["code"], explained["detail"]) == ("error", "internal_error", "a full disk")
    assert "a full disk" in shell("explain", REQUEST_ID)[0]
    header, row = shell("device", "why", "cam-1")[0].splitlines()[-2:]
    assert header.split()[:5] == ["AT", "OPERATION", "OUTCOME", "CODE", "WHAT"]
    assert row.split()[2:7] == ["error", "internal_error", "a", "full", "disk"]
    assert output._COLOURS["error"] == output._COLOURS["refused"]


def finding(shell: Shell) -> Json:
    """The only error that `check` finds; its remedy never leads back to it, nor to what is not there."""
    found = shell.ask("check", status=3)
    assert found["ok"] is False
    for each in found["findings"]:
        assert each["remedy"]
        assert "enrolld check" not in each["remedy"]
        assert "upgrade" not in each["remedy"]
    (error,) = [each for each in found["findings"] if each["severity"] == "error"]
    assert error["message"] in shell("check", status=3)[0]
    return {name: error[name] for name in ("code", "message", "remedy")}


def test_check_finds_that_the_unlock_key_is_missing(shell: Shell) -> None:
    assert shell.ask("check")["ok"] is True
    key = shell.directory / "keys" / "unlock"
    away = key.rename(key.with_name("elsewhere"))
    assert finding(shell) == {
        "code": "unlock_key_missing",
        "message": f"The unlock key is needed, and there is none in {key}.",
        "remedy": "Give it by the systemd credential enrolld-unlock, by ENROLLD_UNLOCK_FILE=PATH, "
        "or run this on a terminal.",
    }
    away.rename(key)
    assert shell.ask("check")["ok"] is True


def test_check_finds_that_others_can_read_the_unlock_key(shell: Shell) -> None:
    key = shell.directory / "keys" / "unlock"
    key.chmod(0o644)
    assert finding(shell) == {
        "code": "unlock_key_permissions",
        "message": f"{key} can be read by others",
        "remedy": f"run 'chmod 600 {key}'",
    }


def test_check_finds_that_the_unlock_key_is_not_where_it_was_said_to_be(
    shell: Shell, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("ENROLLD_UNLOCK_FILE", str(tmp_path / "nowhere"))
    found = finding(shell)
    assert found["code"] == "unlock_key_missing"
    assert found["message"] == f"can't read the unlock key {tmp_path / 'nowhere'}: No such file or directory"
    assert found["remedy"].startswith("Put it there, or name where it is:")


def test_check_finds_that_the_unlock_key_cannot_be_read(shell: Shell, monkeypatch: pytest.MonkeyPatch) -> None:
    key = shell.directory / "keys" / "unlock"
    really = os.open

    def refused(path: Any, *arguments: Any, **options: Any) -> int:  # root reads whatever the mode
        if Path(path) == key:
            raise PermissionError(13, "Permission denied", str(path))
        return really(path, *arguments, **options)

    monkeypatch.setattr(os, "open", refused)
    found = finding(shell)
    assert found["code"] == "unlock_key_missing"
    assert found["message"] == f"can't read the unlock key {key}: Permission denied"
    assert found["remedy"].endswith(f"chmod 600 {key}")


def test_check_finds_that_the_unlock_key_is_another_and_nothing_is_signed_with_it(shell: Shell) -> None:
    (shell.directory / "keys" / "unlock").write_text("another key that is long enough\n")
    found = shell.ask("check", status=3)
    assert {each["code"] for each in found["findings"]} <= {"issuer_key", "server_key"}
    assert "default-ec-1" in " ".join(each["message"] for each in found["findings"])
    for command in (["crl", "publish"], ["realm", "add", "cams"]):
        refusal = shell.ask(*command, status=1)
        assert refusal["error"] == "unlock_key_wrong"
        assert refusal["message"].endswith("does not open with this unlock key.")
        assert refusal["remedy"].startswith("Give the unlock key that this store was made with")
    assert [row["realm"] for row in shell.rows("realm", "list")] == ["default"]


def test_check_finds_that_the_database_is_damaged(shell: Shell) -> None:
    for path in shell.directory.glob("enrolld.db*"):
        path.unlink()
    database = shell.directory / "enrolld.db"
    database.write_bytes(b"not a database" * 1000)
    found = finding(shell)
    assert found["code"] == "unavailable"
    assert found["message"] == (f"It can't be done now: can't read the database {database}: file is not a database.")
    assert "restore a backup" in found["remedy"]


def test_check_finds_that_the_database_is_empty(shell: Shell) -> None:
    for path in shell.directory.glob("enrolld.db*"):
        path.unlink()
    database = shell.directory / "enrolld.db"
    database.touch()
    found = finding(shell)
    assert (found["code"], found["message"]) == ("store_empty", f"{database} is empty: there is no database in it.")
    for command in (["cert", "list"], ["serve"]):
        refusal = shell.ask(*command, status=1)
        assert (refusal["error"], refusal["message"]) == (found["code"], found["message"])


def test_check_finds_that_the_database_is_of_another_version(shell: Shell) -> None:
    with contextlib.closing(sqlite3.connect(shell.directory / "enrolld.db")) as connection, connection:
        connection.execute("UPDATE alembic_version SET version_num = '9999'")
    found = finding(shell)
    assert found["code"] == "store_revision"
    assert found["remedy"].startswith("Nothing is wrong with it: use the version of enrolld that")


@pytest.mark.parametrize("where", ["enrolld.db", "."])
def test_check_finds_that_there_is_no_store(shell: Shell, where: str) -> None:
    if where == ".":
        shutil.rmtree(shell.directory)
        message = f"There is no directory {shell.directory}."
    else:
        for path in shell.directory.glob("enrolld.db*"):
            path.unlink()
        message = f"{shell.directory} has settings, but no store at {shell.directory / 'enrolld.db'}."
    found = finding(shell)
    assert (found["code"], found["message"]) == ("no_store", message)
    assert found["remedy"].endswith("init")


def test_status_works_with_the_daemon_stopped(shell: Shell) -> None:
    status = shell.ask("status")
    assert (status["running"], status["serve"], status["dir"]) == (False, None, str(shell.directory))
    assert [realm["realm"] for realm in status["realms"]] == ["default"]
    assert "running     no" in shell("status")[0]


@pytest.mark.parametrize(
    "arguments",
    [["cert", "list"], ["device", "add", "x"], ["status"], ["crl", "publish"]],
    ids=" ".join,
)
def test_a_damaged_store_is_told_in_a_sentence(shell: Shell, arguments: list[str]) -> None:
    for path in shell.directory.glob("enrolld.db*"):
        path.unlink()
    (shell.directory / "enrolld.db").write_bytes(b"not a database" * 1000)
    answer = shell.ask(*arguments, status=1)
    assert answer["error"] == "unavailable"
    assert "not a database" in answer["message"]
    shell(*arguments, status=1)


def test_a_damaged_store_is_not_served(shell: Shell) -> None:
    for path in shell.directory.glob("enrolld.db-*"):
        path.unlink()  # what SQLite says of the damage depends on what lies beside it
    (shell.directory / "enrolld.db").write_bytes(b"not a database" * 1000)
    listeners = ["--https", "127.0.0.1:0", "--http", "off", "--admin", "off"]
    done = run_enrolld(shell.directory, "serve", "--json", *listeners)
    assert done.returncode == 1
    assert "not a database" in json.loads(done.stdout)["message"]
    assert not (shell.directory / "run" / "serve.json").exists()


def self_signed_ca(organization: str) -> bytes:
    """A manufacturer's root, PEM."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.ORGANIZATION_NAME, organization)])
    now = dt.datetime.now(dt.UTC)
    usage = {"digital_signature": False, "content_commitment": False, "key_encipherment": False}
    usage |= {"data_encipherment": False, "key_agreement": False, "encipher_only": False, "decipher_only": False}
    builder = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now)
        .not_valid_after(now + dt.timedelta(days=3650))
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .add_extension(x509.KeyUsage(key_cert_sign=True, crl_sign=True, **usage), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
    )
    return builder.sign(key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM)


@pytest.mark.parametrize(
    ("variable", "error"),
    [
        pytest.param("ENROLLD_STROE", "variable_unknown", id="letters-swapped"),
        pytest.param("ENROLLD_STOR", "variable_unknown", id="letter-missing"),
        pytest.param("ENROLLD_PORT", None, id="an-orchestrator-s"),
        pytest.param("ENROLLD_SERVICE_HOST", None, id="another-of-its"),
    ],
)
def test_no_ca_is_made_beside_one_that_a_mistyped_variable_may_mean(
    tmp_path: Path, shell: Shell, monkeypatch: pytest.MonkeyPatch, variable: str, error: str | None
) -> None:
    monkeypatch.setenv(variable, "tcp://192.0.2.1:80")
    new = Shell(tmp_path / "new", shell._capsys)
    answer = new.ask("init", status=0 if error is None else 1)
    assert answer.get("error") == error
    assert (tmp_path / "new" / "enrolld.db").exists() == (error is None)
