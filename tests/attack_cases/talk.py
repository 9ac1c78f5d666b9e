"""A client that sends any bytes at all and tells everything that came back: how many answers, and whether the end.

Its address on the loopback network is its own to choose: the daemon limits log lines by network, and each test is to
see all of its own.
"""

import contextlib
import socket
import ssl
import time
from collections.abc import Iterator
from dataclasses import dataclass, field

from tests.end_to_end.wire import Answer

__all__ = ["PATIENCE", "Heard", "connected", "hear", "talk"]

PATIENCE = 8.0
"""Seconds within which anything is answered. On an idle machine it is a hundredth of that; every deadline of the
daemon, behind which a missing check could hide, is later."""


@dataclass(slots=True)
class Heard:
    """What came back on one connection."""

    answers: list[Answer] = field(default_factory=list)
    closed: bool = False
    """Whether the server ended the connection."""
    rest: bytes = b""
    """Bytes that are no whole answer."""
    seconds: float = 0.0

    @property
    def only(self) -> Answer:
        """The one answer; that there is no other."""
        statuses = [answer.status for answer in self.answers]
        assert len(statuses) == 1, f"{len(statuses)} answers where one was due: {statuses}, then {self.rest[:200]!r}"
        return self.answers[0]

    def assert_closed(self) -> None:
        assert self.closed, f"the connection stays open after {[answer.status for answer in self.answers]}"
        assert self.rest == b"", f"bytes that are no answer: {self.rest[:200]!r}"


@contextlib.contextmanager
def connected(
    port: int | str, *, tls: ssl.SSLContext | None = None, host: str = "localhost", source: str = "127.0.0.1"
) -> Iterator[socket.socket]:
    """A connection to a port on this machine, or to a unix socket; over TLS, with its server verified."""
    if isinstance(port, str):
        plain = socket.socket(socket.AF_UNIX)
        plain.settimeout(PATIENCE)
        plain.connect(port)
    else:
        plain = socket.create_connection(("127.0.0.1", port), timeout=PATIENCE, source_address=(source, 0))
    with plain:
        if tls is None:
            yield plain
        else:
            with tls.wrap_socket(plain, server_hostname=host) as secured:
                yield secured


def hear(connection: socket.socket, *, answers: int | None = None, seconds: float = PATIENCE) -> Heard:
    """Listen until so many answers have come, or the connection has ended, or the time is over."""
    heard = Heard()
    begin = time.monotonic()
    received = b""
    while answers is None or len(heard.answers) < answers:
        left = begin + seconds - time.monotonic()
        if left <= 0:
            break
        connection.settimeout(left)
        try:
            data = connection.recv(65536)
        except TimeoutError:
            break
        except (ConnectionResetError, ssl.SSLEOFError):
            data = b""
        if not data:
            heard.closed = True
            break
        received = _take(received + data, heard)
    heard.rest = received
    heard.seconds = time.monotonic() - begin
    return heard


def talk(
    port: int | str,
    *sent: bytes,
    tls: ssl.SSLContext | None = None,
    host: str = "localhost",
    source: str = "127.0.0.1",
    answers: int | None = None,
    seconds: float = PATIENCE,
) -> Heard:
    """Send all of it on a new connection, and listen."""
    with connected(port, tls=tls, host=host, source=source) as connection:
        for piece in sent:
            with contextlib.suppress(BrokenPipeError, ConnectionResetError, ssl.SSLError):
                connection.sendall(piece)
        return hear(connection, answers=answers, seconds=seconds)


def _take(received: bytes, heard: Heard) -> bytes:
    """Move whole answers out of what was received."""
    while b"\r\n\r\n" in received:
        head, _, rest = received.partition(b"\r\n\r\n")
        status_line, *lines = head.decode("latin-1").split("\r\n")
        version, _, status = status_line.partition(" ")
        if version not in ("HTTP/1.1", "HTTP/1.0") or not status[:3].isdigit():
            break
        headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
        length = 0 if status[:3] in ("204", "304") else int(headers.get("content-length", "0"))
        if len(rest) < length:
            break
        if status[:3] != "100":
            heard.answers.append(Answer(int(status[:3]), headers, rest[:length]))
        received = rest[length:]
    return received
