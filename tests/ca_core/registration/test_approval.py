"""What an approval is for: who asked, what would be issued; and what an operator is told before he decides."""

import asyncio
import io
import itertools
import tomllib
from collections.abc import Awaitable, Callable, Coroutine
from functools import partial
from typing import Any

import pytest
import tomli_w

from ca_core.core import Core
from ca_core.errors import OperatorError
from ca_core.model import Evidence
from ca_core.registration.device_change import Facts
from tests.helpers.admission import admit_by, code_of_act, only_request, outcome_of, poll_outcome
from tests.helpers.core import ME, Installation, SetClock, csr_of, new_key, written
from tests.helpers.factory import idevid, root
from tests.helpers.interference import Interference

CHALLENGE = "a-challenge-of-thirty-characters"
Change = Callable[[Core, SetClock], Awaitable[None]]
SCEP = {"protocol": "scep", "transaction_id": "T-1"}


async def test_an_approval_does_not_outlive_the_device_that_was_meant(core: Core) -> None:
    await core.devices.add("default", "dev", actor=ME)
    await admit_by(core, "approval")
    key = new_key()
    assert await outcome_of(core, Evidence(), csr_of(key, "dev")) == "pending"
    await core.requests.approve((await only_request(core)).id, actor=ME)
    await core.devices.new_board("default", "dev", actor=ME)
    assert await outcome_of(core, Evidence(), csr_of(key, "dev")) == "pending", "it is looked at anew"


async def test_who_asked_in_a_name_before_it_was_registered_was_not_that_device(by_hand: Core) -> None:
    key = new_key()
    assert await outcome_of(by_hand, Evidence(), csr_of(key, "gate-1")) == "pending"
    await by_hand.requests.approve((await only_request(by_hand)).id, actor=ME)
    await by_hand.devices.add("default", "gate-1", sans=["DNS:vpn.example.com"], actor=ME)
    assert await outcome_of(by_hand, Evidence(), csr_of(key, "gate-1")) == "pending"


Registers = Callable[[Core], Coroutine[Any, Any, object]]


async def add(core: Core, name: str = "gate-1") -> None:
    await core.devices.add("default", name, sans=[f"DNS:{name}.example.com"], actor=ME)


async def bring(core: Core, name: str = "gate-1") -> None:
    lines = f"name,san\n{name},DNS:{name}.example.com\n"
    await core.device_import.run("default", io.BytesIO(lines.encode()), "devices.csv", actor=ME)


async def bring_without_names(core: Core) -> None:
    await core.device_import.run("default", io.BytesIO(b"name\ngate-1\n"), "devices.csv", actor=ME)


async def come_by_idevid(core: Core) -> None:
    anchor = root()
    await core.trust.add("default", anchor.pem, name="acme", actor=ME)
    await admit_by(core, "idevid", "approval", idevid="trusted")
    device = Evidence(idevid(anchor, "gate-1").chain)
    assert await outcome_of(core, device, csr_of(new_key(), "gate-1")) == "issued"


async def let_another_stranger_in(core: Core) -> None:
    key = new_key()
    assert await outcome_of(core, Evidence(), csr_of(key, "gate-1")) == "pending"
    *_, asked = await core.requests.list(state="pending", limit=9)
    await core.requests.approve(asked.id, actor=ME)
    assert await outcome_of(core, Evidence(), csr_of(key, "gate-1")) == "issued"


REGISTERS = [add, bring, bring_without_names, come_by_idevid, let_another_stranger_in]


@pytest.mark.parametrize("approved", [False, True], ids=["pending", "approved"])
@pytest.mark.parametrize("register", REGISTERS, ids=lambda act: act.__name__)
async def test_a_stranger_is_not_the_device_that_is_registered_by_his_name_since(
    by_hand: Core, register: Registers, approved: bool
) -> None:
    key, twin = new_key(), new_key()
    assert await outcome_of(by_hand, Evidence(), csr_of(key, "gate-1"), **SCEP) == "pending"
    asked = await only_request(by_hand)
    if approved:
        await by_hand.requests.approve(asked.id, actor=ME)
    await register(by_hand)
    assert (await by_hand.requests.show(asked.id)).state == "expired", "it holds nobody's place"
    assert await poll_outcome(by_hand, key) == "pending", "it is looked at anew"
    assert await outcome_of(by_hand, Evidence(), csr_of(key, "gate-1"), **SCEP) == "pending"
    anew = await only_request(by_hand, "pending")
    outlook = (await by_hand.requests.show(anew.id)).outlook
    assert outlook is not None
    assert outlook.warnings == ["gate-1 is registered, and nothing proves that it asks: compare the key"]
    assert await outcome_of(by_hand, Evidence(), csr_of(twin, "gate-2")) == "pending"
    await by_hand.requests.approve((await by_hand.requests.list(state="pending", limit=9))[1].id, actor=ME)
    assert await outcome_of(by_hand, Evidence(), csr_of(twin, "gate-2")) == "issued", "the twin"


@pytest.mark.parametrize("comes", [True, False], ids=["registered", "twin-nobody"])
async def test_a_stranger_is_not_the_device_that_came_while_the_realm_asked_no_operator(
    by_hand: Core, comes: bool
) -> None:
    anchor, key = root(), new_key()
    await by_hand.trust.add("default", anchor.pem, name="acme", actor=ME)
    assert await outcome_of(by_hand, Evidence(), csr_of(key, "AC-1")) == "pending"
    await by_hand.requests.approve((await only_request(by_hand)).id, actor=ME)
    await admit_by(by_hand, "idevid", idevid="trusted")
    if comes:
        assert await outcome_of(by_hand, Evidence(idevid(anchor, "AC-1").chain), csr_of(new_key(), "AC-1")) == "issued"
    await admit_by(by_hand, "approval")
    assert await outcome_of(by_hand, Evidence(), csr_of(key, "AC-1")) == ("pending" if comes else "issued")


async def test_who_had_the_challenge_and_an_approval_is_not_the_device_that_gets_a_secret(core: Core) -> None:
    await core.realms.challenge("default", CHALLENGE, actor=ME)
    await admit_by(core, "secret", "challenge + approval")
    key, evidence = new_key(), Evidence(secret=CHALLENGE)
    assert await outcome_of(core, evidence, csr_of(key, "gate-1")) == "pending"
    await core.requests.approve((await only_request(core)).id, actor=ME)
    await bring(core)
    assert await outcome_of(core, evidence, csr_of(key, "gate-1")) == "pending"
    handed = await core.devices.secret("default", "gate-1", actor=ME)
    assert await outcome_of(core, Evidence(secret=handed.secret), csr_of(new_key(), "gate-1")) == "issued", "the twin"


@pytest.mark.parametrize("register", [add, bring], ids=lambda act: act.__name__)
async def test_a_stranger_is_not_the_device_that_is_registered_while_he_is_granted(
    by_hand: Core, installation: Installation, register: Callable[[Core, str], Coroutine[Any, Any, object]]
) -> None:
    """Whichever step of the granting it comes before; after the last one, he is that device."""
    for step in itertools.count(1):
        name, key = f"gate-{step}", new_key()
        assert await outcome_of(by_hand, Evidence(), csr_of(key, name)) == "pending"
        *_, asked = await by_hand.requests.list(state="pending", limit=99)
        await by_hand.requests.approve(asked.id, actor=ME)
        interference = Interference(step, partial(register, by_hand, name))
        node = installation.open(hook=interference)
        try:
            outcome = await outcome_of(node, Evidence(), csr_of(key, name))
        finally:
            node.close()
        if not interference.happened:
            break
        assert outcome == "pending", step
        assert await outcome_of(by_hand, Evidence(), csr_of(key, name)) == "pending"
        assert await by_hand.certificates.list(device=name, limit=9) == []
    assert outcome == "issued", "the twin"
    assert step > 5, "reads, submit and lock"


async def test_of_two_strangers_who_are_approved_in_one_name_one_is_that_device(by_hand: Core, second: Core) -> None:
    keys = [new_key() for _ in range(4)]
    for key in keys:
        assert await outcome_of(by_hand, Evidence(), csr_of(key, "one")) == "pending"
    rows = await by_hand.requests.list(limit=9)
    outlook = (await by_hand.requests.show(rows[0].id)).outlook
    assert outlook is not None
    others = ", ".join(row.id for row in rows[1:])
    assert outlook.warnings == [f"others ask in the name of one as well: see request {others}"]
    for row in rows:
        await by_hand.requests.approve(row.id, actor=ME)
    asking = [
        outcome_of(core, Evidence(), csr_of(key, "one")) for core, key in zip([by_hand, second] * 2, keys, strict=True)
    ]
    assert sorted(await asyncio.gather(*asking)) == ["issued", "pending", "pending", "pending"]
    assert len(await by_hand.certificates.list(device="one", limit=9)) == 1


async def test_who_proves_to_be_the_device_is_granted_though_it_was_registered_since(core: Core) -> None:
    anchor, key = root(), new_key()
    device = Evidence(idevid(anchor, "AC-1").chain)
    await core.trust.add("default", anchor.pem, name="acme", actor=ME)
    await admit_by(core, "idevid + approval", idevid="trusted")
    assert await outcome_of(core, device, csr_of(key, "AC-1")) == "pending"
    await core.requests.approve((await only_request(core)).id, actor=ME)
    lines = b"name,serial_number,manufacturer\nAC-1,AC-1,acme\n"
    await core.device_import.run("default", io.BytesIO(lines), "devices.csv", actor=ME)
    assert await outcome_of(core, device, csr_of(key, "AC-1")) == "issued"


async def set_names(core: Core) -> None:
    await core.devices.change("default", "sensor", Facts(names=["DNS:admin.example.com"]), actor=ME)


async def set_owner(core: Core) -> None:
    await core.devices.change("default", "sensor", Facts(owner="somebody"), actor=ME)


async def add_a_unit(core: Core) -> None:
    await edit_profile(core, subject={"CN": "{device.name}", "OU": "Admins"})


async def add_a_purpose(core: Core) -> None:
    await edit_profile(core, extended_key_usages=["clientAuth", "serverAuth"])


async def shorten(core: Core) -> None:
    await edit_profile(core, validity="30d")


async def edit_profile(core: Core, **changed: Any) -> None:
    document = tomllib.loads(await core.realms.export("default"))
    for profile in document["profiles"].values():
        profile |= changed
    await core.realms.apply(tomli_w.dumps(document), actor=ME)


@pytest.mark.parametrize(
    ("change", "outcome"),
    [
        (set_names, "pending"),
        (add_a_unit, "pending"),
        (add_a_purpose, "pending"),
        (set_owner, "issued"),
        (shorten, "issued"),
    ],
    ids=lambda value: getattr(value, "__name__", value),
)
@pytest.mark.parametrize("approved", [False, True], ids=["pending", "approved"])
async def test_an_approval_is_for_what_the_operator_was_told_would_be_issued(
    core: Core, change: Registers, outcome: str, approved: bool
) -> None:
    handed = await core.devices.add("default", "sensor", actor=ME)
    await admit_by(core, "secret + approval")
    key, evidence = new_key(), Evidence(secret=handed.secret)
    assert await outcome_of(core, evidence, csr_of(key), **SCEP) == "pending"
    asked = await only_request(core)
    if approved:
        await core.requests.approve(asked.id, actor=ME)
    await change(core)
    outlook = (await core.requests.show(asked.id)).outlook
    assert outlook is not None
    assert (outlook.code, outlook.outcome) == (
        ("request_outdated", "refused") if outcome == "pending" else (None, "issued")
    )
    if not approved:
        deciding = await code_of_act(core.requests.approve(asked.id, actor=ME))
        assert deciding == ("request_not_grantable" if outcome == "pending" else "done")
    assert await poll_outcome(core, key) == outcome
    if outcome == "pending":
        assert await outcome_of(core, evidence, csr_of(key), **SCEP) == "pending"
        [anew] = await core.requests.list(state="pending", limit=9)
        assert anew.id != asked.id
        await core.requests.approve(anew.id, actor=ME)
        assert await poll_outcome(core, key) == "issued", "the twin: that was told to the operator"


async def test_with_jitter_the_outlook_is_the_latest_end(core: Core) -> None:
    await admit_by(core, "approval")
    await edit_profile(core, jitter="10d")
    key = new_key()
    assert await outcome_of(core, Evidence(), csr_of(key, "one")) == "pending"
    rows = [await core.requests.show((await only_request(core)).id) for _ in range(3)]
    [told] = {row.outlook.not_after for row in rows if row.outlook is not None}
    assert told is not None
    assert rows[0].outlook is not None
    assert rows[0].outlook.warnings == ["by the profile's jitter it may end up to 10d earlier"]
    await core.requests.approve(rows[0].id, actor=ME)
    assert await outcome_of(core, Evidence(), csr_of(key, "one")) == "issued"
    [issued] = await core.certificates.list(device="one", limit=5)
    assert issued.not_after <= told


# --- what an operator is told before he decides ----------------------------------------------------------------------


KEPT = (
    "SELECT id FROM certificate",
    "SELECT id, outcome FROM attempt",
    "SELECT action FROM audit",
    "SELECT id, state FROM request",
    "SELECT id, spent_at FROM device_secret",
)


async def expire_secret(core: Core, clock: SetClock) -> None:
    del core
    clock.forward(days=2)


async def suspend(core: Core, clock: SetClock) -> None:
    del clock
    await core.devices.suspend("default", "sensor", actor=ME)


async def take_no_secret(core: Core, clock: SetClock) -> None:
    del clock
    await admit_by(core, "idevid + approval")


async def reach_the_ceiling(core: Core, clock: SetClock) -> None:
    del clock
    await admit_by(core, "secret + approval", "challenge", ceiling=1)
    await core.device_import.run("default", io.BytesIO(b"name\nfirst\n"), "devices.csv", actor=ME)
    await admit_by(core, "secret", "secret + approval", ceiling=1)
    handed = await core.devices.secret("default", "first", actor=ME)
    assert await outcome_of(core, Evidence(secret=handed.secret), csr_of(new_key(), "first")) == "issued"
    await admit_by(core, "secret + approval", ceiling=1)


@pytest.mark.parametrize(
    ("change", "outcome", "code"),
    [
        (None, "issued", None),
        (expire_secret, "refused", "secret_expired"),
        (suspend, "refused", "device_suspended"),
        (take_no_secret, "refused", "secret_not_admitted"),
        (reach_the_ceiling, "later", "ceiling_reached"),
    ],
    ids=lambda value: getattr(value, "__name__", value),
)
async def test_an_approval_of_what_proves_nothing_any_more_is_refused(
    core: Core, clock: SetClock, installation: Installation, change: Change | None, outcome: str, code: str | None
) -> None:
    await core.realms.challenge("default", CHALLENGE, actor=ME)
    handed = await core.devices.add("default", "sensor", expires="1d", actor=ME)
    await admit_by(core, "secret + approval")
    assert await outcome_of(core, Evidence(secret=handed.secret), csr_of(new_key())) == "pending"
    row = await only_request(core)
    if change is not None:
        await change(core, clock)
    await written(core)
    before = [installation.sql(statement) for statement in KEPT]
    outlook = (await core.requests.show(row.id)).outlook
    assert outlook is not None
    assert (outlook.outcome, outlook.code) == (outcome, code)
    await written(core)
    assert [installation.sql(statement) for statement in KEPT] == before, "it is only a rehearsal"
    if outcome == "refused":
        with pytest.raises(OperatorError) as caught:
            await core.requests.approve(row.id, actor=ME)
        assert caught.value.code == "request_not_grantable"
        assert (await core.requests.show(row.id)).state == "pending"
    else:
        approved = await core.requests.approve(row.id, actor=ME)
        assert approved.state == "approved"
        assert approved.outlook is not None
        assert approved.outlook.warnings, "the secret ends before the approval does, or it is refused today"


async def test_the_outlook_is_what_is_then_issued(core: Core) -> None:
    handed = await core.devices.add("default", "sensor", sans=["DNS:a.example.com"], actor=ME)
    await admit_by(core, "secret + approval")
    key = new_key()
    csr = csr_of(key, "sensor", sans=["b.example.com"])
    assert await outcome_of(core, Evidence(secret=handed.secret), csr, **SCEP) == "pending"
    outlook = (await core.requests.show((await only_request(core)).id)).outlook
    assert outlook is not None
    await core.requests.approve((await only_request(core)).id, actor=ME)
    assert await poll_outcome(core, key) == "issued"
    [issued] = await core.certificates.list(device="sensor", limit=5)
    told = (outlook.issuer, outlook.subject, outlook.names, outlook.not_after)
    assert told == (issued.issuer, issued.subject, issued.names, issued.not_after)
    assert outlook.dropped == ["SAN DNS:b.example.com"]
    assert (await core.requests.show((await only_request(core)).id)).outlook is None, "it is issued"


@pytest.mark.parametrize("is_registered", [True, False], ids=["registered", "twin-newcomer"])
async def test_who_approves_is_told_that_a_registered_name_was_not_proven(by_hand: Core, is_registered: bool) -> None:
    if is_registered:
        await by_hand.devices.add("default", "one", actor=ME)
    assert await outcome_of(by_hand, Evidence(), csr_of(new_key(), "one")) == "pending"
    outlook = (await by_hand.requests.show((await only_request(by_hand)).id)).outlook
    assert outlook is not None
    told = ["one is registered, and nothing proves that it asks: compare the key"]
    assert outlook.warnings == (told if is_registered else [])
