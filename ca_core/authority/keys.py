"""Holders of private keys: a CA's signer, and an RA's key (`model.RaKey`). Both may be slow, because a HSM is.

Import this from `authority.issuance` alone: whoever can name a signer can sign.
"""

import asyncio
import functools
from concurrent.futures import ThreadPoolExecutor
from typing import Protocol

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa

from ca_core.authority.sealing import PrivateKey

_QUICK_RSA_BITS = 2048

Digest = hashes.SHA256 | hashes.SHA384 | hashes.SHA512


class Signer(Protocol):
    """Holder of a CA's signing key."""

    backend: str
    """What holds the key, in a word for metrics."""

    @property
    def public_key(self) -> rsa.RSAPublicKey | ec.EllipticCurvePublicKey:
        """The key that verifies what this signer signs."""
        ...

    @property
    def digest(self) -> Digest:
        """The hash that fits the key's strength."""
        ...

    async def sign_certificate(self, builder: x509.CertificateBuilder) -> x509.Certificate:
        """Sign a finished builder."""
        ...

    async def sign(self, data: bytes) -> bytes:
        """The signature over `data` (ECDSA in DER, RSA in PKCS#1 v1.5), with `digest`."""
        ...


def digest_for(key: rsa.RSAPublicKey | ec.EllipticCurvePublicKey) -> Digest:
    """SHA-256, or the larger hash that a larger curve deserves."""
    if isinstance(key, ec.EllipticCurvePublicKey) and key.curve.key_size > 256:
        return hashes.SHA384() if key.curve.key_size == 384 else hashes.SHA512()
    return hashes.SHA256()


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
        if isinstance(self._key, rsa.RSAPrivateKey):
            return self._key.sign(data, padding.PKCS1v15(), self.digest)
        return self._key.sign(data, ec.ECDSA(self.digest))


class ThreadedSigner(SoftwareSigner):
    """A signing key that takes its time, used in a thread: large RSA, later an HSM.

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
    """The signer that fits the key: in a thread when it would hold up the event loop (RSA-3072: 2.6 ms)."""
    is_slow = isinstance(key, rsa.RSAPrivateKey) and key.key_size > _QUICK_RSA_BITS
    return ThreadedSigner(key) if is_slow else SoftwareSigner(key)


@functools.cache
def _threads() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(4, thread_name_prefix="enrolld-signer")


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
