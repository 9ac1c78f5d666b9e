"""A CA core in memory, for the EST handlers alone: real CSRs and real signatures, no store and no policy."""

import datetime as dt
import itertools
from dataclasses import dataclass, field
from typing import Literal, cast

from aiohttp import web
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from ca_core.csr import ParsedCsr
from ca_core.errors import NotAuthenticated, NotFound, Refusal
from ca_core.gate import Gate
from ca_core.model import (
    AUTHENTICATED,
    Call,
    DeviceRecord,
    DeviceState,
    Evidence,
    Issued,
    Means,
    Operation,
    Pending,
    Refused,
    Requester,
    Serial,
    TlsPeer,
)
from ca_core.registration.document import EstDocument, RealmDocument
from ca_core.registration.realm import Realm, Resolved
from est_server.app import make_app

SECRET = "k7f3-9xq2.secret"
NOW = dt.datetime(2026, 11, 22, tzinfo=dt.UTC)
WRONG = "The credentials are not valid."
DEVICE = DeviceRecord(1, 1, "pump-7", "pump-7", None, DeviceState.ACTIVE, None, None, (), None)
REQUESTER = Requester(1, DEVICE, Means.SECRET, b"", None, None, None, Evidence(), AUTHENTICATED)


def resolved(name: str, binding: Literal["optional", "required"] = "optional") -> Resolved:
    document = RealmDocument(name=name, est=EstDocument(channel_binding=binding))
    return Resolved(Realm(1, name, "active", 1, 0, document), None, "est", "device", None)


@dataclass
class MemoryCore:
    """Realms `default`, `pumps` and `bound` (which requires channel binding); one secret opens them all.

    `answer` replaces the next outcome: an error to raise, or an outcome to give. What was told to `refused`, and every
    evidence and operation seen, is kept.
    """

    peer: TlsPeer | None = field(default_factory=lambda: TlsPeer("TLSv1.3", tls_exporter=b"e" * 32))
    answer: Exception | Pending | Refused | None = None
    recorded: list[tuple[Refusal, Call, Resolved | None]] = field(default_factory=list)
    failures: list[tuple[Call, Resolved | None, str]] = field(default_factory=list)
    evidence: list[Evidence] = field(default_factory=list)
    operations: list[tuple[Operation, str]] = field(default_factory=list)
    gate: Gate = field(default_factory=Gate)

    def __post_init__(self) -> None:
        self.key = ec.generate_private_key(ec.SECP256R1())
        self.name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "Test CA")])
        self.certificate = self.sign(self.name, self.key.public_key(), 1)
        self.labels = {None: resolved("default"), "pumps": resolved("pumps"), "bound": resolved("bound", "required")}
        self.serials = itertools.count(2)

    def sign(self, subject: x509.Name, key: object, serial: int) -> bytes:
        builder = x509.CertificateBuilder(
            issuer_name=self.name,
            subject_name=subject,
            public_key=cast(ec.EllipticCurvePublicKey, key),
            serial_number=serial,
            not_valid_before=NOW,
            not_valid_after=NOW + dt.timedelta(days=1),
        )
        return builder.sign(self.key, hashes.SHA256()).public_bytes(serialization.Encoding.DER)

    @property
    def realms(self) -> "MemoryCore":
        return self

    @property
    def registration(self) -> "MemoryCore":
        return self

    async def resolve(self, protocol: str, label: str | None, server_name: str | None) -> Resolved:
        assert protocol == "est"
        assert server_name == (self.peer and self.peer.server_name)
        if label not in self.labels:
            raise NotFound("realm_unknown", "There is no such realm here.")
        return self.labels[label]

    async def authenticate(self, resolved: Resolved, evidence: Evidence, csr: ParsedCsr) -> Requester:
        assert resolved in self.labels.values()
        assert isinstance(csr, ParsedCsr)
        self.evidence.append(evidence)
        if not evidence.chain and evidence.secret != SECRET:
            raise NotAuthenticated("secret_wrong", WRONG)
        return REQUESTER

    async def enroll(
        self, resolved: Resolved, requester: Requester, csr: ParsedCsr, operation: Operation, call: Call
    ) -> Issued | Pending | Refused:
        assert requester is REQUESTER
        self.operations.append((operation, resolved.realm.name))
        assert call.request_id.startswith("id-")
        if isinstance(self.answer, Exception):
            raise self.answer
        if self.answer is not None:
            return self.answer
        serial = next(self.serials)
        return Issued(self.sign(csr.subject, csr.public_key, serial), Serial(serial))

    def refused(self, refusal: Refusal, call: Call, resolved: Resolved | None) -> Refusal:
        self.recorded.append((refusal, call, resolved))
        return refusal

    def failed(self, call: Call, resolved: Resolved | None, reason: str) -> None:
        self.failures.append((call, resolved, reason))

    async def enter(self, source: str) -> None:
        await self.gate.enter(source)

    def leave(self) -> None:
        self.gate.leave()

    async def ca_certificates(self, resolved: Resolved) -> list[bytes]:
        assert resolved in self.labels.values()
        return [self.certificate]

    def app(self) -> web.Application:
        ids = itertools.count(1)
        return make_app(self, peer=lambda _: self.peer, new_request_id=lambda: f"id-{next(ids)}")
