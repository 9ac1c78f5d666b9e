"""Options that several commands share."""

import datetime as dt
from collections.abc import Callable
from typing import Any, TypeVar

import click

from ca_core.errors import OperatorError
from ca_core.names import DEFAULT_REALM, parse_duration

__all__ = ["LIMIT", "Duration", "any_realm", "paging", "realm"]

F = TypeVar("F", bound=Callable[..., Any])
LIMIT = 50


def realm(command: F) -> F:
    """`--realm`, of a thing that is in one realm."""
    return click.option("--realm", default=DEFAULT_REALM, show_default=True, metavar="R", help="The device line.")(
        command
    )


def any_realm(command: F) -> F:
    """`--realm`, where silence means all of them."""
    return click.option("--realm", metavar="R", help="Only this realm.")(command)


def paging(command: F) -> F:
    """`--limit` and `--after`."""
    command = click.option("--after", metavar="ID", help="Begin after the row with this id.")(command)
    limit = click.IntRange(min=1)
    return click.option("--limit", type=limit, default=LIMIT, show_default=True, help="Show at most so many.")(command)


class Duration(click.ParamType[dt.timedelta]):
    """`30s`, `10m`, `12h`, and 0 for not at all."""

    name = "30s|10m"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> dt.timedelta:
        """As a duration."""
        if isinstance(value, dt.timedelta):
            return value
        if value in ("0", "0s"):
            return dt.timedelta(0)
        try:
            return parse_duration(str(value))
        except OperatorError as exc:
            self.fail(f"{exc.message}; {exc.remedy}", param, ctx)
