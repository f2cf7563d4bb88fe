"""Runs that let others have the turn while they wait: between two awaits nothing else runs, and nobody starves."""

import asyncio
from contextlib import suppress
from datetime import UTC, datetime, timedelta

import pytest

from actorhub import Cluster, HandlerFailed, Hub, Singleton, cron, current
from actorhub.testing import MemoryCluster, SteppedClock, until
from tests.singletons.diary import Diary, Notes, at_gate, for_ever, is_leading, led, pause, story
from tests.support.gates import failure, gates, outcomes, soon

overlapping: list[str] = []


class Overlapping(Singleton[list[str]], name="overlapping"):
    """Its schedule's runs may overlap."""

    @cron("* * * * * *", overlap="allow")
    async def tick(self, at: datetime) -> None:
        overlapping.append("began")
        seen = list(self.state)
        self.state.append("first half")
        assert self.state == [*seen, "first half"]
        await gates["tick"].pass_through()
        self.state.append("second half")
        overlapping.append("ended")

    async def read(self) -> list[str]:
        return self.state


hub = Hub()
hub.register(Diary)

overlapping_hub = Hub()
overlapping_hub.register(Overlapping)


@pytest.fixture(autouse=True)
def new_story() -> None:
    """Begin a story per test."""
    story.clear()
    overlapping.clear()


async def test_a_handler_is_answered_while_run_waits(memory: MemoryCluster) -> None:
    """A `run` that waits forever holds up nobody."""
    story.act["run"] = for_ever
    runner = await memory.start_runner()
    await until(lambda: "run" in story.log)
    assert await outcomes(*(runner.singleton(Diary).add(str(n)) for n in range(5))) == [1, 2, 3, 4, 5]


async def test_run_does_not_go_on_while_a_handler_is_suspended(memory: MemoryCluster) -> None:
    """A handler in the middle of a change is not seen by `run`, whatever that waited for."""
    go = asyncio.Event()

    async def run(me: Diary) -> None:
        await go.wait()
        story.seen["run"].append(list(me.state.lines))
        await for_ever(me)

    async def half(me: Diary) -> None:
        me.state.lines.append("first half")
        await gates["half"].pass_through()
        me.state.lines.append("second half")

    story.act |= {"run": run, "half": half}
    runner = await memory.start_runner()
    await until(lambda: "run" in story.log)
    call = soon(runner.singleton(Diary).do("half"))
    await gates["half"].came()
    go.set()
    await asyncio.sleep(0.03)
    assert story.seen["run"] == []
    gates["half"].open()
    assert await call
    await until(lambda: story.seen["run"] == [["first half", "second half"]])


async def test_run_is_alone_between_two_awaits(memory: MemoryCluster) -> None:
    """What it changes and saves without another await in between is never mixed with a handler's change."""

    async def run(me: Diary) -> None:
        while True:
            await asyncio.sleep(0)
            me.state.count += 1
            await me.save()

    async def add(me: Diary) -> None:
        before = me.state.count
        me.state.count += 1
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        assert me.state.count == before + 1
        story.seen["added"].append(1)

    story.act |= {"run": run, "add": add}
    runner = await memory.start_runner()
    await until(lambda: "run" in story.log)
    for _ in range(20):
        assert await outcomes(*(runner.singleton(Diary).do("add") for _ in range(4))) == ["1"] * 4
    count = (await runner.singleton(Diary).read()).count
    assert count > 80
    assert len(story.seen["added"]) == 80


async def test_a_run_that_never_rests_starves_nobody(memory: MemoryCluster) -> None:
    """The mailbox is served between any two of its steps."""

    async def run(me: Diary) -> None:
        while True:
            story.ran["step"] += 1
            await asyncio.sleep(0)

    story.act["run"] = run
    runner = await memory.start_runner()
    await until(lambda: story.ran["step"] > 10)
    before = story.ran["step"]
    async with asyncio.timeout(5):
        for n in range(50):
            await runner.singleton(Diary).add(str(n))
    assert story.ran["step"] - before < 5000


async def test_a_flood_of_messages_does_not_starve_run(memory: MemoryCluster) -> None:
    """A mailbox that is never empty lets `run` take its steps in between."""

    async def run(me: Diary) -> None:
        while True:
            await asyncio.sleep(0)
            story.ran["step"] += 1

    story.act |= {"run": run, "slow": pause(0.001)}
    runner = await memory.start_runner()
    await until(lambda: story.ran["step"] > 0)
    steps, handled = story.ran["step"], 0
    async with asyncio.timeout(10):
        while handled < 60:
            handled += len(await outcomes(*(runner.singleton(Diary).do("slow") for _ in range(5))))
    assert story.ran["step"] - steps >= 40


async def test_overlapping_readers_do_not_starve_run(memory: MemoryCluster) -> None:
    """Readers that come one after the other, each before the last one ends, let a waiting `run` in."""
    go = asyncio.Event()

    async def run(me: Diary) -> None:
        await go.wait()
        story.log.append("went on")
        await for_ever(me)

    story.act |= {"run": run, "read": pause(0.03)}
    runner = await memory.start_runner()
    await until(lambda: "run" in story.log)

    async def keep_reading() -> None:
        while "went on" not in story.log:
            await runner.singleton(Diary).look("read")

    readers = []
    for _ in range(4):
        readers.append(soon(keep_reading()))
        await asyncio.sleep(0.008)
    go.set()
    async with asyncio.timeout(2):
        for reader in readers:
            await reader


async def test_timeouts_and_task_groups_work_in_run(memory: MemoryCluster) -> None:
    """`asyncio.timeout`, a failing group, and a child that saves."""

    async def child(me: Diary, number: int) -> None:
        await asyncio.sleep(0.001 * number)
        me.state.lines.append(f"child {number}")
        await me.save()

    async def wrong() -> None:
        raise LookupError("inside")

    async def run(me: Diary) -> None:
        try:
            async with asyncio.timeout(0.01):
                await for_ever(me)
        except TimeoutError:
            story.log.append("timed out")
        try:
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(wrong())
                await for_ever(me)
        except* LookupError:
            story.log.append("group failed")
        async with asyncio.TaskGroup() as tasks:
            for number in range(3):
                tasks.create_task(child(me, number))
        story.log.append("done")

    story.act["run"] = run
    runner = await memory.start_runner()
    await until(lambda: "done" in story.log)
    assert story.log[2:] == ["run", "timed out", "group failed", "done"]
    assert (await runner.singleton(Diary).read()).lines == ["child 0", "child 1", "child 2"]


async def test_a_timeout_that_ends_while_run_waits_for_its_turn_is_one(memory: MemoryCluster) -> None:
    """Cancellation that comes while a handler has the turn is raised once `run` has it; the handler goes on."""
    go = asyncio.Event()

    async def run(me: Diary) -> None:
        try:
            async with asyncio.timeout(0.05):
                await go.wait()
                story.log.append("went on")
                await for_ever(me)
        except TimeoutError:
            story.log.append("timed out")
        await for_ever(me)

    story.act |= {"run": run, "hold": at_gate("hold")}
    runner = await memory.start_runner()
    await until(lambda: "run" in story.log)
    call = soon(runner.singleton(Diary).do("hold"))
    await gates["hold"].came()
    go.set()
    await asyncio.sleep(0.1)
    assert story.log[2:] == ["run", "hold"]
    gates["hold"].open()
    assert await call
    await until(lambda: story.log[-1] == "timed out")
    assert await runner.singleton(Diary).add("x") == 1


async def test_a_save_waits_for_a_handler_in_the_middle_of_a_change(memory: MemoryCluster) -> None:
    """A child of `run` that saves while a handler is suspended neither stores half of its change nor loses it."""
    go = asyncio.Event()

    async def child(me: Diary) -> None:
        await go.wait()
        story.log.append("saving")
        await me.save()
        story.log.append("saved")

    async def run(me: Diary) -> None:
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(child(me))
            await for_ever(me)

    async def half(me: Diary) -> None:
        me.state.lines.append("first half")
        await gates["half"].pass_through()
        me.state.lines.append("second half")

    story.act |= {"run": run, "half": half}
    runner = await memory.start_runner()
    await until(lambda: "run" in story.log)
    call = soon(runner.singleton(Diary).do("half"))
    await gates["half"].came()
    go.set()
    await until(lambda: "saving" in story.log)
    await asyncio.sleep(0.03)
    assert "saved" not in story.log
    assert memory.stored("diary", "diary") is None
    gates["half"].open()
    assert await call
    await until(lambda: "saved" in story.log)
    assert (await runner.singleton(Diary).read()).lines == ["first half", "second half"]
    stored = memory.stored("diary", "diary")
    assert stored is not None
    assert stored.version == 1


async def test_a_save_that_is_cancelled_while_it_waits_changes_nothing(memory: MemoryCluster) -> None:
    """The turn that it waited for goes to the next one; `run` and handlers go on."""
    go = asyncio.Event()

    async def run(me: Diary) -> None:
        await go.wait()
        with suppress(TimeoutError):
            async with asyncio.timeout(0.02), asyncio.TaskGroup() as tasks:
                tasks.create_task(me.save(Notes(["never"])))
        story.log.append("gave up")
        await for_ever(me)

    async def half(me: Diary) -> None:
        await gates["half"].pass_through()
        me.state.lines.append("handled")

    story.act |= {"run": run, "half": half}
    runner = await memory.start_runner()
    await until(lambda: "run" in story.log)

    async def release(me: Diary) -> None:
        go.set()

    story.act["release"] = release
    await runner.singleton(Diary).do("release")
    call = soon(runner.singleton(Diary).do("half"))
    await gates["half"].came()
    await asyncio.sleep(0.05)
    gates["half"].open()
    assert await call
    await until(lambda: "gave up" in story.log)
    assert await runner.singleton(Diary).add("next") in (2, 3)


async def test_a_task_that_outlives_run_cannot_save(memory: MemoryCluster) -> None:
    """Its turn is over: it fails, and leaves the singleton's turns in order."""
    later: list[asyncio.Task[None]] = []

    async def straggler(me: Diary, name: str) -> None:
        await gates[name].pass_through()
        story.seen[name].append(await failure(me.save()))

    async def run(me: Diary) -> None:
        later.append(soon(straggler(me, "late")))
        later.append(soon(straggler(me, "waiting")))
        await gates["run"].pass_through()

    story.act |= {"run": run, "hold": at_gate("hold")}
    runner = await memory.start_runner()
    await gates["run"].came()
    call = soon(runner.singleton(Diary).do("hold"))
    await gates["hold"].came()
    gates["waiting"].open()
    gates["run"].open()
    await asyncio.sleep(0.02)
    gates["hold"].open()
    assert await call
    one = led(runner)
    assert one is not None
    await until(lambda: one.execution.body == "returned")
    gates["late"].open()
    async with asyncio.timeout(2):
        for task in later:
            await task
    for name in ("late", "waiting"):
        (error,) = story.seen[name]
        assert isinstance(error, RuntimeError)
    assert await outcomes(*(runner.singleton(Diary).add(str(n)) for n in range(3))) == [1, 2, 3]
    assert one.cell is not None
    assert (one.cell.load, one.cell.nested, one.cell.returning) == (0, 0, None)


async def test_a_failing_handler_does_not_undo_what_run_saved(memory: MemoryCluster) -> None:
    """Its rollback goes to what is committed; what `run` changed and did not save goes with it, as documented."""
    steps = [asyncio.Event() for _ in range(2)]

    async def run(me: Diary) -> None:
        me.state.lines.append("saved")
        await me.save()
        me.state.lines.append("not saved")
        steps[0].set()
        await steps[1].wait()
        me.state.lines.append("later")
        await me.save()
        await for_ever(me)

    async def fail(me: Diary) -> None:
        me.state.lines.append("wrong")
        raise ValueError("no")

    story.act |= {"run": run, "fail": fail}
    runner = await memory.start_runner()
    await steps[0].wait()
    assert isinstance(await failure(runner.singleton(Diary).do("fail")), HandlerFailed)
    assert (await runner.singleton(Diary).read()).lines == ["saved"]
    steps[1].set()
    await until(lambda: (stored := memory.stored("diary", "diary")) is not None and stored.version == 2)
    assert (await runner.singleton(Diary).read()).lines == ["saved", "later"]


async def test_a_reentrant_handler_runs_inside_a_handlers_turn_not_runs(memory: MemoryCluster) -> None:
    """A call that comes back is answered, while `run` goes on waiting for the outer one's end."""
    go = asyncio.Event()

    async def run(me: Diary) -> None:
        await go.wait()
        story.log.append("run went on")
        await for_ever(me)

    async def outer(me: Diary) -> None:
        go.set()
        await asyncio.sleep(0)
        await current().singleton(Diary).nested("inner")
        story.log.append("outer ends")

    story.act |= {"run": run, "outer": outer}
    runner = await memory.start_runner()
    await until(lambda: "run" in story.log)
    async with asyncio.timeout(5):
        await runner.singleton(Diary).do("outer")
    await until(lambda: "run went on" in story.log)
    assert story.log[-4:] == ["outer", "inner", "outer ends", "run went on"]


async def test_run_may_call_its_own_singleton(memory: MemoryCluster) -> None:
    """It waits for the reply and lends its turn meanwhile, so there is no deadlock."""

    async def run(me: Diary) -> None:
        story.seen["reply"].append(await current().singleton(Diary).add("by run"))

    story.act["run"] = run
    await memory.start_runner()
    await until(lambda: story.seen["reply"] == [1])


async def test_readonly_handlers_run_beside_each_other_while_run_waits(memory: MemoryCluster) -> None:
    """`run` that waits is neither a reader nor a writer."""
    story.act |= {"run": for_ever, "look": at_gate("look")}
    runner = await memory.start_runner()
    await until(lambda: "run" in story.log)
    calls = soon(outcomes(*(runner.singleton(Diary).look("look") for _ in range(3))))
    await gates["look"].came(3)
    gates["look"].open()
    assert await calls == [0, 0, 0]


async def test_overlapping_schedules_are_runs_like_that() -> None:
    """Several fire times run at once, each is alone between two awaits, and each commits what it changed."""
    clock = SteppedClock(datetime(2026, 11, 27, 12, tzinfo=UTC) - timedelta(seconds=0.05))
    async with MemoryCluster(overlapping_hub, clock=clock) as memory:
        runner = await memory.start_runner()
        await gates["tick"].came(2)
        assert await runner.singleton(Overlapping).read() == ["first half"] * 2
        gates["tick"].open()
        await until(lambda: overlapping.count("ended") >= 2)
        state = await runner.singleton(Overlapping).read()
        assert state.count("second half") >= 2
        assert is_leading(runner, "overlapping")


async def test_the_mailbox_order_holds_beside_run(cluster: Cluster) -> None:
    """Messages of one sender start in the order in which they were sent, whatever `run` does."""

    async def run(me: Diary) -> None:
        while True:
            await asyncio.sleep(0)

    story.act["run"] = run
    for start in range(0, 40, 4):
        assert await outcomes(*(cluster.singleton(Diary).add(str(start + n)) for n in range(4)))
    assert (await cluster.singleton(Diary).read()).lines == [str(n) for n in range(40)]


async def test_a_hand_over_in_the_middle_of_everything_leaves_whole_states(memory: MemoryCluster) -> None:
    """Handlers, a saving `run` and hand-overs at once: no change is half committed, none is lost."""

    async def run(me: Diary) -> None:
        while True:
            await asyncio.sleep(0.001)
            me.state.lines = me.state.lines[-3:]
            me.state.count += 1
            await me.save()

    async def twice(me: Diary) -> None:
        me.state.count += 1
        await asyncio.sleep(0.001)
        me.state.count += 1

    story.act |= {"run": run, "twice": twice}
    await memory.start_runner()
    client = await memory.client()
    done = 0
    for _ in range(4):
        await memory.start_runner()
        stopping = soon(memory.stop(memory.runners[0]))
        done += len([found for found in await outcomes(*(client.singleton(Diary).do("twice") for _ in range(5)))
                     if isinstance(found, str)])  # fmt: skip
        await stopping
    assert done == 20
    assert (await client.singleton(Diary).read()).count >= 40
