"""What an operator has confirmed holds at once: no certificate comes after a revocation, suspension or new secret.

The operator's act is carried out, by a second core over the same file as the command line would, at each step that the
store's hook shows between the decision and the commit of an enrollment.
"""

import asyncio
import os
import random
import threading
from collections import Counter
from collections.abc import Awaitable, Callable, Coroutine, Iterator
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from sqlalchemy import bindparam, func, select

from ca_core.authority.sealing import UnlockKey
from ca_core.core import Core, CoreConfig
from ca_core.csr import ParsedCsr
from ca_core.errors import Refusal
from ca_core.model import Call, Evidence, Issued, Means, Operation, Pending, Refused
from ca_core.records.query import Query
from ca_core.records.schema import certificate, device
from ca_core.records.unit import guarded_insert
from ca_core.registration import conditions, issued
from ca_core.registration.device_change import Facts
from tests.helpers.bad_csr import good_csr

ROUNDS = 20_000 if os.environ.get("ENROLLD_LONG") == "1" else 1000
SEED = int(os.environ.get("ENROLLD_SEED", "20261122"))

_COUNT = Query(select(func.count()).select_from(certificate).where(certificate.c.kind == "device"))
_CALL = Call("test-0001", "est", "simpleenroll", "127.0.0.1")

Act = Callable[["Scene"], Awaitable[object]]


async def _suspend(scene: "Scene") -> object:
    return await scene.operator.devices.suspend("default", scene.name, actor="operator:test")


async def _revoke(scene: "Scene") -> object:
    return await scene.operator.certificates.revoke(scene.serial, reason="superseded", actor="operator:test")


async def _revoke_newer(scene: "Scene") -> object:
    return await scene.operator.certificates.revoke(scene.newer, reason="superseded", actor="operator:test")


async def _new_secret(scene: "Scene") -> object:
    return await scene.operator.devices.secret("default", scene.name, actor="operator:test")


async def _replace(scene: "Scene") -> object:
    return await scene.operator.devices.new_board("default", scene.name, actor="operator:test")


CASES: dict[str, tuple[Means, Act, set[str]]] = {
    "secret-suspend": (Means.SECRET, _suspend, {"device_suspended"}),
    "secret-new-secret": (Means.SECRET, _new_secret, {"secret_void"}),
    "secret-replace": (Means.SECRET, _replace, {"secret_void"}),
    "own-replace": (Means.OWN_CERTIFICATE, _replace, {"certificate_superseded"}),
    "own-suspend": (Means.OWN_CERTIFICATE, _suspend, {"device_suspended"}),
    "own-revoke": (Means.OWN_CERTIFICATE, _revoke, {"certificate_revoked"}),
    "own-revoke-newer": (Means.OWN_CERTIFICATE, _revoke_newer, {"newer_certificate_revoked"}),
}


class Scene:
    """One device that enrolls, and an operator with a core of its own."""

    def __init__(self, directory: Path) -> None:
        key = UnlockKey.generate(directory / "keys" / "unlock")
        self._at: tuple[int, Callable[[], None]] | None = None
        self._passed = 0
        config = CoreConfig(f"sqlite:///{directory}/enrolld.db", key, "http://pki.example.com", demo=False)
        asyncio.run(Core.create(config)).close()
        self.core = Core.open(CoreConfig(config.store_url, key, config.public_url, demo=False, hook=self._hook))
        self.operator = Core.open(config)
        self.name = "sensor"
        self.serial = ""
        self.newer = ""
        self._own = b""
        self._keys = [ec.generate_private_key(ec.SECP256R1()) for _ in range(64)]
        self._next = 0
        asyncio.run(self.operator.devices.add("default", self.name, actor="operator:test"))

    def close(self) -> None:
        self.core.close()
        self.operator.close()

    def _hook(self, step: str) -> None:
        # From `begin` on, this writer holds the lock: nobody else's act can be confirmed before its commit.
        if self._at is None or step not in ("read", "submit", "lock"):
            return
        index, act = self._at
        self._passed += 1
        if self._passed == index:
            self._at = None
            act()

    async def certificates(self) -> int:
        row = await self.operator.store.first(_COUNT)
        assert row is not None
        return int(row[0])

    async def ready(self, means: Means) -> Evidence:
        """Let the device be able to enroll by `means`, whatever was done to it before."""
        shown = await self.operator.devices.show("default", self.name)
        if shown.state == "suspended":
            await self.operator.devices.resume("default", self.name, actor="operator:test")
        secret = await self.operator.devices.secret("default", self.name, actor="operator:test")
        evidence = Evidence(username=self.name, secret=secret.secret)
        if means is Means.SECRET:
            return evidence
        first = await self.enroll(evidence)
        assert isinstance(first, Issued)
        self.serial = format(first.serial, "x")
        own = Evidence(chain=(first.certificate,))
        second = await self.enroll(own)
        assert isinstance(second, Issued)
        self.newer = format(second.serial, "x")
        return own

    async def enroll(self, evidence: Evidence) -> Issued | Pending | Refused:
        """Authenticate and enroll, each time with another key than the time before."""
        self._next = (self._next + 1) % len(self._keys)
        csr = ParsedCsr.parse(good_csr(self._keys[self._next], self.name))
        resolved = await self.core.realms.resolve("est", None, None)
        try:
            requester = await self.core.registration.authenticate(resolved, evidence, csr)
        except Refusal as refusal:
            return Refused(refusal)
        operation = Operation.REENROLL if evidence.chain else Operation.ENROLL
        return await self.core.registration.enroll(resolved, requester, csr, operation, _CALL)

    async def interrupted(self, evidence: Evidence, step: int, act: Act) -> tuple[Issued | Pending | Refused, int, int]:
        """Enroll, with the operator's act at that step: the outcome, certificates when confirmed, and at the end."""
        confirmed: list[int] = []

        def interfere() -> None:
            async def work() -> None:
                await act(self)
                confirmed.append(await self.certificates())

            _in_a_thread(work())

        self._passed = 0
        self._at = (step, interfere)
        outcome = await self.enroll(evidence)
        assert len(confirmed) == 1, f"step {step} was never reached"
        return outcome, confirmed[0], await self.certificates()

    async def steps(self, means: Means) -> int:
        """How many steps an enrollment by `means` passes before its commit."""
        for _ in range(2):  # the first one also reads what is kept in memory from then on
            evidence = await self.ready(means)
            self._passed = 0
            self._at = (-1, lambda: None)
            assert isinstance(await self.enroll(evidence), Issued)
            self._at = None
        return self._passed


def _in_a_thread(work: Coroutine[Any, Any, None]) -> None:
    failed: list[BaseException] = []

    def run() -> None:
        try:
            asyncio.run(work)
        except BaseException as exc:
            failed.append(exc)

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    if failed:
        raise failed[0]


@pytest.fixture(scope="module")
def scene(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Scene]:
    made = Scene(tmp_path_factory.mktemp("interleavings"))
    yield made
    made.close()


async def test_nothing_is_issued_after_a_confirmed_act_at_any_step(scene: Scene) -> None:
    print(f"seed {SEED}, {ROUNDS} interleavings")
    chance = random.Random(SEED)
    steps = {means: await scene.steps(means) for means in (Means.SECRET, Means.OWN_CERTIFICATE)}
    assert min(steps.values()) >= 5, "reads, submit and lock"
    everything = [(case, step) for case, (means, _, _) in CASES.items() for step in range(1, steps[means] + 1)]
    rounds = everything + [chance.choice(everything) for _ in range(ROUNDS - len(everything))]
    seen: Counter[str] = Counter()
    for case, step in rounds:
        means, act, codes = CASES[case]
        evidence = await scene.ready(means)
        outcome, confirmed, at_end = await scene.interrupted(evidence, step, act)
        assert isinstance(outcome, Refused), (case, step)
        assert outcome.refusal.code in codes, (case, step)
        assert at_end == confirmed, f"{case}: a certificate was issued after the act of step {step} was confirmed"
        seen[case] += 1
    assert sum(seen.values()) == ROUNDS
    assert min(seen.values()) >= ROUNDS // 10


@pytest.mark.parametrize("means", [Means.SECRET, Means.OWN_CERTIFICATE])
async def test_the_same_act_on_another_device_disturbs_nothing(scene: Scene, means: Means) -> None:
    await scene.operator.devices.add("default", f"other-{means}", actor="operator:test")

    async def suspend_other(_: Scene) -> object:
        return await scene.operator.devices.suspend("default", f"other-{means}", actor="operator:test")

    step = await scene.steps(means)
    evidence = await scene.ready(means)
    outcome, confirmed, at_end = await scene.interrupted(evidence, step, suspend_other)
    assert isinstance(outcome, Issued)
    assert at_end == confirmed + 1


@pytest.mark.parametrize("means", [Means.SECRET, Means.OWN_CERTIFICATE])
async def test_a_name_that_was_confirmed_at_any_step_is_in_the_certificate(scene: Scene, means: Means) -> None:
    steps = await scene.steps(means)
    for step in range(1, steps + 1):
        name = f"DNS:{means}-{step}.example"

        async def rename(scene: Scene, name: str = name) -> object:
            return await scene.operator.devices.change("default", scene.name, Facts(names=[name]), actor="operator:me")

        evidence = await scene.ready(means)
        outcome, confirmed, at_end = await scene.interrupted(evidence, step, rename)
        assert isinstance(outcome, Issued)
        assert (await scene.operator.certificates.find(format(outcome.serial, "x"))).names == [name], step
        assert at_end == confirmed + 1, "what was signed with the old name is dropped"


@pytest.mark.parametrize(
    ("case", "condition"),
    [
        pytest.param("secret-suspend", "device_state", id="device-state-by-secret"),
        pytest.param("own-suspend", "device_state", id="device-state-by-own-certificate"),
        pytest.param("own-revoke", "certificate_valid", id="certificate-valid"),
        pytest.param("own-revoke-newer", "newer_certificate_valid", id="newer-certificate-valid"),
        pytest.param("secret-new-secret", "secret_unspent", id="secret-unspent"),
    ],
)
async def test_without_the_condition_at_the_commit_the_act_is_overtaken(
    scene: Scene, case: str, condition: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    means, act, _ = CASES[case]
    weaker = {name: clause for name, clause in conditions.CONDITIONS[means].items() if name != condition}
    assert len(weaker) == len(conditions.CONDITIONS[means]) - 1
    monkeypatch.setitem(conditions.GUARDS, means, guarded_insert(certificate, weaker))
    unconditional = (
        device.update()
        .where(device.c.realm_id == bindparam("of_realm"), device.c.id == bindparam("of_device"))
        .values(last_seen_at=bindparam("seen_at"))
    )
    monkeypatch.setattr(issued, "_SEEN", Query(unconditional))
    step = await scene.steps(means)
    evidence = await scene.ready(means)
    outcome, confirmed, at_end = await scene.interrupted(evidence, step, act)
    assert isinstance(outcome, Issued), "this is what the condition prevents"
    assert at_end == confirmed + 1
