"""One worker under cProfile: `python -m bench.profiled DIR STATISTICS https|http`. Prints its port, ends on SIGTERM.

It serves with the very code of a worker; only the supervisor is missing, because a profile needs the process.
"""

import cProfile
import socket
import sys
from pathlib import Path

import uvloop

from ca_core.authority.sealing import UnlockKey
from ca_core.core import VERSION, Core, CoreConfig
from enrolld.config_file import LogSettings
from enrolld.process import SocketSettings, WorkerSettings
from enrolld.serving import run


def main(directory: Path, statistics: Path, kind: str) -> None:
    """Serve until SIGTERM, then write the statistics."""
    listener = socket.create_server(("127.0.0.1", 0), backlog=512)
    port = listener.getsockname()[1]
    ours, theirs = socket.socketpair()
    url = f"sqlite:///{directory / 'enrolld.db'}"
    key = UnlockKey.load(directory / "keys" / "unlock")
    core = Core.open(CoreConfig(url, key, "http://localhost:8080", demo=True, process="bench"))
    settings = WorkerSettings(
        number=1,
        version=VERSION,
        store_url=url,
        public_url="http://localhost:8080",
        demo=True,
        names=("localhost", "127.0.0.1"),
        log=LogSettings(),
        sockets=(SocketSettings(kind, listener.detach()),),
        unlock_key=None,
    )
    print(port, flush=True)
    profile = cProfile.Profile()
    profile.enable()
    try:
        uvloop.run(run(core, settings, theirs))
    finally:
        profile.disable()
        profile.dump_stats(statistics)
        core.close()
        ours.close()


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3])
