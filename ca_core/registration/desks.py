"""CRLs and CA certificates by name, for publication and operators."""

import hashlib
import logging
from collections.abc import Sequence

from cryptography import x509

from ca_core.authority.crl import Crls
from ca_core.authority.issuer import Issuer, Issuers
from ca_core.errors import OperatorError, SealingFailed, SignerUnavailable
from ca_core.public_key import check_public_key, describe_key
from ca_core.records.times import rfc3339
from ca_core.registration.realm import Realms
from ca_core.rows import CrlRow, IssuerRow, Revocation

_LOG = logging.getLogger(__name__)


class CrlDesk:
    """CRLs by issuer name, for publication and operators."""

    def __init__(self, crls: Crls, issuers: Issuers, realms: Realms) -> None:
        self._crls = crls
        self._issuers = issuers
        self._realms = realms
        self._complained: set[str] = set()

    async def publish(
        self, issuer: str | None = None, *, only_due: bool = False, redate: bool = False, actor: str = "enrolld"
    ) -> list[CrlRow]:
        """Sign and store the next CRL of one issuer or of all; with `only_due`, of those that need one.

        With `redate`, of those whose newest is dated later than now, which is then dated back; see `ClockDesk`.
        Raises `OperatorError`, `Unavailable`, and `SealingFailed` or `SignerUnavailable` after all others were made;
        with `only_due`, the work of the daemon, those are logged instead.
        """
        names = await self._realm_names()
        rows: list[CrlRow] = []
        failed: list[SealingFailed | SignerUnavailable] = []
        for found in await self._chosen(issuer):
            if only_due and not await self._crls.is_due(found):  # enforces case 53
                continue
            if redate and not await self._crls.is_ahead(found):
                continue
            try:
                await self._crls.publish(found, actor=actor, redate=redate)
            except (SealingFailed, SignerUnavailable) as exc:
                # One realm whose key or HSM is lost must not keep the others' revocations from being published.
                failed.append(exc)
                if only_due and found.name not in self._complained:
                    self._complained.add(found.name)
                    _LOG.error("no CRL of %s can be published: %s", found.name, exc)
                continue
            self._complained.discard(found.name)
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
        return await self._crls.der(found) if found else None

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
        every = await self._issuers.all()
        called = {found.id: found.name for found in every}
        return [
            _issuer_row(found, names.get(found.realm_id, ""), called.get(found.parent_id or 0))
            for found in every
            if chosen is None or found.realm_id == chosen
        ]

    async def export(self, realm: str) -> Sequence[bytes]:
        """The realm's CA certificates, DER, root first. Raises `OperatorError`."""
        found = await self._realms.get(realm)
        return [each.der for each in await self._issuers.of_realm(found.id, found.edition)]

    async def certificate(self, issuer: str) -> bytes | None:
        """The CA certificate with this name, DER; None when there is no such issuer."""
        found = await self._issuers.by_name(issuer)
        return found.der if found else None


def _issuer_row(found: Issuer, realm: str, parent: str | None) -> IssuerRow:
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
        parent=parent,
    )
