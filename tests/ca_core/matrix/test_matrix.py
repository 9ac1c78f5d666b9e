"""The realm matrix on the core: its size, the reason of each cell, and that it finds a check that is missing."""

import contextlib
import dataclasses
import itertools
from collections.abc import AsyncIterator, Callable
from typing import Any

import msgspec
import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from ca_core.core import Core
from ca_core.errors import NotAuthenticated, NotAuthorized, NotFound, OperatorError
from ca_core.matrix import (
    ADMIN_OPERATIONS,
    OPERATIONS,
    AllowingWebhook,
    CoreDoor,
    Credentials,
    Ground,
    Kind,
    Policy,
    Relation,
    Report,
    Size,
    read_policy,
    run,
)
from ca_core.matrix.run import chosen_pairs
from ca_core.registration import request, requester
from ca_core.registration.admission import challenge, own_certificate, secret
from ca_core.registration.certificates import Certificates
from ca_core.registration.document import RealmDocument
from ca_core.registration.pending import Pendings
from ca_core.registration.poll import poll_transaction
from ca_core.registration.profile_document import ProfileDocument
from ca_core.registration.realm import Realm
from ca_core.registration.registry import Devices
from tests.helpers.core import ME, Installation, enrolled
from tests.helpers.matrix import EVERYTHING, POLICIES, document, policy

_WIRE = {operation.value for operations in OPERATIONS.values() for operation in operations}
_PROVEN = [kind for kind in Kind if kind is not Kind.ADMIN]


@pytest.fixture
async def opened(installation: Installation) -> AsyncIterator[Core]:
    """A core with a webhook that allows all."""
    core = Core.open(dataclasses.replace(installation.config(), webhook=AllowingWebhook()))
    yield core
    core.close()


@pytest.fixture
async def under_one_root(siblings: Installation) -> AsyncIterator[Core]:
    """The same, and both realms stand under one root."""
    core = Core.open(dataclasses.replace(siblings.config(), webhook=AllowingWebhook()))
    yield core
    core.close()


async def play(core: Core, what: Policy, report: Report | None = None, **size: Any) -> Report:
    realms = await core.realms.list()
    found = report if report is not None else Report()
    ground = await Ground.make(core, what, found, under_one_root=len({row.root for row in realms}) == 1)
    return await run(ground, Credentials(ground, CoreDoor(core)), found, Size(**size))


async def test_case_37_a_credential_of_one_realm_is_refused_by_the_other_in_every_cell(
    opened: Core, under_one_root: Core, installation: Installation
) -> None:
    cells = 0
    covered: set[tuple[str, str, str]] = set()
    # What differs between the engines is asked by each kind of cell once; all of it takes a minute there.
    policies = POLICIES if installation.postgres is None else (("secret + webhook + approval",), EVERYTHING)
    for home in policies:
        for away in (home, EVERYTHING):
            report = await play(opened, policy(home, away), thorough=True)
            await play(under_one_root, policy(home, away), report, thorough=True)
            assert report.failures == [], home
            assert report.skipped == [], home
            cells += len(report.cells)
            covered |= {(cell.credential, cell.relation, cell.operation) for cell in report.cells}
    print(f"the realm matrix: {cells} cells, {len(covered)} kinds of cells")
    wanted = set(itertools.product(_PROVEN, Relation, _WIRE)) | {
        (Kind.ADMIN, relation, operation) for relation in Relation for operation in ADMIN_OPERATIONS
    }
    assert covered == wanted
    assert cells >= (6800 if installation.postgres is None else 1450)


# What the other realm answers where it takes the very same, written down by hand.
_SECRET = dict.fromkeys(Relation, "secret_unknown")
_REASONS: dict[Kind, dict[Relation, str]] = {
    Kind.SECRET: _SECRET,
    Kind.WEBHOOK: _SECRET,
    Kind.CHALLENGE: _SECRET,
    Kind.APPROVAL: dict.fromkeys(Relation, "pending"),
    Kind.OWN_CERTIFICATE: dict.fromkeys(Relation, "certificate_unknown"),
    Kind.IDEVID: {
        Relation.UNRELATED: "certificate_unknown",
        Relation.SAME_ROOT: "certificate_unknown",
        Relation.SAME_ANCHOR: "device_unknown",
        Relation.EQUAL_NAMES: "chain_invalid",
        Relation.CROSS_SIGNED: "device_unknown",
        Relation.SAME_KEY: "certificate_unknown",
    },
}


@pytest.mark.parametrize("relation", Relation)
async def test_case_37_each_cell_is_refused_for_its_own_reason(
    opened: Core, under_one_root: Core, relation: Relation
) -> None:
    core = under_one_root if relation is Relation.SAME_ROOT else opened
    report = await play(core, policy(EVERYTHING), thorough=True, relations=(relation,))
    assert report.failures == []
    looked_at = 0
    for cell in report.cells:
        if cell.credential is Kind.ADMIN or cell.operation == "CertPoll":
            continue
        expected = _REASONS[cell.credential][relation]
        if cell.credential is Kind.APPROVAL and relation is Relation.SAME_KEY:
            expected = "key_of_other_device"
        if cell.credential is Kind.APPROVAL and cell.operation == "simplereenroll":
            expected = "reenroll_needs_own_certificate"
        if cell.credential is Kind.APPROVAL and cell.operation == "RenewalReq":
            expected = "renewal_needs_certificate"
        assert report.answers[cell] == {expected}, cell
        looked_at += 1
    assert looked_at == 2 * 6 * 4


async def test_case_s10_a_poll_in_another_realm_tells_nothing_of_a_transaction(opened: Core) -> None:
    polls: dict[Relation, set[str]] = {}
    for ways in (("secret + approval",), ("idevid + approval",), ("secret",)):
        report = await play(opened, policy(ways), protocols=("scep",))
        assert report.failures == []
        for cell in report.cells:
            if cell.operation == "CertPoll" and cell.credential is not Kind.OWN_CERTIFICATE:
                polls.setdefault(cell.relation, set()).update(report.answers[cell])
    same_key = polls.pop(Relation.SAME_KEY)
    assert same_key == {"its own"}, "one transactionID of one key, in two realms"
    assert set().union(*polls.values()) == {"transaction_unknown"}


# --- what an installation may have by its rules ----------------------------------------------------------------------


async def test_two_realms_that_take_any_device_of_one_manufacturer_are_found(opened: Core) -> None:
    both = Policy(tuple(document(name, ("idevid",), idevid="trusted") for name in ("default", "other")))
    report = await play(opened, both)
    assert {(f.relation, f.credential) for f in report.failures} == {("same_anchor", "idevid")}
    assert {f.got for f in report.failures if f.operation == "simpleenroll"} == {"issued"}
    assert (await play(opened, policy(("idevid",)))).failures == [], "the twin"


async def test_two_realms_with_one_challenge_are_found(opened: Core) -> None:
    same = "one and the same challenge of both realms"
    both = Policy(tuple(document(name, ("challenge",), challenge=same) for name in ("default", "other")))
    report = await play(opened, both)
    assert {f.credential for f in report.failures} == {"challenge"}
    found = {(f.relation, f.got) for f in report.failures if f.operation == "PKCSReq"}
    assert ("equal_names", "issued") in found
    assert (await play(opened, policy(("challenge",)))).failures == [], "the twin"


async def test_a_realm_that_trusts_the_other_s_ca_still_takes_none_of_its_certificates(opened: Core) -> None:
    root = (await opened.issuers.export("default"))[0]
    pem = x509.load_der_x509_certificate(root).public_bytes(Encoding.PEM)
    await opened.trust.add("other", pem, name="the realm default", actor=ME)
    report = await play(opened, await read_policy(opened))
    assert report.failures == []
    own = {
        cell
        for cell in report.cells
        if (cell.home, cell.credential) == ("default", Kind.OWN_CERTIFICATE)
        and cell.operation != "CertPoll"
        and cell.relation is not Relation.CROSS_SIGNED
    }
    assert {code for cell in own for code in report.answers[cell]} == {"idevid_without_serial"}


async def test_a_realm_whose_factory_another_realm_is_is_found(opened: Core) -> None:
    """Any device of it is welcome, and its certificates have a serial number: then they are factory identities."""
    made = document("default", ("secret",))
    numbered = {**made.profiles["device"].subject, "serialNumber": "{device.name}"}
    profile = msgspec.structs.replace(made.profiles["device"], subject=numbered)
    home = msgspec.structs.replace(made, profiles={**made.profiles, "device": profile})
    await opened.realms.replace(await opened.realms.get("default"), home, "realm.applied", {}, ME)
    other = document("other", ("idevid",), idevid="trusted")
    await opened.realms.replace(await opened.realms.get("other"), other, "realm.applied", {}, ME)
    policies = await read_policy(opened)
    report = await play(opened, policies, protocols=("est",))
    assert [f for f in report.failures if f.credential == "own_certificate"] == [], "the twin"
    assert "trust_own_ca" not in {finding.code for finding in await opened.check()}
    root = x509.load_der_x509_certificate((await opened.issuers.export("default"))[0])
    await opened.trust.add("other", root.public_bytes(Encoding.PEM), name="the realm default", actor=ME)
    assert "trust_own_ca" in {finding.code for finding in await opened.check()}
    report = await play(opened, await read_policy(opened), protocols=("est",))
    found = {(f.home, f.operation, f.got) for f in report.failures if f.credential == "own_certificate"}
    assert ("default", "simpleenroll", "issued") in found


def with_profile(name: str, **profile: Any) -> RealmDocument:
    made = document(name, ("secret",))
    return msgspec.structs.replace(made, profiles={**made.profiles, "device": ProfileDocument(**profile)})


@pytest.mark.parametrize(
    "profile",
    [
        pytest.param({"subject": {"CN": "{device.name}", "O": "Acme"}}, id="fixed"),
        pytest.param({"subject": {"CN": "{csr:cam-*}"}}, id="asked-name"),
        pytest.param({"names": ("{csr:DNS:*.cams.example.com}", "{csr:IP:10.0.0.0/8}")}, id="asked-names"),
        pytest.param({"names": ("{csr:IP:*?}", "{csr:IP:*}")}, id="any-address"),
        pytest.param({"names": ("{csr:DNS:gw.example.com?}", "{csr:IP:10.0.0.0/30?}")}, id="names-of-few-left-out"),
        pytest.param({"names": ("DNS:{device.name}.example.com",), "others": "refuse"}, id="made-names"),
        pytest.param(
            {"subject": {"CN": "{device.name}", "serialNumber": "{device.serial_number}"}}, id="serial-number"
        ),
        pytest.param({"subject": {"CN": "{device.name}", "OU": "{device.owner}"}}, id="owner"),
        pytest.param(
            {"names": ("DNS:gw.example.com", "DNS:{realm}.example.com"), "others": "refuse"}, id="fixed-names"
        ),
        pytest.param({"names": ("DNS:{device.owner}.example.com",)}, id="name-of-the-owner"),
        pytest.param({"keys": ("rsa",), "issuer": "rsa"}, id="rsa"),
        pytest.param({"keys": ("p-384",), "rekey": "required"}, id="p-384"),
    ],
)
async def test_whatever_its_certificates_say_a_realm_s_credentials_work_in_it_and_in_no_other(
    opened: Core, profile: dict[str, Any]
) -> None:
    both = Policy((with_profile("default", **profile), with_profile("other", **profile)))
    report = await play(opened, both, protocols=("est",))
    assert report.failures == []
    assert report.skipped == []
    own = {cell.operation for cell in report.cells if cell.credential is Kind.OWN_CERTIFICATE}
    assert own == {"simpleenroll", "simplereenroll"}


@pytest.mark.parametrize("ways", [("secret",), ("approval",), ("secret", "challenge + approval")], ids=" ".join)
@pytest.mark.parametrize(
    "profile",
    [
        pytest.param({"names": ("{csr:DNS:gw.example.com}",)}, id="asked-name"),
        pytest.param({"names": ("{csr:IP:10.0.0.0/31}",)}, id="two-addresses"),
        pytest.param({"subject": {"CN": "{csr:gw}"}}, id="asked-common-name"),
    ],
)
async def test_a_name_that_only_one_device_can_have_is_not_proven_and_no_finding(
    opened: Core, ways: tuple[str, ...], profile: dict[str, Any]
) -> None:
    made = tuple(document(name, ways) for name in ("default", "other"))
    both = [msgspec.structs.replace(m, profiles={**m.profiles, "device": ProfileDocument(**profile)}) for m in made]
    report = await play(opened, Policy(tuple(both)), protocols=("est",))
    assert report.failures == []
    assert report.cells
    assert any("a name that few devices can have" in skipped.reason for skipped in report.skipped)


async def test_what_an_open_realm_lets_in_is_said_and_not_counted(opened: Core) -> None:
    made = document("other", ("open",))
    free = msgspec.structs.replace(made, admission=msgspec.structs.replace(made.admission, open=True))
    report = await play(opened, Policy((document("default", ("secret", "approval")), free)))
    assert report.failures == []
    assert {(s.home, s.away, s.credential) for s in report.skipped} == {
        ("other", None, None),
        ("default", "other", "approval"),
    }


@pytest.mark.parametrize(
    ("ways", "settings"),
    [
        pytest.param(("open + webhook",), {"open": True}, id="open-webhook"),
        pytest.param(("open + approval",), {"open": True}, id="open-approval"),
        pytest.param(("challenge + webhook",), {}, id="challenge-webhook"),
        pytest.param(("idevid",), {"idevid": "trusted"}, id="any-device"),
        pytest.param(("secret",), {"own_certificate": False}, id="no-renewal"),
        pytest.param(("secret",), {"ceiling": 1}, id="ceiling"),
        pytest.param(("approval",), {"pending_most": 1, "pending_per_source": 1}, id="one-waits"),
        pytest.param((), {"secret": False, "idevid": "off"}, id="nobody"),
    ],
)
async def test_whatever_a_realm_s_rules_are_it_is_apart_from_one_with_others(
    opened: Core, ways: tuple[str, ...], settings: dict[str, Any]
) -> None:
    made = document("other", ways)
    admission = msgspec.structs.replace(made.admission, **settings)
    odd = msgspec.structs.replace(made, admission=admission, retry_window="1s", secret_lifetime="1s")
    report = await play(opened, Policy((document("default", EVERYTHING), odd)))
    assert [f for f in report.failures if f.relation != "same_anchor"] == []
    # Where it takes any device of a manufacturer that the other one trusts as well, that is what is found.
    assert bool(report.failures) is (settings.get("idevid") == "trusted")
    assert {cell.home for cell in report.cells} >= {"default"}


async def test_a_realm_whose_certificates_are_not_for_clients_has_none_to_show(opened: Core) -> None:
    made = document("other", ("secret",))
    profiles = {
        name: msgspec.structs.replace(profile, extended_key_usages=("serverAuth",))
        for name, profile in made.profiles.items()
    }
    report = await play(
        opened, Policy((document("default", ("secret",)), msgspec.structs.replace(made, profiles=profiles)))
    )
    assert report.failures == []
    [skipped] = report.skipped
    assert (skipped.home, skipped.credential) == ("other", "own_certificate")
    assert "certificate_not_for_clients" in skipped.reason


def test_of_too_many_pairs_each_realm_has_its_share() -> None:
    class Named:
        trusted: list[object] = []  # noqa: RUF012  # nobody changes it
        challenge = None

        def __init__(self, name: str) -> None:
            self.name = name

    places: Any = [Named(f"r{number}") for number in range(20)]
    chosen = chosen_pairs(places, 90)
    assert {len(aways) for aways in chosen.values()} == {4}
    assert {away.name for aways in chosen.values() for away in aways} == {place.name for place in places}
    assert sum(map(len, chosen_pairs(places[:10], 90).values())) == 90


# --- planted holes ---------------------------------------------------------------------------------------------------


def realms_like(realm: Realm) -> list[Realm]:
    """The realm, as if it had any other's rows."""
    return [dataclasses.replace(realm, id=number) for number in (1, 2)]


def certificates_of_any_realm(patch: pytest.MonkeyPatch) -> None:
    async def find(store: Any, realm: Realm, fingerprint: bytes) -> Any:
        found = [await own_certificate.find_own_certificate(store, each, fingerprint) for each in realms_like(realm)]
        return next((each for each in found if each is not None), None)

    patch.setattr(requester, "find_own_certificate", find)


def secrets_of_any_realm(patch: pytest.MonkeyPatch) -> None:
    async def admit(store: Any, realm: Realm, *rest: Any) -> Any:
        first, second = realms_like(realm)
        try:
            return await secret.admit_by_secret(store, first, *rest)
        except NotAuthenticated:
            return await secret.admit_by_secret(store, second, *rest)

    patch.setattr(requester, "admit_by_secret", admit)


def anchors_of_all_realms(patch: pytest.MonkeyPatch) -> None:
    every: dict[bytes, Any] = {}
    properties: dict[str, Any] = dict(vars(Realm))
    before = properties["anchors"].func

    def anchors(realm: Realm) -> Any:
        every.update(before(realm))
        return every

    patch.setattr(Realm, "anchors", property(anchors))
    patch.setattr(Realm, "anchor_certificates", property(properties["anchor_certificates"].func))
    patch.setattr(Realm, "anchor_stores", property(properties["anchor_stores"].func))


def challenges_of_any_realm(patch: pytest.MonkeyPatch) -> None:
    known: set[str] = set()

    def is_challenge(realm: Realm, text: str) -> bool:
        known.add(realm.document.admission.challenge or "")
        return challenge.hash_challenge(text) in known

    patch.setattr(requester, "is_challenge", is_challenge)


def transactions_of_any_realm(patch: pytest.MonkeyPatch) -> None:
    async def poll(store: Any, realm: Realm, *rest: Any) -> Any:
        first, second = realms_like(realm)
        try:
            return await poll_transaction(store, first, *rest)
        except NotAuthorized:
            return await poll_transaction(store, second, *rest)

    patch.setattr(request, "poll_transaction", poll)


def requests_of_any_realm(patch: pytest.MonkeyPatch) -> None:
    before = Pendings.of_transaction

    async def of_transaction(self: Pendings, realm: Realm, *rest: Any) -> Any:
        found = [await before(self, each, *rest) for each in realms_like(realm)]
        return next((each for each in found if each is not None), None)

    patch.setattr(Pendings, "of_transaction", of_transaction)


def approvals_of_any_realm(patch: pytest.MonkeyPatch) -> None:
    before = Pendings.find

    async def find(self: Pendings, realm: Realm, *rest: Any) -> Any:
        found = [each for like in realms_like(realm) if (each := await before(self, like, *rest)) is not None]
        return next((each for each in found if each.state == "approved"), found[0] if found else None)

    patch.setattr(Pendings, "find", find)


def serials_of_any_realm(patch: pytest.MonkeyPatch) -> None:
    before = Certificates._find

    async def find(self: Certificates, serial: str, _: str | None) -> Any:
        return await before(self, serial, None)

    patch.setattr(Certificates, "_find", find)


def lists_of_any_realm(patch: pytest.MonkeyPatch) -> None:
    before = Certificates.list

    async def list_all(self: Certificates, *, realm: str | None = None, **rest: Any) -> Any:  # noqa: ARG001  # the hole
        return await before(self, **rest)

    patch.setattr(Certificates, "list", list_all)


def suspended_by_name_alone(patch: pytest.MonkeyPatch) -> None:
    before = Devices.suspend

    async def suspend(self: Devices, realm: str, name: str, *, actor: str) -> Any:
        done = await before(self, realm, name, actor=actor)
        await before(self, "other" if realm == "default" else "default", name, actor=actor)
        return done

    patch.setattr(Devices, "suspend", suspend)


def secrets_voided_by_name_alone(patch: pytest.MonkeyPatch) -> None:
    before = Devices.secret

    async def new_secret(self: Devices, realm: str, name: str, **rest: Any) -> Any:
        if rest["actor"] == "check:matrix":
            with contextlib.suppress(OperatorError):
                await before(self, "other" if realm == "default" else "default", name, **rest)
        return await before(self, realm, name, **rest)

    patch.setattr(Devices, "secret", new_secret)


@pytest.mark.parametrize(
    ("plant", "ways", "relation", "kind", "operation"),
    [
        (certificates_of_any_realm, "secret", Relation.UNRELATED, "own_certificate", "simplereenroll"),
        (certificates_of_any_realm, "secret", Relation.SAME_ROOT, "own_certificate", "simplereenroll"),
        (certificates_of_any_realm, "secret", Relation.CROSS_SIGNED, "own_certificate", "RenewalReq"),
        (secrets_of_any_realm, "secret", Relation.EQUAL_NAMES, "secret", "PKCSReq"),
        (secrets_of_any_realm, "secret + webhook", Relation.UNRELATED, "webhook", "simpleenroll"),
        (anchors_of_all_realms, "idevid", Relation.UNRELATED, "idevid", "simpleenroll"),
        (anchors_of_all_realms, "idevid", Relation.EQUAL_NAMES, "idevid", "PKCSReq"),
        (challenges_of_any_realm, "challenge", Relation.EQUAL_NAMES, "challenge", "simpleenroll"),
        (transactions_of_any_realm, "secret", Relation.UNRELATED, "secret", "CertPoll"),
        (requests_of_any_realm, "secret + approval", Relation.UNRELATED, "approval", "CertPoll"),
        (approvals_of_any_realm, "approval", Relation.UNRELATED, "approval", "simpleenroll"),
        (serials_of_any_realm, "secret", Relation.UNRELATED, "admin", "cert revoke"),
        (serials_of_any_realm, "secret", Relation.SAME_ROOT, "admin", "cert revoke"),
        (lists_of_any_realm, "secret", Relation.UNRELATED, "admin", "list"),
        (suspended_by_name_alone, "secret", Relation.EQUAL_NAMES, "admin", "device suspend"),
        (secrets_voided_by_name_alone, "secret", Relation.EQUAL_NAMES, "admin", "device secret"),
    ],
    ids=lambda value: value.__name__ if callable(value) else None,
)
async def test_case_37_a_check_that_is_missing_is_found_in_its_cell(
    opened: Core,
    under_one_root: Core,
    monkeypatch: pytest.MonkeyPatch,
    plant: Callable[[pytest.MonkeyPatch], None],
    ways: str,
    relation: Relation,
    kind: str,
    operation: str,
) -> None:
    size: dict[str, Any] = {"relations": (relation,), "thorough": True}
    core = under_one_root if relation is Relation.SAME_ROOT else opened
    assert (await play(core, policy((ways,)), **size)).failures == [], "the twin"
    plant(monkeypatch)
    report = await play(core, policy((ways,)), **size)
    assert (relation.value, kind, operation) in {(f.relation, f.credential, f.operation) for f in report.failures}
    assert all(found.got not in found.expected.split(" or ") for found in report.failures)


# --- cases beside the matrix -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("protocol", ["est", "scep"])
@pytest.mark.parametrize("label", ["gamma", "other.gamma", "default.gamma", "OTHER", "other/", "cacerts"])
async def test_case_38_an_unknown_label_is_not_found_and_never_another_realm(
    core: Core, protocol: str, label: str
) -> None:
    try:
        code = f"resolved to {(await core.realms.resolve(protocol, label, None)).realm.name}"
    except NotFound as refusal:
        code = refusal.code
    except Exception as exc:
        code = repr(exc)
    assert code == "realm_unknown"
    assert (await core.realms.resolve(protocol, "other", None)).realm.name == "other", "the twin"


async def test_case_44_what_one_realm_s_operator_names_revokes_nothing_of_another_realm_or_a_ca(core: Core) -> None:
    device = await enrolled(core)

    async def code_of_revoking(serial: str, realm: str | None) -> str:
        try:
            return (await core.certificates.revoke(serial, realm=realm, actor=ME)).certificate.status
        except OperatorError as exc:
            return exc.code
        except Exception as exc:
            return repr(exc)

    assert await code_of_revoking(device.serial, "other") == "certificate_unknown"
    for der in await core.issuers.export("default"):
        serial = format(x509.load_der_x509_certificate(der).serial_number, "x")
        for realm in ("default", "other", None):
            assert await code_of_revoking(serial, realm) in ("certificate_infrastructure", "certificate_unknown")
    assert (await core.certificates.find(device.serial)).status == "valid"
    assert await code_of_revoking(device.serial, "default") == "revoked", "the twin"


async def test_case_40_a_factory_identity_that_is_on_no_list_or_on_another_realm_s_is_refused(opened: Core) -> None:
    report = await play(opened, policy(("idevid",)), relations=(Relation.SAME_ANCHOR,), protocols=("est",))
    cells = {cell for cell in report.cells if cell.credential is Kind.IDEVID and cell.operation == "simpleenroll"}
    assert {code for cell in cells for code in report.answers[cell]} == {"device_unknown"}
    assert len(cells) == 2
    assert report.failures == []
