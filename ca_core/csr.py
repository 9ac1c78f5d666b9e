"""PKCS#10 requests (RFC 2986): bytes in, `ParsedCsr` or a refusal out. Whoever holds a `ParsedCsr` holds a good one.

Accepts one DER CertificationRequest of at most 16 KiB, version 1, whose key passes the floor, whose names are names and
whose signature is by its own key. The cheap checks come first and the signature last, so that what is refused costs
little. cryptography does the reading; what it lets pass (NUL and controls in names, wildcards, two extensionRequests,
empty SANs) is refused here. `challengePassword` is carried and not interpreted: it means channel binding in EST and a
secret in SCEP.
"""

import ipaddress
import re
import threading
import unicodedata
import warnings
from dataclasses import dataclass, field
from hashlib import sha256
from typing import NoReturn, Self

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, padding, rsa
from cryptography.x509.oid import NameOID, SignatureAlgorithmOID

from ca_core.errors import MalformedRequest, PopFailed, TooLarge
from ca_core.public_key import MlDsaPublicKey, PublicKey, describe_key, encode_spki, key_kind, load_public_key

__all__ = ["MAX_DER", "MAX_NAMES", "SID_EXTENSION", "ParsedCsr", "canonical_san", "canonical_subject", "is_text"]

MAX_DER = 16 * 1024
MAX_NAMES = 100
MAX_ATTRIBUTES = 32
MAX_ATTRIBUTE_VALUE = 255  # RFC 2985 pkcs-9-ub-challengePassword, RFC 7894 ub-est-identity-linking
MAX_COMMON_NAME = 64  # RFC 5280 ub-common-name
MAX_SUBJECT_VALUE = 255
SID_EXTENSION = "1.3.6.1.4.1.311.25.2"
"""szOID_NTDS_CA_SECURITY_EXT: the account of a Windows domain that a certificate is for (MS-WCCE 2.2.2.7.7.4)."""


@dataclass(frozen=True, slots=True)
class ParsedCsr:
    """A PKCS#10 request whose self-signature (PoP) has been verified, and whose key and names pass the floors.

    `subject` is as sent; `common_name` is its one CN, None without any. `san` is canonical and sorted: `DNS:x` in
    lower case, `IP:x`, `URI:x`, and what no profile gives: `email:x`, `other:OID`, `dir:x`, `rid:OID`. `spki` is the
    key's one encoding, not necessarily the one sent. `ca_requested`: basicConstraints says CA, or keyUsage keyCertSign
    or cRLSign. `sid_requested`: it names an account of a Windows domain (`SID_EXTENSION`). `challenge_password` and
    `identity_linking` (RFC 7894) are as sent, uninterpreted, maybe empty.
    `names_hash` is equal for the same subject and names, whatever string types, case of DNS names and order of names.
    """

    der: bytes = field(repr=False)
    subject: x509.Name
    common_name: str | None
    san: tuple[str, ...]
    public_key: PublicKey = field(repr=False)
    spki: bytes = field(repr=False)
    spki_sha256: bytes
    key: str
    signature_hash: str
    ca_requested: bool
    sid_requested: bool
    extended_key_usages: tuple[str, ...]
    challenge_password: str | None = field(repr=False)
    identity_linking: str | None = field(repr=False)
    names_hash: bytes

    @classmethod
    def parse(cls, der: bytes, *, allow_sha1: bool = False) -> Self:
        """Read and check a request. Raises MalformedRequest, TooLarge, BadKey or PopFailed, and nothing else."""
        if len(der) > MAX_DER:  # enforces case 8
            raise TooLarge("body_too_large", f"The PKCS#10 request is longer than {MAX_DER} bytes.")
        csr = _load(der)
        parts = _parts(der)
        if _has_more(der, parts.subject, MAX_NAMES):  # enforces case 8
            raise MalformedRequest("csr_too_many_names", f"The CSR's subject has more than {MAX_NAMES} parts.")
        if _has_more(der, parts.attributes, MAX_ATTRIBUTES):  # enforces case 8
            raise MalformedRequest("csr_attribute_malformed", f"The CSR has more than {MAX_ATTRIBUTES} attributes.")
        key = load_public_key(der[parts.spki])
        subject, common_name = _read_subject(csr)
        attributes = _read_attributes(der, parts.attributes)
        asked = _read_extensions(csr, attributes.extensions)
        signature_hash = _check_signature(csr, der[parts.signed], key, allow_sha1=allow_sha1)
        spki = encode_spki(key)
        return cls(
            der=der,
            subject=subject,
            common_name=common_name,
            san=asked.san,
            public_key=key,
            spki=spki,
            spki_sha256=sha256(spki).digest(),
            key=describe_key(key),
            signature_hash=signature_hash,
            ca_requested=asked.ca,
            sid_requested=asked.sid,
            extended_key_usages=asked.usages,
            challenge_password=attributes.challenge_password,
            identity_linking=attributes.identity_linking,
            names_hash=_names_hash(subject, asked.san),
        )


def canonical_subject(subject: x509.Name) -> bytes:
    """The same bytes for the same RDNs in the same order, whatever string types they were written in."""
    out = bytearray()
    for rdn in subject.rdns:
        out += b"+%d" % len(rdn)
        # As bytes: an attribute may stand there twice, once as text and once as a bit string.
        values = [
            (a.oid.dotted_string.encode(), a.value.encode() if isinstance(a.value, str) else a.value) for a in rdn
        ]
        for oid, value in sorted(values):
            out += b"%b=%d:%b" % (oid, len(value), value)
    return bytes(out)


def canonical_san(general_names: x509.SubjectAlternativeName) -> tuple[str, ...]:
    """The names as texts, sorted, each once, as in `ParsedCsr.san`. MalformedRequest for what is no name."""
    return tuple(sorted({_canonical_name(name) for name in general_names}))


def is_text(value: str) -> bool:
    """Whether it holds no control, formatting (bidirectional, zero-width), unassigned or line-breaking characters."""
    return value.isprintable() or all(c.isprintable() or unicodedata.category(c) == "Zs" for c in value)


# --- reading ---------------------------------------------------------------------------------------------------------


def _load(der: bytes) -> x509.CertificateSigningRequest:
    try:
        return x509.load_der_x509_csr(der)
    except x509.InvalidVersion as exc:
        # "version is the version number, for compatibility with future revisions of this document. It shall be 0 for
        # this version of the standard." -- RFC 2986 4.1
        # enforces case 11
        raise MalformedRequest("csr_version", "The PKCS#10 request is not of version 1 (the integer 0).") from exc
    except (ValueError, TypeError) as exc:
        return _load_with_unsorted_attributes(der, exc)


def _load_with_unsorted_attributes(der: bytes, fault: Exception) -> x509.CertificateSigningRequest:
    """The request with its attributes in DER's order. Go's clients append the challengePassword out of order.

    What the signature covers is taken from the bytes as sent all the same.
    """
    try:
        _, _, end = _element(der, 0, len(der))
        where = _parts(der[:end]).attributes
        request = b"".join((der[: where.start], *sorted(_elements(der, where)), der[where.stop : end]))
        csr = x509.load_der_x509_csr(request)
    except (ValueError, TypeError, x509.InvalidVersion, MalformedRequest):
        # enforces case 1
        raise MalformedRequest("not_pkcs10", "The body is not a PKCS#10 request in DER.", detail=str(fault)) from fault
    if end != len(der):  # enforces case 1
        raise MalformedRequest("trailing_data", "Bytes follow the end of the PKCS#10 request.") from fault
    return csr


@dataclass(frozen=True, slots=True)
class _Parts:
    """Where the parts of a request lie in it; `signed` is the CertificationRequestInfo."""

    signed: slice
    subject: slice
    spki: slice
    attributes: slice


def _parts(der: bytes) -> _Parts:
    try:
        _, signed, end = _element(der, 0, len(der))
        _, start, end = _element(der, signed, end)
        _, _, version_end = _element(der, start, end)
        _, subject, subject_end = _element(der, version_end, end)
        _, _, spki_end = _element(der, subject_end, end)
        _, attributes, attributes_end = _element(der, spki_end, end)
    except ValueError as exc:
        raise MalformedRequest("not_pkcs10", "The body is not a PKCS#10 request in DER.", detail=str(exc)) from exc
    return _Parts(
        slice(signed, end),
        slice(subject, subject_end),
        slice(subject_end, spki_end),
        slice(attributes, attributes_end),
    )


@dataclass(frozen=True, slots=True)
class _Attributes:
    """What is of interest among the request's attributes. `extensions` is the DER of the one Extensions, or empty."""

    extensions: bytes = b""
    challenge_password: str | None = None
    identity_linking: str | None = None


_EXTENSION_REQUEST = bytes.fromhex("2a864886f70d01090e")  # 1.2.840.113549.1.9.14
_CHALLENGE_PASSWORD = bytes.fromhex("2a864886f70d010907")  # 1.2.840.113549.1.9.7
_IDENTITY_LINKING = bytes.fromhex("2a864886f70d010910023a")  # 1.2.840.113549.1.9.16.2.58
_ATTRIBUTE_NAMES = {
    _EXTENSION_REQUEST: "extensionRequest",
    _CHALLENGE_PASSWORD: "challengePassword",
    _IDENTITY_LINKING: "estIdentityLinking",
}


def _read_attributes(der: bytes, where: slice) -> _Attributes:
    known: dict[bytes, bytes] = {}
    position, end = where.start, where.stop
    try:
        while position < end:
            _, inner, position = _element(der, position, end)
            _, oid_start, oid_end = _element(der, inner, position)
            tag, values, values_end = _element(der, oid_end, position)
            kind = der[oid_start:oid_end]
            if kind not in _ATTRIBUTE_NAMES:  # enforces case 11
                if tag != _SET or values == values_end:  # enforces case 2
                    raise MalformedRequest("csr_attribute_malformed", "An attribute of the CSR has no value.")
                continue
            # "SINGLE VALUE TRUE" -- RFC 2985 5.4.1 and 5.4.2
            # enforces case 2, 4
            if kind in known or values == values_end or _element(der, values, values_end)[2] != values_end:
                _refuse_attribute(kind, f"The CSR must hold one value of {_ATTRIBUTE_NAMES[kind]}.")
            known[kind] = der[values:values_end]
    except ValueError as exc:
        raise MalformedRequest(
            "csr_attribute_malformed", "The CSR's attributes can't be read.", detail=str(exc)
        ) from exc
    return _Attributes(
        extensions=known.get(_EXTENSION_REQUEST, b""),
        challenge_password=_read_string(_CHALLENGE_PASSWORD, known.get(_CHALLENGE_PASSWORD)),
        identity_linking=_read_string(_IDENTITY_LINKING, known.get(_IDENTITY_LINKING)),
    )


# UTF8, Printable, T61, IA5, BMP
_STRING_CODECS = {0x0C: "utf-8", 0x13: "ascii", 0x14: "latin-1", 0x16: "ascii", 0x1E: "utf-16-be"}


def _read_string(kind: bytes, der: bytes | None) -> str | None:
    if der is None:
        return None
    _, start, end = _element(der, 0, len(der))
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


@dataclass(frozen=True, slots=True)
class _Asked:
    """What the extensions of a request ask for; `ca` and `sid` as `ParsedCsr` has them."""

    san: tuple[str, ...] = ()
    ca: bool = False
    sid: bool = False
    usages: tuple[str, ...] = ()


def _read_extensions(csr: x509.CertificateSigningRequest, der: bytes) -> _Asked:
    if not der:
        return _Asked()
    # "Extensions ::= SEQUENCE SIZE (1..MAX) OF Extension" -- RFC 5280 4.1
    if der == b"\x30\x00":  # enforces case 2
        raise MalformedRequest("csr_extension_malformed", "The CSR's extensionRequest is empty.")
    san: tuple[str, ...] = ()
    usages: tuple[str, ...] = ()
    ca_requested = sid_requested = False
    for extension in _extensions(csr):
        value = extension.value
        if isinstance(value, x509.SubjectAlternativeName):
            count = len(value)
            # "GeneralNames ::= SEQUENCE SIZE (1..MAX) OF GeneralName" -- RFC 5280 4.2.1.6
            if count == 0:  # enforces case 2
                raise MalformedRequest("csr_extension_malformed", "The CSR's subjectAltName is empty.")
            if count > MAX_NAMES:  # enforces case 8
                raise MalformedRequest(
                    "csr_too_many_names", f"The CSR asks for {count} names; at most {MAX_NAMES} are read."
                )
            san = canonical_san(value)
        elif isinstance(value, x509.BasicConstraints):
            ca_requested |= value.ca
        elif isinstance(value, x509.KeyUsage):
            ca_requested |= value.key_cert_sign or value.crl_sign
        elif isinstance(value, x509.ExtendedKeyUsage):
            usages = tuple(oid.dotted_string for oid in value)
        sid_requested |= extension.oid.dotted_string == SID_EXTENSION
    return _Asked(san, ca_requested, sid_requested, usages)


def _extensions(csr: x509.CertificateSigningRequest) -> x509.Extensions:
    try:
        with _QUIET, warnings.catch_warnings(action="ignore"):  # lengths and serials of what no profile gives
            return csr.extensions
    except x509.DuplicateExtension as exc:
        # "A certificate MUST NOT include more than one instance of a particular extension." -- RFC 5280 4.2
        raise MalformedRequest(  # enforces case 4
            "csr_duplicate_extension", f"The CSR asks for the extension {exc.oid.dotted_string} twice."
        ) from exc
    except x509.UnsupportedGeneralNameType as exc:
        raise MalformedRequest("csr_name_malformed", "The CSR asks for a kind of name that can't be read.") from exc
    except (ValueError, TypeError, UnsupportedAlgorithm) as exc:
        raise MalformedRequest(  # enforces case 2, 6
            "csr_extension_malformed", "The CSR's extensionRequest can't be read.", detail=str(exc)
        ) from exc


_QUIET = threading.Lock()
"""Held while warnings are off, because that is a setting of the whole process."""


# --- names -----------------------------------------------------------------------------------------------------------


def _read_subject(csr: x509.CertificateSigningRequest) -> tuple[x509.Name, str | None]:
    try:
        with _QUIET, warnings.catch_warnings(action="ignore"):  # what is too long is refused below, or never issued
            subject = csr.subject
    except (ValueError, TypeError) as exc:
        raise MalformedRequest("csr_name_malformed", "The CSR's subject can't be read.", detail=str(exc)) from exc
    common_name: str | None = None
    for rdn in subject.rdns:
        # Routers put their serialNumber and unstructuredName into one RDN. A CN must stand alone, to be one name.
        if len(rdn) != 1 and any(attribute.oid == NameOID.COMMON_NAME for attribute in rdn):  # enforces case 9
            raise MalformedRequest(
                "csr_name_malformed", "The CSR's common name (CN) shares its RDN with another value."
            )
    for attribute in subject:
        value = attribute.value
        if len(value) > MAX_SUBJECT_VALUE:  # enforces case 8
            raise MalformedRequest(
                "csr_name_malformed", f"A value in the CSR's subject is longer than {MAX_SUBJECT_VALUE} characters."
            )
        if isinstance(value, str) and not is_text(value):  # enforces case 5, 7
            raise MalformedRequest("csr_name_malformed", "The CSR's subject holds control or formatting characters.")
        if attribute.oid == NameOID.COMMON_NAME:
            if common_name is not None:  # enforces case 9
                raise MalformedRequest("csr_name_malformed", "The CSR's subject has two common names (CN).")
            if not isinstance(value, str) or not 0 < len(value.encode()) <= MAX_COMMON_NAME:  # enforces case 8
                raise MalformedRequest(
                    "csr_name_malformed", f"The CSR's common name (CN) is not of 1 to {MAX_COMMON_NAME} bytes."
                )
            common_name = value
    return subject, common_name


_LABEL = r"[a-z0-9_](?:[a-z0-9_-]{0,61}[a-z0-9_])?"
_DNS_NAME = re.compile(rf"(?=.{{1,253}}\Z){_LABEL}(?:\.{_LABEL})*")
_URI = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*:[!#-;=?-\[\]_a-z~]+")  # RFC 3986, without the delimiters it leaves out
_MAILBOX = re.compile(r"[!-?A-~]+@[A-Za-z0-9._:\[\]-]+")


def _canonical_name(name: x509.GeneralName) -> str:
    if isinstance(name, x509.DNSName):
        lower = name.value.lower()
        # "The name MUST be in the "preferred name syntax", as specified by Section 3.5 of [RFC1034]"
        # -- RFC 5280 4.2.1.6. An underscore is let pass: devices have it in their names. No wildcard is.
        # enforces case 5, 6
        if not name.value.isascii() or not _DNS_NAME.fullmatch(lower) or ("xn--" in lower and not _is_idna(lower)):
            raise MalformedRequest("csr_name_malformed", "A dNSName in the CSR is not a host name.")
        return f"DNS:{lower}"
    if isinstance(name, x509.IPAddress):
        if not isinstance(name.value, ipaddress.IPv4Address | ipaddress.IPv6Address):
            raise MalformedRequest("csr_extension_malformed", "An iPAddress in the CSR is not the address of a host.")
        return f"IP:{name.value}"
    if isinstance(name, x509.UniformResourceIdentifier):
        if not _URI.fullmatch(name.value):  # enforces case 5
            raise MalformedRequest("csr_name_malformed", "A uniformResourceIdentifier in the CSR is not a URI.")
        return f"URI:{name.value}"
    if isinstance(name, x509.RFC822Name):
        if not _MAILBOX.fullmatch(name.value):  # enforces case 5
            raise MalformedRequest("csr_name_malformed", "An rfc822Name in the CSR is not a mailbox.")
        return f"email:{name.value}"
    if isinstance(name, x509.DirectoryName):
        if not all(isinstance(part.value, bytes) or is_text(part.value) for part in name.value):  # enforces case 7
            raise MalformedRequest("csr_name_malformed", "A directoryName in the CSR holds control characters.")
        return f"dir:{name.value.rfc4514_string()}"
    if isinstance(name, x509.OtherName):
        return f"other:{name.type_id.dotted_string}"
    if isinstance(name, x509.RegisteredID):
        return f"rid:{name.value.dotted_string}"
    raise MalformedRequest("csr_name_malformed", "The CSR asks for a kind of name that can't be read.")


def _is_idna(name: str) -> bool:
    """Whether every `xn--` label is the punycode of a printable text, in its one spelling."""
    for label in name.split("."):
        if label.startswith("xn--"):
            try:
                text = label[4:].encode().decode("punycode")
                # enforces case 6
                if text.isascii() or not text.isprintable() or text.encode("punycode").decode() != label[4:]:
                    return False
            except UnicodeError:
                return False  # enforces case 6
    return True


def _names_hash(subject: x509.Name, san: tuple[str, ...]) -> bytes:
    return sha256(b"\0".join((*(name.encode() for name in san), canonical_subject(subject)))).digest()


# --- proof of possession ---------------------------------------------------------------------------------------------

_WEAK_HASHES = {"md5": "MD5", "sha1": "SHA-1"}
_WEAK_PARAMETERS: dict[x509.ObjectIdentifier, padding.PKCS1v15 | ec.ECDSA] = {  # cryptography gives None for these
    SignatureAlgorithmOID.RSA_WITH_MD5: padding.PKCS1v15(),
    SignatureAlgorithmOID.RSA_WITH_SHA1: padding.PKCS1v15(),
    SignatureAlgorithmOID.ECDSA_WITH_SHA1: ec.ECDSA(hashes.SHA1()),  # noqa: S303  # to say so, or where it is allowed
}


_OWN_ALGORITHMS: dict[x509.ObjectIdentifier, tuple[str, str]] = {
    SignatureAlgorithmOID.ED25519: ("ed25519", "sha512"),  # RFC 8032 5.1
    SignatureAlgorithmOID.ML_DSA_44: ("ml-dsa-44", "shake256"),  # FIPS 204
    SignatureAlgorithmOID.ML_DSA_65: ("ml-dsa-65", "shake256"),
    SignatureAlgorithmOID.ML_DSA_87: ("ml-dsa-87", "shake256"),
}
"""What leaves no choice: the one kind of key that makes such a signature, and the hash inside."""


def _check_signature(csr: x509.CertificateSigningRequest, signed: bytes, key: PublicKey, *, allow_sha1: bool) -> str:
    """The name of the hash. Verified by hand: cryptography calls a correct SHA-1 signature invalid."""
    try:
        # "The signed enrollment request provides a signature-based proof-of-possession." -- RFC 7030 3.4
        hash_name = _verify(csr, signed, key)
    except InvalidSignature as exc:
        raise PopFailed("csr_signature_bad", "The CSR is not signed with its own key.") from exc
    except (UnsupportedAlgorithm, ValueError, TypeError) as exc:
        raise PopFailed(
            "csr_signature_bad", "The CSR's signature algorithm is not one that is known here.", detail=str(exc)
        ) from exc
    if hash_name in _WEAK_HASHES and not (allow_sha1 and hash_name == "sha1"):
        raise PopFailed(
            "csr_signature_weak", f"The CSR is signed with {_WEAK_HASHES[hash_name]}, which is not allowed."
        )
    return hash_name


def _verify(csr: x509.CertificateSigningRequest, signed: bytes, key: PublicKey) -> str:
    oid = csr.signature_algorithm_oid
    if isinstance(key, ed25519.Ed25519PublicKey | MlDsaPublicKey):
        kind, hash_name = _OWN_ALGORITHMS.get(oid, ("", ""))
        if kind == key_kind(key):
            key.verify(csr.signature, signed)  # enforces case 18
            return hash_name
    else:
        parameters = csr.signature_algorithm_parameters or _WEAK_PARAMETERS.get(oid)
        hash_algorithm = csr.signature_hash_algorithm
        if hash_algorithm is None:
            pass
        elif isinstance(key, ec.EllipticCurvePublicKey) and isinstance(parameters, ec.ECDSA):
            key.verify(csr.signature, signed, parameters)  # enforces case 18
            return hash_algorithm.name
        elif isinstance(key, rsa.RSAPublicKey) and isinstance(parameters, padding.PKCS1v15 | padding.PSS):
            key.verify(csr.signature, signed, parameters, hash_algorithm)  # enforces case 18
            return hash_algorithm.name
    raise PopFailed("csr_signature_bad", "The CSR's signature is of a kind that its key can't make.")


# --- DER -------------------------------------------------------------------------------------------------------------

_SET = 0x31


def _element(der: bytes, start: int, end: int) -> tuple[int, int, int]:
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


def _has_more(der: bytes, where: slice, most: int) -> bool:
    """Whether more than so many elements are in this part of it, in time that does not depend on how many more."""
    position: int = where.start
    end: int = where.stop
    try:
        for _ in range(most):
            if position >= end:
                return False
            _, _, position = _element(der, position, end)
    except ValueError as exc:
        raise MalformedRequest("not_pkcs10", "The body is not a PKCS#10 request in DER.", detail=str(exc)) from exc
    return position < end


def _elements(der: bytes, where: slice) -> list[bytes]:
    """The elements that fill this part of it, each whole."""
    elements = []
    position = where.start
    while position < where.stop:
        _, _, end = _element(der, position, where.stop)
        elements.append(der[position:end])
        position = end
    return elements
