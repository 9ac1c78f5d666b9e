"""Every messageType with every challenge and every signer: what comes of it, and why, held against a table of rules.

The rules are written here from RFC 8894 and the issue, not taken from the code. Each cell is a message of its own in a
transaction of its own; its key is the one that the CSR asks a certificate for, so that a challenge could count.
"""

import asyncio
import datetime as dt
import itertools
from collections import Counter
from dataclasses import dataclass, replace

import pytest
from cryptography.hazmat.primitives import serialization

from ca_core.core import Core
from ca_core.model import Call
from scep_server.answer import PKI_MESSAGE
from scep_server.exchange import Exchange
from scep_server.operations import pki_operation
from tests.helpers.core import ME, Installation
from tests.scep_server.client import MESSAGE_TYPE, Request, attribute, tlv
from tests.scep_server.serving import (
    BAD_CERT_ID,
    BAD_REQUEST,
    CERT_POLL,
    FAILURE,
    GET_CERT,
    GET_CRL,
    PKCS_REQ,
    PRINTABLE,
    RENEWAL_REQ,
    SUCCESS,
    CertRep,
    Signer,
    Site,
    foreign,
    make_csr,
    message,
    open_cert_rep,
    rsa_key,
    self_signed,
)

TYPES = range(256)
CHALLENGES = ("none", "wrong", "used", "right")
SIGNERS = ("self-signed", "own", "foreign", "revoked", "expired")
REQUESTS = (RENEWAL_REQ, PKCS_REQ)


@dataclass(frozen=True)
class Expected:
    """`code` is None for a SUCCESS."""

    status: str
    fail_info: str | None = None
    code: str | None = None


ISSUED = Expected(SUCCESS)


def refused(code: str, fail_info: str = BAD_REQUEST) -> Expected:
    return Expected(FAILURE, fail_info, code)


# Why a challenge that does not hold is refused, and why a signer is, whose certificate proves nothing.
OF_CHALLENGE = {"wrong": "secret_wrong", "used": "secret_spent"}
OF_SIGNER = {
    "self-signed": "credentials_missing",
    "foreign": "certificate_unknown",
    "revoked": "certificate_revoked",
    "expired": "certificate_expired",
}


def expected(kind: int, challenge: str, signer: str) -> Expected:
    """The rules, from what is refused whoever asks to what is granted."""
    if kind not in (RENEWAL_REQ, PKCS_REQ, CERT_POLL, GET_CERT, GET_CRL):
        return refused("scep_message_type")
    if kind in (GET_CERT, GET_CRL):
        return refused("scep_not_served")
    if kind == CERT_POLL:
        return refused("transaction_unknown", BAD_CERT_ID)
    if signer == "own":
        return ISSUED  # and the challenge, if there is one, is not looked at
    if challenge == "right":
        return ISSUED if kind == PKCS_REQ else refused("renewal_needs_certificate")
    return refused(OF_CHALLENGE.get(challenge) or OF_SIGNER[signer])


def expected_for_another_key(signer: str) -> Expected:
    """For a PKCSReq or RenewalReq whose CSR is of another key than the signer's: no challenge counts."""
    if signer == "own":
        return ISSUED
    return refused("scep_signer_not_csr_key" if signer == "self-signed" else OF_SIGNER[signer])


CELLS = list(itertools.product(TYPES, CHALLENGES, SIGNERS))


def test_the_rules_cover_every_cell_and_grant_few() -> None:
    outcomes = Counter(expected(*cell).code or "issued" for cell in CELLS)
    assert sum(outcomes.values()) == 5120
    assert outcomes == {
        "scep_message_type": 251 * 20,
        "scep_not_served": 2 * 20,
        "transaction_unknown": 20,
        "issued": 2 * 4 + 4,  # an own signer, whatever the challenge; the right challenge in a PKCSReq, else
        "renewal_needs_certificate": 4,
        "secret_wrong": 2 * 4,
        "secret_spent": 2 * 4,
        "credentials_missing": 2,
        "certificate_unknown": 2,
        "certificate_revoked": 2,
        "certificate_expired": 2,
    }


# --- a device, its challenge and its signer --------------------------------------------------------------------------


@dataclass
class Floor:
    """A core with one device, asked in process: 5,120 messages need no sockets."""

    core: Core
    installation: Installation
    ra: bytes
    signer: Signer
    secret: str | None
    right: str
    asked: int = 0

    async def ask(self, request: Request) -> tuple[str, CertRep]:
        """The request id of a message, and its CertRep."""
        self.asked += 1
        resolved = await self.core.realms.resolve("scep", None, None)
        # from an address of its own: of each only so many refusals are kept
        call = Call(f"cell-{self.asked:05}", "scep", "PKIOperation", f"10.{self.asked // 256}.{self.asked % 256}.1")
        answer = await pki_operation(Exchange(self.core, resolved, call, self.installation.clock), request.encode())
        assert (answer.status, answer.content_type) == (200, PKI_MESSAGE)
        return call.request_id, open_cert_rep(answer.body, self.ra, request.key)

    def message(self, kind: int | str, csr: bytes) -> Request:
        return message(self.ra, self.signer, csr, kind=kind, transaction=f"transaction {kind}")

    def outcomes(self) -> dict[str, tuple[str, str | None]]:
        """Outcome and code of every attempt that is kept, by request id. The core is closed for it."""
        self.core.close()
        rows = self.installation.sql("SELECT request_id, outcome, code FROM attempt WHERE protocol = 'scep'")
        return {request_id: (outcome, code) for request_id, outcome, code in rows}

    def issued(self) -> int:
        return int(self.installation.sql("SELECT count(*) FROM certificate WHERE kind = 'device'")[0][0])


async def _first(core: Core, ra: bytes, label: str, secret: str, installation: Installation) -> Signer:
    """The device's certificate for a key, by a secret."""
    signer = self_signed(label)
    resolved = await core.realms.resolve("scep", None, None)
    made = message(ra, signer, make_csr(signer.key, "sensor", secret))
    call = Call(f"first-{label}"[:16], "scep", "PKIOperation", "192.0.2.1")
    answer = await pki_operation(Exchange(core, resolved, call, installation.clock), made.encode())
    certificate = open_cert_rep(answer.body, ra, signer.key).certificate
    return Signer(signer.key, certificate.public_bytes(serialization.Encoding.DER))


async def stand(core: Core, installation: Installation, challenge: str, signer: str) -> Floor:
    """The device `sensor`: what signs for it, and the challenge that it sends."""
    resolved = await core.realms.resolve("scep", None, None)
    ra = (await core.ra(resolved)).certificate
    first = (await core.devices.add("default", "sensor", actor=ME)).secret
    own = await _first(core, ra, "own", first, installation)

    async def new_secret() -> str:
        return (await core.devices.secret("default", "sensor", actor=ME)).secret

    if signer == "revoked":
        await core.certificates.revoke(format(own.x509.serial_number, "x"), actor=ME)
    if signer == "expired":
        installation.clock.now = own.x509.not_valid_after_utc + dt.timedelta(seconds=1)
    used = ""
    if challenge == "used":
        used = await new_secret()
        await _first(core, ra, "spender", used, installation)
    right = used or await new_secret()
    sent = {"none": None, "wrong": f"{right[:-1]}{'a' if right[-1] != 'a' else 'b'}", "used": used, "right": right}
    signs = {"self-signed": self_signed("stranger"), "foreign": foreign("stranger")}.get(signer, own)
    return Floor(core, installation, ra, signs, sent[challenge], right)


@pytest.mark.parametrize("signer", SIGNERS)
@pytest.mark.parametrize("challenge", CHALLENGES)
async def test_every_message_type_ends_as_the_rules_say(
    core: Core, installation: Installation, challenge: str, signer: str
) -> None:
    floor = await stand(core, installation, challenge, signer)
    before = floor.issued()
    csr = make_csr(floor.signer.key, "sensor", floor.secret)
    # One envelope for all: what the types differ in is signed, and not sealed.
    content = floor.message(PKCS_REQ, csr).envelope.encode()
    cells: dict[str, tuple[int, Expected]] = {}
    for kind in TYPES:
        request_id, reply = await floor.ask(replace(floor.message(kind, csr), content=content))
        due = expected(kind, challenge, signer)
        cells[request_id] = (kind, due)
        assert (reply.status, reply.fail_info) == (due.status, due.fail_info), f"messageType {kind}"
        if reply.status == SUCCESS:
            assert reply.certificate.public_key() == floor.signer.key.public_key()
    outcomes = floor.outcomes()
    assert len(cells) == 256
    for request_id, (kind, due) in cells.items():
        outcome = ("refused", due.code) if due.code else ("issued", None)
        assert outcomes[request_id] == outcome, f"messageType {kind}"
    assert floor.issued() - before == sum(due.status == SUCCESS for _, due in cells.values())


@pytest.mark.parametrize("signer", SIGNERS)
@pytest.mark.parametrize("challenge", CHALLENGES)
async def test_a_challenge_counts_only_for_the_key_that_signs(
    core: Core, installation: Installation, challenge: str, signer: str
) -> None:
    floor = await stand(core, installation, challenge, signer)
    before = floor.issued()
    due = expected_for_another_key(signer)
    request_ids = []
    for kind in REQUESTS:
        csr = make_csr(rsa_key(f"another-{kind}"), "sensor", floor.secret)
        request_id, reply = await floor.ask(floor.message(kind, csr))
        request_ids.append(request_id)
        assert (reply.status, reply.fail_info) == (due.status, due.fail_info), f"messageType {kind}"
    if challenge != "used":
        twin = self_signed("twin")
        _, reply = await floor.ask(message(floor.ra, twin, make_csr(twin.key, "sensor", floor.right)))
        assert reply.status == SUCCESS, "the right challenge is unspent, and counts for the key that signs"
        before += 1
    outcomes = floor.outcomes()
    for request_id in request_ids:
        assert outcomes[request_id] == (("refused", due.code) if due.code else ("issued", None))
    assert floor.issued() - before == (2 if due.status == SUCCESS else 0)


# --- how a messageType may be spelled --------------------------------------------------------------------------------

SPELLED: dict[str, tuple[bytes | None, str]] = {
    "leading-zero": (tlv(PRINTABLE, b"019"), "scep_message_type"),
    "trailing-space": (tlv(PRINTABLE, b"19 "), "scep_message_type"),
    "leading-space": (tlv(PRINTABLE, b" 19"), "scep_message_type"),
    "plus": (tlv(PRINTABLE, b"+19"), "scep_message_type"),
    "newline": (tlv(PRINTABLE, b"19\n"), "scep_message_type"),
    "nul": (tlv(PRINTABLE, b"19\0"), "scep_message_type"),
    "hexadecimal": (tlv(PRINTABLE, b"0x13"), "scep_message_type"),
    "its-name": (tlv(PRINTABLE, b"PKCSReq"), "scep_message_type"),
    "arabic-digits": (tlv(0x0C, "\u0661\u0669".encode()), "scep_message_type"),
    "empty": (tlv(PRINTABLE, b""), "scep_message_type"),
    "256-more": (tlv(PRINTABLE, b"275"), "scep_message_type"),
    "2-to-the-32-more": (tlv(PRINTABLE, b"4294967315"), "scep_message_type"),
    "2-to-the-31": (tlv(PRINTABLE, b"2147483648"), "scep_message_type"),
    "negative": (tlv(PRINTABLE, b"-19"), "scep_message_type"),
    "integer": (tlv(0x02, b"\x13"), "scep_message_type"),
    "octets": (tlv(0x04, b"19"), "scep_message_type"),
    "bmp-string": (tlv(0x1E, b"\x001\x009"), "scep_message_type"),
    "no-value": (b"", "scep_attribute_malformed"),
    "two-values": (tlv(PRINTABLE, b"18") + tlv(PRINTABLE, b"19"), "scep_attribute_malformed"),
    "the-same-value-twice": (tlv(PRINTABLE, b"19") * 2, "scep_attribute_malformed"),
    "absent": (None, "scep_message_type"),
}


async def asking(site: Site) -> Request:
    """A good request, for a device of its own."""
    signer = self_signed()
    return await site.message(signer, make_csr(signer.key, "sensor", await site.secret()))


@pytest.mark.parametrize(("value", "code"), [pytest.param(*case, id=name) for name, case in SPELLED.items()])
async def test_a_message_type_that_is_not_spelled_as_the_rfc_does_is_refused(
    site: Site, value: bytes | None, code: str
) -> None:
    good = await asking(site)
    await site.refuse(replace(good, message_type=value), code, BAD_REQUEST)
    assert (await site.ask(good)).status == SUCCESS


@pytest.mark.parametrize("other", [b"19", b"17", b"3"], ids=["the-same", "RenewalReq", "CertRep"])
async def test_two_message_types_are_refused(site: Site, other: bytes) -> None:
    good = await asking(site)
    twice = replace(good, extra=[attribute(MESSAGE_TYPE, tlv(PRINTABLE, other))])
    await site.refuse(twice, "scep_attribute_malformed", BAD_REQUEST)
    assert (await site.ask(good)).status == SUCCESS


@pytest.mark.parametrize("tag", [0x13, 0x0C, 0x16], ids=["PrintableString", "UTF8String", "IA5String"])
async def test_a_message_type_may_be_a_text_of_these_types(site: Site, tag: int) -> None:
    good = await asking(site)
    assert (await site.ask(replace(good, message_type=tlv(tag, b"19")))).status == SUCCESS


async def test_types_asked_at_once_don_t_mix(site: Site) -> None:
    good = await asking(site)
    others = [replace(good, message_type=tlv(PRINTABLE, str(kind).encode())) for kind in (0, 3, 18, 21, 22)]
    replies = await asyncio.gather(*(site.ask(request) for request in (*others, good, *others)))
    assert [reply.status == SUCCESS for reply in replies] == [False] * 5 + [True] + [False] * 5
    assert site.issued() == 1
