"""RSA keys that anybody can factor, made the way broken generators make them: fresh in each run, once per process."""

import functools
import math
import secrets

from cryptography.hazmat.primitives.asymmetric import rsa

from tests.helpers.bad_csr import rsa_key

__all__ = [
    "DEBIAN",
    "DEBIAN_LINE",
    "OTHER_DEBIAN",
    "close_primes_key",
    "key_of",
    "next_prime",
    "roca_key",
    "roca_product",
    "small_factor_key",
]

DEBIAN = int(
    "D673252AF6723C3F72529403EAB7C30DEF3C52F97E799825F4A70191C616ADCF1ECE1113F1625971074C492C592025FDEADBDB146A081826"
    "BDF0D77C3C913DCF1B6F0B3B78F5108D2E493AD0EEE8CA5C021711ADC13D358E61133870FCD19C8E5C22403959782AA82E72AEE53A3D491E"
    "3912CE27B27E1A85EA69C19A527D28F7934C9823B7E56FDD657DAC83FDC65BB22A98D843DF73238919781B714C81A5E2AFEC71F5C54AA2A2"
    "7C590AD94C03C1062D50EFCFFAC743E3C8A3AE056846A1D756EB862BF4224169D467C35215ADE0AFCC11E85FE629AFB802C4786FF2E9C929"
    "BCCF502B3D3B8876C6A11785CC398B389F1D86BDD9CB0BD4EC13956EC3FA270D",
    16,
)
"""The modulus of a key of Debian's OpenSSL of 2008, and below its line in blacklist.RSA-2048, as the tests of Let's
Encrypt's boulder (goodkey/weak_test.go) have them. `tests.helpers.debian_keys` makes keys with their private halves."""
DEBIAN_LINE = "8df20e6961a16398b85a"
OTHER_DEBIAN = int(
    "C096530C4C4A343FC388FF8B6E14C88B617485966DD0F757F3DECB2F03DFDFE6F518E0948F5387059BD5AA124F26D38F139DD6EBC2343605"
    "61689758E9B14E03F714508167374CBF64E24E26C3CD95ED5A5D04E3C404BE157BB8090E9ADA9CDC53EF7E806C1E77B5F10242150A24E9AD"
    "F991088DAF20A75BEB54BC91FE43DD8755447FD3ABDEFB9F1C987A8B0419824504E213F8DD26A9C6B7ED2F2103D8422720F7A7400CE34743"
    "E4CE40440C69013EFEA2A39790FCDFCCBB424DA1D824ADFE58071ED76D41AF836E4093EA60F5719E250FA214F8631153A81EEFC17D82E3F8"
    "19DA57691ED9602550074FDEA73AC9E5CFE10F6B91ADC31B402C3E370B03A559",
    16,
)
"""The modulus of another one: tests/data/rsa-debianweak.key of badkeys."""


def roca_product(bits: int) -> int:
    """The M of RSALib for moduli of this size: the product of the first 126 primes, or of 225 above 3936 bits."""
    return math.prod(_PRIMES[: 126 if bits < 3968 else 225])


@functools.cache
def roca_key(bits: int = 2048) -> rsa.RSAPrivateKey:
    """A key as Infineon's RSALib made it: both primes are k*M + (65537^a mod M)."""
    product = roca_product(bits)

    def prime() -> int:
        lowest, highest = 0b11 << (bits // 2 - 2), 1 << (bits // 2)
        while True:
            k = lowest // product + secrets.randbelow((highest - lowest) // product)
            candidate = k * product + pow(65537, secrets.randbelow(1 << 64), product)
            if lowest < candidate < highest and _is_prime(candidate):
                return candidate

    return key_of(prime(), prime())


@functools.cache
def close_primes_key(bits: int = 2048) -> rsa.RSAPrivateKey:
    """A key whose primes are neighbours."""
    while True:
        first = next_prime(secrets.randbits(bits // 2) | 0b11 << (bits // 2 - 2))
        second = next_prime(first + 2)
        if (first - 1) % 65537 and (second - 1) % 65537:
            return key_of(second, first)


@functools.cache
def small_factor_key() -> rsa.RSAPrivateKey:
    """A key of 2061 bits, one of whose primes has 13."""
    return key_of(rsa_key(4096).private_numbers().p, 8191)


def key_of(p: int, q: int) -> rsa.RSAPrivateKey:
    """The key of these two primes, with the usual exponent."""
    d = pow(65537, -1, math.lcm(p - 1, q - 1))
    numbers = rsa.RSAPublicNumbers(65537, p * q)
    return rsa.RSAPrivateNumbers(p, q, d, d % (p - 1), d % (q - 1), pow(q, -1, p), numbers).private_key()


def next_prime(number: int) -> int:
    """The first prime that is not smaller than this odd or even number."""
    number |= 1
    while not _is_prime(number):
        number += 2
    return number


def _is_prime(number: int) -> bool:
    # Fermat's test to one base fools nobody who draws numbers of this size at random.
    return math.gcd(number, _SMALL) == 1 and pow(2, number - 1, number) == 1


_PRIMES = [n for n in range(2, 1428) if all(n % each for each in range(2, math.isqrt(n) + 1))]
_SMALL = math.prod(_PRIMES)
