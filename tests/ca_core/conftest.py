"""A core for each test, on a SQLite file of its own."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from ca_core.core import Core
from tests.helpers.core import Installation, SetClock, make_installation


@pytest.fixture(scope="session")
def template(tmp_path_factory: pytest.TempPathFactory) -> Installation:
    """Made once per process: the RSA keys take half a second."""
    return make_installation(tmp_path_factory.mktemp("installation") / "template")


@pytest.fixture
def installation(template: Installation, tmp_path: Path) -> Installation:
    return template.copy_to(tmp_path / "data")


@pytest.fixture
def clock(installation: Installation) -> SetClock:
    return installation.clock


@pytest.fixture
def core(installation: Installation) -> Iterator[Core]:
    opened = installation.open()
    yield opened
    opened.close()


@pytest.fixture
def second(installation: Installation) -> Iterator[Core]:
    """Another node, or the command line, on the same store."""
    opened = installation.open()
    yield opened
    opened.close()
