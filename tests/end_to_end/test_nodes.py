"""Two nodes on one PostgreSQL behind HAProxy: stock clients, a realm edited at one, starting and stopping.

The balancer runs with `interop/haproxy/haproxy.cfg` itself.
"""

import asyncio
import contextlib
import json
import os
import re
import secrets
import socket
import threading
import time
import urllib.request
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import psycopg
import pytest
from cryptography import x509

from tests.end_to_end import (
    clients,
    test_curl_openssl,
    test_scep_clients,
    test_strongswan,
    two_nodes,
    wire,
)
from tests.end_to_end.two_nodes import Asker
from tests.helpers.balancer import Balancer
from tests.helpers.daemon import eventually, run_enrolld
from tests.helpers.mortal import is_alive
from tests.helpers.nodes import Node, Nodes
from tests.helpers.postgres import Postgres

pytestmark = pytest.mark.foreign

LONG = os.environ.get("ENROLLD_LONG") == "1"
EDITS = 100 if LONG else 12
MOST_RENEWALS = 6
DAY = 86_400

nodes, balancer = two_nodes.nodes, two_nodes.balancer
certmonger = test_scep_clients.certmonger
new_bench = test_scep_clients.new_bench


# --- stock clients through the balancer ------------------------------------------------------------------------------


def curl(nodes: Nodes, folder: Path, name: str, _: test_scep_clients.NewBench) -> "Stock":
    clients.needs("curl", "openssl")
    added = nodes.daemon.ask("device", "add", name)
    bench = test_curl_openssl.Bench(nodes.daemon, folder, added["username"], added["secret"])
    bench.recipe("cacerts")
    return Stock(bench.name, lambda: bench.recipe("enroll"), lambda: bench.recipe("rekey"), bench.verified)


def strongswan(nodes: Nodes, folder: Path, name: str, _: test_scep_clients.NewBench) -> "Stock":
    clients.needs("pki", "openssl")
    bench = test_strongswan.Bench(nodes.daemon, folder, name)
    bench.recipe("estca")
    return Stock(bench.name, lambda: bench.recipe("enroll"), lambda: bench.recipe("renew"), bench.verified)


def by_scep(client: test_scep_clients.Client) -> "Maker":
    def make(nodes: Nodes, _: Path, __: str, new_bench: test_scep_clients.NewBench) -> Stock:
        bench = new_bench(client, nodes.daemon)
        return Stock(bench.name, lambda: bench.run(client.enroll), lambda: bench.run(client.renew), bench.verified)

    return make


class Stock:
    """A stock client with a new device."""

    def __init__(
        self, name: str, enroll: Callable[[], object], renew: Callable[[], object], verified: Callable[[], object]
    ) -> None:
        self.name = name
        self.enroll, self.renew, self.verified = enroll, renew, verified


Maker = Callable[[Nodes, Path, str, test_scep_clients.NewBench], Stock]
STOCK: dict[str, Maker] = {
    "est-curl": curl,
    "est-strongswan": strongswan,
    "scep-strongswan": by_scep(test_scep_clients.STRONGSWAN),
    "scep-scepclient": by_scep(test_scep_clients.SCEPCLIENT),
    "scep-certmonger": by_scep(test_scep_clients.CERTMONGER),
}


def issuers_of(nodes: Nodes, device: str) -> set[str]:
    """The nodes whose log says that they issued for a device."""
    return {node.folder.name for node in nodes for line in node.issued() if line.get("enrolld.device") == device}


def writers_of(nodes: Nodes, device: str) -> set[int]:
    """The process ids of who wrote of these certificates in the audit trail. One that is busy begins a second chain."""
    rows = nodes.daemon.command("audit", "list", "--device", device, "--action", "certificate.issued")
    with psycopg.connect(nodes.daemon.store_url) as connection:
        pids: dict[str, int] = dict(connection.execute("SELECT name, pid FROM writer").fetchall())
    return {pids[row["writer"]] for row in rows}


@pytest.mark.parametrize("client", STOCK)
def test_a_stock_client_enrolls_and_renews_through_the_balancer_and_both_nodes_did_part_of_it(
    nodes: Nodes,
    balancer: Balancer,
    tmp_path: Path,
    new_name: Callable[[], str],
    new_bench: test_scep_clients.NewBench,
    client: str,
) -> None:
    stock = STOCK[client](nodes, tmp_path, f"nodes-{new_name()}", new_bench)
    stock.enroll()
    stock.verified()
    for renewals in range(1, MOST_RENEWALS + 1):
        stock.renew()
        stock.verified()
        if issuers_of(nodes, stock.name) == {"node-1", "node-2"}:
            break
        if renewals % 2:  # a recipe that makes two connections would have the same node each time
            for port in (balancer.https_port, balancer.http_port):
                socket.create_connection(("127.0.0.1", port), timeout=10).close()
    assert issuers_of(nodes, stock.name) == {"node-1", "node-2"}
    assert len(writers_of(nodes, stock.name)) == 2


def test_the_log_has_the_address_of_the_device_and_not_that_of_the_balancer(nodes: Nodes, balancer: Balancer) -> None:
    device = Asker(nodes, "addressed")
    answer = device.ask(balancer.https_port, source="127.0.0.77")
    assert answer.status == 200
    assert client_of(nodes, answer.headers["x-request-id"]) == "127.0.0.77"

    with socket.create_connection(("127.0.0.1", balancer.http_port), 10, ("127.0.0.78", 0)) as plain:
        plain.sendall(b"GET /pki/nothing.cer HTTP/1.1\r\nHost: localhost\r\n\r\n")
        refused = wire.read_answer(plain)
    assert client_of(nodes, refused.request_id) == "127.0.0.78"


def client_of(nodes: Nodes, request_id: str) -> str:
    """The address that the log has of who sent a request."""

    def found() -> str | None:
        lines = [line for node in nodes for line in node.log_lines() if line.get("enrolld.request_id") == request_id]
        return str(lines[0]["client.ip"]) if lines else None

    return eventually(found, what=f"request {request_id} is in a log")


def test_what_certificates_name_is_fetched_through_the_balancer(nodes: Nodes, balancer: Balancer) -> None:
    certificate = Asker(nodes, "with-a-crl").ask(nodes[1].daemon.https_port).certificate
    (point,) = certificate.extensions.get_extension_for_class(x509.CRLDistributionPoints).value
    assert point.full_name
    url = point.full_name[0].value
    assert url.startswith(f"http://localhost:{balancer.http_port}/pki/")
    nodes[0].daemon.ask("cert", "revoke", f"{certificate.serial_number:x}", "--reason", "keyCompromise")
    for _ in range(4):  # both nodes publish it
        with urllib.request.urlopen(url, timeout=10) as answer:  # noqa: S310  # http, as seen above
            crl = x509.load_der_x509_crl(answer.read())
        assert crl.get_revoked_certificate_by_serial_number(certificate.serial_number) is not None


# --- a realm edited at one node --------------------------------------------------------------------------------------


def days_of(certificate: x509.Certificate) -> int:
    return round((certificate.not_valid_after_utc - certificate.not_valid_before_utc).total_seconds() / DAY)


def test_a_realm_edited_at_one_node_is_live_at_both_at_once(nodes: Nodes, tmp_path: Path) -> None:
    """Devices renew at both nodes without pause: what is sent once an edit's command returned is of the new version."""
    seen: list[tuple[str, float, int]] = []  # node, when it was sent, days
    failures: list[BaseException] = []
    stop = threading.Event()

    def ask_on(node: Node, device: Asker) -> None:
        try:
            with node.daemon.core() as core, asyncio.Runner() as runner:
                while not stop.is_set():
                    device.secret = runner.run(core.devices.secret("default", device.name, actor="test")).secret
                    sent = time.monotonic()
                    answer = device.ask(node.daemon.https_port)
                    seen.append((node.folder.name, sent, days_of(answer.certificate)))
        except BaseException as exc:
            failures.append(exc)

    document = nodes.daemon.text("realm", "export", "default")
    head, device_profile = document.split("[profiles.device]")
    assert device_profile.count('validity = "90d"') == 2
    threads = [threading.Thread(target=ask_on, args=(node, Asker(nodes, "edited"))) for node in nodes]
    live: list[tuple[float, int]] = []  # since when at the latest, days
    for thread in threads:
        thread.start()
    try:
        for number in range(EDITS):
            days = 30 + number
            edited = device_profile.replace('validity = "90d"', f'validity = "{days}d"', 1)
            (tmp_path / "default.toml").write_text(f"{head}[profiles.device]{edited}")
            editor = nodes[number % 2]
            editor.daemon.ask("realm", "apply", str(tmp_path / "default.toml"))
            live.append((time.monotonic(), days))
            had = len(seen)
            for node in nodes:
                assert days_of(Asker(nodes, "at-once").ask(node.daemon.https_port).certificate) == days
            eventually(lambda: True if failures or len(seen) >= had + 4 else None, what="both go on renewing")  # noqa: B023
    finally:
        stop.set()
        for thread in threads:
            thread.join()
        (tmp_path / "default.toml").write_text(document)
        nodes.daemon.ask("realm", "apply", str(tmp_path / "default.toml"))
    if failures:
        raise failures[0]
    for name, sent, days in seen:
        due = [of for since, of in live if since <= sent]
        assert not due or days >= due[-1], f"{name} issued for {days} days, sent after the edit to {due[-1]} returned"
    assert {name for name, sent, _ in seen if sent >= live[0][0]} == {"node-1", "node-2"}
    assert len(live) == EDITS


# --- starting, stopping, and what is told ----------------------------------------------------------------------------


def test_two_nodes_started_at_the_same_moment_on_an_empty_database_have_one_ca(
    postgres: Postgres, tmp_path: Path
) -> None:
    for number in range(2):
        url = postgres.create(f"empty_{number}")
        key = secrets.token_bytes(32)
        started: list[Node] = []
        try:
            for name in ("node-1", "node-2"):
                started.append(Node(tmp_path / str(number) / name, url, unlock_key=key, waits=False))
            for node in started:
                node.wait_until_serving()
                node.wait_until_ready()
            assert len({node.daemon.addresses["ca_fingerprint_sha256"] for node in started}) == 1
            assert len({node.daemon.ca.read_text() for node in started}) == 1
            assert [row["realm"] for row in started[0].daemon.command("realm", "list")] == ["default"]
            with contextlib.closing(postgres.connect(f"empty_{number}")) as store:
                roots = store.execute("SELECT count(*) FROM audit WHERE action = 'realm.added'").fetchone()
            assert roots == (1,)
        finally:
            for node in started:
                node.stop()
        postgres.drop(f"empty_{number}")


def test_a_node_that_is_stopped_costs_no_device_a_request(nodes: Nodes, balancer: Balancer) -> None:
    """Devices ask once, through the balancer, while a node is stopped and started again: each is answered."""
    stop = threading.Event()
    failures: list[BaseException] = []
    answered: Counter[int] = Counter()

    def ask() -> None:
        try:
            device = Asker(nodes, "undisturbed")
            assert device.ask(balancer.https_port).status == 200
            while not stop.is_set():  # the same one again: a retransmission, on whichever node
                answered[device.ask(balancer.https_port).status] += 1
        except BaseException as exc:
            failures.append(exc)

    threads = [threading.Thread(target=ask) for _ in range(4)]
    for thread in threads:
        thread.start()
    node = nodes[1]
    try:
        before = answered.total()
        eventually(lambda: True if failures or answered.total() > before + 40 else None, what="they are answered")
        node.end()
        before = answered.total()
        eventually(lambda: True if failures or answered.total() > before + 40 else None, what="they go on")
        node.start()
        balancer.wait_until_ready("node-1", "node-2")
    finally:
        stop.set()
        for thread in threads:
            thread.join()
        if not is_alive(node.pid):
            node.start()
    if failures:
        raise failures[0]
    assert set(answered) == {200}


def test_the_trail_that_both_nodes_wrote_verifies(nodes: Nodes) -> None:
    Asker(nodes, "on-record").ask(nodes[0].daemon.https_port)
    Asker(nodes, "on-record").ask(nodes[1].daemon.https_port)
    done = run_enrolld(nodes[1].directory, "audit", "verify", "--json")
    assert done.returncode == 0, done.stdout.decode() + done.stderr.decode()
    assert json.loads(done.stdout)["findings"] == []


def test_the_password_of_the_store_stands_in_no_log_and_no_answer(nodes: Nodes, postgres: Postgres) -> None:
    told = [nodes.daemon.text("status"), nodes.daemon.text("status", "--json")]
    told += [run_enrolld(nodes[0].directory, "check").stdout.decode()]
    told += [node.log() for node in [*nodes, *nodes.others]]
    told += [(node.directory / "run" / "serve.json").read_text() for node in nodes]
    told += [json.dumps(nodes.daemon.command("audit", "list", "--limit", "1000"))]
    for text in told:
        assert postgres.password not in text
    assert re.search(r"postgresql://\S*127\.0\.0\.1", told[0]), "where the store is, is no secret"
