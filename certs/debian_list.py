"""`python -m certs.debian_list FOLDER`: make the shipped list of Debian's weak RSA keys (CVE-2008-0166) again.

Builds `debian_keys.c` (needs a C compiler and OpenSSL 3.0's headers), runs it for each kind of machine and each state
of ~/.rnd, and packs what came out into FOLDER/debian-rsa-BITS.bin, which belongs into ca_core/weak_keys. What is in
FOLDER already is not made again. For 2048 bits it takes an hour of one core with AVX-512 IFMA, for 3072 seven hours,
for 4096 a day.

Lines of openssl-vulnkey(1) are facts that anybody gets who runs the OpenSSL of then; none was copied from anywhere.
"""

import argparse
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from itertools import product
from pathlib import Path

from ca_core.weak_keys.fingerprints import pack

SOURCE = Path(__file__).with_name("debian_keys.c")
BUILD = ("cc", "-O3", "-march=native", "-Wno-deprecated-declarations")
MACHINES = ("le32", "le64", "be32")
RANDOM_FILES = ("absent", "empty", "read")


def build(folder: Path) -> Path:
    """The program that makes the lines."""
    program = folder / "debian_keys"
    subprocess.run([*BUILD, "-o", program, SOURCE, "-lcrypto"], check=True)  # noqa: S603  # nothing of it is from outside
    return program


def main() -> int:
    """Build, run, pack."""
    parser = argparse.ArgumentParser(description="Make the list of Debian's weak RSA keys again.")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--bits", type=int, default=2048)
    parser.add_argument("--processes", type=int, default=2)
    options = parser.parse_args()
    folder: Path = options.folder
    folder.mkdir(parents=True, exist_ok=True)
    program = build(folder)

    def make(machine: str, random_file: str) -> Path:
        made = folder / f"{options.bits}-{machine}-{random_file}"
        if not made.exists():
            part = made.with_suffix(".part")
            with part.open("wb") as out:
                subprocess.run([program, str(options.bits), machine, random_file], stdout=out, check=True)  # noqa: S603
            part.rename(made)
            print(made, flush=True)
        return made

    with ThreadPoolExecutor(options.processes) as pool:
        parts = list(pool.map(lambda pair: make(*pair), product(MACHINES, RANDOM_FILES)))
    lines = [line for part in parts for line in part.read_text().split()]
    packed = pack(map(bytes.fromhex, lines))
    (folder / f"debian-rsa-{options.bits}.bin").write_bytes(packed)
    print(f"{len(lines)} keys, {len(packed)} bytes")
    return 0


if __name__ == "__main__":
    sys.exit(main())
