"""What systemd is told (sd_notify), and the sockets that it hands over (sd_listen_fds). Without systemd: nothing."""

import os
import socket
from collections.abc import Mapping

from ca_core.errors import OperatorError

__all__ = ["inherited_sockets", "notify", "watchdog_seconds"]

_FIRST = 3  # SD_LISTEN_FDS_START


def notify(*lines: str, environ: Mapping[str, str] = os.environ) -> None:
    """Tell the service manager, such as `READY=1`. It never fails: serving does not depend on who watches."""
    address = environ.get("NOTIFY_SOCKET", "")
    if not address.startswith(("/", "@")):
        return
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as channel:
            channel.sendto("\n".join(lines).encode(), address.replace("@", "\0", 1))
    except OSError:
        return


def watchdog_seconds(environ: Mapping[str, str] = os.environ) -> float | None:
    """How often the service manager wants to hear that all is well, None when it does not."""
    try:
        if int(environ.get("WATCHDOG_PID", os.getpid())) != os.getpid():
            return None
        seconds = int(environ.get("WATCHDOG_USEC", "0")) / 2_000_000  # twice as often as it must be
    except ValueError:
        return None
    return seconds or None


def inherited_sockets(
    kinds: tuple[str, ...], environ: Mapping[str, str] = os.environ
) -> list[tuple[str, socket.socket]]:
    """The listening sockets handed over, by kind: the `FileDescriptorName=` of a socket unit. Raises OperatorError."""
    try:
        if int(environ.get("LISTEN_PID", "0")) != os.getpid():
            return []
        count = int(environ.get("LISTEN_FDS", "0"))
    except ValueError:
        return []
    names = environ.get("LISTEN_FDNAMES", "").split(":")
    found: list[tuple[str, socket.socket]] = []
    for number in range(count):
        name = names[number] if number < len(names) else ""
        one = socket.socket(fileno=_FIRST + number)
        one.setblocking(False)
        os.set_inheritable(one.fileno(), False)
        if name not in kinds:
            raise OperatorError(
                "socket_unknown",
                f"systemd hands over a socket called '{name}', and nothing is served on one of that name.",
                f"Set FileDescriptorName= in its socket unit to one of: {', '.join(kinds)}.",
            )
        if one.type != socket.SOCK_STREAM or not one.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
            raise OperatorError(
                "socket_unusable",
                f"systemd hands over a socket for {name} that does not listen for connections.",
                "Use ListenStream= and Accept=no in its socket unit.",
            )
        found.append((name, one))
    return found
