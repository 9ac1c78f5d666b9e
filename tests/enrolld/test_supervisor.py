"""The daemon as processes: it starts once, says where, comes back from a dead worker, and leaves nothing behind."""

import contextlib
import http.client
import json
import os
import re
import resource
import signal
import socket
import sqlite3
import ssl
import subprocess
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509

from ca_core.authority.sealing import UnlockKey
from ca_core.errors import OperatorError
from ca_core.records import opening
from enrolld import running
from enrolld.config_file import LogSettings
from enrolld.process import Failed, Ready, WorkerSettings, decode_answer, receive, send
from enrolld.sockets import Address, bind, url
from tests.end_to_end.clients import needs, run
from tests.helpers.daemon import ENROLLD, Daemon, eventually, run_enrolld

WORKERS = 2
SERVE = ["serve", "--json", "--https", "127.0.0.1:0", "--http", "off", "--admin", "off"]


@pytest.fixture(scope="module")
def daemon(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemon]:
    """Like `running_daemon`, with an admin listener and two workers."""
    folder = tmp_path_factory.mktemp("supervisor")
    directory, output = folder / "enrolld", folder / "serve.log"
    listeners = [part for kind in ("--https", "--http", "--admin") for part in (kind, "127.0.0.1:0")]
    with output.open("wb") as sink:
        command = [str(ENROLLD), "--dir", str(directory), "serve", "--workers", str(WORKERS), *listeners]
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=sink, stderr=subprocess.STDOUT)
    try:
        addresses = eventually(lambda: _announced(process, directory, output), what="serve.json", seconds=90)
        https, http = (int(addresses[kind][0].rpartition(":")[2]) for kind in ("https", "http"))
        yield Daemon(directory, output, process, addresses, https, http, folder / "root.pem", folder / "ca.pem")
        assert process.poll() is None, output.read_text()
    finally:
        process.terminate()
        assert process.wait(60) == 0
    assert "Traceback" not in output.read_text()


def _announced(process: "subprocess.Popen[bytes]", directory: Path, output: Path) -> dict[str, Any] | None:
    assert process.poll() is None, output.read_text()
    try:
        state: dict[str, Any] = json.loads((directory / "run" / "serve.json").read_text())
    except FileNotFoundError:
        return None
    return state


def workers_of(pid: int) -> set[int]:
    """The worker processes below a supervisor."""
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return {int(child) for child in children if b"enrolld.worker" in Path(f"/proc/{child}/cmdline").read_bytes()}


def is_alive(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return False
    return state != "Z"


def fetch(address: str) -> tuple[int, bytes]:
    with urllib.request.urlopen(address, timeout=10) as response:  # noqa: S310  # our own http URL
        return response.status, response.read()


def test_serve_json_says_where_the_daemon_is(daemon: Daemon) -> None:
    state = json.loads((daemon.directory / "run" / "serve.json").read_text())
    assert state["pid"] == daemon.process.pid
    assert state["workers"] == WORKERS
    assert state["realm"] == "default"
    assert (state["demo"], state["names"]) == (True, [])
    assert state["https"] == [f"https://127.0.0.1:{daemon.https_port}"]
    assert state["public_url"] == f"http://localhost:{daemon.http_port}"
    assert {"kind": "https", "address": "127.0.0.1", "port": daemon.https_port} in state["listeners"]
    exported = daemon.ask("ca", "export")
    assert state["ca_fingerprint_sha256"] == exported["root_fingerprint_sha256"]


def test_what_is_in_the_directory_is_the_owners_alone(daemon: Daemon) -> None:
    assert daemon.directory.stat().st_mode & 0o777 == 0o700
    for path in daemon.directory.rglob("*"):
        assert path.stat().st_mode & 0o077 == 0, path


def test_every_worker_leaves_the_terminals_interrupt_to_the_supervisor(daemon: Daemon) -> None:
    for pid in workers_of(daemon.process.pid):
        status = Path(f"/proc/{pid}/status").read_text()
        blocked = int(next(line for line in status.splitlines() if line.startswith("SigBlk")).split()[1], 16)
        assert blocked & (1 << (signal.SIGINT - 1))


def test_the_unlock_key_stands_neither_in_arguments_nor_in_the_environment(daemon: Daemon) -> None:
    key = (daemon.directory / "keys" / "unlock").read_bytes().strip()
    for pid in {daemon.process.pid, *workers_of(daemon.process.pid)}:
        for name in ("cmdline", "environ"):
            with contextlib.suppress(PermissionError):  # not even its own user may look into it
                assert key not in Path(f"/proc/{pid}/{name}").read_bytes()
    assert key.decode() not in daemon.output.read_text()


def test_no_process_dumps_its_core(daemon: Daemon) -> None:
    for pid in {daemon.process.pid, *workers_of(daemon.process.pid)}:
        limits = Path(f"/proc/{pid}/limits").read_text()
        assert next(line for line in limits.splitlines() if "core file" in line).split()[4:6] == ["0", "0"]


def test_admin_says_that_it_runs_and_that_it_can_issue(daemon: Daemon) -> None:
    (address,) = json.loads((daemon.directory / "run" / "serve.json").read_text())["admin"]
    assert fetch(f"{address}/healthz") == (200, b'{"status": "ok"}')
    assert fetch(f"{address}/readyz") == (200, b'{"status": "ready"}')


def test_crls_and_ca_certificates_are_published_by_the_names_that_certificates_carry(daemon: Daemon) -> None:
    for row in daemon.command("ca", "list"):
        base = f"http://127.0.0.1:{daemon.http_port}/pki/{row['issuer']}"
        assert fetch(f"{base}.cer")[1][:1] == b"\x30"
        assert fetch(f"{base}/0.crl")[1][:1] == b"\x30"


@pytest.mark.foreign
def test_what_serve_prints_works_as_it_is_pasted(daemon: Daemon, tmp_path: Path) -> None:
    needs("curl", "openssl")
    printed = daemon.output.read_text()
    pasted = printed.partition("in another terminal:\n")[2].partition("Then look:")
    done = run("sh", "-e", "-c", pasted[0], cwd=tmp_path)
    assert done.stdout == b"sensor-1.pem: OK\n"
    first, second = ("Then look:" + pasted[2]).replace("Then look:", "").splitlines()[:2]
    assert b"CN=sensor-1" in run("sh", "-c", first, cwd=tmp_path).stdout
    assert run("sh", "-c", second, cwd=tmp_path).stdout.startswith(b"All is well")


def test_status_finds_the_running_daemon(daemon: Daemon) -> None:
    status = daemon.ask("status")
    assert status["running"] is True
    assert status["serve"]["pid"] == daemon.process.pid


def test_a_second_daemon_on_the_directory_fails_loudly(daemon: Daemon) -> None:
    done = run_enrolld(daemon.directory, "serve", "--https", "127.0.0.1:0", "--http", "off", "--admin", "off", "--json")
    assert done.returncode == 1
    refusal = json.loads(done.stdout)
    assert refusal["error"] == "already_running"
    assert str(daemon.process.pid) in refusal["message"]
    assert json.loads((daemon.directory / "run" / "serve.json").read_text())["pid"] == daemon.process.pid


def test_a_second_daemon_on_the_port_fails_loudly_before_it_makes_a_ca(daemon: Daemon, tmp_path: Path) -> None:
    taken = f"127.0.0.1:{daemon.https_port}"
    done = run_enrolld(tmp_path / "other", "serve", "--https", taken, "--http", "off", "--admin", "off", "--json")
    assert done.returncode == 1
    refusal = json.loads(done.stdout)
    assert refusal["error"] == "port_in_use"
    assert refusal["message"] == f"https {taken}: another program listens on port {daemon.https_port} already."
    assert not (tmp_path / "other" / "enrolld.db").exists()


def test_a_worker_that_dies_comes_back(daemon: Daemon) -> None:
    before = workers_of(daemon.process.pid)
    victim = min(before)
    os.kill(victim, signal.SIGKILL)

    def replaced() -> set[int] | None:
        now = workers_of(daemon.process.pid)
        log = daemon.output.read_text()
        return now if len(now) == WORKERS and victim not in now and log.count(" is ready (process") > WORKERS else None

    assert eventually(replaced, what="another worker is ready", seconds=60) != before
    assert "ended (signal SIGKILL); another starts" in daemon.output.read_text()
    base = f"http://127.0.0.1:{daemon.http_port}"
    assert fetch(f"{base}/pki/default-ec-1.cer")[0] == 200


def told(daemon: Daemon, sentence: str, times: int) -> None:
    eventually(lambda: True if daemon.output.read_text().count(sentence) >= times else None, what=sentence, seconds=60)


def test_a_worker_that_dies_while_the_supervisor_has_no_descriptors_left_comes_back(daemon: Daemon) -> None:
    supervisor = daemon.process.pid
    before = workers_of(supervisor)
    limits = resource.prlimit(supervisor, resource.RLIMIT_NOFILE)
    failed = daemon.output.read_text().count("Trying again in")
    resource.prlimit(supervisor, resource.RLIMIT_NOFILE, (4, limits[1]))
    try:
        os.kill(min(before), signal.SIGKILL)
        told(daemon, "Trying again in", failed + 1)
    finally:
        resource.prlimit(supervisor, resource.RLIMIT_NOFILE, limits)

    def whole() -> bool | None:
        return len(workers_of(supervisor) - {min(before)}) == WORKERS or None

    eventually(whole, what="another worker", seconds=60)


@pytest.mark.parametrize(
    ("order", "sentence"),
    [
        pytest.param(signal.SIGUSR2, "SIGUSR2: every worker is a new process", id="restart"),
        pytest.param(signal.SIGHUP, "SIGHUP: the configuration was read again", id="reload"),
    ],
)
def test_workers_are_replaced_under_load_and_no_request_is_lost(
    daemon: Daemon, order: signal.Signals, sentence: str
) -> None:
    daemon.ask("ca", "export")  # it is up
    root = daemon.directory.parent / "reload-root.pem"
    root.write_text(run_enrolld(daemon.directory, "ca", "export", "--realm", "default").stdout.decode())
    tls = ssl.create_default_context(cafile=str(root))
    served, lost, stop = [0, 0], [], threading.Event()

    def ask(kind: int) -> None:
        while not stop.is_set():
            port = daemon.https_port if kind else daemon.http_port
            try:
                connection = (
                    http.client.HTTPSConnection("localhost", port, timeout=20, context=tls)
                    if kind
                    else http.client.HTTPConnection("127.0.0.1", port, timeout=20)
                )
                connection.request("GET", "/.well-known/est/cacerts" if kind else "/pki/default-ec-1.cer")
                status = connection.getresponse().status
                connection.close()
                if status != 200:
                    lost.append(f"status {status}")
                served[kind] += 1
            except OSError as exc:
                lost.append(repr(exc))

    threads = [threading.Thread(target=ask, args=(kind,)) for kind in (0, 0, 1, 1)]
    before = workers_of(daemon.process.pid)
    done = daemon.output.read_text().count(sentence)
    for thread in threads:
        thread.start()
    try:
        for times in range(1, 4):
            os.kill(daemon.process.pid, order)
            told(daemon, sentence, done + times)
    finally:
        stop.set()
        for thread in threads:
            thread.join()
    assert lost == []
    assert min(served) > 100
    assert not before & workers_of(daemon.process.pid)
    assert len(workers_of(daemon.process.pid)) == WORKERS


def test_a_configuration_that_is_faulty_or_needs_a_restart_changes_nothing(daemon: Daemon) -> None:
    path = daemon.directory / "enrolld.toml"
    before, text = workers_of(daemon.process.pid), path.read_text()
    try:
        for fault, sentence in (
            ("names = 3\n" + text.replace("names =", "# names ="), "names: expected a list"),
            (text.replace("[unlock]", '[unlock]\nfile = "elsewhere"'), "unlock.file can't change while it runs"),
        ):
            path.write_text(fault)
            done = daemon.output.read_text().count(sentence)
            os.kill(daemon.process.pid, signal.SIGHUP)
            told(daemon, sentence, done + 1)
    finally:
        path.write_text(text)
    assert workers_of(daemon.process.pid) == before


def test_a_reload_takes_new_names_into_the_server_certificate(daemon: Daemon) -> None:
    path = daemon.directory / "enrolld.toml"
    text = path.read_text()
    sentence = "SIGHUP: the configuration was read again"
    try:
        path.write_text('names = ["reloaded.example", "localhost"]\n' + text.replace("names =", "# names ="))
        done = daemon.output.read_text().count(sentence)
        os.kill(daemon.process.pid, signal.SIGHUP)
        told(daemon, sentence, done + 1)
        assert json.loads((daemon.directory / "run" / "serve.json").read_text())["names"][0] == "reloaded.example"

        def shown() -> bool | None:
            pem = ssl.get_server_certificate(("127.0.0.1", daemon.https_port))
            extensions = x509.load_pem_x509_certificate(pem.encode()).extensions
            names = extensions.get_extension_for_class(x509.SubjectAlternativeName).value
            return "reloaded.example" in names.get_values_for_type(x509.DNSName) or None

        eventually(shown, what="the new name is in the server certificate")
    finally:
        path.write_text(text)
        done = daemon.output.read_text().count(sentence)
        os.kill(daemon.process.pid, signal.SIGHUP)
        told(daemon, sentence, done + 1)


def test_each_request_is_one_line_of_json_with_its_id(daemon: Daemon) -> None:
    def line() -> dict[str, Any] | None:
        for text in daemon.output.read_text().splitlines():
            if text.startswith("{") and '"url.path":"/pki/none\\u001b.cer"' in text:
                found: dict[str, Any] = json.loads(text)
                return found
        return None

    with pytest.raises(urllib.error.HTTPError) as caught:
        fetch(f"http://127.0.0.1:{daemon.http_port}/pki/none%1b.cer")
    with caught.value as answer:
        request_id = answer.headers["X-Request-Id"]
    found = eventually(line, what="the request is logged")
    assert found["enrolld.request_id"] == request_id
    assert (found["http.response.status_code"], found["event.outcome"], found["client.ip"]) == (
        404,
        "failure",
        "127.0.0.1",
    )


@pytest.mark.parametrize("killed", [pytest.param(False, id="told"), pytest.param(True, id="killed")])
def test_workers_leave_with_the_supervisor(tmp_path: Path, killed: bool) -> None:
    directory = tmp_path / "d"
    assert run_enrolld(directory, "init").returncode == 0
    command = [str(ENROLLD), "--dir", str(directory), *SERVE]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    assert process.stdout is not None
    state = json.loads(process.stdout.readline())  # said when all workers accept
    workers = workers_of(process.pid)
    assert workers
    process.send_signal(signal.SIGKILL if killed else signal.SIGINT)
    assert process.wait(30) == (-signal.SIGKILL if killed else 0)
    process.stdout.close()
    eventually(lambda: None if any(map(is_alive, workers)) else True, what="the workers have left")
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", state["listeners"][0]["port"]), 5)
    assert (directory / "run" / "serve.json").exists() is killed
    assert running.find(directory) is None  # what a killed one left behind does not count


@contextlib.contextmanager
def serving(
    folder: Path, *, http: str = "127.0.0.1:0"
) -> Iterator[tuple["subprocess.Popen[bytes]", dict[str, Any], Path]]:
    """One worker with a plain listener, its serve.json, and its log."""
    log = folder / "serve.log"
    listeners = ["--https", "127.0.0.1:0", "--http", http, "--admin", "off"]
    with log.open("wb") as sink:
        command = [str(ENROLLD), "--dir", str(folder / "d"), "serve", "--json", *listeners]
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=sink)
    with process:
        try:
            assert process.stdout is not None
            yield process, json.loads(process.stdout.readline()), log
        finally:
            process.terminate()


def test_a_first_start_that_was_interrupted_is_finished_by_the_next(tmp_path: Path) -> None:
    (tmp_path / "d").mkdir(mode=0o700)
    opening.create_store(f"sqlite:///{tmp_path}/d/enrolld.db")
    UnlockKey.generate(tmp_path / "d" / "keys" / "unlock")
    with serving(tmp_path) as (_, state, _):
        assert fetch(f"{state['http'][0]}/pki/default-root-1.cer")[0] == 200


def test_a_request_in_flight_is_answered_before_the_daemon_ends(tmp_path: Path) -> None:
    with serving(tmp_path) as (process, state, _):
        port = next(one["port"] for one in state["listeners"] if one["kind"] == "http")
        with socket.create_connection(("127.0.0.1", port), 10) as peer:
            peer.sendall(b"GET /pki/default-ec-1.cer HTTP/1.1\r\n")
            # A second request, whole, on another connection: its answer shows that the worker has seen the first.
            assert fetch(f"http://127.0.0.1:{port}/pki/default-ec-1.cer")[0] == 200
            process.send_signal(signal.SIGTERM)
            gone = tmp_path / "d" / "run" / "serve.json"
            eventually(lambda: None if gone.exists() else True, what="serve.json is withdrawn")
            assert process.poll() is None
            peer.sendall(b"Host: localhost\r\n\r\n")
            assert peer.recv(15) == b"HTTP/1.1 200 OK"
            peer.shutdown(socket.SHUT_WR)
            while peer.recv(4096):
                pass
        assert process.wait(30) == 0


def test_a_flood_of_refusals_costs_few_lines_and_every_one_is_in_a_sum(tmp_path: Path) -> None:
    with serving(tmp_path) as (process, state, log):
        ports = {one["kind"]: one["port"] for one in state["listeners"]}
        began = time.monotonic()
        with contextlib.closing(http.client.HTTPConnection("127.0.0.1", ports["http"], timeout=10)) as client:
            for path in ["/nowhere"] * 200 + ["/pki/default-ec-1.cer"] * 100:  # on one connection that is kept
                client.request("GET", path)
                client.getresponse().read()
        for _ in range(100):
            with socket.create_connection(("127.0.0.1", ports["https"]), 10) as peer:
                peer.sendall(b"\x00no TLS at all\r\n\r\n")
                while peer.recv(4096):
                    pass
        took = time.monotonic() - began
        process.terminate()  # what is not told by then is told at the end
        assert process.wait(30) == 0
    lines = [json.loads(line) for line in log.read_text().splitlines() if line.startswith("{")]
    summed: dict[str, int] = {}
    for line in lines:
        if line.get("event.action") == "refusals":
            summed[line["event.code"]] = summed.get(line["event.code"], 0) + line["enrolld.count"]
    not_found = [line for line in lines if line.get("url.path") == "/nowhere"]
    below_http = [line for line in lines if line["message"].startswith("refused 127.0.0.1:")]
    assert len(not_found) + len(below_http) <= 50 + 5 * (took + 1)
    assert len(not_found) + summed["http_not_found"] == 200
    assert len(below_http) + summed["tls_not_tls"] == 100
    assert sum(1 for line in lines if line.get("http.response.status_code") == 200) == 100


def test_a_worker_that_cannot_come_back_is_tried_again(tmp_path: Path) -> None:
    with serving(tmp_path) as (process, state, log):
        (worker,) = workers_of(process.pid)
        away = tmp_path / "away"
        away.mkdir()
        for path in (tmp_path / "d").glob("enrolld.db*"):
            path.rename(away / path.name)
        os.kill(worker, signal.SIGKILL)
        eventually(lambda: True if "Trying again" in log.read_text() else None, what="a start fails", seconds=60)
        for path in away.iterdir():
            path.rename(tmp_path / "d" / path.name)
        ready = "worker 1 is ready"
        eventually(lambda: True if log.read_text().count(ready) == 2 else None, what="it is back", seconds=60)
        assert fetch(f"{state['http'][0]}/pki/default-ec-1.cer")[0] == 200


def test_a_worker_that_cannot_start_is_told_in_its_own_words(tmp_path: Path) -> None:
    directory = tmp_path / "d"
    assert run_enrolld(directory, "init").returncode == 0
    (directory / "keys" / "unlock").write_text("another key that is long enough\n")
    done = run_enrolld(directory, *SERVE)
    assert done.returncode == 1
    refusal = json.loads(done.stdout)
    assert refusal["error"] == "unlock_key_wrong"
    assert refusal["message"] == "The CA can't sign: the key default-root-1 does not open with this unlock key."
    assert refusal["remedy"].startswith("Give the unlock key that this store was made with")
    assert not (directory / "run" / "serve.json").exists()


def test_one_realm_whose_keys_are_lost_does_not_stop_the_others(tmp_path: Path) -> None:
    directory = tmp_path / "d"
    assert run_enrolld(directory, "init").returncode == 0
    for realm in ("broken", "sound"):
        assert run_enrolld(directory, "realm", "add", realm, "--host", f"{realm}.example.com").returncode == 0
    with contextlib.closing(sqlite3.connect(directory / "enrolld.db")) as connection, connection:
        changed = connection.execute("UPDATE sealed_key SET pkcs8 = x'00' WHERE name LIKE 'broken-%'").rowcount
        assert changed >= 2
    with serving(tmp_path) as (_, state, log):
        port = next(one["port"] for one in state["listeners"] if one["kind"] == "https")
        for realm, host in (("default", "localhost"), ("sound", "sound.example.com")):
            exported = run_enrolld(directory, "ca", "export", "--realm", realm).stdout.decode()
            trusting = ssl.create_default_context(cadata=exported)
            with (
                socket.create_connection(("127.0.0.1", port), 10) as plain,
                trusting.wrap_socket(plain, server_hostname=host) as peer,
            ):
                peer.sendall(f"GET /.well-known/est/cacerts HTTP/1.1\r\nHost: {host}\r\n\r\n".encode())
                assert peer.recv(15) == b"HTTP/1.1 200 OK"
        assert fetch(f"{state['http'][0]}/pki/sound-ec-1/0.crl")[0] == 200
        assert "no server certificate for broken.example.com of realm broken" in log.read_text()
    done = run_enrolld(directory, "check", "--json")
    assert done.returncode == 3
    findings = json.loads(done.stdout)["findings"]
    assert {"issuer_key"} == {each["code"] for each in findings if "broken-" in each["message"]}


def test_commands_beside_a_daemon_say_where_it_is_bound_and_that_it_alone_has_the_key(tmp_path: Path) -> None:
    with serving(tmp_path, http="0.0.0.0:0") as (_, state, _):
        port = next(one["port"] for one in state["listeners"] if one["kind"] == "http")
        assert state["http"] == [f"http://127.0.0.1:{port}"]  # how this machine reaches it
        shown = run_enrolld(tmp_path / "d", "status").stdout.decode()
        assert re.search(rf"^http +0\.0\.0\.0:{port}$", shown, re.MULTILINE)
        key = tmp_path / "d" / "keys" / "unlock"
        assert run_enrolld(tmp_path / "d", "check").returncode == 0
        key.rename(tmp_path / "unlock")
        done = run_enrolld(tmp_path / "d", "check", "--json")
        assert done.returncode == 3
        (warning,) = [each for each in json.loads(done.stdout)["findings"] if each["severity"] != "info"]
        assert (warning["severity"], warning["code"]) == ("warning", "unlock_key_missing")
        assert warning["message"] == (
            f"The unlock key is needed, and there is none in {key}. "
            "The running daemon has it; without it the CA keys were not looked at."
        )


@pytest.mark.parametrize(
    ("text", "hosts"),
    [
        pytest.param("127.0.0.1:0", {"127.0.0.1"}, id="one"),
        pytest.param(":0", {"0.0.0.0", "::"}, id="all-are-two-sockets"),  # noqa: S104  # the test binds what is asked
        pytest.param("localhost:0", {"127.0.0.1", "::1"}, id="localhost-is-two-sockets"),
    ],
)
def test_an_address_is_bound_once_on_one_port(text: str, hosts: set[str]) -> None:
    bound = bind("https", [Address.parse(text)])
    try:
        assert {one.getsockname()[0] for one in bound} == hosts
        assert len({one.getsockname()[1] for one in bound}) == 1
        with pytest.raises(OperatorError) as caught:
            bind("http", [Address("127.0.0.1", 0), Address("127.0.0.1", bound[0].getsockname()[1])])
        assert caught.value.code == "port_in_use"
        assert url("https", bound[0]).startswith("https://127.0.0.1:")
    finally:
        for one in bound:
            one.close()


@pytest.mark.parametrize(
    ("text", "code"),
    [
        pytest.param("192.0.2.1:0", "address_unusable", id="not-of-this-machine"),
        pytest.param("[2001:db8::1]:0", "address_unusable", id="not-of-this-machine-ipv6"),
    ],
)
def test_an_address_that_is_not_ours_is_refused(text: str, code: str) -> None:
    with pytest.raises(OperatorError) as caught:
        bind("https", [Address.parse(text)])
    assert caught.value.code == code


def test_settings_and_answers_pass_the_socket_and_never_show_the_key() -> None:
    ours, theirs = socket.socketpair()
    settings = WorkerSettings(1, "0", "sqlite:///x", "http://x", True, ("x",), LogSettings(), (), b"k" * 32)
    with ours, theirs:
        send(ours, settings)
        assert receive(theirs) == settings
        assert "kkk" not in repr(settings)
        for answer in (Ready(), Failed("a", "b", "c")):
            send(theirs, answer)
            assert decode_answer(ours.recv(1000)[4:]) == answer
        ours.close()
        with pytest.raises(EOFError):
            receive(theirs)
