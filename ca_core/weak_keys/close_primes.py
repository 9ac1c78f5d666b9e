"""Two primes close together, found by Fermat's way of factoring (CVE-2022-26320, of printers).

n = p*q = a^2 - b^2 with a = (p+q)/2 and b = (p-q)/2, so that for close primes a is just above the root of n. How many
steps are tried is what the CA/Browser Forum's Baseline Requirements ask of public CAs (6.1.1.3): a hundred.
"""

import math

ROUNDS = 100


def has_close_primes(modulus: int) -> bool:
    """Whether Fermat's method factors it within `ROUNDS` steps; also for the square of a prime."""
    a = math.isqrt(modulus)
    rest = a * a - modulus  # b^2, if this is the right a
    for _ in range(ROUNDS + 1):
        if rest >= 0 and _is_square(rest):
            return True
        rest += 2 * a + 1
        a += 1
    return False


def _is_square(number: int) -> bool:
    # Seven of eight numbers are told by their last bits, most of the others by one remainder.
    if not _SQUARES_OF_256 >> (number & 255) & 1 or not _SQUARES_OF_SMALL >> (number % _SMALL) & 1:
        return False
    return math.isqrt(number) ** 2 == number


_SMALL = 3 * 5 * 7 * 11 * 13
_SQUARES_OF_256 = sum(1 << each for each in {n * n % 256 for n in range(256)})
_SQUARES_OF_SMALL = sum(1 << each for each in {n * n % _SMALL for n in range(_SMALL)})
