"""Asking a webhook in a test: the client, documents that lead to its servers, and what they show."""

import datetime as dt
import ssl
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from ca_core.errors import NotAuthorized
from ca_core.registration.admission.webhook import WebhookDocument
from enrolld.webhook import WebhookClient
from enrolld.webhook_keys import WebhookKey
from tests.ca_core.registration.test_webhook import QUESTION
from tests.helpers.tls_pki import Identity, issue
from tests.helpers.webhooks import Hook, server_context

KEY = b"a key that both of them know...."
NAME = "hooks.example.com"
HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n"
"""How an answer begins."""


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


class Names:
    """A name server whose answers change with each question."""

    def __init__(self, *answers: list[str]) -> None:
        self.asked = 0
        self._answers = answers

    def __call__(self, host: str, port: int) -> list[str]:
        del host, port
        self.asked += 1
        return self._answers[min(self.asked, len(self._answers)) - 1]


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
