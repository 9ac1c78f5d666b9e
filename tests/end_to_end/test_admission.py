"""Each way of admission, over real sockets, by EST and by SCEP: all that it takes gives a certificate, less gives none.

One daemon; its realm is given one way after the other. The webhook is a real server, which also stalls, redirects, lies
and dies.
"""

import asyncio
import contextlib
import itertools
import json
import ssl
import tempfile
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from ca_core.errors import OperatorError
from tests.end_to_end import scep_wire, wire
from tests.helpers import factory
from tests.helpers.admission import admit_by
from tests.helpers.core import ME
from tests.helpers.daemon import Daemon, eventually, running_daemon
from tests.helpers.webhooks import ALLOWED, Asked, Hook, answer, webhook

CHALLENGE = "a-challenge-of-thirty-characters"
KEY = "0123456789abcdef0123456789abcdef"
EST, SCEP = "est", "scep"
_PENDING = bytes.fromhex("060a6086480186f8450109033103130133")  # pkiStatus 3
_numbers = itertools.count(1)

BASES = ["secret", "idevid", "secret + idevid", "challenge", "challenge + idevid", "open", ""]
CONDITIONS = ["", "webhook", "approval", "webhook + approval"]
WAYS = [
    " + ".join(filter(None, (base, condition)))
    for base, condition in itertools.product(BASES, CONDITIONS)
    if base or "approval" in condition
]


@dataclass
class Place:
    """A daemon, the manufacturer that its realm trusts, and the realm's webhook."""

    daemon: Daemon
    anchor: factory.Made
    hook: "Server"

    def admit_by(self, *ways: str, **settings: Any) -> None:
        """Put the ways into force."""
        document = {"url": f"http://127.0.0.1:{self.hook.port}/ask", "key": "hooks"}
        settings = {"open": any("open" in way for way in ways), "webhook": document, **settings}
        self.daemon.inspect(lambda core: admit_by(core, *ways, **settings))

    def why(self, request_id: str) -> str:
        """The code of a refusal; refusals of who proved nothing are written with a delay."""

        async def explain(core: Any) -> str | None:
            try:
                return str((await core.attempts.explain(request_id)).code)
            except OperatorError:
                return None

        return eventually(lambda: self.daemon.inspect(explain), what=f"{request_id} is explained", seconds=10)

    def device(self, *, registered: bool = True) -> "Device":
        """A device with a factory identity, and a secret where it is registered."""
        number = next(_numbers)
        name = f"device-{number}"
        made = factory.make(
            factory.subject("sensor", serial_numbers=[f"S-{number}"]),
            self.anchor,
            usage=factory.key_usage(sign=True),
            key=rsa.generate_private_key(65537, 2048),
        )
        secret = ""
        if registered:

            async def add(core: Any) -> str:
                handed = await core.devices.add(
                    "default", name, serial_number=f"S-{number}", manufacturer="acme", actor=ME
                )
                return str(handed.secret)

            secret = self.daemon.inspect(add)
        return Device(self, name, made, secret)


@dataclass
class Device:
    """Who asks. Its factory key is also the key that it wants certified: only so can SCEP show both proofs."""

    place: Place
    name: str
    factory: factory.Made
    secret: str

    def asks(self, protocol: str, shown: set[str]) -> tuple[str, x509.Certificate | None]:
        """The outcome (issued, pending, or the refusal's code) for what it shows, and the certificate."""
        given = {"secret": self.secret, "challenge": CHALLENGE, "wrong": "w" * 26}
        password = next((value for name, value in given.items() if name in shown), None)
        if protocol == EST:
            return self._by_est("idevid" in shown, password)
        return self._by_scep("idevid" in shown, password)

    def _by_est(self, with_idevid: bool, password: str | None) -> tuple[str, x509.Certificate | None]:
        daemon = self.place.daemon
        tls = wire.context(daemon.root)
        if with_idevid:
            show(tls, self.factory)
        request = wire.enroll_request(
            wire.body_of(wire.csr(self.factory.key, self.name)),
            authorization=wire.basic("", password) if password is not None else None,
        )
        got = wire.exchange(daemon.https_port, tls, request)
        if got.status == 202:
            assert got.headers["retry-after"] == "60"
            return "pending", None
        if got.status == 200:
            return "issued", got.certificate
        return self.place.why(got.request_id), None

    def _by_scep(self, with_idevid: bool, password: str | None, kind: int = 19) -> tuple[str, x509.Certificate | None]:
        daemon, key = self.place.daemon, self.factory.key
        assert isinstance(key, rsa.RSAPrivateKey)
        message = scep_wire.enroll_message(
            scep_wire.ra_of(daemon.http_port),
            key,
            self.name,
            password,
            signer=(key, self.factory.der) if with_idevid else None,
            message_type=kind,
        )
        reply = scep_wire.post(daemon.http_port, message)
        if _PENDING in reply:
            return "pending", None
        if scep_wire.succeeded(reply):
            return "issued", scep_wire.issued_in(reply, key)
        return self.place.why(scep_wire.told_in(reply)), None

    def polls(self, shown: set[str]) -> tuple[str, x509.Certificate | None]:
        """A CertPoll of the transaction, signed as the request was."""
        return self._by_scep("idevid" in shown, None, 20)

    def is_approved(self) -> None:
        """An operator approves its one request that waits."""

        async def approve(core: Any) -> str:
            rows = await core.requests.list(state="pending", limit=1000)
            [found] = [row for row in rows if row.device == self.name]
            return str((await core.requests.approve(found.id, actor=ME)).state)

        assert self.place.daemon.inspect(approve) == "approved"


def show(tls: ssl.SSLContext, made: factory.Made) -> None:
    with tempfile.NamedTemporaryFile(suffix=".pem") as file:
        file.write(made.certificate.public_bytes(Encoding.PEM))
        file.write(made.key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
        file.flush()
        tls.load_cert_chain(file.name)


@dataclass
class Server:
    """A webhook in a thread, whose answer can be changed."""

    reply: Callable[[Asked], bytes] = lambda _: answer(ALLOWED)
    hook: Hook | None = None
    started: threading.Event = field(default_factory=threading.Event)

    @property
    def port(self) -> int:
        assert self.hook is not None
        return self.hook.port

    @contextlib.contextmanager
    def running(self, port: int = 0) -> Iterator[None]:
        loop = asyncio.new_event_loop()
        stop = asyncio.Event()

        async def serve() -> None:
            async with webhook(lambda asked: self.reply(asked), port=port) as self.hook:
                self.started.set()
                await stop.wait()

        thread = threading.Thread(target=loop.run_until_complete, args=(serve(),))
        thread.start()
        assert self.started.wait(20)
        try:
            yield
        finally:
            loop.call_soon_threadsafe(stop.set)
            thread.join()
            loop.close()
            self.started.clear()


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    folder = tmp_path_factory.mktemp("admission")
    key = folder / "hooks"
    key.touch(mode=0o600)
    key.write_text(KEY)
    server = Server()
    settings = f'[webhook_keys]\nhooks = "{key}"\n'
    with server.running(), running_daemon(folder, settings=settings, serve_arguments=("--workers", "1")) as daemon:
        found = Place(daemon, factory.root(), server)

        async def prepare(core: Any) -> None:
            await core.trust.add("default", found.anchor.pem, name="acme", actor=ME)
            await core.realms.challenge("default", CHALLENGE, actor=ME)

        daemon.inspect(prepare)
        yield found


def proofs_of(way: str) -> set[str]:
    return set(way.split(" + ")) & {"secret", "idevid", "challenge"}


@pytest.mark.parametrize("protocol", [EST, SCEP])
@pytest.mark.parametrize("way", WAYS)
def test_all_that_a_way_takes_gives_a_certificate(place: Place, way: str, protocol: str) -> None:
    place.hook.reply = lambda _: answer(ALLOWED)
    place.admit_by(way)
    device = place.device(registered="open" not in way)
    shown = proofs_of(way)
    outcome, certificate = device.asks(protocol, shown)
    if "approval" in way:
        assert outcome == "pending"
        if protocol == SCEP:
            assert device.polls(shown) == ("pending", None)
        device.is_approved()
        outcome, certificate = device.polls(shown) if protocol == SCEP else device.asks(protocol, shown)
    assert outcome == "issued"
    assert certificate is not None
    assert certificate.public_key() == device.factory.key.public_key()
    assert certificate.subject.rfc4514_string() == f"CN={device.name}"
    again, same = device.asks(protocol, shown)
    assert (again, same) == ("issued", certificate), "asked again, it is the same one"


_MISSING = [(way, proof) for way in WAYS if "webhook" not in way for proof in sorted(proofs_of(way))]


@pytest.mark.parametrize("protocol", [EST, SCEP])
@pytest.mark.parametrize(("way", "proof"), _MISSING)
def test_without_one_of_the_proofs_that_a_way_takes_there_is_nothing(
    place: Place, way: str, proof: str, protocol: str
) -> None:
    place.hook.reply = lambda _: answer(ALLOWED)
    place.admit_by(way)
    device = place.device()
    left = proofs_of(way) - {proof}
    outcome, _ = device.asks(protocol, left)
    assert outcome == ("proof_missing" if left else "credentials_missing")
    if proof in ("secret", "challenge"):
        outcome, _ = device.asks(protocol, {*left, "wrong"})
        assert outcome == ("secret_unknown" if proof == "secret" else "secret_not_admitted")
    assert place.daemon.certificates_of(device.name) == []


@pytest.mark.parametrize("protocol", [EST, SCEP])
@pytest.mark.parametrize("way", [way for way in WAYS if "webhook" in way])
def test_a_webhook_that_says_no_is_obeyed(place: Place, way: str, protocol: str) -> None:
    place.hook.reply = lambda _: answer(b'{"allow": false, "reason": "not on the list"}')
    place.admit_by(way)
    device = place.device(registered="open" not in way)
    shown = proofs_of(way)
    outcome, _ = device.asks(protocol, shown)
    if "approval" in way:
        assert outcome == "pending"
        device.is_approved()
        outcome, _ = device.asks(protocol, shown)
    assert outcome == "webhook_refused"
    assert place.daemon.certificates_of(device.name) == []
    place.hook.reply = lambda _: answer(ALLOWED)
    assert device.asks(protocol, shown)[0] == "issued", "the twin"


def widening(asked: Asked) -> bytes:
    names = [*json.loads(asked.body)["offer"]["names"], "DNS:admin.example.com"]
    return answer(json.dumps({"allow": True, "names": names}).encode())


@pytest.mark.parametrize("protocol", [EST, SCEP])
@pytest.mark.parametrize(
    ("reply", "code"),
    [
        pytest.param(lambda _: answer(b"", status="302 Found", more="Location: /ok\r\n"), "webhook_redirect", id="302"),
        pytest.param(lambda _: answer(status="500 Oops"), "webhook_status", id="500"),
        pytest.param(lambda _: answer(b'{"allow": "true"}'), "webhook_malformed", id="a-string"),
        pytest.param(lambda _: answer(b"{}"), "webhook_malformed", id="empty"),
        pytest.param(lambda _: answer(b"<html>", kind="text/html"), "webhook_malformed", id="html"),
        pytest.param(widening, "webhook_widens", id="wider-names"),
        pytest.param(lambda _: answer(b'{"allow": true, "validity": "900d"}'), "webhook_widens", id="longer"),
        pytest.param(lambda _: b"", "webhook_unreachable", id="hangs-up"),
        pytest.param(lambda _: b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\n", "webhook_malformed", id="no-type"),
    ],
)
def test_case_s4_a_webhook_that_fails_or_lies_admits_nobody(
    place: Place, reply: Callable[[Asked], bytes], code: str, protocol: str
) -> None:
    place.hook.reply = reply
    place.admit_by("secret + webhook")
    device = place.device()
    assert device.asks(protocol, {"secret"})[0] == code
    place.hook.reply = lambda _: answer(ALLOWED)
    assert device.asks(protocol, {"secret"})[0] == "issued", "the twin; and the secret was not spent"


@pytest.mark.parametrize("protocol", [EST, SCEP])
def test_case_s4_a_webhook_that_never_answers_or_is_dead_admits_nobody(place: Place, protocol: str) -> None:
    silent = threading.Event()

    def stall(_: Asked) -> bytes:
        silent.wait(4)
        return answer(ALLOWED)

    place.hook.reply = stall
    place.admit_by("secret + webhook")
    device = place.device()
    assert device.asks(protocol, {"secret"})[0] == "webhook_timeout"
    silent.set()
    place.hook.reply = lambda _: answer(ALLOWED)
    dead = {"url": "http://127.0.0.1:1/ask", "key": "hooks"}
    place.admit_by("secret + webhook", webhook=dead)
    assert device.asks(protocol, {"secret"})[0] == "webhook_unreachable"
    place.admit_by("secret + webhook")
    assert device.asks(protocol, {"secret"})[0] == "issued"


def test_a_webhook_narrows_what_is_issued(place: Place) -> None:
    place.hook.reply = lambda _: answer(b'{"allow": true, "validity": "1d", "names": ["DNS:a.example.com"]}')
    place.admit_by("secret + webhook")
    device = place.device()
    name = f"{device.name}-named"
    secret = place.daemon.ask("device", "add", name, "--san", "DNS:a.example.com", "--san", "DNS:b.example.com")
    named = Device(place, name, device.factory, secret["secret"])
    outcome, certificate = named.asks(EST, {"secret"})
    assert (outcome, certificate is not None) == ("issued", True)
    assert certificate is not None
    names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert names.get_values_for_type(x509.DNSName) == ["a.example.com"]
    length = certificate.not_valid_after_utc - certificate.not_valid_before_utc
    assert 86_400 <= length.total_seconds() <= 86_400 + 600


def test_a_webhook_is_asked_what_is_proven_and_never_a_secret(place: Place) -> None:
    asked: list[Asked] = []

    def keep(one: Asked) -> bytes:
        asked.append(one)
        return answer(ALLOWED)

    place.hook.reply = keep
    place.admit_by("secret + idevid + webhook")
    device = place.device()
    assert device.asks(EST, {"secret", "idevid"})[0] == "issued"
    [one] = asked
    told = json.loads(one.body)
    assert (told["device"], told["realm"], told["means"]) == (device.name, "default", ["secret", "idevid"])
    assert told["idevid"]["serial_number"] == device.name.replace("device", "S")
    assert device.secret.partition(".")[2] not in one.body.decode()


def test_any_device_of_a_trusted_manufacturer_is_admitted_where_the_realm_says_so(place: Place) -> None:
    place.admit_by("idevid")
    stranger = place.device(registered=False)
    named = Device(place, stranger.name.replace("device", "S"), stranger.factory, "")
    assert named.asks(EST, {"idevid"})[0] == "device_unknown"
    place.admit_by("idevid", idevid="trusted")
    assert stranger.asks(EST, {"idevid"})[0] == "subject_mismatch", "it is called by its serial number"
    assert named.asks(EST, {"idevid"})[0] == "issued"
    place.admit_by("idevid", idevid="registered")
    assert place.daemon.ask("device", "show", named.name)["manufacturer"] == "acme"


def test_an_est_client_that_shows_nothing_is_asked_for_its_password_where_the_realm_takes_one(place: Place) -> None:
    """Stock clients send it only then; found with curl --anyauth, which was told to wait for an operator."""
    place.admit_by("secret", "approval")
    device = place.device()
    assert device.asks(EST, set())[0] == "credentials_missing"
    assert device.asks(EST, {"secret"})[0] == "issued"
    place.admit_by("approval")
    assert place.device().asks(EST, set())[0] == "pending", "the twin"


def test_a_rejected_request_is_refused_by_both_protocols(place: Place) -> None:
    place.admit_by("secret + approval")
    device = place.device()
    assert device.asks(SCEP, {"secret"})[0] == "pending"
    rows = place.daemon.command("request", "list", "--state", "pending", "--limit", "1000")
    [row] = [row for row in rows if row["device"] == device.name]
    assert place.daemon.ask("request", "reject", row["id"], "--reason", "unknown board")["reason"] == "unknown board"
    assert device.polls(set())[0] == "request_rejected"
    assert device.asks(EST, {"secret"})[0] == "request_rejected"


def test_what_is_approved_by_scep_is_not_approved_for_the_profile_of_est(place: Place) -> None:
    place.admit_by("secret + approval")
    device = place.device()
    assert device.asks(SCEP, {"secret"})[0] == "pending"
    device.is_approved()
    assert device.asks(EST, {"secret"})[0] == "pending"
    device.is_approved()
    outcome, certificate = device.asks(EST, {"secret"})
    assert outcome == "issued"
    assert device.asks(EST, {"secret"})[1] == certificate
    assert device.asks(SCEP, {"secret"}) == ("issued", certificate), "the secret is spent for that one"
