"""Tokens behind a PKCS#11 module: logged in once, a pool of sessions, and what is lost is opened anew.

What must be minded, and is minded here alone:

- A module that is not p11-kit's proxy is used by one thread at a time: python-pkcs11 does not ask it for locking.
- A login is the process's, not the session's, and so is a logout: one session logs in, and that one is never closed.
- A wrong PIN is tried once: three of them lock a token. So is none while the token says that the next is its last.
- A session may be gone at any time (another process, a cable, a restart of the HSM). The operation is then done once
  more on a new one. Nothing else is ever repeated, so that a ciphertext is never worth a second look.
"""

import contextlib
import logging
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import PurePath
from typing import TYPE_CHECKING, TypeVar

from ca_core.authority.pin import PROXY, HsmSettings
from ca_core.errors import HsmUnfit, SignerUnavailable

if TYPE_CHECKING:
    import pkcs11

__all__ = ["Hsm", "TokenSession", "require_library"]

T = TypeVar("T")
_LOG = logging.getLogger(__name__)
_PLACES = 8

_users: dict[str, int] = {}
"""How many `Hsm` of this process use a module: it is one for all of them."""
_users_lock = threading.Lock()


class TokenSession:
    """One session of the pool. Whoever has it has it alone."""

    def __init__(self, session: "pkcs11.Session", generation: int) -> None:
        self.session = session
        self.generation = generation
        self._keys: dict[tuple[str, bytes], pkcs11.PrivateKey] = {}

    def private_key(self, label: str, key_id: bytes) -> "pkcs11.PrivateKey":
        """The private key with this label and id. Raises pkcs11's `NoSuchKey`."""
        from pkcs11 import ObjectClass

        found = self._keys.get((label, key_id))
        if found is None:
            found = self.session.get_key(ObjectClass.PRIVATE_KEY, label=label, id=key_id)  # type: ignore[assignment]  # by its class
            self._keys[label, key_id] = found  # type: ignore[assignment]  # likewise
        return found  # type: ignore[return-value]  # likewise


@dataclass(slots=True)
class _Token:
    handle: "pkcs11.Token"
    login: "pkcs11.Session | None"
    generation: int
    idle: list[TokenSession] = field(default_factory=list)


class Hsm:
    """The tokens of one module, for the threads of this process. Everything here blocks: call it in a thread."""

    def __init__(self, settings: HsmSettings) -> None:
        self._settings = settings
        self._lock = threading.RLock()
        self._places = threading.BoundedSemaphore(_PLACES if _takes_threads(settings.module) else 1)
        self._busy = 0
        self._generation = 0
        self._library: pkcs11._pkcs11.lib | None = None
        self._tokens: dict[str, _Token] = {}
        self._refused: dict[str, HsmUnfit] = {}

    def run(self, label: str, job: Callable[[TokenSession], T], *, is_secret: bool = False) -> T:
        """Do `job` with a session of the token `label`; once more on a new session when the first turns out lost.

        `is_secret` when how the job fails tells something about a secret: then it is done again only after what no
        ciphertext can bring about. What some tokens say for a lost connection, others say for bad padding.

        Raises `HsmUnfit`, `SignerUnavailable`; what else the token says about the job itself comes as it is (pkcs11's
        `PKCS11Error`).
        """
        lost = _lost_errors(is_secret=is_secret)
        with self._place():
            for is_last in (False, True):
                session: TokenSession | None = None
                try:
                    session = self._take(label, lost)
                    done = job(session)
                except lost as exc:
                    self._give_up(session)
                    if is_last:
                        raise self._as_ours(exc, label) from exc
                    _LOG.warning("a session of the HSM token %s was lost (%s): opened anew", label, _name(exc))
                except BaseException:
                    if session is not None:
                        self._give_back(label, session)
                    raise
                else:
                    self._give_back(label, session)
                    return done
        raise AssertionError("unreachable")

    def is_missing(self, label: str, mechanism: "pkcs11.Mechanism", flag: "pkcs11.MechanismFlag") -> bool:
        """Whether a token lacks a mechanism, or can't use it for what the flag says. Raises as `run`."""
        from pkcs11.exceptions import MechanismInvalid

        def ask(session: TokenSession) -> bool:
            try:
                info = session.session.token.slot.get_mechanism_info(mechanism)
            except MechanismInvalid:
                return True
            return not info.flags & flag

        return self.run(label, ask)

    def close(self) -> None:
        """Let go of the module; the last one to do so ends all sessions of this process."""
        with self._lock:
            library, self._library = self._library, None
            self._tokens.clear()
        if library is None:
            return
        with _users_lock:
            _users[self._settings.module] -= 1
            if _users[self._settings.module] == 0:
                with contextlib.suppress(RuntimeError):  # a module that is gone has no sessions either
                    library.finalize()

    @contextlib.contextmanager
    def _place(self) -> Iterator[None]:
        with self._places:
            with self._lock:
                self._busy += 1
            try:
                yield
            finally:
                with self._lock:
                    self._busy -= 1

    def _take(self, label: str, lost: tuple[type[Exception], ...]) -> TokenSession:
        try:
            with self._lock:
                token = self._tokens.get(label)
                if token is None:
                    token = self._tokens[label] = self._log_in(label)
                if token.idle:
                    return token.idle.pop()
            return TokenSession(token.handle.open(), token.generation)
        except lost:
            raise
        except RuntimeError as exc:  # whatever else the module says: it is not about the job
            raise self._as_ours(exc, label) from exc

    def _give_back(self, label: str, session: TokenSession) -> None:
        with self._lock:
            token = self._tokens.get(label)
            if token is not None and token.generation == session.generation:
                token.idle.append(session)
                return
        _close(session)

    def _give_up(self, session: TokenSession | None) -> None:
        """After a loss: no session of before is used again."""
        with self._lock:
            if session is not None and session.generation != self._generation:
                _close(session)  # somebody else found out before
                return
            self._generation += 1
            tokens, self._tokens = self._tokens, {}
            if self._begins_anew():
                return
        for token in tokens.values():
            for idle in token.idle:
                _close(idle)
        if session is not None:
            _close(session)

    def _begins_anew(self) -> bool:
        """Whether the module was initialized anew, which ends all sessions: whoever is alone here may do that.

        A token that was pulled and put back is seen again by some modules only then.
        """
        with _users_lock:
            if self._library is None or self._busy > 1 or _users.get(self._settings.module) != 1:
                return False
            with contextlib.suppress(RuntimeError):
                self._library.reinitialize()
            return True

    def _open_library(self) -> "pkcs11._pkcs11.lib":
        if self._library is not None:
            if not self._library.initialized:
                self._library.initialize()
            return self._library
        import pkcs11

        with _users_lock:
            try:
                self._library = pkcs11.lib(self._settings.module)
            except RuntimeError as exc:  # what it raises for everything, PKCS11Error among it
                raise HsmUnfit(
                    "hsm_module",
                    f"the PKCS#11 module {self._settings.module} can't be loaded ({_name(exc)})",
                    "install p11-kit-modules, or name the module of your HSM as [hsm] module",
                ) from exc
            _users[self._settings.module] = _users.get(self._settings.module, 0) + 1
        return self._library

    def _log_in(self, label: str) -> _Token:
        import pkcs11
        from pkcs11 import exceptions as errors

        if label in self._refused:
            raise self._refused[label]
        library = self._open_library()
        found = list(library.get_tokens(token_label=label))
        if not found and self._begins_anew():
            self._generation += 1
            self._tokens.clear()
            found = list(self._open_library().get_tokens(token_label=label))
        if len(found) != 1:
            many = f"{len(found)} tokens are called {label}" if found else f"no token is called {label}"
            known = ", ".join(sorted(token.label for token in library.get_tokens() if token.label)) or "none"
            raise HsmUnfit("hsm_token_missing", many, f"'pkcs11-tool --list-slots' shows them; there are: {known}")
        token = found[0]
        pin = self._settings.pin_of(label)
        if pin is None:
            raise HsmUnfit(
                "hsm_not_configured",
                f"this node has no PIN for the token {label}",
                "name the PIN's file in enrolld.toml, in [hsm.pin_files] by the token's label",
            )
        login: pkcs11.Session | None = None
        try:
            if token.flags & pkcs11.TokenFlag.USER_PIN_LOCKED:  # enforces case 76
                raise errors.PinLocked
            if token.flags & pkcs11.TokenFlag.USER_PIN_FINAL_TRY:  # enforces case 76
                raise self._refuse(
                    label,
                    "hsm_pin_final_try",
                    f"the next wrong PIN locks the token {label}, so none is tried",
                    "log in with the right PIN by the HSM's own tool, which sets its counter back",
                )
            with contextlib.suppress(errors.UserAlreadyLoggedIn):  # by another `Hsm` of this process
                login = token.open(user_pin=pin.reveal())
        except errors.PinLocked as exc:
            raise self._refuse(
                label, "hsm_pin_locked", f"the PIN of the token {label} is locked", "unlock it with the SO PIN"
            ) from exc
        except _wrong_pin_errors() as exc:
            # enforces case 76
            raise self._refuse(
                label,
                "hsm_pin_wrong",
                f"the token {label} does not take the PIN ({_name(exc)}); it is not tried again",
                "write the right PIN into its file ([hsm]), and start again; a token locks after a few wrong ones",
            ) from exc
        return _Token(token, login, self._generation)

    def _refuse(self, label: str, code: str, message: str, remedy: str) -> HsmUnfit:
        """Nothing about this token is tried again by this process."""
        refused = self._refused[label] = HsmUnfit(code, message, remedy, token=label)
        return refused

    def _as_ours(self, exc: Exception, label: str) -> HsmUnfit | SignerUnavailable:
        from pkcs11.exceptions import MultipleObjectsReturned, NoSuchKey

        if isinstance(exc, NoSuchKey | MultipleObjectsReturned):
            return HsmUnfit(
                "hsm_key_missing",
                f"the token {label} does not have the key, or has it twice",
                "restore the token, or name the right one; 'pkcs11-tool --list-objects' shows what it has",
            )
        return SignerUnavailable(f"the HSM token {label} can't be used now ({_name(exc)})")


def require_library() -> None:
    """Raise `HsmUnfit` without python-pkcs11, which is an extra; nothing else here works then."""
    try:
        import pkcs11  # noqa: F401  # whether it is there
    except ImportError as exc:
        raise HsmUnfit(
            "hsm_extra_missing", "python-pkcs11 is not installed", "install it: pip install 'enrolld[hsm]'"
        ) from exc


def _takes_threads(module: str) -> bool:
    return PurePath(module).name == PROXY or PurePath(module).name.startswith("libp11-kit.so")


def _close(session: TokenSession) -> None:
    with contextlib.suppress(RuntimeError):  # it is lost, most likely
        session.session.close()


def _name(exc: Exception) -> str:
    return str(exc).partition("\n")[0] or type(exc).__name__


def _lost_errors(*, is_secret: bool) -> tuple[type[Exception], ...]:
    """What is said of a session or token that is gone; an object is gone, or can't be seen, after a logout."""
    from pkcs11 import exceptions as errors

    vague = () if is_secret else (errors.DeviceError, errors.FunctionFailed, errors.GeneralError)
    return (
        *vague,
        errors.DeviceRemoved,
        errors.KeyHandleInvalid,
        errors.MultipleObjectsReturned,
        errors.NoSuchKey,
        errors.ObjectHandleInvalid,
        errors.OperationActive,
        errors.SessionClosed,
        errors.SessionHandleInvalid,
        errors.SlotIDInvalid,
        errors.TokenNotPresent,
        errors.TokenNotRecognised,
        errors.UserNotLoggedIn,
    )


def _wrong_pin_errors() -> tuple[type[Exception], ...]:
    from pkcs11 import exceptions as errors

    return (errors.PinIncorrect, errors.PinInvalid, errors.PinLenRange, errors.PinExpired, errors.UserPinNotInitialized)
