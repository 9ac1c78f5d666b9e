"""Requests for names of every kind, and devices that send them."""

import ipaddress
import tomllib
from collections.abc import Mapping
from typing import Any

import tomli_w
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import NameOID

from ca_core.core import Core
from ca_core.csr import ParsedCsr
from ca_core.model import Evidence, Operation
from tests.helpers.admission import outcome_of
from tests.helpers.core import ME, Enrolled, PrivateKey, new_key
from tests.helpers.core import ask as ask_for

__all__ = ["ANY_NAME", "Asker", "request", "with_profile"]

FROM_REQUEST = (
    "DNS:*.example.com",
    "IP:*",
    "URI:https://example.com/*",
    "URI:https://example.com:443/*",
    "URI:https://[2001:db8::1]",
    "URI:https://[2001:db8::1]/",
    "URI:https://[2001:db8::2]/",
    "URI:urn:dev:*",
    "email:*@*",
)
ANY_NAME: dict[str, Any] = {
    "subject": {"CN": "{csr:*}"},
    "names": ["{device.names}", *(f"{{csr:{glob}?}}" for glob in FROM_REQUEST)],
    "lint_allow": ["pkix.invalid_uri_syntax", "pkix.invalid_email_address_syntax"],  # of urn:, and of what it fills in
}


async def with_profile(core: Core, *, realm: str = "default", **profile: Any) -> None:
    """Give the realm's profile these templates."""
    document = tomllib.loads(await core.realms.export(realm))
    document["profiles"]["device"] |= profile
    await core.realms.apply(tomli_w.dumps(document), actor=ME)


def request(
    common_name: str,
    *names: str,
    key: PrivateKey | None = None,
    subject: Mapping[x509.ObjectIdentifier, str] | None = None,
) -> ParsedCsr:
    """A request for a common name, unless that is empty, with more of a `subject`, and for alternative names."""
    kinds: dict[str, Any] = {
        "DNS": x509.DNSName,
        "IP": lambda text: x509.IPAddress(ipaddress.ip_address(text)),
        "URI": x509.UniformResourceIdentifier,
        "email": x509.RFC822Name,
    }
    whole = ({NameOID.COMMON_NAME: common_name} if common_name else {}) | dict(subject or {})
    attributes = [x509.NameAttribute(oid, value) for oid, value in whole.items()]
    builder = x509.CertificateSigningRequestBuilder().subject_name(x509.Name(attributes))
    if names:
        made = [kinds[kind](value) for kind, _, value in (name.partition(":") for name in names)]
        builder = builder.add_extension(x509.SubjectAlternativeName(made), critical=False)
    return ParsedCsr.parse(builder.sign(key or new_key(), hashes.SHA256()).public_bytes(Encoding.DER))


class Asker:
    """A device that is registered and has no certificate, in a realm whose profile takes names from the request."""

    def __init__(self, core: Core, name: str, secret: str) -> None:
        self.core = core
        self.name = name
        self.evidence = Evidence(secret=secret)

    @classmethod
    async def made(cls, core: Core, name: str = "asker", **options: Any) -> "Asker":
        return cls(core, name, (await core.devices.add("default", name, actor=ME, **options)).secret)

    async def asks(self, common_name: str, *names: str, **options: Any) -> str:
        return await outcome_of(self.core, self.evidence, request(common_name, *names, **options))

    async def enrolls(self, common_name: str, *names: str, **options: Any) -> Enrolled:
        key = new_key()
        issued = await ask_for(self.core, self.evidence, request(common_name, *names, key=key, **options))
        return Enrolled(self.name, "", key, issued.certificate, format(issued.serial, "x"))

    async def renews(self, held: Enrolled, common_name: str, *names: str, **options: Any) -> Enrolled:
        key = new_key()
        csr = request(common_name, *names, key=key, **options)
        issued = await ask_for(self.core, held.evidence, csr, operation=Operation.REENROLL)
        return Enrolled(self.name, "", key, issued.certificate, format(issued.serial, "x"))
