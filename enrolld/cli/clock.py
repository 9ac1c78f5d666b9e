"""`enrolld clock`: what a clock that once stood in the future has left behind, and going on from now."""

import sys
from typing import TYPE_CHECKING

import click

from ca_core.errors import OperatorError
from enrolld.cli import output
from enrolld.cli.frame import GroupWithGlobals, Session, pass_session

if TYPE_CHECKING:
    from ca_core.rows import ClockState


@click.group(cls=GroupWithGlobals)
def clock() -> None:
    """A clock that once stood in the future."""


@clock.command()
@pass_session
def show(session: Session) -> None:
    """Show this machine's clock beside the database's and the newest event, and what is dated later than now."""
    _show(session, session.run(lambda core: core.clock.show()))


@clock.command()
@click.option("--reason", required=True, metavar="TEXT", help="Why it stood in the future; for the audit trail.")
@click.option("--yes", is_flag=True, help="Do not ask for today's date.")
@pass_session
def accept(session: Session, reason: str, *, yes: bool) -> None:
    """Accept that this machine's clock is right, though events in the store are dated later.

    All nodes then issue again: what was written by the clock in the future counts no more, and stays in the trail.
    """
    if not yes:
        _ask_date(session.run(lambda core: core.clock.show()))
    _show(session, session.run(lambda core: core.clock.accept(reason=reason, actor=session.actor)))


def _ask_date(state: "ClockState") -> None:
    """The guard against a wrong clock that nothing else contradicts: the operator's own knowledge."""
    if not sys.stdin.isatty():
        raise click.UsageError("Nobody can be asked here; --yes says that this machine's clock is right.")
    if not state.behind:
        return  # which is refused in a moment
    output.words(f"This machine's clock says {state.clock}; the newest event is dated {state.newest_event}.")
    typed = click.prompt("Today's date (UTC), from another clock than this one, as YYYY-MM-DD", err=True)
    if typed.strip() != state.clock[:10]:
        raise OperatorError(
            "date_mismatch", f"This machine's clock says {state.clock[:10]}.", "Set it first, then accept it."
        )


def _show(session: Session, state: "ClockState") -> None:
    values = output.plain(state)
    if session.json:
        output.emit_json(values)
        return
    step = state.accepted
    output.details(
        [
            ("this machine's clock", state.clock),
            *([("database's clock", state.database_clock)] if state.database_clock is not None else []),
            ("newest event that counts", state.newest_event),
            ("last step back accepted", f"{step.at}, from {step.back_from}" if step is not None else None),
            ("events dated later", state.events),
            ("certificates dated later", state.certificates),
            ("open secrets dated later", state.secrets),
            ("CRLs dated later", state.crls),
        ]
    )
    if state.off:
        output.words(
            "This clock and the database's differ by more than a minute: nothing is issued. Set the wrong one."
        )
        return
    if state.behind:
        words = "This clock stands before the newest event: nothing is issued. If it is wrong, set it. If it is right:"
        session.next(words, 'clock accept --reason "..."')
        return
    if state.crls:
        words = "Relying parties refuse a CRL before its date. These are dated now, with the next numbers, by:"
        session.next(words, "crl publish --redate")
    if state.certificates:
        words = (
            "Certificates dated later prove nothing yet: their devices need a new secret, or their IDevID. They are:"
        )
        session.next(words, "cert list --not-yet-valid")
    if state.secrets:
        words = "Secrets made in the future last longer than they should. For each such device, this makes a new one:"
        session.next(words, "device secret NAME")
