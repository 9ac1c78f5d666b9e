"""`enrolld device set`: changing what is recorded of a device."""

from typing import TYPE_CHECKING

import click

from enrolld.cli import device_life, options, output
from enrolld.cli.frame import CommandWithGlobals, Session, pass_session

if TYPE_CHECKING:
    from ca_core.core import Core
    from ca_core.rows import DeviceChange


@click.command("set", cls=CommandWithGlobals)
@click.argument("name")
@options.realm
@click.option("--owner", metavar="TEXT", help="Who answers for it; '' for nobody.")
@click.option("--profile", metavar="P", help="The profile that it may use; '' for the realm's default.")
@click.option(
    "--san", "sans", multiple=True, metavar="DNS:x|IP:x|URI:x", help="All names that it may have; repeatable."
)
@click.option("--no-san", is_flag=True, help="It may have no such names.")
@click.option("--serial-number", metavar="S", help="Of its IDevID: the subject's serialNumber; '' for no IDevID.")
@click.option("--manufacturer", metavar="M", help="The trust entry that its IDevID comes from.")
@pass_session
def set_(
    session: Session,
    name: str,
    realm: str,
    owner: str | None,
    profile: str | None,
    sans: tuple[str, ...],
    serial_number: str | None,
    manufacturer: str | None,
    *,
    no_san: bool,
) -> None:
    """Change what is recorded of a device. What is not named stays as it is; --san replaces all of its names.

    It counts from the device's next certificate on, and revokes none that it has. A changed board is told by 'device
    replace': the serial number of a device that has enrolled is not changed here.
    """
    if no_san and sans:
        raise click.UsageError("--san and --no-san contradict each other.")
    if not (no_san or sans) and all(value is None for value in (owner, profile, serial_number, manufacturer)):
        raise click.UsageError("Name what to change: --owner, --profile, --san, --no-san, --serial-number.")

    async def body(core: "Core") -> "DeviceChange":
        from ca_core.registration.device_change import Facts

        facts = Facts(profile, owner, sans if sans or no_san else None, serial_number, manufacturer)
        return await core.devices.change(realm, name, facts, actor=session.actor)

    done = session.run(body)
    more: dict[str, object] = {"changed": done.changed, "carried_by": done.carried_by}
    if session.json:
        device_life.show_device(session, done.device, **more)
        return
    device_life.show_device(session, done.device)
    if not done.changed:
        output.words("Nothing of that is new.")
        return
    for field, (before, after) in done.changed.items():
        output.words(f"{field.replace('_', ' ')}: {output.printable(before)} -> {output.printable(after)}")
    of_realm = f" --realm {realm}" if realm != "default" else ""
    if not done.carried_by:
        session.next("It counts from its next certificate on. What it has:", f"cert list --device {name}{of_realm}")
        return
    output.words("Certificates that it has still carry what was taken away, and hold until they end or are revoked:")
    for serial in done.carried_by:
        output.words(f"  {session.command(f'cert revoke {serial} --reason superseded{of_realm}')}")
    session.next("All that it has:", f"cert list --device {name}{of_realm}")
