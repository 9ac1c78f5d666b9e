"""Who is examined, and what an examination finds."""

from dataclasses import dataclass, field
from typing import Literal, Self

from cryptography import x509

from ca_core.errors import Refusal
from ca_core.model import DeviceRecord, Means, OwnCertificate, Requester
from ca_core.registration.admission.secret import without_secret

__all__ = ["Applicant", "Examined", "Field", "Named"]

Named = frozenset[x509.NameAttribute[str] | str]
"""Some of what a certificate names: attributes of its subject, and alternative names."""


@dataclass(frozen=True, slots=True)
class Applicant:
    """A device as far as its profile asks: its record, how it proved who it is, and what it renews.

    `secret` is the one that was sent, so that it is never told.
    """

    device: DeviceRecord
    means: Means
    certificate: OwnCertificate | None = None
    secret: str | None = field(default=None, repr=False)
    both: bool = False
    """Whether a factory identity was shown beside the secret."""

    @property
    def shows_idevid(self) -> bool:
        """Whether a factory identity was shown now."""
        return self.means is Means.IDEVID or self.both

    @classmethod
    def of(cls, requester: Requester) -> Self:
        """The device behind a request."""
        both = requester.means is Means.SECRET and requester.credential_key is not None
        return cls(requester.device, requester.means, requester.certificate, requester.evidence.secret, both)

    def shown(self, asked: str) -> str:
        """What was asked for, for the record, unless somebody put the secret there."""
        return ascii(without_secret(asked, self.secret))[1:-1]


@dataclass(frozen=True, slots=True)
class Field:
    """One value and what becomes of it. `source` says where it is from: `fixed`, `csr`, or facts by their names."""

    field: str
    value: str
    source: str
    outcome: Literal["given", "left_out", "dropped", "refused"]
    refusal: Refusal | None = None


@dataclass(frozen=True, slots=True)
class Examined:
    """What a certificate would be made out to, and everything that speaks against it, in the order of importance.

    `common` is what no device has a say in: fixed text, or made of facts that many have alike. `repeated` is what the
    certificate that is renewed has as well.
    """

    subject: x509.Name
    names: tuple[str, ...]
    fields: tuple[Field, ...]
    refusals: tuple[Refusal, ...]
    common: Named = frozenset()
    repeated: Named = frozenset()

    @property
    def dropped(self) -> tuple[str, ...]:
        """What was asked for and is not given, in words."""
        return tuple(
            dict.fromkeys(
                f"SAN {each.value}" if each.field == "SAN" else each.field
                for each in self.fields
                if each.outcome == "dropped"
            )
        )

    def require(self) -> None:
        """Raise the first refusal."""
        for refusal in self.refusals:
            raise refusal
