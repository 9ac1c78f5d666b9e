"""`python -m bench.weak_keys`: what the look for RSA keys that anybody can factor costs, per strong key of each size.

A strong key is the dear one: it passes every check. Beside the shipped list of Debian's weak keys, an installed one of
300,000 made-up lines is looked into.
"""

import secrets
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric import rsa

from ca_core.weak_keys import debian, find_weakness
from ca_core.weak_keys.close_primes import has_close_primes
from ca_core.weak_keys.roca import is_roca
from ca_core.weak_keys.small_factors import has_small_factor

SIZES = (2048, 3072, 4096)
LINES = 300_000
SECONDS = 0.5
CHECKS: dict[str, Callable[[int], object]] = {
    "small factor": has_small_factor,
    "ROCA": is_roca,
    "close primes": has_close_primes,
    "Debian": debian.is_listed,
    "all": find_weakness.__wrapped__,  # without its memory of keys that it has seen
}


def main() -> int:
    """Measure, and print a table in microseconds."""
    with tempfile.TemporaryDirectory(prefix="enrolld-bench-") as name:
        debian.FOLDER = Path(name)
        print("  ".join(f"{title:>12}" for title in ("us each", *CHECKS, "first list")))
        for bits in SIZES:
            lines = sorted(secrets.token_hex(10) for _ in range(LINES))
            (debian.FOLDER / f"blacklist.RSA-{bits}").write_text("# made up\n" + "\n".join(lines) + "\n")
            modulus = rsa.generate_private_key(65537, bits).public_key().public_numbers().n
            reading = _microseconds(debian.is_listed, modulus, least=0)
            costs = [_microseconds(check, modulus) for check in CHECKS.values()]
            print("  ".join(f"{cell:>12}" for cell in (f"RSA {bits}", *(f"{each:.1f}" for each in (*costs, reading)))))
    return 0


def _microseconds(check: Callable[[int], object], modulus: int, *, least: float = SECONDS) -> float:
    """CPU per call, over at least so many seconds."""
    began, calls = time.process_time(), 0
    while calls == 0 or time.process_time() - began < least:
        check(modulus)
        calls += 1
    return (time.process_time() - began) / calls * 1e6


if __name__ == "__main__":
    sys.exit(main())
