"""Peers that misbehave on purpose, as a process of its own: `python -m tests.helpers.crowd JOB` until its stdin ends.

It says "ready OPEN" on stdout when all its connections are there, and "open OPEN" for each line that it is sent. Whom
the server cuts comes back, as an attacker would.
"""

import contextlib
import json
import resource
import socket
import ssl
import sys
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass

__all__ = ["Job"]

_GET = b"GET %s HTTP/1.1\r\nHost: localhost\r\n"
_HELLO_BYTES = 60


@dataclass(frozen=True)
class Job:
    """How many of each kind, where to, and from which addresses. `large` is the path of something large over HTTP."""

    https_port: int
    http_port: int
    root: str
    large: str
    sources: list[str]
    idle: int = 0
    slow_handshakes: int = 0
    slow_heads: int = 0
    slow_bodies: int = 0
    slow_answers: int = 0
    deaf: int = 0

    def text(self) -> str:
        """As an argument."""
        return json.dumps(asdict(self))


class Crowd:
    """The connections of one job."""

    def __init__(self, job: Job) -> None:
        self._job = job
        self._tls = ssl.create_default_context(cafile=job.root)
        self._number = 0
        self._lock = threading.Lock()
        self._held: list[tuple[Callable[[], socket.socket], socket.socket | None, bytes | None]] = []

    def open(self) -> None:
        """Make all connections."""
        job = self._job
        kinds: list[tuple[int, Callable[[], socket.socket], bytes | None]] = [
            (job.idle, self._idle, None),
            (job.slow_handshakes, self._half_hello, b"\0"),
            (job.slow_heads, self._half_head, b"x"),
            (job.slow_bodies, self._half_body, b"A"),
            (job.slow_answers, self._asker, b""),
            (job.deaf, self._asker, None),
        ]
        with ThreadPoolExecutor(8) as pool:
            for count, make, drip in kinds:
                for made in pool.map(lambda make: self._try(make), [make] * count):
                    self._held.append((make, made, drip))

    def drip(self) -> None:
        """One byte more for the slow ones, and a new connection for each that was cut."""
        for place, (make, connection, drip) in enumerate(self._held):
            if drip is None:
                continue
            try:
                if connection is None:
                    raise OSError
                if drip:
                    connection.sendall(drip)
                else:
                    connection.recv(1)
            except OSError:
                if connection is not None:
                    connection.close()
                self._held[place] = make, self._try(make), drip

    def alive(self) -> int:
        """Connections that the server has not closed. Only of those that expect nothing from it."""
        count = 0
        for _, connection, drip in self._held:
            if connection is None:
                continue
            if drip is None:
                connection.setblocking(False)
                try:
                    is_open = isinstance(connection, ssl.SSLSocket) and connection.recv(1) != b""
                    count += is_open
                except (BlockingIOError, ssl.SSLWantReadError):
                    count += 1
                except OSError:
                    pass
            else:
                count += 1
        return count

    @staticmethod
    def _try(make: Callable[[], socket.socket]) -> socket.socket | None:
        try:
            return make()
        except OSError:
            return None

    def _plain(self, port: int, *, small: bool = False) -> socket.socket:
        with self._lock:
            self._number += 1
            source = self._job.sources[self._number % len(self._job.sources)]
        connection = socket.socket()
        if small:
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        connection.settimeout(60)
        connection.bind((source, 0))
        connection.connect(("127.0.0.1", port))
        return connection

    def _encrypted(self) -> ssl.SSLSocket:
        return self._tls.wrap_socket(self._plain(self._job.https_port), server_hostname="localhost")

    def _idle(self) -> socket.socket:
        connection = self._encrypted()
        connection.sendall(_GET % b"/.well-known/est/nothing" + b"\r\n")
        connection.recv(65536)
        return connection

    def _half_hello(self) -> socket.socket:
        incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        with contextlib.suppress(ssl.SSLWantReadError):
            self._tls.wrap_bio(incoming, outgoing, server_hostname="localhost").do_handshake()
        connection = self._plain(self._job.https_port)
        connection.sendall(outgoing.read()[:_HELLO_BYTES])
        return connection

    def _half_head(self) -> socket.socket:
        connection = self._encrypted()
        connection.sendall(_GET % b"/.well-known/est/cacerts" + b"X-Slow: ")
        return connection

    def _half_body(self) -> socket.socket:
        connection = self._encrypted()
        head = b"POST /.well-known/est/simpleenroll HTTP/1.1\r\nHost: localhost\r\nContent-Length: 900\r\n"
        connection.sendall(head + b"Content-Type: application/pkcs10\r\nAuthorization: Basic eDp4\r\n\r\n")
        return connection

    def _asker(self) -> socket.socket:
        connection = self._plain(self._job.http_port, small=True)
        connection.sendall(_GET % self._job.large.encode() + b"\r\n")
        return connection


def main(job: Job) -> None:
    """Misbehave until stdin ends."""
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    crowd = Crowd(job)
    crowd.open()
    print(f"ready {crowd.alive()}", flush=True)
    done = threading.Event()

    def go_on() -> None:
        while not done.wait(1.0):
            crowd.drip()

    dripping = threading.Thread(target=go_on, daemon=True)
    dripping.start()
    for _ in sys.stdin:
        print(f"open {crowd.alive()}", flush=True)
    done.set()


if __name__ == "__main__":
    main(Job(**json.loads(sys.argv[1])))
