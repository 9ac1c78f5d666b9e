"""`enrolld check`: what would not work on this node, each with what to do about it. Whatever it meets is a finding."""

import asyncio
import os
import shlex
from collections.abc import Iterator
from typing import TYPE_CHECKING

import click

from ca_core.errors import CoreError, OperatorError
from ca_core.records.opening import is_shared
from enrolld import faults
from enrolld.cli import output
from enrolld.cli.frame import CommandWithGlobals, Session, pass_session, require_store
from enrolld.config import Node, unknown_variables

if TYPE_CHECKING:
    from ca_core.authority.sealing import UnlockKey
    from ca_core.core import Core

Finding = dict[str, object]
_FINDINGS = 3


@click.command(cls=CommandWithGlobals)
@click.option(
    "--matrix",
    is_flag=True,
    help="Prove instead, in a throw-away store with this one's rules, that no realm takes another's credentials.",
)
@pass_session
def check(session: Session, *, matrix: bool) -> int:
    """Find what would not work, and say how to mend it; exit status 3 when there is something."""
    if matrix:
        from enrolld.cli.matrix import prove

        return prove(session)
    findings = list(_look(session))
    found = any(finding["severity"] in ("error", "warning") for finding in findings)
    if session.json:
        output.emit_json({"ok": not found, "findings": findings})
    else:
        for finding in findings:
            output.raw(f"{finding['severity']}: {output.printable(finding['message'])}")
            if finding["remedy"]:
                output.raw(f"  {output.printable(finding['remedy'])}")
        if not found:
            output.raw("Nothing to mend.")
    return _FINDINGS if found else 0


def _look(session: Session) -> Iterator[Finding]:
    try:
        node = session.node()
    except OperatorError as exc:
        if exc.code != "config_invalid":
            raise  # another user's directory: there is nothing that could be looked at
        for line in exc.message.splitlines():
            yield _finding("error", exc.code, line, exc.remedy)
        return
    try:
        require_store(node, session.command)
    except OperatorError as exc:
        yield _of(exc)
    else:
        yield from _installation(node)
    yield from _surroundings(node)


def _installation(node: Node) -> Iterator[Finding]:
    """What concerns the unlock key and the store."""
    from enrolld import running, unlock

    key: UnlockKey | None = None
    try:
        key = unlock.find(node, os.environ, ask=None)
        if key is None:
            missing = unlock.missing(node)
            if running.find(node.dir) is None or is_shared(node.store_url):
                yield _of(missing)
            else:
                words = f"{missing.message} The running daemon has it; without it the CA keys were not looked at."
                yield _finding("warning", missing.code, words, missing.remedy)
    except (OperatorError, OSError) as exc:
        yield _of(exc)
    try:
        yield from asyncio.run(_ask_core(node, key))
    except Exception as exc:
        if not isinstance(exc, CoreError) and faults.fault_of(exc).code == "internal":
            raise  # a fault of ours, which the edge of the process tells as one
        yield _of(exc)


async def _ask_core(node: Node, key: "UnlockKey | None") -> list[Finding]:
    from ca_core.core import Core
    from enrolld.running import core_config, names_missing

    core = Core.open(core_config(node, key))
    try:
        found = [output.plain(finding) for finding in await core.check(node.names)]
        if (missing := await names_missing(node, core)) is not None:
            found.append(_of(missing))
        found += [_without_key(name, wanted) for name, wanted in await _asked(core) if wanted not in node.webhook_keys]
        return found
    finally:
        core.close()


async def _asked(core: "Core") -> list[tuple[str, str]]:
    """The active realms that ask a webhook, each with the name of its key."""
    return [
        (name, realm.document.admission.webhook.key)
        for name, realm in (await core.realms.current()).items()
        if realm.state == "active" and realm.document.admission.webhook and any(way.webhook for way in realm.ways)
    ]


def _without_key(realm: str, wanted: str) -> Finding:
    text = f"Realm {realm} asks a webhook by the key '{wanted}', which this node lacks: its devices are put off."
    return _finding("error", "webhook_key_unknown", text, "Name the key's file in enrolld.toml, under [webhook_keys].")


def _surroundings(node: Node) -> Iterator[Finding]:
    """What concerns this node alone, and not the core."""
    from enrolld import running

    state = running.find(node.dir)
    for reason in (running.readiness(state) or ()) if state is not None else ():
        message = f"the running daemon is not ready: {reason}"
        yield _finding(
            "error",
            "not_ready",
            message,
            "Mend that, and it is ready by itself; another unlock key is looked for at SIGHUP.",
        )
    for variable, nearest in unknown_variables(os.environ):
        hint = f"Did you mean {nearest}?" if nearest else "Unset it."
        yield _finding("warning", "variable_unknown", f"{variable} is set, and means nothing here.", hint)
    if node.dir.exists() and (mode := node.dir.stat().st_mode & 0o077) != 0:
        message = f"{node.dir} is open to other users (mode {mode:03o} too many)."
        yield _finding("error", "directory_open", message, f"chmod 700 {shlex.quote(str(node.dir))}")


def _of(exc: Exception) -> Finding:
    return _finding("error", *faults.fault_of(exc))


def _finding(severity: str, code: str, message: str, remedy: str) -> Finding:
    return {"severity": severity, "code": code, "message": message, "remedy": remedy}
