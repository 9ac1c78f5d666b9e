"""When a device should renew, learned from when it did; who is overdue; and lists that find a few among many."""

import contextlib
import datetime as dt
import sqlite3
from pathlib import Path

import psycopg
import pytest
from sqlalchemy.dialects import sqlite as sqlite_dialect

from ca_core.core import Core
from ca_core.errors import OperatorError
from ca_core.model import DeviceState, Evidence
from ca_core.records.opening import upgrade_store
from ca_core.records.postgres_link import numbered
from ca_core.records.query import Query
from ca_core.registration import device_list, history
from ca_core.registration.device_list import Choice
from tests.helpers.core import (
    ME,
    START,
    Enrolled,
    Installation,
    SetClock,
    ask,
    code_of,
    csr_of,
    enrolled,
    new_key,
    written,
)
from tests.helpers.kept import load

LIFE = dt.timedelta(days=90)
OVERDUE = Choice(is_overdue=True)


async def renewed(core: Core, evidence: Evidence, name: str = "sensor") -> Evidence:
    return Evidence(chain=((await ask(core, evidence, csr_of(new_key(), name))).certificate,))


async def expected(core: Core, name: str = "sensor") -> float:
    """When it is expected to renew, in shares of its certificate's life."""
    row = await core.devices.show("default", name)
    assert row.not_after is not None
    assert row.expected_renewal_at is not None
    end = dt.datetime.fromisoformat(row.not_after)
    return 1 - (end - dt.datetime.fromisoformat(row.expected_renewal_at)) / LIFE


async def overdue(core: Core, realm: str | None = None) -> list[str]:
    listed = await core.devices.list(realm, choice=OVERDUE, limit=100)
    assert all(row.overdue for row in listed)
    return [row.device for row in listed]


async def test_of_a_device_that_never_renewed_two_thirds_of_the_life_are_assumed(core: Core) -> None:
    await core.devices.add("default", "later", actor=ME)
    later = await core.devices.show("default", "later")
    assert (later.expected_renewal_at, later.not_after, later.overdue) == (None, None, False)
    await enrolled(core)
    assert await expected(core) == pytest.approx(0.667, abs=0.001)


async def test_the_median_of_past_renewals_is_learned_from_the_second_on(core: Core, clock: SetClock) -> None:
    device = await enrolled(core)
    held, learned = device.evidence, []
    for share in (0.8, 0.9, 0.1, 0.2, 0.3, 0.3, 0.3):
        clock.forward(days=90 * share)
        held = await renewed(core, held)
        learned.append(round(await expected(core), 2))
    assert learned == [0.67, 0.8, 0.8, 0.2, 0.3, 0.3, 0.3]


async def test_one_renewal_teaches_once_however_often_it_is_asked_for(core: Core, clock: SetClock) -> None:
    device = await enrolled(core)
    clock.forward(days=9)
    await renewed(core, device.evidence)
    clock.forward(days=9)
    await renewed(core, device.evidence)
    assert await expected(core) == pytest.approx(0.667, abs=0.001)


async def test_who_passes_the_moment_in_silence_is_overdue_until_it_renews(core: Core, clock: SetClock) -> None:
    device = await enrolled(core)
    other = await enrolled(core, "other")
    clock.forward(days=60.5)  # past the expected renewal, and within the leeway
    assert await overdue(core) == []
    await renewed(core, other.evidence, "other")
    clock.forward(days=5)
    assert await overdue(core) == ["sensor"]
    said = (await core.devices.why("default", "sensor")).sentence
    assert said.startswith("It has not been seen since 2026-11-22T12:00:00Z; its certificate ends in 24 days, and it")
    clock.forward(days=23)
    assert "its certificate ends in 36 hours" in (await core.devices.why("default", "sensor")).sentence
    await renewed(core, device.evidence)
    assert await overdue(core) == []
    assert (await core.devices.why("default", "sensor")).sentence.startswith("All is well")


async def test_who_asked_and_was_refused_is_not_silent(core: Core, clock: SetClock) -> None:
    device = await enrolled(core)
    clock.forward(days=60)
    assert await code_of(core, device.evidence, csr_of(new_key(), "pacemaker")) == "subject_mismatch"
    await written(core)
    assert (await core.devices.show("default", "sensor")).last_seen_at == "2027-01-21T12:00:00Z"
    clock.forward(days=10)
    assert await overdue(core) == ["sensor"]  # it asked before it was late
    assert await code_of(core, device.evidence, csr_of(new_key(), "pacemaker")) == "subject_mismatch"
    await written(core)
    assert await overdue(core) == []
    assert (await core.devices.why("default", "sensor")).sentence.startswith("It was refused 2 times")


async def test_somebody_who_proves_nothing_was_not_seen(core: Core, clock: SetClock) -> None:
    await enrolled(core)
    clock.forward(days=1)
    stranger = Evidence(username="sensor", secret="x" * 35)  # no secret of anybody
    assert await code_of(core, stranger, csr_of(new_key())) == "secret_unknown"
    await written(core)
    assert (await core.devices.show("default", "sensor")).last_seen_at == "2026-11-22T12:00:00Z"


@pytest.mark.parametrize("act", ["suspend", "retire", "replace", "revoke"])
async def test_nothing_is_expected_of_a_device_that_can_not_renew(core: Core, clock: SetClock, act: str) -> None:
    device = await enrolled(core)
    clock.forward(days=80)
    assert await overdue(core) == ["sensor"]
    match act:
        case "suspend":
            await core.devices.suspend("default", "sensor", actor=ME)
        case "retire":
            await core.devices.retire("default", "sensor", actor=ME)
        case "replace":
            await core.devices.new_board("default", "sensor", actor=ME)
        case _:
            await core.certificates.revoke(device.serial, actor=ME)
    assert await overdue(core) == []
    row = await core.devices.show("default", "sensor")
    assert row.overdue is False
    assert (row.expected_renewal_at is None) == (act != "suspend")


async def test_a_revoked_certificate_that_was_renewed_changes_nothing(core: Core) -> None:
    device = await enrolled(core)
    await renewed(core, device.evidence)
    before = await core.devices.show("default", "sensor")
    await core.certificates.revoke(device.serial, actor=ME)
    assert await core.devices.show("default", "sensor") == before


# --- lists -----------------------------------------------------------------------------------------------------------


async def _fleet(core: Core, clock: SetClock, count: int = 7) -> list[Enrolled]:
    """Devices of two realms, each enrolled a day after the one before."""
    made = []
    for number in range(count):
        made.append(await enrolled(core, f"d-{number}", realm=("default", "other")[number % 2]))
        clock.forward(days=1)
    return made


async def paged(core: Core, choice: Choice, realm: str | None = None) -> list[str]:
    names: list[str] = []
    after = None
    while rows := await core.devices.list(realm, choice=choice, limit=2, after=after):
        names += [row.device for row in rows]
        after = rows[-1].id
    return names


async def test_overdue_and_expiring_devices_are_listed_most_pressing_first(core: Core, clock: SetClock) -> None:
    await _fleet(core, clock)
    clock.now = START + dt.timedelta(days=68.5)
    names = [f"d-{number}" for number in range(7)]
    assert await paged(core, OVERDUE) == names[:4]
    assert await paged(core, OVERDUE, "other") == ["d-1", "d-3"]
    week = Choice(expiring=dt.timedelta(days=7))
    assert await paged(core, week) == []
    clock.now = START + dt.timedelta(days=84.5)
    assert await paged(core, week) == [*names[:2]]
    clock.now = START + dt.timedelta(days=90.5)  # the first one has ended
    assert await paged(core, week) == names[1:]
    assert await paged(core, week, "default") == ["d-2", "d-4", "d-6"]


async def test_a_page_goes_on_where_it_ended_although_rows_leave_the_list(core: Core, clock: SetClock) -> None:
    made = await _fleet(core, clock, 6)
    clock.now = START + dt.timedelta(days=80)
    first = await core.devices.list(choice=OVERDUE, limit=2)
    await renewed(core, made[0].evidence, "d-0")
    rest = await core.devices.list(choice=OVERDUE, limit=9, after=first[-1].id)
    assert [row.device for row in [*first, *rest]] == [f"d-{number}" for number in range(6)]


async def test_devices_of_a_state_are_listed_as_they_were_added(core: Core, clock: SetClock) -> None:
    await _fleet(core, clock, 4)
    await core.devices.add("other", "new", actor=ME)
    await core.devices.suspend("default", "d-2", actor=ME)
    assert await paged(core, Choice(DeviceState.ACTIVE)) == ["d-0", "d-1", "d-3"]
    assert await paged(core, Choice(DeviceState.ACTIVE), "default") == ["d-0"]
    assert await paged(core, Choice(DeviceState.EXPECTED)) == ["new"]
    assert await paged(core, Choice(DeviceState.SUSPENDED)) == ["d-2"]
    assert await paged(core, Choice(DeviceState.RETIRED)) == []


@pytest.mark.parametrize("after", ["", "1", "1-", "-1-1", "1-1-1", "x-1", "1-\u0661", "9" * 19 + "-1"])
async def test_a_list_by_time_goes_on_only_after_an_id_of_its_own(core: Core, after: str) -> None:
    with pytest.raises(OperatorError) as caught:
        await core.devices.list("default", choice=OVERDUE, limit=1, after=after)
    assert caught.value.code == "after_invalid"


_INDEXES = {
    "overdue": (device_list._OVERDUE, "ix_device_overdue"),  # what is served is looked at
    "expiring": (device_list._EXPIRING, "ix_device_not_after"),
    "state": (device_list._STATE, "ix_device_state"),
    "history": (history._ACTS, "ix_audit_device"),
}


@pytest.mark.parametrize("case", _INDEXES)
def test_a_few_among_many_are_found_by_an_index(installation: Installation, case: str) -> None:
    query, index = _INDEXES[case]
    if installation.postgres is None:
        text, constants = query.text(sqlite_dialect.dialect(paramstyle="named"))
        plan = _sqlite_plan(installation, text, constants)
    else:
        plan = _postgres_plan(installation, query)
    assert index in plan
    assert "SCAN device" not in plan
    assert "TEMP B-TREE FOR ORDER BY" not in plan
    assert "Sort" not in plan


def _sqlite_plan(installation: Installation, text: str, constants: dict[str, object]) -> str:
    given = dict.fromkeys(("realm_id", "after", "after_at", "until_at", "limit", "state", "realm", "device"), 1)
    with contextlib.closing(sqlite3.connect(installation.directory / "enrolld.db")) as connection:
        return "\n".join(row[3] for row in connection.execute(f"EXPLAIN QUERY PLAN {text}", given | constants))


def _postgres_plan(installation: Installation, query: Query) -> str:
    """With every other way made dear: an empty table would be read whole, whatever indexes it has."""
    text, names = numbered(query)
    for number in range(len(names), 0, -1):
        constant = names[number - 1][1]
        kind = "'x'" if names[number - 1][0] in ("state", "realm", "device") else "1"
        text = text.replace(f"${number}", str(constant) if constant is not None else kind)
    with contextlib.closing(psycopg.connect(installation.store_url)) as connection:
        for dear in ("enable_seqscan", "enable_sort", "enable_bitmapscan"):
            connection.execute(f"SET {dear} = off".encode())
        return "\n".join(row[0] for row in connection.execute(f"EXPLAIN {text}".encode()))


def test_an_upgraded_store_knows_what_to_expect(tmp_path: Path) -> None:
    installation = load("0005", tmp_path / "kept", None)
    upgrade_store(installation.store_url)
    rows = installation.sql(
        "SELECT name, not_after IS NULL, overdue_at > expected_renewal_at FROM device ORDER BY name"
    )
    assert rows == [("d-1", 0, 1), ("d-2", 1, None), ("d-3", 0, 1), ("d-4", 1, None)]
