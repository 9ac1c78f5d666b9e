"""For every test: where a run must be complete (.ci/run sets ENROLLD_NO_SKIPS=1), a skipped test is a failed one."""

import os
from collections.abc import Generator

import pytest

NO_SKIPS = os.environ.get("ENROLLD_NO_SKIPS") == "1"


def _skip_is_failure(report: pytest.TestReport | pytest.CollectReport) -> None:
    if not NO_SKIPS or report.outcome != "skipped" or hasattr(report, "wasxfail"):
        return
    reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else str(report.longrepr)
    report.outcome = "failed"
    report.longrepr = f"skipped where nothing may be skipped: {reason}"


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport() -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    _skip_is_failure(report)
    return report


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report() -> Generator[None, pytest.CollectReport, pytest.CollectReport]:
    report = yield
    _skip_is_failure(report)
    return report
