"""Looking hosts up: in threads that nobody else waits for, one for each host."""

import asyncio
import threading

import pytest

from enrolld.lookups import Lookups, look_up


async def test_whoever_comes_meanwhile_gets_what_is_found_and_whoever_comes_later_asks_again() -> None:
    go = threading.Event()
    asked: list[tuple[str, int]] = []

    def lookup(host: str, port: int) -> list[str]:
        asked.append((host, port))
        go.wait(10)
        return [f"192.0.2.{len(asked)}"]

    lookups = Lookups(lookup)
    first = asyncio.create_task(lookups.of("a.example", 1))
    gives_up = asyncio.create_task(lookups.of("a.example", 1))
    await asyncio.sleep(0)
    gives_up.cancel()
    go.set()
    assert await first == ["192.0.2.1"]
    assert await lookups.of("a.example", 1) == ["192.0.2.2"]
    assert asked == [("a.example", 1)] * 2


@pytest.mark.parametrize("error", [OSError("no such name"), UnicodeError("label too long")])
async def test_what_goes_wrong_is_told_to_all_who_wait_and_not_to_the_next(error: Exception) -> None:
    answers: list[Exception | None] = [error, None]

    def lookup(*_: object) -> list[str]:
        if (found := answers.pop(0)) is not None:
            raise found
        return ["192.0.2.1"]

    lookups = Lookups(lookup)
    ended = await asyncio.gather(lookups.of("a.example", 1), lookups.of("a.example", 1), return_exceptions=True)
    assert list(map(repr, ended)) == [repr(error)] * 2
    assert await lookups.of("a.example", 1) == ["192.0.2.1"]


async def test_a_lookup_that_nobody_waits_for_any_more_troubles_nobody() -> None:
    go, done = threading.Event(), threading.Event()

    def lookup(*_: object) -> list[str]:
        go.wait(10)
        done.set()
        raise OSError("too late")

    lookups = Lookups(lookup)
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(lookups.of("a.example", 1), 0.05)
    go.set()
    assert await asyncio.to_thread(done.wait, 5)
    await asyncio.sleep(0.05)
    go.clear()


def test_this_machine_knows_itself() -> None:
    assert set(look_up("localhost", 443)) & {"127.0.0.1", "::1"}
