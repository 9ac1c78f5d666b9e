"""Who signs in the event loop, and who in a thread beside it."""

import asyncio
import time
from collections.abc import Callable

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, mldsa, rsa

from ca_core.authority.keys import SoftwareSigner, ThreadedSigner, software_signer
from ca_core.authority.sealing import PrivateKey
from tests.helpers.signatures import verify

KEYS: dict[str, tuple[Callable[[], PrivateKey], type]] = {
    "P-256": (lambda: ec.generate_private_key(ec.SECP256R1()), SoftwareSigner),
    "P-384": (lambda: ec.generate_private_key(ec.SECP384R1()), SoftwareSigner),
    "P-521": (lambda: ec.generate_private_key(ec.SECP521R1()), SoftwareSigner),
    "Ed25519": (ed25519.Ed25519PrivateKey.generate, SoftwareSigner),
    "ML-DSA-44": (mldsa.MLDSA44PrivateKey.generate, ThreadedSigner),
    "ML-DSA-87": (mldsa.MLDSA87PrivateKey.generate, ThreadedSigner),
    "RSA-2048": (lambda: rsa.generate_private_key(65537, 2048), SoftwareSigner),
    "RSA-3072": (lambda: rsa.generate_private_key(65537, 3072), ThreadedSigner),
    "RSA-4096": (lambda: rsa.generate_private_key(65537, 4096), ThreadedSigner),
}


@pytest.mark.parametrize("kind", KEYS)
async def test_a_key_that_takes_long_signs_in_a_thread_and_its_signature_is_as_good(kind: str) -> None:
    make, expected = KEYS[kind]
    signer = software_signer(make())
    assert type(signer) is expected
    signature = await signer.sign(b"data")
    verify(signer, signature, b"data")


async def test_the_loop_serves_others_while_a_slow_key_signs(monkeypatch: pytest.MonkeyPatch) -> None:
    """A builder whose signing sleeps, as a key behind a network does."""
    signer = ThreadedSigner(rsa.generate_private_key(65537, 2048))
    done: list[str] = []

    def slowly(*_: object) -> x509.Certificate:
        time.sleep(0.2)
        done.append("signed")
        raise ValueError("no certificate is needed here")

    monkeypatch.setattr(x509.CertificateBuilder, "sign", slowly)
    signing = asyncio.create_task(signer.sign_certificate(x509.CertificateBuilder()))
    for _ in range(5):
        await asyncio.sleep(0.001)
        done.append("served another")
    with pytest.raises(ValueError, match="no certificate"):
        await signing
    assert done == ["served another"] * 5 + ["signed"]
