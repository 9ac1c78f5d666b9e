"""Authentication: from what a peer offers to a `Requester`. Nothing else makes one."""

import datetime as dt
import hashlib

from cryptography import x509
from cryptography.x509.oid import NameOID
from sqlalchemy import bindparam, select

from ca_core.csr import ParsedCsr
from ca_core.errors import Claim, NotAuthenticated, NotAuthorized, Refusal
from ca_core.model import AUTHENTICATED, Evidence, Means, Requester
from ca_core.public_key import check_public_key, spki_sha256
from ca_core.records.query import Query
from ca_core.records.schema import key_block
from ca_core.records.store import Store
from ca_core.registration.admission.idevid import admit_by_idevid
from ca_core.registration.admission.own_certificate import find_own_certificate, judge_own_certificate
from ca_core.registration.admission.secret import admit_by_secret, looks_like_secret
from ca_core.registration.device import require_active
from ca_core.registration.realm import Realm, Resolved

BLOCKED_KEY = select(key_block.c.reason).where(key_block.c.spki_sha256 == bindparam("spki_sha256"))
"""The reason why the key `spki_sha256` is blocked; no row when it is not."""

_BLOCKED = Query(BLOCKED_KEY)


async def authenticate(store: Store, realm: Realm, evidence: Evidence, csr: ParsedCsr, now: dt.datetime) -> Requester:
    """Who is asking, and how it was proven. Raises `NotAuthenticated`, `NotAuthorized`.

    A client certificate goes before a secret: stock clients repeat a user name and password that they no longer need.
    When the certificate proves nothing (expired, foreign), a secret sent along still counts, so that a device that
    missed its renewal can be helped without touching its configuration.
    """
    if not evidence.chain and evidence.secret is None:
        raise NotAuthenticated("credentials_missing", "Credentials are required.")
    unproven: Refusal | None = None
    if evidence.chain:
        try:
            return await _by_certificate(store, realm, evidence, now)
        except (NotAuthenticated, NotAuthorized) as refusal:
            if evidence.secret is None:
                raise
            unproven = refusal
    try:
        device, secret = await admit_by_secret(store, realm, evidence, csr, now)
    except NotAuthenticated as refusal:
        if unproven is not None:
            refusal.detail = f"{refusal.detail}; certificate: {unproven.code}".removeprefix("; ")
        raise
    require_active(device)
    return Requester(realm.id, device, Means.SECRET, secret.hash, None, secret, None, evidence, AUTHENTICATED)


def proven(resolved: Resolved, requester: Requester, csr: ParsedCsr) -> dict[str, str]:
    """What the log may say of a request, by its ECS names: nothing that was only claimed, and nothing secret."""
    device = requester.device
    found = {
        "enrolld.device": device.name,
        "enrolld.profile": device.profile or resolved.default_profile,
        "enrolld.key_sha256": csr.spki_sha256.hex(),
    }
    if requester.means is Means.SECRET:
        found["user.name"] = device.username
    return found


def claim_of(evidence: Evidence, csr: ParsedCsr) -> Claim:
    """Who somebody says it is, from what it sent; nothing of it is proven."""
    name, serial = evidence.username or csr.common_name, None
    if evidence.chain:
        try:
            leaf = x509.load_der_x509_certificate(evidence.chain[0])
            numbers = leaf.subject.get_attributes_for_oid(NameOID.SERIAL_NUMBER)
            serial = str(numbers[0].value) if numbers else format(leaf.serial_number, "x")
        except (ValueError, TypeError):  # a stranger's certificate may be anything
            serial = None
    return Claim(_kept(name), _kept(serial), csr.spki_sha256)


def _kept(text: str | None) -> str | None:
    """What was claimed as it may be kept and shown: escaped, and never what somebody sent in the wrong place."""
    return None if not text or looks_like_secret(text) else ascii(text[:64])[1:-1]


async def _by_certificate(store: Store, realm: Realm, evidence: Evidence, now: dt.datetime) -> Requester:
    fingerprint = hashlib.sha256(evidence.chain[0]).digest()
    found = await find_own_certificate(store, realm, fingerprint)
    if found is not None:
        device, own = found
        judge_own_certificate(realm, device, own, now)
        await _check_key(store, own.spki_sha256)
        require_active(device)
        return Requester(
            realm.id, device, Means.OWN_CERTIFICATE, fingerprint, own.spki_sha256, None, own, evidence, AUTHENTICATED
        )
    device = await admit_by_idevid(store, realm, evidence.chain, now)
    leaf = x509.load_der_x509_certificate(evidence.chain[0])
    key = spki_sha256(check_public_key(leaf.public_key()))
    await _check_key(store, key)
    require_active(device)
    return Requester(realm.id, device, Means.IDEVID, fingerprint, key, None, None, evidence, AUTHENTICATED)


async def _check_key(store: Store, key: bytes) -> None:
    """A compromised key proves nothing any more, whichever certificate of it is shown."""
    if await store.first(_BLOCKED, spki_sha256=key) is not None:
        raise NotAuthenticated("key_blocked", "The client certificate's key is blocked.")
