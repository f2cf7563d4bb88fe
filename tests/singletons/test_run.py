"""`run`: it starts, fails, returns, is cancelled, and goes on elsewhere."""

import asyncio
from datetime import timedelta
from itertools import pairwise

import pytest

from actorhub import CallTimeout, Cluster, EntityError, Hub, NotConnected, Singleton, current
from actorhub.core.backoff import Backoff
from actorhub.core.config import Settings
from actorhub.engine.singletons import leader
from actorhub.testing import MemoryCluster, until
from tests.singletons.diary import Diary, Notes, at_gate, for_ever, is_leading, leads, led, row, story
from tests.support.gates import failure, gates, outcomes, soon
from tests.support.parts import host_of


class Stateless(Singleton, name="stateless"):
    """Has steps and no state."""

    async def run(self) -> None:
        story.seen["step"].append(await current().step("count", _count))
        await gates["stateless"].pass_through()

    async def ping(self) -> str:
        return "pong"


def _count() -> int:
    story.ran["step"] += 1
    return story.ran["step"]


class Odd(EntityError):
    number: int


hub = Hub()
hub.register(Diary)

stateless_hub = Hub()
stateless_hub.register(Stateless)


@pytest.fixture(autouse=True)
def new_story() -> None:
    """Begin a story per test."""
    story.clear()


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have pauses between failed runs be short."""
    monkeypatch.setattr(leader, "_BACKOFF", Backoff(initial=0.005, maximum=0.02))


async def body_is(runner: Cluster, what: str, name: str = "diary") -> None:
    """Wait until `run` is that."""

    def is_so() -> bool:
        one = led(runner, name)
        return one is not None and one.execution.body == what

    await until(is_so, f"a run that is {what}")


async def test_a_run_that_raises_is_started_again_with_growing_pauses(memory: MemoryCluster) -> None:
    """On its own, without a new activation; the metadata count and say what happened."""
    began: list[float] = []

    async def run(me: Diary) -> None:
        began.append(memory.clock.monotonic())
        if story.ran["run"] <= 3:
            raise LookupError(f"number {story.ran['run']}")
        await for_ever(me)

    story.act["run"] = run
    runner = await memory.start_runner()
    await until(lambda: story.ran["run"] == 4)
    pauses = [after - before for before, after in pairwise(began)]
    assert pauses[0] >= 0.05
    assert pauses[2] >= 0.2
    assert story.log == ["on_activate", "on_become_leader", *["run"] * 4]
    await until(lambda: row(memory).execution.executions == 4, "notes of four starts")
    execution = row(memory).execution
    assert execution.last_execution == "run"
    assert execution.body == "running"
    assert execution.last_error == "HandlerFailed: LookupError: number 3"
    assert execution.last_error_at is not None
    assert await runner.singleton(Diary).add("alive") == 1


async def test_a_run_that_failed_is_unhealthy_until_it_runs_again(memory: MemoryCluster) -> None:
    """The health says so, and the singleton answers meanwhile."""

    async def run(me: Diary) -> None:
        if story.ran["run"] <= 5:
            raise Odd(number=story.ran["run"])
        await for_ever(me)

    story.act["run"] = run
    runner = await memory.start_runner()
    await body_is(runner, "failed")
    (health,) = (await runner.health())[0].singletons
    assert health.status == "unhealthy"
    assert "Odd" in health.last_error
    assert await runner.singleton(Diary).read() == Notes()
    await body_is(runner, "running")


async def test_what_a_failed_run_changed_and_did_not_save_is_undone(memory: MemoryCluster, quick: None) -> None:
    """Each try starts from what is committed."""

    async def run(me: Diary) -> None:
        me.state.lines.append(f"try {story.ran['run']}")
        if story.ran["run"] == 2:
            await me.save()
        if story.ran["run"] < 4:
            raise ValueError("again")
        await me.save()
        await for_ever(me)

    story.act["run"] = run
    runner = await memory.start_runner()
    await until(lambda: (stored := memory.stored("diary", "diary")) is not None and stored.version == 2)
    assert (await runner.singleton(Diary).read()).lines == ["try 2", "try 4"]


async def test_a_run_that_returns_leaves_the_singleton_alive(memory: MemoryCluster) -> None:
    """It answers, is not started again, and what it changed is committed; the next leader starts `run` again."""

    async def run(me: Diary) -> None:
        me.state.lines.append("done")

    story.act["run"] = run
    runner = await memory.start_runner()
    await body_is(runner, "returned")
    await until(lambda: row(memory).execution.body == "returned", "its note")
    assert await runner.singleton(Diary).add("alive") == 2
    assert story.ran["run"] == 1
    health = (await runner.health())[0].singletons[0]
    assert (health.status, health.executions, health.last_error) == ("healthy", 1, "")
    assert health.last_duration is not None
    second = await memory.start_runner()
    await memory.stop(runner)
    await body_is(second, "returned")
    assert (await second.singleton(Diary).read()).lines == ["done", "alive", "done"]


async def test_a_hand_over_is_no_error_of_run(memory: MemoryCluster) -> None:
    """It is cancelled, and the metadata neither say that it failed nor forget how long it took."""
    story.act["run"] = for_ever
    runner = await memory.start_runner()
    await body_is(runner, "running")
    await memory.stop(runner)
    execution = row(memory).execution
    assert (execution.body, execution.last_error, execution.executions) == ("", "", 1)
    assert execution.last_duration is not None


async def test_a_run_is_not_left_running_when_its_runner_goes(memory: MemoryCluster) -> None:
    """A hand-over waits for nothing that `run` waits for."""

    async def run(me: Diary) -> None:
        async with asyncio.TaskGroup() as tasks:
            for _ in range(3):
                tasks.create_task(gates["child"].pass_through())

    story.act["run"] = run
    runner = await memory.start_runner()
    await gates["child"].came(3)
    async with asyncio.timeout(1):
        await memory.stop(runner)
    assert gates["child"].left == ["cancelled"] * 3


async def test_a_hand_over_at_any_moment_of_its_start_is_quick(memory: MemoryCluster) -> None:
    """Wherever the start is when the runner leaves, nothing waits for the grace time."""
    story.act["run"] = for_ever
    for rounds in range(12):
        runner = await memory.start_runner()
        for _ in range(rounds):
            await asyncio.sleep(0)
        async with asyncio.timeout(1):
            await memory.stop(runner)
    assert story.alive == 0
    assert story.ran["on_become_leader"] == story.ran["on_lose_leadership"]
    assert row(memory).leader == ""


async def test_a_run_that_swallows_its_cancellation_and_returns_is_fine(memory: MemoryCluster) -> None:
    """It has the time that handlers have."""

    async def run(me: Diary) -> None:
        try:
            await for_ever(me)
        except asyncio.CancelledError:
            await asyncio.sleep(0.02)
            story.log.append("cleaned up")

    story.act["run"] = run
    runner = await memory.start_runner()
    await until(lambda: "run" in story.log)
    await memory.stop(runner)
    assert story.log[-3:] == ["cleaned up", "on_lose_leadership", "on_deactivate"]


async def test_messages_are_no_reason_to_wait_for_run(memory: MemoryCluster) -> None:
    """With a full mailbox `run` starts nevertheless, in its turn."""
    story.act |= {"run": for_ever, "on_become_leader": at_gate("start")}
    runner = await memory.start_runner()
    await gates["start"].came()
    calls = soon(outcomes(*(runner.singleton(Diary).add(str(n)) for n in range(5))))
    await asyncio.sleep(0.01)
    gates["start"].open()
    assert await calls == [1, 2, 3, 4, 5]
    await until(lambda: "run" in story.log)


async def test_current_knows_run(memory: MemoryCluster) -> None:
    """Type, id, epoch, and that it leads; a tell leaves at once, since `run` has no end that would commit it."""

    async def run(me: Diary) -> None:
        here = current()
        story.seen["here"].append((here.entity_type, here.entity_id, here.epoch, here.is_leader, here.deadline))
        await here.tell(here.singleton(Diary).add("told"))
        await for_ever(me)

    story.act["run"] = run
    runner = await memory.start_runner()
    await until(lambda: bool(story.seen["here"]))
    assert story.seen["here"] == [("diary", "diary", 1, True, None)]

    async def lines() -> list[str]:
        return (await runner.singleton(Diary).read()).lines

    async with asyncio.timeout(5):
        while await lines() != ["told"]:
            await asyncio.sleep(0.005)


async def test_the_steps_of_a_run_without_state_end_with_it() -> None:
    """A run that returned, or saved, begins its steps again the next time; one that was cut short finds them."""
    async with MemoryCluster(stateless_hub) as memory:
        await memory.start_runner()
        await gates["stateless"].came()
        await memory.start_runner()
        await memory.stop(memory.runners[0])
        await gates["stateless"].came(2)
        assert story.seen["step"] == [1, 1]
        gates["stateless"].open()
        await body_is(memory.runners[0], "returned", "stateless")
        await memory.start_runner()
        await memory.stop(memory.runners[0])
        await body_is(memory.runners[0], "returned", "stateless")
        assert story.seen["step"] == [1, 1, 2]
        assert await memory.runners[0].singleton(Stateless).ping() == "pong"


async def test_save_is_for_handlers_and_run_of_the_singleton(memory: MemoryCluster) -> None:
    """Outside of them it says so."""
    await memory.start_runner()
    await leads(memory)
    error = await failure(Diary().save())
    assert isinstance(error, RuntimeError)
    with pytest.raises(NotConnected):
        current()


async def test_a_caller_that_gives_up_ends_its_own_call_alone(cluster: Cluster) -> None:
    """`run`, and the singleton, go on."""
    story.act |= {"run": for_ever, "slow": at_gate("slow")}
    error = await failure(cluster.singleton(Diary, timeout=timedelta(milliseconds=50)).do("slow"))
    assert isinstance(error, CallTimeout)
    assert gates["slow"].left == ["cancelled"]
    assert await cluster.singleton(Diary).add("after") == 1
    assert "run cancelled" not in story.log


async def test_a_run_whose_commits_are_refused_does_not_spin(memory: MemoryCluster) -> None:
    """Each refusal costs the shard, and it is acquired again; the pauses grow nevertheless, from leader to leader."""
    began: list[float] = []

    async def run(me: Diary) -> None:
        began.append(memory.clock.monotonic())
        if len(began) > 4:
            await for_ever(me)
        (cell,) = host_of(memory.runners[0]).cells()
        assert cell.record is not None
        cell.record.version += 7
        await me.save(Notes(["refused"]))

    story.act["run"] = run
    runner = await memory.start_runner()
    await until(lambda: len(began) == 5)
    pauses = [after - before for before, after in pairwise(began)]
    assert pauses[0] >= 0.05
    assert pauses[3] >= 0.4
    assert story.most_alive == 1
    one = led(runner)
    assert one is not None
    assert one.leadership.epoch >= 3, "it was acquired again"


async def test_a_run_that_swallows_its_cancellation_is_left_behind(
    memory: MemoryCluster, caplog: pytest.LogCaptureFixture
) -> None:
    """A second after the hand-over began: its activation is dropped, the log has its stack, and the next one leads."""

    async def run(me: Diary) -> None:
        story.log.append(f"{current().runner.address} runs")
        if story.ran["run"] > 1:
            await for_ever(me)
        await never_mind(me)

    async def never_mind(me: Diary) -> None:
        while not gates["enough"].entered:
            try:
                await asyncio.sleep(0.05)
            except asyncio.CancelledError:
                story.log.append("never mind")
        me.state.lines.append("too late")
        story.seen["save"].append(await failure(me.save()))

    memory.settings = Settings(shards_per_group=16, grace=timedelta(seconds=10))
    story.act["run"] = run
    runner = await memory.start_runner()
    await until(lambda: story.ran["run"] == 1)
    second = await memory.start_runner()
    began = memory.clock.monotonic()
    leaving = soon(memory.stop(runner))
    await until(lambda: is_leading(second), deadline=4.0)
    assert 0.9 < memory.clock.monotonic() - began < 3
    (said,) = [record.getMessage() for record in caplog.records if "went on 1 s" in record.getMessage()]
    assert "diary.run(diary)" in said
    assert "never_mind" in said
    _ = soon(gates["enough"].pass_through())
    await until(lambda: bool(story.seen["save"]))
    assert (await second.singleton(Diary).read()).lines == []
    await leaving
    assert story.ran["on_lose_leadership"] == 1


async def test_a_run_that_fails_at_once_over_and_over_does_not_spin(memory: MemoryCluster) -> None:
    """Its pauses grow, so that it takes no more than a few tries in half a second."""

    async def run(me: Diary) -> None:
        raise ValueError("always")

    story.act["run"] = run
    runner = await memory.start_runner()
    await until(lambda: is_leading(runner))
    await asyncio.sleep(0.5)
    assert 2 <= story.ran["run"] <= 6
