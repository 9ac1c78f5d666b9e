"""What the store says against a certificate: of its key, of its transaction, and of the time."""

import datetime as dt

from sqlalchemy import bindparam, select

from ca_core.csr import ParsedCsr
from ca_core.errors import BadKey, NotAuthorized, Unavailable
from ca_core.model import Call, Requester
from ca_core.records.query import Query
from ca_core.records.schema import certificate
from ca_core.records.store import Store
from ca_core.records.times import to_ms
from ca_core.registration.moment import NEWEST_EVENT, is_behind
from ca_core.registration.requester import BLOCKED_KEY

__all__ = ["check_facts", "check_not_enrolled", "check_transaction"]

_c = certificate.c
_OTHERS_KEY = (
    select(_c.id)
    .where(
        _c.realm_id == bindparam("realm_id"),
        _c.spki_sha256 == bindparam("spki_sha256"),
        (_c.device_id != bindparam("device_id")) | _c.device_id.is_(None),
    )
    .limit(1)
)
# In one statement, because taking SQLite's read lock costs more than looking up a row.
_FACTS = Query(select(NEWEST_EVENT.scalar_subquery(), BLOCKED_KEY.scalar_subquery(), _OTHERS_KEY.scalar_subquery()))


_ENROLLED = Query(
    select(_c.id)
    .where(_c.realm_id == bindparam("realm_id"), _c.device_id == bindparam("device_id"), _c.superseded_at.is_(None))
    .limit(1)
)
_TRANSACTED = Query(
    select(_c.id)
    .where(
        _c.realm_id == bindparam("realm_id"),
        _c.transaction_id == bindparam("transaction_id"),
        _c.device_id == bindparam("device_id"),
        _c.spki_sha256 != bindparam("spki_sha256"),
        _c.issued_at > bindparam("since"),
    )
    .limit(1)
)


async def check_transaction(store: Store, requester: Requester, csr: ParsedCsr, call: Call, since: dt.datetime) -> None:
    """A transaction (SCEP) is one of a single key, as far back as `since`. Raises `NotAuthorized`."""
    # A spent secret asks for what it was spent for, in whichever transaction.
    again = requester.secret is not None and requester.secret.spent_at is not None
    if call.transaction_id is None or again:
        return
    found = await store.first(
        _TRANSACTED,
        realm_id=requester.realm_id,
        transaction_id=call.transaction_id,
        device_id=requester.device.id,
        spki_sha256=csr.spki_sha256,
        since=to_ms(since),
    )
    if found is not None:  # enforces case 35
        raise NotAuthorized("transaction_of_other_key", "The transaction was one for another key.")


async def check_not_enrolled(store: Store, requester: Requester) -> None:
    """What names no single device gives no device a second identity. Raises `NotAuthorized`."""
    if await store.first(_ENROLLED, realm_id=requester.realm_id, device_id=requester.device.id) is not None:
        raise NotAuthorized("device_enrolled", "This device has a certificate already.")


async def check_facts(store: Store, csr: ParsedCsr, realm_id: int, device_id: int, now: dt.datetime) -> None:
    """What the store says against a certificate for this key and device. Raises `BadKey`, `Unavailable`."""
    row = await store.first(_FACTS, spki_sha256=csr.spki_sha256, realm_id=realm_id, device_id=device_id)
    newest_event, blocked, others_certificate = row or (None, None, None)
    if is_behind(now, newest_event):  # enforces case 61
        raise Unavailable("this machine's clock stands before the store's newest event: set the clock")
    if blocked is not None:  # enforces case 20
        raise BadKey("key_blocked", "The key is blocked.")
    if others_certificate is not None:  # enforces case 20
        raise BadKey("key_of_other_device", "The key belongs to another device.")
