"""What `cms` reads, as values. Frozen; none shows what it carries when it is printed."""

from dataclasses import dataclass, field

__all__ = [
    "Algorithm",
    "Attribute",
    "Certificate",
    "Enveloped",
    "IssuerAndSerial",
    "KeyTransport",
    "PssParameters",
    "Signed",
    "Signer",
    "SignerId",
]


@dataclass(frozen=True, slots=True)
class Algorithm:
    """An AlgorithmIdentifier; `parameters` is their DER, empty without any."""

    oid: str
    parameters: bytes = b""


@dataclass(frozen=True, slots=True)
class IssuerAndSerial:
    """The DER of an issuer's Name and that of a serial number's INTEGER."""

    issuer: bytes
    serial: bytes


SignerId = IssuerAndSerial | bytes
"""How a certificate is named: by issuer and serial number, or by its subject key identifier."""


@dataclass(frozen=True, slots=True)
class Certificate:
    """A certificate, read only as far as it takes to find it and its key; its signature is not looked at."""

    der: bytes = field(repr=False)
    name: IssuerAndSerial
    subject: bytes
    key_identifier: bytes
    spki: bytes = field(repr=False)

    @property
    def is_self_issued(self) -> bool:
        """Whether it names itself as its issuer, as what a client makes for its first request does."""
        return self.subject == self.name.issuer

    def is_named(self, signer: SignerId) -> bool:
        """Whether `signer` names this certificate."""
        return signer == (self.name if isinstance(signer, IssuerAndSerial) else self.key_identifier)


@dataclass(frozen=True, slots=True)
class Attribute:
    """A signed attribute: the (tag, content) of each of its values, and its whole DER."""

    oid: str
    values: tuple[tuple[int, bytes], ...] = field(repr=False)
    der: bytes = field(repr=False)


@dataclass(frozen=True, slots=True)
class Signer:
    """A SignerInfo. `attributes` is in the order sent, None when there are no signed attributes."""

    name: SignerId
    digest: Algorithm
    attributes: tuple[Attribute, ...] | None
    signature_algorithm: Algorithm
    signature: bytes = field(repr=False)


@dataclass(frozen=True, slots=True)
class Signed:
    """A SignedData. `content` is None where it is absent; `certificates` are those of X.509, unread."""

    content_type: str
    content: bytes | None = field(repr=False)
    certificates: tuple[bytes, ...] = field(repr=False)
    signers: tuple[Signer, ...]


@dataclass(frozen=True, slots=True)
class KeyTransport:
    """A KeyTransRecipientInfo."""

    name: SignerId
    algorithm: Algorithm
    encrypted_key: bytes = field(repr=False)


@dataclass(frozen=True, slots=True)
class Enveloped:
    """An EnvelopedData; recipients of other kinds than key transport are left out."""

    recipients: tuple[KeyTransport, ...]
    content_type: str
    cipher: Algorithm
    encrypted: bytes = field(repr=False)


@dataclass(frozen=True, slots=True)
class PssParameters:
    """RSASSA-PSS-params, each with its default where it was left out (RFC 8017 A.2.3)."""

    digest: str
    mask_digest: str
    salt_length: int
