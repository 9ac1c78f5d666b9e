"""What another realm must answer to a credential that it never gave: one reason, by what is shown and what it takes."""

from cryptography import x509
from cryptography.x509.oid import NameOID

from ca_core.matrix.cells import Wire
from ca_core.matrix.door import Shown
from ca_core.matrix.ground import Place

__all__ = ["expected_away"]


_WITHOUT_CERTIFICATE = {
    Wire.SIMPLEREENROLL: "reenroll_needs_own_certificate",
    Wire.RENEWAL_REQ: "renewal_needs_certificate",
}


def expected_away(away: Place, shown: Shown, operation: Wire) -> frozenset[str] | None:
    """The code of the refusal, or `pending` where an operator looks at everybody; None where everybody is let in."""
    is_bare = not shown.chain and shown.secret is None
    if is_bare and away.realm.bare_way is not None and not away.realm.bare_way.approval:
        return None
    if operation is Wire.CERT_POLL:
        # Who is nobody in particular waits there too, for another operator's word.
        return frozenset({"pending" if is_bare and away.realm.bare_way is not None else "transaction_unknown"})
    return frozenset({_reason(away, shown, operation)})


def _reason(away: Place, shown: Shown, operation: Wire) -> str:
    proofs = away.realm.proofs
    if shown.secret is not None:
        return "secret_unknown" if "secret" in proofs else "secret_not_admitted"
    if not shown.chain:
        if away.realm.bare_way is None:
            return "credentials_missing"
        return _WITHOUT_CERTIFICATE.get(operation, "pending")
    if away.accepts(shown.chain):
        if "idevid" not in proofs:
            return "idevid_not_admitted"
        return "device_unknown" if _serial_number(shown.chain[0]) else "idevid_without_serial"
    return _no_path(away, shown.chain)


def _no_path(away: Place, chain: tuple[bytes, ...]) -> str:
    """A foreign chain is unknown; by its names it may look like one of a manufacturer that is trusted."""
    above = [x509.load_der_x509_certificate(der).issuer for der in chain]
    if {anchor.subject for anchor in away.trusted} & set(above):
        return "chain_invalid"
    organizations = {_organization(anchor.subject) for anchor in away.trusted} - {None}
    return "chain_incomplete" if _organization(above[-1]) in organizations else "certificate_unknown"


def _organization(name: x509.Name) -> str | None:
    found = name.get_attributes_for_oid(NameOID.ORGANIZATION_NAME)
    return str(found[0].value) if found else None


def _serial_number(der: bytes) -> bool:
    return bool(x509.load_der_x509_certificate(der).subject.get_attributes_for_oid(NameOID.SERIAL_NUMBER))
