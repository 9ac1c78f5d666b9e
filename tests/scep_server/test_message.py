"""Opening a pkiMessage: what is read from good ones, and for what the bad ones are refused."""

import datetime as dt
import time

import pytest
from asn1crypto import cms as a_cms
from cryptography import x509
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.hazmat.primitives.serialization import pkcs7

from ca_core.errors import Refusal
from scep_server.ber import MAX_DEPTH, to_der
from scep_server.errors import BadAlg, BadMessageCheck, BadRequest, Failure, Unusable
from scep_server.message import MAX_MESSAGE, MessageType, open_request
from tests.scep_server.client import (
    CHALLENGE,
    CONTENT_TYPE,
    CSR,
    ECDSA,
    SENDER_NONCE,
    SHA_WITH_RSA,
    SIGNED,
    SIGNING_TIME,
    TRANSACTION_ID,
    Envelope,
    Request,
    attribute,
    content_info,
    ec_key,
    make_certificate,
    pss_parameters,
    ra_certificate,
    rsa_key,
    seq,
    tlv,
    to_ber,
)

PSS = "1.2.840.113549.1.1.10"


def rsa_with(name: str) -> str:
    return f"1.2.840.113549.1.1.{SHA_WITH_RSA[name]}"


def forged(bits: int, exponent: int = 65537, *, even: bool = False) -> bytes:
    """A certificate whose RSA key nobody has the private part of."""
    modulus = (1 << (bits - 1)) + (2 if even else 1)
    return make_certificate(rsa.RSAPublicNumbers(exponent, modulus).public_key())


GOOD = {
    "sha256": Request(),
    **{f"{name}-rsaEncryption": Request(digest=name) for name in ("sha1", "sha224", "sha384", "sha512")},
    **{
        f"{name}-withRSA": Request(digest=name, signature_oid=rsa_with(name))
        for name in ("sha1", "sha224", "sha256", "sha384", "sha512")
    },
    "sha1-withRSA-of-OIW": Request(digest="sha1", signature_oid="1.3.14.3.2.29"),
    "pss-sha256": Request(pss=True, signature_oid=PSS, signature_parameters=pss_parameters("sha256", 32)),
    "pss-sha512": Request(
        pss=True, digest="sha512", signature_oid=PSS, signature_parameters=pss_parameters("sha512", 64)
    ),
    "pss-defaults": Request(pss=True, digest="sha1", signature_oid=PSS, signature_parameters=seq()),
    "ecdsa-sha256": Request(key=ec_key(), signature_oid=ECDSA["sha256"], signature_parameters=b""),
    "ecdsa-sha1": Request(key=ec_key(), digest="sha1", signature_oid=ECDSA["sha1"], signature_parameters=b""),
    "signer-by-ski": Request(ski=b"\x07" * 20),
    "attributes-unsorted-signed-as-sent": Request(unsorted=True),
    "attributes-unsorted-signed-in-der": Request(unsorted=True, sign_as="sorted"),
    "unknown-attributes": Request(extra=[attribute("1.2.840.113549.1.9.25.3", tlv(4, b"r" * 16), tlv(4, b"s" * 16))]),
    "texts-as-utf8": Request(transaction_id=tlv(0x0C, b"5C3A"), message_type=tlv(0x0C, b"19")),
    "texts-as-ia5": Request(transaction_id=tlv(0x16, b"5C3A"), message_type=tlv(0x16, b"19")),
    "recipient-by-ski": Request(envelope=Envelope(ski=b"\x08" * 20)),
}


@pytest.mark.parametrize("request_", [pytest.param(made, id=key) for key, made in GOOD.items()])
@pytest.mark.parametrize("form", ["der", "ber"])
def test_a_message_of_every_signature_and_form_is_read(request_: Request, form: str) -> None:
    data = request_.encode()
    read = open_request(data if form == "der" else to_ber(data))
    assert read.transaction.transaction_id == "5C3A"
    assert read.transaction.sender_nonce == b"n" * 16
    assert read.message_type is MessageType.PKCS_REQ
    assert read.key.public_numbers() == request_.key.public_key().public_numbers()
    assert read.digest.name == request_.digest
    assert read.signature_algorithm == request_.signature_oid


@pytest.mark.parametrize("kind", list(MessageType))
def test_every_message_type_that_may_be_asked_is_read(kind: MessageType) -> None:
    assert open_request(Request(message_type=tlv(0x13, str(int(kind)).encode())).encode()).message_type is kind


@pytest.mark.parametrize("nonce", [None, b"", b"8 octets", b"n" * 32, b"n" * 64])
def test_a_nonce_of_any_length_comes_back_as_sent(nonce: bytes | None) -> None:
    sent = None if nonce is None else tlv(4, nonce)
    assert open_request(Request(nonce=sent).encode()).transaction.sender_nonce == nonce


@pytest.mark.parametrize("text", ["A" * 255, "aG/+9w==", "SSCEP transactionId", "a_b@c*", "12" * 38 + "7"])
def test_a_transaction_id_comes_back_as_sent(text: str) -> None:
    assert open_request(Request(transaction_id=tlv(0x13, text.encode())).encode()).transaction.transaction_id == text


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        pytest.param(tlv(0x17, b"261122120000Z"), dt.datetime(2026, 11, 22, 12, tzinfo=dt.UTC), id="utc"),
        pytest.param(tlv(0x17, b"991122120000Z"), dt.datetime(1999, 11, 22, 12, tzinfo=dt.UTC), id="last-century"),
        pytest.param(tlv(0x18, b"20501122120000Z"), dt.datetime(2050, 11, 22, 12, tzinfo=dt.UTC), id="generalized"),
    ],
)
def test_the_signing_time_is_read(value: bytes, expected: dt.datetime) -> None:
    assert open_request(Request(extra=[attribute(SIGNING_TIME, value)]).encode()).signing_time == expected


def test_a_challenge_among_the_signed_attributes_is_carried_and_never_shown() -> None:
    read = open_request(Request(extra=[attribute(CHALLENGE, tlv(0x13, b"in-the-clear"))]).encode())
    assert read.exposed_challenge == "in-the-clear"
    assert "in-the-clear" not in repr(read)


def test_a_message_made_by_asn1crypto_and_cryptography_is_read() -> None:
    ra = x509.load_der_x509_certificate(ra_certificate())
    envelope = (
        pkcs7.PKCS7EnvelopeBuilder().set_data(CSR).add_recipient(ra)
        .encrypt(serialization.Encoding.DER, [pkcs7.PKCS7Options.Binary])
    )  # fmt: skip
    data = a_cms.ContentInfo.load(Request(content=envelope).encode()).dump(force=True)
    assert open_request(data).envelope.cipher.oid == "2.16.840.1.101.3.4.1.2"


def test_what_is_read_of_a_message_in_ber_is_what_asn1crypto_reads() -> None:
    data = to_ber(Request().encode(), piece=7)
    theirs = a_cms.ContentInfo.load(data)["content"]
    assert theirs["encap_content_info"]["content"].native in to_der(data)
    assert theirs["signer_infos"][0]["signature"].native in to_der(data)


# --- who signed ------------------------------------------------------------------------------------------------------


def test_the_signer_is_the_key_that_verified_and_not_the_first_certificate() -> None:
    victim = make_certificate(rsa_key("victim").public_key(), common_name="victim", serial=7)
    own = make_certificate(rsa_key().public_key(), common_name="attacker", serial=8)
    read = open_request(Request(signer=own, certificates=[victim, ra_certificate(), own, own]).encode())
    assert read.signer.der == own
    assert read.certificates == (victim, ra_certificate(), own, own)


@pytest.mark.parametrize("order", [1, -1], ids=["attacker-first", "victim-first"])
def test_of_two_certificates_of_one_name_the_one_whose_key_verified_is_the_signer(order: int) -> None:
    own = make_certificate(rsa_key().public_key(), serial=7)
    victim = make_certificate(rsa_key("victim").public_key(), serial=7)
    read = open_request(Request(signer=own, certificates=[own, victim][::order]).encode())
    assert read.signer.der == own


def test_a_signature_by_another_key_than_that_of_the_named_certificate_is_refused() -> None:
    victim = make_certificate(rsa_key("victim").public_key(), serial=7)
    own = make_certificate(rsa_key().public_key(), serial=8)
    with pytest.raises(BadMessageCheck, match="not signed with the key"):
        open_request(Request(signer=victim, certificates=[own, victim]).encode())


def test_two_certificates_of_the_same_key_and_name_are_refused() -> None:
    one = make_certificate(rsa_key().public_key())
    two = make_certificate(rsa_key().public_key(), ski=None)
    with pytest.raises(BadMessageCheck) as refused:
        open_request(Request(signer=one, certificates=[one, two]).encode())
    assert refused.value.code == "scep_signer_ambiguous"


def test_a_signer_named_by_the_hash_of_a_key_without_identifier_is_found() -> None:
    certificate = make_certificate(rsa_key().public_key(), ski=None)
    ski = x509.SubjectKeyIdentifier.from_public_key(rsa_key().public_key()).digest
    assert open_request(Request(signer=certificate, ski=ski).encode()).signer.der == certificate


# --- refusals --------------------------------------------------------------------------------------------------------

# Each beside the request that differs in nothing else and is read: `Request()`, or what stands third.
BAD: dict[str, tuple[type[Refusal], str, Request]] = {
    "two-signers": (Unusable, "scep_signer_count", Request(signers=2)),
    "three-signers": (Unusable, "scep_not_cms", Request(signers=3)),
    "no-signer": (Unusable, "scep_signer_count", Request(signers=0)),
    "no-signed-attributes": (Unusable, "scep_no_transaction", Request(no_attributes=True)),
    "signed-over-the-content-without-attributes": (
        Unusable, "scep_no_transaction", Request(no_attributes=True, sign_content=True)),
    "signed-over-the-content-despite-attributes": (BadMessageCheck, "scep_signature_bad", Request(sign_content=True)),
    "signed-with-the-tag-as-sent": (BadMessageCheck, "scep_signature_bad", Request(sign_as="tagged")),
    "no-transaction": (Unusable, "scep_no_transaction", Request(transaction_id=None)),
    "transaction-empty": (Unusable, "scep_no_transaction", Request(transaction_id=tlv(0x13))),
    "transaction-too-long": (Unusable, "scep_no_transaction", Request(transaction_id=tlv(0x13, b"A" * 256))),
    "transaction-with-line-feed": (Unusable, "scep_no_transaction", Request(transaction_id=tlv(0x13, b"A\nB"))),
    "transaction-not-a-text": (Unusable, "scep_no_transaction", Request(transaction_id=tlv(0x04, b"5C3A"))),
    "transaction-twice": (
        Unusable, "scep_no_transaction", Request(extra=[attribute(TRANSACTION_ID, tlv(0x13, b"other"))])),
    "no-certificates": (Unusable, "scep_no_signer", Request(certificates=[])),
    "another-certificate": (Unusable, "scep_no_signer", Request(certificates=[ra_certificate()])),
    "signer-by-unknown-ski": (Unusable, "scep_no_signer", Request(ski=b"\x09" * 20)),
    "certificate-that-is-none": (Unusable, "scep_no_signer", Request(certificates=[seq(b"\x05\0")])),
    "too-many-certificates": (Unusable, "scep_not_cms", Request(certificates=[seq()] * 33)),
    "too-many-attributes": (
        Unusable, "scep_not_cms", Request(extra=[attribute(f"1.2.3.{n}", b"\x05\0") for n in range(64)])),
    "many-certificates-of-one-name": (
        BadMessageCheck, "scep_signer_ambiguous",
        Request(certificates=[make_certificate(rsa_key(str(n), 1024).public_key()) for n in range(4)]
                + [make_certificate(rsa_key().public_key())])),
    "no-message-type": (BadRequest, "scep_message_type", Request(message_type=None)),
    "type-with-space": (BadRequest, "scep_message_type", Request(message_type=tlv(0x13, b"19 "))),
    "type-with-zero": (BadRequest, "scep_message_type", Request(message_type=tlv(0x13, b"019"))),
    "type-huge": (BadRequest, "scep_message_type", Request(message_type=tlv(0x13, b"2147483648"))),
    "type-empty": (BadRequest, "scep_message_type", Request(message_type=tlv(0x13))),
    "type-as-integer": (BadRequest, "scep_message_type", Request(message_type=tlv(0x02, b"\x13"))),
    "nonce-too-long": (BadRequest, "scep_nonce", Request(nonce=tlv(4, b"n" * 65))),
    "nonce-as-text": (BadRequest, "scep_nonce", Request(nonce=tlv(0x13, b"n" * 16))),
    "nonce-twice": (BadRequest, "scep_attribute_malformed", Request(extra=[attribute(SENDER_NONCE, tlv(4, b"x"))])),
    "content-of-another-type": (BadMessageCheck, "scep_content_type", Request(content_type=SIGNED)),
    "content-signed-as-of-another-type": (BadMessageCheck, "scep_content_type", Request(signed_content_type=SIGNED)),
    "content-type-not-signed": (BadMessageCheck, "scep_content_type", Request(signed_content_type=None)),
    "content-type-twice": (
        BadRequest, "scep_attribute_malformed", Request(extra=[attribute(CONTENT_TYPE, b"\x06\x01\x2a")])),
    "no-message-digest": (BadMessageCheck, "scep_digest_mismatch", Request(no_message_digest=True)),
    "digest-of-something-else": (BadMessageCheck, "scep_digest_mismatch", Request(message_digest=b"d" * 32)),
    "digest-of-another-length": (BadMessageCheck, "scep_digest_mismatch", Request(message_digest=b"")),
    "no-content": (BadRequest, "scep_not_enveloped", Request(no_content=True)),
    "csr-in-the-clear": (BadRequest, "scep_not_enveloped", Request(content=CSR)),
    "too-many-recipients": (BadRequest, "scep_not_enveloped", Request(envelope=Envelope(recipients=17))),
    "md5": (BadAlg, "scep_digest_unsupported", Request(digest="md5")),
    "md5-with-rsa": (
        BadAlg, "scep_signature_unsupported", Request(signature_oid=rsa_with("md5"))),
    "two-hashes": (BadAlg, "scep_signature_unsupported", Request(signature_oid=rsa_with("sha512"))),
    "signature-unknown": (BadAlg, "scep_signature_unsupported", Request(signature_oid="1.2.3.4")),
    "pss-without-parameters": (
        BadAlg, "scep_signature_unsupported", Request(pss=True, signature_oid=PSS, signature_parameters=b"")),
    "pss-of-another-hash": (
        BadAlg, "scep_signature_unsupported",
        Request(pss=True, signature_oid=PSS, signature_parameters=pss_parameters("sha512", 32))),
    "pss-of-md5": (
        BadAlg, "scep_signature_unsupported",
        Request(pss=True, signature_oid=PSS, signature_parameters=pss_parameters("sha256", 32, "md5"))),
    "pss-of-another-salt": (
        BadMessageCheck, "scep_signature_bad",
        Request(pss=True, signature_oid=PSS, signature_parameters=pss_parameters("sha256", 20))),
    "ecdsa-by-rsa": (BadMessageCheck, "scep_signature_bad", Request(signature_oid=ECDSA["sha256"])),
    "rsa-by-ecdsa": (BadMessageCheck, "scep_signature_bad", Request(key=ec_key())),
    "signature-empty": (BadMessageCheck, "scep_signature_bad", Request(signature=b"")),
    "signature-of-zeros": (BadMessageCheck, "scep_signature_bad", Request(signature=bytes(256))),
    "rsa-512": (BadAlg, "scep_signer_key", Request(signer=forged(512))),
    "rsa-16384": (BadAlg, "scep_signer_key", Request(signer=forged(16384))),
    "rsa-8193": (BadAlg, "scep_signer_key", Request(signer=forged(8193))),
    "rsa-8192-is-verified": (BadMessageCheck, "scep_signature_bad", Request(signer=forged(8192))),
    "modulus-even": (BadAlg, "scep_signer_key", Request(signer=forged(2048, even=True))),
    "exponent-of-34-bits": (BadAlg, "scep_signer_key", Request(signer=forged(2048, 2**33 + 1))),
    "exponent-of-33-bits-is-verified": (BadMessageCheck, "scep_signature_bad", Request(signer=forged(2048, 2**32 + 1))),
    "curve-unknown": (
        BadAlg, "scep_signer_key", Request(key=ec_key("secp256k1"), signature_oid=ECDSA["sha256"],
                                           signature_parameters=b"")),
    "signing-time-of-no-day": (
        BadRequest, "scep_attribute_malformed", Request(extra=[attribute(SIGNING_TIME, tlv(0x17, b"260230120000Z"))])),
    "challenge-not-a-text": (
        BadRequest, "scep_attribute_malformed", Request(extra=[attribute(CHALLENGE, tlv(0x04, b"x"))])),
}  # fmt: skip


@pytest.mark.parametrize(("kind", "code", "made"), [pytest.param(*case, id=key) for key, case in BAD.items()])
def test_a_bad_message_is_refused_for_its_reason(kind: type[Refusal], code: str, made: Request) -> None:
    with pytest.raises(Refusal) as refused:
        open_request(made.encode())
    assert (type(refused.value), refused.value.code) == (kind, code)
    if isinstance(refused.value, Failure):
        assert refused.value.transaction is not None
        assert refused.value.transaction.transaction_id == "5C3A"


def test_no_other_message_type_is_let_through() -> None:
    for number in set(range(256)) - set(MessageType):
        with pytest.raises(BadRequest, match="messageType"):
            open_request(Request(message_type=tlv(0x13, str(number).encode()), signature=b"").encode())


@pytest.mark.parametrize(
    "data",
    [
        pytest.param(b"", id="empty"),
        pytest.param(b"\x30", id="one-byte"),
        pytest.param(b"hello", id="text"),
        pytest.param(b"\x30\x80" * 60_000, id="depth-bomb"),
        pytest.param(b"\x30\x80" * MAX_DEPTH + b"\0\0" * MAX_DEPTH, id="deep-and-whole"),
        pytest.param(b"\x24\x80" + b"\x04\x01x" * 40_000 + b"\0\0", id="pieces-of-one-byte"),
        pytest.param(b"\x30\x84\xff\xff\xff\xff\x05\0", id="length-of-4-gib"),
        pytest.param(b"\x30\xfe" + b"\xff" * 126, id="length-of-126-octets"),
        pytest.param(b"\0\0", id="end-without-beginning"),
        pytest.param(b"\x04\x80\0\0", id="indefinite-primitive"),
        pytest.param(content_info(SIGNED, seq()), id="signed-data-empty"),
    ],
)
def test_what_is_no_message_is_refused_soon(data: bytes) -> None:
    began = time.perf_counter()
    with pytest.raises(Unusable) as refused:
        open_request(data)
    assert refused.value.code == "scep_not_cms"
    assert time.perf_counter() - began < 0.5


def test_a_message_that_is_too_large_is_not_read() -> None:
    with pytest.raises(Unusable, match="longer than"):
        open_request(b"\x30" * (MAX_MESSAGE + 1))


@pytest.mark.parametrize("form", ["der", "ber"])
def test_bytes_after_the_end_are_refused(form: str) -> None:
    data = Request().encode() if form == "der" else to_ber(Request().encode())
    open_request(data)
    with pytest.raises(Unusable, match="not a CMS"):
        open_request(data + b"\0")


def test_a_message_that_is_cut_off_anywhere_is_refused() -> None:
    for data in (Request().encode(), to_ber(Request().encode())):
        for end in range(0, len(data), 13):
            with pytest.raises(Unusable):
                open_request(data[:end])
