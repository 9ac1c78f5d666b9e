"""The side table of an import: rows go in by small transactions, and become devices by one."""

from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from typing import TypeVar

from sqlalchemy import Table, and_, bindparam, exists, insert, literal, null, or_, select

from ca_core.model import DeviceState
from ca_core.records.query import Query, Values
from ca_core.records.schema import certificate, device, device_import, device_import_row, device_name, device_secret
from ca_core.records.unit import Guard, Step, Unit, guarded_insert
from ca_core.registration.allow_list import Entry
from ca_core.registration.realm import SAME_ACTIVE
from ca_core.registration.realm_versions import UNCHANGED

_ROWS = 50
"""In one statement."""
_CLEARED = 5000
"""In one transaction."""

T = TypeVar("T")
_d, _i, _r = device.c, device_import.c, device_import_row.c
_OF_BATCH = _r.batch == bindparam("batch")
IMPORT, IMPORT_WHY = guarded_insert(device_import, {"realm_version": SAME_ACTIVE, "hosts": UNCHANGED})
_device_values = {
    "realm_id": bindparam("realm_id", type_=_d.realm_id.type),
    "name": _r.name,
    "profile": _r.profile,
    "state": literal(DeviceState.EXPECTED.value),
    "serial_number": _r.serial_number,
    "manufacturer": _r.manufacturer,
    "names": _r.names,
    "owner": _r.owner,
    "created_at": bindparam("created_at", type_=_d.created_at.type),
    "import_id": bindparam("guard_id", type_=_d.import_id.type),
}
DEVICES = Query(
    device.insert().from_select(
        list(_device_values),
        select(*_device_values.values()).where(_OF_BATCH).order_by(_r.number),
        include_defaults=False,
    )
)
_n, _theirs, _o, _c = device_name.c, device_name.alias("theirs").c, device.alias("other").c, certificate.c
NAMES = Query(
    # Touches a row for each name that another device got while the list was read, so that there must be none.
    device_name.update()
    .where(
        _n.realm_id == bindparam("realm_id"),
        _n.certificate_id.is_(None),
        _n.device_id.in_(select(_d.id).where(_d.import_id == bindparam("guard_id"))),
        exists().where(
            _theirs.realm_id == _n.realm_id,
            _theirs.name == _n.name,
            _theirs.device_id != _n.device_id,
            or_(
                and_(
                    _theirs.certificate_id.is_(None),
                    exists().where(_o.realm_id == _theirs.realm_id, _o.id == _theirs.device_id, _o.state != "retired"),
                ),
                exists().where(
                    _c.realm_id == _theirs.realm_id,
                    _c.id == _theirs.certificate_id,
                    _c.status != "revoked",
                    _c.superseded_at.is_(None),
                    _c.not_after > bindparam("created_at"),
                ),
            ),
        ),
    )
    .values(certificate_id=null())
)
_secret_values = {
    "realm_id": _d.realm_id,
    "device_id": _d.id,
    "selector": _r.selector,
    "hash": _r.hash,
    "created_at": _d.created_at,
    "expires_at": _r.expires_at,
}
SECRETS = Query(
    device_secret.insert().from_select(
        list(_secret_values),
        select(*_secret_values.values())
        .select_from(device_import_row.join(device, (_d.realm_id == bindparam("realm_id")) & (_d.name == _r.name)))
        .where(_OF_BATCH)
        .order_by(_r.number),
        include_defaults=False,
    )
)
HAPPENED = Query(select(_i.id).where(_i.batch == bindparam("batch")))
NOTHING = Query(select(literal(1)))
_CLEAR = Query(device_import_row.delete().where(_OF_BATCH, _r.number.between(bindparam("first"), bindparam("last"))))
_CLEAR_STALE = Query(device_import_row.delete().where(_r.staged_at < bindparam("before")))


def _insert_rows(table: Table, count: int) -> Query:
    """An INSERT of so many rows, whose parameters are named like the columns with the row's number behind."""
    rows = [
        {column.name: bindparam(f"{column.name}_{number}", type_=column.type) for column in table.columns}
        for number in range(count)
    ]
    return Query(insert(table).values(rows).returning(table.c.number))


_STAGE = {count: _insert_rows(device_import_row, count) for count in (1, _ROWS)}


def row_of(entry: Entry, batch: str, at: int) -> Values:
    """An entry's row, without a secret. `batch` names one run of the import, `at` is in milliseconds since 1970."""
    return {
        "batch": batch,
        "number": entry.line,
        "staged_at": at,
        "name": entry.name,
        "profile": entry.profile,
        "serial_number": entry.serial_number,
        "manufacturer": entry.manufacturer,
        "names": entry.names,
        "owner": entry.owner,
        "selector": None,
        "hash": None,
        "expires_at": None,
    }


def staging(rows: Sequence[Values], at: int, batch: str) -> Unit:
    """A unit that inserts the rows, many in a statement."""
    whole = len(rows) // _ROWS * _ROWS
    parts = [*batched(rows[:whole], _ROWS), *batched(rows[whole:], 1)]
    statements = [
        (
            _STAGE[len(part)],
            {f"{name}_{number}": value for number, row in enumerate(part) for name, value in row.items()},
        )
        for part in parts
    ]
    (guard, params), *others = statements
    steps = tuple(Step(query, values, expect=None) for query, values in others)
    return Unit(Guard(guard, params), at, steps, touches=staged(batch))


def clearing(batch: str, last: int, before: int) -> Iterator[Unit]:
    """Units that take a batch's rows out again, up to the number `last`.

    The first takes out also what crashes left `before` that time (milliseconds since 1970).
    """
    stale = Step(_CLEAR_STALE, {"before": before}, expect=None)
    yield Unit(Guard(NOTHING, {}), 0, (stale,), touches=frozenset({"staged"}))
    for first in range(0, last + 1, _CLEARED):
        some: Values = {"batch": batch, "first": first, "last": first + _CLEARED - 1}
        yield Unit(Guard(NOTHING, {}), 0, (Step(_CLEAR, some, expect=None),), touches=staged(batch))


def staged(batch: str) -> frozenset[str]:
    """What units touch that write the rows of a batch."""
    return frozenset({f"staged:{batch}"})


def batched(of: Iterable[T], count: int) -> Iterator[list[T]]:
    """So many at a time."""
    iterator = iter(of)
    while some := list(islice(iterator, count)):
        yield some
