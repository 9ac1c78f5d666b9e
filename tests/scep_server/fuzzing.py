"""Fuzzing with mutations of DER, by its structure and by its bytes; what is read, and by whom, is the caller's.

Round n of a seed makes the same mutation everywhere, and what it read is printed when it is not refused cleanly.
"""

import contextlib
import inspect
import random
import sys
import time
import tracemalloc
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass, field
from pathlib import Path
from types import CodeType, FrameType, ModuleType
from typing import Any

from ca_core.errors import Refusal
from tests.scep_server import client

MAX_SECONDS = 1.0  # of CPU, for one message; the dearest take some ten milliseconds
MAX_MEMORY = 16 * 2**20


# --- DER as a tree ---------------------------------------------------------------------------------------------------


@dataclass(slots=True)
class Node:
    """An element. `children` are those of a constructed one, and of an OCTET or BIT STRING that holds DER."""

    tag: int
    content: bytes = b""
    children: list["Node"] | None = None
    prefix: bytes = b""
    length: str = "der"

    def inside(self) -> bytes:
        if self.children is None:
            return self.prefix + self.content
        return self.prefix + b"".join(child.encode() for child in self.children)

    def below(self) -> list["Node"]:
        return self.children or []

    def encode(self) -> bytes:
        inside = self.inside()
        match self.length:
            case "indefinite":
                return bytes((self.tag | 0x20, 0x80)) + inside + b"\0\0"
            case "long":
                return bytes((self.tag, 0x84)) + len(inside).to_bytes(4, "big") + inside
            case "more" | "less":
                return bytes((self.tag, (len(inside) + (1 if self.length == "more" else -1)) & 0x7F)) + inside
            case "huge":
                return bytes((self.tag, 0x84, 0x7F, 0xFF, 0xFF, 0xFF)) + inside
            case "endless":
                return bytes((self.tag, 0xFE)) + inside
        return client.tlv(self.tag, inside)

    def walk(self) -> Iterator["Node"]:
        """Itself and all below it."""
        waiting = [self]
        while waiting:
            yield (node := waiting.pop())
            waiting += node.below()


def only(data: bytes) -> Node:
    """The one element of something honest."""
    nodes = parse(data)
    assert nodes is not None
    assert len(nodes) == 1
    return nodes[0]


def parse(data: bytes) -> list[Node] | None:
    """The elements that fill `data`, None where it is something else. Definite lengths alone."""
    nodes, position = [], 0
    while position < len(data):
        if len(data) - position < 2 or (tag := data[position]) & 0x1F == 0x1F:
            return None
        length, start = data[position + 1], position + 2
        if length >= 0x80:
            start += length & 0x7F
            length = int.from_bytes(data[position + 2 : start], "big")
        if start + length > len(data) or data[position + 1] == 0x80:
            return None
        nodes.append(_node(tag, data[start : start + length]))
        position = start + length
    return nodes


def _node(tag: int, content: bytes) -> Node:
    if tag & 0x20:
        children = parse(content)
        return Node(tag, content) if children is None else Node(tag, children=children)
    prefix = content[:1] if tag == 0x03 else b""
    if tag in (0x03, 0x04) and content[len(prefix) :][:1] == b"\x30" and (inner := parse(content[len(prefix) :])):
        return Node(tag, children=inner, prefix=prefix)
    return Node(tag, content)


# --- mutations -------------------------------------------------------------------------------------------------------

_TAGS = (0, 1, 2, 3, 4, 5, 6, 0x0C, 0x13, 0x14, 0x16, 0x17, 0x18, 0x1E, 0x1F, 0x24, 0x30, 0x31, 0x80, 0x81, 0xA0, 0xA1)
_BYTES = (0, 1, 0x7F, 0x80, 0x81, 0x84, 0xFF, 0x24, 0x30, 0x31, 0xA0)


def change_bytes(data: bytes, chance: random.Random) -> bytes:
    out = bytearray(data or b"\0")
    for _ in range(chance.choice((1, 1, 2, 5))):
        at = chance.randrange(len(out) + 1)
        match chance.randrange(6):
            case 0 if at < len(out):
                out[at] ^= 1 << chance.randrange(8)
            case 1:
                out[at : at + 1] = bytes((chance.choice(_BYTES),))
            case 2:
                del out[at : at + chance.choice((1, 2, 16, len(out)))]
            case 3:
                out[at:at] = chance.randbytes(chance.choice((1, 2, 16)))
            case 4:
                start = chance.randrange(len(out) + 1)
                out[at:at] = out[start : start + chance.choice((4, 64, 256))]
            case _:
                out[at : at + 4] = b"\x30\x80\x24\x80"
    return bytes(out)


def change_tree(root: Node, chance: random.Random, donors: Sequence[Node]) -> None:
    """Change one to three places of the tree."""
    for _ in range(chance.choice((1, 1, 1, 2, 3))):
        nodes = list(root.walk())
        node = chance.choice(nodes)
        around = chance.choice([each for each in nodes if each.children] or [root])
        _CHANGES[chance.randrange(len(_CHANGES))](node, around, chance, donors)


def _content(node: Node, around: Node, chance: random.Random, donors: Sequence[Node]) -> None:
    del around, donors
    node.content, node.children = change_bytes(node.inside()[len(node.prefix) :], chance), None


def _empty(node: Node, around: Node, chance: random.Random, donors: Sequence[Node]) -> None:
    del around, chance, donors
    node.content, node.children, node.prefix = b"", None, b""


def _tag(node: Node, around: Node, chance: random.Random, donors: Sequence[Node]) -> None:
    del around, donors
    node.tag = chance.choice((*_TAGS, node.tag ^ 0x20, node.tag ^ 0x80, chance.randrange(256)))


def _length(node: Node, around: Node, chance: random.Random, donors: Sequence[Node]) -> None:
    del around, donors
    node.length = chance.choice(("indefinite", "long", "more", "less", "huge", "endless"))


def _siblings(node: Node, around: Node, chance: random.Random, donors: Sequence[Node]) -> None:
    del node
    if (children := around.children) is None:
        return
    at, other = chance.randrange(len(children) or 1), chance.randrange(len(children) or 1)
    match chance.randrange(5):
        case 0:
            del children[at : at + 1]
        case 1:
            children[at:at] = [deepcopy(each) for each in children[at : at + 1]] * chance.choice((1, 1, 2, 16, 64, 300))
        case 2 if children:
            children[at], children[other] = children[other], children[at]
        case 3:
            children[at : at + 1] = [deepcopy(chance.choice(donors))]
        case _:
            children.insert(at, deepcopy(chance.choice(donors)))


def _nest(node: Node, around: Node, chance: random.Random, donors: Sequence[Node]) -> None:
    """Deeper: by a few levels, or by as many as break a reader that calls itself."""
    del around, donors
    levels, tag = chance.choice((1, 2, 40, 3000)), chance.choice((0x30, 0x31, 0x24, 0xA0, node.tag | 0x20))
    inner = node.encode()
    if levels > 100:
        node.content, node.children, node.prefix = bytes((tag, 0x80)) * levels + inner + b"\0\0" * levels, None, b""
        node.tag, node.length = tag, "indefinite"
        return
    for _ in range(levels - 1):
        inner = client.tlv(tag, inner)
    node.tag, node.content, node.children, node.prefix, node.length = tag, inner, None, b"", "der"


def _pieces(node: Node, around: Node, chance: random.Random, donors: Sequence[Node]) -> None:
    """A string in pieces, of one byte each or more, sometimes of another type or nested."""
    del around, donors
    inside, size = node.inside() * chance.choice((1, 1, 1, 16)), chance.choice((1, 7, 1000))
    tag = chance.choice((0x04, 0x04, 0x04, node.tag & 0xDF, 0x02))
    pieces = [Node(tag, inside[at : at + size]) for at in range(0, min(len(inside), 10_000), size)]
    if chance.random() < 0.2:
        pieces = [Node(0x24, children=pieces, length="indefinite")]
    node.tag, node.content, node.prefix, node.children = node.tag | 0x20, b"", b"", pieces
    node.length = chance.choice(("indefinite", "der"))


def _ber(node: Node, around: Node, chance: random.Random, donors: Sequence[Node]) -> None:
    """All that is constructed below of indefinite length."""
    del around, donors
    for each in node.walk():
        if each.tag & 0x20 and chance.random() < 0.9:
            each.length = "indefinite"


def _oid(node: Node, around: Node, chance: random.Random, donors: Sequence[Node]) -> None:
    """An object identifier in the place of another."""
    del node
    here = [each for each in around.walk() if each.tag == 0x06]
    there = [each for each in donors if each.tag == 0x06]
    if here and there:
        chance.choice(here).content = chance.choice(there).content


def _integer(node: Node, around: Node, chance: random.Random, donors: Sequence[Node]) -> None:
    """A number in the place of another: a version, a serial number, a modulus."""
    del node, donors
    if here := [each for each in around.walk() if each.tag == 0x02]:
        content = chance.choice(
            (b"\0", b"\1", b"\2", b"\3", b"\x7f", b"\xff", b"\0\0\1", b"\x7f" * 4, b"\1" + bytes(2000))
        )
        chance.choice(here).content = content


_CHANGES = (_content, _content, _empty, _tag, _length, _siblings, _siblings, _nest, _pieces, _ber, _oid, _integer)


def changed(data: bytes, chance: random.Random, donors: Sequence[Node]) -> bytes:
    """By its structure mostly, by its bytes else."""
    nodes = parse(data)
    if not nodes or len(nodes) != 1 or chance.random() < 0.25:
        return change_bytes(data, chance)
    change_tree(nodes[0], chance, donors)
    data = nodes[0].encode()
    return change_bytes(data, chance) if chance.random() < 0.1 else data


# --- fuzzing ---------------------------------------------------------------------------------------------------------


class Coverage:
    """Which lines of functions ran: those of a module or a class run whenever it is imported."""

    def __init__(self, modules: Sequence[ModuleType]) -> None:
        self.lines = {str(module.__file__): set(_lines(module)) for module in modules}
        self.seen: dict[str, set[int]] = {name: set() for name in self.lines}
        self._left: dict[int, set[int]] = {}

    def __enter__(self) -> None:
        self._before = sys.gettrace()
        sys.settrace(self._trace)

    def __exit__(self, *_: object) -> None:
        sys.settrace(self._before)

    def _trace(self, frame: FrameType, event: str, arg: object) -> Any:
        del event, arg
        code = frame.f_code
        seen = self.seen.get(code.co_filename)
        if seen is None:
            return None
        left = self._left.get(id(code))
        if left is None:
            left = self._left[id(code)] = {line for _, _, line in code.co_lines() if line}
        left.discard(frame.f_lineno)
        seen.add(frame.f_lineno)
        return self._trace if left else None  # what has run whole need not be watched again

    @property
    def share(self) -> float:
        ran = sum(len(self.seen[name] & lines) for name, lines in self.lines.items())
        return ran / sum(map(len, self.lines.values()))

    def print(self) -> None:
        for name, lines in self.lines.items():
            missed = sorted(lines - self.seen[name])
            print(f"  {1 - len(missed) / len(lines):5.1%} of {len(lines):3} lines of {Path(name).name}, not {missed}")
        print(f"  {self.share:5.1%} of the codec")


def _lines(module: ModuleType) -> Iterator[int]:
    path = Path(str(module.__file__))
    waiting = [compile(path.read_text(), str(path), "exec")]
    while waiting:
        code = waiting.pop()
        # annotations are code of their own from Python 3.14 on
        waiting += [each for each in code.co_consts if isinstance(each, CodeType) and each.co_name != "__annotate__"]
        if code.co_flags & inspect.CO_OPTIMIZED:
            yield from (line for _, _, line in code.co_lines() if line)


@dataclass(frozen=True)
class Target:
    """What is made, what reads it, how often, and whether ValueError is among its refusals."""

    make: Callable[[random.Random], Any]
    read: Callable[[Any], None]
    weight: float = 1.0
    may_raise_value_error: bool = False


Targets = Mapping[str, Target]


def make(targets: Targets, seed: int, number: int) -> tuple[str, Any]:
    """What round `number` reads."""
    chance = random.Random(f"{seed}:{number}")
    (name,) = chance.choices(list(targets), [target.weight for target in targets.values()])
    return name, targets[name].make(chance)


class Found(AssertionError):
    """What a reader did that it must not do."""


@dataclass
class Outcome:
    """What fuzzing has come to."""

    rounds: int = 0
    seconds: float = 0.0
    longest: float = 0.0
    memory: int = 0
    refused: Counter[tuple[str, str]] = field(default_factory=Counter)

    def print(self) -> None:
        print(f"{self.rounds} rounds in {self.seconds:.0f} s; the longest {self.longest * 1e3:.0f} ms of CPU, "
              f"the largest {self.memory / 2**20:.1f} MiB")  # fmt: skip
        for (name, code), count in sorted(self.refused.items()):
            print(f"  {count:8} {name}: {code}")


def fuzz(
    targets: Targets, seed: int, *, rounds: int, seconds: float = 0.0, coverage: Coverage | None = None
) -> Outcome:
    """So many rounds, and then on until so many seconds are over. Raises `Found`."""
    outcome, began = Outcome(), time.monotonic()
    while outcome.rounds < rounds or outcome.seconds < seconds:
        number = outcome.rounds
        name, data = make(targets, seed, number)
        is_traced = coverage is not None and number % 2 == 0
        is_weighed = number % 64 == 1  # never both: each makes the other look worse
        if is_weighed:
            tracemalloc.start()
        cpu = time.thread_time()
        try:
            with coverage if coverage is not None and is_traced else contextlib.nullcontext():
                targets[name].read(data)
            result = "read"
        except Refusal as refusal:
            result = refusal.code
        except BaseException as fault:
            if not isinstance(fault, Exception) and type(fault).__name__ != "PanicException":  # that is Rust's
                raise
            if not (isinstance(fault, ValueError) and targets[name].may_raise_value_error):
                raise Found(_told(seed, number, name, data, repr(fault))) from fault
            result = "ValueError"
        finally:
            cpu = time.thread_time() - cpu
            if is_weighed:
                outcome.memory = max(outcome.memory, tracemalloc.get_traced_memory()[1])
                tracemalloc.stop()
        if not (is_traced or is_weighed):
            outcome.longest = max(outcome.longest, cpu)
        if outcome.longest > MAX_SECONDS or outcome.memory > MAX_MEMORY:
            raise Found(_told(seed, number, name, data, f"{outcome.longest} s, {outcome.memory} bytes"))
        outcome.refused[name, result] += 1
        outcome.rounds += 1
        outcome.seconds = time.monotonic() - began
    return outcome


def _told(seed: int, number: int, name: str, data: Any, what: str) -> str:
    data = getattr(data, "data", data)
    shown = data.hex() if isinstance(data, bytes) else str(data)
    return f"ENROLLD_FUZZ_SEED={seed}, round {number}, {name}: {what}\n{shown}"
