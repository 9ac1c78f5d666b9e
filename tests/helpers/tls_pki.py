"""A small CA for TLS tests, certificates that only an attacker would make, and a server that runs beside the test."""

import asyncio
import atexit
import contextlib
import datetime as dt
import functools
import ipaddress
import math
import queue
import shutil
import socket
import ssl
import tempfile
import threading
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import uvloop
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, ed448, ed25519, rsa
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import NameOID

T = TypeVar("T")
PrivateKey = ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey | ed25519.Ed25519PrivateKey | ed448.Ed448PrivateKey
"""Whose certificates are made here; only EC and RSA keys sign them."""

LOOPS: dict[str, Callable[[], asyncio.AbstractEventLoop]] = {
    "stock": asyncio.new_event_loop,
    "uvloop": uvloop.new_event_loop,
}


@dataclass(frozen=True)
class Identity:
    """A certificate with what was above it (leaf first), and its key."""

    chain: tuple[x509.Certificate, ...]
    key: PrivateKey

    @property
    def certificate(self) -> x509.Certificate:
        return self.chain[0]

    @property
    def der_chain(self) -> tuple[bytes, ...]:
        return tuple(certificate.public_bytes(Encoding.DER) for certificate in self.chain)

    @property
    def pem_chain(self) -> bytes:
        return b"".join(certificate.public_bytes(Encoding.PEM) for certificate in self.chain)

    @property
    def pem_key(self) -> bytes:
        return self.key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())

    def write(self, path: Path) -> Path:
        """Chain and key in one file, as load_cert_chain and curl take it."""
        path.write_bytes(self.pem_key + self.pem_chain)
        return path


def issue(
    name: str,
    issuer: Identity | None = None,
    *,
    is_ca: bool = False,
    hosts: Sequence[str] = (),
    key: PrivateKey | None = None,
    padding: int = 0,
) -> Identity:
    """A certificate, that much larger with `padding`."""
    own_key = key or ec.generate_private_key(ec.SECP256R1())
    public_key = own_key.public_key()
    signing_key = own_key if issuer is None else issuer.key
    assert isinstance(signing_key, ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey)
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    now = dt.datetime.now(dt.UTC)
    builder = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject if issuer is None else issuer.certificate.subject)
        .public_key(public_key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - dt.timedelta(hours=1))
        .not_valid_after(now + dt.timedelta(days=2))
        .add_extension(x509.BasicConstraints(ca=is_ca, path_length=None), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(public_key), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(signing_key.public_key()), critical=False)
        .add_extension(_key_usage(is_ca=is_ca), critical=True)
    )
    if hosts:
        names = [x509.IPAddress(ipaddress.ip_address(h)) if h[0].isdigit() else x509.DNSName(h) for h in hosts]
        builder = builder.add_extension(x509.SubjectAlternativeName(names), critical=False)
    if padding:
        comment = x509.UnrecognizedExtension(x509.ObjectIdentifier("2.16.840.1.113730.1.13"), bytes(padding))
        builder = builder.add_extension(comment, critical=False)
    certificate = builder.sign(signing_key, hashes.SHA256())
    above = () if issuer is None or issuer.certificate.issuer == issuer.certificate.subject else issuer.chain
    return Identity((certificate, *above), own_key)


@functools.cache
def huge_rsa_key(bits: int) -> rsa.RSAPrivateKey:
    """A key of that size, made at once because its factors are not prime: what it signs does not verify."""
    exponent, half = 65537, bits // 2
    p = (3 << (half - 2)) | 0xC0FFEE01
    q = (3 << (half - 2)) | 0xBADC0DE1
    while math.gcd(exponent, (p - 1) * (q - 1)) != 1 or math.gcd(p, q) != 1:
        q += 2
    d = pow(exponent, -1, (p - 1) * (q - 1))
    public = rsa.RSAPublicNumbers(exponent, p * q)
    numbers = rsa.RSAPrivateNumbers(p, q, d, d % (p - 1), d % (q - 1), pow(q, -1, p), public)
    return numbers.private_key(unsafe_skip_rsa_key_validation=True)


@dataclass(frozen=True)
class TlsPki:
    """Root, sub-CA, two servers under the root, and a device under the sub-CA."""

    root: Identity
    sub_ca: Identity
    server: Identity
    other_server: Identity
    device: Identity
    folder: Path

    def client(
        self,
        device: Identity | None = None,
        *,
        version: ssl.TLSVersion | None = None,
        alpn: Sequence[str] = (),
        trusts_server: bool = True,
    ) -> ssl.SSLContext:
        """A stock client's context, which verifies the server."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        if trusts_server:
            context.load_verify_locations(cadata=self.root.pem_chain.decode())
        if version is not None:
            context.minimum_version = context.maximum_version = version
        if alpn:
            context.set_alpn_protocols(list(alpn))
        if device is not None:
            with tempfile.NamedTemporaryFile(dir=self.folder) as file:
                path = device.write(Path(file.name))
                context.load_cert_chain(path)
        return context

    @property
    def root_file(self) -> Path:
        """The root as PEM, for programs."""
        path = self.folder / "root.pem"
        path.write_bytes(self.root.pem_chain)
        return path

    @property
    def stranger_file(self) -> Path:
        """A root that signed none of these, as PEM: with nothing else to trust, a program refuses our server."""
        path = self.folder / "stranger.pem"
        path.write_bytes(issue("Stranger", is_ca=True).pem_chain)
        return path


@functools.cache
def tls_pki() -> TlsPki:
    """The PKI of this test run."""
    folder = Path(tempfile.mkdtemp(prefix="tls-pki-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    root = issue("Test Root", is_ca=True)
    sub_ca = issue("Test Sub-CA", root, is_ca=True)
    return TlsPki(
        root=root,
        sub_ca=sub_ca,
        server=issue("server", root, hosts=["localhost", "127.0.0.1"]),
        other_server=issue("other server", root, hosts=["other.example"]),
        device=issue("device", sub_ca),
        folder=folder,
    )


class LoopThread:
    """An event loop in a thread, so that a test can be a plain blocking client of the server in it."""

    def __init__(self, make_loop: Callable[[], asyncio.AbstractEventLoop]) -> None:
        self.loop = make_loop()
        self.complaints: list[dict[str, Any]] = []
        self.loop.set_exception_handler(lambda _loop, context: self.complaints.append(context))
        self._thread = threading.Thread(target=self.loop.run_forever, daemon=True)
        self._thread.start()

    def run(self, work: Awaitable[T]) -> T:
        """Run to the end, and answer what it returned."""

        async def wrapped() -> T:
            return await work

        return asyncio.run_coroutine_threadsafe(wrapped(), self.loop).result(timeout=30)

    def call(self, function: Callable[..., T], *args: Any) -> T:
        """Call a plain function in the loop's thread."""

        async def wrapped() -> T:
            return function(*args)

        return self.run(wrapped())

    def stop(self) -> None:
        """End the thread."""
        self.loop.call_soon_threadsafe(self.loop.stop)
        self._thread.join(timeout=30)
        self.loop.close()


@contextlib.contextmanager
def loop_thread(
    name: str, loops: Mapping[str, Callable[[], asyncio.AbstractEventLoop]] = LOOPS
) -> Iterator[LoopThread]:
    """A LoopThread by the name of its loop; fails the test when the loop had to complain."""
    thread = LoopThread(loops[name])
    try:
        yield thread
    finally:
        thread.stop()
    if thread.complaints:
        raise AssertionError(thread.complaints)


class Events(queue.SimpleQueue[Any]):
    """What a server reports, in order, to a test that waits for it."""

    def next(self) -> Any:
        """The next report; fails after ten seconds without one."""
        return self.get(timeout=10)

    def none_waits(self) -> bool:
        """Whether nothing more was reported."""
        return self.empty()


def listening_socket() -> socket.socket:
    """A bound and listening TCP socket on a free port."""
    sock = socket.create_server(("127.0.0.1", 0))
    # Its connections inherit this. The stock loop sets it only where the socket was made with IPPROTO_TCP.
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return sock


def connect(port: int) -> socket.socket:
    """A blocking TCP client with a timeout that fails a test rather than hanging it."""
    return socket.create_connection(("127.0.0.1", port), timeout=10)


def read_all(sock: socket.socket) -> bytes:
    """Everything until the end of stream."""
    data = bytearray()
    while chunk := sock.recv(65536):
        data += chunk
    return bytes(data)


def read_until_closed(sock: socket.socket) -> bytes:
    """Everything until the end of stream, or until the server cut the connection."""
    data = bytearray()
    with contextlib.suppress(ConnectionError):
        while chunk := sock.recv(65536):
            data += chunk
    return bytes(data)


def _key_usage(*, is_ca: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not is_ca,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=is_ca,
        crl_sign=is_ca,
        encipher_only=False,
        decipher_only=False,
    )
