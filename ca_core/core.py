"""The core as one object: opens the store and the keys, and hands the rooms to the protocols and the command line."""

import hashlib
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import metadata
from typing import Self

from cryptography import x509
from sqlalchemy import func, select

from ca_core.authority.crl import Crls
from ca_core.authority.issuance import Issuance
from ca_core.authority.issuer import Issuer, Issuers
from ca_core.authority.sealing import UnlockKey
from ca_core.errors import CoreError, OperatorError, SealingFailed
from ca_core.model import Clock
from ca_core.names import DEFAULT_REALM
from ca_core.public_key import check_public_key, describe_key
from ca_core.records.leases import Leases
from ca_core.records.opening import create_store, exists, open_store
from ca_core.records.query import Query
from ca_core.records.schema import certificate, device
from ca_core.records.schema import realm as realm_table
from ca_core.records.store import Hook, Store
from ca_core.records.times import rfc3339, utc_now
from ca_core.registration.administration import RealmAdministration
from ca_core.registration.attempts import Attempts
from ca_core.registration.certificates import Certificates
from ca_core.registration.realm import Realms, Resolved
from ca_core.registration.registry import Devices
from ca_core.registration.request import Registration
from ca_core.registration.servers import SHARED, ServerCertificates
from ca_core.registration.trust import Trust
from ca_core.rows import CrlRow, Finding, IssuerRow, RealmStatus, Revocation, Status

_LOG = logging.getLogger(__name__)

VERSION = metadata.version("enrolld")

_DEVICES = Query(
    select(realm_table.c.name, device.c.state, func.count())
    .join(device, device.c.realm_id == realm_table.c.id)
    .group_by(realm_table.c.name, device.c.state)
)
_CERTIFICATES = Query(
    select(realm_table.c.name, certificate.c.status, func.count())
    .join(certificate, certificate.c.realm_id == realm_table.c.id)
    .where(certificate.c.kind == "device")
    .group_by(realm_table.c.name, certificate.c.status)
)


@dataclass(frozen=True, slots=True)
class CoreConfig:
    """What a core is opened with.

    `store_url` is `sqlite:///PATH`; without `unlock_key` nothing can be signed; `public_url` is where relying parties
    fetch CRLs (`http://host[:port]`); `demo` limits certificates to seven days; `process` (serve, cli) stands in the
    audit trail.
    """

    store_url: str
    unlock_key: UnlockKey | None
    public_url: str
    demo: bool
    clock: Clock = utc_now
    process: str = "cli"
    hook: Hook | None = None


class Core:
    """All rooms of the core over one store."""

    def __init__(self, config: CoreConfig, store: Store) -> None:
        self.config = config
        self.store = store
        clock = config.clock
        self.issuance = Issuance(store, config.unlock_key)
        self._issuers = Issuers(store)
        self.realms = RealmAdministration(store, self.issuance, clock, config.public_url)
        self.trust = Trust(self.realms)
        self.attempts = Attempts(store)
        self.registration = Registration(
            store,
            self.realms,
            self._issuers,
            self.issuance,
            self.attempts,
            clock=clock,
            public_url=config.public_url,
            demo=config.demo,
        )
        self.devices = Devices(store, self.realms, self.attempts, clock)
        self.certificates = Certificates(store, self.realms, clock)
        self._crls = Crls(store, self._issuers, self.issuance, clock)
        self.crls = CrlDesk(self._crls, self._issuers, self.realms)
        self.issuers = IssuerDesk(self._issuers, self.realms)
        self.server_certificates = ServerCertificates(
            store, self.realms, self._issuers, self.issuance, clock, config.public_url
        )
        self.leases = Leases(store, clock)

    @classmethod
    def open(cls, config: CoreConfig) -> Self:
        """Open an existing installation. Raises `OperatorError`, `Unavailable`."""
        return cls(config, open_store(config.store_url, process=config.process, version=VERSION, hook=config.hook))

    @classmethod
    async def create(cls, config: CoreConfig) -> Self:
        """Make what is missing (store, schema, default realm, first CRLs) and open it. Raises `OperatorError`."""
        create_store(config.store_url)
        core = cls.open(config)
        try:
            if DEFAULT_REALM not in await core.realms.current():
                await core.realms.add(DEFAULT_REALM, actor="enrolld")
            if core.issuance.can_sign:
                await core.crls.publish(only_due=True)
        except BaseException:
            core.close()
            raise
        return core

    @staticmethod
    def exists(store_url: str) -> bool:
        """Whether there is an installation at `store_url`."""
        return exists(store_url)

    def close(self) -> None:
        """Write what is queued, and let go of the store."""
        self.store.close()

    async def ca_certificates(self, resolved: Resolved) -> list[bytes]:
        """The realm's root and every issuing CA certificate, DER, root first (RFC 7030 4.1.3)."""
        realm = resolved.realm
        return [found.der for found in await self._issuers.of_realm(realm.id, realm.version)]

    async def clock_is_behind(self) -> bool:
        """Whether this machine's clock stands before the store's newest event, so that nothing is issued."""
        return await self.registration.clock_is_behind()

    async def check(self, names: Sequence[str] = ()) -> list[Finding]:
        """Look at everything that could keep devices from enrolling. Empty when all is well."""
        findings: list[Finding] = []
        if await self.clock_is_behind():
            text = "this machine's clock stands before the store's newest event, so nothing is issued"
            findings.append(_finding("error", "clock_behind", text, "set the clock"))
        for found in await self._issuers.all():
            findings += await self._check_issuer(found)
        if self.issuance.can_sign:
            try:
                await self.server_certificates.refresh()
            except CoreError as exc:
                findings.append(_finding("error", "server_key", str(exc), "restore the store, or its unlock key"))
        findings += await self._check_hosts(names)
        if self.config.demo and not names:
            findings.append(
                _finding(
                    "info",
                    "demo",
                    "the server has no name, so certificates are valid for 7 days",
                    "start it with --name pki.example.com, or set 'names' in enrolld.toml",
                )
            )
        return findings

    async def status(self) -> Status:
        """The installation at a glance."""
        realms: dict[str, RealmStatus] = {
            name: RealmStatus(realm=name, devices={}, certificates={}) for name in await self.realms.current()
        }
        for name, state, count in await self.store.fetch(_DEVICES):
            realms[name].devices[state] = count
        for name, state, count in await self.store.fetch(_CERTIFICATES):
            realms[name].certificates[state] = count
        return Status(
            version=VERSION,
            store=self.config.store_url,
            demo=self.config.demo,
            public_url=self.config.public_url,
            realms=list(realms.values()),
            crls=await self.crls.list(),
        )

    async def _check_issuer(self, found: Issuer) -> list[Finding]:
        findings: list[Finding] = []
        if self.issuance.can_sign:
            try:
                await self.issuance.check_key(found)
            except CoreError as exc:
                remedy = "give the unlock key that this store was made with"
                findings.append(_finding("error", "issuer_key", str(exc), remedy))
        now = self.config.clock()
        left = found.not_after - now
        if left.days < 365:
            findings.append(
                _finding(
                    "warning", "issuer_expires", f"{found.name} expires {rfc3339(found.not_after)}", "plan its rollover"
                )
            )
        newest = await self._crls.latest(found)
        if newest is None:
            findings.append(_finding("error", "crl_missing", f"{found.name} has no CRL", "run 'enrolld crl publish'"))
        elif newest.next_update <= now:
            text = f"the CRL of {found.name} expired {rfc3339(newest.next_update)}"
            findings.append(_finding("error", "crl_expired", text, "run 'enrolld serve', or 'enrolld crl publish'"))
        elif newest.revocations < found.revocations:
            text = f"{found.revocations - newest.revocations} revocations of {found.name} are not in its CRL"
            findings.append(_finding("error", "crl_behind", text, "run 'enrolld crl publish'"))
        return findings

    async def _check_hosts(self, names: Sequence[str]) -> list[Finding]:
        own = {name.lower().removesuffix(".") for name in names}
        taken = [
            _finding(
                "error",
                "host_taken",
                f"{host} is this server's own name and a host of realm {found.name}, so no other realm can use it",
                f"take it out of 'hosts' of realm {found.name}, or give this server another name",
            )
            for found in (await self.realms.current()).values()
            for host in found.document.hosts
            if host in own and found.state == "active"
        ]
        return taken + [
            _finding(
                "warning",
                "realm_without_host",
                f"devices that trust only the root of realm {found.name} can't verify this server",
                f"give it one: 'hosts' in 'enrolld realm export {found.name}', then 'realm apply'",
            )
            for found in (await self.realms.current()).values()
            if found.name != DEFAULT_REALM and found.state == "active" and not found.document.hosts
        ]


class CrlDesk:
    """CRLs by issuer name, for publication and operators."""

    def __init__(self, crls: Crls, issuers: Issuers, realms: Realms) -> None:
        self._crls = crls
        self._issuers = issuers
        self._realms = realms
        self._complained: set[str] = set()

    async def publish(
        self, issuer: str | None = None, *, only_due: bool = False, actor: str = "enrolld"
    ) -> list[CrlRow]:
        """Sign and store the next CRL of one issuer or of all; with `only_due`, of those that need one.

        Raises `OperatorError`, `Unavailable`, and `SealingFailed` after all others were made; with `only_due`, the
        work of the daemon, that is logged instead.
        """
        names = await self._realm_names()
        rows: list[CrlRow] = []
        failed: list[SealingFailed] = []
        for found in await self._chosen(issuer):
            if only_due and not await self._crls.is_due(found):
                continue
            try:
                await self._crls.publish(found, actor=actor)
            except SealingFailed as exc:
                # One realm whose key is lost must not keep the others' revocations from being published.
                failed.append(exc)
                if only_due and found.name not in self._complained:
                    self._complained.add(found.name)
                    _LOG.error("no CRL of %s can be published: %s", found.name, exc)
                continue
            row = await self._row(found, names)
            if row is not None:
                rows.append(row)
        if failed and not only_due:
            raise failed[0]
        return rows

    async def due(self) -> list[str]:
        """Issuers whose newest CRL lacks a revocation, or is a day old."""
        return [found.name for found in await self._issuers.all() if await self._crls.is_due(found)]

    async def is_published(self, revocation: Revocation) -> bool:
        """Whether a stored CRL lists the revocation."""
        found = await self._issuers.by_name(revocation.issuer)
        return found is not None and await self._crls.covers(found.id, revocation.sequence)

    async def list(self) -> list[CrlRow]:
        """The newest CRL of each issuer."""
        names = await self._realm_names()
        rows = [await self._row(found, names) for found in await self._issuers.all()]
        return [row for row in rows if row is not None]

    async def latest(self, issuer: str) -> bytes | None:
        """The newest CRL, DER; None when there is no such issuer or CRL."""
        found = await self._issuers.by_name(issuer)
        newest = await self._crls.latest(found) if found else None
        return newest.der if newest else None

    async def _chosen(self, issuer: str | None) -> Sequence[Issuer]:
        if issuer is None:
            return await self._issuers.all()
        found = await self._issuers.by_name(issuer)
        if found is None:
            raise OperatorError(
                "issuer_unknown", f"there is no issuer '{ascii(issuer[:80])[1:-1]}'", "'enrolld ca list' shows all"
            )
        return [found]

    async def _realm_names(self) -> dict[int, str]:
        return {found.id: found.name for found in (await self._realms.current()).values()}

    async def _row(self, found: Issuer, names: dict[int, str]) -> CrlRow | None:
        newest = await self._crls.latest(found)
        if newest is None:
            return None
        return CrlRow(
            id=found.name,
            issuer=found.name,
            realm=names.get(found.realm_id, ""),
            number=newest.number,
            this_update=rfc3339(newest.this_update),
            next_update=rfc3339(newest.next_update),
            entries=newest.entries,
        )


class IssuerDesk:
    """CA certificates, for publication and operators."""

    def __init__(self, issuers: Issuers, realms: Realms) -> None:
        self._issuers = issuers
        self._realms = realms

    async def list(self, realm: str | None = None) -> list[IssuerRow]:
        """The issuers of one realm or of all, roots first within a realm. Raises `OperatorError`."""
        names = {found.id: found.name for found in (await self._realms.current()).values()}
        chosen = (await self._realms.get(realm)).id if realm is not None else None
        return [
            _issuer_row(found, names.get(found.realm_id, ""))
            for found in await self._issuers.all()
            if chosen is None or found.realm_id == chosen
        ]

    async def export(self, realm: str) -> Sequence[bytes]:
        """The realm's CA certificates, DER, root first. Raises `OperatorError`."""
        found = await self._realms.get(realm)
        return [each.der for each in await self._issuers.of_realm(found.id, found.version)]

    async def certificate(self, issuer: str) -> bytes | None:
        """The CA certificate with this name, DER; None when there is no such issuer."""
        found = await self._issuers.by_name(issuer)
        return found.der if found else None


def _issuer_row(found: Issuer, realm: str) -> IssuerRow:
    held: x509.Certificate = found.certificate
    return IssuerRow(
        id=found.name,
        issuer=found.name,
        realm=realm,
        family=found.family,
        generation=found.generation,
        state=found.state,
        subject=held.subject.rfc4514_string(),
        not_before=rfc3339(held.not_valid_before_utc),
        not_after=rfc3339(held.not_valid_after_utc),
        fingerprint_sha256=hashlib.sha256(found.der).hexdigest(),
        key=describe_key(check_public_key(held.public_key())),
    )


def _finding(severity: str, code: str, message: str, remedy: str) -> Finding:
    return Finding(severity=severity, code=code, message=message, remedy=remedy)


__all__ = ["SHARED", "VERSION", "Core", "CoreConfig", "CrlDesk", "IssuerDesk"]
