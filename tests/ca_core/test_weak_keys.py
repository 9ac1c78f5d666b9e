"""RSA moduli that anybody can factor: each weakness is found by its name, and no strong key is taken for one."""

import hashlib
import logging
import math
import os
import random
import secrets
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric import rsa

from ca_core.weak_keys import MAX_BITS, debian, find_weakness
from ca_core.weak_keys.close_primes import ROUNDS, has_close_primes
from ca_core.weak_keys.fingerprints import PackedFingerprints, pack
from ca_core.weak_keys.roca import LARGEST, is_roca
from ca_core.weak_keys.small_factors import LIMIT, has_small_factor, primes_below
from certs import debian_list
from tests.end_to_end.clients import needs
from tests.helpers.bad_csr import rsa_key
from tests.helpers.debian_keys import MACHINES, PUBLISHED, RANDOM_FILES, RandomFile, debian_key
from tests.helpers.weak_rsa import (
    DEBIAN,
    DEBIAN_LINE,
    OTHER_DEBIAN,
    close_primes_key,
    next_prime,
    roca_key,
    roca_product,
    small_factor_key,
)


def modulus(key: rsa.RSAPrivateKey) -> int:
    return key.public_key().public_numbers().n


LONG = os.environ.get("ENROLLD_LONG") == "1"
STRONG = [pytest.param(bits, id=f"rsa-{bits}") for bits in (2048, 3072, 4096)]


@pytest.mark.parametrize(
    ("key", "code"),
    [
        pytest.param(small_factor_key, "key_small_factor", id="small-factor"),
        pytest.param(roca_key, "key_roca", id="roca"),
        pytest.param(close_primes_key, "key_close_primes", id="close-primes"),
    ],
)
def test_case_16_weak_key_is_found_by_its_name_and_a_strong_one_is_not(
    key: Callable[[], rsa.RSAPrivateKey], code: str
) -> None:
    assert find_weakness(modulus(key())) == code
    assert find_weakness(modulus(rsa_key(2048))) is None


@pytest.mark.parametrize("bits", STRONG)
def test_strong_keys_have_no_weakness(bits: int) -> None:
    made = {modulus(rsa.generate_private_key(65537, bits)) for _ in range(6 if bits == 2048 else 1)}
    assert {find_weakness(each) for each in made} == {None}


@pytest.mark.parametrize("wrong", [0, (1 << MAX_BITS) + 1], ids=["zero", "too-long"])
def test_what_is_no_modulus_is_not_looked_at(wrong: int) -> None:
    with pytest.raises(ValueError, match="no modulus"):
        find_weakness(wrong)


# --- small factors ----------------------------------------------------------------------------------------------------


def test_every_prime_below_the_limit_is_found_and_the_next_is_not() -> None:
    large = next_prime(secrets.randbits(1024) | 1 << 1023)
    known = primes_below(LIMIT)
    assert (known[:5], len(known), known[-1]) == ([2, 3, 5, 7, 11], 1900, 16381)
    assert [prime for prime in known if not has_small_factor(large * prime)] == []
    assert not has_small_factor(large * next_prime(LIMIT + 1))


# --- ROCA -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("bits", [2048, 3072, 4096])
def test_whatever_power_rsalib_chose_its_modulus_is_known(bits: int) -> None:
    product = roca_product(bits)
    for _ in range(50):
        power = pow(65537, secrets.randbelow(1 << 128), product)
        assert is_roca(power + product * secrets.randbits(bits - product.bit_length()))


def test_powers_that_are_not_one_and_the_same_are_chance() -> None:
    """All that the first published test looks at, which a modulus in 2^27 shows by chance."""
    chosen = random.Random(1)
    found, product = 0, 1
    for prime in primes_below(LARGEST + 1):
        power = pow(65537, chosen.randrange(prime), prime)
        found += product * ((power - found) * pow(product, -1, prime) % prime)
        product *= prime
    fits = [found % prime in {pow(65537, n, prime) for n in range(prime)} for prime in primes_below(LARGEST + 1)]
    assert all(fits)
    assert not is_roca(found)
    assert is_roca(pow(65537, 10**40, product))


# --- primes close together --------------------------------------------------------------------------------------------


def rounds_to(a: int, b: int) -> int:
    """How many steps it is from the root of a^2 - b^2 up to a."""
    return a - math.isqrt(a * a - b * b)


def test_primes_are_close_up_to_the_last_round_and_not_beyond() -> None:
    a = 1 << 1023
    last = math.isqrt(2 * a * ROUNDS) - 1
    beyond = math.isqrt(2 * a * ROUNDS) + 1
    assert (rounds_to(a, last), rounds_to(a, beyond)) == (ROUNDS, ROUNDS + 1)
    assert has_close_primes(a * a - last * last)
    assert not has_close_primes(a * a - beyond * beyond)


@pytest.mark.parametrize("bits", [2048, 4096])
def test_the_square_of_a_prime_has_close_primes(bits: int) -> None:
    prime = rsa_key(bits).private_numbers().p
    assert has_close_primes(prime * prime)
    assert not has_close_primes(modulus(rsa_key(bits)))


# --- Debian's of 2008 -------------------------------------------------------------------------------------------------

LARGER = (1 << 3071) + (DEBIAN << 1000)
"""A size for which no list is shipped."""
LINE = debian.fingerprint(LARGER).hex()
LISTED = f"""\
# A list as openssl-vulnkey(1) describes it.
#
00006aa0ce2cd60e6660
{LINE}
ffff8f7e6a29aea0b430
"""


def sha1(text: bytes) -> str:
    return hashlib.sha1(text).hexdigest()  # noqa: S324  # as it was published


def test_fingerprint_is_the_one_that_was_published() -> None:
    assert debian.fingerprint(DEBIAN).hex() == DEBIAN_LINE


def test_debian_s_generator_is_followed_to_the_keys_that_it_made() -> None:
    keys = [debian_key(32767, machine, random_file) for machine in MACHINES.values() for random_file in RANDOM_FILES]
    lines = sorted(sha1(b"Modulus=%X\n" % modulus(key)) + "\n" for key in keys)
    assert sha1("".join(lines).encode()) == PUBLISHED


@pytest.mark.foreign
def test_what_makes_the_shipped_list_follows_the_generator_too(tmp_path: Path) -> None:
    needs("gcc", "libssl-dev")
    program = debian_list.build(tmp_path)
    for machine, random_file in zip(MACHINES, RANDOM_FILES, strict=True):
        made = subprocess.run([program, "2048", machine, random_file, "77", "78"], check=True, capture_output=True)
        keys = [debian_key(pid, MACHINES[machine], random_file) for pid in (77, 78)]
        assert made.stdout.decode().split() == [debian.fingerprint(modulus(key)).hex() for key in keys]


@pytest.mark.parametrize("found", [DEBIAN, OTHER_DEBIAN], ids=["goodkey", "badkeys"])
def test_case_16_debian_s_key_that_was_met_in_the_field_is_found(found: int) -> None:
    assert find_weakness(found) == "key_debian"
    assert find_weakness(found + 2) != "key_debian"


@pytest.mark.parametrize("random_file", RANDOM_FILES)
@pytest.mark.parametrize("machine", MACHINES)
def test_case_16_debian_s_key_of_any_process_on_any_machine_is_found(machine: str, random_file: RandomFile) -> None:
    chosen = random.Random(machine + random_file)
    for pid in [*chosen.sample(range(1 << 15), 200 if LONG else 1), *([0, 32767] if LONG else [])]:
        weak = modulus(debian_key(pid, MACHINES[machine], random_file))
        assert find_weakness(weak) == "key_debian", pid
        assert find_weakness(weak ^ 2) != "key_debian"


def test_case_16_debian_s_key_whose_primes_were_long_in_coming_is_found() -> None:
    """One in a hundred draws so often that the generator writes behind its ring."""
    assert find_weakness(modulus(debian_key(17, MACHINES["le32"], "empty"))) == "key_debian"


def test_shipped_list_is_whole_and_takes_no_other_key_for_one_of_its_own() -> None:
    shipped = debian.read_shipped(2048)
    assert len(shipped) == 32768 * len(MACHINES) * len(RANDOM_FILES)
    assert len(debian.SHIPPED[2048].read_bytes()) < 1_500_000
    assert not any(debian.fingerprint(secrets.randbits(2048) | 1 << 2047) in shipped for _ in range(10_000))


def test_every_packed_fingerprint_is_found_and_its_neighbours_are_not() -> None:
    known = {secrets.token_bytes(10) for _ in range(3000)} | {b"\0" * 10, b"\xff" * 10, b"\x12\x34" + b"\xff" * 8}
    packed = PackedFingerprints.parse(pack(known))
    assert len(packed) == len(known)
    assert all(each in packed for each in known)
    assert not any(each[:5] + bytes([each[5] ^ 1]) in packed for each in known)


@pytest.mark.parametrize(
    "wrong", [b"", b"\0" * 65535, pack([b"123456"])[:-1], pack([b"123456"]) + b"1"], ids=["none", "cut", "less", "more"]
)
def test_list_that_is_not_whole_is_refused(wrong: bytes) -> None:
    with pytest.raises(ValueError, match="not all of them"):
        PackedFingerprints.parse(wrong)


def test_fingerprint_too_short_to_tell_keys_apart_is_refused() -> None:
    with pytest.raises(ValueError, match="shorter than six bytes"):
        pack([b"12345"])


@pytest.mark.parametrize("text", [LISTED, LISTED.replace("\n", "\r\n"), LISTED.rstrip()], ids=["lf", "crlf", "cut"])
def test_case_16_key_is_found_in_the_installed_list_for_its_size_and_others_are_not(lists: Path, text: str) -> None:
    (lists / "blacklist.RSA-3072").write_bytes(text.encode())
    assert debian.is_listed(LARGER)
    assert find_weakness(modulus(rsa_key(2048))) is None
    assert find_weakness(modulus(rsa_key(4096))) is None


def test_every_line_of_an_installed_list_is_found_beside_the_shipped(lists: Path) -> None:
    moduli = [secrets.randbits(2048) | 1 << 2047 for _ in range(300)]
    lines = sorted(debian.fingerprint(each).hex() for each in moduli)
    (lists / "blacklist.RSA-2048").write_text("# comment\n" + "\n".join(lines) + "\n")
    assert all(map(debian.is_listed, [*moduli, DEBIAN]))
    assert not any(debian.is_listed(each ^ 2) for each in moduli)


def test_without_a_list_for_its_size_no_key_is_debian_s(lists: Path) -> None:
    (lists / "blacklist.RSA-1024").write_text(LISTED)
    assert not debian.is_listed(LARGER)


@pytest.mark.parametrize("text", ["", "# nothing\n", f"{LINE.upper()}\n", "\0" * 4096, LINE[1:] + "\n"])
def test_list_in_no_known_form_is_told_and_finds_nothing(
    lists: Path, caplog: pytest.LogCaptureFixture, text: str
) -> None:
    (lists / "blacklist.RSA-3072").write_text(text)
    with caplog.at_level(logging.WARNING):
        assert not debian.is_listed(LARGER)
    assert "holds none in the form of openssl-vulnkey(1)" in caplog.text


def test_list_that_can_t_be_read_is_told_and_finds_nothing(lists: Path, caplog: pytest.LogCaptureFixture) -> None:
    (lists / "blacklist.RSA-3072").mkdir()
    with caplog.at_level(logging.WARNING):
        assert not debian.is_listed(LARGER)
    assert "can't be read: Is a directory" in caplog.text
