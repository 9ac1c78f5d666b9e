"""What supervisor and worker say to each other, and what both do to keep keys out of core dumps.

They share one socket pair. The supervisor sends `WorkerSettings`, once, with the keys and the PIN in it: neither
arguments nor environment, which `ps` and /proc show. The worker answers `Ready` or `Failed`. After that they speak of
metrics alone (`enrolld.metrics.messages`), and either leaves at the end of the stream, which the kernel sends even when
the other side was killed.
"""

import contextlib
import ctypes
import resource
import signal
import socket
import struct

import msgspec

from enrolld.config_file import LogSettings
from enrolld.limits import Limits

__all__ = [
    "BoardSettings",
    "Failed",
    "Ready",
    "SocketSettings",
    "WorkerSettings",
    "decode_answer",
    "die_with_the_supervisor",
    "harden",
    "is_alone",
    "outlive_the_supervisor",
    "raise_descriptor_limit",
    "receive",
    "send",
]

_LENGTH = struct.Struct("!I")
_MAX_MESSAGE = 1 << 20
_PR_SET_PDEATHSIG = 1
_PR_SET_DUMPABLE = 4


class SocketSettings(msgspec.Struct, frozen=True):
    """A bound socket that the worker inherits."""

    kind: str
    descriptor: int
    proxied: bool = False
    """Whether a balancer stands before it and tells the peers' addresses (PROXY protocol v2)."""


class BoardSettings(msgspec.Struct, frozen=True):
    """The shared board of connections that the worker inherits, and its own row there."""

    descriptor: int
    rows: int
    row: int


class WorkerSettings(msgspec.Struct, frozen=True):
    """All that a worker needs to know. It never shows its keys, nor its PIN."""

    number: int
    version: str
    store_url: str
    public_url: str
    demo: bool
    names: tuple[str, ...]
    log: LogSettings
    sockets: tuple[SocketSettings, ...]
    unlock_key: bytes | None
    board: BoardSettings | None = None
    """None for a worker without a supervisor: it counts for itself."""
    limits: Limits = Limits()
    proxies: tuple[str, ...] = ()
    """Networks that may tell the addresses of their peers, on listeners that are marked so."""
    webhook_keys: dict[str, bytes] = {}
    """The keys that realms' webhooks name."""
    hsm_module: str = ""
    hsm_pin: str | None = None
    """The PIN of the tokens behind that module; None when there is none for all."""
    hsm_pins: dict[str, str] = {}
    """The PINs of single tokens, by their labels."""

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


def decode_answer(frame: bytes | None) -> Ready | Failed:
    """The worker's answer, in the supervisor: a message without its length. Raises EOFError for None, ValueError."""
    if frame is None:
        raise EOFError("the worker has ended")
    return msgspec.json.decode(frame, type=Ready | Failed)


def raise_descriptor_limit() -> None:
    """Use as many file descriptors as this user may: a connection needs one, and shells give 1,024 by default."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard != resource.RLIM_INFINITY and soft < hard:
        with contextlib.suppress(OSError, ValueError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def harden() -> None:
    """No core dumps, and no debugger of the same user: they would hold the CA keys."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))  # enforces case 73
    libc = ctypes.CDLL(None, use_errno=True)
    if prctl := getattr(libc, "prctl", None):  # Linux alone has it
        prctl(_PR_SET_DUMPABLE, 0, 0, 0, 0)  # enforces case 73


def die_with_the_supervisor() -> None:
    """Have the kernel end this worker with its supervisor, while it has nothing to finish.

    It holds the listening sockets from its first moment, but looks after the supervisor only when it serves: until then
    a new daemon would find the ports taken. Where there is no such call, that lasts for a second.
    """
    _parent_death_signal(signal.SIGKILL)


def outlive_the_supervisor() -> None:
    """Undo that: the worker drains when the supervisor's end of the channel closes."""
    _parent_death_signal(0)


def is_alone(channel: socket.socket) -> bool:
    """Whether the supervisor's end is closed, in the worker, which has its settings."""
    try:
        return channel.recv(1, socket.MSG_PEEK | socket.MSG_DONTWAIT) == b""
    except BlockingIOError:
        return False


def _parent_death_signal(number: int) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    if prctl := getattr(libc, "prctl", None):  # Linux alone has it
        prctl(_PR_SET_PDEATHSIG, number, 0, 0, 0)


def _exactly(channel: socket.socket, count: int) -> bytes:
    data = bytearray()
    while len(data) < count:
        part = channel.recv(count - len(data))
        if not part:
            raise EOFError("the supervisor is gone")
        data += part
    return bytes(data)
