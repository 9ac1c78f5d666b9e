"""`enrolld device`: who may enroll, with which secret, and why one could not."""

from typing import TYPE_CHECKING

import click

from enrolld.cli import options, output
from enrolld.cli.frame import GroupWithGlobals, Session, listing, pass_session

if TYPE_CHECKING:
    from ca_core.core import Core

COLUMNS: list[output.Column] = [
    ("device", "device"),
    ("realm", "realm"),
    ("state", "state"),
    ("profile", "profile"),
    ("serial number", "serial_number"),
    ("manufacturer", "manufacturer"),
    ("names", "names"),
    ("last seen", "last_seen_at"),
]
FIELDS = ["device", "realm", "profile", "state", "serial_number", "manufacturer", "names", "owner"]
FIELDS += ["created_at", "last_seen_at"]


@click.group(cls=GroupWithGlobals)
def device() -> None:
    """Devices and their secrets."""


@device.command()
@click.argument("name")
@options.realm
@click.option("--profile", metavar="P", help="The profile that it may use [the realm's default].")
@click.option("--serial-number", metavar="S", help="Of its factory identity (IDevID): the subject's serialNumber.")
@click.option("--manufacturer", metavar="M", help="The name of the trust entry that its IDevID comes from.")
@click.option("--san", "sans", multiple=True, metavar="DNS:x|IP:x|URI:x", help="A name it may have; repeatable.")
@click.option("--owner", metavar="TEXT", help="Who answers for it.")
@click.option("--expires", metavar="30s|12h|7d|TIME", help="When its secret ends, if it was never used.")
@pass_session
def add(
    session: Session,
    name: str,
    realm: str,
    profile: str | None,
    serial_number: str | None,
    manufacturer: str | None,
    sans: tuple[str, ...],
    owner: str | None,
    expires: str | None,
) -> None:
    """Register a device, and make the secret of its first enrollment."""

    async def body(core: "Core") -> object:
        return await core.devices.add(
            realm,
            name,
            profile=profile,
            serial_number=serial_number,
            manufacturer=manufacturer,
            sans=sans,
            owner=owner,
            expires=expires,
            actor=session.actor,
        )

    _hand_out(session, session.run(body))


@device.command("list")
@options.any_realm
@options.paging
@pass_session
def list_(session: Session, realm: str | None, limit: int, after: str | None) -> None:
    """List devices."""
    listing(
        session,
        COLUMNS,
        lambda core, count, position: core.devices.list(realm, limit=count, after=position),
        limit=limit,
        after=after,
        empty="No devices yet; 'enrolld device add NAME' registers one.",
    )


@device.command()
@click.argument("name")
@options.realm
@pass_session
def show(session: Session, name: str, realm: str) -> None:
    """Show one device."""
    _show(session, session.run(lambda core: core.devices.show(realm, name)))


@device.command()
@click.argument("name")
@options.realm
@click.option("--expires", metavar="30s|12h|7d|TIME", help="When the secret ends, if it was never used.")
@pass_session
def secret(session: Session, name: str, realm: str, expires: str | None) -> None:
    """Make a new secret for a device; its older ones no longer work."""

    async def body(core: "Core") -> object:
        return await core.devices.secret(realm, name, expires=expires, actor=session.actor)

    _hand_out(session, session.run(body))


@device.command()
@click.argument("name")
@options.realm
@pass_session
def why(session: Session, name: str, realm: str) -> None:
    """Say in a sentence how the device fares, then what it asked and was answered."""
    answer = output.plain(session.run(lambda core: core.devices.why(realm, name)))
    if session.json:
        output.emit_json(answer)
        return
    output.raw(output.printable(answer["sentence"]))
    if rows := answer["timeline"]:
        output.raw("")
        columns: list[output.Column] = [
            ("at", "at"),
            ("operation", "operation"),
            ("outcome", "outcome"),
            ("code", "code"),
            ("what", lambda row: row.get("detail") or row.get("message")),
            ("from", "source"),
            ("request", "request_id"),
        ]
        output.table(rows if isinstance(rows, list) else [], columns)


@device.command()
@click.argument("name")
@options.realm
@pass_session
def suspend(session: Session, name: str, realm: str) -> None:
    """Shut the device out of every way in until it is resumed; the certificates that it has stay valid."""
    _show(session, session.run(lambda core: core.devices.suspend(realm, name, actor=session.actor)))
    session.next(
        "Nothing is issued to it any more. For those who check the CRL, revoke its certificates; this lists them:",
        f"cert list --device {name}" + (f" --realm {realm}" if realm != "default" else ""),
    )


@device.command()
@click.argument("name")
@options.realm
@pass_session
def resume(session: Session, name: str, realm: str) -> None:
    """Let a suspended device in again."""
    _show(session, session.run(lambda core: core.devices.resume(realm, name, actor=session.actor)))


def _show(session: Session, row: object) -> None:
    values = output.plain(row)
    if session.json:
        output.emit_json(values)
    else:
        output.details((name.replace("_", " "), values.get(name)) for name in FIELDS)


def _hand_out(session: Session, handed: object) -> None:
    values = output.plain(handed)
    if session.json:
        output.emit_json(values)
        return
    output.details((key, values[key]) for key in ("device", "realm", "profile", "username", "secret", "expires"))
    session.next(
        "The secret is shown this once: EST's Basic password, and SCEP's challengePassword. When the device has asked:",
        f"device why {values['device']}" + (f" --realm {values['realm']}" if values["realm"] != "default" else ""),
    )
