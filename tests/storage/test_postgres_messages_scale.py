"""Much data: plans, bounds, and the views for people."""

import asyncio
import time

import asyncpg

from actorhub.conformance.message_care import in_every_state
from actorhub.conformance.messages import (
    FAR,
    changed,
    failure,
    keyed,
    message,
    opened,
    pending,
    results,
    run,
    stored,
)
from actorhub.conformance.storage import PATIENCE_SECONDS, SHARDS, commit, runner
from actorhub.core.address import ShardId
from actorhub.storage.message_ports import (
    MessageFilter,
    MessageStore,
    NewMessage,
    PendingMessage,
    Readiness,
    RunStart,
    Verdict,
)
from tests.storage.conftest import PostgresWorld

_TABLES = ("message", "reply", "dead_letter", "message_key", "entity_state")
_FILL = """
insert into message (message_id, attempts, shard_number, shard_group, entity_type, entity_id, handler, body, deliver_at)
select
    n, 0, n % 4, 'default', 'orders', 'e' || n % 1000, 'place', 'x',
    case when n % 2 = 0 then clock_timestamp() + make_interval(hours => 1, secs => n) end
from generate_series(1, 100000) as n;
insert into message_key select decode(md5(n::text), 'hex'), n, 'x' from generate_series(1, 100000) as n;
insert into reply (
    message_id, epoch, created_at, finished_at, expires_at, attempts, shard_number, outcome, shard_group, entity_type,
    entity_id, handler, body
)
select
    1000000 + n, 1, now(), now(), now() + interval '1 day', 1, n % 4, 0, 'default', 'orders', 'e' || n % 1000, 'place',
    'x'
from generate_series(1, 100000) as n;
insert into entity_state (version, epoch, updated_at, shard_number, shard_group, entity_type, entity_id, data)
select 1, 1, now(), 0, 'default', 'orders', 'e' || n, 'x' from generate_series(1, 50000) as n;
"""


def _start(made: NewMessage) -> RunStart:
    return RunStart(made.message_id, made.shard, 1, 1)


async def _cycle(store: MessageStore, first: int) -> None:
    """Store, start, fail or commit two hundred keyed messages with state and outbox."""
    made = [keyed(message(first + number, f"s{first + number}"), "k") for number in range(200)]
    assert {answer.verdict for answer in await stored(store, made)} == {Verdict.NEW}
    starts = [store.start_run(_start(each), "a") for each in made]
    assert set(await results(starts)) == {Readiness.RUN}
    told = [keyed(message(first + 500_000 + number, "told"), str(first + number)) for number in range(200)]
    runs = [changed(run(each, 1), outbox=(outbox,)) for each, outbox in zip(made[:100], told[:100], strict=True)]
    await results([store.commit_run(each, "a") for each in runs])
    await results([store.fail_run(failure(each, pause=FAR), "a") for each in made[100:150]])
    await results([store.fail_run(failure(each), "a") for each in made[150:]])
    assert {answer.verdict for answer in await stored(store, [changed(each, repeated=True) for each in made])} <= {
        Verdict.PENDING,
        Verdict.SETTLED,
    }


async def _sequential_scans(sql: "asyncpg.Connection[asyncpg.Record]") -> dict[str, int]:
    rows = await sql.fetch("select relname, seq_scan from pg_stat_user_tables where relname = any($1)", list(_TABLES))
    return {row["relname"]: row["seq_scan"] for row in rows if row["seq_scan"]}


async def test_statements_prepared_on_empty_tables_use_indexes_later(postgres_world: PostgresWorld) -> None:
    """With 100,000 rows that came after the first statements, none of them reads a whole table."""
    storage, sql = await postgres_world.storage(), await postgres_world.sql()
    await storage.take(SHARDS, runner("a"))
    messages = storage.messages
    await sql.execute("vacuum analyze")
    await _cycle(messages, 10_000_000)
    await results([storage.commit_state(commit(f"x{number}", 1), "a") for number in range(200)])
    await messages.load_backlog(dict.fromkeys(SHARDS, ("", "")), 8, 8)
    await sql.execute(_FILL)
    await sql.execute("select pg_stat_reset()")
    started = time.monotonic()
    for number in range(11, 14):
        await _cycle(messages, number * 1_000_000)
        await results([storage.commit_state(commit(f"x{each}", number - 9), "a") for each in range(200)])
        await results([storage.commit_state(commit(f"y{number}.{each}", 1), "a") for each in range(200)])
    found, done = await messages.load_backlog(dict.fromkeys(SHARDS, ("", "")), 8, 8)
    assert len(found) >= 2 * 8 * 8
    assert SHARDS[1] not in done
    entities = [(SHARDS[number % 4], "orders", f"e{number}") for number in range(1, 200, 2)]
    assert len(await messages.load_entities(entities, 5)) == 500
    scheduled, now = await messages.load_scheduled(SHARDS, time.time() + 2 * FAR, 1000)
    assert len(scheduled) == 1000
    assert min(each.deliver_at for each in scheduled) > now
    await messages.promote_due([each.message_id for each in scheduled])
    await messages.find(5)
    await messages.cancel(1, SHARDS[1], 1, incarnation="a", retention=FAR)
    await messages.retry([2, 3])
    assert await messages.remove_expired(1000) == 0
    assert time.monotonic() - started < PATIENCE_SECONDS
    await storage.aclose()
    async with asyncio.timeout(PATIENCE_SECONDS):
        while not await sql.fetchval("select sum(idx_scan) from pg_stat_user_tables where relname = 'message'"):
            await asyncio.sleep(0.05)
    assert await _sequential_scans(sql) == {}


async def test_a_backlog_is_read_entity_by_entity(postgres_world: PostgresWorld) -> None:
    """From page to page every message of 300 entities on 4 shards is found once, in order, a few at a time."""
    messages = await opened(postgres_world)
    sql = await postgres_world.sql()
    await sql.execute(
        "insert into message (message_id, attempts, shard_number, shard_group, entity_type, entity_id, handler, body) "
        "select n, 0, n % 4, 'default', 'orders', chr(20000 + n % 300), 'h', 'x' from generate_series(1, 3000) as n"
    )
    places = dict.fromkeys(SHARDS, ("", ""))
    seen: dict[tuple[ShardId, str], list[int]] = {}
    while places:
        page, done = await messages.load_backlog(places, 7, 50)
        assert len(page) <= 7 * 50 * len(places)
        for each in page:
            seen.setdefault((each.shard, each.entity_id), []).append(each.message_id)
            places[each.shard] = max(places[each.shard], (each.entity_type, each.entity_id))
        places = {shard: place for shard, place in places.items() if shard not in done}
    assert sorted(number for ids in seen.values() for number in ids) == list(range(1, 3001))
    assert all(ids == sorted(ids) for ids in seen.values())


async def test_a_backlog_of_large_messages_comes_in_several_answers(postgres_world: PostgresWorld) -> None:
    """Entities whose messages are beyond the limit in bytes are left for the next time, not forgotten."""
    messages = await opened(postgres_world)
    made = [changed(message(number, f"e{number}"), body=bytes(3 << 20)) for number in range(1, 8)]
    await stored(messages, made)
    seen: list[PendingMessage] = []
    places, pages = {SHARDS[0]: ("", "")}, 0
    while places:
        page, done = await messages.load_backlog(places, 100, 100)
        seen += page
        pages += 1
        places = {} if SHARDS[0] in done else {SHARDS[0]: (page[-1].entity_type, page[-1].entity_id)}
    assert seen == [pending(each) for each in made]
    assert pages == 3


async def test_what_was_settled_before_costs_nothing(postgres_world: PostgresWorld) -> None:
    """Dead rows stay in every index until the next vacuum: messages are looked up by their ids alone, one by one."""
    sql = await (await _lived(postgres_world, 1)).sql()
    await sql.execute("vacuum analyze")
    await _lived(postgres_world, 10)
    read = "select indexrelname, idx_tup_read from pg_stat_user_indexes where relname in ('message', 'shard')"
    async with asyncio.timeout(PATIENCE_SECONDS):
        while (found := {row["indexrelname"]: row["idx_tup_read"] for row in await sql.fetch(read)})[
            "message_pkey"
        ] < 2000:
            await asyncio.sleep(0.05)
    assert (found["message_in_line"], found["message_by_due_time"]) == (0, 0)
    assert found["message_pkey"] <= 11 * 200 * 5
    assert found["shard_pkey"] <= 11 * 200 * 5


async def _lived(postgres_world: PostgresWorld, times: int) -> PostgresWorld:
    """Have a new storage store and settle two hundred messages so many times, and forbid vacuuming."""
    storage, sql = await postgres_world.storage(), await postgres_world.sql()
    messages = storage.messages
    await storage.take(SHARDS, runner("a"))
    await sql.execute("alter table message set (autovacuum_enabled = off)")
    epoch = await sql.fetchval("select max(epoch) from shard")
    for _ in range(times):
        first = 1 + await sql.fetchval("select coalesce(max(message_id), 0) from reply")
        made = [message(number, f"e{number}", epoch=epoch) for number in range(first, first + 200)]
        await stored(messages, made)
        starts = [messages.start_run(RunStart(each.message_id, each.shard, epoch, 1), "a") for each in made]
        assert set(await results(starts)) == {Readiness.RUN}
        await results([messages.fail_run(failure(each), "a") for each in made[:10]])
        await results([messages.commit_run(run(each), "a") for each in made[10:]])
    await storage.aclose()
    return postgres_world


async def test_attempts_are_counted_without_touching_an_index(postgres_world: PostgresWorld) -> None:
    """The update stays on its page, so that a message costs no more for being retried."""
    storage, sql = await postgres_world.storage(), await postgres_world.sql()
    await storage.take(SHARDS, runner("a"))
    made = [message(number, f"e{number}") for number in range(1, 101)]
    await stored(storage.messages, made)
    for first in range(0, 100, 10):
        await results([storage.messages.start_run(_start(each), "a") for each in made[first : first + 10]])
    await storage.aclose()
    counts = "select n_tup_upd, n_tup_hot_upd from pg_stat_user_tables where relname = 'message'"
    async with asyncio.timeout(PATIENCE_SECONDS):
        while not await sql.fetchval(counts):
            await asyncio.sleep(0.05)
    updated, in_place = await sql.fetchrow(counts) or (0, 0)
    assert updated == 100
    assert in_place >= 90


async def test_forgetting_frees_keys_in_small_steps(postgres_world: PostgresWorld) -> None:
    """Two processes that clean up at once share the work, and neither waits for rows that the other removes."""
    messages, sql = await opened(postgres_world), await postgres_world.sql()
    peer = (await postgres_world.storage()).messages
    made = [keyed(message(number, f"e{number}"), "k") for number in range(1, 301)]
    await stored(messages, made)
    await results([messages.commit_run(changed(run(each), retention=0.0), "a") for each in made])
    removed = 0
    async with asyncio.timeout(PATIENCE_SECONDS):
        while removed < 300:
            async with asyncio.TaskGroup() as tasks:
                steps = [tasks.create_task(each.remove_expired(40)) for each in (messages, peer)]
            assert all(step.result() <= 40 for step in steps)
            removed += sum(step.result() for step in steps)
    assert await sql.fetchval("select (select count(*) from message_key) + (select count(*) from reply)") == 0


async def test_a_key_whose_message_somebody_deleted_is_free(postgres_world: PostgresWorld) -> None:
    """A row that was removed by hand does not stop the sender forever."""
    messages, sql = await opened(postgres_world), await postgres_world.sql()
    await stored(messages, [keyed(message(1), "k"), keyed(message(2), "j")])
    await sql.execute("delete from message")
    answers = await stored(messages, [keyed(message(3), "k", b"other"), keyed(message(2), "j"), message(4)])
    assert [(answer.verdict, answer.message_id) for answer in answers] == [
        (Verdict.NEW, 3),
        (Verdict.NEW, 2),
        (Verdict.NEW, 4),
    ]


async def test_people_see_messages_in_views(postgres_world: PostgresWorld) -> None:
    """States are words, times are times, shards are as the commands write them."""
    messages, sql = await opened(postgres_world), await postgres_world.sql()
    await in_every_state(messages)
    rows = await sql.fetch("select * from messages order by message_id")
    assert [row["state"] for row in rows] == ["pending", "scheduled", "done", "failed", "cancelled", "dead"]
    assert list(rows[0].keys()) == [
        "message_id", "state", "shard", "entity_type", "entity_id", "handler", "key", "attempts", "created_at",
        "deliver_at", "finished_at", "expires_at",
    ]  # fmt: skip
    assert {row["shard"] for row in rows} == {"default:0"}
    assert [row["key"] for row in rows] == [row["state"] for row in rows]
    assert [row.state.value for row in await messages.messages(MessageFilter())] == [row["state"] for row in rows]
    [dead] = await sql.fetch("select * from dead_letters")
    assert (dead["message_id"], dead["error_type"], dead["error_text"]) == (6, "ValueError", "failure 1")
    assert (dead["traceback"], dead["payload_bytes"]) == ("Traceback …", len(message(6).body))
    [due] = await sql.fetch("select * from schedules")
    assert due["message_id"] == 2
    assert 0 < due["due_in"].total_seconds() <= FAR


async def test_error_texts_are_cut_to_what_can_be_stored(postgres_world: PostgresWorld) -> None:
    """The last twenty failures are kept, each with the end of its traceback, whatever characters are in it."""
    messages = await opened(postgres_world)
    await stored(messages, [message(1)])
    odd = changed(
        failure(message(1), pause=0.0), error_text="nul\0 \ud800" + "x" * 5000, traceback="y" * 9000 + "é end"
    )
    for attempt in range(1, 24):
        await messages.start_run(RunStart(1, SHARDS[0], 1, attempt), "a")
        await messages.fail_run(changed(odd, attempts=attempt), "a")
    row = await messages.find(1)
    assert row is not None
    assert [each.attempt for each in row.history] == list(range(4, 24))
    assert row.history[0].error_text.startswith("nul\ufffd ?xxx")
    assert row.history[0].traceback.endswith("é end")
    assert len(row.history[0].error_text) <= 2048
    assert len(row.history[0].traceback.encode()) <= 8192
