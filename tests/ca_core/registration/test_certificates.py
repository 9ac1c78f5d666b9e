"""The inventory: finding a certificate by whatever is typed, and revoking the right one."""

import asyncio
import secrets
from hashlib import sha256
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from ca_core.core import Core
from ca_core.errors import OperatorError
from ca_core.model import Evidence, Operation
from tests.helpers.bad_csr import ec_key
from tests.helpers.core import ME, Enrolled, Installation, SetClock, ask, code_of, csr_of, enrolled, new_key


@pytest.fixture
async def device(core: Core) -> Enrolled:
    return await enrolled(core, sans=["DNS:sensor.example"])


async def _error(core: Core, serial: str, **options: str) -> OperatorError:
    with pytest.raises(OperatorError) as caught:
        await core.certificates.find(serial, **options)
    with pytest.raises(OperatorError) as revoking:
        await core.certificates.revoke(serial, actor=ME, **options)
    assert revoking.value.code == caught.value.code
    return caught.value


async def test_a_row_tells_what_the_certificate_says(core: Core, device: Enrolled) -> None:
    row = await core.certificates.find(device.serial)
    assert (row.device, row.realm, row.profile, row.issuer) == ("sensor", "default", "device", "default-ec-1")
    assert (row.subject, row.names) == ("CN=sensor", ["DNS:sensor.example"])
    assert row.not_before == f"{device.x509.not_valid_before_utc:%Y-%m-%dT%H:%M:%SZ}"
    assert row.not_after == f"{device.x509.not_valid_after_utc:%Y-%m-%dT%H:%M:%SZ}"
    assert (row.status, row.revoked_at, row.reason) == ("valid", None, None)
    assert (row.key, row.protocol) == ("EC P-256", "est")
    assert x509.load_pem_x509_certificate((await core.certificates.pem(row)).encode()) == device.x509


async def test_every_form_of_a_serial_number_finds_the_same_row(core: Core, device: Enrolled) -> None:
    row = await core.certificates.find(device.serial)
    number = device.x509.serial_number
    octets = number.to_bytes(20, "big").hex()
    colons = ":".join(octets[i : i + 2] for i in range(0, 40, 2))
    for typed in (octets, octets.upper(), "0x" + octets, "00" + octets, colons, colons.upper(), f"dec:{number}"):
        assert await core.certificates.find(typed) == row


@pytest.mark.parametrize(
    "drawn", [2**159 - 2, 2**158, 0x7F << 144, 0xFF, 0, 0xDEC1], ids=lambda drawn: format(drawn + 1, "x")
)
async def test_a_serial_of_any_length_is_found_and_revoked(
    core: Core, monkeypatch: pytest.MonkeyPatch, drawn: int
) -> None:
    monkeypatch.setattr(secrets, "randbelow", lambda _: drawn)
    device = await enrolled(core)
    assert device.x509.serial_number == drawn + 1
    revoked = await core.certificates.revoke(f"dec:{drawn + 1}", actor=ME)
    assert revoked.certificate.serial == device.serial == format(drawn + 1, "x")
    monkeypatch.undo()
    await core.crls.publish("default-ec-1")
    crl = x509.load_der_x509_crl(await core.crls.latest("default-ec-1") or b"")
    assert [entry.serial_number for entry in crl] == [drawn + 1]


async def test_a_serial_that_is_not_there_is_told_so(core: Core, device: Enrolled) -> None:
    assert (await _error(core, "1")).code == "certificate_unknown"
    assert (await _error(core, device.serial + "0")).code == "certificate_unknown"
    assert (await _error(core, "no serial")).code == "serial_invalid"
    assert (await _error(core, device.serial, realm="other")).code == "certificate_unknown"
    assert (await _error(core, device.serial, realm="nowhere")).code == "realm_unknown"


async def test_a_serial_of_two_issuers_lists_both_and_revokes_none(core: Core, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(secrets, "randbelow", lambda _: 4711)
    here, there = await enrolled(core), await enrolled(core, realm="other")
    monkeypatch.undo()
    error = await _error(core, "1268")
    assert error.code == "serial_ambiguous"
    assert "default-ec-1 (realm default)" in error.message
    assert "other-ec-1 (realm other)" in error.message
    revoked = await core.certificates.revoke("1268", realm="other", actor=ME)
    assert revoked.issuer == "other-ec-1"
    assert (await core.certificates.find("1268", realm="default")).status == "valid"
    assert here.serial == there.serial


async def test_certificates_of_cas_and_servers_are_not_revoked_as_devices(
    core: Core, installation: Installation
) -> None:
    await core.server_certificates.ensure(["pki.example.com"])
    own = installation.sql("SELECT serial FROM certificate WHERE kind NOT IN ('device', 'ra')")
    assert len(own) >= 7
    for (serial,) in own:
        assert (await _error(core, serial)).code == "certificate_infrastructure"
    assert installation.sql("SELECT count(*) FROM certificate WHERE status != 'valid'") == [(0,)]
    assert await core.certificates.list(limit=10) == []


async def test_a_revocation_is_recorded_with_time_reason_and_event(
    core: Core, device: Enrolled, clock: SetClock, installation: Installation
) -> None:
    clock.forward(hours=1)
    revoked = await core.certificates.revoke(device.serial, reason="CESSATIONOFOPERATION", actor=ME)
    row = revoked.certificate
    assert (row.status, row.reason, row.revoked_at) == ("revoked", "cessationOfOperation", "2026-11-22T13:00:00Z")
    assert row == await core.certificates.find(device.serial)
    assert installation.events("certificate.revoked") == [{"reason": "cessationOfOperation"}]
    ((actor, serial, name),) = installation.sql(
        "SELECT actor, serial, device FROM audit WHERE action = 'certificate.revoked'"
    )
    assert (actor, serial, name) == (ME, device.serial, "sensor")


@pytest.mark.parametrize(
    ("first", "second", "allowed"),
    [
        ("superseded", "superseded", False),
        ("superseded", "keyCompromise", False),
        ("superseded", "certificateHold", False),
        ("certificateHold", "certificateHold", False),
        ("certificateHold", "keyCompromise", True),
    ],
)
async def test_a_certificate_is_revoked_once(
    core: Core, device: Enrolled, installation: Installation, first: str, second: str, allowed: bool
) -> None:
    before = await core.certificates.revoke(device.serial, reason=first, actor=ME)
    assert before.certificate.status == ("hold" if first == "certificateHold" else "revoked")
    if allowed:
        after = await core.certificates.revoke(device.serial, reason=second, actor=ME)
        assert (after.certificate.status, after.certificate.reason) == ("revoked", second)
        assert after.sequence == before.sequence + 1
        return
    with pytest.raises(OperatorError) as caught:
        await core.certificates.revoke(device.serial, reason=second, actor=ME)
    assert caught.value.code == "certificate_revoked"
    assert await core.certificates.find(device.serial) == before.certificate
    assert installation.sql("SELECT revocations FROM issuer WHERE name = 'default-ec-1'") == [(1,)]
    assert installation.sql("SELECT count(*) FROM key_block") == [(0,)]


async def test_of_ten_that_revoke_at_once_one_does(core: Core, second: Core, device: Enrolled) -> None:
    async def revoke(node: Core) -> str:
        try:
            await node.certificates.revoke(device.serial, actor=ME)
        except OperatorError as exc:
            return exc.code
        return "done"

    codes = await asyncio.gather(*(revoke(node) for node in (core, second) * 5))
    assert sorted(codes) == [*["certificate_revoked"] * 9, "done"]


@pytest.mark.parametrize(("reason", "blocked"), [("keyCompromise", True), ("superseded", False)])
async def test_a_compromised_key_is_blocked_for_every_device_of_every_realm(
    core: Core, second: Core, reason: str, blocked: bool
) -> None:
    key = new_key()
    device = await enrolled(core, key=key)
    await second.certificates.revoke(device.serial, reason=reason, actor=ME)
    handed = await core.devices.secret("default", "sensor", actor=ME)
    there = await core.devices.add("other", "elsewhere", actor=ME)
    expected = "key_blocked" if blocked else "issued"
    assert await code_of(core, Evidence(secret=handed.secret), csr_of(key)) == expected
    assert await code_of(core, Evidence(secret=there.secret), csr_of(key, "elsewhere"), label="other") == expected
    twin = await core.devices.add("default", "twin", actor=ME)
    assert await code_of(core, Evidence(secret=twin.secret), csr_of(new_key(), "twin")) == "issued"


async def test_two_certificates_of_one_key_are_revoked_for_compromise_one_after_the_other(core: Core) -> None:
    device = await enrolled(core, key=ec_key())
    again = await ask(core, device.evidence, csr_of(ec_key()), operation=Operation.REENROLL)
    await core.certificates.revoke(device.serial, reason="keyCompromise", actor=ME)
    revoked = await core.certificates.revoke(format(again.serial, "x"), reason="keyCompromise", actor=ME)
    assert revoked.certificate.status == "revoked"


async def test_a_list_shows_what_is_asked_for_page_by_page(core: Core) -> None:
    devices = [await enrolled(core, f"d{i}") for i in range(5)]
    there = await enrolled(core, "d0", realm="other")
    await core.certificates.revoke(devices[1].serial, actor=ME)

    async def shown(**filters: Any) -> list[str]:
        serials: list[str] = []
        after = None
        while rows := await core.certificates.list(limit=2, after=after, **filters):
            serials += [row.serial for row in rows]
            after = rows[-1].id
        return serials

    every = [device.serial for device in devices]
    assert await shown() == [*every, there.serial]
    assert await shown(realm="default") == every
    assert await shown(device="d0") == [devices[0].serial, there.serial]
    assert await shown(realm="other", device="d0") == [there.serial]
    assert await shown(status="revoked") == [devices[1].serial]
    assert await shown(realm="default", status="valid") == [s for s in every if s != devices[1].serial]
    assert await shown(device="nobody") == []
    with pytest.raises(OperatorError):
        await shown(realm="nowhere")


async def test_a_fingerprint_is_that_of_the_certificate(core: Core, device: Enrolled) -> None:
    row = await core.certificates.find(device.serial)
    assert row.fingerprint_sha256 == sha256(device.x509.public_bytes(Encoding.DER)).hexdigest()
