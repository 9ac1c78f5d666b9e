"""A request that names its transaction (SCEP): when it is the same one again, whose it is, and that it ends.

Such a request is signed and bound to no connection, so that whoever saw it can send it again, however late.
"""

import asyncio
import dataclasses
from typing import Any

import pytest

from ca_core.core import Core
from ca_core.csr import ParsedCsr
from ca_core.errors import Refusal
from ca_core.model import Call, Evidence, Issued, Operation, Refused, format_serial
from ca_core.registration.retransmission import request_key
from tests.helpers.bad_csr import dns, extension_request, make_csr, name, rdn, san, utf8
from tests.helpers.core import (
    ME,
    Enrolled,
    Installation,
    PrivateKey,
    SetClock,
    ask,
    csr_of,
    edit_realm,
    enrolled,
    new_key,
    written,
)
from tests.helpers.factory import idevid, root

ENROLL, REENROLL, RENEW = Operation.ENROLL, Operation.REENROLL, Operation.RENEW
CALL = Call("scep-0001", "scep", "PKCSReq", "192.0.2.1")


async def transact(
    core: Core,
    evidence: Evidence,
    key: PrivateKey | ParsedCsr,
    transaction: str | None = "one",
    *,
    device: str = "sensor",
    operation: Operation = RENEW,
    realm: str = "default",
    request_id: str = "scep-0001",
) -> Issued:
    """Ask as SCEP does; a refusal is raised."""
    csr = key if isinstance(key, ParsedCsr) else csr_of(key, device)
    resolved = await core.realms.resolve("scep", realm, None)
    requester = await core.registration.authenticate(resolved, evidence, csr)
    call = dataclasses.replace(CALL, request_id=request_id, transaction_id=transaction)
    outcome = await core.registration.enroll(resolved, requester, csr, operation, call)
    if isinstance(outcome, Refused):
        raise outcome.refusal
    assert isinstance(outcome, Issued)
    return outcome


async def code_of(core: Core, evidence: Evidence, key: PrivateKey | ParsedCsr, *more: Any, **options: Any) -> str:
    """The code that a request is refused with; `issued` or `again` when it is not."""
    try:
        issued = await transact(core, evidence, key, *more, **options)
    except Refusal as refusal:
        return refusal.code
    return "again" if issued.again else "issued"


async def secret_of(core: Core, device: str = "sensor", *, realm: str = "default") -> Evidence:
    return Evidence(secret=(await core.devices.add(realm, device, actor=ME)).secret)


def named(key: PrivateKey, organization: str = "Example", *sans: str) -> ParsedCsr:
    """A CSR of the device with names that it will not get."""
    wanted = [extension_request(san(*map(dns, sans)))] if sans else []
    return ParsedCsr.parse(make_csr(key, name("sensor", rdn(("2.5.4.10", utf8(organization)))), *wanted))


def chain_of(issued: Issued) -> Evidence:
    return Evidence(chain=(issued.certificate,))


@pytest.fixture
async def own(core: Core) -> Enrolled:
    return await enrolled(core)


# --- the key of a request --------------------------------------------------------------------------------------------


async def test_what_makes_two_requests_the_same(core: Core, own: Enrolled) -> None:
    csr = csr_of(new_key())
    resolved = await core.realms.resolve("scep", None, None)
    other_realm = await core.realms.resolve("scep", "other", None)
    requester = await core.registration.authenticate(resolved, own.evidence, csr)
    other = await enrolled(core, "other")
    other_requester = await core.registration.authenticate(resolved, other.evidence, csr)
    made = [
        request_key(resolved, "scep", RENEW, requester, csr, "one"),
        request_key(resolved, "scep", RENEW, requester, csr, "two"),
        request_key(resolved, "scep", RENEW, requester, csr, ""),
        request_key(resolved, "scep", RENEW, requester, csr, None),
        request_key(resolved, "scep", ENROLL, requester, csr, "one"),
        request_key(resolved, "sce", RENEW, requester, csr, "one"),
        request_key(resolved, "scep", RENEW, requester, csr_of(new_key()), "one"),
        request_key(resolved, "scep", RENEW, requester, named(new_key()), "one"),
        request_key(resolved, "scep", RENEW, other_requester, csr, "one"),
        request_key(other_realm, "scep", RENEW, requester, csr, "one"),
    ]
    assert len(set(made)) == len(made)
    assert {len(key) for key in made} == {32}
    assert made[0] == request_key(resolved, "scep", RENEW, requester, csr, "one")


async def test_a_new_version_of_the_realm_makes_another_request_only_without_a_transaction(
    core: Core, own: Enrolled
) -> None:
    csr = csr_of(new_key())
    before = await core.realms.resolve("scep", None, None)
    requester = await core.registration.authenticate(before, own.evidence, csr)
    await edit_realm(core, "default", 'retry_window = "24h"', 'retry_window = "12h"')
    after = await core.realms.resolve("scep", None, None)

    def same(transaction: str | None) -> bool:
        keys = {request_key(each, "scep", RENEW, requester, csr, transaction) for each in (before, after)}
        return len(keys) == 1

    assert (same("one"), same(None)) == (True, False)


# --- the same request again ------------------------------------------------------------------------------------------


async def test_the_same_request_gets_the_same_certificate_and_another_transaction_another(
    core: Core, own: Enrolled, installation: Installation
) -> None:
    key = new_key()
    first = await transact(core, own.evidence, key)
    again = await transact(core, own.evidence, key)
    assert (again.certificate, again.again, first.again) == (first.certificate, True, False)
    assert (await transact(core, own.evidence, key, "two")).certificate != first.certificate
    assert installation.sql("SELECT count(*) FROM certificate WHERE transaction_id = 'one'") == [(1,)]


@pytest.mark.parametrize("operation", [RENEW, ENROLL], ids=["RenewalReq", "PKCSReq"])
async def test_a_renewal_sent_again_gets_the_same_however_late_and_never_another(
    core: Core, own: Enrolled, clock: SetClock, operation: Operation
) -> None:
    key = new_key()
    clock.forward(days=20)
    first = await transact(core, own.evidence, key, operation=operation)
    for days in (1, 30, 38):
        clock.forward(days=days)
        again = await transact(core, own.evidence, key, operation=operation)
        assert (again.certificate, again.again) == (first.certificate, True)
    clock.forward(days=2)
    assert await code_of(core, own.evidence, key, operation=operation) == "certificate_expired"


async def test_a_renewal_whose_certificate_was_replaced_gets_nothing_new(core: Core, own: Enrolled) -> None:
    key = new_key()
    first = await transact(core, own.evidence, key, "one")
    await transact(core, chain_of(first), new_key(), "two")
    assert await code_of(core, own.evidence, key, "one") == "transaction_over"
    assert await code_of(core, own.evidence, key, "three") == "issued", "another transaction is another request"


async def test_a_client_that_names_its_transactions_after_its_key_gets_the_newest(
    core: Core, own: Enrolled, installation: Installation
) -> None:
    """strongSwan does, and keeps its key: each renewal is one, and each old message gets the newest of them."""
    renewals = [await transact(core, own.evidence, own.key)]
    for _ in range(3):
        renewals.append(await transact(core, chain_of(renewals[-1]), own.key))
    assert len({issued.certificate for issued in renewals}) == 4
    for old in (own.evidence, *map(chain_of, renewals[:-1])):
        assert (await transact(core, old, own.key)).certificate == renewals[-1].certificate
    assert installation.sql("SELECT count(*) FROM certificate WHERE transaction_id = 'one'") == [(4,)]


async def test_a_new_version_of_the_realm_makes_no_old_request_a_new_one(core: Core, own: Enrolled) -> None:
    key = new_key()
    first = await transact(core, own.evidence, key)
    await edit_realm(core, "default", 'secret_lifetime = "7d"', 'secret_lifetime = "6d"')
    assert (await transact(core, own.evidence, key)).certificate == first.certificate


@pytest.mark.parametrize(
    "change",
    [pytest.param("names", id="other-names"), pytest.param("operation", id="another-operation")],
)
async def test_another_request_under_the_name_of_an_old_one_gets_nothing(
    core: Core, own: Enrolled, installation: Installation, change: str
) -> None:
    key = new_key()
    first = await transact(core, own.evidence, key)
    csr = named(key) if change == "names" else csr_of(key)
    operation = ENROLL if change == "operation" else RENEW
    assert await code_of(core, own.evidence, csr, operation=operation) == "transaction_of_other_request"
    assert await code_of(core, own.evidence, csr, "two", operation=operation) == "issued"
    assert (await transact(core, own.evidence, key)).certificate == first.certificate
    assert installation.sql("SELECT count(*) FROM certificate WHERE transaction_id = 'one'") == [(1,)]


async def test_a_revoked_certificate_ends_its_transaction(core: Core, own: Enrolled) -> None:
    key = new_key()
    first = await transact(core, own.evidence, key)
    await core.certificates.revoke(format_serial(first.serial), actor=ME)
    assert await code_of(core, own.evidence, key) == "newer_certificate_revoked"


async def test_one_request_at_once_on_two_nodes_is_one(
    core: Core, second: Core, own: Enrolled, installation: Installation
) -> None:
    for number in range(10):
        key = new_key()
        issued = await asyncio.gather(
            *(transact(node, own.evidence, key, f"round-{number}") for node in (core, second) * 3)
        )
        assert len({each.certificate for each in issued}) == 1
    assert installation.sql("SELECT count(*) FROM certificate WHERE transaction_id LIKE 'round-%'") == [(10,)]


# --- by a secret -----------------------------------------------------------------------------------------------------


async def test_a_spent_secret_answers_its_key_whatever_the_transaction(core: Core, clock: SetClock) -> None:
    """A client that lost the answer may have lost the transaction as well (RFC 8894 5.2)."""
    evidence, key = await secret_of(core), new_key()
    first = await transact(core, evidence, key, "one", operation=ENROLL)
    for transaction in ("one", "two", None):
        assert (await transact(core, evidence, key, transaction, operation=ENROLL)).certificate == first.certificate
    assert await code_of(core, evidence, named(key), "one", operation=ENROLL) == "retry_other_names"
    assert await code_of(core, evidence, new_key(), "three", operation=ENROLL) == "secret_spent"
    clock.forward(hours=24)
    assert await code_of(core, evidence, key, "one", operation=ENROLL) == "secret_spent"


async def test_a_spent_secret_is_answered_also_in_a_transaction_of_another_key(core: Core) -> None:
    """Found by the model: a client that knows one name of a transaction alone would be stranded."""
    await transact(core, await secret_of(core), new_key(), "one", operation=ENROLL)
    fresh = Evidence(secret=(await core.devices.secret("default", "sensor", actor=ME)).secret)
    key = new_key()
    assert await code_of(core, fresh, key, "two", operation=ENROLL) == "issued"
    for transaction in ("three", None, "one"):
        assert await code_of(core, fresh, key, transaction, operation=ENROLL) == "again"
    assert await code_of(core, fresh, new_key(), "one", operation=ENROLL) == "secret_spent"


async def test_a_new_secret_begins_a_new_request_in_the_transaction_of_the_key(core: Core) -> None:
    """A client that names its transactions after its key, helped by a new secret, is not stranded."""
    first_secret, key = await secret_of(core), new_key()
    first = await transact(core, first_secret, key, operation=ENROLL)
    fresh = Evidence(secret=(await core.devices.secret("default", "sensor", actor=ME)).secret)
    second = await transact(core, fresh, key, operation=ENROLL)
    assert second.certificate != first.certificate


# --- by a factory identity -------------------------------------------------------------------------------------------


async def factory_device(core: Core) -> Evidence:
    anchor = root()
    await core.trust.add("default", anchor.pem, name="acme", actor=ME)
    await core.devices.add("default", "sensor", serial_number="AC-1", manufacturer="acme", actor=ME)
    return Evidence(chain=idevid(anchor).chain)


async def test_a_factory_identity_gets_the_same_for_its_transaction(core: Core, clock: SetClock) -> None:
    evidence, key = await factory_device(core), new_key()
    first = await transact(core, evidence, key, operation=ENROLL)
    for hours in (1, 100):
        clock.forward(hours=hours)
        assert (await transact(core, evidence, key, operation=ENROLL)).certificate == first.certificate
    assert await code_of(core, evidence, key, "two", operation=ENROLL) == "issued"


async def test_a_factory_identity_whose_certificate_was_revoked_gets_nothing_for_an_old_request(core: Core) -> None:
    evidence, key = await factory_device(core), new_key()
    first = await transact(core, evidence, key, operation=ENROLL)
    await core.certificates.revoke(format_serial(first.serial), actor=ME)
    assert await code_of(core, evidence, key, operation=ENROLL) == "transaction_over"
    assert await code_of(core, evidence, new_key(), "two", operation=ENROLL) == "issued"


async def test_a_factory_identity_whose_certificate_was_renewed_gets_nothing_for_an_old_request(
    core: Core, clock: SetClock, installation: Installation
) -> None:
    evidence, key = await factory_device(core), new_key()
    first = await transact(core, evidence, key, "one", operation=ENROLL)
    renewed = await transact(core, chain_of(first), new_key(), "two")
    clock.forward(days=40)
    assert await code_of(core, evidence, key, "one", operation=ENROLL) == "transaction_over"
    assert await code_of(core, chain_of(renewed), new_key(), "three") == "issued"
    clock.forward(days=200)
    assert await code_of(core, evidence, key, "one", operation=ENROLL) == "transaction_over"
    assert installation.sql("SELECT count(*) FROM certificate WHERE transaction_id = 'one'") == [(1,)]


async def test_a_factory_identity_whose_certificate_has_expired_begins_anew_with_another_request(
    core: Core, clock: SetClock
) -> None:
    evidence, key = await factory_device(core), new_key()
    first = await transact(core, evidence, key, operation=ENROLL)
    clock.forward(days=89)
    assert (await transact(core, evidence, key, operation=ENROLL)).certificate == first.certificate
    clock.forward(days=1)
    assert await code_of(core, evidence, key, operation=ENROLL) == "transaction_over"
    assert await code_of(core, evidence, new_key(), "two", operation=ENROLL) == "issued"


# --- whose it is -----------------------------------------------------------------------------------------------------


async def test_a_transaction_is_of_one_key_while_it_may_be_asked_again(
    core: Core, own: Enrolled, clock: SetClock
) -> None:
    await transact(core, own.evidence, new_key(), "one")
    other = new_key()
    assert await code_of(core, own.evidence, other, "one") == "transaction_of_other_key"
    assert await code_of(core, own.evidence, other, "two") == "issued"
    clock.forward(hours=24)
    assert await code_of(core, own.evidence, new_key(), "one") == "issued", "clients that know one name only"


async def test_a_transaction_of_another_key_spends_no_secret(core: Core) -> None:
    await transact(core, await secret_of(core), new_key(), "one", operation=ENROLL)
    fresh = Evidence(secret=(await core.devices.secret("default", "sensor", actor=ME)).secret)
    key = new_key()
    assert await code_of(core, fresh, key, "one", operation=ENROLL) == "transaction_of_other_key"
    assert await code_of(core, fresh, key, "two", operation=ENROLL) == "issued"


async def test_transactions_of_other_devices_and_realms_are_none_of_ours(core: Core) -> None:
    for device, realm in (("first", "default"), ("second", "default"), ("first", "other")):
        evidence = await secret_of(core, device, realm=realm)
        assert await code_of(core, evidence, new_key(), "one", device=device, realm=realm, operation=ENROLL) == "issued"


async def test_without_a_transaction_there_is_nothing_to_share(core: Core, own: Enrolled) -> None:
    for _ in range(2):
        issued = await ask(core, own.evidence, csr_of(new_key()), operation=REENROLL)
        assert not issued.again
    assert await code_of(core, own.evidence, new_key(), "one") == "issued"


async def test_two_keys_at_once_in_one_transaction_get_one_certificate(
    core: Core, second: Core, own: Enrolled, installation: Installation
) -> None:
    for number in range(10):
        codes = await asyncio.gather(
            *(code_of(node, own.evidence, new_key(), f"round-{number}") for node in (core, second) * 3)
        )
        assert sorted(codes) == ["issued", *["transaction_of_other_key"] * 5], f"round {number}"
    assert installation.sql("SELECT count(*) FROM certificate WHERE transaction_id LIKE 'round-%'") == [(10,)]


async def test_two_requests_at_once_in_one_transaction_get_one_certificate(
    core: Core, second: Core, own: Enrolled, installation: Installation
) -> None:
    """Of one key, and for other names."""
    for number in range(10):
        key = new_key()
        codes = await asyncio.gather(
            *(
                code_of(node, own.evidence, named(key, organization), f"round-{number}")
                for node, organization in ((core, "A"), (second, "B"), (core, "C"), (second, "D"))
            )
        )
        assert sorted(codes) == ["issued", *["transaction_of_other_request"] * 3], f"round {number}"
    assert installation.sql("SELECT count(*) FROM certificate WHERE transaction_id LIKE 'round-%'") == [(10,)]


# --- what is written of it -------------------------------------------------------------------------------------------


async def test_a_transaction_stands_with_its_certificate_its_attempt_and_its_event(
    core: Core, own: Enrolled, installation: Installation
) -> None:
    issued = await transact(core, own.evidence, new_key(), 'a+b/c= "{}"')
    serial = format_serial(issued.serial)
    rows = installation.sql("SELECT transaction_id, protocol FROM certificate WHERE serial = ?", serial)
    assert rows == [('a+b/c= "{}"', "scep")]
    attempt = await core.attempts.explain("scep-0001")
    assert (attempt.transaction_id, attempt.serial, attempt.outcome) == ('a+b/c= "{}"', serial, "issued")
    by_est, by_scep = installation.events("certificate.issued")
    assert by_scep["transaction_id"] == 'a+b/c= "{}"'
    assert "transaction_id" not in by_est
    assert installation.sql("SELECT transaction_id FROM certificate WHERE serial = ?", own.serial) == [(None,)]


async def test_a_refused_transaction_stands_in_the_attempt_and_the_event(
    core: Core, own: Enrolled, installation: Installation
) -> None:
    csr = csr_of(new_key(), "another")
    assert await code_of(core, own.evidence, csr, "one", request_id="scep-0007") == "subject_mismatch"
    await written(core)
    assert (await core.attempts.explain("scep-0007")).transaction_id == "one"
    (event,) = installation.events("request.refused")
    assert (event["code"], event["transaction_id"]) == ("subject_mismatch", "one")


# --- what RenewalReq means -------------------------------------------------------------------------------------------


async def test_a_renewal_by_scep_need_not_repeat_the_names_of_its_certificate(core: Core) -> None:
    """RFC 8894 2.5 does not say what RFC 7030 4.2.2 says; the names are the record's either way."""
    device = await enrolled(core, sans=["DNS:sensor.example.com"])
    for number, csr in enumerate((csr_of(new_key(), None), named(new_key(), "Example", "victim.example.com"))):
        assert await code_of(core, device.evidence, csr, f"round-{number}") == "issued"
    assert await code_of(core, device.evidence, csr_of(new_key(), "another"), "three") == "subject_mismatch"


async def test_a_secret_renews_nothing_and_is_not_spent_by_trying(core: Core) -> None:
    evidence, key = await secret_of(core), new_key()
    assert await code_of(core, evidence, key, operation=RENEW) == "renewal_needs_certificate"
    assert await code_of(core, evidence, key, operation=ENROLL) == "issued"
    assert await code_of(core, evidence, key, operation=RENEW) == "renewal_needs_certificate", "nor spent"


async def test_scep_gives_certificates_under_the_rsa_issuer_alone(core: Core) -> None:
    for device, profile, code in (("a", "device", "profile_not_for_protocol"), ("b", "scep", "issued")):
        handed = await core.devices.add("default", device, profile=profile, actor=ME)
        evidence = Evidence(secret=handed.secret)
        assert await code_of(core, evidence, new_key(), "one", device=device, operation=ENROLL) == code
    default = await secret_of(core, "c")
    assert await code_of(core, default, new_key(), "one", device="c", operation=ENROLL) == "issued"
    (row,) = await core.certificates.list(device="c", limit=10)
    assert row.issuer == "default-rsa-1"
