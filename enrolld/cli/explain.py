"""`enrolld explain`: from a request id to what happened, from a captured SCEP request or a CSR to what would happen."""

import base64
import contextlib
import os
import re
import sys
from dataclasses import replace
from typing import TYPE_CHECKING

import click

from ca_core.errors import MalformedRequest, NotFound, OperatorError, Refusal, UnsupportedMedia
from enrolld.cli import output
from enrolld.cli.explain_csr import explain_csr
from enrolld.cli.frame import CommandWithGlobals, Session, pass_session

if TYPE_CHECKING:
    from ca_core.core import Core
    from scep_server.story import Captured, Explanation, Step

FIELDS = ["at", "request_id", "realm", "device", "source", "protocol", "operation", "outcome", "code", "message"]
FIELDS += ["detail", "serial", "key", "tls", "transaction_id"]
MAX_INPUT = 512 * 1024  # a message of the 128 KiB that are read, in base64 and percent-encoded, with room to spare


@click.command(cls=CommandWithGlobals)
@click.argument("what", metavar="REQUEST-ID|FILE")
@click.option("--realm", metavar="R", help="Whose request FILE holds, where no path in it says so [default].")
@click.option("--profile", metavar="P", help="For a CSR: the profile [the device's own, else the realm's for EST].")
@click.option("--device", metavar="NAME", help="For a CSR: the device that asks [the one in its CN].")
@click.option(
    "--renews", metavar="SERIAL|FILE", help="For a CSR: the certificate that it renews, by its serial number or PEM."
)
@pass_session
def explain(
    session: Session, what: str, realm: str | None, profile: str | None, device: str | None, renews: str | None
) -> None:
    """Say why a request was answered as it was, or what would be made now of the SCEP request or CSR in FILE.

    REQUEST-ID stands in the log and in the answer. FILE ('-' is standard input) holds a pkiMessage (DER, BER, base64 or
    PEM), the URL or request line of a GET, or a whole HTTP request. It is decoded step by step; nothing is issued,
    spent or recorded, and the challengePassword is told as matched or not, never shown. Of a PKCS#10 request (CSR; PEM,
    DER or base64) it is told field by field what a certificate would say and from where, and what would be refused.
    """
    if renews is not None and device is not None:
        raise click.UsageError("--renews names the device already, whose certificate that is.")
    if what == "-" or os.path.exists(what):
        captured = read_capture(_read(what))
        if captured.target is None and is_csr(captured.body):
            shown = _certificate(renews) if renews is not None and os.path.exists(renews) else renews
            explain_csr(session, what, captured.body, realm=realm, profile=profile, device=device, renews=shown)
            return
        if (profile, device, renews) != (None, None, None):
            raise click.UsageError("--profile, --device and --renews go with a CSR, and the file holds a SCEP request.")
        _explain_capture(session, what, captured, realm)
        return
    if (realm, profile, device, renews) != (None, None, None, None):
        raise click.UsageError("--realm and the like go with a file, and there is none of this name.")
    try:
        values = output.plain(session.run(lambda core: core.attempts.explain(what)))
    except OperatorError as exc:
        if exc.code != "request_unknown":
            raise
        message = f"There is no file of this name, and {exc.message}."
        raise OperatorError(exc.code, message, f"Name a captured request that is there; of ids: {exc.remedy}.") from exc
    if session.json:
        output.emit_json(values)
        return
    output.details((name.replace("_", " "), values.get(name)) for name in FIELDS if values.get(name) is not None)
    if values.get("remedy"):
        output.words(output.printable(values["remedy"]))


def is_csr(data: bytes) -> bool:
    """Whether it begins as a PKCS#10 request does: where CMS has its content type, that has the request itself."""
    if data[:1] != bytes([_SEQUENCE]) or len(data) < 6:
        return False
    start = 2 + (data[1] & 0x7F if data[1] > 0x80 else 0)
    return data[start : start + 1] == bytes([_SEQUENCE])


def _certificate(path: str) -> bytes:
    """The certificate in a file (PEM, DER or base64), as DER; what it says is not looked at."""
    data = _read(path)
    if data[:1] == bytes([_SEQUENCE]):
        return data
    text = data.decode("latin-1")
    found = _PEM.search(text)  # of several the first: a chain begins with the device's own
    return _base64(found[1] if found else text)


def _explain_capture(session: Session, path: str, captured: "Captured", realm: str | None) -> None:
    async def body(core: "Core") -> "Explanation":
        from ca_core.registration.rehearsal import Rehearsal
        from scep_server.explain import explain

        config = core.config
        rehearsal = Rehearsal(
            core.store,
            config.unlock_key,
            clock=config.clock,
            public_url=config.public_url,
            demo=config.demo,
            hsm=core.hsm,
        )
        if realm is not None:
            await rehearsal.realms.get(realm)
        return await explain(rehearsal, captured, config.clock, realm=realm)

    missing: OperatorError | None = None
    try:
        found = session.run(body, key=True)
    except OperatorError as exc:
        if not exc.code.startswith("unlock_key"):
            raise
        missing = exc  # what can be read without the key is read all the same
        found = session.run(body)
    steps = [_with_key_remedy(session, step, found, missing) for step in found.steps]
    if session.json:
        values = {
            "file": path,
            "form": found.form,
            "realm": found.realm,
            "operation": found.operation,
            "transaction_id": found.transaction_id,
            "steps": [output.plain(step) for step in steps],
            "verdict": output.plain(found.verdict),
        }
        output.emit_json(values)
        return
    width = max(len(step.step) for step in steps)
    for step in steps:
        mark = {True: "ok", False: "FAIL", None: "?"}[step.ok]
        output.raw(f"{mark:<4}  {step.step.replace('_', ' '):<{width}}  {output.printable(step.text)}")
        if step.remedy:
            output.raw(f"{'':<{width + 8}}{output.printable(step.remedy)}")
    answer = f" The client would see {found.verdict.answer}." if found.verdict.answer else ""
    output.raw("")
    output.raw(output.printable(found.verdict.sentence + answer))


def _with_key_remedy(session: Session, step: "Step", found: "Explanation", missing: OperatorError | None) -> "Step":
    """The step that wants the RA's key, with what to do about that."""
    if step.ok is not None or found.locked is None:
        return step
    from ca_core.errors import SealingFailed
    from enrolld import faults, unlock

    if isinstance(found.locked, SealingFailed):
        fault = faults.fault_of(found.locked)
        return replace(step, code=fault.code, remedy=fault.remedy)
    exc = missing or unlock.missing(session.node())
    return replace(step, text=f"not tried: {exc.message}", code=exc.code, remedy=exc.remedy)


def _read(path: str) -> bytes:
    if path == "-":
        data = sys.stdin.buffer.read(MAX_INPUT + 1)
    elif os.path.isdir(path):
        raise OperatorError("input_unreadable", f"{path} is a directory.", "Name a file in it.")
    else:
        with open(path, "rb") as file:
            data = file.read(MAX_INPUT + 1)
    if len(data) > MAX_INPUT:
        raise OperatorError(
            "input_too_large",
            f"The input is longer than {MAX_INPUT // 1024} KiB, and no SCEP request is.",
            "Cut the one request out of it.",
        )
    return data


# --- what was caught -------------------------------------------------------------------------------------------------

_REQUEST_LINE = re.compile(r"([A-Z]{3,10}) ([^ ]+)(?: (HTTP/[0-9.]+))?")
_TARGET = re.compile(r"(/[^\s]*)(?: HTTP/[0-9.]+)?")
_URL = re.compile(r"https?://([^/?#\s]*)([^#\s]*)(?:#\S*)?", re.IGNORECASE)
_PEM = re.compile(r"-----BEGIN [A-Z0-9 ]+-----([^-]*)-----END")
_SEQUENCE = 0x30  # what every pkiMessage begins with


def read_capture(data: bytes) -> "Captured":
    """Find out by its content what was caught. Raises `OperatorError` for what is none of it."""
    from scep_server.ber import to_der
    from scep_server.story import Captured

    if data[:1] == bytes([_SEQUENCE]):
        form = "der"
        with contextlib.suppress(ValueError):  # that it is neither is told when it is decoded
            form = "der" if to_der(data) == data else "ber"
        return Captured(form, len(data), data)
    text = data.removeprefix(b"\xef\xbb\xbf").decode("latin-1").lstrip()
    first, _, rest = text.partition("\n")
    first = first.rstrip()
    if found := _REQUEST_LINE.fullmatch(first):
        # An empty line alone may be an editor's; as HTTP writes it, it ends a head without a field.
        return _http(data, found, is_whole=bool(rest.strip()) or rest.startswith("\r\n"))
    if found := _URL.fullmatch(text.rstrip()):
        target = found[2] if found[2].startswith("/") else f"/{found[2]}"
        return Captured("url", len(data), method="GET", target=target, host=_host(found[1].rpartition("@")[2]))
    if found := _TARGET.fullmatch(text.rstrip()):
        return Captured("target", len(data), method="GET", target=found[1])
    form, inner = ("pem", found[1]) if (found := _PEM.search(text)) else ("base64", text)
    message = _base64(inner)
    if message[:1] != bytes([_SEQUENCE]):
        raise OperatorError(
            "input_unknown",
            "The input is none of what can be explained." if data.strip() else "The input is empty.",
            "Give a CSR or pkiMessage (DER, BER, base64 or PEM), the URL or line of a GET, or a whole HTTP request.",
        )
    return Captured(form, len(data), message)


def _base64(text: str) -> bytes:
    """What the text is base64 of, in either alphabet and however it is broken into lines; empty when it is not."""
    packed = "".join(text.split()).rstrip("=").translate(str.maketrans("-_", "+/"))
    try:
        return base64.b64decode(packed + "=" * (-len(packed) % 4), validate=True)
    except ValueError:  # also for what is not ASCII
        return b""


def _http(data: bytes, line: re.Match[str], *, is_whole: bool) -> "Captured":
    """A request line, with or without what follows it."""
    from enrolld.http_refusal import HttpLimits
    from scep_server.story import Captured

    method, target, version = line[1], line[2], line[3]
    host: str | None = None
    is_absolute = False
    if found := _URL.fullmatch(target):
        host, target, is_absolute = _host(found[1]), found[2] or "/", is_whole
    form = "http" if is_whole else "request-line"
    captured = Captured(form, len(data), method=method, target=target, host=host)
    if is_absolute:  # a proxy is asked so, and this server is none; a line alone may come out of a proxy's log
        return replace(captured, fault=NotFound("http_not_found", "The request target is a whole URL."))
    if len(target) > HttpLimits().max_line_size:
        return replace(captured, fault=MalformedRequest("http_target_too_long", "The request target is too long."))
    if not is_whole:
        return captured
    head, body = _split(data)
    fields = _fields(head)
    if "host" in fields:
        host = _host(fields["host"])
    elif version == "HTTP/1.1":
        return replace(captured, fault=MalformedRequest("http_no_host", "The request has no Host header."))
    try:
        body = _body(fields, body) if method == "POST" else b""
    except Refusal as refusal:
        return replace(captured, host=host, fault=refusal)
    return replace(captured, host=host, body=body)


def _split(data: bytes) -> tuple[str, bytes]:
    """The head and the body, also where somebody's editor changed the ends of lines."""
    found = re.search(rb"\r?\n\r?\n", data.lstrip())
    start = len(data) - len(data.lstrip())
    end = (start + found.start(), start + found.end()) if found else (len(data), len(data))
    return data[start : end[0]].decode("latin-1"), data[end[1] :]


def _fields(head: str) -> dict[str, str]:
    pairs = (line.partition(":") for line in head.splitlines()[1:])
    return {name.strip().lower(): value.strip() for name, colon, value in pairs if colon}


def _body(fields: dict[str, str], body: bytes) -> bytes:
    if fields.get("content-encoding", "identity").lower() not in ("", "identity"):
        raise UnsupportedMedia("content_coding_unsupported", "A body with a Content-Encoding is not read here.")
    if coding := fields.get("transfer-encoding", "").lower():
        if coding != "chunked":
            raise UnsupportedMedia("content_coding_unsupported", "A body with this Transfer-Encoding is not read here.")
        return _unchunked(body)
    length = fields.get("content-length", "")
    if not (length.isascii() and length.isdigit() and len(length) < 12):
        return body if not length else b""
    if len(body) < int(length):
        raise MalformedRequest(
            "http_body_truncated",
            "The body is shorter than announced.",
            detail=f"{len(body)} of {length} bytes are in the capture",
        )
    return body[: int(length)]


def _unchunked(body: bytes) -> bytes:
    out = bytearray()
    while True:
        line, end, body = body.partition(b"\r\n")
        size = line.partition(b";")[0].strip()
        if not end or not re.fullmatch(rb"[0-9A-Fa-f]{1,6}", size) or len(body) < (length := int(size, 16)):
            raise MalformedRequest("http_malformed", "The body did not arrive whole.", detail="a chunk is cut off")
        if length == 0:
            return bytes(out)
        out += body[:length]
        body = body[length:].removeprefix(b"\r\n")


def _host(authority: str) -> str | None:
    """In lower case and without its port."""
    host, colon, port = authority.strip().lower().rpartition(":")
    name = host if colon and port.isdigit() else authority.strip().lower()
    return name.removesuffix(".") or None
