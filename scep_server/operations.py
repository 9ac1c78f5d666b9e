"""PKIOperation: from a pkiMessage to a CertRep.

A PKCSReq or RenewalReq passes, in this order: the message and its signature, what the realm's tolerances say of its
algorithms, whether an answer could be sealed, the envelope, the CSR, who asks, and then the core, which decides. What
fails once the transaction is known is answered with a CertRep FAILURE that says nothing but its failInfo.

How the envelope failed is told to nobody (RFC 3218), nor is what the CSR in it lacks, unless it is signed by its own
key: whoever bends somebody else's envelope would read its content off the difference.
"""

import hashlib
import time
from dataclasses import dataclass, replace
from functools import lru_cache

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, rsa

from ca_core.csr import ParsedCsr
from ca_core.errors import InternalError, Refusal, TooMany
from ca_core.model import Call, Evidence, Issued, Operation, Pending, Refused
from ca_core.public_key import encode_spki, spki_sha256
from ca_core.registration.document import ScepDocument
from ca_core.registration.requester import proven
from scep_server.algorithms import Digest, load_signer_key
from scep_server.answer import PKI_MESSAGE, Answer, refusal_answer
from scep_server.certrep import (
    ReplyAlgorithms,
    choose_algorithms,
    encode_certs_only,
    reply_digest,
    write_failure,
    write_pending,
    write_success,
)
from scep_server.cms import read_certificate
from scep_server.cms_values import Certificate
from scep_server.envelope import Cipher, Recipient, cipher_of, open_envelope
from scep_server.errors import BadAlg, BadMessageCheck, BadRequest, Failure, Transaction, fail_info
from scep_server.exchange import Exchange, Ra
from scep_server.message import MessageType, PkiMessage, open_request

__all__ = ["NAMES", "pki_operation"]

MAX_CHAIN = 10
_SAME_WORK = 0.002  # seconds; more than it takes to open the worst envelope


@dataclass(frozen=True, slots=True)
class _Desk:
    """The RA at work: who opens requests and signs answers, and for whom."""

    exchange: Exchange
    ra: Ra
    certificate: Certificate

    async def sign(self, data: bytes, digest: Digest) -> bytes:
        """For `ReplySigner`."""
        return await self.ra.key.sign(data, digest)

    @property
    def recipients(self) -> list[Recipient]:
        """What a request may be encrypted to."""
        return [Recipient(_certificate(der), self.ra.key) for der in (self.ra.certificate, *self.ra.earlier)]


NAMES = {
    MessageType.RENEWAL_REQ: "RenewalReq",
    MessageType.PKCS_REQ: "PKCSReq",
    MessageType.CERT_POLL: "CertPoll",
    MessageType.GET_CERT: "GetCert",
    MessageType.GET_CRL: "GetCRL",
}


async def pki_operation(exchange: Exchange, data: bytes) -> Answer:
    """PKIOperation: a CertRep. Raises `Unusable` where there is no transaction that it could be of."""
    ra = await exchange.core.ra(exchange.resolved)
    desk = _Desk(exchange, ra, _certificate(ra.certificate))
    call, request, csr = exchange.call, None, None
    since = time.monotonic()
    try:
        request = open_request(data)
        # From here on it matters how long it takes. Until here the sender could say: by the size of his message.
        since = time.monotonic()
        call = replace(
            call,
            operation=NAMES[request.message_type],
            transaction_id=request.transaction.transaction_id,
        )
        call = replace(call, tolerances=_tolerances(request, exchange.scep))
        algorithms = choose_algorithms(
            request, allow_sha1=exchange.scep.allow_sha1, allow_3des=exchange.scep.allow_3des
        )
        match request.message_type:
            case MessageType.PKCS_REQ | MessageType.RENEWAL_REQ:
                csr = await _open_csr(desk, request)
                _check_carried(csr)
                call = _without_challenge(call, csr)
                if csr.signature_hash == "sha1" and _SHA1 not in call.tolerances:
                    call = replace(call, tolerances=(*call.tolerances, _SHA1))
                outcome = await _enroll(exchange, request, csr, call)
            case MessageType.CERT_POLL:
                key = spki_sha256(request.key)
                outcome = await exchange.core.registration.poll(
                    exchange.resolved, request.transaction.transaction_id, key, call
                )
            case _:
                raise BadRequest(  # enforces case 30
                    "scep_not_served", "Certificates and CRLs are fetched over plain HTTP."
                )
        answer = await _outcome_answer(desk, request, algorithms, outcome, call)
    except Refusal as refusal:
        if request is not None:
            transaction = request.transaction
        elif isinstance(refusal, Failure) and refusal.transaction is not None:
            transaction = refusal.transaction
        else:
            raise
        if call.transaction_id is None:
            call = replace(call, transaction_id=transaction.transaction_id)
        if refusal.device is not None:
            exchange.told["enrolld.device"] = refusal.device[1]
        answer = await _refusal_answer(
            desk,
            transaction,
            exchange.core.registration.refused(refusal, call, exchange.resolved, csr=csr),
            request,
            call,
        )
    except InternalError as error:
        if not error.recorded:
            exchange.core.registration.failed(call, exchange.resolved, str(error))
            error.recorded = True
        raise
    if answer.code and exchange.tick is not None:
        await exchange.tick.wait(since)
    return answer


_SHA1 = "scep.allow_sha1"


def _tolerances(request: PkiMessage, scep: ScepDocument) -> tuple[str, ...]:
    """The tolerances that it takes to read the request. Raises `BadAlg` for one that the realm does not have."""
    found: list[str] = []
    if isinstance(request.digest, hashes.SHA1):
        if not scep.allow_sha1:
            raise BadAlg("scep_sha1_not_allowed", "The message is signed with SHA-1, which is not allowed here.")
        found.append(_SHA1)
    cipher = cipher_of(request.envelope)
    if cipher is Cipher.TRIPLE_DES:
        if not scep.allow_3des:
            raise BadAlg("scep_3des_not_allowed", "The envelope is encrypted with 3DES, which is not allowed here.")
        found.append("scep.allow_3des")
    if cipher is Cipher.DES and scep.read_des:
        found.append("scep.read_des")
    return tuple(found)


async def _open_csr(desk: _Desk, request: PkiMessage) -> ParsedCsr:
    scep = desk.exchange.scep
    since = time.monotonic()
    try:
        plain = await open_envelope(request.envelope, desk.recipients, read_des=scep.read_des, seen=desk.exchange.seen)
        try:
            return ParsedCsr.parse(plain, allow_sha1=scep.allow_sha1)
        except Refusal as refusal:
            if refusal.code == "csr_signature_weak" or _proves_itself(plain):
                raise
            raise BadMessageCheck(
                refusal.code, "The envelope does not hold a CSR that its key has signed.", detail=refusal.detail
            ) from refusal
    except Refusal:
        # The tick alone is not enough: what is done behind this one would begin, and so end, sooner or later.
        used = time.monotonic() - since
        time.sleep(_SAME_WORK - used % _SAME_WORK)  # noqa: ASYNC251  # the loop must be as busy as with any other
        raise


def _check_carried(csr: ParsedCsr) -> None:
    """Refuse a key that could sign no later message, so that the device could never renew."""
    if not isinstance(csr.public_key, rsa.RSAPublicKey | ec.EllipticCurvePublicKey):
        raise BadAlg("scep_csr_key", "SCEP can't carry keys of this kind.", detail=csr.key)


def _proves_itself(plain: bytes) -> bool:
    """Whether it is a CSR whose own key has signed it, whatever else is wrong with it."""
    try:
        csr = x509.load_der_x509_csr(plain)
        key = csr.public_key()
        load_signer_key(encode_spki(key))  # type: ignore[arg-type]  # any key; this refuses what costs too much
        return csr.is_signature_valid
    except Exception:  # noqa: BLE001  # whatever it is, it proves nothing, and must look like all the rest
        return False


async def _enroll(exchange: Exchange, request: PkiMessage, csr: ParsedCsr, call: Call) -> Issued | Pending | Refused:
    registration, resolved = exchange.core.registration, exchange.resolved
    requester = await registration.authenticate(resolved, _evidence(request, csr), csr)
    exchange.told.update(proven(resolved, requester, csr))
    operation = Operation.RENEW if request.message_type is MessageType.RENEWAL_REQ else Operation.ENROLL
    return await registration.enroll(resolved, requester, csr, operation, call)


def _without_challenge(call: Call, csr: ParsedCsr) -> Call:
    """The call, with a transactionID that is fit for the record: somebody may have put the secret there."""
    named, challenge = call.transaction_id or "", csr.challenge_password or ""
    if len(challenge) < 8 or challenge not in named:
        return call
    return replace(call, transaction_id=f"sha256:{hashlib.sha256(named.encode()).hexdigest()}")


def _evidence(request: PkiMessage, csr: ParsedCsr) -> Evidence:
    """What the signer's certificate and the challenge could prove. Raises `BadRequest`.

    A challenge counts only for the key that signs the message, lest somebody in between signs it anew and has the
    answer for himself.
    """
    holds_key = encode_spki(request.key) == csr.spki
    signer = request.signer
    if signer.is_self_issued and not holds_key:  # enforces case 34
        raise BadRequest("scep_signer_not_csr_key", "The message is not signed with the key of its CSR.")
    secret = csr.challenge_password or None
    is_exposed = cipher_of(request.envelope) is Cipher.DES or request.exposed_challenge is not None
    others = [der for der in request.certificates if der != signer.der]
    # "The SCEP CA MUST NOT attempt to authenticate a client based on a self-signed certificate" -- RFC 8894 2.4
    chain = () if signer.is_self_issued else (signer.der, *others[: MAX_CHAIN - 1])  # enforces case 34
    return Evidence(chain, None, secret if holds_key else None, is_exposed=is_exposed)


async def _outcome_answer(
    desk: _Desk, request: PkiMessage, algorithms: ReplyAlgorithms, outcome: Issued | Pending | Refused, call: Call
) -> Answer:
    now = desk.exchange.clock()
    if isinstance(outcome, Refused):
        return await _refusal_answer(desk, request.transaction, outcome.refusal, request, call)
    if isinstance(outcome, Pending):
        body = await write_pending(request.transaction, signer=desk, now=now, digest=algorithms.digest)
        return Answer(200, body, PKI_MESSAGE, call=call, outcome="pending")
    certificates = [outcome.certificate]
    if desk.exchange.scep.answer_chain:
        certificates += desk.ra.issuers
    body = await write_success(request, encode_certs_only(certificates), algorithms=algorithms, signer=desk, now=now)
    return Answer(200, body, PKI_MESSAGE, call=call, outcome="issued")


async def _refusal_answer(
    desk: _Desk, transaction: Transaction, refusal: Refusal, request: PkiMessage | None, call: Call
) -> Answer:
    """A FAILURE. Its text is the same for all: what more there is to say, the operator finds under the request id.

    Who asked too often is told so by HTTP: clients give up on a FAILURE for good, and ask again after a 429.
    """
    if isinstance(refusal, TooMany):
        return replace(refusal_answer(refusal, call.request_id), call=call)
    digest = reply_digest(request.digest, allow_sha1=desk.exchange.scep.allow_sha1) if request else None
    text = f"The request is refused; the server's log says why, under the request id {call.request_id}."
    now = desk.exchange.clock()
    body = await write_failure(transaction, fail_info(refusal), text, signer=desk, now=now, digest=digest)
    return Answer(200, body, PKI_MESSAGE, code=refusal.code, call=call)


@lru_cache(maxsize=256)
def _certificate(der: bytes) -> Certificate:
    return read_certificate(der)
