"""Schedules run their methods: each fire time once, whatever a run does; overlaps, breakers, counts and health."""

import asyncio
from datetime import datetime, timedelta

import pytest

from actorhub import Breaker, Cluster, EntityError, Hub, Retry, current, handler
from actorhub.cron import cron
from actorhub.engine.singletons.health import ScheduleHealth
from actorhub.storage.message_ports import MessageFilter, MessageRow, MessageState
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


class Closed(EntityError):
    why: str


@pytest.fixture
def stage() -> Stage:
    """The schedule of a test."""
    return Stage()


@pytest.fixture
def clock() -> SteppedClock:
    """A clock that shows that it is nearly noon."""
    return SteppedClock(BEFORE_NOON)


def _message(memory: MemoryCluster, at: float, name: str = "tick") -> MessageRow:
    key = f"cron:{name}@{moment(at):%Y-%m-%dT%H:%M:%SZ}#0"
    (found,) = memory.store.messages.messages(MessageFilter(key=key))
    return found


async def _health(cluster: Cluster) -> ScheduleHealth:
    (runner,) = await cluster.health()
    return runner.singletons[0].schedules[0]


async def test_a_run_leaves_its_marks_in_the_row_of_its_schedule(stage: Stage, clock: SteppedClock) -> None:
    """Times, duration and counts; the message is settled with the method's value, and the next one stored."""

    async def work(at: float) -> None:
        await asyncio.sleep(0.05)

    stage.act = work
    async with MemoryCluster(stage.declare("* * * * *"), clock=clock) as memory:
        await noon_comes(memory)
        await until(lambda: written(memory) == [_noon], "a run")
        await until(lambda: row(memory).runs == 1, "a count")
        found = row(memory)
        assert (found.last_at, found.next_at) == (_noon, _noon + MINUTE)
        assert found.last_started_at is not None
        assert found.last_finished_at is not None
        assert found.last_duration is not None
        assert _noon <= found.last_started_at <= found.last_finished_at - 0.04
        assert 0.04 <= found.last_duration < 1
        assert (found.failures, found.failures_in_a_row, found.skipped, found.last_error) == (0, 0, 0, "")
        assert (_message(memory, _noon).state, _message(memory, _noon).attempts) == (MessageState.DONE, 1)
        assert _message(memory, _noon + MINUTE).state == MessageState.SCHEDULED


async def test_a_run_that_fails_is_repeated_and_counts_once(stage: Stage, clock: SteppedClock) -> None:
    """Its last attempt succeeded: that is one run, and no failure."""

    async def fail_twice(at: float) -> None:
        if len(stage.began) < 3:
            raise RuntimeError("not yet")

    stage.act = fail_twice
    async with MemoryCluster(stage.declare("* * * * *"), clock=clock) as memory:
        await noon_comes(memory)
        await ran(memory, _noon)
        await until(lambda: row(memory).runs == 1, "a count")
        assert (row(memory).failures, row(memory).failures_in_a_row, row(memory).last_error) == (0, 0, "")
        assert stage.began == [_noon] * 3


async def test_a_fire_time_that_fails_for_good_is_a_dead_letter_and_the_next_one_comes(
    stage: Stage, clock: SteppedClock
) -> None:
    """A failure is counted once its attempts are used up; a success ends the failures in a row."""

    async def fail_at_noon(at: float) -> None:
        if at == _noon:
            raise RuntimeError("no luck")

    stage.act = fail_at_noon
    async with MemoryCluster(stage.declare("* * * * *"), clock=clock) as memory:
        await noon_comes(memory)
        await until(lambda: row(memory).failures == 1, "a failure")
        assert (row(memory).failures_in_a_row, row(memory).last_error) == (1, "RuntimeError: no luck")
        assert (_message(memory, _noon).state, stage.began) == (MessageState.DEAD, [_noon] * 3)
        await comes(memory, _noon + MINUTE)
        await until(lambda: row(memory).runs == 1, "a run")
        assert (row(memory).failures, row(memory).failures_in_a_row, row(memory).last_error) == (1, 0, "")
        await ran(memory, _noon + MINUTE)


@pytest.mark.parametrize("overlap", ["queue", "skip", "allow"])
async def test_a_domain_error_is_a_failure_without_another_attempt(
    stage: Stage, clock: SteppedClock, overlap: str
) -> None:
    """It is the message's reply; the fire times after it are not held up."""

    async def refuse_at_noon(at: float) -> None:
        if at == _noon:
            raise Closed(why="lunch")

    stage.act = refuse_at_noon
    async with MemoryCluster(stage.declare("* * * * *", overlap=overlap), clock=clock) as memory:
        await noon_comes(memory)
        await until(lambda: row(memory).failures == 1, "a failure")
        assert row(memory).last_error.startswith("Closed: ")
        assert _message(memory, _noon).state == MessageState.FAILED
        await comes(memory, _noon + MINUTE)
        await ran(memory, _noon + MINUTE)
        assert stage.began == [_noon, _noon + MINUTE]
        assert row(memory).skipped == 0


class Slow(Diary, name="diary"):
    """Takes longer than it may."""

    @cron("* * * * *", retry=ONCE)
    @handler(timeout=timedelta(milliseconds=20))
    async def tick(self, at: datetime) -> None:
        await gates["never"].pass_through()


async def test_a_run_that_takes_too_long_says_so(clock: SteppedClock) -> None:
    """The row has the time-out, not the cancellation that it led to."""
    hub = Hub()
    hub.register(Slow)
    async with MemoryCluster(hub, clock=clock) as memory:
        await noon_comes(memory)
        await until(lambda: row(memory).failures == 1, "a failure")
        assert row(memory).last_error.startswith("CallTimeout: diary.tick: the handler ran longer")


async def test_a_fire_time_waits_for_the_run_before_it(stage: Stage, clock: SteppedClock) -> None:
    """Overlap `queue`: it begins when the earlier run has ended."""

    async def hold_at_noon(at: float) -> None:
        if at == _noon:
            await gates["tick"].pass_through()

    stage.act = hold_at_noon
    async with MemoryCluster(stage.declare("* * * * *", overlap="queue"), clock=clock) as memory:
        await noon_comes(memory)
        await gates["tick"].came()
        await comes(memory, _noon + MINUTE)
        await planned(memory, _noon + 2 * MINUTE)
        await asyncio.sleep(0.05)
        assert stage.began == [_noon]
        gates["tick"].open()
        await ran(memory, _noon, _noon + MINUTE)
        assert row(memory).skipped == 0


async def test_a_fire_time_is_skipped_while_the_run_before_it_has_not_ended(stage: Stage, clock: SteppedClock) -> None:
    """Overlap `skip`: it is counted, and the one after it runs."""

    async def hold_at_noon(at: float) -> None:
        if at == _noon:
            await gates["tick"].pass_through()

    stage.act = hold_at_noon
    async with MemoryCluster(stage.declare("* * * * *", overlap="skip"), clock=clock) as memory:
        await noon_comes(memory)
        await gates["tick"].came()
        await comes(memory, _noon + MINUTE)
        await planned(memory, _noon + 2 * MINUTE)
        await asyncio.sleep(0.05)
        gates["tick"].open()
        await until(lambda: row(memory).skipped == 1, "a skipped fire time")
        assert row(memory).last_skip == "an earlier run had not ended: 2026-11-27T12:01:00Z"
        await comes(memory, _noon + 2 * MINUTE)
        await ran(memory, _noon, _noon + 2 * MINUTE)
        assert stage.began == [_noon, _noon + 2 * MINUTE]


async def test_a_fire_time_is_skipped_while_one_before_it_waits_for_its_next_attempt(
    stage: Stage, clock: SteppedClock
) -> None:
    """Overlap `skip`: until somebody cancels the message that waits."""

    async def fail_at_noon(at: float) -> None:
        if at == _noon:
            raise RuntimeError("no luck")

    stage.act = fail_at_noon
    patient = Retry(attempts=2, initial=timedelta(days=1), maximum=timedelta(days=1))
    async with MemoryCluster(stage.declare("* * * * *", overlap="skip", retry=patient), clock=clock) as memory:
        runner = await noon_comes(memory)
        await until(lambda: row(memory).last_error != "", "a failed attempt")
        await comes(memory, _noon + MINUTE)
        await until(lambda: row(memory).skipped == 1, "a skipped fire time")
        assert row(memory).last_skip.startswith("an earlier run had not ended: ")
        assert await runner.cancel(_message(memory, _noon).message_id)
        await comes(memory, _noon + 2 * MINUTE)
        await ran(memory, _noon + 2 * MINUTE)
        assert (row(memory).failures, row(memory).skipped) == (0, 1)


async def test_runs_that_may_overlap_are_under_way_at_once(stage: Stage, clock: SteppedClock) -> None:
    """Overlap `allow`: the second begins while the first waits, other handlers answer, and both are committed."""

    async def hold(at: float) -> None:
        await gates["tick"].pass_through()

    stage.act = hold
    async with MemoryCluster(stage.declare("* * * * *", overlap="allow"), clock=clock) as memory:
        runner = await noon_comes(memory)
        await gates["tick"].came()
        await comes(memory, _noon + MINUTE)
        await gates["tick"].came(2)
        assert gates["tick"].inside == 2
        await runner.singleton(stage.singleton).poke()
        gates["tick"].open()
        await idle(memory)
        assert sorted(written(memory)) == [_noon, _noon + MINUTE]
        await until(lambda: row(memory).runs == 2, "two counts")


async def test_a_breaker_lets_a_schedule_rest_and_tries_again(stage: Stage, clock: SteppedClock) -> None:
    """Two failures open it, one trial after its cooldown fails, the next one succeeds and closes it."""
    fails = {_noon, _noon + MINUTE, _noon + 3 * MINUTE}

    async def fail(at: float) -> None:
        if at in fails:
            raise RuntimeError("no luck")

    stage.act = fail
    breaker = Breaker(failures=2, cooldown=timedelta(seconds=90))
    async with MemoryCluster(stage.declare("* * * * *", retry=ONCE, breaker=breaker), clock=clock) as memory:
        await noon_comes(memory)
        for number in range(7):
            await comes(memory, _noon + number * MINUTE)
            await until(lambda: sum(_counts(memory)) > number, "an outcome")  # noqa: B023 - awaited right here
        assert stage.began == [_noon + number * MINUTE for number in (0, 1, 3, 5, 6)]
        await ran(memory, _noon + 5 * MINUTE, _noon + 6 * MINUTE)
        await until(lambda: _counts(memory) == (2, 3, 2), "counts")
        assert row(memory).last_skip == "3 fire times in a row failed: 2026-11-27T12:04:00Z"
        assert row(memory).failures_in_a_row == 0


def _counts(memory: MemoryCluster) -> tuple[int, int, int]:
    found = row(memory)
    return found.runs, found.failures, found.skipped


class Twice(Diary, name="diary"):
    """Has two schedules on one method, and one on another."""

    @cron("* * * * *")
    @cron("*/2 * * * *")
    async def tick(self, at: datetime) -> None:
        self.state.append(at.timestamp())

    @cron("*/3 * * * *")
    async def tock(self, at: datetime) -> None:
        self.state.append(-at.timestamp())


async def test_schedules_of_one_singleton_have_their_own_fire_times_and_counts(clock: SteppedClock) -> None:
    """Two of one method run it twice where both have the fire time."""
    hub = Hub()
    hub.register(Twice)
    async with MemoryCluster(hub, clock=clock) as memory:
        await noon_comes(memory)
        for number in range(4):
            await comes(memory, _noon + number * MINUTE)
            await planned(memory, _noon + (number + 1) * MINUTE)
        await idle(memory)
        expected = [_noon + minute * MINUTE for minute in (0, 1, 2, 3, 0, 2)]
        expected += [-_noon, -_noon - 3 * MINUTE]
        assert sorted(written(memory)) == sorted(expected)
        await until(lambda: [row(memory, name).runs for name in ("tick", "tick-2", "tock")] == [4, 2, 2], "counts")


def _crowd(count: int) -> Hub:
    """Declare a singleton with many schedules that are all due at noon."""
    methods = {f"tick{number}": _scheduled(number) for number in range(count)}
    hub = Hub()
    hub.register(type("Many", (Diary,), methods, name="diary"))
    return hub


def _scheduled(number: int) -> object:
    @cron("0 12 * * *")
    async def tick(self: Diary, at: datetime) -> None:
        self.state.append(float(number))

    return tick


async def test_two_hundred_schedules_that_are_due_at_once_all_run(clock: SteppedClock) -> None:
    """Each once, and each is planned for the next day."""
    async with MemoryCluster(_crowd(200), clock=clock) as memory:
        await memory.start_runner()
        await until(lambda: len(memory.store.singletons.schedules("diary")) == 200, "all schedules")
        await at_time(memory, NOON - JUST)
        await until(lambda: len(written(memory)) == 200, "all runs")
        await idle(memory)
        assert sorted(written(memory)) == list(range(200))
        rows = memory.store.singletons.schedules("diary")
        assert {found.next_at for found in rows} == {_noon + DAY}
        await until(lambda: all(found.runs == 1 for found in memory.store.singletons.schedules("diary")), "counts")


@pytest.mark.parametrize("how", ["sleep", "deferred"])
async def test_a_fire_time_that_has_begun_is_never_too_old(stage: Stage, clock: SteppedClock, how: str) -> None:
    """It waits for two days, its runner is killed meanwhile, and it goes on where it was."""
    tokens: list[str] = []

    async def wait(at: float) -> None:
        if how == "sleep":
            await current().sleep(timedelta(days=2))
        else:
            deferred = current().deferred("approval", bool)
            tokens.append(deferred.token)
            await deferred.wait()

    stage.act = wait
    hub = stage.declare("0 12 27 * *", skip_if_older_than=timedelta(hours=1))
    async with MemoryCluster(hub, clock=clock) as memory:
        runner = await noon_comes(memory)
        await until(lambda: row(memory).last_at == _noon and _message(memory, _noon).attempts == 0, "a wait")
        await memory.kill(runner)
        clock.step(timedelta(days=2))
        runner = await memory.start_runner()
        await until(lambda: len(stage.began) == 2, "a second run")
        if how == "deferred":
            assert await runner.complete(tokens[0], True)
        await ran(memory, _noon)
        assert row(memory).skipped == 0


async def test_a_dead_letter_that_somebody_retries_is_run_however_old_it_is(stage: Stage, clock: SteppedClock) -> None:
    """It had its chance in time: who retries it wants it to be run."""

    async def fail_at_first(at: float) -> None:
        if len(stage.began) <= 3:
            raise RuntimeError("no luck")

    stage.act = fail_at_first
    hub = stage.declare("0 12 27 * *", skip_if_older_than=timedelta(minutes=1))
    async with MemoryCluster(hub, clock=clock) as memory:
        runner = await noon_comes(memory)
        await until(lambda: row(memory).failures == 1, "a failure")
        clock.step(timedelta(days=5))
        await runner.poll_storage()
        assert await runner.reset(_message(memory, _noon).message_id)
        await ran(memory, _noon)
        await until(lambda: row(memory).runs == 1, "a count")


async def test_health_tells_schedules_that_never_ran_from_overdue_ones(stage: Stage, clock: SteppedClock) -> None:
    """Never executed, healthy, overdue once two intervals passed, and healthy again."""
    clock.set(NOON - timedelta(minutes=10))
    async with MemoryCluster(stage.declare("0 * * * *"), clock=clock) as memory:
        runner = await memory.start_runner()
        assert (await planned(memory, _noon)).last_at is None
        assert (await _health(runner)).status == "never executed"
        await comes(memory, _noon)
        await ran(memory, _noon)
        assert (await _health(runner)).status == "healthy"
        (message,) = memory.store.messages.messages(MessageFilter(states=frozenset({MessageState.SCHEDULED})))
        assert await runner.cancel(message.message_id)
        await at_time(memory, moment(_noon + 2 * HOUR) - JUST)
        assert (await _health(runner)).status == "healthy"
        clock.step(timedelta(minutes=2))
        await runner.poll_storage()
        await until(lambda: len(stage.began) == 1 and row(memory).next_at == _noon + 3 * HOUR, "a plan")
        assert (await _health(runner)).status == "overdue"
        singleton = (await runner.health())[0].singletons[0]
        assert singleton.status == "unhealthy"
        await comes(memory, _noon + 3 * HOUR)
        await ran(memory, _noon, _noon + 3 * HOUR)
        assert (await _health(runner)).status == "healthy"
