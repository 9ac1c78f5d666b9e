"""`enrolld serve`, from the directory to the supervisor; and the making of a new CA, which `init` shares."""

import asyncio
import contextlib
import difflib
import hashlib
import importlib.metadata
import logging
import os
import signal
import socket
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import NamedTuple

import msgspec

from ca_core.authority.pin import HsmSettings
from ca_core.authority.sealing import UnlockKey
from ca_core.core import Core, CoreConfig
from ca_core.errors import CoreError, HsmUnfit, OperatorError
from ca_core.names import DEFAULT_REALM
from ca_core.records import opening
from enrolld import faults, log, notify, process, running, sockets, unfinished, unlock, wrong_pin
from enrolld.config import Node, unknown_variables
from enrolld.config_file import FILE_NAME, starting_file
from enrolld.process import BoardSettings, SocketSettings, WorkerSettings
from enrolld.running import Listener, RunState
from enrolld.supervisor import Settings, Supervisor
from enrolld.webhook_keys import load_keys

__all__ = ["Made", "Started", "make", "serve"]

_LOG = logging.getLogger(__name__)

_STORE_SECONDS = 60.0
_MUCH_ALIKE = 0.88
_KINDS = ("https", "http", "admin", "proxy-https", "proxy-http")


class Made(msgspec.Struct, frozen=True):
    """A new CA."""

    dir: str
    store: str
    realm: str
    names: list[str]
    demo: bool
    public_url: str
    ca_fingerprint_sha256: str
    unlock_key: str | None
    token: str | None = None
    """The HSM's token in which its keys are; None when they are sealed in the store."""


class Started(msgspec.Struct, frozen=True):
    """A daemon that serves: what `serve.json` says, and what only the first lines on the screen need."""

    state: RunState
    unlock_key: Path | None
    free_device: str
    reads_des: tuple[str, ...]


def make(node: Node, token: str | None = None) -> Made:
    """Make the directory, the unlock key, the store and the default realm, whose keys are in `token` if one is named.

    Raises OperatorError.
    """
    _refuse_moved(node)
    with opening.setting_up(node.store_url):
        if opening.exists(node.store_url) and not asyncio.run(_is_without_realm(node)):
            raise OperatorError(
                "already_initialized",
                f"There is a CA in {_place_of(node)} already.",
                "Run it with 'serve', or choose another --dir."
                if not opening.is_shared(node.store_url)
                else "Run it with 'serve', with the unlock key that it was made with, or choose another database.",
            )
        _refuse_typos()
        _make_directory(node)
        lock = running.lock(node.dir)
        try:
            port = next((address.port for address in node.http if address.port), None)
            key, path = _unlock_key(node, new=True)
            config = _config(node, key, node.public_url(port), "init")
            unfinished.begin(node.dir, token)
            fingerprint = asyncio.run(_prepare(node, config, (), new=True, token=token)).fingerprint
            unfinished.finish(node.dir)
        finally:
            os.close(lock)
    return Made(
        dir=str(node.dir),
        store=opening.shown(node.store_url),
        realm=DEFAULT_REALM,
        names=list(node.names),
        demo=node.demo,
        public_url=node.public_url(port),
        ca_fingerprint_sha256=fingerprint,
        unlock_key=str(path) if path else None,
        token=token,
    )


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
    _refuse_moved(node)
    _make_directory(node)
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
        _wait_for_store(node)
        with opening.setting_up(node.store_url):  # of two nodes that start on an empty database, one makes the CA
            new = not opening.exists(node.store_url)
            if new:
                _refuse_typos()
                unfinished.refuse(node.dir)
            if not new and not opening.is_shared(node.store_url):
                _upgrade(node)
            key, path = _unlock_key(node, new=new)
            if key is None:
                missing = unlock.missing(node)
                _LOG.error("this node is not ready: %s %s", missing.message, missing.remedy)
            config = _config(node, key, public_url, "supervisor")
            prepared = asyncio.run(_prepare(node, config, names, new=new))  # (3)
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
            config = _config(new, current_key, new_url, "supervisor")

            async def prepare() -> None:
                nonlocal prepared
                prepared = await asyncio.to_thread(asyncio.run, _prepare(new, config, new_names, new=False))

            await prepare()
            told = msgspec.structs.replace(state, names=list(new.names), demo=new.demo, public_url=new_url)

            async def adopted() -> None:
                nonlocal key
                key = current_key
                log.setup(new.log, "supervisor")
                _tell(node, told)
                await prepare()  # until now the old workers saw to their own names

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


def _make_directory(node: Node) -> None:
    try:
        node.dir.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as exc:
        raise OperatorError(
            "directory_unwritable", f"{node.dir} can't be made: {exc.strerror}.", "Choose another --dir."
        ) from exc


def _refuse_typos() -> None:
    """Before a CA is made: a variable that nobody reads may have been meant to name the one that there is."""
    for name, nearest in unknown_variables(os.environ):
        # Much alike: an orchestrator's ENROLLD_PORT is no typing error.
        if nearest and difflib.SequenceMatcher(None, name, nearest).ratio() > _MUCH_ALIKE:
            raise OperatorError(
                "variable_unknown",
                f"{name} is set, and means nothing here; no new CA is made beside it.",
                f"Did you mean {nearest}? If not, unset it.",
            )


def _refuse_moved(node: Node) -> None:
    """Where the records were moved away, a new CA of the same names would be the worst that could be made."""
    if opening.is_shared(node.store_url):
        return
    path = opening.sqlite_path(node.store_url)
    kept = path.with_name(path.name + ".copied")
    if kept.exists() and not path.exists():
        raise OperatorError(
            "store_moved",
            f"The records of this CA were moved to a database; what was copied lies at {kept}.",
            f'Put the database into {node.dir / FILE_NAME}: [store] url = "postgresql://...". For a new CA, move that '
            "file away first.",
        )


async def _is_without_realm(node: Node) -> bool:
    """Whether the making of a CA was interrupted between its store and its first realm."""
    try:
        core = Core.open(_config(node, None, node.public_url(None), "init"))
    except OperatorError:
        return False
    try:
        return DEFAULT_REALM not in await core.realms.current()
    finally:
        core.close()


def _wait_for_store(node: Node) -> None:
    """Give a database server that is not there yet some time: after a power cut, machines come back in any order."""
    until = time.monotonic() + _STORE_SECONDS
    has_told = False
    while True:
        try:
            opening.exists(node.store_url)
        except OperatorError as exc:
            if exc.code != "store_unreachable" or time.monotonic() >= until:
                raise
            if not has_told:
                _LOG.warning("waiting for the database, for up to %d s: %s", _STORE_SECONDS, exc.message)
                has_told = True
            time.sleep(1.0)
        else:
            return


def _upgrade(node: Node) -> None:
    """Bring a SQLite store of an earlier version to this one, after a copy of it: nobody else works with it."""
    found, copy = opening.upgrade_store(node.store_url)
    if copy is not None:
        _LOG.info("the store is now of revision %s; as it was (%s) it lies at %s", opening.HEAD, found, copy)


def _place_of(node: Node) -> str:
    """Where the CA of this node is, in words."""
    return opening.shown(node.store_url) if opening.is_shared(node.store_url) else str(node.dir)


def _unlock_key(node: Node, *, new: bool) -> tuple[UnlockKey | None, Path | None]:
    """The key, and its path when it was made just now. A node of several goes on without one, and is not ready."""
    found = unlock.find(node, os.environ, unlock.ask if not new else None)
    if found is not None:
        return found, None
    if new:
        return unlock.generate(node)
    if not opening.is_shared(node.store_url):
        raise unlock.missing(node)
    return None, None


def _config(node: Node, key: UnlockKey | None, public_url: str, process_name: str) -> CoreConfig:
    return CoreConfig(
        store_url=node.store_url,
        unlock_key=key,
        public_url=public_url,
        demo=node.demo,
        process=process_name,
        hsm=unlock.find_hsm(node, os.environ),
    )


def _server_names(node: Node, bound: list[tuple[str, socket.socket]]) -> tuple[str, ...]:
    names = node.server_names()
    if node.demo:  # a demo is reached by whatever address it was bound to
        own = [str(one.getsockname()[0]) for kind, one in bound if kind == "https"]
        names += tuple(address for address in own if address not in ("0.0.0.0", "::"))  # noqa: S104  # left out
    return tuple(dict.fromkeys(names))


class _Prepared(NamedTuple):
    """What the first lines on the screen say of the CA."""

    fingerprint: str
    free_device: str
    reads_des: tuple[str, ...]
    locked: str | None
    """Why the CA keys can't be opened; None when they can."""


async def _prepare(
    node: Node, config: CoreConfig, names: tuple[str, ...], *, new: bool, token: str | None = None
) -> _Prepared:
    """Open or make the CA, and what it must have to serve `names`."""
    if token is not None:
        wrong_pin.refuse_again(node.dir, config.unlock_key, config.hsm)
    try:
        core = await Core.create(config, token=token) if new else Core.open(config)
    except HsmUnfit as exc:
        raise _unfit(node, config, exc) from exc
    try:
        if DEFAULT_REALM not in await core.realms.current():  # a first start that was interrupted
            unfinished.refuse(node.dir)
            core.close()
            core = await Core.create(config)
        if new:
            _write_settings(node)
        if (missing := await running.names_missing(node, core)) is not None:
            raise missing
        wrong_pin.refuse_again(node.dir, config.unlock_key, config.hsm)
        try:
            await core.prove_hsm()  # before anything else is tried with those keys
            wrong_pin.forget(node.dir)
            if names:
                await core.server_certificates.ensure(names)
                await core.crls.publish(only_due=True)
            await core.ra_certificates.ensure()
        except HsmUnfit as exc:
            raise _unfit(node, config, exc) from exc
        except CoreError as exc:
            if new or not opening.is_shared(node.store_url):
                raise
            if config.unlock_key is not None:
                _LOG.error("this node is not ready: %s", exc)  # other nodes may be, and this one tells why it is not
        root = (await core.issuers.export(DEFAULT_REALM))[0]
        realms = (await core.realms.current()).values()
        reads_des = tuple(realm.name for realm in realms if realm.document.speaks_scep and realm.document.scep.read_des)
        locked = await core.issuance.unlock_trouble()
        return _Prepared(hashlib.sha256(root).hexdigest(), await _free_device(core), reads_des, locked)
    finally:
        core.close()


def _unfit(node: Node, config: CoreConfig, exc: HsmUnfit) -> OperatorError:
    if exc.code == "hsm_pin_wrong" and config.hsm is not None:
        wrong_pin.remember(node.dir, config.unlock_key, config.hsm.pin_of(exc.token))
    return OperatorError(*faults.fault_of(exc))


def _write_settings(node: Node) -> None:
    """Names outlive the command line that first gave them."""
    with contextlib.suppress(FileExistsError):
        descriptor = os.open(node.dir / FILE_NAME, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
            file.write(starting_file(node.names))


async def _free_device(core: Core) -> str:
    """A name for the example on the screen that works when it is pasted."""
    number = 1
    while True:
        name = f"sensor-{number}"
        try:
            await core.devices.show(DEFAULT_REALM, name)
        except OperatorError:
            return name
        number += 1


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
