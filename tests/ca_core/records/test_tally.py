"""The tally: what is kept is what counting would find, whatever happened and in whatever order."""

import asyncio
import random

import pytest

from ca_core.core import Core
from ca_core.errors import OperatorError, Refusal, Unavailable
from ca_core.model import Evidence
from ca_core.records.opening import EARLIER, upgrade_store
from tests.helpers.core import ME, Enrolled, Installation, ask, csr_of, enrolled, new_key
from tests.helpers.earlier import take_back

_SECRET = "CASE WHEN voided_at IS NOT NULL THEN 'void' WHEN spent_at IS NOT NULL THEN 'spent' ELSE 'open' END"
_COUNTED = f"""
SELECT 'device', realm_id, 0, state, COUNT(*) FROM device GROUP BY realm_id, state
UNION ALL SELECT 'certificate', realm_id, issuer_id, status, COUNT(*) FROM certificate
    WHERE kind = 'device' GROUP BY realm_id, issuer_id, status
UNION ALL SELECT 'secret', realm_id, 0, {_SECRET}, COUNT(*) FROM device_secret GROUP BY realm_id, {_SECRET}
UNION ALL SELECT 'audit', 0, 0, action, COUNT(*) FROM audit GROUP BY action
"""  # noqa: S608  # of the line above
_KEPT = """
SELECT kind, realm_id, issuer_id, state, CAST(SUM(total) AS BIGINT) FROM tally
    GROUP BY kind, realm_id, issuer_id, state HAVING SUM(total) <> 0
"""


def assert_exact(installation: Installation) -> None:
    assert set(installation.sql(_KEPT)) == set(installation.sql(_COUNTED))


async def _one_act(core: Core, chance: random.Random, fleet: list[Enrolled], number: int) -> None:
    name = chance.choice(fleet).name if fleet else ""
    match chance.choice(("add", "enroll", "enroll", "renew", "revoke", "hold", "suspend", "resume", "secret", "realm")):
        case "add":
            await core.devices.add("default", f"new-{number}", actor=ME)
        case "enroll":
            fleet.append(await enrolled(core, f"d-{number}", realm=chance.choice(("default", "other"))))
        case "renew" if fleet:
            one = chance.choice(fleet)
            label = "other" if "other" in one.x509.issuer.rfc4514_string() else None
            await ask(core, one.evidence, csr_of(new_key(), one.name), label=label)
        case "revoke" | "hold" as act if fleet:
            reason = "certificateHold" if act == "hold" else chance.choice(("superseded", "keyCompromise"))
            await core.certificates.revoke(chance.choice(fleet).serial, reason=reason, actor=ME)
        case "suspend" if fleet:
            await core.devices.suspend("default", name, actor=ME)
        case "resume" if fleet:
            await core.devices.resume("default", name, actor=ME)
        case "secret" if fleet:
            await core.devices.secret("default", name, actor=ME)
        case "realm" if number % 40 == 0:
            await core.realms.add(f"realm-{number}", actor=ME)


@pytest.mark.parametrize("seed", range(4))
async def test_what_is_kept_is_what_is_there_after_any_sequence_of_acts(
    core: Core, installation: Installation, seed: int
) -> None:
    chance = random.Random(seed)
    fleet: list[Enrolled] = []
    refused = 0
    for number in range(120):
        try:
            await _one_act(core, chance, fleet, number)
        except (OperatorError, Refusal):
            refused += 1  # a suspended device that renews, a certificate that is revoked twice: nothing was written
        if number % 10 == 0:
            assert_exact(installation)
    assert_exact(installation)
    assert 5 < refused < 80, "a good part is refused, and a good part is not"


async def test_acts_at_the_same_time_are_counted_once_each(core: Core, installation: Installation) -> None:
    await asyncio.gather(*(enrolled(core, f"d-{number}") for number in range(40)))
    assert_exact(installation)
    assert ("device", 1, 0, "active", 40) in installation.sql(_KEPT)


@pytest.mark.parametrize(
    "statement",
    [
        pytest.param("UPDATE device SET state = 'retired' WHERE name LIKE 'd-%'", id="retired"),
        pytest.param("DELETE FROM attempt", id="attempts-are-not-counted"),
        pytest.param("DELETE FROM device WHERE name = 'idle'", id="a-device-that-goes"),
        pytest.param("UPDATE certificate SET status = 'valid' WHERE status = 'hold'", id="a-hold-that-ends"),
        pytest.param("UPDATE certificate SET status = status, reason = 'x'", id="an-update-without-news"),
    ],
)
async def test_what_no_command_does_yet_is_counted_as_well(
    core: Core, installation: Installation, statement: str
) -> None:
    one = await enrolled(core, "d-1")
    await core.certificates.revoke(one.serial, reason="certificateHold", actor=ME)
    await core.devices.add("default", "idle", actor=ME)
    installation.sql("DELETE FROM device_secret WHERE device_id = (SELECT id FROM device WHERE name = 'idle')")
    installation.sql("DELETE FROM device_name WHERE device_id = (SELECT id FROM device WHERE name = 'idle')")
    installation.sql(statement)
    assert_exact(installation)


async def test_a_batch_that_is_rolled_back_takes_its_counts_along(core: Core, installation: Installation) -> None:
    await enrolled(core, "d-1")
    before = sorted(installation.sql(_KEPT))
    installation.refuse("INSERT", "attempt", "no")
    handed = await core.devices.add("default", "d-2", actor=ME)  # writes no attempt
    after = sorted(installation.sql(_KEPT))
    assert before != after
    with pytest.raises(Unavailable, match="keeps refusing"):
        await ask(core, Evidence(username="", secret=handed.secret), csr_of(new_key(), "d-2"))
    assert sorted(installation.sql(_KEPT)) == after
    assert_exact(installation)


@pytest.mark.parametrize("engine", ["sqlite"], indirect=True)
@pytest.mark.parametrize("revision", EARLIER)
async def test_an_upgraded_store_counts_what_it_had(installation: Installation, revision: str) -> None:
    core = installation.open()
    one = await enrolled(core, "d-1")
    await enrolled(core, "d-2", realm="other")
    await core.certificates.revoke(one.serial, actor=ME)
    await core.devices.secret("default", "d-1", actor=ME)
    before = installation.sql(_KEPT)
    core.close()
    database = installation.directory / "enrolld.db"
    take_back(database, revision)
    upgrade_store(f"sqlite:///{database}")
    assert sorted(installation.sql(_KEPT)) == sorted(before)
    core = installation.open()
    await enrolled(core, "d-3")
    core.close()
    assert_exact(installation)


@pytest.mark.parametrize(
    ("engine", "revision"),
    [("postgresql", ""), ("sqlite", ""), *(("sqlite", revision) for revision in EARLIER)],
    indirect=["engine"],
)
def test_every_trigger_is_there_however_the_store_came_to_its_revision(
    installation: Installation, revision: str
) -> None:
    """A revision that rebuilds a table loses the table's triggers, and nothing else would say so."""
    if revision:
        take_back(installation.directory / "enrolld.db", revision)
        upgrade_store(installation.store_url)
    found = installation.triggers()
    changing = ("device", "certificate", "device_secret")
    expected = {f"tally_{table}_{event}" for table in changing for event in ("insert", "update", "delete")}
    assert found == {*expected, "tally_audit_insert", "device_name_insert", "device_name_update"}
