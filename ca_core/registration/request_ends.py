"""What ends requests that wait or are approved: acts after which nobody should be granted them."""

from sqlalchemy import ColumnElement, bindparam, select

from ca_core.model import Means
from ca_core.records.query import Query, Values
from ca_core.records.schema import device, request
from ca_core.records.unit import Step
from ca_core.registration.pending_room import is_unproven

__all__ = ["end_by_secret", "end_of_imported", "end_outdated", "end_requests", "end_unproven"]

_q, _d = request.c, device.c
_SAME = ("device", "profile", "means", "signer_key", "subject", "names")
_OPEN = (
    (_q.state == "pending") | (_q.state == "approved"),
    _q.expires_at > bindparam("at"),
)
_OF_DEVICE = (_q.realm_id == bindparam("of_realm"), _q.device == bindparam("of_device"), *_OPEN)


def _ending(*where: ColumnElement[bool]) -> Query:
    return Query(request.update().where(*where).values(expires_at=bindparam("at")))


_END = _ending(*_OF_DEVICE)
_END_UNPROVEN = _ending(*_OF_DEVICE, is_unproven(_q.means))
_END_BY_SECRET = _ending(*_OF_DEVICE, _q.means == Means.SECRET.value)
_END_OF_IMPORTED = _ending(
    _q.realm_id == bindparam("of_realm"),
    *_OPEN,
    is_unproven(_q.means),
    select(_d.id)
    .where(_d.realm_id == bindparam("of_realm"), _d.name == _q.device, _d.import_id == bindparam("guard_id"))
    .exists(),
)
_END_OUTDATED = _ending(
    _q.realm_id == bindparam("of_realm"),
    _q.spki_sha256 == bindparam("of_key"),
    _q.request_key != bindparam("of_request"),
    *(_q[name] == bindparam(f"of_{name}") for name in _SAME),
    _q.state == "pending",
    _q.expires_at > bindparam("at"),
)


def end_requests(realm_id: int, device: str, at: int) -> Step:
    """The step that ends what waits or is approved in a device's name: it is not the device any more that was meant."""
    return Step(_END, {"of_realm": realm_id, "of_device": device, "at": at}, expect=None)


def end_unproven(realm_id: int, device: str, at: int) -> Step:
    """The same of what strangers asked in the name, when the device is registered: who proves to be it may go on."""
    return Step(_END_UNPROVEN, {"of_realm": realm_id, "of_device": device, "at": at}, expect=None)


def end_by_secret(realm_id: int, device: str, at: int) -> Step:
    """The same of what the device asked by a secret, when that is void."""
    return Step(_END_BY_SECRET, {"of_realm": realm_id, "of_device": device, "at": at}, expect=None)


def end_of_imported(realm_id: int, at: int) -> Step:
    """The same for the devices of an import, whose row is the guard's."""
    return Step(_END_OF_IMPORTED, {"of_realm": realm_id, "at": at}, expect=None)


def end_outdated(row: Values) -> Step:
    """The step of a new request's row that ends what waits of it under another identity.

    That is the same, asked by the same with the same key, while the certificate would have said something else. What
    was approved stays: should it be true again, it is what the operator approved.
    """
    same: Values = {f"of_{name}": row[name] for name in _SAME}
    same |= {"of_realm": row["realm_id"], "of_key": row["spki_sha256"], "of_request": row["request_key"]}
    return Step(_END_OUTDATED, same | {"at": row["requested_at"]}, expect=None)
