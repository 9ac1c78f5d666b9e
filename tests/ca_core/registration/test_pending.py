"""Requests that wait for an operator: found again, decided once, granted by the rules of the day they are granted."""

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
from ca_core.model import Call, Evidence, Issued, Pending, Refused
from ca_core.registration import request_desk
from ca_core.registration.device_change import Facts
from ca_core.rows import RequestRow
from tests.helpers.admission import admit_by, code_of_act, outcome_of, transact
from tests.helpers.core import ME, Installation, PrivateKey, SetClock, csr_of, new_key, written
from tests.helpers.factory import Made, idevid, root
from tests.helpers.interference import Interference

CHALLENGE = "a-challenge-of-thirty-characters"
Change = Callable[[Core, SetClock], Awaitable[None]]
SCEP = {"protocol": "scep", "transaction_id": "T-1"}


async def only(core: Core, state: str | None = None) -> RequestRow:
    [row] = await core.requests.list(state=state, limit=10)
    return row


async def poll(core: Core, key: PrivateKey, transaction: str = "T-1") -> str:
    """What a poll by that key is told: `issued`, `pending` or the refusal's code."""
    resolved = await core.realms.resolve("scep", None, None)
    call = Call("poll-0001", "scep", "CertPoll", "192.0.2.1", transaction_id=transaction)
    match await core.registration.poll(resolved, transaction, csr_of(key).spki_sha256, call):
        case Refused(refusal):
            return refusal.code
        case Pending():
            return "pending"
        case Issued():
            return "issued"


@pytest.fixture
async def by_hand(core: Core) -> Core:
    """A realm in which an operator looks at everybody."""
    await admit_by(core, "approval")
    return core


async def test_a_request_waits_until_it_is_approved_and_is_then_granted(
    by_hand: Core, installation: Installation
) -> None:
    key = new_key()
    first = await transact(by_hand, Evidence(), csr_of(key, "walk-in"))
    assert first == Pending(60)
    row = await only(by_hand)
    assert (row.device, row.state, row.means, row.device_state) == ("walk-in", "pending", "approval", None)
    assert row.key_sha256 == csr_of(key).spki_sha256.hex()
    assert installation.sql("SELECT 1 FROM device WHERE name = 'walk-in'") == []
    assert await outcome_of(by_hand, Evidence(), csr_of(key, "walk-in")) == "pending", "another CSR, the same request"
    assert len(await by_hand.requests.list(limit=10)) == 1

    await by_hand.requests.approve(row.id, actor=ME)
    issued = await transact(by_hand, Evidence(), csr_of(key, "walk-in"))
    assert isinstance(issued, Issued)
    assert (await only(by_hand)).state == "issued"
    assert (await by_hand.devices.show("default", "walk-in")).state == "active"
    again = await transact(by_hand, Evidence(), csr_of(key, "walk-in"))
    assert isinstance(again, Issued)
    assert again.certificate == issued.certificate, "an approval is used once"


async def test_a_request_of_another_key_or_name_is_another_one(by_hand: Core) -> None:
    key = new_key()
    assert await outcome_of(by_hand, Evidence(), csr_of(key, "one")) == "pending"
    await by_hand.requests.approve((await only(by_hand)).id, actor=ME)
    assert await outcome_of(by_hand, Evidence(), csr_of(new_key(), "one")) == "pending"
    assert await outcome_of(by_hand, Evidence(), csr_of(key, "two")) == "pending"
    assert await outcome_of(by_hand, Evidence(), csr_of(key, "one")) == "issued", "the twin"


async def test_an_approval_is_for_the_profile_that_the_operator_saw(by_hand: Core) -> None:
    key = new_key()
    assert await outcome_of(by_hand, Evidence(), csr_of(key, "one")) == "pending"
    await by_hand.requests.approve((await only(by_hand)).id, actor=ME)
    text = await by_hand.realms.export("default")
    document = tomllib.loads(text)
    document["profiles"]["wider"] = {"extended_key_usages": ["clientAuth", "serverAuth"]}
    document["est"]["profile"] = "wider"
    await by_hand.realms.apply(tomli_w.dumps(document), actor=ME)
    assert await outcome_of(by_hand, Evidence(), csr_of(key, "one")) == "pending"
    assert [row.profile for row in await by_hand.requests.list(state="pending", limit=10)] == ["wider"]
    await by_hand.realms.apply(text, actor=ME)
    assert await outcome_of(by_hand, Evidence(), csr_of(key, "one")) == "issued", "the twin"


async def test_a_rejected_key_is_refused_from_then_on(by_hand: Core) -> None:
    key = new_key()
    assert await outcome_of(by_hand, Evidence(), csr_of(key, "one")) == "pending"
    row = await by_hand.requests.reject((await only(by_hand)).id, reason="not ours", actor=ME)
    assert (row.state, row.reason, row.decided_by) == ("rejected", "not ours", ME)
    refused = await transact(by_hand, Evidence(), csr_of(key, "one"))
    assert isinstance(refused, Refused)
    assert (refused.refusal.code, refused.refusal.detail) == ("request_rejected", "not ours")
    assert "not ours" not in refused.refusal.message
    assert await outcome_of(by_hand, Evidence(), csr_of(key, "two")) == "request_rejected", "in whatever name"
    assert await outcome_of(by_hand, Evidence(), csr_of(new_key(), "one")) == "pending", "another key is looked at anew"


async def test_a_request_expires_and_may_be_made_anew(by_hand: Core, clock: SetClock) -> None:
    key = new_key()
    assert await outcome_of(by_hand, Evidence(), csr_of(key, "one")) == "pending"
    first = await only(by_hand)
    clock.forward(days=7, seconds=1)
    assert (await only(by_hand, "expired")).id == first.id
    with pytest.raises(OperatorError, match=f"request {first.id} is expired"):
        await by_hand.requests.approve(first.id, actor=ME)
    assert await outcome_of(by_hand, Evidence(), csr_of(key, "one")) == "pending"
    second = await only(by_hand, "pending")
    assert second.id != first.id
    await by_hand.requests.approve(second.id, actor=ME)
    clock.forward(days=6)
    assert await outcome_of(by_hand, Evidence(), csr_of(key, "one")) == "issued"


async def test_what_was_decided_or_not_is_forgotten_ninety_days_after_its_end(by_hand: Core, clock: SetClock) -> None:
    rejected, issued = new_key(), new_key()
    for name, key in (("rejected", rejected), ("issued", issued), ("lapsed", new_key()), ("unused", new_key())):
        assert await outcome_of(by_hand, Evidence(), csr_of(key, name)) == "pending"
    ids = {row.device: row.id for row in await by_hand.requests.list(limit=10)}
    await by_hand.requests.reject(ids["rejected"], actor=ME)
    await by_hand.requests.approve(ids["issued"], actor=ME)
    await by_hand.requests.approve(ids["unused"], actor=ME)
    assert await outcome_of(by_hand, Evidence(), csr_of(issued, "issued")) == "issued"
    clock.forward(days=7 + 90, seconds=-1)
    assert await by_hand.requests.forget_old() is False
    assert len(await by_hand.requests.list(limit=10)) == 4
    assert await outcome_of(by_hand, Evidence(), csr_of(rejected, "rejected")) == "request_rejected"
    assert await outcome_of(by_hand, Evidence(), csr_of(new_key(), "new")) == "pending"
    clock.forward(seconds=2)
    assert await by_hand.requests.forget_old() is True
    assert [row.device for row in await by_hand.requests.list(limit=10)] == ["new"]
    assert await outcome_of(by_hand, Evidence(), csr_of(rejected, "rejected")) == "pending", "it is looked at anew"
    assert (await by_hand.devices.show("default", "issued")).state == "active"


async def test_old_requests_are_forgotten_so_many_at_a_time(
    by_hand: Core, clock: SetClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(request_desk, "FORGOTTEN_AT_ONCE", 2)
    for number in range(3):
        assert await outcome_of(by_hand, Evidence(), csr_of(new_key(), f"d-{number}")) == "pending"
    clock.forward(days=98)
    left = []
    for _ in range(3):
        await by_hand.requests.forget_old()
        left.append(len(await by_hand.requests.list(limit=10)))
    assert left == [1, 0, 0]


async def test_an_approval_that_nobody_uses_ends(by_hand: Core, clock: SetClock) -> None:
    key = new_key()
    assert await outcome_of(by_hand, Evidence(), csr_of(key, "one")) == "pending"
    await by_hand.requests.approve((await only(by_hand)).id, actor=ME)
    clock.forward(days=7, seconds=1)
    assert await outcome_of(by_hand, Evidence(), csr_of(key, "one")) == "pending", "it is asked anew"


@pytest.mark.parametrize("act", ["approve", "reject"])
async def test_a_request_is_decided_once(by_hand: Core, second: Core, act: str) -> None:
    assert await outcome_of(by_hand, Evidence(), csr_of(new_key(), "one")) == "pending"
    row = await only(by_hand)
    both = [by_hand.requests.approve(row.id, actor=ME), getattr(second.requests, act)(row.id, actor="operator:other")]
    results = await asyncio.gather(*both, return_exceptions=True)
    refused = [result for result in results if isinstance(result, OperatorError)]
    assert [error.code for error in refused] == ["request_decided"]


async def test_one_approval_gives_one_certificate_to_many_who_ask_at_once(by_hand: Core, second: Core) -> None:
    key = new_key()
    assert await outcome_of(by_hand, Evidence(), csr_of(key, "one")) == "pending"
    await by_hand.requests.approve((await only(by_hand)).id, actor=ME)
    many = [transact(core, Evidence(), csr_of(key, "one")) for core in [by_hand, second] * 8]
    certificates = {outcome.certificate for outcome in await asyncio.gather(*many) if isinstance(outcome, Issued)}
    assert len(certificates) == 1


async def test_who_asks_many_times_at_once_waits_once(by_hand: Core, second: Core) -> None:
    key = new_key()
    many = [outcome_of(core, Evidence(), csr_of(key, "one")) for core in [by_hand, second] * 8]
    assert set(await asyncio.gather(*many)) == {"pending"}
    assert len(await by_hand.requests.list(limit=50)) == 1


async def test_case_s26_requests_that_wait_are_bounded_by_source_and_by_realm(core: Core) -> None:
    await admit_by(core, "approval", pending_per_source=2, pending_most=3)

    async def ask(source: str) -> str:
        return await outcome_of(core, Evidence(), csr_of(new_key(), "one"), source=source)

    assert [await ask("192.0.2.1") for _ in range(3)] == ["pending", "pending", "requests_too_many"]
    assert [await ask("192.0.2.2") for _ in range(2)] == ["pending", "requests_too_many"]
    waiting = (await core.requests.list(state="pending", limit=10))[0]
    await core.requests.reject(waiting.id, actor=ME)
    assert await ask("192.0.2.1") == "pending", "the twin: there is room again"


async def test_case_s26_strangers_leave_room_for_those_who_prove_who_they_are(core: Core) -> None:
    handed = await core.devices.add("default", "sensor", actor=ME)
    await admit_by(core, "secret + approval", "approval", pending_most=6, pending_per_source=9)
    strangers = [
        await outcome_of(core, Evidence(), csr_of(new_key(), f"d-{n}"), source=f"192.0.2.{n}") for n in range(5)
    ]
    assert strangers == ["pending"] * 3 + ["requests_too_many"] * 2
    assert await outcome_of(core, Evidence(secret=handed.secret), csr_of(new_key())) == "pending"
    await admit_by(core, "secret", "approval", pending_most=6, pending_per_source=9)
    assert await outcome_of(core, Evidence(), csr_of(new_key(), "d-9")) == "pending", "the twin: nobody else waits"


async def test_case_s26_one_credential_has_few_requests_from_however_many_addresses(core: Core) -> None:
    first, second = [await core.devices.add("default", name, actor=ME) for name in ("sensor", "other")]
    await admit_by(core, "secret + approval", pending_per_source=2)

    async def ask(secret: str, name: str, number: int) -> str:
        csr = csr_of(new_key(), name)
        return await outcome_of(core, Evidence(secret=secret), csr, source=f"192.0.2.{number}")

    assert [await ask(first.secret, "sensor", n) for n in range(3)] == ["pending", "pending", "requests_too_many"]
    assert await ask(second.secret, "other", 9) == "pending", "the twin"


@pytest.mark.parametrize("state", ["pending", "approved", "issued"])
async def test_case_35_one_transaction_is_of_one_key_while_it_waits(by_hand: Core, state: str) -> None:
    key = new_key()
    assert await outcome_of(by_hand, Evidence(), csr_of(key, "one"), **SCEP) == "pending"
    if state != "pending":
        await by_hand.requests.approve((await only(by_hand)).id, actor=ME)
    if state == "issued":
        assert await poll(by_hand, key) == "issued"
    assert await outcome_of(by_hand, Evidence(), csr_of(new_key(), "one"), **SCEP) == "transaction_of_other_key"
    again = await outcome_of(by_hand, Evidence(), csr_of(key, "one"), **SCEP)
    assert again == ("pending" if state == "pending" else "issued"), "the twin: the same request"
    assert await outcome_of(by_hand, Evidence(), csr_of(new_key(), "two"), **SCEP) == "pending", "another device's"


async def test_case_35_a_stranger_s_transaction_is_not_that_of_the_device_that_he_calls_himself(core: Core) -> None:
    handed = await core.devices.add("default", "sensor", actor=ME)
    await admit_by(core, "secret + approval", "approval")
    assert await outcome_of(core, Evidence(), csr_of(new_key(), "sensor"), **SCEP) == "pending"
    evidence = Evidence(secret=handed.secret)
    assert await outcome_of(core, evidence, csr_of(new_key(), "sensor"), **SCEP) == "pending"
    assert await outcome_of(core, evidence, csr_of(new_key(), "sensor"), **SCEP) == "transaction_of_other_key"


# --- what proved who asked is judged anew ---------------------------------------------------------------------------


async def test_a_secret_that_waits_is_not_kept_and_is_spent_when_it_is_granted(
    core: Core, installation: Installation
) -> None:
    handed = await core.devices.add("default", "sensor", actor=ME)
    await admit_by(core, "secret + approval")
    key, evidence = new_key(), Evidence(secret=handed.secret)
    assert await outcome_of(core, evidence, csr_of(key), **SCEP) == "pending"
    assert handed.secret.encode() not in installation.dump()
    assert await poll(core, key) == "pending"
    await core.requests.approve((await only(core)).id, actor=ME)
    assert await poll(core, key) == "issued"
    assert await poll(core, key) == "issued", "the answer was lost"
    assert await outcome_of(core, evidence, csr_of(new_key())) == "secret_spent"


@pytest.mark.parametrize("approved", [False, True], ids=["pending", "approved"])
async def test_a_secret_that_is_void_since_grants_nothing(core: Core, approved: bool) -> None:
    handed = await core.devices.add("default", "sensor", actor=ME)
    await admit_by(core, "secret + approval")
    key = new_key()
    assert await outcome_of(core, Evidence(secret=handed.secret), csr_of(key), **SCEP) == "pending"
    if approved:
        await core.requests.approve((await only(core)).id, actor=ME)
    await core.devices.secret("default", "sensor", actor=ME)
    assert await poll(core, key) == "secret_void"


@pytest.mark.parametrize("by_secret", [True, False], ids=["by-secret", "twin-by-stranger"])
async def test_what_was_asked_by_a_secret_that_is_void_waits_for_nobody(core: Core, by_secret: bool) -> None:
    handed = await core.devices.add("default", "sensor", actor=ME)
    await admit_by(core, "secret + approval", "approval")
    evidence = Evidence(secret=handed.secret) if by_secret else Evidence()
    assert await outcome_of(core, evidence, csr_of(new_key())) == "pending"
    await core.devices.secret("default", "sensor", actor=ME)
    row = await only(core)
    assert row.state == ("expired" if by_secret else "pending")
    approving = await code_of_act(core.requests.approve(row.id, actor=ME))
    assert approving == ("request_decided" if by_secret else "done")


async def test_a_suspended_device_and_an_anchor_that_is_trusted_no_more_grant_nothing(core: Core) -> None:
    anchor, key = root(), new_key()
    device = await waiting_by_idevid(core, anchor, key)
    await core.devices.suspend("default", "sensor", actor=ME)
    assert await poll(core, device.key) == "device_suspended"
    await core.devices.resume("default", "sensor", actor=ME)
    await core.trust.remove("default", "acme", actor=ME)
    assert await poll(core, device.key) == "certificate_unknown"
    await core.trust.add("default", anchor.pem, name="acme", actor=ME)
    assert await poll(core, device.key) == "issued", "the twin"


async def waiting_by_idevid(core: Core, anchor: Made, key: PrivateKey) -> Made:
    """A device whose request by IDevID is approved, and signed by its factory key."""
    device = idevid(anchor)
    await core.trust.add("default", anchor.pem, name="acme", actor=ME)
    await core.devices.add("default", "sensor", serial_number="AC-1", manufacturer="acme", actor=ME)
    await admit_by(core, "idevid + approval")
    assert await outcome_of(core, Evidence(device.chain), csr_of(key), **SCEP) == "pending"
    await core.requests.approve((await only(core)).id, actor=ME)
    return device


async def test_a_challenge_that_was_changed_since_grants_nothing(core: Core) -> None:
    await core.realms.challenge("default", CHALLENGE, actor=ME)
    await admit_by(core, "challenge + approval")
    key = new_key()
    assert await outcome_of(core, Evidence(secret=CHALLENGE), csr_of(key, "walk-in"), **SCEP) == "pending"
    await core.requests.approve((await only(core)).id, actor=ME)
    await core.realms.challenge("default", "another-" + CHALLENGE, actor=ME)
    assert await poll(core, key) == "challenge_changed"
    await core.realms.challenge("default", CHALLENGE, actor=ME)
    assert await poll(core, key) == "issued", "the twin"


async def test_case_s10_a_poll_by_another_key_or_of_another_transaction_tells_nothing(by_hand: Core) -> None:
    key = new_key()
    assert await outcome_of(by_hand, Evidence(), csr_of(key, "one"), **SCEP) == "pending"
    assert await poll(by_hand, new_key()) == "transaction_unknown"
    assert await poll(by_hand, key, "T-2") == "transaction_unknown"
    assert await poll(by_hand, key) == "pending"


async def test_a_realm_that_asks_no_operator_any_more_judges_what_waits_like_any_other_request(core: Core) -> None:
    handed = await core.devices.add("default", "sensor", actor=ME)
    await admit_by(core, "secret + approval")
    key, evidence = new_key(), Evidence(secret=handed.secret)
    assert await outcome_of(core, evidence, csr_of(key)) == "pending"
    await admit_by(core, "secret")
    assert await outcome_of(core, evidence, csr_of(key)) == "issued"


async def test_requests_survive_a_restart(by_hand: Core, installation: Installation) -> None:
    key = new_key()
    assert await outcome_of(by_hand, Evidence(), csr_of(key, "one")) == "pending"
    by_hand.close()
    after = installation.open()
    try:
        assert await outcome_of(after, Evidence(), csr_of(key, "one")) == "pending"
        await after.requests.approve((await only(after)).id, actor=ME)
        assert await outcome_of(after, Evidence(), csr_of(key, "one")) == "issued"
    finally:
        after.close()


async def test_the_trail_tells_who_asked_who_approved_and_what_was_issued(
    by_hand: Core, installation: Installation
) -> None:
    key = new_key()
    assert await outcome_of(by_hand, Evidence(), csr_of(key, "one")) == "pending"
    await by_hand.requests.approve((await only(by_hand)).id, actor=ME)
    assert await outcome_of(by_hand, Evidence(), csr_of(key, "one")) == "issued"
    key_sha256 = csr_of(key).spki_sha256.hex()
    [pending], [approved] = installation.events("request.pending"), installation.events("request.approved")
    assert pending["key_sha256"] == approved["key_sha256"] == key_sha256
    [issued] = installation.events("certificate.issued")
    assert (issued["means"], issued["credential"]) == ("approval", f"key {key_sha256}")


@pytest.mark.parametrize("text", ["", "one", "-1", "9" * 30, "\u0661"])
async def test_what_is_not_an_id_is_no_request(core: Core, text: str) -> None:
    with pytest.raises(OperatorError) as caught:
        await core.requests.show(text)
    assert caught.value.code == "request_unknown"


# --- what an adversary found ----------------------------------------------------------------------------------------


async def test_an_approval_does_not_outlive_the_device_that_was_meant(core: Core) -> None:
    await core.devices.add("default", "dev", actor=ME)
    await admit_by(core, "approval")
    key = new_key()
    assert await outcome_of(core, Evidence(), csr_of(key, "dev")) == "pending"
    await core.requests.approve((await only(core)).id, actor=ME)
    await core.devices.new_board("default", "dev", actor=ME)
    assert await outcome_of(core, Evidence(), csr_of(key, "dev")) == "pending", "it is looked at anew"


async def test_who_asked_in_a_name_before_it_was_registered_was_not_that_device(by_hand: Core) -> None:
    key = new_key()
    assert await outcome_of(by_hand, Evidence(), csr_of(key, "gate-1")) == "pending"
    await by_hand.requests.approve((await only(by_hand)).id, actor=ME)
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
    asked = await only(by_hand)
    if approved:
        await by_hand.requests.approve(asked.id, actor=ME)
    await register(by_hand)
    assert (await by_hand.requests.show(asked.id)).state == "expired", "it holds nobody's place"
    assert await poll(by_hand, key) == "pending", "it is looked at anew"
    assert await outcome_of(by_hand, Evidence(), csr_of(key, "gate-1"), **SCEP) == "pending"
    anew = await only(by_hand, "pending")
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
    await by_hand.requests.approve((await only(by_hand)).id, actor=ME)
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
    await core.requests.approve((await only(core)).id, actor=ME)
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
    await core.requests.approve((await only(core)).id, actor=ME)
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
    asked = await only(core)
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
    assert await poll(core, key) == outcome
    if outcome == "pending":
        assert await outcome_of(core, evidence, csr_of(key), **SCEP) == "pending"
        [anew] = await core.requests.list(state="pending", limit=9)
        assert anew.id != asked.id
        await core.requests.approve(anew.id, actor=ME)
        assert await poll(core, key) == "issued", "the twin: that was told to the operator"


async def test_with_jitter_the_outlook_is_the_latest_end(core: Core) -> None:
    await admit_by(core, "approval")
    await edit_profile(core, jitter="10d")
    key = new_key()
    assert await outcome_of(core, Evidence(), csr_of(key, "one")) == "pending"
    rows = [await core.requests.show((await only(core)).id) for _ in range(3)]
    [told] = {row.outlook.not_after for row in rows if row.outlook is not None}
    assert told is not None
    assert rows[0].outlook is not None
    assert rows[0].outlook.warnings == ["by the profile's jitter it may end up to 10d earlier"]
    await core.requests.approve(rows[0].id, actor=ME)
    assert await outcome_of(core, Evidence(), csr_of(key, "one")) == "issued"
    [issued] = await core.certificates.list(device="one", limit=5)
    assert issued.not_after <= told


@pytest.mark.parametrize("approved", [False, True], ids=["pending", "approved"])
async def test_case_s11_a_transaction_that_waits_is_not_one_for_other_names(by_hand: Core, approved: bool) -> None:
    key = new_key()
    assert await outcome_of(by_hand, Evidence(), csr_of(key, "one"), **SCEP) == "pending"
    if approved:
        await by_hand.requests.approve((await only(by_hand)).id, actor=ME)
    for other in (csr_of(key, "two"), csr_of(key, "one", sans=["a.example.com"])):
        assert await outcome_of(by_hand, Evidence(), other, **SCEP) == "transaction_of_other_request"
    assert len(await by_hand.requests.list(limit=9)) == 1
    again = await outcome_of(by_hand, Evidence(), csr_of(key, "one"), **SCEP)
    assert again == ("issued" if approved else "pending"), "the twin: the same request"
    another = csr_of(new_key() if approved else key, "two")
    assert await outcome_of(by_hand, Evidence(), another, protocol="scep", transaction_id="T-2") == "pending", "another"


async def test_the_operator_sees_every_name_that_is_asked_for(by_hand: Core) -> None:
    csr = csr_of(new_key(), "one", sans=["a.example.com", "vpn.example.com"])
    assert await outcome_of(by_hand, Evidence(), csr) == "pending"
    assert (await only(by_hand)).names == ["DNS:a.example.com", "DNS:vpn.example.com"]


async def test_a_request_whose_names_hold_its_secret_is_not_kept(core: Core, installation: Installation) -> None:
    handed = await core.devices.add("default", "sensor", actor=ME)
    await admit_by(core, "secret + approval")
    csr = csr_of(new_key(), "sensor", sans=[f"{handed.secret}.example.com"])
    assert await outcome_of(core, Evidence(secret=handed.secret), csr) == "csr_holds_secret"
    assert installation.sql("SELECT 1 FROM request") == []
    assert await outcome_of(core, Evidence(secret=handed.secret), csr_of(new_key(), "sensor")) == "pending", "the twin"


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
    row = await only(core)
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
    outlook = (await core.requests.show((await only(core)).id)).outlook
    assert outlook is not None
    await core.requests.approve((await only(core)).id, actor=ME)
    assert await poll(core, key) == "issued"
    [issued] = await core.certificates.list(device="sensor", limit=5)
    told = (outlook.issuer, outlook.subject, outlook.names, outlook.not_after)
    assert told == (issued.issuer, issued.subject, issued.names, issued.not_after)
    assert outlook.dropped == ["SAN DNS:b.example.com"]
    assert (await core.requests.show((await only(core)).id)).outlook is None, "it is issued"


@pytest.mark.parametrize("is_registered", [True, False], ids=["registered", "twin-newcomer"])
async def test_who_approves_is_told_that_a_registered_name_was_not_proven(by_hand: Core, is_registered: bool) -> None:
    if is_registered:
        await by_hand.devices.add("default", "one", actor=ME)
    assert await outcome_of(by_hand, Evidence(), csr_of(new_key(), "one")) == "pending"
    outlook = (await by_hand.requests.show((await only(by_hand)).id)).outlook
    assert outlook is not None
    told = ["one is registered, and nothing proves that it asks: compare the key"]
    assert outlook.warnings == (told if is_registered else [])
