"""Admission by a device's secret: `selector.secret`, found by its selector, compared by hash.

Whether the device is unknown, or the secret wrong, spent, expired or replaced: the answer, its text and the work behind
it are the same. The operator learns which it was.
"""

import datetime as dt
import hashlib
import hmac
import re
import secrets

from sqlalchemy import bindparam, select

from ca_core.csr import ParsedCsr
from ca_core.errors import NotAuthenticated
from ca_core.model import DeviceRecord, Evidence, SecretRecord
from ca_core.names import username_of
from ca_core.records.query import Query, Row
from ca_core.records.schema import device, device_secret
from ca_core.records.store import Store
from ca_core.records.times import from_ms, rfc3339
from ca_core.registration.device import COLUMNS, WIDTH, record
from ca_core.registration.realm import Realm

ALPHABET = "abcdefghijkmnpqrstuvwxyz23456789"  # of [a-z2-9], without l and o: 5 bits a character
_SELECTOR = 8  # what is shorter is no secret, and may stand in any name
_SECRET = 26  # 130 bits; router command lines choke on more
_FORM = re.compile(rf"[{ALPHABET}]{{{_SELECTOR}}}\.[{ALPHABET}]{{{_SECRET}}}")
_NOTHING = hashlib.sha256(b"no such secret").digest()
_MESSAGE = "The credentials are not accepted."

_s = device_secret.c
_SECRETS = select(
    *COLUMNS,
    _s.id,
    _s.hash,
    _s.expires_at,
    _s.spent_at,
    _s.spent_key,
    _s.spent_names,
    _s.certificate_id,
    _s.voided_at,
).join(device, (device.c.realm_id == _s.realm_id) & (device.c.id == _s.device_id))
_BY_SELECTOR = Query(_SECRETS.where(_s.realm_id == bindparam("realm_id"), _s.selector == bindparam("selector")))
_BY_ID = Query(_SECRETS.where(_s.realm_id == bindparam("realm_id"), _s.id == bindparam("secret_id")))


def new_secret() -> tuple[str, str, bytes]:
    """A new secret as (text to hand out, selector, SHA-256 of the text)."""
    # 32 characters: five random bits choose each of them, and the system is asked once.
    drawn = "".join(ALPHABET[byte & 31] for byte in secrets.token_bytes(_SELECTOR + _SECRET))
    selector = drawn[:_SELECTOR]
    text = f"{selector}.{drawn[_SELECTOR:]}"
    return text, selector, hash_secret(text)


def holds_secret(text: str, secret: str | None) -> bool:
    """Whether a text, such as a name in a request, tells the secret or challenge that came along, in whatever case."""
    return secret is not None and len(secret) >= _SELECTOR and secret.casefold() in text.casefold()


def without_secret(text: str, secret: str | None) -> str:
    """A text as it may be kept and shown, without that secret and without what may be one of ours."""
    if holds_secret(text, secret):
        text = re.sub(re.escape(secret or ""), "(the secret)", text, flags=re.IGNORECASE)
    return _FORM.sub("(a secret)", text)


def hash_secret(text: str) -> bytes:
    """What the store keeps of a secret: it has 130 random bits, so a plain SHA-256 can't be searched."""
    return hashlib.sha256(text.encode()).digest()


async def admit_by_secret(
    store: Store, realm: Realm, evidence: Evidence, csr: ParsedCsr, now: dt.datetime
) -> tuple[DeviceRecord, SecretRecord]:
    """The device whose secret was offered. Raises `NotAuthenticated`.

    A spent secret proves its device to the key that it served, within the realm's retry window: whoever lost the answer
    may ask again, also when the secret has expired since.
    """
    text = evidence.secret or ""
    selector = text.partition(".")[0][: _SELECTOR * 2]
    row = await store.first(_BY_SELECTOR, realm_id=realm.id, selector=selector)
    stored = row[WIDTH + 1] if row else _NOTHING
    matches = hmac.compare_digest(stored, hash_secret(text))
    if "secret" not in realm.proofs:
        raise NotAuthenticated("secret_not_admitted", _MESSAGE)
    if row is None:
        raise NotAuthenticated("secret_unknown", _MESSAGE)
    found = record(row)
    named = f"device {found.name}"
    if not matches:  # enforces case 48
        raise NotAuthenticated("secret_wrong", _MESSAGE, detail=named)
    who = (found.id, found.name)  # whoever has the whole secret got it from the operator
    if evidence.username and evidence.username != username_of(found.name):
        raise NotAuthenticated("secret_other_user", _MESSAGE, detail=named, device=who)
    return found, _usable(realm, found, row, csr, now)


async def recall_secret(
    store: Store, realm: Realm, secret_id: int, csr: ParsedCsr, now: dt.datetime
) -> tuple[DeviceRecord, SecretRecord]:
    """The device whose secret was offered with a request that waited since. Raises `NotAuthenticated`."""
    row = await store.first(_BY_ID, realm_id=realm.id, secret_id=secret_id)
    if row is None or "secret" not in realm.proofs:
        raise NotAuthenticated("secret_not_admitted", _MESSAGE)
    found = record(row)
    return found, _usable(realm, found, row, csr, now)


def _usable(realm: Realm, found: DeviceRecord, row: Row, csr: ParsedCsr, now: dt.datetime) -> SecretRecord:
    """The secret in a row, if it may be used with that key now. Raises `NotAuthenticated`."""
    named, who = f"device {found.name}", (found.id, found.name)
    secret = SecretRecord(
        id=row[WIDTH],
        hash=row[WIDTH + 1],
        expires_at=from_ms(row[WIDTH + 2]),
        spent_at=from_ms(row[WIDTH + 3]) if row[WIDTH + 3] is not None else None,
        spent_key=row[WIDTH + 4],
        spent_names=row[WIDTH + 5],
        certificate_id=row[WIDTH + 6],
        voided_at=from_ms(row[WIDTH + 7]) if row[WIDTH + 7] is not None else None,
    )
    if secret.voided_at is not None:  # enforces case 32
        raise NotAuthenticated(
            "secret_void", _MESSAGE, detail=f"{named}, replaced {rfc3339(secret.voided_at)}", device=who
        )
    if secret.spent_at is not None:
        same_key = hmac.compare_digest(secret.spent_key or b"", csr.spki_sha256)
        if not same_key or now >= secret.spent_at + realm.document.retry:  # enforces case 32
            served = (secret.spent_key or b"").hex()[:16]
            raise NotAuthenticated(
                "secret_spent", _MESSAGE, detail=f"{named}, used {rfc3339(secret.spent_at)} by key {served}", device=who
            )
    elif now >= secret.expires_at:  # enforces case 32
        raise NotAuthenticated(
            "secret_expired", _MESSAGE, detail=f"{named}, expired {rfc3339(secret.expires_at)}", device=who
        )
    return secret
