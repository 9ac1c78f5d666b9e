"""Public keys: which ones devices may bring, and how a key is named."""

import hashlib
from collections.abc import Callable

import pytest
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.serialization import load_der_public_key

from ca_core.errors import BadKey
from ca_core.public_key import check_public_key, describe_key, encode_spki, load_public_key, spki_sha256
from tests.helpers.bad_csr import ec_key, rsa_key, rsa_spki, spki_of

ODD_2048 = (1 << 2047) | 1


def rsa_numbers(modulus: int, exponent: int) -> object:
    return rsa.RSAPublicNumbers(exponent, modulus).public_key()


@pytest.mark.parametrize(
    ("key", "name"),
    [
        pytest.param(lambda: ec_key("secp256r1").public_key(), "EC P-256", id="p-256"),
        pytest.param(lambda: ec_key("secp384r1").public_key(), "EC P-384", id="p-384"),
        pytest.param(lambda: ec_key("secp521r1").public_key(), "EC P-521", id="p-521"),
        pytest.param(lambda: rsa_key(2048).public_key(), "RSA 2048", id="rsa-2048"),
        pytest.param(lambda: rsa_key(4096).public_key(), "RSA 4096", id="rsa-4096"),
    ],
)
def test_strong_key_is_taken_and_named(key: Callable[[], object], name: str) -> None:
    checked = check_public_key(key())
    assert describe_key(checked) == name
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
            lambda: ed25519.Ed25519PrivateKey.generate().public_key(),
            "key_type",
            "The public key is of a kind that is not accepted here.",
            id="ed25519",
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


def test_just_strong_enough_numbers_pass() -> None:
    check_public_key(rsa_numbers(ODD_2048, 65537))
    check_public_key(rsa_numbers((1 << 4095) | 1, 65537))


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
