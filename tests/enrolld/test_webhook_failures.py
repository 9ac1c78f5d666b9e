"""A realm's webhook that stalls, dies or is not there: every failure refuses, and in time (attack case S4)."""

import asyncio
import dataclasses
import os
import resource
import socket
import threading
import time
from typing import Any

import pytest
import uvloop

from ca_core.errors import NotAuthorized, Overloaded, Unavailable
from tests.ca_core.registration.test_webhook import QUESTION
from tests.helpers.webhook_asking import HEAD, Names, Pki, at, client, here, over_tls, pki, refusal
from tests.helpers.webhooks import ALLOWED, answer, read_request, webhook

__all__ = ["pki"]  # a fixture


# --- those who stall --------------------------------------------------------------------------------------------------


async def _silent(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    del writer
    await reader.read(-1)


async def _no_answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    await read_request(reader)
    await _silent(reader, writer)


async def _drop_by_drop(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    await read_request(reader)
    for byte in answer(ALLOWED + b" " * 1000):
        writer.write(bytes([byte]))
        await writer.drain()
        await asyncio.sleep(0.02)


async def _no_end(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    await read_request(reader)
    writer.write(HEAD + b"Content-Length: 99\r\n\r\n" + ALLOWED)
    await _silent(reader, writer)


async def _continue_for_ever(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    await read_request(reader)
    while True:
        writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        await writer.drain()
        await asyncio.sleep(0.01)


@pytest.mark.parametrize("behaviour", [_silent, _no_answer, _drop_by_drop, _no_end, _continue_for_ever])
async def test_case_s4_a_webhook_that_stalls_is_waited_for_no_longer_than_its_timeout(behaviour: Any) -> None:
    since = time.monotonic()
    async with webhook(behaviour=behaviour) as hook:
        refused = await refusal(at(hook, timeout="1s"))
    assert (refused.code, refused.detail) == ("webhook_timeout", "no answer within 1s")
    assert time.monotonic() - since < 2.5


async def test_case_s4_a_tls_handshake_that_stalls_is_in_the_same_time(pki: Pki) -> None:
    async with webhook(behaviour=_silent) as hook:
        assert (await refusal(over_tls(hook, pki.root, timeout="1s"), client(lookup=here))).code == "webhook_timeout"


async def test_case_s4_a_name_server_that_stalls_is_in_the_same_time_and_keeps_nobody_else_waiting() -> None:
    goes_on = threading.Event()
    lookups: list[str] = []

    def stalled(host: str, port: int) -> list[str]:
        lookups.append(f"{host}:{port}")
        goes_on.wait(20)
        return ["127.0.0.1"]

    async with webhook() as hook:
        asking = client(lookup=stalled)
        slow = at(hook, url=f"http://localhost:{hook.port}/", timeout="1s")
        try:
            codes = [refused.code for refused in await asyncio.gather(refusal(slow, asking), refusal(slow, asking))]
            assert codes == ["webhook_timeout"] * 2
            assert lookups == [f"localhost:{hook.port}"], "a thread for each of them would be a thread for each device"
            assert (await asking.ask(at(hook), QUESTION)).allow, "an address needs no name server"
            assert await asyncio.to_thread(lambda: True)
        finally:
            goes_on.set()
        await asyncio.sleep(0.2)
        assert (await asking.ask(slow, QUESTION)).allow, "it works again when the name server does"


async def test_a_question_that_is_given_up_hangs_up_and_leaves_its_turn() -> None:
    came, gone = asyncio.Event(), asyncio.Event()

    async def wait(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        came.set()
        await _no_answer(reader, writer)
        gone.set()

    asking = client(at_once=1)
    async with webhook(behaviour=wait) as hook, webhook() as good:
        task = asyncio.create_task(asking.ask(at(hook), QUESTION))
        await asyncio.wait_for(came.wait(), 2)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await asyncio.wait_for(gone.wait(), 2)
        assert (await asking.ask(at(good), QUESTION)).allow


# --- those who die ----------------------------------------------------------------------------------------------------


async def test_case_s4_a_webhook_that_dies_refuses_until_it_is_back() -> None:
    asking = client()
    async with webhook() as hook:
        assert (await asking.ask(at(hook), QUESTION)).allow
    assert (await refusal(at(hook), asking)).code == "webhook_unreachable"
    async with webhook(port=hook.port):
        assert (await asking.ask(at(hook), QUESTION)).allow


async def test_case_s4_a_webhook_that_hangs_up_refuses() -> None:
    async def hang_up(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await read_request(reader)
        del writer

    async with webhook(behaviour=hang_up) as hook:
        assert (await refusal(at(hook))).code == "webhook_unreachable"
    assert hook.connections == 1, "it is asked once"


async def test_case_s4_a_webhook_that_resets_refuses() -> None:
    async def reset(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await read_request(reader)
        writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
        writer.transport.abort()

    async with webhook(behaviour=reset) as hook:
        assert (await refusal(at(hook))).code == "webhook_unreachable"


@pytest.mark.parametrize("found", [OSError("no such name"), []], ids=["error", "nothing"])
async def test_case_s4_a_name_without_address_refuses(found: Any) -> None:
    def lookup(*_: object) -> list[str]:
        if isinstance(found, OSError):
            raise found
        return list(found)

    document = at(443, url="https://hooks.example.com/")
    assert (await refusal(document, client(lookup=lookup))).code == "webhook_unreachable"


async def test_a_node_without_descriptors_says_that_it_is_its_own_fault() -> None:
    async with webhook() as hook:
        asking = client()
        assert (await asking.ask(at(hook), QUESTION)).allow
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        lowest = os.dup(0)
        os.close(lowest)
        resource.setrlimit(resource.RLIMIT_NOFILE, (lowest, hard))
        try:
            with pytest.raises(Unavailable, match="can't be asked"):
                await asking.ask(at(hook), QUESTION)
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        assert (await asking.ask(at(hook), QUESTION)).allow


async def test_a_dead_webhook_ties_up_its_own_realm_s_turns_and_no_others() -> None:
    outcomes: list[tuple[str, str]] = []
    asking = client(at_once=2, waiting=2, delivered=lambda *told: outcomes.append(told))
    other = dataclasses.replace(QUESTION, realm="cameras")
    async with webhook(behaviour=_no_answer) as dead, webhook() as good:
        tasks = [asyncio.create_task(asking.ask(at(dead, timeout="1s"), QUESTION)) for _ in range(4)]
        await asyncio.sleep(0.1)
        with pytest.raises(Overloaded) as caught:  # nothing was decided: the device may come again
            await asking.ask(at(dead, timeout="1s"), QUESTION)
        assert caught.value.retry_after > 0
        assert (await asking.ask(at(good), other)).allow
        ended = await asyncio.gather(*tasks, return_exceptions=True)
        assert dead.connections == 2
        assert (await asking.ask(at(good), QUESTION)).allow, "all turns were given back"
    codes = [end.code if isinstance(end, NotAuthorized) else type(end).__name__ for end in ended]
    assert sorted(codes) == ["Overloaded", "Overloaded", "webhook_timeout", "webhook_timeout"]
    assert sorted(outcomes) == [
        *(("cameras", "allowed"), ("pumps", "allowed")),
        *[("pumps", "overloaded")] * 3,
        *[("pumps", "timeout")] * 2,
    ]


async def test_of_several_addresses_one_that_answers_is_enough(pki: Pki) -> None:
    async with webhook(tls=pki.context) as hook:
        asking = client(lookup=Names(["127.0.0.3", "::1", "127.0.0.1"]))
        document = over_tls(hook, pki.root, networks=("127.0.0.0/8", "::1/128"))
        assert (await asking.ask(document, QUESTION)).allow


# --- the loop of a worker ---------------------------------------------------------------------------------------------


def test_it_is_the_same_on_the_loop_that_workers_run_on(pki: Pki) -> None:
    async def tell() -> list[str]:
        told: list[str] = []
        asking = client(lookup=here)
        async with webhook(tls=pki.context) as hook:
            told.append(str((await asking.ask(over_tls(hook, pki.root), QUESTION)).allow))
        told.append((await refusal(over_tls(hook, pki.root), asking)).code)
        async with webhook(tls=pki.expired()) as hook:
            told.append((await refusal(over_tls(hook, pki.root), asking)).code)
        async with webhook(behaviour=_silent) as hook:
            told.append((await refusal(over_tls(hook, pki.root, timeout="1s"), asking)).code)
        async with webhook(behaviour=_no_answer) as hook:
            told.append((await refusal(at(hook, timeout="1s"), asking)).code)
        return told

    assert uvloop.run(tell()) == ["True", "webhook_unreachable", "webhook_tls", "webhook_timeout", "webhook_timeout"]
