"""A renewal may repeat what its certificate has: nobody else can have got it while that stands."""

import datetime as dt
from typing import Any

import pytest
from cryptography.x509.oid import NameOID

from ca_core.core import Core
from ca_core.model import Evidence, Operation
from tests.helpers.admission import admit_by, outcome_of
from tests.helpers.core import ME, START, Enrolled, Installation, SetClock
from tests.helpers.factory import root
from tests.helpers.naming import ANY_NAME, Asker, request, with_profile

SHARED = "DNS:noc.example.com"
NUMBER = {NameOID.SERIAL_NUMBER: "SN-777"}
NUMBERED: dict[str, Any] = {"subject": {"CN": "{device.name}", "serialNumber": "{csr:*?}"}}


async def renewal(core: Core, held: Enrolled, *names: str, **options: Any) -> str:
    return await outcome_of(core, held.evidence, request(held.name, *names, **options), operation=Operation.REENROLL)


async def test_two_that_had_one_name_of_old_both_renew_it_and_a_third_does_not_get_it(
    core: Core, installation: Installation
) -> None:
    await with_profile(core, **ANY_NAME)
    held = []
    for name in ("one", "two"):
        held.append(await (await Asker.made(core, name)).enrolls(name, SHARED))
        installation.sql("DELETE FROM device_name WHERE certificate_id IS NOT NULL")  # as before it was looked at
    for each in (*held, held[0]):
        assert await renewal(core, each, SHARED) == "issued"
    assert await (await Asker.made(core, "three")).asks("three", SHARED) == "name_of_other_device"
    assert await renewal(core, held[1], SHARED, "DNS:three.example.com") == "renewal_san_mismatch", "nothing more"


@pytest.mark.parametrize(
    ("is_taken", "outcome"), [(True, "name_of_other_device"), (False, "issued")], ids=["taken", "twin-free"]
)
async def test_what_has_ended_is_repeated_only_while_nobody_else_has_it(
    core: Core, clock: SetClock, is_taken: bool, outcome: str
) -> None:
    await with_profile(core, **ANY_NAME)
    await admit_by(core, "secret", expired_grace="30d")
    late = await (await Asker.made(core, "late")).enrolls("late", SHARED)
    clock.now = late.x509.not_valid_after_utc + dt.timedelta(days=1)
    if is_taken:
        other = await Asker.made(core, "other")
        assert await other.asks("other", SHARED) == "issued"
    assert clock.now > START
    assert await renewal(core, late, SHARED) == outcome


async def test_what_is_registered_later_is_no_fault_of_a_serial_number_that_was_there_before(core: Core) -> None:
    await with_profile(core, **NUMBERED)
    await core.trust.add("default", root().pem, name="acme", actor=ME)
    held = await (await Asker.made(core, "before")).enrolls("before", subject=NUMBER)
    await core.devices.add("default", "gate-1", serial_number="SN-777", manufacturer="acme", actor=ME)
    assert await renewal(core, held, subject=NUMBER) == "issued"
    after = await Asker.made(core, "after")
    assert await after.asks("after", subject=NUMBER) == "name_of_other_device", "the twin"


@pytest.mark.parametrize(
    ("act", "outcome"),
    [
        ("none", "name_of_other_device"),
        ("retired", "name_of_other_device"),
        ("retired-and-revoked", "issued"),
        ("taken-over", "issued"),
    ],
)
async def test_a_retired_device_has_its_serial_number_while_a_certificate_of_it_stands(
    core: Core, act: str, outcome: str
) -> None:
    await with_profile(core, **NUMBERED)
    await core.trust.add("default", root().pem, name="acme", actor=ME)
    await (await Asker.made(core, "old", serial_number="SN-777", manufacturer="acme")).enrolls("old")
    new = await Asker.made(core, "new")
    if act == "taken-over":
        await core.devices.replace_by("default", "old", "new", actor=ME)
        new.evidence = Evidence(secret=(await core.devices.secret("default", "new", actor=ME)).secret)
    elif act != "none":
        await core.devices.retire("default", "old", revoke="superseded" if "revoked" in act else None, actor=ME)
    assert await new.asks("new", subject=NUMBER) == outcome
