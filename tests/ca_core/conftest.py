"""What the core's own tests have beside the shared fixtures: every one of them runs on both engines."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from ca_core.core import Core
from ca_core.weak_keys import debian, find_weakness
from tests.end_to_end.clients import needs
from tests.helpers.admission import admit_by
from tests.helpers.core import Installation, make_installation
from tests.helpers.postgres import Postgres


@pytest.fixture(scope="session")
def shared_template(postgres: Postgres, tmp_path_factory: pytest.TempPathFactory) -> Installation:
    """Made once per process, like `template`, on PostgreSQL."""
    return make_installation(tmp_path_factory.mktemp("shared-installation") / "template", postgres)


@pytest.fixture(params=["sqlite", "postgresql"])
def engine(request: pytest.FixtureRequest) -> str:
    """What the test's stores are kept in."""
    if request.param == "postgresql":
        needs("postgresql")
    return str(request.param)


@pytest.fixture
def installation(
    request: pytest.FixtureRequest, engine: str, template: Installation, tmp_path: Path
) -> Iterator[Installation]:
    if engine == "postgresql":
        template = request.getfixturevalue("shared_template")
    made = template.copy_to(tmp_path / "data")
    yield made
    made.drop()


@pytest.fixture(scope="session")
def siblings_templates() -> dict[str, Installation]:
    """Those made so far, by engine."""
    return {}


@pytest.fixture
def siblings(
    request: pytest.FixtureRequest,
    engine: str,
    siblings_templates: dict[str, Installation],
    tmp_path: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Installation]:
    """An installation whose realm `other` stands under the root of `default`."""
    if engine not in siblings_templates:
        shared = request.getfixturevalue("postgres") if engine == "postgresql" else None
        folder = tmp_path_factory.mktemp("siblings") / "template"
        siblings_templates[engine] = make_installation(folder, shared, root_of="default")
    made = siblings_templates[engine].copy_to(tmp_path / "siblings")
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


@pytest.fixture
async def by_hand(core: Core) -> Core:
    """A realm in which an operator looks at everybody."""
    await admit_by(core, "approval")
    return core
