"""enrolld's own server certificates: which is shown to whom, and when a new one is made."""

import asyncio
import datetime as dt
import ipaddress

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID
from cryptography.x509.verification import PolicyBuilder, Store, VerificationError

from ca_core.core import Core
from ca_core.errors import InternalError, OperatorError, Unavailable
from ca_core.registration.servers import SHARED, ServerIdentity, shared_names
from tests.helpers.admission import admit_by
from tests.helpers.core import (
    ME,
    OTHER_HOST,
    OTHER_URL,
    PUBLIC_URL,
    START,
    Installation,
    SetClock,
    edit_realm,
    enrolled,
)

NAMES = ["pki.example.com", "192.0.2.7"]
DAY = dt.timedelta(days=1)


def _leaf(shown: ServerIdentity) -> x509.Certificate:
    return x509.load_der_x509_certificate(shown.chain[0])


async def _verifies(core: Core, realm: str, shown: ServerIdentity, name: str, now: dt.datetime = START) -> bool:
    """As a client would that trusts this realm's root alone."""
    root = x509.load_der_x509_certificate((await core.issuers.export(realm))[0])
    subject = x509.DNSName(name)
    verifier = PolicyBuilder().store(Store([root])).time(now).build_server_verifier(subject)
    try:
        verifier.verify(_leaf(shown), [x509.load_der_x509_certificate(der) for der in shown.chain[1:]])
    except VerificationError:
        return False
    return True


async def test_the_sni_picks_the_certificate(core: Core) -> None:
    with pytest.raises(InternalError):
        core.server_certificates.select(None)
    await core.server_certificates.ensure(NAMES)
    select = core.server_certificates.select
    shared = select(None)
    assert (shared.realm, shared.names) == ("default", ("DNS:pki.example.com", "IP:192.0.2.7"))
    assert select("pki.example.com") is select("") is select("anything.example") is select("*") is shared
    own = select(OTHER_HOST)
    assert (own.realm, own.names) == ("other", (f"DNS:{OTHER_HOST}",))
    assert set(core.server_certificates.all()) == {SHARED, OTHER_HOST}


async def test_a_realm_s_own_host_is_verified_with_that_realm_s_root_alone(core: Core) -> None:
    await core.server_certificates.ensure(NAMES)
    shared, own = core.server_certificates.select(None), core.server_certificates.select(OTHER_HOST)
    assert await _verifies(core, "other", own, OTHER_HOST)
    assert not await _verifies(core, "default", own, OTHER_HOST)
    assert not await _verifies(core, "other", own, "pki.example.com")
    assert await _verifies(core, "default", shared, "pki.example.com")
    assert not await _verifies(core, "other", shared, "pki.example.com")


async def test_a_server_certificate_serves_servers_only(core: Core) -> None:
    await core.server_certificates.ensure(NAMES)
    shown = core.server_certificates.select(None)
    leaf = _leaf(shown)
    usages = leaf.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
    assert list(usages) == [ExtendedKeyUsageOID.SERVER_AUTH]
    assert isinstance(shown.private_key, ec.EllipticCurvePrivateKey)
    assert shown.private_key.public_key() == leaf.public_key()
    names = leaf.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert set(names) == {x509.DNSName(NAMES[0]), x509.IPAddress(ipaddress.ip_address(NAMES[1]))}


async def test_a_server_certificate_points_to_the_crl_of_its_realm(core: Core) -> None:
    await core.server_certificates.ensure(NAMES)
    for host, url in (
        (None, f"{PUBLIC_URL}/pki/default-ec-1/0.crl"),
        (OTHER_HOST, f"{OTHER_URL}/pki/other-ec-1/0.crl"),
    ):
        leaf = _leaf(core.server_certificates.select(host))
        (point,) = leaf.extensions.get_extension_for_class(x509.CRLDistributionPoints).value
        assert point.full_name == [x509.UniformResourceIdentifier(url)]


def test_without_names_the_certificate_is_for_this_machine() -> None:
    names = shared_names([])
    assert {"DNS:localhost", "IP:127.0.0.1", "IP:::1"} <= set(names)
    assert len(names) == len(set(names))


def test_names_of_the_shared_host_are_hosts_and_addresses() -> None:
    typed = ["PKI.Example.com", "192.0.2.1", "[2001:db8::1]", "2001:DB8::1", "pki.example.com"]
    assert shared_names(typed) == ("DNS:pki.example.com", "IP:192.0.2.1", "IP:2001:db8::1")
    for wrong in ("*.example.com", "a b", "", "http://a"):
        with pytest.raises(OperatorError):
            shared_names([wrong])


async def test_a_name_longer_than_a_common_name_is_in_the_san(core: Core) -> None:
    long = ".".join(["label-of-some-length"] * 5) + ".example"
    await core.server_certificates.ensure([long])
    leaf = _leaf(core.server_certificates.select(None))
    names = leaf.extensions.get_extension_for_class(x509.SubjectAlternativeName)
    assert list(names.value) == [x509.DNSName(long)]
    assert list(leaf.subject) == []
    assert names.critical
    assert await _verifies(core, "default", core.server_certificates.select(None), long)


# --- renewal ---------------------------------------------------------------------------------------------------------


async def _made(core: Core, installation: Installation, names: list[str]) -> int:
    before = len(installation.events("server_certificate.issued"))
    await core.server_certificates.ensure(names)
    return len(installation.events("server_certificate.issued")) - before


@pytest.mark.parametrize(("left", "made"), [(31, 0), (29, 2), (-1, 2)])
async def test_it_is_renewed_when_less_than_thirty_days_are_left(
    core: Core, clock: SetClock, installation: Installation, left: int, made: int
) -> None:
    assert await _made(core, installation, NAMES) == 2
    before = core.server_certificates.select(None)
    clock.now = before.not_after - left * DAY
    assert await _made(core, installation, NAMES) == made
    after = core.server_certificates.select(None)
    assert (after.fingerprint != before.fingerprint) is (made > 0)
    assert after.not_after > clock.now + 30 * DAY
    assert after.private_key is before.private_key or made


@pytest.mark.parametrize("engine", ["sqlite"], indirect=True)
async def test_it_is_made_anew_for_other_names(core: Core, installation: Installation) -> None:
    assert await _made(core, installation, NAMES) == 2
    assert await _made(core, installation, NAMES) == 0
    assert await _made(core, installation, ["new.example.com"]) == 1
    assert core.server_certificates.select(None).names == ("DNS:new.example.com",)
    assert installation.sql("SELECT count(*) FROM server_certificate") == [(2,)]


async def test_a_new_host_gets_a_certificate_and_a_gone_one_is_not_shown(
    core: Core, second: Core, installation: Installation
) -> None:
    await core.server_certificates.ensure(NAMES)
    await edit_realm(second, "other", OTHER_HOST, "moved.example.com")
    assert await _made(core, installation, NAMES) == 1
    assert set(core.server_certificates.all()) == {SHARED, "moved.example.com"}
    assert core.server_certificates.select(OTHER_HOST).realm == "default"


async def test_two_nodes_at_once_make_one_certificate_per_host(
    core: Core, second: Core, installation: Installation
) -> None:
    await asyncio.gather(*(node.server_certificates.ensure(NAMES) for node in (core, second) * 3))
    assert len(installation.events("server_certificate.issued")) == 2
    assert installation.sql("SELECT count(*) FROM certificate WHERE kind = 'server'") == [(2,)]
    await second.server_certificates.refresh()
    await core.server_certificates.refresh()
    for host in (None, OTHER_HOST):
        shown = [node.server_certificates.select(host) for node in (core, second)]
        assert shown[0].fingerprint == shown[1].fingerprint


@pytest.mark.parametrize("engine", ["sqlite"], indirect=True)
async def test_refresh_takes_what_another_node_made_and_says_so(core: Core, second: Core) -> None:
    await core.server_certificates.ensure(NAMES)
    assert await second.server_certificates.refresh()
    assert not await second.server_certificates.refresh()
    await core.server_certificates.ensure(["new.example.com"])
    assert await second.server_certificates.refresh()
    assert second.server_certificates.select(None).names == ("DNS:new.example.com",)


async def test_a_realm_decides_whether_its_host_asks_for_a_client_certificate(core: Core) -> None:
    await core.server_certificates.ensure(NAMES)
    assert core.server_certificates.select(OTHER_HOST).ask_client_certificate
    await edit_realm(core, "other", "ask_client_certificate = true", "ask_client_certificate = false")
    assert await core.server_certificates.refresh()
    assert not core.server_certificates.select(OTHER_HOST).ask_client_certificate
    assert core.server_certificates.select(None).ask_client_certificate


async def test_without_the_unlock_key_no_certificate_is_made(installation: Installation) -> None:
    core = installation.open(sealed=True)
    with pytest.raises(Unavailable):
        await core.server_certificates.ensure(NAMES)
    assert installation.sql("SELECT count(*) FROM server_certificate") == [(0,)]
    core.close()


# --- check and status ------------------------------------------------------------------------------------------------


async def test_check_finds_nothing_where_all_is_well(core: Core) -> None:
    await core.server_certificates.ensure(NAMES)
    assert await core.check(NAMES) == []


async def _findings(core: Core, names: list[str] | None = None) -> dict[str, str]:
    found = await core.check(NAMES if names is None else names)
    assert all(finding.remedy and finding.message for finding in found)
    return {finding.code: finding.severity for finding in found}


async def test_check_tells_of_a_demo(installation: Installation) -> None:
    core = installation.open(demo=True)
    assert await _findings(core, []) == {"demo": "info"}
    assert await _findings(core) == {}
    core.close()


async def test_check_reminds_of_realms_that_are_open_or_share_a_challenge(core: Core) -> None:
    await core.realms.challenge("other", None, actor=ME)
    await admit_by(core, "challenge + approval", realm="other")
    assert await _findings(core) == {}
    await admit_by(core, "challenge", realm="other")
    assert await _findings(core) == {"realm_challenge": "warning"}
    await admit_by(core, "open", realm="other", open=True)
    assert await _findings(core) == {"realm_open": "warning"}


async def test_check_tells_of_crls_that_lack_expire_or_lag(
    core: Core, clock: SetClock, installation: Installation
) -> None:
    device = await enrolled(core)
    await core.certificates.revoke(device.serial, actor=ME)
    assert await _findings(core) == {"crl_behind": "error"}
    await core.crls.publish(only_due=True)
    assert await _findings(core) == {}
    clock.forward(days=7)
    assert await _findings(core) == {"crl_expired": "error"}
    installation.sql("DELETE FROM crl")
    assert await _findings(core) == {"crl_missing": "error"}


async def test_check_tells_of_an_issuer_that_expires_within_a_year(core: Core, clock: SetClock) -> None:
    clock.forward(days=4 * 365 + 1)
    await core.crls.publish()
    assert {finding.code for finding in await core.check(NAMES)} == {"issuer_expires", "ra_expired"}
    await core.ra_certificates.ensure()
    found = await core.check(NAMES)
    assert {(finding.code, finding.message.split()[0]) for finding in found} == {
        ("issuer_expires", "default-rsa-1"),
        ("issuer_expires", "other-rsa-1"),
    }


async def test_check_tells_of_a_realm_whose_clients_could_not_verify_the_server(core: Core) -> None:
    await edit_realm(core, "other", f'    "{OTHER_HOST}",\n', "")
    (finding,) = await core.check(NAMES)
    assert (finding.code, finding.severity) == ("realm_without_host", "warning")
    assert "realm other" in finding.message


async def test_check_tells_of_an_ra_certificate_that_is_missing_or_has_expired(
    core: Core, clock: SetClock, installation: Installation
) -> None:
    await edit_realm(core, "other", "enabled = true", "enabled = false")  # which needs none
    installation.sql("UPDATE certificate SET status = 'revoked' WHERE kind = 'ra'")
    (finding,) = [found for found in await core.check(NAMES) if found.code == "ra_missing"]
    assert "realm default" in finding.message
    await core.ra_certificates.ensure()
    assert await _findings(core) == {}
    clock.forward(days=731)
    await core.crls.publish()
    (finding,) = [found for found in await core.check(NAMES) if found.code == "ra_expired"]
    assert "realm default" in finding.message
    await core.ra_certificates.ensure()
    assert await _findings(core) == {}


async def test_check_tells_of_a_server_key_that_does_not_open(core: Core, installation: Installation) -> None:
    await core.server_certificates.ensure(NAMES)
    installation.sql("UPDATE sealed_key SET pkcs8 = ? WHERE purpose = 'server'", b"\0")
    fresh = installation.open()
    assert await _findings(fresh) == {"server_key": "error"}
    fresh.close()


async def test_status_counts_devices_and_certificates_by_realm_and_state(core: Core) -> None:
    device = await enrolled(core)
    await enrolled(core, "second")
    await core.devices.add("other", "third", actor=ME)
    await core.certificates.revoke(device.serial, actor=ME)
    status = await core.status()
    realms = {found.realm: found for found in status.realms}
    assert realms["default"].devices == {"active": 2}
    assert realms["default"].certificates == {"revoked": 1, "valid": 1}
    assert (realms["other"].devices, realms["other"].certificates) == ({"expected": 1}, {})
    assert len(status.crls) == 6


async def test_a_core_that_is_created_again_stays_as_it_is(installation: Installation) -> None:
    before = installation.sql("SELECT name, der FROM issuer")
    core = await Core.create(installation.config())
    core.close()
    assert installation.sql("SELECT name, der FROM issuer") == before
    assert len(installation.events("realm.added")) == 2


async def test_issuers_are_listed_by_realm_and_given_by_name(core: Core) -> None:
    rows = await core.issuers.list("other")
    assert [row.issuer for row in rows] == ["other-root-1", "other-ec-1", "other-rsa-1"]
    assert [row.key for row in rows] == ["RSA 3072", "EC P-256", "RSA 2048"]
    assert len(await core.issuers.list()) == 6
    assert await core.issuers.certificate("nothing") is None
    assert list(await core.issuers.export("other")) == [await core.issuers.certificate(row.issuer) for row in rows]
    with pytest.raises(OperatorError):
        await core.issuers.list("nowhere")


async def test_a_certificate_that_its_issuer_cannot_prolong_is_not_made_again_and_again(
    core: Core, installation: Installation, clock: SetClock
) -> None:
    [ends] = installation.sql("SELECT not_after FROM issuer WHERE name = 'default-ec-1'")[0]
    clock.now = dt.datetime.fromtimestamp(ends / 1000, dt.UTC) - dt.timedelta(days=20)
    await core.server_certificates.ensure(["pki.example.com"])
    first = core.server_certificates.select(None).fingerprint
    clock.forward(days=1)
    await core.server_certificates.ensure(["pki.example.com"])
    assert core.server_certificates.select(None).fingerprint == first
    await core.server_certificates.ensure(["other.example.org"])
    assert core.server_certificates.select(None).fingerprint != first, "other names are worth one"


async def test_a_realm_cannot_take_the_server_s_own_name(core: Core) -> None:
    await core.server_certificates.ensure(["pki.example.com"])
    with pytest.raises(OperatorError) as caught:
        await core.realms.add("third", hosts=["PKI.example.com"], actor=ME)
    assert (caught.value.code, "own name" in caught.value.message) == ("host_taken", True)
    await core.realms.add("third", hosts=["third.example.com"], actor=ME)
    assert "host_taken" not in [finding.code for finding in await core.check(["pki.example.com"])]
    assert "host_taken" in [finding.code for finding in await core.check(["third.example.com"])]


async def test_a_document_without_news_makes_no_new_version(core: Core) -> None:
    before = await core.realms.show("default")
    assert (await core.realms.apply(await core.realms.export("default"), actor=ME)).version == before.version
    await edit_realm(core, "default", 'retry_window = "24h"', 'retry_window = "12h"')
    assert (await core.realms.show("default")).version == before.version + 1


async def test_check_names_profiles_whose_certificates_cannot_renew_themselves(core: Core) -> None:
    assert "profile_cannot_renew" not in [finding.code for finding in await core.check()]
    text = await core.realms.export("other")
    await core.realms.apply(text.replace('"clientAuth"', '"serverAuth"'), actor=ME)
    found = [finding for finding in await core.check() if finding.code == "profile_cannot_renew"]
    assert [finding.severity for finding in found] == ["warning", "warning"]
    assert "profile device in realm other" in found[0].message


async def test_a_name_that_the_server_took_later_does_not_lock_the_realm_that_had_it(core: Core) -> None:
    await core.server_certificates.ensure([OTHER_HOST])
    await edit_realm(core, "other", 'retry_window = "24h"', 'retry_window = "12h"')
    assert "host_taken" in [finding.code for finding in await core.check()], "the store knows the server's names"
    text = await core.realms.export("other")
    await core.realms.apply(text.replace(f'"{OTHER_HOST}"', '"new.example.com"'), actor=ME)
    with pytest.raises(OperatorError) as caught:
        await core.realms.apply(text, actor=ME)
    assert caught.value.code == "host_taken"


# --- several nodes ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("engine", ["postgresql"], indirect=True)
async def test_nodes_with_other_names_add_theirs_and_take_none(installation: Installation) -> None:
    """One forgotten line on one node must not take the server's name from all of them."""
    one, other = installation.open(), installation.open()
    try:
        await one.server_certificates.ensure(["pki.example.com"])
        await other.server_certificates.refresh()
        assert one.server_certificates.covers(["pki.example.com"])
        assert not other.server_certificates.covers(["est.example.com"])
        await other.server_certificates.ensure(["est.example.com"])
        await one.server_certificates.ensure(["pki.example.com"])
        for node in (one, other):
            assert node.server_certificates.select(None).names == ("DNS:pki.example.com", "DNS:est.example.com")
            assert node.server_certificates.covers(["pki.example.com", "est.example.com"])
        assert len([e for e in installation.events("server_certificate.issued") if e["host"] == "*"]) == 2
    finally:
        one.close()
        other.close()


@pytest.mark.parametrize("engine", ["sqlite"], indirect=True)
async def test_a_single_node_has_the_names_that_it_is_given_and_no_others(core: Core) -> None:
    await core.server_certificates.ensure(["pki.example.com"])
    assert core.server_certificates.covers(["another.example.com"])
    await core.server_certificates.ensure(["est.example.com"])
    assert core.server_certificates.select(None).names == ("DNS:est.example.com",)
