"""Keys in a HSM: made and used in a real SoftHSM, through faults that real ones have."""

import datetime as dt
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, padding, rsa
from cryptography.x509.oid import NameOID

from ca_core.authority import hsm_keys
from ca_core.authority.hsm import Hsm
from ca_core.authority.hsm_private_keys import HsmRsaKey, KeyReference
from ca_core.authority.keys import HsmSigner
from ca_core.authority.pin import PROXY, HsmSettings, Pin
from ca_core.errors import HsmUnfit, Unavailable
from tests.end_to_end.clients import needs
from tests.helpers.signatures import verify
from tests.helpers.softhsm import PIN, SOFTHSM, SoftHsm

pytestmark = pytest.mark.foreign

OAEP_SHA1 = padding.OAEP(padding.MGF1(hashes.SHA1()), hashes.SHA1(), None)  # noqa: S303  # OAEP's default
OAEP_SHA256 = padding.OAEP(padding.MGF1(hashes.SHA256()), hashes.SHA256(), None)

# what a token says (PKCS#11 v2.40, section 4), for `SoftHsm.fault`
GENERAL_ERROR, FUNCTION_FAILED, DEVICE_ERROR, DEVICE_REMOVED = 0x05, 0x06, 0x30, 0x32
KEY_HANDLE_INVALID, MECHANISM_INVALID, OPERATION_ACTIVE = 0x60, 0x70, 0x90
PIN_INCORRECT, PIN_EXPIRED, PIN_LOCKED = 0xA0, 0xA3, 0xA4
SESSION_CLOSED, SESSION_HANDLE_INVALID, TOKEN_NOT_PRESENT, USER_NOT_LOGGED_IN = 0xB0, 0xB3, 0xE0, 0x101
ENCRYPTED_DATA_INVALID, ENCRYPTED_DATA_LEN_RANGE, DATA_LEN_RANGE = 0x40, 0x41, 0x21
OWN_PIN = "183650"
PIN_FINAL_TRY, IS_LOCKED = 0x20000, 0x40000
RSA_PKCS, ECDSA, EC_KEY_PAIR_GEN, SIGN_FLAG, DECRYPT_FLAG = 0x01, 0x1041, 0x1040, 0x800, 0x200
EDDSA, EC_EDWARDS_KEY_PAIR_GEN = 0x1057, 0x1055


@pytest.fixture(scope="module")
def tokens(tmp_path_factory: pytest.TempPathFactory) -> SoftHsm:
    needs("softhsm2", "p11-kit", "opensc", "gcc")
    return SoftHsm.make(tmp_path_factory.mktemp("softhsm"), "one", "two")


@pytest.fixture
def softhsm(tokens: SoftHsm, monkeypatch: pytest.MonkeyPatch) -> SoftHsm:
    tokens.mend()
    for name, value in tokens.environment.items():
        monkeypatch.setenv(name, value)
    return tokens


@pytest.fixture
def hsm(softhsm: SoftHsm) -> Iterator[Hsm]:
    opened = Hsm(HsmSettings(softhsm.module, Pin(PIN)))
    yield opened
    opened.close()


@pytest.fixture(scope="module")
def kept(tokens: SoftHsm) -> dict[str, tuple[KeyReference, hsm_keys.HsmPublicKey]]:
    """One key of some kinds, made once; `ra` is RSA that decrypts."""
    with pytest.MonkeyPatch.context() as patch:
        for name, value in tokens.environment.items():
            patch.setenv(name, value)
        opened = Hsm(HsmSettings(tokens.module, Pin(PIN)))
        kinds = ("p-256", "p-384", "p-521", "ed25519", "rsa-2048")
        made = {kind: hsm_keys.make_key(opened, "one", kind, kind) for kind in kinds}
        made["ra"] = hsm_keys.make_key(opened, "one", "ra", "rsa-2048", decrypts=True)
        opened.close()
    return made


Kept = dict[str, tuple[KeyReference, hsm_keys.HsmPublicKey]]


def ra_key(hsm: Hsm, kept: Kept) -> tuple[HsmRsaKey, rsa.RSAPublicKey]:
    reference, public_key = kept["ra"]
    assert isinstance(public_key, rsa.RSAPublicKey)
    return hsm_keys.load_ra_key(hsm, reference, public_key, "ra"), public_key


def signing(hsm: Hsm, kept: Kept) -> Callable[[], bytes]:
    reference, public_key = kept["p-256"]
    key = hsm_keys.load_signing_key(hsm, reference, public_key, "p-256")
    assert isinstance(key, ec.EllipticCurvePrivateKey)
    return lambda: key.sign(b"data", ec.ECDSA(hashes.SHA256()))


def code_of(act: Callable[[], object]) -> str:
    with pytest.raises(HsmUnfit) as caught:
        act()
    assert PIN not in str(caught.value) + caught.value.remedy
    return caught.value.code


# --- making and using ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["p-256", "p-384", "p-521", "ed25519", "rsa-2048"])
async def test_a_certificate_is_built_and_signed_with_a_key_in_the_token_as_with_any_other(
    hsm: Hsm, kept: Kept, kind: str
) -> None:
    """The builders of `cryptography` take subclasses of its private keys: undocumented, and held here."""
    reference, public_key = kept[kind]
    signer = HsmSigner(hsm_keys.load_signing_key(hsm, reference, public_key, kind))
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "a CA in a HSM")])
    start = dt.datetime(2026, 1, 1)  # noqa: DTZ001  # as builders take it
    builder = x509.CertificateBuilder(name, name, public_key, 7, start, start + dt.timedelta(days=1), [])
    certificate = await signer.sign_certificate(builder)
    certificate.verify_directly_issued_by(certificate)
    verify(signer, await signer.sign(b"a CRL"), b"a CRL")
    assert signer.backend == "hsm"


def test_a_key_never_leaves_its_token_and_no_two_have_one_label(hsm: Hsm, softhsm: SoftHsm) -> None:
    first, public_key = hsm_keys.make_key(hsm, "two", "line-a-ec-1", "p-256")
    second, _ = hsm_keys.make_key(hsm, "two", "line-a-ec-1", "p-256")
    assert first.label != second.label
    assert first.id != second.id
    key = hsm_keys.load_signing_key(hsm, first, public_key, "line-a-ec-1")
    assert isinstance(key, ec.EllipticCurvePrivateKey)
    for take in (key.private_numbers, lambda: key.private_bytes(None, None, None), key.__copy__):  # type: ignore[arg-type]  # whatever is asked for
        with pytest.raises(TypeError, match="in a HSM"):
            take()
    shown = softhsm.objects("two").split("Private Key Object")[1:]
    assert len(shown) == 2
    assert all("never extractable" in each and "sensitive" in each for each in shown)
    assert all(word not in each for each in shown for word in ("decrypt", "unwrap", "derive"))
    for reference in (first, second):
        hsm_keys.destroy_key(hsm, reference)
    assert "Object" not in softhsm.objects("two")


def test_an_ed25519_key_never_leaves_its_token_either(hsm: Hsm, kept: Kept) -> None:
    key = hsm_keys.load_signing_key(hsm, *kept["ed25519"], "ed25519")
    assert isinstance(key, ed25519.Ed25519PrivateKey)
    for take in (key.private_bytes_raw, lambda: key.private_bytes(None, None, None), key.__copy__):  # type: ignore[arg-type]  # whatever is asked for
        with pytest.raises(TypeError, match="in a HSM"):
            take()
    large = bytes(5_000_000)  # a CRL of 100,000 entries: the token gets all of it
    key.public_key().verify(key.sign(large), large)


def test_a_reference_is_read_as_it_was_written() -> None:
    reference = KeyReference("a token; with=signs%", "key-1", bytes(range(16)))
    kept = reference.to_bytes()
    assert kept.startswith(b"pkcs11:token=a%20token%3B")
    assert KeyReference.is_one(kept)
    assert not KeyReference.is_one(b"\x30\x82sealed")
    assert KeyReference.parse(kept, "key-1") == reference


@pytest.mark.parametrize("kept", [b"pkcs11:", b"pkcs11:token=x;object=y", b"pkcs11:token=%ff;object=y;id=1"])
def test_a_reference_that_is_damaged_is_told_as_such(kept: bytes) -> None:
    assert code_of(lambda: KeyReference.parse(kept, "key-1")) == "hsm_key_missing"


@pytest.mark.parametrize("module", ["p11-kit", "another"])
@pytest.mark.usefixtures("softhsm")
def test_eight_threads_sign_and_decrypt_with_one_token(kept: Kept, module: str) -> None:
    """Through p11-kit at the same time; through a module that is not p11-kit's one by one, or it would hang."""
    opened = Hsm(HsmSettings({"p11-kit": PROXY, "another": SOFTHSM}[module], Pin(PIN)))
    try:
        hammer(opened, kept)
    finally:
        opened.close()


def hammer(hsm: Hsm, kept: Kept) -> None:
    sign, (key, public_key) = signing(hsm, kept), ra_key(hsm, kept)
    verifier = kept["p-256"][1]
    assert isinstance(verifier, ec.EllipticCurvePublicKey)
    failed: list[BaseException] = []

    def work(number: int) -> None:
        try:
            for count in range(40):
                verifier.verify(sign(), b"data", ec.ECDSA(hashes.SHA256()))
                secret = bytes([number, count] * 8)
                assert key.decrypt(public_key.encrypt(secret, padding.PKCS1v15()), padding.PKCS1v15()) == secret
        except BaseException as exc:
            failed.append(exc)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(120)
    assert not failed
    assert not any(thread.is_alive() for thread in threads)


# --- what is lost ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "said",
    [
        pytest.param(DEVICE_REMOVED, id="device-removed"),
        pytest.param(DEVICE_ERROR, id="device-error"),
        pytest.param(GENERAL_ERROR, id="general-error"),
        pytest.param(FUNCTION_FAILED, id="function-failed"),
        pytest.param(KEY_HANDLE_INVALID, id="key-handle-invalid"),
        pytest.param(OPERATION_ACTIVE, id="slot-busy"),
        pytest.param(SESSION_CLOSED, id="session-closed"),
        pytest.param(SESSION_HANDLE_INVALID, id="session-handle-invalid"),
        pytest.param(TOKEN_NOT_PRESENT, id="token-not-present"),
        pytest.param(USER_NOT_LOGGED_IN, id="not-logged-in"),
    ],
)
def test_case_76_a_session_lost_in_the_middle_of_a_signature_is_opened_anew_once(
    hsm: Hsm, softhsm: SoftHsm, kept: Kept, said: int
) -> None:
    sign = signing(hsm, kept)
    before = softhsm.calls("C_Sign")
    softhsm.fault("C_Sign", said, 1)
    assert sign()
    assert softhsm.calls("C_Sign") == before + 2
    softhsm.fault("C_Sign", said, 2)
    with pytest.raises(Unavailable):
        sign()
    assert softhsm.calls("C_Sign") == before + 4, "twice, and no more"
    assert sign(), "the next one is served"


def test_case_76_what_happens_to_sessions_for_real_is_recovered_from(hsm: Hsm, kept: Kept) -> None:
    sign = signing(hsm, kept)

    def close() -> None:
        hsm.run("one", lambda session: session.session.close())

    def log_out() -> None:
        token = hsm._tokens["one"]
        assert token.login is not None
        token.login.close()

    def begin_anew() -> None:
        assert hsm._library is not None
        hsm._library.reinitialize()

    for loss in (close, log_out, begin_anew, close):
        loss()
        assert sign()


def test_case_76_a_token_that_was_pulled_and_put_back_serves_again(hsm: Hsm, softhsm: SoftHsm, kept: Kept) -> None:
    sign = signing(hsm, kept)
    with softhsm.pulled():
        for _ in range(2):
            with pytest.raises((Unavailable, HsmUnfit)):
                sign()
    assert sign()


async def test_case_76_a_signer_whose_token_is_gone_is_unavailable_and_comes_back(
    hsm: Hsm, softhsm: SoftHsm, kept: Kept
) -> None:
    reference, public_key = kept["p-256"]
    signer = HsmSigner(hsm_keys.load_signing_key(hsm, reference, public_key, "p-256"))
    with softhsm.pulled(), pytest.raises(Unavailable):
        await signer.sign(b"data")
    assert await signer.sign(b"data")


# --- what is refused at the start ------------------------------------------------------------------------------------


def test_case_76_a_wrong_pin_is_refused_and_never_tried_again(softhsm: SoftHsm, kept: Kept) -> None:
    opened = Hsm(HsmSettings(softhsm.module, Pin("000000")))
    try:
        for _ in range(3):
            assert code_of(lambda: signing(opened, kept)) == "hsm_pin_wrong"
        assert softhsm.calls("C_Login") == 1
    finally:
        opened.close()


def test_case_76_each_token_gets_its_own_pin_and_no_other(softhsm: SoftHsm, kept: Kept) -> None:
    softhsm.add("three", OWN_PIN)
    opened = Hsm(HsmSettings(softhsm.module, Pin(PIN), {"three": Pin(OWN_PIN)}))
    try:
        reference, _ = hsm_keys.make_key(opened, "three", "k", "p-256")
        hsm_keys.destroy_key(opened, reference)
        assert signing(opened, kept)(), "by the PIN of all others"
        assert softhsm.calls("C_Login") == 2
    finally:
        opened.close()
    opened = Hsm(HsmSettings(softhsm.module, None, {"three": Pin(OWN_PIN)}))
    try:
        assert code_of(lambda: signing(opened, kept)) == "hsm_not_configured"
        assert softhsm.calls("C_Login") == 2, "no other token's PIN is tried"
    finally:
        opened.close()
    opened = Hsm(HsmSettings(softhsm.module, Pin(OWN_PIN), {"three": Pin(PIN)}))
    try:
        with pytest.raises(HsmUnfit) as caught:
            hsm_keys.make_key(opened, "three", "k", "p-256")
        assert (caught.value.code, caught.value.token) == ("hsm_pin_wrong", "three")
        assert softhsm.calls("C_Login") == 3
    finally:
        opened.close()


@pytest.mark.parametrize(
    ("said", "code"),
    [
        pytest.param(PIN_LOCKED, "hsm_pin_locked", id="locked"),
        pytest.param(PIN_INCORRECT, "hsm_pin_wrong", id="incorrect"),
        pytest.param(PIN_EXPIRED, "hsm_pin_wrong", id="expired"),
    ],
)
def test_case_76_what_a_token_says_of_the_pin_is_told(
    hsm: Hsm, softhsm: SoftHsm, kept: Kept, said: int, code: str
) -> None:
    softhsm.fault("C_Login", said, 1)
    assert code_of(lambda: signing(hsm, kept)) == code
    assert code_of(lambda: signing(hsm, kept)) == code, "although the token would take it now"
    assert softhsm.calls("C_Login") == 1


@pytest.mark.parametrize(
    ("flags", "code"),
    [
        pytest.param(PIN_FINAL_TRY, "hsm_pin_final_try", id="final-try"),
        pytest.param(IS_LOCKED, "hsm_pin_locked", id="locked"),
    ],
)
def test_case_76_no_pin_is_tried_when_the_token_warns(
    hsm: Hsm, softhsm: SoftHsm, kept: Kept, flags: int, code: str
) -> None:
    softhsm.fault("C_GetTokenInfo", flags)
    assert code_of(lambda: signing(hsm, kept)) == code
    assert softhsm.calls("C_Login") == 0


def test_case_76_a_token_or_key_that_is_not_there_is_refused(hsm: Hsm, kept: Kept) -> None:
    reference, public_key = kept["p-256"]
    elsewhere = KeyReference("nowhere", reference.label, reference.id)
    assert code_of(lambda: hsm_keys.load_signing_key(hsm, elsewhere, public_key, "k")) == "hsm_token_missing"
    other = KeyReference("one", reference.label, b"another id")
    assert code_of(lambda: hsm_keys.load_signing_key(hsm, other, public_key, "k")) == "hsm_key_missing"


def test_case_76_a_key_that_is_not_its_certificates_is_refused(hsm: Hsm, kept: Kept) -> None:
    stranger = ec.generate_private_key(ec.SECP256R1()).public_key()
    assert code_of(lambda: hsm_keys.load_signing_key(hsm, kept["p-256"][0], stranger, "k")) == "hsm_key_mismatch"
    another = rsa.generate_private_key(65537, 2048).public_key()
    assert code_of(lambda: hsm_keys.load_signing_key(hsm, kept["ra"][0], another, "k")) == "hsm_key_mismatch"
    other = ed25519.Ed25519PrivateKey.generate().public_key()
    assert code_of(lambda: hsm_keys.load_signing_key(hsm, kept["ed25519"][0], other, "k")) == "hsm_key_mismatch"


@pytest.mark.parametrize(
    ("kind", "decrypts", "rule"),
    [
        pytest.param("p-256", False, (ECDSA, 0), id="no-ecdsa"),
        pytest.param("p-256", False, (EC_KEY_PAIR_GEN, 0), id="makes-no-ec-key"),
        pytest.param("ed25519", False, (EDDSA, 0), id="no-eddsa"),
        pytest.param("ed25519", False, (EC_EDWARDS_KEY_PAIR_GEN, 0), id="makes-no-edwards-key"),
        pytest.param("rsa-2048", False, (RSA_PKCS, SIGN_FLAG), id="rsa-does-not-sign"),
        pytest.param("rsa-2048", True, (RSA_PKCS, DECRYPT_FLAG), id="rsa-does-not-decrypt"),
    ],
)
def test_case_76_a_missing_mechanism_is_refused_before_a_key_is_made(
    hsm: Hsm, softhsm: SoftHsm, kind: str, decrypts: bool, rule: tuple[int, int]
) -> None:
    softhsm.fault("C_GetMechanismInfo", *rule)
    assert code_of(lambda: hsm_keys.make_key(hsm, "two", "k", kind, decrypts=decrypts)) == "hsm_mechanism"
    assert "Object" not in softhsm.objects("two")
    softhsm.mend()
    reference, _ = hsm_keys.make_key(hsm, "two", "k", kind, decrypts=decrypts)
    hsm_keys.destroy_key(hsm, reference)


def test_a_kind_that_no_token_makes_is_refused(hsm: Hsm) -> None:
    assert code_of(lambda: hsm_keys.make_key(hsm, "two", "k", "ml-dsa-65")) == "hsm_kind"


def test_case_76_an_ra_key_that_does_not_decrypt_is_refused(hsm: Hsm, kept: Kept) -> None:
    reference, public_key = kept["rsa-2048"]
    assert isinstance(public_key, rsa.RSAPublicKey)
    assert code_of(lambda: hsm_keys.load_ra_key(hsm, reference, public_key, "ra")) == "hsm_cannot_decrypt"
    assert ra_key(hsm, kept)


def test_a_module_that_is_not_there_is_refused(kept: Kept) -> None:
    opened = Hsm(HsmSettings("/nonexistent/pkcs11.so", Pin(PIN)))
    assert code_of(lambda: signing(opened, kept)) == "hsm_module"
    opened.close()


# --- decryption ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "ciphertext",
    [
        pytest.param(bytes(256), id="zero"),
        pytest.param(b"\xff" * 256, id="larger-than-the-modulus"),
        pytest.param(b"\x01" * 256, id="bad-padding"),
        pytest.param(b"\x01" * 255, id="short"),
        pytest.param(b"\x01" * 257, id="long"),
        pytest.param(b"", id="empty"),
    ],
)
def test_whatever_is_wrong_with_a_ciphertext_fails_in_one_way(
    hsm: Hsm, softhsm: SoftHsm, kept: Kept, ciphertext: bytes
) -> None:
    key, public_key = ra_key(hsm, kept)
    before = softhsm.calls("C_Decrypt")
    for by in (padding.PKCS1v15(), OAEP_SHA1):
        with pytest.raises(ValueError, match=r"^decryption failed$"):
            key.decrypt(ciphertext, by)
        assert key.decrypt(public_key.encrypt(b"k" * 16, by), by) == b"k" * 16
    assert softhsm.calls("C_Decrypt") == before + 4, "a ciphertext is looked at once"


@pytest.mark.parametrize(
    "said",
    [
        pytest.param(GENERAL_ERROR, id="general-error"),
        pytest.param(FUNCTION_FAILED, id="function-failed"),
        pytest.param(DEVICE_ERROR, id="device-error"),
        pytest.param(ENCRYPTED_DATA_INVALID, id="encrypted-data-invalid"),
        pytest.param(ENCRYPTED_DATA_LEN_RANGE, id="encrypted-data-len-range"),
        pytest.param(DATA_LEN_RANGE, id="data-len-range"),
    ],
)
def test_whatever_a_token_calls_bad_padding_it_is_not_decrypted_twice(
    hsm: Hsm, softhsm: SoftHsm, kept: Kept, said: int
) -> None:
    key, public_key = ra_key(hsm, kept)
    before = softhsm.calls("C_Decrypt")
    softhsm.fault("C_Decrypt", said, 1)
    with pytest.raises(ValueError, match=r"^decryption failed$"):
        key.decrypt(public_key.encrypt(b"k" * 16, padding.PKCS1v15()), padding.PKCS1v15())
    assert softhsm.calls("C_Decrypt") == before + 1


def test_case_76_a_session_lost_while_decrypting_is_opened_anew(hsm: Hsm, softhsm: SoftHsm, kept: Kept) -> None:
    key, public_key = ra_key(hsm, kept)
    softhsm.fault("C_Decrypt", SESSION_HANDLE_INVALID, 1)
    assert key.decrypt(public_key.encrypt(b"k" * 16, padding.PKCS1v15()), padding.PKCS1v15()) == b"k" * 16


def test_oaep_with_a_hash_that_the_token_does_not_know_is_told_whatever_the_ciphertext(hsm: Hsm, kept: Kept) -> None:
    """SoftHSM 2.6 knows SHA-1 alone."""
    key, public_key = ra_key(hsm, kept)
    for ciphertext in (public_key.encrypt(b"k" * 16, OAEP_SHA256), b"\x01" * 256):
        with pytest.raises(UnsupportedAlgorithm):
            key.decrypt(ciphertext, OAEP_SHA256)


# --- the PIN ---------------------------------------------------------------------------------------------------------


def test_a_pin_never_shows_itself(tmp_path: Path) -> None:
    path = tmp_path / "pin"
    path.write_text(f"{PIN}\n")
    path.chmod(0o600)
    pin = Pin.load(path)
    assert pin.reveal() == PIN
    assert PIN not in repr(pin) + str(pin) + repr(HsmSettings(PROXY, pin, {"one": pin}))
