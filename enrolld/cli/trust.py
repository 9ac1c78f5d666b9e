"""`enrolld trust`: the manufacturers whose devices a realm admits."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, BinaryIO

import click

from enrolld.cli import options, output
from enrolld.cli.frame import GroupWithGlobals, Session, listing, page, pass_session

if TYPE_CHECKING:
    from ca_core.core import Core

COLUMNS: list[output.Column] = [
    ("name", "name"),
    ("realm", "realm"),
    ("for", "for"),
    ("subject", "subject"),
    ("not after", "not_after"),
    ("devices", "devices"),
    ("sha-256", "fingerprint_sha256"),
]


@click.group(cls=GroupWithGlobals)
def trust() -> None:
    """Manufacturers whose devices a realm admits."""


@trust.command()
@click.argument("file", type=click.File("rb"))
@options.realm
@click.option("--for", "purpose", type=click.Choice(["idevid", "tls"]), default="idevid", show_default=True)
@click.option("--name", metavar="N", help="What to call it [the certificate's O, else its CN].")
@pass_session
def add(session: Session, file: BinaryIO, realm: str, purpose: str, name: str | None) -> None:
    """Trust the CA certificate in FILE (PEM; '-' is standard input).

    It speaks for the devices that are registered under its name; where there are some already, give the name.
    """
    pem = file.read(1 << 20)
    row = session.run(lambda core: core.trust.add(realm, pem, purpose=purpose, name=name, actor=session.actor))
    values = output.plain(row)
    if session.json:
        output.emit_json(values)
        return
    output.details((header, values.get(str(key))) for header, key in COLUMNS)
    if row.devices:
        them = "the device that is" if row.devices == 1 else f"the {row.devices} devices that are"
        output.words(f"It speaks from now on for {them} registered under this name.")
    session.next(
        "Its devices are admitted when they are registered by their serial number:",
        f"device add NAME --realm {realm} --serial-number S --manufacturer '{output.printable(values['name'])}'",
    )


@trust.command("list")
@options.realm
@options.paging
@pass_session
def list_(session: Session, realm: str, limit: int, after: str | None) -> None:
    """List whom a realm trusts."""

    async def fetch(core: "Core", count: int, position: str | None) -> Sequence[object]:
        return page(await core.trust.list(realm), count, position)

    listing(
        session,
        COLUMNS,
        fetch,
        limit=limit,
        after=after,
        empty=f"Realm {realm} trusts no manufacturer; 'enrolld trust add --realm {realm} FILE' adds one.",
    )


@trust.command()
@click.argument("name")
@options.realm
@pass_session
def remove(session: Session, name: str, realm: str) -> None:
    """Trust a manufacturer no longer; certificates that its devices already have stay valid."""
    session.run(lambda core: core.trust.remove(realm, name, actor=session.actor))
    if session.json:
        output.emit_json({"realm": realm, "name": name, "removed": True})
    else:
        output.words(f"Realm {realm} no longer trusts {output.printable(name)}.")
