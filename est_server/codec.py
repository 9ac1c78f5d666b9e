"""EST bodies: the base64 around DER, in both directions. Bytes in, bytes out; no request, no clock, no store.

A request body is base64 of the DER of a PKCS#10 request, in any line width. Real clients also send PEM with its BEGIN
and END lines, or the DER itself; both are read unless `strict`. Content-Transfer-Encoding is not looked at, because
RFC 8951 took it out of EST and clients send anything there. A response body is base64 that ends in a line feed.
"""

import base64
import binascii
import re
from collections.abc import Iterable, Sequence
from functools import lru_cache

from ca_core.der import oid, sequence, set_of, tlv
from ca_core.errors import MalformedRequest, UnsupportedMedia

__all__ = [
    "CERTS_ONLY",
    "CHALLENGE_PASSWORD",
    "CSRATTRS",
    "PKCS7",
    "AttrOrOid",
    "check_media",
    "decode_request_body",
    "encode_body",
    "encode_ca_certificates",
    "encode_certs_only",
    "encode_csrattrs",
]

PKCS7 = "application/pkcs7-mime"
CERTS_ONLY = "application/pkcs7-mime; smime-type=certs-only"
CSRATTRS = "application/csrattrs"
PKCS10 = "application/pkcs10"
CHALLENGE_PASSWORD = "1.2.840.113549.1.9.7"  # noqa: S105  # the OID of an attribute


def check_media(content_type: str | None, content_encoding: str | None, transfer_encoding: str | None = None) -> None:
    """Raise UnsupportedMedia unless the headers announce a PKCS#10 request that is not compressed."""
    if transfer_encoding is not None and transfer_encoding.strip().lower() != "chunked":  # enforces case 12
        raise UnsupportedMedia("content_coding_unsupported", "A body with this Transfer-Encoding is not read here.")
    if content_encoding is not None and content_encoding.strip().lower() not in ("", "identity"):  # enforces case 12
        raise UnsupportedMedia("content_coding_unsupported", "A body with a Content-Encoding is not read here.")
    # "The HTTP content-type of "application/pkcs10" is used here." -- RFC 7030 4.2.1
    if content_type is None or content_type.partition(";")[0].strip().lower() != PKCS10:
        raise UnsupportedMedia("content_type_wrong", f"The Content-Type of this request must be {PKCS10}.")


def decode_request_body(body: bytes, *, strict: bool = False) -> bytes:
    """The DER in the body of an enroll request; what it holds is not looked at. `strict` takes base64 only."""
    # The body is base64 whatever Content-Transfer-Encoding says, with white space anywhere in it (RFC 8951 3 and 3.1).
    text = body.translate(None, _WHITESPACE)
    if not text:  # enforces case 12
        raise MalformedRequest("body_empty", "The request has no body.")
    if not strict:
        if body[0] == 0x30 and len(body) > 1 and body[1] >= 0x80:  # no base64 text begins like this
            return body
        if _PEM_BEGIN in body:
            text = _inside_pem(body)
    try:
        if len(text) % 4 or text.endswith(b"==="):  # Python takes any number of "=" where none is due
            raise binascii.Error("the padding is not that of base64")
        return binascii.a2b_base64(text, strict_mode=True)
    except binascii.Error as exc:
        raise MalformedRequest("not_base64", "The body is not base64.", detail=str(exc)) from exc  # enforces case 12


def encode_body(der: bytes, *, wrap: bool) -> bytes:
    """Base64 that ends in a line feed, on one line or in lines of 64 characters.

    No one form is good for all: strongSwan before 5.9.11 reads only one line, and libest reads a long one only in
    pieces.
    """
    text = base64.b64encode(der)
    if not wrap:
        return text + b"\n"
    return b"".join(text[start : start + _WIDTH] + b"\n" for start in range(0, len(text), _WIDTH))


@lru_cache(maxsize=64)
def encode_ca_certificates(certificates: tuple[bytes, ...], *, wrap: bool) -> bytes:
    """The body of a cacerts response, which many ask for and which seldom changes."""
    return encode_body(encode_certs_only(certificates), wrap=wrap)


def encode_certs_only(certificates: Iterable[bytes]) -> bytes:
    """A CMS SignedData that carries these certificates and nothing else (RFC 5652 5.1, RFC 5272 4.1)."""
    bag = tlv(0xA0, b"".join(sorted(certificates)))  # DER sorts a SET OF
    return tlv(0x30, _SIGNED_DATA + tlv(0xA0, tlv(0x30, _VERSION_DIGESTS_CONTENT + bag + _NO_SIGNERS)))


AttrOrOid = str | tuple[str, tuple[bytes, ...]]
"""A bare OID, or an attribute's type with its values in DER."""


def encode_csrattrs(wanted: Sequence[AttrOrOid]) -> bytes:
    """`CsrAttrs ::= SEQUENCE SIZE (0..MAX) OF AttrOrOID` (RFC 7030 4.5.2)."""
    return tlv(0x30, *(oid(one) if isinstance(one, str) else sequence(oid(one[0]), set_of(one[1])) for one in wanted))


_WHITESPACE = b"\r\n\t "
_WIDTH = 64
_PEM_BEGIN = b"-----BEGIN"
_PEM = re.compile(rb"-----BEGIN (NEW )?CERTIFICATE REQUEST-----(?P<text>[^-]*)-----END (NEW )?CERTIFICATE REQUEST-----")

# The fixed octets of a certs-only SignedData.
_SIGNED_DATA = bytes.fromhex("06092a864886f70d010702")  # 1.2.840.113549.1.7.2
_VERSION_DIGESTS_CONTENT = bytes.fromhex("0201013100300b06092a864886f70d010701")  # 1, no digests, id-data without data
_NO_SIGNERS = bytes.fromhex("3100")


def _inside_pem(body: bytes) -> bytes:
    if (found := _PEM.search(body)) is None:
        raise MalformedRequest("not_pkcs10", "The body is PEM, and not that of a certificate request.")
    return found["text"].translate(None, _WHITESPACE)
