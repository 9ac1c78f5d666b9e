"""Token buckets by key, and the networks that addresses are counted with."""

import pytest

from ca_core.limits import Buckets, source_prefix


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
