"""`enrolld realm`: device lines, each with its own root and rules."""

import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, BinaryIO

import click

from ca_core.errors import OperatorError
from enrolld.cli import options, output
from enrolld.cli.frame import GroupWithGlobals, Session, listing, page, pass_session

if TYPE_CHECKING:
    from ca_core.core import Core
    from ca_core.rows import LintFinding, RealmRow

COLUMNS: list[output.Column] = [
    ("realm", "realm"),
    ("state", "state"),
    ("version", "version"),
    ("hosts", "hosts"),
    ("root", "root"),
    ("profiles", "profiles"),
    ("public URL", "public_url"),
]


_PATIENCE = 5.0
_POLL = 0.05
_MOST_BYTES = (2 << 20) + 1
"""More than any document's characters take that is read."""


@click.group(cls=GroupWithGlobals)
def realm() -> None:
    """Device lines."""


@realm.command()
@click.argument("name")
@click.option("--host", "hosts", multiple=True, metavar="HOST", help="A host name that serves this realm alone.")
@click.option("--public-url", metavar="URL", help="The base of the URLs in its certificates.")
@click.option(
    "--profile", "profiles", multiple=True, metavar="NAME=PRESET", help="A profile more, from a preset; repeatable."
)
@click.option(
    "--kind",
    "kinds",
    multiple=True,
    metavar="CA=KIND",
    help="The kind of key of a CA (root, ec, rsa), such as ec=p-384 or root=ml-dsa-65; repeatable.",
)
@click.option("--root-of", metavar="REALM", help="Stand under the root of this realm, without a root of its own.")
@click.option("--hsm", "token", metavar="TOKEN", help="Make its keys in the HSM's token with this label.")
@pass_session
def add(
    session: Session,
    name: str,
    hosts: tuple[str, ...],
    public_url: str | None,
    profiles: tuple[str, ...],
    kinds: tuple[str, ...],
    root_of: str | None,
    token: str | None,
) -> None:
    """Make a realm with its own root, issuing CAs and profiles; 'profile presets' lists the presets.

    With --root-of it shares the root of another realm: whoever trusts that one trusts the certificates of both, and
    only enrolld keeps their devices apart.
    """
    from ca_core.authority.kinds import warnings_of
    from ca_core.registration.presets import preset
    from enrolld.cli.profile import parse_presets

    more = {profile: preset(chosen).document for profile, chosen in parse_presets(profiles).items()}
    given = {family: kind for family, _, kind in (text.partition("=") for text in kinds)}

    async def body(core: "Core") -> "tuple[RealmRow, dict[str, str]]":
        chosen = await core.realms.kinds(given, root_of)
        row = await core.realms.add(
            name,
            hosts=hosts,
            public_url=public_url,
            profiles=more,
            keys=given,
            token=token,
            root_of=root_of,
            actor=session.actor,
        )
        await core.ra_certificates.ensure()
        await _until_served(session, core, row.hosts)
        return row, chosen

    row, chosen = session.run(body, key=True)
    _show(session, row)
    for warning in warnings_of(chosen):
        output.words(warning)
    if root_of is not None:
        output.words(f"Whoever trusts the root {row.root} trusts the certificates of realm {root_of} and of this one.")
    session.next("Now its devices, each with a secret or a factory identity:", f"device add NAME --realm {name}")


@realm.command("list")
@options.paging
@pass_session
def list_(session: Session, limit: int, after: str | None) -> None:
    """List realms."""

    async def fetch(core: "Core", count: int, position: str | None) -> Sequence[object]:
        return page(await core.realms.list(), count, position)

    listing(session, COLUMNS, fetch, limit=limit, after=after, empty="No realms.")


@realm.command()
@click.argument("name")
@pass_session
def show(session: Session, name: str) -> None:
    """Show one realm; 'realm export' prints its whole document."""
    _show(session, session.run(lambda core: core.realms.show(name)))


@realm.command()
@click.argument("name")
@pass_session
def export(session: Session, name: str) -> None:
    """Print a realm's document, as 'realm apply' takes it."""
    text = session.run(lambda core: core.realms.export(name))
    if session.json:
        output.emit_json({"realm": name, "document": text})
    else:
        output.raw(text)


@realm.command()
@click.argument("name")
@pass_session
def retire(session: Session, name: str) -> None:
    """End a realm: nobody enrolls or renews there any more.

    Its certificates stay valid until they end or are revoked, and its CRLs are published. 'realm resume' undoes it.
    """
    _show(session, session.run(lambda core: core.realms.retire(name, actor=session.actor)))
    output.words("Its certificates stay valid; 'enrolld cert revoke' ends those that must not.")
    session.next("To see them:", f"cert list --realm {name}")


@realm.command()
@click.argument("name")
@pass_session
def resume(session: Session, name: str) -> None:
    """Let a retired realm serve again, as it did."""
    _show(session, session.run(lambda core: core.realms.resume(name, actor=session.actor)))


@realm.command()
@click.argument("file", type=click.File("rb"))
@pass_session
def apply(session: Session, file: BinaryIO) -> None:
    """Give a realm a new version from the document in FILE ('-' is standard input); all of it or nothing."""
    try:
        data = file.read(_MOST_BYTES)
        # What is cut here is refused for its length, not for how it ends.
        text = data.decode("utf-8", "replace" if len(data) == _MOST_BYTES else "strict")
    except UnicodeDecodeError as exc:
        raise OperatorError("document_invalid", "The document is not UTF-8.", "Write it as TOML in UTF-8.") from exc

    _apply(session, text)


@realm.command()
@click.argument("name")
@pass_session
def edit(session: Session, name: str) -> None:
    """Change a realm's document in your editor ($VISUAL, $EDITOR); the new version is applied when you leave it.

    A document that is refused is kept in a file, and nothing changes.
    """
    text = session.run(lambda core: core.realms.export(name))
    edited = click.edit(text, extension=".toml")
    if edited is None or edited == text:
        output.words("Nothing was changed.")
        return
    try:
        _apply(session, edited)
    except OperatorError as exc:
        kept = _keep(edited)
        raise OperatorError(
            exc.code, exc.message, f"{exc.remedy}\nYour text is kept: {session.command(f'realm apply {kept}')}"
        ) from exc


def _apply(session: Session, text: str) -> None:
    from ca_core.registration.lint import can_lint

    def tell(finding: "LintFinding") -> None:
        allowed = ", allowed" if finding.allowed else ""
        told = f"{finding.finding} ({finding.severity}{allowed}) {finding.message}"
        output.words(f"pkilint on profile {finding.profile}: {output.printable(told)}")

    async def body(core: "Core") -> "RealmRow":
        row = await core.realms.apply(text, actor=session.actor, tell=tell)
        if not can_lint():
            output.words("Not linted, because pkilint is not installed: pip install 'enrolld[lint]'")
        await _until_served(session, core, row.hosts)
        return row

    _show(session, session.run(body, key=None))


@realm.command()
@click.argument("name")
@click.option(
    "--from-file", "file", type=click.File("rb"), help="Use this one instead of a new one ('-': standard input)."
)
@pass_session
def challenge(session: Session, name: str, file: BinaryIO | None) -> None:
    """Give a realm a static challenge, which all its devices share, and print it; the one before ends.

    Whoever has it can ask for a certificate in the name of any device that has none: prefer 'device secret'. It counts
    where 'ways' under [admission] names it.
    """
    given = None
    if file is not None:
        try:
            given = file.read(4096).decode().rstrip("\r\n")
        except UnicodeDecodeError as exc:
            raise OperatorError("challenge_invalid", "The challenge is not text.", "Use ASCII.") from exc
    text = session.run(lambda core: core.realms.challenge(name, given, actor=session.actor))
    if session.json:
        output.emit_json({"realm": name, "challenge": text})
        return
    output.details([("realm", name), ("challenge", text)])
    output.words("It is shown once. All devices of the realm share it: whoever learns it can ask in any name.")


def _keep(text: str) -> str:
    """A file of the user's own that holds what was edited."""
    import tempfile

    with tempfile.NamedTemporaryFile("w", suffix=".toml", prefix="realm-", delete=False, encoding="utf-8") as file:
        file.write(text)
    return file.name


async def _until_served(session: Session, core: "Core", hosts: Sequence[str]) -> None:
    """Wait for a running daemon to make the certificates of the realm's hosts: the next command may need them."""
    import asyncio

    from enrolld import running

    if not hosts or core.config.unlock_key is None or running.find(session.node().dir) is None:
        return
    until = time.monotonic() + _PATIENCE
    while True:
        await core.server_certificates.refresh()
        late = set(hosts) - set(core.server_certificates.all())
        if not late:
            return
        if time.monotonic() > until:
            output.words(f"The daemon has not made the certificate of {', '.join(sorted(late))} yet; its log says why.")
            return
        await asyncio.sleep(_POLL)


def _show(session: Session, row: object) -> None:
    values = output.plain(row)
    if session.json:
        output.emit_json(values)
    else:
        output.details((header, values.get(str(key))) for header, key in COLUMNS)
