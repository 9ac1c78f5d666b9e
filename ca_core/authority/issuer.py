"""Issuers: a CA certificate with its place in a realm. The key is elsewhere, and only `issuance` reaches it."""

import datetime as dt
from collections.abc import Iterable
from dataclasses import dataclass, field

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from sqlalchemy import bindparam, func, select

from ca_core.authority.kinds import ROOT
from ca_core.errors import IssuerUnfit
from ca_core.records.query import Query, Row
from ca_core.records.schema import issuer as issuer_table
from ca_core.records.store import Store
from ca_core.records.times import from_ms

_c = issuer_table.c
_COLUMNS = (
    _c.id,
    _c.realm_id,
    _c.name,
    _c.family,
    _c.generation,
    _c.state,
    _c.key_name,
    _c.der,
    _c.not_after,
    _c.revocations,
    func.coalesce(_c.parent_id, _c.shared_root_id),
)
_below = issuer_table.alias("below").c
_SHARED_ROOTS = select(_below.shared_root_id).where(_below.realm_id == bindparam("realm_id"))
# A shared root is older than what stands under it.
_OF_REALM = Query(
    select(*_COLUMNS).where((_c.realm_id == bindparam("realm_id")) | _c.id.in_(_SHARED_ROOTS)).order_by(_c.id)
)
_BY_NAME = Query(select(*_COLUMNS).where(_c.name == bindparam("name")))
_ALL = Query(select(*_COLUMNS).order_by(_c.id))


@dataclass(frozen=True, slots=True)
class Issuer:
    """One CA certificate. `family` is root, ec or rsa; `name` is unique over realms and generations.

    `parent_id` is the root that signed it, which is another realm's where a realm stands under a shared root.
    """

    id: int
    realm_id: int
    name: str
    family: str
    generation: int
    state: str
    key_name: str
    not_after: dt.datetime
    revocations: int
    parent_id: int | None
    der: bytes = field(repr=False)
    certificate: x509.Certificate = field(repr=False, compare=False)

    @property
    def is_root(self) -> bool:
        """Whether this is a realm's trust anchor."""
        return self.family == ROOT


def check_fit(name: str, certificate: x509.Certificate, parent: x509.Certificate | None) -> None:
    """Raise `IssuerUnfit` when no relying party would accept what is signed under the certificate of issuer `name`.

    `parent` is the certificate above it, None for a root.
    """
    try:
        constraints = certificate.extensions.get_extension_for_class(x509.BasicConstraints).value
        usage = certificate.extensions.get_extension_for_class(x509.KeyUsage).value
    except (x509.ExtensionNotFound, ValueError) as exc:
        raise IssuerUnfit("issuer_usage", f"the certificate of {name} is no CA's: {exc}") from exc
    # "Conforming CAs MUST include this extension in all CA certificates that contain public keys used to validate
    # digital signatures on certificates" -- RFC 5280 4.2.1.9
    if not constraints.ca:  # enforces case 75
        raise IssuerUnfit("issuer_usage", f"the certificate of {name} is no CA's: its basicConstraints say so")
    # "If the keyUsage extension is present, then the subject public key MUST NOT be used to verify signatures on
    # certificates or CRLs unless the corresponding keyCertSign or cRLSign bit is set." -- RFC 5280 4.2.1.3
    for is_set, bit in ((usage.key_cert_sign, "keyCertSign"), (usage.crl_sign, "cRLSign")):
        if not is_set:  # enforces case 75
            raise IssuerUnfit("issuer_usage", f"the certificate of {name} lacks {bit} in its keyUsage")
    try:
        certificate.verify_directly_issued_by(certificate if parent is None else parent)
    except (InvalidSignature, ValueError, TypeError) as exc:
        # enforces case 75
        raise IssuerUnfit("issuer_chain", f"the certificate of {name} is not signed by the CA above it") from exc


def issuer_name(realm: str, family: str, generation: int) -> str:
    """The issuer's word in URLs, such as `default-ec-1`."""
    return f"{realm}-{family}-{generation}"


def newest_active(issuers: Iterable[Issuer], family: str) -> Issuer | None:
    """The active issuer of the family with the highest generation, None without any."""
    active = [issuer for issuer in issuers if issuer.family == family and issuer.state == "active"]
    return max(active, key=lambda issuer: issuer.generation, default=None)


class Issuers:
    """Reads issuers. Those of a realm are kept in memory per edition: whatever changes them makes a new version."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._kept: dict[int, tuple[tuple[int, int], tuple[Issuer, ...]]] = {}

    async def of_realm(self, realm_id: int, edition: tuple[int, int]) -> tuple[Issuer, ...]:
        """The issuers of a realm, its root first, as of an edition: its version, and when that was made.

        The root is another realm's where a realm stands under a shared one.
        """
        kept = self._kept.get(realm_id)
        if kept is None or kept[0] != edition:
            rows = await self._store.fetch(_OF_REALM, realm_id=realm_id)
            kept = self._kept[realm_id] = (edition, tuple(_issuer(row) for row in rows))
        return kept[1]

    def forget(self) -> None:
        """Read them again at the next use."""
        self._kept.clear()

    async def by_name(self, name: str) -> Issuer | None:
        """The issuer with this name, as the store has it now."""
        row = await self._store.first(_BY_NAME, name=name)
        return _issuer(row) if row else None

    async def all(self) -> list[Issuer]:
        """Every issuer of every realm, oldest first."""
        return [_issuer(row) for row in await self._store.fetch(_ALL)]


def _issuer(row: Row) -> Issuer:
    return Issuer(
        id=row[0],
        realm_id=row[1],
        name=row[2],
        family=row[3],
        generation=row[4],
        state=row[5],
        key_name=row[6],
        der=row[7],
        not_after=from_ms(row[8]),
        revocations=row[9],
        parent_id=row[10],
        certificate=x509.load_der_x509_certificate(row[7]),
    )
