"""Promela models, searched by spin: one report of what pan, the program that spin makes of a model, found."""

import re
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

__all__ = ["MODEL", "Report", "read_report", "search"]

MODEL = Path(__file__).parents[2] / "ca_core" / "records" / "model"
_MEMORY_MIB = 3500
_SECONDS = 540
# More than any search of these models needs; the report says when it was not enough.
_DEPTH = 20_000
# Nothing in these models is local to a process, so that partial order reduction has nothing to reduce.
_PAN = ("-w", "-DSAFETY", "-DNOREDUCE", f"-DMEMLIM={_MEMORY_MIB}")

_VIOLATED = re.compile(r"^pan:\d+: assertion violated (?P<what>.+) \(at depth \d+\)$", re.MULTILINE)
_ERRORS = re.compile(r"^State-vector \d+ byte, depth reached \d+, errors: (?P<errors>\d+)$", re.MULTILINE)
_STATES = re.compile(r"^ *(?P<states>[\d.e+]+) states, stored$", re.MULTILINE)
_UNREACHED = re.compile(r"^\t(?P<file>\S+):(?P<line>\d+), state \d+, \"(?P<text>.*)\"$", re.MULTILINE)
_END = "-end-"  # of a process that goes on for ever
_TRUNCATED = ("max search depth too small", "Search not completed", "out of memory", "-DMEMLIM bound", "aborting")
_SEARCHED_FOR = ("assertion violations\t+", "invalid end states\t+")


@dataclass(frozen=True, slots=True)
class Report:
    """What a search found.

    `violated` are the assertions that did not hold, as the model writes them; `unreached` the statements that no run
    of the model comes to, as file:line and text; `text` is all that was printed.
    """

    errors: int
    states: int
    violated: frozenset[str]
    unreached: tuple[str, ...]
    is_complete: bool
    text: str


def search(
    folder: Path, *options: str, quickly: bool = False, every_error: bool = False, depth: int = _DEPTH
) -> Report:
    """Search all states of the model of the commit with these -D options, in `folder`, up to the first error.

    `quickly` is for what is soon found: compiling takes longer then than searching. `every_error` goes on.
    """
    _run(folder, "spin", "-a", *options, MODEL / "commit.pml")
    _run(folder, "gcc", "-O0" if quickly else "-O2", *_PAN, "-o", "pan", "pan.c")
    # pan's own exit status says nothing of what it found.
    return read_report(_run(folder, "./pan", f"-m{depth}", *(("-c0",) if every_error else ())))


def read_report(text: str) -> Report:
    """The report in what pan printed."""
    errors, states = _ERRORS.search(text), _STATES.search(text)
    assert errors is not None, text
    assert states is not None, text
    unreached = [match for match in _UNREACHED.finditer(text) if match["text"] != _END]
    return Report(
        errors=int(errors["errors"]),
        states=int(float(states["states"])),
        violated=frozenset(what.strip() for what in _VIOLATED.findall(text)),
        unreached=tuple(f"{Path(match['file']).name}:{match['line']}: {match['text']}" for match in unreached),
        is_complete=all(part in text for part in _SEARCHED_FOR) and not any(part in text for part in _TRUNCATED),
        text=text,
    )


def _run(folder: Path, *command: str | Path) -> str:
    words: Sequence[str] = [str(part) for part in command]
    done = subprocess.run(
        words, cwd=folder, capture_output=True, text=True, timeout=_SECONDS, check=False, stdin=subprocess.DEVNULL
    )
    output = done.stdout + done.stderr
    if done.returncode != 0 or (words[0] == "spin" and output.strip()):
        raise AssertionError(f"{' '.join(words)} ended with {done.returncode}:\n{output[:4000]}")
    return output
