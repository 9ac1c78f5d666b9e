"""Realms as operators see them, and new versions of their documents. Every change of a realm is a new version."""

import dataclasses
import datetime as dt
import functools
import hashlib
from collections.abc import Callable, Collection, Mapping, Sequence

import msgspec
from sqlalchemy import bindparam, func, select

from ca_core.authority.issuance import Issuance
from ca_core.authority.issuer import Issuers, newest_active
from ca_core.errors import ConditionFailed, OperatorError
from ca_core.model import Clock
from ca_core.names import DEFAULT_REALM
from ca_core.records.audit import AuditEvent
from ca_core.records.query import Query, Values, insert_into
from ca_core.records.schema import realm, realm_version
from ca_core.records.store import Store
from ca_core.records.times import to_ms
from ca_core.records.unit import Guard, Step, Unit
from ca_core.registration.admission.challenge import MIN_CHALLENGE, hash_challenge, new_challenge
from ca_core.registration.document import RealmDocument, parse_toml, to_json, to_toml, validated
from ca_core.registration.host_names import NONE_NEW, NewHosts, free_hosts, same_holders
from ca_core.registration.presets import profile_row
from ca_core.registration.profile_document import ProfileDocument
from ca_core.registration.realm import Realm, Realms
from ca_core.rows import LintFinding, ProfileRow, RealmRow

_r = realm.c
_others = realm.alias("others").c
UNCHANGED = select(func.coalesce(func.sum(_others.version), 0)).scalar_subquery() == bindparam("stamp")
"""A condition of commits: no realm has changed since all were read, so that hosts differ and a shared root signs."""
DOCUMENT = Query(insert_into(realm_version).values(realm_id=bindparam("guard_id")))
"""The step that writes a version's document, behind a guard that returns the realm's id."""


@functools.cache
def _new_version(room: int) -> Query:
    return Query(
        realm.update()
        .where(
            _r.id == bindparam("of_realm"),
            _r.version == bindparam("of_version"),
            UNCHANGED,
            *same_holders(room).values(),
        )
        .values(version=_r.version + 1, state=bindparam("new_state"))
        .returning(_r.id)
    )


class RealmVersions(Realms):
    """Finds realms, shows them, and puts new versions of their documents into force."""

    def __init__(self, store: Store, issuers: Issuers, issuance: Issuance, clock: Clock, public_url: str) -> None:
        super().__init__(store)
        self._issuers = issuers
        self._issuance = issuance
        self._clock = clock
        self._public_url = public_url

    async def list(self) -> list[RealmRow]:
        """All realms."""
        return [await self._row(found) for found in (await self.current()).values()]

    async def show(self, name: str) -> RealmRow:
        """One realm. Raises `OperatorError`."""
        return await self._row(await self.get(name))

    async def export(self, name: str) -> str:
        """The realm's document as TOML, for `apply`. Raises `OperatorError`."""
        return to_toml((await self.get(name)).document)

    async def apply(self, text: str, *, actor: str, tell: Callable[[LintFinding], None] | None = None) -> RealmRow:
        """Put a document (TOML) into force as the realm's next version. Raises `OperatorError` with every fault.

        One without news makes no version: each new one ends the retransmissions of the one before. What pkilint says
        of profiles that are new or changed is told; its errors refuse the version, where the profile does not allow
        them.
        """
        document = parse_toml(text)
        found = await self.get(document.name)
        if document == found.document:
            return await self.show(found.name)
        before = found.document.profiles
        changed = [name for name, profile in document.profiles.items() if profile != before.get(name)]
        check_lint(document, changed, self._clock(), tell or ignore)
        return await self.replace(found, document, "realm.applied", {}, actor)

    async def challenge(self, name: str, text: str | None, *, actor: str) -> str:
        """Give the realm a static challenge, and return it: `text`, or a new one of 130 random bits.

        Only its hash is kept, so it is told once. The one before is worth nothing from then on. Raises `OperatorError`.
        """
        if text is None:
            text = new_challenge()
        if len(text) < MIN_CHALLENGE or not text.isascii() or not text.isprintable():
            raise OperatorError(
                "challenge_invalid",
                f"a challenge has at least {MIN_CHALLENGE} printable ASCII characters",
                "leave it out: enrolld makes one",
            )
        found = await self.get(name)
        admission = msgspec.structs.replace(found.document.admission, challenge=hash_challenge(text))
        document = msgspec.structs.replace(found.document, admission=admission)
        await self.replace(found, document, "realm.challenge_set", {}, actor)
        return text

    async def profiles(self, realm: str) -> Sequence[ProfileRow]:
        """The profiles of a realm. Raises `OperatorError`."""
        found = await self.get(realm)
        return [profile_row(name, profile, realm, None) for name, profile in found.document.profiles.items()]

    async def profile(self, realm: str, name: str) -> ProfileDocument:
        """A profile of a realm. Raises `OperatorError`."""
        profiles = (await self.get(realm)).document.profiles
        if name not in profiles:
            shown, known = ascii(name[:40])[1:-1], ", ".join(profiles)
            raise OperatorError("profile_unknown", f"realm {realm} has no profile '{shown}'", f"there are: {known}")
        return profiles[name]

    async def replace(
        self, found: Realm, document: RealmDocument, action: str, details: Mapping[str, str | int], actor: str
    ) -> RealmRow:
        """Put a document into force as the next version, with an audit event `action`. Raises `OperatorError`."""
        document = validated(document)
        current = await self.current()
        # Only what is new: nothing that was in force before may keep an operator from another change.
        added = set(document.hosts) - set(found.document.hosts)
        check_hosts(document, added, current, await self.own_names())
        hosts = await self._free(added, current)
        if document.speaks_scep and not found.document.speaks_scep:
            await self._check_decrypts(found)
        details = {**details, "digest": digest(document)}
        event = AuditEvent(action, actor, details=details)
        return await self._put(found, document, found.state, stamp(current), event, hosts)

    async def _free(self, hosts: Collection[str], current: Mapping[str, Realm]) -> NewHosts:
        """Hosts that no device has. Raises `OperatorError` when one has."""
        return await free_hosts(self._store, current, hosts, to_ms(self._clock()))

    async def _put(
        self,
        found: Realm,
        document: RealmDocument,
        state: str,
        seen: int,
        event: AuditEvent,
        hosts: NewHosts = NONE_NEW,
    ) -> RealmRow:
        """Commit the next version, which every node takes at once; `seen` is the `stamp` of what was decided on.

        `hosts` are those that it serves from then on. The event gets the realm and the version. Raises `OperatorError`.
        """
        at, version = to_ms(self._clock()), found.version + 1
        params: Values = {"of_realm": found.id, "of_version": found.version, "new_state": state, "stamp": seen}
        params |= hosts.values
        steps = (Step(DOCUMENT, version_row(document, version, at, event.actor)),)
        event = dataclasses.replace(event, realm=found.name, details={**event.details, "version": version})
        try:
            await self._store.commit(Unit(Guard(_new_version(hosts.room), params), at, steps, (event,)))
        except ConditionFailed as exc:
            raise changed_meanwhile() from exc
        return await self.show(found.name)

    async def _check_decrypts(self, found: Realm) -> None:
        """See that an RA key, which is made where the rsa issuer's is, will open SCEP requests. Raises `HsmUnfit`."""
        issuer = newest_active(await self._issuers.of_realm(found.id, found.edition), "rsa")
        token = await self._issuance.token_of(issuer) if issuer is not None else None
        if token is not None:
            await self._issuance.check_token(token, (), decrypts=True)

    async def _row(self, found: Realm) -> RealmRow:
        root, *_ = await self._issuers.of_realm(found.id, found.edition)
        return RealmRow(
            id=str(found.id),
            realm=found.name,
            state=found.state,
            version=found.version,
            hosts=list(found.document.hosts),
            public_url=found.document.public_url,
            profiles=list(found.document.profiles),
            root=root.name,
        )


def ignore(finding: LintFinding) -> None:
    """Nobody wants to know."""


def check_lint(
    document: RealmDocument, profiles: Sequence[str], now: dt.datetime, tell: Callable[[LintFinding], None]
) -> None:
    """Tell what pkilint says of the named profiles, and raise `OperatorError` where that is not allowed."""
    if not profiles:
        return
    from ca_core.registration.lint import lint  # imported by whoever changes a profile, and nobody else

    refused: list[str] = []
    for finding in lint(document, list(profiles), now):
        if finding.severity in ("fatal", "error") and not finding.allowed:
            refused.append(f"profiles.{finding.profile}: {finding.finding}: {finding.message}".removesuffix(": "))
        else:
            tell(finding)
    if refused:
        raise OperatorError(
            "profile_lint",
            f"pkilint refuses what the realm would issue: {'; '.join(dict.fromkeys(refused))}",
            "mend the profile, or name a finding that is meant in the profile's 'lint_allow'",
        )


def check_hosts(document: RealmDocument, added: set[str], current: dict[str, Realm], own: set[str]) -> None:
    """Raise `OperatorError` when one of the `added` hosts is another realm's, or one of the server's `own` names."""
    for host in sorted(added):
        if f"DNS:{host}" in own and document.name != DEFAULT_REALM:
            raise OperatorError(
                "host_taken", f"the host {host} is this server's own name, for all realms", "use another host name"
            )
    for other in current.values():
        both = set(other.document.hosts) & added
        if other.name != document.name and both:
            host = min(both)
            raise OperatorError("host_taken", f"the host {host} belongs to realm {other.name}", "use another host name")


def stamp(current: dict[str, Realm]) -> int:
    """The parameter of `UNCHANGED`."""
    return sum(found.version for found in current.values())


def changed_meanwhile() -> OperatorError:
    """What an operator is told when `UNCHANGED` fails."""
    return OperatorError("realm_changed", "a realm was changed at this moment by someone else", "run the command again")


def version_row(document: RealmDocument, version: int, at: int, actor: str) -> Values:
    """The row of a version, for `DOCUMENT`."""
    return {"version": version, "document": to_json(document), "created_at": at, "actor": actor}


def digest(document: RealmDocument) -> str:
    """SHA-256 hex of a document, by which an audit event names it."""
    return hashlib.sha256(to_json(document).encode()).hexdigest()
