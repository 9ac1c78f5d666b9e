"""Realms under the root of another one, said explicitly: what they share, and that they are apart all the same."""

import datetime as dt
import io
from collections.abc import AsyncIterator, Awaitable, Callable

import pytest
from cryptography import x509
from cryptography.x509.oid import AuthorityInformationAccessOID
from cryptography.x509.verification import ExtensionPolicy, PolicyBuilder, Store

from ca_core.core import Core
from ca_core.errors import OperatorError
from ca_core.model import Evidence
from ca_core.registration.device_change import Facts
from ca_core.registration.realm import Resolved
from tests.helpers.core import ME, OTHER_HOST, PUBLIC_URL, START, Installation, code_of, csr_of, enrolled

Refused = Callable[[Core], Awaitable[object]]
CA_ISSUERS = AuthorityInformationAccessOID.CA_ISSUERS


@pytest.fixture
async def core(siblings: Installation) -> AsyncIterator[Core]:
    """`other` stands under the root of `default`."""
    opened = siblings.open()
    yield opened
    opened.close()


async def code_of_act(act: Awaitable[object]) -> str:
    try:
        await act
    except OperatorError as refusal:
        return refusal.code
    return "done"


def loaded(ders: list[bytes]) -> list[x509.Certificate]:
    return [x509.load_der_x509_certificate(der) for der in ders]


async def resolved(core: Core, protocol: str = "est") -> Resolved:
    return await core.realms.resolve(protocol, "other", None)


async def test_it_has_issuing_cas_of_its_own_under_the_other_s_root(core: Core) -> None:
    (root, *_), own = await core.issuers.export("default"), await core.issuers.export("other")
    assert own[0] == root
    assert [(row.issuer, row.parent) for row in await core.issuers.list("other")] == [
        ("other-ec-1", "default-root-1"),
        ("other-rsa-1", "default-root-1"),
    ]
    assert [row.root for row in await core.realms.list()] == ["default-root-1", "default-root-1"]
    top, *below = loaded(list(own))
    for issuing in below:
        issuing.verify_directly_issued_by(top)
        assert issuing.not_valid_after_utc <= top.not_valid_after_utc
        # Whoever signs says where its lists are: the root is the other realm's.
        (point,) = issuing.extensions.get_extension_for_class(x509.CRLDistributionPoints).value
        assert point.full_name is not None
        assert [name.value for name in point.full_name] == [f"{PUBLIC_URL}/pki/default-root-1/0.crl"]
        access = issuing.extensions.get_extension_for_class(x509.AuthorityInformationAccess).value
        urls = [each.access_location.value for each in access if each.access_method == CA_ISSUERS]
        assert urls == [f"{PUBLIC_URL}/pki/default-root-1.cer"]


async def test_what_it_issues_is_verified_with_the_shared_root(core: Core) -> None:
    device = await enrolled(core, realm="other")
    root, *above = loaded(await core.ca_certificates(await resolved(core)))
    verifier = (
        PolicyBuilder()
        .store(Store([root]))
        .time(START + dt.timedelta(minutes=1))
        .extension_policies(
            ca_policy=ExtensionPolicy.webpki_defaults_ca(),
            ee_policy=ExtensionPolicy.permit_all(),
        )
        .build_client_verifier()
    )
    assert [each.subject for each in verifier.verify(device.x509, above).chain] == [
        device.x509.subject,
        device.x509.issuer,
        root.subject,
    ]


async def test_scep_clients_get_the_shared_root_with_the_ra(core: Core) -> None:
    ra = await core.ra(await resolved(core, "scep"))
    certificate, issuing, root = loaded([ra.certificate, *ra.issuers])
    certificate.verify_directly_issued_by(issuing)
    issuing.verify_directly_issued_by(root)
    assert root.subject == loaded(list(await core.issuers.export("default")))[0].subject


async def test_its_own_host_is_shown_under_the_shared_root(core: Core) -> None:
    await core.server_certificates.ensure(["pki.example.com"])
    leaf, issuing = loaded(list(core.server_certificates.select(OTHER_HOST).chain))
    leaf.verify_directly_issued_by(issuing)
    issuing.verify_directly_issued_by(loaded(list(await core.issuers.export("default")))[0])


async def test_without_a_host_its_clients_verify_the_shared_one(core: Core) -> None:
    await core.server_certificates.ensure(["pki.example.com"])
    await core.crls.publish()
    text = await core.realms.export("other")
    await core.realms.apply(text.replace(f'    "{OTHER_HOST}",\n', ""), actor=ME)
    await core.realms.add("alone", actor=ME)
    await core.ra_certificates.ensure()
    await core.crls.publish(only_due=True)
    found = [(finding.code, finding.message.split()[8]) for finding in await core.check(["pki.example.com"])]
    assert found == [("realm_without_host", "alone")], "the twin has a root of its own"


async def test_case_37_a_certificate_under_the_same_root_is_unknown_there(core: Core) -> None:
    laptop = await enrolled(core, "laptop")
    pacemaker = await enrolled(core, "laptop", realm="other")
    assert await code_of(core, laptop.evidence, csr_of(laptop.key, "laptop"), label="other") == "certificate_unknown"
    assert await code_of(core, pacemaker.evidence, csr_of(pacemaker.key, "laptop")) == "certificate_unknown"
    assert await code_of(core, laptop.evidence, csr_of(laptop.key, "laptop")) == "issued", "the twin"
    again = await code_of(core, pacemaker.evidence, csr_of(pacemaker.key, "laptop"), label="other")
    assert again == "issued", "the twin"


async def test_a_revocation_stands_in_the_list_of_its_own_issuer_alone(core: Core) -> None:
    device = await enrolled(core, realm="other")
    await core.certificates.revoke(device.serial, reason="superseded", actor=ME)
    await core.crls.publish()
    listed = {row.issuer: row.entries for row in await core.crls.list()}
    assert {issuer for issuer, entries in listed.items() if entries} == {"other-ec-1"}
    assert listed["default-root-1"] == 0


@pytest.mark.parametrize(
    ("name", "options", "code"),
    [
        pytest.param("third", {"root_of": "nowhere"}, "realm_unknown", id="unknown"),
        pytest.param("third", {"root_of": "other"}, "root_not_own", id="a-root-that-is-not-its-own"),
        pytest.param("third", {"root_of": "default", "keys": {"root": "p-256"}}, "key_kind_invalid", id="another-key"),
        pytest.param("other", {"root_of": "default"}, "realm_exists", id="exists"),
        pytest.param("third", {"root_of": "gone"}, "root_unusable", id="retired"),
        pytest.param("third", {"root_of": "default"}, "done", id="twin"),
        pytest.param("third", {"root_of": "default", "keys": {"ec": "p-384"}}, "done", id="twin-kinds"),
    ],
)
async def test_a_root_that_it_can_t_stand_under_is_refused(
    core: Core, name: str, options: dict[str, object], code: str
) -> None:
    await core.realms.add("gone", actor=ME)
    await core.realms.retire("gone", actor=ME)
    before = await core.realms.list()
    assert await code_of_act(core.realms.add(name, actor=ME, **options)) == code  # type: ignore[arg-type]
    assert (await core.realms.list() == before) is (code != "done")


async def test_an_expired_root_signs_no_more(core: Core, siblings: Installation) -> None:
    siblings.clock.forward(days=26 * 365)
    assert await code_of_act(core.realms.add("third", root_of="default", actor=ME)) == "root_unusable"


async def test_under_a_root_that_is_not_rsa_it_does_not_speak_scep(core: Core) -> None:
    await core.realms.add("elliptic", keys={"root": "p-384"}, actor=ME)
    await core.realms.add("below", root_of="elliptic", actor=ME)
    await core.realms.add("beside", root_of="default", actor=ME)
    realms = await core.realms.current()
    assert realms["below"].document.speaks_scep is False
    assert realms["beside"].document.speaks_scep is True, "the twin"
    assert (await enrolled(core, realm="below")).name == "sensor"


async def test_the_audit_trail_says_whose_root_it_is(core: Core, siblings: Installation) -> None:
    await core.realms.add("third", root_of="default", actor=ME)
    await core.realms.add("fourth", actor=ME)
    added = {tuple(event["issuers"])[-1].partition("-")[0]: event for event in siblings.events("realm.added")}
    shared, own = added["third"], added["fourth"]
    assert (shared["root"], set(shared["issuers"])) == ("default-root-1", {"third-ec-1", "third-rsa-1"})
    assert "root" not in own
    assert set(own["issuers"]) == {"fourth-root-1", "fourth-ec-1", "fourth-rsa-1"}


# --- retired realms --------------------------------------------------------------------------------------------------


async def test_nobody_enrolls_or_renews_in_a_retired_realm_until_it_resumes(core: Core, siblings: Installation) -> None:
    device, waiting = await enrolled(core, realm="other"), await core.devices.add("other", "late", actor=ME)
    second = siblings.open()
    try:
        row = await core.realms.retire("other", actor=ME)
        assert (row.state, row.version) == ("retired", 2)
        for each in (core, second):
            for label, host in (("other", None), (None, OTHER_HOST), ("default", OTHER_HOST), ("other", OTHER_HOST)):
                got = await code_of(each, device.evidence, csr_of(device.key), label=label, host=host)
                assert got == ("realm_not_here" if label == "default" else "realm_retired"), (label, host)
        assert await code_of(core, device.evidence, csr_of(device.key), label="default") == "certificate_unknown"
        revoked = await core.certificates.revoke(device.serial, reason="superseded", actor=ME)
        assert revoked.certificate.status == "revoked"
        assert "other-ec-1" in {row.issuer for row in await core.crls.publish()}
        await second.realms.resume("other", actor=ME)
        assert await code_of(core, device.evidence, csr_of(device.key), label="other") == "certificate_revoked"
        late = Evidence(username="", secret=waiting.secret)
        assert (
            await code_of(core, late, csr_of(device.key, "late"), host=OTHER_HOST, label=None) == "key_of_other_device"
        )
    finally:
        second.close()


IN_RETIRED: dict[str, tuple[Refused, str]] = {
    "add": (lambda core: core.devices.add("other", "late", actor=ME), "realm_retired"),
    "secret": (lambda core: core.devices.secret("other", "early", actor=ME), "realm_retired"),
    "set": (lambda core: core.devices.change("other", "early", Facts(owner="line 7"), actor=ME), "realm_retired"),
    "set-name": (
        lambda core: core.devices.change("other", "early", Facts(names=["DNS:a.example"]), actor=ME),
        "realm_retired",
    ),
    "import": (
        lambda core: core.device_import.run("other", io.BytesIO(b"name\nlate\n"), "late.csv", actor=ME),
        "realm_retired",
    ),
    "suspend": (lambda core: core.devices.suspend("other", "early", actor=ME), "done"),
    "replace": (lambda core: core.devices.new_board("other", "early", actor=ME), "done"),
    "replace-by": (lambda core: core.devices.replace_by("other", "early", "second", actor=ME), "done"),
    "retire": (lambda core: core.devices.retire("other", "early", actor=ME), "done"),
}


@pytest.mark.parametrize(("act", "code"), IN_RETIRED.values(), ids=IN_RETIRED)
async def test_no_device_is_let_into_a_retired_realm_and_all_else_goes_on(core: Core, act: Refused, code: str) -> None:
    for name in ("early", "second"):
        await core.devices.add("other", name, actor=ME)
    await core.realms.retire("other", actor=ME)
    assert await code_of_act(act(core)) == code
    await core.realms.resume("other", actor=ME)
    if code != "done":
        assert await code_of_act(act(core)) == "done", "the twin"


@pytest.mark.parametrize(
    ("act", "code"),
    [
        pytest.param(lambda core: core.realms.retire("default", actor=ME), "realm_default", id="default"),
        pytest.param(lambda core: core.realms.retire("nowhere", actor=ME), "realm_unknown", id="unknown"),
        pytest.param(lambda core: core.realms.retire("root", actor=ME), "realm_shares_root", id="others-stand-under"),
        pytest.param(lambda core: core.realms.retire("retired", actor=ME), "realm_retired", id="retired-before"),
        pytest.param(lambda core: core.realms.resume("leaf", actor=ME), "realm_active", id="active-before"),
        pytest.param(lambda core: core.realms.retire("leaf", actor=ME), "done", id="twin"),
        pytest.param(lambda core: core.realms.resume("retired", actor=ME), "done", id="twin-resume"),
    ],
)
async def test_a_realm_that_others_need_is_not_retired(core: Core, act: Refused, code: str) -> None:
    await core.realms.add("root", actor=ME)
    await core.realms.add("leaf", root_of="root", actor=ME)
    await core.realms.add("retired", root_of="root", actor=ME)
    await core.realms.retire("retired", actor=ME)
    assert await code_of_act(act(core)) == code


async def test_a_realm_resumes_after_the_one_whose_root_it_has(core: Core) -> None:
    await core.realms.add("root", actor=ME)
    await core.realms.add("leaf", root_of="root", actor=ME)
    for name in ("leaf", "root"):
        await core.realms.retire(name, actor=ME)
    assert await code_of_act(core.realms.resume("leaf", actor=ME)) == "realm_retired"
    for name in ("root", "leaf"):
        assert await code_of_act(core.realms.resume(name, actor=ME)) == "done"


async def test_a_realm_that_was_retired_meanwhile_gets_nobody_under_its_root(
    core: Core, siblings: Installation, monkeypatch: pytest.MonkeyPatch
) -> None:
    await core.realms.add("root", actor=ME)
    second = siblings.open()
    before = core.issuance.new_key
    acts = 0

    async def retire_meanwhile(*given: object) -> object:
        nonlocal acts
        if not acts:
            await second.realms.retire("root", actor=ME)
        acts += 1
        return await before(*given)  # type: ignore[arg-type]

    monkeypatch.setattr(core.issuance, "new_key", retire_meanwhile)
    try:
        assert await code_of_act(core.realms.add("leaf", root_of="root", actor=ME)) == "realm_changed"
    finally:
        second.close()
    assert acts == 2
    assert "leaf" not in await core.realms.current()
