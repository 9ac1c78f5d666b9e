"""A realm whose CA and RA keys are in a HSM: the same enrollments, by real clients and many at a time, with faults."""

import contextlib
import functools
import json
import os
import shutil
import signal
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec, rsa

from ca_core.core import Core
from tests.end_to_end import clients, scep_wire, wire
from tests.helpers.daemon import Daemon, eventually, run_enrolld, running_daemon
from tests.helpers.softhsm import PIN, PROXY, SoftHsm

pytestmark = pytest.mark.foreign

HOST = "0x7f000001"  # 127.0.0.1, and a name to TLS: a host of the realm's own for clients that can't be told an address
REALM = "vault"
THREADS, EACH = 8, 5
ONCE, ALWAYS = 1, 1_000_000
DEVICE_REMOVED, MECHANISM_INVALID, SESSION_HANDLE_INVALID, FUNCTION_FAILED = 0x32, 0x70, 0xB3, 0x06


@dataclass(frozen=True, slots=True)
class Vault:
    """A daemon whose realm `vault` is in a token."""

    daemon: Daemon
    softhsm: SoftHsm
    root: Path
    ca: Path

    def secrets(self, *names: str) -> dict[str, str]:
        """Register devices in the realm; their secrets."""

        async def add(core: Core) -> dict[str, str]:
            return {name: (await core.devices.add(REALM, name, actor="operator:test")).secret for name in names}

        return self.daemon.inspect(add)

    def enroll(self, name: str, secret: str) -> wire.Answer:
        key = ec.generate_private_key(ec.SECP256R1())
        request = wire.enroll_request(
            wire.body_of(wire.csr(key, name)),
            path=f"/.well-known/est/{REALM}/simpleenroll",
            authorization=wire.basic(name, secret),
            host=HOST,
        )
        return wire.exchange(self.daemon.https_port, wire.context(self.root), request, host=HOST)


@contextlib.contextmanager
def vault_of(folder: Path, softhsm: SoftHsm, module: str) -> Iterator[Vault]:
    directory = folder / "enrolld"
    (directory / "keys").mkdir(parents=True, mode=0o700)
    directory.chmod(0o700)
    write_pin(directory, PIN)
    settings = f'workers = 2\n[hsm]\nmodule = "{module}"\npin_file = "keys/pin"\n'
    with pytest.MonkeyPatch.context() as patch:
        for name, value in softhsm.environment.items():
            patch.setenv(name, value)
        with running_daemon(folder, settings=settings) as daemon:
            daemon.ask("realm", "add", REALM, "--hsm", "unit", "--host", HOST)
            root, ca = daemon.write_anchors(REALM, folder)
            made = Vault(daemon, softhsm, root, ca)
            eventually(functools.partial(served, made), what=f"the daemon serves {REALM}")
            yield made


def served(made: Vault) -> bool | None:
    """By both workers, one of which may take up the new realm's host later than the other."""
    request = f"GET /.well-known/est/{REALM}/cacerts HTTP/1.1\r\nHost: {HOST}\r\n\r\n".encode()
    with contextlib.suppress(OSError, AssertionError):
        tls = wire.context(made.root)
        answers = [wire.exchange(made.daemon.https_port, tls, request, host=HOST) for _ in range(16)]
        return True if all(answer.status == 200 for answer in answers) else None
    return None


def write_pin(directory: Path, pin: str) -> None:
    path = directory / "keys" / "pin"
    path.write_text(f"{pin}\n")
    path.chmod(0o600)


@pytest.fixture(scope="module")
def vault(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Vault]:
    """Behind p11-kit."""
    clients.needs("softhsm2", "p11-kit", "opensc", "gcc")
    folder = tmp_path_factory.mktemp("vault")
    with vault_of(folder, SoftHsm.make(folder / "softhsm", "unit"), PROXY) as made:
        yield made


@pytest.fixture(scope="module")
def faulty(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Vault]:
    """Behind a module that makes faults."""
    clients.needs("softhsm2", "p11-kit", "opensc", "gcc")
    folder = tmp_path_factory.mktemp("faulty")
    softhsm = SoftHsm.make(folder / "softhsm", "unit")
    with vault_of(folder, softhsm, softhsm.module) as made:
        yield made


def test_stock_clients_enroll_and_renew_by_est_and_scep_under_keys_in_a_token(vault: Vault, tmp_path: Path) -> None:
    clients.needs("curl", "openssl", "pki", "pki over HTTP")
    daemon = vault.daemon
    secrets = vault.secrets("router-est", "router-scep")
    for device, prefix, setting, url in (
        ("router-est", "curl-openssl/", "EST", f"https://localhost:{daemon.https_port}/.well-known/est/{REALM}"),
        ("router-scep", "strongswan/scep-", "SCEP", f"http://{HOST}:{daemon.http_port}/scep/{REALM}"),
    ):
        folder = tmp_path / device
        folder.mkdir()
        # curl takes this host for an address, and asks the shared one, which is the default realm's.
        (folder / "root.pem").write_text(vault.root.read_text() + daemon.root.read_text())
        shutil.copy(vault.ca, folder / "ca.pem")
        run = functools.partial(
            clients.interop, cwd=folder, settings={"NAME": device, "SECRET": secrets[device], setting: url}
        )
        if setting == "SCEP":
            run("strongswan/scepca.sh")
        run(f"{prefix}enroll.sh")
        first = (folder / "device.pem").read_bytes()
        run(f"{prefix}renew.sh")
        assert (folder / "device.pem").read_bytes() != first
        clients.run(
            *("openssl", "verify", "-x509_strict", "-CAfile", "root.pem", "-untrusted", "ca.pem", "device.pem"),
            cwd=folder,
        )
        assert {row["realm"] for row in daemon.certificates_of(device)} == {REALM}
        assert len(daemon.certificates_of(device)) == 2


def test_two_workers_enroll_by_both_protocols_from_eight_clients_at_a_time(vault: Vault) -> None:
    names = [[f"crowd-{thread}-{number}" for number in range(EACH)] for thread in range(THREADS)]
    secrets = vault.secrets(*(name for some in names for name in some))
    ra = scep_wire.ra_of(vault.daemon.http_port, f"/scep/{REALM}")
    key = [rsa.generate_private_key(65537, 2048) for _ in range(THREADS // 2)]
    issuers = x509.load_pem_x509_certificates(vault.ca.read_bytes())
    failed: list[BaseException] = []

    def work(number: int) -> None:
        try:
            for name in names[number]:
                if number % 2:
                    issued = vault.enroll(name, secrets[name]).certificate
                else:
                    # The key of another device is refused, so that each has one of its own.
                    own = key[number // 2] if name == names[number][0] else rsa.generate_private_key(65537, 2048)
                    message = scep_wire.enroll_message(ra, own, name, secrets[name])
                    reply = scep_wire.post(vault.daemon.http_port, message, f"/scep/{REALM}")
                    issued = scep_wire.issued_in(reply, own)
                (above,) = (each for each in issuers if each.subject == issued.issuer)
                issued.verify_directly_issued_by(above)
        except BaseException as exc:
            failed.append(exc)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(THREADS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failed


def test_neither_key_nor_pin_of_a_token_stands_in_the_store_the_arguments_or_the_environment(vault: Vault) -> None:
    store = b"".join(path.read_bytes() for path in vault.daemon.directory.glob("enrolld.db*"))
    assert b"pkcs11:token=unit;object=vault-root-1-" in store
    assert PIN.encode() not in store
    parent = vault.daemon.process.pid
    children = Path(f"/proc/{parent}/task/{parent}/children").read_text().split()
    assert len(children) == 2
    for pid in (parent, *children):
        for where in ("cmdline", "environ"):
            assert PIN.encode() not in Path(f"/proc/{pid}/{where}").read_bytes()
    assert PIN not in vault.daemon.output.read_text()


def test_a_realm_whose_record_came_to_nothing_leaves_no_key_in_the_token(vault: Vault) -> None:
    before = vault.softhsm.objects("unit")
    directory = vault.daemon.directory
    with environment(vault.softhsm):
        for arguments, code in (
            (("realm", "add", REALM, "--hsm", "unit"), "realm_exists"),
            (("realm", "add", "other", "--hsm", "nowhere"), "hsm_token_missing"),
            (("realm", "add", "other", "--hsm", "unit", "--host", HOST), "host_taken"),
        ):
            assert refusal(directory, *arguments)["error"] == code
    assert vault.softhsm.objects("unit") == before


# --- faults ----------------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def environment(softhsm: SoftHsm) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        for name, value in softhsm.environment.items():
            patch.setenv(name, value)
        yield


def refusal(directory: Path, *arguments: str) -> dict[str, str]:
    done = run_enrolld(directory, *arguments, "--json")
    assert done.returncode == 1, done.stdout
    told: dict[str, str] = json.loads(done.stdout)
    assert PIN not in str(told)
    return told


def findings(directory: Path) -> dict[str, str]:
    done = run_enrolld(directory, "check", "--json")
    return {found["code"]: found["severity"] for found in json.loads(done.stdout)["findings"]}


@pytest.mark.parametrize(
    "said",
    [
        pytest.param(SESSION_HANDLE_INVALID, id="session-handle-invalid"),
        pytest.param(DEVICE_REMOVED, id="device-removed"),
        pytest.param(FUNCTION_FAILED, id="function-failed"),
    ],
)
def test_case_76_a_device_notices_nothing_of_a_session_lost_in_the_middle_of_its_signature(
    faulty: Vault, said: int
) -> None:
    name = f"lost-{said}"
    secret = faulty.secrets(name)[name]
    faulty.softhsm.fault("C_Sign", said, ONCE)
    assert faulty.enroll(name, secret).status == 200
    assert "was lost" in faulty.daemon.output.read_text()


def test_case_76_while_the_token_is_pulled_devices_are_told_to_come_again_and_then_are_served(faulty: Vault) -> None:
    secret = faulty.secrets("patient")["patient"]
    with faulty.softhsm.pulled():
        answer = faulty.enroll("patient", secret)
        assert answer.status == 503
        assert int(answer.headers["retry-after"]) > 0
        assert b"HSM" not in answer.body

    eventually(lambda: True if faulty.enroll("patient", secret).status == 200 else None, what="it is served again")


def test_case_76_a_message_that_can_not_be_decrypted_is_refused_as_with_any_other_key(faulty: Vault) -> None:
    """To the client it looks like an envelope to another certificate of the same name."""
    path = f"/scep/{REALM}"
    secret = faulty.secrets("garbled")["garbled"]
    key = rsa.generate_private_key(65537, 2048)
    message = scep_wire.enroll_message(scep_wire.ra_of(faulty.daemon.http_port, path), key, "garbled", secret)
    faulty.softhsm.fault("C_Decrypt", FUNCTION_FAILED, ONCE)
    reply = scep_wire.post(faulty.daemon.http_port, message, path)
    assert scep_wire.failed(reply)
    assert faulty.daemon.explain(scep_wire.told_in(reply))["code"] == "scep_envelope_bad"
    assert scep_wire.succeeded(scep_wire.post(faulty.daemon.http_port, message, path))


def test_a_daemon_that_runs_learns_the_pin_at_sighup(tmp_path: Path) -> None:
    clients.needs("softhsm2", "p11-kit", "opensc", "gcc")
    softhsm = SoftHsm.make(tmp_path / "softhsm", "unit")
    with environment(softhsm), running_daemon(tmp_path, settings="workers = 1\n") as daemon:
        (daemon.directory / "keys").mkdir(mode=0o700, exist_ok=True)
        write_pin(daemon.directory, PIN)
        settings = f'workers = 1\n[hsm]\nmodule = "{softhsm.module}"\npin_file = "keys/pin"\n'
        (daemon.directory / "enrolld.toml").write_text(settings)
        daemon.ask("realm", "add", REALM, "--hsm", "unit")
        secret = daemon.ask("device", "add", "early", "--realm", REALM)["secret"]
        request = wire.enroll_request(
            wire.body_of(wire.csr(ec.generate_private_key(ec.SECP256R1()), "early")),
            path=f"/.well-known/est/{REALM}/simpleenroll",
            authorization=wire.basic("early", secret),
        )
        ask = functools.partial(wire.exchange, daemon.https_port, wire.context(daemon.root), request)
        assert ask().status == 503
        daemon.process.send_signal(signal.SIGHUP)
        eventually(lambda: True if ask().status == 200 else None, what="the new workers sign", seconds=60)


# --- the first realm in a token, and tokens with PINs of their own ----------------------------------------------------

OWN_PIN = "183650"


def prepared(folder: Path, settings: str) -> Path:
    """A directory before `init`, with a PIN and an enrolld.toml."""
    directory = folder / "enrolld"
    (directory / "keys").mkdir(parents=True, mode=0o700)
    directory.chmod(0o700)
    write_pin(directory, PIN)
    (directory / "enrolld.toml").write_text(settings)
    return directory


def test_init_makes_the_first_realm_in_a_token_and_tells_before_what_is_wrong_with_that(tmp_path: Path) -> None:
    clients.needs("softhsm2", "p11-kit", "opensc", "gcc")
    softhsm = SoftHsm.make(tmp_path / "softhsm", "unit")
    settings = f'[hsm]\nmodule = "{softhsm.module}"\npin_file = "keys/pin"\n'
    directory = prepared(tmp_path, settings)
    with environment(softhsm):
        for wrong, code in (
            (lambda: softhsm.fault("C_GetMechanismInfo", 0x01, 0x200), "hsm_mechanism"),
            (lambda: (directory / "enrolld.toml").write_text(""), "hsm_not_configured"),
            (lambda: write_pin(directory, "000000"), "hsm_pin_wrong"),
        ):
            wrong()
            logins = softhsm.calls("C_Login")
            for _ in range(2):
                assert refusal(directory, "init", "--hsm", "unit")["error"] == code
            assert softhsm.calls("C_Login") == logins + {"hsm_mechanism": 2, "hsm_pin_wrong": 1}.get(code, 0)
            softhsm.mend()
            (directory / "enrolld.toml").write_text(settings)
            write_pin(directory, PIN)
        assert refusal(directory, "init", "--hsm", "nowhere")["error"] == "hsm_token_missing"
        assert not (directory / "enrolld.db").exists()
        assert "Object" not in softhsm.objects("unit")
        softhsm.fault("C_Sign", MECHANISM_INVALID, ALWAYS)  # found out by the root's own signature
        assert refusal(directory, "init", "--hsm", "unit")["error"] == "hsm_mechanism"
        softhsm.mend()
        assert (directory / "enrolld.db").exists()
        assert refusal(directory, *SERVE)["error"] == "init_unfinished", "no CA is made elsewhere"
        assert "Object" not in softhsm.objects("unit")
        done = run_enrolld(directory, "init", "--hsm", "unit", "--json")
        assert (done.returncode, json.loads(done.stdout)["token"]) == (0, "unit"), done.stderr
        assert softhsm.objects("unit").count("Private Key Object") == 4, "three CAs and the RA"
        assert not set(STARTS.values()) & set(findings(directory))
        with running_daemon(tmp_path, settings=settings) as daemon:
            secret = daemon.ask("device", "add", "first")["secret"]
            key = ec.generate_private_key(ec.SECP256R1())
            request = wire.enroll_request(
                wire.body_of(wire.csr(key, "first")),
                path="/.well-known/est/simpleenroll",
                authorization=wire.basic("first", secret),
            )
            answer = wire.exchange(daemon.https_port, wire.context(daemon.root), request)
            issuers = x509.load_pem_x509_certificates(daemon.ca.read_bytes())
            (above,) = (each for each in issuers if each.subject == answer.certificate.issuer)
            answer.certificate.verify_directly_issued_by(above)
        store = b"".join(path.read_bytes() for path in directory.glob("enrolld.db*"))
        assert b"pkcs11:token=unit;object=default-root-1-" in store
        assert refusal(directory, "init", "--hsm", "unit")["error"] == "already_initialized"


def test_a_ca_that_was_to_be_in_a_token_is_made_in_the_store_only_by_another_init(tmp_path: Path) -> None:
    clients.needs("softhsm2", "p11-kit", "opensc", "gcc")
    softhsm = SoftHsm.make(tmp_path / "softhsm", "unit")
    directory = prepared(tmp_path, f'[hsm]\nmodule = "{softhsm.module}"\npin_file = "keys/pin"\n')
    with environment(softhsm):
        assert refusal(directory, "init", "--hsm", "nowhere")["error"] == "hsm_token_missing"
        assert refusal(directory, *SERVE)["error"] == "init_unfinished"
        done = run_enrolld(directory, "init", "--json")
        assert (done.returncode, json.loads(done.stdout)["token"]) == (0, None)
        assert refusal(directory, "init")["error"] == "already_initialized"
    assert "Object" not in softhsm.objects("unit")
    with running_daemon(tmp_path, settings=(directory / "enrolld.toml").read_text()):
        pass


def test_what_was_to_be_in_a_token_is_remembered_from_the_first_moment(tmp_path: Path) -> None:
    directory = tmp_path / "enrolld"
    directory.mkdir(0o700)
    (directory / "keys").touch()  # where the unlock key goes, so that nothing is made
    refusal(directory, "init", "--hsm", "unit")
    (directory / "keys").unlink()
    assert refusal(directory, *SERVE)["error"] == "init_unfinished"


def test_case_76_realms_in_two_tokens_are_served_by_the_pin_of_each(tmp_path: Path) -> None:
    clients.needs("softhsm2", "p11-kit", "opensc", "gcc")
    softhsm = SoftHsm.make(tmp_path / "softhsm", "unit")
    softhsm.add("other", OWN_PIN)
    settings = f'[hsm]\nmodule = "{softhsm.module}"\npin_file = "keys/pin"\n[hsm.pin_files]\nother = "keys/own"\n'
    directory = prepared(tmp_path, settings)
    own = directory / "keys" / "own"
    own.touch(0o600)
    own.write_text(f"{OWN_PIN}\n")
    with environment(softhsm):
        assert run_enrolld(directory, "init").returncode == 0
        with running_daemon(tmp_path, settings=settings) as daemon:
            for realm, token in ((REALM, "unit"), ("second", "other")):
                daemon.ask("realm", "add", realm, "--hsm", token)
                secret = daemon.ask("device", "add", realm, "--realm", realm)["secret"]
                request = wire.enroll_request(
                    wire.body_of(wire.csr(ec.generate_private_key(ec.SECP256R1()), realm)),
                    path=f"/.well-known/est/{realm}/simpleenroll",
                    authorization=wire.basic(realm, secret),
                )
                answer = wire.exchange(daemon.https_port, wire.context(daemon.root), request)
                assert answer.status == 200, token
            for pid in Path(f"/proc/{daemon.process.pid}/task/{daemon.process.pid}/children").read_text().split():
                assert OWN_PIN.encode() not in Path(f"/proc/{pid}/environ").read_bytes()
        own.write_text("000000\n")
        logins = softhsm.calls("C_Login")
        assert refusal(directory, *SERVE)["error"] == "hsm_pin_wrong"
        tried = softhsm.calls("C_Login") - logins
        told = refusal(directory, *SERVE)
        assert (told["error"], "at an earlier start" in told["message"]) == ("hsm_pin_wrong", True)
        assert softhsm.calls("C_Login") == logins + tried, "the next start tries none"
        own.write_text(f"{OWN_PIN}\n")
        assert not set(STARTS.values()) & set(findings(directory))
        with running_daemon(tmp_path, settings=settings):
            pass
    assert softhsm.objects("other", OWN_PIN).count("Private Key Object") == 4


# --- the start -------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def stopped(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, SoftHsm]:
    """An installation with a realm in a token, which nobody serves."""
    clients.needs("softhsm2", "p11-kit", "opensc", "gcc")
    folder = tmp_path_factory.mktemp("stopped")
    softhsm = SoftHsm.make(folder / "softhsm", "unit")
    directory = folder / "enrolld"
    assert run_enrolld(directory, "init").returncode == 0
    write_pin(directory, PIN)
    (directory / "enrolld.toml").write_text(f'[hsm]\nmodule = "{softhsm.module}"\npin_file = "keys/pin"\n')
    with environment(softhsm):
        done = run_enrolld(directory, "realm", "add", REALM, "--hsm", "unit")
        assert done.returncode == 0, done.stderr
    return directory, softhsm


SERVE = ("serve", "--https", "127.0.0.1:0", "--http", "off", "--admin", "off")
STARTS = {
    # what is wrong, and the code that serve refuses with and check finds
    "wrong-pin": "hsm_pin_wrong",
    "locked-pin": "hsm_pin_locked",
    "final-try": "hsm_pin_final_try",
    "token-absent": "hsm_token_missing",
    "no-such-module": "hsm_module",
    "cannot-sign": "hsm_mechanism",
    "cannot-decrypt": "hsm_cannot_decrypt",
    "key-gone": "hsm_key_missing",
    "not-configured": "hsm_not_configured",
}


@pytest.mark.parametrize("wrong", STARTS)
def test_case_76_what_is_wrong_with_the_hsm_is_refused_at_the_start_and_found_by_check(
    stopped: tuple[Path, SoftHsm], wrong: str
) -> None:
    directory, softhsm = stopped
    settings, logins = (directory / "enrolld.toml").read_text(), softhsm.calls("C_Login")
    with contextlib.ExitStack() as undo:
        undo.enter_context(environment(softhsm))
        undo.callback((directory / "enrolld.toml").write_text, settings)
        undo.callback(write_pin, directory, PIN)
        undo.callback(softhsm.mend)
        match wrong:
            case "wrong-pin":
                write_pin(directory, "000000")
            case "locked-pin":
                softhsm.fault("C_GetTokenInfo", 0x40000)
            case "final-try":
                softhsm.fault("C_GetTokenInfo", 0x20000)
            case "token-absent":
                undo.enter_context(softhsm.pulled())
            case "no-such-module":
                (directory / "enrolld.toml").write_text(settings.replace(softhsm.module, "/nonexistent.so"))
            case "cannot-sign":
                softhsm.fault("C_Sign", MECHANISM_INVALID, ALWAYS)
            case "cannot-decrypt":
                softhsm.fault("C_Decrypt", MECHANISM_INVALID, ALWAYS)
            case "key-gone":
                remove_one_key(softhsm, undo)
            case "not-configured":
                (directory / "enrolld.toml").write_text("")
        assert refusal(directory, *SERVE)["error"] == STARTS[wrong]
        found = findings(directory)
        assert found[STARTS[wrong]] == "error"
        assert "unlock_key_wrong" not in found
        if wrong == "wrong-pin":
            assert softhsm.calls("C_Login") == logins + 2, "each process tries it once"
            told = refusal(directory, *SERVE)
            assert told["error"] == "hsm_pin_wrong"
            assert "at an earlier start" in told["message"]
            assert softhsm.calls("C_Login") == logins + 2, "the next start does not"
            refused = (directory / "run" / "hsm-pin-refused").read_bytes()
            assert b"000000" not in refused


def test_case_76_what_is_right_with_the_hsm_is_not_found_fault_with(stopped: tuple[Path, SoftHsm]) -> None:
    with environment(stopped[1]):
        assert not set(STARTS.values()) & set(findings(stopped[0]))


def remove_one_key(softhsm: SoftHsm, undo: contextlib.ExitStack) -> None:
    """Put away the newest private key's file until `undo`."""
    tokens = softhsm.folder / "tokens"
    files: Sequence[Path] = sorted(tokens.glob("*/*.object"), key=lambda path: path.stat().st_size)
    away = softhsm.folder / "away"
    away.mkdir()
    undo.callback(away.rmdir)
    for path in files[-3:]:  # those with a private exponent are the largest
        path.rename(away / path.name)
        undo.callback(os.rename, away / path.name, path)


@pytest.mark.parametrize(
    ("spoil", "code"),
    [
        pytest.param(lambda path: path.chmod(0o640), "hsm_pin_permissions", id="others-may-read"),
        pytest.param(lambda path: path.unlink(), "hsm_pin_missing", id="gone"),
        pytest.param(lambda path: path.write_text("\n"), "hsm_pin_invalid", id="empty"),
        pytest.param(lambda path: path.write_bytes(b"\xff\xfe"), "hsm_pin_invalid", id="not-text"),
        pytest.param(lambda path: (path.unlink(), path.symlink_to("/etc/hostname")), "hsm_pin_missing", id="a-symlink"),
    ],
)
def test_case_73_a_pin_that_others_could_read_or_replace_is_refused(
    stopped: tuple[Path, SoftHsm], spoil: "object", code: str
) -> None:
    directory, softhsm = stopped
    path = directory / "keys" / "pin"
    assert callable(spoil)
    try:
        spoil(path)
        with environment(softhsm):
            assert refusal(directory, *SERVE)["error"] == code
            assert findings(directory)[code] == "error"
    finally:
        path.unlink(missing_ok=True)
        write_pin(directory, PIN)


def test_case_76_a_realm_is_not_made_where_its_ra_could_not_decrypt(stopped: tuple[Path, SoftHsm]) -> None:
    directory, softhsm = stopped
    before = softhsm.objects("unit")
    with environment(softhsm):
        softhsm.fault("C_GetMechanismInfo", 0x01, 0x200)
        assert refusal(directory, "realm", "add", "second", "--hsm", "unit")["error"] == "hsm_mechanism"
        softhsm.mend()
    assert softhsm.objects("unit") == before


def test_case_76_scep_is_not_turned_on_where_the_ra_could_not_decrypt(
    stopped: tuple[Path, SoftHsm], tmp_path: Path
) -> None:
    directory, softhsm = stopped
    exported = run_enrolld(directory, "realm", "export", REALM).stdout.decode()
    on, off = tmp_path / "on.toml", tmp_path / "off.toml"
    on.write_text(exported)
    off.write_text(exported.replace("enabled = true", "enabled = false"))
    with environment(softhsm):
        assert run_enrolld(directory, "realm", "apply", str(off)).returncode == 0
        softhsm.fault("C_GetMechanismInfo", 0x01, 0x200)
        assert refusal(directory, "realm", "apply", str(on))["error"] == "hsm_mechanism"
        softhsm.mend()
        assert run_enrolld(directory, "realm", "apply", str(on)).returncode == 0
