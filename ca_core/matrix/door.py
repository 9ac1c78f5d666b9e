"""The door that is knocked at: a credential and an operation in, the outcome in a word out."""

import hashlib
import itertools
from dataclasses import dataclass, field
from typing import Protocol

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import NameOID

from ca_core.core import Core
from ca_core.csr import ParsedCsr
from ca_core.errors import InternalError, Refusal
from ca_core.matrix.cells import OPERATIONS, Wire
from ca_core.matrix.manufacturer import DeviceKey
from ca_core.model import Call, Evidence, Issued, Operation, Pending, Refused
from ca_core.public_key import spki_sha256

__all__ = ["CoreDoor", "Door", "Outcome", "Shown", "protocol_of"]

_OPERATIONS = {
    Wire.SIMPLEENROLL: Operation.ENROLL,
    Wire.SIMPLEREENROLL: Operation.REENROLL,
    Wire.PKCS_REQ: Operation.ENROLL,
    Wire.RENEWAL_REQ: Operation.RENEW,
}


@dataclass(frozen=True, slots=True)
class Shown:
    """Who asks for a certificate of `key` in the name `device`, and what it shows.

    `chain` is DER, leaf first, and `chain_key` the leaf's; `secret` is a one-time secret or a challenge. `subject` and
    `names` are what its request asks for; without them, the device's name alone.
    """

    device: str
    key: DeviceKey = field(repr=False)
    chain: tuple[bytes, ...] = field(default=(), repr=False)
    chain_key: DeviceKey | None = field(default=None, repr=False)
    secret: str | None = field(default=None, repr=False)
    subject: x509.Name | None = field(default=None, repr=False)
    names: x509.SubjectAlternativeName | None = field(default=None, repr=False)

    @property
    def signer(self) -> DeviceKey:
        """The key that a SCEP message is signed with."""
        return self.chain_key or self.key

    def csr(self) -> bytes:
        """The PKCS#10 request, DER."""
        named = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, self.device)])
        builder = x509.CertificateSigningRequestBuilder().subject_name(named if self.subject is None else self.subject)
        if self.names is not None:
            builder = builder.add_extension(self.names, critical=False)
        return builder.sign(self.key, hashes.SHA256()).public_bytes(Encoding.DER)

    def transaction(self, operation: Wire) -> str:
        """The transactionID: as clients make it, from the key. A poll is of what the PKCSReq began."""
        begun = Wire.PKCS_REQ if operation is Wire.CERT_POLL else operation
        return hashlib.sha256(spki_sha256(self.key.public_key()) + begun.encode()).hexdigest()


@dataclass(frozen=True, slots=True)
class Outcome:
    """`issued` (then with the certificate), `pending`, a refusal's code, or `internal_error`."""

    code: str
    certificate: bytes | None = field(default=None, repr=False)


class Door(Protocol):
    """Where devices ask."""

    async def ask(self, realm: str, shown: Shown, operation: Wire) -> Outcome:
        """The outcome of one request to a realm."""
        ...


def protocol_of(operation: Wire) -> str:
    """`est` or `scep`."""
    return next(name for name, operations in OPERATIONS.items() if operation in operations)


class CoreDoor:
    """The core's own door, where both protocols meet."""

    def __init__(self, core: Core) -> None:
        self._core = core
        self._numbers = itertools.count(1)

    async def ask(self, realm: str, shown: Shown, operation: Wire) -> Outcome:
        """The outcome of one request to a realm."""
        is_est = operation in OPERATIONS["est"]
        registration = self._core.registration
        transaction = None if is_est else shown.transaction(operation)
        # No two requests are of one source, so that none waits because of others.
        number = next(self._numbers)
        call = Call(
            f"matrix-{number}",
            "est" if is_est else "scep",
            operation.value,
            f"2001:db8:{number >> 16 & 0xFFFF:x}:{number & 0xFFFF:x}::1",
            transaction_id=transaction,
        )
        csr = ParsedCsr.parse(shown.csr())
        try:
            resolved = await self._core.realms.resolve(call.protocol, realm, None)
            if operation is Wire.CERT_POLL:
                asking = spki_sha256(shown.signer.public_key())
                return _outcome(await registration.poll(resolved, transaction or "", asking, call))
            requester = await registration.authenticate(resolved, self._evidence(shown), csr)
            return _outcome(await registration.enroll(resolved, requester, csr, _OPERATIONS[operation], call))
        except Refusal as refusal:
            return Outcome(refusal.code)
        except InternalError:
            # The store refuses what crosses a realm when all else has let it pass: that is no reason to give.
            if self._core.store.shortage() is not None:
                raise
            return Outcome("internal_error")

    @staticmethod
    def _evidence(shown: Shown) -> Evidence:
        return Evidence(shown.chain, None, shown.secret)


def _outcome(outcome: Issued | Pending | Refused) -> Outcome:
    match outcome:
        case Refused(refusal):
            return Outcome(refusal.code)
        case Pending():
            return Outcome("pending")
        case Issued():
            return Outcome("issued", outcome.certificate)
