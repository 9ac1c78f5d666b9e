"""RSA moduli whose factors anybody can find, found by what is public. An integer in, the weakness or None out.

Looked for are the keys of broken generators that are still met in the field: Infineon's (ROCA), Debian's of 2006 to
2008, primes close together, and a prime that is no secret. `bench/weak_keys.py` says what a strong key costs.

Not looked for is a prime that two devices share (`Mining your Ps and Qs`, 2012): to find it takes one product over all
moduli ever certified, which grows with the store.
"""

from functools import lru_cache

from ca_core.weak_keys.close_primes import has_close_primes
from ca_core.weak_keys.debian import is_listed
from ca_core.weak_keys.roca import is_roca
from ca_core.weak_keys.small_factors import has_small_factor

__all__ = ["MAX_BITS", "find_weakness"]

MAX_BITS = 8192
"""Of a longer modulus nothing is said, because looking costs more than it is worth."""


@lru_cache(maxsize=1024)  # one key is judged in its CSR and in its certificate, a CA's in each chain under it
def find_weakness(modulus: int) -> str | None:
    """The code of the first weakness, None when none is found. `modulus` is positive, and of at most `MAX_BITS`."""
    if modulus <= 0 or modulus.bit_length() > MAX_BITS:
        raise ValueError("no modulus that is looked at")
    if has_small_factor(modulus):  # enforces case 16
        return "key_small_factor"
    if is_roca(modulus):  # enforces case 16
        return "key_roca"
    if has_close_primes(modulus):  # enforces case 16
        return "key_close_primes"
    return "key_debian" if is_listed(modulus) else None  # enforces case 16
