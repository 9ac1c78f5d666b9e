"""A node of several without its unlock key: it says so wherever it is asked, and takes the key when it is brought."""

import contextlib
import json
import os
import signal
import threading
import urllib.error
import urllib.request
from pathlib import Path

import pytest

from tests.helpers.daemon import Daemon, Json, eventually, run_enrolld, running_daemon
from tests.helpers.postgres import Postgres

pytestmark = pytest.mark.foreign


def _ready(daemon: Daemon) -> Json:
    try:
        with urllib.request.urlopen(f"{daemon.addresses['admin'][0].rstrip('/')}/readyz", timeout=10) as answer:  # noqa: S310
            return dict(json.loads(answer.read()))
    except urllib.error.HTTPError as exc:
        return dict(json.loads(exc.read()))


def _check(daemon: Daemon) -> Json:
    done = run_enrolld(daemon.directory, "check", "--json")
    return {"status": done.returncode, **json.loads(done.stdout)}


@pytest.mark.parametrize("brought", ["none", "wrong"])
def test_a_node_says_that_its_key_is_missing_or_wrong_and_takes_the_right_one_at_sighup(
    tmp_path: Path, database: str, brought: str
) -> None:
    settings = f'names = ["localhost"]\n[store]\nurl = "{database}"\n'
    for name in ("first", "second"):
        (tmp_path / name).mkdir()
    with running_daemon(tmp_path / "first", settings=settings, store_url=database) as first:
        right = (first.directory / "keys" / "unlock").read_bytes()
    folder = tmp_path / "second"
    key = folder / "enrolld" / "keys" / "unlock"
    if brought == "wrong":
        key.parent.mkdir(parents=True, mode=0o700)
        key.parent.parent.chmod(0o700)
        key.write_bytes(b"x" * len(right))
        key.chmod(0o600)
    with running_daemon(
        folder, settings=settings, serve_arguments=["--admin", "127.0.0.1:0"], store_url=database
    ) as daemon:
        reason = {
            "none": "there is no unlock key, so nothing can be signed",
            "wrong": "the unlock key does not open the CA keys, so nothing can be signed",
        }[brought]
        assert _ready(daemon) == {"status": "not ready", "reasons": [reason]}
        found = {finding["code"]: finding for finding in _check(daemon)["findings"]}
        assert found["not_ready"]["message"] == f"the running daemon is not ready: {reason}"
        assert ("unlock_key_missing" in found) == (brought == "none")
        assert (
            "Copy keys/unlock of another node" in found["unlock_key_missing"]["remedy"] if brought == "none" else True
        )
        status = daemon.ask("status")
        assert (status["running"], status["ready"], status["not_ready"]) == (True, False, [reason])
        root = daemon.addresses["http"][0].rstrip("/") + "/pki/default-root-1.cer"
        with urllib.request.urlopen(root, timeout=10) as answer:  # noqa: S310  # what needs no key is published
            assert answer.status == 200

        key.parent.mkdir(mode=0o700, exist_ok=True)
        key.write_bytes(right)
        key.chmod(0o600)
        os.kill(daemon.process.pid, signal.SIGHUP)
        eventually(lambda: True if _ready(daemon)["status"] == "ready" else None, what="it is ready", seconds=30)
        assert daemon.ask("status")["ready"] is True
        assert _check(daemon) == {"status": 0, "ok": True, "findings": []}


def test_a_node_waits_for_a_database_that_comes_later(tmp_path: Path) -> None:
    """After a power cut machines come back in any order, and nobody starts a daemon by hand."""
    with contextlib.closing(Postgres(fsync=False)) as postgres:
        postgres.start()
        url = postgres.create("later")
        postgres.stop()
        starting = threading.Timer(4.0, postgres.start)
        starting.start()
        try:
            settings = f'names = ["localhost"]\n[store]\nurl = "{url}"\n'
            with running_daemon(tmp_path, settings=settings, store_url=url) as daemon:
                assert daemon.ask("device", "add", "d-1")["device"] == "d-1"
                assert "waiting for the database" in daemon.output.read_text()
                assert postgres.password not in daemon.output.read_text()
        finally:
            starting.join()


def test_a_node_does_not_wait_for_a_database_that_refuses_it(tmp_path: Path, database: str) -> None:
    (tmp_path / "d").mkdir(mode=0o700)
    url = database.rpartition("/")[0] + "/not_there"
    (tmp_path / "d" / "enrolld.toml").write_text(f'[store]\nurl = "{url}"\n')
    done = run_enrolld(tmp_path / "d", "serve", "--https", "off", "--http", "127.0.0.1:0", "--admin", "off", "--json")
    assert json.loads(done.stdout)["error"] == "store_refused"
    assert done.returncode == 1
