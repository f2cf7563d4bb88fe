"""Tables of columns: what batches send is what the functions in the schema expect."""

from collections.abc import Sequence
from typing import Any

import pytest

from actorhub.conformance.message_suite import FAR, changed, failure, keyed, message, run
from actorhub.conformance.storage_suite import SHARDS, commit
from actorhub.core.address import ShardId
from actorhub.storage.message_ports import Outcome, RunStart, StoredReply
from actorhub.storage.postgres.columns import Columns, held_shards, lines, numbers, sparse
from actorhub.storage.postgres.message_columns import FAILURES, MESSAGES, RUNS, STARTS, run_arguments
from actorhub.storage.postgres.state import STATES
from tests.storage.conftest import PostgresWorld

TABLES: list[Columns[Any]] = [FAILURES, MESSAGES, RUNS, STARTS, STATES]
HELD = [("shard_group", "text"), ("numbers", "text"), ("epochs", "text")]
_TYPES = """
select c.relname, a.attname, format_type(a.atttypid, a.atttypmod) as type
from pg_class as c
join pg_attribute as a on a.attrelid = c.oid
where c.relnamespace = current_schema()::regnamespace and c.relkind = 'c'
order by c.relname, a.attnum
"""


def _start(number: int) -> RunStart:
    return RunStart(number, SHARDS[0], 3, number + 1)


async def test_each_table_of_columns_is_a_type_of_the_schema(postgres_world: PostgresWorld) -> None:
    """Either side has the same types, each with the same columns, of the same Postgres types, in the same order."""
    await postgres_world.storage()
    found: dict[str, list[tuple[str, str]]] = {}
    for name, column, kind in await (await postgres_world.sql()).fetch(_TYPES):
        found.setdefault(name, []).append((column, kind))
    stated = {table.name: [(column.name, column.type) for column in table.columns] for table in TABLES}
    assert found == {**stated, "held_shards": HELD}


@pytest.mark.parametrize(
    ("table", "records"),
    [
        (FAILURES, [failure(message(1)), failure(message(2), pause=FAR)]),
        (
            MESSAGES,
            [
                changed(keyed(message(1), "k"), deliver_at=FAR),
                changed(message(2), headers={"a": "b"}, delay=FAR, repeated=True),
            ],
        ),
        (RUNS, [changed(run(message(1), 1), next_start=_start(9)), changed(run(message(0)), reply=None)]),
        (STARTS, [_start(1), _start(2)]),
        (STATES, [commit("ada", 1), commit("bob", 2)]),
    ],
    ids=lambda value: value.name if isinstance(value, Columns) else "",
)
async def test_what_is_encoded_has_the_types_that_are_stated(
    postgres_world: PostgresWorld, table: Columns[Any], records: Sequence[Any]
) -> None:
    """The database takes the value, and each column that is sent has one line or one element for each record."""
    await postgres_world.storage()
    encoded = table.encode(records)
    row = await (await postgres_world.sql()).fetchrow(f"select ($1::{table.name}).*", encoded)
    assert row is not None
    for column, value in zip(table.columns, encoded, strict=True):
        assert row[column.name] == value, column.name
        if value is not None:
            found = row[column.name]
            assert len(found.split("\n") if column.type == "text" else found) == len(records), column.name


def test_what_no_record_has_is_not_sent() -> None:
    """Columns of keys, due times, states and next runs are absent where nothing would be in them."""
    plain = dict(zip([column.name for column in MESSAGES.columns], MESSAGES.encode([message(1)]), strict=True))
    assert {name for name, value in plain.items() if value is None} == {
        "headers", "keys", "key_hashes", "payload_hashes", "dues", "delays", "repeats",
    }  # fmt: skip
    settled = dict(zip([column.name for column in RUNS.columns], RUNS.encode([run(message(1))]), strict=True))
    assert {name for name, value in settled.items() if value is None} == {
        "next_message_ids", "next_attempts", "types", "ids", "versions", "bodies",
    }  # fmt: skip


def test_numbers_are_written_as_they_are() -> None:
    """Whether all are the same or not, whole or not."""
    assert numbers([7]) == "7"
    assert numbers([7, 7, 7]) == "7\n7\n7"
    assert numbers([1 << 62, -1]) == f"{1 << 62}\n-1"
    assert numbers([86_400.0, 0.5]) == "86400.0\n0.5"
    assert numbers([0.1] * 2) == "0.1\n0.1"


def test_a_name_with_a_line_break_is_refused() -> None:
    """It would be taken for two names."""
    assert lines(["a", "b"]) == "a\nb"
    for names in (["a\nb"], ["a", "b\n"], ["\n", ""]):
        with pytest.raises(UnicodeError):
            lines(names)


def test_a_column_without_values_is_none() -> None:
    """One value is enough to send it."""
    assert sparse([None, None]) is None
    assert sparse([None, 0]) == [None, 0]


def test_shards_are_named_once_if_they_are_of_one_group_and_epoch() -> None:
    """In order of their numbers; none are named where one epoch or one group does not say it all."""
    made = [RunStart(n, ShardId("default", shard), epoch, 1) for n, shard, epoch in ((1, 9, 3), (2, 4, 2), (3, 9, 3))]
    assert held_shards(made) == ("default", "4\n9", "2\n3")
    assert held_shards(made[:1]) == ("default", "9", "3")
    assert held_shards([*made, RunStart(4, ShardId("default", 4), 1, 1)]) is None
    assert held_shards([*made, RunStart(4, ShardId("other", 4), 2, 1)]) is None


def test_each_told_message_names_the_run_that_told_it() -> None:
    """By its place in the batch, from 1; and a run without a reply makes the owner be checked row by row."""
    runs = [
        changed(run(message(number)), outbox=tuple(message(10 * number + each) for each in range(number)))
        for number in range(3)
    ]
    runs[0] = changed(runs[0], reply=None)
    held, _, tellers, told = run_arguments(runs)
    assert held is None
    assert tellers == [2, 3, 3]
    assert isinstance(told, tuple)
    assert told[0] == "10\n20\n21"


def test_the_outcome_of_a_run_is_sent_as_its_number() -> None:
    """The storage format is the number, of one outcome or of several."""
    runs = [
        changed(run(message(number)), reply=StoredReply(outcome, b""))
        for number, outcome in enumerate((Outcome.VALUE, Outcome.ERROR), 1)
    ]
    place = [column.name for column in RUNS.columns].index("outcomes")
    assert RUNS.encode(runs)[place] == "0\n1"
    assert RUNS.encode([runs[1], runs[1]])[place] == "1\n1"
