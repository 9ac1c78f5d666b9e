"""The daemon's log: lines for a person on a terminal, JSON with ECS names for machines elsewhere, on stderr.

One line is one write, so that the workers' lines never mix. What a peer sent is shown escaped in both forms; secrets
and keys are never handed to a logger.
"""

import datetime as dt
import json
import logging
import sys
import traceback
from collections.abc import Mapping
from typing import Any

from enrolld.config_file import LogSettings

__all__ = ["escape", "request", "setup"]

_REQUESTS = logging.getLogger("enrolld.request")


def setup(settings: LogSettings, process: str) -> None:
    """Make the root logger of this process write to stderr in the chosen form."""
    handler = logging.StreamHandler(sys.stderr)
    as_text = settings.format == "text" or (settings.format == "auto" and sys.stderr.isatty())
    handler.setFormatter(_Text() if as_text else _Ecs(process))
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(settings.level.upper())
    logging.raiseExceptions = False  # a log that can't be written must not write about it into a socket's error path
    for talkative in ("asyncio", "aiohttp", "alembic"):
        logging.getLogger(talkative).setLevel(max(root.level, logging.WARNING))
    logging.getLogger("psycopg").setLevel(logging.ERROR)  # what it warns of, the store tells in its own words


def request(
    *,
    request_id: str,
    client: str,
    method: str,
    path: str,
    status: int,
    is_refusal: bool,
    seconds: float,
    fields: Mapping[str, Any],
) -> None:
    """One line for one request; `fields` are further ECS names."""
    if not _REQUESTS.isEnabledFor(logging.INFO):
        return
    ecs = {
        "event.action": "request",
        "event.outcome": "failure" if is_refusal else "success",
        "event.duration": int(seconds * 1e9),
        "client.ip": client,
        "http.request.method": method,
        "url.path": path[:200],
        "http.response.status_code": status,
        "enrolld.request_id": request_id,
        **{name: value for name, value in fields.items() if value is not None},
    }
    _REQUESTS.info("%s %s %s %d", client, method, path[:200], status, extra={"ecs": ecs})


def escape(text: str) -> str:
    """Text in one line, with whatever could move a cursor or begin a new line shown escaped."""
    return "".join(char if char.isprintable() else char.encode("unicode_escape").decode("ascii") for char in text)


class _Ecs(logging.Formatter):
    """JSON Lines with the names of the Elastic Common Schema."""

    def __init__(self, process: str) -> None:
        super().__init__()
        self._process = process

    def format(self, record: logging.LogRecord) -> str:
        """The record as one line of ASCII."""
        line: dict[str, Any] = {
            "@timestamp": _time(record),
            "log.level": record.levelname.lower(),
            "message": record.getMessage(),
            "log.logger": record.name,
            "process.name": self._process,
            "process.pid": record.process,
            **getattr(record, "ecs", {}),
        }
        if record.exc_info and record.exc_info[1] is not None:
            line["error.type"] = type(record.exc_info[1]).__name__
            line["error.message"] = str(record.exc_info[1])
            line["error.stack_trace"] = "".join(traceback.format_exception(record.exc_info[1]))
        return json.dumps(line, separators=(",", ":"), default=str)


class _Text(logging.Formatter):
    """One line for a person. Of an exception it shows the last place, not the way there: JSON has that."""

    def format(self, record: logging.LogRecord) -> str:
        """The record as one line."""
        line = f"{_time(record)[11:19]} {record.levelname.lower():<7} {escape(record.getMessage())}"
        ecs: Mapping[str, Any] = getattr(record, "ecs", {})
        shown = {"enrolld.request_id": "id", "enrolld.device": "device", "event.code": "code", "tls.version": "tls"}
        line += "".join(f" {short}={escape(str(ecs[name]))}" for name, short in shown.items() if ecs.get(name))
        if record.exc_info and (exc := record.exc_info[1]) is not None:
            frames = traceback.extract_tb(exc.__traceback__)
            where = f" ({frames[-1].filename.rpartition('/')[2]}:{frames[-1].lineno})" if frames else ""
            line += f": {type(exc).__name__}: {escape(str(exc))}{where}"
        return line


def _time(record: logging.LogRecord) -> str:
    moment = dt.datetime.fromtimestamp(record.created, dt.UTC)
    return moment.isoformat(timespec="milliseconds").replace("+00:00", "Z")
