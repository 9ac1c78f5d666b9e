"""`enrolld ca`: the certificates that devices and their peers trust."""

import base64
import hashlib
import textwrap
from collections.abc import Sequence
from typing import TYPE_CHECKING

import click

from enrolld.cli import options, output
from enrolld.cli.frame import GroupWithGlobals, Session, listing, page, pass_session

if TYPE_CHECKING:
    from ca_core.core import Core

COLUMNS: list[output.Column] = [
    ("issuer", "issuer"),
    ("realm", "realm"),
    ("state", "state"),
    ("family", "family"),
    ("key", "key"),
    ("subject", "subject"),
    ("not after", "not_after"),
    ("sha-256", "fingerprint_sha256"),
]


@click.group(cls=GroupWithGlobals)
def ca() -> None:
    """CA certificates."""


@ca.command("list")
@options.any_realm
@options.paging
@pass_session
def list_(session: Session, realm: str | None, limit: int, after: str | None) -> None:
    """List roots and issuing CAs."""

    async def fetch(core: "Core", count: int, position: str | None) -> Sequence[object]:
        return page(await core.issuers.list(realm), count, position)

    listing(session, COLUMNS, fetch, limit=limit, after=after, empty="No CA.")


@ca.command()
@options.realm
@pass_session
def export(session: Session, realm: str) -> None:
    """Print a realm's CA certificates as PEM, the root first."""
    certificates = session.run(lambda core: core.issuers.export(realm))
    pem = "".join(to_pem(der) for der in certificates)
    if session.json:
        root = hashlib.sha256(certificates[0]).hexdigest()
        output.emit_json({"realm": realm, "root_fingerprint_sha256": root, "pem": pem})
    else:
        output.raw(pem)


def to_pem(der: bytes) -> str:
    """A certificate as PEM."""
    body = "\n".join(textwrap.wrap(base64.b64encode(der).decode("ascii"), 64))
    return f"-----BEGIN CERTIFICATE-----\n{body}\n-----END CERTIFICATE-----\n"
