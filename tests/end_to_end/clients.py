"""The foreign programs that the tests run. In CI all must be there; elsewhere a test that lacks one is skipped."""

import contextlib
import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.helpers.daemon import eventually

__all__ = ["CURL_PLUGIN", "FOREIGN", "INTEROP", "SCEP_SUBMIT", "in_ci", "interop", "needs", "run", "running_certmonger"]

INTEROP = Path(__file__).parents[2] / "interop"
SCEP_SUBMIT = "/usr/lib/certmonger/scep-submit"
CURL_PLUGIN = "/usr/lib/ipsec/plugins/libstrongswan-curl.so"


@dataclass(frozen=True, slots=True)
class Foreign:
    """A program that is not ours, the Debian package that brings it, and how it tells its version.

    `program` is found on PATH, or is a file where its package puts it.
    """

    program: str
    package: str
    version: tuple[str, ...]

    @property
    def is_there(self) -> bool:
        """Whether it is installed."""
        return Path(self.program).exists() if self.program.startswith("/") else shutil.which(self.program) is not None


_POSTGRES_VERSIONS = "for each in /usr/lib/postgresql/*/bin/postgres; do $each --version; done"

FOREIGN = {
    "certmonger": Foreign(SCEP_SUBMIT, "certmonger", ("/usr/sbin/certmonger", "-v")),
    "curl": Foreign("curl", "curl", ("curl", "--version")),
    "faketime": Foreign("faketime", "faketime", ("faketime", "--version")),
    "gcc": Foreign("gcc", "gcc", ("gcc", "--version")),
    "gnutls-cli": Foreign("gnutls-cli", "gnutls-bin", ("gnutls-cli", "--version")),
    "haproxy": Foreign("/usr/sbin/haproxy", "haproxy", ("/usr/sbin/haproxy", "-v")),
    "libssl-dev": Foreign("/usr/include/openssl/bn.h", "libssl-dev", ("dpkg-query", "--show", "libssl-dev")),
    "nginx": Foreign("/usr/sbin/nginx", "nginx-light", ("sh", "-c", "/usr/sbin/nginx -v 2>&1")),
    "opensc": Foreign("pkcs11-tool", "opensc", ("opensc-tool", "--version")),
    "openssl": Foreign("openssl", "openssl", ("openssl", "version")),
    "p11-kit": Foreign("p11-kit", "p11-kit", ("p11-kit", "list-modules")),
    "pki": Foreign("pki", "strongswan-pki", ("pki", "--help")),
    "pki over HTTP": Foreign(CURL_PLUGIN, "libstrongswan-extra-plugins", ("pki", "--scepca", "--help")),
    "postgresql": Foreign("pg_ctlcluster", "postgresql", ("sh", "-c", _POSTGRES_VERSIONS)),
    "scepclient": Foreign("scepclient", "scep", ("scepclient", "-version")),
    "softhsm2": Foreign("softhsm2-util", "softhsm2", ("softhsm2-util", "--version")),
    "spin": Foreign("spin", "spin", ("spin", "-V")),
    "strace": Foreign("strace", "strace", ("strace", "--version")),
    "systemd-analyze": Foreign("systemd-analyze", "systemd", ("systemd-analyze", "--version")),
    "systemd-socket-activate": Foreign("systemd-socket-activate", "systemd", ("systemd-socket-activate", "--version")),
}
"""`.ci/run` installs these packages; a test holds that its list is this one."""


def in_ci() -> bool:
    """Whether this run is one that must be complete."""
    return os.environ.get("CI", "").lower() in {"1", "true", "yes"}


def needs(*programs: str) -> None:
    """Skip the calling test when a program is missing; in CI, fail it."""
    for program in programs:
        foreign = FOREIGN[program]
        if not foreign.is_there:
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


@contextlib.contextmanager
def running_certmonger() -> Iterator[dict[str, str]]:
    """A certmonger of our own, beside any that runs on this machine: the settings by which `getcert` finds it."""
    # A socket's path must be short, and that of a test's folder is not.
    with tempfile.TemporaryDirectory(prefix="certmonger-") as name:
        folder = Path(name)
        socket = folder / "socket"
        environment = {
            **_environment(),
            "CERTMONGER_TMPDIR": name,
            "CERTMONGER_SYSTEM_LOCK_FILE": str(folder / "lock"),
        }
        for kind in ("REQUESTS", "CAS", "LOCAL_CA"):
            (folder / kind).mkdir()
            environment[f"CERTMONGER_{kind}_DIR"] = str(folder / kind)
        settings = {"CERTMONGER_PVT_ADDRESS": f"unix:path={socket}"}
        with (folder / "log").open("wb") as log:
            daemon = subprocess.Popen(
                ["/usr/sbin/certmonger", "-n", "-L", "-P", str(socket)],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env=environment,
            )

        def answers() -> bool | None:
            assert daemon.poll() is None, (folder / "log").read_text(errors="replace")
            if not socket.exists():
                return None
            asked = subprocess.run(
                ["getcert", "list-cas"],
                capture_output=True,
                timeout=30,
                check=False,
                env={**environment, **settings},
            )
            return True if asked.returncode == 0 else None

        try:
            eventually(answers, what="certmonger answers")
            yield settings
        finally:
            daemon.terminate()
            daemon.wait(30)


def _environment() -> dict[str, str]:
    return {"PATH": os.environ["PATH"], "LC_ALL": "C.UTF-8", "TZ": "UTC"}


def _told(command: tuple[str | Path, ...], done: subprocess.CompletedProcess[bytes]) -> str:
    words = " ".join(str(part) for part in command)
    output = (done.stdout + done.stderr).decode(errors="replace")
    return f"{words}\nended with {done.returncode}:\n{output}"
