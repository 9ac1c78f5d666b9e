"""What all commands share: the global options, the session that opens the core, and lists that page.

The global options stand before or after a command's name; the one nearest to the end counts.
"""

import gc
import getpass
import os
import pwd
import shlex
import shutil
import sys
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from ca_core.errors import OperatorError
from enrolld.cli import output
from enrolld.config import Flags, Node, node_directory
from enrolld.config_file import FILE_NAME

if TYPE_CHECKING:
    from ca_core.core import Core

__all__ = ["CommandWithGlobals", "GroupWithGlobals", "Session", "listing", "pass_session"]

T = TypeVar("T")
_PAGE = 500


class Session:
    """One run of the command line: its global options, and the core when it is asked for."""

    def __init__(self) -> None:
        self.dir: str | None = None
        self.store: str | None = None
        self.json = False

    def node(self, **flags: Any) -> Node:
        """This node's configuration, of a directory that is ours to read."""
        given = Flags(dir=self.dir, store=self.store, **flags)
        directory, _ = node_directory(given, os.environ)
        check_owner(directory, named=self.dir is not None)
        try:
            return Node.load(given, os.environ)
        except OperatorError as exc:
            if exc.code == "usage":
                raise click.UsageError(exc.message, click.get_current_context(silent=True)) from exc
            raise

    @property
    def actor(self) -> str:
        """Who does it, as the audit trail names them: the login, not what a variable claims."""
        try:
            return f"operator:{pwd.getpwuid(os.getuid()).pw_name}"
        except KeyError:
            return f"operator:{os.getuid()}"

    def run(self, body: "Callable[[Core], Awaitable[T]]", *, key: bool | None = False) -> T:
        """Open the core and await `body` with it.

        `key` says whether the CA keys must be opened: True, False, or None for when the unlock key is at hand.
        """
        node = self.node()
        require_store(node, self.command)

        # Imported when all that can be refused without them is: they cost most of a command's start. Nothing made by
        # importing is ever garbage, and looking for it would take another tenth.
        gc.disable()
        import asyncio

        from ca_core.core import Core
        from enrolld import unlock
        from enrolld.running import core_config

        gc.freeze()
        gc.enable()
        unlock_key = None
        if key is not False:
            unlock_key = unlock.find(node, os.environ, ask=unlock.ask if key else None)
            if key and unlock_key is None:
                raise unlock.missing(node)
        core = Core.open(core_config(node, unlock_key))
        try:
            return asyncio.run(_await(body(core)))
        finally:
            core.close()

    def command(self, rest: str) -> str:
        """A command line of ours that works as pasted, in any folder: for remedies and next steps."""
        parts = [program()]
        if self.dir is not None:
            parts += ["--dir", str(Path(self.dir).resolve())]
        if self.store is not None and "@" not in self.store:  # a URL may hold a password
            parts += ["--store", self.store]
        return f"{shlex.join(parts)} {rest}"

    def next(self, sentence: str, rest: str) -> None:
        """After success: what to do next, for a person."""
        if not self.json:
            output.words(f"{sentence}\n  {self.command(rest)}")


class _Globals:
    """Mixed into commands and groups: the global options, which only set the session."""

    def _options(self) -> list[click.Option]:
        return [
            click.Option(
                ["--dir"],
                metavar="DIR",
                expose_value=False,
                callback=_remember("dir"),
                help="The node's directory [ENROLLD_DIR, ./enrolld-data].",
            ),
            click.Option(
                ["--store"],
                metavar="URL",
                expose_value=False,
                callback=_remember("store"),
                help="Where the records are [ENROLLD_STORE, enrolld.db in DIR].",
            ),
            click.Option(
                ["--json"],
                is_flag=True,
                default=None,
                expose_value=False,
                callback=_remember("json"),
                help="Answer in JSON.",
            ),
        ]


class CommandWithGlobals(_Globals, click.Command):
    """A command."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.params += self._options()


class GroupWithGlobals(_Globals, click.Group):
    """A noun, whose commands are its verbs."""

    command_class = CommandWithGlobals
    group_class = type

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.params += self._options()

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002  # click's signature
        """In the order they were written, not of the alphabet."""
        return list(self.commands)


pass_session = click.make_pass_decorator(Session)


def listing(
    session: Session,
    columns: Sequence[output.Column],
    fetch: "Callable[[Core, int, str | None], Awaitable[Sequence[object]]]",
    *,
    limit: int,
    after: str | None,
    empty: str,
) -> None:
    """Show up to `limit` rows after the row `after`, and say when there are more.

    `fetch(core, limit, after)` gives rows with an `id`.
    """

    async def body(core: "Core") -> tuple[list[dict[str, object]], bool]:
        rows: list[dict[str, object]] = []
        position = after
        while len(rows) <= limit:
            wanted = min(_PAGE, limit + 1 - len(rows))
            page = [output.plain(row) for row in await fetch(core, wanted, position)]
            rows += page
            if len(page) < wanted:
                break
            position = str(page[-1]["id"])
        return rows[:limit], len(rows) > limit

    rows, more = session.run(body)
    if session.json:
        for row in rows:
            output.emit_json(row)
    elif rows:
        output.table(rows, columns)
    else:
        output.words(empty)
    if more and not session.json:
        output.words(f"Showing {len(rows)}; for more: --after {rows[-1]['id']}")


def page(rows: Sequence[T], limit: int, after: str | None) -> Sequence[T]:
    """The same paging for lists that are short enough to be read whole."""
    ids = [str(getattr(row, "id")) for row in rows]  # noqa: B009  # every row has one; its class is not known here
    if after is not None and after not in ids:
        raise OperatorError("after_invalid", f"No row has the id {after!r}.", "Give --after the id of a listed row.")
    start = ids.index(after) + 1 if after is not None else 0
    return rows[start : start + limit]


def check_owner(directory: Path, *, named: bool) -> None:
    """Refuse to touch another user's directory: files made there by us would shut the daemon out (or let us in).

    `named` says whether `--dir` did it: a variable is lost on the way through sudo.
    """
    arguments = [program(), *([] if named else ["--dir", str(directory)]), *sys.argv[1:]]
    try:
        owner = directory.stat().st_uid
    except FileNotFoundError:
        return
    except PermissionError:
        raise OperatorError(
            "directory_forbidden",
            f"{directory} can't be looked into by {getpass.getuser()}.",
            f"Run it as the user that the daemon runs as: sudo -u USER {shlex.join(arguments)}",
        ) from None
    if owner != os.geteuid():
        try:
            name = pwd.getpwuid(owner).pw_name
        except KeyError:
            name = f"#{owner}"
        raise OperatorError(
            "wrong_user",
            f"{directory} belongs to {name}, and this is user {os.geteuid()}.",
            f"Run it as its owner: sudo -u {shlex.quote(name)} {shlex.join(arguments)}",
        )


def require_store(node: Node, command: Callable[[str], str]) -> None:
    """Refuse when there is no CA here yet, and say where one was looked for."""
    refuse_empty_store(node, command)
    if store_exists(node):
        return
    path = node.store_url.removeprefix("sqlite:///")
    if (node.dir / FILE_NAME).exists():
        what = f"{node.dir} has settings, but no store at {path}."
    elif node.dir.exists():
        what = f"{node.dir} holds no CA yet."
    else:
        what = f"There is no directory {node.dir}."
    raise OperatorError("no_store", what, f"Name the right one with --dir, or make a CA: {command('init')}")


def refuse_empty_store(node: Node, command: Callable[[str], str]) -> None:
    """Refuse a file without a byte where the database should be; enrolld never leaves one."""
    path = _database(node)
    if path is None or not path.is_file() or path.stat().st_size:
        return
    raise OperatorError(
        "store_empty",
        f"{path} is empty: there is no database in it.",
        f"Restore a backup of it. If there never was a CA, delete the file and make one: {command('init')}",
    )


def store_exists(node: Node) -> bool:
    """Whether a CA was made here before; of a database server only opening it tells."""
    path = _database(node)
    return path is None or path.exists()


def _database(node: Node) -> Path | None:
    prefix = "sqlite:///"
    return Path(node.store_url.removeprefix(prefix)) if node.store_url.startswith(prefix) else None


def program() -> str:
    """How this program is called: its name where a shell finds it by that, else its path."""
    called = Path(sys.argv[0])
    if called.name != "enrolld":
        called = Path(sys.executable).with_name("enrolld")
    found = shutil.which("enrolld")
    return "enrolld" if found and Path(found).resolve() == called.resolve() else str(called.absolute())


def _remember(name: str) -> Callable[[click.Context, click.Parameter, object], None]:
    def callback(ctx: click.Context, _: click.Parameter, value: object) -> None:
        session = ctx.find_root().ensure_object(Session)
        ctx.obj = session
        if value is not None:
            setattr(session, name, value)

    return callback


async def _await(something: Awaitable[T]) -> T:
    return await something
