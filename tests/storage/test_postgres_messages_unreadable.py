"""Columns of messages with anything in them that Postgres takes: nobody's list, scan or commit fails for it."""

from collections.abc import Sequence
from typing import TypeAlias

import asyncpg
import pytest

from actorhub.conformance.message_care import cancelled, listed
from actorhub.conformance.messages import failure, message, opened, stored
from actorhub.conformance.storage import SHARDS
from actorhub.core.codec import decode_error
from actorhub.core.errors import HandlerFailed
from actorhub.storage.message_ports import (
    CancelResult,
    MessageFilter,
    MessageState,
    MessageStore,
    PendingMessage,
    Readiness,
    RunStart,
)
from tests.storage.conftest import PostgresWorld

Place: TypeAlias = "tuple[MessageStore, asyncpg.Connection[asyncpg.Record]]"

ODD: dict[str, Sequence[object]] = {
    "headers": ["", "not json", "[1]", '{"a": null}', '{"a": {"b": 1}}', "null", "[" * 5000, '{"a": "\\ud800"}'],
    "history": ["{}", '"x"', "5", "[]", "[5]", '[{"attempt": "one"}]', '[{"attempt": 1.5}]', '[{"attempt": 1e400}]',
                '[{"attempt": -1, "at": 0, "error_type": "", "error_text": ""}]', '{"attempt": 1}', "null",
                '[{"attempt": 99999999999, "at": 0, "error_type": "", "error_text": ""}]'],
    "attempts": [-(1 << 31), -1, (1 << 31) - 1],
    "created_at": ["infinity", "-infinity", "0001-01-01 BC", "294276-01-01"],
    "key": ["", "\t", "cron:\t\t", "x" * 5000, "\U0010ffff"],
    "key_hash": [b"", b"x" * 500],
    "body": [b"", b"\xc1", b"\x93"],
}  # fmt: skip
ALL = list(range(1, 20))
DUES = ["-infinity", "0001-01-01 BC", "1970-01-01"]


@pytest.fixture
async def place(postgres_world: PostgresWorld) -> Place:
    """A store with some messages of one entity, and the way to change them by hand."""
    messages = await opened(postgres_world)
    await stored(messages, map(message, ALL))
    return messages, await postgres_world.sql()


async def _loaded(messages: MessageStore) -> dict[int, PendingMessage]:
    walk, _ = await messages.load_backlog({SHARDS[0]: ("", "")}, 10, 100)
    assert await messages.load_entities([(SHARDS[0], "orders", "ada")], 100) == walk
    return {row.message_id: row for row in walk}


@pytest.mark.parametrize("column", ODD)
async def test_rows_with_anything_in_a_column_go_through_their_lives(place: Place, column: str) -> None:
    """They are loaded beside their neighbours, listed, found, started, failed, buried, retried and cancelled."""
    messages, sql = place
    kind = {"history": "::text::jsonb", "created_at": "::text::timestamptz"}.get(column, "")
    odd = dict(enumerate(ODD[column], 2))
    for number, value in odd.items():
        await sql.execute(f"update message set {column} = $1{kind} where message_id = $2", value, number)
    loaded = await _loaded(messages)
    assert list(loaded) == ALL
    assert {number for number, row in loaded.items() if row.unreadable} == (set(odd) if column == "headers" else set())
    assert await listed(messages, MessageFilter()) == ALL
    for number in odd:
        assert await messages.find(number) is not None
        assert await messages.start_run(RunStart(number, SHARDS[0], 1, 5), "a") is Readiness.RUN
        assert await messages.fail_run(failure(message(number), 5, pause=0.001), "a") > 0
        assert await messages.fail_run(failure(message(number), 6), "a") == 0
        row = await messages.find(number)
        assert row is not None
        assert (row.state, row.history[-1].attempt) == (MessageState.DEAD, 6)
        assert [each.message_id for each in await messages.retry([number])] == [number]
    assert list(await _loaded(messages)) == ALL
    assert {await cancelled(messages, message(number)) for number in odd} == {CancelResult.CANCELLED}


@pytest.mark.parametrize("due", DUES)
async def test_a_time_that_python_does_not_know_is_due(place: Place, due: str) -> None:
    """It is found by the scan of the schedule, and run."""
    messages, sql = place
    await sql.execute("update message set deliver_at = $1::text::timestamptz where message_id = 2", due)
    [row], _ = await messages.load_scheduled([SHARDS[0]], 1.0, 10)
    assert (row.message_id, row.deliver_at <= 0) == (2, True)
    assert await messages.start_run(RunStart(2, SHARDS[0], 1, 1), "a") is Readiness.RUN
    await messages.promote_due([2])
    assert list(await _loaded(messages)) == ALL


async def test_infinite_and_foreign_rows_are_listed(place: Place) -> None:
    """A message that is never due, or in a shard that nobody owns, does not hide the others."""
    messages, sql = place
    await sql.execute("update message set deliver_at = 'infinity' where message_id = 1")
    await sql.execute("update message set shard_group = 'Odd: group', shard_number = -7 where message_id = 2")
    assert await listed(messages, MessageFilter()) == ALL
    row = await messages.find(2)
    assert row is not None
    assert (row.shard.group, row.shard.number) == ("Odd: group", -7)


async def test_a_reply_that_cannot_be_read_is_an_error_that_says_so(place: Place) -> None:
    """Whatever its bytes are."""
    messages, sql = place
    await messages.fail_run(failure(message(2)), "a")
    for error in (b"", b"\xc1", b"\x95\xa1x\xc0\xc3\x80\xc3", b"\x91" * 5000):
        await sql.execute("update dead_letter set error = $1 where message_id = 2", error)
        row = await messages.find(2)
        assert row is not None
        assert row.reply is not None
        assert isinstance(decode_error(row.reply.body), HandlerFailed)
