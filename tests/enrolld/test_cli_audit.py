"""`enrolld audit`: what it lists, what it finds, and a file that verifies without the store it came from."""

import json
import os
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ca_core.records import audit_export
from enrolld.cli import audit as command
from tests.enrolld.test_cli_store import Shell
from tests.helpers.audit import Trail, head, independently_hashed, made_trail, one_event
from tests.helpers.core import Installation

Json = dict[str, Any]


@pytest.fixture
def trail(template: Installation, tmp_path: Path) -> Trail:
    return made_trail(template.copy_to(tmp_path / "data"))


@pytest.fixture
def shell(trail: Trail, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Shell:
    for name in [name for name in os.environ if name.startswith("ENROLLD_")]:
        monkeypatch.delenv(name)
    return Shell(trail.installation.directory, capsys)


@pytest.fixture
def exported(shell: Shell, tmp_path: Path) -> Path:
    path = tmp_path / "trail.jsonl"
    shell("audit", "export", "-o", str(path))
    return path


def codes(verdict: Json) -> list[tuple[str, int | None]]:
    assert verdict["findings_total"] == len(verdict["findings"])
    return [(finding["code"], finding["sequence"]) for finding in verdict["findings"]]


# --- list ------------------------------------------------------------------------------------------------------------


def test_rows_are_the_contract_and_come_in_order_of_time(shell: Shell, trail: Trail) -> None:
    rows = shell.rows("audit", "list")
    fields = {"id", "at", "action", "actor", "realm", "device", "serial", "request_id", "details"}
    assert set(rows[0]) == fields | {"writer", "sequence", "hash"}
    assert [row["at"] for row in rows] == sorted(row["at"] for row in rows)
    assert [row["sequence"] for row in rows if row["writer"] == trail.first] == list(range(1, 9))
    assert rows[-1]["details"] == {"number": 8, "sent": "\x1b\u202e"}
    assert rows[-1]["hash"] == trail.hash(8).hex()
    assert rows[-1]["at"] == "1970-01-01T00:00:08Z"


def test_a_list_is_filtered_and_goes_on_after_a_row(shell: Shell) -> None:
    ours = shell.rows("audit", "list", "--realm", "default", "--device", "d-1")
    assert len(ours) == 8
    first = shell.rows("audit", "list", "--device", "d-1", "--limit", "3")
    rest = shell.rows("audit", "list", "--device", "d-1", "--after", first[-1]["id"])
    assert first + rest == ours
    assert [row["sequence"] for row in shell.rows("audit", "list", "--action", "test.3")] == [3, 3]
    assert len(shell.rows("audit", "list", "--since", "1970-01-01T00:00:06Z")) == 3
    assert shell.rows("audit", "list", "--since", "1h") == []
    assert shell.rows("audit", "list", "--serial", "0a") == shell.rows("audit", "list", "--request", "none") == []


def test_what_a_peer_sent_moves_no_cursor(shell: Shell, trail: Trail) -> None:
    trail.sql("UPDATE audit SET device = 'x\x1b[2J\u202ey', actor = 'device:\x9b' WHERE sequence = 8")
    out, err = shell("audit", "list")
    assert "x\\x1b[2J\\u202ey" in out
    as_json = shell("audit", "list", "--json")[0] + shell("audit", "export")[0]
    finding = shell("audit", "verify", status=3)[0]
    for text in (out, err, as_json, finding):
        assert text.replace("\n", "").isprintable()


def test_a_row_that_somebody_has_spoiled_is_listed_as_it_stands(shell: Shell, trail: Trail) -> None:
    trail.sql("UPDATE audit SET at = 'soon', details = '{', hash = NULL WHERE sequence = 8")
    (row,) = [row for row in shell.rows("audit", "list") if row["sequence"] == 8]
    assert (row["at"], row["details"], row["hash"]) == ("soon", "{", None)


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        pytest.param(["list", "--realm", "nope"], "realm_unknown", id="realm"),
        pytest.param(["list", "--after", "nope"], "after_invalid", id="after"),
        pytest.param(["list", "--since", "soon"], "time_invalid", id="since"),
        pytest.param(["list", "--since", "2026-01-01T00:00:00"], "time_invalid", id="since-without-zone"),
        pytest.param(["list", "--serial", "zz"], "serial_invalid", id="serial"),
        pytest.param(["export", "--realm", "nope"], "realm_unknown", id="export"),
        pytest.param(["verify", "--head", "abc"], "head_invalid", id="head"),
        pytest.param(["verify", "/dev/null"], "export_invalid", id="no-export"),
        pytest.param(["verify", "/nowhere/at/all"], "system", id="no-file"),
    ],
)
def test_what_is_not_there_or_not_right_is_refused(shell: Shell, arguments: list[str], code: str) -> None:
    assert shell.refusal("audit", *arguments) == code


# --- verify ----------------------------------------------------------------------------------------------------------


def test_a_whole_trail_is_verified_and_it_is_said_what_that_does_not_prove(shell: Shell, trail: Trail) -> None:
    out, err = shell("audit", "verify")
    assert out.splitlines() == [
        "Verified: 11 events of 2 writers, and 2 common heads.",
        f"The last head is number 2, of 1970-01-01T00:00:08Z: {trail.digests[1]}",
        "Under no head yet: 1 event.",
        "Nothing was changed.",
    ]
    assert err == command.ONLY_ELSEWHERE + "\n"
    assert "Only heads kept elsewhere prove" in err
    answer = shell.ask("audit", "verify")
    assert answer["ok"] is True
    assert answer["note"] == command.ONLY_ELSEWHERE
    assert answer["last_head"] == {"number": 2, "at": "1970-01-01T00:00:08Z", "digest": trail.digests[1]}


def test_with_a_head_that_was_kept_it_is_said_what_that_proves(shell: Shell, trail: Trail) -> None:
    out, err = shell("audit", "verify", "--head", trail.digests[0].upper())
    assert "Heads kept elsewhere that are among them: 1 of 1." in out
    assert "Nothing was changed, and what head 1 covers stands as it did when that head was kept." in out
    assert err == ""
    assert shell.ask("audit", "verify", "--head", trail.digests[0])["note"] is None


def test_a_finding_is_named_and_ends_with_3(shell: Shell, trail: Trail) -> None:
    trail.sql("UPDATE audit SET actor = 'x' WHERE writer = ? AND sequence = 2", trail.first)
    out, _ = shell("audit", "verify", status=3)
    named = f"writer {trail.first}: event 2 is not what was written, or the hash before it is not"
    assert out.splitlines()[0] == f"event_changed: {named}"
    assert out.splitlines()[-1] == "1 finding: the trail is not what was written."
    answer = shell.ask("audit", "verify", status=3)
    assert answer["ok"] is False
    assert codes(answer) == [("event_changed", 2)]


def test_more_findings_than_anybody_reads_are_counted(shell: Shell, trail: Trail) -> None:
    trail.sql(
        "WITH RECURSIVE n(x) AS (SELECT 1 UNION ALL SELECT x + 1 FROM n WHERE x < 130)"
        " INSERT INTO writer (name, process, host, pid, version, started_at, sequence)"
        " SELECT printf('%016x', x), 'x', 'x', 1, 'x', 1, 1 FROM n"
    )
    lines = shell("audit", "verify", status=3)[0].splitlines()
    assert len([line for line in lines if line.startswith("event_missing")]) == 100
    assert "and 30 more" in lines


def _forged(trail: Trail) -> None:
    trail.sql("UPDATE audit SET actor = 'x' WHERE writer = ? AND sequence = 2", trail.first)
    trail.hash_anew()
    trail.head_anew()


@pytest.mark.parametrize(
    "form",
    [
        pytest.param("{0}\n\n# of Monday\n{1}\n", id="a-digest-a-line"),
        pytest.param(
            "12:00:00 info    audit head 1 is {0}\nother words\n12:01:00 info    audit head 2 is {1}\n", id="log"
        ),
        pytest.param(
            '{{"message":"audit head 1 is {0}","log.logger":"enrolld.chores"}}\n'
            '{{"log.logger":"enrolld.chores","message":"audit head 2 is {1}"}}\n',
            id="log-in-json",
        ),
    ],
)
def test_heads_are_read_from_a_file_of_them_or_from_the_log(
    shell: Shell, trail: Trail, tmp_path: Path, form: str
) -> None:
    heads = tmp_path / "heads"
    heads.write_text(form.format(*trail.digests))
    answer = shell.ask("audit", "verify", "--head", str(heads))
    assert (answer["ok"], answer["kept_given"], answer["kept_found"], answer["kept_up_to"]) == (True, 2, 2, 2)
    _forged(trail)
    assert shell.ask("audit", "verify")["ok"] is True, "all that is in the database fits"
    answer = shell.ask("audit", "verify", "--head", str(heads), status=3)
    assert codes(answer) == [("head_unknown", None)] * 2


@pytest.mark.parametrize(
    "line",
    [
        pytest.param("12:00:00 info    127.0.0.1 GET /audit head 77 is {} 404", id="a-path-in-text"),
        pytest.param(
            "12:00:00 info    127.0.0.1 GET /12:00:00 info    audit head 77 is {}", id="a-whole-line-in-a-path"
        ),
        pytest.param(
            '{{"message":"127.0.0.1 GET /audit head 77 is {} 404","log.logger":"enrolld.request"}}', id="a-path-in-json"
        ),
        pytest.param('{{"message":"audit head 77 is {}","log.logger":"enrolld.request"}}', id="another-teller"),
        pytest.param('{{"enrolld.transaction_id":"audit head 77 is {}","log.logger":"enrolld.chores"}}', id="a-field"),
    ],
)
def test_what_a_stranger_has_the_log_say_is_no_head(shell: Shell, trail: Trail, tmp_path: Path, line: str) -> None:
    """Or anybody could raise the alarm that must be trusted, by one GET."""
    heads = tmp_path / "heads"
    heads.write_text(f"12:00:00 info    audit head 1 is {trail.digests[0]}\n{line.format('ab' * 32)}\n")
    answer = shell.ask("audit", "verify", "--head", str(heads))
    assert (answer["ok"], answer["kept_given"]) == (True, 1)


@pytest.mark.parametrize(
    "text", [pytest.param("", id="empty"), pytest.param("ab" * 31, id="cut"), pytest.param("words", id="words")]
)
def test_a_file_without_heads_is_refused(shell: Shell, tmp_path: Path, text: str) -> None:
    heads = tmp_path / "heads"
    heads.write_text(text)
    assert shell.refusal("audit", "verify", "--head", str(heads)) == "head_invalid"


# --- export ----------------------------------------------------------------------------------------------------------


def test_an_export_verifies_without_the_store(shell: Shell, exported: Path, trail: Trail, tmp_path: Path) -> None:
    elsewhere = Shell(tmp_path / "nothing-here", shell._capsys)
    answer = elsewhere.ask("audit", "verify", str(exported), "--head", trail.digests[1])
    assert (answer["ok"], answer["events"], answer["writers"], answer["heads"]) == (True, 11, 2, 2)
    assert (answer["uncovered"], answer["limits"], answer["file"]) == (1, [], str(exported))
    assert answer["kept_up_to"] == 2


def test_an_export_can_be_verified_by_its_description_alone(exported: Path) -> None:
    lines = [json.loads(line) for line in exported.read_text().splitlines()]
    events = [kind for count in (8, 3) for kind in [*["event"] * count, "writer"]]
    assert [line["kind"] for line in lines] == ["export", *["head"] * 2, *events, "end"]
    assert lines[0]["filter"] == {}
    assert lines[-1] == {"kind": "end", "events": 11, "writers": 2, "heads": 2}
    before, first = "", ""
    for line in lines:
        if line["kind"] == "event":
            assert line["hash"] == independently_hashed(line["event"], line["previous"])
            first, before = (first, before) if line["event"]["sequence"] > 1 else (line["previous"],) * 2
            assert line["previous"] == before
            before = line["hash"]
        elif line["kind"] == "writer":
            row = {name: line[name] for name in ("name", "process", "host", "pid", "version", "started_at")}
            assert first == independently_hashed(row, b"enrolld audit writer ".hex())


def test_an_export_is_its_owners_and_replaces_nothing(shell: Shell, exported: Path) -> None:
    assert stat.S_IMODE(exported.stat().st_mode) == 0o600
    before = exported.read_bytes()
    assert shell.refusal("audit", "export", "-o", str(exported)) == "file_exists"
    assert exported.read_bytes() == before
    assert {path.name for path in exported.parent.iterdir()} == {"data", exported.name}


def test_an_export_without_a_file_goes_to_stdout(shell: Shell, exported: Path) -> None:
    lines = exported.read_text().splitlines()
    said = shell("audit", "export")[0].splitlines()
    assert said[1:] == lines[1:]
    assert json.loads(said[0])["filter"] == {}
    assert shell.ask("audit", "export", "-o", str(exported.with_name("b")))["lines"] == len(lines)


def test_an_export_that_fails_leaves_nothing(shell: Shell, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> str:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(audit_export, "_of_writer", fail)
    assert shell.refusal("audit", "export", "-o", str(tmp_path / "trail.jsonl")) == "system"
    assert [path.name for path in tmp_path.iterdir()] == ["data"]


@pytest.mark.parametrize("links", [pytest.param(True, id="links"), pytest.param(False, id="no-links")])
def test_whoever_was_faster_with_the_name_keeps_it(
    shell: Shell, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, links: bool
) -> None:
    target = tmp_path / "trail.jsonl"
    if not links:
        monkeypatch.setattr(os, "link", _no_links)
        shell("audit", "export", "-o", str(target))
        assert stat.S_IMODE(target.stat().st_mode) == 0o600
        target.unlink()
    of_writer = audit_export._of_writer

    def meanwhile(record: Any) -> Json:
        target.write_text("theirs")
        return of_writer(record)

    monkeypatch.setattr(audit_export, "_of_writer", meanwhile)
    assert shell.refusal("audit", "export", "-o", str(target)) == "file_exists"
    assert target.read_text() == "theirs"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["data", "trail.jsonl"]


def _no_links(*_: object) -> None:
    raise PermissionError(1, "Operation not permitted")


@pytest.mark.parametrize(
    ("arguments", "events", "heads", "limits"),
    [
        pytest.param(["--realm", "other"], 3, 2, 1, id="realm"),
        pytest.param(["--device", "d-1"], 8, 2, 1, id="device"),
        pytest.param(["--since", "1970-01-01T00:00:06Z"], 3, 2, 2, id="since"),
    ],
)
def test_a_part_says_that_it_is_one_and_what_it_leaves_open(
    shell: Shell, trail: Trail, tmp_path: Path, arguments: list[str], events: int, heads: int, limits: int
) -> None:
    part = tmp_path / "part.jsonl"
    shell("audit", "export", *arguments, "-o", str(part))
    assert json.loads(part.read_text().splitlines()[0])["filter"]
    answer = shell.ask("audit", "verify", str(part), "--head", trail.digests[1])
    assert (answer["ok"], answer["events"], answer["heads"], answer["kept_found"]) == (True, events, heads, 1)
    assert len(answer["limits"]) == limits
    assert "This is a part of the trail" in answer["limits"][0]
    lines = part.read_text().splitlines()
    changed = [line.replace("operator:test", "operator:none") for line in lines]
    part.write_text("\n".join(changed) + "\n")
    assert {code for code, _ in codes(shell.ask("audit", "verify", str(part), status=3))} == {"event_changed"}


def test_a_head_older_than_a_part_is_no_finding(shell: Shell, trail: Trail, tmp_path: Path) -> None:
    trail.sql("UPDATE audit_head SET at = 5000 WHERE number = 1")
    trail.head_anew()
    (old,) = trail.sql("SELECT digest FROM audit_head WHERE number = 1")[0]
    part = tmp_path / "part.jsonl"
    shell("audit", "export", "--since", "1970-01-01T00:00:06Z", "-o", str(part))
    answer = shell.ask("audit", "verify", str(part), "--head", old.hex())
    assert (answer["ok"], answer["heads"], answer["kept_found"]) == (True, 1, 0)
    assert "1 of the heads that were kept elsewhere are not in it" in answer["limits"][-1]


def test_an_event_of_before_the_heads_of_a_part_is_not_late(shell: Shell, trail: Trail, tmp_path: Path) -> None:
    installation = trail.installation
    one_event(installation, 10_000)
    head(installation, 9_000)  # by a clock that is a little behind
    one_event(installation, 4_000_000)
    head(installation, 4_000_000)
    part = tmp_path / "part.jsonl"
    shell("audit", "export", "--since", "1970-01-01T00:00:10Z", "-o", str(part))
    answer = shell.ask("audit", "verify", str(part))
    assert (answer["ok"], answer["events"], answer["heads"]) == (True, 2, 1)


def _line(lines: list[str], kind: str, number: int = 0) -> int:
    return [i for i, line in enumerate(lines) if json.loads(line)["kind"] == kind][number]


def _drop(kind: str, number: int = 0) -> Callable[[list[str]], None]:
    def tamper(lines: list[str]) -> None:
        del lines[_line(lines, kind, number)]
        if kind != "end":  # whoever can take a line away can count as well
            end = json.loads(lines[-1])
            lines[-1] = json.dumps({**end, f"{kind}s": end[f"{kind}s"] - 1})

    return tamper


def _replace(old: str, new: str) -> Callable[[list[str]], None]:
    def tamper(lines: list[str]) -> None:
        changed = [line.replace(old, new, 1) for line in lines]
        assert changed != lines
        lines[:] = changed

    return tamper


def _another_previous(lines: list[str]) -> None:
    place = _line(lines, "event")
    lines[place] = json.dumps({**json.loads(lines[place]), "previous": "00" * 32})


def _move(kind: str, number: int, to: int) -> Callable[[list[str]], None]:
    return lambda lines: lines.insert(to, lines.pop(_line(lines, kind, number)))


@pytest.mark.parametrize(
    ("tamper", "found"),
    [
        pytest.param(_drop("event", 1), {"event_missing"}, id="event-taken-away"),
        pytest.param(_drop("head", 1), {"head_unknown"}, id="last-head-taken-away"),
        pytest.param(_drop("head", 0), {"head_missing", "head_unknown"}, id="first-head-taken-away"),
        pytest.param(_drop("writer"), {"writer_missing"}, id="writer-taken-away"),
        pytest.param(_drop("end"), {"file_cut"}, id="last-line-taken-away"),
        pytest.param(
            lambda lines: lines.__delitem__(slice(8, None)), {"file_cut", "event_missing", "writer_missing"}, id="cut"
        ),
        pytest.param(lambda lines: lines.__delitem__(5), {"file_cut", "event_missing"}, id="a-line-less"),
        pytest.param(_replace('"host":"', '"host":"x'), {"event_changed"}, id="writer-changed"),
        pytest.param(_another_previous, {"event_changed"}, id="previous-of-the-first-changed"),
        pytest.param(
            _replace('"document":"[[\\"', '"document":"[[\\"\\\\ud800'),
            {"head_changed", "head_unknown"},
            id="half-a-character",
        ),
        pytest.param(_replace('"action":"test.2"', '"action":"test.9"'), {"event_changed"}, id="event-changed"),
        pytest.param(
            _replace('"realm":"other",', ""), {"file_malformed", "event_missing", "file_cut"}, id="field-taken-away"
        ),
        pytest.param(
            _replace('"at":3000', '"at":3e400'), {"file_malformed", "event_missing", "file_cut"}, id="number-too-large"
        ),
        pytest.param(
            _replace('"kind":"head"', '"kind":"tail"'), {"file_malformed", "file_cut", "head_unknown"}, id="kind"
        ),
        pytest.param(_move("head", 1, 6), {"file_malformed", "file_cut", "head_unknown"}, id="head-behind-events"),
        pytest.param(_move("event", 3, 5), {"event_missing", "event_order"}, id="event-moved"),
        pytest.param(
            _move("event", 10, 3),
            {"event_missing", "event_order", "writer_missing"},
            id="event-of-the-other",
        ),
        pytest.param(lambda lines: lines.append(lines[4]), {"file_malformed"}, id="behind-the-end"),
        pytest.param(lambda lines: lines.insert(4, "[" * 100_000), {"file_malformed"}, id="deep"),
        pytest.param(
            lambda lines: lines.insert(4, '{"kind":"export","format":1,"filter":{}}'),
            {"file_malformed"},
            id="begun-twice",
        ),
    ],
)
def test_what_was_done_to_a_file_is_found(
    shell: Shell, exported: Path, trail: Trail, tamper: Callable[[list[str]], None], found: set[str]
) -> None:
    lines = exported.read_text().splitlines()
    kept = ["--head", trail.digests[0], "--head", trail.digests[1]]
    assert shell.ask("audit", "verify", str(exported), *kept)["ok"]
    tamper(lines)
    exported.write_text("\n".join(lines) + "\n")
    answer = shell.ask("audit", "verify", str(exported), *kept, status=3)
    assert found == {finding["code"] for finding in answer["findings"]}


@pytest.mark.parametrize(
    ("text", "code"),
    [
        pytest.param(b"", "export_invalid", id="empty"),
        pytest.param(b"\xff\x00", "export_invalid", id="binary"),
        pytest.param(b'{"kind":"head"}', "export_invalid", id="no-beginning"),
        pytest.param(b'{"kind":"export","format":2,"filter":{}}', "export_newer", id="newer"),
    ],
)
def test_another_file_is_refused(shell: Shell, tmp_path: Path, text: bytes, code: str) -> None:
    path = tmp_path / "file"
    path.write_bytes(text)
    assert shell.refusal("audit", "verify", str(path)) == code


def test_the_bar_is_for_a_terminal(shell: Shell, exported: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert "Verifying" not in shell("audit", "verify", str(exported))[1]
    monkeypatch.setattr("sys.stderr.isatty", lambda: True)
    for arguments in ([], [str(exported)]):
        out, err = shell("audit", "verify", *arguments)
        assert "Verifying" in err
        assert "100%" in err
        assert "Verifying" not in out
