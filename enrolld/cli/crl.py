"""`enrolld crl`: the lists of what is revoked."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import click

from enrolld.cli import options, output
from enrolld.cli.frame import GroupWithGlobals, Session, listing, page, pass_session

if TYPE_CHECKING:
    from ca_core.core import Core

COLUMNS: list[output.Column] = [
    ("issuer", "issuer"),
    ("number", "number"),
    ("entries", "entries"),
    ("this update", "this_update"),
    ("next update", "next_update"),
]


@click.group(cls=GroupWithGlobals)
def crl() -> None:
    """Revocation lists."""


@crl.command("list")
@options.paging
@pass_session
def list_(session: Session, limit: int, after: str | None) -> None:
    """List the newest CRL of each issuer."""

    async def fetch(core: "Core", count: int, position: str | None) -> Sequence[object]:
        return page(await core.crls.list(), count, position)

    listing(session, COLUMNS, fetch, limit=limit, after=after, empty="No CRL yet; 'enrolld crl publish' makes them.")


@crl.command()
@click.argument("issuer", required=False)
@pass_session
def publish(session: Session, issuer: str | None) -> None:
    """Sign new CRLs now, of one issuer or of all; the daemon does it by itself when they are due."""
    rows = [output.plain(row) for row in session.run(lambda core: core.crls.publish(issuer), key=True)]
    if session.json:
        for row in rows:
            output.emit_json(row)
    else:
        output.table(rows, COLUMNS)
