"""EnvelopedData (RFC 5652 6): opened with the key that it names, and sealed to one certificate.

Opening fails in two ways. What anybody can see (a cipher that is not accepted, another recipient, an IV of the wrong
length) is told as it is. What depends on the decrypted key is told in one way only (RFC 3218): a key that can't be
unwrapped or has the wrong length is replaced by a random one, decryption goes on with that, and bad padding, garbage
and a wrong key all fail at the last step, with one error. So does good padding around anything but one ASN.1 SEQUENCE.
"""

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from enum import Enum
from typing import Protocol

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.decrepit.ciphers.algorithms import TripleDES
from cryptography.hazmat.primitives.asymmetric import padding, rsa
from cryptography.hazmat.primitives.ciphers import BlockCipherAlgorithm, algorithms, modes
from cryptography.hazmat.primitives.ciphers import Cipher as Machine
from cryptography.hazmat.primitives.padding import PKCS7

from ca_core import der
from ca_core.csr import MAX_DER
from scep_server import oids
from scep_server.algorithms import DIGESTS
from scep_server.cms import read_oaep
from scep_server.cms_values import Algorithm, Certificate, Enveloped, KeyTransport
from scep_server.errors import BadAlg, BadMessageCheck, BadRequest
from scep_server.seen import SeenKeys

__all__ = [
    "Cipher",
    "KeyUnwrapper",
    "Oaep",
    "RandomBytes",
    "Recipient",
    "cipher_of",
    "key_transport_of",
    "open_envelope",
    "seal_envelope",
]

MAX_ENCRYPTED = MAX_DER + 16  # of a CSR, and its padding; it also bounds how long decrypting takes
RandomBytes = Callable[[int], bytes]


class KeyUnwrapper(Protocol):
    """Holder of the RA's decryption key, as `ca_core.model.RaKey`."""

    async def unwrap(self, encrypted_key: bytes, algorithm: padding.AsymmetricPadding) -> bytes:
        """The content-encryption key; ValueError, or any bytes at all, when it can't be unwrapped.

        UnsupportedAlgorithm when nothing can be, by this algorithm.
        """
        ...


class Cipher(Enum):
    """The content encryption that is known here: OID, length of the key and of the block."""

    AES_128 = (oids.AES_128_CBC, 16, 16)
    AES_192 = (oids.AES_192_CBC, 24, 16)
    AES_256 = (oids.AES_256_CBC, 32, 16)
    TRIPLE_DES = (oids.DES_EDE3_CBC, 24, 8)
    DES = (oids.DES_CBC, 8, 8)

    def __init__(self, oid: str, key_length: int, block_length: int) -> None:
        self.oid = oid
        self.key_length = key_length
        self.block_length = block_length


@dataclass(frozen=True, slots=True)
class Oaep:
    """RSAES-OAEP with the OIDs of its two hashes; SHA-1 is its default, and harmless there."""

    digest: str = oids.SHA1
    mask_digest: str = oids.SHA1


@dataclass(frozen=True, slots=True)
class Recipient:
    """A certificate that clients may encrypt to, and the holder of its key.

    An RA certificate that was renewed with the same key is two of these.
    """

    certificate: Certificate
    unwrapper: KeyUnwrapper = field(repr=False)


def cipher_of(envelope: Enveloped) -> Cipher:
    """The cipher of an envelope; BadAlg for one that is not known here."""
    for cipher in Cipher:
        if cipher.oid == envelope.cipher.oid:
            return cipher
    raise BadAlg(
        "scep_cipher_unsupported", "The envelope's cipher is not AES-CBC or 3DES-CBC.", detail=envelope.cipher.oid
    )


def key_transport_of(recipient: KeyTransport) -> Oaep | None:
    """How the key was encrypted: OAEP, or None for PKCS#1 v1.5."""
    if recipient.algorithm.oid == oids.RSA_ENCRYPTION:
        return None
    if recipient.algorithm.oid != oids.RSAES_OAEP:
        raise BadAlg("scep_key_transport_unsupported", "The envelope's key is not encrypted with RSA.")
    try:
        oaep = Oaep(*read_oaep(recipient.algorithm.parameters))
    except ValueError as exc:
        raise BadAlg("scep_key_transport_unsupported", "The parameters of RSAES-OAEP can't be read.") from exc
    if not {oaep.digest, oaep.mask_digest} <= {oids.SHA1, oids.SHA256}:
        raise BadAlg("scep_key_transport_unsupported", "The hashes of RSAES-OAEP are not SHA-1 or SHA-256.")
    return oaep


async def open_envelope(
    envelope: Enveloped,
    recipients: Sequence[Recipient],
    *,
    read_des: bool = False,
    random: RandomBytes = os.urandom,
    seen: SeenKeys | None = None,
) -> bytes:
    """The messageData: one ASN.1 SEQUENCE, and nothing more is known of it.

    `seen` refuses a key that was there with another content, as what can't be decrypted is.
    """
    # (1) What anybody can see.
    cipher = cipher_of(envelope)
    if cipher is Cipher.DES and not read_des:
        raise BadAlg("scep_cipher_unsupported", "The envelope is encrypted with single DES, which is not read here.")
    if envelope.content_type != oids.DATA:
        # "contentType in encryptedContentInfo MUST be data ({pkcs-7 1})." -- RFC 8894 3.2.2
        raise BadRequest("scep_not_enveloped", "What the envelope holds is not of the type data.")
    if len(envelope.encrypted) > MAX_ENCRYPTED:  # enforces case 8
        raise BadRequest("scep_too_large", "The envelope holds more than any certificate request has.")
    iv = _iv(envelope.cipher, cipher)
    if not envelope.encrypted or len(envelope.encrypted) % cipher.block_length:
        raise _bad()
    sent, ours = _addressed(envelope, recipients)
    oaep = key_transport_of(sent)
    content = envelope.cipher.oid.encode() + iv + envelope.encrypted
    if seen is not None and not seen.admits(ours.certificate.spki, sent.encrypted_key, content):
        raise _bad()
    # (2) The key, or one in its place. Both are at hand before it shows which it will be.
    substitute = random(cipher.key_length)
    try:
        key = await ours.unwrapper.unwrap(sent.encrypted_key, _padding(oaep))
    except ValueError:
        key = substitute
    except UnsupportedAlgorithm as exc:  # of a HSM, whatever the encrypted key
        raise BadAlg(
            "scep_key_transport_unsupported", "The hashes of RSAES-OAEP are not available here.", detail=str(exc)
        ) from exc
    if not _is_key(key, cipher):
        key = substitute
    # (3) Decryption, and the one place to fail at.
    plain = _decrypt(cipher, key, iv, envelope.encrypted)
    if plain is None:
        raise _bad()
    return plain


def seal_envelope(
    message: bytes, to: Certificate, key: rsa.RSAPublicKey, cipher: Cipher, oaep: Oaep | None, random: RandomBytes
) -> bytes:
    """An EnvelopedData in its ContentInfo, for one recipient by issuer and serial number."""
    if cipher is Cipher.DES:
        raise ValueError("single DES is never written")
    content_key, iv = random(cipher.key_length), random(cipher.block_length)
    encryptor = Machine(_machine(cipher, content_key), modes.CBC(iv)).encryptor()
    padder = PKCS7(cipher.block_length * 8).padder()
    encrypted = encryptor.update(padder.update(message) + padder.finalize()) + encryptor.finalize()
    recipient = der.sequence(
        der.integer(0),
        der.sequence(to.name.issuer, to.name.serial),
        _write_key_transport(oaep),
        der.octets(key.encrypt(content_key, _padding(oaep))),
    )
    content = der.sequence(
        der.oid(oids.DATA),
        der.sequence(der.oid(cipher.oid), der.octets(iv)),
        der.tlv(0x80, encrypted),  # [0] IMPLICIT, in one piece: .NET and Go read nothing else
    )
    enveloped = der.sequence(der.integer(0), der.set_of([recipient]), content)
    return der.sequence(der.oid(oids.ENVELOPED_DATA), der.tlv(0xA0, enveloped))


def _bad() -> BadMessageCheck:
    return BadMessageCheck("scep_envelope_bad", "The envelope can't be decrypted.")


def _addressed(envelope: Enveloped, recipients: Sequence[Recipient]) -> tuple[KeyTransport, Recipient]:
    for sent in envelope.recipients:
        for ours in recipients:
            if ours.certificate.is_named(sent.name):
                return sent, ours
    raise BadMessageCheck("scep_envelope_not_for_us", "The envelope is not encrypted to a certificate of this RA.")


def _iv(algorithm: Algorithm, cipher: Cipher) -> bytes:
    header = bytes((0x04, cipher.block_length))
    if len(algorithm.parameters) != 2 + cipher.block_length or not algorithm.parameters.startswith(header):
        raise _bad()
    return algorithm.parameters[2:]


def _is_key(key: bytes, cipher: Cipher) -> bool:
    if len(key) != cipher.key_length:
        return False
    # Two keys that are equal undo each other, and 3DES is single DES under another name.
    return cipher is not Cipher.TRIPLE_DES or key[:8] != key[8:16] != key[16:]


def _machine(cipher: Cipher, key: bytes) -> BlockCipherAlgorithm:
    if cipher is Cipher.DES:
        return TripleDES(key * 3)
    return TripleDES(key) if cipher is Cipher.TRIPLE_DES else algorithms.AES(key)


def _decrypt(cipher: Cipher, key: bytes, iv: bytes, encrypted: bytes) -> bytes | None:
    """What was encrypted, None unless it is one SEQUENCE in good padding."""
    try:
        decryptor = Machine(_machine(cipher, key), modes.CBC(iv)).decryptor()
    except UnsupportedAlgorithm as exc:  # a crypto policy of the host, whatever the key
        raise BadAlg(
            "scep_cipher_unsupported", "The envelope's cipher is not available on this host.", detail=str(exc)
        ) from exc
    padded = decryptor.update(encrypted) + decryptor.finalize()
    unpadder = PKCS7(cipher.block_length * 8).unpadder()
    try:
        plain = unpadder.update(padded) + unpadder.finalize()
    except ValueError:
        return None
    return plain if _is_sequence(plain) else None


def _is_sequence(data: bytes) -> bool:
    """Whether one SEQUENCE fills it; what is in it the CSR's reader sees."""
    if len(data) < 2 or data[0] != 0x30:
        return False
    length, start = data[1], 2
    if length > 0x80:
        start += length & 0x7F
        length = int.from_bytes(data[2:start], "big")
    elif length == 0x80:
        return data.endswith(b"\0\0")
    return start + length == len(data)


def _padding(oaep: Oaep | None) -> padding.AsymmetricPadding:
    if oaep is None:
        return padding.PKCS1v15()
    return padding.OAEP(padding.MGF1(DIGESTS[oaep.mask_digest]), DIGESTS[oaep.digest], None)


def _write_key_transport(oaep: Oaep | None) -> bytes:
    if oaep is None:
        return der.sequence(der.oid(oids.RSA_ENCRYPTION), der.NULL)
    parameters = []
    if oaep.digest != oids.SHA1:  # DER leaves a default out
        parameters.append(der.tlv(0xA0, der.sequence(der.oid(oaep.digest), der.NULL)))
    if oaep.mask_digest != oids.SHA1:
        mask = der.sequence(der.oid(oids.MGF1), der.sequence(der.oid(oaep.mask_digest), der.NULL))
        parameters.append(der.tlv(0xA1, mask))
    return der.sequence(der.oid(oids.RSAES_OAEP), der.sequence(*parameters))
