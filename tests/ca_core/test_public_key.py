"""Public keys: which ones devices may bring, and how a key is named."""

import hashlib
from collections.abc import Callable

import pytest
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric import ec, ed448, ed25519, mldsa, rsa
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat, load_der_public_key

from ca_core.errors import BadKey
from ca_core.public_key import (
    check_authority_key,
    check_public_key,
    describe_key,
    encode_spki,
    key_kind,
    load_public_key,
    spki_sha256,
)
from tests.helpers.bad_csr import PrivateKey, ec_key, ec_spki, ed25519_spki, rsa_key, rsa_spki, spki_of
from tests.helpers.weak_rsa import close_primes_key, roca_key, small_factor_key

ODD_2048 = (1 << 2047) | 1

# The curve edwards25519 (RFC 8032 5.1), by its definition.
P = 2**255 - 19
D = -121665 * pow(121666, -1, P) % P
ORDER_8 = (
    0x7A03AC9277FDC74EC6CC392CFA53202A0F67100D760B3CBA4FD84D3D706A17C7,
    P - 0x7A03AC9277FDC74EC6CC392CFA53202A0F67100D760B3CBA4FD84D3D706A17C7,
)


def order(y: int) -> int:
    """The order of a point with this y, if it is small; 0 otherwise."""
    square = (y * y - 1) * pow(D * y * y + 1, -1, P) % P
    x = pow(square, (P + 3) // 8, P)
    if x * x % P != square:
        x = x * pow(2, (P - 1) // 4, P) % P
    assert x * x % P == square
    point = x, y
    for count in range(1, 9):
        if point == (0, 1):
            return count
        (a, b), product = point, D * point[0] * x * point[1] * y
        point = (a * y + b * x) * pow(1 + product, -1, P) % P, (b * y + a * x) * pow(1 - product, -1, P) % P
    return 0


def rsa_numbers(modulus: int, exponent: int) -> object:
    return rsa.RSAPublicNumbers(exponent, modulus).public_key()


@pytest.mark.parametrize(
    ("key", "name", "kind"),
    [
        pytest.param(lambda: ec_key("secp256r1"), "EC P-256", "p-256", id="p-256"),
        pytest.param(lambda: ec_key("secp384r1"), "EC P-384", "p-384", id="p-384"),
        pytest.param(lambda: ec_key("secp521r1"), "EC P-521", "p-521", id="p-521"),
        pytest.param(lambda: rsa_key(2048), "RSA 2048", "rsa-2048", id="rsa-2048"),
        pytest.param(lambda: rsa_key(2056), "RSA 2056", "rsa-2056", id="rsa-2056"),
        pytest.param(lambda: rsa_key(4096), "RSA 4096", "rsa-4096", id="rsa-4096"),
        pytest.param(ed25519.Ed25519PrivateKey.generate, "Ed25519", "ed25519", id="ed25519"),
        pytest.param(mldsa.MLDSA44PrivateKey.generate, "ML-DSA-44", "ml-dsa-44", id="ml-dsa-44"),
        pytest.param(mldsa.MLDSA65PrivateKey.generate, "ML-DSA-65", "ml-dsa-65", id="ml-dsa-65"),
        pytest.param(mldsa.MLDSA87PrivateKey.generate, "ML-DSA-87", "ml-dsa-87", id="ml-dsa-87"),
    ],
)
def test_strong_key_is_taken_and_named(key: Callable[[], PrivateKey], name: str, kind: str) -> None:
    checked = check_public_key(key().public_key())
    assert (describe_key(checked), key_kind(checked)) == (name, kind)
    assert load_public_key(encode_spki(checked)) == checked


@pytest.mark.parametrize(
    ("key", "code", "message"),
    [
        pytest.param(
            lambda: rsa_numbers((1 << 2046) | 1, 65537),
            "key_too_small",
            "The RSA key has 2047 bits, less than the 2048 it needs.",
            id="rsa-2047",
        ),
        pytest.param(
            lambda: rsa_numbers((1 << 4096) | 1, 65537),
            "key_too_large",
            "The RSA key has 4097 bits, more than the 4096 accepted here.",
            id="rsa-4097",
        ),
        pytest.param(
            lambda: rsa_numbers(ODD_2048, 3),
            "key_exponent",
            "The RSA key's public exponent is not 65537.",
            id="rsa-exponent-3",
        ),
        pytest.param(
            lambda: rsa_numbers(ODD_2048 - 1, 65537),
            "key_invalid",
            "The RSA key's modulus is even.",
            id="rsa-even",
        ),
        pytest.param(
            lambda: ec_key("secp256k1").public_key(),
            "key_type",
            "Keys on the curve secp256k1 are not accepted here.",
            id="secp256k1",
        ),
        pytest.param(
            lambda: ed448.Ed448PrivateKey.generate().public_key(),
            "key_type",
            "The public key is of a kind that is not accepted here.",
            id="ed448",
        ),
        pytest.param(
            lambda: small_factor_key().public_key(),
            "key_small_factor",
            "The RSA key's modulus has a small prime factor.",
            id="rsa-small-factor",
        ),
        pytest.param(
            lambda: roca_key().public_key(),
            "key_roca",
            "The RSA key was made by a broken generator (ROCA, CVE-2017-15361).",
            id="rsa-roca",
        ),
        pytest.param(
            lambda: close_primes_key().public_key(),
            "key_close_primes",
            "The RSA key's primes are so close together that anybody finds them.",
            id="rsa-close-primes",
        ),
        pytest.param(
            lambda: None, "key_type", "The public key is of a kind that is not accepted here.", id="not-a-key"
        ),
    ],
)
def test_weak_or_strange_key_is_refused(key: Callable[[], object], code: str, message: str) -> None:
    with pytest.raises(BadKey) as caught:
        check_public_key(key())
    assert (caught.value.code, caught.value.message) == (code, message)


SMALL_ORDER = (0, 1, P - 1, P, P + 1, *ORDER_8)


@pytest.mark.parametrize("sign", [0, 1 << 255], ids=["x-even", "x-odd"])
@pytest.mark.parametrize("y", SMALL_ORDER)
def test_case_17_ed25519_point_of_small_order_is_refused_and_its_neighbour_passes(y: int, sign: int) -> None:
    """For such a key, anybody makes signatures that hold."""
    assert order(y % P) in (1, 2, 4, 8)
    with pytest.raises(BadKey) as caught:
        load_public_key(ed25519_spki(y | sign))
    assert (caught.value.code, caught.value.message) == ("key_invalid", "The Ed25519 key is a point of small order.")
    assert key_kind(load_public_key(ed25519_spki(9))) == "ed25519"


def test_case_17_point_off_the_curve_of_ed25519_verifies_nothing() -> None:
    """The library loads it, so that it is the proof of possession that fails."""
    key = load_public_key(ed25519_spki(2))
    assert isinstance(key, ed25519.Ed25519PublicKey)
    for signature in (bytes(64), (2).to_bytes(32, "little") + bytes(32), (1).to_bytes(32, "little") + bytes(32)):
        with pytest.raises(InvalidSignature):
            key.verify(signature, b"whatever")
    own = ed25519.Ed25519PrivateKey.generate()
    own.public_key().verify(own.sign(b"whatever"), b"whatever")


def test_every_point_of_small_order_is_known() -> None:
    assert {y % P for y in SMALL_ORDER} == {0, 1, P - 1, *ORDER_8}
    assert [order(y) for y in ORDER_8] == [8, 8]


@pytest.mark.parametrize(
    "point",
    [
        pytest.param(b"", id="nothing"),
        pytest.param(b"\0", id="infinity"),
        pytest.param(b"\4" + bytes(64), id="zeros"),
        pytest.param(b"\4" + b"\xff" * 64, id="coordinates-over-the-prime"),
        pytest.param(spki_of(ec_key())[-65:-1] + bytes([spki_of(ec_key())[-1] ^ 1]), id="off-curve"),
        pytest.param(b"\2" + (1).to_bytes(32, "big"), id="no-such-x"),
        pytest.param(bytes([7 - spki_of(ec_key())[-1] % 2]) + spki_of(ec_key())[-64:], id="hybrid-of-the-wrong-parity"),
        pytest.param(spki_of(ec_key("secp384r1"))[-97:], id="of-another-curve"),
    ],
)
def test_case_17_what_is_no_point_of_its_curve_is_refused_by_the_library(point: bytes) -> None:
    """Should one pass some day, the check has to be ours."""
    with pytest.raises(BadKey) as caught:
        load_public_key(ec_spki("1.2.840.10045.3.1.7", point))
    assert (caught.value.code, caught.value.message) == ("key_invalid", "The public key is not a valid key.")
    assert key_kind(load_public_key(ec_spki("1.2.840.10045.3.1.7", spki_of(ec_key())[-65:]))) == "p-256"


@pytest.mark.parametrize("curve", [ec.SECP256K1, ec.SECP192R1, ec.SECP224R1, ec.BrainpoolP256R1])
def test_case_17_key_on_another_curve_is_refused_by_its_name(curve: Callable[[], ec.EllipticCurve]) -> None:
    with pytest.raises(BadKey) as caught:
        check_public_key(ec.generate_private_key(curve()).public_key())
    assert (caught.value.code, caught.value.message) == (
        "key_type",
        f"Keys on the curve {curve().name} are not accepted here.",
    )
    check_public_key(ec.generate_private_key(ec.SECP256R1()).public_key())


@pytest.mark.parametrize("curve", ["secp256r1", "secp384r1", "secp521r1"])
def test_case_17_point_in_the_hybrid_form_is_refused_and_its_compressed_twin_passes(curve: str) -> None:
    """The library reads it, and RFC 5480 2.2 forbids it."""
    key = ec_key(curve).public_key()
    plain = key.public_bytes(Encoding.X962, PublicFormat.UncompressedPoint)
    hybrid = encode_spki(key).replace(plain, bytes([6 + plain[-1] % 2]) + plain[1:])
    assert load_der_public_key(hybrid) == key
    with pytest.raises(BadKey) as caught:
        load_public_key(hybrid)
    assert (caught.value.code, caught.value.message) == ("key_invalid", "The EC key's point is in the hybrid form.")
    oids = {"secp256r1": "1.2.840.10045.3.1.7", "secp384r1": "1.3.132.0.34", "secp521r1": "1.3.132.0.35"}
    compressed = ec_spki(oids[curve], key.public_bytes(Encoding.X962, PublicFormat.CompressedPoint))
    assert load_public_key(compressed) == key
    assert load_public_key(encode_spki(key)) == key


@pytest.mark.parametrize(
    ("key", "code"),
    [
        pytest.param(lambda: rsa_numbers((1 << 2046) | 1, 65537), "key_too_small", id="rsa-2047"),
        pytest.param(lambda: rsa_numbers((1 << 8192) | 1, 65537), "key_too_large", id="rsa-8193"),
        pytest.param(lambda: rsa_numbers(ODD_2048 - 1, 65537), "key_small_factor", id="rsa-even"),
        pytest.param(lambda: roca_key().public_key(), "key_roca", id="rsa-roca"),
        pytest.param(lambda: close_primes_key().public_key(), "key_close_primes", id="rsa-close-primes"),
    ],
)
def test_key_of_another_ca_is_refused_when_anybody_can_find_its_private_key(
    key: Callable[[], object], code: str
) -> None:
    with pytest.raises(BadKey) as caught:
        check_authority_key(key())
    assert caught.value.code == code
    for strong in (rsa_key(2048), rsa_key(2048, 3), ec_key(), ed448.Ed448PrivateKey.generate()):
        check_authority_key(strong.public_key())


def test_key_that_is_cut_off_is_refused() -> None:
    with pytest.raises(BadKey) as caught:
        load_public_key(spki_of(ec_key())[:-1])
    assert (caught.value.code, caught.value.message) == ("key_invalid", "The public key is not a valid key.")


def test_key_is_identified_by_the_hash_of_its_one_encoding() -> None:
    key = ec_key().public_key()
    assert spki_sha256(key) == hashlib.sha256(spki_of(ec_key())).digest()
    assert spki_sha256(key) != spki_sha256(ec_key("secp384r1").public_key())


def test_the_libraries_load_what_the_floor_refuses() -> None:
    """Why the floor is ours: should one of these fail, the library has become stricter, and the floor may shrink."""
    assert isinstance(load_der_public_key(rsa_spki(32767, 3)), rsa.RSAPublicKey)
    assert isinstance(load_der_public_key(rsa_spki(ODD_2048 - 1, 65537)), rsa.RSAPublicKey)
    assert isinstance(load_der_public_key(rsa_spki((1 << 16383) | 1, 65537)), rsa.RSAPublicKey)
    assert isinstance(load_der_public_key(spki_of(ec_key("secp256k1"))), ec.EllipticCurvePublicKey)
