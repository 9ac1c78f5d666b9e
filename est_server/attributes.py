"""What a client is told to put into its request (RFC 7030 4.5.2, RFC 9908): what the profile wants of it.

The oldest form is used, which stock clients read: bare OIDs, and one Attribute for the key. It can name one kind of key
and no choice, so that a profile which allows several says nothing of keys; and it can't ask for alternative names that
the client chooses. A device is not known yet, so it is the profile of the label, or the realm's for EST.
"""

from ca_core.der import integer, oid
from ca_core.registration.profile_document import ProfileDocument
from ca_core.registration.realm import Resolved
from est_server.codec import CHALLENGE_PASSWORD, AttrOrOid

__all__ = ["needs_channel_binding", "wanted_attributes"]

_RSA = "1.2.840.113549.1.1.1"
_EC = "1.2.840.10045.2.1"
_CURVES = {"p-256": "1.2.840.10045.3.1.7", "p-384": "1.3.132.0.34", "p-521": "1.3.132.0.35"}
_OTHERS = {
    "ed25519": "1.3.101.112",
    "ml-dsa-44": "2.16.840.1.101.3.4.3.17",
    "ml-dsa-65": "2.16.840.1.101.3.4.3.18",
    "ml-dsa-87": "2.16.840.1.101.3.4.3.19",
}


def wanted_attributes(resolved: Resolved) -> list[AttrOrOid]:
    """The attributes, empty when a client is free to ask as it likes."""
    wanted: list[AttrOrOid] = []
    # "If an EST server requires the linking of identity and POP information (see Section 3.5), it MUST include the
    # challengePassword OID in the CSR Attributes Response." -- RFC 7030 4.5.2
    if needs_channel_binding(resolved):
        wanted.append(CHALLENGE_PASSWORD)
    profile = resolved.realm.document.profiles.get(resolved.profile or resolved.default_profile)
    if profile is None:
        return wanted
    wanted += dict.fromkeys(
        attribute.oid.dotted_string
        for attribute, template in profile.rules.subject
        if template.asked is not None and not template.is_optional
    )
    wanted += _key_attributes(profile)
    return wanted


def needs_channel_binding(resolved: Resolved) -> bool:
    """Whether a request must be linked to its TLS session."""
    return resolved.realm.document.est.channel_binding == "required"


def _key_attributes(profile: ProfileDocument) -> list[AttrOrOid]:
    if len(profile.keys) != 1:
        return []
    (kind,) = profile.keys
    # "Include exactly one Attribute with the type field being the OID specifying the type of the key" -- RFC 9908 3.2
    if kind in _CURVES:
        return [(_EC, (oid(_CURVES[kind]),))]
    if kind in _OTHERS:
        return [(_OTHERS[kind], ())]
    size = kind.removeprefix("rsa").removeprefix("-")
    return [(_RSA, (integer(int(size)),) if size else ())]
