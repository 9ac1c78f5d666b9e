"""`enrolld device import`: a list of devices, whole or not at all."""

import contextlib
import csv
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, TYPE_CHECKING

import click

from ca_core.errors import OperatorError
from enrolld.cli import options, output
from enrolld.cli.frame import CommandWithGlobals, Session, pass_session

if TYPE_CHECKING:
    from ca_core.core import Core
    from ca_core.registration.device_import import ImportRefused
    from ca_core.rows import HandedSecret, Import

_SHOWN = 20
SECRET_COLUMNS = ("device", "realm", "profile", "username", "secret", "expires")


@click.command("import", cls=CommandWithGlobals)
@click.argument("file", type=click.Path(exists=True, dir_okay=False, readable=True))
@options.realm
@click.option("--secrets", metavar="OUT", help="Make each device a secret, and write them to this new file, as CSV.")
@click.option("--plan", is_flag=True, help="Only say what is wrong with FILE, or how many devices it has.")
@pass_session
def import_(session: Session, file: str, realm: str, secrets: str | None, *, plan: bool) -> None:
    """Register the devices of a CSV file: all of them, or none and every fault of the file.

    The first line names the columns: name, and any of serial_number, manufacturer, profile, owner, san (several with
    spaces between them) and expires (of its secret). OUT is for its owner alone and never in the place of another file;
    '-' is standard output, unless that is a terminal.
    """
    if not os.path.isfile(file):  # it is read twice, and to its end
        raise OperatorError("input_unreadable", f"{file} is no ordinary file.", "Write the list to a file.")
    keeper = _keeper(secrets, session) if secrets is not None and not plan else None
    refused: ImportRefused | None = None
    with open(file, "rb") as opened, _progress(opened, session, twice=not plan) as advance:

        async def body(core: "Core") -> "Import":
            return await core.device_import.run(
                realm, opened, Path(file).name, keeper=keeper, plan=plan, advance=advance, actor=session.actor
            )

        try:
            done = session.run(body)
        except OperatorError as exc:
            if exc.code != "import_faults":
                raise
            refused = exc  # type: ignore[assignment]  # the only one of this code
    if refused is not None:
        _tell_faults(session, file, refused)
    _tell(session, done)


class _SecretsFile:
    """A new file of secrets for its owner alone."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._file: IO[str] | None = None
        self.name = str(path)
        if os.path.lexists(path):
            raise _taken(path)

    def keep(self, handed: "HandedSecret") -> None:
        """See `SecretKeeper`."""
        if self._file is None:
            try:
                # Not before there is something to keep: a faulty list leaves no file behind.
                descriptor = os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600)
            except FileExistsError:
                raise _taken(self._path) from None
            except OSError as exc:
                raise _unwritable(self._path, exc) from exc
            self._file = open(descriptor, "w", encoding="utf-8", newline="")  # noqa: SIM115  # closed by seal or discard
            _write(self._file, SECRET_COLUMNS)
        _write(self._file, [getattr(handed, column) for column in SECRET_COLUMNS])

    def seal(self) -> None:
        """See `SecretKeeper`: the file and its name are on the disk."""
        if self._file is None:
            return
        try:
            self._file.flush()
            os.fsync(self._file.fileno())
            self._file.close()
            folder = os.open(self._path.parent, os.O_RDONLY | os.O_DIRECTORY)
            try:
                os.fsync(folder)
            finally:
                os.close(folder)
        except OSError as exc:
            raise _unwritable(self._path, exc) from exc

    def discard(self) -> None:
        """See `SecretKeeper`."""
        if self._file is not None:
            with contextlib.suppress(OSError):
                self._file.close()
            self._path.unlink(missing_ok=True)


class _SecretsPipe:
    """Standard output, read by another program. What it was given before an import failed opens nothing."""

    name = "-"

    def __init__(self) -> None:
        self._has_begun = False

    def keep(self, handed: "HandedSecret") -> None:
        """See `SecretKeeper`."""
        if not self._has_begun:
            _write(sys.stdout, SECRET_COLUMNS)
            self._has_begun = True
        _write(sys.stdout, [getattr(handed, column) for column in SECRET_COLUMNS])

    def seal(self) -> None:
        """See `SecretKeeper`."""
        sys.stdout.flush()

    def discard(self) -> None:
        """See `SecretKeeper`."""


def _keeper(secrets: str, session: Session) -> _SecretsFile | _SecretsPipe:
    if secrets != "-":
        return _SecretsFile(Path(secrets))
    if session.json:
        raise click.UsageError("'--secrets -' and --json both want standard output; name a file for the secrets.")
    if sys.stdout.isatty():
        raise OperatorError(
            "secrets_exposed",
            "Secrets on a terminal are seen by others and stay in its memory.",
            "Name a new file with --secrets, or lead standard output into another program.",
        )
    return _SecretsPipe()


def _write(to: IO[str], values: object) -> None:
    try:
        csv.writer(to, lineterminator="\n").writerow(values)  # type: ignore[arg-type]  # a sequence of text
    except BrokenPipeError:
        raise
    except OSError as exc:
        raise _unwritable(Path(str(to.name)), exc) from exc


def _tell_faults(session: Session, file: str, refused: "ImportRefused") -> None:
    """Every fault in JSON, the first of them for a person; and the exit status of a refusal."""
    if session.json:
        faults = [output.plain(fault) for fault in refused.faults]
        output.emit_json(
            {"error": refused.code, "message": refused.message, "remedy": refused.remedy, "faults": faults}
        )
    else:
        for fault in refused.faults[:_SHOWN]:
            where = f"line {fault.line}" + (f", {fault.column}" if fault.column else "")
            output.words(f"{output.printable(file)}, {where}: {output.printable(fault.message)}")
            output.words(f"  {output.printable(fault.remedy)}")
        if len(refused.faults) > _SHOWN:
            output.words(f"and {len(refused.faults) - _SHOWN} more; --json lists all")
        output.complain(refused.message, refused.remedy)
    raise click.exceptions.Exit(1)


def _tell(session: Session, done: "Import") -> None:
    if session.json:
        output.emit_json(done)
        return
    realm = f" --realm {done.realm}" if done.realm != "default" else ""
    counted = f"{done.devices} device{'s' if done.devices != 1 else ''}"
    if done.planned:
        output.words(f"{done.file} is sound: {counted} would be registered in realm {done.realm}.")
        return
    pairs = [("devices", done.devices), ("realm", done.realm), ("sha256", done.sha256)]
    if done.secrets != "-":
        output.details([*pairs, ("secrets", done.secrets)])
    session.next(f"{counted} registered, and expected from now on. Who of them has not come yet:", _expected(realm))


def _expected(realm: str) -> str:
    return f"device list --state expected{realm}"


def _taken(path: Path) -> OperatorError:
    return OperatorError("file_exists", f"{path} is there already.", "Name a file that is not there yet.")


def _unwritable(path: Path, exc: OSError) -> OperatorError:
    reason = exc.strerror or str(exc)
    return OperatorError(
        "secrets_unwritable", f"The secrets can't be written to {path}: {reason}.", "Name another place."
    )


@contextlib.contextmanager
def _progress(file: IO[bytes], session: Session, *, twice: bool) -> Iterator[Callable[[int], object]]:
    """A bar on a terminal, and nothing elsewhere."""
    length = os.fstat(file.fileno()).st_size * (2 if twice else 1)
    hidden = session.json or not sys.stderr.isatty()
    with click.progressbar(length=max(length, 1), label="Importing", file=sys.stderr, hidden=hidden) as bar:
        yield bar.update
