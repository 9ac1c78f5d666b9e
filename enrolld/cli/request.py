"""`enrolld request`: requests that wait for an operator."""

from typing import TYPE_CHECKING

import click

from enrolld.cli import options, output
from enrolld.cli.frame import GroupWithGlobals, Session, listing, pass_session

if TYPE_CHECKING:
    from ca_core.core import Core

COLUMNS: list[output.Column] = [
    ("id", "id"),
    ("device", "device"),
    ("realm", "realm"),
    ("state", "state"),
    ("subject", "subject"),
    ("proven by", "means"),
    ("key", "key"),
    ("from", "source"),
    ("requested", "requested_at"),
    ("expires", "expires"),
]
FIELDS = ["id", "device", "device_state", "realm", "profile", "state", "subject", "names", "means", "key", "key_sha256"]
FIELDS += ["protocol", "source", "request_id", "requested_at", "expires", "decided_at", "decided_by", "reason"]
OUTLOOK = ["issuer", "subject", "names", "not_after", "dropped"]
STATES = ["pending", "approved", "rejected", "expired", "issued"]


@click.group(cls=GroupWithGlobals)
def request() -> None:
    """Requests that wait for you."""


@request.command("list")
@options.any_realm
@click.option("--state", type=click.Choice(STATES), help="Only of this state.")
@options.paging
@pass_session
def list_(session: Session, realm: str | None, state: str | None, limit: int, after: str | None) -> None:
    """List requests."""
    listing(
        session,
        COLUMNS,
        lambda core, count, position: core.requests.list(realm, state, limit=count, after=position),
        limit=limit,
        after=after,
        empty="No such requests.",
    )


@request.command()
@click.argument("id", metavar="ID")
@pass_session
def show(session: Session, id: str) -> None:  # noqa: A002  # the field's own name
    """Show one request, and what would be issued if it were granted now."""
    _show(session, session.run(lambda core: core.requests.show(id)))


@request.command()
@click.argument("id", metavar="ID")
@pass_session
def approve(session: Session, id: str) -> None:  # noqa: A002  # the field's own name
    """Let a request have its certificate.

    Compare its key_sha256 with what the device shows, where it shows one: the name is what it calls itself.
    """

    async def body(core: "Core") -> object:
        return await core.requests.approve(id, actor=session.actor)

    _show(session, session.run(body))
    session.next("The device gets its certificate when it asks again; then:", f"request show {id}")


@request.command()
@click.argument("id", metavar="ID")
@click.option("--reason", metavar="TEXT", help="For those who ask why; the device is not told.")
@pass_session
def reject(session: Session, id: str, reason: str | None) -> None:  # noqa: A002  # the field's own name
    """Turn a request down, also one that is approved and not granted yet; the same key is refused from now on."""

    async def body(core: "Core") -> object:
        return await core.requests.reject(id, reason=reason, actor=session.actor)

    _show(session, session.run(body))


def _show(session: Session, row: object) -> None:
    values = output.plain(row)
    if session.json:
        output.emit_json(values)
    else:
        output.details((name.replace("_", " "), values.get(name)) for name in FIELDS)
        _show_outlook(values.get("outlook"))


def _show_outlook(outlook: object) -> None:
    """What would become of it, and what the operator should know of that."""
    if not isinstance(outlook, dict):
        return
    output.raw("")
    if outlook["outcome"] == "issued":
        output.raw("It would be issued as:")
        output.details((name.replace("_", " "), outlook[name]) for name in OUTLOOK)
    else:
        output.raw(f"Granted now, it would not be issued: {output.printable(outlook['message'])}")
        if outlook["remedy"]:
            output.raw(f"  {output.printable(outlook['remedy'])}")
    if outlook["outcome"] == "issued":
        for warning in outlook["warnings"]:
            output.words(f"warning: {output.printable(warning)}")
