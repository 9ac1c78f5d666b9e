"""Takes away, one by one, the lines that are marked as enforcing an attack case, and shows that the case's tests fail.

A mark is a comment at the end of a line of product code, `# enforces case 8`, or `# enforces case 8, 12`; or on a line
of its own right above, where the line would become too long. The statement that begins there is taken away:

==========================================  ====================================================
`if ...: raise`, `return`, `continue`       the whole `if` (an `else` stays, without its condition)
`raise`, a call alone, `x.y = ...`          `pass`
a limit: `MAX = 10`, `seconds: float = 2`   a huge one
`x = a if b else c`                         `x = c`
`x = max(a, b)`, `min(a, b)`                `x = a`
`x = os.open(path, flags, mode)`            without O_EXCL, without O_NOFOLLOW, open to all: one after the other
`return a if b else c`                      `return c`
`return a < b`, or of any condition         `return True`, `return False`: one after the other
any other `return`                          `pass`
`name=value,` in a call over several lines  without that argument
==========================================  ====================================================

Each is done in a copy of the tree, where only the tests run whose names bear the case's number, and which pass there
without it. One of them must fail at an assertion of its own: `killed`. When all pass, the mark `survived`: the line is
not needed, or its test is weak. Anything else, such as a module that can't be imported or a daemon that does not start,
is `invalid`.

    python -m tests.attack_cases.mutation [--case N]... [--sample N] [--seed S] [--jobs N] [--list] [PATH]...
"""

import argparse
import ast
import concurrent.futures
import contextlib
import itertools
import json
import os
import queue
import random
import re
import shutil
import subprocess
import sys
import tempfile
import time
import tokenize
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Self, TypeVar

__all__ = ["HOUSE", "Mark", "Mutant", "Verdict", "find_marks", "main", "make_mutants", "try_out"]

T = TypeVar("T")
R = TypeVar("R")

HOUSE = Path(__file__).resolve().parents[2]
PACKAGES = ("ca_core", "enrolld", "est_server", "scep_server")
MARK = re.compile(r"# enforces case (?P<cases>\d+(?:, \d+)*)\s*$")
EXPECTED = frozenset({"AssertionError", "Failed"})
TEST_SECONDS = 240
HUGE_INT, HUGE_FLOAT = 10**9, 1e6

_LEFT_OUT = shutil.ignore_patterns(
    ".git", ".venv", "__pycache__", "*.egg-info", ".*_cache", "enrolld-data", "bench", "build", "dist"
)
_CONDITIONS = (ast.Compare, ast.BoolOp, ast.UnaryOp, ast.Call)
_times = itertools.count(int(time.time()) + 10)


@dataclass(frozen=True, slots=True)
class Mark:
    """A marked line of the tree; `path` is relative to it."""

    path: str
    line: int
    cases: tuple[int, ...]

    def __str__(self) -> str:
        return f"{self.path}:{self.line}"


@dataclass(frozen=True, slots=True)
class Mutant:
    """One way to take a marked line away, for one of its cases."""

    mark: Mark
    case: int
    what: str
    source: str


@dataclass(frozen=True, slots=True)
class Verdict:
    """What came of a mutant: killed, survived or invalid; by which test, or why."""

    mutant: Mutant
    outcome: str
    by: str
    seconds: float

    def __str__(self) -> str:
        mutant = self.mutant
        where = f"{mutant.mark}  case {mutant.case}"
        return f"{self.outcome:8}  {where:52}  {mutant.what:26}  {self.seconds:5.1f} s  {self.by}"


class UnknownStatement(Exception):
    """A mark stands where nothing can be taken away."""


# --- marks ------------------------------------------------------------------------------------------------------------


def find_marks(house: Path) -> list[Mark]:
    """Every mark of the product code."""
    found: list[Mark] = []
    for package in PACKAGES:
        for path in sorted((house / package).rglob("*.py")):
            with tokenize.open(path) as file:
                text = file.read()
            if "# enforces case" not in text:
                continue
            lines = iter(text.splitlines(keepends=True))
            for token in tokenize.generate_tokens(lambda lines=lines: next(lines, "")):  # type: ignore[misc]
                if token.type == tokenize.COMMENT and (match := MARK.search(token.string)):
                    cases = tuple(int(number) for number in match["cases"].split(", "))
                    found.append(Mark(str(path.relative_to(house)), token.start[0], cases))
    return found


def make_mutants(mark: Mark, source: str) -> list[tuple[str, str]]:
    """All that can be done to a marked line: what it is, and the whole source after it. Raises `UnknownStatement`."""
    lines = source.splitlines(keepends=True)
    above = lines[mark.line - 1].lstrip().startswith("#")
    line = mark.line + above
    tree = ast.parse(source)
    statements = [node for node in ast.walk(tree) if isinstance(node, ast.stmt) and node.lineno == line]
    if statements:
        statement = statements[0]  # the outermost that begins there
        return [(what, _put(lines, statement, text)) for what, text in _without(statement, source)]
    for call in ast.walk(tree):
        for keyword in call.keywords if isinstance(call, ast.Call) else ():
            if keyword.lineno == line and keyword.arg is not None:
                return [(f"without {keyword.arg}=", _without_argument(lines, keyword))]
    raise UnknownStatement(f"{mark}: nothing that can be taken away begins in line {line}")


def _without(statement: ast.stmt, source: str) -> Iterator[tuple[str, str]]:
    match statement:
        case ast.If(orelse=orelse):
            text = "pass" if not orelse else _indented(orelse, statement.col_offset)
            if (ast.get_source_segment(source, statement) or "").startswith("elif"):
                text = "elif False:\n" + " " * (statement.col_offset + 4) + "pass"
            yield "without the if", text
        case ast.Raise() | ast.Expr() | ast.Continue() | ast.Delete():
            yield f"without the {'raise' if isinstance(statement, ast.Raise) else 'statement'}", "pass"
        case ast.Return(value=ast.IfExp(orelse=otherwise)):
            yield "without the condition", f"return {ast.unparse(otherwise)}"
        case ast.Return(value=value) if isinstance(value, _CONDITIONS):
            yield "return True", "return True"
            yield "return False", "return False"
        case ast.Return():
            yield "without the return", "pass"
        case ast.Assign(value=value) | ast.AnnAssign(value=ast.expr() as value):
            yield from _without_value(statement, value)
        case _:
            raise UnknownStatement(f"line {statement.lineno}: a {type(statement).__name__} can't be taken away")


def _without_value(statement: ast.Assign | ast.AnnAssign, value: ast.expr) -> Iterator[tuple[str, str]]:
    opens = [node for node in ast.walk(value) if isinstance(node, ast.Call) and ast.unparse(node.func) == "os.open"]
    target = statement.targets[0] if isinstance(statement, ast.Assign) else statement.target
    if opens:
        text = ast.unparse(statement)
        for flag in ("O_EXCL", "O_NOFOLLOW"):
            if f"os.{flag}" in text:
                yield f"without {flag}", text.replace(f" | os.{flag}", "")
        if len(opens[0].args) == 3:
            yield "open to all", text.replace(ast.unparse(opens[0].args[2]), "0o666").replace("384", "0o666")
    elif isinstance(value, ast.IfExp):
        yield "without the condition", ast.unparse(_with_value(statement, value.orelse))
    elif isinstance(value, ast.Call) and ast.unparse(value.func) in ("max", "min"):
        yield f"without {ast.unparse(value.func)}", ast.unparse(_with_value(statement, value.args[0]))
    elif isinstance(target, ast.Attribute):
        yield "without the assignment", "pass"
    elif isinstance(number := _number(value), int | float):
        huge = HUGE_INT if isinstance(number, int) else HUGE_FLOAT
        yield "a huge limit", ast.unparse(_with_value(statement, ast.Constant(huge)))
    else:
        raise UnknownStatement(f"line {statement.lineno}: an assignment of what is no limit")


def _with_value(statement: ast.Assign | ast.AnnAssign, value: ast.expr) -> ast.stmt:
    if isinstance(statement, ast.Assign):
        made: ast.stmt = ast.Assign(statement.targets, value, lineno=0)
    else:
        made = ast.AnnAssign(statement.target, statement.annotation, value, statement.simple)
    return made


def _number(value: ast.expr) -> int | float | None:
    """What an expression of numbers comes to."""
    match value:
        case ast.Constant(value=int() | float() as number) if not isinstance(number, bool):
            return number
        case ast.BinOp(left=left, op=ast.Mult() | ast.Add(), right=right):
            one, other = _number(left), _number(right)
            if one is not None and other is not None:
                return one * other if isinstance(value.op, ast.Mult) else one + other
    return None


def _indented(statements: Sequence[ast.stmt], column: int) -> str:
    text = "\n".join(ast.unparse(statement) for statement in statements)
    return text.replace("\n", "\n" + " " * column)


def _put(lines: list[str], node: ast.stmt, text: str) -> str:
    """The source with another statement in the place of this one."""
    start, end = _offset(lines, node.lineno, node.col_offset), _end(lines, node)
    source = "".join(lines).encode()
    return (source[:start] + text.encode() + source[end:]).decode()


def _without_argument(lines: list[str], keyword: ast.keyword) -> str:
    start, end = _offset(lines, keyword.lineno, keyword.col_offset), _end(lines, keyword)
    source = "".join(lines).encode()
    comma = source.index(b",", end) + 1 if source[end : end + 1] == b"," else end
    return (source[:start] + source[comma:]).decode()


def _offset(lines: list[str], line: int, column: int) -> int:
    return sum(len(each.encode()) for each in lines[: line - 1]) + column


def _end(lines: list[str], node: ast.stmt | ast.keyword) -> int:
    if node.end_lineno is None or node.end_col_offset is None:
        raise UnknownStatement("a node without an end")
    return _offset(lines, node.end_lineno, node.end_col_offset)


def mutants_of(house: Path, marks: Sequence[Mark]) -> list[Mutant]:
    """Every mutant of these marks, for each of their cases."""
    return [
        Mutant(mark, case, what, source)
        for mark in marks
        for what, source in make_mutants(mark, (house / mark.path).read_text())
        for case in mark.cases
    ]


# --- trying them out --------------------------------------------------------------------------------------------------


def copy_of(house: Path, to: Path) -> Path:
    """A copy of the tree, in which mutants may live."""
    shutil.copytree(house, to, ignore=_LEFT_OUT, symlinks=True)
    return to


def files_of(house: Path, case: int) -> list[Path]:
    """The files with tests that bear the case's number."""
    named = f"def test_case_{case:02}_"
    return [path for path in sorted((house / "tests").rglob("test_*.py")) if named in path.read_text()]


def run_tests(house: Path, case: int) -> list[dict[str, str]]:
    """Run the case's tests in a copy, to the first that fails: how each ended."""
    files = files_of(house, case)
    if not files:
        return []
    verdict = house / ".verdict.json"
    verdict.unlink(missing_ok=True)
    environment = {
        name: value for name, value in os.environ.items() if name not in ("ENROLLD_LONG", "PYTEST_XDIST_WORKER")
    }
    environment |= {"PYTHONPATH": str(house), "VERDICT_FILE": str(verdict)}
    subprocess.run(
        [
            *(sys.executable, "-m", "pytest", *map(str, files), "-k", f"case_{case:02}", "-x", "-q"),
            *("-p", "no:cacheprovider", "-p", "no:xdist", "-p", "tests.attack_cases.verdict", "--tb=no"),
            *("--timeout", str(TEST_SECONDS), "--rootdir", str(house)),
        ],
        cwd=house,
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        check=False,
        timeout=10 * TEST_SECONDS,
    )
    ended: list[dict[str, str]] = json.loads(verdict.read_text()) if verdict.exists() else []
    return ended


def try_out(house: Path, mutant: Mutant) -> Verdict:
    """Put the mutant into this copy, run its tests, and take it out again."""
    path = house / mutant.mark.path
    good = path.read_text()
    since = time.monotonic()
    try:
        _write(path, mutant.source)
        ended = run_tests(house, mutant.case)
    finally:
        _write(path, good)
    outcome, by = judge(ended)
    return Verdict(mutant, outcome, by, time.monotonic() - since)


def judge(ended: Sequence[dict[str, str]]) -> tuple[str, str]:
    """killed, survived or invalid; and by which test, or why."""
    failed = [each for each in ended if each["outcome"] == "failed"]
    for each in failed:
        if each["when"] == "call" and each["at"] in EXPECTED:
            return "killed", each["test"].partition("::")[2]
    if failed:
        return "invalid", f"{failed[0]['when']} of {failed[0]['test'].partition('::')[2]} failed at {failed[0]['at']}"
    passed = sum(each["when"] == "call" and each["outcome"] == "passed" for each in ended)
    return ("survived", f"{passed} tests passed") if passed else ("invalid", "no test ran")


def _write(path: Path, source: str) -> None:
    """With a time of its own, so that no compiled module of another source stands in for it."""
    path.write_text(source)
    moment = next(_times)
    os.utime(path, (moment, moment))


def try_all(house: Path, mutants: Sequence[Mutant], jobs: int) -> Iterator[Verdict]:
    """Every mutant, in as many copies as there are jobs; verdicts as they come."""
    with _Copies(house, jobs) as copies:
        yield from copies.each(try_out, mutants)


def faults_without_mutants(house: Path, cases: Sequence[int], jobs: int) -> Iterator[str]:
    """What fails in a copy where nothing is taken away: tests that fail anyhow show nothing."""

    def one(copy: Path, case: int) -> str:
        outcome, by = judge(run_tests(copy, case))
        return "" if outcome == "survived" else f"the tests of case {case} fail without any mutant: {by}"

    with _Copies(house, jobs) as copies:
        yield from filter(None, copies.each(one, cases))


class _Copies:
    """So many copies of the tree, and as many threads that work in them, until the block ends."""

    def __init__(self, house: Path, jobs: int) -> None:
        self._house = house
        self._jobs = jobs
        self._free: queue.SimpleQueue[Path] = queue.SimpleQueue()
        self._open = contextlib.ExitStack()

    def __enter__(self) -> Self:
        folder = Path(self._open.enter_context(tempfile.TemporaryDirectory(prefix="mutants-")))
        self._pool = self._open.enter_context(concurrent.futures.ThreadPoolExecutor(self._jobs))
        for number in range(self._jobs):
            self._free.put(copy_of(self._house, folder / f"copy-{number}"))
        return self

    def __exit__(self, *_: object) -> None:
        self._open.close()

    def each(self, do: Callable[[Path, T], R], many: Sequence[T]) -> Iterator[R]:
        """Do it in some copy for each of them; what comes of it, as it comes."""

        def one(what: T) -> R:
            copy = self._free.get()
            try:
                return do(copy, what)
            finally:
                self._free.put(copy)

        for done in concurrent.futures.as_completed([self._pool.submit(one, what) for what in many]):
            yield done.result()


def main(arguments: Sequence[str], house: Path = HOUSE) -> int:
    """The exit status: 1 when one survived or was invalid."""
    parser = argparse.ArgumentParser(prog="mutation", description="Remove what is marked, and see its tests fail.")
    parser.add_argument("paths", nargs="*", metavar="PATH[:LINE]", help="only marks of these files, or of one line")
    parser.add_argument("--case", type=int, action="append", help="only marks of this case; repeatable")
    parser.add_argument("--sample", type=int, help="only so many, chosen by --seed")
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(2**32))
    parser.add_argument("--jobs", type=int, default=max(1, (os.cpu_count() or 2) // 2))
    parser.add_argument("--list", action="store_true", help="only say what would be done")
    asked = parser.parse_args(arguments)
    mutants = [
        mutant
        for mutant in mutants_of(house, find_marks(house))
        if (not asked.case or mutant.case in asked.case)
        and (not asked.paths or mutant.mark.path in asked.paths or str(mutant.mark) in asked.paths)
    ]
    if asked.sample is not None and asked.sample < len(mutants):
        mutants = random.Random(asked.seed).sample(mutants, asked.sample)
        print(f"seed {asked.seed}: {len(mutants)} mutants")
    if asked.list:
        for mutant in mutants:
            print(f"{mutant.mark}  case {mutant.case}  {mutant.what}")
        return 0
    faults = list(faults_without_mutants(house, sorted({mutant.case for mutant in mutants}), asked.jobs))
    if faults:
        print(*faults, sep="\n")
        return 1
    verdicts: list[Verdict] = []
    for verdict in try_all(house, mutants, asked.jobs):
        print(verdict, flush=True)
        verdicts.append(verdict)
    counts = {
        outcome: sum(each.outcome == outcome for each in verdicts) for outcome in ("killed", "survived", "invalid")
    }
    marks = len({each.mutant.mark for each in verdicts})
    print(f"{len(verdicts)} mutants of {marks} marks: " + ", ".join(f"{n} {outcome}" for outcome, n in counts.items()))
    return 1 if counts["survived"] or counts["invalid"] or not verdicts else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
