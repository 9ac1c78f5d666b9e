"""How the keys in a HSM are reached: the PKCS#11 module, and the PIN of its tokens, which never shows itself."""

from dataclasses import dataclass
from pathlib import Path

from ca_core.authority.closed_file import read_closed
from ca_core.errors import OperatorError

PROXY = "p11-kit-proxy.so"
"""The module that reaches every token that p11-kit knows, from several threads at a time."""


@dataclass(frozen=True, slots=True)
class Pin:
    """The PIN of the node's tokens, 1 to 255 characters."""

    _value: str

    def __post_init__(self) -> None:
        if not 0 < len(self._value) < 256 or not self._value.isprintable():
            raise OperatorError(
                "hsm_pin_invalid",
                "the PIN of the HSM is empty, or has characters that no PIN has",
                "write the PIN alone into the file",
            )

    def __repr__(self) -> str:
        return "Pin(...)"

    @classmethod
    def decode(cls, value: bytes) -> "Pin":
        """The PIN in a file's bytes. Raises `OperatorError`."""
        try:
            return cls(value.strip().decode())
        except UnicodeDecodeError:
            return cls("")

    @classmethod
    def load(cls, path: Path) -> "Pin":
        """Read the PIN from a file that nobody else can read. Raises `OperatorError`."""
        return cls.decode(read_closed(path, "hsm_pin", "the PIN of the HSM", "[hsm] pin_file"))

    def reveal(self) -> str:
        """The PIN, for the module, or to be handed to a worker through a pipe."""
        return self._value


@dataclass(frozen=True, slots=True)
class HsmSettings:
    """The PKCS#11 module (a path, or a name that the loader finds) and the PIN of every token that is used."""

    module: str
    pin: Pin
