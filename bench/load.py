"""The load: a process of its own that opens a new connection for each enrollment.

`python -m bench.load JOB` reads a `Job` as JSON from a file and prints a `Result` as JSON. It is written for little CPU
(raw sockets, requests made before the clock starts), because client and server share the machine.
"""

import base64
import contextlib
import socket
import ssl
import sys
import threading
import time
from pathlib import Path

import msgspec

PKI_MESSAGE = "application/x-pki-message"
# pkiStatus 0 (RFC 8894 3.2.1.3), as DER
_SUCCESS = bytes.fromhex("060a6086480186f8450109033103130130")


class Client(msgspec.Struct, frozen=True):
    """The files of a device's TLS credential, empty for plain HTTP, and requests as base64 of their bodies."""

    chain: str
    key: str
    requests: list[str]


class Job(msgspec.Struct, frozen=True):
    """What to send where; `threads` connections are open at a time. A body of PKCS#10 goes out as base64.

    Requests go to `ports` in turn.
    """

    host: str
    ports: list[int]
    root: str
    path: str
    content_type: str
    threads: int
    clients: list[Client]


class Result(msgspec.Struct, frozen=True):
    """Seconds from first to last, how many were answered 200, and each one's latency in milliseconds."""

    seconds: float
    issued: int
    failed: list[str]
    milliseconds: list[float]


def run(job: Job) -> Result:
    """Send every request, each on a connection of its own."""
    work: list[tuple[ssl.SSLContext | None, bytes]] = []
    contexts = [_context(job, client) for client in job.clients]
    for number in range(max(len(client.requests) for client in job.clients)):
        for context, client in zip(contexts, job.clients, strict=True):
            if number < len(client.requests):
                work.append((context, _request(job, client.requests[number])))
    work.reverse()
    lock = threading.Lock()
    milliseconds: list[float] = []
    failed: list[str] = []

    def work_off() -> None:
        while True:
            with lock:
                if not work:
                    return
                context, request = work.pop()
                port = job.ports[len(work) % len(job.ports)]
            began = time.perf_counter()
            try:
                status = _enroll(job, port, context, request)
            except OSError as exc:
                status = f"{type(exc).__name__}: {exc}"
            took = (time.perf_counter() - began) * 1000
            with lock:
                if status == "200":
                    milliseconds.append(took)
                else:
                    failed.append(status)

    threads = [threading.Thread(target=work_off) for _ in range(job.threads)]
    began = time.perf_counter()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return Result(time.perf_counter() - began, len(milliseconds), failed[:5], sorted(milliseconds))


def _context(job: Job, client: Client) -> ssl.SSLContext | None:
    if not client.chain:
        return None
    context = ssl.create_default_context(cafile=job.root)
    context.load_cert_chain(client.chain, client.key)
    return context


def _request(job: Job, body: str) -> bytes:
    payload = base64.b64decode(body)
    if job.content_type == "application/pkcs10":
        payload = base64.b64encode(payload) + b"\n"
    head = (
        f"POST {job.path} HTTP/1.1\r\nHost: {job.host}\r\nUser-Agent: bench\r\n"
        f"Content-Type: {job.content_type}\r\nContent-Length: {len(payload)}\r\nConnection: close\r\n\r\n"
    )
    return head.encode() + payload


def _enroll(job: Job, port: int, context: ssl.SSLContext | None, request: bytes) -> str:
    with contextlib.ExitStack() as stack:
        connection = stack.enter_context(socket.create_connection((job.host, port), timeout=60))
        if context is not None:
            connection = stack.enter_context(context.wrap_socket(connection, server_hostname=job.host))
        connection.sendall(request)
        answer = bytearray()
        while part := connection.recv(65536):
            answer += part
    head, _, body = bytes(answer).partition(b"\r\n\r\n")
    status = head[9:12].decode()
    if status == "200":
        if job.content_type == PKI_MESSAGE and _SUCCESS not in body:
            return "200, and no SUCCESS"
        return status if body else "200 without a body"
    return f"{status} {body[:200].decode(errors='replace')}"


if __name__ == "__main__":
    found = msgspec.json.decode(Path(sys.argv[1]).read_bytes(), type=Job)
    sys.stdout.write(msgspec.json.encode(run(found)).decode())
