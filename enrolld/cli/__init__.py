"""The command line: one module per noun, imported when it is asked for, so that every command starts at once.

Data goes to stdout, words to stderr. The exit status is 0 when the command did what it says, 1 when it was refused, 2
when it was called wrongly, 3 when `check` has findings. Nothing that goes wrong shows a traceback: `main` is the edge
where the last of them ends.
"""

import importlib
import os
import sys
from collections.abc import Sequence

import click

from ca_core.errors import OperatorError, Refusal
from enrolld import faults
from enrolld.cli import output
from enrolld.cli.frame import GroupWithGlobals

__all__ = ["COMMANDS", "cli", "main"]

COMMANDS: dict[str, tuple[str, str]] = {
    "serve": ("node", "Run the daemon; --init makes its CA first."),
    "init": ("node", "Make the directory, its CA and the default realm."),
    "check": ("check", "Find what would not work, and say how to mend it."),
    "status": ("node", "Show whether the daemon runs, and what it holds."),
    "upgrade": ("node", "Bring the store to this version of enrolld."),
    "store": ("store", "Move the records from SQLite to PostgreSQL: copy."),
    "realm": ("realm", "Device lines: add, list, show, export, apply, edit, challenge."),
    "profile": ("profile", "Rules for kinds of certificates: list, show, presets."),
    "trust": ("trust", "Manufacturers whose devices a realm admits: add, list, remove."),
    "device": ("device", "Devices: add, import, set, list, show, secret, why, suspend, resume, replace, retire."),
    "request": ("request", "Requests that wait for you: list, show, approve, reject."),
    "cert": ("cert", "Issued certificates: list, show, revoke."),
    "ca": ("ca", "CA certificates: list, export."),
    "crl": ("crl", "Revocation lists: list, publish."),
    "audit": ("audit", "The audit trail: list, verify, export."),
    "clock": ("clock", "A clock that once stood in the future: show, accept."),
    "explain": ("explain", "Say why a request was answered as it was, or what a captured request or CSR would get."),
}
"""Each command's module under `enrolld.cli`, and its line of help."""

_PIPE_CLOSED = 141  # what a shell reports of a program that SIGPIPE ended
_INTERRUPTED = 130


class LazyGroup(GroupWithGlobals):
    """The root of the commands; a command's module is imported when it is called, not to list it."""

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002  # click's signature
        """Every command, in the order of a first day with enrolld."""
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:  # noqa: ARG002  # click's signature
        """Import and return one."""
        if cmd_name not in COMMANDS:
            return None
        command = getattr(importlib.import_module(f"enrolld.cli.{COMMANDS[cmd_name][0]}"), cmd_name)
        if not isinstance(command, click.Command):
            raise TypeError(f"enrolld.cli.{COMMANDS[cmd_name][0]}.{cmd_name} is no command")
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:  # noqa: ARG002  # likewise
        """List the commands without importing any."""
        with formatter.section("Commands"):
            formatter.write_dl([(name, text) for name, (_, text) in COMMANDS.items()])


@click.group(
    cls=LazyGroup,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 120},
    epilog="First steps: 'enrolld --dir ./enrolld-data serve --init', then paste what it prints.",
)
@click.version_option(package_name="enrolld", message="%(prog)s %(version)s")
def cli() -> None:
    """Certificates for devices: EST (RFC 7030) and SCEP (RFC 8894) over a private CA.

    Every command takes --dir, --store and --json, before or after its name. With --json the answer is one object, or
    for lists one object per line; a refusal is {"error", "message", "remedy"} and exit status 1.
    """


def main(args: Sequence[str] | None = None) -> int:
    """Run one command and return its exit status. What goes wrong is told in a sentence, never in a traceback."""
    arguments = list(sys.argv[1:] if args is None else args)
    try:
        status = _run(arguments, as_json="--json" in arguments)
        sys.stdout.flush()
    except BrokenPipeError:  # the reader has seen enough: `| head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # or the interpreter complains at exit
        return _PIPE_CLOSED
    except OSError as exc:  # our own output has nowhere to go
        output.complain(f"The answer can't be written: {exc.strerror or exc}.", "", to_stderr_only=True)
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    return status


def _run(arguments: list[str], *, as_json: bool) -> int:
    output.prepare_streams()
    os.umask(0o077)  # whatever is made in DIR is the owner's alone
    try:
        _check_text(arguments)
        # Not cli.main, which ends the process itself when a pipe breaks.
        with cli.make_context("enrolld", arguments) as ctx:
            status = cli.invoke(ctx)
    except click.exceptions.Exit as exc:
        return exc.exit_code
    except click.ClickException as exc:
        return _usage(exc, as_json=as_json)
    except (click.Abort, EOFError, KeyboardInterrupt):
        output.complain("Interrupted.", "", to_stderr_only=True)
        return _INTERRUPTED
    except (OperatorError, Refusal) as exc:
        output.refuse(*faults.fault_of(exc), as_json=as_json)
        return 1
    except BrokenPipeError:
        raise
    except Exception as exc:  # the edge of the process: a traceback helps no operator
        if os.environ.get("ENROLLD_DEBUG"):
            raise
        output.refuse(*faults.fault_of(exc), as_json=as_json)
        return 1
    return status if isinstance(status, int) else 0


def _check_text(arguments: list[str]) -> None:
    """Refuse what no record, file of ours or answer can hold: Python marks bytes that are not UTF-8 as surrogates."""
    for argument in arguments:
        if any("\ud800" <= character <= "\udfff" for character in argument):
            raise click.UsageError(f"The argument '{ascii(argument[:80])[1:-1]}' is not UTF-8.")


def _usage(exc: click.ClickException, *, as_json: bool) -> int:
    ctx = getattr(exc, "ctx", None)
    path = ctx.command_path if isinstance(ctx, click.Context) else "enrolld"
    helps = isinstance(exc, click.exceptions.NoArgsIsHelpError)
    if helps and not as_json:
        output.words(exc.format_message())
        return 2
    message = "A command is missing." if helps else exc.format_message()
    output.refuse("usage", message, f"'{path} --help' shows how it is called.", as_json=as_json)
    return 2
