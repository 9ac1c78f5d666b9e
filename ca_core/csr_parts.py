"""Where the parts of a PKCS#10 request lie in its DER, and what its attributes hold (RFC 2986 4.1).

Read from the bytes as they were sent, which is what a signature covers and what tells one attribute from two.
"""

from dataclasses import dataclass
from typing import NoReturn

from ca_core.der import sequence, tlv
from ca_core.errors import MalformedRequest

__all__ = [
    "Attributes",
    "Parts",
    "element",
    "elements",
    "find_parts",
    "has_more",
    "read_attributes",
    "without_secrets",
]

MAX_ATTRIBUTE_VALUE = 255  # RFC 2985 pkcs-9-ub-challengePassword, RFC 7894 ub-est-identity-linking


@dataclass(frozen=True, slots=True)
class Parts:
    """Where the parts of a request lie in it; `signed` is the CertificationRequestInfo."""

    signed: slice
    subject: slice
    spki: slice
    attributes: slice


def find_parts(der: bytes) -> Parts:
    """Where the parts of a request are. Raises MalformedRequest."""
    try:
        _, signed, end = element(der, 0, len(der))
        _, start, end = element(der, signed, end)
        _, _, version_end = element(der, start, end)
        _, subject, subject_end = element(der, version_end, end)
        _, _, spki_end = element(der, subject_end, end)
        _, attributes, attributes_end = element(der, spki_end, end)
    except ValueError as exc:
        raise MalformedRequest("not_pkcs10", "The body is not a PKCS#10 request in DER.", detail=str(exc)) from exc
    return Parts(
        slice(signed, end),
        slice(subject, subject_end),
        slice(subject_end, spki_end),
        slice(attributes, attributes_end),
    )


@dataclass(frozen=True, slots=True)
class Attributes:
    """What is of interest among the request's attributes. `extensions` is the DER of the one Extensions, or empty."""

    extensions: bytes = b""
    challenge_password: str | None = None
    identity_linking: str | None = None


_SET, _ATTRIBUTES = 0x31, 0xA0
_NO_SIGNATURE = b"\x03\x01\x00"  # a BIT STRING of no bits
_EXTENSION_REQUEST = bytes.fromhex("2a864886f70d01090e")  # 1.2.840.113549.1.9.14
_CHALLENGE_PASSWORD = bytes.fromhex("2a864886f70d010907")  # 1.2.840.113549.1.9.7
_IDENTITY_LINKING = bytes.fromhex("2a864886f70d010910023a")  # 1.2.840.113549.1.9.16.2.58
_ATTRIBUTE_NAMES = {
    _EXTENSION_REQUEST: "extensionRequest",
    _CHALLENGE_PASSWORD: "challengePassword",
    _IDENTITY_LINKING: "estIdentityLinking",
}


def read_attributes(der: bytes, where: slice) -> Attributes:
    """What the attributes in this part of a request hold. MalformedRequest for one that is read here and is no good."""
    known: dict[bytes, bytes] = {}
    position, end = where.start, where.stop
    try:
        while position < end:
            _, inner, position = element(der, position, end)
            _, oid_start, oid_end = element(der, inner, position)
            tag, values, values_end = element(der, oid_end, position)
            kind = der[oid_start:oid_end]
            if kind not in _ATTRIBUTE_NAMES:  # enforces case 11
                if tag != _SET or values == values_end:  # enforces case 2
                    raise MalformedRequest("csr_attribute_malformed", "An attribute of the CSR has no value.")
                continue
            # "SINGLE VALUE TRUE" -- RFC 2985 5.4.1 and 5.4.2
            # enforces case 2, 4
            if kind in known or values == values_end or element(der, values, values_end)[2] != values_end:
                _refuse_attribute(kind, f"The CSR must hold one value of {_ATTRIBUTE_NAMES[kind]}.")
            known[kind] = der[values:values_end]
    except ValueError as exc:
        raise MalformedRequest(
            "csr_attribute_malformed", "The CSR's attributes can't be read.", detail=str(exc)
        ) from exc
    return Attributes(
        extensions=known.get(_EXTENSION_REQUEST, b""),
        challenge_password=_read_string(_CHALLENGE_PASSWORD, known.get(_CHALLENGE_PASSWORD)),
        identity_linking=_read_string(_IDENTITY_LINKING, known.get(_IDENTITY_LINKING)),
    )


# UTF8, Printable, T61, IA5, BMP
_STRING_CODECS = {0x0C: "utf-8", 0x13: "ascii", 0x14: "latin-1", 0x16: "ascii", 0x1E: "utf-16-be"}


def without_secrets(der: bytes) -> bytes:
    """A request in the form in which it is kept (`ParsedCsr.recall`), from its DER, which must be good.

    It lacks every attribute but the extensionRequest: a challengePassword is a secret in SCEP, and what others hold,
    nobody knows. It lacks the signature, too, against which a guess at them could be tried.
    """
    where = find_parts(der)
    _, version, _ = element(der, where.signed.start, len(der))
    _, _, algorithm_end = element(der, where.signed.stop, len(der))
    kept = [each for each in elements(der, where.attributes) if _kind_of(each) == _EXTENSION_REQUEST]
    info = sequence(der[version : where.spki.stop], tlv(_ATTRIBUTES, *kept))
    return sequence(info, der[where.signed.stop : algorithm_end], _NO_SIGNATURE)


def _kind_of(attribute: bytes) -> bytes:
    _, inner, end = element(attribute, 0, len(attribute))
    _, start, stop = element(attribute, inner, end)
    return attribute[start:stop]


def _read_string(kind: bytes, der: bytes | None) -> str | None:
    if der is None:
        return None
    _, start, end = element(der, 0, len(der))
    if (codec := _STRING_CODECS.get(der[0])) is None:
        _refuse_attribute(kind, f"The CSR's {_ATTRIBUTE_NAMES[kind]} is not a string.")
    if end - start > MAX_ATTRIBUTE_VALUE:  # enforces case 8
        _refuse_attribute(kind, f"The CSR's {_ATTRIBUTE_NAMES[kind]} is longer than {MAX_ATTRIBUTE_VALUE} bytes.")
    try:
        return der[start:end].decode(codec)
    except UnicodeDecodeError:
        _refuse_attribute(kind, f"The CSR's {_ATTRIBUTE_NAMES[kind]} holds characters that its type can't hold.")


def _refuse_attribute(kind: bytes, message: str) -> NoReturn:
    code = "csr_extension_malformed" if kind == _EXTENSION_REQUEST else "csr_attribute_malformed"
    raise MalformedRequest(code, message)


# --- DER -------------------------------------------------------------------------------------------------------------


def element(der: bytes, start: int, end: int) -> tuple[int, int, int]:
    """Tag, start and end of the content of the element at `start`; ValueError unless it ends at or before `end`."""
    if end - start < 2:
        raise ValueError("an element is cut off")
    tag, length, content = der[start], der[start + 1], start + 2
    if tag & 0x1F == 0x1F:
        raise ValueError("a tag of several octets")
    if length >= 0x80:
        octets = length & 0x7F
        if not 0 < octets <= 4 or content + octets > end:
            raise ValueError("a length that is not DER")
        length = int.from_bytes(der[content : content + octets], "big")
        content += octets
    if content + length > end:
        raise ValueError("an element is cut off")
    return tag, content, content + length


def has_more(der: bytes, where: slice, most: int) -> bool:
    """Whether more than so many elements are in this part of it, in time that does not depend on how many more."""
    position: int = where.start
    end: int = where.stop
    try:
        for _ in range(most):
            if position >= end:
                return False
            _, _, position = element(der, position, end)
    except ValueError as exc:
        raise MalformedRequest("not_pkcs10", "The body is not a PKCS#10 request in DER.", detail=str(exc)) from exc
    return position < end


def elements(der: bytes, where: slice) -> list[bytes]:
    """The elements that fill this part of it, each whole."""
    elements = []
    position = where.start
    while position < where.stop:
        _, _, end = element(der, position, where.stop)
        elements.append(der[position:end])
        position = end
    return elements
