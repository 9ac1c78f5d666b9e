"""The marked lines of the product, and the tool that takes them away: a sample here, all of them by `make mutants`."""

import ast
import os
import random
import textwrap
from collections import Counter
from pathlib import Path

import pytest

from tests.attack_cases.mutation import (
    HOUSE,
    Mark,
    UnknownStatement,
    files_of,
    find_marks,
    judge,
    main,
    make_mutants,
    mutants_of,
    try_all,
)

LONG = os.environ.get("ENROLLD_LONG") == "1"
SEED = int(os.environ.get("ENROLLD_MUTANTS_SEED", "0")) or random.SystemRandom().randrange(2**32)
SAMPLE = 4
MARKED = [*range(1, 14), *range(15, 28), *range(29, 37), *range(38, 42), 43, 44, *range(47, 54)]
MARKED += [56, 57, 58, 61, 71, *range(73, 77), 79, 82]
UNMARKED = [14, 28, 42, 45]  # nothing that could be taken away enforces them
TOO_SLOW = {51, 56, 58, 73, 76}
"""Their tests wait for deadlines, fill disks, or start a daemon for each form."""


def test_every_case_has_marked_lines_and_tests_that_bear_its_number() -> None:
    counts = Counter(case for mark in find_marks(HOUSE) for case in mark.cases)
    assert sorted(counts) == MARKED
    assert [case for case in [*MARKED, *UNMARKED] if not files_of(HOUSE, case)] == []


def test_every_marked_line_can_be_taken_away_and_leaves_a_program() -> None:
    mutants = mutants_of(HOUSE, find_marks(HOUSE))
    assert len(mutants) >= 60
    for mutant in mutants:
        good = (HOUSE / mutant.mark.path).read_text()
        assert mutant.source != good, str(mutant.mark)
        assert ast.dump(ast.parse(mutant.source)) != ast.dump(ast.parse(good)), str(mutant.mark)


def test_a_sample_of_the_marked_lines_is_missed_by_the_tests_when_it_is_gone() -> None:
    mutants = mutants_of(HOUSE, find_marks(HOUSE))
    chosen = mutants if LONG else [mutant for mutant in mutants if mutant.case not in TOO_SLOW]
    if not LONG:
        chosen = random.Random(SEED).sample(chosen, SAMPLE)
    print(f"seed {SEED}: {len(chosen)} of {len(mutants)} mutants")
    verdicts = list(try_all(HOUSE, chosen, jobs=2))
    for verdict in verdicts:
        print(verdict)
    assert len(verdicts) >= SAMPLE
    assert [str(verdict) for verdict in verdicts if verdict.outcome != "killed"] == []


# --- the tool ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("before", "after"),
    [
        pytest.param(
            """
            def f(x):
                if x > 3:  # enforces case 9
                    raise ValueError("much")
                return x
            """,
            ["def f(x):\n    pass\n    return x"],
            id="if",
        ),
        pytest.param(
            """
            def f(x):
                # enforces case 9
                if x > 3:
                    return None
                else:
                    x += 1
                return x
            """,
            ["def f(x):\n    x += 1\n    return x"],
            id="if-with-else-marked-above",
        ),
        pytest.param(
            """
            def f(x):
                if x == 1:
                    return 1
                elif x > 3:  # enforces case 9
                    return 2
                return 3
            """,
            ["def f(x):\n    if x == 1:\n        return 1\n    elif False:\n        pass\n    return 3"],
            id="elif",
        ),
        pytest.param("LIMIT = 4 * 1024  # enforces case 9", ["LIMIT = 1000000000"], id="limit"),
        pytest.param("SECONDS: float = 2.5  # enforces case 9", ["SECONDS: float = 1000000.0"], id="annotated-limit"),
        pytest.param("x = max(a, b)  # enforces case 9", ["x = a"], id="max"),
        pytest.param("x = max(a, b) if c else d  # enforces case 9", ["x = d"], id="conditional-value"),
        pytest.param("x.y = True  # enforces case 9", ["pass"], id="attribute"),
        pytest.param("check(x)  # enforces case 9", ["pass"], id="call"),
        pytest.param(
            'd = os.open(p, os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600)  # enforces case 9',
            [
                "d = os.open(p, os.O_CREAT | os.O_NOFOLLOW, 384)",
                "d = os.open(p, os.O_CREAT | os.O_EXCL, 384)",
                "d = os.open(p, os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o666)",
            ],
            id="open",
        ),
        pytest.param(
            "def f(x):\n    return '' if '/' in x else x  # enforces case 9",
            ["def f(x):\n    return x"],
            id="return-of-one-or-another",
        ),
        pytest.param(
            "def f(x):\n    return x > 3  # enforces case 9",
            ["def f(x):\n    return True", "def f(x):\n    return False"],
            id="return-condition",
        ),
        pytest.param("def f():\n    return ''  # enforces case 9", ["def f():\n    pass"], id="return"),
        pytest.param("x = f(\n    a=1,  # enforces case 9\n    b=2,\n)", ["x = f(b=2)"], id="argument"),
    ],
)  # fmt: skip
def test_a_marked_statement_is_taken_away(before: str, after: list[str]) -> None:
    source = textwrap.dedent(before)
    line = 1 + source[: source.index("# enforces")].count("\n")
    made = [source for _, source in make_mutants(Mark("a.py", line, (9,)), source)]
    assert [ast.unparse(ast.parse(text)) for text in made] == [ast.unparse(ast.parse(text)) for text in after]


@pytest.mark.parametrize(
    "source", ["for x in y:  # enforces case 9\n    pass", "x = f()  # enforces case 9", "y = 1\n\n# enforces case 9\n"]
)
def test_a_mark_where_nothing_can_be_taken_away_is_a_fault(source: str) -> None:
    line = 1 + source[: source.index("# enforces")].count("\n")
    with pytest.raises(UnknownStatement):
        make_mutants(Mark("a.py", line, (9,)), source)


FAKE = """
LIMIT = 3  # enforces case 99


def take(number):
    if number > 1000:  # enforces case {idle}
        raise ValueError("far too much")
    if number > LIMIT:  # enforces case 99
        raise ValueError("too much")
    return number
"""
FAKE_TEST = """
import pytest
from ca_core.fake import take


def test_case_99_too_much_is_refused():
    assert take(3) == 3
    with pytest.raises(ValueError, match="too much"):
        take(4)


def test_case_98_what_is_much_is_refused():
    with pytest.raises(ValueError):
        take(5000)


def test_case_95_what_is_much_is_refused_by_its_words():
    try:
        take(5000)
    except ValueError as exc:
        assert {"far too much": True}[str(exc)]


def test_case_97_needs_what_is_not_there(nothing):
    pass
"""


def fake_house(folder: Path, idle: int) -> Path:
    for package in ("ca_core", "tests", "tests/attack_cases"):
        (folder / package).mkdir(parents=True)
        (folder / package / "__init__.py").touch()
    (folder / "ca_core" / "fake.py").write_text(FAKE.format(idle=idle))
    (folder / "tests" / "test_fake.py").write_text(FAKE_TEST)
    verdict = HOUSE / "tests" / "attack_cases" / "verdict.py"
    (folder / "tests" / "attack_cases" / "verdict.py").write_text(verdict.read_text())
    return folder


def test_what_the_tests_do_not_miss_is_told_as_survived(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    house = fake_house(tmp_path / "house", idle=98)
    good = (house / "ca_core" / "fake.py").read_text()
    assert main(["--case", "99"], house) == 0
    assert "2 mutants of 2 marks: 2 killed, 0 survived, 0 invalid" in capsys.readouterr().out
    assert main([], house) == 1
    said = capsys.readouterr().out
    assert "3 mutants of 3 marks: 2 killed, 1 survived, 0 invalid" in said
    (line,) = [line.split() for line in said.splitlines() if line.startswith("survived")]
    assert line[1:4] == ["ca_core/fake.py:6", "case", "98"]
    assert (house / "ca_core" / "fake.py").read_text() == good


@pytest.mark.parametrize(
    ("case", "why"),
    [pytest.param(97, "setup of test_case_97", id="no-fixture"), pytest.param(96, "no test ran", id="no-test")],
)
def test_tests_that_fail_without_any_mutant_show_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], case: int, why: str
) -> None:
    assert main(["--case", str(case)], fake_house(tmp_path / "house", idle=case)) == 1
    said = capsys.readouterr().out
    assert said.startswith(f"the tests of case {case} fail without any mutant: {why}")


def test_what_fails_for_another_reason_is_told_as_invalid(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    house = fake_house(tmp_path / "house", idle=95)
    assert main(["--case", "95"], house) == 1
    assert "1 mutants of 1 marks: 0 killed, 0 survived, 1 invalid" in capsys.readouterr().out


def test_a_test_that_ends_in_anything_but_an_assertion_of_its_own_kills_nothing() -> None:
    def ended(**report: str) -> dict[str, str]:
        return {"test": "a.py::test_case_09", "when": "call", "outcome": "failed", "at": "AssertionError", **report}

    assert judge([ended()])[0] == "killed"
    assert judge([ended(at="Failed")])[0] == "killed"
    for other in (ended(at="ImportError"), ended(at="UnboundLocalError"), ended(when="setup"), ended(when="collect")):
        assert judge([other])[0] == "invalid"
    assert judge([ended(outcome="passed")])[0] == "survived"
    assert judge([ended(outcome="skipped")])[0] == judge([])[0] == "invalid"
