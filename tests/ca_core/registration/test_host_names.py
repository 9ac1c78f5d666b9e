"""Names of this server and of devices: what a device has becomes no host of a realm, whoever comes first."""

import contextlib
import io
import itertools
from collections.abc import Awaitable, Callable

import pytest

from ca_core.core import Core
from ca_core.errors import OperatorError
from ca_core.registration.device_change import Facts
from tests.helpers.admission import code_of_act
from tests.helpers.core import ME, Installation, edit_realm, enrolled
from tests.helpers.interference import Interference

HOST = "est.line.example.com"
Act = Callable[[Core], Awaitable[object]]


async def apply(core: Core) -> None:
    await edit_realm(core, "default", "hosts = []", f'hosts = ["{HOST}"]')


async def add(core: Core) -> object:
    return await core.realms.add("third", hosts=["free.example.com", HOST.upper() + "."], actor=ME)


async def resume(core: Core) -> object:
    return await core.realms.resume("gone", actor=ME)


async def in_its_record(core: Core) -> None:
    await core.devices.add("default", "evil", sans=[f"DNS:{HOST}"], actor=ME)


async def called_so(core: Core) -> None:
    await core.devices.add("default", HOST.capitalize(), actor=ME)


async def in_another_realm(core: Core) -> None:
    await core.devices.add("other", "evil", sans=[f"DNS:{HOST}"], actor=ME)


async def in_its_certificate_alone(core: Core) -> None:
    await enrolled(core, "evil", sans=[f"DNS:{HOST}"])
    await core.devices.change("default", "evil", Facts(names=[]), actor=ME)


async def in_the_certificate_of_one_that_is_retired(core: Core) -> None:
    await enrolled(core, "evil", sans=[f"DNS:{HOST}"])
    await core.devices.retire("default", "evil", actor=ME)


async def in_the_certificate_of_a_board_that_was_replaced(core: Core) -> None:
    await enrolled(core, "evil", sans=[f"DNS:{HOST}"])
    await core.devices.new_board("default", "evil", actor=ME)
    await core.devices.change("default", "evil", Facts(names=[]), actor=ME)


async def given_away(core: Core) -> None:
    await core.devices.add("default", "evil", sans=[f"DNS:{HOST}"], actor=ME)
    await core.devices.change("default", "evil", Facts(names=["DNS:else.example.com"]), actor=ME)


async def revoked(core: Core) -> None:
    device = await enrolled(core, "evil", sans=[f"DNS:{HOST}"])
    await core.devices.change("default", "evil", Facts(names=[]), actor=ME)
    await core.certificates.revoke(device.serial, reason="superseded", actor=ME)


async def retired(core: Core) -> None:
    await core.devices.add("default", "evil", sans=[f"DNS:{HOST}"], actor=ME)
    await core.devices.retire("default", "evil", actor=ME)


@pytest.mark.parametrize("act", [apply, add, resume], ids=lambda act: act.__name__)
@pytest.mark.parametrize(
    ("have", "code"),
    [
        pytest.param(in_its_record, "host_of_device", id="record"),
        pytest.param(called_so, "host_of_device", id="called-so"),
        pytest.param(in_another_realm, "host_of_device", id="another-realm"),
        pytest.param(in_its_certificate_alone, "host_of_device", id="certificate"),
        pytest.param(in_the_certificate_of_one_that_is_retired, "host_of_device", id="retired-with-certificate"),
        pytest.param(in_the_certificate_of_a_board_that_was_replaced, "host_of_device", id="replaced-board"),
        pytest.param(given_away, "done", id="twin-given-away"),
        pytest.param(revoked, "done", id="twin-revoked"),
        pytest.param(retired, "done", id="twin-retired"),
    ],
)
async def test_case_29_what_a_device_has_becomes_no_host_of_a_realm(
    core: Core, installation: Installation, act: Act, have: Callable[[Core], Awaitable[None]], code: str
) -> None:
    if act is resume:
        await core.realms.add("gone", hosts=["gone.example.com"], actor=ME)
        await core.realms.retire("gone", actor=ME)
    await have(core)
    if act is resume:  # as it could be before this was looked at
        installation.sql("UPDATE realm_version SET document = replace(document, 'gone.example.com', ?)", HOST)
        core.realms.forget()
    if code == "done":
        await act(core)
        assert HOST in await core.realms.all_hosts()
        return
    before = await core.realms.list()
    with pytest.raises(OperatorError) as caught:
        await act(core)
    assert caught.value.code == code
    assert HOST in caught.value.message
    device = HOST.capitalize() if have is called_so else "evil"
    assert f"device {device} in realm {'other' if have is in_another_realm else 'default'}" in caught.value.message
    assert "enrolld device set" in caught.value.remedy
    assert await core.realms.list() == before


@pytest.mark.parametrize("act", [apply, add], ids=lambda act: act.__name__)
async def test_case_29_a_host_that_a_device_gets_at_the_same_moment_is_refused_to_one_of_the_two(
    core: Core, installation: Installation, act: Act
) -> None:
    """Whichever step of the realm's act it comes before."""
    for step in itertools.count(1):
        name = f"evil-{step}"

        async def register(name: str = name) -> None:
            with contextlib.closing(installation.open()) as second, contextlib.suppress(OperatorError):
                await second.devices.add("other", name, sans=[f"DNS:{HOST}"], actor=ME)

        interference = Interference(step, register)
        with contextlib.closing(installation.open(hook=interference)) as node:
            got = await code_of_act(act(node))
        if not interference.happened:
            break
        is_host = HOST in await core.realms.all_hosts()
        assert got in (("done",) if is_host else ("host_of_device", "realm_changed")), step
        devices = await core.devices.list("other", limit=99)
        assert not is_host or {row.state for row in devices} == {"retired"}, step
        if is_host:
            break
        await core.devices.retire("other", name, actor=ME)
    assert got == "done", "the twin"
    assert step > 4, "reads, submit and lock"


@pytest.mark.parametrize("act", ["add", "set", "import"])
async def test_case_29_a_device_gets_no_name_that_becomes_a_host_at_the_same_moment(
    core: Core, installation: Installation, act: str
) -> None:
    """Whichever step of the device's act it comes before, and whichever realm takes the host."""
    await core.realms.add("third", actor=ME)
    await core.devices.add("other", "evil", actor=ME)
    for step in itertools.count(1):

        async def take() -> None:
            with contextlib.closing(installation.open()) as second, contextlib.suppress(OperatorError):
                await edit_realm(second, "third", "hosts = []", f'hosts = ["{HOST}"]')

        interference = Interference(step, take)
        with contextlib.closing(installation.open(hook=interference)) as node:
            names = [f"DNS:{HOST}"]
            if act == "add":
                got = await code_of_act(node.devices.add("other", f"new-{step}", sans=names, actor=ME))
            elif act == "import":
                lines = io.BytesIO(f"name,san\nnew-{step},DNS:{HOST}\n".encode())
                got = await code_of_act(node.device_import.run("other", lines, "devices.csv", actor=ME))
            else:
                got = await code_of_act(node.devices.change("other", "evil", Facts(names=names), actor=ME))
        if not interference.happened:
            break
        if HOST not in await core.realms.all_hosts():
            break
        assert got in ("import_faults" if act == "import" else "name_of_server", "realm_changed"), step
        text = (await core.realms.export("third")).replace(f'hosts = [\n    "{HOST}",\n]', "hosts = []")
        await core.realms.apply(text, actor=ME)
    assert got == "done", "the twin"
    assert step > 4, "reads, submit and lock"


async def test_case_29_a_device_that_has_a_name_of_this_server_is_told(core: Core, installation: Installation) -> None:
    names = ["pki.example.com", "10.0.0.9"]

    async def told() -> set[str]:
        return {finding.message for finding in await core.check(names) if finding.code == "name_of_server"}

    await core.devices.add("default", "harmless", sans=["DNS:x.example.com"], actor=ME)
    assert await told() == set(), "the twin"
    await core.devices.add("default", "one", sans=["DNS:pki.example.com"], actor=ME)
    await core.devices.add("other", "PKI.example.com", actor=ME)
    await core.devices.add("other", "addressed", sans=["IP:10.0.0.9"], actor=ME)
    await enrolled(core, "two", sans=["DNS:host.example.com"])
    text = "DNS:{} is a name of this server, and of device {} in realm {} or a certificate of it"
    found = {
        text.format("pki.example.com", "one", "default"),
        text.format("pki.example.com", "PKI.example.com", "other"),
        text.format("10.0.0.9", "addressed", "other"),
    }
    assert await told() == found
    # A host that became one before this was looked at, and the names handed on to who takes over.
    installation.sql("UPDATE realm_version SET document = replace(document, 'other.example.com', 'host.example.com')")
    core.realms.forget()
    await core.devices.add("default", "three", actor=ME)
    await core.devices.replace_by("default", "two", "three", actor=ME)
    found |= {text.format("host.example.com", device, "default") for device in ("two", "three")}
    assert await told() == found
