"""Whether there is room for one more request that waits: what its INSERT is conditioned on, and what is told if not.

Bounded by realm, by source and by device. Strangers, of whom there may be any number, leave half of the realm's room to
those who prove who they are.
"""

from sqlalchemy import ColumnElement, bindparam, case, func, select

from ca_core.errors import ConditionFailed, CoreError, NotAuthorized, TooMany
from ca_core.limits import source_of
from ca_core.model import Call, Requester
from ca_core.records.query import Values
from ca_core.records.schema import request as request_table
from ca_core.records.unit import guarded_insert
from ca_core.registration.ceiling import share_of_unproven
from ca_core.registration.realm import SAME_ACTIVE, Realm

__all__ = ["ADD", "ADD_WHY", "is_unproven", "no_room", "room"]

_NO_LIMIT = 1 << 30
_open = request_table.alias("open").c
_same = request_table.alias("same").c
_OPEN = (
    _open.realm_id == bindparam("realm_id"),
    _open.state == "pending",
    _open.expires_at > bindparam("requested_at"),
)
_STANDS = (
    (_same.state == "pending") | (_same.state == "approved"),
    _same.expires_at > bindparam("requested_at"),
)


def is_unproven(means: ColumnElement[str]) -> ColumnElement[bool]:
    """As `Requester.is_unproven`. Spelled out, because an IN list is expanded anew at each execution."""
    return (means == "approval") | (means == "challenge") | (means == "open")


_UNPROVEN = is_unproven(_open.means)
_count = select(func.count())
ADD, ADD_WHY = guarded_insert(
    request_table,
    {
        "realm_version": SAME_ACTIVE,
        "realm_has_room": _count.where(*_OPEN).scalar_subquery() < bindparam("most"),
        "unproven_has_room": _count.where(*_OPEN, _UNPROVEN).scalar_subquery() < bindparam("most_of_unproven"),
        "source_has_room": _count.where(*_OPEN, _open.source_of == bindparam("source_of")).scalar_subquery()
        < bindparam("most_of_source"),
        # Of a device that proves who it is, the name stands for its credential.
        "device_has_room": _count.where(*_OPEN, _open.device == bindparam("device"), ~_UNPROVEN).scalar_subquery()
        < bindparam("most_of_device"),
        # A transaction is one request. A stranger's is not that of the device which he calls himself.
        "transaction_not_of_other_key": ~select(_same.id)
        .where(
            _same.realm_id == bindparam("realm_id"),
            _same.transaction_id == bindparam("transaction_id"),
            _same.device == bindparam("device"),
            _same.spki_sha256 != bindparam("spki_sha256"),
            case((is_unproven(_same.means), 1), else_=0) == bindparam("unproven"),
            *_STANDS,
        )
        .exists(),
        # RFC 8894 4.4: a transaction that waits is polled for, not changed.
        "transaction_not_of_other_names": ~select(_same.id)
        .where(
            _same.realm_id == bindparam("realm_id"),
            _same.transaction_id == bindparam("transaction_id"),
            _same.spki_sha256 == bindparam("spki_sha256"),
            (_same.subject != bindparam("subject")) | (_same.names != bindparam("names")),
            *_STANDS,
        )
        .exists(),
        # Of two that arrive at once, one finds the other's.
        "not_asked_before": ~select(_same.id)
        .where(_same.realm_id == bindparam("realm_id"), _same.request_key == bindparam("request_key"), *_STANDS)
        .exists(),
    },
)
_WHOSE = {
    "realm_has_room": "of this realm",
    "unproven_has_room": "of those that prove nothing",
    "source_has_room": "from {}",
    "device_has_room": "of this device",
}


def room(realm: Realm, requester: Requester) -> Values:
    """What the conditions compare with, beside the row."""
    admission, is_unproven = realm.document.admission, requester.is_unproven
    most, of_each = admission.bounded("pending_most"), admission.bounded("pending_per_source")
    share = share_of_unproven(realm, most, waiting=True)
    return {
        **realm.facts,
        "most": most,
        "most_of_unproven": share if is_unproven else _NO_LIMIT,
        "most_of_source": of_each,
        "most_of_device": _NO_LIMIT if is_unproven else of_each,
        "unproven": int(is_unproven),
    }


def no_room(failed: ConditionFailed, call: Call) -> CoreError:
    """What to raise for conditions that failed: a refusal, or they themselves, to decide again."""
    if "transaction_not_of_other_key" in failed.conditions:
        return NotAuthorized("transaction_of_other_key", "The transaction was one for another key.")
    if "transaction_not_of_other_names" in failed.conditions:
        return NotAuthorized("transaction_of_other_request", "The transaction was one for another request.")
    whose = [words for name, words in _WHOSE.items() if name in failed.conditions]
    if not whose:
        return failed
    return TooMany(
        "requests_too_many",
        "Too many requests wait for approval; ask later.",
        retry_after=600,
        detail=f"as many requests {whose[0].format(source_of(call.source))} wait as may",
    )
