"""Presets and example profiles: each is applied, issues a certificate, and pkilint has nothing against it."""

import re
from pathlib import Path

import msgspec
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import NameOID

from ca_core.authority.plan import general_name
from ca_core.core import Core
from ca_core.csr import ParsedCsr
from ca_core.errors import OperatorError
from ca_core.model import Evidence
from ca_core.registration import values
from ca_core.registration.document import default_document, parse_toml, profile_toml, to_toml
from ca_core.registration.lint import can_lint, lint, lint_certificate, sample_certificates
from ca_core.registration.presets import PRESETS, preset
from ca_core.registration.profile_document import KEY_USAGES, KEYS, ProfileDocument
from ca_core.registration.template import FACTS
from ca_core.registration.values import EXTENDED_KEY_USAGES, EXTENSION_TYPES
from ca_core.rows import LintFinding
from tests.helpers import factory
from tests.helpers.core import ME, START, PrivateKey, ask, new_key

EXAMPLES = sorted((Path(__file__).parents[3] / "interop" / "profiles").glob("*.toml"))
TEXTS = {path.stem: path.read_text() for path in EXAMPLES}
RSA_KEY = rsa.generate_private_key(65537, 2048)


def _key_for(profile: ProfileDocument) -> PrivateKey:
    return new_key() if "p-256" in profile.keys else RSA_KEY


def _csr(key: PrivateKey, name: str, *names: str) -> ParsedCsr:
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    builder = x509.CertificateSigningRequestBuilder().subject_name(subject)
    if names:
        builder = builder.add_extension(
            x509.SubjectAlternativeName([general_name(each) for each in names]), critical=False
        )
    return ParsedCsr.parse(builder.sign(key, hashes.SHA256()).public_bytes(Encoding.DER))


async def _trusted(core: Core, realm: str) -> None:
    await core.trust.add(realm, factory.root().pem, name="acme", actor=ME)


@pytest.mark.parametrize("name", PRESETS)
async def test_a_preset_issues_a_certificate_that_pkilint_accepts(core: Core, name: str) -> None:
    profile = preset(name).document
    await core.realms.add("line", profiles={"gold": profile}, actor=ME)
    await _trusted(core, "line")
    handed = await core.devices.add(
        "line", "sensor", profile="gold", serial_number="SN-1", sans=["DNS:sensor.example.com"], actor=ME
    )
    issued = await ask(core, Evidence(secret=handed.secret), _csr(_key_for(profile), "sensor"), label="line.gold")
    assert lint_certificate(issued.certificate) == []
    certificate = x509.load_der_x509_certificate(issued.certificate)
    assert certificate.subject.get_attributes_for_oid(NameOID.COMMON_NAME)[0].value == "sensor"
    if name == "ldevid":
        assert certificate.subject.get_attributes_for_oid(NameOID.SERIAL_NUMBER)[0].value == "SN-1"
    if name == "network-gear":
        usages = certificate.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
        assert x509.ObjectIdentifier("1.3.6.1.5.5.7.3.17") in usages


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
async def test_an_example_is_applied_as_it_stands_and_each_profile_of_it_issues(core: Core, path: Path) -> None:
    text = TEXTS[path.stem]
    document = parse_toml(text)
    await core.realms.add(document.name, actor=ME)
    told: list[LintFinding] = []
    row = await core.realms.apply(text, actor=ME, tell=told.append)
    assert row.version == 2
    assert {each.finding for each in told} == ({"pkix.invalid_uri_syntax"} if document.name == "opc-ua" else set())
    maker = factory.root()
    await core.trust.add(document.name, maker.pem, name="acme", actor=ME)
    chain = factory.idevid(maker, "0042").chain
    for name, profile in document.profiles.items():
        device = "unit.example.com" if document.name == "nmos" else f"unit-{name}"
        handed = await core.devices.add(
            document.name, device, profile=name, sans=["DNS:unit-b.example.com"], serial_number="0042", actor=ME
        )
        names = {"opc-ua": ["DNS:unit-b.example.com", "URI:urn:unit:acme:press"], "nmos": [f"DNS:{device}"]}
        csr = _csr(_key_for(profile), device, *names.get(document.name, ()))
        # NMOS takes no passwords.
        shown = Evidence(chain=chain) if document.name == "nmos" else Evidence(secret=handed.secret)
        issued = await ask(core, shown, csr, label=f"{document.name}.{name}")
        certificate = x509.load_der_x509_certificate(issued.certificate)
        findings = {finding for _, finding, _ in lint_certificate(issued.certificate)}
        assert findings <= set(profile.lint_allow)
        if document.name == "opc-ua":
            found = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
            assert found.get_values_for_type(x509.UniformResourceIdentifier) == ["urn:unit:acme:press"]
        if document.name == "matter":
            assert "1.3.6.1.4.1.37244.2.1=FFF1" in certificate.subject.rfc4514_string()


def test_each_example_has_its_section() -> None:
    assert [path.stem for path in EXAMPLES] == ["matter-dac", "nmos-bcp-003-03", "opc-ua"]
    readme = (EXAMPLES[0].parent / "README.md").read_text()
    for path in EXAMPLES:
        assert f"[{path.name}]({path.name})" in readme


@pytest.mark.parametrize("name", PRESETS)
def test_what_is_shown_of_a_preset_can_be_applied(name: str) -> None:
    text = profile_toml(name, preset(name).document)
    document = parse_toml(f'name = "line"\n[est]\nprofile = "{name}"\n{text}')
    assert document.profiles == {name: preset(name).document}


def test_an_old_document_means_what_it_meant() -> None:
    old = ProfileDocument(issuer="ec", validity="90d", extended_key_usages=("clientAuth",), rekey="optional")
    assert default_document("line", (), None).profiles["device"] == old
    assert (old.subject, old.names, old.others) == ({"CN": "{device.name}"}, ("{device.names}",), "drop")


# --- pkilint ---------------------------------------------------------------------------------------------------------

UNDERSCORE = ProfileDocument(names=("DNS:{device.name}_", "{device.names}"))
FINDING = "pkix.invalid_domain_name_syntax"


def _applied(profile: ProfileDocument) -> str:
    document = default_document("default", (), None)
    return to_toml(msgspec.structs.replace(document, profiles={**document.profiles, "device": profile}))


async def test_a_version_whose_certificates_pkilint_refuses_is_refused_unless_it_is_meant(core: Core) -> None:
    assert can_lint()
    before = (await core.realms.show("default")).version
    with pytest.raises(OperatorError) as caught:
        await core.realms.apply(_applied(UNDERSCORE), actor=ME)
    assert caught.value.code == "profile_lint"
    assert f"profiles.device: {FINDING}" in caught.value.message
    assert (await core.realms.show("default")).version == before
    told: list[LintFinding] = []
    meant = msgspec.structs.replace(UNDERSCORE, lint_allow=(FINDING,))
    await core.realms.apply(_applied(meant), actor=ME, tell=told.append)
    assert {(each.finding, each.allowed) for each in told} == {(FINDING, True)}
    assert (await core.realms.show("default")).version == before + 1


async def test_check_tells_what_pkilint_says(core: Core) -> None:
    found = await core.realms.get("default")
    profiles = {**found.document.profiles, "device": UNDERSCORE}
    document = msgspec.structs.replace(found.document, profiles=profiles)
    assert "profile_lint" not in {finding.code for finding in await core.check()}
    await core.realms.replace(found, document, "realm.applied", {}, ME)  # as if pkilint was not there
    assert "profile_lint" in {finding.code for finding in await core.check()}


async def test_check_tells_of_a_stored_profile_that_could_not_be_applied_today(
    core: Core, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = await core.realms.get("default")
    agent = ProfileDocument(extended_key_usages=("clientAuth", "1.3.6.1.4.1.311.20.2.1"))
    document = msgspec.structs.replace(found.document, profiles={**found.document.profiles, "device": agent})
    assert "profile_invalid" not in {finding.code for finding in await core.check()}
    with monkeypatch.context() as before:
        before.setattr(values, "_REFUSED_USAGES", {})  # as it was in an earlier version
        await core.realms.replace(found, document, "realm.applied", {}, ME)
    (finding,) = [finding for finding in await core.check() if finding.code == "profile_invalid"]
    assert "realm default: profiles.device.extended_key_usages: 'enrollmentAgent' is given to" in finding.message
    assert finding.remedy == "run 'enrolld realm edit default'"


@pytest.mark.parametrize("kind", KEYS)
@pytest.mark.parametrize("issuer", ["ec", "rsa"])
def test_pkilint_has_nothing_against_any_kind_of_key(kind: str, issuer: str) -> None:
    profile = ProfileDocument(issuer=issuer, keys=(kind,))
    document = msgspec.structs.replace(default_document("line", (), None), profiles={"device": profile})
    (sample,) = sample_certificates(document, "device", START)
    assert lint_certificate(sample.der) == []


def test_a_sample_is_made_for_whatever_a_profile_takes_from_requests() -> None:
    profile = ProfileDocument(
        subject={"CN": "{csr:cam-*}", "serialNumber": "{idevid.serial_number}"},
        names=(
            "{csr:DNS:*.cams.example.com}",
            "{csr:IP:10.0.0.0/8}",
            "{csr:URI:https://*.example.com/*}",
            "{csr:email:*@example.com}",
        ),
        others="refuse",
    )
    document = msgspec.structs.replace(default_document("line", (), None), profiles={"device": profile})
    assert lint(document, ["device"], START) == []
    unfit = msgspec.structs.replace(document, profiles={"device": ProfileDocument(subject={"C": "{device.name}"})})
    (told,) = lint(unfit, ["device"], START)
    assert (told.finding, told.severity, told.allowed) == ("enrolld.no_sample", "notice", True)


# --- what the README says --------------------------------------------------------------------------------------------

README = (Path(__file__).parents[3] / "README.md").read_text()
SECTION = README[README.index("## Profiles\n") : README.index("## Old algorithms\n")]


def test_the_readmes_profile_is_one_and_each_key_is_told() -> None:
    (example,) = re.findall(r"^```toml\n(.*?)^```$", SECTION, re.MULTILINE | re.DOTALL)
    profile = parse_toml(f'name = "line"\n[est]\nprofile = "camera"\n{example}').profiles["camera"]
    assert profile.others == "refuse"
    for key in (field.name for field in msgspec.structs.fields(ProfileDocument)):
        assert re.search(rf"\b{key}\b", SECTION), key
    for word in (*FACTS, *KEYS[:7], *KEY_USAGES, *EXTENDED_KEY_USAGES, *EXTENSION_TYPES, *PRESETS):
        assert re.search(rf"\b{word}\b", SECTION), word
