"""Keys of Debian's OpenSSL of 2006 to 2008 (CVE-2008-0166), whose random numbers came from the process id alone.

There are 294,912 such keys of each size, and no way to tell one but to have them all: 32,768 process ids, three kinds
of machines (32 bits of either byte order, 64 bits), and ~/.rnd read, empty or absent. Those of 2048 bits with the usual
exponent are in `SHIPPED`, which `certs/debian_list.py` made and can make again.

For the other sizes, and for keys that were made in another way, enrolld reads what the packages openssl-blacklist and
openssl-blacklist-extra put into `FOLDER`, one file per size, as openssl-vulnkey(1) describes them: a line per key, the
last 80 bits of SHA-1 of what `openssl rsa -modulus` prints, in hex; comments begin with `#`.
"""

import hashlib
import logging
import re
from bisect import bisect_left
from functools import lru_cache
from pathlib import Path

from ca_core.weak_keys.fingerprints import PackedFingerprints

FOLDER = Path("/usr/share/openssl-blacklist")
MAX_FILE = 32 * 1024 * 1024
"""Bytes that are read of a list; those that were published have some 6 MiB."""
SHIPPED = {2048: Path(__file__).with_name("debian-rsa-2048.bin")}
"""The lists that are part of enrolld, by the bits of the modulus."""

_LOG = logging.getLogger(__name__)
_SIZE = 10  # bytes of a fingerprint
_LINE = re.compile(rb"^([0-9a-f]{20})\r?$", re.MULTILINE)


def is_listed(modulus: int) -> bool:
    """Whether a list for moduli of this size, shipped or installed, holds it.

    Of strong keys of 2048 bits, one in 2^48 / 294,912, some 950 million, is taken for a weak one.
    """
    wanted = fingerprint(modulus)
    if modulus.bit_length() in SHIPPED and wanted in read_shipped(modulus.bit_length()):
        return True
    known = read_list(FOLDER / f"blacklist.RSA-{modulus.bit_length()}")
    place = bisect_left(range(len(known) // _SIZE), wanted, key=lambda index: _entry(known, index))
    return _entry(known, place) == wanted


def fingerprint(modulus: int) -> bytes:
    """What a list says of a modulus: 10 bytes."""
    return hashlib.sha1(b"Modulus=%X\n" % modulus).digest()[-_SIZE:]  # noqa: S324  # the lists' own, and no secret


@lru_cache(maxsize=16)
def read_shipped(bits: int) -> PackedFingerprints:
    """The shipped list for this size, read once. An installation that lacks it is broken: OSError or ValueError."""
    return PackedFingerprints.parse(SHIPPED[bits].read_bytes())


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
