"""The device registry: what operators may register, and what it tells them."""

import asyncio
import datetime as dt

import pytest
from cryptography import x509

from ca_core.core import Core
from ca_core.errors import OperatorError
from ca_core.model import Evidence, Operation
from tests.helpers import factory
from tests.helpers.core import (
    CALL,
    ME,
    START,
    Installation,
    SetClock,
    ask,
    code_of,
    csr_of,
    edit_realm,
    enrolled,
    new_key,
)


async def _refused(core: Core, name: str = "sensor", *, realm: str = "default", **options: object) -> str:
    with pytest.raises(OperatorError) as caught:
        await core.devices.add(realm, name, actor=ME, **options)  # type: ignore[arg-type]  # a table of any option
    assert caught.value.remedy
    assert str(caught.value).isprintable()
    return caught.value.code


@pytest.fixture
async def acme(core: Core) -> Core:
    await core.trust.add("default", factory.root().pem, name="acme", actor=ME)
    return core


async def test_a_device_is_added_with_all_that_is_known_of_it(acme: Core, installation: Installation) -> None:
    handed = await acme.devices.add(
        "default",
        "AA:BB",
        profile="scep",
        serial_number="AC-1",
        manufacturer="acme",
        sans=["IP:192.0.2.1", "dns:Sensor.Example", "DNS:sensor.example"],
        owner="line 7",
        expires="1h",
        actor=ME,
    )
    assert (handed.device, handed.username, handed.profile) == ("AA:BB", "AA-BB", "scep")
    assert handed.expires == "2026-11-22T13:00:00Z"
    row = await acme.devices.show("default", "AA:BB")
    assert row.names == ["DNS:sensor.example", "IP:192.0.2.1"]
    assert (row.serial_number, row.manufacturer, row.owner, row.state) == ("AC-1", "acme", "line 7", "expected")
    assert row.created_at == "2026-11-22T12:00:00Z"
    assert row.last_seen_at is None
    (event,) = installation.events("device.added")
    assert event == {
        "profile": "scep",
        "serial_number": "AC-1",
        "manufacturer": "acme",
        "names": ["DNS:sensor.example", "IP:192.0.2.1"],
    }


@pytest.mark.parametrize(
    ("options", "code"),
    [
        pytest.param({"name": "a b"}, "name_invalid", id="name"),
        pytest.param({"realm": "nowhere"}, "realm_unknown", id="realm"),
        pytest.param({"profile": "gold"}, "profile_unknown", id="profile"),
        pytest.param({"sans": ["email:a@b"]}, "san_invalid", id="san"),
        pytest.param({"sans": ["DNS:*.example"]}, "host_invalid", id="wildcard"),
        pytest.param({"expires": "soon"}, "time_invalid", id="expiry"),
        pytest.param({"expires": "2026-11-22T11:59:59Z"}, "time_past", id="expired"),
        pytest.param({"expires": "999999999d"}, "duration_invalid", id="expiry-beyond-all-time"),
        pytest.param({"manufacturer": "acme"}, "identity_incomplete", id="manufacturer-alone"),
        pytest.param({"serial_number": "1", "manufacturer": "globex"}, "manufacturer_unknown", id="manufacturer"),
        pytest.param({"serial_number": ""}, "identity_invalid", id="empty-serial"),
        pytest.param({"serial_number": "x" * 65}, "identity_invalid", id="long-serial"),
        pytest.param({"serial_number": "1\n"}, "identity_invalid", id="newline-in-serial"),
        pytest.param({"serial_number": "1", "realm": "other"}, "identity_incomplete", id="serial-without-anchor"),
    ],
)
async def test_a_device_that_can_not_be_is_not_added(
    acme: Core, installation: Installation, options: dict[str, str], code: str
) -> None:
    assert await _refused(acme, **options) == code
    assert installation.sql("SELECT count(*) FROM device") == [(0,)]
    assert installation.sql("SELECT count(*) FROM device_secret") == [(0,)]
    assert installation.events("device.added") == []


async def test_a_name_is_one_device_of_a_realm(core: Core) -> None:
    await core.devices.add("default", "sensor", actor=ME)
    assert await _refused(core) == "device_exists"
    await core.devices.add("other", "sensor", actor=ME)
    assert await _refused(core, "Sensor") == "name_of_other_device", "DNS does not tell them apart"
    await core.devices.add("default", "sensors", actor=ME)


async def test_an_identity_is_one_device_of_a_realm(acme: Core) -> None:
    await acme.devices.add("default", "sensor", serial_number="AC-1", actor=ME)
    assert await _refused(acme, "second", serial_number="AC-1") == "identity_taken"
    await acme.devices.add("default", "third", serial_number="AC-2", actor=ME)
    await acme.trust.add("default", factory.root().pem, name="globex", actor=ME)
    await acme.devices.add("default", "fourth", serial_number="AC-1", manufacturer="globex", actor=ME)


async def test_a_serial_number_needs_its_manufacturer_once_there_are_two(acme: Core) -> None:
    assert (await acme.devices.add("default", "one", serial_number="1", actor=ME)).device == "one"
    assert (await acme.devices.show("default", "one")).manufacturer == "acme"
    await acme.trust.add("default", factory.root().pem, name="globex", actor=ME)
    assert await _refused(acme, "two", serial_number="2") == "identity_incomplete"
    await acme.devices.add("default", "two", serial_number="2", manufacturer="globex", actor=ME)


async def test_an_anchor_for_tls_is_no_manufacturer(core: Core) -> None:
    await core.trust.add("default", factory.root().pem, name="proxy", purpose="tls", actor=ME)
    assert await _refused(core, serial_number="1") == "identity_incomplete"
    assert await _refused(core, serial_number="1", manufacturer="proxy") == "manufacturer_unknown"


async def test_of_two_that_add_one_device_at_once_one_is_told_it_exists(core: Core, second: Core) -> None:
    async def add(node: Core) -> str:
        try:
            await node.devices.add("default", "sensor", actor=ME)
        except OperatorError as exc:
            return exc.code
        return "added"

    codes = await asyncio.gather(*(add(node) for node in (core, second) * 4))
    assert sorted(codes) == ["added", *["device_exists"] * 7]


async def test_a_device_is_not_added_to_a_realm_that_changes_at_this_moment(core: Core, second: Core) -> None:
    before = await core.realms.get("default")

    async def stale(_: str) -> object:
        return before

    await edit_realm(second, "default", 'retry_window = "24h"', 'retry_window = "1h"')
    real = core.realms.get
    core.realms.get = stale  # type: ignore[assignment,method-assign]  # as if the change came just after the look
    assert await _refused(core) == "realm_changed"
    core.realms.get = real  # type: ignore[method-assign]  # the twin
    await core.devices.add("default", "sensor", actor=ME)


# --- secrets ---------------------------------------------------------------------------------------------------------


async def test_a_new_secret_voids_every_older_one(core: Core, installation: Installation) -> None:
    first = await core.devices.add("default", "sensor", actor=ME)
    second = await core.devices.secret("default", "sensor", expires="12h", actor=ME)
    third = await core.devices.secret("default", "sensor", actor=ME)
    assert (second.expires, third.expires) == ("2026-11-23T00:00:00Z", "2026-11-29T12:00:00Z")
    codes = [await code_of(core, Evidence(secret=h.secret), csr_of(new_key())) for h in (first, second, third)]
    assert codes == ["secret_void", "secret_void", "issued"]
    assert installation.events("secret.made") == [{"expires": second.expires}, {"expires": third.expires}]


async def test_a_new_secret_of_one_device_leaves_the_others_alone(core: Core) -> None:
    other = await core.devices.add("default", "other", actor=ME)
    namesake = await core.devices.add("other", "sensor", actor=ME)
    await core.devices.add("default", "sensor", actor=ME)
    await core.devices.secret("default", "sensor", actor=ME)
    assert await code_of(core, Evidence(secret=other.secret), csr_of(new_key(), "other")) == "issued"
    assert await code_of(core, Evidence(secret=namesake.secret), csr_of(new_key()), label="other") == "issued"


async def test_the_lifetime_of_a_secret_is_the_realm_s(core: Core) -> None:
    await edit_realm(core, "default", 'secret_lifetime = "7d"', 'secret_lifetime = "30m"')
    assert (await core.devices.add("default", "sensor", actor=ME)).expires == "2026-11-22T12:30:00Z"


@pytest.mark.parametrize("name", ["nobody", "x" * 500, "\x1b[31m"])
async def test_a_device_that_is_not_there_is_told_so(core: Core, name: str) -> None:
    for act in (core.devices.show, core.devices.why):
        with pytest.raises(OperatorError) as caught:
            await act("default", name)
        assert caught.value.code == "device_unknown"
    for change in (core.devices.secret, core.devices.suspend, core.devices.resume):
        with pytest.raises(OperatorError) as caught:
            await change("default", name, actor=ME)
        assert caught.value.code == "device_unknown"
        assert str(caught.value).isprintable()
        assert len(str(caught.value)) < 300


async def test_a_retired_device_gets_no_secret(core: Core, installation: Installation) -> None:
    await core.devices.add("default", "sensor", actor=ME)
    installation.sql("UPDATE device SET state = 'retired'")
    with pytest.raises(OperatorError) as caught:
        await core.devices.secret("default", "sensor", actor=ME)
    assert caught.value.code == "device_retired"
    assert "retired" in (await core.devices.why("default", "sensor")).sentence


# --- states ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("has_certificate", "state"), [(False, "expected"), (True, "active")])
async def test_a_resumed_device_is_what_it_was(
    core: Core, installation: Installation, has_certificate: bool, state: str
) -> None:
    if has_certificate:
        await enrolled(core)
    else:
        await core.devices.add("default", "sensor", actor=ME)
    assert (await core.devices.show("default", "sensor")).state == state
    assert (await core.devices.suspend("default", "sensor", actor=ME)).state == "suspended"
    assert (await core.devices.resume("default", "sensor", actor=ME)).state == state
    assert len(installation.events("device.suspended")) == len(installation.events("device.resumed")) == 1


async def test_a_device_is_not_suspended_or_resumed_twice(core: Core, installation: Installation) -> None:
    await core.devices.add("default", "sensor", actor=ME)
    for change, ready in ((core.devices.resume, core.devices.suspend), (core.devices.suspend, core.devices.resume)):
        with pytest.raises(OperatorError) as caught:
            await change("default", "sensor", actor=ME)
        assert caught.value.code == "device_state"
        await ready("default", "sensor", actor=ME) if change == core.devices.resume else None
    assert len(installation.events("device.suspended")) == 1


async def test_suspending_touches_one_device_of_one_realm(core: Core) -> None:
    for realm, name in (("default", "sensor"), ("default", "other"), ("other", "sensor")):
        await core.devices.add(realm, name, actor=ME)
    await core.devices.suspend("default", "sensor", actor=ME)
    states = [(row.realm, row.device, row.state) for row in await core.devices.list(limit=10)]
    assert states == [
        ("default", "sensor", "suspended"),
        ("default", "other", "expected"),
        ("other", "sensor", "expected"),
    ]


async def test_resuming_touches_one_device_of_one_realm(core: Core) -> None:
    for realm in ("other", "default"):
        await core.devices.add(realm, "sensor", actor=ME)
        await core.devices.suspend(realm, "sensor", actor=ME)
    await core.devices.resume("default", "sensor", actor=ME)
    states = [(row.realm, row.state) for row in await core.devices.list(limit=10)]
    assert states == [("other", "suspended"), ("default", "expected")]


# --- why -------------------------------------------------------------------------------------------------------------


async def _why(core: Core) -> str:
    sentence = (await core.devices.why("default", "sensor")).sentence
    assert sentence.endswith(".")
    return sentence


async def test_why_tells_where_a_device_stands_in_one_sentence(core: Core, clock: SetClock) -> None:
    handed = await core.devices.add("default", "sensor", actor=ME)
    assert await _why(core) == "It never asked; its secret waits to be used until 2026-11-29T12:00:00Z."
    clock.forward(days=8)
    assert "it has no usable secret" in await _why(core)
    handed = await core.devices.secret("default", "sensor", actor=ME)
    issued = await ask(core, Evidence(secret=handed.secret), csr_of(new_key()))
    serial = format(issued.serial, "x")
    until = x509.load_der_x509_certificate(issued.certificate).not_valid_after_utc
    renewal = (await core.devices.show("default", "sensor")).expected_renewal_at
    assert (
        await _why(core)
        == f"All is well: its certificate {serial} is valid until {until:%Y-%m-%dT%H:%M:%SZ}, and it should renew about"
        f" {renewal}."
    )
    await core.devices.suspend("default", "sensor", actor=ME)
    assert "It is suspended; 'enrolld device resume sensor'" in await _why(core)
    await core.devices.resume("default", "sensor", actor=ME)
    clock.forward(days=91)
    assert f"its certificate expired {until:%Y-%m-%dT%H:%M:%SZ}, and it should have renewed about" in await _why(core)
    await core.certificates.revoke(serial, actor=ME)
    assert f"Its last certificate, {serial}, is revoked" in await _why(core)


async def test_why_names_the_realm_in_what_to_type(core: Core) -> None:
    await core.devices.add("other", "sensor", actor=ME)
    await core.devices.suspend("other", "sensor", actor=ME)
    why = await core.devices.why("other", "sensor")
    assert "'enrolld device resume sensor --realm other'" in why.sentence


async def test_why_tells_the_last_refusal_and_how_often(core: Core, clock: SetClock) -> None:
    device = await enrolled(core)
    for _ in range(3):
        clock.forward(minutes=1)
        csr = csr_of(new_key(), "pacemaker")
        assert await code_of(core, device.evidence, csr) == "subject_mismatch"
    async with asyncio.timeout(20):
        while len((await core.devices.why("default", "sensor")).timeline) < 4:  # noqa: ASYNC110  # written behind the answer
            await asyncio.sleep(0.01)
    await core.devices.secret("default", "sensor", actor=ME)
    why = await core.devices.why("default", "sensor")
    assert why.sentence.startswith("It was refused 3 times lately, last at 2026-11-22T12:03:00Z: subject_mismatch.")
    assert [row.outcome for row in why.timeline] == ["refused", "refused", "refused", "issued"]
    assert {row.request_id for row in why.timeline} == {CALL.request_id}
    assert await code_of(core, device.evidence, csr_of(new_key()), operation=Operation.REENROLL) == "issued"
    assert (await _why(core)).startswith("All is well")


# --- lists -----------------------------------------------------------------------------------------------------------


async def test_a_list_goes_on_after_the_last_row_also_while_devices_are_added(core: Core) -> None:
    names = [f"d{i}" for i in range(7)]
    for name in names:
        await core.devices.add("default", name, actor=ME)
        await core.devices.add("other", name, actor=ME)
    seen: list[str] = []
    after = None
    while rows := await core.devices.list("default", limit=3, after=after):
        seen += [row.device for row in rows]
        after = rows[-1].id
        if len(seen) == 3:
            await core.devices.add("default", "late", actor=ME)
    assert seen == [*names, "late"]
    everything = await core.devices.list(limit=100)
    assert len(everything) == 15
    assert await core.devices.list(limit=100, after=everything[3].id) == everything[4:]
    assert await core.devices.list("default", limit=100, after=str(10**17)) == []


@pytest.mark.parametrize("after", ["", "-1", "x", "1;", "1.0", "\u0661", "9" * 19, "1 "])
async def test_a_list_goes_on_only_after_an_id(core: Core, after: str) -> None:
    for listing in (core.devices.list("default", limit=1, after=after), core.certificates.list(limit=1, after=after)):
        with pytest.raises(OperatorError) as caught:
            await listing
        assert caught.value.code == "after_invalid"


async def test_a_device_that_was_seen_shows_when(core: Core, clock: SetClock) -> None:
    clock.now = START + dt.timedelta(hours=1)
    await enrolled(core)
    assert (await core.devices.show("default", "sensor")).last_seen_at == "2026-11-22T13:00:00Z"


async def test_a_request_id_explains_its_refusal(core: Core) -> None:
    device = await enrolled(core)
    await code_of(core, device.evidence, csr_of(new_key(), "pacemaker"))
    await core.devices.secret("default", "sensor", actor=ME)
    row = await core.attempts.explain(f" {CALL.request_id.upper()}\n")
    assert (row.code, row.device, row.outcome) == ("subject_mismatch", "sensor", "refused")
    assert row.remedy
    assert "pacemaker" not in (row.message or "")
    assert "pacemaker" in (row.detail or "")
    with pytest.raises(OperatorError) as caught:
        await core.attempts.explain("zzzz-zzzz")
    assert caught.value.code == "request_unknown"
