"""What is this node's own: its directory, names, listeners, store, unlock key, workers and log.

Each value comes from the first of: a flag, a variable `ENROLLD_*`, `enrolld.toml` in the directory, the default. All
faults of all sources are told at once, each with the path of its key. Realms, profiles and trust anchors are not here:
they are documents in the store, the same on every node.
"""

import difflib
import os
import re
import socket
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Self, cast

import msgspec

from ca_core.errors import OperatorError
from enrolld.config_checks import (
    addresses,
    check_limits,
    check_networks,
    check_pin_files,
    check_webhook_keys,
    checked_name,
    is_host_name,
)
from enrolld.config_file import FILE_NAME, LogSettings, NodeFile, convert, read_file
from enrolld.limits import Limits
from enrolld.sockets import Address

__all__ = ["VARIABLES", "Flags", "Node", "holds_password", "node_directory", "unknown_variables"]

VARIABLES: dict[str, tuple[str, ...]] = {
    "ENROLLD_NAMES": ("names",),
    "ENROLLD_WORKERS": ("workers",),
    "ENROLLD_HTTPS": ("listen", "https"),
    "ENROLLD_HTTP": ("listen", "http"),
    "ENROLLD_ADMIN": ("listen", "admin"),
    "ENROLLD_PROXY_HTTPS": ("proxy", "https"),
    "ENROLLD_PROXY_HTTP": ("proxy", "http"),
    "ENROLLD_PROXY_FROM": ("proxy", "from"),
    "ENROLLD_STORE": ("store", "url"),
    "ENROLLD_UNLOCK_FILE": ("unlock", "file"),
    "ENROLLD_HSM_MODULE": ("hsm", "module"),
    "ENROLLD_HSM_PIN_FILE": ("hsm", "pin_file"),
    "ENROLLD_LOG_FORMAT": ("log", "format"),
    "ENROLLD_LOG_LEVEL": ("log", "level"),
}
"""The variable that stands for each key of the file; lists are separated by commas."""

OTHER_VARIABLES = ("ENROLLD_DIR", "ENROLLD_DEBUG")


@dataclass(frozen=True, slots=True)
class Flags:
    """What the command line gave; None where it was silent."""

    dir: str | None = None
    store: str | None = None
    names: Sequence[str] = ()
    https: Sequence[str] = ()
    http: Sequence[str] = ()
    admin: Sequence[str] = ()
    workers: int | None = None


class Node(msgspec.Struct, frozen=True):
    """This node's configuration, all of it checked. `dir_named` is False when the directory is only the default."""

    dir: Path
    dir_named: bool
    names: tuple[str, ...]
    https: tuple[Address, ...]
    http: tuple[Address, ...]
    admin: tuple[Address, ...]
    proxy_https: tuple[Address, ...]
    proxy_http: tuple[Address, ...]
    proxies: tuple[str, ...]
    limits: Limits
    workers: int
    store_url: str
    unlock_file: Path | None
    hsm_module: str
    hsm_pin_file: Path | None
    log: LogSettings
    webhook_keys: dict[str, Path] = {}
    """The files of the keys that realms' webhooks name."""
    hsm_pin_files: dict[str, Path] = {}
    """The files of the PINs of single tokens, by the tokens' labels."""

    @classmethod
    def load(cls, flags: Flags, environ: Mapping[str, str]) -> Self:
        """Read and check every source. Raises OperatorError with every fault found; `usage` when a flag is at fault."""
        directory, named = node_directory(flags, environ)
        unreadable: list[str] = []
        own: list[str] = []
        tree = read_file(directory / FILE_NAME, unreadable)
        _overlay(tree, flags, environ)
        content = cast(NodeFile, convert(tree, NodeFile, (), own))
        names = tuple(checked_name(name, own) for name in content.names)
        listeners = [addresses(kind, getattr(content.listen, kind), own) for kind in ("https", "http", "admin")]
        proxied = [addresses(kind, getattr(content.proxy, kind), own, "proxy") for kind in ("https", "http")]
        if any(proxied) and not content.proxy.from_:
            own.append('proxy.from: name the balancers, such as ["192.0.2.10", "198.51.100.0/24"]')
        check_networks("proxy.from", content.proxy.from_, own)
        check_limits(content.limits, own)
        check_webhook_keys(content.webhook_keys, own)
        check_pin_files(content.hsm.pin_files, own)
        if not any(listeners + proxied) and not own:
            own.append("listen: every listener is off, so that there is nothing to serve")
        if not 1 <= content.workers <= 128:
            own.append(f"workers: expected 1 to 128, got {content.workers}")
        url = content.store.url or f"sqlite:///{directory / 'enrolld.db'}"
        if not url.startswith(("sqlite:///", "postgresql://")):
            own.append("store.url: expected sqlite:///PATH or postgresql://...")
        elif flags.store and holds_password(flags.store):
            # "Secrets come by file or standard input, never as arguments": every user of the machine sees those.
            own.append(
                "store.url: a password among the arguments is seen by everybody here; put the URL into "
                f"{FILE_NAME} or ENROLLD_STORE, or the password into ~/.pgpass"
            )
        if faults := unreadable + [_with_origin(fault, flags, environ) for fault in own]:
            raise OperatorError(
                "usage" if any(fault.startswith("--") for fault in faults) else "config_invalid",
                "\n".join(faults),
                f"Correct what is named; {directory / FILE_NAME} holds this node's settings.",
            )
        return cls(
            dir=directory,
            dir_named=named,
            names=names,
            https=listeners[0],
            http=listeners[1],
            admin=listeners[2],
            proxy_https=proxied[0],
            proxy_http=proxied[1],
            proxies=tuple(content.proxy.from_),
            limits=content.limits,
            workers=content.workers,
            store_url=url,
            unlock_file=_secret_file(content.unlock.file, directory, environ, "ENROLLD_UNLOCK_FILE"),
            hsm_module=content.hsm.module,
            hsm_pin_file=_secret_file(content.hsm.pin_file, directory, environ, "ENROLLD_HSM_PIN_FILE"),
            log=content.log,
            webhook_keys={
                name: directory / os.path.expanduser(text) for name, text in sorted(content.webhook_keys.items())
            },
            hsm_pin_files={
                token: directory / os.path.expanduser(text) for token, text in sorted(content.hsm.pin_files.items())
            },
        )

    @property
    def demo(self) -> bool:
        """Without names nobody elsewhere can rely on this server: it issues for a few days only."""
        return not self.names

    def server_names(self) -> tuple[str, ...]:
        """What the server certificate of the shared host covers."""
        if self.names:
            return self.names
        own = socket.gethostname().lower()
        return ("localhost", "127.0.0.1", "::1") + ((own,) if is_host_name(own) and own != "localhost" else ())

    def public_url(self, http_port: int | None) -> str:
        """The base of the URLs that certificates carry (CDP, AIA, OCSP); `http_port` is the port really bound."""
        name = self.names[0] if self.names else "localhost"
        host = f"[{name}]" if ":" in name else name
        return f"http://{host}" if http_port in (None, 80) else f"http://{host}:{http_port}"


def node_directory(flags: Flags, environ: Mapping[str, str]) -> tuple[Path, bool]:
    """The node's directory, and whether somebody named it."""
    if flags.dir is not None:
        return Path(flags.dir).absolute(), True
    if environ.get("ENROLLD_DIR"):
        return Path(environ["ENROLLD_DIR"]).absolute(), True
    return Path("enrolld-data").absolute(), False


def unknown_variables(environ: Mapping[str, str]) -> list[tuple[str, str]]:
    """ENROLLD_* variables that mean nothing, each with the nearest that does.

    They are findings, not errors: an orchestrator puts its own next to ours (Kubernetes: ENROLLD_SERVICE_HOST).
    """
    known = [*VARIABLES, *OTHER_VARIABLES]
    unknown = sorted(name for name in environ if name.startswith("ENROLLD_") and name not in known)
    return [(name, "".join(difflib.get_close_matches(name, known, 1, 0.8))) for name in unknown]


def holds_password(url: str) -> bool:
    """Whether a database's URL has a password in it."""
    return re.search(r"://[^/@:]*:.*@|[?&](?:ssl)?password=", url, re.DOTALL) is not None


def _overlay(tree: dict[str, object], flags: Flags, environ: Mapping[str, str]) -> None:
    """Put variables, then flags, over what the file says."""
    for variable, path in VARIABLES.items():
        if text := environ.get(variable, ""):
            many = path[0] in ("names", "listen", "proxy")
            value: object = [part.strip() for part in text.split(",") if part.strip()] if many else text
            _put(tree, path, int(text) if path == ("workers",) and text.isdecimal() else value)
    given: dict[tuple[str, ...], object] = {
        ("names",): list(flags.names),
        ("workers",): flags.workers,
        ("listen", "https"): list(flags.https),
        ("listen", "http"): list(flags.http),
        ("listen", "admin"): list(flags.admin),
        ("store", "url"): flags.store,
    }
    for path, value in given.items():
        if value not in (None, []):
            _put(tree, path, value)


def _put(tree: dict[str, object], path: tuple[str, ...], value: object) -> None:
    if len(path) == 1:
        tree[path[0]] = value
        return
    section = tree.setdefault(path[0], {})
    if isinstance(section, dict):  # otherwise the file is at fault, and said to be
        section[path[1]] = value


def _with_origin(fault: str, flags: Flags, environ: Mapping[str, str]) -> str:
    """The source that a fault came from, before its key."""
    key = tuple(fault.split(":", 1)[0].split("."))
    if key == ("listen",) and flags.https and flags.http and flags.admin:
        return f"--https, --http, --admin: {fault.split(': ', 1)[-1]}"
    given = {"https": flags.https, "http": flags.http, "admin": flags.admin, "names": flags.names}
    if (
        (key[0] != "proxy" and given.get(key[-1]))
        or (key[-1] == "workers" and flags.workers is not None)
        or (key[-1] == "url" and flags.store)
    ):
        flag = {"names": "name", "url": "store"}.get(key[-1], key[-1])
        return f"--{flag}: {fault.split(': ', 1)[-1]}"
    for variable, path in VARIABLES.items():
        if path == key and environ.get(variable):
            return f"{variable}: {fault.split(': ', 1)[-1]}"
    return f"{FILE_NAME}: {fault}"


def _secret_file(text: str | None, directory: Path, environ: Mapping[str, str], variable: str) -> Path | None:
    if text is None:
        return None
    # A path of the file is meant from the file; one from a variable, from where the command runs.
    return Path(text).absolute() if environ.get(variable) else directory / os.path.expanduser(text)
