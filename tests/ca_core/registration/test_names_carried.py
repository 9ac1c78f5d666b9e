"""A name is held while a certificate carries it, however that spells it."""

import json
from typing import Any

import pytest
from cryptography import x509
from cryptography.x509.oid import NameOID

from ca_core.core import Core
from ca_core.errors import OperatorError
from ca_core.records.opening import upgrade_store
from ca_core.registration.device_change import Facts
from ca_core.registration.names_carried import keys_beside
from tests.helpers.core import ME, Installation
from tests.helpers.earlier import take_back
from tests.helpers.naming import ANY_NAME, Asker, with_profile

# What a certificate carries, what somebody else asks for then, and which keys its row lacks.
SPELLED: dict[str, tuple[tuple[str, ...], tuple[str, ...], list[str]]] = {
    "escaped-uri": (
        ("holder", "URI:https://example.com/a%2Db"),
        ("asker", "URI:https://example.com/a-b"),
        ["URI:https://example.com/a-b"],
    ),
    "escaped-uri-again": (
        ("holder", "URI:https://example.com/a%2Db"),
        ("asker", "URI:https://example.com/a%2Db"),
        ["URI:https://example.com/a-b"],
    ),
    "uri-with-port": (
        ("holder", "URI:https://example.com:443/x"),
        ("asker", "URI:https://example.com/x"),
        ["URI:https://example.com/x"],
    ),
    "uri-with-port-and-escape": (
        ("holder", "URI:https://example.com:443/%61"),
        ("asker", "URI:https://example.com/a"),
        ["URI:https://example.com/a", "URI:https://example.com:443/a"],
    ),
    "quoted-mailbox": (
        ("holder", 'email:"a"@b.example.com'),
        ("asker", "email:a@b.example.com"),
        ["email:a@b.example.com"],
    ),
    "comma": (("a,b",), ("A,b",), ["DNS:a,b"]),
    "quote": (('a"b\\c',), ('a"B\\c',), ['DNS:a"b\\c']),
    "umlaut": (("M\u00dcller",), ("m\u00fcller",), ["DNS:m\u00fcller", "DNS:xn--mller-kva"]),
    "spaces": (("two  spaces",), ("two spaces",), ["DNS:two spaces"]),
    "wide": (("\uff21scii",), ("ascii",), ["DNS:ascii"]),
    "dot": (("dot.",), ("dot",), ["DNS:dot"]),
    "u-label": (
        ("b\u00fccher.example.com",),
        ("asker", "DNS:xn--bcher-kva.example.com"),
        ["DNS:b\u00fccher.example.com", "DNS:xn--bcher-kva.example.com"],
    ),
    "address": (("10.9.9.9",), ("asker", "IP:10.9.9.9"), ["IP:10.9.9.9"]),
    "plain": (("Plain Device", "DNS:Two.example.com"), ("PLAIN device",), []),
    "plain-alternative": (
        ("holder", "DNS:two.example.com", "IP:10.1.2.3", "URI:urn:dev:A", "email:A@b.example.com"),
        ("asker", "URI:urn:dev:a"),
        [],
    ),
}


@pytest.mark.parametrize(("carried", "lacking"), [(case[0], case[2]) for case in SPELLED.values()], ids=SPELLED)
def test_a_certificate_s_row_keeps_the_keys_that_its_texts_lack(carried: tuple[str, ...], lacking: list[str]) -> None:
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, carried[0])])
    kept = keys_beside(subject, [name.replace("Two", "two") for name in carried[1:]])
    assert kept == (json.dumps(lacking, ensure_ascii=False) if lacking else None)


@pytest.mark.parametrize("is_held", [True, False], ids=["", "twin-revoked"])
@pytest.mark.parametrize(("carried", "asked"), [case[:2] for case in SPELLED.values()], ids=SPELLED)
async def test_a_name_is_held_by_an_older_certificate_in_whatever_spelling(
    core: Core, carried: tuple[str, ...], asked: tuple[str, ...], is_held: bool
) -> None:
    await with_profile(core, **ANY_NAME)
    holder, asker = await Asker.made(core, "holder"), await Asker.made(core)
    older = await holder.enrolls(*carried)
    newer = await holder.renews(older, *carried)
    await core.certificates.revoke(newer.serial, reason="superseded", actor=ME)
    if not is_held:
        await core.certificates.revoke(older.serial, reason="superseded", actor=ME)
    assert await asker.asks(*asked) == ("name_of_other_device" if is_held else "issued")


RECORDED = {
    "escaped": ("URI:https://example.com/a%2Db", "URI:https://example.com/a-b"),
    "the-same": ("URI:https://example.com/a%2Db", "URI:https://example.com/a%2Db"),
    "port": ("URI:https://example.com:443/%61", "URI:https://example.com/a"),
    "path": ("URI:https://example.com", "URI:https://example.com:443/"),
    "plain": ("URI:https://example.com/ab", "URI:https://example.com/AB"),
}


@pytest.mark.parametrize("is_held", [True, False], ids=["", "twin-revoked"])
@pytest.mark.parametrize(("recorded", "asked"), RECORDED.values(), ids=RECORDED)
@pytest.mark.parametrize("how", ["retired", "taken-out", "taken-out-and-renewed"])
async def test_a_name_of_a_record_is_held_by_a_certificate_in_whatever_spelling(
    core: Core, recorded: str, asked: str, how: str, is_held: bool
) -> None:
    holder = await Asker.made(core, "holder", sans=[recorded])
    held = await holder.enrolls("holder")
    if how == "taken-out-and-renewed":
        newer = await holder.renews(held, "holder", recorded)
        await core.certificates.revoke(newer.serial, reason="superseded", actor=ME)
    if how == "retired":
        await core.devices.retire("default", "holder", actor=ME)
    else:
        await core.devices.change("default", "holder", Facts(names=[]), actor=ME)
    if not is_held:
        await core.certificates.revoke(held.serial, reason="superseded", actor=ME)
        await core.devices.add("default", "other", sans=[asked], actor=ME)
        return
    with pytest.raises(OperatorError) as caught:
        await core.devices.add("default", "other", sans=[asked], actor=ME)
    assert caught.value.code == "name_of_other_device"


async def test_no_bytes_are_spent_for_names_that_stand_in_a_certificate_s_row(
    core: Core, installation: Installation
) -> None:
    await with_profile(core, **ANY_NAME)
    await (await Asker.made(core, "One", sans=["DNS:x.example", "URI:urn:a:B", "IP:fd00::1"])).enrolls(
        "One", "IP:10.0.0.1"
    )
    await (await Asker.made(core, "two")).enrolls("a,b")
    rows: list[tuple[Any, ...]] = installation.sql(
        "SELECT name_keys FROM certificate WHERE kind = 'device' ORDER BY id"
    )
    assert rows == [(None,), ('["DNS:a,b"]',)]


@pytest.mark.parametrize("engine", ["sqlite"], indirect=True)  # on which an earlier revision can be had
async def test_a_store_of_an_earlier_revision_finds_escaped_uris_of_older_certificates(
    core: Core, installation: Installation
) -> None:
    await with_profile(core, **ANY_NAME)
    name = "URI:https://example.com/%41%2Db"
    holder = await Asker.made(core, "holder")
    await holder.renews(await holder.enrolls("holder", name, "DNS:a.example.com"), "holder", name, "DNS:a.example.com")
    core.close()
    database = installation.directory / "enrolld.db"
    take_back(database, "0007")
    upgrade_store(f"sqlite:///{database}")
    kept = installation.sql("SELECT name_keys FROM certificate WHERE kind = 'device' ORDER BY id")
    assert kept == [('["DNS:a.example.com", "URI:https://example.com/a-b"]',)] * 2
    assert installation.sql("SELECT DISTINCT name_keys FROM certificate WHERE kind <> 'device'") == [(None,)]
    again = installation.open()
    try:
        newest = installation.sql("SELECT serial FROM certificate WHERE kind = 'device' ORDER BY id DESC")[0][0]
        await again.certificates.revoke(newest, reason="superseded", actor=ME)
        asker = await Asker.made(again, "asker")
        assert await asker.asks("asker", "URI:https://example.com/a-b") == "name_of_other_device"
        assert await asker.asks("asker", "URI:https://example.com/a-c") == "issued", "the twin"
    finally:
        again.close()
