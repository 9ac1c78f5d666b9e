"""Ways of admission: any of those that the realm names, and all that each takes."""

import asyncio
import io
import itertools
import tomllib
from typing import Any

import pytest
import tomli_w
from sqlalchemy import literal

from ca_core.core import Core
from ca_core.csr import ParsedCsr
from ca_core.errors import OperatorError, SignerUnavailable
from ca_core.limits import RateLimits, Rates
from ca_core.model import Evidence, Issued, Operation, Refused
from ca_core.registration import conditions
from ca_core.registration.admission.ways import parse_way
from tests.helpers.admission import admit_by, outcome_of, transact
from tests.helpers.core import ME, Installation, SetClock, code_of, csr_of, edit_realm, enrolled, new_key, written
from tests.helpers.factory import idevid, root
from tests.helpers.interference import Interference

REENROLL = Operation.REENROLL


class Scene:
    """A device that is registered, with its IDevID and its secret, and others that are not."""

    def __init__(self, core: Core, secret: str, other_secret: str) -> None:
        self.core = core
        self.anchor = root()
        self.secret = secret
        self.other_secret = other_secret
        self.factory = idevid(self.anchor, "AC-1")

    async def asks(self, *shown: str, name: str | None = "sensor") -> str:
        """The outcome for the device that shows that: secret, idevid, challenge, wrong."""
        return await outcome_of(self.core, self.evidence(*shown), csr_of(new_key(), name))

    def evidence(self, *shown: str) -> Evidence:
        secrets = {"secret": self.secret, "challenge": CHALLENGE, "wrong": "x" * 26, "other": self.other_secret}
        secret = next((secrets[one] for one in shown if one in secrets), None)
        return Evidence(self.factory.chain if "idevid" in shown else (), None, secret)


CHALLENGE = "a-challenge-of-thirty-characters"


@pytest.fixture
async def scene(core: Core) -> Scene:
    other = await core.devices.add("default", "other", actor=ME)
    scene = Scene(core, "", other.secret)
    await core.trust.add("default", scene.anchor.pem, name="acme", actor=ME)
    handed = await core.devices.add("default", "sensor", serial_number="AC-1", manufacturer="acme", actor=ME)
    scene.secret = handed.secret
    await core.realms.challenge("default", CHALLENGE, actor=ME)
    return scene


@pytest.mark.parametrize(
    ("ways", "shown", "outcome"),
    [
        (["secret"], ["secret"], "issued"),
        (["secret"], ["idevid"], "idevid_not_admitted"),
        (["secret"], ["challenge"], "secret_unknown"),
        (["secret"], ["wrong"], "secret_unknown"),
        (["secret"], [], "credentials_missing"),
        (["idevid"], ["idevid"], "issued"),
        (["idevid"], ["secret"], "secret_not_admitted"),
        (["idevid"], ["idevid", "wrong"], "issued"),
        (["secret", "idevid"], ["idevid"], "issued"),
        (["secret", "idevid"], ["secret"], "issued"),
        (["secret + idevid"], ["secret", "idevid"], "issued"),
        (["secret + idevid"], ["secret"], "proof_missing"),
        (["secret + idevid"], ["idevid"], "proof_missing"),
        (["secret + idevid"], ["idevid", "wrong"], "secret_unknown"),
        (["secret + idevid"], ["idevid", "other"], "proofs_disagree"),
        (["challenge"], ["challenge"], "issued"),
        (["challenge"], ["secret"], "secret_not_admitted"),
        (["challenge"], ["wrong"], "secret_not_admitted"),
        (["challenge"], [], "credentials_missing"),
        (["challenge", "secret"], ["secret"], "issued"),
        (["challenge", "secret"], ["challenge"], "device_not_expected"),
        (["challenge + idevid"], ["challenge", "idevid"], "issued"),
        (["challenge + idevid"], ["challenge"], "proof_missing"),
        (["challenge + idevid"], ["idevid"], "proof_missing"),
        (["secret + approval"], ["secret"], "pending"),
        (["secret + approval"], ["wrong"], "secret_unknown"),
        (["secret + approval", "idevid"], ["idevid"], "issued"),
        (["secret + approval", "idevid"], ["secret"], "pending"),
        (["idevid + approval"], ["idevid"], "pending"),
        (["challenge + approval"], ["challenge"], "pending"),
        (["approval"], [], "pending"),
        (["approval"], ["wrong"], "secret_not_admitted"),
        (["approval"], ["idevid"], "idevid_not_admitted"),
    ],
    ids=lambda value: ("-or-".join(value) if value else "nothing") if isinstance(value, list) else None,
)
async def test_a_way_takes_all_that_it_names_and_a_realm_any_of_its_ways(
    scene: Scene, ways: list[str], shown: list[str], outcome: str
) -> None:
    await admit_by(scene.core, *ways)
    assert await scene.asks(*shown) == outcome


async def test_an_own_certificate_needs_no_way(scene: Scene) -> None:
    device = await enrolled(scene.core, "first")
    await admit_by(scene.core, "approval")
    assert await code_of(scene.core, device.evidence, csr_of(new_key(), "first"), operation=REENROLL) == "issued"


async def test_an_open_realm_gives_a_certificate_to_anyone_and_registers_who_comes(
    scene: Scene, installation: Installation
) -> None:
    await admit_by(scene.core, "open", open=True)
    assert await scene.asks(name="walk-in") == "issued"
    assert await scene.asks(name="walk-in") == "device_enrolled", "whoever comes later is not that device"
    assert await scene.asks(name=None) == "subject_names_no_device"
    [event] = installation.sql("SELECT actor FROM audit WHERE action = 'device.added' AND device = 'walk-in'")
    assert event[0] == "admission:open"
    assert (await scene.core.devices.show("default", "walk-in")).state == "active"


async def test_a_challenge_gives_its_first_certificate_to_a_registered_device_and_no_second_one(scene: Scene) -> None:
    await admit_by(scene.core, "challenge")
    key = new_key()
    first = await transact(scene.core, scene.evidence("challenge"), csr_of(key, "sensor"))
    assert isinstance(first, Issued)
    again = await transact(scene.core, scene.evidence("challenge"), csr_of(key, "sensor"))
    assert isinstance(again, Issued)
    assert again.certificate == first.certificate
    assert await scene.asks("challenge") == "device_enrolled"
    assert await scene.asks("challenge", name="unheard-of") == "device_unknown"
    assert await scene.asks("challenge", name="other") == "issued", "the twin: a registered one without a certificate"


async def test_a_new_challenge_ends_the_one_before(scene: Scene) -> None:
    await admit_by(scene.core, "challenge")
    made = await scene.core.realms.challenge("default", None, actor=ME)
    assert len(made) == 26
    assert await scene.asks("challenge") == "secret_not_admitted"
    assert await outcome_of(scene.core, Evidence(secret=made), csr_of(new_key(), "sensor")) == "issued"


async def test_a_challenge_is_nowhere_in_the_store(scene: Scene, installation: Installation) -> None:
    await admit_by(scene.core, "challenge")
    assert await scene.asks("challenge") == "issued"
    await written(scene.core)
    assert CHALLENGE.encode() not in installation.dump()


@pytest.mark.parametrize(
    ("text", "code"),
    [("x" * 25, "challenge_invalid"), ("é" * 30, "challenge_invalid"), ("a\n" * 20, "challenge_invalid")],
    ids=["short", "not-ascii", "newlines"],
)
async def test_a_challenge_that_can_be_guessed_or_not_typed_is_refused(scene: Scene, text: str, code: str) -> None:
    with pytest.raises(OperatorError) as caught:
        await scene.core.realms.challenge("default", text, actor=ME)
    assert caught.value.code == code


# --- any device of a trusted manufacturer ---------------------------------------------------------------------------


async def test_any_device_of_a_trusted_manufacturer_is_registered_when_it_comes(
    scene: Scene, installation: Installation
) -> None:
    stranger = Evidence(idevid(scene.anchor, "AC-77").chain)
    assert await outcome_of(scene.core, stranger, csr_of(new_key(), "AC-77")) == "device_unknown", "the twin"
    await admit_by(scene.core, "idevid", idevid="trusted")
    assert await outcome_of(scene.core, stranger, csr_of(new_key(), "somebody-else")) == "subject_mismatch"
    assert installation.sql("SELECT 1 FROM device WHERE name = 'AC-77'") == [], "who is refused is not registered"
    assert await outcome_of(scene.core, stranger, csr_of(new_key(), "AC-77")) == "issued"
    row = await scene.core.devices.show("default", "AC-77")
    assert (row.serial_number, row.manufacturer, row.state) == ("AC-77", "acme", "active")
    assert await outcome_of(scene.core, stranger, csr_of(new_key(), "AC-77")) == "issued", "it comes again"
    await scene.core.devices.suspend("default", "AC-77", actor=ME)
    assert await outcome_of(scene.core, stranger, csr_of(new_key(), "AC-77")) == "device_suspended"


async def test_a_newcomer_that_asks_twice_at_once_is_one_device_and_is_served_both_times(
    scene: Scene, installation: Installation
) -> None:
    """Whichever step of the one the other comes before: a device that boots sends its request again."""
    core = scene.core
    await admit_by(core, "idevid", idevid="trusted")
    for step in itertools.count(1):
        name = f"AC-{step}00"
        shown = Evidence(idevid(scene.anchor, name).chain)
        asked, again = csr_of(new_key(), name), csr_of(new_key(), name)
        seen: list[str] = []

        async def once_more(shown: Evidence = shown, again: ParsedCsr = again, seen: list[str] = seen) -> None:
            seen.append(await outcome_of(core, shown, again))

        interference = Interference(step, once_more)
        node = installation.open(hook=interference)
        try:
            seen.append(await outcome_of(node, shown, asked))
        finally:
            node.close()
        if not interference.happened:
            break
        assert seen == ["issued", "issued"], step
        assert len(await core.certificates.list(device=name, limit=9)) == 2
    assert step > 5, "reads, submit and lock"


@pytest.mark.parametrize(
    ("serial", "code"),
    [("other", "device_name_taken"), ("no name", "device_unnamed"), ("x" * 65, "device_unnamed")],
    ids=["of-another", "with-a-space", "long"],
)
async def test_case_40_a_newcomer_takes_no_name_that_is_another_s_or_none(scene: Scene, serial: str, code: str) -> None:
    await admit_by(scene.core, "idevid", idevid="trusted")
    stranger = Evidence(idevid(scene.anchor, serial).chain)
    assert await outcome_of(scene.core, stranger, csr_of(new_key(), None)) == code


@pytest.mark.parametrize(
    ("serial", "outcome"),
    [("GX-5", "device_name_taken"), ("gx-5", "device_name_taken"), ("GX-6", "issued")],
    ids=["the-same", "in-another-case", "twin"],
)
async def test_case_40_a_newcomer_has_no_serial_number_of_a_device_of_another_manufacturer(
    scene: Scene, serial: str, outcome: str
) -> None:
    await admit_by(scene.core, "idevid", idevid="trusted")
    await scene.core.trust.add("default", root("Globex Root").pem, name="globex", actor=ME)
    await scene.core.devices.add("default", "gate-1", serial_number="GX-5", manufacturer="globex", actor=ME)
    stranger = Evidence(idevid(scene.anchor, serial).chain)
    assert await outcome_of(scene.core, stranger, csr_of(new_key(), None)) == outcome


# --- the grace of the expired ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("days", "outcome"), [(1, "issued"), (89, "issued"), (91, "issued"), (99, "issued"), (101, "certificate_expired")]
)
async def test_case_36_an_expired_certificate_renews_within_the_grace_and_not_after_it(
    core: Core, clock: SetClock, days: int, outcome: str
) -> None:
    device = await enrolled(core)
    await edit_realm(core, "default", "[admission]\n", '[admission]\nexpired_grace = "10d"\n')
    clock.forward(days=days)
    assert await code_of(core, device.evidence, csr_of(new_key()), operation=REENROLL) == outcome


async def test_case_36_in_its_grace_a_revoked_certificate_renews_nothing(core: Core, clock: SetClock) -> None:
    device = await enrolled(core)
    await edit_realm(core, "default", "[admission]\n", '[admission]\nexpired_grace = "10d"\n')
    clock.forward(days=91)
    await core.certificates.revoke(device.serial, reason="superseded", actor=ME)
    assert await code_of(core, device.evidence, csr_of(new_key()), operation=REENROLL) == "certificate_revoked"


# --- the ceiling -----------------------------------------------------------------------------------------------------


async def test_case_82_a_realm_gives_as_many_first_certificates_on_a_day_as_its_ceiling_says(
    core: Core, clock: SetClock
) -> None:
    device = await enrolled(core, "before")
    await admit_by(core, "open", open=True, ceiling=3)
    codes = [await outcome_of(core, Evidence(), csr_of(new_key(), f"d-{n}")) for n in range(5)]
    assert codes == ["issued"] * 3 + ["ceiling_reached"] * 2
    assert await code_of(core, device.evidence, csr_of(new_key(), "before"), operation=REENROLL) == "issued"
    refused = await transact(core, Evidence(), csr_of(new_key(), "d-9"))
    assert isinstance(refused, Refused)
    assert 0 < getattr(refused.refusal, "retry_after") <= 3600  # noqa: B009  # of TooMany
    clock.forward(days=1)
    assert await outcome_of(core, Evidence(), csr_of(new_key(), "d-9")) == "issued"


async def test_case_82_of_many_at_once_no_more_pass_the_ceiling(core: Core, second: Core) -> None:
    await admit_by(core, "open", open=True, ceiling=4)
    many = [outcome_of(c, Evidence(), csr_of(new_key(), f"d-{n}")) for n, c in enumerate([core, second] * 10)]
    outcomes = await asyncio.gather(*many)
    assert outcomes.count("issued") == 4
    assert set(outcomes) == {"issued", "ceiling_reached"}


# --- what the commit repeats of them ---------------------------------------------------------------------------------


async def race(first: Core, second: Core, names: list[str]) -> int:
    """How many of these names get a certificate when all ask at once, at two nodes, each with a key of its own."""
    cores = itertools.cycle([first, second])
    asking = [outcome_of(core, Evidence(), csr_of(new_key(), name)) for core, name in zip(cores, names, strict=False)]
    return (await asyncio.gather(*asking)).count("issued")


async def test_of_many_keys_that_ask_at_once_in_one_name_one_is_served(core: Core, second: Core) -> None:
    await admit_by(core, "open", open=True)
    assert await race(core, second, ["walk-in"] * 12) == 1
    await core.devices.add("default", "registered", actor=ME)
    assert await race(core, second, ["registered"] * 12) == 1


RACES = [
    pytest.param("device_not_enrolled", ["registered"] * 12, ["open"], {}, 1, id="device_not_enrolled"),
    pytest.param("below_ceiling", [f"d-{n}" for n in range(12)], ["open"], {"ceiling": 3}, 3, id="below_ceiling"),
    pytest.param("below_share", [f"d-{n}" for n in range(12)], ["open", "idevid"], {"ceiling": 6}, 3, id="below_share"),
]


@pytest.mark.parametrize(("condition", "names", "ways", "settings", "right"), RACES)
@pytest.mark.parametrize("has_it", [True, False], ids=["twin-with", "without"])
async def test_without_the_condition_at_the_commit_more_are_served(
    core: Core,
    second: Core,
    condition: str,
    names: list[str],
    ways: list[str],
    settings: dict[str, Any],
    right: int,
    has_it: bool,
    clock: SetClock,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    if not has_it:
        monkeypatch.setitem(conditions.NARROWING, condition, literal(1) == literal(1))
    monkeypatch.setattr(conditions, "_NARROWED", {})
    await admit_by(core, *ways, open=True, **settings)
    served = right
    for turn in range(1 if has_it else 20):  # one race may be won by who comes first, and the rest come late
        await core.devices.add("default", f"registered-{turn}", actor=ME)
        served = await race(core, second, [f"{name}-{turn}" for name in names])
        if served != right:
            break
        clock.forward(days=1)
    assert (served == right) is has_it, served


# --- pauses ----------------------------------------------------------------------------------------------------------


async def test_case_71_a_device_that_repeats_a_doomed_request_is_paused_and_no_other_one(core: Core) -> None:
    device, other = await enrolled(core, "zombie"), await enrolled(core, "honest")
    doomed = csr_of(new_key(), "not-its-name")
    outcomes = [await outcome_of(core, device.evidence, doomed) for _ in range(40)]
    assert outcomes == ["subject_mismatch"] * 30 + ["device_paused"] * 10
    assert await outcome_of(core, other.evidence, csr_of(new_key(), "honest")) == "issued"
    assert await outcome_of(core, device.evidence, csr_of(new_key(), "zombie")) == "issued", "another request of it"
    await edit_realm(core, "default", 'retry_window = "24h"', 'retry_window = "23h"')
    assert await outcome_of(core, device.evidence, doomed) == "subject_mismatch", "a new version is another chance"


async def test_case_71_a_paused_device_does_not_shut_out_its_neighbours_behind_one_address(core: Core) -> None:
    limits = RateLimits(per_device=99, per_credential=99, refusals_per_source=35, is_trusted=lambda _: False)
    core.registration._recorder._rates = Rates(limits)
    zombie, neighbour = (Evidence(secret=f"abcdefgh.{letter * 26}") for letter in "ab")
    doomed = csr_of(new_key(), "zombie")
    outcomes = [await outcome_of(core, zombie, doomed) for _ in range(60)]
    assert outcomes == ["secret_unknown"] * 30 + ["device_paused"] * 30
    assert await outcome_of(core, neighbour, csr_of(new_key(), "honest")) == "secret_unknown"
    # The twin: who is not paused, because it changes what it asks, uses up the share of the address.
    others = [await outcome_of(core, zombie, csr_of(new_key(), "zombie")) for _ in range(6)]
    assert others[-1] == "rate_source"


async def test_who_begins_without_a_credential_is_never_paused(core: Core) -> None:
    csr = csr_of(new_key(), "sensor")
    assert {await outcome_of(core, Evidence(), csr) for _ in range(100)} == {"credentials_missing"}


# --- documents -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("ways", "settings", "fault"),
    [
        (["secrets"], {}, "admission.ways[0]: 'secrets' proves nothing known"),
        (["secret + secret"], {}, "names something twice"),
        (["secret", "secret"], {}, "stands twice"),
        (["webhook"], {}, "a webhook only narrows"),
        (["secret + webhook"], {}, "admission.webhook: a way takes a webhook"),
        (["open"], {}, "'open' gives a certificate to anyone"),
        (["secret"], {"open": True}, "admission.open: is set, but no way is open"),
        (["open + secret"], {"open": True}, "proves something, and is not open"),
        (["secret + challenge"], {}, "not both"),
        (["challenge"], {}, "admission.challenge: there is none yet"),
        (["challenge"], {"challenge": "hunter2"}, "admission.challenge: not the hash"),
        (["idevid"], {"idevid": "off"}, "admission.idevid: is off"),
        (["secret"], {"secret": False}, "admission.secret: is off"),
        (["secret"], {"expired_grace": "400d"}, "admission.expired_grace: longer than a year"),
        (["secret"], {"expired_grace": "soon"}, "admission.expired_grace: 'soon' is not a duration"),
        (["secret"], {"ceiling": -1}, "admission.ceiling: expected a whole number"),
        (["secret"], {"pending_most": 0}, "admission.pending_most: expected a whole number"),
        (
            ["idevid", "open"],
            {"open": True, "idevid": "trusted"},
            "lets anyone take the name of a device before it comes",
        ),
        (["secret"], {"way": "x"}, "admission.way: unknown key (did you mean 'ways'?)"),
    ],
)
async def test_an_admission_that_makes_no_sense_is_refused_with_its_key(
    core: Core, ways: list[str], settings: dict[str, Any], fault: str
) -> None:
    with pytest.raises(OperatorError) as caught:
        await admit_by(core, *ways, **settings)
    assert caught.value.code == "document_invalid"
    assert fault in caught.value.message
    await admit_by(core, "secret + idevid")  # the twin


async def test_every_fault_of_an_admission_is_told_at_once(core: Core) -> None:
    with pytest.raises(OperatorError) as caught:
        await admit_by(core, "secrets", "open + idevid", expired_grace="soon", ceiling=-1)
    assert caught.value.message.count("admission.") == 4


@pytest.mark.parametrize("parts", list(itertools.permutations(["idevid", "webhook", "approval"])))
def test_a_way_is_the_same_in_whatever_order_it_is_written(parts: tuple[str, ...]) -> None:
    assert str(parse_way(" + ".join(parts))) == str(parse_way("+".join(sorted(parts)))) == "idevid + webhook + approval"


# --- what an adversary found ----------------------------------------------------------------------------------------


async def test_who_proves_nothing_leaves_no_trace_at_the_device_that_it_names(
    core: Core, installation: Installation
) -> None:
    device = await enrolled(core, "victim")
    await admit_by(core, "approval", "secret", pending_per_source=100)
    before = await core.devices.show("default", "victim")
    for _ in range(25):
        assert await outcome_of(core, Evidence(), csr_of(new_key(), "victim")) == "pending"
    assert await outcome_of(core, Evidence(), csr_of(device.key, "victim")) == "pending"
    await written(core)
    assert await core.devices.show("default", "victim") == before
    why = await core.devices.why("default", "victim")
    assert {attempt.outcome for attempt in why.timeline} == {"issued"}
    assert {row[0] for row in installation.sql("SELECT actor FROM audit WHERE action = 'request.pending'")} == {
        "unproven:victim"
    }


async def test_a_stranger_does_not_learn_that_a_device_is_suspended(core: Core) -> None:
    await enrolled(core, "victim")
    await core.devices.suspend("default", "victim", actor=ME)
    await admit_by(core, "open", open=True)
    assert await outcome_of(core, Evidence(), csr_of(new_key(), "victim")) == "device_not_expected"


@pytest.mark.parametrize("name", ["PUMP-1", "Pump-1"])
async def test_a_newcomer_takes_no_name_that_differs_by_case_alone(core: Core, name: str) -> None:
    await core.devices.add("default", "pump-1", actor=ME)
    await admit_by(core, "open", open=True)
    assert await outcome_of(core, Evidence(), csr_of(new_key(), name)) == "device_name_taken"
    assert await outcome_of(core, Evidence(), csr_of(new_key(), "PUMP-2")) == "issued", "the twin"


@pytest.mark.parametrize(
    ("profile", "name", "outcome"),
    [
        ({"names": ["DNS:{device.name}.example.com"]}, "other", "name_of_server"),
        ({"names": ["DNS:{device.name}.example.com"]}, "Other", "name_of_server"),
        ({"names": ["DNS:{device.name}.example.com"]}, "pump", "issued"),
        ({"subject": {"CN": "{csr:*}"}, "names": []}, "other.example.com", "name_of_server"),
        ({"subject": {"CN": "{csr:*}"}, "names": []}, "pump.example.com", "issued"),
    ],
)
async def test_case_29_no_template_makes_the_name_of_a_server(
    core: Core, profile: dict[str, Any], name: str, outcome: str
) -> None:
    document = tomllib.loads(await core.realms.export("default"))
    document["profiles"]["device"] |= profile
    document["admission"] |= {"ways": ["open"], "open": True}
    await core.realms.apply(tomli_w.dumps(document), actor=ME)
    assert await outcome_of(core, Evidence(), csr_of(new_key(), name)) == outcome


async def test_both_proofs_count_for_a_profile_that_takes_a_value_from_the_factory_identity(scene: Scene) -> None:
    document = tomllib.loads(await scene.core.realms.export("default"))
    document["profiles"]["device"]["subject"] = {"CN": "{device.name}", "serialNumber": "{idevid.serial_number}"}
    await scene.core.realms.apply(tomli_w.dumps(document), actor=ME)
    await admit_by(scene.core, "secret + idevid", "secret")
    assert await scene.asks("secret", "idevid") == "issued"


async def test_a_replaced_device_gets_its_first_certificate_by_challenge_again(scene: Scene) -> None:
    await admit_by(scene.core, "challenge")
    assert await scene.asks("challenge") == "issued"
    assert await scene.asks("challenge") == "device_enrolled"
    await scene.core.devices.new_board("default", "sensor", actor=ME)
    assert await scene.asks("challenge") == "issued"


# --- who proves nothing is nobody who was registered with something to show -----------------------------------------


REGISTERED = {"secret": {}, "idevid": {"serial_number": "AC-7", "manufacturer": "acme"}, "imported": None}


@pytest.mark.parametrize(
    ("ways", "registered", "outcome"),
    [
        (["open"], "secret", "issued"),
        (["open"], "idevid", "issued"),
        (["secret", "open"], "secret", "device_not_expected"),
        (["secret", "open"], "idevid", "device_not_expected"),
        (["secret", "open"], "imported", "issued"),
        (["secret", "open"], None, "issued"),
        (["secret + idevid", "open"], "secret", "device_not_expected"),
        (["idevid", "open"], "secret", "issued"),
        (["idevid", "open"], "idevid", "device_not_expected"),
        (["idevid", "open"], "imported", "issued"),
        (["idevid", "open + webhook"], "idevid", "device_not_expected"),
        (["idevid", "open + approval"], "idevid", "pending"),
        (["challenge"], "secret", "issued"),
        (["challenge"], "idevid", "issued"),
        (["challenge", "secret"], "secret", "device_not_expected"),
        (["challenge", "secret"], "imported", "issued"),
        (["challenge", "secret"], None, "device_unknown"),
        (["challenge", "idevid"], "idevid", "device_not_expected"),
        (["challenge", "secret + webhook"], "secret", "device_not_expected"),
        (["challenge + approval", "secret"], "secret", "pending"),
        (["approval", "secret"], "secret", "pending"),
    ],
    ids=lambda value: "-or-".join(value) if isinstance(value, list) else None,
)
async def test_who_proves_nothing_is_not_admitted_as_a_device_that_has_something_to_show(
    scene: Scene, ways: list[str], registered: str | None, outcome: str
) -> None:
    core, challenge = scene.core, any("challenge" in way for way in ways)
    if registered == "imported":
        await core.device_import.run("default", io.BytesIO(b"name\nmeant\n"), "devices.csv", actor=ME)
    elif registered is not None:
        await core.devices.add("default", "meant", **REGISTERED[registered] or {}, actor=ME)
    settings: dict[str, Any] = {"open": True} if any("open" in way for way in ways) else {}
    if any("webhook" in way for way in ways):
        settings["webhook"] = {"url": "https://hooks.example.com/x", "key": "hooks"}
    await admit_by(core, *ways, **settings)
    evidence = Evidence(secret=CHALLENGE) if challenge else Evidence()
    assert await outcome_of(core, evidence, csr_of(new_key(), "meant")) == outcome


@pytest.mark.parametrize(
    ("act", "has_it"),
    [
        pytest.param("secret", True, id="a-secret"),
        pytest.param("secret", False, id="a-secret-without-the-condition"),
        pytest.param("new_board", True, id="a-factory-identity"),
    ],
)
async def test_what_a_device_is_given_to_show_before_the_commit_counts(
    scene: Scene, act: str, has_it: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    core = scene.core
    await core.device_import.run("default", io.BytesIO(b"name\nmeant\n"), "devices.csv", actor=ME)
    await admit_by(core, "secret" if act == "secret" else "idevid", "open", open=True)
    if not has_it:
        monkeypatch.setitem(conditions.NARROWING, "device_without_secret", literal(1) == literal(1))
    monkeypatch.setattr(conditions, "_NARROWED", {})
    sign = core.issuance.issue

    async def meanwhile(*args: Any) -> Any:
        if act == "secret":
            await core.devices.secret("default", "meant", actor=ME)
        else:
            await core.devices.new_board("default", "meant", serial_number="AC-9", manufacturer="acme", actor=ME)
        return await sign(*args)

    monkeypatch.setattr(core.issuance, "issue", meanwhile)
    outcome = await outcome_of(core, Evidence(), csr_of(new_key(), "meant"))
    assert outcome == ("device_not_expected" if has_it else "issued")


@pytest.mark.parametrize("ways", [["open"], ["open", "idevid"]], ids="-or-".join)
async def test_case_82_strangers_use_up_their_share_of_a_day_and_no_more(scene: Scene, ways: list[str]) -> None:
    core, honest = scene.core, scene.evidence("idevid")
    await admit_by(core, *ways, open=True, ceiling=4)
    share = 4 if ways == ["open"] else 2
    codes = [await outcome_of(core, Evidence(), csr_of(new_key(), f"d-{n}")) for n in range(5)]
    assert codes == ["issued"] * share + ["ceiling_reached"] * (5 - share)
    if share == 2:
        assert await outcome_of(core, honest, csr_of(new_key(), "sensor")) == "issued"


async def test_while_signing_fails_nobody_is_registered(
    core: Core, installation: Installation, monkeypatch: pytest.MonkeyPatch
) -> None:
    await admit_by(core, "open", open=True)
    sign = core.issuance.issue

    async def fails(*_: Any) -> Any:
        raise SignerUnavailable("no signer")

    monkeypatch.setattr(core.issuance, "issue", fails)
    with pytest.raises(SignerUnavailable):
        await transact(core, Evidence(), csr_of(new_key(), "walk-in"))
    assert installation.sql("SELECT name FROM device") == []
    monkeypatch.setattr(core.issuance, "issue", sign)
    assert await outcome_of(core, Evidence(), csr_of(new_key(), "walk-in")) == "issued", "the twin"
    assert installation.sql("SELECT name, state FROM device") == [("walk-in", "active")]


async def test_case_47_a_secret_that_is_typed_as_a_name_is_neither_kept_nor_told(
    core: Core, installation: Installation
) -> None:
    handed = await core.devices.add("default", "sensor", actor=ME)
    await core.realms.challenge("default", CHALLENGE, actor=ME)
    for ways, evidence, name in (
        (["challenge"], Evidence(secret=CHALLENGE), CHALLENGE),
        (["challenge"], Evidence(secret=CHALLENGE), CHALLENGE.upper()),
        (["challenge"], Evidence(secret=CHALLENGE), handed.secret),
        (["approval"], Evidence(), handed.secret),
    ):
        await admit_by(core, *ways)
        assert await outcome_of(core, evidence, csr_of(new_key(), name)) == "csr_holds_secret"
    await written(core)
    dumped = installation.dump().lower()
    assert CHALLENGE.encode() not in dumped
    assert handed.secret.encode() not in dumped
    assert await outcome_of(core, Evidence(), csr_of(new_key(), "walk-in")) == "pending", "the twin"
