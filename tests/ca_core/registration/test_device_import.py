"""Import of a list of devices: whole, or every fault of it and nothing."""

import asyncio
import hashlib
import io
import os
from typing import Any

import pytest

from ca_core.core import Core
from ca_core.errors import CoreError, OperatorError, Unavailable
from ca_core.model import Evidence
from ca_core.registration import allow_list
from ca_core.registration.device_import import ImportRefused
from ca_core.rows import HandedSecret, Import
from tests.helpers import factory
from tests.helpers.admission import admit_by, outcome_of
from tests.helpers.core import ME, Installation, ask, code_of, csr_of, edit_realm, enrolled, new_key

LONG = os.environ.get("ENROLLD_LONG") == "1"
HEADER = "name,serial_number,manufacturer,profile,owner,san,expires"


class Keeper:
    """Keeps secrets in memory, and what was done with them in order."""

    name = "memory"

    def __init__(self, fails_at: str = "") -> None:
        self.secrets: dict[str, HandedSecret] = {}
        self.acts: list[str] = []
        self._fails_at = fails_at

    def keep(self, handed: HandedSecret) -> None:
        self.secrets[handed.device] = handed
        if self._fails_at == "keep":
            raise OSError("no space left on device")

    def seal(self) -> None:
        self.acts.append("sealed")
        if self._fails_at == "seal":
            raise OSError("no space left on device")

    def discard(self) -> None:
        self.acts.append("discarded")


@pytest.fixture
async def acme(core: Core) -> Core:
    await core.trust.add("default", factory.root().pem, name="acme", actor=ME)
    return core


def text_of(*lines: str, header: str = HEADER) -> bytes:
    return "\n".join((header, *lines, "")).encode()


async def run(core: Core, data: bytes, keeper: Keeper | None = None, **options: Any) -> Import:
    return await core.device_import.run("default", io.BytesIO(data), "list.csv", keeper=keeper, actor=ME, **options)


async def refused(core: Core, data: bytes, **options: Any) -> list[tuple[int, str | None, str]]:
    with pytest.raises(ImportRefused) as caught:
        await run(core, data, **options)
    for fault in caught.value.faults:
        assert fault.message.isprintable()
        assert fault.remedy.isprintable()
        assert fault.remedy
    return [(fault.line, fault.column, fault.code) for fault in caught.value.faults]


def nothing_happened(installation: Installation, devices: int = 0) -> None:
    assert installation.sql("SELECT count(*) FROM device") == [(devices,)]
    assert installation.sql("SELECT count(*) FROM device_import") == [(0,)]
    assert installation.sql("SELECT count(*) FROM device_import_row") == [(0,)]
    assert installation.events("device.imported") == []


async def test_a_list_is_imported_with_all_that_it_says(acme: Core, installation: Installation) -> None:
    data = text_of(
        'AA:BB,AC-1,acme,scep,"line 7, left",IP:192.0.2.1 dns:Sensor.Example;DNS:sensor.example,1h',
        "",
        "plain,,,,,,",
        "second,AC-2,,,,,",
    )
    done = await run(acme, data)
    assert (done.devices, done.secrets, done.planned) == (3, None, False)
    assert done.sha256 == hashlib.sha256(data).hexdigest()
    row = await acme.devices.show("default", "AA:BB")
    assert row.names == ["DNS:sensor.example", "IP:192.0.2.1"]
    assert (row.serial_number, row.manufacturer, row.owner, row.profile) == ("AC-1", "acme", "line 7, left", "scep")
    assert (row.state, row.created_at) == ("expected", "2026-11-22T12:00:00Z")
    assert (await acme.devices.show("default", "second")).manufacturer == "acme"
    assert installation.sql("SELECT count(*) FROM device_secret") == [(0,)]
    assert installation.sql("SELECT count(*) FROM device_import_row") == [(0,)]
    (event,) = installation.events("device.imported")
    assert event | {"batch": ""} == {
        "batch": "",
        "devices": 3,
        "file": "list.csv",
        "secrets": False,
        "sha256": done.sha256,
    }
    (act,) = await acme.devices.history("default", "plain")
    assert (act.act, act.actor, act.details) == ("device.imported", ME, {"file_sha256": done.sha256})
    assert (await acme.audit.verify()).findings == []


async def test_an_imported_device_enrolls_with_its_secret(core: Core, installation: Installation) -> None:
    keeper = Keeper()
    await run(core, text_of("one", "two", header="name"), keeper)
    assert set(keeper.secrets) == {"one", "two"}
    assert keeper.acts == ["sealed"]
    assert keeper.secrets["one"].expires == "2026-11-29T12:00:00Z"
    secret = Evidence(secret=keeper.secrets["one"].secret)
    await ask(core, secret, csr_of(new_key(), "one"))
    assert await code_of(core, Evidence(secret=keeper.secrets["two"].secret), csr_of(new_key(), "one")) != "issued"
    assert keeper.secrets["two"].secret.encode() not in installation.dump()
    assert "secret" not in repr(keeper.secrets["two"]).lower().replace("handedsecret", "")


@pytest.mark.parametrize(
    "data",
    [
        pytest.param(b"name,owner\r\na,x\r\nb,y\r\n", id="crlf"),
        pytest.param(b"\xef\xbb\xbfname,owner\na,x\nb,y", id="byte-order-mark-and-no-last-end-of-line"),
        pytest.param(b'\xef\xbb\xbf"name","owner"\n"a","x"\n"b","y"\n', id="all-quoted"),
        pytest.param(b"owner,name\nx,a\ny,b\n", id="another-order"),
        pytest.param(b" name , owner \n a , x \n b,y\n", id="spaces"),
        pytest.param(b"name,owner\n\na,x\n\n\nb,y\n\n", id="empty-lines"),
    ],
)
async def test_csv_is_read_as_spreadsheets_and_scripts_write_it(core: Core, data: bytes) -> None:
    assert (await run(core, data)).devices == 2
    assert [(row.device, row.owner) for row in await core.devices.list(limit=9)] == [("a", "x"), ("b", "y")]


FAULTS: dict[str, tuple[bytes, list[tuple[int, str | None, str]]]] = {
    "empty": (b"", [(1, None, "import_empty")]),
    "no-name-column": (b"owner\nx\n", [(1, None, "import_column_missing")]),
    "unknown-column": (b"name,serial\na,1\n", [(1, "serial", "import_column_unknown")]),
    "column-twice": (b"name,owner,name\na,b,c\n", [(1, "name", "import_column_twice")]),
    "semicolons": (b"name;owner\na;b\n", [(1, None, "import_separator")]),
    "tabs": (b"name\towner\na\tb\n", [(1, None, "import_separator")]),
    "utf-16": ("\ufeffname\na\n".encode("utf-16-le"), [(1, None, "import_encoding")]),
    "no-utf-8": (b"name,owner\na,M\xfcller\nb,x\n", [(2, "owner", "import_unprintable")]),
    "no-name": (b"name,owner\n,x\n", [(2, "name", "name_missing")]),
    "name": (b"name\na b\n", [(2, "name", "name_invalid")]),
    "name-too-long": (b"name\n" + b"a" * 65 + b"\n", [(2, "name", "name_invalid")]),
    "nul": (b"name\na\x00\n", [(2, "name", "import_unprintable")]),
    "profile": (b"name,profile\na,gold\n", [(2, "profile", "profile_unknown")]),
    "san": (b"name,san\na,DNS:x.example email:a@b\n", [(2, "san", "san_invalid")]),
    "expires": (b"name,expires\na,soon\n", [(2, "expires", "time_invalid")]),
    "expired": (b"name,expires\na,2020-01-01T00:00:00Z\n", [(2, "expires", "time_past")]),
    "serial-number": (b"name,serial_number\na," + b"x" * 65 + b"\n", [(2, "serial_number", "identity_invalid")]),
    "manufacturer": (b"name,serial_number,manufacturer\na,1,globex\n", [(2, "manufacturer", "manufacturer_unknown")]),
    "manufacturer-alone": (b"name,manufacturer\na,acme\n", [(2, "serial_number", "identity_incomplete")]),
    "many-sans": (
        b"name,san\na,DNS:a.example\nb," + b" ".join(b"DNS:n%d.example" % number for number in range(101)) + b"\n",
        [(3, "san", "too_many_names")],
    ),
    "owner": (b"name,owner\na," + b"x" * 257 + b"\n", [(2, "owner", "owner_invalid")]),
    "too-few-cells": (b"name,owner\na\nb,x\n", [(2, None, "import_cells")]),
    "too-many-cells": (b"name\na,b\n", [(2, None, "import_cells")]),
    "line-too-long": (
        b"name,owner\na," + b"x" * 40_000 + b"\nb c,x\n",
        [(2, None, "import_line_too_long"), (3, "name", "name_invalid")],
    ),
    "quote-open": (b'name,owner\na,"x\n' + b"b,y\n" * 50, [(2, None, "import_quote_open")]),
    "quote-open-at-the-end": (b'name,owner\na,"x\nb,y\n', [(2, None, "import_not_csv")]),
    "quote-inside": (b'name,owner\na,"x"y\nb c,z\n', [(2, None, "import_not_csv"), (3, "name", "name_invalid")]),
    "carriage-returns": (b"name,owner\ra,x\rb,y\r", [(1, None, "import_not_csv")]),
    "newline-in-a-cell": (b'name,owner\na,"x\ny"\n', [(2, "owner", "import_unprintable")]),
    "several-in-a-line": (
        b"name,profile,san\na b,gold,x\n",
        [(2, "name", "name_invalid"), (2, "profile", "profile_unknown"), (2, "san", "san_invalid")],
    ),
    "name-twice": (b"name\na\nb\na\n", [(4, "name", "device_exists")]),
    "identity-twice": (b"name,serial_number\na,1\nb,1\n", [(3, "serial_number", "identity_taken")]),
    "name-taken": (b"name\nb\nthere\n", [(3, "name", "device_exists")]),
    "identity-taken": (b"name,serial_number\na,AC-9\n", [(2, "serial_number", "identity_taken")]),
    "three-in-one-file": (
        b"name,serial_number\nthere,1\nb c,2\nd,3\ne,AC-9\n",
        [(2, "name", "device_exists"), (3, "name", "name_invalid"), (5, "serial_number", "identity_taken")],
    ),
}


@pytest.mark.parametrize("case", FAULTS)
async def test_every_fault_is_named_and_nothing_is_imported(acme: Core, installation: Installation, case: str) -> None:
    await acme.devices.add("default", "there", serial_number="AC-9", actor=ME)
    data, faults = FAULTS[case]
    keeper = Keeper()
    assert await refused(acme, data, keeper=keeper) == faults
    assert (keeper.secrets, keeper.acts) == ({}, [])
    nothing_happened(installation, devices=1)


async def test_an_unknown_column_names_the_nearest(core: Core) -> None:
    with pytest.raises(ImportRefused) as caught:
        await run(core, b"Name,serialnumber,colour\na,1,red\n")
    assert [fault.remedy for fault in caught.value.faults] == [
        "did you mean 'name'?",
        "did you mean 'serial_number'?",
        f"there are: {HEADER.replace(',', ', ')}",
        f"begin with a header such as: {HEADER}",
    ]


async def test_the_same_names_are_others_in_another_realm(core: Core) -> None:
    await core.devices.add("other", "a", actor=ME)
    assert (await run(core, b"name\na\n")).devices == 1


async def test_a_header_alone_is_no_list(core: Core, installation: Installation) -> None:
    with pytest.raises(OperatorError) as caught:
        await run(core, b"name,owner\n")
    assert caught.value.code == "import_empty"
    nothing_happened(installation)


async def test_a_list_that_is_too_long_is_refused_after_as_many_lines(
    core: Core, installation: Installation, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(allow_list, "MOST_RECORDS", 150)
    lines = [f"d-{i}" for i in range(151)]
    assert await refused(core, text_of(*lines, header="name")) == [(152, None, "import_too_large")]
    nothing_happened(installation)
    wrong = await refused(core, text_of(*["a,b"] * 200, header="name"))
    assert len(wrong) == 151
    assert wrong[-1] == (152, None, "import_too_large")
    assert (await run(core, text_of(*lines[:150], header="name"))).devices == 150


async def test_a_plan_writes_nothing_and_finds_the_same_faults(core: Core, installation: Installation) -> None:
    done = await run(core, b"name\na\n", plan=True)
    assert (done.devices, done.planned) == (1, True)
    nothing_happened(installation)
    assert await refused(core, b"name\na b\n", plan=True) == [(2, "name", "name_invalid")]


async def test_progress_is_told_in_bytes_of_two_readings(core: Core) -> None:
    told: list[int] = []
    data = text_of("a", "b", header="name")
    await run(core, data, advance=told.append)
    assert sum(told) == 2 * len(data)


# --- what happens meanwhile ------------------------------------------------------------------------------------------


class Changing(io.BytesIO):
    """A file that somebody writes while it is read: another one the second time."""

    def seek(self, offset: int, whence: int = 0) -> int:
        if offset == 0 and whence == 0:
            self.getbuffer()[-2:-1] = b"x"
        return super().seek(offset, whence)


async def test_a_file_that_changes_while_it_is_read_is_refused(core: Core, installation: Installation) -> None:
    keeper = Keeper()
    with pytest.raises(OperatorError) as caught:
        await core.device_import.run("default", Changing(b"name\na\nb\n"), "f", keeper=keeper, actor=ME)
    assert caught.value.code == "import_changed"
    assert keeper.acts == ["discarded"]
    nothing_happened(installation)


async def test_what_was_staged_of_a_long_list_is_taken_out_again(core: Core, installation: Installation) -> None:
    class Full(Keeper):
        def keep(self, handed: HandedSecret) -> None:
            if handed.device == "d-5500":
                raise OSError("no space left on device")

    with pytest.raises(OSError, match="no space"):
        await run(core, text_of(*(f"d-{i}" for i in range(6000)), header="name"), Full())
    nothing_happened(installation)


async def test_an_operator_who_loses_patience_at_the_last_moment_has_it_whole(core: Core) -> None:
    keeper = Keeper()
    importing = asyncio.create_task(run(core, b"name\na\n", keeper))
    while not keeper.acts:  # noqa: ASYNC110  # until the very step
        await asyncio.sleep(0)
    importing.cancel()
    assert (await importing).devices == 1
    assert (await core.devices.show("default", "a")).state == "expected"
    assert keeper.acts == ["sealed"]


class Meddling(Keeper):
    """Whose last moment before the commit somebody uses."""

    def __init__(self, installation: Installation, *statement: str) -> None:
        super().__init__()
        self._installation = installation
        self._statement = statement

    def seal(self) -> None:
        super().seal()
        for statement in self._statement:
            self._installation.sql(statement)


async def test_case_29_no_line_has_a_name_of_another_device_or_line_or_of_this_server(
    core: Core, installation: Installation
) -> None:
    await core.server_certificates.ensure(["pki.example.com"])
    await core.devices.add("default", "one", sans=["DNS:x1.example", "IP:10.0.0.9", "URI:urn:dev:Bee"], actor=ME)
    lines = (
        "a,DNS:X1.example",
        "10.0.0.9,",
        "c,DNS:free.example URI:URN:dev:%62ee",
        "ONE,",
        "e,DNS:free.example.",
        "F,",
        "f,",
        "g,DNS:Pki.example.com",
        "one,DNS:x1.example",
        "h,DNS:i.example IP:10.0.0.8",
        "10.0.0.7,",
        "k,IP:10.0.0.7",
        "l,URI:https://free.example:443",
        "m,URI:https://FREE.example/",
        "n,IP:fd00::8",
        "fd00::8,",
    )
    assert await refused(core, text_of(*lines, header="name,san")) == [
        (2, "san", "name_of_other_device"),
        (3, "name", "name_of_other_device"),
        (4, "san", "name_of_other_device"),
        (5, "name", "name_of_other_device"),
        (6, "san", "name_of_other_device"),
        (8, "name", "name_of_other_device"),
        (9, "san", "name_of_server"),
        (10, "san", "name_of_other_device"),
        (10, "name", "name_of_other_device"),
        (10, "name", "device_exists"),
        (13, "san", "name_of_other_device"),
        (15, "san", "name_of_other_device"),
        (17, "name", "name_of_other_device"),
    ]
    nothing_happened(installation, devices=1)
    free = ["d,DNS:free.example", *lines[-7::2]]
    assert (await run(core, text_of(*free, header="name,san"))).devices == 5, "the twin"


@pytest.mark.parametrize(
    ("line", "column", "code"),
    [
        ("2001:db8:0::9,", "name", "name_invalid"),
        ("..,", "name", "name_invalid"),
        ("a,URI:https://[2001:db8:0::1]/x", "san", "san_invalid"),
    ],
)
async def test_a_name_in_a_spelling_that_is_not_looked_up_is_a_fault(
    core: Core, line: str, column: str, code: str
) -> None:
    assert await refused(core, text_of(line, header="name,san")) == [(2, column, code)]
    free = text_of("2001:db8::9,", "a.b,URI:https://[2001:db8::1]/x", header="name,san")
    assert (await run(core, free)).devices == 2, "the twin"


ADD = (
    "INSERT INTO device (realm_id, name, state, names, created_at, manufacturer, serial_number)"
    " SELECT id, '{}', 'expected', '[]', 0, {} FROM realm WHERE name = 'default'"
)
MEANWHILE = {
    "name": (ADD.format("b", "NULL, NULL"), "import_overtaken", 1),
    "identity": (ADD.format("x", "'acme', '2'"), "import_overtaken", 1),
    "name-of-a-record": (
        ADD.format("x", "NULL, NULL").replace("'[]'", """'["DNS:b"]'"""),
        "import_overtaken",
        1,
    ),
    "realm": ("UPDATE realm SET state = 'retired' WHERE name = 'default'", "realm_changed", 0),
}


@pytest.mark.parametrize("case", MEANWHILE)
async def test_what_changed_before_the_commit_undoes_all_of_it(
    acme: Core, installation: Installation, case: str
) -> None:
    statement, code, devices = MEANWHILE[case]
    keeper = Meddling(installation, statement)
    with pytest.raises(OperatorError) as caught:
        await run(acme, b"name,serial_number\na,1\nb,2\nc,3\n", keeper)
    assert caught.value.code == code
    assert keeper.acts == ["sealed", "discarded"]
    nothing_happened(installation, devices)
    if devices:
        installation.sql("DELETE FROM device_name")
        installation.sql("DELETE FROM device")
        assert (await run(acme, b"name,serial_number\na,1\nb,2\nc,3\n")).devices == 3


@pytest.mark.parametrize("table", ["device_import_row", "device", "device_secret", "audit"])
async def test_a_store_that_refuses_a_row_imports_nothing(core: Core, installation: Installation, table: str) -> None:
    await core.devices.add("default", "before", actor=ME)
    installation.refuse("INSERT", table, "no more of these")
    keeper = Keeper()
    with pytest.raises(CoreError):
        await run(core, text_of(*(f"d-{i}" for i in range(120)), header="name"), keeper)
    assert keeper.acts[-1] == "discarded"
    installation.allow(table)
    nothing_happened(installation, devices=1)
    await run(core, text_of(*(f"d-{i}" for i in range(120)), header="name"), keeper)


@pytest.mark.parametrize("moment", ["keep", "seal"])
async def test_without_a_place_for_the_secrets_nothing_is_imported(
    core: Core, installation: Installation, moment: str
) -> None:
    keeper = Keeper(fails_at=moment)
    with pytest.raises(OSError, match="no space"):
        await run(core, b"name\na\n", keeper)
    assert keeper.acts[-1] == "discarded"
    nothing_happened(installation)


async def test_the_secrets_are_safe_before_the_commit_begins(installation: Installation) -> None:
    steps: list[str] = []

    class Ordered(Keeper):
        def seal(self) -> None:
            steps.append("sealed")

    core = installation.open(hook=steps.append)
    try:
        await run(core, text_of(*(f"d-{i}" for i in range(2100)), header="name"), Ordered())
    finally:
        core.close()
    # Three transactions of rows, then the one that counts, then those that clear the side table.
    assert steps[: steps.index("sealed")].count("durable") == 3
    assert steps[steps.index("sealed") :].count("durable") == 3


async def test_an_answer_that_got_lost_is_looked_up(core: Core, monkeypatch: pytest.MonkeyPatch) -> None:
    real = core.store.commit
    lost: list[str] = []

    async def commit(unit: Any) -> int:
        done = await real(unit)
        if any(event.action == "device.imported" for event in unit.events):
            lost.append("answer")
            raise Unavailable("nobody knows")
        return done

    monkeypatch.setattr(core.store, "commit", commit)
    keeper = Keeper()
    assert (await run(core, b"name\na\n", keeper)).devices == 1
    assert (lost, keeper.acts) == (["answer"], ["sealed"])
    assert (await core.devices.show("default", "a")).state == "expected"


async def test_secrets_are_kept_while_nobody_knows(core: Core, monkeypatch: pytest.MonkeyPatch) -> None:
    real = core.store.commit
    is_down: list[bool] = []

    async def commit(unit: Any) -> int:
        if is_down or any(event.action == "device.imported" for event in unit.events):
            is_down.append(True)
            raise Unavailable("the database is gone")
        return await real(unit)

    monkeypatch.setattr(core.store, "commit", commit)
    keeper = Keeper()
    with pytest.raises(OperatorError) as caught:
        await run(core, b"name\na\n", keeper)
    assert caught.value.code == "import_unsure"
    assert keeper.acts == ["sealed"]


async def test_rows_that_a_crash_left_are_taken_out_a_day_later(core: Core, installation: Installation) -> None:
    left = "INSERT INTO device_import_row (batch, number, staged_at, name, names) VALUES ('crashed', 2, ?, 'x', '[]')"
    installation.sql(left, 1_700_000_000_000)
    await run(core, b"name\na\n")
    assert installation.sql("SELECT count(*) FROM device_import_row") == [(0,)]


# --- many ------------------------------------------------------------------------------------------------------------


def many(count: int) -> bytes:
    lines = [f"router-{i:06},AC-{i},,,branch {i % 100},DNS:r{i}.example.com," for i in range(count)]
    return "\r\n".join((HEADER, *lines)).encode()


async def enroll_beside(core: Core, stop: asyncio.Event) -> int:
    """Renew a certificate again and again; how often that went."""
    device = await enrolled(core, "beside")
    renewed = 0
    while not stop.is_set():
        await ask(core, device.evidence, csr_of(new_key(), "beside"))
        renewed += 1
        await asyncio.sleep(0.01)
    return renewed


async def test_many_are_imported_while_others_enroll(acme: Core, second: Core, installation: Installation) -> None:
    count = 100_000 if LONG else 5_000
    second.rates = type(second.rates)(None)
    stop = asyncio.Event()
    beside = asyncio.create_task(enroll_beside(second, stop))
    keeper = Keeper()
    done = await run(acme, many(count), keeper)
    stop.set()
    assert await beside > 3
    assert (done.devices, len(keeper.secrets)) == (count, count)
    assert installation.sql("SELECT count(*) FROM device WHERE state = 'expected'") == [(count,)]
    assert installation.sql("SELECT count(*) FROM device_secret") == [(count + 1,)]
    assert installation.sql("SELECT count(*) FROM device_import_row") == [(0,)]
    realms = {row.realm: row for row in (await acme.status()).realms}
    assert realms["default"].devices == {"expected": count, "active": 1}
    secrets = (await acme.figures()).secrets
    assert (secrets["default", "open"], secrets["default", "spent"]) == (count, 1)
    last = f"router-{count - 1:06}"
    assert await code_of(acme, Evidence(secret=keeper.secrets[last].secret), csr_of(new_key(), last)) == "issued"


async def test_one_fault_among_many_changes_nothing(acme: Core, installation: Installation) -> None:
    lines = many(5_000).decode().splitlines()
    for number in (17, 2_500, 5_000):
        lines[number] = lines[number].replace("router-", "router ")
    faults = await refused(acme, "\n".join(lines).encode(), keeper=Keeper())
    assert faults == [(number + 1, "name", "name_invalid") for number in (17, 2_500, 5_000)]
    nothing_happened(installation)


async def test_an_import_beside_a_realm_that_changes_is_done_or_says_so(core: Core, second: Core) -> None:
    async def change() -> None:
        await edit_realm(second, "default", 'retry_window = "24h"', 'retry_window = "1h"')

    imported, _ = await asyncio.gather(
        run(core, text_of(*(f"d-{i}" for i in range(1500)), header="name")), change(), return_exceptions=True
    )
    listed = await core.devices.list("default", limit=2000)
    if isinstance(imported, Import):
        assert len(listed) == 1500
    else:
        assert isinstance(imported, OperatorError)
        assert imported.code == "realm_changed"
        assert listed == []


async def test_an_import_ends_what_strangers_asked_in_its_names_and_nothing_else(core: Core) -> None:
    await admit_by(core, "approval")
    await admit_by(core, "approval", realm="other")
    for name in ("gate-1", "gate-2"):
        assert await outcome_of(core, Evidence(), csr_of(new_key(), name)) == "pending"
    assert await outcome_of(core, Evidence(), csr_of(new_key(), "gate-1"), label="other") == "pending"
    await run(core, b"name\ngate-1\ngate-3\n")
    rows = {(row.realm, row.device): row.state for row in await core.requests.list(limit=9)}
    assert rows == {
        ("default", "gate-1"): "expired",
        ("default", "gate-2"): "pending",
        ("other", "gate-1"): "pending",
    }
