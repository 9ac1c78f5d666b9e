"""Token buckets by key, and the networks that addresses are counted with."""

from collections.abc import Callable

import pytest

from ca_core.errors import TooMany
from ca_core.limits import Buckets, RateLimits, Rates, source_prefix


def test_a_key_has_its_burst_and_then_its_rate() -> None:
    now = [100.0]
    buckets = Buckets(rate=2, burst=3, clock=lambda: now[0])
    assert [buckets.take("a") for _ in range(5)] == [True, True, True, False, False]
    assert buckets.take("b"), "each key by itself"
    now[0] += 1
    assert [buckets.take("a") for _ in range(3)] == [True, True, False]
    now[0] += 1000
    assert [buckets.take("a") for _ in range(4)] == [True, True, True, False]


def test_memory_is_bounded_whatever_the_keys() -> None:
    buckets = Buckets(rate=1, burst=1, clock=lambda: 0.0)
    for key in range(20_000):
        buckets.take(key)
    assert len(buckets) == 4096
    assert buckets.take(0), "a forgotten key starts anew"
    assert not buckets.take(19_999), "a remembered one does not"


@pytest.mark.parametrize(
    ("address", "prefix"),
    [
        ("192.0.2.77", "192.0.2.0/24"),
        ("::ffff:192.0.2.77", "192.0.2.0/24"),
        ("2001:db8:1:2:3:4:5:6", "2001:db8:1:2::/64"),
        ("local", "local"),
    ],
)
def test_an_address_is_counted_with_its_network(address: str, prefix: str) -> None:
    assert source_prefix(address) == prefix


# --- rates -----------------------------------------------------------------------------------------------------------


def _rates(clock: Callable[[], float], **changed: int) -> Rates:
    numbers = {"per_device": 3, "per_credential": 2, "refusals_per_source": 20, **changed}
    return Rates(RateLimits(**numbers, is_trusted=lambda address: address == "127.0.0.1"), clock)


def test_a_credential_and_its_device_each_have_their_share_of_certificates() -> None:
    now = [0.0]
    rates = _rates(lambda: now[0])
    for credential in ("first", "first", "second"):
        rates.take("device", credential)
    with pytest.raises(TooMany) as caught:
        rates.take("device", "first")
    assert (caught.value.code, caught.value.retry_after) == ("rate_credential", 1800)
    with pytest.raises(TooMany) as caught:
        rates.take("device", "third")
    assert (caught.value.code, caught.value.retry_after) == ("rate_device", 1200)
    rates.take("other device", "fourth")
    now[0] = 1200
    rates.take("device", "third")


def test_a_certificate_that_did_not_come_to_be_uses_up_nothing() -> None:
    rates = _rates(lambda: 0.0)
    for _ in range(10):
        rates.take("device", "first")
        rates.give_back("device", "first")
    rates.take("device", "first")


def test_refusals_use_up_the_share_of_their_source_and_of_no_other() -> None:
    rates = _rates(lambda: 0.0)
    assert [rates.refused("192.0.2.1") for _ in range(20)] == [None] * 20
    told = rates.refused("192.0.2.1")
    assert told is not None
    assert (told.code, told.retry_after) == ("rate_source", 5)
    assert rates.refused("192.0.2.2") is None
    assert [rates.refused("127.0.0.1") for _ in range(30)] == [None] * 30, "a trusted one has no limit"
    assert [rates.refused(f"2001:db8::{number:x}") for number in range(20)] == [None] * 20
    assert rates.refused("2001:db8::ffff") is not None, "a /64 is one source"


def test_a_source_goes_last_after_a_few_refusals_until_somebody_there_gets_a_certificate() -> None:
    now = [0.0]
    rates = _rates(lambda: now[0])
    for _ in range(5):
        assert not rates.is_late("192.0.2.1")
        rates.refused("192.0.2.1")
        rates.refused("127.0.0.1")
    assert rates.is_late("192.0.2.1")
    assert not rates.is_late("192.0.2.2")
    assert not rates.is_late("127.0.0.1")
    rates.proven("192.0.2.1")
    assert not rates.is_late("192.0.2.1")
    for _ in range(5):
        rates.refused("192.0.2.1")
    now[0] = 13
    assert not rates.is_late("192.0.2.1"), "one refusal in twelve seconds is forgiven"
