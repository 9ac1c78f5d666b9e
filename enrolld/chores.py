"""What has to be done now and then: CRLs that are due, server certificates that end, the sums of refusals, audit heads,
requests that ended long ago.

Every worker looks; the one that holds the lease in the store does it. All of them reread what another may have renewed.
"""

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Sequence
from typing import TYPE_CHECKING

from ca_core.errors import CoreError
from enrolld.metrics.counts import Counts
from enrolld.metrics.meter import WorkerMeter
from enrolld.refusal_log import RefusalLog

if TYPE_CHECKING:
    from ca_core.core import Core

__all__ = ["Chores"]

_LOG = logging.getLogger(__name__)

_EVERY = 0.25
_CRLS_EVERY = 1.0
_LEASE_SECONDS = 10
_HOLD_EVERY = 6.0  # each time is a durable commit
_ASK_EVERY = 3.0
_CLOCK_EVERY = 1.0
_CERTIFICATES_EVERY = 5.0
_HEADS_EVERY = 60.0
_REQUESTS_EVERY = 600.0
_EAGER_SECONDS = 5.0  # after a realm has changed, which may have given it a host
_SAME_COMPLAINT_EVERY = 60.0


class Chores:
    """Runs beside the listeners of a worker."""

    def __init__(
        self,
        core: "Core",
        names: Sequence[str],
        refusals: RefusalLog,
        clock: Callable[[], float] = time.monotonic,
        meter: WorkerMeter | None = None,
    ) -> None:
        self._meter = meter or WorkerMeter(Counts())
        self._core = core
        self._names = names
        self._refusals = refusals
        self._clock = clock
        self._holds = False
        self._shortage: str | None = None
        self._versions: set[tuple[int, int]] = set()
        self._eager_until = 0.0
        self._done_at: dict[str, float] = {}
        self._complained_at: dict[str, float] = {}

    async def run(self) -> None:
        """Until cancelled."""
        while True:
            await self.round()
            await asyncio.sleep(_EVERY)

    async def round(self) -> None:
        """Do what is due now."""
        self._refusals.tell_due()
        if self._due("lease", _HOLD_EVERY if self._holds else _ASK_EVERY):
            self._holds = bool(await self._try("lease", "hold the lease", self._hold))
            self._meter.lease(is_held=self._holds)
        if self._holds and self._due("crls", _CRLS_EVERY):
            await self._try("crls", "publish CRLs", self._publish)
        if self._holds and self._due("audit_heads", _HEADS_EVERY):
            await self._try("audit_heads", "make the audit trail's common head", self._head)
        if self._holds and self._due("requests", _REQUESTS_EVERY):
            await self._try("requests", "forget old requests", self._core.requests.forget_old)
        await self._try("realms", "look at the realms", self._watch)
        if self._due("clock", _CLOCK_EVERY):
            await self._try("clock", "compare this machine's clock with the store's", self._core.store.measure_drift)
        self._tell_shortage()
        if self._due("certificates", 0.0 if self._clock() < self._eager_until else _CERTIFICATES_EVERY):
            # Whoever makes them shows them as well; the others reread.
            renew = self._renew if self._holds else self._reread
            await self._try("server_certificates", "renew the server certificates", renew)
            ra = self._core.ra_certificates
            await self._try("ra_certificates", "renew the RA certificates", ra.ensure if self._holds else ra.refresh)

    async def _hold(self) -> bool:
        return await self._core.leases.hold("chores", _LEASE_SECONDS)

    async def _publish(self) -> None:
        for row in await self._core.crls.publish(only_due=True):
            _LOG.info("CRL %d of %s is published, with %d entries", row.number, row.issuer, row.entries)

    async def _head(self) -> None:
        # Told to the log, so that it leaves this machine with it: `audit verify --head` reads these lines.
        for head in await self._core.audit.make_heads():
            _LOG.info("audit head %d is %s", head.number, head.digest)

    async def _watch(self) -> None:
        versions = {(realm.id, realm.version) for realm in (await self._core.realms.current()).values()}
        if versions != self._versions:
            self._versions = versions
            self._eager_until = self._clock() + _EAGER_SECONDS

    def _tell_shortage(self) -> None:
        """Say once that nothing is issued, and once that it is again: no device need ask before the operator knows."""
        shortage = self._core.store.shortage()
        if (shortage is None) != (self._shortage is None):
            if shortage is not None:
                _LOG.error("nothing is issued: %s", shortage)
            else:
                _LOG.info("certificates are issued again")
        self._shortage = shortage

    async def _renew(self) -> None:
        await self._core.server_certificates.ensure(self._names)

    async def _reread(self) -> None:
        await self._core.server_certificates.refresh()
        if not self._core.server_certificates.covers(self._names):
            await self._renew()  # whoever holds the lease is of another node, and knows nothing of this one's names

    async def _try(self, job: str, what: str, chore: Callable[[], Awaitable[object]]) -> object:
        try:
            done = await chore()
        except Exception as exc:  # noqa: BLE001  # whatever fails here must stop neither the listeners nor the other chores
            self._meter.job_failed(job)
            now = self._clock()
            if now - self._complained_at.get(what, -_SAME_COMPLAINT_EVERY) >= _SAME_COMPLAINT_EVERY:
                self._complained_at[what] = now
                # A store that is full or a key that does not open is no bug, and needs no stack.
                _LOG.error("can't %s: %s", what, exc, exc_info=None if isinstance(exc, CoreError) else exc)
            return None
        self._meter.job_done(job)
        return done

    def _due(self, chore: str, every: float) -> bool:
        now = self._clock()
        if now - self._done_at.get(chore, -every) < every:
            return False
        self._done_at[chore] = now
        return True
