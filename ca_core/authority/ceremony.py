"""Making a realm's CA: a root, and under it an issuing CA per key family, all in one unit with the realm itself.

A realm may stand under the root of another one, if its operator says so: then it has issuing CAs alone.
"""

import datetime as dt
from collections.abc import Mapping
from dataclasses import dataclass, field

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.x509.oid import NameOID
from sqlalchemy import bindparam, select

from ca_core.authority.issuance import Issuance, SignedCertificate
from ca_core.authority.issuer import Issuer, issuer_name
from ca_core.authority.kinds import ROOT, USUAL
from ca_core.authority.new_key import InToken, NewKey
from ca_core.authority.plan import CertificatePlan, validity
from ca_core.authority.record import certificate_row
from ca_core.public_key import describe_key
from ca_core.records.query import Query, Values, insert_into
from ca_core.records.schema import certificate, issuer, sealed_key
from ca_core.records.times import to_ms
from ca_core.records.unit import Step

_SHA256 = hashes.SHA256()
_YEAR = dt.timedelta(days=365)
_LIFETIMES = {ROOT: 25 * _YEAR, "ec": 10 * _YEAR, "rsa": 5 * _YEAR}
_TITLES = {ROOT: "Root CA", "ec": "Issuing CA EC", "rsa": "Issuing CA RSA"}

_INSERT_KEY = Query(insert_into(sealed_key))
_parent = issuer.alias("parent").c
_PARENT_ID = select(_parent.id).where(_parent.name == bindparam("parent_name")).scalar_subquery()
_ROOT_ID = select(_parent.id).where(_parent.name == bindparam("shared_root_name")).scalar_subquery()
_INSERT_ISSUER = Query(
    insert_into(issuer).values(realm_id=bindparam("guard_id"), parent_id=_PARENT_ID, shared_root_id=_ROOT_ID)
)
_ISSUER_ID = select(issuer.c.id).where(issuer.c.name == bindparam("issuer_name")).scalar_subquery()
# A certificate is a row of the realm whose CA issued it.
_ISSUER_REALM = select(issuer.c.realm_id).where(issuer.c.name == bindparam("issuer_name")).scalar_subquery()
_INSERT_CERTIFICATE = Query(insert_into(certificate).values(realm_id=_ISSUER_REALM, issuer_id=_ISSUER_ID))


@dataclass(frozen=True, slots=True)
class SharedRoot:
    """The root of another realm, and the base of the URLs in what it signs."""

    issuer: Issuer
    public_url: str


@dataclass(frozen=True, slots=True)
class Ceremony:
    """What a new realm's CA adds to the unit that makes the realm; `fingerprints` are SHA-256 hex by issuer name.

    `keys` are to be discarded when that unit comes to nothing.
    """

    steps: tuple[Step, ...] = field(repr=False)
    fingerprints: dict[str, str]
    keys: tuple[NewKey, ...] = field(repr=False)


async def make_realm_ca(
    issuance: Issuance,
    realm: str,
    public_url: str,
    now: dt.datetime,
    *,
    kinds: Mapping[str, str] = USUAL,
    token: str | None = None,
    under: SharedRoot | None = None,
) -> Ceremony:
    """Make keys and certificates of a new realm, of the `chosen_kinds`; the keys in a HSM's `token`, if one is named.

    With a root that it stands `under`, none of its own is made. Raises `Unavailable` without the unlock key,
    `HsmUnfit`, `SealingFailed`.
    """
    keys: list[NewKey] = []
    try:
        return await _make(issuance, realm, public_url, now, kinds, token, under, keys)
    except BaseException:
        await issuance.discard(keys)
        raise


async def _make(
    issuance: Issuance,
    realm: str,
    public_url: str,
    now: dt.datetime,
    kinds: Mapping[str, str],
    token: str | None,
    under: SharedRoot | None,
    keys: list[NewKey],
) -> Ceremony:
    steps: list[Step] = []
    fingerprints: dict[str, str] = {}
    root = under.issuer if under is not None else None
    for family, kind in kinds.items():
        if family == ROOT and under is not None:
            continue
        name = issuer_name(realm, family, 1)
        key = await issuance.new_key(kind, InToken(token, name) if token is not None else None)
        keys.append(key)
        plan = _plan(realm, family, key, _LIFETIMES[family], now, root)
        if root is None:
            signed = await issuance.self_sign(plan, key)
        else:
            signed = await issuance.issue(plan, root, under.public_url if under is not None else public_url)
        if family == ROOT:
            root = _issuer(name, signed)
            await issuance.adopt(root, key)
        above = root.name if root and family != ROOT else None
        steps += _steps(name, family, key, signed, above, now, shared=under is not None)
        fingerprints[name] = signed.certificate.fingerprint(_SHA256).hex()
    return Ceremony(tuple(steps), fingerprints, tuple(keys))


def key_step(name: str, purpose: str, key: NewKey, at: int) -> Step:
    """The step that stores a sealed key, or the reference to one in a HSM; `purpose` is ca, server or ra."""
    row: Values = {
        "name": name,
        "purpose": purpose,
        "pkcs8": key.pkcs8,
        "spki_sha256": key.spki_sha256,
        "created_at": at,
    }
    return Step(_INSERT_KEY, row)


def _plan(
    realm: str, family: str, key: NewKey, lifetime: dt.timedelta, now: dt.datetime, root: Issuer | None
) -> CertificatePlan:
    latest = root.not_after if root else now + lifetime
    not_before, not_after = validity(now, lifetime, latest.replace(microsecond=0))
    return CertificatePlan(
        subject=x509.Name(
            [
                x509.NameAttribute(NameOID.ORGANIZATION_NAME, "enrolld"),
                x509.NameAttribute(NameOID.COMMON_NAME, f"{realm} {_TITLES[family]} 1"),
            ]
        ),
        public_key=key.public_key,
        not_before=not_before,
        not_after=not_after,
        ca=True,
        # "the maximum number of non-self-issued intermediate certificates that may follow" -- RFC 5280 4.2.1.9
        path_length=None if family == ROOT else 0,  # enforces case 24
    )


def _issuer(name: str, signed: SignedCertificate) -> Issuer:
    """The root while it is not in the store yet; its id is of no use before that."""
    return Issuer(
        id=0,
        realm_id=0,
        name=name,
        family=ROOT,
        generation=1,
        state="active",
        key_name=name,
        not_after=signed.plan.not_after,
        revocations=0,
        parent_id=None,
        der=signed.der,
        certificate=signed.certificate,
    )


def _steps(
    name: str,
    family: str,
    key: NewKey,
    signed: SignedCertificate,
    parent: str | None,
    now: dt.datetime,
    *,
    shared: bool,
) -> list[Step]:
    at = to_ms(now)
    issuer_row: Values = {
        "name": name,
        "family": family,
        "generation": 1,
        "state": "active",
        "parent_name": None if shared else parent,
        "shared_root_name": parent if shared else None,
        "key_name": name,
        "der": signed.der,
        "not_after": to_ms(signed.plan.not_after),
        "revocations": 0,
        "created_at": at,
    }
    row = certificate_row(
        signed,
        realm_id=None,
        issuer_id=None,
        kind="ca",
        profile=None,
        device_id=None,
        protocol="local",
        key=describe_key(key.public_key),
        spki_sha256=key.spki_sha256,
        at=at,
    )
    return [
        key_step(name, "ca", key, at),
        Step(_INSERT_ISSUER, issuer_row),
        Step(_INSERT_CERTIFICATE, row | {"issuer_name": parent or name}),
    ]
