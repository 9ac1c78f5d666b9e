"""Audit events: acts, and refusals of requesters who proved who they are.

The writer thread of the store gives each event its place: (writer, sequence) without gaps, so that a missing row shows.
"""

import json
from dataclasses import dataclass, field
from typing import Any

from ca_core.records.query import Params, Query, insert_into
from ca_core.records.schema import audit, writer

FORMAT = 1

INSERT_EVENT = Query(insert_into(audit))
INSERT_WRITER = Query(insert_into(writer))


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


def event_row(event: AuditEvent, writer_name: str, sequence: int, at: int) -> Params:
    """The event's row: `at` in milliseconds since 1970."""
    return {
        "writer": writer_name,
        "sequence": sequence,
        "format": FORMAT,
        "at": at,
        "action": event.action,
        "actor": event.actor,
        "realm": event.realm,
        "device": event.device,
        "serial": event.serial,
        "request_id": event.request_id,
        "details": json.dumps(event.details, sort_keys=True, separators=(",", ":"), ensure_ascii=True),
    }
