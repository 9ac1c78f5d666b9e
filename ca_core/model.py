"""The values that travel between the rooms. All are frozen; who holds one may rely on it.

Times are aware UTC `datetime`s, DER is `bytes`, fingerprints and key hashes are 32 bytes of SHA-256, serials are
positive `int`s whose text form is lower-case hex.
"""

import datetime as dt
from collections.abc import Callable
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Literal, NewType, Protocol

from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import padding

from ca_core.errors import Refusal

__all__ = [
    "AUTHENTICATED",
    "Call",
    "Clock",
    "DeviceRecord",
    "DeviceState",
    "Evidence",
    "Issued",
    "Means",
    "Operation",
    "OwnCertificate",
    "Pending",
    "ProtocolName",
    "RaKey",
    "Recalled",
    "Refused",
    "Requester",
    "SecretRecord",
    "Serial",
    "TlsPeer",
    "format_serial",
]

Serial = NewType("Serial", int)
Clock = Callable[[], dt.datetime]
ProtocolName = Literal["est", "scep", "http"]


def format_serial(serial: int) -> str:
    """A serial number as lower-case hex without leading zeros, the one text form used anywhere."""
    return format(serial, "x")


class Operation(StrEnum):
    """What is asked: a first certificate, or another one for an identity that has one.

    `REENROLL` must repeat the names of the certificate it is shown by (RFC 7030 4.2.2); `RENEW` only needs one, and
    gets the names of the device's record (RFC 8894 2.5).
    """

    ENROLL = "enroll"
    REENROLL = "reenroll"
    RENEW = "renew"


class Means(StrEnum):
    """How a requester proved who it is; by `OPEN` and `APPROVAL`, nothing is proven but the key."""

    SECRET = "secret"  # noqa: S105  # the name of a means, not a secret
    IDEVID = "idevid"
    OWN_CERTIFICATE = "own_certificate"
    CHALLENGE = "challenge"
    OPEN = "open"
    APPROVAL = "approval"


class DeviceState(StrEnum):
    """`expected` devices have no certificate yet; only expected and active ones get any."""

    EXPECTED = "expected"
    ACTIVE = "active"
    SUSPENDED = "suspended"
    RETIRED = "retired"


@dataclass(frozen=True, slots=True)
class TlsPeer:
    """The other end of a TLS connection, whose possession of the leaf's key the handshake has proven.

    `chain` is DER as sent, leaf first, empty without a client certificate. `tls_unique` (RFC 5929) is the client's
    Finished and None on TLS 1.3, where it is undefined (RFC 8446 C.5); `tls_exporter` (RFC 9266) is None on TLS 1.2.
    """

    version: str
    chain: tuple[bytes, ...] = ()
    tls_unique: bytes | None = None
    tls_exporter: bytes | None = None
    server_name: str | None = None


@dataclass(frozen=True, slots=True)
class Call:
    """One request as the operator sees it: `request_id` stands in the log, the audit event, the attempt and the answer.

    `operation` is the wire's own word (simpleenroll, PKCSReq), `protocol` is http for what never became a request of
    EST or SCEP; `source` the peer's IP address as text. `transaction_id` is the peer's own name for its request, if
    the protocol has one: visible ASCII of at most 255 characters. `tolerances` are the realm's by which it was read.
    """

    request_id: str
    protocol: ProtocolName
    operation: str
    source: str
    tls_version: str | None = None
    transaction_id: str | None = None
    tolerances: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Evidence:
    """What a peer offers to prove who it is, not judged yet.

    `chain` holds certificates, leaf first, whose leaf's private key the peer has shown to hold (TLS handshake, SCEP
    signature). `username` is None when the protocol carries none; an empty one is tolerated. `secret` is as sent;
    `is_exposed` when others on its way may have read it. `recalled` is not a peer's to offer.
    """

    chain: tuple[bytes, ...] = ()
    username: str | None = None
    secret: str | None = field(default=None, repr=False)
    is_exposed: bool = False
    recalled: "Recalled | None" = None


@dataclass(frozen=True, slots=True)
class Recalled:
    """What a secret proved when a request came that waits since: the secret's row, or the hash of the challenge.

    Only a request that the store has kept brings it; the secret itself is never kept.
    """

    secret_id: int | None = None
    challenge: str | None = None


@dataclass(frozen=True, slots=True)
class DeviceRecord:
    """A registered device, as read.

    `names` are SANs as `DNS:x`, `IP:x`, `URI:x`; `renewal_shares` when in its certificates' lives it renewed, in
    thousandths. One with the id 0 is not registered yet: it will be, with its first certificate.
    """

    id: int
    realm_id: int
    name: str
    username: str
    profile: str | None
    state: DeviceState
    serial_number: str | None
    manufacturer: str | None
    names: tuple[str, ...]
    owner: str | None
    renewal_shares: tuple[int, ...] = ()

    @property
    def is_new(self) -> bool:
        """Whether it is not registered yet."""
        return self.id == 0


@dataclass(frozen=True, slots=True)
class SecretRecord:
    """A device's secret, as read; the secret itself is not in it."""

    id: int
    hash: bytes = field(repr=False)
    expires_at: dt.datetime
    spent_at: dt.datetime | None
    spent_key: bytes | None
    spent_names: bytes | None
    certificate_id: int | None
    voided_at: dt.datetime | None


@dataclass(frozen=True, slots=True)
class OwnCertificate:
    """A certificate that this realm issued to a device, as read.

    `newer_is_revoked`: the device had a later one, and that was revoked. `is_superseded`: another board or device has
    taken its place. `is_renewed`: it was renewed before.
    """

    id: int
    serial: Serial
    fingerprint: bytes
    spki_sha256: bytes
    der: bytes = field(repr=False)
    not_before: dt.datetime
    not_after: dt.datetime
    status: Literal["valid", "revoked", "hold"]
    profile: str
    newer_is_revoked: bool
    is_superseded: bool = False
    is_renewed: bool = False


AUTHENTICATED = object()
"""Held by `registration.requester` alone: what makes a `Requester`."""


@dataclass(frozen=True, slots=True)
class Requester:
    """A device that has proven who it is. Only `registration.requester.authenticate` makes one.

    `credential` names what it was proven with: the SHA-256 of the certificate, or the hash of the secret;
    `credential_key` is the SHA-256 of the certificate's key, None without one. `evidence` is kept so that a decision
    can be taken again when a fact changed before its commit. A webhook and an operator may still be asked, where the
    realm's way in says so.
    """

    realm_id: int
    device: DeviceRecord
    means: Means
    credential: bytes = field(repr=False)
    credential_key: bytes | None
    secret: SecretRecord | None
    certificate: OwnCertificate | None
    evidence: Evidence = field(repr=False)
    proof: object = field(repr=False)
    asks_webhook: bool = False
    needs_approval: bool = False

    @property
    def proves_device(self) -> bool:
        """Whether it is that device beyond doubt, and not only called so."""
        return self.means in (Means.SECRET, Means.IDEVID, Means.OWN_CERTIFICATE) and not self.device.is_new

    @property
    def is_unproven(self) -> bool:
        """Whether what was shown proves no single device: by an open way, a challenge, or an approval alone."""
        return self.means in (Means.CHALLENGE, Means.OPEN, Means.APPROVAL)

    @property
    def names_itself(self) -> bool:
        """Whether nobody vouches for the device but the request: it is unproven, and no operator looks at it."""
        return self.is_unproven and not self.needs_approval

    def __post_init__(self) -> None:
        if self.proof is not AUTHENTICATED:
            raise TypeError("a Requester is made by authentication only")


class RaKey(Protocol):
    """Holder of an RA's RSA key, which opens requests and signs answers, and issues nothing. It may be slow."""

    async def unwrap(self, encrypted_key: bytes, algorithm: padding.AsymmetricPadding) -> bytes:
        """A content-encryption key; ValueError, or any bytes at all, when it can't be unwrapped.

        UnsupportedAlgorithm (of `cryptography`) when nothing can be, by this algorithm.
        """
        ...

    async def sign(self, data: bytes, digest: hashes.HashAlgorithm) -> bytes:
        """The PKCS#1 v1.5 signature over `data`."""
        ...


@dataclass(frozen=True, slots=True)
class Issued:
    """The certificate, whose record is durable. `again` is True when it is the answer to a retransmission."""

    certificate: bytes
    serial: Serial
    again: bool = False


@dataclass(frozen=True, slots=True)
class Pending:
    """Waits for approval; the peer may ask again after `retry_after` seconds."""

    retry_after: int


@dataclass(frozen=True, slots=True)
class Refused:
    """Not granted, and recorded as such."""

    refusal: Refusal
