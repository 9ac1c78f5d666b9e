"""SCEP in front of a core."""

from collections.abc import AsyncIterator

import pytest

from ca_core.core import Core
from tests.helpers.core import Installation
from tests.scep_server.serving import Site


@pytest.fixture
async def site(core: Core, installation: Installation) -> AsyncIterator[Site]:
    made = Site(core, installation)
    await made.start()
    yield made
    await made.stop()
