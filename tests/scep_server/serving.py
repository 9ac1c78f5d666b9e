"""SCEP over a real core on a loopback socket, and a client of it that makes real requests and opens what comes back.

Messages are made of bytes by `client`, CertReps are opened with asn1crypto: nothing of the codec under test is used.
"""

import datetime as dt
import functools
import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from aiohttp import web
from asn1crypto import cms as a_cms
from asn1crypto import core as a_core
from cryptography import x509
from cryptography.hazmat.decrepit.ciphers.algorithms import TripleDES
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import padding, rsa
from cryptography.hazmat.primitives.ciphers import BlockCipherAlgorithm, Cipher, algorithms, modes
from cryptography.hazmat.primitives.padding import PKCS7

from ca_core.core import Core
from ca_core.model import TlsPeer
from ca_core.rows import AttemptRow
from enrolld.http_server import Listener, serve_plain
from enrolld.serving import scep_first
from est_server.app import make_app
from scep_server.app import Scep
from scep_server.tick import Tick
from tests.est_server.wire import Reply, connection, read_reply
from tests.helpers import bad_csr
from tests.helpers.core import ME, START, Installation, written
from tests.helpers.tls_pki import listening_socket
from tests.scep_server.client import CIPHERS, HASHES, Envelope, Key, Request, issuer_and_serial, tlv

RSA_ENCRYPTION = "1.2.840.113549.1.1.1"
MESSAGE_TYPE, STATUS, FAIL_INFO, SENDER_NONCE, RECIPIENT_NONCE, TRANSACTION_ID = (
    f"2.16.840.1.113733.1.9.{n}" for n in (2, 3, 4, 5, 6, 7)
)
CONTENT_TYPE, MESSAGE_DIGEST, SIGNING_TIME = (f"1.2.840.113549.1.9.{n}" for n in (3, 4, 5))
FAIL_INFO_TEXT = "1.3.6.1.5.5.7.24.1"
PRINTABLE, UTF8, OCTETS = 0x13, 0x0C, 0x04
SUCCESS, FAILURE = "0", "2"
BAD_ALG, BAD_MESSAGE_CHECK, BAD_REQUEST, BAD_CERT_ID = "0124"
PKCS_REQ, RENEWAL_REQ, CERT_POLL, GET_CERT, GET_CRL = 19, 17, 20, 21, 22
NONCE = b"n" * 16
MAX_NONCE = 64  # a longer one is refused, and not given back
TEXT = "The request is refused; the server's log says why, under the request id {}."


@functools.cache
def _rsa_key(label: str, bits: int) -> rsa.RSAPrivateKey:
    del label
    return rsa.generate_private_key(65537, bits)


def rsa_key(label: str = "device", bits: int = 2048) -> rsa.RSAPrivateKey:
    """One key for each label and size, kept for the whole run."""
    return _rsa_key(label, bits)


# --- who signs -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Signer:
    """A certificate, and the key that it should belong to."""

    key: rsa.RSAPrivateKey
    certificate: bytes = field(repr=False)

    @property
    def x509(self) -> x509.Certificate:
        return x509.load_der_x509_certificate(self.certificate)


def common_name(text: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, text)])


def certify(
    key: rsa.RSAPrivateKey,
    subject: x509.Name,
    *,
    issuer: x509.Name | None = None,
    by: rsa.RSAPrivateKey | None = None,
    serial: int = 1,
    ski: bytes | None = None,
    usages: Sequence[x509.ObjectIdentifier] = (),
) -> Signer:
    """A certificate that nobody of ours issued, signed by its own key unless `by` another."""
    builder = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer or subject)
        .serial_number(serial)
        .public_key(key.public_key())
        .not_valid_before(START - dt.timedelta(days=1))
        .not_valid_after(START + dt.timedelta(days=3650))
    )
    identifier = ski or x509.SubjectKeyIdentifier.from_public_key(key.public_key()).digest
    builder = builder.add_extension(x509.SubjectKeyIdentifier(identifier), critical=False)
    if usages:
        builder = builder.add_extension(x509.ExtendedKeyUsage(usages), critical=False)
    made = builder.sign(by or key, hashes.SHA256())
    return Signer(key, made.public_bytes(serialization.Encoding.DER))


@functools.cache
def _self_signed(label: str, subject: str, bits: int) -> Signer:
    return certify(rsa_key(label, bits), common_name(subject))


def self_signed(label: str = "device", subject: str = "SCEP SIGNER", bits: int = 2048) -> Signer:
    """What a client makes for its first request; `label` names its key."""
    return _self_signed(label, subject, bits)


@functools.cache
def foreign(label: str = "device", subject: str = "sensor") -> Signer:
    """Issued by a CA that nobody here knows."""
    return certify(rsa_key(label), common_name(subject), issuer=common_name("Foreign CA"), by=rsa_key("foreign-ca"))


# --- what is asked ---------------------------------------------------------------------------------------------------


def make_csr(
    key: rsa.RSAPrivateKey,
    cn: str | None = "sensor",
    challenge: str | None = None,
    *extensions: bytes,
    **bent: Any,
) -> bytes:
    """A CSR with this CN, challengePassword and extensions."""
    attributes = [] if challenge is None else [bad_csr.challenge(bad_csr.utf8(challenge))]
    if extensions:
        attributes.append(bad_csr.extension_request(*extensions))
    return bad_csr.make_csr(key, bad_csr.name(cn), *sorted(attributes), **bent)


def message(
    ra: bytes,
    signer: Signer,
    csr: bytes,
    *,
    kind: int | str = PKCS_REQ,
    transaction: str | None = None,
    cipher: str = "aes128",
    envelope: Envelope | None = None,
    **bent: Any,
) -> Request:
    """A pkiMessage to the RA. Without `transaction`, the same CSR is of the same one."""
    name = hashlib.sha256(csr).hexdigest()[:40] if transaction is None else transaction
    return Request(
        **{
            "key": signer.key,
            "signer": signer.certificate,
            "envelope": envelope or Envelope(message=csr, recipient=ra, cipher=cipher),
            "message_type": tlv(PRINTABLE, str(kind).encode()),
            "transaction_id": tlv(PRINTABLE, name.encode()),
            "nonce": tlv(OCTETS, NONCE),
            **bent,
        }
    )


# --- what comes back -------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class CertRep:
    """A CertRep, whose form and signature have been looked at. `certificates` are what was sealed to its reader."""

    body: bytes = field(repr=False)
    status: str
    fail_info: str | None
    text: str | None
    transaction_id: bytes
    sender_nonce: bytes
    recipient_nonce: bytes | None
    digest: str
    signature: bytes = field(repr=False)
    cipher: str | None
    recipients: tuple[bytes, ...] = field(repr=False)
    certificates: tuple[bytes, ...] = field(repr=False)

    @property
    def certificate(self) -> x509.Certificate:
        """The device's own."""
        assert self.status == SUCCESS, f"failInfo {self.fail_info}: {self.text}"
        return x509.load_der_x509_certificate(self.certificates[0])

    @property
    def request_id(self) -> str:
        """What the operator finds a refusal under."""
        assert self.text is not None
        return self.text.removeprefix(TEXT.split("{")[0]).removesuffix(".")

    @property
    def form(self) -> bytes:
        """All of it but what must differ (nonce, signature, request id), whose lengths are kept."""
        body = self.body
        for changing in (self.sender_nonce, self.signature, self.request_id.encode()):
            assert body.count(changing) == 1
            body = body.replace(changing, b"?" * len(changing))
        return body


def open_cert_rep(body: bytes, ra: bytes, reader: Key) -> CertRep:
    """Read a CertRep of the RA, and hold all that RFC 8894 3.2 and 3.3.2 demand of every one."""
    signed = a_cms.ContentInfo.load(body, strict=True)["content"]
    assert [each.chosen.dump() for each in signed["certificates"]] == [ra]
    (signer,) = signed["signer_infos"]
    name = signer["sid"].chosen
    assert tlv(0x30, name["issuer"].dump(), name["serial_number"].dump()) == issuer_and_serial(ra)
    assert signer["signature_algorithm"]["algorithm"].dotted == RSA_ENCRYPTION
    digest = signer["digest_algorithm"]["algorithm"].native
    signature = bytes(signer["signature"].native)
    ra_key = x509.load_der_x509_certificate(ra).public_key()
    assert isinstance(ra_key, rsa.RSAPublicKey)
    ra_key.verify(signature, signer["signed_attrs"].untag().dump(), padding.PKCS1v15(), HASHES[digest])
    found = dict(_attributes(signer["signed_attrs"]))
    content = signed["encap_content_info"]["content"].native
    assert found.pop(CONTENT_TYPE) == (0x06, bytes.fromhex("2a864886f70d010701"))
    assert found.pop(MESSAGE_DIGEST) == (OCTETS, hashlib.new(digest, content or b"").digest())
    assert found.pop(SIGNING_TIME)[0] == 0x17
    assert found.pop(MESSAGE_TYPE) == (PRINTABLE, b"3")
    tag, transaction = found.pop(TRANSACTION_ID)
    assert tag == PRINTABLE
    tag, nonce = found.pop(SENDER_NONCE)
    assert (tag, len(nonce)) == (OCTETS, 16)
    tag, echoed = found.pop(RECIPIENT_NONCE, (OCTETS, None))
    assert tag == OCTETS
    tag, status = found.pop(STATUS)
    assert tag == PRINTABLE
    fail_info, text = found.pop(FAIL_INFO, None), found.pop(FAIL_INFO_TEXT, None)
    assert not found, "an attribute that nobody expects"
    assert (fail_info is not None) == (text is not None) == (status == b"2")
    assert fail_info is None or fail_info[0] == PRINTABLE
    assert text is None or text[0] == UTF8
    assert (content == b"") == (status != b"0"), "the envelope is there in a SUCCESS, and in nothing else"
    cipher, recipients, certificates = _open_envelope(content, reader) if content else (None, (), ())
    return CertRep(
        body=body,
        status=status.decode(),
        fail_info=fail_info[1].decode() if fail_info else None,
        text=text[1].decode() if text else None,
        transaction_id=transaction,
        sender_nonce=nonce,
        recipient_nonce=echoed,
        digest=digest,
        signature=signature,
        cipher=cipher,
        recipients=recipients,
        certificates=certificates,
    )


def _attributes(attributes: Any) -> Iterator[tuple[str, tuple[int, bytes]]]:
    seen: set[str] = set()
    for each in attributes:
        dotted = each["type"].dotted
        assert dotted not in seen
        seen.add(dotted)
        (value,) = a_core.SetOf.load(each["values"].dump(), spec=a_core.Any)
        element = value.parse()
        yield dotted, (element.dump()[0], bytes(element.contents))


def _open_envelope(content: bytes, reader: Key) -> tuple[str, tuple[bytes, ...], tuple[bytes, ...]]:
    assert isinstance(reader, rsa.RSAPrivateKey)
    enveloped = a_cms.ContentInfo.load(content, strict=True)["content"]
    recipients = [each.chosen for each in enveloped["recipient_infos"]]
    names = tuple(
        tlv(0x30, each["rid"].chosen["issuer"].dump(), each["rid"].chosen["serial_number"].dump())
        for each in recipients
    )
    transport = recipients[0]["key_encryption_algorithm"]
    unwrap: padding.AsymmetricPadding = padding.PKCS1v15()
    if transport["algorithm"].native == "rsaes_oaep":
        digest = transport["parameters"]["hash_algorithm"]["algorithm"].native
        mask = transport["parameters"]["mask_gen_algorithm"]["parameters"]["algorithm"].native
        unwrap = padding.OAEP(padding.MGF1(HASHES[mask]), HASHES[digest], None)
    key = reader.decrypt(recipients[0]["encrypted_key"].native, unwrap)
    sealed = enveloped["encrypted_content_info"]
    algorithm = sealed["content_encryption_algorithm"]
    cipher, _, block = next(
        (name, length, block)
        for name, (dotted, length, block) in CIPHERS.items()
        if dotted == algorithm["algorithm"].dotted
    )
    machine: BlockCipherAlgorithm = TripleDES(key) if cipher == "3des" else algorithms.AES(key)
    decryptor = Cipher(machine, modes.CBC(algorithm["parameters"].native)).decryptor()
    unpadder = PKCS7(block * 8).unpadder()
    padded = decryptor.update(sealed["encrypted_content"].native) + decryptor.finalize()
    plain = unpadder.update(padded) + unpadder.finalize()
    bundle = a_cms.ContentInfo.load(plain, strict=True)["content"]
    return cipher, names, certificates_in(bundle)


def certificates_in(bundle: Any) -> tuple[bytes, ...]:
    """The certificates of a degenerate SignedData (RFC 8894 3.4)."""
    assert len(bundle["signer_infos"]) == 0
    assert len(bundle["digest_algorithms"]) == 0
    assert bundle["encap_content_info"]["content_type"].native == "data"
    assert bundle["encap_content_info"]["content"].native is None, "the eContent is omitted"
    return tuple(each.chosen.dump() for each in bundle["certificates"])


# --- the server ------------------------------------------------------------------------------------------------------


class NoTick(Tick):
    """Refusals leave at once: when they do is looked at elsewhere."""

    async def wait(self, since: float) -> None:
        del since


@dataclass(frozen=True)
class Device:
    """A device that has a certificate."""

    name: str
    secret: str
    signer: Signer
    serial: str


class Site:
    """One installation, serving SCEP and EST on a loopback socket of the daemon's own kind, and its client."""

    def __init__(self, core: Core, installation: Installation) -> None:
        self.core = core
        self.installation = installation
        self.refused_before: list[str] = []
        self.port = 0
        self._ids = 0
        self._listener: Listener | None = None
        self._runner: web.AppRunner | None = None

    def new_request_id(self) -> str:
        """All of one length, for answers are compared."""
        self._ids += 1
        return f"id-{self._ids:05}"

    async def start(self) -> None:
        scep = Scep(
            self.core,
            peer=lambda _: None,
            new_request_id=self.new_request_id,
            clock=self.installation.clock,
            tick=NoTick(),
        )
        app = make_app(self.core, peer=lambda _: TlsPeer("TLSv1.3"), new_request_id=self.new_request_id)
        app.middlewares.append(scep_first(scep))
        self._runner = web.AppRunner(app, handle_signals=False, access_log=None)
        await self._runner.setup()
        sock = listening_socket()
        self.port = sock.getsockname()[1]
        self._listener = await serve_plain(
            self._runner, sock, on_refused=lambda reason, _peer, _id: self.refused_before.append(reason)
        )

    async def stop(self) -> None:
        assert self._listener is not None
        assert self._runner is not None
        await self._listener.close(5)
        await self._runner.cleanup()

    # HTTP

    async def exchange(self, request: bytes) -> Reply:
        """Send these bytes on a connection of their own, and read the reply."""
        async with connection(self.port) as (reader, writer):
            writer.write(request)
            return await read_reply(reader, head=request.startswith(b"HEAD"))

    async def post(self, body: bytes, path: str = "/scep", query: str = "operation=PKIOperation") -> Reply:
        head = f"POST {path}?{query} HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(body)}\r\n\r\n"
        return await self.exchange(head.encode() + body)

    # SCEP

    async def ra(self, realm: str = "default") -> bytes:
        """The RA's certificate."""
        return (await self.core.ra(await self.core.realms.resolve("scep", realm, None))).certificate

    async def message(self, signer: Signer, csr: bytes, *, realm: str = "default", **bent: Any) -> Request:
        """A message to the realm's RA."""
        return message(await self.ra(realm), signer, csr, **bent)

    async def send(self, data: bytes, reader: Key, *, label: str = "default") -> CertRep:
        """Send any bytes that a CertRep must answer."""
        reply = await self.post(data, f"/scep/{label}")
        assert (reply.status, reply.headers["Content-Type"]) == (200, "application/x-pki-message"), reply
        return open_cert_rep(reply.body, await self.ra(label.partition(".")[0]), reader)

    async def ask(self, request: Request, *, label: str = "default") -> CertRep:
        """Send a message and read its CertRep, which repeats what it must."""
        reply = await self.send(request.encode(), request.key, label=label)
        if request.transaction_id is not None:
            assert reply.transaction_id == a_core.load(request.transaction_id).contents
        if request.nonce is not None:
            nonce = request.nonce[2:]
            assert reply.recipient_nonce == (nonce if len(nonce) <= MAX_NONCE else None)
        if reply.status == SUCCESS:
            assert request.signer is not None
            assert reply.recipients == (issuer_and_serial(request.signer),), "sealed to the signer, and to nobody else"
        return reply

    async def refuse(self, request: Request, code: str, fail_info: str, *, label: str = "default") -> CertRep:
        """See it refused for this reason, with nothing told of it, and with nothing issued."""
        before = self.issued()
        reply = await self.ask(request, label=label)
        assert reply.status == FAILURE
        assert reply.text == TEXT.format(reply.request_id)
        attempt = await self.explain(reply.request_id)
        assert (attempt.code, reply.fail_info) == (code, fail_info), attempt.detail
        assert (attempt.outcome, attempt.protocol) == ("refused", "scep")
        assert self.issued() == before
        return reply

    async def refuse_http(self, data: bytes, code: str, status: int = 400) -> Reply:
        """See bytes refused before they are a transaction: one sentence, and nothing issued."""
        before = self.issued()
        reply = await self.post(data)
        assert (reply.status, reply.headers["Content-Type"]) == (status, "text/plain")
        request_id = reply.headers["X-Request-Id"]
        assert reply.body.decode("ascii").endswith(f". (request {request_id})\n")
        assert (await self.explain(request_id)).code == code
        assert self.issued() == before
        return reply

    # the operator

    async def flush(self) -> None:
        """Until all that was submitted before is written: units are, in the order they come."""
        await written(self.core)

    async def explain(self, request_id: str) -> AttemptRow:
        await self.flush()
        return await self.core.attempts.explain(request_id)

    def issued(self, realm: str | None = None) -> int:
        """How many certificates devices have been given."""
        where = " AND realm_id = (SELECT id FROM realm WHERE name = ?)" if realm else ""
        statement = f"SELECT count(*) FROM certificate WHERE kind = 'device'{where}"  # noqa: S608  # no value in it
        return int(self.installation.sql(statement, *([realm] if realm else []))[0][0])

    async def secret(self, device: str = "sensor", *, realm: str = "default", **options: Any) -> str:
        """Register a device; its secret."""
        return (await self.core.devices.add(realm, device, actor=ME, **options)).secret

    async def new_secret(self, device: str = "sensor", *, realm: str = "default", **options: Any) -> str:
        return (await self.core.devices.secret(realm, device, actor=ME, **options)).secret

    async def enrolled(
        self, name: str = "sensor", label: str = "device", *, realm: str = "default", **options: Any
    ) -> Device:
        """A new device with its first certificate, by SCEP; `label` names its key."""
        secret = await self.secret(name, realm=realm, **options)
        signer = self_signed(label)
        request = await self.message(signer, make_csr(signer.key, name, secret), realm=realm)
        certificate = (await self.ask(request, label=realm)).certificate
        own = Signer(signer.key, certificate.public_bytes(serialization.Encoding.DER))
        return Device(name, secret, own, format(certificate.serial_number, "x"))

    async def renewal(self, device: Device, label: str, *, kind: int = RENEWAL_REQ, **bent: Any) -> Request:
        """The device asks for a certificate for another key."""
        return await self.message(device.signer, make_csr(rsa_key(label), device.name), kind=kind, **bent)
