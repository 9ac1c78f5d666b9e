"""EST on a real socket: what each operation answers, to the byte where a stock client looks at the bytes."""

import ast
import asyncio
import base64
import inspect
import logging
from collections.abc import Awaitable, Callable

import pytest
from aiohttp import web
from cryptography import x509
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.serialization import pkcs7

from ca_core.codes import CODES
from ca_core.errors import NotAuthenticated, NotAuthorized, TooMany, Unavailable
from ca_core.gate import Gate
from ca_core.model import Operation, Pending, Refused, TlsPeer
from est_server import app as app_module
from est_server import authentication, codec, errors, handlers
from tests.est_server.conftest import Ask
from tests.est_server.memory_core import WRONG, MemoryCore
from tests.est_server.wire import BASIC, CSR, Reply, connection, get, post, read_reply
from tests.helpers.bad_csr import BAD_CSRS, ec_key, good_csr

CERTS_ONLY = "application/pkcs7-mime; smime-type=certs-only"


def issued(reply: Reply) -> x509.Certificate:
    (certificate,) = pkcs7.load_der_pkcs7_certificates(reply.der)
    return certificate


def check_profile(reply: Reply) -> None:
    """What every reply must look like, so that every known client can read it."""
    assert reply.status_line.startswith("HTTP/1.")
    assert len(reply.head) < 1000
    assert len(reply.headers) <= 15
    known = {"Content-Type", "Content-Length", "Content-Transfer-Encoding", "WWW-Authenticate", "Retry-After", "Allow",
             "X-Request-Id", "Server", "Date", "Connection"}  # fmt: skip
    assert set(reply.headers) <= known
    assert reply.headers["Server"] == "enrolld"
    assert reply.headers["X-Request-Id"].startswith("id-")
    if reply.status != 204:
        assert "Content-Type" in reply.headers
        assert int(reply.headers["Content-Length"]) > 0
    if reply.status >= 202 and reply.status != 204:
        assert reply.headers["Content-Type"] == "text/plain"
        assert "Content-Transfer-Encoding" not in reply.headers
        if reply.body:
            assert reply.body.endswith(f" (request {reply.headers['X-Request-Id']})\n".encode())


# --- what is served --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("operation", ["cacerts", "pumps/cacerts", "cacerts/", "pumps/cacerts/", "cacerts?x=y"])
async def test_cacerts_gives_the_ca_certificates_to_anybody(ask: Ask, core: MemoryCore, operation: str) -> None:
    reply = await ask(get(operation))
    check_profile(reply)
    assert reply.status_line == "HTTP/1.1 200 OK"
    assert reply.headers["Content-Type"] == "application/pkcs7-mime"
    assert reply.headers["Content-Transfer-Encoding"] == "base64"
    assert issued(reply).public_bytes(serialization.Encoding.DER) == core.certificate


@pytest.mark.parametrize(
    ("operation", "meant", "realm"),
    [
        pytest.param("simpleenroll", Operation.ENROLL, "default", id="enroll"),
        pytest.param("simplereenroll", Operation.REENROLL, "default", id="reenroll"),
        pytest.param("pumps/simpleenroll", Operation.ENROLL, "pumps", id="enroll-label"),
        pytest.param("pumps/simplereenroll/", Operation.REENROLL, "pumps", id="reenroll-label-slash"),
        pytest.param("p%75mps/simple%65nroll", Operation.ENROLL, "pumps", id="decoded-once"),
    ],
)
async def test_enrollment_gives_the_issued_certificate_alone(
    ask: Ask, core: MemoryCore, operation: str, meant: Operation, realm: str
) -> None:
    reply = await ask(post(operation))
    check_profile(reply)
    assert reply.status_line == "HTTP/1.1 200 OK"
    assert reply.headers["Content-Type"] == CERTS_ONLY
    assert reply.headers["Content-Transfer-Encoding"] == "base64"
    assert issued(reply).public_key() == ec_key().public_key()
    assert core.operations == [(meant, realm)]
    assert core.recorded == []


@pytest.mark.parametrize("wrapped", [True, False], ids=["with-user-agent", "without-user-agent"])
async def test_base64_is_on_one_line_only_for_clients_without_a_user_agent(ask: Ask, wrapped: bool) -> None:
    for reply in (await ask(get("cacerts", user_agent=wrapped)), await ask(post(user_agent=wrapped))):
        assert reply.body.endswith(b"\n")
        assert (max(map(len, reply.body.splitlines())) == 64) is wrapped
        assert (reply.body.count(b"\n") > 1) is wrapped


@pytest.mark.parametrize("version", ["1.0", "1.1"])
async def test_version_of_the_request_is_echoed(ask: Ask, version: str) -> None:
    for request in (get("cacerts", version=version), post(version=version)):
        reply = await ask(request)
        check_profile(reply)
        assert reply.status_line == f"HTTP/{version} 200 OK"
        assert int(reply.headers["Content-Length"]) == len(reply.body)


@pytest.mark.parametrize("encoding", ["base64", "binary", "7bit", "garbage", None], ids=str)
@pytest.mark.parametrize(
    "body",
    [
        pytest.param(CSR, id="base64"),
        pytest.param(good_csr(), id="der"),
        pytest.param(b"-----BEGIN CERTIFICATE REQUEST-----\n" + CSR + b"-----END CERTIFICATE REQUEST-----\n", id="pem"),
    ],
)
async def test_content_transfer_encoding_is_not_looked_at(ask: Ask, body: bytes, encoding: str | None) -> None:
    reply = await ask(post(body=body, Content_Transfer_Encoding=encoding))
    assert reply.status == 200


async def test_chunked_request_is_read(ask: Ask) -> None:
    chunks = b"".join(b"%x\r\n%b\r\n" % (len(CSR[n : n + 50]), CSR[n : n + 50]) for n in range(0, len(CSR), 50))
    reply = await ask(post(body=chunks + b"0\r\n\r\n", Content_Length=None, Transfer_Encoding="chunked"))
    assert reply.status == 200
    check_profile(reply)


async def test_stray_line_end_after_the_body_is_tolerated(ask: Ask) -> None:
    reply = await ask(post(version="1.0", Connection="close") + b"\r\n")
    assert reply.status_line == "HTTP/1.0 200 OK"


async def test_connection_serves_more_than_one_request(port: int) -> None:
    async with connection(port) as (reader, writer):
        for request, status in ((get("cacerts"), 200), (post(Authorization=None), 401), (post(), 200)):
            writer.write(request)
            assert (await asyncio.wait_for(read_reply(reader), 5)).status == status


async def test_connection_close_is_honoured(port: int) -> None:
    async with connection(port) as (reader, writer):
        writer.write(post(Connection="close"))
        reply = await asyncio.wait_for(read_reply(reader), 5)
        assert reply.headers["Connection"] == "close"
        assert await asyncio.wait_for(reader.read(), 5) == b""


async def test_csrattrs_are_204_without_a_body_when_nothing_is_required(ask: Ask) -> None:
    reply = await ask(get("csrattrs"))
    check_profile(reply)
    assert reply.status_line == "HTTP/1.1 204 No Content"
    assert not {"Content-Length", "Content-Type", "Content-Transfer-Encoding"} & set(reply.headers)


async def test_csrattrs_name_the_challenge_password_where_it_is_required(ask: Ask) -> None:
    reply = await ask(get("bound/csrattrs"))
    check_profile(reply)
    assert reply.status == 200
    assert reply.headers["Content-Type"] == "application/csrattrs"
    assert reply.headers["Content-Transfer-Encoding"] == "base64"
    assert reply.body == b"MAsGCSqGSIb3DQEJBw==\n"


async def test_head_gives_the_head_of_get(ask: Ask) -> None:
    head, full = await ask(get("cacerts", method="HEAD")), await ask(get("cacerts"))
    assert head.status == 200
    assert head.headers["Content-Length"] == full.headers["Content-Length"]


async def test_csr_linked_to_the_connection_passes_where_that_is_required(ask: Ask) -> None:
    link = base64.b64encode(b"e" * 32).decode()
    reply = await ask(post("bound/simpleenroll", base64.b64encode(good_csr(challenge_password=link))))
    assert reply.status == 200


async def test_pending_is_202_with_whole_seconds(ask: Ask, core: MemoryCore) -> None:
    core.answer = Pending(retry_after=300)
    reply = await ask(post())
    check_profile(reply)
    assert reply.status_line == "HTTP/1.1 202 Accepted"
    assert reply.headers["Retry-After"] == "300"
    assert reply.body.startswith(b"The request waits for approval; send it again later. (request id-")


async def test_evidence_reaches_the_core_as_offered(ask: Ask, core: MemoryCore) -> None:
    core.peer = TlsPeer("TLSv1.3", chain=(b"leaf", b"ca"), server_name="pumps.example.com")
    await ask(post())
    (evidence,) = core.evidence
    assert (evidence.chain, evidence.username) == ((b"leaf", b"ca"), "device-1")


# --- what is refused -------------------------------------------------------------------------------------------------

UNKNOWN_OPERATION = "No such EST operation."
UNKNOWN_REALM = "There is no such realm here."
LARGE = b"A" * (64 * 1024 + 1)
LINK = base64.b64encode(good_csr(challenge_password="hand-made"))

REFUSALS = {
    "wrong-secret": (
        post(Authorization="Basic " + base64.b64encode(b"device-1:wrong").decode()),
        401, "secret_wrong", WRONG),
    "no-credentials": (
        post(Authorization=None),
        401, "credentials_missing", "This request needs a client certificate, or a secret as the Basic password."),
    "no-credentials-and-a-junk-body": (
        post(body=b"junk", Authorization=None),
        401, "credentials_missing", "This request needs a client certificate, or a secret as the Basic password."),
    "unreadable-credentials": (
        post(Authorization="Basic !"),
        401, "credentials_malformed", "The Authorization header is not base64 of user:secret."),
    "content-type": (
        post(Content_Type="text/plain"),
        415, "content_type_wrong", "The Content-Type of this request must be application/pkcs10."),
    "no-content-type": (
        post(Content_Type=None),
        415, "content_type_wrong", "The Content-Type of this request must be application/pkcs10."),
    "gzip": (
        post(Content_Encoding="gzip"),
        415, "content_coding_unsupported", "A body with a Content-Encoding is not read here."),
    "no-body": (post(body=b""), 400, "body_empty", "The request has no body."),
    "not-base64": (post(body=b"!!"), 400, "not_base64", "The body is not base64."),
    "pem-of-something-else": (
        post(body=b"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"),
        400, "not_pkcs10", "The body is PEM, and not that of a certificate request."),
    "too-large": (post(body=LARGE), 413, "body_too_large", "The body is longer than 65536 bytes."),
    "too-large-in-chunks": (
        post(body=b"10001\r\n" + LARGE + b"\r\n0\r\n\r\n", Content_Length=None, Transfer_Encoding="chunked"),
        413, "body_too_large", "The body is longer than 65536 bytes."),
    "announced-too-large": (
        post(body=b"", Content_Length=str(1 << 30)),
        413, "body_too_large", "The body is longer than 65536 bytes."),
    "link-to-another-session": (
        post(body=LINK),
        400, "channel_binding_mismatch",
        "The CSR's challengePassword does not link it to this TLS session (RFC 7030 3.5)."),
    "no-link-where-one-is-required": (
        post("bound/simpleenroll"),
        400, "channel_binding_missing",
        "The CSR must be linked to the TLS session by its challengePassword (RFC 7030 3.5)."),
    "unknown-operation": (get("crl"), 404, "operation_unknown", UNKNOWN_OPERATION),
    "operation-in-other-case": (get("CACerts"), 404, "operation_unknown", UNKNOWN_OPERATION),
    "fullcmc": (post("fullcmc"), 404, "operation_not_served", "This optional operation is not served."),
    "serverkeygen": (post("pumps/serverkeygen"), 404, "operation_not_served", "This optional operation is not served."),
    "unknown-label": (get("nope/cacerts"), 404, "realm_unknown", UNKNOWN_REALM),
    "unknown-label-to-enroll": (post("nope/simpleenroll"), 404, "realm_unknown", UNKNOWN_REALM),
    "label-in-other-case": (post("Pumps/simpleenroll"), 404, "realm_unknown", UNKNOWN_REALM),
    "label-that-is-an-operation": (get("cacerts/cacerts"), 404, "realm_unknown", UNKNOWN_REALM),
    "label-encoded-twice": (get("p%2575mps/cacerts"), 404, "realm_unknown", UNKNOWN_REALM),
    "label-with-nul": (get("pumps%00/cacerts"), 404, "realm_unknown", UNKNOWN_REALM),
    "get-simpleenroll": (get("simpleenroll"), 405, "method_not_allowed", "This operation takes POST only."),
    "post-cacerts": (post("cacerts"), 405, "method_not_allowed", "This operation takes GET only."),
    "delete-cacerts": (get("cacerts", method="DELETE"), 405, "method_not_allowed", "This operation takes GET only."),
}  # fmt: skip

CUT_OFF = ("http_malformed", "The body did not arrive whole.")
OF_THE_CORE = {"secret_wrong", "realm_unknown"}
OF_OTHERS = {"overloaded", "http_body_timeout", "bodies_in_all"}  # of the queue, and of the connection

PATHS = {
    "root": "/",
    "well-known": "/.well-known/est",
    "well-known-slash": "/.well-known/est/",
    "dots": "/.well-known/est/pumps/../cacerts",
    "dots-first": "/.well-known/est/../est/cacerts",
    "dot": "/.well-known/est/./cacerts",
    "encoded-dots": "/.well-known/est/%2e%2e/cacerts",
    "encoded-slash": "/.well-known/est/pumps%2fcacerts",
    "encoded-slash-in-label": "/.well-known/est/a%2Fb/cacerts",
    "double-slash": "/.well-known/est//cacerts",
    "double-slash-first": "//.well-known/est/cacerts",
    "two-trailing-slashes": "/.well-known/est/cacerts//",
    "three-segments": "/.well-known/est/a/b/cacerts",
    "encoded-prefix": "/%2ewell-known/est/cacerts",
    "prefix-in-other-case": "/.Well-Known/est/cacerts",
    "prefixed": "/x/.well-known/est/cacerts",
    "absolute-form": "https://localhost/.well-known/est/cacerts",
    "not-utf-8": "/.well-known/est/%ff/cacerts",
    "label-alone": "/.well-known/est/pumps",
    "backslash": "/.well-known/est/pumps\\cacerts",
    "matrix-parameter": "/.well-known/est/cacerts;x",
}


@pytest.mark.parametrize("case", REFUSALS)
async def test_refusal_has_its_status_and_sentence_and_is_recorded_once(ask: Ask, core: MemoryCore, case: str) -> None:
    request, status, code, message = REFUSALS[case]
    reply = await ask(request)
    check_profile(reply)
    assert (reply.status, reply.body.decode()) == (status, f"{message} (request id-1)\n")
    ((refusal, call, resolved),) = core.recorded
    assert (refusal.code, refusal.message) == (code, message)
    assert (call.request_id, call.protocol, call.source, call.tls_version) == ("id-1", "est", "127.0.0.1", "TLSv1.3")
    assert (resolved is None) == (code in ("realm_unknown", "operation_unknown", "operation_not_served"))
    assert core.operations == []


@pytest.mark.parametrize("case", PATHS)
async def test_path_that_is_not_exactly_an_operation_is_not_found(ask: Ask, core: MemoryCore, case: str) -> None:
    reply = await ask(f"GET {PATHS[case]} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode())
    check_profile(reply)
    assert (reply.status, core.recorded[0][0].code) in {(404, "operation_unknown"), (404, "realm_unknown")}


def test_every_code_that_est_raises_is_reached() -> None:
    raised = {
        node.value
        for module in (app_module, authentication, codec, errors, handlers)
        for node in ast.walk(ast.parse(inspect.getsource(module)))
        if isinstance(node, ast.Constant) and node.value in CODES
    }
    assert raised == {code for _, _, code, _ in REFUSALS.values()} - OF_THE_CORE | OF_OTHERS | {CUT_OFF[0]}


@pytest.mark.parametrize(("der", "code"), [pytest.param(der, code, id=case) for case, der, code in BAD_CSRS])
async def test_bad_csr_is_refused_over_the_wire(ask: Ask, core: MemoryCore, der: bytes, code: str) -> None:
    reply = await ask(post(body=base64.encodebytes(der)))
    check_profile(reply)
    expected = {"empty": "body_empty"}.get(code, code) if der else "body_empty"
    assert (core.recorded[0][0].code, reply.status) == (expected, 413 if code == "body_too_large" else 400)
    assert core.operations == []


@pytest.mark.parametrize("label", ["pumps", "bound"])
async def test_401_asks_for_basic_in_the_realm(ask: Ask, label: str) -> None:
    reply = await ask(post(f"{label}/simpleenroll", Authorization=None))
    assert (reply.status, reply.headers["WWW-Authenticate"]) == (401, f'Basic realm="{label}"')


@pytest.mark.parametrize(("operation", "allow"), [("cacerts", "GET, HEAD"), ("simpleenroll", "POST")])
async def test_405_says_what_is_allowed(ask: Ask, operation: str, allow: str) -> None:
    reply = await ask(get(operation, method="PUT"))
    assert (reply.status, reply.headers["Allow"]) == (405, allow)


async def test_without_tls_nothing_is_served(ask: Ask, core: MemoryCore) -> None:
    core.peer = None
    for request in (get("cacerts"), post()):
        reply = await ask(request)
        check_profile(reply)
        assert reply.status == 404
        assert reply.body.startswith(b"EST is served over HTTPS only. (request ")


async def test_refusal_of_the_core_is_told_and_not_recorded_again(ask: Ask, core: MemoryCore) -> None:
    core.answer = Refused(NotAuthorized("subject_mismatch", "The CSR's subject is not the device's name."))
    reply = await ask(post())
    check_profile(reply)
    assert (reply.status, reply.body) == (403, b"The CSR's subject is not the device's name. (request id-1)\n")
    assert core.recorded == []


async def test_401_of_the_core_asks_for_credentials(ask: Ask, core: MemoryCore) -> None:
    core.answer = Refused(NotAuthenticated("secret_spent", WRONG))
    reply = await ask(post())
    assert (reply.status, reply.headers["WWW-Authenticate"]) == (401, 'Basic realm="default"')


@pytest.mark.parametrize(
    ("error", "status", "message"),
    [
        pytest.param(
            Unavailable("disk /dev/sda full"), 503, "Nothing can be issued at the moment; ask again later.", id="ours"
        ),
        pytest.param(
            RuntimeError("disk /dev/sda full"), 500, "The server failed; its operator can find out why.", id="surprise"
        ),
    ],
)
async def test_our_own_fault_is_logged_and_not_told(
    ask: Ask, core: MemoryCore, caplog: pytest.LogCaptureFixture, error: Exception, status: int, message: str
) -> None:
    core.answer = error
    with caplog.at_level(logging.ERROR):
        reply = await ask(post())
    check_profile(reply)
    assert (reply.status, reply.body.decode()) == (status, f"{message} (request id-1)\n")
    assert ("Retry-After" in reply.headers) == (status == 503)
    (record,) = caplog.records
    is_bug = not isinstance(error, Unavailable)
    told = "request failed" if is_bug else "request failed: disk /dev/sda full"
    assert (record.getMessage(), vars(record)["ecs"]) == (told, {"enrolld.request_id": "id-1"})
    assert (record.exc_info and record.exc_info[1]) == (error if is_bug else None)
    assert core.recorded == []
    assert [(call.request_id, reason) for call, _, reason in core.failures] == [("id-1", type(error).__name__)]


async def test_client_that_goes_away_in_its_body_is_recorded_and_harms_nothing(
    port: int, core: MemoryCore, ask: Ask, caplog: pytest.LogCaptureFixture
) -> None:
    async with connection(port) as (_, writer):
        writer.write(post(Content_Length="5000"))
        await asyncio.sleep(0.05)
        writer.transport.abort()
    await asyncio.sleep(0.05)
    assert [(refusal.code, refusal.message) for refusal, _, _ in core.recorded] == [CUT_OFF]
    assert (await ask(post())).status == 200
    assert [record.getMessage() for record in caplog.records if record.levelno >= logging.ERROR] == []


@pytest.mark.parametrize(
    ("request_", "fields"),
    [
        pytest.param(
            post("pumps/simpleenroll"),
            {
                "enrolld.realm": "pumps",
                "enrolld.operation": "simpleenroll",
                "enrolld.outcome": "issued",
                "enrolld.device": "pump-7",
                "enrolld.profile": "device",
                "enrolld.key_sha256": 64,
                "user.name": "pump-7",
            },
            id="issued",
        ),
        pytest.param(
            post("pumps/simpleenroll", b"!"),
            {"enrolld.realm": "pumps", "enrolld.operation": "simpleenroll", "event.code": "not_base64"},
            id="refused",
        ),
        pytest.param(
            get("nope/cacerts"), {"enrolld.operation": "cacerts", "event.code": "realm_unknown"}, id="no-realm"
        ),
        pytest.param(get("no%0Aop"), {"enrolld.operation": "unknown", "event.code": "operation_unknown"}, id="junk"),
        pytest.param(get("cacerts"), {"enrolld.realm": "default", "enrolld.operation": "cacerts"}, id="published"),
    ],
)
async def test_response_carries_what_the_access_log_wants(
    core: MemoryCore, request_: bytes, fields: dict[str, object]
) -> None:
    seen: list[dict[str, object]] = []

    @web.middleware
    async def watch(
        request: web.Request, handler: Callable[[web.Request], Awaitable[web.StreamResponse]]
    ) -> web.StreamResponse:
        response = await handler(request)
        told = response[app_module.LOG_FIELDS]
        seen.append({**told})
        return response

    app = core.app()
    app.middlewares.append(watch)
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    try:
        async with connection(runner.addresses[0][1]) as (reader, writer):
            writer.write(request_)
            await asyncio.wait_for(read_reply(reader), 5)
    finally:
        await runner.cleanup()
    if "enrolld.key_sha256" in fields:
        seen[0]["enrolld.key_sha256"] = len(str(seen[0]["enrolld.key_sha256"]))
    assert seen == [fields]


async def test_secret_is_in_no_log(ask: Ask, core: MemoryCore, caplog: pytest.LogCaptureFixture) -> None:
    core.answer = RuntimeError("surprise")
    with caplog.at_level(logging.DEBUG):
        await ask(post())
    assert BASIC not in caplog.text


async def test_server_mounted_in_another_application_serves_the_same(core: MemoryCore) -> None:
    parent = web.Application(client_max_size=10**9)
    parent.add_subapp("/.well-known/est", core.app())
    runner = web.AppRunner(parent, access_log=None)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    try:
        async with connection(runner.addresses[0][1]) as (reader, writer):
            for request, status in ((get("pumps/cacerts"), 200), (post(), 200), (post(body=LARGE), 413)):
                writer.write(request)
                reply = await asyncio.wait_for(read_reply(reader), 5)
                check_profile(reply)
                assert reply.status == status
    finally:
        await runner.cleanup()


async def test_a_flood_of_our_own_faults_does_not_fill_the_log(
    ask: Ask, core: MemoryCore, caplog: pytest.LogCaptureFixture
) -> None:
    core.answer = Unavailable("disk full")
    with caplog.at_level(logging.ERROR):
        for _ in range(40):
            assert (await ask(post())).status == 503
    assert 20 <= len(caplog.records) <= 30
    assert len(core.failures) == 40, "each is recorded all the same"


async def test_who_asks_too_often_is_told_when_to_come_again(ask: Ask, core: MemoryCore) -> None:
    core.answer = Refused(TooMany("rate_device", "This device asks too often; ask later.", retry_after=30))
    reply = await ask(post())
    check_profile(reply)
    assert (reply.status, reply.headers["Retry-After"]) == (429, "30")
    assert reply.body == b"This device asks too often; ask later. (request id-1)\n"


async def test_what_finds_no_turn_is_told_to_come_again_and_is_not_recorded(ask: Ask, core: MemoryCore) -> None:
    core.gate = Gate(at_once=1, waiting=0, hold=0)
    await core.enter("192.0.2.1")
    reply = await ask(post())
    check_profile(reply)
    assert reply.status == 503
    assert reply.body == b"Too many requests come in; ask again later. (request id-1)\n"
    assert 5 <= int(reply.headers["Retry-After"]) <= 30
    assert (core.recorded, core.failures, core.operations) == ([], [], [])
    assert (await ask(get("cacerts"))).status == 200, "what costs nothing is served"
    core.leave()
    assert (await ask(post())).status == 200
    assert (core.gate.inside, core.gate.waiting) == (0, 0)
