"""Section D, who may have a certificate by SCEP: over the daemon, each beside its twin. Case 31 by EST as well."""

import io
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.hazmat.primitives.serialization import Encoding

from ca_core.core import Core
from ca_core.errors import OperatorError
from ca_core.model import Evidence
from tests.attack_cases.field import BAD_REQUEST, SCEP, Field, scep_post
from tests.attack_cases.talk import talk
from tests.end_to_end import scep_wire, wire
from tests.helpers import bad_csr
from tests.helpers.admission import admit_by, verdict
from tests.helpers.core import ME, csr_of, new_key
from tests.helpers.daemon import Daemon, running_daemon
from tests.scep_server.client import MESSAGE_TYPE, Request, attribute, make_certificate, tlv
from tests.scep_server.serving import certify, rsa_key

PRINTABLE = 0x13
RENEWAL_REQ, CERT_POLL = tlv(PRINTABLE, b"17"), tlv(PRINTABLE, b"20")
BAD_CERT_ID = "4"
CHALLENGE = "a-challenge-of-thirty-characters"


def issued_by_scep(field: Field) -> bytes:
    """The field's device's certificate, DER."""
    return field.assert_served(protocol=SCEP).public_bytes(Encoding.DER)


# --- 30 ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("bent", "code", "fail_info"),
    [
        pytest.param({"message_type": tlv(PRINTABLE, b"18")}, "scep_message_type", BAD_REQUEST, id="UpdateReq"),
        pytest.param({"message_type": tlv(PRINTABLE, b"0")}, "scep_message_type", BAD_REQUEST, id="0"),
        pytest.param({"message_type": tlv(PRINTABLE, b"3")}, "scep_message_type", BAD_REQUEST, id="CertRep"),
        pytest.param({"message_type": tlv(PRINTABLE, b"")}, "scep_message_type", BAD_REQUEST, id="empty"),
        pytest.param({"message_type": tlv(PRINTABLE, b"019")}, "scep_message_type", BAD_REQUEST, id="019"),
        pytest.param({"message_type": tlv(PRINTABLE, b"19 ")}, "scep_message_type", BAD_REQUEST, id="19-and-a-space"),
        pytest.param({"message_type": tlv(0x02, b"\x13")}, "scep_message_type", BAD_REQUEST, id="INTEGER-19"),
        pytest.param({"message_type": None}, "scep_message_type", BAD_REQUEST, id="absent"),
        pytest.param(
            {"extra": [attribute(MESSAGE_TYPE, tlv(PRINTABLE, b"19"))]},
            "scep_attribute_malformed",
            BAD_REQUEST,
            id="twice",
        ),
        pytest.param(
            {"message_type": None, "extra": [attribute(MESSAGE_TYPE, tlv(PRINTABLE, b"19"), tlv(PRINTABLE, b"18"))]},
            "scep_attribute_malformed",
            BAD_REQUEST,
            id="two-values",
        ),
        pytest.param({"message_type": CERT_POLL}, "transaction_unknown", BAD_CERT_ID, id="CertPoll"),
        pytest.param({"message_type": tlv(PRINTABLE, b"21")}, "scep_not_served", BAD_REQUEST, id="GetCert"),
        pytest.param({"message_type": tlv(PRINTABLE, b"22")}, "scep_not_served", BAD_REQUEST, id="GetCRL"),
        pytest.param({"message_type": RENEWAL_REQ}, "renewal_needs_certificate", BAD_REQUEST, id="RenewalReq"),
    ],
)
def test_case_30_a_message_of_any_type_but_those_that_enroll_gets_no_certificate(
    field: Field, bent: dict[str, Any], code: str, fail_info: str
) -> None:
    """Although its challenge is right."""
    field.assert_failed(field.scep(field.message(field.csr(protocol=SCEP), **bent)), code, fail_info)
    assert field.certificates(field.scep_name) == 0
    field.assert_served(protocol=SCEP)


# --- 31 ---------------------------------------------------------------------------------------------------------------

NOTHING = {None: "credentials_missing", "": "credentials_missing", " ": "secret_unknown", "None": "secret_unknown"}


def assert_admits_nobody(daemon: Daemon, name: str) -> None:
    ra, key = scep_wire.ra_of(daemon.http_port), rsa_key("nobody")
    for challenge, code in NOTHING.items():
        message = scep_wire.enroll_message(ra, key, name, challenge)
        reply = talk(daemon.http_port, scep_post(message), answers=1).only.body
        assert scep_wire.failed(reply), reply[:200]
        assert daemon.explain(scep_wire.told_in(reply))["code"] == code
        if challenge is None:
            continue
        asked = wire.enroll_request(
            wire.body_of(bad_csr.make_csr(key, bad_csr.name(name))), authorization=wire.basic(name, challenge)
        )
        answer = wire.exchange(daemon.https_port, wire.context(daemon.root), asked)
        assert (answer.status, daemon.explain(answer.request_id)["code"]) == (401, "secret_unknown")
    assert daemon.certificates_of(name) == []


def test_case_31_where_no_secret_was_made_nothing_passes_for_one_nor_after_a_restart(tmp_path: Path) -> None:
    with running_daemon(tmp_path) as daemon:
        assert_admits_nobody(daemon, "sensor")
        secret = daemon.ask("device", "add", "sensor")["secret"]
    with running_daemon(tmp_path) as daemon:
        assert_admits_nobody(daemon, "sensor")
        message = scep_wire.enroll_message(scep_wire.ra_of(daemon.http_port), rsa_key("sensor"), "sensor", secret)
        assert scep_wire.succeeded(scep_wire.post(daemon.http_port, message)), "the twin"


@pytest.mark.parametrize(
    ("way", "fault"),
    [
        pytest.param("challenge", "admission.challenge: there is none yet", id="challenge"),
        pytest.param("challenge + approval", "admission.challenge: there is none yet", id="and-approval"),
        pytest.param("open", "admission.ways: 'open' gives a certificate to anyone", id="open"),
    ],
)
async def test_case_31_a_way_without_a_challenge_or_without_saying_that_it_is_open_can_not_be_set(
    core: Core, way: str, fault: str
) -> None:
    with pytest.raises(OperatorError) as caught:
        await admit_by(core, way)
    assert caught.value.code == "document_invalid"
    assert fault in caught.value.message
    await core.realms.challenge("default", CHALLENGE, actor=ME)
    await admit_by(core, way, open=way == "open")  # the twin


@pytest.mark.parametrize("ways", [["secret"], ["secret", "challenge"]], ids=["none-configured", "configured"])
async def test_case_31_nothing_passes_for_the_challenge_of_a_line(core: Core, ways: list[str]) -> None:
    handed = await core.devices.add("default", "sensor", actor=ME)
    await core.devices.add("default", "meant", actor=ME)
    await core.device_import.run("default", io.BytesIO(b"name\nother\n"), "devices.csv", actor=ME)
    await admit_by(core, "secret")
    if "challenge" in ways:
        await core.realms.challenge("default", CHALLENGE, actor=ME)
        await admit_by(core, *ways)
    for offered, code in ((None, "credentials_missing"), ("", "secret_unknown"), ("sha256:", "secret_unknown")):
        assert await verdict(core, Evidence(secret=offered)) == code
    other = csr_of(new_key(), "other")
    by_challenge = "issued" if "challenge" in ways else "secret_unknown"
    assert await verdict(core, Evidence(secret=CHALLENGE), other) == by_challenge
    meant = "device_not_expected" if "challenge" in ways else "secret_unknown"
    assert await verdict(core, Evidence(secret=CHALLENGE), csr_of(new_key(), "meant")) == meant, "it has a secret"
    assert await verdict(core, Evidence(secret=handed.secret)) == "issued", "the twin"


# --- 34, 35 -----------------------------------------------------------------------------------------------------------


def new_rsa_key() -> rsa.RSAPrivateKey:
    return rsa.generate_private_key(65537, 2048)


def _renewal(field: Field, key: rsa.RSAPrivateKey, signer: tuple[rsa.RSAPrivateKey, bytes], **bent: Any) -> Request:
    csr = bad_csr.make_csr(key, bad_csr.name(field.scep_name))
    return field.request(csr, **{"key": signer[0], "signer": signer[1], "message_type": RENEWAL_REQ, **bent})


@pytest.mark.parametrize("case", ["self-signed", "self-signed-for-another-key", "of-its-issuer", "with-its-ski"])
def test_case_34_a_twin_of_a_device_s_certificate_renews_nothing(field: Field, case: str) -> None:
    own = x509.load_der_x509_certificate(issued_by_scep(field))
    attacker = new_rsa_key()
    bent: dict[str, Any] = {"serial": own.serial_number}
    if not case.startswith("self-signed"):
        bent |= {"issuer": own.issuer, "by": rsa_key("foreign-ca")}
    if case == "with-its-ski":
        bent["ski"] = own.extensions.get_extension_for_class(x509.SubjectKeyIdentifier).value.digest
    twin = certify(attacker, own.subject, **bent).certificate
    assert x509.load_der_x509_certificate(twin).serial_number == own.serial_number
    code = {"self-signed": "credentials_missing", "self-signed-for-another-key": "scep_signer_not_csr_key"}
    key = new_rsa_key() if case == "self-signed-for-another-key" else attacker
    theft = field.scep(_renewal(field, key, (attacker, twin)).encode())
    field.assert_failed(theft, code.get(case, "certificate_unknown"), BAD_REQUEST)
    both = _renewal(
        field, key, (attacker, twin), certificates=[own.public_bytes(Encoding.DER), twin], transaction_id=_transaction()
    )
    if case.startswith("of"):  # named by issuer and serial number, as the victim's is, which stands first
        field.assert_failed(field.scep(both.encode()), "certificate_unknown", BAD_REQUEST)
    assert field.certificates(field.scep_name) == 1
    real = _renewal(field, attacker, (field.rsa_key, own.public_bytes(Encoding.DER)), transaction_id=_transaction("b"))
    assert scep_wire.succeeded(field.scep(real.encode()).only.body), "the twin that is the real one"


def _transaction(name: str = "another") -> bytes:
    return tlv(PRINTABLE, name.encode())


def test_case_35_a_message_again_gets_the_same_certificate_and_no_second_one(field: Field) -> None:
    message = field.message(field.csr(protocol=SCEP))
    first = field.certificate_in(field.scep(message), SCEP)
    assert field.certificate_in(field.scep(message), SCEP) == first
    assert field.certificates(field.scep_name) == 1
    signer = (field.rsa_key, first.public_bytes(Encoding.DER))
    renewal = _renewal(field, new_rsa_key(), signer, transaction_id=_transaction()).encode()
    second = field.certificate_in(field.scep(renewal), SCEP)
    assert field.certificate_in(field.scep(renewal), SCEP) == second
    assert field.certificates(field.scep_name) == 2
    other = _renewal(field, new_rsa_key(), signer, transaction_id=_transaction("other")).encode()
    assert field.certificate_in(field.scep(other), SCEP) != second, "the twin: another transaction is another request"


def test_case_35_a_transaction_is_of_one_signer(field: Field) -> None:
    first = issued_by_scep(field)
    transaction = tlv(PRINTABLE, scep_wire.transaction_of(field.rsa_key))
    attacker = new_rsa_key()
    stranger = {"key": attacker, "signer": make_certificate(attacker.public_key())}
    poll = field.request(field.csr(protocol=SCEP), message_type=CERT_POLL, **stranger)
    field.assert_failed(field.scep(poll.encode()), "transaction_unknown", BAD_CERT_ID)
    csr = field.csr(protocol=SCEP, key=attacker)
    stolen = field.request(csr, transaction_id=transaction, **stranger)
    field.assert_failed(field.scep(stolen.encode()), "secret_spent", BAD_REQUEST)
    renewal = _renewal(field, new_rsa_key(), (field.rsa_key, first), transaction_id=transaction)
    field.assert_failed(field.scep(renewal.encode()), "transaction_of_other_key", BAD_REQUEST)
    own = field.request(field.csr(protocol=SCEP), message_type=CERT_POLL)
    polled = field.certificate_in(field.scep(own.encode()), SCEP)
    assert polled.public_bytes(Encoding.DER) == first, "the twin"
