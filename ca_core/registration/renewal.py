"""When a device should renew: learned from when it did, and otherwise assumed.

Each renewal leaves the share of the certificate's life that had passed, in thousandths. The median of the last five, or
two thirds while there are fewer than two, says when in the life of the newest certificate the next one is expected. A
twentieth of that life later the device is overdue, unless it was seen since: not each renewal can be later than the
median without half of a healthy fleet being late. Both moments stand in the device's row and are written by the very
UPDATE that says when it was seen, so that nothing is computed when they are asked for.
"""

import datetime as dt
import json
from statistics import median_low

from sqlalchemy import bindparam, null, select

from ca_core.model import OwnCertificate
from ca_core.records.query import Query, Values
from ca_core.records.schema import certificate, device
from ca_core.records.times import to_ms
from ca_core.records.unit import Step

ASSUMED = 667
LEEWAY = 50
LEARNED_FROM = 2
KEEP = 5

_d = device.c
_newer = certificate.alias("newer").c
NONE_EXPECTED = {"not_after": null(), "expected_renewal_at": null(), "overdue_at": null()}
"""The values of a device without a certificate that it could renew."""
_EXPECT_NONE = Query(
    device.update()
    .where(
        _d.realm_id == bindparam("of_realm"),
        _d.id == bindparam("of_device"),
        ~select(_newer.id)
        .where(
            _newer.realm_id == bindparam("of_realm"),
            _newer.device_id == bindparam("of_device"),
            _newer.id > bindparam("of_certificate"),
        )
        .exists(),
    )
    .values(**NONE_EXPECTED)
)


def share_of_life(renewed: OwnCertificate, now: dt.datetime) -> int:
    """How much of a certificate's life has passed, in thousandths."""
    life = renewed.not_after - renewed.not_before
    return min(1000, max(0, (now - renewed.not_before) * 1000 // life)) if life else 1000


def learned(shares: tuple[int, ...], renewed: OwnCertificate | None, now: dt.datetime) -> tuple[int, ...]:
    """The shares that are known after a certificate was issued now; `renewed` is None when it was no renewal.

    A certificate that is renewed twice (an answer was lost, two programs renew) teaches once.
    """
    if renewed is None or renewed.is_renewed:
        return shares
    return (*shares, share_of_life(renewed, now))[-KEEP:]


def expected(shares: tuple[int, ...], not_before: dt.datetime, not_after: dt.datetime) -> Values:
    """What the device's row says of the renewal of the certificate that it has now."""
    share = median_low(shares) if len(shares) >= LEARNED_FROM else ASSUMED
    life = not_after - not_before
    # However late it usually is, halfway from then to the end is the last moment to say something.
    late = min(share + LEEWAY, (share + 1000) // 2)
    return {
        "not_after": to_ms(not_after),
        "expected_renewal_at": to_ms(not_before + life * share / 1000),
        "overdue_at": to_ms(not_before + life * late / 1000),
        "renewal_shares": json.dumps(shares, separators=(",", ":")) if shares else None,
    }


def expects_none(realm_id: int, device_id: int, certificate_id: int) -> Step:
    """A certificate is revoked: when it was the device's newest, no renewal is expected any more."""
    params = {"of_realm": realm_id, "of_device": device_id, "of_certificate": certificate_id}
    return Step(_EXPECT_NONE, params, expect=None)
