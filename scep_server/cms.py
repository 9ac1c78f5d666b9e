"""The ASN.1 of CMS (RFC 5652), as far as SCEP needs it: bytes in, values out, ValueError for anything else.

The one module that uses `cryptography.hazmat.asn1`, whose interface is not stable: 18 us for a message, where
asn1crypto takes 227. It reads DER; what is not DER goes through `ber.to_der` first, so that there is one reader and
nothing that two readers could see differently. A SET OF is read in any order, since clients seldom sort theirs.
"""

from collections.abc import Callable
from functools import lru_cache
from hashlib import sha1
from typing import Annotated, TypeVar

from cryptography.hazmat import asn1
from cryptography.x509 import ObjectIdentifier

from ca_core import der
from scep_server import oids
from scep_server.ber import to_der
from scep_server.cms_values import (
    Algorithm,
    Attribute,
    Certificate,
    Enveloped,
    IssuerAndSerial,
    KeyTransport,
    PssParameters,
    Signed,
    Signer,
    SignerId,
)

__all__ = ["read_certificate", "read_enveloped", "read_oaep", "read_pss", "read_signed"]

MAX_CERTIFICATES = 32
MAX_RECIPIENTS = 16
MAX_ATTRIBUTES = 64


def read_signed(data: bytes) -> Signed:
    """The SignedData in a ContentInfo, DER or BER."""
    return _der_or_ber(_read_signed, data)


def read_enveloped(data: bytes) -> Enveloped:
    """The EnvelopedData in a ContentInfo, DER or BER."""
    return _der_or_ber(_read_enveloped, data)


def read_certificate(data: bytes) -> Certificate:
    """An X.509 certificate in DER."""
    read = asn1.decode_der(_Certificate, data).tbs
    spki = _whole(read.spki)
    identifier = next(
        (
            asn1.decode_der(bytes, bytes(parts[-1].data))
            for parts in read.extensions or []
            if parts and _whole(parts[0]) == der.oid(oids.SUBJECT_KEY_IDENTIFIER)
        ),
        None,
    )
    if identifier is None:
        # "(1) The keyIdentifier is composed of the 160-bit SHA-1 hash of the value of the BIT STRING
        # subjectPublicKey" -- RFC 5280 4.2.1.2: what a client names that gave its certificate none.
        bits = asn1.decode_der(_PublicKeyInfo, spki).key
        identifier = sha1(bits.as_bytes(), usedforsecurity=False).digest()
    name = IssuerAndSerial(_whole(read.issuer), _whole(read.serial))
    return Certificate(data, name, _whole(read.subject), identifier, spki)


def read_pss(parameters: bytes) -> PssParameters:
    """The parameters of RSASSA-PSS; ValueError for a mask that is not MGF1, or another trailer than 1."""
    read = asn1.decode_der(_PssParameters, parameters)
    if read.trailer not in (None, 1):
        raise ValueError("a trailer that nobody uses")
    salt_length = 20 if read.salt_length is None else read.salt_length
    if not 0 <= salt_length <= 512:
        raise ValueError("a salt of a length that no key has room for")
    return PssParameters(_digest_or_sha1(read.digest), _mask_digest(read.mask), salt_length)


def read_oaep(parameters: bytes) -> tuple[str, str]:
    """The digest and the mask's digest of RSAES-OAEP (RFC 8017 A.2.1); ValueError for a label, or another mask."""
    read = asn1.decode_der(_OaepParameters, parameters or der.sequence())
    if read.label is not None:
        label = _algorithm(read.label)
        if label != Algorithm(oids.P_SPECIFIED, der.octets(b"")):
            raise ValueError("a label, which nobody uses")
    return _digest_or_sha1(read.digest), _mask_digest(read.mask)


# --- the types -------------------------------------------------------------------------------------------------------
# An AlgorithmIdentifier is a list of one or two elements, because an optional TLV can't be declared; likewise a SET OF
# is a TLV, because a declared one must be sorted.


@asn1.sequence
class _ContentInfo:
    kind: ObjectIdentifier
    content: Annotated[asn1.TLV, asn1.Explicit(0)]


@asn1.sequence
class _EncapsulatedContentInfo:
    kind: ObjectIdentifier
    content: Annotated[bytes | None, asn1.Explicit(0)]


@asn1.sequence
class _SignedData:
    version: int
    digests: asn1.TLV
    encapsulated: _EncapsulatedContentInfo
    certificates: Annotated[list[asn1.TLV] | None, asn1.Implicit(0)]
    crls: Annotated[list[asn1.TLV] | None, asn1.Implicit(1)]
    signers: asn1.TLV


@asn1.sequence
class _SignerInfo:
    version: int
    name: asn1.TLV
    digest: list[asn1.TLV]
    attributes: Annotated[list[asn1.TLV] | None, asn1.Implicit(0)]
    signature_algorithm: list[asn1.TLV]
    signature: bytes
    unsigned: Annotated[list[asn1.TLV] | None, asn1.Implicit(1)]


@asn1.sequence
class _Attribute:
    kind: ObjectIdentifier
    values: asn1.TLV


@asn1.sequence
class _IssuerAndSerial:
    issuer: asn1.TLV
    serial: asn1.TLV


@asn1.sequence
class _EncryptedContentInfo:
    kind: ObjectIdentifier
    cipher: list[asn1.TLV]
    content: asn1.TLV


@asn1.sequence
class _EnvelopedData:
    version: int
    originator: Annotated[list[asn1.TLV] | None, asn1.Implicit(0)]
    recipients: asn1.TLV
    encrypted: _EncryptedContentInfo
    unprotected: Annotated[list[asn1.TLV] | None, asn1.Implicit(1)]


@asn1.sequence
class _KeyTransport:
    version: int
    name: asn1.TLV
    algorithm: list[asn1.TLV]
    encrypted_key: bytes


@asn1.sequence
class _TbsCertificate:
    version: Annotated[int | None, asn1.Explicit(0)]
    serial: asn1.TLV
    algorithm: list[asn1.TLV]
    issuer: asn1.TLV
    validity: asn1.TLV
    subject: asn1.TLV
    spki: asn1.TLV
    issuer_id: Annotated[asn1.BitString | None, asn1.Implicit(1)]
    subject_id: Annotated[asn1.BitString | None, asn1.Implicit(2)]
    extensions: Annotated[list[list[asn1.TLV]] | None, asn1.Explicit(3)]


@asn1.sequence
class _Certificate:
    tbs: _TbsCertificate
    algorithm: list[asn1.TLV]
    signature: asn1.TLV


@asn1.sequence
class _PublicKeyInfo:
    algorithm: list[asn1.TLV]
    key: asn1.BitString


@asn1.sequence
class _PssParameters:
    digest: Annotated[list[asn1.TLV] | None, asn1.Explicit(0)]
    mask: Annotated[list[asn1.TLV] | None, asn1.Explicit(1)]
    salt_length: Annotated[int | None, asn1.Explicit(2)]
    trailer: Annotated[int | None, asn1.Explicit(3)]


@asn1.sequence
class _OaepParameters:
    digest: Annotated[list[asn1.TLV] | None, asn1.Explicit(0)]
    mask: Annotated[list[asn1.TLV] | None, asn1.Explicit(1)]
    label: Annotated[list[asn1.TLV] | None, asn1.Explicit(2)]


@asn1.sequence
class _Items:
    items: list[asn1.TLV]


# --- reading ---------------------------------------------------------------------------------------------------------

_T = TypeVar("_T")
_INTEGER, _OCTET_STRING, _OID, _SEQUENCE, _SET, _CONTEXT_0 = 0x02, 0x04, 0x06, 0x30, 0x31, 0x80


def _der_or_ber(read: Callable[[bytes], _T], data: bytes) -> _T:
    try:
        return read(data)
    except ValueError:
        return read(to_der(data))


def _content(data: bytes, kind: str) -> bytes:
    outer = asn1.decode_der(_ContentInfo, data)
    if outer.kind.dotted_string != kind:
        raise ValueError("a content of another type")
    return _whole(outer.content)


def _read_signed(data: bytes) -> Signed:
    read = asn1.decode_der(_SignedData, _content(data, oids.SIGNED_DATA))
    bag = read.certificates or []
    if len(bag) > MAX_CERTIFICATES:
        raise ValueError("too many certificates")
    return Signed(
        content_type=read.encapsulated.kind.dotted_string,
        content=read.encapsulated.content,
        certificates=tuple(_whole(item) for item in bag if item.tag_bytes[0] == _SEQUENCE),
        signers=tuple(_signer(_whole(item)) for item in _members(read.signers, 2)),
    )


def _signer(data: bytes) -> Signer:
    read = asn1.decode_der(_SignerInfo, data)
    attributes = read.attributes
    if attributes is not None and len(attributes) > MAX_ATTRIBUTES:
        raise ValueError("too many attributes")
    return Signer(
        name=_name(read.name),
        digest=_algorithm(read.digest),
        attributes=None if attributes is None else tuple(_attribute(_whole(item)) for item in attributes),
        signature_algorithm=_algorithm(read.signature_algorithm),
        signature=read.signature,
    )


def _attribute(data: bytes) -> Attribute:
    read = asn1.decode_der(_Attribute, data)
    values = tuple((item.tag_bytes[0], bytes(item.data)) for item in _members(read.values, MAX_ATTRIBUTES))
    return Attribute(read.kind.dotted_string, values, data)


def _read_enveloped(data: bytes) -> Enveloped:
    read = asn1.decode_der(_EnvelopedData, _content(data, oids.ENVELOPED_DATA))
    content = read.encrypted.content
    encrypted = bytes(content.data)
    if content.tag_bytes[0] == _CONTEXT_0 | 0x20:  # in pieces, which only this type tells from an EXPLICIT [0]
        pieces = _items(encrypted)
        if any(piece.tag_bytes[0] != _OCTET_STRING for piece in pieces):
            raise ValueError("an encrypted content of what are not its pieces")
        encrypted = b"".join(bytes(piece.data) for piece in pieces)
    elif content.tag_bytes[0] != _CONTEXT_0:
        raise ValueError("no encrypted content")
    return Enveloped(
        recipients=tuple(
            _key_transport(_whole(item))
            for item in _members(read.recipients, MAX_RECIPIENTS)
            if item.tag_bytes[0] == _SEQUENCE
        ),
        content_type=read.encrypted.kind.dotted_string,
        cipher=_algorithm(read.encrypted.cipher),
        encrypted=encrypted,
    )


def _key_transport(data: bytes) -> KeyTransport:
    read = asn1.decode_der(_KeyTransport, data)
    return KeyTransport(_name(read.name), _algorithm(read.algorithm), read.encrypted_key)


def _name(element: asn1.TLV) -> SignerId:
    if element.tag_bytes[0] == _CONTEXT_0:
        return bytes(element.data)
    read = asn1.decode_der(_IssuerAndSerial, _whole(element))
    if read.issuer.tag_bytes[0] != _SEQUENCE or read.serial.tag_bytes[0] != _INTEGER:
        raise ValueError("not an issuer and a serial number")
    return IssuerAndSerial(_whole(read.issuer), _whole(read.serial))


def _algorithm(parts: list[asn1.TLV]) -> Algorithm:
    if not 1 <= len(parts) <= 2:
        raise ValueError("not an AlgorithmIdentifier")
    return Algorithm(_dotted(_whole(parts[0])), _whole(parts[1]) if len(parts) == 2 else b"")


@lru_cache(maxsize=256)
def _dotted(data: bytes) -> str:
    return asn1.decode_der(ObjectIdentifier, data).dotted_string


def _digest_or_sha1(parts: list[asn1.TLV] | None) -> str:
    return oids.SHA1 if parts is None else _algorithm(parts).oid


def _mask_digest(parts: list[asn1.TLV] | None) -> str:
    if parts is None:
        return oids.SHA1
    mask = _algorithm(parts)
    if mask.oid != oids.MGF1:
        raise ValueError("a mask that is not MGF1")
    return _algorithm(_items(mask.parameters, whole=True)).oid


def _members(element: asn1.TLV, most: int) -> list[asn1.TLV]:
    """The members of a SET OF, in the order sent."""
    if element.tag_bytes[0] != _SET:
        raise ValueError("not a SET")
    members = _items(bytes(element.data))
    if len(members) > most:
        raise ValueError("too many members")
    return members


def _items(content: bytes, *, whole: bool = False) -> list[asn1.TLV]:
    """The elements that fill `content`, or with `whole` the SEQUENCE that it is."""
    return asn1.decode_der(_Items, der.sequence(content if whole else der.sequence(content))).items


def _whole(element: asn1.TLV) -> bytes:
    """The element as it was: DER has one way to write its length."""
    return der.tlv(element.tag_bytes[0], bytes(element.data))
