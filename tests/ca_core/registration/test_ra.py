"""RA certificates: what is in them, whose they are not, when they are renewed, and when they get another key."""

import asyncio
import datetime as dt
import logging

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import padding, rsa
from cryptography.x509.oid import AuthorityInformationAccessOID, NameOID

from ca_core.core import Core
from ca_core.csr import ParsedCsr
from ca_core.errors import Unavailable
from ca_core.model import Evidence
from ca_core.registration.ra import RaIdentity
from tests.helpers.bad_csr import good_csr, rsa_key
from tests.helpers.core import (
    ME,
    OTHER_URL,
    PUBLIC_URL,
    START,
    Installation,
    SetClock,
    code_of,
    csr_of,
    edit_realm,
    enrolled,
    new_key,
)

DAY = dt.timedelta(days=1)
SECOND = dt.timedelta(seconds=1)


async def ra_of(core: Core, realm: str = "default") -> RaIdentity:
    return await core.ra_certificates.of_realm((await core.realms.current())[realm])


def read(der: bytes) -> x509.Certificate:
    return x509.load_der_x509_certificate(der)


def public_key(ra: RaIdentity) -> rsa.RSAPublicKey:
    key = read(ra.certificate).public_key()
    assert isinstance(key, rsa.RSAPublicKey)
    return key


async def made(core: Core, installation: Installation) -> int:
    """How many RA certificates one look makes."""
    before = len(installation.events("ra_certificate.issued"))
    await core.ra_certificates.ensure()
    return len(installation.events("ra_certificate.issued")) - before


async def opens(ra: RaIdentity, certificate: bytes) -> bool:
    """Whether the RA reads what was encrypted to a certificate."""
    key = read(certificate).public_key()
    assert isinstance(key, rsa.RSAPublicKey)
    try:
        return await ra.key.unwrap(key.encrypt(b"k" * 16, padding.PKCS1v15()), padding.PKCS1v15()) == b"k" * 16
    except ValueError:  # a number that is larger than its modulus
        return False


# --- what it is ------------------------------------------------------------------------------------------------------


async def test_each_realm_has_one_of_its_own_and_none_before_it_is_made(core: Core, installation: Installation) -> None:
    default, other = await ra_of(core), await ra_of(core, "other")
    assert await made(core, installation) == 0
    await core.realms.add("third", actor=ME)
    with pytest.raises(Unavailable):
        await ra_of(core, "third")
    assert await made(core, installation) == 1
    third = await ra_of(core, "third")
    assert len({public_key(ra).public_numbers().n for ra in (default, other, third)}) == 3
    shown = {ra.certificate for ra in core.ra_certificates.all().values()}
    assert shown == {default.certificate, other.certificate, third.certificate}
    assert installation.sql("SELECT count(*) FROM certificate WHERE kind = 'ra'") == [(3,)]
    assert installation.sql("SELECT count(*) FROM sealed_key WHERE purpose = 'ra'") == [(3,)]


@pytest.mark.parametrize(("realm", "url"), [("default", PUBLIC_URL), ("other", OTHER_URL)])
async def test_it_says_what_an_ra_is_and_nothing_more(core: Core, realm: str, url: str) -> None:
    ra = await ra_of(core, realm)
    certificate, issuer, root = read(ra.certificate), *map(read, ra.issuers)
    certificate.verify_directly_issued_by(issuer)
    issuer.verify_directly_issued_by(root)
    assert issuer.subject.get_attributes_for_oid(NameOID.COMMON_NAME)[0].value == f"{realm} Issuing CA RSA 1"
    assert certificate.subject.rfc4514_string() == f"CN={realm} SCEP RA,O=enrolld"
    assert (public_key(ra).key_size, public_key(ra).public_numbers().e) == (2048, 65537)
    assert isinstance(certificate.signature_hash_algorithm, hashes.SHA256)
    assert certificate.not_valid_before_utc == START - dt.timedelta(minutes=5)
    assert certificate.not_valid_after_utc == ra.not_after == START + 730 * DAY - SECOND
    found = {each.oid._name: each for each in certificate.extensions}
    assert set(found) == {
        "basicConstraints",
        "keyUsage",
        "subjectKeyIdentifier",
        "authorityKeyIdentifier",
        "cRLDistributionPoints",
        "authorityInfoAccess",
    }
    assert found["basicConstraints"].value == x509.BasicConstraints(ca=False, path_length=None)
    usage = x509.KeyUsage(True, False, True, False, False, False, False, False, False)
    assert (found["keyUsage"].value, found["keyUsage"].critical) == (usage, True), "signs and deciphers, and no more"
    points = certificate.extensions.get_extension_for_class(x509.CRLDistributionPoints).value
    assert [point.full_name for point in points] == [[x509.UniformResourceIdentifier(f"{url}/pki/{realm}-rsa-1/0.crl")]]
    (access,) = certificate.extensions.get_extension_for_class(x509.AuthorityInformationAccess).value
    assert access.access_method == AuthorityInformationAccessOID.CA_ISSUERS
    assert access.access_location == x509.UniformResourceIdentifier(f"{url}/pki/{realm}-rsa-1.cer")


async def test_its_key_opens_and_signs(core: Core) -> None:
    await core.ra_certificates.ensure()
    ra, other = await ra_of(core), await ra_of(core, "other")
    assert await opens(ra, ra.certificate)
    assert not await opens(ra, other.certificate)
    for digest in (hashes.SHA256(), hashes.SHA512()):
        public_key(ra).verify(await ra.key.sign(b"data", digest), b"data", padding.PKCS1v15(), digest)


async def test_it_shows_no_key_when_it_is_printed(core: Core) -> None:
    await core.ra_certificates.ensure()
    assert str(await ra_of(core)) == f"RaIdentity(not_after={(await ra_of(core)).not_after!r})"


# --- whose it is not -------------------------------------------------------------------------------------------------


async def test_it_is_no_device_s_own(core: Core) -> None:
    await core.ra_certificates.ensure()
    ra = await ra_of(core)
    await core.devices.add("default", "other", actor=ME)
    stolen = Evidence(chain=(ra.certificate, *ra.issuers))
    assert await code_of(core, stolen, csr_of(new_key(), None)) == "certificate_unknown"
    device = await enrolled(core)
    assert await code_of(core, device.evidence, csr_of(new_key())) == "issued"


async def test_its_key_is_no_device_s(core: Core) -> None:
    await core.ra_certificates.ensure()
    key: rsa.RSAPrivateKey = (await ra_of(core)).key._key  # type: ignore[attr-defined]  # as if it were stolen
    secret = (await core.devices.add("default", "sensor", actor=ME)).secret
    assert await code_of(core, Evidence(secret=secret), csr_of(key)) == "key_of_other_device"
    assert await code_of(core, Evidence(secret=secret), csr_of(rsa_key())) == "issued"


async def test_it_is_in_no_list_of_devices_certificates(core: Core) -> None:
    await core.ra_certificates.ensure()
    device = await enrolled(core)
    listed = await core.certificates.list(limit=10)
    assert [row.serial for row in listed] == [device.serial]
    (default,) = [row for row in (await core.status()).realms if row.realm == "default"]
    assert default.certificates == {"valid": 1}


async def test_an_operator_revokes_it_and_another_with_another_key_takes_its_place(
    core: Core, installation: Installation
) -> None:
    await core.ra_certificates.ensure()
    before = read((await ra_of(core)).certificate)
    revocation = await core.certificates.revoke(format(before.serial_number, "x"), reason="keyCompromise", actor=ME)
    assert (revocation.certificate.status, revocation.issuer) == ("revoked", "default-rsa-1")
    await core.ra_certificates.ensure()
    after = read((await ra_of(core)).certificate)
    assert after.public_key() != before.public_key()
    (event,) = installation.events("certificate.revoked")
    assert event == {"reason": "keyCompromise"}


async def test_each_is_an_event_without_its_key(core: Core, installation: Installation) -> None:
    await core.ra_certificates.ensure()
    assert installation.events("ra_certificate.issued") == [
        {"issuer": f"{realm}-rsa-1", "new_key": True} for realm in ("default", "other")
    ]
    serials = {row[0] for row in installation.sql("SELECT serial FROM audit WHERE action = 'ra_certificate.issued'")}
    kept = {ra.certificate for ra in core.ra_certificates.all().values()}
    assert serials == {format(read(der).serial_number, "x") for der in kept}


# --- when it is renewed ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("left", "renewed"),
    [
        pytest.param(181 * DAY, 0, id="181-days-left"),
        pytest.param(180 * DAY + SECOND, 0, id="a-second-more-than-180-days"),
        pytest.param(180 * DAY, 2, id="180-days-left"),
        pytest.param(DAY, 2, id="a-day-left"),
        pytest.param(-DAY, 2, id="a-day-late"),
    ],
)
async def test_it_is_renewed_180_days_before_its_end_with_its_key(
    core: Core, clock: SetClock, installation: Installation, left: dt.timedelta, renewed: int
) -> None:
    await core.ra_certificates.ensure()
    before = await ra_of(core)
    clock.now = before.not_after - left
    assert await made(core, installation) == renewed
    after = await ra_of(core)
    assert (after.certificate != before.certificate) is (renewed > 0)
    assert public_key(after) == public_key(before)
    assert after.not_after == (clock.now + 730 * DAY - SECOND if renewed else before.not_after)
    assert await made(core, installation) == 0
    if renewed:
        assert installation.events("ra_certificate.issued")[-1]["new_key"] is False
        assert installation.sql("SELECT count(*) FROM sealed_key WHERE purpose = 'ra'") == [(2,)]


async def test_what_was_encrypted_to_the_one_before_is_still_opened(core: Core, clock: SetClock) -> None:
    await core.ra_certificates.ensure()
    known = [(await ra_of(core)).certificate]
    assert (await ra_of(core)).earlier == ()
    for _ in range(2):
        clock.now = (await ra_of(core)).not_after - 100 * DAY
        await core.ra_certificates.ensure()
        ra = await ra_of(core)
        assert ra.earlier == tuple(reversed(known))
        known.append(ra.certificate)
        for certificate in known:
            assert await opens(ra, certificate)


async def test_it_is_not_renewed_where_its_issuer_would_cut_it_as_short(
    core: Core, clock: SetClock, installation: Installation
) -> None:
    await core.ra_certificates.ensure()
    end = read((await ra_of(core)).issuers[0]).not_valid_after_utc
    clock.now = end - 300 * DAY
    assert await made(core, installation) == 2
    assert (await ra_of(core)).not_after == end
    clock.now = end - 100 * DAY
    assert await made(core, installation) == 0, "it would last no longer"


async def test_one_that_lasts_longer_by_little_is_not_made_again_and_again(
    core: Core, clock: SetClock, installation: Installation
) -> None:
    await core.ra_certificates.ensure()
    clock.now = START + 600 * DAY
    assert await made(core, installation) == 2
    for _ in range(50):
        clock.forward(hours=1)
        assert await made(core, installation) == 0


# --- another key -----------------------------------------------------------------------------------------------------


def revoke(installation: Installation, certificate: bytes) -> None:
    installation.sql(
        "UPDATE certificate SET status = 'revoked' WHERE serial = ?", format(read(certificate).serial_number, "x")
    )


async def test_a_revoked_one_is_replaced_by_one_with_another_key(
    core: Core, second: Core, installation: Installation
) -> None:
    await core.ra_certificates.ensure()
    before, other = await ra_of(core), await ra_of(core, "other")
    revoke(installation, before.certificate)
    assert await made(second, installation) == 1
    for node in (core, second):
        await node.ra_certificates.refresh()
        after = await ra_of(node)
        assert public_key(after) != public_key(before)
        assert after.earlier == ()
        assert not await opens(after, before.certificate)
        assert (await ra_of(node, "other")).certificate == other.certificate


async def test_a_revoked_one_takes_its_key_along_whatever_else_has_it(
    core: Core, clock: SetClock, installation: Installation
) -> None:
    """The one before it is of the same key, and is not revoked."""
    await core.ra_certificates.ensure()
    first = await ra_of(core)
    clock.now = first.not_after - 100 * DAY
    await core.ra_certificates.ensure()
    renewed = await ra_of(core)
    assert public_key(renewed) == public_key(first)
    revoke(installation, renewed.certificate)
    await core.ra_certificates.ensure()
    after = await ra_of(core)
    assert public_key(after) != public_key(first)
    assert first.certificate not in after.earlier


async def test_while_it_is_revoked_and_not_replaced_there_is_none(core: Core, installation: Installation) -> None:
    await core.ra_certificates.ensure()
    revoke(installation, (await ra_of(core)).certificate)
    await core.ra_certificates.refresh()
    with pytest.raises(Unavailable):
        await ra_of(core)
    assert (await ra_of(core, "other")).certificate


# --- several nodes, several realms -----------------------------------------------------------------------------------


async def test_two_nodes_at_once_make_one(core: Core, second: Core, installation: Installation) -> None:
    await core.realms.add("third", actor=ME)
    await asyncio.gather(*(node.ra_certificates.ensure() for node in (core, second, core, second)))
    assert installation.sql("SELECT realm_id, count(*) FROM certificate WHERE kind = 'ra' GROUP BY realm_id") == [
        (1, 1),
        (2, 1),
        (3, 1),
    ]
    assert installation.sql("SELECT count(*) FROM sealed_key WHERE purpose = 'ra'") == [(3,)], "no key is left over"
    for realm in ("default", "other", "third"):
        assert (await ra_of(core, realm)).certificate == (await ra_of(second, realm)).certificate


async def test_two_nodes_at_once_renew_it_once(
    core: Core, second: Core, clock: SetClock, installation: Installation
) -> None:
    await core.ra_certificates.ensure()
    clock.now = (await ra_of(core)).not_after - DAY
    await asyncio.gather(*(node.ra_certificates.ensure() for node in (core, second, core, second)))
    assert len(installation.events("ra_certificate.issued")) == 4
    assert (await ra_of(core)).certificate == (await ra_of(second)).certificate
    assert len((await ra_of(second)).earlier) == 1


async def test_another_node_finds_what_one_has_made(core: Core, second: Core) -> None:
    await core.ra_certificates.ensure()
    assert (await ra_of(second)).certificate == (await ra_of(core)).certificate
    assert await opens(await ra_of(second), (await ra_of(core)).certificate)


async def test_it_outlives_a_restart(installation: Installation) -> None:
    shown = set()
    for _ in range(2):
        core = installation.open()
        try:
            await core.ra_certificates.ensure()
            shown.add((await ra_of(core)).certificate)
        finally:
            core.close()
    assert len(shown) == 1


async def test_a_realm_without_scep_has_none_until_it_has_scep(core: Core, installation: Installation) -> None:
    await core.realms.add("third", actor=ME)
    text = await core.realms.export("third")
    on, off = "[scep]\nenabled = true", "[scep]\nenabled = false"
    assert text.count(on) == 1
    await core.realms.apply(text.replace(on, off), actor=ME)
    assert await made(core, installation) == 0
    with pytest.raises(Unavailable):
        await ra_of(core, "third")
    await core.realms.apply(text, actor=ME)
    assert await made(core, installation) == 1
    third = await ra_of(core, "third")
    assert read(third.certificate).subject.rfc4514_string() == "CN=third SCEP RA,O=enrolld"
    assert await opens(third, third.certificate)


async def test_a_new_version_of_a_realm_changes_nothing(core: Core, installation: Installation) -> None:
    await core.ra_certificates.ensure()
    before = await ra_of(core)
    await edit_realm(core, "default", 'retry_window = "24h"', 'retry_window = "12h"')
    assert await made(core, installation) == 0
    assert (await ra_of(core)).certificate == before.certificate


async def test_a_realm_whose_issuer_can_t_sign_keeps_no_other_from_its_own(
    installation: Installation, clock: SetClock, caplog: pytest.LogCaptureFixture
) -> None:
    installation.sql("UPDATE sealed_key SET pkcs8 = ? WHERE name = 'default-rsa-1'", b"\0")
    assert installation.sql("SELECT count(*) FROM sealed_key WHERE pkcs8 = ?", b"\0") == [(1,)]
    core = installation.open()
    try:
        await core.ra_certificates.refresh()
        before = await ra_of(core)
        clock.now = before.not_after - DAY
        with caplog.at_level(logging.ERROR):
            for _ in range(3):
                await core.ra_certificates.ensure()
        (record,) = caplog.records
        assert record.getMessage().startswith("no RA certificate for realm default: "), "said once"
        assert (await ra_of(core)).certificate == before.certificate
        assert (await ra_of(core, "other")).not_after > clock.now + 700 * DAY
    finally:
        core.close()


async def test_a_damaged_key_is_said_once_and_keeps_no_other_realm_from_its_own(
    installation: Installation, caplog: pytest.LogCaptureFixture
) -> None:
    first = "(SELECT min(id) FROM sealed_key WHERE purpose = 'ra')"
    installation.sql(f"UPDATE sealed_key SET pkcs8 = ? WHERE id = {first}", b"\0")  # noqa: S608  # no value in it
    (name,) = installation.sql("SELECT name FROM sealed_key WHERE pkcs8 = ?", b"\0")[0]
    core = installation.open()
    try:
        with caplog.at_level(logging.ERROR):
            for _ in range(3):
                await core.ra_certificates.refresh()
        (record,) = caplog.records
        assert record.getMessage().startswith(f"the RA key {name} can't be used: ")
        assert len(core.ra_certificates.all()) == 1
    finally:
        core.close()


async def test_without_the_unlock_key_none_is_made_and_it_is_said_once(
    core: Core, installation: Installation, caplog: pytest.LogCaptureFixture
) -> None:
    await core.realms.add("third", actor=ME)
    sealed = installation.open(sealed=True)
    try:
        with caplog.at_level(logging.ERROR):
            for _ in range(3):
                await sealed.ra_certificates.ensure()
        assert len(caplog.records) == 3, "once for each realm"
        assert installation.sql("SELECT count(*) FROM certificate WHERE kind = 'ra'") == [(2,)]
        for realm in ("default", "third"):
            with pytest.raises(Unavailable):
                await ra_of(sealed, realm)
    finally:
        sealed.close()


async def test_a_csr_for_its_name_is_a_device_s_like_any_other(core: Core) -> None:
    """Nothing stands on what a subject says."""
    await core.ra_certificates.ensure()
    secret = (await core.devices.add("default", "enrolld", actor=ME)).secret
    csr = ParsedCsr.parse(good_csr(rsa_key(), "default SCEP RA"))
    assert await code_of(core, Evidence(secret=secret), csr) == "subject_mismatch"
