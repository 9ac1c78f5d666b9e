"""Registering a device that nobody has registered, in the unit that gives it its first certificate.

Only a realm that says so has such devices: any of a trusted manufacturer, or one that an operator or a webhook lets in,
or anyone. Who is refused, or gets nothing for another reason, is not registered.
"""

from sqlalchemy import bindparam, select

from ca_core.model import Requester
from ca_core.records.audit import AuditEvent
from ca_core.records.query import Query, Values, insert_into
from ca_core.records.schema import attempt, certificate
from ca_core.records.schema import request as request_table
from ca_core.registration.device import registered_row
from ca_core.registration.pending import touched_name
from ca_core.registration.realm import Realm

__all__ = ["CERTIFICATE", "FIRST_ATTEMPT", "GRANTED", "added_event", "newcomer_row", "newcomer_touches"]

_c, _q = certificate.c, request_table.c
# The guard's row is the device.
CERTIFICATE = Query(insert_into(certificate).values(device_id=bindparam("guard_id")))
FIRST_ATTEMPT = Query(insert_into(attempt).values(device_id=bindparam("guard_id")))
GRANTED = Query(
    request_table.update()
    .where(_q.realm_id == bindparam("of_realm"), _q.id == bindparam("of_request"))
    .values(
        state="issued",
        certificate_id=select(_c.id)
        .where(_c.realm_id == bindparam("of_realm"), _c.fingerprint == bindparam("fingerprint"))
        .scalar_subquery(),
    )
)


def newcomer_row(realm: Realm, requester: Requester, at: int) -> Values:
    """The device's row."""
    new = requester.device
    return registered_row(realm.id, new.name, (), at, serial_number=new.serial_number, manufacturer=new.manufacturer)


def newcomer_touches(realm: Realm, requester: Requester) -> frozenset[str]:
    """What adding it touches (`Unit.touches`)."""
    return frozenset({touched_name(realm.name, requester.device.name)})


def added_event(realm: Realm, requester: Requester, request_id: str) -> AuditEvent:
    """What the trail says of it."""
    new = requester.device
    return AuditEvent(
        "device.added",
        f"admission:{requester.means.value}",
        realm=realm.name,
        device=new.name,
        request_id=request_id,
        details={"serial_number": new.serial_number, "manufacturer": new.manufacturer},
    )
