"""What a peer offers to prove who it is, read from the connection and the Authorization header; the core judges it.

And the one proof that EST itself knows: that the CSR was made for this TLS connection (RFC 7030 3.5), by tls-unique
(RFC 5929) on TLS 1.2 and by tls-exporter (RFC 9266) on TLS 1.3, where tls-unique is undefined.
"""

import base64
import binascii
import hmac
from collections.abc import Sequence

from ca_core.csr import ParsedCsr
from ca_core.errors import NotAuthenticated, PopFailed
from ca_core.model import Evidence, TlsPeer

__all__ = ["check_channel_binding", "read_evidence"]


def read_evidence(peer: TlsPeer, authorization: Sequence[str], *, may_be_bare: bool = False) -> Evidence:
    """The certificate chain of the connection, and user name and secret of a Basic header. Not judged yet.

    Raises NotAuthenticated when there is neither, unless the realm hears such a client (`may_be_bare`), or when the
    header can't be read. A header of another scheme than
    Basic is passed over when there is a certificate.
    """
    if len(authorization) > 1:
        raise _malformed("The request has more than one Authorization header.")
    username, secret = _read_basic(authorization[0]) if authorization else (None, None)
    # "the server "MUST NOT assume client support for any type of HTTP authentication such as cookies, Basic
    # authentication, or Digest authentication"" -- RFC 7030 3.2.3
    if not peer.chain and secret is None:
        if authorization:
            raise _malformed("The Authorization header is not of the Basic scheme.")
        if may_be_bare:
            return Evidence()
        raise NotAuthenticated(
            "credentials_missing", "This request needs a client certificate, or a secret as the Basic password."
        )
    return Evidence(chain=peer.chain, username=username, secret=secret)


def check_channel_binding(csr: ParsedCsr, peer: TlsPeer, *, required: bool) -> None:
    """Raise PopFailed when the CSR was made for another TLS connection, or for none although one is `required`."""
    claimed = csr.identity_linking or csr.challenge_password
    if not claimed:
        # "The EST server MAY reject requests without tls-unique information as indicated by server policy."
        # -- RFC 7030 3.5
        if required:  # enforces case 43
            raise PopFailed(
                "channel_binding_missing",
                "The CSR must be linked to the TLS session by its challengePassword (RFC 7030 3.5).",
            )
        return
    # "If tls-unique information is included by the client, the server MUST verify it." -- RFC 7030 3.5
    binding = peer.tls_exporter if peer.tls_unique is None else peer.tls_unique
    # "The tls-unique value is base64 encoded as specified in Section 4 of [RFC4648]" -- RFC 7030 3.5
    expected = base64.b64encode(binding or b"")
    offered = "".join(claimed.split()).encode()
    if not binding or not hmac.compare_digest(offered, expected):  # enforces case 43
        raise PopFailed(
            "channel_binding_mismatch",
            "The CSR's challengePassword does not link it to this TLS session (RFC 7030 3.5).",
        )


def _read_basic(header: str) -> tuple[str | None, str | None]:
    """User name and secret; None for both when the scheme is another one."""
    scheme, _, parameter = header.strip().partition(" ")
    if scheme.lower() != "basic":
        return None, None
    try:
        # aiohttp decodes headers as UTF-8 with surrogateescape: what is not ASCII is not base64 either.
        pair = binascii.a2b_base64(parameter.strip().encode("ascii"), strict_mode=True)
    except (binascii.Error, UnicodeEncodeError) as exc:
        raise _malformed("The Authorization header is not base64 of user:secret.") from exc
    # "A client MAY set the username to the empty string ("") if it is presenting a password that is not associated with
    # a username." -- RFC 7030 3.2.3
    username, colon, secret = pair.partition(b":")
    if not colon:
        raise _malformed("The Authorization header is not base64 of user:secret.")
    return _text(username), _text(secret)


def _text(value: bytes) -> str:
    value = value.partition(b"\0")[0]  # one client sends its buffer beyond the C string's end
    try:
        return value.decode()
    except UnicodeDecodeError:
        return value.decode("latin-1")


def _malformed(message: str) -> NotAuthenticated:
    return NotAuthenticated("credentials_malformed", message)
