"""A realm's webhook over real connections: one that answers, and those that stall, redirect, lie, and die.

Attack cases 49 (where a question may go) and S4 (every failure refuses).
"""

import asyncio
import contextlib
import dataclasses
import datetime as dt
import functools
import hashlib
import hmac
import json
import os
import resource
import socket
import ssl
import threading
import time
from collections.abc import AsyncIterator, Callable, Sequence
from pathlib import Path
from typing import Any

import aiohttp
import pytest
import uvloop
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from ca_core.codes import CODES
from ca_core.errors import NotAuthorized, Overloaded, Unavailable
from ca_core.registration.admission.webhook import MAX_ANSWER, Verdict, WebhookDocument, webhook_faults
from enrolld.metrics.counts import Counts
from enrolld.metrics.meter import WorkerMeter
from enrolld.webhook import WebhookClient, _session
from enrolld.webhook_keys import WebhookKey
from tests.ca_core.registration.test_webhook import QUESTION
from tests.helpers.tls_pki import Identity, issue
from tests.helpers.webhooks import ALLOWED, Asked, Hook, answer, read_request, server_context, webhook

KEY = b"a key that both of them know...."
NAME = "hooks.example.com"


def client(*, lookup: Callable[[str, int], Sequence[str]] | None = None, **others: Any) -> WebhookClient:
    return WebhookClient({"hooks": WebhookKey(KEY)}, lookup=lookup, **others)


def at(hook: Hook | int, **others: Any) -> WebhookDocument:
    """A document that leads to this server over plain HTTP."""
    port = hook if isinstance(hook, int) else hook.port
    return WebhookDocument(url=others.pop("url", f"http://127.0.0.1:{port}/ask?x=1"), key="hooks", **others)


def over_tls(hook: Hook, ca: Identity, *, host: str = NAME, **others: Any) -> WebhookDocument:
    networks = others.pop("networks", ("127.0.0.0/8",))
    pem = ca.pem_chain.decode()
    return at(hook, url=f"https://{host}:{hook.port}/ask", ca_pem=pem, networks=networks, **others)


def here(host: str, port: int) -> list[str]:
    """A name server that has one address for every name."""
    del host, port
    return ["127.0.0.1"]


async def refusal(document: WebhookDocument, asking: WebhookClient | None = None) -> NotAuthorized:
    with pytest.raises(NotAuthorized) as caught:
        await (asking or client()).ask(document, QUESTION)
    assert caught.value.message == "The operator's policy did not allow this request."
    assert caught.value.detail
    assert caught.value.detail.isprintable()
    return caught.value


# --- the honest one ---------------------------------------------------------------------------------------------------


async def test_a_question_is_signed_and_its_answer_is_the_verdict() -> None:
    async with webhook(answer(b'{"allow": true, "validity": "12h", "names": ["IP:192.0.2.7"]}')) as hook:
        verdict = await client(clock=lambda: 1764446400.9).ask(at(hook), QUESTION)
    assert verdict == Verdict(allow=True, validity=dt.timedelta(hours=12), names=("IP:192.0.2.7",))
    (asked,) = hook.asked
    assert asked.line == "POST /ask?x=1 HTTP/1.1"
    assert json.loads(asked.body)["device"] == "pump-1"
    signed = hmac.new(KEY, b"1764446400." + asked.body, hashlib.sha256).hexdigest()
    assert asked.headers == {
        "host": f"127.0.0.1:{hook.port}",
        "accept": "application/json",
        "accept-encoding": "identity",
        "content-type": "application/json",
        "content-length": str(len(asked.body)),
        "user-agent": "enrolld",
        "connection": "close",
        "enrolld-request-id": "k7f3-9xq2",
        "enrolld-timestamp": "1764446400",
        "enrolld-signature": f"v1={signed}",
    }


async def test_case_s4_a_webhook_that_says_no_refuses_with_its_reason() -> None:
    async with webhook(answer(b'{"allow": false, "reason": "not on the list"}')) as hook:
        refused = await refusal(at(hook))
    assert (refused.code, refused.detail) == ("webhook_refused", "not on the list")


@pytest.mark.parametrize("host", ["[::1]", "[0:0:0:0:0:0:0:1]"])
async def test_a_url_may_name_an_ipv6_address(host: str) -> None:
    async with webhook(host="::1") as hook:
        document = at(hook, url=f"http://{host}:{hook.port}/")
        assert webhook_faults(document, "w") == []
        assert (await client().ask(document, QUESTION)).allow


async def test_names_of_every_form_that_a_document_takes_are_asked(pki: "Pki") -> None:
    host = "my_hooks-1.xn--bcher-kva.example"
    async with webhook(tls=pki.of(issue("x", pki.root, hosts=[host]))) as hook:
        url = f"https://{host.upper()}:{hook.port}/a%zz/~b;c=(d),e?f=%20&g"
        document = at(hook, url=url, ca_pem=pki.root.pem_chain.decode(), networks=("127.0.0.1",))
        assert webhook_faults(document, "w") == []
        assert (await client(lookup=here).ask(document, QUESTION)).allow
    assert hook.asked[0].line == "POST /a%zz/~b;c=(d),e?f=%20&g HTTP/1.1"


async def test_nothing_of_one_call_is_left_for_the_next() -> None:
    async with webhook(answer(more="Set-Cookie: a=b\r\nConnection: keep-alive\r\n")) as hook:
        asking = client()
        for _ in range(2):
            await asking.ask(at(hook), QUESTION)
    assert hook.connections == 2
    assert [asked for asked in hook.asked if "cookie" in asked.headers] == []


async def test_proxies_and_passwords_of_the_environment_are_not_the_webhook_s(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "netrc").write_text("machine 127.0.0.1 login a password b\n")
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    async with webhook() as hook, webhook() as proxy:
        for variable in ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"):
            monkeypatch.setenv(variable, f"http://127.0.0.1:{proxy.port}")
        await client().ask(at(hook), QUESTION)
    assert (len(hook.asked), proxy.connections) == (1, 0)
    assert "authorization" not in hook.asked[0].headers


async def test_an_interim_answer_comes_before_the_answer() -> None:
    async with webhook(b"HTTP/1.1 100 Continue\r\n\r\n" + answer()) as hook:
        assert (await client().ask(at(hook), QUESTION)).allow


async def test_an_answer_in_pieces_is_one() -> None:
    pieces = b"".join(b"%x\r\n%b\r\n" % (len(each), each) for each in (b'{"allow"', b": ", b"true}"))
    head = b"HTTP/1.1 200 OK\r\nContent-Type: application/json; charset=utf-8\r\nTransfer-Encoding: chunked\r\n\r\n"
    async with webhook(head + pieces + b"0\r\n\r\n") as hook:
        assert (await client().ask(at(hook), QUESTION)).allow


# --- liars ------------------------------------------------------------------------------------------------------------

HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n"
LONG = ALLOWED + b" " * (17 * 1024 - len(ALLOWED))


@pytest.mark.parametrize(
    ("reply", "code"),
    [
        *(pytest.param(answer(status=s), "webhook_status", id=s) for s in ("201 Created", "202 Accepted")),
        pytest.param(answer(b"", status="204 No Content"), "webhook_status", id="204 No Content"),
        *(pytest.param(answer(status=s), "webhook_status", id=s) for s in ("206 Partial Content", "404 Not Found")),
        *(pytest.param(answer(status=s), "webhook_status", id=s) for s in ("401 Unauthorized", "500 Oh", "999 X")),
        pytest.param(answer(status="101 Switching Protocols", more="Upgrade: x\r\n"), "webhook_status", id="upgrade"),
        pytest.param(answer(b"<html>", kind="text/html"), "webhook_malformed", id="html"),
        pytest.param(answer(kind="text/plain"), "webhook_malformed", id="json-as-text"),
        pytest.param(answer(kind="application/json+x"), "webhook_malformed", id="another-json"),
        pytest.param(answer(kind=""), "webhook_malformed", id="no-content-type"),
        pytest.param(answer(more="Content-Type: text/html\r\n"), "webhook_malformed", id="two-content-types"),
        pytest.param(answer(more="Content-Encoding: gzip\r\n"), "webhook_malformed", id="gzip"),
        pytest.param(answer(b""), "webhook_malformed", id="empty"),
        pytest.param(answer(b'{"allow": "true"}'), "webhook_malformed", id="allow-as-text"),
        pytest.param(answer(b'{"allow": true'), "webhook_malformed", id="cut-off-json"),
        pytest.param(answer(b'{"allow": true, "validity": "91d"}'), "webhook_widens", id="a-longer-validity"),
        pytest.param(answer(b'{"allow": true, "names": ["DNS:x.example"]}'), "webhook_widens", id="another-name"),
        pytest.param(answer(LONG), "webhook_too_large", id="17-kib"),
        pytest.param(answer(b"[" * 1_000_000), "webhook_too_large", id="a-megabyte"),
        pytest.param(HEAD + b"\r\n" + LONG, "webhook_too_large", id="17-kib-to-the-end"),
        pytest.param(HEAD + b"Content-Length: 99\r\n\r\n" + ALLOWED, "webhook_malformed", id="hangs-up-midway"),
        pytest.param(HEAD + b"Transfer-Encoding: chunked\r\n\r\n9\r\n{", "webhook_malformed", id="midway-in-a-piece"),
        pytest.param(HEAD + b"Transfer-Encoding: chunked\r\n\r\nzz\r\n", "webhook_malformed", id="a-piece-of-no-size"),
        pytest.param(HEAD + b"Content-Length: -1\r\n\r\n", "webhook_malformed", id="a-negative-length"),
        pytest.param(b"yes\r\n\r\n", "webhook_malformed", id="no-http"),
        pytest.param(b"\x16\x03\x01\x02\x00\x01", "webhook_malformed", id="tls"),
        pytest.param(HEAD + b"X: " + b"x" * 100_000 + b"\r\n\r\n", "webhook_malformed", id="a-long-header"),
        pytest.param(HEAD + b"X: x\r\n" * 1000 + b"\r\n", "webhook_malformed", id="many-headers"),
    ],
)
async def test_case_s4_whatever_is_not_an_answer_refuses(reply: bytes, code: str) -> None:
    async with webhook(reply) as hook:
        assert (await refusal(at(hook))).code == code
    assert hook.connections == 1


async def test_the_largest_answer_that_may_be_is_read() -> None:
    async with webhook(answer(ALLOWED + b" " * (MAX_ANSWER - len(ALLOWED)))) as hook:
        assert (await client().ask(at(hook), QUESTION)).allow


@pytest.mark.parametrize("status", [300, 301, 302, 303, 304, 307, 308])
async def test_case_49_a_redirect_refuses_and_is_not_followed(status: int) -> None:
    async with webhook() as elsewhere:
        to = f"Location: http://127.0.0.1:{elsewhere.port}/\r\n"
        async with webhook(answer(b"", status=f"{status} Over there", more=to)) as hook:
            refused = await refusal(at(hook))
    assert (refused.code, refused.detail) == ("webhook_redirect", f"status {status}")
    assert elsewhere.connections == 0


async def test_case_49_an_answer_that_never_ends_is_not_read_to_its_end() -> None:
    sent = 0

    async def endless(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal sent
        await read_request(reader)
        writer.write(HEAD + b"Transfer-Encoding: chunked\r\n\r\n")
        while True:
            writer.write(b"1000\r\n" + b" " * 4096 + b"\r\n")
            await writer.drain()
            sent += 4096

    async with webhook(behaviour=endless) as hook:
        assert (await refusal(at(hook))).code == "webhook_too_large"
    assert sent < 8_000_000  # what sockets hold, and no more


# --- those who stall --------------------------------------------------------------------------------------------------


async def _silent(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    del writer
    await reader.read(-1)


async def _no_answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    await read_request(reader)
    await _silent(reader, writer)


async def _drop_by_drop(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    await read_request(reader)
    for byte in answer(ALLOWED + b" " * 1000):
        writer.write(bytes([byte]))
        await writer.drain()
        await asyncio.sleep(0.02)


async def _no_end(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    await read_request(reader)
    writer.write(HEAD + b"Content-Length: 99\r\n\r\n" + ALLOWED)
    await _silent(reader, writer)


async def _continue_for_ever(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    await read_request(reader)
    while True:
        writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        await writer.drain()
        await asyncio.sleep(0.01)


@pytest.mark.parametrize("behaviour", [_silent, _no_answer, _drop_by_drop, _no_end, _continue_for_ever])
async def test_case_s4_a_webhook_that_stalls_is_waited_for_no_longer_than_its_timeout(behaviour: Any) -> None:
    since = time.monotonic()
    async with webhook(behaviour=behaviour) as hook:
        refused = await refusal(at(hook, timeout="1s"))
    assert (refused.code, refused.detail) == ("webhook_timeout", "no answer within 1s")
    assert time.monotonic() - since < 2.5


async def test_case_s4_a_tls_handshake_that_stalls_is_in_the_same_time(pki: "Pki") -> None:
    async with webhook(behaviour=_silent) as hook:
        assert (await refusal(over_tls(hook, pki.root, timeout="1s"), client(lookup=here))).code == "webhook_timeout"


async def test_case_s4_a_name_server_that_stalls_is_in_the_same_time_and_keeps_nobody_else_waiting() -> None:
    goes_on = threading.Event()
    lookups: list[str] = []

    def stalled(host: str, port: int) -> list[str]:
        lookups.append(f"{host}:{port}")
        goes_on.wait(20)
        return ["127.0.0.1"]

    async with webhook() as hook:
        asking = client(lookup=stalled)
        slow = at(hook, url=f"http://localhost:{hook.port}/", timeout="1s")
        try:
            codes = [refused.code for refused in await asyncio.gather(refusal(slow, asking), refusal(slow, asking))]
            assert codes == ["webhook_timeout"] * 2
            assert lookups == [f"localhost:{hook.port}"], "a thread for each of them would be a thread for each device"
            assert (await asking.ask(at(hook), QUESTION)).allow, "an address needs no name server"
            assert await asyncio.to_thread(lambda: True)
        finally:
            goes_on.set()
        await asyncio.sleep(0.2)
        assert (await asking.ask(slow, QUESTION)).allow, "it works again when the name server does"


async def test_a_question_that_is_given_up_hangs_up_and_leaves_its_turn() -> None:
    came, gone = asyncio.Event(), asyncio.Event()

    async def wait(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        came.set()
        await _no_answer(reader, writer)
        gone.set()

    asking = client(at_once=1)
    async with webhook(behaviour=wait) as hook, webhook() as good:
        task = asyncio.create_task(asking.ask(at(hook), QUESTION))
        await asyncio.wait_for(came.wait(), 2)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await asyncio.wait_for(gone.wait(), 2)
        assert (await asking.ask(at(good), QUESTION)).allow


# --- those who die ----------------------------------------------------------------------------------------------------


async def test_case_s4_a_webhook_that_dies_refuses_until_it_is_back() -> None:
    asking = client()
    async with webhook() as hook:
        assert (await asking.ask(at(hook), QUESTION)).allow
    assert (await refusal(at(hook), asking)).code == "webhook_unreachable"
    async with webhook(port=hook.port):
        assert (await asking.ask(at(hook), QUESTION)).allow


async def test_case_s4_a_webhook_that_hangs_up_refuses() -> None:
    async def hang_up(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await read_request(reader)
        del writer

    async with webhook(behaviour=hang_up) as hook:
        assert (await refusal(at(hook))).code == "webhook_unreachable"
    assert hook.connections == 1, "it is asked once"


async def test_case_s4_a_webhook_that_resets_refuses() -> None:
    async def reset(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await read_request(reader)
        writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
        writer.transport.abort()

    async with webhook(behaviour=reset) as hook:
        assert (await refusal(at(hook))).code == "webhook_unreachable"


@pytest.mark.parametrize("found", [OSError("no such name"), []], ids=["error", "nothing"])
async def test_case_s4_a_name_without_address_refuses(found: Any) -> None:
    def lookup(*_: object) -> list[str]:
        if isinstance(found, OSError):
            raise found
        return list(found)

    document = at(443, url="https://hooks.example.com/")
    assert (await refusal(document, client(lookup=lookup))).code == "webhook_unreachable"


async def test_a_node_without_descriptors_says_that_it_is_its_own_fault() -> None:
    async with webhook() as hook:
        asking = client()
        assert (await asking.ask(at(hook), QUESTION)).allow
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        lowest = os.dup(0)
        os.close(lowest)
        resource.setrlimit(resource.RLIMIT_NOFILE, (lowest, hard))
        try:
            with pytest.raises(Unavailable, match="can't be asked"):
                await asking.ask(at(hook), QUESTION)
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        assert (await asking.ask(at(hook), QUESTION)).allow


async def test_a_dead_webhook_ties_up_its_own_realm_s_turns_and_no_others() -> None:
    outcomes: list[tuple[str, str]] = []
    asking = client(at_once=2, waiting=2, delivered=lambda *told: outcomes.append(told))
    other = dataclasses.replace(QUESTION, realm="cameras")
    async with webhook(behaviour=_no_answer) as dead, webhook() as good:
        tasks = [asyncio.create_task(asking.ask(at(dead, timeout="1s"), QUESTION)) for _ in range(4)]
        await asyncio.sleep(0.1)
        with pytest.raises(Overloaded) as caught:  # nothing was decided: the device may come again
            await asking.ask(at(dead, timeout="1s"), QUESTION)
        assert caught.value.retry_after > 0
        assert (await asking.ask(at(good), other)).allow
        ended = await asyncio.gather(*tasks, return_exceptions=True)
        assert dead.connections == 2
        assert (await asking.ask(at(good), QUESTION)).allow, "all turns were given back"
    codes = [end.code if isinstance(end, NotAuthorized) else type(end).__name__ for end in ended]
    assert sorted(codes) == ["Overloaded", "Overloaded", "webhook_timeout", "webhook_timeout"]
    assert sorted(outcomes) == [
        *(("cameras", "allowed"), ("pumps", "allowed")),
        *[("pumps", "overloaded")] * 3,
        *[("pumps", "timeout")] * 2,
    ]


async def test_of_several_addresses_one_that_answers_is_enough(pki: "Pki") -> None:
    async with webhook(tls=pki.context) as hook:
        asking = client(lookup=Names(["127.0.0.3", "::1", "127.0.0.1"]))
        document = over_tls(hook, pki.root, networks=("127.0.0.0/8", "::1/128"))
        assert (await asking.ask(document, QUESTION)).allow


def test_every_outcome_is_one_that_is_counted() -> None:
    counts = Counts()
    meter = WorkerMeter(counts)
    told = ["allowed", "overloaded", *(code.removeprefix("webhook_") for code in CODES if code.startswith("webhook_"))]
    for outcome in told:
        meter.delivered("pumps", outcome)
    assert {labels for _, labels in counts.all()} == {("pumps", outcome) for outcome in told}
    assert len(told) == 13


# --- where it goes ----------------------------------------------------------------------------------------------------


class Names:
    """A name server whose answers change with each question."""

    def __init__(self, *answers: list[str]) -> None:
        self.asked = 0
        self._answers = answers

    def __call__(self, host: str, port: int) -> list[str]:
        del host, port
        self.asked += 1
        return self._answers[min(self.asked, len(self._answers)) - 1]


@contextlib.asynccontextmanager
async def _two_of_one_port(good: ssl.SSLContext, evil: ssl.SSLContext) -> AsyncIterator[tuple[Hook, Hook]]:
    async with webhook(tls=good) as one, webhook(tls=evil, host="127.0.0.2", port=one.port) as other:
        yield one, other


async def test_case_49_a_name_is_looked_up_once_and_what_was_judged_is_what_is_reached(pki: "Pki") -> None:
    """DNS rebinding: the second answer would lead elsewhere, to a server that even has a certificate."""
    names = Names(["127.0.0.1"], ["127.0.0.2"])
    async with _two_of_one_port(pki.context, pki.context) as (good, evil):
        document = over_tls(good, pki.root, networks=("127.0.0.1/32",))
        asking = client(lookup=names)
        assert (await asking.ask(document, QUESTION)).allow
        assert (names.asked, good.connections, evil.connections) == (1, 1, 0)
        refused = await refusal(document, asking)
        assert refused.code == "webhook_address"
        assert refused.detail == f"{NAME}: 127.0.0.2 is in none of its networks"
        assert (names.asked, good.connections, evil.connections) == (2, 1, 0)


async def test_case_49_a_connection_to_what_was_not_judged_is_never_made() -> None:
    """Whatever the HTTP library makes of a URL: it gets no socket."""
    async with webhook(host="127.0.0.2") as evil:
        document = at(evil)
        async with _session(document, []) as session:
            with pytest.raises(aiohttp.ClientError):
                await session.get(f"http://127.0.0.2:{evil.port}/")
        assert evil.connections == 0


@pytest.mark.parametrize(
    "address",
    [
        *("0.0.0.0", "127.0.0.1", "10.0.0.1", "169.254.169.254", "224.0.0.1", "255.255.255.255"),  # noqa: S104  # judged
        *("::", "::1", "::ffff:127.0.0.1", "::ffff:169.254.169.254", "64:ff9b::7f00:1", "2002:7f00:1::"),
        *("fe80::1%lo", "fd00:ec2::254", "ff02::1"),
    ],
)
@pytest.mark.parametrize("beside", [[], ["8.8.8.8"]], ids=["alone", "after-a-public-one"])
async def test_case_49_a_name_with_an_address_that_may_not_be_refuses(
    pki: "Pki", address: str, beside: list[str]
) -> None:
    async with webhook(tls=pki.context) as hook:
        document = over_tls(hook, pki.root, networks=())
        refused = await refusal(document, client(lookup=Names([*beside, address])))
    assert (refused.code, hook.connections) == ("webhook_address", 0)


async def test_case_49_localhost_that_leads_elsewhere_refuses() -> None:
    """Over http: whoever changes a hosts file would else read it all."""
    async with webhook(host="127.0.0.1") as hook:
        document = at(hook, url=f"http://localhost:{hook.port}/")
        refused = await refusal(document, client(lookup=Names(["8.8.8.8"])))
        assert refused.code == "webhook_address"
        assert "not this machine" in refused.detail
        assert (await client(lookup=here).ask(document, QUESTION)).allow


async def test_localhost_is_found_by_this_machine_s_resolver() -> None:
    async with webhook() as hook:
        assert (await client().ask(at(hook, url=f"http://localhost:{hook.port}/"), QUESTION)).allow


# --- TLS --------------------------------------------------------------------------------------------------------------


class Pki:
    """A root, and a server's certificate for the webhook's name."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.root = issue("Webhook root", is_ca=True)
        self.context = self.of(issue(NAME, self.root, hosts=[NAME]))

    def of(self, identity: Identity) -> ssl.SSLContext:
        return server_context(identity, self.folder)

    def expired(self) -> ssl.SSLContext:
        key = ec.generate_private_key(ec.SECP256R1())
        now = dt.datetime.now(dt.UTC)
        assert isinstance(self.root.key, ec.EllipticCurvePrivateKey)
        certificate = (
            x509.CertificateBuilder()
            .subject_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, NAME)]))
            .issuer_name(self.root.certificate.subject)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - dt.timedelta(days=9))
            .not_valid_after(now - dt.timedelta(days=1))
            .add_extension(x509.SubjectAlternativeName([x509.DNSName(NAME)]), critical=False)
            .sign(self.root.key, hashes.SHA256())
        )
        return self.of(Identity((certificate,), key))


@pytest.fixture(scope="module")
def pki(tmp_path_factory: pytest.TempPathFactory) -> Pki:
    return Pki(tmp_path_factory.mktemp("webhook"))


async def test_a_server_is_verified_for_its_name_which_it_is_told(pki: Pki) -> None:
    named: list[str | None] = []
    context = pki.of(issue(NAME, pki.root, hosts=[NAME]))
    context.sni_callback = lambda _, name, __: named.append(name)
    async with webhook(tls=context) as hook:
        assert (await client(lookup=here).ask(over_tls(hook, pki.root), QUESTION)).allow
    assert named == [NAME]
    assert hook.asked[0].headers["host"] == f"{NAME}:{hook.port}"


async def test_a_server_is_verified_for_its_address_where_the_url_has_one(pki: Pki) -> None:
    good = pki.of(issue("x", pki.root, hosts=["127.0.0.1"]))
    async with webhook(tls=good) as hook:
        assert (await client().ask(over_tls(hook, pki.root, host="127.0.0.1"), QUESTION)).allow
    async with webhook(tls=pki.context) as hook:
        assert (await refusal(over_tls(hook, pki.root, host="127.0.0.1"))).code == "webhook_tls"


@pytest.mark.parametrize(
    "make",
    [
        pytest.param(lambda pki: pki.of(issue("x", pki.root, hosts=["x.example.com"])), id="another-name"),
        pytest.param(lambda pki: pki.of(issue(NAME, pki.root)), id="name-in-the-subject-alone"),
        pytest.param(lambda pki: pki.of(issue(NAME, hosts=[NAME])), id="self-signed"),
        pytest.param(lambda pki: pki.of(issue(NAME, issue("R", is_ca=True), hosts=[NAME])), id="unknown-ca"),
        pytest.param(
            lambda pki: pki.of(issue(NAME, issue("Webhook root", is_ca=True), hosts=[NAME])), id="like-the-ca"
        ),
        pytest.param(lambda pki: pki.expired(), id="expired"),
    ],
)
async def test_case_s4_a_server_whose_certificate_does_not_hold_gets_no_question(
    pki: Pki, make: Callable[[Pki], ssl.SSLContext]
) -> None:
    async with webhook(tls=make(pki)) as hook:
        assert (await refusal(over_tls(hook, pki.root), client(lookup=here))).code == "webhook_tls"
    assert hook.asked == []


async def test_case_s4_a_private_ca_is_not_the_system_s(pki: Pki) -> None:
    async with webhook(tls=pki.context) as hook:
        document = at(hook, url=f"https://{NAME}:{hook.port}/", networks=("127.0.0.0/8",))
        assert (await refusal(document, client(lookup=here))).code == "webhook_tls"


async def test_case_s4_a_server_without_tls_gets_no_question(pki: Pki) -> None:
    heard = b""

    async def plain(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal heard
        heard = await reader.read(65536)
        writer.write(answer(b"", status="400 Bad Request"))

    async with webhook(behaviour=plain) as hook:
        assert (await refusal(over_tls(hook, pki.root), client(lookup=here))).code == "webhook_tls"
    assert heard.startswith(b"\x16\x03")
    assert b"pump-1" not in heard


async def test_no_session_key_is_written_where_the_environment_says(
    pki: Pki, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("SSLKEYLOGFILE", str(tmp_path / "keys"))
    root = issue("A root of its own", is_ca=True)  # contexts are kept by their CA
    async with webhook(tls=pki.of(issue(NAME, root, hosts=[NAME]))) as hook:
        assert (await client(lookup=here).ask(over_tls(hook, root), QUESTION)).allow
    assert not (tmp_path / "keys").exists()


# --- the loop of a worker ---------------------------------------------------------------------------------------------


def test_it_is_the_same_on_the_loop_that_workers_run_on(pki: Pki) -> None:
    async def tell() -> list[str]:
        told: list[str] = []
        asking = client(lookup=here)
        async with webhook(tls=pki.context) as hook:
            told.append(str((await asking.ask(over_tls(hook, pki.root), QUESTION)).allow))
        told.append((await refusal(over_tls(hook, pki.root), asking)).code)
        async with webhook(tls=pki.expired()) as hook:
            told.append((await refusal(over_tls(hook, pki.root), asking)).code)
        async with webhook(behaviour=_silent) as hook:
            told.append((await refusal(over_tls(hook, pki.root, timeout="1s"), asking)).code)
        async with webhook(behaviour=_no_answer) as hook:
            told.append((await refusal(at(hook, timeout="1s"), asking)).code)
        return told

    assert uvloop.run(tell()) == ["True", "webhook_unreachable", "webhook_tls", "webhook_timeout", "webhook_timeout"]


# --- keys -------------------------------------------------------------------------------------------------------------


def signed(asked: Asked, body: bytes, key: bytes = KEY) -> bytes:
    """An answer, signed for what was asked."""
    context = asked.headers["enrolld-signature"].removeprefix("v1=").encode()
    value = hmac.new(key, context + b"." + body, hashlib.sha256).hexdigest()
    return answer(body, more=f"Enrolld-Signature: v1={value}\r\n")


async def test_an_answer_signed_for_its_question_is_believed() -> None:
    async with webhook(lambda asked: signed(asked, ALLOWED)) as hook:
        assert (await client().ask(at(hook, signed_answer=True), QUESTION)).allow
        assert (await client().ask(at(hook), QUESTION)).allow


async def test_case_49_what_is_too_large_is_not_even_looked_at_for_its_signature() -> None:
    async with webhook(lambda asked: signed(asked, LONG)) as hook:
        assert (await refusal(at(hook, signed_answer=True))).code == "webhook_too_large"


def _altered(asked: Asked) -> bytes:
    return signed(asked, b'{"allow":false}').replace(b"false", b" true")


def _mirrored(asked: Asked) -> bytes:
    return answer(more=f"Enrolld-Signature: {asked.headers['enrolld-signature']}\r\n")


@pytest.mark.parametrize(
    ("reply", "detail"),
    [
        pytest.param(lambda _: answer(), "not signed", id="not-signed"),
        pytest.param(lambda _: answer(more="Enrolld-Signature: v1=\r\n"), "signed otherwise", id="empty"),
        pytest.param(functools.partial(signed, body=ALLOWED, key=b"x" * 32), "signed otherwise", id="another-key"),
        pytest.param(_altered, "signed otherwise", id="altered"),
        pytest.param(_mirrored, "signed otherwise", id="the-request-s-own"),
        pytest.param(lambda _: answer(more="Enrolld-Signature: \xe9\r\n"), "signed otherwise", id="not-ascii"),
        pytest.param(
            lambda _: answer(more="Enrolld-Signature: X\r\n").replace(b"X", b"\xe9"), "signed otherwise", id="not-utf-8"
        ),
    ],
)
async def test_case_s4_an_answer_that_is_not_signed_as_it_must_be_refuses(
    reply: Callable[[Asked], bytes], detail: str
) -> None:
    async with webhook(reply) as hook:
        refused = await refusal(at(hook, signed_answer=True))
    assert (refused.code, refused.detail) == ("webhook_unsigned", detail)


async def test_case_s4_an_answer_to_another_question_is_not_believed_again() -> None:
    kept: list[bytes] = []

    def first_one_again(asked: Asked) -> bytes:
        kept.append(signed(asked, ALLOWED))
        return kept[0]

    async with webhook(first_one_again) as hook:
        asking = client()
        assert (await asking.ask(at(hook, signed_answer=True), QUESTION)).allow
        with pytest.raises(NotAuthorized) as caught:
            await asking.ask(at(hook, signed_answer=True), dataclasses.replace(QUESTION, device="pump-2"))
    assert caught.value.code == "webhook_unsigned"


async def test_case_s4_without_the_key_nothing_is_asked_and_the_device_may_come_again() -> None:
    async with webhook() as hook:
        with pytest.raises(Unavailable, match=r"webhook of realm pumps needs the key 'hooks'.*\[webhook_keys\]"):
            await WebhookClient({}).ask(at(hook), QUESTION)
    assert hook.connections == 0
