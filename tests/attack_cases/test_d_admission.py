"""Section D, who may have a certificate, where the core decides it, each beside its twin.

`test_d_scep`, `test_d_tls` and `test_d_house` have the rest of the section.
"""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from cryptography import x509
from cryptography.x509.oid import ExtendedKeyUsageOID

from ca_core.core import Core
from ca_core.model import Evidence, Operation
from tests.helpers.admission import admit_by, code_of_act, verdict
from tests.helpers.core import ME, Enrolled, Installation, SetClock, csr_of, edit_realm, enrolled, new_key
from tests.helpers.factory import Made, idevid, key_usage, make, root, sub_ca, subject

REENROLL = Operation.REENROLL


# --- 32, 33: a secret is used once, in its time, in its line ----------------------------------------------------------


@pytest.mark.parametrize(
    ("spoil", "code"),
    [
        pytest.param(lambda _, clock, __: clock.forward(hours=1), "secret_expired", id="expired-and-not-cleaned-up"),
        pytest.param(lambda core, _, own: verdict(core, own), "secret_spent", id="used"),
        pytest.param(lambda core, _, __: core.devices.secret("default", "sensor", actor=ME), "secret_void", id="void"),
        pytest.param(None, "issued", id="twin"),
    ],
)
async def test_case_32_a_secret_opens_nothing_after_its_time_or_its_use(
    core: Core, clock: SetClock, spoil: Callable[..., Awaitable[object] | None] | None, code: str
) -> None:
    handed = await core.devices.add("default", "sensor", expires="1h", actor=ME)
    own = Evidence(secret=handed.secret)
    if spoil is not None and (spoiling := spoil(core, clock, own)) is not None:
        await spoiling
    assert await verdict(core, own) == code


async def test_case_32_a_secret_of_another_line_opens_nothing_and_stays_good(core: Core) -> None:
    handed = await core.devices.add("other", "sensor", actor=ME)
    await core.devices.add("default", "sensor", actor=ME)
    assert await verdict(core, Evidence(secret=handed.secret)) == "secret_unknown"
    assert await verdict(core, Evidence(secret=handed.secret), label="other") == "issued"


async def test_case_33_of_many_keys_with_one_secret_on_two_nodes_at_once_one_is_served(
    core: Core, installation: Installation
) -> None:
    """Over sockets, by both protocols and 200 times, it is in tests/end_to_end/test_one_secret."""
    second = installation.open()
    try:
        handed = await core.devices.add("default", "sensor", actor=ME)
        asked = (verdict((core, second)[n % 2], Evidence(secret=handed.secret)) for n in range(20))
        codes = await asyncio.gather(*asked)
    finally:
        second.close()
    assert sorted(codes) == ["issued"] + ["secret_spent"] * 19
    assert installation.sql("SELECT count(*) FROM certificate WHERE kind = 'device'") == [(1,)]
    fresh = await core.devices.secret("default", "sensor", actor=ME)
    assert await verdict(core, Evidence(secret=fresh.secret)) == "issued", "the twin"


# --- 36: a certificate that counts no more ----------------------------------------------------------------------------


async def _renewed_and_revoked(core: Core, device: Enrolled) -> None:
    assert await verdict(core, device.evidence, operation=REENROLL) == "issued"
    newest = (await core.certificates.list(device="sensor", limit=10))[-1]
    await core.certificates.revoke(newest.serial, actor=ME)


SPOILED: dict[str, tuple[Callable[[Core, SetClock, Enrolled], Awaitable[object] | None], str]] = {
    "revoked": (lambda core, _, device: core.certificates.revoke(device.serial, actor=ME), "certificate_revoked"),
    "held": (
        lambda core, _, device: core.certificates.revoke(device.serial, reason="certificateHold", actor=ME),
        "certificate_revoked",
    ),
    "a-newer-one-revoked": (lambda core, _, device: _renewed_and_revoked(core, device), "newer_certificate_revoked"),
    "expired": (lambda _, clock, __: clock.forward(days=91), "certificate_expired"),
    "board-replaced": (
        lambda core, _, __: core.devices.new_board("default", "sensor", actor=ME),
        "certificate_superseded",
    ),
    "suspended": (lambda core, _, __: core.devices.suspend("default", "sensor", actor=ME), "device_suspended"),
    "retired": (lambda core, _, __: core.devices.retire("default", "sensor", actor=ME), "certificate_superseded"),
}


@pytest.mark.parametrize("case", SPOILED)
async def test_case_36_a_certificate_that_counts_no_more_renews_nothing(core: Core, clock: SetClock, case: str) -> None:
    device, twin = await enrolled(core), await enrolled(core, "twin")
    spoil, code = SPOILED[case]
    before = await verdict(core, twin.evidence, csr_of(new_key(), "twin"), operation=REENROLL)
    assert before == "issued", "the twin, before"
    if (spoiling := spoil(core, clock, device)) is not None:
        await spoiling
    for operation in (REENROLL, Operation.RENEW, Operation.ENROLL):
        assert await verdict(core, device.evidence, operation=operation) == code
    if case != "expired":
        again = await verdict(core, twin.evidence, csr_of(new_key(), "twin"), operation=REENROLL)
        assert again == "issued", "the twin, which differs in nothing else"


@pytest.mark.parametrize("state", ["suspended", "retired"])
async def test_case_36_a_device_that_is_out_gets_nothing_by_its_factory_identity_either(core: Core, state: str) -> None:
    anchor = root()
    await core.trust.add("default", anchor.pem, name="acme", actor=ME)
    await core.devices.add("default", "sensor", serial_number="AC-1", manufacturer="acme", actor=ME)
    factory = Evidence(chain=idevid(anchor).chain)
    assert await verdict(core, factory) == "issued", "the twin, before"
    act = core.devices.suspend if state == "suspended" else core.devices.retire
    await act("default", "sensor", actor=ME)
    assert await verdict(core, factory) == f"device_{state}"


# --- 39, 40, 41: factory identities -----------------------------------------------------------------------------------

OTHERS = key_usage(sign=True)


@pytest.mark.parametrize(
    ("anchor", "code"),
    [
        pytest.param(lambda: make(subject("x", serial_numbers=["AC-1"]), usage=OTHERS), "trust_invalid", id="a-device"),
        pytest.param(lambda: make(subject("x")), "trust_invalid", id="a-device-without-key-usage"),
        pytest.param(lambda: make(subject("x"), ca=None), "trust_invalid", id="no-basic-constraints"),
        pytest.param(lambda: make(subject("x"), ca=True, usage=OTHERS), "trust_invalid", id="may-not-certify"),
        pytest.param(root, "done", id="twin"),
    ],
)
async def test_case_39_what_is_no_ca_is_no_trust_anchor(core: Core, anchor: Callable[[], Made], code: str) -> None:
    assert await code_of_act(core.trust.add("default", anchor().pem, name="acme", actor=ME)) == code
    assert len(await core.trust.list("default")) == (code == "done")


def _under(**bent: Any) -> Callable[[Made], tuple[bytes, ...]]:
    fields: dict[str, Any] = {"ca": True, "path_length": 0, "usage": key_usage(certify=True)} | bent
    return lambda anchor: idevid(make(subject("Factory CA"), anchor, **fields)).chain


@pytest.mark.parametrize(
    ("chain", "code"),
    [
        pytest.param(lambda anchor: idevid(idevid(anchor, "AC-9")).chain, "chain_invalid", id="a-device-as-issuer"),
        pytest.param(_under(ca=None), "chain_invalid", id="issuer-without-basic-constraints"),
        pytest.param(_under(usage=key_usage(sign=True)), "chain_invalid", id="issuer-may-not-certify"),
        pytest.param(lambda anchor: idevid(sub_ca(sub_ca(anchor), "Deeper")).chain, "chain_invalid", id="too-deep"),
        pytest.param(lambda _: (idevid(root()).der,), "chain_invalid", id="a-root-of-the-same-name"),
        pytest.param(_under(), "issued", id="twin"),
    ],
)
async def test_case_39_a_chain_over_what_is_no_ca_proves_nothing(
    core: Core, chain: Callable[[Made], tuple[bytes, ...]], code: str
) -> None:
    anchor = root()
    await core.trust.add("default", anchor.pem, name="acme", actor=ME)
    await core.devices.add("default", "sensor", serial_number="AC-1", manufacturer="acme", actor=ME)
    assert await verdict(core, Evidence(chain=chain(anchor))) == code


async def test_case_40_a_factory_identity_is_of_one_device_that_is_on_the_list(core: Core) -> None:
    acme, bolt = root(), root("Bolt Root CA", organization="Bolt")
    await core.trust.add("default", acme.pem, name="acme", actor=ME)
    await core.trust.add("default", bolt.pem, name="bolt", actor=ME)
    await core.devices.add("default", "sensor", serial_number="AC-1", manufacturer="acme", owner="Ann", actor=ME)
    again = core.devices.add("default", "mine", serial_number="AC-1", manufacturer="acme", owner="Bob", actor=ME)
    assert await code_of_act(again) == "identity_taken", "two owners of one board"
    assert await verdict(core, Evidence(chain=idevid(acme, "AC-2").chain)) == "device_unknown"
    same_number = make(subject("x", organization="Bolt", serial_numbers=["AC-1"]), bolt, usage=OTHERS)
    assert await verdict(core, Evidence(chain=same_number.chain)) == "device_unknown"
    assert await verdict(core, Evidence(chain=idevid(acme).chain), csr_of(new_key(), "mine")) == "subject_mismatch"
    assert await verdict(core, Evidence(chain=idevid(acme).chain)) == "issued", "the twin"


async def test_case_40_a_newcomer_with_the_number_of_a_device_of_another_maker_takes_nothing_over(core: Core) -> None:
    for name in ("acme", "bolt"):
        await core.trust.add("default", root(f"{name} Root").pem, name=name, actor=ME)
    anchor = root("Third Root")
    await core.trust.add("default", anchor.pem, name="third", actor=ME)
    await core.devices.add("default", "AC-1", serial_number="AC-1", manufacturer="acme", actor=ME)
    await admit_by(core, "idevid", idevid="trusted")
    assert await verdict(core, Evidence(chain=idevid(anchor).chain), csr_of(new_key(), "AC-1")) == "device_name_taken"
    assert await verdict(core, Evidence(chain=idevid(anchor, "AC-3").chain), csr_of(new_key(), "AC-3")) == "issued"


SERVER, CLIENT = ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH


@pytest.mark.parametrize(
    ("purpose", "code"),
    [
        pytest.param(SERVER, "certificate_not_for_clients", id="serverAuth"),
        pytest.param(ExtendedKeyUsageOID.CODE_SIGNING, "certificate_not_for_clients", id="codeSigning"),
        pytest.param(ExtendedKeyUsageOID.OCSP_SIGNING, "certificate_not_for_clients", id="OCSPSigning"),
        pytest.param(CLIENT, "issued", id="twin"),
    ],
)
async def test_case_41_a_factory_certificate_that_is_not_for_clients_proves_no_client(
    core: Core, purpose: x509.ObjectIdentifier, code: str
) -> None:
    anchor = root()
    await core.trust.add("default", anchor.pem, name="acme", actor=ME)
    await core.devices.add("default", "sensor", serial_number="AC-1", manufacturer="acme", actor=ME)
    leaf = make(subject("x", serial_numbers=["AC-1"]), anchor, usage=OTHERS, purposes=[purpose])
    assert await verdict(core, Evidence(chain=leaf.chain)) == code


async def test_case_41_an_own_certificate_that_is_not_for_clients_proves_no_client(core: Core) -> None:
    twin = await enrolled(core, "twin")
    begin = '[profiles.device]\nissuer = "ec"\nvalidity = "90d"\nextended_key_usages = [\n'
    await edit_realm(core, "default", f'{begin}    "clientAuth",', f'{begin}    "serverAuth",')
    device = await enrolled(core)
    assert await verdict(core, device.evidence, operation=REENROLL) == "certificate_not_for_clients"
    await core.server_certificates.ensure(["pki.example.com"])
    server = core.server_certificates.select(None).chain
    assert await verdict(core, Evidence(chain=server), operation=REENROLL) == "certificate_unknown"
    assert await verdict(core, twin.evidence, csr_of(new_key(), "twin"), operation=REENROLL) == "issued"
