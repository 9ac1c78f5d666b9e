"""Fixtures of the attack cases: one daemon per test process, and a field of its own for each test."""

from collections.abc import Iterator

import pytest

from tests.attack_cases.field import Field, field_of
from tests.helpers.daemon import Daemon, running_daemon


@pytest.fixture(scope="session")
def daemon(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemon]:
    """A daemon that the cases of this process share. After all of them, it has said nothing of a traceback."""
    with running_daemon(tmp_path_factory.mktemp("attacked")) as running:
        yield running


@pytest.fixture(scope="session")
def fields(daemon: Daemon) -> Iterator[Field]:
    return field_of(daemon)


@pytest.fixture
def field(fields: Iterator[Field]) -> Field:
    """A new honest device, in a network of its own."""
    return next(fields)
