"""A cable between a client and its database that can be cut at a chosen message, before it or after it."""

import contextlib
import select
import socket
import threading
from collections.abc import Iterator
from typing import Literal

__all__ = ["Cable", "laid_cable"]

Cut = Literal["message lost", "answer lost", "message late"]
_COMMIT = b"COMMIT\0"


class Cable:
    """Forwards what comes to `port`, until it is told to cut; then it looks for the next COMMIT.

    - `message lost`: the COMMIT never arrives, and the server sees the client go.
    - `answer lost`: it arrives, and the client loses its connection before the answer.
    - `message late`: the client loses its connection; the COMMIT arrives when `release` is called.
    """

    def __init__(self, port: int) -> None:
        self._target = port
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        self.cut: Cut | None = None
        self.cuts = 0
        self.has_cut = threading.Event()
        self._release = threading.Event()
        self._closing = False
        threading.Thread(target=self._accept, daemon=True).start()

    def release(self) -> None:
        """Let the late COMMIT arrive."""
        self._release.set()

    def close(self) -> None:
        """Forward nothing any more."""
        self._closing = True
        self._release.set()
        self._listener.close()

    def _accept(self) -> None:
        while not self._closing:
            with contextlib.suppress(OSError):
                client, _ = self._listener.accept()
                server = socket.create_connection(("127.0.0.1", self._target))
                threading.Thread(target=self._forward, args=(client, server), daemon=True).start()

    def _forward(self, client: socket.socket, server: socket.socket) -> None:
        with client, server, contextlib.suppress(OSError):
            while not self._closing:
                readable, _, _ = select.select([client, server], [], [], 0.5)
                for source in readable:
                    data = source.recv(65536)
                    if not data:
                        return
                    if source is client and self.cut is not None and _COMMIT in data:
                        self._cut(client, server, data)
                        return
                    (server if source is client else client).sendall(data)

    def _cut(self, client: socket.socket, server: socket.socket, data: bytes) -> None:
        how, self.cut = self.cut, None
        self.cuts += 1
        if how == "answer lost":
            server.sendall(data)
            server.recv(65536)  # it is committed
        client.close()
        self.has_cut.set()
        if how == "message late":
            self._release.wait(30)
            server.sendall(data)
            server.recv(65536)


@contextlib.contextmanager
def laid_cable(port: int) -> Iterator[Cable]:
    """A cable to a port of this machine, until the block ends."""
    cable = Cable(port)
    try:
        yield cable
    finally:
        cable.close()
