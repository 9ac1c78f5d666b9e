"""HAProxy before nodes of enrolld, with the configuration that `interop/haproxy` shows, and what it says of them."""

import csv
import io
import re
import shutil
import socket
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

from tests.end_to_end.clients import INTEROP, needs
from tests.helpers.daemon import eventually
from tests.helpers.mortal import free_ports

__all__ = ["CONFIGURATION", "HAPROXY", "Balancer", "rendered"]

CONFIGURATION = INTEROP / "haproxy" / "haproxy.cfg"
HAPROXY = "/usr/sbin/haproxy"
_STATUS, _SESSIONS = "status", "stot"


def rendered(nodes: Sequence[Mapping[str, int]], *, https: int, http: Sequence[int], control: Path) -> str:
    """`interop/haproxy/haproxy.cfg` with ports and addresses of this machine, and otherwise as it stands.

    Each of `nodes` has the ports of its listeners by kind; `http` are two ports, for those that the file binds.
    """
    text = CONFIGURATION.read_text()
    for old, new in {
        "    bind :8443\n": f"    bind 127.0.0.1:{https}\n",
        "    bind :80\n": f"    bind 127.0.0.1:{http[0]}\n",
        "    bind :8080\n": f"    bind 127.0.0.1:{http[1]}\n",
        "/run/haproxy/admin.sock": str(control),
        "    maxconn 20000\n": "    maxconn 2000\n",
    }.items():
        assert text.count(old) == 1, f"{CONFIGURATION.name} has not one line {old.strip()!r}"
        text = text.replace(old, new)
    servers = re.findall(r"^    server .*\n", text, re.MULTILINE)
    assert servers
    for line in servers:
        found = re.fullmatch(r"    server node-(\d+) ([\d.]+):(\d+) .* port 8081\n", line)
        assert found, f"not understood: {line}"
        number, address, port = found.groups()
        kind = {"9443": "proxy-https", "9080": "proxy-http"}[port]
        if int(number) > len(nodes):
            text = text.replace(line, "")
            continue
        ports = nodes[int(number) - 1]
        ours = line.replace(f"{address}:{port}", f"127.0.0.1:{ports[kind]}").replace("8081", str(ports["admin"]))
        text = text.replace(line, ours)
    return text


class Balancer:
    """HAProxy over these nodes, with the configuration that `interop/haproxy` shows."""

    def __init__(self, folder: Path, nodes: Sequence[Mapping[str, int]]) -> None:
        """Each of `nodes` has the ports of its listeners by kind; the first is node-1."""
        needs("haproxy")
        self.https_port, self.http_port, self.other_http_port = free_ports(3)
        self._output = folder / "haproxy.log"
        self._configuration = folder / "haproxy.cfg"
        # The path of a socket is short, and that of a test's folder may not be.
        self._run = Path(tempfile.mkdtemp(prefix="haproxy-"))
        self._control = self._run / "control"
        self._configuration.write_text(
            rendered(
                nodes,
                https=self.https_port,
                http=(self.http_port, self.other_http_port),
                control=self._control,
            )
        )
        with self._output.open("ab") as sink:
            self._process = subprocess.Popen(
                [HAPROXY, "-db", "-f", str(self._configuration)],
                stdin=subprocess.DEVNULL,
                stdout=sink,
                stderr=subprocess.STDOUT,
            )
        try:
            eventually(self._is_up, what="HAProxy listens")
        except BaseException:
            self.stop()
            raise

    def statistics(self, backend: str = "https-ready") -> dict[str, dict[str, str]]:
        """What HAProxy knows of each node of a backend, by the names of its `show stat`."""
        with socket.socket(socket.AF_UNIX) as connection:
            connection.settimeout(10)
            connection.connect(str(self._control))
            connection.sendall(b"show stat\n")
            answer = b"".join(iter(lambda: connection.recv(65536), b"")).decode()
        rows = csv.DictReader(io.StringIO(answer.removeprefix("# ")))
        return {row["svname"]: row for row in rows if row["pxname"] == backend and row["svname"].startswith("node-")}

    def ready(self, backend: str = "https-ready") -> set[str]:
        """The nodes that it sends connections to, such as node-1."""
        return {name for name, row in self.statistics(backend).items() if row[_STATUS].startswith("UP")}

    def sent(self, backend: str = "https-ready") -> dict[str, int]:
        """How many connections each node was sent so far."""
        return {name: int(row[_SESSIONS]) for name, row in self.statistics(backend).items()}

    def wait_until_ready(self, *names: str, backend: str = "https-ready", seconds: float = 30.0) -> None:
        """Wait until these nodes and no others are sent connections."""
        eventually(
            lambda: True if self.ready(backend) == set(names) else None,
            what=f"{backend} of the balancer is {sorted(names)}",
            seconds=seconds,
        )

    def stop(self) -> None:
        """End it."""
        if self._process.poll() is None:
            self._process.terminate()
            try:
                self._process.wait(20)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()
        shutil.rmtree(self._run, ignore_errors=True)

    def output(self) -> str:
        """What it has said."""
        return self._output.read_text(errors="replace")

    def _is_up(self) -> bool | None:
        assert self._process.poll() is None, self.output()
        try:
            return bool(self.statistics()) or None
        except OSError:
            return None
