"""From a certificate as sent to a trust anchor, at a price that the sender can't raise.

Anybody may send ten certificates of any kind before anything is known of him. So a path is chosen by names first, with
at most five intermediates; then the anchor, whose key is ours to trust, must verify the topmost one; only then does
path validation look at the rest, and at nothing beside that path. Six paths are tried, and no more.
"""

import datetime as dt
from collections.abc import Iterator

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.x509.oid import NameOID
from cryptography.x509.verification import (
    ClientVerifier,
    Criticality,
    ExtensionPolicy,
    PolicyBuilder,
    VerificationError,
)

from ca_core.errors import BadKey, NotAuthenticated
from ca_core.public_key import check_authority_key
from ca_core.registration.document import TrustDocument
from ca_core.registration.realm import Realm

_MAX_DEPTH = 5  # intermediate certificates
_MAX_TRIES = 6  # ways to an anchor whose signatures are looked at
_MAX_STEPS = 64  # names that are compared on the way
_MAX_EXPONENT_BITS = 33  # a longer one costs as much as it pleases
_CURVES = (ec.SECP256R1, ec.SECP384R1, ec.SECP521R1)


def _may_certify(_: object, __: object, usage: x509.KeyUsage | None) -> None:
    # "If a key usage extension is present, verify that the keyCertSign bit is set." -- RFC 5280 6.1.4 (n)
    if usage is not None and not usage.key_cert_sign:  # enforces case 39
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
    search = _Search(realm, sent, now)
    why = ""
    for tried, (path, anchor) in enumerate(search.paths([leaf])):
        if tried >= _MAX_TRIES:
            break
        if not all(map(_is_affordable, path)):
            why = "a key in the chain is of a kind or size that is not accepted"
            continue
        if not _is_signed_down(anchor, path[1:]):
            why = why or "a CA certificate in the chain is not signed by the one of its issuer's name"
            continue
        if weak := _weakness([anchor, *path[1:]]):  # enforces case 16
            why = weak
            continue
        fingerprint = anchor.fingerprint(hashes.SHA256())
        try:
            _verifier(realm, fingerprint, now).verify(leaf, path[1:])  # enforces case 39
        except VerificationError as exc:
            why = ascii(str(exc))[:300]
            continue
        return realm.anchors[fingerprint]
    if why:
        raise NotAuthenticated("chain_invalid", "The client certificate's chain is not valid.", detail=why)
    raise _no_path(realm, search.dead_end or leaf)


def _verifier(realm: Realm, anchor: bytes, now: dt.datetime) -> ClientVerifier:
    return (
        PolicyBuilder()
        .store(realm.anchor_stores[anchor])
        .time(now)
        .max_chain_depth(_MAX_DEPTH)
        .extension_policies(ca_policy=_CA_POLICY, ee_policy=_EE_POLICY)
        .build_client_verifier()
    )


class _Search:
    """All ways by name from a leaf to an anchor, the likeliest first, within a bounded number of steps.

    Manufacturers renew roots and sub-CAs under one name, cross-sign them, and devices send them in any order.
    """

    def __init__(self, realm: Realm, sent: list[x509.Certificate], now: dt.datetime) -> None:
        self._realm = realm
        self._now = now
        self._sent = sent
        self._steps = _MAX_STEPS
        self.dead_end: x509.Certificate | None = None

    def paths(self, path: list[x509.Certificate]) -> Iterator[tuple[list[x509.Certificate], x509.Certificate]]:
        """Each way on from the last certificate of `path`: the certificates up to the topmost, and its anchor."""
        self._steps -= 1
        if self._steps < 0:
            return
        below = path[-1]
        issuer = below.issuer
        found = False
        for anchor in self._likeliest(below, [a for a in self._realm.anchor_certificates if a.subject == issuer]):
            found = True
            yield path, anchor
        above = [each for each in self._sent if each.subject == issuer and each not in path]
        if len(path) > _MAX_DEPTH:
            return
        for certificate in self._likeliest(below, above):
            found = True
            yield from self.paths([*path, certificate])
        if not found and self.dead_end is None:
            self.dead_end = below

    def _likeliest(self, below: x509.Certificate, candidates: list[x509.Certificate]) -> list[x509.Certificate]:
        if len(candidates) < 2:
            return candidates
        return sorted(candidates, key=lambda each: (not self._is_valid(each), not _identifies(below, each)))

    def _is_valid(self, certificate: x509.Certificate) -> bool:
        return certificate.not_valid_before_utc <= self._now <= certificate.not_valid_after_utc


def _identifies(certificate: x509.Certificate, issuer: x509.Certificate) -> bool:
    """Whether the authorityKeyIdentifier of the one is the subjectKeyIdentifier of the other."""
    try:
        wanted = certificate.extensions.get_extension_for_class(x509.AuthorityKeyIdentifier).value.key_identifier
        return wanted == issuer.extensions.get_extension_for_class(x509.SubjectKeyIdentifier).value.digest
    except (ValueError, x509.ExtensionNotFound, x509.DuplicateExtension):
        return False


def _is_signed_down(anchor: x509.Certificate, authorities: list[x509.Certificate]) -> bool:
    """Whether the anchor issued the last authority, and each the one before it.

    From the top down: what a stranger made himself hangs on something that does not hold, and costs one look.
    """
    above = anchor
    for authority in reversed(authorities):
        if not _issued(authority, above):
            return False
        above = authority
    return True


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


def _weakness(authorities: list[x509.Certificate]) -> str:
    """What is wrong with a key of a CA in the path, which is one of the manufacturer's by now; empty for nothing."""
    try:
        for authority in authorities:
            check_authority_key(authority.public_key())
    except BadKey as exc:
        return f"a CA's key in the chain is weak ({exc.code}): {exc.message}"
    return ""


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


def _organization(name: x509.Name) -> str | None:
    found = name.get_attributes_for_oid(NameOID.ORGANIZATION_NAME)
    return str(found[0].value) if found else None
