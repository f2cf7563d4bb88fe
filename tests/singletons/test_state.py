"""State and metadata of singletons: what survives, what is forgiven, and what everybody can read about them."""

import random
from collections import defaultdict
from datetime import UTC, datetime, timedelta

import msgspec
import pytest

from actorhub import Cluster, Hub, Singleton, SingletonError, cron, current
from actorhub.cluster import part_of
from actorhub.core.backoff import Backoff
from actorhub.core.config import Settings
from actorhub.engine.singletons import leader, registry
from actorhub.engine.singletons.health import STALE_AFTER, is_stale
from actorhub.storage.ports import StoredState
from actorhub.testing import MemoryCluster, SteppedClock, until
from tests.singletons.diary import Diary, Notes, at_gate, for_ever, is_leading, leads, led, row, story
from tests.support.gates import failure, gates, outcomes, soon

DAY = timedelta(days=1)


class Kept(Singleton[Notes], name="kept", state_ttl=DAY):
    """Its state is forgotten after a day."""

    async def set(self, count: int) -> None:
        self.state.count = count

    async def read(self) -> Notes:
        return self.state


class Monthly(Singleton[int], name="monthly"):
    """Has a schedule that did not run yet."""

    @cron("0 0 1 1 *")
    async def new_year(self, at: datetime) -> None:
        self.state += 1


class Many(Singleton[int]):
    """One of fifty; keeps who changed it, and in which epoch."""

    async def add(self) -> tuple[int, int]:
        self.state += 1
        return self.state, current().epoch

    async def on_become_leader(self) -> None:
        history[current().entity_type].append(("leads", current().epoch))

    async def on_lose_leadership(self) -> None:
        history[current().entity_type].append(("lost", current().epoch))


history: defaultdict[str, list[tuple[str, int]]] = defaultdict(list)

hub = Hub()
hub.register(Diary)

kept_hub = Hub()
kept_hub.register(Kept)
kept_hub.register(Monthly)

many_hub = Hub()
MANY: list[type[Many]] = []
for _number in range(50):

    class One(Many, name=f"one-{_number}"):
        pass

    MANY.append(One)
    many_hub.register(One)


@pytest.fixture(autouse=True)
def new_story() -> None:
    """Begin a story per test."""
    story.clear()
    history.clear()


@pytest.fixture
def clock() -> SteppedClock:
    """A clock that the test sets."""
    return SteppedClock(datetime(2026, 11, 27, 12, tzinfo=UTC))


def encoded(**fields: object) -> bytes:
    return msgspec.msgpack.encode(fields)


async def test_the_state_survives_hand_overs_and_kills(memory: MemoryCluster) -> None:
    """It is loaded before the singleton starts, with everything that was committed."""

    async def become(me: Diary) -> None:
        story.seen["count"].append(me.state.count)
        me.state.count += 1

    story.act["on_become_leader"] = become
    for rounds in range(4):
        await memory.start_runner()
        await memory.start_runner()
        leader = await leads(memory)
        await leader.singleton(Diary).add(str(rounds))
        await memory.kill(leader)
        await leads(memory)
    assert (await memory.runners[0].singleton(Diary).read()).lines == ["0", "1", "2", "3"]
    counts = story.seen["count"]
    assert counts == sorted(counts)  # type: ignore[type-var]
    stored = memory.stored("diary", "diary")
    assert stored is not None
    assert stored.version == len(counts) + 4


async def test_a_state_of_another_release_is_read_as_far_as_possible(memory: MemoryCluster) -> None:
    """Fields that are unknown are carried along, new ones have their default."""
    memory.overwrite("diary", "diary", StoredState(7, encoded(lines=["old"], unseen=[1, 2])))
    runner = await memory.start_runner()
    assert await runner.singleton(Diary).read() == Notes(["old"], 0)
    assert await runner.singleton(Diary).add("new") == 2
    stored = memory.stored("diary", "diary")
    assert stored is not None
    expected = {"lines": ["old", "new"], "count": 0, "unseen": [1, 2]}
    assert (stored.version, msgspec.msgpack.decode(stored.data)) == (8, expected)


@pytest.mark.parametrize("data", [b"\xc1", b"", encoded(lines="no list"), b"\x93\x01"])
async def test_a_corrupt_state_is_counted_and_left_alone(
    memory: MemoryCluster, caplog: pytest.LogCaptureFixture, data: bytes
) -> None:
    """The singleton starts with its initial state; the bytes stay until the next commit."""
    memory.overwrite("diary", "diary", StoredState(7, data))
    runner = await memory.start_runner()
    assert await runner.singleton(Diary).read() == Notes()
    await until(lambda: row(memory).execution.state_errors == 1, "a note of it")
    assert row(memory).execution.state_error.startswith("schema_decode_failed: ")
    assert (await runner.health())[0].singletons[0].state_errors == 1
    assert "schema_decode_failed" in caplog.text
    stored = memory.stored("diary", "diary")
    assert stored is not None
    assert (stored.version, stored.data) == (7, data)
    await runner.singleton(Diary).add("fresh")
    stored = memory.stored("diary", "diary")
    assert stored is not None
    assert (stored.version, msgspec.msgpack.decode(stored.data)["lines"]) == (8, ["fresh"])
    await memory.stop(runner)
    second = await memory.start_runner()
    assert await second.singleton(Diary).read() == Notes(["fresh"])
    assert row(memory).execution.state_errors == 1


async def test_a_state_that_cannot_be_loaded_is_tried_again(memory: MemoryCluster) -> None:
    """A short outage is counted, and waited out."""

    async def cut_off(me: Diary) -> None:
        if story.ran["on_activate"] == 1:
            memory.store.available = False
            raise ConnectionError("now")

    story.act["on_activate"] = cut_off
    memory.overwrite("diary", "diary", StoredState(7, encoded(count=5)))
    runner = await memory.start_runner()
    one = led(runner)
    assert one is not None
    await until(lambda: one.execution.state_errors > 0, "a failed load")
    assert one.execution.state_error == "state_load_failed: the store is unreachable"
    memory.store.available = True
    assert (await runner.singleton(Diary).read()).count == 5


async def test_messages_hear_that_the_state_cannot_be_loaded(memory: MemoryCluster) -> None:
    """After four tries they fail typed, may be sent again, and nothing ran."""

    async def cut_off(me: Diary) -> None:
        await gates["cut"].pass_through()
        raise ConnectionError("now")

    story.act["on_activate"] = cut_off
    runner = await memory.start_runner()
    await gates["cut"].came()
    call = soon(failure(runner.singleton(Diary).read()))
    memory.store.available = False
    gates["cut"].open()
    error = await call
    memory.store.available = True
    if isinstance(error, SingletonError):
        assert error.reason == "state_load_failed"
        assert error.retryable
    assert not getattr(error, "possibly_executed", True)


async def test_a_save_is_tried_again_and_then_fails_typed(
    memory: MemoryCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each failure is counted; `run` gets `SingletonError(state_persist_failed)`, may go on, and save later."""
    monkeypatch.setattr(registry, "_SAVE_PAUSE", Backoff(initial=0.001, maximum=0.001))

    async def run(me: Diary) -> None:
        await gates["run"].pass_through()
        memory.store.available = False
        story.seen["error"].append(await failure(me.save(Notes(["first"]))))
        memory.store.available = True
        await me.save(Notes(["second"]))
        story.log.append("saved")
        await for_ever(me)

    story.act["run"] = run
    runner = await memory.start_runner()
    await leads(memory)
    gates["run"].open()
    await until(lambda: "saved" in story.log)
    (error,) = story.seen["error"]
    assert isinstance(error, SingletonError)
    assert error.reason == "state_persist_failed"
    assert error.retryable
    one = led(runner)
    assert one is not None
    assert one.execution.state_errors == 4
    assert one.execution.state_error.startswith("state_persist_failed: ")
    assert await runner.singleton(Diary).read() == Notes(["second"])


async def test_a_save_of_a_leader_that_lost_fails_typed_at_once(memory: MemoryCluster) -> None:
    """Refused is refused: it is not tried again, and the singleton is built again from what is stored."""

    async def run(me: Diary) -> None:
        if story.ran["run"] > 1:
            await for_ever(me)
        await gates["run"].pass_through()
        memory.overwrite("diary", "diary", StoredState(9, encoded(count=9)))
        try:
            await me.save(Notes(["refused"]))
        except SingletonError as error:
            story.seen["error"].append(error)
            raise

    story.act["run"] = run
    runner = await memory.start_runner()
    await leads(memory)
    gates["run"].open()
    await until(lambda: story.ran["run"] == 2)
    (error,) = story.seen["error"]
    assert isinstance(error, SingletonError)
    assert error.reason == "state_persist_failed"
    assert await runner.singleton(Diary).read() == Notes([], 9)


async def test_a_state_is_forgotten_after_its_time(clock: SteppedClock) -> None:
    """A leader that starts later than that after the last commit begins again; one that starts earlier does not."""
    async with MemoryCluster(kept_hub, clock=clock) as memory:
        runner = await memory.start_runner()
        await runner.singleton(Kept).set(5)
        clock.step(DAY - timedelta(minutes=1))
        await memory.stop(runner)
        runner = await memory.start_runner()
        assert (await runner.singleton(Kept).read()).count == 5
        clock.step(timedelta(minutes=2))
        assert (await runner.singleton(Kept).read()).count == 5
        await memory.stop(runner)
        runner = await memory.start_runner()
        assert (await runner.singleton(Kept).read()).count == 0
        await runner.singleton(Kept).set(6)
        await memory.stop(runner)
        runner = await memory.start_runner()
        assert (await runner.singleton(Kept).read()).count == 6


async def test_an_abandoned_singleton_is_cleaned_up(clock: SteppedClock) -> None:
    """State and row of one that nobody led for that long go; one that is led stays, however old its state."""
    async with MemoryCluster(kept_hub, clock=clock) as memory:
        runner = await memory.start_runner()
        await runner.singleton(Kept).set(5)
        await leads(memory, "kept")
        clock.step(2 * DAY)
        assert memory.store.singletons.remove_abandoned() == 0
        await memory.stop(runner)
        clock.step(2 * DAY)
        assert memory.store.singletons.remove_abandoned() == 1
        assert memory.stored("kept", "kept") is None
        assert [found.singleton for found in memory.store.singletons.singletons()] == ["monthly"]
        runner = await memory.start_runner()
        assert await runner.singleton(Kept).read() == Notes()


async def test_the_metadata_say_who_leads(memory: MemoryCluster) -> None:
    """Leader, incarnation, epoch and since when, in the store and in the health, until nobody does."""
    story.act["run"] = for_ever
    runner = await memory.start_runner()
    await leads(memory)
    await until(lambda: row(memory).execution.executions == 1)
    assert runner.runner is not None
    stored = row(memory)
    shard = runner.shard_of(Diary, "diary")
    assert (stored.leader, stored.incarnation) == (runner.runner.address, runner.runner.incarnation)
    assert (stored.shard, stored.epoch, stored.entity_id) == (shard, 1, "diary")
    (health,) = await runner.health()
    (one,) = health.singletons
    assert (health.serving, health.reason) == (True, "")
    assert (one.name, one.shard, one.epoch, one.since, one.state) == ("diary", str(shard), 1, stored.since, "leading")
    assert (one.body, one.executions, one.last_execution, one.status) == ("running", 1, "run", "healthy")
    assert one.heartbeat_at == pytest.approx(stored.heartbeat_at, abs=0.1)
    assert not one.is_stale
    await memory.stop(runner)
    assert row(memory).leader == ""
    assert row(memory).epoch == 1
    second = await memory.start_runner()
    await leads(memory)
    assert row(memory).epoch == 2
    assert row(memory).since > stored.since
    assert second.runner is not None
    assert row(memory).leader == second.runner.address
    await until(lambda: row(memory).execution.executions == 2, "both leaders' runs")


async def test_a_client_asks_every_runner_how_it_is(memory: MemoryCluster) -> None:
    """Each singleton is in the health of exactly one."""
    for _ in range(3):
        await memory.start_runner()
    await memory.settled()
    await leads(memory)
    client = await memory.client()
    await memory.settled()
    found = await client.health()
    assert len(found) == 3
    assert [one.name for health in found for one in health.singletons] == ["diary"]


def test_stale_is_decided_strictly() -> None:
    """By the last sign of life, a former leader's too; where there never was one, since the leader began."""
    assert not is_stale(heartbeat_at=100.0, since=0.0, now=100.0 + STALE_AFTER)
    assert is_stale(heartbeat_at=100.0, since=0.0, now=100.1 + STALE_AFTER)
    assert is_stale(heartbeat_at=100.0, since=150.0, now=161.0)
    assert not is_stale(heartbeat_at=None, since=100.0, now=100.0 + STALE_AFTER)
    assert is_stale(heartbeat_at=None, since=100.0, now=100.1 + STALE_AFTER)


async def test_an_old_sign_of_life_counts_until_the_new_leader_shows_itself(clock: SteppedClock) -> None:
    """Right after a move the runner is not serving, as long as the singleton that it leads does not get up."""
    async with MemoryCluster(hub, clock=clock) as memory:
        first = await memory.start_runner()
        await leads(memory)
        await memory.stop(first)
        clock.step(timedelta(seconds=STALE_AFTER + 1))
        story.act["on_become_leader"] = at_gate("start")
        second = await memory.start_runner()
        await gates["start"].came()
        (health,) = await second.health()
        assert not health.serving
        assert "diary" in health.reason
        assert (health.singletons[0].status, health.singletons[0].state) == ("stale", "starting")
        gates["start"].open()
        await leads(memory)
        await until(lambda: led(second).health().status == "healthy", "a sign of life")  # type: ignore[union-attr]
        (health,) = await second.health()
        assert health.serving


async def test_a_step_of_the_clock_makes_nobody_stale(clock: SteppedClock) -> None:
    """A sign of life is as old as it is by this process's own clock, whatever the store's shows."""
    async with MemoryCluster(hub, clock=clock) as memory:
        runner = await memory.start_runner()
        await leads(memory)
        one = led(runner)
        assert one is not None
        for hours in (1, -2, 1):
            clock.step(timedelta(hours=hours))
            one.on_execution_started("something")
            await until(lambda: row(memory).execution == one.execution, "a note")  # `run` may begin meanwhile
            await until(lambda: abs(one.health().since - row(memory).since) < 1)
            assert not one.health().is_stale
            assert (await runner.health())[0].serving


async def test_heartbeats_go_on(memory: MemoryCluster, monkeypatch: pytest.MonkeyPatch) -> None:
    """They come at their interval, whatever the singleton does, also while a handler has its turn for long."""
    monkeypatch.setattr(leader, "HEARTBEAT", 0.02)
    story.act["hold"] = at_gate("hold")
    runner = await memory.start_runner()
    await leads(memory)
    call = soon(runner.singleton(Diary).do("hold"))
    await gates["hold"].came()
    seen = {row(memory).heartbeat_at}
    for _ in range(3):
        await until(lambda: row(memory).heartbeat_at not in seen, "a further heartbeat")
        seen.add(row(memory).heartbeat_at)
    gates["hold"].open()
    assert await call


async def test_never_executed_is_told_from_healthy(clock: SteppedClock) -> None:
    """One with a schedule that had no fire time yet has not run; one that has nothing to run is healthy."""
    async with MemoryCluster(kept_hub, clock=clock) as memory:
        runner = await memory.start_runner()
        await leads(memory, "kept")
        await leads(memory, "monthly")
        kept, monthly = (await runner.health())[0].singletons
        assert (kept.status, kept.last_execution_at) == ("healthy", None)
        assert (monthly.status, monthly.last_execution_at) == ("never executed", None)


@pytest.mark.parametrize("seed", range(3))
async def test_fifty_singletons_over_three_runners(seed: int) -> None:
    """Through kills, stops and starts: each alive once, epochs never fall, and every committed change is there."""
    chance = random.Random(seed)
    acknowledged: defaultdict[int, list[tuple[int, int]]] = defaultdict(list)
    settings = Settings(shards_per_group=16, grace=timedelta(seconds=2))
    async with MemoryCluster(many_hub, settings=settings) as memory:
        for _ in range(3):
            await memory.start_runner()
        client = await memory.client()

        async def call(number: int) -> None:
            found = await outcomes(client.singleton(MANY[number], timeout=timedelta(seconds=20)).add())
            if isinstance(found[0], tuple):
                acknowledged[number].append(found[0])

        for _ in range(12):
            calls = [soon(call(chance.randrange(50))) for _ in range(30)]
            match chance.randrange(3):
                case 0:
                    await memory.kill(chance.choice(memory.runners))
                    await memory.start_runner()
                case 1:
                    await memory.stop(chance.choice(memory.runners))
                    await memory.start_runner()
                case _:
                    incarnation = part_of(chance.choice(memory.runners)).node.incarnation
                    memory.store.terminate_sessions(incarnation)
            for one in calls:
                await one
        await memory.settled()
        for number, cls in enumerate(MANY):
            name = f"one-{number}"
            leader = await leads(memory, name)
            assert [runner for runner in memory.runners if is_leading(runner, name)] == [leader]
            stored = memory.stored(name, name)
            version = 0 if stored is None else stored.version
            state, _ = await client.singleton(cls).add()
            assert state == version + 1
            counts = [count for count, _ in acknowledged[number]]
            epochs = [epoch for _, epoch in sorted(acknowledged[number])]
            assert len(set(counts)) == len(counts)
            assert all(count <= version for count in counts)
            assert epochs == sorted(epochs)
            led_in = [epoch for what, epoch in history[name] if what == "leads"]
            assert led_in == sorted(set(led_in))


async def test_a_health_is_plain_data(runner: Cluster) -> None:
    """It travels."""
    await until(lambda: is_leading(runner))
    (health,) = await runner.health()
    assert msgspec.msgpack.decode(msgspec.msgpack.encode(health), type=type(health)).singletons[0].name == "diary"
