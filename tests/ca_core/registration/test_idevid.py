"""Admission by IDevID: which chains prove a device, and which only look like it."""

import datetime as dt
import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import ExtendedKeyUsageOID

from ca_core.core import Core
from ca_core.errors import NotAuthenticated, Refusal
from ca_core.model import Evidence, Means, Operation
from ca_core.registration.admission.idevid import Identity, verify_idevid
from ca_core.registration.admission.ways import AdmissionDocument
from ca_core.registration.document import RealmDocument, TrustDocument
from ca_core.registration.profile_document import ProfileDocument
from ca_core.registration.realm import Realm
from certs.demo_pki import IDevId, make_demo_pki
from tests.helpers.bad_csr import integer, octets, oid, rsa_key, sequence
from tests.helpers.core import ME, START, ask, code_of, csr_of, edit_realm, enrolled, new_key
from tests.helpers.factory import (
    END,
    NO_EXPIRATION,
    Made,
    idevid,
    key_usage,
    make,
    root,
    sub_ca,
    subject,
    weakly_signed,
)
from tests.helpers.weak_rsa import close_primes_key, roca_key, small_factor_key

Chain = tuple[bytes, ...]
HARDWARE_MODULE_NAME = x509.ObjectIdentifier("1.3.6.1.5.5.7.8.4")
CLIENT, SERVER = ExtendedKeyUsageOID.CLIENT_AUTH, ExtendedKeyUsageOID.SERVER_AUTH


def _realm(*anchors: Made | tuple[str, Made], idevids: bool = True, for_tls: bool = False) -> Realm:
    named = [anchor if isinstance(anchor, tuple) else ("acme", anchor) for anchor in anchors]
    document = RealmDocument(
        name="line",
        profiles={"device": ProfileDocument()},
        admission=AdmissionDocument(idevid="registered" if idevids else "off"),
        trust=tuple(
            TrustDocument(name=name, for_="tls" if for_tls else "idevid", pem=made.pem.decode()) for name, made in named
        ),
    )
    return Realm(1, "line", "active", 1, 0, document)


def _verdict(realm: Realm, chain: Chain, now: dt.datetime = START) -> str:
    try:
        identity = verify_idevid(realm, chain, now)
    except Refusal as refusal:
        return refusal.code
    return f"{identity.manufacturer}/{identity.serial_number}"


@functools.cache
def _root() -> Made:
    return root()


@functools.cache
def _sub() -> Made:
    return sub_ca(_root())


@functools.cache
def _rsa_root() -> Made:
    return make(subject("Acme RSA Root"), ca=True, usage=key_usage(certify=True), key=rsa_key())


def _leaf(by: Made | None = None, name: x509.Name | None = None, **options: object) -> Made:
    fields: dict[str, object] = {"usage": key_usage(sign=True)} | options
    return make(name or subject("x", serial_numbers=["AC-1"]), by or _sub(), **fields)  # type: ignore[arg-type]  # any


def _under(**options: object) -> Chain:
    """A good IDevID under a sub-CA of these."""
    fields: dict[str, object] = {"ca": True, "path_length": 0, "usage": key_usage(certify=True)} | options
    return idevid(make(subject("Odd Factory CA"), _root(), **fields)).chain  # type: ignore[arg-type]  # any option


def _named(serial: bytes) -> list[x509.GeneralName]:
    return [x509.OtherName(HARDWARE_MODULE_NAME, sequence(oid("2.999.1"), octets(serial)))]


def _hardware(*values: bytes) -> Chain:
    names = [x509.OtherName(HARDWARE_MODULE_NAME, value) for value in values]
    return _leaf(name=subject("x"), san=names).chain


def _patched(old: str, new: str, *, at: int = 0) -> Chain:
    chain = list(idevid(_sub()).chain)
    before, after = bytes.fromhex(old), bytes.fromhex(new)
    assert before in chain[at]
    chain[at] = chain[at].replace(before, after, 1)
    return tuple(chain)


GOOD: dict[str, tuple[Callable[[], Chain], str]] = {
    "with-sub-ca": (lambda: idevid(_sub()).chain, "acme/AC-1"),
    "with-sub-ca-and-root": (lambda: (*idevid(_sub()).chain, _root().der), "acme/AC-1"),
    "with-the-sub-ca-many-times": (lambda: (idevid(_sub()).der, *[_sub().der] * 9), "acme/AC-1"),
    "with-a-stranger's-certificate": (lambda: (*idevid(_sub()).chain, root(organization="Z").der), "acme/AC-1"),
    "from-the-root-itself": (lambda: (idevid(_root()).der,), "acme/AC-1"),
    "rsa-2048": (lambda: _leaf(key=rsa_key()).chain, "acme/AC-1"),
    "p-384": (lambda: _leaf(key=ec.generate_private_key(ec.SECP384R1())).chain, "acme/AC-1"),
    "no-key-usage": (lambda: _leaf(usage=None).chain, "acme/AC-1"),
    "no-basic-constraints": (lambda: _leaf(ca=None).chain, "acme/AC-1"),
    "client-eku": (lambda: _leaf(purposes=[CLIENT]).chain, "acme/AC-1"),
    "client-and-server-eku": (lambda: _leaf(purposes=[SERVER, CLIENT]).chain, "acme/AC-1"),
    "any-eku": (lambda: _leaf(purposes=[ExtendedKeyUsageOID.ANY_EXTENDED_KEY_USAGE]).chain, "acme/AC-1"),
    "no-well-defined-expiration": (lambda: idevid(_sub(), not_after=NO_EXPIRATION).chain, "acme/AC-1"),
    "permitted-name": (
        lambda: (
            _leaf(
                make(
                    subject("Constrained CA"),
                    _root(),
                    ca=True,
                    usage=key_usage(certify=True),
                    permitted=[x509.DNSName("acme.example")],
                ),
                san=[x509.DNSName("x.acme.example")],
            ).chain
        ),
        "acme/AC-1",
    ),
    "foreign-extension": (
        lambda: _leaf(extra=[(x509.UnrecognizedExtension(x509.ObjectIdentifier("1.2.3"), b"\5\0"), False)]).chain,
        "acme/AC-1",
    ),
    "hardware-name-in-text": (lambda: _hardware(sequence(oid("2.999.1"), octets(b"SE-1"))), "acme/hw:2.999.1:53452d31"),
    "the-same-serial-of-another-hardware-type": (
        lambda: _hardware(sequence(oid("2.999.2"), octets(b"SE-1"))),
        "acme/hw:2.999.2:53452d31",
    ),
    "hardware-name-in-bytes": (
        lambda: _hardware(sequence(oid("2.999.1"), octets(b"\xff\x01"))),
        "acme/hw:2.999.1:ff01",
    ),
    "hardware-name-beside-a-serial": (lambda: _leaf(san=_named(b"SE-1")).chain, "acme/AC-1"),
    "sub-ca-without-key-usage": (lambda: _under(usage=None), "acme/AC-1"),
}

BAD: dict[str, tuple[Callable[[], Chain], str]] = {
    # the chain
    "without-sub-ca": (lambda: (idevid(_sub()).der,), "chain_incomplete"),
    "look-alike": (lambda: idevid(sub_ca(root())).chain, "chain_invalid"),
    "look-alike-with-its-root": (lambda: (*idevid(sub_ca(root())).chain, root().der), "chain_invalid"),
    "look-alike-of-the-root": (lambda: (idevid(root()).der,), "chain_invalid"),
    "look-alike-with-the-real-sub-ca": (lambda: (idevid(sub_ca(root())).der, _sub().der), "chain_invalid"),
    "stranger": (
        lambda: idevid(make(subject("Z CA", organization="Z"), root("Z Root", organization="Z"), ca=True)).chain,
        "certificate_unknown",
    ),
    "stranger-alone": (
        lambda: (idevid(root("Z Root", organization="Z")).der,),
        "certificate_unknown",
    ),
    "self-signed": (lambda: (make(subject("x", serial_numbers=["AC-1"])).der,), "chain_incomplete"),
    "leaf-as-issuer": (lambda: idevid(_leaf(ca=False)).chain, "chain_invalid"),
    "ca-flag-false": (lambda: _under(ca=False), "chain_invalid"),
    "ca-without-basic-constraints": (lambda: _under(ca=None), "chain_invalid"),
    "ca-that-may-not-certify": (lambda: _under(usage=key_usage(sign=True)), "chain_invalid"),
    "expired-sub-ca": (lambda: _under(not_after=START - dt.timedelta(days=1)), "chain_invalid"),
    "sub-ca-of-the-future": (lambda: _under(not_before=START + dt.timedelta(days=1)), "chain_invalid"),
    "sub-ca-under-a-sub-ca": (lambda: idevid(sub_ca(_sub(), "Deeper CA")).chain, "chain_invalid"),
    "names-constrained": (
        lambda: (
            _leaf(
                make(
                    subject("Constrained CA"),
                    _root(),
                    ca=True,
                    usage=key_usage(certify=True),
                    permitted=[x509.DNSName("acme.example")],
                ),
                san=[x509.DNSName("x.evil.example")],
            ).chain
        ),
        "chain_invalid",
    ),
    "garbage-as-sub-ca": (lambda: (idevid(_sub()).der, b"\x30\x00"), "certificate_malformed"),
    "sub-ca-of-version-7": (lambda: _patched("a003020102", "a003020107", at=1), "certificate_malformed"),
    "sub-ca-with-an-extension-twice": (lambda: _patched("0603551d23", "0603551d0e", at=1), "chain_invalid"),
    "sub-ca-of-an-unknown-kind-of-key": (
        lambda: _patched("06072a8648ce3d0201", "06072a8648ce3d0209", at=1),
        "chain_invalid",
    ),
    # the leaf
    "garbage": (lambda: (b"\x30\x00",), "certificate_malformed"),
    "empty": (lambda: (b"",), "certificate_malformed"),
    "trailing-byte": (lambda: (idevid(_sub()).der + b"\0", _sub().der), "certificate_malformed"),
    "version-7": (lambda: _patched("a003020102", "a003020107"), "certificate_malformed"),
    "extension-twice": (lambda: _patched("0603551d23", "0603551d0e"), "certificate_malformed"),
    "changed-name": (lambda: _patched(b"AC-1".hex(), b"AC-2".hex()), "chain_invalid"),
    "unknown-kind-of-key": (lambda: _patched("06072a8648ce3d0201", "06072a8648ce3d0209"), "chain_invalid"),
    "unknown-curve": (lambda: _patched("06082a8648ce3d030107", "06082a8648ce3d030101"), "certificate_malformed"),
    "rsa-1024": (
        lambda: _leaf(key=rsa.generate_private_key(65537, 1024)).chain,  # noqa: S505  # it must be refused
        "chain_invalid",
    ),
    "secp256k1": (lambda: _leaf(key=ec.generate_private_key(ec.SECP256K1())).chain, "chain_invalid"),
    "ed25519": (lambda: _leaf(key=ed25519.Ed25519PrivateKey.generate()).chain, "chain_invalid"),
    "expired": (lambda: idevid(_sub(), not_after=START - dt.timedelta(seconds=1)).chain, "certificate_expired"),
    "of-the-future": (lambda: _leaf(not_before=START + dt.timedelta(seconds=1)).chain, "certificate_not_yet_valid"),
    "server-eku": (lambda: _leaf(purposes=[SERVER]).chain, "certificate_not_for_clients"),
    "ocsp-eku": (lambda: _leaf(purposes=[ExtendedKeyUsageOID.OCSP_SIGNING]).chain, "certificate_not_for_clients"),
    "no-digital-signature": (lambda: _leaf(usage=key_usage()).chain, "certificate_not_for_clients"),
    "ca-as-leaf": (
        lambda: _leaf(_root(), ca=True, path_length=0, usage=key_usage(sign=True, certify=True)).chain,
        "certificate_not_for_clients",
    ),
    "the-sub-ca-itself": (lambda: (_sub().der,), "certificate_not_for_clients"),
    "the-root-itself": (lambda: (_root().der,), "certificate_not_for_clients"),
    "critical-foreign-extension": (
        lambda: _leaf(extra=[(x509.UnrecognizedExtension(x509.ObjectIdentifier("1.2.3"), b"\5\0"), True)]).chain,
        "chain_invalid",
    ),
    # the identity
    "no-serial-number": (lambda: _leaf(name=subject("x")).chain, "idevid_without_serial"),
    "two-serial-numbers": (
        lambda: _leaf(name=subject("x", serial_numbers=["AC-1", "AC-2"])).chain,
        "idevid_without_serial",
    ),
    "two-serial-numbers-beside-a-hardware-name": (
        lambda: _leaf(name=subject("x", serial_numbers=["AC-1", "AC-2"]), san=_named(b"SE-1")).chain,
        "idevid_without_serial",
    ),
    "serial-number-in-the-form-of-a-hardware-name": (
        lambda: make(subject("x", serial_numbers=["hw:2.999.1:53452d31"]), _root(), usage=key_usage(sign=True)).chain,
        "idevid_without_serial",
    ),
    "san-without-hardware-name": (
        lambda: _leaf(name=subject("x"), san=[x509.DNSName("AC-1")]).chain,
        "idevid_without_serial",
    ),
    "two-hardware-names": (
        lambda: _hardware(*(sequence(oid("2.999.1"), octets(serial)) for serial in (b"SE-1", b"SE-2"))),
        "idevid_without_serial",
    ),
    "empty-hardware-name": (lambda: _hardware(sequence(oid("2.999.1"), octets(b""))), "idevid_without_serial"),
    "hardware-name-without-serial": (lambda: _hardware(sequence(oid("2.999.1"))), "idevid_without_serial"),
    "hardware-name-of-an-integer": (
        lambda: _hardware(sequence(oid("2.999.1"), integer(7))),
        "idevid_without_serial",
    ),
    "hardware-name-of-null": (lambda: _hardware(b"\x05\x00"), "idevid_without_serial"),
}


@pytest.mark.parametrize("case", GOOD)
def test_a_chain_to_the_manufacturer_proves_its_serial_number(case: str) -> None:
    chain, proven = GOOD[case]
    assert _verdict(_realm(_root()), chain()) == proven


@pytest.mark.parametrize("case", BAD)
def test_a_chain_that_breaks_a_rule_proves_nothing(case: str) -> None:
    chain, code = BAD[case]
    assert _verdict(_realm(_root()), chain()) == code


WEAK = {"key_roca": roca_key, "key_close_primes": close_primes_key, "key_small_factor": small_factor_key}


@pytest.mark.parametrize("code", WEAK)
def test_case_19_weak_key_of_an_idevid_proves_nothing_and_is_told_by_its_weakness(code: str) -> None:
    assert _verdict(_realm(_root()), _leaf(key=WEAK[code]()).chain) == code
    assert _verdict(_realm(_root()), _leaf(key=rsa_key()).chain) == "acme/AC-1"


@pytest.mark.parametrize("place", ["sub-ca", "root"])
def test_case_16_nothing_hangs_on_a_ca_whose_key_anybody_can_factor(place: str) -> None:
    """The root, too: one that was trusted before there was such a check."""

    def chain_of(key: rsa.RSAPrivateKey) -> tuple[Realm, Chain]:
        fields: dict[str, Any] = {"ca": True, "usage": key_usage(certify=True)}
        top = make(subject("RSA Root"), **fields, key=key if place == "root" else rsa_key())
        middle = make(subject("RSA CA"), top, **fields, key=key if place == "sub-ca" else rsa_key(3072))
        return _realm(top), idevid(middle).chain

    realm, chain = chain_of(roca_key())
    with pytest.raises(NotAuthenticated) as caught:
        verify_idevid(realm, chain, START)
    assert caught.value.code == "chain_invalid"
    assert "a CA's key in the chain is weak (key_roca)" in caught.value.detail
    assert _verdict(*chain_of(rsa_key())) == "acme/AC-1"


@pytest.mark.parametrize("digest", [hashes.MD5(), hashes.SHA1()], ids=["md5", "sha1"])  # noqa: S303  # must be refused
@pytest.mark.parametrize("place", ["leaf", "sub-ca"])
def test_a_chain_signed_with_a_broken_hash_proves_nothing(digest: hashes.MD5 | hashes.SHA1, place: str) -> None:
    top = _rsa_root()
    middle = make(subject("RSA CA"), top, ca=True, usage=key_usage(certify=True), key=rsa_key(3072))
    realm = _realm(top)
    assert _verdict(realm, idevid(middle).chain) == "acme/AC-1"
    if place == "leaf":
        assert _verdict(realm, weakly_signed(idevid(middle), middle, digest).chain) == "chain_invalid"
    else:
        assert _verdict(realm, idevid(weakly_signed(middle, top, digest)).chain) == "chain_invalid"


@pytest.mark.parametrize("sent", ["alone", "with-sub-ca"])
def test_a_sub_ca_can_be_the_anchor_itself(sent: str) -> None:
    made = idevid(_sub())
    chain = (made.der,) if sent == "alone" else made.chain
    assert _verdict(_realm(_sub()), chain) == "acme/AC-1"
    assert _verdict(_realm(_sub()), (idevid(sub_ca(root())).der,)) == "chain_invalid"


def test_each_manufacturer_proves_under_its_own_name_only() -> None:
    globex = root("Globex Root", organization="Globex")
    device = idevid(make(subject("G CA", organization="Globex"), globex, ca=True))
    both = _realm(("acme", _root()), ("globex", globex))
    assert _verdict(both, device.chain) == "globex/AC-1"
    assert _verdict(both, idevid(_sub()).chain) == "acme/AC-1"
    assert _verdict(_realm(_root()), device.chain) == "certificate_unknown"


def test_a_realm_without_idevid_anchors_knows_nobody() -> None:
    chain = idevid(_sub()).chain
    assert _verdict(_realm(), chain) == "certificate_unknown"
    assert _verdict(_realm(_root(), for_tls=True), chain) == "certificate_unknown"


def test_a_realm_that_admits_no_idevid_says_so_only_to_good_ones() -> None:
    realm = _realm(_root(), idevids=False)
    assert _verdict(realm, idevid(_sub()).chain) == "idevid_not_admitted"
    assert _verdict(realm, idevid(sub_ca(root())).chain) == "chain_invalid"


def test_a_path_length_of_the_anchor_is_kept() -> None:
    flat = root("Flat Root", path_length=0)
    assert _verdict(_realm(flat), idevid(sub_ca(flat)).chain) == "chain_invalid"
    assert _verdict(_realm(flat), (idevid(flat).der,)) == "acme/AC-1"


def test_a_chain_is_judged_at_the_time_of_the_request() -> None:
    chain = idevid(_sub(), not_after=START + dt.timedelta(days=1)).chain
    assert _verdict(_realm(_root()), chain, START + dt.timedelta(days=1)) == "acme/AC-1"
    assert _verdict(_realm(_root()), chain, START + dt.timedelta(days=1, seconds=1)) == "certificate_expired"
    forever = idevid(_sub()).chain
    assert _verdict(_realm(_root()), forever, END + dt.timedelta(days=1)) == "chain_invalid"  # its CAs expired


# --- as a requester --------------------------------------------------------------------------------------------------


@pytest.fixture
async def acme(core: Core) -> Core:
    await core.trust.add("default", _root().pem, name="acme", actor=ME)
    return core


async def test_a_registered_idevid_enrolls_and_then_renews_with_its_own_certificate(acme: Core) -> None:
    await acme.devices.add("default", "sensor", serial_number="AC-1", actor=ME)
    device = idevid(_sub())
    resolved = await acme.realms.resolve("est", None, None)
    requester = await acme.registration.authenticate(resolved, Evidence(chain=device.chain), csr_of(new_key()))
    assert (requester.means, requester.device.name) == (Means.IDEVID, "sensor")
    issued = await ask(acme, Evidence(chain=device.chain), csr_of(new_key()))
    own = Evidence(chain=(issued.certificate,))
    assert await code_of(acme, own, csr_of(new_key()), operation=Operation.REENROLL) == "issued"
    wants = await code_of(acme, Evidence(chain=device.chain), csr_of(new_key()), operation=Operation.REENROLL)
    assert wants == "reenroll_needs_own_certificate"


async def test_the_same_idevid_request_again_gets_the_same_certificate(acme: Core) -> None:
    await acme.devices.add("default", "sensor", serial_number="AC-1", actor=ME)
    evidence, csr = Evidence(chain=idevid(_sub()).chain), csr_of(new_key())
    first = await ask(acme, evidence, csr)
    again = await ask(acme, evidence, csr)
    assert (first.again, again.again) == (False, True)
    assert again.certificate == first.certificate
    assert not (await ask(acme, evidence, csr_of(new_key()))).again


@pytest.mark.parametrize("serial", ["AC-2", "ac-1", "AC-1 ", "AC-10", "AC-"])
async def test_an_idevid_of_another_serial_number_is_not_registered(acme: Core, serial: str) -> None:
    await acme.devices.add("default", "sensor", serial_number="AC-1", actor=ME)
    chain = idevid(_sub(), serial).chain
    assert await code_of(acme, Evidence(chain=chain), csr_of(new_key())) == "device_unknown"


async def test_a_serial_number_is_a_device_only_under_its_manufacturer(acme: Core) -> None:
    globex = root("Globex Root", organization="Globex")
    await acme.trust.add("default", globex.pem, name="globex", actor=ME)
    await acme.devices.add("default", "sensor", serial_number="AC-1", manufacturer="acme", actor=ME)
    theirs = Evidence(chain=(idevid(globex).der,))
    assert await code_of(acme, theirs, csr_of(new_key())) == "device_unknown"
    await acme.devices.add("default", "camera", serial_number="AC-1", manufacturer="globex", actor=ME)
    assert await code_of(acme, theirs, csr_of(new_key(), "camera")) == "issued"
    assert await code_of(acme, theirs, csr_of(new_key(), "sensor")) == "subject_mismatch"
    assert await code_of(acme, Evidence(chain=idevid(_sub()).chain), csr_of(new_key())) == "issued"


async def test_an_idevid_is_worth_nothing_in_a_realm_that_does_not_know_it(acme: Core) -> None:
    await acme.devices.add("default", "sensor", serial_number="AC-1", actor=ME)
    evidence = Evidence(chain=idevid(_sub()).chain)
    assert await code_of(acme, evidence, csr_of(new_key()), label="other") == "certificate_unknown"
    await acme.trust.add("other", _root().pem, name="acme", actor=ME)
    assert await code_of(acme, evidence, csr_of(new_key()), label="other") == "device_unknown"
    await acme.devices.add("other", "sensor", serial_number="AC-1", actor=ME)
    assert await code_of(acme, evidence, csr_of(new_key()), label="other") == "issued"


async def test_a_suspended_device_s_idevid_is_refused(acme: Core) -> None:
    await acme.devices.add("default", "sensor", serial_number="AC-1", actor=ME)
    evidence = Evidence(chain=idevid(_sub()).chain)
    await acme.devices.suspend("default", "sensor", actor=ME)
    assert await code_of(acme, evidence, csr_of(new_key())) == "device_suspended"
    await acme.devices.resume("default", "sensor", actor=ME)
    assert await code_of(acme, evidence, csr_of(new_key())) == "issued"


async def test_a_removed_manufacturer_proves_nothing_any_more(acme: Core) -> None:
    await acme.devices.add("default", "sensor", serial_number="AC-1", actor=ME)
    evidence = Evidence(chain=idevid(_sub()).chain)
    assert await code_of(acme, evidence, csr_of(new_key())) == "issued"
    await acme.trust.remove("default", "acme", actor=ME)
    assert await code_of(acme, evidence, csr_of(new_key())) == "certificate_unknown"


async def test_a_realm_can_turn_idevids_off(acme: Core) -> None:
    await acme.devices.add("default", "sensor", serial_number="AC-1", actor=ME)
    await edit_realm(acme, "default", 'idevid = "registered"', 'idevid = "off"')
    assert await code_of(acme, Evidence(chain=idevid(_sub()).chain), csr_of(new_key())) == "idevid_not_admitted"


async def test_a_compromised_idevid_key_enrolls_nothing(acme: Core) -> None:
    made = idevid(_sub())
    device = await enrolled(acme, serial_number="AC-1", key=made.key)
    assert await code_of(acme, Evidence(chain=made.chain), csr_of(new_key())) == "issued"
    await acme.certificates.revoke(device.serial, reason="keyCompromise", actor=ME)
    assert await code_of(acme, Evidence(chain=made.chain), csr_of(new_key())) == "key_blocked"


async def test_a_certificate_of_the_realm_s_own_ca_is_no_idevid_under_it(core: Core) -> None:
    """Also when an operator trusts the realm's own root for IDevIDs, by mistake."""
    await core.trust.add(
        "default",
        x509.load_der_x509_certificate((await core.issuers.export("default"))[0]).public_bytes(Encoding.PEM),
        name="self",
        actor=ME,
    )
    device = await enrolled(core)
    await core.certificates.revoke(device.serial, actor=ME)
    chain = (device.certificate, *(await core.issuers.export("default"))[1:])
    assert await code_of(core, Evidence(chain=chain), csr_of(new_key())) == "certificate_revoked"


# --- the demo PKI ----------------------------------------------------------------------------------------------------


def test_the_demo_devices_prove_what_the_readme_says(tmp_path: Path) -> None:
    pki = make_demo_pki(tmp_path)
    now = dt.datetime.now(dt.UTC)

    def anchor(name: str, file: Path) -> TrustDocument:
        return TrustDocument(name=name, pem=file.read_text())

    trust = (anchor("acme", pki.acme.root), anchor("globex", pki.globex.root))
    profiles = {"device": ProfileDocument()}
    realm = Realm(1, "line", "active", 1, 0, RealmDocument(name="line", profiles=profiles, trust=trust))

    def verdict(device: IDevId) -> str:
        chain = x509.load_pem_x509_certificates(device.chain.read_bytes())
        return _verdict(realm, tuple(found.public_bytes(Encoding.DER) for found in chain), now)

    assert {verdict(device) for device in (pki.sensor, pki.gateway, pki.controller)} == {
        "acme/AC-1001",
        "acme/AC-1002",
        "acme/AC-1003",
    }
    assert {verdict(device) for device in (pki.camera, pki.router)} == {"globex/GX-2001", "globex/GX-2002"}
    assert [verdict(device) for device in (pki.expired, pki.server_only, pki.impostor)] == [
        "certificate_expired",
        "certificate_not_for_clients",
        "chain_invalid",
    ]


def test_an_identity_is_manufacturer_and_serial() -> None:
    assert verify_idevid(_realm(_root()), idevid(_sub()).chain, START) == Identity("acme", "AC-1")


def _expensive_chain(top: Made | None) -> Chain:
    """A leaf under CAs of P-521 that all certify each other, and, if `top` is given, one that claims its name."""
    names = [subject(f"loop {number}") for number in range(3)]
    keys = [ec.generate_private_key(ec.SECP521R1()) for _ in names]
    pairs = [(i, j) for i in range(3) for j in range(3) if i != j]
    loops = [_certified(names[i], keys[i], names[j], keys[j]) for i, j in pairs]
    leaf_key = ec.generate_private_key(ec.SECP256R1())
    leaf = _certified(subject("leaf", serial_numbers=["AC-1"]), leaf_key, names[0], keys[0], ca=False)
    claimed = [] if top is None else [_certified(names[0], keys[0], top.certificate.subject, keys[1])]
    return tuple(certificate.public_bytes(Encoding.DER) for certificate in (leaf, *claimed, *loops))


def _certified(
    name: x509.Name,
    key: ec.EllipticCurvePrivateKey,
    issuer: x509.Name,
    by: ec.EllipticCurvePrivateKey,
    *,
    ca: bool = True,
) -> x509.Certificate:
    builder = x509.CertificateBuilder(
        issuer, name, key.public_key(), x509.random_serial_number(), START - dt.timedelta(days=1), END
    )
    builder = builder.add_extension(x509.BasicConstraints(ca, None), critical=True)
    return builder.sign(by, hashes.SHA256())


@pytest.mark.parametrize(
    ("claims", "code", "most"),
    [
        pytest.param(False, "chain_incomplete", 0, id="no-way-to-an-anchor"),
        pytest.param(True, "chain_invalid", 6, id="a-false-claim-of-the-anchors-name"),
    ],
)
def test_a_stranger_cannot_make_the_server_verify_signatures_as_he_pleases(
    claims: bool, code: str, most: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    from ca_core.registration.admission import chain as under_test

    looked = [0]
    really = under_test._issued

    def count(certificate: x509.Certificate, anchor: x509.Certificate) -> bool:
        looked[0] += 1
        return really(certificate, anchor)

    monkeypatch.setattr(under_test, "_issued", count)
    anchor = _root()
    assert _verdict(_realm(anchor), _expensive_chain(anchor if claims else None)) == code
    assert looked[0] <= most


def test_a_name_that_cannot_be_read_is_refused_and_not_a_fault_of_ours() -> None:
    anchor = _root()
    der = idevid(anchor).chain[0]
    broken = der.replace(b"\x0c\x14Acme Devices Root CA", b"\x14\x14Acme Devices Root C\xe4")  # TeletexString
    assert broken != der
    assert _verdict(_realm(anchor), (broken,)) == "certificate_malformed"
    assert _verdict(_realm(anchor), (der,)) == "acme/AC-1"


def test_a_date_that_no_calendar_has_is_refused() -> None:
    anchor = _root()
    der = idevid(anchor).chain[0]
    year_zero = der.replace(b"\x17\x0d", b"\x18\x0f0000", 1)
    assert _verdict(_realm(anchor), (year_zero,)) == "certificate_malformed"


def _ca(
    name: str,
    key: ec.EllipticCurvePrivateKey,
    issuer: str,
    by: ec.EllipticCurvePrivateKey,
    *,
    until: dt.datetime = END,
    identified: bool = True,
    leaf: bool = False,
) -> x509.Certificate:
    """A certificate of the given names and keys; `identified` adds SKI and AKI."""
    builder = x509.CertificateBuilder(
        subject(issuer),
        subject(name, serial_numbers=["AC-1"]) if leaf else subject(name),
        key.public_key(),
        x509.random_serial_number(),
        START - dt.timedelta(days=100),
        until,
    ).add_extension(x509.BasicConstraints(not leaf, None), critical=True)
    if identified:
        builder = builder.add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), False)
        builder = builder.add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(by.public_key()), False)
    return builder.sign(by, hashes.SHA256())


def _made(certificate: x509.Certificate) -> Made:
    return Made(certificate, new_key(), ())


PAST = START - dt.timedelta(days=1)


@functools.cache
def _renewals() -> dict[str, tuple[tuple[x509.Certificate, ...], tuple[x509.Certificate, ...]]]:
    """What manufacturers do to their CAs over the years: (anchors, chain as sent) by what was done."""
    root_key, sub_key, other_key, leaf_key = (new_key() for _ in range(4))
    anchor = _ca("Root", root_key, "Root", root_key)
    old_anchor = _ca("Root", root_key, "Root", root_key, until=PAST)
    sub = _ca("Sub", sub_key, "Root", root_key)
    old_sub = _ca("Sub", sub_key, "Root", root_key, until=PAST)
    crossed = _ca("Sub", sub_key, "Another Root", other_key)
    other_sub = _ca("Sub", other_key, "Root", root_key, identified=False)
    leaf = _ca("dev", leaf_key, "Sub", sub_key, leaf=True)
    bare = _ca("dev", leaf_key, "Sub", sub_key, leaf=True, identified=False)
    new_root = _ca("Root", other_key, "Root", root_key)  # newWithOld: the new key under the same name
    rolled = _ca("dev", leaf_key, "Root", other_key, leaf=True)
    deep, above = [], "Root"
    by = root_key
    for number in range(5):
        key = new_key()
        deep.append(_ca(f"Deep {number}", key, above, by))
        above, by = f"Deep {number}", key
    return {
        "root-sent-along": ((anchor,), (leaf, sub, anchor)),
        "out-of-order": ((anchor,), (leaf, anchor, sub)),
        "two-subs-of-one-name-without-identifiers": ((anchor,), (bare, other_sub, sub)),
        "cross-signed-sub-first": ((anchor,), (leaf, crossed, sub)),
        "expired-sub-first": ((anchor,), (leaf, old_sub, sub)),
        "expired-anchor-first": ((old_anchor, anchor), (leaf, sub)),
        "rekeyed-sub-is-an-anchor-too": ((anchor, other_sub), (leaf, sub)),
        "root-rolled-over-under-its-name": ((anchor,), (rolled, new_root)),
        "five-intermediates": ((anchor,), (_ca("dev", leaf_key, above, by, leaf=True), *reversed(deep))),
    }


@pytest.mark.parametrize("case", _renewals())
def test_cas_that_were_renewed_crossed_or_sent_in_any_order_still_prove_their_devices(case: str) -> None:
    anchors, chain = _renewals()[case]
    named = [(f"acme {number}", _made(certificate)) for number, certificate in enumerate(anchors)]
    verdict = _verdict(_realm(*named), tuple(each.public_bytes(Encoding.DER) for each in chain))
    assert verdict.endswith("/AC-1"), verdict
