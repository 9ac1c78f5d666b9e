"""A name that a request or a template makes is never another device's: of its record, its own, of its certificate."""

import asyncio
import sqlite3
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import NameOID
from sqlalchemy import literal

from ca_core.core import Core
from ca_core.csr import ParsedCsr
from ca_core.model import Evidence, Operation
from ca_core.records.opening import upgrade_store
from ca_core.records.sqlite_writer import DIALECT
from ca_core.registration import conditions, name_rows, names_held
from ca_core.registration.device_change import Facts
from tests.helpers import factory
from tests.helpers.admission import admit_by, outcome_of
from tests.helpers.core import ME, Enrolled, Installation, SetClock, new_key
from tests.helpers.core import ask as ask_for
from tests.helpers.earlier import take_back
from tests.helpers.naming import ANY_NAME, Asker, request, with_profile


@pytest.mark.parametrize(
    ("number", "outcome"),
    [
        ("SN-7", "name_of_other_device"),
        ("sn-7", "name_of_other_device"),
        ("SN-7 ", "name_of_other_device"),
        (" Sn-7", "name_of_other_device"),
        ("old 7", "name_of_other_device"),
        ("Old  7", "name_of_other_device"),
        ("TWO  SPACES", "name_of_other_device"),
        ("SN-77", "issued"),
        ("SN-8", "issued"),
        ("SN-9", "issued"),
        ("sn-9 ", "issued"),
    ],
)
async def test_case_29_a_subject_has_no_serial_number_of_another_device(core: Core, number: str, outcome: str) -> None:
    await core.trust.add("default", factory.root("Globex Root").pem, name="globex", actor=ME)
    await core.devices.add("default", "old", serial_number="Old 7", manufacturer="globex", actor=ME)
    await core.devices.add("default", "twin", serial_number="SN-9", manufacturer="globex", actor=ME)
    await core.trust.remove("default", "globex", actor=ME)
    await core.trust.add("default", factory.root().pem, name="acme", actor=ME)
    await core.devices.add("default", "pump", serial_number="SN-7", manufacturer="acme", actor=ME)
    await core.devices.add("default", "spaced", serial_number="Two  Spaces", manufacturer="acme", actor=ME)
    asker = await Asker.made(core, serial_number="SN-9", manufacturer="acme")
    await with_profile(core, subject={"CN": "{device.name}", "serialNumber": "{csr:*}"})
    subject = [x509.NameAttribute(NameOID.COMMON_NAME, "asker"), x509.NameAttribute(NameOID.SERIAL_NUMBER, number)]
    builder = x509.CertificateSigningRequestBuilder().subject_name(x509.Name(subject))
    csr = ParsedCsr.parse(builder.sign(new_key(), hashes.SHA256()).public_bytes(Encoding.DER))
    assert await outcome_of(core, asker.evidence, csr) == outcome


RECORD = (
    "DNS:vpn.example.com",
    "IP:10.1.2.3",
    "IP:fd00::7",
    "URI:https://example.com/Pump-7",
    "URI:Https://example.com/%65scap%65d",
    "URI:urn:dev:Pump",
    "URI:https://[2001:db8::1]:443",
    "DNS:xn--mnchen-3ya.example.com",
)


@pytest.mark.parametrize(
    ("asked", "outcome"),
    [
        (("asker", "DNS:vpn.example.com"), "name_of_other_device"),
        (("asker", "DNS:VPN.Example.com"), "name_of_other_device"),
        (("asker", "DNS:free.example.com", "DNS:vpn.example.com"), "name_of_other_device"),
        (("vpn.example.com",), "name_of_other_device"),
        (("Vpn.EXAMPLE.com",), "name_of_other_device"),
        (("asker", "IP:10.1.2.3"), "name_of_other_device"),
        (("asker", "IP:fd00:0::0007"), "name_of_other_device"),
        (("10.1.2.3",), "name_of_other_device"),
        (("asker", "URI:https://example.com/Pump-7"), "name_of_other_device"),
        (("asker", "URI:HTTPS://Example.COM/Pump-7"), "name_of_other_device"),
        (("asker", "URI:https://example.com/pump-7"), "name_of_other_device"),
        (("asker", "URI:https://example.com/%50ump%2d7"), "name_of_other_device"),
        (("asker", "URI:https://example.com/escaped"), "name_of_other_device"),
        (("asker", "URI:URN:dev:PUMP"), "name_of_other_device"),
        (("asker", "URI:urn:dev:%70ump"), "name_of_other_device"),
        (("asker", "URI:urn:dev:pumps"), "issued"),
        (("asker", "URI:https://example.com:443/Pump-7"), "name_of_other_device"),
        (("asker", "URI:https://[2001:db8:0:0::1]"), "name_of_other_device"),
        (("asker", "URI:https://[2001:db8::1]/"), "name_of_other_device"),
        (("asker", "URI:https://[2001:db8::2]/"), "issued"),
        (("m\u00fcnchen.example.com",), "name_of_other_device"),
        (("MU\u0308nchen.Example.com",), "name_of_other_device"),
        (("m\u00fcnchen2.example.com",), "issued"),
        (("B\u00fcro 7",), "issued"),
        (("urn:dev:pump",), "name_of_other_device"),
        (("https://example.com/Pump-7",), "name_of_other_device"),
        (("asker", "IP:::ffff:10.1.2.3"), "issued"),  # and dropped
        (("::ffff:10.1.2.3",), "name_of_other_device"),
        (("::ffff:a01:203",), "name_of_other_device"),
        (("::ffff:10.1.2.4",), "issued"),
        ((" vpn.example.com",), "name_of_other_device"),
        (("vpn.example.com..",), "name_of_other_device"),
        (("vpn\u3002example.com ",), "name_of_other_device"),
        (("big  Pump",), "issued"),
        (("pump.example.com",), "name_of_other_device"),
        (("asker", "DNS:pump.example.com"), "name_of_other_device"),
        (("PUMP.example.com",), "name_of_other_device"),
        (("asker",), "issued"),
        (("Asker",), "issued"),
        (
            ("asker", "DNS:free.example.com", "IP:10.1.2.4", "URI:https://example.com/pump-8", "email:a@b.example.com"),
            "issued",
        ),
        (("free.example.com",), "issued"),
        (("asker", "DNS:shared.example.com"), "issued"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else None,
)
async def test_case_29_a_name_of_another_device_s_record_is_nobody_s_else(
    core: Core, installation: Installation, asked: tuple[str, ...], outcome: str
) -> None:
    await with_profile(core, **ANY_NAME)
    await core.devices.add("default", "Pump.example.com", sans=[*RECORD, "DNS:shared.example.com"], actor=ME)
    asker = await Asker.made(core)
    # As earlier versions let operators do.
    installation.sql("""UPDATE device SET names = '["DNS:shared.example.com"]' WHERE name = 'asker'""")
    assert await asker.asks(*asked) == outcome


@pytest.mark.parametrize(
    ("asked", "outcome"),
    [
        (("asker", "DNS:one.example.com"), "name_of_other_device"),
        (("one.example.com",), "name_of_other_device"),
        (("asker", "DNS:two.example.com"), "name_of_other_device"),
        (("two.example.com",), "name_of_other_device"),
        (("asker", "IP:10.1.2.3"), "name_of_other_device"),
        (("asker", "email:A@b.example.com"), "name_of_other_device"),
        (("asker", "email:a@b.example.com."), "name_of_other_device"),
        (("asker", 'email:"a"@b.example.com'), "name_of_other_device"),
        (("asker", "email:aa@b.example.com"), "issued"),
        (("asker", "URI:urn:dev:Other"), "name_of_other_device"),
        (("asker", "URI:https://example.com:443/other"), "name_of_other_device"),
        (("asker", "DNS:xn--mnchen-3ya.example.com"), "name_of_other_device"),
        (("asker", "DNS:xn--bcher-kva.example.com"), "issued"),
        (("asker", "URI:urn:dev:others"), "issued"),
        (("asker", "DNS:three.example.com"), "issued"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else None,
)
async def test_case_29_nor_is_a_name_of_another_device_s_certificate(
    core: Core, asked: tuple[str, ...], outcome: str
) -> None:
    await with_profile(core, **ANY_NAME)
    other = await Asker.made(core, "other")
    names = "DNS:two.example.com", "IP:10.1.2.3", "email:a@B.example.com", "URI:urn:dev:other"
    await other.enrolls("One.example.com", *names, "URI:https://example.com/other")
    await (await Asker.made(core, "another")).enrolls("M\u00fcnchen.example.com")
    assert await (await Asker.made(core)).asks(*asked) == outcome


UNSTRUCTURED_NAME, UNSTRUCTURED_ADDRESS = NameOID.UNSTRUCTURED_NAME, x509.ObjectIdentifier("1.2.840.113549.1.9.8")


@pytest.mark.parametrize(
    ("oid", "asked", "outcome"),
    [
        (NameOID.USER_ID, "Pump", "name_of_other_device"),
        (NameOID.USER_ID, "VPN.example.com", "name_of_other_device"),
        (NameOID.USER_ID, "carried.example.com", "name_of_other_device"),
        (NameOID.USER_ID, "pumps", "issued"),
        (NameOID.USER_ID, "Asker", "issued"),
        (NameOID.EMAIL_ADDRESS, "Root@example.com", "name_of_other_device"),
        (NameOID.EMAIL_ADDRESS, "chosen@example.com", "name_of_other_device"),
        (NameOID.EMAIL_ADDRESS, "roots@example.com", "issued"),
        (UNSTRUCTURED_NAME, "vpn.example.com", "name_of_other_device"),
        (UNSTRUCTURED_NAME, "vpns.example.com", "issued"),
        (UNSTRUCTURED_ADDRESS, "10.1.2.3", "name_of_other_device"),
        (UNSTRUCTURED_ADDRESS, "10.1.2.4", "issued"),
        (NameOID.ORGANIZATION_NAME, "pump", "issued"),
    ],
    ids=str,
)
async def test_case_29_no_attribute_that_readers_take_for_a_name_has_another_device_s(
    core: Core, oid: x509.ObjectIdentifier, asked: str, outcome: str
) -> None:
    subject = {"CN": "{device.name}", "O": "{csr:*?}", "UID": "{csr:*?}", "emailAddress": "{csr:*@example.com?}"}
    subject |= {each.dotted_string: "{csr:*?}" for each in (UNSTRUCTURED_NAME, UNSTRUCTURED_ADDRESS)}
    lint = [*ANY_NAME["lint_allow"], "pkix.subject_email_address_not_in_san"]
    await with_profile(core, **(ANY_NAME | {"subject": subject, "lint_allow": lint}))
    other = await Asker.made(core, "pump", sans=["DNS:vpn.example.com", "IP:10.1.2.3"])
    emailed = {NameOID.EMAIL_ADDRESS: "chosen@example.com"}
    await other.enrolls("pump", "DNS:carried.example.com", "email:root@example.com", subject=emailed)
    assert await (await Asker.made(core)).asks("asker", subject={oid: asked}) == outcome


@pytest.mark.parametrize("is_held", [True, False], ids=["", "twin-revoked"])
async def test_such_an_attribute_is_held_by_an_older_certificate(core: Core, is_held: bool) -> None:
    await with_profile(core, subject={"CN": "{device.name}", "UID": "{csr:*?}"})
    holder = await Asker.made(core, "holder")
    uid = {NameOID.USER_ID: "Worker-1"}
    older = await holder.enrolls("holder", subject=uid)
    newer = await holder.renews(older, "holder", subject=uid)
    await core.certificates.revoke(newer.serial, reason="superseded", actor=ME)
    if not is_held:
        await core.certificates.revoke(older.serial, reason="superseded", actor=ME)
    outcome = await (await Asker.made(core)).asks("asker", subject={NameOID.USER_ID: "worker-1"})
    assert outcome == ("name_of_other_device" if is_held else "issued")


@pytest.mark.parametrize(
    ("called", "asked", "outcome"),
    [
        ("10.0.0.9", ("asker", "IP:10.0.0.9"), "name_of_other_device"),
        ("10.0.0.9", ("::ffff:10.0.0.9",), "name_of_other_device"),
        ("10.0.0.9", ("asker", "IP:10.0.0.8"), "issued"),
        ("2001:DB8::9", ("asker", "IP:2001:db8::9"), "name_of_other_device"),
        ("2001:db8:0:0:0:0:0:9", ("asker", "IP:2001:db8::9"), "name_of_other_device"),
        ("2001:0db8:0000:0000:0000:0000:0000:0009", ("2001:db8::9",), "name_of_other_device"),
        ("2001:db8::9", ("asker", "IP:2001:db8::8"), "issued"),
        ("00:24:BE:ff:fe:80:4f:f1", ("asker", "IP:0:24:be:ff:fe:80:4f:f1"), "name_of_other_device"),
        ("urn:dev:Mac-1", ("asker", "URI:urn:dev:mac-1"), "name_of_other_device"),
        ("urn:dev:Mac-1", ("asker", "URI:urn:dev:mac-2"), "issued"),
        ("Cam-9..", ("cam-9",), "name_of_other_device"),
        ("Cam-9.example.com.", ("asker", "DNS:cam-9.example.com"), "name_of_other_device"),
        ("Cam-9.", ("cam-8",), "issued"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else None,
)
async def test_case_29_what_a_device_is_called_is_its_name_whatever_kind_of_name_that_is(
    core: Core, called: str, asked: tuple[str, ...], outcome: str
) -> None:
    await with_profile(core, **ANY_NAME)
    await core.devices.add("default", called, actor=ME)
    assert await (await Asker.made(core)).asks(*asked) == outcome


@pytest.mark.parametrize(
    ("called", "outcome"),
    [
        ("10.1.2.3", "device_name_taken"),
        ("::ffff:10.1.2.3", "device_name_taken"),
        ("fd00:0::7", "device_name_taken"),
        ("urn:DEV:pump", "device_name_taken"),
        ("PUMP..", "device_name_taken"),
        ("10.1.2.4", "issued"),
        ("fd00:0::8", "subject_names_no_device"),
        ("..", "subject_names_no_device"),
        ("fd00::8", "issued"),
        ("urn:dev:pumps", "issued"),
    ],
)
async def test_case_29_nobody_walks_in_by_another_device_s_name(core: Core, called: str, outcome: str) -> None:
    await core.devices.add("default", "pump", sans=RECORD, actor=ME)
    await admit_by(core, "open", open=True)
    assert await outcome_of(core, Evidence(), request(called)) == outcome


@pytest.mark.parametrize(
    ("glob", "asked", "outcome"),
    [
        ("*.lab.example.com", "*.lab.example.com", "csr_value_not_allowed"),
        ("*.lab.example.com", "x.bee.lab.example.com", "csr_value_not_allowed"),
        ("*.lab.example.com", "x\uff0ebee.lab.example.com", "csr_value_not_allowed"),
        ("*.lab.example.com", "\uff0a.lab.example.com", "csr_value_not_allowed"),
        ("*.lab.example.com", "x.lab.example.com", "issued"),
        ("*", "*", "csr_value_not_allowed"),
        ("*", "w*.example.com", "csr_value_not_allowed"),
        ("*", "x.lab.example.com", "issued"),
        ("*", "Pump of Acme Inc.", "issued"),
    ],
)
async def test_case_29_a_common_name_is_no_wildcard_and_its_labels_are_those_of_the_pattern(
    core: Core, glob: str, asked: str, outcome: str
) -> None:
    await with_profile(core, subject={"CN": f"{{csr:{glob}}}"})
    assert await (await Asker.made(core)).asks(asked) == outcome


@pytest.mark.parametrize("state", ["valid", "held", "renewed", "revoked", "replaced", "over"])
async def test_a_certificate_s_names_are_free_once_it_is_revoked_superseded_or_over(
    core: Core, clock: SetClock, state: str
) -> None:
    await with_profile(core, **ANY_NAME)
    await admit_by(core, "secret")
    holder, asker = await Asker.made(core, "holder"), await Asker.made(core, expires="400d")
    held = await holder.enrolls("holder", "DNS:one.example.com")
    match state:
        case "held":
            await core.certificates.revoke(held.serial, reason="certificateHold", actor=ME)
        case "renewed":
            clock.forward(days=50)
            again = request("holder", "DNS:one.example.com")
            await ask_for(core, held.evidence, again, operation=Operation.REENROLL)
            clock.forward(days=50)
        case "revoked":
            await core.certificates.revoke(held.serial, reason="superseded", actor=ME)
        case "replaced":
            await core.devices.new_board("default", "holder", actor=ME)
        case "over":
            clock.forward(days=91)
    is_free = state in ("revoked", "replaced", "over")
    assert await asker.asks("asker", "DNS:one.example.com") == ("issued" if is_free else "name_of_other_device")


async def test_a_device_keeps_its_names_through_its_renewals(core: Core, installation: Installation) -> None:
    await with_profile(core, **ANY_NAME)
    device = await (await Asker.made(core)).enrolls("asker", "DNS:one.example.com")
    for _ in range(3):
        key = new_key()
        csr = request("asker", "DNS:one.example.com", key=key)
        issued = await ask_for(core, device.evidence, csr, operation=Operation.REENROLL)
        device = Enrolled(device.name, "", key, issued.certificate, format(issued.serial, "x"))
    rows = installation.sql("SELECT name, certificate_id FROM device_name ORDER BY name")
    [newest] = installation.sql("SELECT max(id) FROM certificate WHERE kind = 'device'")
    assert rows == [("DNS:asker", None), ("DNS:one.example.com", newest[0])], "one row, of the newest"


async def test_a_template_makes_no_name_of_another_device_either(core: Core) -> None:
    await with_profile(core, names=["DNS:{device.name}.example.com"])
    await core.devices.add("default", "other", sans=["DNS:asker.example.com"], actor=ME)
    assert await (await Asker.made(core)).asks("asker") == "name_of_other_device"
    assert await (await Asker.made(core, "free")).asks("free") == "issued", "the twin"


async def test_a_successor_has_the_names_that_it_took_over(core: Core) -> None:
    await core.devices.add("default", "old", sans=["DNS:vpn.example.com"], actor=ME)
    new = await Asker.made(core, "new")
    await core.devices.replace_by("default", "old", "new", actor=ME)
    handed = await core.devices.secret("default", "new", actor=ME)
    new.evidence = Evidence(secret=handed.secret)
    assert await new.asks("new") == "issued"
    await with_profile(core, **ANY_NAME)
    assert await (await Asker.made(core)).asks("asker", "DNS:vpn.example.com") == "name_of_other_device"


async def test_the_last_of_a_row_of_devices_may_have_the_names_of_the_first(core: Core) -> None:
    """Each took over from the one before; the certificate of the first, whose key is lost, has not ended."""
    await with_profile(core, **ANY_NAME)
    first, _, last, other = [await Asker.made(core, name) for name in ("first", "second", "last", "other")]
    await first.enrolls("first", "DNS:vpn.example.com")
    await core.devices.replace_by("default", "first", "second", actor=ME)
    await core.devices.replace_by("default", "second", "last", actor=ME)
    assert (await core.devices.show("default", "first")).replaced_by == "last"
    assert await other.asks("other", "DNS:vpn.example.com") == "name_of_other_device", "the twin: no successor"
    assert await last.asks("last", "DNS:vpn.example.com") == "issued"


@pytest.mark.parametrize("is_enrolled", [True, False], ids=["carried", "twin-not-carried"])
async def test_a_name_that_was_taken_out_of_a_record_is_held_while_a_certificate_carries_it(
    core: Core, is_enrolled: bool
) -> None:
    holder = await Asker.made(core, "holder", sans=["DNS:vpn.example.com", "DNS:more.example.com"])
    if is_enrolled:
        held = await holder.enrolls("holder")
    await core.devices.change("default", "holder", Facts(names=["DNS:more.example.com"]), actor=ME)
    await with_profile(core, **ANY_NAME)
    asker = await Asker.made(core)
    outcome = await asker.asks("asker", "DNS:vpn.example.com")
    assert outcome == ("name_of_other_device" if is_enrolled else "issued")
    if is_enrolled:
        await core.certificates.revoke(held.serial, reason="superseded", actor=ME)
        assert await asker.asks("asker", "DNS:vpn.example.com") == "issued"


@pytest.mark.parametrize("state", ["retired", "taken-out", "renewed", "twin-revoked", "twin-over"])
@pytest.mark.parametrize("name", ["one.example.com", "two.example.com"], ids=["common-name", "alternative"])
async def test_names_are_held_while_any_certificate_of_the_device_carries_them(
    core: Core, clock: SetClock, state: str, name: str
) -> None:
    await with_profile(core, **ANY_NAME)
    holder, asker = await Asker.made(core, "holder"), await Asker.made(core, expires="400d")
    held = await holder.enrolls("one.example.com", "DNS:two.example.com")
    match state:
        case "retired":
            await core.devices.retire("default", "holder", actor=ME)
        case "taken-out":
            await core.devices.change("default", "holder", Facts(names=[f"DNS:{name}"]), actor=ME)
            await core.devices.change("default", "holder", Facts(names=[]), actor=ME)
        case "renewed":
            csr = request("one.example.com", "DNS:two.example.com")
            renewed = await ask_for(core, held.evidence, csr, operation=Operation.REENROLL)
            await core.certificates.revoke(format(renewed.serial, "x"), reason="superseded", actor=ME)
        case "twin-revoked":
            await core.devices.retire("default", "holder", revoke="superseded", actor=ME)
        case "twin-over":
            await core.devices.retire("default", "holder", actor=ME)
            clock.forward(days=91)
    outcome = await asker.asks("asker", f"DNS:{name}")
    assert outcome == ("issued" if state.startswith("twin") else "name_of_other_device")


# --- what the commit repeats ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("has_it", [True, False], ids=["twin-with", "without"])
@pytest.mark.parametrize("who", ["known", "newcomer"])
async def test_a_device_that_is_registered_before_the_commit_has_its_names(
    core: Core, second: Core, who: str, has_it: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    await with_profile(core, **ANY_NAME)
    asker = await Asker.made(core)
    if who == "newcomer":
        await admit_by(core, "open", open=True)
        asker.evidence = Evidence()
    monkeypatch.setattr(conditions, "_NARROWED", {})
    if not has_it:
        monkeypatch.setattr(conditions, "not_held", lambda _: literal(1) == literal(1))
    sign, meant = core.issuance.issue, iter([True])

    async def meanwhile(*args: Any) -> Any:
        if next(meant, False):
            await second.devices.add("default", "other", sans=["DNS:vpn.example.com"], actor=ME)
        return await sign(*args)

    monkeypatch.setattr(core.issuance, "issue", meanwhile)
    outcome = await asker.asks("asker" if who == "known" else "walk-in", "DNS:vpn.example.com")
    assert outcome == ("name_of_other_device" if has_it else "issued")


async def test_of_many_devices_that_choose_one_name_at_once_one_gets_it(core: Core, second: Core) -> None:
    await with_profile(core, **ANY_NAME)
    askers = [await Asker.made(node, f"d-{n}") for n, node in enumerate([core, second] * 5)]
    asking = [asker.asks(asker.name, f"DNS:d-{n}.example.com", "DNS:vpn.example.com") for n, asker in enumerate(askers)]
    outcomes = await asyncio.gather(*asking)
    assert sorted(outcomes) == ["issued"] + ["name_of_other_device"] * 9


# --- how they are kept ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("engine", ["sqlite"], indirect=True)  # whose plan tells
def test_names_are_looked_up_by_the_key_of_their_table(installation: Installation) -> None:
    for room in (1, 4, 128):
        text, constants = name_rows.holders(room).text(DIALECT)
        params = dict.fromkeys(("realm_id", "device_id", "issued_at"), 1) | {
            f"chosen_{n}": "DNS:x" for n in range(room)
        }
        with sqlite3.connect(installation.directory / "enrolld.db") as connection:
            plan = connection.execute(f"EXPLAIN QUERY PLAN {text}", {**constants, **params}).fetchall()
        told = "\n".join(row[3] for row in plan)
        assert "SEARCH device_name USING PRIMARY KEY (realm_id=? AND name=?)" in told, told
        assert "SCAN" not in told, told


@pytest.mark.parametrize("engine", ["sqlite"], indirect=True)  # whose plan tells
def test_serial_numbers_are_looked_up_by_an_index(installation: Installation) -> None:
    text, constants = names_held._BY_SERIAL.text(DIALECT)
    params = {"realm_id": 1, "device_id": 1, "as_told": "x", "folded": "x", "at": 1}
    with sqlite3.connect(installation.directory / "enrolld.db") as connection:
        plan = connection.execute(f"EXPLAIN QUERY PLAN {text}", {**constants, **params}).fetchall()
    told = "\n".join(row[3] for row in plan)
    assert "SEARCH device USING INDEX ix_device_serial_number (realm_id=? AND <expr>=?)" in told, told


@pytest.mark.parametrize("engine", ["sqlite"], indirect=True)  # those of both are kept in records/fixtures
async def test_a_store_of_an_earlier_revision_gets_the_names_that_are_there(
    core: Core, installation: Installation
) -> None:
    await with_profile(core, **ANY_NAME)
    await core.devices.add("default", "Pump-1", sans=RECORD, actor=ME)
    device = await (await Asker.made(core)).enrolls("One.example.com", "DNS:two.example.com", "IP:10.9.9.9")
    csr = request("One.example.com", "DNS:two.example.com", "IP:10.9.9.9")
    await ask_for(core, device.evidence, csr, operation=Operation.REENROLL)
    revoked = await (await Asker.made(core, "gone")).enrolls("three.example.com", "DNS:four.example.com")
    await core.certificates.revoke(revoked.serial, reason="superseded", actor=ME)
    statement = "SELECT realm_id, name, device_id, certificate_id FROM device_name ORDER BY name, device_id"
    before = [
        row for row in installation.sql(statement) if row[1] not in ("DNS:three.example.com", "DNS:four.example.com")
    ]
    assert len(before) == 3 + len(RECORD) + 3
    core.close()
    database = Path(installation.directory / "enrolld.db")
    take_back(database, "0007")
    upgrade_store(f"sqlite:///{database}")
    assert installation.sql(statement) == before
    again = installation.open()
    try:
        assert await Asker(again, "", "").asks("pump-1") == "secret_unknown"
        assert await (await Asker.made(again, "late")).asks("late", "DNS:two.example.com") == "name_of_other_device"
    finally:
        again.close()
