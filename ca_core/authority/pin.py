"""How the keys in a HSM are reached: the PKCS#11 module, and the PINs of its tokens, which never show themselves."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from ca_core.authority.closed_file import read_closed
from ca_core.errors import OperatorError

PROXY = "p11-kit-proxy.so"
"""The module that reaches every token that p11-kit knows, from several threads at a time."""


@dataclass(frozen=True, slots=True)
class Pin:
    """The PIN of one or all of the node's tokens, 1 to 255 characters."""

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
    def load(cls, path: Path, key: str = "[hsm] pin_file") -> "Pin":
        """Read the PIN from a file that nobody else can read, which the configuration's `key` names.

        Raises `OperatorError`.
        """
        return cls.decode(read_closed(path, "hsm_pin", "the PIN of the HSM", key))

    def reveal(self) -> str:
        """The PIN, for the module, or to be handed to a worker through a pipe."""
        return self._value


@dataclass(frozen=True, slots=True)
class HsmSettings:
    """The PKCS#11 module (a path, or a name that the loader finds) and the PINs of the tokens that are used.

    `pins` are those of tokens that have one of their own, by the token's label; `pin` is that of the others.
    """

    module: str
    pin: Pin | None
    pins: Mapping[str, Pin] = field(default_factory=dict)

    def pin_of(self, token: str) -> Pin | None:
        """The PIN of the token with this label, None when this node has none."""
        return self.pins.get(token, self.pin)

    def all_pins(self) -> tuple[Pin, ...]:
        """Every PIN of this node."""
        return (*self.pins.values(), *([self.pin] if self.pin is not None else []))
