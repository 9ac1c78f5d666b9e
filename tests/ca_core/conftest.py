"""What the core's own tests have beside the shared fixtures."""

from collections.abc import Iterator

import pytest

from ca_core.core import Core
from tests.helpers.core import Installation


@pytest.fixture
def second(installation: Installation) -> Iterator[Core]:
    """Another node, or the command line, on the same store."""
    opened = installation.open()
    yield opened
    opened.close()
