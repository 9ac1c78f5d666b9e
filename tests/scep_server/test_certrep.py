"""Writing a CertRep: what is in it, what it is made with, and that `openssl cms` and asn1crypto read it."""

import datetime as dt
import itertools
from functools import lru_cache
from pathlib import Path

import pytest
from asn1crypto import cms as a_cms
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import padding

from scep_server.algorithms import Digest
from scep_server.certrep import (
    FailInfo,
    choose_algorithms,
    encode_certs_only,
    write_failure,
    write_pending,
    write_success,
)
from scep_server.cms import read_certificate, read_enveloped
from scep_server.cms_values import Certificate
from scep_server.envelope import Cipher, Oaep, Recipient, open_envelope, seal_envelope
from scep_server.errors import BadAlg, BadRequest, Transaction
from scep_server.message import open_request
from tests.scep_server.client import (
    CIPHERS,
    ECDSA,
    NOW,
    Envelope,
    Request,
    attributes_of,
    ec_key,
    make_certificate,
    ra_certificate,
    ra_key,
    rsa_key,
)
from tests.scep_server.tools import key_pem, needs_openssl, openssl, pem

STATUS, FAIL_INFO, SENDER_NONCE, RECIPIENT_NONCE = (f"2.16.840.1.113733.1.9.{n}" for n in (3, 4, 5, 6))
MESSAGE_TYPE, TRANSACTION_ID, FAIL_INFO_TEXT = (
    "2.16.840.1.113733.1.9.2",
    "2.16.840.1.113733.1.9.7",
    "1.3.6.1.5.5.7.24.1",
)
CONTENT_TYPE, MESSAGE_DIGEST, SIGNING_TIME = (f"1.2.840.113549.1.9.{n}" for n in (3, 4, 5))


class Ra:
    def __init__(self) -> None:
        self.certificate: Certificate = read_certificate(ra_certificate())

    async def sign(self, data: bytes, digest: Digest) -> bytes:
        return ra_key().sign(data, padding.PKCS1v15(), digest)


class Device:
    async def unwrap(self, encrypted_key: bytes, algorithm: padding.AsymmetricPadding) -> bytes:
        return rsa_key().decrypt(encrypted_key, algorithm)


@lru_cache(maxsize=1)
def issued() -> bytes:
    return make_certificate(rsa_key().public_key(), common_name="issued", serial=99)


async def success(made: Request, *, weak: bool = False) -> bytes:
    request = open_request(made.encode())
    algorithms = choose_algorithms(request, allow_sha1=weak, allow_3des=weak)
    message = encode_certs_only([issued(), ra_certificate()])
    return await write_success(request, message, algorithms=algorithms, signer=Ra(), now=NOW)


def verify(reply: bytes) -> a_cms.SignedData:
    """Verify the signature with nothing of the codec under test; the SignedData."""
    signed = a_cms.ContentInfo.load(reply, strict=True)["content"]
    (signer,) = signed["signer_infos"]
    attributes = signer["signed_attrs"].untag().dump()
    digest = getattr(hashes, signer["digest_algorithm"]["algorithm"].native.upper())()
    ra_key().public_key().verify(signer["signature"].native, attributes, padding.PKCS1v15(), digest)
    assert signer["signature_algorithm"]["algorithm"].native == "rsassa_pkcs1v15"  # asn1crypto's word for it
    assert signer["signature_algorithm"]["algorithm"].dotted == "1.2.840.113549.1.1.1"
    hashed = hashes.Hash(digest)
    hashed.update(signed["encap_content_info"]["content"].native or b"")
    assert attributes_of(reply)[MESSAGE_DIGEST] == hashed.finalize()
    assert [each.chosen.dump() for each in signed["certificates"]] == [ra_certificate()]
    return signed


OAEPS = [None, ("sha1", "sha1"), ("sha256", "sha256"), ("sha256", "sha1")]
PAIRS = [
    pytest.param(Request(digest=digest, envelope=Envelope(cipher=cipher, oaep=oaep)), id=f"{digest}-{cipher}-{oaep}")
    for digest, cipher, oaep in itertools.product(["sha1", "sha224", "sha256", "sha384", "sha512"], CIPHERS, OAEPS)
]


@pytest.mark.parametrize("made", PAIRS)
@pytest.mark.parametrize("weak", [False, True], ids=["strong", "weak"])
async def test_a_success_of_every_algorithm_pair_is_read_by_its_signer(made: Request, weak: bool) -> None:
    reply = await success(made, weak=weak)
    signed = verify(reply)
    content = signed["encap_content_info"]["content"].native
    envelope = read_enveloped(content)
    device = Recipient(read_certificate(make_certificate(rsa_key().public_key())), Device())
    certs_only = a_cms.ContentInfo.load(await open_envelope(envelope, [device]), strict=True)["content"]
    assert [each.chosen.dump() for each in certs_only["certificates"]] == [issued(), ra_certificate()]
    assert certs_only["encap_content_info"]["content"].native is None
    # what it was made with
    digest = signed["signer_infos"][0]["digest_algorithm"]["algorithm"].native
    cipher = next(name for name, (dotted, _, _) in CIPHERS.items() if dotted == envelope.cipher.oid)
    sent = made.envelope.cipher
    assert digest == (
        made.digest if made.digest not in ("sha1", "sha224") or (weak and made.digest == "sha1") else "sha256"
    )
    assert cipher == (sent if "aes" in sent else "3des" if weak else "aes128")
    assert a_cms.ContentInfo.load(content, strict=True)["content"]["recipient_infos"][0].chosen[
        "key_encryption_algorithm"
    ]["algorithm"].native == ("rsaes_pkcs1v15" if made.envelope.oaep is None else "rsaes_oaep")


@pytest.mark.foreign
@needs_openssl
@pytest.mark.parametrize("made", PAIRS)
async def test_openssl_verifies_and_decrypts_a_success(made: Request, tmp_path: Path) -> None:
    (tmp_path / "reply").write_bytes(await success(made, weak=True))
    (tmp_path / "ra.pem").write_bytes(pem(ra_certificate()))
    (tmp_path / "key.pem").write_bytes(key_pem(rsa_key()))
    (tmp_path / "own.pem").write_bytes(pem(make_certificate(rsa_key().public_key())))
    openssl(
        "cms", "-verify", "-binary", "-inform", "DER", "-in", tmp_path / "reply", "-out", tmp_path / "envelope",
        "-CAfile", tmp_path / "ra.pem", "-purpose", "any",
    )  # fmt: skip
    openssl(
        "cms", "-decrypt", "-binary", "-inform", "DER", "-in", tmp_path / "envelope", "-out", tmp_path / "certs",
        "-inkey", tmp_path / "key.pem", "-recip", tmp_path / "own.pem",
    )  # fmt: skip
    printed = openssl("pkcs7", "-inform", "DER", "-in", tmp_path / "certs", "-print_certs", "-noout")
    assert printed.index(b"issued") < printed.index(b"RA")


@pytest.mark.foreign
@needs_openssl
@pytest.mark.parametrize("kind", ["failure", "pending"])
async def test_openssl_verifies_a_reply_without_content(kind: str, tmp_path: Path) -> None:
    transaction = Transaction("5C3A", b"n" * 16)
    if kind == "failure":
        reply = await write_failure(transaction, FailInfo.BAD_ALG, "refused", signer=Ra(), now=NOW)
    else:
        reply = await write_pending(transaction, signer=Ra(), now=NOW)
    (tmp_path / "reply").write_bytes(reply)
    (tmp_path / "ra.pem").write_bytes(pem(ra_certificate()))
    (tmp_path / "nothing").touch()
    openssl(
        "cms", "-verify", "-binary", "-inform", "DER", "-in", tmp_path / "reply", "-content", tmp_path / "nothing",
        "-CAfile", tmp_path / "ra.pem", "-purpose", "any",
    )  # fmt: skip


# --- what is in it ---------------------------------------------------------------------------------------------------


async def test_a_success_holds_its_attributes_and_nothing_else() -> None:
    reply = await success(Request())
    found = attributes_of(reply)
    assert len(str(found.pop(MESSAGE_DIGEST))) > 0
    nonce = found.pop(SENDER_NONCE)
    assert isinstance(nonce, bytes)
    assert len(nonce) == 16
    assert found == {
        CONTENT_TYPE: "1.2.840.113549.1.7.1", SIGNING_TIME: NOW, STATUS: "0", MESSAGE_TYPE: "3",
        TRANSACTION_ID: "5C3A", RECIPIENT_NONCE: b"n" * 16,
    }  # fmt: skip
    assert nonce != attributes_of(await success(Request()))[SENDER_NONCE]


@pytest.mark.parametrize("fail_info", list(FailInfo))
async def test_every_fail_info_is_a_failure_also_the_one_that_is_zero(fail_info: FailInfo) -> None:
    transaction = Transaction("aG/+9w==", b"8 octets")
    reply = await write_failure(transaction, fail_info, "Refused: §1.", signer=Ra(), now=NOW)
    assert verify(reply)["encap_content_info"]["content"].native == b""
    found = attributes_of(reply)
    assert (found[STATUS], found[FAIL_INFO], found[FAIL_INFO_TEXT]) == ("2", str(int(fail_info)), "Refused: §1.")
    assert (found[TRANSACTION_ID], found[RECIPIENT_NONCE]) == ("aG/+9w==", b"8 octets")


async def test_a_fail_info_that_rfc_8894_does_not_know_is_not_written() -> None:
    with pytest.raises(ValueError, match="7 is not a valid FailInfo"):
        await write_failure(Transaction("1", None), 7, "", signer=Ra(), now=NOW)


async def test_a_pending_holds_no_fail_info_and_no_content() -> None:
    reply = await write_pending(Transaction("1", None), signer=Ra(), now=dt.datetime(2050, 1, 1, tzinfo=dt.UTC))
    assert verify(reply)["encap_content_info"]["content"].native == b""
    found = attributes_of(reply)
    assert found[STATUS] == "3"
    assert found[SIGNING_TIME] == dt.datetime(2050, 1, 1, tzinfo=dt.UTC)
    assert FAIL_INFO not in found
    assert RECIPIENT_NONCE not in found  # there was nothing to copy


@pytest.mark.parametrize("nonce", [b"", b"8 octets", b"n" * 64])
async def test_a_nonce_of_any_length_goes_back_also_an_empty_one(nonce: bytes) -> None:
    reply = await write_pending(Transaction("1", nonce), signer=Ra(), now=NOW)
    assert attributes_of(reply)[RECIPIENT_NONCE] == nonce


@pytest.mark.parametrize("text", ["5C3A", "a_b@c*"])
async def test_a_transaction_id_goes_back_octet_by_octet_as_printable_string(text: str) -> None:
    reply = await write_pending(Transaction(text, None), signer=Ra(), now=NOW)
    assert bytes((0x13, len(text))) + text.encode() in reply


async def test_the_signed_attributes_are_in_the_order_of_der() -> None:
    signer = a_cms.ContentInfo.load(await success(Request()))["content"]["signer_infos"][0]
    parts = [each.dump() for each in signer["signed_attrs"]]
    assert parts == sorted(parts)


async def test_a_reply_has_one_recipient_although_many_certificates_came() -> None:
    own = make_certificate(rsa_key().public_key())
    extra = [make_certificate(rsa_key("victim").public_key(), serial=n) for n in range(2, 6)]
    reply = await success(Request(signer=own, certificates=[*extra, own]))
    envelope = read_enveloped(verify(reply)["encap_content_info"]["content"].native)
    assert [each.name for each in envelope.recipients] == [read_certificate(own).name]


async def test_the_encrypted_content_is_primitive_and_of_definite_length() -> None:
    reply = await success(Request())
    encrypted = read_enveloped(verify(reply)["encap_content_info"]["content"].native).encrypted
    header = b"\x80\x82" + len(encrypted).to_bytes(2, "big")
    assert header + encrypted in reply


def test_an_answer_that_could_not_be_sealed_is_refused_before_anything_is_issued() -> None:
    curve = Request(key=ec_key(), signature_oid=ECDSA["sha256"], signature_parameters=b"")
    with pytest.raises(BadAlg) as refused:
        choose_algorithms(open_request(curve.encode()))
    assert refused.value.code == "scep_reply_needs_rsa"
    unknown = Request(envelope=Envelope(cipher_oid="1.2.840.113549.3.2"))
    with pytest.raises(BadAlg, match="cipher"):
        choose_algorithms(open_request(unknown.encode()))
    choose_algorithms(open_request(Request().encode()))


def test_single_des_is_never_written() -> None:
    own = read_certificate(make_certificate(rsa_key().public_key()))
    with pytest.raises(ValueError, match="never written"):
        seal_envelope(b"", own, rsa_key().public_key(), Cipher.DES, None, bytes)
    assert seal_envelope(b"", own, rsa_key().public_key(), Cipher.AES_128, Oaep(), bytes)


async def test_a_smallest_signer_key_takes_every_key_transport() -> None:
    key = rsa_key("small", 1024)
    made = Request(key=key, envelope=Envelope(cipher="aes256", oaep=("sha256", "sha256")))
    verify(await success(made))


async def test_a_cert_rep_sent_back_is_no_request() -> None:
    with pytest.raises(BadRequest, match="messageType"):
        open_request(await success(Request()))
