"""What an attack case stands on: the daemon, one honest device that speaks both protocols, and what the daemon says.

Every case has the honest device beside it, which differs in nothing but the fault, and which is served right after.
"""

import contextlib
import functools
import itertools
import json
import re
import ssl
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec, rsa

from ca_core.errors import OperatorError
from ca_core.rows import AttemptRow
from tests.attack_cases.talk import PATIENCE, Heard, talk
from tests.end_to_end import scep_wire, wire
from tests.helpers import bad_csr
from tests.helpers.daemon import Daemon, eventually
from tests.scep_server.client import Envelope, Request, attributes_of, make_certificate, tlv

__all__ = [
    "BAD_ALG",
    "BAD_MESSAGE_CHECK",
    "BAD_REQUEST",
    "EST",
    "SCEP",
    "SENTENCE",
    "Field",
    "Line",
    "field_of",
    "peak_memory",
]

SECONDS = 6.0
"""Within which anything is answered, however bad; on an idle machine it is a hundredth of that."""
MEMORY = 64 * 1024
"""KiB that a worker may grow by over what it is after its first request, whatever is sent."""
EST, SCEP = "est", "scep"
BAD_ALG, BAD_MESSAGE_CHECK, BAD_REQUEST = "0", "1", "2"
SENTENCE = re.compile(r"[A-Z][\x20-\x7e]+\. \(request [0-9a-z-]+\)\n")
_FAIL_INFO = "2.16.840.1.113733.1.9.4"
_SIMPLE_ENROLL = "/.well-known/est/simpleenroll"

_numbers = itertools.count(1)
Line = dict[str, Any]


@functools.cache
def _context(root: Path, written_at: float) -> ssl.SSLContext:
    del written_at  # another daemon may have written another root there
    return wire.context(root)


class Field:
    """One honest device with a network of its own, in one daemon."""

    def __init__(self, daemon: Daemon, ra: bytes, memory: int) -> None:
        number = next(_numbers)
        self.daemon = daemon
        self.ra = ra
        self.name = f"case-{number}"
        # Each its own /24, because log lines of refusals are limited by network.
        self.source = f"127.{1 + number // 256}.{number % 256}.1"
        self.key = ec.generate_private_key(ec.SECP256R1())
        self.secret = self.registered(self.name)
        self.authorization = wire.basic(self.name, self.secret)
        self.since = daemon.output.stat().st_size
        self._memory = memory
        self._rsa: rsa.RSAPrivateKey | None = None
        self._scep_name, self._scep_secret = f"{self.name}-scep", ""

    # --- the honest device

    @property
    def rsa_key(self) -> rsa.RSAPrivateKey:
        """The key with which the device speaks SCEP; there it is a device of its own, with a secret of its own."""
        if self._rsa is None:
            self._rsa = rsa.generate_private_key(65537, 2048)
            self._scep_secret = self.registered(self._scep_name)
        return self._rsa

    @property
    def scep_name(self) -> str:
        return self._scep_name

    @property
    def scep_secret(self) -> str:
        _ = self.rsa_key  # made together with the key
        return self._scep_secret

    @property
    def tls(self) -> ssl.SSLContext:
        """TLS that verifies the server by the realm's root alone."""
        return _context(self.daemon.root, self.daemon.root.stat().st_mtime)

    def become(self, *, est_profile: str, scep_profile: str) -> None:
        """Be another device, with profiles of its own."""
        self.name = f"{self.name}-{est_profile}"
        self.secret = self.registered(self.name, profile=est_profile)
        self.authorization = wire.basic(self.name, self.secret)
        self._rsa = rsa.generate_private_key(65537, 2048)
        self._scep_name = f"{self.name}-scep"
        self._scep_secret = self.registered(self._scep_name, profile=scep_profile)

    def registered(self, name: str, **options: Any) -> str:
        handed = self.daemon.inspect(lambda core: core.devices.add("default", name, actor="test", **options))
        return handed.secret

    def csr(self, *attributes: bytes, protocol: str = EST, subject: bytes | None = None, **bent: Any) -> bytes:
        """A CSR of the device, for one of the protocols, with everything that it needs there."""
        if protocol == EST:
            return bad_csr.make_csr(
                bent.pop("key", self.key), subject or bad_csr.name(self.name), *sorted(attributes), **bent
            )
        return bad_csr.make_csr(
            bent.pop("key", self.rsa_key),
            subject or bad_csr.name(self.scep_name),
            *sorted([*attributes, bad_csr.challenge(self.scep_secret)]),
            **bent,
        )

    def name_in(self, protocol: str) -> str:
        return self.name if protocol == EST else self.scep_name

    def enroll_request(self, body: bytes, **headers: str) -> bytes:
        """The bytes of an EST request, with the device's credentials."""
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        return wire.enroll_request(body, path=_SIMPLE_ENROLL, authorization=self.authorization, headers=named)

    def message(self, csr: bytes, **bent: Any) -> bytes:
        """A PKCSReq around a CSR, signed with the device's key."""
        return self.request(csr, **bent).encode()

    def request(self, csr: bytes, **bent: Any) -> Request:
        envelope = Envelope(**{"message": csr, "recipient": self.ra, **bent.pop("envelope", {})})
        return Request(
            **{
                "key": self.rsa_key,
                "signer": make_certificate(self.rsa_key.public_key()),
                "envelope": envelope,
                "transaction_id": tlv(0x13, scep_wire.transaction_of(self.rsa_key)),
                **bent,
            }
        )

    # --- asking

    def est(self, request: bytes, *more: bytes, answers: int | None = 1) -> Heard:
        """Say these bytes to the https listener."""
        return talk(
            self.daemon.https_port, request, *more, tls=self.tls, source=self.source, answers=answers, seconds=PATIENCE
        )

    def http(self, request: bytes, *more: bytes, answers: int | None = 1) -> Heard:
        """Say these bytes to the plain listener."""
        return talk(self.daemon.http_port, request, *more, source=self.source, answers=answers, seconds=PATIENCE)

    def scep(self, message: bytes, **headers: str) -> Heard:
        """POST a pkiMessage."""
        return self.http(scep_post(message, **headers))

    def ask(self, csr: bytes, protocol: str) -> Heard:
        """Ask for a certificate with this CSR, all else being as it should."""
        if protocol == EST:
            return self.est(self.enroll_request(wire.body_of(csr)))
        return self.scep(self.message(csr))

    # --- what must hold

    def assert_csr_refused(
        self, csr: bytes, protocol: str, code: str, *, status: int = 400, fail_info: str | None = None, words: str = ""
    ) -> Line:
        """A CSR is refused for this reason, in the way of the protocol."""
        if protocol == EST:
            return self.assert_refused(self.ask(csr, EST), status, code, words=words)
        return self.assert_failed(self.ask(csr, SCEP), code, fail_info, words=words)

    def assert_refused(self, heard: Heard, status: int, code: str, *, words: str = "") -> Line:
        """One answer in text: its status, its reason, and all else that a refusal promises. Returns its log line."""
        answer = heard.only
        assert answer.status == status, answer.body
        assert answer.headers["content-type"].startswith("text/plain")
        assert SENTENCE.fullmatch(answer.text), f"not one plain sentence: {answer.text!r}"
        assert answer.headers.get("server", "enrolld") == "enrolld"  # no version
        return self._assert_told(answer.request_id, heard, code, words)

    def assert_failed(self, heard: Heard, code: str, fail_info: str | None = None, *, words: str = "") -> Line:
        """One CertRep FAILURE, which says nothing but its failInfo."""
        answer = heard.only
        assert answer.status == 200, answer.body
        assert scep_wire.failed(answer.body), f"no FAILURE: {answer.body[:300]!r}"
        told = attributes_of(answer.body)[_FAIL_INFO]
        assert told in ((BAD_MESSAGE_CHECK, BAD_REQUEST) if fail_info is None else (fail_info,)), told
        return self._assert_told(answer.headers["x-request-id"], heard, code, words)

    def assert_served(self, csr: bytes | None = None, protocol: str | None = None) -> x509.Certificate:
        """The honest twin gets its certificate, in both protocols unless one is named."""
        if protocol is None:
            self.assert_served(csr, SCEP)
            return self.assert_served(csr, EST)
        asked = self.csr(protocol=protocol) if csr is None else csr
        return self.certificate_in(self.ask(asked, protocol), protocol)

    def certificate_in(self, heard: Heard, protocol: str) -> x509.Certificate:
        answer = heard.only
        if protocol == EST:
            return answer.certificate
        assert scep_wire.succeeded(answer.body), self.attempt(answer.headers["x-request-id"])
        return scep_wire.issued_in(answer.body, self.rsa_key)

    # --- what the daemon says

    def lines(self, text: str) -> list[Line]:
        """Log lines since this field began that hold the text; that each is one line of ASCII that is JSON."""
        with self.daemon.output.open("rb") as log:
            log.seek(self.since)
            raw = log.read()
        found = [line for line in raw.split(b"\n") if text.encode() in line]
        assert all(0x20 <= byte < 0x7F for line in found for byte in line), found
        return [json.loads(line) for line in found]

    def line(self, request_id: str) -> Line:
        """The one line of a request."""

        def told() -> list[Line] | None:
            return self.lines(request_id) or None

        lines = eventually(told, what=f"a log line of {request_id}")
        assert len(lines) == 1, lines
        return lines[0]

    def attempt(self, request_id: str) -> AttemptRow:
        """What `enrolld explain` says of a request."""

        def kept() -> AttemptRow | None:
            with contextlib.suppress(OperatorError):
                return self.daemon.inspect(lambda core: core.attempts.explain(request_id))
            return None

        return eventually(kept, what=f"an attempt {request_id}")

    def certificates(self, name: str | None = None) -> int:
        """How many certificates the device has."""
        return len(self.daemon.inspect(lambda core: core.certificates.list(device=name or self.name, limit=100)))

    def _assert_told(self, request_id: str, heard: Heard, code: str, words: str) -> Line:
        attempt = self.attempt(request_id)
        assert (attempt.outcome, attempt.code) == ("refused", code), attempt
        assert attempt.remedy
        if words:
            assert words in (attempt.message or ""), attempt
        line = self.line(request_id)
        assert line.get("event.code", code) == code, line
        assert code in json.dumps(line)
        assert heard.seconds < SECONDS, f"{heard.seconds:.1f} s"
        grown = peak_memory(self.daemon) - self._memory
        assert grown < MEMORY, f"a worker has grown by {grown} KiB"
        return line


def scep_post(message: bytes, **headers: str) -> bytes:
    """The bytes of a PKIOperation."""
    fields = {"Host": "localhost", "Content-Type": "application/x-pki-message", "Content-Length": str(len(message))}
    fields |= {name.replace("_", "-"): value for name, value in headers.items()}
    head = "".join(f"{name}: {value}\r\n" for name, value in fields.items())
    return f"POST /scep?operation=PKIOperation HTTP/1.1\r\n{head}\r\n".encode() + message


def field_of(daemon: Daemon) -> Iterator[Field]:
    """Fields of one daemon, one after the other: its RA is asked for once, and its memory is weighed once."""
    ra = scep_wire.ra_of(daemon.http_port)
    Field(daemon, ra, 0).assert_served()  # whatever is loaded only for the first request is loaded now
    memory = peak_memory(daemon)
    while True:
        yield Field(daemon, ra, memory)


def workers(daemon: Daemon) -> list[int]:
    """The daemon's worker processes."""
    pid = daemon.process.pid
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def peak_memory(daemon: Daemon) -> int:
    """The largest peak of a worker's memory, in KiB."""
    return max(int(_status(pid, "VmHWM").split()[0]) for pid in workers(daemon))


def _status(pid: int, name: str) -> str:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(line.partition(":")[2] for line in lines if line.startswith(f"{name}:"))
