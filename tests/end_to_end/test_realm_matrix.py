"""A sample of the realm matrix over real sockets: the same generator, which here knocks by EST and SCEP at a daemon."""

import asyncio
import itertools
import socket
import ssl
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from ca_core.authority.sealing import UnlockKey
from ca_core.core import Core, CoreConfig
from ca_core.errors import OperatorError
from ca_core.matrix import OPERATIONS, Credentials, Ground, Kind, Outcome, Relation, Report, Shown, Size, Wire, run
from ca_core.matrix.cells import Cell
from tests.end_to_end import scep_wire, wire
from tests.end_to_end.conftest import OFTEN
from tests.helpers.daemon import Daemon, running_daemon
from tests.helpers.matrix import policy

WAYS = ("secret", "idevid", "challenge", "approval")
_PENDING = bytes.fromhex("060a6086480186f8450109033103130133")  # pkiStatus 3
_TYPES = {Wire.PKCS_REQ: 19, Wire.RENEWAL_REQ: 17, Wire.CERT_POLL: 20}


@dataclass
class SocketDoor:
    """Asks a daemon as devices do; what a refusal's code is, the operator's explanation of it says."""

    daemon: Daemon
    core: Core
    ra: dict[str, bytes] = field(default_factory=dict)
    numbers: Iterator[int] = field(default_factory=itertools.count)

    async def ask(self, realm: str, shown: Shown, operation: Wire) -> Outcome:
        by = self._by_est if operation in OPERATIONS["est"] else self._by_scep
        found = await asyncio.to_thread(by, realm, shown, operation)
        return found if isinstance(found, Outcome) else Outcome(await self._code_of(found))

    def _by_est(self, realm: str, shown: Shown, operation: Wire) -> Outcome | str:
        tls = wire.context(self.daemon.root)
        if shown.chain:
            show(tls, shown)
        request = wire.enroll_request(
            wire.body_of(shown.csr()),
            path=f"/.well-known/est/{realm}/{operation.value}",
            authorization=wire.basic("", shown.secret) if shown.secret is not None else None,
        )
        with (
            self._connected(self.daemon.https_port) as plain,
            tls.wrap_socket(plain, server_hostname="localhost") as connection,
        ):
            connection.sendall(request)
            got = wire.read_answer(connection)
        if got.status == 202:
            return Outcome("pending")
        if got.status == 200:
            return Outcome("issued", got.certificate.public_bytes(Encoding.DER))
        return got.request_id

    def _by_scep(self, realm: str, shown: Shown, operation: Wire) -> Outcome | str:
        port, path = self.daemon.http_port, f"/scep/{realm}"
        if realm not in self.ra:
            self.ra[realm] = scep_wire.ra_of(port, path)
        assert isinstance(shown.key, rsa.RSAPrivateKey)
        assert isinstance(shown.signer, rsa.RSAPrivateKey)
        message = scep_wire.enroll_message(
            self.ra[realm],
            shown.key,
            shown.device,
            shown.secret,
            signer=(shown.signer, shown.chain[0]) if shown.chain else None,
            message_type=_TYPES[operation],
            transaction=shown.transaction(operation).encode(),
        )
        head = (
            f"POST {path}?operation=PKIOperation HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(message)}\r\n\r\n"
        )
        with self._connected(port) as connection:
            connection.sendall(head.encode() + message)
            reply = wire.read_answer(connection).body
        if _PENDING in reply:
            return Outcome("pending")
        if scep_wire.succeeded(reply):
            return Outcome("issued", scep_wire.issued_in(reply, shown.signer).public_bytes(Encoding.DER))
        return scep_wire.told_in(reply)

    def _connected(self, port: int) -> socket.socket:
        """A connection from a network of its own: of one alone, only so many refusals are kept."""
        number = next(self.numbers)
        source = f"127.{number // 250 % 250 + 1}.{number % 250 + 1}.1"
        return socket.create_connection(("127.0.0.1", port), timeout=30, source_address=(source, 0))

    async def _code_of(self, request_id: str) -> str:
        await asyncio.sleep(0.02)  # of all networks together, fifty refusals a second are kept
        for _ in range(1000):
            try:
                return str((await self.core.attempts.explain(request_id)).code)
            except OperatorError:
                await asyncio.sleep(0.01)  # refusals of who proved nothing are written with a delay
        raise AssertionError(f"{request_id} is never explained")


def show(tls: ssl.SSLContext, shown: Shown) -> None:
    """Have the client show the chain."""
    assert shown.chain_key is not None
    with tempfile.NamedTemporaryFile(suffix=".pem") as file:
        for der in shown.chain:
            file.write(x509.load_der_x509_certificate(der).public_bytes(Encoding.PEM))
        file.write(shown.chain_key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
        file.flush()
        tls.load_cert_chain(file.name)


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemon]:
    with running_daemon(
        tmp_path_factory.mktemp("matrix"), settings=OFTEN, serve_arguments=("--workers", "1")
    ) as daemon:
        daemon.ask("realm", "add", "other")
        yield daemon


def open_core(daemon: Daemon) -> Core:
    key = UnlockKey.load(daemon.directory / "keys" / "unlock")
    url = f"sqlite:///{daemon.directory / 'enrolld.db'}"
    return Core.open(CoreConfig(url, key, str(daemon.addresses["public_url"]), demo=bool(daemon.addresses["demo"])))


async def play(daemon: Daemon, size: Size, ways: tuple[str, ...]) -> Report:
    core = open_core(daemon)
    try:
        report = Report()
        ground = await Ground.make(core, policy(ways), report)
        await core.ra_certificates.ensure()
        door = SocketDoor(daemon, core)
        if "scep" in size.protocols:
            made = Credentials(ground, door, lambda: rsa.generate_private_key(65537, 2048))
        else:
            made = Credentials(ground, door)
        return await run(ground, made, report, size)
    finally:
        core.close()


@pytest.mark.parametrize(
    ("protocol", "relations", "least"),
    [
        pytest.param("est", tuple(Relation), 70, id="est"),
        pytest.param("scep", (Relation.UNRELATED, Relation.EQUAL_NAMES, Relation.SAME_KEY), 60, id="scep"),
    ],
)
async def test_case_37_a_credential_of_one_realm_is_refused_by_the_other_over_sockets(
    served: Daemon, protocol: str, relations: tuple[Relation, ...], least: int
) -> None:
    cells: list[Cell] = []
    # A realm that takes passwords asks an EST client for one, so approval by itself is played in realms of its own.
    for ways in (tuple(way for way in WAYS if way != "approval"), ("approval",)):
        report = await play(served, Size(protocols=(protocol,), relations=relations), ways)
        assert report.failures == []
        assert report.skipped == []
        cells += [cell for cell in report.cells if cell.credential is not Kind.ADMIN]
    print(f"the realm matrix by {protocol}: {len(cells)} cells")
    assert {cell.credential for cell in cells} == set(Kind) - {Kind.ADMIN, Kind.WEBHOOK}
    assert len(cells) >= least


@pytest.mark.parametrize(
    "path", ["/scep/gamma", "/scep/..%2fother", "/scep/other%2f..", "/scep/OTHER", "/scep/other.x"]
)
def test_case_38_an_unknown_path_is_served_by_no_realm(served: Daemon, path: str) -> None:
    got = wire.exchange_plainly(
        served.http_port, f"GET {path}?operation=GetCACert HTTP/1.1\r\nHost: localhost\r\n\r\n".encode()
    )
    assert got.status == 404


def test_case_s22_the_ca_ident_of_a_request_chooses_no_other_realm(served: Daemon) -> None:
    own = scep_wire.ra_of(served.http_port)
    for named in ("other", "other-rsa-1", "..%2fother", "x" * 4096):
        found = wire.exchange_plainly(
            served.http_port,
            f"GET /scep?operation=GetCACert&message={named} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode(),
        )
        assert found.status == 200
        assert own in found.body
