"""Registering a device that nobody has registered, just before its first certificate.

Only a realm that says so has such devices: any of a trusted manufacturer, or one that an operator or a webhook lets in.
"""

from dataclasses import replace

from ca_core.model import Call, Requester
from ca_core.records.audit import AuditEvent
from ca_core.records.schema import device
from ca_core.records.store import Store
from ca_core.records.unit import Guard, Unit, guarded_insert
from ca_core.registration.device import registered_row
from ca_core.registration.realm import SAME_ACTIVE, Realm

_ADD, _ADD_WHY = guarded_insert(device, {"realm_version": SAME_ACTIVE})


async def register(store: Store, realm: Realm, requester: Requester, call: Call, at: int) -> Requester:
    """The requester with its device in the registry.

    Raises `ConditionFailed`, and `ConstraintFailed` when somebody else has registered it since.
    """
    new = requester.device
    row = registered_row(realm.id, new.name, (), at, serial_number=new.serial_number, manufacturer=new.manufacturer)
    event = AuditEvent(
        "device.added",
        f"admission:{requester.means.value}",
        realm=realm.name,
        device=new.name,
        request_id=call.request_id,
        details={"serial_number": new.serial_number, "manufacturer": new.manufacturer},
    )
    device_id = await store.commit(Unit(Guard(_ADD, row | realm.facts, _ADD_WHY), at, (), (event,)))
    return replace(requester, device=replace(new, id=device_id))
