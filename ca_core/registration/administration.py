"""Making realms, and ending them."""

import datetime as dt
import functools
from collections.abc import Mapping, Sequence

import msgspec

from ca_core.authority.ceremony import SharedRoot, make_realm_ca
from ca_core.authority.issuer import Issuer
from ca_core.authority.kinds import carries_scep, chosen_kinds
from ca_core.errors import ConditionFailed, ConstraintFailed, OperatorError
from ca_core.names import DEFAULT_REALM, parse_host, parse_realm_name
from ca_core.public_key import check_public_key, key_kind
from ca_core.records.audit import AuditEvent
from ca_core.records.query import Query, Values
from ca_core.records.schema import realm
from ca_core.records.times import to_ms
from ca_core.records.unit import Guard, Step, Unit, guarded_insert
from ca_core.registration.document import default_document, validated
from ca_core.registration.host_names import same_holders
from ca_core.registration.profile_document import ProfileDocument
from ca_core.registration.realm import Realm, is_retired, named
from ca_core.registration.realm_versions import (
    DOCUMENT,
    UNCHANGED,
    RealmVersions,
    changed_meanwhile,
    check_hosts,
    check_lint,
    digest,
    ignore,
    stamp,
    version_row,
)
from ca_core.rows import RealmRow

_r = realm.c


@functools.cache
def _add(room: int) -> tuple[Query, Query]:
    return guarded_insert(realm, {"realms_unchanged": UNCHANGED, **same_holders(room)})


class RealmAdministration(RealmVersions):
    """Adds realms and retires them, beside what `RealmVersions` does with those that are there."""

    async def kinds(self, given: Mapping[str, str], root_of: str | None = None) -> dict[str, str]:
        """The kinds of a new realm's CA keys by family, root first; see `chosen_kinds`. Raises `OperatorError`."""
        return await self._kinds(given, await self.get(root_of) if root_of is not None else None)

    async def _kinds(self, given: Mapping[str, str], owner: Realm | None) -> dict[str, str]:
        if owner is None:
            return chosen_kinds(given)
        above = await self._root_of(owner)
        return chosen_kinds(given, key_kind(check_public_key(above.certificate.public_key())))

    async def add(
        self,
        name: str,
        *,
        hosts: Sequence[str] = (),
        public_url: str | None = None,
        profiles: Mapping[str, ProfileDocument] | None = None,
        keys: Mapping[str, str] | None = None,
        token: str | None = None,
        root_of: str | None = None,
        actor: str,
    ) -> RealmRow:
        """Make a realm with a root and issuing CAs of its own, and `profiles` beside the two that each begins with.

        `keys` are the kinds of CA keys by family, where they are not the usual ones; they are made in a HSM's `token`
        if one is named. With `root_of`, the realm stands under the root of that realm, and has issuing CAs alone.
        Without an RSA root, SCEP is off. Raises `OperatorError`, `HsmUnfit`, `SealingFailed`, `Unavailable`.
        """
        parse_realm_name(name)
        given = tuple(parse_host(host) for host in hosts)
        # The first realm takes whatever a stock client sends; the others begin without old algorithms.
        document = default_document(name, given, public_url, read_des=name == DEFAULT_REALM)
        now = self._clock()
        if profiles:
            document = validated(msgspec.structs.replace(document, profiles={**document.profiles, **profiles}))
            check_lint(document, list(profiles), now, ignore)
        current = await self.current()
        if name in current:
            raise OperatorError("realm_exists", f"there is a realm '{name}'", "'enrolld realm show' shows it")
        check_hosts(document, set(document.hosts), current, await self.own_names())
        free = await self._free(document.hosts, current)
        owner = named(current, root_of) if root_of is not None else None
        kinds = await self._kinds(keys or {}, owner)
        if not carries_scep(kinds):
            document = msgspec.structs.replace(document, scep=msgspec.structs.replace(document.scep, enabled=False))
        under = await self._shared_root(owner, current, now) if owner is not None else None
        if token is not None:  # all that it needs, before anything is made in it
            made = [kind for family, kind in kinds.items() if under is None or family != under.issuer.family]
            await self._issuance.check_token(token, made, decrypts=document.speaks_scep)
        ceremony = await make_realm_ca(
            self._issuance, name, public_url or self._public_url, now, kinds=kinds, token=token, under=under
        )
        at = to_ms(now)
        row: Values = {"name": name, "state": "active", "version": 1, "created_at": at, "stamp": stamp(current)}
        row |= free.values
        add, why = _add(free.room)
        steps = (Step(DOCUMENT, version_row(document, 1, at, actor)), *ceremony.steps)
        event = AuditEvent(
            "realm.added",
            actor,
            realm=name,
            details={
                "version": 1,
                "digest": digest(document),
                "hosts": document.hosts,
                "issuers": ceremony.fingerprints,
                **({"token": token} if token is not None else {}),
                **({"root": under.issuer.name} if under is not None else {}),
            },
        )
        try:
            await self._store.commit(Unit(Guard(add, row, why), at, steps, (event,)))
        except (ConditionFailed, ConstraintFailed) as exc:
            await self._issuance.discard(ceremony.keys)
            raise changed_meanwhile() from exc
        return await self.show(name)

    async def retire(self, name: str, *, actor: str) -> RealmRow:
        """End a realm: nobody enrolls or renews there any more. Raises `OperatorError`.

        Its certificates stay valid until they end or are revoked, and its CRLs are published as before.
        """
        current = await self.current()
        found = named(current, name)
        if found.name == DEFAULT_REALM:
            raise OperatorError(
                "realm_default",
                f"realm {name} has this server's own certificate, and serves URLs without a label",
                "refuse its devices instead: leave no way under its [admission]",
            )
        if found.state == "retired":
            raise is_retired(found)
        root = await self._root_of(found)
        under = [
            other.name
            for other in current.values()
            if other.id != found.id and other.state == "active" and (await self._root_of(other)).id == root.id
        ]
        if root.realm_id == found.id and under:
            raise OperatorError(
                "realm_shares_root",
                f"under the root of realm {name} stand others that are active: {', '.join(under)}",
                "retire those first",
            )
        return await self._put(found, found.document, "retired", stamp(current), AuditEvent("realm.retired", actor))

    async def resume(self, name: str, *, actor: str) -> RealmRow:
        """Let a retired realm serve again, as it did. Raises `OperatorError`."""
        current = await self.current()
        found = named(current, name)
        if found.state == "active":
            raise OperatorError("realm_active", f"realm {name} is not retired", "nothing is to be done")
        root = await self._root_of(found)
        owner = next((other for other in current.values() if other.id == root.realm_id), found)
        if owner.id != found.id and owner.state != "active":
            raise OperatorError(
                "realm_retired", f"realm {owner.name}, whose root it stands under, is retired", "resume that first"
            )
        check_hosts(found.document, set(found.document.hosts), current, await self.own_names())
        free = await self._free(found.document.hosts, current)
        event = AuditEvent("realm.resumed", actor)
        return await self._put(found, found.document, "active", stamp(current), event, free)

    async def _root_of(self, found: Realm) -> Issuer:
        root, *_ = await self._issuers.of_realm(found.id, found.edition)
        return root

    async def _shared_root(self, owner: Realm, current: Mapping[str, Realm], now: dt.datetime) -> SharedRoot:
        """The root of a realm, for another to stand under. Raises `OperatorError`."""
        root = await self._root_of(owner)
        if owner.state != "active" or root.state != "active" or root.not_after <= now:
            raise OperatorError(
                "root_unusable", f"the root of realm {owner.name} signs no more", "name a realm that is active"
            )
        if root.realm_id != owner.id:
            above = next(each for each in current.values() if each.id == root.realm_id)
            raise OperatorError(
                "root_not_own", f"realm {owner.name} stands under the root of realm {above.name}", "name that realm"
            )
        return SharedRoot(root, owner.document.public_url or self._public_url)
