"""Section C, what a CSR asks for, and case 79: each refused or dropped for its own reason, with a twin that passes."""

import base64
import dataclasses
import datetime as dt
import ipaddress
from collections.abc import Sequence

import msgspec
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID
from hypothesis import given, settings
from hypothesis import strategies as st

from ca_core.authority.plan import general_name
from ca_core.core import Core
from ca_core.csr import SID_EXTENSION, ParsedCsr
from ca_core.errors import OperatorError, Refusal
from ca_core.model import DeviceRecord, DeviceState, Evidence, Means, Operation
from ca_core.registration.document import RealmDocument, parse_toml, validated
from ca_core.registration.examination import examine
from ca_core.registration.examined import Applicant, Examined
from ca_core.registration.presets import PRESETS
from ca_core.registration.profile import make_plan
from ca_core.registration.profile_document import ProfileDocument
from ca_core.registration.realm import Realm
from ca_core.registration.template import NameTemplate
from tests.helpers.core import ME, START, Enrolled, ask, code_of, enrolled, new_key
from tests.helpers.document import MINIMAL

KEY = new_key()
DEVICE = DeviceRecord(
    7, 1, "sensor", "sensor", None, DeviceState.ACTIVE, "SN-1", "Acme", ("DNS:sensor.example.com",), "Ann"
)


def realm_of(profile: ProfileDocument, *, hosts: tuple[str, ...] = ()) -> Realm:
    document = validated(RealmDocument(name="line", hosts=hosts, profiles={"device": profile}))
    return Realm(1, "line", "active", 1, 0, document)


def request(
    *names: x509.GeneralName,
    subject: Sequence[tuple[x509.ObjectIdentifier, str]] = ((NameOID.COMMON_NAME, "sensor"),),
    extensions: Sequence[x509.ExtensionType] = (),
) -> ParsedCsr:
    return ParsedCsr.parse(_der(names, subject, extensions))


def _der(
    names: Sequence[x509.GeneralName],
    subject: Sequence[tuple[x509.ObjectIdentifier, str]],
    extensions: Sequence[x509.ExtensionType],
) -> bytes:
    name = x509.Name([x509.NameAttribute(oid, value) for oid, value in subject])
    builder = x509.CertificateSigningRequestBuilder().subject_name(name)
    if names:
        builder = builder.add_extension(x509.SubjectAlternativeName(names), critical=False)
    for extension in extensions:
        builder = builder.add_extension(extension, critical=False)
    return builder.sign(KEY, hashes.SHA256()).public_bytes(Encoding.DER)


def examined(
    profile: ProfileDocument,
    csr: ParsedCsr,
    *,
    means: Means = Means.SECRET,
    hosts: tuple[str, ...] = (),
    device: DeviceRecord = DEVICE,
) -> Examined:
    return examine(profile, realm_of(profile, hosts=hosts), Applicant(device, means), csr, Operation.ENROLL)


def codes(found: Examined) -> list[str]:
    return [refusal.code for refusal in found.refusals]


# --- 22, 23, 24: a CA, or what is like one ---------------------------------------------------------------------------

_CA = x509.BasicConstraints(ca=True, path_length=5)
_CERT_SIGN = x509.KeyUsage(True, False, False, False, False, True, False, False, False)
_CRL_SIGN = x509.KeyUsage(True, False, False, False, False, False, True, False, False)
_PLAIN = x509.KeyUsage(True, False, False, False, False, False, False, False, False)


@pytest.mark.parametrize(
    "extension",
    [pytest.param(_CA, id="ca"), pytest.param(_CERT_SIGN, id="certSign"), pytest.param(_CRL_SIGN, id="cRLSign")],
)
async def test_case_22_a_ca_that_a_request_asks_for_is_refused(core: Core, extension: x509.ExtensionType) -> None:
    handed = await core.devices.add("default", "sensor", actor=ME)
    evidence = Evidence(secret=handed.secret)
    assert await code_of(core, evidence, request(extensions=[extension])) == "ca_requested"
    issued = await ask(core, evidence, request(extensions=[_PLAIN]))  # the twin
    certificate = x509.load_der_x509_certificate(issued.certificate)
    assert not certificate.extensions.get_extension_for_class(x509.BasicConstraints).value.ca


@pytest.mark.parametrize(
    ("line", "told"),
    [
        ('key_usage = ["keyCertSign"]', "profiles.device.key_usage: 'keyCertSign' is given to no device"),
        ('key_usage = ["digitalSignature", "cRLSign"]', "key_usage: 'cRLSign' is given to no device"),
        ('extended_key_usages = ["keyCertSign"]', "'keyCertSign' is given to no device"),
        ('extensions = [{oid = "2.5.29.19", value = "MAMBAf8="}]', "extensions[0]: the extension 2.5.29.19 is"),
        ('extensions = [{oid = "2.5.29.15", value = "AwIBBg=="}]', "extensions[0]: the extension 2.5.29.15 is"),
        ('extensions = [{oid = "2.5.29.30", value = "MAA="}]', "the extension 2.5.29.30 is"),
        ('extensions = [{oid = "2.16.840.1.113730.1.1", value = "AwIABw=="}]', "2.16.840.1.113730.1.1 is"),
    ],
)
def test_case_22_a_profile_that_could_issue_a_ca_can_not_be_written(line: str, told: str) -> None:
    with pytest.raises(OperatorError) as caught:
        parse_toml(MINIMAL + line)
    assert caught.value.code == "document_invalid"
    assert told in caught.value.message
    harmless = 'key_usage = ["digitalSignature"]\nextensions = [{oid = "1.3.6.1.4.1.99999.1", value = "BQA="}]'
    assert parse_toml(MINIMAL + harmless).profiles["device"].rules.own  # the twin


DANGEROUS = {
    "OCSPSigning": "1.3.6.1.5.5.7.3.9",
    "timeStamping": "1.3.6.1.5.5.7.3.8",
    "anyExtendedKeyUsage": "2.5.29.37.0",
    "cmcRA": "1.3.6.1.5.5.7.3.28",
    "cmKGA": "1.3.6.1.5.5.7.3.32",
    "dvcs": "1.3.6.1.5.5.7.3.10",
    "scvpServer": "1.3.6.1.5.5.7.3.15",
    "pkinitKDC": "1.3.6.1.5.2.3.5",
    "anyApplicationPolicy": "1.3.6.1.4.1.311.10.12.1",
    "enrollmentAgent": "1.3.6.1.4.1.311.20.2.1",
    "caExchange": "1.3.6.1.4.1.311.21.5",
    "keyRecoveryAgent": "1.3.6.1.4.1.311.21.6",
    "keyRecovery": "1.3.6.1.4.1.311.10.3.11",
    "efsRecovery": "1.3.6.1.4.1.311.10.3.4.1",
    "bitLockerRecovery": "1.3.6.1.4.1.311.67.1.2",
    "trustListSigning": "1.3.6.1.4.1.311.10.3.1",
    "rootListSigning": "1.3.6.1.4.1.311.10.3.9",
    "autoEnrollTrustList": "1.3.6.1.4.1.311.20.1",
    "qualifiedSubordination": "1.3.6.1.4.1.311.10.3.10",
    "msTimeStamping": "1.3.6.1.4.1.311.10.3.2",
    "msCodeIndividual": "1.3.6.1.4.1.311.2.1.21",
    "msCodeCommercial": "1.3.6.1.4.1.311.2.1.22",
    "kernelModeCodeSigning": "1.3.6.1.4.1.311.61.1.1",
}


@pytest.mark.parametrize("usage", DANGEROUS)
async def test_case_23_a_purpose_that_endangers_the_ca_is_refused_to_requests_and_profiles(
    core: Core, usage: str
) -> None:
    oid = x509.ObjectIdentifier(DANGEROUS[usage])
    handed = await core.devices.add("default", "sensor", actor=ME)
    evidence = Evidence(secret=handed.secret)
    asking = request(extensions=[x509.ExtendedKeyUsage([oid])])
    assert await code_of(core, evidence, asking) == "extension_not_allowed"
    for text in (usage, DANGEROUS[usage]):
        with pytest.raises(OperatorError) as caught:
            parse_toml(f'{MINIMAL}extended_key_usages = ["clientAuth", "{text}"]')
        assert f"'{usage}' is given to no device" in caught.value.message
    twin = parse_toml(f'{MINIMAL}extended_key_usages = ["clientAuth", "1.3.6.1.5.5.7.3.17"]')
    assert len(twin.profiles["device"].rules.extended_key_usages) == 2
    asking = request(extensions=[x509.ExtendedKeyUsage([ExtendedKeyUsageOID.CLIENT_AUTH])])
    assert await code_of(core, evidence, asking) == "issued"


SID = x509.UnrecognizedExtension(x509.ObjectIdentifier(SID_EXTENSION), b"\x30\x02\xa0\x00")


@pytest.mark.parametrize("others", ["drop", "refuse"])
def test_case_10_an_account_of_a_windows_domain_that_a_request_names_is_never_given(others: str) -> None:
    profile = ProfileDocument(others="refuse" if others == "refuse" else "drop")
    found = examined(profile, request(extensions=[SID]))
    if others == "drop":
        assert (codes(found), found.dropped) == ([], (f"extension {SID_EXTENSION} (SID)",))
    else:
        assert codes(found) == ["names_not_allowed"]
    plain = examined(profile, request(extensions=[_PLAIN]))  # the twin
    assert (codes(plain), plain.dropped) == ([], ())


async def test_case_10_an_account_that_was_asked_for_is_told_to_the_audit_trail(core: Core) -> None:
    handed = await core.devices.add("default", "sensor", actor=ME)
    issued = await ask(core, Evidence(secret=handed.secret), request(extensions=[SID]))
    asked = x509.load_der_x509_certificate(issued.certificate).extensions
    assert SID_EXTENSION not in {extension.oid.dotted_string for extension in asked}
    (event,) = [each for each in await core.audit.list(limit=50) if each.action == "certificate.issued"]
    assert f"extension {SID_EXTENSION} (SID)" in str(event)


@pytest.mark.parametrize(
    "oid",
    [
        pytest.param(SID_EXTENSION, id="sid"),
        pytest.param("1.3.6.1.4.1.311.25.1", id="domain-controller"),
        pytest.param("1.3.6.1.4.1.311.20.2", id="template"),
        pytest.param("1.3.6.1.4.1.311.21.10", id="application-policies"),
        pytest.param("1.3.6.1.4.1.311.21.11", id="policy-mappings"),
        pytest.param("1.3.6.1.4.1.311.21.12", id="policy-constraints"),
        pytest.param("1.3.6.1.4.1.311.21.1", id="ca-version"),
    ],
)
def test_case_10_a_profile_gives_no_extension_that_has_power_over_others_in_a_windows_domain(oid: str) -> None:
    with pytest.raises(OperatorError) as caught:
        parse_toml(f'{MINIMAL}extensions = [{{oid = "{oid}", value = "MAA="}}]')
    told = f"profiles.device.extensions[0]: the extension {oid} is given to no device: "
    assert (caught.value.code, told in caught.value.message) == ("document_invalid", True)
    assert "(leave it out)" in caught.value.message
    template = parse_toml(f'{MINIMAL}extensions = [{{oid = "1.3.6.1.4.1.311.99", value = "MAA="}}]')  # the twin
    assert template.profiles["device"].rules.own


async def test_case_24_no_device_has_a_path_length_and_no_issuing_ca_can_have_a_ca_below_it(core: Core) -> None:
    handed = await core.devices.add("default", "sensor", actor=ME)
    sub_ca = request(extensions=[x509.BasicConstraints(ca=True, path_length=0)])
    assert await code_of(core, Evidence(secret=handed.secret), sub_ca) == "ca_requested"
    resolved = await core.realms.resolve("est", None, None)
    chain = [x509.load_der_x509_certificate(der) for der in await core.ca_certificates(resolved)]
    below = [ca.extensions.get_extension_for_class(x509.BasicConstraints).value for ca in chain[1:]]
    assert [(each.ca, each.path_length) for each in below] == [(True, 0), (True, 0)]
    plain = request(extensions=[x509.BasicConstraints(ca=False, path_length=None)])
    assert await code_of(core, Evidence(secret=handed.secret), plain) == "issued"  # the twin


# --- 25, 26, 29: names -----------------------------------------------------------------------------------------------

LINE = ProfileDocument(names=("{csr:DNS:*.cams.example.com}", "{csr:IP:10.1.0.0/16?}"))


@pytest.mark.parametrize(
    ("name", "code"),
    [
        pytest.param("other.example.com", "csr_value_not_allowed", id="elsewhere"),
        pytest.param("a.b.cams.example.com", "csr_value_not_allowed", id="deeper"),
        pytest.param("cams.example.com", "csr_value_not_allowed", id="the-domain-itself"),
        pytest.param("x.cams.example.com.evil.org", "csr_value_not_allowed", id="suffix"),
        pytest.param(None, "csr_value_missing", id="none"),
        pytest.param("x.cams.example.com", None, id="twin"),
    ],
)
def test_case_25_a_name_of_the_request_outside_what_the_line_allows_is_refused(
    name: str | None, code: str | None
) -> None:
    found = examined(LINE, request(*([x509.DNSName(name)] if name else [])))
    assert codes(found) == ([code] if code else [])
    assert found.names == ((f"DNS:{name}",) if code is None else ())


@pytest.mark.parametrize("others", ["drop", "refuse"])
def test_case_25_of_several_names_only_those_that_are_allowed_are_given(others: str) -> None:
    csr = request(
        x509.DNSName("a.cams.example.com"),
        x509.DNSName("evil.example.com"),
        x509.IPAddress(ipaddress.ip_address("10.1.2.3")),
        x509.IPAddress(ipaddress.ip_address("10.2.2.3")),
        x509.UniformResourceIdentifier("urn:x:1"),
    )
    profile = msgspec.structs.replace(LINE, others=others)
    found = examined(profile, csr)
    assert found.names == ("DNS:a.cams.example.com", "IP:10.1.2.3")
    left = ["DNS:evil.example.com", "IP:10.2.2.3", "URI:urn:x:1"]
    if others == "drop":
        assert found.dropped == tuple(f"SAN {name}" for name in left)
        assert codes(found) == []
    else:
        assert codes(found) == ["names_not_allowed"] * 3
        assert codes(examined(profile, request(x509.DNSName("a.cams.example.com")))) == []  # the twin


def test_case_25_no_device_gets_the_name_of_its_server_on_its_own_word() -> None:
    csr = request(x509.DNSName("est.cams.example.com"))
    found = examined(LINE, csr, hosts=("est.cams.example.com",))
    assert codes(found) == ["name_of_server"]
    assert found.names == ()
    assert examined(LINE, csr).names == ("DNS:est.cams.example.com",)  # the twin


_WEB = "{csr:URI:https://*.example.com/x/*}"


@pytest.mark.parametrize(
    ("pattern", "uri"),
    [
        pytest.param(_WEB, "http://a.example.com/x/1", id="scheme"),
        pytest.param(_WEB, "https+x://a.example.com/x/1", id="longer-scheme"),
        pytest.param(_WEB, "https:a.example.com/x/1", id="no-authority"),
        pytest.param(_WEB, "https:///a.example.com/x/1", id="empty-authority"),
        pytest.param(_WEB, "https://evil.com/x.example.com/x/1", id="host-in-path"),
        pytest.param(_WEB, "https://evil.com/.example.com/x/1", id="suffix-in-path"),
        pytest.param(_WEB, "https://evil.com?.example.com/x/1", id="suffix-in-query"),
        pytest.param(_WEB, "https://evil.com#.example.com/x/1", id="suffix-in-fragment"),
        pytest.param(_WEB, "https://a.example.com@evil.com/x/1", id="user"),
        pytest.param(_WEB, "https://evil.com@a.example.com/x/1", id="user-before-the-host"),
        pytest.param(_WEB, "https://u:p@a.example.com/x/1", id="password"),
        pytest.param(_WEB, "https://evil.com:1.example.com/x/1", id="port-in-the-label"),
        pytest.param(_WEB, "https://a.example.com:8443/x/1", id="port"),
        pytest.param(_WEB, "https://a.example.com:443/x/1", id="default-port"),
        pytest.param(_WEB, "https://a.example.com:/x/1", id="empty-port"),
        pytest.param(_WEB, "https://a.b.example.com/x/1", id="two-labels"),
        pytest.param(_WEB, "https://example.com/x/1", id="no-label"),
        pytest.param(_WEB, "https://.example.com/x/1", id="empty-label"),
        pytest.param(_WEB, "https://a.example.com./x/1", id="trailing-dot"),
        pytest.param(_WEB, "https://a.example.com.evil.com/x/1", id="longer-host"),
        pytest.param(_WEB, "https://evil%2ecom%2f.example.com/x/1", id="escapes-in-host"),
        pytest.param(_WEB, "https://evil.com%2F.example.com/x/1", id="escaped-slash-in-host"),
        pytest.param(_WEB, "https://[::1].example.com/x/1", id="address-and-labels"),
        pytest.param(_WEB, "https://[::1]/x/1", id="ipv6"),
        pytest.param(_WEB, "https://a.example.com/x/1/2", id="deeper"),
        pytest.param(_WEB, "https://a.example.com/x/..", id="dots"),
        pytest.param(_WEB, "https://a.example.com/x/%2e%2E", id="escaped-dots"),
        pytest.param(_WEB, "https://a.example.com/x/1%2F..", id="escaped-slash"),
        pytest.param(_WEB, "https://a.example.com/x/1%5c2", id="escaped-backslash"),
        pytest.param(_WEB, "https://a.example.com/x/1%252e", id="escaped-twice"),
        pytest.param(_WEB, "https://a.example.com/x/%00", id="escaped-nul"),
        pytest.param(_WEB, "https://a.example.com/x/%0d%0a", id="escaped-line"),
        pytest.param(_WEB, "https://a.example.com/x/%zz", id="broken-escape"),
        pytest.param(_WEB, "https://a.example.com/x/", id="nothing"),
        pytest.param(_WEB, "https://a.example.com/x/1?q", id="query"),
        pytest.param(_WEB, "https://a.example.com/X/1", id="case-of-the-path"),
        pytest.param("{csr:URI:https://*.0.0.1/}", "https://127.0.0.1/", id="ipv4-under-a-star"),
        pytest.param("{csr:URI:https://*/}", "https://2130706433/", id="ipv4-as-a-number"),
        pytest.param("{csr:URI:https://*/}", "https://0x7f000001/", id="ipv4-in-hex"),
        pytest.param("{csr:URI:https://[2001:db8::1]/}", "https://[2001:db8::2]/", id="other-ipv6"),
        pytest.param("{csr:URI:https://a.example.com:8443/*}", "https://a.example.com/1", id="no-port"),
        pytest.param("{csr:URI:https://a.example.com:8443/*}", "https://a.example.com:84430/1", id="longer-port"),
        pytest.param("{csr:URI:urn:x:*}", "urn:y:1", id="other-urn"),
        pytest.param("{csr:URI:urn:x:*}", "urn://x:1", id="urn-with-authority"),
        pytest.param("{csr:URI:urn:x:*}", "urn:x:1/2", id="urn-and-path"),
        pytest.param("{csr:URI:urn:x:*}", "urn:x:%00", id="urn-and-nul"),
    ],
)
def test_case_25_a_uri_of_the_request_that_only_looks_like_what_is_allowed_is_refused(pattern: str, uri: str) -> None:
    found = examined(ProfileDocument(names=(pattern,)), request(x509.UniformResourceIdentifier(uri)))
    assert (codes(found), found.names) == (["csr_value_not_allowed"], ())


@pytest.mark.parametrize(
    ("pattern", "uri"),
    [
        (_WEB, "https://a.example.com/x/1"),
        (_WEB, "HTTPS://A.Example.COM/x/1"),
        (_WEB, "https://a_b-1.example.com/x/a%20b"),
        ("{csr:URI:https://cam-*.example.com}", "https://cam-7.example.com"),
        ("{csr:URI:https://a.example.com:8443/*}", "https://a.example.com:8443/1"),
        ("{csr:URI:https://10.0.0.1/*}", "https://10.0.0.1/1"),
        ("{csr:URI:https://[2001:DB8:0::1]/*}", "https://[2001:db8::1]/1"),
        ("{csr:URI:spiffe://line/ns/*/sa/*}", "spiffe://line/ns/a/sa/b"),
        ("{csr:URI:URN:x:*}", "urn:x:1:2"),
        ("{csr:URI:tag:example.com,2026:*}", "tag:example.com,2026:a"),
    ],
)
def test_case_25_a_uri_of_the_request_that_is_allowed_is_given_as_it_was_asked(pattern: str, uri: str) -> None:
    found = examined(ProfileDocument(names=(pattern,)), request(x509.UniformResourceIdentifier(uri)))
    assert (codes(found), found.names) == ([], (f"URI:{uri}",))


@pytest.mark.parametrize("tag", ["tag:microsoft.com,2022-09-14:sid:", "Tag:Microsoft.com,2022-09-14:SID:"])
def test_case_10_a_uri_that_names_an_account_of_a_windows_domain_is_never_taken_from_a_request(tag: str) -> None:
    profile = ProfileDocument(names=("{csr:URI:tag:*}",))
    account = request(x509.UniformResourceIdentifier(f"{tag}S-1-5-21-1-2-3-500"))
    assert codes(examined(profile, account)) == ["csr_value_not_allowed"]
    other = request(x509.UniformResourceIdentifier(f"{tag.replace('14', '15')}S-1-5-21-1-2-3-500"))  # the twin
    assert codes(examined(profile, other)) == []


@pytest.mark.parametrize("tag", ["tag:microsoft.com,2022-09-14:sid:", "Tag:Microsoft.com,2022-09-14:SID:"])
def test_case_10_no_template_makes_an_account_of_a_windows_domain(tag: str) -> None:
    with pytest.raises(OperatorError, match="would take the device for that account"):
        NameTemplate.parse(f"URI:{tag}S-1-5-21-{{device.owner}}")
    other = f"URI:{tag.replace('14', '15')}S-1-5-21-{{device.owner}}"  # the twin
    assert NameTemplate.parse(other).text == other


@pytest.mark.parametrize(
    ("tag", "outcome"),
    [("tag:Microsoft.com,2022-09-14:sid:", ["profile_value_invalid"]), ("tag:example.com,2022-09-14:sid:", [])],
    ids=["account", "twin"],
)
def test_case_10_an_account_in_a_record_that_was_made_before_such_were_refused_is_not_given(
    tag: str, outcome: list[str]
) -> None:
    names = (f"URI:{tag}S-1-5-21-1-2-3-500",)
    found = examined(ProfileDocument(), request(), device=dataclasses.replace(DEVICE, names=names))
    assert codes(found) == outcome
    assert found.names == (() if outcome else names)


@pytest.mark.parametrize(
    ("means", "code"), [(Means.SECRET, "profile_value_missing"), (Means.IDEVID, None)], ids=["secret", "twin-idevid"]
)
def test_case_26_a_serial_number_that_no_idevid_has_proven_is_not_issued_as_proven(
    means: Means, code: str | None
) -> None:
    profile = ProfileDocument(subject={"CN": "{device.name}", "serialNumber": "{idevid.serial_number}"})
    found = examined(profile, request(), means=means)
    assert codes(found) == ([code] if code else [])
    assert ("2.5.4.5=SN-1" in found.subject.rfc4514_string()) is (code is None)
    profile = ProfileDocument(names=("URI:urn:sn:{idevid.serial_number}", "DNS:{device.name}.{idevid.manufacturer?}"))
    found = examined(profile, request(), means=means)
    assert codes(found) == ([code] if code else [])
    assert found.names == (() if code else ("URI:urn:sn:SN-1", "DNS:sensor.acme"))


def test_case_26_what_nobody_vouched_for_is_dropped_and_told() -> None:
    csr = request(
        x509.DNSName("other.example.com"),
        x509.RFC822Name("root@example.com"),
        subject=[(NameOID.COMMON_NAME, "sensor"), (NameOID.ORGANIZATION_NAME, "Evil")],
    )
    found = examined(ProfileDocument(), csr)
    assert (found.subject.rfc4514_string(), found.names) == ("CN=sensor", DEVICE.names)
    assert found.dropped == ("subject O", "SAN DNS:other.example.com", "SAN email:root@example.com")
    assert codes(found) == []
    kept = examined(ProfileDocument(subject={"CN": "{device.name}", "O": "{csr:E*}"}), csr)  # the twin
    assert "O=Evil" in kept.subject.rfc4514_string()
    assert "subject O" not in kept.dropped


@pytest.mark.parametrize("name", PRESETS)
async def test_case_29_a_request_for_another_device_is_refused_in_every_preset(name: str) -> None:
    preset = PRESETS[name].document
    profile = msgspec.structs.replace(
        preset, keys=(*preset.keys, "p-256") if "p-256" not in preset.keys else preset.keys
    )
    other = request(subject=[(NameOID.COMMON_NAME, "pacemaker")])
    assert codes(examined(profile, other, means=Means.IDEVID)) == ["subject_mismatch"]
    assert codes(examined(profile, request(), means=Means.IDEVID)) == []  # the twin


@pytest.mark.parametrize("subject", [{"O": "Acme"}, {"CN": "one name for all"}, {}], ids=["no-cn", "fixed", "none"])
def test_case_29_also_where_the_profile_does_not_name_the_device(subject: dict[str, str]) -> None:
    profile = ProfileDocument(subject=dict(subject))
    assert codes(examined(profile, request(subject=[(NameOID.COMMON_NAME, "pacemaker")]))) == ["subject_mismatch"]
    found = examined(profile, request())  # the twin: its own name is no lie, and is not given
    assert codes(found) == []
    assert found.dropped == ("subject CN",)


async def test_case_29_a_secret_of_one_device_serves_no_other_name(core: Core) -> None:
    handed = await core.devices.add("default", "sensor", actor=ME)
    await core.devices.add("default", "pacemaker", actor=ME)
    evidence = Evidence(secret=handed.secret)
    other = request(subject=[(NameOID.COMMON_NAME, "pacemaker")])
    assert await code_of(core, evidence, other) == "subject_mismatch"
    assert await code_of(core, evidence, request()) == "issued"


async def test_case_29_a_name_that_the_request_chooses_is_no_other_devices(core: Core) -> None:
    await _with_profile(core, 'subject = {CN = "{csr:cam-*}"}')
    handed = await core.devices.add("default", "sensor", actor=ME)
    await core.devices.add("default", "cam-1", actor=ME)
    evidence = Evidence(secret=handed.secret)
    other = request(subject=[(NameOID.COMMON_NAME, "cam-1")])
    assert await code_of(core, evidence, other) == "name_of_other_device"
    assert await code_of(core, evidence, request(subject=[(NameOID.COMMON_NAME, "pump-1")])) == "csr_value_not_allowed"
    free = request(subject=[(NameOID.COMMON_NAME, "cam-2")])  # the twin
    assert await code_of(core, evidence, free) == "issued"


# --- 27, 28 ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("validity", "left", "days"), [("90d", 3650, 90), ("90d", 30, 90), ("3650d", 3650, 3650)], ids=str
)
@pytest.mark.parametrize("chance", [0.0, 0.5, 0.999999])
@pytest.mark.parametrize("jitter", [None, "9d"])
def test_case_27_a_certificate_ends_with_its_profile_or_issuer_to_the_second(
    validity: str, left: int, days: int, chance: float, jitter: str | None
) -> None:
    profile = ProfileDocument(validity=validity, jitter=jitter)
    latest = START + dt.timedelta(days=left)
    plan = make_plan(profile, examined(profile, request()), request(), latest, START, demo=False, chance=lambda: chance)
    assert plan.not_before == START - dt.timedelta(minutes=5)
    # Both ends are inclusive, so the last second is given back, but not at the issuer's own end.
    end = min(START + dt.timedelta(days=days, seconds=-1), latest)
    shortened = end - plan.not_after
    if jitter is None or chance == 0:
        assert shortened == dt.timedelta()
    else:
        assert dt.timedelta() < shortened <= min(dt.timedelta(days=9), (end - START) / 2)
    assert plan.not_after.microsecond == 0


def test_case_27_jitter_never_takes_more_than_half_of_what_is_left() -> None:
    profile = ProfileDocument(validity="20d", jitter="10d")
    plan = make_plan(
        profile,
        examined(profile, request()),
        request(),
        START + dt.timedelta(days=4),
        START,
        demo=False,
        chance=_almost,
    )
    assert plan.not_after >= START + dt.timedelta(days=2)
    with pytest.raises(OperatorError, match="more than half"):
        validated(RealmDocument(name="line", profiles={"device": ProfileDocument(validity="19d", jitter="10d")}))


def _almost() -> float:
    return 0.9999999


async def test_case_28_key_identifiers_of_a_request_never_reach_a_certificate(core: Core) -> None:
    handed = await core.devices.add("default", "sensor", actor=ME)
    foreign = b"\x66" * 20
    csr = request(extensions=[x509.SubjectKeyIdentifier(foreign), x509.AuthorityKeyIdentifier(foreign, None, None)])
    issued = await ask(core, Evidence(secret=handed.secret), csr)
    extensions = x509.load_der_x509_certificate(issued.certificate).extensions
    own = x509.SubjectKeyIdentifier.from_public_key(KEY.public_key())
    assert extensions.get_extension_for_class(x509.SubjectKeyIdentifier).value == own
    assert extensions.get_extension_for_class(x509.AuthorityKeyIdentifier).value.key_identifier != foreign


# --- 79: every name reaches the policy -------------------------------------------------------------------------------

_LABELS = st.sampled_from(["a", "b", "cams", "evil", "example", "com"])
_HOSTS = st.lists(_LABELS, min_size=1, max_size=5).map(".".join)
_NAMES = st.one_of(
    _HOSTS.map(lambda name: f"DNS:{name}"),
    st.tuples(st.sampled_from(["10.1", "10.2", "192.168"]), st.integers(0, 255)).map(lambda t: f"IP:{t[0]}.0.{t[1]}"),
    _HOSTS.map(lambda name: f"URI:https://{name}/x"),
    _HOSTS.map(lambda name: f"email:x@{name}"),
)


@settings(max_examples=150, deadline=None)
@given(st.lists(_NAMES, min_size=1, max_size=30, unique=True))
def test_case_79_each_of_many_names_is_judged_by_itself(names: list[str]) -> None:
    csr = request(*[general_name(name) for name in names])
    profile = ProfileDocument(names=("{csr:DNS:*.cams.example.com?}", "{csr:IP:10.1.0.0/16?}"))
    allowed = {
        name
        for name in names
        if (name.startswith("DNS:") and name.endswith(".cams.example.com") and name.count(".") == 3)
        or name.startswith("IP:10.1.")
    }
    found = examined(profile, csr)
    assert set(found.names) == allowed
    assert set(found.dropped) == {f"SAN {name}" for name in set(names) - allowed}
    strict = examined(msgspec.structs.replace(profile, others="refuse"), csr)
    refused = {each.value for each in strict.fields if each.outcome == "refused"}
    assert refused == set(names) - allowed
    assert codes(strict) == ["names_not_allowed"] * len(refused)


# --- renewals --------------------------------------------------------------------------------------------------------


async def _with_profile(core: Core, lines: str) -> None:
    text = await core.realms.export("default")
    table = text[text.index("[profiles.device]") : text.index("[profiles.scep]")]
    await core.realms.apply(text.replace(table, f"[profiles.device]\n{lines}\n"), actor=ME)


def _renewing(device: Enrolled, *names: x509.GeneralName) -> ParsedCsr:
    builder = x509.CertificateSigningRequestBuilder().subject_name(device.x509.subject)
    if names:
        builder = builder.add_extension(x509.SubjectAlternativeName(names), critical=False)
    return ParsedCsr.parse(builder.sign(device.key, hashes.SHA256()).public_bytes(Encoding.DER))


async def test_a_renewal_keeps_the_names_that_its_certificate_took_from_a_request(core: Core) -> None:
    await _with_profile(core, 'names = ["{csr:DNS:*.cams.example.com}"]\nsubject = {CN = "{device.name}", O = "Acme"}')
    handed = await core.devices.add("default", "sensor", actor=ME)
    issued = await ask(core, Evidence(secret=handed.secret), request(x509.DNSName("a.cams.example.com")))
    device = Enrolled("sensor", handed.secret, KEY, issued.certificate, "")
    assert device.x509.subject.rfc4514_string() == "O=Acme,CN=sensor"
    for names in ((), (x509.DNSName("a.cams.example.com"),)):
        again = await ask(core, device.evidence, _renewing(device, *names), operation=Operation.REENROLL)
        renewed = x509.load_der_x509_certificate(again.certificate)
        assert renewed.subject == device.x509.subject
        san = renewed.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        assert san.get_values_for_type(x509.DNSName) == ["a.cams.example.com"]
        device = Enrolled("sensor", handed.secret, KEY, again.certificate, "")
    other = _renewing(device, x509.DNSName("b.cams.example.com"))
    assert await code_of(core, device.evidence, other, operation=Operation.REENROLL) == "renewal_san_mismatch"


async def test_a_profile_says_all_that_its_certificates_say(core: Core) -> None:
    value = base64.b64encode(b"\x0c\x02hi").decode()
    await _with_profile(
        core,
        'subject = {CN = "{device.name}", O = "Acme", OU = ["a", "b"], UID = "{device.owner?}"}\n'
        'names = ["{device.names}", "DNS:{device.name}.{realm}.example.com", "email:{device.name}@example.com"]\n'
        'keys = ["p-256"]\nkey_usage = ["digitalSignature", "keyAgreement", "keyEncipherment"]\n'
        'extended_key_usages = ["clientAuth", "1.3.6.1.4.1.99999.5"]\n'
        'policies = [{oid = "1.3.6.1.4.1.99999.6", cps = "https://example.com/cps"}]\n'
        f'extensions = [{{oid = "1.3.6.1.4.1.99999.7", value = "{value}"}}]',
    )
    device = await enrolled(core, sans=["DNS:own.example.com"])
    certificate = device.x509
    assert certificate.subject.rfc4514_string() == "OU=b,OU=a,O=Acme,CN=sensor"
    found = certificate.extensions
    names = found.get_extension_for_class(x509.SubjectAlternativeName).value
    assert [name.value for name in names] == ["own.example.com", "sensor.default.example.com", "sensor@example.com"]
    usage = found.get_extension_for_class(x509.KeyUsage).value
    assert (usage.digital_signature, usage.key_agreement, usage.key_encipherment) == (True, True, False)
    usages = found.get_extension_for_class(x509.ExtendedKeyUsage).value
    assert [oid.dotted_string for oid in usages] == ["1.3.6.1.5.5.7.3.2", "1.3.6.1.4.1.99999.5"]
    (policy,) = found.get_extension_for_class(x509.CertificatePolicies).value
    assert (policy.policy_identifier.dotted_string, policy.policy_qualifiers) == (
        "1.3.6.1.4.1.99999.6",
        ["https://example.com/cps"],
    )
    own = found.get_extension_for_oid(x509.ObjectIdentifier("1.3.6.1.4.1.99999.7"))
    assert own.value.public_bytes() == b"\x0c\x02hi"


@pytest.mark.parametrize(
    ("keys", "code"), [(("rsa",), "key_not_allowed"), (("p-384",), "key_not_allowed"), (("p-256",), None)]
)
def test_a_key_of_another_kind_than_the_profile_allows_is_refused(keys: tuple[str, ...], code: str | None) -> None:
    assert codes(examined(ProfileDocument(keys=keys), request())) == ([code] if code else [])


@pytest.mark.parametrize(
    ("subject", "owner", "code"),
    [
        ({"C": "{device.owner}"}, "Ann", "profile_value_invalid"),
        ({"C": "{device.owner}"}, "DE", None),
        ({"serialNumber": "{device.owner}"}, "\u00e4", "profile_value_invalid"),
        ({"O": "{device.owner}"}, "a\nb", "profile_value_invalid"),
        ({"O": "{device.owner}"}, "x" * 65, "profile_value_invalid"),
        ({"O": "{device.owner}"}, None, "profile_value_missing"),
        ({"O": "{device.owner?}", "CN": "{device.name}"}, None, None),
        ({"O": "{device.owner?}"}, None, None),
    ],
)
def test_a_value_that_does_not_fit_its_field_is_refused(
    subject: dict[str, str], owner: str | None, code: str | None
) -> None:
    profile = ProfileDocument(subject=dict(subject))
    applicant = Applicant(dataclasses.replace(DEVICE, owner=owner), Means.SECRET)
    found = examine(profile, realm_of(profile), applicant, request(), Operation.ENROLL)
    assert codes(found) == ([code] if code else [])


def test_a_certificate_that_would_name_nothing_is_refused() -> None:
    profile = ProfileDocument(subject={"O": "{device.owner?}"}, names=("{device.names}",))
    applicant = Applicant(dataclasses.replace(DEVICE, owner=None, names=()), Means.SECRET)
    found = examine(profile, realm_of(profile), applicant, request(), Operation.ENROLL)
    with pytest.raises(Refusal) as caught:
        found.require()
    assert caught.value.code == "profile_value_missing"


async def test_what_a_device_once_proved_stays_proven_in_its_renewals(core: Core) -> None:
    """A renewal shows no IDevID: what it proved must stand in the certificate that is renewed."""
    profile = ProfileDocument(subject={"CN": "{device.name}", "serialNumber": "{idevid.serial_number}"})
    own = await enrolled(core)  # a certificate without any serialNumber
    resolved = await core.realms.resolve("est", None, None)
    requester = await core.registration.authenticate(resolved, own.evidence, request())
    applicant = Applicant(DEVICE, Means.OWN_CERTIFICATE, requester.certificate)
    found = examine(profile, realm_of(profile), applicant, request(), Operation.RENEW)
    assert codes(found) == ["profile_value_missing"]


def test_a_secret_that_stands_in_a_name_is_not_issued_and_not_told() -> None:
    secret = "kmnpqrstuvwxyz23456789abcd"
    profile = ProfileDocument(subject={"CN": "{device.name}", "O": "{csr:*}"}, names=("{csr:DNS:*.example.com}",))
    subject = [(NameOID.COMMON_NAME, "sensor"), (NameOID.ORGANIZATION_NAME, f"x{secret}")]
    csr = request(x509.DNSName(f"{secret}.example.com"), subject=subject)
    for shown in (secret, None):  # the twin: a secret that nobody sent
        applicant = Applicant(DEVICE, Means.SECRET, secret=shown)
        found = examine(profile, realm_of(profile), applicant, csr, Operation.ENROLL)
        assert codes(found) == (["csr_value_not_allowed"] * 2 if shown else [])
        told = str([(each.value, each.refusal and each.refusal.detail) for each in found.fields])
        assert (secret in told) is (shown is None)
