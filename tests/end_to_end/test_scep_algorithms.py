"""CertReps of every algorithm pair, as they came over HTTP: by `openssl cms`, strongSwan's pki and scepclient.

A relay in front of the server keeps each answer that a stock client has read, so that what it was made with is known.
What the codec alone makes is looked at in `tests/scep_server/test_algorithm_pairs.py`.
"""

import asyncio
import contextlib
import http.client
import http.server
import itertools
import os
import queue
import subprocess
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
from aiohttp import web
from asn1crypto import cms as a_cms
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
)

from ca_core.authority.sealing import UnlockKey
from ca_core.core import Core, CoreConfig
from ca_core.csr import ParsedCsr
from ca_core.model import Call, Issued, Operation, Pending, Refused, Requester
from ca_core.registration.realm import Resolved
from enrolld.request_id import new_request_id
from enrolld.serving import scep_first
from scep_server.app import Scep
from tests.end_to_end import clients
from tests.helpers.core import ME
from tests.helpers.daemon import Daemon, eventually
from tests.scep_server.client import Envelope
from tests.scep_server.serving import FAILURE, SUCCESS, CertRep, make_csr, message, open_cert_rep, self_signed

pytestmark = pytest.mark.foreign

LONG = os.environ.get("ENROLLD_LONG") == "1"
PENDING = "3"
NOBODYS = "abcdefgh.abcdefghijkmnpqrstuvwxyz23"
DIGESTS = ("sha1", "sha256", "sha384", "sha512")
CIPHERS = ("aes128", "aes192", "aes256", "3des")
TRANSPORTS = {
    "pkcs1": None,
    "oaep-sha1": ("sha1", "sha1"),
    "oaep-sha1-mgf1-sha256": ("sha1", "sha256"),
    "oaep-sha256-mgf1-sha1": ("sha256", "sha1"),
    "oaep-sha256": ("sha256", "sha256"),
}


@dataclass
class Relay:
    """Passes everything on to a server, and keeps the pkiMessages that came back."""

    port: int
    upstream: int
    replies: list[bytes] = field(default_factory=list)

    @property
    def url(self) -> str:
        return f"http://localhost:{self.port}/scep"


@contextlib.contextmanager
def relayed(upstream: int) -> Iterator[Relay]:
    class Handler(http.server.BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length", "0")))
            status, kind, answer = send(upstream, self.path, body, self.command)
            if kind == "application/x-pki-message":
                relay.replies.append(answer)
            self.send_response(status)
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(len(answer)))
            self.end_headers()
            self.wfile.write(answer)

        do_POST = do_GET  # noqa: N815  # as http.server calls it

        def log_message(self, *_: object) -> None:
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    relay = Relay(server.server_address[1], upstream)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield relay
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def send(port: int, path: str, body: bytes = b"", method: str = "POST") -> tuple[int, str, bytes]:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
    try:
        connection.request(method, path, body or None, {"Host": f"localhost:{port}"})
        response = connection.getresponse()
        return response.status, response.headers["Content-Type"], response.read()
    finally:
        connection.close()


@dataclass(frozen=True)
class Bench:
    """A folder with the realm's certificates, and a device with a secret and a key in it."""

    folder: Path
    port: int
    name: str
    secret: str
    ra: bytes
    key: rsa.RSAPrivateKey

    def read(self, reply: bytes) -> CertRep:
        return open_cert_rep(reply, self.ra, self.key)

    def pki(self, relay: Relay, *options: str, secret: str = "") -> subprocess.CompletedProcess[bytes]:
        return clients.run(
            *("pki", "--scep", "--url", relay.url, "--in", "device.key", "--dn", f"CN={self.name}"),
            *("--password", secret or self.secret, "--interval", "1", "--maxpolltime", "20"),
            *("--cacert-enc", "ra.pem", "--cacert-sig", "issuing.pem", "--cacert", "root.pem"),
            *("--outform", "pem", *options),
            cwd=self.folder,
            check=False,
        )

    def cms_verified(self, reply: bytes) -> bytes:
        """The content of a CertRep, whose signature and chain openssl has verified."""
        (self.folder / "reply").write_bytes(reply)
        (self.folder / "nothing").touch()
        content = [] if self.read(reply).cipher else ["-content", "nothing"]
        clients.run(
            *("openssl", "cms", "-verify", "-binary", "-inform", "DER", "-in", "reply", *content, "-out", "envelope"),
            *("-CAfile", "ca.pem", "-purpose", "any"),
            cwd=self.folder,
        )
        return (self.folder / "envelope").read_bytes()


def make_bench(folder: Path, port: int, name: str, secret: str, root: bytes) -> Bench:
    """`root` is all that the device is given; the others come from GetCACert."""
    _, _, bundle = send(port, "/scep?operation=GetCACert", method="GET")
    found = [each.chosen.dump() for each in a_cms.ContentInfo.load(bundle)["content"]["certificates"]]
    for file, der in zip(("ra.pem", "issuing.pem"), found, strict=False):
        (folder / file).write_bytes(x509.load_der_x509_certificate(der).public_bytes(Encoding.PEM))
    (folder / "root.pem").write_bytes(root)
    (folder / "ca.pem").write_bytes(root + (folder / "issuing.pem").read_bytes())
    key = self_signed(name).key
    pem = key.private_bytes(Encoding.PEM, PrivateFormat.TraditionalOpenSSL, NoEncryption())
    (folder / "device.key").write_bytes(pem)
    (folder / "self.pem").write_bytes(self_signed(name).x509.public_bytes(Encoding.PEM))
    return Bench(folder, port, name, secret, found[0], key)


@pytest.fixture(scope="module")
def bench(daemon: Daemon, tmp_path_factory: pytest.TempPathFactory) -> Bench:
    """Its secret is spent once, and answers the same key and names again."""
    clients.needs("openssl", "pki", "pki over HTTP")
    added = daemon.ask("device", "add", "scep-algorithms")
    folder = tmp_path_factory.mktemp("algorithms")
    return make_bench(folder, daemon.http_port, "scep-algorithms", added["secret"], daemon.root.read_bytes())


# --- the daemon's own answers, by openssl ----------------------------------------------------------------------------


def ask(
    bench: Bench, digest: str, cipher: str = "aes128", oaep: tuple[str, str] | None = None, secret: str = ""
) -> bytes:
    csr = make_csr(bench.key, bench.name, secret or bench.secret)
    sealed = Envelope(message=csr, recipient=bench.ra, cipher=cipher, oaep=oaep)
    made = message(bench.ra, self_signed(bench.name), csr, envelope=sealed, digest=digest)
    status, kind, reply = send(bench.port, "/scep?operation=PKIOperation", made.encode())
    assert (status, kind) == (200, "application/x-pki-message")
    return reply


@pytest.mark.parametrize("digest", DIGESTS)
def test_openssl_verifies_and_decrypts_a_success_of_every_pair(bench: Bench, digest: str) -> None:
    serials = set()
    for cipher, oaep in itertools.product(CIPHERS, TRANSPORTS.values()):
        reply = ask(bench, digest, cipher, oaep)
        found = bench.read(reply)
        assert (found.status, found.digest, found.cipher) == (SUCCESS, digest, cipher)
        bench.cms_verified(reply)
        clients.run(
            *("openssl", "cms", "-decrypt", "-binary", "-inform", "DER", "-in", "envelope", "-out", "bundle"),
            *("-inkey", "device.key", "-recip", "self.pem"),
            cwd=bench.folder,
        )
        pem = clients.run("openssl", "pkcs7", "-inform", "DER", "-in", "bundle", "-print_certs", cwd=bench.folder)
        (certificate,) = x509.load_pem_x509_certificates(pem.stdout)
        assert certificate == found.certificate
        serials.add(certificate.serial_number)
    assert len(serials) == 1


@pytest.mark.parametrize("digest", DIGESTS)
def test_openssl_verifies_a_failure_of_every_digest(bench: Bench, digest: str) -> None:
    reply = ask(bench, digest, secret=NOBODYS)
    found = bench.read(reply)
    assert (found.status, found.digest) == (FAILURE, digest)
    assert bench.cms_verified(reply) == b""


# --- strongSwan ------------------------------------------------------------------------------------------------------


PKI_DIGESTS = ("sha1", "sha224", "sha256", "sha384", "sha512")
ANSWERED = {"sha224": "sha256"}  # a client that asks in SHA-224 is answered in SHA-256


@pytest.mark.parametrize("rsa_padding", ["pkcs1", "pss"])
@pytest.mark.parametrize("cipher", ["aes", "des3"])
@pytest.mark.parametrize("digest", PKI_DIGESTS)
def test_strongswan_reads_a_success_of_every_pair(bench: Bench, digest: str, cipher: str, rsa_padding: str) -> None:
    with relayed(bench.port) as relay:
        done = bench.pki(relay, "--digest", digest, "--cipher", cipher, "--rsa-padding", rsa_padding)
    assert done.returncode == 0, done.stderr.decode()
    (reply,) = relay.replies
    found = bench.read(reply)
    assert (found.digest, found.cipher) == (ANSWERED.get(digest, digest), {"aes": "aes128", "des3": "3des"}[cipher])
    assert x509.load_pem_x509_certificate(done.stdout) == found.certificate


@pytest.mark.parametrize("digest", PKI_DIGESTS)
def test_strongswan_reads_a_failure_of_every_digest(bench: Bench, digest: str) -> None:
    with relayed(bench.port) as relay:
        done = bench.pki(relay, "--digest", digest, secret=NOBODYS)
    assert done.returncode != 0
    (reply,) = relay.replies
    assert (bench.read(reply).status, bench.read(reply).digest) == (FAILURE, ANSWERED.get(digest, digest))
    assert b"badRequest - transaction not permitted" in done.stderr


# --- scepclient ------------------------------------------------------------------------------------------------------


def scepclient(bench: Bench, relay: Relay, secret: str = "") -> subprocess.CompletedProcess[bytes]:
    settings = {"SCEP": relay.url, "NAME": bench.name, "SECRET": secret or bench.secret}
    (bench.folder / "new.key").write_bytes((bench.folder / "device.key").read_bytes())
    return clients.interop("scepclient/enroll.sh", cwd=bench.folder, settings=settings, check=False)


def set_3des(daemon: Daemon, folder: Path, allowed: str) -> None:
    document = daemon.text("realm", "export", "default")
    before, after = f"allow_3des = {'false' if allowed == 'true' else 'true'}", f"allow_3des = {allowed}"
    if before in document:
        (folder / "default.toml").write_text(document.replace(before, after))
        daemon.ask("realm", "apply", str(folder / "default.toml"))


def test_scepclient_reads_what_it_asks_for_and_what_is_stronger(own_daemon: Daemon, tmp_path: Path) -> None:
    """It asks in SHA-1 and single DES, and is answered in 3DES where that is allowed, else in AES-128."""
    clients.needs("openssl", "scepclient")
    secret = own_daemon.ask("device", "add", "old-router")["secret"]
    bench = make_bench(tmp_path, own_daemon.http_port, "old-router", secret, own_daemon.root.read_bytes())
    with relayed(bench.port) as relay:
        assert scepclient(bench, relay, NOBODYS).returncode != 0
        (reply,) = relay.replies
        found = bench.read(reply)
        assert (found.status, found.digest) == (FAILURE, "sha1")
        for allowed, cipher in (("true", "3des"), ("false", "aes128")):
            set_3des(own_daemon, tmp_path, allowed)

            def answered(expected: str = cipher) -> CertRep | None:
                done = scepclient(bench, relay)
                assert done.returncode == 0, done.stderr.decode()
                found = bench.read(relay.replies[-1])
                return found if found.cipher == expected else None  # until the new version is in force

            found = eventually(answered, what=f"an answer in {cipher}")
            assert (found.status, found.digest) == (SUCCESS, "sha1")
            assert x509.load_pem_x509_certificate((tmp_path / "device.pem").read_bytes()) == found.certificate


# --- pending ---------------------------------------------------------------------------------------------------------


class Hesitant:
    """A registration that decides at once, and says so when it is polled, or asked a second time."""

    def __init__(self, registration: Any) -> None:
        self._registration = registration
        self._asked: set[str | None] = set()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._registration, name)

    async def enroll(
        self, resolved: Resolved, requester: Requester, csr: ParsedCsr, operation: Operation, call: Call
    ) -> Issued | Pending | Refused:
        outcome: Issued | Pending | Refused = await self._registration.enroll(resolved, requester, csr, operation, call)
        if call.transaction_id in self._asked:
            return outcome
        self._asked.add(call.transaction_id)
        return Pending(retry_after=1) if isinstance(outcome, Issued) else outcome


@dataclass
class Hesitation:
    """A server of our own, with SCEP as it is over a core that lets everybody wait once; the daemon never does yet."""

    port: int
    root: bytes
    secrets: list[tuple[str, str]]

    def bench(self, folder: Path) -> Bench:
        """For a device of its own: what it was given before would be found under the transaction of before."""
        name, secret = self.secrets.pop()
        return make_bench(folder, self.port, name, secret, self.root)


@pytest.fixture(scope="module")
def hesitant(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Hesitation]:
    clients.needs("openssl")
    folder = tmp_path_factory.mktemp("hesitant")
    url = f"sqlite:///{folder}/enrolld.db"
    config = CoreConfig(url, UnlockKey.generate(folder / "unlock"), "http://pki.example.com", demo=False)
    started: queue.Queue[Hesitation] = queue.Queue()
    loop = asyncio.new_event_loop()
    stop = asyncio.Event()

    async def serve() -> None:
        core = await Core.create(config)
        try:
            await core.ra_certificates.ensure()
            names = [f"patient-{number}" for number in range(1 + len(DIGESTS) + len(PKI_DIGESTS))]
            secrets = [(name, (await core.devices.add("default", name, actor=ME)).secret) for name in names]
            root = x509.load_der_x509_certificate((await core.issuers.export("default"))[0])
            waiting = SimpleNamespace(
                realms=core.realms,
                ra=core.ra,
                registration=Hesitant(core.registration),
                enter=core.enter,
                leave=core.leave,
            )
            scep = Scep(cast(Any, waiting), peer=lambda _: None, new_request_id=new_request_id)
            runner = web.AppRunner(web.Application(middlewares=[scep_first(scep)]), access_log=None)
            await runner.setup()
            await web.TCPSite(runner, "127.0.0.1", 0).start()
            started.put(Hesitation(runner.addresses[0][1], root.public_bytes(Encoding.PEM), secrets))
            await stop.wait()
            await runner.cleanup()
        finally:
            core.close()

    thread = threading.Thread(target=loop.run_until_complete, args=(serve(),))
    thread.start()
    try:
        yield started.get(timeout=60)
    finally:
        loop.call_soon_threadsafe(stop.set)
        thread.join()
        loop.close()


@pytest.mark.parametrize("digest", DIGESTS)
def test_openssl_verifies_a_pending_of_every_digest(hesitant: Hesitation, digest: str, tmp_path: Path) -> None:
    bench = hesitant.bench(tmp_path)
    reply = ask(bench, digest)
    assert (bench.read(reply).status, bench.read(reply).digest) == (PENDING, digest)
    assert bench.cms_verified(reply) == b""


@pytest.mark.parametrize("digest", PKI_DIGESTS)
def test_strongswan_reads_a_pending_of_every_digest_and_polls(
    hesitant: Hesitation, digest: str, tmp_path: Path
) -> None:
    clients.needs("pki", "pki over HTTP")
    bench = hesitant.bench(tmp_path)
    with relayed(bench.port) as relay:
        done = bench.pki(relay, "--digest", digest)
    assert done.returncode == 0, done.stderr.decode()
    found = [bench.read(reply) for reply in relay.replies]
    expected = ANSWERED.get(digest, digest)
    assert [(reply.status, reply.digest) for reply in found] == [(PENDING, expected), (SUCCESS, expected)]
    assert x509.load_pem_x509_certificate(done.stdout) == found[1].certificate


def test_scepclient_reads_a_pending_and_asks_again(hesitant: Hesitation, tmp_path: Path) -> None:
    """Half a minute later, for which only a long run waits."""
    clients.needs("scepclient")
    bench = hesitant.bench(tmp_path)
    csr = x509.load_der_x509_csr(make_csr(bench.key, bench.name, bench.secret))
    (tmp_path / "csr.pem").write_bytes(csr.public_bytes(Encoding.PEM))
    with relayed(bench.port) as relay, (tmp_path / "log").open("wb") as log:
        client = subprocess.Popen(
            ["scepclient", "-server-url", relay.url, "-private-key", "device.key", "-certificate", "device.pem"],
            cwd=tmp_path,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
        )
        try:
            eventually(lambda: b"pkiStatus=PENDING" in (tmp_path / "log").read_bytes() or None, what="it has to wait")
            assert [bench.read(reply).status for reply in relay.replies] == [PENDING]
            if LONG:
                assert client.wait(90) == 0
                found = [bench.read(reply) for reply in relay.replies]
                assert [(reply.status, reply.digest) for reply in found] == [(PENDING, "sha1"), (SUCCESS, "sha1")]
                assert x509.load_pem_x509_certificate((tmp_path / "device.pem").read_bytes()) == found[1].certificate
        finally:
            client.terminate()
            client.wait(30)
