"""`enrolld serve`, from the directory to the supervisor."""

import asyncio
import contextlib
import importlib.metadata
import logging
import os
import signal
import socket
from collections.abc import Awaitable, Callable
from pathlib import Path

import msgspec

from ca_core.authority.pin import HsmSettings
from ca_core.authority.sealing import UnlockKey
from ca_core.errors import OperatorError
from ca_core.names import DEFAULT_REALM
from ca_core.records import opening
from enrolld import log, notify, process, running, sockets, unfinished, unlock
from enrolld.config import Node
from enrolld.making import make_directory, refuse_moved, refuse_typos
from enrolld.preparation import core_config, find_or_make_key, prepare, upgrade, wait_for_store
from enrolld.process import BoardSettings, SocketSettings, WorkerSettings
from enrolld.running import Listener, RunState
from enrolld.supervisor import Settings, Supervisor
from enrolld.webhook_keys import load_keys

__all__ = ["Started", "serve"]

_LOG = logging.getLogger(__name__)

_KINDS = ("https", "http", "admin", "proxy-https", "proxy-http")


class Started(msgspec.Struct, frozen=True):
    """A daemon that serves: what `serve.json` says, and what only the first lines on the screen need."""

    state: RunState
    unlock_key: Path | None
    free_device: str
    reads_des: tuple[str, ...]


def serve(node: Node, announce: Callable[[Started], None], read_again: Callable[[], Node]) -> None:
    """Serve until told to stop; `announce` is called when connections are accepted. Raises OperatorError.

    `read_again` reads this node's configuration as it is then; it raises OperatorError.
    """
    process.harden()  # enforces case 73
    process.raise_descriptor_limit()
    load_keys(node.webhook_keys)  # what is at fault is told before anything is made
    log.setup(node.log, "supervisor")
    for early in (signal.SIGHUP, signal.SIGUSR2):
        signal.signal(early, signal.SIG_IGN)  # until there is something to reload
    refuse_moved(node)
    make_directory(node)
    lock = running.lock(node.dir)  # (1)
    bound: list[tuple[str, socket.socket]] = []
    try:
        bound += notify.inherited_sockets(_KINDS)
        handed = {kind for kind, _ in bound}
        for kind in _KINDS:  # (2) first of all: a CA is not made for a daemon that can't listen
            if kind not in handed:
                bound += [(kind, one) for one in sockets.bind(kind, getattr(node, kind.replace("-", "_")))]
        public_url = node.public_url(next((one.getsockname()[1] for kind, one in bound if kind == "http"), None))
        names = _server_names(node, bound)
        wait_for_store(node)
        with opening.setting_up(node.store_url):  # of two nodes that start on an empty database, one makes the CA
            new = not opening.exists(node.store_url)
            if new:
                refuse_typos()
                unfinished.refuse(node.dir)
            if not new and not opening.is_shared(node.store_url):
                upgrade(node)
            key, path = find_or_make_key(node, new=new)
            if key is None:
                missing = unlock.missing(node)
                _LOG.error("this node is not ready: %s %s", missing.message, missing.remedy)
            config = core_config(node, key, public_url, "supervisor")
            prepared = asyncio.run(prepare(node, config, names, new=new))  # (3)
        state = RunState(
            pid=os.getpid(),
            version=version(),
            workers=node.workers,
            https=[sockets.url("https", one) for kind, one in bound if kind == "https"],
            http=[sockets.url("http", one) for kind, one in bound if kind == "http"],
            admin=[sockets.url("http", one) for kind, one in bound if kind == "admin"],
            listeners=[Listener(kind, *one.getsockname()[:2]) for kind, one in bound],
            names=list(node.names),
            demo=node.demo,
            public_url=public_url,
            realm=DEFAULT_REALM,
            ca_fingerprint_sha256=prepared.fingerprint,
        )

        def ready() -> None:
            _tell(node, state)
            with contextlib.suppress(BrokenPipeError):  # nobody reads the first lines: no reason to stop serving
                announce(Started(state, path, prepared.free_device, prepared.reads_des))

        async def reload() -> tuple[Settings, Callable[[], Awaitable[None]]]:
            new = read_again()
            if fixed := _changed_for_good(node, new):
                raise OperatorError(
                    "restart_needed", f"{', '.join(fixed)} can't change while it runs.", "Restart it for that."
                )
            current_key = key
            if prepared.locked:
                # Somebody may have brought the key since; one that opens is not looked for again.
                current_key = unlock.find(new, os.environ, None) or key
            new_names = _server_names(new, bound)
            new_url = new.public_url(next((one.getsockname()[1] for kind, one in bound if kind == "http"), None))
            config = core_config(new, current_key, new_url, "supervisor")

            async def prepare_anew() -> None:
                nonlocal prepared
                prepared = await asyncio.to_thread(asyncio.run, prepare(new, config, new_names, new=False))

            await prepare_anew()
            told = msgspec.structs.replace(state, names=list(new.names), demo=new.demo, public_url=new_url)

            async def adopted() -> None:
                nonlocal key
                key = current_key
                log.setup(new.log, "supervisor")
                _tell(node, told)
                await prepare_anew()  # until now the old workers saw to their own names

            return _worker_settings(new, told, new_names, current_key, config.hsm), adopted

        supervisor = Supervisor(_worker_settings(node, state, names, key, config.hsm), node.workers)
        asyncio.run(supervisor.run(bound, ready, lambda: running.withdraw(node.dir), reload))
    finally:
        for _, one in bound:
            one.close()
        os.close(lock)


def _tell(node: Node, state: RunState) -> None:
    """Write `serve.json`. Serving does not depend on it: where it can't be written, commands go without."""
    try:
        running.publish(node.dir, state)
    except OSError as exc:
        _LOG.error("%s could not be written: %s", node.dir / "run" / "serve.json", exc.strerror)


def _changed_for_good(node: Node, new: Node) -> list[str]:
    """The settings that differ and that only a restart can change."""
    fixed = {"https": "listen.https", "http": "listen.http", "admin": "listen.admin", "workers": "workers"}
    fixed |= {"proxy_https": "proxy.https", "proxy_http": "proxy.http"}
    fixed |= {"store_url": "store.url", "unlock_file": "unlock.file"}
    return [told for name, told in fixed.items() if getattr(node, name) != getattr(new, name)]


def version() -> str:
    """Of the installed package."""
    return importlib.metadata.version("enrolld")


def _server_names(node: Node, bound: list[tuple[str, socket.socket]]) -> tuple[str, ...]:
    names = node.server_names()
    if node.demo:  # a demo is reached by whatever address it was bound to
        own = [str(one.getsockname()[0]) for kind, one in bound if kind == "https"]
        names += tuple(address for address in own if address not in ("0.0.0.0", "::"))  # noqa: S104  # left out
    return tuple(dict.fromkeys(names))


def _worker_settings(
    node: Node, state: RunState, names: tuple[str, ...], key: UnlockKey | None, hsm: HsmSettings | None
) -> Settings:
    webhook_keys = {name: found.to_bytes() for name, found in load_keys(node.webhook_keys).items()}

    def settings(number: int, inherited: tuple[SocketSettings, ...], board: BoardSettings) -> WorkerSettings:
        return WorkerSettings(
            number=number,
            version=state.version,
            store_url=node.store_url,
            public_url=state.public_url,
            demo=state.demo,
            names=names,
            log=node.log,
            sockets=inherited,
            unlock_key=key.to_bytes() if key is not None else None,
            board=board,
            limits=node.limits,
            proxies=node.proxies,
            webhook_keys=webhook_keys,
            hsm_module=hsm.module if hsm is not None else "",
            hsm_pin=hsm.pin.reveal() if hsm is not None and hsm.pin is not None else None,
            hsm_pins={token: pin.reveal() for token, pin in hsm.pins.items()} if hsm is not None else {},
        )

    return settings
