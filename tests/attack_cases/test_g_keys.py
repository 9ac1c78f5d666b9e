"""Attack cases 73 to 75: the key that opens all keys, and CA certificates that do not fit their keys or each other."""

import base64
import contextlib
import hashlib
import json
import os
import shutil
import sqlite3
import stat
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding

from ca_core.authority import guessable
from ca_core.authority.sealing import PrivateKey, UnlockKey
from ca_core.errors import OperatorError
from tests.attack_cases.field import EST, Field, field_of, workers
from tests.end_to_end import clients
from tests.helpers.daemon import Daemon, eventually, run_enrolld, running_daemon

IS_ROOT = os.geteuid() == 0
NOBODY = 65534
ENROLLD = Path(sys.executable).with_name("enrolld")
LISTENERS = ("--https", "127.0.0.1:0", "--http", "127.0.0.1:0", "--admin", "off")


@pytest.fixture(scope="session")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with a CA that nobody serves, to be copied."""
    directory = tmp_path_factory.mktemp("made") / "enrolld"
    done = run_enrolld(directory, "init")
    assert done.returncode == 0, done.stderr
    return directory


@pytest.fixture
def directory(made: Path, tmp_path: Path) -> Path:
    """A CA of its own, which `running_daemon(tmp_path)` serves."""
    shutil.copytree(made, tmp_path / "enrolld")
    return tmp_path / "enrolld"


def serve(directory: Path, *, unlock: Path | None = None) -> tuple[int, dict[str, str]]:
    """Start it and wait for its refusal, or for its readiness, and then end it: the exit status and what it said."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("ENROLLD_")}
    if unlock is not None:
        kept["ENROLLD_UNLOCK_FILE"] = str(unlock)
    process = subprocess.Popen(
        [str(ENROLLD), "--dir", str(directory), "--json", "serve", *LISTENERS],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=kept,
    )
    announced = directory / "run" / "serve.json"
    try:
        eventually(lambda: process.poll() is not None or announced.exists() or None, what="it starts", seconds=60)
    finally:
        process.terminate()
        out, err = process.communicate(timeout=60)
    assert b"Traceback" not in err, err
    return process.returncode, json.loads(out.splitlines()[0])


# --- 73 ---------------------------------------------------------------------------------------------------------------


@pytest.mark.foreign
def test_case_73_an_unlock_key_is_made_new_and_closed_to_others_from_its_first_moment(tmp_path: Path) -> None:
    """By the system call, because between a file's making and a later chmod others could open it."""
    clients.needs("strace")
    trace = tmp_path / "trace"
    command = [str(ENROLLD), "--dir", str(tmp_path / "enrolld"), "init"]
    old = os.umask(0)  # the mode must not depend on it
    try:
        subprocess.run(["strace", "-f", "-e", "trace=openat", "-o", trace, *command], check=True, capture_output=True)
    finally:
        os.umask(old)
    (opened,) = [line for line in trace.read_text().splitlines() if "keys/unlock" in line and "O_CREAT" in line]
    assert "O_EXCL" in opened
    assert "O_NOFOLLOW" in opened
    assert "0600" in opened


Spoil = Callable[[Path], None]


def replace_by_a_folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


def shorten(path: Path) -> None:
    path.write_bytes(b"0123456789\n")


def replace_by_a_symlink(path: Path) -> None:
    elsewhere = path.with_name("elsewhere")
    path.rename(elsewhere)
    path.symlink_to(elsewhere)


UNSAFE: list[tuple[str, Spoil, str, str]] = [
    ("group-may-read", lambda path: path.chmod(0o640), "unlock_key_permissions", "can be read by others"),
    ("others-may-read", lambda path: path.chmod(0o604), "unlock_key_permissions", "can be read by others"),
    ("group-may-write", lambda path: path.chmod(0o620), "unlock_key_permissions", "can be read by others"),
    ("a-symlink", replace_by_a_symlink, "unlock_key_missing", "can't read the unlock key"),
    (
        "in-a-folder-where-anybody-writes",
        lambda path: path.parent.chmod(0o777),
        "unlock_key_permissions",
        "anybody can put another file in the place of",
    ),
    ("another-users", lambda path: os.chown(path, NOBODY, NOBODY), "unlock_key_owner", "belongs to another user"),
    ("a-folder", replace_by_a_folder, "unlock_key_missing", "is not a file"),
    ("short", shorten, "unlock_key_short", "less than 16 bytes"),
]


@pytest.mark.parametrize(
    ("spoil", "code", "words", "place"),
    [
        *(pytest.param(*case, "in-the-directory", id=name) for name, *case in UNSAFE),
        *(pytest.param(*case, "named", id=f"{name}-named") for name, *case in UNSAFE[::3]),
    ],
)
def test_case_73_an_unlock_key_that_others_could_read_or_replace_is_refused(
    directory: Path, tmp_path: Path, spoil: Spoil, code: str, words: str, place: str
) -> None:
    if code == "unlock_key_owner" and not IS_ROOT:
        pytest.skip("only root can give a file away")
    key, unlock = directory / "keys" / "unlock", None
    if place == "named":
        (tmp_path / "safe").mkdir(mode=0o700)
        unlock = tmp_path / "safe" / "key"
        key.rename(unlock)
        key = unlock
    spoil(key)
    status, said = serve(directory, unlock=unlock)
    assert status == 1
    assert (said["error"], words in said["message"]) == (code, True), said
    assert said["remedy"]
    if place == "in-the-directory":
        found = json.loads(run_enrolld(directory, "check", "--json").stdout)["findings"]
        assert code in {finding["code"] for finding in found}


def test_case_73_an_unlock_key_of_its_user_alone_is_taken(directory: Path, tmp_path: Path) -> None:
    """The twin."""
    status, said = serve(directory)
    assert (status, said.get("realm")) == (0, "default")
    (tmp_path / "safe").mkdir(mode=0o700)
    unlock = tmp_path / "safe" / "key"
    (directory / "keys" / "unlock").rename(unlock)
    assert serve(directory, unlock=unlock)[0] == 0


def test_case_73_whatever_holds_a_secret_is_made_for_its_user_alone(field: Field) -> None:
    directory = field.daemon.directory
    key = directory / "keys" / "unlock"
    assert stat.S_IMODE(key.stat().st_mode) == 0o600
    assert stat.S_IMODE(key.parent.stat().st_mode) == 0o700
    assert stat.S_IMODE(directory.stat().st_mode) == 0o700
    open_to_others = [str(path) for path in directory.rglob("*") if path.is_file() and path.stat().st_mode & 0o077]
    assert open_to_others == []


@pytest.mark.parametrize("kind", ["file", "symlink", "dangling-symlink"])
def test_case_73_an_unlock_key_is_never_written_where_something_stands(tmp_path: Path, kind: str) -> None:
    directory = tmp_path / "enrolld"
    (directory / "keys").mkdir(mode=0o700, parents=True)
    directory.chmod(0o700)
    victim = tmp_path / "victim"
    place = directory / "keys" / "unlock"
    if kind == "file":
        place.touch(0o644)
        victim = place
    else:
        place.symlink_to(victim)
        if kind == "symlink":
            victim.write_bytes(b"")
    done = run_enrolld(directory, "--json", "init")
    assert done.returncode == 1, done.stdout
    assert json.loads(done.stdout)["error"].startswith("unlock_key_"), done.stdout
    assert not victim.exists() or victim.read_bytes() == b""


class Ended(Exception):
    """It did not start; this is what it said."""


@contextlib.contextmanager
def started(folder: Path, wrapper: Sequence[str] = ()) -> Iterator[Daemon]:
    """`running_daemon` for what it can't do: another user's daemon, and one whose log holds what it must tell."""
    directory, output = folder / "enrolld", folder / "serve.log"
    kept = {name: value for name, value in os.environ.items() if not name.startswith("ENROLLD_")}
    with output.open("wb") as sink:
        process = subprocess.Popen(
            [*wrapper, str(ENROLLD), "--dir", str(directory), "serve", "--init", *LISTENERS],
            stdin=subprocess.DEVNULL,
            stdout=sink,
            stderr=subprocess.STDOUT,
            env=kept,
        )
    try:

        def addresses() -> dict[str, Any] | None:
            if process.poll() is not None:
                raise Ended(output.read_text(errors="replace"))
            with contextlib.suppress(FileNotFoundError, json.JSONDecodeError):
                return json.loads((directory / "run" / "serve.json").read_text())  # type: ignore[no-any-return]
            return None

        said = eventually(addresses, what="it serves", seconds=90)
        https, http = (int(said[kind][0].rpartition(":")[2]) for kind in ("https", "http"))
        daemon = Daemon(
            directory, output, process, said, https, http, folder / "default-root.pem", folder / "default-ca.pem"
        )
        yield daemon
    finally:
        process.terminate()
        process.wait(60)


# /proc shows no difference between root's processes: it has to be a user's, who may read the folders that we are in.
AS_NOBODY = (
    *("setpriv", f"--reuid={NOBODY}", f"--regid={NOBODY}", "--clear-groups"),
    *("--inh-caps=+dac_read_search", "--ambient-caps=+dac_read_search", "--"),
)


@pytest.fixture
def as_user() -> Iterator[Daemon]:
    """A daemon that is run by a user."""
    with tempfile.TemporaryDirectory() as name:  # pytest's own folders are closed to the other user
        directory = Path(name) / "enrolld"
        done = run_enrolld(directory, "init")
        assert done.returncode == 0, done.stderr
        if IS_ROOT:
            for path in (Path(name), directory, *directory.rglob("*")):
                os.chown(path, NOBODY, NOBODY)
        with started(Path(name), AS_NOBODY if IS_ROOT else ()) as running:
            yield running


def test_case_73_no_process_that_holds_keys_leaves_a_core_or_lets_itself_be_read(as_user: Daemon) -> None:
    pids = [as_user.process.pid, *workers(as_user)]
    assert len(pids) >= 2
    for pid in pids:
        limits = Path(f"/proc/{pid}/limits").read_text()
        (core,) = [line for line in limits.splitlines() if line.startswith("Max core file size")]
        assert core.split()[4:6] == ["0", "0"], core
        # What is not dumpable belongs to root (proc(5)), although its process does not.
        assert Path(f"/proc/{pid}/environ").stat().st_uid == 0, f"process {pid} may be read by its user"
    plain = subprocess.Popen([*AS_NOBODY, "cat"] if IS_ROOT else ["cat"], stdin=subprocess.PIPE)  # the measure measures
    try:
        own = NOBODY if IS_ROOT else os.geteuid()

        def belongs() -> bool | None:
            return True if Path(f"/proc/{plain.pid}/environ").stat().st_uid == own else None

        eventually(belongs, what="a process that may be read belongs to its user")
    finally:
        plain.communicate(timeout=30)


# --- 74 ---------------------------------------------------------------------------------------------------------------

MACHINE_ID = "0a1b2c3d4e5f60718293a4b5c6d7e8f9"


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine with an id of its own, whatever this one has."""
    path = tmp_path / "machine-id"
    path.write_text(f"{MACHINE_ID}\n")
    monkeypatch.setattr(guessable, "MACHINE_IDS", (path, tmp_path / "nowhere"))


@pytest.mark.usefixtures("machine")
@pytest.mark.parametrize(
    "value",
    [
        pytest.param(MACHINE_ID, id="machine-id"),
        pytest.param(MACHINE_ID.upper(), id="upper-case"),
        pytest.param("0a1b2c3d-4e5f-6071-8293-a4b5c6d7e8f9", id="with-dashes"),
        pytest.param(hashlib.sha256(MACHINE_ID.encode()).hexdigest(), id="sha256"),
        pytest.param(hashlib.sha256(f"{MACHINE_ID}\n".encode()).hexdigest(), id="sha256-of-the-line"),
        pytest.param(hashlib.md5(MACHINE_ID.encode(), usedforsecurity=False).hexdigest(), id="md5"),
        pytest.param(base64.b64encode(hashlib.sha512(MACHINE_ID.encode()).digest()).decode(), id="sha512-base64"),
        pytest.param("changeme changeme", id="changeme-twice"),
        pytest.param("Enrolld-Default-Password-2026", id="default-words"),
        pytest.param("password12345678", id="password-and-digits"),
    ],
)
def test_case_74_an_unlock_key_that_anybody_could_guess_is_refused(tmp_path: Path, value: str) -> None:
    path = tmp_path / "unlock"
    path.write_text(f"{value}\n")
    path.chmod(0o600)
    with pytest.raises(OperatorError) as refused:
        UnlockKey.load(path)
    assert refused.value.code == "unlock_key_guessable"
    assert value not in str(refused.value) + refused.value.remedy


@pytest.mark.usefixtures("machine")
@pytest.mark.parametrize(
    "value",
    [
        pytest.param("another key that is long enough", id="words"),
        pytest.param(MACHINE_ID[::-1], id="another-machines-id"),
        pytest.param("password-of-seven-blue-horses", id="a-longer-phrase"),
        pytest.param("ab" * 32, id="hex"),
    ],
)
def test_case_74_any_other_unlock_key_is_taken(tmp_path: Path, value: str) -> None:
    """The twin."""
    path = tmp_path / "unlock"
    path.write_text(value)
    path.chmod(0o600)
    assert UnlockKey.load(path).to_bytes() == value.encode()


def test_case_74_serve_refuses_a_guessable_key_and_check_finds_it(directory: Path) -> None:
    (directory / "keys" / "unlock").write_text("changemechangeme\n")
    status, said = serve(directory)
    assert (status, said["error"]) == (1, "unlock_key_guessable")
    found = json.loads(run_enrolld(directory, "check", "--json").stdout)["findings"]
    assert "unlock_key_guessable" in {finding["code"] for finding in found}


def test_case_74_no_two_installations_have_a_secret_in_common_and_none_has_a_password(tmp_path: Path) -> None:
    """Nobody logs in anywhere by a password that is shipped: operators are the system's users."""
    said: list[dict[str, Any]] = []
    for name in ("one", "two"):
        done = run_enrolld(tmp_path / name, "--json", "init")
        assert done.returncode == 0, done.stderr
        said.append(json.loads(done.stdout))
        assert not {key for key in said[-1] if "password" in key}
    keys = [(tmp_path / name / "keys" / "unlock").read_bytes() for name in ("one", "two")]
    assert keys[0] != keys[1]
    assert all(guessable.why_guessable(key.strip()) is None for key in keys)
    assert said[0]["ca_fingerprint_sha256"] != said[1]["ca_fingerprint_sha256"]


# --- 75 ---------------------------------------------------------------------------------------------------------------


class Tampered:
    """A store whose CA somebody changed: an import gone wrong, a restore of one half, or an enemy with the file."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self._unlock = UnlockKey.load(directory / "keys" / "unlock")

    def sql(self, statement: str, *values: object) -> list[tuple[bytes, ...]]:
        with contextlib.closing(sqlite3.connect(self.directory / "enrolld.db", isolation_level=None)) as store:
            return store.execute(statement, values).fetchall()

    def key(self, name: str) -> PrivateKey:
        ((sealed,),) = self.sql("SELECT pkcs8 FROM sealed_key WHERE name = ?", name)
        return self._unlock.unseal(sealed, name)

    def certificate(self, name: str) -> x509.Certificate:
        ((der,),) = self.sql("SELECT der FROM issuer WHERE name = ?", name)
        return x509.load_der_x509_certificate(der)

    def put(self, name: str, certificate: x509.Certificate) -> None:
        der = certificate.public_bytes(Encoding.DER)
        old = self.certificate(name).public_bytes(Encoding.DER)
        self.sql("UPDATE certificate SET der = ? WHERE der = ?", der, old)
        self.sql("UPDATE issuer SET der = ? WHERE name = ?", der, name)

    def another_key(self) -> None:
        """The key in the store belongs to no certificate."""
        self.sql(
            "UPDATE sealed_key SET pkcs8 = ? WHERE name = 'default-ec-1'",
            self._unlock.seal(ec.generate_private_key(ec.SECP256R1())),
        )

    def anew(
        self,
        name: str = "default-ec-1",
        *,
        by: PrivateKey | None = None,
        issuer: x509.Name | None = None,
        usage: x509.KeyUsage | None = None,
        constraints: x509.BasicConstraints | None = None,
    ) -> None:
        """The issuer's certificate, signed anew with something changed."""
        old = self.certificate(name)
        builder = x509.CertificateBuilder(
            issuer or old.issuer,
            old.subject,
            old.public_key(),
            x509.random_serial_number(),
            old.not_valid_before_utc,
            old.not_valid_after_utc,
        )
        for extension in old.extensions:
            value: x509.ExtensionType = extension.value
            if usage is not None and isinstance(value, x509.KeyUsage):
                value = usage
            if constraints is not None and isinstance(value, x509.BasicConstraints):
                value = constraints
            builder = builder.add_extension(value, extension.critical)
        self.put(name, builder.sign(by or self.key("default-root-1"), hashes.SHA256()))


def key_usage(*, certify: bool, crl: bool) -> x509.KeyUsage:
    return x509.KeyUsage(not certify, False, False, False, False, certify, crl, False, False)


NOT_A_CA = x509.BasicConstraints(ca=False, path_length=None)
STRANGER = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "nobody's root")])
BROKEN: list[tuple[str, Callable[[Tampered], None], str]] = [
    ("usage-lacks-crl-sign", lambda store: store.anew(usage=key_usage(certify=True, crl=False)), "issuer_usage"),
    ("usage-lacks-cert-sign", lambda store: store.anew(usage=key_usage(certify=False, crl=True)), "issuer_usage"),
    ("no-ca", lambda store: store.anew(constraints=NOT_A_CA), "issuer_usage"),
    (
        "signed-by-another-root",
        lambda store: store.anew(by=ec.generate_private_key(ec.SECP256R1())),
        "issuer_chain",
    ),
    ("issued-by-nobody-here", lambda store: store.anew(issuer=STRANGER), "issuer_chain"),
]


def findings(directory: Path) -> dict[str, str]:
    answer = json.loads(run_enrolld(directory, "check", "--json").stdout)
    return {finding["code"]: finding["message"] for finding in answer["findings"]}


def test_case_75_a_ca_whose_key_is_not_its_own_issues_nothing_and_is_named(directory: Path, tmp_path: Path) -> None:
    with running_daemon(tmp_path) as daemon:  # the twin: as it was made
        next(field_of(daemon)).assert_served()
    assert "issuer_key" not in findings(directory)
    Tampered(directory).another_key()
    told = "the key default-ec-1 does not belong to its certificate"
    assert findings(directory).get("issuer_key") == told
    assert_not_served(tmp_path, told)


@pytest.mark.parametrize(("break_it", "code"), [pytest.param(*case, id=name) for name, *case in BROKEN])
def test_case_75_a_ca_certificate_that_nobody_would_believe_issues_nothing_and_is_named(
    directory: Path, tmp_path: Path, break_it: Callable[[Tampered], None], code: str
) -> None:
    break_it(Tampered(directory))
    assert "default-ec-1" in findings(directory).get(code, f"no finding {code}")
    assert_not_served(tmp_path, "default-ec-1")


def assert_not_served(folder: Path, words: str) -> None:
    """It does not start, and says why; or it starts, and what the issuer would sign is not issued."""
    try:
        with started(folder) as daemon:
            daemon.write_anchors("default", folder)
            field = Field(daemon, b"", 0)
            answer = field.ask(field.csr(), EST).only
            assert answer.status == 503, answer.body
            assert answer.text.startswith("Nothing can be issued at the moment; ask again later. (request ")
            assert field.certificates() == 0
            attempt = field.attempt(answer.request_id)
            assert (attempt.outcome, attempt.code) == ("error", "internal_error")
            assert words in (attempt.detail or "")
    except Ended as ended:
        if words not in str(ended):
            raise AssertionError(f"it ends without saying why: {ended}") from None
    assert "Traceback" not in (folder / "serve.log").read_text(), "what the operator has to mend is told as a bug"
