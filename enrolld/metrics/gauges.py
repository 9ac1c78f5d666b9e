"""What the worker that is asked says for all: what stands in the store, and the certificates that are shown."""

from collections.abc import Iterator
from typing import TYPE_CHECKING

from cryptography.hazmat.backends.openssl import backend

from enrolld.metrics import catalogue as metrics
from enrolld.metrics.catalogue import Metric

if TYPE_CHECKING:
    from ca_core.core import Core
    from ca_core.registration.figures import Figures

__all__ = ["Said", "about_build", "about_store"]

Said = tuple[Metric, tuple[str, ...], float]
"""A metric, the values of its labels, and its number."""

_WHAT = {"scep.allow_sha1": "sha1", "scep.allow_3des": "3des", "scep.read_des": "des"}


def about_build(version: str) -> Iterator[Said]:
    """What runs."""
    yield metrics.BUILD_INFO, (version, backend.openssl_version_text().removeprefix("OpenSSL ").split(" ")[0]), 1


async def about_store(core: "Core") -> list[Said]:
    """What a few small rows of the store say. Raises `Unavailable`."""
    return [*_of_figures(await core.figures()), *_of_place(core), *await _of_certificates(core)]


def _of_figures(figures: "Figures") -> Iterator[Said]:
    for metric, numbers in (
        (metrics.CERTIFICATES, figures.certificates),
        (metrics.DEVICES, figures.devices),
        (metrics.SECRETS, figures.secrets),
        (metrics.CA_NOT_AFTER, figures.issuers),
    ):
        yield from ((metric, labels, number) for labels, number in numbers.items())
    for issuer, crl in figures.crls.items():
        yield metrics.CRL_NEXT_UPDATE, (issuer,), crl.next_update
        yield metrics.CRL_PUBLISHED, (issuer,), crl.published
        yield metrics.CRL_ENTRIES, (issuer,), crl.entries
    for (realm, tolerance), uses in figures.tolerances.items():
        yield metrics.LEGACY, (realm, _WHAT.get(tolerance, metrics.OTHER)), uses
    for action, number in figures.audit_events.items():
        yield metrics.AUDIT_EVENTS, (action,), number
    yield metrics.CLOCK_BEHIND, (), figures.clock_behind
    yield metrics.CLOCK_DRIFT, (), figures.clock_drift


def _of_place(core: "Core") -> Iterator[Said]:
    if (headroom := core.headroom) is not None:
        yield metrics.STORE_FREE, (), headroom.free_ratio()
        yield metrics.STORE_WAL, (), headroom.wal_bytes()


async def _of_certificates(core: "Core") -> list[Said]:
    realms = {realm.id: realm.name for realm in (await core.realms.current()).values()}
    found: list[Said] = []
    for host, shown in core.server_certificates.all().items():
        found.append((metrics.SERVER_NOT_AFTER, (shown.realm, host), shown.not_after.timestamp()))
    for realm_id, ra in core.ra_certificates.all().items():
        if realm_id in realms:
            found.append((metrics.RA_NOT_AFTER, (realms[realm_id],), ra.not_after.timestamp()))
    return found
