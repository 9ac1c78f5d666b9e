"""Reading from PostgreSQL: many questions on one connection, each with its own answer."""

import asyncio
import random
from collections.abc import AsyncIterator

import psycopg
import pytest

from ca_core.records import postgres_reader
from ca_core.records.postgres_link import conninfo_of
from ca_core.records.postgres_reader import Reader
from tests.helpers.postgres import Postgres

_ECHO = "SELECT $1::bigint, $2::text, $3::bytea"


@pytest.fixture
async def reader(database: str) -> AsyncIterator[Reader]:
    made = await Reader.connect(conninfo_of(database, "test"))
    yield made
    made.close()


async def test_each_of_many_questions_gets_its_own_answer(reader: Reader) -> None:
    answers = await asyncio.gather(*(reader.ask(_ECHO, [n, f"t{n}", b"%d" % n]) for n in range(500)))
    assert answers == [[(n, f"t{n}", b"%d" % n)] for n in range(500)]


async def test_whoever_goes_away_takes_nobody_s_answer_along(reader: Reader) -> None:
    chance = random.Random(7)
    tasks = [asyncio.ensure_future(reader.ask(_ECHO, [n, None, None])) for n in range(300)]
    await asyncio.sleep(0)
    gone = set(chance.sample(range(300), 120))
    for number in gone:
        tasks[number].cancel()
    answers = await asyncio.gather(*tasks, return_exceptions=True)
    for number, answer in enumerate(answers):
        if number in gone:
            assert isinstance(answer, asyncio.CancelledError)
        else:
            assert answer == [(number, None, None)]


async def test_a_question_that_fails_leaves_the_others_theirs(reader: Reader) -> None:
    questions = [reader.ask(_ECHO, [1, None, None]), reader.ask("SELECT 1/($1::bigint - 2)", [2])]
    questions += [reader.ask("SELECT nothing FROM nowhere", []), reader.ask(_ECHO, [4, None, None])]
    one, two, three, four = await asyncio.gather(*questions, return_exceptions=True)
    assert (one, four) == ([(1, None, None)], [(4, None, None)])
    assert isinstance(two, psycopg.errors.DivisionByZero)
    assert isinstance(three, psycopg.errors.UndefinedTable)
    assert reader.is_spent, "what it takes for prepared, the server may not"
    assert not reader.is_closed


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        pytest.param("SELECT 1::int2, 2::int4, 3::int8", [(1, 2, 3)], id="numbers"),
        pytest.param("SELECT -1::int2, -2::int4, (-9223372036854775808)::int8", [(-1, -2, -(2**63))], id="negative"),
        pytest.param("SELECT 1.5::float8", [(1.5,)], id="float"),
        pytest.param("SELECT 'ä'::text, 'b'::varchar", [("ä", "b")], id="text"),
        pytest.param(r"SELECT '\x00ff'::bytea, ''::bytea", [(b"\x00\xff", b"")], id="bytes"),
        pytest.param("SELECT true, false, NULL::bool", [(True, False, None)], id="booleans"),
        pytest.param("SELECT 1 WHERE false", [], id="nothing"),
        pytest.param("SELECT n FROM generate_series(1, 3) AS n", [(1,), (2,), (3,)], id="rows"),
    ],
)
async def test_what_the_database_says_is_read(reader: Reader, text: str, expected: list[tuple[object, ...]]) -> None:
    assert await reader.ask(text, []) == expected


async def test_an_answer_of_an_unknown_kind_is_an_error_and_not_a_guess(reader: Reader) -> None:
    with pytest.raises(psycopg.NotSupportedError):
        await reader.ask("SELECT 1.5::numeric", [])


async def test_an_answer_of_megabytes_comes_whole(reader: Reader) -> None:
    ((large,),) = await reader.ask("SELECT convert_to(repeat('x', 20000000), 'UTF8')", [])
    assert len(large) == 20_000_000


async def test_a_question_of_megabytes_is_sent_whole(reader: Reader) -> None:
    text = "y" * 5_000_000
    answers = await asyncio.gather(*(reader.ask("SELECT length($1::text)", [text]) for _ in range(4)))
    assert answers == [[(5_000_000,)]] * 4


async def test_a_connection_that_is_cut_ends_every_question_that_waits(postgres: Postgres, reader: Reader) -> None:
    asked = [asyncio.ensure_future(reader.ask("SELECT pg_sleep(20), 1", [])) for _ in range(3)]
    await asyncio.sleep(0.3)
    assert await asyncio.to_thread(postgres.cut_connections) >= 1
    answers = await asyncio.gather(*asked, return_exceptions=True)
    assert [isinstance(answer, psycopg.OperationalError) for answer in answers] == [True] * 3
    assert reader.is_closed


async def test_one_that_retires_answers_what_it_was_asked(reader: Reader) -> None:
    asked = [asyncio.ensure_future(reader.ask(_ECHO, [n, None, None])) for n in range(5)]
    await asyncio.sleep(0)
    reader.retire()
    assert await asyncio.gather(*asked) == [[(n, None, None)] for n in range(5)]
    assert reader.is_closed


async def test_it_prepares_a_bounded_number_of_statements(reader: Reader, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(postgres_reader, "_MOST_PREPARED", 3)
    for number in range(3):
        assert not reader.is_spent
        await reader.ask(f"SELECT {number}", [])
    assert reader.is_spent


async def test_a_number_that_no_column_holds_is_refused_before_it_is_sent(reader: Reader) -> None:
    with pytest.raises(psycopg.DataError):
        await reader.ask("SELECT $1::bigint", [2**63])
    assert not reader.is_spent
    assert await reader.ask("SELECT $1::bigint", [2**63 - 1]) == [(2**63 - 1,)]
