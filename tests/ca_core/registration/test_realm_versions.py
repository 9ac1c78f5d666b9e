"""Versions of a realm: applied on every node at once, one after the other; and by what a request finds its realm."""

import hashlib
from typing import Any

import msgspec
import pytest

from ca_core.core import Core
from ca_core.errors import NotFound, OperatorError
from ca_core.registration.realm import Realm
from tests.helpers.core import ME, OTHER_HOST, Installation, edit_realm
from tests.helpers.factory import root


async def test_export_and_apply_are_each_others_inverse(core: Core, installation: Installation) -> None:
    await core.trust.add("other", root().pem, actor=ME)
    before = await core.realms.show("other")
    text = await core.realms.export("other")
    after = await core.realms.apply(text, actor=ME)
    assert after.version == before.version == 2, "no news, no version"
    edited = text.replace('retry_window = "24h"', 'retry_window = "12h"')
    assert (await core.realms.apply(edited, actor=ME)).version == 3
    assert await core.realms.export("other") == edited
    kept = installation.sql("SELECT version, actor FROM realm_version WHERE realm_id = ? ORDER BY version", after.id)
    assert kept == [(1, ME), (2, ME), (3, ME)]


async def test_a_new_version_is_an_event_with_its_digest(core: Core, installation: Installation) -> None:
    await edit_realm(core, "default", 'retry_window = "24h"', 'retry_window = "1h"')
    (event,) = installation.events("realm.applied")
    ((document,),) = installation.sql("SELECT document FROM realm_version WHERE realm_id = 1 AND version = 2")
    assert event == {"version": 2, "digest": hashlib.sha256(document.encode()).hexdigest()}
    added = installation.events("realm.added")
    ((first,),) = installation.sql("SELECT document FROM realm_version WHERE realm_id = 1 AND version = 1")
    assert added[0]["digest"] == hashlib.sha256(first.encode()).hexdigest()


async def test_every_node_takes_a_new_version_at_once(core: Core, second: Core) -> None:
    assert (await second.realms.current())["default"].document.retry_window == "24h"
    await edit_realm(core, "default", 'retry_window = "24h"', 'retry_window = "1h"')
    assert (await second.realms.current())["default"].document.retry_window == "1h"


async def test_of_two_changes_at_once_the_second_is_refused(core: Core, second: Core) -> None:
    stale = await second.realms.get("default")
    await edit_realm(core, "default", 'retry_window = "24h"', 'retry_window = "1h"')
    edited = msgspec.structs.replace(stale.document, retry_window="2h")
    with pytest.raises(OperatorError) as caught:
        await second.realms.replace(stale, edited, "realm.applied", {}, ME)
    assert caught.value.code == "realm_changed"
    assert (await core.realms.get("default")).document.retry_window == "1h"
    fresh = await second.realms.get("default")
    assert (await second.realms.replace(fresh, edited, "realm.applied", {}, ME)).version == 3


@pytest.mark.parametrize("host", [OTHER_HOST, OTHER_HOST.upper(), OTHER_HOST + "."])
async def test_a_host_belongs_to_one_realm(core: Core, host: str) -> None:
    with pytest.raises(OperatorError) as caught:
        await edit_realm(core, "default", "hosts = []", f'hosts = ["{host}"]')
    assert caught.value.code == "host_taken"
    with pytest.raises(OperatorError) as caught:
        await core.realms.add("third", hosts=[host], actor=ME)
    assert caught.value.code == "host_taken"
    await edit_realm(core, "other", OTHER_HOST, "moved.example.com")
    await edit_realm(core, "default", "hosts = []", f'hosts = ["{host}"]')
    assert (await core.realms.show("default")).hosts == [OTHER_HOST]


async def test_two_realms_that_take_one_host_at_once_do_not_both_get_it(core: Core, second: Core) -> None:
    one, two = await core.realms.get("default"), await second.realms.get("other")
    looked = await second.realms.current()

    async def stale() -> dict[str, Realm]:
        return looked

    fresh = second.realms.current
    taken = ("new.example.com",)
    await core.realms.replace(one, msgspec.structs.replace(one.document, hosts=taken), "realm.applied", {}, ME)
    second.realms.current = stale  # type: ignore[method-assign]  # as if the change came just after the look
    edited = msgspec.structs.replace(two.document, hosts=taken)
    with pytest.raises(OperatorError) as caught:
        await second.realms.replace(two, edited, "realm.applied", {}, ME)
    assert caught.value.code == "realm_changed"
    second.realms.current = fresh  # type: ignore[method-assign]  # the twins
    with pytest.raises(OperatorError) as caught:
        await second.realms.replace(two, edited, "realm.applied", {}, ME)
    assert caught.value.code == "host_taken"
    assert (await second.realms.replace(two, two.document, "realm.applied", {}, ME)).version == 2


@pytest.mark.parametrize(
    ("name", "options", "code"),
    [
        ("default", {}, "realm_exists"),
        ("Third", {}, "name_invalid"),
        ("csrattrs", {}, "name_reserved"),
        ("third", {"hosts": ["*"]}, "host_invalid"),
        ("third", {"public_url": "ftp://x"}, "document_invalid"),
        ("third", {"keys": {"rsa": "p-256"}}, "key_kind_invalid"),
        ("third", {"keys": {"root": "rsa-1024"}}, "key_kind_invalid"),
        ("third", {"keys": {"est": "p-256"}}, "key_kind_invalid"),
    ],
)
async def test_a_realm_that_can_not_be_is_not_added(
    core: Core, installation: Installation, name: str, options: dict[str, Any], code: str
) -> None:
    with pytest.raises(OperatorError) as caught:
        await core.realms.add(name, actor=ME, **options)
    assert caught.value.code == code
    assert installation.sql("SELECT count(*) FROM realm") == [(2,)]
    assert installation.sql("SELECT count(*) FROM issuer") == [(6,)]


async def test_applying_a_document_of_no_realm_is_refused(core: Core) -> None:
    text = (await core.realms.export("default")).replace('name = "default"', 'name = "nowhere"')
    with pytest.raises(OperatorError) as caught:
        await core.realms.apply(text, actor=ME)
    assert caught.value.code == "realm_unknown"


# --- finding a realm -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("label", "host", "realm", "profile"),
    [
        (None, None, "default", None),
        (None, "anything.example", "default", None),
        ("default", None, "default", None),
        ("default.scep", None, "default", "scep"),
        ("other", None, "other", None),
        ("other.device", "localhost", "other", "device"),
        (None, OTHER_HOST, "other", None),
        ("other", OTHER_HOST, "other", None),
    ],
)
async def test_a_label_and_a_host_name_a_realm(
    core: Core, label: str | None, host: str | None, realm: str, profile: str | None
) -> None:
    resolved = await core.realms.resolve("est", label, host)
    assert (resolved.realm.name, resolved.profile) == (realm, profile)


@pytest.mark.parametrize(
    ("protocol", "label", "host", "code"),
    [
        pytest.param("est", "nowhere", None, "realm_unknown", id="unknown-realm"),
        pytest.param("est", "default.gold", None, "realm_unknown", id="unknown-profile"),
        pytest.param("est", "", None, "realm_unknown", id="empty-label"),
        pytest.param("est", "DEFAULT", None, "realm_unknown", id="upper-case"),
        pytest.param("est", "default.", None, "realm_unknown", id="empty-profile"),
        pytest.param("est", "default ", None, "realm_unknown", id="space"),
        pytest.param("est", "../other", None, "realm_unknown", id="path"),
        pytest.param("est", "d\u0435fault", None, "realm_unknown", id="cyrillic"),
        pytest.param("est", "default", OTHER_HOST, "realm_not_here", id="another-realm-on-a-realm's-host"),
        pytest.param("est", "nowhere", OTHER_HOST, "realm_unknown", id="unknown-on-a-realm's-host"),
        pytest.param("cmp", None, None, "protocol_not_served", id="a-protocol-that-is-not-spoken"),
    ],
)
async def test_nothing_falls_back_to_another_realm(
    core: Core, protocol: str, label: str | None, host: str | None, code: str
) -> None:
    with pytest.raises(NotFound) as caught:
        await core.realms.resolve(protocol, label, host)
    assert caught.value.code == code


async def test_case_38_a_retired_realm_serves_nobody(core: Core, installation: Installation) -> None:
    resolved = await core.realms.resolve("est", "other", None)
    installation.sql("UPDATE realm SET state = 'retired', version = 2 WHERE name = 'other'")
    installation.sql(
        "INSERT INTO realm_version"
        " SELECT realm_id, 2, document, created_at, actor FROM realm_version WHERE realm_id = 2"
    )
    with pytest.raises(NotFound) as unknown:
        await core.realms.resolve("est", "nowhere", None)
    for asked in (core.realms.resolve("est", "other", None), core.realms.again(resolved)):
        with pytest.raises(NotFound) as caught:
            await asked
        assert caught.value.code == "realm_retired"
        assert "enrolld realm resume" in caught.value.remedy
        assert caught.value.message == unknown.value.message, "the peer is not told that there was one"
    resolved = await core.realms.resolve("est", None, None)
    assert (await core.realms.again(resolved)).realm is resolved.realm
