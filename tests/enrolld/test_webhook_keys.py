"""The keys that webhooks know: where they come from, what they refuse to be read from, and that they never show."""

import os
import signal
from pathlib import Path

import msgspec
import pytest

from ca_core.errors import OperatorError
from enrolld import daemon
from enrolld.config import Flags, Node
from enrolld.config_file import FILE_NAME
from enrolld.limits import Limits
from enrolld.process import BoardSettings, WorkerSettings
from enrolld.running import RunState
from enrolld.webhook_keys import WebhookKey, load_keys
from tests.helpers.daemon import eventually, run_enrolld, running_daemon

KEY = b"5f" * 32


def node(folder: Path, text: str) -> Node:
    (folder / FILE_NAME).write_text(text)
    return Node.load(Flags(dir=str(folder)), {})


@pytest.fixture
def file(tmp_path: Path) -> Path:
    (tmp_path / "keys").mkdir(mode=0o700)
    path = tmp_path / "keys" / "hooks"
    path.write_bytes(KEY + b"\n")
    path.chmod(0o600)
    return path


def test_keys_are_files_of_this_node_beside_its_settings(tmp_path: Path, file: Path) -> None:
    found = node(tmp_path, f'[webhook_keys]\nhooks = "keys/hooks"\nother = "{file}"\n')
    assert found.webhook_keys == {"hooks": file, "other": file}
    assert load_keys(found.webhook_keys)["hooks"].to_bytes() == KEY


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        pytest.param('[webhook_keys]\n"../x" = "y"\n', "webhook_keys.../x: expected letters", id="name"),
        pytest.param('[webhook_keys]\nx = ""\n', "webhook_keys.x: expected the path of a file", id="no-path"),
        pytest.param('[webhook_keys]\nx = "a\\u0000b"\n', "webhook_keys.x: expected the path of a file", id="nul"),
        pytest.param("[webhook_keys]\nx = 7\n", "webhook_keys: expected a string", id="a-number"),
        pytest.param("webhook_keys = 7\n", "webhook_keys: expected", id="no-table"),
        pytest.param(
            "[webhook_keys]\n" + "".join(f'k{n} = "x"\n' for n in range(65)),
            "webhook_keys: expected at most 64",
            id="65",
        ),
    ],
)
def test_a_faulty_table_is_told_with_its_key(tmp_path: Path, text: str, fault: str) -> None:
    with pytest.raises(OperatorError) as caught:
        node(tmp_path, text)
    assert caught.value.code == "config_invalid"
    assert caught.value.message.startswith(f"{FILE_NAME}: {fault}")


def _pipe(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


@pytest.mark.parametrize(
    ("harm", "code", "message"),
    [
        pytest.param(lambda path: path.unlink(), "webhook_key_missing", "can't read the webhook key", id="missing"),
        pytest.param(lambda path: path.chmod(0o640), "webhook_key_permissions", "can be read by others", id="group"),
        pytest.param(lambda path: path.chmod(0o604), "webhook_key_permissions", "can be read by others", id="others"),
        pytest.param(
            lambda path: path.parent.chmod(0o777),
            "webhook_key_permissions",
            "put another file in the place",
            id="folder",
        ),
        pytest.param(lambda path: path.write_text("short"), "webhook_key_short", "'hooks' in", id="short"),
        pytest.param(
            lambda path: (path.rename(path.with_name("real")), path.symlink_to("real")),
            "webhook_key_missing",
            "can't read the webhook key 'hooks'",
            id="symlink",
        ),
        pytest.param(lambda path: (path.unlink(), path.mkdir()), "webhook_key_missing", "is not a file", id="folder"),
        pytest.param(_pipe, "webhook_key_missing", "is not a file", id="pipe"),
    ],
)
def test_case_73_a_key_is_read_from_a_file_that_nobody_else_can_read_or_replace(
    file: Path, harm: object, code: str, message: str
) -> None:
    assert load_keys({"hooks": file})["hooks"].to_bytes() == KEY
    assert callable(harm)
    harm(file)
    with pytest.raises(OperatorError) as caught:
        load_keys({"hooks": file})
    assert caught.value.code == code
    assert message in caught.value.message
    assert caught.value.remedy
    assert KEY.decode() not in f"{caught.value.message} {caught.value.remedy}"


def test_a_key_never_shows_itself() -> None:
    key = WebhookKey(KEY)
    assert KEY.decode() not in f"{key} {key!r}"


def test_a_signature_holds_for_its_context_its_body_and_its_key_alone() -> None:
    key = WebhookKey(KEY)
    signature = key.sign("17", b"body")
    assert key.has_signed(signature, "17", b"body")
    for context, body, other in (("18", b"body", key), ("17", b"bodY", key), ("17", b"body", WebhookKey(b"x" * 16))):
        assert not other.has_signed(signature, context, body)
    for broken in ("", "v1=", signature.upper(), signature[3:], f"v2={signature[3:]}", signature + "0", "v1=\udce9"):
        assert not key.has_signed(broken, "17", b"body")


def test_workers_get_the_keys_through_their_pipe_and_do_not_show_them(tmp_path: Path, file: Path) -> None:
    found = node(tmp_path, '[webhook_keys]\nhooks = "keys/hooks"\n')
    state = RunState(1, "0", 1, [], [], [], [], [], True, "http://x", "default", "00")
    made = daemon._worker_settings(found, state, ("x",), None, None)(1, (), BoardSettings(3, 1, 0))
    assert made.webhook_keys == {"hooks": KEY}
    assert KEY.decode() not in repr(made)
    assert made.limits == Limits()
    assert msgspec.json.decode(msgspec.json.encode(made), type=WorkerSettings).webhook_keys == {"hooks": KEY}
    file.unlink()
    with pytest.raises(OperatorError, match="webhook key"):
        daemon._worker_settings(found, state, ("x",), None, None)


def test_serve_refuses_a_key_that_others_can_read_before_it_makes_anything(tmp_path: Path, file: Path) -> None:
    file.chmod(0o644)
    directory = tmp_path
    (directory / FILE_NAME).write_text('[webhook_keys]\nhooks = "keys/hooks"\n')
    done = run_enrolld(
        directory, "--json", "serve", "--init", "--https", "127.0.0.1:0", "--http", "off", "--admin", "off"
    )
    assert done.returncode == 1
    assert msgspec.json.decode(done.stdout)["error"] == "webhook_key_permissions"
    assert not (directory / "enrolld.db").exists()


def test_serve_takes_a_good_key_and_goes_on_with_it_when_it_is_spoilt(tmp_path: Path, file: Path) -> None:
    with running_daemon(tmp_path, settings=f'[webhook_keys]\nhooks = "{file}"\n') as served:
        file.chmod(0o644)
        served.process.send_signal(signal.SIGHUP)
        told = "can be read by others"
        eventually(lambda: told in served.output.read_text() or None, what="SIGHUP is refused")
        assert served.process.poll() is None
        assert KEY.decode() not in served.output.read_text()
