"""`enrolld crl`: the lists of what is revoked."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import click

from enrolld.cli import options, output
from enrolld.cli.frame import GroupWithGlobals, Session, listing, page, pass_session

if TYPE_CHECKING:
    from ca_core.core import Core
    from ca_core.rows import CrlRow

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
@click.option(
    "--redate", is_flag=True, help="Only those dated later than now, and date them back; see 'enrolld clock'."
)
@pass_session
def publish(session: Session, issuer: str | None, *, redate: bool) -> None:
    """Sign new CRLs now, of one issuer or of all; the daemon does it by itself when they are due.

    --redate is for what a clock in the future has signed. Whoever kept that CRL can show it again when its time comes.
    """

    async def body(core: "Core") -> "Sequence[CrlRow]":
        if redate:
            return await core.clock.redate_crls(issuer, actor=session.actor)
        return await core.crls.publish(issuer)

    rows = [output.plain(row) for row in session.run(body, key=True)]
    if session.json:
        for row in rows:
            output.emit_json(row)
    elif rows:
        output.table(rows, COLUMNS)
    else:
        output.words("No CRL is dated later than now.")
