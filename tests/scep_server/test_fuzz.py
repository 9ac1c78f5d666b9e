"""The codec against mutations of what clients really sent: clean refusals alone, in bounded time and memory.

Where a signature or an envelope would hide what lies behind it, the mutation is made first, and signed or sealed anew.
"""

import contextlib
import hashlib
import os
import random
from base64 import b64encode
from collections.abc import Coroutine, Iterator
from dataclasses import dataclass, field, replace
from functools import lru_cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any, TypeVar, cast
from urllib.parse import quote

import pytest
from asn1crypto import cms as a_cms
from cryptography import x509
from cryptography.hazmat.decrepit.ciphers.algorithms import TripleDES
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from cryptography.hazmat.primitives.padding import PKCS7
from cryptography.hazmat.primitives.serialization import load_der_public_key

from ca_core.codes import CODES
from ca_core.errors import BadKey, MalformedRequest, PopFailed, Refusal, TooLarge
from ca_core.registration.document import ScepDocument
from scep_server import algorithms as codec_algorithms
from scep_server import ber, cms, cms_values, envelope, message, operations, query
from scep_server.cms_values import Attribute
from scep_server.errors import BadAlg, BadMessageCheck, BadRequest, Failure, Unusable
from scep_server.exchange import Exchange
from tests.scep_server import client
from tests.scep_server.fuzzing import (
    Coverage,
    Found,
    Node,
    Target,
    change_bytes,
    change_tree,
    changed,
    fuzz,
    make,
    only,
    parse,
)

LONG = os.environ.get("ENROLLD_LONG") == "1"
SEED = int(os.environ.get("ENROLLD_FUZZ_SEED", "0")) or random.SystemRandom().randrange(2**32)
ROUNDS = 20_000
CAPTURES = Path(__file__).parent / "captures"
CODEC = (message, envelope, cms, cms_values, ber, codec_algorithms, query)
T = TypeVar("T")
SECONDS = 600.0 if LONG else 0.0


# --- what clients sent -----------------------------------------------------------------------------------------------

_OAEPS: tuple[tuple[str, str] | None, ...] = (None, ("sha1", "sha1"), ("sha256", "sha1"), ("sha256", "sha256"))


class Ra:
    """The RA of the captures: seals to itself, and opens what it sealed without doing the RSA again."""

    def __init__(self) -> None:
        key = serialization.load_pem_private_key((CAPTURES / "ra.key").read_bytes(), None)
        assert isinstance(key, rsa.RSAPrivateKey)
        self.key = key
        certificate = x509.load_pem_x509_certificate((CAPTURES / "ra.pem").read_bytes())
        self.certificate = certificate.public_bytes(serialization.Encoding.DER)
        self.ski = certificate.extensions.get_extension_for_class(x509.SubjectKeyIdentifier).value.digest
        self._keys: dict[bytes, bytes] = {}
        self._ways: dict[tuple[str, tuple[str, str] | None], tuple[bytes, bytes]] = {}

    async def unwrap(self, encrypted_key: bytes, algorithm: padding.AsymmetricPadding) -> bytes:
        known = self._keys.get(encrypted_key)
        return self.key.decrypt(encrypted_key, algorithm) if known is None else known

    def envelope(self, chance: random.Random, **bent: Any) -> client.Envelope:
        """One of any cipher and key transport, to be bent."""
        way = chance.choice(list(client.CIPHERS)), chance.choice(_OAEPS)
        if way not in self._ways:
            key = hashlib.sha512(repr(way).encode()).digest()[: client.CIPHERS[way[0]][1]]
            made = client.Envelope(cipher=way[0], oaep=way[1], recipient=self.certificate, key=key).encode()
            info = a_cms.ContentInfo.load(made)["content"]["recipient_infos"][0].chosen
            self._ways[way] = key, info["encrypted_key"].native
            self._keys[info["encrypted_key"].native] = key
        key, encrypted_key = self._ways[way]
        return client.Envelope(
            cipher=way[0],
            oaep=way[1],
            recipient=self.certificate,
            ski=chance.choice((None, None, self.ski)),
            key=key,
            encrypted_key=encrypted_key,
            **bent,
        )

    def open(self, content: bytes) -> bytes:
        """What a client sealed, with nothing of the codec."""
        enveloped = only(content).below()[1].below()[0]
        _, recipients, (_, algorithm, encrypted) = [each.below() for each in enveloped.below()]
        name = client.issuer_and_serial(self.certificate)
        sealed = next(info.below()[3].inside() for info in recipients if info.below()[1].encode() == name)
        key = self.key.decrypt(sealed, padding.PKCS1v15())
        machine = {8: lambda: TripleDES(key * 3), 24: lambda: TripleDES(key)}.get(len(key), lambda: algorithms.AES(key))
        data = b"".join(each.inside() for each in encrypted.below()) or encrypted.inside()
        decryptor = Cipher(machine(), modes.CBC(algorithm.below()[1].inside())).decryptor()
        padded = decryptor.update(data) + decryptor.finalize()
        return padded[: -padded[-1]]


@dataclass(frozen=True)
class Seeds:
    """The captured messages, taken apart, and beside them what no capture holds: BER, OAEP, SKI, ECDSA, PSS."""

    ra: Ra
    messages: list[bytes]
    contents: list[bytes]
    csrs: list[bytes]
    certificates: list[bytes]
    targets: list[str]
    donors: list[Node] = field(repr=False)


_PATHS = (
    "/scep/default.device/pkiclient.exe",
    "/scep/pkiclient.exe/",
    "/cgi-bin/pkiclient.exe",
    "/certsrv/mscep/mscep.dll",
)


@lru_cache(maxsize=1)
def load_seeds() -> Seeds:
    ra = Ra()
    captured = [file.read_bytes() for file in sorted(CAPTURES.glob("*.der"))]
    contents = [_content_of(data) for data in captured]
    csrs = [ra.open(each) for each in contents]
    chance = random.Random(1)
    pss = {"pss": True, "signature_oid": "1.2.840.113549.1.1.10"}
    whole, defaults = client.pss_parameters("sha256", 32), client.seq()
    sealed = [ra.envelope(chance, message=csrs[0]) for _ in range(4)]
    made = [
        client.Request(envelope=sealed[0]),
        client.Request(envelope=sealed[1], ski=b"\x07" * 20, signature_parameters=whole, **pss),  # type: ignore[arg-type]
        client.Request(envelope=sealed[2], digest="sha1", signature_parameters=defaults, **pss),  # type: ignore[arg-type]
        client.Request(
            envelope=sealed[3],
            key=client.ec_key(), signature_oid=client.ECDSA["sha256"], signature_parameters=b"",
            extra=[
                client.attribute(client.SIGNING_TIME, client.tlv(0x18, b"20501122120000Z")),
                client.attribute(client.CHALLENGE, client.tlv(0x14, b"in-the-clear")),
            ],
        ),
    ]  # fmt: skip
    messages = captured + [each.encode() for each in made]
    certificates = [
        each.chosen.dump() for data in messages for each in a_cms.ContentInfo.load(data)["content"]["certificates"]
    ]
    targets = [file.read_text().split()[1] for file in sorted(CAPTURES.glob("*.txt"))]
    targets += [f"{path}?operation=PKIOperation&message={quote(b64encode(captured[0]).decode())}" for path in _PATHS]
    trees = [tree for data in (*messages, *contents) if (tree := parse(data))]
    donors = [node for tree in trees for node in tree[0].walk() if len(node.encode()) < 600]
    return Seeds(ra, messages, contents, csrs, certificates, targets, donors)


def _content_of(data: bytes) -> bytes:
    content: bytes = a_cms.ContentInfo.load(data)["content"]["encap_content_info"]["content"].native
    return content


# --- targets ---------------------------------------------------------------------------------------------------------


def finished(coroutine: Coroutine[Any, Any, T]) -> T:
    """What a coroutine returns that waits for nothing."""
    try:
        coroutine.send(None)
    except StopIteration as done:
        return cast(T, done.value)
    coroutine.close()
    raise AssertionError("it waits for something")


def signed_anew(chance: random.Random) -> bytes:
    """A message whose content or signed attributes are changed, under a signature that holds."""
    seeds = load_seeds()
    signed_data = only(chance.choice(seeds.messages)).below()[1].below()[0]
    _, _, encapsulated, _, signers = signed_data.below()
    content = encapsulated.below()[1].below()[0].inside()
    attributes = Node(0x31, children=signers.below()[0].below()[3].below())
    if chance.random() < 0.5:
        content = _changed([content], chance)
    else:
        change_tree(attributes, chance, seeds.donors)
    digest = client.attribute(client.MESSAGE_DIGEST, client.tlv(4, hashlib.sha256(content).digest()))
    kept = [
        each.encode() for each in attributes.children or [] if client.oid(client.MESSAGE_DIGEST) not in each.encode()
    ]
    key, certificate = client.ec_key(), _own_certificate()
    signer = client.seq(
        client.tlv(2, b"\1"),
        client.issuer_and_serial(certificate),
        client.algorithm(client.HASH_OIDS["sha256"]),
        client.tlv(0xA0, *kept, digest),
        client.algorithm(client.ECDSA["sha256"], b""),
        client.tlv(4, key.sign(client.tlv(0x31, *kept, digest), ec.ECDSA(hashes.SHA256()))),
    )
    signed = client.seq(
        client.tlv(2, b"\1"),
        client.tlv(0x31),
        client.seq(client.oid(client.DATA), client.tlv(0xA0, client.tlv(4, content))),
        client.tlv(0xA0, certificate),
        client.tlv(0x31, signer),
    )
    return client.content_info(client.SIGNED, signed)


@lru_cache(maxsize=1)
def _own_certificate() -> bytes:
    return client.make_certificate(client.ec_key().public_key())


def _changed(good: list[bytes], chance: random.Random, most: int = message.MAX_MESSAGE - 8192) -> bytes:
    """What is longer than any message does not come so far."""
    return changed(chance.choice(good), chance, load_seeds().donors)[:most]


def _message(chance: random.Random) -> bytes:
    return _changed(load_seeds().messages, chance, message.MAX_MESSAGE + 1)


def _content_alone(chance: random.Random) -> bytes:
    seeds = load_seeds()
    made = seeds.ra.envelope(chance, message=client.CSR).encode() if chance.random() < 0.3 else None
    return _changed([made] if made else seeds.contents, chance)


def _certificate(chance: random.Random) -> bytes:
    return _changed(load_seeds().certificates, chance)


def _ber_of_a_message(chance: random.Random) -> bytes:
    data = client.to_ber(chance.choice(load_seeds().messages), chance.choice((1, 50, 1000)))
    return change_bytes(data, chance)


_PARTS = ("%2f", "%2F", "%", "%0", "%zz", "%00", "%ff", "..", "%2e%2e", "/", "//", "?", "&", "=", "+", "-", "_", "==",
          "%20", "%0a", "%c3%a4", "pkiclient.exe", "operation=", "message=", "OPERATION=x", "/scep", "~")  # fmt: skip


def _target(chance: random.Random) -> str:
    """A request target, of what the HTTP parser lets through: visible ASCII."""
    seeds = load_seeds()
    text = chance.choice(seeds.targets)
    for _ in range(chance.choice((1, 2, 5))):
        at = chance.randrange(len(text) + 1) if chance.random() < 0.5 else chance.randrange(min(len(text), 40) + 1)
        part = chance.choice((*_PARTS, chr(chance.randrange(0x21, 0x7F))))
        text = text[:at] + part + text[at + chance.choice((0, 0, 1, len(part), 40)) :]
    return text


@dataclass(frozen=True)
class Sealed:
    """An EnvelopedData and what went into it: `plain`, in padding that is good or not."""

    data: bytes
    plain: bytes
    is_padded: bool


def _sealed_anew(chance: random.Random) -> Sealed:
    seeds = load_seeds()
    plain = chance.choice((b"", b"\x30", client.CSR, b"\x30\x80\0\0")) if chance.random() < 0.02 else None
    if plain is None:
        plain = _changed(seeds.csrs, chance)
    made = seeds.ra.envelope(chance, message=plain)
    block = client.CIPHERS[made.cipher][2]
    count = block - len(plain) % block
    if chance.random() < 0.7:
        return Sealed(made.encode(), plain, is_padded=True)
    last = chance.choice((count, count, 0, block + 1, 0x7F, 0xFF, chance.randrange(256)))
    tail = bytes((*chance.randbytes(count - 1), last))
    padded = plain + tail
    good = 0 < last <= block and padded.endswith(bytes((last,)) * last)
    return Sealed(replace(made, padded=padded).encode(), padded[:-last] if good else b"", is_padded=good)


# --- readers ---------------------------------------------------------------------------------------------------------


def must(holds: bool, what: str) -> None:
    if not holds:
        raise AssertionError(what)


@contextlib.contextmanager
def promised(*kinds: type[Refusal]) -> Iterator[None]:
    """Only these refusals, each with a code of the closed set."""
    try:
        yield
    except Refusal as refusal:
        must(type(refusal) in kinds, f"{type(refusal).__name__} is not promised here")
        must(refusal.code in CODES, f"{refusal.code} is not in CODES")
        raise


_FAILURES = (BadAlg, BadMessageCheck, BadRequest)
_CSR_REFUSALS = (MalformedRequest, TooLarge, BadKey, PopFailed)


def read_message(data: bytes) -> None:
    with promised(Unusable, *_FAILURES):
        try:
            request = message.open_request(data)
        except Failure as failure:
            must(failure.transaction is not None, "nobody could be answered")
            raise
    must(request.signer.is_self_issued in (True, False), "the signer's names")
    open_csr(request.envelope)


def open_csr(enveloped: cms_values.Enveloped) -> None:
    """On the way that a request's goes."""
    ra = load_seeds().ra
    realm = SimpleNamespace(document=SimpleNamespace(scep=ScepDocument(read_des=True)))
    exchange = Exchange(*(cast(Any, part) for part in (None, SimpleNamespace(realm=realm), None, None)))
    shown = SimpleNamespace(certificate=ra.certificate, earlier=(), key=ra)
    desk = operations._Desk(exchange, cast(Any, shown), cms.read_certificate(ra.certificate))
    with promised(*_FAILURES, *_CSR_REFUSALS):
        finished(operations._open_csr(desk, cast(Any, SimpleNamespace(envelope=enveloped))))


def read_content(data: bytes) -> None:
    open_csr(cms.read_enveloped(data))


def read_certificate(data: bytes) -> None:
    with promised(BadAlg):
        codec_algorithms.load_signer_key(cms.read_certificate(data).spki)


def read_ber(data: bytes) -> None:
    read = ber.to_der(data)
    assert ber.to_der(read) == read


def read_target(target: str) -> None:
    assert query.is_scep_path(target) in (True, False)
    is_served, label = query.read_label(target)
    assert label is None or (is_served and label not in ("", ".", "..") and "/" not in label)
    with promised(Unusable):
        query.decode_message(query.read_query(target).message)


def read_sealed(sealed: Sealed) -> None:
    """What went in comes out, if it is one SEQUENCE in good padding; nothing else comes out."""
    ra = load_seeds().ra
    enveloped = cms.read_enveloped(sealed.data)
    recipients = [envelope.Recipient(cms.read_certificate(ra.certificate), ra)]
    try:
        opened = finished(envelope.open_envelope(enveloped, recipients, read_des=True))
    except BadMessageCheck as refusal:
        must(refusal.code == "scep_envelope_bad", refusal.code)
        nodes = parse(sealed.plain) or []
        must(not sealed.is_padded or [node.tag for node in nodes] != [0x30], "a good one is refused")
        raise
    must(sealed.is_padded, "bad padding is let through")
    must(opened == sealed.plain, "it comes out otherwise than it went in")
    must(opened[:1] == b"\x30", "what is no SEQUENCE is let through")
    open_csr(enveloped)


def read_own(chance: random.Random) -> None:
    """What we seal, as answers are, we open."""
    ra = load_seeds().ra
    certificate, plain = cms.read_certificate(ra.certificate), client.seq(client.tlv(4, chance.randbytes(40)))
    cipher = chance.choice([each for each in envelope.Cipher if each is not envelope.Cipher.DES])
    digests = [client.HASH_OIDS[name] for name in ("sha1", "sha256")]
    oaep = envelope.Oaep(chance.choice(digests), chance.choice(digests)) if chance.random() < 0.8 else None
    sealed = envelope.seal_envelope(plain, certificate, ra.key.public_key(), cipher, oaep, chance.randbytes)
    opened = envelope.open_envelope(cms.read_enveloped(sealed), [envelope.Recipient(certificate, ra)])
    # two keys of 3DES are alike once in 2^64
    must(finished(opened) == plain, "it comes out otherwise than it went in")


TARGETS = {
    "message": Target(_message, read_message, 3),
    "signed anew": Target(signed_anew, read_message, 3),
    "sealed anew": Target(_sealed_anew, read_sealed, 3),
    "envelope": Target(_content_alone, read_content, 2, may_raise_value_error=True),
    "certificate": Target(_certificate, read_certificate, may_raise_value_error=True),
    "BER": Target(_ber_of_a_message, read_ber, may_raise_value_error=True),
    "request target": Target(_target, read_target),
    "own": Target(lambda chance: chance, read_own, 0.3),
}


# --- the tests -------------------------------------------------------------------------------------------------------

# What each must have met, for the rounds to have gone where they should.
MET = {
    "message": {"read", "scep_not_cms", "scep_digest_mismatch", "scep_signature_bad", "scep_signer_key",
                "scep_no_signer"},
    "signed anew": {"read", "scep_not_enveloped", "scep_attribute_malformed", "scep_message_type",
                    "scep_no_transaction", "scep_envelope_not_for_us", "not_pkcs10"},
    "sealed anew": {"read", "scep_envelope_bad", "not_pkcs10", "csr_signature_bad", "csr_extension_malformed",
                    "csr_name_malformed", "key_invalid"},
    "envelope": {"read", "ValueError", "scep_envelope_bad", "scep_key_transport_unsupported"},
    "certificate": {"read", "ValueError", "scep_signer_key"},
    "BER": {"read", "ValueError"},
    "request target": {"read", "scep_message_missing", "scep_not_base64"},
    "own": {"read"},
}  # fmt: skip


@pytest.fixture(autouse=True)
def _no_time_is_spent_to_look_busy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(operations, "_SAME_WORK", 1e-6)


def test_what_the_fuzzing_begins_with_is_read() -> None:
    seeds = load_seeds()
    assert len(seeds.messages) >= 29
    for data in (*seeds.messages, *seeds.contents, *seeds.csrs, *seeds.certificates):
        assert only(data).encode() == data
    for data in seeds.messages:
        read_message(data)
    for data in seeds.contents:
        open_csr(cms.read_enveloped(data))


def test_a_round_can_be_had_again() -> None:
    for number in range(200):
        name, data = make(TARGETS, SEED, number)
        if name in ("message", "certificate", "BER", "request target"):  # the others hold what is sealed or signed anew
            assert (name, data) == make(TARGETS, SEED, number)


def test_mutations_meet_clean_refusals_and_nothing_else() -> None:
    coverage = Coverage(CODEC)
    print(f"ENROLLD_FUZZ_SEED={SEED}")
    try:
        outcome = fuzz(TARGETS, SEED, rounds=ROUNDS, seconds=SECONDS, coverage=coverage)
    finally:
        coverage.print()
    outcome.print()
    assert coverage.share >= 0.9
    assert outcome.rounds >= ROUNDS
    met = {name: {code for each, code in outcome.refused if each == name} for name in TARGETS}
    assert {name: codes - met[name] for name, codes in MET.items() if not codes <= met[name]} == {}


# --- planted bugs ----------------------------------------------------------------------------------------------------


class CarelessPadding(PKCS7):
    """Believes the last byte: zero, longer than a block, uneven."""

    def unpadder(self) -> "CarelessPadding":  # type: ignore[override]
        self._data = b""
        return self

    def update(self, data: bytes) -> bytes:
        self._data += data
        return b""

    def finalize(self) -> bytes:
        return self._data[: len(self._data) - self._data[-1]]


def careless_single(attributes: tuple[Attribute, ...], oid: str) -> tuple[int, bytes] | None:
    """Takes the first value of a SET that may be empty."""
    return next((attribute.values[0] for attribute in attributes if attribute.oid == oid), None)


def recursive_to_der(data: bytes) -> bytes:
    """Goes down as deep as somebody nests."""

    def go_down(position: int, end: int) -> int:
        tag, length, position = ber._header(data, position, end)
        stop = end if length is None else position + length
        while tag & 0x20 and position < stop:
            if length is None and data.startswith(b"\0\0", position):
                return position + 2
            position = go_down(position, stop)
        return stop

    go_down(0, len(data))
    return ber.to_der(data)


PLANTED = {
    "pad-byte-unchecked": (envelope, "PKCS7", CarelessPadding, "bad padding is let through"),
    "empty-set-unchecked": (message, "_single", careless_single, "IndexError"),
    "recursion-unbounded": (cms, "to_der", recursive_to_der, "RecursionError"),
    "error-of-another-class": (message, "load_signer_key", load_der_public_key, "ValueError|UnsupportedAlgorithm"),
}


@pytest.mark.parametrize(("module", "name", "bug", "told"), PLANTED.values(), ids=PLANTED)
def test_a_planted_bug_is_found_within_the_rounds_of_ci(
    module: object, name: str, bug: object, told: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, name, bug)
    with pytest.raises(Found, match=told) as found:
        fuzz(TARGETS, SEED, rounds=ROUNDS)
    print(str(found.value).partition("\n")[0])
