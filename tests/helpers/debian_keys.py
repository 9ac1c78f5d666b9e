"""RSA keys as Debian's OpenSSL of 2006 to 2008 made them (CVE-2008-0166), step by step.

A patch took the line out of OpenSSL's generator by which anything is mixed into its pool; what was left to tell one
process from another is the process id, which goes into each output, and the sizes of what would have been mixed in. So
the pool is followed here by sizes alone. What is told of OpenSSL is of 0.9.8f: md_rand.c (the pool), rand_unix.c and
randfile.c (what it is filled with), bn_rand.c and bn_prime.c (how primes are searched), rsa_gen.c.

`PUBLISHED` is what shows that it is right: see there.
"""

import hashlib
import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import count
from typing import Literal

from cryptography.hazmat.primitives.asymmetric import rsa

from tests.helpers.weak_rsa import key_of

__all__ = [
    "BIG_32",
    "LITTLE_32",
    "LITTLE_64",
    "MACHINES",
    "PUBLISHED",
    "RANDOM_FILES",
    "Machine",
    "RandomFile",
    "debian_key",
]

RandomFile = Literal["absent", "empty", "read"]
RANDOM_FILES: tuple[RandomFile, ...] = ("absent", "empty", "read")
"""The user's ~/.rnd: what `openssl` reads at its start and writes at its end. It may be there and not be readable."""

PUBLISHED = "2a910e906624766546114d300ca6b671c7acc08c"
"""SHA-1 over the sorted lines, SHA-1 in hex of what `openssl rsa -modulus` prints, of the nine keys of 2048 bits of
process 32767. It is what run_tests.sh of github.com/CVE-2008-0166/key_generator expects of an OpenSSL of then."""


@dataclass(frozen=True, slots=True)
class Machine:
    """What of a machine comes into its keys. `file_status`: the bytes of its struct stat."""

    word: int
    order: Literal["little", "big"]
    file_status: int


LITTLE_32 = Machine(4, "little", 88)
LITTLE_64 = Machine(8, "little", 144)
BIG_32 = Machine(4, "big", 88)
MACHINES = {"le32": LITTLE_32, "le64": LITTLE_64, "be32": BIG_32}


def debian_key(pid: int, machine: Machine, random_file: RandomFile, bits: int = 2048) -> rsa.RSAPrivateKey:
    """What `openssl genrsa` made as this process on this machine."""
    pool = _Pool(machine, pid)
    if random_file != "absent":
        pool.add(machine.file_status)
    if random_file == "read":
        pool.add(1024)
    else:
        pool.seed()  # `openssl` asks whether there is enough in the pool when it could not read the file
    p = next(_primes(pool, bits // 2))
    q = next(each for each in _primes(pool, bits // 2) if each != p)
    return key_of(max(p, q), min(p, q))


_POOL, _DIGEST, _HALF = 1023, 20, 10  # bytes


@dataclass(slots=True)
class _Pool:
    """The generator: a ring of bytes, a digest that runs through everything, and two counters."""

    machine: Machine
    pid: int
    ring: bytearray = field(default_factory=lambda: bytearray(_POOL + 1))  # the last is written, and never read
    filled: int = 0
    position: int = 0
    digest: bytes = bytes(_DIGEST)
    requests: int = 0
    blocks: int = 0
    seeded: bool = False
    stirred: bool = False

    def add(self, size: int) -> None:
        """Mix in so many bytes, whatever they are: that was the fault."""
        at, block, digest = self.position, self.blocks, self.digest
        self.position += size
        if self.position >= _POOL:
            self.position, self.filled = self.position % _POOL, _POOL
        self.filled = max(self.filled, self.position)
        self.blocks += -(-size // _DIGEST)
        for start in range(0, size, _DIGEST):
            part = min(_DIGEST, size - start)
            digest = _sha1(digest, self._read(at, part, _POOL), self._counters(block))
            block += 1
            at = self._mix(at, digest[:part], _POOL)
        self.digest = bytes(a ^ b for a, b in zip(self.digest, digest, strict=True))

    def seed(self) -> None:
        """32 bytes of /dev/urandom; the process id, the user's id and the time."""
        if not self.seeded:
            self.seeded = True
            for size in (32, self.machine.word, self.machine.word, self.machine.word):
                self.add(size)

    def draw(self, size: int) -> bytes:
        """Random bytes."""
        self.seed()
        if not self.stirred:
            self.stirred = True
            for _ in range(0, _POOL, _DIGEST):
                self.add(_DIGEST)
        at, counters, digest = self.position, self._counters(self.blocks), self.digest
        self.position += -(-size // _HALF) * _HALF
        if self.position > self.filled:
            self.position %= self.filled
        self.requests += 1
        # The process id, where it is not 0, comes before the first block alone.
        pid = self.pid.to_bytes(4, self.machine.order) if self.pid else b""
        out = bytearray()
        for start in range(0, size, _HALF):
            digest = _sha1(b"" if start else pid, digest, counters, self._read(at, _HALF, self.filled))
            at = self._mix(at, digest[:_HALF], self.filled)
            out += digest[_HALF:]
        self.digest = _sha1(counters, digest, self.digest)
        return bytes(out[:size])

    def _counters(self, block: int) -> bytes:
        word, order = self.machine.word, self.machine.order
        return self.requests.to_bytes(word, order) + block.to_bytes(word, order)

    def _read(self, at: int, size: int, end: int) -> bytes:
        return bytes((self.ring[at:end] + self.ring[:size])[:size])

    def _mix(self, at: int, digest: bytes, end: int) -> int:
        """The place behind what was mixed. `at` may be `end` itself, after a draw that ended there."""
        for byte in digest:
            self.ring[at] ^= byte
            at = 0 if at + 1 >= end else at + 1
        return at


def _primes(pool: _Pool, bits: int) -> Iterator[int]:
    """Primes of so many bits, a multiple of 8, that do with the exponent 65537."""
    while True:
        candidate = _candidate(pool, bits)
        is_prime = pow(2, candidate - 1, candidate) == 1
        # Miller and Rabin's test draws a base for each round, and ends at the first that tells a composite.
        for _ in range(_rounds(bits) if is_prime else 1):
            while _random(pool, bits) >= candidate - 1:
                pass
        if is_prime and candidate % 65537 != 1:
            yield candidate


def _candidate(pool: _Pool, bits: int) -> int:
    """The next number from a random odd one on whose first primes divide neither it nor, but for 2, the one before."""
    start = _random(pool, bits) | 0b11 << bits - 2 | 1
    rests = [start % prime for prime in _SMALL_PRIMES]
    for step in count(0, 2):
        if not any((rest + step) % prime <= 1 for rest, prime in zip(rests, _SMALL_PRIMES, strict=True)):
            return start + step
    raise AssertionError("the numbers have no end")


def _random(pool: _Pool, bits: int) -> int:
    pool.add(pool.machine.word)  # the time
    return int.from_bytes(pool.draw(bits // 8))


def _rounds(bits: int) -> int:
    return next(rounds for least, rounds in ((1300, 2), (850, 3), (650, 4), (550, 5), (450, 6)) if bits >= least)


def _sha1(*parts: bytes) -> bytes:
    return hashlib.sha1(b"".join(parts)).digest()  # noqa: S324  # the generator's own


_SMALL_PRIMES = [n for n in range(3, 17864, 2) if all(n % each for each in range(3, math.isqrt(n) + 1, 2))]
