"""Schedules when leaders end, stores fail and commits are refused: each fire time once, none left out."""

import asyncio
from datetime import timedelta

import pytest

from actorhub import Cluster
from actorhub.cluster import part_of
from actorhub.storage.message_ports import MessageFilter, MessageState
from actorhub.storage.ports import StoredState
from actorhub.testing import MemoryCluster, SteppedClock, until
from tests.cron.diary import (
    BEFORE_NOON,
    JUST,
    MINUTE,
    NOON,
    Stage,
    at_time,
    comes,
    idle,
    moment,
    noon_comes,
    planned,
    ran,
    row,
    written,
)
from tests.support.gates import gates

_noon = NOON.timestamp()


@pytest.fixture
def stage() -> Stage:
    """The schedule of a test."""
    return Stage()


@pytest.fixture
def clock() -> SteppedClock:
    """A clock that shows that it is nearly noon."""
    return SteppedClock(BEFORE_NOON)


async def _two(memory: MemoryCluster) -> None:
    for _ in range(2):
        await memory.start_runner()
    await memory.settled()


def _leader(memory: MemoryCluster, stage: Stage) -> Cluster:
    leader = memory.owner_of(memory.runners[0].shard_of(stage.singleton, "diary"))
    assert leader is not None
    return leader


def _stored(memory: MemoryCluster, at: float) -> bool:
    key = f"cron:tick@{moment(at):%Y-%m-%dT%H:%M:%SZ}#0"
    return bool(memory.store.messages.messages(MessageFilter(key=key)))


async def _step_by_step(memory: MemoryCluster, clock: SteppedClock, at: float) -> None:
    """Set the clock to a fire time, and return when it has come, with the loop's every step still ahead."""
    await at_time(memory, moment(at) - JUST)
    async with asyncio.timeout(5):
        while clock.time() < at:
            await asyncio.sleep(0)


@pytest.mark.parametrize("steps", [0, 1, 2, 3, 4, 5, 6, 8, 10, 13, 16, 20, 25, 30, 40, 60])
@pytest.mark.parametrize("end", ["kill", "stop"])
async def test_a_leader_that_ends_at_any_moment_costs_no_fire_time(
    stage: Stage, clock: SteppedClock, steps: int, end: str
) -> None:
    """While a fire time runs and the next one is planned: the other runner goes on, and each fire time commits once."""
    async with MemoryCluster(stage.declare("* * * * *"), clock=clock) as memory:
        await _two(memory)
        await planned(memory, _noon)
        await _step_by_step(memory, clock, _noon)
        for _ in range(steps):
            await asyncio.sleep(0)
        await getattr(memory, end)(_leader(memory, stage))
        await planned(memory, _noon + MINUTE)
        await ran(memory, _noon)
        await comes(memory, _noon + MINUTE)
        await ran(memory, _noon, _noon + MINUTE)
        assert row(memory).skipped == 0


async def test_a_leader_lost_between_message_and_row_leaves_neither_a_gap_nor_a_second_run(
    stage: Stage, clock: SteppedClock
) -> None:
    """The next one plans the fire time again, and finds its message stored."""
    async with MemoryCluster(stage.declare("* * * * *"), clock=clock) as memory:
        await _two(memory)
        await planned(memory, _noon)
        await _step_by_step(memory, clock, _noon)
        async with asyncio.timeout(5):
            while not _stored(memory, _noon + MINUTE):
                await asyncio.sleep(0)
        assert row(memory).next_at == _noon
        await memory.kill(_leader(memory, stage))
        await comes(memory, _noon + MINUTE)
        await comes(memory, _noon + 2 * MINUTE)
        await ran(memory, *(_noon + number * MINUTE for number in range(3)))
        assert stage.began[-2:] == [_noon + MINUTE, _noon + 2 * MINUTE]


async def test_a_leader_lost_before_the_first_row_that_names_a_fire_time_leaves_no_gap(
    stage: Stage, clock: SteppedClock
) -> None:
    """Of a new schedule only the first message is stored, and the next leader comes two fire times later."""
    async with MemoryCluster(stage.declare("* * * * *", from_previous=True), clock=clock) as memory:
        await memory.start_runner()
        async with asyncio.timeout(5):
            while not _stored(memory, _noon):
                await asyncio.sleep(0)
        assert row(memory).next_at is None
        await memory.kill(memory.runners[0])
        await at_time(memory, moment(_noon + MINUTE) + JUST)
        await memory.start_runner()
        await ran(memory, _noon, _noon + MINUTE)
        assert row(memory).skipped == 0


@pytest.mark.parametrize("overlap", ["queue", "skip", "allow"])
async def test_a_fire_time_whose_runner_is_killed_runs_again(stage: Stage, clock: SteppedClock, overlap: str) -> None:
    """It is committed once, by the next leader, and counted once."""

    async def hold(at: float) -> None:
        await gates["tick"].pass_through()

    stage.act = hold
    async with MemoryCluster(stage.declare("* * * * *", overlap=overlap), clock=clock) as memory:
        await _two(memory)
        await comes(memory, _noon)
        await gates["tick"].came()
        await memory.kill(_leader(memory, stage))
        await gates["tick"].came(2)
        gates["tick"].open()
        await ran(memory, _noon)
        await until(lambda: row(memory).runs == 1, "a count")
        await comes(memory, _noon + MINUTE)
        await ran(memory, _noon, _noon + MINUTE)
        await until(lambda: row(memory).runs == 2, "a count")
        assert (row(memory).failures, row(memory).skipped) == (0, 0)
        assert stage.began == [_noon, _noon, _noon + MINUTE]


async def test_a_run_that_ends_while_its_leader_leaves_is_counted(stage: Stage, clock: SteppedClock) -> None:
    """What the leader knows of its schedules is written before the next one begins."""

    async def hold(at: float) -> None:
        await gates["tick"].pass_through()

    stage.act = hold
    async with MemoryCluster(stage.declare("* * * * *"), clock=clock) as memory:
        await _two(memory)
        await comes(memory, _noon)
        await gates["tick"].came()
        leader = _leader(memory, stage)
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(memory.stop(leader))
            await asyncio.sleep(0.05)
            gates["tick"].open()
        await ran(memory, _noon)
        assert stage.began == [_noon]
        await until(lambda: row(memory).runs == 1, "a count")
        assert row(memory).last_finished_at is not None


@pytest.mark.parametrize("overlap", ["queue", "allow"])
async def test_a_fire_time_whose_commit_is_refused_runs_again(stage: Stage, clock: SteppedClock, overlap: str) -> None:
    """Somebody else wrote the state meanwhile: the run does not count, the next one does, and the chain goes on."""

    async def hold(at: float) -> None:
        await gates["tick"].pass_through()

    stage.act = hold
    async with MemoryCluster(stage.declare("* * * * *", overlap=overlap), clock=clock) as memory:
        await noon_comes(memory)
        await gates["tick"].came()
        memory.overwrite("diary", "diary", StoredState(7, b"\x90"))
        gates["tick"].open()
        await ran(memory, _noon)
        assert stage.began == [_noon, _noon]
        await until(lambda: row(memory).runs == 1, "a count")
        await comes(memory, _noon + MINUTE)
        await ran(memory, _noon, _noon + MINUTE)
        assert (row(memory).failures, row(memory).skipped) == (0, 0)


async def test_a_fire_time_runs_again_after_its_runner_lost_its_locks(stage: Stage, clock: SteppedClock) -> None:
    """The lock session ended while it ran: that run is fenced, the next one commits."""

    async def hold(at: float) -> None:
        await gates["tick"].pass_through()

    stage.act = hold
    async with MemoryCluster(stage.declare("* * * * *"), clock=clock) as memory:
        await _two(memory)
        await comes(memory, _noon)
        await gates["tick"].came()
        memory.store.terminate_sessions(part_of(_leader(memory, stage)).node.incarnation)
        await gates["tick"].came(2)
        gates["tick"].open()
        await ran(memory, _noon)
        await comes(memory, _noon + MINUTE)
        await ran(memory, _noon, _noon + MINUTE)


@pytest.mark.parametrize("seconds", [0.1, 1.0, 4.0])
async def test_a_store_that_is_away_for_a_while_breaks_no_chain(
    stage: Stage, clock: SteppedClock, seconds: float
) -> None:
    """A fire time comes while it is away, even for longer than the lease: it runs afterwards, and so does the next."""
    async with MemoryCluster(stage.declare("* * * * *"), clock=clock) as memory:
        await noon_comes(memory)
        memory.store.available = False
        await asyncio.sleep(seconds)
        assert written(memory) == []
        memory.store.available = True
        await until(lambda: written(memory) == [_noon], "the run of noon")
        await comes(memory, _noon + MINUTE)
        await ran(memory, _noon, _noon + MINUTE)
        assert row(memory).skipped == 0


async def test_an_every_second_schedule_misses_nothing_while_leaders_come_and_go(
    stage: Stage, clock: SteppedClock
) -> None:
    """Killed, stopped, cut off from its locks, and with a store that is away: second after second, each once."""
    async with MemoryCluster(stage.declare("* * * * * *"), clock=clock) as memory:
        await _two(memory)
        for number in range(8):
            count = len(written(memory))
            await until(lambda: len(written(memory)) > count, "a run", deadline=20)  # noqa: B023 - awaited right here
            leader = _leader(memory, stage)
            match number % 4:
                case 0:
                    await memory.kill(leader)
                    await memory.start_runner()
                case 1:
                    await memory.stop(leader)
                    await memory.start_runner()
                case 2:
                    memory.store.terminate_sessions(part_of(leader).node.incarnation)
                case _:
                    memory.store.available = False
                    await asyncio.sleep(0.5)
                    memory.store.available = True
            await memory.settled()
        count = len(written(memory))
        await until(lambda: len(written(memory)) > count + 1, "two more runs", deadline=20)
        found = written(memory)
        assert found == [found[0] + number for number in range(len(found))]
        assert row(memory).skipped == 0


async def test_a_chain_goes_on_after_every_restart(stage: Stage, clock: SteppedClock) -> None:
    """Ten runners one after the other, each for one fire time; no fire time's key stands in the way of another's."""
    async with MemoryCluster(stage.declare("* * * * *"), clock=clock) as memory:
        for number in range(10):
            runner = await memory.start_runner()
            await comes(memory, _noon + number * MINUTE)
            await planned(memory, _noon + (number + 1) * MINUTE)
            await until(lambda: len(written(memory)) > number, "a run")  # noqa: B023 - awaited right here
            await (memory.kill(runner) if number % 2 else memory.stop(runner))
        await memory.start_runner()
        await idle(memory)
        assert written(memory) == [_noon + number * MINUTE for number in range(10)]
        assert row(memory).skipped == 0


async def test_a_cancelled_fire_time_does_not_break_the_chain(stage: Stage, clock: SteppedClock) -> None:
    """Somebody cancels the message of a fire time: that one does not run, the next one does."""
    async with MemoryCluster(stage.declare("* * * * *"), clock=clock) as memory:
        runner = await memory.start_runner()
        await planned(memory, _noon)
        (message,) = memory.store.messages.messages(MessageFilter(states=frozenset({MessageState.SCHEDULED})))
        assert await runner.cancel(message.message_id)
        await at_time(memory, NOON - JUST)
        await comes(memory, _noon + MINUTE)
        await ran(memory, _noon + MINUTE)


async def test_a_restart_during_a_run_of_many_fire_times_repeats_none(stage: Stage, clock: SteppedClock) -> None:
    """A leader is killed again and again while it makes up for an hour of minutes: each of them once, in order."""

    async def work(at: float) -> None:
        await asyncio.sleep(0.01)

    stage.act = work
    hub = stage.declare("* * * * *", from_previous=True)
    async with MemoryCluster(hub, clock=clock) as memory:
        runner = await noon_comes(memory)
        await ran(memory, _noon)
        await planned(memory, _noon + MINUTE)
        await memory.stop(runner)
        clock.step(timedelta(hours=1))
        for _ in range(6):
            runner = await memory.start_runner()
            count = len(written(memory))
            await until(lambda: len(written(memory)) > count, "a run")  # noqa: B023 - awaited right here
            await memory.kill(runner)
        await memory.start_runner()
        await ran(memory, *(_noon + number * MINUTE for number in range(61)))
        assert row(memory).skipped == 0
