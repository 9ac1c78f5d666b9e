"""`enrolld serve`, `init`, `status` and `upgrade`: this node."""

import contextlib
import shlex
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar

import click

from ca_core.errors import OperatorError
from enrolld.cli import crl, output
from enrolld.cli.frame import CommandWithGlobals, Session, pass_session, program, refuse_empty_store, store_exists
from enrolld.config import Node
from enrolld.sockets import Address

if TYPE_CHECKING:
    from ca_core.core import Core
    from enrolld.daemon import Started
    from enrolld.running import RunState

F = TypeVar("F", bound=Callable[..., Any])


def names(command: F) -> F:
    """`--name`."""
    text = "A name that clients use; repeatable, the first stands in issued certificates."
    return click.option("--name", "names", multiple=True, metavar="NAME", help=text)(command)


@click.command(cls=CommandWithGlobals)
@click.option("--init", is_flag=True, help="Make the CA if there is none.")
@click.option(
    "--https", multiple=True, metavar="ADDR:PORT|off", help="Where EST and SCEP are served [:8443]; repeatable."
)
@click.option(
    "--http", multiple=True, metavar="ADDR:PORT|off", help="Where SCEP and CRLs are served [:8080]; repeatable."
)
@click.option(
    "--admin", multiple=True, metavar="ADDR:PORT|off", help="Where health and metrics are served [127.0.0.1:8081]."
)
@names
@click.option("--workers", type=int, metavar="N", help="How many worker processes [1].")
@pass_session
def serve(session: Session, /, init: bool, **flags: Any) -> None:
    """Run the daemon in the foreground until SIGTERM or Ctrl-C."""
    node = session.node(**flags)
    refuse_empty_store(node, session.command)
    if not (init or node.dir_named or store_exists(node)):
        raise OperatorError(
            "no_store",
            f"There is no CA in {node.dir}, and nobody named this directory.",
            f"Name the right one with --dir, or make a new CA here: {program()} serve --init",
        )

    from enrolld import announcement, daemon

    def announce(started: "Started") -> None:
        if session.json:
            output.emit_json(started.state)
        else:
            output.raw(announcement.text(started, str(node.dir), lambda rest: _anywhere(node, rest)))
        sys.stdout.flush()

    daemon.serve(node, announce, lambda: session.node(**flags))


@click.command(cls=CommandWithGlobals)
@names
@click.option("--hsm", "token", metavar="TOKEN", help="Make the CA's keys in the HSM's token with this label.")
@pass_session
def init(session: Session, /, token: str | None, **flags: Any) -> None:
    """Make the directory, its unlock key, the CA and the default realm."""
    node = session.node(**flags)

    from enrolld import announcement, making, unlock

    made = making.make(node, token)
    if session.json:
        output.emit_json(made)
        return
    output.details(
        [
            ("directory", made.dir),
            ("realm", made.realm),
            ("its root, SHA-256", announcement.colons(made.ca_fingerprint_sha256)),
            *([("its keys", f"in the HSM's token {made.token}")] if made.token is not None else []),
            ("names", made.names or "none yet: issued certificates end after 7 days"),
            ("URLs in certificates", made.public_url),
        ]
    )
    if made.unlock_key is not None:
        output.words(unlock.NOTICE.format(path=made.unlock_key, credential=unlock.CREDENTIAL))
    session.next("Now run it:", "serve")


@click.command(cls=CommandWithGlobals)
@pass_session
def status(session: Session) -> None:
    """Show whether the daemon runs, and what the store holds."""
    from enrolld import running

    node = session.node()

    async def body(core: "Core") -> object:
        return await core.status()

    values = output.plain(session.run(body))
    state = running.find(node.dir)
    reasons = running.readiness(state) if state is not None else None
    if session.json:
        told = {"dir": str(node.dir), "running": state is not None, "ready": None if reasons is None else not reasons}
        output.emit_json({**told, "not_ready": reasons or [], "serve": state, **values})
        return
    pairs: list[tuple[str, object]] = [("directory", str(node.dir)), ("running", state is not None)]
    if reasons is not None:
        pairs.append(("ready", f"no: {'; '.join(reasons)}" if reasons else True))
    if state is not None:
        pairs += [("process", state.pid), *((kind, _bound(state, kind)) for kind in ("https", "http", "admin"))]
    pairs += [(name.replace("_", " "), values[name]) for name in ("version", "store", "public_url")]
    output.details(pairs)
    counts: list[output.Column] = [
        ("realm", "realm"),
        ("devices", lambda row: _counts(row["devices"])),
        ("certificates", lambda row: _counts(row["certificates"])),
    ]
    used: list[output.Column] = [
        ("realm", "realm"),
        ("tolerance", "tolerance"),
        ("uses", "uses"),
        ("last", "last_at"),
    ]
    for rows, columns in ((values["realms"], counts), (values["crls"], crl.COLUMNS), (values["tolerances"], used)):
        if not rows:
            continue
        output.raw("")
        output.table(rows if isinstance(rows, list) else [], columns)
    if state is None:
        session.next("To run it:", "serve")


@click.command(cls=CommandWithGlobals)
@pass_session
def upgrade(session: Session) -> None:
    """Bring the store to this version. A SQLite file is copied first, and its daemon must not run."""
    from ca_core.records.opening import HEAD, is_shared, shown, upgrade_store
    from enrolld import running

    node = session.node()
    refuse_empty_store(node, session.command)
    # Nodes that share a database go on while it is upgraded: a revision adds what they need not know.
    with contextlib.nullcontext() if is_shared(node.store_url) else running.locked(node.dir):
        found, copy = upgrade_store(node.store_url)
    values = {"store": shown(node.store_url), "from": found, "to": HEAD, "copy": str(copy) if copy else None}
    if session.json:
        output.emit_json(values)
    elif found == HEAD:
        output.words(f"The store is of revision {HEAD}, which is this version's: nothing to do.")
    else:
        kept = [("the store as it was", str(copy))] if copy else []
        output.details([("revision", f"{found} to {HEAD}"), *kept])
        session.next("Now run it, or restart the nodes one by one:" if copy is None else "Now run it:", "serve")


def _bound(state: "RunState", kind: str) -> list[str]:
    """Where a listener is bound, which is not always where this machine reaches it."""
    return [str(Address(one.address, one.port)) for one in state.listeners if one.kind == kind]


def _counts(value: object) -> object:
    return [f"{count} {state}" for state, count in value.items() if count] if isinstance(value, dict) else value


def _anywhere(node: Node, rest: str) -> str:
    """A command line that names the directory, however it was found, for another terminal."""
    parts = [program(), "--dir", str(node.dir)]
    if not node.store_url.endswith(str(node.dir / "enrolld.db")) and "@" not in node.store_url:
        parts += ["--store", node.store_url]
    return f"{shlex.join(parts)} {rest}"
