"""What a captured request says, step by step, and what would be answered to it now.

The verdict is that of `pki_operation` itself, on a core that only rehearses; the steps beside it are read with the same
codec, and the one that the verdict's code belongs to is the one that fails. Of the challenge nothing is told but if it
matches. Texts hold what the peer wrote, unescaped: whoever shows them must see to that.
"""

import datetime as dt
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import replace
from typing import NoReturn, Protocol

from cryptography.hazmat.primitives import hashes

from ca_core.csr import ParsedCsr
from ca_core.errors import InternalError, NotFound, Refusal
from ca_core.model import Call, Evidence, Issued, Means, Operation, Pending, Refused, Requester, format_serial
from ca_core.public_key import describe_key
from ca_core.registration.examination import examine
from ca_core.registration.examined import Applicant
from ca_core.registration.profile import choose_profile
from ca_core.registration.realm import Resolved
from ca_core.registration.rehearsal import KeyLocked, KnownCertificate, WouldIssue
from scep_server import operations, published
from scep_server.algorithms import DIGESTS
from scep_server.certrep import choose_algorithms
from scep_server.cms import read_certificate
from scep_server.envelope import Cipher, cipher_of, key_transport_of
from scep_server.errors import Failure, Unusable
from scep_server.exchange import Core, Exchange, Ra
from scep_server.message import MessageType, PkiMessage
from scep_server.query import decode_message, read_label, read_query
from scep_server.reading import algorithm_of, name_of, open_message, text_of
from scep_server.story import Captured, Explanation, Line, Over, Step, Story

__all__ = ["Rehearsing", "explain"]


class Rehearsing(Core, Protocol):
    """A core that decides and changes nothing, as `ca_core.registration.rehearsal.Rehearsal`."""

    async def known_certificates(self) -> Sequence[KnownCertificate]:
        """What a client may have encrypted to."""
        ...


async def explain(
    core: Rehearsing, captured: Captured, clock: Callable[[], dt.datetime], *, realm: str | None = None
) -> Explanation:
    """Explain a request. `realm` is whose it is where no path says so, None for the default one."""
    story = Story(captured.form)
    with suppress(Over):
        exchange = await _find_realm(core, captured, clock, realm, story)
        data = await _find_message(exchange, captured, story)
        await _rehearse(core, exchange, open_message(data, story), data, story)
    return story.told()


# --- where it goes, and the message in it ----------------------------------------------------------------------------

_FORMS = {
    "der": "a pkiMessage in DER",
    "ber": "a pkiMessage in BER",
    "base64": "base64",
    "pem": "PEM",
    "url": "a URL",
    "target": "a request target",
    "request-line": "a request line",
    "http": "an HTTP request",
}
_PUBLISHED = {
    "GetCACaps": published.get_ca_caps,
    "GetCACert": published.get_ca_cert,
    "GetCACertChain": published.get_ca_cert_chain,
    "GetNextCACert": published.get_next_ca_cert,
}


async def _find_realm(
    core: Rehearsing, captured: Captured, clock: Callable[[], dt.datetime], realm: str | None, story: Story
) -> Exchange:
    by = "" if captured.target is None else f", {captured.method}"
    text = f"{_FORMS.get(captured.form, captured.form)}, {captured.size} bytes{by}"
    if captured.fault is not None:
        story.refuse("input", captured.fault, text)
    story.tell("input", text)
    label, how = realm, "as nothing says otherwise" if realm is None else "as asked"
    if captured.target is not None:
        is_served, label = read_label(captured.target)
        if not is_served:
            story.refuse("realm", NotFound("http_not_found", "There is nothing of SCEP at this address."))
        how = "without a label in the path" if label is None else f"by the label {label}"
    try:
        resolved = await core.realms.resolve("scep", label, captured.host)
    except NotFound as refusal:
        story.refuse("realm", refusal, how)
    story.realm = resolved.realm.name
    profile = f", profile {resolved.profile}" if resolved.profile else ""
    story.tell("realm", f"{resolved.realm.name}{profile}, {how}")
    return Exchange(core, resolved, Call("", "scep", "PKIOperation", ""), clock)


async def _find_message(exchange: Exchange, captured: Captured, story: Story) -> bytes:
    query = read_query("?operation=PKIOperation" if captured.target is None else captured.target)
    # As the handlers do it: a POST that names no operation is a PKIOperation, and its body goes before the query.
    name = query.operation or ("PKIOperation" if captured.method == "POST" else "")
    story.operation = name or None
    if name not in _PUBLISHED and name != "PKIOperation":
        story.refuse("operation", NotFound("scep_operation_unknown", "No such SCEP operation."), name[:80])
    methods = ("GET", "HEAD") if name in _PUBLISHED else ("GET", "POST")
    if captured.method not in methods:
        refusal = NotFound("method_not_allowed", f"This operation takes {' or '.join(methods)} only.")
        story.refuse("operation", refusal, f"{name} by {captured.method}")
    try:
        if name in _PUBLISHED:
            await _publish(exchange, name, story)
        data = (captured.body if captured.method == "POST" else b"") or decode_message(query.message)
    except (Unusable, NotFound) as refusal:
        story.refuse("operation", refusal, name)
    except InternalError as error:
        story.fail("operation", error)
    story.tell("operation", f"{name}, with a message of {len(data)} bytes")
    return data


async def _publish(exchange: Exchange, name: str, story: Story) -> NoReturn:
    answer = await _PUBLISHED[name](exchange)
    words = f": {', '.join(answer.body.decode().split())}" if answer.content_type == "text/plain" else ""
    story.tell("operation", f"{name}, answered with {len(answer.body)} bytes of {answer.content_type}{words}")
    story.end("answered", "It would be answered; it asks for no certificate.", f"HTTP {answer.status}")
    raise Over


# --- what the core says ----------------------------------------------------------------------------------------------


class _Decided(Exception):
    """The core has decided; an answer would be written now."""

    def __init__(self, outcome: Issued | Pending | Refused) -> None:
        super().__init__()
        self.outcome = outcome


class _Witness:
    """The rehearsing core, which notes how far a request comes."""

    def __init__(self, core: Rehearsing) -> None:
        self._core = core
        self.realms = core.realms
        self.found: Ra | None = None
        self.csr: ParsedCsr | None = None
        self.evidence: Evidence | None = None
        self.requester: Requester | None = None
        self.operation = Operation.ENROLL

    @property
    def registration(self) -> "_Witness":
        return self

    async def ra(self, resolved: Resolved) -> Ra:
        self.found = await self._core.ra(resolved)
        return self.found

    async def authenticate(self, resolved: Resolved, evidence: Evidence, csr: ParsedCsr) -> Requester:
        self.evidence, self.csr = evidence, csr
        self.requester = await self._core.registration.authenticate(resolved, evidence, csr)
        return self.requester

    async def enroll(
        self, resolved: Resolved, requester: Requester, csr: ParsedCsr, operation: Operation, call: Call
    ) -> NoReturn:
        self.operation = operation
        raise _Decided(await self._core.registration.enroll(resolved, requester, csr, operation, call))

    async def poll(self, resolved: Resolved, transaction_id: str, signer_key: bytes, call: Call) -> NoReturn:
        raise _Decided(await self._core.registration.poll(resolved, transaction_id, signer_key, call))

    def refused(
        self, refusal: Refusal, call: Call, resolved: Resolved | None, *, csr: ParsedCsr | None = None
    ) -> NoReturn:
        del call, resolved
        self.csr = csr
        raise _Decided(Refused(refusal))

    def failed(self, call: Call, resolved: Resolved | None, reason: str) -> None:
        """The error itself comes out as well."""


async def _rehearse(core: Rehearsing, exchange: Exchange, request: PkiMessage, data: bytes, story: Story) -> None:
    witness = _Witness(core)
    outcome: Issued | Pending | Refused | WouldIssue | InternalError
    try:
        await operations.pki_operation(replace(exchange, core=witness), data)
        raise InternalError("a rehearsal came to an answer")
    except _Decided as decided:
        outcome = decided.outcome
    except (WouldIssue, InternalError) as exc:
        outcome = exc
    refusal = outcome.refusal if isinstance(outcome, Refused) else None
    lines, last = [*_algorithm_lines(exchange, request)], "decision"
    if witness.found is None:
        story.fail("ra", outcome if isinstance(outcome, InternalError) else InternalError("it was not asked for"))
    if request.message_type in (MessageType.PKCS_REQ, MessageType.RENEWAL_REQ):
        known = await core.known_certificates()
        lines += _envelope_lines(request, witness.found, known, refusal)
        last = "csr"
    if isinstance(outcome, KeyLocked):
        story.tell_all(lines)
        story.locked = outcome.reason
        story.steps.append(Step("decryption", None, f"not tried: {outcome}"))
        story.end("unknown", "What would be answered can't be told without the RA's key.", None)
        return
    if last == "csr":
        lines.append(Line("decryption", "done, with the RA's key", ("scep_envelope_bad",)))
    if witness.csr is not None:
        story.hide(witness.csr.challenge_password)
        lines += await _identity_lines(core, exchange, request, witness, witness.csr)
        last = "decision" if witness.requester else "requester"
    if witness.requester is not None:
        device, means = witness.requester.device, witness.requester.means
        story.verdict = replace(story.verdict, device=device.name, means=means.value)
        with suppress(Refusal):
            story.verdict = replace(story.verdict, profile=choose_profile(exchange.resolved, device).name)
    story.tell_all(lines, refusal, last)
    if isinstance(outcome, InternalError):
        story.fail(last, outcome)
    _tell_success(exchange, outcome, witness, story)


_CIPHERS = {
    Cipher.AES_128: "AES-128",
    Cipher.AES_192: "AES-192",
    Cipher.AES_256: "AES-256",
    Cipher.TRIPLE_DES: "3DES",
    Cipher.DES: "single DES",
}


def _algorithm_lines(exchange: Exchange, request: PkiMessage) -> Iterable[Line]:
    """In the order in which they are judged, so that the one that is told is the first that fails."""
    scep = exchange.scep

    def tolerance(what: str, name: str, code: str) -> Line:
        state = "on" if getattr(scep, name) else "off"
        return Line("tolerance", f"{what} needs scep.{name}, which is {state} in this realm", (code,))

    if isinstance(request.digest, hashes.SHA1):
        yield tolerance("SHA-1", "allow_sha1", "scep_sha1_not_allowed")
    try:
        cipher = cipher_of(request.envelope)
    except Failure as refusal:
        yield Line("cipher", request.envelope.cipher.oid, (refusal.code,))
        return
    yield Line("cipher", f"{_CIPHERS[cipher]}, {len(request.envelope.encrypted)} bytes")
    if cipher is Cipher.TRIPLE_DES:
        yield tolerance("3DES", "allow_3des", "scep_3des_not_allowed")
    with suppress(Failure):
        reply = choose_algorithms(request, allow_sha1=scep.allow_sha1, allow_3des=scep.allow_3des)
        how = f"{_CIPHERS[reply.cipher]}, signed with {reply.digest.name}"
        yield Line("answer", f"can be sealed to the signer's {describe_key(reply.key)} key, in {how}")
    yield Line("answer", "", ("scep_reply_needs_rsa",))
    if cipher is Cipher.DES:
        yield tolerance("single DES, which shows its content to others,", "read_des", "scep_cipher_unsupported")


def _envelope_lines(
    request: PkiMessage, ra: Ra, known: Sequence[KnownCertificate], refusal: Refusal | None
) -> Iterable[Line]:
    yield Line("envelope", "", ("scep_not_enveloped",))
    ours = (ra.certificate, *ra.earlier)
    certificates = [(read_certificate(each.certificate), each) for each in known]
    # An RA certificate and the one before it have one key, and so one identifier: ours go before what is not.
    certificates.sort(key=lambda pair: pair[0].der not in ours)
    told: list[str] = []
    for sent in request.envelope.recipients:
        named = [each for certificate, each in certificates if certificate.is_named(sent.name)]
        told.append(named[0].whose if named else f"nobody known here, {name_of(sent.name)}")
    mine = [
        sent
        for sent in request.envelope.recipients
        if any(certificate.is_named(sent.name) for certificate, each in certificates if each.certificate in ours)
    ]
    is_told = mine or (refusal is not None and refusal.code == "scep_envelope_not_for_us")
    yield Line("recipient", "; ".join(told) or "none" if is_told else "", ("scep_envelope_not_for_us",))
    for sent in mine[:1]:
        transport = algorithm_of(sent.algorithm)
        with suppress(Failure):
            oaep = key_transport_of(sent)
            transport = "RSA PKCS#1 v1.5" if oaep is None else f"RSA OAEP with {DIGESTS[oaep.digest].name}"
        yield Line("key_transport", transport, ("scep_key_transport_unsupported",))


_NOT_MATCHED = {f"secret_{why}": why for why in ("unknown", "wrong", "spent", "expired", "void")}
_NOT_MATCHED |= {"secret_not_admitted": "this realm admits none", "secret_other_user": "another device's"}


async def _identity_lines(
    core: Rehearsing, exchange: Exchange, request: PkiMessage, witness: _Witness, csr: ParsedCsr
) -> list[Line]:
    names = f"names {', '.join(csr.san)}" if csr.san else "no names"
    sha1 = " (by scep.allow_sha1)" if csr.signature_hash == "sha1" else ""
    asked = f"{text_of(csr.subject)}, {csr.key}, signed by its own key with {csr.signature_hash}{sha1}, {names}"
    requester = witness.requester
    challenge = await _challenge(core, exchange.resolved, request, witness, csr)
    # Of a requester who is known, whatever is said of the secret is said of the certificate that it was spent for.
    codes = ("credentials_missing", *_NOT_MATCHED) if requester is None else ()
    lines = [Line("csr", asked, ("scep_csr_key",)), Line("challenge", challenge, codes)]
    if requester is not None:
        by = {Means.SECRET: "its secret", Means.IDEVID: "its IDevID"}.get(requester.means, "its own certificate")
        serial = f" {format_serial(requester.certificate.serial)}" if requester.certificate else ""
        lines.append(Line("requester", f"device {requester.device.name} ({requester.device.state}), by {by}{serial}"))
        profile = ""
        with suppress(Refusal):
            profile = choose_profile(exchange.resolved, requester.device).name
        lines.append(Line("profile", profile, ("profile_not_allowed", "profile_not_for_protocol")))
    return lines


async def _challenge(
    core: Rehearsing, resolved: Resolved, request: PkiMessage, witness: _Witness, csr: ParsedCsr
) -> str:
    """Whether it matches, also where nobody needs it."""
    if not csr.challenge_password:
        return "absent" + ("; one among the signed attributes does not count" if request.exposed_challenge else "")
    if witness.evidence is None or witness.evidence.secret is None:
        return "present, and of no use: the message is not signed with the CSR's key"
    needless = witness.requester is not None and witness.requester.means is not Means.SECRET
    told = "not needed, " if needless else ""
    try:
        alone = await core.registration.authenticate(resolved, Evidence(secret=witness.evidence.secret), csr)
        told += f"matched (device {alone.device.name})"
    except Refusal as refusal:
        if refusal.device is not None and refusal.code not in _NOT_MATCHED:
            told += f"matched (device {refusal.device[1]})"  # which may have nothing now
        else:
            told += f"not matched: {_NOT_MATCHED.get(refusal.code, refusal.code)}"
    return told + (", and others may have read it on its way" if witness.evidence.is_exposed else "")


def _tell_success(
    exchange: Exchange, outcome: Issued | Pending | Refused | WouldIssue, witness: _Witness, story: Story
) -> None:
    if isinstance(outcome, Issued):
        serial = format_serial(outcome.serial)
        story.tell("decision", f"the certificate that was issued before is the answer again, serial {serial}")
        story.end("answered", "It would be answered with the certificate that was issued before.", "a CertRep SUCCESS")
        story.verdict = replace(story.verdict, serial=serial)
    elif isinstance(outcome, Pending):
        story.tell("decision", "waits to be approved")
        story.end("pending", "It would wait to be approved.", "a CertRep PENDING")
    elif isinstance(outcome, WouldIssue) and witness.requester is not None and witness.csr is not None:
        requester, plan = witness.requester, outcome.plan
        profile = choose_profile(exchange.resolved, requester.device)
        applicant = Applicant.of(requester)
        examined = examine(profile.document, exchange.resolved.realm, applicant, witness.csr, witness.operation)
        names = f", names {', '.join(plan.names)}" if plan.names else ""
        without = f", without {', '.join(examined.dropped)}" if examined.dropped else ""
        told = f"{text_of(plan.subject)}{names}, by {outcome.issuer}, until {plan.not_after:%Y-%m-%d}{without}"
        story.tell("decision", f"would be issued: {told}")
        story.end("issued", "It would be issued, if nothing changes.", "a CertRep SUCCESS")
