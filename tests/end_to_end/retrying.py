"""Clients that ask until they are answered, with the same key and the same secret, as devices do.

They write down in an `Enrollment` what they asked for and every certificate that ever reached them.
"""

import base64
import http.client
import secrets
import ssl
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat

from tests.end_to_end import scep_wire, wire
from tests.helpers.ledger import Enrollment

__all__ = ["PATIENCE", "Answer", "Est", "Scep", "Wanted", "ask_once", "ask_until_answered"]

PATIENCE = 90.0  # seconds for one certificate, over however many kills
_ANSWER_SECONDS = 30.0
_PAUSE = 0.02
_PAUSE_IF_PUT_OFF = 0.2  # far less than Retry-After says: these clients are there to be in the way
_CUT = (OSError, http.client.HTTPException)

PrivateKey = ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey


@dataclass(frozen=True, slots=True)
class Answer:
    """What came: a certificate (DER), a refusal that is meant (`told` is what stood in it), 503 (`put_off`), or
    something else (`strange`).
    """

    certificate: bytes | None = None
    refused: bool = False
    told: str = ""
    put_off: bool = False
    strange: str = ""


@dataclass(frozen=True, slots=True)
class Wanted:
    """What is asked for, and how: `ask` sends it once, and raises what cuts the connection."""

    enrollment: Enrollment
    ask: Callable[[], Answer]


class Est:
    """Enrolls over verified TLS, each time on a new connection."""

    def __init__(self, port: int, root: Path) -> None:
        self._port = port
        self._root = root
        self._tls = wire.context(root)

    def by_secret(self, key: ec.EllipticCurvePrivateKey, device: str, secret: str) -> Wanted:
        """A first certificate."""
        authorization = wire.basic(device, secret)

        def ask() -> Answer:
            # ECDSA signs differently each time: other bytes, the same key and names
            return self._post(self._tls, "simpleenroll", wire.csr(key, device), {"Authorization": authorization})

        return Wanted(Enrollment(device, _spki(key), secret), ask)

    def renewal(self, key: PrivateKey, device: str, own: bytes, own_key: PrivateKey) -> Wanted:
        """A certificate in place of `own`, for another key."""
        tls = wire.context(self._root)
        with tempfile.NamedTemporaryFile(suffix=".pem") as file:
            file.write(x509.load_der_x509_certificate(own).public_bytes(Encoding.PEM))
            file.write(own_key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
            file.flush()
            tls.load_cert_chain(file.name)

        def ask() -> Answer:
            return self._post(tls, "simplereenroll", wire.csr(key, device), {})

        return Wanted(Enrollment(device, _spki(key), None), ask)

    def _post(self, tls: ssl.SSLContext, operation: str, csr: bytes, headers: dict[str, str]) -> Answer:
        connection = http.client.HTTPSConnection("127.0.0.1", self._port, timeout=_ANSWER_SECONDS, context=tls)
        status, body = _post(
            connection,
            f"/.well-known/est/{operation}",
            wire.body_of(csr),
            {"Content-Type": "application/pkcs10", **headers},
        )
        if status == 200:
            return Answer(wire.only_certificate(base64.b64decode(body)).public_bytes(Encoding.DER))
        if status in (401, 403):
            return Answer(refused=True, told=body.decode(errors="replace").strip())
        return _neither(status, body)


class Scep:
    """Enrolls by PKIOperation, each time on a new connection."""

    def __init__(self, port: int, ra: bytes) -> None:
        self._port = port
        self._ra = ra

    def by_secret(self, key: rsa.RSAPrivateKey, device: str, secret: str) -> Wanted:
        """A first certificate."""
        return self._wanted(key, key, device, secret, None)

    def renewal(self, key: rsa.RSAPrivateKey, device: str, own: bytes, own_key: rsa.RSAPrivateKey) -> Wanted:
        """A certificate in place of `own`, for another key."""
        return self._wanted(key, own_key, device, None, own)

    def _wanted(
        self, key: rsa.RSAPrivateKey, signing: rsa.RSAPrivateKey, device: str, secret: str | None, own: bytes | None
    ) -> Wanted:
        transaction = secrets.token_hex(16).encode()

        def ask() -> Answer:
            message = scep_wire.enroll_message(
                self._ra,
                key,
                device,
                secret,
                signer=(signing, own) if own is not None else None,
                message_type=17 if own is not None else 19,
                transaction=transaction,
            )
            connection = http.client.HTTPConnection("127.0.0.1", self._port, timeout=_ANSWER_SECONDS)
            status, body = _post(connection, "/scep?operation=PKIOperation", message, {})
            if status == 200 and scep_wire.succeeded(body):
                return Answer(scep_wire.issued_in(body, signing).public_bytes(Encoding.DER))
            if status == 200 and scep_wire.failed(body):
                return Answer(refused=True, told=scep_wire.told_in(body))
            return _neither(status, body)

        return Wanted(Enrollment(device, _spki(key), secret), ask)


def ask_until_answered(wanted: Wanted, *, patience: float = PATIENCE) -> Enrollment:
    """Ask again after each try that is cut, put off or meets nobody, until there is a certificate or a refusal."""
    end = time.monotonic() + patience
    had = wanted.enrollment.put_off
    while not ask_once(wanted) and time.monotonic() < end:
        time.sleep(_PAUSE if wanted.enrollment.put_off == had else _PAUSE_IF_PUT_OFF)
        had = wanted.enrollment.put_off
    return wanted.enrollment


def ask_once(wanted: Wanted) -> bool:
    """Ask, and write down what came. Whether that was a certificate or a refusal."""
    enrollment = wanted.enrollment
    try:
        answer = wanted.ask()
    except ConnectionRefusedError:
        enrollment.not_heard += 1
        return False
    except ssl.SSLCertVerificationError:
        raise
    except _CUT:
        enrollment.lost += 1
        return False
    if answer.certificate is not None:
        enrollment.received.append(answer.certificate)
    elif answer.refused:
        enrollment.refused, enrollment.told = True, answer.told
    elif answer.put_off:
        enrollment.put_off += 1
        return False
    else:
        enrollment.strange.append(answer.strange)
    return not answer.strange


def _neither(status: int, body: bytes) -> Answer:
    return Answer(put_off=True) if status == 503 else Answer(strange=f"HTTP {status} {body[:200]!r}")


def _post(connection: http.client.HTTPConnection, path: str, body: bytes, headers: dict[str, str]) -> tuple[int, bytes]:
    try:
        connection.request("POST", path, body, headers)
        answer = connection.getresponse()
        return answer.status, answer.read()
    finally:
        connection.close()


def _spki(key: PrivateKey) -> bytes:
    return key.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
