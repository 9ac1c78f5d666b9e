"""A realm's document: what is refused, and that nothing is lost between TOML and the store."""

import json

import msgspec
import pytest

from ca_core.core import Core
from ca_core.errors import OperatorError
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
from ca_core.registration.values import EXTENDED_KEY_USAGES, parse_extended_key_usage
from tests.helpers import factory
from tests.helpers.admission import admit_by, outcome_of
from tests.helpers.core import ME, Installation, csr_of, new_key
from tests.helpers.document import MINIMAL, message_of

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
    assert told in message_of(text)


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
    assert told in message_of(text)


def test_faults_of_every_sort_are_told_at_once() -> None:
    told = message_of("""
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
    assert told in message_of(_edited(old, new))


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
    message = message_of(text)
    assert [case for case in cases if FAULTS[case][2] not in message] == []


def test_a_realm_without_profile_and_a_profile_without_purpose_are_refused() -> None:
    assert "profiles: a realm needs at least one profile" in message_of('name = "line"')
    assert "empty would mean any purpose" in message_of(MINIMAL + "extended_key_usages = []")


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
    assert told in message_of(MINIMAL + f"keys = {keys}")


def test_a_profile_for_scep_must_allow_what_scep_carries() -> None:
    text = 'name = "line"\n[profiles.scep]\nissuer = "rsa"\nkeys = ["ed25519", "ml-dsa-65"]\n'
    message = "scep.profile: 'scep' allows no RSA keys, and SCEP carries no others (add rsa to its keys)"
    est = '[est]\nprofile = "scep"\n'
    assert message in message_of(text + est)
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
    assert told in message_of(f'name = "line"\n{text}\n')


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
    told = message_of(f'name = "line"\n{profiles}\n').splitlines()
    assert len(told) == 102
    assert told[-1] == "and more"


@pytest.mark.parametrize(
    ("key", "least", "most"),
    [("ceiling", 0, 10**9), ("pending_most", 1, 10**4), ("pending_per_source", 1, 10**4)],
)
def test_a_number_has_bounds(key: str, least: int, most: int) -> None:
    for value in (least - 1, most + 1, 1 << 63, 10**22):
        told = f"admission.{key}: expected a whole number of {least} to {most}"
        assert message_of(f"{MINIMAL}[admission]\n{key} = {value}\n") == told
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
        assert message_of(text).startswith("profiles.device.names[0]: no host name is so long")


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
