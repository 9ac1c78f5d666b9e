"""What became of a transaction, asked by who began it: only the key that signed the request may ask (RFC 8894 4.4)."""

import datetime as dt

from sqlalchemy import and_, bindparam, exists, select

from ca_core.errors import NotAuthorized
from ca_core.model import DeviceRecord, Issued, Serial
from ca_core.records.query import Query
from ca_core.records.schema import certificate, device
from ca_core.records.store import Store
from ca_core.records.times import to_ms
from ca_core.registration.device import COLUMNS, WIDTH, record, require_active
from ca_core.registration.realm import Realm
from ca_core.registration.retransmission import is_answer

_c = certificate.c
_renewed = certificate.alias("renewed").c
_ISSUED = Query(
    select(*COLUMNS, _c.der, _c.serial)
    .join(device, (device.c.realm_id == _c.realm_id) & (device.c.id == _c.device_id))
    .where(
        _c.realm_id == bindparam("realm_id"),
        _c.transaction_id == bindparam("transaction_id"),
        _c.kind == "device",
        # The request was signed with the key to be certified, or with that of the certificate to be renewed.
        (_c.spki_sha256 == bindparam("signer_key"))
        | exists().where(
            and_(
                _renewed.realm_id == _c.realm_id,
                _renewed.id == _c.renews_id,
                _renewed.spki_sha256 == bindparam("signer_key"),
            )
        ),
        is_answer(_c, bindparam("now")),
    )
    .order_by(_c.id.desc())
    .limit(1)
)


async def poll_transaction(
    store: Store, realm: Realm, transaction_id: str, signer_key: bytes, now: dt.datetime
) -> tuple[DeviceRecord, Issued]:
    """The device and the certificate of a transaction that ended in one. `signer_key` is SHA-256 of the key that asks.

    Raises `NotAuthorized`: alike for a transaction that never was and for one of another key.
    """
    row = await store.first(
        _ISSUED, realm_id=realm.id, transaction_id=transaction_id, signer_key=signer_key, now=to_ms(now)
    )
    if row is None:  # enforces case 35
        raise NotAuthorized("transaction_unknown", "There is no such transaction of this key.")
    found = record(row)
    require_active(found)
    return found, Issued(row[WIDTH], Serial(int(row[WIDTH + 1], 16)), again=True)
