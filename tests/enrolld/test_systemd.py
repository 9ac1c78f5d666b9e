"""enrolld under systemd: what it tells, what it takes over, and a unit that holds."""

import contextlib
import json
import os
import signal
import socket
import subprocess
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from ca_core.errors import OperatorError
from enrolld.notify import inherited_sockets, notify, watchdog_seconds
from tests.end_to_end.clients import needs
from tests.helpers.daemon import ENROLLD, eventually

UNITS = Path(__file__).parents[2] / "packaging" / "systemd"
SERVE = ["serve", "--init", "--json", "--https", "127.0.0.1:0", "--http", "127.0.0.1:0", "--admin", "off"]


class Manager:
    """The socket that a service manager listens on."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._channel = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._channel.bind(str(path))
        self._channel.settimeout(60)

    def heard(self, line: str) -> None:
        """Wait for a message with this line."""
        while line not in self._channel.recv(4096).decode().splitlines():
            pass

    def close(self) -> None:
        self._channel.close()


@pytest.fixture
def manager(tmp_path: Path) -> Iterator[Manager]:
    found = Manager(tmp_path / "notify")
    yield found
    found.close()


@contextlib.contextmanager
def started(command: list[str], tmp_path: Path, **environment: str) -> Iterator["subprocess.Popen[bytes]"]:
    own = {"PATH": os.environ["PATH"], "LC_ALL": "C.UTF-8", **environment}
    with (tmp_path / "serve.log").open("wb") as sink:
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=sink, stderr=subprocess.STDOUT, env=own)
        try:
            yield process
        finally:
            if process.poll() is None:
                process.terminate()
            process.wait(60)
    assert "Traceback" not in (tmp_path / "serve.log").read_text()


def test_the_manager_hears_of_ready_reload_watchdog_and_stop(tmp_path: Path, manager: Manager) -> None:
    command = [str(ENROLLD), "--dir", str(tmp_path / "enrolld"), *SERVE]
    with started(command, tmp_path, NOTIFY_SOCKET=str(manager.path), WATCHDOG_USEC="500000") as process:
        manager.heard("READY=1")
        assert (tmp_path / "enrolld" / "run" / "serve.json").exists()
        manager.heard("WATCHDOG=1")
        process.send_signal(signal.SIGHUP)
        manager.heard("RELOADING=1")
        manager.heard("READY=1")
        process.terminate()
        manager.heard("STOPPING=1")
        assert process.wait(60) == 0


def test_a_manager_that_is_gone_disturbs_nobody(tmp_path: Path) -> None:
    notify("READY=1", environ={"NOTIFY_SOCKET": str(tmp_path / "nobody")})
    notify("READY=1", environ={"NOTIFY_SOCKET": "vsock:2:1"})
    notify("READY=1", environ={})


@pytest.mark.parametrize(
    ("environ", "seconds"),
    [
        pytest.param({}, None, id="none"),
        pytest.param({"WATCHDOG_USEC": "60000000"}, 30.0, id="ours"),
        pytest.param({"WATCHDOG_USEC": "60000000", "WATCHDOG_PID": str(os.getpid())}, 30.0, id="by-pid"),
        pytest.param({"WATCHDOG_USEC": "60000000", "WATCHDOG_PID": "1"}, None, id="another's"),
        pytest.param({"WATCHDOG_USEC": "soon"}, None, id="nonsense"),
    ],
)
def test_the_watchdog_hears_from_us_twice_as_often_as_it_must(environ: dict[str, str], seconds: float | None) -> None:
    assert watchdog_seconds(environ) == seconds


def test_sockets_that_systemd_bound_are_served(tmp_path: Path, free_port: Callable[[], int]) -> None:
    needs("systemd-socket-activate")
    http, directory = free_port(), tmp_path / "enrolld"
    activate = ["systemd-socket-activate", "--listen", f"127.0.0.1:{http}", "--fdname", "http"]
    serve = [str(ENROLLD), "--dir", str(directory), "serve", "--init", "--json"]
    command = [*activate, *serve, "--https", "127.0.0.1:0", "--http", "127.0.0.1:1", "--admin", "off"]
    with started(command, tmp_path):

        def answered() -> bytes | None:
            try:
                with urllib.request.urlopen(f"http://127.0.0.1:{http}/scep?operation=GetCACaps", timeout=30) as answer:
                    body: bytes = answer.read()
                    return body
            except OSError:
                return None

        assert b"SCEPStandard" in eventually(answered, what="the socket is served", seconds=90)
        announced = directory / "run" / "serve.json"  # which follows the first worker's readiness
        state = json.loads(eventually(lambda: announced.read_text() if announced.exists() else None, what="it says so"))
        assert state["http"] == [f"http://127.0.0.1:{http}"]  # and not port 1, which is what the flag says
        os.kill(state["pid"], signal.SIGTERM)


@pytest.fixture
def free_port() -> Callable[[], int]:
    def find() -> int:
        with socket.create_server(("127.0.0.1", 0)) as one:
            port: int = one.getsockname()[1]
            return port

    return find


@pytest.mark.parametrize(
    ("name", "kind", "code"),
    [
        pytest.param("smtp", socket.SOCK_STREAM, "socket_unknown", id="unknown-name"),
        pytest.param("http", socket.SOCK_DGRAM, "socket_unusable", id="not-a-stream"),
    ],
)
def test_a_socket_that_can_t_be_served_is_told(name: str, kind: int, code: str) -> None:
    read, write = os.pipe()
    child = os.fork()
    if child == 0:  # the descriptors begin at 3, which only a process of one's own can say
        with contextlib.suppress(BaseException), socket.socket(socket.AF_INET, kind) as one:
            one.bind(("127.0.0.1", 0))
            os.dup2(write, 200)
            os.dup2(one.fileno(), 3)
            environ = {"LISTEN_PID": str(os.getpid()), "LISTEN_FDS": "1", "LISTEN_FDNAMES": name}
            try:
                inherited_sockets(("https", "http", "admin"), environ)
            except OperatorError as exc:
                os.write(200, exc.code.encode())
        os._exit(0)
    os.close(write)
    assert os.read(read, 100).decode() == code
    os.close(read)
    os.waitpid(child, 0)


def test_sockets_for_another_process_are_left_alone() -> None:
    assert inherited_sockets(("http",), {"LISTEN_PID": "1", "LISTEN_FDS": "1"}) == []
    assert inherited_sockets(("http",), {}) == []


def test_the_units_hold_before_systemd_itself(tmp_path: Path) -> None:
    needs("systemd-analyze")
    for unit in UNITS.glob("enrolld*"):
        text = unit.read_text()
        if unit.suffix == ".service":
            assert "/opt/enrolld/bin/enrolld" in text
            text = text.replace("/opt/enrolld/bin/enrolld", str(ENROLLD))
        (tmp_path / unit.name).write_text(text)
    names = sorted(str(path) for path in tmp_path.glob("enrolld*"))
    assert len(names) == 3
    done = subprocess.run(
        ["systemd-analyze", "verify", *names], capture_output=True, text=True, check=False, timeout=60
    )
    complaints = [line for line in done.stderr.splitlines() if "enrolld" in line]
    assert (done.returncode, complaints) == (0, [])
    service = str(tmp_path / "enrolld.service")
    done = subprocess.run(
        ["systemd-analyze", "security", "--offline=true", "--threshold=15", service],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert done.returncode == 0, done.stdout.splitlines()[-1]
