"""`enrolld request` and `enrolld realm challenge`, as an operator types them on an installation of their own."""

import asyncio
import datetime as dt
import io
import json
import sys
from typing import Any

import pytest

from ca_core.core import Core
from ca_core.model import Evidence
from enrolld.cli import main
from tests.helpers.admission import admit_by, outcome_of
from tests.helpers.core import ME, Installation, SetClock, csr_of, new_key


class Operator:
    """Types commands."""

    def __init__(self, installation: Installation, capsys: pytest.CaptureFixture[str]) -> None:
        self._directory = str(installation.directory)
        self._store = installation.store_url
        self._capsys = capsys

    def types(self, *arguments: str) -> tuple[int, str, str]:
        """Exit status, stdout and stderr."""
        self._capsys.readouterr()
        status = main(["--dir", self._directory, "--store", self._store, *arguments])
        said = self._capsys.readouterr()
        return status, said.out, said.err

    def asks(self, *arguments: str) -> Any:
        """The rows, or the one object, of a command with --json."""
        _, out, _ = self.types(*arguments, "--json")
        rows = [json.loads(line) for line in out.splitlines()]
        return rows if "list" in arguments else rows[0]


@pytest.fixture
def operator(installation: Installation, capsys: pytest.CaptureFixture[str]) -> Operator:
    return Operator(installation, capsys)


@pytest.fixture
async def waiting(core: Core, clock: SetClock) -> Core:
    """A realm in which one request waits. Commands go by the machine's clock, and so does everybody here."""
    clock.now = dt.datetime.now(dt.UTC)
    await admit_by(core, "approval")
    assert await outcome_of(core, Evidence(), csr_of(KEY, "walk-in")) == "pending"
    return core


KEY = new_key()


async def test_a_request_is_listed_shown_approved_and_granted(waiting: Core, operator: Operator) -> None:
    [row] = await asyncio.to_thread(operator.asks, "request", "list", "--state", "pending")
    assert {"id", "realm", "profile", "device", "subject", "protocol", "state", "requested_at", "expires"} <= set(row)
    assert (row["device"], row["state"], row["subject"]) == ("walk-in", "pending", "CN=walk-in")
    shown = await asyncio.to_thread(operator.asks, "request", "show", row["id"])
    outlook = shown.pop("outlook")
    assert shown | {"outlook": None} == row
    assert {name: outlook[name] for name in ("outcome", "issuer", "subject", "names", "dropped", "warnings")} == {
        "outcome": "issued",
        "issuer": "default-ec-1",
        "subject": "CN=walk-in",
        "names": [],
        "dropped": [],
        "warnings": [],
    }
    approved = await asyncio.to_thread(operator.asks, "request", "approve", row["id"])
    assert (approved["state"], approved["decided_by"] is not None) == ("approved", True)
    assert await outcome_of(waiting, Evidence(), csr_of(KEY, "walk-in")) == "issued"
    refused = await asyncio.to_thread(operator.asks, "request", "approve", row["id"])
    assert (refused["error"], refused["message"]) == ("request_decided", f"request {row['id']} is issued")


async def test_what_would_be_issued_is_shown_to_who_decides(core: Core, clock: SetClock, operator: Operator) -> None:
    clock.now = dt.datetime.now(dt.UTC)
    handed = await core.devices.add("default", "sensor", sans=["DNS:a.example.com"], expires="1d", actor=ME)
    await admit_by(core, "secret + approval")
    csr = csr_of(new_key(), "sensor", sans=["evil.example.com"])
    assert await outcome_of(core, Evidence(secret=handed.secret), csr) == "pending"
    [row] = await asyncio.to_thread(operator.asks, "request", "list")
    _, out, err = await asyncio.to_thread(operator.types, "request", "show", row["id"])
    said = out[out.index("It would be issued as:") :]
    for wanted in ("CN=sensor", "DNS:a.example.com", "SAN DNS:evil.example.com", "default-ec-1"):
        assert wanted in said
    assert "the device must ask again before" in err
    assert "when the secret ends" in err
    status, out, err = await asyncio.to_thread(operator.types, "request", "approve", row["id"])
    assert (status, "when the secret ends" in err) == (0, True)


async def test_what_can_t_be_issued_any_more_is_shown_as_that_and_not_approved(
    core: Core, clock: SetClock, operator: Operator
) -> None:
    clock.now = dt.datetime.now(dt.UTC)
    handed = await core.devices.add("default", "sensor", actor=ME)
    await admit_by(core, "secret + approval")
    assert await outcome_of(core, Evidence(secret=handed.secret), csr_of(new_key(), "sensor")) == "pending"
    await core.devices.suspend("default", "sensor", actor=ME)
    [row] = await asyncio.to_thread(operator.asks, "request", "list")
    _, out, _ = await asyncio.to_thread(operator.types, "request", "show", row["id"])
    assert "Granted now, it would not be issued: The device is suspended" in out
    status, _, err = await asyncio.to_thread(operator.types, "request", "approve", row["id"])
    assert (status, "would be refused all the same: The device is suspended" in err) == (1, True)
    refused = await asyncio.to_thread(operator.asks, "request", "approve", row["id"])
    assert refused["error"] == "request_not_grantable"
    await core.devices.resume("default", "sensor", actor=ME)
    assert (await asyncio.to_thread(operator.asks, "request", "approve", row["id"]))["state"] == "approved", "the twin"


@pytest.mark.parametrize(("ways", "found"), [("secret + webhook", True), ("secret", False)])
async def test_check_finds_a_realm_whose_webhook_s_key_this_node_lacks(
    core: Core, clock: SetClock, operator: Operator, ways: str, found: bool
) -> None:
    clock.now = dt.datetime.now(dt.UTC)
    await admit_by(core, ways, webhook={"url": "https://hooks.example.com/x", "key": "hooks"})
    answer = await asyncio.to_thread(operator.asks, "check")
    assert ("webhook_key_unknown" in {finding["code"] for finding in answer["findings"]}) is found


async def test_a_rejection_says_by_whom_and_why(waiting: Core, operator: Operator) -> None:
    [row] = await asyncio.to_thread(operator.asks, "request", "list")
    status, out, _ = await asyncio.to_thread(operator.types, "request", "reject", row["id"], "--reason", "not ours")
    assert status == 0
    assert "not ours" in out
    assert await outcome_of(waiting, Evidence(), csr_of(KEY, "walk-in")) == "request_rejected"


def test_what_is_no_request_is_refused_with_a_remedy(operator: Operator) -> None:
    for command in ("show", "approve", "reject"):
        refused = operator.asks("request", command, "999")
        assert (refused["error"], "request list" in refused["remedy"]) == ("request_unknown", True)
    assert operator.asks("request", "list") == []


def test_a_challenge_is_made_shown_once_and_warned_about(operator: Operator) -> None:
    status, out, err = operator.types("realm", "challenge", "default")
    assert status == 0
    challenge = out.split()[-1]
    assert len(challenge) == 26
    assert "share" in err
    _, document, _ = operator.types("realm", "export", "default")
    assert challenge not in document
    assert 'challenge = "sha256:' in document


def test_a_challenge_comes_from_standard_input_and_not_from_an_argument(
    operator: Operator, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = "given-by-the-mdm-0123456789"
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(f"{given}\n".encode())))
    assert operator.asks("realm", "challenge", "default", "--from-file", "-") == {
        "realm": "default",
        "challenge": given,
    }
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"short\n")))
    assert operator.asks("realm", "challenge", "default", "--from-file", "-")["error"] == "challenge_invalid"


async def test_a_request_of_a_retired_realm_is_told_as_that_and_waits_on(
    core: Core, clock: SetClock, operator: Operator
) -> None:
    clock.now = dt.datetime.now(dt.UTC)
    await admit_by(core, "approval", realm="other")
    assert await outcome_of(core, Evidence(), csr_of(KEY, "walk-in"), label="other") == "pending"
    await core.realms.retire("other", actor=ME)
    [row] = await asyncio.to_thread(operator.asks, "request", "list")
    outlook = (await asyncio.to_thread(operator.asks, "request", "show", row["id"]))["outlook"]
    assert (outlook["outcome"], outlook["code"]) == ("refused", "realm_retired")
    assert outlook["remedy"] == "'enrolld realm resume other' undoes it"
    refused = await asyncio.to_thread(operator.asks, "request", "approve", row["id"])
    assert refused["error"] == "request_not_grantable"
    assert "realm other is retired" in refused["message"]
    assert "realm resume other" in refused["remedy"]
    await core.realms.resume("other", actor=ME)
    approved = await asyncio.to_thread(operator.asks, "request", "approve", row["id"])
    assert approved["state"] == "approved", "the twin"
