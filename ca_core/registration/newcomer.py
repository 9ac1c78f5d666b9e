"""Registering a device that nobody has registered, just before its first certificate.

Only a realm that says so has such devices: any of a trusted manufacturer, or one that an operator or a webhook lets in.
"""

import json
from dataclasses import replace

from ca_core.model import Call, DeviceRecord, DeviceState, Requester
from ca_core.records.audit import AuditEvent
from ca_core.records.query import Values
from ca_core.records.schema import device
from ca_core.records.store import Store
from ca_core.records.unit import Guard, Unit, guarded_insert
from ca_core.registration.realm import SAME_ACTIVE, Realm

_ADD, _ADD_WHY = guarded_insert(device, {"realm_version": SAME_ACTIVE})


async def register(store: Store, realm: Realm, requester: Requester, call: Call, at: int) -> Requester:
    """The requester with its device in the registry.

    Raises `ConditionFailed`, and `ConstraintFailed` when somebody else has registered it since.
    """
    new = requester.device
    row: Values = {
        "realm_id": realm.id,
        "name": new.name,
        "profile": None,
        "state": DeviceState.EXPECTED.value,
        "serial_number": new.serial_number,
        "manufacturer": new.manufacturer,
        "names": json.dumps([]),
        "owner": None,
        "created_at": at,
        "last_seen_at": None,
        "not_after": None,
        "expected_renewal_at": None,
        "overdue_at": None,
        "renewal_shares": None,
        "import_id": None,
        "replaced_by_id": None,
        **realm.facts,
    }
    event = AuditEvent(
        "device.added",
        f"admission:{requester.means.value}",
        realm=realm.name,
        device=new.name,
        request_id=call.request_id,
        details={"serial_number": new.serial_number, "manufacturer": new.manufacturer},
    )
    device_id = await store.commit(Unit(Guard(_ADD, row, _ADD_WHY), at, (), (event,)))
    return replace(requester, device=_with_id(new, device_id))


def _with_id(new: DeviceRecord, device_id: int) -> DeviceRecord:
    return replace(new, id=device_id)
