"""What the core's own tests have beside the shared fixtures: every one of them runs on both engines."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from ca_core.core import Core
from ca_core.weak_keys import debian, find_weakness
from tests.end_to_end.clients import needs
from tests.helpers.core import Installation, make_installation
from tests.helpers.postgres import Postgres


@pytest.fixture(scope="session")
def shared_template(postgres: Postgres, tmp_path_factory: pytest.TempPathFactory) -> Installation:
    """Made once per process, like `template`, on PostgreSQL."""
    return make_installation(tmp_path_factory.mktemp("shared-installation") / "template", postgres)


@pytest.fixture(params=["sqlite", "postgresql"])
def installation(request: pytest.FixtureRequest, template: Installation, tmp_path: Path) -> Iterator[Installation]:
    if request.param == "postgresql":
        needs("postgresql")
        template = request.getfixturevalue("shared_template")
    made = template.copy_to(tmp_path / "data")
    yield made
    made.drop()


@pytest.fixture
def lists(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The folder in which lists of Debian's weak keys are looked for; what is known of keys is forgotten around it."""
    folder = tmp_path / "openssl-blacklist"
    folder.mkdir()
    monkeypatch.setattr(debian, "FOLDER", folder)
    find_weakness.cache_clear()
    yield folder
    find_weakness.cache_clear()


@pytest.fixture
def second(installation: Installation) -> Iterator[Core]:
    """Another node, or the command line, on the same store."""
    opened = installation.open()
    yield opened
    opened.close()
