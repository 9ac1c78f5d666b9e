"""Keys of Debian's OpenSSL of 2006 to 2008 (CVE-2008-0166), whose random numbers came from the process id alone.

There are some 300,000 such keys of each size, and no way to tell one but to have them all. enrolld ships no list: it
reads what the packages openssl-blacklist and openssl-blacklist-extra put into `FOLDER`, one file per size, as
openssl-vulnkey(1) describes them: a line per key, the last 80 bits of SHA-1 of what `openssl rsa -modulus` prints, in
hex; comments begin with `#`. Without a file for its size, no key is found here.

The keys can be made again only by the OpenSSL of then, or by what does the same step by step, in many hours of
computing for each size; so the lists are read and not made.
"""

import hashlib
import logging
import re
from bisect import bisect_left
from functools import lru_cache
from pathlib import Path

FOLDER = Path("/usr/share/openssl-blacklist")
MAX_FILE = 32 * 1024 * 1024
"""Bytes that are read of a list; those that were published have some 6 MiB."""

_LOG = logging.getLogger(__name__)
_SIZE = 10  # bytes of a fingerprint
_LINE = re.compile(rb"^([0-9a-f]{20})\r?$", re.MULTILINE)


def is_listed(modulus: int) -> bool:
    """Whether the list for moduli of this size, if there is one, holds it."""
    known = read_list(FOLDER / f"blacklist.RSA-{modulus.bit_length()}")
    wanted = fingerprint(modulus)
    place = bisect_left(range(len(known) // _SIZE), wanted, key=lambda index: _entry(known, index))
    return _entry(known, place) == wanted


def fingerprint(modulus: int) -> bytes:
    """What a list says of a modulus: 10 bytes."""
    return hashlib.sha1(b"Modulus=%X\n" % modulus).digest()[-_SIZE:]  # noqa: S324  # the lists' own, and no secret


@lru_cache(maxsize=16)
def read_list(path: Path) -> bytes:
    """The fingerprints in a file, sorted, one after the other; none for a file that is missing or can't be read.

    It is read once: a list that comes later is seen by the next process.
    """
    try:
        with path.open("rb") as file:
            text = file.read(MAX_FILE)
    except FileNotFoundError:
        return b""
    except OSError as exc:
        _LOG.warning("the list of Debian's weak keys %s can't be read: %s", path, exc.strerror)
        return b""
    found = sorted(_LINE.findall(text))
    if not found:
        _LOG.warning("the list of Debian's weak keys %s holds none in the form of openssl-vulnkey(1)", path)
    return bytes.fromhex(b"".join(found).decode())


def _entry(known: bytes, index: int) -> bytes:
    return known[index * _SIZE : (index + 1) * _SIZE]
