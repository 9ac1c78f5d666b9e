"""A key pair that was just made, and where to make one that is to stay in a HSM."""

from dataclasses import dataclass, field

from ca_core.public_key import PublicKey


@dataclass(frozen=True, slots=True)
class NewKey:
    """A key pair just made; `pkcs8` is what the store keeps of it: the sealed key, or a reference to one in a HSM."""

    public_key: PublicKey
    pkcs8: bytes = field(repr=False)
    spki_sha256: bytes


@dataclass(frozen=True, slots=True)
class InToken:
    """Where to make a key that is to stay in a HSM: the token's label, and a name for a person who looks into it.

    `decrypts` for an RA's key, which must not only sign.
    """

    token: str
    name: str
    decrypts: bool = False
