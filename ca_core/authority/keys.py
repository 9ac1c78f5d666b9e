"""Holders of private keys: a CA's signer, and an RA's key (`model.RaKey`). Both may be slow, because a HSM is.

Import this from `authority.issuance` alone: whoever can name a signer can sign.
"""

import asyncio
import functools
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Protocol, TypeVar

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa

from ca_core.authority.hsm_private_keys import HsmRsaKey
from ca_core.authority.sealing import MlDsaPrivateKey, PrivateKey
from ca_core.errors import HsmUnfit, SignerUnavailable
from ca_core.public_key import PublicKey

T = TypeVar("T")
_QUICK_RSA_BITS = 2048
_HSM_SECONDS = 15.0

Digest = hashes.SHA256 | hashes.SHA384 | hashes.SHA512


class Signer(Protocol):
    """Holder of a CA's signing key."""

    backend: str
    """What holds the key, in a word for metrics."""

    @property
    def public_key(self) -> PublicKey:
        """The key that verifies what this signer signs."""
        ...

    @property
    def digest(self) -> Digest | None:
        """The hash that fits the key's strength; None for a key that hashes by itself (Ed25519, ML-DSA)."""
        ...

    async def sign_certificate(self, builder: x509.CertificateBuilder) -> x509.Certificate:
        """Sign a finished builder."""
        ...

    async def sign(self, data: bytes) -> bytes:
        """The signature over `data` (ECDSA in DER, RSA in PKCS#1 v1.5; Ed25519 and ML-DSA pure), with `digest`."""
        ...


def digest_for(key: PublicKey) -> Digest | None:
    """SHA-256, or the larger hash that a larger curve deserves; None for a key that hashes by itself."""
    if isinstance(key, rsa.RSAPublicKey):
        return hashes.SHA256()
    if isinstance(key, ec.EllipticCurvePublicKey):
        return _CURVE_DIGESTS.get(key.curve.key_size, hashes.SHA512())
    return None


_CURVE_DIGESTS: dict[int, Digest] = {256: hashes.SHA256(), 384: hashes.SHA384()}


class SoftwareSigner:
    """A signing key in memory. It signs at once: 0.03 ms with P-256, 0.4 ms with RSA-2048, less than a thread costs."""

    backend = "software"

    def __init__(self, key: PrivateKey) -> None:
        self._key = key
        self.public_key = key.public_key()
        self.digest = digest_for(self.public_key)

    async def sign_certificate(self, builder: x509.CertificateBuilder) -> x509.Certificate:
        """Sign a finished builder."""
        return builder.sign(self._key, self.digest)

    async def sign(self, data: bytes) -> bytes:
        """The signature over `data`."""
        return self.sign_now(data)

    def sign_now(self, data: bytes) -> bytes:
        """The signature over `data`, in whatever thread this is."""
        if self.digest is None:
            assert not isinstance(self._key, rsa.RSAPrivateKey | ec.EllipticCurvePrivateKey)  # noqa: S101  # by digest_for
            return self._key.sign(data)
        if isinstance(self._key, rsa.RSAPrivateKey):
            return self._key.sign(data, padding.PKCS1v15(), self.digest)
        assert isinstance(self._key, ec.EllipticCurvePrivateKey)  # noqa: S101  # likewise
        return self._key.sign(data, ec.ECDSA(self.digest))


class ThreadedSigner(SoftwareSigner):
    """A signing key that takes its time, used in a thread: large RSA, ML-DSA.

    The event loop serves others meanwhile; OpenSSL signs without the interpreter's lock. A few sign at a time, and how
    many wait is bounded before, by the gate.
    """

    async def sign_certificate(self, builder: x509.CertificateBuilder) -> x509.Certificate:
        """Sign a finished builder."""
        return await asyncio.get_running_loop().run_in_executor(_threads(), builder.sign, self._key, self.digest)

    async def sign(self, data: bytes) -> bytes:
        """The signature over `data`."""
        return await asyncio.get_running_loop().run_in_executor(_threads(), self.sign_now, data)


def software_signer(key: PrivateKey) -> Signer:
    """The signer that fits the key: in a thread when it would hold up the event loop (RSA-3072 2.6 ms, ML-DSA 1.5)."""
    is_large = isinstance(key, rsa.RSAPrivateKey) and key.key_size > _QUICK_RSA_BITS
    return ThreadedSigner(key) if is_large or isinstance(key, MlDsaPrivateKey) else SoftwareSigner(key)


class HsmSigner(SoftwareSigner):
    """A signing key in a HSM, proven before. Raises `SignerUnavailable` when it can't sign, for whatever reason."""

    backend = "hsm"

    async def sign_certificate(self, builder: x509.CertificateBuilder) -> x509.Certificate:
        """Sign a finished builder."""
        return await in_hsm(functools.partial(builder.sign, self._key, self.digest))

    async def sign(self, data: bytes) -> bytes:
        """The signature over `data`."""
        return await in_hsm(functools.partial(self.sign_now, data))


async def in_hsm(job: Callable[[], T]) -> T:
    """Do something with a HSM in a thread of its own kind: one that hangs holds up no other key.

    Raises `SignerUnavailable`, also when what was sound at the start is not any more.
    """
    try:
        async with asyncio.timeout(_HSM_SECONDS):
            return await asyncio.get_running_loop().run_in_executor(_hsm_threads(), job)
    except TimeoutError as exc:
        raise SignerUnavailable("the HSM does not answer") from exc
    except HsmUnfit as exc:
        raise SignerUnavailable(str(exc)) from exc


@functools.cache
def _threads() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(4, thread_name_prefix="enrolld-signer")


@functools.cache
def _hsm_threads() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(8, thread_name_prefix="enrolld-hsm")


class SoftwareRaKey:
    """An RA's key in memory."""

    def __init__(self, key: rsa.RSAPrivateKey) -> None:
        self._key = key

    async def unwrap(self, encrypted_key: bytes, algorithm: padding.AsymmetricPadding) -> bytes:
        """The content-encryption key. OpenSSL rejects bad PKCS#1 v1.5 implicitly: random bytes, no error."""
        return self._key.decrypt(encrypted_key, algorithm)

    async def sign(self, data: bytes, digest: hashes.HashAlgorithm) -> bytes:
        """The PKCS#1 v1.5 signature over `data`."""
        return self._key.sign(data, padding.PKCS1v15(), digest)


class HsmRaKey:
    """An RA's key in a HSM, proven before."""

    def __init__(self, key: HsmRsaKey) -> None:
        self._key = key

    async def unwrap(self, encrypted_key: bytes, algorithm: padding.AsymmetricPadding) -> bytes:
        """The content-encryption key. ValueError for whatever is wrong with it: a HSM does not reject implicitly."""
        return await in_hsm(functools.partial(self._key.decrypt, encrypted_key, algorithm))

    async def sign(self, data: bytes, digest: hashes.HashAlgorithm) -> bytes:
        """The PKCS#1 v1.5 signature over `data`."""
        return await in_hsm(functools.partial(self._key.sign, data, padding.PKCS1v15(), digest))
