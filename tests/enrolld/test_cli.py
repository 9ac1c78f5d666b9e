"""The command line's contract: options, exit statuses, refusals, and that nothing ends in a traceback."""

import json
import os
import pty
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path

import click
import pytest

from ca_core.errors import InternalError, NotAuthorized, OperatorError, SealingFailed, Unavailable
from enrolld.cli import COMMANDS, cli, main, node, output
from enrolld.cli.frame import Session
from enrolld.faults import fault_of

ENROLLD = str(Path(sys.executable).with_name("enrolld"))


def leaves(command: click.Command = cli, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], click.Command]]:
    if not isinstance(command, click.Group):
        yield path, command
        return
    ctx = click.Context(command)
    for name in command.list_commands(ctx):
        if (found := command.get_command(ctx, name)) is not None:
            yield from leaves(found, (*path, name))


LEAVES = dict(leaves())


def test_every_command_of_the_first_release_is_there() -> None:
    assert {" ".join(path) for path in LEAVES} == {
        "serve", "init", "check", "status", "upgrade", "explain",
        "realm add", "realm list", "realm show", "realm export", "realm apply", "realm edit", "realm challenge",
        "realm retire", "realm resume",
        "request list", "request show", "request approve", "request reject",
        "profile list", "profile show", "profile presets",
        "trust add", "trust list", "trust remove",
        "device add", "device list", "device show", "device secret", "device why", "device suspend", "device resume",
        "device import", "device set", "device replace", "device retire",
        "cert list", "cert show", "cert revoke",
        "ca list", "ca export",
        "crl list", "crl publish",
        "clock show", "clock accept",
        "audit list", "audit verify", "audit export", "store copy",
    }  # fmt: skip


@pytest.mark.parametrize("path", LEAVES, ids=" ".join)
def test_every_command_takes_the_global_options_and_says_what_it_does(path: tuple[str, ...]) -> None:
    command = LEAVES[path]
    options = {option for parameter in command.params for option in parameter.opts}
    assert {"--json", "--dir", "--store"} <= options
    assert command.help
    if path[-1] == "list":
        assert {"--limit", "--after"} <= options


def test_no_option_takes_a_secret() -> None:
    options = {option for command in LEAVES.values() for parameter in command.params for option in parameter.opts}
    options -= {"--secrets", "--key"}  # a file to write, and the hash of a public key
    assert not {option for option in options if any(word in option for word in ("secret", "password", "key", "pin"))}


@pytest.mark.parametrize(
    "arguments",
    [
        pytest.param(["--json", "--dir", "{dir}", "device", "list"], id="before"),
        pytest.param(["device", "--json", "--dir", "{dir}", "list"], id="between"),
        pytest.param(["device", "list", "--json", "--dir", "{dir}"], id="after"),
        pytest.param(["--dir", "elsewhere", "device", "list", "--json", "--dir", "{dir}"], id="the-last-counts"),
    ],
)
def test_the_global_options_stand_anywhere(
    arguments: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([part.format(dir=tmp_path) for part in arguments]) == 1
    refusal = json.loads(capsys.readouterr().out)
    assert refusal["error"] == "no_store"
    assert str(tmp_path) in refusal["message"]
    assert f"--dir {tmp_path} init" in refusal["remedy"]


def test_a_refusal_for_a_person_is_a_sentence_and_its_remedy_on_stderr(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["--dir", str(tmp_path / "none"), "cert", "list"]) == 1
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err.splitlines()[0] == f"enrolld: There is no directory {tmp_path}/none."
    assert "init" in said.err.splitlines()[1]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        pytest.param(["nonsense"], "No such command 'nonsense'", id="command"),
        pytest.param(["cert", "lst"], "Did you mean 'list'?", id="verb-with-the-nearest"),
        pytest.param(["cert", "revoke", "01"], "Missing option '--reason'", id="missing-option"),
        pytest.param(["cert", "revoke", "01", "--reason", "boredom"], "keyCompromise", id="reason-not-of-rfc-5280"),
        pytest.param(["device", "add"], "Missing argument 'NAME'", id="missing-argument"),
        pytest.param(["cert", "revoke", "1", "--reason", "superseded", "--wait", "x"], "use 30s", id="not-a-duration"),
        pytest.param(["cert", "list", "--limit", "0"], "0 is not in the range", id="limit"),
        pytest.param(["trust", "add", "/nowhere.pem"], "No such file", id="no-file"),
        pytest.param(["serve", "--https", "nope"], "--https: expected ADDR:PORT such as", id="not-an-address"),
        pytest.param(["serve", "--workers", "0"], "--workers: expected 1 to 128, got 0", id="no-workers"),
        pytest.param(["serve", "--name", "bad name"], "--name: expected a host name", id="not-a-name"),
        pytest.param(["init", "--name", "bad name"], "--name: expected a host name", id="not-a-name-for-init"),
        pytest.param(["cert", "list", "--store", "x"], "--store: expected sqlite:///PATH or", id="not-a-store"),
    ],
)
def test_a_command_called_wrongly_ends_with_2(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(arguments) == 2
    said = capsys.readouterr()
    assert said.out == ""
    assert message in said.err
    assert "--help' shows how it is called." in said.err
    assert main([*arguments, "--json"]) == 2
    refusal = json.loads(capsys.readouterr().out)
    assert refusal["error"] == "usage"
    assert message in refusal["message"]


@pytest.mark.parametrize("arguments", [["--help"], ["-h"], ["cert", "--help"], ["cert", "revoke", "--help"]])
def test_help_ends_with_0(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(arguments) == 0
    assert "--json" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("exc", "status", "code", "message"),
    [
        pytest.param(OperatorError("a_code", "Why.", "Do."), 1, "a_code", "Why.", id="operator"),
        pytest.param(NotAuthorized("device_suspended", "No."), 1, "device_suspended", "No.", id="refusal"),
        pytest.param(
            Unavailable("a full disk"), 1, "unavailable", "It can't be done now: a full disk.", id="unavailable"
        ),
        pytest.param(
            SealingFailed("the key x does not open with this unlock key"),
            1,
            "unlock_key_wrong",
            "The CA can't sign: the key x does not open with this unlock key.",
            id="sealing",
        ),
        pytest.param(InternalError("no issuer"), 1, "internal", "It can't be done now: no issuer.", id="ours"),
        pytest.param(RuntimeError("\x1b[2Jboo"), 1, "internal", "should not happen: RuntimeError", id="bug"),
        pytest.param(OSError(28, "No space left on device", "x.db"), 1, "system", "left on device (x.db)", id="disk"),
    ],
)
def test_whatever_goes_wrong_is_a_sentence(
    exc: Exception,
    status: int,
    code: str,
    message: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise exc

    monkeypatch.setattr(Session, "run", fail)
    assert main(["cert", "list", "--json"]) == status
    refusal = json.loads(capsys.readouterr().out)
    assert refusal["error"] == code
    assert message in refusal["message"]
    assert main(["cert", "list"]) == status
    said = capsys.readouterr()
    assert said.out == ""
    assert "Traceback" not in said.err
    assert "\x1b" not in said.err


@pytest.mark.parametrize("exc", [SealingFailed("x"), Unavailable("x"), InternalError("x"), OSError(28, "full")])
def test_no_remedy_leads_in_a_circle_or_to_a_command_that_is_not_there(exc: Exception) -> None:
    fault = fault_of(exc)
    assert fault.remedy
    assert "check" not in fault.remedy
    assert "upgrade" not in fault_of(OperatorError("store_revision", "Newer.", "run 'enrolld upgrade'")).remedy
    assert type(exc).__name__ not in fault.message


def test_the_version_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"enrolld {metadata.version('enrolld')}\n"


def test_an_interrupt_is_no_traceback(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def interrupt(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(Session, "run", interrupt)
    assert main(["cert", "list"]) == 130
    assert capsys.readouterr().err == "enrolld: Interrupted.\n"


def test_another_users_directory_is_refused_with_how_to_run_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: os.getuid() + 1)
    for command in (["cert", "list"], ["serve"], ["init"]):
        assert main(["--dir", str(tmp_path), "--json", *command]) == 1
        refusal = json.loads(capsys.readouterr().out)
        assert refusal["error"] == "wrong_user"
        assert refusal["remedy"].startswith("Run it as its owner: sudo -u ")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can be another user")
@pytest.mark.parametrize("by_variable", [pytest.param(False, id="dir"), pytest.param(True, id="variable")])
def test_another_user_is_told_so_whatever_the_mode_of_the_directory(by_variable: bool) -> None:
    # pytest's own folders are closed to the other user, who must be able to come as far as the directory.
    with tempfile.TemporaryDirectory() as open_folder:
        Path(open_folder).chmod(0o755)
        directory = Path(open_folder) / "enrolld"
        directory.mkdir(mode=0o700)
        (directory / "enrolld.toml").write_text("")
        (directory / "enrolld.toml").chmod(0o600)
        for command in (["cert", "list"], ["serve"], ["init"], ["check"], ["status"]):
            done = as_another_user(directory, *command, by_variable=by_variable)
            assert done.returncode == 1, done.stderr
            refusal = json.loads(done.stdout)
            assert refusal["error"] == "wrong_user"
            assert refusal["message"] == f"{directory} belongs to root, and this is user {ANOTHER_USER}."
            assert refusal["remedy"].startswith("Run it as its owner: sudo -u root ")
            assert f"--dir {directory} " in refusal["remedy"]  # sudo drops the variable
        os.chown(directory, ANOTHER_USER, ANOTHER_USER)  # the twin: its own, and it comes as far as the missing CA
        (directory / "enrolld.toml").unlink()
        done = as_another_user(directory, "cert", "list", by_variable=by_variable)
        assert json.loads(done.stdout)["error"] == "no_store"


ANOTHER_USER = 65534
AS_ANOTHER_USER = """
import contextlib, importlib, io, os, pkgutil, pwd, sys
import ca_core, enrolld
from enrolld.cli import main
for package in (enrolld, ca_core):  # the other user may not be able to read the folders that we are in
    for found in pkgutil.walk_packages(package.__path__, package.__name__ + "."):
        if ".migrations" not in found.name:
            importlib.import_module(found.name)
for command in (["cert", "list"], ["check"], ["status"]):  # and whatever else is imported on the way
    with contextlib.redirect_stdout(io.StringIO()), contextlib.suppress(SystemExit):
        main(["--dir", "/nowhere", "--json", *command])
os.setgroups([]); os.setgid(65534); os.setuid(65534)
sys.exit(main())
"""


def as_another_user(directory: Path, *arguments: str, by_variable: bool) -> subprocess.CompletedProcess[str]:
    """Run a command as a user who owns nothing, in a process that began as root and has given that up."""
    named = [] if by_variable else ["--dir", str(directory)]
    return subprocess.run(
        [sys.executable, "-c", AS_ANOTHER_USER, *named, *arguments, "--json"],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        cwd="/",
        env={"PATH": os.environ["PATH"], **({"ENROLLD_DIR": str(directory)} if by_variable else {})},
    )


def test_serve_makes_no_ca_in_a_directory_that_nobody_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("ENROLLD_DIR", raising=False)
    assert main(["serve", "--json"]) == 1
    refusal = json.loads(capsys.readouterr().out)
    assert refusal["error"] == "no_store"
    assert refusal["remedy"].endswith("serve --init")
    assert list(tmp_path.iterdir()) == []


def test_a_faulty_configuration_is_refused_whatever_the_command(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "enrolld.toml").write_text("workers = 0\nnam = 1\n")
    for command in (["cert", "list"], ["serve"], ["init"], ["status"]):
        assert main(["--dir", str(tmp_path), "--json", *command]) == 1
        refusal = json.loads(capsys.readouterr().out)
        assert refusal["error"] == "config_invalid"
        assert "nam: no such key" in refusal["message"]
        assert "workers: expected 1 to 128" in refusal["message"]


def test_check_finds_every_fault_of_the_configuration(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "enrolld.toml").write_text("workers = 0\nnam = 1\n")
    assert main(["--dir", str(tmp_path), "--json", "check"]) == 3
    found = json.loads(capsys.readouterr().out)
    assert found["ok"] is False
    assert [(each["severity"], each["code"], each["message"]) for each in found["findings"]] == [
        ("error", "config_invalid", "enrolld.toml: nam: no such key; the nearest is names"),
        ("error", "config_invalid", "enrolld.toml: workers: expected 1 to 128, got 0"),
    ]


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        pytest.param("router-17", "router-17", id="plain"),
        pytest.param("Müller 東", "Müller 東", id="letters"),
        pytest.param("a\x1b[2Jb", "a\\x1b[2Jb", id="escape"),
        pytest.param("a\nb\tc\x00", "a\\nb\\tc\\x00", id="controls"),
        pytest.param("a\x9b1mb", "a\\x9b1mb", id="c1"),
        pytest.param("abc\u202ecba", "abc\\u202ecba", id="right-to-left-override"),
        pytest.param("", "-", id="empty"),
        pytest.param(None, "-", id="none"),
        pytest.param(["a", "b\x07"], "a, b\\x07", id="list"),
        pytest.param(True, "yes", id="yes"),
    ],
)
def test_what_is_shown_cannot_move_the_cursor(value: object, shown: str) -> None:
    assert output.printable(value) == shown


def test_json_is_ascii(capsys: pytest.CaptureFixture[str]) -> None:
    output.emit_json({"device": "é\x1b\u202e"})
    assert capsys.readouterr().out == '{"device":"\\u00e9\\u001b\\u202e"}\n'


def test_rows_are_aligned_when_nobody_watches(capsys: pytest.CaptureFixture[str]) -> None:
    output.table([{"a": "x", "b": 1}, {"a": "longer", "b": None}], [("a", "a"), ("the b", "b")])
    assert capsys.readouterr().out == "A       THE B\nx       1\nlonger  -\n"


# From here on as a shell sees it.


def run(*arguments: str, environ: dict[str, str] | None = None, **options: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(  # type: ignore[call-overload,no-any-return]  # options are handed on as they are
        [ENROLLD, *arguments], text=True, env={**os.environ, **(environ or {})}, **options
    )


def test_a_command_imports_only_what_it_needs() -> None:
    program = (
        "import sys; from enrolld.cli import main; main(sys.argv[1:]); "
        "print(sorted({'sqlalchemy', 'aiohttp', 'OpenSSL', 'alembic', 'uvloop', 'rich', 'cryptography', 'asyncio',"
        " 'prometheus_client'}"
        " & set(sys.modules)))"
    )
    for arguments in (["--help"], ["cert", "list", "--help"], ["--dir", "/nowhere", "cert", "list"]):
        done = subprocess.run(
            [sys.executable, "-c", program, *arguments], text=True, capture_output=True, check=True, timeout=60
        )
        assert done.stdout.splitlines()[-1] == "[]", arguments


def test_a_full_disk_behind_stdout_is_told() -> None:
    with Path("/dev/full").open("w") as full:
        done = run("--help", stdout=full, stderr=subprocess.PIPE, timeout=60)
    assert done.returncode == 1
    # Whether it shows at the write or at the flush depends on how the interpreter buffers.
    first, *rest = done.stderr.splitlines()
    assert first in (
        "enrolld: The system refused: No space left on device.",
        "enrolld: The answer can't be written: No space left on device.",
    )
    assert rest in ([], ["  Look at permissions and disk space."])


def test_a_reader_that_has_seen_enough_is_no_error() -> None:
    reading, writing = os.pipe()
    os.close(reading)
    try:
        done = run("--help", stdout=writing, stderr=subprocess.PIPE, timeout=60)
    finally:
        os.close(writing)
    assert (done.returncode, done.stderr) == (141, "")


@pytest.mark.parametrize(
    ("environ", "coloured"),
    [pytest.param({"NO_COLOR": ""}, True, id="terminal"), pytest.param({"NO_COLOR": "1"}, False, id="no-color")],
)
def test_colour_is_for_a_terminal_that_wants_it(environ: dict[str, str], coloured: bool) -> None:
    ours, theirs = pty.openpty()
    done = run("--dir", "/nowhere", "cert", "list", environ=environ, stderr=theirs, stdout=theirs, timeout=60)
    os.close(theirs)
    said = os.read(ours, 4096).decode()
    os.close(ours)
    assert done.returncode == 1
    assert ("\x1b[31m" in said) is coloured
    assert "There is no directory /nowhere." in said


def test_rows_are_coloured_for_a_terminal_and_what_is_copied_is_whole(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    monkeypatch.delenv("NO_COLOR", raising=False)
    output.table([{"state": "revoked", "serial": "0a" * 100}], [("state", "state"), ("serial", "serial")])
    assert capsys.readouterr().out.splitlines() == [
        "\x1b[1mSTATE  \x1b[0m  \x1b[1mSERIAL\x1b[0m",
        "\x1b[31mrevoked\x1b[0m  " + "0a" * 100,
    ]


def test_the_table_of_commands_and_their_modules_agree() -> None:
    assert set(COMMANDS) == set(cli.list_commands(click.Context(cli)))
    assert cli.get_command(click.Context(cli), "serve") is node.serve
    assert cli.get_command(click.Context(cli), "nonsense") is None


NOT_UTF8 = {
    "device-add": ["device", "add", "x", "--owner", "\udcff"],
    "device-set": ["device", "set", "x", "--owner", "\udcff"],
    "device-show": ["device", "show", "\udcff"],
    "device-replace": ["device", "replace", "x", "--by=\udcff"],
    "device-why-serial": ["device", "why", "--unknown", "--serial", "\udcff"],
    "device-why-transaction": ["device", "why", "--unknown", "--transaction", "\udcff"],
    "request-reject": ["request", "reject", "1", "--reason", "a\udcff"],
    "cert-list": ["cert", "list", "--device", "\udcff"],
    "audit-list": ["audit", "list", "--device", "\udcff"],
    "explain": ["explain", "\udcff"],
    "a-lone-half-of-a-pair": ["explain", "\ud83d"],
}


@pytest.mark.parametrize("arguments", NOT_UTF8.values(), ids=NOT_UTF8)
@pytest.mark.parametrize("as_json", [False, True], ids=["words", "json"])
def test_an_argument_that_is_not_utf_8_is_a_usage_error(
    arguments: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str], *, as_json: bool
) -> None:
    assert main(["--dir", str(tmp_path), *arguments, *(["--json"] if as_json else [])]) == 2
    said = capsys.readouterr()
    assert "is not UTF-8" in (said.out if as_json else said.err)
    if as_json:
        assert json.loads(said.out)["error"] == "usage"
    valid = [argument.replace("\udcff", "\u00ff").replace("\ud83d", "\U0001f600") for argument in arguments]
    assert main(["--dir", str(tmp_path), *valid]) == 1, "the twin: it is understood, and there is no CA here"
    assert "UTF-8" not in capsys.readouterr().err
