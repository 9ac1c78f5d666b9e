"""Private keys at rest: what opens them, and what the unlock key's file must be."""

import os
import stat
import subprocess
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, mldsa, rsa
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat

from ca_core.authority.issuer import Issuers
from ca_core.authority.sealing import PrivateKey, UnlockKey
from ca_core.core import Core
from ca_core.errors import CoreError, OperatorError, SealingFailed, Unavailable
from ca_core.public_key import PublicKey
from tests.helpers.bad_csr import ec_key, rsa_key
from tests.helpers.core import ME, Installation

KEYS: dict[str, PrivateKey] = {
    "p-256": ec_key(),
    "p-384": ec_key("secp384r1"),
    "rsa-2048": rsa_key(),
    "ed25519": ed25519.Ed25519PrivateKey.generate(),
    "ml-dsa-65": mldsa.MLDSA65PrivateKey.generate(),
}


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "keys" / "unlock"
    UnlockKey.generate(path)
    return path


def _refused(path: Path) -> str:
    with pytest.raises(OperatorError) as caught:
        UnlockKey.load(path)
    assert caught.value.remedy
    return caught.value.code


def test_a_new_unlock_key_is_256_random_bits_that_only_the_owner_can_read(file: Path, tmp_path: Path) -> None:
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert stat.S_IMODE(file.parent.stat().st_mode) == 0o700
    loaded = UnlockKey.load(file)
    assert len(bytes.fromhex(loaded.to_bytes().decode())) == 32
    assert loaded.to_bytes() != UnlockKey.generate(tmp_path / "another").to_bytes()


def test_an_unlock_key_is_never_written_over_another(file: Path) -> None:
    before = file.read_bytes()
    with pytest.raises(OperatorError) as caught:
        UnlockKey.generate(file)
    assert caught.value.code == "unlock_key_unwritable"
    assert file.read_bytes() == before


def test_an_unlock_key_is_not_written_through_a_symlink(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(OperatorError):
        UnlockKey.generate(tmp_path / "link")
    assert not (tmp_path / "elsewhere").exists()


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o620, 0o602, 0o610, 0o666], ids=oct)
def test_an_unlock_key_that_others_can_reach_is_refused(file: Path, mode: int) -> None:
    file.chmod(mode)
    assert _refused(file) == "unlock_key_permissions"


@pytest.mark.parametrize("mode", [0o600, 0o400], ids=oct)
def test_an_unlock_key_of_the_owner_alone_is_read(file: Path, mode: int) -> None:
    file.chmod(mode)
    assert UnlockKey.load(file).to_bytes()


def test_an_unlock_key_in_a_folder_where_anybody_can_replace_it_is_refused(file: Path) -> None:
    file.parent.chmod(0o777)
    assert _refused(file) == "unlock_key_permissions"
    file.parent.chmod(0o1777)
    assert UnlockKey.load(file).to_bytes()


def test_a_symlink_to_an_unlock_key_is_refused(file: Path) -> None:
    link = file.with_name("link")
    link.symlink_to(file)
    assert _refused(link) == "unlock_key_missing"


@pytest.mark.parametrize("kind", ["absent", "folder", "pipe"])
def test_what_is_no_file_is_refused_at_once(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "unlock"
    if kind == "folder":
        path.mkdir()
    if kind == "pipe":
        os.mkfifo(path, 0o600)
    assert _refused(path) == "unlock_key_missing"


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a file away")
def test_an_unlock_key_of_another_user_is_refused(file: Path) -> None:
    os.chown(file, 65534, 65534)
    assert _refused(file) == "unlock_key_owner"


@pytest.mark.parametrize("content", [b"", b"\n", b"0123456789abcde", b" " * 40 + b"x"])
def test_an_unlock_key_of_less_than_16_bytes_is_refused(file: Path, content: bytes) -> None:
    file.write_bytes(content)
    assert _refused(file) == "unlock_key_short"


def test_an_unlock_key_of_16_bytes_is_taken_without_the_line_end(file: Path) -> None:
    file.write_bytes(b"0123456789abcdef\r\n")
    assert UnlockKey.load(file).to_bytes() == b"0123456789abcdef"


@pytest.mark.parametrize("kind", KEYS)
def test_a_sealed_key_opens_with_its_unlock_key_and_with_no_other(kind: str, file: Path, tmp_path: Path) -> None:
    unlock = UnlockKey.load(file)
    sealed = unlock.seal(KEYS[kind])
    assert unlock.unseal(sealed, "x").public_key() == KEYS[kind].public_key()
    with pytest.raises(SealingFailed, match="the key x does not open"):
        UnlockKey.generate(tmp_path / "another").unseal(sealed, "x")


@pytest.mark.parametrize("broken", ["cut", "garbage", "empty", "plain", "foreign-algorithm"])
def test_a_broken_or_unsealed_key_fails_as_such(broken: str, file: Path) -> None:
    unlock = UnlockKey.load(file)
    sealed = unlock.seal(KEYS["p-256"])
    content = {
        "cut": sealed[:-1],
        "garbage": b"\x30\x03\x02\x01\x00",
        "empty": b"",
        "plain": KEYS["p-256"].private_bytes(Encoding.DER, PrivateFormat.PKCS8, NoEncryption()),
        # PBES2 under an OID that nobody knows
        "foreign-algorithm": sealed.replace(bytes.fromhex("2a864886f70d01050d"), bytes.fromhex("2a864886f70d01057f")),
    }[broken]
    with pytest.raises(SealingFailed):
        unlock.unseal(content, "x")


@pytest.mark.foreign
@pytest.mark.parametrize("kind", sorted(set(KEYS) - {"ml-dsa-65"}))  # OpenSSL 3.5 knows ML-DSA, and Debian 12 has 3.0
def test_openssl_opens_a_sealed_key_with_the_unlock_keys_file(kind: str, file: Path, tmp_path: Path) -> None:
    (tmp_path / "sealed.der").write_bytes(UnlockKey.load(file).seal(KEYS[kind]))
    command = ["openssl", "pkey", "-inform", "DER", "-in", str(tmp_path / "sealed.der"), "-passin", f"file:{file}"]
    shown = subprocess.run([*command, "-pubout", "-outform", "DER"], capture_output=True, check=True, timeout=30)
    public = KEYS[kind].public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    assert shown.stdout == public
    file.write_text("another passphrase of some length\n")
    assert subprocess.run(command, capture_output=True, check=False, timeout=30).returncode != 0


# --- what issuance makes of it ---------------------------------------------------------------------------------------


async def _issuer_error(core: Core, name: str = "default-ec-1") -> CoreError:
    found = await Issuers(core.store).by_name(name)
    assert found is not None
    with pytest.raises(CoreError) as caught:
        await core.issuance.check_key(found)
    return caught.value


async def test_every_issuer_opens_with_the_right_unlock_key(core: Core) -> None:
    for found in await Issuers(core.store).all():
        await core.issuance.check_key(found)


async def test_a_wrong_unlock_key_opens_nothing_and_is_told(installation: Installation) -> None:
    installation.unlock_key.write_text("ab" * 32)
    core = installation.open()
    assert "does not open with this unlock key" in str(await _issuer_error(core))
    assert {finding.code for finding in await core.check(["x"])} == {"issuer_key"}
    core.close()


async def test_without_an_unlock_key_nothing_is_signed_and_everything_is_read(installation: Installation) -> None:
    core = installation.open(sealed=True)
    assert not core.issuance.can_sign
    assert isinstance(await _issuer_error(core), Unavailable)
    with pytest.raises(Unavailable):
        await core.issuance.new_key("p-256")
    with pytest.raises(Unavailable):
        await core.crls.publish()
    with pytest.raises(Unavailable):
        await core.realms.add("third", actor=ME)
    assert "third" not in await core.realms.current()
    assert await core.check(["x"]) == []
    core.close()


async def test_a_key_that_does_not_belong_to_its_certificate_is_refused(installation: Installation) -> None:
    foreign = UnlockKey.load(installation.unlock_key).seal(ec.generate_private_key(ec.SECP256R1()))
    installation.sql("UPDATE sealed_key SET pkcs8 = ? WHERE name = 'default-ec-1'", foreign)
    core = installation.open()
    error = await _issuer_error(core)
    assert isinstance(error, SealingFailed)
    assert "does not belong to its certificate" in str(error)
    found = await core.check(["x"])
    assert [finding.message for finding in found] == [str(error)]
    core.close()


async def test_a_ca_key_is_never_handed_out_as_a_server_key(core: Core, installation: Installation) -> None:
    await core.server_certificates.ensure(["pki.example.com"])
    ((name,),) = installation.sql("SELECT key_name FROM server_certificate WHERE host = '*'")
    server = core.server_certificates.select(None).private_key
    assert isinstance(server, ec.EllipticCurvePrivateKey)
    handed = await core.issuance.server_key(name, server.public_key())
    assert isinstance(handed, ec.EllipticCurvePrivateKey)
    for found in await Issuers(core.store).all():
        key = found.certificate.public_key()
        assert isinstance(key, ec.EllipticCurvePublicKey | rsa.RSAPublicKey)
        with pytest.raises(SealingFailed, match="not in the store"):
            await core.issuance.server_key(found.key_name, key)


async def test_a_server_key_never_signs_for_an_issuer(core: Core, installation: Installation) -> None:
    await core.server_certificates.ensure(["pki.example.com"])
    installation.sql("UPDATE sealed_key SET purpose = 'server' WHERE name = 'other-ec-1'")
    fresh = installation.open()
    assert "not in the store" in str(await _issuer_error(fresh, "other-ec-1"))
    assert isinstance(await _public_key(fresh, "default-ec-1"), ec.EllipticCurvePublicKey)
    fresh.close()


async def _public_key(core: Core, name: str) -> PublicKey:
    found = await Issuers(core.store).by_name(name)
    assert found is not None
    await core.issuance.check_key(found)
    key = found.certificate.public_key()
    assert isinstance(key, ec.EllipticCurvePublicKey | rsa.RSAPublicKey)
    return key


async def test_nothing_is_sealed_with_a_key_that_does_not_open_the_store(installation: Installation) -> None:
    right = installation.unlock_key.read_text()
    installation.unlock_key.write_text("ab" * 32)
    core = installation.open()
    with pytest.raises(SealingFailed, match="does not open with this unlock key"):
        await core.realms.add("third", hosts=["third.example.com"], actor=ME)
    with pytest.raises(SealingFailed):
        await core.issuance.new_key("p-256")
    core.close()
    installation.unlock_key.write_text(right)
    core = installation.open()
    assert "third" not in await core.realms.current()
    await core.realms.add("third", hosts=["third.example.com"], actor=ME)
    core.close()


async def test_a_realm_whose_keys_are_lost_does_not_stop_the_others(installation: Installation) -> None:
    foreign = UnlockKey(b"another unlock key of 32 bytes..").seal(ec.generate_private_key(ec.SECP256R1()))
    installation.sql("UPDATE sealed_key SET pkcs8 = ? WHERE name LIKE 'other-%'", foreign)
    core = installation.open()
    await core.server_certificates.ensure(["pki.example.com"])
    assert core.server_certificates.select(None).realm == "default"
    installation.sql("DELETE FROM crl")
    assert {row.realm for row in await core.crls.publish(only_due=True)} == {"default"}
    with pytest.raises(SealingFailed):
        await core.crls.publish()
    core.close()


async def test_one_damaged_key_does_not_make_the_unlock_key_wrong(installation: Installation) -> None:
    installation.sql("UPDATE sealed_key SET pkcs8 = ? WHERE name = 'default-root-1'", bytes(40))
    core = installation.open()
    await core.realms.add("third", actor=ME)
    await core.server_certificates.ensure(["another.example.com"])
    core.close()
