"""A clock that once stood in the future: accepting that time went back, and what that does not excuse."""

import asyncio
import datetime as dt
import json
from pathlib import Path

import pytest
from cryptography import x509

from ca_core.core import Core
from ca_core.errors import OperatorError, Unavailable
from ca_core.model import Evidence
from ca_core.records.audit_export import verify_file
from tests.helpers.core import ME, START, Enrolled, Installation, SetClock, ask, code_of, csr_of, enrolled, new_key

AHEAD = {"days": 365}
WHY = "the board's battery was empty"


async def was_in_the_future(core: Core, clock: SetClock, **ahead: float) -> Enrolled:
    """A device enrolls while the clock is ahead, and a head is made; then the clock is set right."""
    right = clock.now
    clock.forward(**(ahead or AHEAD))
    device = await enrolled(core, f"of-{clock.now:%Y-%m-%d-%H-%M}")
    await core.crls.publish()
    await core.audit.make_heads()
    clock.now = right + dt.timedelta(minutes=10)
    return device


async def refusal(act: object) -> str:
    with pytest.raises(OperatorError) as caught:
        await act  # type: ignore[misc]  # a coroutine
    assert caught.value.remedy
    return caught.value.code


async def issues(core: Core, name: str) -> bool:
    secret = (await core.devices.add("default", name, actor=ME)).secret
    try:
        await ask(core, Evidence(secret=secret), csr_of(new_key(), name))
    except Unavailable:
        return False
    return True


# --- accepting -------------------------------------------------------------------------------------------------------


async def test_all_nodes_issue_again_once_the_clock_is_accepted(
    core: Core, second: Core, clock: SetClock, installation: Installation
) -> None:
    await core.audit.make_heads()
    await was_in_the_future(core, clock)
    assert not await issues(core, "before")
    before = await core.clock.show()
    assert (before.behind, before.newest_event, before.accepted) == (True, "2027-11-22T12:00:00Z", None)
    state = await core.clock.accept(reason=WHY, actor=ME)
    assert (state.behind, state.newest_event) == (False, "2026-11-22T12:10:00Z")
    assert state.accepted is not None
    assert (state.accepted.at, state.accepted.back_from) == ("2026-11-22T12:10:00Z", "2027-11-22T12:00:00Z")
    assert await issues(core, "here")
    assert await issues(second, "there")
    assert not await second.clock_is_behind()
    assert (await second.figures()).clock_behind == 0
    [event] = installation.events("clock.accepted")
    assert (event["from"], event["to"], event["reason"]) == ("2027-11-22T12:00:00Z", "2026-11-22T12:10:00Z", WHY)
    assert [row.actor for row in await core.audit.list(action="clock.accepted", limit=9)] == [ME]


async def test_nothing_is_accepted_while_the_clock_is_not_behind_or_for_no_reason(core: Core, clock: SetClock) -> None:
    clock.forward(minutes=5)  # after the store was made
    await core.devices.add("default", "sensor", actor=ME)
    assert await refusal(core.clock.accept(reason=WHY, actor=ME)) == "clock_not_behind"
    clock.forward(seconds=-60)
    assert await refusal(core.clock.accept(reason=WHY, actor=ME)) == "clock_not_behind"
    clock.forward(seconds=-1)
    assert await refusal(core.clock.accept(reason=" ", actor=ME)) == "reason_missing"
    assert not (await core.clock.accept(reason=WHY, actor=ME)).behind, "the twin"
    assert await refusal(core.clock.accept(reason=WHY, actor=ME)) == "clock_not_behind"


@pytest.mark.parametrize("engine", ["postgresql"], indirect=True)
async def test_a_clock_that_the_database_contradicts_is_never_accepted(
    core: Core, clock: SetClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    await was_in_the_future(core, clock)
    measure = core.store.measure_drift

    async def off() -> float:
        return 61.0

    monkeypatch.setattr(core.store, "measure_drift", off)
    assert await refusal(core.clock.accept(reason=WHY, actor=ME)) == "clock_off"
    assert await refusal(core.clock.redate_crls(actor=ME)) == "clock_off"
    assert (await core.clock.show()).off
    monkeypatch.setattr(core.store, "measure_drift", measure)
    state = await core.clock.accept(reason=WHY, actor=ME)
    assert (state.off, state.behind) == (False, False)
    assert state.database_clock is not None


async def test_of_two_who_accept_at_once_one_does(core: Core, second: Core, clock: SetClock) -> None:
    await was_in_the_future(core, clock)
    acts = (each.clock.accept(reason=WHY, actor=ME) for each in (core, second))
    outcomes = await asyncio.gather(*acts, return_exceptions=True)
    assert [type(each).__name__ for each in outcomes].count("ClockState") == 1
    assert [each.code for each in outcomes if isinstance(each, OperatorError)] == ["clock_not_behind"]


@pytest.mark.parametrize("early", [dt.timedelta(days=2500), dt.timedelta(minutes=10)], ids=["years", "minutes"])
async def test_no_time_is_accepted_before_the_store_was_made(
    core: Core, clock: SetClock, installation: Installation, early: dt.timedelta
) -> None:
    await was_in_the_future(core, clock)
    right = clock.now
    clock.now = START - early
    assert await refusal(core.clock.accept(reason=WHY, actor=ME)) == "clock_too_early"
    assert await core.clock_is_behind()
    assert installation.events("clock.accepted") == []
    clock.now = right
    assert not (await core.clock.accept(reason=WHY, actor=ME)).behind, "the twin"


@pytest.mark.parametrize("what", ["audit", "realm_version"])
async def test_each_kind_of_record_tells_when_the_store_was_made(
    core: Core, clock: SetClock, installation: Installation, what: str
) -> None:
    """One that was trimmed or taken from elsewhere leaves the others."""
    await was_in_the_future(core, clock)
    column = "at" if what == "audit" else "created_at"
    installation.sql(f"UPDATE {what} SET {column} = 0 WHERE {column} < 1800000000000")  # noqa: S608  # of a table
    clock.now = START - dt.timedelta(minutes=10)
    assert await refusal(core.clock.accept(reason=WHY, actor=ME)) == "clock_too_early"


# --- what goes on being refused --------------------------------------------------------------------------------------


async def test_a_clock_that_is_set_back_afterwards_is_behind_again(core: Core, clock: SetClock) -> None:
    await was_in_the_future(core, clock)
    await core.clock.accept(reason=WHY, actor=ME)
    clock.forward(days=2)
    assert await issues(core, "later")
    clock.forward(hours=-1)
    assert not await issues(core, "back")


@pytest.mark.parametrize("ahead", [{"hours": 2}, {"days": 365}], ids=["two-hours", "a-year"])
async def test_when_the_right_time_comes_to_the_wrong_clocks_events_a_step_back_is_still_seen(
    core: Core, clock: SetClock, ahead: dict[str, float]
) -> None:
    """In that stretch of time the events of the wrong clock stand among the right ones; the heads tell."""
    await core.devices.add("default", "sensor", actor=ME)
    clock.forward(**ahead)
    for step in range(3):
        await core.devices.add("default", f"wrong-{step}", actor=ME)
        clock.forward(hours=1)
    clock.forward(hours=-3)
    clock.now -= dt.timedelta(**ahead)
    await core.clock.accept(reason=WHY, actor=ME)
    clock.forward(**ahead)
    clock.forward(hours=1)  # between two events of the wrong clock
    assert await issues(core, "then")
    await core.audit.make_heads()
    clock.forward(minutes=-10)
    assert await core.clock_is_behind()
    clock.forward(minutes=10)
    assert await issues(core, "again")
    clock.forward(hours=5)  # past all of them
    assert await issues(core, "past")
    clock.forward(minutes=-10)
    assert await core.clock_is_behind()


async def test_a_node_that_goes_on_in_the_future_is_seen_again_and_accepted_again(core: Core, clock: SetClock) -> None:
    await was_in_the_future(core, clock)
    await core.clock.accept(reason=WHY, actor=ME)
    for ahead in ({"days": 30}, {"days": 400}):
        await was_in_the_future(core, clock, **ahead)
        assert await core.clock_is_behind()
        await core.clock.accept(reason=WHY, actor=ME)
        assert await issues(core, f"after-{ahead['days']}")


async def test_what_was_issued_in_the_future_proves_nothing_before_its_date(core: Core, clock: SetClock) -> None:
    device = await was_in_the_future(core, clock)
    await core.clock.accept(reason=WHY, actor=ME)
    state = await core.clock.show()
    assert (state.certificates, state.secrets) == (1, 0)
    assert [row.device for row in await core.certificates.list(not_yet_valid=True, limit=9)] == [device.name]
    assert await code_of(core, device.evidence, csr_of(new_key(), device.name)) == "certificate_not_yet_valid"
    again = await code_of(core, Evidence(secret=device.secret), csr_of(device.key, device.name))
    assert again == "secret_spent", "what is not valid yet is no answer"
    secret = (await core.devices.secret("default", device.name, actor=ME)).secret
    issued = await ask(core, Evidence(secret=secret), csr_of(new_key(), device.name))
    assert x509.load_der_x509_certificate(issued.certificate).not_valid_before_utc <= clock.now
    assert len(await core.certificates.list(not_yet_valid=False, limit=9)) == 2


async def test_secrets_of_the_future_are_counted_until_they_are_void(core: Core, clock: SetClock) -> None:
    right = clock.now
    clock.forward(**AHEAD)
    await core.devices.add("default", "sensor", actor=ME)
    clock.now = right
    assert (await core.clock.accept(reason=WHY, actor=ME)).secrets == 1
    await core.devices.secret("default", "sensor", actor=ME)
    assert (await core.clock.show()).secrets == 0


# --- enrolld's own certificates, and CRLs ----------------------------------------------------------------------------


async def test_servers_and_ras_of_the_future_are_made_anew_once_it_is_clear_what_time_it_is(
    core: Core, clock: SetClock, installation: Installation
) -> None:
    right = clock.now
    clock.forward(**AHEAD)
    await core.server_certificates.ensure(["pki.example.com"])
    await core.ra_certificates.ensure()
    await core.devices.add("default", "sensor", actor=ME)
    clock.now = right

    async def dates() -> set[dt.datetime]:
        await core.server_certificates.ensure(["pki.example.com"])
        await core.ra_certificates.ensure()
        served = [identity.chain[0] for identity in core.server_certificates.all().values()]
        served += [ra.certificate for ra in core.ra_certificates.all().values()]
        assert len(served) == 4
        return {x509.load_der_x509_certificate(der).not_valid_before_utc for der in served}

    assert max(await dates()) > clock.now, "as long as this clock may be the wrong one"
    await core.clock.accept(reason=WHY, actor=ME)
    assert max(await dates()) < clock.now
    made = installation.sql("SELECT count(*) FROM certificate WHERE kind <> 'device'")
    await dates()
    assert installation.sql("SELECT count(*) FROM certificate WHERE kind <> 'device'") == made


async def crl_of(core: Core, issuer: str = "default-ec-1") -> tuple[int, dt.datetime]:
    der = await core.crls.latest(issuer)
    assert der is not None
    crl = x509.load_der_x509_crl(der)
    return crl.extensions.get_extension_for_class(x509.CRLNumber).value.crl_number, crl.last_update_utc


async def test_case_61_a_crl_of_the_future_goes_back_by_an_act_of_its_own_alone(
    core: Core, clock: SetClock, installation: Installation
) -> None:
    await was_in_the_future(core, clock)
    number, ahead = await crl_of(core)
    assert ahead == START + dt.timedelta(**AHEAD)
    assert await refusal(core.clock.redate_crls(actor=ME)) == "clock_behind"
    state = await core.clock.accept(reason=WHY, actor=ME)
    assert "default-ec-1" in state.crls
    device = await enrolled(core)
    await core.certificates.revoke(device.serial, actor=ME)
    await core.crls.publish(only_due=True)
    assert await crl_of(core) == (number + 1, ahead), "by itself it does not go back"
    rows = await core.clock.redate_crls(actor=ME)
    assert {row.issuer for row in rows} == set(state.crls)
    assert await crl_of(core) == (number + 2, clock.now)
    assert await core.clock.redate_crls(actor=ME) == []
    assert (await core.clock.show()).crls == []
    told = [event for event in installation.events("crl.published") if "redated_from" in event]
    assert len(told) == len(rows)
    assert {event["redated_from"] for event in told} == {"2027-11-22T12:00:00Z"}
    clock.forward(minutes=-5)
    await core.crls.publish()
    assert await crl_of(core) == (number + 3, clock.now + dt.timedelta(minutes=5)), "from there on it does not go back"


async def test_no_crl_is_dated_before_its_issuer_was_made(
    core: Core, clock: SetClock, installation: Installation
) -> None:
    right = clock.now
    clock.forward(**AHEAD)
    await core.realms.add("late", actor=ME)
    await core.crls.publish()
    ders = {name: der for [name, der] in installation.sql("SELECT name, der FROM issuer")}
    issuers = {name: x509.load_der_x509_certificate(der).not_valid_before_utc for name, der in ders.items()}
    clock.forward(days=1)
    await core.crls.publish()
    clock.now = right
    await core.clock.accept(reason=WHY, actor=ME)
    assert {row.issuer for row in await core.clock.redate_crls(actor=ME)} == set(issuers)
    for name, made in issuers.items():
        assert (await crl_of(core, name))[1] == max(made, clock.now)
    assert await core.clock.redate_crls(actor=ME) == [], "there is nothing more to date back"
    assert (await core.clock.show()).crls == []


async def test_a_ca_that_is_not_valid_yet_is_found(core: Core, clock: SetClock) -> None:
    right = clock.now
    clock.forward(**AHEAD)
    await core.realms.add("late", actor=ME)
    clock.now = right
    await core.clock.accept(reason=WHY, actor=ME)
    found = [each.message for each in await core.check() if each.code == "issuer_ahead"]
    assert [message.partition(" ")[0] for message in found] == ["late-root-1", "late-ec-1", "late-rsa-1"]


# --- the trail -------------------------------------------------------------------------------------------------------


async def late_events(core: Core) -> list[int | None]:
    """The numbers of the heads that events came too late for; nothing else may be found."""
    verdict = await core.audit.verify()
    assert {finding.code for finding in verdict.findings} <= {"event_late"}
    return [finding.head for finding in verdict.findings]


@pytest.mark.parametrize("head_after", [True, False], ids=["covered", "not-covered-yet"])
async def test_the_trail_verifies_after_an_accepted_step_back_and_not_before(
    core: Core, clock: SetClock, *, head_after: bool
) -> None:
    await core.audit.make_heads()
    await was_in_the_future(core, clock)
    await core.devices.add("default", "by-hand", actor=ME)
    assert await late_events(core) == [2], "nobody has accepted it"
    await core.clock.accept(reason=WHY, actor=ME)
    assert await issues(core, "after")
    if head_after:
        await core.audit.make_heads()
    assert await late_events(core) == []
    [limit] = (await core.audit.verify()).limits
    assert limit.startswith(
        f"At 2026-11-22T12:10:00Z {ME} has accepted that the clock went back from 2027-11-22T12:00:00Z"
    )


async def test_an_accepted_step_back_excuses_nothing_that_is_older(core: Core, second: Core, clock: SetClock) -> None:
    clock.forward(minutes=30)
    await core.devices.add("default", "right", actor=ME)
    await core.audit.make_heads()
    await was_in_the_future(core, clock)
    right = clock.now
    clock.now = START  # half an hour before the last head of a right clock
    await second.devices.add("default", "added-history", actor=ME)
    clock.now = right
    await core.clock.accept(reason=WHY, actor=ME)
    await core.audit.make_heads()
    assert await late_events(core) == [1]


async def test_an_accepted_step_back_excuses_no_later_one(core: Core, clock: SetClock) -> None:
    await was_in_the_future(core, clock)
    await core.clock.accept(reason=WHY, actor=ME)
    await core.audit.make_heads()
    await was_in_the_future(core, clock, days=30)
    await core.devices.add("default", "again", actor=ME)
    assert len(await late_events(core)) == 1
    await core.clock.accept(reason=WHY, actor=ME)
    assert await late_events(core) == []


@pytest.mark.parametrize("chosen", [{}, {"realm": "default"}, {"device": "by-hand"}], ids=["all", "realm", "device"])
async def test_an_export_verifies_with_its_step_back(
    core: Core, clock: SetClock, tmp_path: Path, chosen: dict[str, str]
) -> None:
    await was_in_the_future(core, clock)
    await core.devices.add("default", "by-hand", actor=ME)
    for name, found in (("before", {"event_late"}), ("after", set())):
        path = tmp_path / name
        path.write_text("".join([line + "\n" async for line in core.audit.export(**chosen)]))
        with path.open("rb") as file:
            assert {finding.code for finding in verify_file(file).findings} == found
        if name == "before":
            await core.clock.accept(reason=WHY, actor=ME)


async def test_a_step_back_that_is_told_in_other_words_excuses_nothing(
    core: Core, clock: SetClock, installation: Installation
) -> None:
    await was_in_the_future(core, clock)
    await core.clock.accept(reason=WHY, actor=ME)
    assert await late_events(core) == []
    for told in ("nonsense", "[]", json.dumps({"first_at": "0", "newest_at": 1 << 70, "head": None})):
        installation.sql("UPDATE audit SET details = ? WHERE action = 'clock.accepted'", told)
        codes = {finding.code for finding in (await core.audit.verify()).findings}
        assert codes == {"event_changed", "event_late"}
