"""Where the unlock key comes from, which opens the CA keys in the store, and the PIN, which opens those in a HSM.

In this order: the systemd credential `enrolld-unlock`, ENROLLD_UNLOCK_FILE or `[unlock] file`, DIR/keys/unlock as the
quick start makes it, and a prompt where there is a terminal. It never travels by argument or environment. The PIN
comes from the systemd credential `enrolld-hsm-pin`, else from ENROLLD_HSM_PIN_FILE or `[hsm] pin_file`; that of a token
with one of its own from the credential `enrolld-hsm-pin.LABEL`, else from `[hsm.pin_files]`.
"""

import getpass
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

from ca_core.authority.pin import HsmSettings, Pin
from ca_core.authority.sealing import UnlockKey
from ca_core.errors import OperatorError
from ca_core.records.opening import is_shared
from enrolld.config import Node

__all__ = ["CREDENTIAL", "NOTICE", "ask", "find", "find_hsm", "generate", "missing"]

CREDENTIAL = "enrolld-unlock"
PIN_CREDENTIAL = "enrolld-hsm-pin"

NOTICE = (
    "The key that opens the CA keys lies in {path}.\n"
    "There it protects backups and copies of the store, but not this disk, until you move it: into a systemd\n"
    "credential ({credential}), or to another place that ENROLLD_UNLOCK_FILE names."
)


def find(node: Node, environ: Mapping[str, str], ask: Callable[[], str | None] | None) -> UnlockKey | None:
    """The unlock key from the first source that has one; `ask` is the last resort. Raises OperatorError."""
    credential = _credential(environ, CREDENTIAL, "unlock_key")
    if credential is not None:
        return UnlockKey(credential)
    if node.unlock_file is not None:
        return _load(node.unlock_file)
    if (own := _own_file(node)).exists() or own.is_symlink():
        return _load(own)
    typed = ask() if ask is not None else None
    return UnlockKey(typed.encode()) if typed else None


def find_hsm(node: Node, environ: Mapping[str, str]) -> HsmSettings | None:
    """How the node's HSM is reached; None when no PIN is configured. Raises OperatorError."""
    pin: Pin | None = None
    credential = _credential(environ, PIN_CREDENTIAL, "hsm_pin")
    if credential is not None:
        pin = Pin.decode(credential)
    elif node.hsm_pin_file is not None:
        pin = Pin.load(node.hsm_pin_file)
    pins = {token: Pin.decode(handed) for token, handed in _credentials_of_tokens(environ)}
    for token, path in node.hsm_pin_files.items():
        if token not in pins:
            pins[token] = Pin.load(path, f"[hsm.pin_files] {token}")
    return HsmSettings(node.hsm_module, pin, pins) if pin is not None or pins else None


def ask() -> str | None:
    """Prompt for the unlock key, where somebody can answer."""
    if not sys.stdin.isatty():
        return None
    return getpass.getpass("Unlock key: ", stream=sys.stderr).strip()


def missing(node: Node) -> OperatorError:
    """Says that no source had the key."""
    if is_shared(node.store_url):
        return OperatorError(
            "unlock_key_missing",
            f"The unlock key is needed, and there is none in {_own_file(node)}.",
            f"Copy keys/unlock of another node to {_own_file(node)} (mode 0600), or give it by the systemd credential "
            f"{CREDENTIAL} or ENROLLD_UNLOCK_FILE=PATH; then send SIGHUP to a daemon that runs.",
        )
    return OperatorError(
        "unlock_key_missing",
        f"The unlock key is needed, and there is none in {_own_file(node)}.",
        f"Give it by the systemd credential {CREDENTIAL}, by ENROLLD_UNLOCK_FILE=PATH, or run this on a terminal.",
    )


def generate(node: Node) -> tuple[UnlockKey, Path]:
    """Make the key of a new CA in DIR/keys/unlock (0600, never over another)."""
    path = _own_file(node)
    path.parent.mkdir(mode=0o700, exist_ok=True)
    return UnlockKey.generate(path), path


def _credential(environ: Mapping[str, str], name: str, code: str) -> bytes | None:
    """What systemd hands over under a name, if it does. Raises OperatorError."""
    if not environ.get("CREDENTIALS_DIRECTORY"):
        return None
    credential = Path(environ["CREDENTIALS_DIRECTORY"]) / name
    try:
        # systemd guards the folder, and shares the file by an ACL, which looks like a group's permission.
        return credential.read_bytes().strip()
    except FileNotFoundError:
        return None
    except OSError as exc:
        raise OperatorError(
            f"{code}_missing", f"The credential {credential} can't be read: {exc.strerror}.", "Look at the unit."
        ) from exc


def _credentials_of_tokens(environ: Mapping[str, str]) -> Iterator[tuple[str, bytes]]:
    """The PINs that systemd hands over for single tokens, by their labels. Raises OperatorError."""
    folder = environ.get("CREDENTIALS_DIRECTORY")
    for path in sorted(Path(folder).glob(f"{PIN_CREDENTIAL}.*")) if folder else ():
        handed = _credential(environ, path.name, "hsm_pin")
        if handed is not None:
            yield path.name.removeprefix(f"{PIN_CREDENTIAL}."), handed


def _load(path: Path) -> UnlockKey:
    try:
        return UnlockKey.load(path)
    except OperatorError as exc:
        if isinstance(exc.__cause__, PermissionError):
            remedy = f"Give it to the user that runs enrolld, and to nobody else: chown, then chmod 600 {path}"
        elif isinstance(exc.__cause__, FileNotFoundError):
            remedy = f"Put it there, or name where it is: ENROLLD_UNLOCK_FILE=PATH, or the credential {CREDENTIAL}."
        else:
            raise
        raise OperatorError(exc.code, exc.message, remedy) from exc


def _own_file(node: Node) -> Path:
    return node.dir / "keys" / "unlock"
