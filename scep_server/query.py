"""The request target of SCEP over HTTP, as clients really write it (RFC 8894 4.1): text in, values or a refusal out.

What the path means is the operator's to say and is read strictly; the query is read kindly, because each client has its
own idea of base64 in a URL.
"""

import base64
import binascii
from dataclasses import dataclass, field
from urllib.parse import unquote, unquote_to_bytes

from ca_core.names import decode_segment
from scep_server.errors import Unusable

__all__ = ["Query", "decode_message", "is_scep_path", "read_label", "read_query"]

_PROGRAM = "pkiclient.exe"
_ALIASES = {  # of the realm that no label means; NDES's path in any case, as on the server it comes from
    "/cgi-bin/pkiclient.exe",
    "/certsrv/mscep/mscep.dll",
    "/certsrv/mscep/mscep.dll/pkiclient.exe",
}
_PREFIXES = ("/scep", "/cgi-bin/", "/certsrv/")


@dataclass(frozen=True, slots=True)
class Query:
    """`operation` in the spelling of the RFC where it is one, None without any; `message` as sent, percent-encoded."""

    operation: str | None
    message: str | None = field(repr=False)


_OPERATIONS = {
    name.lower(): name for name in ("GetCACaps", "GetCACert", "GetCACertChain", "GetNextCACert", "PKIOperation")
}


def is_scep_path(target: str) -> bool:
    """Whether a request target is SCEP's to answer, be it with a refusal."""
    return target.partition("?")[0].lower().startswith(_PREFIXES)


def read_label(target: str) -> tuple[bool, str | None]:
    """Whether the path of a request target is served at all, and the label in it, None without any."""
    path = target.partition("?")[0]
    if path.lower().removesuffix("/") in _ALIASES:
        return True, None
    if not path.startswith("/scep"):  # enforces case 52
        return False, None
    segments = path.removeprefix("/scep").removesuffix("/").split("/")
    if segments[0]:  # enforces case 52
        return False, None
    if segments[-1] == _PROGRAM:
        segments.pop()
    match [decode_segment(segment) for segment in segments[1:]]:
        case []:
            return True, None
        case [label] if label:
            return True, label
    return False, None


def read_query(target: str) -> Query:
    """The operation and the message; the first of each, where there are several."""
    operation: str | None = None
    message: str | None = None
    for part in target.partition("?")[2].split("&"):
        name, _, value = part.partition("=")
        match unquote(name).lower():
            case "operation" if operation is None:
                text = unquote(value).strip()
                operation = _OPERATIONS.get(text.lower(), text)
            case "message" if message is None:
                message = value
    return Query(operation or None, message)


def decode_message(message: str | None) -> bytes:
    """The bytes of a GET's message. Raises `Unusable`.

    "it MUST be escaped as specified in [RFC3986] in addition to being base64 encoded" -- RFC 8894 4.1. Clients leave
    `+` and `/` as they are, break lines, leave `=` out, and use the alphabet for URLs.
    """
    if not message:
        raise Unusable("scep_message_missing", "The request has no message.")
    text = unquote_to_bytes(message).translate(_TO_STANDARD, _WHITESPACE).rstrip(b"=")
    try:
        return base64.b64decode(text + b"=" * (-len(text) % 4), validate=True)
    except binascii.Error as exc:
        raise Unusable("scep_not_base64", "The message is not base64.", detail=str(exc)) from exc


_WHITESPACE = b"\r\n\t"
_TO_STANDARD = bytes.maketrans(b"-_ ", b"+/+")  # a space was a + before some proxy or library decoded it
