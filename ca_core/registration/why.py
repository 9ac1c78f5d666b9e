"""Why a device is where it is, in one sentence."""

import datetime as dt
from collections.abc import Sequence

from ca_core.names import DEFAULT_REALM
from ca_core.records.query import Row
from ca_core.records.times import from_ms, rfc3339
from ca_core.rows import AttemptRow, DeviceRow


def sentence(
    shown: DeviceRow, attempts: Sequence[AttemptRow], last: Row | None, open_secret: Row | None, now: dt.datetime
) -> str:
    """One sentence: what keeps the device from a certificate, and what to do; or that all is well.

    `last` is (serial, not_after, status, superseded_at) of its newest certificate, `open_secret` (expires_at,) of its
    unspent secret, both as the store has them; `attempts` are newest first.
    """
    typed = shown.device if shown.realm == DEFAULT_REALM else f"{shown.device} --realm {shown.realm}"
    if shown.state == "suspended":
        return f"It is suspended; 'enrolld device resume {typed}' lets it in again."
    if shown.state == "retired":
        return f"It is retired{f'; {shown.replaced_by} took over' if shown.replaced_by else ''}."
    if shown.overdue:
        ends = _ahead(shown.not_after, now)
        return (
            f"It has not been seen since {shown.last_seen_at}; its certificate {ends}, and it should have renewed about"
            f" {shown.expected_renewal_at}."
        )
    newest = attempts[0] if attempts else None
    if newest is not None and newest.outcome == "refused":
        return f"It was refused {_times(attempts)}, last at {newest.at}: {newest.code}. {newest.remedy}"
    if newest is not None and newest.outcome == "error":
        return f"Its last request, at {newest.at}, failed here and not by its fault: {newest.detail}."
    if last is not None and last[3] is not None:
        waits = f"its secret waits until {rfc3339(from_ms(open_secret[0]))}" if open_secret else ""
        waits = waits or f"without an IDevID it needs a secret: 'enrolld device secret {typed}'"
        return f"It was replaced at {rfc3339(from_ms(last[3]))}, and the new one has not asked yet; {waits}."
    if last is not None:
        serial, not_after, status, _ = last
        until = rfc3339(from_ms(not_after))
        if status != "valid":
            return f"Its last certificate, {serial}, is revoked; 'enrolld device secret {typed}' starts anew."
        if from_ms(not_after) < now:
            return f"Its last certificate, {serial}, expired {until}, and it did not renew it."
        renewal = f", and it should renew about {shown.expected_renewal_at}" if shown.expected_renewal_at else ""
        return f"All is well: its certificate {serial} is valid until {until}{renewal}."
    if open_secret is not None and from_ms(open_secret[0]) > now:
        return f"It never asked; its secret waits to be used until {rfc3339(from_ms(open_secret[0]))}."
    return f"It never asked, and it has no usable secret; 'enrolld device secret {typed}' makes one."


def sentence_of_unknown(attempts: Sequence[AttemptRow], who: str) -> str:
    """One sentence about callers that are no known device, found by `who`; `attempts` are newest first."""
    of = f" with {who}" if who else ""
    if not attempts:
        return f"No unknown caller{of} is among the last that are kept; the log reaches further back."
    newest = attempts[0]
    asked = f"{_times(attempts)}, last at {newest.at} from {newest.source}"
    return f"An unknown caller{of} was refused {asked}: {newest.code}. {newest.remedy or ''}".rstrip()


def _times(attempts: Sequence[AttemptRow]) -> str:
    alike = sum(1 for attempt in attempts if attempt.code == attempts[0].code)
    return "once" if alike == 1 else f"{alike} times lately"


def _ahead(not_after: str | None, now: dt.datetime) -> str:
    """When a certificate ends, in days."""
    if not_after is None:
        return "has ended"
    left = dt.datetime.fromisoformat(not_after) - now
    if left.total_seconds() < 0:
        return f"expired {not_after}"
    if left < dt.timedelta(days=2):
        return f"ends in {max(1, round(left.total_seconds() / 3600))} hours"
    return f"ends in {left.days} days"
