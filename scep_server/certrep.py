"""Writing a CertRep (RFC 8894 3.3.2): SUCCESS, FAILURE or PENDING. Time, randomness and the signer are passed in.

A reply uses what its request used, and nothing weaker than AES-128 and SHA-256, unless the caller says that this
client knows no better. Single DES and MD5 are never written. It is encrypted to the key that signed the request, alone.
"""

import datetime as dt
import os
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from enum import IntEnum
from typing import Protocol

from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import rsa

from ca_core import der
from scep_server import oids
from scep_server.algorithms import DIGESTS, Digest
from scep_server.cms_values import Certificate
from scep_server.envelope import Cipher, Oaep, RandomBytes, cipher_of, key_transport_of, seal_envelope
from scep_server.errors import BadAlg, Transaction
from scep_server.message import PkiMessage

__all__ = [
    "FailInfo",
    "ReplyAlgorithms",
    "ReplySigner",
    "choose_algorithms",
    "encode_certs_only",
    "reply_digest",
    "write_failure",
    "write_pending",
    "write_success",
]

MAX_FAIL_INFO_TEXT = 255


class FailInfo(IntEnum):
    """RFC 8894 3.2.1.4. Note that badAlg is falsy."""

    BAD_ALG = 0
    BAD_MESSAGE_CHECK = 1
    BAD_REQUEST = 2
    BAD_TIME = 3
    BAD_CERT_ID = 4


class ReplySigner(Protocol):
    """Holder of the RA's signing key, which is RSA: stock clients refuse any other signatureAlgorithm."""

    @property
    def certificate(self) -> Certificate:
        """The certificate that GetCACert gives."""
        ...

    async def sign(self, data: bytes, digest: Digest) -> bytes:
        """The PKCS#1 v1.5 signature over `data`."""
        ...


@dataclass(frozen=True, slots=True)
class ReplyAlgorithms:
    """What a SUCCESS is signed and encrypted with. `oaep` is None for PKCS#1 v1.5."""

    key: rsa.RSAPublicKey
    digest: Digest
    cipher: Cipher
    oaep: Oaep | None


def choose_algorithms(request: PkiMessage, *, allow_sha1: bool = False, allow_3des: bool = False) -> ReplyAlgorithms:
    """What to answer with; to be asked before anything is issued, since BadAlg says that no answer could be sealed.

    Where it is allowed, a request in SHA-1 is answered in SHA-1, and one in 3DES or single DES in 3DES.
    """
    if not isinstance(request.key, rsa.RSAPublicKey):
        raise BadAlg("scep_reply_needs_rsa", "An answer can't be encrypted to the signer's key, which is not RSA.")
    cipher = cipher_of(request.envelope)
    if cipher in (Cipher.TRIPLE_DES, Cipher.DES):
        cipher = Cipher.TRIPLE_DES if allow_3des else Cipher.AES_128
    return ReplyAlgorithms(request.key, reply_digest(request.digest, allow_sha1=allow_sha1), cipher, _oaep(request))


def _oaep(request: PkiMessage) -> Oaep | None:
    """OAEP as the client knows it. A way that is not known here is refused when the envelope is opened."""
    for recipient in request.envelope.recipients:
        with suppress(BadAlg):
            return key_transport_of(recipient)
    return None


def reply_digest(digest: Digest, *, allow_sha1: bool = False) -> Digest:
    """The hash to sign with, for a request that was signed with `digest`."""
    if isinstance(digest, hashes.SHA256 | hashes.SHA384 | hashes.SHA512):
        return digest
    return digest if allow_sha1 and isinstance(digest, hashes.SHA1) else hashes.SHA256()


async def write_success(
    request: PkiMessage,
    message: bytes,
    *,
    algorithms: ReplyAlgorithms,
    signer: ReplySigner,
    now: dt.datetime,
    random: RandomBytes = os.urandom,
) -> bytes:
    """A SUCCESS that carries `message`, which `encode_certs_only` makes."""
    envelope = seal_envelope(message, request.signer, algorithms.key, algorithms.cipher, algorithms.oaep, random)
    attributes = [_attribute(oids.PKI_STATUS, _printable("0"))]
    return await _write(request.transaction, attributes, envelope, algorithms.digest, signer, now, random)


async def write_failure(
    transaction: Transaction,
    fail_info: FailInfo | int,
    text: str,
    *,
    signer: ReplySigner,
    now: dt.datetime,
    digest: Digest | None = None,
    random: RandomBytes = os.urandom,
) -> bytes:
    """A FAILURE. Its content is empty; it is signed with SHA-256 unless `digest` says else."""
    attributes = [
        _attribute(oids.PKI_STATUS, _printable("2")),
        _attribute(oids.FAIL_INFO, _printable(str(FailInfo(fail_info).value))),
    ]
    if text:
        attributes.append(_attribute(oids.FAIL_INFO_TEXT, der.tlv(0x0C, text[:MAX_FAIL_INFO_TEXT].encode())))
    return await _write(transaction, attributes, None, digest or hashes.SHA256(), signer, now, random)


async def write_pending(
    transaction: Transaction,
    *,
    signer: ReplySigner,
    now: dt.datetime,
    digest: Digest | None = None,
    random: RandomBytes = os.urandom,
) -> bytes:
    """A PENDING. Its content is empty; it is signed with SHA-256 unless `digest` says else."""
    attributes = [_attribute(oids.PKI_STATUS, _printable("3"))]
    return await _write(transaction, attributes, None, digest or hashes.SHA256(), signer, now, random)


def encode_certs_only(certificates: Sequence[bytes]) -> bytes:
    """A degenerate SignedData (RFC 8894 3.4) with the certificates in the order given: clients take the first."""
    signed = der.sequence(
        der.integer(1),
        der.set_of([]),
        der.sequence(der.oid(oids.DATA)),
        der.tlv(0xA0, b"".join(certificates)),
        der.set_of([]),
    )
    return der.sequence(der.oid(oids.SIGNED_DATA), der.tlv(0xA0, signed))


_DIGEST_OIDS = {digest.name: oid for oid, digest in DIGESTS.items()}


async def _write(
    transaction: Transaction,
    attributes: list[bytes],
    content: bytes | None,
    digest: Digest,
    signer: ReplySigner,
    now: dt.datetime,
    random: RandomBytes,
) -> bytes:
    hasher = hashes.Hash(digest)
    hasher.update(content or b"")
    attributes += [
        _attribute(oids.CONTENT_TYPE, der.oid(oids.DATA)),
        _attribute(oids.MESSAGE_DIGEST, der.octets(hasher.finalize())),
        _attribute(oids.SIGNING_TIME, der.time(now)),
        _attribute(oids.TRANSACTION_ID, _printable(transaction.transaction_id)),
        _attribute(oids.MESSAGE_TYPE, _printable("3")),
        # Drafts wanted one, RFC 8894 3.3.2 does not, and certmonger and RouterOS fail without it.
        _attribute(oids.SENDER_NONCE, der.octets(random(16))),
    ]
    if transaction.sender_nonce is not None:
        # "The recipient MUST copy the senderNonce into the recipientNonce of the reply" -- RFC 8894 3.2.1.5
        attributes.append(_attribute(oids.RECIPIENT_NONCE, der.octets(transaction.sender_nonce)))
    signed_attributes = der.set_of(attributes)
    signature = await signer.sign(signed_attributes, digest)
    name = signer.certificate.name
    digest_algorithm = der.sequence(der.oid(_DIGEST_OIDS[digest.name]), der.NULL)  # .NET misses an absent NULL
    signer_info = der.sequence(
        der.integer(1),
        der.sequence(name.issuer, name.serial),
        digest_algorithm,
        b"\xa0" + signed_attributes[1:],  # [0] IMPLICIT in place of SET
        der.sequence(der.oid(oids.RSA_ENCRYPTION), der.NULL),  # strongSwan 5.9.8 refuses shaXWithRSA here
        der.octets(signature),
    )
    # "The pkcsPKIEnvelope (Section 3.2.2) MUST be omitted." -- RFC 8894 3.3.2.2 and 3.3.2.3. What it would stand in is
    # there, and empty: without it certmonger takes a refusal for a server that can't be reached, and asks for ever.
    encapsulated = der.sequence(der.oid(oids.DATA), der.tlv(0xA0, der.octets(content or b"")))
    signed = der.sequence(
        der.integer(1),
        der.set_of([digest_algorithm]),
        encapsulated,
        der.tlv(0xA0, signer.certificate.der),
        der.set_of([signer_info]),
    )
    return der.sequence(der.oid(oids.SIGNED_DATA), der.tlv(0xA0, signed))


def _attribute(oid: str, value: bytes) -> bytes:
    return der.sequence(der.oid(oid), der.set_of([value]))


def _printable(text: str) -> bytes:
    # Also for a transactionID with characters that PrintableString lacks: clients compare octets, and this tag.
    return der.tlv(0x13, text.encode("ascii"))
