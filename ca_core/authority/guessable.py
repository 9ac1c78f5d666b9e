"""Secrets that are none: words that are tried first, and what is made from what everybody on the machine can read."""

import base64
import hashlib
import re
from collections.abc import Iterator
from pathlib import Path

MACHINE_IDS = (Path("/etc/machine-id"), Path("/var/lib/dbus/machine-id"))
_WORDS = ("changeme", "changeit", "default", "enrolld", "letmein", "password", "passwort", "secret", "admin", "qwerty")


def why_guessable(value: bytes) -> str | None:
    """Why somebody could guess a key or passphrase, in words after its name; None when nothing is known against it."""
    folded = re.sub(rb"[^a-z0-9]", b"", value.lower()).decode()
    rest = folded
    for word in _WORDS:
        rest = rest.replace(word, "")
    if rest != folded and len(rest.strip("0123456789")) == 0:
        return "is made of words that are tried first"
    if value in set(_of_the_machine()):
        return "is made from this machine's id, which everybody here can read"
    return None


def _of_the_machine() -> Iterator[bytes]:
    """The machine's id, as it stands there and as it is usually written or hashed."""
    for path in MACHINE_IDS:
        try:
            line = path.read_bytes()
        except OSError:
            continue
        plain = line.strip().lower()
        dashed = b"-".join((plain[:8], plain[8:12], plain[12:16], plain[16:20], plain[20:]))
        for text in {line, plain, plain.upper(), plain + b"\n", dashed, dashed.upper()}:
            yield text.strip()
            for name in ("md5", "sha1", "sha256", "sha512"):
                digest = hashlib.new(name, text, usedforsecurity=False).digest()
                yield from (digest, digest.hex().encode(), digest.hex().upper().encode(), base64.b64encode(digest))
