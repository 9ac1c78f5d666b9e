"""HTTP by hand: requests as bytes, replies as the bytes of their head and body."""

import asyncio
import base64
import contextlib
from collections.abc import AsyncIterator
from dataclasses import dataclass

from tests.est_server.memory_core import SECRET
from tests.helpers.bad_csr import good_csr

BASIC = "Basic " + base64.b64encode(f"device-1:{SECRET}".encode()).decode()
CSR = base64.b64encode(good_csr()) + b"\n"


@dataclass(frozen=True)
class Reply:
    """`headers` in the order and spelling of the wire; `body` is exactly Content-Length bytes."""

    head: bytes
    body: bytes

    @property
    def status_line(self) -> str:
        return self.head.split(b"\r\n")[0].decode()

    @property
    def status(self) -> int:
        return int(self.status_line.split()[1])

    @property
    def headers(self) -> dict[str, str]:
        headers: dict[str, str] = {}
        for line in self.head.decode("ascii").rstrip().split("\r\n")[1:]:
            name, value = line.split(": ", 1)
            assert name not in headers
            headers[name] = value
        return headers

    @property
    def der(self) -> bytes:
        assert self.body.endswith(b"\n")
        return base64.b64decode(b"".join(self.body.split()), validate=True)


def get(operation: str, *, method: str = "GET", user_agent: bool = True, version: str = "1.1") -> bytes:
    agent = "User-Agent: test\r\n" if user_agent else ""
    return f"{method} /.well-known/est/{operation} HTTP/{version}\r\nHost: localhost\r\n{agent}\r\n".encode()


def post(
    operation: str = "simpleenroll",
    body: bytes = CSR,
    *,
    version: str = "1.1",
    user_agent: bool = True,
    **changed: str | None,
) -> bytes:
    """A good enroll request; `changed` headers (underscores for hyphens) replace or, when None, remove its own."""
    headers: dict[str, str | None] = {
        "Host": "localhost",
        "User-Agent": "test" if user_agent else None,
        "Authorization": BASIC,
        "Content-Type": "application/pkcs10",
        "Content-Length": str(len(body)),
    }
    headers |= {name.replace("_", "-"): value for name, value in changed.items()}
    lines = [f"{name}: {value}\r\n" for name, value in headers.items() if value is not None]
    return f"POST /.well-known/est/{operation} HTTP/{version}\r\n{''.join(lines)}\r\n".encode() + body


@contextlib.asynccontextmanager
async def connection(port: int) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        yield reader, writer
    finally:
        writer.close()
        with contextlib.suppress(OSError):
            await writer.wait_closed()


async def read_reply(reader: asyncio.StreamReader, *, head: bool = False) -> Reply:
    raw = await reader.readuntil(b"\r\n\r\n")
    while raw.startswith(b"HTTP/1.1 100 "):
        raw = await reader.readuntil(b"\r\n\r\n")
    length = Reply(raw, b"").headers.get("Content-Length", "0")
    return Reply(raw, b"" if head else await reader.readexactly(int(length)))
