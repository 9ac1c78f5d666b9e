"""enrolld's own TLS server certificates: one per host of a realm, and one for every other name (the shared host).

A realm's own host has a certificate under that realm's root, so that a device which trusts nothing else can verify the
server. They are kept in the store, so that all workers and nodes show the same one, and are renewed in time.
"""

import datetime as dt
import ipaddress
import json
import logging
import socket
from collections.abc import Sequence
from dataclasses import dataclass, field

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.x509.oid import NameOID
from sqlalchemy import bindparam, select

from ca_core.authority.ceremony import key_step
from ca_core.authority.issuance import Issuance
from ca_core.authority.issuer import Issuers, newest_active
from ca_core.authority.plan import SERVER_AUTH, CertificatePlan, validity
from ca_core.authority.record import certificate_row
from ca_core.authority.sealing import PrivateKey
from ca_core.errors import ConditionFailed, InternalError, OperatorError, SealingFailed
from ca_core.limits import Complaints
from ca_core.model import Clock, format_serial
from ca_core.names import DEFAULT_REALM, parse_host
from ca_core.public_key import describe_key
from ca_core.records.audit import AuditEvent
from ca_core.records.query import Query, Values, insert_into
from ca_core.records.schema import certificate, issuer, server_certificate
from ca_core.records.store import Store
from ca_core.records.times import from_ms, to_ms
from ca_core.records.unit import Guard, Step, Unit, guarded_insert
from ca_core.registration.moment import Watch
from ca_core.registration.realm import SAME_VERSION, Realm, Realms

_LOG = logging.getLogger(__name__)

SHARED = "*"
LIFETIME = dt.timedelta(days=90)
RENEW_BEFORE = dt.timedelta(days=30)
_WORTHWHILE = dt.timedelta(hours=1)

_w = server_certificate.c
_KEPT = Query(
    select(
        _w.realm_id,
        _w.host,
        _w.names,
        _w.not_after,
        _w.key_name,
        certificate.c.der,
        issuer.c.der,
        certificate.c.id,
        certificate.c.not_before,
    )
    .join(certificate, (certificate.c.realm_id == _w.realm_id) & (certificate.c.id == _w.certificate_id))
    .join(issuer, (issuer.c.realm_id == certificate.c.realm_id) & (issuer.c.id == certificate.c.issuer_id))
)
# Of two nodes that find the same certificate due, one makes it: it must still be the one that was found due.
_current = server_certificate.alias("current").c
_STILL_DUE = (
    select(_current.certificate_id)
    .where(
        _current.realm_id == bindparam("realm_id"),
        _current.host == bindparam("host"),
        _current.certificate_id != bindparam("found_id"),
    )
    .exists()
)
_INSERT, _INSERT_WHY = guarded_insert(certificate, {"realm_version": SAME_VERSION, "still_due": ~_STILL_DUE})
_FORGET = Query(
    server_certificate.delete().where(_w.realm_id == bindparam("of_realm"), _w.host == bindparam("of_host"))
)
_KEEP = Query(insert_into(server_certificate).values(certificate_id=bindparam("guard_id")))


@dataclass(frozen=True, slots=True)
class ServerIdentity:
    """What a listener shows: `chain` is DER, leaf first, without the root; `fingerprint` is SHA-256 of the leaf."""

    chain: tuple[bytes, ...] = field(repr=False)
    private_key: PrivateKey = field(repr=False)
    ask_client_certificate: bool
    fingerprint: bytes
    names: tuple[str, ...]
    realm: str
    not_after: dt.datetime


class ServerCertificates:
    """Issues, renews and selects server certificates.

    `is_shared` says that several nodes show the same ones. Then the shared host's keeps every name that it has: a node
    with other names adds its own, and takes none from the others.
    """

    def __init__(
        self,
        store: Store,
        realms: Realms,
        issuers: Issuers,
        issuance: Issuance,
        clock: Clock,
        public_url: str,
        *,
        is_shared: bool = False,
    ) -> None:
        self._is_shared = is_shared
        self._store = store
        self._realms = realms
        self._issuers = issuers
        self._issuance = issuance
        self._clock = clock
        self._watch = Watch(store, clock)
        self._public_url = public_url
        self._shown: dict[str, ServerIdentity] = {}
        self._complaints = Complaints(_LOG)

    async def ensure(self, names: Sequence[str]) -> None:
        """Issue what is missing, due, or made for other names. `names` are the shared host's; empty means this machine.

        Raises `OperatorError`, `Unavailable`.
        """
        kept = {(row[0], row[1]): row for row in await self._store.fetch(_KEPT)}
        now = self._clock()
        own = {name.partition(":")[2] for name in shared_names(names)}
        for found in (await self._realms.current()).values():
            if found.state != "active":
                continue
            wanted: dict[str, tuple[str, ...]] = {host: (f"DNS:{host}",) for host in found.document.hosts}
            if found.name == DEFAULT_REALM:
                before = kept.get((found.id, SHARED))
                has = tuple(json.loads(before[2])) if before is not None and self._is_shared else ()
                wanted[SHARED] = tuple(dict.fromkeys((*has, *shared_names(names))))
            taken = set(found.document.hosts) & own if found.name != DEFAULT_REALM else set()
            for host in taken:
                self._complaints.tell(
                    f"{host} is this server's own name and a host of realm {found.name}, which alone has it"
                )
            for host, host_names in wanted.items():
                row = kept.get((found.id, host))
                try:
                    is_other = row is None or tuple(json.loads(row[2])) != host_names
                    if row is None or is_other or await self._watch.is_ahead(row[8]):
                        await self._make(found, host, host_names, row[7] if row else 0, now, None)
                    elif from_ms(row[3]) - now <= RENEW_BEFORE:
                        await self._make(found, host, host_names, row[7], now, from_ms(row[3]))
                except InternalError as exc:
                    if host == SHARED:
                        raise
                    self._complaints.tell(f"no server certificate for {host} of realm {found.name}: {exc}")
        await self.refresh()

    async def refresh(self) -> bool:
        """Read the certificates again. Returns whether any changed."""
        realms = {found.id: found for found in (await self._realms.current()).values()}
        shown: dict[str, ServerIdentity] = {}
        for realm_id, host, names, not_after, key_name, der, issuer_der, _, _ in await self._store.fetch(_KEPT):
            found = realms.get(realm_id)
            if found is None or (host != SHARED and host not in found.document.hosts):
                continue
            leaf = x509.load_der_x509_certificate(der)
            fingerprint = leaf.fingerprint(hashes.SHA256())
            known = self._shown.get(host)
            ask = True if host == SHARED else found.document.ask_client_certificate
            if known is not None and known.fingerprint == fingerprint and known.ask_client_certificate == ask:
                shown[host] = known
                continue
            public_key = leaf.public_key()
            try:
                key = await self._issuance.server_key(
                    key_name,
                    public_key,  # type: ignore[arg-type]  # made by `_make`: EC
                )
            except SealingFailed as exc:
                # One realm whose key is lost must not stop the others.
                if host == SHARED:
                    raise
                self._complaints.tell(f"the server certificate for {host} of realm {found.name} can't be shown: {exc}")
                continue
            shown[host] = ServerIdentity(
                (der, issuer_der), key, ask, fingerprint, tuple(json.loads(names)), found.name, from_ms(not_after)
            )
        changed = {h: i.fingerprint for h, i in shown.items()} != {h: i.fingerprint for h, i in self._shown.items()}
        asks = {h: i.ask_client_certificate for h, i in shown.items()}
        changed = changed or asks != {h: i.ask_client_certificate for h, i in self._shown.items()}
        self._shown = shown
        return changed

    def covers(self, names: Sequence[str]) -> bool:
        """Whether the shared host's certificate has all names of this node; without one there is nothing to add to."""
        shown = self._shown.get(SHARED)
        return shown is None or not self._is_shared or set(shared_names(names)) <= set(shown.names)

    def select(self, server_name: str | None) -> ServerIdentity:
        """What to show a client that sent the SNI `server_name` (lower case), None without. Raises `InternalError`."""
        found = self._shown.get(server_name or SHARED) or self._shown.get(SHARED)
        if found is None:
            raise InternalError("there is no server certificate yet: run 'enrolld serve'")
        return found

    def all(self) -> dict[str, ServerIdentity]:
        """What is shown, by host; `*` is the shared host."""
        return dict(self._shown)

    async def _make(
        self,
        found: Realm,
        host: str,
        names: tuple[str, ...],
        found_id: int,
        now: dt.datetime,
        shown_until: dt.datetime | None,
    ) -> None:
        issuers = await self._issuers.of_realm(found.id, found.edition)
        chosen = newest_active(issuers, "ec")
        if chosen is None:
            raise InternalError(f"realm {found.name} has no active issuer for its server certificate")
        if shown_until is not None and min(now + LIFETIME, chosen.not_after) <= shown_until + _WORTHWHILE:
            return  # the issuer itself ends: a new certificate would last no longer
        key = await self._issuance.new_key("p-256")
        not_before, not_after = validity(now, LIFETIME, chosen.not_after)
        title = names[0].partition(":")[2]
        plan = CertificatePlan(
            # A CN has at most 64 characters (RFC 5280 ub-common-name); clients read the SAN.
            subject=x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, title)] if len(title) <= 64 else []),
            public_key=key.public_key,
            not_before=not_before,
            not_after=not_after,
            names=names,
            extended_key_usage=(SERVER_AUTH,),
        )
        signed = await self._issuance.issue(plan, chosen, found.document.public_url or self._public_url)
        at, serial = to_ms(now), format_serial(signed.serial)
        key_name = f"server-{serial}"
        row = certificate_row(
            signed,
            realm_id=found.id,
            issuer_id=chosen.id,
            kind="server",
            profile=None,
            device_id=None,
            protocol="local",
            key=describe_key(key.public_key),
            spki_sha256=key.spki_sha256,
            at=at,
        ) | {**found.facts, "host": host, "found_id": found_id}
        kept: Values = {
            "realm_id": found.id,
            "host": host,
            "key_name": key_name,
            "names": json.dumps(names),
            "not_after": to_ms(not_after),
            "created_at": at,
        }
        steps = (
            key_step(key_name, "server", key, at),
            Step(_FORGET, {"of_realm": found.id, "of_host": host}, expect=None),
            Step(_KEEP, kept),
        )
        event = AuditEvent(
            "server_certificate.issued",
            "enrolld",
            realm=found.name,
            serial=serial,
            details={"host": host, "names": list(names), "issuer": chosen.name},
        )
        try:
            await self._store.commit(Unit(Guard(_INSERT, row, _INSERT_WHY), at, steps, (event,)))
        except ConditionFailed:
            return  # another node made it, or the realm has changed: the next round looks again
        shown = ", ".join(name.partition(":")[2] for name in names)
        _LOG.info("a server certificate for %s of realm %s was issued: %s", shown, found.name, serial)


def shared_names(names: Sequence[str]) -> tuple[str, ...]:
    """The SANs of the shared host: the given names, else everything that means this machine. Raises `OperatorError`."""
    if names:
        return tuple(dict.fromkeys(_san(name) for name in names))
    found = ["DNS:localhost", "IP:127.0.0.1", "IP:::1"]
    try:
        own = f"DNS:{parse_host(socket.gethostname())}"
    except OperatorError:
        return tuple(found)
    return tuple(dict.fromkeys([*found, own]))


def _san(name: str) -> str:
    try:
        return f"IP:{ipaddress.ip_address(name.strip('[]'))}"
    except ValueError:
        return f"DNS:{parse_host(name)}"
