"""What the core tells whoever counts. The core itself counts nothing, and knows no metrics library."""

from typing import Final, Protocol

from ca_core.model import ProtocolName

__all__ = ["NO_METER", "Meter"]


class Meter(Protocol):
    """Told of what happens, from the event loop and from the store's writer thread. It must be quick and never raise.

    Nothing that it is told was made up by a peer: `backend` and `protocol` are words of ours, `code` is one of `CODES`,
    `realm` the name of a realm that exists, or empty.
    """

    def signed(self, backend: str, seconds: float) -> None:
        """A CA's key has signed a certificate or a CRL; `backend` is what holds the key, such as `software`."""
        ...

    def committed(self, seconds: float, units: int) -> None:
        """A transaction is durable: how long it took since its turn was asked for, and how many units shared it."""
        ...

    def refused(self, realm: str, protocol: ProtocolName, code: str) -> None:
        """A request was refused; `protocol` is http for what never became one of EST or SCEP."""
        ...


class _NoMeter:
    """Counts nothing: a command has nobody to tell."""

    def signed(self, backend: str, seconds: float) -> None:
        """Nothing."""

    def committed(self, seconds: float, units: int) -> None:
        """Nothing."""

    def refused(self, realm: str, protocol: ProtocolName, code: str) -> None:
        """Nothing."""


NO_METER: Final[Meter] = _NoMeter()
