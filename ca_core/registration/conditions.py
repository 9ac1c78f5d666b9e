"""What the commit of an issued certificate repeats: every fact that the decision stood on, by name.

Each is a clause over the parameters of the guard's insert; the guard writes its row while all of them hold.
"""

from sqlalchemy import ColumnElement, and_, bindparam, func, not_, select
from sqlalchemy.sql import exists

from ca_core.model import Means
from ca_core.records.query import Query
from ca_core.records.schema import admitted, certificate, device, device_secret, issuer, key_block, request
from ca_core.records.unit import guarded_insert
from ca_core.registration.admission.own_certificate import newer_is_revoked
from ca_core.registration.device import AS_RECORDED, MAY_ENROLL
from ca_core.registration.name_rows import not_held
from ca_core.registration.realm import SAME_ACTIVE
from ca_core.registration.retransmission import is_answer

_o = certificate.alias("other").c
_t = certificate.alias("twin").c
_x = certificate.alias("transacted").c
_own = certificate.alias("own").c
_d, _i, _s, _q, _a = device.c, issuer.c, device_secret.c, request.c, admitted.c

_OF_TRANSACTION = (
    _x.realm_id == bindparam("realm_id"),
    _x.transaction_id == bindparam("transaction_id"),
    _x.device_id == bindparam("device_id"),
)

_ALWAYS: dict[str, ColumnElement[bool]] = {
    "realm_version": SAME_ACTIVE,
    # With its record as it was read: the certificate's names and profile come from there.
    "device_state": exists().where(
        _d.realm_id == bindparam("realm_id"), _d.id == bindparam("device_id"), MAY_ENROLL, *AS_RECORDED
    ),
    "issuer_active": exists().where(
        _i.realm_id == bindparam("realm_id"),
        _i.id == bindparam("issuer_id"),
        _i.state == "active",
        # Not by its number alone: a database made anew gives the number to another CA.
        _i.der == bindparam("issuer_der"),
    ),
    "key_not_blocked": not_(exists().where(key_block.c.spki_sha256 == bindparam("spki_sha256"))),
    # "same transactionID, another key": a transaction is one request, however often it is sent.
    "transaction_not_of_other_key": not_(
        exists().where(
            *_OF_TRANSACTION,
            _x.spki_sha256 != bindparam("spki_sha256"),
            _x.issued_at > bindparam("transaction_since"),
        )
    ),
    # A key of enrolld's own (CA, server) has no device and is another's as well.
    "key_not_of_other_device": not_(
        exists().where(
            _o.realm_id == bindparam("realm_id"),
            _o.spki_sha256 == bindparam("spki_sha256"),
            (_o.device_id != bindparam("device_id")) | _o.device_id.is_(None),
        )
    ),
}
# A compromised key proves nothing, whichever certificate of it was shown.
_CREDENTIAL_KEY: dict[str, ColumnElement[bool]] = {
    "credential_key_not_blocked": not_(exists().where(key_block.c.spki_sha256 == bindparam("credential_key"))),
}
_SECRET: dict[str, ColumnElement[bool]] = {
    "secret_unspent": exists().where(
        and_(
            _s.realm_id == bindparam("realm_id"),
            _s.id == bindparam("secret_id"),
            _s.device_id == bindparam("device_id"),
            _s.spent_at.is_(None),
            _s.voided_at.is_(None),
            _s.expires_at > bindparam("issued_at"),
        )
    )
}
_OWN: dict[str, ColumnElement[bool]] = {
    "certificate_valid": exists().where(
        _own.realm_id == bindparam("realm_id"),
        _own.id == bindparam("renews_id"),
        _own.status == "valid",
        _own.superseded_at.is_(None),
    ),
    # A transaction renews a certificate once, whatever else the requests in it may ask.
    "transaction_not_served": not_(
        exists().where(
            *_OF_TRANSACTION,
            _x.spki_sha256 == bindparam("spki_sha256"),
            _x.renews_id == bindparam("renews_id"),
        )
    ),
    "newer_certificate_valid": not_(
        newer_is_revoked(bindparam("realm_id"), bindparam("device_id"), bindparam("renews_id"))
    ),
}
# "A retransmission is not a second request": of two that arrive at once, one finds the other's certificate.
_NOT_ASKED_BEFORE: dict[str, ColumnElement[bool]] = {
    "not_asked_before": not_(
        exists().where(
            _t.realm_id == bindparam("realm_id"),
            _t.request_key == bindparam("request_key"),
            _t.issued_at > bindparam("retry_since"),
            is_answer(_t, bindparam("issued_at")),
        )
    )
}

# What is signed by a lasting key is certified once in a transaction: it may be sent again by anybody.
_BEGUN: dict[str, ColumnElement[bool]] = {
    "transaction_not_begun": not_(
        exists().where(
            *_OF_TRANSACTION,
            _x.spki_sha256 == bindparam("spki_sha256"),
        )
    ),
}
# A factory identity is the device's as long as the device has that board.
_FACTORY: dict[str, ColumnElement[bool]] = {
    "device_identity": exists().where(
        _d.realm_id == bindparam("realm_id"),
        _d.id == bindparam("device_id"),
        _d.manufacturer == bindparam("of_manufacturer"),
        _d.serial_number == bindparam("of_serial_number"),
    ),
} | _BEGUN

CONDITIONS: dict[Means, dict[str, ColumnElement[bool]]] = {
    Means.SECRET: _ALWAYS | _SECRET,
    Means.IDEVID: _ALWAYS | _CREDENTIAL_KEY | _FACTORY | _NOT_ASKED_BEFORE,
    Means.OWN_CERTIFICATE: _ALWAYS | _CREDENTIAL_KEY | _OWN | _NOT_ASKED_BEFORE,
    Means.CHALLENGE: _ALWAYS | _BEGUN | _NOT_ASKED_BEFORE,
    Means.OPEN: _ALWAYS | _BEGUN | _NOT_ASKED_BEFORE,
    Means.APPROVAL: _ALWAYS | _BEGUN | _NOT_ASKED_BEFORE,
}

NARROWING: dict[str, ColumnElement[bool]] = {
    **_CREDENTIAL_KEY,
    "request_approved": exists().where(
        _q.realm_id == bindparam("realm_id"),
        _q.id == bindparam("pending_id"),
        _q.state == "approved",
        _q.expires_at > bindparam("issued_at"),
    ),
    "below_ceiling": func.coalesce(
        select(_a.total).where(_a.realm_id == bindparam("realm_id"), _a.day == bindparam("day")).scalar_subquery(), 0
    )
    < bindparam("ceiling"),
    # Of those that prove nothing there is a share.
    "below_share": func.coalesce(
        select(_a.unproven).where(_a.realm_id == bindparam("realm_id"), _a.day == bindparam("day")).scalar_subquery(), 0
    )
    < bindparam("share"),
    # What names no single device is no device that has something of its own to show (its identity is in its record),
    "device_without_secret": not_(
        exists().where(_s.realm_id == bindparam("realm_id"), _s.device_id == bindparam("device_id"))
    ),
    # and gives no device a second identity.
    "device_not_enrolled": not_(
        exists().where(
            _o.realm_id == bindparam("realm_id"),
            _o.device_id == bindparam("device_id"),
            _o.superseded_at.is_(None),
        )
    ),
}
"""Conditions of what the realm's ways ask beyond a means. The parameters are those of `issued.issued_unit`."""

_OF_REGISTERED = frozenset({"device_state", "device_identity"})
"""Conditions that concern the device's row, which a newcomer has not before."""

GUARDS: dict[Means, tuple[Query, Query]] = {
    means: guarded_insert(certificate, conditions) for means, conditions in CONDITIONS.items()
}
"""For each means, the guard's INSERT and the SELECT that names the conditions that failed."""
_NARROWED: dict[tuple[Means, tuple[str, ...], int, bool], tuple[Query, Query]] = {}


def guard_of(means: Means, narrowing: tuple[str, ...], chosen: int = 0, *, is_new: bool = False) -> tuple[Query, Query]:
    """The same for a means with some of `NARROWING`, and for so many names beside the record's (`room_for`).

    Of a newcomer, the row is its device's.
    """
    key = means, narrowing, chosen, is_new
    if key == (means, (), 0, False):
        return GUARDS[means]
    found = _NARROWED.get(key)
    if found is None:
        conditions = CONDITIONS[means] | {name: NARROWING[name] for name in narrowing}
        if chosen:
            conditions |= {"names_not_of_other_device": not_held(chosen)}
        if is_new:
            conditions = {name: clause for name, clause in conditions.items() if name not in _OF_REGISTERED}
        found = _NARROWED[key] = guarded_insert(device if is_new else certificate, conditions)
    return found
