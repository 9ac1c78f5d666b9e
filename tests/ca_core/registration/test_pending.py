"""Requests that wait for an operator: found again, decided once, granted by the rules of the day they are granted."""

import asyncio
import tomllib
from collections.abc import Awaitable, Callable

import pytest
import tomli_w

from ca_core.core import Core
from ca_core.errors import OperatorError
from ca_core.model import Evidence, Issued, Pending, Refused
from ca_core.records.opening import upgrade_store
from ca_core.registration import request_desk
from tests.helpers.admission import admit_by, code_of_act, only_request, outcome_of, poll_outcome, transact
from tests.helpers.core import ME, Installation, PrivateKey, SetClock, csr_of, new_key
from tests.helpers.earlier import take_back
from tests.helpers.factory import Made, idevid, root

CHALLENGE = "a-challenge-of-thirty-characters"
Change = Callable[[Core, SetClock], Awaitable[None]]
SCEP = {"protocol": "scep", "transaction_id": "T-1"}


async def test_a_request_waits_until_it_is_approved_and_is_then_granted(
    by_hand: Core, installation: Installation
) -> None:
    key = new_key()
    first = await transact(by_hand, Evidence(), csr_of(key, "walk-in"))
    assert first == Pending(60)
    row = await only_request(by_hand)
    assert (row.device, row.state, row.means, row.device_state) == ("walk-in", "pending", "approval", None)
    assert row.key_sha256 == csr_of(key).spki_sha256.hex()
    assert installation.sql("SELECT 1 FROM device WHERE name = 'walk-in'") == []
    assert await outcome_of(by_hand, Evidence(), csr_of(key, "walk-in")) == "pending", "another CSR, the same request"
    assert len(await by_hand.requests.list(limit=10)) == 1

    await by_hand.requests.approve(row.id, actor=ME)
    issued = await transact(by_hand, Evidence(), csr_of(key, "walk-in"))
    assert isinstance(issued, Issued)
    assert (await only_request(by_hand)).state == "issued"
    assert (await by_hand.devices.show("default", "walk-in")).state == "active"
    again = await transact(by_hand, Evidence(), csr_of(key, "walk-in"))
    assert isinstance(again, Issued)
    assert again.certificate == issued.certificate, "an approval is used once"


async def test_a_request_of_another_key_or_name_is_another_one(by_hand: Core) -> None:
    key = new_key()
    assert await outcome_of(by_hand, Evidence(), csr_of(key, "one")) == "pending"
    await by_hand.requests.approve((await only_request(by_hand)).id, actor=ME)
    assert await outcome_of(by_hand, Evidence(), csr_of(new_key(), "one")) == "pending"
    assert await outcome_of(by_hand, Evidence(), csr_of(key, "two")) == "pending"
    assert await outcome_of(by_hand, Evidence(), csr_of(key, "one")) == "issued", "the twin"


async def test_an_approval_is_for_the_profile_that_the_operator_saw(by_hand: Core) -> None:
    key = new_key()
    assert await outcome_of(by_hand, Evidence(), csr_of(key, "one")) == "pending"
    await by_hand.requests.approve((await only_request(by_hand)).id, actor=ME)
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
    row = await by_hand.requests.reject((await only_request(by_hand)).id, reason="not ours", actor=ME)
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
    first = await only_request(by_hand)
    clock.forward(days=7, seconds=1)
    assert (await only_request(by_hand, "expired")).id == first.id
    with pytest.raises(OperatorError, match=f"request {first.id} is expired"):
        await by_hand.requests.approve(first.id, actor=ME)
    assert await outcome_of(by_hand, Evidence(), csr_of(key, "one")) == "pending"
    second = await only_request(by_hand, "pending")
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
    await by_hand.requests.approve((await only_request(by_hand)).id, actor=ME)
    clock.forward(days=7, seconds=1)
    assert await outcome_of(by_hand, Evidence(), csr_of(key, "one")) == "pending", "it is asked anew"


async def test_a_request_is_approved_once(by_hand: Core, second: Core) -> None:
    assert await outcome_of(by_hand, Evidence(), csr_of(new_key(), "one")) == "pending"
    row = await only_request(by_hand)
    both = [by_hand.requests.approve(row.id, actor=ME), second.requests.approve(row.id, actor="operator:other")]
    results = await asyncio.gather(*both, return_exceptions=True)
    refused = [result for result in results if isinstance(result, OperatorError)]
    assert [error.code for error in refused] == ["request_decided"]


async def test_what_was_rejected_stays_so_whoever_approves_it_meanwhile(by_hand: Core, second: Core) -> None:
    for number in range(4):
        key = new_key()
        assert await outcome_of(by_hand, Evidence(), csr_of(key, f"d-{number}")) == "pending"
        row = await only_request(by_hand, "pending")
        both = [second.requests.reject(row.id, actor="operator:other"), by_hand.requests.approve(row.id, actor=ME)]
        await asyncio.gather(*(both if number % 2 else reversed(both)), return_exceptions=True)
        assert (await by_hand.requests.show(row.id)).state == "rejected"
        assert await outcome_of(by_hand, Evidence(), csr_of(key, f"d-{number}")) == "request_rejected"


async def test_an_approval_is_taken_back_until_it_is_granted(by_hand: Core) -> None:
    mistaken, meant = new_key(), new_key()
    for key, name in ((mistaken, "one"), (meant, "two")):
        assert await outcome_of(by_hand, Evidence(), csr_of(key, name)) == "pending"
        await by_hand.requests.approve((await only_request(by_hand, "pending")).id, actor=ME)
    assert await outcome_of(by_hand, Evidence(), csr_of(meant, "two")) == "issued", "the twin"
    taken, granted = await by_hand.requests.list(limit=9)
    assert (await by_hand.requests.reject(taken.id, reason="a typing error", actor=ME)).state == "rejected"
    assert await outcome_of(by_hand, Evidence(), csr_of(mistaken, "one")) == "request_rejected"
    for act in (by_hand.requests.reject, by_hand.requests.approve):
        for row in (taken, granted):
            assert await code_of_act(act(row.id, actor=ME)) == "request_decided"


async def test_one_approval_gives_one_certificate_to_many_who_ask_at_once(by_hand: Core, second: Core) -> None:
    key = new_key()
    assert await outcome_of(by_hand, Evidence(), csr_of(key, "one")) == "pending"
    await by_hand.requests.approve((await only_request(by_hand)).id, actor=ME)
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
        await by_hand.requests.approve((await only_request(by_hand)).id, actor=ME)
    if state == "issued":
        assert await poll_outcome(by_hand, key) == "issued"
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


async def test_case_47_a_secret_that_waits_is_not_kept_and_is_spent_when_it_is_granted(
    core: Core, installation: Installation
) -> None:
    handed = await core.devices.add("default", "sensor", actor=ME)
    await admit_by(core, "secret + approval")
    key, evidence = new_key(), Evidence(secret=handed.secret)
    csr = csr_of(key, sans=["a.example.com"], challenge_password=handed.secret)  # where SCEP has it
    assert await outcome_of(core, evidence, csr, **SCEP) == "pending"
    kept = installation.dump()
    assert b"a.example.com" in kept
    assert handed.secret.encode() not in kept
    assert await poll_outcome(core, key) == "pending"
    await core.requests.approve((await only_request(core)).id, actor=ME)
    assert await poll_outcome(core, key) == "issued"
    assert await poll_outcome(core, key) == "issued", "the answer was lost"
    assert await outcome_of(core, evidence, csr_of(new_key())) == "secret_spent"


async def test_case_47_the_challenge_of_a_request_that_waits_is_not_kept(
    core: Core, installation: Installation
) -> None:
    await core.realms.challenge("default", CHALLENGE, actor=ME)
    await admit_by(core, "challenge + approval")
    key = new_key()
    csr = csr_of(key, sans=["a.example.com"], challenge_password=CHALLENGE)
    assert await outcome_of(core, Evidence(secret=CHALLENGE), csr, **SCEP) == "pending"
    assert CHALLENGE.encode() not in installation.dump()
    await core.requests.approve((await only_request(core)).id, actor=ME)
    assert await poll_outcome(core, key) == "issued"


@pytest.mark.parametrize("engine", ["sqlite"], indirect=True)  # stores are taken back to earlier revisions there alone
async def test_case_47_an_upgrade_takes_the_secrets_out_of_requests_that_wait(
    core: Core, installation: Installation
) -> None:
    handed = await core.devices.add("default", "sensor", actor=ME)
    await admit_by(core, "secret + approval")
    key = new_key()
    csr = csr_of(key, challenge_password=handed.secret)
    assert await outcome_of(core, Evidence(secret=handed.secret), csr, **SCEP) == "pending"
    await core.requests.approve((await only_request(core)).id, actor=ME)
    core.close()
    installation.sql("UPDATE request SET csr = ?", csr.der)
    assert handed.secret.encode() in csr.der
    take_back(installation.directory / "enrolld.db", "0009")
    upgrade_store(installation.store_url)
    [[kept]] = installation.sql("SELECT csr FROM request")
    assert handed.secret.encode() not in kept
    again = installation.open()
    try:
        assert await poll_outcome(again, key) == "issued"
    finally:
        again.close()


@pytest.mark.parametrize("approved", [False, True], ids=["pending", "approved"])
async def test_a_secret_that_is_void_since_grants_nothing(core: Core, approved: bool) -> None:
    handed = await core.devices.add("default", "sensor", actor=ME)
    await admit_by(core, "secret + approval")
    key = new_key()
    assert await outcome_of(core, Evidence(secret=handed.secret), csr_of(key), **SCEP) == "pending"
    if approved:
        await core.requests.approve((await only_request(core)).id, actor=ME)
    await core.devices.secret("default", "sensor", actor=ME)
    assert await poll_outcome(core, key) == "secret_void"


@pytest.mark.parametrize("by_secret", [True, False], ids=["by-secret", "twin-by-stranger"])
async def test_what_was_asked_by_a_secret_that_is_void_waits_for_nobody(core: Core, by_secret: bool) -> None:
    handed = await core.devices.add("default", "sensor", actor=ME)
    await admit_by(core, "secret + approval", "approval")
    evidence = Evidence(secret=handed.secret) if by_secret else Evidence()
    assert await outcome_of(core, evidence, csr_of(new_key())) == "pending"
    await core.devices.secret("default", "sensor", actor=ME)
    row = await only_request(core)
    assert row.state == ("expired" if by_secret else "pending")
    approving = await code_of_act(core.requests.approve(row.id, actor=ME))
    assert approving == ("request_decided" if by_secret else "done")


async def test_a_suspended_device_and_an_anchor_that_is_trusted_no_more_grant_nothing(core: Core) -> None:
    anchor, key = root(), new_key()
    device = await waiting_by_idevid(core, anchor, key)
    await core.devices.suspend("default", "sensor", actor=ME)
    assert await poll_outcome(core, device.key) == "device_suspended"
    await core.devices.resume("default", "sensor", actor=ME)
    await core.trust.remove("default", "acme", actor=ME)
    assert await poll_outcome(core, device.key) == "certificate_unknown"
    await core.trust.add("default", anchor.pem, name="acme", actor=ME)
    assert await poll_outcome(core, device.key) == "issued", "the twin"


async def waiting_by_idevid(core: Core, anchor: Made, key: PrivateKey) -> Made:
    """A device whose request by IDevID is approved, and signed by its factory key."""
    device = idevid(anchor)
    await core.trust.add("default", anchor.pem, name="acme", actor=ME)
    await core.devices.add("default", "sensor", serial_number="AC-1", manufacturer="acme", actor=ME)
    await admit_by(core, "idevid + approval")
    assert await outcome_of(core, Evidence(device.chain), csr_of(key), **SCEP) == "pending"
    await core.requests.approve((await only_request(core)).id, actor=ME)
    return device


async def test_a_challenge_that_was_changed_since_grants_nothing(core: Core) -> None:
    await core.realms.challenge("default", CHALLENGE, actor=ME)
    await admit_by(core, "challenge + approval")
    key = new_key()
    assert await outcome_of(core, Evidence(secret=CHALLENGE), csr_of(key, "walk-in"), **SCEP) == "pending"
    await core.requests.approve((await only_request(core)).id, actor=ME)
    await core.realms.challenge("default", "another-" + CHALLENGE, actor=ME)
    assert await poll_outcome(core, key) == "challenge_changed"
    await core.realms.challenge("default", CHALLENGE, actor=ME)
    assert await poll_outcome(core, key) == "issued", "the twin"


async def test_case_s10_a_poll_by_another_key_or_of_another_transaction_tells_nothing(by_hand: Core) -> None:
    key = new_key()
    assert await outcome_of(by_hand, Evidence(), csr_of(key, "one"), **SCEP) == "pending"
    assert await poll_outcome(by_hand, new_key()) == "transaction_unknown"
    assert await poll_outcome(by_hand, key, "T-2") == "transaction_unknown"
    assert await poll_outcome(by_hand, key) == "pending"


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
        await after.requests.approve((await only_request(after)).id, actor=ME)
        assert await outcome_of(after, Evidence(), csr_of(key, "one")) == "issued"
    finally:
        after.close()


async def test_the_trail_tells_who_asked_who_approved_and_what_was_issued(
    by_hand: Core, installation: Installation
) -> None:
    key = new_key()
    assert await outcome_of(by_hand, Evidence(), csr_of(key, "one")) == "pending"
    await by_hand.requests.approve((await only_request(by_hand)).id, actor=ME)
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


@pytest.mark.parametrize("approved", [False, True], ids=["pending", "approved"])
async def test_case_s11_a_transaction_that_waits_is_not_one_for_other_names(by_hand: Core, approved: bool) -> None:
    key = new_key()
    assert await outcome_of(by_hand, Evidence(), csr_of(key, "one"), **SCEP) == "pending"
    if approved:
        await by_hand.requests.approve((await only_request(by_hand)).id, actor=ME)
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
    assert (await only_request(by_hand)).names == ["DNS:a.example.com", "DNS:vpn.example.com"]


async def test_a_request_whose_names_hold_its_secret_is_not_kept(core: Core, installation: Installation) -> None:
    handed = await core.devices.add("default", "sensor", actor=ME)
    await admit_by(core, "secret + approval")
    csr = csr_of(new_key(), "sensor", sans=[f"{handed.secret}.example.com"])
    assert await outcome_of(core, Evidence(secret=handed.secret), csr) == "csr_holds_secret"
    assert installation.sql("SELECT 1 FROM request") == []
    assert await outcome_of(core, Evidence(secret=handed.secret), csr_of(new_key(), "sensor")) == "pending", "the twin"
