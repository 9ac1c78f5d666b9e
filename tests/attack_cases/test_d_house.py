"""Section D, what holds whoever asks: revocation by serial, no doors for tests, secrets unguessable and unseen."""

import ast
import dataclasses
import hashlib
import hmac
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec

from ca_core.core import Core
from ca_core.errors import OperatorError
from ca_core.limits import RateLimits
from ca_core.model import Evidence
from ca_core.registration.admission.secret import new_secret
from tests.attack_cases.mutation import HOUSE, PACKAGES
from tests.attack_cases.talk import talk
from tests.end_to_end import scep_wire, wire
from tests.helpers import bad_csr
from tests.helpers.admission import admit_by, code_of_act, verdict
from tests.helpers.core import ME, Installation, csr_of, enrolled, new_key, written
from tests.helpers.daemon import running_daemon
from tests.scep_server.serving import rsa_key

# --- 44: what is revoked is what was named ----------------------------------------------------------------------------


async def test_case_44_a_serial_revokes_a_certificate_of_the_issuer_that_was_meant_and_never_a_ca(
    core: Core, installation: Installation
) -> None:
    own, others = await enrolled(core), await enrolled(core, realm="other")
    revoke = core.certificates.revoke
    assert await code_of_act(revoke(own.serial, realm="other", actor=ME)) == "certificate_unknown"
    for der in await core.issuers.export("default"):
        serial = format(x509.load_der_x509_certificate(der).serial_number, "x")
        assert await code_of_act(revoke(serial, actor=ME)) == "certificate_infrastructure"
    installation.sql("UPDATE certificate SET serial = ? WHERE serial = ?", own.serial, others.serial)
    assert await code_of_act(revoke(own.serial, actor=ME)) == "serial_ambiguous"
    assert await code_of_act(revoke(own.serial, realm="default", actor=ME)) == "done", "the twin"
    states = installation.sql(
        "SELECT realm.name, certificate.status FROM certificate JOIN realm ON realm.id = certificate.realm_id "
        "WHERE certificate.kind = 'device' ORDER BY realm.name"
    )
    assert states == [("default", "revoked"), ("other", "valid")]


# --- 45: nothing that is there for tests ------------------------------------------------------------------------------


def _sources() -> Iterator[tuple[str, ast.Module]]:
    for package in PACKAGES:
        for path in (HOUSE / package).rglob("*.py"):
            yield str(path.relative_to(HOUSE)), ast.parse(path.read_text())


def test_case_45_the_product_is_without_tests_and_makes_requesters_in_one_place() -> None:
    imported: set[str] = set()
    makers: set[str] = set()
    for path, tree in _sources():
        for node in ast.walk(tree):
            if isinstance(node, ast.Import):
                imported |= {name.name.partition(".")[0] for name in node.names}
            elif isinstance(node, ast.ImportFrom):
                imported.add((node.module or "").partition(".")[0])
            elif isinstance(node, ast.Name) and node.id == "AUTHENTICATED":
                makers.add(path)
    assert {"ca_core", "cryptography"} <= imported, "the measure measures"
    assert not imported & {"tests", "unittest", "pytest", "certs", "bench", "interop"}
    assert makers == {"ca_core/model.py", "ca_core/registration/requester.py"}


@pytest.mark.parametrize("way", ["test", "mock", "none", "always", "debug", "demo", ""])
async def test_case_45_there_is_no_way_of_admission_for_tests(core: Core, way: str) -> None:
    with pytest.raises(OperatorError) as caught:
        await admit_by(core, way)
    assert caught.value.code == "document_invalid"
    assert f"admission.ways[0]: '{way}' proves nothing known" in caught.value.message
    await admit_by(core, "secret")  # the twin


@pytest.mark.parametrize("secret", ["", "test", "secret", "password", "changeme", "admin", "enrolld", "demo"])
async def test_case_45_no_secret_is_built_in(core: Core, installation: Installation, secret: str) -> None:
    handed = await core.devices.add("default", "sensor", actor=ME)
    for demo in (False, True):
        opened = installation.open(demo=demo)
        try:
            assert await verdict(opened, Evidence(secret=secret)) == "secret_unknown"
        finally:
            opened.close()
    assert await verdict(core, Evidence(secret=handed.secret)) == "issued", "the twin"


# --- 48: guessing -----------------------------------------------------------------------------------------------------


def _wrong(secret: str) -> str:
    return secret[:-1] + ("a" if secret[-1] != "a" else "b")


async def test_case_48_whatever_is_offered_is_compared_by_its_hash_in_constant_time(
    core: Core, installation: Installation, monkeypatch: pytest.MonkeyPatch
) -> None:
    handed = await core.devices.add("default", "sensor", actor=ME)
    await written(core)
    assert handed.secret.partition(".")[2].encode() not in installation.dump(), "it is stored as a hash"
    compared: list[tuple[Any, Any]] = []
    real = hmac.compare_digest

    def watched(one: Any, other: Any) -> bool:
        compared.append((one, other))
        return real(one, other)

    monkeypatch.setattr(hmac, "compare_digest", watched)
    for offered, code in (
        (_wrong(handed.secret), "secret_wrong"),
        (new_secret()[0], "secret_unknown"),
        ("x", "secret_unknown"),
        (handed.secret, "issued"),
    ):
        compared.clear()
        assert await verdict(core, Evidence(secret=offered)) == code
        digest = hashlib.sha256(offered.encode()).digest()
        assert [len(kept) for kept, given in compared if given == digest] == [32], "also for nobody's secret"


async def test_case_48_who_guesses_is_told_to_wait_and_honest_devices_are_served(installation: Installation) -> None:
    rates = RateLimits(1000, 1000, refusals_per_source=5, is_trusted=lambda _: False)
    core = Core.open(dataclasses.replace(installation.config(), rates=rates))
    try:
        handed = await core.devices.add("default", "sensor", actor=ME)
        other = await core.devices.add("default", "other", actor=ME)
        guesses = [await verdict(core, Evidence(secret=_wrong(handed.secret)), source="192.0.2.66") for _ in range(7)]
        assert guesses == ["secret_wrong"] * 5 + ["rate_source"] * 2
        wrong = Evidence(secret=_wrong(handed.secret))
        assert await verdict(core, wrong, source="198.51.100.1") == "secret_wrong", "each source by itself"
        assert await verdict(core, Evidence(secret=handed.secret), source="198.51.100.2") == "issued"
        beside = await verdict(core, Evidence(secret=other.secret), csr_of(new_key(), "other"), source="192.0.2.66")
        assert beside == "issued", "who has a good one is served also beside the one who guesses"
    finally:
        core.close()


# --- 47 ---------------------------------------------------------------------------------------------------------------

METRICS = b"GET /metrics HTTP/1.1\r\nHost: localhost\r\n\r\n"


def test_case_47_a_secret_stands_in_no_answer_log_metric_or_file_wherever_it_is_put(tmp_path: Path) -> None:
    with running_daemon(tmp_path, serve_arguments=("--admin", "127.0.0.1:0")) as daemon:
        secret = daemon.ask("device", "add", "sensor")["secret"]
        rest = secret.partition(".")[2]
        wrong = secret[:-1] + ("a" if secret[-1] != "a" else "b")
        key, tls = ec.generate_private_key(ec.SECP256R1()), wire.context(daemon.root)
        rsa_own, ra = rsa_key("sensor"), scep_wire.ra_of(daemon.http_port)
        answers: list[bytes] = []

        def est(name: str, username: str, password: str) -> wire.Answer:
            body = wire.body_of(bad_csr.make_csr(key, bad_csr.name(name), bad_csr.challenge(secret)))
            asked = wire.enroll_request(body, authorization=wire.basic(username, password))
            answer = wire.exchange(daemon.https_port, tls, asked)
            answers.append(answer.body + repr(answer.headers).encode())
            return answer

        swapped = est("sensor", secret, wrong)
        assert (swapped.status, daemon.explain(swapped.request_id)["code"]) == (401, "secret_wrong")
        as_name = est(secret, secret, "")
        assert (as_name.status, daemon.explain(as_name.request_id)["code"]) == (401, "secret_unknown")
        linked = est("sensor", "sensor", secret)
        assert (linked.status, daemon.explain(linked.request_id)["code"]) == (400, "channel_binding_mismatch")
        for transaction in (None, secret.encode()):
            message = scep_wire.enroll_message(ra, rsa_own, secret, secret, transaction=transaction)
            reply = scep_wire.post(daemon.http_port, message)
            assert scep_wire.failed(reply)
            if transaction is None:  # a transactionID is given back octet by octet
                answers.append(reply)
        message = scep_wire.enroll_message(ra, rsa_own, "sensor", secret)
        assert scep_wire.succeeded(scep_wire.post(daemon.http_port, message)), "the twin: it is a good one"
        shown = [
            *daemon.command("device", "show", "sensor"),
            *daemon.command("audit", "list"),
            *daemon.command("cert", "list"),
            daemon.ask("device", "why", "sensor"),
        ]
        admin = talk(int(daemon.addresses["admin"][0].rstrip("/").rpartition(":")[2]), METRICS, answers=1).only
        assert admin.status == 200
        assert b"enrolld_" in admin.body
    files = b"".join(path.read_bytes() for path in tmp_path.rglob("*") if path.is_file())
    assert b"sensor" in files, "the search finds what is there"
    for kept in (files, admin.body, repr(shown).encode(), *answers):
        for text in (secret, rest):
            assert text.encode() not in kept
