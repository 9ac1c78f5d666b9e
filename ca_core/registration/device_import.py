"""Import of a list of devices: all of them, or none and every fault of the file.

1. The file is read and judged, and compared with the devices that are there; nothing is written.
2. It is read again, and its rows go into a side table in small transactions, between which others write: a daemon goes
   on issuing.
3. One statement makes devices of them, and one gives them their secrets: two seconds for 100,000 on SQLite, six on
   PostgreSQL, where those who enroll don't wait for it, since it touches nothing that is there.

Secrets are handed to whoever keeps them, and are safe there, before that last transaction begins: whichever way a crash
goes, no device has a secret that nobody knows.
"""

import asyncio
import contextlib
import datetime as dt
import secrets
from collections.abc import Callable, Coroutine, Iterator, Sequence
from typing import Any, BinaryIO, Protocol

from ca_core.errors import ConditionFailed, ConstraintFailed, OperatorError, Unavailable
from ca_core.model import Clock
from ca_core.names import username_of
from ca_core.records.audit import AuditEvent
from ca_core.records.query import Values
from ca_core.records.store import Store
from ca_core.records.times import rfc3339, to_ms
from ca_core.records.unit import Guard, Step, Unit
from ca_core.registration.admission.secret import new_secret
from ca_core.registration.allow_list import Entry, Record, RecordReader, judge
from ca_core.registration.import_duplicates import LOOKED_UP, Duplicates
from ca_core.registration.import_rows import (
    DEVICES,
    HAPPENED,
    IMPORT,
    IMPORT_WHY,
    NAMES,
    NOTHING,
    SECRETS,
    batched,
    clearing,
    row_of,
    staging,
)
from ca_core.registration.names_held import server_names
from ca_core.registration.realm import Realm, Realms
from ca_core.registration.realm_versions import changed_meanwhile, stamp
from ca_core.registration.request_ends import end_of_imported
from ca_core.rows import HandedSecret, Import, ImportFault

__all__ = ["DeviceImport", "ImportRefused", "SecretKeeper"]

_STAGED = 1000
"""In one transaction."""
_STALE = dt.timedelta(days=1)


class SecretKeeper(Protocol):
    """Where the secrets of an import go; what it raises ends the import."""

    name: str

    def keep(self, handed: HandedSecret) -> None:
        """One more."""
        ...

    def seal(self) -> None:
        """There are no more; when this returns, none of them can be lost."""
        ...

    def discard(self) -> None:
        """They are secrets of nobody: nothing was imported."""
        ...


class ImportRefused(OperatorError):
    """Nothing was imported. `faults` is all that is wrong, in the order of the file."""

    def __init__(self, faults: Sequence[ImportFault]) -> None:
        lines = len({fault.line for fault in faults})
        super().__init__(
            "import_faults",
            f"{lines} line{'s are' if lines > 1 else ' is'} wrong, and nothing was imported",
            "mend what is named, and import the file again",
        )
        self.faults = sorted(faults, key=lambda fault: fault.line)


class DeviceImport:
    """Imports lists of devices; see the module for how."""

    def __init__(self, store: Store, realms: Realms, clock: Clock) -> None:
        self._store = store
        self._realms = realms
        self._clock = clock

    async def run(
        self,
        realm_name: str,
        file: BinaryIO,
        name: str,
        *,
        keeper: SecretKeeper | None = None,
        plan: bool = False,
        advance: Callable[[int], object] = lambda _: None,
        actor: str,
    ) -> Import:
        """Import the seekable `file`, called `name`; with `plan` only say what would be.

        `advance` is told how many bytes were read; a file is read twice. Raises `ImportRefused`, `OperatorError`,
        `Unavailable`.
        """
        found = await self._realms.active(realm_name)
        now = self._clock()
        servers = await server_names(self._realms)
        digest, count, lines = await self._examine(found, file, servers, now, advance)
        kept = keeper.name if keeper is not None else None
        done = Import(realm=found.name, file=name, sha256=digest.hex(), devices=count, secrets=kept, planned=plan)
        if plan:
            return done
        if (shortage := self._store.shortage()) is not None:
            raise Unavailable(shortage)
        batch = secrets.token_hex(8)
        file.seek(0)
        try:
            await self._stage(found, file, now, batch, digest, keeper, advance)
            seen = stamp(await self._realms.current())
            if not await server_names(self._realms) <= servers:  # another realm has got a host
                raise changed_meanwhile()
            if keeper is not None:
                keeper.seal()
        except BaseException:
            if keeper is not None:
                keeper.discard()
            await self._clear(batch, lines)
            raise
        commit = self._commit(found, seen, batch, digest, count, has_secrets=keeper is not None, name=name, actor=actor)
        try:
            await _to_its_end(commit)
        except (ConditionFailed, ConstraintFailed) as exc:
            if keeper is not None:
                keeper.discard()
            await self._clear(batch, lines)
            if isinstance(exc, ConditionFailed):
                raise changed_meanwhile() from exc
            raise OperatorError(
                "import_overtaken", "one of these devices was added at this moment", "run the command again"
            ) from exc
        except Unavailable as exc:
            if not await self._happened(found, batch, exc):
                if keeper is not None:
                    keeper.discard()
                raise
        await self._clear(batch, lines)
        return done

    # --- what is wrong with it ---------------------------------------------------------------------------------------

    async def _examine(
        self,
        found: Realm,
        file: BinaryIO,
        servers: frozenset[str],
        now: dt.datetime,
        advance: Callable[[int], object],
    ) -> tuple[bytes, int, int]:
        """The file's SHA-256, how many devices it has, and how many lines. Raises `ImportRefused`."""
        reader = RecordReader(file, advance)
        faults: list[ImportFault] = []
        duplicates = Duplicates(self._store, found, servers, to_ms(now))
        count = 0
        for some in batched(reader, LOOKED_UP):
            entries: list[Entry] = []
            for read in some:
                count += 1
                if isinstance(read, ImportFault):
                    faults.append(read)
                elif isinstance(judged := judge(found, read, now), Entry):
                    entries.append(judged)
                else:
                    faults += judged
            faults += await duplicates.faults(entries)
        if faults:
            raise ImportRefused(faults)
        if not count:
            raise OperatorError("import_empty", "the file names no device", "write a line for each, below the header")
        return reader.sha256, count, reader.line

    # --- the import --------------------------------------------------------------------------------------------------

    async def _stage(
        self,
        found: Realm,
        file: BinaryIO,
        now: dt.datetime,
        batch: str,
        digest: bytes,
        keeper: SecretKeeper | None,
        advance: Callable[[int], object],
    ) -> None:
        """Write all rows into the side table, and hand over their secrets."""
        at = to_ms(now)
        reader = RecordReader(file, advance)
        for entries in batched(_entries(found, reader, now), _STAGED):
            rows: list[Values] = []
            for entry in entries:
                row = row_of(entry, batch, at)
                if keeper is not None:
                    text, row["selector"], row["hash"] = new_secret()
                    row["expires_at"] = to_ms(entry.expires)
                    keeper.keep(_handed(found, entry, text))
                rows.append(row)
            await self._store.commit(staging(rows, at, batch))
        if reader.sha256 != digest:
            raise _changed()

    async def _commit(
        self,
        found: Realm,
        seen: int,
        batch: str,
        digest: bytes,
        count: int,
        *,
        has_secrets: bool,
        name: str,
        actor: str,
    ) -> None:
        at = to_ms(self._clock())
        row: Values = {
            "realm_id": found.id,
            "batch": batch,
            "created_at": at,
            "actor": actor,
            "file_sha256": digest,
            "devices": count,
            **found.facts,
            "stamp": seen,
        }
        steps = [Step(DEVICES, {"realm_id": found.id, "created_at": at, "batch": batch}, expect=count)]
        steps.append(Step(NAMES, {"realm_id": found.id, "created_at": at}, expect=0))
        if has_secrets:
            steps.append(Step(SECRETS, {"realm_id": found.id, "batch": batch}, expect=count))
        # Last, because it is what others could wait for. Who asked in these names before was not these devices.
        steps.append(end_of_imported(found.id, at))
        details = {"devices": count, "file": name, "sha256": digest.hex(), "secrets": has_secrets, "batch": batch}
        event = AuditEvent("device.imported", actor, realm=found.name, details=details)
        # All rows are new: what else is written meanwhile changes none of the facts, and the requests that end are
        # granted to nobody any more, however they are decided meanwhile (`request_identity`). A name that somebody adds
        # at this moment is the constraint's to find.
        touches = frozenset({f"import:{found.id}"})
        await self._store.commit(Unit(Guard(IMPORT, row, IMPORT_WHY), at, tuple(steps), (event,), touches))

    async def _happened(self, found: Realm, batch: str, cause: Unavailable) -> bool:
        """Whether the import stands, after its commit was not answered. Raises `OperatorError` when nobody knows."""
        try:
            # Whatever has a name in common with it ends first.
            unit = Unit(Guard(NOTHING, {}), 0, touches=frozenset({f"import:{found.id}"}))
            await self._store.commit(unit)
            return await self._store.first(HAPPENED, batch=batch) is not None
        except Unavailable:
            raise OperatorError(
                "import_unsure",
                f"the store stopped answering at the last moment: {cause}",
                f"'enrolld audit list --action device.imported' tells whether it happened, with the batch {batch}; keep"
                " the file of secrets until then",
            ) from cause

    async def _clear(self, batch: str, lines: int) -> None:
        """Take the rows out of the side table; what a crash leaves there, another import takes out a day later."""
        with contextlib.suppress(Unavailable, ConstraintFailed):  # they are in nobody's way
            for unit in clearing(batch, lines, to_ms(self._clock() - _STALE)):
                await self._store.commit(unit)


async def _to_its_end(commit: Coroutine[Any, Any, None]) -> None:
    """Await what happens or not, but is not undone by an operator who loses patience."""
    task = asyncio.ensure_future(commit)
    try:
        await asyncio.shield(task)
    except asyncio.CancelledError:
        await task


def _entries(found: Realm, reader: RecordReader, now: dt.datetime) -> Iterator[Entry]:
    for read in reader:
        judged = judge(found, read, now) if isinstance(read, Record) else None
        if not isinstance(judged, Entry):
            raise _changed()
        yield judged


def _handed(found: Realm, entry: Entry, text: str) -> HandedSecret:
    return HandedSecret(
        device=entry.name,
        realm=found.name,
        profile=entry.profile or found.document.est.profile,
        username=username_of(entry.name),
        secret=text,
        expires=rfc3339(entry.expires),
    )


def _changed() -> OperatorError:
    return OperatorError("import_changed", "the file was changed while it was read", "import it again")
