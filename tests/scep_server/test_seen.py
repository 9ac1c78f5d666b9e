"""A content-encryption key that was seen with one content opens no other: bent copies of a message tell nothing."""

import pytest

from ca_core.errors import Refusal
from scep_server.cms import read_certificate, read_enveloped
from scep_server.envelope import Recipient, open_envelope
from scep_server.seen import SeenKeys
from tests.scep_server.client import CSR, Envelope, ra_certificate, ra_key
from tests.scep_server.test_envelope import Unwrapper

KEY, IV = b"k" * 16, b"i" * 16


def sealed() -> bytes:
    """The encrypted key of one captured message."""
    return read_enveloped(Envelope(key=KEY, iv=IV).encode()).recipients[0].encrypted_key


async def opened(seen: SeenKeys, unwrapper: Unwrapper, **bent: bytes) -> bytes:
    envelope = read_enveloped(Envelope(**{"key": KEY, "iv": IV, **bent}).encode())  # type: ignore[arg-type]  # bytes
    return await open_envelope(envelope, [Recipient(read_certificate(ra_certificate()), unwrapper)], seen=seen)


async def test_a_message_sent_again_byte_by_byte_is_opened_again() -> None:
    seen, unwrapper, key = SeenKeys(), Unwrapper(ra_key()), sealed()
    for _ in range(3):
        assert await opened(seen, unwrapper, encrypted_key=key) == CSR


@pytest.mark.parametrize(
    "bent",
    [
        pytest.param({"iv": b"I" + IV[1:]}, id="iv"),
        pytest.param({"encrypted": b"x" * 16}, id="content"),
        pytest.param({"encrypted": b"x" * 32}, id="length"),
    ],
)
async def test_another_content_under_the_same_key_is_refused_without_the_key(bent: dict[str, bytes]) -> None:
    seen, unwrapper, key = SeenKeys(), Unwrapper(ra_key()), sealed()
    assert await opened(seen, unwrapper, encrypted_key=key) == CSR
    used = unwrapper.calls
    with pytest.raises(Refusal) as refused:
        await opened(seen, unwrapper, encrypted_key=key, **bent)
    assert (refused.value.code, unwrapper.calls) == ("scep_envelope_bad", used)
    assert await opened(seen, unwrapper, encrypted_key=key) == CSR  # the device is served all the same


async def test_the_first_bent_copy_is_the_last() -> None:
    seen, unwrapper, key = SeenKeys(), Unwrapper(ra_key()), sealed()
    codes = []
    for number in range(20):
        with pytest.raises(Refusal) as refused:
            await opened(seen, unwrapper, encrypted_key=key, encrypted=bytes([number]) * 16)
        codes.append(refused.value.code)
    assert set(codes) == {"scep_envelope_bad"}
    assert unwrapper.calls == 1


async def test_a_key_written_as_another_number_is_the_same_key() -> None:
    seen, unwrapper, key = SeenKeys(), Unwrapper(ra_key()), sealed()
    assert await opened(seen, unwrapper, encrypted_key=key) == CSR
    modulus = ra_key().public_key().public_numbers().n
    other = (int.from_bytes(key, "big") + modulus).to_bytes(257, "big")
    used = unwrapper.calls
    with pytest.raises(Refusal):
        await opened(seen, unwrapper, encrypted_key=other, encrypted=b"x" * 16)
    assert unwrapper.calls == used


async def test_the_memory_is_bounded_and_forgets_the_oldest() -> None:
    seen, spki = SeenKeys(keep=3), read_certificate(ra_certificate()).spki
    for number in range(4):
        assert seen.admits(spki, bytes([number, 1]), b"content")
    assert seen.admits(spki, b"\x00\x01", b"another")  # the first of them is forgotten
    assert not seen.admits(spki, b"\x03\x01", b"another")
