"""How often old algorithms were let in: counted with what they let in, for each realm, and shown to the operator."""

import asyncio
from dataclasses import replace

import pytest

from ca_core.core import Core
from ca_core.errors import NotAuthorized, Unavailable
from ca_core.model import Call, Evidence, Issued, Operation, Refused
from tests.helpers.core import ME, PUBLIC_URL, Installation, PrivateKey, SetClock, csr_of, enrolled, new_key, written

DES, TRIPLE, SHA1 = "scep.read_des", "scep.allow_3des", "scep.allow_sha1"
CALL = Call("scep-0001", "scep", "PKCSReq", "192.0.2.1", transaction_id="5C3A")


async def request(
    core: Core,
    evidence: Evidence,
    key: PrivateKey,
    *tolerances: str,
    device: str = "sensor",
    realm: str = "default",
    operation: Operation = Operation.ENROLL,
    call: Call = CALL,
) -> Issued | Refused:
    resolved = await core.realms.resolve("scep", realm, None)
    csr = csr_of(key, device)
    requester = await core.registration.authenticate(resolved, evidence, csr)
    outcome = await core.registration.enroll(resolved, requester, csr, operation, replace(call, tolerances=tolerances))
    assert isinstance(outcome, Issued | Refused)
    return outcome


async def secret_of(core: Core, device: str = "sensor", *, realm: str = "default") -> Evidence:
    return Evidence(secret=(await core.devices.add(realm, device, actor=ME)).secret)


async def counted(core: Core) -> dict[tuple[str, str], int]:
    """What the operator sees, once all that was submitted is written."""
    await written(core)
    return {(row.realm, row.tolerance): row.uses for row in (await core.status()).tolerances}


async def test_nothing_is_counted_of_what_needs_none(core: Core) -> None:
    assert await counted(core) == {}
    assert isinstance(await request(core, await secret_of(core), new_key()), Issued)
    await enrolled(core, "by-est")
    assert await counted(core) == {}


@pytest.mark.parametrize("tolerances", [(DES,), (TRIPLE,), (SHA1,), (SHA1, DES), (SHA1, TRIPLE)], ids=" ".join)
async def test_each_that_it_took_is_counted_once(core: Core, tolerances: tuple[str, ...]) -> None:
    assert isinstance(await request(core, await secret_of(core), new_key(), *tolerances), Issued)
    assert await counted(core) == {("default", name): 1 for name in tolerances}


async def test_each_realm_has_its_own_count(core: Core) -> None:
    for device in ("first", "second"):
        evidence = await secret_of(core, device, realm="other")
        assert isinstance(await request(core, evidence, new_key(), DES, device=device, realm="other"), Issued)
    assert isinstance(await request(core, await secret_of(core), new_key(), DES), Issued)
    assert await counted(core) == {("default", DES): 1, ("other", DES): 2}


async def test_the_last_time_is_shown(core: Core, clock: SetClock) -> None:
    for device in ("first", "second"):
        clock.forward(hours=1)
        await request(core, await secret_of(core, device), new_key(), SHA1, device=device)
    clock.forward(hours=1)
    await request(core, await secret_of(core, "third"), new_key(), device="third")
    (row,) = (await core.status()).tolerances
    assert (row.realm, row.tolerance, row.uses, row.last_at) == ("default", SHA1, 2, "2026-11-22T14:00:00Z")


async def test_a_refused_request_counts_too_since_its_device_needs_it(core: Core) -> None:
    outcome = await request(core, await secret_of(core), new_key(), DES, device="sensor")
    assert isinstance(outcome, Issued)
    own = Evidence(chain=(outcome.certificate,))
    refused = await request(core, own, new_key(), DES, device="another", operation=Operation.RENEW)
    assert isinstance(refused, Refused)
    assert refused.refusal.code == "subject_mismatch"
    assert await counted(core) == {("default", DES): 2}


async def test_a_refusal_of_nobody_counts_and_one_of_no_realm_does_not(core: Core) -> None:
    resolved = await core.realms.resolve("scep", None, None)
    refusal = NotAuthorized("transaction_unknown", "There is no such transaction of this key.")
    old = replace(CALL, tolerances=(SHA1,))
    core.registration.refused(refusal, old, resolved)
    core.registration.refused(refusal, old, None)
    assert await counted(core) == {("default", SHA1): 1}


async def test_the_same_request_again_counts_again(core: Core) -> None:
    """A client that asks twice needs it twice: who looks at the last time must see it."""
    evidence, key = await secret_of(core), new_key()
    for _ in range(2):
        assert isinstance(await request(core, evidence, key, DES), Issued)
    assert await counted(core) == {("default", DES): 2}


async def test_a_poll_counts_too(core: Core) -> None:
    key = new_key()
    assert isinstance(await request(core, await secret_of(core), key, SHA1), Issued)
    resolved = await core.realms.resolve("scep", None, None)
    call = replace(CALL, operation="CertPoll", tolerances=(SHA1,))
    assert isinstance(await core.registration.poll(resolved, "5C3A", csr_of(key).spki_sha256, call), Issued)
    assert await counted(core) == {("default", SHA1): 2}


async def test_many_at_once_on_two_nodes_are_all_counted(core: Core, second: Core) -> None:
    devices = [f"device-{number}" for number in range(20)]
    evidence = {device: await secret_of(core, device) for device in devices}
    outcomes = await asyncio.gather(
        *(
            request(node, evidence[device], new_key(), DES, SHA1, device=device)
            for device, node in zip(devices, [core, second] * 10, strict=True)
        )
    )
    assert all(isinstance(outcome, Issued) for outcome in outcomes)
    assert await counted(core) == {("default", DES): 20, ("default", SHA1): 20}
    assert await counted(second) == await counted(core)


async def test_a_certificate_and_its_count_are_written_together_or_not_at_all(
    core: Core, installation: Installation
) -> None:
    evidence, key = await secret_of(core), new_key()
    installation.refuse("UPDATE", "tolerance_use", "on purpose")
    with pytest.raises(Unavailable):
        await request(core, evidence, key, DES)
    assert installation.sql("SELECT count(*) FROM certificate WHERE kind = 'device'") == [(0,)]
    installation.allow("tolerance_use")
    assert isinstance(await request(core, evidence, key, DES), Issued)
    assert await counted(core) == {("default", DES): 1}


async def test_the_trail_says_what_it_took(core: Core, installation: Installation) -> None:
    outcome = await request(core, await secret_of(core), new_key(), SHA1, DES)
    assert isinstance(outcome, Issued)
    own = Evidence(chain=(outcome.certificate,))
    await request(core, own, new_key(), SHA1, device="another", operation=Operation.RENEW)
    await request(core, own, new_key(), operation=Operation.RENEW, call=replace(CALL, transaction_id="5C3B"))
    await written(core)
    issued, plain = installation.events("certificate.issued")
    (refused,) = installation.events("request.refused")
    assert (issued["tolerances"], refused["tolerances"]) == ([SHA1, DES], [SHA1])
    assert "tolerances" not in plain


@pytest.mark.parametrize("is_exposed", [True, False], ids=["exposed", "sealed"])
async def test_the_trail_says_whether_a_secret_was_exposed(
    core: Core, installation: Installation, is_exposed: bool
) -> None:
    evidence = replace(await secret_of(core), is_exposed=is_exposed)
    first = await request(core, evidence, new_key(), DES)
    assert isinstance(first, Issued)
    renewal = Evidence(chain=(first.certificate,), is_exposed=is_exposed)
    assert isinstance(
        await request(
            core, renewal, new_key(), DES, operation=Operation.RENEW, call=replace(CALL, transaction_id="5C3B")
        ),
        Issued,
    )
    by_secret, by_certificate = installation.events("certificate.issued")
    assert by_secret.get("secret_exposed", False) is is_exposed
    assert "secret_exposed" not in by_certificate, "there was none to expose"


async def test_the_count_outlives_a_restart(installation: Installation) -> None:
    core = installation.open()
    try:
        await request(core, await secret_of(core), new_key(), DES)
    finally:
        core.close()
    again = installation.open()
    try:
        assert await counted(again) == {("default", DES): 1}
        assert (await again.status()).public_url == PUBLIC_URL
    finally:
        again.close()
