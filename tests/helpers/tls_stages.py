"""A client that goes a part of the way through a handshake."""

import contextlib
import socket
import ssl
from collections.abc import Iterator
from dataclasses import dataclass

import pytest

from tests.helpers.tls_pki import connect
from tests.helpers.tls_wire import MemoryClient

Stage = tuple[int, float]
"""How many flights the client has sent, and what part of the next one: a share, or whole bytes from 1 on."""

NOTHING: Stage = (0, 0)
LAST_BYTE = -1.0

ALL_STAGES: dict[str, Stage] = {
    "says-nothing": NOTHING,
    "first-byte": (0, 1),
    "part-of-a-record-header": (0, 4),
    "record-header": (0, 5),
    "half-of-client-hello": (0, 0.5),
    "client-hello-but-its-last-byte": (0, LAST_BYTE),
    "client-hello": (1, 0),
    "first-byte-of-the-second-flight": (1, 1),
    "half-of-the-certificate": (1, 0.5),
    "all-but-the-last-byte": (1, LAST_BYTE),
}

STAGES = pytest.mark.parametrize("stage", [pytest.param(stage, id=name) for name, stage in ALL_STAGES.items()])


def share_of(data: bytes, part: float) -> bytes:
    """The beginning of `data` that a stage speaks of."""
    if part == LAST_BYTE:
        return data[:-1]
    return data[: int(part) if part >= 1 else int(len(data) * part)]


@dataclass
class Stopped:
    """A client in the middle of its handshake."""

    sock: socket.socket
    client: MemoryClient
    rest: bytes
    """What it holds back of its flight."""

    def go_on(self) -> None:
        """Finish the handshake after all."""
        self.sock.sendall(self.rest)
        while not self.client.is_connected:
            self.client.take(self.sock.recv(65536))
            self.sock.sendall(self.client.flight())

    def ask(self, line: bytes) -> bytes:
        """What the server answers to a line."""
        self.client.write(line)
        self.sock.sendall(self.client.flight())
        answer = b""
        while not answer:
            self.client.take(self.sock.recv(65536))
            answer = self.client.plaintext()
        return answer


@contextlib.contextmanager
def stopped_at(port: int, context: ssl.SSLContext, stage: Stage) -> Iterator[Stopped]:
    """A client that has come as far as the stage, has read what was for it, and is silent."""
    flights, part = stage
    client = MemoryClient(context)
    flight = client.flight()
    with connect(port) as sock:
        for _ in range(flights):
            sock.sendall(flight)
            flight = b""
            while not flight:
                client.take(sock.recv(65536))
                flight = client.flight()
        sent = share_of(flight, part)
        sock.sendall(sent)
        yield Stopped(sock, client, flight[len(sent) :])
