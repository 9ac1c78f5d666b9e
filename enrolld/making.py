"""The making of a new CA, which `init` does and `serve` does on its first start; and what forbids it."""

import asyncio
import difflib
import os

import msgspec

from ca_core.core import Core
from ca_core.errors import OperatorError
from ca_core.names import DEFAULT_REALM
from ca_core.records import opening
from enrolld import running, unfinished
from enrolld.config import Node, unknown_variables
from enrolld.config_file import FILE_NAME
from enrolld.preparation import core_config, find_or_make_key, prepare

__all__ = ["Made", "make", "make_directory", "refuse_moved", "refuse_typos"]

_MUCH_ALIKE = 0.88


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


def make(node: Node, token: str | None = None) -> Made:
    """Make the directory, the unlock key, the store and the default realm, whose keys are in `token` if one is named.

    Raises OperatorError.
    """
    refuse_moved(node)
    with opening.setting_up(node.store_url):
        if opening.exists(node.store_url) and not asyncio.run(_is_without_realm(node)):
            raise OperatorError(
                "already_initialized",
                f"There is a CA in {_place_of(node)} already.",
                "Run it with 'serve', or choose another --dir."
                if not opening.is_shared(node.store_url)
                else "Run it with 'serve', with the unlock key that it was made with, or choose another database.",
            )
        refuse_typos()
        make_directory(node)
        lock = running.lock(node.dir)
        try:
            unfinished.begin(node.dir, token)
            port = next((address.port for address in node.http if address.port), None)
            key, path = find_or_make_key(node, new=True)
            config = core_config(node, key, node.public_url(port), "init")
            fingerprint = asyncio.run(prepare(node, config, (), new=True, token=token)).fingerprint
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


def make_directory(node: Node) -> None:
    """For this user alone. Raises OperatorError."""
    try:
        node.dir.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as exc:
        raise OperatorError(
            "directory_unwritable", f"{node.dir} can't be made: {exc.strerror}.", "Choose another --dir."
        ) from exc


def refuse_typos() -> None:
    """Before a CA is made: a variable that nobody reads may have been meant to name the one that there is."""
    for name, nearest in unknown_variables(os.environ):
        # Much alike: an orchestrator's ENROLLD_PORT is no typing error.
        if nearest and difflib.SequenceMatcher(None, name, nearest).ratio() > _MUCH_ALIKE:
            raise OperatorError(
                "variable_unknown",
                f"{name} is set, and means nothing here; no new CA is made beside it.",
                f"Did you mean {nearest}? If not, unset it.",
            )


def refuse_moved(node: Node) -> None:
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
        core = Core.open(core_config(node, None, node.public_url(None), "init"))
    except OperatorError:
        return False
    try:
        return DEFAULT_REALM not in await core.realms.current()
    finally:
        core.close()


def _place_of(node: Node) -> str:
    """Where the CA of this node is, in words."""
    return opening.shown(node.store_url) if opening.is_shared(node.store_url) else str(node.dir)
