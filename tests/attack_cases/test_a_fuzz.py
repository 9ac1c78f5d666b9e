"""Attack case 14: whatever is sent that is nearly good comes to a clean refusal or a certificate, and to no fault.

Hypothesis chooses what to bend in a good CSR, a good EST body and a good SCEP message, which a running daemon reads.
The seed is printed; `ENROLLD_FUZZ_SEED` has a run again, and `ENROLLD_LONG=1` makes it long. The codecs alone are
fuzzed deeper in tests/scep_server/test_fuzz.py.
"""

import os
import random
import time
from collections import Counter
from collections.abc import Callable, Iterator

from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st

from tests.attack_cases.field import EST, SCEP, SECONDS, Field, peak_memory, scep_post, workers
from tests.attack_cases.smuggling import SMUGGLED
from tests.attack_cases.talk import connected, hear
from tests.end_to_end import scep_wire, wire
from tests.helpers import bad_csr
from tests.helpers.bad_csr import attribute, dns, extension_request, name, san, utf8
from tests.scep_server.fuzzing import changed, parse

LONG = os.environ.get("ENROLLD_LONG") == "1"
SEED = int(os.environ.get("ENROLLD_FUZZ_SEED", "0")) or random.SystemRandom().randrange(2**32)
EXAMPLES = 20_000 if LONG else 200
MOST_MEMORY = 128 * 1024  # KiB

GENERATED = settings(
    max_examples=EXAMPLES,
    deadline=None,
    database=None,
    phases=[Phase.generate],
    suppress_health_check=list(HealthCheck),
)


class Fuzzed:
    """A field under fuzzing, with one connection that is opened again when the daemon closes it."""

    def __init__(self, field: Field) -> None:
        self.field = field
        self.outcomes: Counter[str] = Counter()
        self.workers = workers(field.daemon)
        self.memory = peak_memory(field.daemon)

    def send(self, protocol: str, request: bytes) -> None:
        """Ask, and hold what always holds. The address changes, because each network has so many log lines."""
        field = self.field
        port, tls = (field.daemon.https_port, field.tls) if protocol == EST else (field.daemon.http_port, None)
        since = time.monotonic()
        with connected(port, tls=tls, source=field.source) as connection:
            connection.sendall(request)
            heard = hear(connection, answers=1)
        assert time.monotonic() - since < SECONDS
        answer = heard.only
        if answer.status == 200 and protocol == SCEP:
            kind = "issued" if scep_wire.succeeded(answer.body) else "failure"
            assert kind == "issued" or scep_wire.failed(answer.body)
        else:
            kind = "issued" if answer.status == 200 else str(answer.status)
        assert kind in ("issued", "failure") or 400 <= answer.status < 500, answer.body
        self.outcomes[kind] += 1

    def conclude(self, what: str, honest: Field, *, at_least: int, kinds: int) -> None:
        told = ", ".join(f"{kind} {count}" for kind, count in self.outcomes.most_common())
        print(f"seed {SEED}, {what}: {told}")
        assert self.outcomes.total() >= at_least
        assert len(self.outcomes) >= kinds, f"the fuzzing hardly reaches anything: {told}"
        assert workers(self.field.daemon) == self.workers, "a worker died"
        assert peak_memory(self.field.daemon) - self.memory < MOST_MEMORY
        honest.assert_served()


integers = st.integers(0, 2**32 - 1)


def bend(der: bytes, number: int) -> bytes:
    """The same with something changed in its tree or its bytes, as the number says."""
    donors = [node for each in DONORS for node in (parse(each) or [])]
    return changed(der, random.Random(number), donors)


DONORS = [
    bad_csr.good_csr(bad_csr.ec_key(), "device-1", sans=["a.example"], challenge_password="x"),
    bad_csr.good_csr(bad_csr.rsa_key(), "device-1"),
    *(der for _, der, _ in bad_csr.BAD_CSRS[::9] if parse(der) is not None),
]


def run(test: Callable[..., None]) -> None:
    seed(SEED)(test)()


def test_case_14_bent_requests_in_an_est_body_are_refused_or_served(field: Field, fields: Iterator[Field]) -> None:
    fuzzed = Fuzzed(field)
    good = field.csr(extension_request(san(dns("a.example"))), attribute("1.2.3.4", utf8("x")))

    @GENERATED
    @given(number=integers, resigned=st.booleans())
    def ask(*, number: int, resigned: bool) -> None:
        der = signed_anew(field, EST, number) if resigned else bend(good, number)
        fuzzed.send(EST, field.enroll_request(wire.body_of(der)))

    run(ask)
    fuzzed.conclude("CSRs in EST bodies", next(fields), at_least=EXAMPLES, kinds=2)


def signed_anew(field: Field, protocol: str, number: int) -> bytes:
    """A CSR whose subject and attributes are bent, and which is signed by its own key all the same."""
    chance = random.Random(number)
    subject = name(field.name_in(protocol))
    attributes = [extension_request(san(dns("a.example"))), attribute("1.2.3.4", utf8("x"))]
    if protocol == SCEP:
        attributes.append(bad_csr.challenge(field.scep_secret))
    at = chance.randrange(len(attributes) + 1)
    if at == len(attributes):
        subject = bend(subject, number)
    else:
        attributes[at] = bend(attributes[at], number)
    key = field.key if protocol == EST else field.rsa_key
    return bad_csr.make_csr(key, subject, *attributes)


def test_case_14_bent_base64_in_an_est_body_is_refused_or_served(field: Field, fields: Iterator[Field]) -> None:
    fuzzed = Fuzzed(field)
    good = wire.body_of(field.csr())
    pieces = st.one_of(
        st.binary(max_size=40),
        st.text(alphabet="AZaz09+/=-_ \r\n\t", max_size=40).map(str.encode),
        st.sampled_from([b"=", b"\n" * 5000, b"-----BEGIN CERTIFICATE REQUEST-----\n", b"\0", b"\xff", SMUGGLED]),
    )

    @GENERATED
    @given(cuts=st.lists(st.tuples(st.integers(0, len(good)), st.integers(0, 60), pieces), max_size=4))
    def ask(cuts: list[tuple[int, int, bytes]]) -> None:
        body = good
        for start, length, piece in cuts:
            body = body[:start] + piece + body[start + length :]
        fuzzed.send(EST, field.enroll_request(body))

    run(ask)
    fuzzed.conclude("EST bodies", next(fields), at_least=EXAMPLES, kinds=2)


def test_case_14_bent_scep_messages_are_refused_or_served(field: Field, fields: Iterator[Field]) -> None:
    fuzzed = Fuzzed(field)
    csr = field.csr(protocol=SCEP)
    good = field.message(csr)

    @GENERATED
    @given(number=integers, layer=st.sampled_from(["message", "content", "csr", "signed-csr", "bytes"]))
    def ask(*, number: int, layer: str) -> None:
        match layer:
            case "message":
                message = bend(good, number)
            case "content":
                content = field.request(csr).envelope.encode()
                message = field.request(csr, content=bend(content, number)).encode()
            case "csr":
                message = field.message(bend(csr, number))
            case "signed-csr":
                message = field.message(signed_anew(field, SCEP, number))
            case _:
                chance = random.Random(number)
                message = chance.randbytes(chance.randrange(2000))
        fuzzed.send(SCEP, scep_post(message))

    run(ask)
    fuzzed.conclude("SCEP messages", next(fields), at_least=EXAMPLES, kinds=3)
