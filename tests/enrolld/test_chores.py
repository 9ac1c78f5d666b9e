"""What a worker does now and then: who does it, and that a failure stops nothing else."""

import logging
from types import SimpleNamespace
from typing import Any

import pytest

from enrolld.chores import Chores
from enrolld.metrics.counts import Counts
from enrolld.metrics.meter import WorkerMeter
from enrolld.refusal_log import RefusalLog
from tests.helpers.core import Installation


class Core:
    """Counts what it is asked to do; `broken` names what fails."""

    def __init__(self, *, holds: bool = True, broken: str = "") -> None:
        self.done: list[str] = []
        self.holds = holds
        self.broken = broken
        self.version = 1
        self.shortage: str | None = None
        self.store = SimpleNamespace(shortage=lambda: self.shortage, measure_drift=self._measure_drift)
        self.realms = SimpleNamespace(current=self._current)
        self.leases = SimpleNamespace(hold=self._hold)
        self.crls = SimpleNamespace(publish=self._publish)
        self.server_certificates = SimpleNamespace(ensure=self._ensure, refresh=self._refresh, covers=lambda _: True)
        self.audit = SimpleNamespace(make_heads=self._make_heads)
        self.requests = SimpleNamespace(forget_old=self._forget_old)
        self.ra_certificates = SimpleNamespace(ensure=self._ensure_ra, refresh=self._refresh_ra)

    async def _current(self) -> dict[str, Any]:
        return {"default": SimpleNamespace(id=1, version=self.version)}

    def _do(self, what: str) -> None:
        self.done.append(what)
        if self.broken == what:
            raise RuntimeError(what)

    async def _measure_drift(self) -> float:
        return 0.0

    async def _hold(self, name: str, seconds: int) -> bool:
        assert (name, seconds) == ("chores", 10)
        self._do("hold")
        return self.holds

    async def _publish(self, *, only_due: bool) -> list[Any]:
        assert only_due
        self._do("publish")
        return [SimpleNamespace(number=7, issuer="default-ec-1", entries=3)]

    async def _make_heads(self) -> list[Any]:
        self._do("head")
        return [SimpleNamespace(number=4, digest="ab" * 32)]

    async def _forget_old(self) -> bool:
        self._do("forget")
        return True

    async def _ensure(self, names: tuple[str, ...]) -> None:
        assert names == ("a",)
        self._do("ensure")

    async def _refresh(self) -> None:
        self._do("refresh")

    async def _ensure_ra(self) -> None:
        self._do("ensure RA")

    async def _refresh_ra(self) -> None:
        self._do("refresh RA")


class Clock:
    """Stands still until it is moved."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def chores(core: Core, clock: Clock, refusals: RefusalLog | None = None) -> Chores:
    return Chores(core, ("a",), refusals or RefusalLog(clock=clock), clock)  # type: ignore[arg-type]  # a part of a core


@pytest.mark.parametrize(
    ("holds", "done"),
    [
        pytest.param(True, ["hold", "publish", "head", "forget", "ensure", "ensure RA"], id="holder"),
        pytest.param(False, ["hold", "refresh", "refresh RA"], id="another-holds"),
    ],
)
async def test_who_holds_the_lease_makes_and_the_others_reread(holds: bool, done: list[str]) -> None:
    core = Core(holds=holds)
    await chores(core, Clock()).round()
    assert core.done == done


async def test_crls_are_looked_at_each_round_and_the_lease_is_kept_before_it_ends() -> None:
    core, clock = Core(), Clock()
    worker = chores(core, clock)
    for _ in range(10):
        await worker.round()
        clock.now += 1
    assert core.done.count("publish") == 10
    assert core.done.count("hold") == 2


async def test_after_a_realm_has_changed_its_certificate_is_not_waited_for() -> None:
    core, clock = Core(), Clock()
    worker = chores(core, clock)
    await worker.round()
    clock.now += 100
    await worker.round()
    seen = core.done.count("ensure")
    clock.now += 1
    await worker.round()
    assert core.done.count("ensure") == seen
    core.version = 2
    clock.now += 0.25
    await worker.round()
    assert core.done.count("ensure") == seen + 1


async def test_when_the_holder_is_gone_another_takes_over() -> None:
    core, clock = Core(holds=False), Clock()
    worker = chores(core, clock)
    await worker.round()
    core.holds = True
    clock.now += 4
    await worker.round()
    assert core.done == ["hold", "refresh", "refresh RA", "hold", "publish", "head", "forget", "ensure", "ensure RA"]


async def test_a_chore_that_fails_stops_no_other_and_is_told_once_a_minute(caplog: pytest.LogCaptureFixture) -> None:
    core, clock = Core(broken="publish"), Clock()
    worker = chores(core, clock)
    for _ in range(61):
        await worker.round()
        clock.now += 1
    assert core.done.count("ensure") > 10
    assert [record.message.partition(":")[0] for record in caplog.records] == ["can't publish CRLs"] * 2


async def test_a_shortage_is_told_when_it_begins_and_when_it_ends(caplog: pytest.LogCaptureFixture) -> None:
    core, clock = Core(), Clock()
    worker = chores(core, clock)
    caplog.set_level(logging.INFO)
    for core.shortage in (None, "the disk is nearly full (3 MiB)", "the disk is nearly full (2 MiB)", None, None):
        await worker.round()
    told = [record.message for record in caplog.records if "CRL" not in record.message and "head" not in record.message]
    assert told == [
        "nothing is issued: the disk is nearly full (3 MiB)",
        "certificates are issued again",
    ]


async def test_a_store_that_gives_no_lease_is_no_reason_to_act() -> None:
    core = Core(broken="hold")
    await chores(core, Clock()).round()
    assert core.done == ["hold", "refresh", "refresh RA"]


@pytest.mark.parametrize("holds", [pytest.param(True, id="holder"), pytest.param(False, id="another-holds")])
async def test_every_worker_tells_its_own_sums_of_refusals(holds: bool, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", "enrolld.refusal_log")
    core, clock = Core(holds=holds), Clock()
    refusals = RefusalLog(clock=clock)
    worker = chores(core, clock, refusals)
    for _ in range(60):
        refusals.admits("192.0.2.1", "", "tls_not_tls")
    await worker.round()
    assert caplog.messages == []
    clock.now += 60
    await worker.round()
    assert caplog.messages == ["refused 10 more requests from 192.0.2.0/24: tls_not_tls"]


async def test_each_job_is_counted_by_how_it_ended_and_the_lease_by_who_has_it() -> None:
    meter = WorkerMeter(Counts(), lambda: 1000.0)
    worker = Chores(Core(broken="publish"), ("a",), RefusalLog(), Clock(), meter)  # type: ignore[arg-type]  # a part of one
    await worker.round()
    found = meter.counts.all()
    assert {key: numbers for key, numbers in found.items() if key[0] == "enrolld_job_failures_total"} == {
        ("enrolld_job_failures_total", ("crls",)): (1.0,)
    }
    ended = {labels[0] for name, labels in found if name == "enrolld_job_last_success_timestamp_seconds"}
    assert ended == {"lease", "audit_heads", "clock", "realms", "server_certificates", "ra_certificates", "requests"}
    assert found["enrolld_lease_held", ("chores",)] == (1.0,)


async def test_the_holder_alone_makes_a_head_each_minute_and_tells_it_to_the_log(
    installation: Installation, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "enrolld.chores")
    cores, clock = [installation.open(), installation.open()], Clock()
    workers = [Chores(core, ("localhost",), RefusalLog(clock=clock), clock) for core in cores]
    made: list[int] = []
    try:
        for second in range(181):
            await cores[0].devices.add("default", f"d-{second}", actor="operator:test")
            for worker in workers:
                await worker.round()
            made.append(len(installation.sql("SELECT number FROM audit_head")))
            clock.now += 1
            installation.clock.forward(seconds=1)
        heads = installation.sql("SELECT number, digest FROM audit_head ORDER BY number")
    finally:
        for core in cores:
            core.close()
    assert [made.index(number) for number in (1, 2, 3, 4)] == [0, 60, 120, 180]
    told = [record.message for record in caplog.records if record.message.startswith("audit head")]
    assert told == [f"audit head {number} is {digest.hex()}" for number, digest in heads]


async def test_a_minute_without_news_has_no_head(installation: Installation) -> None:
    core, clock = installation.open(), Clock()
    worker = Chores(core, ("localhost",), RefusalLog(clock=clock), clock)
    try:
        for second in range(500):
            if second == 400:
                await core.devices.add("default", "late", actor="operator:test")
            await worker.round()
            if second == 300:
                before = installation.sql("SELECT number FROM audit_head ORDER BY number")
            clock.now += 1
            installation.clock.forward(seconds=1)
    finally:
        core.close()
    assert len(installation.sql("SELECT number FROM audit_head")) == len(before) + 1
