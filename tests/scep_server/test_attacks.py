"""The attack cases of SCEP, by number, each beside a twin that differs in nothing but the attack, and passes."""

import asyncio
import datetime as dt
import functools
import logging
import sqlite3
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, replace
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.x509.oid import ExtendedKeyUsageOID

from ca_core.core import Core
from ca_core.model import Evidence
from scep_server import operations
from tests.helpers import bad_csr, factory
from tests.helpers.bad_csr import extension, name, oid, rdn, sequence, utf8
from tests.helpers.core import ME, OTHER_HOST, START, Installation, SetClock, ask, csr_of, edit_realm
from tests.scep_server.client import (
    CHALLENGE,
    DATA,
    ECDSA,
    ENVELOPED,
    SIGNED,
    Request,
    attribute,
    content_info,
    issuer_and_serial,
    seq,
    tlv,
)
from tests.scep_server.serving import (
    BAD_ALG,
    BAD_CERT_ID,
    BAD_MESSAGE_CHECK,
    BAD_REQUEST,
    CERT_POLL,
    FAILURE,
    PKCS_REQ,
    PRINTABLE,
    RENEWAL_REQ,
    SUCCESS,
    TEXT,
    Device,
    Signer,
    Site,
    certify,
    common_name,
    foreign,
    make_csr,
    message,
    rsa_key,
    self_signed,
)

SECONDS = 2.0
"""Within which anything is answered, however bad; on an idle machine it is a hundredth of that."""


@dataclass
class Stage:
    """A device `sensor` with its secret, and the good request that every case is one fault away from."""

    site: Site
    secret: str
    signer: Signer
    good: Request

    def enveloped(self, **bent: Any) -> Request:
        """The good request with another envelope."""
        return replace(self.good, envelope=replace(self.good.envelope, **bent))

    def holding(self, csr: bytes) -> Request:
        """The good request with another CSR in its envelope."""
        return self.enveloped(message=csr)

    def asking(self, *extensions: bytes) -> Request:
        return self.holding(make_csr(self.signer.key, "sensor", self.secret, *extensions))


@pytest.fixture
async def stage(site: Site) -> Stage:
    secret = await site.secret()
    signer = self_signed()
    return Stage(site, secret, signer, await site.message(signer, make_csr(signer.key, "sensor", secret)))


Bend = Callable[[Stage], Request]
Cases = dict[str, tuple[Bend, str, str]]


def cases(table: Cases) -> pytest.MarkDecorator:
    return pytest.mark.parametrize(
        ("bend", "code", "fail_info"), [pytest.param(*case, id=number) for number, case in table.items()]
    )


def of_type(kind: int) -> bytes:
    return tlv(PRINTABLE, str(kind).encode())


def challenge_of(text: str | None) -> Bend:
    return lambda stage: stage.holding(make_csr(stage.signer.key, "sensor", text))


def with_subject(*more: bytes, cn: str | None = "sensor") -> Bend:
    def bend(stage: Stage) -> Request:
        made = bad_csr.make_csr(stage.signer.key, name(cn, *more), bad_csr.challenge(stage.secret))
        return stage.holding(made)

    return bend


# --- S1, S2, S5, S9, S12, S14: one message, bent in one place; the twin is the same without that ----------------------


def of_another_key(stage: Stage) -> Request:
    return stage.holding(make_csr(rsa_key("another"), "sensor", stage.secret))


def spki_of_another_key(stage: Stage) -> Request:
    """A CSR for the signer's key that another key has signed."""
    csr = make_csr(rsa_key("another"), "sensor", stage.secret, spki=bad_csr.spki_of(stage.signer.key))
    return stage.holding(csr)


def _count(stage: Stage) -> bytes:
    """The padding that the good request needs, counted up."""
    return bytes(range(1, 17 - len(stage.good.envelope.message) % 16))


def _filled(stage: Stage, last: int) -> bytes:
    """The CSR, filled up to a block with one byte."""
    csr = stage.good.envelope.message
    return csr + bytes([last]) * (16 - len(csr) % 16)


@functools.cache
def _forged(bits: int, exponent: int = 65537) -> bytes:
    """A self-issued certificate of a key that nobody has."""
    modulus = (1 << (bits - 1)) + 1
    subject = common_name("SCEP SIGNER")
    made = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject)
        .serial_number(1)
        .public_key(rsa.RSAPublicNumbers(exponent, modulus).public_key())
        .not_valid_before(START)
        .not_valid_after(START + dt.timedelta(days=1))
        .sign(rsa_key("another"), hashes.SHA256())
    )
    return made.public_bytes(serialization.Encoding.DER)


ATTACKS: Cases = {
    # never a certificate but for PKCSReq and RenewalReq; the whole table is in test_matrix
    "S1-update-req": (lambda s: replace(s.good, message_type=of_type(18)), "scep_message_type", BAD_REQUEST),
    "S1-zero": (lambda s: replace(s.good, message_type=of_type(0)), "scep_message_type", BAD_REQUEST),
    "S1-cert-rep": (lambda s: replace(s.good, message_type=of_type(3)), "scep_message_type", BAD_REQUEST),
    "S1-cert-poll": (lambda s: replace(s.good, message_type=of_type(20)), "transaction_unknown", BAD_CERT_ID),
    "S1-get-cert": (lambda s: replace(s.good, message_type=of_type(21)), "scep_not_served", BAD_REQUEST),
    "S1-renewal-req": (lambda s: replace(s.good, message_type=of_type(17)), "renewal_needs_certificate", BAD_REQUEST),
    "S1-absent": (lambda s: replace(s.good, message_type=None), "scep_message_type", BAD_REQUEST),
    # the secret is one device's
    "S2-subject-of-another": (with_subject(cn="victim"), "subject_mismatch", BAD_REQUEST),
    "S2-subject-in-other-case": (with_subject(cn="Sensor"), "subject_mismatch", BAD_REQUEST),
    "S2-two-common-names": (
        with_subject(rdn((bad_csr.COMMON_NAME, utf8("victim")))), "csr_name_malformed", BAD_REQUEST
    ),
    # what is empty matches nothing
    "S5-no-challenge": (challenge_of(None), "credentials_missing", BAD_REQUEST),
    "S5-empty-challenge": (challenge_of(""), "credentials_missing", BAD_REQUEST),
    "S5-blank-challenge": (challenge_of(" "), "secret_unknown", BAD_REQUEST),
    "S5-nul-challenge": (challenge_of("\0"), "secret_unknown", BAD_REQUEST),
    "S5-selector-alone": (
        lambda s: challenge_of(s.secret.partition(".")[0])(s), "secret_wrong", BAD_REQUEST
    ),
    "S5-selector-and-nothing": (
        lambda s: challenge_of(s.secret.partition(".")[0] + ".")(s), "secret_wrong", BAD_REQUEST
    ),
    "S5-secret-without-selector": (
        lambda s: challenge_of("." + s.secret.partition(".")[2])(s), "secret_unknown", BAD_REQUEST
    ),
    "S5-secret-and-more": (lambda s: challenge_of(s.secret + " ")(s), "secret_wrong", BAD_REQUEST),
    "S5-none-as-a-word": (challenge_of("None"), "secret_unknown", BAD_REQUEST),
    # who asks holds the key
    "S9-signature-broken": (
        lambda s: s.holding(make_csr(s.signer.key, "sensor", s.secret, break_signature=True)),
        "csr_signature_bad", BAD_MESSAGE_CHECK,
    ),
    "S9-signed-by-another-key": (spki_of_another_key, "csr_signature_bad", BAD_MESSAGE_CHECK),
    "S9-signer-of-another-key": (of_another_key, "scep_signer_not_csr_key", BAD_REQUEST),
    # the structure
    "S12-no-content-type": (
        lambda s: replace(s.good, signed_content_type=None), "scep_content_type", BAD_MESSAGE_CHECK
    ),
    "S12-another-content-type": (
        lambda s: replace(s.good, signed_content_type=ENVELOPED), "scep_content_type", BAD_MESSAGE_CHECK
    ),
    "S12-content-is-not-data": (
        lambda s: replace(s.good, content_type=ENVELOPED), "scep_content_type", BAD_MESSAGE_CHECK
    ),
    "S12-neither-is-data": (
        lambda s: replace(s.good, content_type=ENVELOPED, signed_content_type=ENVELOPED),
        "scep_content_type", BAD_MESSAGE_CHECK,
    ),
    "S12-no-message-digest": (
        lambda s: replace(s.good, no_message_digest=True), "scep_digest_mismatch", BAD_MESSAGE_CHECK
    ),
    "S12-digest-mismatch": (
        lambda s: replace(s.good, message_digest=b"x" * 32), "scep_digest_mismatch", BAD_MESSAGE_CHECK
    ),
    "S12-digest-empty": (
        lambda s: replace(s.good, message_digest=b""), "scep_digest_mismatch", BAD_MESSAGE_CHECK
    ),
    "S12-signature-over-the-content": (
        lambda s: replace(s.good, sign_content=True), "scep_signature_bad", BAD_MESSAGE_CHECK
    ),
    "S12-signature-over-the-tagged-set": (
        lambda s: replace(s.good, sign_as="tagged"), "scep_signature_bad", BAD_MESSAGE_CHECK
    ),
    "S12-signature-of-zeros": (
        lambda s: replace(s.good, signature=bytes(256)), "scep_signature_bad", BAD_MESSAGE_CHECK
    ),
    "S12-no-signature": (lambda s: replace(s.good, signature=b""), "scep_signature_bad", BAD_MESSAGE_CHECK),
    "S12-not-enveloped": (
        lambda s: replace(s.good, content=s.good.envelope.message), "scep_not_enveloped", BAD_REQUEST
    ),
    "S12-no-content": (lambda s: replace(s.good, no_content=True), "scep_not_enveloped", BAD_REQUEST),
    "S12-enveloped-is-not-data": (
        lambda s: s.enveloped(content_type=SIGNED), "scep_not_enveloped", BAD_REQUEST
    ),
    # the envelope
    "S14-pad-byte-0": (
        lambda s: s.enveloped(padded=_filled(s, 0)), "scep_envelope_bad", BAD_MESSAGE_CHECK
    ),
    "S14-pad-byte-over-the-block": (
        lambda s: s.enveloped(padded=_filled(s, 17)), "scep_envelope_bad", BAD_MESSAGE_CHECK
    ),
    "S14-pad-byte-255": (lambda s: s.enveloped(padded=_filled(s, 255)), "scep_envelope_bad", BAD_MESSAGE_CHECK),
    "S14-padding-not-uniform": (
        lambda s: s.enveloped(padded=s.good.envelope.message + _count(s)[:-1][::-1] + b"\x10"),
        "scep_envelope_bad", BAD_MESSAGE_CHECK,
    ),
    "S14-padding-alone": (
        lambda s: s.enveloped(padded=b"\x10" * 16), "scep_envelope_bad", BAD_MESSAGE_CHECK
    ),
    "S14-nothing-encrypted": (lambda s: s.enveloped(encrypted=b""), "scep_envelope_bad", BAD_MESSAGE_CHECK),
    "S14-one-byte": (lambda s: s.enveloped(encrypted=b"x"), "scep_envelope_bad", BAD_MESSAGE_CHECK),
    "S14-not-a-multiple": (lambda s: s.enveloped(encrypted=b"x" * 33), "scep_envelope_bad", BAD_MESSAGE_CHECK),
    "S14-iv-short": (lambda s: s.enveloped(iv=b"i" * 8), "scep_envelope_bad", BAD_MESSAGE_CHECK),
    "S14-iv-long": (lambda s: s.enveloped(iv=b"i" * 17), "scep_envelope_bad", BAD_MESSAGE_CHECK),
    "S14-iv-empty": (lambda s: s.enveloped(iv=b""), "scep_envelope_bad", BAD_MESSAGE_CHECK),
    "S14-key-of-another-cipher": (
        lambda s: s.enveloped(cipher_oid="2.16.840.1.101.3.4.1.42"), "scep_envelope_bad", BAD_MESSAGE_CHECK
    ),
    "S14-key-too-long": (lambda s: s.enveloped(key=b"k" * 17), "scep_envelope_bad", BAD_MESSAGE_CHECK),
    "S14-key-empty": (lambda s: s.enveloped(key=b""), "scep_envelope_bad", BAD_MESSAGE_CHECK),
    "S14-encrypted-key-short": (
        lambda s: s.enveloped(encrypted_key=b"e" * 255), "scep_envelope_bad", BAD_MESSAGE_CHECK
    ),
    "S14-encrypted-key-over-the-modulus": (
        lambda s: s.enveloped(encrypted_key=b"\xff" * 256), "scep_envelope_bad", BAD_MESSAGE_CHECK
    ),
    "S14-another-recipient": (
        lambda s: s.enveloped(recipient=s.signer.certificate), "scep_envelope_not_for_us", BAD_MESSAGE_CHECK
    ),
    "S14-no-recipient": (lambda s: s.enveloped(recipients=0), "scep_envelope_not_for_us", BAD_MESSAGE_CHECK),
    # what costs too much, or goes on for ever
    "S15-nonce-of-65": (lambda s: replace(s.good, nonce=tlv(4, b"n" * 65)), "scep_nonce", BAD_REQUEST),
    "S15-signer-key-of-1023": (
        lambda s: replace(s.good, signer=_forged(1023)), "scep_signer_key", BAD_ALG
    ),
    "S15-signer-key-of-16384": (
        lambda s: replace(s.good, signer=_forged(16384)), "scep_signer_key", BAD_ALG
    ),
    "S15-signer-exponent-huge": (
        lambda s: replace(s.good, signer=_forged(2048, (1 << 2000) + 1)), "scep_signer_key", BAD_ALG
    ),
    "S15-five-signers-of-one-name": (
        lambda s: replace(s.good, certificates=[_forged(2048, 65537 + 2 * n) for n in range(5)], signer=_forged(2048)),
        "scep_signer_ambiguous", BAD_MESSAGE_CHECK,
    ),
    "S15-challenge-of-256": (challenge_of("x" * 256), "csr_attribute_malformed", BAD_REQUEST),
    "S15-csr-of-20000": (
        lambda s: s.asking(extension("1.2.3.4", b"x" * 20_000)), "scep_too_large", BAD_REQUEST
    ),
}  # fmt: skip


@cases(ATTACKS)
async def test_a_bent_message_is_refused_for_its_reason_and_its_twin_passes(
    stage: Stage, bend: Bend, code: str, fail_info: str
) -> None:
    made = bend(stage)
    began = time.monotonic()
    await stage.site.refuse(made, code, fail_info)
    assert time.monotonic() - began < SECONDS
    reply = await stage.site.ask(stage.good)
    assert reply.status == SUCCESS, "the secret is not spent by what was refused"
    assert reply.certificate.public_key() == stage.signer.key.public_key()
    assert stage.site.issued() == 1


# --- S7, S12, S15: what is no transaction at all ----------------------------------------------------------------------


def _nested(depth: int, header: bytes = b"\x30\x80") -> bytes:
    return header * depth + b"\0\0" * depth


def _signed_set_as_content(stage: Stage) -> bytes:
    """The signature of a good message, over signed attributes that are now the content (RFC 5652 5.4)."""
    good = stage.good
    content = good.envelope.encode()
    attributes = good.signed_form(good.attributes(content))
    signature = good.sign(attributes)
    return replace(good, content=attributes, no_attributes=True, signature=signature).encode()


NOT_A_TRANSACTION: dict[str, tuple[Callable[[Stage], bytes], str, int]] = {
    "S7-two-signer-infos": (lambda s: replace(s.good, signers=2).encode(), "scep_signer_count", 400),
    "S7-signer-is-not-in-the-bag": (lambda s: replace(s.good, certificates=[]).encode(), "scep_no_signer", 400),
    "S7-ski-of-nobody": (lambda s: replace(s.good, ski=b"\x09" * 20).encode(), "scep_no_signer", 400),
    "S12-nobody-signs": (lambda s: replace(s.good, signers=0).encode(), "scep_signer_count", 400),
    "S12-no-signed-attributes": (
        lambda s: replace(s.good, no_attributes=True, sign_content=True).encode(), "scep_no_transaction", 400
    ),
    "S12-signed-attributes-as-content": (_signed_set_as_content, "scep_no_transaction", 400),
    "S12-enveloped-alone": (lambda s: s.good.envelope.encode(), "scep_not_cms", 400),
    "S12-data-alone": (lambda s: content_info(DATA, tlv(4, s.good.envelope.message)), "scep_not_cms", 400),
    "S12-csr-alone": (lambda s: s.good.envelope.message, "scep_not_cms", 400),
    "S12-signed-data-of-its-oid-alone": (lambda _: seq(bad_csr.oid(SIGNED)), "scep_not_cms", 400),
    "S12-no-transaction-id": (lambda s: replace(s.good, transaction_id=None).encode(), "scep_no_transaction", 400),
    "S12-empty-transaction-id": (
        lambda s: replace(s.good, transaction_id=tlv(PRINTABLE)).encode(), "scep_no_transaction", 400
    ),
    "S12-two-transaction-ids": (
        lambda s: replace(s.good, transaction_id=tlv(PRINTABLE, b"1") + tlv(PRINTABLE, b"2")).encode(),
        "scep_no_transaction", 400,
    ),
    "S15-transaction-id-of-256": (
        lambda s: replace(s.good, transaction_id=tlv(PRINTABLE, b"t" * 256)).encode(), "scep_no_transaction", 400
    ),
    "S15-truncated": (lambda s: s.good.encode()[:-1], "scep_not_cms", 400),
    "S15-trailing-byte": (lambda s: s.good.encode() + b"\0", "scep_not_cms", 400),
    "S15-empty-sequence": (lambda _: seq(), "scep_not_cms", 400),
    "S15-length-of-2-gib": (lambda s: b"\x30\x84\x7f\xff\xff\xff" + s.good.encode(), "scep_not_cms", 400),
    "S15-length-of-126-octets": (lambda _: b"\x30\xfe" + b"\xff" * 126, "scep_not_cms", 400),
    "S15-depth-bomb": (lambda _: _nested(30_000), "scep_not_cms", 400),
    "S15-depth-bomb-that-does-not-end": (lambda _: b"\x30\x80" * 60_000, "scep_not_cms", 400),
    "S15-octets-in-pieces-of-pieces": (lambda _: _nested(30_000, b"\x24\x80"), "scep_not_cms", 400),
    "S15-octets-in-one-byte-pieces": (
        lambda _: b"\x30\x80" + b"\x24\x80" + b"\x04\x01x" * 40_000 + b"\0\0\0\0", "scep_not_cms", 400
    ),
    "S15-33-certificates": (
        lambda s: replace(s.good, certificates=[s.signer.certificate] * 33).encode(), "scep_not_cms", 400
    ),
    "S15-65-attributes": (
        lambda s: replace(s.good, extra=[attribute(f"1.2.3.{n}", tlv(4, b"x")) for n in range(65)]).encode(),
        "scep_not_cms", 400,
    ),
    "S15-larger-than-128-kib": (lambda s: s.good.encode() + bytes(128 * 1024), "scep_too_large", 413),
}  # fmt: skip


@pytest.mark.parametrize("case", NOT_A_TRANSACTION)
async def test_what_is_no_transaction_gets_one_sentence_and_its_twin_passes(stage: Stage, case: str) -> None:
    make, code, status = NOT_A_TRANSACTION[case]
    data = make(stage)
    began = time.monotonic()
    await stage.site.refuse_http(data, code, status)
    assert time.monotonic() - began < SECONDS
    assert (await stage.site.ask(stage.good)).status == SUCCESS
    assert stage.site.issued() == 1


@pytest.mark.parametrize("recipients", [17, 300])
async def test_s15_thousands_of_recipients_are_not_tried_one_by_one(stage: Stage, recipients: int) -> None:
    began = time.monotonic()
    await stage.site.refuse(stage.enveloped(recipients=recipients), "scep_not_enveloped", BAD_REQUEST)
    assert time.monotonic() - began < SECONDS
    assert (await stage.site.ask(stage.enveloped(recipients=16))).status == SUCCESS


async def test_s12_a_cert_rep_sent_back_is_no_request(stage: Stage) -> None:
    for reply in (
        await stage.site.ask(replace(stage.good, message_type=of_type(18))),
        await stage.site.ask(stage.good),
    ):
        back = await stage.site.send(reply.body, stage.signer.key)
        assert (back.status, back.fail_info, back.transaction_id) == (FAILURE, BAD_REQUEST, reply.transaction_id)
        assert (await stage.site.explain(back.request_id)).code == "scep_message_type"
    assert stage.site.issued() == 1


# --- S2, S3: whose challenge it is ------------------------------------------------------------------------------------


async def test_s2_the_names_of_another_device_are_dropped_from_what_the_secret_gives(
    stage: Stage, installation: Installation
) -> None:
    await stage.site.secret("victim", sans=["DNS:victim.example.com"])
    asking = stage.asking(bad_csr.san(bad_csr.dns("victim.example.com")))
    issued = (await stage.site.ask(asking)).certificate
    assert issued.subject == common_name("sensor")
    with pytest.raises(x509.ExtensionNotFound):
        issued.extensions.get_extension_for_class(x509.SubjectAlternativeName)
    assert installation.events("certificate.issued")[-1]["dropped"] == ["SAN DNS:victim.example.com"]
    own = self_signed("meter")
    secret = await stage.site.secret("meter", sans=["DNS:meter.example.com"])
    given = await stage.site.ask(await stage.site.message(own, make_csr(own.key, "meter", secret)))
    names = given.certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert list(names) == [x509.DNSName("meter.example.com")]


async def test_s2_a_secret_is_worth_nothing_in_another_realm(site: Site) -> None:
    signer = self_signed()
    secret = await site.secret("sensor", realm="other")
    csr = make_csr(signer.key, "sensor", secret)
    await site.refuse(await site.message(signer, csr), "secret_unknown", BAD_REQUEST)
    reply = await site.ask(await site.message(signer, csr, realm="other"), label="other")
    assert reply.status == SUCCESS
    assert (site.issued("default"), site.issued("other")) == (0, 1)


async def test_s2_a_secret_ends(stage: Stage, clock: SetClock) -> None:
    clock.forward(days=7)
    await stage.site.refuse(stage.good, "secret_expired", BAD_REQUEST)
    clock.forward(seconds=-1)
    assert (await stage.site.ask(stage.good)).status == SUCCESS


async def test_s2_a_secret_that_was_replaced_is_void(stage: Stage) -> None:
    newer = await stage.site.new_secret()
    await stage.site.refuse(stage.good, "secret_void", BAD_REQUEST)
    assert (await stage.site.ask(challenge_of(newer)(stage))).status == SUCCESS


async def test_s2_a_label_gives_no_other_profile_than_the_device_s(stage: Stage) -> None:
    await stage.site.refuse(stage.good, "profile_not_allowed", BAD_REQUEST, label="default.device")
    assert (await stage.site.ask(stage.good, label="default.scep")).status == SUCCESS


async def test_s2_a_profile_under_an_issuer_that_is_not_rsa_is_not_for_scep(site: Site) -> None:
    signer = self_signed()
    for device, profile in (("by-est", "device"), ("by-scep", "scep")):
        secret = await site.secret(device, profile=profile)
        request = await site.message(signer, make_csr(signer.key, device, secret))
        if profile == "device":
            await site.refuse(request, "profile_not_for_protocol", BAD_REQUEST)
        else:
            assert (await site.ask(request)).certificate.issuer != common_name("default Issuing CA EC 1")


async def test_s2_a_used_secret_is_its_key_s_and_no_other_s(stage: Stage) -> None:
    first = await stage.site.ask(stage.good)
    other = self_signed("another")
    stolen = await stage.site.message(other, make_csr(other.key, "sensor", stage.secret))
    await stage.site.refuse(stolen, "secret_spent", BAD_REQUEST)
    again = await stage.site.ask(stage.good)
    assert again.certificates == first.certificates


async def test_s3_of_fifty_keys_with_one_secret_at_once_one_gets_a_certificate(site: Site) -> None:
    secret = await site.secret()
    signers = [self_signed(f"racer-{number}") for number in range(50)]
    requests = [await site.message(signer, make_csr(signer.key, "sensor", secret)) for signer in signers]
    replies = await asyncio.gather(*(site.ask(request) for request in requests))
    assert Counter((reply.status, reply.fail_info) for reply in replies) == {
        (SUCCESS, None): 1,
        (FAILURE, BAD_REQUEST): 49,
    }
    (winner,) = [number for number, reply in enumerate(replies) if reply.status == SUCCESS]
    assert replies[winner].certificate.public_key() == signers[winner].key.public_key()
    await site.flush()
    codes = site.installation.sql("SELECT DISTINCT outcome, code FROM attempt WHERE protocol = 'scep'")
    assert codes == [("refused", "secret_spent")], "of a device, the last twenty are kept"
    assert site.issued() == 1


async def test_s3_one_request_sent_ten_times_at_once_is_one(stage: Stage) -> None:
    replies = await asyncio.gather(*(stage.site.ask(stage.good) for _ in range(10)))
    assert len({reply.certificates for reply in replies}) == 1
    assert stage.site.issued() == 1


async def test_s5_where_no_secret_is_admitted_the_right_one_opens_nothing(stage: Stage, core: Core) -> None:
    admitted, off = "[admission]\nsecret = true", "[admission]\nsecret = false"
    await edit_realm(core, "default", admitted, off)
    await stage.site.refuse(stage.good, "secret_not_admitted", BAD_REQUEST)
    await edit_realm(core, "default", off, admitted)
    assert (await stage.site.ask(stage.good)).status == SUCCESS


# --- S6: who may renew ------------------------------------------------------------------------------------------------


@pytest.fixture
async def own(site: Site) -> Device:
    return await site.enrolled("sensor", "own")


def twin_of(certificate: bytes, label: str, *, ski: bytes | None = None) -> Signer:
    """Issuer, serial number and subject of a certificate, with another key."""
    read = x509.load_der_x509_certificate(certificate)
    return certify(
        rsa_key(label),
        read.subject,
        issuer=read.issuer,
        by=rsa_key("foreign-ca"),
        serial=read.serial_number,
        ski=ski,
        usages=[ExtendedKeyUsageOID.CLIENT_AUTH],
    )


STRANGERS: dict[str, tuple[Callable[[Device], Signer], str]] = {
    "S6-self-signed-of-its-name": (
        lambda own: certify(rsa_key("attacker"), own.signer.x509.subject), "credentials_missing"
    ),
    "S6-of-its-name-by-another-ca": (lambda own: foreign("attacker", own.name), "certificate_unknown"),
    "S6-twin-of-its-issuer-and-serial": (
        lambda own: twin_of(own.signer.certificate, "attacker"), "certificate_unknown"
    ),
    "S6-twin-with-its-ski-too": (
        lambda own: twin_of(own.signer.certificate, "attacker", ski=b"\x07" * 20), "certificate_unknown"
    ),
}  # fmt: skip


@pytest.mark.parametrize("kind", [RENEWAL_REQ, PKCS_REQ], ids=["RenewalReq", "PKCSReq"])
@pytest.mark.parametrize("case", STRANGERS)
async def test_a_strangers_certificate_renews_nothing(site: Site, own: Device, case: str, kind: int) -> None:
    make, code = STRANGERS[case]
    stranger = make(own)
    csr = make_csr(stranger.key, "sensor")
    await site.refuse(await site.message(stranger, csr, kind=kind), code, BAD_REQUEST)
    assert (await site.ask(await site.renewal(own, "new", kind=kind))).status == SUCCESS


@pytest.mark.parametrize("kind", [RENEWAL_REQ, PKCS_REQ], ids=["RenewalReq", "PKCSReq"])
async def test_an_own_certificate_renews_and_the_answer_is_sealed_to_the_old_key(
    site: Site, own: Device, kind: int
) -> None:
    reply = await site.ask(await site.renewal(own, "new", kind=kind))
    assert reply.certificate.public_key() == rsa_key("new").public_key()
    assert reply.certificate.subject == common_name("sensor")
    assert site.issued() == 2


Spoil = Callable[[Site, Device, SetClock], Awaitable[None]]


async def _expire(_: Site, own: Device, clock: SetClock) -> None:
    clock.now = own.signer.x509.not_valid_after_utc + dt.timedelta(seconds=1)


async def _revoke(site: Site, own: Device, _: SetClock) -> None:
    await site.core.certificates.revoke(own.serial, actor=ME)


async def _compromise(site: Site, own: Device, _: SetClock) -> None:
    await site.core.certificates.revoke(own.serial, reason="keyCompromise", actor=ME)


async def _revoke_a_newer(site: Site, own: Device, _: SetClock) -> None:
    newer = (await site.ask(await site.renewal(own, "newer"))).certificate
    await site.core.certificates.revoke(format(newer.serial_number, "x"), actor=ME)


async def _suspend(site: Site, own: Device, _: SetClock) -> None:
    await site.core.devices.suspend("default", own.name, actor=ME)


async def _not_admitted(site: Site, _: Device, __: SetClock) -> None:
    await edit_realm(site.core, "default", "own_certificate = true", "own_certificate = false")


async def _before_it_begins(site: Site, own: Device, _: SetClock) -> None:
    # as if its clock were ahead: what a certificate says of itself can't be changed
    site.installation.sql("UPDATE certificate SET not_before = not_before + 86400000 WHERE serial = ?", own.serial)


async def _of_a_server(site: Site, own: Device, _: SetClock) -> None:
    """The store's word for what enrolld itself uses."""
    site.installation.sql("UPDATE certificate SET kind = 'server' WHERE serial = ?", own.serial)


SPOILED: dict[str, tuple[Spoil, str]] = {
    "S6-expired": (_expire, "certificate_expired"),
    "S6-not-yet-valid": (_before_it_begins, "certificate_not_yet_valid"),
    "S6-revoked": (_revoke, "certificate_revoked"),
    "S6-compromised": (_compromise, "certificate_revoked"),
    "S6-older-than-a-revoked-one": (_revoke_a_newer, "newer_certificate_revoked"),
    "S6-of-a-suspended-device": (_suspend, "device_suspended"),
    "S6-where-none-renews": (_not_admitted, "certificate_unknown"),
    "S6-infrastructure": (_of_a_server, "certificate_unknown"),
}


@pytest.mark.parametrize("kind", [RENEWAL_REQ, PKCS_REQ], ids=["RenewalReq", "PKCSReq"])
@pytest.mark.parametrize("case", SPOILED)
async def test_a_certificate_that_proves_nothing_any_more_renews_nothing(
    site: Site, own: Device, clock: SetClock, case: str, kind: int
) -> None:
    spoil, code = SPOILED[case]
    assert (await site.ask(await site.renewal(own, "before", kind=kind))).status == SUCCESS, "the twin, before"
    await spoil(site, own, clock)
    await site.refuse(await site.renewal(own, "after", kind=kind), code, BAD_REQUEST)


async def test_s6_a_certificate_renews_no_other_device(site: Site, own: Device) -> None:
    await site.enrolled("victim", "victim")
    key = rsa_key("new")
    theft = await site.message(own.signer, make_csr(key, "victim"), kind=RENEWAL_REQ)
    await site.refuse(theft, "subject_mismatch", BAD_REQUEST)
    assert (await site.ask(await site.renewal(own, "new"))).status == SUCCESS


async def test_s6_a_certificate_of_another_realm_renews_nothing(site: Site, own: Device) -> None:
    other = await site.enrolled("sensor", "of-other", realm="other")
    csr = make_csr(rsa_key("new"), "sensor")
    stray = await site.message(own.signer, csr, realm="other", kind=RENEWAL_REQ)
    await site.refuse(stray, "certificate_unknown", BAD_REQUEST, label="other")
    twin = await site.message(other.signer, csr, realm="other", kind=RENEWAL_REQ)
    assert (await site.ask(twin, label="other")).status == SUCCESS
    assert (site.issued("default"), site.issued("other")) == (1, 2)


async def test_s6_a_certificate_for_servers_alone_renews_nothing(site: Site) -> None:
    text = await site.core.realms.export("default")
    _, _, rest = text.partition("[profiles.scep]")
    for_servers = rest.replace('"clientAuth"', '"serverAuth"', 1)
    assert for_servers != rest
    await site.core.realms.apply(text.replace(rest, for_servers), actor=ME)
    server = await site.enrolled("server", "server")
    await site.refuse(await site.renewal(server, "new"), "certificate_not_for_clients", BAD_REQUEST)
    await site.core.realms.apply(text, actor=ME)
    client = await site.enrolled("client", "client")
    assert (await site.ask(await site.renewal(client, "new"))).status == SUCCESS


async def test_s6_the_ra_s_own_certificate_renews_nothing(site: Site) -> None:
    ra = await site.core.ra(await site.core.realms.resolve("scep", None, None))
    key: rsa.RSAPrivateKey = ra.key._key  # type: ignore[attr-defined]  # only somebody who stole it could
    stolen = Signer(key, ra.certificate)
    await site.secret("default SCEP RA".replace(" ", "-"))
    await site.refuse(
        await site.message(stolen, make_csr(rsa_key("new"), None), kind=RENEWAL_REQ), "certificate_unknown", BAD_REQUEST
    )


async def test_s6_a_server_certificate_renews_nothing(site: Site) -> None:
    await site.core.server_certificates.ensure(["localhost"])
    shown = site.core.server_certificates.select(None)
    assert isinstance(shown.private_key, ec.EllipticCurvePrivateKey)
    csr = make_csr(rsa_key("new"), None)
    request = message(
        await site.ra(), Signer(rsa_key("new"), shown.chain[0]), csr, kind=RENEWAL_REQ, key=shown.private_key,
        signature_oid=ECDSA["sha256"], signature_parameters=b"",
    )  # fmt: skip
    await site.refuse(request, "scep_reply_needs_rsa", BAD_ALG)


async def test_s6_a_certificate_by_est_renews_by_scep_and_the_reverse(site: Site) -> None:
    secret = await site.secret()
    key = rsa_key("by-est")
    issued = await ask(site.core, Evidence(username="", secret=secret), csr_of(key, "sensor"))
    signer = Signer(key, issued.certificate)
    assert signer.x509.issuer != self_signed().x509.issuer
    by_scep = await site.ask(await site.message(signer, make_csr(rsa_key("new"), "sensor"), kind=RENEWAL_REQ))
    assert by_scep.status == SUCCESS
    back = await ask(site.core, Evidence(chain=(by_scep.certificates[0],)), csr_of(rsa_key("newer"), "sensor"))
    assert x509.load_der_x509_certificate(back.certificate).public_key() == rsa_key("newer").public_key()


@pytest.mark.parametrize("kind", [RENEWAL_REQ, PKCS_REQ], ids=["RenewalReq", "PKCSReq"])
async def test_s6_of_foreign_cas_only_a_trusted_manufacturer_s_is_admitted(site: Site, core: Core, kind: int) -> None:
    anchor = factory.root()
    line = factory.sub_ca(anchor)
    await core.trust.add("default", anchor.pem, name="acme", actor=ME)
    await core.devices.add("default", "sensor", serial_number="AC-1", manufacturer="acme", actor=ME)

    async def asked(serial_number: str, transaction: str, *bag: bytes, **options: Any) -> Request:
        subject = factory.subject("sensor", serial_numbers=[serial_number])
        made = factory.make(subject, line, usage=factory.key_usage(sign=True), key=rsa_key("idevid"))
        csr = make_csr(rsa_key("new"), "sensor")
        certificates = [*bag, made.der]
        signer = Signer(rsa_key("idevid"), made.der)
        return await site.message(signer, csr, kind=kind, transaction=transaction, certificates=certificates, **options)

    await site.refuse(await asked("AC-1", "without-its-issuer"), "chain_incomplete", BAD_REQUEST)
    await site.refuse(await asked("AC-2", "of-nobody", line.der), "device_unknown", BAD_REQUEST)
    stray = await asked("AC-1", "elsewhere", line.der, realm="other")
    await site.refuse(stray, "certificate_unknown", BAD_REQUEST, label="other")
    good = await asked("AC-1", "good", line.der)
    reply = await site.ask(good)
    assert reply.certificate.public_key() == rsa_key("new").public_key()
    assert (await site.ask(good)).certificates == reply.certificates, "the same request again"
    assert site.issued() == 1


async def test_s6_a_secret_renews_nothing_and_enrolls(stage: Stage) -> None:
    await stage.site.refuse(
        replace(stage.good, message_type=of_type(RENEWAL_REQ)), "renewal_needs_certificate", BAD_REQUEST
    )
    assert (await stage.site.ask(stage.good)).status == SUCCESS


async def test_s6_a_spent_challenge_beside_a_valid_own_signer_does_no_harm(site: Site, own: Device) -> None:
    """FortiGate sends the challenge of its first request with every renewal."""
    for kind, label in ((RENEWAL_REQ, "new-1"), (PKCS_REQ, "new-2")):
        csr = make_csr(rsa_key(label), "sensor", own.secret)
        assert (await site.ask(await site.message(own.signer, csr, kind=kind))).status == SUCCESS
    stranger = foreign("attacker")
    stolen = await site.message(stranger, make_csr(stranger.key, "sensor", own.secret), kind=RENEWAL_REQ)
    await site.refuse(stolen, "secret_spent", BAD_REQUEST)


async def test_s6_a_valid_challenge_beside_a_valid_own_signer_stays_unspent(site: Site, own: Device) -> None:
    fresh = await site.new_secret()
    csr = make_csr(rsa_key("new"), "sensor", fresh)
    assert (await site.ask(await site.message(own.signer, csr, kind=RENEWAL_REQ))).status == SUCCESS
    signer = self_signed()
    assert (await site.ask(await site.message(signer, make_csr(signer.key, "sensor", fresh)))).status == SUCCESS


# --- S7, S8: who signed, and who reads --------------------------------------------------------------------------------


async def test_s7_the_first_certificate_in_the_bag_is_nobody(site: Site, own: Device) -> None:
    victim = await site.enrolled("victim", "victim")
    bag = [victim.signer.certificate, own.signer.certificate]
    for certificates in (bag, bag[::-1]):
        csr = make_csr(rsa_key("new"), "victim")
        theft = await site.message(own.signer, csr, kind=RENEWAL_REQ, certificates=certificates)
        await site.refuse(theft, "subject_mismatch", BAD_REQUEST)
        # it says that the victim has signed, and the attacker has
        forged = replace(theft, signer=victim.signer.certificate)
        await site.refuse(forged, "scep_signature_bad", BAD_MESSAGE_CHECK)
        good = await site.renewal(victim, "new", certificates=certificates)
        assert (await site.ask(good)).certificate.subject == common_name("victim")


@pytest.mark.parametrize("order", [1, -1], ids=["forged-first", "forged-last"])
async def test_s7_a_twin_of_issuer_and_serial_number_is_who_it_is(site: Site, own: Device, order: int) -> None:
    forged = twin_of(own.signer.certificate, "attacker")
    bag = [forged.certificate, own.signer.certificate][::order]
    assert issuer_and_serial(forged.certificate) == issuer_and_serial(own.signer.certificate)
    csr = make_csr(forged.key, "sensor")
    theft = await site.message(forged, csr, kind=RENEWAL_REQ, certificates=bag)
    await site.refuse(theft, "certificate_unknown", BAD_REQUEST)
    # the same two certificates beside the true key: it is the true one
    assert (await site.ask(await site.renewal(own, "new", certificates=bag))).status == SUCCESS


async def test_s7_a_signer_named_by_the_ski_of_another_is_who_it_is(site: Site, own: Device) -> None:
    ski = own.signer.x509.extensions.get_extension_for_class(x509.SubjectKeyIdentifier).value.digest
    forged = twin_of(own.signer.certificate, "attacker", ski=ski)
    csr = make_csr(forged.key, "sensor")
    for bag in ([forged.certificate, own.signer.certificate], [own.signer.certificate, forged.certificate]):
        theft = await site.message(forged, csr, kind=RENEWAL_REQ, certificates=bag, ski=ski)
        await site.refuse(theft, "certificate_unknown", BAD_REQUEST)
    lone = await site.message(forged, csr, kind=RENEWAL_REQ, certificates=[own.signer.certificate], ski=ski)
    await site.refuse(lone, "scep_signature_bad", BAD_MESSAGE_CHECK)
    assert (await site.ask(await site.renewal(own, "new", ski=ski))).status == SUCCESS


async def test_s7_two_certificates_of_one_key_and_name_are_nobody_s(site: Site, own: Device) -> None:
    rewrapped = twin_of(own.signer.certificate, "own")
    bag = [rewrapped.certificate, own.signer.certificate]
    await site.refuse(await site.renewal(own, "new", certificates=bag), "scep_signer_ambiguous", BAD_MESSAGE_CHECK)
    assert (await site.ask(await site.renewal(own, "new"))).status == SUCCESS


async def test_s8_the_answer_is_sealed_to_the_signer_alone(site: Site, own: Device) -> None:
    others = [self_signed(f"other-{number}").certificate for number in range(5)]
    ra = await site.core.ra(await site.core.realms.resolve("scep", None, None))
    bag = [*others, ra.certificate, *ra.issuers, own.signer.certificate, *others]
    reply = await site.ask(await site.renewal(own, "new", certificates=bag))
    assert reply.recipients == (issuer_and_serial(own.signer.certificate),)
    assert reply.certificate.public_key() == rsa_key("new").public_key()


# --- S10, S11, S23: polls, transactions, replays ----------------------------------------------------------------------


def poll(request: Request, signer: Signer | None = None) -> Request:
    """A CertPoll for the request's transaction."""
    asked = replace(request, message_type=of_type(CERT_POLL))
    return asked if signer is None else replace(asked, key=signer.key, signer=signer.certificate)


async def test_s10_only_the_key_that_asked_may_poll(stage: Stage) -> None:
    issued = await stage.site.ask(stage.good)
    thief = self_signed("thief")
    by_thief = await stage.site.refuse(poll(stage.good, thief), "transaction_unknown", BAD_CERT_ID)
    unknown = replace(poll(stage.good, thief), transaction_id=stage.good.transaction_id)
    never = await stage.site.refuse(
        replace(unknown, transaction_id=tlv(PRINTABLE, b"0" * 40)), "transaction_unknown", BAD_CERT_ID
    )
    assert stage.good.transaction_id is not None
    assert by_thief.form.replace(stage.good.transaction_id, tlv(PRINTABLE, b"0" * 40)) == never.form, "no oracle"
    polled = await stage.site.ask(poll(stage.good))
    assert polled.certificates == issued.certificates
    assert stage.site.issued() == 1


async def test_s10_a_certificate_of_the_same_names_may_not_poll_either(stage: Stage) -> None:
    await stage.site.ask(stage.good)
    thief = certify(rsa_key("thief"), stage.signer.x509.subject)
    await stage.site.refuse(poll(stage.good, thief), "transaction_unknown", BAD_CERT_ID)
    rewrapped = certify(stage.signer.key, common_name("anything"), serial=7)
    assert (await stage.site.ask(poll(stage.good, rewrapped))).status == SUCCESS, "the key counts, not the certificate"


async def test_s10_a_poll_of_a_renewal_is_the_old_key_s(site: Site, own: Device) -> None:
    renewal = await site.renewal(own, "new")
    issued = await site.ask(renewal)
    assert (await site.ask(poll(renewal))).certificates == issued.certificates
    await site.refuse(poll(renewal, self_signed("thief")), "transaction_unknown", BAD_CERT_ID)


async def test_s10_a_poll_of_a_revoked_certificate_fails(stage: Stage) -> None:
    issued = (await stage.site.ask(stage.good)).certificate
    assert (await stage.site.ask(poll(stage.good))).status == SUCCESS
    await stage.site.core.certificates.revoke(format(issued.serial_number, "x"), actor=ME)
    await stage.site.refuse(poll(stage.good), "transaction_unknown", BAD_CERT_ID)


async def test_s10_a_poll_in_another_realm_fails(stage: Stage) -> None:
    issued = await stage.site.ask(stage.good)
    stray = replace(poll(stage.good), envelope=replace(stage.good.envelope, recipient=await stage.site.ra("other")))
    await stage.site.refuse(stray, "transaction_unknown", BAD_CERT_ID, label="other")
    assert (await stage.site.ask(poll(stage.good))).certificates == issued.certificates


async def test_s10_a_poll_for_a_suspended_device_fails(stage: Stage) -> None:
    await stage.site.ask(stage.good)
    await stage.site.core.devices.suspend("default", "sensor", actor=ME)
    await stage.site.refuse(poll(stage.good), "device_suspended", BAD_REQUEST)
    await stage.site.core.devices.resume("default", "sensor", actor=ME)
    assert (await stage.site.ask(poll(stage.good))).status == SUCCESS


async def test_s11_a_transaction_of_one_key_is_no_other_s(site: Site, own: Device) -> None:
    first = await site.renewal(own, "new-1", transaction="one")
    issued = await site.ask(first)
    await site.refuse(await site.renewal(own, "new-2", transaction="one"), "transaction_of_other_key", BAD_REQUEST)
    assert (await site.ask(first)).certificates == issued.certificates, "the same request again"
    assert (await site.ask(await site.renewal(own, "new-2", transaction="two"))).status == SUCCESS
    assert site.issued() == 3


async def test_s11_a_transaction_by_secret_is_of_one_key_too(stage: Stage) -> None:
    await stage.site.ask(stage.good)
    fresh = await stage.site.new_secret()
    other = self_signed("another")
    same = replace(
        await stage.site.message(other, make_csr(other.key, "sensor", fresh)), transaction_id=stage.good.transaction_id
    )
    await stage.site.refuse(same, "transaction_of_other_key", BAD_REQUEST)
    assert (await stage.site.ask(replace(same, transaction_id=tlv(PRINTABLE, b"another")))).status == SUCCESS


async def test_s11_the_same_transaction_and_secret_with_other_names_is_refused(stage: Stage) -> None:
    issued = await stage.site.ask(stage.good)
    await stage.site.refuse(
        with_subject(rdn((bad_csr.ORGANIZATION, utf8("Example"))))(stage), "retry_other_names", BAD_REQUEST
    )
    assert (await stage.site.ask(stage.good)).certificates == issued.certificates


async def test_s11_a_renewal_of_the_same_transaction_with_other_names_gives_nothing_new(
    site: Site, own: Device
) -> None:
    first = await site.renewal(own, "new", transaction="one")
    issued = await site.ask(first)
    csr = bad_csr.make_csr(rsa_key("new"), name("sensor", rdn((bad_csr.ORGANIZATION, utf8("Example")))))
    other = await site.message(own.signer, csr, kind=RENEWAL_REQ, transaction="one")
    reply = await site.ask(other)
    assert reply.status == FAILURE or reply.certificates == issued.certificates
    assert site.issued() == 2


async def test_s11_two_devices_may_choose_the_same_transaction(site: Site) -> None:
    replies = []
    for device in ("first", "second"):
        signer = self_signed(device)
        csr = make_csr(signer.key, device, await site.secret(device))
        request = await site.message(signer, csr, transaction="SSCEP transactionId")
        replies.append(await site.ask(request))
        assert (await site.ask(poll(request))).certificates == replies[-1].certificates
    assert [reply.certificate.subject for reply in replies] == [common_name("first"), common_name("second")]


async def test_s23_an_old_request_sent_again_gets_the_same_certificate_and_later_none(
    stage: Stage, clock: SetClock
) -> None:
    data = stage.good.encode()
    first = await stage.site.send(data, stage.signer.key)
    clock.forward(hours=23)
    assert (await stage.site.send(data, stage.signer.key)).certificates == first.certificates
    clock.forward(hours=1)
    late = await stage.site.send(data, stage.signer.key)
    assert (late.status, late.fail_info) == (FAILURE, BAD_REQUEST)
    assert (await stage.site.explain(late.request_id)).code == "secret_spent"
    assert stage.site.issued() == 1


@pytest.mark.parametrize("kind", [RENEWAL_REQ, PKCS_REQ], ids=["RenewalReq", "PKCSReq"])
async def test_s23_an_old_renewal_sent_again_gets_the_same_certificate_and_later_none(
    site: Site, own: Device, clock: SetClock, kind: int
) -> None:
    data = (await site.renewal(own, "new", kind=kind)).encode()
    clock.forward(days=10)
    first = await site.send(data, own.signer.key)
    for days in (1, 30, 40):
        clock.forward(days=days)
        assert (await site.send(data, own.signer.key)).certificates == first.certificates
    clock.forward(days=10)
    late = await site.send(data, own.signer.key)
    assert (late.status, late.fail_info) == (FAILURE, BAD_REQUEST)
    assert (await site.explain(late.request_id)).code == "certificate_expired"
    assert site.issued() == 2


async def test_s23_an_old_renewal_gets_nothing_new_after_the_next_one(site: Site, own: Device, clock: SetClock) -> None:
    data = (await site.renewal(own, "second")).encode()
    second = await site.send(data, own.signer.key)
    clock.forward(days=30)
    third = await site.message(
        Signer(rsa_key("second"), second.certificates[0]), make_csr(rsa_key("third"), "sensor"), kind=RENEWAL_REQ
    )
    assert (await site.ask(third)).status == SUCCESS
    replayed = await site.send(data, own.signer.key)
    assert replayed.status == FAILURE or replayed.certificates == second.certificates
    assert site.issued() == 3


async def test_s23_an_old_renewal_gets_nothing_new_under_a_new_version_of_the_realm(site: Site, own: Device) -> None:
    data = (await site.renewal(own, "second")).encode()
    second = await site.send(data, own.signer.key)
    await edit_realm(site.core, "default", 'secret_lifetime = "7d"', 'secret_lifetime = "6d"')
    replayed = await site.send(data, own.signer.key)
    assert replayed.status == FAILURE or replayed.certificates == second.certificates
    assert site.issued() == 2


# --- S13: what an envelope held is told to nobody ---------------------------------------------------------------------


def _raw(stage: Stage, block: bytes) -> Request:
    """With an RSA block of the attacker's own making: m to the e, as long as the modulus."""
    key = x509.load_der_x509_certificate(stage.good.envelope.recipient).public_key()
    assert isinstance(key, rsa.RSAPublicKey)
    numbers = key.public_numbers()
    return stage.enveloped(encrypted_key=pow(int.from_bytes(block, "big"), numbers.e, numbers.n).to_bytes(256, "big"))


def _block(key: bytes, *, head: bytes = b"\x00\x02", zero_at: int | None = None, separator: bytes = b"\0") -> bytes:
    filling = bytearray(b"\x55" * (256 - len(head) - len(separator) - len(key)))
    if zero_at is not None:
        filling[zero_at] = 0
    return head + bytes(filling) + separator + key


def _sealed(plain: bytes) -> Bend:
    return lambda stage: stage.holding(plain)


KEY = b"k" * 16
SEALED: dict[str, tuple[Bend, str]] = {
    "S13-bad-first-byte": (lambda s: _raw(s, _block(KEY, head=b"\x01\x02")), "scep_envelope_bad"),
    "S13-bad-block-type": (lambda s: _raw(s, _block(KEY, head=b"\x00\x01")), "scep_envelope_bad"),
    "S13-no-separator": (lambda s: _raw(s, b"\x00\x02" + b"\x55" * 254), "scep_envelope_bad"),
    "S13-padding-of-7": (lambda s: _raw(s, _block(KEY, zero_at=7)), "scep_envelope_bad"),
    "S13-key-of-none": (lambda s: _raw(s, _block(b"")), "scep_envelope_bad"),
    "S13-key-of-15": (lambda s: _raw(s, _block(b"k" * 15)), "scep_envelope_bad"),
    "S13-key-of-32": (lambda s: _raw(s, _block(b"k" * 32)), "scep_envelope_bad"),
    "S13-another-key": (lambda s: _raw(s, _block(KEY)), "scep_envelope_bad"),
    "S13-block-of-0": (lambda s: s.enveloped(encrypted_key=bytes(256)), "scep_envelope_bad"),
    "S13-block-of-1": (lambda s: s.enveloped(encrypted_key=bytes(255) + b"\1"), "scep_envelope_bad"),
    "S13-block-too-short": (lambda s: s.enveloped(encrypted_key=b"e" * 255), "scep_envelope_bad"),
    "S13-block-too-long": (lambda s: s.enveloped(encrypted_key=b"\0" + b"e" * 256), "scep_envelope_bad"),
    "S13-block-empty": (lambda s: s.enveloped(encrypted_key=b""), "scep_envelope_bad"),
    "S13-bad-cbc-padding": (lambda s: s.enveloped(padded=_filled(s, 0)), "scep_envelope_bad"),
    "S13-garbage": (_sealed(b"\x04" + b"garbage" * 100), "scep_envelope_bad"),
    "S13-nothing": (_sealed(b""), "scep_envelope_bad"),
    "S13-a-sequence-cut-off": (lambda s: s.holding(s.good.envelope.message[:-1]), "scep_envelope_bad"),
    "S13-two-sequences": (lambda s: s.holding(s.good.envelope.message * 2), "scep_envelope_bad"),
    "S13-an-empty-sequence": (_sealed(seq()), "not_pkcs10"),
    "S13-a-sequence-that-is-no-csr": (_sealed(seq(tlv(4, b"garbage" * 100))), "not_pkcs10"),
    "S13-a-certificate": (lambda s: s.holding(s.signer.certificate), "not_pkcs10"),
    "S13-a-csr-whose-signature-is-broken": (
        lambda s: s.holding(make_csr(s.signer.key, "sensor", s.secret, break_signature=True)), "csr_signature_bad"
    ),
    "S13-a-csr-of-bad-names-whose-signature-is-broken": (
        lambda s: s.holding(make_csr(s.signer.key, "a\nb", s.secret, break_signature=True)), "csr_name_malformed"
    ),
    "S13-a-csr-of-a-small-key-whose-signature-is-broken": (
        lambda s: s.holding(make_csr(rsa_key("small", 1024), "sensor", s.secret, break_signature=True)),
        "key_too_small",
    ),
    "S13-a-csr-whose-attributes-can-t-be-read-and-whose-signature-is-broken": (
        lambda s: s.holding(make_csr(s.signer.key, "sensor", "x" * 300, break_signature=True)),
        "csr_attribute_malformed",
    ),
    "S13-a-csr-with-a-bit-flipped": (lambda s: s.holding(_flipped(s.good.envelope.message)), "csr_signature_bad"),
}  # fmt: skip


def _flipped(csr: bytes) -> bytes:
    at = csr.index(b"sensor")
    return csr[:at] + bytes([csr[at] ^ 1]) + csr[at + 1 :]


async def test_s13_whatever_is_wrong_in_an_envelope_is_answered_alike(stage: Stage) -> None:
    forms: dict[bytes, list[str]] = {}
    good = replace(stage.good, content=None)
    for case, (bend, code) in SEALED.items():
        made = replace(bend(stage), transaction_id=good.transaction_id)
        reply = await stage.site.refuse(made, code, BAD_MESSAGE_CHECK)
        forms.setdefault(reply.form, []).append(case)
    assert len(forms) == 1, f"they can be told apart: {list(forms.values())}"
    assert (await stage.site.ask(stage.good)).status == SUCCESS


async def test_s13_oaep_is_answered_as_pkcs1_is(stage: Stage) -> None:
    oaep = stage.enveloped(oaep=("sha256", "sha256"))
    forms = set()
    for bad in (b"e" * 256, b"\xff" * 256, bytes(256), b"e" * 255, b""):
        made = replace(oaep, envelope=replace(oaep.envelope, encrypted_key=bad))
        forms.add((await stage.site.refuse(made, "scep_envelope_bad", BAD_MESSAGE_CHECK)).form)
    short = replace(oaep, envelope=replace(oaep.envelope, key=b"k" * 15))
    forms.add((await stage.site.refuse(short, "scep_envelope_bad", BAD_MESSAGE_CHECK)).form)
    forms.add((await stage.site.refuse(SEALED["S13-bad-cbc-padding"][0](stage), "scep_envelope_bad", "1")).form)
    assert len(forms) == 1
    assert (await stage.site.ask(oaep)).status == SUCCESS


async def test_s13_bending_an_honest_client_s_envelope_tells_nothing(stage: Stage) -> None:
    """Whoever listens can sign somebody else's envelope anew: each byte changed, one answer."""
    thief = self_signed("thief")
    seen = stage.good.envelope.encode()
    request = replace(stage.good, key=thief.key, signer=thief.certificate)
    assert (await stage.site.ask(replace(request, content=seen))).fail_info == BAD_REQUEST, "signer and CSR differ"
    forms = set()
    for position in range(len(seen) - 1, len(seen) - 400, -19):
        changed = seen[:position] + bytes([seen[position] ^ 0x40]) + seen[position + 1 :]
        reply = await stage.site.ask(replace(request, content=changed))
        assert reply.fail_info == BAD_MESSAGE_CHECK
        forms.add(reply.form)
    assert len(forms) == 1
    assert stage.site.issued() == 0


# --- S16: what the CSR asks for ---------------------------------------------------------------------------------------


@functools.cache
def _of_exponent_3() -> bytes:
    return certify(bad_csr.rsa_key(2048, 3), common_name("SCEP SIGNER")).certificate


SMALL = "of-1024"
EKU = bad_csr.EXTENDED_KEY_USAGE
CONTENTS: Cases = {
    "S16-ca-true": (
        lambda s: s.asking(extension(bad_csr.BASIC_CONSTRAINTS, seq(b"\x01\x01\xff"), critical=True)),
        "ca_requested", BAD_REQUEST,
    ),
    "S16-path-length": (
        lambda s: s.asking(extension(bad_csr.BASIC_CONSTRAINTS, seq(b"\x01\x01\xff", bad_csr.integer(3)))),
        "ca_requested", BAD_REQUEST,
    ),
    "S16-key-cert-sign": (
        lambda s: s.asking(extension(bad_csr.KEY_USAGE, b"\x03\x02\x02\x04")), "ca_requested", BAD_REQUEST
    ),
    "S16-crl-sign": (
        lambda s: s.asking(extension(bad_csr.KEY_USAGE, b"\x03\x02\x01\x02")), "ca_requested", BAD_REQUEST
    ),
    "S16-any-purpose": (
        lambda s: s.asking(extension(EKU, seq(oid("2.5.29.37.0")))), "extension_not_allowed", BAD_REQUEST
    ),
    "S16-ocsp-signing": (
        lambda s: s.asking(extension(EKU, seq(oid("1.3.6.1.5.5.7.3.9")))), "extension_not_allowed", BAD_REQUEST
    ),
    "S16-smart-card-logon": (
        lambda s: s.asking(extension(EKU, seq(oid("1.3.6.1.4.1.311.20.2.2")))), "extension_not_allowed", BAD_REQUEST
    ),
    "S16-extension-twice": (
        lambda s: s.asking(bad_csr.san(bad_csr.dns("a")), bad_csr.san(bad_csr.dns("b"))),
        "csr_duplicate_extension", BAD_REQUEST,
    ),
    "S16-empty-eku": (lambda s: s.asking(extension(EKU, seq())), "csr_extension_malformed", BAD_REQUEST),
    "S16-nul-in-the-name": (with_subject(cn="sensor\0.example.com"), "csr_name_malformed", BAD_REQUEST),
    "S16-newline-in-the-name": (with_subject(cn="sensor\nlevel=error"), "csr_name_malformed", BAD_REQUEST),
    "S16-right-to-left-in-the-name": (with_subject(cn="sen\u202esor"), "csr_name_malformed", BAD_REQUEST),
    "S16-nul-in-a-san": (
        lambda s: s.asking(bad_csr.san(bad_csr.dns(b"a\0.example.com"))), "csr_name_malformed", BAD_REQUEST
    ),
    "S16-common-name-beside-another": (
        lambda s: s.holding(
            bad_csr.make_csr(
                s.signer.key,
                sequence(rdn((bad_csr.COMMON_NAME, utf8("sensor")), (bad_csr.ORGANIZATION, utf8("Example")))),
                bad_csr.challenge(s.secret),
            )
        ),
        "csr_name_malformed", BAD_REQUEST,
    ),
    "S16-rsa-1024": (
        lambda s: replace(
            s.holding(make_csr(rsa_key(SMALL, 1024), "sensor", s.secret)),
            key=rsa_key(SMALL, 1024), signer=self_signed(SMALL, bits=1024).certificate,
        ),
        "key_too_small", BAD_ALG,
    ),
    "S16-rsa-exponent-3": (
        lambda s: replace(
            s.holding(make_csr(bad_csr.rsa_key(2048, 3), "sensor", s.secret)),
            key=bad_csr.rsa_key(2048, 3), signer=_of_exponent_3(),
        ),
        "key_exponent", BAD_ALG,
    ),
    "S16-md5": (
        lambda s: s.holding(make_csr(s.signer.key, "sensor", s.secret, signature_hash="md5")),
        "csr_signature_weak", BAD_ALG,
    ),
    "S16-ec-key": (
        lambda s: s.holding(
            bad_csr.make_csr(bad_csr.ec_key(), name("sensor"), bad_csr.challenge(s.secret))
        ),
        "scep_signer_not_csr_key", BAD_REQUEST,
    ),
}  # fmt: skip


@cases(CONTENTS)
async def test_a_csr_that_asks_for_too_much_is_refused_and_its_twin_passes(
    stage: Stage, bend: Bend, code: str, fail_info: str
) -> None:
    await stage.site.refuse(bend(stage), code, fail_info)
    assert (await stage.site.ask(stage.good)).status == SUCCESS


DROPPED = {
    "S16-san-of-another": bad_csr.san(bad_csr.dns("victim.example.com")),
    "S16-upn": bad_csr.san(tlv(0xA0, oid("1.3.6.1.4.1.311.20.2.3"), tlv(0xA0, utf8("admin@example.com")))),
    "S16-email": bad_csr.san(tlv(0x81, b"admin@example.com")),
    "S16-sid": extension(
        "1.3.6.1.4.1.311.25.2", seq(tlv(0xA0, oid("1.3.6.1.4.1.311.25.2.1"), tlv(0xA0, tlv(4, b"S-1-5-21-1-500"))))
    ),
    "S16-template": extension("1.3.6.1.4.1.311.20.2", tlv(0x1E, "DomainController".encode("utf-16-be"))),
    "S16-ski": extension("2.5.29.14", tlv(4, b"\x07" * 20)),
    "S16-aki": extension("2.5.29.35", seq(tlv(0x80, b"\x07" * 20))),
    "S16-name-constraints": extension("2.5.29.30", seq(tlv(0xA0, seq(bad_csr.dns("example.com")))), critical=True),
}


@pytest.mark.parametrize("asked", [pytest.param(value, id=key) for key, value in DROPPED.items()])
async def test_s16_what_no_profile_gives_is_left_out(stage: Stage, asked: bytes) -> None:
    issued = (await stage.site.ask(stage.asking(asked))).certificate
    assert issued.subject == common_name("sensor")
    assert {each.oid.dotted_string for each in issued.extensions} == {
        "2.5.29.19",  # basicConstraints
        "2.5.29.15",  # keyUsage
        "2.5.29.37",  # extKeyUsage
        "2.5.29.14",  # subjectKeyIdentifier
        "2.5.29.35",  # authorityKeyIdentifier
        "2.5.29.31",  # cRLDistributionPoints
        "1.3.6.1.5.5.7.1.1",  # authorityInfoAccess
    }
    key = stage.signer.key.public_key()
    identifier = issued.extensions.get_extension_for_class(x509.SubjectKeyIdentifier).value
    assert identifier == x509.SubjectKeyIdentifier.from_public_key(key)
    assert not issued.extensions.get_extension_for_class(x509.BasicConstraints).value.ca
    assert list(issued.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value) == [
        ExtendedKeyUsageOID.CLIENT_AUTH
    ]


async def test_s16_the_ra_s_own_key_gets_no_device_s_certificate(stage: Stage) -> None:
    ra = await stage.site.core.ra(await stage.site.core.realms.resolve("scep", None, None))
    key: rsa.RSAPrivateKey = ra.key._key  # type: ignore[attr-defined]  # only somebody who stole it could
    signer = certify(key, common_name("SCEP SIGNER"))
    stolen = await stage.site.message(signer, make_csr(key, "sensor", stage.secret))
    await stage.site.refuse(stolen, "key_of_other_device", BAD_REQUEST)
    assert (await stage.site.ask(stage.good)).status == SUCCESS


async def test_s16_a_key_of_another_device_gets_no_certificate(site: Site, own: Device) -> None:
    secret = await site.secret("second")
    csr = make_csr(own.signer.key, "second", secret)
    # the own certificate says who asks, sensor, and that is not to be called second
    await site.refuse(await site.message(own.signer, csr), "subject_mismatch", BAD_REQUEST)
    plain = certify(own.signer.key, common_name("SCEP SIGNER"))
    await site.refuse(await site.message(plain, csr), "key_of_other_device", BAD_REQUEST)
    signer = self_signed("second")
    assert (await site.ask(await site.message(signer, make_csr(signer.key, "second", secret)))).status == SUCCESS


async def test_s16_a_blocked_key_gets_no_certificate(site: Site, own: Device) -> None:
    await site.core.certificates.revoke(own.serial, reason="keyCompromise", actor=ME)
    fresh = await site.new_secret()
    plain = certify(own.signer.key, common_name("SCEP SIGNER"))
    await site.refuse(await site.message(plain, make_csr(plain.key, "sensor", fresh)), "key_blocked", BAD_REQUEST)
    signer = self_signed("another")
    assert (await site.ask(await site.message(signer, make_csr(signer.key, "sensor", fresh)))).status == SUCCESS


# Good here: the realm takes SHA-1, and what remains is that the signer's key is another.
TOLERABLE = {"sha-1", "sha-1-rsa"}
SOONER = {"body_too_large": "scep_too_large"}  # what is seen before the envelope is opened


@pytest.mark.parametrize(
    ("der", "code"),
    [
        pytest.param(der, "scep_signer_not_csr_key" if case in TOLERABLE else SOONER.get(code, code), id=f"S16-{case}")
        for case, der, code in bad_csr.BAD_CSRS
    ],
)
async def test_a_bad_csr_is_refused_for_its_reason_and_its_twin_passes(stage: Stage, der: bytes, code: str) -> None:
    reply = await stage.site.ask(replace(stage.holding(der), transaction_id=tlv(PRINTABLE, b"bad")))
    attempt = await stage.site.explain(reply.request_id)
    if code in ("not_pkcs10", "trailing_data"):
        # most of these are not even one SEQUENCE, and don't pass for the content of an envelope
        assert attempt.code in (code, "scep_envelope_bad")
        assert reply.fail_info == BAD_MESSAGE_CHECK
    else:
        assert attempt.code == code
    if code == "csr_signature_bad":
        assert reply.fail_info == BAD_MESSAGE_CHECK
    assert reply.status == FAILURE
    assert reply.text == TEXT.format(reply.request_id)
    assert (await stage.site.ask(stage.good)).status == SUCCESS
    assert stage.site.issued() == 1


# --- S17: old algorithms ----------------------------------------------------------------------------------------------


def _csr_by(digest: str) -> Bend:
    return lambda s: s.holding(make_csr(s.signer.key, "sensor", s.secret, signature_hash=digest))


SWITCHES = {
    "allow_sha1": ("allow_sha1 = true", "allow_sha1 = false"),
    "allow_3des": ("allow_3des = true", "allow_3des = false"),
    "read_des": ("read_des = true", "read_des = false"),
}
# what is sent; which switch lets it in; the code without; the digest and cipher of the answer with
TOLERATED: dict[str, tuple[Bend, str, str, str, str]] = {
    "S17-sha-1": (
        lambda s: replace(s.good, digest="sha1"), "allow_sha1", "scep_sha1_not_allowed", "sha1", "aes128"
    ),
    "S17-csr-by-sha-1": (_csr_by("sha1"), "allow_sha1", "csr_signature_weak", "sha256", "aes128"),
    "S17-3des": (lambda s: s.enveloped(cipher="3des"), "allow_3des", "scep_3des_not_allowed", "sha256", "3des"),
    "S17-des": (lambda s: s.enveloped(cipher="des"), "read_des", "scep_cipher_unsupported", "sha256", "3des"),
}  # fmt: skip


@pytest.mark.parametrize("case", TOLERATED)
async def test_an_old_algorithm_is_refused_where_it_is_off_and_served_where_it_is_on(
    stage: Stage, core: Core, case: str
) -> None:
    bend, switch, code, digest, cipher = TOLERATED[case]
    on, off = SWITCHES[switch]
    await edit_realm(core, "default", on, off)
    refused = await stage.site.refuse(bend(stage), code, BAD_ALG)
    assert refused.digest == "sha256", "a refusal is signed no weaker than the realm allows"
    await edit_realm(core, "default", off, on)
    reply = await stage.site.ask(bend(stage))
    assert (reply.status, reply.digest, reply.cipher) == (SUCCESS, digest, cipher)


@pytest.mark.parametrize(
    ("bend", "code"),
    [
        pytest.param(lambda s: replace(s.good, digest="md5"), "scep_digest_unsupported", id="S17-md5"),
        pytest.param(_csr_by("md5"), "csr_signature_weak", id="S17-csr-by-md5"),
        pytest.param(lambda s: s.enveloped(cipher_oid="1.2.840.113549.3.2"), "scep_cipher_unsupported", id="S17-rc2"),
    ],
)
async def test_what_no_tolerance_covers_is_refused(stage: Stage, bend: Bend, code: str) -> None:
    assert (await stage.site.refuse(bend(stage), code, BAD_ALG)).digest == "sha256"
    assert (await stage.site.ask(stage.good)).status == SUCCESS


async def test_s17_with_all_tolerances_off_nothing_old_is_answered_or_announced(stage: Stage, core: Core) -> None:
    for on, off in SWITCHES.values():
        await edit_realm(core, "default", on, off)
    caps = (await stage.site.exchange(b"GET /scep?operation=GetCACaps HTTP/1.0\r\n\r\n")).body.split()
    assert {b"SHA-1", b"DES3", b"DES", b"MD5"}.isdisjoint(caps)
    assert {b"AES", b"SHA-256", b"SCEPStandard"} <= set(caps)
    for bend, *_ in TOLERATED.values():
        reply = await stage.site.ask(bend(stage))
        assert (reply.status, reply.fail_info, reply.digest) == (FAILURE, BAD_ALG, "sha256")
    for old in ("sha224", "sha256", "sha384", "sha512"):
        reply = await stage.site.ask(replace(stage.good, digest=old))
        assert reply.status == SUCCESS
        assert reply.digest == ("sha256" if old == "sha224" else old)


async def test_s17_with_3des_off_what_came_in_des_is_answered_in_aes(stage: Stage, core: Core) -> None:
    await edit_realm(core, "default", *SWITCHES["allow_3des"])
    assert (await stage.site.ask(stage.enveloped(cipher="des"))).cipher == "aes128"


@pytest.mark.parametrize("cipher", ["aes128", "aes192", "aes256"])
@pytest.mark.parametrize("digest", ["sha256", "sha384", "sha512"])
async def test_s17_an_answer_is_no_weaker_than_its_request(stage: Stage, cipher: str, digest: str) -> None:
    reply = await stage.site.ask(replace(stage.enveloped(cipher=cipher), digest=digest))
    assert (reply.status, reply.cipher, reply.digest) == (SUCCESS, cipher, digest)


async def test_s17_a_new_realm_reads_no_single_des(site: Site, core: Core) -> None:
    signer = self_signed()
    csr = make_csr(signer.key, "sensor", await site.secret(realm="other"))
    request = await site.message(signer, csr, realm="other", cipher="des")
    await site.refuse(request, "scep_cipher_unsupported", BAD_ALG, label="other")
    await edit_realm(core, "other", "read_des = false", "read_des = true")
    assert (await site.ask(request, label="other")).cipher == "3des"


@pytest.mark.parametrize(
    "keys",
    [b"8 bytes." * 3, b"8 bytes." * 2 + b"8 others", b"8 others" + b"8 bytes." * 2],
    ids=["one-key", "the-first-two-are-one", "the-last-two-are-one"],
)
async def test_s17_single_des_under_the_name_of_3des_is_never_read(stage: Stage, core: Core, keys: bytes) -> None:
    """Two keys that are equal undo each other, and nobody would know that the secret was exposed."""
    disguised = stage.enveloped(cipher="3des", key=keys)
    await stage.site.refuse(disguised, "scep_envelope_bad", BAD_MESSAGE_CHECK)
    await edit_realm(core, "default", *SWITCHES["read_des"])
    await stage.site.refuse(disguised, "scep_envelope_bad", BAD_MESSAGE_CHECK)
    assert (await stage.site.ask(stage.enveloped(cipher="3des"))).status == SUCCESS


EXPOSING: dict[str, tuple[Bend, bool, list[str]]] = {
    "S17-aes": (lambda s: s.good, False, []),
    "S17-des": (lambda s: s.enveloped(cipher="des"), True, ["scep.read_des"]),
    "S17-3des": (lambda s: s.enveloped(cipher="3des"), False, ["scep.allow_3des"]),
    "S17-sha-1": (lambda s: replace(s.good, digest="sha1"), False, ["scep.allow_sha1"]),
    "S17-csr-by-sha-1": (_csr_by("sha1"), False, ["scep.allow_sha1"]),
    "S17-des-and-sha-1": (
        lambda s: replace(s.enveloped(cipher="des"), digest="sha1"), True, ["scep.allow_sha1", "scep.read_des"]
    ),
    "S19-challenge-in-clear": (
        lambda s: replace(s.good, extra=[attribute(CHALLENGE, tlv(PRINTABLE, s.secret.encode()))]), True, []
    ),
    "S19-another-challenge-in-clear": (
        lambda s: replace(s.good, extra=[attribute(CHALLENGE, utf8("something else"))]), True, []
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", EXPOSING)
async def test_what_others_may_have_read_and_what_it_took_to_read_it_is_on_record(
    stage: Stage, core: Core, installation: Installation, case: str
) -> None:
    bend, is_exposed, tolerances = EXPOSING[case]
    assert (await stage.site.ask(bend(stage))).status == SUCCESS
    (event,) = installation.events("certificate.issued")
    assert event.get("secret_exposed", False) is is_exposed
    assert sorted(event.get("tolerances", [])) == tolerances
    counted = {row.tolerance: row.uses for row in (await core.status()).tolerances if row.realm == "default"}
    assert counted == dict.fromkeys(tolerances, 1)


async def test_s17_each_use_of_a_tolerance_is_counted_in_its_realm_also_when_it_is_refused(
    stage: Stage, core: Core
) -> None:
    des = stage.enveloped(cipher="des")
    assert (await stage.site.ask(des)).status == SUCCESS
    for _ in range(3):
        wrong = make_csr(stage.signer.key, "sensor", "wrong")
        await stage.site.refuse(replace(des, envelope=replace(des.envelope, message=wrong)), "secret_unknown", "2")
    found = [(row.realm, row.tolerance, row.uses) for row in (await core.status()).tolerances]
    assert found == [("default", "scep.read_des", 4)]


async def test_s17_a_renewal_in_des_exposes_no_secret(site: Site, own: Device, installation: Installation) -> None:
    assert (await site.ask(await site.renewal(own, "new", cipher="des"))).status == SUCCESS
    event = installation.events("certificate.issued")[-1]
    assert "secret_exposed" not in event
    assert event["tolerances"] == ["scep.read_des"]


# --- S18, S19, S20: what is told, and what is not ---------------------------------------------------------------------


async def test_s18_why_a_challenge_is_refused_is_told_to_nobody(site: Site, clock: SetClock) -> None:
    signer = self_signed()
    spent = (await site.enrolled("spent", "spender")).secret
    void = await site.secret("void")
    await site.new_secret("void")
    live = await site.secret("live")
    expired = await site.secret("expired", expires="1h")
    other = await site.secret("elsewhere", realm="other")
    clock.forward(hours=2)
    sent = {
        "secret_unknown": "aaaaaaaa." + live.partition(".")[2],
        "secret_wrong": live[:-1] + ("a" if live[-1] != "a" else "b"),
        "secret_spent": spent,
        "secret_void": void,
        "secret_expired": expired,
        "credentials_missing": "",
    }
    forms: dict[bytes, list[str]] = {}
    for code, challenge in (*sent.items(), ("secret_unknown", other), ("secret_unknown", "user:password")):
        csr = make_csr(signer.key, "live", challenge)
        reply = await site.refuse(await site.message(signer, csr, transaction="t"), code, BAD_REQUEST)
        forms.setdefault(reply.form, []).append(code)
    assert len(forms) == 1, f"they can be told apart: {list(forms.values())}"
    assert (await site.ask(await site.message(signer, make_csr(signer.key, "live", live)))).status == SUCCESS


def _found_in_the_store(installation: Installation, text: str) -> list[str]:
    """Where a text stands in any column of any table, as text or as bytes."""
    found = []
    connection = sqlite3.connect(installation.directory / "enrolld.db")
    try:
        tables = [row[0] for row in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")]
        for table in tables:
            for row in connection.execute(f'SELECT * FROM "{table}"'):  # noqa: S608  # our own tables
                for value in row:
                    raw = value if isinstance(value, bytes) else str(value).encode()
                    if text.encode() in raw or text.encode().hex().encode() in raw:
                        found.append(table)
    finally:
        connection.close()
    return found


async def test_s19_no_secret_stands_in_a_log_an_attempt_an_event_or_an_answer(
    stage: Stage, installation: Installation, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    in_clear = attribute(CHALLENGE, tlv(PRINTABLE, stage.secret.encode()))
    odd = b"Zq9-odd-challenge-77"
    replies: list[bytes] = []
    with caplog.at_level(logging.DEBUG):
        for bent in (
            stage.enveloped(cipher="des"),  # granted
            stage.enveloped(cipher="des"),  # and again
            replace(stage.good, extra=[in_clear], message_type=of_type(18)),
            replace(stage.good, extra=[attribute(CHALLENGE, tlv(0x1E, b"\0" + stage.secret.encode()))]),
            challenge_of(stage.secret[:-1])(stage),
            challenge_of(odd.decode())(stage),
            replace(stage.good, extra=[attribute(CHALLENGE, tlv(PRINTABLE, odd))]),
            with_subject(cn="victim")(stage),
            stage.asking(extension("2.5.29.17", stage.secret.encode())),
            replace(stage.good, content=stage.good.envelope.message),
        ):
            replies.append((await stage.site.ask(bent)).body)
        replies.append((await stage.site.post(stage.good.envelope.message)).body)
        replies.append((await stage.site.post(b"", query="operation=" + stage.secret)).body)

        def broken(*_: object, **__: object) -> bytes:
            raise RuntimeError("broken on purpose")

        monkeypatch.setattr(operations, "encode_certs_only", broken)
        replies.append((await stage.site.post(stage.good.encode())).body)
        await stage.site.flush()
    assert any(record.exc_info for record in caplog.records), "the fault was logged, with all that it shows"
    everything = caplog.text + "".join(str(vars(record)) for record in caplog.records)
    for secret in (stage.secret, stage.secret.partition(".")[2], odd.decode()):
        assert secret not in everything
        assert all(secret.encode() not in reply for reply in replies)
        assert _found_in_the_store(installation, secret) == []
    assert _found_in_the_store(installation, "sensor"), "the search finds what is there"


async def test_s19_a_secret_that_somebody_put_into_a_name_is_not_kept(
    stage: Stage, installation: Installation, caplog: pytest.LogCaptureFixture
) -> None:
    """It looks like a host name, and what a CSR asks for and does not get is on record."""
    with caplog.at_level(logging.DEBUG):
        as_subject = make_csr(stage.signer.key, stage.secret, stage.secret)
        await stage.site.refuse(stage.holding(as_subject), "subject_mismatch", BAD_REQUEST)
        as_name = stage.asking(bad_csr.san(bad_csr.dns(stage.secret), bad_csr.dns("victim.example.com")))
        assert (await stage.site.ask(as_name)).status == SUCCESS
        as_transaction = replace(as_name, transaction_id=tlv(PRINTABLE, stage.secret.encode()))
        assert (await stage.site.ask(as_transaction)).status == SUCCESS  # the same key again, with the same names
        await stage.site.flush()
    (event,) = installation.events("certificate.issued")
    assert len(event["dropped"]) == 2
    assert "SAN DNS:victim.example.com" in event["dropped"]
    assert stage.secret not in caplog.text
    assert _found_in_the_store(installation, stage.secret) == []


async def test_s20_a_failure_says_its_fail_info_and_a_request_id_and_nothing_else(stage: Stage) -> None:
    texts = set()
    for bend, _, fail_info in [*ATTACKS.values(), *CONTENTS.values()][::3]:
        reply = await stage.site.ask(bend(stage))
        assert reply.text is not None
        assert len(reply.text.encode()) < 128
        assert reply.fail_info == fail_info
        texts.add(reply.text.replace(reply.request_id, "ID"))
    assert texts == {TEXT.format("ID")}


@pytest.mark.parametrize("nonce", [None, 0, 1, 8, 16, 32, 64], ids=str)
async def test_s20_a_nonce_is_given_back_as_it_came(stage: Stage, nonce: int | None) -> None:
    sent = None if nonce is None else bytes(range(nonce))
    made = replace(stage.good, nonce=None if sent is None else tlv(4, sent))
    for request, status in ((replace(made, message_type=of_type(18)), FAILURE), (made, SUCCESS)):
        reply = await stage.site.ask(request)
        assert (reply.status, reply.recipient_nonce) == (status, sent)
        assert reply.sender_nonce not in (sent, b""), "and a new one goes with it"


@pytest.mark.parametrize(
    "transaction",
    [
        pytest.param(tlv(PRINTABLE, b"1"), id="short"),
        pytest.param(tlv(PRINTABLE, b"F" * 255), id="longest"),
        pytest.param(tlv(PRINTABLE, b"nX+aB/c9d0=="), id="base64"),
        pytest.param(tlv(PRINTABLE, b"00:11:22:33:44:55"), id="eui"),
        pytest.param(tlv(PRINTABLE, b"SSCEP transactionId"), id="with-a-space"),
        pytest.param(tlv(PRINTABLE, b"%s%n ${jndi:x} <b>'\";--"), id="of-an-attacker"),
        pytest.param(tlv(0x0C, b"5C3A"), id="UTF8String"),
        pytest.param(tlv(0x16, b"5C3A"), id="IA5String"),
    ],
)
async def test_s20_a_transaction_is_given_back_as_it_came(stage: Stage, transaction: bytes) -> None:
    made = replace(stage.good, transaction_id=transaction)
    await stage.site.refuse(replace(made, message_type=of_type(18)), "scep_message_type", BAD_REQUEST)
    assert (await stage.site.ask(made)).status == SUCCESS
    assert (await stage.site.ask(poll(made))).status == SUCCESS


@pytest.mark.parametrize(
    "transaction",
    [
        pytest.param(tlv(PRINTABLE, b"a\nb"), id="newline"),
        pytest.param(tlv(PRINTABLE, b"a\x1b[31m"), id="escape"),
        pytest.param(tlv(PRINTABLE, b"a\0"), id="nul"),
        pytest.param(tlv(0x0C, "\u202e".encode()), id="right-to-left"),
        pytest.param(tlv(0x04, b"5C3A"), id="octets"),
        pytest.param(tlv(0x1E, b"\x005"), id="bmp-string"),
    ],
)
async def test_s20_a_transaction_that_could_harm_a_log_is_none(stage: Stage, transaction: bytes) -> None:
    await stage.site.refuse_http(replace(stage.good, transaction_id=transaction).encode(), "scep_no_transaction")
    assert (await stage.site.ask(stage.good)).status == SUCCESS


# --- S22: where a message is sent -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "path",
    [
        pytest.param(path, id=f"S22-{case}")
        for case, path in {
            "dots": "/scep/../default",
            "dots-encoded": "/scep/%2e%2e/default",
            "dots-in-the-label": "/scep/..",
            "slash-encoded": "/scep/other%2f..%2fdefault",
            "slash-encoded-twice": "/scep/default%252f",
            "backslash": "/scep/..\\default",
            "nul": "/scep/default%00",
            "newline": "/scep/default%0a",
            "other-case": "/scep/Default",
            "space": "/scep/default%20",
            "unknown": "/scep/nobody",
            "unknown-profile": "/scep/default.nobody",
            "two-profiles": "/scep/default.scep.scep",
            "empty-profile": "/scep/default.",
            "huge": "/scep/" + "a" * 8000,
            "not-utf-8": "/scep/%ff",
            "double-slash": "/scep//default",
            "matrix": "/scep/default;x=y",
        }.items()
    ],
)
async def test_a_path_that_means_no_realm_serves_none(stage: Stage, path: str) -> None:
    reply = await stage.site.post(stage.good.encode(), path)
    assert (reply.status, reply.headers["Content-Type"]) == (404, "text/plain")
    attempt = await stage.site.explain(reply.headers["X-Request-Id"])
    assert attempt.code in ("realm_unknown", "http_not_found")
    assert path.strip("/") not in str(attempt)
    assert stage.site.issued() == 0
    assert (await stage.site.ask(stage.good)).status == SUCCESS


@pytest.mark.parametrize("identifier", ["other", "other-rsa-1", "default", "x" * 20_000, "%00", "../other"])
async def test_s22_a_ca_identifier_selects_nothing(stage: Stage, identifier: str) -> None:
    target = f"/scep?operation=PKIOperation&message={identifier}"
    data = stage.good.encode()
    head = f"POST {target} HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(data)}\r\n\r\n"
    reply = await stage.site.exchange(head.encode() + data)
    assert reply.status == 200
    assert (stage.site.issued("default"), stage.site.issued("other")) == (1, 0)


async def test_s22_the_host_of_a_realm_serves_that_realm_alone(stage: Stage) -> None:
    data = stage.good.encode()

    async def post(host: str, path: str) -> int:
        head = f"POST {path}?operation=PKIOperation HTTP/1.1\r\nHost: {host}\r\nContent-Length: {len(data)}\r\n\r\n"
        return (await stage.site.exchange(head.encode() + data)).status

    for host in (OTHER_HOST, OTHER_HOST.upper(), f"{OTHER_HOST}:8080", f"{OTHER_HOST}."):
        assert await post(host, "/scep/default") == 404
        assert await post(host, "/scep") == 200, "the other realm refuses what is not encrypted to it"
        assert stage.site.issued() == 0
    assert await post("localhost", "/scep") == 200
    assert (stage.site.issued("default"), stage.site.issued("other")) == (1, 0)


# --- S28: the clock ---------------------------------------------------------------------------------------------------


async def test_s28_a_certificate_never_outlives_its_issuer(site: Site, core: Core, clock: SetClock) -> None:
    usual = (await site.ask(await _asked(site, "usual"))).certificate
    assert usual.not_valid_after_utc == clock.now + dt.timedelta(days=90) - dt.timedelta(seconds=1)
    end = await _end_of_the_issuer(core)
    clock.now = end - dt.timedelta(days=10)
    await core.ra_certificates.ensure()
    late = (await site.ask(await _asked(site, "late"))).certificate
    assert late.not_valid_after_utc == end
    clock.now = end + dt.timedelta(seconds=1)
    reply = await site.post((await _asked(site, "too-late")).encode())
    assert (reply.status, "Retry-After" in reply.headers) == (503, True)
    assert site.issued() == 2


async def _asked(site: Site, device: str) -> Request:
    signer = self_signed(device)
    return await site.message(signer, make_csr(signer.key, device, await site.secret(device)))


async def _end_of_the_issuer(core: Core) -> dt.datetime:
    ra = await core.ra(await core.realms.resolve("scep", None, None))
    return x509.load_der_x509_certificate(ra.issuers[0]).not_valid_after_utc


async def test_s28_a_certificate_begins_when_it_is_made(stage: Stage, clock: SetClock) -> None:
    issued = (await stage.site.ask(stage.good)).certificate
    assert clock.now - dt.timedelta(minutes=5) <= issued.not_valid_before_utc <= clock.now


async def test_s28_a_signing_time_changes_nothing(stage: Stage) -> None:
    for year in (b"500101000000Z", b"491231235959Z"):
        made = replace(stage.good, extra=[attribute("1.2.840.113549.1.9.5", tlv(0x17, year))])
        assert (await stage.site.ask(made)).certificate.not_valid_before_utc.year == START.year
    broken = replace(stage.good, extra=[attribute("1.2.840.113549.1.9.5", tlv(0x17, b"261322000000Z"))])
    await stage.site.refuse(broken, "scep_attribute_malformed", BAD_REQUEST)


async def test_s28_a_clock_that_went_back_issues_nothing(stage: Stage, clock: SetClock) -> None:
    await stage.site.enrolled("first", "first")
    clock.forward(minutes=-2)
    reply = await stage.site.post(stage.good.encode())
    assert reply.status == 503
    assert b"clock" not in reply.body
    assert stage.site.issued() == 1
    clock.forward(minutes=2)
    assert (await stage.site.ask(stage.good)).status == SUCCESS


async def test_s28_a_tiny_certificate_renews_not_a_second_after_its_end(
    site: Site, core: Core, clock: SetClock
) -> None:
    text = await core.realms.export("default")
    _, _, rest = text.partition("[profiles.scep]")
    await core.realms.apply(text.replace(rest, rest.replace('"90d"', '"1h"', 1)), actor=ME)
    device = await site.enrolled()
    clock.now = device.signer.x509.not_valid_after_utc + dt.timedelta(seconds=1)
    await site.refuse(await site.renewal(device, "new"), "certificate_expired", BAD_REQUEST)
    clock.forward(seconds=-1)
    assert (await site.ask(await site.renewal(device, "new"))).status == SUCCESS
