"""SCEP over HTTP, to the byte where a stock client looks at the bytes: paths, methods, encodings, limits, what is said.

Numbers are those of the conformance list of RFC 8894 and of what clients do.
"""

import asyncio
import base64
import dataclasses
import logging
from collections.abc import Callable
from typing import Any
from urllib.parse import quote, quote_from_bytes

import pytest
from aiohttp.test_utils import make_mocked_request
from asn1crypto import cms as a_cms
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import rsa

from ca_core.core import Core
from ca_core.errors import InternalError, Unavailable
from ca_core.gate import Gate
from ca_core.limits import RateLimits, Rates
from ca_core.model import TlsPeer
from scep_server.app import LOG_FIELDS, Scep
from tests.est_server.wire import Reply, connection, read_reply
from tests.helpers.core import ME, OTHER_HOST, edit_realm
from tests.scep_server.client import Request, to_ber
from tests.scep_server.serving import (
    BAD_MESSAGE_CHECK,
    FAILURE,
    SUCCESS,
    Site,
    certificates_in,
    certify,
    common_name,
    make_csr,
    open_cert_rep,
    self_signed,
)

LIMIT = 128 * 1024
PKI_MESSAGE = "application/x-pki-message"
RA_CERT = "application/x-x509-ca-ra-cert"
CHAIN = "application/x-x509-ca-ra-cert-chain"
WORDS = {"AES", "DES3", "POSTPKIOperation", "Renewal", "SHA-1", "SHA-256", "SHA-384", "SHA-512", "SCEPStandard"}


def get(
    target: str, *, method: str = "GET", version: str = "1.1", host: str | None = "localhost", **more: str
) -> bytes:
    headers = {} if host is None else {"Host": host}
    headers |= {name.replace("_", "-"): value for name, value in more.items()}
    lines = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
    return f"{method} {target} HTTP/{version}\r\n{lines}\r\n".encode("latin-1")


def post(body: bytes, target: str = "/scep?operation=PKIOperation", **changed: str | None) -> bytes:
    """`changed` headers (underscores for hyphens) replace or, when None, remove its own."""
    headers: dict[str, str | None] = {"Host": "localhost", "Content-Length": str(len(body))}
    headers |= {name.replace("_", "-"): value for name, value in changed.items()}
    lines = "".join(f"{name}: {value}\r\n" for name, value in headers.items() if value is not None)
    return f"POST {target} HTTP/1.1\r\n{lines}\r\n".encode() + body


def chunked(data: bytes, size: int = 500) -> bytes:
    pieces = [data[at : at + size] for at in range(0, len(data), size)]
    return b"".join(b"%x\r\n%b\r\n" % (len(piece), piece) for piece in pieces) + b"0\r\n\r\n"


def check_profile(reply: Reply, *, is_head: bool = False) -> None:
    """What every answer must look like."""
    known = {"Content-Type", "Content-Length", "Cache-Control", "Retry-After", "Allow", "Connection", "X-Request-Id"}
    assert set(reply.headers) <= known | {"Date"}
    assert reply.headers["Cache-Control"] == "no-store"
    assert reply.headers["X-Request-Id"].startswith("id-")
    assert is_head or int(reply.headers["Content-Length"]) == len(reply.body)
    if reply.status != 200:
        assert reply.headers["Content-Type"] == "text/plain"
        text = reply.body.decode("ascii")
        assert is_head or text.endswith(f" (request {reply.headers['X-Request-Id']})\n")
        assert len(text) < 200
        assert text.count("\n") == (0 if is_head else 1)


async def refused(site: Site, request: bytes, status: int, code: str) -> Reply:
    """See it refused for this reason, and nothing issued."""
    reply = await site.exchange(request)
    check_profile(reply, is_head=request.startswith(b"HEAD"))
    attempt = await site.explain(reply.headers["X-Request-Id"])
    assert (reply.status, attempt.code, attempt.outcome) == (status, code, "refused")
    assert site.issued() == 0
    return reply


async def good(site: Site) -> Request:
    """A PKCSReq of a device of its own, whose base64 needs padding, and has what URLs escape."""
    signer = self_signed()
    secret = await site.secret()
    for number in range(100):
        made = await site.message(signer, make_csr(signer.key, "sensor", secret), transaction="t" * (number + 1))
        data = made.encode()
        text = base64.b64encode(data)
        if len(data) % 3 == 1 and b"+" in text and b"/" in text:
            return made
    raise AssertionError("not one of a hundred")


async def served(site: Site, request: Request, wire: bytes) -> None:
    """See the message answered with a certificate, whichever way it was sent."""
    reply = await site.exchange(wire)
    check_profile(reply)
    assert (reply.status, reply.headers["Content-Type"]) == (200, PKI_MESSAGE), reply
    opened = open_cert_rep(reply.body, await site.ra(), request.key)
    assert opened.status == SUCCESS, opened.text
    assert site.issued() == 1


# --- where it is served: 1 --------------------------------------------------------------------------------------------

SERVED = {
    "scep": "/scep",
    "slash": "/scep/",
    "program": "/scep/pkiclient.exe",
    "program-slash": "/scep/pkiclient.exe/",
    "label": "/scep/default",
    "label-slash": "/scep/default/",
    "label-program": "/scep/default/pkiclient.exe",
    "label-encoded": "/scep/d%65fault",
    "program-encoded-is-a-label-else": "/scep/default.scep",
    "profile-program": "/scep/default.scep/pkiclient.exe",
    "cgi-bin": "/cgi-bin/pkiclient.exe",
    "cgi-bin-slash": "/cgi-bin/pkiclient.exe/",
    "ndes": "/certsrv/mscep/mscep.dll",
    "ndes-slash": "/certsrv/mscep/mscep.dll/",
    "ndes-program": "/certsrv/mscep/mscep.dll/pkiclient.exe",
    "ndes-in-its-own-case": "/CertSrv/mscep/mscep.dll",
}


@pytest.mark.parametrize("path", SERVED.values(), ids=SERVED.keys())
async def test_every_path_that_clients_use_is_answered_alike(site: Site, path: str) -> None:
    caps = await site.exchange(get(f"{path}?operation=GetCACaps"))
    check_profile(caps)
    assert caps.status == 200
    certificates = await site.exchange(get(f"{path}?operation=GetCACert"))
    assert bundle_of(certificates)[0] == await site.ra()
    request = await good(site)
    await served(site, request, post(request.encode(), f"{path}?operation=PKIOperation"))


async def test_a_label_is_another_realm_with_an_ra_of_its_own(site: Site) -> None:
    for path in ("/scep/other", "/scep/other/pkiclient.exe", "/scep/other.scep/"):
        assert bundle_of(await site.exchange(get(f"{path}?operation=GetCACert")))[0] == await site.ra("other")
    assert await site.ra("other") != await site.ra()


@pytest.mark.parametrize("host", [OTHER_HOST, OTHER_HOST.title(), f"{OTHER_HOST}:8080", f"{OTHER_HOST}."])
async def test_the_host_of_a_realm_needs_no_label(site: Site, host: str) -> None:
    for path in ("/scep", "/scep/other", "/cgi-bin/pkiclient.exe"):
        reply = await site.exchange(get(f"{path}?operation=GetCACert", host=host))
        assert bundle_of(reply)[0] == await site.ra("other")
    await refused(site, get("/scep/default?operation=GetCACert", host=host), 404, "realm_not_here")
    assert (await site.exchange(get("/scep?operation=GetCACert", host="[::1]:8080"))).status == 200


NOT_FOUND = {
    "longer": ("/scepter", "http_not_found"),
    "other-case": ("/SCEP", "http_not_found"),
    "program-alone": ("/cgi-bin/", "http_not_found"),
    "cgi-of-another": ("/cgi-bin/other.exe", "http_not_found"),
    "cgi-with-a-label": ("/cgi-bin/default/pkiclient.exe", "http_not_found"),
    "ndes-admin": ("/certsrv/mscep_admin", "http_not_found"),
    "ndes-of-another": ("/certsrv/mscep/other.dll", "http_not_found"),
    "two-labels": ("/scep/default/other", "http_not_found"),
    "program-first": ("/scep/pkiclient.exe/default", "http_not_found"),
    "two-slashes-first": ("/scep//default", "http_not_found"),
    "two-slashes-last": ("/scep/default//", "http_not_found"),
    "two-slashes": ("/scep//", "http_not_found"),
    "dots": ("/scep/../scep", "http_not_found"),
    "dots-encoded": ("/scep/%2e%2e", "http_not_found"),
    "slash-encoded": ("/scep/default%2fpkiclient.exe", "http_not_found"),
    "not-utf-8": ("/scep/%ff", "http_not_found"),
    "unknown": ("/scep/nobody", "realm_unknown"),
    "unknown-profile": ("/scep/default.nobody", "realm_unknown"),
    "label-in-other-case": ("/scep/Default", "realm_unknown"),
    "label-encoded-twice": ("/scep/d%2565fault", "realm_unknown"),
    "label-with-nul": ("/scep/default%00", "realm_unknown"),
    "program-in-other-case": ("/scep/PKICLIENT.EXE", "realm_unknown"),
}


@pytest.mark.parametrize(("path", "code"), NOT_FOUND.values(), ids=NOT_FOUND.keys())
@pytest.mark.parametrize("operation", ["GetCACaps", "GetCACert", "PKIOperation"])
async def test_whatever_is_none_of_these_is_not_found(site: Site, path: str, code: str, operation: str) -> None:
    await refused(site, get(f"{path}?operation={operation}&message=AAAA"), 404, code)


async def test_a_realm_without_scep_serves_none(site: Site, core: Core) -> None:
    assert (await site.exchange(get("/scep/other?operation=GetCACaps"))).status == 200
    text = await core.realms.export("other")
    before, _, after = text.partition("[scep]\nenabled = true")
    assert after
    await core.realms.apply(f"{before}[scep]\nenabled = false{after}", actor=ME)
    for operation in ("GetCACaps", "GetCACert", "PKIOperation"):
        await refused(site, get(f"/scep/other?operation={operation}"), 404, "protocol_not_served")
    assert (await site.exchange(get("/scep?operation=GetCACaps"))).status == 200


async def test_est_is_est_s_on_the_same_listener(site: Site) -> None:
    for path, status in (("cacerts", 200), ("other/cacerts", 200), ("nobody/cacerts", 404), ("scep", 404)):
        reply = await site.exchange(get(f"/.well-known/est/{path}"))
        assert reply.status == status
        assert reply.headers["Server" if "Server" in reply.headers else "X-Request-Id"]
    reply = await site.exchange(get("/.well-known/est/cacerts"))
    assert reply.headers["Content-Type"] == "application/pkcs7-mime"
    assert b"EST" in (await site.exchange(get("/"))).body


# --- versions and methods: 2, 13 --------------------------------------------------------------------------------------


@pytest.mark.parametrize("host", [None, "localhost"], ids=["without-host", "with-host"])
async def test_http_1_0_is_answered_in_one_piece(site: Site, host: str | None) -> None:
    request = await good(site)
    message = quote_from_bytes(base64.b64encode(request.encode()), safe="")
    for query in ("GetCACaps", "GetCACert", f"PKIOperation&message={message}"):
        async with connection(site.port) as (reader, writer):
            writer.write(get(f"/cgi-bin/pkiclient.exe?operation={query}", version="1.0", host=host))
            raw = await reader.read()
        head, _, body = raw.partition(b"\r\n\r\n")
        reply = Reply(head + b"\r\n\r\n", body)
        check_profile(reply)
        assert reply.status_line == "HTTP/1.0 200 OK"
        assert "Transfer-Encoding" not in reply.headers
    assert site.issued() == 1


async def test_http_1_1_without_a_host_is_refused_in_one_sentence(site: Site) -> None:
    reply = await site.exchange(get("/scep?operation=GetCACaps", host=None))
    assert reply.status == 400
    assert reply.body.startswith(b"The request has no Host header. (request ")
    assert reply.headers["X-Request-Id"] in reply.body.decode()
    assert site.refused_before == ["http_no_host"]
    assert (await site.exchange(get("/scep?operation=GetCACaps"))).status == 200


METHODS = {
    "post-caps": ("POST", "GetCACaps", "GET, HEAD", "GET or HEAD"),
    "post-certificates": ("POST", "GetCACert", "GET, HEAD", "GET or HEAD"),
    "post-chain": ("POST", "GetCACertChain", "GET, HEAD", "GET or HEAD"),
    "post-next": ("POST", "GetNextCACert", "GET, HEAD", "GET or HEAD"),
    "delete-certificates": ("DELETE", "GetCACert", "GET, HEAD", "GET or HEAD"),
    "options-caps": ("OPTIONS", "GetCACaps", "GET, HEAD", "GET or HEAD"),
    "put-message": ("PUT", "PKIOperation", "GET, POST", "GET or POST"),
    "patch-message": ("PATCH", "PKIOperation", "GET, POST", "GET or POST"),
    "head-message": ("HEAD", "PKIOperation", "GET, POST", ""),
}


@pytest.mark.parametrize(("method", "operation", "allow", "words"), METHODS.values(), ids=METHODS.keys())
async def test_another_method_gets_405_and_what_is_allowed(
    site: Site, method: str, operation: str, allow: str, words: str
) -> None:
    request = get(f"/scep?operation={operation}", method=method, Content_Length="0")
    reply = await refused(site, request, 405, "method_not_allowed")
    assert reply.headers["Allow"] == allow
    if words:
        assert reply.body.startswith(f"This operation takes {words} only. (request ".encode())


@pytest.mark.parametrize("operation", ["GetCACaps", "GetCACert", "GetCACertChain"])
async def test_head_gives_the_head_of_get(site: Site, operation: str) -> None:
    head = await site.exchange(get(f"/scep?operation={operation}", method="HEAD"))
    full = await site.exchange(get(f"/scep?operation={operation}"))
    check_profile(head, is_head=True)
    for name in ("Content-Type", "Content-Length"):
        assert head.headers[name] == full.headers[name]
    async with connection(site.port) as (reader, writer):
        writer.write(get(f"/scep?operation={operation}", method="HEAD", Connection="close"))
        assert (await reader.read()).endswith(b"\r\n\r\n"), "and no body"


UNKNOWN = {
    "none": "/scep",
    "empty": "/scep?operation=",
    "message-alone": "/scep?message=AAAA",
    "of-a-later-draft": "/scep?operation=GetCRL",
    "longer": "/scep?operation=GetCACapsX",
    "nul": "/scep?operation=PKIOperation%00",
    "its-number": "/scep?operation=19",
    "huge": "/scep?operation=" + "a" * 9000,
    "not-utf-8": "/scep?operation=%ff",
    "an-est-one": "/scep?operation=simpleenroll",
}


@pytest.mark.parametrize("target", UNKNOWN.values(), ids=UNKNOWN.keys())
async def test_an_unknown_operation_gets_400(site: Site, target: str) -> None:
    reply = await refused(site, get(target), 400, "scep_operation_unknown")
    assert reply.body.startswith(b"No such SCEP operation. (request ")


# --- a POST: 3, 4, 12 -------------------------------------------------------------------------------------------------

CONTENT_TYPES: list[str | None] = [
    None,
    "",
    PKI_MESSAGE,
    "application/octet-stream",
    "application/pkcs7",
    "application/x-www-form-urlencoded",
    "multipart/form-data; boundary=x",
    "text/plain; charset=utf-8",
    "application/json",
    "nonsense",
]


@pytest.mark.parametrize("content_type", CONTENT_TYPES, ids=str)
async def test_the_content_type_of_a_post_is_not_looked_at(site: Site, content_type: str | None) -> None:
    request = await good(site)
    await served(site, request, post(request.encode(), Content_Type=content_type))


POSTED = {
    "usual": "/scep?operation=PKIOperation",
    "no-query": "/scep",
    "no-operation": "/scep?",
    "empty-operation": "/scep?operation=",
    "lower-case": "/scep?operation=pkioperation",
    "upper-case": "/scep?OPERATION=PKIOPERATION",
    "encoded": "/scep?%6fperation=PKI%4fperation",
    "spaces-around": "/scep?operation=%20PKIOperation%20",
    "empty-message": "/scep?operation=PKIOperation&message=",
    "ca-identifier": "/scep?operation=PKIOperation&message=CAIdentifier",
    "message-first": "/scep?message=&operation=PKIOperation",
    "unknown-parameters": "/scep?a=b&&operation=PKIOperation&=&c",
    "operation-twice": "/scep?operation=PKIOperation&operation=GetCACaps",
}


@pytest.mark.parametrize("target", POSTED.values(), ids=POSTED.keys())
async def test_a_posted_message_is_read_however_its_operation_is_spelled(site: Site, target: str) -> None:
    request = await good(site)
    await served(site, request, post(request.encode(), target))


async def test_a_posted_message_may_come_in_chunks(site: Site) -> None:
    request = await good(site)
    body = chunked(request.encode())
    await served(site, request, post(body, Content_Length=None, Transfer_Encoding="chunked"))


async def test_a_posted_message_may_be_ber(site: Site) -> None:
    request = await good(site)
    await served(site, request, post(to_ber(request.encode())))


async def test_a_post_may_wait_for_100_continue(site: Site) -> None:
    request = await good(site)
    await served(site, request, post(request.encode(), Expect="100-continue"))


async def test_a_post_without_a_body_may_carry_its_message_as_a_get_does(site: Site) -> None:
    request = await good(site)
    message = quote_from_bytes(base64.b64encode(request.encode()), safe="")
    await served(site, request, post(b"", f"/scep?operation=PKIOperation&message={message}"))


async def test_one_connection_serves_a_whole_enrollment(site: Site) -> None:
    request = await good(site)
    async with connection(site.port) as (reader, writer):
        for wire in (
            get("/scep?operation=GetCACaps"),
            get("/scep?operation=GetCACert"),
            get("/scep?operation=nonsense"),
            post(b"nonsense"),
            post(request.encode()),
        ):
            writer.write(wire)
            last = await read_reply(reader)
            check_profile(last)
    assert open_cert_rep(last.body, await site.ra(), request.key).status == SUCCESS


TOO_LARGE = bytes(LIMIT + 1)
BODIES: dict[str, tuple[bytes, int, str]] = {
    "empty": (post(b""), 400, "scep_message_missing"),
    "too-large": (post(TOO_LARGE), 413, "scep_too_large"),
    "announced-too-large": (post(b"", Content_Length=str(1 << 30)), 413, "scep_too_large"),
    "too-large-in-chunks": (
        post(chunked(TOO_LARGE, 8192), Content_Length=None, Transfer_Encoding="chunked"), 413, "scep_too_large"
    ),
    "too-large-in-one-chunk": (
        post(chunked(TOO_LARGE, 1 << 20), Content_Length=None, Transfer_Encoding="chunked"), 413, "scep_too_large"
    ),
    "gzip": (post(b"\x1f\x8b", Content_Encoding="gzip"), 415, "content_coding_unsupported"),
    "deflate": (post(b"x", Content_Encoding="deflate"), 415, "content_coding_unsupported"),
    "gzip-twice": (post(b"x", Content_Encoding="gzip, gzip"), 415, "content_coding_unsupported"),
    "gzip-in-other-case": (post(b"x", Content_Encoding=" GZIP "), 415, "content_coding_unsupported"),
    "not-cms": (post(b"hello, world"), 400, "scep_not_cms"),
    "base64-in-a-post": (post(base64.b64encode(b"\x30\x80" * 50)), 400, "scep_not_cms"),
    "as-large-as-may-be": (post(bytes(LIMIT)), 400, "scep_not_cms"),
}  # fmt: skip


@pytest.mark.parametrize("case", BODIES)
async def test_a_body_that_is_no_message_is_refused(site: Site, case: str) -> None:
    request, status, code = BODIES[case]
    await refused(site, request, status, code)


async def test_a_body_that_does_not_end_is_refused_as_soon_as_it_is_too_long(site: Site) -> None:
    endless = post(b"40000000\r\n" + TOO_LARGE, Content_Length=None, Transfer_Encoding="chunked")
    async with connection(site.port) as (reader, writer):
        writer.write(endless)
        async with asyncio.timeout(20):
            reply = await read_reply(reader)
    check_profile(reply)
    assert (reply.status, (await site.explain(reply.headers["X-Request-Id"])).code) == (413, "scep_too_large")


async def test_a_body_without_a_coding_may_say_so(site: Site) -> None:
    request = await good(site)
    await served(site, request, post(request.encode(), Content_Encoding="identity"))


async def test_a_body_that_ends_early_is_refused(site: Site) -> None:
    request = await good(site)
    async with connection(site.port) as (reader, writer):
        writer.write(post(request.encode()[:-1], Content_Length=str(len(request.encode()))))
        writer.write_eof()
        reply = await read_reply(reader)
    check_profile(reply)
    assert reply.status == 400
    assert (await site.explain(reply.headers["X-Request-Id"])).code == "http_body_truncated"
    assert site.issued() == 0


# --- a GET: 5 to 11, 12 -----------------------------------------------------------------------------------------------


def _lines(text: str, end: str) -> str:
    return "".join(text[at : at + 64] + end for at in range(0, len(text), 64))


def _escaped(text: str, characters: str) -> str:
    for character in characters:
        text = text.replace(character, quote(character, safe=""))
    return text


QUIRKS: dict[str, Callable[[str], str]] = {
    "5-all-escaped": lambda text: quote(text, safe=""),
    "5-every-byte-escaped": lambda text: "".join(f"%{ord(c):02X}" for c in text),
    "5-escaped-in-lower-case": lambda text: _escaped(text, "+/=").replace("%2B", "%2b").replace("%3D", "%3d"),
    "6-plus-made-a-space": lambda text: _escaped(text.replace("+", " "), " /="),
    "7-lines-of-64-by-lf": lambda text: _lines(text, "%0A").replace("+", "%2B"),
    "7-lines-of-64-by-crlf": lambda text: _lines(text, "%0D%0A").replace("+", "%2B"),
    "7-lines-all-escaped": lambda text: quote(_lines(text, "\n"), safe=""),
    "7-tabs": lambda text: _lines(text, "%09").replace("+", "%2B"),
    "8-no-padding": lambda text: quote(text.rstrip("="), safe=""),
    "8-padding-as-it-is": lambda text: _escaped(text, "+/"),
    "9-for-urls": lambda text: text.translate(str.maketrans("+/", "-_")),
    "9-for-urls-without-padding": lambda text: text.translate(str.maketrans("+/", "-_")).rstrip("="),
    "9-for-urls-padding-escaped": lambda text: text.translate(str.maketrans("+/", "-_")).replace("=", "%3D"),
    "10-only-padding-escaped": lambda text: text.replace("=", "%3D"),
    "10-nothing-escaped": lambda text: text,
}


@pytest.mark.parametrize("quirk", QUIRKS)
async def test_the_message_of_a_get_is_read_however_it_is_encoded(site: Site, quirk: str) -> None:
    request = await good(site)
    message = QUIRKS[quirk](base64.b64encode(request.encode()).decode())
    await served(site, request, get(f"/scep?operation=PKIOperation&message={message}"))


GOTTEN = {
    "usual": "operation=PKIOperation&message={}",
    "message-first": "message={}&operation=PKIOperation",
    "lower-case": "operation=pkioperation&message={}",
    "upper-case": "OPERATION=PKIOPERATION&MESSAGE={}",
    "more": "operation=PKIOperation&message={}&x=y",
    "fragment-like": "x=%23&operation=PKIOperation&message={}",
    "message-twice": "operation=PKIOperation&message={}&message=AAAA",
}


@pytest.mark.parametrize("query", GOTTEN.values(), ids=GOTTEN.keys())
async def test_the_message_of_a_get_is_found_in_any_order(site: Site, query: str) -> None:
    request = await good(site)
    message = quote(base64.b64encode(request.encode()).decode(), safe="")
    await served(site, request, get(f"/scep?{query.format(message)}"))


@pytest.mark.parametrize(
    ("certificates", "least"), [(1, 3000), (8, 8191), (20, 20_000)], ids=["3-kib", "8-kib", "20-kib"]
)
async def test_a_long_get_is_answered_too(site: Site, certificates: int, least: int) -> None:
    signer = self_signed()
    bag = [
        signer.certificate,
        *(certify(signer.key, common_name("CA"), serial=n + 2).certificate for n in range(certificates)),
    ]
    csr = make_csr(signer.key, "sensor", await site.secret())
    request = await site.message(signer, csr, certificates=bag)
    message = quote(base64.b64encode(request.encode()).decode(), safe="")
    assert least < len(message) < 32_000
    await served(site, request, get(f"/scep?operation=PKIOperation&message={message}"))


async def test_a_get_that_is_too_long_gets_414(site: Site) -> None:
    longest = "/scep?operation=PKIOperation&message=" + "A" * 32_000
    await refused(site, get(longest), 400, "scep_not_cms")
    reply = await site.exchange(get(longest + "A" * 1000))
    assert (reply.status, site.refused_before) == (414, ["http_target_too_long"])
    assert reply.headers["X-Request-Id"] in reply.body.decode()


MESSAGES = {
    "missing": ("/scep?operation=PKIOperation", "scep_message_missing"),
    "empty": ("/scep?operation=PKIOperation&message=", "scep_message_missing"),
    "blank": ("/scep?operation=PKIOperation&message=%20", "scep_not_base64"),
    "line-ends-alone": ("/scep?operation=PKIOperation&message=%0A%0D", "scep_not_cms"),
    "text": ("/scep?operation=PKIOperation&message=hello!", "scep_not_base64"),
    "nul": ("/scep?operation=PKIOperation&message=AAAA%00", "scep_not_base64"),
    "not-ascii": ("/scep?operation=PKIOperation&message=AAA%ff", "scep_not_base64"),
    "one-character-over": ("/scep?operation=PKIOperation&message=AAAAA", "scep_not_base64"),
    "padding-in-the-middle": ("/scep?operation=PKIOperation&message=AA==AAAA", "scep_not_base64"),
    "encoded-twice": ("/scep?operation=PKIOperation&message=MIIB%252B", "scep_not_base64"),
    "base64-of-text": ("/scep?operation=PKIOperation&message=aGVsbG8%3D", "scep_not_cms"),
}


@pytest.mark.parametrize(("target", "code"), MESSAGES.values(), ids=MESSAGES.keys())
async def test_a_message_that_can_t_be_read_gets_400(site: Site, target: str, code: str) -> None:
    reply = await refused(site, get(target), 400, code)
    assert b"Traceback" not in reply.body


# --- GetCACaps: 16 to 24 ----------------------------------------------------------------------------------------------


async def words(site: Site, target: str = "/scep?operation=GetCACaps") -> set[str]:
    reply = await site.exchange(get(target))
    check_profile(reply)
    assert (reply.status, reply.headers["Content-Type"]) == (200, "text/plain"), "old clients compare the whole header"
    assert len(reply.body) < 1024
    assert b"\r" not in reply.body
    assert reply.body.endswith(b"\n")
    lines = reply.body.decode("ascii").removesuffix("\n").split("\n")
    assert len(lines) == len(set(lines))
    return set(lines)


async def test_the_capabilities_are_those_that_are_on(site: Site) -> None:
    assert await words(site) == WORDS
    assert await words(site, "/scep/other?operation=GetCACaps") == WORDS
    assert "GetNextCACert" not in WORDS, "there is none to get"
    assert not {"DES", "MD5", "GetCRL", "Update"} & WORDS


@pytest.mark.parametrize(
    ("old", "new", "gone"),
    [
        pytest.param("allow_3des = true", "allow_3des = false", {"DES3"}, id="3des"),
        pytest.param("allow_sha1 = true", "allow_sha1 = false", {"SHA-1"}, id="sha-1"),
        pytest.param("own_certificate = true", "own_certificate = false", {"Renewal"}, id="renewal"),
        pytest.param("read_des = true", "read_des = false", set(), id="des-which-is-never-announced"),
        pytest.param("secret = true", "secret = false", set(), id="secrets-which-have-no-word"),
    ],
)
async def test_what_is_switched_off_is_no_capability(
    site: Site, core: Core, old: str, new: str, gone: set[str]
) -> None:
    await edit_realm(core, "default", old, new)
    assert await words(site) == WORDS - gone
    assert await words(site, "/scep/other?operation=GetCACaps") == WORDS, "another realm's are its own"
    await edit_realm(core, "default", new, old)
    assert await words(site) == WORDS


# --- GetCACert and its kin: 14, 15, 25 to 31 --------------------------------------------------------------------------


def bundle_of(reply: Reply, content_type: str = RA_CERT) -> tuple[bytes, ...]:
    """The certificates of an answer, which is a degenerate SignedData and nothing more."""
    check_profile(reply)
    assert (reply.status, reply.headers["Content-Type"]) == (200, content_type)
    info = a_cms.ContentInfo.load(reply.body, strict=True)
    assert info["content_type"].native == "signed_data"
    return certificates_in(info["content"])


def _usage(certificate: x509.Certificate) -> x509.KeyUsage:
    return certificate.extensions.get_extension_for_class(x509.KeyUsage).value


async def test_get_ca_cert_gives_the_ra_first_and_what_is_above_it(site: Site, core: Core) -> None:
    bundle = bundle_of(await site.exchange(get("/scep?operation=GetCACert")))
    ra, issuer, root = map(x509.load_der_x509_certificate, bundle)
    ra.verify_directly_issued_by(issuer)
    issuer.verify_directly_issued_by(root)
    root.verify_directly_issued_by(root)
    assert bundle[2] == (await core.issuers.export("default"))[0]
    for certificate in (ra, issuer, root):
        assert isinstance(certificate.public_key(), rsa.RSAPublicKey), "stock clients know nothing else"
        assert certificate.signature_hash_algorithm is not None
        assert certificate.signature_hash_algorithm.name == "sha256"


async def test_exactly_one_published_certificate_is_for_encryption_and_for_signing(site: Site) -> None:
    bundle = [
        x509.load_der_x509_certificate(der) for der in bundle_of(await site.exchange(get("/scep?operation=GetCACert")))
    ]
    assert [_usage(each).key_encipherment for each in bundle] == [True, False, False]
    assert [_usage(each).digital_signature for each in bundle] == [True, False, False]
    assert [_usage(each).key_cert_sign for each in bundle] == [False, True, True]
    constraints = [each.extensions.get_extension_for_class(x509.BasicConstraints).value for each in bundle]
    assert [each.ca for each in constraints] == [False, True, True]


IDENTIFIERS = [
    "",
    "0",
    "1",
    "default",
    "CAIdentifier",
    "DummyCAIdentity",
    "scep",
    "ignored",
    "%00",
    "a%20b",
    "x" * 9000,
]


@pytest.mark.parametrize("identifier", IDENTIFIERS, ids=lambda text: text[:20] or "empty")
async def test_any_ca_identifier_will_do(site: Site, identifier: str) -> None:
    for operation, content_type in (("GetCACert", RA_CERT), ("GetCACertChain", CHAIN)):
        reply = await site.exchange(get(f"/scep?operation={operation}&message={identifier}"))
        assert bundle_of(reply, content_type)[0] == await site.ra()
    assert await words(site, f"/scep?operation=GetCACaps&message={identifier}") == WORDS
    await refused(site, get(f"/scep?operation=GetNextCACert&message={identifier}"), 404, "scep_no_next_ca")


async def test_the_chain_of_the_drafts_is_the_same_bundle(site: Site) -> None:
    chain = await site.exchange(get("/scep?operation=GetCACertChain"))
    bundle = await site.exchange(get("/scep?operation=GetCACert"))
    assert bundle_of(chain, CHAIN) == bundle_of(bundle)


@pytest.mark.parametrize("spelled", ["getcacert", "GETCACERT", "GetCACert%20", "Get%43ACert"])
async def test_an_operation_is_known_in_any_case(site: Site, spelled: str) -> None:
    assert len(bundle_of(await site.exchange(get(f"/scep?operation={spelled}")))) == 3


# --- PKIOperation: 86, 89, 90 -----------------------------------------------------------------------------------------


async def test_a_cert_rep_is_200_whether_it_grants_or_refuses(site: Site) -> None:
    request = await good(site)
    broken = request.encode()
    broken = broken[:-1] + bytes([broken[-1] ^ 1])
    for data, status, fail_info in ((broken, FAILURE, BAD_MESSAGE_CHECK), (request.encode(), SUCCESS, None)):
        reply = await site.post(data)
        check_profile(reply)
        assert (reply.status, reply.headers["Content-Type"]) == (200, PKI_MESSAGE)
        opened = open_cert_rep(reply.body, await site.ra(), request.key)
        assert (opened.status, opened.fail_info) == (status, fail_info)
        if opened.text is not None:
            assert opened.request_id == reply.headers["X-Request-Id"]


OURS = b"Nothing can be issued at the moment; ask again later."
SURPRISE = b"The server failed; its operator can find out why."


async def test_what_is_encrypted_to_the_ra_certificate_before_is_served(site: Site, core: Core) -> None:
    """Clients keep what GetCACert once gave; the answer is signed with the one that it gives now, of the same key."""
    before = await good(site)
    old = await site.ra()
    site.installation.clock.forward(days=600)
    await core.ra_certificates.ensure()
    assert await site.ra() != old
    secret = await site.new_secret()
    signer = self_signed()
    late = dataclasses.replace(
        before, envelope=dataclasses.replace(before.envelope, message=make_csr(signer.key, "sensor", secret))
    )
    assert late.envelope.recipient == old
    await served(site, late, post(late.encode()))


FAULTS: dict[str, tuple[Callable[[], Exception], int, bytes]] = {
    "ours": (lambda: Unavailable("disk /dev/sda is full"), 503, OURS),
    "ours-of-any-kind": (lambda: InternalError("key 7 is lost"), 503, OURS),
    "surprise": (lambda: RuntimeError("disk /dev/sda is full"), 500, SURPRISE),
    "surprise-of-values": (lambda: ValueError("\x1b[31m7"), 500, SURPRISE),
    "surprise-of-keys": (lambda: KeyError("secret"), 500, SURPRISE),
}


@pytest.mark.parametrize("where", ["authenticate", "enroll", "ra", "resolve"])
@pytest.mark.parametrize("case", FAULTS)
async def test_our_own_fault_is_logged_and_not_told(
    site: Site, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, case: str, where: str
) -> None:
    make, status, sentence = FAULTS[case]
    error = make()
    request = await good(site)
    core = site.core
    wire = post(request.encode())

    async def fail(*_: Any, **__: Any) -> Any:
        raise error

    owner: Any = {"ra": core, "resolve": core.realms}.get(where, core.registration)
    with monkeypatch.context() as patched, caplog.at_level(logging.ERROR):
        patched.setattr(owner, where, fail)
        reply = await site.exchange(wire)
    check_profile(reply)
    assert reply.status == status
    assert reply.body == sentence + f" (request {reply.headers['X-Request-Id']})\n".encode()
    assert ("Retry-After" in reply.headers) == (status == 503)
    (record,) = [each for each in caplog.records if each.levelno >= logging.ERROR]
    if isinstance(error, Unavailable):
        assert (record.getMessage(), record.exc_info) == (f"request failed: {error}", None)
    else:
        assert record.getMessage() == "request failed"
        assert record.exc_info is not None
        assert record.exc_info[1] is error
    attempt = await site.explain(reply.headers["X-Request-Id"])
    assert (attempt.outcome, attempt.code, attempt.protocol) == ("error", "internal_error", "scep")
    assert site.issued() == 0
    assert site.installation.sql("SELECT count(*) FROM attempt WHERE outcome = 'error'") == [(1,)], "once"
    await served(site, request, wire)


async def test_a_realm_whose_ra_is_not_made_yet_asks_to_come_again(site: Site, core: Core) -> None:
    await core.realms.add("young", actor=ME)
    reply = await site.exchange(get("/scep/young?operation=GetCACert"))
    check_profile(reply)
    assert (reply.status, "Retry-After" in reply.headers) == (503, True)
    assert await words(site, "/scep/young?operation=GetCACaps") == WORDS
    await core.ra_certificates.ensure()
    assert len(bundle_of(await site.exchange(get("/scep/young?operation=GetCACert")))) == 3


async def test_a_flood_of_our_own_faults_does_not_fill_the_log(
    site: Site, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async def fail(*_: Any, **__: Any) -> Any:
        raise Unavailable("full")

    monkeypatch.setattr(site.core, "ra", fail)
    with caplog.at_level(logging.ERROR):
        for _ in range(40):
            assert (await site.exchange(get("/scep?operation=GetCACert"))).status == 503
    assert 20 <= len(caplog.records) <= 30


async def test_many_at_once_are_answered_each_with_its_own_id(site: Site) -> None:
    replies = await asyncio.gather(*(site.exchange(get("/scep?operation=GetCACaps")) for _ in range(50)))
    assert {reply.status for reply in replies} == {200}
    assert len({reply.headers["X-Request-Id"] for reply in replies}) == 50


async def test_over_tls_the_name_that_was_asked_for_picks_the_realm(site: Site, core: Core) -> None:
    """The SNI, and not the Host header, which the peer writes as it likes."""
    scep = Scep(
        core,
        peer=lambda _: TlsPeer("TLSv1.3", server_name=OTHER_HOST),
        new_request_id=lambda: "id-1",
        clock=site.installation.clock,
    )
    asked = make_mocked_request("GET", "/scep?operation=GetCACert", headers={"Host": "localhost"})
    response = await scep.serve(asked)
    assert isinstance(response.body, bytes)
    bundle = certificates_in(a_cms.ContentInfo.load(response.body, strict=True)["content"])
    assert bundle[0] == await site.ra("other")
    asked = make_mocked_request("GET", "/scep/default?operation=GetCACert", headers={"Host": "localhost"})
    assert (await scep.serve(asked)).status == 404


@pytest.mark.parametrize(
    ("target", "fields"),
    [
        pytest.param(
            "/scep?operation=GetCACaps", {"enrolld.realm": "default", "enrolld.operation": "GetCACaps"}, id="ok"
        ),
        pytest.param(
            "/scep/other?operation=PKIOperation&message=AAAA",
            {"enrolld.realm": "other", "enrolld.operation": "PKIOperation", "event.code": "scep_not_cms"},
            id="refused",
        ),
        pytest.param(
            "/scep/nobody?operation=GetCACaps",
            {"enrolld.operation": "unknown", "event.code": "realm_unknown"},
            id="no-realm",
        ),
    ],
)
async def test_response_carries_what_the_access_log_wants(site: Site, target: str, fields: dict[str, str]) -> None:
    scep = Scep(site.core, peer=lambda _: None, new_request_id=lambda: "id-1", clock=site.installation.clock)
    response = await scep.serve(make_mocked_request("GET", target, headers={"Host": "localhost"}))
    assert response[LOG_FIELDS] == fields


async def test_the_log_names_the_transaction_and_the_message(site: Site) -> None:
    request = await good(site)
    scep = Scep(site.core, peer=lambda _: None, new_request_id=site.new_request_id, clock=site.installation.clock)
    message = quote(base64.b64encode(request.encode()).decode(), safe="")
    refused = {"event.code": "scep_envelope_not_for_us", "enrolld.realm": "other"}
    issued = {"enrolld.outcome": "issued", "enrolld.realm": "default", "enrolld.profile": "scep"}
    for wire, expected in (
        (f"/scep?operation=PKIOperation&message={message}", issued),
        (f"/scep/other?operation=PKIOperation&message={message}", refused),
    ):
        response = await scep.serve(make_mocked_request("GET", wire, headers={"Host": "localhost"}))
        assert request.transaction_id is not None
        fields = response[LOG_FIELDS]
        told = {**fields}
        proven = {"enrolld.device", "enrolld.key_sha256", "user.name", "enrolld.profile"} & set(told)
        assert len(proven) == (4 if expected is issued else 0), "nothing that was only claimed"
        assert told == told | expected | {
            "enrolld.operation": "PKCSReq",
            "enrolld.transaction_id": request.transaction_id[2:].decode(),
        }


# --- too much --------------------------------------------------------------------------------------------------------


def _limited(site: Site, **changed: int) -> None:
    numbers = {"per_device": 100, "per_credential": 100, "refusals_per_source": 1000, **changed}
    rates = Rates(RateLimits(**numbers, is_trusted=lambda _: False))
    site.core.registration._rates = site.core.registration._recorder._rates = rates


async def test_a_source_that_proves_nothing_gets_429_once_it_had_its_share_and_a_good_request_is_served(
    site: Site,
) -> None:
    _limited(site, refusals_per_source=3)
    honest = await good(site)
    signer = self_signed()
    wrong = await site.message(signer, make_csr(signer.key, "sensor", "aaaaaaaaaa.bbbbbbbbbbbbbbbbbbbbbbbbbbbb"))
    answers = [await site.exchange(post(wrong.encode())) for _ in range(5)]
    assert [answer.status for answer in answers] == [200] * 3 + [429] * 2
    check_profile(answers[-1])
    assert answers[-1].body.startswith(b"Too many requests from here prove nothing; ask later. (request ")
    assert answers[-1].headers["Retry-After"] == "20"
    attempt = await site.explain(answers[-1].headers["X-Request-Id"])
    assert attempt.code == "secret_unknown"
    await served(site, honest, post(honest.encode()))


async def test_a_device_that_got_too_many_certificates_gets_429_and_no_failure_that_clients_take_for_final(
    site: Site,
) -> None:
    _limited(site, per_device=1)
    first = await good(site)
    await served(site, first, post(first.encode()))
    signer = self_signed("another")
    again = await site.message(signer, make_csr(signer.key, "sensor", await site.new_secret()))
    reply = await site.exchange(post(again.encode()))
    check_profile(reply)
    assert (reply.status, reply.headers["Retry-After"]) == (429, "3600")
    assert (await site.explain(reply.headers["X-Request-Id"])).code == "rate_device"
    assert site.issued() == 1


async def test_copies_of_a_message_use_up_nothing_of_its_device_s(site: Site) -> None:
    _limited(site, per_device=2, per_credential=1)
    first = await good(site)
    for _ in range(10):
        await served(site, first, post(first.encode()))
    signer = self_signed("another")
    again = await site.message(signer, make_csr(signer.key, "sensor", await site.new_secret()))
    reply = await site.exchange(post(again.encode()))
    assert (reply.status, site.issued()) == (200, 2)


async def test_what_finds_no_turn_is_told_to_come_again_before_it_costs_anything(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    request = await good(site)
    monkeypatch.setattr(site.core, "gate", Gate(at_once=1, waiting=0, hold=0))
    await site.core.enter("192.0.2.1")
    reply = await site.exchange(post(request.encode()))
    check_profile(reply)
    assert (reply.status, site.issued()) == (503, 0)
    assert reply.body.startswith(b"Too many requests come in; ask again later. (request ")
    assert 5 <= int(reply.headers["Retry-After"]) <= 30
    assert (await site.exchange(get("/scep?operation=GetCACert"))).status == 200, "what costs nothing is served"
    site.core.leave()
    await served(site, request, post(request.encode()))
