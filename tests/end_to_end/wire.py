"""A client that sends exactly the bytes it is told, over real TLS verified against one root.

The foreign clients show that good requests work; this one can be wrong in ways they refuse to be.
"""

import base64
import contextlib
import re
import socket
import ssl
from dataclasses import dataclass
from pathlib import Path

from asn1crypto import cms
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import NameOID

__all__ = [
    "Answer",
    "basic",
    "body_of",
    "context",
    "csr",
    "enroll_request",
    "exchange",
    "exchange_plainly",
    "only_certificate",
    "read_answer",
    "request_id_in",
]

PrivateKey = ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey


@dataclass(frozen=True, slots=True)
class Answer:
    """One HTTP answer, as it came."""

    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def text(self) -> str:
        """The body of a refusal."""
        return self.body.decode("ascii")

    @property
    def request_id(self) -> str:
        """The request id that a refusal ends with."""
        return request_id_in(self.text)

    @property
    def certificate(self) -> x509.Certificate:
        """The one certificate of a certs-only answer."""
        assert self.status == 200, f"{self.status} {self.body!r}"
        return only_certificate(base64.b64decode(self.body))


REQUEST_ID = re.compile(r"\(request ([0-9a-z-]{6,40})\)")


def request_id_in(sentence: str) -> str:
    """The request id in what a peer is told."""
    found = REQUEST_ID.search(sentence)
    assert found, f"no request id in {sentence!r}"
    return found[1]


def only_certificate(pkcs7: bytes) -> x509.Certificate:
    # "...containing only the certificate that was issued." -- RFC 7030 4.2.3
    content = cms.ContentInfo.load(pkcs7, strict=True)
    assert content["content_type"].native == "signed_data"
    (certificate,) = content["content"]["certificates"]
    assert len(content["content"]["signer_infos"]) == 0
    return x509.load_der_x509_certificate(certificate.chosen.dump())


def context(root: Path, *, certificate: Path | None = None, key: Path | None = None) -> ssl.SSLContext:
    """TLS that trusts `root` and nothing else, checks the server's name, and shows `certificate` when asked."""
    made = ssl.create_default_context(cafile=str(root))
    if certificate is not None:
        made.load_cert_chain(certificate, key)
    return made


def csr(key: PrivateKey, common_name: str | None, *, san: list[x509.GeneralName] | None = None) -> bytes:
    """A plain PKCS#10 request, DER."""
    attributes = [] if common_name is None else [x509.NameAttribute(NameOID.COMMON_NAME, common_name)]
    builder = x509.CertificateSigningRequestBuilder().subject_name(x509.Name(attributes))
    if san:
        builder = builder.add_extension(x509.SubjectAlternativeName(san), critical=False)
    return builder.sign(key, hashes.SHA256()).public_bytes(Encoding.DER)


def basic(username: str, password: str) -> str:
    """The Authorization header of RFC 7617."""
    return "Basic " + base64.b64encode(f"{username}:{password}".encode()).decode()


def body_of(der: bytes) -> bytes:
    """An enroll body: base64 in lines of 64 columns and a final line feed, as openssl writes it."""
    text = base64.b64encode(der)
    return b"".join(text[start : start + 64] + b"\n" for start in range(0, len(text), 64))


def enroll_request(
    body: bytes,
    *,
    path: str = "/.well-known/est/simpleenroll",
    authorization: str | None = None,
    headers: dict[str, str] | None = None,
    host: str = "localhost",
) -> bytes:
    """The bytes of one enroll request; `headers` add to the usual ones, or replace those of the same name."""
    fields = {
        "Host": host,
        "Content-Type": "application/pkcs10",
        "Content-Length": str(len(body)),
        **({"Authorization": authorization} if authorization is not None else {}),
        **(headers or {}),
    }
    head = "".join(f"{name}: {value}\r\n" for name, value in fields.items())
    return f"POST {path} HTTP/1.1\r\n{head}\r\n".encode() + body


def exchange(port: int, tls: ssl.SSLContext, request: bytes, *, host: str = "localhost") -> Answer:
    """Send `request` on a new connection and read one answer.

    A server that refuses while the request is still coming may close the connection under the rest of it; what it said
    before that is what counts.
    """
    with (
        socket.create_connection(("127.0.0.1", port), timeout=30) as plain,
        tls.wrap_socket(plain, server_hostname=host) as connection,
    ):
        with contextlib.suppress(BrokenPipeError, ConnectionResetError, ssl.SSLError):
            connection.sendall(request)
        return read_answer(connection)


def exchange_plainly(port: int, request: bytes) -> Answer:
    """The same without TLS."""
    with socket.create_connection(("127.0.0.1", port), timeout=30) as connection:
        connection.sendall(request)
        return read_answer(connection)


def read_answer(connection: socket.socket) -> Answer:
    """One answer, and that nothing follows it at once."""
    received = b""
    while b"\r\n\r\n" not in received:
        received += _more(connection, received)
    head, _, body = received.partition(b"\r\n\r\n")
    status_line, *lines = head.decode("ascii").split("\r\n")
    version, status, *_reason = status_line.split(" ", 2)
    assert version in {"HTTP/1.1", "HTTP/1.0"}, status_line
    headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
    # RFC 9112 6.3; enrolld promises a Content-Length with every answer that can have a body
    length = 0 if status == "204" else int(headers["content-length"])
    while len(body) < length:
        body += _more(connection, body)
    assert len(body) == length, "bytes follow the answer"
    return Answer(int(status), headers, body)


def _more(connection: socket.socket, so_far: bytes) -> bytes:
    received = connection.recv(65536)
    assert received, f"the connection ended after {so_far!r}"
    return received
