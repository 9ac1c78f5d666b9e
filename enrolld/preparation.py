"""What stands before a node serves: its store, its keys, and a CA with what it must have for the node's names."""

import contextlib
import hashlib
import logging
import os
import time
from pathlib import Path
from typing import NamedTuple

from ca_core.authority.sealing import UnlockKey
from ca_core.core import Core, CoreConfig
from ca_core.errors import CoreError, HsmUnfit, OperatorError
from ca_core.names import DEFAULT_REALM
from ca_core.records import opening
from enrolld import faults, running, unfinished, unlock, wrong_pin
from enrolld.config import Node
from enrolld.config_file import FILE_NAME, starting_file

__all__ = ["Prepared", "core_config", "find_or_make_key", "prepare", "upgrade", "wait_for_store"]

_LOG = logging.getLogger(__name__)
_STORE_SECONDS = 60.0


def wait_for_store(node: Node) -> None:
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


def upgrade(node: Node) -> None:
    """Bring a SQLite store of an earlier version to this one, after a copy of it: nobody else works with it."""
    found, copy = opening.upgrade_store(node.store_url)
    if copy is not None:
        _LOG.info("the store is now of revision %s; as it was (%s) it lies at %s", opening.HEAD, found, copy)


def find_or_make_key(node: Node, *, new: bool) -> tuple[UnlockKey | None, Path | None]:
    """The key, and its path when it was made just now. A node of several goes on without one, and is not ready."""
    found = unlock.find(node, os.environ, unlock.ask if not new else None)
    if found is not None:
        return found, None
    if new:
        return unlock.generate(node)
    if not opening.is_shared(node.store_url):
        raise unlock.missing(node)
    return None, None


def core_config(node: Node, key: UnlockKey | None, public_url: str, process_name: str) -> CoreConfig:
    """What a core of this node is opened with."""
    return CoreConfig(
        store_url=node.store_url,
        unlock_key=key,
        public_url=public_url,
        demo=node.demo,
        process=process_name,
        hsm=unlock.find_hsm(node, os.environ),
    )


class Prepared(NamedTuple):
    """What the first lines on the screen say of the CA."""

    fingerprint: str
    free_device: str
    reads_des: tuple[str, ...]
    locked: str | None
    """Why the CA keys can't be opened; None when they can."""


async def prepare(
    node: Node, config: CoreConfig, names: tuple[str, ...], *, new: bool, token: str | None = None
) -> Prepared:
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
        return Prepared(hashlib.sha256(root).hexdigest(), await _free_device(core), reads_des, locked)
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
