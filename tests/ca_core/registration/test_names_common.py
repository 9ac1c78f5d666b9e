"""A name that no device has a say in is nobody's alone, and still no name of a server."""

from collections.abc import Callable
from typing import Any

import pytest

from ca_core.authority.issuer import Issuers
from ca_core.core import Core
from ca_core.model import Evidence
from ca_core.records.unit import Unit
from tests.helpers.admission import admit_by, outcome_of
from tests.helpers.core import ME, Installation
from tests.helpers.naming import ANY_NAME, Asker, request, with_profile

COMMON: dict[str, tuple[dict[str, Any], str]] = {
    "fixed-cn": ({"subject": {"CN": "Acme Camera", "serialNumber": "{device.name}"}, "names": []}, ""),
    "realm-cn": ({"subject": {"CN": "{realm}", "serialNumber": "{device.name}"}, "names": []}, ""),
    "owner-cn": ({"subject": {"CN": "{device.owner}", "serialNumber": "{device.name}"}, "names": []}, ""),
    "both-cn": ({"subject": {"CN": "{device.owner} of {realm}", "UID": "{device.name}"}, "names": []}, ""),
    "fixed-san": ({"names": ["{device.names}", "DNS:cluster.example.com"]}, "DNS:cluster.example.com"),
    "realm-san": ({"names": ["DNS:{realm}.example.com"]}, "DNS:default.example.com"),
    "owner-san": ({"names": ["email:{device.owner}@example.com"]}, "email:acme@example.com"),
    "fixed-and-asked": (
        {"names": ["DNS:cluster.example.com", "{csr:DNS:*.example.com?}"]},
        "DNS:cluster.example.com",
    ),
}


@pytest.mark.parametrize("case", COMMON)
async def test_a_profile_whose_text_no_device_chose_serves_every_device(
    core: Core, installation: Installation, case: str
) -> None:
    profile, name = COMMON[case]
    await with_profile(core, **profile)
    names = [name] if name else []
    for called in ("one", "two"):
        asker = await Asker.made(core, called, owner="acme")
        held = await asker.enrolls(called if names else "", *names)
        subject = {part.oid: str(part.value) for part in held.x509.subject}
        for _ in range(2):
            held = await asker.renews(held, "", *names, subject=subject)
    rows = installation.sql("SELECT name FROM device_name WHERE certificate_id IS NOT NULL")
    assert [row for row in rows if row[0] not in ("DNS:one", "DNS:two")] == [], "held for nobody"


@pytest.mark.parametrize(
    ("asked", "outcome"),
    [("cluster.example.com", "name_of_other_device"), ("free.example.com", "issued")],
    ids=["same-text", "twin-other-text"],
)
async def test_the_same_text_chosen_by_a_request_is_one_device_s_alone(core: Core, asked: str, outcome: str) -> None:
    await with_profile(core, **ANY_NAME)
    await (await Asker.made(core, "one")).enrolls("one", "DNS:cluster.example.com")
    assert await (await Asker.made(core, "two")).asks("two", f"DNS:{asked}") == outcome


@pytest.mark.parametrize(
    "other",
    [{"sans": ["DNS:cluster.example.com"]}, {"name": "Cluster.example.com"}],
    ids=["record", "own-name"],
)
@pytest.mark.parametrize("is_retired", [False, True], ids=["active", "retired"])
@pytest.mark.parametrize(
    "profile",
    [
        {"names": ["DNS:cluster.example.com"]},
        {"subject": {"CN": "cluster.example.com", "serialNumber": "{device.name}"}, "names": []},
        {"names": ["DNS:{device.owner}"]},
    ],
    ids=["san", "cn", "owner"],
)
async def test_nobody_s_record_ends_a_profile_by_having_its_text(
    core: Core, profile: dict[str, Any], other: dict[str, Any], is_retired: bool
) -> None:
    await with_profile(core, **profile)
    name = other.get("name", "other")
    await core.devices.add("default", name, sans=other.get("sans", ()), actor=ME)
    if is_retired:
        await core.devices.retire("default", name, actor=ME)
    asker = await Asker.made(core, owner="cluster.example.com")
    assert await asker.asks("" if "subject" in profile else "asker") == "issued"


@pytest.mark.parametrize(("text", "outcome"), [("other.example.com", "name_of_server"), ("free.example.com", "issued")])
async def test_case_29_fixed_text_is_no_name_of_a_server(core: Core, text: str, outcome: str) -> None:
    await with_profile(core, subject={"CN": text, "serialNumber": "{device.name}"}, names=[])
    assert await (await Asker.made(core)).asks("") == outcome


@pytest.mark.parametrize(
    ("profile", "called"),
    [
        ({"names": ["DNS:Cluster.example.com"]}, "cluster.example.com"),
        ({"names": ["DNS:{device.name}.example.com", "DNS:cluster.{realm}.com"]}, "cluster.default.com"),
        ({"names": ["IP:10.0.0.9"]}, "10.0.0.9"),
        ({"subject": {"CN": "cluster", "serialNumber": "{device.name}"}, "names": []}, "cluster"),
    ],
    ids=["san", "realm", "address", "cn"],
)
async def test_case_29_no_newcomer_is_called_by_text_that_every_device_gets(
    core: Core, profile: dict[str, Any], called: str
) -> None:
    """Nobody who comes by himself is the cluster that all others are said to be of."""
    await admit_by(core, "open", open=True)
    await with_profile(core, **(profile | {"subject": {"CN": "{device.name}"}}))
    assert await outcome_of(core, Evidence(), request(f"{called}.free")) == "issued", "the twin"
    await with_profile(core, **profile)
    assert await outcome_of(core, Evidence(), request(called)) == "device_name_taken"
    assert await outcome_of(core, Evidence(), request(called.upper())) == "device_name_taken"


async def test_devices_with_one_fixed_name_are_served_at_once(core: Core, monkeypatch: pytest.MonkeyPatch) -> None:
    await with_profile(core, names=["DNS:cluster.example.com"])
    touched: list[frozenset[str]] = []
    commit = core.store.commit

    async def seen(unit: Unit) -> None:
        touched.append(unit.touches or frozenset())
        await commit(unit)

    for called in ("one", "two"):
        asker = await Asker.made(core, called)
        with monkeypatch.context() as patched:
            patched.setattr(core.store, "commit", seen)
            assert await asker.asks(called) == "issued"
    assert len(touched) == 2
    assert touched[0].isdisjoint(touched[1])


@pytest.mark.parametrize(
    ("other", "outcome"), [("X-1", "device_name_taken"), ("X-2", "issued")], ids=["same-name", "twin"]
)
async def test_case_29_what_a_newcomer_is_called_is_looked_up_at_the_commit_whatever_its_certificate_says(
    core: Core, second: Core, other: str, outcome: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    await with_profile(core, subject={"O": "Acme"}, names=[])
    await admit_by(core, "open", open=True)
    sign, meant = core.issuance.issue, iter([True])

    async def meanwhile(*args: Any) -> Any:
        if next(meant, False):
            await second.devices.add("default", other, actor=ME)
        return await sign(*args)

    monkeypatch.setattr(core.issuance, "issue", meanwhile)
    assert await outcome_of(core, Evidence(), request("x-1")) == outcome


@pytest.mark.parametrize("realm", ["default", "below"])
@pytest.mark.parametrize(
    ("change", "outcome"),
    [(str, "name_of_ca"), (str.upper, "name_of_ca"), ("{}  ".format, "name_of_ca"), ("{}0".format, "issued")],
    ids=["the-same", "in-another-case", "with-spaces", "twin"],
)
async def test_case_29_no_device_has_the_subject_of_a_ca_of_its_realm(
    core: Core, realm: str, change: Callable[[str], str], outcome: str
) -> None:
    await core.realms.add("below", root_of="default", actor=ME)
    await with_profile(core, realm=realm, subject={"O": "{csr:*}", "CN": "{csr:*}"}, names=[])
    found = await core.realms.get(realm)
    issuers = await Issuers(core.store).of_realm(found.id, found.edition)
    assert len(issuers) == 3, "the root, which may be shared, and two issuing CAs"
    for number, issuer in enumerate(issuers):
        subject = {part.oid: change(str(part.value)) for part in issuer.certificate.subject}
        secret = (await core.devices.add(realm, f"d-{number}", actor=ME)).secret
        assert await outcome_of(core, Evidence(secret=secret), request("", subject=subject), label=realm) == outcome
