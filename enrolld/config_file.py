"""`enrolld.toml` as it is written: its keys, types and defaults, how it is read, and the one that `init` writes."""

import difflib
import re
import tomllib
import typing
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import msgspec

from enrolld.limits import Limits

__all__ = ["FILE_NAME", "OFF", "LogSettings", "NodeFile", "convert", "read_file", "starting_file"]

FILE_NAME = "enrolld.toml"
OFF = "off"
LogFormat = Literal["auto", "json", "text"]
LogLevel = Literal["debug", "info", "warning", "error"]


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


def read_file(path: Path, faults: list[str]) -> dict[str, object]:
    """What stands in the file; nothing without one, nor when it can't be read, which is added to the faults."""
    try:
        return tomllib.loads(path.read_text("utf-8"))
    except FileNotFoundError:
        return {}
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as exc:
        faults.append(f"{FILE_NAME}: not TOML: {exc}")
    except OSError as exc:
        faults.append(f"{FILE_NAME}: can't be read: {exc.strerror}")
    return {}


def convert(value: object, kind: type[msgspec.Struct], path: tuple[str, ...], faults: list[str]) -> object:
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
            good[name] = convert(item, expected, where, faults)
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
