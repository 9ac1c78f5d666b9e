"""Limits on connections and requests, over real sockets from many addresses of the loopback network.

Each limit is small here, and holds for loopback, which is trusted otherwise.
"""

import contextlib
import fcntl
import http.client
import socket
import ssl
import statistics
import struct
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from enrolld.process import raise_descriptor_limit
from tests.end_to_end import scep_wire, wire
from tests.helpers.daemon import Daemon, eventually, running_daemon
from tests.helpers.processes import resident, worker_of
from tests.scep_server.client import CSR, Envelope, Request

ATTACKER, NEIGHBOUR = "127.0.0.66", "127.0.0.7"
PROXY_SIGNATURE = b"\r\n\r\n\x00\r\nQUIT\n"


def daemon_with(folder: Path, settings: str, *arguments: str) -> contextlib.AbstractContextManager[Daemon]:
    """A daemon whose enrolld.toml holds `settings`."""
    return running_daemon(folder, serve_arguments=arguments, settings=settings)


def connect(port: int, source: str = "127.0.0.1") -> socket.socket:
    return socket.create_connection(("127.0.0.1", port), timeout=30, source_address=(source, 0))


def is_closed(connection: socket.socket) -> bool:
    """Whether the server has closed it by now."""
    connection.setblocking(False)
    try:
        return connection.recv(1) == b""
    except BlockingIOError:
        return False
    except OSError:
        return True


def closed_of(connections: list[socket.socket]) -> int:
    return sum(is_closed(connection) for connection in connections)


def _come_one_by_one(stack: contextlib.ExitStack, daemon: Daemon, source: str, is_enough: Callable[[], bool]) -> None:
    """Newcomers from `source`, as long as it takes."""

    def another() -> bool | None:
        stack.enter_context(connect(daemon.http_port, source))
        return is_enough() or None

    eventually(another, what="the oldest are cut")


class Device:
    """A device that enrolls from whatever address."""

    def __init__(self, daemon: Daemon, name: str, *, secret: str | None = None) -> None:
        self.daemon = daemon
        self.name = name
        self.secret = secret or daemon.inspect(lambda core: core.devices.add("default", name, actor="test")).secret
        self.key = ec.generate_private_key(ec.SECP256R1())

    def request(self, **headers: str) -> bytes:
        body = wire.body_of(wire.csr(self.key, self.name))
        return wire.enroll_request(body, authorization=wire.basic(self.name, self.secret), headers=headers)

    def ask(self, source: str = "127.0.0.1", *, preface: bytes = b"", port: int | None = None) -> wire.Answer:
        with connect(port or self.daemon.https_port, source) as plain:
            plain.sendall(preface)
            with wire.context(self.daemon.root).wrap_socket(plain, server_hostname="localhost") as tls:
                tls.sendall(self.request())
                return wire.read_answer(tls)


def log_of(daemon: Daemon) -> str:
    return daemon.output.read_text(errors="replace")


@pytest.fixture(scope="module")
def crowded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemon]:
    limits = "[limits]\nconnections = 60\nconnections_per_source = 20\nhandshakes = 30\ntrusted = []\n"
    with daemon_with(tmp_path_factory.mktemp("crowded"), limits, "--workers", "2") as running:
        yield running


def test_a_source_with_too_many_idle_connections_loses_its_oldest_and_is_served_all_the_same(crowded: Daemon) -> None:
    device = Device(crowded, "neighbour-of-himself")
    with contextlib.ExitStack() as stack:
        idle = [stack.enter_context(connect(crowded.http_port, ATTACKER)) for _ in range(40)]
        assert device.ask(ATTACKER).status == 200
        # They wait for nothing, and after two seconds each newcomer costs one of them.
        _come_one_by_one(stack, crowded, ATTACKER, lambda: closed_of(idle) >= 15)
        assert device.ask(ATTACKER).status == 200
    assert "connections_of_source" in log_of(crowded)


def test_case_51_the_source_that_fills_the_house_makes_room_for_all_others(crowded: Daemon) -> None:
    device = Device(crowded, "honest")
    with contextlib.ExitStack() as stack:
        mine = [stack.enter_context(connect(crowded.http_port, NEIGHBOUR)) for _ in range(2)]
        crowd = [
            stack.enter_context(connect(crowded.http_port, f"127.0.9.{host}"))
            for host in range(1, 6)
            for _ in range(18)
        ]
        eventually(lambda: closed_of(crowd) >= 25 or None, what="the crowd loses some")
        assert device.ask(NEIGHBOUR).status == 200
        assert closed_of(mine) == 0, "who has few connections keeps them"
    assert "connections_in_all" in log_of(crowded)


def test_handshakes_that_do_not_end_make_room(crowded: Daemon) -> None:
    device = Device(crowded, "between-handshakes")
    hello = _client_hello()
    with contextlib.ExitStack() as stack:
        stalled = []
        for host in range(1, 5):
            for _ in range(17):
                connection = stack.enter_context(connect(crowded.https_port, f"127.0.8.{host}"))
                connection.sendall(hello[:50])
                stalled.append(connection)
        assert device.ask(NEIGHBOUR).status == 200
        assert closed_of(stalled) > 0
    assert "handshakes_in_all" in log_of(crowded) or "connections_in_all" in log_of(crowded)


def test_what_is_being_served_is_not_cut(crowded: Daemon) -> None:
    device = Device(crowded, "slow-body")
    request = device.request()
    with (
        connect(crowded.https_port, ATTACKER) as plain,
        wire.context(crowded.root).wrap_socket(plain, server_hostname="localhost") as tls,
        contextlib.ExitStack() as stack,
    ):
        tls.sendall(request[:-10])
        for host in range(30):
            for _ in range(4):
                stack.enter_context(connect(crowded.http_port, f"127.0.7.{host + 1}"))
        for _ in range(30):
            stack.enter_context(connect(crowded.http_port, ATTACKER))
        tls.sendall(request[-10:])
        assert wire.read_answer(tls).status == 200


def test_case_51_bodies_that_never_end_hold_no_more_memory_than_all_may(behind: Daemon) -> None:
    """Each announces 128 KiB and sends all but a byte; together they may hold 32 MiB."""
    raise_descriptor_limit()
    worker = worker_of(behind)
    before = resident(worker)
    head = b"POST /scep?operation=PKIOperation HTTP/1.1\r\nHost: localhost\r\nContent-Length: 131072\r\n\r\n"
    body = b"A" * 131_071
    with contextlib.ExitStack() as stack:
        senders = []
        for number in range(2_500):
            connection = stack.enter_context(connect(behind.http_port, f"127.0.6.{number % 50 + 1}"))
            with contextlib.suppress(OSError):
                connection.sendall(head + body)
            senders.append(connection)
        answer = wire.read_answer(senders[0])
        assert (answer.status, behind.explain(answer.request_id)["code"]) == (503, "bodies_in_all")
        assert Device(behind, "small-body").ask(NEIGHBOUR).status == 200
        held = resident(worker) - before
    print(f"2,500 bodies of 128 KiB held {held >> 20} MiB")
    assert held < 350 << 20, "without a bound it is more than 500 MiB"


def _client_hello() -> bytes:
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    session = ssl.create_default_context().wrap_bio(incoming, outgoing, server_hostname="localhost")
    with contextlib.suppress(ssl.SSLWantReadError):
        session.do_handshake()
    return outgoing.read()


@pytest.fixture(scope="module")
def strict(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemon]:
    limits = (
        "[limits]\nconnections_per_source = 20\nrefusals_per_source = 10\n"
        "certificates_per_device = 12\ncertificates_per_credential = 8\n"
        'trusted = ["127.0.0.9/32"]\n'
    )
    with daemon_with(tmp_path_factory.mktemp("strict"), limits) as running:
        yield running


def test_a_source_that_proves_nothing_is_told_to_come_later_but_a_good_credential_still_counts(strict: Daemon) -> None:
    stranger = Device(strict, "stranger", secret="aaaaaaaaaa.bbbbbbbbbbbbbbbbbbbbbbbbbbbb")
    answers = [stranger.ask(ATTACKER) for _ in range(12)]
    assert [answer.status for answer in answers] == [401] * 10 + [429] * 2
    last = answers[-1]
    assert last.text.startswith("Too many requests from here prove nothing; ask later. (request ")
    assert int(last.headers["retry-after"]) >= 5
    assert strict.explain(last.request_id)["code"] == "secret_unknown", "the operator is told the reason itself"
    assert Device(strict, "behind-the-same-address").ask(ATTACKER).status == 200
    assert stranger.ask(NEIGHBOUR).status == 401, "another address has a share of its own"


def test_the_oldest_idle_connection_of_a_source_goes_first(strict: Daemon) -> None:
    with contextlib.ExitStack() as stack:
        idle = [stack.enter_context(connect(strict.http_port, "127.0.0.70")) for _ in range(30)]
        assert closed_of(idle) == 0, "who came a moment ago is left alone"
        _come_one_by_one(stack, strict, "127.0.0.70", lambda: closed_of(idle) >= 10)
        closed = [is_closed(connection) for connection in idle]
        assert closed == sorted(closed, reverse=True)


def test_a_trusted_source_may_have_as_many_as_it_likes(strict: Daemon) -> None:
    with contextlib.ExitStack() as stack:
        idle = [stack.enter_context(connect(strict.http_port, "127.0.0.9")) for _ in range(30)]
        assert Device(strict, "trusted-crowd").ask("127.0.0.9").status == 200
        assert closed_of(idle) == 0


def test_a_client_that_waits_to_be_asked_for_its_credential_is_asked_whatever_its_address_did(strict: Daemon) -> None:
    stranger = Device(strict, "other-stranger", secret="aaaaaaaaaa.bbbbbbbbbbbbbbbbbbbbbbbbbbbb")
    assert [stranger.ask("127.0.0.67").status for _ in range(12)][-1] == 429
    with (
        connect(strict.https_port, "127.0.0.67") as plain,
        wire.context(strict.root).wrap_socket(plain, server_hostname="localhost") as tls,
    ):
        body = wire.body_of(wire.csr(stranger.key, "other-stranger"))
        tls.sendall(wire.enroll_request(body))
        answer = wire.read_answer(tls)
    assert (answer.status, answer.headers["www-authenticate"]) == (401, 'Basic realm="default"')


def test_a_trusted_address_is_told_the_reason_every_time(strict: Daemon) -> None:
    stranger = Device(strict, "trusted-stranger", secret="aaaaaaaaaa.bbbbbbbbbbbbbbbbbbbbbbbbbbbb")
    assert {stranger.ask("127.0.0.9").status for _ in range(15)} == {401}


def renewals(daemon: Daemon, device: Device, certificate: Path, key: Path, count: int) -> list[wire.Answer]:
    """As many renewals with one certificate, each for a new key."""
    tls = wire.context(daemon.root, certificate=certificate, key=key)
    answers = []
    for _ in range(count):
        body = wire.body_of(wire.csr(ec.generate_private_key(ec.SECP256R1()), device.name))
        request = wire.enroll_request(body, path="/.well-known/est/simplereenroll")
        answers.append(wire.exchange(daemon.https_port, tls, request))
    return answers


def credential(device: Device, answer: wire.Answer, folder: Path) -> tuple[Path, Path]:
    """The files of a certificate that was issued to the device, and of its key."""
    certificate, key = folder / "device.pem", folder / "device.key"
    certificate.write_bytes(answer.certificate.public_bytes(Encoding.PEM))
    key.write_bytes(device.key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    return certificate, key


def test_a_certificate_that_renews_too_often_is_told_when_to_come_again(strict: Daemon, tmp_path: Path) -> None:
    device = Device(strict, "eager")
    files = credential(device, device.ask(NEIGHBOUR), tmp_path)
    answers = renewals(strict, device, *files, 9)
    assert [answer.status for answer in answers] == [200] * 8 + [429]
    assert answers[-1].headers["retry-after"] == "450"  # 8 an hour
    assert strict.explain(answers[-1].request_id)["code"] == "rate_credential"
    assert len(strict.certificates_of("eager")) == 9
    assert Device(strict, "next-to-eager").ask(NEIGHBOUR).status == 200


def test_a_device_that_gets_too_many_certificates_by_several_credentials_is_told_so(
    strict: Daemon, tmp_path: Path
) -> None:
    device = Device(strict, "zealous")
    files = credential(device, device.ask(NEIGHBOUR), tmp_path)
    first = [answer.status for answer in renewals(strict, device, *files, 7)]
    device.secret = strict.ask("device", "secret", "zealous")["secret"]
    device.key = ec.generate_private_key(ec.SECP256R1())
    files = credential(device, device.ask(NEIGHBOUR), tmp_path)
    answers = renewals(strict, device, *files, 4)
    assert first + [answer.status for answer in answers] == [200] * 7 + [200] * 3 + [429]
    assert strict.explain(answers[-1].request_id)["code"] == "rate_device"


def test_the_same_certificate_given_again_uses_up_nothing(strict: Daemon) -> None:
    device = Device(strict, "forgetful")
    assert {device.ask(NEIGHBOUR).status for _ in range(30)} == {200}
    assert len(strict.certificates_of("forgetful")) == 1


@pytest.fixture(scope="module")
def behind(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemon]:
    proxy = '[proxy]\nhttps = "127.0.0.1:0"\nhttp = "127.0.0.1:0"\nfrom = ["127.0.0.30/31"]\n'
    with daemon_with(tmp_path_factory.mktemp("behind"), proxy) as running:
        yield running


def proxied_port(daemon: Daemon, kind: str) -> int:
    (port,) = [each["port"] for each in daemon.addresses["listeners"] if each["kind"] == kind]
    assert isinstance(port, int)
    return port


def proxy_header(peer: str, *, family: int = 0x11, command: int = 0x21, more: bytes = b"") -> bytes:
    if ":" in peer:
        family = 0x21
        block = socket.inet_pton(socket.AF_INET6, peer) + socket.inet_pton(socket.AF_INET6, "::1")
    else:
        block = socket.inet_aton(peer) + socket.inet_aton("127.0.0.1")
    block += struct.pack("!HH", 4711, 443) + more
    return PROXY_SIGNATURE + struct.pack("!BBH", command, family, len(block)) + block


PEERS = {"IPv4": "192.0.2.77", "IPv6": "2001:db8::77"}


@pytest.mark.parametrize("family", PEERS)
def test_the_address_that_a_balancer_tells_is_the_device_s(behind: Daemon, family: str) -> None:
    device = Device(behind, f"behind-{family.lower()}")
    tlv = b"\x01\x00\x08http/1.1" + b"\x04\x00\x64" + bytes(100)
    header = proxy_header(PEERS[family], more=tlv)
    answer = device.ask("127.0.0.30", preface=header, port=proxied_port(behind, "proxy-https"))
    assert answer.status == 200
    request_id = answer.headers["x-request-id"]
    line = next(line for line in log_of(behind).splitlines() if request_id in line)
    assert f'"client.ip":"{PEERS[family]}"' in line


def test_a_header_that_comes_byte_by_byte_is_read_and_what_follows_is_the_peer_s(behind: Daemon) -> None:
    with connect(proxied_port(behind, "proxy-http"), "127.0.0.31") as connection:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        whole = proxy_header("192.0.2.78") + b"GET /pki/default-ec-1.cer HTTP/1.1\r\nHost: localhost\r\n\r\n"
        for byte in whole:
            connection.sendall(bytes((byte,)))
        assert wire.read_answer(connection).status == 200


def test_the_balancer_s_own_health_check_is_served_under_its_own_address(behind: Daemon) -> None:
    with connect(proxied_port(behind, "proxy-http"), "127.0.0.30") as connection:
        connection.sendall(PROXY_SIGNATURE + b"\x20\x00\x00\x00" + b"GET /pki/nothing.cer HTTP/1.0\r\n\r\n")
        answer = wire.read_answer(connection)
    assert answer.status == 404
    line = next(line for line in log_of(behind).splitlines() if answer.request_id in line)
    assert '"client.ip":"127.0.0.30"' in line


BAD_HEADERS = {
    "no header": (b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n", "proxy_header_bad"),
    "version 1": (b"PROXY TCP4 192.0.2.1 192.0.2.2 1 2\r\n", "proxy_header_bad"),
    "unknown command": (proxy_header("192.0.2.1", command=0x22), "proxy_header_bad"),
    "unknown version": (proxy_header("192.0.2.1", command=0x31), "proxy_header_bad"),
    "datagrams": (proxy_header("192.0.2.1", family=0x12), "proxy_header_bad"),
    "too short for its addresses": (PROXY_SIGNATURE + b"\x21\x11\x00\x04\x7f\0\0\1", "proxy_header_bad"),
    "too long": (proxy_header("192.0.2.1", more=bytes(4000)), "proxy_header_bad"),
}


@pytest.mark.parametrize("case", BAD_HEADERS)
def test_a_balancer_that_does_not_speak_version_2_is_cut(behind: Daemon, case: str) -> None:
    sent, reason = BAD_HEADERS[case]
    before = log_of(behind).count(reason)
    with connect(proxied_port(behind, "proxy-http"), "127.0.0.30") as connection:
        connection.sendall(sent)
        eventually(lambda: is_closed(connection) or None, what="the connection is cut")
    eventually(lambda: log_of(behind).count(reason) > before or None, what=f"{reason} is logged")


def test_nobody_but_the_balancers_may_connect_where_they_do(behind: Daemon) -> None:
    with connect(proxied_port(behind, "proxy-https"), "127.0.0.32") as connection:
        with contextlib.suppress(OSError):
            connection.sendall(proxy_header("192.0.2.1"))
        eventually(lambda: is_closed(connection) or None, what="the connection is cut")
    assert "proxy_unknown" in log_of(behind)


def test_a_header_on_a_listener_that_is_not_marked_is_no_header(behind: Daemon) -> None:
    device = Device(behind, "pretender")
    with pytest.raises((OSError, ssl.SSLError)):
        device.ask("127.0.0.30", preface=proxy_header("192.0.2.99"))
    assert "192.0.2.99" not in log_of(behind)
    assert device.ask("127.0.0.30").status == 200


@pytest.fixture
def narrow(tmp_path: Path) -> Iterator[Daemon]:
    with daemon_with(tmp_path, "[limits]\nwaiting = 4\ntrusted = []\n") as running:
        yield running


def test_more_requests_than_can_wait_are_told_to_come_again_and_all_are_served_in_the_end(narrow: Daemon) -> None:
    """A hundred and more at once, while another program holds the store: 64 are worked on, 4 wait."""
    devices = [Device(narrow, f"crowd-{number}") for number in range(100)]
    statuses: list[tuple[int, str]] = []
    lock = threading.Lock()

    def ask(device: Device) -> None:
        answer = device.ask()
        with lock:
            statuses.append((answer.status, answer.headers.get("retry-after", "")))

    with (narrow.directory / "enrolld.db.lock").open() as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        threads = [threading.Thread(target=ask, args=(device,)) for device in devices]
        for thread in threads:
            thread.start()
        eventually(lambda: len(statuses) >= 30 or None, what="some are told to come again", seconds=30)
        fcntl.flock(file, fcntl.LOCK_UN)
    for thread in threads:
        thread.join(60)
    told = [again for status, again in statuses if status == 503]
    assert len(told) >= 30
    assert all(5 <= int(again) <= 30 for again in told)
    assert len(set(told)) > 3, "not all at the same time"
    assert sorted({status for status, _ in statuses}) == [200, 503]
    assert "overloaded" in log_of(narrow)
    assert {device.ask().status for device in devices} == {200}


def test_a_flood_of_what_costs_most_holds_up_its_own_address_and_nobody_else_s(tmp_path: Path) -> None:
    """Envelopes that hold no CSR: each keeps the event loop busy for 2 ms, whatever it took (RFC 3218)."""
    with daemon_with(tmp_path, "[limits]\nrefusals_per_source = 50\ntrusted = []\n") as daemon:
        junk = Request(envelope=Envelope(message=CSR, recipient=scep_wire.ra_of(daemon.http_port))).encode()
        over = threading.Event()
        answered: list[int] = []

        def flood() -> None:
            connection = http.client.HTTPConnection(
                "127.0.0.1", daemon.http_port, timeout=30, source_address=(ATTACKER, 0)
            )
            while not over.is_set():
                connection.request("POST", "/scep?operation=PKIOperation", junk)
                answer = connection.getresponse()
                answer.read()
                answered.append(answer.status)
            connection.close()

        threads = [threading.Thread(target=flood) for _ in range(24)]
        for thread in threads:
            thread.start()
        try:
            eventually(lambda: answered.count(429) > 100 or None, what="the flood is told to come later")
            seconds, statuses = [], []
            for number in range(10):
                device = Device(daemon, f"beside-the-flood-{number}")
                since = time.perf_counter()
                statuses.append(device.ask(NEIGHBOUR).status)
                seconds.append(time.perf_counter() - since)
            same = Device(daemon, "in-the-flood")
            behind = eventually(lambda: same.ask(ATTACKER) if not over.is_set() else None, what="an answer")
        finally:
            over.set()
            for thread in threads:
                thread.join(30)
    print(f"beside {len(answered)} refused messages: median {statistics.median(seconds) * 1000:.0f} ms")
    assert statuses == [200] * 10
    assert behind.status == 200, "a credential that verifies is served from there as well"
    assert set(answered) == {200, 429}, "no turn was lost to others"
    assert statistics.median(seconds) < 1.0
