"""`enrolld device suspend`, `resume`, `replace`, `retire`: what becomes of a device that is registered."""

import datetime as dt
from typing import TYPE_CHECKING

import click

from enrolld.cli import options, output
from enrolld.cli.cert import REASONS, publish
from enrolld.cli.frame import CommandWithGlobals, Session, pass_session

if TYPE_CHECKING:
    from ca_core.core import Core
    from ca_core.rows import Replacement

FIELDS = ["device", "realm", "profile", "state", "serial_number", "manufacturer", "names", "owner", "created_at"]
FIELDS += ["last_seen_at", "not_after", "expected_renewal_at", "overdue", "replaced_by"]


@click.command(cls=CommandWithGlobals)
@click.argument("name")
@options.realm
@pass_session
def suspend(session: Session, name: str, realm: str) -> None:
    """Shut the device out of every way in until it is resumed; the certificates that it has stay valid."""
    show_device(session, session.run(lambda core: core.devices.suspend(realm, name, actor=session.actor)))
    session.next(
        "Nothing is issued to it any more. For those who check the CRL, revoke its certificates; this lists them:",
        f"cert list --device {name}" + _of(realm),
    )


@click.command(cls=CommandWithGlobals)
@click.argument("name")
@options.realm
@pass_session
def resume(session: Session, name: str, realm: str) -> None:
    """Let a suspended device in again."""
    show_device(session, session.run(lambda core: core.devices.resume(realm, name, actor=session.actor)))


@click.command(cls=CommandWithGlobals)
@click.argument("name")
@options.realm
@click.option("--revoke", type=click.Choice(REASONS), help="Revoke its certificates too, for this reason (RFC 5280).")
@click.option("--wait", type=options.Duration(), default="10s", show_default=True, help="For the CRL to be out.")
@pass_session
def retire(session: Session, name: str, realm: str, revoke: str | None, wait: dt.timedelta) -> None:
    """End a device for good: nothing is issued to it any more, and its secrets are void.

    Its certificates stay valid until they end, unless --revoke says why they should not. A retired device stays in the
    list, and its name is not given again.
    """

    async def body(core: "Core") -> "tuple[Replacement, bool]":
        done = await core.devices.retire(realm, name, revoke=revoke, actor=session.actor)
        return done, await publish(core, done.revocations, wait)

    _tell(session, *session.run(body, key=None if revoke else False))


@click.command(cls=CommandWithGlobals)
@click.argument("name")
@options.realm
@click.option("--serial-number", metavar="S", help="Of the new board's IDevID: the subject's serialNumber.")
@click.option("--manufacturer", metavar="M", help="The trust entry that the new IDevID comes from [as before].")
@click.option("--by", metavar="NEW", help="Another registered device takes over, and NAME is retired.")
@click.option("--revoke", is_flag=True, help="Revoke the certificates of before too, as superseded.")
@click.option("--wait", type=options.Duration(), default="10s", show_default=True, help="For the CRL to be out.")
@pass_session
def replace(
    session: Session,
    name: str,
    realm: str,
    serial_number: str | None,
    manufacturer: str | None,
    by: str | None,
    wait: dt.timedelta,
    *,
    revoke: bool,
) -> None:
    """Let a device go on with a new board or image, or let another device take over with --by.

    What proved the device before proves it no more: its secrets are void, and its certificates renew nothing. The
    device stays the same one, with its name and history, and may bring a key that it had. With --by, NEW gets owner,
    profile and alternative names of NAME where it has none of its own.
    """
    if by is not None and (serial_number is not None or manufacturer is not None):
        raise click.UsageError(
            "--by names a device that has a factory identity of its own: leave the other options out."
        )

    async def body(core: "Core") -> "tuple[Replacement, bool]":
        if by is not None:
            done = await core.devices.replace_by(realm, name, by, revoke=revoke, actor=session.actor)
        else:
            done = await core.devices.new_board(
                realm, name, serial_number=serial_number, manufacturer=manufacturer, revoke=revoke, actor=session.actor
            )
        return done, await publish(core, done.revocations, wait)

    done, published = session.run(body, key=None if revoke else False)
    _tell(session, done, published)
    if by is not None:
        session.next("It is retired. The device that took over:", f"device show {by}" + _of(realm))
    elif done.device.serial_number is None:
        session.next(
            "What it had proves it no more. It enrolls with a new secret:", f"device secret {name}" + _of(realm)
        )
    else:
        session.next("It enrolls with its factory identity. When it has asked:", f"device why {name}" + _of(realm))


def show_device(session: Session, row: object, **more: object) -> None:
    """One device, and what else is told of it."""
    values = output.plain(row) | more
    if session.json:
        output.emit_json(values)
    else:
        output.details((name.replace("_", " "), values.get(name)) for name in [*FIELDS, *more])


def _tell(session: Session, done: "Replacement", published: bool) -> None:  # of a pair
    revoked = [revocation.certificate.serial for revocation in done.revocations]
    more: dict[str, object] = {"superseded": done.superseded, "revoked": revoked}
    if revoked:
        more["published"] = published
    show_device(session, done.device, **more)
    if revoked and not published:
        session.next("The CRL that says so is not out yet. The daemon publishes it, or:", "crl publish")


def _of(realm: str) -> str:
    return f" --realm {realm}" if realm != "default" else ""
