"""Schedules that change while the cluster runs: by operators, by releases of the program, and by hand."""

import asyncio
import logging
from datetime import datetime, timedelta

import msgspec
import pytest

from actorhub import Cluster, Hub, current, handler
from actorhub.cron import cron
from actorhub.engine.singletons.health import ScheduleHealth
from actorhub.storage.message_ports import MessageFilter, MessageState
from actorhub.storage.singleton_ports import ScheduleEdit
from actorhub.testing import MemoryCluster, SteppedClock, until
from tests.cron.diary import (
    BEFORE_NOON,
    DAY,
    HOUR,
    JUST,
    MINUTE,
    NOON,
    ONCE,
    Diary,
    Stage,
    at_time,
    comes,
    edit,
    moment,
    noon_comes,
    planned,
    ran,
    row,
    written,
)

_noon = NOON.timestamp()
_DONE = frozenset({MessageState.DONE})
_PENDING = frozenset({MessageState.PENDING, MessageState.SCHEDULED})


@pytest.fixture
def stage() -> Stage:
    """The schedule of a test."""
    return Stage()


@pytest.fixture
def clock() -> SteppedClock:
    """A clock that shows that it is nearly noon."""
    return SteppedClock(BEFORE_NOON)


async def _health(cluster: Cluster) -> dict[str, ScheduleHealth]:
    (runner,) = await cluster.health()
    return {schedule.name: schedule for schedule in runner.singletons[0].schedules}


async def _until_revision(memory: MemoryCluster, runner: Cluster, revision: int) -> None:
    """Wait until the leader goes by an edit."""
    await until(lambda: row(memory).revision == revision, "the edit")
    async with asyncio.timeout(5):
        while (await _health(runner))["tick"].paused != row(memory).paused:
            await asyncio.sleep(0.002)


async def test_a_paused_schedule_rests_until_it_is_resumed(stage: Stage, clock: SteppedClock) -> None:
    """What was planned does not run, each edit grows the revision, and the counts stay."""
    async with MemoryCluster(stage.declare("* * * * *"), clock=clock) as memory:
        runner = await noon_comes(memory)
        await ran(memory, _noon)
        await until(lambda: row(memory).runs == 1, "a count")
        await planned(memory, _noon + MINUTE)
        assert (await edit(memory, runner, paused=True)).revision == 1
        await _until_revision(memory, runner, 1)
        assert (await _health(runner))["tick"].status == "paused"
        await at_time(memory, moment(_noon + 5 * MINUTE))
        await until(lambda: len(memory.store.messages.messages(MessageFilter(states=_DONE))) == 2, "the old message")
        assert (stage.began, row(memory).next_at, row(memory).skipped) == ([_noon], None, 0)
        assert (await edit(memory, runner, paused=False)).revision == 2
        await comes(memory, _noon + 6 * MINUTE)
        await ran(memory, _noon, _noon + 6 * MINUTE)
        await until(lambda: row(memory).runs == 2, "a count")
        assert row(memory).last_error == ""


async def test_a_schedule_is_set_and_reset_while_it_runs(stage: Stage, clock: SteppedClock) -> None:
    """Messages of the plan before do not run, not even where both plans have the fire time: that runs once."""
    async with MemoryCluster(stage.declare("* * * * *"), clock=clock) as memory:
        runner = await noon_comes(memory)
        await ran(memory, _noon)
        edited = await edit(memory, runner, expression="*/2 * * * *", timezone="Europe/Berlin")
        assert (edited.revision, edited.edited) == (1, True)
        await comes(memory, _noon + 2 * MINUTE)
        await planned(memory, _noon + 4 * MINUTE)
        assert (await edit(memory, runner, expression="*/4 * * * *")).timezone == "Europe/Berlin"
        await comes(memory, _noon + 4 * MINUTE)
        await ran(memory, *(_noon + number * MINUTE for number in (0, 2, 4)))
        assert (await edit(memory, runner, reset=True)).revision == 3
        await comes(memory, _noon + 5 * MINUTE)
        await ran(memory, *(_noon + number * MINUTE for number in (0, 2, 4, 5)))
        assert stage.began == written(memory)
        assert (row(memory).edited, row(memory).expression, row(memory).timezone) == (False, "* * * * *", "UTC")
        await until(lambda: row(memory).runs == 4, "counts")
        assert row(memory).skipped == 0


@pytest.mark.parametrize("end", ["stop", "kill"])
async def test_an_edit_survives_its_leader(stage: Stage, clock: SteppedClock, end: str) -> None:
    """The next one goes by it, whether the edit came before or after the leader ended."""
    async with MemoryCluster(stage.declare("* * * * *"), clock=clock) as memory:
        runner = await noon_comes(memory)
        await ran(memory, _noon)
        await edit(memory, runner, expression="*/2 * * * *")
        await planned(memory, _noon + 2 * MINUTE)
        await getattr(memory, end)(runner)
        memory.store.singletons.edit_schedule("diary", "tick", ScheduleEdit(expression="*/3 * * * *"))
        runner = await memory.start_runner()
        await comes(memory, _noon + 3 * MINUTE)
        await ran(memory, _noon, _noon + 3 * MINUTE)
        await until(lambda: row(memory).runs == 2, "counts")
        assert row(memory).revision == 2


async def test_an_edit_that_nobody_was_told_of_counts_from_the_leader_s_next_write(
    stage: Stage, clock: SteppedClock
) -> None:
    """An every-second schedule that becomes one of every other second leaves none of those out."""
    async with MemoryCluster(stage.declare("* * * * * *"), clock=clock) as memory:
        await memory.start_runner()
        await until(lambda: len(written(memory)) >= 1, "a run")
        memory.store.singletons.edit_schedule("diary", "tick", ScheduleEdit(expression="*/2 * * * * *"))
        edited_at = clock.time()
        await until(lambda: written(memory)[-1] > edited_at + 5, "five more seconds")
        late = [at for at in written(memory) if at > edited_at + 2]
        assert late == [late[0] + 2 * number for number in range(len(late))]
        assert late[0] % 2 == 0
        assert late[0] <= edited_at + 4
        assert len(written(memory)) == len(set(written(memory)))


async def test_no_fire_time_runs_twice_for_an_edit(stage: Stage, clock: SteppedClock) -> None:
    """Not even where the clock went back before it, and the next leader plans the schedule again."""
    async with MemoryCluster(stage.declare("* * * * *"), clock=clock) as memory:
        runner = await noon_comes(memory)
        await ran(memory, _noon)
        await until(lambda: row(memory).runs == 1, "a count")
        memory.store.singletons.edit_schedule("diary", "tick", ScheduleEdit(expression="*/1 * * * *"))
        await memory.kill(runner)
        clock.step(timedelta(seconds=-30))
        await memory.start_runner()
        await planned(memory, _noon + MINUTE)
        await at_time(memory, NOON)
        await comes(memory, _noon + MINUTE)
        await ran(memory, _noon, _noon + MINUTE)
        assert stage.began == [_noon, _noon + MINUTE]


async def test_a_fire_time_that_is_under_way_ends_though_its_schedule_was_changed(
    stage: Stage, clock: SteppedClock
) -> None:
    """It has stored a step: the edit is for the fire times to come, and the next leader takes it to its end."""

    async def sleep(at: float) -> None:
        await current().sleep(timedelta(hours=2))

    stage.act = sleep
    async with MemoryCluster(stage.declare("0 12 * * *"), clock=clock) as memory:
        runner = await noon_comes(memory)
        await until(lambda: row(memory).last_at == _noon and _attempts(memory) == 0, "a sleep")
        await edit(memory, runner, expression="0 13 * * *")
        await planned(memory, _noon + HOUR)
        await edit(memory, runner, paused=True)
        await _until_revision(memory, runner, 2)
        await memory.kill(runner)
        clock.step(timedelta(hours=2))
        await memory.start_runner()
        await until(lambda: written(memory) == [_noon], "the end of the run")
        await until(lambda: row(memory).runs == 1, "a count")
        assert stage.began == [_noon, _noon]


def _attempts(memory: MemoryCluster) -> int:
    (found,) = memory.store.messages.messages(MessageFilter(key="cron:tick@2026-11-27T12:00:00Z#0"))
    return found.attempts


async def test_a_schedule_that_was_resumed_is_not_overdue_for_what_it_rested(stage: Stage, clock: SteppedClock) -> None:
    """A daily one that rested for a week is healthy until it misses its next day."""
    async with MemoryCluster(stage.declare("0 12 * * *"), clock=clock) as memory:
        runner = await noon_comes(memory)
        await ran(memory, _noon)
        await edit(memory, runner, paused=True)
        await _until_revision(memory, runner, 1)
        await at_time(memory, moment(_noon + 7 * DAY + HOUR))
        await edit(memory, runner, paused=False)
        await planned(memory, _noon + 8 * DAY)
        assert (await _health(runner))["tick"].status == "healthy"
        # The message of the plan before the pause is due, too, and ends without a run at its own time.
        await until(lambda: len(memory.store.messages.messages(MessageFilter(states=_PENDING))) == 1, "one message")
        (message,) = memory.store.messages.messages(MessageFilter(states=_PENDING))
        assert await runner.cancel(message.message_id)
        await at_time(memory, moment(_noon + 9 * DAY + MINUTE))
        await planned(memory, _noon + 10 * DAY)
        assert (await _health(runner))["tick"].status == "overdue"


class Broken(Diary, name="diary"):
    """Has one schedule that somebody breaks, and one that goes on."""

    @cron("* * * * *")
    async def tick(self, at: datetime) -> None:
        self.state.append(at.timestamp())

    @cron("* * * * *")
    async def tock(self, at: datetime) -> None:
        self.state.append(-at.timestamp())


async def test_an_expression_that_makes_no_sense_stops_its_schedule_alone(clock: SteppedClock) -> None:
    """Somebody wrote it past every check: the others run, health and row say what is wrong, and a reset helps."""
    hub = Hub()
    hub.register(Broken)
    async with MemoryCluster(hub, clock=clock) as memory:
        runner = await noon_comes(memory)
        await until(lambda: len(written(memory)) == 2, "two runs")
        await edit(memory, runner, expression="61 * * * *")
        await comes(memory, _noon + MINUTE, "tock")
        await until(lambda: len(written(memory)) == 3, "a third run")
        assert (await _health(runner))["tick"].status == "overdue"
        await until(lambda: "'61'" in row(memory).last_error, "the reason")
        await edit(memory, runner, reset=True)
        await comes(memory, _noon + 2 * MINUTE)
        await until(lambda: len(written(memory)) == 5, "all runs")
        assert (await _health(runner))["tick"].status == "healthy"


async def test_another_expression_in_the_code_is_adopted(stage: Stage, clock: SteppedClock) -> None:
    """What the old one had stored and the new one does not have is not run; what both have runs once."""
    hub = stage.declare("*/2 * * * *")
    async with MemoryCluster(hub, clock=clock) as memory:
        runner = await noon_comes(memory)
        await ran(memory, _noon)
        await planned(memory, _noon + 2 * MINUTE)
        await memory.stop(runner)
        runner = await memory.start_runner(hub=stage.declare("*/3 * * * *"))
        await planned(memory, _noon + 3 * MINUTE)
        await at_time(memory, moment(_noon + 2 * MINUTE))
        await until(lambda: len(memory.store.messages.messages(MessageFilter(states=_DONE))) == 2, "the old message")
        await comes(memory, _noon + 3 * MINUTE)
        await ran(memory, _noon, _noon + 3 * MINUTE)
        await planned(memory, _noon + 6 * MINUTE)
        await memory.stop(runner)
        await memory.start_runner(hub=stage.declare("*/6 * * * *"))
        await comes(memory, _noon + 6 * MINUTE)
        await ran(memory, *(_noon + number * MINUTE for number in (0, 3, 6)))
        assert stage.began == written(memory)
        await until(lambda: row(memory).runs == 3, "counts")
        assert (row(memory).declared, row(memory).edited) == ("*/6 * * * *|UTC", False)


async def test_an_operator_s_edit_stays_until_the_code_changes(stage: Stage, clock: SteppedClock) -> None:
    """A restart of the same program keeps it; another expression in the code replaces it."""
    async with MemoryCluster(stage.declare("* * * * *"), clock=clock) as memory:
        runner = await noon_comes(memory)
        await edit(memory, runner, expression="*/2 * * * *")
        await planned(memory, _noon + 2 * MINUTE)
        await memory.stop(runner)
        runner = await memory.start_runner(hub=stage.declare("* * * * *"))
        await comes(memory, _noon + 2 * MINUTE)
        await planned(memory, _noon + 4 * MINUTE)
        assert row(memory).edited
        await memory.stop(runner)
        await memory.start_runner(hub=stage.declare("*/5 * * * *"))
        await planned(memory, _noon + 5 * MINUTE)
        assert (row(memory).edited, row(memory).expression) == (False, "*/5 * * * *")


class Bare(Diary, name="diary"):
    """What is left of the singleton when its schedule is taken out with the method."""

    @handler(durable=True)
    async def other(self) -> None: ...


class Plain(Diary, name="diary"):
    """The method stays, without a schedule."""

    @handler(durable=True)
    async def other(self) -> None: ...

    async def tick(self, at: datetime) -> int:
        self.state.append(at.timestamp())
        return 0


class Lasting(Diary, name="diary"):
    """The method stays, durable, without a schedule."""

    @handler(durable=True)
    async def tick(self, at: datetime) -> int:
        self.state.append(at.timestamp())
        return 0


@pytest.mark.parametrize("left", [Bare, Plain, Lasting])
async def test_a_schedule_that_the_code_has_no_more_is_gone(
    stage: Stage, clock: SteppedClock, left: type[Diary], caplog: pytest.LogCaptureFixture
) -> None:
    """Its row is deleted, its message waits, said once, and disturbs nobody; where it comes back, that runs."""
    old, new = stage.declare("* * * * *"), Hub()
    new.register(left)
    async with MemoryCluster(old, clock=clock) as memory:
        runner = await noon_comes(memory)
        await ran(memory, _noon)
        await planned(memory, _noon + MINUTE)
        await memory.stop(runner)
        runner = await memory.start_runner(hub=new)
        await until(lambda: not memory.store.singletons.schedules("diary"), "the row to be gone")
        await at_time(memory, moment(_noon + MINUTE))
        for _ in range(5):
            await runner.poll_storage()
            await asyncio.sleep(0.02)
            assert await runner.singleton(left).read() == [_noon]
        warnings = [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]
        assert len([text for text in warnings if "diary.tick wait" in text]) == 1
        assert len(memory.store.messages.messages(MessageFilter(states=_PENDING))) == 1
        await memory.stop(runner)
        await memory.start_runner(hub=old)
        await planned(memory, _noon + 2 * MINUTE)
        await ran(memory, _noon, _noon + MINUTE)


async def test_what_was_stored_for_a_scheduled_method_runs_once_where_the_method_is_plain(
    stage: Stage, clock: SteppedClock
) -> None:
    """A person's message, stored while the method was durable, is settled by the run, and so not run at each look."""
    old, new = stage.declare("0 0 1 1 *"), Hub()
    new.register(Plain)
    async with MemoryCluster(old, clock=clock) as memory:
        runner = await memory.start_runner()
        ticking = stage.singleton
        call = getattr(runner.singleton(ticking), "tick")(NOON)  # noqa: B009 - the test's own class has it
        await runner.tell(call, deliver_at=NOON)
        await memory.stop(runner)
        runner = await memory.start_runner(hub=new)
        await at_time(memory, NOON)
        await ran(memory, _noon)
        for _ in range(5):
            await runner.poll_storage()
            await asyncio.sleep(0.02)
            assert await runner.singleton(Plain).read() == [_noon]


class ByHand(Diary, name="diary"):
    """Whose schedule people run by hand."""

    @cron("0 12 * * *", retry=ONCE, skip_if_older_than=timedelta(minutes=1), overlap="skip")
    async def tick(self, at: datetime) -> int:
        if at.year < 2000:
            raise ValueError("too long ago")
        self.state.append(at.timestamp())
        return len(self.state)


async def test_a_person_runs_the_method_by_hand(clock: SteppedClock) -> None:
    """Whatever fire time they give it, under whatever key: it is run and counted, and the plan stays as it was."""
    hub = Hub()
    hub.register(ByHand)
    async with MemoryCluster(hub, clock=clock) as memory:
        runner = await memory.start_runner()
        client = await memory.client()
        await planned(memory, _noon)
        old, far = NOON - timedelta(days=1000), NOON + timedelta(days=1000)
        assert await client.singleton(ByHand).tick(old) == 1
        assert await client.singleton(ByHand, key="now:1").tick(far) == 2
        assert await client.singleton(ByHand, key="now:1").tick(far) == 2
        with pytest.raises(Exception, match="too long ago"):
            await client.singleton(ByHand).tick(datetime(1999, 1, 1, tzinfo=NOON.tzinfo))
        await until(lambda: row(memory).runs == 2, "counts")
        found = row(memory)
        assert (found.failures, found.last_at, found.next_at) == (1, None, _noon)
        assert found.last_error == "ValueError: too long ago"
        assert found.last_duration is not None
        assert (await _health(runner))["tick"].status == "never executed"
        await comes(memory, _noon)
        await until(lambda: len(written(memory)) == 3, "the run of noon")
        await until(lambda: row(memory).runs == 3, "a count")
        assert row(memory).last_at == _noon


async def test_a_key_that_somebody_else_used_does_not_stop_the_schedule(stage: Stage, clock: SteppedClock) -> None:
    """Whoever sent another payload under a fire time's key has that fire time; the next one comes."""
    hub = Hub()
    hub.register(ByHand)
    async with MemoryCluster(hub, clock=clock) as memory:
        runner = await memory.start_runner()
        await planned(memory, _noon)
        stolen = "cron:tick@2026-11-28T12:00:00Z#0"
        told = await runner.tell(runner.singleton(ByHand).tick(NOON), key=stolen)
        assert await runner.reply(told) == 1
        await comes(memory, _noon)
        await comes(memory, _noon + DAY)
        await planned(memory, _noon + 2 * DAY)
        await ran(memory, _noon, _noon)


async def test_what_is_noted_of_a_schedule_is_bounded_and_readable(stage: Stage, clock: SteppedClock) -> None:
    """A long error is cut, and a row of which nothing is known yet says so."""

    async def fail(at: float) -> None:
        raise RuntimeError("x" * 5000)

    stage.act = fail
    async with MemoryCluster(stage.declare("* * * * *", retry=ONCE), clock=clock) as memory:
        await memory.start_runner()
        before = await planned(memory, _noon)
        assert (before.last_at, before.last_started_at, before.last_duration, before.last_skip) == (
            None,
            None,
            None,
            "",
        )
        await at_time(memory, NOON - JUST)
        await until(lambda: row(memory).failures == 1, "a failure")
        assert len(row(memory).last_error) == 1000
        assert msgspec.json.encode(row(memory))
