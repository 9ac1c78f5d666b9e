"""A realm whose keys are in a token, beside realms whose keys are not: what is made where, and what one loss stops."""

import asyncio
import dataclasses
import datetime as dt
import sys
from collections.abc import AsyncIterator, Iterator

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import padding, rsa

from ca_core.authority.pin import HsmSettings, Pin
from ca_core.core import Core
from ca_core.errors import HsmUnfit, OperatorError, SignerUnavailable
from tests.end_to_end.clients import needs
from tests.helpers.core import ME, Installation, enrolled
from tests.helpers.softhsm import PIN, SoftHsm

pytestmark = pytest.mark.foreign


@pytest.fixture(scope="module")
def tokens(tmp_path_factory: pytest.TempPathFactory) -> SoftHsm:
    needs("softhsm2", "p11-kit", "opensc", "gcc")
    return SoftHsm.make(tmp_path_factory.mktemp("softhsm"))


@pytest.fixture
def softhsm(tokens: SoftHsm, monkeypatch: pytest.MonkeyPatch) -> Iterator[SoftHsm]:
    """With the token `unit`, in which nothing is."""
    tokens.mend()
    for name, value in tokens.environment.items():
        monkeypatch.setenv(name, value)
    tokens.add("unit")
    yield tokens
    for path in (tokens.folder / "tokens").iterdir():
        for file in path.iterdir():
            file.unlink()
        path.rmdir()


def open_core(installation: Installation, softhsm: SoftHsm) -> Core:
    settings = HsmSettings(softhsm.module, Pin(PIN))
    return Core.open(dataclasses.replace(installation.config(), hsm=settings))


@pytest.fixture
async def core(installation: Installation, softhsm: SoftHsm) -> AsyncIterator[Core]:
    """With the realm `vault` in the token."""
    opened = open_core(installation, softhsm)
    try:
        await opened.realms.add("vault", token="unit", actor=ME)
        await opened.ra_certificates.ensure()
        await opened.crls.publish(only_due=True)
        yield opened
    finally:
        opened.close()


async def test_every_key_of_the_realm_is_in_the_token_and_what_it_signs_verifies(
    core: Core, installation: Installation, softhsm: SoftHsm
) -> None:
    kept = dict(installation.sql("SELECT name, pkcs8 FROM sealed_key"))
    in_token = {name for name, pkcs8 in kept.items() if bytes(pkcs8).startswith(b"pkcs11:token=unit;")}
    assert {"vault-root-1", "vault-ec-1", "vault-rsa-1"} < in_token
    assert len(in_token) == 4, "and the RA's"
    assert softhsm.objects("unit").count("Private Key Object") == 4
    device = await enrolled(core, realm="vault")
    realm = (await core.realms.current())["vault"]
    root, issuer, _ = await core._issuers.of_realm(realm.id, realm.edition)
    device.x509.verify_directly_issued_by(issuer.certificate)
    issuer.certificate.verify_directly_issued_by(root.certificate)
    crl = await core.crls.latest("vault-ec-1")
    assert crl is not None
    assert x509.load_der_x509_crl(crl).is_signature_valid(issuer.certificate.public_key())  # type: ignore[arg-type]  # it is EC
    assert [event.get("token") for event in installation.events("realm.added")].count("unit") == 1


async def test_the_ra_in_the_token_opens_and_signs_and_its_next_key_is_made_there_too(
    core: Core, softhsm: SoftHsm
) -> None:
    realm = (await core.realms.current())["vault"]
    ra = await core.ra_certificates.of_realm(realm)
    certificate = x509.load_der_x509_certificate(ra.certificate)
    key = certificate.public_key()
    assert isinstance(key, rsa.RSAPublicKey)
    assert await ra.key.unwrap(key.encrypt(b"k" * 16, padding.PKCS1v15()), padding.PKCS1v15()) == b"k" * 16
    with pytest.raises(ValueError, match="decryption failed"):
        await ra.key.unwrap(b"\x01" * 256, padding.PKCS1v15())
    key.verify(await ra.key.sign(b"data", hashes.SHA256()), b"data", padding.PKCS1v15(), hashes.SHA256())
    await core.certificates.revoke(format(certificate.serial_number, "x"), realm="vault", actor=ME)
    await core.ra_certificates.ensure()
    assert softhsm.objects("unit").count("Private Key Object") == 5
    assert (await core.ra_certificates.of_realm(realm)).certificate != ra.certificate


async def test_a_process_that_starts_proves_the_keys_of_active_realms(
    core: Core,  # noqa: ARG001  # made the realm
    installation: Installation,
    softhsm: SoftHsm,
) -> None:
    again = open_core(installation, softhsm)
    try:
        before = softhsm.calls("C_Sign")
        await again.prove_hsm()
        assert softhsm.calls("C_Sign") == before + 4
    finally:
        again.close()
    without = installation.open()
    try:
        with pytest.raises(HsmUnfit) as caught:
            await without.prove_hsm()
        assert caught.value.code == "hsm_not_configured"
        assert (await enrolled(without)).certificate, "realms that are not in it go on"
        installation.sql("UPDATE realm SET state = 'retired' WHERE name = 'vault'")
        without.realms.forget()
        await without.prove_hsm()
    finally:
        without.close()


async def test_while_the_token_is_away_other_realms_issue_and_publish(
    core: Core, installation: Installation, softhsm: SoftHsm
) -> None:
    with softhsm.pulled():
        with pytest.raises(SignerUnavailable):
            await enrolled(core, "waiting", realm="vault")
        assert (await enrolled(core, "sound")).certificate
        installation.clock.now += dt.timedelta(days=2)
        with pytest.raises(SignerUnavailable):
            await core.crls.publish()
        made = {row.issuer for row in await core.crls.publish(only_due=True)}
        assert not {name for name in made if name.startswith("vault")}
        numbers = {row.issuer: row.number for row in await core.crls.list()}
        assert numbers["default-ec-1"] == numbers["other-ec-1"] == 2
        assert numbers["vault-ec-1"] == 1
    made = {row.issuer for row in await core.crls.publish(only_due=True)}
    assert made == {"vault-root-1", "vault-ec-1", "vault-rsa-1"}


async def test_keys_of_a_realm_that_another_node_made_first_do_not_stay_in_the_token(
    core: Core, installation: Installation, softhsm: SoftHsm
) -> None:
    """Two nodes add the same realm at a time; the keys of one of them come to nothing."""
    other = open_core(installation, softhsm)
    try:
        done = await asyncio.gather(
            core.realms.add("twice", token="unit", actor=ME),
            other.realms.add("twice", token="unit", actor=ME),
            return_exceptions=True,
        )
    finally:
        other.close()
    assert sorted(type(each).__name__ for each in done) == ["OperatorError", "RealmRow"]
    assert softhsm.objects("unit").count("Private Key Object") == 4 + 3


async def test_a_key_that_can_not_be_made_leaves_none_of_those_before_it(core: Core, softhsm: SoftHsm) -> None:
    softhsm.fault("C_Sign", 0x70, 1_000_000)  # CKR_MECHANISM_INVALID: found out by the root's own signature
    with pytest.raises((HsmUnfit, SignerUnavailable)):
        await core.realms.add("never", token="unit", actor=ME)
    softhsm.mend()
    assert softhsm.objects("unit").count("Private Key Object") == 4
    with pytest.raises(OperatorError):
        await core.realms.get("never")


async def test_without_the_extra_it_is_told_what_to_install(
    core: Core,  # noqa: ARG001  # made the realm
    installation: Installation,
    softhsm: SoftHsm,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, "pkcs11", None)
    again = open_core(installation, softhsm)
    try:
        for act in (again.prove_hsm(), again.realms.add("never", token="unit", actor=ME)):
            with pytest.raises(HsmUnfit) as caught:
                await act
            assert caught.value.code == "hsm_extra_missing"
        assert "hsm_extra_missing" in {finding.code for finding in await again.check()}
        assert (await enrolled(again)).certificate
    finally:
        again.close()


@pytest.mark.parametrize("keys", [{"ec": "ed25519"}, {"root": "ed25519", "ec": "ed25519"}], ids=["issuing", "root-too"])
async def test_a_ca_of_ed25519_is_made_in_a_token_and_what_it_signs_verifies(core: Core, keys: dict[str, str]) -> None:
    await core.realms.add("edwards", keys=keys, token="unit", actor=ME)
    await core.crls.publish(only_due=True)
    realm = (await core.realms.current())["edwards"]
    issuers = {each.family: each for each in await core._issuers.of_realm(realm.id, realm.edition)}
    device = await enrolled(core, realm="edwards")
    device.x509.verify_directly_issued_by(issuers["ec"].certificate)
    issuers["ec"].certificate.verify_directly_issued_by(issuers["root"].certificate)
    assert device.x509.signature_algorithm_oid == x509.SignatureAlgorithmOID.ED25519
    crl = await core.crls.latest("edwards-ec-1")
    assert crl is not None
    assert x509.load_der_x509_crl(crl).is_signature_valid(issuers["ec"].certificate.public_key())  # type: ignore[arg-type]  # it is Ed25519


async def test_ml_dsa_is_not_made_in_a_token_and_is_refused_before_anything_is(core: Core, softhsm: SoftHsm) -> None:
    with pytest.raises(HsmUnfit) as caught:
        await core.realms.add("never", keys={"ec": "ml-dsa-65"}, token="unit", actor=ME)
    assert caught.value.code == "hsm_kind"
    assert softhsm.objects("unit").count("Private Key Object") == 4
