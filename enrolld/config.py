"""What is this node's own: its directory, names, listeners, store, unlock key, workers and log.

Each value comes from the first of: a flag, a variable `ENROLLD_*`, `enrolld.toml` in the directory, the default. All
faults of all sources are told at once, each with the path of its key. Realms, profiles and trust anchors are not here:
they are documents in the store, the same on every node.
"""

import difflib
import ipaddress
import os
import re
import socket
import tomllib
import typing
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Self, cast

import msgspec

from ca_core.errors import OperatorError
from ca_core.names import is_key_name
from enrolld.limits import Limits, Networks
from enrolld.sockets import Address

__all__ = [
    "FILE_NAME",
    "VARIABLES",
    "Flags",
    "LogSettings",
    "Node",
    "holds_password",
    "node_directory",
    "starting_file",
    "unknown_variables",
]

FILE_NAME = "enrolld.toml"
OFF = "off"
_MAX_WEBHOOK_KEYS = 64
LogFormat = Literal["auto", "json", "text"]
LogLevel = Literal["debug", "info", "warning", "error"]

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


class ListenSection(msgspec.Struct, forbid_unknown_fields=True):
    """`[listen]`: ADDR:PORT, a list of them, or "off"."""

    https: str | list[str] = ":8443"
    http: str | list[str] = ":8080"
    admin: str | list[str] = "127.0.0.1:8081"


class ProxySection(msgspec.Struct, forbid_unknown_fields=True, rename={"from_": "from"}):
    """`[proxy]`: listeners behind a balancer that speaks PROXY protocol v2, and the networks it speaks from."""

    https: str | list[str] = OFF
    http: str | list[str] = OFF
    from_: list[str] = []


class StoreSection(msgspec.Struct, forbid_unknown_fields=True):
    """`[store]`."""

    url: str | None = None


class UnlockSection(msgspec.Struct, forbid_unknown_fields=True):
    """`[unlock]`."""

    file: str | None = None


class HsmSection(msgspec.Struct, forbid_unknown_fields=True):
    """`[hsm]`: the PKCS#11 module, and the file with the PIN of its tokens; `pin_files` are those of single tokens."""

    module: str = "p11-kit-proxy.so"
    pin_file: str | None = None
    pin_files: dict[str, str] = {}


class LogSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`[log]`: `auto` is text on a terminal, JSON elsewhere."""

    format: LogFormat = "auto"
    level: LogLevel = "info"


class NodeFile(msgspec.Struct, forbid_unknown_fields=True):
    """`enrolld.toml` as written."""

    names: list[str] = []
    workers: int = 1
    listen: ListenSection = msgspec.field(default_factory=ListenSection)
    proxy: ProxySection = msgspec.field(default_factory=ProxySection)
    limits: Limits = msgspec.field(default_factory=Limits)
    store: StoreSection = msgspec.field(default_factory=StoreSection)
    unlock: UnlockSection = msgspec.field(default_factory=UnlockSection)
    hsm: HsmSection = msgspec.field(default_factory=HsmSection)
    log: LogSettings = msgspec.field(default_factory=LogSettings)
    webhook_keys: dict[str, str] = msgspec.field(default_factory=dict)


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
        tree = _read_file(directory / FILE_NAME, unreadable)
        _overlay(tree, flags, environ)
        content = cast(NodeFile, _convert(tree, NodeFile, (), own))
        names = tuple(_checked_name(name, own) for name in content.names)
        listeners = [_addresses(kind, getattr(content.listen, kind), own) for kind in ("https", "http", "admin")]
        proxied = [_addresses(kind, getattr(content.proxy, kind), own, "proxy") for kind in ("https", "http")]
        if any(proxied) and not content.proxy.from_:
            own.append('proxy.from: name the balancers, such as ["192.0.2.10", "198.51.100.0/24"]')
        _check_networks("proxy.from", content.proxy.from_, own)
        _check_limits(content.limits, own)
        _check_webhook_keys(content.webhook_keys, own)
        _check_pin_files(content.hsm.pin_files, own)
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
        return ("localhost", "127.0.0.1", "::1") + ((own,) if _is_host_name(own) and own != "localhost" else ())

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


def starting_file(names: Sequence[str]) -> str:
    """The `enrolld.toml` that `init` writes: every key with its default, so that nobody has to look them up."""
    given = ", ".join(f'"{name}"' for name in names)
    return f"""\
# This node's settings. Realms, profiles and trust anchors are in the store: `enrolld realm export default`.
# A flag goes before a variable (ENROLLD_NAMES, ENROLLD_HTTPS, ...), which goes before this file.

# The names that clients use; the first stands in the URLs of issued certificates. Without names: a 7-day demo.
names = [{given}]
# workers = 1

[listen]                    # ADDR:PORT, a list of them, or "off"; ":8443" is every address, IPv4 and IPv6
# https = ":8443"           # EST, SCEP
# http = ":8080"            # SCEP, CRLs and CA certificates
# admin = "127.0.0.1:8081"  # /healthz, /readyz and /metrics

[proxy]                     # listeners behind a balancer that speaks PROXY protocol v2 (haproxy: send-proxy-v2)
# https = "off"
# http = "off"
# from = []                 # the balancers' networks; nobody else may connect there

[limits]
# connections = 20000               # open at a time, over all workers
# connections_per_source = 2000     # of one address (IPv6: one /64), over all workers
# handshakes = 2000                 # TLS handshakes that have begun, per worker
# waiting = 512                     # requests that wait for their turn, per worker; beyond them: 503
# certificates_per_device = 120     # per hour and worker, which may come at once; beyond them: 429
# certificates_per_credential = 60  # the same for one secret, or one certificate
# refusals_per_source = 600         # per minute and worker: refusals of peers that prove nothing; beyond them: 429
# trusted = ["127.0.0.0/8", "::1/128"]  # networks that no limit by source holds for

[store]
# url = "sqlite:///PATH"    # enrolld.db beside this file; several nodes share "postgresql://USER@HOST:PORT/DATABASE"

[unlock]
# file = "keys/unlock"      # opens the CA keys; better a systemd credential named enrolld-unlock

[webhook_keys]              # what realms' webhooks know this installation by; files that nobody else can read
# NAME = "PATH"             # such as keys/NAME, made by 'openssl rand -hex 32'

[hsm]                       # keys of realms that were made with `realm add --hsm TOKEN`; see the README
# module = "p11-kit-proxy.so"
# pin_file = "keys/pin"     # the PIN of the tokens; better a systemd credential named enrolld-hsm-pin
# [hsm.pin_files]           # that of a token with a PIN of its own, by the token's label
# TOKEN = "PATH"            # better a systemd credential named enrolld-hsm-pin.TOKEN

[log]
# format = "auto"           # text on a terminal, else json
# level = "info"
"""


def holds_password(url: str) -> bool:
    """Whether a database's URL has a password in it."""
    return re.search(r"://[^/@:]*:.*@|[?&](?:ssl)?password=", url, re.DOTALL) is not None


def _read_file(path: Path, faults: list[str]) -> dict[str, object]:
    try:
        return tomllib.loads(path.read_text("utf-8"))
    except FileNotFoundError:
        return {}
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as exc:
        faults.append(f"{FILE_NAME}: not TOML: {exc}")
    except OSError as exc:
        faults.append(f"{FILE_NAME}: can't be read: {exc.strerror}")
    return {}


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


def _convert(value: object, kind: type[msgspec.Struct], path: tuple[str, ...], faults: list[str]) -> object:
    """A table as its Struct; faults are collected, and what is at fault keeps its default."""
    if not isinstance(value, dict):
        faults.append(f"{'.'.join(path)}: expected a table [{'.'.join(path)}]")
        return kind()
    fields = {field.encode_name: field for field in msgspec.structs.fields(kind)}
    good: dict[str, object] = {}
    for key, item in value.items():
        where = (*path, str(key))
        if key not in fields:
            nearest = "".join(difflib.get_close_matches(str(key), fields, 1, 0.5))
            hint = f"; the nearest is {'.'.join((*path, nearest))}" if nearest else f"; known are {', '.join(fields)}"
            faults.append(f"{'.'.join(where)}: no such key{hint}")
            continue
        name, expected = fields[key].name, fields[key].type
        if isinstance(expected, type) and issubclass(expected, msgspec.Struct):
            good[name] = _convert(item, expected, where, faults)
        else:
            try:
                good[name] = msgspec.convert(item, expected)
            except msgspec.ValidationError as exc:
                choices = [str(choice) for choice in typing.get_args(expected) if isinstance(choice, str)]
                sentence = f"expected one of {', '.join(choices)}" if choices else _in_toml_words(str(exc))
                faults.append(f"{'.'.join(where)}: {sentence}")
    return kind(**good)


def _in_toml_words(sentence: str) -> str:
    plain = sentence[:1].lower() + sentence[1:].replace("`", "")
    for ours, theirs in (("str", "a string"), ("array", "a list"), ("int", "a whole number"), ("null", "nothing")):
        plain = re.sub(rf"\b{ours}\b", theirs, plain)
    return re.sub(r" - at \$\[\d+\]$", " in the list", plain)


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


def _check_networks(key: str, texts: Sequence[str], faults: list[str]) -> None:
    for text in texts:
        try:
            Networks((text,))
        except ValueError:
            faults.append(f"{key}: expected a network such as 192.0.2.0/24 or 2001:db8::/32, got {text!r}")


def _check_limits(limits: Limits, faults: list[str]) -> None:
    for field in msgspec.structs.fields(Limits):
        value = getattr(limits, field.name)
        if isinstance(value, int) and not 1 <= value <= 10_000_000:
            faults.append(f"limits.{field.name}: expected 1 to 10000000, got {value}")
    _check_networks("limits.trusted", limits.trusted, faults)


def _check_webhook_keys(keys: Mapping[str, str], faults: list[str]) -> None:
    if len(keys) > _MAX_WEBHOOK_KEYS:
        faults.append(f"webhook_keys: expected at most {_MAX_WEBHOOK_KEYS}, got {len(keys)}")
    for name, path in keys.items():
        if not is_key_name(name):
            faults.append(f"webhook_keys.{ascii(name[:80])[1:-1]}: expected letters, digits, '_' and '-', at most 64")
        elif not path or "\0" in path:
            faults.append(f"webhook_keys.{name}: expected the path of a file, got {path!r}")


def _check_pin_files(files: Mapping[str, str], faults: list[str]) -> None:
    for token, path in files.items():
        # A label has 32 bytes (PKCS#11 v2.40, CK_TOKEN_INFO).
        if not 0 < len(token.encode()) <= 32 or not token.isprintable():
            faults.append(f"hsm.pin_files: expected the label of a token, got {token[:80]!a}")
        elif not path or "\0" in path:
            faults.append(f"hsm.pin_files.{token}: expected the path of a file, got {path!r}")


def _addresses(kind: str, value: str | list[str], faults: list[str], section: str = "listen") -> tuple[Address, ...]:
    texts = [value] if isinstance(value, str) else value
    if texts == [OFF] or not texts:
        return ()
    found: list[Address] = []
    for text in texts:
        if text == OFF:
            faults.append(f"{section}.{kind}: 'off' stands alone")
            continue
        try:
            found.append(Address.parse(text))
        except ValueError as exc:
            faults.append(f"{section}.{kind}: {exc}")
    return tuple(dict.fromkeys(found))


def _checked_name(text: str, faults: list[str]) -> str:
    name = text.strip().lower().rstrip(".")
    try:
        return str(ipaddress.ip_address(name))
    except ValueError:
        if not _is_host_name(name):
            faults.append(f"names: expected a host name such as pki.example.com, or an IP address, got {text!r}")
    return name


def _is_host_name(name: str) -> bool:
    label = r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?"
    return len(name) <= 253 and bool(re.fullmatch(rf"{label}(\.{label})*", name, re.ASCII))


def _secret_file(text: str | None, directory: Path, environ: Mapping[str, str], variable: str) -> Path | None:
    if text is None:
        return None
    # A path of the file is meant from the file; one from a variable, from where the command runs.
    return Path(text).absolute() if environ.get(variable) else directory / os.path.expanduser(text)
