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

    `last` is (serial, not_after, status) of its newest certificate, `open_secret` (expires_at,) of its unspent secret,
    both as the store has them; `attempts` are newest first.
    """
    typed = shown.device if shown.realm == DEFAULT_REALM else f"{shown.device} --realm {shown.realm}"
    if shown.state == "suspended":
        return f"It is suspended; 'enrolld device resume {typed}' lets it in again."
    if shown.state == "retired":
        return "It is retired."
    newest = attempts[0] if attempts else None
    if newest is not None and newest.outcome == "refused":
        alike = sum(1 for attempt in attempts if attempt.code == newest.code)
        times = "once" if alike == 1 else f"{alike} times lately"
        return f"It was refused {times}, last at {newest.at}: {newest.code}. {newest.remedy}"
    if newest is not None and newest.outcome == "error":
        return f"Its last request, at {newest.at}, failed here and not by its fault: {newest.detail}."
    if last is not None:
        serial, not_after, status = last
        until = rfc3339(from_ms(not_after))
        if status != "valid":
            return f"Its last certificate, {serial}, is revoked; 'enrolld device secret {typed}' starts anew."
        if from_ms(not_after) < now:
            return f"Its last certificate, {serial}, expired {until}, and it did not renew it."
        return f"All is well: its certificate {serial} is valid until {until}."
    if open_secret is not None and from_ms(open_secret[0]) > now:
        return f"It never asked; its secret waits to be used until {rfc3339(from_ms(open_secret[0]))}."
    return f"It never asked, and it has no usable secret; 'enrolld device secret {typed}' makes one."
