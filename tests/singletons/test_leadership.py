"""Leadership: its hooks come in order, once each, also after a loss by force; two are never alive on a runner."""

import asyncio
import random

import pytest

from actorhub import Cluster, Hub, SingletonError, current
from actorhub.core.errors import PersistenceError, RunnerUnavailable
from actorhub.engine.ownership import moves
from actorhub.engine.singletons import leader
from actorhub.storage.ports import StoredState
from actorhub.testing import MemoryCluster, until
from tests.singletons.diary import (
    Diary,
    Notes,
    at_gate,
    for_ever,
    is_leading,
    leaders,
    leads,
    led,
    pause,
    row,
    story,
)
from tests.support.gates import failure, gates, soon
from tests.support.parts import runner_of

hub = Hub()
hub.register(Diary)

BEGINNING = ["on_activate", "on_become_leader", "run"]
END = ["on_lose_leadership", "on_deactivate"]


@pytest.fixture(autouse=True)
def new_story() -> None:
    """Begin a story per test, with a `run` that works forever."""
    story.clear()
    story.act["run"] = for_ever


@pytest.fixture
def soon_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have hooks of lost leaders end within 0.2 s instead of 5."""
    monkeypatch.setattr(leader, "LOSS_LIMIT", 0.2)


def incarnation(runner: Cluster) -> str:
    return runner_of(runner).node.incarnation


async def running(memory: MemoryCluster, weight: float = 1.0) -> Cluster:
    """Start a runner; return it once `run` runs there."""
    runner = await memory.start_runner(weight=weight)
    await until(lambda: story.log[-3:] == BEGINNING, "run")
    await leads(memory)
    return runner


async def refuse_a_commit(memory: MemoryCluster, runner: Cluster) -> None:
    """Write the state past its owner, so that the store refuses the owner's next commit."""
    stored = memory.stored("diary", "diary")
    version = 1 if stored is None else stored.version + 1
    memory.overwrite("diary", "diary", StoredState(version, b"\x82\xa5lines\x90\xa5count\x07"))
    error = await failure(runner.singleton(Diary).add("refused"))
    assert isinstance(error, PersistenceError)


async def test_the_last_runner_that_stops_runs_every_hook(memory: MemoryCluster) -> None:
    """`run` is cancelled, then leadership is lost, then the activation ends."""
    runner = await running(memory)
    await memory.stop(runner)
    assert story.log == [*BEGINNING, "run cancelled", *END]


async def test_a_running_handler_ends_before_leadership_does(memory: MemoryCluster) -> None:
    """What runs finishes, `run` is cut short, and only then `on_lose_leadership` runs; what it changes is committed."""

    async def hold(me: Diary) -> None:
        await gates["diary"].pass_through()
        story.log.append("handler done")
        me.state.lines.append("handled")

    async def lose(me: Diary) -> None:
        story.seen["leader"].append(current().is_leader)
        me.state.lines.append("lost")
        await me.save()
        me.state.count = 3

    story.act |= {"hold": hold, "on_lose_leadership": lose}
    runner = await running(memory)
    call = soon(runner.singleton(Diary).do("hold"))
    await gates["diary"].came()
    stopping = soon(memory.stop(runner))
    await asyncio.sleep(0.03)
    assert story.ran["on_lose_leadership"] == 0
    gates["diary"].open()
    assert await call
    await stopping
    assert story.log == [*BEGINNING, "hold", "handler done", "run cancelled", *END]
    assert story.seen["leader"] == [True]
    again = await memory.start_runner()
    assert await again.singleton(Diary).read() == Notes(["handled", "lost"], 3)


async def test_the_next_leader_starts_after_the_old_one_lost(memory: MemoryCluster) -> None:
    """At a hand-over, however long the old one's hooks take, the next one's begin after them."""
    first = await running(memory)
    story.act["on_lose_leadership"] = at_gate("losing")
    story.act["on_deactivate"] = at_gate("ending")
    await memory.start_runner()
    stopping = soon(memory.stop(first))
    await gates["losing"].came()
    await asyncio.sleep(0.05)
    assert story.ran["on_activate"] == 1
    gates["losing"].open()
    await gates["ending"].came()
    await asyncio.sleep(0.05)
    assert story.ran["on_activate"] == 1
    gates["ending"].open()
    await stopping
    await until(lambda: story.ran["run"] == 2)
    assert story.log == [*BEGINNING, "run cancelled", *END, *BEGINNING]
    assert story.most_alive == 1


async def test_a_hook_that_hangs_holds_up_the_next_leader_for_a_bounded_time(
    memory: MemoryCluster, soon_lost: None
) -> None:
    """One that never returns, or swallows its cancellation, is left behind."""

    async def stubborn(me: Diary) -> None:
        while True:
            try:
                await gates["never"].pass_through()
            except asyncio.CancelledError:
                if gates["never"].left.count("cancelled") > 1:
                    raise

    story.act["on_lose_leadership"] = stubborn
    first = await running(memory)
    await memory.start_runner()
    async with asyncio.timeout(2):
        stopping = soon(memory.stop(first))
        await until(lambda: story.ran["run"] == 2)
        await stopping
    del story.act["on_lose_leadership"]


@pytest.mark.parametrize("error", [ValueError("no"), asyncio.CancelledError()])
async def test_a_hook_that_raises_does_not_hold_up_the_next_leader(memory: MemoryCluster, error: BaseException) -> None:
    """It is logged; everything else goes on."""

    async def fail(me: Diary) -> None:
        raise error

    story.act["on_lose_leadership"] = fail
    first = await running(memory)
    await memory.start_runner()
    await memory.stop(first)
    await until(lambda: story.ran["run"] == 2)
    assert story.log == [*BEGINNING, "run cancelled", *END, *BEGINNING]


async def test_a_start_that_fails_is_tried_again_and_loses_nothing(memory: MemoryCluster) -> None:
    """A leader whose `on_become_leader` raises does not lead: no `on_lose_leadership`, and its changes do not count."""

    async def fail(me: Diary) -> None:
        me.state.count += 1
        if story.ran["on_become_leader"] <= 6:
            raise ConnectionError("not yet")

    story.act["on_become_leader"] = fail
    runner = await running(memory)
    assert story.log == ["on_activate", "on_become_leader"] * 6 + BEGINNING
    assert await runner.singleton(Diary).read() == Notes([], 1)
    assert (await runner.health())[0].singletons[0].state == "leading"


async def test_nobody_leads_where_a_leader_that_never_started_stopped(memory: MemoryCluster) -> None:
    """A runner whose singleton fails forever leaves at once, and says that it leads no more."""

    async def fail(me: Diary) -> None:
        raise ConnectionError("never")

    story.act["on_become_leader"] = fail
    runner = await memory.start_runner()
    await until(lambda: story.ran["on_become_leader"] > 4)
    one = led(runner)
    assert one is not None
    assert one.health().state == "failed"
    assert row(memory).leader
    async with asyncio.timeout(1):
        await memory.stop(runner)
    assert row(memory).leader == ""
    assert "on_lose_leadership" not in story.log


async def test_a_start_whose_commit_cannot_be_encoded_is_undone(memory: MemoryCluster) -> None:
    """`on_become_leader` returned, so `on_lose_leadership` runs before the next try."""

    async def spoil(me: Diary) -> None:
        if story.ran["on_become_leader"] == 1:
            me.state.count = "no number"  # type: ignore[assignment]

    story.act["on_become_leader"] = spoil
    await running(memory)
    assert story.log == ["on_activate", "on_become_leader", "on_lose_leadership", *BEGINNING]
    assert story.most_alive == 1


async def test_a_refused_commit_ends_the_leadership(memory: MemoryCluster) -> None:
    """The runner builds the singleton again: the old one loses first, cannot commit, and two are never alive."""

    async def lose(me: Diary) -> None:
        story.seen["leader"].append(current().is_leader)
        me.state.count = 99
        story.seen["error"].append(await failure(me.save()))
        await current().tell(current().singleton(Diary).add("told by a loser"))
        story.seen["stored"].append(memory.stored("diary", "diary"))

    runner = await running(memory)
    story.act["on_lose_leadership"] = lose
    epoch = await runner.singleton(Diary).do("epoch")
    await refuse_a_commit(memory, runner)
    written = memory.stored("diary", "diary")
    await until(lambda: story.ran["run"] == 2)
    assert story.log == [*BEGINNING, "epoch", "run cancelled", "on_lose_leadership", *BEGINNING]
    assert story.seen["leader"] == [False]
    assert isinstance(story.seen["error"][0], PersistenceError)
    assert story.seen["stored"] == [written]
    assert await runner.singleton(Diary).read() == Notes([], 7)
    assert int(await runner.singleton(Diary).do("epoch")) > int(epoch)
    assert story.most_alive == 1


async def test_a_leader_that_is_cut_off_loses_while_the_next_one_leads(
    memory: MemoryCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Handlers and `run` are cancelled, the hook knows that it does not lead, and none of it commits."""
    monkeypatch.setattr(moves, "DRAIN_MARGIN", 60.0)  # However slow this machine is, the shard is released.
    next_one_leads = asyncio.Event()

    async def lose(me: Diary) -> None:
        await next_one_leads.wait()
        story.seen["leader"].append(current().is_leader)
        story.seen["error"].append(await failure(me.save(Notes(["too late"]))))

    first = await running(memory, weight=0.001)
    monkeypatch.setattr(runner_of(first).ownership, "_handover_grace", 0.1)
    story.act |= {"on_lose_leadership": lose, "hold": at_gate("diary")}
    call = soon(failure(first.singleton(Diary).do("hold")))
    await gates["diary"].came()
    second = await memory.start_runner(weight=1000.0)
    await until(lambda: is_leading(second))
    await second.singleton(Diary).add("new")
    next_one_leads.set()
    await until(lambda: bool(story.seen["error"]))
    del story.act["on_lose_leadership"]
    assert isinstance(await call, RunnerUnavailable)
    assert story.seen["leader"] == [False]
    assert isinstance(story.seen["error"][0], PersistenceError)
    assert await second.singleton(Diary).read() == Notes(["new"])


async def test_a_leader_whose_session_froze_leads_again(memory: MemoryCluster) -> None:
    """It fences itself, loses, and starts again at a later epoch; its `run` and its handlers were cancelled."""
    runner = await running(memory)
    story.act["hold"] = at_gate("diary")
    call = soon(failure(runner.singleton(Diary).do("hold")))
    await gates["diary"].came()
    memory.store.freeze_sessions(incarnation(runner))
    await until(lambda: story.ran["run"] == 2)
    assert isinstance(await call, RunnerUnavailable)
    assert story.log[:3] == BEGINNING
    assert sorted(story.log[3:5]) == ["hold", "run cancelled"]
    assert story.log[5:] == ["on_lose_leadership", *BEGINNING]
    memory.store.thaw_sessions(incarnation(runner))


async def test_a_session_that_is_lost_and_regained_never_has_two_alive(memory: MemoryCluster) -> None:
    """Each time the same runner gets its shard back, the former activation has lost before the next one starts."""
    runner = await running(memory)
    story.act["on_lose_leadership"] = pause(0.03)
    for times in range(1, 5):
        memory.store.restart()
        await until(lambda times=times: story.ran["run"] == 1 + times)  # type: ignore[misc]
    await leads(memory)
    assert is_leading(runner)
    assert story.log == [*BEGINNING, *(["run cancelled", "on_lose_leadership", *BEGINNING] * 4)]
    assert story.most_alive == 1


async def test_a_loss_while_it_becomes_leader_ends_that_first(memory: MemoryCluster) -> None:
    """A hook under way is cancelled, and only then the next activation of this runner begins."""

    async def slowly(me: Diary) -> None:
        if story.ran["on_become_leader"] == 1:
            try:
                await gates["start"].pass_through()
            finally:
                await asyncio.sleep(0.05)
                story.log.append("given up")

    story.act["on_become_leader"] = slowly
    await memory.start_runner()
    await gates["start"].came()
    memory.store.restart()
    await until(lambda: "run" in story.log)
    assert story.log == ["on_activate", "on_become_leader", "given up", *BEGINNING]


@pytest.mark.parametrize("hook", ["on_activate", "on_become_leader"])
async def test_a_start_that_ends_its_processes_is_tried_more_and_more_rarely(
    memory: MemoryCluster, caplog: pytest.LogCaptureFixture, hook: str
) -> None:
    """Each runner that takes over would die as well; a leader that got through makes up for all before it."""

    async def hold(me: Diary) -> None:
        await gates["start"].pass_through()

    story.act[hook] = hold
    began: list[float] = []
    clock = asyncio.get_running_loop().time
    for deaths in range(4):
        runner = await memory.start_runner()
        await gates["start"].came(deaths + 1)
        began.append(clock())
        await memory.kill(runner)
    assert began[3] - began[2] > 0.5
    assert "singleton diary: 3 leaders in a row have ended while they started it: starting in " in caplog.text
    gates["start"].open()
    await memory.start_runner()
    await until(lambda: "run" in story.log)
    await until(lambda: row(memory).execution.starts == 0, "a heartbeat")


async def test_a_loss_that_a_start_does_not_notice_is_made_up_for(memory: MemoryCluster) -> None:
    """`on_become_leader` that swallows its cancellation and returns is followed by `on_lose_leadership`."""

    async def swallow(me: Diary) -> None:
        if story.ran["on_become_leader"] == 1:
            try:
                await gates["start"].pass_through()
            except asyncio.CancelledError:
                await asyncio.sleep(0.02)

    story.act["on_become_leader"] = swallow
    await memory.start_runner()
    await gates["start"].came()
    memory.store.restart()
    await until(lambda: "run" in story.log)
    assert story.log == ["on_activate", "on_become_leader", "on_lose_leadership", *BEGINNING]
    assert story.most_alive == 1


async def test_a_loss_while_it_loses_does_not_lose_twice(memory: MemoryCluster) -> None:
    """A session that ends during a graceful hand-over's hook leaves it one, and the next activation waits for it."""
    story.act["on_lose_leadership"] = at_gate("losing")
    first = await running(memory)
    stopping = soon(memory.stop(first))
    await gates["losing"].came()
    memory.store.restart()
    await asyncio.sleep(0.15)
    gates["losing"].open()
    await stopping
    assert story.ran["on_lose_leadership"] == 1
    assert story.alive == 0


@pytest.mark.parametrize("who", ["run", "handler"])
async def test_who_swallows_cancellation_commits_nothing_and_holds_up_nobody_for_long(
    memory: MemoryCluster, soon_lost: None, who: str
) -> None:
    """The hook runs after the bound; what the stubborn one saves later is refused, and disturbs no later leader."""
    released = asyncio.Event()

    async def stubborn(me: Diary) -> None:
        while not released.is_set():
            try:
                await released.wait()
            except asyncio.CancelledError:
                story.log.append("swallowed")
        me.state.lines.append("zombie")
        for _ in range(3):
            story.seen["zombie"].append(await failure(me.save()))

    async def act(me: Diary) -> None:
        await (stubborn(me) if story.ran[name] == 1 else for_ever(me))

    name = "run" if who == "run" else "hold"
    story.act[name] = act
    runner = await running(memory)
    if who == "handler":
        _ = soon(failure(runner.singleton(Diary).do("hold")))
        await until(lambda: "hold" in story.log)
    memory.store.restart()
    await until(lambda: story.log[-3:] == BEGINNING and story.ran["on_activate"] == 2)
    assert story.log.index("swallowed") < story.log.index("on_lose_leadership")
    await runner.singleton(Diary).add("good")
    epoch = await runner.singleton(Diary).do("epoch")
    released.set()
    await until(lambda: len(story.seen["zombie"]) == 3)
    assert all(isinstance(error, PersistenceError | SingletonError) for error in story.seen["zombie"])
    assert await runner.singleton(Diary).do("epoch") == epoch
    assert await runner.singleton(Diary).read() == Notes(["good"])
    assert story.ran["on_lose_leadership"] == 1


async def test_a_handler_that_outlives_the_grace_time_is_cut_off_and_the_hook_still_runs(
    memory: MemoryCluster, soon_lost: None
) -> None:
    """A runner that leaves does not wait forever, and its leader still hears that it lost."""
    story.act["hold"] = at_gate("diary")
    runner = await running(memory)
    call = soon(failure(runner.singleton(Diary).do("hold")))
    await gates["diary"].came()
    async with asyncio.timeout(4):
        await memory.stop(runner)
    assert isinstance(await call, RunnerUnavailable)
    assert gates["diary"].left == ["cancelled"]
    assert story.log == [*BEGINNING, "hold", "run cancelled", "on_lose_leadership"]


async def test_a_killed_leader_says_nothing_and_the_next_one_goes_on(memory: MemoryCluster) -> None:
    """A dead process runs no hook; its successor finds the committed state."""
    first = await running(memory)
    await first.singleton(Diary).add("one")
    second = await memory.start_runner()
    await memory.kill(leaders(memory)[0])
    survivor = memory.runners[0]
    await until(lambda: is_leading(survivor))
    assert await survivor.singleton(Diary).read() == Notes(["one"])
    assert survivor in (first, second)


async def test_it_is_made_again_when_a_message_comes_between_two_tries(memory: MemoryCluster) -> None:
    """A message that comes in a pause starts the singleton at once, and it is tended as ever."""

    async def fail(me: Diary) -> None:
        if story.ran["on_become_leader"] <= 16:
            raise ConnectionError("not yet")

    story.act["on_become_leader"] = fail
    runner = await memory.start_runner()
    await until(lambda: story.ran["on_become_leader"] >= 4)
    async with asyncio.timeout(10):
        while True:
            found = await failure_or_none(runner)
            if found is None:
                break
    await until(lambda: "run" in story.log)
    await leads(memory)
    await refuse_a_commit(memory, runner)
    await until(lambda: story.ran["run"] == 2)
    assert story.log[-5:] == ["run cancelled", "on_lose_leadership", *BEGINNING]


async def failure_or_none(runner: Cluster) -> Exception | None:
    """Call once."""
    try:
        await runner.singleton(Diary).read()
    except Exception as error:  # noqa: BLE001 - user code: the test looks at it
        return error
    return None


@pytest.mark.parametrize("seed", range(3))
async def test_each_on_lose_leadership_answers_one_on_become_leader(memory: MemoryCluster, seed: int) -> None:
    """Through a random mix of hand-overs and losses by force, hooks of live runners alternate strictly."""
    chance = random.Random(seed)

    async def a_while(me: Diary) -> None:
        await asyncio.sleep(0.01 * chance.random())

    story.act |= {"on_become_leader": a_while, "on_lose_leadership": a_while}
    for _ in range(2):
        await memory.start_runner()
    for _ in range(12):
        match chance.randrange(4):
            case 0:
                await memory.start_runner()
            case 1 if len(memory.runners) > 1:
                await memory.stop(chance.choice(memory.runners))
            case 2:
                memory.store.terminate_sessions(incarnation(chance.choice(memory.runners)))
            case _:
                await asyncio.sleep(chance.random() / 20)
    await leads(memory)
    await until(lambda: story.alive == 1, "an end of every leadership but the last")
    assert story.ran["led"] - story.ran["on_lose_leadership"] == 1
