"""Authentication: from what a peer offers to a `Requester`. Nothing else makes one."""

import datetime as dt
import hashlib
from dataclasses import dataclass

from cryptography import x509
from cryptography.x509.oid import NameOID
from sqlalchemy import bindparam, select

from ca_core.csr import ParsedCsr
from ca_core.errors import Claim, NotAuthenticated, NotAuthorized, Refusal
from ca_core.model import AUTHENTICATED, DeviceRecord, Evidence, Means, OwnCertificate, Requester, SecretRecord
from ca_core.public_key import check_public_key, spki_sha256
from ca_core.records.query import Query
from ca_core.records.schema import key_block
from ca_core.records.store import Store
from ca_core.registration.admission.challenge import find_named, is_challenge, recall_challenge
from ca_core.registration.admission.idevid import admit_by_idevid
from ca_core.registration.admission.own_certificate import find_own_certificate, judge_own_certificate
from ca_core.registration.admission.secret import admit_by_secret, recall_secret, without_secret
from ca_core.registration.admission.ways import Way
from ca_core.registration.device import require_active
from ca_core.registration.realm import Realm, Resolved

BLOCKED_KEY = select(key_block.c.reason).where(key_block.c.spki_sha256 == bindparam("spki_sha256"))
"""The reason why the key `spki_sha256` is blocked; no row when it is not."""

_BLOCKED = Query(BLOCKED_KEY)


async def authenticate(store: Store, realm: Realm, evidence: Evidence, csr: ParsedCsr, now: dt.datetime) -> Requester:
    """Who is asking, and how it was proven. Raises `NotAuthenticated`, `NotAuthorized`.

    An own certificate needs no other proof. A first certificate takes one of the realm's ways: all the proofs that it
    names, of one device. A client certificate goes before a secret: stock clients repeat a user name and password that
    they no longer need. When the certificate proves nothing (expired, foreign), a secret sent along still counts, so
    that a device that missed its renewal can be helped without touching its configuration.
    """
    if not evidence.chain and evidence.secret is None and evidence.recalled is None:
        return await _by_nothing(store, realm, evidence, csr, now)
    proofs: dict[str, _Proof] = {}
    unproven: Refusal | None = None
    has_secret = evidence.secret is not None or evidence.recalled is not None
    if evidence.chain:
        try:
            own = await _by_own_certificate(store, realm, evidence, now)
            if own is not None:
                return own
            proofs["idevid"] = await _idevid_proof(store, realm, evidence, now)
        except (NotAuthenticated, NotAuthorized) as refusal:
            if not has_secret:
                raise
            unproven = refusal
    if has_secret and _is_wanting(realm, proofs):
        try:
            name, proof = await _secret_proof(store, realm, evidence, csr, now)
            proofs[name] = proof
        except NotAuthenticated as refusal:
            if unproven is not None:
                refusal.detail = f"{refusal.detail}; certificate: {unproven.code}".removeprefix("; ")
            if _way_of(realm, proofs) is None:
                raise
    way = _way_of(realm, proofs)
    if way is None:
        raise unproven or _more_is_needed(realm, proofs)
    return await _requester(store, realm, evidence, csr, way, proofs, now)


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
    return Claim(_kept(name, evidence.secret), _kept(serial, evidence.secret), csr.spki_sha256)


def _kept(text: str | None, secret: str | None) -> str | None:
    """What was claimed as it may be kept and shown: escaped, and never what somebody sent in the wrong place."""
    if not text:
        return None
    if without_secret(text, secret) != text:  # enforces case 47
        return None
    return ascii(text[:64])[1:-1]


@dataclass(frozen=True, slots=True)
class _Proof:
    """What one proof proves. `device` is None for a challenge, which proves no single one."""

    device: DeviceRecord | None
    credential: bytes
    key: bytes | None = None
    secret: SecretRecord | None = None


def _way_of(realm: Realm, proofs: dict[str, _Proof]) -> Way | None:
    return next((way for way in realm.ways if way.proofs and way.proofs <= proofs.keys()), None)


def _is_wanting(realm: Realm, proofs: dict[str, _Proof]) -> bool:
    """Whether a secret could make a difference: the first way that it could complete comes before what is proven."""
    proven = _way_of(realm, proofs)
    return proven is None or any(way.proofs > proven.proofs for way in realm.ways[: realm.ways.index(proven)])


def _more_is_needed(realm: Realm, proofs: dict[str, _Proof]) -> NotAuthenticated:
    who = next(((p.device.id, p.device.name) for p in proofs.values() if p.device and not p.device.is_new), None)
    ways = "; ".join(map(str, realm.ways))
    detail = f"proven: {', '.join(proofs) or 'nothing'}; taken: {ways}"
    return NotAuthenticated("proof_missing", "More credentials are required.", detail=detail, device=who)


async def _by_nothing(store: Store, realm: Realm, evidence: Evidence, csr: ParsedCsr, now: dt.datetime) -> Requester:
    """A requester who offers nothing, where an operator looks at it, or where the realm is open."""
    if realm.bare_way is None:  # enforces case 31
        raise NotAuthenticated("credentials_missing", "Credentials are required.")
    return await _requester(store, realm, evidence, csr, realm.bare_way, {}, now)


async def _requester(
    store: Store,
    realm: Realm,
    evidence: Evidence,
    csr: ParsedCsr,
    way: Way,
    proofs: dict[str, _Proof],
    now: dt.datetime,
) -> Requester:
    taken = [proofs[name] for name in ("secret", "idevid", "challenge") if name in way.proofs]
    devices = [proof.device for proof in taken if proof.device is not None]
    device = devices[0] if devices else await find_named(store, realm, csr, way, evidence.secret, now)
    if any(other.id != device.id for other in devices):
        raise NotAuthorized(
            "proofs_disagree",
            "The credentials are not those of one device.",
            detail=", ".join(f"{other.name}{' (not registered)' if other.is_new else ''}" for other in devices),
        )
    require_active(device)
    credential = taken[0].credential if taken else csr.spki_sha256
    if way.proofs == {"challenge"}:
        # All devices show the same one, so the name belongs to what is counted and remembered.
        credential = hashlib.sha256(credential + device.name.encode()).digest()
    return Requester(
        realm.id,
        device,
        _means(way),
        credential,
        next((proof.key for proof in taken if proof.key is not None), None),
        next((proof.secret for proof in taken if proof.secret is not None), None),
        None,
        evidence,
        AUTHENTICATED,
        asks_webhook=way.webhook,
        needs_approval=way.approval,
    )


def _means(way: Way) -> Means:
    """What the request is known by: the strongest proof of the way."""
    for name, means in (
        ("secret", Means.SECRET),
        ("idevid", Means.IDEVID),
        ("challenge", Means.CHALLENGE),
        ("open", Means.OPEN),
    ):
        if name in way.proofs:
            return means
    return Means.APPROVAL


async def _by_own_certificate(store: Store, realm: Realm, evidence: Evidence, now: dt.datetime) -> Requester | None:
    """The device that shows a certificate of this realm; None when it shows another. Raises `NotAuthenticated`."""
    fingerprint = hashlib.sha256(evidence.chain[0]).digest()
    found = await find_own_certificate(store, realm, fingerprint)
    if found is None:
        return None
    device, own = found
    await judge_shown(store, realm, device, own, now)
    require_active(device)
    return Requester(
        realm.id, device, Means.OWN_CERTIFICATE, fingerprint, own.spki_sha256, None, own, evidence, AUTHENTICATED
    )


async def judge_shown(store: Store, realm: Realm, device: DeviceRecord, own: OwnCertificate, now: dt.datetime) -> None:
    """Raise `NotAuthenticated` unless an own certificate, when it is shown now, proves its device."""
    judge_own_certificate(realm, device, own, now)
    await _check_key(store, own.spki_sha256)


async def _idevid_proof(store: Store, realm: Realm, evidence: Evidence, now: dt.datetime) -> _Proof:
    device = await admit_by_idevid(store, realm, evidence.chain, now)
    leaf = x509.load_der_x509_certificate(evidence.chain[0])
    key = spki_sha256(check_public_key(leaf.public_key()))
    await _check_key(store, key)
    require_active(device)
    return _Proof(device, hashlib.sha256(evidence.chain[0]).digest(), key)


async def _secret_proof(
    store: Store, realm: Realm, evidence: Evidence, csr: ParsedCsr, now: dt.datetime
) -> tuple[str, _Proof]:
    """By a one-time secret, or by the realm's challenge: a client has one place for both. Raises `NotAuthenticated`."""
    recalled = evidence.recalled
    if recalled is not None and recalled.challenge is not None:
        recall_challenge(realm, recalled.challenge)
        return "challenge", _Proof(None, hashlib.sha256(recalled.challenge.encode()).digest())
    if recalled is not None and recalled.secret_id is not None:
        device, secret = await recall_secret(store, realm, recalled.secret_id, csr, now)
    else:
        if is_challenge(realm, evidence.secret or ""):
            hashed = realm.document.admission.challenge or ""
            return "challenge", _Proof(None, hashlib.sha256(hashed.encode()).digest())
        device, secret = await admit_by_secret(store, realm, evidence, csr, now)
    return "secret", _Proof(device, secret.hash, secret=secret)


async def _check_key(store: Store, key: bytes) -> None:
    """A compromised key proves nothing any more, whichever certificate of it is shown."""
    if await store.first(_BLOCKED, spki_sha256=key) is not None:
        raise NotAuthenticated("key_blocked", "The client certificate's key is blocked.")
