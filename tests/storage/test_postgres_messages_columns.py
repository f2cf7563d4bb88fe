"""Requests of one group that do not fit the short way: several shard groups, epochs, and names that are not names."""

from asyncio import Future

import pytest

from actorhub.conformance.messages import backlog, changed, failures, keyed, message, opened, results, run, stored
from actorhub.conformance.storage import SHARDS, runner, take_over
from actorhub.core.address import ShardId
from actorhub.core.errors import PersistenceError
from actorhub.storage.message_ports import NewMessage, Readiness, RunCommit, RunStart, Stored, Verdict
from actorhub.storage.ports import Fenced
from tests.storage.conftest import PostgresWorld

OTHERS = [ShardId("other", shard.number) for shard in SHARDS]


def _start(made: NewMessage, *, epoch: int = 1) -> RunStart:
    return RunStart(made.message_id, made.shard, epoch, 1)


async def test_shards_of_several_groups_share_a_round_trip(postgres_world: PostgresWorld) -> None:
    """Shards that differ only in their groups are told apart, and only who owns them writes."""
    storage = await postgres_world.storage()
    messages = storage.messages
    await storage.take([*SHARDS, OTHERS[0]], runner("a"))
    await storage.take(OTHERS[1:2], runner("b"))
    made = [message(number, f"e{number}", shard=shard) for number, shard in enumerate([*SHARDS[:2], *OTHERS[:2]], 1)]
    answers = await stored(messages, made)
    assert [answer.verdict for answer in answers] == [Verdict.NEW] * 3 + [Verdict.FENCED]
    starts = await results([messages.start_run(_start(each), "a") for each in made])
    assert starts == [Readiness.RUN] * 3 + [Readiness.FENCED]
    assert await backlog(messages, [SHARDS[0]]) == [1]
    assert await backlog(messages, [OTHERS[0]]) == [3]
    assert await failures([messages.commit_run(run(each), "a") for each in made]) == [None] * 3 + [Fenced]


async def test_one_shard_at_two_epochs_is_judged_by_each(postgres_world: PostgresWorld) -> None:
    """What was made before the shard was lost is refused, what was made after it came back is written."""
    storage = await postgres_world.storage()
    messages = storage.messages
    for incarnation in ("a", "b", "a"):
        await take_over(storage, SHARDS[:1], runner(incarnation))
    made = [message(1, "e1", epoch=1), message(2, "e2", epoch=3), message(3, "e3", epoch=1), message(4, "e4", epoch=3)]
    verdicts = [answer.verdict for answer in await stored(messages, made)]
    assert verdicts == [Verdict.FENCED, Verdict.NEW] * 2
    starts = [_start(made[1], epoch=1), _start(made[3], epoch=3)]
    assert await results([messages.start_run(each, "a") for each in starts]) == [Readiness.FENCED, Readiness.RUN]
    runs = [changed(run(made[1]), epoch=1), run(made[3])]
    assert await failures([messages.commit_run(each, "a") for each in runs]) == [Fenced, None]
    assert await backlog(messages, SHARDS[:1]) == [2]


@pytest.mark.parametrize("epochs", [(2, 2), (1, 2), (2, 1)])
async def test_a_wrong_epoch_is_refused_whatever_comes_with_it(
    postgres_world: PostgresWorld, epochs: tuple[int, int]
) -> None:
    """All of a group, its first or its last: only the right one is written, and no next run is counted with others."""
    messages = await opened(postgres_world)
    made = [message(number, f"e{number}", shard=SHARDS[number]) for number in (0, 1)]
    made = [changed(each, message_id=each.message_id + 10) for each in made]
    after = [changed(each, message_id=each.message_id + 10) for each in made]
    await stored(messages, [*made, *after])
    late = [
        changed(each, message_id=each.message_id + 90, epoch=epoch) for each, epoch in zip(made, epochs, strict=True)
    ]
    right = [epoch == 1 for epoch in epochs]
    answers = await stored(messages, late)
    assert [answer.verdict for answer in answers] == [Verdict.NEW if each else Verdict.FENCED for each in right]
    runs = [
        changed(run(each), epoch=epoch, next_start=_start(then, epoch=epoch))
        for each, then, epoch in zip(made, after, epochs, strict=True)
    ]
    outcome = await failures([messages.commit_run(each, "a") for each in runs])
    assert outcome == [None if each else Fenced for each in right]
    counted = [row.attempts for row in [await messages.find(each.message_id) for each in after] if row is not None]
    assert counted == [int(each) for each in right]


async def test_a_message_stored_twice_at_once_is_stored_once(postgres_world: PostgresWorld) -> None:
    """Those that are new and come with it are stored as ever, by whichever of two processes."""
    messages, peer = await opened(postgres_world), (await postgres_world.storage()).messages
    made = [message(number, f"e{number}") for number in range(1, 41)]
    futures: list[Future[Stored]] = [messages.store(each, "a") for each in made[:30]]
    futures += [peer.store(each, "a") for each in made[10:]]
    verdicts = [(answer.message_id, answer.verdict) for answer in await results(futures)]
    assert sorted(number for number, verdict in verdicts if verdict is Verdict.NEW) == list(range(1, 41))
    assert {verdict for _, verdict in verdicts} == {Verdict.NEW, Verdict.PENDING}
    assert await backlog(messages) == list(range(1, 41))


async def test_a_name_with_a_line_break_fails_alone(postgres_world: PostgresWorld) -> None:
    """Wherever it is, its neighbours are stored under their own names."""
    messages = await opened(postgres_world)
    made = [message(number, f"e{number}") for number in range(1, 8)]
    made[2] = changed(made[2], entity_id="a\nb")
    made[4] = changed(made[4], handler="h\n")
    assert await failures([messages.store(each, "a") for each in made]) == [
        None, None, PersistenceError, None, PersistenceError, None, None,
    ]  # fmt: skip
    rows = {number: await messages.find(number) for number in range(1, 8)}
    assert {number: row.entity_id for number, row in rows.items() if row} == {n: f"e{n}" for n in (1, 2, 4, 6, 7)}


async def test_runs_that_need_more_and_less_share_a_round_trip(postgres_world: PostgresWorld) -> None:
    """State, messages told, a volatile run and a plain reply in one group, each with its next run."""
    messages = await opened(postgres_world)
    made = [message(number, f"e{number}") for number in range(1, 4)]
    after = [message(10 + number, f"e{number}") for number in range(5)]
    await stored(messages, [*made, *after])
    volatile = changed(run(message(0, "e0")), reply=None, version=1, data=b"s")
    runs: list[RunCommit] = [
        volatile,
        run(made[0]),
        changed(run(made[1], 1), outbox=(keyed(message(50, "told"), "k"),)),
        changed(run(made[2]), outbox=(message(51, "told"),)),
    ]
    futures = [
        messages.commit_run(changed(each, next_start=_start(then)), "a")
        for each, then in zip(runs, after, strict=False)
    ]
    assert await results(futures) == [True] * 4
    rows = [await messages.find(each.message_id) for each in after]
    assert [row.attempts for row in rows if row is not None] == [1, 1, 1, 1, 0]
    assert await backlog(messages) == [10, 11, 12, 13, 14, 50, 51]


async def test_a_volatile_run_without_anything_but_a_next_run_is_written(postgres_world: PostgresWorld) -> None:
    """It settles no message, so none is missing, and the plain run beside it is not refused either."""
    messages = await opened(postgres_world)
    await stored(messages, [message(1, "e1"), message(2, "e2")])
    volatile = changed(run(message(0, "e2")), reply=None, next_start=_start(message(2, "e2")))
    assert await results([messages.commit_run(each, "a") for each in (volatile, run(message(1, "e1")))]) == [
        True,
        False,
    ]
    assert await backlog(messages) == [2]
