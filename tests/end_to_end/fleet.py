"""Clients that enroll without pause while daemons are killed: each on a line of its own, all of them patient."""

import asyncio
import contextlib
import itertools
import random
import threading
import time
from collections import Counter
from collections.abc import Callable, Coroutine, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from cryptography.hazmat.primitives.asymmetric import ec, rsa

from ca_core.core import Core
from ca_core.errors import Unavailable
from tests.end_to_end import scep_wire
from tests.end_to_end.retrying import PATIENCE, Est, Scep, Wanted, ask_once, ask_until_answered
from tests.helpers.daemon import Daemon, eventually
from tests.helpers.ledger import Enrollment

__all__ = ["ACTOR", "Fleet"]

T = TypeVar("T")

ACTOR = "operator:test"
_RENEWS = 0.4  # of those that enrolled
_RSA_KEYS = 3
_PATIENCE = 120.0
_PAUSE = 0.2
_SCEP_DEVICE, _MIXED_DEVICE = "scep", "mixed"


def _ec_key() -> ec.EllipticCurvePrivateKey:
    return ec.generate_private_key(ec.SECP256R1())


class _Operator:
    """Who registers devices: one for each line, with a loop that stays."""

    def __init__(self, core: Core, runner: asyncio.Runner) -> None:
        self._core = core
        self._runner = runner

    def patiently(self, order: Callable[[Core], Coroutine[None, None, T]]) -> T:
        """Give an order again as long as the store is away."""
        end = time.monotonic() + _PATIENCE
        while True:
            try:
                return self._runner.run(order(self._core))
            except Unavailable:
                if time.monotonic() > end:
                    raise
                time.sleep(_PAUSE)


class Fleet:
    """Five lines of clients. Whatever they asked for and got stands in `enrollments`."""

    def __init__(self, daemon: Daemon, seed: int, *, patience: float = PATIENCE) -> None:
        """`patience` is how many seconds a client asks for one certificate."""
        self._daemon = daemon
        self._seed = seed
        self._patience = patience
        self._est = Est(daemon.https_port, daemon.root)
        self._scep = Scep(daemon.http_port, scep_wire.ra_of(daemon.http_port))
        self._scep_keys = [rsa.generate_private_key(65537, 2048) for _ in range(_RSA_KEYS)]
        self._mixed_key = rsa.generate_private_key(65537, 2048)
        self._stop = threading.Event()
        self._numbers = itertools.count(1)
        self._lock = threading.Lock()
        self._answers: Counter[str] = Counter()
        self._failures: list[BaseException] = []
        self._pairs: dict[str, tuple[Wanted, Wanted]] = {}  # by device, because a new secret voids the one before
        self.enrollments: list[Enrollment] = []

    @contextlib.contextmanager
    def enrolling(self) -> Iterator[None]:
        """Enroll while the block runs; then each client ends what it is about."""

        async def add(core: Core) -> None:
            for name in (_SCEP_DEVICE, _MIXED_DEVICE):
                await core.devices.add("default", name, actor=ACTOR)

        self._daemon.inspect(add)
        lines = [self._by_est, self._by_est, self._by_scep, self._est_keys_compete, self._protocols_compete]
        threads = [threading.Thread(target=self._run, args=(line, n)) for n, line in enumerate(lines)]
        for thread in threads:
            thread.start()
        try:
            yield
        finally:
            self._stop.set()
            for thread in threads:
                thread.join()
        self._fail_if_one_did()

    def wait_for_answers(self, count: int) -> None:
        """Wait until so many more requests have had their answer."""
        before = self._answers.total()

        def answered() -> bool | None:
            self._fail_if_one_did()
            return True if self._answers.total() >= before + count else None

        eventually(answered, what=f"{count} more answers", seconds=_PATIENCE)

    def ask_again(self, most: int) -> int:
        """Have both of each pair that competed ask once more, and return how many there were.

        Who won gets what it got, who lost is refused; their `Enrollment` shows when it is otherwise.
        """
        names = sorted(self._pairs)
        chosen = {_MIXED_DEVICE, *random.Random(self._seed).sample(names, min(most, len(names)))} & set(names)
        for name in chosen:
            for wanted in self._pairs[name]:
                had = len(wanted.enrollment.received)
                assert ask_once(wanted), "nobody was killed, and a client was not answered"
                assert len(wanted.enrollment.received) == (had + 1 if had else 0)
        return len(chosen)

    def summary(self) -> str:
        """Counts, to be printed."""
        certificates = {der for one in self.enrollments for der in one.received}
        return f"{dict(self._answers)}, {len(certificates)} certificates, {len(self._pairs)} pairs competed"

    def _run(self, line: Callable[[_Operator, random.Random], None], number: int) -> None:
        chance = random.Random(f"{self._seed} {number}")
        try:
            with self._daemon.core() as core, asyncio.Runner() as runner:
                operator = _Operator(core, runner)
                while not self._stop.is_set():
                    line(operator, chance)
        except BaseException as exc:
            self._failures.append(exc)

    def _fail_if_one_did(self) -> None:
        if self._failures:
            raise self._failures[0]

    def _by_est(self, operator: _Operator, chance: random.Random) -> None:
        name, secret = self._new_device(operator)
        key = _ec_key()
        enrolled = self._ask(self._est.by_secret(key, name, secret), "est")
        while enrolled.received and chance.random() < _RENEWS:
            newer = _ec_key()
            enrolled = self._ask(self._est.renewal(newer, name, enrolled.received[0], key), "est renewal")
            key = newer

    def _by_scep(self, operator: _Operator, chance: random.Random) -> None:
        secret = self._new_secret(operator, _SCEP_DEVICE)
        key = chance.choice(self._scep_keys)
        enrolled = self._ask(self._scep.by_secret(key, _SCEP_DEVICE, secret), "scep")
        while enrolled.received and chance.random() < _RENEWS:
            newer = chance.choice(self._scep_keys)
            renewal = self._scep.renewal(newer, _SCEP_DEVICE, enrolled.received[0], key)
            enrolled = self._ask(renewal, "scep renewal")
            key = newer

    def _est_keys_compete(self, operator: _Operator, chance: random.Random) -> None:
        del chance
        name, secret = self._new_device(operator)
        self._compete(self._est.by_secret(_ec_key(), name, secret), self._est.by_secret(_ec_key(), name, secret))

    def _protocols_compete(self, operator: _Operator, chance: random.Random) -> None:
        secret = self._new_secret(operator, _MIXED_DEVICE)
        by_est = self._est.by_secret(_ec_key(), _MIXED_DEVICE, secret)
        by_scep = self._scep.by_secret(self._mixed_key, _MIXED_DEVICE, secret)
        self._compete(*((by_est, by_scep) if chance.random() < 0.5 else (by_scep, by_est)))

    def _compete(self, first: Wanted, second: Wanted) -> None:
        with ThreadPoolExecutor(2) as pool:
            list(pool.map(lambda wanted: self._ask(wanted, "competing"), (first, second)))
        self._pairs[first.enrollment.device] = first, second

    def _ask(self, wanted: Wanted, what: str) -> Enrollment:
        with self._lock:
            self.enrollments.append(wanted.enrollment)
        ask_until_answered(wanted, patience=self._patience)
        with self._lock:
            self._answers[f"{what} refused" if wanted.enrollment.refused else what] += 1
        return wanted.enrollment

    def _new_device(self, operator: _Operator) -> tuple[str, str]:
        # Another name for each try: one that was cut may have been carried out, and its secret is lost with its answer.
        return operator.patiently(lambda core: self._add(core, f"device-{next(self._numbers)}"))

    def _new_secret(self, operator: _Operator, name: str) -> str:
        return operator.patiently(lambda core: self._secret(core, name))

    @staticmethod
    async def _add(core: Core, name: str) -> tuple[str, str]:
        return name, (await core.devices.add("default", name, actor=ACTOR)).secret

    @staticmethod
    async def _secret(core: Core, name: str) -> str:
        return (await core.devices.secret("default", name, actor=ACTOR)).secret
