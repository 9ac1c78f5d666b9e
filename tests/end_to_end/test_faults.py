"""Cases 57 and 58: a store that can't be written. Issuing stops with 503, publication goes on, and nobody has to help.

After each fault the same client asks again with the same key and secret, and gets its certificate.
"""

import contextlib
import json
import signal
import socket
import sqlite3
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec

from tests.end_to_end import wire
from tests.helpers.daemon import Daemon, eventually, run_enrolld, running_daemon
from tests.helpers.disks import SmallDisk, failing, small_disk
from tests.helpers.processes import worker_of

DISK = 96 << 20
ADMIN = ("--admin", "127.0.0.1:0")


class Client:
    """A device that asks until it has what it wants."""

    def __init__(self, daemon: Daemon, name: str) -> None:
        self.daemon = daemon
        self.name = name
        handed = daemon.inspect(lambda core: core.devices.add("default", name, actor="test"))
        self.secret = handed.secret
        self.key = ec.generate_private_key(ec.SECP256R1())

    def ask(self) -> wire.Answer:
        request = wire.enroll_request(
            wire.body_of(wire.csr(self.key, self.name)), authorization=wire.basic(self.name, self.secret)
        )
        return wire.exchange(self.daemon.https_port, wire.context(self.daemon.root), request)

    def is_told_to_come_again(self) -> None:
        answer = self.ask()
        assert (answer.status, answer.headers.get("retry-after")) == (503, "60")
        assert answer.text.startswith("Nothing can be issued at the moment; ask again later. (request ")

    def is_served(self, *, seconds: float = 10.0) -> x509.Certificate:
        def served() -> x509.Certificate | None:
            answer = self.ask()
            assert answer.status in (200, 503), answer
            return answer.certificate if answer.status == 200 else None

        return eventually(served, what=f"{self.name} gets its certificate", seconds=seconds)


def published(daemon: Daemon) -> x509.CertificateRevocationList:
    """The CRL, as a relying party fetches it."""
    url = f"http://127.0.0.1:{daemon.http_port}/pki/default-ec-1/0.crl"
    with urllib.request.urlopen(url, timeout=10) as answer:
        return x509.load_der_x509_crl(answer.read())


def readiness(daemon: Daemon) -> tuple[int, list[str]]:
    """Status and reasons of /readyz."""
    try:
        port = daemon.addresses["admin"][0].rpartition(":")[2]
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/readyz", timeout=10) as answer:
            return answer.status, json.load(answer).get("reasons", [])
    except urllib.error.HTTPError as refused:
        return refused.code, json.load(refused)["reasons"]


def _is_ready(daemon: Daemon) -> bool | None:
    """Whether it says so; a connection that was cut for others is no answer."""
    try:
        return readiness(daemon)[0] == 200 or None
    except OSError:
        return None


def nothing_was_lost(daemon: Daemon) -> None:
    """The store is sound, and each certificate has one event that says it was issued."""
    with contextlib.closing(sqlite3.connect(daemon.directory / "enrolld.db")) as store:
        assert store.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
        issued = store.execute("SELECT serial FROM certificate WHERE kind = 'device' ORDER BY serial").fetchall()
        events = store.execute(
            "SELECT serial FROM audit WHERE action = 'certificate.issued' AND device IS NOT NULL ORDER BY serial"
        ).fetchall()
    assert issued == events


@pytest.fixture(scope="module")
def daemon(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemon]:
    with running_daemon(tmp_path_factory.mktemp("faults"), serve_arguments=ADMIN) as running:
        yield running


TRIGGERS = {
    "certificate": "BEFORE INSERT ON certificate",
    "audit": "BEFORE INSERT ON audit WHEN NEW.action = 'certificate.issued'",
    "secret": "BEFORE UPDATE ON device_secret",
}


@pytest.mark.parametrize("table", TRIGGERS)
@pytest.mark.parametrize("kind", ["ABORT", "ROLLBACK", "FAIL"])
def test_case_57_a_row_that_can_not_be_written_issues_nothing_and_spends_nothing(
    daemon: Daemon, table: str, kind: str
) -> None:
    client = Client(daemon, f"trigger-{table}-{kind.lower()}")
    store = sqlite3.connect(daemon.directory / "enrolld.db", timeout=20, isolation_level=None)
    try:
        store.execute(f"CREATE TRIGGER planted {TRIGGERS[table]} BEGIN SELECT RAISE({kind}, 'planted'); END")
        client.is_told_to_come_again()
        assert daemon.certificates_of(client.name) == []
        spent = "SELECT spent_at FROM device_secret s JOIN device d ON d.id = s.device_id WHERE d.name = ?"
        assert store.execute(spent, (client.name,)).fetchall() == [(None,)]
    finally:
        store.execute("DROP TRIGGER IF EXISTS planted")
        store.close()
    certificate = client.is_served()
    assert [row["serial"] for row in daemon.certificates_of(client.name)] == [f"{certificate.serial_number:x}"]
    nothing_was_lost(daemon)


def test_connections_to_the_admin_listener_are_few_and_health_still_answers(daemon: Daemon) -> None:
    port = int(daemon.addresses["admin"][0].rpartition(":")[2])
    descriptors = Path(f"/proc/{worker_of(daemon)}/fd")
    before = len(list(descriptors.iterdir()))
    with contextlib.ExitStack() as stack:
        for _ in range(300):
            stack.enter_context(socket.create_connection(("127.0.0.1", port), timeout=20))
        eventually(lambda: _is_ready(daemon), what="health answers")
        assert len(list(descriptors.iterdir())) - before < 120


FAILING = [("pwrite64", "EROFS"), ("pwrite64", "ENOSPC"), ("pwrite64", "EIO"), ("fdatasync", "EIO")]


@pytest.mark.foreign
@pytest.mark.parametrize(("call", "error"), FAILING, ids=[f"{call}-{error}" for call, error in FAILING])
def test_case_57_a_disk_that_refuses_to_write_stops_issuing_and_nothing_else(
    daemon: Daemon, tmp_path: Path, call: str, error: str
) -> None:
    client = Client(daemon, f"{call}-{error}".lower())
    with failing(daemon, call, error, tmp_path) as trace:
        client.is_told_to_come_again()
        assert published(daemon).is_signature_valid(issuing_key(daemon))
    assert error in trace.read_text()
    client.is_served()
    nothing_was_lost(daemon)


def issuing_key(daemon: Daemon) -> ec.EllipticCurvePublicKey:
    """The key that signs the CRL."""
    with urllib.request.urlopen(f"http://127.0.0.1:{daemon.http_port}/pki/default-ec-1.cer", timeout=10) as answer:
        key = x509.load_der_x509_certificate(answer.read()).public_key()
    assert isinstance(key, ec.EllipticCurvePublicKey)
    return key


@pytest.fixture
def on_small_disk(tmp_path: Path) -> Iterator[tuple[Daemon, SmallDisk]]:
    with small_disk(tmp_path / "disk", DISK) as disk, running_daemon(disk.root, serve_arguments=ADMIN) as running:
        yield running, disk


def test_case_58_issuing_stops_while_a_twentieth_of_the_disk_is_free_and_goes_on_by_itself(
    on_small_disk: tuple[Daemon, SmallDisk],
) -> None:
    daemon, disk = on_small_disk
    first, second = Client(daemon, "first"), Client(daemon, "second")
    disk.leave(DISK * 6 // 100)
    certificate = first.is_served()
    assert readiness(daemon) == (200, [])

    disk.leave(DISK * 4 // 100)
    eventually(lambda: True if second.ask().status == 503 else None, what="issuing stops", seconds=2)
    second.is_told_to_come_again()
    assert disk.free > DISK * 3 // 100, "it was not the end of the disk that stopped it"
    assert readiness(daemon) == (503, ["the store has no room, or does not commit; the log says why"])
    assert "room_short" in {finding["code"] for finding in findings(daemon)}
    assert "is nearly full" in daemon.output.read_text()

    # What is left is for making things safe: a revocation, and the CRL that says so.
    before = published(daemon)
    revoked = daemon.ask("cert", "revoke", f"{certificate.serial_number:x}", "--reason", "keyCompromise")
    assert revoked["published"] is True
    after = published(daemon)
    assert after.get_revoked_certificate_by_serial_number(certificate.serial_number) is not None
    assert len(after) == len(before) + 1

    disk.leave(DISK // 2)
    second.is_served()
    assert readiness(daemon) == (200, [])
    nothing_was_lost(daemon)


def findings(daemon: Daemon) -> list[dict[str, str]]:
    """What `enrolld check` finds."""
    found: list[dict[str, str]] = json.loads(run_enrolld(daemon.directory, "check", "--json").stdout)["findings"]
    return found


def test_case_58_a_disk_that_is_full_to_the_last_page_still_publishes_and_recovers(
    on_small_disk: tuple[Daemon, SmallDisk],
) -> None:
    daemon, disk = on_small_disk
    client = Client(daemon, "client")
    number = published(daemon).extensions.get_extension_for_class(x509.CRLNumber).value.crl_number
    disk.leave(0)
    assert disk.free == 0
    eventually(lambda: True if client.ask().status == 503 else None, what="issuing stops", seconds=2)
    for _ in range(5):
        client.is_told_to_come_again()
        found = published(daemon).extensions.get_extension_for_class(x509.CRLNumber).value.crl_number
        assert found == number
    disk.leave(DISK // 2)
    client.is_served()
    nothing_was_lost(daemon)


def test_case_58_a_full_run_directory_stops_no_request_and_keeps_what_stands_there(tmp_path: Path) -> None:
    with (
        small_disk(tmp_path / "enrolld" / "run", 1 << 20) as disk,
        running_daemon(tmp_path, serve_arguments=ADMIN) as daemon,
    ):
        announced = (daemon.directory / "run" / "serve.json").read_text()
        disk.leave(0)
        Client(daemon, "meanwhile").is_served()
        daemon.process.send_signal(signal.SIGHUP)
        eventually(lambda: True if "every worker has it" in daemon.output.read_text() else None, what="it reloads")
        assert "serve.json could not be written: No space left on device" in daemon.output.read_text()
        assert (daemon.directory / "run" / "serve.json").read_text() == announced
        disk.leave(1 << 19)
        daemon.process.send_signal(signal.SIGHUP)
        told = "every worker has it"
        eventually(lambda: True if daemon.output.read_text().count(told) == 2 else None, what="it reloads once more")
        Client(daemon, "afterwards").is_served()
