"""The operations that publish: what the server can do, and the certificates that a client needs first."""

from functools import lru_cache

from ca_core.errors import NotFound
from scep_server.answer import CA_CERT_CHAIN, RA_CERT, Answer
from scep_server.certrep import encode_certs_only
from scep_server.exchange import Exchange

__all__ = ["capabilities", "get_ca_caps", "get_ca_cert", "get_ca_cert_chain", "get_next_ca_cert"]


def capabilities(exchange: Exchange) -> list[str]:
    """The keywords of RFC 8894 3.5.2 for what is really on."""
    found = ["AES"]
    if exchange.scep.allow_3des:
        found.append("DES3")
    found.append("POSTPKIOperation")
    if exchange.resolved.realm.document.admission.own_certificate:
        found.append("Renewal")
    if exchange.scep.allow_sha1:
        found.append("SHA-1")
    # SHA-384 is none of the RFC's words, but strongSwan 5.9.8 mixes its flag up with that of AES.
    return [*found, "SHA-256", "SHA-384", "SHA-512", "SCEPStandard"]


async def get_ca_caps(exchange: Exchange) -> Answer:
    """GetCACaps (RFC 8894 3.5)."""
    # Without a charset: old clients compare the whole header.
    return Answer(200, "".join(f"{word}\n" for word in capabilities(exchange)).encode(), "text/plain")


async def get_ca_cert(exchange: Exchange) -> Answer:
    """GetCACert (RFC 8894 4.2): the RA first, then what is above it, all RSA, for stock clients know nothing else."""
    return await _ca_certificates(exchange, RA_CERT)


async def get_ca_cert_chain(exchange: Exchange) -> Answer:
    """GetCACertChain of the drafts: the same certificates."""
    return await _ca_certificates(exchange, CA_CERT_CHAIN)


async def get_next_ca_cert(exchange: Exchange) -> Answer:  # noqa: ARG001  # an operation, like the others
    """GetNextCACert (RFC 8894 4.7): there is none, and GetCACaps does not promise one."""
    raise NotFound("scep_no_next_ca", "There is no next CA certificate.")


async def _ca_certificates(exchange: Exchange, content_type: str) -> Answer:
    ra = await exchange.core.ra(exchange.resolved)
    return Answer(200, _bundle((ra.certificate, *ra.issuers)), content_type)


@lru_cache(maxsize=64)
def _bundle(certificates: tuple[bytes, ...]) -> bytes:
    return encode_certs_only(certificates)
