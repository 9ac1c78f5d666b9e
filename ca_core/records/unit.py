"""The unit of work: what one act writes, and the facts that must still hold when it does.

A unit is a guard and the steps that follow it. The guard is one statement whose WHERE repeats every fact that the
decision stood on, and which returns the id of the row it wrote; no row means that a fact no longer holds, and then
nothing of the unit is written. What follows the guard needs no condition of its own, because nobody else writes
between the two: a unit runs alone, or beside others that touch nothing of what it touches.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from sqlalchemy import ColumnElement, Insert, Select, Table, and_, case, select

from ca_core.records.audit import AuditEvent
from ca_core.records.query import Params, Query, columns_of, values_of


@dataclass(frozen=True, slots=True)
class Guard:
    """The first statement of a unit.

    `query` ends in RETURNING the row's id. `diagnose`, asked only when it returned nothing, selects one 0/1 column per
    condition, labelled with the condition's name.
    """

    query: Query
    params: Params
    diagnose: Query | None = None


@dataclass(frozen=True, slots=True)
class Step:
    """A later statement. It may use the parameter `guard_id`; `expect` is how many rows it must touch, None for any."""

    query: Query
    params: Params
    expect: int | None = 1


@dataclass(frozen=True, slots=True)
class Unit:
    """All that one act writes, or nothing of it. `at` is the act's time in milliseconds since 1970.

    `touches` names whatever its conditions read and its steps write that another unit with such names may change, such
    as `device:7`: units with a name in common never run at the same time. None: it runs alone. Whoever forgets to name
    something costs speed with None, and safety with an incomplete set; `records/model` shows what goes wrong then.
    """

    guard: Guard
    at: int
    steps: tuple[Step, ...] = ()
    events: tuple[AuditEvent, ...] = ()
    touches: frozenset[str] | None = None


def guarded_insert(table: Table, conditions: Mapping[str, ColumnElement[bool]]) -> tuple[Query, Query]:
    """An INSERT that writes one row while all `conditions` hold, and the SELECT that names those that don't."""
    # Some facts are checked by the row count of the insert itself, so that no engine can slip a change in between.
    row: Select[Any] = select(*values_of(table)).where(and_(*conditions.values()))
    insert: Insert = table.insert().from_select(columns_of(table), row, include_defaults=False)
    return Query(insert.returning(table.c.id)), diagnosis(conditions)


def diagnosis(conditions: Mapping[str, ColumnElement[bool]]) -> Query:
    """A SELECT of one 0/1 column per condition, labelled with its name."""
    return Query(select(*(case((clause, 1), else_=0).label(name) for name, clause in conditions.items())))
