"""Why a pkiMessage is refused, as one tree.

::

    ScepRefusal
    +-- Unusable             no transactionID or no signer to answer: HTTP 400
    +-- Failure              a signed CertRep FAILURE with `fail_info`, once `transaction` is known
        +-- BadAlg           0  an algorithm, key or size that is not accepted
        +-- BadMessageCheck  1  a signature or an envelope that does not hold
        +-- BadRequest       2  a message that may not be, or holds what it may not

`message` is one true sentence without anything that the peer sent. `code` is one of `CODES`, and what logs and metrics
say. No refusal carries a key, a challenge or a plaintext.
"""

from dataclasses import dataclass
from typing import ClassVar

__all__ = ["CODES", "BadAlg", "BadMessageCheck", "BadRequest", "Failure", "ScepRefusal", "Transaction", "Unusable"]

CODES: dict[str, str] = {
    "scep_too_large": "The message is larger than any honest one; look at the client and its proxy.",
    "scep_not_cms": "Send a CMS SignedData (RFC 8894 3.2), as DER or BER, with nothing after its end.",
    "scep_signer_count": "Sign the message once; no signer and two signers are refused alike.",
    "scep_no_transaction": "The message has no signed transactionID of 1 to 255 printable characters.",
    "scep_no_signer": "Put the certificate of the key that signs (self-signed will do) into the message.",
    "scep_attribute_malformed": "A signed attribute can't be read, or stands there twice.",
    "scep_message_type": "Send RenewalReq (17), PKCSReq (19), CertPoll (20), GetCert (21) or GetCRL (22).",
    "scep_nonce": "Send a senderNonce of 16 bytes; more than 64 are refused.",
    "scep_content_type": "The content, and the signed attribute contentType, must be of type data.",
    "scep_digest_mismatch": "The signed messageDigest is not that of the content; something changed it on its way.",
    "scep_signature_bad": "The message is not signed with the key of the certificate that it names.",
    "scep_signer_ambiguous": "Two certificates of one key and one name are in the message; send one.",
    "scep_digest_unsupported": "Set the client's hash to SHA-256; MD5 is never accepted.",
    "scep_signature_unsupported": "Let the client sign with RSA or ECDSA and SHA-256.",
    "scep_signer_key": "The signer's key must be RSA of 1024 to 8192 bits, or P-256, P-384, P-521.",
    "scep_not_enveloped": "Encrypt the request (EnvelopedData); in the clear it shows its challenge to everyone.",
    "scep_too_many_recipients": "Encrypt to the RA certificate that GetCACert gives, and to no other.",
    "scep_envelope_not_for_us": "The message is encrypted to another certificate; fetch GetCACert again.",
    "scep_cipher_unsupported": "Set the client's encryption to AES; single DES needs the realm's 'scep.read_des'.",
    "scep_key_transport_unsupported": "Encrypt the key with RSA PKCS#1 v1.5, or OAEP with SHA-1 or SHA-256.",
    "scep_envelope_bad": "The envelope can't be decrypted; fetch GetCACert again and look at the client.",
    "scep_reply_needs_rsa": "The answer is encrypted to the signer's key, which must be RSA; EST takes EC keys.",
}


@dataclass(frozen=True, slots=True)
class Transaction:
    """What every CertRep repeats from its request. `sender_nonce` is as sent, None without any."""

    transaction_id: str
    sender_nonce: bytes | None


class ScepRefusal(Exception):
    """Root of the tree."""

    def __init__(self, code: str, message: str, *, detail: str = "") -> None:
        super().__init__(message)
        self.remedy = CODES[code]
        self.code = code
        self.message = message
        self.detail = detail


class Unusable(ScepRefusal):
    """Nobody can be answered: no transactionID, no signer, or no pkiMessage at all."""


class Failure(ScepRefusal):
    """Answered with a CertRep FAILURE. `transaction` is there once `open_request` has let it out."""

    fail_info: ClassVar[int]
    transaction: Transaction | None = None


class BadAlg(Failure):
    """Unrecognised or unsupported algorithm (RFC 8894 3.2.1.4)."""

    fail_info = 0


class BadMessageCheck(Failure):
    """Integrity check failed (RFC 8894 3.2.1.4)."""

    fail_info = 1


class BadRequest(Failure):
    """Transaction not permitted or supported (RFC 8894 3.2.1.4)."""

    fail_info = 2
