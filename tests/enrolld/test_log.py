"""The daemon's log: one escaped line for each thing, for machines and for people."""

import json
import logging
from collections.abc import Iterator

import pytest

from enrolld import log
from enrolld.config_file import LogSettings


@pytest.fixture(autouse=True)
def put_back() -> Iterator[None]:
    """The root logger is the whole test run's."""
    root = logging.getLogger()
    handlers, level, raising = root.handlers[:], root.level, logging.raiseExceptions
    yield
    root.handlers[:] = handlers
    root.setLevel(level)
    logging.raiseExceptions = raising


def request(**changes: object) -> None:
    given: dict[str, object] = {
        "request_id": "abcd-2345",
        "client": "192.0.2.1",
        "method": "GET",
        "path": "/pki/x\n\x1b[2J\u202e",
        "status": 404,
        "is_refusal": True,
        "seconds": 0.25,
        "fields": {"tls.version": "TLSv1.3", "enrolld.device": None},
    }
    log.request(**{**given, **changes})  # type: ignore[arg-type]  # each value has its parameter's type


def test_a_request_is_one_line_of_ascii_json_with_ecs_names(capsys: pytest.CaptureFixture[str]) -> None:
    log.setup(LogSettings("json"), "worker-1")
    request()
    (line,) = capsys.readouterr().err.splitlines()
    assert line.isascii()
    assert "\\u001b" in line
    found = json.loads(line)
    assert found["@timestamp"].endswith("Z")
    expected = {
        "log.level": "info",
        "process.name": "worker-1",
        "event.outcome": "failure",
        "event.duration": 250_000_000,
        "client.ip": "192.0.2.1",
        "http.response.status_code": 404,
        "enrolld.request_id": "abcd-2345",
        "tls.version": "TLSv1.3",
    }
    assert {name: found[name] for name in expected} == expected
    assert "enrolld.device" not in found


def test_a_person_reads_one_line_whatever_the_peer_sent(capsys: pytest.CaptureFixture[str]) -> None:
    log.setup(LogSettings("text"), "worker-1")
    request()
    (line,) = capsys.readouterr().err.splitlines()
    assert line.endswith("info    192.0.2.1 GET /pki/x\\n\\x1b[2J\\u202e 404 id=abcd-2345 tls=TLSv1.3")


def test_without_a_terminal_auto_is_json(capsys: pytest.CaptureFixture[str]) -> None:
    log.setup(LogSettings("auto"), "supervisor")
    logging.getLogger("enrolld").info("x")
    assert json.loads(capsys.readouterr().err)["message"] == "x"


def test_the_level_decides_what_is_said(capsys: pytest.CaptureFixture[str]) -> None:
    log.setup(LogSettings("text", "warning"), "supervisor")
    request()
    logging.getLogger("enrolld").warning("heard")
    assert [line.split()[2] for line in capsys.readouterr().err.splitlines()] == ["heard"]


@pytest.mark.parametrize(("form", "has_stack"), [("json", True), ("text", False)])
def test_an_exception_is_one_line_as_well(capsys: pytest.CaptureFixture[str], form: str, has_stack: bool) -> None:
    log.setup(LogSettings(form), "worker-1")  # type: ignore[arg-type]  # one of the two
    try:
        raise ValueError("two\nlines")
    except ValueError:
        logging.getLogger("enrolld").exception("it failed")
    (line,) = capsys.readouterr().err.splitlines()
    assert "two\\nlines" in line
    assert ("Traceback" in line) is has_stack
    assert has_stack or "(test_log.py:" in line
