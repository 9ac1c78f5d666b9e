"""A real enrolld on a fresh directory: started as a user starts it, watched, ended by SIGTERM, and its output read."""

import asyncio
import contextlib
import json
import os
import signal
import ssl
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from ca_core.core import Core, CoreConfig

__all__ = ["CommandRefused", "Daemon", "eventually", "run_enrolld", "running_daemon"]

T = TypeVar("T")

ENROLLD = Path(sys.executable).with_name("enrolld")
START_SECONDS = 90  # two cores, shared with every other test that starts a daemon just now
STOP_SECONDS = 30
NEVER_IN_OUTPUT = ("Traceback", "exception was never retrieved", "was never awaited", "RuntimeWarning")

Json = dict[str, Any]


def eventually(probe: Callable[[], T | None], *, what: str, seconds: float = 20.0) -> T:
    """Ask `probe` until it answers something, and fail by name when it never does: a bounded wait for a condition."""
    end = time.monotonic() + seconds
    pause = 0.01
    while True:
        answer = probe()
        if answer is not None:
            return answer
        if time.monotonic() > end:
            raise AssertionError(f"not within {seconds:g} s: {what}")
        time.sleep(pause)
        pause = min(pause * 1.5, 0.2)


class CommandRefused(Exception):  # an answer that tests expect, not an error of theirs
    """A command answered `{"error": code, "message", "remedy"}` with exit status 1."""

    def __init__(self, answer: Json) -> None:
        super().__init__(f"{answer['error']}: {answer['message']}")
        self.code: str = answer["error"]
        self.message: str = answer["message"]
        self.remedy: str = answer["remedy"]


def run_enrolld(directory: Path, *arguments: str, stdin: bytes = b"") -> subprocess.CompletedProcess[bytes]:
    """Run one command on `directory`; its output is checked for what must never stand there."""
    done = subprocess.run(
        [str(ENROLLD), "--dir", str(directory), *arguments],
        input=stdin,
        capture_output=True,
        timeout=60,
        check=False,
        env=_environment(),
    )
    _assert_clean(done.stderr.decode(errors="replace"), f"enrolld {' '.join(arguments)}")
    return done


@dataclass(slots=True)
class Daemon:
    """A running `enrolld serve`: its directory, its ports, its output, and its command line."""

    directory: Path
    output: Path
    process: subprocess.Popen[bytes]
    addresses: Json = field(repr=False)
    https_port: int
    http_port: int
    root: Path  # the default realm's root alone: all that a device is given
    ca: Path  # root first, then the issuing CAs
    store_url: str = ""  # that of enrolld.db in the directory, unless it is elsewhere

    def command(self, *arguments: str) -> list[Json]:
        """Run a command with --json; its rows, or its one object as the only row."""
        done = run_enrolld(self.directory, *arguments, "--json")
        rows: list[Json] = [json.loads(line) for line in done.stdout.decode().splitlines() if line.strip()]
        if done.returncode == 1 and rows and "error" in rows[0]:
            raise CommandRefused(rows[0])
        if done.returncode != 0:
            stderr = done.stderr.decode(errors="replace")
            raise AssertionError(f"enrolld {arguments} ended with {done.returncode}: {stderr}")
        return rows

    def ask(self, *arguments: str) -> Json:
        """Run a command that answers one object."""
        (answer,) = self.command(*arguments)
        return answer

    def text(self, *arguments: str) -> str:
        """Run a command as a person does, without --json."""
        done = run_enrolld(self.directory, *arguments)
        assert done.returncode == 0, done.stderr.decode(errors="replace")
        return done.stdout.decode()

    def certificates_of(self, device: str) -> list[Json]:
        """The rows of `cert list` for one device, of whatever realm."""
        return self.command("cert", "list", "--device", device, "--limit", "1000")

    def inspect(self, ask: Callable[[Core], Awaitable[T]]) -> T:
        """Ask the core what a command would ask it, without the time that starting one takes."""
        with self.core() as core:
            return asyncio.run(_await(ask(core)))

    def explain(self, request_id: str) -> Json:
        """What the operator is told about one request; attempts of unproven callers are written with a delay."""

        def asked() -> Json | None:
            try:
                return self.ask("explain", request_id)
            except CommandRefused as refused:
                if refused.code != "request_unknown":
                    raise
                return None

        return eventually(asked, what=f"enrolld explain {request_id}", seconds=10)

    def write_anchors(self, realm: str, folder: Path) -> tuple[Path, Path]:
        """Export a realm's CA certificates: a file with its root alone, and one with all of them."""
        # What `ca export` prints, without a process for it: that costs a sixth of what starting the daemon does.
        exported = [ssl.DER_cert_to_PEM_cert(der) for der in self.inspect(lambda core: core.issuers.export(realm))]
        root = folder / f"{realm}-root.pem"
        root.write_text(exported[0])
        chain = folder / f"{realm}-ca.pem"
        chain.write_text("".join(exported))
        return root, chain

    @contextlib.contextmanager
    def core(self) -> Iterator[Core]:
        """What a command opens: a second writer of the same store. Hundreds of commands would only be starting."""
        core = Core.open(
            CoreConfig(
                store_url=self.store_url or f"sqlite:///{self.directory / 'enrolld.db'}",
                unlock_key=None,
                public_url=str(self.addresses["public_url"]),
                demo=bool(self.addresses["demo"]),
            )
        )
        try:
            yield core
        finally:
            core.close()


@contextlib.contextmanager
def running_daemon(
    folder: Path,
    *,
    serve_arguments: Sequence[str] = (),
    wrapper: Sequence[str] = (),
    settings: str = "",
    store_url: str = "",
) -> Iterator[Daemon]:
    """`enrolld serve --init` on a fresh directory under `folder`, until the block ends.

    `wrapper` goes before the command (strace). `settings` are the text of its enrolld.toml; when they name a store,
    `store_url` is its URL. Leaving the block sends SIGTERM, waits, and asserts that the output holds no traceback: a
    test that passed on top of one did not pass.
    """
    directory = folder / "enrolld"
    output = folder / "serve.log"
    if settings:
        directory.mkdir(mode=0o700, exist_ok=True)
        (directory / "enrolld.toml").write_text(settings)
    with output.open("wb") as sink:
        process = subprocess.Popen(
            [
                *wrapper,
                str(ENROLLD),
                "--dir",
                str(directory),
                "serve",
                "--init",
                *("--https", "127.0.0.1:0", "--http", "127.0.0.1:0"),
                *(() if "--admin" in serve_arguments else ("--admin", "off")),
                *serve_arguments,
            ],
            stdin=subprocess.DEVNULL,
            stdout=sink,
            stderr=subprocess.STDOUT,
            env=_environment(),
        )
    try:
        addresses = _wait_until_serving(process, directory, output)
        daemon = Daemon(
            directory=directory,
            output=output,
            process=process,
            addresses=addresses,
            https_port=_port(addresses, "https"),
            http_port=_port(addresses, "http"),
            root=folder / "default-root.pem",
            ca=folder / "default-ca.pem",
            store_url=store_url,
        )
        daemon.write_anchors("default", folder)
        yield daemon
        assert process.poll() is None, f"enrolld ended by itself:\n{output.read_text(errors='replace')}"
    finally:
        _stop(process, wrapped=bool(wrapper))
    _assert_clean(output.read_text(errors="replace"), "enrolld serve")


async def _await(something: Awaitable[T]) -> T:
    return await something


def _environment() -> dict[str, str]:
    """Ours, without what would point enrolld elsewhere, and with every warning shown."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("ENROLLD_")}
    return {**kept, "PYTHONWARNINGS": "default"}


def _wait_until_serving(process: subprocess.Popen[bytes], directory: Path, output: Path) -> Json:
    announced = directory / "run" / "serve.json"

    def read() -> Json | None:
        if process.poll() is not None:
            raise AssertionError(f"enrolld ended with {process.returncode}:\n{output.read_text(errors='replace')}")
        try:
            addresses: Json = json.loads(announced.read_text())
        except (FileNotFoundError, json.JSONDecodeError):
            return None
        return addresses

    return eventually(read, what=f"{announced} is written", seconds=START_SECONDS)


def _port(addresses: Json, listener: str) -> int:
    """The port of a listener's first URL in serve.json."""
    first: str = addresses[listener][0]
    return int(first.rstrip("/").rpartition(":")[2])


def _stop(process: subprocess.Popen[bytes], *, wrapped: bool) -> None:
    if process.poll() is not None:
        return
    target = process.pid
    if wrapped:  # strace shields itself from the signal; the supervisor below it is the one to tell
        children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
        target = int(children[0])
    os.kill(target, signal.SIGTERM)
    try:
        process.wait(STOP_SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
        raise AssertionError(f"enrolld did not end within {STOP_SECONDS} s of SIGTERM") from None


def _assert_clean(output: str, whose: str) -> None:
    for word in NEVER_IN_OUTPUT:
        assert word not in output, f"{whose} said {word!r}:\n{output}"
