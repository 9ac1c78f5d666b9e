"""Several nodes of enrolld on one database of PostgreSQL, behind HAProxy as `interop/haproxy` configures it.

Each node has a directory of its own and a copy of the unlock key; what they share is the database alone. Each also
listens directly, so that a test can ask just one of them.
"""

import contextlib
import json
import os
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from ca_core.authority.sealing import UnlockKey
from tests.end_to_end.clients import needs
from tests.helpers.balancer import Balancer
from tests.helpers.daemon import Daemon, eventually
from tests.helpers.mortal import Mortal, free_ports

__all__ = ["Clock", "Node", "Nodes", "running_nodes"]

OFTEN = "[limits]\ncertificates_per_device = 100000\ncertificates_per_credential = 100000\n"
_LISTENERS = ("proxy-https", "proxy-http", "admin")
_READY_SECONDS = 60.0


_SLEEP = """
# libfaketime 0.9.10 that leaves the monotonic clock alone breaks clock_nanosleep, by which Python sleeps (EINVAL).
import select, time
time.sleep = lambda seconds: select.select([], [], [], seconds) and None
"""


class Clock:
    """A node's clock, which can be set while the node runs: faketime reads it from a file."""

    def __init__(self, folder: Path) -> None:
        needs("faketime")
        self._file = folder / "clock"
        (library,) = Path("/usr/lib").glob("*/faketime/libfaketimeMT.so.1")
        self.environment = {
            "LD_PRELOAD": str(library),
            "FAKETIME_TIMESTAMP_FILE": str(self._file),
            "FAKETIME_NO_CACHE": "1",
            # What is set is the date; how time passes is not, as on a machine whose clock is set.
            "FAKETIME_DONT_FAKE_MONOTONIC": "1",
            "NO_FAKE_STAT": "1",
            "PYTHONPATH": os.pathsep.join(filter(None, [str(folder / "sleep"), os.environ.get("PYTHONPATH")])),
        }
        (folder / "sleep").mkdir()
        (folder / "sleep" / "sitecustomize.py").write_text(_SLEEP)
        self.set(0)

    def set(self, seconds: int) -> None:
        """Let it stand so many seconds after the machine's, or before it."""
        writing = self._file.with_suffix(".new")
        writing.write_text(f"{seconds:+d}")
        writing.rename(self._file)


class Node(Mortal):
    """One node: a `Mortal` that has listeners for a balancer and one for health."""

    def __init__(
        self,
        folder: Path,
        store_url: str,
        *,
        unlock_key: bytes | None,
        workers: int = 1,
        clock: Clock | None = None,
        settings: str = OFTEN,
        waits: bool = True,
    ) -> None:
        """`unlock_key` None gives it none. `clock` is how it sees the time, `settings` end its enrolld.toml."""
        self.folder = folder
        self.clock = clock
        self.ports = dict(zip(_LISTENERS, free_ports(len(_LISTENERS)), strict=True))
        directory = folder / "enrolld"
        directory.mkdir(mode=0o700, parents=True)
        toml = directory / "enrolld.toml"
        toml.touch(mode=0o600)
        toml.write_text(self._settings(store_url) + settings)
        if unlock_key is not None:
            give_key(directory, unlock_key)
        super().__init__(
            folder,
            workers=workers,
            arguments=("--name", "localhost", "--name", "127.0.0.1", "--admin", f"127.0.0.1:{self.ports['admin']}"),
            environment=clock.environment if clock is not None else None,
            store_url=store_url,
            waits=waits,
        )

    def readiness(self) -> tuple[int, list[str]]:
        """Status and reasons of /readyz; status 0 when nobody answers."""
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self.ports['admin']}/readyz", timeout=15) as answer:
                return answer.status, json.load(answer).get("reasons", [])
        except urllib.error.HTTPError as refused:
            return refused.code, json.load(refused)["reasons"]
        except OSError:
            return 0, []

    def wait_until_ready(self, *, seconds: float = _READY_SECONDS) -> None:
        """Wait until it says that it can issue."""
        seen: list[tuple[int, list[str]]] = []

        def ready() -> bool | None:
            seen[:] = [self.readiness()]
            return seen[0][0] == 200 or None

        try:
            eventually(ready, what=f"{self.folder.name} is ready", seconds=seconds)
        except AssertionError as exc:
            raise AssertionError(f"{exc}; it last said {seen}") from None

    def wait_until_not_ready(self, *, seconds: float = 30.0) -> list[str]:
        """Wait until it says that it can't issue; its reasons."""

        def reasons() -> list[str] | None:
            status, found = self.readiness()
            return found if status == 503 else None

        return eventually(reasons, what=f"{self.folder.name} is not ready", seconds=seconds)

    def log(self) -> str:
        """All that it has said."""
        return self.output.read_text(errors="replace")

    def log_lines(self) -> list[dict[str, Any]]:
        """The lines of its log that are JSON."""
        return [json.loads(line) for line in self.log().splitlines() if line.startswith("{") and line.endswith("}")]

    def issued(self) -> list[dict[str, Any]]:
        """The lines of its log that say that a certificate was issued, or given again."""
        return [line for line in self.log_lines() if line.get("enrolld.outcome") == "issued"]

    def _settings(self, store_url: str) -> str:
        return (
            f'[store]\nurl = "{store_url}"\n'
            f'[proxy]\nhttps = "127.0.0.1:{self.ports["proxy-https"]}"\nhttp = "127.0.0.1:{self.ports["proxy-http"]}"\n'
            'from = ["127.0.0.1"]\n'
        )


def give_key(directory: Path, unlock_key: bytes) -> None:
    """Put a copy of the unlock key where a node looks for it."""
    (directory / "keys").mkdir(mode=0o700, exist_ok=True)
    file = directory / "keys" / "unlock"
    file.unlink(missing_ok=True)
    file.touch(mode=0o600)
    file.write_bytes(unlock_key)


class Nodes:
    """Nodes on one database, and the balancer before them."""

    def __init__(
        self,
        folder: Path,
        store_url: str,
        *,
        count: int = 2,
        workers: int = 1,
        clocks: bool = False,
        settings: str = OFTEN,
    ) -> None:
        """`clocks` gives each node a clock of its own. `close` must be called, also when this fails half-way."""
        self.folder = folder
        self.store_url = store_url
        self.unlock_key = _new_key(folder)
        self._workers, self._settings = workers, settings
        self.members: list[Node] = []
        self.others: list[Node] = []
        self.balancer: Balancer | None = None
        try:
            for number in range(count):
                clock = Clock(self._folder_of(number + 1)) if clocks else None
                self.members.append(self._node(number + 1, self.unlock_key, clock))
            for node in self.members:
                node.wait_until_ready()
            self.balancer = Balancer(folder, [node.ports for node in self.members])
            self._publish_at_the_balancer()
            self.balancer.wait_until_ready(*(f"node-{number + 1}" for number in range(count)))
        except BaseException:
            self.kill()
            raise

    @property
    def daemon(self) -> Daemon:
        """What the tests of one daemon ask for: commands run on the first node, requests go through the balancer."""
        assert self.balancer is not None
        first = self.members[0].daemon
        return replace(first, https_port=self.balancer.https_port, http_port=self.balancer.http_port)

    def __getitem__(self, place: int) -> Node:
        return self.members[place]

    def __iter__(self) -> Iterator[Node]:
        return iter(self.members)

    def add(self, *, unlock_key: bytes | None, clock_seconds: int | None = None) -> Node:
        """Start one more node on the database, of which the balancer knows nothing, and wait for its start alone."""
        number = len(self.members) + len(self.others) + 1
        clock = None
        if clock_seconds is not None:
            clock = Clock(self._folder_of(number))
            clock.set(clock_seconds)
        node = self._node(number, unlock_key, clock)
        self.others.append(node)
        return node

    def give_key_to(self, node: Node) -> None:
        """Give a node the right unlock key, and start it again."""
        node.end()
        give_key(node.directory, self.unlock_key)
        node.start()

    def close(self) -> None:
        """End everything as a user does, and assert that no node's output holds a traceback."""
        failures: list[BaseException] = []
        if self.balancer is not None:
            self.balancer.stop()
        for node in [*self.members, *self.others]:
            try:
                node.stop()
            except AssertionError as exc:
                failures.append(exc)
        if failures:
            raise failures[0]

    def kill(self) -> None:
        """End everything at once."""
        if self.balancer is not None:
            self.balancer.stop()
        for node in [*self.members, *self.others]:
            node.kill_everything()

    def _folder_of(self, number: int) -> Path:
        found = self.folder / f"node-{number}"
        found.mkdir(exist_ok=True)
        return found

    def _node(self, number: int, unlock_key: bytes | None, clock: Clock | None) -> Node:
        return Node(
            self._folder_of(number),
            self.store_url,
            unlock_key=unlock_key,
            workers=self._workers,
            clock=clock,
            settings=self._settings,
        )

    def _publish_at_the_balancer(self) -> None:
        """Have certificates name the balancer, whose port is not the one that they name by themselves."""
        assert self.balancer is not None
        daemon = self.members[0].daemon
        document = daemon.text("realm", "export", "default")
        assert "public_url" not in document
        file = self.folder / "default.toml"
        file.write_text(f'public_url = "http://localhost:{self.balancer.http_port}"\n{document}')
        daemon.ask("realm", "apply", str(file))


def _new_key(folder: Path) -> bytes:
    path = folder / "unlock"
    UnlockKey.generate(path)
    return path.read_bytes()


@contextlib.contextmanager
def running_nodes(
    folder: Path,
    store_url: str,
    *,
    count: int = 2,
    workers: int = 1,
    clocks: bool = False,
    settings: str = OFTEN,
) -> Iterator[Nodes]:
    """Nodes and their balancer until the block ends; a test that passed on top of a traceback did not pass."""
    nodes = Nodes(folder, store_url, count=count, workers=workers, clocks=clocks, settings=settings)
    try:
        yield nodes
    except BaseException:
        nodes.kill()
        raise
    nodes.close()
