"""What became of a transaction: told to the key that began it, and to nobody else."""

import datetime as dt
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from ca_core.core import Core
from ca_core.csr import ParsedCsr
from ca_core.errors import NotAuthorized, Refusal
from ca_core.model import Call, Evidence, Issued, Operation, Refused, format_serial
from tests.helpers.bad_csr import rsa_key
from tests.helpers.core import ME, Installation, PrivateKey, SetClock, csr_of, enrolled, new_key, written

TRANSACTION = "5C3A"


def call(operation: str = "PKCSReq", transaction: str | None = TRANSACTION, request_id: str = "scep-0001") -> Call:
    return Call(request_id, "scep", operation, "192.0.2.1", transaction_id=transaction)


async def request(
    core: Core,
    evidence: Evidence,
    key: PrivateKey,
    *,
    device: str = "sensor",
    transaction: str | None = TRANSACTION,
    operation: Operation = Operation.ENROLL,
    realm: str = "default",
    csr: ParsedCsr | None = None,
) -> Issued:
    """Ask for a certificate as SCEP does; a refusal is raised."""
    asked = csr or csr_of(key, device)
    resolved = await core.realms.resolve("scep", realm, None)
    requester = await core.registration.authenticate(resolved, evidence, asked)
    outcome = await core.registration.enroll(resolved, requester, asked, operation, call(transaction=transaction))
    if isinstance(outcome, Refused):
        raise outcome.refusal
    assert isinstance(outcome, Issued)
    return outcome


async def secret_of(core: Core, device: str = "sensor", *, realm: str = "default") -> Evidence:
    return Evidence(secret=(await core.devices.add(realm, device, actor=ME)).secret)


async def poll(
    core: Core,
    key: PrivateKey,
    transaction: str = TRANSACTION,
    *,
    realm: str = "default",
    request_id: str = "scep-0002",
) -> Issued:
    """Ask what became of a transaction; a refusal is raised."""
    resolved = await core.realms.resolve("scep", realm, None)
    signer = csr_of(key).spki_sha256
    outcome = await core.registration.poll(resolved, transaction, signer, call("CertPoll", transaction, request_id))
    if isinstance(outcome, Refused):
        raise outcome.refusal
    assert isinstance(outcome, Issued)
    return outcome


async def code_of_poll(core: Core, key: PrivateKey, transaction: str = TRANSACTION, **options: Any) -> str:
    """The code that a poll is refused with; `issued` when it is not."""
    try:
        await poll(core, key, transaction, **options)
    except Refusal as refusal:
        return refusal.code
    return "issued"


async def test_the_key_that_asked_is_told_as_often_as_it_likes(core: Core, installation: Installation) -> None:
    key = new_key()
    issued = await request(core, await secret_of(core), key)
    for _ in range(3):
        polled = await poll(core, key)
        assert (polled.certificate, polled.serial, polled.again) == (issued.certificate, issued.serial, True)
    assert installation.sql("SELECT count(*) FROM certificate WHERE kind = 'device'") == [(1,)]
    assert len(installation.events("certificate.issued")) == 1


async def test_a_poll_is_an_attempt_of_the_device(core: Core) -> None:
    key = new_key()
    issued = await request(core, await secret_of(core), key)
    await poll(core, key, request_id="scep-poll")
    await written(core)
    attempt = await core.attempts.explain("scep-poll")
    assert (attempt.outcome, attempt.code, attempt.operation) == ("issued", None, "CertPoll")
    assert (attempt.device, attempt.realm, attempt.protocol) == ("sensor", "default", "scep")
    assert (attempt.transaction_id, attempt.serial) == (TRANSACTION, format_serial(issued.serial))


async def test_another_key_and_another_transaction_are_refused_alike(core: Core) -> None:
    key = new_key()
    await request(core, await secret_of(core), key)
    refusals = []
    for asking, transaction in ((new_key(), TRANSACTION), (key, "5C3B"), (key, ""), (key, TRANSACTION.lower())):
        with pytest.raises(NotAuthorized) as caught:
            await poll(core, asking, transaction, request_id="scep-poll")
        refusals.append((caught.value.code, caught.value.message, caught.value.detail, caught.value.device))
    assert set(refusals) == {("transaction_unknown", "There is no such transaction of this key.", "", None)}
    assert await code_of_poll(core, key) == "issued"


async def test_a_refused_poll_is_an_attempt_of_nobody_and_no_event(core: Core, installation: Installation) -> None:
    key = new_key()
    await request(core, await secret_of(core), key)
    assert await code_of_poll(core, new_key(), request_id="scep-poll") == "transaction_unknown"
    await written(core)
    attempt = await core.attempts.explain("scep-poll")
    assert (attempt.outcome, attempt.code, attempt.device) == ("refused", "transaction_unknown", None)
    assert (attempt.realm, attempt.transaction_id) == ("default", TRANSACTION)
    assert installation.events("request.refused") == []


async def test_transactions_of_one_name_are_each_realm_s_own(core: Core) -> None:
    first, second = new_key(), new_key()
    here = await request(core, await secret_of(core), first)
    there = await request(core, await secret_of(core, realm="other"), second, realm="other")
    assert (await poll(core, first)).certificate == here.certificate
    assert (await poll(core, second, realm="other")).certificate == there.certificate
    assert await code_of_poll(core, first, realm="other") == "transaction_unknown"
    assert await code_of_poll(core, second) == "transaction_unknown"


async def test_two_devices_may_use_one_name_for_their_transactions(core: Core) -> None:
    keys = {device: new_key() for device in ("first", "second")}
    issued = {
        device: await request(core, await secret_of(core, device), key, device=device) for device, key in keys.items()
    }
    for device, key in keys.items():
        assert (await poll(core, key)).certificate == issued[device].certificate


async def test_a_renewal_is_told_to_the_old_key_and_to_the_new(core: Core) -> None:
    own = await enrolled(core, key=rsa_key())
    key = new_key()
    renewed = await request(core, own.evidence, key, operation=Operation.RENEW)
    for asking in (own.key, key):
        assert (await poll(core, asking)).certificate == renewed.certificate
    assert await code_of_poll(core, new_key()) == "transaction_unknown"


async def test_of_two_certificates_in_one_transaction_the_newer_is_told(core: Core, clock: SetClock) -> None:
    """Clients name a transaction after their key, and keep both for years."""
    key = new_key()
    first = await request(core, await secret_of(core), key)
    clock.forward(days=80)
    second = await request(core, Evidence(chain=(first.certificate,)), key, operation=Operation.RENEW)
    assert second.certificate != first.certificate
    assert (await poll(core, key)).certificate == second.certificate


Change = Callable[[Core, Issued, SetClock], Awaitable[None]]


async def _revoke(core: Core, issued: Issued, _: SetClock) -> None:
    await core.certificates.revoke(format_serial(issued.serial), actor=ME)


async def _replace(core: Core, issued: Issued, _: SetClock) -> None:
    evidence = Evidence(chain=(issued.certificate,))
    await request(core, evidence, new_key(), operation=Operation.RENEW, transaction="another")


async def _revoke_a_newer(core: Core, issued: Issued, _: SetClock) -> None:
    del issued
    fresh = Evidence(secret=(await core.devices.secret("default", "sensor", actor=ME)).secret)
    newer = await request(core, fresh, new_key(), transaction="another")
    await core.certificates.revoke(format_serial(newer.serial), actor=ME)


async def _expire(_: Core, __: Issued, clock: SetClock) -> None:
    clock.forward(days=90)


async def _suspend(core: Core, _: Issued, __: SetClock) -> None:
    await core.devices.suspend("default", "sensor", actor=ME)


@pytest.mark.parametrize(
    ("change", "code"),
    [
        pytest.param(_revoke, "transaction_unknown", id="revoked"),
        pytest.param(_replace, "transaction_unknown", id="replaced"),
        pytest.param(_revoke_a_newer, "transaction_unknown", id="older-than-a-revoked-one"),
        pytest.param(_expire, "transaction_unknown", id="expired"),
        pytest.param(_suspend, "device_suspended", id="device-suspended"),
    ],
)
async def test_what_could_renew_nothing_is_not_told(core: Core, clock: SetClock, change: Change, code: str) -> None:
    key = new_key()
    issued = await request(core, await secret_of(core), key)
    assert await code_of_poll(core, key) == "issued"
    await change(core, issued, clock)
    assert await code_of_poll(core, key) == code


async def test_a_resumed_device_is_told_again(core: Core) -> None:
    key = new_key()
    await request(core, await secret_of(core), key)
    await core.devices.suspend("default", "sensor", actor=ME)
    assert await code_of_poll(core, key) == "device_suspended"
    await core.devices.resume("default", "sensor", actor=ME)
    assert await code_of_poll(core, key) == "issued"


async def test_a_poll_is_answered_as_long_as_the_certificate_is_good(core: Core, clock: SetClock) -> None:
    """Delivery is not known (RFC 8894 7.4): the retry window of a secret does not end it."""
    key = new_key()
    issued = await request(core, await secret_of(core), key)
    clock.forward(days=89)
    assert (await poll(core, key)).certificate == issued.certificate
    clock.forward(days=1, seconds=-1)
    assert await code_of_poll(core, key) == "transaction_unknown", "its last second"


async def test_a_transaction_outlives_a_restart(installation: Installation) -> None:
    key = new_key()
    told = set()
    for number in range(2):
        core = installation.open()
        try:
            if number == 0:
                told.add((await request(core, await secret_of(core), key)).certificate)
            told.add((await poll(core, key)).certificate)
        finally:
            core.close()
    assert len(told) == 1


async def test_another_node_tells_too(core: Core, second: Core) -> None:
    key = new_key()
    issued = await request(core, await secret_of(core), key)
    assert (await poll(second, key)).certificate == issued.certificate


@pytest.mark.parametrize("transaction", ["", "None", "NULL", "%", "' OR 1=1 --"])
async def test_what_has_no_transaction_is_found_by_none(core: Core, transaction: str) -> None:
    """A certificate by EST is in no transaction."""
    device = await enrolled(core)
    assert await code_of_poll(core, device.key, transaction) == "transaction_unknown"
    by_scep = await request(core, device.evidence, device.key, operation=Operation.RENEW)
    assert (await poll(core, device.key)).certificate == by_scep.certificate


async def test_a_refused_request_is_no_transaction(core: Core) -> None:
    evidence, key = await secret_of(core), new_key()
    with pytest.raises(NotAuthorized):
        await request(core, evidence, key, device="another")
    assert await code_of_poll(core, key) == "transaction_unknown"
    issued = await request(core, evidence, key)
    assert (await poll(core, key)).certificate == issued.certificate


async def test_a_certificate_of_enrolld_s_own_is_told_to_nobody(core: Core, installation: Installation) -> None:
    key = new_key()
    await request(core, await secret_of(core), key)
    assert await code_of_poll(core, key) == "issued"
    installation.sql("UPDATE certificate SET kind = 'ra' WHERE transaction_id = ?", TRANSACTION)
    assert await code_of_poll(core, key) == "transaction_unknown"


async def test_the_time_of_a_poll_is_the_core_s(core: Core, clock: SetClock, installation: Installation) -> None:
    key = new_key()
    await request(core, await secret_of(core), key)
    clock.forward(hours=1)
    await poll(core, key, request_id="scep-poll")
    await written(core)
    ((at,),) = installation.sql("SELECT at FROM attempt WHERE request_id = 'scep-poll'")
    assert at == int(clock.now.timestamp()) * 1000
    assert dt.datetime.fromtimestamp(at / 1000, dt.UTC) == clock.now
