"""The order of system calls, as strace saw it: is a record durable before the answer that carries it leaves?

`read_trace` turns the output of `strace -f -yy -xx` into calls with the line at which each began and the line at which
it had ended. strace stops a thread at the entry and at the exit of a call, so that the order of lines is the order of
events, over all threads and processes.

`undurable_answers` holds design 3.1 against it, for TLS 1.2 connections, whose record types can be read from outside:
an answer is the first application data (0x17) that the server writes on a connection after the first that it read. It
is covered when, between the two, the certificate's bytes were written to the store's log, and a sync of that log began
after that write and ended before the answer began.
"""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

__all__ = [
    "Call",
    "answers_written",
    "read_trace",
    "request_and_answer",
    "syncs_of_the_store",
    "undurable_answers",
]

APPLICATION_DATA = 0x17
READS = {"read", "recvfrom", "recvmsg", "readv"}
WRITES = {"write", "sendto", "sendmsg", "writev"}
SYNCS = {"fdatasync", "fsync"}
STORES = {"pwrite64", "pwritev", "write"}
STORE_LOG = re.compile(r"\.db-wal$")

_OF_INTEREST = ("<TCP:", "\\x2d\\x77\\x61\\x6c>", " resumed>")  # sockets, ...-wal, and the ends of calls
_LINE = re.compile(r"(?P<pid>\d+) +(?P<rest>.*)")
_BEGUN = re.compile(r"(?P<name>\w+)\((?P<arguments>.*) <unfinished \.\.\.>$")
_RESUMED = re.compile(r"<\.\.\. (?P<name>\w+) resumed>(?P<arguments>.*)\) += (?P<result>-?\d+|\?).*$")
_WHOLE = re.compile(r"(?P<name>\w+)\((?P<arguments>.*)\) += (?P<result>-?\d+|\?).*$")
_DESCRIPTOR = re.compile(r"(?P<number>-?\d+)<(?P<what>(?:->|\\x[0-9a-f]{2}|[^<>\\])*)>")
_HEX_STRING = re.compile(r'"((?:\\x[0-9a-f]{2})*)"')


@dataclass(frozen=True, slots=True)
class Call:
    """One system call that succeeded: when it began and had ended (line numbers), on what, and which bytes it moved."""

    began: int
    ended: int
    pid: int
    name: str
    descriptor: int
    target: str
    data: bytes

    @property
    def on_socket(self) -> bool:
        """Whether its descriptor is a TCP socket."""
        return self.target.startswith("TCP")


def read_trace(text: str) -> list[Call]:
    """Every finished call of the trace that names a descriptor, in the order in which they began."""
    begun: dict[tuple[int, str], tuple[int, str]] = {}
    calls = []
    for number, line in enumerate(text.splitlines()):
        parts = _LINE.fullmatch(line) if any(mark in line for mark in _OF_INTEREST) else None
        if parts is None:
            continue
        pid, rest = int(parts["pid"]), parts["rest"]
        if started := _BEGUN.fullmatch(rest):
            begun[pid, started["name"]] = number, started["arguments"]
        elif resumed := _RESUMED.fullmatch(rest):
            if (start := begun.pop((pid, resumed["name"]), None)) is not None:
                arguments = start[1] + resumed["arguments"]
                calls += _call(start[0], number, pid, resumed["name"], arguments, resumed["result"])
        elif whole := _WHOLE.fullmatch(rest):
            calls += _call(number, number, pid, whole["name"], whole["arguments"], whole["result"])
    return sorted(calls, key=lambda call: call.began)


def undurable_answers(calls: Sequence[Call], certificates: dict[int, Sequence[bytes]]) -> list[str]:
    """What is wrong: one sentence per answer that left before its record was durable. Empty when all is well.

    `certificates` maps the client's port of each connection to byte strings of the certificate that came over it, any
    of which shows that a write to the store holds its row.
    """
    wrong = []
    syncs = syncs_of_the_store(calls)
    for port, needles in certificates.items():
        request, answer = request_and_answer(calls, port)
        writes = [
            call
            for call in calls
            if call.name in STORES and STORE_LOG.search(call.target) and any(needle in call.data for needle in needles)
        ]
        if not writes:
            wrong.append(f"port {port}: its certificate was never written to the store")
            continue
        first = min(writes, key=lambda call: call.ended)
        if first.began < request.ended:
            wrong.append(f"port {port}: its row was written before its request was read; the trace is misread")
        elif first.ended >= answer.began:
            wrong.append(f"port {port}: answered at line {answer.began}, stored only at line {first.ended}")
        elif not any(first.ended < sync.began and sync.ended < answer.began for sync in syncs):
            wrong.append(f"port {port}: answered at line {answer.began}, no sync since its row at line {first.ended}")
    return wrong


def syncs_of_the_store(calls: Iterable[Call]) -> list[Call]:
    """The syncs of the store's log."""
    return [call for call in calls if call.name in SYNCS and STORE_LOG.search(call.target)]


def answers_written(calls: Iterable[Call]) -> int:
    """How many writes of TLS application data there are: a trace without any proves nothing."""
    return sum(1 for call in calls if call.name in WRITES and call.on_socket and _has_application_data(call.data))


def request_and_answer(calls: Sequence[Call], port: int) -> tuple[Call, Call]:
    """The read that began the request on the connection of this client port, and the write that began its answer."""
    mine = [call for call in calls if call.on_socket and _peer_port(call.target) == port]
    requests = [call for call in mine if call.name in READS and _has_application_data(call.data)]
    if not requests:
        raise ValueError(f"no request was read from port {port}")
    answers = [
        call
        for call in mine
        if call.name in WRITES and call.began > requests[0].ended and _has_application_data(call.data)
    ]
    if not answers:
        raise ValueError(f"no answer was written to port {port}")
    return requests[0], answers[0]


def _has_application_data(data: bytes) -> bool:
    """Whether a run of TLS records, of which the first begins here, has one of application data."""
    position = 0
    while position + 5 <= len(data):
        if data[position] == APPLICATION_DATA:
            return True
        position += 5 + int.from_bytes(data[position + 3 : position + 5], "big")
    return False


def _peer_port(target: str) -> int | None:
    """From `TCP:[127.0.0.1:8443->127.0.0.1:50000]`."""
    found = re.search(r"->.*:(\d+)\]$", target)
    return int(found[1]) if found else None


def _call(began: int, ended: int, pid: int, name: str, arguments: str, result: str) -> list[Call]:
    descriptor = _DESCRIPTOR.match(arguments)
    if descriptor is None or result == "?" or int(result) < 0:
        return []
    strings = [bytes.fromhex(text.replace("\\x", "")) for text in _HEX_STRING.findall(arguments)]
    target = re.sub(r"\\x([0-9a-f]{2})", lambda code: chr(int(code[1], 16)), descriptor["what"])
    return [Call(began, ended, pid, name, int(descriptor["number"]), target, b"".join(strings))]
