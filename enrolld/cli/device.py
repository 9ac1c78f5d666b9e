"""`enrolld device`: who may enroll, with which secret, and why one could not; the acts on one in `device_life`."""

from typing import TYPE_CHECKING

import click

from ca_core.errors import OperatorError
from ca_core.names import parse_duration
from enrolld.cli import device_import, device_life, device_set, options, output
from enrolld.cli.frame import GroupWithGlobals, Session, listing, pass_session

if TYPE_CHECKING:
    from collections.abc import Sequence

    from ca_core.core import Core
    from ca_core.rows import ActRow, DeviceRow, Why

COLUMNS: list[output.Column] = [
    ("device", "device"),
    ("realm", "realm"),
    ("state", lambda row: "overdue" if row.get("overdue") else row.get("state")),
    ("profile", "profile"),
    ("serial number", "serial_number"),
    ("manufacturer", "manufacturer"),
    ("names", "names"),
    ("last seen", "last_seen_at"),
    ("not after", "not_after"),
    ("renews about", "expected_renewal_at"),
]
STATES = ["expected", "active", "suspended", "retired"]
NONE_YET = "No devices yet; 'enrolld device add NAME' registers one."


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
@click.option("--state", type=click.Choice(STATES), help="Only those in this state.")
@click.option("--overdue", is_flag=True, help="Only those that should have renewed and were not seen since.")
@click.option("--expiring", metavar="7d", help="Only those whose newest certificate ends within this time.")
@options.paging
@pass_session
def list_(
    session: Session,
    realm: str | None,
    state: str | None,
    expiring: str | None,
    limit: int,
    after: str | None,
    *,
    overdue: bool,
) -> None:
    """List devices as they were added; overdue and expiring ones with the most pressing first."""
    if sum((state is not None, overdue, expiring is not None)) > 1:
        raise click.UsageError("--state, --overdue and --expiring are lists of their own; give one of them.")
    within = parse_duration(expiring) if expiring is not None else None

    async def fetch(core: "Core", count: int, position: str | None) -> "list[DeviceRow]":
        from ca_core.model import DeviceState
        from ca_core.registration.device_list import Choice

        choice = Choice(DeviceState(state) if state is not None else None, overdue, within)
        return await core.devices.list(realm, choice=choice, limit=count, after=position)

    listing(
        session,
        COLUMNS,
        fetch,
        limit=limit,
        after=after,
        empty="No such devices." if state or overdue or expiring else NONE_YET,
    )


@device.command()
@click.argument("name")
@options.realm
@pass_session
def show(session: Session, name: str, realm: str) -> None:
    """Show one device, and what happened with it, newest first."""

    async def body(core: "Core") -> "tuple[DeviceRow, Sequence[ActRow]]":
        return await core.devices.show(realm, name), await core.devices.history(realm, name)

    row, history = session.run(body)
    acts = [output.plain(act) for act in history]
    if session.json:
        device_life.show_device(session, row, history=acts)
        return
    device_life.show_device(session, row)
    output.raw("")
    output.table(acts, [("at", "at"), ("act", "act"), ("by", "actor"), ("serial", "serial"), ("details", _details)])


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
@click.argument("name", required=False)
@options.realm
@click.option("--unknown", is_flag=True, help="Of callers that are no known device, by what they showed:")
@click.option("--source", metavar="IP", help="their address,")
@click.option("--key", metavar="HEX", help="the SHA-256 of the key in their CSR,")
@click.option("--serial", metavar="X", help="the serial number of their IDevID or certificate,")
@click.option("--transaction", metavar="ID", help="or SCEP's transactionID.")
@pass_session
def why(session: Session, /, name: str | None, realm: str, *, unknown: bool, **shown: str | None) -> None:
    """Say in a sentence how the device fares, then what it asked and was answered.

    Of a NAME that is not registered: what was answered to callers who claimed it.
    """
    given = {option: value for option, value in shown.items() if value is not None}
    if not unknown and (given or name is None):
        raise click.UsageError(
            f"--{next(iter(given))} goes with --unknown." if given else "Name a device, or --unknown."
        )

    async def body(core: "Core") -> "Why":
        if not unknown and name is not None:
            return await core.devices.why(realm, name)
        from ca_core.registration.attempts import Asked

        key = _digest(given["key"]) if "key" in given else None
        asked = Asked(name, given.get("source"), key, given.get("serial"), given.get("transaction"))
        return await core.devices.why_unknown(asked)

    answer = output.plain(session.run(body))
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


for _command in (
    device_import.import_,
    device_set.set_,
    device_life.suspend,
    device_life.resume,
    device_life.replace,
    device_life.retire,
):
    device.add_command(_command)


def _details(row: output.Row) -> object:
    """What an act's event tells, without what it leaves open."""
    told = row.get("details")
    if not isinstance(told, dict):
        return told
    if row.get("act") == "device.changed":
        pairs = {name: value for name, value in told.items() if isinstance(value, list) and len(value) == 2}
        return [f"{name}: {output.printable(old)} -> {output.printable(new)}" for name, (old, new) in pairs.items()]
    return [f"{name}: {output.printable(value)}" for name, value in told.items() if value not in (None, [], "", {})]


def _digest(text: str) -> bytes:
    try:
        digest = bytes.fromhex(text.replace(":", ""))
    except ValueError:
        digest = b""
    if len(digest) != 32:
        raise OperatorError("key_invalid", "That is not the SHA-256 of a key.", "Give its 64 digits of hex.")
    return digest


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
