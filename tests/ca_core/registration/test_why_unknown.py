"""Why a caller that is no known device was refused: found by what it claimed, of which nothing is proven."""

import pytest

from ca_core.core import Core
from ca_core.errors import OperatorError, Refusal
from ca_core.model import Call, Evidence
from ca_core.registration.attempts import Asked
from tests.helpers import factory
from tests.helpers.core import ME, Installation, SetClock, csr_of, enrolled, new_key, written

ROOT = factory.root()


async def refused(core: Core, evidence: Evidence, name: str | None, *, source: str = "192.0.2.9", **more: str) -> bytes:
    """Have a request refused as EST does; the SHA-256 of its key."""
    csr = csr_of(new_key(), name)
    resolved = await core.realms.resolve("est", None, None)
    call = Call("test-0009", "est", "simpleenroll", source, **more)  # type: ignore[arg-type]  # a transactionID
    with pytest.raises(Refusal) as caught:
        await core.registration.authenticate(resolved, evidence, csr)
    core.registration.refused(caught.value, call, resolved)
    await written(core)
    return csr.spki_sha256


async def found(core: Core, **asked: str | bytes) -> list[str | None]:
    why = await core.devices.why_unknown(Asked(**asked))  # type: ignore[arg-type]  # what a row gives
    assert (why.state, why.realm) == ("unknown", None)
    return [row.code for row in why.timeline]


async def test_a_name_that_is_not_registered_is_explained_by_who_claimed_it(core: Core) -> None:
    await refused(core, Evidence(username="pump-7", secret="nothing"), "other")
    await refused(core, Evidence(secret="nothing"), "pump-7")
    why = await core.devices.why("default", "pump-7")
    assert why.sentence.startswith(
        "No device 'pump-7' is registered. An unknown caller with the name 'pump-7' was refused 2 times lately, last at"
        " 2026-11-22T12:00:00Z from 192.0.2.9: secret_unknown. No such secret in this realm;"
    )
    assert [row.claimed for row in why.timeline] == ["pump-7", "pump-7"]
    with pytest.raises(OperatorError) as caught:
        await core.devices.why("default", "pump-8")
    assert caught.value.code == "device_unknown"


async def test_an_unknown_caller_is_found_by_each_thing_it_showed(core: Core) -> None:
    await core.trust.add("default", ROOT.pem, name="acme", actor=ME)
    chain = factory.idevid(ROOT, "AC-77").chain
    key = await refused(core, Evidence(chain=chain), None, source="192.0.2.7", transaction_id="t-1")
    await refused(core, Evidence(secret="nothing"), "noise", source="192.0.2.8")
    assert await found(core, serial="AC-77") == ["device_unknown"]
    assert await found(core, source="192.0.2.7") == ["device_unknown"]
    assert await found(core, key=key) == ["device_unknown"]
    assert await found(core, transaction_id="t-1") == ["device_unknown"]
    assert await found(core, serial="AC-77", source="192.0.2.7", key=key) == ["device_unknown"]
    assert await found(core, serial="AC-77", source="192.0.2.8") == []
    assert await found(core, name="noise") == ["secret_unknown"]
    assert await found(core) == ["secret_unknown", "device_unknown"]
    (row,) = (await core.devices.why_unknown(Asked(key=key))).timeline
    assert (row.claimed, row.claimed_serial, row.key_sha256) == (None, "AC-77", key.hex())


async def test_a_certificate_without_a_serial_number_is_found_by_its_own(core: Core) -> None:
    foreign = factory.root("Nobody's CA")
    number = foreign.certificate.serial_number
    await refused(core, Evidence(chain=foreign.chain or (foreign.der,)), "pump-7")
    text = format(number, "X")
    pairs = ":".join(text.zfill(len(text) + len(text) % 2)[i : i + 2] for i in range(0, len(text), 2))
    assert await found(core, serial=text) == ["certificate_unknown"]
    assert await found(core, serial=pairs) == ["certificate_unknown"]


async def test_nobody_is_a_sentence_as_well(core: Core) -> None:
    why = await core.devices.why_unknown(Asked(source="203.0.113.1"))
    assert why.timeline == []
    assert why.sentence.startswith("No unknown caller with the address '203.0.113.1' is among the last that are kept;")


async def test_of_a_known_device_no_claim_is_kept(core: Core, clock: SetClock, installation: Installation) -> None:
    device = await enrolled(core)
    clock.forward(days=91)
    await refused(core, device.evidence, "sensor")
    assert installation.sql("SELECT code, claimed, key_sha256 FROM attempt WHERE outcome = 'refused'") == [
        ("certificate_expired", None, None)
    ]
    assert await found(core, name="sensor") == []


@pytest.mark.parametrize("place", ["username", "common-name"])
async def test_a_secret_in_the_wrong_place_is_not_kept(core: Core, installation: Installation, place: str) -> None:
    secret = (await core.devices.add("default", "sensor", actor=ME)).secret
    if place == "username":
        await refused(core, Evidence(username=secret, secret=""), "sensor")
    else:
        await refused(core, Evidence(secret="nothing"), secret)
    assert secret.encode() not in installation.dump()


@pytest.mark.parametrize(
    ("name", "kept"),
    [
        pytest.param("a\x1b[2Jb", "a\\x1b[2Jb", id="escape"),
        pytest.param("M\u00fcller", "M\\xfcller", id="not-ascii"),
        pytest.param("x\ud800y", "x\\ud800y", id="half-of-a-pair"),
        pytest.param("n" * 500, "n" * 64, id="long"),
        pytest.param("\0", "\\x00", id="nul"),
    ],
)
async def test_what_a_stranger_claims_is_kept_short_and_escaped(core: Core, name: str, kept: str) -> None:
    await refused(core, Evidence(username=name, secret="nothing"), "sensor")
    (row,) = (await core.devices.why_unknown(Asked())).timeline
    assert row.claimed == kept
