"""A SoftHSM of a test's own, behind p11-kit, or behind a module that makes faults (`faulty_module.c`)."""

import os
import shutil
import subprocess
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

PROXY = "p11-kit-proxy.so"
SOFTHSM = "/usr/lib/softhsm/libsofthsm2.so"
PIN = "927364"
SOURCE = Path(__file__).with_name("faulty_module.c")


@dataclass(frozen=True, slots=True)
class SoftHsm:
    """Tokens in a folder; `environment` is what leads PKCS#11 programs there, and to no token of this machine.

    `module` is one that makes the faults that `fault` asks for. It stands in the place of p11-kit's proxy, which in a
    process of root reads no configuration but the machine's.
    """

    folder: Path
    environment: Mapping[str, str]
    module: str

    @classmethod
    def make(cls, folder: Path, *tokens: str) -> "SoftHsm":
        """A SoftHSM with these tokens, each with the PIN `PIN`."""
        kept, rules, config = folder / "tokens", folder / "rules", folder / "config" / "pkcs11"
        for each in (kept, rules, config / "modules"):
            each.mkdir(parents=True)
        settings = folder / "softhsm2.conf"
        settings.write_text(f"directories.tokendir = {kept}\nobjectstore.backend = file\nlog.level = ERROR\n")
        faulty = folder / PROXY
        subprocess.run(["gcc", "-shared", "-fPIC", "-o", str(faulty), str(SOURCE), "-ldl"], check=True)
        (config / "pkcs11.conf").write_text("user-config: only\n")
        (config / "modules" / "softhsm.module").write_text(f"module: {SOFTHSM}\n")
        made = cls(
            folder,
            {
                "SOFTHSM2_CONF": str(settings),
                "XDG_CONFIG_HOME": str(config.parent),
                "FAULTY_MODULE": SOFTHSM,
                "FAULTY_RULES": str(rules),
            },
            str(faulty),
        )
        for token in tokens:
            made.add(token)
        return made

    def add(self, token: str, pin: str = PIN) -> None:
        """Make a token."""
        subprocess.run(
            ["softhsm2-util", "--init-token", "--free", "--label", token, "--pin", pin, "--so-pin", "12345678"],
            env={**os.environ, **self.environment},
            check=True,
            capture_output=True,
        )

    def fault(self, function: str, *numbers: int) -> None:
        """Make a rule of `faulty_module.c`."""
        (self.folder / "rules" / function).write_text(" ".join(str(number) for number in numbers))

    def mend(self) -> None:
        """No rules."""
        shutil.rmtree(self.folder / "rules")
        (self.folder / "rules").mkdir()

    def calls(self, function: str) -> int:
        """How often C_Login, C_Sign or C_Decrypt was called."""
        path = self.folder / "rules" / f"{function}.calls"
        return path.stat().st_size if path.exists() else 0

    @contextmanager
    def pulled(self) -> Iterator[None]:
        """While nothing is plugged in."""
        here, away = self.folder / "tokens", self.folder / "pulled"
        here.rename(away)
        here.mkdir()
        try:
            yield
        finally:
            here.rmdir()
            away.rename(here)

    def objects(self, token: str, pin: str = PIN) -> str:
        """What the token has, as OpenSC shows it to whoever knows the PIN."""
        done = subprocess.run(
            ["pkcs11-tool", "--module", SOFTHSM, "--token-label", token, "--login", "--pin", pin, "--list-objects"],
            env={**os.environ, **self.environment},
            check=True,
            capture_output=True,
        )
        return done.stdout.decode()
