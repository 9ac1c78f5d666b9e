"""A SCEP client whose every part can be bent: made of bytes, and of nothing that the codec under test is made of."""

import datetime as dt
import hashlib
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import lru_cache

from asn1crypto import cms as a_cms
from asn1crypto import core as a_core
from asn1crypto import x509 as a_x509
from cryptography import x509
from cryptography.hazmat.decrepit.ciphers.algorithms import TripleDES
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes

NOW = dt.datetime(2026, 11, 22, 12, 0, tzinfo=dt.UTC)
DATA, SIGNED, ENVELOPED = (f"1.2.840.113549.1.7.{n}" for n in (1, 2, 3))
HASH_OIDS = {"md5": "1.2.840.113549.2.5", "sha1": "1.3.14.3.2.26", "sha224": "2.16.840.1.101.3.4.2.4",
             "sha256": "2.16.840.1.101.3.4.2.1", "sha384": "2.16.840.1.101.3.4.2.2",
             "sha512": "2.16.840.1.101.3.4.2.3"}  # fmt: skip
HASHES: dict[str, hashes.HashAlgorithm] = {
    "md5": hashes.MD5(),  # noqa: S303  # sent, to be refused
    "sha1": hashes.SHA1(),  # noqa: S303
    "sha224": hashes.SHA224(),
    "sha256": hashes.SHA256(),
    "sha384": hashes.SHA384(),
    "sha512": hashes.SHA512(),
}
SHA_WITH_RSA = {"md5": 4, "sha1": 5, "sha224": 14, "sha256": 11, "sha384": 12, "sha512": 13}
ECDSA = {"sha1": "1.2.840.10045.4.1", "sha256": "1.2.840.10045.4.3.2", "sha384": "1.2.840.10045.4.3.3"}
RSA_ENCRYPTION = "1.2.840.113549.1.1.1"
# OID, length of the key, of the block
CIPHERS = {"aes128": ("2.16.840.1.101.3.4.1.2", 16, 16), "aes192": ("2.16.840.1.101.3.4.1.22", 24, 16),
           "aes256": ("2.16.840.1.101.3.4.1.42", 32, 16), "3des": ("1.2.840.113549.3.7", 24, 8),
           "des": ("1.3.14.3.2.7", 8, 8)}  # fmt: skip
MESSAGE_TYPE, SENDER_NONCE, TRANSACTION_ID = (f"2.16.840.1.113733.1.9.{n}" for n in (2, 5, 7))
CONTENT_TYPE, MESSAGE_DIGEST, SIGNING_TIME, CHALLENGE = (f"1.2.840.113549.1.9.{n}" for n in (3, 4, 5, 7))
CSR = bytes.fromhex("3003020100")  # what is in the envelope is not the codec's matter, so long as it is a SEQUENCE


def tlv(tag: int, *parts: bytes) -> bytes:
    content = b"".join(parts)
    if len(content) < 0x80:
        return bytes((tag, len(content))) + content
    size = len(content).to_bytes((len(content).bit_length() + 7) // 8, "big")
    return bytes((tag, 0x80 | len(size))) + size + content


def seq(*parts: bytes) -> bytes:
    return tlv(0x30, *parts)


def oid(dotted: str) -> bytes:
    return bytes(a_core.ObjectIdentifier(dotted).dump())


def algorithm(dotted: str, parameters: bytes = b"\x05\x00") -> bytes:
    return seq(oid(dotted), parameters)


def attribute(dotted: str, *values: bytes) -> bytes:
    return seq(oid(dotted), tlv(0x31, *values))


def content_info(dotted: str, content: bytes) -> bytes:
    return seq(oid(dotted), tlv(0xA0, content))


@lru_cache(maxsize=32)
def rsa_key(label: str = "device", bits: int = 2048) -> rsa.RSAPrivateKey:
    del label  # one key for each
    return rsa.generate_private_key(65537, bits)


@lru_cache(maxsize=8)
def ec_key(curve: str = "secp256r1") -> ec.EllipticCurvePrivateKey:
    return ec.generate_private_key({"secp256r1": ec.SECP256R1(), "secp256k1": ec.SECP256K1()}[curve])


Key = rsa.RSAPrivateKey | ec.EllipticCurvePrivateKey


def make_certificate(
    public_key: rsa.RSAPublicKey | ec.EllipticCurvePublicKey,
    *,
    common_name: str = "SCEP SIGNER",
    serial: int = 1,
    ski: bytes | None = b"\x07" * 20,
) -> bytes:
    """One whose signature is by some other key: the codec does not look at it."""
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, common_name)])
    builder = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .serial_number(serial)
        .public_key(public_key)
        .not_valid_before(NOW - dt.timedelta(days=1))
        .not_valid_after(NOW + dt.timedelta(days=3650))
    )
    if ski is not None:
        builder = builder.add_extension(x509.SubjectKeyIdentifier(ski), critical=False)
    return builder.sign(ec_key(), hashes.SHA256()).public_bytes(serialization.Encoding.DER)


def issuer_and_serial(certificate: bytes) -> bytes:
    read = a_x509.Certificate.load(certificate)["tbs_certificate"]
    return seq(read["issuer"].dump(), read["serial_number"].dump())


def ra_key() -> rsa.RSAPrivateKey:
    return rsa_key("ra")


@lru_cache(maxsize=1)
def ra_certificate() -> bytes:
    """Signed with its own key, as `openssl cms -verify -CAfile` wants it."""
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "RA")])
    return (
        x509.CertificateBuilder().subject_name(name).issuer_name(name).serial_number(2**100).public_key(
            ra_key().public_key()).not_valid_before(NOW - dt.timedelta(days=3650)).not_valid_after(
            NOW + dt.timedelta(days=3650))
        .add_extension(x509.SubjectKeyIdentifier(b"\x08" * 20), critical=False)
        .sign(ra_key(), hashes.SHA256()).public_bytes(serialization.Encoding.DER)
    )  # fmt: skip


@dataclass(frozen=True)
class Envelope:
    """An EnvelopedData to be. `key` and `padded` take the place of what is honest."""

    cipher: str = "aes128"
    message: bytes = CSR
    ski: bytes | None = None
    recipient: bytes = field(default_factory=ra_certificate)
    oaep: tuple[str, str] | None = None
    key: bytes | None = None
    encrypted_key: bytes | None = None
    padded: bytes | None = None
    encrypted: bytes | None = None
    iv: bytes | None = None
    cipher_oid: str | None = None
    recipients: int = 1
    content_type: str = DATA

    def encode(self) -> bytes:
        dotted, key_length, block = CIPHERS[self.cipher]
        key = os.urandom(key_length) if self.key is None else self.key
        iv = os.urandom(block) if self.iv is None else self.iv
        pad = block - len(self.message) % block
        padded = self.message + bytes([pad]) * pad if self.padded is None else self.padded
        encrypted = self.encrypted
        if encrypted is None:
            real = key if len(key) == key_length else b"x" * key_length
            machine = {"des": lambda: TripleDES(real * 3), "3des": lambda: TripleDES(real)}.get(
                self.cipher, lambda: algorithms.AES(real)
            )
            encryptor = Cipher(machine(), modes.CBC(iv[:block].ljust(block, b"\0"))).encryptor()
            encrypted = encryptor.update(padded) + encryptor.finalize()
        transport, rsa_padding = algorithm(RSA_ENCRYPTION), padding.PKCS1v15()
        if self.oaep is not None:
            digest, mask = self.oaep
            parameters = [] if digest == "sha1" else [tlv(0xA0, algorithm(HASH_OIDS[digest]))]
            if mask != "sha1":
                parameters.append(tlv(0xA1, algorithm("1.2.840.113549.1.1.8", algorithm(HASH_OIDS[mask]))))
            transport = algorithm("1.2.840.113549.1.1.7", seq(*parameters))
            rsa_padding = padding.OAEP(padding.MGF1(HASHES[mask]), HASHES[digest], None)  # type: ignore[assignment]
        public_key = x509.load_der_x509_certificate(self.recipient).public_key()
        assert isinstance(public_key, rsa.RSAPublicKey)
        sealed = public_key.encrypt(key, rsa_padding) if self.encrypted_key is None else self.encrypted_key
        name = issuer_and_serial(self.recipient) if self.ski is None else tlv(0x80, self.ski)
        recipient = seq(tlv(2, b"\0" if self.ski is None else b"\2"), name, transport, tlv(4, sealed))
        content = seq(oid(self.content_type), seq(oid(self.cipher_oid or dotted), tlv(4, iv)), tlv(0x80, encrypted))
        version = tlv(2, b"\0" if self.ski is None else b"\2")
        return content_info(ENVELOPED, seq(version, tlv(0x31, *[recipient] * self.recipients), content))


@dataclass(frozen=True)
class Request:
    """A pkiMessage to be. Whatever is not None takes the place of what is honest."""

    key: Key = field(default_factory=rsa_key)
    signer: bytes | None = None
    certificates: Sequence[bytes] | None = None
    content: bytes | None = None
    no_content: bool = False
    envelope: Envelope = field(default_factory=Envelope)
    digest: str = "sha256"
    signature_oid: str = RSA_ENCRYPTION
    signature_parameters: bytes = b"\x05\x00"
    pss: bool = False
    ski: bytes | None = None
    message_type: bytes | None = tlv(0x13, b"19")
    transaction_id: bytes | None = tlv(0x13, b"5C3A")
    nonce: bytes | None = tlv(0x04, b"n" * 16)
    content_type: str = DATA
    signed_content_type: str | None = DATA
    message_digest: bytes | None = None
    no_message_digest: bool = False
    extra: Sequence[bytes] = ()
    unsorted: bool = False
    no_attributes: bool = False
    sign_content: bool = False
    sign_as: str = "sent"
    signers: int = 1
    signature: bytes | None = None

    def attributes(self, content: bytes) -> list[bytes]:
        made = [*self.extra]
        if self.signed_content_type is not None:
            made.append(attribute(CONTENT_TYPE, oid(self.signed_content_type)))
        if not self.no_message_digest:
            real = hashlib.new(self.digest, content).digest()
            made.append(attribute(MESSAGE_DIGEST, tlv(4, real if self.message_digest is None else self.message_digest)))
        for dotted, value in (
            (TRANSACTION_ID, self.transaction_id), (MESSAGE_TYPE, self.message_type), (SENDER_NONCE, self.nonce)
        ):  # fmt: skip
            if value is not None:
                made.append(attribute(dotted, value))
        made.sort(reverse=self.unsorted)
        return made

    def signed_form(self, attributes: list[bytes]) -> bytes:
        if self.sign_as == "sorted":
            return tlv(0x31, *sorted(attributes))
        return tlv(0xA0 if self.sign_as == "tagged" else 0x31, *attributes)

    def sign(self, data: bytes) -> bytes:
        if self.signature is not None:
            return self.signature
        digest = HASHES[self.digest]
        if isinstance(self.key, ec.EllipticCurvePrivateKey):
            return self.key.sign(data, ec.ECDSA(digest))
        if self.pss:
            return self.key.sign(data, padding.PSS(padding.MGF1(digest), digest.digest_size), digest)
        return self.key.sign(data, padding.PKCS1v15(), digest)

    def encode(self) -> bytes:
        certificate = make_certificate(self.key.public_key()) if self.signer is None else self.signer
        content = self.envelope.encode() if self.content is None else self.content
        attributes = self.attributes(content)
        name = issuer_and_serial(certificate) if self.ski is None else tlv(0x80, self.ski)
        signer_info = seq(
            tlv(2, b"\1" if self.ski is None else b"\3"),
            name,
            algorithm(HASH_OIDS[self.digest]),
            b"" if self.no_attributes else tlv(0xA0, *attributes),
            algorithm(self.signature_oid, self.signature_parameters),
            tlv(4, self.sign(content if self.sign_content else self.signed_form(attributes))),
        )
        bag = [certificate] if self.certificates is None else self.certificates
        return content_info(
            SIGNED,
            seq(
                tlv(2, b"\1"),
                tlv(0x31, algorithm(HASH_OIDS[self.digest])),
                seq(oid(self.content_type), b"" if self.no_content else tlv(0xA0, tlv(4, content))),
                tlv(0xA0, *bag),
                tlv(0x31, *[signer_info] * self.signers),
            ),
        )


def pss_parameters(digest: str, salt: int, mask: str | None = None) -> bytes:
    hashed = algorithm(HASH_OIDS[digest])
    masked = algorithm("1.2.840.113549.1.1.8", algorithm(HASH_OIDS[mask or digest]))
    return seq(tlv(0xA0, hashed), tlv(0xA1, masked), tlv(0xA2, tlv(2, bytes([salt]))))


def to_ber(der: bytes, piece: int = 1000) -> bytes:
    """Every constructed element with an indefinite length, every OCTET STRING in pieces."""
    out, position = b"", 0
    while position < len(der):
        tag, length, start = der[position], der[position + 1], position + 2
        if length >= 0x80:
            start += length & 0x7F
            length = int.from_bytes(der[position + 2 : start], "big")
        content, position = der[start : start + length], start + length
        if tag & 0x20:
            out += bytes((tag, 0x80)) + to_ber(content, piece) + b"\0\0"
        elif tag == 0x04:
            pieces = (tlv(4, content[at : at + piece]) for at in range(0, len(content), piece))
            out += b"\x24\x80" + b"".join(pieces) + b"\0\0"
        else:
            out += tlv(tag, content)
    return out


def attributes_of(reply: bytes) -> dict[str, object]:
    """The signed attributes of a message, as asn1crypto reads them: OID to the one value."""
    signer = a_cms.ContentInfo.load(reply, strict=True)["content"]["signer_infos"][0]
    found: dict[str, object] = {}
    for each in signer["signed_attrs"]:
        values = a_core.SetOf.load(each["values"].dump(), spec=a_core.Any)
        assert len(values) == 1
        found[each["type"].dotted] = values[0].parse().native
    return found
