"""Messages with chance changes: nothing but the declared refusals, in bounded time. The seed is printed."""

import asyncio
import os
import random
import time

import pytest

from ca_core.codes import CODES
from ca_core.errors import Refusal
from scep_server.ber import to_der
from scep_server.cms import read_certificate, read_enveloped
from scep_server.envelope import Recipient, open_envelope
from scep_server.message import open_request
from tests.scep_server.client import Envelope, Request, ra_certificate, ra_key, to_ber
from tests.scep_server.test_envelope import Unwrapper

SEED = int(os.environ.get("ENROLLD_FUZZ_SEED", "0")) or random.SystemRandom().randrange(2**32)
SECONDS = float(os.environ.get("ENROLLD_FUZZ_SECONDS", "3"))


def changed(data: bytes, chance: random.Random) -> bytes:
    out = bytearray(data)
    for _ in range(chance.choice((1, 1, 2, 5))):
        at = chance.randrange(len(out))
        kind = chance.randrange(6)
        if kind == 0:
            out[at] ^= 1 << chance.randrange(8)
        elif kind == 1:
            out[at] = chance.choice((0, 1, 0x7F, 0x80, 0x81, 0x84, 0xFF, 0x24, 0x30, 0x31, 0xA0))
        elif kind == 2:
            del out[at : at + chance.choice((1, 2, 16))]
        elif kind == 3:
            out[at:at] = chance.randbytes(chance.choice((1, 2, 16)))
        elif kind == 4:
            start = chance.randrange(len(out))
            out[at:at] = out[start : start + chance.choice((4, 64, 256))]
        else:
            out[at : at + 4] = b"\x30\x80\x24\x80"
        out = out or bytearray(b"\0")
    return bytes(out)


@pytest.mark.parametrize("form", ["der", "ber"])
def test_a_changed_message_meets_declared_refusals_only(form: str) -> None:
    print(f"ENROLLD_FUZZ_SEED={SEED}")
    chance = random.Random(SEED)
    seeds = [Request().encode(), Request(ski=b"\x07" * 20, envelope=Envelope(ski=b"\x08" * 20)).encode()]
    seen: set[str] = set()
    deadline = time.monotonic() + SECONDS
    while time.monotonic() < deadline:
        data = changed(to_ber(chance.choice(seeds)) if form == "ber" else chance.choice(seeds), chance)
        began = time.monotonic()
        try:
            open_request(data)
            seen.add("read")  # a change of what nobody signs: an unused certificate, the signature's own header
        except Refusal as refusal:
            seen.add(refusal.code)
        assert time.monotonic() - began < 1
    assert {"scep_not_cms", "scep_digest_mismatch", "scep_signature_bad"} <= seen <= {"read", *CODES}


def test_a_changed_envelope_meets_declared_refusals_only() -> None:
    print(f"ENROLLD_FUZZ_SEED={SEED}")
    chance = random.Random(SEED)
    made = [Envelope(cipher=cipher).encode() for cipher in ("aes128", "3des", "des")]
    ra = Recipient(read_certificate(ra_certificate()), Unwrapper(ra_key()))

    async def run() -> set[str]:
        seen: set[str] = set()
        deadline = time.monotonic() + SECONDS
        while time.monotonic() < deadline:
            data = changed(chance.choice(made), chance)
            try:
                envelope = read_enveloped(data)
            except ValueError:  # which open_request translates
                continue
            try:
                await open_envelope(envelope, [ra], read_des=True)
            except Refusal as refusal:
                seen.add(refusal.code)
        return seen

    assert {"scep_envelope_bad", "scep_envelope_not_for_us"} <= asyncio.run(run())


def test_changed_ber_meets_value_error_only() -> None:
    print(f"ENROLLD_FUZZ_SEED={SEED}")
    chance = random.Random(SEED)
    good = to_ber(Request().encode(), piece=50)
    assert to_der(good) == to_der(to_der(good))
    for _ in range(3000):
        try:
            assert to_der(out := to_der(changed(good, chance))) == out
        except ValueError:
            continue
