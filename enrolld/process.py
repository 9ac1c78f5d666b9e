"""What supervisor and worker say to each other, and what both do to keep keys out of core dumps.

They share one socket pair. The supervisor sends `WorkerSettings`, once, with the unlock key in it: neither arguments
nor environment, which `ps` and /proc show. The worker answers `Ready` or `Failed`. After that nothing is said; what
counts is the end of the stream, which the kernel sends even when the other side was killed.
"""

import ctypes
import resource
import socket
import struct

import msgspec

from enrolld.config import LogSettings

__all__ = ["Failed", "Ready", "SocketSettings", "WorkerSettings", "decode_answer", "harden", "receive", "send"]

_LENGTH = struct.Struct("!I")
_MAX_MESSAGE = 1 << 20
_PR_SET_DUMPABLE = 4


class SocketSettings(msgspec.Struct, frozen=True):
    """A bound socket that the worker inherits."""

    kind: str
    descriptor: int


class WorkerSettings(msgspec.Struct, frozen=True):
    """All that a worker needs to know. It never shows its key."""

    number: int
    version: str
    store_url: str
    public_url: str
    demo: bool
    names: tuple[str, ...]
    log: LogSettings
    sockets: tuple[SocketSettings, ...]
    unlock_key: bytes | None

    def __repr__(self) -> str:
        return f"WorkerSettings(number={self.number})"


class Ready(msgspec.Struct, frozen=True, tag="ready"):
    """The worker accepts connections."""


class Failed(msgspec.Struct, frozen=True, tag="failed"):
    """The worker could not start, and why."""

    error: str
    message: str
    remedy: str


def send(channel: socket.socket, message: WorkerSettings | Ready | Failed) -> None:
    """Send one message."""
    body = msgspec.json.encode(message)
    channel.sendall(_LENGTH.pack(len(body)) + body)


def receive(channel: socket.socket) -> WorkerSettings:
    """The settings, in the worker. Raises EOFError when the supervisor is gone."""
    (length,) = _LENGTH.unpack(_exactly(channel, _LENGTH.size))
    if length > _MAX_MESSAGE:
        raise ValueError("the settings are larger than any")
    return msgspec.json.decode(_exactly(channel, length), type=WorkerSettings)


def decode_answer(data: bytes) -> Ready | Failed:
    """The worker's answer, in the supervisor: `data` is all of the message."""
    return msgspec.json.decode(data[_LENGTH.size :], type=Ready | Failed)


def harden() -> None:
    """No core dumps, and no debugger of the same user: they would hold the CA keys."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    libc = ctypes.CDLL(None, use_errno=True)
    if prctl := getattr(libc, "prctl", None):  # Linux alone has it
        prctl(_PR_SET_DUMPABLE, 0, 0, 0, 0)


def _exactly(channel: socket.socket, count: int) -> bytes:
    data = bytearray()
    while len(data) < count:
        part = channel.recv(count - len(data))
        if not part:
            raise EOFError("the supervisor is gone")
        data += part
    return bytes(data)
