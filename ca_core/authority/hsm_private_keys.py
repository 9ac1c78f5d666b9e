"""Private keys that are in a HSM, as the `cryptography` package has private keys.

So certificates are built the same way wherever the key is; that builders take such a subclass is held by a test. Hashes
are made here, and the token signs those alone (CKM_RSA_PKCS over a DigestInfo, CKM_ECDSA): a long CRL need not travel.
Ed25519 has no such way (RFC 8032 8.5): there the token gets all that is signed.

Import this from `authority.issuance` and `authority.hsm_keys` alone: whoever can name a signer can sign.
"""

import secrets
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NoReturn, TypeVar
from urllib.parse import quote_from_bytes, unquote_to_bytes

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, padding, rsa
from cryptography.hazmat.primitives.asymmetric import utils as asymmetric
from cryptography.utils import Buffer

from ca_core.authority.hsm import Hsm
from ca_core.errors import HsmUnfit, SignerUnavailable

if TYPE_CHECKING:
    import pkcs11

__all__ = ["HsmEcKey", "HsmEd25519Key", "HsmRsaKey", "KeyReference"]

T = TypeVar("T")

_SCHEME = b"pkcs11:"
_UNABLE = {"AttributeError", "FunctionNotSupported", "KeyTypeInconsistent", "MechanismInvalid"}
_DIGEST_INFO = {
    # RFC 8017 9.2, note 1
    "sha1": bytes.fromhex("3021300906052b0e03021a05000414"),
    "sha256": bytes.fromhex("3031300d060960864801650304020105000420"),
    "sha384": bytes.fromhex("3041300d060960864801650304020205000430"),
    "sha512": bytes.fromhex("3051300d060960864801650304020305000440"),
}


@dataclass(frozen=True, slots=True)
class KeyReference:
    """Where a private key is: the token's label, and the key's own label and id."""

    token: str
    label: str
    id: bytes

    @staticmethod
    def is_one(kept: bytes) -> bool:
        """Whether what the store keeps of a key is a reference, not the sealed key itself."""
        return kept.startswith(_SCHEME)

    @classmethod
    def parse(cls, kept: bytes, name: str) -> "KeyReference":
        """Read what `to_bytes` wrote. Raises `HsmUnfit`, naming the key `name`."""
        parts: dict[bytes, bytes] = {}
        for part in kept.removeprefix(_SCHEME).split(b";"):
            attribute, _, value = part.partition(b"=")
            parts[attribute] = unquote_to_bytes(value)
        try:
            return cls(parts[b"token"].decode(), parts[b"object"].decode(), parts[b"id"])
        except (KeyError, UnicodeDecodeError) as exc:
            raise HsmUnfit(
                "hsm_key_missing", f"the reference of the key {name} can't be read", "restore a backup of the store"
            ) from exc

    def to_bytes(self) -> bytes:
        """The PKCS#11 URI."""
        parts = (("token", self.token.encode()), ("object", self.label.encode()), ("id", self.id))
        return _SCHEME + ";".join([*(f"{k}={quote_from_bytes(v, safe='')}" for k, v in parts), "type=private"]).encode()


class _HsmKey:
    """What both kinds of keys have: the way to their token, and nothing that could be taken out of it."""

    def __init__(self, hsm: Hsm, reference: KeyReference) -> None:
        self._hsm = hsm
        self._reference = reference

    def use(self, job: "Callable[[Any], T]", *, is_secret: bool = False) -> T:
        """Do something with the key in the token; `is_secret` and what it raises are those of `Hsm.run`."""
        label, key_id = self._reference.label, self._reference.id
        token = self._reference.token
        return self._hsm.run(token, lambda session: job(session.private_key(label, key_id)), is_secret=is_secret)

    def sign_raw(self, data: bytes, mechanism: "pkcs11.Mechanism") -> bytes:
        """What the mechanism makes of `data`. Raises `HsmUnfit`, `SignerUnavailable`."""
        try:
            return bytes(self.use(lambda key: key.sign(data, mechanism=mechanism)))
        except (RuntimeError, AttributeError) as exc:  # a key without CKA_SIGN has no such method
            if type(exc).__name__ in _UNABLE:
                raise HsmUnfit(
                    "hsm_mechanism",
                    f"the token {self._reference.token} can't sign by CKM_{mechanism.name}",
                    "'pkcs11-tool --list-mechanisms' shows what it can do",
                ) from exc
            what = str(exc) or type(exc).__name__
            raise SignerUnavailable(f"the HSM token {self._reference.token} did not sign ({what})") from exc

    def private_numbers(self) -> NoReturn:
        """Never."""
        raise TypeError("the key is in a HSM")

    def private_bytes(self, encoding: object, format: object, encryption_algorithm: object) -> NoReturn:  # noqa: A002, ARG002  # its name there
        """Never."""
        raise TypeError("the key is in a HSM")

    def __copy__(self) -> NoReturn:
        raise TypeError("the key is in a HSM")

    def __deepcopy__(self, memo: object) -> NoReturn:
        raise TypeError("the key is in a HSM")


class HsmRsaKey(_HsmKey, rsa.RSAPrivateKey):
    """An RSA key in a token."""

    def __init__(self, hsm: Hsm, reference: KeyReference, public_key: rsa.RSAPublicKey) -> None:
        super().__init__(hsm, reference)
        self._public_key = public_key
        self._oaep: set[tuple[str, str]] = set()

    def public_key(self) -> rsa.RSAPublicKey:
        """The key in the certificate."""
        return self._public_key

    @property
    def key_size(self) -> int:
        """Its bits."""
        return self._public_key.key_size

    def sign(
        self,
        data: Buffer,
        padding: padding.AsymmetricPadding,  # noqa: ARG002  # PKCS#1 v1.5 is all that is asked for
        algorithm: "asymmetric.Prehashed | hashes.HashAlgorithm | asymmetric.NoDigestInfo",
    ) -> bytes:
        """The PKCS#1 v1.5 signature over `data`. Raises `HsmUnfit`, `SignerUnavailable`."""
        from pkcs11 import Mechanism

        if not isinstance(algorithm, hashes.HashAlgorithm):
            raise TypeError("a hash is made here, not before")
        return self.sign_raw(_DIGEST_INFO[algorithm.name] + _digest(data, algorithm), Mechanism.RSA_PKCS)

    def decrypt(self, ciphertext: bytes, padding: padding.AsymmetricPadding) -> bytes:
        """What was encrypted. Raises ValueError, the same for whatever is wrong with it.

        UnsupportedAlgorithm for what the token can't do, `HsmUnfit`, `SignerUnavailable`.
        """
        if (oaep := _oaep_of(padding)) is not None and oaep not in self._oaep:
            # A matter of the token and the two hashes alone, known before: it tells nothing about the ciphertext.
            raise UnsupportedAlgorithm("the HSM does not decrypt by OAEP with these hashes")
        try:
            return self._decrypt(ciphertext, oaep)
        except (
            RuntimeError
        ) as exc:  # CKR_ENCRYPTED_DATA_INVALID, or whatever a token calls it: SoftHSM CKR_GENERAL_ERROR
            raise ValueError("decryption failed") from exc

    def can_decrypt(self, by: padding.AsymmetricPadding) -> bool:
        """Whether it opens what was encrypted with its public key. Raises `HsmUnfit`, `SignerUnavailable`."""
        probe = secrets.token_bytes(16)
        try:
            return self._decrypt(self._public_key.encrypt(probe, by), _oaep_of(by)) == probe
        except (RuntimeError, AttributeError):  # python-pkcs11 gives a key without CKA_DECRYPT no such method
            return False

    def learn_oaep(self) -> None:
        """Find out which hashes of OAEP the token knows: many know SHA-1 alone."""
        for digest in (hashes.SHA1(), hashes.SHA256()):  # noqa: S303  # OAEP needs no collision resistance
            for mask in (hashes.SHA1(), hashes.SHA256()):  # noqa: S303  # likewise
                by = padding.OAEP(padding.MGF1(mask), digest, None)
                if self.can_decrypt(by):
                    self._oaep.add((digest.name, mask.name))

    def _decrypt(self, ciphertext: bytes, oaep: tuple[str, str] | None) -> bytes:
        from pkcs11 import MGF, Mechanism

        if oaep is None:
            return bytes(self.use(lambda key: key.decrypt(ciphertext, mechanism=Mechanism.RSA_PKCS), is_secret=True))
        digests = {"sha1": Mechanism.SHA_1, "sha256": Mechanism.SHA256}
        masks = {"sha1": MGF.SHA1, "sha256": MGF.SHA256}
        parameters = (digests[oaep[0]], masks[oaep[1]], None)
        return bytes(
            self.use(
                lambda key: key.decrypt(ciphertext, mechanism=Mechanism.RSA_PKCS_OAEP, mechanism_param=parameters),
                is_secret=True,
            )
        )


class HsmEcKey(_HsmKey, ec.EllipticCurvePrivateKey):
    """A key on a NIST curve in a token."""

    def __init__(self, hsm: Hsm, reference: KeyReference, public_key: ec.EllipticCurvePublicKey) -> None:
        super().__init__(hsm, reference)
        self._public_key = public_key

    def public_key(self) -> ec.EllipticCurvePublicKey:
        """The key in the certificate."""
        return self._public_key

    @property
    def curve(self) -> ec.EllipticCurve:
        """Its curve."""
        return self._public_key.curve

    @property
    def key_size(self) -> int:
        """The bits of its curve."""
        return self._public_key.key_size

    def exchange(self, algorithm: ec.ECDH, peer_public_key: ec.EllipticCurvePublicKey) -> NoReturn:  # noqa: ARG002  # it signs
        """Never."""
        raise TypeError("the key signs, and does nothing else")

    def sign(self, data: Buffer, signature_algorithm: ec.EllipticCurveSignatureAlgorithm) -> bytes:
        """The ECDSA signature over `data`, DER. Raises `HsmUnfit`, `SignerUnavailable`."""
        from pkcs11 import Mechanism

        algorithm = signature_algorithm.algorithm
        if not isinstance(algorithm, hashes.HashAlgorithm):
            raise TypeError("a hash is made here, not before")
        digest = _digest(data, algorithm)[: (self.key_size + 7) // 8]  # the leftmost bits, for tokens that mind
        raw = self.sign_raw(digest, Mechanism.ECDSA)
        half = len(raw) // 2
        return asymmetric.encode_dss_signature(int.from_bytes(raw[:half], "big"), int.from_bytes(raw[half:], "big"))


class HsmEd25519Key(_HsmKey, ed25519.Ed25519PrivateKey):
    """An Ed25519 key in a token."""

    def __init__(self, hsm: Hsm, reference: KeyReference, public_key: ed25519.Ed25519PublicKey) -> None:
        super().__init__(hsm, reference)
        self._public_key = public_key

    def public_key(self) -> ed25519.Ed25519PublicKey:
        """The key in the certificate."""
        return self._public_key

    def private_bytes_raw(self) -> NoReturn:
        """Never."""
        raise TypeError("the key is in a HSM")

    def sign(self, data: Buffer) -> bytes:
        """The pure signature over `data` (RFC 8032). Raises `HsmUnfit`, `SignerUnavailable`."""
        from pkcs11 import Mechanism

        return self.sign_raw(bytes(data), Mechanism.EDDSA)


def _digest(data: Buffer, algorithm: hashes.HashAlgorithm) -> bytes:
    hasher = hashes.Hash(algorithm)
    hasher.update(data)
    return hasher.finalize()


def _oaep_of(by: padding.AsymmetricPadding) -> tuple[str, str] | None:
    """The two hashes of OAEP, None for PKCS#1 v1.5."""
    if not isinstance(by, padding.OAEP):
        return None
    return by.algorithm.name, by.mgf._algorithm.name  # MGF1 has no other way to ask
