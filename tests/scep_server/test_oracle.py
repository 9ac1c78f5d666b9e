"""What becomes of a bent envelope is told to nobody: not by the form of the refusal, not by when it leaves (RFC 3218).

Every time is that of `Scep.serve` over a real core, on the daemon's kind of event loop. Which class comes next is drawn
by chance, so whatever the machine does meanwhile meets all classes alike, and Welch's t between two of them tells what
the classes themselves did. It is taken over the times as they are, where an answer that crossed the tick shows, and
over the times cut off at some of their common quantiles: what lies above those is mostly hiccups, in which a small leak
would drown. No sample is left out, and the cuts are the same for the honest run and for the one with planted leaks.
"""

import asyncio
import bisect
import contextlib
import itertools
import math
import os
import random
import statistics
import time
from collections.abc import Callable, Coroutine, Iterator, Mapping, Sequence
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any, TypeVar, cast

import pytest
import uvloop
from aiohttp import web
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import rsa

from ca_core.core import Core
from ca_core.errors import Refusal
from enrolld.request_id import new_request_id
from scep_server import operations
from scep_server.app import LOG_FIELDS, Scep
from scep_server.cms import read_certificate, read_enveloped
from scep_server.cms_values import Enveloped
from scep_server.envelope import Recipient, open_envelope
from scep_server.errors import BadMessageCheck
from scep_server.message import PkiMessage, open_request
from scep_server.tick import SECONDS, Tick
from tests.helpers.core import ME, Installation
from tests.scep_server.client import Envelope
from tests.scep_server.serving import NoTick, make_csr, message, open_cert_rep, rsa_key, self_signed

LONG = os.environ.get("ENROLLD_LONG") == "1"
SAMPLES = 100_000 if LONG else 2400
PLANTED_SAMPLES = 2400
MORE_SAMPLES = 12_000
ATTEMPTS = 2
THRESHOLD = 4.5
CUTS = (0.05, 0.1, 0.2, 0.5, 1.0)
MESSAGES = 20  # of each class, each with its own key, nonce and chance
SEED = int(os.environ.get("ENROLLD_SEED", "0")) or random.SystemRandom().randrange(2**32)
T = TypeVar("T")


# --- the classes -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Bench:
    """The RA's certificate, and the CSR that all envelopes hold or are as long as."""

    ra: bytes
    csr: bytes
    chance: random.Random

    def encrypted(self, block: bytes) -> bytes:
        """What RSA makes of a whole block, whose padding is the caller's."""
        key = x509.load_der_x509_certificate(self.ra).public_key()
        assert isinstance(key, rsa.RSAPublicKey)
        numbers = key.public_numbers()
        return pow(int.from_bytes(block, "big"), numbers.e, numbers.n).to_bytes(256, "big")

    def envelope(self, **bent: bytes) -> Envelope:
        return Envelope(recipient=self.ra, **{"message": self.csr, **bent})  # type: ignore[arg-type]  # bytes alone

    def some(self, count: int) -> bytes:
        return self.chance.randbytes(count)

    def bent_csr(self) -> bytes:
        """The CSR with another signature of the same length."""
        return self.csr[:-200] + self.some(200)

    def message(self, envelope: Envelope) -> bytes:
        return message(self.ra, self_signed(), self.csr, envelope=envelope, transaction="5C3A").encode()


# Each with why it is refused, as the operator is told. All plaintexts, padding included, are of one length.
CLASSES: dict[str, tuple[str, Callable[[Bench], Envelope]]] = {
    "key-in-bad-padding": (
        "scep_envelope_bad", lambda at: at.envelope(encrypted_key=at.encrypted(b"\0\1" + at.some(254)))),
    "key-of-wrong-length": ("scep_envelope_bad", lambda at: at.envelope(key=at.some(24))),
    "bad-cbc-padding": (
        "scep_envelope_bad", lambda at: at.envelope(padded=at.csr + at.some(15 - len(at.csr) % 16) + b"\0")),
    "garbage": ("scep_envelope_bad", lambda at: at.envelope(message=b"\x31" + at.some(len(at.csr) - 1))),
    "sequence-of-garbage": (
        "not_pkcs10", lambda at: at.envelope(message=at.csr[:4] + b"\x31" + at.some(len(at.csr) - 5))),
    "csr-with-bad-signature": ("csr_signature_bad", lambda at: at.envelope(message=at.bent_csr())),
}  # fmt: skip

# Other ways to fail, for which the form must be the same, though not the length of the request.
MORE: dict[str, tuple[str, Callable[[Bench], Envelope]]] = {
    "encrypted-key-short": ("scep_envelope_bad", lambda at: at.envelope(encrypted_key=at.some(255))),
    "encrypted-key-over-the-modulus": ("scep_envelope_bad", lambda at: at.envelope(encrypted_key=b"\xff" * 256)),
    "key-empty": ("scep_envelope_bad", lambda at: at.envelope(key=b"")),
    "cbc-pad-over-a-block": (
        "scep_envelope_bad", lambda at: at.envelope(padded=at.csr + b"\x11" * (16 - len(at.csr) % 16))),
    "nothing-in-good-padding": ("scep_envelope_bad", lambda at: at.envelope(message=b"")),
    "sequence-cut-off": ("scep_envelope_bad", lambda at: at.envelope(message=at.csr[:-1])),
    "ciphertext-no-multiple-of-a-block": ("scep_envelope_bad", lambda at: at.envelope(encrypted=b"x" * 17)),
    "sequence-empty": ("not_pkcs10", lambda at: at.envelope(message=b"\x30\0")),
    "csr-of-a-small-key-with-bad-signature": (
        "key_too_small", lambda at: at.envelope(message=make_csr(rsa_key("small", 1024))[:-9] + b"signature")),
    "csr-with-bad-name-and-signature": (
        "csr_name_malformed", lambda at: at.envelope(message=make_csr(self_signed().key, "a\nb")[:-9] + b"signature")),
}  # fmt: skip


# --- asking ----------------------------------------------------------------------------------------------------------


class Body:
    """What is read of a request's body."""

    def __init__(self, data: bytes) -> None:
        self._data = data

    async def readany(self) -> bytes:
        data, self._data = self._data, b""
        return data


class Post:
    """As much of an aiohttp request as SCEP looks at; a real one is made before the time begins."""

    raw_path, method, remote = "/scep?operation=PKIOperation", "POST", "192.0.2.1"

    def __init__(self, data: bytes) -> None:
        self.headers: dict[str, str] = {}
        self.content_length = len(data)
        self.content = Body(data)


async def ask(scep: Scep, data: bytes) -> web.Response:
    return await scep.serve(cast("web.Request", Post(data)))


def on_uvloop(coroutine: Coroutine[Any, Any, T]) -> T:
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(coroutine)


def make_scep(core: Core, tick: Tick) -> Scep:
    return Scep(core, peer=lambda _: None, new_request_id=new_request_id, tick=tick)


async def make_bench(core: Core, seed: int, challenge: str = "abcdefgh.abcdefghijkmnpqrstuvwxyz23") -> Bench:
    ra = (await core.ra(await core.realms.resolve("scep", None, None))).certificate
    return Bench(ra, make_csr(self_signed().key, "sensor", challenge), random.Random(seed))


@pytest.fixture
def core(installation: Installation) -> Iterator[Core]:
    """With the true time: it stands in the answers."""
    with contextlib.closing(installation.open()) as opened:
        yield opened


# --- the form --------------------------------------------------------------------------------------------------------


def form_of(response: web.Response, ra: bytes) -> tuple[object, ...]:
    """All of an answer but senderNonce, signature, signingTime and request id, whose places are blanked."""
    body = response.body
    assert isinstance(body, bytes)
    read = open_cert_rep(body, ra, self_signed().key)
    request_id = response.headers["X-Request-Id"]
    assert read.request_id == request_id
    header = bytes.fromhex("06092a864886f70d010905310f170d")  # of signingTime, down to its UTCTime
    assert body.count(header) == 1
    at = body.index(header) + len(header)
    body = body[:at] + bytes(13) + body[at + 13 :]
    for changing in (read.sender_nonce, read.signature, request_id.encode()):
        assert body.count(changing) == 1
        body = body.replace(changing, bytes(len(changing)))
    headers = [(name, value) for name, value in response.headers.items() if name != "X-Request-Id"]
    return len(body), response.status, headers, body


def test_the_refusals_are_alike_byte_by_byte_but_for_what_is_always_new(core: Core) -> None:
    async def run() -> None:
        scep = make_scep(core, NoTick())
        bench = await make_bench(core, SEED)
        forms: dict[str, tuple[object, ...]] = {}
        for (name, (code, make)), _ in itertools.product({**CLASSES, **MORE}.items(), range(4)):
            response = await ask(scep, bench.message(make(bench)))
            assert response[LOG_FIELDS]["event.code"] == code, name
            forms[name] = form_of(response, bench.ra)
            assert forms[name] == forms["key-in-bad-padding"], name
        length, status, _, _ = forms["garbage"]
        print(f"{len(forms)} ways to fail, {length} bytes each")
        assert status == 200

        # The twins: what is honest is no refusal, and a refusal for what the CSR says is another one.
        secret = (await core.devices.add("default", "sensor", actor=ME)).secret
        for challenge, status_, fail_info in (("wrong" * 7, "2", "2"), (secret, "0", None)):
            honest = await make_bench(core, SEED, challenge)
            body = (await ask(scep, honest.message(honest.envelope()))).body
            assert isinstance(body, bytes)
            read = open_cert_rep(body, honest.ra, self_signed().key)
            assert (read.status, read.fail_info) == (status_, fail_info)

    on_uvloop(run())


# --- the time --------------------------------------------------------------------------------------------------------

Times = Mapping[str, Sequence[float]]
CLASS: ContextVar[str] = ContextVar("class")  # of the request that is worked on, for what is planted


@dataclass(frozen=True)
class Stand:
    """Messages of each class, and how long the server works on one of them."""

    core: Core
    messages: Mapping[str, Sequence[bytes]]
    work: float

    @property
    def pause(self) -> float:
        """From one request's beginning to the next one's. They overlap, since the tick sleeps, but each wakes when the
        work on another is over and the next has not begun: with the loop idle, and the tick's thread undisturbed."""
        overlapping = next((count for count in (3, 2, 1) if 0.7 * SECONDS / (count + 0.7) > 1.2 * self.work), 0)
        return SECONDS / (overlapping + 0.7)


async def make_stand(core: Core, seed: int) -> Stand:
    bench = await make_bench(core, seed)
    messages = {name: [bench.message(make(bench)) for _ in range(MESSAGES)] for name, (_, make) in CLASSES.items()}
    scep, work = make_scep(core, NoTick()), []
    for data in itertools.chain(*messages.values()):
        began = time.perf_counter()
        await ask(scep, data)
        work.append(time.perf_counter() - began)
    return Stand(core, messages, statistics.median(work))


async def sample(stand: Stand, tick: Tick, count: int, chance: random.Random) -> Times:
    """How long each of `count` requests took, by class: as many of each, in an order of chance.

    With a tick more, up to `MORE_SAMPLES`, until half of `count` were calm: what the machine delayed says little.
    """
    scep, is_ticking = make_scep(stand.core, tick), not isinstance(tick, NoTick)
    times: dict[str, list[float]] = {name: [] for name in CLASSES}
    lengths: set[int | None] = set()

    async def one(name: str) -> None:
        CLASS.set(name)
        data = chance.choice(stand.messages[name])
        began = time.perf_counter()
        response = await ask(scep, data)
        times[name].append(time.perf_counter() - began)
        lengths.add(response.content_length)

    loop = asyncio.get_running_loop()
    running: set[asyncio.Task[None]] = set()
    begin, done = loop.time(), 0
    while done < count or (is_ticking and done < count + MORE_SAMPLES and _calm(times) < count / 2):
        order = list(CLASSES) * 50
        chance.shuffle(order)
        for name in order:
            begin = max(begin + stand.pause, loop.time())
            task = asyncio.create_task(one(name))
            running.add(task)
            task.add_done_callback(running.discard)
            await (asyncio.sleep(max(0.0, begin - loop.time())) if is_ticking else task)
        done += len(order)
    await asyncio.gather(*running)
    assert len(lengths) == 1
    return times


def _calm(times: Times) -> int:
    """How many came soon after the quickest."""
    common = sorted(itertools.chain(*times.values()))
    return bisect.bisect(common, common[len(common) // 100] + 0.0003)


def welch(one: Sequence[float], other: Sequence[float]) -> float:
    spread = statistics.variance(one) / len(one) + statistics.variance(other) / len(other)
    return abs(statistics.fmean(one) - statistics.fmean(other)) / math.sqrt(spread) if spread else 0.0


def judged(times: Times, title: str) -> dict[frozenset[str], float]:
    """The largest |t| of each pair of classes over all cuts. All are printed."""
    common = sorted(itertools.chain(*times.values()))
    quantiles = [f"{common[int(share * (len(common) - 1))] * 1e6:.0f}" for share in (0.01, 0.25, 0.5, 0.75, 0.99)]
    print(f"{title}: {len(common)} samples, quantiles {' '.join(quantiles)} us; |t| by cut {CUTS}")
    bounds = [common[math.ceil(cut * len(common)) - 1] for cut in CUTS]
    found: dict[frozenset[str], float] = {}
    for pair in itertools.combinations(times, 2):
        cut = [[[min(value, bound) for value in times[name]] for name in pair] for bound in bounds]
        values = [welch(one, other) for one, other in cut]
        print(f"  {' '.join(f'{value:6.2f}' for value in values)}  {' / '.join(pair)}")
        found[frozenset(pair)] = max(values)
    return found


def run_attempts(core: Core, tick: Callable[[], Tick], count: int, title: str) -> Iterator[dict[frozenset[str], float]]:
    """Each with a seed of its own. That all of fifty values stay low by chance fails once in some thousand runs."""
    for attempt in range(ATTEMPTS):
        chance = random.Random(SEED + attempt)

        async def run(chance: random.Random = chance) -> Times:
            return await sample(await make_stand(core, chance.randrange(2**32)), tick(), count, chance)

        yield judged(on_uvloop(run()), f"{title}, attempt {attempt + 1}, ENROLLD_SEED={SEED + attempt}")


async def open_early(
    envelope: Enveloped, recipients: Sequence[Recipient], *, read_des: bool = False, **options: Any
) -> bytes:
    """`open_envelope` with what RFC 3218 warns of: no decryption once the key is seen to be bad."""
    if CLASS.get(None) == "key-in-bad-padding":
        raise BadMessageCheck("scep_envelope_bad", "The envelope can't be decrypted.")
    return await open_envelope(envelope, recipients, read_des=read_des, **options)


@pytest.mark.parametrize("opener", [open_envelope, open_early], ids=["as-it-is", "with-an-opener-that-fails-early"])
def test_the_refusals_leave_at_the_same_time(core: Core, opener: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(operations, "open_envelope", opener)
    assert any(max(found.values()) < THRESHOLD for found in run_attempts(core, Tick, SAMPLES, "with the tick"))


@pytest.mark.parametrize("opener", [open_envelope, open_early], ids=["as-it-is", "with-an-opener-that-fails-early"])
def test_the_refusals_keep_the_loop_busy_alike(core: Core, opener: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Else whoever sends another request behind this one sees on that how long this one took.

    By a tenth of a millisecond, which the second request's own way has long drowned; the twin is three times that.
    """
    monkeypatch.setattr(operations, "open_envelope", opener)

    async def run() -> Times:
        return await sample(await make_stand(core, SEED), NoTick(), PLANTED_SAMPLES // 2, random.Random(SEED))

    assert _apart(on_uvloop(run())) < 0.00015
    monkeypatch.setattr(operations, "open_envelope", open_early)  # the twin
    monkeypatch.setattr(operations, "_SAME_WORK", 1e-6)
    assert _apart(on_uvloop(run())) > 0.00015


def _apart(times: Times) -> float:
    """How far the classes are apart in what is no hiccup."""
    quick = {name: sorted(values)[len(values) // 5] for name, values in times.items()}
    print({name: f"{value * 1e6:.0f} us" for name, value in quick.items()})
    return max(quick.values()) - min(quick.values())


def test_an_opener_that_fails_early_is_found_where_nothing_hides_it(
    core: Core, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(operations, "open_envelope", open_early)
    monkeypatch.setattr(operations, "_SAME_WORK", 1e-6)
    for found in run_attempts(core, NoTick, PLANTED_SAMPLES, "without tick and delay"):
        assert all(t > THRESHOLD for pair, t in found.items() if "key-in-bad-padding" in pair)


LEAKS: dict[str, Callable[[random.Random], float]] = {
    "key-of-wrong-length": lambda _: 100e-6,
    "csr-with-bad-signature": lambda chance: SECONDS if chance.random() < 1 / 3 else 0.0,
}


class LeakyTick(Tick):
    """Lets one class go 100 microseconds later than the others, and another one time in three a tick later."""

    def __init__(self) -> None:
        super().__init__()
        self._chance = random.Random(SEED)

    async def wait(self, since: float) -> None:
        leak = LEAKS.get(CLASS.get())
        await super().wait(since + (leak(self._chance) if leak else 0.0))


def test_a_planted_leak_is_found_in_each_attempt(core: Core) -> None:
    for found in run_attempts(core, LeakyTick, PLANTED_SAMPLES, "with planted leaks"):
        missed = {pair: t for pair, t in found.items() if len(pair & LEAKS.keys()) == 1 and t < THRESHOLD}
        assert not missed


@pytest.mark.parametrize("slow", ["body-comes-late", "message-is-slow-to-read"])
def test_nobody_can_choose_when_the_tick_begins(core: Core, slow: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Else a client moves the end of the work to just before or behind it, and reads a microsecond off the next one."""
    read: list[float] = []

    class LateBody(Body):
        async def readany(self) -> bytes:
            await asyncio.sleep(SECONDS * 0.7)
            return await super().readany()

    def open_request_(data: bytes) -> PkiMessage:
        if slow == "message-is-slow-to-read":
            time.sleep(SECONDS * 0.7)
        try:
            return open_request(data)
        finally:
            read.append(time.monotonic())

    async def run() -> list[float]:
        monkeypatch.setattr(operations, "open_request", open_request_)
        stand = await make_stand(core, SEED)
        scep, left = make_scep(core, Tick()), []
        for data in stand.messages["garbage"]:
            post = Post(data)
            if slow == "body-comes-late":
                post.content = LateBody(data)
            await scep.serve(cast("web.Request", post))
            left.append(time.monotonic() - read[-1])
        return left

    assert min(on_uvloop(run())) > SECONDS * 0.95


def test_how_long_opening_takes_is_measured(core: Core) -> None:
    """For whoever wants to know what the tick hides. Nothing is asserted of it."""

    async def run() -> Times:
        ra = await core.ra(await core.realms.resolve("scep", None, None))
        ours = [Recipient(read_certificate(ra.certificate), ra.key)]
        bench = await make_bench(core, SEED)
        envelopes = {
            name: [read_enveloped(make(bench).encode()) for _ in range(MESSAGES)] for name, (_, make) in CLASSES.items()
        }
        chance = random.Random(SEED)
        times: dict[str, list[float]] = {name: [] for name in CLASSES}
        for _ in range(SAMPLES):
            name = chance.choice(list(CLASSES))
            envelope = chance.choice(envelopes[name])
            began = time.perf_counter()
            with contextlib.suppress(Refusal):
                await open_envelope(envelope, ours)
            times[name].append(time.perf_counter() - began)
        for name, values in times.items():
            print(f"  {statistics.median(values) * 1e6:6.1f} us  {name}")
        return times

    assert judged(on_uvloop(run()), "open_envelope alone")
