"""`profile`, `realm edit`, `realm add --profile`, and `explain` of a CSR, as an operator has them."""

import asyncio
import base64
import re
import stat
from collections.abc import Callable
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from ca_core.authority.sealing import UnlockKey
from ca_core.core import Core, CoreConfig
from ca_core.csr import ParsedCsr
from ca_core.model import Evidence
from ca_core.registration.presets import PRESETS
from tests.enrolld.test_cli_explain import contents
from tests.enrolld.test_cli_store import Json, Shell, made, shell
from tests.helpers.core import ask

__all__ = ["made", "shell"]  # the fixtures of the other commands

KEY = ec.generate_private_key(ec.SECP256R1())


def csr(
    name: str = "sensor",
    *names: str,
    usages: tuple[x509.ObjectIdentifier, ...] = (),
    organization: str = "",
    key: ec.EllipticCurvePrivateKey = KEY,
) -> bytes:
    attributes = [x509.NameAttribute(NameOID.COMMON_NAME, name)]
    if organization:
        attributes.append(x509.NameAttribute(NameOID.ORGANIZATION_NAME, organization))
    builder = x509.CertificateSigningRequestBuilder().subject_name(x509.Name(attributes))
    if names:
        builder = builder.add_extension(x509.SubjectAlternativeName([x509.DNSName(n) for n in names]), critical=False)
    if usages:
        builder = builder.add_extension(x509.ExtendedKeyUsage(usages), critical=False)
    return builder.sign(key, hashes.SHA256()).public_bytes(Encoding.DER)


def explained(shell: Shell, data: bytes, *options: str) -> Json:
    """Explain a CSR in JSON and for a person, and see that nothing changes."""
    path = shell.directory.with_name("csr")
    path.write_bytes(data)
    before = contents(shell.directory)
    answer = shell.ask("explain", str(path), *options)
    out, _ = shell("explain", str(path), *options)
    assert contents(shell.directory) == before
    assert (answer["form"], answer["verdict"]["sentence"] in out) == ("pkcs10", True)
    marks = [line for line in out.splitlines() if re.match(r"(ok|FAIL|drop|-) ", line)]
    assert len(marks) == len(answer["fields"])
    return answer


def outcomes(answer: Json) -> dict[str, str]:
    return {f"{each['field']} {each['value']}".strip(): each["outcome"] for each in answer["fields"]}


# --- profile ---------------------------------------------------------------------------------------------------------


def test_profiles_of_a_realm_are_listed_and_shown(shell: Shell) -> None:
    rows = shell.rows("profile", "list")
    assert [(row["profile"], row["realm"], row["issuer"]) for row in rows] == [
        ("device", "default", "ec"),
        ("scep", "default", "rsa"),
    ]
    assert rows[0]["subject"] == ["CN={device.name}"]
    assert shell("profile", "show", "scep")[0] == '[profiles.scep]\nissuer = "rsa"\n'
    answer = shell.ask("profile", "show", "scep")
    assert answer["document"]["names"] == ["{device.names}"]
    assert shell.refusal("profile", "show", "lead") == "profile_unknown"
    assert shell.refusal("profile", "list", "--realm", "lead") == "realm_unknown"
    shell("profile", "show", status=2)


def test_presets_are_listed_without_a_store_and_one_makes_a_profile(shell: Shell, tmp_path: Path) -> None:
    elsewhere = Shell(tmp_path / "nothing-here", shell._capsys)
    assert [row["profile"] for row in elsewhere.rows("profile", "presets")] == list(PRESETS)
    assert "ldevid" in elsewhere("profile", "presets")[0]
    assert elsewhere("profile", "show", "cam", "--preset", "ldevid")[0].startswith("[profiles.cam]\n")
    assert elsewhere.refusal("profile", "show", "--preset", "gold") == "preset_unknown"
    added = shell.ask("realm", "add", "cams", "--profile", "cam=ldevid", "--profile", "tls-server")
    assert added["profiles"] == ["device", "scep", "cam", "tls-server"]
    shown = shell("profile", "show", "cam", "--realm", "cams")[0]
    assert shown == elsewhere("profile", "show", "cam", "--preset", "ldevid")[0]
    assert shell.refusal("realm", "add", "more", "--profile", "cam=gold") == "preset_unknown"
    assert shell.refusal("realm", "add", "more", "--profile", "Cam=ldevid") == "document_invalid"
    assert shell.refusal("realm", "add", "more", "--profile", "a=ldevid", "--profile", "a=mdm") == "profile_twice"


# --- realm edit ------------------------------------------------------------------------------------------------------


@pytest.fixture
def editor(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Sets an editor that is a line of sed."""

    def use(expression: str) -> None:
        script = tmp_path / "editor"
        script.write_text(f"#!/bin/sh\nexec sed -i '{expression}' \"$1\"\n")
        script.chmod(0o755)
        monkeypatch.setenv("VISUAL", str(script))
        monkeypatch.setenv("EDITOR", "/bin/false")

    return use


def test_what_is_edited_is_applied(shell: Shell, editor: Callable[[str], None]) -> None:
    editor('s/^validity = "90d"/validity = "30d"/')
    assert shell.ask("realm", "edit", "default")["version"] == 2
    assert {row["validity"] for row in shell.rows("profile", "list")} == {"30d"}
    editor("s/nothing/nothing/")
    out, err = shell("realm", "edit", "default")
    assert (out, err) == ("", "Nothing was changed.\n")
    assert shell.ask("realm", "show", "default")["version"] == 2


def test_what_was_edited_and_refused_is_kept(shell: Shell, editor: Callable[[str], None]) -> None:
    editor('s/^validity = "90d"/validity = "for ever"/')
    answer = shell.ask("realm", "edit", "default", status=1)
    assert answer["error"] == "document_invalid"
    kept = Path(answer["remedy"].split()[-1])
    try:
        assert 'validity = "for ever"' in kept.read_text()
        assert stat.S_IMODE(kept.stat().st_mode) == 0o600
    finally:
        kept.unlink()
    assert shell.ask("realm", "show", "default")["version"] == 1


def test_a_version_with_findings_is_told_of(shell: Shell, editor: Callable[[str], None]) -> None:
    editor('s/^names = \\[/names = [ "DNS:{device.name}_",/')
    assert shell.refusal("realm", "edit", "default") == "profile_lint"
    allow = 's/^lint_allow = \\[\\]/lint_allow = ["pkix.invalid_domain_name_syntax"]/'
    editor(f's/^names = \\[/names = [ "DNS:{{device.name}}_",/;{allow}')
    _, err = shell("realm", "edit", "default")
    assert "pkilint on profile device: pkix.invalid_domain_name_syntax (error, allowed)" in err


# --- explain CSR -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", ["der", "pem", "new-pem", "base64"])
def test_a_csr_is_told_field_by_field(shell: Shell, form: str) -> None:
    shell("device", "add", "sensor", "--san", "DNS:own.example.com")
    der = csr("sensor", "own.example.com", "other.example.com", organization="Acme")
    text = base64.encodebytes(der).decode()
    label = "NEW CERTIFICATE REQUEST" if form == "new-pem" else "CERTIFICATE REQUEST"
    pem = f"-----BEGIN {label}-----\n{text}-----END {label}-----\n"
    answer = explained(shell, {"der": der, "base64": text.encode()}.get(form, pem.encode()))
    assert (answer["realm"], answer["profile"], answer["device"]) == ("default", "device", "sensor")
    found = outcomes(answer)
    assert found["subject CN sensor"] == "given"
    assert found["SAN DNS:own.example.com"] == "given"
    assert found["subject O Acme"] == "dropped"
    assert found["SAN DNS:other.example.com"] == "dropped"
    assert found["key p-256"] == "given"
    assert {each["source"] for each in answer["fields"]} >= {"device.name", "device.names", "csr", "profile"}
    assert answer["verdict"]["code"] is None


def test_what_would_be_refused_is_told_with_its_remedy_as_it_would_be(shell: Shell) -> None:
    shell("device", "add", "sensor")
    answer = explained(shell, csr("pacemaker", usages=(ExtendedKeyUsageOID.OCSP_SIGNING,)), "--device", "sensor")
    assert answer["verdict"]["code"] == "extension_not_allowed"
    refused = {each["code"]: each for each in answer["fields"] if each["outcome"] == "refused"}
    assert set(refused) == {"extension_not_allowed", "subject_mismatch"}
    assert all(each["remedy"] and each["message"] for each in refused.values())
    assert explained(shell, csr())["verdict"]["code"] is None  # the twin
    shell("device", "suspend", "sensor")
    assert explained(shell, csr())["verdict"]["code"] == "device_suspended"


def test_a_csr_is_told_for_a_device_that_is_not_there_yet_and_for_another_profile(shell: Shell) -> None:
    shell("realm", "add", "cams", "--profile", "cam=ldevid")
    answer = explained(shell, csr("cam-1"), "--realm", "cams", "--profile", "cam")
    assert (answer["is_registered"], answer["verdict"]["code"]) == (False, "profile_value_missing")
    answer = explained(shell, csr("cam-1"), "--realm", "cams")
    assert (answer["profile"], answer["verdict"]["code"]) == ("device", None)
    assert "once it is registered" in answer["verdict"]["sentence"]
    shell("device", "add", "cam-2", "--realm", "cams")
    answer = explained(shell, csr("cam-2"), "--realm", "cams", "--profile", "cam")
    assert answer["verdict"]["code"] == "profile_not_allowed"
    assert shell.refusal("explain", str(shell.directory.with_name("csr")), "--profile", "lead") == "profile_unknown"


def test_a_retired_realm_would_issue_nothing(shell: Shell) -> None:
    shell("realm", "add", "cams")
    assert explained(shell, csr("cam-1"), "--realm", "cams")["verdict"]["code"] is None  # the twin
    shell("realm", "retire", "cams")
    answer = explained(shell, csr("cam-1"), "--realm", "cams")
    assert answer["verdict"] == {
        "outcome": "refused",
        "code": "realm_retired",
        "sentence": "It would be refused: realm_retired.",
    }
    [told] = [each for each in answer["fields"] if each["outcome"] == "refused"]
    assert (told["field"], told["value"], told["message"]) == (
        "realm",
        "cams",
        "The realm is retired, and serves nobody",
    )
    assert "enrolld realm resume" in told["remedy"]


def test_a_key_that_belongs_to_another_device_is_told(shell: Shell) -> None:
    enroll(shell, "sensor")
    assert explained(shell, csr("other"))["verdict"]["code"] == "key_of_other_device"
    assert explained(shell, csr())["verdict"]["code"] is None  # the twin


# --- explain CSR --renews --------------------------------------------------------------------------------------------


def enroll(shell: Shell, device: str, *options: str, key: ec.EllipticCurvePrivateKey = KEY) -> x509.Certificate:
    """Register a device and issue to it."""
    secret = shell.ask("device", "add", device, *options)["secret"]

    async def issue() -> bytes:
        unlock = UnlockKey.load(shell.directory / "keys" / "unlock")
        core = Core.open(CoreConfig(f"sqlite:///{shell.directory}/enrolld.db", unlock, "http://localhost", demo=False))
        try:
            return (await ask(core, Evidence(secret=secret), ParsedCsr.parse(csr(device, key=key)))).certificate
        finally:
            core.close()

    return x509.load_der_x509_certificate(asyncio.run(issue()))


def test_a_renewal_is_told_by_the_certificate_that_it_renews_and_issues_nothing(shell: Shell, tmp_path: Path) -> None:
    own = enroll(shell, "sensor", "--san", "DNS:own.example.com")
    serial = format(own.serial_number, "x")
    pem, der = tmp_path / "own.pem", tmp_path / "own.der"
    pem.write_bytes(own.public_bytes(Encoding.PEM))
    der.write_bytes(own.public_bytes(Encoding.DER))
    for named in (serial, str(pem), str(der)):
        answer = explained(shell, csr("sensor"), "--renews", named)
        assert (answer["device"], answer["renews"], answer["verdict"]["code"]) == ("sensor", serial, None)
        assert f"once it shows its certificate {serial}" in answer["verdict"]["sentence"]
        assert outcomes(answer)["SAN DNS:own.example.com"] == "given"
    assert explained(shell, csr("sensor"))["renews"] is None
    assert len(shell.rows("cert", "list")) == 1


@pytest.mark.parametrize(
    ("act", "code"),
    [
        pytest.param(("cert", "revoke", "SERIAL", "--reason", "superseded"), "certificate_revoked", id="revoked"),
        pytest.param(("cert", "revoke", "SERIAL", "--reason", "certificateHold"), "certificate_revoked", id="held"),
        pytest.param(("device", "replace", "sensor"), "certificate_superseded", id="another-board"),
        pytest.param(("device", "suspend", "sensor"), "device_suspended", id="suspended"),
    ],
)
def test_a_renewal_by_a_certificate_that_proves_nothing_is_told_as_refused(
    shell: Shell, act: tuple[str, ...], code: str
) -> None:
    serial = format(enroll(shell, "sensor").serial_number, "x")
    assert explained(shell, csr("sensor"), "--renews", serial)["verdict"]["code"] is None  # the twin
    shell(*(serial if word == "SERIAL" else word for word in act))
    answer = explained(shell, csr("sensor"), "--renews", serial)
    assert answer["verdict"]["code"] == code
    assert code in {each["code"] for each in answer["fields"] if each["outcome"] == "refused"}


def test_a_renewal_by_est_repeats_the_subject_and_one_by_scep_need_not(shell: Shell) -> None:
    other = csr("sensor", organization="Acme")
    serial = format(enroll(shell, "sensor").serial_number, "x")
    assert explained(shell, other, "--renews", serial)["verdict"]["code"] == "renewal_subject_mismatch"
    assert explained(shell, csr("sensor"), "--renews", serial)["verdict"]["code"] is None  # the twin
    key = ec.generate_private_key(ec.SECP256R1())
    serial = format(enroll(shell, "router", "--profile", "scep", key=key).serial_number, "x")
    answer = explained(shell, csr("router", organization="Acme", key=key), "--renews", serial)
    assert (answer["profile"], answer["verdict"]["code"]) == ("scep", None)
    assert outcomes(answer)["subject O Acme"] == "dropped"


def test_a_certificate_that_the_realm_did_not_issue_renews_nothing(shell: Shell, tmp_path: Path) -> None:
    own = enroll(shell, "sensor")
    shell("realm", "add", "cams")
    path, serial = tmp_path / "csr", format(own.serial_number, "x")
    path.write_bytes(csr("sensor"))
    for wrong in (("--renews", serial, "--realm", "cams"), ("--renews", "abcdef"), ("--renews", str(path))):
        assert shell.refusal("explain", str(path), *wrong) == "certificate_unknown"
    shell("explain", str(path), "--renews", serial)  # the twin
    shell("explain", str(path), "--renews", serial, "--device", "sensor", status=2)
    shell("explain", "abcd-2345", "--renews", serial, status=2)


def test_a_csr_that_can_not_be_read_is_told_with_its_reason(shell: Shell) -> None:
    broken = bytearray(csr())
    broken[-1] ^= 1
    answer = explained(shell, bytes(broken))
    assert answer["verdict"]["code"] == "csr_signature_bad"
    assert [each["outcome"] for each in answer["fields"]] == ["refused"]


def test_options_that_go_with_no_csr_are_refused(shell: Shell) -> None:
    shell("explain", "abcd-2345", "--device", "sensor", status=2)
    path = shell.directory.with_name("target")
    path.write_text("/scep?operation=GetCACaps")
    shell("explain", str(path), "--device", "sensor", status=2)
    shell("explain", str(path))  # the twin
