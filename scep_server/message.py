"""Opening a pkiMessage (RFC 8894 3.2): bytes in, a verified `PkiMessage` or a refusal out.

Whoever holds a `PkiMessage` holds one whose signed attributes were signed by `signer`'s key, over a content that is the
envelope. The identity is the key that verified, never the first certificate in the message. Nothing is decrypted here,
and no certificate is trusted: the signer's may be its own work.

The order: (1) is there one signer with readable attributes; (2) the transaction; from here on a refusal can be
answered; (3) what costs nothing; (4) the signature, over at most `MAX_CANDIDATES` certificates.
"""

import datetime as dt
from dataclasses import dataclass, field
from enum import IntEnum

from cryptography.hazmat.primitives import constant_time, hashes

from ca_core import der
from scep_server import oids
from scep_server.algorithms import Digest, SignerKey, digest_of, load_signer_key, verifier
from scep_server.cms import read_certificate, read_enveloped, read_signed
from scep_server.cms_values import Attribute, Certificate, Enveloped, Signed, Signer
from scep_server.errors import BadMessageCheck, BadRequest, Failure, Transaction, Unusable

__all__ = ["MAX_MESSAGE", "MessageType", "PkiMessage", "open_request"]

MAX_MESSAGE = 128 * 1024
MAX_TRANSACTION_ID = 255
MAX_NONCE = 64
MAX_CHALLENGE = 255  # RFC 2985 pkcs-9-ub-challengePassword
MAX_CANDIDATES = 4


class MessageType(IntEnum):
    """What may be asked. "Message types not defined above MUST be treated as errors" -- RFC 8894 3.2.1.2."""

    RENEWAL_REQ = 17
    PKCS_REQ = 19
    CERT_POLL = 20
    GET_CERT = 21
    GET_CRL = 22


@dataclass(frozen=True, slots=True)
class PkiMessage:
    """A request whose signature has been verified.

    `key` is the key that verified and `signer` the certificate that holds it, of which nothing else is proven.
    `certificates` are all that came, in DER. `exposed_challenge` is a challenge that the client put among the signed
    attributes, for everybody to read (macOS does).
    """

    transaction: Transaction
    message_type: MessageType
    signer: Certificate
    key: SignerKey = field(repr=False)
    certificates: tuple[bytes, ...] = field(repr=False)
    digest: Digest
    signature_algorithm: str
    envelope: Enveloped
    signing_time: dt.datetime | None
    exposed_challenge: str | None = field(repr=False)


def open_request(data: bytes) -> PkiMessage:
    """Read and verify a request. Raises `Unusable` and `Failure`, and nothing else."""
    if len(data) > MAX_MESSAGE:
        raise Unusable("scep_too_large", f"The message is longer than {MAX_MESSAGE} bytes.")
    try:
        signed = read_signed(data)
    except ValueError as exc:
        # enforces case 1, 3
        raise Unusable("scep_not_cms", "The message is not a CMS SignedData.", detail=str(exc)) from exc
    if len(signed.signers) != 1:
        raise Unusable("scep_signer_count", "The message does not have exactly one signer.")
    (signer,) = signed.signers
    if signer.attributes is None:
        # "The SignerInfo MUST contain a set of authenticatedAttributes" -- RFC 8894 3.2
        raise Unusable("scep_no_transaction", "The message has no signed attributes.")
    transaction_id = _transaction_id(signer.attributes)
    candidates = _candidates(signed, signer)
    nonce: bytes | None = None
    try:
        nonce = _sender_nonce(signer.attributes)
        return _verified(signed, signer, candidates, Transaction(transaction_id, nonce))
    except Failure as failure:
        failure.transaction = Transaction(transaction_id, nonce)
        raise


def _verified(signed: Signed, signer: Signer, candidates: list[Certificate], transaction: Transaction) -> PkiMessage:
    attributes = signer.attributes or ()
    message_type = _message_type(attributes)
    digest = digest_of(signer.digest)
    content = _content(signed, attributes, digest)
    certificate, key = _find_signer(signer, candidates, digest)
    try:
        envelope = read_enveloped(content)
    except ValueError as exc:
        raise BadRequest(  # enforces case 3
            "scep_not_enveloped", "The message's content is not a CMS EnvelopedData.", detail=str(exc)
        ) from exc
    return PkiMessage(
        transaction=transaction,
        message_type=message_type,
        signer=certificate,
        key=key,
        certificates=signed.certificates,
        digest=digest,
        signature_algorithm=signer.signature_algorithm.oid,
        envelope=envelope,
        signing_time=_signing_time(attributes),
        exposed_challenge=_exposed_challenge(attributes),
    )


# --- the signature ---------------------------------------------------------------------------------------------------


def _content(signed: Signed, attributes: tuple[Attribute, ...], digest: Digest) -> bytes:
    """The content, which the signed attributes name and whose digest they hold (RFC 5652 5.3 and 11)."""
    # "The eContentType in encapsulatedContentInfo MUST be data ({pkcs-7 1})." -- RFC 8894 3.2
    if signed.content_type != oids.DATA or _single(attributes, oids.CONTENT_TYPE) != (_OID, der.oid(oids.DATA)[2:]):
        raise BadMessageCheck("scep_content_type", "The message's content is not signed as of the type data.")
    if signed.content is None:
        raise BadRequest("scep_not_enveloped", "The message has no content.")
    hasher = hashes.Hash(digest)
    hasher.update(signed.content)
    tag, claimed = _single(attributes, oids.MESSAGE_DIGEST) or (0, b"")
    if tag != _OCTET_STRING or not constant_time.bytes_eq(claimed, hasher.finalize()):
        raise BadMessageCheck("scep_digest_mismatch", "The signed messageDigest is not that of the content.")
    return signed.content


def _candidates(signed: Signed, signer: Signer) -> list[Certificate]:
    """The certificates that the SignerInfo names: more than one, if somebody means to confuse."""
    found: list[Certificate] = []
    for data in dict.fromkeys(signed.certificates):
        try:
            certificate = read_certificate(data)
        except ValueError:
            continue  # what can't be read is not what is looked for
        if certificate.is_named(signer.name):
            found.append(certificate)
    if not found:
        raise Unusable("scep_no_signer", "The message does not hold the certificate that its signer names.")
    return found


def _find_signer(signer: Signer, candidates: list[Certificate], digest: Digest) -> tuple[Certificate, SignerKey]:
    """The one certificate whose key made the signature."""
    if len(candidates) > MAX_CANDIDATES:
        raise BadMessageCheck("scep_signer_ambiguous", "The message holds many certificates of one name.")
    verify = verifier(signer.signature_algorithm, digest)
    # "A separate encoding of the signedAttrs field is performed for message digest calculation. The IMPLICIT [0] tag in
    # the signedAttrs is not used for the DER encoding, rather an EXPLICIT SET OF tag is used." -- RFC 5652 5.4
    parts = [attribute.der for attribute in signer.attributes or ()]
    forms = dict.fromkeys((der.tlv(_SET, b"".join(parts)), der.set_of(parts)))  # as sent, and in the order of DER
    found: list[tuple[Certificate, SignerKey]] = []
    refused: Failure | None = None
    for candidate in candidates:
        try:
            key = load_signer_key(candidate.spki)
            if any(verify(key, signer.signature, form) for form in forms):
                found.append((candidate, key))
        except Failure as failure:
            refused = failure
    if len(found) > 1:
        raise BadMessageCheck("scep_signer_ambiguous", "The message holds two certificates of its signer.")
    if not found:
        raise refused or BadMessageCheck(
            "scep_signature_bad", "The message is not signed with the key of its signer's certificate."
        )
    return found[0]


# --- the signed attributes -------------------------------------------------------------------------------------------

_OCTET_STRING, _OID, _SET = 0x04, 0x06, 0x31
_UTF8, _PRINTABLE, _T61, _IA5, _UTC_TIME, _GENERALIZED_TIME = 0x0C, 0x13, 0x14, 0x16, 0x17, 0x18
_TEXT = frozenset({_UTF8, _PRINTABLE, _IA5})  # RFC 8894 says PrintableString; clients send the others too


def _single(attributes: tuple[Attribute, ...], oid: str) -> tuple[int, bytes] | None:
    """The tag and content of an attribute's one value; None where it is absent, BadRequest where it is there twice."""
    found = [attribute for attribute in attributes if attribute.oid == oid]
    if not found:
        return None
    if len(found) > 1 or len(found[0].values) != 1:  # enforces case 30
        # "The signedAttrs MUST NOT include multiple instances" -- RFC 5652 11.1, 11.2, 11.3
        raise BadRequest("scep_attribute_malformed", "A signed attribute has several values.", detail=oid)
    return found[0].values[0]


def _transaction_id(attributes: tuple[Attribute, ...]) -> str:
    """The transactionID: any visible text, since it is given back octet by octet and is compared by the client."""
    try:
        tag, value = _single(attributes, oids.TRANSACTION_ID) or (0, b"")
    except BadRequest as exc:
        raise Unusable("scep_no_transaction", "The message has several transactionIDs.") from exc
    if tag not in _TEXT or not 0 < len(value) <= MAX_TRANSACTION_ID or not all(0x20 <= c < 0x7F for c in value):
        raise Unusable("scep_no_transaction", "The message has no transactionID that can be given back.")
    return value.decode("ascii")


def _sender_nonce(attributes: tuple[Attribute, ...]) -> bytes | None:
    """The senderNonce as sent. RFC 8894 3.2.1.5 wants 16 octets; clients send none, 8 or 32, and get them back."""
    if (value := _single(attributes, oids.SENDER_NONCE)) is None:
        return None
    if value[0] != _OCTET_STRING or len(value[1]) > MAX_NONCE:
        raise BadRequest("scep_nonce", f"The senderNonce is not an OCTET STRING of at most {MAX_NONCE} bytes.")
    return value[1]


def _message_type(attributes: tuple[Attribute, ...]) -> MessageType:
    tag, value = _single(attributes, oids.MESSAGE_TYPE) or (0, b"")
    for known in MessageType:
        if tag in _TEXT and value == str(known.value).encode():  # so "019" and "19 " are nothing
            return known
    raise BadRequest("scep_message_type", "The messageType is not one that can be asked here.")  # enforces case 30


def _signing_time(attributes: tuple[Attribute, ...]) -> dt.datetime | None:
    if (value := _single(attributes, oids.SIGNING_TIME)) is None:
        return None
    tag, text = value
    try:
        if tag == _UTC_TIME and len(text) == 13:
            century = b"19" if text >= b"5" else b"20"  # RFC 5280 4.1.2.5.1
            text = century + text
        elif tag != _GENERALIZED_TIME or len(text) != 15:
            raise ValueError("not a Time")
        return dt.datetime.strptime(text.decode("ascii"), "%Y%m%d%H%M%SZ").replace(tzinfo=dt.UTC)
    except ValueError as exc:
        raise BadRequest("scep_attribute_malformed", "The signingTime can't be read.") from exc


def _exposed_challenge(attributes: tuple[Attribute, ...]) -> str | None:
    if (value := _single(attributes, oids.CHALLENGE_PASSWORD)) is None:
        return None
    tag, text = value
    try:
        if tag not in {*_TEXT, _T61} or len(text) > MAX_CHALLENGE:
            raise ValueError("not a text")
        return text.decode("latin-1" if tag == _T61 else "utf-8")
    except ValueError as exc:
        raise BadRequest("scep_attribute_malformed", "The challengePassword can't be read.") from exc
