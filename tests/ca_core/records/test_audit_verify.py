"""Verifying the audit trail: whatever was done to it is found and named, and what was written is not."""

from collections.abc import Callable

import pytest

from ca_core.records import audit_trail
from ca_core.records.audit import CHAINED, ORIGIN, hash_of
from ca_core.records.audit_heads import digest_of
from ca_core.records.audit_verify import LATE
from tests.helpers.audit import Trail, head, made_trail, one_event
from tests.helpers.core import Installation

Found = tuple[str, str, int | None, int | None]


@pytest.fixture
def trail(installation: Installation) -> Trail:
    return made_trail(installation)


def findings(trail: Trail, kept: tuple[str, ...] = ()) -> list[Found]:
    """What is found: code, whose it is, which event and head."""
    names = {trail.first: "first", trail.second: "second"}
    verdict = trail.verify(kept)
    assert verdict.ok == (verdict.findings_total == 0) == (not verdict.findings)
    return [(f.code, names.get(f.writer or "", f.writer or ""), f.sequence, f.head) for f in verdict.findings]


def test_a_trail_that_nobody_touched_is_verified_whole(trail: Trail) -> None:
    verdict = trail.verify(trail.digests)
    assert (verdict.ok, verdict.events, verdict.writers, verdict.heads) == (True, 11, 2, 2)
    assert (verdict.kept_given, verdict.kept_found, verdict.kept_up_to) == (2, 2, 2)
    assert verdict.uncovered == 1
    assert verdict.last_head is not None
    assert (verdict.last_head.number, verdict.last_head.digest) == (2, trail.digests[1])
    assert verdict.limits == []


def test_an_empty_trail_is_no_fault(installation: Installation) -> None:
    installation.sql("DELETE FROM audit")
    installation.sql("DELETE FROM writer")
    verdict = Trail(installation, "", "", ()).verify()
    assert (verdict.ok, verdict.events, verdict.writers, verdict.heads, verdict.last_head) == (True, 0, 0, 0, None)


# --- tampering -------------------------------------------------------------------------------------------------------


def _delete(trail: Trail, *sequences: int) -> None:
    for sequence in sequences:
        trail.sql("DELETE FROM audit WHERE writer = ? AND sequence = ?", trail.first, sequence)


def _rewind(trail: Trail) -> None:
    _delete(trail, 7, 8)
    trail.sql("UPDATE writer SET sequence = 6, hash = ? WHERE name = ?", trail.hash(6), trail.first)


def _without_second(trail: Trail) -> None:
    trail.sql("DELETE FROM audit WHERE writer = ?", trail.second)
    trail.sql("DELETE FROM writer WHERE name = ?", trail.second)


def _row_of_second_gone(trail: Trail) -> None:
    trail.free()
    trail.sql("DELETE FROM writer WHERE name = ?", trail.second)


def _swap(trail: Trail) -> None:
    for old, new in ((3, 1003), (4, 3), (1003, 4)):
        trail.sql("UPDATE audit SET sequence = ? WHERE writer = ? AND sequence = ?", new, trail.first, old)


def _swap_contents(trail: Trail) -> None:
    [(three,)] = trail.sql("SELECT details FROM audit WHERE writer = ? AND sequence = ?", trail.first, 3)
    [(four,)] = trail.sql("SELECT details FROM audit WHERE writer = ? AND sequence = ?", trail.first, 4)
    trail.sql("UPDATE audit SET details = ? WHERE writer = ? AND sequence = ?", four, trail.first, 3)
    trail.sql("UPDATE audit SET details = ? WHERE writer = ? AND sequence = ?", three, trail.first, 4)


def _insert(trail: Trail, sequence: int) -> None:
    columns = ", ".join(CHAINED)
    [event] = trail.sql(f"SELECT {columns} FROM audit WHERE writer = ? AND sequence = 8", trail.first)  # noqa: S608  # names of columns
    row = {**dict(zip(CHAINED, event, strict=True)), "sequence": sequence}
    digest = hash_of(trail.hash(8), row)
    marks = ", ".join("?" * (len(CHAINED) + 1))
    trail.sql(f"INSERT INTO audit ({columns}, hash) VALUES ({marks})", *row.values(), digest)  # noqa: S608  # likewise


def _move_to_the_other(trail: Trail) -> None:
    trail.sql(
        "UPDATE audit SET writer = ?, sequence = 4 WHERE writer = ? AND sequence = ?", trail.second, trail.first, 8
    )


def _doctored(trail: Trail) -> None:
    trail.sql("UPDATE audit SET actor = 'operator:somebody-else' WHERE writer = ? AND sequence = ?", trail.first, 2)


def _doctored_and_hashed(trail: Trail) -> None:
    _doctored(trail)
    trail.hash_anew()


def _doctored_head(trail: Trail) -> None:
    [(at, document, previous)] = trail.sql("SELECT at, document, previous FROM audit_head WHERE number = 1")
    document = document.replace(trail.hash(5).hex(), trail.hash(4).hex())
    digest = digest_of(bytes(previous), 1, at, document)
    trail.sql("UPDATE audit_head SET document = ?, digest = ? WHERE number = 1", document, digest)


def _swap_heads(trail: Trail) -> None:
    for old, new in ((1, 3), (2, 1), (3, 2)):
        trail.sql("UPDATE audit_head SET number = ? WHERE number = ?", new, old)


_ROW_OF_A_WRITER = (
    "INSERT INTO writer (name, process, host, pid, version, started_at) VALUES (?, 'serve', 'x', 1, '1', 1)"
)


def _before_everything(trail: Trail) -> None:
    trail.sql(_ROW_OF_A_WRITER, "")
    trail.sql(
        "INSERT INTO audit (writer, sequence, format, at, action, actor, details)"
        " VALUES ('', -5, 1, 1000, 'certificate.revoked', 'operator:root', '{}')"
    )


def _head_0(trail: Trail) -> None:
    digest = b"\0" * 32
    trail.sql(
        "INSERT INTO audit_head (number, at, document, previous, digest) VALUES (0, -1, '[]', ?, ?)", digest, digest
    )


def _only_hash_gone(trail: Trail) -> None:
    name = one_event(trail.installation, 9000)
    head(trail.installation, 9000)
    trail.sql("UPDATE audit SET hash = NULL WHERE writer = ?", name)
    trail.sql("UPDATE writer SET hash = NULL WHERE name = ?", name)


def _update(statement: str) -> Callable[[Trail], None]:
    return lambda trail: void(trail.sql(statement, trail.first))


def void(_: object) -> None:
    """A statement's rows, which nobody asked for."""


TAMPERED = [
    pytest.param(_doctored, [("event_changed", "first", 2, None)], id="field-changed"),
    pytest.param(lambda t: _delete(t, 3), [("event_missing", "first", 3, None)], id="event-deleted"),
    pytest.param(lambda t: _delete(t, 2, 3, 4), [("event_missing", "first", 2, None)], id="events-deleted"),
    pytest.param(lambda t: _delete(t, 1), [("event_missing", "first", 1, None)], id="first-event-deleted"),
    pytest.param(lambda t: _delete(t, 8), [("event_missing", "first", 8, None)], id="last-event-deleted"),
    pytest.param(_rewind, [("event_missing", "first", 7, 2)], id="chain-cut-short-and-its-row-set-back"),
    pytest.param(_without_second, [("writer_missing", "second", 3, 1)], id="writer-deleted-whole"),
    pytest.param(_row_of_second_gone, [("writer_missing", "second", None, None)], id="row-of-a-writer-deleted"),
    pytest.param(
        lambda t: void(t.sql("DELETE FROM audit WHERE writer = ?", t.second)),
        [("event_missing", "second", 1, None)],
        id="all-events-of-a-writer-deleted",
    ),
    pytest.param(
        _swap,
        [("event_changed", "first", number, None) for number in (3, 4, 5)],
        id="events-swapped",
    ),
    pytest.param(
        _swap_contents, [("event_changed", "first", number, None) for number in (3, 4)], id="contents-swapped"
    ),
    pytest.param(lambda t: _insert(t, 9), [("writer_changed", "first", 9, None)], id="event-added-behind-the-last"),
    pytest.param(lambda t: _insert(t, 0), [("event_order", "first", None, None)], id="event-added-before-the-first"),
    pytest.param(
        lambda t: _insert(t, -(1 << 63)), [("event_order", "first", None, None)], id="event-of-the-lowest-number"
    ),
    pytest.param(
        _before_everything,
        [("writer_name", "", None, None), ("event_order", "", None, None)],
        id="event-and-writer-before-everything",
    ),
    pytest.param(
        lambda t: void(t.sql(_ROW_OF_A_WRITER, "0123456789ABCDEF")),
        [("writer_name", "0123456789ABCDEF", None, None)],
        id="writer-of-a-name-that-none-has",
    ),
    pytest.param(_head_0, [("head_order", "", None, None)], id="head-before-the-first"),
    pytest.param(
        _move_to_the_other,
        [
            ("event_missing", "first", 8, None),
            ("event_changed", "second", 4, None),
            ("writer_changed", "second", 4, None),
        ],
        id="event-moved-to-another-writer",
    ),
    pytest.param(
        _update("UPDATE audit SET hash = NULL WHERE writer = ? AND sequence = 4"),
        [("event_unhashed", "first", 4, None)],
        id="hash-taken-away",
    ),
    pytest.param(
        _update("UPDATE audit SET hash = NULL, action = 'x' WHERE writer = ? AND sequence = 4"),
        [("event_unhashed", "first", 4, None), ("event_changed", "first", 5, None)],
        id="hash-taken-away-and-field-changed",
    ),
    pytest.param(
        _update("UPDATE audit SET hash = NULL WHERE writer = ? AND sequence < 4"),
        [("event_unhashed", "first", number, None) for number in (1, 2, 3)],
        id="first-hashes-taken-away",
    ),
    pytest.param(
        _update("UPDATE audit SET hash = NULL, action = 'x' WHERE writer = ? AND sequence = 1"),
        [("event_unhashed", "first", 1, None), ("event_changed", "first", 2, None)],
        id="first-hash-taken-away-and-field-changed",
    ),
    pytest.param(
        _update("UPDATE writer SET hash = NULL WHERE name = ?"),
        [("writer_changed", "first", 8, None)],
        id="hash-of-a-writer-changed",
    ),
    pytest.param(
        _update("UPDATE writer SET sequence = 7 WHERE name = ?"),
        [("writer_changed", "first", 8, None)],
        id="count-of-a-writer-lowered",
    ),
    pytest.param(
        _update("UPDATE writer SET sequence = 10 WHERE name = ?"),
        [("event_missing", "first", 9, None)],
        id="count-of-a-writer-raised",
    ),
    pytest.param(
        _update("UPDATE writer SET headed = 8 WHERE name = ?"),
        [("head_missing", "first", 8, None)],
        id="news-hidden-from-the-heads",
    ),
    pytest.param(
        _update("UPDATE writer SET headed = 2 WHERE name = ?"),
        [("writer_changed", "first", None, None)],
        id="cover-of-a-writer-lowered",
    ),
    pytest.param(
        _doctored_and_hashed,
        [("head_contradicted", "first", 5, 1), ("head_contradicted", "first", 7, 2)],
        id="writer-hashed-anew",
    ),
    pytest.param(
        lambda t: void(t.sql("UPDATE audit_head SET at = at + 1 WHERE number = 1")),
        [("head_changed", "", None, 1)],
        id="time-of-a-head-changed",
    ),
    pytest.param(
        lambda t: void(t.sql("UPDATE audit_head SET document = '[]' WHERE number = 2")),
        [("head_changed", "", None, 2), ("head_missing", "first", 7, None)],
        id="head-emptied",
    ),
    pytest.param(
        lambda t: void(t.sql("UPDATE audit_head SET document = '[[1]]' WHERE number = 2")),
        [("head_changed", "", None, 2), ("head_changed", "", None, 2), ("head_missing", "first", 7, None)],
        id="head-unreadable",
    ),
    pytest.param(
        lambda t: void(t.sql("""UPDATE audit_head SET document = '[["\\ud800",1,"00"]]' WHERE number = 2""")),
        [("head_changed", "", None, 2), ("head_changed", "", None, 2), ("head_missing", "first", 7, None)],
        id="head-with-half-a-character",
    ),
    pytest.param(
        _doctored_head,
        [("head_order", "", None, 2), ("head_contradicted", "first", 5, 1)],
        id="head-made-anew",
    ),
    pytest.param(
        lambda t: void(t.sql("DELETE FROM audit_head WHERE number = 1")),
        [("head_missing", "", None, 2), ("head_missing", "second", 3, None)],
        id="first-head-deleted",
    ),
    pytest.param(
        lambda t: void(t.sql("DELETE FROM audit_head WHERE number = 2")),
        [("head_missing", "first", 7, None)],
        id="last-head-deleted",
    ),
    pytest.param(
        _swap_heads,
        [
            ("head_order", "", None, 1),
            ("head_changed", "", None, 1),
            ("head_order", "", None, 2),
            ("head_changed", "", None, 2),
        ],
        id="heads-swapped",
    ),
]


@pytest.mark.parametrize(("tamper", "found"), TAMPERED)
def test_what_was_done_to_the_trail_is_found_and_named(
    trail: Trail, tamper: Callable[[Trail], None], found: list[Found]
) -> None:
    assert findings(trail) == []
    tamper(trail)
    assert sorted(findings(trail), key=str) == sorted(found, key=str)


_CHANGED = {"format": 2, "at": 999, "action": "x", "actor": "x", "details": "{}"}


@pytest.mark.parametrize("column", [name for name in CHAINED if name not in ("writer", "sequence")])
def test_every_column_of_an_event_is_covered(trail: Trail, column: str) -> None:
    assert findings(trail) == []
    statement = f"UPDATE audit SET {column} = ? WHERE writer = ? AND sequence = 2"  # noqa: S608  # likewise
    trail.sql(statement, _CHANGED.get(column, "x"), trail.second)
    assert findings(trail) == [("event_changed", "second", 2, None)]


def test_a_hash_that_is_missing_is_one_finding_also_of_an_event_under_a_head(trail: Trail) -> None:
    _only_hash_gone(trail)
    assert [code for code, *_ in findings(trail)] == ["event_unhashed"]


@pytest.mark.parametrize("column", [name for name in ORIGIN if name != "name"])
def test_every_column_of_a_writer_that_stays_is_covered(trail: Trail, column: str) -> None:
    assert findings(trail) == []
    value = 999 if column in ("pid", "started_at") else "x"
    trail.sql(f"UPDATE writer SET {column} = ? WHERE name = ?", value, trail.second)  # noqa: S608  # likewise
    assert findings(trail) == [("event_changed", "second", 1, None)]
    [finding] = trail.verify().findings
    assert finding.message == "event 1 is not what was written, or the writer's row is not"


@pytest.mark.parametrize("headed", [pytest.param(True, id="under-a-head"), pytest.param(False, id="under-none-yet")])
def test_history_that_was_added_after_a_head_is_found_by_its_time(trail: Trail, headed: bool) -> None:
    made_at = 10_000_000
    one_event(trail.installation, made_at)
    kept = (*trail.digests, *head(trail.installation, made_at))
    one_event(trail.installation, made_at - LATE)  # as old as anything may be that nobody added
    assert findings(trail, kept) == []
    late = one_event(trail.installation, made_at - LATE - 1)
    if headed:
        kept += head(trail.installation, made_at + 60_000)
    assert findings(trail, kept) == [("event_late", late, 1, 3)]
    [finding] = trail.verify().findings
    assert finding.message == (
        "event 1 is dated 1970-01-01T02:41:39Z, before head 3, and came after it:"
        " somebody added history, or a command ran on a machine with a wrong clock"
    )


@pytest.mark.parametrize("page", [1, 2, 3, 5, 8, 11])
def test_faults_are_found_wherever_a_page_ends(trail: Trail, page: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(audit_trail, "PAGE", page)
    monkeypatch.setattr(audit_trail, "HEADS_PAGE", page)
    verdict = trail.verify(trail.digests)
    assert (verdict.ok, verdict.events, verdict.writers, verdict.heads) == (True, 11, 2, 2)
    _delete(trail, 3)
    _without_second(trail)
    assert findings(trail) == [("event_missing", "first", 3, None), ("writer_missing", "second", 3, 1)]


@pytest.mark.parametrize(
    ("statement", "code"),
    [
        pytest.param("UPDATE audit SET at = 'soon' WHERE sequence = 2", "event_changed", id="time"),
        pytest.param("UPDATE audit SET details = x'00ff' WHERE sequence = 2", "event_changed", id="details"),
        pytest.param("UPDATE audit SET hash = 'text' WHERE sequence = 3", "event_changed", id="hash"),
        pytest.param("UPDATE audit SET sequence = 2.5 WHERE sequence = 2", "event_order", id="fraction"),
        pytest.param("UPDATE audit SET sequence = 'two' WHERE sequence = 2", "event_order", id="number-as-text"),
        pytest.param("UPDATE audit SET writer = x'ff' WHERE sequence = 8", "event_missing", id="writer-as-bytes"),
        pytest.param("UPDATE writer SET sequence = 'x'", "writer_changed", id="count"),
        pytest.param("UPDATE writer SET headed = 'x'", "writer_changed", id="cover"),
        pytest.param("UPDATE writer SET pid = x'ff'", "event_changed", id="process"),
        pytest.param("UPDATE audit_head SET at = -1.5 WHERE number = 1", "head_changed", id="fraction-of-a-time"),
        pytest.param("UPDATE audit_head SET at = 'x' WHERE number = 2", "head_changed", id="time-of-a-head"),
        pytest.param("UPDATE audit_head SET digest = 'x' WHERE number = 2", "head_changed", id="digest"),
        pytest.param("UPDATE audit_head SET previous = 7 WHERE number = 2", "head_changed", id="previous-digest"),
        pytest.param("UPDATE audit_head SET number = 'x' WHERE number = 2", "head_order", id="number-of-a-head"),
    ],
)
def test_values_of_other_kinds_than_enrolld_writes_are_findings(
    template: Installation, tmp_path_factory: pytest.TempPathFactory, statement: str, code: str
) -> None:
    """SQLite keeps any kind of value in any column."""
    trail = made_trail(template.copy_to(tmp_path_factory.mktemp("kinds") / "data"))
    assert findings(trail) == []
    trail.sql(statement)
    assert code in {found[0] for found in findings(trail)}


def test_numbers_of_other_kinds_do_not_keep_the_reader_for_ever(
    template: Installation, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    trail = made_trail(template.copy_to(tmp_path_factory.mktemp("kinds") / "data"))
    monkeypatch.setattr(audit_trail, "PAGE", 1)
    trail.sql("UPDATE audit SET sequence = 'two' WHERE writer = ? AND sequence = 2", trail.first)
    trail.sql("UPDATE audit SET sequence = 2.5 WHERE writer = ? AND sequence = 3", trail.first)
    found = findings(trail)
    assert sorted(found, key=str) == [
        ("event_missing", "first", 2, None),
        ("event_order", "first", None, None),
        ("event_order", "first", None, None),
    ]


def test_only_a_head_kept_elsewhere_shows_that_all_was_made_anew(trail: Trail) -> None:
    _doctored_and_hashed(trail)
    trail.head_anew()
    assert findings(trail) == [], "everything in the database fits"
    assert findings(trail, trail.digests) == [("head_unknown", "", None, None)] * 2
    verdict = trail.verify(trail.digests[:1])
    assert trail.digests[0] in verdict.findings[0].message
    assert (verdict.kept_given, verdict.kept_found, verdict.kept_up_to) == (1, 0, None)


def test_a_head_that_only_looks_like_the_one_that_was_kept_is_not_it(trail: Trail) -> None:
    _doctored_and_hashed(trail)
    trail.head_anew()
    trail.sql("UPDATE audit_head SET digest = ? WHERE number = 1", bytes.fromhex(trail.digests[0]))
    assert {code for code, *_ in findings(trail, trail.digests[:1])} == {"head_changed", "head_order", "head_unknown"}


def test_many_faults_are_counted_and_the_first_are_told(trail: Trail) -> None:
    for number in range(150):
        trail.sql(
            "INSERT INTO writer (name, process, host, pid, version, started_at, sequence)"
            " VALUES (?, 'x', 'x', 1, 'x', 1, 1)",
            f"{number:016x}",
        )
    verdict = trail.verify()
    assert (len(verdict.findings), verdict.findings_total) == (100, 150)
