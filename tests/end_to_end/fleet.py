"""Clients that enroll without pause while the daemon is killed: each on a line of its own, all of them patient."""

import asyncio
import contextlib
import itertools
import random
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

from cryptography.hazmat.primitives.asymmetric import ec, rsa

from ca_core.core import Core
from tests.end_to_end import scep_wire
from tests.end_to_end.retrying import Est, Scep, Wanted, ask_once, ask_until_answered
from tests.helpers.daemon import eventually
from tests.helpers.ledger import Enrollment
from tests.helpers.mortal import Mortal

__all__ = ["ACTOR", "Fleet"]

ACTOR = "operator:test"
_RENEWS = 0.4  # of those that enrolled
_RSA_KEYS = 3
_PATIENCE = 120.0
_SCEP_DEVICE, _MIXED_DEVICE = "scep", "mixed"


def _ec_key() -> ec.EllipticCurvePrivateKey:
    return ec.generate_private_key(ec.SECP256R1())


class Fleet:
    """Five lines of clients. Whatever they asked for and got stands in `enrollments`."""

    def __init__(self, mortal: Mortal, seed: int) -> None:
        daemon = mortal.daemon
        self._daemon = daemon
        self._seed = seed
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

    def _run(self, line: Callable[[Core, random.Random], None], number: int) -> None:
        chance = random.Random(f"{self._seed} {number}")
        try:
            with self._daemon.core() as core:
                while not self._stop.is_set():
                    line(core, chance)
        except BaseException as exc:
            self._failures.append(exc)

    def _fail_if_one_did(self) -> None:
        if self._failures:
            raise self._failures[0]

    def _by_est(self, core: Core, chance: random.Random) -> None:
        name, secret = self._new_device(core)
        key = _ec_key()
        enrolled = self._ask(self._est.by_secret(key, name, secret), "est")
        while enrolled.received and chance.random() < _RENEWS:
            newer = _ec_key()
            enrolled = self._ask(self._est.renewal(newer, name, enrolled.received[0], key), "est renewal")
            key = newer

    def _by_scep(self, core: Core, chance: random.Random) -> None:
        secret = self._new_secret(core, _SCEP_DEVICE)
        key = chance.choice(self._scep_keys)
        enrolled = self._ask(self._scep.by_secret(key, _SCEP_DEVICE, secret), "scep")
        while enrolled.received and chance.random() < _RENEWS:
            newer = chance.choice(self._scep_keys)
            renewal = self._scep.renewal(newer, _SCEP_DEVICE, enrolled.received[0], key)
            enrolled = self._ask(renewal, "scep renewal")
            key = newer

    def _est_keys_compete(self, core: Core, chance: random.Random) -> None:
        del chance
        name, secret = self._new_device(core)
        self._compete(self._est.by_secret(_ec_key(), name, secret), self._est.by_secret(_ec_key(), name, secret))

    def _protocols_compete(self, core: Core, chance: random.Random) -> None:
        secret = self._new_secret(core, _MIXED_DEVICE)
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
        ask_until_answered(wanted)
        with self._lock:
            self._answers[f"{what} refused" if wanted.enrollment.refused else what] += 1
        return wanted.enrollment

    def _new_device(self, core: Core) -> tuple[str, str]:
        name = f"device-{next(self._numbers)}"
        return name, asyncio.run(core.devices.add("default", name, actor=ACTOR)).secret

    def _new_secret(self, core: Core, name: str) -> str:
        return asyncio.run(core.devices.secret("default", name, actor=ACTOR)).secret
