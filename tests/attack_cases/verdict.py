"""A plugin for the runs of `mutation`: writes down how each test ended, and at what, for `VERDICT_FILE`."""

import json
import os
from collections.abc import Generator
from pathlib import Path

import pytest

_ENDED: list[dict[str, str]] = []


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    call: pytest.CallInfo[None],
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    at = type(call.excinfo.value).__name__ if call.excinfo is not None else ""
    if at == "Failed" and str(call.excinfo and call.excinfo.value).startswith("Timeout"):
        at = "Timeout"  # a test that hung shows nothing
    _ENDED.append({"test": report.nodeid, "when": str(report.when), "outcome": report.outcome, "at": at})
    return report


def pytest_collectreport(report: pytest.CollectReport) -> None:
    if report.outcome == "failed":
        _ENDED.append({"test": report.nodeid, "when": "collect", "outcome": "failed", "at": "CollectError"})


def pytest_sessionfinish() -> None:
    if file := os.environ.get("VERDICT_FILE"):
        Path(file).write_text(json.dumps(_ENDED))
