"""The figures of an installation, as status and metrics tell them."""

import datetime as dt

from ca_core.core import Core
from ca_core.registration.figures import CERTIFICATE_STATES, SECRET_STATES
from tests.helpers.core import ME, Installation, SetClock, enrolled


def ms(installation: Installation, statement: str) -> float:
    return float(installation.sql(statement)[0][0]) / 1000


async def test_every_state_of_every_realm_and_issuer_is_there_before_anything_happened(core: Core) -> None:
    found = await core.figures()
    realms = ("default", "other")
    states = ("expected", "active", "suspended", "retired")
    assert found.devices == {(realm, state): 0 for realm in realms for state in states}
    assert found.secrets == {(realm, state): 0 for realm in realms for state in SECRET_STATES}
    issuers = [(realm, f"{realm}-{family}-1") for realm in realms for family in ("ec", "rsa")]
    assert found.certificates == {(*names, state): 0 for names in issuers for state in CERTIFICATE_STATES}


async def test_devices_certificates_and_secrets_are_told_by_state(core: Core) -> None:
    one = await enrolled(core, "one")
    await enrolled(core, "two", realm="other")
    await core.devices.add("default", "three", actor=ME)
    await core.devices.secret("default", "three", actor=ME)
    await core.devices.suspend("default", "one", actor=ME)
    await core.certificates.revoke(one.serial, actor=ME)
    found = await core.figures()
    assert {key: count for key, count in found.devices.items() if count} == {
        ("default", "suspended"): 1,
        ("default", "expected"): 1,
        ("other", "active"): 1,
    }
    assert {key: count for key, count in found.certificates.items() if count} == {
        ("default", "default-ec-1", "revoked"): 1,
        ("other", "other-ec-1", "valid"): 1,
    }
    assert {key: count for key, count in found.secrets.items() if count} == {
        ("default", "spent"): 1,
        ("default", "void"): 1,
        ("default", "open"): 1,
        ("other", "spent"): 1,
    }
    assert found.audit_events["device.added"] == 3
    assert found.audit_events["certificate.issued"] == 2


async def test_status_says_the_same_without_what_is_zero(core: Core) -> None:
    await enrolled(core, "one")
    realms = {realm.realm: (realm.devices, realm.certificates) for realm in (await core.status()).realms}
    assert realms == {"default": ({"active": 1}, {"valid": 1}), "other": ({}, {})}


async def test_ends_of_cas_and_crls_are_moments_of_the_store(
    core: Core, installation: Installation, clock: SetClock
) -> None:
    one = await enrolled(core, "one")
    await core.certificates.revoke(one.serial, actor=ME)
    clock.forward(hours=1)
    await core.crls.publish(only_due=True)
    found = await core.figures()
    assert {(issuer, role) for _, issuer, role in found.issuers} >= {
        ("default-root-1", "root"),
        ("default-ec-1", "issuing"),
        ("other-rsa-1", "issuing"),
    }
    end = ms(installation, "SELECT not_after FROM issuer WHERE name = 'default-ec-1'")
    assert found.issuers["default", "default-ec-1", "issuing"] == end
    newest, other = found.crls["default-ec-1"], found.crls["default-rsa-1"]
    assert (newest.entries, other.entries) == (1, 0)
    assert newest.published == clock().timestamp() == other.published + 3600
    assert newest.next_update == newest.published + dt.timedelta(days=7).total_seconds()


async def test_a_clock_that_stands_before_the_newest_event_is_told_in_seconds(core: Core, clock: SetClock) -> None:
    assert (await core.figures()).clock_behind == 0
    clock.forward(seconds=-90)
    assert (await core.figures()).clock_behind == 90
