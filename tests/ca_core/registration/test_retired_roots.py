"""No realm serves under the root of one that is retired, whoever acts at the same moment; one that does is told."""

import contextlib
import dataclasses
import itertools
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from ca_core.core import Core
from ca_core.errors import OperatorError
from ca_core.matrix import CoreDoor, Credentials, Ground, Report, Size, read_policy, run
from tests.helpers.admission import code_of_act
from tests.helpers.core import ME, Installation
from tests.helpers.interference import Interference

Act = Callable[[Core, str], Awaitable[object]]


async def make_top_and_leaf(core: Core) -> None:
    """The realm `top` has a root of its own, which `leaf` stands under."""
    await core.realms.add("top", keys={"root": "p-256"}, actor=ME)
    await core.realms.add("leaf", root_of="top", actor=ME)


def states(installation: Installation) -> dict[str, str]:
    return dict(installation.sql("SELECT name, state FROM realm WHERE name NOT IN ('default', 'other')"))


def set_state(installation: Installation, name: str, state: str) -> None:
    """What no command does, and a store of old may have."""
    installation.sql(
        "INSERT INTO realm_version SELECT v.realm_id, v.version + 1, v.document, v.created_at, v.actor"
        " FROM realm_version v JOIN realm r ON r.id = v.realm_id AND r.version = v.version WHERE r.name = ?",
        name,
    )
    installation.sql("UPDATE realm SET state = ?, version = version + 1 WHERE name = ?", state, name)


async def retire_top(core: Core, _: str) -> object:
    return await core.realms.retire("top", actor=ME)


async def resume_leaf(core: Core, _: str) -> object:
    return await core.realms.resume("leaf", actor=ME)


async def add_under(core: Core, name: str) -> object:
    return await core.realms.add(name, root_of="top", actor=ME)


@pytest.mark.parametrize(
    ("act", "other", "code"),
    [
        pytest.param(retire_top, resume_leaf, "realm_shares_root", id="resumed-while-retiring"),
        pytest.param(retire_top, add_under, "realm_shares_root", id="added-while-retiring"),
        pytest.param(resume_leaf, retire_top, "realm_retired", id="retired-while-resuming"),
        pytest.param(add_under, retire_top, "root_unusable", id="retired-while-adding"),
    ],
)
async def test_no_two_commands_at_one_moment_leave_a_realm_under_a_retired_root(
    core: Core, installation: Installation, act: Act, other: Act, code: str
) -> None:
    """Whichever step of the one the other comes before: one of the two is refused."""
    await make_top_and_leaf(core)
    await core.realms.retire("leaf", actor=ME)
    for step in itertools.count(1):
        name = f"under-{step}"

        async def interfere(name: str = name) -> None:
            with contextlib.closing(installation.open()) as second, contextlib.suppress(OperatorError):
                await other(second, name)

        interference = Interference(step, interfere)
        with contextlib.closing(installation.open(hook=interference)) as node:
            got = await code_of_act(act(node, name))
        if not interference.happened:
            break
        found = states(installation)
        assert found["top"] == "active" or set(found.values()) == {"retired"}, (step, found)
        assert got in (code, "realm_changed", "done"), step
        # As it was before: nothing that is active stands under it.
        for each, state in found.items():
            if each != "top" and state == "active":
                await core.realms.retire(each, actor=ME)
        if found["top"] == "retired":
            await core.realms.resume("top", actor=ME)
    assert got == "done", "the twin"
    assert step > 4, "reads, submit and lock"


async def test_a_realm_that_serves_under_a_retired_root_is_told_and_the_matrix_is_played_all_the_same(
    core: Core, installation: Installation, tmp_path: Path
) -> None:
    await make_top_and_leaf(core)
    await core.realms.add("twig", root_of="top", actor=ME)

    async def told() -> list[str]:
        return [finding.message for finding in await core.check() if finding.code == "realm_root_retired"]

    assert await told() == [], "the twin"
    before = await read_policy(core)
    assert before.roots == {"leaf": "top", "twig": "top"}
    set_state(installation, "top", "retired")
    text = "realm {} is active under the root of realm top, which is retired"
    assert await told() == [text.format("leaf"), text.format("twig")]
    policy = await read_policy(core)
    assert [document.name for document in policy.documents] == ["default", "other", "leaf", "twig"]
    assert policy.roots == {"twig": "leaf"}, "they still share one"
    report = Report()
    store = f"sqlite:///{tmp_path}/ground.db"
    thrown_away = await Core.create(dataclasses.replace(installation.config(), store_url=store))
    with contextlib.closing(thrown_away):
        ground = await Ground.make(thrown_away, policy, report)
        await run(ground, Credentials(ground, CoreDoor(thrown_away)), report, Size(protocols=("est",)))
    assert report.failures == []
    assert {cell.home for cell in report.cells} == {"default", "other", "leaf", "twig"}
