"""Admission by what proves no single device: a realm's static challenge, or nothing at all.

Then the device is named by the request itself, by the CSR's common name; how far that is believed is for the realm's
ways to say: somebody who can vouch for the name (a webhook, an operator), or only a device that is registered and has
no certificate yet. Whoever was registered with something of its own to show, which another way of the realm takes, is
never believed to be who only says so: then an operator must look at it.
"""

import datetime as dt
import hashlib
import hmac
import secrets

from sqlalchemy import bindparam, select

from ca_core.csr import ParsedCsr
from ca_core.errors import NotAuthenticated, NotAuthorized, OperatorError
from ca_core.model import DeviceRecord, DeviceState
from ca_core.names import parse_device_name
from ca_core.records.query import Query
from ca_core.records.schema import device_secret
from ca_core.records.store import Store
from ca_core.records.times import to_ms
from ca_core.registration.admission.secret import ALPHABET, without_secret
from ca_core.registration.admission.ways import Way
from ca_core.registration.device import BY_NAME, new_device, record
from ca_core.registration.name_keys import check_new_device
from ca_core.registration.names_held import is_unknown
from ca_core.registration.realm import Realm

_s = device_secret.c
# Also one that was used, replaced, or has ended: the operator meant that device to have one.
_SECRET_OF = Query(
    select(_s.id).where(_s.realm_id == bindparam("realm_id"), _s.device_id == bindparam("device_id")).limit(1)
)
MIN_CHALLENGE = 26  # characters; a static one is guessed at for years


def new_challenge() -> str:
    """A challenge that nobody guesses: 130 random bits."""
    return "".join(secrets.choice(ALPHABET) for _ in range(MIN_CHALLENGE))


def hash_challenge(text: str) -> str:
    """What a realm's document keeps of its challenge."""
    return f"sha256:{hashlib.sha256(text.encode()).hexdigest()}"


def is_challenge(realm: Realm, text: str) -> bool:
    """Whether that is the realm's challenge."""
    known = realm.document.admission.challenge or ""
    return "challenge" in realm.proofs and hmac.compare_digest(known, hash_challenge(text))  # enforces case 31


def recall_challenge(realm: Realm, hashed: str) -> None:
    """Raise `NotAuthenticated` unless the challenge that a waiting request came with is still the realm's."""
    if "challenge" not in realm.proofs or not hmac.compare_digest(realm.document.admission.challenge or "", hashed):
        raise NotAuthenticated("challenge_changed", "The credentials are not accepted.")


async def find_named(
    store: Store, realm: Realm, csr: ParsedCsr, way: Way, secret: str | None, now: dt.datetime
) -> DeviceRecord:
    """The device that the request names, which may be new where somebody vouches for it.

    `secret` is what was sent as one. Raises `NotAuthorized`.
    """
    try:
        name = parse_device_name(csr.common_name or "")
    except OperatorError as exc:
        raise NotAuthorized("subject_names_no_device", "The request's subject does not name a device.") from exc
    row = await store.first(BY_NAME, realm_id=realm.id, name=name)
    if row is not None:
        found = record(row)
        if found.state in (DeviceState.SUSPENDED, DeviceState.RETIRED):
            raise _not_expected(f"{name} is {found.state}")
        if not way.approval and (own := await _own_proof(store, realm, found)) is not None:
            raise _not_expected(f"{name} has {own}, and must show it")
        return found
    if without_secret(name, secret) != name:  # enforces case 47
        # It would be kept, and shown to whoever may see what devices there are.
        raise NotAuthorized("csr_holds_secret", "A name in the request holds its secret.")
    if not await is_unknown(store, realm, name, to_ms(now)):
        return await find_named(store, realm, csr, way, secret, now)
    try:
        check_new_device(name)
    except OperatorError as exc:
        raise NotAuthorized(
            "subject_names_no_device", "The request's subject does not name a device.", detail=exc.message
        ) from exc
    if way.approval or way.webhook or "open" in way.proofs:
        return new_device(realm.id, name)
    raise NotAuthorized("device_unknown", "This device is not registered here.", detail=f"asked as {name}")


async def _own_proof(store: Store, realm: Realm, found: DeviceRecord) -> str | None:
    """What the device could show by another way of the realm."""
    if "idevid" in realm.proofs and found.serial_number is not None:
        return "a factory identity"
    if "secret" in realm.proofs and await store.first(_SECRET_OF, realm_id=realm.id, device_id=found.id) is not None:
        return "a secret"
    return None


def _not_expected(why: str) -> NotAuthorized:
    # Which of the reasons it is, is nothing that a stranger should learn.
    return NotAuthorized("device_not_expected", "No such device is expected.", detail=why)
