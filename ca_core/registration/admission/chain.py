"""From a certificate as sent to a trust anchor, at a price that the sender can't raise.

Anybody may send ten certificates of any kind before anything is known of him. So the path is chosen by names first, at
most five certificates long; then the anchor, whose key is ours to trust, must verify the topmost one; only then does
path validation look at the rest, and at nothing beside that path.
"""

import datetime as dt

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.x509.oid import NameOID
from cryptography.x509.verification import Criticality, ExtensionPolicy, PolicyBuilder, VerificationError

from ca_core.errors import NotAuthenticated
from ca_core.registration.document import TrustDocument
from ca_core.registration.realm import Realm

_MAX_DEPTH = 5
_MAX_EXPONENT_BITS = 33  # a longer one costs as much as it pleases
_CURVES = (ec.SECP256R1, ec.SECP384R1, ec.SECP521R1)


def _may_certify(_: object, __: object, usage: x509.KeyUsage | None) -> None:
    # "If a key usage extension is present, verify that the keyCertSign bit is set." -- RFC 5280 6.1.4 (n)
    if usage is not None and not usage.key_cert_sign:
        raise ValueError("a CA's keyUsage does not allow it to sign certificates")


_CA_POLICY = (
    ExtensionPolicy.permit_all()
    .require_present(x509.BasicConstraints, Criticality.AGNOSTIC, None)
    .may_be_present(x509.KeyUsage, Criticality.AGNOSTIC, _may_certify)
)
_EE_POLICY = ExtensionPolicy.permit_all()


def verified_anchor(
    realm: Realm, leaf: x509.Certificate, sent: list[x509.Certificate], now: dt.datetime
) -> TrustDocument:
    """The realm's IDevID anchor that the chain ends in. Raises `NotAuthenticated`; ValueError for unreadable parts."""
    if now < leaf.not_valid_before_utc:
        raise NotAuthenticated("certificate_not_yet_valid", "The client certificate is not valid yet.")
    if now > leaf.not_valid_after_utc:
        raise NotAuthenticated("certificate_expired", "The client certificate has expired.")
    path, anchors = _path(realm, leaf, sent)
    top = path[-1]
    anchor = next((each for each in anchors if _issued(top, each)), None)
    if anchor is None:
        raise _invalid("the topmost certificate is not signed by the anchor of its issuer's name")
    for certificate in path:
        if not _is_affordable(certificate):
            raise _invalid("a key in the chain is of a kind or size that is not accepted")
    fingerprint = anchor.fingerprint(hashes.SHA256())
    verifier = (
        PolicyBuilder()
        .store(realm.anchor_stores[fingerprint])
        .time(now)
        .max_chain_depth(_MAX_DEPTH)
        .extension_policies(ca_policy=_CA_POLICY, ee_policy=_EE_POLICY)
        .build_client_verifier()
    )
    try:
        verifier.verify(leaf, path[1:])
    except VerificationError as exc:
        raise _invalid(ascii(str(exc))[:300]) from exc
    return realm.anchors[fingerprint]


def _path(
    realm: Realm, leaf: x509.Certificate, sent: list[x509.Certificate]
) -> tuple[list[x509.Certificate], list[x509.Certificate]]:
    """The certificates from the leaf up to the one whose issuer has an anchor's name, and those anchors."""
    path = [leaf]
    rest = list(sent)
    while len(path) <= _MAX_DEPTH:
        issuer = path[-1].issuer
        anchors = [anchor for anchor in realm.anchor_certificates if anchor.subject == issuer]
        if anchors:
            return path, anchors
        above = [certificate for certificate in rest if certificate.subject == issuer]
        if not above:
            raise _no_path(realm, path[-1])
        chosen = min(above, key=lambda certificate: not _identifies(path[-1], certificate))
        rest.remove(chosen)
        path.append(chosen)
    raise _unknown()


def _identifies(certificate: x509.Certificate, issuer: x509.Certificate) -> bool:
    """Whether the authorityKeyIdentifier of the one is the subjectKeyIdentifier of the other."""
    try:
        wanted = certificate.extensions.get_extension_for_class(x509.AuthorityKeyIdentifier).value.key_identifier
        return wanted == issuer.extensions.get_extension_for_class(x509.SubjectKeyIdentifier).value.digest
    except (ValueError, x509.ExtensionNotFound, x509.DuplicateExtension):
        return False


def _issued(certificate: x509.Certificate, anchor: x509.Certificate) -> bool:
    try:
        certificate.verify_directly_issued_by(anchor)
    except (ValueError, TypeError, InvalidSignature, UnsupportedAlgorithm):
        return False
    return True


def _is_affordable(certificate: x509.Certificate) -> bool:
    key = certificate.public_key()
    if isinstance(key, rsa.RSAPublicKey):
        return 2048 <= key.key_size <= 8192 and key.public_numbers().e.bit_length() <= _MAX_EXPONENT_BITS
    return isinstance(key, ec.EllipticCurvePublicKey) and isinstance(key.curve, _CURVES)


def _no_path(realm: Realm, lonely: x509.Certificate) -> NotAuthenticated:
    # Its issuer was not sent. Whether that belongs under an anchor can only be guessed by its organization.
    organizations = {_organization(anchor.subject) for anchor in realm.anchor_certificates} - {None}
    if _organization(lonely.issuer) in organizations:
        return NotAuthenticated(
            "chain_incomplete",
            "The client certificate came without the CA certificates between it and its manufacturer's root.",
        )
    return _unknown()


def _unknown() -> NotAuthenticated:
    return NotAuthenticated("certificate_unknown", "The client certificate is not known here.")


def _invalid(detail: str) -> NotAuthenticated:
    return NotAuthenticated("chain_invalid", "The client certificate's chain is not valid.", detail=detail)


def _organization(name: x509.Name) -> str | None:
    found = name.get_attributes_for_oid(NameOID.ORGANIZATION_NAME)
    return str(found[0].value) if found else None
