"""Attack case 51: connections that are slow, silent, half-closed or deaf are cut each by its deadline, and cost nobody.

All kinds at once, a few hundred connections, so that the whole takes as long as the longest deadline (30 s), most of it
waiting. Ten thousand connections are another test's.
"""

import asyncio
import os
import socket
import ssl
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import pytest

from tests.attack_cases.field import EST, SCEP, Field
from tests.attack_cases.talk import connected, hear
from tests.end_to_end import wire

LONG = os.environ.get("ENROLLD_LONG") == "1"
EACH = 300 if LONG else 30
"""Connections of each kind; as many refusals of one network have a log line each."""
HONEST_SECONDS = 5.0
"""Within which an honest client is served meanwhile."""
SLACK = 8.0
"""Seconds after its deadline that a connection is looked for, on two cores that others share."""

GET = b"GET /pki/default-ec-1.cer HTTP/1.1\r\nHost: localhost\r\n\r\n"
POST = b"POST /scep?operation=PKIOperation HTTP/1.1\r\nHost: localhost\r\n"
CLIENT_HELLO = bytes.fromhex("16030100c8010000c40303") + bytes(32)  # the rest of its 200 bytes never comes


@dataclass
class Kind:
    """One way to be slow: what is sent at once, what then comes a byte a second, and what must come of it."""

    name: str
    https: bool
    first: bytes
    trickle: bytes
    deadline: float
    status: int | None
    """Of the one answer before the end; None for an end in silence."""
    reason: str
    """In the log; empty for what is no refusal."""
    tls: bool = False
    answers_before: int = 0
    ends: list[float] = field(default_factory=list)
    statuses: list[list[int]] = field(default_factory=list)


KINDS = [
    Kind("https-silent", True, b"", b"", 10, None, "tls_handshake_timeout"),
    Kind("half-a-client-hello", True, CLIENT_HELLO[:20], b"\0", 10, None, "tls_handshake_timeout"),
    Kind("http-silent", False, b"", b"", 10, None, ""),
    Kind("slow-head", False, b"GET /pki/a.cer HTTP/1.1\r\nX-Slow: ", b"a", 10, 408, "http_head_timeout"),
    Kind("slow-head-over-tls", True, b"GET /a HTTP/1.1\r\nX-Slow: ", b"a", 10, 408, "http_head_timeout", tls=True),
    Kind("slow-body", False, POST + b"Content-Length: 5000\r\n\r\n", b"a", 30, 408, "http_body_timeout"),
    Kind(
        "slow-chunks", False, POST + b"Transfer-Encoding: chunked\r\n\r\n", b"1\r\na\r\n", 30, 408, "http_body_timeout"
    ),
    Kind("idle-after-an-answer", False, GET, b"", 30, None, "", answers_before=1),
    Kind("slow-second-head", False, GET + GET[:-2] + b"X-Slow: ", b"a", 11, 408, "http_head_timeout", answers_before=1),
]


def statuses_in(received: bytes) -> list[int]:
    return [int(part[:3]) for part in received.split(b"HTTP/1.1 ")[1:]]


async def besiege(one: Kind, port: int, source: str, tls: ssl.SSLContext | None, begin: float, end: float) -> None:
    """One connection of a kind, until the daemon ends it or the time is over."""
    reader, writer = await asyncio.open_connection(
        "127.0.0.1", port, local_addr=(source, 0), ssl=tls, server_hostname="localhost" if tls else None
    )
    received = bytearray()

    async def read() -> None:
        try:
            while data := await reader.read(65536):
                received.extend(data)
        except (ConnectionError, ssl.SSLError):
            pass

    async def drip() -> None:
        while True:
            await asyncio.sleep(1)
            writer.write(one.trickle)

    try:
        writer.write(one.first)
        reading, dripping = (
            asyncio.create_task(read()),
            asyncio.create_task(drip() if one.trickle else asyncio.sleep(0)),
        )
        await asyncio.wait([reading], timeout=end - time.monotonic())
        if reading.done():
            one.ends.append(time.monotonic() - begin)
            one.statuses.append(statuses_in(bytes(received)))
        for task in (reading, dripping):
            task.cancel()
        await asyncio.gather(reading, dripping, return_exceptions=True)
    finally:
        writer.transport.abort()


async def be_deaf(port: int, source: str, begin: float, end: float) -> float | None:
    """Ask again and again, and never read an answer: after how long the daemon cuts the connection."""
    loop = asyncio.get_running_loop()
    with socket.socket() as deaf:
        deaf.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2048)
        deaf.bind((source, 0))
        deaf.setblocking(False)
        await loop.sock_connect(deaf, ("127.0.0.1", port))
        try:
            async with asyncio.timeout(end - time.monotonic()):
                while True:
                    await loop.sock_sendall(deaf, GET * 100)
        except TimeoutError:
            return None
        except ConnectionError:
            return time.monotonic() - begin


async def honest(ask: Callable[[], float], until: Callable[[], bool]) -> list[float]:
    """Enroll over and over while all that goes on: how long each took."""
    took: list[float] = []
    while not until():
        took.append(await asyncio.to_thread(ask))
        await asyncio.sleep(0.5)
    return took


LONGEST = 30.0 + SLACK
DEAF = 5
DEAF_LONGEST = 60.0 + SLACK
"""The daemon looks every 30 s whether a byte has left; the first look may still see those that filled the buffers."""


@pytest.mark.timeout(180)
def test_case_51_slow_silent_and_deaf_connections_are_cut_each_by_its_deadline(
    field: Field, fields: Iterator[Field]
) -> None:
    networks = {one.name: next(fields) for one in KINDS}
    deaf_network = next(fields)
    daemon = field.daemon
    begin = time.monotonic()
    deaf_for: list[float | None] = []
    done = False

    def ask() -> float:
        one = next(fields)  # a new device each time: of one credential only so much is served
        csrs = {protocol: one.csr(protocol=protocol) for protocol in (EST, SCEP)}
        since = time.monotonic()
        for protocol, csr in csrs.items():
            one.assert_served(csr, protocol)
        return time.monotonic() - since

    async def all_at_once() -> list[float]:
        nonlocal done
        served = asyncio.create_task(honest(ask, lambda: done))
        besieging = [
            besiege(
                one,
                daemon.https_port if one.https else daemon.http_port,
                networks[one.name].source,
                field.tls if one.tls else None,
                begin,
                begin + one.deadline + SLACK,
            )
            for one in KINDS
            for _ in range(EACH)
        ]
        being_deaf = [be_deaf(daemon.http_port, deaf_network.source, begin, begin + DEAF_LONGEST) for _ in range(DEAF)]
        both = asyncio.gather(asyncio.gather(*being_deaf), asyncio.gather(*besieging))
        try:
            deaf_for.extend((await both)[0])
        finally:
            done = True
        return await served

    ask()
    took = asyncio.run(all_at_once())
    print(f"{EACH} connections of {len(KINDS)} kinds; the honest client took {max(took):.2f} s at most")
    assert len(took) > 20
    assert max(took) < HONEST_SECONDS
    for one in KINDS:
        assert len(one.ends) == EACH, (
            f"{one.name}: {EACH - len(one.ends)} of {EACH} were not cut after {one.deadline} s"
        )
        assert min(one.ends) > one.deadline - 1, f"{one.name}: one was cut after {min(one.ends):.1f} s"
        expected = [200] * one.answers_before + ([one.status] if one.status else [])
        assert one.statuses == [expected] * EACH, one.name
        lines = networks[one.name].lines(networks[one.name].source)
        refusals = [line for line in lines if (one.reason or "refused") in str(line)]
        assert len(refusals) == (EACH if one.reason and not LONG else len(refusals)), (
            f"{one.name}: {len(refusals)} lines"
        )
        if not one.reason:
            assert not [line for line in lines if "refused" in line["message"]], one.name
    assert all(deaf_for), f"who never reads is not cut: {deaf_for}"
    assert len(deaf_network.lines("write_stalled")) == DEAF
    field.assert_served()


def test_case_51_a_connection_that_is_closed_by_half_gets_its_answer_and_is_over(field: Field) -> None:
    body = wire.body_of(field.csr())
    for request, port, tls, answers in (
        (GET, field.daemon.http_port, None, [200]),
        (GET + GET, field.daemon.http_port, None, [200, 200]),
        (field.enroll_request(body), field.daemon.https_port, field.tls, [200]),
        (POST + b"Content-Length: 5000\r\n\r\nabc", field.daemon.http_port, None, [400]),
        (b"GET /pki/a.cer HT", field.daemon.http_port, None, []),
        (b"", field.daemon.http_port, None, []),
    ):
        with connected(port, tls=tls, source=field.source) as connection:
            connection.sendall(request)
            if tls is None:
                connection.shutdown(socket.SHUT_WR)
            heard = hear(connection, answers=None if tls is None else 1)
        assert [answer.status for answer in heard.answers] == answers, request[:40]
        assert heard.closed or tls is not None, request[:40]
    field.assert_served()


def test_case_51_a_body_that_ends_early_is_told_as_that(field: Field) -> None:
    with connected(field.daemon.http_port, source=field.source) as connection:
        connection.sendall(POST + b"Content-Length: 5000\r\n\r\nabc")
        connection.shutdown(socket.SHUT_WR)
        heard = hear(connection)
    field.assert_refused(heard, 400, "http_body_truncated")
    field.assert_served()


def test_case_51_a_head_that_never_ends_is_refused_by_its_size(field: Field) -> None:
    endless = GET[:-2] + b"".join(b"X-%d: %b\r\n" % (number, b"a" * 2000) for number in range(60))
    heard = field.http(endless)
    field.assert_refused(heard, 431, "http_head_too_large")
    long_field = field.http(GET[:-2] + b"X: " + b"a" * 9000 + b"\r\n\r\n")
    field.assert_refused(long_field, 431, "http_field_too_long")
    many = field.http(GET[:-2] + b"".join(b"X-%d: a\r\n" % number for number in range(80)) + b"\r\n")
    field.assert_refused(many, 431, "http_too_many_fields")
    twin = field.http(GET[:-2] + b"".join(b"X-%d: %b\r\n" % (number, b"a" * 500) for number in range(60)) + b"\r\n")
    assert twin.only.status == 200
