"""Two sessions of Postgres at the same message, key or shard."""

import asyncio
from collections import Counter

import pytest

from actorhub.conformance.messages import (
    FAR,
    backlog,
    changed,
    failure,
    failures,
    keyed,
    message,
    results,
    run,
    stored,
)
from actorhub.conformance.storage import PATIENCE_SECONDS, SHARDS, runner, take_over
from actorhub.core.address import ShardId
from actorhub.storage.message_ports import (
    CancelResult,
    MessageState,
    NotPending,
    Outcome,
    RunStart,
    StoredReply,
    Verdict,
)
from actorhub.storage.ports import Fenced, StoredState
from tests.storage.conftest import PostgresWorld
from tests.storage.waits import held, until_blocked

VOLATILE = changed(run(message(0)), message_id=0, reply=None)
FRESH = ShardId("default", 250)


@pytest.mark.parametrize("shard", [SHARDS[0], FRESH])
async def test_a_deposit_before_a_take_is_found_by_the_new_owner(postgres_world: PostgresWorld, shard: ShardId) -> None:
    """Who takes the shard while a deposit is under way waits for it."""
    storage, peer = await postgres_world.storage(), await postgres_world.storage()
    await storage.take(SHARDS, runner("a"))
    async with asyncio.timeout(PATIENCE_SECONDS), asyncio.TaskGroup() as tasks:
        async with held(postgres_world, "lock table message in access exclusive mode") as observer:
            deposit = storage.messages.deposit(message(1, shard=shard))
            await until_blocked(observer)
            take = tasks.create_task(take_over(peer, [shard], runner("b")))
            await until_blocked(observer, 2)
            assert not take.done()
        await take
        assert await backlog(peer.messages, [shard]) == [1]
        assert (await deposit).verdict is Verdict.NEW


async def test_a_deposit_during_a_take_waits_for_it(postgres_world: PostgresWorld) -> None:
    """It is stored after the new epoch, never while owners change."""
    storage, peer = await postgres_world.storage(), await postgres_world.storage()
    await storage.take(SHARDS, runner("a"))
    await storage.messages.deposit(message(1))
    async with asyncio.timeout(PATIENCE_SECONDS), asyncio.TaskGroup() as tasks:
        fence = "select pg_advisory_xact_lock_shared(owner_fence) from shard where number = 0"
        async with held(postgres_world, fence) as observer:
            take = tasks.create_task(take_over(peer, SHARDS[:1], runner("b")))
            await until_blocked(observer)
            deposit = storage.messages.deposit(message(2))
            await until_blocked(observer, 2)
            assert not deposit.done()
        await take
        await deposit
    assert await backlog(peer.messages) == [1, 2]


async def test_takes_and_deposits_of_many_shards_do_not_deadlock(postgres_world: PostgresWorld) -> None:
    """In whatever order they name the shards, all end, and nothing is lost."""
    storages = [await postgres_world.storage() for _ in range(2)]
    shards = [ShardId("default", number) for number in range(20)]

    async def take_often(number: int) -> None:
        for _ in range(15):
            await take_over(storages[number], shards[:: 1 - 2 * number], runner("ab"[number]))

    async def deposit_often(number: int) -> None:
        for first in range(0, 300, 20):
            made = [message(1 + 1000 * number + first + each, shard=shards[-each]) for each in range(20)]
            await results([storages[number].messages.deposit(each) for each in made])

    async with asyncio.timeout(3 * PATIENCE_SECONDS), asyncio.TaskGroup() as tasks:
        for number in range(2):
            tasks.create_task(take_often(number))
            tasks.create_task(deposit_often(number))
    assert len(await backlog(storages[0].messages, shards)) == 600
    assert [storage.statistics().reconnects for storage in storages] == [0, 0]


async def test_taking_waits_for_a_run_that_is_being_committed(postgres_world: PostgresWorld) -> None:
    """A run that was checked before the take is written before it returns; later ones are refused, whatever they do."""
    storage, peer = await postgres_world.storage(), await postgres_world.storage()
    await storage.take(SHARDS, runner("a"))
    messages = storage.messages
    made = [message(number, f"e{number}") for number in range(1, 6)]
    await stored(messages, made)
    async with asyncio.timeout(PATIENCE_SECONDS), asyncio.TaskGroup() as tasks:
        async with held(postgres_world, "select from message where message_id = 1 for update") as observer:
            early = messages.commit_run(run(made[0], 1), "a")
            await until_blocked(observer)
            take = tasks.create_task(take_over(peer, SHARDS[:1], runner("b")))
            await until_blocked(observer, 2)
            assert not take.done()
            late = messages.commit_run(run(made[1], 1), "a")
            late_failures = [
                messages.fail_run(failure(made[2]), "a"),
                messages.fail_run(failure(made[3], pause=FAR), "a"),
            ]
            late_store = messages.store(message(9), "a")
            await until_blocked(observer, 4)
        await early
    assert await failures([late]) + await failures(late_failures) == [Fenced] * 3
    assert (await late_store).verdict is Verdict.FENCED
    assert await messages.cancel(5, SHARDS[0], 1, incarnation="a", retention=FAR) is CancelResult.FENCED
    assert await backlog(peer.messages) == [2, 3, 4, 5]
    assert await peer.load_state("orders", "e1") == StoredState(1, b"v1")
    assert await peer.load_state("orders", "e2") is None


async def test_without_the_fence_a_late_run_would_be_accepted(postgres_world: PostgresWorld) -> None:
    """The same race with the fence off breaks the promise, so the test above can fail."""
    storage, peer = await postgres_world.storage(fence=False), await postgres_world.storage(fence=False)
    await storage.take(SHARDS, runner("a"))
    await stored(storage.messages, [message(1)])
    async with held(postgres_world, "select from message where message_id = 1 for update") as observer:
        late = storage.messages.commit_run(run(message(1), 1), "a")
        await until_blocked(observer)
        assert await take_over(peer, SHARDS[:1], runner("b")) == {SHARDS[0]: 2}
        assert await peer.load_state("orders", "ada") is None
    await late
    assert await peer.load_state("orders", "ada") == StoredState(1, b"v1")


async def test_a_connection_that_is_ended_during_a_commit_is_replaced(postgres_world: PostgresWorld) -> None:
    """What the server undid is done again."""
    storage, sql = await postgres_world.storage(), await postgres_world.sql()
    await storage.take(SHARDS, runner("a"))
    await stored(storage.messages, [message(1)])
    async with held(postgres_world, "select from message where message_id = 1 for update") as observer:
        commit = storage.messages.commit_run(run(message(1), 1), "a")
        await until_blocked(observer)
        ended = "select pg_terminate_backend(pid) from pg_stat_activity where application_name = 'actorhub work'"
        await sql.execute(f"{ended} and datname = current_database()")
    await results([commit])
    assert storage.statistics().reconnects >= 1
    row = await storage.messages.find(1)
    assert row is not None
    assert row.state is MessageState.DONE


async def test_every_cycle_counts_once_while_connections_are_ended(postgres_world: PostgresWorld) -> None:
    """Store, start, commit with state and outbox: none is lost or doubled, although connections die at any moment."""
    storage, sql = await postgres_world.storage(), await postgres_world.sql()
    await storage.take(SHARDS, runner("a"))
    messages = storage.messages

    async def cycles(worker: int) -> None:
        for version in range(1, 81):
            made = message(1000 * worker + version, f"e{worker}")
            told = keyed(message(100_000 + 1000 * worker + version, "told"), f"{worker}/{version}")
            answer = await messages.store(made, "a")
            assert answer.verdict in {Verdict.NEW, Verdict.PENDING}
            await messages.start_run(RunStart(made.message_id, made.shard, 1, 1), "a")
            await messages.commit_run(changed(run(made, version), outbox=(told,)), "a")

    async with asyncio.timeout(6 * PATIENCE_SECONDS), asyncio.TaskGroup() as tasks:
        workers = [tasks.create_task(cycles(worker)) for worker in range(1, 7)]
        while storage.statistics().reconnects < 8 and not all(worker.done() for worker in workers):
            await sql.execute(
                "select pg_terminate_backend(pid) from pg_stat_activity where datname = current_database() "
                "and application_name = 'actorhub work'"
            )
            await asyncio.sleep(0.02)
    assert storage.statistics().reconnects >= 1
    assert await sql.fetchval("select count(*) from reply where outcome = 0 and attempts = 1") == 480
    assert await sql.fetchval("select count(*) from message where entity_id = 'told'") == 480
    assert await sql.fetchval("select count(*) from message where entity_id <> 'told'") == 0
    assert await sql.fetchval("select array_agg(version) from entity_state") == [80] * 6


async def test_a_refused_run_of_a_large_group_fails_alone(postgres_world: PostgresWorld) -> None:
    """Of 300 runs, those with another version, epoch, key and message are refused, and one that cannot be written."""
    storage = await postgres_world.storage()
    await storage.take(SHARDS, runner("a"))
    messages = storage.messages
    made = [message(number, f"e{number}") for number in range(1, 301)]
    await stored(messages, [*made[:100], *made[101:], keyed(message(999, "told"), "k")])
    runs = [
        changed(run(each, 1), outbox=(message(each.message_id + 1000, "told"),) if each.message_id % 3 == 0 else ())
        for each in made
    ]
    runs[10] = changed(runs[10], version=5)
    runs[20] = changed(runs[20], epoch=7)
    runs[30] = changed(runs[30], outbox=(keyed(message(998, "told"), "k", b"other"), message(997, "told")))
    runs[40] = changed(runs[40], outbox=(message(996, "nul\0"),))
    await messages.commit_run(changed(VOLATILE, outbox=(message(995, "told"),)), "a")
    raised = await failures([messages.commit_run(each, "a") for each in runs])
    named = {number: error.__name__ for number, error in enumerate(raised) if error is not None}
    assert named == {
        10: "VersionConflict",
        20: "Fenced",
        30: "DuplicateKey",
        40: "PersistenceError",
        100: "NotPending",
    }
    left = await backlog(messages)
    written = [each for number, each in enumerate(runs) if number not in named]
    expected = [11, 21, 31, 41, 995, 999, *(each.message_id for told in written for each in told.outbox)]
    assert left == sorted(expected)


async def test_a_cancellation_and_a_commit_agree(postgres_world: PostgresWorld) -> None:
    """Of many pairs at once, in each exactly one wins, and the reply is the winner's."""
    storage, peer = await postgres_world.storage(), await postgres_world.storage()
    await storage.take(SHARDS, runner("a"))
    made = [message(number, f"e{number}") for number in range(1, 41)]
    await stored(storage.messages, made)

    async def cancel(message_id: int) -> CancelResult:
        return await peer.messages.cancel(message_id, SHARDS[0], 1, incarnation="a", retention=FAR)

    async with asyncio.timeout(PATIENCE_SECONDS), asyncio.TaskGroup() as tasks:
        cancels = [tasks.create_task(cancel(each.message_id)) for each in made]
        raised: list[type[BaseException] | None] = []
        for first in range(len(made) - 4, -1, -4):
            raised[:0] = await failures(
                [storage.messages.commit_run(run(each), "a") for each in made[first : first + 4]]
            )
    for each, error, task in zip(made, raised, cancels, strict=True):
        row = await storage.messages.find(each.message_id)
        assert row is not None
        assert error in {None, NotPending}
        assert row.state is (MessageState.DONE if error is None else MessageState.CANCELLED)
        assert task.result() is (CancelResult.SETTLED if error is None else CancelResult.CANCELLED)


async def test_a_commit_that_waits_for_a_cancellation_is_refused(postgres_world: PostgresWorld) -> None:
    """It finds the message gone, and leaves nothing."""
    storage, sql = await postgres_world.storage(), await postgres_world.sql()
    await storage.take(SHARDS, runner("a"))
    await stored(storage.messages, [message(1), message(2, "eve")])
    await sql.execute("begin")
    await sql.execute("select cancel_message(null, 'a', 1, 'default', 0, 1, 60)")
    observer = await postgres_world.sql()
    commits = [storage.messages.commit_run(run(message(1), 1), "a")]
    commits.append(storage.messages.commit_run(run(message(2, "eve"), 1), "a"))
    await until_blocked(observer)
    await sql.execute("commit")
    assert await failures(commits) == [NotPending, None]
    assert await storage.load_state("orders", "ada") is None
    row = await storage.messages.find(1)
    assert row is not None
    assert row.reply == StoredReply(Outcome.CANCELLED, b"")


async def test_one_of_many_senders_with_a_key_wins(postgres_world: PostgresWorld) -> None:
    """Keys that owners store, strangers deposit and handlers tell at once, in other orders, name one message each."""
    storages = [await postgres_world.storage() for _ in range(3)]
    await storages[0].take(SHARDS, runner("a"))
    ids = iter(range(1, 10_000))

    async def send(number: int) -> list[int]:
        found: list[int] = []
        messages = storages[number].messages
        for part in range(4):
            keys = [f"k{key}" for key in range(part * 20, part * 20 + 20)][:: 1 if number % 2 else -1]
            made = [keyed(message(next(ids), "told"), key) for key in keys]
            if number == 0:
                await results([messages.commit_run(changed(VOLATILE, outbox=(each,)), "a") for each in made])
            else:
                send = messages.deposit if number == 1 else lambda each: storages[2].messages.store(each, "a")
                answers = await results([send(each) for each in made])
                found += [each.message_id for each in answers]
                assert {each.verdict for each in answers} <= {Verdict.NEW, Verdict.PENDING}
        return found

    async with asyncio.timeout(3 * PATIENCE_SECONDS), asyncio.TaskGroup() as tasks:
        senders = [tasks.create_task(send(number)) for number in range(3)]
    left = await backlog(storages[0].messages)
    assert len(left) == 80
    rows = [await storages[0].messages.find(message_id) for message_id in left]
    assert Counter(row.key for row in rows if row is not None) == Counter(f"k{key}" for key in range(80))
    assert {message_id for sender in senders for message_id in sender.result()} <= set(left)


async def test_taking_a_count_back_waits_for_nobody_while_others_can_be_taken_back(
    postgres_world: PostgresWorld,
) -> None:
    """What somebody holds comes last, one by one: who waits for one row and holds another could deadlock."""
    storage = await postgres_world.storage()
    await storage.take(SHARDS, runner("a"))
    await stored(storage.messages, [message(number) for number in (1, 2, 3)])
    starts = [RunStart(number, SHARDS[0], 1, 1) for number in (1, 2, 3)]
    await results([storage.messages.start_run(each, "a") for each in starts])
    async with asyncio.timeout(PATIENCE_SECONDS), asyncio.TaskGroup() as tasks:
        async with held(postgres_world, "select from message where message_id = 2 for update") as observer:
            uncount = tasks.create_task(storage.messages.uncount_runs(starts, "a"))
            await until_blocked(observer)
            found = await storage.messages.load_entities([(SHARDS[0], "orders", "ada")], 9)
            assert [each.attempts for each in found] == [0, 1, 0]
        await uncount
    found = await storage.messages.load_entities([(SHARDS[0], "orders", "ada")], 9)
    assert [each.attempts for each in found] == [0, 0, 0]
