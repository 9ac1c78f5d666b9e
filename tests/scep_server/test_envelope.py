"""Opening an EnvelopedData: every algorithm that clients use, and one error for whatever depends on the key."""

from pathlib import Path

import pytest
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import padding, rsa

from ca_core.authority.keys import SoftwareRaKey
from ca_core.csr import MAX_DER
from ca_core.errors import Refusal
from scep_server.algorithms import RSA_MIN_BITS
from scep_server.cms import read_certificate, read_enveloped
from scep_server.cms_values import Enveloped
from scep_server.envelope import Recipient, open_envelope
from scep_server.errors import BadAlg, BadMessageCheck, BadRequest
from tests.scep_server.client import (
    CIPHERS,
    CSR,
    SIGNED,
    Envelope,
    make_certificate,
    ra_certificate,
    ra_key,
    rsa_key,
    seq,
    tlv,
    to_ber,
)
from tests.scep_server.tools import needs_openssl, openssl, pem


class Unwrapper:
    """As `ca_core.authority.keys.SoftwareRaKey`, and counts."""

    def __init__(self, key: rsa.RSAPrivateKey) -> None:
        self.key = key
        self.calls = 0

    async def unwrap(self, encrypted_key: bytes, algorithm: padding.AsymmetricPadding) -> bytes:
        self.calls += 1
        return self.key.decrypt(encrypted_key, algorithm)


def ra() -> Recipient:
    return Recipient(read_certificate(ra_certificate()), Unwrapper(ra_key()))


async def opened(made: Envelope, *, read_des: bool = False) -> bytes:
    return await open_envelope(read_enveloped(made.encode()), [ra()], read_des=read_des)


@pytest.mark.parametrize("cipher", CIPHERS)
@pytest.mark.parametrize(
    "oaep",
    [
        pytest.param(None, id="pkcs1"),
        pytest.param(("sha1", "sha1"), id="oaep-defaults"),
        pytest.param(("sha256", "sha256"), id="oaep-sha256"),
        pytest.param(("sha256", "sha1"), id="oaep-sha256-mgf1-sha1"),
    ],
)
@pytest.mark.parametrize("ski", [None, b"\x08" * 20], ids=["issuer-and-serial", "ski"])
@pytest.mark.parametrize("form", ["der", "ber"])
async def test_an_envelope_of_every_kind_is_opened(
    cipher: str, oaep: tuple[str, str] | None, ski: bytes | None, form: str
) -> None:
    data = Envelope(cipher=cipher, oaep=oaep, ski=ski).encode()
    envelope = read_enveloped(data if form == "der" else to_ber(data))
    assert await open_envelope(envelope, [ra()], read_des=cipher == "des") == CSR


async def test_an_encrypted_content_in_pieces_is_put_together() -> None:
    made = Envelope(message=seq(tlv(4, b"m" * 100))).encode()
    envelope = read_enveloped(made)
    start = made.rindex(b"\x80" + bytes([len(envelope.encrypted)]) + envelope.encrypted)
    pieces = b"".join(tlv(4, envelope.encrypted[at : at + 7]) for at in range(0, len(envelope.encrypted), 7))
    indefinite = _replace_last(made, start, b"\xa0\x80" + pieces + b"\0\0")
    assert read_enveloped(indefinite) == envelope
    with pytest.raises(ValueError, match="not its pieces"):
        read_enveloped(_replace_last(made, start, b"\xa0\x80" + tlv(2, b"\1") + b"\0\0"))


def _replace_last(made: bytes, start: int, last: bytes) -> bytes:
    """`made`, whose last element begins at `start`, with another one there: all around it of indefinite length."""
    out, position, depth = b"", 0, 0
    while position < start:
        tag, length, inner = made[position], made[position + 1], position + 2
        if length >= 0x80:
            inner += length & 0x7F
            length = int.from_bytes(made[position + 2 : inner], "big")
        if tag & 0x20 and inner + length == len(made):
            out, position, depth = out + bytes((tag, 0x80)), inner, depth + 1
        else:
            out, position = out + made[position : inner + length], inner + length
    return out + last + b"\0\0" * depth


async def test_the_unwrapper_of_the_core_is_one() -> None:
    ours = Recipient(read_certificate(ra_certificate()), SoftwareRaKey(ra_key()))
    assert await open_envelope(read_enveloped(Envelope().encode()), [ours]) == CSR


async def test_the_recipient_that_is_ours_is_found_among_others() -> None:
    mine = read_enveloped(Envelope().encode())
    other = make_certificate(rsa_key("other").public_key(), common_name="other")
    theirs = read_enveloped(Envelope(recipient=other).encode())
    both = Enveloped((*theirs.recipients, *mine.recipients), mine.content_type, mine.cipher, mine.encrypted)
    assert await open_envelope(both, [ra()]) == CSR


# --- what anybody can see --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "code", "made"),
    [
        pytest.param(BadAlg, "scep_cipher_unsupported", Envelope(cipher="des"), id="des"),
        pytest.param(BadAlg, "scep_cipher_unsupported", Envelope(cipher_oid="1.2.840.113549.3.2"), id="rc2"),
        pytest.param(BadAlg, "scep_cipher_unsupported", Envelope(cipher_oid="2.16.840.1.101.3.4.1.6"), id="gcm"),
        pytest.param(BadAlg, "scep_key_transport_unsupported", Envelope(oaep=("sha384", "sha384")), id="oaep-sha384"),
        pytest.param(
            BadAlg, "scep_key_transport_unsupported", Envelope(oaep=("sha1", "sha512")), id="oaep-mgf1-sha512"
        ),
        pytest.param(BadRequest, "scep_not_enveloped", Envelope(content_type=SIGNED), id="content-of-another-type"),
        pytest.param(BadMessageCheck, "scep_envelope_not_for_us", Envelope(ski=b"\x09" * 20), id="unknown-ski"),
        pytest.param(
            BadMessageCheck,
            "scep_envelope_not_for_us",
            Envelope(recipient=make_certificate(ra_key().public_key(), serial=5)),
            id="unknown-serial",
        ),
        pytest.param(BadMessageCheck, "scep_envelope_not_for_us", Envelope(recipients=0), id="no-recipient"),
        pytest.param(BadMessageCheck, "scep_envelope_bad", Envelope(iv=b"\0" * 15), id="iv-short"),
        pytest.param(BadMessageCheck, "scep_envelope_bad", Envelope(iv=b"\0" * 17), id="iv-long"),
        pytest.param(BadMessageCheck, "scep_envelope_bad", Envelope(encrypted=b""), id="nothing-encrypted"),
        pytest.param(BadMessageCheck, "scep_envelope_bad", Envelope(encrypted=b"x" * 17), id="no-multiple-of-a-block"),
    ],
)
async def test_what_anybody_can_see_is_refused_before_the_key_is_used(
    kind: type[Refusal], code: str, made: Envelope
) -> None:
    unwrapper = Unwrapper(ra_key())
    with pytest.raises(Refusal) as refused:
        await open_envelope(read_enveloped(made.encode()), [Recipient(read_certificate(ra_certificate()), unwrapper)])
    assert (type(refused.value), refused.value.code, unwrapper.calls) == (kind, code, 0)


async def test_a_renewed_certificate_of_the_same_key_is_a_recipient_of_its_own() -> None:
    old = make_certificate(ra_key().public_key(), common_name="old RA")
    envelope = read_enveloped(Envelope(recipient=old).encode())
    assert await open_envelope(envelope, [ra(), Recipient(read_certificate(old), Unwrapper(ra_key()))]) == CSR


# --- what depends on the key -----------------------------------------------------------------------------------------

UNIFORM = {
    "pkcs1-padding-bad": Envelope(encrypted_key=b"\x01" + b"r" * 255),
    "pkcs1-longer-than-the-modulus": Envelope(encrypted_key=b"\xff" * 256),
    "encrypted-key-short": Envelope(encrypted_key=b"r" * 255),
    "encrypted-key-empty": Envelope(encrypted_key=b""),
    "oaep-padding-bad": Envelope(encrypted_key=b"\x01" + b"r" * 255, oaep=("sha1", "sha1")),
    "key-of-15-bytes": Envelope(key=b"k" * 15),
    "key-of-32-bytes-for-aes-128": Envelope(key=b"k" * 32),
    "key-empty": Envelope(key=b""),
    "3des-with-one-key-three-times": Envelope(cipher="3des", key=b"DESkey01" * 3),
    "3des-with-a-key-twice": Envelope(cipher="3des", key=b"DESkey01" * 2 + b"other002"),
    "cbc-pad-0": Envelope(padded=CSR + bytes(11)),
    "cbc-pad-17": Envelope(padded=CSR + b"\x11" * 11),
    "cbc-pad-255": Envelope(padded=CSR + b"\xff" * 11),
    "cbc-pad-uneven": Envelope(padded=CSR + b"\x0a" + b"\x0b" * 10),
    "garbage-in-good-padding": Envelope(message=b"garbage"),
    "nothing-in-good-padding": Envelope(message=b""),
    "sequence-cut-off": Envelope(message=CSR[:-1]),
    "bytes-after-the-sequence": Envelope(message=CSR + b"\0"),
}


@pytest.mark.parametrize("made", [pytest.param(made, id=key) for key, made in UNIFORM.items()])
async def test_whatever_depends_on_the_key_fails_in_one_way(made: Envelope) -> None:
    unwrapper = Unwrapper(ra_key())
    with pytest.raises(BadMessageCheck) as refused:
        await open_envelope(read_enveloped(made.encode()), [Recipient(read_certificate(ra_certificate()), unwrapper)])
    failure = refused.value
    assert (failure.code, failure.message, failure.detail, failure.fail_info) == (
        "scep_envelope_bad", "The envelope can't be decrypted.", "", 1,
    )  # fmt: skip
    assert failure.__cause__ is None
    assert failure.__context__ is None
    assert unwrapper.calls == 1


@pytest.mark.parametrize("length", [0, 15, 16, 17, 245])
async def test_a_key_that_can_not_be_unwrapped_is_replaced_by_a_random_one(length: int) -> None:
    class Implicit:
        async def unwrap(self, encrypted_key: bytes, algorithm: padding.AsymmetricPadding) -> bytes:
            del encrypted_key, algorithm
            return b"i" * length

    drawn: list[int] = []

    def random(count: int) -> bytes:
        drawn.append(count)
        return b"s" * count

    substituted = Envelope(key=b"s" * 16)  # so that what the substitute decrypts is seen
    outcome = open_envelope(
        read_enveloped(substituted.encode()), [Recipient(read_certificate(ra_certificate()), Implicit())], random=random
    )
    if length == 16:
        with pytest.raises(BadMessageCheck):
            await outcome
    else:
        assert await outcome == CSR
    assert drawn == [16]


@pytest.mark.parametrize("read_des", [False, True])
async def test_3des_with_one_key_three_times_is_single_des_by_another_name_and_is_not_read(read_des: bool) -> None:
    made = Envelope(cipher="3des", key=b"DESkey01" * 3)
    with pytest.raises(BadMessageCheck):
        await opened(made, read_des=read_des)
    assert await opened(Envelope(cipher="3des", key=b"DESkey01other002DESkey01"), read_des=read_des) == CSR
    if read_des:
        assert await opened(Envelope(cipher="des"), read_des=True) == CSR


@pytest.mark.parametrize(
    ("length", "code"), [pytest.param(MAX_DER, "", id="a-csr"), pytest.param(MAX_DER + 17, "scep_too_large", id="more")]
)
async def test_an_envelope_longer_than_any_csr_is_not_decrypted(length: int, code: str) -> None:
    unwrapper = Unwrapper(ra_key())
    made = Envelope(cipher="3des", message=b"\x30\x82" + (length - 4).to_bytes(2, "big") + bytes(length - 4))
    found = ""
    try:
        await open_envelope(read_enveloped(made.encode()), [Recipient(read_certificate(ra_certificate()), unwrapper)])
    except Refusal as refusal:
        found = refusal.code
    assert (found, unwrapper.calls) == (code, 0 if code else 1)


async def test_a_host_fault_of_the_unwrapper_is_not_taken_for_a_bad_envelope() -> None:
    class Gone:
        async def unwrap(self, encrypted_key: bytes, algorithm: padding.AsymmetricPadding) -> bytes:
            raise ConnectionError(len(encrypted_key), algorithm)

    with pytest.raises(ConnectionError):
        await open_envelope(
            read_enveloped(Envelope().encode()), [Recipient(read_certificate(ra_certificate()), Gone())]
        )


async def test_a_hash_of_oaep_that_a_hsm_does_not_know_is_told() -> None:
    """A matter of the algorithm alone; `tests/ca_core/authority/test_hsm.py` has one that does so."""

    class Hsm(Unwrapper):
        async def unwrap(self, encrypted_key: bytes, algorithm: padding.AsymmetricPadding) -> bytes:
            if isinstance(algorithm, padding.OAEP) and algorithm.algorithm.name != "sha1":
                raise UnsupportedAlgorithm("the HSM does not decrypt by OAEP with these hashes")
            return await super().unwrap(encrypted_key, algorithm)

    recipient = Recipient(read_certificate(ra_certificate()), Hsm(ra_key()))
    with pytest.raises(BadAlg) as refused:
        await open_envelope(read_enveloped(Envelope(oaep=("sha256", "sha256")).encode()), [recipient])
    assert refused.value.code == "scep_key_transport_unsupported"
    assert await open_envelope(read_enveloped(Envelope(oaep=("sha1", "sha1")).encode()), [recipient]) == CSR


# --- made by others --------------------------------------------------------------------------------------------------


@pytest.mark.foreign
@needs_openssl
@pytest.mark.parametrize("cipher", ["aes128", "aes192", "aes256", "des3", "des"])
@pytest.mark.parametrize(
    "options",
    [
        pytest.param([], id="pkcs1"),
        pytest.param(["-keyid"], id="ski"),
        pytest.param(["-keyopt", "rsa_padding_mode:oaep"], id="oaep"),
        pytest.param(
            ["-keyopt", "rsa_padding_mode:oaep", "-keyopt", "rsa_oaep_md:sha256", "-keyopt", "rsa_mgf1_md:sha256"],
            id="oaep-sha256",
        ),
        pytest.param(["-stream"], id="ber"),
    ],
)
async def test_what_openssl_encrypts_is_opened(tmp_path: Path, cipher: str, options: list[str]) -> None:
    (tmp_path / "message").write_bytes(CSR)
    (tmp_path / "ra.pem").write_bytes(pem(ra_certificate()))
    providers = ["-provider", "legacy", "-provider", "default"] if cipher == "des" else []
    openssl(
        "cms", "-encrypt", "-binary", "-in", tmp_path / "message", "-out", tmp_path / "out", "-outform", "DER",
        f"-{cipher}", *providers, "-recip", tmp_path / "ra.pem", *options,
    )  # fmt: skip
    data = (tmp_path / "out").read_bytes()
    assert ("-stream" in options) == data.startswith(b"\x30\x80")
    assert await open_envelope(read_enveloped(data), [ra()], read_des=cipher == "des") == CSR


def test_the_floor_of_signers_fits_every_key_transport() -> None:
    assert RSA_MIN_BITS // 8 - 2 * 32 - 2 >= 32
