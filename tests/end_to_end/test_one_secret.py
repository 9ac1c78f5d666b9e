"""A secret is used once: fifty parallel requests with one secret and fifty keys, and one certificate. 200 rounds.

Half of them come by EST and half by SCEP. Fifty connections stay open over all rounds, so that in each round fifty
requests are under way at once and what is timed against each other is the spending of the secret, not handshakes. Rows
and received certificates are both counted.
"""

import asyncio
import base64
import contextlib
import ssl
from collections import Counter
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import Encoding

from tests.end_to_end import scep_wire, wire
from tests.helpers.daemon import Daemon

KEYS = 50
ROUNDS = 200


@dataclass(slots=True)
class Connection:
    """One keep-alive connection of a client with one key."""

    port: int
    tls: ssl.SSLContext | None
    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter

    @classmethod
    async def open(cls, port: int, tls: ssl.SSLContext | None) -> "Connection":
        return cls(port, tls, *await _connect(port, tls))

    async def ask(self, request: bytes) -> tuple[int, bytes]:
        """Send a request, and read status and body of its answer."""
        self.writer.write(request)
        head = (await self.reader.readuntil(b"\r\n\r\n")).decode("ascii").lower()
        status, headers = int(head.split(" ", 2)[1]), head.split("\r\n")[1:]
        (length,) = [int(line.partition(":")[2]) for line in headers if line.startswith("content-length:")]
        body = await self.reader.readexactly(length)
        if "connection: close" in headers:
            await self.close()
            self.reader, self.writer = await _connect(self.port, self.tls)
        return status, body

    async def close(self) -> None:
        self.writer.close()
        with contextlib.suppress(ConnectionError, ssl.SSLError):
            await self.writer.wait_closed()


async def _connect(port: int, tls: ssl.SSLContext | None) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    return await asyncio.open_connection("127.0.0.1", port, ssl=tls, server_hostname="localhost" if tls else None)


@contextlib.asynccontextmanager
async def connections(daemon: Daemon, count: int, *, scep: bool = False) -> AsyncIterator[list[Connection]]:
    tls = None if scep else wire.context(daemon.root)
    port = daemon.http_port if scep else daemon.https_port
    opened = await asyncio.gather(*(Connection.open(port, tls) for _ in range(count)))
    try:
        yield opened
    finally:
        await asyncio.gather(*(connection.close() for connection in opened))


def certificate_in(body: bytes) -> x509.Certificate:
    return wire.only_certificate(base64.b64decode(body))


def scep_request(message: bytes) -> bytes:
    head = f"POST /scep?operation=PKIOperation HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(message)}\r\n\r\n"
    return head.encode() + message


async def test_fifty_parallel_requests_with_one_secret_get_one_certificate(own_daemon: Daemon) -> None:
    name, half = "contended", KEYS // 2
    own_daemon.ask("device", "add", name)
    est_keys = [ec.generate_private_key(ec.SECP256R1()) for _ in range(half)]
    scep_keys = [rsa.generate_private_key(65537, 2048) for _ in range(half)]
    keys: list[ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey] = [*est_keys, *scep_keys]
    bodies = [wire.body_of(wire.csr(key, name)) for key in est_keys]
    ra = scep_wire.ra_of(own_daemon.http_port)
    received: list[x509.Certificate] = []
    winners: Counter[str] = Counter()
    with own_daemon.core() as core:
        async with (
            connections(own_daemon, half) as by_est,
            connections(own_daemon, half, scep=True) as by_scep,
        ):
            opened = [*by_est, *by_scep]
            for number in range(1, ROUNDS + 1):
                handed = await core.devices.secret("default", name, actor="test")
                authorization = wire.basic(name, handed.secret)
                requests = [wire.enroll_request(body, authorization=authorization) for body in bodies]
                messages = [scep_wire.enroll_message(ra, key, name, handed.secret) for key in scep_keys]
                requests += [scep_request(message) for message in messages]
                places = [place for pair in zip(range(half), range(half, KEYS), strict=True) for place in pair]
                turn = number % KEYS  # another one is first to send in each round
                order = [*places[turn:], *places[:turn]]
                answers = dict(
                    zip(order, await asyncio.gather(*(opened[p].ask(requests[p]) for p in order)), strict=True)
                )
                est = [answers[place] for place in range(half)]
                scep = [answers[place] for place in range(half, KEYS)]
                assert {status for status, _ in est} <= {200, 401}, f"round {number}"
                assert {status for status, _ in scep} == {200}, f"round {number}"
                assert all(scep_wire.succeeded(body) or scep_wire.failed(body) for _, body in scep)
                served = [place for place in range(half) if answers[place][0] == 200]
                served += [place for place in range(half, KEYS) if scep_wire.succeeded(answers[place][1])]
                assert len(served) == 1, f"round {number}: {served}"
                (winner,) = served
                body = answers[winner][1]
                if winner < half:
                    certificate = certificate_in(body)
                else:
                    certificate = scep_wire.issued_in(body, scep_keys[winner - half])
                assert certificate.public_key() == keys[winner].public_key()
                received.append(certificate)
                winners["est" if winner < half else "scep"] += 1
    print(f"won: {dict(winners)}")
    assert len({certificate.serial_number for certificate in received}) == ROUNDS
    rows = own_daemon.command("cert", "list", "--device", name, "--limit", str(2 * ROUNDS))
    assert sorted(row["serial"] for row in rows) == sorted(
        format(certificate.serial_number, "x") for certificate in received
    )
    assert set(winners) == {"est", "scep"}, "one protocol won every round: the other was never in time"


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


async def test_a_lost_scep_answer_asked_for_again_is_the_same_certificate(
    daemon: Daemon, new_name: Callable[[], str]
) -> None:
    name = new_name()
    secret = daemon.ask("device", "add", name)["secret"]
    key = rsa.generate_private_key(65537, 2048)
    ra = scep_wire.ra_of(daemon.http_port)
    message = scep_wire.enroll_message(ra, key, name, secret)
    anew = scep_wire.enroll_message(ra, key, name, secret)  # other bytes, the same transaction and key
    async with connections(daemon, 2, scep=True) as (first, second):
        answers = [await first.ask(scep_request(message))]  # and say it is lost
        answers += await asyncio.gather(first.ask(scep_request(anew)), second.ask(scep_request(message)))
        (own,) = {scep_wire.issued_in(body, key) for _, body in answers}
        assert len(daemon.certificates_of(name)) == 1

        # A renewal's answer may be lost as well.
        newer = rsa.generate_private_key(65537, 2048)
        signer = (key, own.public_bytes(Encoding.DER))
        renewals = [scep_wire.enroll_message(ra, newer, name, None, signer=signer, message_type=17) for _ in range(3)]
        answers = [await first.ask(scep_request(renewals[0]))]
        answers += await asyncio.gather(first.ask(scep_request(renewals[1])), second.ask(scep_request(renewals[2])))
        (renewed,) = {scep_wire.issued_in(body, key) for _, body in answers}
    assert renewed.public_key() == newer.public_key()
    assert len(daemon.certificates_of(name)) == 2
