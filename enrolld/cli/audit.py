"""`enrolld audit`: who did what, whether that is still what was written, and the trail as a file."""

import contextlib
import json
import os
import re
import secrets
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, TYPE_CHECKING

import click

from ca_core.errors import OperatorError
from enrolld.cli import options, output
from enrolld.cli.frame import GroupWithGlobals, Session, listing, pass_session

if TYPE_CHECKING:
    from ca_core.core import Core
    from ca_core.rows import Verdict

COLUMNS: list[output.Column] = [
    ("at", "at"),
    ("action", "action"),
    ("actor", "actor"),
    ("realm", "realm"),
    ("device", "device"),
    ("serial", "serial"),
    ("request", "request_id"),
]
ONLY_ELSEWHERE = (
    "Whoever can write the database can also make all of this anew, heads included. Only heads kept elsewhere prove "
    "against that: the daemon's log has one a minute; give them with --head."
)
_FINDINGS = 3
_DIGEST = re.compile(r"[0-9a-f]{64}", re.IGNORECASE | re.ASCII)
_TELLER = "enrolld.chores"
_LOGGED = re.compile(r"(?:[0-9:]{8} info +)?audit head [0-9]+ is ([0-9a-f]{64})", re.ASCII)


@click.group(cls=GroupWithGlobals)
def audit() -> None:
    """The audit trail."""


@audit.command("list")
@options.any_realm
@click.option("--device", metavar="NAME", help="Only what concerns this device.")
@click.option("--action", metavar="A", help="Only this kind of act, such as certificate.issued.")
@click.option("--serial", metavar="SERIAL", help="Only what concerns this certificate.")
@click.option("--request", "request_id", metavar="ID", help="Only what came of this request.")
@click.option("--since", metavar="12h|7d|TIME", help="Only what happened since.")
@options.paging
@pass_session
def list_(
    session: Session,
    realm: str | None,
    device: str | None,
    action: str | None,
    serial: str | None,
    request_id: str | None,
    since: str | None,
    limit: int,
    after: str | None,
) -> None:
    """List events in order of time."""
    listing(
        session,
        COLUMNS,
        lambda core, count, position: core.audit.list(
            realm=realm,
            device=device,
            action=action,
            serial=serial,
            request_id=request_id,
            since=since,
            limit=count,
            after=position,
        ),
        limit=limit,
        after=after,
        empty="No such events.",
    )


@audit.command()
@click.argument("file", required=False, type=click.Path(dir_okay=False))
@click.option(
    "--head", "heads", multiple=True, metavar="DIGEST|FILE", help="A head that was kept elsewhere, or a file of them."
)
@pass_session
def verify(session: Session, file: str | None, heads: tuple[str, ...]) -> int:
    """Verify the trail, or FILE that 'audit export' made; exit status 3 when something is not as it was written.

    FILE needs no store. A file of heads has one digest a line, or is the daemon's log.
    """
    kept = {digest for head in heads for digest in _kept(head)}
    verdict = _verify_store(session, kept) if file is None else _verify_file(file, kept)
    if session.json:
        proof = None if verdict.kept_given else ONLY_ELSEWHERE
        output.emit_json({"file": file, **output.plain(verdict), "note": proof})
    else:
        _tell(verdict)
    return 0 if verdict.ok else _FINDINGS


def _verify_store(session: Session, kept: set[str]) -> "Verdict":
    async def body(core: "Core") -> "Verdict":
        with _progress(await core.audit.total()) as advance:
            return await core.audit.verify(kept, advance)

    return session.run(body)


def _verify_file(path: str, kept: set[str]) -> "Verdict":
    from ca_core.records.audit_export import verify_file

    with open(path, "rb") as file, _progress(os.fstat(file.fileno()).st_size) as advance:
        return verify_file(file, kept, advance)


def _tell(verdict: "Verdict") -> None:
    for finding in verdict.findings:
        of = f"writer {finding.writer}: " if finding.writer is not None else ""
        output.raw(f"{finding.code}: {output.printable(of + finding.message)}")
    if verdict.findings_total > len(verdict.findings):
        output.raw(f"and {verdict.findings_total - len(verdict.findings)} more")
    held = f"{_count(verdict.events, 'event')} of {_count(verdict.writers, 'writer')}"
    output.raw(f"Verified: {held}, and {_count(verdict.heads, 'common head')}.")
    if verdict.last_head is not None:
        last = verdict.last_head
        output.raw(f"The last head is number {last.number}, of {output.printable(last.at)}: {last.digest}")
    if verdict.uncovered:
        output.raw(f"Under no head yet: {_count(verdict.uncovered, 'event')}.")
    for limit in verdict.limits:
        output.raw(limit)
    if verdict.kept_given:
        output.raw(f"Heads kept elsewhere that are among them: {verdict.kept_found} of {verdict.kept_given}.")
    if verdict.ok:
        output.raw("Nothing was changed." if verdict.kept_up_to is None else _up_to(verdict.kept_up_to))
    else:
        output.raw(f"{_count(verdict.findings_total, 'finding')}: the trail is not what was written.")
    if not verdict.kept_given:
        output.words(ONLY_ELSEWHERE)


def _count(number: int, what: str) -> str:
    return f"{number} {what}" if number == 1 else f"{number} {what}s"


def _up_to(number: int) -> str:
    return f"Nothing was changed, and what head {number} covers stands as it did when that head was kept."


@audit.command()
@options.any_realm
@click.option("--device", metavar="NAME", help="Only what concerns this device.")
@click.option("--since", metavar="12h|7d|TIME", help="Only what happened since.")
@click.option("-o", "--output", "target", metavar="FILE", help="Write it there; FILE must not be there yet.")
@pass_session
def export(session: Session, realm: str | None, device: str | None, since: str | None, target: str | None) -> None:
    """Write the trail as JSON Lines, which 'audit verify FILE' verifies without the store.

    A part of it (--realm, --device, --since) says so, and what can't be verified from a part.
    """

    def write(to: IO[str]) -> int:
        async def body(core: "Core") -> int:
            lines = 0
            async for line in core.audit.export(realm=realm, device=device, since=since):
                to.write(line + "\n")
                lines += 1
            return lines

        return session.run(body)

    if target is None:
        write(sys.stdout)
        return
    with _new_file(Path(target)) as to:
        lines = write(to)
    if session.json:
        output.emit_json({"file": target, "lines": lines})
    else:
        session.next(f"{target} holds {lines} lines. To verify it, here or elsewhere:", f"audit verify {target}")


@contextlib.contextmanager
def _new_file(path: Path) -> Iterator[IO[str]]:
    """A file for its owner alone, which is there whole or not at all, and in nobody's place."""
    if path.exists() or path.is_symlink():
        raise _taken(path)
    making = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    try:
        with open(os.open(making, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w", encoding="ascii") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        _put(making, path)
    except FileExistsError:
        raise _taken(path) from None
    finally:
        making.unlink(missing_ok=True)


def _put(making: Path, path: Path) -> None:
    """Give a finished file its name. Raises `FileExistsError`."""
    try:
        os.link(making, path)  # which, unlike a rename, never replaces anything
    except FileExistsError:
        raise
    except OSError:  # a file system without links, such as a memory stick's
        if os.path.lexists(path):
            raise FileExistsError(path) from None
        making.rename(path)


def _taken(path: Path) -> OperatorError:
    return OperatorError("file_exists", f"{path} is there already.", "Name a file that is not there yet.")


def _message(line: str) -> str:
    """What a line of the log says of heads, where it is JSON; else the line."""
    if not line.startswith("{"):
        return line
    try:
        fields = json.loads(line)
    except (ValueError, RecursionError):
        return ""
    return str(fields.get("message", "")) if fields.get("log.logger") == _TELLER else ""


def _kept(given: str) -> Iterator[str]:
    """The digests that a `--head` stands for."""
    if _DIGEST.fullmatch(given):
        yield given.lower()
        return
    if not os.path.isfile(given):
        raise OperatorError(
            "head_invalid", f"'{given[:80]}' is neither a head's digest nor a file.", "A digest is 64 digits of hex."
        )
    found = 0
    with open(given, encoding="utf-8", errors="replace") as file:
        for number, line in enumerate(file, 1):
            word = line.strip()
            # The whole line, or the whole message of the one who says it: a peer's words may be in any other.
            match = _DIGEST.fullmatch(word) or _LOGGED.fullmatch(_message(word))
            if match is not None:
                found += 1
                yield match[match.re.groups].lower()
            elif word and re.fullmatch(r"[0-9A-Fa-f]+", word):
                raise OperatorError(
                    "head_invalid", f"Line {number} of {given} is no head's digest.", "A digest is 64 digits of hex."
                )
    if not found:
        raise OperatorError("head_invalid", f"There is no head in {given}.", "Give one digest a line, or the log.")


@contextlib.contextmanager
def _progress(length: int) -> Iterator[Callable[[int], None]]:
    """A bar on a terminal, and nothing elsewhere."""
    hidden = not sys.stderr.isatty()
    with click.progressbar(length=max(length, 1), label="Verifying", file=sys.stderr, hidden=hidden) as bar:
        yield bar.update
