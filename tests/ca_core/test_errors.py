"""The tree of errors, and the closed set of codes."""

import ast
import inspect
from collections.abc import Iterator
from pathlib import Path

import pytest

import ca_core
from ca_core import errors
from ca_core.codes import CODES
from ca_core.errors import CoreError, Refusal

ROOT = Path(ca_core.__file__).parents[1]
SOURCES = [
    path
    for package in ("ca_core", "est_server", "scep_server", "enrolld")
    for path in sorted((ROOT / package).rglob("*.py"))
    if path.name != "codes.py"
]


def _tree(of: type[CoreError]) -> Iterator[type[CoreError]]:
    yield of
    for below in of.__subclasses__():
        yield from _tree(below)


OURS = [found for found in _tree(CoreError) if found.__module__ == errors.__name__]
REFUSALS = {found.__name__ for found in OURS if issubclass(found, Refusal)}


def _strings(path: Path) -> set[str]:
    return {
        node.value
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Constant) and isinstance(node.value, str)
    }


def _refused_with() -> Iterator[tuple[str, str]]:
    for path in SOURCES:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in REFUSALS:
                code = node.args[0]
                if isinstance(code, ast.Constant) and isinstance(code.value, str):
                    yield code.value, f"{path.name}:{node.lineno}"


@pytest.mark.parametrize("found", OURS, ids=lambda found: found.__name__)
def test_every_error_says_what_it_means_and_stands_in_the_drawing(found: type[CoreError]) -> None:
    assert found.__doc__
    assert found.__doc__ not in {base.__doc__ for base in found.__bases__}
    assert found.__name__ in str(inspect.getdoc(errors))
    assert found is CoreError or found.__name__ in errors.__all__


def test_every_code_that_a_refusal_is_made_with_is_in_the_closed_set() -> None:
    used = list(_refused_with())
    assert len(used) > 50
    assert [place for code, place in used if code not in CODES] == []


def test_every_code_is_used_somewhere() -> None:
    used: set[str] = set().union(*map(_strings, SOURCES))
    assert sorted(set(CODES) - used) == []


@pytest.mark.parametrize("code", CODES)
def test_a_code_is_a_word_with_a_remedy(code: str) -> None:
    assert code == code.lower()
    assert code.replace("_", "").isalnum()
    assert len(code) <= 40  # the column of the attempts
    assert CODES[code].isprintable()
    assert CODES[code].endswith((".", "'"))


def test_a_refusal_carries_its_remedy_and_an_unknown_code_is_no_refusal() -> None:
    refusal = errors.NotAuthorized("device_suspended", "The device is suspended.", detail="for the operator")
    assert refusal.remedy == CODES["device_suspended"]
    assert "operator" not in str(refusal)
    with pytest.raises(KeyError):
        errors.NotAuthorized("no_such_code", "x")
