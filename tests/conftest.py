"""For every test: a core on a SQLite file of its own, if it wants one; and no skips where .ci/run forbids them."""

import os
from collections.abc import Generator, Iterator
from pathlib import Path

import pytest

from ca_core.core import Core
from tests.helpers.core import Installation, SetClock, make_installation

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


@pytest.fixture(scope="session")
def template(tmp_path_factory: pytest.TempPathFactory) -> Installation:
    """Made once per process: the RSA keys take half a second."""
    return make_installation(tmp_path_factory.mktemp("installation") / "template")


@pytest.fixture
def installation(template: Installation, tmp_path: Path) -> Installation:
    return template.copy_to(tmp_path / "data")


@pytest.fixture
def clock(installation: Installation) -> SetClock:
    return installation.clock


@pytest.fixture
def core(installation: Installation) -> Iterator[Core]:
    opened = installation.open()
    yield opened
    opened.close()
