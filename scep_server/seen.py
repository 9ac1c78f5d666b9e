"""Envelopes that were opened: a content-encryption key is used for one content, or somebody is trying out contents.

Whoever has caught a message can bend its ciphertext and send it again under a signature of his own, and might learn
from a thousand answers what he may not read (Vaudenay 2002; RFC 3218 tells the same of RSA). An honest client makes a
new key for each message, and repeats one only byte by byte.
"""

import hashlib
from collections import OrderedDict
from functools import lru_cache

from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.hazmat.primitives.serialization import load_der_public_key

__all__ = ["SeenKeys"]

KEEP = 1 << 16
"""How many are remembered. To have one forgotten takes as many messages, each of which costs a signature to send."""


class SeenKeys:
    """What one process has opened."""

    def __init__(self, keep: int = KEEP) -> None:
        self._keep = keep
        self._contents: OrderedDict[bytes, bytes] = OrderedDict()

    def admits(self, spki: bytes, encrypted_key: bytes, content: bytes) -> bool:
        """Whether this key, encrypted to the RA key `spki` (DER), was seen with no other `content` than this one."""
        # c and c + n are one ciphertext to RSA.
        number = int.from_bytes(encrypted_key, "big") % _modulus(spki)
        key = hashlib.sha256(number.to_bytes(len(spki) + 1, "big") + spki).digest()
        seen = self._contents.get(key)
        digest = hashlib.sha256(content).digest()
        if seen is not None:
            return seen == digest
        self._contents[key] = digest
        if len(self._contents) > self._keep:
            self._contents.popitem(last=False)
        return True


@lru_cache(maxsize=256)
def _modulus(spki: bytes) -> int:
    key = load_der_public_key(spki)
    if not isinstance(key, rsa.RSAPublicKey):
        raise TypeError("an RA key is RSA")
    return key.public_numbers().n
