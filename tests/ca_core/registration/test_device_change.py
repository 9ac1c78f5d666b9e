"""Changing what is recorded of a device: what holds from when on, what is refused, and what is told of it."""

import asyncio
import tomllib
from typing import Any

import pytest
import tomli_w
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.serialization import Encoding

from ca_core.core import Core
from ca_core.csr import ParsedCsr
from ca_core.csr_names import canonical_san
from ca_core.errors import OperatorError
from ca_core.model import Evidence, Operation
from ca_core.records.unit import Unit
from ca_core.registration.device_change import Facts
from ca_core.rows import DeviceChange
from tests.helpers import factory
from tests.helpers.admission import admit_by, outcome_of
from tests.helpers.core import ME, Enrolled, Installation, SetClock, ask, code_of, csr_of, enrolled, new_key

ROOT = factory.root()


@pytest.fixture
async def acme(core: Core) -> Core:
    await core.trust.add("default", ROOT.pem, name="acme", actor=ME)
    return core


async def edit_profiles(core: Core, **profiles: dict[str, object]) -> None:
    """Add profiles to the realm's, or to what is in one."""
    document = tomllib.loads(await core.realms.export("default"))
    for name, keys in profiles.items():
        document["profiles"][name] = document["profiles"].get(name, {}) | keys
    await core.realms.apply(tomli_w.dumps(document), actor=ME)


async def change(core: Core, name: str = "sensor", /, **facts: object) -> DeviceChange:
    return await core.devices.change("default", name, Facts(**facts), actor=ME)  # type: ignore[arg-type]  # of a table


async def refusal(core: Core, name: str = "sensor", /, **facts: object) -> str:
    with pytest.raises(OperatorError) as caught:
        await change(core, name, **facts)
    assert caught.value.remedy
    return caught.value.code


def names_in(certificate: bytes) -> tuple[str, ...]:
    try:
        found = x509.load_der_x509_certificate(certificate).extensions.get_extension_for_class(
            x509.SubjectAlternativeName
        )
    except x509.ExtensionNotFound:
        return ()
    return canonical_san(found.value)


# --- what it does ----------------------------------------------------------------------------------------------------


async def test_a_change_is_in_the_next_certificate_and_in_the_trail(core: Core, installation: Installation) -> None:
    device = await enrolled(core, sans=["DNS:old.example"], owner="line 7")
    assert names_in(device.certificate) == ("DNS:old.example",)
    done = await change(core, names=["DNS:NEW.example", "IP:10.0.0.1"], owner="line 8")
    assert (done.device.names, done.device.owner) == (["DNS:new.example", "IP:10.0.0.1"], "line 8")
    told = {"names": [["DNS:old.example"], ["DNS:new.example", "IP:10.0.0.1"]], "owner": ["line 7", "line 8"]}
    assert done.changed == told
    assert installation.events("device.changed") == [told]
    renewed = await ask(core, device.evidence, csr_of(new_key()))
    assert names_in(renewed.certificate) == ("DNS:new.example", "IP:10.0.0.1")
    history = await core.devices.history("default", "sensor")
    assert [act.act for act in history if act.act.startswith("device.")] == ["device.changed", "device.added"]
    assert (await core.audit.verify()).findings == []


async def test_what_is_not_named_stays_and_an_empty_text_takes_away(acme: Core) -> None:
    await edit_profiles(acme, other={"issuer": "ec"})
    await acme.devices.add("default", "sensor", serial_number="AC-1", owner="line 7", sans=["DNS:a.example"], actor=ME)
    row = (await change(acme, profile="other")).device
    assert (row.profile, row.owner, row.names, row.serial_number) == ("other", "line 7", ["DNS:a.example"], "AC-1")
    row = (await change(acme, profile="", owner="", names=[], serial_number="")).device
    assert (row.profile, row.owner, row.names) == (None, None, [])
    assert (row.serial_number, row.manufacturer) == (None, None)


async def test_what_is_so_already_is_no_act(core: Core, installation: Installation) -> None:
    await core.devices.add("default", "sensor", owner="line 7", sans=["DNS:b.example", "DNS:a.example"], actor=ME)
    done = await change(core, owner="line 7", names=["DNS:a.example", "DNS:b.example"])
    assert (done.changed, done.carried_by) == ({}, [])
    assert installation.events("device.changed") == []


async def test_certificates_that_carry_a_name_that_was_taken_away_are_told_and_hold(
    core: Core, clock: SetClock
) -> None:
    device = await enrolled(core, sans=["DNS:a.example", "DNS:b.example"])
    second = await ask(core, device.evidence, csr_of(new_key()))
    await core.certificates.revoke(format(second.serial, "x"), reason="superseded", actor=ME)
    assert (await change(core, names=["DNS:a.example", "DNS:b.example", "DNS:c.example"])).carried_by == []
    assert (await change(core, names=["DNS:a.example", "DNS:c.example"])).carried_by == [device.serial]
    assert (await core.certificates.find(device.serial)).status == "valid"
    clock.forward(days=365)  # it has ended
    assert (await change(core, names=[])).carried_by == []


async def test_a_renewal_that_repeats_a_name_that_was_taken_away_is_served_without_it(core: Core) -> None:
    """RFC 7030 4.2.2 has it repeat the names, also where a profile refuses what it does not give."""
    await edit_profiles(core, device={"others": "refuse"})
    key = new_key()
    handed = await core.devices.add("default", "sensor", sans=["DNS:a.example", "DNS:b.example"], actor=ME)
    asked = csr_of(key, sans=["a.example", "b.example"])
    first = await ask(core, Evidence(secret=handed.secret), asked)
    await change(core, names=["DNS:b.example"])
    own = Evidence(chain=(first.certificate,))
    for operation in (Operation.REENROLL, Operation.RENEW):
        renewed = await ask(core, own, csr_of(new_key(), sans=["a.example", "b.example"]), operation=operation)
        assert names_in(renewed.certificate) == ("DNS:b.example",)
    more = csr_of(new_key(), sans=["b.example", "c.example"])
    assert await code_of(core, own, more, operation=Operation.RENEW) == "names_not_allowed", "the twin"


# --- names of others -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("held", "asked"),
    [
        pytest.param("DNS:gate.example", "DNS:gate.example", id="in-its-record"),
        pytest.param("DNS:gate.example", "DNS:GATE.example.", id="spelled-otherwise"),
        pytest.param("IP:10.0.0.1", "IP:10.0.0.1", id="address"),
        pytest.param('URI:urn:a"b\\', 'URI:urn:a"b\\', id="with-quotes"),
        pytest.param("", "DNS:other.example", id="what-it-is-called"),
    ],
)
async def test_a_name_of_another_device_is_refused(core: Core, held: str, asked: str) -> None:
    await core.devices.add("default", "sensor", actor=ME)
    await core.devices.add("default", "Other.example", sans=[held] if held else [], actor=ME)
    assert await refusal(core, names=[asked]) == "name_of_other_device"
    assert (await core.devices.show("default", "sensor")).names == []
    await core.devices.retire("default", "Other.example", actor=ME)
    assert (await change(core, names=[asked])).changed, "the twin: who is retired holds no name"


FROM_REQUEST: dict[str, object] = {
    "subject": {"CN": "{csr:*}"},
    "names": ["{device.names}", "{csr:DNS:*.example?}", "{csr:URI:urn:dev:*?}"],
    "lint_allow": ["pkix.invalid_uri_syntax"],
}
CARRIED = ("DNS:x1.example", "DNS:X1.example.", "DNS:cn.example", "URI:urn:dev:bee", "URI:URN:Dev:%62ee")
OF_NOBODY = ("DNS:x2.example", "DNS:x1.example.org", "URI:urn:dev:bees", "IP:10.9.9.8")


async def one_with_names(core: Core) -> Enrolled:
    """A device with names in its certificate alone, and one of its record."""
    await edit_profiles(core, device=FROM_REQUEST)
    secret = (await core.devices.add("default", "one", sans=["IP:10.9.9.9"], actor=ME)).secret
    csr = x509.CertificateSigningRequestBuilder().subject_name(
        x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "cn.example")])
    )
    names = [x509.DNSName("x1.example"), x509.UniformResourceIdentifier("urn:dev:bee")]
    csr = csr.add_extension(x509.SubjectAlternativeName(names), critical=False)
    key = new_key()
    der = csr.sign(key, hashes.SHA256()).public_bytes(Encoding.DER)
    issued = await ask(core, Evidence(secret=secret), ParsedCsr.parse(der))
    return Enrolled("one", secret, key, issued.certificate, format(issued.serial, "x"))


@pytest.mark.parametrize("asked", [*CARRIED, "IP:10.9.9.9", "DNS:one", "DNS:ONE."])
@pytest.mark.parametrize("is_retired", [False, True], ids=["", "retired"])
async def test_case_29_no_record_gets_a_name_that_a_device_s_certificate_carries(
    core: Core, asked: str, is_retired: bool
) -> None:
    held = await one_with_names(core)
    await core.devices.add("default", "sensor", actor=ME)
    if is_retired:
        await core.devices.retire("default", "one", actor=ME)
    is_free = is_retired and asked.lower().rstrip(".") == "dns:one"  # which no certificate carries
    if not is_free:
        assert await refusal(core, names=[asked]) == "name_of_other_device"
        with pytest.raises(OperatorError) as caught:
            await core.devices.add("default", "other", sans=[asked], actor=ME)
        assert caught.value.code == "name_of_other_device"
        assert "one" in caught.value.message
        await core.certificates.revoke(held.serial, reason="superseded", actor=ME)
        if not is_retired:
            await core.devices.retire("default", "one", actor=ME)
    assert (await change(core, names=[asked])).changed, "the twin"


@pytest.mark.parametrize("called", ["x1.example", "X1.Example.", "urn:dev:bee", "10.9.9.9", "CN.example", "One"])
async def test_case_29_nor_is_a_device_called_by_such_a_name(core: Core, called: str) -> None:
    await one_with_names(core)
    with pytest.raises(OperatorError) as caught:
        await core.devices.add("default", called, actor=ME)
    assert caught.value.code == "name_of_other_device"
    await core.devices.add("other", called, actor=ME)  # the twin
    await core.devices.add("default", f"{called}8", actor=ME)


@pytest.mark.parametrize("asked", OF_NOBODY)
async def test_a_name_that_nobody_has_is_free_for_a_record(core: Core, asked: str) -> None:
    await one_with_names(core)
    await core.devices.add("default", "sensor", actor=ME)
    assert (await change(core, names=[asked])).changed


@pytest.mark.parametrize(
    ("asked", "code"),
    [
        ("DNS:OTHER.example.com", "name_of_server"),
        ("DNS:pki.example.com", "name_of_server"),
        ("IP:192.0.2.1", "name_of_server"),
        ("DNS:device.example.com", ""),
        ("IP:192.0.2.2", ""),
    ],
)
async def test_case_29_no_record_has_a_name_of_this_server(core: Core, asked: str, code: str) -> None:
    await core.server_certificates.ensure(["pki.example.com", "192.0.2.1"])
    await core.devices.add("default", "sensor", actor=ME)
    if not code:
        assert (await change(core, names=[asked])).changed
        return
    assert await refusal(core, names=[asked]) == code
    for name, sans in (("other", [asked]), (asked.partition(":")[2], [])):
        with pytest.raises(OperatorError) as caught:
            await core.devices.add("default", name, sans=sans, actor=ME)
        assert caught.value.code == code


async def test_names_that_two_records_have_from_before_stay_with_both(core: Core, installation: Installation) -> None:
    evidence = {}
    for name in ("one", "two"):
        evidence[name] = Evidence(secret=(await core.devices.add("default", name, actor=ME)).secret)
    installation.sql("""UPDATE device SET names = '["DNS:shared.example"]'""")
    for name in ("one", "two"):
        key = new_key()
        issued = await ask(core, evidence[name], csr_of(key, name))
        own = Enrolled(name, "", key, issued.certificate, format(issued.serial, "x"))
        again = await ask(core, own.evidence, csr_of(new_key(), name), operation=Operation.REENROLL)
        assert names_in(again.certificate) == ("DNS:shared.example",)
    assert (await change(core, "two", names=["DNS:shared.example", "DNS:more.example"])).changed


@pytest.mark.parametrize(
    "asked", ["DNS:gate.example.org", "DNS:ate.example", "DNS:sensor", "URI:urn:DNS:gate.example"], ids=str
)
async def test_a_name_that_only_looks_like_anothers_is_free(core: Core, asked: str) -> None:
    await core.devices.add("default", "sensor", actor=ME)
    await core.devices.add("default", "other", sans=["DNS:gate.example", "URI:urn:x%DNS:sensor"], actor=ME)
    await core.devices.add("other", "elsewhere", sans=[asked], actor=ME)
    assert (await change(core, names=[asked])).device.names == [asked]


async def test_of_two_that_take_a_name_at_once_one_gets_it(core: Core, second: Core) -> None:
    for name in ("one", "two"):
        await core.devices.add("default", name, actor=ME)
    outcomes = await asyncio.gather(
        change(core, "one", names=["DNS:gate.example"]),
        change(second, "two", names=["DNS:gate.example"]),
        return_exceptions=True,
    )
    failed = [outcome for outcome in outcomes if isinstance(outcome, OperatorError)]
    assert [error.code for error in failed] == ["name_of_other_device"]
    assert len([outcome for outcome in outcomes if isinstance(outcome, DeviceChange)]) == 1


# --- the factory identity --------------------------------------------------------------------------------------------


async def idevid(core: Core, number: str) -> str:
    return await code_of(core, Evidence(chain=factory.idevid(ROOT, number).chain), csr_of(new_key()))


async def test_a_wrong_serial_number_is_set_right_before_the_device_comes(acme: Core) -> None:
    await acme.devices.add("default", "sensor", serial_number="AC-2", actor=ME)
    assert await idevid(acme, "AC-1") == "device_unknown"
    done = await change(acme, serial_number="AC-1")
    assert done.changed == {"serial_number": ["AC-2", "AC-1"]}
    assert await idevid(acme, "AC-2") == "device_unknown"
    assert await idevid(acme, "AC-1") == "issued"


@pytest.mark.parametrize("number", ["AC-2", ""], ids=["another", "none"])
async def test_a_board_that_has_enrolled_is_changed_by_replace_alone(acme: Core, number: str) -> None:
    await acme.devices.add("default", "sensor", serial_number="AC-1", actor=ME)
    assert await idevid(acme, "AC-1") == "issued"
    assert await refusal(acme, serial_number=number) == "identity_proven"
    await acme.devices.suspend("default", "sensor", actor=ME)
    assert await refusal(acme, serial_number=number) == "identity_proven"
    assert (await change(acme, serial_number="AC-1", owner="line 7")).changed == {"owner": [None, "line 7"]}
    await acme.devices.new_board("default", "sensor", actor=ME)
    assert (await change(acme, serial_number=number)).changed, "the twin: nothing proves it any more"


async def test_a_device_that_had_no_factory_identity_may_get_one(acme: Core) -> None:
    device = await enrolled(acme)
    assert (await change(acme, serial_number="AC-1")).device.manufacturer == "acme"
    assert await idevid(acme, "AC-1") == "issued"
    assert await code_of(acme, device.evidence, csr_of(device.key)) == "issued"


async def test_an_identity_is_whole_known_and_of_one_device(acme: Core) -> None:
    await acme.devices.add("default", "sensor", actor=ME)
    await acme.devices.add("default", "second", serial_number="AC-2", actor=ME)
    assert await refusal(acme, serial_number="AC-2") == "identity_taken"
    assert await refusal(acme, manufacturer="acme") == "identity_incomplete"
    assert await refusal(acme, serial_number="AC-3", manufacturer="globex") == "manufacturer_unknown"
    assert await refusal(acme, serial_number="AC\n3") == "identity_invalid"
    assert (await change(acme, serial_number="AC-3", manufacturer="acme")).device.serial_number == "AC-3"


async def test_what_is_not_there_or_over_or_unknown_is_refused(core: Core) -> None:
    await core.devices.add("default", "sensor", actor=ME)
    assert await refusal(core, "nobody", owner="x") == "device_unknown"
    assert await refusal(core, profile="nope") == "profile_unknown"
    assert await refusal(core, names=["a.example"]) == "san_invalid"
    await core.devices.retire("default", "sensor", actor=ME)
    assert await refusal(core, owner="x") == "device_retired"


async def test_an_identity_that_came_after_the_certificates_is_told_truly(acme: Core) -> None:
    """They were got by a secret, and nobody keeps by what: that much is not claimed."""
    await enrolled(acme)
    await change(acme, serial_number="AC-I")
    with pytest.raises(OperatorError) as caught:
        await change(acme, serial_number="AC-1")
    assert caught.value.code == "identity_proven"
    assert "got" not in caught.value.message
    assert "device replace sensor --serial-number" in caught.value.remedy
    await acme.devices.new_board("default", "sensor", serial_number="AC-1", actor=ME)
    assert await idevid(acme, "AC-1") == "issued", "the twin: the remedy works"


# --- bounds ----------------------------------------------------------------------------------------------------------

SANS = [f"DNS:n{number}.example" for number in range(101)]
FACTS = {
    "sans": ({"names": SANS}, {"names": SANS[:100]}, "too_many_names"),
    "long-owner": ({"owner": "x" * 257}, {"owner": "x" * 256}, "owner_invalid"),
    "escape-in-owner": ({"owner": "a\x1b[31m"}, {"owner": "a [31m"}, "owner_invalid"),
    "blank-owner": ({"owner": "  "}, {"owner": " line 7"}, "owner_invalid"),
    "surrogate-in-owner": ({"owner": "a\udcff"}, {"owner": "a\u00ff"}, "owner_invalid"),
}


@pytest.mark.parametrize(("facts", "twin", "code"), FACTS.values(), ids=FACTS)
async def test_a_record_has_bounds_whether_it_is_made_or_changed(
    core: Core, facts: dict[str, Any], twin: dict[str, Any], code: str
) -> None:
    def added(given: dict[str, Any]) -> dict[str, Any]:
        return {"sans" if key == "names" else key: value for key, value in given.items()}

    await core.devices.add("default", "sensor", actor=ME)
    assert await refusal(core, **facts) == code
    with pytest.raises(OperatorError) as caught:
        await core.devices.add("default", "second", **added(facts), actor=ME)
    assert caught.value.code == code
    assert caught.value.remedy
    assert (await change(core, **twin)).changed
    await core.devices.retire("default", "sensor", actor=ME)
    await core.devices.add("default", "second", **added(twin), actor=ME)


# --- at the same moment ----------------------------------------------------------------------------------------------


async def test_an_approval_rests_on_the_record_of_the_day_it_is_granted(acme: Core) -> None:
    await acme.devices.add("default", "sensor", serial_number="AC-1", actor=ME)
    await admit_by(acme, "idevid + approval")
    evidence, csr = Evidence(chain=factory.idevid(ROOT, "AC-1").chain), csr_of(new_key())
    assert await outcome_of(acme, evidence, csr) == "pending"
    [row] = await acme.requests.list(limit=9)
    await acme.requests.approve(row.id, actor=ME)
    await change(acme, serial_number="AC-2")
    assert await outcome_of(acme, evidence, csr) == "device_unknown"
    await acme.devices.add("default", "second", serial_number="AC-1", actor=ME)
    assert await outcome_of(acme, evidence, csr_of(new_key(), "second")) == "pending", "another device, asked for anew"
    await acme.devices.retire("default", "second", actor=ME)
    assert await outcome_of(acme, evidence, csr) == "device_retired"


async def test_an_approved_request_waits_anew_for_other_names_or_another_profile(core: Core) -> None:
    await edit_profiles(core, other={"issuer": "ec"})
    handed = await core.devices.add("default", "sensor", sans=["DNS:old.example"], actor=ME)
    await admit_by(core, "secret + approval")
    evidence, csr = Evidence(secret=handed.secret), csr_of(new_key())
    assert await outcome_of(core, evidence, csr) == "pending"
    [row] = await core.requests.list(limit=9)
    await core.requests.approve(row.id, actor=ME)
    await change(core, profile="other")
    assert await outcome_of(core, evidence, csr) == "pending", "approved was another profile"
    await change(core, profile="", names=["DNS:new.example"])
    assert await outcome_of(core, evidence, csr) == "pending", "approved were other names"
    await change(core, names=["DNS:old.example"])
    assert names_in((await ask(core, evidence, csr)).certificate) == ("DNS:old.example",), "the twin"


async def test_a_change_at_the_same_moment_is_in_the_certificate(
    core: Core, second: Core, monkeypatch: pytest.MonkeyPatch
) -> None:
    device = await enrolled(core, sans=["DNS:old.example"], owner="line 7")
    real = core.store.commit
    changed: list[DeviceChange] = []

    async def commit(unit: Unit) -> int:
        if not changed:
            changed.append(await change(second, names=["DNS:new.example"]))
        return await real(unit)

    monkeypatch.setattr(core.store, "commit", commit)
    renewed = await ask(core, device.evidence, csr_of(new_key()))
    assert names_in(renewed.certificate) == ("DNS:new.example",)
    assert len(await core.certificates.list(device="sensor", limit=9)) == 2, "what was signed before it is dropped"


async def test_a_device_that_enrolls_while_its_serial_number_is_set_right_keeps_it(
    acme: Core, second: Core, monkeypatch: pytest.MonkeyPatch
) -> None:
    await acme.devices.add("default", "sensor", serial_number="AC-1", actor=ME)
    real = acme.store.commit
    enrolls: list[str] = []

    async def commit(unit: Unit) -> int:
        if not enrolls:
            enrolls.append(await idevid(second, "AC-1"))
        return await real(unit)

    monkeypatch.setattr(acme.store, "commit", commit)
    assert await refusal(acme, serial_number="AC-2") == "identity_proven"
    assert enrolls == ["issued"]


async def test_of_two_changes_at_once_each_says_what_it_found(
    core: Core, second: Core, installation: Installation
) -> None:
    await core.devices.add("default", "sensor", owner="a", actor=ME)
    await asyncio.gather(change(core, owner="b"), change(second, owner="c"))
    first, last = sorted(installation.events("device.changed"), key=lambda told: told["owner"][0] != "a")
    assert first["owner"][0] == "a"
    assert last["owner"] == [first["owner"][1], (await core.devices.show("default", "sensor")).owner]
