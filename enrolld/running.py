"""DIR/run: the lock that one daemon holds, and `serve.json`, which tells everybody where it listens."""

import contextlib
import fcntl
import os
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from ca_core.errors import OperatorError
from ca_core.records.opening import is_shared
from enrolld.config import Node
from enrolld.config_file import FILE_NAME

if TYPE_CHECKING:
    from ca_core.authority.sealing import UnlockKey
    from ca_core.core import Core, CoreConfig

__all__ = [
    "Listener",
    "RunState",
    "core_config",
    "find",
    "lock",
    "locked",
    "names_missing",
    "publish",
    "readiness",
    "withdraw",
]

_ASK_SECONDS = 6.0  # a little longer than the daemon itself waits for its store


class Listener(msgspec.Struct, frozen=True):
    """One bound socket."""

    kind: str
    address: str
    port: int


class RunState(msgspec.Struct, frozen=True):
    """`serve.json`: the daemon as it runs now. Fields are only ever added."""

    pid: int
    version: str
    workers: int
    https: list[str]
    http: list[str]
    admin: list[str]
    listeners: list[Listener]
    names: list[str]
    demo: bool
    public_url: str
    realm: str
    ca_fingerprint_sha256: str


@contextlib.contextmanager
def locked(directory: Path) -> Iterator[None]:
    """Hold that lock for a while, so that no daemon runs meanwhile. Raises `OperatorError`."""
    descriptor = lock(directory)
    try:
        yield
    finally:
        os.close(descriptor)


def lock(directory: Path) -> int:
    """Take the lock that one daemon per directory holds, and return its descriptor: it lasts as long as the process."""
    run = directory / "run"
    run.mkdir(mode=0o700, exist_ok=True)
    descriptor = os.open(run / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        holder = os.pread(descriptor, 32, 0).decode("ascii", "replace").strip()
        os.close(descriptor)
        raise OperatorError(
            "already_running",
            f"Another enrolld serves {directory} (process {holder or 'unknown'}).",
            f"Stop it first (kill {holder}), or serve another directory with --dir."
            if holder.isdecimal()
            else "Stop it first, or serve another directory with --dir.",
        ) from None
    with contextlib.suppress(OSError):  # a full disk: the lock holds without saying whose it is
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, f"{os.getpid()}\n".encode(), 0)
    return descriptor


def publish(directory: Path, state: RunState) -> None:
    """Write `serve.json` whole, or not at all."""
    path = directory / "run" / "serve.json"
    making = path.with_suffix(".new")
    descriptor = os.open(making, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW, 0o600)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(msgspec.json.format(msgspec.json.encode(state), indent=2) + b"\n")
        making.rename(path)
    except OSError:
        making.unlink(missing_ok=True)
        raise


def withdraw(directory: Path) -> None:
    """Remove `serve.json`: nobody listens any more."""
    (directory / "run" / "serve.json").unlink(missing_ok=True)


def find(directory: Path) -> RunState | None:
    """The daemon that runs on this directory now; a file that a killed one left behind does not count."""
    run = directory / "run"
    try:
        descriptor = os.open(run / "lock", os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        try:
            return msgspec.json.decode((run / "serve.json").read_bytes(), type=RunState)
        except (OSError, msgspec.DecodeError):
            return None  # it is starting or stopping
    finally:
        os.close(descriptor)
    return None


async def names_missing(node: Node, core: "Core") -> OperatorError | None:
    """What is wrong with a node without names beside others that have some: it would issue for a week."""
    others = await core.realms.own_names()
    if not node.demo or not is_shared(node.store_url) or not others or "DNS:localhost" in others:
        return None
    shown = ", ".join(f'"{name.partition(":")[2]}"' for name in sorted(others))
    return OperatorError(
        "names_missing",
        "This node has no names, and the others on this database have.",
        f"Give it the same: 'names = [{shown}]' in {node.dir / FILE_NAME}, or --name.",
    )


def readiness(state: RunState) -> list[str] | None:
    """Why a running daemon is not ready, as it says itself; empty when it is, None when it has nowhere to say it."""
    for url in state.admin:
        try:
            with urllib.request.urlopen(f"{url.rstrip('/')}/readyz", timeout=_ASK_SECONDS):  # noqa: S310  # http, of our own file
                return []
        except urllib.error.HTTPError as exc:
            try:
                return [str(reason) for reason in msgspec.json.decode(exc.read(65536))["reasons"]]
            except (OSError, msgspec.DecodeError, KeyError, TypeError):
                return ["it does not say why"]
        except (OSError, ValueError):
            continue
    return None


def core_config(node: Node, unlock_key: "UnlockKey | None", *, process: str = "cli") -> "CoreConfig":
    """How a command opens the core: with the URL that the running daemon gives, else the one it would.

    Without the unlock key it is to sign nothing, and so is not to reach the HSM either. Raises OperatorError.
    """
    from ca_core.core import CoreConfig
    from enrolld import unlock

    state = find(node.dir)
    port = next((address.port for address in node.http if address.port), None)
    return CoreConfig(
        store_url=node.store_url,
        unlock_key=unlock_key,
        public_url=state.public_url if state else node.public_url(port),
        demo=state.demo if state else node.demo,
        process=process,
        hsm=unlock.find_hsm(node, os.environ) if unlock_key is not None else None,
    )
