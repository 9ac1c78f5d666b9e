"""The one door: what a request gets, when it is the same request again, and what is written of it."""

import asyncio
import datetime as dt
from typing import Any

import pytest
from cryptography import x509
from cryptography.x509.oid import NameOID

from ca_core.core import Core
from ca_core.csr import ParsedCsr
from ca_core.errors import MalformedRequest, Refusal, Unavailable
from ca_core.model import Call, Evidence, Issued, Operation
from tests.helpers.bad_csr import dns, extension, extension_request, make_csr, name, oid, rdn, san, sequence, utf8
from tests.helpers.core import (
    CALL,
    ME,
    Enrolled,
    Installation,
    SetClock,
    ask,
    code_of,
    csr_of,
    edit_realm,
    enrolled,
    new_key,
    written,
)
from tests.helpers.factory import idevid, root

REENROLL = Operation.REENROLL


async def secret_of(core: Core, device: str, **options: Any) -> Evidence:
    return Evidence(username="", secret=(await core.devices.add("default", device, actor=ME, **options)).secret)


async def factory_device(core: Core, device: str = "sensor") -> Evidence:
    """A registered device that shows its IDevID."""
    anchor = root()
    await core.trust.add("default", anchor.pem, name="acme", actor=ME)
    await core.devices.add("default", device, serial_number="AC-1", manufacturer="acme", actor=ME)
    return Evidence(chain=idevid(anchor).chain)


def certificate(issued: Issued) -> x509.Certificate:
    return x509.load_der_x509_certificate(issued.certificate)


# --- what it gets ----------------------------------------------------------------------------------------------------


async def test_names_come_from_the_record_and_what_the_csr_asks_beyond_is_dropped_and_audited(
    core: Core, installation: Installation
) -> None:
    evidence = await secret_of(core, "sensor", sans=["DNS:Sensor.Example.com", "IP:2001:DB8::1"])
    key = new_key()
    der = make_csr(
        key,
        name("sensor", attribute_value("2.5.4.10", "Somebody Else")),
        extension_request(san(dns("victim.example.com"))),
    )
    issued = certificate(await ask(core, evidence, csr_of_der(der)))
    assert issued.subject.rfc4514_string() == "CN=sensor"
    names = issued.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert names.get_values_for_type(x509.DNSName) == ["sensor.example.com"]
    assert [str(address) for address in names.get_values_for_type(x509.IPAddress)] == ["2001:db8::1"]
    [event] = installation.events("certificate.issued")
    assert event["dropped"] == ["subject O", "SAN DNS:victim.example.com"]


def attribute_value(kind: str, text: str) -> bytes:
    return rdn((kind, utf8(text)))


def csr_of_der(der: bytes) -> ParsedCsr:
    return ParsedCsr.parse(der)


@pytest.mark.parametrize(
    ("asked", "code"),
    [
        pytest.param((), "issued", id="its-own-name"),
        pytest.param(("other",), "subject_mismatch", id="another-devices-name"),
        pytest.param(("sensor", ("2.5.29.19", sequence(b"\x01\x01\xff"))), "ca_requested", id="ca-true"),
        pytest.param(("sensor", ("2.5.29.15", b"\x03\x02\x02\x04")), "ca_requested", id="key-cert-sign"),
        pytest.param(
            ("sensor", ("2.5.29.37", sequence(oid("1.3.6.1.5.5.7.3.9")))), "extension_not_allowed", id="ocsp-signing"
        ),
        pytest.param(
            ("sensor", ("2.5.29.37", sequence(oid("2.5.29.37.0")))), "extension_not_allowed", id="any-purpose"
        ),
        pytest.param(("sensor", ("2.5.29.37", sequence(oid("1.3.6.1.5.5.7.3.2")))), "issued", id="client-auth"),
    ],
)
async def test_what_a_csr_may_ask_for(core: Core, asked: tuple[Any, ...], code: str) -> None:
    evidence = await secret_of(core, "sensor")
    subject, *extensions = asked or ("sensor",)
    wanted = [extension_request(*(extension(kind, value) for kind, value in extensions))] if extensions else []
    assert await code_of(core, evidence, csr_of_der(make_csr(new_key(), name(subject), *wanted))) == code


async def test_a_device_bound_to_a_profile_gets_no_other(core: Core) -> None:
    evidence = await secret_of(core, "sensor", profile="device")
    assert await code_of(core, evidence, csr_of(new_key()), label="default.scep") == "profile_not_allowed"
    assert await code_of(core, evidence, csr_of(new_key()), label="default.device") == "issued"
    unbound = await secret_of(core, "other")
    assert await code_of(core, unbound, csr_of(new_key(), "other"), label="default.scep") == "profile_not_allowed"
    assert await code_of(core, unbound, csr_of(new_key(), "other"), label="default.device") == "issued"


@pytest.mark.parametrize(
    ("profile", "issuer"),
    [
        pytest.param("device", "default Issuing CA EC 1", id="ec"),
        pytest.param("scep", "default Issuing CA RSA 1", id="rsa"),
    ],
)
async def test_the_profile_picks_the_issuer(core: Core, profile: str, issuer: str) -> None:
    evidence = await secret_of(core, "sensor", profile=profile)
    issued = certificate(await ask(core, evidence, csr_of(new_key()), label=f"default.{profile}"))
    assert issued.issuer.get_attributes_for_oid(NameOID.COMMON_NAME)[0].value == issuer


@pytest.mark.parametrize(("demo", "days"), [pytest.param(True, 7, id="demo"), pytest.param(False, 90, id="named")])
async def test_a_server_without_a_name_issues_for_seven_days(installation: Installation, demo: bool, days: int) -> None:
    core = installation.open(demo=demo)
    try:
        issued = certificate(await ask(core, await secret_of(core, "sensor"), csr_of(new_key())))
    finally:
        core.close()
    end = installation.clock() + dt.timedelta(days=days)
    assert issued.not_valid_after_utc == end - dt.timedelta(seconds=1)


# --- renewal ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("cn", "sans", "code"),
    [
        pytest.param("sensor", ["b.example", "a.example"], "issued", id="the-same-names-in-another-order"),
        pytest.param("sensor", [], "issued", id="without-san"),
        pytest.param("sensor", ["a.example"], "renewal_san_mismatch", id="one-san-less"),
        pytest.param("sensor", ["a.example", "b.example", "c.example"], "renewal_san_mismatch", id="one-san-more"),
        pytest.param("other", ["a.example", "b.example"], "renewal_subject_mismatch", id="another-subject"),
        pytest.param(None, ["a.example", "b.example"], "renewal_subject_mismatch", id="no-subject"),
    ],
)
async def test_a_renewal_repeats_the_names_of_its_certificate(
    core: Core, cn: str | None, sans: list[str], code: str
) -> None:
    device = await enrolled(core, sans=["DNS:a.example", "DNS:b.example"])
    wanted = [extension_request(san(*(dns(each) for each in sans)))] if sans else []
    csr = csr_of_der(make_csr(new_key(), name(cn), *wanted))
    assert await code_of(core, device.evidence, csr, operation=REENROLL) == code


async def test_only_an_own_certificate_renews(core: Core) -> None:
    evidence = await secret_of(core, "sensor")
    assert await code_of(core, evidence, csr_of(new_key()), operation=REENROLL) == "reenroll_needs_own_certificate"
    assert await code_of(core, evidence, csr_of(new_key())) == "issued", "the secret is not spent by a refusal"


async def test_an_idevid_enrolls_and_does_not_renew(core: Core) -> None:
    evidence = await factory_device(core)
    assert await code_of(core, evidence, csr_of(new_key()), operation=REENROLL) == "reenroll_needs_own_certificate"
    assert await code_of(core, evidence, csr_of(new_key())) == "issued"


async def test_a_profile_may_want_a_new_key_with_each_renewal(core: Core) -> None:
    device = await enrolled(core)
    assert await code_of(core, device.evidence, csr_of(device.key), operation=REENROLL) == "issued"
    text = await core.realms.export("default")
    await core.realms.apply(text.replace('rekey = "optional"', 'rekey = "required"'), actor=ME)
    assert await code_of(core, device.evidence, csr_of(device.key), operation=REENROLL) == "rekey_required"
    assert await code_of(core, device.evidence, csr_of(new_key()), operation=REENROLL) == "issued"


# --- keys ------------------------------------------------------------------------------------------------------------


async def test_a_key_serves_one_device(core: Core) -> None:
    first = await enrolled(core, "first")
    evidence = await secret_of(core, "second")
    assert await code_of(core, evidence, csr_of(first.key, "second")) == "key_of_other_device"
    assert await code_of(core, evidence, csr_of(new_key(), "second")) == "issued"


async def test_a_compromised_key_serves_nobody_any_more(core: Core) -> None:
    device = await enrolled(core)
    await core.certificates.revoke(device.serial, reason="keyCompromise", actor=ME)
    fresh = Evidence(secret=(await core.devices.secret("default", "sensor", actor=ME)).secret)
    assert await code_of(core, fresh, csr_of(device.key)) == "key_blocked"
    assert await code_of(core, fresh, csr_of(new_key())) == "issued"


# --- the same request again ------------------------------------------------------------------------------------------


async def test_a_secret_answers_the_key_that_it_served_and_no_other(core: Core, clock: SetClock) -> None:
    evidence, key = await secret_of(core, "sensor", expires="1h"), new_key()
    first = await ask(core, evidence, csr_of(key))
    clock.forward(hours=23)
    again = await ask(core, evidence, csr_of(key))
    assert (again.certificate, again.again, first.again) == (first.certificate, True, False)
    other_names = csr_of_der(make_csr(key, name("sensor", attribute_value("2.5.4.10", "x"))))
    assert await code_of(core, evidence, other_names) == "retry_other_names"
    assert await code_of(core, evidence, csr_of(new_key())) == "secret_spent"
    clock.forward(hours=2)
    assert await code_of(core, evidence, csr_of(key)) == "secret_spent", "the retry window is over"


async def test_a_secret_gives_nothing_when_its_certificate_was_revoked_or_replaced(core: Core) -> None:
    one, two = await enrolled(core, "one"), await enrolled(core, "two")
    for device in (one, two):
        assert await code_of(core, Evidence(secret=device.secret), csr_of(device.key, device.name)) == "issued"
    await core.certificates.revoke(one.serial, actor=ME)
    await ask(core, two.evidence, csr_of(new_key(), "two"), operation=REENROLL)
    for device in (one, two):
        assert await code_of(core, Evidence(secret=device.secret), csr_of(device.key, device.name)) == "secret_spent"


async def test_an_idevid_asking_again_soon_gets_the_same_and_later_a_new_one(core: Core, clock: SetClock) -> None:
    evidence, key = await factory_device(core), new_key()
    first = await ask(core, evidence, csr_of(key))
    assert (await ask(core, evidence, csr_of(key))).certificate == first.certificate
    assert (await ask(core, evidence, csr_of(new_key()))).certificate != first.certificate, "another key"
    clock.forward(hours=25)
    assert (await ask(core, evidence, csr_of(key))).certificate != first.certificate, "the retry window is over"


async def test_a_renewal_asked_for_again_is_the_same_however_late(core: Core, clock: SetClock) -> None:
    device, key = await enrolled(core), new_key()
    first = await ask(core, device.evidence, csr_of(key), operation=REENROLL)
    clock.forward(days=30)
    assert (await ask(core, device.evidence, csr_of(key), operation=REENROLL)).certificate == first.certificate
    renewed = Evidence(chain=(first.certificate,))
    second = await ask(core, renewed, csr_of(key), operation=REENROLL)
    assert second.certificate != first.certificate, "a renewal of another certificate"
    late = await ask(core, device.evidence, csr_of(key), operation=REENROLL)
    assert late.certificate not in (first.certificate, second.certificate), "a replaced one is never the answer"


async def test_a_new_version_of_the_realm_makes_it_another_request(core: Core) -> None:
    device, key = await enrolled(core), new_key()
    first = await ask(core, device.evidence, csr_of(key), operation=REENROLL)
    await edit_realm(core, "default", 'retry_window = "24h"', 'retry_window = "12h"')
    assert (await ask(core, device.evidence, csr_of(key), operation=REENROLL)).certificate != first.certificate


@pytest.mark.parametrize("means", ["secret", "idevid", "own"])
async def test_the_same_request_sent_many_times_at_once_makes_one_certificate(
    core: Core, second: Core, means: str
) -> None:
    evidence, operation = await shown(core, means)
    before = len(await core.certificates.list(limit=100))
    csr = csr_of(new_key())
    asked = [ask(node, evidence, csr, operation=operation) for node in (core, second) * 10]
    answers = await asyncio.gather(*asked)
    assert len({answer.certificate for answer in answers}) == 1
    assert len(await core.certificates.list(limit=100)) == before + 1


async def shown(core: Core, means: str) -> tuple[Evidence, Operation]:
    if means == "own":
        return (await enrolled(core)).evidence, REENROLL
    evidence = await (secret_of(core, "sensor") if means == "secret" else factory_device(core))
    return evidence, Operation.ENROLL


async def test_fifty_keys_with_one_secret_on_two_nodes_get_one_certificate(core: Core, second: Core) -> None:
    evidence = await secret_of(core, "sensor")
    asked = [code_of(node, evidence, csr_of(new_key())) for node in (core, second) * 25]
    codes = await asyncio.gather(*asked)
    assert sorted(codes) == ["issued"] + ["secret_spent"] * 49
    assert len(await core.certificates.list(limit=100)) == 1


# --- clock -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("back", "issues"), [pytest.param(59, True, id="a-little-back"), pytest.param(61, False, id="before-the-store")]
)
async def test_nothing_is_issued_while_the_clock_stands_before_the_newest_event(
    core: Core, clock: SetClock, back: int, issues: bool
) -> None:
    evidence = await secret_of(core, "sensor")
    clock.forward(seconds=-back)
    assert await core.clock_is_behind() is not issues
    if issues:
        await ask(core, evidence, csr_of(new_key()))
        return
    with pytest.raises(Unavailable, match="clock"):
        await ask(core, evidence, csr_of(new_key()))
    assert await core.certificates.list(limit=10) == []
    assert "clock_behind" in [finding.code for finding in await core.check()]
    clock.forward(seconds=back)
    await ask(core, evidence, csr_of(new_key()))


# --- what is written of it -------------------------------------------------------------------------------------------


async def test_refusals_of_proven_requesters_are_audited_and_junk_is_not(
    core: Core, installation: Installation
) -> None:
    device = await enrolled(core)
    for serial in range(5):
        assert await code_of(core, device.evidence, csr_of(new_key(), f"other-{serial}")) == "subject_mismatch"
        assert await code_of(core, Evidence(secret="junk.junk"), csr_of(new_key())) == "secret_unknown"
    await written(core)
    events = installation.events("request.refused")
    assert [event["code"] for event in events] == ["subject_mismatch"], "the same refusal within a minute is one event"


@pytest.mark.parametrize(
    ("spoil", "code"),
    [
        pytest.param("spent", "secret_spent", id="spent-secret"),
        pytest.param("revoked", "certificate_revoked", id="revoked-certificate"),
        pytest.param("suspended", "device_suspended", id="suspended-device"),
    ],
)
async def test_a_device_that_is_refused_finds_it_in_its_own_history(core: Core, spoil: str, code: str) -> None:
    device = await enrolled(core)
    evidence = device.evidence
    if spoil == "spent":
        evidence = Evidence(secret=device.secret)
    elif spoil == "revoked":
        await core.certificates.revoke(device.serial, actor=ME)
    else:
        await core.devices.suspend("default", "sensor", actor=ME)
    csr, call = csr_of(new_key()), Call("k7f3-9xq2", "est", "simpleenroll", "192.0.2.1")
    resolved = await core.realms.resolve("est", None, None)
    with pytest.raises(Refusal) as caught:
        await core.registration.authenticate(resolved, evidence, csr)
    core.registration.refused(caught.value, call, resolved)
    await written(core)
    why = await core.devices.why("default", "sensor")
    assert (why.timeline[0].code, why.timeline[0].request_id) == (code, "k7f3-9xq2")
    assert (await core.attempts.explain("K7F3-9XQ2 ")).device == "sensor"


async def test_attempts_are_bounded_per_device_and_per_unknown_caller(core: Core) -> None:
    device: Enrolled = await enrolled(core)
    resolved = await core.realms.resolve("est", None, None)
    for number in range(30):
        await code_of(core, device.evidence, csr_of(device.key, "other"))
        call = Call(f"junk-{number:04}", "est", "simpleenroll", "198.51.100.7")
        core.registration.refused(MalformedRequest("not_base64", "no"), call, resolved)
    await written(core)
    assert len((await core.devices.why("default", "sensor")).timeline) == 20
    assert await core.attempts.count() == 40
    assert (await core.attempts.explain("junk-0029")).code == "not_base64"


async def test_a_flood_of_junk_is_counted_and_not_written(core: Core) -> None:
    resolved = await core.realms.resolve("est", None, None)
    for number in range(2000):
        source = f"198.51.{number // 250}.{number % 250}"
        core.registration.refused(MalformedRequest("not_base64", "no"), Call("junk-0001", "est", "x", source), resolved)
    await written(core)
    assert core.attempts.dropped >= 1500
    assert await core.attempts.count() + core.attempts.dropped == 2000


async def test_an_issued_certificate_stands_in_the_audit_trail_with_what_it_stood_on(
    core: Core, installation: Installation
) -> None:
    device = await enrolled(core)
    [event] = installation.events("certificate.issued")
    assert event["means"] == "secret"
    assert event["issuer"] == "default-ec-1"
    assert event["fingerprint"] == (await core.certificates.find(device.serial)).fingerprint_sha256
    assert device.secret not in str(event)
    assert event["source"] == CALL.source


async def test_our_own_faults_stand_in_the_device_s_history(core: Core, clock: SetClock) -> None:
    evidence = await secret_of(core, "sensor")
    clock.forward(hours=-1)
    with pytest.raises(Unavailable):
        await ask(core, evidence, csr_of(new_key()))
    clock.forward(hours=1)
    await written(core)
    [attempt] = (await core.devices.why("default", "sensor")).timeline
    assert (attempt.outcome, attempt.code, "clock" in str(attempt.detail)) == ("error", "internal_error", True)


async def test_a_noisy_source_does_not_keep_others_from_being_explained(core: Core) -> None:
    resolved = await core.realms.resolve("est", None, None)
    for number in range(3000):
        call = Call("noise-0001", "est", "simpleenroll", f"198.51.100.{number % 250}")
        core.registration.refused(MalformedRequest("not_base64", "no"), call, resolved)
    quiet = Call("quiet-0001", "est", "simpleenroll", "203.0.113.5")
    core.registration.refused(MalformedRequest("not_base64", "no"), quiet, resolved)
    await written(core)
    assert (await core.attempts.explain("quiet-0001")).source == "203.0.113.5"


async def test_refusals_of_one_device_are_written_at_a_limited_rate(core: Core) -> None:
    device = await enrolled(core)
    for number in range(200):
        await code_of(core, device.evidence, csr_of(device.key, f"other-{number}"))
    assert core.attempts.dropped >= 100


async def test_what_could_renew_nothing_is_never_the_answer_to_a_retransmission(core: Core) -> None:
    evidence, first_key, second_key = await factory_device(core), new_key(), new_key()
    first = await ask(core, evidence, csr_of(first_key))
    second = await ask(core, evidence, csr_of(second_key))
    assert (await ask(core, evidence, csr_of(first_key))).certificate == first.certificate
    await core.certificates.revoke(format(second.serial, "x"), actor=ME)
    third = await ask(core, evidence, csr_of(first_key))
    assert third.certificate not in (first.certificate, second.certificate)
    assert await code_of(core, Evidence(chain=(third.certificate,)), csr_of(new_key()), operation=REENROLL) == "issued"
