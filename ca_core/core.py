"""The core as one object: opens the store and the keys, and hands the rooms to the protocols and the command line."""

from collections.abc import Sequence
from dataclasses import dataclass
from importlib import metadata
from typing import Self

from ca_core.authority.crl import Crls
from ca_core.authority.hsm import Hsm
from ca_core.authority.issuance import Issuance, prove_token
from ca_core.authority.issuer import Issuers
from ca_core.authority.pin import HsmSettings
from ca_core.authority.sealing import UnlockKey
from ca_core.gate import Gate
from ca_core.limits import RateLimits, Rates, source_of
from ca_core.meter import NO_METER, Meter
from ca_core.model import Clock
from ca_core.names import DEFAULT_REALM
from ca_core.records.leases import Leases
from ca_core.records.opening import create_store, exists, is_shared, open_store, shown
from ca_core.records.place import Headroom
from ca_core.records.sqlite import SqliteStore
from ca_core.records.store import CLOCK_LEEWAY, Hook, Store
from ca_core.records.times import utc_now
from ca_core.registration.administration import RealmAdministration
from ca_core.registration.admission.webhook import Webhook
from ca_core.registration.attempts import Attempts
from ca_core.registration.audit_desk import AuditDesk
from ca_core.registration.certificates import Certificates
from ca_core.registration.checkup import Checkup
from ca_core.registration.clock_desk import ClockDesk
from ca_core.registration.desks import CrlDesk, IssuerDesk
from ca_core.registration.device_import import DeviceImport
from ca_core.registration.figures import Figures, read_figures
from ca_core.registration.profile import CHANCE, Chance
from ca_core.registration.ra import RaCertificates, RaIdentity
from ca_core.registration.realm import Resolved
from ca_core.registration.registry import Devices
from ca_core.registration.request import Registration
from ca_core.registration.request_desk import RequestDesk
from ca_core.registration.servers import SHARED, ServerCertificates
from ca_core.registration.tolerances import tolerances_used
from ca_core.registration.trust import Trust
from ca_core.rows import Finding, RealmStatus, Status

VERSION = metadata.version("enrolld")


@dataclass(frozen=True, slots=True)
class CoreConfig:
    """What a core is opened with.

    `store_url` is `sqlite:///PATH` or `postgresql://...`; without `unlock_key` nothing can be signed; `public_url` is
    where relying parties fetch CRLs (`http://host[:port]`); `demo` limits certificates to seven days; `process` (serve,
    cli) stands in the audit trail; `meter` is told what is to be counted. `rates` limits how often somebody may ask,
    and `waiting` how many requests wait for their turn. `webhook` asks the realms' webhooks. `chance` shortens
    lifetimes where a profile wants that. `hsm` is how keys in a HSM are reached.
    """

    store_url: str
    unlock_key: UnlockKey | None
    public_url: str
    demo: bool
    clock: Clock = utc_now
    process: str = "cli"
    hook: Hook | None = None
    meter: Meter = NO_METER
    rates: RateLimits | None = None
    waiting: int = 512
    webhook: Webhook | None = None
    chance: Chance = CHANCE
    hsm: HsmSettings | None = None


class Core:
    """All rooms of the core over one store."""

    def __init__(self, config: CoreConfig, store: Store) -> None:
        self.config = config
        self.store = store
        clock = config.clock
        self.hsm = Hsm(config.hsm) if config.hsm is not None else None
        self.issuance = Issuance(store, config.unlock_key, config.meter, self.hsm)
        self._issuers = Issuers(store)
        self.rates = Rates(config.rates)
        self.gate = Gate(waiting=config.waiting)
        self.realms = RealmAdministration(store, self._issuers, self.issuance, clock, config.public_url)
        self.trust = Trust(store, self.realms)
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
            rates=self.rates,
            meter=config.meter,
            webhook=config.webhook,
            chance=config.chance,
        )
        self.requests = RequestDesk(store, self.realms, clock, public_url=config.public_url, demo=config.demo)
        self.certificates = Certificates(store, self.realms, clock)
        self.devices = Devices(store, self.realms, self.certificates, self.attempts, clock)
        self.device_import = DeviceImport(store, self.realms, clock)
        self._crls = Crls(store, self._issuers, self.issuance, clock)
        self.crls = CrlDesk(self._crls, self._issuers, self.realms)
        self.issuers = IssuerDesk(self._issuers, self.realms)
        self.server_certificates = ServerCertificates(
            store,
            self.realms,
            self._issuers,
            self.issuance,
            clock,
            config.public_url,
            is_shared=is_shared(config.store_url),
        )
        self.ra_certificates = RaCertificates(
            store, self.realms, self._issuers, self.issuance, clock, config.public_url
        )
        self.leases = Leases(store, clock)
        self.audit = AuditDesk(store, self.realms, clock, VERSION)
        self.clock = ClockDesk(store, clock, self.crls, is_shared=is_shared(config.store_url))

    @classmethod
    def open(cls, config: CoreConfig) -> Self:
        """Open an existing installation. Raises `OperatorError`, `Unavailable`."""
        store = open_store(
            config.store_url,
            process=config.process,
            version=VERSION,
            hook=config.hook,
            meter=config.meter,
            clock=config.clock,
        )
        return cls(config, store)

    @classmethod
    async def create(cls, config: CoreConfig, *, token: str | None = None) -> Self:
        """Make what is missing (store, schema, default realm, first CRLs) and open it.

        The default realm's keys are made in a HSM's `token` if one is named; one that can't have them is told before
        anything is made. Raises `OperatorError`, `HsmUnfit`.
        """
        if token is not None:
            await prove_token(config.hsm, token)
        create_store(config.store_url)
        core = cls.open(config)
        try:
            if DEFAULT_REALM not in await core.realms.current():
                await core.realms.add(DEFAULT_REALM, token=token, actor="enrolld")
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
        """Write what is queued, and let go of the store and the HSM."""
        self.store.close()
        if self.hsm is not None:
            self.hsm.close()

    async def prove_hsm(self) -> None:
        """See that every key in a HSM that an active realm needs can be used. Raises `HsmUnfit`, `Unavailable`."""
        for realm in (await self.realms.current()).values():
            if realm.state == "active":
                for issuer in await self._issuers.of_realm(realm.id, realm.edition):
                    if issuer.state == "active" and await self.issuance.token_of(issuer) is not None:
                        await self.issuance.check_key(issuer)
        await self.ra_certificates.prove()

    @property
    def headroom(self) -> Headroom | None:
        """The disk under an embedded store; None where the store is elsewhere."""
        return self.store.headroom if isinstance(self.store, SqliteStore) else None

    async def enter(self, source: str) -> None:
        """Wait for a turn at what costs; whoever got it calls `leave`. `source` is the peer's address.

        Raises `Overloaded`.
        """
        await self.gate.enter(source_of(source), late=self.rates.is_late(source))

    def leave(self) -> None:
        """The turn is over."""
        self.gate.leave()

    async def ra(self, resolved: Resolved) -> RaIdentity:
        """The realm's RA: what SCEP clients encrypt to. Raises `Unavailable`."""
        return await self.ra_certificates.of_realm(resolved.realm)

    async def ca_certificates(self, resolved: Resolved) -> list[bytes]:
        """The realm's root and every issuing CA certificate, DER, root first (RFC 7030 4.1.3)."""
        realm = resolved.realm
        return [found.der for found in await self._issuers.of_realm(realm.id, realm.edition)]

    async def clock_is_behind(self) -> bool:
        """Whether this machine's clock stands before the store's newest event, so that nothing is issued."""
        return await self.registration.clock_is_behind()

    async def clock_is_off(self) -> bool:
        """Whether this machine's clock differs from the store's by more than a minute, so that nothing is issued."""
        return abs(await self.store.measure_drift()) > CLOCK_LEEWAY

    async def check(self, names: Sequence[str] = ()) -> list[Finding]:
        """Look at everything that could keep devices from enrolling; `names` are this server's. Empty: all is well."""
        checkup = Checkup(
            self.store,
            self.realms,
            self._issuers,
            self._crls,
            self.issuance,
            self.server_certificates,
            self.ra_certificates,
        )
        return await checkup.run(
            names,
            own=await self.realms.own_names(),
            now=self.config.clock(),
            demo=self.config.demo,
            behind=await self.clock_is_behind(),
            off=await self.clock_is_off(),
            shortage=self.store.shortage(),
            weakness=self.store.weakness,
        )

    async def figures(self) -> Figures:
        """What metrics say of the installation, without counting anything. Raises `Unavailable`."""
        return await read_figures(self.store, self.config.clock)

    async def status(self) -> Status:
        """The installation at a glance."""
        realms: dict[str, RealmStatus] = {
            name: RealmStatus(realm=name, devices={}, certificates={}) for name in await self.realms.current()
        }
        figures = await self.figures()
        for (name, state), total in figures.devices.items():
            if total:
                realms[name].devices[state] = total
        for (name, _, state), total in figures.certificates.items():
            if total:
                realms[name].certificates[state] = realms[name].certificates.get(state, 0) + total
        return Status(
            version=VERSION,
            store=shown(self.config.store_url),
            demo=self.config.demo,
            public_url=self.config.public_url,
            realms=list(realms.values()),
            crls=await self.crls.list(),
            tolerances=await tolerances_used(self.store),
        )


__all__ = ["SHARED", "VERSION", "Core", "CoreConfig", "CrlDesk", "IssuerDesk"]
