"""SCEP over HTTP in bytes: requests for one device, and what a CertRep holds, read with nothing of enrolld's own."""

import hashlib
import urllib.request

from asn1crypto import cms
from cryptography import x509
from cryptography.hazmat.primitives import hashes, padding
from cryptography.hazmat.primitives.asymmetric import padding as rsa_padding
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from cryptography.x509.oid import AttributeOID, NameOID

from tests.scep_server.client import Envelope, Request, make_certificate, tlv

__all__ = ["enroll_message", "failed", "issued_in", "post", "ra_of", "succeeded", "transaction_of"]

_STATUS = bytes.fromhex("060a6086480186f8450109033103130130")[:-1]  # pkiStatus (RFC 8894 3.2.1.3), but for its digit


def transaction_of(key: rsa.RSAPrivateKey) -> bytes:
    """A transactionID as clients make it, from the key."""
    spki = key.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    return hashlib.sha256(spki).hexdigest().encode()


def enroll_message(
    ra: bytes,
    key: rsa.RSAPrivateKey,
    name: str,
    secret: str | None,
    *,
    signer: tuple[rsa.RSAPrivateKey, bytes] | None = None,
    message_type: int = 19,
    transaction: bytes | None = None,
) -> bytes:
    """A PKCSReq, or what `message_type` says, signed with the key itself or by `signer` (key, certificate)."""
    builder = x509.CertificateSigningRequestBuilder().subject_name(
        x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    )
    if secret is not None:
        builder = builder.add_attribute(AttributeOID.CHALLENGE_PASSWORD, secret.encode())
    csr = builder.sign(key, hashes.SHA256()).public_bytes(Encoding.DER)
    signing, certificate = signer or (key, make_certificate(key.public_key()))
    return Request(
        key=signing,
        signer=certificate,
        envelope=Envelope(message=csr, recipient=ra),
        message_type=tlv(0x13, str(message_type).encode()),
        transaction_id=tlv(0x13, transaction or transaction_of(key)),
    ).encode()


def post(port: int, message: bytes, path: str = "/scep") -> bytes:
    """The body of the answer to a PKIOperation."""
    asking = urllib.request.Request(f"http://127.0.0.1:{port}{path}?operation=PKIOperation", message, method="POST")
    with urllib.request.urlopen(asking, timeout=30) as answer:  # noqa: S310  # http, as written above
        body: bytes = answer.read()
    return body


def ra_of(port: int, path: str = "/scep") -> bytes:
    """The RA's certificate, DER, first in what GetCACert gives."""
    with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}?operation=GetCACert", timeout=30) as answer:
        bag = cms.ContentInfo.load(answer.read())["content"]["certificates"]
    found: bytes = bag[0].chosen.dump()
    return found


def succeeded(reply: bytes) -> bool:
    return _STATUS + b"0" in reply


def failed(reply: bytes) -> bool:
    return _STATUS + b"2" in reply


def told_in(reply: bytes) -> str:
    """What a FAILURE says of itself, as far as it can be read: its failInfoText ends with the request id."""
    return "".join(chr(byte) for byte in reply[-4096:] if 32 <= byte < 127).partition("request id ")[2][:9]


def issued_in(reply: bytes, key: rsa.RSAPrivateKey) -> x509.Certificate:
    """The certificate in a SUCCESS that is encrypted to the key with AES."""
    content = cms.ContentInfo.load(reply, strict=True)["content"]["encap_content_info"]["content"].native
    enveloped = cms.ContentInfo.load(content, strict=True)["content"]
    (recipient,) = enveloped["recipient_infos"]
    content_key = key.decrypt(recipient.chosen["encrypted_key"].native, rsa_padding.PKCS1v15())
    encrypted = enveloped["encrypted_content_info"]
    iv = encrypted["content_encryption_algorithm"]["parameters"].native
    decryptor = Cipher(algorithms.AES(content_key), modes.CBC(iv)).decryptor()
    padded = decryptor.update(encrypted["encrypted_content"].native) + decryptor.finalize()
    unpadder = padding.PKCS7(128).unpadder()
    (certificate,) = cms.ContentInfo.load(unpadder.update(padded) + unpadder.finalize())["content"]["certificates"]
    return x509.load_der_x509_certificate(certificate.chosen.dump())
