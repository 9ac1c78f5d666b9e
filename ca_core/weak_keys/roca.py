"""ROCA (CVE-2017-15361): keys of Infineon's RSALib, as TPMs and smart cards made them until 2017.

Its primes are k*M + (65537^a mod M), where M is the product of the first primes, at least those up to 167. So each
modulus is a power of 65537 modulo M, and modulo each of these primes (Nemec and others, The Return of Coppersmith's
Attack, 2017, section 4). That all remainders are powers happens by chance once in 2^27 moduli; a fleet is larger, so it
must be one and the same power: then chance would need 2^150.
"""

import math

from ca_core.weak_keys.small_factors import primes_below

GENERATOR = 65537
LARGEST = 167


def is_roca(modulus: int) -> bool:
    """Whether it is a power of 65537 modulo the product of all primes up to `LARGEST`."""
    remainder = modulus % _PRODUCT
    exponent, order = 0, 1  # what is known of the power: it is `exponent` modulo `order`
    for prime, logarithms in _LOGARITHMS:
        logarithm = logarithms.get(remainder % prime)
        if logarithm is None:
            return False
        shared = math.gcd(order, len(logarithms))
        if (logarithm - exponent) % shared:
            return False
        # The Chinese remainder theorem, for orders that need not be coprime.
        other = len(logarithms) // shared
        exponent += order * ((logarithm - exponent) // shared * pow(order // shared, -1, other) % other)
        order *= other
    return True


def _powers(prime: int) -> dict[int, int]:
    """Each power of 65537 modulo the prime, with its logarithm."""
    found: dict[int, int] = {}
    power = 1
    while power not in found:
        found[power] = len(found)
        power = power * GENERATOR % prime
    return found


# Small groups first: they tell most moduli apart at once.
_LOGARITHMS = sorted(
    ((prime, _powers(prime)) for prime in primes_below(LARGEST + 1) if GENERATOR % prime),
    key=lambda pair: len(pair[1]) / pair[0],
)
_PRODUCT = math.prod(prime for prime, _ in _LOGARITHMS)
