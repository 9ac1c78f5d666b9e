"""PKCSReq messages for the benchmark, made before the clock starts: RSA-2048 for RA, issuer and each device."""

import hashlib
from collections.abc import Callable

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import AttributeOID, NameOID

from tests.scep_server.client import Envelope, Request, make_certificate, tlv

__all__ = ["pkcs_req"]


def pkcs_req(ra: bytes, name: str, secret: str, new_key: Callable[[], rsa.RSAPrivateKey]) -> bytes:
    """A PKCSReq in AES-128 and SHA-256 for a new key, signed with it, encrypted to the RA's certificate (DER)."""
    key = new_key()
    csr = (
        x509.CertificateSigningRequestBuilder()
        .subject_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)]))
        .add_attribute(AttributeOID.CHALLENGE_PASSWORD, secret.encode())
        .sign(key, hashes.SHA256())
        .public_bytes(Encoding.DER)
    )
    return Request(
        key=key,
        signer=make_certificate(key.public_key()),
        envelope=Envelope(message=csr, recipient=ra),
        transaction_id=tlv(0x13, hashlib.sha256(csr).hexdigest().encode()),
    ).encode()
