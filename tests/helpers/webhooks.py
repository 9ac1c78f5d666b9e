"""Webhooks for tests: real servers on loopback that answer, lie, stall and die, and what they were asked."""

import asyncio
import contextlib
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path

from tests.helpers.tls_pki import Identity

Behaviour = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]

ALLOWED = b'{"allow": true}'


@dataclass(frozen=True)
class Asked:
    """One request that came."""

    line: str
    headers: dict[str, str]
    body: bytes


@dataclass
class Hook:
    """A server that runs. `asked` are the requests it read, `connections` how many came at all."""

    port: int
    asked: list[Asked] = field(default_factory=list)
    connections: int = 0


async def read_request(reader: asyncio.StreamReader) -> Asked:
    """A whole request."""
    head = (await reader.readuntil(b"\r\n\r\n")).decode("ascii")
    line, *rest = head.rstrip("\r\n").split("\r\n")
    headers = {name.lower(): value.strip() for name, _, value in (each.partition(":") for each in rest)}
    return Asked(line, headers, await reader.readexactly(int(headers.get("content-length", "0"))))


def answer(body: bytes = ALLOWED, *, status: str = "200 OK", kind: str = "application/json", more: str = "") -> bytes:
    """A whole answer; `more` are header lines, each with its end."""
    typed = f"Content-Type: {kind}\r\n" if kind else ""
    return f"HTTP/1.1 {status}\r\n{typed}{more}Content-Length: {len(body)}\r\n\r\n".encode() + body


@contextlib.asynccontextmanager
async def webhook(
    reply: bytes | Callable[[Asked], bytes] | None = None,
    *,
    behaviour: Behaviour | None = None,
    tls: ssl.SSLContext | None = None,
    host: str = "127.0.0.1",
    port: int = 0,
) -> AsyncIterator[Hook]:
    """A server that reads a request and sends these bytes, or does as it is told with each connection."""
    tasks: set[asyncio.Task[None]] = set()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        hook.connections += 1
        task = asyncio.current_task()
        if task is not None:
            tasks.add(task)
        # Whoever asked may have gone by now, which is what many tests are about.
        with contextlib.suppress(OSError, asyncio.IncompleteReadError, asyncio.CancelledError):
            if behaviour is not None:
                await behaviour(reader, writer)
            else:
                asked = await read_request(reader)
                hook.asked.append(asked)
                writer.write(reply(asked) if callable(reply) else reply or answer())
                await writer.drain()
        writer.close()
        with contextlib.suppress(OSError, asyncio.CancelledError):
            await writer.wait_closed()

    server = await asyncio.start_server(serve, host, port, ssl=tls)
    hook = Hook(server.sockets[0].getsockname()[1])
    try:
        yield hook
    finally:
        server.close()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await server.wait_closed()


def server_context(identity: Identity, folder: Path) -> ssl.SSLContext:
    """TLS as a server with this certificate."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(identity.write(folder / f"{identity.certificate.serial_number:x}.pem"))
    return context
