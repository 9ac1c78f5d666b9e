"""The list of foreign clients is complete where it must be, and the same wherever it is written."""

import re
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest

from tests.end_to_end import clients

CI_RUN = Path(__file__).parents[2] / ".ci" / "run"


@pytest.mark.foreign
@pytest.mark.parametrize("program", sorted(clients.FOREIGN))
def test_every_foreign_client_is_installed_and_runs(program: str, tmp_path: Path) -> None:
    clients.needs(program)
    assert clients.run(*clients.FOREIGN[program].version, cwd=tmp_path).stdout


def test_a_missing_client_fails_the_test_in_ci(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CI", "true")
    monkeypatch.setattr(shutil, "which", lambda _program: None)
    with pytest.raises(pytest.fail.Exception, match=r"pki is not installed \(Debian: strongswan-pki\)"):
        clients.needs("pki")


def test_a_missing_client_skips_the_test_elsewhere(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CI", raising=False)
    monkeypatch.setattr(shutil, "which", lambda _program: None)
    with pytest.raises(pytest.skip.Exception, match="pki is not installed"):
        clients.needs("pki")


def test_a_missing_file_of_a_client_skips_the_test_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CI", raising=False)
    lost = replace(clients.FOREIGN["pki over HTTP"], program="/nowhere/libstrongswan-curl.so")
    monkeypatch.setitem(clients.FOREIGN, "pki over HTTP", lost)
    with pytest.raises(pytest.skip.Exception, match=r"is not installed \(Debian: libstrongswan-extra-plugins\)"):
        clients.needs("pki over HTTP")


def test_ci_installs_exactly_the_clients_that_the_tests_need() -> None:
    listed = re.search(r"^foreign=\((.*?)\)$", CI_RUN.read_text(), re.MULTILINE | re.DOTALL)
    assert listed
    pairs = dict(pair.split(":") for pair in listed[1].split())
    assert {foreign.program: foreign.package for foreign in clients.FOREIGN.values()} == pairs


def test_ci_script_is_sound_shell() -> None:
    assert CI_RUN.stat().st_mode & 0o111
    subprocess.run(["bash", "-n", str(CI_RUN)], check=True)
