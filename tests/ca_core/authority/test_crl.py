"""CRLs: what stands in them, and that others can read and verify them."""

import asyncio
import datetime as dt
import random
import subprocess
from pathlib import Path

import pytest
from asn1crypto import crl as asn1_crl
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import Encoding

from ca_core import der
from ca_core.authority.crl import REASONS, encode_entry
from ca_core.authority.revocation import parse_reason
from ca_core.core import Core
from ca_core.errors import OperatorError
from tests.helpers.core import ME, START, Enrolled, Installation, SetClock, edit_realm, enrolled

DAY = dt.timedelta(days=1)
ISSUERS = ["default-root-1", "default-ec-1", "default-rsa-1"]


async def _crl(core: Core, issuer: str = "default-ec-1") -> x509.CertificateRevocationList:
    latest = await core.crls.latest(issuer)
    assert latest is not None
    crl = x509.load_der_x509_crl(latest)
    certificate = await core.issuers.certificate(issuer)
    assert certificate is not None
    key = x509.load_der_x509_certificate(certificate).public_key()
    assert isinstance(key, ec.EllipticCurvePublicKey | rsa.RSAPublicKey)
    assert crl.is_signature_valid(key)
    return crl


def _number(crl: x509.CertificateRevocationList) -> int:
    return crl.extensions.get_extension_for_class(x509.CRLNumber).value.crl_number


def _serials(crl: x509.CertificateRevocationList) -> set[str]:
    return {format(entry.serial_number, "x") for entry in crl}


async def _from(core: Core, issuer: str) -> Enrolled:
    """A device with a certificate of this issuer, which for a root needs a hand."""
    if issuer == "default-rsa-1":
        await edit_realm(core, "default", '[profiles.device]\nissuer = "ec"', '[profiles.device]\nissuer = "rsa"')
    return await enrolled(core)


@pytest.mark.parametrize("issuer", ISSUERS)
async def test_a_first_crl_is_there_empty_and_valid_for_a_week(core: Core, issuer: str) -> None:
    crl = await _crl(core, issuer)
    assert list(crl) == []
    # "When there are no revoked certificates, the revoked certificates list MUST be absent." -- RFC 5280 5.1.2.6
    parsed = asn1_crl.TbsCertList.load(crl.tbs_certlist_bytes, strict=True)
    assert "revoked_certificates" not in {key for key, value in parsed.native.items() if value is not None}
    assert _number(crl) == 1
    assert crl.last_update_utc == START
    assert crl.next_update_utc == START + 7 * DAY
    certificate = x509.load_der_x509_certificate(await core.issuers.certificate(issuer) or b"")
    assert crl.issuer == certificate.subject
    identifier = certificate.extensions.get_extension_for_class(x509.SubjectKeyIdentifier).value
    authority = crl.extensions.get_extension_for_class(x509.AuthorityKeyIdentifier).value
    assert authority.key_identifier == identifier.digest


@pytest.mark.foreign
@pytest.mark.parametrize("issuer", ISSUERS)
async def test_openssl_reads_and_verifies_a_crl(core: Core, issuer: str, tmp_path: Path) -> None:
    if issuer != "default-root-1":
        device = await _from(core, issuer)
        await core.certificates.revoke(device.serial, reason="keyCompromise", actor=ME)
        await core.crls.publish(issuer)
    (tmp_path / "crl").write_bytes(await core.crls.latest(issuer) or b"")
    certificate = x509.load_der_x509_certificate(await core.issuers.certificate(issuer) or b"")
    (tmp_path / "ca.pem").write_bytes(certificate.public_bytes(Encoding.PEM))
    crl, ca = str(tmp_path / "crl"), str(tmp_path / "ca.pem")
    command = ["openssl", "crl", "-inform", "DER", "-in", crl, "-CAfile", ca, "-text"]
    shown = subprocess.run(  # noqa: ASYNC221  # nothing else runs here
        [*command, "-noout"], capture_output=True, text=True, check=True, timeout=30
    )
    assert "verify OK" in shown.stderr
    assert "Version 2" in shown.stdout
    if issuer == "default-root-1":
        assert "No Revoked Certificates." in shown.stdout
    else:
        assert "Key Compromise" in shown.stdout


@pytest.mark.parametrize("reason", REASONS)
async def test_an_entry_tells_when_and_why(core: Core, clock: SetClock, reason: str) -> None:
    device = await enrolled(core)
    clock.forward(hours=1, microseconds=500)
    await core.certificates.revoke(device.serial, reason=reason, actor=ME)
    (row,) = await core.crls.publish("default-ec-1")
    assert (row.number, row.entries) == (2, 1)
    (entry,) = await _crl(core)
    assert format(entry.serial_number, "x") == device.serial
    assert entry.revocation_date_utc == START + dt.timedelta(hours=1)
    told = [extension.value for extension in entry.extensions]
    # "...SHOULD be absent instead of using the unspecified (0) reasonCode value" -- RFC 5280 5.3.1
    assert told == ([] if reason == "unspecified" else [x509.CRLReason(x509.ReasonFlags(reason))])


def test_reasons_are_those_of_rfc_5280_by_number() -> None:
    numbers = {"unspecified": 0, "keyCompromise": 1, "cACompromise": 2, "affiliationChanged": 3, "superseded": 4}
    numbers |= {"cessationOfOperation": 5, "certificateHold": 6, "privilegeWithdrawn": 9, "aACompromise": 10}
    assert numbers == REASONS


@pytest.mark.parametrize("text", ["keyCompromise", "keycompromise", "KEYCOMPROMISE"])
def test_a_reason_is_known_in_any_case(text: str) -> None:
    assert parse_reason(text) == "keyCompromise"


@pytest.mark.parametrize("text", ["", "key compromise", "removeFromCRL", "1", "key_compromise", "\x1b[2Jx" * 100])
def test_what_is_no_reason_is_refused(text: str) -> None:
    with pytest.raises(OperatorError) as caught:
        parse_reason(text)
    assert caught.value.code == "reason_invalid"
    assert "keyCompromise" in caught.value.remedy
    assert caught.value.message.isprintable()
    assert len(caught.value.message) < 250


@pytest.mark.parametrize(
    "serial", [1, 127, 128, 255, 256, 2**63, 2**64, 2**152 - 1, 2**158, 2**159 - 1], ids=lambda serial: f"{serial:x}"
)
def test_an_entry_keeps_any_serial_positive_and_minimal(serial: int) -> None:
    entry = encode_entry(serial, START, "unspecified")
    assert entry[:2] == bytes((0x30, len(entry) - 2))
    length = entry[3]
    content = entry[4 : 4 + length]
    assert int.from_bytes(content, "big", signed=True) == serial
    assert length == 1 or content[0] != 0 or content[1] >= 0x80


@pytest.mark.parametrize(
    ("moment", "encoded"),
    [
        (dt.datetime(2026, 1, 2, 3, 4, 5, tzinfo=dt.UTC), b"\x17\x0d260102030405Z"),
        (dt.datetime(2049, 12, 31, 23, 59, 59, tzinfo=dt.UTC), b"\x17\x0d491231235959Z"),
        (dt.datetime(2050, 1, 1, tzinfo=dt.UTC), b"\x18\x0f20500101000000Z"),
    ],
)
def test_times_change_their_type_with_2050(moment: dt.datetime, encoded: bytes) -> None:
    assert der.time(moment) == encoded


@pytest.mark.parametrize("length", [0, 1, 127, 128, 255, 256, 65535, 65536, 1 << 20])
def test_lengths_are_definite_and_minimal(length: int) -> None:
    encoded = der.tlv(0x04, b"x" * length)
    head = len(encoded) - length
    assert head == 2 + (0 if length < 128 else (length.bit_length() + 7) // 8)
    assert encoded[1] == (length if length < 128 else 0x80 | head - 2)


# --- numbers and times -----------------------------------------------------------------------------------------------


async def test_numbers_increase_by_one_and_the_two_newest_are_kept(core: Core, installation: Installation) -> None:
    for expected in (2, 3, 4):
        (row,) = await core.crls.publish("default-ec-1")
        assert row.number == expected == _number(await _crl(core))
    kept = installation.sql(
        "SELECT number FROM crl JOIN issuer ON issuer.id = issuer_id WHERE name = 'default-ec-1' ORDER BY number"
    )
    assert kept == [(3,), (4,)]


@pytest.mark.parametrize("back", [dt.timedelta(seconds=1), dt.timedelta(hours=1), 400 * DAY], ids=str)
async def test_this_update_never_goes_back_with_the_clock(core: Core, clock: SetClock, back: dt.timedelta) -> None:
    before = await _crl(core)
    clock.now -= back
    await core.crls.publish("default-ec-1")
    after = await _crl(core)
    assert _number(after) > _number(before)
    assert after.last_update_utc == before.last_update_utc
    clock.now = START + DAY
    await core.crls.publish("default-ec-1")
    assert (await _crl(core)).last_update_utc == START + DAY


async def test_a_clock_that_was_far_ahead_leaves_a_crl_that_can_still_be_replaced(core: Core, clock: SetClock) -> None:
    device = await enrolled(core)
    clock.forward(days=3650)
    await core.crls.publish("default-ec-1")
    clock.now = START + DAY
    revoked = await core.certificates.revoke(device.serial, actor=ME)
    await core.crls.publish("default-ec-1")
    assert await core.crls.is_published(revoked)
    assert _serials(await _crl(core)) == {device.serial}


async def test_a_crl_is_due_daily_also_without_revocations(core: Core, clock: SetClock) -> None:
    assert await core.crls.due() == []
    clock.forward(days=1)
    assert set(ISSUERS) <= set(await core.crls.due())
    assert {row.number for row in await core.crls.publish(only_due=True)} == {2}
    assert await core.crls.due() == []
    assert await core.crls.publish(only_due=True) == []


async def test_a_revocation_makes_only_its_issuers_crl_due(core: Core) -> None:
    device = await enrolled(core)
    assert await core.crls.due() == []
    await core.certificates.revoke(device.serial, actor=ME)
    assert await core.crls.due() == ["default-ec-1"]


async def test_it_is_published_only_when_a_stored_crl_lists_it(core: Core, second: Core) -> None:
    devices = [await enrolled(core, f"d{i}") for i in range(2)]
    first = await core.certificates.revoke(devices[0].serial, actor=ME)
    assert not await core.crls.is_published(first)
    await second.crls.publish("default-ec-1")
    later = await second.certificates.revoke(devices[1].serial, actor=ME)
    assert await core.crls.is_published(first)
    assert not await core.crls.is_published(later)
    assert _serials(await _crl(core)) == {devices[0].serial}
    await core.crls.publish("default-root-1")
    assert not await core.crls.is_published(later)
    await core.crls.publish("default-ec-1")
    assert await second.crls.is_published(later)
    assert _serials(await _crl(core)) == {device.serial for device in devices}


# --- what stays listed -----------------------------------------------------------------------------------------------


async def test_a_revoked_certificate_stays_listed_for_a_month_after_it_expired(core: Core, clock: SetClock) -> None:
    device = await enrolled(core)
    await core.certificates.revoke(device.serial, actor=ME)
    for days, listed in [(89, True), (91, True), (119, True), (121, True), (122, False)]:
        clock.now = START + days * DAY
        await core.crls.publish("default-ec-1")
        assert (device.serial in _serials(await _crl(core))) is listed, f"day {days}"


async def test_what_was_revoked_and_expired_while_no_crl_was_made_is_listed_once(core: Core, clock: SetClock) -> None:
    device = await enrolled(core)
    revoked = await core.certificates.revoke(device.serial, actor=ME)
    clock.forward(days=400)  # the machine was off
    await core.crls.publish("default-ec-1")
    assert _serials(await _crl(core)) == {device.serial}
    assert await core.crls.is_published(revoked)
    clock.forward(days=31)
    await core.crls.publish("default-ec-1")
    assert _serials(await _crl(core)) == set()


async def test_a_certificate_revoked_long_after_it_expired_is_listed(core: Core, clock: SetClock) -> None:
    device = await enrolled(core)
    clock.forward(days=300)
    await core.crls.publish("default-ec-1")
    revoked = await core.certificates.revoke(device.serial, actor=ME)
    await core.crls.publish("default-ec-1")
    assert _serials(await _crl(core)) == {device.serial}
    assert await core.crls.is_published(revoked)


async def test_a_crl_lists_its_own_issuers_certificates_only(core: Core) -> None:
    here, there = await enrolled(core), await enrolled(core, realm="other")
    for device in (here, there):
        await core.certificates.revoke(device.serial, actor=ME)
    await core.crls.publish()
    assert _serials(await _crl(core)) == {here.serial}
    assert _serials(await _crl(core, "other-ec-1")) == {there.serial}
    assert _serials(await _crl(core, "default-rsa-1")) == set()


async def test_a_large_crl_is_read_whole(core: Core, installation: Installation) -> None:
    device = await enrolled(core)
    columns = [name for name in installation.columns("certificate") if name != "id"]
    chance = random.Random(3)  # any numbers will do
    serials = {chance.getrandbits(159) for _ in range(3000)}
    changed = {"serial": "?", "fingerprint": "?", "crl_entry": "?", "status": "'revoked'"}
    values = ", ".join(changed.get(name, name) for name in columns)
    rows = [(f"{n:x}", n.to_bytes(32, "big"), encode_entry(n, START, "superseded"), device.serial) for n in serials]
    order = [name for name in columns if changed.get(name) == "?"]
    assert order == ["serial", "crl_entry", "fingerprint"]
    installation.sql_many(
        f"INSERT INTO certificate ({', '.join(columns)}) SELECT {values} FROM certificate WHERE serial = ?",  # noqa: S608  # names of the schema
        [(serial, entry, fingerprint, of) for serial, fingerprint, entry, of in rows],
    )
    await core.crls.publish("default-ec-1")
    crl = await _crl(core)
    assert {entry.serial_number for entry in crl} == serials
    assert crl.get_revoked_certificate_by_serial_number(min(serials)) is not None


# --- two at once -----------------------------------------------------------------------------------------------------


async def test_two_nodes_that_publish_at_once_leave_one_crl_per_number(
    core: Core, second: Core, installation: Installation
) -> None:
    device = await enrolled(core)
    revoked = await core.certificates.revoke(device.serial, actor=ME)
    nodes = [core, second] * 4
    published = await asyncio.gather(*(node.crls.publish("default-ec-1", actor=ME) for node in nodes))
    newest = max(row.number for (row,) in published)
    assert newest == _number(await _crl(core))
    assert _serials(await _crl(core)) == {device.serial}
    assert await second.crls.is_published(revoked)
    numbers = [event["number"] for event in installation.events("crl.published") if event["issuer"] == "default-ec-1"]
    assert sorted(numbers) == list(range(1, newest + 1))  # each once


async def test_revocations_during_publications_end_up_listed(core: Core, second: Core) -> None:
    devices = [await enrolled(core, f"d{i}") for i in range(12)]
    await asyncio.gather(
        *(core.certificates.revoke(device.serial, actor=ME) for device in devices),
        *(node.crls.publish("default-ec-1") for node in (core, second) for _ in range(3)),
    )
    await core.crls.publish(only_due=True)
    assert _serials(await _crl(core)) == {device.serial for device in devices}
    assert await core.crls.due() == []


async def test_an_unknown_issuer_has_no_crl(core: Core) -> None:
    assert await core.crls.latest("default-ec-2") is None
    with pytest.raises(OperatorError) as caught:
        await core.crls.publish("default-ec-2\x1b")
    assert caught.value.code == "issuer_unknown"
    assert caught.value.message == "there is no issuer 'default-ec-2\\x1b'"
