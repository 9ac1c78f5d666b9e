"""CAs with keys of every kind: what they sign verifies, and what can't carry them is told."""

import pytest
from cryptography import x509

from ca_core.authority.kinds import KINDS, USUAL, chosen_kinds, warnings_of
from ca_core.core import Core
from ca_core.errors import OperatorError
from ca_core.public_key import PublicKey, key_kind
from tests.helpers.core import ME, Installation, enrolled


def kind_of(certificate: x509.Certificate) -> str:
    key = certificate.public_key()
    assert isinstance(key, PublicKey)
    return key_kind(key)


@pytest.mark.parametrize("kind", KINDS)
async def test_a_realm_whose_root_and_issuer_are_of_a_kind_issues_revokes_and_serves(
    core: Core, installation: Installation, kind: str
) -> None:
    await core.realms.add("line", hosts=["line.example.com"], keys={"root": kind, "ec": kind}, actor=ME)
    realm = (await core.realms.current())["line"]
    root, issuer, for_scep = await core._issuers.of_realm(realm.id, realm.edition)
    assert [kind_of(each.certificate) for each in (root, issuer, for_scep)] == [kind, kind, "rsa-2048"]
    device = await enrolled(core, realm="line")
    device.x509.verify_directly_issued_by(issuer.certificate)
    issuer.certificate.verify_directly_issued_by(root.certificate)
    await core.crls.publish(only_due=True)
    for each in (root, issuer):
        found = await core.crls.latest(each.name)
        assert found is not None
        crl = x509.load_der_x509_crl(found)
        key = each.certificate.public_key()
        assert isinstance(key, PublicKey)
        assert crl.is_signature_valid(key)
        assert crl.signature_algorithm_oid == each.certificate.signature_algorithm_oid
    await core.server_certificates.ensure([])
    assert "line.example.com" in core.server_certificates.all()
    again = installation.open()  # the keys as they were sealed
    try:
        for each in (root, issuer):
            await again.issuance.check_key(each)
    finally:
        again.close()


@pytest.mark.parametrize("kind", KINDS)
async def test_scep_is_on_under_an_rsa_root_and_off_under_any_other(core: Core, kind: str) -> None:
    await core.realms.add("line", keys={"root": kind, "rsa": "rsa-3072"}, actor=ME)
    assert (await core.realms.current())["line"].document.speaks_scep == kind.startswith("rsa-")


async def test_check_warns_of_scep_under_a_root_that_is_not_rsa(core: Core) -> None:
    await core.realms.add("line", keys={"root": "p-256"}, actor=ME)
    assert "scep_root" not in {finding.code for finding in await core.check()}
    text = await core.realms.export("line")
    await core.realms.apply(text.replace("enabled = false", "enabled = true"), actor=ME)
    (found,) = [finding for finding in await core.check() if finding.code == "scep_root"]
    assert found.severity == "warning"


@pytest.mark.parametrize(
    ("keys", "words"),
    [
        pytest.param({}, [], id="usual"),
        pytest.param({"ec": "rsa-3072"}, [], id="rsa"),
        pytest.param({"root": "p-384"}, ["SCEP is off"], id="ec-root"),
        pytest.param({"ec": "ml-dsa-65"}, ["OpenSSL 3.5"], id="ml-dsa"),
        pytest.param({"root": "ml-dsa-87", "ec": "ml-dsa-44"}, ["SCEP is off", "OpenSSL 3.5"], id="ml-dsa-root"),
        pytest.param({"root": "ed25519"}, ["SCEP is off", "Ed25519"], id="ed25519-root"),
    ],
)
def test_who_can_not_use_a_kind_is_told(keys: dict[str, str], words: list[str]) -> None:
    told = warnings_of(chosen_kinds(keys))
    assert len(told) == len(words)
    assert all(word in sentence for word, sentence in zip(words, told, strict=True))


def test_a_realm_has_the_usual_kinds_unless_told_otherwise() -> None:
    assert chosen_kinds({}) == USUAL
    assert chosen_kinds({"ec": "ed25519"}) == {"root": "rsa-3072", "ec": "ed25519", "rsa": "rsa-2048"}
    with pytest.raises(OperatorError):
        chosen_kinds({"ec": "secp256k1"})
