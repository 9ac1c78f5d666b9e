"""The plan of the house: who imports whom, and where a library may appear."""

import ast
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

HOUSE = Path(__file__).resolve().parent.parent
PACKAGES = ("ca_core", "est_server", "scep_server", "enrolld")


def modules() -> Iterator[Path]:
    for package in PACKAGES:
        yield from sorted((HOUSE / package).rglob("*.py"))


def imported(path: Path) -> set[str]:
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            names |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def test_every_import_contract_is_kept() -> None:
    done = subprocess.run(
        [str(Path(sys.executable).with_name("lint-imports")), "--no-cache"],
        cwd=HOUSE,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout
    assert "0 broken" in done.stdout


@pytest.mark.parametrize(
    ("library", "allowed"),
    [
        pytest.param("aiohttp", ("enrolld/", "handlers.py", "app.py"), id="aiohttp"),
        pytest.param("OpenSSL", ("enrolld/tls/",), id="pyopenssl"),
        pytest.param("sqlalchemy", ("ca_core/",), id="sqlalchemy"),
        pytest.param("sqlite3", ("ca_core/records/",), id="sqlite3"),
        pytest.param("alembic", ("ca_core/records/",), id="alembic"),
        pytest.param("click", ("enrolld/cli/",), id="click"),
        pytest.param("prometheus_client", ("enrolld/metrics/exposition.py",), id="prometheus-client"),
    ],
)
def test_a_library_appears_only_where_it_belongs(library: str, allowed: tuple[str, ...]) -> None:
    using = {
        str(path.relative_to(HOUSE)) for path in modules() if any(n.split(".")[0] == library for n in imported(path))
    }
    assert using, f"{library} is not used any more: take it out of this table"
    assert {path for path in using if not path.startswith(allowed) and not path.endswith(allowed)} == set()


def test_only_authentication_makes_a_requester() -> None:
    holders = {
        str(path.relative_to(HOUSE))
        for path in modules()
        if any(name.endswith(".AUTHENTICATED") for name in imported(path))
    }
    assert holders == {"ca_core/registration/requester.py"}


def test_nobody_asks_the_clock_but_the_edge() -> None:
    """`datetime.now` in the core would be a clock that a test can't set."""
    asking = {
        str(path.relative_to(HOUSE))
        for path in modules()
        if path.is_relative_to(HOUSE / "ca_core") and (".now(" in path.read_text() or "time.time(" in path.read_text())
    }
    assert asking == {"ca_core/records/times.py"}


def test_every_package_says_that_it_is_typed() -> None:
    assert [package for package in PACKAGES if not (HOUSE / package / "py.typed").is_file()] == []


def test_every_list_of_weak_keys_is_shipped_with_its_package() -> None:
    from ca_core.weak_keys.debian import SHIPPED

    with (HOUSE / "pyproject.toml").open("rb") as file:
        data = tomllib.load(file)["tool"]["setuptools"]["package-data"]
    assert SHIPPED
    for path in SHIPPED.values():
        assert any(path.match(pattern) for pattern in data["ca_core.weak_keys"])
        assert path.is_file()


def test_every_reason_of_the_transport_is_a_code_that_can_be_explained() -> None:
    from ca_core.codes import CODES
    from enrolld.http_refusal import _PARSER_REFUSALS, OWN_WORDS
    from enrolld.tls import StreamReason

    reasons = {reason.value for reason in StreamReason}
    reasons |= {reason for reason, _ in OWN_WORDS.values()} | {row[3] for row in _PARSER_REFUSALS}
    sources = "".join((HOUSE / "enrolld" / f"http_{part}.py").read_text() for part in ("connection", "refusal"))
    reasons |= set(re.findall(r'HttpRefusedError\(\s*\d{3},\s*"(http_\w+)"', sources))
    assert len(reasons) > 25
    assert reasons - set(CODES) == set()
