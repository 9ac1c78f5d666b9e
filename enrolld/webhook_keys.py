"""The keys that webhooks know this installation by: files of a node, named in `[webhook_keys]` of its enrolld.toml.

Realms name them, and every node that serves such a realm has them. What a request is signed with::

    Enrolld-Timestamp: 1764446400
    Enrolld-Signature: v1=hex(HMAC-SHA256(key, timestamp "." body))

and an answer, so that it belongs to that request and to no other::

    Enrolld-Signature: v1=hex(HMAC-SHA256(key, what the request's v1 is "." body))
"""

import hashlib
import hmac
from collections.abc import Mapping
from pathlib import Path

from ca_core.authority.closed_file import read_closed
from ca_core.errors import OperatorError

__all__ = ["WebhookKey", "load_keys"]

_SHORTEST = 16
_PREFIX = "v1="


class WebhookKey:
    """A key that a webhook knows as well. It never shows itself."""

    __slots__ = ("_value",)

    def __init__(self, value: bytes) -> None:
        if len(value) < _SHORTEST:
            raise OperatorError(
                "webhook_key_short",
                f"a webhook key has less than {_SHORTEST} bytes",
                "make one with 'openssl rand -hex 32'",
            )
        self._value = value

    def __repr__(self) -> str:
        return "WebhookKey(...)"

    def to_bytes(self) -> bytes:
        """The key, to be handed to a worker through a pipe."""
        return self._value

    def sign(self, context: str, body: bytes) -> str:
        """The signature as it stands in a header; `context` is what it belongs to."""
        return _PREFIX + hmac.new(self._value, context.encode() + b"." + body, hashlib.sha256).hexdigest()

    def has_signed(self, signature: str, context: str, body: bytes) -> bool:
        """Whether a header is the signature, compared in constant time."""
        # The parser hands bytes that are no text over as half characters.
        return hmac.compare_digest(signature.encode("ascii", "replace"), self.sign(context, body).encode())


def load_keys(files: Mapping[str, Path]) -> dict[str, WebhookKey]:
    """The keys by name, from files that nobody else can read. Raises `OperatorError`, naming the first at fault."""
    found: dict[str, WebhookKey] = {}
    for name, path in files.items():
        try:
            found[name] = WebhookKey(read_closed(path, "webhook_key", f"the webhook key '{name}' in", "[webhook_keys]"))
        except OperatorError as exc:
            if exc.code != "webhook_key_short":
                raise
            raise OperatorError(exc.code, f"the webhook key '{name}' in {path} is too short", exc.remedy) from exc
    return found
