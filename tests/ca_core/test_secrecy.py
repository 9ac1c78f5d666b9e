"""Secrets and keys never show themselves, whatever prints the object that holds them."""

import dataclasses
import io
import traceback
from collections.abc import Callable
from pathlib import Path

import pytest
from rich.console import Console
from rich.pretty import pretty_repr

from ca_core.authority.sealing import UnlockKey
from ca_core.core import Core, CoreConfig
from ca_core.errors import NotAuthenticated
from ca_core.model import AUTHENTICATED, DeviceRecord, DeviceState, Evidence, Means, Requester, SecretRecord
from ca_core.rows import HandedSecret
from tests.helpers.bad_csr import good_csr
from tests.helpers.core import ME, START, Installation, ask, csr_of, new_key

HIDDEN = "abcdefgh.kmnpqrstuvwxyz23456789abcd"
DIGEST = bytes.fromhex("5ec4e7" * 10 + "abcd")
DEVICE = DeviceRecord(1, 1, "sensor", "sensor", None, DeviceState.EXPECTED, None, None, (), None)
RECORD = SecretRecord(1, DIGEST, START, None, None, None, None, None)
EVIDENCE = Evidence(username="sensor", secret=HIDDEN)


def _requester(proof: object) -> Requester:
    return Requester(
        realm_id=1,
        device=DEVICE,
        means=Means.SECRET,
        credential=b"",
        credential_key=None,
        secret=RECORD,
        certificate=None,
        evidence=EVIDENCE,
        proof=proof,
    )


def _console(shown: object) -> str:
    out = io.StringIO()
    Console(file=out, width=200).print(shown)
    return out.getvalue()


PRINTERS: dict[str, Callable[[object], str]] = {
    "repr": repr,
    "str": str,
    "format": format,
    "in-a-list": lambda shown: str([shown]),
    "rich-print": _console,
    "rich-pretty": pretty_repr,
}


@pytest.mark.parametrize("printer", PRINTERS)
@pytest.mark.parametrize(
    "shown",
    [
        pytest.param(UnlockKey(HIDDEN.encode()), id="UnlockKey"),
        pytest.param(CoreConfig("sqlite:///x", UnlockKey(HIDDEN.encode()), "http://x", demo=True), id="CoreConfig"),
        pytest.param(EVIDENCE, id="Evidence"),
        pytest.param(RECORD, id="SecretRecord"),
        pytest.param(_requester(AUTHENTICATED), id="Requester"),
        pytest.param(
            HandedSecret(
                device="sensor", realm="default", profile="device", username="sensor", secret=HIDDEN, expires=""
            ),
            id="HandedSecret",
        ),
    ],
)
def test_a_secret_is_not_in_what_is_printed(shown: object, printer: str) -> None:
    printed = PRINTERS[printer](shown)
    assert HIDDEN not in printed
    assert HIDDEN.partition(".")[2] not in printed
    assert repr(DIGEST)[2:20] not in printed


def test_only_authentication_makes_a_requester() -> None:
    made = _requester(AUTHENTICATED)
    with pytest.raises(TypeError, match="authentication only"):
        _requester(object())
    with pytest.raises(TypeError, match="authentication only"):
        dataclasses.replace(made, proof=None)


async def test_a_secret_is_stored_as_a_hash_and_never_audited(core: Core, installation: Installation) -> None:
    handed = await core.devices.add("default", "sensor", actor=ME)
    await ask(core, Evidence(username="sensor", secret=handed.secret), csr_of(new_key(), "sensor"))
    core.close()
    kept = installation.dump()
    selector, _, rest = handed.secret.partition(".")
    assert selector.encode() in kept
    assert rest.encode() not in kept
    assert UnlockKey.load(installation.unlock_key).to_bytes() not in kept


async def test_a_refused_secret_is_in_no_message_detail_or_traceback(core: Core) -> None:
    resolved = await core.realms.resolve("est", None, None)
    with pytest.raises(NotAuthenticated) as caught:
        await core.registration.authenticate(resolved, EVIDENCE, csr_of(new_key(), "sensor"))
    told = "".join(traceback.format_exception(caught.value)) + caught.value.detail + repr(caught.value)
    assert HIDDEN not in told


def test_a_challenge_password_is_not_in_the_repr_of_a_csr() -> None:
    csr = csr_of(new_key(), "sensor", challenge_password="my-challenge-word")
    assert csr.challenge_password == "my-challenge-word"
    assert "my-challenge-word" not in repr(csr)
    assert b"my-challenge-word" in good_csr(new_key(), "sensor", challenge_password="my-challenge-word")


def test_no_private_key_lies_in_the_store_unsealed(template: Installation) -> None:
    for path in Path(template.directory).glob("enrolld.db*"):
        content = path.read_bytes()
        # PrivateKeyInfo of RSA and P-256 in PKCS#8: version 0, then the algorithm.
        assert bytes.fromhex("020100300d06092a864886f70d0101010500") not in content
        assert bytes.fromhex("020100301306072a8648ce3d020106082a8648ce3d030107") not in content
        assert b"PRIVATE KEY" not in content
