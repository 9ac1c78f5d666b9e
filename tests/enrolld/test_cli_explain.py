"""`enrolld explain FILE`: every form of a captured request, what is none, and that nothing is told or changed."""

import asyncio
import base64
import contextlib
import io
import json
import os
import shutil
import sqlite3
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import quote

import pytest

from ca_core.authority.sealing import UnlockKey
from ca_core.core import Core, CoreConfig
from enrolld.cli import main
from enrolld.cli.explain import MAX_INPUT, read_capture
from tests.enrolld.test_cli_store import Json, Shell
from tests.helpers.daemon import run_enrolld
from tests.scep_server.client import Request, tlv, to_ber
from tests.scep_server.serving import make_csr, message, self_signed

WRONG = "kmnpqrstuvwxyz23456789abcd"


class Made(NamedTuple):
    """An installation with the realms default and cams, and the device sensor in default."""

    directory: Path
    secret: str
    request: Request

    def asking(self, secret: str, **bends: Any) -> bytes:
        """The request with another challenge."""
        csr = make_csr(self_signed().key, "sensor", secret)
        return message(self.request.envelope.recipient, self_signed(), csr, **bends).encode()


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Made:
    directory = tmp_path_factory.mktemp("explain") / "enrolld"
    assert main(["--dir", str(directory), "init", "--name", "pki.example.com"]) == 0

    async def prepare() -> tuple[str, bytes]:
        key = UnlockKey.load(directory / "keys" / "unlock")
        core = Core.open(CoreConfig(f"sqlite:///{directory}/enrolld.db", key, "http://localhost", demo=False))
        try:
            await core.realms.add("cams", hosts=["cams.example.com"], actor="operator:test")
            await core.ra_certificates.ensure()
            handed = await core.devices.add("default", "sensor", actor="operator:test")
            resolved = await core.realms.resolve("scep", None, None)
            return handed.secret, (await core.ra(resolved)).certificate
        finally:
            core.close()

    secret, ra = asyncio.run(prepare())
    return Made(directory, secret, message(ra, self_signed(), make_csr(self_signed().key, "sensor", secret)))


@pytest.fixture
def shell(made: Made, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Shell:
    for name in [name for name in os.environ if name.startswith(("ENROLLD_", "CREDENTIALS_DIRECTORY"))]:
        monkeypatch.delenv(name)
    return Shell(Path(shutil.copytree(made.directory, tmp_path / "enrolld")), capsys)


def contents(directory: Path) -> tuple[str, set[str]]:
    """All records, and the names of all files but those that SQLite keeps while it reads."""
    with contextlib.closing(sqlite3.connect(directory / "enrolld.db")) as connection:
        dump = "\n".join(connection.iterdump())
    names = {str(path.relative_to(directory)) for path in directory.rglob("*")}
    return dump, {name for name in names if not name.endswith(("-wal", "-shm"))}


def explain(shell: Shell, data: bytes | str, *options: str) -> Json:
    """Explain an input, in JSON and for a person, and see that nothing changes."""
    path = shell.directory.with_name("captured")
    path.write_bytes(data.encode() if isinstance(data, str) else data)
    before = contents(shell.directory)
    answer = shell.ask("explain", str(path), *options)
    out, err = shell("explain", str(path), *options)
    assert contents(shell.directory) == before
    assert set(answer) == {"file", "form", "realm", "operation", "transaction_id", "steps", "verdict"}
    assert all(set(step) == {"step", "ok", "text", "code", "remedy"} for step in answer["steps"])
    assert answer["file"] == str(path)
    assert len([line for line in out.splitlines() if line.startswith(("ok ", "FAIL ", "? "))]) == len(answer["steps"])
    assert answer["verdict"]["sentence"] in out
    assert err == ""
    return answer


# --- the forms -------------------------------------------------------------------------------------------------------


def b64(data: bytes) -> str:
    return base64.b64encode(data).decode()


def lines(data: bytes) -> str:
    return base64.encodebytes(data).decode()


def query(data: bytes) -> str:
    return f"operation=PKIOperation&message={quote(b64(data), safe='')}"


def post(data: bytes, *fields: str, path: str = "/scep", body: bytes | None = None) -> bytes:
    head = [f"POST {path}?operation=PKIOperation HTTP/1.1", "Host: localhost:8080", *fields]
    if not any(field.startswith(("Transfer-Encoding", "Content-Length")) for field in fields):
        head.append(f"Content-Length: {len(data)}")
    return "\r\n".join((*head, "", "")).encode() + (data if body is None else body)


def chunked(data: bytes) -> bytes:
    parts = [data[at : at + 1000] for at in range(0, len(data), 1000)]
    return b"".join(b"%x;x=y\r\n%b\r\n" % (len(part), part) for part in parts) + b"0\r\n\r\n"


FORMS: dict[str, tuple[Callable[[bytes], bytes | str], str]] = {
    "der": (lambda data: data, "der"),
    "ber": (to_ber, "ber"),
    "base64": (b64, "base64"),
    "base64-in-lines": (lambda data: f"\n  {lines(data)}\n", "base64"),
    "base64url-unpadded": (lambda data: base64.urlsafe_b64encode(data).decode().rstrip("="), "base64"),
    "base64-after-a-mark": (lambda data: "\ufeff" + lines(data).replace("\n", "\r\n"), "base64"),
    "pem": (lambda data: f"-----BEGIN PKCS7-----\n{lines(data)}-----END PKCS7-----\n", "pem"),
    "pem-with-words": (lambda data: f"from r1:\n-----BEGIN CMS-----\n{lines(data)}-----END CMS-----\n", "pem"),
    "url": (lambda data: f"http://localhost:8080/scep/default?{query(data)}\n", "url"),
    "url-with-user": (lambda data: f"HTTPS://a:b@Localhost/scep/pkiclient.exe?{query(data)}#x", "url"),
    "target": (lambda data: f"/scep/default?{query(data)}", "target"),
    "target-of-a-log": (lambda data: f"/cgi-bin/pkiclient.exe?{query(data)} HTTP/1.0\n", "target"),
    "request-line": (lambda data: f"GET /scep?{query(data)} HTTP/1.1", "request-line"),
    "request-line-alone": (lambda data: f"GET /scep?{query(data)}\n\n", "request-line"),
    "get": (lambda data: f"GET /scep?{query(data)} HTTP/1.1\r\nHost: localhost\r\nAccept: */*\r\n\r\n", "http"),
    "get-1.0": (lambda data: f"GET /scep?{query(data)} HTTP/1.0\r\n\r\n", "http"),
    "get-edited": (lambda data: f"\nGET /scep?{query(data)} HTTP/1.1\nHost: localhost\n\n", "http"),
    "post": (post, "http"),
    "post-without-operation": (lambda data: post(data).replace(b"?operation=PKIOperation", b""), "http"),
    "post-and-the-next": (lambda data: post(data) + b"GET / HTTP/1.1\r\n\r\n", "http"),
    "post-edited": (lambda data: post(data).replace(b"\r\n", b"\n", 3).replace(b"\r\n\r\n", b"\n\n", 1), "http"),
    "post-unmeasured": (lambda data: post(data, "Content-Length:"), "http"),
    "post-chunked": (lambda data: post(data, "Transfer-Encoding: chunked", body=chunked(data)), "http"),
}


@pytest.mark.parametrize(("write", "form"), FORMS.values(), ids=FORMS)
def test_every_form_is_read(write: Callable[[bytes], bytes | str], form: str, shell: Shell, made: Made) -> None:
    answer = explain(shell, write(made.request.encode()))
    assert (answer["form"], answer["realm"], answer["operation"]) == (form, "default", "PKCSReq")
    assert answer["verdict"]["outcome"] == "issued", answer["steps"][-1]
    assert answer["transaction_id"]


def test_standard_input_is_read(shell: Shell, made: Made) -> None:
    done = run_enrolld(shell.directory, "explain", "-", "--json", stdin=made.request.encode())
    assert (done.returncode, done.stderr) == (0, b"")
    answer = json.loads(done.stdout)
    assert (answer["file"], answer["verdict"]["outcome"]) == ("-", "issued")


def test_what_a_person_reads(shell: Shell, made: Made, tmp_path: Path) -> None:
    (tmp_path / "good").write_bytes(made.request.encode())
    (tmp_path / "bad").write_bytes(made.asking("unknown1." + WRONG))
    out, err = shell("explain", str(tmp_path / "good"))
    assert err == ""
    assert out.splitlines()[1] == "ok    realm          default, as nothing says otherwise"
    assert out.splitlines()[-1] == ("It would be issued, if nothing changes. The client would see a CertRep SUCCESS.")
    out, err = shell("explain", str(tmp_path / "bad"))
    assert out.splitlines()[-4:] == [
        "FAIL  challenge      The credentials are not accepted (not matched: unknown)",
        "                     No such secret in this realm; make one with 'enrolld device secret NAME'.",
        "",
        "It would be refused: secret_unknown. The client would see a CertRep FAILURE with badRequest.",
    ]


# --- what goes wrong on the way in -----------------------------------------------------------------------------------

GET_LINE = "GET /scep?operation=GetCACaps HTTP/1.1\r\n"

FAULTS: dict[str, tuple[Callable[[bytes], bytes | str], str, str]] = {
    "no-host": (lambda _: f"{GET_LINE}Accept: */*\r\n\r\n", "input", "http_no_host"),
    "no-field-at-all": (lambda _: f"{GET_LINE}\r\n", "input", "http_no_host"),
    "long-target": (lambda _: f"GET /scep?message={'A' * 33000} HTTP/1.1", "input", "http_target_too_long"),
    "cut-off": (lambda data: post(data)[:-1], "input", "http_body_truncated"),
    "chunk-cut-off": (
        lambda data: post(data, "Transfer-Encoding: chunked", body=chunked(data)[:-9]), "input", "http_malformed"
    ),
    "chunk-of-nonsense": (
        lambda data: post(data, "Transfer-Encoding: chunked", body=b"-1\r\nx"), "input", "http_malformed"
    ),
    "gzip": (lambda data: post(data, "Content-Encoding: gzip"), "input", "content_coding_unsupported"),
    "deflate": (
        lambda data: post(data, "Transfer-Encoding: deflate"), "input", "content_coding_unsupported"
    ),
    "no-body": (lambda _: post(b""), "operation", "scep_message_missing"),
    "body-of-no-length": (lambda data: post(data, "Content-Length: many"), "operation", "scep_message_missing"),
    "another-path": (lambda data: post(data, path="/.well-known/est/simpleenroll"), "realm", "http_not_found"),
    "another-realm": (lambda data: f"/scep/cams?{query(data)}", "recipient", "scep_envelope_not_for_us"),
    "another-host": (
        lambda data: f"https://cams.example.com:8443/scep/default?{query(data)}", "realm", "realm_not_here"
    ),
    "no-realm": (lambda data: f"/scep/nope?{query(data)}", "realm", "realm_unknown"),
    "no-base64": (lambda _: "/scep?operation=PKIOperation&message=%00", "operation", "scep_not_base64"),
    "post-of-a-publication": (
        lambda _: "POST /scep?operation=GetCACaps HTTP/1.1\r\nHost: x\r\n\r\n", "operation", "method_not_allowed"
    ),
    "truncated": (lambda data: data[:-1], "cms", "scep_not_cms"),
    "a-certificate": (lambda data: data[:4] + b"\0" * 64, "cms", "scep_not_cms"),
    "pem-of-no-message": (lambda _: f"-----BEGIN X-----\n{b64(b'0' + b'9')}\n-----END X-----", "cms", "scep_not_cms"),
    "too-large-a-message": (lambda _: b"\x30" + bytes(128 * 1024), "cms", "scep_too_large"),
}  # fmt: skip


@pytest.mark.parametrize(("write", "step", "code"), FAULTS.values(), ids=FAULTS)
def test_what_the_server_would_not_take_is_a_step_that_fails(
    write: Callable[[bytes], bytes | str], step: str, code: str, shell: Shell, made: Made
) -> None:
    answer = explain(shell, write(made.request.encode()))
    failing = answer["steps"][-1]
    assert (failing["step"], failing["ok"], failing["code"]) == (step, False, code)
    assert failing["remedy"]
    assert (answer["verdict"]["outcome"], answer["verdict"]["code"]) == ("refused", code)


@pytest.mark.parametrize(
    ("data", "code"),
    [
        pytest.param(b"", "input_unknown", id="empty"),
        pytest.param(b"\n \n", "input_unknown", id="blank"),
        pytest.param(b"\x00\x01\x02", "input_unknown", id="binary"),
        pytest.param(b"hello world", "input_unknown", id="words"),
        pytest.param(b"aGVsbG8gd29ybGQ=", "input_unknown", id="base64-of-words"),
        pytest.param(b"MIIB", "input_unknown-not", id="base64-of-a-sequence"),
        pytest.param(b"-----BEGIN X-----\n*\n-----END X-----", "input_unknown", id="pem-of-nothing"),
        pytest.param(b'{"a": 1}', "input_unknown", id="json"),
        pytest.param(b"HTTP/1.1 200 OK\r\n\r\n", "input_unknown", id="an-answer"),
        pytest.param(b"ftp://x/scep", "input_unknown", id="another-scheme"),
        pytest.param(b"\xff\xfe0\x00", "input_unknown", id="utf-16"),
        pytest.param(b"\x1b[2J" * 99, "input_unknown", id="escapes"),
        pytest.param(b"A" * (MAX_INPUT + 1), "input_too_large", id="huge"),
        pytest.param(b"A" * MAX_INPUT, "input_unknown", id="just-not-huge"),
    ],
)
def test_what_is_no_request_is_refused(data: bytes, code: str, shell: Shell, tmp_path: Path) -> None:
    (tmp_path / "captured").write_bytes(data)
    if code == "input_unknown-not":  # the twin: it is read, and then found to be cut off
        assert shell.ask("explain", str(tmp_path / "captured"))["verdict"]["code"] == "scep_not_cms"
        return
    assert shell.refusal("explain", str(tmp_path / "captured")) == code
    said = "".join(shell("explain", str(tmp_path / "captured"), status=1))
    assert "\x1b" not in said


def test_a_name_that_is_no_file_and_no_request_id_says_both(shell: Shell, tmp_path: Path) -> None:
    out, err = shell("explain", "nope-nope", status=1)
    assert out == ""
    assert "There is no file of this name" in err
    assert "no attempt with the request id 'nope-nope' is kept" in err
    for name in (str(tmp_path / "nowhere"), "x" * 5000, "\x1b[2J"):
        assert shell.refusal("explain", name) == "request_unknown"
    assert shell.refusal("explain", str(tmp_path)) == "input_unreadable"


def test_a_file_goes_before_a_request_id(
    shell: Shell, made: Made, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert shell.refusal("explain", "abcd-2345") == "request_unknown"
    (tmp_path / "abcd-2345").write_bytes(made.request.encode())
    assert shell.ask("explain", "abcd-2345")["verdict"]["outcome"] == "issued"


def test_the_realm_is_for_what_has_no_path(shell: Shell, made: Made) -> None:
    data = made.request.encode()
    other = explain(shell, data, "--realm", "cams")
    assert (other["realm"], other["verdict"]["code"]) == ("cams", "scep_envelope_not_for_us")
    assert "the RA of realm default" in other["steps"][-1]["text"]
    assert explain(shell, f"/scep?{query(data)}", "--realm", "cams")["realm"] == "default"
    assert explain(shell, f"/scep/default?{query(data)}", "--realm", "cams")["realm"] == "default"
    (shell.directory.with_name("captured")).write_bytes(data)
    assert shell.refusal("explain", str(shell.directory.with_name("captured")), "--realm", "nope") == "realm_unknown"


# --- the unlock key --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("spoil", "code"),
    [
        pytest.param(lambda path: path.unlink(), "unlock_key_missing", id="gone"),
        pytest.param(lambda path: path.chmod(0o640), "unlock_key_permissions", id="readable-by-others"),
        pytest.param(lambda path: path.write_bytes(b"x" * 43), "unlock_key_wrong", id="another"),
    ],
)
def test_without_the_unlock_key_what_needs_none_is_told(
    spoil: Callable[[Path], object], code: str, shell: Shell, made: Made
) -> None:
    whole = explain(shell, made.request.encode())
    spoil(shell.directory / "keys" / "unlock")
    answer = explain(shell, made.request.encode())
    *told, last = answer["steps"]
    assert told == whole["steps"][: len(told)]
    assert (last["step"], last["ok"], last["code"]) == ("decryption", None, code)
    assert last["remedy"]
    assert (answer["verdict"]["outcome"], answer["verdict"]["code"]) == ("unknown", None)
    # What fails before the key is needed is told to its end.
    assert (
        explain(shell, replace(made.request, signature=b"x" * 256).encode())["verdict"]["code"] == "scep_signature_bad"
    )


# --- secrets and hostile names ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("is_right", [pytest.param(True, id="matched"), pytest.param(False, id="not-matched")])
def test_the_challenge_is_shown_nowhere(is_right: bool, shell: Shell, made: Made, tmp_path: Path) -> None:
    selector = made.secret.partition(".")[0]
    secret = made.secret if is_right else f"{selector}.{WRONG}"
    (tmp_path / "captured").write_bytes(made.asking(secret, transaction=f"of-{secret}"))
    said = [*shell("explain", str(tmp_path / "captured")), *shell("explain", str(tmp_path / "captured"), "--json")]
    for part in (secret, *secret.split("."), base64.b64encode(secret.encode()).decode(), secret.encode().hex()):
        assert not [each for each in said if part in each]
    assert ("matched (device sensor)" if is_right else "not matched: wrong") in said[0]


def test_names_cannot_move_the_cursor(shell: Shell, made: Made) -> None:
    request = replace(made.request, message_type=tlv(0x13, b"\x1b[2J\n19"))
    path = shell.directory.with_name("captured")
    path.write_bytes(request.encode())
    out, _ = shell("explain", str(path))
    assert "\x1b" not in out
    assert "\\x1b[2J\\n19" in out
    assert "\\u001b[2J\\n19" in shell("explain", str(path), "--json")[0]


def test_nothing_is_imported_to_show_the_help_and_no_http_to_read_a_message(made: Made, tmp_path: Path) -> None:
    (tmp_path / "captured").write_bytes(made.request.encode())
    program = (
        "import sys; from enrolld.cli import main; assert main(sys.argv[1:]) == 0; "
        "print(sorted({'sqlalchemy', 'aiohttp', 'OpenSSL', 'alembic', 'cryptography', 'asyncio'} & set(sys.modules)))"
    )
    for arguments, loaded in (
        (["explain", "--help"], "[]"),
        (["explain", str(tmp_path / "captured")], "['asyncio', 'cryptography', 'sqlalchemy']"),
    ):
        done = subprocess.run(
            [sys.executable, "-c", program, "--dir", str(made.directory), *arguments],
            text=True, capture_output=True, check=True, timeout=60,
        )  # fmt: skip
        assert done.stdout.splitlines()[-1] == loaded


def test_any_bytes_are_read_or_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    import random

    from ca_core.errors import OperatorError

    chance = random.Random(20261122)
    words = [b"GET ", b"POST ", b"/scep", b"?", b"message=", b" HTTP/1.1", b"\r\n", b"\r\n\r\n", b"Host: x", b"http://"]
    words += [
        b"Content-Length: 5",
        b"Transfer-Encoding: chunked",
        b"5\r\n",
        b"0",
        b"\x30",
        b"-----BEGIN X-----",
        b"MII",
    ]
    words += [b"-----END X-----", b"\xff", b"\0", b"[", b"%", b":", b"#", b"\x1b"]
    for _ in range(20_000):
        data = b"".join(chance.choices(words, k=chance.randrange(1, 12)))
        with contextlib.suppress(OperatorError):
            assert read_capture(data).size == len(data)
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"")))
    assert main(["explain", "-", "--json"]) == 1
