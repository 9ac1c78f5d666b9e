"""Audit events: acts, and refusals of requesters who proved who they are.

Each writer (one store opened by one process) has a chain of its own, so that writers never wait for each other: it
numbers its events without gaps, and each event's hash covers the hash before it. A row that is missing, changed or
moved then shows; `audit_heads` ties the chains together.
"""

import hashlib
import json
import os
import secrets
import socket
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from sqlalchemy import bindparam, select

from ca_core.records.query import Params, Query, Value, Values, insert_into
from ca_core.records.schema import audit, writer

FORMAT = 1
CHAINED = (
    "writer",
    "sequence",
    "format",
    "at",
    "action",
    "actor",
    "realm",
    "device",
    "serial",
    "request_id",
    "details",
)
"""What an event's hash covers, besides the hash before it."""
CLOCK_ACCEPTED = "clock.accepted"
"""The action of the event by which an operator has accepted that the clock went back; verifying the trail needs it."""
ORIGIN = ("name", "process", "host", "pid", "version", "started_at")
"""What of a writer's row stands before its first event."""

INSERT_EVENT = Query(insert_into(audit))
INSERT_WRITER = Query(insert_into(writer))
UPDATE_WRITER = Query(
    writer.update()
    .where(writer.c.name == bindparam("of_writer"))
    .values(sequence=bindparam("sequence"), hash=bindparam("hash"))
)
WRITER_HEAD = Query(select(writer.c.sequence, writer.c.hash).where(writer.c.name == bindparam("of_writer")))

_BEGIN = b"enrolld audit writer "
_canonical = json.JSONEncoder(sort_keys=True, separators=(",", ":"), ensure_ascii=True).encode


@dataclass(frozen=True, slots=True)
class AuditEvent:
    """Something that an auditor must find.

    `action` is a dotted word (`certificate.issued`), `actor` who did it: `device:NAME`, `operator:NAME` or `enrolld`.
    `details` holds JSON values and never a secret or a key.
    """

    action: str
    actor: str
    realm: str | None = None
    device: str | None = None
    serial: str | None = None
    request_id: str | None = None
    details: dict[str, Any] = field(default_factory=dict)


class Chain:
    """One writer's part of the trail: gives each event its place and its link.

    `process` (serve, cli) and `version` stand in the trail's list of writers.
    """

    def __init__(self, process: str, version: str) -> None:
        self.name = secrets.token_hex(8)
        self._process = process
        self._version = version
        self._origin = b""
        self._place = (0, b"")

    @property
    def place(self) -> tuple[int, bytes]:
        """The number and the hash of the last event; number 0 before the first."""
        return self._place

    def writer_row(self, at: int) -> Params:
        """The row of `INSERT_WRITER`; `at` in milliseconds since 1970.

        Made and written before the writer's first event, which follows from it; made anew when that was rolled back.
        """
        row: Values = {
            "name": self.name,
            "process": self._process,
            "host": socket.gethostname(),
            "pid": os.getpid(),
            "version": self._version,
            "started_at": at,
        }
        self._origin = origin_of(row)
        return {**row, "sequence": 0, "hash": None, "headed": 0}

    def link(self, event: AuditEvent, at: int) -> Params:
        """The row of `INSERT_EVENT` for the next event; `at` in milliseconds since 1970."""
        sequence, previous = self._place
        row: Values = {
            "writer": self.name,
            "sequence": sequence + 1,
            "format": FORMAT,
            "at": at,
            "action": event.action,
            "actor": event.actor,
            "realm": event.realm,
            "device": event.device,
            "serial": event.serial,
            "request_id": event.request_id,
            "details": _canonical(event.details),
        }
        digest = hash_of(previous if sequence else self._origin, row)
        self._place = (sequence + 1, digest)
        return {**row, "hash": digest}

    def head_row(self) -> Params:
        """The parameters of `UPDATE_WRITER`, which ends a batch that wrote events."""
        sequence, digest = self._place
        return {"of_writer": self.name, "sequence": sequence, "hash": digest}

    def back_to(self, place: tuple[int, bytes]) -> None:
        """Go on from `place`: what was linked after it was rolled back."""
        self._place = place


def origin_of(row: Mapping[str, Value]) -> bytes:
    """What stands before a writer's first event in the place of a hash: it covers what `ORIGIN` names of its row."""
    return hash_of(_BEGIN, {name: row[name] for name in ORIGIN})


def hash_of(previous: bytes, row: Mapping[str, Value]) -> bytes:
    """An event's hash: SHA-256 of the hash before it and the canonical JSON (sorted, compact, ASCII) of its columns.

    Raises `TypeError`, `ValueError` for values of kinds that enrolld never writes.
    """
    return hashlib.sha256(previous + _canonical(row).encode("ascii")).digest()
