"""`enrolld check --matrix`: the realm matrix over the rules of this installation, and over nothing else of it.

Its documents are read, and that is all. The rest is made for the run: a store in a folder of its own, CAs,
manufacturers, devices. No network is used, and no webhook is asked.
"""

import asyncio
import contextlib
import os
import secrets
import shutil
import signal
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING

import click

from enrolld.cli import output
from enrolld.cli.frame import Session

if TYPE_CHECKING:
    from ca_core.matrix import Finding, Policy, Report, Size, Skipped

__all__ = ["prove"]

_FINDINGS = 3
_ROOM = 512 << 20
_MEMORY = Path("/dev/shm")  # noqa: S108  # the folder in it is made for us alone


def prove(session: Session) -> int:
    """Run it, and tell what it found; the exit status."""
    from ca_core.matrix import Size, read_policy

    policy = session.run(read_policy)
    size = Size()
    steps = 2 * len(policy.documents) + size.steps(len(policy.documents))
    with _ended_by_signals(), _folder() as folder, _progress(steps) as advance:
        report = asyncio.run(_run(folder, policy, size, advance))
    if session.json:
        output.emit_json(
            {
                "cells": len(report.cells),
                "pairs": report.pairs,
                "failures": [output.plain(finding) for finding in report.failures],
                "skipped": [output.plain(skipped) for skipped in report.skipped],
            }
        )
    else:
        _tell(report)
    return _FINDINGS if report.failures else 0


async def _run(folder: Path, policy: "Policy", size: "Size", advance: Callable[[int], object]) -> "Report":
    from ca_core.authority.sealing import UnlockKey
    from ca_core.core import Core, CoreConfig
    from ca_core.matrix import AllowingWebhook, CoreDoor, Credentials, Ground, Report, run
    from ca_core.records.times import utc_now

    now = utc_now()
    report = Report()
    # The realms as they are here, and then all of them under one root.
    for under_one_root in (False, True):
        name = "shared" if under_one_root else "matrix"
        config = CoreConfig(
            store_url=f"sqlite:///{folder}/{name}.db",
            unlock_key=UnlockKey(secrets.token_hex(32).encode()),
            public_url="http://matrix.invalid",
            demo=False,
            # It stands, so that nothing runs out, however long it takes.
            clock=lambda: now,
            webhook=AllowingWebhook(),
        )
        core = await Core.create(config)
        try:
            ground = await Ground.make(core, policy, report, advance, under_one_root=under_one_root)
            await run(ground, Credentials(ground, CoreDoor(core)), report, size, advance)
        finally:
            core.close()
    return report


def _tell(report: "Report") -> None:
    for finding in report.failures:
        output.raw(f"error: {output.printable(_sentence(finding))}")
    for skipped in report.skipped:
        output.raw(f"not proven: {output.printable(_gap(skipped))}")
    over = f"{len(report.cells)} cells over {report.pairs} ordered pairs of realms"
    if report.failures:
        output.raw(f"{over}, and {len(report.failures)} findings: these realms are not apart.")
        output.raw(
            "  Look at what both of them trust and take: 'enrolld realm export R', its [admission] and [[trust]]."
        )
    elif report.pairs:
        output.raw(f"{over}: every credential works in its own realm, and in no other.")
    else:
        output.raw("There are no two realms to compare.")


def _sentence(finding: "Finding") -> str:
    return (
        f"{finding.credential} of realm {finding.home}, {finding.operation} in realm {finding.asked_in} "
        f"({finding.home} -> {finding.away}, {finding.relation}): expected {finding.expected}, got {finding.got}"
    )


def _gap(skipped: "Skipped") -> str:
    whose = [f"realm {skipped.home}"] if skipped.home is not None else []
    whose += [f"in realm {skipped.away}"] if skipped.away is not None else []
    whose += [skipped.credential] if skipped.credential is not None else []
    return f"{', '.join(whose)}: {skipped.reason}" if whose else skipped.reason


@contextlib.contextmanager
def _folder() -> Iterator[Path]:
    """A folder for us alone, gone afterwards; in memory, where no disk is waited for and none keeps a key."""
    place = None
    if "TMPDIR" not in os.environ and os.access(_MEMORY, os.W_OK) and shutil.disk_usage(_MEMORY).free > _ROOM:
        place = _MEMORY
    with tempfile.TemporaryDirectory(prefix="enrolld-matrix-", dir=place, ignore_cleanup_errors=True) as name:
        yield Path(name)


@contextlib.contextmanager
def _ended_by_signals() -> Iterator[None]:
    """Whoever ends the command, the folder goes with it."""

    def interrupt(_: int, __: FrameType | None) -> None:
        raise KeyboardInterrupt

    ours = [number for number in (signal.SIGTERM, signal.SIGHUP) if signal.getsignal(number) is not signal.SIG_IGN]
    before = {number: signal.signal(number, interrupt) for number in ours}  # whoever is under nohup stays
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextlib.contextmanager
def _progress(length: int) -> Iterator[Callable[[int], object]]:
    """A bar on a terminal, and nothing elsewhere."""
    hidden = not sys.stderr.isatty()
    with click.progressbar(length=max(length, 1), label="Proving", file=sys.stderr, hidden=hidden) as bar:
        yield bar.update
