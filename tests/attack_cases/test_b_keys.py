"""Attack cases 15 to 21: no certificate for a key that is weak, broken, unproven, blocked or another's, on any path.

Both protocols see the same requests, as in the cases before. The depth is in tests/ca_core (test_public_key.py,
test_weak_keys.py, registration/test_idevid.py); here each case has its number, a real daemon, and the reason compared.
"""

import ast
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from tests.attack_cases.field import BAD_ALG, BAD_MESSAGE_CHECK, BAD_REQUEST, EST, SCEP, Field
from tests.attack_cases.mutation import HOUSE, PACKAGES
from tests.attack_cases.talk import PATIENCE, Heard, talk
from tests.end_to_end import scep_wire, wire
from tests.helpers.bad_csr import BAD_CSRS, PrivateKey, ec_key, ec_spki, ed25519_spki, rsa_key, rsa_spki, spki_of
from tests.helpers.bad_csr import name as name_of
from tests.helpers.core import ME, edit_realm
from tests.helpers.daemon import Daemon
from tests.helpers.debian_keys import LITTLE_32, LITTLE_64, debian_key
from tests.helpers.weak_rsa import close_primes_key, roca_key, small_factor_key
from tests.scep_server.client import tlv

protocols = pytest.mark.parametrize("protocol", [EST, SCEP])
RENEWAL_REQ = tlv(0x13, b"17")
ODD = rsa_key().public_key().public_numbers().n


def rsa_of(bits: int) -> bytes:
    return rsa_spki(1 << (bits - 1) | 1, 65537)


def ec_key_off_its_curve() -> bytes:
    point = bytearray(spki_of(ec_key()))
    point[-1] ^= 1
    return bytes(point)


# --- what a key must be -----------------------------------------------------------------------------------------------


@protocols
@pytest.mark.parametrize(
    ("spki", "code"),
    [
        pytest.param(rsa_spki(32767, 3), "key_too_small", id="15-bit"),
        pytest.param(rsa_of(1024), "key_too_small", id="1024-bit"),
        pytest.param(rsa_of(2047), "key_too_small", id="2047-bit"),
        pytest.param(rsa_of(4097), "key_too_large", id="4097-bit"),
        pytest.param(rsa_of(16384), "key_too_large", id="16384-bit"),
        pytest.param(rsa_spki(ODD - 1, 65537), "key_invalid", id="even-modulus"),
        pytest.param(rsa_spki(ODD, 1), "key_exponent", id="exponent-1"),
        pytest.param(rsa_spki(ODD, 3), "key_exponent", id="exponent-3"),
        pytest.param(rsa_spki(ODD, 2**2000 + 1), "key_exponent", id="exponent-of-2001-bits"),
    ],
)
def test_case_15_rsa_key_of_a_wrong_size_or_exponent_is_refused(
    field: Field, protocol: str, spki: bytes, code: str
) -> None:
    field.assert_csr_refused(field.csr(protocol=protocol, spki=spki), protocol, code)
    field.assert_served(field.csr(protocol=protocol, key=strong(field, protocol)), protocol)


@protocols
@pytest.mark.parametrize(
    ("weak", "code"),
    [
        pytest.param(roca_key, "key_roca", id="roca"),
        pytest.param(close_primes_key, "key_close_primes", id="close-primes"),
        pytest.param(small_factor_key, "key_small_factor", id="small-factor"),
        pytest.param(partial(debian_key, 4711, LITTLE_32, "read"), "key_debian", id="debian-i386"),
        pytest.param(partial(debian_key, 12345, LITTLE_64, "absent"), "key_debian", id="debian-amd64"),
    ],
)
def test_case_16_key_that_anybody_can_factor_is_refused_by_its_weakness(
    field: Field, protocol: str, weak: Callable[[], rsa.RSAPrivateKey], code: str
) -> None:
    field.assert_csr_refused(field.csr(protocol=protocol, key=weak()), protocol, code, fail_info=BAD_ALG)
    field.assert_served(field.csr(protocol=protocol, key=strong(field, protocol)), protocol)


@protocols
@pytest.mark.parametrize(
    ("spki", "code"),
    [
        pytest.param(ec_key_off_its_curve(), "key_invalid", id="off-curve"),
        pytest.param(ec_spki("1.2.840.10045.3.1.7", b"\0"), "key_invalid", id="infinity"),
        pytest.param(spki_of(ec_key("secp256k1")), "key_type", id="secp256k1"),
        pytest.param(ed25519_spki(1), "key_invalid", id="ed25519-identity"),
        pytest.param(ed25519_spki(0), "key_invalid", id="ed25519-of-order-4"),
    ],
)
def test_case_17_point_on_no_curve_of_ours_is_refused(field: Field, protocol: str, spki: bytes, code: str) -> None:
    field.assert_csr_refused(field.csr(protocol=protocol, spki=spki), protocol, code)
    field.assert_served(protocol=protocol)


@protocols
@pytest.mark.parametrize(
    # The one can't be signed with its own key here, and is told like any other that proves nothing.
    ("case", "fail_info"),
    [("ec-p192", BAD_MESSAGE_CHECK), ("ec-explicit-curve", BAD_ALG)],
)
def test_case_17_curve_that_is_unnamed_or_weak_is_refused(
    field: Field, protocol: str, case: str, fail_info: str
) -> None:
    (der,) = [der for each, der, _ in BAD_CSRS if each == case]
    field.assert_csr_refused(der, protocol, "key_type", fail_info=fail_info)
    field.assert_served(protocol=protocol)


def strong(field: Field, protocol: str) -> rsa.RSAPrivateKey:
    """An RSA key of the device that must pass; in SCEP the one with which it signs its messages."""
    return field.rsa_key if protocol == SCEP else rsa.generate_private_key(65537, 2048)


# --- on every path ----------------------------------------------------------------------------------------------------


class Paths:
    """The ways to a certificate that a device has once it has one in both protocols."""

    def __init__(self, field: Field, folder: Path) -> None:
        self.field = field
        self.folder = folder
        self.by_scep = field.assert_served(protocol=SCEP)
        certificate = field.assert_served(protocol=EST)
        (folder / "own.pem").write_bytes(certificate.public_bytes(Encoding.PEM))
        key = field.key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
        (folder / "own.key").write_bytes(key)

    def reenroll(self, **bent: Any) -> Heard:
        """EST simplereenroll, with the device's own certificate."""
        tls = wire.context(self.field.daemon.root, certificate=self.folder / "own.pem", key=self.folder / "own.key")
        body = wire.body_of(self.field.csr(**bent))
        request = wire.enroll_request(body, path="/.well-known/est/simplereenroll")
        return talk(
            self.field.daemon.https_port, request, tls=tls, source=self.field.source, answers=1, seconds=PATIENCE
        )

    def renewal_message(self, **bent: Any) -> bytes:
        """A RenewalReq, signed with the device's own certificate."""
        csr = self.field.csr(protocol=SCEP, **bent)
        signer = self.by_scep.public_bytes(Encoding.DER)
        transaction = tlv(0x13, b"of-a-renewal-%d" % len(bent))
        return self.field.message(csr, signer=signer, message_type=RENEWAL_REQ, transaction_id=transaction)

    def explained(self, message: bytes) -> dict[str, Any]:
        """What the operator's command says of a message, which goes through the same reader."""
        path = self.folder / "captured"
        path.write_bytes(message)
        verdict: dict[str, Any] = self.field.daemon.ask("explain", str(path))["verdict"]
        return verdict

    def assert_refused(self, code: str, fail_info: str, **bent: Any) -> None:
        """Every path refuses a CSR that is bent like this, for the same reason."""
        field = self.field
        field.assert_refused(self.reenroll(**bent), 400, code)
        field.assert_failed(field.scep(self.renewal_message(**bent)), code, fail_info)
        assert self.explained(self.renewal_message(**bent))["code"] == code
        for protocol in (EST, SCEP):
            info = None if protocol == EST else fail_info
            field.assert_csr_refused(field.csr(protocol=protocol, **bent), protocol, code, fail_info=info)

    def assert_served(self) -> None:
        """The twins: what differs in nothing else passes each of them."""
        field = self.field
        assert self.explained(self.renewal_message())["outcome"] == "issued"
        heard = field.scep(self.renewal_message())
        assert scep_wire.succeeded(heard.only.body)
        assert self.reenroll().only.certificate.public_key() == field.key.public_key()


def test_case_18_csr_that_its_key_did_not_sign_is_refused_on_every_path(field: Field, tmp_path: Path) -> None:
    paths = Paths(field, tmp_path)
    paths.assert_refused("csr_signature_bad", BAD_MESSAGE_CHECK, break_signature=True)
    paths.assert_served()


@pytest.mark.parametrize("kind", ["rsa", "ec"])
def test_case_18_csr_signed_with_another_key_of_the_same_kind_is_refused(field: Field, kind: str) -> None:
    """Signed well, and by the device: yet not with the key that the certificate would be for."""
    others: dict[str, PrivateKey] = {"rsa": rsa_key(), "ec": ec_key()}
    stolen = spki_of(rsa_key(3072)) if kind == "rsa" else spki_of(ec.generate_private_key(ec.SECP256R1()))
    field.assert_csr_refused(field.csr(key=others[kind], spki=stolen), EST, "csr_signature_bad")
    field.assert_served(protocol=EST)


def test_case_19_weak_key_is_refused_on_every_path(field: Field, tmp_path: Path) -> None:
    paths = Paths(field, tmp_path)
    paths.assert_refused("key_roca", BAD_ALG, key=roca_key())
    paths.assert_served()


def test_case_19_every_request_is_read_by_the_one_reader_that_has_the_gate() -> None:
    """Whatever signs for a device takes a `ParsedCsr`, and nothing else reads a CSR but what only looks at proofs."""
    readers = {
        f"{path.relative_to(HOUSE)}:{function.name}"
        for package in PACKAGES
        for path in (HOUSE / package).rglob("*.py")
        for function in ast.walk(ast.parse(path.read_text()))
        if isinstance(function, ast.FunctionDef | ast.AsyncFunctionDef)
        for node in ast.walk(function)
        if isinstance(node, ast.Attribute) and node.attr in ("load_der_x509_csr", "load_pem_x509_csr")
    }
    assert readers == {
        "ca_core/csr.py:_load",
        "ca_core/csr.py:_load_with_unsorted_attributes",
        "scep_server/operations.py:_proves_itself",
    }


# --- whose it is ------------------------------------------------------------------------------------------------------


@protocols
def test_case_20_key_that_is_certified_for_another_device_is_refused(field: Field, protocol: str) -> None:
    field.assert_served(protocol=EST)
    field.assert_served(protocol=SCEP)
    thief = f"{field.name}-thief-{protocol}"
    secret = field.registered(thief)
    assert_other_refused(field, protocol, thief, secret, "key_of_other_device")


@protocols
def test_case_20_key_that_was_compromised_is_refused_for_good(field: Field, protocol: str) -> None:
    certificate = field.assert_served(protocol=protocol)
    name = field.name_in(protocol)

    async def revoke(core: Any) -> str:
        serial = format(certificate.serial_number, "x")
        await core.certificates.revoke(serial, reason="keyCompromise", actor=ME)
        handed = await core.devices.secret("default", name, actor=ME)
        return str(handed.secret)

    secret = field.daemon.inspect(revoke)
    assert_other_refused(field, protocol, name, secret, "key_blocked")


def assert_other_refused(field: Field, protocol: str, name: str, secret: str, code: str) -> None:
    """A device with this secret gets nothing for the field's key, and all it wants for a new one."""
    if protocol == EST:

        def asked(key: PrivateKey) -> Heard:
            request = wire.enroll_request(
                wire.body_of(field.csr(key=key, subject=name_of(name))), authorization=wire.basic(name, secret)
            )
            return field.est(request)

        field.assert_refused(asked(field.key), 400, code)
        assert asked(ec.generate_private_key(ec.SECP256R1())).only.status == 200
        return

    def sent(key: rsa.RSAPrivateKey) -> Heard:
        transaction = f"{name}-{id(key)}".encode()
        message = scep_wire.enroll_message(field.ra, key, name, secret, transaction=transaction)
        return field.scep(message)

    field.assert_failed(sent(field.rsa_key), code, BAD_REQUEST)
    assert scep_wire.succeeded(sent(rsa.generate_private_key(65537, 2048)).only.body)


# --- the same key again -----------------------------------------------------------------------------------------------


@pytest.fixture(scope="session")
def rekeyed(daemon: Daemon) -> Daemon:
    """The daemon, whose realm has a profile per issuer that wants a new key with each renewal."""
    profiles = "".join(
        f'[profiles.rekeyed-{family}]\nissuer = "{family}"\nrekey = "required"\n\n' for family in ("ec", "rsa")
    )
    daemon.inspect(lambda core: edit_realm(core, "default", "[profiles.scep]", f"{profiles}[profiles.scep]"))
    return daemon


@pytest.mark.parametrize("wanted", [True, False], ids=["rekey-required", "rekey-optional"])
def test_case_21_renewal_with_the_same_key_is_refused_only_where_the_profile_wants_a_new_one(
    field: Field, rekeyed: Daemon, tmp_path: Path, wanted: bool
) -> None:
    assert rekeyed is field.daemon
    if wanted:
        field.become(est_profile="rekeyed-ec", scep_profile="rekeyed-rsa")
    paths = Paths(field, tmp_path)
    if wanted:
        field.assert_refused(paths.reenroll(), 400, "rekey_required")
        field.assert_failed(field.scep(paths.renewal_message()), "rekey_required", BAD_REQUEST)
    else:
        paths.assert_served()
    new = ec.generate_private_key(ec.SECP256R1())
    assert paths.reenroll(key=new).only.certificate.public_key() == new.public_key()
