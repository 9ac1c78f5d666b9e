"""What `check` looks at: everything that could keep devices from enrolling."""

import datetime as dt
from collections.abc import Sequence

from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.hazmat.primitives.serialization import Encoding

from ca_core.authority.crl import Crls
from ca_core.authority.issuance import Issuance
from ca_core.authority.issuer import Issuer, Issuers
from ca_core.authority.plan import CLIENT_AUTH
from ca_core.errors import CoreError, HsmUnfit, IssuerUnfit
from ca_core.names import DEFAULT_REALM
from ca_core.records.store import Store
from ca_core.records.times import rfc3339, to_ms
from ca_core.registration.host_names import held_by_devices, how_to_free
from ca_core.registration.profile_document import profile_faults
from ca_core.registration.ra import RaCertificates
from ca_core.registration.realm import Realms
from ca_core.registration.servers import ServerCertificates
from ca_core.rows import Finding


class Checkup:
    """One look at the installation."""

    def __init__(
        self,
        store: Store,
        realms: Realms,
        issuers: Issuers,
        crls: Crls,
        issuance: Issuance,
        servers: ServerCertificates,
        ra: RaCertificates,
    ) -> None:
        self._store = store
        self._realms = realms
        self._issuers = issuers
        self._crls = crls
        self._issuance = issuance
        self._servers = servers
        self._ra = ra

    async def run(
        self,
        names: Sequence[str],
        *,
        own: set[str],
        now: dt.datetime,
        demo: bool,
        behind: bool,
        off: bool,
        shortage: str | None,
        weakness: str | None,
    ) -> list[Finding]:
        """Look at everything that could keep devices from enrolling. Empty when all is well.

        `names` are the configured ones, `own` the SANs of the shared host's certificate.
        """
        findings: list[Finding] = []
        if weakness is not None:
            findings.append(_finding("error", "store_not_durable", weakness, "turn it on, and restart the server"))
        if off:
            text = "this machine's clock stands more than a minute from the database's, so nothing is issued"
            findings.append(_finding("error", "clock_off", text, "set the clock"))
        elif shortage is not None:
            findings.append(_finding("error", "room_short", f"nothing is issued: {shortage}", "make room"))
        if behind:  # enforces case 61
            text = "this machine's clock stands before the store's newest event, so nothing is issued"
            findings.append(
                _finding("error", "clock_behind", text, "set the clock, or see 'enrolld clock show' if it is right")
            )
        for found in await self._issuers.all():
            findings += await self._check_issuer(found, now)
        if self._issuance.can_sign:
            try:
                await self._servers.refresh()
            except CoreError as exc:
                findings.append(_finding("error", "server_key", str(exc), "restore the store, or its unlock key"))
            if not any(finding.code == "issuer_key" for finding in findings):
                findings += await self._check_ra(now)
        own = {f"DNS:{name.lower().removesuffix('.')}" for name in names} | own
        findings += await self._check_hosts(own)
        findings += await self._check_devices(own, now)
        findings += await self._check_roots()
        findings += await self._check_profiles(now)
        findings += await self._check_admission()
        findings += await self._check_anchors()
        if demo and not names:
            findings.append(
                _finding(
                    "info",
                    "demo",
                    "the server has no name, so certificates are valid for 7 days",
                    "start it with --name pki.example.com, or set 'names' in enrolld.toml",
                )
            )
        return findings

    async def _check_issuer(self, found: Issuer, now: dt.datetime) -> list[Finding]:
        findings: list[Finding] = []
        if self._issuance.can_sign:
            try:
                await self._issuance.check_key(found)
            except CoreError as exc:
                remedy = "give the unlock key that this store was made with"
                if isinstance(exc, IssuerUnfit):
                    return [_finding("error", exc.code, str(exc), "restore the certificate, or a backup of the store")]
                if isinstance(exc, HsmUnfit):
                    return [_finding("error", exc.code, str(exc), exc.remedy)]
                # What it can't sign follows from that, and has no remedy of its own.
                return [_finding("error", "issuer_key", str(exc), remedy)]  # enforces case 75
        left = found.not_after - now
        if left.days < 365:
            findings.append(
                _finding(
                    "warning", "issuer_expires", f"{found.name} expires {rfc3339(found.not_after)}", "plan its rollover"
                )
            )
        begins = found.certificate.not_valid_before_utc
        if begins > now:
            text = f"{found.name} is valid from {rfc3339(begins)} on, and so are no certificates of it before"
            findings.append(
                _finding("error", "issuer_ahead", text, "set the clock; if it is right, make its realm anew")
            )
        newest = await self._crls.latest(found)
        if newest is None:
            findings.append(_finding("error", "crl_missing", f"{found.name} has no CRL", "run 'enrolld crl publish'"))
        elif newest.next_update <= now:
            text = f"the CRL of {found.name} expired {rfc3339(newest.next_update)}"
            findings.append(_finding("error", "crl_expired", text, "run 'enrolld serve', or 'enrolld crl publish'"))
        elif await self._crls.is_ahead(found):
            text = f"the CRL of {found.name} is dated {rfc3339(newest.this_update)}, and refused by those who check it"
            findings.append(_finding("error", "crl_ahead", text, "see 'enrolld clock show'"))
        elif newest.revocations < found.revocations:
            text = f"{found.revocations - newest.revocations} revocations of {found.name} are not in its CRL"
            findings.append(_finding("error", "crl_behind", text, "run 'enrolld crl publish'"))
        return findings

    async def _check_ra(self, now: dt.datetime) -> list[Finding]:
        """What keeps SCEP clients from encrypting their requests."""
        findings: list[Finding] = []
        try:
            await self._ra.prove()
        except HsmUnfit as exc:
            findings.append(_finding("error", exc.code, str(exc), exc.remedy))
        except CoreError as exc:
            findings.append(_finding("error", "ra_key", str(exc), "look at the HSM"))
        await self._ra.refresh()
        shown = self._ra.all()
        for found in (await self._realms.current()).values():
            if found.state != "active" or not found.document.speaks_scep:
                continue
            root = next(each for each in await self._issuers.of_realm(found.id, found.edition) if each.is_root)
            if not isinstance(root.certificate.public_key(), rsa.RSAPublicKey):
                text = f"realm {found.name} speaks SCEP under a root that is not RSA, and stock clients know RSA alone"
                findings.append(_finding("warning", "scep_root", text, "set 'enabled = false' under its [scep]"))
            ra = shown.get(found.id)
            if ra is None:
                text = f"realm {found.name} has no RA certificate that it can use, so it answers no SCEP request"
                findings.append(
                    _finding("error", "ra_missing", text, "run 'enrolld serve', whose log says why if it stays")
                )
            elif ra.not_after <= now:
                text = f"the RA certificate of realm {found.name} expired {rfc3339(ra.not_after)}"
                findings.append(_finding("error", "ra_expired", text, "run 'enrolld serve', which renews it"))
        return findings

    async def _check_profiles(self, now: dt.datetime) -> list[Finding]:
        from ca_core.registration.lint import lint  # heavy, and of no use to the daemon

        # What an earlier version let pass.
        faults = [
            _finding(
                "error", "profile_invalid", f"realm {found.name}: {fault}", f"run 'enrolld realm edit {found.name}'"
            )
            for found in (await self._realms.current()).values()
            for name, profile in found.document.profiles.items()
            for fault in profile_faults(f"profiles.{name}", name, profile)
        ]
        if faults:
            return faults
        linted = [
            _finding(
                "error" if each.severity in ("fatal", "error") else "warning",
                "profile_lint",
                f"certificates of profile {each.profile} in realm {found.name}: {each.finding} {each.message}".rstrip(),
                "mend the profile, or name the finding in its 'lint_allow'",
            )
            for found in (await self._realms.current()).values()
            for each in lint(found.document, list(found.document.profiles), now)
            if not each.allowed
        ]
        return linted + [
            _finding(
                "warning",
                "profile_cannot_renew",
                f"certificates of profile {name} in realm {found.name} can't renew: they are not for clients",
                "add clientAuth to its extended_key_usages",
            )
            for found in (await self._realms.current()).values()
            for name, profile in found.document.profiles.items()
            if found.document.admission.own_certificate and CLIENT_AUTH not in profile.rules.extended_key_usages
        ]

    async def _check_admission(self) -> list[Finding]:
        """What is allowed, and is to be remembered."""
        findings: list[Finding] = []
        for found in (await self._realms.current()).values():
            if found.state != "active":
                continue
            if "open" in found.proofs:
                text = f"realm {found.name} gives a certificate to anyone who asks"
                findings.append(_finding("warning", "realm_open", text, "give it ways that prove something"))
            if any(way.proofs == {"challenge"} and not way.approval and not way.webhook for way in found.ways):
                text = f"realm {found.name} admits by a challenge that all its devices share"
                remedy = "hand out secrets ('device secret'), or add 'approval' or 'webhook' to the way"
                findings.append(_finding("warning", "realm_challenge", text, remedy))
        return findings

    async def _check_anchors(self) -> list[Finding]:
        """A CA of a realm here that another takes for a manufacturer's: what the one issues opens the other."""
        own = {issuer.der: issuer for issuer in await self._issuers.all()}
        realms = (await self._realms.current()).values()
        names = {found.id: found.name for found in realms}
        return [
            _finding(
                "warning",
                "trust_own_ca",
                f"realm {found.name} takes certificates under {own[der].name}, a CA of realm"
                f" {names[own[der].realm_id]}, for factory identities",
                f"'enrolld trust remove --realm {found.name}', unless those are its factory",
            )
            for found in realms
            if found.state == "active"
            for der in (anchor.public_bytes(Encoding.DER) for anchor in found.anchor_certificates)
            if der in own
        ]

    async def _check_hosts(self, own: set[str]) -> list[Finding]:
        taken = [
            _finding(
                "error",
                "host_taken",
                f"{host} is this server's own name and a host of realm {found.name}, so no other realm can use it",
                f"take it out of 'hosts' of realm {found.name}, or give this server another name",
            )
            for found in (await self._realms.current()).values()
            for host in found.document.hosts
            if f"DNS:{host}" in own and found.state == "active" and found.name != DEFAULT_REALM
        ]
        # The shared host shows the default realm's certificate.
        shown = await self._root_id(DEFAULT_REALM)
        return taken + [
            _finding(
                "warning",
                "realm_without_host",
                f"devices that trust only the root of realm {found.name} can't verify this server",
                f"give it one: 'hosts' in 'enrolld realm export {found.name}', then 'realm apply'",
            )
            for found in (await self._realms.current()).values()
            if found.state == "active" and not found.document.hosts and await self._root_id(found.name) != shown
        ]

    async def _check_devices(self, own: set[str], now: dt.datetime) -> list[Finding]:
        """Devices that have a name of this server, and could be taken for it."""
        names = own | {f"DNS:{host}" for host in await self._realms.all_hosts()}
        held = await held_by_devices(self._store, await self._realms.current(), names, to_ms(now))
        return [
            _finding(
                "error",
                "name_of_server",
                f"{name} is a name of this server, and of device {device} in realm {realm} or a certificate of it",
                how_to_free(device, realm),
            )
            for name, device, realm in held
        ]

    async def _check_roots(self) -> list[Finding]:
        """A realm that serves under the root of one that does not."""
        realms = (await self._realms.current()).values()
        retired = {found.id: found.name for found in realms if found.state == "retired"}
        findings: list[Finding] = []
        for found in realms:
            root, *_ = await self._issuers.of_realm(found.id, found.edition)
            if found.state == "active" and root.realm_id in retired:
                owner = retired[root.realm_id]
                text = f"realm {found.name} is active under the root of realm {owner}, which is retired"
                remedy = f"'enrolld realm resume {owner}', or 'enrolld realm retire {found.name}'"
                findings.append(_finding("error", "realm_root_retired", text, remedy))
        return findings

    async def _root_id(self, realm: str) -> int:
        found = await self._realms.get(realm)
        root, *_ = await self._issuers.of_realm(found.id, found.edition)
        return root.id


def _finding(severity: str, code: str, message: str, remedy: str) -> Finding:
    return Finding(severity=severity, code=code, message=message, remedy=remedy)
