"""Counting in one process, what may be counted at all, and how the numbers of several become one."""

import threading

import pytest

from enrolld.metrics.catalogue import (
    COMMIT_UNITS,
    HANDSHAKES,
    JOB_FAILURES,
    JOB_SUCCESS,
    METRICS,
    OTHER,
    REFUSALS,
    REQUESTS,
    WORKER_CPU,
    WORKER_FDS,
    WORKER_MEMORY,
)
from enrolld.metrics.counts import Counts, Series, left_by, merged, vetted

ISSUED = ("default", "est", "simpleenroll", "issued")


def test_a_counter_adds_up_and_only_what_changed_is_told_again() -> None:
    counts = Counts()
    counts.add(REQUESTS, *ISSUED)
    counts.add(REQUESTS, *ISSUED)
    counts.add(JOB_FAILURES, "crls")
    assert {series.key: series.numbers for series in counts.changed()} == {
        ("enrolld_requests_total", ISSUED): (2.0,),
        ("enrolld_job_failures_total", ("crls",)): (1.0,),
    }
    assert counts.changed() == []
    counts.add(REQUESTS, *ISSUED)
    assert counts.changed() == [Series("enrolld_requests_total", ISSUED, (3.0,))]


@pytest.mark.parametrize(
    ("value", "bucket"),
    [
        pytest.param(0.0, 0, id="nothing"),
        pytest.param(1.0, 0, id="on-the-bound"),
        pytest.param(1.5, 1, id="above-it"),
        pytest.param(64.0, 6, id="on-the-last"),
        pytest.param(65.0, 7, id="beyond-all"),
    ],
)
def test_a_value_falls_into_the_first_bucket_whose_bound_it_does_not_pass(value: float, bucket: int) -> None:
    counts = Counts()
    counts.observe(COMMIT_UNITS, value)
    total, *buckets = counts.all()["enrolld_commit_batch_size", ()]
    assert total == value
    assert buckets == [float(number == bucket) for number in range(8)]
    assert len(buckets) + 1 == COMMIT_UNITS.width


@pytest.mark.parametrize(
    ("labels", "kept"),
    [
        pytest.param(("default", "est", "no_such_code"), ("default", "est", OTHER), id="a-code-that-is-none"),
        pytest.param(("default", "est", "x\n}1"), ("default", "est", OTHER), id="junk"),
        pytest.param(("", "scep", "secret_wrong"), ("", "scep", "secret_wrong"), id="no-realm"),
    ],
)
def test_a_value_outside_its_set_is_other(labels: tuple[str, ...], kept: tuple[str, ...]) -> None:
    counts = Counts()
    counts.add(REFUSALS, *labels)
    assert counts.all() == {("enrolld_refusals_total", kept): (1.0,)}


def test_an_operation_outside_its_set_is_unknown() -> None:
    counts = Counts()
    counts.add(REQUESTS, "default", "est", "../../etc/passwd", "served")
    assert counts.all() == {("enrolld_requests_total", ("default", "est", "unknown", "served")): (1.0,)}


@pytest.mark.parametrize(
    "labels",
    [
        pytest.param(("default", "smtp", "cacerts", "served"), id="no-such-protocol"),
        pytest.param(("default", "est", "cacerts"), id="one-too-few"),
    ],
)
def test_what_no_label_takes_is_counted_nowhere_and_breaks_nothing(labels: tuple[str, ...]) -> None:
    counts = Counts()
    counts.add(REQUESTS, *labels)
    assert counts.all() == {}
    assert counts.changed() == []


def test_junk_makes_no_series_however_much_of_it_there_is() -> None:
    counts = Counts()
    for number in range(10_000):
        counts.add(HANDSHAKES, f"TLSv{number}", f"group-{number}", "ok")
        counts.add(REFUSALS, "", "http", f"code_{number}")
    assert len(counts.all()) == 2


def test_threads_lose_no_count() -> None:
    counts = Counts()

    def work() -> None:
        for _ in range(5000):
            counts.add(JOB_FAILURES, "crls")
            counts.observe(COMMIT_UNITS, 3)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert counts.all()["enrolld_job_failures_total", ("crls",)] == (20_000.0,)
    assert counts.all()["enrolld_commit_batch_size", ()][0] == 60_000.0


GOOD = Series("enrolld_requests_total", ISSUED, (1.0,))


@pytest.mark.parametrize(
    "series",
    [
        pytest.param(Series("enrolld_nothing_total", (), (1.0,)), id="no-such-metric"),
        pytest.param(Series("enrolld_devices", ("default", "active"), (1.0,)), id="not-the-workers-to-count"),
        pytest.param(Series("enrolld_requests_total", ISSUED[:3], (1.0,)), id="a-label-is-missing"),
        pytest.param(Series("enrolld_requests_total", (*ISSUED[:3], "won"), (1.0,)), id="no-such-value"),
        pytest.param(Series("enrolld_requests_total", ("A B", *ISSUED[1:]), (1.0,)), id="no-name-of-a-realm"),
        pytest.param(Series("enrolld_requests_total", ("x\n", *ISSUED[1:]), (1.0,)), id="a-line-feed"),
        pytest.param(Series("enrolld_worker_open_fds", ("1e9",), (1.0,)), id="no-number-of-a-worker"),
        pytest.param(Series("enrolld_requests_total", ISSUED, ()), id="no-number"),
        pytest.param(Series("enrolld_commit_batch_size", (), (1.0,)), id="a-histogram-without-buckets"),
        pytest.param(Series("enrolld_requests_total", ISSUED, (-1.0,)), id="less-than-nothing"),
        pytest.param(Series("enrolld_requests_total", ISSUED, (float("nan"),)), id="not-a-number"),
        pytest.param(Series("enrolld_requests_total", ISSUED, (float("inf"),)), id="beyond-all-numbers"),
    ],
)
def test_what_no_worker_can_have_counted_is_not_believed(series: Series) -> None:
    with pytest.raises(ValueError, match=r"^(no worker|enrolld_)"):
        vetted([GOOD, series])
    assert vetted([GOOD]) == {GOOD.key: (1.0,)}


def _counted(*, cpu: float, fds: float, at: float, units: float) -> Counts:
    counts = Counts()
    counts.add(WORKER_CPU, "1", amount=cpu)
    counts.set(WORKER_FDS, fds, "1")
    counts.set(JOB_SUCCESS, at, "crls")
    counts.observe(COMMIT_UNITS, units)
    return counts


def test_counts_add_up_moments_are_the_latest_and_what_was_held_ends_with_its_holder() -> None:
    gone = left_by(_counted(cpu=5, fds=30, at=100, units=2).all())
    assert {key[0] for key in gone} == {METRICS[name].name for name in METRICS if "cpu" in name} | {
        "enrolld_job_last_success_timestamp_seconds",
        "enrolld_commit_batch_size",
    }
    living = [_counted(cpu=1, fds=10, at=90, units=2).all(), _counted(cpu=2, fds=20, at=80, units=4).all()]
    total = merged(living, gone)
    assert total["enrolld_worker_cpu_seconds_total", ("1",)] == (8.0,)
    assert total["enrolld_worker_open_fds", ("1",)] == (30.0,)
    assert total["enrolld_job_last_success_timestamp_seconds", ("crls",)] == (100.0,)
    assert total["enrolld_commit_batch_size", ()] == (8.0, 0.0, 2.0, 1.0, 0.0, 0.0, 0.0, 0.0, 0.0)
    assert gone == left_by(_counted(cpu=5, fds=30, at=100, units=2).all()), "what is left is not touched"
    assert WORKER_MEMORY.name not in {name for name, _ in total}
