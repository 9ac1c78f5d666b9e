"""Refusals cost a bounded number of log lines, and none of them is lost: what has no line is in a sum."""

import logging
from types import SimpleNamespace
from typing import Any

import pytest
from aiohttp import web
from aiohttp.test_utils import TestClient, TestServer

from ca_core.limits import source_prefix
from enrolld.http_server import Listener
from enrolld.refusal_log import RefusalLimits, RefusalLog
from enrolld.serving import request_logger
from est_server.app import LOG_FIELDS

LIMITS = RefusalLimits(burst=3, rate=0.5, total_burst=5, total_rate=1, prefixes=2, sums=3, sum_lines=2)


class Clock:
    """Stands still until it is moved."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def told(caplog: pytest.LogCaptureFixture) -> pytest.LogCaptureFixture:
    caplog.set_level(logging.INFO)
    return caplog


def admitted(refusals: RefusalLog, source: str, times: int, *, realm: str = "", reason: str = "secret_wrong") -> int:
    """How many of so many equal refusals get a line."""
    return sum(refusals.admits(source, realm, reason) for _ in range(times))


@pytest.mark.parametrize(
    ("source", "prefix"),
    [
        pytest.param("192.0.2.77", "192.0.2.0/24", id="ipv4"),
        pytest.param("2001:db8:1:2:3:4:5:6", "2001:db8:1:2::/64", id="ipv6"),
        pytest.param("::ffff:192.0.2.77", "192.0.2.0/24", id="ipv4-in-ipv6"),
        pytest.param("fe80::1%eth0", "fe80::/64", id="with-a-zone"),
        pytest.param("local", "local", id="unix-socket"),
        pytest.param("", "unknown", id="none"),
    ],
)
def test_a_source_counts_with_its_network(source: str, prefix: str) -> None:
    assert source_prefix(source) == prefix


def test_a_source_has_its_burst_and_then_its_rate(clock: Clock) -> None:
    refusals = RefusalLog(LIMITS, clock)
    assert admitted(refusals, "192.0.2.1", 100) == 3
    clock.now += 4
    assert admitted(refusals, "192.0.2.200", 100) == 2  # another address of the same network
    clock.now += 10_000
    assert admitted(refusals, "192.0.2.1", 100) == 3  # never more than the burst at once


def test_another_network_is_not_silenced_by_a_loud_one(clock: Clock) -> None:
    refusals = RefusalLog(LIMITS, clock)
    admitted(refusals, "192.0.2.1", 100)
    assert admitted(refusals, "198.51.100.1", 1) == 1


def test_all_networks_together_have_a_limit_as_well(clock: Clock) -> None:
    refusals = RefusalLog(LIMITS, clock)
    assert sum(admitted(refusals, f"2001:db8:0:{number:x}::1", 1) for number in range(100)) == 5


def test_what_had_no_line_is_summed_by_prefix_realm_and_reason(clock: Clock, told: pytest.LogCaptureFixture) -> None:
    refusals = RefusalLog(LIMITS, clock)
    admitted(refusals, "192.0.2.1", 10, realm="cams")
    admitted(refusals, "192.0.2.1", 1, reason="tls_not_tls")
    clock.now += 59.9
    refusals.tell_due()
    assert told.messages == []
    clock.now += 0.1
    refusals.tell_due()
    assert told.messages == [
        "refused 7 more requests from 192.0.2.0/24 by realm cams: secret_wrong",
        "refused 1 more request from 192.0.2.0/24: tls_not_tls",
    ]
    fields: dict[str, Any] = vars(told.records[0])["ecs"]
    assert fields == {
        "event.action": "refusals",
        "event.outcome": "failure",
        "enrolld.count": 7,
        "source.address": "192.0.2.0/24",
        "event.code": "secret_wrong",
        "enrolld.realm": "cams",
    }
    clock.now += 1000
    refusals.tell_due()
    assert len(told.messages) == 2  # nothing new, nothing said


def test_the_sums_are_told_by_the_next_refusal_too(clock: Clock, told: pytest.LogCaptureFixture) -> None:
    refusals = RefusalLog(LIMITS, clock)
    admitted(refusals, "192.0.2.1", 4)
    clock.now += 60
    assert admitted(refusals, "192.0.2.1", 1) == 1
    assert told.messages == ["refused 1 more request from 192.0.2.0/24: secret_wrong"]


def test_the_lines_of_sums_are_bounded_and_add_up_to_all_there_was(
    clock: Clock, told: pytest.LogCaptureFixture
) -> None:
    refusals = RefusalLog(LIMITS, clock)
    lines = sum(
        admitted(refusals, f"10.0.{number}.1", times, reason=f"r{number}")
        for number, times in enumerate((5, 1, 9, 7, 20, 30))
    )
    assert lines == 5
    refusals.tell()
    assert told.messages == [
        "refused 8 more requests from 10.0.2.0/24: r2",
        "refused 7 more requests from 10.0.3.0/24: r3",
        "refused 52 more requests from other sources or for other reasons",
    ]
    assert lines + 8 + 7 + 52 == 5 + 1 + 9 + 7 + 20 + 30


def test_no_more_buckets_are_held_than_allowed(clock: Clock) -> None:
    refusals = RefusalLog(LIMITS, clock)
    for number in range(100):
        refusals.admits(f"2001:db8:0:{number:x}::1", "", "x")
    assert len(refusals._sources) == LIMITS.prefixes
    assert len(refusals._sums) == LIMITS.sums


async def test_refused_requests_are_limited_and_served_ones_never(clock: Clock, told: pytest.LogCaptureFixture) -> None:
    refusals = RefusalLog(LIMITS, clock)

    async def served(_: web.Request) -> web.Response:
        return web.Response(text="yes")

    async def refused(_: web.Request) -> web.Response:
        response = web.Response(status=401)
        response[LOG_FIELDS] = {"event.code": "secret_wrong", "enrolld.realm": "cams"}
        return response

    app = web.Application(middlewares=[request_logger(refusals)])
    app.router.add_get("/served", served)
    app.router.add_get("/refused", refused)
    async with TestClient(TestServer(app)) as client:
        for path in ["/refused"] * 20 + ["/served"] * 20 + ["/nowhere"] * 4:
            await (await client.get(path)).read()
    lines = [record.getMessage() for record in told.records if record.name == "enrolld.request"]
    assert lines == ["127.0.0.1 GET /refused 401"] * 3 + ["127.0.0.1 GET /served 200"] * 20
    told.clear()
    refusals.tell()
    assert told.messages == [
        "refused 17 more requests from 127.0.0.0/24 by realm cams: secret_wrong",
        "refused 4 more requests from 127.0.0.0/24: http_not_found",
    ]


def test_refusals_below_http_share_the_limit_and_are_all_counted_elsewhere(
    clock: Clock, told: pytest.LogCaptureFixture
) -> None:
    refusals = RefusalLog(LIMITS, clock)
    heard: list[str] = []
    runner: Any = SimpleNamespace(server=object())
    listener = Listener(runner, None, lambda reason, _peer, _id: heard.append(reason), refusals)
    for port in range(10):
        listener.refused("tls_handshake_timeout", f"[2001:db8::1]:{port}", "abcd-2345")
    assert [message.split(" (")[0] for message in told.messages] == [
        f"refused [2001:db8::1]:{port}: tls_handshake_timeout" for port in range(3)
    ]
    assert heard == ["tls_handshake_timeout"] * 10
    listener.refused("http_not_found", "192.0.2.1:1", "abcd-2345", is_logged=True)  # its request has a line already
    told.clear()
    refusals.tell()
    assert told.messages == ["refused 7 more requests from 2001:db8::/64: tls_handshake_timeout"]
