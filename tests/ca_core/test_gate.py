"""The queue before the work that costs: how many at once, how many wait, who goes first, and who is sent away."""

import asyncio
from collections.abc import Awaitable

import pytest

from ca_core.errors import Overloaded
from ca_core.gate import Gate


async def _settle() -> None:
    for _ in range(3):
        await asyncio.sleep(0)


async def _entered(order: list[str], gate: Gate, source: str, *, late: bool = False) -> None:
    await gate.enter(source, late=late)
    order.append(source)


def _start(order: list[str], gate: Gate, *sources: str, late: bool = False) -> list["asyncio.Task[None]"]:
    return [asyncio.create_task(_entered(order, gate, source, late=late)) for source in sources]


async def _outcomes(tasks: list["asyncio.Task[None]"]) -> list[str]:
    found = await asyncio.gather(*tasks, return_exceptions=True)
    return ["in" if outcome is None else type(outcome).__name__ for outcome in found]


async def test_as_many_as_may_are_let_in_at_once() -> None:
    gate = Gate(at_once=3)
    for _ in range(3):
        await gate.enter("a")
    assert (gate.inside, gate.waiting) == (3, 0)


async def test_the_next_comes_in_when_one_leaves_and_nobody_else_does() -> None:
    gate, order = Gate(at_once=1), list[str]()
    await gate.enter("first")
    tasks = _start(order, gate, "second", "third")
    await _settle()
    assert (order, gate.waiting) == ([], 2)
    gate.leave()
    await _settle()
    assert (order, gate.inside, gate.waiting) == (["second"], 1, 1)
    gate.leave()
    await asyncio.gather(*tasks)
    assert order == ["second", "third"]


async def test_sources_take_turns_however_many_of_each_wait() -> None:
    gate, order = Gate(at_once=1), list[str]()
    await gate.enter("x")
    tasks = _start(order, gate, "crowd", "crowd", "crowd", "crowd", "single", "other")
    await _settle()
    for _ in range(6):
        gate.leave()
        await _settle()
    await asyncio.gather(*tasks)
    assert order == ["crowd", "single", "other", "crowd", "crowd", "crowd"]


async def test_sources_that_had_their_share_of_refusals_come_last_and_still_come() -> None:
    gate, order = Gate(at_once=1), list[str]()
    await gate.enter("x")
    tasks = _start(order, gate, *["late"] * 4, late=True) + _start(order, gate, *["prompt"] * 20)
    await _settle()
    for _ in range(24):
        gate.leave()
        await _settle()
    await asyncio.gather(*tasks)
    assert order[:7] == ["prompt"] * 7
    assert order[7] == "late", "one turn in eight is theirs"
    assert order[:20].count("late") == 2


async def test_who_finds_no_place_at_all_is_sent_away_with_a_time_to_come_again() -> None:
    gate = Gate(at_once=1, waiting=0, hold=0)
    await gate.enter("a")
    with pytest.raises(Overloaded) as caught:
        await gate.enter("a")
    assert 5 <= caught.value.retry_after <= 30
    assert (gate.take_refused(), gate.take_refused()) == (1, 0)


@pytest.mark.parametrize("newcomer", ["crowd", "single"])
async def test_in_a_full_queue_the_oldest_of_the_longest_line_yields_to_a_newcomer(newcomer: str) -> None:
    gate, order = Gate(at_once=1, waiting=4, hold=0), list[str]()
    await gate.enter("x")
    crowd = _start(order, gate, "crowd", "crowd", "crowd", "crowd")
    await _settle()
    last = _start(order, gate, newcomer)
    await _settle()
    for _ in range(4):
        gate.leave()
        await _settle()
    assert await _outcomes(crowd) == ["Overloaded", "in", "in", "in"]
    assert await _outcomes(last) == ["in"]


async def test_a_long_line_is_worked_off_from_its_new_end() -> None:
    gate, order = Gate(at_once=1), list[int]()
    await gate.enter("x")

    async def enter(number: int) -> None:
        await gate.enter("crowd")
        order.append(number)

    tasks = [asyncio.create_task(enter(number)) for number in range(40)]
    await _settle()
    for _ in range(40):
        gate.leave()
        await _settle()
    await asyncio.gather(*tasks)
    assert order[:9] == [39, 38, 37, 36, 35, 34, 33, 32, 31], "those who came last"
    assert order[9:] == list(range(31)), "and a short line in its order"


async def test_where_many_sources_wait_a_new_one_goes_first() -> None:
    gate, order = Gate(at_once=1), list[str]()
    await gate.enter("x")
    tasks = _start(order, gate, *(f"source-{number}" for number in range(40)))
    await _settle()
    tasks += _start(order, gate, "newest")
    await _settle()
    for _ in range(41):
        gate.leave()
        await _settle()
    await asyncio.gather(*tasks)
    assert order[0] == "newest"


async def test_a_prompt_source_takes_the_place_of_a_late_one_and_never_the_reverse() -> None:
    gate, order = Gate(at_once=1, waiting=2, hold=0), list[str]()
    await gate.enter("x")
    prompt = _start(order, gate, "prompt")
    late = _start(order, gate, "late", late=True)
    await _settle()
    prompt += _start(order, gate, "prompt")
    await _settle()
    assert await _outcomes(late) == ["Overloaded"]
    assert await _outcomes(_start(order, gate, "late", late=True)) == ["Overloaded"]
    for _ in range(2):
        gate.leave()
        await _settle()
    assert await _outcomes(prompt) == ["in", "in"]


async def test_who_is_sent_away_at_once_hears_it_a_moment_later() -> None:
    gate = Gate(at_once=1, waiting=0, hold=0.05)
    await gate.enter("a")
    (task,) = _start([], gate, "b")
    await _settle()
    assert not task.done()
    assert (await _outcomes([task]), gate.inside, gate.waiting) == (["Overloaded"], 1, 0)


async def test_who_waits_too_long_is_sent_away_and_leaves_no_place_taken() -> None:
    gate = Gate(at_once=1, patience=0.01)
    await gate.enter("a")
    assert await _outcomes(_start([], gate, "b", "c")) == ["Overloaded", "Overloaded"]
    assert (gate.inside, gate.waiting) == (1, 0)
    gate.leave()
    await gate.enter("d")


@pytest.mark.parametrize("when", ["while it waits", "as it is let in"])
async def test_a_peer_that_leaves_takes_no_place_with_it(when: str) -> None:
    gate = Gate(at_once=1)
    await gate.enter("a")
    (task,) = _start([], gate, "b")
    await _settle()
    if when == "as it is let in":
        gate.leave()
    task.cancel()
    assert await _outcomes([task]) == ["CancelledError"]
    if when == "while it waits":
        gate.leave()
    assert (gate.inside, gate.waiting) == (0, 0)
    await _at_once(gate.enter("c"))


async def _at_once(entering: Awaitable[None]) -> None:
    async with asyncio.timeout(1):
        await entering
