"""What anybody can read in a pkiMessage, for the telling: certificates, signer, attributes, algorithms."""

import datetime as dt
import warnings
from collections.abc import Iterable
from contextlib import suppress

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import ec, rsa

from ca_core import der
from ca_core.errors import Refusal
from ca_core.model import format_serial
from ca_core.public_key import describe_key
from scep_server import oids
from scep_server.algorithms import DIGESTS
from scep_server.cms import read_signed
from scep_server.cms_values import Algorithm, IssuerAndSerial, Signed, Signer, SignerId
from scep_server.errors import Failure, Unusable
from scep_server.message import MAX_MESSAGE, PkiMessage, open_request
from scep_server.operations import NAMES
from scep_server.story import Line, Over, Story

__all__ = ["algorithm_of", "name_of", "open_message", "text_of"]


def open_message(data: bytes, story: Story) -> PkiMessage:
    """Tell what anybody can read in a message, and verify it. Raises `Over` where that fails."""
    request: PkiMessage | None = None
    signed: Signed | None = None
    refusal: Refusal | None = None
    if len(data) <= MAX_MESSAGE:  # what is longer `open_request` does not read either
        with suppress(ValueError):
            signed = read_signed(data)
    try:
        request = open_request(data)
        story.transaction_id = request.transaction.transaction_id
        story.operation = NAMES[request.message_type]
    except (Unusable, Failure) as exc:
        refusal = exc
        if isinstance(exc, Failure) and exc.transaction is not None:
            story.transaction_id = exc.transaction.transaction_id
    for signer in signed.signers if signed is not None else ():
        tag, challenge = _raw(signer, oids.CHALLENGE_PASSWORD)
        story.hide(challenge.decode("latin-1" if tag == 0x14 else "utf-8", "replace"))
    story.tell_all(_signed_lines(signed, request, refusal), refusal, "attributes")
    if request is None:
        raise Over
    return request


def _signed_lines(signed: Signed | None, request: PkiMessage | None, refusal: Refusal | None) -> Iterable[Line]:
    if signed is None:
        yield Line("cms", "", ("scep_too_large", "scep_not_cms"))
        return
    yield Line("cms", f"SignedData, certificates in it: {len(signed.certificates)}")
    for certificate in signed.certificates:
        yield Line("certificate", _describe(certificate))
    if len(signed.signers) != 1:
        yield Line("signer", f"{len(signed.signers)} of them", ("scep_signer_count",))
        return
    (signer,) = signed.signers
    yield Line("transaction", _raw(signer, oids.TRANSACTION_ID)[1].decode("latin-1"), ("scep_no_transaction",))
    yield Line("signer", f"named by {name_of(signer.name)}", ("scep_no_signer",))
    nonce = _raw(signer, oids.SENDER_NONCE)[1]
    yield Line("nonce", f"a senderNonce of {len(nonce)} bytes" if nonce else "no senderNonce", ("scep_nonce",))
    yield Line("message_type", _message_type(signer, request), ("scep_message_type",))
    algorithms = f"digest {algorithm_of(signer.digest)}, signature {algorithm_of(signer.signature_algorithm)}"
    yield Line("algorithms", algorithms, ("scep_digest_unsupported", "scep_signature_unsupported"))
    if request is not None:
        at = f"{request.signing_time:%Y-%m-%dT%H:%M:%SZ}" if request.signing_time else "not told"
        yield Line("signing_time", at)
        yield Line("signature", f"holds, by the key of {_describe(request.signer.der)}")
    elif refusal is not None and refusal.code == "scep_not_enveloped" and signed.content is not None:
        yield Line("signature", "holds")  # what it covers is looked at after it
    else:
        codes = ("content_type", "digest_mismatch", "signature_bad", "signer_ambiguous", "signer_key")
        yield Line("signature", "", tuple(f"scep_{code}" for code in codes))
    yield Line("envelope", "", ("scep_not_enveloped",))


def _raw(signer: Signer, oid: str) -> tuple[int, bytes]:
    """The tag and content of an attribute's first value, empty where there is none."""
    values = (value for attribute in signer.attributes or () if attribute.oid == oid for value in attribute.values)
    return next(values, (0, b""))


def _message_type(signer: Signer, request: PkiMessage | None) -> str:
    if request is not None:
        return f"{NAMES[request.message_type]} ({request.message_type.value})"
    return _raw(signer, oids.MESSAGE_TYPE)[1].decode("latin-1") or "none"


def algorithm_of(algorithm: Algorithm) -> str:
    """An algorithm by the name that it has here, else by its OID."""
    if algorithm.oid in DIGESTS:
        return DIGESTS[algorithm.oid].name
    known = {oid: name for name, oid in vars(oids).items() if name.isupper()}
    return known.get(algorithm.oid, algorithm.oid).lower().replace("_", "-")


def _describe(certificate: bytes) -> str:
    try:
        with warnings.catch_warnings(action="ignore"):  # of what a client may well do wrong
            found = x509.load_der_x509_certificate(certificate)
            key = found.public_key()
            kind = describe_key(key) if isinstance(key, rsa.RSAPublicKey | ec.EllipticCurvePublicKey) else "another key"
            of = "self-issued" if found.subject == found.issuer else f"issued by {text_of(found.issuer)}"
            serial = format_serial(found.serial_number)
            return (
                f"{text_of(found.subject)} ({of}, serial {serial}, {kind}, until {found.not_valid_after_utc:%Y-%m-%d})"
            )
    except (ValueError, TypeError, UnsupportedAlgorithm, x509.InvalidVersion):
        return "one that can't be read"


def text_of(name: x509.Name) -> str:
    """A name as RFC 4514 writes it."""
    return name.rfc4514_string() or "no name"


def name_of(name: SignerId) -> str:
    """How a message names a certificate."""
    if not isinstance(name, IssuerAndSerial):
        return f"subject key identifier {name.hex()[:80]}"
    # The library reads a Name only as a part of something. The smallest thing that begins with one is a CRL.
    algorithm = der.sequence(der.oid(oids.SHA256_WITH_RSA), der.NULL)
    listed = der.sequence(algorithm, name.issuer, der.time(dt.datetime(2000, 1, 1, tzinfo=dt.UTC)))
    issuer = "one that can't be read"
    with suppress(ValueError, TypeError), warnings.catch_warnings(action="ignore"):
        issuer = text_of(x509.load_der_x509_crl(der.sequence(listed, algorithm, der.tlv(3, b"\0"))).issuer)
    return f"issuer {issuer} and serial number {name.serial[2:].hex().lstrip('0') or '0'}"
