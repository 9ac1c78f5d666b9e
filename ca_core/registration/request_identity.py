"""What makes two requests that wait the same one: who asks, with which key, and for what.

An operator's approval is for what he saw: this requester, and a certificate that says this. So what would be issued is
part of a request's identity; when the device's record or its profile has changed since, what is asked is another
request, which waits again. How long a certificate lasts, and which CA of its family signs it, is not part of it.
"""

import hashlib

import msgspec

from ca_core.csr import ParsedCsr
from ca_core.csr_names import canonical_subject
from ca_core.model import Requester
from ca_core.registration.examined import Examined
from ca_core.registration.profile import Profile

__all__ = ["request_identity"]


def request_identity(requester: Requester, csr: ParsedCsr, profile: Profile, examined: Examined) -> bytes:
    """SHA-256 of who asks, the key, the names that are asked for and what the certificate would say, within a realm.

    Who proves nothing is, beside the name, the device that had the name then, or nobody: not the device that is
    registered by that name since.
    """
    device = requester.device
    parts = (
        profile.name.encode(),
        requester.means.value.encode(),
        device.name.encode(),
        str(device.id).encode() if requester.is_unproven else b"",
        requester.credential,
        csr.spki_sha256,
        csr.names_hash,
        canonical_subject(examined.subject),
        msgspec.json.encode(sorted(examined.names)),
        _purposes(profile),
    )
    return hashlib.sha256(b"".join(len(part).to_bytes(4, "big") + part for part in parts)).digest()


def _purposes(profile: Profile) -> bytes:
    """All that a profile puts into a certificate beside its names."""
    document = profile.document
    said = (
        document.issuer,
        document.extended_key_usages,
        document.key_usage,
        document.policies,
        document.extensions,
    )
    return msgspec.json.encode(said)
