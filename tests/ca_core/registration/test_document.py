"""A realm's document: what is refused, and that nothing is lost between TOML and the store."""

import base64
import hashlib
import json
import tomllib
from typing import Any

import msgspec
import pytest
from cryptography import x509

from ca_core.core import Core
from ca_core.errors import NotFound, OperatorError
from ca_core.model import Evidence
from ca_core.registration.document import (
    EstDocument,
    RealmDocument,
    ScepDocument,
    TrustDocument,
    default_document,
    from_json,
    parse_toml,
    to_json,
    to_toml,
)
from ca_core.registration.profile_document import ProfileDocument
from ca_core.registration.realm import Realm
from ca_core.registration.values import EXTENDED_KEY_USAGES, parse_extended_key_usage
from tests.helpers import factory
from tests.helpers.admission import admit_by, outcome_of
from tests.helpers.bad_csr import rsa_key
from tests.helpers.core import ME, OTHER_HOST, Installation, csr_of, edit_realm, new_key
from tests.helpers.weak_rsa import roca_key

ROOT = factory.root()
PEM = ROOT.pem.decode()
FULL = RealmDocument(
    name="line",
    hosts=("a.example", "b.example"),
    public_url="http://pki.example:8080",
    ask_client_certificate=False,
    retry_window="2h",
    secret_lifetime="30d",
    est=EstDocument(profile="gold", channel_binding="required"),
    scep=ScepDocument(
        enabled=False, profile="gold", answer_chain=True, read_des=True, allow_3des=False, allow_sha1=False
    ),
    profiles={
        "gold": ProfileDocument(
            issuer="rsa", validity="1d", extended_key_usages=("clientAuth", "ipsecIKE"), rekey="required"
        ),
        "iron": ProfileDocument(),
    },
    trust=(TrustDocument(name='A "quoted" name', pem=PEM), TrustDocument(name="b", for_="tls", pem=PEM)),
)
MINIMAL = 'name = "line"\n[profiles.device]\n'


def _message(text: str) -> str:
    with pytest.raises(OperatorError) as caught:
        parse_toml(text)
    assert caught.value.code == "document_invalid"
    assert caught.value.remedy
    return caught.value.message


@pytest.mark.parametrize("document", [FULL, default_document("line", (), None)], ids=["full", "default"])
def test_a_document_survives_toml_and_json(document: RealmDocument) -> None:
    assert parse_toml(to_toml(document)) == document
    assert from_json(to_json(document)) == document


def test_every_field_is_in_the_round_trip_with_a_value_that_is_not_its_default() -> None:
    default = RealmDocument(name="")
    shown = msgspec.to_builtins(FULL)
    same = [field for field, value in msgspec.to_builtins(default).items() if value == shown[field]]
    assert same == ["admission"]  # two booleans and a word, below
    text = 'admission = {secret = false, idevid = "off", own_certificate = false}\n' + MINIMAL
    admission = parse_toml(text).admission
    assert (admission.secret, admission.idevid, admission.own_certificate) == (False, "off", False)


def test_what_a_document_leaves_out_has_its_default() -> None:
    document = parse_toml(MINIMAL)
    assert document.hosts == ()
    assert document.public_url is None
    assert document.retry_window == "24h"
    assert document.profiles == {"device": ProfileDocument()}


@pytest.mark.parametrize(
    ("text", "told"),
    [
        pytest.param("host = ['a']\n" + MINIMAL, "host: unknown key (did you mean 'hosts'?)", id="top"),
        pytest.param(
            MINIMAL + "validty = '1d'", "profiles.device.validty: unknown key (did you mean 'validity'?)", id="profile"
        ),
        pytest.param(
            MINIMAL + "[admission]\nsecrets = true",
            "admission.secrets: unknown key (did you mean 'secret'?)",
            id="admission",
        ),
        pytest.param(
            MINIMAL + "[[trust]]\nname='a'\npem=''\n[[trust]]\nnane='a'\npem=''",
            "trust[1].nane: unknown key (did you mean 'name'?)",
            id="second-of-a-list",
        ),
        pytest.param(MINIMAL + "[est]\nqqqq = 1", "est.qqqq: unknown key (known are: ", id="nothing-near"),
        pytest.param(MINIMAL + "[trust]\nname = 'a'", "trust", id="table-for-a-list"),
    ],
)
def test_an_unknown_key_is_told_with_its_path_and_the_nearest_known_one(text: str, told: str) -> None:
    assert told in _message(text)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        pytest.param("name = 1\n[profiles.device]", "name: expected 'str', got 'int'", id="name"),
        pytest.param("hosts = 'a'\n" + MINIMAL, "hosts: expected 'array', got 'str'", id="hosts"),
        pytest.param(
            "ask_client_certificate = 'yes'\n" + MINIMAL,
            "ask_client_certificate: expected 'bool', got 'str'",
            id="boolean",
        ),
        pytest.param(MINIMAL + "rekey = 'always'", "profiles.device.rekey: invalid enum value 'always'", id="word"),
        pytest.param(
            MINIMAL + "[admission]\nidevid = 'anybody'", "admission.idevid: invalid enum value 'anybody'", id="idevid"
        ),
        pytest.param("[profiles.device]", "name: is missing", id="no-name"),
        pytest.param(MINIMAL + "[[trust]]\nname = 'a'", "trust[0].pem: is missing", id="nothing-in-it"),
        pytest.param("profiles = 1\nname = 'a'", "profiles: expected 'object', got 'int'", id="table"),
        pytest.param(
            MINIMAL + "keys = ['rsa', 1]", "profiles.device.keys[1]: expected 'str', got 'int'", id="in-a-list"
        ),
        pytest.param("name = ", "not TOML", id="not-toml"),
        pytest.param(MINIMAL + MINIMAL, "not TOML", id="key-twice"),
    ],
)
def test_a_value_of_the_wrong_kind_is_told_with_its_path(text: str, told: str) -> None:
    assert told in _message(text)


def test_faults_of_every_sort_are_told_at_once() -> None:
    told = _message("""
        colour = "red"
        hosts = ["ok.example.com", "not a host"]
        [admission]
        ways = ["sceret", "open"]
        idevid = 7
        [profiles.simpleenroll]
        issuer = "nobody"
        key_usage = ["keyCertSign"]
        extended_key_usages = ["OCSPSigning"]
        validty = "90d"
        keys = ["rsa", 1]
        [[profiles.simpleenroll.extensions]]
        oid = "2.5.29.19"
        type = "der"
        value = "30030101FF"
        [[trust]]
        name = "a"
        pem = "nothing"
    """)
    for path in (
        "colour: unknown key",
        "name: is missing",
        "hosts[1]: ",
        "admission.ways[0]: ",
        "admission.ways: 'open' gives a certificate to anyone",
        "admission.idevid: expected 'str', got 'int'",
        "profiles.simpleenroll: ",
        "profiles.simpleenroll.issuer: ",
        "profiles.simpleenroll.key_usage: ",
        "profiles.simpleenroll.extended_key_usages: ",
        "profiles.simpleenroll.validty: unknown key (did you mean 'validity'?)",
        "profiles.simpleenroll.keys[1]: expected 'str', got 'int'",
        "profiles.simpleenroll.extensions[0]: ",
        "trust[0].pem: ",
    ):
        assert path in told


def _edited(old: str, new: str) -> str:
    text = to_toml(FULL)
    assert old in text
    return text.replace(old, new, 1)


FAULTS = {
    "name": ('name = "line"', 'name = "LINE"', "name: 'LINE' can't be the name"),
    "reserved-name": ('name = "line"', 'name = "cacerts"', "name: 'cacerts' is a word"),
    "host": ('"a.example"', '"*.example"', "hosts[0]: '*.example' is not a host name"),
    "address-as-host": ('"b.example"', '"192.0.2.1"', "hosts[1]: "),
    "host-twice": ('"b.example"', '"A.example"', "hosts: 'a.example' stands twice"),
    "localhost": ('"b.example"', '"localhost"', "hosts: localhost is the shared host"),
    "https-url": ("http://pki", "https://pki", "public_url: "),
    "url-with-path": ("pki.example:8080", "pki.example:8080/x", "public_url: "),
    "url-with-newline": ("pki.example:8080", "pki.example\\nx", "public_url: "),
    "url-with-user": ("pki.example:8080", "a@pki.example", "public_url: "),
    "url-empty": ("http://pki.example:8080", "http://", "public_url: "),
    "retry-window": ('"2h"', '"2 hours"', "retry_window: '2 hours' is not a duration"),
    "retry-window-beyond-all-time": ('"2h"', '"999999999d"', "retry_window: 999999999d is too long"),
    "secret-lifetime": ('"30d"', '"0d"', "secret_lifetime: "),
    "validity": ('"1d"', '"forever"', "profiles.gold.validity: "),
    "validity-beyond-all-time": ('"1d"', '"999999999d"', "profiles.gold.validity: "),
    "issuer": ('"rsa"', '"dsa"', "profiles.gold.issuer: no issuer family 'dsa' (use one of: ec, rsa)"),
    "usage": ('"ipsecIKE"', '"anyExtendedKeyUsage"', "profiles.gold.extended_key_usages: 'anyExtendedKeyUsage'"),
    "ocsp-signing": ('"ipsecIKE"', '"OCSPSigning"', "'OCSPSigning' is given to no device"),
    "profile-name": ("[profiles.iron]", "[profiles.Iron]", "profiles.Iron: 'Iron' can't be the name of a profile"),
    "reserved-profile": ("[profiles.iron]", "[profiles.simpleenroll]", "profiles.simpleenroll: "),
    "scep-profile": (
        'enabled = false\nprofile = "gold"',
        'profile = "lead"',
        "scep.profile: no profile 'lead' (have: gold, iron)",
    ),
    "scep-issuer": (
        'enabled = false\nprofile = "gold"',
        'profile = "iron"',
        "scep.profile: 'iron' is not under the rsa issuer, and stock SCEP clients know nothing but RSA",
    ),
    "est-profile": ('profile = "gold"', 'profile = "lead"', "est.profile: no profile 'lead' (have: gold, iron)"),
    "trust-name-empty": ('name = "b"', 'name = ""', "trust[1].name: "),
    "trust-name-long": ('name = "b"', f'name = "{"b" * 65}"', "trust[1].name: "),
    "trust-name-escape": ('name = "b"', 'name = "b\\u001b"', "trust[1].name: 'b\\x1b'"),
    "trust-name-twice": ('name = "b"', "name = 'A \"quoted\" name'", "trust[1].name: "),
    "same-anchor-twice": ('for = "tls"', 'for = "idevid"', "trust[1].pem: the certificate stands twice"),
}


@pytest.mark.parametrize("case", FAULTS)
def test_a_value_that_makes_no_sense_is_told_with_its_path(case: str) -> None:
    old, new, told = FAULTS[case]
    assert told in _message(_edited(old, new))


def test_all_faults_are_told_at_once() -> None:
    text = to_toml(FULL)
    cases = [
        "name",
        "host",
        "https-url",
        "retry-window",
        "validity",
        "issuer",
        "usage",
        "est-profile",
        "trust-name-empty",
    ]
    for case in cases:
        text = text.replace(*FAULTS[case][:2], 1)
    message = _message(text)
    assert [case for case in cases if FAULTS[case][2] not in message] == []


def test_a_realm_without_profile_and_a_profile_without_purpose_are_refused() -> None:
    assert "profiles: a realm needs at least one profile" in _message('name = "line"')
    assert "empty would mean any purpose" in _message(MINIMAL + "extended_key_usages = []")


def test_a_profile_allows_the_keys_of_today_unless_it_says_so() -> None:
    today, modern = ProfileDocument(), ProfileDocument(keys=("rsa-3072", "ed25519", "ml-dsa-65"))
    kinds = ("rsa-2048", "rsa-2056", "rsa-3072", "rsa-4096", "p-256", "p-384", "p-521", "ed25519", "ml-dsa-65")
    assert [kind for kind in kinds if not today.allows_key(kind)] == ["ed25519", "ml-dsa-65"]
    assert [kind for kind in kinds if modern.allows_key(kind)] == ["rsa-3072", "ed25519", "ml-dsa-65"]


@pytest.mark.parametrize(
    ("keys", "told"),
    [
        pytest.param("[]", "profiles.device.keys: empty would refuse every key (use p-256)", id="empty"),
        pytest.param('["rsa-1024"]', "profiles.device.keys: no kind of key 'rsa-1024' (use: rsa, ", id="small"),
        pytest.param('["P-256"]', "profiles.device.keys: no kind of key 'P-256'", id="case"),
        pytest.param('["x\\u001b"]', "profiles.device.keys: no kind of key 'x\\x1b'", id="escape"),
    ],
)
def test_a_kind_of_key_that_nobody_can_have_is_told_with_its_path(keys: str, told: str) -> None:
    assert told in _message(MINIMAL + f"keys = {keys}")


def test_a_profile_for_scep_must_allow_what_scep_carries() -> None:
    text = 'name = "line"\n[profiles.scep]\nissuer = "rsa"\nkeys = ["ed25519", "ml-dsa-65"]\n'
    message = "scep.profile: 'scep' allows no RSA keys, and SCEP carries no others (add rsa to its keys)"
    est = '[est]\nprofile = "scep"\n'
    assert message in _message(text + est)
    assert not parse_toml(text + est + "[scep]\nenabled = false\n").speaks_scep
    assert parse_toml(text.replace('"ed25519"', '"rsa-3072"') + est).speaks_scep


def test_hosts_become_lower_case() -> None:
    assert parse_toml('hosts = ["A.Example."]\n' + MINIMAL).hosts == ("a.example",)


def test_no_profile_can_give_a_purpose_that_endangers_the_ca() -> None:
    given = {oid.dotted_string for oid in EXTENDED_KEY_USAGES.values()}
    # anyExtendedKeyUsage, OCSPSigning, timeStamping, codeSigning, cmcRA
    dangerous = {"2.5.29.37.0", "1.3.6.1.5.5.7.3.9", "1.3.6.1.5.5.7.3.8", "1.3.6.1.5.5.7.3.3", "1.3.6.1.5.5.7.3.28"}
    assert not given & dangerous
    for dotted in dangerous:
        with pytest.raises(OperatorError) as caught:
            parse_extended_key_usage(dotted)
        assert caught.value.code == "usage_refused"


# --- anchors ---------------------------------------------------------------------------------------------------------


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
        assert "trust[0].pem: " in _message(document)
        assert told in _message(document)


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


# --- versions --------------------------------------------------------------------------------------------------------


async def test_export_and_apply_are_each_others_inverse(core: Core, installation: Installation) -> None:
    await core.trust.add("other", ROOT.pem, actor=ME)
    before = await core.realms.show("other")
    text = await core.realms.export("other")
    after = await core.realms.apply(text, actor=ME)
    assert after.version == before.version == 2, "no news, no version"
    edited = text.replace('retry_window = "24h"', 'retry_window = "12h"')
    assert (await core.realms.apply(edited, actor=ME)).version == 3
    assert await core.realms.export("other") == edited
    kept = installation.sql("SELECT version, actor FROM realm_version WHERE realm_id = ? ORDER BY version", after.id)
    assert kept == [(1, ME), (2, ME), (3, ME)]


async def test_a_new_version_is_an_event_with_its_digest(core: Core, installation: Installation) -> None:
    await edit_realm(core, "default", 'retry_window = "24h"', 'retry_window = "1h"')
    (event,) = installation.events("realm.applied")
    ((document,),) = installation.sql("SELECT document FROM realm_version WHERE realm_id = 1 AND version = 2")
    assert event == {"version": 2, "digest": hashlib.sha256(document.encode()).hexdigest()}
    added = installation.events("realm.added")
    ((first,),) = installation.sql("SELECT document FROM realm_version WHERE realm_id = 1 AND version = 1")
    assert added[0]["digest"] == hashlib.sha256(first.encode()).hexdigest()


async def test_every_node_takes_a_new_version_at_once(core: Core, second: Core) -> None:
    assert (await second.realms.current())["default"].document.retry_window == "24h"
    await edit_realm(core, "default", 'retry_window = "24h"', 'retry_window = "1h"')
    assert (await second.realms.current())["default"].document.retry_window == "1h"


async def test_of_two_changes_at_once_the_second_is_refused(core: Core, second: Core) -> None:
    stale = await second.realms.get("default")
    await edit_realm(core, "default", 'retry_window = "24h"', 'retry_window = "1h"')
    edited = msgspec.structs.replace(stale.document, retry_window="2h")
    with pytest.raises(OperatorError) as caught:
        await second.realms.replace(stale, edited, "realm.applied", {}, ME)
    assert caught.value.code == "realm_changed"
    assert (await core.realms.get("default")).document.retry_window == "1h"
    fresh = await second.realms.get("default")
    assert (await second.realms.replace(fresh, edited, "realm.applied", {}, ME)).version == 3


@pytest.mark.parametrize("host", [OTHER_HOST, OTHER_HOST.upper(), OTHER_HOST + "."])
async def test_a_host_belongs_to_one_realm(core: Core, host: str) -> None:
    with pytest.raises(OperatorError) as caught:
        await edit_realm(core, "default", "hosts = []", f'hosts = ["{host}"]')
    assert caught.value.code == "host_taken"
    with pytest.raises(OperatorError) as caught:
        await core.realms.add("third", hosts=[host], actor=ME)
    assert caught.value.code == "host_taken"
    await edit_realm(core, "other", OTHER_HOST, "moved.example.com")
    await edit_realm(core, "default", "hosts = []", f'hosts = ["{host}"]')
    assert (await core.realms.show("default")).hosts == [OTHER_HOST]


async def test_two_realms_that_take_one_host_at_once_do_not_both_get_it(core: Core, second: Core) -> None:
    one, two = await core.realms.get("default"), await second.realms.get("other")
    looked = await second.realms.current()

    async def stale() -> dict[str, Realm]:
        return looked

    fresh = second.realms.current
    taken = ("new.example.com",)
    await core.realms.replace(one, msgspec.structs.replace(one.document, hosts=taken), "realm.applied", {}, ME)
    second.realms.current = stale  # type: ignore[method-assign]  # as if the change came just after the look
    edited = msgspec.structs.replace(two.document, hosts=taken)
    with pytest.raises(OperatorError) as caught:
        await second.realms.replace(two, edited, "realm.applied", {}, ME)
    assert caught.value.code == "realm_changed"
    second.realms.current = fresh  # type: ignore[method-assign]  # the twins
    with pytest.raises(OperatorError) as caught:
        await second.realms.replace(two, edited, "realm.applied", {}, ME)
    assert caught.value.code == "host_taken"
    assert (await second.realms.replace(two, two.document, "realm.applied", {}, ME)).version == 2


@pytest.mark.parametrize(
    ("name", "options", "code"),
    [
        ("default", {}, "realm_exists"),
        ("Third", {}, "name_invalid"),
        ("csrattrs", {}, "name_reserved"),
        ("third", {"hosts": ["*"]}, "host_invalid"),
        ("third", {"public_url": "ftp://x"}, "document_invalid"),
        ("third", {"keys": {"rsa": "p-256"}}, "key_kind_invalid"),
        ("third", {"keys": {"root": "rsa-1024"}}, "key_kind_invalid"),
        ("third", {"keys": {"est": "p-256"}}, "key_kind_invalid"),
    ],
)
async def test_a_realm_that_can_not_be_is_not_added(
    core: Core, installation: Installation, name: str, options: dict[str, Any], code: str
) -> None:
    with pytest.raises(OperatorError) as caught:
        await core.realms.add(name, actor=ME, **options)
    assert caught.value.code == code
    assert installation.sql("SELECT count(*) FROM realm") == [(2,)]
    assert installation.sql("SELECT count(*) FROM issuer") == [(6,)]


async def test_applying_a_document_of_no_realm_is_refused(core: Core) -> None:
    text = (await core.realms.export("default")).replace('name = "default"', 'name = "nowhere"')
    with pytest.raises(OperatorError) as caught:
        await core.realms.apply(text, actor=ME)
    assert caught.value.code == "realm_unknown"


# --- finding a realm -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("label", "host", "realm", "profile"),
    [
        (None, None, "default", None),
        (None, "anything.example", "default", None),
        ("default", None, "default", None),
        ("default.scep", None, "default", "scep"),
        ("other", None, "other", None),
        ("other.device", "localhost", "other", "device"),
        (None, OTHER_HOST, "other", None),
        ("other", OTHER_HOST, "other", None),
    ],
)
async def test_a_label_and_a_host_name_a_realm(
    core: Core, label: str | None, host: str | None, realm: str, profile: str | None
) -> None:
    resolved = await core.realms.resolve("est", label, host)
    assert (resolved.realm.name, resolved.profile) == (realm, profile)


@pytest.mark.parametrize(
    ("protocol", "label", "host", "code"),
    [
        pytest.param("est", "nowhere", None, "realm_unknown", id="unknown-realm"),
        pytest.param("est", "default.gold", None, "realm_unknown", id="unknown-profile"),
        pytest.param("est", "", None, "realm_unknown", id="empty-label"),
        pytest.param("est", "DEFAULT", None, "realm_unknown", id="upper-case"),
        pytest.param("est", "default.", None, "realm_unknown", id="empty-profile"),
        pytest.param("est", "default ", None, "realm_unknown", id="space"),
        pytest.param("est", "../other", None, "realm_unknown", id="path"),
        pytest.param("est", "d\u0435fault", None, "realm_unknown", id="cyrillic"),
        pytest.param("est", "default", OTHER_HOST, "realm_not_here", id="another-realm-on-a-realm's-host"),
        pytest.param("est", "nowhere", OTHER_HOST, "realm_unknown", id="unknown-on-a-realm's-host"),
        pytest.param("cmp", None, None, "protocol_not_served", id="a-protocol-that-is-not-spoken"),
    ],
)
async def test_nothing_falls_back_to_another_realm(
    core: Core, protocol: str, label: str | None, host: str | None, code: str
) -> None:
    with pytest.raises(NotFound) as caught:
        await core.realms.resolve(protocol, label, host)
    assert caught.value.code == code


async def test_a_retired_realm_serves_nobody(core: Core, installation: Installation) -> None:
    resolved = await core.realms.resolve("est", "other", None)
    installation.sql("UPDATE realm SET state = 'retired', version = 2 WHERE name = 'other'")
    installation.sql(
        "INSERT INTO realm_version"
        " SELECT realm_id, 2, document, created_at, actor FROM realm_version WHERE realm_id = 2"
    )
    with pytest.raises(NotFound) as unknown:
        await core.realms.resolve("est", "nowhere", None)
    for asked in (core.realms.resolve("est", "other", None), core.realms.again(resolved)):
        with pytest.raises(NotFound) as caught:
            await asked
        assert caught.value.code == "realm_retired"
        assert "enrolld realm resume" in caught.value.remedy
        assert caught.value.message == unknown.value.message, "the peer is not told that there was one"
    resolved = await core.realms.resolve("est", None, None)
    assert (await core.realms.again(resolved)).realm is resolved.realm


# --- bounds ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "told"),
    [
        pytest.param(f"hosts = {'[' * 5000}{']' * 5000}", "line 2: more than 16 brackets", id="arrays"),
        pytest.param(f"est = {'{a = ' * 5000}1{'}' * 5000}", "line 2: more than 16 brackets", id="tables"),
        pytest.param(f"{'.'.join('a' * 20_000)} = 1", "line 2: more than 16 dots in one key", id="dots"),
        pytest.param(f"[{'.'.join('a' * 20_000)}]", "line 2: more than 16 dots in one key", id="dots-of-a-header"),
        pytest.param(f"x = {'9' * 5000}", "line 2: a number of more than 100 digits", id="digits"),
        pytest.param("#" * 600_000, "the document: it is longer than 512 KiB", id="length"),
        pytest.param(
            f"hosts = {[f'h{number}.example' for number in range(25_000)]}",
            "hosts: more than 100 entries",
            id="hosts",
        ),
        pytest.param(
            "\n".join(f"[profiles.p{number}]" for number in range(101)),
            "profiles: more than 100 entries",
            id="profiles",
        ),
        pytest.param('[[trust]]\nname = "a"\npem = ""\n' * 101, "trust: more than 100 entries", id="trust"),
        pytest.param(
            "\n".join(f"a{number} = 1" for number in range(20_000)),
            "the document: more than 100 keys",
            id="unknown-keys",
        ),
        pytest.param(f"{'k' * 200_000} = 1", f"{'k' * 80}: unknown key", id="a-long-key"),
    ],
)
def test_what_no_realm_needs_is_told_and_not_read(text: str, told: str) -> None:
    assert told in _message(f'name = "line"\n{text}\n')


def test_brackets_dots_and_digits_in_strings_and_comments_are_text() -> None:
    inside = "[" * 30 + ".a" * 30 + "1" * 200
    hosts = [f"h{number}.example" for number in range(100)]
    texts = [f"'{inside}\"'", f'"\\"{inside}"', f'"""\n{inside}\\"""\', {inside} """', f"'''{inside}\"\n'''"]
    text = f'name = "line"\nhosts = {hosts}  # {inside} "\n[profiles.device]\nlint_allow = [{", ".join(texts)}]\n'
    document = parse_toml(text)
    assert len(document.hosts) == 100
    assert len(document.profiles["device"].lint_allow) == 4


def test_no_more_faults_are_told_than_somebody_mends() -> None:
    profiles = "\n".join(f"[profiles.p{number}]\nzzz = 1\nyyy = 1" for number in range(100))
    told = _message(f'name = "line"\n{profiles}\n').splitlines()
    assert len(told) == 102
    assert told[-1] == "and more"


@pytest.mark.parametrize(
    ("key", "least", "most"),
    [("ceiling", 0, 10**9), ("pending_most", 1, 10**4), ("pending_per_source", 1, 10**4)],
)
def test_a_number_has_bounds(key: str, least: int, most: int) -> None:
    for value in (least - 1, most + 1, 1 << 63, 10**22):
        told = f"admission.{key}: expected a whole number of {least} to {most}"
        assert _message(f"{MINIMAL}[admission]\n{key} = {value}\n") == told
    for value in (least, most):
        assert getattr(parse_toml(f"{MINIMAL}[admission]\n{key} = {value}\n").admission, key) == value


@pytest.mark.parametrize("ways", [("approval",), ("secret",)], ids=["waits", "counted"])
async def test_numbers_that_a_store_kept_of_old_count_as_the_largest(
    core: Core, installation: Installation, ways: tuple[str, ...]
) -> None:
    secret = (await core.devices.add("default", "sensor", actor=ME)).secret
    await admit_by(core, *ways, ceiling=10**9, pending_most=10**4, pending_per_source=10**4)
    [[document]] = installation.sql(
        "SELECT document FROM realm_version WHERE realm_id = 1 ORDER BY version DESC LIMIT 1"
    )
    old = json.loads(document)
    old["admission"] |= dict.fromkeys(("ceiling", "pending_most", "pending_per_source"), 1 << 63)
    installation.sql(
        "UPDATE realm_version SET document = ?, created_at = created_at + 1 WHERE realm_id = 1", json.dumps(old)
    )
    evidence = Evidence(secret=secret) if ways == ("secret",) else Evidence()
    outcome = await outcome_of(core, evidence, csr_of(new_key()))
    assert outcome == ("issued" if ways == ("secret",) else "pending")


@pytest.mark.parametrize(
    ("pattern", "fits"),
    [
        (f"*.{'a' * 64}.example", False),
        (f"{'*a' * 32}.example", False),
        (f"*.{'a' * 63}.example", True),
    ],
    ids=["label", "stars", "twin"],
)
def test_a_pattern_that_no_host_name_matches_is_a_fault(pattern: str, *, fits: bool) -> None:
    text = f'{MINIMAL}names = ["{{csr:DNS:{pattern}}}"]\n'
    if fits:
        parse_toml(text)
    else:
        assert _message(text).startswith("profiles.device.names[0]: no host name is so long")


@pytest.mark.parametrize("oid", ["2.9999999999.1.1", "2.999.1.1", "1.3.9999999999.1"])
async def test_what_pkilint_cant_read_is_refused_with_its_profile(core: Core, oid: str) -> None:
    pytest.importorskip("pkilint")
    profile = f'[profiles.device]\nextensions = [{{oid = "{oid}", type = "utf8", value = "x"}}]\n'
    with pytest.raises(OperatorError) as caught:
        await core.realms.apply(f'name = "default"\nscep.enabled = false\n{profile}', actor=ME)
    assert caught.value.code == "profile_lint"
    assert "profiles.device: enrolld.unreadable: pkilint can't read" in caught.value.message
    await core.realms.apply(
        f'name = "default"\nscep.enabled = false\n{profile.replace(oid, "1.3.6.1.4.1.99999.1")}', actor=ME
    )
