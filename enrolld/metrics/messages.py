"""What supervisor and workers say to each other about metrics once a worker serves: frames on their socket pair.

A worker pushes what has changed (`Counted`) about once a second, whenever it is told to (`Tell`), and at its end. A
worker that is scraped asks for the sums of all (`Ask`) and gets them (`Totals`), in as many messages as they need.
"""

import asyncio
from collections.abc import Iterator, Sequence
from typing import Annotated, TypeVar

import msgspec

from enrolld.metrics.counts import Series

__all__ = ["Ask", "Counted", "Tell", "Totals", "from_supervisor", "from_worker", "pack", "portions", "read_frame"]

T = TypeVar("T")

MAX_FRAME = 1 << 20
PORTION = 2000
"""Series in one message: with the longest names, a good half of MAX_FRAME."""

_LENGTH_BYTES = 4
Portion = Annotated[tuple[Series, ...], msgspec.Meta(max_length=PORTION)]


class Counted(msgspec.Struct, frozen=True, tag="counted", forbid_unknown_fields=True):
    """Series that have changed, from a worker. `round` is that of the `Tell` which is answered in full by this."""

    series: Portion
    round: int = 0


class Ask(msgspec.Struct, frozen=True, tag="ask", forbid_unknown_fields=True):
    """A worker's question for the sums; `number` is the worker's own."""

    number: int


class Tell(msgspec.Struct, frozen=True, tag="tell", forbid_unknown_fields=True):
    """The supervisor wants to know what has changed."""

    round: int


class Totals(msgspec.Struct, frozen=True, tag="totals", forbid_unknown_fields=True):
    """A part of the sums, for the question `number`."""

    number: int
    series: Portion
    is_last: bool


_FROM_WORKER: msgspec.json.Decoder[Counted | Ask] = msgspec.json.Decoder(Counted | Ask)
_FROM_SUPERVISOR: msgspec.json.Decoder[Tell | Totals] = msgspec.json.Decoder(Tell | Totals)
_ENCODER = msgspec.json.Encoder()


def pack(message: Counted | Ask | Tell | Totals) -> bytes:
    """The frame of a message."""
    body = _ENCODER.encode(message)
    return len(body).to_bytes(_LENGTH_BYTES, "big") + body


async def read_frame(reader: asyncio.StreamReader) -> bytes | None:
    """The next message's body, None at the end of the stream. Raises ValueError for one that is larger than any."""
    try:
        length = int.from_bytes(await reader.readexactly(_LENGTH_BYTES), "big")
        if length > MAX_FRAME:
            raise ValueError("a message is larger than any")
        return await reader.readexactly(length)
    except (asyncio.IncompleteReadError, ConnectionError):
        return None


def from_worker(frame: bytes) -> Counted | Ask:
    """A worker's message. Raises ValueError for anything else."""
    return _decoded(_FROM_WORKER, frame)


def from_supervisor(frame: bytes) -> Tell | Totals:
    """The supervisor's message. Raises ValueError for anything else."""
    return _decoded(_FROM_SUPERVISOR, frame)


def _decoded(decoder: msgspec.json.Decoder[T], frame: bytes) -> T:
    try:
        return decoder.decode(frame)
    except msgspec.DecodeError as exc:
        raise ValueError(f"a message is none of ours: {exc}") from exc


def portions(series: Sequence[Series]) -> Iterator[tuple[tuple[Series, ...], bool]]:
    """The series in parts that fit into a message each, and whether a part is the last; one even of none."""
    for start in range(0, max(1, len(series)), PORTION):
        yield tuple(series[start : start + PORTION]), start + PORTION >= len(series)
