"""TLS contexts: made once for each server certificate, and exchanged when it is renewed."""

from dataclasses import dataclass, field

import pytest

from ca_core.errors import InternalError
from enrolld.contexts import Contexts
from tests.helpers.tls_pki import Identity, tls_pki


@dataclass
class Shown:
    """A server certificate as the core hands it out."""

    identity: Identity
    ask_client_certificate: bool = True
    chain: tuple[bytes, ...] = field(init=False)

    def __post_init__(self) -> None:
        self.chain = self.identity.der_chain
        self.private_key = self.identity.key
        self.fingerprint = self.chain[0][-32:]


class Certificates:
    """The shared host, and hosts of their own."""

    def __init__(self, shared: Shown) -> None:
        self.by_name: dict[str | None, Shown] = {None: shared}

    def select(self, server_name: str | None) -> Shown:
        if not self.by_name:
            raise InternalError("there is no server certificate yet")
        return self.by_name.get(server_name) or self.by_name[None]


def test_a_context_is_made_once_and_shown_with_its_certificate() -> None:
    pki = tls_pki()
    contexts = Contexts(Certificates(Shown(pki.server)))
    assert contexts(None) is contexts("anything.example")
    assert contexts(None).certificate == pki.server.certificate


def test_a_renewed_certificate_has_a_new_context_at_once() -> None:
    pki = tls_pki()
    certificates = Certificates(Shown(pki.server))
    contexts = Contexts(certificates)
    before = contexts(None)
    certificates.by_name[None] = Shown(pki.other_server)
    assert contexts(None) is not before
    assert contexts(None).certificate != before.certificate


def test_whether_a_client_is_asked_is_the_hosts_own() -> None:
    shared = Shown(tls_pki().server)
    certificates = Certificates(shared)
    certificates.by_name["mac.example"] = Shown(shared.identity, ask_client_certificate=False)
    contexts = Contexts(certificates)
    assert (contexts(None).ask_client_certificate, contexts("mac.example").ask_client_certificate) == (True, False)


def test_without_a_certificate_nothing_is_served() -> None:
    certificates = Certificates(Shown(tls_pki().server))
    certificates.by_name.clear()
    with pytest.raises(LookupError):
        Contexts(certificates)(None)
