"""Metrics of a real daemon with two workers: exact sums, which go on whatever becomes of a worker; and its log lines.

Of a worker that is killed, what it counted since its last push (about a second) is lost; here each kill follows a
scrape, for which every worker tells all it has.
"""

import contextlib
import http.client
import json
import os
import re
import signal
import socket
import ssl
import time
import urllib.request
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from prometheus_client.parser import text_string_to_metric_families

from ca_core.core import Core
from enrolld.metrics.catalogue import METRICS
from tests.end_to_end import scep_wire, wire
from tests.helpers.daemon import Daemon, eventually, running_daemon

WORKERS = 2
Labels = frozenset[tuple[str, str]]
Scrape = dict[tuple[str, Labels], float]
SCEP_KEY = rsa.generate_private_key(65537, 2048)


@pytest.fixture(scope="module")
def daemon(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemon]:
    arguments = ["--admin", "127.0.0.1:0", "--workers", str(WORKERS)]
    with running_daemon(tmp_path_factory.mktemp("metrics"), serve_arguments=arguments) as running:
        yield running


def scrape(daemon: Daemon) -> Scrape:
    with urllib.request.urlopen(f"{daemon.addresses['admin'][0]}/metrics", timeout=10) as answer:  # noqa: S310  # http
        text = answer.read().decode()
    return {
        (sample.name, frozenset(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def total(found: Scrape, name: str, **labels: str) -> float:
    """The sum of the series that have these labels."""
    chosen = set(labels.items())
    return sum(value for (one, its), value in found.items() if one == name and chosen <= its)


def counters(found: Scrape) -> Scrape:
    grows = re.compile(r"_(total|bucket|count|sum)$")
    return {key: value for key, value in found.items() if grows.search(key[0])}


def assert_nothing_went_back(before: Scrape, after: Scrape) -> None:
    assert {key: (value, after.get(key)) for key, value in counters(before).items() if after.get(key, -1) < value} == {}


def pids(daemon: Daemon) -> set[int]:
    children = Path(f"/proc/{daemon.process.pid}/task/{daemon.process.pid}/children").read_text().split()
    return {int(child) for child in children if b"enrolld.worker" in Path(f"/proc/{child}/cmdline").read_bytes()}


def in_parallel(acts: Sequence[Callable[[], object]]) -> list[Any]:
    """From several connections at once, so that both workers have their part."""
    with ThreadPoolExecutor(8) as pool:
        return [future.result() for future in [pool.submit(act) for act in acts]]


def new_devices(daemon: Daemon, prefix: str, count: int) -> list[tuple[str, str]]:
    """Names and secrets."""

    async def add(core: Core) -> list[tuple[str, str]]:
        names = [f"{prefix}-{number}" for number in range(count)]
        return [(name, (await core.devices.add("default", name, actor="operator:test")).secret) for name in names]

    return daemon.inspect(add)


def enroll_by_est(daemon: Daemon, name: str, secret: str) -> wire.Answer:
    key = ec.generate_private_key(ec.SECP256R1())
    body = wire.body_of(wire.csr(key, name))
    request = wire.enroll_request(body, authorization=wire.basic(name, secret), headers={"Connection": "close"})
    return wire.exchange(daemon.https_port, wire.context(daemon.root), request)


def enroll_by_scep(daemon: Daemon, ra: bytes, name: str, secret: str) -> bytes:
    key = rsa.generate_private_key(65537, 2048)
    return scep_wire.post(daemon.http_port, scep_wire.enroll_message(ra, key, name, secret))


def get(port: int, path: str, method: str = "GET") -> int:
    with contextlib.closing(http.client.HTTPConnection("127.0.0.1", port, timeout=10)) as client:
        client.request(method, path)
        return client.getresponse().status


def lines(daemon: Daemon) -> list[dict[str, Any]]:
    found = [json.loads(line) for line in daemon.output.read_text().splitlines() if line.startswith("{")]
    return [line for line in found if line.get("event.action") == "request"]


def line_of(daemon: Daemon, request_id: str) -> dict[str, Any]:
    def look() -> dict[str, Any] | None:
        return next((line for line in lines(daemon) if line["enrolld.request_id"] == request_id), None)

    return eventually(look, what=f"the line of {request_id}")


def test_sums_over_both_workers_are_exact(daemon: Daemon) -> None:
    est, scep, wrong = new_devices(daemon, "est", 24), new_devices(daemon, "scep", 6), 20
    ra = scep_wire.ra_of(daemon.http_port)
    before = scrape(daemon)
    logged = len(lines(daemon))
    acts: list[Callable[[], object]] = [lambda one=one: enroll_by_est(daemon, *one) for one in est]  # type: ignore[misc]
    acts += [lambda one=one: enroll_by_scep(daemon, ra, *one) for one in scep]  # type: ignore[misc]
    acts += [lambda: enroll_by_est(daemon, "est-0", "a" * 26)] * wrong
    acts += [lambda: get(daemon.http_port, "/pki/nothing.cer")] * 5
    acts += [lambda: get(daemon.http_port, "/pki/default-ec-1/0.crl")] * 7
    answers = in_parallel(acts)
    assert [answer.status for answer in answers[:24]] == [200] * 24
    assert all(scep_wire.succeeded(answer) for answer in answers[24:30])
    assert {answer.status for answer in answers[30:50]} == {401}
    after = scrape(daemon)
    grown = {key: value - before.get(key, 0) for key, value in after.items()}
    requests = "enrolld_requests_total"
    assert total(grown, requests, realm="default", protocol="est", operation="simpleenroll", outcome="issued") == 24
    assert total(grown, requests, realm="default", protocol="scep", operation="PKCSReq", outcome="issued") == 6
    assert total(grown, requests, realm="default", protocol="est", outcome="refused") == wrong
    assert total(grown, requests, realm="", protocol="http", operation="certificate", outcome="refused") == 5
    assert total(grown, requests, protocol="http", operation="crl", outcome="served") == 7
    assert total(grown, requests) == len(acts)
    assert total(grown, "enrolld_refusals_total", code="secret_unknown", realm="default", protocol="est") == wrong
    assert total(grown, "enrolld_refusals_total", code="http_not_found", realm="", protocol="http") == 5
    assert total(grown, "enrolld_refusals_total") == wrong + 5
    for protocol, operation, count in (("est", "simpleenroll", 24 + wrong), ("scep", "PKCSReq", 6)):
        asked = {"protocol": protocol, "operation": operation}
        assert total(grown, "enrolld_request_duration_seconds_count", **asked) == count
        assert total(grown, "enrolld_request_duration_seconds_bucket", **asked, le="+Inf") == count
        assert 0 < total(grown, "enrolld_request_duration_seconds_sum", **asked) < 600
    assert total(grown, "enrolld_tls_handshakes_total", version="TLSv1.3", outcome="ok") == 24 + wrong
    assert total(grown, "enrolld_sign_duration_seconds_count", backend="software") >= 30
    assert total(grown, "enrolld_certificates", realm="default", state="valid") == 30
    assert total(grown, "enrolld_devices", realm="default", state="active") == 30
    assert total(grown, "enrolld_secrets", realm="default", state="spent") == 30
    assert total(grown, "enrolld_audit_events_total", action="certificate.issued") == 30
    assert total(grown, "enrolld_commit_batch_size_sum") >= 30
    shares = Counter(line["process.name"] for line in lines(daemon)[logged:])
    assert set(shares) == {"worker-1", "worker-2"}, "both served"
    assert shares.total() == len(acts), "one line each"


def test_whatever_answers_says_the_same(daemon: Daemon) -> None:
    moving = re.compile("_worker_|_job_|_commit_|_store_")
    found = [{key: value for key, value in scrape(daemon).items() if not moving.search(key[0])} for _ in range(10)]
    assert all(one == found[0] for one in found)
    assert found[0]["enrolld_workers", frozenset()] == WORKERS


def test_every_metric_has_help_and_type_and_every_label_a_known_value(daemon: Daemon) -> None:
    with urllib.request.urlopen(f"{daemon.addresses['admin'][0]}/metrics", timeout=10) as answer:  # noqa: S310  # http
        text = answer.read().decode()
    for metric in METRICS.values():
        assert f"# HELP {metric.name} " in text
        assert f"# TYPE {metric.name} {metric.type.value}\n" in text
    for name, labels in scrape(daemon):
        metric = METRICS.get(name) or METRICS[name.rpartition("_")[0]]
        its = {key: value for key, value in labels if key != "le"}
        assert {label.name for label in metric.labels} == set(its)
        assert all(label.takes(its[label.name]) for label in metric.labels), (name, labels)


def test_only_the_admin_listener_tells_metrics(daemon: Daemon) -> None:
    assert get(daemon.http_port, "/metrics") == 404
    request = b"GET /metrics HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"
    assert wire.exchange(daemon.https_port, wire.context(daemon.root), request).status == 404


@pytest.mark.parametrize(
    ("version", "curve", "group"),
    [
        pytest.param(ssl.TLSVersion.TLSv1_2, "prime256v1", "secp256r1", id="tls-1.2-p-256"),
        pytest.param(ssl.TLSVersion.TLSv1_3, "prime256v1", "secp256r1", id="tls-1.3-p-256"),
        pytest.param(ssl.TLSVersion.TLSv1_3, "secp384r1", "secp384r1", id="tls-1.3-p-384"),
        pytest.param(ssl.TLSVersion.TLSv1_3, "secp521r1", "secp521r1", id="tls-1.3-p-521"),
    ],
)
def test_a_handshake_is_counted_by_version_and_group(
    daemon: Daemon, version: ssl.TLSVersion, curve: str, group: str
) -> None:
    tls = wire.context(daemon.root)
    tls.minimum_version = tls.maximum_version = version
    tls.set_ecdh_curve(curve)
    before = scrape(daemon)
    wire.exchange(daemon.https_port, tls, b"GET / HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
    name = version.name.replace("_", ".")
    asked = {"version": name, "group": group, "outcome": "ok"}
    handshakes = "enrolld_tls_handshakes_total"
    assert total(scrape(daemon), handshakes, **asked) == total(before, handshakes, **asked) + 1


def test_a_handshake_that_fails_is_counted_so(daemon: Daemon) -> None:
    before = scrape(daemon)
    with pytest.raises(ssl.SSLError):
        wire.exchange(daemon.https_port, ssl.create_default_context(), b"")
    failed = {"version": "", "group": "", "outcome": "failed"}
    expected = total(before, "enrolld_tls_handshakes_total", **failed) + 1
    eventually(
        lambda: True if total(scrape(daemon), "enrolld_tls_handshakes_total", **failed) == expected else None,
        what="the failure is counted",
    )
    code = {"code": "tls_server_not_trusted", "protocol": "http", "realm": ""}
    assert total(scrape(daemon), "enrolld_refusals_total", **code) >= 1


def knock(port: int, data: bytes) -> None:
    with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 10) as peer:
        peer.sendall(data)
        while peer.recv(4096):
            pass


def test_junk_makes_no_label_values(daemon: Daemon) -> None:
    tls = wire.context(daemon.root)
    heads = "Host: localhost\r\nConnection: close\r\nContent-Length: 0\r\n\r\n"

    def one(number: int) -> None:
        for path in (f"/.well-known/est/realm-{number}/cacerts", f"/.well-known/est/op{number}", f"/{number}"):
            wire.exchange(daemon.https_port, tls, f"GET {path} HTTP/1.1\r\n{heads}".encode())
        wire.exchange(daemon.https_port, tls, f"BREW{number} /.well-known/est/cacerts HTTP/1.1\r\n{heads}".encode())
        for path in (f"/scep/r{number}?operation=PKIOperation", f"/scep?operation=Op{number}", f"/pki/i{number}.cer"):
            get(daemon.http_port, path)
            get(daemon.http_port, path, "DELETE")
        knock(daemon.http_port, b"\x16\x03\x01" + bytes([number]) * 100)
        knock(daemon.https_port, bytes([number]) * 30)
        for data in (f"GET / HTTP/{number}.7\r\n\r\n", f"{number} {number}\r\n\r\n"):
            knock(daemon.http_port, data.encode())

    in_parallel([lambda: one(0)])
    before = scrape(daemon)
    in_parallel([lambda number=number: one(number) for number in range(1, 16)])  # type: ignore[misc]
    after = scrape(daemon)
    assert total(after, "enrolld_requests_total") > total(before, "enrolld_requests_total") + 100
    new = {key for key in set(after) - set(before) if not re.search("_worker_|_job_|_commit_", key[0])}
    assert {key[0] for key in new} <= {"enrolld_refusals_total"}, "other ways to be no HTTP, from one closed set"
    assert len(new) < 8
    realms = {value for _, labels in after for name, value in labels if name == "realm"}
    assert realms == {"default", ""}


def test_counters_go_on_when_a_worker_is_killed(daemon: Daemon) -> None:
    in_parallel([lambda: get(daemon.http_port, "/pki/default-ec-1.cer")] * 20)
    before, old = scrape(daemon), pids(daemon)
    assert len(old) == WORKERS
    victim = min(old)
    os.kill(victim, signal.SIGKILL)
    during = scrape(daemon)
    assert_nothing_went_back(before, during)

    def replaced() -> bool | None:
        found = scrape(daemon)
        assert_nothing_went_back(before, found)
        now = pids(daemon)
        return True if len(now) == WORKERS and victim not in now and total(found, "enrolld_workers") == 2 else None

    eventually(replaced, what="another worker serves", seconds=60)
    in_parallel([lambda: get(daemon.http_port, "/pki/default-ec-1.cer")] * 20)
    after = scrape(daemon)
    asked = {"protocol": "http", "operation": "certificate", "outcome": "served"}
    assert total(after, "enrolld_requests_total", **asked) == total(before, "enrolld_requests_total", **asked) + 20
    assert total(after, "enrolld_worker_restarts_total") == total(before, "enrolld_worker_restarts_total") + 1


@pytest.mark.parametrize(
    ("order", "sentence", "reloads"),
    [
        pytest.param(signal.SIGUSR2, "SIGUSR2: every worker is a new process", 0, id="restart"),
        pytest.param(signal.SIGHUP, "SIGHUP: the configuration was read again", 1, id="reload"),
    ],
)
def test_counters_lose_nothing_when_workers_are_replaced(
    daemon: Daemon, order: signal.Signals, sentence: str, reloads: int
) -> None:
    before, old = scrape(daemon), pids(daemon)
    done = daemon.output.read_text().count(sentence)
    os.kill(daemon.process.pid, order)
    asked = 0
    while daemon.output.read_text().count(sentence) == done:  # requests all the while, to old workers and to new
        in_parallel([lambda: get(daemon.http_port, "/pki/default-ec-1.cer")] * 8)
        asked += 8
        assert_nothing_went_back(before, scrape(daemon))
        assert asked < 100_000
    served = {"protocol": "http", "operation": "certificate", "outcome": "served"}
    wanted = total(before, "enrolld_requests_total", **served) + asked

    def all_counted() -> bool | None:
        return total(scrape(daemon), "enrolld_requests_total", **served) == wanted or None

    eventually(all_counted, what=f"{asked} more requests are counted")  # a client may be faster than who counts it
    after = scrape(daemon)
    assert_nothing_went_back(before, after)
    assert not old & pids(daemon)
    assert total(after, "enrolld_worker_restarts_total") == total(before, "enrolld_worker_restarts_total"), "in order"
    ok = total(after, "enrolld_config_reloads_total", outcome="ok")
    assert ok == total(before, "enrolld_config_reloads_total", outcome="ok") + reloads


def test_what_a_worker_serves_while_it_leaves_is_counted(daemon: Daemon) -> None:
    """These are its last words: it is gone as soon as it has answered, long before it would push again."""
    line, rest = b"GET /pki/default-ec-1.cer HTTP/1.1\r\n", b"Host: localhost\r\n\r\n"
    served = {"protocol": "http", "operation": "certificate", "outcome": "served"}
    with contextlib.ExitStack() as stack:
        opened = [socket.create_connection(("127.0.0.1", daemon.http_port), 20) for _ in range(16)]
        for peer in opened:
            stack.enter_context(peer)
            peer.sendall(line + rest)
            assert wire.read_answer(peer).status == 200
        idle, begun = opened[::2], opened[1::2]
        for peer in begun:
            peer.sendall(line)
        before = total(scrape(daemon), "enrolld_requests_total", **served)
        os.kill(daemon.process.pid, signal.SIGHUP)
        for peer in idle:
            assert peer.recv(1) == b"", "closed: its worker is leaving"
        for peer in begun:
            peer.sendall(rest)
        assert [wire.read_answer(peer).status for peer in begun] == [200] * 8

    def told() -> bool | None:
        return total(scrape(daemon), "enrolld_requests_total", **served) >= before + 8 or None

    eventually(told, what="their last words are in")
    assert total(scrape(daemon), "enrolld_requests_total", **served) == before + 8


def test_a_configuration_that_is_not_taken_is_counted(daemon: Daemon) -> None:
    path = daemon.directory / "enrolld.toml"
    text, before = path.read_text(), scrape(daemon)
    try:
        path.write_text("names = 3\n" + text.replace("names =", "# names ="))
        os.kill(daemon.process.pid, signal.SIGHUP)
        failed = total(before, "enrolld_config_reloads_total", outcome="failed") + 1
        eventually(
            lambda: True if total(scrape(daemon), "enrolld_config_reloads_total", outcome="failed") == failed else None,
            what="the failure is counted",
        )
    finally:
        path.write_text(text)


def test_a_worker_that_is_stuck_does_not_hold_up_a_scrape_and_counts_as_it_last_did(daemon: Daemon) -> None:
    in_parallel([lambda: get(daemon.http_port, "/pki/default-ec-1.cer")] * 20)
    before = scrape(daemon)
    stuck = min(pids(daemon))
    os.kill(stuck, signal.SIGSTOP)
    try:
        for _ in range(3):
            began = time.monotonic()
            during = scrape(daemon)
            assert time.monotonic() - began < 4
            assert_nothing_went_back(before, during)
        assert total(during, "enrolld_workers") == WORKERS
    finally:
        os.kill(stuck, signal.SIGCONT)
    assert_nothing_went_back(during, scrape(daemon))


def test_the_line_of_a_request_says_who_proved_to_ask_and_nothing_secret(daemon: Daemon, tmp_path: Path) -> None:
    ((name, secret),) = new_devices(daemon, "logged", 1)
    key = ec.generate_private_key(ec.SECP256R1())
    body = wire.body_of(wire.csr(key, name))
    first = wire.exchange(
        daemon.https_port,
        wire.context(daemon.root),
        wire.enroll_request(body, authorization=wire.basic(name, secret), headers={"Connection": "close"}),
    )
    certificate = first.certificate
    found = line_of(daemon, first.headers["x-request-id"])
    expected = {
        "event.outcome": "success",
        "enrolld.outcome": "issued",
        "enrolld.realm": "default",
        "enrolld.operation": "simpleenroll",
        "enrolld.device": name,
        "user.name": name,
        "http.response.status_code": 200,
        "tls.version": "TLSv1.3",
        "client.ip": "127.0.0.1",
    }
    assert {field: found.get(field) for field in expected} == expected
    assert found["enrolld.profile"]
    assert re.fullmatch("[0-9a-f]{64}", found["enrolld.key_sha256"])
    assert found["event.duration"] > 100_000
    assert "tls.client.x509.serial_number" not in found

    (tmp_path / "device.pem").write_bytes(certificate.public_bytes(Encoding.PEM))
    pkcs8 = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    (tmp_path / "device.key").write_bytes(pkcs8)
    shown = wire.context(daemon.root, certificate=tmp_path / "device.pem", key=tmp_path / "device.key")
    path = "/.well-known/est/simplereenroll"
    again = wire.exchange(
        daemon.https_port, shown, wire.enroll_request(body, path=path, headers={"Connection": "close"})
    )
    found = line_of(daemon, again.headers["x-request-id"])
    assert found["tls.client.x509.serial_number"] == format(certificate.serial_number, "X")
    assert (found["enrolld.device"], found["enrolld.outcome"]) == (name, "issued")
    assert "user.name" not in found, "no user name proved anything"
    assert secret not in daemon.output.read_text()


def test_the_line_of_a_refusal_names_nobody_who_was_only_claimed(daemon: Daemon) -> None:
    ((name, _),) = new_devices(daemon, "claimed", 1)
    refused = enroll_by_est(daemon, name, "b" * 26)
    found = line_of(daemon, refused.headers["x-request-id"])
    assert (found["event.code"], found["event.outcome"]) == ("secret_unknown", "failure")
    assert not {"enrolld.device", "user.name", "enrolld.profile", "enrolld.key_sha256", "enrolld.outcome"} & set(found)
    assert name not in json.dumps(found)


def test_the_line_of_a_scep_request_says_the_same(daemon: Daemon) -> None:
    ((name, secret),) = new_devices(daemon, "scep-logged", 1)
    message = scep_wire.enroll_message(scep_wire.ra_of(daemon.http_port), SCEP_KEY, name, secret)
    assert scep_wire.succeeded(scep_wire.post(daemon.http_port, message))

    def look() -> dict[str, Any] | None:
        return next((line for line in lines(daemon) if line.get("enrolld.device") == name), None)

    found = eventually(look, what="the line of a SCEP request")
    assert (found["enrolld.operation"], found["enrolld.outcome"], found["user.name"]) == ("PKCSReq", "issued", name)
    assert found["enrolld.transaction_id"] == scep_wire.transaction_of(SCEP_KEY).decode()
    assert secret not in daemon.output.read_text()
