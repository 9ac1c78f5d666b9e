"""A core for each test, on a SQLite file of its own, whose realms have their RA certificates; SCEP in front of it."""

import asyncio
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from ca_core.core import Core
from tests.helpers.core import Installation, SetClock, make_installation
from tests.scep_server.serving import Site


@pytest.fixture(scope="session")
def template(tmp_path_factory: pytest.TempPathFactory) -> Installation:
    """Made once per process: the RSA keys take a second."""
    made = make_installation(tmp_path_factory.mktemp("installation") / "template")

    async def ensure() -> None:
        core = made.open()
        try:
            await core.ra_certificates.ensure()
        finally:
            core.close()

    asyncio.run(ensure())
    return made


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
async def site(core: Core, installation: Installation) -> AsyncIterator[Site]:
    made = Site(core, installation)
    await made.start()
    yield made
    await made.stop()
