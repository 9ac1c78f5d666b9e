"""What the core tells a meter: signatures, transactions and refusals, and nothing that a peer made up."""

import asyncio
from dataclasses import dataclass, field, replace

import pytest

from ca_core.codes import CODES
from ca_core.core import Core
from ca_core.errors import NotFound
from ca_core.model import Call, Evidence
from tests.helpers import factory
from tests.helpers.core import CALL, ME, Installation, code_of, csr_of, enrolled, new_key


@dataclass
class Told:
    """A meter that remembers."""

    signatures: list[tuple[str, float]] = field(default_factory=list)
    commits: list[tuple[float, int]] = field(default_factory=list)
    refusals: list[tuple[str, str, str]] = field(default_factory=list)

    def signed(self, backend: str, seconds: float) -> None:
        self.signatures.append((backend, seconds))

    def committed(self, seconds: float, units: int) -> None:
        self.commits.append((seconds, units))

    def refused(self, realm: str, protocol: str, code: str) -> None:
        self.refusals.append((realm, protocol, code))


@pytest.fixture
def told() -> Told:
    return Told()


@pytest.fixture
def core(installation: Installation, told: Told) -> Core:
    return Core.open(replace(installation.config(), meter=told))


async def test_each_signature_of_a_ca_is_told_once(core: Core, told: Told) -> None:
    await enrolled(core, "one")
    assert len(told.signatures) == 1
    await core.crls.publish("default-ec-1")
    assert [backend for backend, _ in told.signatures] == ["software"] * 2
    assert all(0 < seconds < 5 for _, seconds in told.signatures)
    core.close()


async def test_units_of_all_transactions_add_up(core: Core, told: Told) -> None:
    await asyncio.gather(*(core.devices.add("default", f"d-{number}", actor=ME) for number in range(30)))
    core.close()
    assert sum(units for _, units in told.commits) == 30
    assert len(told.commits) < 30, "some shared a transaction"
    assert all(0 < seconds < 30 for seconds, _ in told.commits)


async def test_a_batch_that_is_run_again_one_by_one_is_told_so(core: Core, told: Told) -> None:
    await core.trust.add("default", factory.root().pem, name="acme", actor=ME)
    await core.devices.add("default", "first", serial_number="SN-1", actor=ME)
    told.commits.clear()
    # Nothing looks whether a serial number is taken: the table's constraint says so, in the middle of the batch.
    numbers = {"a": None, "b": "SN-1", "c": None, "d": "SN-2"}
    adding = (core.devices.add("default", name, serial_number=number, actor=ME) for name, number in numbers.items())
    results = await asyncio.gather(*adding, return_exceptions=True)
    assert sum(isinstance(result, Exception) for result in results) == 1
    core.close()
    assert sum(units for _, units in told.commits) == 3


async def test_a_refusal_is_told_by_realm_protocol_and_code(core: Core, told: Told) -> None:
    evidence = Evidence(username="", secret="a" * 26)
    assert await code_of(core, evidence, csr_of(new_key())) == "secret_unknown"
    assert told.refusals == []  # whoever authenticates by himself records it by himself
    resolved = await core.realms.resolve("est", "other", None)
    core.registration.refused(NotFound("realm_unknown", "x"), replace(CALL, protocol="scep"), None)
    core.registration.refused(NotFound("operation_unknown", "x"), Call("r", "est", "\x1b[2J", "192.0.2.1"), resolved)
    assert told.refusals == [("", "scep", "realm_unknown"), ("other", "est", "operation_unknown")]
    assert {code for _, _, code in told.refusals} <= set(CODES)
    core.close()


async def test_a_refusal_of_one_who_proved_who_it_is_is_told_once(core: Core, told: Told) -> None:
    one = await enrolled(core, "one")
    assert await code_of(core, one.evidence, csr_of(new_key(), "another")) == "subject_mismatch"
    assert told.refusals == [("default", "est", "subject_mismatch")]
    core.close()
