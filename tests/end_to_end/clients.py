"""The foreign programs that the tests run. In CI all must be there; elsewhere a test that lacks one is skipped."""

import os
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

import pytest

__all__ = ["FOREIGN", "in_ci", "interop", "needs", "run"]

INTEROP = Path(__file__).parents[2] / "interop"


@dataclass(frozen=True, slots=True)
class Foreign:
    """A program that is not ours, the Debian package that brings it, and how it tells its version."""

    program: str
    package: str
    version: tuple[str, ...]


FOREIGN = {
    "curl": Foreign("curl", "curl", ("curl", "--version")),
    "openssl": Foreign("openssl", "openssl", ("openssl", "version")),
    "pki": Foreign("pki", "strongswan-pki", ("pki", "--help")),
    "strace": Foreign("strace", "strace", ("strace", "--version")),
}
"""`.ci/run` installs these packages; a test holds that its list is this one."""


def in_ci() -> bool:
    """Whether this run is one that must be complete."""
    return os.environ.get("CI", "").lower() in {"1", "true", "yes"}


def needs(*programs: str) -> None:
    """Skip the calling test when a program is missing; in CI, fail it."""
    for program in programs:
        foreign = FOREIGN[program]
        if shutil.which(program) is None:
            reason = f"{program} is not installed (Debian: {foreign.package})"
            if in_ci():
                pytest.fail(reason)
            pytest.skip(reason)


def run(*command: str | Path, cwd: Path, stdin: bytes = b"", check: bool = True) -> subprocess.CompletedProcess[bytes]:
    """Run a foreign program in `cwd`, where its files are, with an environment that holds nothing of ours."""
    done = subprocess.run(
        [str(part) for part in command],
        cwd=cwd,
        input=stdin,
        capture_output=True,
        timeout=60,
        check=False,
        env=_environment(),
    )
    if check and done.returncode != 0:
        raise AssertionError(_told(command, done))
    return done


def interop(
    script: str, *, cwd: Path, check: bool = True, pasted: bool = False, settings: dict[str, str]
) -> subprocess.CompletedProcess[bytes]:
    """Run a recipe of `interop/` in a folder of its own, with its variables set.

    `pasted` runs its lines as a person pastes them from the README, into a shell that goes on after a failure.
    """
    path = INTEROP / script
    done = subprocess.run(
        ["sh", "-c", path.read_text().partition("# --- recipe\n")[2]] if pasted else ["sh", str(path)],
        cwd=cwd,
        input=b"",
        capture_output=True,
        timeout=60,
        check=False,
        env={**_environment(), **settings},
    )
    if check and done.returncode != 0:
        raise AssertionError(_told((path,), done))
    return done


def _environment() -> dict[str, str]:
    return {"PATH": os.environ["PATH"], "LC_ALL": "C.UTF-8", "TZ": "UTC"}


def _told(command: tuple[str | Path, ...], done: subprocess.CompletedProcess[bytes]) -> str:
    words = " ".join(str(part) for part in command)
    output = (done.stdout + done.stderr).decode(errors="replace")
    return f"{words}\nended with {done.returncode}:\n{output}"
