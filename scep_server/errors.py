"""Why a pkiMessage is refused, as one tree.

::

    Refusal (ca_core.errors)
    +-- Unusable             no transactionID or no signer to answer: HTTP 400
    +-- Failure              a signed CertRep FAILURE with `fail_info`, once `transaction` is known
        +-- BadAlg           0  an algorithm, key or size that is not accepted
        +-- BadMessageCheck  1  a signature or an envelope that does not hold
        +-- BadRequest       2  a message that may not be, or holds what it may not

They continue the core's tree, under `Refusal`; the core's own refusals are mapped to a failInfo by `FAIL_INFO`. No
refusal carries a key, a challenge or a plaintext.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from ca_core.errors import (
    BadKey,
    MalformedRequest,
    NotAuthenticated,
    NotAuthorized,
    NotFound,
    PopFailed,
    Refusal,
    TooLarge,
    TooMany,
    UnsupportedMedia,
)

__all__ = [
    "FAIL_INFO",
    "HTTP_STATUS",
    "BadAlg",
    "BadMessageCheck",
    "BadRequest",
    "Failure",
    "Transaction",
    "Unusable",
    "fail_info",
]


@dataclass(frozen=True, slots=True)
class Transaction:
    """What every CertRep repeats from its request. `sender_nonce` is as sent, None without any."""

    transaction_id: str
    sender_nonce: bytes | None


class Unusable(Refusal):
    """Nobody can be answered: no transactionID, no signer, or no pkiMessage at all."""


class Failure(Refusal):
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


# "badAlg", "badMessageCheck", "badRequest", "badTime", "badCertId" -- RFC 8894 3.2.1.4
FAIL_INFO: Mapping[type[Refusal] | str, int] = {
    MalformedRequest: 2,
    TooLarge: 2,
    UnsupportedMedia: 2,
    BadKey: 0,
    PopFailed: 1,
    NotAuthenticated: 2,
    NotAuthorized: 2,
    NotFound: 2,
    TooMany: 2,
    # A code that is more exact than its class.
    "csr_signature_weak": 0,
    "key_blocked": 2,
    "key_of_other_device": 2,
    "rekey_required": 2,
    "transaction_unknown": 4,
}
HTTP_STATUS: Mapping[type[Refusal] | str, int] = {
    Unusable: 400,
    MalformedRequest: 400,
    NotFound: 404,
    TooLarge: 413,
    UnsupportedMedia: 415,
    TooMany: 429,
    "method_not_allowed": 405,
    "http_body_timeout": 408,
    "bodies_in_all": 503,
    "scep_operation_unknown": 400,
    "scep_too_large": 413,
}
"""What is told where no CertRep can be: no transaction is known."""


def fail_info(refusal: Refusal) -> int:
    """The failInfo of a refusal."""
    if isinstance(refusal, Failure):
        return refusal.fail_info
    found = FAIL_INFO.get(refusal.code)
    return FAIL_INFO[type(refusal)] if found is None else found
