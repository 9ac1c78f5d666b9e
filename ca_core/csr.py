"""PKCS#10 requests (RFC 2986): bytes in, `ParsedCsr` or a refusal out. Whoever holds a `ParsedCsr` holds a good one.

Accepts one DER CertificationRequest of at most 16 KiB, version 1, whose key passes the floor, whose names are names and
whose signature is by its own key. The cheap checks come first and the signature last, so that what is refused costs
little. cryptography does the reading; what it lets pass (NUL and controls in names, wildcards, two extensionRequests,
empty SANs) is refused here. `challengePassword` is carried and not interpreted: it means channel binding in EST and a
secret in SCEP.
"""

import warnings
from dataclasses import dataclass, field
from hashlib import sha256
from typing import Self

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm

from ca_core.csr_names import QUIET, canonical_san, names_hash, read_subject
from ca_core.csr_parts import element, elements, find_parts, has_more, read_attributes, without_secrets
from ca_core.csr_signature import check_signature, hash_of_signature
from ca_core.errors import MalformedRequest, TooLarge
from ca_core.public_key import PublicKey, describe_key, encode_spki, load_public_key

__all__ = ["MAX_DER", "MAX_NAMES", "SID_EXTENSION", "ParsedCsr"]

MAX_DER = 16 * 1024
MAX_NAMES = 100
MAX_ATTRIBUTES = 32
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
        return cls._read(der, allow_sha1=allow_sha1, is_proven=False)

    @classmethod
    def recall(cls, kept: bytes, *, allow_sha1: bool = False) -> Self:
        """A request that was parsed before, as `kept_form` gave it, checked by the rules of now but for its signature.

        Only for what comes from the store. Raises as `parse` does.
        """
        return cls._read(kept, allow_sha1=allow_sha1, is_proven=True)

    @property
    def kept_form(self) -> bytes:
        """The request without its secrets, for the store: DER that only `recall` takes."""
        return without_secrets(self.der)

    @classmethod
    def _read(cls, der: bytes, *, allow_sha1: bool, is_proven: bool) -> Self:
        if len(der) > MAX_DER:  # enforces case 8
            raise TooLarge("body_too_large", f"The PKCS#10 request is longer than {MAX_DER} bytes.")
        csr = _load(der)
        parts = find_parts(der)
        if has_more(der, parts.subject, MAX_NAMES):  # enforces case 8
            raise MalformedRequest("csr_too_many_names", f"The CSR's subject has more than {MAX_NAMES} parts.")
        if has_more(der, parts.attributes, MAX_ATTRIBUTES):  # enforces case 8
            raise MalformedRequest("csr_attribute_malformed", f"The CSR has more than {MAX_ATTRIBUTES} attributes.")
        key = load_public_key(der[parts.spki])
        subject, common_name = read_subject(csr)
        attributes = read_attributes(der, parts.attributes)
        asked = _read_extensions(csr, attributes.extensions)
        if is_proven:
            signature_hash = hash_of_signature(csr, key, allow_sha1=allow_sha1)
        else:
            signature_hash = check_signature(csr, der[parts.signed], key, allow_sha1=allow_sha1)
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
            names_hash=names_hash(subject, asked.san),
        )


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
        _, _, end = element(der, 0, len(der))
        where = find_parts(der[:end]).attributes
        request = b"".join((der[: where.start], *sorted(elements(der, where)), der[where.stop : end]))
        csr = x509.load_der_x509_csr(request)
    except (ValueError, TypeError, x509.InvalidVersion, MalformedRequest):
        # enforces case 1
        raise MalformedRequest("not_pkcs10", "The body is not a PKCS#10 request in DER.", detail=str(fault)) from fault
    if end != len(der):  # enforces case 1
        raise MalformedRequest("trailing_data", "Bytes follow the end of the PKCS#10 request.") from fault
    return csr


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
        with QUIET, warnings.catch_warnings(action="ignore"):  # lengths and serials of what no profile gives
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
