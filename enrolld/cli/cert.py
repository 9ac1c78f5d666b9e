"""`enrolld cert`: what was issued, and taking it back."""

import datetime as dt
import time
from typing import TYPE_CHECKING

import click

from ca_core.errors import InternalError
from enrolld.cli import options, output
from enrolld.cli.frame import GroupWithGlobals, Session, listing, pass_session

if TYPE_CHECKING:
    from collections.abc import Sequence

    from ca_core.core import Core
    from ca_core.rows import Revocation

REASONS = ["unspecified", "keyCompromise", "affiliationChanged", "superseded", "cessationOfOperation"]
REASONS += ["certificateHold", "privilegeWithdrawn"]
"""RFC 5280 5.3.1, without what is said of CAs and attribute authorities, and of entries that leave a CRL."""

COLUMNS: list[output.Column] = [
    ("device", "device"),
    ("subject", "subject"),
    ("realm", "realm"),
    ("status", "status"),
    ("not after", "not_after"),
    ("key", "key"),
    ("issuer", "issuer"),
    ("serial", "serial"),
]
FIELDS = ["device", "subject", "names", "realm", "profile", "status", "revoked_at", "reason", "not_before", "not_after"]
FIELDS += ["key", "protocol", "issuer", "serial", "fingerprint_sha256"]
_POLL = 0.1


@click.group(cls=GroupWithGlobals)
def cert() -> None:
    """Issued certificates."""


@cert.command("list")
@options.any_realm
@click.option("--device", metavar="NAME", help="Only this device's.")
@click.option("--status", type=click.Choice(["valid", "revoked", "hold"]), help="Only of this status.")
@click.option("--not-yet-valid", is_flag=True, help="Only those of a later date than now; see 'enrolld clock show'.")
@options.paging
@pass_session
def list_(
    session: Session,
    realm: str | None,
    device: str | None,
    status: str | None,
    limit: int,
    after: str | None,
    *,
    not_yet_valid: bool,
) -> None:
    """List certificates."""
    listing(
        session,
        COLUMNS,
        lambda core, count, position: core.certificates.list(
            realm=realm, device=device, status=status, not_yet_valid=not_yet_valid, limit=count, after=position
        ),
        limit=limit,
        after=after,
        empty="No such certificates.",
    )


@cert.command()
@click.argument("serial")
@options.any_realm
@click.option("--pem", is_flag=True, help="Print the certificate itself.")
@pass_session
def show(session: Session, serial: str, realm: str | None, *, pem: bool) -> None:
    """Show one certificate: SERIAL in hex, with or without colons, or as dec:NUMBER."""

    async def body(core: "Core") -> tuple[object, str]:
        row = await core.certificates.find(serial, realm=realm)
        return row, await core.certificates.pem(row)

    row, text = session.run(body)
    values = output.plain(row)
    if session.json:
        output.emit_json({**values, "pem": text})
    elif pem:
        output.raw(text)
    else:
        output.details((name.replace("_", " "), values.get(name)) for name in FIELDS)


@cert.command()
@click.argument("serial")
@options.any_realm
@click.option("--reason", required=True, type=click.Choice(REASONS), help="As RFC 5280 spells it.")
@click.option("--wait", type=options.Duration(), default="10s", show_default=True, help="For the CRL to be out.")
@pass_session
def revoke(session: Session, serial: str, realm: str | None, reason: str, wait: dt.timedelta) -> None:
    """Revoke a certificate, and answer when the CRL that says so is published.

    It and older certificates of the device renew no more; 'device suspend' shuts the device out of every way in.
    """

    async def body(core: "Core") -> tuple[object, bool]:
        revocation = await core.certificates.revoke(serial, reason=reason, realm=realm, actor=session.actor)
        return revocation.certificate, await publish(core, [revocation], wait)

    row, published = session.run(body, key=None)
    values = output.plain(row)
    if session.json:
        output.emit_json({**values, "published": published})
        return
    output.details((name.replace("_", " "), values.get(name)) for name in FIELDS)
    output.details([("published", published)])
    if published:
        shut_out = f"device suspend {values['device']} --realm {values['realm']}"
        words = "It renews nothing any more, nor do older ones; an IDevID or a new secret still lets the device in."
        session.next(f"{words} To shut the device out of every way in:", shut_out)
    else:
        session.next("It is revoked; the CRL that says so is not out yet. The daemon publishes it, or:", "crl publish")


async def publish(core: "Core", revocations: "Sequence[Revocation]", wait: dt.timedelta) -> bool:
    """Whether the CRLs that list these are out: signed here where the key is at hand, else waited for."""
    import asyncio

    # The revocations hold. That a CRL is late is said, and is no failure of the command.
    until = time.monotonic() + wait.total_seconds()
    if core.config.unlock_key is not None:
        try:
            for issuer in sorted({revocation.issuer for revocation in revocations}):
                await core.crls.publish(issuer)
        except InternalError as exc:
            output.words(f"The CRL can't be signed here ({output.printable(exc)}); waiting for the daemon.")
    while True:
        published = all([await core.crls.is_published(revocation) for revocation in revocations])
        if published or time.monotonic() >= until:
            return published
        await asyncio.sleep(_POLL)
