"""Fixtures of the end-to-end tests: one daemon per test process, and the demo PKI that its devices come from."""

import itertools
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from certs.demo_pki import DemoPki, make_demo_pki
from tests.helpers.daemon import Daemon, running_daemon

_numbers = itertools.count(1)

OFTEN = "[limits]\ncertificates_per_device = 100000\ncertificates_per_credential = 100000\n"
"""For a daemon that tests ask more often than devices do; what the limits do is shown in test_limits."""


@pytest.fixture(scope="session")
def daemon(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemon]:
    """A daemon that the tests of this process share; each keeps to devices of its own."""
    with running_daemon(tmp_path_factory.mktemp("daemon"), settings=OFTEN) as running:
        yield running


@pytest.fixture
def own_daemon(tmp_path: Path) -> Iterator[Daemon]:
    """A daemon for one test alone, which may count everything in it."""
    with running_daemon(tmp_path, settings=OFTEN) as running:
        yield running


@pytest.fixture(scope="session")
def pki(tmp_path_factory: pytest.TempPathFactory) -> DemoPki:
    """Two manufacturers and their devices, not known to any daemon yet."""
    return make_demo_pki(tmp_path_factory.mktemp("pki"))


@pytest.fixture
def new_name() -> Callable[[], str]:
    """Make a device name that no other test uses."""
    return lambda: f"device-{next(_numbers)}"
