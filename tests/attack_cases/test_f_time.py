"""Attack case 61: a clock that is wrong. Nothing is issued before what was already recorded, and no CRL goes back."""

import asyncio
import datetime as dt
import hashlib
import json
from collections.abc import Iterator
from dataclasses import replace

import pytest
from cryptography import x509

from ca_core.core import Core, CoreConfig
from ca_core.csr import ParsedCsr
from ca_core.errors import Unavailable
from ca_core.model import Evidence, Operation, Refused
from tests.attack_cases.field import EST, SCEP, Field, field_of
from tests.attack_cases.talk import Heard
from tests.helpers.core import CALL, ME, Installation, SetClock, ask, code_of, csr_of, enrolled, new_key
from tests.helpers.daemon import Daemon, run_enrolld, running_daemon

CRL = b"GET /pki/default-ec-1/0.crl HTTP/1.1\r\nHost: localhost\r\n\r\n"
AGAIN = "Nothing can be issued at the moment; ask again later. (request "


@pytest.fixture
def own_field(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Field]:
    """A field of a daemon of its own, since what is done to its store hits everybody."""
    with running_daemon(tmp_path_factory.mktemp("clock")) as daemon:
        yield next(field_of(daemon))


def write_ahead(daemon: Daemon, ahead: dt.timedelta) -> None:
    """Have an event written by somebody whose clock is ahead: to it, the daemon's clock was set back."""

    async def write() -> None:
        url = f"sqlite:///{daemon.directory / 'enrolld.db'}"
        core = Core.open(CoreConfig(url, None, "http://localhost", True, clock=lambda: dt.datetime.now(dt.UTC) + ahead))
        try:
            await core.devices.add("default", f"written-{int(ahead.total_seconds())}-ahead", actor="test")
        finally:
            core.close()

    asyncio.run(write())


def codes_of_check(daemon: Daemon) -> set[str]:
    answer = json.loads(run_enrolld(daemon.directory, "check", "--json").stdout)
    return {finding["code"] for finding in answer["findings"]}


def assert_told_to_come_again(heard: Heard) -> None:
    answer = heard.only
    assert (answer.status, answer.headers.get("retry-after")) == (503, "60"), answer.body
    assert answer.text.startswith(AGAIN)


def test_case_61_a_daemon_whose_clock_is_an_hour_behind_its_store_issues_nothing_and_goes_on_publishing(
    own_field: Field,
) -> None:
    field, daemon = own_field, own_field.daemon
    write_ahead(daemon, dt.timedelta(seconds=30))  # the twin: within a minute clocks may differ
    field.assert_served()
    assert "clock_behind" not in codes_of_check(daemon)
    before = x509.load_der_x509_crl(field.http(CRL).only.body)
    later = next(field_of_same(field))
    csrs = {protocol: later.csr(protocol=protocol) for protocol in (EST, SCEP)}

    write_ahead(daemon, dt.timedelta(hours=1))
    for protocol, csr in csrs.items():
        assert_told_to_come_again(later.ask(csr, protocol))
        assert later.certificates(later.name_in(protocol)) == 0
    attempt = later.attempt(later.ask(csrs[EST], EST).only.request_id)
    assert (attempt.outcome, attempt.code) == ("error", "internal_error")
    assert "clock" in (attempt.detail or "")
    assert "clock_behind" in codes_of_check(daemon)
    after = x509.load_der_x509_crl(field.http(CRL).only.body)
    assert after.last_update_utc >= before.last_update_utc


def test_case_61_a_store_that_a_clock_in_the_future_wrote_into_is_served_again_once_that_is_accepted(
    own_field: Field,
) -> None:
    field, daemon = own_field, own_field.daemon
    write_ahead(daemon, dt.timedelta(days=3650))
    csrs = {protocol: field.csr(protocol=protocol) for protocol in (EST, SCEP)}
    for protocol, csr in csrs.items():
        assert_told_to_come_again(field.ask(csr, protocol))
    assert "clock_behind" in codes_of_check(daemon)
    accepted = run_enrolld(daemon.directory, "clock", "accept", "--reason", "a dead battery", "--yes", "--json")
    assert json.loads(accepted.stdout)["behind"] is False
    for protocol, csr in csrs.items():
        answer = field.ask(csr, protocol).only
        assert answer.status == 200, answer.body
        assert field.certificates(field.name_in(protocol)) == 1
    assert "clock_behind" not in codes_of_check(daemon)
    assert json.loads(run_enrolld(daemon.directory, "audit", "verify", "--json").stdout)["ok"] is True


def field_of_same(field: Field) -> Iterator[Field]:
    """Another device of the same daemon."""
    yield Field(field.daemon, field.ra, 0)


# --- with a clock that can be set -------------------------------------------------------------------------------------


async def crl_of(core: Core, issuer: str = "default-ec-1") -> x509.CertificateRevocationList:
    der = await core.crls.latest(issuer)
    assert der is not None
    return x509.load_der_x509_crl(der)


async def why_not(core: Core, evidence: Evidence, csr: ParsedCsr) -> str:
    """Why nothing can be issued now."""
    try:
        return f"it was told: {await code_of(core, evidence, csr)}"
    except Unavailable as exc:
        return str(exc)


@pytest.mark.parametrize(
    "back",
    [
        pytest.param(dt.timedelta(seconds=61), id="a-minute"),
        pytest.param(dt.timedelta(hours=1), id="an-hour"),
        pytest.param(dt.timedelta(days=20_000), id="to-1971"),
    ],
)
async def test_case_61_a_clock_that_was_set_back_issues_nothing_until_it_is_right(
    core: Core, clock: SetClock, installation: Installation, back: dt.timedelta
) -> None:
    secret = (await core.devices.add("default", "another", actor=ME)).secret
    evidence, csr, right = Evidence(username="", secret=secret), csr_of(new_key(), "another"), clock.now
    clock.now = right - back
    assert "clock" in await why_not(core, evidence, csr)
    assert await core.clock_is_behind()
    assert installation.sql("SELECT 1 FROM certificate WHERE kind = 'device'") == []
    clock.now = right - dt.timedelta(seconds=60)  # the twin: as far as clocks may differ
    assert (await ask(core, evidence, csr)).certificate


@pytest.mark.parametrize("back", [dt.timedelta(hours=1), dt.timedelta(days=3650), dt.timedelta(seconds=1)])
async def test_case_61_a_crl_never_goes_back(core: Core, clock: SetClock, back: dt.timedelta) -> None:
    first = await crl_of(core)
    right = clock.now
    clock.now = right - back
    await core.crls.publish("default-ec-1")
    second = await crl_of(core)
    clock.now = right + dt.timedelta(minutes=1)
    await core.crls.publish("default-ec-1")
    third = await crl_of(core)
    assert first.last_update_utc <= second.last_update_utc < third.last_update_utc
    assert third.last_update_utc == clock.now.replace(microsecond=0)  # the twin: a right clock is believed
    numbers = [
        each.extensions.get_extension_for_class(x509.CRLNumber).value.crl_number for each in (first, second, third)
    ]
    assert numbers == sorted(set(numbers))


async def test_case_61_ten_years_ahead_nothing_outlives_its_issuer_and_afterwards_the_crl_does_not_go_back(
    core: Core, clock: SetClock
) -> None:
    right = clock.now
    device = await enrolled(core)
    clock.now = right + dt.timedelta(days=3650)
    await core.crls.publish()
    ahead = await crl_of(core)
    assert ahead.last_update_utc == clock.now
    # What was valid has expired, and so has the issuer: with a new secret there is nothing either.
    secret = (await core.devices.secret("default", device.name, actor=ME)).secret
    assert "expired" in await why_not(core, Evidence(username="", secret=secret), csr_of(new_key(), device.name))
    clock.now = right + dt.timedelta(hours=1)
    await core.crls.publish()
    back = await crl_of(core)
    assert back.last_update_utc >= ahead.last_update_utc
    assert back.next_update_utc is not None
    assert back.next_update_utc > back.last_update_utc
    assert await core.clock_is_behind()


# --- a clock that is set right while a request is being decided -------------------------------------------------------


class Interrupted:
    """A clock that is wrong by `wrong` at its next `readings`, and right before and after."""

    def __init__(self, clock: SetClock) -> None:
        self._clock = clock
        self.wrong = dt.timedelta(0)
        self.readings = 0

    def __call__(self) -> dt.datetime:
        if self.readings:
            self.readings -= 1
            return self._clock() + self.wrong
        return self._clock()


@pytest.mark.parametrize(
    ("wrong", "code"),
    [
        pytest.param(dt.timedelta(days=400), "certificate_expired", id="forward"),
        pytest.param(dt.timedelta(days=-400), "certificate_not_yet_valid", id="back"),
    ],
)
async def test_case_61_a_clock_that_is_set_right_while_a_request_is_decided_refuses_no_device_for_good(
    core: Core, clock: SetClock, installation: Installation, wrong: dt.timedelta, code: str
) -> None:
    device = await enrolled(core)
    csr = csr_of(new_key(), device.name)
    interrupted = Interrupted(clock)
    other = Core.open(replace(installation.config(), clock=interrupted))
    try:
        interrupted.wrong, interrupted.readings = wrong, 1
        assert "was set by" in await why_not(other, device.evidence, csr)
        assert interrupted.readings == 0
        interrupted.readings = 100  # the twin: a clock that stays as it is is believed, where it can't be known better
        assert await code_of(other, device.evidence, csr) == code
        interrupted.readings = 0
        assert (await ask(other, device.evidence, csr)).certificate
    finally:
        other.close()


async def test_case_61_a_clock_that_is_set_right_between_proof_and_decision_strands_no_transaction(
    core: Core, clock: SetClock, installation: Installation
) -> None:
    device = await enrolled(core)
    interrupted = Interrupted(clock)
    other = Core.open(replace(installation.config(), clock=interrupted))
    try:
        resolved = await other.realms.resolve("scep", None, None)
        key = hashlib.sha256(b"a key that began nothing").digest()
        interrupted.wrong, interrupted.readings = dt.timedelta(days=400), 1
        with pytest.raises(Unavailable, match="was set by"):
            await other.registration.poll(resolved, "of-nobody", key, CALL)
        polled = await other.registration.poll(resolved, "of-nobody", key, CALL)  # the twin
        assert isinstance(polled, Refused)
        assert polled.refusal.code == "transaction_unknown"

        resolved = await other.realms.resolve("est", None, None)
        foreign = csr_of(new_key(), "another-name")
        requester = await other.registration.authenticate(resolved, device.evidence, foreign)
        interrupted.readings = 1
        with pytest.raises(Unavailable, match="was set by"):
            await other.registration.enroll(resolved, requester, foreign, Operation.ENROLL, CALL)
        refused = await other.registration.enroll(resolved, requester, foreign, Operation.ENROLL, CALL)  # the twin
        assert isinstance(refused, Refused)
        assert refused.refusal.code == "subject_mismatch"
    finally:
        other.close()
