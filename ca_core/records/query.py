"""Statements: built once with SQLAlchemy Core, run as compiled text on the driver connection.

Running a compiled statement through SQLAlchemy's own execution costs five times as much CPU as handing its text to the
driver; the text is what all engines share.
"""

from collections.abc import Mapping
from typing import Any

from sqlalchemy import ColumnElement, Insert, Table, bindparam
from sqlalchemy.engine import Dialect
from sqlalchemy.sql import ClauseElement

Value = int | str | bytes | None
Params = Mapping[str, Value]
Values = dict[str, Value]
Row = tuple[Any, ...]


class Query:
    """One statement with named parameters. Compiled on first use, once per dialect."""

    __slots__ = ("_clause", "_compiled", "_positional")

    def __init__(self, clause: ClauseElement) -> None:
        self._clause = clause
        self._compiled: dict[str, tuple[str, dict[str, Any]]] = {}
        self._positional: dict[str, tuple[str, tuple[tuple[str, Any], ...]]] = {}

    def text(self, dialect: Dialect) -> tuple[str, dict[str, Any]]:
        """The statement's text for `dialect`, and the values of the constants in it."""
        found = self._compiled.get(dialect.name)
        if found is None:
            compiled = self._clause.compile(dialect=dialect)
            constants = {name: value for name, value in compiled.params.items() if value is not None}
            found = self._compiled[dialect.name] = (str(compiled), constants)
        return found

    def numbered(self, dialect: Dialect) -> tuple[str, tuple[tuple[str, Any], ...]]:
        """The text for a `dialect` with numbered parameters; for each its name, and its value if it is a constant."""
        found = self._positional.get(dialect.name)
        if found is None:
            compiled: Any = self._clause.compile(dialect=dialect)
            names: list[str] = compiled.positiontup or []
            found = str(compiled), tuple((name, compiled.params.get(name)) for name in names)
            self._positional[dialect.name] = found
        return found

    def __repr__(self) -> str:
        return f"Query({self._clause})"


def columns_of(table: Table) -> list[str]:
    """The names of the columns that an insert fills: all but a generated `id`."""
    return [column.name for column in table.columns if column.name != "id"]


def values_of(table: Table) -> list[ColumnElement[Any]]:
    """A typed parameter for each of `columns_of`, named like its column."""
    return [bindparam(name, type_=table.c[name].type) for name in columns_of(table)]


def insert_into(table: Table) -> Insert:
    """An insert whose parameters are named like the columns; `id` is generated."""
    return table.insert().values(dict(zip(columns_of(table), values_of(table), strict=True)))
