"""`enrolld store`: where the records are."""

import contextlib
import sys
from collections.abc import Callable, Iterator

import click

from ca_core.errors import OperatorError
from enrolld.cli import output
from enrolld.cli.frame import GroupWithGlobals, Session, pass_session, require_store

_SQLITE = "sqlite:///"


@click.group(cls=GroupWithGlobals)
def store() -> None:
    """Where the records are: copy."""


@store.command()
@click.argument("to", metavar="postgresql://USER@HOST:PORT/DATABASE")
@pass_session
def copy(session: Session, /, to: str) -> None:
    """Move this node's SQLite store to an empty PostgreSQL database, for several nodes.

    The daemon must not run. The password comes from ~/.pgpass or PGPASSWORD. The file is kept as *.copied, so that no
    daemon serves it by mistake.
    """
    from ca_core.records.opening import is_shared, shown, sqlite_path
    from enrolld import running
    from enrolld.config import holds_password

    node = session.node()
    require_store(node, session.command)
    if not node.store_url.startswith(_SQLITE):
        raise OperatorError(
            "store_copy_source",
            f"The store of {node.dir} is {shown(node.store_url)}, and only a SQLite file can be copied.",
            "Name the directory that has the file with --dir, or the file with --store sqlite:///PATH.",
        )
    if not is_shared(to):
        raise OperatorError(
            "store_copy_target",
            "The store can be copied to a PostgreSQL database alone.",
            "Give its URL: postgresql://USER@HOST:PORT/DATABASE",
        )
    if holds_password(to):
        raise OperatorError(
            "password_exposed",
            "A password among the arguments is seen by everybody on this machine.",
            "Put it into ~/.pgpass or PGPASSWORD, and leave it out of the URL.",
        )
    from ca_core.records.copying import copy_to_postgres

    path = sqlite_path(node.store_url)
    with running.locked(node.dir), _progress(to_screen=not session.json and sys.stderr.isatty()) as progress:
        counts = copy_to_postgres(path, to, progress)
    kept = path.with_name(path.name + ".copied")
    values = {"from": node.store_url, "to": shown(to), "rows": counts, "kept": str(kept)}
    if session.json:
        output.emit_json(values)
        return
    output.details(
        [("rows", sum(counts.values())), ("certificates", counts["certificate"]), ("the old file", str(kept))]
    )
    output.words(
        f'Now put the database into {node.dir / "enrolld.toml"}:\n\n  [store]\n  url = "{shown(to)}"\n\n'
        "and give each further node the same names and the same unlock key."
    )


@contextlib.contextmanager
def _progress(*, to_screen: bool) -> Iterator[Callable[[int, int], None]]:
    if not to_screen:
        yield lambda _done, _total: None
        return
    with contextlib.ExitStack() as stack:
        bars: list[click._termui_impl.ProgressBar[int]] = []

        def show(done: int, total: int) -> None:
            if not bars:
                bars.append(stack.enter_context(click.progressbar(length=total, label="rows", file=sys.stderr)))
            bars[0].update(done - bars[0].pos)

        yield show
