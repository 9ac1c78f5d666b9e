"""Two nodes on one PostgreSQL behind HAProxy, for the modules that test them, and a device that asks any of them."""

import contextlib
import secrets
import socket
from collections.abc import Iterator

import pytest
from cryptography.hazmat.primitives.asymmetric import ec

from tests.end_to_end import wire
from tests.helpers.balancer import Balancer
from tests.helpers.nodes import Node, Nodes, running_nodes
from tests.helpers.postgres import Postgres

__all__ = ["Asker", "balancer", "nodes"]


@pytest.fixture(scope="module")
def nodes(tmp_path_factory: pytest.TempPathFactory, postgres: Postgres) -> Iterator[Nodes]:
    with running_nodes(tmp_path_factory.mktemp("nodes"), postgres.create(f"nodes_{secrets.token_hex(4)}")) as running:
        yield running


@pytest.fixture
def balancer(nodes: Nodes) -> Balancer:
    """The balancer, with both nodes behind it."""
    assert nodes.balancer is not None
    nodes.balancer.wait_until_ready("node-1", "node-2")
    return nodes.balancer


class Asker:
    """A device that asks any node, by EST."""

    def __init__(self, nodes: Nodes, name: str) -> None:
        self.nodes = nodes
        self.name = f"{name}-{secrets.token_hex(3)}"
        self.secret = nodes.daemon.inspect(lambda core: core.devices.add("default", self.name, actor="test")).secret
        self.key = ec.generate_private_key(ec.SECP256R1())

    def ask(self, port: int, *, source: str = "127.0.0.1") -> wire.Answer:
        request = wire.enroll_request(
            wire.body_of(wire.csr(self.key, self.name)), authorization=wire.basic(self.name, self.secret)
        )
        with socket.create_connection(("127.0.0.1", port), 30, (source, 0)) as plain:
            tls = wire.context(self.nodes.daemon.root)
            with tls.wrap_socket(plain, server_hostname="localhost") as connection:
                connection.sendall(request)
                return wire.read_answer(connection)

    def is_refused_by(self, node: Node) -> None:
        """Ask the node itself; whatever it does, nothing is issued."""
        with contextlib.suppress(OSError):
            answer = self.ask(node.daemon.https_port)
            assert answer.status == 503, answer
        assert self.nodes.daemon.certificates_of(self.name) == []
