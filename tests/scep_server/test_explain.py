"""What is foretold of a request is what the server then does with it: step, code and outcome, and nothing changes."""

import base64
import contextlib
import dataclasses
import sqlite3
from collections.abc import Awaitable, Callable
from dataclasses import replace as bent
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, mldsa
from cryptography.hazmat.primitives.serialization import Encoding, load_pem_private_key

from ca_core.codes import CODES
from ca_core.core import Core
from ca_core.errors import InternalError, MalformedRequest
from ca_core.records.query import Query
from ca_core.records.schema import lease
from ca_core.records.unit import Guard, Unit
from ca_core.registration.ra import RaIdentity
from ca_core.registration.realm import Resolved
from ca_core.registration.rehearsal import Rehearsal
from scep_server import handlers
from scep_server.exchange import Ra
from scep_server.explain import _PUBLISHED, explain
from scep_server.story import Captured, Explanation
from tests.helpers import bad_csr, weak_rsa
from tests.helpers.core import ME, OTHER_HOST, Installation, SetClock, edit_realm
from tests.scep_server import client
from tests.scep_server.client import Request, attribute, ec_key, make_certificate, tlv, to_ber
from tests.scep_server.serving import Device, Site, certify, common_name, foreign, make_csr, rsa_key, self_signed

CAPTURES = Path(__file__).with_name("captures")
SECRET = "abcdefgh.kmnpqrstuvwxyz23456789abcd"
MD5_WITH_RSA = "1.2.840.113549.1.1.4"
CHALLENGE = "abcdefgh.abcdefghijkmnpqrstuvwxyz23"  # of every capture


def dump(installation: Installation) -> str:
    """All that the store holds."""
    with contextlib.closing(sqlite3.connect(installation.directory / "enrolld.db")) as connection:
        return "\n".join(connection.iterdump())


async def explained(
    installation: Installation, captured: Captured, *, realm: str | None = None, sealed: bool = False
) -> Explanation:
    """Explain as the command does, in a core of its own, and see that nothing changes."""
    before = dump(installation)
    core = installation.open(sealed=sealed)
    try:
        config = core.config
        rehearsal = Rehearsal(core.store, config.unlock_key, clock=config.clock, public_url="http://x", demo=False)
        found = await explain(rehearsal, captured, config.clock, realm=realm)
    finally:
        core.close()  # which writes whatever is queued
    assert dump(installation) == before
    assert_sound(found)
    return found


def assert_sound(found: Explanation) -> None:
    """One step fails at most, it is the last, and it says why as the verdict does."""
    *passed, last = found.steps
    assert all(step.ok and not step.code and not step.remedy for step in passed)
    failing = last if last.ok is False else None
    assert (failing is None) == (found.verdict.outcome in ("issued", "answered", "unknown"))
    assert (failing.code if failing else None) == found.verdict.code
    assert (failing.remedy if failing else None) == found.verdict.remedy
    assert found.verdict.outcome in ("refused", "error", "issued", "answered", "unknown")
    assert found.verdict.sentence
    if found.verdict.code != "internal_error" and found.verdict.code:
        assert found.verdict.remedy == CODES[found.verdict.code]


def message_of(data: bytes) -> Captured:
    return Captured("der", len(data), data)


def texts(found: Explanation) -> dict[str, str]:
    """The steps' texts by their names; of those that are there twice, the last."""
    return {step.step: step.text for step in found.steps}


async def settled(site: Site) -> None:
    """Until nothing waits to be written, so that two dumps can be compared."""
    await site.flush()


# --- what is asked ---------------------------------------------------------------------------------------------------

Builds = Callable[[Site], Awaitable[Request | bytes]]


async def good(site: Site, **bends: Any) -> Request:
    signer = self_signed()
    return await site.message(signer, make_csr(signer.key, "sensor", await site.secret()), **bends)


def bending(**bends: Any) -> Builds:
    """The good request, but for this."""

    async def build(site: Site) -> Request:
        return bent(await good(site), **bends)

    return build


def enveloping(**bends: Any) -> Builds:
    """The good request in an envelope that is bent."""

    async def build(site: Site) -> Request:
        request = await good(site)
        return bent(request, envelope=bent(request.envelope, **bends))

    return build


def asking(*extensions: bytes, cn: str | None = "sensor", bits: int = 2048, **bends: Any) -> Builds:
    """A good message around a CSR that is bent."""

    async def build(site: Site) -> Request:
        signer = self_signed(f"asking-{bits}", bits=bits)
        return await site.message(signer, make_csr(signer.key, cn, await site.secret(), *extensions, **bends))

    return build


async def with_this(site: Site, challenge: str | None) -> Request:
    return await site.message(self_signed(), make_csr(self_signed().key, "sensor", challenge))


def with_challenge(challenge: str | None) -> Builds:
    async def build(site: Site) -> Request:
        await site.secret()
        return await with_this(site, challenge)

    return build


async def wrong_secret(site: Site) -> Request:
    selector = (await site.secret()).partition(".")[0]
    return await with_this(site, f"{selector}.{SECRET.partition('.')[2]}")


async def spent_secret(site: Site) -> Request:
    device = await site.enrolled()
    return await site.message(self_signed("second"), make_csr(rsa_key("second"), device.name, device.secret))


async def void_secret(site: Site) -> Request:
    old = await site.secret()
    await site.new_secret()
    return await with_this(site, old)


async def expired_secret(site: Site) -> Request:
    request = await good(site)
    site.installation.clock.forward(days=8)
    return request


async def not_admitted(site: Site) -> Request:
    request = await good(site)
    await edit_realm(site.core, "default", "secret = true", "secret = false")
    return request


async def suspended(site: Site) -> Request:
    request = await good(site)
    await site.core.devices.suspend("default", "sensor", actor=ME)
    return request


async def revoked(site: Site) -> Request:
    device = await site.enrolled()
    await site.core.certificates.revoke(device.serial, reason="superseded", realm="default", actor=ME)
    return await site.renewal(device, "second")


async def expired_certificate(site: Site) -> Request:
    device = await site.enrolled()
    site.installation.clock.forward(days=91)
    await site.core.ra_certificates.ensure()
    return await site.renewal(device, "second")


async def foreign_signer(site: Site) -> Request:
    return await site.message(foreign(), make_csr(foreign().key, "sensor"))


async def other_signer(site: Site) -> Request:
    return await site.message(self_signed("second"), make_csr(rsa_key("device"), "sensor", await site.secret()))


async def of_other_device(site: Site) -> Request:
    await site.enrolled("first")
    return await good(site)


async def of_other_transaction(site: Site) -> Request:
    device = await site.enrolled()
    csr = make_csr(rsa_key("device"), device.name, device.secret)
    name = (await site.message(self_signed(), csr)).transaction_id
    assert name is not None
    return bent(await site.renewal(device, "second"), transaction_id=name)


async def of_other_profile(site: Site) -> Request:
    secret = await site.secret(profile="device")
    return await site.message(self_signed(), make_csr(self_signed().key, "sensor", secret))


async def other_names(site: Site) -> Request:
    device = await site.enrolled(sans=["DNS:a.example"])
    csr = make_csr(device.signer.key, device.name, device.secret, bad_csr.san(bad_csr.dns("a.example")))
    return await site.message(self_signed(), csr)


async def of_other_realm(site: Site) -> Request:
    request = await good(site)
    other = await site.ra("other")
    return bent(request, envelope=bent(request.envelope, recipient=other))


def without(tolerance: str, **bends: Any) -> Builds:
    """The realm takes back a tolerance that the request needs."""

    async def build(site: Site) -> Request:
        await edit_realm(site.core, "default", f"{tolerance} = true", f"{tolerance} = false")
        return await good(site, **bends)

    return build


async def ec_signer(site: Site) -> Request:
    return bent(await good(site), key=ec_key(), signer=make_certificate(ec_key().public_key()),
                signature_oid=client.ECDSA["sha256"], signature_parameters=b"")  # fmt: skip


async def ec_signer_in_single_des(site: Site) -> Request:
    request = await ec_signer(site)
    await edit_realm(site.core, "default", "read_des = true", "read_des = false")
    return bent(request, envelope=bent(request.envelope, cipher="des"))


async def on_a_curve_that_nobody_takes(site: Site) -> Request:
    key: ec.EllipticCurvePrivateKey = ec_key("secp256k1")
    signer = make_certificate(key.public_key())
    return bent(await ec_signer(site), key=key, signer=signer)


async def ambiguous(site: Site) -> Request:
    key = rsa_key()
    two = [make_certificate(key.public_key(), ski=bytes([n]) * 20) for n in (1, 2)]
    return bent(await good(site), signer=two[0], certificates=two)


async def of_weak_key(site: Site) -> Request:
    csr = bad_csr.make_csr(weak_rsa.roca_key(), bad_csr.name("sensor"), bad_csr.challenge(await site.secret()))
    return await site.message(certify(weak_rsa.roca_key(), common_name("SCEP SIGNER")), csr)


def of_a_kind_that_scep_does_not_know(make: Callable[[], bad_csr.PrivateKey]) -> Builds:
    """A renewal to another kind of key, signed with the RSA key of before."""

    async def build(site: Site) -> Request:
        device = await site.enrolled()
        return await site.message(device.signer, bad_csr.make_csr(make(), bad_csr.name(device.name)), kind=17)

    return build


def bytes_of(data: bytes) -> Builds:
    async def build(site: Site) -> bytes:
        del site
        return data

    return build


CA_TRUE = bad_csr.extension(bad_csr.BASIC_CONSTRAINTS, bad_csr.sequence(bad_csr.bool_true()))

FAILING: dict[str, tuple[Builds, str, str]] = {
    # name: (the request, the step that fails, its code)
    "too-large": (bytes_of(b"\x30" * (128 * 1024 + 1)), "cms", "scep_too_large"),
    "not-cms": (bytes_of(b"\x30\x03\x02\x01\x00"), "cms", "scep_not_cms"),
    "truncated": (bytes_of(b"\x30\x82\x20\x00" + b"\x06\x09*\x86H"), "cms", "scep_not_cms"),
    "two-signers": (bending(signers=2), "signer", "scep_signer_count"),
    "no-attributes": (bending(no_attributes=True, sign_content=True), "transaction", "scep_no_transaction"),
    "no-transaction": (bending(transaction_id=None), "transaction", "scep_no_transaction"),
    "no-signer": (bending(certificates=[]), "signer", "scep_no_signer"),
    "nonce": (bending(nonce=tlv(4, b"n" * 65)), "nonce", "scep_nonce"),
    "message-type": (bending(message_type=tlv(0x13, b"3")), "message_type", "scep_message_type"),
    "no-message-type": (bending(message_type=None), "message_type", "scep_message_type"),
    "attribute-twice": (
        bending(extra=[attribute(client.MESSAGE_TYPE, tlv(0x13, b"19"))]), "attributes", "scep_attribute_malformed",
    ),
    "signing-time": (
        bending(extra=[attribute(client.SIGNING_TIME, tlv(0x17, b"never"))]), "attributes", "scep_attribute_malformed",
    ),
    "md5": (bending(digest="md5"), "algorithms", "scep_digest_unsupported"),
    "signature-algorithm": (bending(signature_oid=MD5_WITH_RSA), "algorithms", "scep_signature_unsupported"),
    "content-type": (bending(signed_content_type=client.ENVELOPED), "signature", "scep_content_type"),
    "digest": (bending(message_digest=b"x" * 32), "signature", "scep_digest_mismatch"),
    "signature": (bending(signature=b"x" * 256), "signature", "scep_signature_bad"),
    "ambiguous": (ambiguous, "signature", "scep_signer_ambiguous"),
    "signer-key": (on_a_curve_that_nobody_takes, "signature", "scep_signer_key"),
    "no-content": (bending(no_content=True), "envelope", "scep_not_enveloped"),
    "in-the-clear": (bending(content=client.CSR), "envelope", "scep_not_enveloped"),
    "sha1-off": (without("allow_sha1", digest="sha1"), "tolerance", "scep_sha1_not_allowed"),
    "3des-off": (without("allow_3des", cipher="3des"), "tolerance", "scep_3des_not_allowed"),
    "des-off": (without("read_des", cipher="des"), "tolerance", "scep_cipher_unsupported"),
    "cipher": (enveloping(cipher_oid="1.2.840.113549.3.2"), "cipher", "scep_cipher_unsupported"),
    "ec-signer": (ec_signer, "answer", "scep_reply_needs_rsa"),
    "ec-signer-in-des": (ec_signer_in_single_des, "answer", "scep_reply_needs_rsa"),
    "not-data": (enveloping(content_type=client.SIGNED), "envelope", "scep_not_enveloped"),
    "other-realm": (of_other_realm, "recipient", "scep_envelope_not_for_us"),
    "nobody": (enveloping(recipient=client.ra_certificate()), "recipient", "scep_envelope_not_for_us"),
    "oaep-sha512": (enveloping(oaep=("sha512", "sha512")), "key_transport", "scep_key_transport_unsupported"),
    "wrong-key": (enveloping(encrypted_key=b"\1" * 256), "decryption", "scep_envelope_bad"),
    "iv": (enveloping(iv=b"short"), "decryption", "scep_envelope_bad"),
    "no-csr": (enveloping(message=client.CSR), "csr", "not_pkcs10"),
    "csr-md5": (asking(signature_hash="md5"), "csr", "csr_signature_weak"),
    "csr-signature": (asking(break_signature=True), "csr", "csr_signature_bad"),
    "csr-small-key": (asking(bits=1024), "csr", "key_too_small"),
    "csr-roca": (of_weak_key, "csr", "key_roca"),
    "csr-ed25519": (of_a_kind_that_scep_does_not_know(ed25519.Ed25519PrivateKey.generate), "csr", "scep_csr_key"),
    "csr-ml-dsa": (of_a_kind_that_scep_does_not_know(mldsa.MLDSA65PrivateKey.generate), "csr", "scep_csr_key"),
    "signer-not-csr": (other_signer, "requester", "scep_signer_not_csr_key"),
    "no-challenge": (with_challenge(None), "challenge", "credentials_missing"),
    "empty-challenge": (with_challenge(""), "challenge", "credentials_missing"),
    "unknown-secret": (with_challenge(SECRET), "challenge", "secret_unknown"),
    "wrong-secret": (wrong_secret, "challenge", "secret_wrong"),
    "spent-secret": (spent_secret, "challenge", "secret_spent"),
    "void-secret": (void_secret, "challenge", "secret_void"),
    "expired-secret": (expired_secret, "challenge", "secret_expired"),
    "secret-not-admitted": (not_admitted, "challenge", "secret_not_admitted"),
    "suspended": (suspended, "requester", "device_suspended"),
    "foreign": (foreign_signer, "requester", "certificate_unknown"),
    "revoked": (revoked, "requester", "certificate_revoked"),
    "expired": (expired_certificate, "requester", "certificate_expired"),
    "profile": (of_other_profile, "profile", "profile_not_for_protocol"),
    "subject": (asking(cn="another"), "decision", "subject_mismatch"),
    "ca": (asking(CA_TRUE), "decision", "ca_requested"),
    "renewal-by-secret": (bending(message_type=tlv(0x13, b"17")), "decision", "renewal_needs_certificate"),
    "key-of-other-device": (of_other_device, "decision", "key_of_other_device"),
    "transaction-of-other-key": (of_other_transaction, "decision", "transaction_of_other_key"),
    "other-names": (other_names, "decision", "retry_other_names"),
    "poll": (bending(message_type=tlv(0x13, b"20")), "decision", "transaction_unknown"),
    "get-cert": (bending(message_type=tlv(0x13, b"21")), "decision", "scep_not_served"),
    "get-crl": (bending(message_type=tlv(0x13, b"22")), "decision", "scep_not_served"),
}  # fmt: skip


@pytest.mark.parametrize(("build", "step", "code"), FAILING.values(), ids=FAILING)
async def test_the_step_that_fails_is_the_reason_that_the_server_has(
    build: Builds, step: str, code: str, site: Site
) -> None:
    built = await build(site)
    data = built if isinstance(built, bytes) else built.encode()
    await settled(site)
    found = await explained(site.installation, message_of(data))
    assert (found.steps[-1].step, found.steps[-1].code) == (step, code)
    assert (found.verdict.outcome, found.verdict.code) == ("refused", code)
    # And so it is: the server itself.
    reply = await site.post(data)
    if reply.status == 200:
        names = {"0": "badAlg", "1": "badMessageCheck", "2": "badRequest", "4": "badCertId"}
        fail_info = str(client.attributes_of(reply.body)["2.16.840.1.113733.1.9.4"])
        assert found.verdict.answer == f"a CertRep FAILURE with {names[fail_info]}"
        text = str(client.attributes_of(reply.body)["1.3.6.1.5.5.7.24.1"])
        request_id = text.rpartition(" ")[2].removesuffix(".")
    else:
        assert found.verdict.answer == f"HTTP {reply.status}"
        request_id = reply.headers["X-Request-Id"]
    attempt = await site.explain(request_id)
    assert (attempt.code, attempt.remedy) == (code, found.verdict.remedy)
    assert found.verdict.device == attempt.device


def test_every_code_of_scep_and_of_secrets_has_a_case() -> None:
    told = {code for _, _, code in (*FAILING.values(), *ADDRESSED.values())}
    # SCEP has no user name, which EST compares.
    assert {code for code in CODES if code.startswith(("scep_", "secret_"))} - told == {"secret_other_user"}


# --- the twins that pass ---------------------------------------------------------------------------------------------


async def renewed(site: Site) -> Request:
    return await site.renewal(await site.enrolled(), "second")


async def renewed_as_pkcs_req(site: Site) -> Request:
    device = await site.enrolled()
    # certmonger sends the spent challenge again, with the same key, which the secret still knows.
    csr = make_csr(device.signer.key, device.name, device.secret)
    return await site.message(device.signer, csr, kind=19)


async def renewed_with_another_key(site: Site) -> Request:
    device = await site.enrolled()
    return await site.message(device.signer, make_csr(rsa_key("second"), device.name, device.secret), kind=19)


async def renewed_late(site: Site) -> Request:
    request = await renewed_as_pkcs_req(site)
    site.installation.clock.forward(days=2)
    return request


async def first_time_again(site: Site) -> Request:
    device: Device = await site.enrolled()
    return await site.message(self_signed(), make_csr(self_signed().key, device.name, device.secret))


async def polled(site: Site) -> Request:
    return bent(await first_time_again(site), message_type=tlv(0x13, b"20"))


PASSING: dict[str, tuple[Builds, str, dict[str, str]]] = {
    # name: (the request, the outcome, what some steps say)
    "plain": (good, "issued", {"challenge": "matched (device sensor)", "recipient": "the RA of realm default"}),
    "sha1": (bending(digest="sha1"), "issued", {
        "tolerance": "SHA-1 needs scep.allow_sha1, which is on in this realm",
        "algorithms": "digest sha1, signature rsa-encryption",
    }),
    "3des": (enveloping(cipher="3des"), "issued", {
        "tolerance": "3DES needs scep.allow_3des, which is on in this realm",
    }),
    "des": (enveloping(cipher="des"), "issued", {
        "tolerance": "single DES, which shows its content to others, needs scep.read_des, which is on in this realm",
        "challenge": "matched (device sensor), and others may have read it on its way",
    }),
    "oaep": (enveloping(oaep=("sha256", "sha256")), "issued", {"key_transport": "RSA OAEP with sha256"}),
    "by-key-identifier": (bending(ski=b"\7" * 20, signer=make_certificate(rsa_key().public_key())), "issued", {
        "signer": f"named by subject key identifier {'07' * 20}",
    }),
    "extra-names": (asking(bad_csr.san(bad_csr.dns("x.example"))), "issued", {
        "csr": "CN=sensor, RSA 2048, signed by its own key with sha256, names DNS:x.example",
    }),
    "renewal": (renewed, "issued", {"challenge": "absent", "message_type": "RenewalReq (17)"}),
    "renewal-as-pkcs-req": (renewed_as_pkcs_req, "issued", {"challenge": "not needed, matched (device sensor)"}),
    "renewal-late": (renewed_late, "issued", {"challenge": "not needed, not matched: spent"}),
    "renewal-with-another-key": (renewed_with_another_key, "issued", {
        "challenge": "present, and of no use: the message is not signed with the CSR's key",
    }),
    "sha1-csr": (asking(signature_hash="sha1"), "issued", {
        "csr": "CN=sensor, RSA 2048, signed by its own key with sha1 (by scep.allow_sha1), no names",
    }),
    "again": (first_time_again, "answered", {"challenge": "matched (device sensor)"}),
    "poll": (polled, "answered", {"message_type": "CertPoll (20)"}),
}  # fmt: skip


@pytest.mark.parametrize(("build", "outcome", "said"), PASSING.values(), ids=PASSING)
async def test_what_would_be_issued_is_issued(build: Builds, outcome: str, said: dict[str, str], site: Site) -> None:
    request = await build(site)
    assert isinstance(request, Request)
    await settled(site)
    found = await explained(site.installation, message_of(request.encode()))
    assert found.verdict.outcome == outcome, found.steps[-1]
    assert all(step.ok for step in found.steps)
    assert {step: texts(found)[step] for step in said} == said
    assert found.verdict.answer == "a CertRep SUCCESS"
    before = site.issued()
    certificate = (await site.ask(request)).certificate
    assert site.issued() - before == (1 if outcome == "issued" else 0)
    if outcome == "answered":
        assert found.verdict.serial == format(certificate.serial_number, "x")
    else:
        assert certificate.subject.rfc4514_string() in texts(found)["decision"]
        assert f"{certificate.not_valid_after_utc:%Y-%m-%d}" in texts(found)["decision"]
    if request.message_type != tlv(0x13, b"20"):
        assert (found.verdict.device, found.verdict.profile) == ("sensor", "scep")


async def test_what_is_dropped_and_who_asks_is_told(site: Site) -> None:
    request = await asking(bad_csr.san(bad_csr.dns("x.example")))(site)
    assert isinstance(request, Request)
    found = await explained(site.installation, message_of(request.encode()))
    assert texts(found)["decision"].endswith(", without SAN DNS:x.example")
    assert texts(found)["requester"] == "device sensor (expected), by its secret"
    device = await site.enrolled("second", "second")
    again = await explained(site.installation, message_of((await site.renewal(device, "third")).encode()))
    assert texts(again)["requester"] == f"device second (active), by its own certificate {device.serial}"
    assert (again.verdict.means, again.verdict.device) == ("own_certificate", "second")


async def test_a_message_that_is_for_another_realm_says_for_which(site: Site) -> None:
    request = await of_other_realm(site)
    found = await explained(site.installation, message_of(request.encode()))
    assert "(the RA of realm other)" in found.steps[-1].text
    twin = await explained(site.installation, message_of(request.encode()), realm="other")
    assert texts(twin)["recipient"] == "the RA of realm other"
    assert (twin.realm, twin.verdict.code) == ("other", "secret_unknown")


async def test_a_message_to_a_ca_or_to_nobody_says_so(site: Site) -> None:
    resolved = await site.core.realms.resolve("scep", None, None)
    issuer = (await site.core.ra(resolved)).issuers[0]
    request = await good(site)
    for recipient, words in (
        (issuer, "the CA default-rsa-1 of realm default, which opens nothing"),
        (client.ra_certificate(), "nobody known here, issuer CN=RA and serial number 1000"),
    ):
        sent = bent(request, envelope=bent(request.envelope, recipient=recipient))
        found = await explained(site.installation, message_of(sent.encode()))
        assert words in found.steps[-1].text
    unnamed = bent(request, envelope=bent(request.envelope, ski=b"\5" * 20))
    found = await explained(site.installation, message_of(unnamed.encode()))
    assert f"nobody known here, subject key identifier {'05' * 20}" in found.steps[-1].text


async def test_a_message_to_an_earlier_ra_certificate_is_opened(site: Site, clock: SetClock) -> None:
    earlier = await site.ra()
    clock.forward(days=600)
    await site.core.ra_certificates.ensure()
    assert await site.ra() != earlier
    secret = await site.secret(expires="30d")
    request = await site.message(self_signed(), make_csr(self_signed().key, "sensor", secret))
    request = bent(request, envelope=bent(request.envelope, recipient=earlier))
    found = await explained(site.installation, message_of(request.encode()))
    assert found.verdict.outcome == "issued"
    site.installation.sql("UPDATE certificate SET status = 'revoked' WHERE kind = 'ra'")
    await site.core.ra_certificates.ensure()  # one with a new key, which opens nothing of before
    found = await explained(site.installation, message_of(request.encode()))
    assert "the RA of realm default, by a certificate that is not used any more" in found.steps[-1].text


# --- the key, and our own faults -------------------------------------------------------------------------------------


async def test_without_the_key_the_steps_up_to_it_are_told(site: Site) -> None:
    request = await good(site)
    found = await explained(site.installation, message_of(request.encode()), sealed=True)
    whole = await explained(site.installation, message_of(request.encode()))
    *passed, last = found.steps
    assert tuple(passed) == whole.steps[: len(passed)]
    assert (last.step, last.ok) == ("decryption", None)
    assert (found.verdict.outcome, found.verdict.code) == ("unknown", None)
    assert found.locked is not None
    # What needs no key is told to its end.
    refused = bent(request, signature=b"x" * 256)
    found = await explained(site.installation, message_of(refused.encode()), sealed=True)
    assert (found.verdict.code, found.locked) == ("scep_signature_bad", None)


async def test_a_realm_without_an_ra_and_a_clock_that_is_wrong_are_our_faults(site: Site, clock: SetClock) -> None:
    request = await good(site)
    clock.forward(days=-1)
    found = await explained(site.installation, message_of(request.encode()))
    assert (found.steps[-1].step, found.verdict.outcome) == ("decision", "error")
    assert "set the clock" in found.verdict.sentence
    clock.forward(days=1)
    assert (await explained(site.installation, message_of(request.encode()))).verdict.outcome == "issued"
    site.installation.sql("UPDATE certificate SET status = 'revoked' WHERE kind = 'ra'")
    found = await explained(site.installation, message_of(request.encode()))
    assert (found.steps[-1].step, found.steps[-1].code) == ("ra", "internal_error")
    assert (found.verdict.answer, found.transaction_id) == ("HTTP 503", request.transaction_id[2:].decode())  # type: ignore[index]


# --- where it goes ---------------------------------------------------------------------------------------------------

GET = "/scep?operation=PKIOperation&message="
ADDRESSED: dict[str, tuple[Captured, str, str]] = {
    "http-fault": (
        Captured("http", 9, method="GET", target=GET, fault=MalformedRequest("http_no_host", "No Host.")),
        "input", "http_no_host",
    ),
    "path": (Captured("target", 9, method="GET", target="/.well-known/est/cacerts"), "realm", "http_not_found"),
    "dots": (Captured("target", 9, method="GET", target="/scep/..?operation=GetCACaps"), "realm", "http_not_found"),
    "label": (Captured("target", 9, method="GET", target="/scep/nope?operation=GetCACaps"), "realm", "realm_unknown"),
    "profile": (Captured("target", 9, method="GET", target="/scep/default.nope"), "realm", "realm_unknown"),
    "host": (Captured("url", 9, method="GET", target="/scep/default", host=OTHER_HOST), "realm", "realm_not_here"),
    "operation": (
        Captured("target", 9, method="GET", target="/scep?operation=Nope\x1b"), "operation", "scep_operation_unknown"
    ),
    "no-operation": (Captured("target", 9, method="GET", target="/scep"), "operation", "scep_operation_unknown"),
    "method": (
        Captured("http", 9, method="POST", target="/scep?operation=GetCACert"), "operation", "method_not_allowed"
    ),
    "put": (Captured("http", 9, method="PUT", target=GET), "operation", "method_not_allowed"),
    "next-ca": (
        Captured("target", 9, method="GET", target="/scep?operation=GetNextCACert"), "operation", "scep_no_next_ca"
    ),
    "no-message": (Captured("target", 9, method="GET", target=GET), "operation", "scep_message_missing"),
    "empty-post": (Captured("http", 9, target="/scep"), "operation", "scep_message_missing"),
    "not-base64": (Captured("target", 9, method="GET", target=GET + "%00"), "operation", "scep_not_base64"),
}  # fmt: skip


@pytest.mark.parametrize(("captured", "step", "code"), ADDRESSED.values(), ids=ADDRESSED)
async def test_an_address_that_leads_nowhere_says_why(
    captured: Captured, step: str, code: str, installation: Installation
) -> None:
    found = await explained(installation, captured)
    assert (found.steps[-1].step, found.steps[-1].code, found.verdict.code) == (step, code, code)


async def test_a_realm_that_speaks_no_scep_says_so(site: Site) -> None:
    await edit_realm(site.core, "other", "enabled = true", "enabled = false")
    await settled(site)
    found = await explained(site.installation, Captured("target", 9, method="GET", target="/scep/other"))
    assert (found.steps[-1].step, found.verdict.code) == ("realm", "protocol_not_served")


async def test_the_paths_realm_wins_and_a_host_means_its_own(site: Site) -> None:
    request = (await good(site)).encode()
    message = base64.urlsafe_b64encode(request).decode()
    for path, host, realm in (
        ("/scep/default", None, "default"),
        ("/scep", OTHER_HOST, "other"),
        ("/cgi-bin/pkiclient.exe", None, "default"),
    ):
        captured = Captured(
            "url", 9, method="GET", target=f"{path}?operation=PKIOperation&message={message}", host=host
        )
        found = await explained(site.installation, captured, realm="other")
        assert found.realm == realm
        assert found.verdict.code == (None if realm == "default" else "scep_envelope_not_for_us")
    posted = Captured("http", 9, request, target="/scep/default.scep/pkiclient.exe")
    found = await explained(site.installation, posted)
    assert found.verdict.outcome == "issued"
    assert texts(found)["realm"] == "default, profile scep, by the label default.scep"


async def test_what_is_only_published_is_told(site: Site) -> None:
    caps = await explained(
        site.installation, Captured("target", 9, method="GET", target="/scep?operation=getcacaps&message=x")
    )
    assert caps.verdict.outcome == "answered"
    assert "POSTPKIOperation, Renewal, SHA-1" in texts(caps)["operation"]
    certificates = await explained(
        site.installation, Captured("target", 9, method="GET", target="/scep?operation=GetCACert")
    )
    assert "application/x-x509-ca-ra-cert" in texts(certificates)["operation"]
    site.installation.sql("UPDATE certificate SET status = 'revoked' WHERE kind = 'ra'")
    without_ra = await explained(
        site.installation, Captured("target", 9, method="GET", target="/scep?operation=GetCACert")
    )
    assert (without_ra.verdict.outcome, without_ra.verdict.code) == ("error", "internal_error")


def test_the_operations_are_those_of_the_server() -> None:
    served = handlers.OPERATIONS
    assert set(_PUBLISHED) == {name for name, one in served.items() if one.answer is not None}
    for name, one in served.items():
        assert one.methods == (("GET", "HEAD") if name in _PUBLISHED else ("GET", "POST"))
        assert one.answer == _PUBLISHED.get(name)


# --- secrets, and what is hostile ------------------------------------------------------------------------------------


def everything(found: Explanation) -> str:
    return repr(dataclasses.asdict(found)) + repr(found)


@pytest.mark.parametrize("outcome", ["matched", "wrong", "weak"])
async def test_the_challenge_is_nowhere_even_where_a_client_wrote_it(outcome: str, site: Site) -> None:
    secret = await site.secret()
    sent = secret if outcome == "matched" else secret[:-4] + "2345"
    signer = self_signed(subject=f"of {sent}")
    csr = make_csr(signer.key, "sensor", sent, **({"signature_hash": "md5"} if outcome == "weak" else {}))
    macos = attribute(client.CHALLENGE, tlv(0x13, sent.encode()))
    request = await site.message(signer, csr, transaction=f"t-{sent.partition('.')[2]}", extra=[macos])
    found = await explained(site.installation, message_of(request.encode()))
    for part in (sent, *sent.split(".")):
        assert part not in everything(found)
    assert "(the challenge)" in texts(found)["certificate"]
    assert found.transaction_id == "t-(the challenge)"
    # Its twin: what is not the challenge is told.
    other = await site.message(self_signed(subject="of abcdefgh.ijklmnop"), csr, transaction="t-abcdefgh")
    found = await explained(site.installation, message_of(other.encode()))
    assert found.transaction_id == "t-abcdefgh"
    assert "of abcdefgh.ijklmnop" in texts(found)["certificate"]


@pytest.mark.parametrize("signers", [1, 2])
async def test_a_challenge_with_what_names_escape_is_nowhere_either(signers: int, site: Site) -> None:
    sent = 'pass,word+"1";<2>'
    signer = self_signed(subject=sent)
    macos = attribute(client.CHALLENGE, tlv(0x0C, sent.encode()))
    request = await site.message(signer, make_csr(signer.key, "sensor", sent), extra=[macos], signers=signers)
    found = await explained(site.installation, message_of(request.encode()))
    assert "word" not in everything(found)
    assert found.verdict.code == ("secret_unknown" if signers == 1 else "scep_signer_count")


async def test_a_challenge_as_the_name_is_not_in_what_the_core_says_of_it(site: Site) -> None:
    sent = "pass'word\"" + "x" * 40
    request = await site.message(self_signed(), make_csr(self_signed().key, sent, sent), extra=[])
    found = await explained(site.installation, message_of(request.encode()))
    assert texts(found)["csr"].startswith("CN=(the challenge), ")
    secret = await site.secret()
    request = await site.message(self_signed(), make_csr(self_signed().key, secret, secret))
    found = await explained(site.installation, message_of(request.encode()))
    assert found.verdict.code == "subject_mismatch"
    assert found.steps[-1].text.endswith("(asked CN '(the secret)', device sensor)")


async def test_half_a_challenge_is_not_told_where_a_text_is_cut(site: Site) -> None:
    secret = await site.secret()
    for before in range(360, 410, 7):
        extra = attribute(client.CHALLENGE, tlv(0x13, secret.encode()))
        kind = tlv(0x13, b"-" * before + secret.encode())
        request = await site.message(self_signed(), make_csr(self_signed().key, "sensor", secret), extra=[extra])
        found = await explained(site.installation, message_of(bent(request, message_type=kind).encode()))
        assert found.verdict.code == "scep_message_type"
        assert secret[:4] not in everything(found)


async def test_a_macos_challenge_does_not_count_and_is_told(site: Site) -> None:
    secret = await site.secret()
    macos = attribute(client.CHALLENGE, tlv(0x13, secret.encode()))
    request = await site.message(self_signed(), make_csr(self_signed().key, "sensor"), extra=[macos])
    found = await explained(site.installation, message_of(request.encode()))
    assert found.verdict.code == "credentials_missing"
    assert "absent; one among the signed attributes does not count" in found.steps[-1].text
    assert secret not in everything(found)


async def test_hostile_bytes_are_explained_and_break_nothing(site: Site) -> None:
    request = await good(site)
    whole = request.encode()
    for at in (*range(0, len(whole), 97), len(whole) - 1):
        assert (await _quick(site, whole[:at] or b"\x30")).verdict.code == "scep_not_cms"
        flipped = bytes((*whole[:at], whole[at] ^ 0xFF, *whole[at + 1 :]))
        assert (await _quick(site, flipped)).verdict.outcome in ("refused", "issued")
    found = await _quick(site, to_ber(whole))
    assert found.verdict.outcome == "issued"
    many = bent(request, certificates=[request.signer or b"", *(b"\x30\x03\x02\x01\x01" for _ in range(31))])
    found = await _quick(site, many.encode())
    assert sum(step.step == "certificate" for step in found.steps) == 32
    assert texts(found)["certificate"] == "one that can't be read"


async def _quick(site: Site, data: bytes) -> Explanation:
    """Without a core of its own for each."""
    core = site.core
    rehearsal = Rehearsal(core.store, core.config.unlock_key, clock=site.installation.clock, public_url="", demo=True)
    found = await explain(rehearsal, message_of(data), site.installation.clock)
    assert_sound(found)
    return found


async def test_long_and_odd_names_are_cut_and_read(site: Site) -> None:
    signer = self_signed(subject="\x1b[2J\u202e" + "x" * 50)
    request = await site.message(
        signer, make_csr(signer.key, "sensor", SECRET), message_type=tlv(0x13, b"\x1b[2J" * 99)
    )
    found = await explained(site.installation, message_of(request.encode()))
    assert all(len(step.text) <= 403 for step in found.steps)
    assert found.verdict.code == "scep_message_type"


# --- what real clients sent ------------------------------------------------------------------------------------------


class CapturedRa:
    """A rehearsal whose default realm has the RA that the captures were made for."""

    def __init__(self, rehearsal: Rehearsal) -> None:
        self._rehearsal = rehearsal
        self.realms = rehearsal.realms
        self.registration = rehearsal.registration
        self.known_certificates = rehearsal.known_certificates

    async def ra(self, resolved: Resolved) -> Ra:
        real: RaIdentity = await self._rehearsal.ra(resolved)
        certificate = x509.load_pem_x509_certificate((CAPTURES / "ra.pem").read_bytes()).public_bytes(Encoding.DER)
        return bent(real, certificate=certificate, key=_Key())


class _Key:
    async def unwrap(self, encrypted_key: bytes, algorithm: Any) -> bytes:
        key = load_pem_private_key((CAPTURES / "ra.key").read_bytes(), None)
        unwrapped: bytes = key.decrypt(encrypted_key, algorithm)  # type: ignore[union-attr]  # it is RSA
        return unwrapped

    async def sign(self, data: bytes, digest: Any) -> bytes:
        raise AssertionError(f"{digest} of {len(data)} bytes is signed")


@pytest.mark.parametrize("path", sorted(CAPTURES.glob("*.der")), ids=lambda path: path.stem)
async def test_what_real_clients_sent_is_explained(path: Path, site: Site) -> None:
    core, data = site.core, path.read_bytes()  # noqa: ASYNC240  # nobody waits
    site.installation.clock.forward(hours=1)
    rehearsal = Rehearsal(core.store, core.config.unlock_key, clock=site.installation.clock, public_url="", demo=True)
    found = await explain(CapturedRa(rehearsal), message_of(data), site.installation.clock)
    said = texts(found)
    assert said["signature"].startswith("holds, by the key of ")
    assert said["decryption"] == "done, with the RA's key"
    assert "CN=sensor-17" in said["csr"]
    assert found.transaction_id
    # Nobody here is sensor-17; a stale CSR and a renewal fail for what they are.
    stale = "stale" in path.stem
    renewal = "renew" in path.stem or path.stem in ("certmonger-rekey", "certmonger-resubmit")
    codes = {"scep_signer_not_csr_key"} if stale else {"certificate_unknown", "secret_unknown"}
    assert found.verdict.code in (codes if renewal or stale else {"secret_unknown"})
    assert CHALLENGE not in everything(found)
    assert CHALLENGE.partition(".")[2] not in everything(found)


def test_there_are_captures() -> None:
    assert len(list(CAPTURES.glob("*.der"))) > 15


async def test_a_rehearsal_refuses_to_write(core: Core, clock: SetClock) -> None:
    rehearsal = Rehearsal(core.store, core.config.unlock_key, clock=clock, public_url="", demo=False)
    unit = Unit(Guard(Query(lease.delete()), {}), 0)
    with pytest.raises(InternalError, match="writes nothing"):
        await rehearsal._store.commit(unit)
    with pytest.raises(InternalError, match="writes nothing"):
        rehearsal._store.submit(unit)
    rehearsal._store.close()
    assert await core.realms.current()  # it did not close what is another's
