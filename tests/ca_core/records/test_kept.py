"""Stores of earlier versions: this version upgrades each of them, loses nothing, and goes on with it."""

import base64
from collections.abc import Callable
from pathlib import Path

import pytest

from ca_core.model import Evidence
from ca_core.records.migrating import HEAD
from ca_core.records.opening import upgrade_store
from tests.end_to_end.clients import needs
from tests.helpers.core import Installation, ask, code_of, csr_of, new_key
from tests.helpers.kept import REVISIONS, facts, key_of, load


@pytest.fixture(params=["sqlite", "postgresql"])
def kept(request: pytest.FixtureRequest, tmp_path: Path) -> Callable[[str], Installation]:
    """Loads a kept store."""
    if request.param == "sqlite":
        return lambda revision: load(revision, tmp_path / "kept", None)
    needs("postgresql")
    database: str = request.getfixturevalue("database")
    name = database.rpartition("/")[2]
    return lambda revision: load(revision, tmp_path / "kept", request.getfixturevalue("postgres"), name)


def test_the_store_of_this_version_is_kept() -> None:
    assert HEAD in REVISIONS, "python -m tests.helpers.kept"


@pytest.mark.parametrize("revision", REVISIONS)
async def test_a_kept_store_is_upgraded_and_goes_on(kept: Callable[[str], Installation], revision: str) -> None:
    installation, known = kept(revision), facts(revision)
    assert upgrade_store(installation.store_url)[0] == revision
    assert installation.sql("SELECT version_num FROM alembic_version") == [(HEAD,)]
    installation.clock.forward(minutes=5)
    core = installation.open()
    try:
        verdict = await core.audit.verify()
        assert verdict.findings == []
        assert verdict.events > 15
        assert verdict.heads == 1
        realms = {row.realm: row for row in (await core.status()).realms}
        assert realms["default"].devices == {"active": 1, "suspended": 1, "expected": 1}
        assert realms["default"].certificates == {"valid": 3}
        assert realms["other"].certificates == {"revoked": 1}
        held = Evidence(chain=(base64.b64decode(known["d-1 certificate"]),))
        issued = await ask(core, held, csr_of(new_key(), "d-1"))
        assert await code_of(core, Evidence(chain=(issued.certificate,)), csr_of(new_key(), "d-1")) == "issued"
        revoked = Evidence(chain=(base64.b64decode(known["d-2 certificate"]),))
        assert await code_of(core, revoked, csr_of(new_key(), "d-2"), label="other") == "certificate_revoked"
        secret = Evidence(username="", secret=known["d-4 secret"])
        assert await code_of(core, secret, csr_of(key_of(known["d-1 key"]), "d-4")) == "key_of_other_device"
        assert await code_of(core, secret, csr_of(new_key(), "d-4")) == "issued"
        assert (await core.crls.publish("default-ec-1"))[0].number == 2
        assert (await core.audit.verify()).findings == []
    finally:
        core.close()
