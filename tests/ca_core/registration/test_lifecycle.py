"""What becomes of a device: retired, replaced by another, or going on with another board."""

import asyncio

import pytest

from ca_core.core import Core
from ca_core.errors import OperatorError, Refusal
from ca_core.model import Evidence
from ca_core.records.unit import Unit
from ca_core.registration.device_change import Facts
from tests.helpers import factory
from tests.helpers.core import ME, Enrolled, Installation, SetClock, ask, code_of, csr_of, enrolled, new_key

ROOT = factory.root()


@pytest.fixture
async def acme(core: Core) -> Core:
    await core.trust.add("default", ROOT.pem, name="acme", actor=ME)
    return core


async def renewal(core: Core, device: Enrolled) -> str:
    return await code_of(core, device.evidence, csr_of(new_key(), device.name))


async def refusal_of(act: object) -> str:
    with pytest.raises(OperatorError) as caught:
        await act  # type: ignore[misc]  # a coroutine of the table
    assert caught.value.remedy
    return caught.value.code


# --- retire ----------------------------------------------------------------------------------------------------------


async def test_nothing_is_issued_to_a_retired_device(core: Core, installation: Installation) -> None:
    device = await enrolled(core)
    handed = await core.devices.secret("default", "sensor", actor=ME)
    other = await enrolled(core, "other")
    done = await core.devices.retire("default", "sensor", actor=ME)
    assert (done.device.state, done.superseded, done.revocations) == ("retired", 1, [])
    assert await renewal(core, device) == "certificate_superseded"
    assert await code_of(core, Evidence(secret=handed.secret), csr_of(new_key())) == "secret_void"
    assert (await core.certificates.find(device.serial)).status == "valid"
    assert await renewal(core, other) == "issued"  # the twin
    assert installation.events("device.retired") == [{"revoked": None}]


async def test_retiring_is_final(core: Core) -> None:
    await core.devices.add("default", "sensor", actor=ME)
    await core.devices.retire("default", "sensor", actor=ME)
    devices = core.devices
    assert await refusal_of(devices.retire("default", "sensor", actor=ME)) == "device_retired"
    assert await refusal_of(devices.new_board("default", "sensor", actor=ME)) == "device_retired"
    assert await refusal_of(devices.resume("default", "sensor", actor=ME)) == "device_state"
    assert await refusal_of(devices.suspend("default", "sensor", actor=ME)) == "device_state"
    assert await refusal_of(devices.secret("default", "sensor", actor=ME)) == "device_retired"
    assert await refusal_of(devices.add("default", "sensor", actor=ME)) == "device_exists"


async def test_what_is_not_there_can_not_be_retired_or_replaced(core: Core) -> None:
    await core.devices.add("default", "sensor", actor=ME)
    devices = core.devices
    assert await refusal_of(devices.retire("default", "nobody", actor=ME)) == "device_unknown"
    assert await refusal_of(devices.retire("nowhere", "sensor", actor=ME)) == "realm_unknown"
    assert await refusal_of(devices.new_board("other", "sensor", actor=ME)) == "device_unknown"
    assert await refusal_of(devices.replace_by("default", "sensor", "nobody", actor=ME)) == "device_unknown"
    assert await refusal_of(devices.replace_by("default", "sensor", "sensor", actor=ME)) == "replacement_is_same"
    assert await refusal_of(devices.retire("default", "sensor", revoke="boredom", actor=ME)) == "reason_invalid"
    assert (await devices.show("default", "sensor")).state == "expected"


async def test_retiring_revokes_in_the_same_act_what_still_counts(
    core: Core, clock: SetClock, installation: Installation
) -> None:
    device = await enrolled(core)
    clock.forward(days=60)
    renewed = await ask(core, device.evidence, csr_of(new_key()))
    clock.forward(days=31)  # the first one has ended
    done = await core.devices.retire("default", "sensor", revoke="cessationOfOperation", actor=ME)
    assert [found.certificate.serial for found in done.revocations] == [format(renewed.serial, "x")]
    assert done.revocations[0].certificate.reason == "cessationOfOperation"
    assert (await core.certificates.find(device.serial)).status == "valid"
    (crl,) = await core.crls.publish(done.revocations[0].issuer)
    assert crl.entries == 1
    assert await core.crls.is_published(done.revocations[0])
    assert installation.events("certificate.revoked") == [{"reason": "cessationOfOperation"}]
    assert (await core.audit.verify()).findings == []


async def test_a_compromised_key_is_blocked_with_the_device(core: Core) -> None:
    device = await enrolled(core)
    await core.devices.retire("default", "sensor", revoke="keyCompromise", actor=ME)
    handed = await core.devices.add("default", "next", actor=ME)
    assert await code_of(core, Evidence(secret=handed.secret), csr_of(device.key, "next")) == "key_blocked"


async def test_a_held_certificate_is_revoked_and_a_revoked_one_left_alone(core: Core, clock: SetClock) -> None:
    device = await enrolled(core)
    second = await ask(core, device.evidence, csr_of(new_key()))
    await core.certificates.revoke(device.serial, reason="keyCompromise", actor=ME)
    await core.certificates.revoke(format(second.serial, "x"), reason="certificateHold", actor=ME)
    clock.forward(minutes=1)
    done = await core.devices.retire("default", "sensor", revoke="superseded", actor=ME)
    assert [found.certificate.serial for found in done.revocations] == [format(second.serial, "x")]
    assert (await core.certificates.find(device.serial)).reason == "keyCompromise"


# --- replace: the same device with another board ---------------------------------------------------------------------


async def idevid(core: Core, number: str) -> str:
    return await code_of(core, Evidence(chain=factory.idevid(ROOT, number).chain), csr_of(new_key()))


async def test_a_changed_board_is_the_same_device(acme: Core, installation: Installation) -> None:
    device = await enrolled(acme, serial_number="AC-1", owner="line 7")
    assert await idevid(acme, "AC-1") == "issued"
    done = await acme.devices.new_board("default", "sensor", serial_number="AC-2", actor=ME)
    assert (done.device.state, done.device.serial_number, done.device.manufacturer) == ("expected", "AC-2", "acme")
    assert (done.device.owner, done.superseded) == ("line 7", 2)
    assert await renewal(acme, device) == "certificate_superseded"
    assert await idevid(acme, "AC-1") == "device_unknown"
    assert await idevid(acme, "AC-2") == "issued"
    assert (await acme.devices.show("default", "sensor")).state == "active"
    (event,) = installation.events("device.replaced")
    assert event == {"serial_number": ["AC-1", "AC-2"], "manufacturer": ["acme", "acme"], "revoked": None}
    acts = [act.act for act in await acme.devices.history("default", "sensor")]
    assert sorted(acts) == ["certificate.issued"] * 3 + ["device.added", "device.replaced"]


async def test_a_re_imaged_device_may_bring_its_key_again(core: Core) -> None:
    device = await enrolled(core)
    await core.devices.new_board("default", "sensor", actor=ME)
    assert await renewal(core, device) == "certificate_superseded"
    handed = await core.devices.secret("default", "sensor", actor=ME)
    issued = await ask(core, Evidence(secret=handed.secret), csr_of(device.key))
    assert await code_of(core, Evidence(chain=(issued.certificate,)), csr_of(device.key)) == "issued"
    assert await renewal(core, device) == "certificate_superseded"  # the one before is gone for good


async def test_a_secret_of_before_serves_nobody_not_even_again(core: Core) -> None:
    key = new_key()
    handed = await core.devices.add("default", "sensor", actor=ME)
    secret = Evidence(secret=handed.secret)
    await ask(core, secret, csr_of(key))
    assert await code_of(core, secret, csr_of(key)) == "issued"  # the same request again
    await core.devices.new_board("default", "sensor", actor=ME)
    assert await code_of(core, secret, csr_of(key)) == "secret_void"


async def test_the_same_request_again_is_not_answered_with_what_is_superseded(acme: Core) -> None:
    await acme.devices.add("default", "sensor", serial_number="AC-1", actor=ME)
    made, csr = factory.idevid(ROOT, "AC-1"), csr_of(new_key())
    first = await ask(acme, Evidence(chain=made.chain), csr)
    assert (await ask(acme, Evidence(chain=made.chain), csr)).serial == first.serial
    await acme.devices.new_board("default", "sensor", actor=ME)
    assert (await ask(acme, Evidence(chain=made.chain), csr)).serial != first.serial


async def test_a_suspended_device_stays_so_when_its_board_changes(core: Core) -> None:
    await enrolled(core)
    await core.devices.suspend("default", "sensor", actor=ME)
    assert (await core.devices.new_board("default", "sensor", actor=ME)).device.state == "suspended"
    assert (await core.devices.resume("default", "sensor", actor=ME)).state == "expected"


async def test_a_board_is_one_device_of_a_realm(acme: Core) -> None:
    await acme.devices.add("default", "sensor", serial_number="AC-1", actor=ME)
    await acme.devices.add("default", "second", serial_number="AC-2", actor=ME)
    devices = acme.devices
    taken = devices.new_board("default", "sensor", serial_number="AC-2", actor=ME)
    assert await refusal_of(taken) == "identity_taken"
    foreign = devices.new_board("default", "sensor", serial_number="AC-3", manufacturer="globex", actor=ME)
    assert await refusal_of(foreign) == "manufacturer_unknown"
    assert (await devices.show("default", "sensor")).serial_number == "AC-1"


async def test_whoever_has_a_board_is_named_and_how_to_free_it(acme: Core) -> None:
    """Whichever act asks for it."""
    devices = acme.devices
    await devices.add("default", "holder", serial_number="AC-1", actor=ME)
    await devices.add("default", "second", actor=ME)

    async def told() -> set[tuple[str, str, str]]:
        facts = Facts(serial_number="AC-1")
        found: set[tuple[str, str, str]] = set()
        for act in (
            devices.add("default", "third", serial_number="AC-1", actor=ME),
            devices.change("default", "second", facts, actor=ME),
            devices.new_board("default", "second", serial_number="AC-1", actor=ME),
        ):
            with pytest.raises(OperatorError) as caught:
                await act
            found.add((caught.value.code, caught.value.message, caught.value.remedy))
        return found

    [(code, message, remedy)] = await told()
    assert (code, message) == (
        "identity_taken",
        "holder in realm default has this manufacturer and serial number",
    )
    assert "device set holder' with --serial-number ''" in remedy
    await devices.retire("default", "holder", actor=ME)
    [(code, message, remedy)] = await told()
    assert (code, message) == (
        "identity_taken",
        "holder in realm default has this manufacturer and serial number, and is retired",
    )
    assert "let the board enroll by a secret" in remedy
    await devices.add("default", "other", serial_number="AC-2", actor=ME)
    await devices.change("default", "other", Facts(serial_number=""), actor=ME)
    await devices.change("default", "second", Facts(serial_number="AC-2"), actor=ME)  # the twin: the remedy works


async def test_what_is_replaced_is_revoked_when_asked(core: Core) -> None:
    device = await enrolled(core)
    done = await core.devices.new_board("default", "sensor", revoke=True, actor=ME)
    assert [found.certificate.serial for found in done.revocations] == [device.serial]
    assert (await core.certificates.find(device.serial)).reason == "superseded"


# --- replace: another device takes over ------------------------------------------------------------------------------


async def test_another_device_takes_over_what_it_has_not_itself(core: Core, installation: Installation) -> None:
    old = await enrolled(core, "old", owner="line 7", sans=["DNS:gate.example"], profile="device")
    new = await enrolled(core, "new", owner="line 8")
    done = await core.devices.replace_by("default", "old", "new", actor=ME)
    assert (done.device.state, done.device.replaced_by, done.superseded) == ("retired", "new", 1)
    assert await renewal(core, old) == "certificate_superseded"
    row = await core.devices.show("default", "new")
    assert (row.owner, row.names, row.profile, row.state) == ("line 8", ["DNS:gate.example"], "device", "active")
    assert await renewal(core, new) == "issued"
    assert installation.events("device.took_over") == [{"from": "old"}]
    assert (await core.devices.why("default", "old")).sentence == "It is retired; new took over."


async def test_a_retired_device_takes_over_nothing(core: Core) -> None:
    await core.devices.add("default", "old", actor=ME)
    await core.devices.add("default", "new", actor=ME)
    await core.devices.retire("default", "new", actor=ME)
    assert await refusal_of(core.devices.replace_by("default", "old", "new", actor=ME)) == "device_retired"
    assert (await core.devices.show("default", "old")).state == "expected"


# --- at the same moment ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("revoke", [False, True], ids=["superseded", "revoked"])
async def test_a_renewal_at_the_same_moment_came_before_or_is_refused(
    core: Core, second: Core, *, revoke: bool
) -> None:
    over = "certificate_revoked" if revoke else "certificate_superseded"

    async def renew(device: Enrolled) -> Evidence | str:
        try:
            issued = await ask(core, device.evidence, csr_of(new_key(), device.name))
        except Refusal as refusal:
            return refusal.code
        return Evidence(chain=(issued.certificate,))

    for number in range(10):
        device = await enrolled(core, f"d-{number}")
        replacing = second.devices.new_board("default", device.name, revoke=revoke, actor=ME)
        _, said = await asyncio.gather(replacing, renew(device))
        if isinstance(said, Evidence):
            assert await code_of(core, said, csr_of(new_key(), device.name)) == over
        else:
            assert said == over


async def test_a_board_that_is_replaced_while_it_is_decided_gets_nothing(
    acme: Core, second: Core, monkeypatch: pytest.MonkeyPatch
) -> None:
    await acme.devices.add("default", "sensor", serial_number="AC-1", actor=ME)
    real = acme.store.commit
    replaced: list[str] = []

    async def commit(unit: Unit) -> int:
        if not replaced:
            replaced.append("AC-2")
            await second.devices.new_board("default", "sensor", serial_number="AC-2", actor=ME)
        return await real(unit)

    monkeypatch.setattr(acme.store, "commit", commit)
    assert await idevid(acme, "AC-1") == "device_unknown"
    assert await acme.certificates.list(limit=9) == []
    assert await idevid(acme, "AC-2") == "issued"
