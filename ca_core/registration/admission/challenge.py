"""Admission by what proves no single device: a realm's static challenge, or nothing at all.

Then the device is named by the request itself, by the CSR's common name; how far that is believed is for the realm's
ways to say: somebody who can vouch for the name (a webhook, an operator), or only a device that is registered and has
no certificate yet.
"""

import hashlib
import hmac
import secrets

from ca_core.csr import ParsedCsr
from ca_core.errors import NotAuthenticated, NotAuthorized, OperatorError
from ca_core.model import DeviceRecord, DeviceState
from ca_core.names import parse_device_name
from ca_core.records.store import Store
from ca_core.registration.admission.secret import ALPHABET
from ca_core.registration.admission.ways import Way
from ca_core.registration.device import BY_NAME, check_free, new_device, record
from ca_core.registration.realm import Realm

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


async def find_named(store: Store, realm: Realm, csr: ParsedCsr, way: Way) -> DeviceRecord:
    """The device that the request names, which may be new where somebody vouches for it. Raises `NotAuthorized`."""
    try:
        name = parse_device_name(csr.common_name or "")
    except OperatorError as exc:
        raise NotAuthorized("subject_names_no_device", "The request's subject does not name a device.") from exc
    row = await store.first(BY_NAME, realm_id=realm.id, name=name)
    if row is not None:
        found = record(row)
        if found.state in (DeviceState.SUSPENDED, DeviceState.RETIRED):
            # Which of them is nothing that a stranger should learn.
            raise NotAuthorized("device_not_expected", "No such device is expected.", detail=f"{name} is {found.state}")
        return found
    await check_free(store, realm.id, name)
    if way.approval or way.webhook or "open" in way.proofs:
        return new_device(realm.id, name)
    raise NotAuthorized("device_unknown", "This device is not registered here.", detail=f"asked as {name}")
