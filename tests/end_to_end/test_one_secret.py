"""A secret is used once: fifty parallel requests with one secret and fifty keys, and one certificate. 200 rounds.

Fifty TLS connections stay open over all rounds, so that in each round fifty requests are under way at once and what is
timed against each other is the spending of the secret, not handshakes. Rows and received certificates are both counted.
"""

import asyncio
import base64
import contextlib
import ssl
from collections import Counter
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec

from tests.end_to_end import wire
from tests.helpers.daemon import Daemon

KEYS = 50
ROUNDS = 200


@dataclass(slots=True)
class Connection:
    """One keep-alive connection of a client with one key."""

    port: int
    tls: ssl.SSLContext
    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter

    @classmethod
    async def open(cls, port: int, tls: ssl.SSLContext) -> "Connection":
        return cls(port, tls, *await asyncio.open_connection("127.0.0.1", port, ssl=tls, server_hostname="localhost"))

    async def ask(self, request: bytes) -> tuple[int, bytes]:
        """Send a request, and read status and body of its answer."""
        self.writer.write(request)
        head = (await self.reader.readuntil(b"\r\n\r\n")).decode("ascii").lower()
        status, headers = int(head.split(" ", 2)[1]), head.split("\r\n")[1:]
        (length,) = [int(line.partition(":")[2]) for line in headers if line.startswith("content-length:")]
        body = await self.reader.readexactly(length)
        if "connection: close" in headers:
            await self.close()
            self.reader, self.writer = await asyncio.open_connection(
                "127.0.0.1", self.port, ssl=self.tls, server_hostname="localhost"
            )
        return status, body

    async def close(self) -> None:
        self.writer.close()
        with contextlib.suppress(ConnectionError, ssl.SSLError):
            await self.writer.wait_closed()


@contextlib.asynccontextmanager
async def connections(daemon: Daemon, count: int) -> AsyncIterator[list[Connection]]:
    tls = wire.context(daemon.root)
    opened = await asyncio.gather(*(Connection.open(daemon.https_port, tls) for _ in range(count)))
    try:
        yield opened
    finally:
        await asyncio.gather(*(connection.close() for connection in opened))


def certificate_in(body: bytes) -> x509.Certificate:
    return wire.only_certificate(base64.b64decode(body))


async def test_fifty_parallel_requests_with_one_secret_get_one_certificate(own_daemon: Daemon) -> None:
    name = "contended"
    own_daemon.ask("device", "add", name)
    keys = [ec.generate_private_key(ec.SECP256R1()) for _ in range(KEYS)]
    bodies = [wire.body_of(wire.csr(key, name)) for key in keys]
    received: list[x509.Certificate] = []
    winners: Counter[int] = Counter()
    with own_daemon.core() as core:
        async with connections(own_daemon, KEYS) as opened:
            for number in range(1, ROUNDS + 1):
                handed = await core.devices.secret("default", name, actor="test")
                authorization = wire.basic(name, handed.secret)
                requests = [wire.enroll_request(body, authorization=authorization) for body in bodies]
                asking = [connection.ask(request) for connection, request in zip(opened, requests, strict=True)]
                turn = number % KEYS  # another one is first to send in each round
                answers = await asyncio.gather(*asking[turn:], *asking[:turn])
                answers = [*answers[KEYS - turn :], *answers[: KEYS - turn]]
                assert Counter(status for status, _ in answers) == {200: 1, 401: KEYS - 1}, f"round {number}"
                (winner,) = [place for place, (status, _) in enumerate(answers) if status == 200]
                certificate = certificate_in(answers[winner][1])
                assert certificate.public_key() == keys[winner].public_key()
                received.append(certificate)
                winners[winner] += 1
    assert len({certificate.serial_number for certificate in received}) == ROUNDS
    rows = own_daemon.command("cert", "list", "--device", name, "--limit", str(2 * ROUNDS))
    assert sorted(row["serial"] for row in rows) == sorted(
        format(certificate.serial_number, "x") for certificate in received
    )
    assert len(winners) > 1, "one connection won every round: nothing was contended"


async def test_the_same_request_again_gets_the_same_certificate(daemon: Daemon, new_name: Callable[[], str]) -> None:
    name = new_name()
    secret = daemon.ask("device", "add", name)["secret"]
    key = ec.generate_private_key(ec.SECP256R1())
    authorization = wire.basic(name, secret)
    request = wire.enroll_request(wire.body_of(wire.csr(key, name)), authorization=authorization)
    signed_anew = wire.enroll_request(wire.body_of(wire.csr(key, name)), authorization=authorization)
    assert request != signed_anew  # ECDSA signs differently each time: other bytes, the same key and names
    async with connections(daemon, 2) as (first, second):
        answers = [await first.ask(request), await first.ask(request), await second.ask(request)]
        answers.append(await second.ask(signed_anew))
        answers += await asyncio.gather(first.ask(request), second.ask(signed_anew))
    assert {status for status, _ in answers} == {200}
    assert len({certificate_in(body) for _, body in answers}) == 1
    assert len(daemon.certificates_of(name)) == 1


async def test_a_used_secret_with_another_key_is_refused_and_a_new_secret_works(
    daemon: Daemon, new_name: Callable[[], str]
) -> None:
    name = new_name()
    secret = daemon.ask("device", "add", name)["secret"]
    keys = [ec.generate_private_key(ec.SECP256R1()) for _ in range(2)]
    first, other = (wire.body_of(wire.csr(key, name)) for key in keys)
    async with connections(daemon, 1) as (connection,):
        status, body = await connection.ask(wire.enroll_request(first, authorization=wire.basic(name, secret)))
        assert status == 200
        certificate = certificate_in(body)

        status, body = await connection.ask(wire.enroll_request(other, authorization=wire.basic(name, secret)))
        assert status == 401
        assert daemon.explain(wire.request_id_in(body.decode()))["code"] == "secret_spent"
        assert len(daemon.certificates_of(name)) == 1

        newer = daemon.ask("device", "secret", name)["secret"]
        status, body = await connection.ask(wire.enroll_request(other, authorization=wire.basic(name, newer)))
        assert status == 200
        assert certificate_in(body).public_key() == keys[1].public_key()
        assert certificate_in(body) != certificate
    assert len(daemon.certificates_of(name)) == 2
