"""What is asked for in benchmarks: devices, and their requests, made before the clock starts."""

import asyncio
import base64
import itertools
from pathlib import Path

from bench.load import PKI_MESSAGE, Client, Job, Result
from bench.machine import csr, load, rsa_key
from bench.scep import pkcs_req
from ca_core.authority.sealing import UnlockKey
from ca_core.core import Core, CoreConfig
from certs.demo_pki import IDevId, make_manufacturer
from tests.helpers.daemon import Daemon

__all__ = ["DEVICES", "Est", "Scep", "work_off"]

DEVICES = 10


class Est:
    """simpleenroll by IDevID, with keys of one kind."""

    listener = "https"
    path = "/.well-known/est/simpleenroll"
    content_type = "application/pkcs10"

    def __init__(self, folder: Path, kind: str, devices: int = DEVICES) -> None:
        self.folder = folder
        self._devices = devices
        self._is_rsa = kind.endswith("RSA-2048")
        self._manufacturer = make_manufacturer("Bench Devices", folder / "manufacturer")

    def prepare(self, daemon: Daemon) -> None:
        """Have the manufacturer trusted and its devices registered."""
        maker = self._manufacturer
        daemon.ask("trust", "add", "--realm", "default", "--name", maker.name, str(maker.root))
        with daemon.core() as core, asyncio.Runner() as runner:
            for number in range(self._devices):
                name = f"bench-{number}"
                serial_number = maker.make_device(name, f"SN-{number}", rsa_key=self._is_rsa).serial_number
                runner.run(
                    core.devices.add(
                        "default", name, serial_number=serial_number, manufacturer=maker.name, actor="bench"
                    )
                )

    def clients(self, count: int) -> list[Client]:
        """The devices, each with its share of requests."""
        found = []
        for number in range(self._devices):
            idevid = IDevId(self._manufacturer.folder / f"bench-{number}", f"SN-{number}")
            requests = [csr(f"bench-{number}", is_rsa=self._is_rsa) for _ in range(count // self._devices)]
            found.append(Client(str(idevid.chain), str(idevid.key), requests))
        return found


class Scep:
    """PKCSReq by secret, a new device each."""

    listener = "http"
    path = "/scep?operation=PKIOperation"
    content_type = PKI_MESSAGE

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._numbers = itertools.count()
        self._store_url = self._directory = ""

    def prepare(self, daemon: Daemon) -> None:
        """Remember where the store is; nothing else is needed."""
        self._directory = str(daemon.directory)
        self._store_url = daemon.store_url or f"sqlite:///{daemon.directory / 'enrolld.db'}"

    def clients(self, count: int) -> list[Client]:
        """One client that speaks for all devices."""
        return [Client("", "", asyncio.run(self._requests(count)))]

    async def _requests(self, count: int) -> list[str]:
        key = UnlockKey.load(Path(self._directory) / "keys" / "unlock")
        core = Core.open(CoreConfig(self._store_url, key, "http://localhost:8080", demo=True, process="bench"))
        try:
            ra = (await core.ra(await core.realms.resolve("scep", None, None))).certificate
            requests = []
            for _ in range(count):
                name = f"bench-scep-{next(self._numbers)}"
                handed = await core.devices.add("default", name, actor="bench")
                requests.append(base64.b64encode(pkcs_req(ra, name, handed.secret, rsa_key)).decode())
            return requests
        finally:
            core.close()


def work_off(ports: list[int], make: Est | Scep, root: Path, clients: list[Client], threads: int) -> Result:
    """Send the requests, each port its share."""
    return load(make.folder, Job("localhost", ports, str(root), make.path, make.content_type, threads, clients))
