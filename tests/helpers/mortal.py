"""A daemon that is killed and started again: the same directory and the same ports, with nobody's hand in between."""

import json
import os
import random
import signal
import socket
import subprocess
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path

from tests.helpers.daemon import ENROLLD, NEVER_IN_OUTPUT, START_SECONDS, STOP_SECONDS, Daemon, Json, eventually

__all__ = ["GONE_SECONDS", "Mortal", "free_ports", "is_alive"]

GONE_SECONDS = 10.0  # for workers without a supervisor, on a machine that is busy
_LOWEST_PORT = 20_000
_handed_out: set[int] = set()  # whoever has a port may be down just now, and comes back to it


def free_ports(count: int) -> list[int]:
    """Ports that nobody has, outside of those that the kernel gives to clients.

    While a daemon is down, a client that keeps asking could be given its port, or even reach itself on it.
    """
    lowest_of_clients = int(Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()[0])
    end = max(lowest_of_clients, _LOWEST_PORT + 10_000)  # a kernel that leaves servers none has to share
    found: list[int] = []
    while len(found) < count:
        port = random.SystemRandom().randrange(_LOWEST_PORT, end)
        if port in _handed_out:
            continue
        with socket.socket() as probe, suppress(OSError):
            probe.bind(("127.0.0.1", port))
            _handed_out.add(port)
            found.append(port)
    return found


def is_alive(pid: int) -> bool:
    """Whether a process runs; one that has ended and waits to be asked about does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except (FileNotFoundError, ProcessLookupError):
        return False


class Mortal:
    """`enrolld serve` that can be killed, wholly or in parts, and started again."""

    def __init__(
        self,
        folder: Path,
        *,
        workers: int,
        wrapper: Sequence[str] = (),
        arguments: Sequence[str] = ("--admin", "off"),
        environment: Mapping[str, str] | None = None,
        store_url: str = "",
        waits: bool = True,
    ) -> None:
        """`wrapper` goes before the command, and becomes it: the process keeps its id. `arguments` are those of serve.

        `environment` adds to ours, and may be changed before a next start. `store_url` says where commands find the
        store, if that is not in the directory. `waits` False only starts it: `wait_until_serving` is then to be called.
        """
        https, http = free_ports(2)
        self.directory = folder / "enrolld"
        self.output = folder / "serve.log"
        self.starts = 0
        self.environment = dict(environment or {})
        self._command = [
            *wrapper,
            *(str(ENROLLD), "--dir", str(self.directory), "serve", "--init", "--workers", str(workers)),
            *("--https", f"127.0.0.1:{https}", "--http", f"127.0.0.1:{http}", *arguments),
        ]
        self._spawn()
        self.daemon = Daemon(
            directory=self.directory,
            output=self.output,
            process=self._process,
            addresses={},
            https_port=https,
            http_port=http,
            root=folder / "default-root.pem",
            ca=folder / "default-ca.pem",
            store_url=store_url,
        )
        if waits:
            self.wait_until_serving()

    def wait_until_serving(self) -> None:
        """Wait until the first start has come to its end. Fails when it ends by itself, and ends it when it hangs."""
        try:
            self.daemon.addresses = self._announced()
            self.daemon.write_anchors("default", self.daemon.root.parent)
        except BaseException:
            self.kill_everything()
            raise

    @property
    def pid(self) -> int:
        """The supervisor's process id."""
        return self._process.pid

    @property
    def store(self) -> Path:
        """The database."""
        return self.directory / "enrolld.db"

    def start(self) -> None:
        """Start it again, and wait until it serves. Fails when it ends by itself."""
        self.begin()
        self.wait_until_started()

    def wait_until_started(self) -> None:
        """Wait until what `begin` has started serves. Fails when it ends by itself."""
        self.daemon.addresses = self._announced()

    def begin(self) -> None:
        """Start it again, and wait for nothing."""
        self._spawn()
        self.daemon.process = self._process

    def workers(self) -> set[int]:
        """The worker processes that the supervisor has now."""
        found = set()
        for child in _children(self.pid):
            with suppress(FileNotFoundError, ProcessLookupError):
                if b"enrolld.worker" in Path(f"/proc/{child}/cmdline").read_bytes():
                    found.add(child)
        return found

    def kill_worker(self, pid: int) -> None:
        """SIGKILL for one worker; the supervisor is left to see to it."""
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)

    def kill_supervisor(self) -> set[int]:
        """SIGKILL for the supervisor alone: the children that it leaves behind, which are to leave by themselves."""
        left = _children(self.pid)
        self._process.kill()
        self._process.wait()
        return left

    def kill_everything(self) -> set[int]:
        """SIGKILL for all of its processes: those that are dying now."""
        left = self.kill_supervisor()
        for child in left:
            self.kill_worker(child)
        return left

    def wait_until_gone(self, pids: Iterable[int], *, seconds: float = GONE_SECONDS) -> None:
        """Wait until none of these processes runs any more."""
        ours = set(pids)
        eventually(
            lambda: None if any(map(is_alive, ours)) else True,
            what=f"the processes {sorted(ours)} have left",
            seconds=seconds,
        )

    def end(self) -> None:
        """End it as a user does: it finishes what it serves."""
        if self._process.poll() is None:
            self._process.terminate()
            try:
                self._process.wait(STOP_SECONDS)
            except subprocess.TimeoutExpired:
                self.kill_everything()
                raise AssertionError(f"enrolld did not end within {STOP_SECONDS} s of SIGTERM") from None

    def stop(self) -> None:
        """End it as a user does, and assert that its output over all lives holds no traceback."""
        self.end()
        output = self.output.read_text(errors="replace")
        for word in NEVER_IN_OUTPUT:
            lines = [line for line in output.splitlines() if word in line]
            assert not lines, f"enrolld said {word!r} {len(lines)} times, first:\n{lines[0]}"

    def _spawn(self) -> None:
        self.starts += 1
        kept = {name: value for name, value in os.environ.items() if not name.startswith("ENROLLD_")}
        with self.output.open("ab") as sink:
            self._process = subprocess.Popen(
                self._command,
                stdin=subprocess.DEVNULL,
                stdout=sink,
                stderr=subprocess.STDOUT,
                env={**kept, "PYTHONWARNINGS": "default", **self.environment},
            )

    def _announced(self) -> Json:
        """What `serve.json` says once it is of this very process: a killed one leaves its own behind."""

        def read() -> Json | None:
            if (status := self._process.poll()) is not None:
                last = self.output.read_text(errors="replace")[-3000:]
                raise AssertionError(f"start {self.starts}: enrolld ended by itself with {status}:\n{last}")
            try:
                addresses: Json = json.loads((self.directory / "run" / "serve.json").read_text())
            except (FileNotFoundError, json.JSONDecodeError):
                return None
            return addresses if addresses["pid"] == self.pid else None

        return eventually(read, what=f"start {self.starts} serves", seconds=START_SECONDS)


def _children(pid: int) -> set[int]:
    try:
        return {int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()}
    except (FileNotFoundError, ProcessLookupError):
        return set()
