"""A CA core in memory and an EST server in front of it, on a real socket without TLS."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable

import pytest
from aiohttp import web

from tests.est_server.memory_core import MemoryCore
from tests.est_server.wire import Reply, connection, read_reply

Ask = Callable[[bytes], Awaitable[Reply]]


@pytest.fixture
def core() -> MemoryCore:
    return MemoryCore()


@pytest.fixture
async def port(core: MemoryCore) -> AsyncIterator[int]:
    runner = web.AppRunner(core.app(), auto_decompress=False, access_log=None)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    yield runner.addresses[0][1]
    await runner.cleanup()


@pytest.fixture
def ask(port: int) -> Ask:
    """Send these bytes on a connection of their own, and read the reply."""

    async def send(request: bytes) -> Reply:
        async with connection(port) as (reader, writer):
            writer.write(request)
            return await asyncio.wait_for(read_reply(reader, head=request.startswith(b"HEAD")), 5)

    return send
