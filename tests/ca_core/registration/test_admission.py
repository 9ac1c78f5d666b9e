"""Admission by secret and by own certificate. Whatever is wrong with a secret, the peer hears the same."""

import asyncio
import dataclasses
import datetime as dt
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.serialization import Encoding

from ca_core.authority.plan import CertificatePlan
from ca_core.core import Core
from ca_core.csr import ParsedCsr
from ca_core.errors import NotAuthenticated, NotAuthorized, Refusal
from ca_core.model import Evidence, Means, Operation
from ca_core.registration.admission.secret import ALPHABET, new_secret
from ca_core.weak_keys import debian, find_weakness
from tests.helpers.bad_csr import rsa_key
from tests.helpers.core import (
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
)

SAME = "The credentials are not accepted."


@dataclass
class Scene:
    """A device with a fresh secret, another one, and everything to spoil it with."""

    core: Core
    clock: SetClock
    secret: str
    others: str
    csr: ParsedCsr
    username: str | None = "sensor-1"
    label: str | None = None

    @property
    def evidence(self) -> Evidence:
        return Evidence(username=self.username, secret=self.secret)

    async def code(self) -> str:
        return await code_of(self.core, self.evidence, self.csr, label=self.label)


@pytest.fixture
async def scene(core: Core, clock: SetClock) -> Scene:
    handed = await core.devices.add("default", "sensor:1", actor=ME)
    other = await core.devices.add("default", "other", actor=ME)
    assert handed.username == "sensor-1"
    return Scene(core, clock, handed.secret, other.secret, csr_of(new_key(), "sensor:1"))


def test_a_secret_is_selector_and_130_bits_that_survive_a_router_command_line() -> None:
    seen = set()
    for _ in range(200):
        text, selector, digest = new_secret()
        before, _, after = text.partition(".")
        assert before == selector
        assert (len(selector), len(after), len(digest)) == (8, 26, 32)
        assert set(before + after) <= set(ALPHABET)
        seen.add(after)
    assert len(seen) == 200
    assert len(set(ALPHABET)) == 32  # five bits a character
    assert not set("lo01") & set(ALPHABET)


@pytest.mark.parametrize(
    "username",
    [
        pytest.param("sensor-1", id="the-device"),
        pytest.param("", id="empty"),
        pytest.param(None, id="none-as-in-scep"),
    ],
)
async def test_a_fresh_secret_is_accepted(scene: Scene, username: str | None) -> None:
    scene.username = username
    assert await scene.code() == "issued"


async def _wrong_half(scene: Scene) -> None:
    last = scene.secret[-1]
    scene.secret = scene.secret[:-1] + ("a" if last != "a" else "b")


async def _cut(scene: Scene) -> None:
    scene.secret = scene.secret[:-1]


async def _longer(scene: Scene) -> None:
    scene.secret += "a"


async def _selector_alone(scene: Scene) -> None:
    scene.secret = scene.secret.partition(".")[0] + "."


async def _upper(scene: Scene) -> None:
    selector, _, rest = scene.secret.partition(".")
    scene.secret = f"{selector}.{rest.upper()}"


async def _unknown(scene: Scene) -> None:
    scene.secret = new_secret()[0]


async def _mixed(scene: Scene) -> None:
    scene.secret = scene.others.partition(".")[0] + "." + scene.secret.partition(".")[2]


async def _other_user(scene: Scene) -> None:
    scene.username = "other"


async def _colon_user(scene: Scene) -> None:
    scene.username = "sensor:1"


async def _user_in_capitals(scene: Scene) -> None:
    scene.username = "SENSOR-1"


async def _expired(scene: Scene) -> None:
    scene.clock.forward(days=7)


async def _void(scene: Scene) -> None:
    await scene.core.devices.secret("default", "sensor:1", actor=ME)


async def _spent(scene: Scene) -> None:
    await ask(scene.core, scene.evidence, csr_of(new_key(), "sensor:1"))


async def _spent_long_ago(scene: Scene) -> None:
    await ask(scene.core, scene.evidence, scene.csr)
    scene.clock.forward(hours=24)


async def _spent_and_void(scene: Scene) -> None:
    await ask(scene.core, scene.evidence, scene.csr)
    await scene.core.devices.secret("default", "sensor:1", actor=ME)


async def _spent_and_revoked(scene: Scene) -> None:
    issued = await ask(scene.core, scene.evidence, scene.csr)
    await scene.core.certificates.revoke(format(issued.serial, "x"), actor=ME)


async def _other_realms(scene: Scene) -> None:
    scene.label = "other"


async def _not_admitted(scene: Scene) -> None:
    await edit_realm(scene.core, "default", "secret = true", "secret = false")


async def _odd(scene: Scene) -> None:
    scene.secret = "\u00e9\x00'; DROP TABLE device; --" * 100


WRONG: dict[str, tuple[Callable[[Scene], Awaitable[None]], str]] = {
    "wrong-last-character": (_wrong_half, "secret_wrong"),
    "one-character-less": (_cut, "secret_wrong"),
    "one-character-more": (_longer, "secret_wrong"),
    "selector-alone": (_selector_alone, "secret_wrong"),
    "upper-case": (_upper, "secret_wrong"),
    "another-device's-selector": (_mixed, "secret_wrong"),
    "unknown": (_unknown, "secret_unknown"),
    "odd-bytes": (_odd, "secret_unknown"),
    "another-realm's": (_other_realms, "secret_unknown"),
    "another-user": (_other_user, "secret_other_user"),
    "user-with-a-colon": (_colon_user, "secret_other_user"),
    "user-in-capitals": (_user_in_capitals, "secret_other_user"),
    "expired": (_expired, "secret_expired"),
    "replaced": (_void, "secret_void"),
    "spent-with-another-key": (_spent, "secret_spent"),
    "spent-before-the-window": (_spent_long_ago, "secret_spent"),
    "spent-and-replaced": (_spent_and_void, "secret_void"),
    "spent-and-revoked": (_spent_and_revoked, "secret_spent"),
    "realm-without-secrets": (_not_admitted, "secret_not_admitted"),
}


@pytest.mark.parametrize("case", WRONG)
async def test_a_secret_that_is_no_good_is_refused_with_one_and_the_same_sentence(scene: Scene, case: str) -> None:
    spoil, code = WRONG[case]
    await spoil(scene)
    with pytest.raises(NotAuthenticated) as caught:
        await ask(scene.core, scene.evidence, scene.csr, label=scene.label)
    assert caught.value.code == code
    assert caught.value.message == str(caught.value) == SAME


async def test_a_secret_is_good_until_the_very_moment_it_expires(scene: Scene) -> None:
    scene.clock.forward(days=7, milliseconds=-1)
    assert await scene.code() == "issued"


async def test_a_spent_secret_answers_its_key_again_also_after_it_expired(core: Core, clock: SetClock) -> None:
    handed = await core.devices.add("default", "sensor", expires="1h", actor=ME)
    evidence, csr = Evidence(username="sensor", secret=handed.secret), csr_of(new_key())
    first = await ask(core, evidence, csr)
    clock.forward(hours=23, minutes=59)
    again = await ask(core, evidence, csr)
    assert again.again
    assert again.certificate == first.certificate
    assert await code_of(core, evidence, csr_of(new_key())) == "secret_spent"


async def test_the_same_key_with_other_names_is_refused(core: Core) -> None:
    key = new_key()
    handed = await core.devices.add("default", "sensor", actor=ME)
    evidence = Evidence(secret=handed.secret)
    await ask(core, evidence, csr_of(key, "sensor"))
    assert await code_of(core, evidence, csr_of(key, "sensor", sans=["a.example"])) == "retry_other_names"
    assert await code_of(core, evidence, csr_of(key, None)) == "retry_other_names"
    assert (await ask(core, evidence, csr_of(key, "sensor"))).again


async def test_a_new_secret_works_for_a_new_key_and_voids_the_old_one(scene: Scene) -> None:
    await _spent(scene)
    handed = await scene.core.devices.secret("default", "sensor:1", actor=ME)
    assert await scene.code() == "secret_void"
    scene.secret = handed.secret
    assert await scene.code() == "issued"


async def test_fifty_keys_with_one_secret_get_one_certificate(
    core: Core, second: Core, installation: Installation
) -> None:
    handed = await core.devices.add("default", "sensor", actor=ME)
    evidence = Evidence(secret=handed.secret)
    keys = [csr_of(new_key()) for _ in range(50)]
    codes = await asyncio.gather(*(code_of((core, second)[i % 2], evidence, csr) for i, csr in enumerate(keys)))
    assert sorted(set(codes)) == ["issued", "secret_spent"]
    assert codes.count("issued") == 1
    assert installation.sql("SELECT count(*) FROM certificate WHERE kind = 'device'") == [(1,)]


async def test_no_credentials_at_all_are_told_apart_from_wrong_ones(scene: Scene) -> None:
    for evidence in (Evidence(), Evidence(username="sensor-1")):
        assert await code_of(scene.core, evidence, scene.csr) == "credentials_missing"
    assert await code_of(scene.core, Evidence(username="sensor-1", secret=""), scene.csr) == "secret_unknown"


@pytest.mark.parametrize("means", ["secret", "own"])
async def test_a_suspended_device_is_refused_whatever_it_shows(core: Core, means: str) -> None:
    device = await enrolled(core)
    handed = await core.devices.secret("default", "sensor", actor=ME)
    evidence = device.evidence if means == "own" else Evidence(secret=handed.secret)
    await core.devices.suspend("default", "sensor", actor=ME)
    with pytest.raises(NotAuthorized) as caught:
        await ask(core, evidence, csr_of(new_key()))
    assert caught.value.code == "device_suspended"
    await core.devices.resume("default", "sensor", actor=ME)
    assert await code_of(core, evidence, csr_of(new_key())) == "issued"


async def test_another_device_s_name_is_refused(core: Core) -> None:
    handed = await core.devices.add("default", "sensor", actor=ME)
    await core.devices.add("default", "pacemaker", actor=ME)
    evidence = Evidence(secret=handed.secret)
    for name in ("pacemaker", "Sensor", "sensor ", "sensor.example"):
        assert await code_of(core, evidence, csr_of(new_key(), name)) == "subject_mismatch"
    assert await code_of(core, evidence, csr_of(new_key(), None)) == "issued"


@pytest.mark.parametrize(
    ("profile", "label", "code"),
    [
        (None, None, "issued"),
        (None, "default.device", "issued"),
        (None, "default.scep", "profile_not_allowed"),
        ("scep", None, "issued"),
        ("scep", "default.scep", "issued"),
        ("scep", "default.device", "profile_not_allowed"),
    ],
)
async def test_a_device_bound_to_a_profile_gets_no_other(
    core: Core, profile: str | None, label: str | None, code: str
) -> None:
    handed = await core.devices.add("default", "sensor", profile=profile, actor=ME)
    assert await code_of(core, Evidence(secret=handed.secret), csr_of(new_key()), label=label) == code


# --- own certificate -------------------------------------------------------------------------------------------------


@pytest.fixture
async def device(core: Core) -> Enrolled:
    return await enrolled(core)


async def _renew(core: Core, device: Enrolled, **options: str) -> str:
    csr = csr_of(new_key(), device.name)
    return await code_of(core, device.evidence, csr, operation=Operation.REENROLL, **options)


async def test_an_own_certificate_renews_and_the_new_one_too(core: Core, device: Enrolled) -> None:
    resolved = await core.realms.resolve("est", None, None)
    requester = await core.registration.authenticate(resolved, device.evidence, csr_of(new_key()))
    assert requester.means is Means.OWN_CERTIFICATE
    assert requester.device.name == "sensor"
    issued = await ask(core, device.evidence, csr_of(new_key()), operation=Operation.REENROLL)
    renewed = dataclasses.replace(device, certificate=issued.certificate)
    assert await _renew(core, renewed) == "issued"


async def test_an_own_certificate_is_good_to_its_last_second_and_not_before_its_first(
    core: Core, device: Enrolled, clock: SetClock
) -> None:
    clock.now = device.x509.not_valid_after_utc + dt.timedelta(seconds=1)
    assert await _renew(core, device) == "certificate_expired"
    clock.now = device.x509.not_valid_after_utc
    assert await _renew(core, device) == "issued"


async def test_an_own_certificate_is_not_good_before_its_time(core: Core, device: Enrolled, clock: SetClock) -> None:
    clock.now = device.x509.not_valid_before_utc - dt.timedelta(seconds=1)
    assert await _renew(core, device) == "certificate_not_yet_valid"


@pytest.mark.parametrize("reason", ["superseded", "certificateHold", "keyCompromise"])
async def test_a_revoked_certificate_renews_nothing(core: Core, second: Core, device: Enrolled, reason: str) -> None:
    await second.certificates.revoke(device.serial, reason=reason, actor=ME)
    assert await _renew(core, device) == "certificate_revoked"
    another = await enrolled(core, "another")
    assert await _renew(core, another) == "issued"


async def test_a_compromised_key_proves_nothing_in_any_certificate(
    core: Core, device: Enrolled, installation: Installation
) -> None:
    """Two certificates of one key: revoking the newer for keyCompromise must not leave the thief the older."""
    issued = await ask(core, device.evidence, csr_of(device.key), operation=Operation.REENROLL)
    await core.certificates.revoke(format(issued.serial, "x"), reason="keyCompromise", actor=ME)
    assert (await core.certificates.find(device.serial)).status == "valid"
    assert await _renew(core, device) == "newer_certificate_revoked"
    installation.sql("UPDATE certificate SET status = 'valid' WHERE reason = 'keyCompromise'")
    assert await _renew(core, device) == "key_blocked", "the key is blocked by itself"


@pytest.mark.parametrize("reason", ["cessationOfOperation", "superseded", "unspecified"])
async def test_revoking_the_newest_certificate_stops_the_renewal_of_older_ones(
    core: Core, device: Enrolled, reason: str
) -> None:
    key = new_key()
    issued = await ask(core, device.evidence, csr_of(key), operation=Operation.REENROLL)
    await core.certificates.revoke(format(issued.serial, "x"), reason=reason, actor=ME)
    assert await _renew(core, device) == "newer_certificate_revoked"
    fresh = Evidence(secret=(await core.devices.secret("default", "sensor", actor=ME)).secret)
    third = await ask(core, fresh, csr_of(new_key()))
    newest = Evidence(chain=(third.certificate,))
    assert await code_of(core, newest, csr_of(new_key()), operation=Operation.REENROLL) == "issued"


async def test_revoking_an_older_certificate_leaves_the_newest_alone(core: Core, device: Enrolled) -> None:
    newest = await ask(core, device.evidence, csr_of(new_key()), operation=Operation.REENROLL)
    await core.certificates.revoke(device.serial, reason="superseded", actor=ME)
    evidence = Evidence(chain=(newest.certificate,))
    assert await code_of(core, evidence, csr_of(new_key()), operation=Operation.REENROLL) == "issued"


@pytest.mark.parametrize("idevid", [False, True], ids=["no-anchors", "own-roots-as-anchors"])
async def test_an_own_certificate_of_another_realm_is_unknown(core: Core, device: Enrolled, idevid: bool) -> None:
    await core.devices.add("other", "sensor", actor=ME)
    if idevid:
        for der in await core.issuers.export("other"):
            pem = x509.load_der_x509_certificate(der).public_bytes(Encoding.PEM)
            await core.trust.add("other", pem, name=str(len(await core.trust.list("other"))), actor=ME)
    # Under anchors of the same organization an own certificate looks like one that came without its chain.
    assert await _renew(core, device, label="other") == ("chain_incomplete" if idevid else "certificate_unknown")
    there = await enrolled(core, "there", realm="other")
    assert await _renew(core, there, label="other") == "issued"
    assert await _renew(core, there) == "certificate_unknown"


async def test_enrolld_s_own_certificates_prove_no_device(core: Core, device: Enrolled) -> None:
    await core.server_certificates.ensure(["pki.example.com"])
    server = core.server_certificates.select(None).chain
    infrastructure = [server, *((der,) for der in await core.issuers.export("default"))]
    for chain in infrastructure:
        assert await code_of(core, Evidence(chain=chain), csr_of(new_key())) == "certificate_unknown"
    assert await _renew(core, device) == "issued"


async def test_a_twin_with_the_same_subject_serial_and_issuer_is_unknown(core: Core, device: Enrolled) -> None:
    real = device.x509
    key = new_key()
    builder = x509.CertificateBuilder(
        real.issuer,
        real.subject,
        key.public_key(),
        real.serial_number,
        real.not_valid_before_utc.replace(tzinfo=None),
        real.not_valid_after_utc.replace(tzinfo=None),
        list(real.extensions),
    )
    twin = builder.sign(key, hashes.SHA256()).public_bytes(Encoding.DER)
    assert await code_of(core, Evidence(chain=(twin,)), csr_of(key)) == "certificate_unknown"
    assert await code_of(core, Evidence(chain=(twin, device.certificate)), csr_of(key)) == "certificate_unknown"


@pytest.mark.parametrize("broken", [b"", b"\x30\x00", b"hello"])
async def test_what_is_no_certificate_is_refused(core: Core, broken: bytes) -> None:
    assert await code_of(core, Evidence(chain=(broken,)), csr_of(new_key())) == "certificate_unknown"


async def test_an_own_certificate_that_is_cut_or_changed_is_unknown(core: Core, device: Enrolled) -> None:
    for der in (device.certificate[:-1], device.certificate + b"\0", device.certificate[:-1] + b"\x00"):
        with pytest.raises(Refusal):
            await ask(core, Evidence(chain=(der,)), csr_of(new_key()))


async def test_a_realm_may_refuse_own_certificates(core: Core, device: Enrolled) -> None:
    await edit_realm(core, "default", "own_certificate = true", "own_certificate = false")
    assert await _renew(core, device) == "certificate_unknown"


async def test_a_certificate_for_servers_only_proves_no_client(core: Core) -> None:
    await edit_realm(
        core,
        "default",
        '[profiles.device]\nissuer = "ec"\nvalidity = "90d"\nextended_key_usages = [\n    "clientAuth",',
        '[profiles.device]\nissuer = "ec"\nvalidity = "90d"\nextended_key_usages = [\n    "serverAuth",',
    )
    device = await enrolled(core)
    assert await _renew(core, device) == "certificate_not_for_clients"


async def test_a_secret_sent_along_helps_a_device_whose_certificate_expired(
    core: Core, device: Enrolled, clock: SetClock
) -> None:
    clock.forward(days=91)
    handed = await core.devices.secret("default", "sensor", actor=ME)
    evidence = Evidence(chain=(device.certificate,), username="sensor", secret=handed.secret)
    assert await code_of(core, evidence, csr_of(new_key()), operation=Operation.REENROLL) == (
        "reenroll_needs_own_certificate"
    )
    assert await code_of(core, evidence, csr_of(new_key())) == "issued"
    wrong = dataclasses.replace(evidence, secret=new_secret()[0])
    with pytest.raises(NotAuthenticated) as caught:
        await ask(core, wrong, csr_of(new_key()))
    assert (caught.value.code, caught.value.message) == ("secret_unknown", SAME)
    assert caught.value.detail == "certificate: certificate_expired"


async def test_a_good_certificate_goes_before_a_secret_that_is_sent_along(core: Core, device: Enrolled) -> None:
    evidence = Evidence(chain=(device.certificate,), username="sensor", secret=device.secret)
    assert await code_of(core, evidence, csr_of(new_key()), operation=Operation.REENROLL) == "issued"


@pytest.mark.parametrize("listed", [True, False])
async def test_case_19_certificate_whose_key_is_found_to_be_weak_later_renews_nothing(
    core: Core, lists: Path, listed: bool
) -> None:
    key = rsa_key(2048)
    device = await enrolled(core, key=key)
    modulus = (key if listed else rsa_key(3072)).public_key().public_numbers().n
    (lists / "blacklist.RSA-2048").write_text(f"{debian.fingerprint(modulus).hex()}\n")
    debian.read_list.cache_clear()  # as a restart does, and the next line
    find_weakness.cache_clear()
    expected = "key_debian" if listed else "issued"
    assert await code_of(core, device.evidence, csr_of(new_key()), operation=Operation.REENROLL) == expected
    handed = await core.devices.secret("default", "sensor", actor=ME)
    both = Evidence(chain=(device.certificate,), secret=handed.secret)
    assert await code_of(core, both, csr_of(new_key())) == "issued", "a secret lets the device in again"


async def test_a_profile_that_wants_rekey_refuses_the_same_key(core: Core) -> None:
    text = await core.realms.export("default")
    await core.realms.apply(text.replace('rekey = "optional"', 'rekey = "required"'), actor=ME)
    device = await enrolled(core)
    same = csr_of(device.key)
    assert await code_of(core, device.evidence, same, operation=Operation.REENROLL) == "rekey_required"
    assert await _renew(core, device) == "issued"


@pytest.mark.parametrize(
    ("common_name", "sans", "code"),
    [
        ("sensor", ["sensor.example"], "issued"),
        ("sensor", [], "issued"),
        (None, ["sensor.example"], "renewal_subject_mismatch"),
        ("pacemaker", ["sensor.example"], "renewal_subject_mismatch"),
        ("sensor", ["evil.example"], "renewal_san_mismatch"),
        ("sensor", ["sensor.example", "evil.example"], "renewal_san_mismatch"),
    ],
)
async def test_a_renewal_repeats_the_names_of_the_certificate(
    core: Core, common_name: str | None, sans: list[str], code: str
) -> None:
    device = await enrolled(core, sans=["DNS:sensor.example"])
    csr = csr_of(new_key(), common_name, sans=sans)
    assert await code_of(core, device.evidence, csr, operation=Operation.REENROLL) == code


async def test_a_key_of_another_device_or_of_enrolld_itself_is_refused(core: Core, device: Enrolled) -> None:
    handed = await core.devices.add("default", "thief", actor=ME)
    evidence = Evidence(secret=handed.secret)
    await core.server_certificates.ensure(["pki.example.com"])
    server = core.server_certificates.select(None).private_key
    for key in (device.key, server):
        assert await code_of(core, evidence, csr_of(key, "thief")) == "key_of_other_device"
    assert await code_of(core, evidence, csr_of(new_key(), "thief")) == "issued"


def test_a_plan_takes_no_extension_from_a_request() -> None:
    fields = {field.name for field in dataclasses.fields(CertificatePlan)}
    assert not {name for name in fields if "csr" in name or "requested" in name}
