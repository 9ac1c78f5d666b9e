"""The names in a request: read, refused where they are no names, and written in one way (RFC 5280 4.1.2.6, 4.2.1.6)."""

import ipaddress
import re
import threading
import unicodedata
import warnings
from hashlib import sha256

from cryptography import x509
from cryptography.x509.oid import NameOID

from ca_core.errors import MalformedRequest

__all__ = ["QUIET", "canonical_san", "canonical_subject", "is_text", "names_hash", "read_subject"]

MAX_COMMON_NAME = 64  # RFC 5280 ub-common-name
MAX_SUBJECT_VALUE = 255
QUIET = threading.Lock()
"""Held while warnings are off, because that is a setting of the whole process."""


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


# "Default_Ignorable_Code_Point" (Unicode, DerivedCoreProperties.txt) beside formatting and unassigned characters, which
# are shown as nothing, as are a braille pattern and a notehead; and what RFC 4518 2.2 maps to nothing or 2.4 prohibits.
_INVISIBLE = re.compile(
    "[\u034f\u115f\u1160\u17b4\u17b5\u1806\u180b-\u180f\u2800\u3164\ufe00-\ufe0f\uffa0\ufff0-\ufff8\ufffc\ufffd"
    "\U0001d159\U000e0000-\U000e0fff]"
)


def is_text(value: str) -> bool:
    """Whether it holds no control, formatting (bidirectional, zero-width), invisible, unassigned or line-breaking
    characters.
    """
    if value.isascii():
        return value.isprintable()
    is_printable = value.isprintable() or all(c.isprintable() or unicodedata.category(c) == "Zs" for c in value)
    return is_printable and _INVISIBLE.search(value) is None


def read_subject(csr: x509.CertificateSigningRequest) -> tuple[x509.Name, str | None]:
    """The subject and its one common name, None without any. MalformedRequest for what is no name."""
    try:
        with QUIET, warnings.catch_warnings(action="ignore"):  # what is too long is refused below, or never issued
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
                is_shown = not text.isascii() and text.isprintable() and _INVISIBLE.search(text) is None
                if not is_shown or text.encode("punycode").decode() != label[4:]:  # enforces case 6
                    return False
            except UnicodeError:
                return False  # enforces case 6
    return True


def names_hash(subject: x509.Name, san: tuple[str, ...]) -> bytes:
    """The SHA-256 of a subject and of names as `canonical_san` gives them."""
    return sha256(b"\0".join((*(name.encode() for name in san), canonical_subject(subject)))).digest()
