"""For every test: a core on a SQLite file of its own, if it wants one, or a database of PostgreSQL; and no skips where
.ci/run forbids them.
"""

import contextlib
import functools
import itertools
import os
import tempfile
from collections.abc import Generator, Iterator
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.serialization import load_der_private_key

from ca_core.core import Core
from tests.helpers.core import Installation, SetClock, make_installation
from tests.helpers.postgres import Postgres, running_postgres

NO_SKIPS = os.environ.get("ENROLLD_NO_SKIPS") == "1"


def _skip_is_failure(report: pytest.TestReport | pytest.CollectReport) -> None:
    if not NO_SKIPS or report.outcome != "skipped" or hasattr(report, "wasxfail"):
        return
    reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else str(report.longrepr)
    report.outcome = "failed"
    report.longrepr = f"skipped where nothing may be skipped: {reason}"


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport() -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    _skip_is_failure(report)
    return report


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report() -> Generator[None, pytest.CollectReport, pytest.CollectReport]:
    report = yield
    _skip_is_failure(report)
    return report


@pytest.fixture(scope="session", autouse=True)
def _keys_are_checked_once() -> Iterator[None]:
    """Reading an RSA key has OpenSSL prove its primes, for 30 to 90 ms: once for the same bytes, instead of per test.

    What does not open is tried anew each time, and other processes (daemons, commands) read as they always do.
    """
    with pytest.MonkeyPatch.context() as patch:
        once = functools.lru_cache(maxsize=500)(load_der_private_key)
        patch.setattr("ca_core.authority.sealing.load_der_private_key", once)
        yield


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


@pytest.fixture(scope="session")
def postgres() -> Iterator[Postgres]:
    """A PostgreSQL of this process, for tests in which no disk fails; those that kill one start one of their own."""
    memory = Path("/dev/shm")  # noqa: S108  # no secret of anybody's
    with contextlib.ExitStack() as stack:
        # Where waiting for the disk takes no time.
        data = Path(stack.enter_context(tempfile.TemporaryDirectory(dir=memory))) if memory.is_dir() else None
        yield stack.enter_context(running_postgres(data=data))


_databases = itertools.count(1)


@pytest.fixture
def database(postgres: Postgres) -> Iterator[str]:
    """The URL of an empty database for one test alone."""
    name = f"test_{next(_databases)}"
    yield postgres.create(name)
    postgres.drop(name)
