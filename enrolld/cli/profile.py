"""`enrolld profile`: the rules for kinds of certificates, of a realm and ready-made."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import click

from ca_core.errors import OperatorError
from enrolld.cli import options, output
from enrolld.cli.frame import GroupWithGlobals, Session, listing, page, pass_session

if TYPE_CHECKING:
    from ca_core.core import Core

COLUMNS: list[output.Column] = [
    ("profile", "profile"),
    ("issuer", "issuer"),
    ("validity", "validity"),
    ("keys", "keys"),
    ("subject", "subject"),
    ("names", "names"),
    ("usages", "extended_key_usages"),
]


@click.group(cls=GroupWithGlobals)
def profile() -> None:
    """Rules for kinds of certificates."""


@profile.command("list")
@click.option("--realm", metavar="R", default="default", show_default=True, help="Whose profiles.")
@options.paging
@pass_session
def list_(session: Session, realm: str, limit: int, after: str | None) -> None:
    """List the profiles of a realm."""

    async def fetch(core: "Core", count: int, position: str | None) -> Sequence[object]:
        return page(await core.realms.profiles(realm), count, position)

    listing(session, COLUMNS, fetch, limit=limit, after=after, empty="No profiles.")


@profile.command()
@click.argument("name", required=False)
@click.option("--realm", metavar="R", default="default", show_default=True, help="Whose profile.")
@click.option("--preset", metavar="P", help="Show this preset instead, as a profile NAME [its own name].")
@pass_session
def show(session: Session, name: str | None, realm: str, preset: str | None) -> None:
    """Print a profile as TOML, as it stands in a realm's document ('realm export', 'realm edit', 'realm apply').

    What is not printed has its default. With --json the whole of it is answered.
    """
    from ca_core.registration import document, presets

    if preset is not None:
        found = presets.preset(preset).document
    elif name is not None:
        wanted = name
        found = session.run(lambda core: core.realms.profile(realm, wanted))
    else:
        raise click.UsageError("Give the NAME of a profile, or --preset P.")
    shown = name or preset or ""
    if session.json:
        realm_shown = None if preset is not None else realm
        values = {"profile": shown, "realm": realm_shown, "document": output.plain(found)}
        output.emit_json(values | {"toml": document.profile_toml(shown, found)})
    else:
        output.raw(document.profile_toml(shown, found))


@profile.command()
@options.paging
@pass_session
def presets(session: Session, limit: int, after: str | None) -> None:
    """List the presets: profiles to begin with. It needs no store."""
    from ca_core.registration.presets import preset_rows

    rows = [output.plain(row) for row in page(preset_rows(), limit, after)]
    if session.json:
        for row in rows:
            output.emit_json(row)
    else:
        output.table(rows, [("preset", "profile"), ("for", "about")])
        session.next("To print one as TOML:", "profile show --preset NAME")


def parse_presets(values: Sequence[str]) -> dict[str, str]:
    """NAME=PRESET, or PRESET alone, as the options of a command have them: presets by profile name."""
    found: dict[str, str] = {}
    for value in values:
        name, _, preset = value.partition("=")
        if name in found:
            raise OperatorError("profile_twice", f"The profile {name} is given twice.", "Give it once.")
        found[name] = preset or name
    return found
