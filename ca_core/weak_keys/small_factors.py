"""A modulus with a small prime in it: a broken generator, or bits that fell over in memory or on the way."""

import math

LIMIT = 1 << 14
"""Primes below it are tried. A larger limit would cost more than all other checks together."""


def has_small_factor(modulus: int) -> bool:
    """Whether a prime below `LIMIT` divides it."""
    return math.gcd(modulus, _PRODUCT % modulus) != 1


def primes_below(limit: int) -> list[int]:
    """The primes, by the sieve of Eratosthenes."""
    is_prime = bytearray([1]) * limit
    is_prime[:2] = b"\0\0"
    for number in range(2, math.isqrt(limit) + 1):
        if is_prime[number]:
            is_prime[number * number :: number] = bytes(len(range(number * number, limit, number)))
    return [number for number in range(limit) if is_prime[number]]


_PRODUCT = math.prod(primes_below(LIMIT))
