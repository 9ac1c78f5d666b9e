"""An event loop whose clock a test can put forward, so that deadlines are met without waiting for them."""

import asyncio

from tests.helpers.tls_pki import Events, LoopThread


class AheadLoop(asyncio.SelectorEventLoop):
    """The stock loop, `ahead` seconds ahead of the clock."""

    ahead = 0.0

    def time(self) -> float:
        return super().time() + self.ahead


def advance(thread: LoopThread, seconds: float) -> None:
    """Put the clock forward; every timer that is due then has run when this comes back."""
    loop = thread.loop
    assert isinstance(loop, AheadLoop)

    async def forward() -> None:
        loop.ahead += seconds
        for _ in range(5):  # turns of the loop: a timer's callback may need another one for what it began
            await asyncio.sleep(0)

    thread.run(forward())


def advance_until(thread: LoopThread, events: Events, at_most: float, step: float = 1.0) -> float:
    """Put the clock forward step by step until something is reported; answers the seconds that took."""
    passed = 0.0
    while events.none_waits():
        assert passed < at_most, f"nothing was reported in {at_most} seconds"
        advance(thread, step)
        passed += step
    return passed
