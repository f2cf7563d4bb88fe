"""A `run` of several tasks that save: they have one turn together, and commit one after the other."""

import asyncio

import pytest

from actorhub import Hub
from actorhub.testing import MemoryCluster, until
from tests.singletons.diary import Diary, at_gate, story
from tests.support.gates import gates, soon

hub = Hub()
hub.register(Diary)


@pytest.fixture(autouse=True)
def new_story() -> None:
    """Begin a story per test."""
    story.clear()


async def test_a_save_beside_run_gets_the_turn_that_run_took_back_first(memory: MemoryCluster) -> None:
    """Both waited for a handler; `run` goes on first, and waits again while another of its tasks wants to save."""
    go = asyncio.Event()

    async def save(me: Diary) -> None:
        await gates["half"].came()
        go.set()
        for _ in range(10):
            await asyncio.sleep(0)  # Now `run` waits for the turn, and this waits behind it.
        await me.save()
        story.log.append("saved")

    async def run(me: Diary) -> None:
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(save(me))
            await go.wait()
            story.log.append("went on")

    story.act |= {"run": run, "half": at_gate("half")}
    runner = await memory.start_runner()
    await until(lambda: "run" in story.log)
    call = soon(runner.singleton(Diary).do("half"))
    await gates["half"].came()
    await asyncio.sleep(0.02)
    gates["half"].open()
    assert await call
    async with asyncio.timeout(5):
        await until(lambda: "saved" in story.log)
        assert await runner.singleton(Diary).add("a line") == 1


async def test_saves_at_once_in_run_come_one_after_the_other(memory: MemoryCluster) -> None:
    """Each commits the version after the one before, so none is refused."""

    async def child(me: Diary, number: int) -> None:
        me.state.lines.append(f"child {number}")
        await me.save()

    async def run(me: Diary) -> None:
        async with asyncio.TaskGroup() as tasks:
            for number in range(3):
                tasks.create_task(child(me, number))
        story.log.append("done")

    story.act["run"] = run
    runner = await memory.start_runner()
    await until(lambda: "done" in story.log)
    assert story.ran["run"] == 1
    assert (await runner.singleton(Diary).read()).lines == ["child 0", "child 1", "child 2"]
