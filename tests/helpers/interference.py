"""Somebody acts just between two steps of what a store is doing."""

import asyncio
from collections.abc import Callable, Coroutine
from concurrent.futures import ThreadPoolExecutor
from typing import Any

__all__ = ["Interference"]


class Interference:
    """A store's hook that has somebody act before a step of what comes to its commit."""

    def __init__(self, step: int, act: Callable[[], Coroutine[Any, Any, object]]) -> None:
        self.happened = False
        self._left = step
        self._act = act

    def __call__(self, at: str) -> None:
        if self.happened or at not in ("read", "submit", "lock"):
            return
        self._left -= 1
        if self._left == 0:
            self.happened = True
            with ThreadPoolExecutor(1) as pool:
                pool.submit(lambda: asyncio.run(self._act())).result()
