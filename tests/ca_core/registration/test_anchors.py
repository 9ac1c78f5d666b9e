"""Trust anchors of a realm: only a CA certificate can be one, under a name that tells who it is."""

import base64
import tomllib

import msgspec
import pytest
from cryptography import x509

from ca_core.core import Core
from ca_core.errors import OperatorError
from ca_core.model import Evidence
from ca_core.registration.document import (
    RealmDocument,
    parse_toml,
    to_toml,
)
from tests.helpers import factory
from tests.helpers.admission import code_of_act
from tests.helpers.bad_csr import rsa_key
from tests.helpers.core import ME, Installation, code_of, csr_of, new_key
from tests.helpers.document import MINIMAL, message_of
from tests.helpers.weak_rsa import roca_key

ROOT = factory.root()
PEM = ROOT.pem.decode()


def _anchors() -> dict[str, tuple[bytes, str | None]]:
    sub = factory.sub_ca(ROOT)
    name = factory.subject("Some CA")
    usage = factory.key_usage
    leaf = factory.idevid(sub)
    return {
        "root": (ROOT.pem, None),
        "sub-ca": (sub.pem, None),
        "ca-without-key-usage": (factory.make(name, ca=True).pem, None),
        "expired-ca": (factory.make(name, ca=True, not_after=factory.START.replace(month=2)).pem, None),
        "leaf": (leaf.pem, "not a CA's"),
        "leaf-without-basic-constraints": (factory.make(name, ca=None).pem, "no basicConstraints"),
        "ca-that-may-not-certify": (factory.make(name, ca=True, usage=usage(sign=True)).pem, "may not sign"),
        "rsa-2048-root": (factory.make(name, ca=True, key=rsa_key()).pem, None),
        "rsa-1024-root": (factory.make(name, ca=True, key=rsa_key(1024)).pem, "has 1024 bits"),
        "roca-root": (factory.make(name, ca=True, key=roca_key()).pem, "(key_roca: whoever finds its private key"),
        "two-certificates": (ROOT.pem + sub.pem, "not one certificate"),
        "private-key": (b"-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n", "not one certificate"),
        "garbage": (b"hello", "not one certificate"),
        "der": (ROOT.der.hex().encode(), "not one certificate"),
        "broken-base64": (ROOT.pem.replace(b"MII", b"!!!"), "not one certificate"),
        "version-7": (_version_7(ROOT), "not one certificate"),
        "extension-twice": (_twice(ROOT), "not one certificate"),
    }


def _pem(der: bytes) -> bytes:
    return b"-----BEGIN CERTIFICATE-----\n" + base64.encodebytes(der) + b"-----END CERTIFICATE-----\n"


def _version_7(made: factory.Made) -> bytes:
    return _pem(made.der.replace(bytes.fromhex("a003020102"), bytes.fromhex("a003020107"), 1))


def _twice(made: factory.Made) -> bytes:
    return _pem(made.der.replace(bytes.fromhex("0603551d23"), bytes.fromhex("0603551d0e")))


ANCHORS = _anchors()


@pytest.mark.parametrize("case", ANCHORS)
def test_only_a_ca_certificate_can_be_an_anchor_in_a_document(case: str) -> None:
    pem, told = ANCHORS[case]
    text = tomllib.loads(MINIMAL) | {"trust": [{"name": "a", "pem": pem.decode()}]}
    document = to_toml(msgspec.convert(text, RealmDocument))
    if told is None:
        assert parse_toml(document).trust[0].certificate() == x509.load_pem_x509_certificate(pem)
    else:
        assert "trust[0].pem: " in message_of(document)
        assert told in message_of(document)


@pytest.mark.parametrize("case", ANCHORS)
async def test_only_a_ca_certificate_can_be_added_as_anchor(core: Core, case: str) -> None:
    pem, told = ANCHORS[case]
    before = await core.realms.show("default")
    if told is None:
        row = await core.trust.add("default", pem, actor=ME)
        assert [row] == await core.trust.list("default")
    else:
        with pytest.raises(OperatorError) as caught:
            await core.trust.add("default", pem, actor=ME)
        assert caught.value.code == "trust_invalid"
        assert await core.trust.list("default") == []
        assert await core.realms.show("default") == before


async def test_an_anchor_is_named_after_its_organization_or_as_told(core: Core, installation: Installation) -> None:
    assert (await core.trust.add("default", ROOT.pem, actor=ME)).name == "Acme Devices"
    nameless = factory.make(factory.subject("Only CN", organization=None), ca=True)
    assert (await core.trust.add("default", nameless.pem, actor=ME)).name == "Only CN"
    named = await core.trust.add("default", factory.root().pem, name="acme-2", purpose="tls", actor=ME)
    assert (named.name, named.for_) == ("acme-2", "tls")
    assert [row.name for row in await core.trust.list("default")] == ["Acme Devices", "Only CN", "acme-2"]
    assert await core.trust.list("other") == []
    assert [event["name"] for event in installation.events("trust.added")] == ["Acme Devices", "Only CN", "acme-2"]
    await core.trust.remove("default", "Acme Devices", actor=ME)
    assert [row.name for row in await core.trust.list("default")] == ["Only CN", "acme-2"]


@pytest.mark.parametrize(
    ("options", "code"),
    [
        pytest.param({}, "trust_exists", id="same-name"),
        pytest.param({"name": "second"}, "trust_exists", id="same-certificate-other-name"),
        pytest.param({"name": ""}, "trust_exists", id="empty-name-means-the-default"),
        pytest.param({"name": "x" * 65}, "trust_name", id="long-name"),
        pytest.param({"name": "a\nb"}, "trust_name", id="newline"),
        pytest.param({"purpose": "ocsp"}, "trust_purpose", id="purpose"),
    ],
)
async def test_an_anchor_with_a_name_or_purpose_that_does_not_fit_is_refused(
    core: Core, options: dict[str, str], code: str
) -> None:
    await core.trust.add("default", ROOT.pem, actor=ME)
    with pytest.raises(OperatorError) as caught:
        await core.trust.add("default", ROOT.pem, actor=ME, **options)
    assert caught.value.code == code
    with pytest.raises(OperatorError) as caught:
        await core.trust.remove("default", "no such", actor=ME)
    assert caught.value.code == "trust_unknown"


# --- names under which devices are registered ------------------------------------------------------------------------


async def test_a_ca_that_calls_itself_as_another_did_does_not_speak_for_its_devices_unasked(
    core: Core, installation: Installation
) -> None:
    await core.trust.add("default", ROOT.pem, actor=ME)
    for number in (1, 2, 3):
        await core.devices.add("default", f"sensor-{number}", serial_number=f"AC-{number}", actor=ME)
    await core.devices.retire("default", "sensor-3", actor=ME)
    assert [row.devices for row in await core.trust.list("default")] == [2]
    await core.trust.remove("default", "Acme Devices", actor=ME)
    lookalike = factory.root("Lookalike Root")
    as_sensor = Evidence(chain=factory.idevid(lookalike, "AC-1").chain)
    with pytest.raises(OperatorError) as caught:
        await core.trust.add("default", lookalike.pem, actor=ME)
    assert caught.value.code == "trust_name_used"
    assert caught.value.message.startswith("2 devices are registered in realm default under 'Acme Devices'")
    assert "--name 'Acme Devices' says that it is meant; another --name" in caught.value.remedy
    assert await code_of(core, as_sensor, csr_of(new_key(), "sensor-1")) == "certificate_unknown"
    # The twins: kept apart, or meant.
    assert (await core.trust.add("default", lookalike.pem, name="lookalike", actor=ME)).devices == 0
    assert await code_of(core, as_sensor, csr_of(new_key(), "sensor-1")) == "device_unknown"
    await core.trust.remove("default", "lookalike", actor=ME)
    assert (await core.trust.add("default", lookalike.pem, name="Acme Devices", actor=ME)).devices == 2
    assert await code_of(core, as_sensor, csr_of(new_key(), "sensor-1")) == "issued"
    assert [event["devices"] for event in installation.events("trust.added")] == [0, 0, 2]


@pytest.mark.parametrize(
    ("realm", "purpose", "retired", "code"),
    [
        pytest.param("default", "idevid", False, "trust_name_used", id="of-this-realm"),
        pytest.param("default", "idevid", True, "done", id="retired"),
        pytest.param("default", "tls", False, "done", id="for-tls"),
        pytest.param("other", "idevid", False, "done", id="of-another-realm"),
    ],
)
async def test_a_name_is_used_by_devices_that_it_could_speak_for(
    core: Core, realm: str, purpose: str, retired: bool, code: str
) -> None:
    await core.trust.add("default", ROOT.pem, actor=ME)
    await core.devices.add("default", "sensor", serial_number="AC-1", actor=ME)
    await core.trust.remove("default", "Acme Devices", actor=ME)
    if retired:
        await core.devices.retire("default", "sensor", actor=ME)
    assert await code_of_act(core.trust.add(realm, factory.root().pem, purpose=purpose, actor=ME)) == code
