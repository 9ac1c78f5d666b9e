"""The inventory of issued certificates, and their revocation."""

import json
from collections.abc import Sequence
from dataclasses import replace

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding
from sqlalchemy import ColumnElement, bindparam, select

from ca_core.authority.revocation import parse_reason, revocation_unit
from ca_core.errors import ConditionFailed, OperatorError
from ca_core.model import Clock
from ca_core.names import parse_after, parse_serial
from ca_core.records.query import Query, Row
from ca_core.records.schema import certificate, issuer
from ca_core.records.schema import device as device_table
from ca_core.records.schema import realm as realm_table
from ca_core.records.store import Store
from ca_core.records.times import from_ms, rfc3339, to_ms
from ca_core.registration.realm import Realms
from ca_core.registration.renewal import expects_none
from ca_core.rows import CertificateRow, Revocation

_c = certificate.c
_COLUMNS = (
    _c.id,
    _c.serial,
    issuer.c.name,
    realm_table.c.name,
    _c.profile,
    device_table.c.name,
    _c.subject,
    _c.names,
    _c.not_before,
    _c.not_after,
    _c.status,
    _c.revoked_at,
    _c.reason,
    _c.fingerprint,
    _c.key,
    _c.protocol,
    _c.realm_id,
    _c.issuer_id,
    _c.spki_sha256,
    _c.kind,
    _c.device_id,
)
_FROM = (
    certificate.join(realm_table, realm_table.c.id == _c.realm_id)
    .join(issuer, (issuer.c.realm_id == _c.realm_id) & (issuer.c.id == _c.issuer_id))
    .outerjoin(device_table, (device_table.c.realm_id == _c.realm_id) & (device_table.c.id == _c.device_id))
)
_SELECT = select(*_COLUMNS).select_from(_FROM)
_FILTERS: dict[str, ColumnElement[bool]] = {
    "realm_id": _c.realm_id == bindparam("realm_id"),
    "device_name": device_table.c.name == bindparam("device_name"),
    "status": _c.status == bindparam("status"),
    "not_yet": _c.not_before > bindparam("not_yet"),
}
_LISTS: dict[tuple[str, ...], Query] = {}
_BY_SERIAL = Query(_SELECT.where(_c.serial == bindparam("serial")).order_by(_c.id).limit(100))
_BY_ID = Query(_SELECT.where(_c.id == bindparam("id")))
_DER = Query(select(_c.der).where(_c.id == bindparam("id")))
_COUNT = Query(select(issuer.c.revocations).where(issuer.c.id == bindparam("issuer_id")))


class Certificates:
    """Lists, finds and revokes device certificates."""

    def __init__(self, store: Store, realms: Realms, clock: Clock) -> None:
        self._store = store
        self._realms = realms
        self._clock = clock

    async def list(
        self,
        *,
        realm: str | None = None,
        device: str | None = None,
        status: str | None = None,
        not_yet_valid: bool = False,
        limit: int,
        after: str | None = None,
    ) -> list[CertificateRow]:
        """Device certificates in the order they were issued, from after the row with the id `after`."""
        params: dict[str, int | str | bytes | None] = {"after": parse_after(after), "limit": limit}
        if realm is not None:
            params["realm_id"] = (await self._realms.get(realm)).id
        if device is not None:
            params["device_name"] = device
        if status is not None:
            params["status"] = status
        if not_yet_valid:
            params["not_yet"] = to_ms(self._clock())
        query = _list_query(tuple(name for name in _FILTERS if name in params))
        return [_certificate(row) for row in await self._store.fetch(query, **params)]

    async def find(self, serial: str, *, realm: str | None = None) -> CertificateRow:
        """The certificate with a serial number in any of its text forms. Raises `OperatorError`, also for two."""
        return _certificate(await self._find(serial, realm))

    async def pem(self, row: CertificateRow) -> str:
        """The certificate itself, PEM."""
        found = await self._store.first(_DER, id=int(row.id))
        if found is None:
            raise _gone()
        return x509.load_der_x509_certificate(found[0]).public_bytes(Encoding.PEM).decode()

    async def revoke(
        self, serial: str, *, reason: str = "unspecified", realm: str | None = None, actor: str
    ) -> Revocation:
        """Revoke a device's certificate, or an RA's, in whose place the running daemon makes one with another key.

        When this returns, it renews nothing any more. Raises `OperatorError`.
        """
        reason = parse_reason(reason)
        row = await self._find(serial, realm)
        unit = revocation_unit(
            realm_id=row[16],
            realm=row[3],
            certificate_id=row[0],
            issuer_id=row[17],
            serial=row[1],
            spki_sha256=row[18],
            device=row[5],
            reason=reason,
            now=self._clock(),
            actor=actor,
        )
        if row[20] is not None:
            unit = replace(unit, steps=(*unit.steps, expects_none(row[16], row[20], row[0])))
        try:
            await self._store.commit(unit)
        except ConditionFailed as exc:
            raise OperatorError(
                "certificate_revoked", f"the certificate {row[1]} is revoked already", "'enrolld cert show' tells when"
            ) from exc
        return await self.revocation(row[0])

    async def revocation(self, certificate_id: int) -> Revocation:
        """The revocation of a certificate (the id of its row), which is durable."""
        row = await self._store.first(_BY_ID, id=certificate_id)
        if row is None:
            raise _gone()
        count = await self._store.first(_COUNT, issuer_id=row[17])
        return Revocation(certificate=_certificate(row), issuer=row[2], sequence=int(count[0]) if count else 0)

    async def _find(self, serial: str, realm: str | None) -> Row:
        canonical = parse_serial(serial)
        rows: Sequence[Row] = await self._store.fetch(_BY_SERIAL, serial=canonical)
        if realm is not None:  # enforces case 44
            realm_id = (await self._realms.get(realm)).id
            rows = [row for row in rows if row[16] == realm_id]
        if not rows:
            raise OperatorError(
                "certificate_unknown", f"there is no certificate {canonical}", "'enrolld cert list' shows all"
            )
        if len(rows) > 1:  # enforces case 44
            places = ", ".join(f"{row[2]} (realm {row[3]})" for row in rows)
            raise OperatorError("serial_ambiguous", f"{canonical} is a serial of: {places}", "name one with --realm")
        if rows[0][19] not in ("device", "ra"):  # enforces case 44
            raise OperatorError(
                "certificate_infrastructure",
                f"{canonical} belongs to enrolld itself",
                "'enrolld ca list' shows the CAs; their certificates are not revoked here",
            )
        return rows[0]


def _gone() -> OperatorError:
    return OperatorError("certificate_unknown", "the certificate is gone", "look into the audit trail")


def _list_query(filters: tuple[str, ...]) -> Query:
    query = _LISTS.get(filters)
    if query is None:
        clauses = [_FILTERS[name] for name in filters]
        statement = _SELECT.where(_c.kind == "device", _c.id > bindparam("after"), *clauses)
        query = _LISTS[filters] = Query(statement.order_by(_c.id).limit(bindparam("limit")))
    return query


def _certificate(row: Row) -> CertificateRow:
    return CertificateRow(
        id=str(row[0]),
        serial=row[1],
        issuer=row[2],
        realm=row[3],
        profile=row[4],
        device=row[5],
        subject=row[6],
        names=json.loads(row[7]),
        not_before=rfc3339(from_ms(row[8])),
        not_after=rfc3339(from_ms(row[9])),
        status=row[10],
        revoked_at=rfc3339(from_ms(row[11])) if row[11] is not None else None,
        reason=row[12],
        fingerprint_sha256=row[13].hex(),
        key=row[14],
        protocol=row[15],
    )
