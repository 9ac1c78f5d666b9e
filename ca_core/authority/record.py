"""The row of a signed certificate."""

import hashlib
import json

from ca_core.authority.issuance import SignedCertificate
from ca_core.model import format_serial
from ca_core.records.query import Values
from ca_core.records.times import to_ms


def certificate_row(
    signed: SignedCertificate,
    *,
    realm_id: int | None,
    issuer_id: int | None,
    kind: str,
    profile: str | None,
    device_id: int | None,
    protocol: str,
    key: str,
    spki_sha256: bytes,
    at: int,
) -> Values:
    """The row of a signed certificate, valid and belonging to no request."""
    plan = signed.plan
    return {
        "realm_id": realm_id,
        "issuer_id": issuer_id,
        "serial": format_serial(signed.serial),
        "kind": kind,
        "profile": profile,
        "device_id": device_id,
        "subject": plan.subject.rfc4514_string(),
        "names": json.dumps(plan.names),
        "not_before": to_ms(plan.not_before),
        "not_after": to_ms(plan.not_after),
        "status": "valid",
        "revoked_at": None,
        "reason": None,
        "crl_entry": None,
        "fingerprint": hashlib.sha256(signed.der).digest(),
        "spki_sha256": spki_sha256,
        "key": key,
        "protocol": protocol,
        "der": signed.der,
        "request_key": None,
        "renews_id": None,
        "replaced_by_id": None,
        "request_id": None,
        "transaction_id": None,
        "issued_at": at,
        "superseded_at": None,
        "name_keys": None,
    }
