"""Admission by a webhook: a server of the operator's is asked, and may narrow what is issued or refuse it.

It can't admit: whoever it is asked about has proven who it is by another means, and what it allows is never more than
what would be issued without it. Every failure refuses. This room says what is asked and which answers count; how they
travel is `enrolld.webhook`'s.
"""

import datetime as dt
import ipaddress
import json
import re
from dataclasses import dataclass
from typing import Any, Protocol

import msgspec
from cryptography import x509

from ca_core.errors import NotAuthorized, OperatorError
from ca_core.model import Means, Operation, ProtocolName
from ca_core.names import is_key_name, parse_duration
from ca_core.registration.admission.webhook_address import Network, address_fault, is_loopback, network_fault
from ca_core.registration.template import canonical_name

__all__ = [
    "MAX_ANSWER",
    "Idevid",
    "Question",
    "Verdict",
    "Webhook",
    "WebhookDocument",
    "check_narrows",
    "encode_question",
    "read_verdict",
    "webhook_faults",
    "webhook_refusal",
]

MAX_ANSWER = 16 * 1024  # enforces case 49
LONGEST = dt.timedelta(seconds=3)
_SENTENCE = "The operator's policy did not allow this request."
_MAX_REASON = 200
_MAX_URL = 1024
_MAX_NETWORKS = 64
_MAX_PEM = 64 * 1024
_URL = re.compile(
    r"(?P<scheme>https?)://(?P<host>\[[0-9A-Fa-f:.]{2,45}\]|[A-Za-z0-9._-]{1,253})(:(?P<port>[1-9][0-9]{0,4}))?"
    r"(/[A-Za-z0-9._~!$&'()*+,;=:@%/-]*(\?[A-Za-z0-9._~!$&'()*+,;=:@%/?-]*)?)?",
    re.ASCII,
)
_LABEL = re.compile(r"[a-z0-9_]([a-z0-9_-]{0,61}[a-z0-9_])?", re.ASCII)
_NUMBER = re.compile(r"[0-9]+|0x[0-9a-f]*", re.ASCII)


class WebhookDocument(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=False):
    """A realm's webhook.

    `key` is a name under `[webhook_keys]` of each node's enrolld.toml: the key itself never stands in a document.
    `networks` are the only ones that the URL's host may be in, empty for public addresses; a loopback URL reaches this
    machine and nothing else. `ca_pem` holds the CA certificates that the server is verified with, empty for the
    system's. `signed_answer` refuses answers that the key has not signed.
    """

    url: str
    key: str
    timeout: str = "3s"
    networks: tuple[str, ...] = ()
    ca_pem: str = ""
    signed_answer: bool = False

    @property
    def seconds(self) -> float:
        """How long a call may take, its address, its connection and its answer together."""
        return min(parse_duration(self.timeout), LONGEST).total_seconds()

    @property
    def host(self) -> str:
        """The URL's host, an IPv6 address without its brackets."""
        return _parts(self.url)["host"].strip("[]").lower()

    @property
    def port(self) -> int:
        """The URL's port, or its scheme's."""
        parts = _parts(self.url)
        return int(parts["port"] or {"http": 80, "https": 443}[parts["scheme"]])

    @property
    def is_loopback(self) -> bool:
        """Whether the URL names this machine."""
        return is_loopback(self.host)

    @property
    def allowed(self) -> tuple[Network, ...]:
        """The allow-list."""
        return tuple(ipaddress.ip_network(text) for text in self.networks)


@dataclass(frozen=True, slots=True)
class Idevid:
    """What a factory identity says: its issuer (RFC 4514), its subject's serialNumber, and the SHA-256 of it, hex."""

    issuer: str
    serial_number: str
    fingerprint_sha256: str


@dataclass(frozen=True, slots=True)
class Question:
    """What a webhook is asked. There is no secret in it.

    `subject` (RFC 4514) and `asked` are what the CSR asks for; `names` and `validity` what will be issued unless the
    webhook narrows it, names as `DNS:x`, `IP:x`, `URI:x`. `key_kind` is such as `EC P-256`, `key_sha256` the SHA-256 of
    its SubjectPublicKeyInfo, hex. `source` is the peer's address. `operation` is the decision's, not the wire's word.
    """

    request_id: str
    realm: str
    profile: str
    protocol: ProtocolName
    operation: Operation
    device: str | None
    subject: str
    asked: tuple[str, ...]
    names: tuple[str, ...]
    validity: dt.timedelta
    key_kind: str
    key_sha256: str
    source: str
    means: tuple[Means, ...]
    idevid: Idevid | None = None


@dataclass(frozen=True, slots=True)
class Verdict:
    """What a webhook answered. `validity` and `names` are None where it leaves them as they are.

    `reason` is for the operator: printable, at most a few hundred characters.
    """

    allow: bool
    reason: str = ""
    validity: dt.timedelta | None = None
    names: tuple[str, ...] | None = None


class Webhook(Protocol):
    """Asks."""

    async def ask(self, document: WebhookDocument, question: Question) -> Verdict:
        """The verdict, which allows, and narrows or leaves as it is.

        Raises `NotAuthorized` when it refuses (`webhook_refused`) or fails (`webhook_timeout` and the like),
        `Unavailable` when it can't be asked from here: no key of that name, or too many that wait for it.
        """
        ...


def webhook_refusal(code: str, detail: str) -> NotAuthorized:
    """A refusal with one sentence for all: how a webhook fails is nothing that a peer should learn."""
    return NotAuthorized(code, _SENTENCE, detail=detail)


def encode_question(question: Question) -> bytes:
    """The body of the request: JSON, whose fields are only ever added to."""
    told: dict[str, Any] = {
        "request_id": question.request_id,
        "realm": question.realm,
        "profile": question.profile,
        "protocol": question.protocol,
        "operation": question.operation,
        "device": question.device,
        "means": question.means,
        "source": question.source,
        "asks": {"subject": question.subject, "names": question.asked},
        "offer": {"names": question.names, "validity": _duration(question.validity)},
        "key": {"kind": question.key_kind, "sha256": question.key_sha256},
        "idevid": question.idevid,
    }
    return msgspec.json.encode(told)


class _Answer(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    allow: bool
    reason: str = ""
    validity: str | msgspec.UnsetType = msgspec.UNSET
    names: tuple[str, ...] | msgspec.UnsetType = msgspec.UNSET


_ANSWER = msgspec.json.Decoder(_Answer)


def read_verdict(body: bytes) -> Verdict:
    """The verdict in an answer: JSON with `allow`, and perhaps `reason`, `validity`, `names`, and nothing else.

    Raises `NotAuthorized`: `webhook_too_large`, `webhook_malformed`.
    """
    if len(body) > MAX_ANSWER:  # enforces case 49
        raise webhook_refusal("webhook_too_large", f"the answer has more than {MAX_ANSWER} bytes")
    try:
        answer = _ANSWER.decode(body)
        json.loads(body, object_pairs_hook=_once)  # msgspec lets the last of two win; it is as flat as it says by now
    except (msgspec.DecodeError, ValueError) as exc:
        raise webhook_refusal("webhook_malformed", f"the answer is not what it should be: {_shown(str(exc))}") from exc
    try:
        validity = None if answer.validity is msgspec.UNSET else parse_duration(answer.validity)
        names = None if answer.names is msgspec.UNSET else tuple(map(canonical_name, answer.names))
    except OperatorError as exc:
        raise webhook_refusal("webhook_malformed", f"the answer is not what it should be: {exc.message}") from exc
    if names is not None and len(set(names)) < len(names):
        raise webhook_refusal("webhook_malformed", "the answer has a name twice")
    return Verdict(answer.allow, _shown(answer.reason), validity, names)


def check_narrows(verdict: Verdict, question: Question) -> None:
    """Raises `NotAuthorized` unless it allows, and no more than was offered: `webhook_refused`, `webhook_widens`."""
    if not verdict.allow:
        raise webhook_refusal("webhook_refused", verdict.reason or "it gave no reason")
    if verdict.validity is not None and verdict.validity > question.validity:
        told = f"{_duration(verdict.validity)} is more than {_duration(question.validity)}"
        raise webhook_refusal("webhook_widens", told)
    if wider := sorted(set(verdict.names or ()) - set(question.names)):
        raise webhook_refusal("webhook_widens", f"not offered: {_shown(', '.join(wider))}")


def webhook_faults(document: WebhookDocument, path: str) -> list[str]:
    """Every fault of the document, each with the key that it stands under; `path` is that of the document itself."""
    faults = [
        f"{path}.networks[{i}]: {fault}" for i, text in enumerate(document.networks) if (fault := network_fault(text))
    ]
    if len(document.networks) > _MAX_NETWORKS:
        faults.append(f"{path}.networks: more than {_MAX_NETWORKS} (name larger ones)")
    if fault := _url_fault(document, networks=() if faults else document.allowed):
        faults.append(f"{path}.url: {fault}")
    if not is_key_name(document.key):
        faults.append(
            f"{path}.key: not the name of a key (up to 64 letters, digits, '_' and '-', as in [webhook_keys])"
        )
    try:
        if parse_duration(document.timeout) > LONGEST:
            faults.append(f"{path}.timeout: a device waits meanwhile (use at most {_duration(LONGEST)})")
    except OperatorError as exc:
        faults.append(f"{path}.timeout: {exc.message} ({exc.remedy})")
    if fault := _pem_fault(document):
        faults.append(f"{path}.ca_pem: {fault}")
    return faults


def _url_fault(document: WebhookDocument, networks: tuple[Network, ...]) -> str | None:
    match = _URL.fullmatch(document.url) if len(document.url) <= _MAX_URL else None
    if match is None:
        return "not a URL without user, password and fragment (use https://hooks.example.com/enrolld)"
    host = match["host"].lower()
    if match["port"] and int(match["port"]) > 65535:
        return f"no port {match['port']} (use 1 to 65535)"
    try:
        address = ipaddress.ip_address(host.strip("[]"))
    except ValueError:
        labels = host.split(".")
        # What looks like a number is an address to some (127.1, 0x7f.1, 2130706433), and a name to others.
        if host.startswith("[") or _NUMBER.fullmatch(labels[-1]):  # enforces case 49
            return f"'{host}' is neither a name nor an address (write addresses as 192.0.2.1 or [2001:db8::1])"
        if len(host) > 253 or not all(_LABEL.fullmatch(label) for label in labels):
            return f"'{host}' is not a host name (use a DNS name)"
    else:
        if address.version == 4 and host.startswith("["):
            return f"'{host}' is an IPv4 address (write it without brackets)"
        if address.version == 6 and address.ipv4_mapped is not None:
            return f"'{host}' is an IPv4 address (write it as {address.ipv4_mapped})"
        if fault := address_fault(address, networks, loopback=address.is_loopback):  # enforces case 49
            return fault
    if match["scheme"] == "http" and not is_loopback(host):  # enforces case 49
        return "http reaches this machine only (use https, or a loopback address)"
    return None


def _pem_fault(document: WebhookDocument) -> str | None:
    if not document.ca_pem:
        return None
    if document.url.startswith("http:"):
        return "http has nothing to verify (leave it out)"
    try:
        if len(document.ca_pem) > _MAX_PEM or not document.ca_pem.isascii():
            raise ValueError("more than any CA's certificates")
        x509.load_pem_x509_certificates(document.ca_pem.encode())
    except ValueError:
        return "not certificates in PEM (put the CA's there that the webhook's server has its own from)"
    return None


def _parts(url: str) -> dict[str, str]:
    match = _URL.fullmatch(url)
    if match is None:
        raise OperatorError("document_invalid", "the webhook's URL is not one", "look at 'realm export'")
    return match.groupdict()


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ValueError("a key stands twice")
    return found


def _duration(length: dt.timedelta) -> str:
    """As `parse_duration` takes it."""
    seconds = int(length.total_seconds())
    for size, unit in ((86400, "d"), (3600, "h"), (60, "m")):
        if seconds and seconds % size == 0:
            return f"{seconds // size}{unit}"
    return f"{seconds}s"


def _shown(text: str) -> str:
    """What a webhook wrote, safe to print and to keep."""
    return "".join(char if char.isprintable() else ascii(char)[1:-1] for char in text[:_MAX_REASON])
