"""Everything that can go wrong, as one tree.

::

    CoreError
    +-- Refusal                the requester's fault: its sentence may be told, its code is stable
    |   +-- MalformedRequest   the bytes are not what they should be
    |   +-- TooLarge           more bytes than anybody needs
    |   +-- UnsupportedMedia   a content type or coding that is not spoken here
    |   +-- BadKey             a key that is too weak, broken, or of a kind that is not allowed
    |   +-- PopFailed          proof of possession, or its link to this TLS session, does not hold
    |   +-- NotAuthenticated   no credential, or one that proves nothing
    |   +-- NotAuthorized      proven, but not entitled to this
    |   +-- NotFound           no such realm, profile or operation
    |   +-- TooMany            asked more often than a device, credential or source may
    +-- OperatorError          a command that can't be carried out; told to the operator with its remedy
    +-- InternalError          ours: logged, never told
        +-- Unavailable        nothing can be issued now; asking again later may help
        |   +-- Overloaded     too many others ask; nothing was done for this one
        |   +-- SignerUnavailable   a HSM that worked does not at the moment
        +-- SealingFailed      a key can't be opened with this unlock key
        |   +-- IssuerUnfit    a CA certificate that nobody would believe
        |   +-- HsmUnfit       a key in a HSM that can't be used: no module, token, PIN, key or mechanism for it
        +-- ConditionFailed    a fact that the decision stood on no longer held at the commit
        +-- ConstraintFailed   the store refused a row

Each protocol maps the classes of `Refusal` to its wire in one table. Codes are a closed set: `CODES` names each
with the remedy that an operator reads.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from ca_core.codes import CODES

__all__ = [
    "BadKey",
    "Claim",
    "ConditionFailed",
    "ConstraintFailed",
    "CoreError",
    "HsmUnfit",
    "InternalError",
    "IssuerUnfit",
    "MalformedRequest",
    "NotAuthenticated",
    "NotAuthorized",
    "NotFound",
    "OperatorError",
    "Overloaded",
    "PopFailed",
    "Refusal",
    "SealingFailed",
    "SignerUnavailable",
    "TooLarge",
    "TooMany",
    "Unavailable",
    "UnsupportedMedia",
]


class CoreError(Exception):
    """Root of the tree."""


@dataclass(frozen=True, slots=True)
class Claim:
    """Who a caller said it was: a name, a certificate's or a factory's serial number, and the SHA-256 of its key."""

    name: str | None
    serial: str | None
    key_sha256: bytes


class Refusal(CoreError):
    """The requester's fault.

    `code` is one of `CODES`; `message` is one true sentence that the peer may read and that never quotes what the peer
    sent unescaped; `detail` is for the operator alone (log, attempts, audit). `device` is the (id, name) of the device
    whose credential was shown, where that is beyond doubt although the credential is not accepted (spent, revoked);
    `claim` is who a caller said it was where nothing is proven.
    """

    claim: "Claim | None" = None

    def __init__(self, code: str, message: str, *, detail: str = "", device: tuple[int, str] | None = None) -> None:
        super().__init__(message)
        self.device = device
        self.remedy = CODES[code]
        self.code = code
        self.message = message
        self.detail = detail


class MalformedRequest(Refusal):
    """The bytes are not what the operation expects."""


class TooLarge(Refusal):
    """More bytes than the operation can need."""


class UnsupportedMedia(Refusal):
    """A content type or content coding that is not spoken here."""


class BadKey(Refusal):
    """The public key is too weak, broken, blocked, or of a kind that the profile does not allow."""


class PopFailed(Refusal):
    """Proof of possession fails, or is not linked to this TLS session as claimed (RFC 7030 3.5)."""


class NotAuthenticated(Refusal):
    """No credential, or one that proves nothing."""


class NotAuthorized(Refusal):
    """The requester is known, and is not entitled to what it asks."""


class NotFound(Refusal):
    """No such realm, profile or operation."""


class TooMany(Refusal):
    """Asked more often than a device, a credential or a source may; `retry_after` seconds later it may ask again."""

    def __init__(self, code: str, message: str, *, retry_after: int, detail: str = "") -> None:
        super().__init__(code, message, detail=detail)
        self.retry_after = retry_after


class OperatorError(CoreError):
    """A command that can't be carried out. `remedy` says what to do instead; `code` is stable."""

    def __init__(self, code: str, message: str, remedy: str = "") -> None:
        super().__init__(message)
        self.code = code
        self.message = message
        self.remedy = remedy


class InternalError(CoreError):
    """Our fault: its text is logged, never sent. `recorded` when the attempts hold it already."""

    recorded = False


class Unavailable(InternalError):
    """Nothing can be issued at the moment (store, signer or clock)."""


class Overloaded(Unavailable):
    """There is no place for the request; nothing was done. Ask again after `retry_after` seconds."""

    def __init__(self, reason: str, *, retry_after: int) -> None:
        super().__init__(reason)
        self.retry_after = retry_after


class SignerUnavailable(Unavailable):
    """A key in a HSM can't be used at the moment: its session, its token or the way to it is gone."""


class SealingFailed(InternalError):
    """A sealed key does not open with this unlock key, or does not match its certificate."""


class IssuerUnfit(SealingFailed):
    """A CA certificate under which nothing is signed: no relying party would accept it. `code` is a finding's."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code


class HsmUnfit(SealingFailed):
    """A key in a HSM can't be used, and won't be before somebody mends it. `code` is a finding's, with its `remedy`.

    `token` is the label of the token, where it is one that refused its PIN.
    """

    def __init__(self, code: str, message: str, remedy: str, *, token: str = "") -> None:
        super().__init__(message)
        self.code = code
        self.remedy = remedy
        self.token = token


class ConditionFailed(InternalError):
    """At the commit, a fact that the decision stood on no longer held. `conditions` names the ones that failed."""

    def __init__(self, conditions: Sequence[str]) -> None:
        super().__init__(f"no longer true at commit: {', '.join(conditions) or 'unknown'}")
        self.conditions = tuple(conditions)


class ConstraintFailed(InternalError):
    """The store refused a row (uniqueness, reference); nothing of the unit was written."""
