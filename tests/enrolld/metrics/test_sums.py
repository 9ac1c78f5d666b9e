"""The supervisor's sums: fresh on each question, never less than before, and alive whatever a worker says."""

import asyncio
import contextlib
import logging
import socket
import subprocess
import sys
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass

import pytest

from enrolld.metrics.catalogue import JOB_FAILURES, METRICS, REQUESTS, WORKER_FDS
from enrolld.metrics.counts import Counts, Series
from enrolld.metrics.link import Link, last_words
from enrolld.metrics.messages import MAX_FRAME, PORTION, Ask, Counted, pack, portions
from enrolld.metrics.sums import Sums

ISSUED = ("default", "est", "simpleenroll", "issued")
KEY = (REQUESTS.name, ISSUED)


@dataclass
class Worker:
    """A worker without a process: its counts, its link, and the raw socket under it."""

    counts: Counts
    link: Link
    channel: socket.socket
    talking: asyncio.Task[None]
    followed: asyncio.Task[None]

    async def end(self, *, in_order: bool = True) -> None:
        """As a worker that is told to, or as one that is killed."""
        self.talking.cancel()
        await asyncio.gather(self.talking, return_exceptions=True)
        if in_order:
            assert self.link.is_whole
            last_words(self.counts, self.channel)
        self.channel.close()
        await self.followed


@pytest.fixture
def sums() -> Sums:
    return Sums()


@contextlib.asynccontextmanager
async def working(sums: Sums, number: int = 1) -> AsyncIterator[Worker]:
    ours, theirs = socket.socketpair()
    reader, writer = await asyncio.open_unix_connection(sock=ours)
    counts = Counts()
    link = Link(counts, number)
    followed = asyncio.create_task(sums.follow(f"worker {number}", reader, writer))
    await link.open(theirs)
    worker = Worker(counts, link, theirs, asyncio.create_task(link.run()), followed)
    try:
        yield worker
    finally:
        worker.talking.cancel()
        await asyncio.gather(worker.talking, return_exceptions=True)
        theirs.close()
        await followed


@contextlib.asynccontextmanager
async def raw(sums: Sums) -> AsyncIterator[tuple[socket.socket, "asyncio.Task[None]"]]:
    """The worker's end of a channel alone."""
    ours, theirs = socket.socketpair()
    reader, writer = await asyncio.open_unix_connection(sock=ours)
    followed = asyncio.create_task(sums.follow("worker 9", reader, writer))
    try:
        yield theirs, followed
    finally:
        theirs.close()
        await followed


async def test_a_worker_that_asks_gets_the_fresh_numbers_of_all(sums: Sums) -> None:
    async with working(sums, 1) as one, working(sums, 2) as two:
        for round_number in range(1, 4):
            one.counts.add(REQUESTS, *ISSUED)
            two.counts.add(REQUESTS, *ISSUED, amount=10)
            totals = await one.link.totals()
            assert totals[KEY] == (11.0 * round_number,)
            assert (await two.link.totals())[KEY] == totals[KEY], "whoever is asked"
        assert totals["enrolld_workers", ()] == (2.0,)
        assert {labels for name, labels in totals if name == WORKER_FDS.name} == {("1",), ("2",)}


async def test_nothing_is_lost_when_a_worker_ends_in_order(sums: Sums) -> None:
    async with working(sums, 1) as one, working(sums, 2) as two:
        one.counts.add(REQUESTS, *ISSUED, amount=5)
        await one.end()
        assert (await two.link.totals())[KEY] == (5.0,)
        assert (await two.link.totals())["enrolld_workers", ()] == (1.0,)


async def test_of_a_worker_that_is_killed_what_it_had_told_stays(sums: Sums) -> None:
    async with working(sums, 1) as one, working(sums, 2) as two:
        one.counts.add(REQUESTS, *ISSUED, amount=5)
        assert (await two.link.totals())[KEY] == (5.0,)
        one.counts.add(REQUESTS, *ISSUED)  # and this is lost
        await one.end(in_order=False)
        totals = await two.link.totals()
        assert totals[KEY] == (5.0,)
        assert ("enrolld_worker_open_fds", ("1",)) not in totals, "what it held is not held any more"
    async with working(sums, 1) as again:
        again.counts.add(REQUESTS, *ISSUED)
        assert (await again.link.totals())[KEY] == (6.0,), "its successor counts on"


async def test_a_worker_that_is_stuck_delays_an_answer_a_little_and_counts_as_it_last_did(sums: Sums) -> None:
    async with working(sums, 1) as one, raw(sums) as (stuck, _):
        stuck.sendall(pack(Counted((Series(*KEY, (7.0,)),))))
        for round_number in range(1, 7):
            one.counts.add(REQUESTS, *ISSUED)
            began = time.monotonic()
            totals = await one.link.totals()
            assert time.monotonic() - began < 2.5
            assert totals[KEY] == (7.0 + round_number,)
        stuck.settimeout(5)
        assert stuck.recv(1 << 16).count(b'"tell"') == 4, "it is not written to for ever"


async def test_a_question_to_a_supervisor_that_does_not_answer_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("enrolld.metrics.link._ANSWER_SECONDS", 0.05)
    ours, theirs = socket.socketpair()
    link = Link(Counts(), 1)
    with pytest.raises(TimeoutError):
        await link.totals()  # there is none yet
    await link.open(theirs)
    talking = asyncio.create_task(link.run())
    with ours, pytest.raises(TimeoutError):
        await link.totals()
    await asyncio.wait_for(talking, 5)  # the supervisor is gone: so is the link
    theirs.close()


async def test_more_series_than_fit_into_a_message_are_told_in_several(sums: Sums) -> None:
    realms = [f"realm-{number}" for number in range(PORTION + 5)]
    async with working(sums, 1) as one, working(sums, 2) as two:
        for realm in realms:
            one.counts.add(REQUESTS, realm, *ISSUED[1:])
        totals = await two.link.totals()
        assert sum(name == REQUESTS.name for name, _ in totals) == len(realms)


def test_portions_say_which_is_the_last_even_of_nothing() -> None:
    series = [Series("enrolld_requests_total", (f"r{n}", *ISSUED[1:]), (1.0,)) for n in range(2 * PORTION)]
    assert [(len(portion), last) for portion, last in portions(series)] == [(PORTION, False), (PORTION, True)]
    assert list(portions([])) == [((), True)]


def test_the_largest_portion_fits_into_a_frame() -> None:
    """Of the metric with the most numbers, each as long as a float gets, and the longest labels."""
    widest = max(METRICS.values(), key=lambda metric: metric.width)
    numbers = (1.7976931348623157e308,) * widest.width
    series = tuple(Series("x" * 60, ("y" * 40,) * 4, numbers) for _ in range(PORTION))
    assert len(pack(Counted(series))) < 2 * MAX_FRAME
    honest = tuple(
        Series(widest.name, ("scep", "GetCACertChain"), (123456.789012345,) + (1e6,) * (widest.width - 1))
        for _ in range(PORTION)
    )
    assert len(pack(Counted(honest))) < MAX_FRAME


def frame(body: bytes) -> bytes:
    return len(body).to_bytes(4, "big") + body


@pytest.mark.parametrize(
    "said",
    [
        pytest.param(b"\xff\xff\xff\xff", id="four-gigabytes-announced"),
        pytest.param((MAX_FRAME + 1).to_bytes(4, "big"), id="one-byte-too-many-announced"),
        pytest.param(frame(b""), id="an-empty-message"),
        pytest.param(frame(b"\x00\xff junk"), id="no-json"),
        pytest.param(frame(b"[" * 100_000), id="brackets"),
        pytest.param(frame(b'{"type":"tell","round":1}'), id="what-the-supervisor-says"),
        pytest.param(frame(b'{"type":"counted","series":[],"more":1}'), id="an-unknown-field"),
        pytest.param(frame(b'{"type":"counted","series":[["enrolld_requests_total",["a"],[1]]]}'), id="few-labels"),
        pytest.param(frame(b'{"type":"counted","series":[["enrolld_workers",[],[1e999]]]}'), id="a-huge-number"),
        pytest.param(frame(b'{"type":"counted","series":[["enrolld_devices",["x","active"],[1]]]}'), id="not-its-own"),
        pytest.param(
            pack(Counted((Series("enrolld_requests_total", ISSUED, (1.0,)),) * (PORTION + 1))), id="too-many-series"
        ),
    ],
)
async def test_a_worker_that_talks_nonsense_has_to_leave_and_nothing_else_happens(
    sums: Sums, caplog: pytest.LogCaptureFixture, said: bytes
) -> None:
    async with working(sums, 1) as one, raw(sums) as (liar, followed):
        one.counts.add(REQUESTS, *ISSUED)
        liar.sendall(pack(Counted((Series(*KEY, (2.0,)),))) + said)
        await asyncio.wait_for(followed, 5)
        liar.settimeout(5)
        assert liar.recv(1) == b"", "its channel is closed, on which a worker leaves"
        assert "worker 9 is not believed any more" in caplog.text
        assert (await one.link.totals())[KEY] == (3.0,), "what it had said before still counts"


async def test_a_worker_that_invents_realms_has_to_leave(sums: Sums, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("enrolld.metrics.sums._MAX_SERIES", 10)
    async with raw(sums) as (liar, followed):
        series = (Series("enrolld_requests_total", (f"r{n}", *ISSUED[1:]), (1.0,)) for n in range(11))
        liar.sendall(pack(Counted(tuple(series))))
        await asyncio.wait_for(followed, 5)
        assert len(await sums.fresh()) <= 10


async def test_a_worker_that_asks_without_end_is_answered_one_question_at_a_time(sums: Sums) -> None:
    async with working(sums, 1) as one, raw(sums) as (busy, _):
        busy.sendall(b"".join(pack(Ask(number)) for number in range(1000)))
        one.counts.add(JOB_FAILURES, "crls")
        assert (await one.link.totals())["enrolld_job_failures_total", ("crls",)] == (1.0,)
        busy.settimeout(5)
        assert 0 < len(busy.recv(1 << 20)) < 20_000


def test_the_supervisor_and_the_core_load_no_metrics_library() -> None:
    program = "import sys, enrolld.daemon, enrolld.supervisor, ca_core.core; print('prometheus_client' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", program], text=True, capture_output=True, check=True, timeout=60)
    assert done.stdout == "False\n"


async def test_a_half_message_at_the_end_of_a_process_is_no_complaint(
    sums: Sums, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.ERROR)
    async with raw(sums) as (killed, followed):
        killed.sendall(pack(Counted((Series(*KEY, (4.0,)),))) + pack(Ask(1))[:6])
        killed.close()
        await asyncio.wait_for(followed, 5)
    assert (await sums.fresh())[KEY] == (4.0,)
    assert caplog.text == ""
