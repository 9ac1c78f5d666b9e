"""The library's README: its example runs as it stands, and its tables are the code's."""

import contextlib
import re
import socket
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, fields
from pathlib import Path

import pytest

import enrolld.tls
from enrolld.tls import StreamLimits, StreamReason, TlsLimits, TlsPeer
from tests.helpers.tls_pki import TlsPki, connect, read_all

README = Path(enrolld.tls.__file__).with_name("README.md").read_text(encoding="utf-8")


def table(heading: str) -> list[list[str]]:
    """The cells of the table under a heading, without its head, backticks taken off."""
    _, found, section = README.partition(f"\n## {heading}\n")
    assert found, f"there is no section {heading!r}"
    rows = [line for line in section.partition("\n## ")[0].splitlines() if line.startswith("|")]
    return [[cell.strip().strip("`") for cell in row.strip("|").split("|")] for row in rows[2:]]


def test_the_limits_are_those_of_the_code_with_their_defaults() -> None:
    written = {name: (owner, float(default)) for name, owner, default, _ in table("Limits")}
    plain = {field.name for field in fields(StreamLimits)}
    assert written == {
        field.name: ("StreamLimits" if field.name in plain else "TlsLimits", float(getattr(TlsLimits(), field.name)))
        for field in fields(TlsLimits)
    }


def test_the_reasons_are_those_of_the_code() -> None:
    assert [(name, code) for name, code, _ in table("Reasons")] == [(one.name, one.value) for one in StreamReason]


def test_what_is_known_of_the_peer_is_what_the_code_tells() -> None:
    assert [name for name, _ in table("What is known of the peer")] == [field.name for field in fields(TlsPeer)]


def test_every_public_name_is_explained() -> None:
    section = README.partition("\n## The names\n")[2].partition("\n## ")[0]
    assert set(enrolld.tls.__all__) - {"StreamReason"} <= set(re.findall(r"`(\w+)`", section))


@dataclass
class Example:
    """The README's example as a process."""

    port: int
    lines: Iterator[str]


@pytest.fixture
def example(pki: TlsPki, tmp_path: Path) -> Iterator[Example]:
    (code,) = re.findall(r"^```python\n(.*?)^```$", README, re.MULTILINE | re.DOTALL)
    (tmp_path / "greeter.py").write_text(code)
    (tmp_path / "server.pem").write_bytes(pki.server.pem_chain)
    (tmp_path / "server.key").write_bytes(pki.server.pem_key)
    process = subprocess.Popen(
        [sys.executable, "greeter.py"], cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    try:
        assert process.stdout is not None
        first = process.stdout.readline()
        found = re.fullmatch(r"listening on port (\d+)\n", first)
        assert found, process.communicate(timeout=10)
        yield Example(int(found[1]), iter(process.stdout))
    finally:
        process.terminate()
        _, errors = process.communicate(timeout=10)
    assert errors == ""


@pytest.mark.parametrize(
    ("has_certificate", "greeting"),
    [
        pytest.param(True, b"CN=device says hello\n", id="a-device"),
        pytest.param(False, b"nobody says hello\n", id="nobody"),
    ],
)
def test_the_example_greets_its_peers(example: Example, pki: TlsPki, has_certificate: bool, greeting: bytes) -> None:
    context = pki.client(pki.device if has_certificate else None)
    with context.wrap_socket(connect(example.port), server_hostname="localhost") as sock:
        sock.sendall(b"hel")
        sock.sendall(b"lo\n")
        socket.socket.shutdown(sock, socket.SHUT_WR)
        assert read_all(sock) == greeting


def test_the_example_tells_whom_it_refused_and_why(example: Example, pki: TlsPki) -> None:
    context = pki.client()
    with contextlib.suppress(OSError), context.wrap_socket(connect(example.port), server_hostname="other.example"):
        pass
    assert next(example.lines) == f"refused 127.0.0.1: {StreamReason.UNKNOWN_NAME.value}\n"
