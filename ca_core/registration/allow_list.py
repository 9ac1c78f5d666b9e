"""Reading a list of devices: CSV (RFC 4180) with a header line, in UTF-8.

A line is read and judged by itself, and whatever is wrong with it is a fault that names line and column, never the end
of reading: an operator mends a file once. What is read is bounded by line, by record and in all, because a file may be
anything.
"""

import csv
import datetime as dt
import difflib
import hashlib
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import BinaryIO, TypeVar

from ca_core.errors import OperatorError
from ca_core.names import parse_device_name
from ca_core.registration.device_facts import check_identity, check_owner, check_profile, parse_sans, secret_expiry
from ca_core.registration.name_keys import check_new_device
from ca_core.registration.realm import Realm
from ca_core.rows import ImportFault

T = TypeVar("T")

__all__ = ["COLUMNS", "Entry", "Record", "RecordReader", "judge"]

COLUMNS = ("name", "serial_number", "manufacturer", "profile", "owner", "san", "expires")
MOST_RECORDS = 100_000
"""So that the one transaction stays short; see `device_import`."""
LONGEST_LINE = 16 << 10
LONGEST_RECORD = 16
"""Lines; a quote that nobody closed would take in the rest of the file."""


@dataclass(frozen=True, slots=True)
class Record:
    """One line as read: its number (of its first line, from 1), and its cells by column; empty ones are left out."""

    line: int
    cells: dict[str, str]


@dataclass(frozen=True, slots=True)
class Entry:
    """A device as it is to be registered. `names` is the row's JSON; `expires` is when its secret would end."""

    line: int
    name: str
    profile: str | None
    serial_number: str | None
    manufacturer: str | None
    names: str
    owner: str | None
    expires: dt.datetime


class _LineTooLong(Exception):
    pass


class _RecordTooLong(Exception):
    pass


class _Lines:
    """The lines of a file for the csv module; what is no UTF-8 stays marked in the text (surrogateescape)."""

    def __init__(self, file: BinaryIO, advance: Callable[[int], object]) -> None:
        self._file = file
        self._advance = advance
        self.digest = hashlib.sha256()
        self.number = 0
        self.of_record = 0

    def __iter__(self) -> "_Lines":
        return self

    def __next__(self) -> str:
        raw = self._read()
        if not raw:
            raise StopIteration
        self.number += 1
        self.of_record += 1
        if len(raw) > LONGEST_LINE:
            while raw and not raw.endswith(b"\n"):
                raw = self._read()
            raise _LineTooLong
        if self.of_record > LONGEST_RECORD:
            raise _RecordTooLong
        if self.number == 1:
            raw = raw.removeprefix(b"\xef\xbb\xbf")
        return raw.decode("utf-8", "surrogateescape")

    def _read(self) -> bytes:
        raw = self._file.readline(LONGEST_LINE + 1)
        self.digest.update(raw)
        self._advance(len(raw))
        return raw


class RecordReader:
    """Iterates over the records of a list, and the faults of what is no record.

    `advance` is told how many bytes were read. When the iteration has ended, `sha256` is that of the file, unless
    `is_cut`: then the rest of it was not read.
    """

    def __init__(self, file: BinaryIO, advance: Callable[[int], object]) -> None:
        self._lines = _Lines(file, advance)
        self.is_cut = False

    @property
    def line(self) -> int:
        """The number of the line that was read last."""
        return self._lines.number

    @property
    def sha256(self) -> bytes:
        """Of what was read so far."""
        return self._lines.digest.digest()

    def __iter__(self) -> Iterator[Record | ImportFault]:
        columns: list[str] | None = None
        for count, (line, read) in enumerate(self._records()):
            if count > MOST_RECORDS:  # the header is none of them
                self.is_cut = True
                said = f"the file has more than {MOST_RECORDS} devices"
                yield _fault(line, None, "import_too_large", said, "split it, and import the parts")
                return
            if isinstance(read, ImportFault):
                yield read
                if self.is_cut or columns is None:
                    self.is_cut = True
                    return
            elif columns is None:
                faults = list(_header_faults(line, read))
                yield from faults
                if faults:
                    self.is_cut = True  # no other line means anything
                    return
                columns = [cell.strip() for cell in read]
            elif len(read) != len(columns):
                yield ImportFault(
                    line=line,
                    column=None,
                    code="import_cells",
                    message=f"it has {len(read)} cells, and the header has {len(columns)}",
                    remedy="put a cell that holds a comma in quotes, and leave none out",
                )
            else:
                cells = zip(columns, (cell.strip() for cell in read), strict=True)
                yield Record(line, {name: cell for name, cell in cells if cell})
        if columns is None:
            yield _fault(1, None, "import_empty", "the file is empty", f"begin with a header: {','.join(COLUMNS)}")

    def _records(self) -> Iterator[tuple[int, list[str] | ImportFault]]:
        lines = self._lines
        reader = csv.reader(lines, strict=True)
        while True:
            line = lines.number + 1
            lines.of_record = 0
            try:
                cells = next(reader)
            except StopIteration:
                return
            except _LineTooLong:
                longer = f"the line is longer than {LONGEST_LINE // 1024} KiB"
                yield line, _fault(line, None, "import_line_too_long", longer, "no device needs that; mend the line")
            except _RecordTooLong:
                self.is_cut = True
                opened = "a quote is opened and not closed; what follows was not read"
                yield line, _fault(line, None, "import_quote_open", opened, "close it, or write it twice")
            except csv.Error as exc:
                said = "a carriage return stands inside it" if "new-line character" in str(exc) else str(exc)
                remedy = "write it as RFC 4180 says: cells with commas or quotes in quotes, and quotes twice"
                yield line, _fault(line, None, "import_not_csv", f"it is not CSV: {said}", remedy)
            else:
                if cells:  # an empty line is none
                    yield line, cells


def judge(found: Realm, record: Record, now: dt.datetime) -> Entry | list[ImportFault]:
    """The device that a record describes, or all that is wrong with it."""
    cells, faults = record.cells, []

    def tried(column: str, parse: Callable[[], T]) -> T | None:
        if not cells.get(column, "").isprintable():  # also what is no UTF-8
            remedy = "save the file as UTF-8, without control characters"
            faults.append(_fault(record.line, column, "import_unprintable", "it holds what can't be shown", remedy))
            return None
        try:
            return parse()
        except OperatorError as exc:
            faults.append(_fault(record.line, column, exc.code, exc.message, exc.remedy))
            return None

    profile, serial_number = cells.get("profile"), cells.get("serial_number")
    name = tried("name", lambda: _name(cells.get("name")))
    tried("profile", lambda: check_profile(found, profile))
    is_number = serial_number is not None and serial_number.isprintable() and len(serial_number) <= 64
    identity = "manufacturer" if is_number else "serial_number"
    manufacturer = tried(identity, lambda: check_identity(found, serial_number, cells.get("manufacturer")))
    names = tried("san", lambda: parse_sans(cells.get("san", "").replace(";", " ").split()))
    owner = tried("owner", lambda: check_owner(cells.get("owner")))
    expires = tried("expires", lambda: secret_expiry(found, cells.get("expires"), now))
    if faults or name is None or names is None or expires is None:
        return faults
    return Entry(record.line, name, profile, serial_number, manufacturer, json.dumps(names), owner, expires)


def _name(text: str | None) -> str:
    if text is None:
        raise OperatorError("name_missing", "the device has no name", "give it one")
    check_new_device(parse_device_name(text))
    return text


def _header_faults(line: int, cells: list[str]) -> Iterator[ImportFault]:
    names = [cell.strip() for cell in cells]
    if cells[0].startswith(("\udcff\udcfe", "\udcfe\udcff")):
        yield _fault(line, None, "import_encoding", "the file is UTF-16", "save it as CSV in UTF-8")
        return
    for other, what in ((";", "semicolons"), ("\t", "tabs")):
        if len(names) == 1 and other in cells[0]:
            yield _fault(line, None, "import_separator", f"its cells are separated by {what}", "save it with commas")
            return
    for number, name in enumerate(names):
        if name in names[:number]:
            yield _fault(line, name, "import_column_twice", "the column is there twice", "leave one of them out")
        elif name not in COLUMNS:
            near = difflib.get_close_matches(name.lower(), COLUMNS, 1, 0.5)
            known = f"did you mean '{near[0]}'?" if near else f"there are: {', '.join(COLUMNS)}"
            shown = ascii(name[:40])[1:-1]
            yield _fault(line, shown, "import_column_unknown", f"there is no column '{shown}'", known)
    if "name" not in names:
        remedy = f"begin with a header such as: {','.join(COLUMNS)}"
        yield _fault(line, None, "import_column_missing", "the header lacks the column 'name'", remedy)


def _fault(line: int, column: str | None, code: str, message: str, remedy: str) -> ImportFault:
    return ImportFault(line=line, column=column, code=code, message=message, remedy=remedy)
